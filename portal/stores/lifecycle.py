"""The lifecycle of what both stores keep: states, back-off, leases, limits and ages. Tested without a database."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from ipaddress import IPv6Network
from typing import Any

from portal.model.errors import AlreadyDone, BodyDamaged, BodyMissing, NotAllowed, RelayDeferred, RelayRefused
from portal.model.message import (
    Delivery,
    Event,
    EventKind,
    Export,
    Flag,
    Message,
    Scan,
    ScanOutcome,
    State,
    Tier,
    identity,
)
from portal.model.record import record

LEASE = timedelta(seconds=90)  # longer than any single send may take (30 s) and than uWSGI's harakiri (60 s)
RETENTION = "store.retention_days"  # the note of `Store.prepare_days`, for what is created on demand
_RANGES = 45  # of a retention; a few more are needed for its ends, and in advance
FOUND_MAX = 100  # messages that `Messages.find` returns

PLANNED_MAX = timedelta(days=10)  # a week between digests, and a day that a time zone skipped
CLAIMED_MAX = timedelta(days=1)

DIGESTS_KEPT = timedelta(days=91)  # longer than any link may live: the links at a digest's foot name the digest
LINK_OPENS_MAX = 500
LINK_OPENS_KEPT = timedelta(days=1)  # a burst of opened links takes seconds

WRONG_CODES_MAX = 5
# For the sign-ins of one hour, of all recipients. With codes of eight digits somebody who uses this up each hour enters
# one mailbox in 11 years on average.
WRONG_CODES_OF_ALL_MAX = 1000
SIGN_INS_KEPT = timedelta(days=1)  # the limits count an hour back
PASSWORD_TRIES_KEPT = timedelta(hours=2)  # the limits count an hour back
IDEMPOTENCY_KEPT = timedelta(days=1)
FACTOR_TRIES_MAX = 5  # wrong codes of a person, after which no code of the app is compared for a while
FACTOR_TRIES_KEPT = timedelta(days=7)  # after the last wrong code
_FACTOR_PAUSE = timedelta(minutes=15)  # the first one; also by how much the clocks of hosts may differ
_FACTOR_PAUSE_MAX = timedelta(days=1)
SESSION_IDLE = timedelta(hours=12)
SESSION_MAX = timedelta(days=7)
FORMS_KEPT = timedelta(hours=1)  # posted without a session: long enough for a second sign-in mail
STAFF_IDLE = timedelta(minutes=30)  # after a sign-in or a page of the console
SESSION_USE_RECORDED = timedelta(minutes=1)  # the shortest interval between two records of a session's use

REQUEST_MAIL_INTERVAL = timedelta(days=1)  # of a delivery
REMINDER_AFTER = timedelta(days=1)  # that a release request is open
QUESTION_INTERVAL = timedelta(days=1)  # of a delivery
STOP_MAIL_INTERVAL = timedelta(hours=1)  # of a recipient

MAIL_KEPT = timedelta(days=1)
JOBS_KEPT = timedelta(days=30)  # after their end
VOTES_KEPT = timedelta(days=30)
RULES_KEPT = timedelta(days=90)  # after they were removed or expired
DOMAIN_VALUES_KEPT = timedelta(days=365)  # after they were replaced
TOKENS_KEPT = timedelta(days=90)  # after they expired or were revoked
_MAIL_BACK_OFF_MAX = timedelta(minutes=15)
_RELEASE_BACK_OFF_MAX = timedelta(hours=1)

EXPIRING = (  # rows that a purge removes: table, key, column of the time, how long rows are kept after it
    ("link_open", "id", "at", LINK_OPENS_KEPT),
    ("digest", "id", "issued_at", DIGESTS_KEPT),
    ("sign_in", "token_sha256", "created_at", SIGN_INS_KEPT),
    ("password_try", "id", "tried_at", PASSWORD_TRIES_KEPT),
    ("idempotency_key", "key_sha256", "begun_at", IDEMPOTENCY_KEPT),
    ("session", "session_sha256", "used_at", SESSION_IDLE),
    ("session", "session_sha256", "started_at", SESSION_MAX),
    ("kept_form", "recipient", "kept_at", FORMS_KEPT),
    ("outbox", "id", "queued_at", MAIL_KEPT + LEASE),
    ("job", "id", "finished_at", JOBS_KEPT),
    ("vote", "id", "at", VOTES_KEPT),
    ("rule", "id", "removed_at", RULES_KEPT),
    ("rule", "id", "expires_at", RULES_KEPT),
    ("domain_value", "id", "replaced_at", DOMAIN_VALUES_KEPT),
    ("token", "id", "expires_at", TOKENS_KEPT),
    ("token", "id", "revoked_at", TOKENS_KEPT),
)


RAISED_TOGETHER = 100  # messages in one transaction, so that other writers wait for a few milliseconds only
OPEN_STATES = frozenset(State) - {
    State.RELEASED,
    State.EXPIRED,
}  # the tier matters as long as a delivery may still be released
_STATE_OF_RULE = {EventKind.BLOCKED: State.BLOCKED, EventKind.PASSED: State.PASSED}
# After these, a delivery is not in the state any more that a rule gave it.
_HELD_AFTERWARDS = frozenset({EventKind.UNBLOCKED, EventKind.RELEASING, EventKind.STOPPED, EventKind.FAILED})
_WITH_REASON = frozenset(
    {EventKind.REFUSED, EventKind.STOPPED, EventKind.FAILED}
)  # their detail is the delivery's reason
_WITHOUT_REASON = frozenset({EventKind.REQUESTED, EventKind.WITHDRAWN, EventKind.RELEASING, EventKind.UNBLOCKED})
_LEAVING = frozenset({EventKind.DELETED, EventKind.CONFIRMED, EventKind.REQUESTED})
_RETURNING = frozenset({EventKind.RESTORED, EventKind.WITHDRAWN, EventKind.REFUSED})
_VERDICT_FLAGS = frozenset({Flag.SYMBOLS, Flag.ACTION, Flag.SCORE, Flag.FORCED})  # other flags are about one envelope


@record(frozen=True, slots=True)
class FailedRelease:
    """New state of a delivery whose release failed, and the kind of the event to record."""

    kind: EventKind
    state: State
    state_at: datetime
    reason: str
    next_try_at: datetime | None  # None: the release is not retried


def is_retry(delivery: Delivery, allowed: Collection[State], now: datetime) -> bool:
    """Return whether claiming this delivery for release retries a release that was begun before.

    Raises AlreadyDone if it cannot be claimed: another process holds the claim, or its state is not ``allowed``.
    """
    if delivery.state is State.RELEASING:
        if delivery.next_try_at is not None and delivery.next_try_at > now:
            raise AlreadyDone("this delivery is being released", delivery)
        return True
    check_state(delivery, allowed)
    return False


def check_state(delivery: Delivery, allowed: Collection[State]) -> None:
    """Raise AlreadyDone if the delivery's state is not ``allowed``."""
    if delivery.state not in allowed:
        raise AlreadyDone(f"this delivery is {delivery.state.value}", delivery)


