"""Checks of passwords by the site's servers: an LDAP directory or Active Directory, and the IMAP server.

The portal has no passwords. It passes one on, over TLS with a verified certificate, and forgets it. `PasswordServer` is
one server; `password_servers` returns those of the settings. Callers limit the tries (`portal.web.auth.password`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from portal.model.errors import SettingsError
from portal.passwords.deadline import Deadline
from portal.settings import Settings

if TYPE_CHECKING:
    from portal.passwords.ldap import LdapServer

MAX_PASSWORD_OCTETS = 1024


@dataclass(frozen=True, slots=True)
class Proven:
    """The person whose password is right, as the server knows them."""

    address: str  # identity
    groups: frozenset[str] = frozenset()


class PasswordServer(Protocol):
    """A server that checks passwords. Used by many threads; each check has a connection of its own."""

    method: str  # the name of the sign-in method in the audit

    def check(self, address: str, password: str, client_ip: str, deadline: Deadline) -> Proven | None:
        """Return who the person is if the password is right, None if it is wrong or nobody has this address.

        ``address``: an identity. ``client_ip``: the browser's, "" if unknown. ``deadline``: that of all servers
        together. The caller has checked `is_passable`. Raises `PasswordServerUnavailable`.
        """


def password_servers(settings: Settings) -> Sequence[PasswordServer]:
    """Return the servers of the settings, in the order in which they are asked. Raises SettingsError."""
    servers: list[PasswordServer] = []
    if settings.ldap.uri:
        servers.append(directory(settings))
    if settings.imap.host:
        from portal.passwords.imap import ImapServer

        servers.append(ImapServer(settings.imap))
    return servers


def directory(settings: Settings) -> LdapServer:
    """Return the LDAP directory, if `ldap.uri` is set. Raises SettingsError if its library is not installed."""
    try:
        from portal.passwords.ldap import LdapServer  # its library is an extra
    except ImportError as error:
        raise SettingsError(
            "ldap.uri is set, but ldap3 is not installed: pip install 'rspamd-quarantine-portal[ldap]'"
        ) from error
    return LdapServer(settings.ldap)


def is_passable(password: str) -> bool:
    """Return whether a password may be passed on.

    An LDAP server answers success to an empty one, without checking anything (RFC 4513, 5.1.2). NUL separates the
    parts of a message of SASL PLAIN (RFC 4616). No form field for passwords contains line breaks.
    """
    octets = password.encode("utf-8", "replace")
    return 0 < len(octets) <= MAX_PASSWORD_OCTETS and not any(c in password for c in "\0\r\n")
