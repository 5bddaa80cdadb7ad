"""The tables `oidc."NAME"`: providers of OpenID Connect. See docs/sign-in.md."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, field_validator, model_validator

from portal.settings.values import PlainName, Section, Words

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_VERIFIED_CLAIM = "email"  # the only claim that `email_verified` speaks of (OpenID Connect Core, 5.1)


class OidcSettings(Section):
    """One provider of OpenID Connect."""

    title: PlainName = Field("", description="Its name on the sign-in page. Default: the name of the table.")
    issuer: str = Field(
        description="Its issuer, exactly as its discovery document has it, like `https://id.example.org/realms/main`."
    )
    client_id: str = Field(min_length=1, description="The name under which the portal is registered there.")
    client_secret: SecretStr | None = Field(None, description="The secret of that registration.")
    client_secret_file: Path | None = Field(
        None, description="A file with the secret. Without a secret the portal is a public client, protected by PKCE."
    )
    scopes: Words = Field(("openid", "email"), description="The scopes to request.")
    address_claim: str = Field(_VERIFIED_CLAIM, min_length=1, description="The claim with the person's address.")
    require_verified: bool = Field(
        True,
        description="Whether `email_verified` must be true. Set it to false only if people cannot change their address "
        "at the provider.",
    )
    groups_claim: str = Field(
        "groups",
        description="The claim with the person's groups, for `staff.groups`, or a path like `realm_access.roles`.",
    )

    @field_validator("issuer")
    @classmethod
    def _reachable(cls, issuer: str) -> str:
        parts = urlsplit(issuer)
        if not is_safe_url(issuer) or parts.query or parts.fragment:
            raise ValueError("expected a URL like https://id.example.org/realms/main")
        return issuer

    @field_validator("scopes")
    @classmethod
    def _openid(cls, scopes: tuple[str, ...]) -> tuple[str, ...]:
        return scopes if "openid" in scopes else ("openid", *scopes)

    @model_validator(mode="after")
    def _consistent(self) -> OidcSettings:
        if self.client_secret is not None and self.client_secret_file is not None:
            raise ValueError("client_secret and client_secret_file are both set: use one of them")
        if self.require_verified and self.address_claim != _VERIFIED_CLAIM:
            raise ValueError(
                "address_claim: email_verified says nothing about this claim; set require_verified = false if people "
                "cannot change it at the provider"
            )
        return self

    def secret(self) -> str:
        """Return the client's secret, "" for a public client. Raises OSError, ValueError."""
        if self.client_secret_file is not None:
            return self.client_secret_file.read_text("utf-8").rstrip("\r\n")
        return self.client_secret.get_secret_value() if self.client_secret is not None else ""


def is_safe_url(url: str) -> bool:
    """Return whether a URL is https, or http to this host, and has no user name."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return False
    secure = parts.scheme == "https" or (parts.scheme == "http" and host in _LOOPBACK)
    return secure and bool(host) and not parts.username and url.isascii() and not re.search(r"\s", url)


def _named(value: Any) -> Any:
    if isinstance(value, str):
        raise ValueError("expected tables like [oidc.company], which only the file can have")
    for name in value if isinstance(value, dict) else ():
        if not re.fullmatch(r"[a-z0-9-]{1,32}", name) or name == "proxy":
            raise ValueError(f'"{name}": the name of a provider has up to 32 letters a-z, digits and -, not proxy')
    return value


def _distinct(providers: dict[str, OidcSettings]) -> dict[str, OidcSettings]:
    issuers = [each.issuer for each in providers.values()]
    if len(set(issuers)) < len(issuers):
        raise ValueError("two providers have the same issuer")
    return providers


Providers = Annotated[dict[str, OidcSettings], BeforeValidator(_named), AfterValidator(_distinct)]
