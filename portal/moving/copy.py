"""Moving everything from one store to another, whichever their kinds: `quarantine copy`.

There is no list of what is done yet: messages have the same id in both stores, so each run walks over all of them,
copies what is missing and brings up to date what differs. Killed and run again it goes on where it stopped; run once
more after the switch it carries what came meanwhile. Every body is read whole and compared with its SHA-256 before the
target gets it, and read back from there.

Not carried: sessions, sign-ins and openings, which live for hours, and mail of ours that waits to be sent, which the
old store's digest process sends within seconds.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import zip_longest
from tempfile import SpooledTemporaryFile
from typing import Any, BinaryIO, Literal, cast
from uuid import UUID

from portal.model.errors import BodyDamaged, BodyMissing, NotFound, StoreUnavailable, StoreUnusable
from portal.model.message import Body, Delivery, Event, random_token
from portal.stores import Store, notes, open_store
from portal.stores.records import Record

log = logging.getLogger("quarantine.moving")

_MESSAGES, _PEOPLE, _DIGESTS = 200, 500, 200  # at a time
_IDS = 10_000
_IN_MEMORY_BYTES = 1 << 20
_AT_ONCE = 4  # messages: disks make several durable in the time of one; three times as fast as one by one

Outcome = Literal["copied", "changed", "same", "missing", "damaged", "gone"]
Progress = Callable[[int, int, int], None]  # messages looked at, all messages, bytes of mail copied


@dataclass(slots=True)
class Copied:
    """What a run did."""

    messages: int = 0  # copied with their mail
    changed: int = 0  # were there, got newer states or history
    same: int = 0
    people: int = 0
    digests: int = 0
    size_bytes: int = 0  # of the mails copied
    missing: list[UUID] = field(default_factory=list)  # their mail is gone from the old store: not copied
    damaged: list[UUID] = field(default_factory=list)  # its SHA-256 differs: not copied
    mails_waiting: int = 0  # mail of ours in the old store's queue

    def count(self, id: UUID, outcome: Outcome, size_bytes: int) -> None:
        """Add what was done with one message."""
        match outcome:
            case "copied":
                self.messages += 1
                self.size_bytes += size_bytes
            case "changed":
                self.changed += 1
            case "same":
                self.same += 1
            case "missing":
                self.missing.append(id)
            case "damaged":
                self.damaged.append(id)
            case "gone":
                pass


@contextmanager
def opened(source_url: str, target_url: str) -> Iterator[tuple[Store, Store]]:
    """Both stores. The source must be there; the target is made where a file store is.

    Raises StoreUnavailable, StoreUnusable; the message says which of the two.
    """
    with ExitStack() as stack:
        stores = []
        for name, url, wishes in (
            ("FROM", source_url, {"must_exist": True}),
            ("TO", target_url, {"must_be_empty": True}),
        ):
            try:
                store = open_store(url, **wishes)
            except (StoreUnusable, ValueError) as error:
                to_init = "quarantine init" in str(error) and "is no quarantine store" not in str(error)
                how = f" with QUARANTINE_STORE__URL={name}" if to_init else ""
                raise StoreUnusable(f"{name}: {error}{how}") from error
            except StoreUnavailable as error:
                raise StoreUnavailable(f"{name}: {error}") from error
            stack.callback(store.close)
            stores.append(store)
        yield stores[0], stores[1]


def copy(source: Store, target: Store, progress: Progress) -> Copied:
    """Carry everything from ``source`` to ``target``, which holds nothing yet, or what earlier runs brought.

    Both may be in use meanwhile. Where a delivery was changed in both, the later change stays; what people wish is
    taken from the source until the digest process runs on the target. Raises StoreUnusable, with nothing changed, when
    they are the same store or the target holds other mail, and when the target does not give back what it took;
    StoreUnavailable when either stops working.
    """
    _check(source, target)
    in_use = _is_in_use(source, target)
    done = Copied()
    total = sum(len(ids) for ids in _pages(source, _IDS))
    seen = 0
    unread = notes.COPY_IN_PROGRESS.get(target)  # what an earlier run had not read back yet
    progress(0, total, 0)
    with ThreadPoolExecutor(_AT_ONCE) as workers:
        for ids in _pages(source, _MESSAGES):
            theirs, ours = source.messages.records(ids), target.messages.records(ids)
            if any(id not in ours for id in ids):
                begin, end = ids[0], ids[-1]
                if unread is not None and begin <= unread.last:
                    begin, end = min(begin, unread.first), max(end, unread.last)
                notes.COPY_IN_PROGRESS.set(target, notes.IdRange(begin, end))
            for id in ours:
                if unread is not None and unread.first <= id <= unread.last:
                    with suppress(NotFound):  # purged at this moment
                        _read_back(target, id)
            pairs = [(theirs.get(id), ours.get(id)) for id in ids]
            outcomes = workers.map(lambda pair: _bring(source, target, *pair), pairs)
            for id, outcome in zip(ids, outcomes, strict=True):
                done.count(id, outcome, theirs[id].message.size_bytes if id in theirs else 0)
                seen += 1
                progress(seen, max(seen, total), done.size_bytes)
    notes.COPY_IN_PROGRESS.set(target, None)
    _bring_digests(source, target, done)
    _bring_people(source, target, done, preferences=not in_use)
    key = notes.LINK_KEY.get(source)
    if key is not None and in_use:
        notes.LINK_KEY.set_default(target, key)
    elif key is not None:
        notes.LINK_KEY.set(target, key)
    done.mails_waiting = source.stats(datetime.now(UTC)).mails_waiting
    return done


def _check(source: Store, target: Store) -> None:
    probe = random_token()
    notes.COPY_PROBE.set(source, probe)
    if notes.COPY_PROBE.get(target) == probe:
        raise StoreUnusable("FROM and TO are the same store: nothing was copied; name another one as TO")
    not_kept = notes.COPY_NOT_KEPT.get(target)
    if not_kept is not None:
        raise _not_kept(not_kept)
    family = notes.FAMILY.set_default(source, random_token())
    if notes.FAMILY.get(target) == family:
        return  # a copy of it, or what it is a copy of
    if target.messages.ids(None, 1):
        raise StoreUnusable(
            "TO holds mail that did not come from FROM: nothing was copied, since two quarantines cannot be told apart "
            "once they are mixed; name an empty store as TO"
        )
    notes.FAMILY.set(target, family)


def _is_in_use(source: Store, target: Store) -> bool:
    """Whether the digest process runs on the target by now: people's wishes there are newer."""
    now = datetime.now(UTC)
    old, new = source.stats(now).heartbeat_at, target.stats(now).heartbeat_at
    return new is not None and (old is None or new > old)


