"""The audit, in table `audit`. A trigger refuses changes of its rows."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from functools import partial
from itertools import islice
from typing import Any
from uuid import UUID

from portal.model.audit import Act, AuditEntry, AuditFilter
from portal.model.message import Actor, ActorKind, DeliveryId, Event, State, first_id
from portal.stores.contracts import Audit
from portal.stores.journal import audit_line
from portal.stores.shared.session import Engine, Row, Session

_COLUMNS = "id, at, act, actor, via, address, subject, message_id, number, detail, domain"
_SELECT = f"select {_COLUMNS} from audit"
_INSERT = (
    f"insert into audit ({_COLUMNS})"
    " values (:id, :at, :act, :who, :via, :address, :subject, :message_id, :number, :detail, :domain)"
    " on conflict (id) do nothing"
)
_SUBJECTS = 100  # in one statement
_PAGE = 2_000  # entries read at a time
_BATCH = 500  # rows that one transaction may delete, so that ingest can run in between
_KINDS = (ActorKind.OPERATOR, ActorKind.RECIPIENT)
# Of the entries of a subject, not by the index of actors: an actor of a large job has more of them.
_ACTED = "from audit where actor || '' = :who and via = :via and id >= :since_id and act || '' = :act"


class SqlAudit(Audit):
    """See `Audit`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def record(self, *entries: AuditEntry) -> None:
        with self._engine.writing() as session:
            record(session, entries)

    def list(self, wanted: AuditFilter, limit: int, before: UUID | None = None) -> Sequence[AuditEntry]:
        conditions = {
            "actor in :people": [f"{kind}:{wanted.person}" for kind in _KINDS] if wanted.person else None,
            "act = :act": wanted.act or None,
            "subject in :subjects": list(wanted.subjects) or None,
            "domain in :domains": None if wanted.domains is None else sorted(wanted.domains),
            "message_id = :message_id": wanted.message_id,
            "id >= :since_id": wanted.since and first_id(wanted.since),
            "id < :until_id": wanted.until and first_id(wanted.until),
            "id < :before_id": before,
        }
        used = {condition: value for condition, value in conditions.items() if value is not None}
        where = f" where {' and '.join(used)}" if used else ""
        values = {condition.rpartition(":")[2]: value for condition, value in used.items()}
        with self._engine.reading() as session:
            rows = session.many(f"{_SELECT}{where} order by id desc limit :limit", **values, limit=limit)
        return [_entry(row) for row in rows]

    def sign_in_methods(self, person: str) -> Collection[str]:
        select = "select distinct via from audit where subject = :person and act = :act"
        with self._engine.reading() as session:
            return [via for (via,) in session.many(select, person=person, act=str(Act.SIGNED_IN))]

    def acted_on(
        self, actor: Actor, act: str, since: datetime, limit: int, after: UUID | None = None
    ) -> tuple[Sequence[str], UUID | None]:
        begin = first_id(since) if after is None else after
        values = {"who": actor.who, "via": actor.via, "act": act, "begin_id": begin}
        with self._engine.reading() as session:
            rows = session.many(
                "select id, subject from audit where actor = :who and via = :via and act = :act"
                f" and id {'>=' if after is None else '>'} :begin_id order by id limit :limit",
                **values,
                limit=_PAGE,
            )
        found: dict[str, UUID] = {}
        for id, subject in rows:
            if subject not in found and len(found) == limit:
                break
            found.setdefault(subject, id)
            last = id
        else:
            last = rows[-1][0] if len(rows) == _PAGE else None
        known = self.acted_before(actor, act, since, found, after) if after is not None else ()
        return [subject for subject in found if subject not in known], last

    def acted_before(
        self, actor: Actor, act: str, since: datetime, subjects: Collection[str], until: UUID
    ) -> Collection[str]:
        # One look for each subject: with each page, those with many entries would be read to the end otherwise.
        names, found = iter(subjects), set[str]()
        values = {**_acted(actor, act, since), "until_id": until}
        while part := {f"subject{number}": name for number, name in enumerate(islice(names, _SUBJECTS))}:
            looks = (
                f"select * from (select subject {_ACTED} and subject = :{each} and id <= :until_id limit 1) as {each}"
                for each in part
            )
            with self._engine.reading() as session:
                found |= {subject for (subject,) in session.many(" union all ".join(looks), **part, **values)}
        return found

    def tally(
        self, actor: Actor, act: str, since: datetime, subjects: Collection[str]
    ) -> Mapping[str, Mapping[State | None, int]]:
        with self._engine.reading() as session:
            rows = session.many(
                "select a.subject, d.state, count(*)"
                f" from (select distinct subject, message_id, number {_ACTED} and subject in :subjects) a"
                " left join delivery d on d.message_id = a.message_id and d.number = a.number"
                " group by a.subject, d.state order by a.subject",
                **_acted(actor, act, since),
                subjects=list(subjects),
            )
        found: dict[str, dict[State | None, int]] = {}
        for subject, state, count in rows:
            found.setdefault(subject, {})[State(state) if state else None] = count
        return found

    def expire(self, before: datetime) -> int:
        count, removed = 0, _BATCH
        while removed == _BATCH:
            with self._engine.writing(durable=False) as session:
                removed = session.execute(
                    "delete from audit where id in (select id from audit where id < :end_id order by id limit :limit)",
                    end_id=first_id(before),
                    limit=_BATCH,
                )
            count += removed
        return count

    def records(self, after: UUID | None, limit: int) -> Sequence[AuditEntry]:
        with self._engine.reading() as session:
            rows = session.many(
                f"{_SELECT} where id > :after_id order by id limit :limit", after_id=after or UUID(int=0), limit=limit
            )
        return [_entry(row) for row in rows]


