"""Checks of passwords by an LDAP directory or Active Directory. The only user of ldap3.

The portal's own account searches for the one entry that has the address. Then the password is used to bind as that
entry. TLS is always used, and the certificate is always verified; referrals are not followed. `LdapServer.all_entries`
reads the whole directory, for the command that writes the alias file.
"""

from __future__ import annotations

import re
import secrets
import ssl
import warnings
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any
from urllib.parse import urlsplit

from portal.model.errors import PasswordServerUnavailable, PasswordUnanswered, SettingsError
from portal.model.message import identity, is_address
from portal.model.text import shown
from portal.passwords import Proven
from portal.passwords.deadline import Deadline
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
_ALL_SECONDS = 300.0
_PAGE_ENTRIES = 500  # Active Directory returns at most 1,000 at once
_PAGED_RESULTS = "1.2.840.113556.1.4.319"  # RFC 2696
# Comparisons of a filter in which `*` is an ordinary character (RFC 4515, section 3).
_WITHOUT_WILDCARD = re.compile(r"\([^()=]*[:~<>]=[^()]*\{address\}")


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of the directory that has an address."""

    dn: str
    addresses: tuple[str, ...]  # identities
    primary: str | None  # one of them, None if the directory does not say which
    groups: frozenset[str]

    def address_of(self, typed: str) -> str | None:
        """Return the address that this entry proves: the typed one if it has it, else its primary one."""
        return typed if typed in self.addresses else self.primary


class LdapServer:
    """See `PasswordServer`."""

    method = "ldap"

    def __init__(self, settings: LdapSettings) -> None:
        self._settings = settings
        url = urlsplit(settings.uri)
        self._host, self._is_ldaps = url.hostname or "", url.scheme == "ldaps"
        self._port = url.port or (636 if self._is_ldaps else 389)

    def check(self, address: str, password: str, client_ip: str, deadline: Deadline) -> Proven | None:
        with self._connected(deadline) as connection:
            found = self._search(connection, address)
            entry = found[0] if len(found) == 1 else None
            # Without an entry the time of the answer must be the same, so that it does not disclose who has one.
            dn = entry.dn if entry else f"cn={secrets.token_hex(8)},{self._settings.base}"
            asked = self._with_groups(connection, entry or Entry(dn, (), primary=None, groups=frozenset()))
            if not self._bind(connection, dn, password, deadline) or entry is None:
                return None
        proven = entry.address_of(address)
        return Proven(proven, asked.groups) if proven else None

    def entries(self, address: str) -> Sequence[Entry]:
        """Return the entries that have an address, at most two. Raises `PasswordServerUnavailable`."""
        with Deadline() as deadline, self._connected(deadline) as connection:
            found = self._search(connection, address)
            return [self._with_groups(connection, entry) for entry in found]

    def all_entries(self) -> Sequence[Entry]:
        """Return all entries that `ldap.filter` finds by some address, without their groups.

        Raises SettingsError, and `PasswordServerUnavailable` unless the directory returned all of them.
        """
        settings = self._settings
        everybody = _filter_of_all(settings.filter)
        found: list[Entry] = []
        cookie: bytes | None = None
        with Deadline(_ALL_SECONDS) as deadline, self._connected(deadline) as connection:
            while True:
                connection.search(
                    settings.base,
                    everybody,
                    dereference_aliases=ldap3.DEREF_NEVER,
                    attributes=[*settings.address_attributes],
                    time_limit=settings.timeout_seconds,
                    paged_size=_PAGE_ENTRIES,
                    paged_criticality=True,
                    paged_cookie=cookie,
                )
                found += self._found(connection, {_SUCCESS})
                answer = connection.result.get("controls", {}).get(_PAGED_RESULTS)
                cookie = answer["value"]["cookie"] if answer else None
                if not cookie:
                    return found

    @contextmanager
    def _connected(self, deadline: Deadline) -> Iterator[Any]:
        """Connect, encrypt and bind as the portal's own account."""
        settings = self._settings
        password = settings.bind_password.get_secret_value() if settings.bind_password else None
        connection: Any = None
        try:
            server = _Server(self._host, self._port, self._is_ldaps, settings, deadline)
            connection = server.connection = ldap3.Connection(
                server,
                settings.bind_dn or None,
                password,
                authentication=ldap3.SIMPLE if settings.bind_dn else ldap3.ANONYMOUS,
                receive_timeout=settings.timeout_seconds,
                auto_referrals=False,
                check_names=False,
                read_only=True,
            )
            connection.open(read_server_info=False)
            if not self._is_ldaps:
                deadline.watch(connection.socket)
                connection.start_tls(read_server_info=False)
            if not connection.bind(read_server_info=False):
                who = "ldap.bind_dn" if settings.bind_dn else "searches without ldap.bind_dn"
                raise PasswordServerUnavailable(f"{self._host} does not accept {who}: {_answer(connection)}")
            yield connection
        except (LDAPException, PyAsn1Error, OSError, ValueError) as error:
            raise PasswordServerUnavailable(self._text(deadline.reason(error))) from error
        finally:
            if connection is not None:
                with suppress(LDAPException, OSError):
                    connection.unbind()
                if connection.socket is not None:  # ldap3 leaves one open that could not connect
                    connection.socket.close()

    def _bind(self, connection: Any, dn: str, password: str, deadline: Deadline) -> bool:
        try:
            if connection.rebind(dn, password, authentication=ldap3.SIMPLE, read_server_info=False):
                return True
        except (LDAPException, OSError) as error:
            raise PasswordUnanswered(self._text(deadline.reason(error))) from error
        if connection.result["result"] not in _WRONG:
            raise PasswordServerUnavailable(f"{self._host} did not check a password: {_answer(connection)}")
        return False

    def _text(self, error: Exception | str) -> str:
        reason: Any = error
        while isinstance(reason, Exception | tuple):  # ldap3 wraps texts in tuples, and these in exceptions
            parts = reason.args if isinstance(reason, LDAPException) else reason
            reason = parts[0] if isinstance(parts, tuple) and parts else str(reason)
        return f"{self._host}:{self._port}: {shown(str(reason), _ERROR_CHARACTERS)}"

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
        return self._found(connection, {_SUCCESS, _SIZE_LIMIT_EXCEEDED})

    def _found(self, connection: Any, results: Container[int]) -> Sequence[Entry]:
        """Return the entries that a search found. Raises `PasswordServerUnavailable` for other results than these."""
        if connection.result["result"] not in results:
            raise PasswordServerUnavailable(f"{self._host} cannot search ldap.base: {_answer(connection)}")
        return [self._entry(item) for item in connection.response or () if item["type"] == "searchResEntry"]

    def _with_groups(self, connection: Any, entry: Entry) -> Entry:
        """Return an entry with the groups that `ldap.group_filter` finds. A directory may limit their number."""
        settings = self._settings
        if not settings.group_filter:
            return entry
        connection.search(
            settings.group_base or settings.base,
            settings.group_filter.replace("{dn}", escape_filter_chars(entry.dn)),
            dereference_aliases=ldap3.DEREF_NEVER,
            attributes=ldap3.NO_ATTRIBUTES,
            time_limit=settings.timeout_seconds,
        )
        if connection.result["result"] not in (_SUCCESS, _SIZE_LIMIT_EXCEEDED):
            raise PasswordServerUnavailable(f"{self._host} cannot search ldap.group_base: {_answer(connection)}")
        groups = (item["dn"] for item in connection.response or () if item["type"] == "searchResEntry")
        return replace(entry, groups=frozenset(groups))

    def _entry(self, item: Mapping[str, Any]) -> Entry:
        values = {
            name.casefold(): [value.decode("utf-8", "replace") for value in found]
            for name, found in item["raw_attributes"].items()
        }
        by_attribute = [values.get(name.casefold(), []) for name in self._settings.address_attributes]
        ours = [*chain.from_iterable(by_attribute)]
        addresses = _identities(ours)
        marked = [value for value in ours if value.startswith("SMTP:")]
        # The values of an attribute have no order (RFC 4512, section 2.3), so the first of several is not the primary.
        candidates = _identities(marked or next(iter(by_attribute), [])) or addresses
        primary = candidates[0] if len(candidates) == 1 else None
        groups = frozenset(values.get(self._settings.group_attribute.casefold(), []))
        return Entry(item["dn"], addresses, primary, groups)


