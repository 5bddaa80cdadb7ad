"""Copying of all data from one store to another, of the same or another kind: `quarantine copy`.

There is no list of finished work: messages have the same id in both stores, so each run checks all of them, copies the
missing ones and updates the ones that differ. A run after an interrupted one continues where that stopped, and a run
after the switch copies what was held in between. Each body is read completely and compared with its SHA-256 before it
is written to the target, and then read back from there.

Not copied: sessions, sign-ins and link openings, which are valid for hours, and the portal's own queued messages, which
the old store's digest process sends within seconds.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from tempfile import SpooledTemporaryFile
from typing import Any, BinaryIO, Literal, NamedTuple, cast
from uuid import UUID

from portal.model.errors import BodyDamaged, BodyMissing, NotFound, StoreUnavailable, StoreUnusable
from portal.model.message import Body, Delivery, Event, EventKind, random_token
from portal.model.statistics import Part
from portal.stores import Store, notes, open_store
from portal.stores.records import Record

log = logging.getLogger("quarantine.moving")

_MESSAGES, _PEOPLE, _DIGESTS, _RULES, _AUDIT = 200, 500, 200, 500, 500  # in a batch
_IDS = 10_000
_IN_MEMORY_BYTES = 1 << 20
_NEVER = datetime.min.replace(tzinfo=UTC)
_THREADS = 4  # a disk makes several messages durable in the time of one, see docs/decisions/speed.md

Outcome = Literal["copied", "changed", "same", "missing", "damaged", "gone"]
Progress = Callable[[int, int, int], None]  # messages checked, all messages, bytes of bodies copied


@dataclass(slots=True)
class Copied:
    """The result of a run."""

    messages: int = 0  # copied with their bodies
    changed: int = 0  # existed, got newer states or history
    same: int = 0
    people: int = 0
    digests: int = 0
    rules: int = 0
    size_bytes: int = 0  # of the bodies copied
    missing: list[UUID] = field(default_factory=list)  # the body is missing in the old store: not copied
    damaged: list[UUID] = field(default_factory=list)  # the body's SHA-256 differs: not copied
    mails_waiting: int = 0  # the portal's own messages in the old store's queue

    def count(self, id: UUID, outcome: Outcome, size_bytes: int) -> None:
        """Add the outcome of one message."""
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
    """Open both stores. The source must exist; a target that is a file store is created.

    Raises StoreUnavailable and StoreUnusable, whose messages name the store, FROM or TO; also, with nothing changed, if
    both are the same store or the target has other messages.
    """
    with ExitStack() as stack:
        stores = []
        for name, url, options in (
            ("FROM", source_url, {"must_exist": True}),
            ("TO", target_url, {"must_be_empty": True}),
        ):
            try:
                store = open_store(url, **options)
            except (StoreUnusable, ValueError) as error:
                needs_init = "quarantine init" in str(error) and "is no quarantine store" not in str(error)
                hint = f" with QUARANTINE_STORE__URL={name}" if needs_init else ""
                raise StoreUnusable(f"{name}: {error}{hint}") from error
            except StoreUnavailable as error:
                raise StoreUnavailable(f"{name}: {error}") from error
            stack.callback(store.close)
            stores.append(store)
        _check_stores(stores[0], stores[1])
        yield stores[0], stores[1]


def copy(source: Store, target: Store, progress: Progress) -> Copied:
    """Copy all data from ``source`` to ``target``, which is empty or has data of earlier runs.

    Both may be in use at the same time. If a delivery was changed in both, the later change is kept. People's
    preferences, roles and second factors, and changes of rules that were copied before, are copied from the source
    until the digest process runs on the target. Raises StoreUnusable if a body that is read back from the target
    differs, StoreUnavailable if either store stops working.
    """
    in_use = _is_in_use(source, target)
    done = Copied()
    total = sum(len(ids) for ids in _pages(source, _IDS))
    checked = 0
    unverified = notes.COPY_IN_PROGRESS.get(target)  # messages that an earlier run did not read back
    progress(0, total, 0)
    with ThreadPoolExecutor(_THREADS) as workers:
        for ids in _pages(source, _MESSAGES):
            in_source, in_target = source.messages.records(ids), target.messages.records(ids)
            if any(id not in in_target for id in ids):
                begin, end = ids[0], ids[-1]
                if unverified is not None and begin <= unverified.last:
                    begin, end = min(begin, unverified.first), max(end, unverified.last)
                notes.COPY_IN_PROGRESS.set(target, notes.IdRange(begin, end))
            for id in in_target:
                if unverified is not None and unverified.first <= id <= unverified.last:
                    with suppress(NotFound):  # purged at this moment
                        _verify(target, id)
            pairs = [(in_source.get(id), in_target.get(id)) for id in ids]
            outcomes = workers.map(lambda pair: _copy_or_update(source, target, *pair), pairs)
            for id, outcome in zip(ids, outcomes, strict=True):
                done.count(id, outcome, in_source[id].message.size_bytes if id in in_source else 0)
                checked += 1
                progress(checked, max(checked, total), done.size_bytes)
    notes.COPY_IN_PROGRESS.set(target, None)
    _copy_digests(source, target, done)
    _copy_people(source, target, done, preferences=not in_use)
    _copy_domains(source, target)
    if not in_use:
        target.staff.replace_all(source.staff.all())
        target.second_factors.replace_all(source.second_factors.all())
    target.tokens.import_records(source.tokens.all())
    _copy_rules(source, target, done, replace_changed=not in_use)
    _copy_audit(source, target)
    _copy_statistics(source, target)
    key = notes.LINK_KEY.get(source)
    if key is not None and in_use:
        notes.LINK_KEY.set_default(target, key)
    elif key is not None:
        notes.LINK_KEY.set(target, key)
    target.facets.recheck(are_missing=True)  # the messages were held in the past
    notes.NAMES_READ.set(target, None)
    done.mails_waiting = source.stats(datetime.now(UTC)).mails_waiting
    return done


def _check_stores(source: Store, target: Store) -> None:
    probe = random_token()
    notes.COPY_PROBE.set(source, probe)
    if notes.COPY_PROBE.get(target) == probe:
        raise StoreUnusable("FROM and TO are the same store: nothing was copied; use another store as TO")
    damaged = notes.COPY_NOT_KEPT.get(target)
    if damaged is not None:
        raise _unreliable(damaged)
    family = notes.FAMILY.set_default(source, random_token())
    if notes.FAMILY.get(target) == family:
        return  # one is a copy of the other
    if target.messages.ids(None, 1):
        raise StoreUnusable(
            "TO has messages that did not come from FROM: nothing was copied, since two mixed quarantines cannot be "
            "separated again; use an empty store as TO"
        )
    notes.FAMILY.set(target, family)


def _is_in_use(source: Store, target: Store) -> bool:
    """Return whether the digest process runs on the target: then people's preferences there are newer."""
    now = datetime.now(UTC)
    old, new = source.stats(now).heartbeat_at, target.stats(now).heartbeat_at
    return new is not None and (old is None or new > old)


