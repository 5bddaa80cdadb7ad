"""The PostgreSQL store's digests and who is told when, our own mail, sign-ins, sessions, and the store's notes."""

# ruff: noqa: S608 - queries are put together from LiteralString, which the type checker sees to

from __future__ import annotations

import hmac
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, LiteralString
from uuid import UUID, uuid4

from portal.model.errors import LinkInvalid, NotFound, QuarantineError, RelayRefused
from portal.model.message import Delivery, Reader, first_id, held_at, new_id
from portal.model.schedule import Preferences
from portal.stores import (
    DIGESTS_KEPT,
    LEASE,
    Claims,
    Digest,
    Figures,
    Opening,
    OutgoingMail,
    Person,
    SignIn,
    SignInLimits,
    Unsent,
    address_of,
    reader_of,
    unclaimable,
)
from portal.stores.postgres import days, rows
from portal.stores.postgres.database import Connection
from portal.stores.postgres.rows import utc
from portal.stores.postgres.subscribers import PERSON, PostgresWishes, person_from, queue_mail

log = logging.getLogger("quarantine.store")

_PING_SECONDS = 1.0  # with the pool's second: an answer within two
_PLANNED_AT_MOST = timedelta(days=10)  # once a week, and a day that a zone left out
_CLAIMED_AT_MOST = timedelta(days=1)
_MAIL_KEPT = timedelta(days=1)
_MAIL_BACK_OFF_MAX = timedelta(minutes=15)
_WRONG_CODES_MAX = 5
_SESSION_IDLE = timedelta(hours=12)
_SESSION_MAX = timedelta(days=7)
_OPENINGS_AT_MOST = 500
_BATCH = 1000  # rows a sweep deletes in one transaction
_TALLY = "tally."
_SIGN_IN_LOCK = 0x71736967  # advisory: counting and adding are one act

_DIGEST: LiteralString = (
    "select id, recipient, address, issued_at, message_ids, numbers,"
    " (select preferences from recipient r where r.recipient = digest.recipient) from digest "
)
_HAS_NEWS: LiteralString = "news_since is not null and stopped_at is null"
_UNANNOUNCED: LiteralString = (
    "where d.recipient = %s and d.state = 'held' and d.announced_at is null order by d.message_id, d.number limit %s"
)
_UNANNOUNCED_OF_U: LiteralString = _UNANNOUNCED.replace("d.recipient = %s", "d.recipient = u.recipient")
_UNTOLD_OF_U: LiteralString = (
    "where d.recipient = u.recipient and d.state = 'held' and d.announced_at is null and not exists"
    " (select from announced_to t where t.message_id = d.message_id and t.number = d.number and t.reader = u.reader)"
    " order by d.message_id, d.number limit %s"
)
_CLAIMABLE: LiteralString = (
    "select recipient, address, stopped_at, news_since, next_digest_at, lease_until, digest_id, preferences, failures,"
    " lease from recipient "
)
_SIGN_IN: LiteralString = "token_sha256, code_sha256, browser_sha256, recipient, client_ip, created_at, expires_at"
_SWEEPS: tuple[tuple[LiteralString, LiteralString, LiteralString, timedelta], ...] = (
    ("link_open", "id", "at", timedelta(days=1)),  # bursts are a matter of seconds
    ("digest", "id", "issued_at", DIGESTS_KEPT),
    ("sign_in", "token_sha256", "created_at", timedelta(days=1)),  # the limits count an hour back
    ("session", "session_sha256", "used_at", _SESSION_IDLE),
    ("session", "session_sha256", "started_at", _SESSION_MAX),
    ("outbox", "id", "queued_at", _MAIL_KEPT + LEASE),
)


