"""Recipients, in table `recipient`: preferences, opt-outs, revoked links, and when they are notified."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any
from uuid import UUID

from portal.model.audit import AuditEntry
from portal.model.errors import NotFound
from portal.model.message import first_id, held_at
from portal.model.schedule import NO_PREFERENCES, Preferences
from portal.stores.contracts import Recipients
from portal.stores.journal import person_line
from portal.stores.lifecycle import STOP_MAIL_INTERVAL, account, address_of, is_past
from portal.stores.records import Contacts, Person, QueuedMail
from portal.stores.shared import audit
from portal.stores.shared.contacts import contacts
from portal.stores.shared.outbox import queue
from portal.stores.shared.patterns import literal, of_domains
from portal.stores.shared.session import Engine, Row, Session

HAS_NEWS = "news_since is not null and stopped_at is null"
_DATA = "stopped_at, links_valid_from, news_since, next_digest_at, preferences, failure, failed_at, devices_valid_from"
_PERSON = f"select recipient, address, {_DATA} from recipient "
_COLUMNS = 2 + len(_DATA.split(","))
# One row for unknown people as well: the time that it takes must not say who is known.
_ANYBODY = (
    "select coalesce(r.recipient, :recipient) as recipient, coalesce(r.address, :recipient) as address, stopped_at,"
    " links_valid_from, news_since, next_digest_at, preferences, coalesce(failure, '') as failure, failed_at,"
    " devices_valid_from from (select 1) one left join recipient r on r.recipient = :recipient"
)
_OF_DIGEST = (
    f"select digest.recipient, coalesce(r.address, digest.recipient) as address, {_DATA}{{0}}"
    " from digest left join recipient r on r.recipient = digest.recipient where digest.id = :id"
)
_UPSERT = (  # sets one column of a recipient who may be unknown
    "insert into recipient (recipient, address, {0}) values (:recipient, :recipient, :{0})"
    " on conflict (recipient) do update"
)
_FORGET = (
    "insert into recipient (recipient, address, stopped_at, links_valid_from, devices_valid_from)"
    " values (:recipient, :recipient, :now, :now, :now) on conflict (recipient) do update set"
    " address = excluded.address, stopped_at = coalesce(recipient.stopped_at, excluded.stopped_at),"
    " links_valid_from = excluded.links_valid_from, devices_valid_from = excluded.devices_valid_from,"
    " news_since = null, next_digest_at = null, preferences = null, asked_at = null, digest_id = null, lease = null,"
    " lease_until = null, failures = 0, failure = '', failed_at = null, stop_mailed_at = null, notices = false,"
    " notice_at = null, noticed_until = null, notice_id = null"
)
_BATCH = 500  # rows that one transaction may change, so that ingest can run in between

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

    def known(self, recipients: Sequence[str]) -> Sequence[Person]:
        return self._people("where recipient in :names", names=list(recipients)) if recipients else []

    def names(self, part: str, domains: Collection[str] | None, limit: int, after: str = "") -> Sequence[str]:
        condition, values = of_domains("recipient", domains)
        select = (
            f"select recipient from recipient where {condition} and recipient > :after"
            " and recipient like :part escape '!' order by recipient limit :limit"
        )
        values |= {"part": f"%{literal(part)}%", "after": after}
        with self._engine.reading() as session:
            return [name for (name,) in session.many(select, **values, limit=limit)]

    def contacts(self, recipient: str, now: datetime) -> tuple[Person, Contacts]:
        with self._engine.reading() as session:
            row, found = contacts(session, recipient, now, f"recipient, address, {_DATA}")
        return (_nobody(recipient) if row[0] is None else _person_from(row)), found

    def set_digests_stopped(
        self, recipient: str, stopped_at: datetime | None, *, mail: QueuedMail | None = None
    ) -> bool:
        # Unschedule the next digest, so that the first one after resuming is not sent at once.
        upsert = _UPSERT.format("stopped_at") + (
            " set stopped_at = excluded.stopped_at, next_digest_at = null"
            " where (recipient.stopped_at is null) <> (excluded.stopped_at is null)"
        )
        with self._engine.writing() as session:
            changed = session.execute(upsert, recipient=recipient, stopped_at=stopped_at)
            if changed and mail is not None and stopped_at is not None:
                self._queue_stop_mail(session, recipient, mail, stopped_at)
            if changed:
                session.journal(lambda: person_line(person(session, recipient)))
        return bool(changed)

    @staticmethod
    def _queue_stop_mail(session: Session, recipient: str, mail: QueuedMail, now: datetime) -> None:
        row = session.one("select stop_mailed_at from recipient where recipient = :recipient", recipient=recipient)
        if row is None or is_past(row[0], STOP_MAIL_INTERVAL, now):
            queue(session, mail, now)
            update = "update recipient set stop_mailed_at = :now where recipient = :recipient"
            session.execute(update, now=now, recipient=recipient)

    def change(
        self, recipients: Sequence[str], after: Callable[[Person], Person], entry: Callable[[Person], AuditEntry]
    ) -> Sequence[str]:
        update = (
            "update recipient set stopped_at = :stopped_at, preferences = :preferences,"
            " next_digest_at = :next_digest_at where recipient = :recipient"
        )
        ordered, changed = sorted(recipients), list[str]()  # the order in which all transactions lock
        for start in range(0, len(ordered), _BATCH):
            names = ordered[start : start + _BATCH]
            has_all = False
            while not has_all:
                # A row must exist to be locked. They are added before any is locked: nobody waits for both.
                known = {each.recipient for each in self.known(names)}
                missing = [name for name in names if name not in known and after(_nobody(name)) != _nobody(name)]
                self._add(missing)
                with self._engine.writing() as session:
                    select = _PERSON + "where recipient in :names order by recipient"
                    rows = session.many_for_update(select, names=names)  # else their own act could be undone
                    before = {row[0]: _person_from(row) for row in rows}
                    has_all = before.keys() >= set(missing)  # `remove_unused` may have removed some
                    people = [after(each) for each in before.values()]
                    people = [
                        _rescheduled(before[each.recipient], each) for each in people if each != before[each.recipient]
                    ]
                    if people:
                        values = ("recipient", "stopped_at", "preferences", "next_digest_at")
                        session.execute_all(update, [{name: getattr(each, name) for name in values} for each in people])
                        audit.record(session, [entry(each) for each in people])
                    for each in people:
                        session.journal(partial(person_line, each))
                changed += [each.recipient for each in people]
        return changed

    def _add(self, recipients: Sequence[str]) -> None:
        """Add rows of recipients of whom nothing is stored, unless another process did."""
        if recipients:
            insert = (
                "insert into recipient (recipient, address) values (:name, :name) on conflict (recipient) do nothing"
            )
            with self._engine.writing(durable=False) as session:
                session.execute_all(insert, [{"name": name} for name in recipients])

    def revoke_links(self, recipient: str, issued_before: datetime) -> None:
        changes = f" set links_valid_from = {later('links_valid_from')}"
        self._upsert(_UPSERT.format("links_valid_from") + changes, recipient, links_valid_from=issued_before)

    def forget_devices(self, recipient: str, known_before: datetime) -> None:
        changes = f" set devices_valid_from = {later('devices_valid_from')}"
        self._upsert(_UPSERT.format("devices_valid_from") + changes, recipient, devices_valid_from=known_before)

    def forget(self, recipient: str, now: datetime) -> None:
        with self._engine.writing() as session:
            for table in ("digest", "link_open", "sign_in", "session", "kept_form"):
                session.execute(f"delete from {table} where recipient = :recipient", recipient=recipient)
            session.execute("delete from password_try where mailbox = :mailbox", mailbox=account(recipient))
            session.execute(_FORGET, recipient=recipient, now=now)
            session.journal(lambda: person_line(person(session, recipient)))

    def _upsert(self, upsert: str, recipient: str, **values: Any) -> None:
        with self._engine.writing() as session:
            session.execute(upsert, recipient=recipient, **values)
            session.journal(lambda: person_line(person(session, recipient)))

    def unscheduled(self, limit: int) -> Sequence[Person]:
        rest = f"where {HAS_NEWS} and next_digest_at is null order by news_since limit :limit"
        return self._people(rest, limit=limit)

    def schedule(self, recipient: str, at: datetime, *, notices: bool = False) -> None:
        notice_at = "coalesce(notice_at, news_since)" if notices else "null"
        update = (
            f"update recipient set next_digest_at = :at, notices = :notices, notice_at = {notice_at}"
            " where recipient = :recipient and next_digest_at is null"
        )
        with self._engine.writing(durable=False) as session:  # after a power cut it is scheduled again
            session.execute(update, recipient=recipient, at=at, notices=notices)

    def failing(self, limit: int) -> Sequence[Person]:
        return self._people("where failed_at is not null order by failed_at desc limit :limit", limit=limit)

    def pass_news_on(self, recipient: str, people: Sequence[str]) -> None:
        select = "select news_since from recipient where recipient = :recipient"
        mark = _UPSERT.format("news_since") + (
            " set news_since = coalesce(recipient.news_since, excluded.news_since), notice_at = case"
            " when recipient.notices and (recipient.notice_at is null or recipient.notice_at > excluded.news_since)"
            " then excluded.news_since else recipient.notice_at end"
        )
        clear = "update recipient set news_since = null, next_digest_at = null where recipient = :recipient"
        with self._engine.writing() as session:
            row = session.one(select, for_update=True, recipient=recipient)
            if row is None or row[0] is None:
                return
            for reader in sorted(people):  # in the order in which all transactions lock
                session.execute(mark, recipient=reader, news_since=row[0])
            if recipient not in people:
                session.execute(clear, recipient=recipient)

    def with_unannounced(self, recipients: Collection[str], since: datetime) -> Sequence[str]:
        select = (
            "select distinct recipient from delivery where recipient in :recipients"
            " and message_id >= :since_id and state = 'held' and announced_at is null"
        )
        with self._engine.reading() as session:
            rows = session.many(select, recipients=list(recipients), since_id=first_id(since)) if recipients else []
        return [recipient for (recipient,) in rows]

    def find_news(self, since: datetime, local: Collection[str] | None) -> int:
        mark = (
            "insert into recipient (recipient, address, news_since) values (:recipient, :address, :since)"
            " on conflict (recipient) do update set address = excluded.address, news_since = excluded.news_since"
            " where recipient.news_since is null"
        )
        with self._engine.reading() as session:
            found = sorted(self._find_unmarked(session, since, local))  # in the order in which all transactions lock
        marked = 0
        for start in range(0, len(found), _BATCH):
            with self._engine.writing() as session:
                for recipient, written, oldest in found[start : start + _BATCH]:
                    address = address_of(recipient, written)
                    marked += session.execute(mark, recipient=recipient, address=address, since=held_at(oldest))
        return marked

    def records(self, after: str, limit: int) -> Sequence[Person]:
        return self._people("where recipient > :after order by recipient limit :limit", after=after, limit=limit)

    def import_records(self, people: Sequence[Person], *, preferences: bool) -> None:
        changes = (
            "stopped_at = excluded.stopped_at, news_since = excluded.news_since,"
            " next_digest_at = excluded.next_digest_at, preferences = excluded.preferences"
        )
        if not preferences:
            changes = f"news_since = {earlier('news_since')}"
        upsert = (
            "insert into recipient (recipient, address, stopped_at, links_valid_from, news_since, next_digest_at,"
            " preferences, devices_valid_from) values (:recipient, :address, :stopped_at, :links_valid_from,"
            " :news_since, :next_digest_at, :preferences, :devices_valid_from)"
            " on conflict (recipient) do update set"
            f" address = excluded.address, links_valid_from = {later('links_valid_from')},"
            f" devices_valid_from = {later('devices_valid_from')}, {changes}"
        )
        with self._engine.writing() as session:
            for each in people:
                before = person(session, each.recipient)
                session.execute(upsert, each)
                after = person(session, each.recipient)
                if choices(after) != choices(before):
                    session.journal(partial(person_line, after))

    def import_preferences(self, imported: Person) -> None:
        """Set a recipient's choices from a line of the audit journal."""
        upsert = (
            "insert into recipient (recipient, address, stopped_at, links_valid_from, preferences, devices_valid_from)"
            " values (:recipient, :address, :stopped_at, :links_valid_from, :preferences, :devices_valid_from)"
            " on conflict (recipient) do update set stopped_at = excluded.stopped_at,"
            " links_valid_from = excluded.links_valid_from, preferences = excluded.preferences,"
            " devices_valid_from = excluded.devices_valid_from"
        )
        with self._engine.writing(durable=False) as session:
            session.execute(upsert, imported)

    def remove_unused(self) -> None:
        """Remove recipients without deliveries and choices: otherwise made-up addresses would fill the table."""
        is_empty = (
            "news_since is null and stopped_at is null and links_valid_from is null and preferences is null"
            " and devices_valid_from is null"
        )
        has_no_deliveries = "not exists (select 1 from delivery d where d.recipient = recipient.recipient)"
        page = (
            f"select recipient from recipient where {is_empty} and recipient > :after order by recipient limit {_BATCH}"
        )
        after: str | None = ""
        while after is not None:
            with self._engine.reading() as session:
                names = [name for (name,) in session.many(page, after=after)]
                unused = session.many(
                    f"select recipient from recipient where recipient in :names and {has_no_deliveries}", names=names
                )
            after = names[-1] if len(names) == _BATCH else None
            if unused:
                delete = f"delete from recipient where recipient in :names and {is_empty} and {has_no_deliveries}"
                with self._engine.writing(durable=False) as session:
                    session.execute(delete, names=[name for (name,) in unused])

    def _people(self, rest: str, **values: Any) -> Sequence[Person]:
        with self._engine.reading() as session:
            return [_person_from(row) for row in session.many(_PERSON + rest, **values)]


