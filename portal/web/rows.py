"""View models: deliveries and findings for templates, sanitized and in words.

All functions are pure. The caller reads the required data from the store.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from portal.batches.batch import Act, Batch, Outcome, Progress
from portal.mail.languages import Language
from portal.model.domains import shown_address
from portal.model.message import RELEASABLE, Actor, ActorKind, Delivery, Event, EventKind, Message, State, Tier
from portal.model.reasons import LIKE_SPAM, SCANS_IN_WORDS, description, explain, has_attachment, why
from portal.model.rights import ReleaseRight
from portal.model.rule import ScopeKind, scope_kind
from portal.model.sender import Proof, Sender, needs_check, proof, sender_shown
from portal.model.short_reasons import shortly
from portal.model.text import N_, shown

_SYMBOLS = 60  # shown for one message
_LOST_AT_THE_END = (State.HELD, State.BLOCKED, State.DELETED)  # the others were delivered, or wait for somebody

# The kinds of events that change a delivery to a state.
_KINDS_OF_STATE = {
    State.REQUESTED: (EventKind.REQUESTED,),
    State.RELEASING: (EventKind.RELEASING,),
    State.RELEASED: (EventKind.RELEASING,),
    State.DELETED: (EventKind.DELETED, EventKind.CONFIRMED),
    State.PASSED: (EventKind.PASSED,),
    State.BLOCKED: (EventKind.BLOCKED,),
}
_BY_RULES = frozenset({State.PASSED, State.BLOCKED, State.RELEASING, State.RELEASED})  # states that a rule may cause
_HEADERS = {"Reply-To": N_("Reply to"), "To": N_("To"), "Cc": N_("Copy to"), "Date": N_("Sent on")}
_OUTCOMES = {
    Outcome.RELEASED: N_("Released"),
    Outcome.RELEASING: N_("Release in progress"),
    Outcome.DELETED: N_("Deleted"),
    Outcome.RESTORED: N_("Deletion undone"),
    Outcome.REQUESTED: N_("Release requested"),
    Outcome.WITHDRAWN: N_("Request withdrawn"),
    Outcome.TO_CHECK: N_("Not released, check these first"),
    Outcome.NOT_ALLOWED: N_("Not released, only an administrator can"),
    Outcome.NOT_NEEDED: N_("Not requested, you can release these yourself"),
    Outcome.ALREADY_RELEASED: N_("Not changed, already released"),
    Outcome.ALREADY_RELEASING: N_("Not changed, release in progress"),
    Outcome.LET_THROUGH: N_("Not changed, already let through"),
    Outcome.ALREADY_DELETED: N_("Not changed, already deleted"),
    Outcome.ALREADY_REQUESTED: N_("Not changed, release requested"),
    Outcome.NOT_DELETED: N_("Not changed, not deleted"),
    Outcome.CHANGED: N_("Not changed"),
    Outcome.FAILED: N_("Release failed"),
}
_REASON_KINDS = (
    EventKind.REFUSED,
    EventKind.FAILED,
    EventKind.STOPPED,
)  # events that set the reason of a held delivery


@dataclass(frozen=True, slots=True)
class Viewer:
    """The reader for whom a page is rendered, with the language and time zone of times and numbers."""

    reader: str  # identity
    language: Language
    zone: ZoneInfo


@dataclass(frozen=True, slots=True)
class Row:
    """A delivery as its reader may see it, without data of other recipients."""

    delivery: Delivery
    viewer: Viewer
    name: str  # in URLs of pages
    sender: Sender
    subject: str
    reasons: list[str]
    right: ReleaseRight
    reason: str  # why it is held again, "" if it is not
    declined_at: datetime | None  # when an administrator denied the release request for this reason, None if none did
    mailbox: str = ""  # the alias or role mailbox of the delivery, "" if it is the reader's own address
    by: str = ""  # the reader of a role mailbox who changed it to this state
    rule: str | None = None  # the sender of the rule that changed it to this state; "": of an administrator's rule
    ends_at: datetime | None = None  # when it is removed, None if it is kept as long as it is in its state
    ends_in_days: int | None = None  # by the calendar of the viewer; None if it is not soon

    # Times and numbers are formatted when a page shows them, since Babel takes longer for that than all else.

    @property
    def id(self) -> UUID:
        """The quarantine id."""
        return self.delivery.id

    @property
    def key(self) -> str:
        """The delivery's id and number, in forms."""
        return f"{self.delivery.id}.{self.delivery.number}"

    @property
    def state(self) -> State:
        """The delivery's state."""
        return self.delivery.state

    @property
    def declined(self) -> str:
        """The time at which an administrator denied the release request and gave the reason, "" if none did."""
        return self.viewer.language.moment(self.declined_at, self.viewer.zone) if self.declined_at else ""

    @property
    def dangerous(self) -> bool:
        """True if only an administrator may release it."""
        return self.delivery.message.tier is Tier.DANGEROUS

    @property
    def suspicious(self) -> bool:
        """True if it is suspicious."""
        return self.delivery.message.tier is Tier.SUSPICIOUS

    @property
    def is_spam(self) -> bool:
        """True if it is unwanted at worst."""
        return self.delivery.message.tier is Tier.SPAM

    @property
    def needs_check(self) -> bool:
        """True if the reader should look before releasing it."""
        return needs_check(self.delivery.message)

    @property
    def has_attachment(self) -> bool:
        """True if it is known to have attachments."""
        return has_attachment(self.delivery.message)

    @property
    def held(self) -> str:
        """The time at which it was held."""
        return self.viewer.language.moment(self.delivery.message.held_at, self.viewer.zone)

    @property
    def held_shortly(self) -> str:
        """The same without the year."""
        return self.viewer.language.short_moment(self.delivery.message.held_at, self.viewer.zone)

    @property
    def held_day(self) -> str:
        """The day on which it was held, without the year."""
        return self.viewer.language.short_day(self.delivery.message.held_at, self.viewer.zone)

    @property
    def held_time(self) -> str:
        """The time of the day at which it was held."""
        return self.viewer.language.time(self.delivery.message.held_at, self.viewer.zone)

    @property
    def state_at(self) -> str:
        """The time at which its state changed."""
        return self.viewer.language.moment(self.delivery.state_at, self.viewer.zone)

    @property
    def removed(self) -> str:
        """The day on which it is removed, "" if it is kept as long as it is in its state."""
        return self.viewer.language.date(self.ends_at, self.viewer.zone) if self.ends_at else ""

    @property
    def removed_soon(self) -> str:
        """The same as a number of days, "" if it is not soon or was delivered."""
        if self.ends_in_days is None or self.state not in _LOST_AT_THE_END:
            return ""
        return self.viewer.language.removed_in(self.ends_in_days)

    @property
    def size(self) -> str:
        """The size of the message."""
        return self.viewer.language.size(self.delivery.message.size_bytes)

    @property
    def score(self) -> str:
        """Rspamd's score, "" if it is not known."""
        score = self.delivery.message.score
        return "" if score is None else self.viewer.language.score(score)

    @property
    def scan(self) -> str:
        """The result of the last virus scan, "" without one."""
        scan = self.delivery.message.scan
        return SCANS_IN_WORDS[scan.outcome] if scan else ""

    @property
    def scanned(self) -> str:
        """The time of the last virus scan, "" if it was not done."""
        scan = self.delivery.message.scan
        return self.viewer.language.moment(scan.at, self.viewer.zone) if scan and scan.at and scan.is_done else ""

    @property
    def proof(self) -> Proof | None:
        """The proof of who sent it, None without any."""
        return proof(self.delivery.message)

    @property
    def all_reasons(self) -> list[str]:
        """The sender's warning, then the reasons."""
        return list(dict.fromkeys([*filter(None, [self.sender.warning]), *self.reasons]))

    @property
    def short_reasons(self) -> list[str]:
        """The sender's warning, then the main reasons, each in few words."""
        return list(dict.fromkeys(map(shortly, [*filter(None, [self.sender.warning]), *self.main_reasons])))

    @property
    def main_reasons(self) -> list[str]:
        """The reasons for one line: not the sender's warning, nor that the text resembles spam if there is another."""
        return [each for each in self.reasons if each != self.sender.warning and each != LIKE_SPAM] or self.reasons[:1]