class PostgresPeople(PostgresWishes):
    """What `Store` says about digests, our own mail, signing in, and the store itself."""

    # ---- life

    def ping(self) -> None:
        # A write, since a full disk or a standby still answers questions.
        with self.database.transaction(_PING_SECONDS) as connection:
            connection.execute(
                "insert into setting values ('store.ping', now()::text)"
                " on conflict (name) do update set value = excluded.value"
            )

    def remember(self, name: str, value: str, *, replace: bool = False) -> str:
        keep: LiteralString = "do update set value = excluded.value" if replace else "do nothing"
        with self.database.transaction() as connection:
            connection.execute(f"insert into setting values (%s, %s) on conflict (name) {keep}", [name, value])
            row = connection.execute("select value from setting where name = %s", [name]).fetchone()
        return str(row[0]) if row else value

    def recall(self, name: str) -> str | None:
        with self.database.transaction() as connection:
            row = connection.execute("select value from setting where name = %s", [name]).fetchone()
        return str(row[0]) if row else None

    def swap(self, name: str, old: str | None, new: str, *, mail: tuple[str, bytes, datetime] | None = None) -> bool:
        with self.database.transaction() as connection:
            if old is None:
                query: LiteralString = "insert into setting (value, name) values (%s, %s) on conflict (name) do nothing"
            else:
                query = "update setting set value = %s where name = %s and value = %s"
            swapped = bool(connection.execute(query, [new, name, old][: 2 if old is None else 3]).rowcount)
            if swapped and mail:
                queue_mail(connection, *mail)
            return swapped

    def tally(self, amounts: Mapping[str, float]) -> None:
        names = sorted(amounts)  # so that two never wait for each other crosswise
        with self.database.transaction() as connection:
            connection.execute(
                "insert into setting (name, value) select * from unnest(%s::text[], %s::text[]) on conflict (name)"
                " do update set value = (setting.value::float8 + excluded.value::float8)::text",
                [[_TALLY + name for name in names], [repr(float(amounts[name])) for name in names]],
            )

    def tallies(self) -> Mapping[str, float]:
        with self.database.transaction() as connection:
            found = connection.execute("select name, value from setting where starts_with(name, %s)", [_TALLY])
            return {name.removeprefix(_TALLY): float(value) for name, value in found}

    def heartbeat(self, now: datetime) -> None:
        self.remember("store.heartbeat", now.isoformat(), replace=True)

    def figures(self, now: datetime) -> Figures:
        with self.database.transaction() as connection:
            row = connection.execute(
                "select (select count(*) from delivery where state = 'releasing'),"
                " (select count(*) from delivery where state = 'requested'), (select count(*) from outbox),"
                " (select count(*) from recipient where failed_at is not null),"
                " count(*), min(next_digest_at), min(next_digest_at) filter (where failed_at is null),"
                " (select value from setting where name = 'store.heartbeat')"
                f" from recipient where {_HAS_NEWS} and next_digest_at <= %s",
                [now],
            ).fetchone()
        assert row is not None  # noqa: S101 - an aggregate always has a row
        releases, requests, mails, failing, due, oldest, untried, heartbeat = row
        return Figures(
            releases_waiting=releases,
            requests_waiting=requests,
            mails_waiting=mails,
            digests_due=due,
            digests_failing=failing,
            oldest_digest_due_at=utc(oldest),
            oldest_untried_due_at=utc(untried),
            heartbeat_at=datetime.fromisoformat(heartbeat) if heartbeat else None,
        )

    # ---- openings

    def record_opening(
        self, recipient: str, issued_at: datetime, opening: Opening, since: datetime
    ) -> Sequence[Opening]:
        with self.database.transaction() as connection:
            connection.execute(
                "insert into link_open (recipient, issued_at, message_id, number, at) values (%s, %s, %s, %s, %s)",
                [recipient, issued_at, opening.message_id, opening.number, opening.at],
            )
            found = connection.execute(
                "select message_id, number, at from link_open where recipient = %s and issued_at = %s and at >= %s"
                " order by at desc, id desc limit %s",
                [recipient, issued_at, since, _OPENINGS_AT_MOST],
            ).fetchall()
        return [Opening(id, number, at.astimezone(UTC)) for id, number, at in reversed(found)]

    # ---- digests

    def unscheduled(self, limit: int) -> Sequence[Person]:
        with self.database.transaction() as connection:
            found = connection.execute(
                f"{PERSON} where {_HAS_NEWS} and next_digest_at is null order by news_since limit %s", [limit]
            ).fetchall()
        return [person_from(row) for row in found]

    def schedule(self, recipient: str, at: datetime, *, instead_of: datetime | None = None) -> None:
        with self.database.transaction() as connection:
            connection.execute(
                "update recipient set next_digest_at = %s"
                " where recipient = %s and next_digest_at is not distinct from %s::timestamptz",
                [at, recipient, instead_of],
            )

    def mend_times(self, now: datetime) -> int:
        planned, claimed = now + _PLANNED_AT_MOST, now + _CLAIMED_AT_MOST
        with self.database.transaction() as connection:
            mended = connection.execute(
                "update recipient set next_digest_at = case when next_digest_at <= %s then next_digest_at end,"
                " lease_until = case when lease_until <= %s then lease_until end,"
                " asked_at = case when asked_at <= %s then asked_at end"
                " where next_digest_at > %s or lease_until > %s or asked_at > %s",
                [planned, claimed, now, planned, claimed, now],
            ).rowcount
            mended += connection.execute(
                "update delivery set next_try_at = %s where state = 'releasing' and next_try_at > %s", [now, claimed]
            ).rowcount
            mended += connection.execute(
                "update outbox set next_try_at = %s, queued_at = least(queued_at, %s) where next_try_at > %s",
                [now, now, claimed],
            ).rowcount
        return mended

    def due_digests(self, now: datetime | None, limit: int, after: str = "") -> Sequence[str]:
        with self.database.transaction() as connection:
            if now is None:
                found = connection.execute(
                    f"select recipient from recipient where {_HAS_NEWS} and recipient > %s order by recipient limit %s",
                    [after, limit],
                ).fetchall()
            else:
                found = connection.execute(
                    f"select recipient from recipient where {_HAS_NEWS} and next_digest_at <= %s"
                    " and (lease_until is null or lease_until <= %s) order by next_digest_at limit %s",
                    [now, now, limit],
                ).fetchall()
        return [recipient for (recipient,) in found]

    def claim_digests(
        self,
        now: datetime,
        count: int,
        limit: int,
        *,
        only: Sequence[str] | None = None,
        at_once: bool = False,
        readers: Callable[[str], Reader] = Reader,
    ) -> Claims:
        lease, refused = uuid4(), {}
        with self.database.transaction() as connection:
            if only is None:
                found = connection.execute(
                    f"{_CLAIMABLE} where {_HAS_NEWS} and next_digest_at <= %s"
                    " and (lease_until is null or lease_until <= %s) order by next_digest_at limit %s"
                    " for update skip locked",
                    [now, now, count],
                ).fetchall()
            else:
                rows = {row[0]: row for row in _locked(connection, _CLAIMABLE, only[:count])}
                refused = {who: why for who in only[:count] if (why := unclaimable(rows.get(who), now, at_once))}
                found = [rows[who] for who in only[:count] if who not in refused]
            people = [readers(row[0]) for row in found]
            whole, news = _news(connection, people, limit)
            # The id outlives failures; the date does not: links count their age from the mail that is really sent.
            digests = tuple(
                Digest(
                    digest_id or new_id(now), recipient, address, now.astimezone(UTC).replace(microsecond=0),
                    tuple(news.get(recipient, ())), Preferences.from_json(preferences), failures, lease, reader,
                )
                for reader, (recipient, address, _, _, _, _, digest_id, preferences, failures, _) in zip(
                    people[:whole], found, strict=False
                )
            )  # fmt: skip
            if digests:
                connection.execute(
                    "update recipient r set lease = %s, lease_until = %s, digest_id = u.id"
                    " from unnest(%s::text[], %s::uuid[]) u (recipient, id) where r.recipient = u.recipient",
                    [lease, now + LEASE, [d.recipient for d in digests], [d.id for d in digests]],
                )
                # Known before the mail goes out: its recipient may unsubscribe before we note that it was sent.
                connection.execute(
                    "insert into digest (id, recipient, address, issued_at)"
                    " select *, %s::timestamptz from unnest(%s::uuid[], %s::text[], %s::text[]) on conflict (id)"
                    " do update set address = excluded.address, issued_at = excluded.issued_at",
                    [
                        digests[0].issued_at,
                        [d.id for d in digests],
                        [d.recipient for d in digests],
                        [d.address for d in digests],
                    ],
                )
        if not all(reader.is_plain for reader in people):
            # Not found out when it is noted who was told: the mail would have gone out, and would again.
            days.make_missing(
                self.database, "announced_to", {held_at(d.id).date() for each in digests for d in each.deliveries}
            )
        return Claims(digests, refused)

    def settle_digests(self, sent: Sequence[Digest], unsent: Sequence[Unsent], now: datetime) -> None:
        told = [(digest, delivery) for digest in sent for delivery in digest.deliveries]
        ids, numbers = [delivery.id for _, delivery in told], [delivery.number for _, delivery in told]
        with self.database.transaction() as connection:
            if told:
                own = [delivery for digest, delivery in told if _reader(digest).is_own(delivery.recipient)]
                _announce(connection, [(delivery.id, delivery.number) for delivery in own], now)
                if len(own) < len(told):
                    shared = [(_reader(digest), d) for digest, d in told if not _reader(digest).is_own(d.recipient)]
                    _tell(connection, shared, now)
                connection.execute(
                    "update digest g set sent_at = %s, message_ids = u.ids, numbers = u.numbers from ("
                    " select digest, array_agg(id order by n) ids, array_agg(number order by n) numbers"
                    " from unnest(%s::uuid[], %s::uuid[], %s::int[]) with ordinality u (digest, id, number, n)"
                    " group by digest) u where g.id = u.digest",
                    [now, [digest.id for digest, _ in told], ids, numbers],
                )
            if empty := [digest.id for digest in sent if not digest.deliveries]:
                connection.execute("delete from digest where id = any(%s) and sent_at is null", [empty])
            people = [digest.recipient for digest in sent]
            # The rows first: what an `add` that waits for one would mark comes after us and sees what we leave.
            _locked(connection, "select from recipient ", people + [each.digest.recipient for each in unsent])
            if sent:
                left = _left(connection, [_reader(digest) for digest in sent])
                connection.execute(
                    "update recipient r set news_since = u.news, next_digest_at = null, lease = null,"
                    " lease_until = null, digest_id = null, failures = 0, failure = '', failed_at = null"
                    " from unnest(%s::text[], %s::uuid[], %s::timestamptz[]) u (recipient, lease, news)"
                    " where r.recipient = u.recipient and r.lease = u.lease",
                    [people, [digest.lease for digest in sent], [id and held_at(id) for id in left]],
                )
            if unsent:
                connection.execute(
                    "update recipient r set lease = null, lease_until = u.not_before,"
                    " next_digest_at = case when r.next_digest_at <= %s then coalesce(u.due_at, r.next_digest_at)"
                    " else r.next_digest_at end,"
                    " failures = case when u.failure = '' then r.failures else r.failures + 1 end,"
                    " failure = case when u.failure = '' then r.failure else u.failure end,"
                    " failed_at = case when u.failure = '' then r.failed_at else %s end"
                    " from unnest(%s::text[], %s::uuid[], %s::timestamptz[], %s::timestamptz[], %s::text[])"
                    " u (recipient, lease, not_before, due_at, failure)"
                    " where r.recipient = u.recipient and r.lease = u.lease",
                    [
                        now,
                        now,
                        [each.digest.recipient for each in unsent],
                        [each.digest.lease for each in unsent],
                        [each.not_before for each in unsent],
                        [each.due_at for each in unsent],
                        [each.failure for each in unsent],
                    ],
                )

    def failing(self, limit: int) -> Sequence[Person]:
        with self.database.transaction() as connection:
            found = connection.execute(
                f"{PERSON} where failed_at is not null order by failed_at desc limit %s", [limit]
            ).fetchall()
        return [person_from(row) for row in found]

    def unannounced(self, recipient: str | Reader, limit: int) -> Sequence[Delivery]:
        reader = reader_of(recipient)
        with self.database.transaction() as connection:
            if reader.is_plain:
                return rows.deliveries(connection, _UNANNOUNCED, [reader.identity, limit])
            return _news(connection, [reader], limit)[1].get(reader.identity, [])

    def pass_news_on(self, recipient: str, people: Sequence[str]) -> None:
        with self.database.transaction() as connection:
            row = connection.execute(
                "select news_since from recipient where recipient = %s for update", [recipient]
            ).fetchone()
            if row is None or row[0] is None:
                return
            connection.execute(
                "insert into recipient (recipient, address, news_since)"
                ' select person, person, %s from unnest(%s::text[]) p (person) order by person collate "C"'
                " on conflict (recipient) do update"
                " set news_since = coalesce(recipient.news_since, excluded.news_since)",
                [row[0], list(people)],
            )
            if recipient not in people:
                connection.execute(
                    "update recipient set news_since = null, next_digest_at = null where recipient = %s", [recipient]
                )

    def untold(self, recipients: Collection[str], since: datetime) -> Sequence[str]:
        with self.database.transaction() as connection:
            found = connection.execute(
                "select r.identity from unnest(%s::text[]) r (identity) where exists (select from delivery d"
                " where d.recipient = r.identity and d.message_id >= %s and d.state = 'held'"
                " and d.announced_at is null)",
                [list(recipients), first_id(since)],
            ).fetchall()
        return [identity for (identity,) in found]

    def last_digest(self, recipient: str) -> Digest | None:
        with self.database.transaction() as connection:
            row = connection.execute(
                _DIGEST + "where recipient = %s and sent_at is not null order by issued_at desc, id desc limit 1",
                [recipient],
            ).fetchone()
            return _digest(connection, row) if row else None

    def digest(self, digest_id: UUID) -> Digest:
        with self.database.transaction() as connection:
            row = connection.execute(_DIGEST + "where id = %s", [digest_id]).fetchone()
            if row is None:
                raise NotFound("there is no such digest")
            return _digest(connection, row)

    def digest_recipient(self, digest_id: UUID) -> str:
        with self.database.transaction() as connection:
            row = connection.execute("select recipient from digest where id = %s", [digest_id]).fetchone()
        if row is None:
            raise NotFound("there is no such digest")
        return str(row[0])

    def find_news(self, since: datetime, local: Collection[str] | None) -> int:
        with self.database.transaction() as connection:
            found = connection.execute(
                "select distinct on (d.recipient) d.recipient, d.address, d.message_id from delivery d"
                " where d.message_id >= %s and d.state = 'held' and d.announced_at is null and d.recipient <> ''"
                " and (%s::text[] is null or d.recipient = any(%s) or substring(d.recipient from '[^@]*$') = any(%s))"
                " and not exists (select from recipient r where r.recipient = d.recipient"
                " and r.news_since is not null) order by d.recipient, d.message_id",
                [first_id(since), *[None if local is None else list(local)] * 3],
            ).fetchall()
        marked = 0
        found.sort()  # locked in the order in which `hold_mail` does it, whatever the database's collation
        for start in range(0, len(found), _BATCH):
            batch = found[start : start + _BATCH]
            with self.database.transaction() as connection:
                marked += connection.execute(
                    "insert into recipient (recipient, address, news_since)"
                    " select * from unnest(%s::text[], %s::text[], %s::timestamptz[])"
                    " on conflict (recipient) do update set address = excluded.address,"
                    " news_since = excluded.news_since where recipient.news_since is null",
                    [
                        [r for r, _, _ in batch],
                        [address_of(r, a) for r, a, _ in batch],
                        [held_at(id) for _, _, id in batch],
                    ],
                ).rowcount
        return marked

    # ---- our own mail

    def queue_mail(self, to: str, mail: bytes, now: datetime) -> None:
        with self.database.transaction() as connection:
            queue_mail(connection, to, mail, now)

    @contextmanager
    def sending(self, now: datetime) -> Iterator[OutgoingMail | None]:
        lease = uuid4()
        with self.database.transaction() as connection:
            row = connection.execute(
                "update outbox set attempts = attempts + 1, next_try_at = %s, lease = %s"
                " where id = (select id from outbox where next_try_at <= %s order by next_try_at limit 1"
                " for update skip locked) returning id, address, mail, attempts, queued_at",
                [now + LEASE, lease, now],
            ).fetchone()
        if row is None:
            yield None
            return
        id, to, mail, attempts, queued_at = row
        try:
            yield OutgoingMail(id, to, mail, attempts)
        except BaseException as error:
            given_up = isinstance(error, RelayRefused) or now - queued_at >= _MAIL_KEPT
            pause = min(timedelta(seconds=10 * 2 ** min(attempts - 1, 10)), _MAIL_BACK_OFF_MAX)
            try:
                with self.database.transaction() as connection:
                    if given_up:
                        connection.execute("delete from outbox where id = %s and lease = %s", [id, lease])
                    else:
                        connection.execute(
                            "update outbox set next_try_at = %s, lease = null where id = %s and lease = %s",
                            [now + pause, id, lease],
                        )
            except QuarantineError as unrecorded:
                log.error("failed mail not recorded id=%s: %s", id, unrecorded)  # the lease runs out
            raise
        with self.database.transaction() as connection:
            connection.execute("delete from outbox where id = %s", [id])

    # ---- signing in

    def start_sign_in(self, sign_in: SignIn, limits: SignInLimits, to: str, mail: bytes) -> bool:
        now = sign_in.created_at
        minute, hour = now - timedelta(minutes=1), now - timedelta(hours=1)
        with self.database.transaction() as connection:
            connection.execute("select pg_advisory_xact_lock(%s)", [_SIGN_IN_LOCK])
            row = connection.execute(
                "select (select count(*) from sign_in where recipient = %s and created_at > %s) >= %s"
                " or (select count(*) from sign_in where recipient = %s and created_at > %s) >= %s"
                " or (select count(*) from sign_in where client_ip = %s and created_at > %s) >= %s"
                " or (select count(*) from sign_in where client_ip = %s and created_at > %s) >= %s"
                " or (select count(*) from sign_in where created_at > %s) >= %s",
                [
                    *(sign_in.recipient, minute, limits.per_recipient_minute),
                    *(sign_in.recipient, hour, limits.per_recipient_hour),
                    *(sign_in.client_ip, minute, limits.per_ip_minute),
                    *(sign_in.client_ip, hour, limits.per_ip_hour),
                    *(minute, limits.all_minute),
                ],
            ).fetchone()
            if row is None or row[0]:
                return False
            connection.execute(
                f"insert into sign_in ({_SIGN_IN}) values (%s, %s, %s, %s, %s, %s, %s)",
                [
                    sign_in.token_sha256,
                    sign_in.code_sha256,
                    sign_in.browser_sha256,
                    sign_in.recipient,
                    sign_in.client_ip,
                    now,
                    sign_in.expires_at,
                ],
            )
            queue_mail(connection, to, mail, now)
        return True

    def sign_in(self, token_sha256: bytes, now: datetime) -> SignIn:
        with self.database.transaction() as connection:
            return _live_sign_in(connection, "token_sha256 = %s", token_sha256, now)

    def use_sign_in(self, token_sha256: bytes, now: datetime) -> SignIn:
        with self.database.transaction() as connection:
            found = _live_sign_in(connection, "token_sha256 = %s", token_sha256, now)
            _use_up(connection, found, now)
        return found

    def use_sign_in_code(self, browser_sha256: bytes, code_sha256: bytes, now: datetime) -> SignIn:
        with self.database.transaction() as connection:
            found = _live_sign_in(connection, "browser_sha256 = %s", browser_sha256, now)
            right = hmac.compare_digest(found.code_sha256, code_sha256)
            if right:
                _use_up(connection, found, now)
            else:
                connection.execute(
                    "update sign_in set wrong_codes = wrong_codes + 1 where token_sha256 = %s", [found.token_sha256]
                )
        if not right:  # only now: an exception inside would undo the counting
            raise LinkInvalid("this code is not right")
        return found

    def start_session(self, session_sha256: bytes, recipient: str, now: datetime) -> None:
        with self.database.transaction() as connection:
            connection.execute(
                "insert into session (session_sha256, recipient, started_at, used_at) values (%s, %s, %s, %s)"
                " on conflict (session_sha256) do update set recipient = excluded.recipient,"
                " started_at = excluded.started_at, used_at = excluded.used_at",
                [session_sha256, recipient, now, now],
            )

    def session(self, session_sha256: bytes, now: datetime) -> str | None:
        with self.database.transaction() as connection:
            row = connection.execute(
                "select recipient, used_at from session where session_sha256 = %s and used_at > %s and started_at > %s",
                [session_sha256, now - _SESSION_IDLE, now - _SESSION_MAX],
            ).fetchone()
            if row is not None and row[1] <= now - timedelta(minutes=1):
                connection.execute("update session set used_at = %s where session_sha256 = %s", [now, session_sha256])
        return str(row[0]) if row else None

    def end_session(self, session_sha256: bytes) -> None:
        with self.database.transaction() as connection:
            connection.execute("delete from session where session_sha256 = %s", [session_sha256])

    # ---- age

    def sweep(self, now: datetime) -> None:
        """Remove what has expired, in small transactions. Raises StoreUnavailable."""
        for table, key, column, age in _SWEEPS:
            removed = _BATCH
            while removed == _BATCH:
                with self.database.transaction() as connection:
                    removed = connection.execute(
                        f"delete from {table} where {key} = any(array("
                        f"select {key} from {table} where {column} < %s limit {_BATCH:d}))".encode(),
                        [now - age],
                    ).rowcount
        self._forget_strangers()

    def _forget_strangers(self) -> None:
        """Remove people of whom nothing is held, told or wished: made-up addresses would pile up for ever."""
        nothing: LiteralString = (
            "news_since is null and stopped_at is null and links_valid_from is null and preferences is null"
        )
        names: list[tuple[Any, ...]] = [("",)]
        while names:
            with self.database.transaction() as connection:
                names = connection.execute(
                    f"select recipient from recipient where {nothing} and recipient > %s order by recipient limit %s",
                    [names[-1][0], _BATCH],
                ).fetchall()
                connection.execute(
                    f"delete from recipient r where recipient = any(%s) and {nothing}"
                    " and not exists (select from delivery d where d.recipient = r.recipient)",
                    [[name for (name,) in names]],
                )


