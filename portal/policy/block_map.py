"""The map of block rules for Rspamd: its lines, and the file that Rspamd reads or Nginx serves.

Mail that Rspamd would deliver never reaches the portal, so Rspamd has to know the block rules (deploy/rspamd). Each
line has a key, made of a recipient and a sender, and a value:

    alice@example.org|promo@example.net block
    example.org|example.net binding
    *|192.0.2.0/24 block
    bob@example.org|partner@example.net allow

The recipient is an address without quotes, a domain of recipients, or ``*``. The sender is that of a rule
(`portal.model.rule`). A line ``recipient_delimiter| +`` names the characters at which Rspamd ends the local part of a
recipient, as `people.recipient_delimiter` does for the portal. A line ``alice+list@example.org| whole`` says that the
alias file names this address with its extension, so that its mail may be read by others than Alice. International
domains have a line for each of their spellings, since an envelope has either. An allow rule has a line only if it can
end a block of its own or of a wider scope; Rspamd allows nothing by it. The last line, for a recipient and a sender
that no mail has, names the content: `quarantine check` has Rspamd scan a message of this sender, and so learns whether
Rspamd uses the present map.

Keys come from what people typed and from hostile mail. Those that a map of Rspamd cannot represent are left out: the
parser ends a quoted key at the next quotation mark and does not unescape (src/libserver/maps/map_helpers.c).
"""

from __future__ import annotations

import filecmp
import logging
import os
import re
import socket
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from itertools import groupby
from pathlib import Path

from portal.model.errors import QuarantineError
from portal.model.message import domain, spellings
from portal.model.record import record
from portal.model.rule import BLOCKS_PER_SITE, SITE, Effect, SenderKind, address_keys, sender_kind, wider_senders
from portal.people import Directory
from portal.stores import Store, notes
from portal.stores.contracts import Rules
from portal.stores.records import ActiveRule

log = logging.getLogger("quarantine.rules")

FIRST_LINE = "# block map of the mail quarantine, version 1\n"
LINES = 200_000  # Rspamd's workers read 100,000 lines in 0.2 to 1.5 s, and their loop stands still
_SPARE = LINES - BLOCKS_PER_SITE  # for allow rules and aliases, so that no rule is left out for those of others
PROBED = "block-map@check.invalid"  # the recipient of the last line
MODE = 0o640  # it names who blocks whom; the group is that of the folder
BLOCK, BINDING, ALLOW = "block", "binding", "allow"
WHOLE = "whole"
_STRENGTH = (BINDING, BLOCK, ALLOW)  # which wins if two scopes have the same key

_PLAIN = re.compile(r"[a-z0-9*][a-z0-9*@._+=|:/-]*")
_REPRESENTABLE = re.compile(r'[^\s"\\\x00-\x1f\x7f](?:[^"\\\x00-\x1f\x7f]*[^\s"\\\x00-\x1f\x7f])?')
_UNUSUAL_SCOPE = re.compile(r"[^a-z0-9@._+=-]")
_DELIMITER = re.compile(r"[!$-.:-~]+")
_LAST_LINE = re.compile(rb"\n" + re.escape(PROBED).encode() + rb"\|(m[0-9a-f]{32}\.check\.invalid) block\n\Z")
_LAST_LINE_BYTES = 200
RETRY_SECONDS = 30.0
_PAUSE = 10  # times the duration of a write, so that it never takes more than a tenth of a processor
_ABANDONED_SECONDS = 3600.0  # age of an unfinished file whose process has died


class MapNotWritten(QuarantineError):
    """The file cannot be written. The previous one stays in use."""


@record(frozen=True, slots=True)
class Summary:
    """The content of a map in numbers."""

    lines: int
    left_out: int  # lines beyond `LINES`, and those whose key a map cannot represent
    expires_at: datetime | None  # when the next of its rules expires


@dataclass(slots=True)
class _Blocks:
    """The senders that one domain, or the site, blocks for all its recipients."""

    senders: set[str] = field(default_factory=set)
    free: set[str] = field(default_factory=set)  # those that are not binding
    _parents: frozenset[str] | None = None

    def matter_to(self, allowed: str) -> bool:
        """Return whether an allow rule of a narrower scope overrides one of them for some message."""
        if not self.free:
            return False
        if self.has_network or sender_kind(allowed) is SenderKind.NETWORK:
            return True
        if self._parents is None:
            self._parents = frozenset(key for sender in self.free for key in address_keys(sender)[1:])
        return allowed in self._parents or not self.free.isdisjoint(wider_senders(allowed))

    @property
    def has_network(self) -> bool:
        """Return whether one of them is a network."""
        return any(map(_is_network, self.free))


def compose(rules: Rules, people: Directory, now: datetime, write: Callable[[bytes], object]) -> Summary:
    """Write the lines of the map for the present rules and readers. Raises StoreUnavailable, and what ``write`` raises.

    The lines are the same for the same rules and readers. Memory: the rules of domains and the site, of recipients
    with more than one address, and 5,000 others.
    """
    return _Composer(people, write).compose(rules, now)


