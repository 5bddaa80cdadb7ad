"""Second factors of staff, in table `second_factor`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any

from portal.model.audit import Act, AuditEntry
from portal.model.message import Actor
from portal.model.second_factor import FactorAnswer, FactorOutcome, SecondFactor, time_step
from portal.stores import lifecycle
from portal.stores.contracts import SecondFactors
from portal.stores.journal import second_factor_line
from portal.stores.records import QueuedMail
from portal.stores.shared.audit import record
from portal.stores.shared.outbox import queue
from portal.stores.shared.session import Engine, Row, Session

_COLUMNS = "person, salt, key_fingerprint, created_at, recovery, last_step"
_SELECT = f"select {_COLUMNS} from second_factor"
_INSERT = (
    f"insert into second_factor ({_COLUMNS}) values (:person, :salt, :key, :created_at, :recovery, :last_step)"
    " on conflict do nothing"
)
_UPDATE = (
    "update second_factor set salt = :salt, key_fingerprint = :key, created_at = :created_at, recovery = :recovery,"
    " last_step = :last_step where person = :person"
)
_TRIES = "update second_factor set tries = :tries, tried_at = :at where person = :person"
_GIVE = "update session set factor_given = true where session_sha256 = :session and recipient = :person"
_END_USE = "update session set factor_given = false, staff_until = null where recipient = :person"
_TAKE_FROM_OTHERS = "update session set factor_given = false where recipient = :person and session_sha256 <> :session"


class SqlSecondFactors(SecondFactors):
    """See `SecondFactors`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def get(self, person: str) -> SecondFactor | None:
        with self._engine.reading() as session:
            return _get(session, person)

    def all(self) -> Sequence[SecondFactor]:
        with self._engine.reading() as session:
            return all_factors(session)

    def put(
        self,
        factor: SecondFactor,
        replaces: str,
        session_sha256: bytes,
        actor: Actor,
        now: datetime,
        *,
        mail: QueuedMail | None = None,
    ) -> bool:
        person = factor.person
        with self._engine.writing() as session:
            present = _get(session, person, for_update=True)
            is_same = present is not None and present.salt == factor.salt
            if present is not None and is_same:
                factor = replace(factor, last_step=present.last_step)
            if replaces != (present.version if present else ""):
                return False
            # Of two first ones at the same time only one is inserted.
            if session.execute(_UPDATE if present else _INSERT, **_values(factor)) != 1:
                return False
            if not is_same:
                session.execute(_TAKE_FROM_OTHERS, person=person, session=session_sha256)
                session.execute(_TRIES, person=person, tries=0, at=None)
            session.execute(_GIVE, person=person, session=session_sha256)
            detail = "recovery codes" if is_same else ""
            record(session, [AuditEntry.new(now, Act.SECOND_FACTOR_SET, actor, person, detail)])
            session.journal(partial(second_factor_line, person, factor))
            if mail is not None:
                queue(session, mail, now)
        return True

    def check(
        self,
        person: str,
        session_sha256: bytes,
        step_of: Callable[[SecondFactor], int | None],
        recovery_sha256: str,
        actor: Actor,
        now: datetime,
        *,
        mail_of: Callable[[FactorAnswer], QueuedMail | None] = lambda _: None,
    ) -> FactorAnswer:
        with self._engine.writing() as session:
            # The lock of the row: codes of a person are compared one after the other, in all processes.
            row = session.one(f"{_SELECT} where person = :person", for_update=True, person=person)
            if row is None:
                return FactorAnswer(FactorOutcome.MISSING)
            given = session.one(
                "select factor_given from session where session_sha256 = :session and recipient = :person",
                session=session_sha256,
                person=person,
            )
            if given and given[0]:  # the form was sent twice
                return FactorAnswer(FactorOutcome.RIGHT)
            answer = _compared(session, _factor(row), session_sha256, step_of, recovery_sha256, actor, now)
            mail = mail_of(answer)
            if mail is not None:
                queue(session, mail, now)
            return answer

    def put_set_up_code(
        self, factor: SecondFactor, actor: Actor, now: datetime, *, mail: QueuedMail | None = None
    ) -> None:
        with self._engine.writing() as session:
            put_factor(session, factor.person, factor)
            session.execute(_END_USE, person=factor.person)
            record(session, [AuditEntry.new(now, Act.SECOND_FACTOR_RESET, actor, factor.person, "set-up code")])
            session.journal(partial(second_factor_line, factor.person, factor))
            if mail is not None:
                queue(session, mail, now)

    def reset(self, person: str, actor: Actor, now: datetime, *, mail: QueuedMail | None = None) -> bool:
        with self._engine.writing() as session:
            removed = session.execute("delete from second_factor where person = :person", person=person) == 1
            if removed:
                session.execute(_END_USE, person=person)
                record(session, [AuditEntry.new(now, Act.SECOND_FACTOR_RESET, actor, person)])
                session.journal(partial(second_factor_line, person, None))
            if removed and mail is not None:
                queue(session, mail, now)
        return removed

    def replace_all(self, factors: Sequence[SecondFactor]) -> None:
        with self._engine.writing() as session:
            wanted = {factor.person: factor for factor in factors}
            for person in sorted({*wanted, *(factor.person for factor in all_factors(session))}):
                put_factor(session, person, wanted.get(person))
                session.journal(partial(second_factor_line, person, wanted.get(person)))


