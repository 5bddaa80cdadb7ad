"""The contracts of a store. One test suite runs over every implementation.

A store does not depend on HTTP, SMTP, links, templates or settings. It translates the errors of its library into
`StoreUnavailable` (try again later) or `StoreUnusable` (an administrator must act). Callers pass the time as aware UTC
``now``, so that tests can set the clock.

A claim (of a release, a digest, an outgoing mail) is a committed row with a lease: no connection or lock is held while
something is being sent. When a process dies, its lease expires and another process takes over: at worst a mail is sent
twice, but it is never silently dropped.

Methods for recipients take the `Reader` or the identity whose data they may see. The other methods are not limited to
one recipient: they are for the command line, the background processes, and links, whose token names the delivery.

A delivery is *announced* once a digest has notified its recipient. If a delivery is held under another name of its
reader, or if several people read it, the store records each reader who was notified; the delivery is announced once
all its readers were notified.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from types import MappingProxyType
from typing import Any
from uuid import UUID

from portal.model.domain_value import DomainValue
from portal.model.message import (
    ANY,
    Actor,
    Body,
    Delivery,
    DeliveryId,
    Event,
    EventKind,
    Export,
    Filter,
    Message,
    Reader,
    Scan,
    Start,
    State,
    Tier,
)
from portal.model.rule import Rule
from portal.model.schedule import Preferences
from portal.model.vote import Label, Vote
from portal.stores.records import (
    ActiveRule,
    Claims,
    Counts,
    Digest,
    DigestRecord,
    DigestRequest,
    Ending,
    Held,
    Job,
    LinkOpen,
    OutgoingMail,
    Page,
    Person,
    Purged,
    QueuedMail,
    Record,
    SignedIn,
    SignIn,
    SignInLimits,
    StartedSession,
    Stats,
    Unsent,
)

NO_STARTS: Mapping[str, Start] = MappingProxyType({})


class Messages(ABC):
    """Held messages and their bytes."""

    @abstractmethod
    def add(
        self,
        export: Export,
        body: Body,
        tier: Tier,
        announce: Collection[str],
        *,
        at: datetime | None = None,
        scan: Scan | None = None,
        starts: Mapping[str, Start] | None = NO_STARTS,
    ) -> Held:
        """Hold a message and return once it is durable: a power cut right after does not lose it.

        Adding the same mail again (equal ``export.dedup_key``, within retention) returns the first id with ``known``
        true, also when many processes add it at once. ``announce`` has the identities of the recipients who are
        notified by digest. Deliveries are numbered in the order of ``export.recipients``; a message without recipients
        gets one delivery whose recipient and address are "" (see `Deliveries.assign`). ``at`` is when the message was
        held, for mail imported from elsewhere; None: now. ``scan``: the virus scan of the message; for `WAITING` a
        background job `SCAN` is queued in the same transaction. ``starts``: how the deliveries of these identities
        begin, all others are `held`; each is the first event of the delivery's history. With None all are `held` if
        the store has no rules in use; otherwise nothing is held and RulesInUse is raised, so that the caller decides.

        A ``tier`` worse than that of the known message, or of messages with the same bytes, replaces theirs as long
        as one of their deliveries is not released; tiers never get better. The export's symbols, score, action and
        flags replace theirs, and each delivery's history gets an event `raised`. An export without symbols replaces
        only the tier and adds its flags.

        Raises RulesInUse; StoreUnavailable. Then the message is either not held, or held completely because only the
        answer to the commit was lost; adding it again is always safe. Takes at most 3 s in total.
        """

    @abstractmethod
    def body(self, message_id: UUID) -> Iterator[bytes]:
        """Return the message exactly as it was received, in pieces of at most 1 MiB.

        Raises NotFound, or BodyMissing when the mail is gone, both before the first piece; BodyDamaged or
        StoreUnavailable when a later piece cannot be read or the SHA-256 differs: then the caller must discard the
        pieces that it received.
        """

    @abstractmethod
    def record_scan(self, message_id: UUID, scan: Scan, tier: Tier, now: datetime) -> Message:
        """Record a virus scan that was done or failed. Return the message as it is stored afterwards.

        ``tier`` is the tier by the scan's symbols. If it is worse than that of the message, or of messages with the
        same bytes, it replaces theirs as long as one of their deliveries is not released, the scan and its symbols are
        added to theirs, and each of these deliveries gets an event `raised`. Tiers never get better; a scan that found
        something is kept whatever later ones say, and one that was done is not replaced by one that failed. Durable
        on return. Raises NotFound.
        """

    @abstractmethod
    def find(self, text: str) -> Sequence[Message]:
        """Return messages whose quarantine id or MTA queue id is exactly ``text``, newest first, at most 100."""

    @abstractmethod
    def ids(self, after: UUID | None, limit: int) -> Sequence[UUID]:
        """Return up to ``limit`` message ids after this one (None: from the first one on), oldest first."""

    @abstractmethod
    def records(self, ids: Collection[UUID]) -> Mapping[UUID, Record]:
        """Return the records of these messages, at most 1,000, for a copy. Unknown ids are left out."""

    @abstractmethod
    def import_record(self, record: Record, body: Body | None) -> None:
        """Hold a message of another store under its id, with its states and history. Durable on return.

        If this store has the message already, the record's deliveries and histories replace its own. ``body`` is only
        needed if it does not; None then raises NotFound. No recipient is marked as having news. If this store held the
        same mail in the meantime, both messages stay, and the one held here keeps the dedup key.
        """


class Deliveries(ABC):
    """Deliveries: lists, histories, releases and other actions."""

    @abstractmethod
    def get(self, key: DeliveryId) -> Delivery:
        """Return a delivery. Raises NotFound."""

    @abstractmethod
    def of_message(self, message_id: UUID) -> Sequence[Delivery]:
        """Return all deliveries of a message, by number. Raises NotFound when there is no such message."""

    @abstractmethod
    def get_for(self, reader: Reader, message_id: UUID, number: int | None = None) -> Delivery:
        """Return this reader's delivery of a message: the one with this number, or the first one for None.

        Raises NotFound, also when the delivery is another reader's.
        """

    @abstractmethod
    def list_for(
        self,
        reader: Reader,
        states: Collection[State],
        limit: int,
        before: DeliveryId | None = None,
        *,
        words: str = "",
        criteria: Filter = ANY,
    ) -> Page:
        """Return this reader's deliveries in any of ``states``, newest message first; ``words`` as in `search`.

        ``criteria`` narrows the list. Its recipients, states and words are ignored.
        """

    @abstractmethod
    def of_reader(self, reader: Reader, keys: Collection[DeliveryId]) -> Sequence[Delivery]:
        """Return those of these deliveries that are this reader's, in the order of ``keys``."""

    @abstractmethod
    def counts(self, reader: Reader, at_most: int) -> Counts:
        """Count the newest deliveries of a reader by state: ``at_most`` of each of their identities.

        So it takes as long for a large mailbox as for a small one.
        """

    @abstractmethod
    def search(self, wanted: Filter, limit: int, before: DeliveryId | None = None) -> Page:
        """Return the deliveries of all recipients that match, newest first. Any text is a valid search.

        Uses indexes, except for a part of a sender that does not begin a word and for state `held`. For these, one call
        examines a bounded number of deliveries, so a page may be short or empty and still have a ``next``.
        """

    @abstractmethod
    def history(self, key: DeliveryId) -> Sequence[Event]:
        """Return a delivery's events, oldest first, beginning with `held`. Raises NotFound."""

    @abstractmethod
    def last_events(self, keys: Collection[DeliveryId]) -> Mapping[DeliveryId, Sequence[Event]]:
        """Return, for each of these deliveries, the latest event of each kind (`Event.kind`), oldest first.

        Takes at most 1,000 deliveries and runs one database query. The event `held` is not included. Unknown deliveries
        and deliveries without events are left out.
        """

    @abstractmethod
    def released_from(self, recipients: Sequence[str], limit: int) -> Mapping[str, Sequence[str]]:
        """Return the From headers of the mail released to each of these recipients, newest first, at most ``limit``
        each. Recipients without released mail are left out."""

    @abstractmethod
    def assign(self, key: DeliveryId, address: str, actor: Actor, now: datetime) -> Delivery:
        """Set the recipient of a delivery that has none (``""``). Raises NotFound, AlreadyDone when it has one."""

    @abstractmethod
    def ending(self, state: State, before: datetime, limit: int, after: DeliveryId | None = None) -> Sequence[Ending]:
        """Return deliveries in a state, other than `held`, of messages held before ``before``, oldest first, beginning
        after the delivery ``after``."""

    @abstractmethod
    def move(
        self,
        key: DeliveryId,
        to: State,
        allowed: Collection[State],
        actor: Actor,
        now: datetime,
        *,
        kind: EventKind,
        reason: str = "",
        mail: QueuedMail | None = None,
        next_try_at: datetime | None = None,
    ) -> Delivery:
        """Change a delivery's state to ``to`` if it is in one of ``allowed``; record an event of this kind.

        ``reason`` becomes the delivery's reason; ``mail`` is queued in the same transaction, but that of an event
        `requested` only once a day for each delivery, and again after a denial. ``next_try_at`` is for the
        state `releasing`: nobody has claimed the release, and its first try may begin at this time. Durable on return.
        Raises NotFound; AlreadyDone (with the current delivery) when it is in another state, and then nothing is
        queued.
        """

    @abstractmethod
    def record(self, key: DeliveryId, event: Event) -> None:
        """Add an event that changes no state. Durable on return. Raises NotFound."""

    @abstractmethod
    def releasing(
        self,
        key: DeliveryId,
        allowed: Collection[State],
        actor: Actor,
        now: datetime,
        answer: Callable[[], str] = str,
        *,
        check: Callable[[Delivery], object] = bool,
    ) -> AbstractContextManager[Delivery]:
        """Claim a delivery for release, yield it as claimed, and record the outcome.

        The claim sets state `releasing`, ``next_try_at = now + LEASE``, and ``attempts``: 1, or one more if the state
        was `releasing` before. It is committed before the block runs. A delivery that already is `releasing` can be
        claimed once its ``next_try_at`` has passed, whatever ``allowed`` contains. Entering raises NotFound, or
        AlreadyDone with the delivery (already released, deleted, claimed by another process). Before a delivery in an
        allowed state is claimed, ``check`` is called with it, under the lock of its row: if it raises, nothing changes.

        On exit:
        - no error: `released`; the event's detail is the return value of ``answer``, the mail server's answer;
        - RelayDeferred: stays `releasing` with the error's text as reason, ``next_try_at`` = now + back-off (1, 2, 4 …
          minutes, at most 1 h);
        - RelayRefused, NotAllowed, BodyMissing or BodyDamaged: `held` again with the error's text as reason;
        - any other error: as RelayDeferred, with the reason "internal error".
        Events: `releasing` if the state was another one before; then, for each try, `released`, `deferred`, `failed`
        or, for NotAllowed, `stopped`.
        The exception is raised again in each case. If recording the outcome fails, the lease expires and the release is
        retried: the mail may arrive twice, but is never dropped. If another process took the claim over in the
        meantime, only success is recorded.
        """

    @abstractmethod
    def aged(
        self, since: datetime, before: datetime, limit: int, after: DeliveryId | None = None
    ) -> Sequence[tuple[Ending, Tier]]:
        """Return deliveries of messages held from ``since`` to ``before``, each with its message's tier, oldest first,
        beginning after the delivery ``after``. Those that are requested, releasing or forgotten are left out."""

    @abstractmethod
    def due_releases(self, now: datetime, limit: int) -> Sequence[DeliveryId]:
        """Return deliveries in `releasing` whose ``next_try_at`` has passed, longest waiting first."""


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
    def settle(self, sent: Sequence[Digest], unsent: Sequence[Unsent], now: datetime) -> None:
        """End claims. Durable on return.

        Deliveries of sent digests become announced, also when another process took the claim over in the meantime. All
        others stay unannounced.
        """

    @abstractmethod
    def unannounced(self, reader: Reader, limit: int) -> Sequence[Delivery]:
        """Return the deliveries that a claimed digest would hold, without claiming it."""

    @abstractmethod
    def request(self, reader: Reader, now: datetime, since: datetime) -> DigestRequest:
        """Make a reader's digest due now, unless they requested one after ``since``.

        The digest holds unannounced deliveries. If there are none, deliveries of the reader's last digest that are
        still held count as unannounced again.
        """

    @abstractmethod
    def last(self, recipient: str) -> Digest | None:
        """Return the last digest sent to a recipient, with those of its deliveries that are still kept, or None."""

    @abstractmethod
    def get(self, digest_id: UUID) -> Digest:
        """Return a digest with those of its deliveries that are still kept, oldest first; without any until it is
        recorded as sent. Kept for `DIGESTS_KEPT`. Raises NotFound."""

    @abstractmethod
    def recipient_of(self, digest_id: UUID) -> str:
        """Return the recipient of a digest. Kept for `DIGESTS_KEPT`. Raises NotFound."""

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
    def set_digests_stopped(
        self, recipient: str, stopped_at: datetime | None, *, mail: QueuedMail | None = None
    ) -> bool:
        """Stop (a time) or resume (None) a recipient's digests. Mail held while stopped is announced after resuming.

        Returns whether this call changed anything; stopping twice keeps the first time. ``mail`` is queued in the same
        transaction if this call stopped the digests, at most once an hour for each recipient.
        """

    @abstractmethod
    def set_preferences(self, recipient: str, preferences: Preferences) -> None:
        """Set a recipient's preferences. Their next digest must be scheduled again, see `unscheduled`."""

    @abstractmethod
    def revoke_links(self, recipient: str, issued_before: datetime) -> None:
        """Revoke this recipient's links that were issued before this moment."""

    @abstractmethod
    def forget_devices(self, recipient: str, known_before: datetime) -> None:
        """Let browsers not be known in which this recipient pressed a button before this moment."""

    @abstractmethod
    def unscheduled(self, limit: int) -> Sequence[Person]:
        """Return recipients with news, not stopped, whose next digest is not scheduled."""

    @abstractmethod
    def schedule(self, recipient: str, at: datetime) -> None:
        """Set when a recipient's next digest is due, unless it is scheduled already."""

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
    def start_session(self, session_sha256: bytes, recipient: str, now: datetime, client: str = "") -> None:
        """Begin a session. It ends after 12 h without use, or after 7 days. ``client``: see `StartedSession`."""

    @abstractmethod
    def session(self, session_sha256: bytes, now: datetime) -> SignedIn | None:
        """Return the recipient of a session, or None if it is unknown or has ended. Records its use, at most once a
        minute."""

    @abstractmethod
    def sessions(self, recipient: str, limit: int, now: datetime) -> Sequence[StartedSession]:
        """Return the sessions of a recipient that have not ended, the last used first."""

    @abstractmethod
    def end_session(self, session_sha256: bytes) -> None:
        """End a session."""

    @abstractmethod
    def end_sessions(self, recipient: str, only: bytes | None = None) -> int:
        """End all sessions of a recipient, or the one with the hash ``only`` if it is theirs. Return how many ended.

        Durable on return, and at once: every request looks its session up.
        """