class _Composer:
    """One run of `compose`."""

    def __init__(self, people: Directory, write: Callable[[bytes], object]) -> None:
        self._people = people
        self._write = write
        self._hash = sha256()
        self._lines = 0
        self._spare_lines = 0
        self._left_out = 0
        self._expires: list[datetime] = []
        self._wide: dict[str, _Blocks] = {}
        # Recipients' rules that are written last: those of scopes whose key another scope may have as well, by address,
        # and those of aliases. If there is no room for all, no person loses the rules for their main address.
        self._shared: dict[str, list[list[ActiveRule]]] = {}

    def compose(self, rules: Rules, now: datetime) -> Summary:
        self._write(FIRST_LINE.encode())
        if _DELIMITER.fullmatch(self._people.delimiter):
            self._add_line(f"recipient_delimiter| {self._people.delimiter}")
            for address in self._people.with_extension():
                self._add(_unquoted(address), {"": WHOLE})
        self._add_wide(rules.active(now, recipients=False))
        for scope, found in groupby(self._noted(rules.active(now, recipients=True)), lambda rule: rule.scope):
            self._add_recipient(scope, list(found))
        for name in sorted(self._shared):
            self._add(name, self._values(name, [rule for rules in self._shared[name] for rule in rules]), spare=True)
        self._write(f"{PROBED}|{_probe(self._hash.hexdigest())} block\n".encode())
        return Summary(self._lines, self._left_out, min(self._expires, default=None))

    def _noted(self, rules: Iterable[ActiveRule]) -> Iterator[ActiveRule]:
        for rule in rules:
            if rule.expires_at is not None:
                self._expires.append(rule.expires_at)
            yield rule

    def _add_wide(self, rules: Iterable[ActiveRule]) -> None:
        allowed: list[ActiveRule] = []
        for rule in self._noted(rules):
            if rule.effect is Effect.ALLOW:
                allowed.append(rule)
                continue
            blocks = self._wide.setdefault(rule.scope, _Blocks())
            blocks.senders.add(rule.sender)
            if not rule.binding:
                blocks.free.add(rule.sender)
            self._add(_wide_name(rule.scope), {rule.sender: BINDING if rule.binding else BLOCK})
        for rule in allowed:
            own = self._wide.get(rule.scope, _Blocks()).senders
            wider = [] if rule.scope == SITE else [SITE]
            if _ends(rule.sender, own) or any(self._matters(rule.sender, scope) for scope in wider):
                self._add(_wide_name(rule.scope), {rule.sender: ALLOW})

    def _add_recipient(self, scope: str, rules: list[ActiveRule]) -> None:
        names = self._names(scope)
        if scope in names and not _UNUSUAL_SCOPE.search(scope):
            names.remove(scope)
            self._add(scope, self._values(scope, rules))
        for name in names:
            self._shared.setdefault(_unquoted(name), []).append(rules)

    def _names(self, scope: str) -> list[str]:
        """Return the addresses for which the rules of a recipient hold."""
        readers = self._people.readers(scope)
        if readers != (scope,):
            return [scope]  # a role mailbox, or an alias that was a person's address when the rule was made
        return list(dict.fromkeys([scope, *(self._people.reader(scope).alone or ())]))

    def _values(self, name: str, rules: Iterable[ActiveRule]) -> Mapping[str, str]:
        """Return the values of one recipient's lines, by sender."""
        values: dict[str, str] = {}
        for rule in rules:
            value = BLOCK if rule.effect is Effect.BLOCK else ALLOW
            values[rule.sender] = min(value, values.get(rule.sender, value), key=_STRENGTH.index)
        if ALLOW not in values.values():
            return values
        own = {sender for sender, value in values.items() if value != ALLOW}
        return {
            sender: value
            for sender, value in values.items()
            if value != ALLOW
            or _ends(sender, own)
            or any(self._matters(sender, scope) for scope in (f"@{domain(name)}", SITE))
        }

    def _matters(self, allowed: str, wider_scope: str) -> bool:
        blocks = self._wide.get(wider_scope)
        return blocks is not None and blocks.matter_to(allowed)

    def _add(self, name: str, values: Mapping[str, str], *, spare: bool = False) -> None:
        for sender, value in values.items():
            uses_spare = spare or value == ALLOW
            for key in _keys(name, sender):
                if not key or self._lines >= LINES or (uses_spare and self._spare_lines >= _SPARE):
                    self._left_out += 1
                    continue
                self._add_line(f"{key} {value}")
                self._lines += 1
                self._spare_lines += uses_spare

    def _add_line(self, text: str) -> None:
        line = f"{text}\n".encode("utf-8", "replace")
        self._hash.update(line)
        self._write(line)


def _ends(allowed: str, blocked: set[str]) -> bool:
    """Return whether an allow rule is more specific than one of the block rules of its scope, for some message."""
    if any(key in blocked for key in wider_senders(allowed)[1:]):
        return True
    return not _is_network(allowed) and any(map(_is_network, blocked))


def _is_network(sender: str) -> bool:
    return "/" in sender and sender_kind(sender) is SenderKind.NETWORK


def _probe(content_hash: str) -> str:
    return f"m{content_hash[:32]}.check.invalid"