def _acted(actor: Actor, act: str, since: datetime) -> dict[str, Any]:
    """Return the parameters of `_ACTED`."""
    return {"who": actor.who, "via": actor.via, "act": act, "since_id": first_id(since)}


def record(session: Session, entries: Sequence[AuditEntry]) -> None:
    """Add entries in the transaction of what they are about, with lines in the journal."""
    put(session, entries)
    for entry in entries:
        session.journal(partial(audit_line, entry))


def put(session: Session, entries: Sequence[AuditEntry]) -> None:
    """Add entries without lines in the journal."""
    if len(entries) == 1:
        session.execute(_INSERT, **_values(entries[0]))
    elif entries:
        session.execute_all(_INSERT, [_values(entry) for entry in entries])


def put_event(session: Session, key: DeliveryId, recipient: str, event: Event) -> None:
    """Add the entry of an event, if a person caused it. The line of the delivery in the journal has the event."""
    entry = AuditEntry.of_event(event, key, recipient)
    if entry is not None:
        put(session, [entry])


def entries_of(session: Session, ids: Collection[UUID]) -> Sequence[AuditEntry]:
    """Return those of these entries that exist."""
    return [_entry(row) for row in session.many(f"{_SELECT} where id in :ids order by id", ids=[*ids])]


def _values(entry: AuditEntry) -> dict[str, Any]:
    message_id, number = entry.delivery or (None, None)
    return {
        "id": entry.id,
        "at": entry.at,
        "act": str(entry.act),
        "who": entry.actor.who,
        "via": entry.actor.via,
        "address": entry.actor.address,
        "subject": entry.subject,
        "domain": entry.domain,
        "message_id": message_id,
        "number": number,
        "detail": entry.detail,
    }


def _entry(row: Row) -> AuditEntry:
    id, at, act, who, via, address, subject, message_id, number, detail, domain = row
    delivery = None if message_id is None else DeliveryId(message_id, number)
    return AuditEntry(id, at, act, Actor.from_stored(who, via, address), subject, delivery, detail, domain)