class Outbox(ABC):
    """Queue of the portal's own mail."""

    @abstractmethod
    def add(self, mail: QueuedMail, now: datetime) -> None:
        """Queue a mail. Durable on return."""

    @abstractmethod
    def sending(self, now: datetime) -> AbstractContextManager[OutgoingMail | None]:
        """Claim one queued mail; yield None when none is due.

        On exit without an error or with RelayRefused the mail is removed. After any other error it is retried with
        exponential backoff (10 s, doubling, at most 15 min; removed after a day). The exception is raised again.
        """


class Jobs(ABC):
    """Background jobs: work that outlives the request that began it. The digest process of any host runs them.

    A job that its process did not finish, because it died or lost the store, is claimed again once its lease expired:
    each step must be safe to repeat. ``kind`` names the function that runs it, ``arguments`` are a JSON object.
    """

    @abstractmethod
    def add(
        self, kind: str, arguments: Mapping[str, Any], actor: Actor, now: datetime, not_before: datetime | None = None
    ) -> UUID:
        """Queue a job and return its id. Durable on return."""

    @abstractmethod
    def get(self, job_id: UUID) -> Job:
        """Return a job. Kept for `JOBS_KEPT` after its end. Raises NotFound."""

    @abstractmethod
    def claim(self, kind: str, count: int, now: datetime) -> Sequence[Job]:
        """Claim up to ``count`` jobs of this kind, the longest due first, until ``now`` + LEASE. Counts a try."""

    @abstractmethod
    def keep(self, job: Job, progress: Mapping[str, Any], now: datetime) -> None:
        """Record how far a claimed job is, and extend its claim to ``now`` + LEASE.

        Raises AlreadyDone if another process claimed it in the meantime: the caller must stop.
        """

    @abstractmethod
    def retry(self, job: Job, not_before: datetime, *, tried: bool = True) -> None:
        """End a claim; the job is due again at ``not_before``. ``tried`` False: it was not begun, the try is not
        counted. Does nothing if another process claimed it in the meantime."""

    @abstractmethod
    def finish(self, job: Job, outcome: str | None, now: datetime) -> None:
        """End a job with its outcome, a text for people; None removes it, if its outcome is recorded elsewhere.

        Does nothing if another process claimed it in the meantime.
        """