def choices(recipient: Person) -> tuple[datetime | None, datetime | None, datetime | None, Preferences]:
    """Return a recipient's choices, which are also in the audit journal."""
    return recipient.stopped_at, recipient.links_valid_from, recipient.devices_valid_from, recipient.preferences


NO_CHOICES = (None, None, None, NO_PREFERENCES)


def person(session: Session, recipient: str) -> Person:
    """Return a recipient; a Person without any data if the recipient is unknown."""
    row = session.one(_ANYBODY, recipient=recipient)
    assert row is not None  # noqa: S101 - the query returns one row
    return _person_from(row)


def _rescheduled(before: Person, after: Person) -> Person:
    """Return a person who was changed, whose next digest must be scheduled again if the change concerns it."""
    if after.stopped_at == before.stopped_at and after.preferences.schedules_like(before.preferences):
        return after
    return replace(after, next_digest_at=None)


def _nobody(recipient: str) -> Person:
    """Return a recipient of whom nothing is stored."""
    return Person(recipient, recipient, None, None, None, None)


def person_of_digest(session: Session, digest_id: UUID, more: str = "") -> tuple[Person, Sequence[Any]]:
    """Return the recipient of a digest, and more of its columns, which begin with a comma. Raises NotFound."""
    row = session.one(_OF_DIGEST.format(more), id=digest_id)
    if row is None:
        raise NotFound("there is no such digest")
    return _person_from(row[:_COLUMNS]), row[_COLUMNS:]


def _person_from(row: Row) -> Person:
    recipient, address, stopped_at, links_valid_from, news_since, next_digest_at, preferences, *rest = row
    return Person(
        *(recipient, address, stopped_at, links_valid_from, news_since, next_digest_at),
        *(Preferences.from_json(preferences), *rest),
    )


def later(column: str) -> str:
    """Return SQL for the later of a column's values in the existing and the new row; NULL is the earliest."""
    return (
        f"case when recipient.{column} is null or excluded.{column} > recipient.{column}"
        f" then excluded.{column} else recipient.{column} end"
    )


def earlier(column: str) -> str:
    """Return SQL for the earlier of a column's values in the existing and the new row; NULL is the latest."""
    return (
        f"case when recipient.{column} is null or excluded.{column} < recipient.{column}"
        f" then excluded.{column} else recipient.{column} end"
    )
