"""Parser of a Postfix virtual alias table, as described in `portal.people`. Pure functions, no I/O."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import field
from hashlib import sha256

from portal.model.domains import lower_case, shown_address
from portal.model.message import domain, identity
from portal.model.record import record

DEPTH = 50  # lookups in a row; Postfix stops at 1,000
READERS = 1000  # of one address, as in Postfix (virtual_alias_expansion_limit)
ADDRESSES = 1000  # with one reader, without those in alias domains
DOMAINS = 50  # that are aliases of one domain
_PROBLEMS_SHOWN = 20
_TOKEN = re.compile(r'(?:"(?:[^"\\]|\\.)*"|[^\s,"])+')
_ATOM = re.compile(r"[\w!#$%&'*+/=?^`{|}~.-]+")


@record(frozen=True, slots=True)
class Names:
    """The content of the file."""

    readers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # each address of the file → people
    reads: Mapping[str, Sequence[str]] = field(default_factory=dict)  # person → addresses of the file except their own
    domains: Mapping[str, str] = field(default_factory=dict)  # alias domain → domain
    alias_domains: Mapping[str, Sequence[str]] = field(default_factory=dict)  # domain → its aliases, also indirect ones
    problems: tuple[str, ...] = ()  # the first of them
    problem_count: int = 0
    version: str = ""  # a hash of the text


class _Unresolvable(Exception):
    """An address that cannot be followed; the message is the reason."""


class _Parser:
    """Parser of one text."""

    def __init__(self, delimiter: str, origin: str, is_local: Callable[[str], bool]) -> None:
        self._delimiter = delimiter
        self._origin = origin
        self._is_local = is_local
        self._entries: dict[str, tuple[str, ...]] = {}
        self._bare: dict[str, tuple[str, ...]] = {}
        self._catch_all: dict[str, tuple[str, ...]] = {}
        self._domains: dict[str, str] = {}
        self._alias_counts: Counter[str] = Counter()  # by domain, since a new count for each line would take minutes
        self._resolved: dict[str, tuple[str, ...] | None] = {}  # None: leads into a loop
        self._problems: list[str] = []
        self._problem_count = 0

    def parse(self, text: str) -> Names:
        for number, line in _logical_lines(text):
            self._parse_line(number, line)
        for name, targets in self._bare.items():
            self._entries.setdefault(f"{name}@{self._origin}", targets)
        readers: dict[str, tuple[str, ...]] = {}
        reads: dict[str, list[str]] = {}
        for address in self._entries:
            people = self._people(address)
            full = [person for person in people if person != address and len(reads.get(person, ())) >= ADDRESSES]
            if full:
                self._add_problem(
                    f"{shown_address(address)}: {shown_address(full[0])} reads {ADDRESSES} addresses already"
                )
                people = (address,)
            readers[address] = people
            for person in people:
                if person != address:
                    reads.setdefault(person, []).append(address)
        version = sha256(text.encode()).hexdigest()[:16]
        aliases = self._alias_domains()
        return Names(readers, reads, self._domains, aliases, tuple(self._problems), self._problem_count, version)

    def _alias_domains(self) -> dict[str, list[str]]:
        """Return the aliases of each domain, also indirect ones. Removes domains that are in a loop."""
        aliases: dict[str, list[str]] = {}
        for host in list(self._domains):
            path, target = [host], self._domains[host]
            while target in self._domains and target not in path and len(path) < DEPTH:
                path.append(target)
                target = self._domains[target]
            if target in self._domains:
                self._add_problem(f"@{shown_address(host)}: is in a loop, or longer than {DEPTH} steps")
                del self._domains[host]
                continue
            for each in (*path[1:], target):
                aliases.setdefault(each, []).append(host)
        return aliases

    def _add_problem(self, text: str) -> None:
        self._problem_count += 1
        if len(self._problems) < _PROBLEMS_SHOWN:
            self._problems.append(text)

    def _parse_line(self, number: int, line: str) -> None:
        tokens = _TOKEN.findall(line) if '"' in line else line.replace(",", " ").split()
        pattern = tokens[0] if tokens else ""
        targets = tokens[1:]
        if pattern.startswith("/"):
            return self._add_problem(f"line {number}: regular expressions are not followed")
        if pattern.endswith(":") or ":include:" in line:
            return self._add_problem(f"line {number}: has the syntax of aliases(5), not of virtual(5)")
        if not pattern or not targets:
            return self._add_problem(f"line {number}: has no target address")
        if len(targets) == 1 and _is_other_spelling(pattern, targets[0]):
            return None
        if pattern.startswith("@"):
            return self._parse_domain(number, domain(pattern), targets)
        entries = self._entries if "@" in pattern else self._bare
        key = canonical(pattern)
        if entries is self._bare and not self._origin:
            return self._add_problem(f"line {number}: {pattern} has no domain: set people.origin to Postfix's myorigin")
        if key in entries:
            return self._add_problem(f"line {number}: is ignored, since an earlier line has {pattern} too")
        entries[key] = self._parse_targets(number, key.rpartition("@")[0] or key, targets)
        return None

    def _parse_domain(self, number: int, host: str, targets: Sequence[str]) -> None:
        if not host or host in self._catch_all or host in self._domains:
            return self._add_problem(f"line {number}: is ignored, since an earlier line has @{shown_address(host)} too")
        other = domain(targets[0]) if targets[0].startswith("@") else ""
        if other and len(targets) == 1 and other != host:
            if self._alias_counts[other] >= DOMAINS:
                return self._add_problem(f"line {number}: {shown_address(other)} has {DOMAINS} alias domains already")
            self._alias_counts[other] += 1
            self._domains[host] = other
            return None
        self._catch_all[host] = self._parse_targets(number, "", [target for target in targets if target[0] != "@"])
        return self._add_problem(
            f"line {number}: @{shown_address(host)} is a catch-all: each address that it covers is notified by itself"
        )

    def _parse_targets(self, number: int, local: str, targets: Sequence[str]) -> tuple[str, ...]:
        found = []
        for place, target in enumerate(targets):
            if target[0] in "|/:" or (target[0] == '"' and target[1:2] in "|/:"):
                self._add_problem(f"line {number}: {target[:40]} is not an address")
            elif target.startswith("@"):
                if place:
                    self._add_problem(f"line {number}: {target} is only allowed as the first address")
                else:
                    found.append(canonical(local + target))
            elif "@" in target:
                found.append(canonical(target))
            elif self._origin:
                found.append(canonical(f"{target}@{self._origin}"))
            else:
                self._add_problem(f"line {number}: {target} has no domain: set people.origin to Postfix's myorigin")
        return tuple(dict.fromkeys(found))

    def _people(self, address: str) -> tuple[str, ...]:
        """Return the readers of an address of the file."""
        try:
            resolved = self._resolve(address, ())
        except _Unresolvable as error:
            self._add_problem(f"{shown_address(address)}: {error}")
            return (address,)
        people = tuple(person for person in resolved if self._is_local(person))
        if len(people) < len(resolved) and people:
            self._add_problem(
                f"{shown_address(address)}: some of its targets are not in local_domains and are not notified"
            )
        return people or (address,)

    def _resolve(self, address: str, path: tuple[str, ...]) -> tuple[str, ...]:
        """Return the final targets of an address. Raises _Unresolvable.

        ``path``: the addresses that led to it.
        """
        if address in self._resolved:
            known = self._resolved[address]
            if known is None:
                raise _Unresolvable("is in a loop")
            return known
        targets = self._lookup(address)
        if targets is None:
            return (without_extension(address, self._delimiter),)
        if len(path) >= DEPTH:
            raise _Unresolvable(f"needs more than {DEPTH} steps")
        found: dict[str, None] = {}
        for target in targets:
            if target == address:
                found[target] = None  # its own mailbox; not looked up again
                continue
            if target in path:
                for each in (*path, address):
                    self._resolved[each] = None
                raise _Unresolvable("is in a loop")
            found.update(dict.fromkeys(self._resolve(target, (*path, address))))
            if len(found) > READERS:
                raise _Unresolvable(f"has more than {READERS} targets")
        self._resolved[address] = tuple(found)
        return tuple(found)

    def _lookup(self, address: str) -> tuple[str, ...] | None:
        base = without_extension(address, self._delimiter)
        found = self._entries.get(address) or self._entries.get(base)
        if found:
            return found
        local, _, host = base.rpartition("@")
        if host in self._domains:
            return (f"{local}@{self._domains[host]}",)
        return self._catch_all.get(host)


def parse(text: str, *, delimiter: str = "", origin: str = "", is_local: Callable[[str], bool]) -> Names:
    """Parse a virtual alias table. Never raises: ``problems`` lists the lines that cannot be followed."""
    return _Parser(delimiter, origin, is_local).parse(text)


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield each line joined with its continuations, and the number of its first line.

    Comments and empty lines are allowed between them (postconf(5)).
    """
    number, joined = 0, ""
    for n, line in enumerate(text.split("\n"), 1):
        if not line or line.isspace() or line.lstrip().startswith("#"):
            continue
        if line[0].isspace():
            if joined:
                joined += " " + line.strip()
            continue
        if joined:
            yield number, joined
        number, joined = n, line.strip()
    if joined:
        yield number, joined


