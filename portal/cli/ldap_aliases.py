"""The command ``quarantine ldap-aliases``: lines for the alias file from the addresses in an LDAP directory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import click

from portal.cli.common import NotDone, WrongCall, guarded
from portal.model.domains import shown_address
from portal.model.errors import PasswordServerUnavailable
from portal.model.text import shown
from portal.passwords import directory
from portal.people.virtual import parse
from portal.settings import Settings, load

if TYPE_CHECKING:
    from portal.passwords.ldap import Entry

_DN_CHARACTERS = 200
_LISTED = 5  # entries or addresses in a warning


@click.command("ldap-aliases")
@guarded
def ldap_aliases() -> None:
    """Print the aliases in the LDAP directory, as lines for the file in people.alias_file.

    Each line has an alias and the primary address of its entry. Warnings name what is left out. If the directory does
    not return all entries, nothing is printed and the exit status is 1.
    """
    settings = load()
    if not settings.ldap.uri:
        raise WrongCall("ldap.uri is not set. Add the section [ldap] to the settings: docs/sign-in.md.")
    try:
        entries = directory(settings).all_entries()
    except PasswordServerUnavailable as error:
        raise NotDone(
            f"{error}. Run quarantine check; if the directory limits what a search returns, raise the limit for "
            "ldap.bind_dn."
        ) from error
    aliases = _Aliases(settings, entries)
    lines = sorted(aliases.lines())
    for warning in aliases.warnings:
        click.echo(f"warning: {warning}", err=True)
    if not lines:
        raise NotDone(
            f"{len(entries)} entries have no alias in local_domains. Check ldap.base, ldap.filter and "
            "ldap.address_attributes."
        )
    click.echo("".join(f"{line}\n" for line in lines).encode(), nl=False)  # the file is UTF-8 in any locale


class _Aliases:
    """The aliases that some entries have."""

    def __init__(self, settings: Settings, entries: Sequence[Entry]) -> None:
        self._settings = settings
        self._entries = sorted(entries, key=lambda entry: entry.dn)
        self._holders: dict[str, list[Entry]] = {}  # by local address
        for entry in self._entries:
            for address in self._local(entry):
                self._holders.setdefault(address, []).append(entry)
        self.warnings: list[str] = []

    def lines(self) -> Iterator[str]:
        """Yield a line for each alias. Fills ``warnings``."""
        for address, holders in sorted(self._holders.items()):
            if len(holders) > 1:
                names = _listed([shown(entry.dn, _DN_CHARACTERS) for entry in holders], "; ")
                self.warnings.append(f"{shown_address(address)} is left out: {len(holders)} entries have it: {names}")
        for entry in self._entries:
            addresses = self._local(entry)
            if len(addresses) < 2:
                continue
            problem = self._problem(entry)
            if problem:
                names = _listed([shown_address(address) for address in addresses], ", ")
                self.warnings.append(f"{shown(entry.dn, _DN_CHARACTERS)} is left out: {problem}: {names}")
                continue
            for alias in addresses:
                if alias != entry.primary and len(self._holders[alias]) == 1:
                    yield from self._line(alias, str(entry.primary))

    def _local(self, entry: Entry) -> list[str]:
        return [address for address in entry.addresses if self._settings.is_local(address)]

    def _problem(self, entry: Entry) -> str:
        """Return why the addresses of an entry have no person, "" if they have one."""
        if entry.primary is None:
            return "it has several addresses, and none is marked as the primary one"
        if not self._settings.is_local(entry.primary):
            return f"its primary address {shown_address(entry.primary)} is not in local_domains"
        if len(self._holders[entry.primary]) > 1:
            return f"another entry has its primary address {shown_address(entry.primary)} too"
        return ""

    def _line(self, alias: str, primary: str) -> Iterator[str]:
        """Yield the line of an alias if it is read as what it means."""
        line = f"{alias} {primary}"
        names = parse(line, delimiter=self._settings.people.recipient_delimiter, is_local=self._settings.is_local)
        if names.readers == {alias: (primary,)}:
            yield line
        else:  # `#sales@` begins a comment, for example, and `alice+x@` is read by alice@
            self.warnings.append(
                f"{shown_address(alias)} is left out: an alias file cannot have it with {shown_address(primary)}"
            )


def _listed(texts: Sequence[str], separator: str) -> str:
    return separator.join(texts[:_LISTED]) + f"{separator}…" * (len(texts) > _LISTED)


COMMANDS = (ldap_aliases,)