class Votes(ABC):
    """Votes on what messages are. Each person has one vote on a campaign, the last one. Kept for `VOTES_KEPT`."""

    @abstractmethod
    def cast(self, vote: Vote, at_most: int, since: datetime) -> bool:
        """Record a vote in place of the person's earlier vote on the campaign. Durable on return.

        Returns False, with nothing changed, if the person voted on ``at_most`` other campaigns after ``since``.
        """

    @abstractmethod
    def withdraw(self, vote: Vote) -> bool:
        """Set the label of a vote to `NONE`. Durable on return. Return False if the person has cast another vote on the
        campaign since, or none."""

    @abstractmethod
    def of_campaign(self, campaign: bytes, label: Label, limit: int) -> Sequence[Vote]:
        """Return the votes with this label on a campaign, newest first."""


class Rules(ABC):
    """Allow and block rules. At most one rule in use has the same scope and sender.

    Rules that were removed or have expired are kept for `RULES_KEPT`: they say who changed what. Of a recipient, only
    the last `RULES_PER_RECIPIENT` removed ones are kept.
    """

    @abstractmethod
    def add(self, rules: Sequence[Rule], now: datetime) -> Sequence[Rule]:
        """Add rules. Durable on return. Idempotent.

        Raises TooManyRules if they exceed a limit, with none of them added. More than 500 rules are added in several
        transactions, so that ingest can run in between: after StoreUnavailable some of them may have been added.
        Each replaces the rule in use with the same scope and sender; that one is removed by the actor of the new one.
        Of two rules of one call with the same scope and sender, the last one is added. Returns the rules in use:
        those added, and existing ones with the same effect, expiry, note and binding.
        """

    @abstractmethod
    def get(self, rule_id: UUID) -> Rule:
        """Return a rule, also one that was removed or has expired. Raises NotFound."""

    @abstractmethod
    def remove(self, rule_id: UUID, actor: Actor, now: datetime) -> Rule:
        """Remove a rule. Durable on return. Raises NotFound, AlreadyDone."""

    @abstractmethod
    def restore(self, rule_id: UUID, now: datetime) -> Rule:
        """Undo `remove`. Raises NotFound; AlreadyDone if the rule or a newer one for the same sender is in use;
        TooManyRules."""

    @abstractmethod
    def list(
        self,
        scopes: Collection[str] | None,
        limit: int,
        now: datetime,
        before: UUID | None = None,
        *,
        removed: bool = False,
    ) -> Sequence[Rule]:
        """Return the active rules of these scopes, newest first, beginning after the rule ``before``.

        ``scopes`` None: all scopes. ``removed``: the rules that were removed or have expired instead.
        """

    @abstractmethod
    def matching(
        self, scopes: Collection[str], senders: Collection[str], networks: Collection[str], now: datetime
    ) -> Sequence[Rule]:
        """Return the active rules with one of these scopes and one of these senders.

        Rules with a sender of ``networks`` are returned for domains and the site only. Each pair of scope and sender
        is one step in an index.
        """

    @abstractmethod
    def active(self, now: datetime, *, recipients: bool) -> Iterator[ActiveRule]:
        """Yield the active rules of all recipients, or of domains and the site. Those of one scope follow each other.

        They are read in pages, so a rule that is changed in the meantime may be missing; `last_change` shows that.
        """

    @abstractmethod
    def last_change(self) -> UUID | None:
        """Return the id of the last change of rules, None before the first one. Its time is that of the change.

        Rules that expire change without it.
        """

    @abstractmethod
    def count_hits(self, hits: Mapping[UUID, int], now: datetime) -> None:
        """Add to the numbers of deliveries that rules decided. Not necessarily durable."""

    @abstractmethod
    def records(self, after: UUID | None, limit: int) -> Sequence[Rule]:
        """Return rules after this id, oldest first, for a copy, also those removed or expired."""

    @abstractmethod
    def import_records(self, rules: Sequence[Rule], now: datetime, *, replace_changed: bool) -> None:
        """Store rules of another store. Durable on return.

        ``replace_changed``: they replace the rules that this store has under their ids, or for the same scope and
        sender. Otherwise this store's rules stay as they are.
        """