def needs_events(delivery: Delivery, *, role: bool) -> bool:
    """Return True if `row` needs the events of this delivery. ``role``: it is for a role mailbox."""
    return role or delivery.state in _BY_RULES or (delivery.state is State.HELD and delivery.reason != "")


def row(
    delivery: Delivery,
    viewer: Viewer,
    right: ReleaseRight,
    *,
    role: bool,
    events: Sequence[Event],
    removal: tuple[datetime | None, bool],
    now: datetime,
) -> Row:
    """Return the view model of a delivery for this viewer. ``right``: who may release it.

    ``role``: it is for a role mailbox. ``events``: the latest event of each kind, oldest first, if `needs_events`.
    ``removal``: see `removal_of`.
    """
    ends_at, is_soon = removal
    message = delivery.message
    other = role or viewer.reader != delivery.recipient
    return Row(
        delivery=delivery,
        viewer=viewer,
        name=name_in_urls(delivery, viewer.reader, role=role),
        sender=sender_shown(message),
        subject=shown(message.subject, 200),
        reasons=why(message),
        right=right,
        reason=shown(delivery.reason, 300) if delivery.reason else "",
        declined_at=_declined_at(events) if delivery.state in RELEASABLE and delivery.reason else None,
        mailbox=shown_address(delivery.address) if other else "",
        by=_by(delivery, events) if role else "",
        rule=_rule(delivery, events) if delivery.state in _BY_RULES else None,
        ends_at=ends_at,
        ends_in_days=_days_until(ends_at, now, viewer.zone) if ends_at and is_soon else None,
    )


