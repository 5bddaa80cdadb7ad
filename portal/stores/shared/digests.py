"""Sent digests, link opens, and recipients whose digest is due. Each store adds claiming and settling of digests."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID, uuid4

from portal.model.message import Delivery, DeliveryId, Reader, State, held_at, new_id
from portal.model.schedule import Preferences
from portal.stores import lifecycle
from portal.stores.contracts import Digests
from portal.stores.lifecycle import address_of
from portal.stores.records import Digest, DigestOfLink, DigestRequest, LinkOpen, NoticeClaim, Person, Unsent, Upcoming
from portal.stores.senders import KNOWN_MAX
from portal.stores.shared.outcomes import Outcomes
from portal.stores.shared.recipients import HAS_NEWS, person_of_digest
from portal.stores.shared.session import Engine, Row, Session

CLAIMABLE = (
    "select recipient, address, stopped_at, news_since, next_digest_at, lease_until, digest_id, preferences, failures,"
    " asked_at, lease from recipient "
)
DUE = f"{HAS_NEWS} and next_digest_at <= :now and (lease_until is null or lease_until <= :now)"
_DIGEST = (
    "select id, recipient, address, issued_at,"
    " (select preferences from recipient r where r.recipient = digest.recipient) as preferences, is_notice{0}"
    " from digest "
)

_UPCOMING = (
    "select r.address, r.digest_id, r.preferences, r.failures, r.stopped_at, r.next_digest_at, r.asked_at,"
    " (select max(sent_at) from digest where digest.recipient = :recipient and not is_notice) as sent_at,"
    " (select {1} from job where kind = :kind and finished_at is null and created_at > :jobs_since)"
    " as jobs,"
    " (select listed from digest where digest.id = r.digest_id) as listed, ({0}) as released_from"
    " from (select 1) one left join recipient r on r.recipient = :recipient"
)
_ISSUED = (
    "select count(*) as issued, max(issued_at) as issued_at from digest"
    " where recipient = :recipient and sent_at is not null and issued_at >= :since"
)
_LAST = (
    "where recipient = :recipient and sent_at is not null and not is_notice order by issued_at desc, id desc limit 1"
)
_REQUEST = (
    "insert into recipient (recipient, address, news_since, next_digest_at, asked_at)"
    " values (:recipient, :address, :news_since, :now, :now) on conflict (recipient) do update set"
    " news_since = coalesce(recipient.news_since, excluded.news_since),"
    " next_digest_at = excluded.next_digest_at, asked_at = excluded.asked_at"
    " where recipient.asked_at is null or recipient.asked_at <= :since"
)
_NOTICE_DUE = (
    "select recipient, address, next_digest_at, preferences, noticed_until, notice_id from recipient"
    f" where {HAS_NEWS} and notice_at <= :now and (lease_until is null or lease_until <= :now){{0}}"
    " order by notice_at limit 1"
)
# A message that is held during the claim sets an earlier `notice_at`, by which `_END_NOTICE` recognizes it.
_CLAIM_NOTICE = (
    "update recipient set lease = :lease, lease_until = :until, notice_at = :until, notice_id = :id"
    " where recipient = :recipient"
)
_PUT_NOTICE = (
    "insert into digest (id, recipient, address, issued_at, is_notice)"
    " values (:id, :recipient, :address, :issued_at, :is_notice) on conflict (id)"
    " do update set address = excluded.address, issued_at = excluded.issued_at"
)
_END_NOTICE = (
    "update recipient set lease = null, lease_until = null,"
    " notice_at = case when notice_at = lease_until then :again else notice_at end{0}"
    " where recipient = :recipient and lease = :lease"
)
_END_UNSENT = (
    "update recipient set lease = null, lease_until = :not_before{0},"
    # A digest that was requested after the claim stays due.
    " next_digest_at = case when next_digest_at <= :now and (asked_at is null or asked_at = :requested_at)"
    " then coalesce(:due_at, next_digest_at) else next_digest_at end,"
    " failures = case when :is_put_off then 0 when :failure = '' then failures else failures + 1 end,"
    " failure = case when :is_put_off or :failure <> '' then :failure else failure end,"
    " failed_at = case when :is_put_off then null when :failure = '' then failed_at else :now end"
    " where recipient = :recipient and lease = :lease"
)
_NOTICES_SENT = (
    "select recipient, issued_at from digest where recipient in :recipients and issued_at > :since"
    " and sent_at is not null and is_notice order by issued_at"
)
_NOTICE_LOOKS_BACK = timedelta(days=1)  # at first
# A message may commit seconds after its time, another host's clock may be behind, and a virus scan may take minutes.
_NOTICE_OVERLAP = timedelta(minutes=10)


class SqlDigests(Digests):
    """See `Digests`."""

    _released_from: str  # selects the From headers of `Upcoming.released_from` as JSON, null without any
    _jobs: str  # the same of `Upcoming.jobs`
    _announced = ""  # columns of a digest that `_announced_by` takes, after a comma

    def __init__(self, engine: Engine, outcomes: Outcomes) -> None:
        self._engine = engine
        self._outcomes = outcomes

    def begin(self, digests: Sequence[Digest]) -> None:
        rows = [
            {"id": digest.id, "listed": json.dumps([(str(each.id), each.number) for each in digest.deliveries])}
            for digest in digests
            if digest.deliveries
        ]
        if not rows:
            return
        # After a power cut the claim is known and this may not be: then the time of the claim decides, by the same
        # clock on the one host of a file store.
        update = "update digest set listed = coalesce(listed, :listed) where id = :id and sent_at is null"
        with self._engine.writing(durable=False) as session:
            session.execute_all(update, sorted(rows, key=lambda row: row["id"]))

    def settle(self, sent: Sequence[Digest], unsent: Sequence[Unsent], now: datetime) -> bool:
        ids = [digest.id for digest in sent] or [each.digest.id for each in unsent]
        what = " ".join(["digests" if sent else "failed digests", *(f"id={id}" for id in ids)])
        return self._outcomes.record(what, partial(self._settle, sent, unsent, now))

    @abstractmethod
    def _settle(self, sent: Sequence[Digest], unsent: Sequence[Unsent], now: datetime) -> None:
        """Do what `settle` does, or raise StoreUnavailable. May be called again after it succeeded."""

    def due(self, now: datetime | None, limit: int, after: str = "") -> Sequence[str]:
        where = f"{DUE} order by next_digest_at"
        if now is None:
            where = f"{HAS_NEWS} and recipient > :after order by recipient"
        with self._engine.reading() as session:
            rows = session.many(
                f"select recipient from recipient where {where} limit :limit", now=now, after=after, limit=limit
            )
        return [recipient for (recipient,) in rows]

    def claim_notices(
        self, now: datetime, count: int, limit: int, *, readers: Callable[[str], Reader] = Reader
    ) -> Sequence[NoticeClaim]:
        self._outcomes.record_kept()
        due = _NOTICE_DUE.format(self._outcomes.and_free())
        lease = uuid4()
        found: list[tuple[Digest, UUID | None, datetime, datetime | None]] = []
        with self._engine.writing() as session:
            while len(found) < count:
                row = session.one(due, for_update=True, skip_locked=True, now=now)
                if row is None:
                    break
                recipient, address, next_digest_at, preferences, until, id = row
                notice = Digest(
                    id or new_id(now), recipient, address, now.replace(microsecond=0), (),
                    Preferences.from_json(preferences), lease=lease, reader=readers(recipient), is_notice=True,
                    is_taken_over=id is not None,
                )  # fmt: skip
                session.execute(_CLAIM_NOTICE, notice, until=now + lifecycle.LEASE)
                # As for a digest: its recipient may unsubscribe before the sending is recorded.
                session.execute(_PUT_NOTICE, notice)
                since = now - _NOTICE_LOOKS_BACK if until is None else min(until, now) - _NOTICE_OVERLAP
                found.append((notice, id, since, next_digest_at))
        if not found:
            return ()
        names = [notice.recipient for notice, *_ in found]
        with self._engine.reading() as session:
            sent = session.many(_NOTICES_SENT, recipients=names, since=now - timedelta(days=1))
            listed = listed_before(session, [taken_over for _, taken_over, *_ in found])
        return [
            NoticeClaim(
                replace(
                    notice,
                    deliveries=as_before(
                        self._unannounced_since(notice.effective_reader, since, limit), taken_over, listed
                    ),
                ),
                next_digest_at,
                tuple(at for recipient, at in sent if recipient == notice.recipient),
            )
            for notice, taken_over, since, next_digest_at in found
        ]

    @abstractmethod
    def _unannounced_since(self, reader: Reader, since: datetime, limit: int) -> Sequence[Delivery]:
        """Return deliveries that were held from ``since`` on and not announced to this reader, oldest first."""

    @abstractmethod
    def _announced_by(
        self, session: Session, digest_id: UUID, recipient: str, announced: Sequence[Any]
    ) -> Sequence[Delivery]:
        """Return the deliveries that a digest announced and that are still kept, oldest first. Takes one statement."""

    def upcoming(
        self, reader: Reader, now: datetime, limit: int, *, kind: str = "", jobs_since: datetime | None = None
    ) -> Upcoming:
        who = reader.identity
        with self._engine.reading() as session:
            row = session.one(
                _UPCOMING.format(self._released_from, self._jobs),
                recipient=who,
                identities=json.dumps(reader.identities),
                most=KNOWN_MAX,
                kind=kind,
                jobs_since=jobs_since or now,
            )
        assert row is not None  # noqa: S101 - there is one for each recipient, known or not
        address, id, preferences, failures, stopped_at, due_at, asked_at, last_sent_at, jobs, listed, headers = row
        deliveries = as_before(self.unannounced(reader, limit), id, {id: _keys(listed)} if id and listed else {})
        issued_at = now.replace(microsecond=0)
        chosen = Preferences.from_json(preferences)
        digest = Digest(
            id or new_id(now), who, address or who, issued_at, deliveries, chosen, failures or 0, reader=reader,
            is_taken_over=id is not None, requested_at=asked_at, is_begun=listed is not None,
        )  # fmt: skip
        return Upcoming(
            digest,
            stopped_at,
            due_at,
            last_sent_at,
            tuple(
                (json.loads(arguments), json.loads(progress or "{}"))
                for arguments, progress in json.loads(jobs or "[]")
            ),
            tuple(json.loads(headers or "[]")),
        )

    def request(self, reader: Reader, now: datetime, since: datetime) -> DigestRequest:
        recipient = reader.identity
        with self._engine.reading() as session:
            row = session.one("select stopped_at from recipient where recipient = :recipient", recipient=recipient)
        if row is not None and row[0] is not None:
            return DigestRequest.NOTHING
        wanted, repeat = self.unannounced(reader, 1), False
        if not wanted:
            last, repeat = self.last(recipient), True
            kept = last.deliveries if last else ()
            wanted = [d for d in kept if d.state is State.HELD and d.recipient in reader.identities]
        if not wanted:
            return DigestRequest.NOTHING
        news = {"address": address_of(recipient, wanted[0].address), "news_since": wanted[0].message.held_at}
        with self._engine.writing() as session:
            is_due = session.execute(_REQUEST, recipient=recipient, now=now, since=since, **news)
            if is_due and repeat:
                _mark_unannounced(session, reader, wanted)
        return DigestRequest.DUE if is_due else DigestRequest.TOO_SOON

    def last(self, recipient: str) -> Digest | None:
        with self._engine.reading() as session:
            row = session.one(_DIGEST.format(self._announced) + _LAST, recipient=recipient)
            if row is None:
                return None
            id, recipient, address, issued_at, preferences, is_notice, *announced = row
            deliveries = tuple(self._announced_by(session, id, recipient, announced))
        chosen = Preferences.from_json(preferences)
        return Digest(id, recipient, address, issued_at, deliveries, chosen, is_notice=bool(is_notice))

    def last_sent(self, recipients: Sequence[str]) -> Mapping[str, datetime]:
        if not recipients:
            return {}
        sent = (
            "select recipient, max(sent_at) as sent_at from digest"
            " where recipient in :recipients and sent_at is not null and not is_notice group by recipient"
        )
        with self._engine.reading() as session:
            return dict(session.many(sent, recipients=list(recipients)))

    def issued_since(self, recipient: str, since: datetime) -> tuple[int, datetime | None]:
        with self._engine.reading() as session:
            row = session.one(_ISSUED, recipient=recipient, since=since)
        return (row[0], row[1]) if row else (0, None)

    def repeat(self, digest: Digest) -> None:
        with self._engine.writing(durable=False) as session:
            session.execute("update digest set issued_at = :issued_at where id = :id", digest)

    def get(self, digest_id: UUID) -> DigestOfLink:
        with self._engine.reading() as session:
            person, announced = person_of_digest(session, digest_id, self._announced)
            return DigestOfLink(person, self._announced_by(session, digest_id, person.recipient, announced))

    def recipient_of(self, digest_id: UUID) -> Person:
        with self._engine.reading() as session:
            return person_of_digest(session, digest_id)[0]

    def record_link_open(
        self, recipient: str, issued_at: datetime, opened: LinkOpen, since: datetime
    ) -> Sequence[LinkOpen]:
        values = {"recipient": recipient, "issued_at": issued_at, "since": since, "at_most": lifecycle.LINK_OPENS_MAX}
        with self._engine.writing(durable=False) as session:
            rows = self._add_link_open(session, opened, values)
        return [LinkOpen(DeliveryId(id, number), at) for id, number, at in rows]

    @abstractmethod
    def _add_link_open(self, session: Session, opened: LinkOpen, values: Mapping[str, Any]) -> Sequence[Row]:
        """Add a row of `link_open`, and return (message id, number, time) of the digest's rows since then, oldest
        first. Takes one statement."""


def settle_unsent(session: Session, each: Unsent, now: datetime) -> None:
    """End the claim of a digest or notice that was not sent. If it surely did not arrive, the next one has a new id."""
    is_surely_unsent = not (each.may_have_arrived or each.digest.is_taken_over)
    if each.digest.is_notice:
        end = _END_NOTICE.format(", notice_id = null" if is_surely_unsent else "")
        is_own = session.execute(end, each.digest, again=each.not_before or each.due_at or now)
    else:
        end = _END_UNSENT.format(", digest_id = null" if is_surely_unsent else "")
        is_own = session.execute(end, each.digest, each, now=now)
    if is_own and is_surely_unsent:
        session.execute("delete from digest where id = :id and sent_at is null", each.digest)


def listed_before(session: Session, ids: Collection[UUID | None]) -> Mapping[UUID, Collection[DeliveryId]]:
    """Return what the mails of these earlier claims listed, of those that were begun."""
    taken_over = [id for id in ids if id is not None]
    if not taken_over:
        return {}
    rows = session.many("select id, listed from digest where id in :ids and listed is not null", ids=taken_over)
    return {id: _keys(listed) for id, listed in rows}


def as_before(
    deliveries: Sequence[Delivery], taken_over: UUID | None, listed: Mapping[UUID, Collection[DeliveryId]]
) -> tuple[Delivery, ...]:
    """Return those that a digest or notice may list whose mail may have arrived; all if ``taken_over`` is None.

    That mail was not begun if it is not in ``listed``, or by version 6. Then those that were held before its claim.
    """
    if taken_over is not None and taken_over in listed:
        return tuple(each for each in deliveries if each.key in listed[taken_over])
    return tuple(each for each in deliveries if taken_over is None or each.id < taken_over)


def _keys(listed: str) -> frozenset[DeliveryId]:
    return frozenset(DeliveryId(UUID(id), number) for id, number in json.loads(listed))


def settle_sent_notice(session: Session, notice: Digest) -> None:
    """End the claim of a notice that was sent, or that had nothing to announce.

    One that was taken over lists nothing newer than its first claim, so what is newer is searched at once.
    """
    until, again = (held_at(notice.id), notice.issued_at) if notice.is_taken_over else (notice.issued_at, None)
    end = _END_NOTICE.format(", notice_id = null, noticed_until = :searched_until")
    session.execute(end, notice, again=again, searched_until=until)


def _mark_unannounced(session: Session, reader: Reader, deliveries: Sequence[Delivery]) -> None:
    """Make deliveries of a reader's last digest unannounced to them again."""
    ids, identities = list({each.id for each in deliveries}), list({each.recipient for each in deliveries})
    held = "message_id in :ids and recipient in :identities and state = 'held'"
    session.execute(f"update delivery set announced_at = null where {held}", ids=ids, identities=identities)
    delete = "delete from announced_to where message_id in :ids and reader = :reader"
    session.execute(delete, ids=ids, reader=reader.identity)
