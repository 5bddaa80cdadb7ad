"""Mailed sign-ins, sessions and kept forms, in tables `sign_in`, `session` and `kept_form`."""

from __future__ import annotations

import hmac
from collections.abc import Collection, Sequence
from dataclasses import astuple, replace
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

from portal.model.errors import CodesSuspended, LinkInvalid, SignInInvalid
from portal.model.schedule import Preferences
from portal.stores import lifecycle
from portal.stores.contracts import SignIns
from portal.stores.records import MAILED_LINK, Method, QueuedMail, SignedIn, SignIn, SignInLimits, StartedSession
from portal.stores.shared import staff
from portal.stores.shared.jobs import COLUMNS, job_of
from portal.stores.shared.outbox import queue
from portal.stores.shared.session import Engine, Session

_MINUTE = timedelta(minutes=1)


class _Counted(NamedTuple):
    """Values by which the rate limits count a request, in addition to `SignIn.client_ip`."""

    mailbox: str
    client_56: str
    client_48: str
    requested_for: str


# Requests for foreign addresses are counted apart: they must not use up the limits of requests for ours.
_FOREIGN, _OURS = ["foreign"], ["known", "local", "decoy"]  # "decoy": a local one whose mail was not sent


def _count(column: str, since: str, condition: str = "") -> str:
    same = f"{column} = :{column} and requested_for in :alike{condition}"
    return f"(select count(*) from sign_in where {same} and created_at > :{since})"


# Requests for an address with a plus part are counted together with all others of its mailbox. Others must not suffer
# from these: the mailed link of another recipient is of no use to them. Used sign-ins do not count: a recipient who
# signed out, or needs another browser, gets a new link at once, and nobody else can use them up.
_OF_MAILBOX = " and requested_for <> 'decoy' and used_at is null and (recipient = :recipient or :recipient <> :mailbox)"
_COUNTS = "select " + ", ".join(  # in the order of `SignInLimits`
    (
        *(_count("mailbox", since, _OF_MAILBOX) for since in ("minute", "ten_minutes")),
        *(_count(column, since) for column in ("client_ip", "client_56", "client_48") for since in ("minute", "hour")),
        "(select count(*) from sign_in where requested_for = :requested_for and created_at > :minute)",
    )
)

_OF_BROWSER = "where recipient = :recipient and browser_sha256 = :browser"

GOES_ON = "used_at > :used and started_at > :started"

_SIGN_IN = "token_sha256, code_sha256, browser_sha256, recipient, client_ip, created_at, expires_at, destination"
_COUNTED = ", ".join(_Counted._fields)
_INSERT = (
    f"insert into sign_in ({_SIGN_IN}, {_COUNTED})"
    f" values (:{_SIGN_IN.replace(', ', ', :')}, :{_COUNTED.replace(', ', ', :')})"
)


# Only those that could be right: nobody gets the code of a decoy.
_WRONG_CODES_OF_ALL = (
    "select coalesce(sum(wrong_codes), 0) from sign_in where created_at > :since"
    " and requested_for in ('known', 'local')"
)


