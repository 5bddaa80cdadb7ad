"""Roles of staff, in table `staff`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial

from portal.model.audit import Act, AuditEntry
from portal.model.message import Actor
from portal.model.staff import Grant, Role
from portal.stores.contracts import StaffRoles
from portal.stores.journal import staff_line
from portal.stores.shared.audit import record
from portal.stores.shared.session import Engine, Row, Session

COLUMNS = ("person", "role", "domain", "given_at", "actor", "via", "address", "source", "group_name", "expires_at")
_SELECT = f"select {', '.join(COLUMNS)} from staff"
_INSERT = (
    "insert into staff (person, role, domain, given_at, actor, via, address, source, group_name, expires_at)"
    " values (:person, :role, :domain, :given_at, :actor, :via, :address, :source, :group, :expires_at)"
    " on conflict do nothing"
)
_END_USE = "update session set staff_until = null where recipient = :person"


class SqlStaffRoles(StaffRoles):
    """See `StaffRoles`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def of(self, person: str) -> Sequence[Grant]:
        with self._engine.reading() as session:
            return _of(session, person)

    def all(self) -> Sequence[Grant]:
        with self._engine.reading() as session:
            return all_grants(session)

    def give(self, grant: Grant) -> bool:
        with self._engine.writing() as session:
            is_new = _insert(session, grant) == 1
            if is_new:
                detail = _detail(grant.role, grant.domain)
                entry = AuditEntry.new(
                    grant.given_at, Act.ROLE_GIVEN, grant.actor, grant.person, detail, domain=grant.domain
                )
                record(session, [entry])
                _journal(session, grant.person)
        return is_new

    def remove(self, person: str, role: Role, domain: str, actor: Actor, now: datetime) -> bool:
        delete = "delete from staff where person = :person and role = :role and domain = :domain and source = ''"
        with self._engine.writing() as session:
            removed = session.execute(delete, person=person, role=role.value, domain=domain) == 1
            if removed:
                entry = AuditEntry.new(now, Act.ROLE_REMOVED, actor, person, _detail(role, domain), domain=domain)
                record(session, [entry])
                session.execute(_END_USE, person=person)
                _journal(session, person)
        return removed

    def put_groups(self, person: str, source: str, grants: Sequence[Grant], now: datetime) -> None:
        of_source = "where person = :person and source = :source"
        with self._engine.writing() as session:
            rows = session.many(f"{_SELECT} {of_source}", person=person, source=source)
            stored = grants_of(rows)
            before = {_role(each): each for each in stored if each.expires_at is None or each.expires_at > now}
            after = {_role(each): each for each in grants}
            session.execute(f"delete from staff {of_source}", person=person, source=source)
            for key, grant in after.items():
                _insert(session, replace(grant, given_at=before[key].given_at) if key in before else grant)
            gone = [before[key] for key in before if key not in after]
            entries = [_entry(Act.ROLE_GIVEN, after[key], now) for key in after if key not in before]
            entries += [_expired(grant, now) for grant in stored if _role(grant) not in before]
            record(session, entries + [_entry(Act.ROLE_REMOVED, grant, now) for grant in gone])
            if gone:
                session.execute(_END_USE, person=person)

    def remove_expired(self, now: datetime) -> None:
        with self._engine.writing() as session:
            expired = grants_of(session.many(f"{_SELECT} where expires_at <= :now", now=now))
            session.execute("delete from staff where expires_at <= :now", now=now)
            record(session, [_expired(grant, now) for grant in expired])

    def replace_all(self, grants: Sequence[Grant]) -> None:
        with self._engine.writing() as session:
            given = [grant for grant in grants if not grant.source]
            people = {grant.person for grant in (*all_grants(session), *given)}
            for person in sorted(people):
                put_grants(session, person, [grant for grant in given if grant.person == person])
                _journal(session, person)


def all_grants(session: Session) -> list[Grant]:
    """Return the roles of all people, ordered by person, role and domain."""
    return grants_of(session.many(_SELECT))


def put_grants(session: Session, person: str, grants: Sequence[Grant]) -> None:
    """Replace the roles that were given to a person. Those by groups stay."""
    session.execute("delete from staff where person = :person and source = ''", person=person)
    for grant in grants:
        _insert(session, grant)


def _of(session: Session, person: str) -> list[Grant]:
    return grants_of(session.many(f"{_SELECT} where person = :person", person=person))


def grants_of(rows: Sequence[Row]) -> list[Grant]:
    """Return the roles of these rows of `COLUMNS`, ordered by person, role and domain."""
    grants = [
        Grant(person, Role(role), domain, given_at, Actor.from_stored(who, via, address), source, group, expires_at)
        for person, role, domain, given_at, who, via, address, source, group, expires_at in rows
    ]
    # Not by the engine's collation.
    return sorted(grants, key=lambda grant: (grant.person, grant.role, grant.domain, grant.source, grant.group))


def _insert(session: Session, grant: Grant) -> int:
    return session.execute(
        _INSERT,
        grant.actor,
        person=grant.person,
        role=grant.role.value,
        domain=grant.domain,
        given_at=grant.given_at,
        actor=grant.actor.who,
        via=grant.actor.via,
        source=grant.source,
        group=grant.group,
        expires_at=grant.expires_at,
    )


def _detail(role: Role, domain: str) -> str:
    return f"{role} of {domain}" if domain else str(role)


def _role(grant: Grant) -> tuple[Role, str, str]:
    return grant.role, grant.domain, grant.group


def _entry(act: Act, grant: Grant, at: datetime, why: str = "") -> AuditEntry:
    detail = f"{_detail(grant.role, grant.domain)}, group {grant.group}{why}"
    return AuditEntry.new(at, act, grant.actor, grant.person, detail, domain=grant.domain)


def _expired(grant: Grant, now: datetime) -> AuditEntry:
    return _entry(Act.ROLE_REMOVED, grant, now, ", expired")


def _journal(session: Session, person: str) -> None:
    session.journal(partial(staff_line, person, [grant for grant in _of(session, person) if not grant.source]))
