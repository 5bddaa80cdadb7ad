"""Mailed sign-ins and sessions, in tables `sign_in` and `session`."""

from __future__ import annotations

import hmac
from datetime import datetime, timedelta

from portal.model.errors import LinkInvalid
from portal.stores import rules
from portal.stores.contracts import SignIns
from portal.stores.records import QueuedMail, SignIn, SignInLimits
from portal.stores.shared.outbox import queue
from portal.stores.shared.session import Engine, Session


class SqlSignIns(SignIns):
    """See `SignIns`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def start(self, sign_in: SignIn, limits: SignInLimits, mail: QueuedMail) -> bool:
        now = sign_in.created_at
        with self._engine.writing() as session:
            session.lock("sign-in")  # counting and adding are one act
            row = session.one(
                "select (select count(*) from sign_in where recipient = :recipient and created_at > :minute),"
                " (select count(*) from sign_in where recipient = :recipient and created_at > :hour),"
                " (select count(*) from sign_in where client_ip = :client_ip and created_at > :minute),"
                " (select count(*) from sign_in where client_ip = :client_ip and created_at > :hour),"
                " (select count(*) from sign_in where created_at > :minute)",
                recipient=sign_in.recipient,
                client_ip=sign_in.client_ip,
                minute=now - timedelta(minutes=1),
                hour=now - timedelta(hours=1),
            )
            allowed = (
                *(limits.per_recipient_minute, limits.per_recipient_hour),
                *(limits.per_ip_minute, limits.per_ip_hour, limits.all_minute),
            )
            if row is None or any(count >= limit for count, limit in zip(row, allowed, strict=True)):
                return False
            session.execute(
                "insert into sign_in"
                " (token_sha256, code_sha256, browser_sha256, recipient, client_ip, created_at, expires_at)"
                " values (:token, :code, :browser, :recipient, :client_ip, :now, :expires_at)",
                token=sign_in.token_sha256,
                code=sign_in.code_sha256,
                browser=sign_in.browser_sha256,
                recipient=sign_in.recipient,
                client_ip=sign_in.client_ip,
                now=now,
                expires_at=sign_in.expires_at,
            )
            queue(session, mail, now)
        return True

    def get(self, token_sha256: bytes, now: datetime) -> SignIn:
        with self._engine.reading() as session:
            return _valid(session, "token_sha256", token_sha256, now)

    def use(self, token_sha256: bytes, now: datetime) -> SignIn:
        with self._engine.writing() as session:
            found = _valid(session, "token_sha256", token_sha256, now, for_update=True)
            _use_up(session, found, now)
        return found

    def use_code(self, browser_sha256: bytes, code_sha256: bytes, now: datetime) -> SignIn:
        with self._engine.writing() as session:
            found = _valid(session, "browser_sha256", browser_sha256, now, for_update=True)
            is_right = hmac.compare_digest(found.code_sha256, code_sha256)
            if is_right:
                _use_up(session, found, now)
            else:
                session.execute(
                    "update sign_in set wrong_codes = wrong_codes + 1 where token_sha256 = :token",
                    token=found.token_sha256,
                )
        if not is_right:  # only now: an exception inside would undo the counting
            raise LinkInvalid("this code is not right")
        return found

    def start_session(self, session_sha256: bytes, recipient: str, now: datetime) -> None:
        with self._engine.writing() as session:
            session.execute(
                "insert into session (session_sha256, recipient, started_at, used_at)"
                " values (:sha256, :recipient, :now, :now) on conflict (session_sha256) do update"
                " set recipient = excluded.recipient, started_at = excluded.started_at, used_at = excluded.used_at",
                sha256=session_sha256,
                recipient=recipient,
                now=now,
            )

    def session(self, session_sha256: bytes, now: datetime) -> str | None:
        with self._engine.reading() as session:
            row = session.one(
                "select recipient, used_at from session"
                " where session_sha256 = :sha256 and used_at > :idle_since and started_at > :begun_since",
                sha256=session_sha256,
                idle_since=now - rules.SESSION_IDLE,
                begun_since=now - rules.SESSION_MAX,
            )
        if row is None:
            return None
        recipient, used_at = row
        if used_at <= now - rules.SESSION_USE_RECORDED:
            with self._engine.writing(durable=False) as session:
                session.execute(
                    "update session set used_at = :now where session_sha256 = :sha256", now=now, sha256=session_sha256
                )
        return str(recipient)

    def end_session(self, session_sha256: bytes) -> None:
        with self._engine.writing() as session:
            session.execute("delete from session where session_sha256 = :sha256", sha256=session_sha256)


def _valid(session: Session, column: str, value: bytes, now: datetime, *, for_update: bool = False) -> SignIn:
    # Locked, one of many who use it at once is the first; the others see it used.
    row = session.one(
        "select token_sha256, code_sha256, browser_sha256, recipient, client_ip, created_at, expires_at from sign_in"
        f" where {column} = :value and used_at is null and expires_at > :now and wrong_codes < :wrong_codes_max"
        " order by created_at desc limit 1",
        for_update=for_update,
        value=value,
        now=now,
        wrong_codes_max=rules.WRONG_CODES_MAX,
    )
    if row is None:
        raise LinkInvalid("this sign-in is not known, was used, or is too old")
    return SignIn(*row)


def _use_up(session: Session, found: SignIn, now: datetime) -> None:
    session.execute("update sign_in set used_at = :now where token_sha256 = :token", now=now, token=found.token_sha256)
