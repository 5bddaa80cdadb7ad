"""The sections of what operators watch: metrics and the log."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, SecretStr, field_validator

from portal.settings.values import Network, Section, words

_TOKEN_CHARACTERS = 16


class MetricsSettings(Section):
    """Access to `/metrics`."""

    allowed_networks: Annotated[tuple[Network, ...] | None, BeforeValidator(words)] = Field(
        None,
        description="Networks of hosts that may read `/metrics`, in CIDR notation. Default: those of "
        "`exporter.allowed_networks`.",
    )
    token: SecretStr | None = Field(
        None,
        description="A token that these hosts must send as well, as `Authorization: Bearer TOKEN`; at least "
        f"{_TOKEN_CHARACTERS} characters.",
    )

    @field_validator("token")
    @classmethod
    def _long_enough(cls, token: SecretStr | None) -> SecretStr | None:
        if token is not None:
            text = token.get_secret_value()
            if len(text) < _TOKEN_CHARACTERS or not text.isascii() or not text.isprintable() or " " in text:
                raise ValueError(
                    f"expected at least {_TOKEN_CHARACTERS} ASCII characters without spaces: openssl rand -hex 20"
                )
        return token


class LogSettings(Section):
    """The log of the web workers and the digest process."""

    format: Literal["text", "json"] = Field(
        "text",
        description="`text`: lines for people. `json`: an object on each line, with the values of a line as fields, "
        "for programs that collect logs.",
    )
