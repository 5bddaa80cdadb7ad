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
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from portal.model.message import Reader, domain, identity
from portal.people.virtual import DEPTH, Names, canonical, parse, spellings, without_extension

log = logging.getLogger("quarantine.people")

FILE_BYTES = 64 << 20
_LOOK_EVERY_SECONDS = 1.0
_SETTLED_SECONDS = 2.0  # a file changed this short a time ago may be half written


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
        self._origin = domain(origin)
        self._is_local = is_local
        self._last_good = last_good
        self._lock = threading.Lock()
        self._names: Names | None = None
        self._text = ""
        self._seen: tuple[int, int, int] | None = None
        self._looked_at = float("-inf")
        self._problem = ""
        self.looked_at = ""  # the version that the digest process has drawn its conclusions from

    # ---- who reads what

    def readers(self, recipient: str) -> tuple[str, ...]:
        """The people who read what is held for a recipient, all identities; an ordinary address is its own reader."""
        if self.file is None:
            return (recipient,)
        names, address = self._current(), canonical(recipient)
        for _ in range(DEPTH):
            found = names.readers.get(address)
            if found is not None:
                return found
            local, _, host = address.rpartition("@")
            if host not in names.domains:
                break
            address = f"{local}@{names.domains[host]}"
        # Into a domain that nobody here reads no mail of ours shall vanish.
        return (address,) if address != canonical(recipient) and self._is_local(address) else (recipient,)

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

    def is_role(self, recipient: str) -> bool:
        """Whether several people read what is held for a recipient."""
        return len(self.readers(recipient)) > 1

    def is_notified(self, address: str) -> bool:
        """Whether somebody of ours is told of mail for an address."""
        return self._is_local(address) or any(map(self._is_local, self.readers(self.held_as(address))))

    def held_as(self, address: str) -> str:
        """The identity under which mail for an address is held: without its extension, unless the file names it so."""
        if not self.delimiter or (self.file is not None and canonical(address) in self._current().readers):
            return identity(address)
        return identity(without_extension(address, self.delimiter))

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
            yield from spellings(address)
            local, _, host = address.rpartition("@")
            for alias in names.alias_domains.get(host, ()):
                if f"{local}@{alias}" not in names.readers:
                    yield from spellings(f"{local}@{alias}")

    # ---- the file

    def problem(self) -> str:
        """Why the file cannot be used as it is now, in a sentence; "" when all is well."""
        if self.file is not None:
            self._current()
        return self._problem

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
        if trouble != self._problem:
            if trouble:
                log.error("alias file cannot be used: %s", trouble)
            else:
                log.info("alias file can be used again")
        self._problem = trouble


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
