"""The checks of ``quarantine check`` about the servers that check passwords. None changes anything."""

from __future__ import annotations

from collections.abc import Iterator

from portal.cli.finding import Finding
from portal.model.domains import shown_address
from portal.passwords import directory
from portal.passwords.imap import ImapServer
from portal.settings import Settings

_NOBODY = "quarantine-check@invalid"  # an address of no entry


def ldap(settings: Settings) -> Iterator[Finding]:
    """Check that the directory accepts the portal's account, and has one entry for each administrator."""
    if not settings.ldap.uri:
        return
    server = directory(settings)
    server.entries(_NOBODY)
    yield Finding(True, "ldap", f"{settings.ldap.uri}: its certificate is valid, and it can be searched")
    for person in settings.staff.administrators:
        name, entries = shown_address(person), server.entries(person)
        if len(entries) != 1:
            count = "no entry" if not entries else "several entries"
            text = f"{count} for {name} (ldap.base, ldap.filter): a password cannot sign them in"
            yield Finding(False, "ldap", text)
        elif entries[0].address_of(person) is None:
            text = f"the entry of {name} does not have this address (ldap.address_attributes)"
            yield Finding(False, "ldap", text)
        else:
            yield Finding(True, "ldap", f"one entry for {name}, with {len(entries[0].groups)} groups")


def imap(settings: Settings) -> Iterator[Finding]:
    """Check that the IMAP server accepts passwords over TLS, and say how it must treat the portal."""
    if not settings.imap.host:
        return
    takes_client_address = ImapServer(settings.imap).takes_client_address()
    yield Finding(True, "imap", f"{settings.imap.host}: its certificate is valid, and it takes passwords")
    if takes_client_address:
        text = (
            "if it is Dovecot, it must have the portal's address in login_trusted_networks: otherwise wrong passwords "
            "of one person slow down the sign-ins of all (docs/sign-in.md)"
        )
    else:
        text = (
            "it takes no address of the browser (IMAP ID): wrong passwords of one person may slow down the sign-ins of "
            "all"
        )
    yield Finding(None, "imap", text)