def name_in_urls(delivery: Delivery, reader: str, *, role: bool) -> str:
    """Return the name of a delivery in the addresses of its pages. ``role``: it is for a role mailbox."""
    is_own = delivery.recipient == reader and not role
    return str(delivery.id) if is_own else f"{delivery.id}.{delivery.number}"


def _days_until(at: datetime, now: datetime, zone: ZoneInfo) -> int:
    return max(0, (at.astimezone(zone).date() - now.astimezone(zone).date()).days)


def _by(delivery: Delivery, events: Sequence[Event]) -> str:
    """Return the reader who changed a role mailbox's delivery to its state, "" if no reader did."""
    kinds = _KINDS_OF_STATE.get(delivery.state, ())
    return next((actor_name(event.actor) for event in reversed(events) if event.kind in kinds), "")


def _rule(delivery: Delivery, events: Sequence[Event]) -> str | None:
    """Return the sender of the rule that changed a delivery to its state: "" for an administrator's rule, whose sender
    may be a network or a domain of others; None if no rule did."""
    kinds = _KINDS_OF_STATE[delivery.state]
    actor = next((event.actor for event in reversed(events) if event.kind in kinds), None)
    if actor is None or actor.kind is not ActorKind.RULE:
        return None
    return shown_address(actor.name) if scope_kind(actor.via) is ScopeKind.RECIPIENT else ""


def _declined_at(events: Sequence[Event]) -> datetime | None:
    """Return when the request was denied whose reason it is; None if it is from a release that failed later."""
    last = next((event for event in reversed(events) if event.kind in _REASON_KINDS), None)
    return last.at if last and last.kind is EventKind.REFUSED else None


def actor_name(actor: Actor) -> str:
    """Return the name of the reader who acted, "" if it was not recorded or the actor is not a reader."""
    return shown_address(actor.name) if actor.kind is ActorKind.RECIPIENT else ""


def findings(message: Message, language: Language) -> dict[str, Any]:
    """Return Rspamd's findings as template values: score, threshold and explained symbols.

    Each symbol is (name, score, text to be translated, Rspamd's own description), largest absolute score first.
    """
    symbols = sorted(message.symbols, key=lambda symbol: (-abs(symbol.score), symbol.name))
    return {
        "score": "" if message.score is None else language.score(message.score),
        "threshold": "" if message.threshold is None else language.threshold(message.threshold),
        "symbols": [
            (shown(s.name, 80), language.score(s.score), explain(s), description(s)) for s in symbols[:_SYMBOLS]
        ],
    }


