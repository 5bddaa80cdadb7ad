"""OpenID Connect: values, errors and addresses.

`portal.openid.provider` needs the extra `oidc`. `make_providers` imports it if the settings have a provider.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from portal.model.errors import QuarantineError, SettingsError
from portal.settings import Settings

if TYPE_CHECKING:
    from portal.openid.provider import Provider


class ProviderUnavailable(QuarantineError):
    """The provider does not answer, or not as it should."""


class SignInRefused(QuarantineError):
    """The provider, or a check of its answer, refused the sign-in."""


class AddressUnverified(SignInRefused):
    """The provider does not confirm the address."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One try to sign in. The browser keeps it until the provider sends it back."""

    state: str
    nonce: str
    verifier: str
    is_fresh: bool = False  # whether the person must prove who they are, and not only have a session there


@dataclass(frozen=True, slots=True)
class Person:
    """The provider's claims about somebody who signed in."""

    address: str
    groups: frozenset[str] | None  # None: they could not be asked for
    subject: str
    session: str  # `sid`, "" if the provider does not name its sessions
    authenticated_at: datetime | None  # `auth_time`, None if the provider does not say it


@dataclass(frozen=True, slots=True)
class Logout:
    """A valid logout token. One of `subject` and `session` is not empty."""

    subject: str
    session: str
    issued_at: float


def make_providers(settings: Settings) -> dict[str, Provider]:
    """Return the providers of the settings by name. Raises SettingsError if their library is not installed."""
    if not settings.oidc:
        return {}
    try:
        from portal.openid.provider import Provider  # 0.4 s and 16 MB, for sites that have a provider
    except ImportError as error:
        raise SettingsError(
            "oidc is set, but joserfc is not installed: pip install 'rspamd-quarantine-portal[oidc]'"
        ) from error
    wants_groups = bool(settings.staff.groups)
    return {name: Provider(name, each, wants_groups=wants_groups) for name, each in settings.oidc.items()}


def redirect_uri(public_url: str, name: str) -> str:
    """Return the address to which a provider sends browsers back. It must be registered there."""
    return f"{public_url}/sign-in/oidc/{name}/callback"
