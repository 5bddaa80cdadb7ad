"""The contracts of rules, votes and values of domains."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime
from uuid import UUID

from portal.model.domain_value import DomainValue
from portal.model.message import Actor
from portal.model.rule import Rule
from portal.model.vote import Label, Vote
from portal.stores.records import ActiveRule


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
    def restore(self, rule_id: UUID, actor: Actor, now: datetime) -> Rule:
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

        Of several values of one setting, the one with the newest id is in use, in whatever order they are set.
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

    @abstractmethod
    def import_records(self, values: Sequence[DomainValue]) -> None:
        """Store values of another store, replaced ones included, as `set` does. Durable on return."""
