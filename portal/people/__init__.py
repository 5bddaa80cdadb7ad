"""Aliases and role mailboxes: the people who read the messages held for an address. The only user of the alias file.

Deliveries keep the address of their envelope. Their readers are looked up at each use, so a changed file takes effect
at once, also for messages that are held already. An address with one reader is an alias of that person; one with
several readers is a role mailbox. An address that is not in the file is read by its owner alone, as without a file.

The file is the text of a Postfix virtual alias table (https://www.postfix.org/virtual.5.html). Each line has a pattern
and addresses. A line that begins with a space continues the previous one; ``#`` begins a comment line. An address is
looked up as it is, then without its extension, then as a name in `origin`, then by ``@domain``. Results are looked up
again until nothing is found or an address yields itself. ``@old.example @example.org`` makes one domain an alias of
another. `Names.problems` lists the lines that are not followed: their addresses are read by their owners, as without
the line.

A file that is unreadable or obviously incomplete changes nothing: the last good one stays in use, also after a restart
(``last_good``), and `Directory.problem` reports it.
"""

from __future__ import annotations

import logging
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from portal.model.message import Filter, Reader, domain, identity
from portal.people.virtual import DEPTH, Names, canonical, parse, spellings, without_extension

log = logging.getLogger("quarantine.people")

FILE_BYTES = 64 << 20
_CHECK_EVERY_SECONDS = 1.0
_SETTLED_SECONDS = 2.0  # a file that changed more recently may be half written