def all_factors(session: Session) -> list[SecondFactor]:
    """Return the second factors of all people, ordered by person."""
    return sorted(map(_factor, session.many(_SELECT)), key=lambda factor: factor.person)  # not by a collation


def put_factor(session: Session, person: str, factor: SecondFactor | None) -> None:
    """Replace the second factor of a person by that of a journal or of another store, None to remove it."""
    session.execute("delete from second_factor where person = :person", person=person)
    if factor is not None:
        session.execute(_INSERT, **_values(factor))


def _compared(
    session: Session,
    factor: SecondFactor,
    session_sha256: bytes,
    step_of: Callable[[SecondFactor], int | None],
    recovery_sha256: str,
    actor: Actor,
    now: datetime,
) -> FactorAnswer:
    person = factor.person
    if recovery_sha256:
        if not factor.accepts(recovery_sha256, now):
            return FactorAnswer(FactorOutcome.WRONG)
        used = replace(factor, recovery=tuple(each for each in factor.recovery if each != recovery_sha256))
        answer = FactorAnswer(FactorOutcome.RECOVERED, left=len(used.recovery))
        detail = f"{answer.left} left" if factor.has_app else "set-up code"
        record(session, [AuditEntry.new(now, Act.RECOVERY_CODE_USED, actor, person, detail)])
        session.journal(partial(second_factor_line, person, used))
    else:
        tries, tried_at = _tries(session, person, now)
        until = tried_at + lifecycle.factor_pause(tries)
        if now < until:
            return FactorAnswer(FactorOutcome.LIMITED, until)
        # A last step that no code can have now comes from a clock that was ahead.
        last_step = factor.last_step if factor.last_step <= time_step(now) + 1 else 0
        step = step_of(factor)
        if step is None or step <= last_step:
            return _wrong(session, person, tries + 1, actor, now)
        answer, used = FactorAnswer(FactorOutcome.RIGHT), replace(factor, last_step=step)
    session.execute(_UPDATE, **_values(used))
    session.execute(_TRIES, person=person, tries=0, at=None)
    session.execute(_GIVE, person=person, session=session_sha256)
    return answer


def _tries(session: Session, person: str, now: datetime) -> tuple[int, datetime]:
    """Return how many wrong codes of the app count, and when the last one was typed."""
    row = session.one("select tries, tried_at from second_factor where person = :person", person=person)
    tries, tried_at = row or (0, None)
    return lifecycle.factor_tries(tries, tried_at, now), tried_at or now


def _wrong(session: Session, person: str, tries: int, actor: Actor, now: datetime) -> FactorAnswer:
    session.execute(_TRIES, person=person, tries=tries, at=now)
    pause = lifecycle.factor_pause(tries)
    if not pause:
        return FactorAnswer(FactorOutcome.WRONG)
    detail = f"{tries} wrong codes, no more for {pause.total_seconds() / 60:.0f} minutes"
    record(session, [AuditEntry.new(now, Act.SECOND_FACTOR_REFUSED, actor, person, detail)])
    return FactorAnswer(FactorOutcome.LOCKED, now + pause)


def _get(session: Session, person: str, *, for_update: bool = False) -> SecondFactor | None:
    row = session.one(f"{_SELECT} where person = :person", for_update=for_update, person=person)
    return _factor(row) if row else None


def _factor(row: Row) -> SecondFactor:
    person, salt, key, created_at, recovery, last_step = row
    return SecondFactor(person, bytes(salt), key, created_at, tuple(recovery.split()), last_step)


def _values(factor: SecondFactor) -> dict[str, Any]:
    return {
        "person": factor.person,
        "salt": factor.salt,
        "key": factor.key,
        "created_at": factor.created_at,
        "recovery": " ".join(factor.recovery),
        "last_step": factor.last_step,
    }
