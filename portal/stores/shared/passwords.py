"""Checks of passwords, in table `password_try`."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from portal.stores import lifecycle
from portal.stores.contracts import PasswordTries
from portal.stores.records import Admission, PasswordLimits, PasswordTry
from portal.stores.shared.session import Engine

_HOUR = timedelta(hours=1)
_QUARTER_HOUR = timedelta(minutes=15)

_COUNTS = "select " + ", ".join(
    (
        "(select count(*) from password_try where mailbox = :mailbox and checked_until > :now)",
        "(select count(*) from password_try"
        " where mailbox = :mailbox and client_ip = :client_ip and tried_at > :quarter_hour)",
        "(select count(*) from password_try where mailbox = :mailbox and tried_at > :hour)",
        *(
            "(select coalesce(sum(case when n > :of_mailbox then :of_mailbox else n end), 0) from"
            " (select count(*) as n from password_try"
            f" where {column} = :{column} and tried_at > :hour and is_local = :is_local group by mailbox) mailboxes)"
            for column in ("client_ip", "client_56", "client_48")
        ),
    )
)
_INSERT = (
    "insert into password_try (id, mailbox, client_ip, client_56, client_48, is_local, tried_at, checked_until)"
    " values (:id, :mailbox, :client_ip, :client_56, :client_48, :is_local, :now, :until)"
)


class SqlPasswordTries(PasswordTries):
    """See `PasswordTries`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def begin(self, attempt: PasswordTry, limits: PasswordLimits) -> Admission:
        now = attempt.tried_at
        counted: dict[str, Any] = {
            "mailbox": lifecycle.account(attempt.recipient),
            "client_ip": attempt.client_ip,
            "client_56": lifecycle.wider_network(attempt.client_ip, 56),
            "client_48": lifecycle.wider_network(attempt.client_ip, 48),
            "is_local": attempt.is_local,
            "now": now,
        }
        with self._engine.writing() as session:
            session.lock("password")  # no other check is added between counting and adding
            row = session.one(
                _COUNTS,
                hour=now - _HOUR,
                quarter_hour=now - _QUARTER_HOUR,
                of_mailbox=limits.of_mailbox_in_network,
                **counted,
            )
            assert row is not None  # noqa: S101 - counts are always one row
            running, pair, mailbox, client_ip, client_56, client_48 = row
            if (
                pair >= limits.per_pair_quarter_hour
                or mailbox >= limits.per_mailbox_hour
                or client_ip >= limits.per_ip_hour
                or client_56 >= limits.per_56_hour
                or client_48 >= limits.per_48_hour
            ):
                return Admission.LIMITED
            if running:
                return Admission.BUSY
            session.execute(_INSERT, id=attempt.id, until=now + lifecycle.LEASE, **counted)
        return Admission.GRANTED

    def wrong(self, attempt: PasswordTry) -> None:
        with self._engine.writing() as session:
            session.execute("update password_try set checked_until = null where id = :id", id=attempt.id)

    def right(self, attempt: PasswordTry) -> None:
        delete = "delete from password_try where mailbox = :mailbox and client_ip = :client_ip"
        with self._engine.writing() as session:
            session.execute(delete, mailbox=lifecycle.account(attempt.recipient), client_ip=attempt.client_ip)

    def unanswered(self, attempt: PasswordTry) -> None:
        with self._engine.writing() as session:
            session.execute("delete from password_try where id = :id", id=attempt.id)