def state_before(history: Iterable[Event]) -> tuple[State, datetime | None, str]:
    """Return the state to which a delivery returns when its deletion is undone or its release request ends, since when
    it was in it (None: from now on), and its reason.

    A delivery that a rule blocked or let through is so again, unless something else happened to it in between. If its
    tier was raised since it was deleted or requested, it was not let through in the end. A deletion ends a release
    request. All others are held, with the reason of the last denial or failed release unless it was requested since
    then. ``history``: the delivery's events, oldest first, with a denial that ends the request.
    """
    state, since, reason = State.HELD, None, ""
    is_away = False
    for event in history:
        if event.kind in _STATE_OF_RULE:
            state, since = _STATE_OF_RULE[event.kind], event.at
        elif event.kind in _HELD_AFTERWARDS or (event.kind is EventKind.RAISED and is_away and state is State.PASSED):
            state, since = State.HELD, None
        if event.kind in _WITH_REASON or event.kind in _WITHOUT_REASON:
            reason = event.detail if event.kind in _WITH_REASON else ""
            since = since if state is not State.HELD else event.at if reason else None
        is_away = event.kind in _LEAVING or (is_away and event.kind not in _RETURNING)
    return state, since, reason


def request_is_mailed(history: Iterable[Event], now: datetime) -> bool:
    """Return whether a release request at ``now`` is mailed to the administrator: once a day for each delivery, and
    again after a denial. ``history``: the delivery's events, oldest first."""
    mailed_at: datetime | None = None
    for event in history:
        if event.kind is EventKind.REFUSED:
            mailed_at = None
        elif event.kind is EventKind.REQUESTED and is_past(mailed_at, REQUEST_MAIL_INTERVAL, event.at):
            mailed_at = event.at
    return is_past(mailed_at, REQUEST_MAIL_INTERVAL, now)