@dataclass(frozen=True, slots=True)
class OutcomeRow:
    """The deliveries of a batch with the same outcome."""

    text: str  # to be translated
    number: int
    is_unchanged: bool  # the action was not performed
    is_moot: bool  # it does not change messages in such a state
    is_to_check: bool  # they are released only after their reader has seen their cautions
    rows: Sequence[Row]  # those that are named, at most `batch.NAMED`

    @property
    def more(self) -> int:
        """The deliveries that are not in ``rows``, if some are."""
        return self.number - len(self.rows) if self.rows else 0


@dataclass(frozen=True, slots=True)
class BatchRow:
    """A batch as its reader sees it."""

    id: UUID
    act: Act
    is_finished: bool
    is_counted: bool  # False: ``total`` still grows
    done: int
    total: int
    outcomes: list[OutcomeRow]
    only: Row | None  # the delivery of a batch of one

    @property
    def may_undo(self) -> bool:
        """True if it has deleted something."""
        return self.is_finished and any(each.text == _OUTCOMES[Outcome.DELETED] for each in self.outcomes)


def outcome_row(outcome: Outcome, number: int, rows: Sequence[Row]) -> OutcomeRow:
    """Return the view model of the deliveries with an outcome. ``rows``: those that are named."""
    is_to_check = outcome is Outcome.TO_CHECK
    return OutcomeRow(_OUTCOMES[outcome], number, not outcome.is_done, outcome.is_moot, is_to_check, rows)


def batch_row(id: UUID, batch: Batch, progress: Progress, rows: Sequence[Row], *, is_finished: bool) -> BatchRow:
    """Return the view model of a batch. ``rows``: of the deliveries that it left unchanged, or of the only one."""
    by_key = {row.delivery.key: row for row in rows}
    return BatchRow(
        id=id,
        act=batch.act,
        is_finished=is_finished,
        is_counted=progress.is_counted,
        done=progress.done,
        total=max(progress.total, progress.done),
        outcomes=[
            outcome_row(
                outcome,
                progress.counts[outcome],
                [by_key[key] for key in progress.named.get(outcome, ()) if key in by_key and not outcome.is_done],
            )
            for outcome in Outcome
            if progress.counts.get(outcome)
        ],
        only=rows[0] if progress.done == 1 and rows else None,
    )


def headers(fields: Sequence[tuple[str, str]], viewer: Viewer) -> list[tuple[str, str]]:
    """Return header fields of a message for its page: (name to be translated, text). Dates are in the viewer's zone."""
    return [(_HEADERS.get(name, name), _date(text, viewer) if name == "Date" else text) for name, text in fields]


def _date(text: str, viewer: Viewer) -> str:
    """Return the text of a Date field as a time, or as it is if it is not one (RFC 5322, 3.3)."""
    try:
        at = parsedate_to_datetime(text)
        return viewer.language.moment(at, viewer.zone) if at.tzinfo else text
    except (ValueError, OverflowError):
        return text


def alert(row: Row, _: Callable[[str], str]) -> str:
    """Return what a row of the list says in a line of its own: a caution, and why the message is held again."""
    return " · ".join(filter(None, (_caution(row, _), _why_again(row, _))))


def _why_again(row: Row, _: Callable[[str], str]) -> str:
    if row.declined:
        return f"{_(N_('The release request was denied:'))} {row.reason}"
    return f"{_(N_('The last release failed:'))} {_(row.reason)}" if row.reason and row.state is State.HELD else ""


def _caution(row: Row, _: Callable[[str], str]) -> str:
    warning = _(row.sender.warning) if row.sender.warning else ""
    if row.dangerous:
        return " · ".join(filter(None, (_(N_("Possibly dangerous")), warning)))
    if row.suspicious:
        return f"{_(N_('Check first'))} · {warning}" if warning else _(N_("Check this message before you release it"))
    return f"{_(N_('Caution:'))} {warning}" if warning else ""


def act(row: Row) -> str:
    """Return the action of a row's button, "" if it has none; ``again``: a release of what was delivered already."""
    if row.state in (State.HELD, State.BLOCKED):
        return {ReleaseRight.SELF: "release", ReleaseRight.REQUEST: "ask"}.get(row.right, "")
    if row.state is State.REQUESTED:
        return "withdraw"
    if row.state is State.PASSED and row.right is ReleaseRight.SELF:
        return "again"
    return "restore" if row.state is State.DELETED else ""