class SqlSignIns(SignIns):
    """See `SignIns`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def start(self, sign_in: SignIn, limits: SignInLimits, mail: QueuedMail, identities: Collection[str] = ()) -> bool:
        now = sign_in.created_at
        with self._engine.writing() as session:
            session.lock("sign-in")  # no other sign-in is added between counting and adding
            # Also asked for an address that may not sign in: a statement takes a part of the time of the answer.
            requested_for = _requested_for(session, [sign_in.recipient, *identities])
            counted = _Counted(
                lifecycle.mailbox(sign_in.recipient),
                lifecycle.wider_network(sign_in.client_ip, 56),
                lifecycle.wider_network(sign_in.client_ip, 48),
                requested_for if mail.to else "foreign",
            )
            counts = session.one(
                _COUNTS,
                sign_in,
                counted,
                alike=_FOREIGN if counted.requested_for == "foreign" else _OURS,
                minute=now - _MINUTE,
                ten_minutes=now - 10 * _MINUTE,
                hour=now - 60 * _MINUTE,
            )
            assert counts is not None  # noqa: S101 - counts are always one row
            *requests, unknown = counts
            if any(count >= limit for count, limit in zip(requests, astuple(limits)[:-1], strict=True)):
                return False
            is_mailed = counted.requested_for == "known" or unknown < limits.unknown_minute
            if not is_mailed and mail.to:
                counted = counted._replace(requested_for="decoy")
            session.execute(_INSERT, sign_in, counted)
            # A decoy is as much work as a mail, so the time of the answer does not disclose who is known.
            queue(session, mail if is_mailed else replace(mail, to=""), now)
        return is_mailed

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
            session.lock("sign-in")  # no other code is counted in between
            row = session.one(_WRONG_CODES_OF_ALL, since=now - 60 * _MINUTE)
            if row is not None and row[0] >= lifecycle.WRONG_CODES_OF_ALL_MAX:
                raise CodesSuspended("too many wrong sign-in codes were entered")
            found = _valid(session, "browser_sha256", browser_sha256, now, for_update=True)
            select = "select wrong_codes from sign_in where token_sha256 = :token_sha256"
            wrong_codes = session.one(select, found)
            if wrong_codes is None or wrong_codes[0] >= lifecycle.WRONG_CODES_MAX:
                raise LinkInvalid("too many wrong codes were entered for this sign-in")
            is_right = hmac.compare_digest(found.code_sha256, code_sha256)
            if is_right:
                _use_up(session, found, now)
            else:
                session.execute(
                    "update sign_in set wrong_codes = wrong_codes + 1 where token_sha256 = :token_sha256", found
                )
        if not is_right:  # after the commit: an exception inside would roll the counting back
            raise LinkInvalid("this code is wrong")
        return found

    def start_session(
        self,
        session_sha256: bytes,
        recipient: str,
        now: datetime,
        client: str = "",
        method: Method = MAILED_LINK,
        authenticated_at: datetime | None = None,
    ) -> None:
        insert = (
            "insert into session (session_sha256, recipient, started_at, used_at, client, staff_until,"
            " method, method_subject, method_session, authenticated_at)"
            " values (:sha256, :recipient, :now, :now, :client, :staff_until, :method, :subject, :session,"
            " :authenticated_at)"
            " on conflict (session_sha256) do update"
            " set recipient = excluded.recipient, started_at = excluded.started_at, used_at = excluded.used_at,"
            " client = excluded.client, staff_until = excluded.staff_until, factor_given = false,"
            " method = excluded.method,"
            " method_subject = excluded.method_subject, method_session = excluded.method_session,"
            " authenticated_at = excluded.authenticated_at"
        )
        with self._engine.writing() as session:
            session.execute(
                insert,
                sha256=session_sha256,
                recipient=recipient,
                now=now,
                client=client,
                staff_until=now + lifecycle.STAFF_IDLE,
                method=method.name,
                subject=method.subject,
                session=method.session,
                authenticated_at=authenticated_at,
            )

    def session(self, session_sha256: bytes, now: datetime, job_id: UUID | None = None) -> SignedIn | None:
        role = [f"t.{column}" for column in staff.COLUMNS]
        job = [f"j.{column}" for column in COLUMNS] if job_id else ["null"]
        select = (
            "select s.recipient, s.used_at, r.preferences, s.authenticated_at, s.staff_until,"
            " exists (select 1 from second_factor where person = s.recipient), s.factor_given,"
            f" s.method, s.method_subject, s.method_session, {', '.join([*role, *job])}"
            " from session s left join recipient r on r.recipient = s.recipient"
            " left join staff t on t.person = s.recipient"
            f"{' left join job j on j.id = :job_id' if job_id else ''}"
            f" where s.session_sha256 = :sha256 and {GOES_ON}"
        )
        with self._engine.reading() as session:
            rows = session.many(select, sha256=session_sha256, job_id=job_id, **session_limits(now))
        if not rows:
            return None
        recipient, used_at, preferences, authenticated_at, staff_until, has_factor, factor_given = rows[0][:7]
        method, job_row = rows[0][7:10], rows[0][10 + len(role) :]
        roles = [row[10 : 10 + len(role)] for row in rows if row[10] is not None]
        if used_at <= now - lifecycle.SESSION_USE_RECORDED:
            update = "update session set used_at = :now where session_sha256 = :sha256"
            with self._engine.writing(durable=False) as session:
                session.execute(update, now=now, sha256=session_sha256)
        return SignedIn(
            recipient,
            Preferences.from_json(preferences),
            authenticated_at,
            staff_until,
            tuple(staff.grants_of(roles)),
            Method(*method),
            bool(has_factor),
            bool(factor_given),
            job_of(job_row) if job_row[0] else None,
        )

    def extend_staff_use(self, session_sha256: bytes, until: datetime) -> None:
        update = "update session set staff_until = :until where session_sha256 = :sha256 and staff_until is not null"
        with self._engine.writing(durable=False) as session:
            session.execute(update, until=until, sha256=session_sha256)

    def sessions(self, recipient: str, limit: int, now: datetime) -> Sequence[StartedSession]:
        select = (
            "select session_sha256, client, started_at, used_at, method from session"
            f" where recipient = :recipient and {GOES_ON} order by used_at desc, session_sha256 limit :limit"
        )
        with self._engine.reading() as session:
            rows = session.many(select, recipient=recipient, limit=limit, **session_limits(now))
        return [StartedSession(*row) for row in rows]

    def end_sessions_of_method(self, method: Method, before: datetime) -> Sequence[tuple[str, int]]:
        same = "method = :name and started_at < :before"
        same += " and method_subject = :subject" if method.subject else ""
        same += " and method_session = :session" if method.session else ""
        with self._engine.writing() as session:
            rows = session.many(
                f"select recipient, count(*) from session where {same} group by recipient", method, before=before
            )
            session.execute(f"delete from session where {same}", method, before=before)
        return [(recipient, count) for recipient, count in rows]

    def end_session(self, session_sha256: bytes) -> str | None:
        with self._engine.writing() as session:
            row = session.one("select recipient from session where session_sha256 = :sha256", sha256=session_sha256)
            session.execute("delete from session where session_sha256 = :sha256", sha256=session_sha256)
        return row[0] if row else None

    def end_sessions(self, recipient: str, only: bytes | None = None, *, but: bytes | None = None) -> int:
        delete = "delete from session where recipient = :recipient"
        delete += " and session_sha256 = :only" if only is not None else ""
        delete += " and session_sha256 <> :but" if but is not None else ""
        with self._engine.writing() as session:
            return session.execute(delete, recipient=recipient, only=only, but=but)

    def keep_form(self, recipient: str, browser_sha256: bytes, form: str, now: datetime) -> None:
        insert = (
            "insert into kept_form (recipient, browser_sha256, form, kept_at)"
            " values (:recipient, :browser, :form, :now) on conflict (recipient) do update"
            " set browser_sha256 = excluded.browser_sha256, form = excluded.form, kept_at = excluded.kept_at"
        )
        with self._engine.writing(durable=False) as session:
            session.execute(insert, recipient=recipient, browser=browser_sha256, form=form, now=now)

    def kept_form(self, recipient: str, browser_sha256: bytes, now: datetime) -> str | None:
        select = f"select form from kept_form {_OF_BROWSER} and kept_at > :since"
        since = now - lifecycle.FORMS_KEPT
        with self._engine.reading() as session:
            row = session.one(select, recipient=recipient, browser=browser_sha256, since=since)
        return row[0] if row else None

    def forget_form(self, recipient: str, browser_sha256: bytes) -> None:
        with self._engine.writing(durable=False) as session:
            session.execute(f"delete from kept_form {_OF_BROWSER}", recipient=recipient, browser=browser_sha256)


def session_limits(now: datetime) -> dict[str, Any]:
    """Return the parameters of `GOES_ON`."""
    return {"used": now - lifecycle.SESSION_IDLE, "started": now - lifecycle.SESSION_MAX}


def _requested_for(session: Session, identities: list[str]) -> str:
    """Return "known" if messages were held for one of these or it has preferences, else "local"."""
    # A row in either case: the time of the answer must not say which one it is.
    row = session.one("select count(*) from recipient where recipient in :identities", identities=identities)
    return "known" if row and row[0] else "local"


def _valid(session: Session, column: str, value: bytes, now: datetime, *, for_update: bool = False) -> SignIn:
    # With the row locked, only one of several concurrent uses succeeds; the others see that it is used.
    select = (
        f"select {_SIGN_IN} from sign_in"
        f" where {column} = :value and used_at is null and expires_at > :now"
        " order by created_at desc limit 1"
    )
    row = session.one(select, for_update=for_update, value=value, now=now)
    if row is None:
        raise SignInInvalid("this sign-in is unknown, used, or expired")
    return SignIn(*row)


def _use_up(session: Session, found: SignIn, now: datetime) -> None:
    session.execute("update sign_in set used_at = :now where token_sha256 = :token_sha256", found, now=now)