def _pages(source: Store, size: int) -> Iterator[list[UUID]]:
    after: UUID | None = None
    while ids := list(source.messages.ids(after, size)):
        yield ids
        after = ids[-1]


def _copy_or_update(source: Store, target: Store, in_source: Record | None, in_target: Record | None) -> Outcome:
    """Copy or update one message. Raises StoreUnavailable, StoreUnusable."""
    if in_source is None:
        return "gone"  # purged after its id was listed
    if in_target is not None:
        merged = _merged(in_source, in_target)
        if merged is None:
            return "same"
        target.messages.import_record(merged, None)
        return "changed"
    id = in_source.message.id
    try:
        _copy(source, target, in_source)
    except BodyMissing:
        log.warning("not copied, its body is missing id=%s", id)
        return "missing"
    except BodyDamaged:
        log.warning("not copied, its body is damaged id=%s", id)
        return "damaged"
    except NotFound:
        return "gone"  # purged at this moment
    return "copied"


def _copy(source: Store, target: Store, record: Record) -> None:
    # Spooled, so that the target gets only a body that is known to be complete.
    with SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES) as spool:
        for piece in source.messages.body(record.message.id):
            spool.write(piece)
        target.messages.import_record(record, Body(cast(BinaryIO, spool), 0, record.message.size_bytes))
    _verify(target, record.message.id)


