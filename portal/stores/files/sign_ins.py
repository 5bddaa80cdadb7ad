"""The file store's own mail, sign-ins and sessions in SQLite."""

from __future__ import annotations

import hmac
import logging
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from uuid import UUID

from portal.model.errors import LinkInvalid, QuarantineError, RelayRefused
from portal.stores import DIGESTS_KEPT, LEASE, OutgoingMail, SignIn, SignInLimits
from portal.stores.files.database import from_micros, to_micros
from portal.stores.files.deliveries import queue_mail
from portal.stores.files.digests import BATCH, SqlitePeople

log = logging.getLogger("quarantine.store")

_MAIL_KEPT = timedelta(days=1)
_MAIL_BACK_OFF_MAX = timedelta(minutes=15)
_WRONG_CODES_MAX = 5
_SESSION_IDLE = timedelta(hours=12)
_SESSION_MAX = timedelta(days=7)
_SIGN_IN = "token_sha256, code_sha256, browser_sha256, recipient, client_ip, created_at, expires_at"

# What purge removes: table, its key, the time that counts, kept for.
_EXPIRING = (
    ("link_open", "id", "at", timedelta(days=1)),  # bursts are a matter of seconds
    ("digest", "id", "issued_at", DIGESTS_KEPT),
    ("sign_in", "token_sha256", "created_at", timedelta(days=1)),  # the limits count an hour back
    ("session", "session_sha256", "used_at", _SESSION_IDLE),
    ("session", "session_sha256", "started_at", _SESSION_MAX),
    ("outbox", "id", "queued_at", _MAIL_KEPT + LEASE),
)