def is_past(since: datetime | None, interval: timedelta, now: datetime) -> bool:
    """Return whether ``now`` is an interval or more away from ``since``. None: it never happened.

    The difference is absolute, so that a clock that was a year ahead has no effect for a year.
    """
    return since is None or abs(now - since) >= interval


def factor_tries(tries: int, tried_at: datetime | None, now: datetime) -> int:
    """Return how many of these wrong codes still count. ``tried_at``: when the last one was typed.

    A time in the future comes from a clock that was wrong. It must not lock anybody out until then.
    """
    return tries if tried_at is not None and -_FACTOR_PAUSE <= now - tried_at < FACTOR_TRIES_KEPT else 0


def factor_pause(tries: int) -> timedelta:
    """Return for how long no code of the app is compared after so many wrong ones, zero if the next one is.

    The pauses are 15, 30, 60 … minutes, at most a day. So somebody who guesses has five tries a day, and is right once
    in 180 years on average.
    """
    rounds, begun = divmod(tries, FACTOR_TRIES_MAX)
    return timedelta(0) if begun or not rounds else min(_FACTOR_PAUSE * 2 ** min(rounds - 1, 10), _FACTOR_PAUSE_MAX)


def mailbox(recipient: str) -> str:
    """Return the mailbox that the rate limits of sign-ins count: the identity without the part from "+" on.

    Whatever `people.recipient_delimiter` is, the mail server may deliver all these addresses to one mailbox.
    """
    local, _, domain = recipient.rpartition("@")
    return f"{local.partition('+')[0] or local}@{domain}"


def account(recipient: str) -> str:
    """Return the account that the rate limits of passwords count.

    Active Directory finds "alice" also by "álice", by full-width letters and by invisible characters between them. Each
    spelling would have tries of its own, so the limits use what is left of all of them.
    """
    letters = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", recipient).casefold())
    return mailbox("".join(c for c in letters if unicodedata.category(c)[0] not in "CMZ"))


def wider_network(network: str, prefix_length: int) -> str:
    """Return the IPv6 network with this prefix length that contains a network. Other texts are returned unchanged."""
    try:
        return str(IPv6Network(network).supernet(new_prefix=prefix_length))
    except ValueError:
        return network


def failed_release(delivery: Delivery, error: BaseException, now: datetime) -> FailedRelease:
    """Return the outcome for a claimed delivery after this error: held again, or retried with exponential backoff.

    The pauses are 1, 2, 4 … minutes, at most one hour.
    """
    if isinstance(error, RelayRefused | NotAllowed | BodyMissing | BodyDamaged):
        kind = EventKind.STOPPED if isinstance(error, NotAllowed) else EventKind.FAILED
        return FailedRelease(kind, State.HELD, now, str(error), None)
    reason = str(error) if isinstance(error, RelayDeferred) else "internal error"
    pause = min(timedelta(minutes=2 ** min(delivery.attempts - 1, 10)), _RELEASE_BACK_OFF_MAX)
    return FailedRelease(EventKind.DEFERRED, State.RELEASING, delivery.state_at, reason, now + pause)


def next_mail_try(error: BaseException, attempts: int, queued_at: datetime, now: datetime) -> datetime | None:
    """Return when to retry a mail of the outbox whose latest attempt, number ``attempts``, failed; None: never.

    The pauses are 10, 20, 40 … seconds, at most 15 minutes.
    """
    if isinstance(error, RelayRefused) or now - queued_at >= MAIL_KEPT:
        return None
    return now + min(timedelta(seconds=10 * 2 ** min(attempts - 1, 10)), _MAIL_BACK_OFF_MAX)