class Directory:
    """The readers of each address. One object per process, used by many threads."""

    def __init__(
        self,
        file: Path | None,
        *,
        delimiter: str = "",
        origin: str = "",
        is_local: Callable[[str], bool],
        last_good: Callable[[], str | None] = lambda: None,
    ) -> None:
        """Prepare the lookup; the file is read at first use.

        ``delimiter``: Postfix's recipient_delimiter; ``origin``: its myorigin, "" if unknown; ``is_local``: may this
        address be notified?; ``last_good``: the text of the last file that could be read.
        """
        self.file = file
        self.delimiter = delimiter
        self._origin = domain(origin)
        self._is_local = is_local
        self._last_good = last_good
        self._lock = threading.Lock()
        self._names: Names | None = None
        self._text = ""
        self._file_state: tuple[int, int, int] | None = None  # time, inode and size of the file in use
        self._checked_at = float("-inf")
        self._problem = ""

    # ---- readers

    def readers(self, recipient: str) -> tuple[str, ...]:
        """Return the people who read the messages held for a recipient, as identities.

        An address that is not in the file is its own reader.
        """
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
        # Keep the recipient as the reader if the alias leads to a non-local domain: nobody there can be notified.
        return (address,) if address != canonical(recipient) and self._is_local(address) else (recipient,)

    def is_person(self, recipient: str) -> bool:
        """Return whether a person can be notified and sign in as this identity: it reads its own messages."""
        return recipient in self.readers(recipient)

    def person(self, address: str) -> str | None:
        """Return the person who signs in with an address, or None for a role mailbox, which is not a person."""
        recipient = self.held_as(address)
        readers = self.readers(recipient)
        if len(readers) == 1:
            return readers[0]
        return recipient if recipient in readers else None

    def reader(self, person: str) -> Reader:
        """Return a person with all identities whose messages they read."""
        if self.file is None:
            return Reader(person)
        names = self._current()
        alone, shared = [], {}
        for address in self._addresses(names, person):
            readers = self.readers(address)
            if person not in readers:
                continue  # shadowed: an intermediate alias domain maps this name to another person
            if len(readers) > 1:
                shared[address] = readers
            else:
                alone.append(address)
        return Reader(person, tuple(alone), shared)

    def is_role(self, recipient: str) -> bool:
        """Return whether several people read the messages held for a recipient."""
        return len(self.readers(recipient)) > 1

    def is_notified(self, address: str) -> bool:
        """Return whether a local person is notified of messages for an address."""
        return self._is_local(address) or any(map(self._is_local, self.readers(self.held_as(address))))

    def held_as(self, address: str) -> str:
        """Return the identity for which messages to an address are held.

        It has no address extension, unless the file has a line for the address with its extension.
        """
        if not self.delimiter or (self.file is not None and canonical(address) in self._current().readers):
            return identity(address)
        return identity(without_extension(address, self.delimiter))

    def searched(self, wanted: Filter) -> Filter:
        """Return the search also for the identity for which messages to its recipient are held."""
        held_as = wanted.recipient if wanted.recipient is None else self.held_as(wanted.recipient)
        return wanted if held_as in (wanted.recipient, None) else replace(wanted, also=(held_as,))

    def with_extension(self) -> list[str]:
        """Return the addresses of the file that have an address extension, in order."""
        if self.file is None:
            return []
        names = self._current().readers
        return sorted(each for each in names if without_extension(each, self.delimiter) != each)

    def non_local_names(self) -> list[str]:
        """Return the addresses and domains of the file that are not local but have local readers."""
        if self.file is None:
            return []
        names = self._current()
        found = [host for host, target in names.domains.items() if not self._is_local(f"x@{host}")]
        return found + [a for a in names.readers if not self._is_local(a) and not self.is_person(a)]

    def shared_mailboxes(self) -> list[str]:
        """Return the mailboxes of people whose messages have other readers as well."""
        if self.file is None:
            return []
        return [address for address, who in self._current().readers.items() if len(who) > 1 and address in who]

    def _addresses(self, names: Names, person: str) -> Iterator[str]:
        for address in (person, *names.reads.get(person, ())):
            yield from spellings(address)
            local, _, host = address.rpartition("@")
            for alias in names.alias_domains.get(host, ()):
                if f"{local}@{alias}" not in names.readers:
                    yield from spellings(f"{local}@{alias}")

    # ---- the file

    def problem(self) -> str:
        """Return the reason why the current file cannot be used, or "" if it can."""
        if self.file is not None:
            self._current()
        return self._problem

    def names(self) -> Names:
        """Return the content of the file, for `quarantine check`."""
        return Names() if self.file is None else self._current()

    def text(self) -> str:
        """Return the text in use, to be stored as ``last_good``."""
        return self._text

    def _current(self) -> Names:
        names = self._names
        if names is not None and time.monotonic() - self._checked_at < _CHECK_EVERY_SECONDS:
            return names
        # Reading a large file takes a second or two. In the meantime other threads use the previous content.
        if not self._lock.acquire(blocking=names is None):
            return names or Names()
        try:
            if self._names is None or time.monotonic() - self._checked_at >= _CHECK_EVERY_SECONDS:
                self._reload()
                self._checked_at = time.monotonic()
            return self._names or Names()
        finally:
            self._lock.release()

    def _reload(self) -> None:
        """Read the file if it has changed."""
        assert self.file is not None  # noqa: S101 - callers have checked it
        state = None
        try:
            status = self.file.stat()
            state = (status.st_mtime_ns, status.st_ino, status.st_size)
            if state == self._file_state:
                return
            if self._names is not None and 0 <= time.time() - status.st_mtime < _SETTLED_SECONDS:
                return
            text = _read(self.file, status)
        except (OSError, ValueError) as error:
            problem = (error.strerror if isinstance(error, OSError) else None) or str(error)
            # Bad content stays bad until the file changes; a read error (OSError) may be over at the next try.
            self._file_state = state if isinstance(error, ValueError) else None
            if self._names is None:
                last_good = self._last_good()
                self._use(last_good or "")
                problem += "; using its last readable content" if last_good else "; no earlier content is known"
            else:
                problem += "; its previous content stays in use"
            self._set_problem(f"{self.file}: {problem}")
            return
        self._file_state = state
        started = time.monotonic()
        self._use(text)
        self._set_problem("")
        names = self._names or Names()
        log.info(
            "alias file read addresses=%d domains=%d problems=%d seconds=%.2f",
            len(names.readers), len(names.domains), names.problem_count, time.monotonic() - started,
        )  # fmt: skip

    def _use(self, text: str) -> None:
        self._names = parse(text, delimiter=self.delimiter, origin=self._origin, is_local=self._is_local)
        self._text = text

    def _set_problem(self, problem: str) -> None:
        if problem != self._problem:
            if problem:
                log.error("alias file cannot be used: %s", problem)
            else:
                log.info("alias file can be used again")
        self._problem = problem


def _read(path: Path, status: os.stat_result) -> str:
    """Return the file's text. Raises OSError, or ValueError if it is obviously not an alias file or incomplete."""
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("is not a regular file")  # opening a pipe would wait for a writer
    with path.open("rb") as file:
        data = file.read(FILE_BYTES + 1)
    if len(data) > FILE_BYTES:
        raise ValueError(f"is larger than {FILE_BYTES >> 20} MiB")
    if not data:
        raise ValueError("is empty: write a comment into it if there are no aliases")
    if b"\0" in data:
        raise ValueError("is not text: use the input file of postmap, not its output")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError("is not UTF-8") from error
