"""Values of domains, in table `domain_value`. Replaced values stay in it for a while: they are the audit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any
from uuid import UUID

from portal.model.audit import Act, AuditEntry
from portal.model.domain_value import DomainValue
from portal.model.message import Actor
from portal.stores.contracts import DomainValues
from portal.stores.journal import domain_value_line
from portal.stores.shared.audit import record
from portal.stores.shared.session import Engine, Row, Session

_COLUMNS = "id, domain, name, value, set_at, actor, via, address, replaced_at"
_SELECT = f"select {_COLUMNS} from domain_value"
_INSERT = (
    f"insert into domain_value ({_COLUMNS})"
    " values (:id, :domain, :name, :value, :set_at, :actor, :via, :address, :replaced_at)"
    " on conflict (id) do update set replaced_at = coalesce(excluded.replaced_at, domain_value.replaced_at)"
)
_LOCK = "domains"  # serializes changes, so that the newest value is the one in use


class SqlDomainValues(DomainValues):
    """See `DomainValues`."""

    def __init__(self, engine: Engine, at_requests: Engine) -> None:
        """``at_requests`` has a short time limit: a request may wait for `version` before its own statements."""
        self._engine = engine
        self._at_requests = at_requests

    def set(self, values: Sequence[DomainValue]) -> None:
        with self._engine.writing() as session:
            _import(session, values)
            record(session, [_audit_entry(value) for value in values])

    def in_use(self) -> Sequence[DomainValue]:
        with self._engine.reading() as session:
            rows = session.many(f"{_SELECT} where replaced_at is null order by domain, name")
        return [_value(row) for row in rows]

    def version(self) -> str:
        with self._at_requests.reading() as session:
            row = session.one(
                "select count(*), (select id from domain_value order by id desc limit 1) as newest from domain_value"
            )
        return f"{row[0]} {row[1]}" if row else ""

    def history(self, domain: str, limit: int) -> Sequence[DomainValue]:
        with self._engine.reading() as session:
            rows = session.many(
                f"{_SELECT} where domain = :domain order by id desc limit :limit", domain=domain, limit=limit
            )
        return [_value(row) for row in rows]

    def records(self, after: UUID | None, limit: int) -> Sequence[DomainValue]:
        with self._engine.reading() as session:
            return domain_values_after(session, after, limit)

    def import_records(self, values: Sequence[DomainValue]) -> None:
        with self._engine.writing() as session:
            _import(session, values)


def _import(session: Session, values: Sequence[DomainValue]) -> None:
    session.lock(_LOCK)
    for value in values:
        put_domain_value(session, value)
        session.journal(partial(domain_value_line, value))


def _audit_entry(value: DomainValue) -> AuditEntry:
    detail = f"{value.name} = {value.value}" if value.value is not None else f"{value.name}: as in the settings file"
    entry = AuditEntry.new(value.set_at, Act.DOMAIN_SET, value.actor, value.domain, detail)
    return replace(entry, id=value.id)  # so that setting the same value again adds nothing


def domain_values_after(session: Session, after: UUID | None, limit: int) -> list[DomainValue]:
    """Return values after this id, oldest first, also those replaced."""
    rows = session.many(
        f"{_SELECT} where id > :after_id order by id limit :limit", after_id=after or UUID(int=0), limit=limit
    )
    return [_value(row) for row in rows]


def put_domain_value(session: Session, value: DomainValue) -> None:
    """Insert a value, also one of the past. Of several values of one setting the one with the newest id is in use."""
    same = "domain = :domain and name = :name and replaced_at is null"
    key: dict[str, Any] = {"domain": value.domain, "name": value.name, "id": value.id}
    replaced_at = value.replaced_at
    if replaced_at is None:
        newer = session.one(f"select set_at from domain_value where {same} and id > :id", **key)
        if newer is not None:
            replaced_at = newer[0]
        else:
            session.execute(
                f"update domain_value set replaced_at = :set_at where {same} and id < :id", **key, set_at=value.set_at
            )
    session.execute(
        _INSERT,
        value.actor,
        **key,
        value=value.value,
        set_at=value.set_at,
        actor=value.actor.who,
        via=value.actor.via,
        replaced_at=replaced_at,
    )


def _value(row: Row) -> DomainValue:
    id, domain, name, value, set_at, who, via, address, replaced_at = row
    return DomainValue(id, domain, name, value, set_at, Actor.from_stored(who, via, address), replaced_at)