def _locked(connection: Connection, select: LiteralString, recipients: Sequence[str]) -> list[tuple[Any, ...]]:
    """The rows of these recipients, locked in the order in which `hold_mail` does it as well."""
    return connection.execute(
        select + 'where recipient = any(%s) order by recipient collate "C" for update', [list(recipients)]
    ).fetchall()


def _reader(digest: Digest) -> Reader:
    return digest.reader or Reader(digest.recipient)


def _whose(readers: Sequence[Reader]) -> tuple[LiteralString, list[Any]]:
    """A table ``u`` of what these people read, numbered by person from 1, with a lateral one ``d`` of what of it was
    never announced to them, the oldest first, so and so many."""
    if all(reader.is_plain for reader in readers):
        return (
            "unnest(%s::text[]) with ordinality u (recipient, n) cross join lateral ("
            f" select {rows.DELIVERY} from delivery d {_UNANNOUNCED_OF_U}) d",
            [[reader.identity for reader in readers]],
        )
    read = [(n, identity, reader.identity) for n, reader in enumerate(readers, 1) for identity in reader.identities]
    return (
        "unnest(%s::int[], %s::text[], %s::text[]) u (n, recipient, reader) cross join lateral ("
        f" select {rows.DELIVERY} from delivery d {_UNTOLD_OF_U}) d",
        [[n for n, _, _ in read], [rows.text(identity) for _, identity, _ in read], [who for _, _, who in read]],
    )