class SqliteSignIns(SqlitePeople):
    """What `Store` says about our own mail and signing in."""

    # ---- our own mail

    def queue_mail(self, to: str, mail: bytes, now: datetime) -> None:
        with self.db.write() as connection:
            queue_mail(connection, to, mail, now)

    @contextmanager
    def sending(self, now: datetime) -> Iterator[OutgoingMail | None]:
        claim = os.urandom(16)
        with self.db.write() as connection:
            row = connection.execute(
                "SELECT id, recipient, mail, attempts, queued_at FROM outbox WHERE next_try_at <= ? "
                "ORDER BY next_try_at LIMIT 1",
                (to_micros(now),),
            ).fetchone()
            if row is not None:
                connection.execute(
                    "UPDATE outbox SET attempts = attempts + 1, next_try_at = ?, lease = ? WHERE id = ?",
                    (to_micros(now + LEASE), claim, row[0]),
                )
        if row is None:
            yield None
            return
        id, to, mail, attempts, queued_at = row
        try:
            yield OutgoingMail(UUID(bytes=id), to, mail, attempts + 1)
        except BaseException as error:
            try:
                with self.db.write() as connection:
                    if isinstance(error, RelayRefused) or to_micros(now - _MAIL_KEPT) >= queued_at:
                        connection.execute("DELETE FROM outbox WHERE id = ? AND lease = ?", (id, claim))
                    else:
                        pause = min(timedelta(seconds=10 * 2 ** min(attempts, 10)), _MAIL_BACK_OFF_MAX)
                        connection.execute(
                            "UPDATE outbox SET next_try_at = ?, lease = NULL WHERE id = ? AND lease = ?",
                            (to_micros(now + pause), id, claim),
                        )
            except QuarantineError as unrecorded:
                log.error("failed mail not recorded id=%s: %s", UUID(bytes=id), unrecorded)  # the lease runs out
            raise
        with self.db.write() as connection:
            connection.execute("DELETE FROM outbox WHERE id = ?", (id,))

    # ---- signing in

    def start_sign_in(self, sign_in: SignIn, limits: SignInLimits, to: str, mail: bytes) -> bool:
        now = sign_in.created_at
        minute, hour = to_micros(now - timedelta(minutes=1)), to_micros(now - timedelta(hours=1))
        count = "SELECT count(*) FROM sign_in WHERE created_at > ?"
        with self.db.write() as connection:
            for limit, condition, values in (
                (limits.per_recipient_minute, " AND recipient = ?", (minute, sign_in.recipient)),
                (limits.per_recipient_hour, " AND recipient = ?", (hour, sign_in.recipient)),
                (limits.per_ip_minute, " AND client_ip = ?", (minute, sign_in.client_ip)),
                (limits.per_ip_hour, " AND client_ip = ?", (hour, sign_in.client_ip)),
                (limits.all_minute, "", (minute,)),
            ):
                if connection.execute(count + condition, values).fetchone()[0] >= limit:
                    return False
            connection.execute(
                f"INSERT INTO sign_in ({_SIGN_IN}) VALUES (?, ?, ?, ?, ?, ?, ?)",  # noqa: S608 - a constant
                (
                    sign_in.token_sha256,
                    sign_in.code_sha256,
                    sign_in.browser_sha256,
                    sign_in.recipient,
                    sign_in.client_ip,
                    to_micros(now),
                    to_micros(sign_in.expires_at),
                ),
            )
            queue_mail(connection, to, mail, now)
        return True

    def sign_in(self, token_sha256: bytes, now: datetime) -> SignIn:
        with self.db.read() as connection:
            return _live_sign_in(connection, "token_sha256 = ?", token_sha256, now)

    def use_sign_in(self, token_sha256: bytes, now: datetime) -> SignIn:
        with self.db.write() as connection:
            found = _live_sign_in(connection, "token_sha256 = ?", token_sha256, now)
            _use_up(connection, found, now)
        return found

    def use_sign_in_code(self, browser_sha256: bytes, code_sha256: bytes, now: datetime) -> SignIn:
        with self.db.write() as connection:
            found = _live_sign_in(connection, "browser_sha256 = ?", browser_sha256, now)
            right = hmac.compare_digest(found.code_sha256, code_sha256)
            if right:
                _use_up(connection, found, now)
            else:
                connection.execute(
                    "UPDATE sign_in SET wrong_codes = wrong_codes + 1 WHERE token_sha256 = ?", (found.token_sha256,)
                )
        if not right:  # only now: an exception inside would undo the counting
            raise LinkInvalid("this code is not right")
        return found

    def start_session(self, session_sha256: bytes, recipient: str, now: datetime) -> None:
        with self.db.write() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO session (session_sha256, recipient, started_at, used_at) VALUES (?, ?, ?, ?)",
                (session_sha256, recipient, to_micros(now), to_micros(now)),
            )

    def session(self, session_sha256: bytes, now: datetime) -> str | None:
        with self.db.read() as connection:
            row = connection.execute(
                "SELECT recipient, used_at FROM session WHERE session_sha256 = ? AND used_at > ? AND started_at > ?",
                (session_sha256, to_micros(now - _SESSION_IDLE), to_micros(now - _SESSION_MAX)),
            ).fetchone()
        if row is None:
            return None
        recipient, used_at = row
        if used_at <= to_micros(now - timedelta(minutes=1)):
            with self.db.write(durable=False) as connection:
                connection.execute(
                    "UPDATE session SET used_at = ? WHERE session_sha256 = ?", (to_micros(now), session_sha256)
                )
        return str(recipient)

    def end_session(self, session_sha256: bytes) -> None:
        with self.db.write() as connection:
            connection.execute("DELETE FROM session WHERE session_sha256 = ?", (session_sha256,))

    # ---- age

    def _sweep_expired(self, now: datetime) -> None:
        """Remove what has expired, in small transactions."""
        for table, key, column, kept_for in _EXPIRING:
            removed = BATCH
            while removed == BATCH:
                with self.db.write(durable=False) as connection:
                    removed = connection.execute(
                        f"DELETE FROM {table} WHERE {key} IN "  # noqa: S608 - constants
                        f"(SELECT {key} FROM {table} WHERE {column} < ? LIMIT {BATCH})",
                        (to_micros(now - kept_for),),
                    ).rowcount


def _live_sign_in(connection: sqlite3.Connection, condition: str, value: bytes, now: datetime) -> SignIn:
    row = connection.execute(
        f"SELECT {_SIGN_IN} FROM sign_in WHERE {condition} AND used_at IS NULL AND expires_at > ? "  # noqa: S608
        "AND wrong_codes < ? ORDER BY created_at DESC LIMIT 1",
        (value, to_micros(now), _WRONG_CODES_MAX),
    ).fetchone()
    if row is None:
        raise LinkInvalid("this sign-in is not known, was used, or is too old")
    token, code, browser, recipient, client_ip, created_at, expires_at = row
    return SignIn(token, code, browser, recipient, client_ip, from_micros(created_at), from_micros(expires_at))


def _use_up(connection: sqlite3.Connection, found: SignIn, now: datetime) -> None:
    connection.execute("UPDATE sign_in SET used_at = ? WHERE token_sha256 = ?", (to_micros(now), found.token_sha256))
