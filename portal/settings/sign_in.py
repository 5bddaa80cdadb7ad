"""The section of sign-in methods. Those with many settings have a section of their own."""

from __future__ import annotations

from pydantic import Field, SecretStr, field_validator

from portal.settings.oidc import is_safe_url
from portal.settings.values import PlainName, Section

_SECRET_CHARACTERS = 32


class SignInSettings(Section):
    """Sign-in methods of recipients and staff; see docs/sign-in.md."""

    mailed_link: bool = Field(
        True,
        description="Whether the sign-in page mails links and codes. Links that staff send work in any case, and the "
        "pages of a digest's links mail them if no other method is set.",
    )


class ProxySettings(Section):
    """Sign-in by a proxy that has authenticated the user; see docs/sign-in.md."""

    secret: SecretStr | None = Field(
        None,
        description="The value of the header `X-Quarantine-Secret` by which the proxy proves itself, at least "
        f"{_SECRET_CHARACTERS} characters. Default: no proxy signs anybody in.",
    )
    title: PlainName = Field(
        "", description="The proxy's name on the sign-in page. Default: your organization's account."
    )
    second_factor: bool = Field(
        False,
        description="Whether the proxy asks staff for a second factor, so that the console does not ask after signing "
        "in there.",
    )
    sign_out_url: str = Field("", description="Where people sign out of the proxy's account.")

    @field_validator("secret")
    @classmethod
    def _long(cls, secret: SecretStr | None) -> SecretStr | None:
        text = secret.get_secret_value() if secret is not None else ""
        if secret is not None and (len(text) < _SECRET_CHARACTERS or not text.isascii() or not text.isprintable()):
            raise ValueError(f"expected at least {_SECRET_CHARACTERS} printable ASCII characters")
        return secret

    @field_validator("sign_out_url")
    @classmethod
    def _safe(cls, url: str) -> str:
        if url and not is_safe_url(url):
            raise ValueError("expected a URL like https://login.example.org/sign-out")
        return url