def _news(connection: Connection, readers: Sequence[Reader], limit: int) -> tuple[int, dict[str, list[Delivery]]]:
    """What was never announced to them, and of how many of them, at least one, that is all or ``limit``."""
    whose, values = _whose(readers)
    found = connection.execute(
        f"select u.n, d.* from {whose} order by u.n, d.message_id, d.number limit %s", [*values, limit, limit]
    ).fetchall()
    # The last one may go on beyond the limit.
    whole = max(1, found[-1][0] - 1) if len(found) >= limit else len(readers)
    deliveries = rows.with_messages(connection, list({tuple(row): None for n, *row in found if n <= whole}))
    named = {(delivery.id, delivery.number): delivery for delivery in deliveries}
    news: dict[str, list[Delivery]] = {}
    for n, id, number, *_ in found:
        if n <= whole and (id, number) in named:  # else retention just took its message
            news.setdefault(readers[n - 1].identity, []).append(named[id, number])
    return whole, news


def _left(connection: Connection, readers: Sequence[Reader]) -> list[UUID | None]:
    """The oldest message that was never announced to each of them. Raises psycopg.Error."""
    whose, values = _whose(readers)
    left: dict[int, UUID] = dict(
        connection.execute(
            f"select u.n, (array_agg(d.message_id order by d.message_id))[1] from {whose} group by u.n", [*values, 1]
        ).fetchall()
    )
    return [left.get(n) for n in range(1, len(readers) + 1)]


