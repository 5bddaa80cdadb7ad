"""Deliveries: lookups, histories and actions. Each store adds its search."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID, uuid4

from portal.model.errors import AlreadyDone, NotFound, QuarantineError
from portal.model.message import (
    Actor,
    ActorKind,
    Delivery,
    DeliveryId,
    Event,
    EventKind,
    Filter,
    Reader,
    State,
    Tier,
    held_at,
    identity,
)
from portal.model.ranking import Likeness
from portal.stores import lifecycle, search
from portal.stores.contracts import Deliveries
from portal.stores.records import Counts, Ending, Page, QueuedMail
from portal.stores.shared import expiry
from portal.stores.shared.outbox import queue
from portal.stores.shared.outcomes import Outcomes
from portal.stores.shared.patterns import of_domains
from portal.stores.shared.rows import WHERE_KEY, Rows, events, history, make_unannounced, mark_news
from portal.stores.shared.session import Engine, Row, Session
from portal.stores.span import Span

log = logging.getLogger("quarantine.store")


class SqlDeliveries(Deliveries):
    """See `Deliveries`."""

    def __init__(self, engine: Engine, rows: Rows, outcomes: Outcomes) -> None:
        self._engine = engine
        self._rows = rows
        self._outcomes = outcomes

    # ---- lists

    def get(self, key: DeliveryId) -> Delivery:
        with self._engine.reading() as session:
            return self._rows.delivery(session, key)

    def of_message(self, message_id: UUID) -> Sequence[Delivery]:
        with self._engine.reading() as session:
            found = self._rows.deliveries(session, "where d.message_id = :id order by d.number", id=message_id)
        if not found:
            raise NotFound("there is no such message")
        return found

    def get_for(self, reader: Reader, message_id: UUID, number: int | None = None) -> Delivery:
        with self._engine.reading() as session:
            found = self._rows.of_messages(
                session,
                [message_id],
                "d.recipient in :identities order by d.number",
                identities=list(reader.identities),
            )
        for delivery in found:
            if number in (None, delivery.number):
                return delivery
        raise NotFound("there is no such message")

    def list_for(
        self,
        reader: Reader,
        states: Collection[State],
        limit: int,
        before: DeliveryId | None = None,
    ) -> Page:
        return self.matching(reader, Filter(states=frozenset(states)), limit, before) if states else Page((), None)

    def matching(
        self,
        reader: Reader,
        wanted: Filter,
        limit: int,
        before: DeliveryId | None = None,
        *,
        down_to: DeliveryId | None = None,
    ) -> Page:
        if not reader.identities:
            return Page((), None)
        return self._page(search.of_reader(reader, wanted), limit, Span.of(wanted, before, down_to))

    def search(self, wanted: Filter, limit: int, before: DeliveryId | None = None) -> Page:
        return self._page(wanted, limit, Span.of(wanted, before))

    def _page(self, wanted: Filter, limit: int, span: Span) -> Page:
        if State.EXPIRED in wanted.states:  # forgotten: never listed
            wanted = replace(wanted, states=wanted.states - {State.EXPIRED})
            if not wanted.states:
                return Page((), None)
        if wanted.like is None:
            return self._find_page(wanted, limit, span)
        terms = search.wanted_terms(wanted)
        if terms is None or wanted.needs_facets:  # which only `Facets` applies
            return Page((), None)
        with self._engine.reading() as session:
            found = self._rows.of_messages(
                session, [wanted.like.message_id], "d.number = :number", number=wanted.like.number
            )
            if not found or (wanted.recipient and found[0].recipient not in (wanted.recipient, *wanted.also)):
                return Page((), None)
            likeness = Likeness.of(found[0])
            candidates = partial(self._candidates, session, likeness, wanted)
            return search.alike(likeness, wanted, limit, span, terms, candidates)

    def near_duplicates(self, delivery: Delivery) -> Page:
        likeness, wanted = Likeness.of(delivery), Filter(states=frozenset({State.HELD}))
        with self._engine.reading() as session:
            page = search.newest_alike(likeness, partial(self._candidates, session, likeness, wanted))
        return Page(tuple(each for each in page.deliveries if each.key != delivery.key), page.next)

    @abstractmethod
    def _find_page(self, wanted: Filter, limit: int, span: Span) -> Page:
        """See `search`, for a filter without ``like``. A span that is read oldest first is of a recipient."""

    @abstractmethod
    def _candidates(
        self,
        session: Session,
        likeness: Likeness,
        wanted: Filter,
        span: Span,
        examined: int,
        at_most: int,
    ) -> Sequence[tuple[Delivery, int]]:
        """See `search.Candidates`. Of ``wanted``, states restrict which deliveries are examined."""

    def of_reader(self, reader: Reader, keys: Collection[DeliveryId]) -> Sequence[Delivery]:
        if not keys:
            return []
        with self._engine.reading() as session:
            found = self._rows.of_messages(
                session,
                [id for id, _ in keys],
                "d.recipient in :identities",
                identities=list(reader.identities),
            )
        by_key = {delivery.key: delivery for delivery in found}
        return [by_key[key] for key in keys if key in by_key]

    def with_last_events(
        self, reader: Reader, message_ids: Collection[UUID]
    ) -> Mapping[DeliveryId, tuple[Delivery, Sequence[Event]]]:
        if not message_ids:
            return {}
        with self._engine.reading() as session:
            found = self._rows.with_events(
                session, list(message_ids), "d.recipient in :identities", identities=list(reader.identities)
            )
        found.sort(key=lambda each: each[0].key)
        return {each.key: (each, _last_of_each_kind(events)) for each, events in found}

    def counts(self, reader: Reader, at_most: int, senders: int = 0, since: DeliveryId | None = None) -> Counts:
        id, number = since or (None, None)
        with self._engine.reading() as session:
            rows = self._counts(
                session, reader.identities, at_most=at_most, senders=senders, since_id=id, since_number=number
            )
        of, of_since = Counter[State](), Counter[State]()
        totals, totals_since = Counter[str](), Counter[str]()
        headers = []
        for recipient, state, count, count_since, header_from in rows:
            if state is None:
                headers.append(header_from)
                continue
            of[State(state)] += count
            totals[recipient] += count
            of_since[State(state)] += count_since or 0
            totals_since[recipient] += count_since or 0
        return Counts(
            of,
            all(total < at_most for total in totals.values()),
            tuple(headers),
            of_since if since and all(total < at_most for total in totals_since.values()) else None,
        )

    @abstractmethod
    def _counts(self, session: Session, identities: Sequence[str], **values: Any) -> Sequence[Row]:
        """Return (identity, state, number of deliveries, those from one on, null) for the newest ``at_most`` of each
        identity, and (identity, null, null, null, From header) for the newest ``senders`` that were released to each.

        The one is named by ``since_id`` and ``since_number``; None: there is none.
        """

    def ending(self, state: State, before: datetime, limit: int, after: DeliveryId | None = None) -> Sequence[Ending]:
        with self._engine.reading() as session:
            return expiry.ending(session, state, before, after, limit)

    def requested(self, domains: Collection[str] | None, limit: int) -> Sequence[Delivery]:
        where, values = _requested(domains)
        rest = f"{where} order by d.state_at, d.message_id, d.number limit :limit"
        with self._engine.reading() as session:
            return self._rows.deliveries(session, rest, **values, limit=limit)

    def count_requested(self, domains: Collection[str] | None, at_most: int) -> int:
        where, values = _requested(domains)
        select = f"select count(*) from (select 1 from delivery d {where} limit :at_most) counted"
        with self._engine.reading() as session:
            ((count,),) = session.many(select, **values, at_most=at_most)
        return int(count)

    def aged(
        self, since: datetime, before: datetime, limit: int, after: DeliveryId | None = None
    ) -> Sequence[tuple[Ending, Tier]]:
        with self._engine.reading() as session:
            return expiry.aged(session, since, before, after, limit)

    # ---- histories

    def history(self, key: DeliveryId) -> Sequence[Event]:
        with self._engine.reading() as session:
            found = history(session, key)
        return [Event(held_at(key.message_id), EventKind.HELD, Actor(ActorKind.SYSTEM)), *found]

    def histories(self, keys: Collection[DeliveryId]) -> Mapping[DeliveryId, Sequence[Event]]:
        wanted = set(keys)
        if not wanted:
            return {}
        with self._engine.reading() as session:
            found = events(session, {id for id, _ in wanted}, {number for _, number in wanted})
        return {key: found[key] for key in wanted & found.keys()}

    def last_events(self, keys: Collection[DeliveryId]) -> Mapping[DeliveryId, Sequence[Event]]:
        return {key: _last_of_each_kind(found) for key, found in self.histories(keys).items()}

    # ---- actions

    def assign(self, key: DeliveryId, address: str, actor: Actor, now: datetime) -> Delivery:
        with self._engine.writing() as session:
            delivery = self._rows.delivery(session, key, for_update=True)
            if delivery.recipient:
                raise AlreadyDone("this delivery has a recipient", delivery)
            self._rows.set_recipient(session, key, identity(address), address)
            return self._rows.record(session, key, Event(now, EventKind.ASSIGNED, actor, address))

    def move(
        self,
        key: DeliveryId,
        to: State,
        allowed: Collection[State],
        actor: Actor,
        now: datetime,
        *,
        kind: EventKind,
        reason: str = "",
        detail: str = "",
        mails: Sequence[QueuedMail] = (),
        next_try_at: datetime | None = None,
    ) -> Delivery:
        with self._engine.writing() as session:
            lifecycle.check_state(self._rows.delivery(session, key, for_update=True), allowed)
            moved = (
                "state = :state, state_at = :now, reason = :reason, next_try_at = :next_try_at, release_lease = null"
            )
            moved += ", attempts = 0" if to is State.RELEASING else ""
            update = f"update delivery set {moved} {WHERE_KEY}"
            session.execute(update, key, state=to.value, now=now, reason=reason, next_try_at=next_try_at)
            if mails and (kind is not EventKind.REQUESTED or self._request_is_mailed(session, key, now)):
                for mail in mails:
                    queue(session, mail, now)
            moved_to = self._rows.record(session, key, Event(now, kind, actor, reason or detail))
            mark_news(session, moved_to, now)
            return moved_to

    def restore(self, key: DeliveryId, actor: Actor, now: datetime, *, detail: str = "") -> Delivery:
        with self._engine.writing() as session:
            lifecycle.check_state(self._rows.delivery(session, key, for_update=True), {State.DELETED})
            return self._return(session, key, Event(now, EventKind.RESTORED, actor, detail))

    def end_request(self, key: DeliveryId, event: Event, mails: Sequence[QueuedMail] = ()) -> Delivery:
        with self._engine.writing() as session:
            lifecycle.check_state(self._rows.delivery(session, key, for_update=True), {State.REQUESTED})
            for mail in mails:
                queue(session, mail, event.at)
            return self._return(session, key, event)

    def _return(self, session: Session, key: DeliveryId, event: Event) -> Delivery:
        """Return a delivery to its state before by this event. Return it in that state."""
        state, since, reason = lifecycle.state_before([*_history(session, key), event])
        update = f"update delivery set state = :state, state_at = :at, reason = :reason {WHERE_KEY}"
        session.execute(update, key, state=state.value, at=since or event.at, reason=reason)
        returned = self._rows.record(session, key, event)
        mark_news(session, returned, event.at)
        return returned

    def reannounce(self, key: DeliveryId, actor: Actor, now: datetime, *, detail: str = "") -> Delivery:
        with self._engine.writing() as session:
            delivery = self._rows.delivery(session, key, for_update=True)
            lifecycle.check_state(delivery, {State.HELD})
            make_unannounced(session, key)
            mark_news(session, replace(delivery, announced_at=None), now)
            return self._rows.record(session, key, Event(now, EventKind.REANNOUNCED, actor, detail))

    def record(
        self,
        key: DeliveryId,
        event: Event,
        *,
        allowed: Collection[State] = frozenset(State),
        mails: Sequence[QueuedMail] = (),
        interval: timedelta = timedelta(),
    ) -> None:
        with self._engine.writing() as session:
            delivery = self._rows.delivery(session, key, for_update=True)
            lifecycle.check_state(delivery, allowed)
            earlier = [each.at for each in _history(session, key) if each.kind is event.kind] if interval else []
            if not lifecycle.is_past(max(earlier, default=None), interval, event.at):
                raise AlreadyDone("the same was done a short while ago", delivery)
            for mail in mails:
                queue(session, mail, event.at)
            self._rows.record(session, key, event)

    @staticmethod
    def _request_is_mailed(session: Session, key: DeliveryId, now: datetime) -> bool:
        return lifecycle.request_is_mailed(_history(session, key), now)

    @contextmanager
    def releasing(
        self,
        key: DeliveryId,
        allowed: Collection[State],
        actor: Actor,
        now: datetime,
        answer: Callable[[], str] = str,
        *,
        check: Callable[[Delivery], object] = bool,
        detail: str = "",
    ) -> Iterator[Delivery]:
        lease = uuid4()
        delivery = self._claim_release(key, allowed, check, Event(now, EventKind.RELEASING, actor, detail), lease)
        try:
            yield delivery
        except BaseException as error:
            try:
                failure = partial(self._record_failure, delivery, actor, now, lease, error)
                self._outcomes.record(f"failed release id={key.message_id} number={key.number}", failure)
            except QuarantineError as store_error:
                # The lease expires and the release is retried; the caller needs the first error.
                log.error("release outcome not recorded id=%s number=%d: %s", key.message_id, key.number, store_error)
            raise
        released = Event(now, EventKind.RELEASED, actor, answer())
        was_tried = False

        def record() -> None:
            nonlocal was_tried
            is_repeated, was_tried = was_tried, True
            with self._engine.writing() as session:
                # Without checking the lease: the mail server has the mail, also if another process has the claim now.
                moved = "state = 'released', state_at = :now, reason = '', next_try_at = null, release_lease = null"
                is_new = session.execute(
                    f"update delivery set {moved} {WHERE_KEY} and state <> 'released'", key, now=now
                )
                # If another process has sent it as well by now, both have an event. If the answer to the first commit
                # was lost, there is one already.
                if is_new or not is_repeated or not _is_recorded(session, key, released):
                    self._rows.note(session, delivery, released)

        self._outcomes.record(f"release id={key.message_id} number={key.number}", record)

    def _claim_release(
        self,
        key: DeliveryId,
        allowed: Collection[State],
        check: Callable[[Delivery], object],
        start: Event,
        lease: UUID,
    ) -> Delivery:
        now = start.at
        self._outcomes.record_kept()
        # Of releases whose process died only the digest process takes over the claim, since it notices outages.
        free = " and release_lease is null" if allowed else self._outcomes.and_free("release_lease")
        with self._engine.writing() as session:
            delivery = self._rows.delivery(session, key, for_update=True)
            is_retry = lifecycle.is_retry(delivery, allowed, now)
            if not is_retry:
                check(delivery)
                delivery = replace(delivery, state=State.RELEASING, state_at=now, reason="", attempts=0)
            claimed = replace(delivery, attempts=delivery.attempts + 1, next_try_at=now + lifecycle.LEASE)
            is_claimed = session.execute(
                "update delivery set state = :state, state_at = :state_at, reason = :reason, attempts = :attempts,"
                f" next_try_at = :next_try_at, release_lease = :lease {WHERE_KEY}{free}",
                claimed,
                key,
                lease=lease,
            )
            if not is_claimed:
                raise AlreadyDone("this delivery is being released", delivery)
            if not is_retry:
                self._rows.note(session, delivery, start)
            return claimed

    def _record_failure(
        self, delivery: Delivery, actor: Actor, now: datetime, lease: UUID, error: BaseException
    ) -> None:
        failed = lifecycle.failed_release(delivery, error, now)
        with self._engine.writing() as session:
            changed = session.execute(
                "update delivery set state = :state, state_at = :state_at, reason = :reason,"
                f" next_try_at = :next_try_at, release_lease = null {WHERE_KEY} and release_lease = :lease",
                failed,
                delivery.key,
                lease=lease,
            )
            if changed:
                self._rows.note(session, delivery, Event(now, failed.kind, actor, failed.reason))
                mark_news(session, replace(delivery, state=failed.state), now)

    def due_releases(self, now: datetime, limit: int) -> Sequence[DeliveryId]:
        free = self._outcomes.and_free("release_lease")
        select = (
            f"select message_id, number from delivery where state = 'releasing' and next_try_at <= :now{free}"
            " order by next_try_at limit :limit"
        )
        with self._engine.reading() as session:
            return [DeliveryId(*row) for row in session.many(select, now=now, limit=limit)]


def _requested(domains: Collection[str] | None) -> tuple[str, dict[str, Any]]:
    """Return condition and parameters of `SqlDeliveries.requested`."""
    condition, values = of_domains("d.recipient", domains)
    # The state is a constant, and compared with `held` as well, so that both engines use the index without held ones.
    return f"where d.state = 'requested' and d.state <> 'held' and {condition}", values


def _last_of_each_kind(events: Sequence[Event]) -> Sequence[Event]:
    """Return the latest event of each kind, oldest first. ``events``: oldest first."""
    last: dict[EventKind, Event] = {}
    for event in events:
        last.pop(event.kind, None)  # so that the kind moves to the end of the dict
        last[event.kind] = event
    return list(last.values())


def _is_recorded(session: Session, key: DeliveryId, event: Event) -> bool:
    return any((each.at, each.kind) == (event.at, event.kind) for each in _history(session, key))


def _history(session: Session, key: DeliveryId) -> Sequence[Event]:
    """Return a delivery's events, oldest first, without `held`."""
    return events(session, [key.message_id], [key.number]).get(key, [])
