"""Checks of passwords by an LDAP directory or Active Directory. The only user of ldap3.

The portal's own account searches for the one entry that has the address. Then the password is used to bind as that
entry. TLS is always used, and the certificate is always verified; referrals are not followed.
"""

from __future__ import annotations

import secrets
import ssl
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from portal.model.errors import PasswordServerUnavailable, PasswordUnanswered
from portal.model.message import identity, is_address
from portal.model.text import shown
from portal.passwords import Proven
from portal.settings.passwords import LdapSettings

with warnings.catch_warnings():
    # Of pyasn1: ldap3 uses names that it has renamed since.
    warnings.simplefilter("ignore", DeprecationWarning)
    import ldap3
    from ldap3.core.exceptions import LDAPException
    from ldap3.utils.conv import escape_filter_chars
    from pyasn1.error import PyAsn1Error

_SUCCESS, _SIZE_LIMIT_EXCEEDED = 0, 4
# RFC 4511, appendix A: constraintViolation (a locked account), noSuchObject, inappropriateAuthentication,
# invalidCredentials, unwillingToPerform (an inactive account). Active Directory answers 49 for all of these.
_WRONG = frozenset({19, 32, 48, 49, 53})
_ERROR_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of the directory that has an address."""

    dn: str
    addresses: tuple[str, ...]  # identities, the primary one first if the directory says which it is
    has_primary: bool
    groups: frozenset[str]

    def address_of(self, typed: str) -> str | None:
        """Return the address that this entry proves: the typed one if it has it, else its primary or only one."""
        if typed in self.addresses:
            return typed
        return self.addresses[0] if self.has_primary or len(self.addresses) == 1 else None


class LdapServer:
    """See `PasswordServer`."""

    method = "ldap"

    def __init__(self, settings: LdapSettings) -> None:
        self._settings = settings
        url = urlsplit(settings.uri)
        self._server = ldap3.Server(
            url.hostname,
            url.port,
            use_ssl=url.scheme == "ldaps",
            tls=_VerifiedTls(settings),
            get_info=ldap3.NONE,
            connect_timeout=settings.timeout_seconds,
        )

    def check(self, address: str, password: str, client_ip: str) -> Proven | None:
        with self._connected() as connection:
            found = self._search(connection, address)
            entry = found[0] if len(found) == 1 else None
            # Without an entry the time of the answer must be the same, so that it does not disclose who has one.
            dn = entry.dn if entry else f"cn={secrets.token_hex(8)},{self._settings.base}"
            if not self._bind(connection, dn, password) or entry is None:
                return None
        proven = entry.address_of(address)
        return Proven(proven, entry.groups) if proven else None

    def entries(self, address: str) -> Sequence[Entry]:
        """Return the entries that have an address, at most two. Raises `PasswordServerUnavailable`."""
        with self._connected() as connection:
            return self._search(connection, address)

    @contextmanager
    def _connected(self) -> Iterator[Any]:
        """Connect, encrypt and bind as the portal's own account."""
        settings = self._settings
        password = settings.bind_password.get_secret_value() if settings.bind_password else None
        connection: Any = None
        try:
            connection = ldap3.Connection(
                self._server,
                settings.bind_dn or None,
                password,
                authentication=ldap3.SIMPLE if settings.bind_dn else ldap3.ANONYMOUS,
                receive_timeout=settings.timeout_seconds,
                auto_referrals=False,
                check_names=False,
                read_only=True,
            )
            connection.open(read_server_info=False)
            if not self._server.ssl:
                connection.start_tls(read_server_info=False)
            if not connection.bind(read_server_info=False):
                who = "ldap.bind_dn" if settings.bind_dn else "searches without ldap.bind_dn"
                raise PasswordServerUnavailable(f"{self._server.host} does not accept {who}: {_answer(connection)}")
            yield connection
        except (LDAPException, PyAsn1Error, OSError, ValueError) as error:
            raise PasswordServerUnavailable(self._text(error)) from error
        finally:
            if connection is not None:
                with suppress(LDAPException, OSError):
                    connection.unbind()
                if connection.socket is not None:  # ldap3 leaves one open that could not connect
                    connection.socket.close()

    def _bind(self, connection: Any, dn: str, password: str) -> bool:
        try:
            if connection.rebind(dn, password, authentication=ldap3.SIMPLE, read_server_info=False):
                return True
        except (LDAPException, OSError) as error:
            raise PasswordUnanswered(self._text(error)) from error
        if connection.result["result"] not in _WRONG:
            raise PasswordServerUnavailable(f"{self._server.host} did not check a password: {_answer(connection)}")
        return False

    def _text(self, error: Exception) -> str:
        reason: Any = error
        while isinstance(reason, Exception | tuple):  # ldap3 wraps texts in tuples, and these in exceptions
            parts = reason.args if isinstance(reason, LDAPException) else reason
            reason = parts[0] if isinstance(parts, tuple) and parts else str(reason)
        return f"{self._server.host}:{self._server.port}: {shown(str(reason), _ERROR_CHARACTERS)}"

    def _search(self, connection: Any, address: str) -> Sequence[Entry]:
        settings = self._settings
        attributes = [*settings.address_attributes, settings.group_attribute]
        connection.search(
            settings.base,
            settings.filter.replace("{address}", escape_filter_chars(address)),
            dereference_aliases=ldap3.DEREF_NEVER,
            attributes=attributes,
            size_limit=2,
            time_limit=settings.timeout_seconds,
        )
        if connection.result["result"] not in (_SUCCESS, _SIZE_LIMIT_EXCEEDED):
            raise PasswordServerUnavailable(f"{self._server.host} cannot search ldap.base: {_answer(connection)}")
        return [self._entry(item) for item in connection.response or () if item["type"] == "searchResEntry"]

    def _entry(self, item: Mapping[str, Any]) -> Entry:
        values = {
            name.casefold(): [value.decode("utf-8", "replace") for value in found]
            for name, found in item["raw_attributes"].items()
        }
        ours = [value for name in self._settings.address_attributes for value in values.get(name.casefold(), [])]
        # Active Directory's proxyAddresses: "SMTP:" before the primary address, "smtp:" before the others, and other
        # protocols, which are left out.
        primary = [value for value in ours if value.startswith("SMTP:")]
        addresses = (value[5:] if value[:5].casefold() == "smtp:" else value for value in (*primary, *ours))
        known = dict.fromkeys(identity(value) for value in addresses if ":" not in value and is_address(value))
        groups = frozenset(values.get(self._settings.group_attribute.casefold(), []))
        return Entry(item["dn"], tuple(known), len(primary) == 1, groups)


class _VerifiedTls(ldap3.Tls):  # type: ignore[misc]
    """TLS as Python's own client uses it. ldap3's verifies nothing by default, and compares host names by itself."""

    def __init__(self, settings: LdapSettings) -> None:
        super().__init__(validate=ssl.CERT_REQUIRED)
        self._ca_file = settings.ca_file

    def wrap_socket(self, connection: Any, do_handshake: bool = False) -> None:
        """Encrypt the connection. Raises OSError if the certificate is not valid for the host."""
        context = ssl.create_default_context(cafile=self._ca_file)
        connection.socket = context.wrap_socket(connection.socket, server_hostname=connection.server.host)


def _answer(connection: Any) -> str:
    result = connection.result
    return shown(f"{result['description']} {result['message']}".strip(), _ERROR_CHARACTERS)