def _verify(target: Store, id: UUID) -> None:
    """Read a body back from the target.

    Raises StoreUnusable if it is not the one that was written, NotFound if the message was purged at this moment.
    """
    try:
        for _ in target.messages.body(id):
            pass  # the store compares the SHA-256
    except (BodyDamaged, BodyMissing) as error:
        if not target.messages.records([id]):
            raise NotFound("there is no such message") from error
        # Recorded, since the message exists in the target now and the next run would count it as copied.
        notes.COPY_NOT_KEPT.set(target, id)
        raise _unreliable(id) from error


def _unreliable(id: UUID) -> StoreUnusable:
    return StoreUnusable(
        f"TO did not return the message {id} as it was written, so its disk is unreliable: keep FROM, and use another "
        "store as TO"
    )


def _merged(in_source: Record, in_target: Record) -> Record | None:
    """Return the target's record with those deliveries of the source that were changed later, or None if equal."""
    others = {each.delivery.number: each for each in _each(in_source)}
    merged, changed = list[_Each](), False
    for each in _each(in_target):
        other = others.get(each.delivery.number, each)
        same = replace(other.delivery, message=each.delivery.message) == each.delivery and other.events == each.events
        is_later = not same and _changed_at(other) >= _changed_at(each)
        kept, left = (other, each) if is_later else (each, other)
        # Readers whom one store has notified need no notification by the other, unless the messages were put into the
        # next digest again since then.
        if _reannounced_at(kept) <= _reannounced_at(left):
            kept = kept._replace(readers=tuple(sorted({*kept.readers, *left.readers})))
        merged.append(kept)
        changed = changed or is_later or kept.readers != each.readers
    if not changed:
        return None
    deliveries, histories, announced_to = zip(*merged, strict=True)
    return replace(in_target, deliveries=deliveries, histories=histories, announced_to=announced_to)


class _Each(NamedTuple):
    """One delivery of a record."""

    delivery: Delivery
    events: tuple[Event, ...]
    readers: tuple[str, ...]  # who were notified


def _each(record: Record) -> list[_Each]:
    announced_to = record.announced_to or ((),) * len(record.deliveries)
    return [_Each(*each) for each in zip(record.deliveries, record.histories, announced_to, strict=True)]


def _reannounced_at(each: _Each) -> datetime:
    return max((event.at for event in each.events if event.kind is EventKind.REANNOUNCED), default=_NEVER)


def _changed_at(each: _Each) -> datetime:
    times: list[Any] = [each.delivery.state_at, each.delivery.announced_at, *(event.at for event in each.events)]
    return cast(datetime, max(time for time in times if time is not None))


def _copy_digests(source: Store, target: Store, done: Copied) -> None:
    after: UUID | None = None
    while digests := source.digests.records(after, _DIGESTS):
        target.digests.import_records(digests)
        done.digests += len(digests)
        after = digests[-1].id


def _copy_rules(source: Store, target: Store, done: Copied, *, replace_changed: bool) -> None:
    after: UUID | None = None
    while rules := source.rules.records(after, _RULES):
        target.rules.import_records(rules, datetime.now(UTC), replace_changed=replace_changed)
        done.rules += len(rules)
        after = rules[-1].id


def _copy_audit(source: Store, target: Store) -> None:
    after: UUID | None = None
    while entries := source.audit.records(after, _AUDIT):
        target.audit.record(*entries)
        after = entries[-1].id


def _copy_statistics(source: Store, target: Store) -> None:
    after: date | None = None
    while (found := source.statistics.records(after)) is not None:
        after = found[0]
        if not target.statistics.counts(Part.TOTAL, after, after):  # else it has counted its own mail
            target.statistics.import_records(*found)


def _copy_domains(source: Store, target: Store) -> None:
    after: UUID | None = None
    while values := source.domains.records(after, _RULES):
        target.domains.import_records(values)
        after = values[-1].id


def _copy_people(source: Store, target: Store, done: Copied, *, preferences: bool) -> None:
    after = ""
    while people := source.recipients.records(after, _PEOPLE):
        target.recipients.import_records(people, preferences=preferences)
        done.people += len(people)
        after = people[-1].recipient
