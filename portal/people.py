"""Whose mail is it: which people read what was held for an address. The only room that knows the alias file.

Deliveries keep the address their envelope had; who reads it is looked up whenever that is asked, so a changed file
counts at once, for mail that is held already too. An address with one reader is an alias of that person, one with
several is a role mailbox. What the file does not name is read by its owner alone, as without a file.

The file is a Postfix virtual alias table in its text form (https://www.postfix.org/virtual.5.html): a pattern and
addresses on a line; lines that begin with a blank go on with the one before; ``#`` begins a comment line; an address is
looked up whole, then without its extension, then as a name in `origin`, then by ``@domain``; results are looked up
again until nothing is found or an address yields itself. ``@old.example @example.org`` makes one domain an alias of
another. What is not followed is told in `problems`: those addresses are read by their owners, as without the line.

A file that cannot be read, or is plainly not whole, changes nothing: the last good one stays, also over a restart
(``last_good``), and `trouble` says so.
"""

from __future__ import annotations

import logging
import os
import re
import stat
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from portal.message import Reader, identity

log = logging.getLogger("quarantine.people")

FILE_BYTES = 64 << 20
DEPTH = 50  # results that are looked up again; Postfix stops at 1,000
READERS = 1000  # of one address, as in Postfix (virtual_alias_expansion_limit)
ADDRESSES = 1000  # that one person reads, other domains' names for them not counted
DOMAINS = 50  # that are aliases of one domain
_LOOK_EVERY_SECONDS = 1.0
_SETTLED_SECONDS = 2.0  # a file changed this short a time ago may be half written
_PROBLEMS_TOLD = 20
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


