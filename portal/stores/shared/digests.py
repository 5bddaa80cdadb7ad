"""Digests of before, link opens, and who is due. Each store adds how it claims and settles digests."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from datetime import datetime
from uuid import UUID

from portal.model.errors import NotFound
from portal.model.message import Delivery, DeliveryId, Reader, State
from portal.model.schedule import Preferences
from portal.stores import rules
from portal.stores.contracts import Digests
from portal.stores.records import Asked, Claims, Digest, DigestRecord, LinkOpen, Unsent
from portal.stores.rules import address_of
from portal.stores.shared.recipients import HAS_NEWS
from portal.stores.shared.session import Engine, Row, Session

CLAIMABLE = (
    "select recipient, address, stopped_at, news_since, next_digest_at, lease_until, digest_id, preferences, failures,"
    " lease from recipient "
)
DUE = f"{HAS_NEWS} and next_digest_at <= :now and (lease_until is null or lease_until <= :now)"
_DIGEST = (
    "select id, recipient, address, issued_at,"
    " (select preferences from recipient r where r.recipient = digest.recipient) as preferences from digest "
)


class SqlDigests(Digests):
    """See `Digests`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def due(self, now: datetime | None, limit: int, after: str = "") -> Sequence[str]:
        with self._engine.reading() as session:
            if now is None:
                rows = session.many(
                    f"select recipient from recipient where {HAS_NEWS} and recipient > :after"
                    " order by recipient limit :limit",
                    after=after,
                    limit=limit,
                )
            else:
                rows = session.many(
                    f"select recipient from recipient where {DUE} order by next_digest_at limit :limit",
                    now=now,
                    limit=limit,
                )
        return [recipient for (recipient,) in rows]

    @abstractmethod
    def claim(
        self,
        now: datetime,
        count: int,
        limit: int,
        *,
        only: Sequence[str] | None = None,
        at_once: bool = False,
        readers: Callable[[str], Reader] = Reader,
    ) -> Claims: ...

    @abstractmethod
    def settle(self, sent: Sequence[Digest], unsent: Sequence[Unsent], now: datetime) -> None: ...

    @abstractmethod
    def unannounced(self, reader: Reader, limit: int) -> Sequence[Delivery]: ...

    @abstractmethod
    def records(self, after: UUID | None, limit: int) -> Sequence[DigestRecord]: ...

    @abstractmethod
    def take(self, digests: Sequence[DigestRecord]) -> None: ...

    @abstractmethod
    def _announced_by(self, session: Session, digest_id: UUID, recipient: str) -> Sequence[Delivery]:
        """Return the deliveries that a digest announced and that are still kept, oldest first."""

    def ask(self, reader: Reader, now: datetime, since: datetime) -> Asked:
        recipient = reader.identity
        with self._engine.reading() as session:
            row = session.one("select stopped_at from recipient where recipient = :recipient", recipient=recipient)
        if row is not None and row[0] is not None:
            return Asked.NOTHING
        wanted, again = self.unannounced(reader, 1), False
        if not wanted:
            last, again = self.last(recipient), True
            kept = last.deliveries if last else ()
            wanted = [d for d in kept if d.state is State.HELD and d.recipient in reader.identities]
        if not wanted:
            return Asked.NOTHING
        with self._engine.writing() as session:
            is_due = session.execute(
                "insert into recipient (recipient, address, news_since, next_digest_at, asked_at)"
                " values (:recipient, :address, :news_since, :now, :now) on conflict (recipient) do update set"
                " news_since = coalesce(recipient.news_since, excluded.news_since),"
                " next_digest_at = excluded.next_digest_at, asked_at = excluded.asked_at"
                " where recipient.asked_at is null or recipient.asked_at <= :since",
                recipient=recipient,
                address=address_of(recipient, wanted[0].address),
                news_since=wanted[0].message.held_at,
                now=now,
                since=since,
            )
            if is_due and again:
                _unannounce(session, reader, wanted)
        return Asked.DUE if is_due else Asked.TOO_SOON

    def last(self, recipient: str) -> Digest | None:
        with self._engine.reading() as session:
            row = session.one(
                _DIGEST
                + "where recipient = :recipient and sent_at is not null order by issued_at desc, id desc limit 1",
                recipient=recipient,
            )
            return self._digest_from(session, row) if row else None

    def get(self, digest_id: UUID) -> Digest:
        with self._engine.reading() as session:
            row = session.one(_DIGEST + "where id = :id", id=digest_id)
            if row is None:
                raise NotFound("there is no such digest")
            return self._digest_from(session, row)

    def _digest_from(self, session: Session, row: Row) -> Digest:
        id, recipient, address, issued_at, preferences = row
        deliveries = tuple(self._announced_by(session, id, recipient))
        return Digest(id, recipient, address, issued_at, deliveries, Preferences.from_json(preferences))

    def recipient_of(self, digest_id: UUID) -> str:
        with self._engine.reading() as session:
            row = session.one("select recipient from digest where id = :id", id=digest_id)
        if row is None:
            raise NotFound("there is no such digest")
        return str(row[0])

    def record_link_open(
        self, recipient: str, issued_at: datetime, opened: LinkOpen, since: datetime
    ) -> Sequence[LinkOpen]:
        with self._engine.writing(durable=False) as session:
            session.execute(
                "insert into link_open (recipient, issued_at, message_id, number, at)"
                " values (:recipient, :issued_at, :message_id, :number, :at)",
                recipient=recipient,
                issued_at=issued_at,
                message_id=opened.delivery.message_id,
                number=opened.delivery.number,
                at=opened.at,
            )
            rows = session.many(
                "select message_id, number, at from link_open"
                " where recipient = :recipient and issued_at = :issued_at and at >= :since"
                " order by at desc, id desc limit :limit",
                recipient=recipient,
                issued_at=issued_at,
                since=since,
                limit=rules.LINK_OPENS_MAX,
            )
        return [LinkOpen(DeliveryId(id, number), at) for id, number, at in reversed(rows)]


def _unannounce(session: Session, reader: Reader, deliveries: Sequence[Delivery]) -> None:
    """Let deliveries of a reader's last digest be announced to them again."""
    ids = list({delivery.id for delivery in deliveries})
    session.execute(
        "update delivery set announced_at = null"
        " where message_id in :ids and recipient in :identities and state = 'held'",
        ids=ids,
        identities=list({delivery.recipient for delivery in deliveries}),
    )
    session.execute(
        "delete from announced_to where message_id in :ids and reader = :reader", ids=ids, reader=reader.identity
    )