def _is_other_spelling(pattern: str, target: str) -> bool:
    """Return whether both are the same address or domain, one with U-labels and one with A-labels.

    Up to version 0.1.1 these were two addresses, and such a line joined them.
    """
    if pattern.isascii() and target.isascii():
        return False
    hosts = [lower_case(text).rpartition("@")[2] for text in (pattern, target)]
    return hosts[0] != hosts[1] and canonical(pattern) == canonical(target)


def without_extension(address: str, delimiter: str) -> str:
    """Return the address without its extension, which begins at the first delimiter.

    The result keeps at least one character of the local part, as in Postfix's split_addr.c.
    """
    local, at, host = address.rpartition("@")
    if not delimiter or not at or local.startswith('"'):
        return address
    end = next((n for n, letter in enumerate(local) if letter in delimiter), 0)
    return f"{local[:end]}@{host}" if end else address


def canonical(address: str) -> str:
    """Return the form of an address for comparison: its identity, quoted only if necessary (RFC 5321, 4.1.2)."""
    address = identity(address)
    if '"' not in address and " " not in address and "," not in address:
        return address
    local, at, host = address.rpartition("@")
    if len(local) > 1 and local[0] == local[-1] == '"':
        local = re.sub(r"\\(.)", r"\1", local[1:-1])
    if not _ATOM.fullmatch(local):
        local = '"' + re.sub(r'(["\\])', r"\\\1", local) + '"'
    return f"{local}{at}{host}"


def spellings(address: str) -> tuple[str, ...]:
    """Return the spellings of an address in deliveries: Rspamd has been seen to remove quotes."""
    if not address.startswith('"'):
        return (address,)
    local, _, host = address.rpartition("@")
    return (address, re.sub(r"\\(.)", r"\1", local[1:-1]) + f"@{host}")