class Directory:
    """Who reads what. One for each process, used by many threads."""

    def __init__(
        self,
        file: Path | None,
        *,
        delimiter: str = "",
        origin: str = "",
        is_local: Callable[[str], bool],
        last_good: Callable[[], str | None] = lambda: None,
    ) -> None:
        """``delimiter``: Postfix's recipient_delimiter; ``origin``: its myorigin, "" when not known; ``is_local``: who
        may be told at all; ``last_good``: the text of a file that could be read earlier."""
        self.file = file
        self.delimiter = delimiter
        self._origin = origin.lower()
        self._is_local = is_local
        self._last_good = last_good
        self._lock = threading.Lock()
        self._names: Names | None = None
        self._text = ""
        self._seen: tuple[int, int, int] | None = None
        self._looked_at = float("-inf")
        self._trouble = ""
        self.looked_at = ""  # the version that the digest process has drawn its conclusions from

    # ---- who reads what

    def readers(self, recipient: str) -> tuple[str, ...]:
        """The people who read what is held for a recipient, all identities; an ordinary address is its own reader."""
        if self.file is None:
            return (recipient,)
        names, address = self._current(), _canonical(recipient)
        for _ in range(DEPTH):
            found = names.readers.get(address)
            if found is not None:
                return found
            local, _, host = address.rpartition("@")
            if host not in names.domains:
                break
            address = f"{local}@{names.domains[host]}"
        # Into a domain that nobody here reads no mail of ours shall vanish.
        return (address,) if address != _canonical(recipient) and self._is_local(address) else (recipient,)

    def is_person(self, recipient: str) -> bool:
        """Whether somebody can be told and sign in under this identity: they read what is held for it."""
        return recipient in self.readers(recipient)

    def person(self, address: str) -> str | None:
        """Whom an address means when it signs in; None for a role mailbox, which is nobody."""
        recipient = self.held_as(address)
        readers = self.readers(recipient)
        if len(readers) == 1:
            return readers[0]
        return recipient if recipient in readers else None

    def reader(self, person: str) -> Reader:
        """All that a person reads."""
        if self.file is None:
            return Reader(person)
        names = self._current()
        alone, shared = [], {}
        for address in self._addresses(names, person):
            readers = self.readers(address)
            if person not in readers:
                continue  # an alias domain of an alias domain in which a line gives this name to somebody else
            if len(readers) > 1:
                shared[address] = readers
            else:
                alone.append(address)
        return Reader(person, tuple(alone), shared)

    def may_read(self, person: str, recipient: str) -> bool:
        """Whether a person reads what is held for a recipient, now."""
        return person in self.readers(recipient)

    def is_role(self, recipient: str) -> bool:
        """Whether several people read what is held for a recipient."""
        return len(self.readers(recipient)) > 1

    def is_told(self, address: str) -> bool:
        """Whether somebody of ours is told of mail for an address."""
        return self._is_local(address) or any(map(self._is_local, self.readers(self.held_as(address))))

    def held_as(self, address: str) -> str:
        """The identity under which mail for an address is held: without its extension, unless the file names it so."""
        if not self.delimiter or (self.file is not None and _canonical(address) in self._current().readers):
            return identity(address)
        return identity(_without_extension(address, self.delimiter))

    def elsewhere(self) -> list[str]:
        """Addresses and domains of the file that are read by people of ours without being local themselves."""
        if self.file is None:
            return []
        names = self._current()
        found = [host for host, target in names.domains.items() if not self._is_local(f"x@{host}")]
        return found + [a for a in names.readers if not self._is_local(a) and not self.is_person(a)]

    def copied(self) -> list[str]:
        """Mailboxes of people whose mail others get as well."""
        if self.file is None:
            return []
        return [address for address, who in self._current().readers.items() if len(who) > 1 and address in who]

    def _addresses(self, names: Names, person: str) -> Iterator[str]:
        addresses = [*([person] if self.is_person(person) else []), *names.reads.get(person, ())]
        for address in addresses:
            yield from _spellings(address)
            local, _, host = address.rpartition("@")
            for alias in names.alias_domains.get(host, ()):
                if f"{local}@{alias}" not in names.readers:
                    yield from _spellings(f"{local}@{alias}")

    # ---- the file

    def trouble(self) -> str:
        """Why the file cannot be used as it is now, in a sentence; "" when all is well."""
        if self.file is not None:
            self._current()
        return self._trouble

    def names(self) -> Names:
        """What the file says now, for `quarantine check`."""
        return Names() if self.file is None else self._current()

    def text(self) -> str:
        """The text that is in use, to be kept as ``last_good``."""
        return self._text

    def _current(self) -> Names:
        names = self._names
        if names is not None and time.monotonic() - self._looked_at < _LOOK_EVERY_SECONDS:
            return names
        # Reading a large file takes a second or two: meanwhile the others go on with what it said before.
        if not self._lock.acquire(blocking=names is None):
            return names or Names()
        try:
            if self._names is None or time.monotonic() - self._looked_at >= _LOOK_EVERY_SECONDS:
                self._look()
                self._looked_at = time.monotonic()
            return self._names or Names()
        finally:
            self._lock.release()

    def _look(self) -> None:
        """Read the file if it is another one than before."""
        assert self.file is not None  # noqa: S101 - asked by those who have one
        now = None
        try:
            seen = self.file.stat()
            now = (seen.st_mtime_ns, seen.st_ino, seen.st_size)
            if now == self._seen:
                return
            if self._names is not None and 0 <= time.time() - seen.st_mtime < _SETTLED_SECONDS:
                return
            text = _read(self.file, seen)
        except (OSError, ValueError) as error:
            said = (error.strerror if isinstance(error, OSError) else None) or str(error)
            # What is in it does not get better by being read again; whether it can be read may.
            self._seen = now if isinstance(error, ValueError) else None
            if self._names is None:
                kept = self._last_good()
                self._take(kept or "")
                said += "; using what it said when it could last be read" if kept else "; it never could be read"
            else:
                said += "; what it said before stays in use"
            self._tell(f"{self.file}: {said}")
            return
        self._seen = now
        started = time.monotonic()
        self._take(text)
        self._tell("")
        names = self._names or Names()
        log.info(
            "alias file read addresses=%d domains=%d problems=%d seconds=%.2f",
            len(names.readers), len(names.domains), names.problem_count, time.monotonic() - started,
        )  # fmt: skip

    def _take(self, text: str) -> None:
        self._names = parse(text, delimiter=self.delimiter, origin=self._origin, is_local=self._is_local)
        self._text = text

    def _tell(self, trouble: str) -> None:
        if trouble != self._trouble:
            if trouble:
                log.error("alias file cannot be used: %s", trouble)
            else:
                log.info("alias file can be used again")
        self._trouble = trouble