def _announce(connection: Connection, names: Sequence[tuple[UUID, int]], now: datetime) -> None:
    """Mark deliveries as announced. Raises psycopg.Error."""
    ids, numbers = [id for id, _ in names], [number for _, number in names]
    if names:
        connection.execute(
            "update delivery d set announced_at = %s from unnest(%s::uuid[], %s::int[]) u (id, number)"
            # the array besides the join: it leaves out the days that are not concerned
            " where d.message_id = u.id and d.number = u.number and d.message_id = any(%s)"
            " and d.announced_at is null",
            [now, ids, numbers, ids],
        )


def _tell(connection: Connection, told: Sequence[tuple[Reader, Delivery]], now: datetime) -> None:
    """Note who was told of deliveries that are held for another name, or that others read as well; those that all were
    told of are announced. Raises psycopg.Error."""
    ids, numbers = [delivery.id for _, delivery in told], [delivery.number for _, delivery in told]
    # So that of two readers who are told at once the second sees what the first one left.
    connection.execute(
        "select from delivery d join unnest(%s::uuid[], %s::int[]) u (id, n) on d.message_id = u.id and d.number = u.n"
        " where d.message_id = any(%s) order by d.message_id, d.number for update of d",
        [ids, numbers, ids],
    )
    connection.execute(
        "insert into announced_to (message_id, number, reader) select * from unnest(%s::uuid[], %s::int[], %s::text[])"
        " on conflict do nothing",
        [ids, numbers, [reader.identity for reader, _ in told]],
    )
    were: dict[tuple[UUID, int], set[str]] = {}
    for id, number, reader in connection.execute(
        "select message_id, number, reader from announced_to where message_id = any(%s)", [list(set(ids))]
    ):
        were.setdefault((id, number), set()).add(reader)
    all_told = {
        (delivery.id, delivery.number)
        for who, delivery in told
        if were[delivery.id, delivery.number].issuperset(who.shared.get(delivery.recipient, ()))
    }
    _announce(connection, sorted(all_told), now)