class _Server(ldap3.Server):  # type: ignore[misc]
    """The server of one connection. ldap3 keeps the address in use in it, so it is not shared by threads."""

    def __init__(self, host: str, port: int, is_ldaps: bool, settings: LdapSettings, deadline: Deadline) -> None:
        tls = _VerifiedTls(settings, deadline if is_ldaps else None)
        super().__init__(host, port, use_ssl=is_ldaps, tls=tls, get_info=ldap3.NONE)
        self._timeout, self._deadline = settings.timeout_seconds, deadline
        self.connection: Any = None

    def candidate_addresses(self) -> Iterator[Any]:
        """Yield the addresses of the host. ldap3 tries each of them."""
        for address in super().candidate_addresses():
            self.connect_timeout = self._deadline.left(self._timeout)
            yield address
            if self.connection is not None and self.connection.socket is not None:  # ldap3 leaves it open
                self.connection.socket.close()


class _VerifiedTls(ldap3.Tls):  # type: ignore[misc]
    """TLS as Python's own client uses it. ldap3's verifies nothing by default, and compares host names by itself."""

    def __init__(self, settings: LdapSettings, deadline: Deadline | None) -> None:
        """``deadline``: of connections that begin with TLS, so that it also holds for the handshake."""
        super().__init__(validate=ssl.CERT_REQUIRED)
        self._ca_file = settings.ca_file
        self._deadline = deadline

    def wrap_socket(self, connection: Any, do_handshake: bool = False) -> None:
        """Encrypt the connection. Raises OSError if the certificate is not valid for the host."""
        if self._deadline is not None:
            self._deadline.watch(connection.socket)
        context = ssl.create_default_context(cafile=self._ca_file)
        connection.socket = context.wrap_socket(connection.socket, server_hostname=connection.server.host)


def _identities(values: Iterable[str]) -> tuple[str, ...]:
    """Return the addresses among the values of an entry, as identities.

    Active Directory's proxyAddresses: "SMTP:" before the primary address, "smtp:" before the others, and other
    protocols, which are left out.
    """
    addresses = (value[5:] if value[:5].casefold() == "smtp:" else value for value in values)
    return tuple(dict.fromkeys(identity(value) for value in addresses if ":" not in value and is_address(value)))


def _filter_of_all(text: str) -> str:
    """Return the filter of all entries that `ldap.filter` finds by some address. Raises SettingsError."""
    if _WITHOUT_WILDCARD.search(text):
        raise SettingsError(
            "ldap.filter compares {address} by `:=`, `~=`, `<=` or `>=`, which have no wildcard, so it cannot find all "
            "entries. Use `=`"
        )
    return re.sub(r"\*+", "*", text.replace("{address}", "*"))


def _answer(connection: Any) -> str:
    result = connection.result
    return shown(f"{result['description']} {result['message']}".strip(), _ERROR_CHARACTERS)