class DomainValues(ABC):
    """Values of domains that administrators set, with their history. Each setting of a domain has one value in use."""

    @abstractmethod
    def set(self, values: Sequence[DomainValue]) -> None:
        """Set values, or remove those whose value is None. Durable on return. Idempotent.

        Of several values of one setting, the one with the newest id is in use, in whatever order they are set: so this
        also stores the values of another store, replaced ones included.
        """

    @abstractmethod
    def in_use(self) -> Sequence[DomainValue]:
        """Return the values in use, also the removed ones that no other replaced, ordered by domain and name."""

    @abstractmethod
    def version(self) -> str:
        """Return a text that changes with each change, to find out quickly whether there was one."""

    @abstractmethod
    def history(self, domain: str, limit: int) -> Sequence[DomainValue]:
        """Return the values that a domain has and had in the last `DOMAIN_VALUES_KEPT`, newest first."""

    @abstractmethod
    def records(self, after: UUID | None, limit: int) -> Sequence[DomainValue]:
        """Return values after this id, oldest first, for a copy, also those replaced."""


class Notes(ABC):
    """Named texts and counters, for the processes that share the store."""

    @abstractmethod
    def get(self, name: str) -> str | None:
        """Return a note, or None."""

    @abstractmethod
    def set(self, name: str, value: str) -> None:
        """Set a note."""

    @abstractmethod
    def set_default(self, name: str, value: str) -> str:
        """Set a note unless it is set; return its value afterwards."""

    @abstractmethod
    def compare_and_set(
        self, name: str, old: str | None, new: str, now: datetime, *, mail: QueuedMail | None = None
    ) -> bool:
        """Set a note if its value is ``old`` (None: not set); return whether it was set. If so, ``mail`` is queued in
        the same transaction."""

    @abstractmethod
    def add_counters(self, amounts: Mapping[str, float]) -> None:
        """Add amounts to counters, by name. Not necessarily durable."""

    @abstractmethod
    def counters(self) -> Mapping[str, float]:
        """Return all counters."""