def _digest(connection: Connection, row: Sequence[Any]) -> Digest:
    id, recipient, address, issued_at, ids, numbers, preferences = row
    found = rows.deliveries(
        connection,
        "join unnest(%s::uuid[], %s::int[]) u (told_id, told_number)"
        " on d.message_id = u.told_id and d.number = u.told_number"
        " where d.message_id = any(%s) order by d.message_id, d.number",
        [ids, numbers, ids],
    )
    return Digest(id, recipient, address, issued_at.astimezone(UTC), tuple(found), Preferences.from_json(preferences))


def _live_sign_in(connection: Connection, condition: LiteralString, value: bytes, now: datetime) -> SignIn:
    # The lock makes one of many who use it at once the first; those who waited look at the row again.
    row = connection.execute(
        f"select {_SIGN_IN} from sign_in where {condition} and used_at is null and expires_at > %s"
        " and wrong_codes < %s order by created_at desc limit 1 for update",
        [value, now, _WRONG_CODES_MAX],
    ).fetchone()
    if row is None:
        raise LinkInvalid("this sign-in is not known, was used, or is too old")
    return SignIn(*row[:5], *(at.astimezone(UTC) for at in row[5:]))


def _use_up(connection: Connection, found: SignIn, now: datetime) -> None:
    connection.execute("update sign_in set used_at = %s where token_sha256 = %s", [now, found.token_sha256])
