"""The text of a Postfix virtual alias table, as `portal.people` describes it. Pure functions, no I/O."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256

from portal.model.domains import lower_case, shown_address
from portal.model.message import domain, identity

DEPTH = 50  # results that are looked up again; Postfix stops at 1,000
READERS = 1000  # of one address, as in Postfix (virtual_alias_expansion_limit)
ADDRESSES = 1000  # that one person reads, other domains' names for them not counted
DOMAINS = 50  # that are aliases of one domain
_PROBLEMS_SHOWN = 20
_TOKEN = re.compile(r'(?:"(?:[^"\\]|\\.)*"|[^\s,"])+')
_ATOM = re.compile(r"[\w!#$%&'*+/=?^`{|}~.-]+")


@dataclass(frozen=True, slots=True)
class Names:
    """What one reading of the file says."""

    readers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # each address of the file → people
    reads: Mapping[str, Sequence[str]] = field(default_factory=dict)  # person → addresses of the file but their own
    domains: Mapping[str, str] = field(default_factory=dict)  # alias domain → domain
    alias_domains: Mapping[str, Sequence[str]] = field(default_factory=dict)  # domain → its aliases, and theirs
    problems: tuple[str, ...] = ()
    problem_count: int = 0
    version: str = ""  # differs when the text does


class _Broken(Exception):
    """An address that cannot be followed, and why."""


class _Parser:
    """One reading."""

    def __init__(self, delimiter: str, origin: str, is_local: Callable[[str], bool]) -> None:
        self._delimiter = delimiter
        self._origin = origin
        self._is_local = is_local
        self._entries: dict[str, tuple[str, ...]] = {}
        self._bare: dict[str, tuple[str, ...]] = {}
        self._catch_all: dict[str, tuple[str, ...]] = {}
        self._domains: dict[str, str] = {}
        self._aliases: Counter[str] = Counter()  # how many each domain has: counting anew for each line takes minutes
        self._finals: dict[str, tuple[str, ...] | None] = {}  # None: leads into a loop
        self._problems: list[str] = []
        self._count = 0

    def parse(self, text: str) -> Names:
        for number, line in _logical_lines(text):
            self._line(number, line)
        for name, targets in self._bare.items():
            self._entries.setdefault(f"{name}@{self._origin}", targets)
        readers: dict[str, tuple[str, ...]] = {}
        reads: dict[str, list[str]] = {}
        for address in self._entries:
            people = self._people(address)
            full = [person for person in people if person != address and len(reads.get(person, ())) >= ADDRESSES]
            if full:
                self._problem(f"{shown_address(address)}: {shown_address(full[0])} reads {ADDRESSES} addresses already")
                people = (address,)
            readers[address] = people
            for person in people:
                if person != address:
                    reads.setdefault(person, []).append(address)
        version = sha256(text.encode()).hexdigest()[:16]
        aliases = self._alias_domains()
        return Names(readers, reads, self._domains, aliases, tuple(self._problems), self._count, version)

    def _alias_domains(self) -> dict[str, list[str]]:
        """Each domain's aliases, those of aliases too; takes out what goes round in a circle."""
        aliases: dict[str, list[str]] = {}
        for host in list(self._domains):
            on_the_way, target = [host], self._domains[host]
            while target in self._domains and target not in on_the_way and len(on_the_way) < DEPTH:
                on_the_way.append(target)
                target = self._domains[target]
            if target in self._domains:
                self._problem(f"@{shown_address(host)}: goes round in a circle")
                del self._domains[host]
                continue
            for each in (*on_the_way[1:], target):
                aliases.setdefault(each, []).append(host)
        return aliases

    def _problem(self, said: str) -> None:
        self._count += 1
        if len(self._problems) < _PROBLEMS_SHOWN:
            self._problems.append(said)

    def _line(self, number: int, line: str) -> None:
        tokens = _TOKEN.findall(line) if '"' in line else line.replace(",", " ").split()
        pattern = tokens[0] if tokens else ""
        targets = tokens[1:]
        if line.startswith("/") or pattern.startswith("/"):
            return self._problem(f"line {number}: regular expressions are not followed")
        if pattern.endswith(":") or ":include:" in line:
            return self._problem(f"line {number}: is of an aliases(5) file, not of a virtual(5) table")
        if not pattern or not targets:
            return self._problem(f"line {number}: names no address to go to")
        if len(targets) == 1 and _is_other_spelling(pattern, targets[0]):
            return None
        if pattern.startswith("@"):
            return self._domain(number, domain(pattern), targets)
        where = self._entries if "@" in pattern else self._bare
        key = canonical(pattern)
        if where is self._bare and not self._origin:
            return self._problem(f"line {number}: {pattern} has no domain: set people.origin to Postfix's myorigin")
        if key in where:
            return self._problem(f"line {number}: {pattern} stands in an earlier line, which counts")
        where[key] = self._targets(number, key.rpartition("@")[0] or key, targets)
        return None

    def _domain(self, number: int, host: str, targets: Sequence[str]) -> None:
        if not host or host in self._catch_all or host in self._domains:
            return self._problem(f"line {number}: @{shown_address(host)} stands in an earlier line, which counts")
        other = domain(targets[0]) if targets[0].startswith("@") else ""
        if other and len(targets) == 1 and other != host:
            if self._aliases[other] >= DOMAINS:
                return self._problem(f"line {number}: {shown_address(other)} has {DOMAINS} alias domains already")
            self._aliases[other] += 1
            self._domains[host] = other
            return None
        self._catch_all[host] = self._targets(number, "", [target for target in targets if target[0] != "@"])
        return self._problem(
            f"line {number}: @{shown_address(host)} is for whatever is sent there: each such address is told by itself"
        )

    def _targets(self, number: int, local: str, targets: Sequence[str]) -> tuple[str, ...]:
        found = []
        for place, target in enumerate(targets):
            if target[0] in "|/:" or (target[0] == '"' and target[1:2] in "|/:"):
                self._problem(f"line {number}: {target[:40]} is no address")
            elif target.startswith("@"):
                if place:
                    self._problem(f"line {number}: {target} counts only as the first address")
                else:
                    found.append(canonical(local + target))
            elif "@" in target:
                found.append(canonical(target))
            elif self._origin:
                found.append(canonical(f"{target}@{self._origin}"))
            else:
                self._problem(f"line {number}: {target} has no domain: set people.origin to Postfix's myorigin")
        return tuple(dict.fromkeys(found))

    def _people(self, address: str) -> tuple[str, ...]:
        """Who reads an address of the file."""
        try:
            finals = self._followed(address, ())
        except _Broken as error:
            self._problem(f"{shown_address(address)}: {error}")
            return (address,)
        people = tuple(final for final in finals if self._is_local(final))
        if len(people) < len(finals) and people:
            self._problem(
                f"{shown_address(address)}: some of those it goes to are not in local_domains: they are not told"
            )
        return people or (address,)

    def _followed(self, address: str, path: tuple[str, ...]) -> tuple[str, ...]:
        """Where mail for an address ends. Raises _Broken."""
        if address in self._finals:
            known = self._finals[address]
            if known is None:
                raise _Broken("goes round in a circle")
            return known
        targets = self._lookup(address)
        if targets is None:
            return (without_extension(address, self._delimiter),)
        if len(path) >= DEPTH:
            raise _Broken(f"goes on for more than {DEPTH} steps")
        found: dict[str, None] = {}
        for target in targets:
            if target == address:
                found[target] = None  # its own mailbox, and it is not looked up again
                continue
            if target in path:
                for each in (*path, address):
                    self._finals[each] = None
                raise _Broken("goes round in a circle")
            found.update(dict.fromkeys(self._followed(target, (*path, address))))
            if len(found) > READERS:
                raise _Broken(f"goes to more than {READERS} addresses")
        self._finals[address] = tuple(found)
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
    """What a virtual alias table says. Never fails: lines that cannot be followed are told in ``problems``."""
    return _Parser(delimiter, origin, is_local).parse(text)


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines with their continuations, and the number of the first (postconf(5): comments and empty lines may stand
    in between)."""
    number, kept = 0, ""
    for n, line in enumerate(text.split("\n"), 1):
        if not line or line.isspace() or line.lstrip().startswith("#"):
            continue
        if line[0].isspace():
            if kept:
                kept += " " + line.strip()
            continue
        if kept:
            yield number, kept
        number, kept = n, line.strip()
    if kept:
        yield number, kept


def _is_other_spelling(pattern: str, target: str) -> bool:
    """Return whether both are one address or domain, with the domain spelled in both ways: up to version 0.1.1 these
    were two, and such a line joined them."""
    if pattern.isascii() and target.isascii():
        return False
    hosts = [lower_case(text).rpartition("@")[2] for text in (pattern, target)]
    return hosts[0] != hosts[1] and canonical(pattern) == canonical(target)


def without_extension(address: str, delimiter: str) -> str:
    """The address without its extension (Postfix's split_addr.c: from the first delimiter on, never all of it)."""
    local, at, host = address.rpartition("@")
    if not delimiter or not at or local.startswith('"'):
        return address
    end = next((n for n, letter in enumerate(local) if letter in delimiter), 0)
    return f"{local[:end]}@{host}" if end else address


def canonical(address: str) -> str:
    """An address as it is compared: its identity, in quotes only where it needs some (RFC 5321, 4.1.2)."""
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
    """How deliveries may spell it: Rspamd has been seen to take quotes away."""
    if not address.startswith('"'):
        return (address,)
    local, _, host = address.rpartition("@")
    return (address, re.sub(r"\\(.)", r"\1", local[1:-1]) + f"@{host}")