def _pages(source: Store, size: int) -> Iterator[list[UUID]]:
    after: UUID | None = None
    while ids := list(source.messages.ids(after, size)):
        yield ids
        after = ids[-1]


def _bring(source: Store, target: Store, theirs: Record | None, ours: Record | None) -> Outcome:
    """Bring one message up to date. Raises StoreUnavailable."""
    if theirs is None:
        return "gone"  # purged since we saw its id
    if ours is not None:
        newer = _newer(theirs, ours)
        if newer is None:
            return "same"
        target.messages.import_record(newer, None)
        return "changed"
    id = theirs.message.id
    try:
        _bring_mail(source, target, theirs)
    except BodyMissing:
        log.warning("not copied, its mail is missing id=%s", id)
        return "missing"
    except BodyDamaged:
        log.warning("not copied, its mail is damaged id=%s", id)
        return "damaged"
    except NotFound:
        return "gone"  # purged at this moment
    return "copied"


def _bring_mail(source: Store, target: Store, record: Record) -> None:
    # Spooled, so that the target gets it only once it is known to be whole.
    with SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES) as spool:
        for piece in source.messages.body(record.message.id):
            spool.write(piece)
        target.messages.import_record(record, Body(cast(BinaryIO, spool), 0, record.message.size_bytes))
    _read_back(target, record.message.id)


def _read_back(target: Store, id: UUID) -> None:
    """Raises StoreUnusable when the target has not kept what it took, NotFound when it was purged at this moment."""
    try:
        for _ in target.messages.body(id):
            pass  # compares the SHA-256 itself
    except (BodyDamaged, BodyMissing) as error:
        if not target.messages.records([id]):
            raise NotFound("there is no such message") from error
        # Kept in mind: the message is there now, so the next run would take it for copied.
        notes.COPY_NOT_KEPT.set(target, id)
        raise _not_kept(id) from error


def _not_kept(id: UUID) -> StoreUnusable:
    return StoreUnusable(
        f"TO does not give back the mail {id} as it was written, so its disk is not to be trusted: keep FROM, and name "
        "another store as TO"
    )


def _newer(theirs: Record, ours: Record) -> Record | None:
    """Our record with those deliveries of theirs that were changed later; None: nothing to do."""
    deliveries, histories, changed = list(ours.deliveries), list(ours.histories), False
    others = {d.number: (d, events) for d, events in zip(theirs.deliveries, theirs.histories, strict=True)}
    for n, (mine, events) in enumerate(zip(ours.deliveries, ours.histories, strict=True)):
        other, other_events = others.get(mine.number, (mine, events))
        same = replace(other, message=mine.message) == mine and other_events == events
        if not same and _changed_at(other, other_events) >= _changed_at(mine, events):
            deliveries[n], histories[n], changed = other, other_events, True
    # Whom one store told they need not be told by the other.
    told = tuple(tuple(sorted({*mine, *other})) for mine, other in zip_longest(ours.told, theirs.told, fillvalue=()))
    if not changed and told == ours.told:
        return None
    return replace(ours, deliveries=tuple(deliveries), histories=tuple(histories), told=told)


def _changed_at(delivery: Delivery, events: tuple[Event, ...]) -> datetime:
    moments: list[Any] = [delivery.state_at, delivery.announced_at, *(event.at for event in events)]
    return cast(datetime, max(moment for moment in moments if moment is not None))


def _bring_digests(source: Store, target: Store, done: Copied) -> None:
    after: UUID | None = None
    while digests := source.digests.records(after, _DIGESTS):
        target.digests.import_records(digests)
        done.digests += len(digests)
        after = digests[-1].id


def _bring_people(source: Store, target: Store, done: Copied, *, preferences: bool) -> None:
    after = ""
    while people := source.recipients.records(after, _PEOPLE):
        target.recipients.import_records(people, preferences=preferences)
        done.people += len(people)
        after = people[-1].recipient