def unclaimable(
    row: Sequence[Any] | None, now: Any, ignore_schedule: bool, may_take_over: bool = True
) -> AlreadyDone | None:
    """Return why a recipient's digest cannot be claimed, or None. ``may_take_over``: from a process whose claim ended.

    ``row`` begins with recipient, address, and the times stopped_at, news_since, next_digest_at and lease_until; it
    ends with the lease. The times and ``now`` have the type in which the store keeps times.
    """
    if row is None or row[3] is None:
        return AlreadyDone("this recipient has no unannounced mail")
    _, _, stopped_at, _, next_digest_at, lease_until, *_, lease = row
    if stopped_at is not None:
        return AlreadyDone("this recipient stopped digests")
    has_ended = lease_until is None or lease_until <= now
    # Without a lease, the time is that of the next try.
    if not (has_ended and may_take_over if lease is not None else has_ended or ignore_schedule):
        return AlreadyDone("another process is sending this digest, or failed to send it a moment ago")
    if not ignore_schedule and (next_digest_at is None or next_digest_at > now):
        return AlreadyDone("this digest is not due")
    return None


def address_of(recipient: str, address: str) -> str:
    """Return the address for notifying a recipient of mail to ``address``: as the envelope wrote it if it is their own
    one, else their identity.

    An international domain is written with A-labels, whatever the envelope had: every mail server accepts these, and no
    mail server mistakes them for another domain.
    """
    if identity(address) != recipient:
        return recipient
    return address if address.isascii() else f"{address.rpartition('@')[0]}@{recipient.rpartition('@')[2]}"


def with_verdict(message: Message, export: Export, tier: Tier) -> Message:
    """Return the message with the tier and the symbols, score, threshold, action and flags of a later export of it.

    If the export has no symbols, the message keeps its symbols, score, threshold and action: the export says less, even
    if its tier is worse.
    """
    flags = export.flags & _VERDICT_FLAGS
    if not export.symbols:
        return replace(message, verdict_tier=tier, flags=message.flags | flags)
    return replace(
        message,
        verdict_tier=tier,
        symbols=export.symbols,
        score=export.score,
        threshold=export.threshold,
        action=export.action,
        flags=message.flags - _VERDICT_FLAGS | flags,
    )


def with_scan(message: Message, scan: Scan, tier: Tier) -> Message:
    """Return the message with this virus scan, and with the tier and symbols that follow from it, see
    `Messages.record_scan`."""
    kept = last_scan(message.scan, scan)
    if tier not in message.verdict_tier.more_harmful:
        return replace(message, scan=kept)
    names = {symbol.name for symbol in scan.symbols}
    others = tuple(symbol for symbol in message.symbols if symbol.name not in names)
    return replace(message, scan=kept, verdict_tier=tier, symbols=(*others, *scan.symbols))


def last_scan(before: Scan | None, scan: Scan) -> Scan:
    """Return which of two scans to keep: what a scan found, else one that was done, else the later one."""
    if before is None or scan.outcome is ScanOutcome.FOUND or not before.is_done:
        return scan
    return scan if scan.is_done and before.outcome is not ScanOutcome.FOUND else before


def verdict_change(message: Message, tier: Tier) -> str:
    """Return the detail of the event `raised`."""
    return f"{message.verdict_tier} -> {tier}"


# ---- ranges of days


def width_days(retention_days: int) -> int:
    """Return how many UTC days a new partition or index of words has.

    Searches query each of them, so their number, some 50 at most, is the same for all longer retentions.
    """
    return math.ceil(retention_days / _RANGES)


def new_range(at: datetime, days: int, existing: Iterable[tuple[datetime, datetime]]) -> tuple[datetime, datetime]:
    """Return the first time of a new range of ``days`` UTC days that contains ``at``, and the first time after it.

    It has fewer days if an existing range, which does not contain ``at``, is in the way.
    """
    first = date.fromordinal((at.toordinal() - 1) // days * days + 1)
    begin = datetime(first.year, first.month, first.day, tzinfo=UTC)
    end = begin + timedelta(days=days)
    for other_begin, other_end in existing:
        if other_end <= at:
            begin = max(begin, other_end)
        else:
            end = min(end, other_begin)
    return begin, end