def _read(path: Path, seen: os.stat_result) -> str:
    """The file's text. Raises OSError; ValueError when it is plainly no alias file, or not the whole of it."""
    if not stat.S_ISREG(seen.st_mode):
        raise ValueError("is not a file")  # opening a pipe would wait for somebody who writes
    with path.open("rb") as file:
        data = file.read(FILE_BYTES + 1)
    if len(data) > FILE_BYTES:
        raise ValueError(f"is larger than {FILE_BYTES >> 20} MiB")
    if not data:
        raise ValueError("is empty: write a comment into it if nobody has an alias")
    if b"\0" in data:
        raise ValueError("is not text: name the file that postmap is given, not the one it makes")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError("is not UTF-8") from error


# ---- what the text says


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
                self._problem(f"{address}: {full[0]} reads {ADDRESSES} addresses already")
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
                self._problem(f"@{host}: goes round in a circle")
                del self._domains[host]
                continue
            for each in (*on_the_way[1:], target):
                aliases.setdefault(each, []).append(host)
        return aliases

    def _problem(self, said: str) -> None:
        self._count += 1
        if len(self._problems) < _PROBLEMS_TOLD:
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
        if pattern.startswith("@"):
            return self._domain(number, pattern[1:].lower(), targets)
        where = self._entries if "@" in pattern else self._bare
        key = _canonical(pattern)
        if where is self._bare and not self._origin:
            return self._problem(f"line {number}: {pattern} has no domain: set people.origin to Postfix's myorigin")
        if key in where:
            return self._problem(f"line {number}: {pattern} stands in an earlier line, which counts")
        where[key] = self._targets(number, key.rpartition("@")[0] or key, targets)
        return None

    def _domain(self, number: int, host: str, targets: Sequence[str]) -> None:
        if not host or host in self._catch_all or host in self._domains:
            return self._problem(f"line {number}: @{host} stands in an earlier line, which counts")
        other = targets[0][1:].lower() if targets[0].startswith("@") else ""
        if other and len(targets) == 1 and other != host:
            if self._aliases[other] >= DOMAINS:
                return self._problem(f"line {number}: {other} has {DOMAINS} alias domains already")
            self._aliases[other] += 1
            self._domains[host] = other
            return None
        self._catch_all[host] = self._targets(number, "", [target for target in targets if target[0] != "@"])
        return self._problem(
            f"line {number}: @{host} is for whatever is sent there: each such address is told by itself"
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
                    found.append(_canonical(local + target))
            elif "@" in target:
                found.append(_canonical(target))
            elif self._origin:
                found.append(_canonical(f"{target}@{self._origin}"))
            else:
                self._problem(f"line {number}: {target} has no domain: set people.origin to Postfix's myorigin")
        return tuple(dict.fromkeys(found))

    def _people(self, address: str) -> tuple[str, ...]:
        """Who reads an address of the file."""
        try:
            finals = self._followed(address, ())
        except _Broken as error:
            self._problem(f"{address}: {error}")
            return (address,)
        people = tuple(final for final in finals if self._is_local(final))
        if len(people) < len(finals) and people:
            self._problem(f"{address}: some of those it goes to are not in local_domains: they are not told")
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
            return (_without_extension(address, self._delimiter),)
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
        base = _without_extension(address, self._delimiter)
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


def _without_extension(address: str, delimiter: str) -> str:
    """The address without its extension (Postfix's split_addr.c: from the first delimiter on, never all of it)."""
    local, at, host = address.rpartition("@")
    if not delimiter or not at or local.startswith('"'):
        return address
    end = next((n for n, letter in enumerate(local) if letter in delimiter), 0)
    return f"{local[:end]}@{host}" if end else address


def _canonical(address: str) -> str:
    """An address as it is compared: lower case, in quotes only where it needs some (RFC 5321, 4.1.2)."""
    address = identity(address)
    if '"' not in address and " " not in address and "," not in address:
        return address
    local, at, host = address.rpartition("@")
    if len(local) > 1 and local[0] == local[-1] == '"':
        local = re.sub(r"\\(.)", r"\1", local[1:-1])
    if not _ATOM.fullmatch(local):
        local = '"' + re.sub(r'(["\\])', r"\\\1", local) + '"'
    return f"{local}{at}{host}"


def _spellings(address: str) -> tuple[str, ...]:
    """How deliveries may spell it: Rspamd has been seen to take quotes away."""
    if not address.startswith('"'):
        return (address,)
    local, _, host = address.rpartition("@")
    return (address, re.sub(r"\\(.)", r"\1", local[1:-1]) + f"@{host}")
