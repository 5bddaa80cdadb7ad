"""The contracts of recipients, their digests and sign-ins."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from uuid import UUID

from portal.model.audit import AuditEntry
from portal.model.message import Delivery, Reader
from portal.stores.records import (
    MAILED_LINK,
    Claims,
    Contacts,
    Digest,
    DigestOfLink,
    DigestRecord,
    DigestRequest,
    LinkOpen,
    Method,
    NoticeClaim,
    Person,
    QueuedMail,
    SignedIn,
    SignIn,
    SignInLimits,
    StartedSession,
    Unsent,
    Upcoming,
)


class Digests(ABC):
    """Digests: claims, their outcomes, and digests sent earlier."""

    @abstractmethod
    def due(self, now: datetime | None, limit: int, after: str = "") -> Sequence[str]:
        """Return the identities of recipients with news, not stopped, not claimed, and ``next_digest_at <= now``.

        The longest due come first, and ``after`` is not used. With ``now`` None: all recipients with news who did not
        stop digests, whatever their schedule, in order of identity, beginning after ``after``.
        """

    @abstractmethod
    def claim(
        self,
        now: datetime,
        count: int,
        limit: int,
        *,
        only: Sequence[str] | None = None,
        ignore_schedule: bool = False,
        readers: Callable[[str], Reader] = Reader,
    ) -> Claims:
        """Claim up to ``count`` digests until ``now`` + LEASE; committed on return, so that each has one claimant.

        Without ``only``, the longest due digests are claimed, without waiting for other processes that claim. With
        ``only``, the digests of these recipients are claimed. Those that cannot be claimed are returned as ``refused``:
        another process has the claim or failed a moment ago, the digest is not due, or the recipient has no news or
        stopped digests. ``ignore_schedule`` ignores the due time, and the next try that `settle` recorded.

        A digest holds up to ``limit`` deliveries that its recipient reads (``readers``), all `held` and not announced
        to them. Fewer digests are claimed, but at least one, if together they would hold more than ``limit``
        deliveries. A digest without ``deliveries`` (all were acted on in the meantime) must not be sent; settling it as
        sent clears the news.
        """

    @abstractmethod
    def claim_notices(
        self, now: datetime, count: int, limit: int, *, readers: Callable[[str], Reader] = Reader
    ) -> Sequence[NoticeClaim]:
        """Claim up to ``count`` recipients for a notice until ``now`` + LEASE, the longest waiting first.

        They get notices, did not stop digests, and were sent no digest since mail was held for them. No digest of
        theirs can be claimed concurrently. A claim has up to ``limit`` deliveries, oldest first; the caller keeps those
        that the notice announces. If none are left, no mail is sent, and the notice is settled as sent.
        """

    @abstractmethod
    def begin(self, digests: Sequence[Digest]) -> None:
        """Record which deliveries these claimed digests or notices list, before any of them is sent.

        If such a mail may have arrived and the claim is taken over, the next one lists no others: mail programs may
        drop a second mail with the same Message-ID.
        """

    @abstractmethod
    def settle(self, sent: Sequence[Digest], unsent: Sequence[Unsent], now: datetime) -> bool:
        """End claims. Return whether this is durable now.

        Deliveries of sent digests and notices become announced, also when another process took the claim over in the
        meantime. All others stay unannounced. A sent notice leaves the recipient's news and next digest as they are.
        While the store is unavailable, this is kept in memory (`Outcomes`).
        """

    @abstractmethod
    def unannounced(self, reader: Reader, limit: int) -> Sequence[Delivery]:
        """Return the deliveries that a claimed digest would hold, without claiming it."""

    @abstractmethod
    def upcoming(
        self, reader: Reader, now: datetime, limit: int, *, kind: str = "", jobs_since: datetime | None = None
    ) -> Upcoming:
        """Return the digest that a claim at ``now`` would yield for this reader, whatever the schedule.

        Changes nothing: the digest has no lease and cannot be settled. It comes with what else its preview needs, so
        that this takes no more statements: whose mail was released to the reader, see `KNOWN_MAX`, and the unfinished
        jobs of a kind that were queued after ``jobs_since``.
        """

    @abstractmethod
    def request(self, reader: Reader, now: datetime, since: datetime) -> DigestRequest:
        """Make a reader's digest due now, unless they requested one after ``since``.

        The digest holds unannounced deliveries. If there are none, deliveries of the reader's last digest that are
        still held count as unannounced again.
        """

    @abstractmethod
    def last(self, recipient: str) -> Digest | None:
        """Return the last digest sent to a recipient, with those of its deliveries that are still kept, or None.

        Notices do not count.
        """

    @abstractmethod
    def last_sent(self, recipients: Sequence[str]) -> Mapping[str, datetime]:
        """Return when each of these recipients was last sent a digest (no notice) that is still kept
        (`DIGESTS_KEPT`)."""

    @abstractmethod
    def issued_since(self, recipient: str, since: datetime) -> tuple[int, datetime | None]:
        """Return how many digests and notices with links dated from ``since`` on were sent to a recipient, and the date
        of the newest links, None without any."""

    @abstractmethod
    def repeat(self, digest: Digest) -> None:
        """Record that a digest that was sent earlier is sent once more, with links dated ``digest.issued_at``, or that
        it was not: then with its earlier date."""

    @abstractmethod
    def get(self, digest_id: UUID) -> DigestOfLink:
        """Return the recipient and the deliveries of a digest, none until it is recorded as sent. Takes two statements.
        Kept for `DIGESTS_KEPT`. Raises NotFound."""

    @abstractmethod
    def recipient_of(self, digest_id: UUID) -> Person:
        """Return the recipient of a digest, as `Recipients.get` does. Kept for `DIGESTS_KEPT`. Raises NotFound."""

    @abstractmethod
    def record_link_open(
        self, recipient: str, issued_at: datetime, opened: LinkOpen, since: datetime
    ) -> Sequence[LinkOpen]:
        """Record that a link of the digest (``recipient``, ``issued_at``) was opened.

        Returns the opens of that digest from ``since`` on, this one included, oldest first, at most 500. Not
        necessarily durable.
        """

    @abstractmethod
    def records(self, after: UUID | None, limit: int) -> Sequence[DigestRecord]:
        """Return the records of digests after this id, oldest first, for a copy."""

    @abstractmethod
    def import_records(self, digests: Sequence[DigestRecord]) -> None:
        """Store digests of another store, so that their links work and `last` finds them. Durable on return.

        Deliveries that are not known here are left out.
        """


class Recipients(ABC):
    """Recipients: preferences, opt-outs, and when they are notified."""

    @abstractmethod
    def get(self, recipient: str) -> Person:
        """Return a recipient; a Person without any data if the recipient is unknown."""

    @abstractmethod
    def known(self, recipients: Sequence[str]) -> Sequence[Person]:
        """Return those of these recipients for whom there is anything, by one query."""

    @abstractmethod
    def names(self, part: str, domains: Collection[str] | None, limit: int, after: str = "") -> Sequence[str]:
        """Return identities that contain a text, in order, of all domains (None) or only of these, beginning after the
        identity ``after``."""

    @abstractmethod
    def contacts(self, recipient: str, now: datetime) -> tuple[Person, Contacts]:
        """Return a recipient as `get`, their last digest, sign-ins and sessions, and who stopped their digests, by one
        query."""

    @abstractmethod
    def set_digests_stopped(
        self, recipient: str, stopped_at: datetime | None, *, mail: QueuedMail | None = None
    ) -> bool:
        """Stop (a time) or resume (None) a recipient's digests. Mail held while stopped is announced after resuming.

        Returns whether this call changed anything; stopping twice keeps the first time. ``mail`` is queued in the same
        transaction if this call stopped the digests, at most once an hour for each recipient.
        """

    @abstractmethod
    def change(
        self, recipients: Sequence[str], after: Callable[[Person], Person], entry: Callable[[Person], AuditEntry]
    ) -> Sequence[str]:
        """Stop or resume digests or set preferences of many recipients, and return those that were changed.

        ``after`` returns a recipient with other `stopped_at` and `preferences`, or the same; ``entry`` the audit entry
        of a recipient that was changed. Their next digest must be scheduled again, see `unscheduled`, unless only a
        preference was changed that it does not depend on. Some hundred recipients at a time are changed in one
        transaction with their entries; an interrupted call may be repeated.
        """

    @abstractmethod
    def revoke_links(self, recipient: str, issued_before: datetime) -> None:
        """Revoke this recipient's links that were issued before this moment."""

    @abstractmethod
    def forget_devices(self, recipient: str, known_before: datetime) -> None:
        """Let browsers not be known in which this recipient pressed a button before this moment."""

    @abstractmethod
    def forget(self, recipient: str, now: datetime) -> None:
        """Remove a recipient's preferences, news, digests, sign-ins and sessions. Durable on return. Idempotent.

        Their digests are stopped and all links that they were sent are revoked, so a row stays. Deliveries stay, see
        `Store.expire`.
        """

    @abstractmethod
    def unscheduled(self, limit: int) -> Sequence[Person]:
        """Return recipients with news, not stopped, whose next digest is not scheduled."""

    @abstractmethod
    def schedule(self, recipient: str, at: datetime, *, notices: bool = False) -> None:
        """Set when a recipient's next digest is due, and whether they get notices, unless it is scheduled already."""

    @abstractmethod
    def failing(self, limit: int) -> Sequence[Person]:
        """Return recipients whose last digest failed, the latest failure first."""

    @abstractmethod
    def pass_news_on(self, recipient: str, people: Sequence[str]) -> None:
        """Move the news of an identity to the people who read its mail. Durable on return. Idempotent.

        Each of them gets the identity's ``news_since``, unless they have news already. The identity keeps it only if it
        is one of them.
        """

    @abstractmethod
    def with_unannounced(self, recipients: Collection[str], since: datetime) -> Sequence[str]:
        """Return those of these identities for which mail is held, from ``since`` on, that is not announced to all its
        readers."""

    @abstractmethod
    def find_news(self, since: datetime, local: Collection[str] | None) -> int:
        """Mark recipients who have held, unannounced mail from ``since`` on as having news; return how many.

        Repairs the rare race of `Messages.add` with `Digests.settle`, and announces older mail when a domain becomes
        local. ``local`` has domains and whole addresses; None: all recipients.
        """

    @abstractmethod
    def records(self, after: str, limit: int) -> Sequence[Person]:
        """Return recipients after this identity, in order, for a copy."""

    @abstractmethod
    def import_records(self, people: Sequence[Person], *, preferences: bool) -> None:
        """Store recipients of another store. Durable on return.

        ``preferences``: replace the opt-out, preferences and schedule of recipients that are known here. Otherwise only
        news and revoked links are added to theirs.
        """