def probe_of(path: Path) -> str:
    """Return the sender of a map's last line, "" if there is no whole map. Raises OSError."""
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _LAST_LINE_BYTES))
        found = _LAST_LINE.search(file.read())
    return found[1].decode() if found else ""


def _wide_name(scope: str) -> str:
    return scope.removeprefix("@")


def _unquoted(address: str) -> str:
    """Return an address as Rspamd names it, without the quotes of its local part (RFC 5321, 4.1.2)."""
    local, at, host = address.rpartition("@")
    if len(local) > 1 and local[0] == local[-1] == '"':
        local = re.sub(r"\\(.)", r"\1", local[1:-1])
    return f"{local}{at}{host}"


def _keys(name: str, sender: str) -> Iterator[str]:
    """Yield the keys of a recipient and a sender, as they are in the map. "": it cannot be represented."""
    if "|" in name:  # the key could be that of another recipient
        yield ""
        return
    key = f"{name}|{sender}"
    if _PLAIN.fullmatch(key) and "xn--" not in key:  # nearly all
        yield key
        return
    for scope in spellings(name):
        for each in spellings(_unquoted(sender)):
            key = f"{scope}|{each}"
            if not _REPRESENTABLE.fullmatch(key):
                yield ""
            else:
                yield key if _PLAIN.fullmatch(key) else f'"{key}"'


# ---- the file


class BlockMap:
    """The map's file on this host. One object, in the digest process."""

    def __init__(self, path: Path, store: Store, people: Directory) -> None:
        self._path = path
        self._store = store
        self._people = people
        self._made_from: object = None  # what the file was last made from, and its state then
        self._expires_at: datetime | None = None
        self._not_before = 0.0  # on the monotonic clock
        self._state: notes.MapState | None = None

    def refresh(self, now: datetime) -> bool:
        """Write the file if its rules, or the readers of addresses, have changed. Return whether it was written.

        If the file cannot be written, the previous one stays, and a call after `RETRY_SECONDS` tries again. Raises
        StoreUnavailable.
        """
        change, aliases = self._store.rules.last_change(), self._people.names().version
        is_same = self._made_from == (change, aliases, _state_of(self._path))
        if is_same and (self._expires_at is None or now < self._expires_at):
            return False
        started = time.monotonic()
        if started < self._not_before:
            return False
        try:
            summary, is_written = write_file(self._path, self._store.rules, self._people, now)
        except MapNotWritten as error:
            self._not_before = started + RETRY_SECONDS
            if self._state is None or not self._state.problem:
                log.error("block map not written, the previous one stays in use: %s", error)
                kept = self._state or notes.MapState(None, now, 0, 0, "")
                self._note(kept._replace(at=now, problem=str(error)))
            return False
        seconds = time.monotonic() - started
        self._not_before = started + seconds * _PAUSE
        self._made_from, self._expires_at = (change, aliases, _state_of(self._path)), summary.expires_at
        if is_written:
            log.info("block map written lines=%d left_out=%d seconds=%.2f", summary.lines, summary.left_out, seconds)
        if summary.left_out and (self._state is None or self._state.left_out != summary.left_out):
            log.error("block map is incomplete: left_out=%d", summary.left_out)
        self._note(notes.MapState(change, now, summary.lines, summary.left_out, ""))
        return is_written

    def _note(self, state: notes.MapState) -> None:
        if self._state is None or state._replace(at=self._state.at) != self._state:
            notes.block_map(socket.gethostname()).set(self._store, state)
            self._state = state


def write_file(path: Path, rules: Rules, people: Directory, now: datetime) -> tuple[Summary, bool]:
    """Write the map to a file if its content has changed. Return what is in it, and whether it was written.

    The change is atomic and durable. Raises StoreUnavailable, MapNotWritten.
    """
    try:
        _remove_abandoned(path)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        temporary = Path(name)
        try:
            with os.fdopen(descriptor, "wb", buffering=1 << 16) as file:
                summary = compose(rules, people, now, file.write)
                file.flush()
                if path.is_file() and filecmp.cmp(temporary, path, shallow=False):
                    return summary, False  # the validators that Nginx sends stay the same
                os.fchmod(descriptor, MODE)
                os.fsync(descriptor)
            _set_later_time(temporary, path)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(path.parent)
    except OSError as error:
        raise MapNotWritten(f"{path}: {error.strerror or error}") from error
    return summary, True


def _set_later_time(temporary: Path, path: Path) -> None:
    """Give a file a later second than the one it replaces: Nginx's ETag has only the second and the size."""
    with suppress(FileNotFoundError):
        written = path.stat().st_mtime
        if int(temporary.stat().st_mtime) <= int(written):
            os.utime(temporary, (int(written) + 1, int(written) + 1))


def _remove_abandoned(path: Path) -> None:
    """Remove the unfinished files of processes that have died."""
    for file in path.parent.glob(f".{path.name}.*"):
        with suppress(FileNotFoundError):
            if time.time() - file.stat().st_mtime > _ABANDONED_SECONDS:
                file.unlink()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _state_of(path: Path) -> tuple[int, int, int] | None:
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_mtime_ns, state.st_ino, state.st_size