class Store(ABC):
    """All data of the portal. Thread-safe; opened after the fork, one per process.

    Every method of it and of its parts may raise `StoreUnavailable`.
    """

    messages: Messages
    deliveries: Deliveries
    digests: Digests
    recipients: Recipients
    sign_ins: SignIns
    outbox: Outbox
    jobs: Jobs
    votes: Votes
    rules: Rules
    domains: DomainValues
    notes: Notes

    @abstractmethod
    def ping(self) -> None:
        """Return if the store can be written to now, within 2 s."""

    @abstractmethod
    def close(self) -> None:
        """Close files and connections. May be called twice."""

    @abstractmethod
    def heartbeat(self, now: datetime) -> None:
        """Record that the digest process is alive."""

    @abstractmethod
    def stats(self, now: datetime) -> Stats:
        """Return the numbers for `/healthz` and `/metrics`."""

    def health(self, now: datetime) -> Stats:
        """Return the numbers of `stats` if the store can be written to now, as `ping` does."""
        self.ping()
        return self.stats(now)

    @abstractmethod
    def repair_clock_skew(self, now: datetime) -> int:
        """Repair times that a clock that was ahead left; return how many recipients, releases and mails were changed.

        Digests scheduled more than ten days ahead are unscheduled, claims and retries that end more than a day ahead
        end now, and times of digest requests later than ``now`` are cleared.
        """

    @abstractmethod
    def purge(self, before: datetime, now: datetime) -> Purged:
        """Remove messages held before ``before`` with all their data, except those with a delivery that is `requested`
        or `releasing`; remove leftovers of crashes, expired sign-ins, sessions, link opens and digests.

        Never blocks ingest for longer than 100 ms at a time.
        """

    @abstractmethod
    def expire(self, deliveries: Sequence[Ending]) -> int:
        """Forget deliveries unless their state has changed: recipients and operators cannot find them any more.

        A message without other deliveries is removed with all its data, as by `purge`. Returns how many were forgotten.
        """

    @abstractmethod
    def prepare_days(self, now: datetime, retention_days: int) -> None:
        """Create the partitions or folders for the coming days, so that `Messages.add` need not. Called daily; `add`
        also works without it.

        ``retention_days``: how long messages are kept, which determines how many days a new partition has, or a new
        index of words.
        """