class SignIns(ABC):
    """Mailed sign-ins, and sessions. Only SHA-256 hashes of their secrets are kept."""

    @abstractmethod
    def start(self, sign_in: SignIn, limits: SignInLimits, mail: QueuedMail, identities: Collection[str] = ()) -> bool:
        """Record a sign-in and queue its mail in one transaction. Return False if a rate limit is exceeded.

        Then no mail is sent. A mail without an address ``to`` is for a foreign recipient, who cannot sign in; such
        requests are counted apart. The limit ``unknown_minute`` is for all recipients for whom neither messages nor
        preferences are stored, under their own identity or one of ``identities``, which they read as well.
        """

    @abstractmethod
    def get(self, token_sha256: bytes, now: datetime) -> SignIn:
        """Return a sign-in that is neither used nor expired. Raises SignInInvalid."""

    @abstractmethod
    def use(self, token_sha256: bytes, now: datetime) -> SignIn:
        """Use up a sign-in: exactly one caller gets it. Raises SignInInvalid."""

    @abstractmethod
    def use_code(self, browser_sha256: bytes, code_sha256: bytes, now: datetime) -> SignIn:
        """Use up the newest valid sign-in of this browser if the code is right.

        Raises LinkInvalid. After the fifth wrong code the sign-in's code is invalid, its link is not. Raises
        CodesSuspended while `lifecycle.WRONG_CODES_OF_ALL_MAX` wrong codes were entered for the sign-ins of the last
        hour.
        """

    @abstractmethod
    def start_session(
        self,
        session_sha256: bytes,
        recipient: str,
        now: datetime,
        client: str = "",
        method: Method = MAILED_LINK,
        authenticated_at: datetime | None = None,
    ) -> None:
        """Begin a session. It ends after 12 h without use, or after 7 days. ``client``: see `StartedSession`.

        It may use the console for `STAFF_IDLE`, if its recipient has a role. ``authenticated_at``: see `SignedIn`.
        """

    @abstractmethod
    def session(self, session_sha256: bytes, now: datetime, job_id: UUID | None = None) -> SignedIn | None:
        """Return the recipient of a session, or None if it is unknown or has ended. Records its use, at most once a
        minute.

        With ``job_id`` this job is read by the same statement. The caller checks who began it.
        """

    @abstractmethod
    def extend_staff_use(self, session_sha256: bytes, until: datetime) -> None:
        """Let a session use the console until then, unless a role of its recipient was removed since it began."""

    @abstractmethod
    def sessions(self, recipient: str, limit: int, now: datetime) -> Sequence[StartedSession]:
        """Return the sessions of a recipient that have not ended, the last used first."""

    @abstractmethod
    def end_sessions_of_method(self, method: Method, before: datetime) -> Sequence[tuple[str, int]]:
        """End the sessions that a provider names and that began before, and return the number for each recipient.

        Without ``method.session`` all sessions of the subject end, and without ``method.subject`` only the session is
        compared. One of them is not empty.
        """

    @abstractmethod
    def end_session(self, session_sha256: bytes) -> str | None:
        """End a session. Return whose it was, None if there is none."""

    @abstractmethod
    def end_sessions(self, recipient: str, only: bytes | None = None, *, but: bytes | None = None) -> int:
        """End all sessions of a recipient. Return how many ended.

        ``only``: the hash of the one that is to end, if it is theirs. ``but``: the hash of the one that continues.

        Durable on return, and at once: every request looks its session up.
        """

    @abstractmethod
    def keep_form(self, recipient: str, browser_sha256: bytes, form: str, now: datetime) -> None:
        """Keep a form that was posted after its session had ended, instead of the recipient's earlier one."""

    @abstractmethod
    def kept_form(self, recipient: str, browser_sha256: bytes, now: datetime) -> str | None:
        """Return the recipient's form if this browser posted it, for `FORMS_KEPT`; None if there is none."""

    @abstractmethod
    def forget_form(self, recipient: str, browser_sha256: bytes) -> None:
        """Remove what `kept_form` returns."""
