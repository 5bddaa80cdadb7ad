"""Recipients, in table `recipient`: preferences, opt-outs, revoked links, and when they are notified."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from functools import partial
from typing import Any
from uuid import UUID

from portal.model.message import first_id, held_at
from portal.model.schedule import NOTHING_CHOSEN, Preferences
from portal.stores.contracts import Recipients
from portal.stores.journal import person_line
from portal.stores.records import Person, QueuedMail
from portal.stores.rules import address_of
from portal.stores.shared.outbox import queue
from portal.stores.shared.session import Engine, Row, Session

HAS_NEWS = "news_since is not null and stopped_at is null"
_PERSON = (
    "select recipient, address, stopped_at, links_valid_from, news_since, next_digest_at, preferences, failure,"
    " failed_at from recipient "
)
_BATCH = 500  # rows a transaction may change, so that ingest is let in between

# Finds held, unannounced mail of recipients without news: (session, since, local) -> (recipient, address, oldest id)
FindUnmarked = Callable[[Session, datetime, "Collection[str] | None"], Sequence[tuple[str, str, UUID]]]


class SqlRecipients(Recipients):
    """See `Recipients`."""

    def __init__(self, engine: Engine, find_unmarked: FindUnmarked) -> None:
        self._engine = engine
        self._find_unmarked = find_unmarked

    def get(self, recipient: str) -> Person:
        with self._engine.reading() as session:
            return person(session, recipient)

    def set_digests_stopped(
        self, recipient: str, stopped_at: datetime | None, *, mail: QueuedMail | None = None
    ) -> bool:
        # Unscheduled, so that the first digest after resuming is not sent at once.
        with self._engine.writing() as session:
            changed = session.execute(
                "insert into recipient (recipient, address, stopped_at) values (:recipient, :recipient, :stopped_at)"
                " on conflict (recipient) do update set stopped_at = excluded.stopped_at, next_digest_at = null"
                " where (recipient.stopped_at is null) <> (excluded.stopped_at is null)",
                recipient=recipient,
                stopped_at=stopped_at,
            )
            if changed and mail is not None and stopped_at is not None:
                queue(session, mail, stopped_at)
            if changed:
                session.journal(lambda: person_line(person(session, recipient)))
        return bool(changed)

    def set_preferences(self, recipient: str, preferences: Preferences) -> None:
        with self._engine.writing() as session:
            session.execute(
                "insert into recipient (recipient, address, preferences) values (:recipient, :recipient, :preferences)"
                " on conflict (recipient) do update set preferences = excluded.preferences, next_digest_at = null",
                recipient=recipient,
                preferences=preferences.to_json(),
            )
            session.journal(lambda: person_line(person(session, recipient)))

    def revoke_links(self, recipient: str, issued_before: datetime) -> None:
        with self._engine.writing() as session:
            session.execute(
                "insert into recipient (recipient, address, links_valid_from)"
                " values (:recipient, :recipient, :issued_before)"
                f" on conflict (recipient) do update set links_valid_from = {later('links_valid_from')}",
                recipient=recipient,
                issued_before=issued_before,
            )
            session.journal(lambda: person_line(person(session, recipient)))

    def unscheduled(self, limit: int) -> Sequence[Person]:
        return self._people(
            f"where {HAS_NEWS} and next_digest_at is null order by news_since limit :limit", limit=limit
        )

    def schedule(self, recipient: str, at: datetime) -> None:
        # Not durable: a recipient whose time is lost by a power cut is unscheduled again.
        with self._engine.writing(durable=False) as session:
            session.execute(
                "update recipient set next_digest_at = :at where recipient = :recipient and next_digest_at is null",
                recipient=recipient,
                at=at,
            )

    def failing(self, limit: int) -> Sequence[Person]:
        return self._people("where failed_at is not null order by failed_at desc limit :limit", limit=limit)

    def pass_news_on(self, recipient: str, people: Sequence[str]) -> None:
        with self._engine.writing() as session:
            row = session.one(
                "select news_since from recipient where recipient = :recipient", for_update=True, recipient=recipient
            )
            if row is None or row[0] is None:
                return
            for reader in sorted(people):  # in the order in which all transactions lock
                session.execute(
                    "insert into recipient (recipient, address, news_since) values (:reader, :reader, :since)"
                    " on conflict (recipient) do update"
                    " set news_since = coalesce(recipient.news_since, excluded.news_since)",
                    reader=reader,
                    since=row[0],
                )
            if recipient not in people:
                session.execute(
                    "update recipient set news_since = null, next_digest_at = null where recipient = :recipient",
                    recipient=recipient,
                )

    def with_unannounced(self, recipients: Collection[str], since: datetime) -> Sequence[str]:
        if not recipients:
            return ()
        with self._engine.reading() as session:
            rows = session.many(
                "select distinct recipient from delivery where recipient in :recipients"
                " and message_id >= :since_id and state = 'held' and announced_at is null",
                recipients=list(recipients),
                since_id=first_id(since),
            )
        return [recipient for (recipient,) in rows]

    def find_news(self, since: datetime, local: Collection[str] | None) -> int:
        with self._engine.reading() as session:
            found = sorted(self._find_unmarked(session, since, local))  # in the order in which all transactions lock
        marked = 0
        for start in range(0, len(found), _BATCH):
            with self._engine.writing() as session:
                for recipient, address, oldest in found[start : start + _BATCH]:
                    marked += session.execute(
                        "insert into recipient (recipient, address, news_since) values (:recipient, :address, :since)"
                        " on conflict (recipient) do update"
                        " set address = excluded.address, news_since = excluded.news_since"
                        " where recipient.news_since is null",
                        recipient=recipient,
                        address=address_of(recipient, address),
                        since=held_at(oldest),
                    )
        return marked

    def records(self, after: str, limit: int) -> Sequence[Person]:
        return self._people("where recipient > :after order by recipient limit :limit", after=after, limit=limit)

    def take(self, people: Sequence[Person], *, preferences: bool) -> None:
        if preferences:
            clash = (
                "stopped_at = excluded.stopped_at, news_since = excluded.news_since,"
                " next_digest_at = excluded.next_digest_at, preferences = excluded.preferences"
            )
        else:
            clash = f"news_since = {_earlier('news_since')}"
        with self._engine.writing() as session:
            for each in people:
                before = person(session, each.recipient)
                session.execute(
                    "insert into recipient (recipient, address, stopped_at, links_valid_from, news_since,"
                    " next_digest_at, preferences) values (:recipient, :address, :stopped_at, :links_valid_from,"
                    " :news_since, :next_digest_at, :preferences) on conflict (recipient) do update set"
                    f" address = excluded.address, links_valid_from = {later('links_valid_from')}, {clash}",
                    recipient=each.recipient,
                    address=each.address,
                    stopped_at=each.stopped_at,
                    links_valid_from=each.links_valid_from,
                    news_since=each.news_since,
                    next_digest_at=each.next_digest_at,
                    preferences=each.preferences.to_json(),
                )
                after = person(session, each.recipient)
                if chosen(after) != chosen(before):
                    session.journal(partial(person_line, after))

    def take_choices(self, chooser: Person) -> None:
        """Keep what a line of the audit journal says that a recipient chose."""
        with self._engine.writing(durable=False) as session:
            session.execute(
                "insert into recipient (recipient, address, stopped_at, links_valid_from, preferences)"
                " values (:recipient, :address, :stopped_at, :links_valid_from, :preferences)"
                " on conflict (recipient) do update set stopped_at = excluded.stopped_at,"
                " links_valid_from = excluded.links_valid_from, preferences = excluded.preferences",
                recipient=chooser.recipient,
                address=chooser.address,
                stopped_at=chooser.stopped_at,
                links_valid_from=chooser.links_valid_from,
                preferences=chooser.preferences.to_json(),
            )

    def forget_unknown(self) -> None:
        """Remove recipients for whom nothing is held or chosen: made-up addresses would fill the table."""
        nothing = "news_since is null and stopped_at is null and links_valid_from is null and preferences is null"
        unheld = "not exists (select 1 from delivery d where d.recipient = recipient.recipient)"
        after: str | None = ""
        while after is not None:
            with self._engine.reading() as session:
                names = session.many(
                    f"select recipient from recipient where {nothing} and recipient > :after"
                    " order by recipient limit :limit",
                    after=after,
                    limit=_BATCH,
                )
                unknown = session.many(
                    f"select recipient from recipient where recipient in :names and {unheld}",
                    names=[name for (name,) in names],
                )
            after = names[-1][0] if len(names) == _BATCH else None
            if unknown:
                with self._engine.writing(durable=False) as session:
                    session.execute(
                        f"delete from recipient where recipient in :names and {nothing} and {unheld}",
                        names=[name for (name,) in unknown],
                    )

    def _people(self, rest: str, **values: Any) -> Sequence[Person]:
        with self._engine.reading() as session:
            return [_person_from(row) for row in session.many(_PERSON + rest, **values)]


def chosen(chooser: Person) -> tuple[datetime | None, datetime | None, Preferences]:
    """Return what a recipient chose, which the audit journal keeps."""
    return chooser.stopped_at, chooser.links_valid_from, chooser.preferences


NOTHING = (None, None, NOTHING_CHOSEN)  # `chosen` of somebody who chose nothing


def person(session: Session, recipient: str) -> Person:
    """Return a recipient; an empty Person when nothing is known."""
    row = session.one(_PERSON + "where recipient = :recipient", recipient=recipient)
    return _person_from(row) if row else Person(recipient, recipient, None, None, None, None)


def _person_from(row: Row) -> Person:
    recipient, address, stopped_at, links_valid_from, news_since, next_digest_at, preferences, failure, failed_at = row
    return Person(
        *(recipient, address, stopped_at, links_valid_from, news_since, next_digest_at),
        *(Preferences.from_json(preferences), failure, failed_at),
    )


def later(column: str) -> str:
    """Return SQL for the later of a column's values in the row and in the new one; NULL is the earliest."""
    return (
        f"case when recipient.{column} is null or excluded.{column} > recipient.{column}"
        f" then excluded.{column} else recipient.{column} end"
    )


def _earlier(column: str) -> str:
    """Return SQL for the earlier of the two; NULL is the latest."""
    return (
        f"case when recipient.{column} is null or excluded.{column} < recipient.{column}"
        f" then excluded.{column} else recipient.{column} end"
    )
