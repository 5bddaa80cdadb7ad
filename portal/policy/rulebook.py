"""The rules of the store, with the checks of who may make and change which: `Rulebook`.

A rule of a person is stored for the identity they are notified under, and holds for all addresses that only they read.
A rule of a role mailbox is stored for the mailbox, and all its readers may change it. Rules of domains and the site are
made by operators, and by tokens of the API whose role permits it.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from portal.model.clock import utc_now
from portal.model.domains import to_unicode
from portal.model.errors import BadRule, NotFound
from portal.model.look_alikes import looks_alike
from portal.model.message import Actor, Facts, Message, Reader, Tier, domain, new_id
from portal.model.record import record
from portal.model.rule import (
    NOTE_CHARACTERS,
    RULES_PER_RECIPIENT,
    Effect,
    Rule,
    ScopeKind,
    SenderKind,
    recipient_scopes,
    scope_kind,
    sender_kind,
    wider_senders,
)
from portal.model.sender import LOOKS_ALIKE, authentic, trusted
from portal.model.text import N_, shown
from portal.people import Directory
from portal.policy.decision import Decision, decide, sender_keys
from portal.policy.entry import check_sender, read_scope, read_sender, senders_of
from portal.stores import Store

log = logging.getLogger("quarantine.rules")

BINDING = "Only a block rule for a domain or the site can be binding."
NETWORK_SCOPE = "A rule for a network must be for a domain or the site."
EXPIRED = "The end of the rule is in the past."
NOTE = f"A note has at most {NOTE_CHARACTERS} characters."

# A part that differs in each message: a number, a hash, or the recipient's address after a "=" (VERP, SRS, BATV).
_CHANGING = re.compile(r"=|[0-9]{6}|[0-9a-f]{12}|^(?:bounces?|return|msprvs[0-9]?)[-+_.]")


class Hint(StrEnum):
    """Something that the author of a rule should know. It does not prevent the rule."""

    OVERRULED = "overruled"  # a binding block of the domain or the site overrules it
    OVERRIDES = "overrides"  # it overrides a rule of the domain or the site
    NOT_AUTHENTIC = "not-authentic"  # an allow rule from a message whose sender is not authentic
    CHANGING_ADDRESS = "changing-address"  # the sender's address differs in each message
    OWN_DOMAIN = "own-domain"  # the sender is an address or a domain of the site
    LOOKS_ALIKE = "looks-alike"  # the sender's domain imitates another one
    REPLACES = "replaces"  # it replaces a rule of the same scope for the same sender with the other effect
    NOT_LOCAL = "not-local"  # the recipient or domain is not local


# Those that recipients see, as texts to be translated.
HINTS = {
    Hint.OVERRULED: N_("Your administrator blocks this sender, so messages are still held."),
    Hint.OVERRIDES: N_("Your administrator has another rule for this sender. Yours takes precedence for you."),
    Hint.NOT_AUTHENTIC: N_("This message is not authenticated. Only authenticated messages are let through."),
    Hint.CHANGING_ADDRESS: N_("This address probably changes with each message. Add its domain instead."),
    Hint.OWN_DOMAIN: N_("This sender belongs to your own organization."),
    Hint.LOOKS_ALIKE: LOOKS_ALIKE,
    Hint.REPLACES: N_("You have the opposite rule for this sender. It will be replaced."),
}


@record(frozen=True, slots=True)
class Rulebook:
    """Makes, lists and removes rules, and decides about messages."""

    store: Store
    people: Directory
    local_domains: Collection[str]  # domains and addresses, as in the settings
    is_local: Callable[[str], bool]
    now: Callable[[], datetime] = utc_now

    # ---- decisions

    def decide(
        self, message: Facts, tier: Tier, recipients: Collection[str], *, scanned: bool
    ) -> Mapping[str, Decision]:
        """Return the decision for each of these identities. Parameters as for `decision.decide`.

        Raises StoreUnavailable.
        """
        scopes = {recipient: recipient_scopes(self._names(recipient)) for recipient in recipients}
        keys = sender_keys(message)
        wanted = dict.fromkeys(scope for levels in scopes.values() for level in levels for scope in level)
        rules = self.store.rules.matching(wanted, keys.names, list(keys.networks), self.now())
        return decide(message, tier, scopes, rules, scanned=scanned)

    def count(self, decisions: Mapping[str, Decision]) -> None:
        """Add one to the hits of a rule for each delivery that it decided. Raises StoreUnavailable."""
        hits = Counter(each.rule.id for each in decisions.values() if each.rule is not None and each.effect is not None)
        if hits:
            self.store.rules.count_hits(hits, self.now())

    def _names(self, recipient: str) -> tuple[str, ...]:
        readers = self.people.readers(recipient)
        return (recipient, readers[0]) if len(readers) == 1 else (recipient,)

    # ---- by operators

    def rule(
        self,
        scope: str,
        sender: str,
        effect: Effect,
        actor: Actor,
        *,
        binding: bool = False,
        expires_at: datetime | None = None,
        note: str = "",
    ) -> Rule:
        """Return a new rule, to be added. ``scope`` and ``sender`` as an operator writes them. Raises BadRule."""
        found, key = read_scope(scope), read_sender(sender, networks=True)
        if scope_kind(found) is ScopeKind.RECIPIENT:
            if sender_kind(key) is SenderKind.NETWORK:
                raise BadRule(NETWORK_SCOPE)
            found = self.owner(self.people.held_as(found))
        made = self._new(found, key, effect, actor)
        return self._checked(replace(made, binding=binding, expires_at=expires_at, note=note))

    def add(self, rules: Sequence[Rule]) -> Sequence[Rule]:
        """Add rules. Returns those in use, see `Rules.add`. Raises TooManyRules, StoreUnavailable."""
        in_use = self.store.rules.add(rules, self.now())
        added = {rule.id for rule in rules} & {rule.id for rule in in_use}
        if added:
            log.info("rules added count=%d scope=%s by=%s", len(added), rules[0].scope, rules[0].actor.who)
        return in_use

    def remove(self, rule_id: UUID, actor: Actor) -> Rule:
        """Remove any rule. Raises NotFound, AlreadyDone, StoreUnavailable."""
        removed = self.store.rules.remove(rule_id, actor, self.now())
        log.info("rule removed id=%s scope=%s by=%s", removed.id, removed.scope, actor.who)
        return removed

    # ---- by recipients

    def own(self, reader: Reader) -> Sequence[Rule]:
        """Return the rules that a person may change, newest first."""
        limit = RULES_PER_RECIPIENT * len(reader.identities)
        return self.store.rules.list(reader.identities, limit, self.now())

    def own_rule(
        self, reader: Reader, recipient: str, sender: str, effect: Effect, actor: Actor, message: Message | None = None
    ) -> Rule:
        """Return a new rule of a person for one of the identities they read, to be added.

        ``message``: the held message it is made from. Raises BadRule; NotFound for another person's identity.
        """
        if recipient not in reader.identities:
            raise NotFound("there is no such recipient")
        made = self._new(self.owner(recipient), read_sender(sender), effect, actor)
        return self._checked(replace(made, message_id=message.id if message else None))

    def own_by_id(self, reader: Reader, rule_id: UUID) -> Rule:
        """Return a rule of a person. Raises NotFound, also for one of other people, a domain or the site."""
        rule = self.store.rules.get(rule_id)
        if rule.scope not in reader.identities:
            raise NotFound("there is no such rule")
        return rule

    def own_in_use(self, reader: Reader, scope: str, sender: str) -> Rule | None:
        """Return the active rule of a person with these keys, None for one of other people, a domain or the site."""
        if scope not in reader.identities:
            return None
        return next(iter(self.store.rules.matching([scope], [sender], [], self.now())), None)

    def remove_own(self, reader: Reader, rule_id: UUID, actor: Actor) -> Rule:
        """Remove a rule of a person. Raises NotFound, AlreadyDone."""
        return self.remove(self.own_by_id(reader, rule_id).id, actor)

    def restore_own(self, reader: Reader, rule_id: UUID, actor: Actor) -> Rule:
        """Put back a removed rule of a person. Raises NotFound, AlreadyDone, TooManyRules."""
        restored = self.store.rules.restore(self.own_by_id(reader, rule_id).id, actor, self.now())
        log.info("rule restored id=%s scope=%s by=%s", restored.id, restored.scope, actor.who)
        return restored

    def owner(self, recipient: str) -> str:
        """Return the identity that keeps the rules for messages to a recipient: their only reader, else themselves."""
        return self._names(recipient)[-1]

    def sender_at_once(self, message: Message, effect: Effect) -> str:
        """Return the sender for whom a rule may be made by the same button as another action, "" if there is none.

        It is one address, never a domain, and not one that differs in each message. It is allowed only if it is proven
        and the message is spam at worst. It is not blocked if it may be forged: it is of the site, or not proven in a
        message that is worse than spam.
        """
        sender, is_spam = next(iter(senders_of(message)), ""), message.tier is Tier.SPAM
        if effect is Effect.ALLOW:
            may_rule = is_spam and trusted(message)
        else:
            may_rule = (is_spam or authentic(message)) and not self._is_own(sender)
        return sender if may_rule and not _changes(sender) else ""

    # ---- checks and hints

    def _new(self, scope: str, sender: str, effect: Effect, actor: Actor) -> Rule:
        now = self.now()
        return Rule(id=new_id(now), scope=scope, sender=sender, effect=effect, created_at=now, actor=actor)

    def _checked(self, rule: Rule) -> Rule:
        check_sender(rule.effect, rule.sender, self.local_domains)
        if rule.binding and (rule.effect is not Effect.BLOCK or rule.scope_kind is ScopeKind.RECIPIENT):
            raise BadRule(BINDING)
        if rule.expires_at is not None and rule.expires_at <= rule.created_at:
            raise BadRule(EXPIRED)
        if len(rule.note) > NOTE_CHARACTERS:
            raise BadRule(NOTE)
        return replace(rule, note=shown(rule.note, NOTE_CHARACTERS))

    def hints(self, rule: Rule, message: Message | None = None) -> Sequence[Hint]:
        """Return what the author of a rule should know. ``message``: the one it is made from."""
        return self.hints_of([(rule, message)])[0]

    def hints_of(self, rules: Sequence[tuple[Rule, Message | None]]) -> Sequence[Sequence[Hint]]:
        """Return the `hints` of each of these rules of one call, with one query of the store."""
        keys = [_Keys.of(rule) for rule, _ in rules]
        found = self.store.rules.matching(
            dict.fromkeys(scope for each in keys for scope in (*each.wider, each.scope)),
            dict.fromkeys(sender for each in keys if not each.is_network for sender in each.senders),
            [*dict.fromkeys(sender for each in keys if each.is_network for sender in each.senders)],
            self.now(),
        )
        return [
            [*_conflicts(rule, each, found), *self._other_hints(rule, message)]
            for (rule, message), each in zip(rules, keys, strict=True)
        ]

    def in_use(self, rule: Rule, message: Message) -> tuple[Rule | None, Sequence[Hint]]:
        """Return the rule in use with the keys and effect of this one, None without one, and its `hints`.

        One query of the store returns both.
        """
        keys = _Keys.of(rule)
        found = self.store.rules.matching([*keys.wider, keys.scope], keys.senders, [], self.now())
        same = (rule.scope, rule.sender, rule.effect)
        own = next((each for each in found if (each.scope, each.sender, each.effect) == same), None)
        return own, [*_conflicts(rule, keys, found), *self._other_hints(rule, message)]

    def _other_hints(self, rule: Rule, message: Message | None) -> Sequence[Hint]:
        found = {
            Hint.NOT_AUTHENTIC: rule.effect is Effect.ALLOW and message is not None and not authentic(message),
            Hint.CHANGING_ADDRESS: _changes(rule.sender),
            Hint.OWN_DOMAIN: self._is_own(rule.sender),
            Hint.LOOKS_ALIKE: rule.effect is Effect.ALLOW and looks_alike(to_unicode(domain(rule.sender))),
            Hint.NOT_LOCAL: not self._is_local(rule),
        }
        return [hint for hint, applies in found.items() if applies]

    def _is_own(self, sender: str) -> bool:
        return domain(sender) in {domain(name) for name in self.local_domains}

    def _is_local(self, rule: Rule) -> bool:
        match rule.scope_kind:
            case ScopeKind.RECIPIENT:
                return any(map(self.is_local, self.people.readers(rule.scope)))
            case ScopeKind.DOMAIN:
                return domain(rule.scope) in {domain(name) for name in self.local_domains}
            case _:
                return True


@record(frozen=True, slots=True)
class _Keys:
    """The keys of rules that may contradict a rule."""

    scope: str  # its own
    wider: Sequence[str]  # scopes, the narrowest first
    senders: Sequence[str]  # its own, then wider ones
    is_network: bool

    @classmethod
    def of(cls, rule: Rule) -> _Keys:
        """Return the keys for a rule."""
        scopes = [*dict.fromkeys(scope for level in recipient_scopes([rule.scope]) for scope in level)]
        wider = scopes[scopes.index(rule.scope) + 1 :]
        return cls(rule.scope, wider, wider_senders(rule.sender), rule.sender_kind is SenderKind.NETWORK)


def _conflicts(rule: Rule, keys: _Keys, found: Sequence[Rule]) -> Sequence[Hint]:
    """Return whether other rules for the same sender, or for a wider one, overrule or contradict a rule.

    ``found``: the rules in use with these keys, and others.
    """
    related = [each for each in found if each.scope in keys.wider and each.sender in keys.senders]
    best = {
        scope: min((each for each in related if each.scope == scope), key=lambda each: keys.senders.index(each.sender))
        for scope in {each.scope for each in related}
    }
    own = [each for each in found if (each.scope, each.sender) == (rule.scope, rule.sender)]
    replaces = [Hint.REPLACES] if any(each.effect is not rule.effect for each in own) else []
    if any(each.binding for each in best.values()):
        return [*replaces, Hint.OVERRULED] if rule.effect is Effect.ALLOW else replaces
    nearest = next((best[scope] for scope in keys.wider if scope in best), None)
    return [*replaces, Hint.OVERRIDES] if nearest is not None and nearest.effect is not rule.effect else replaces


def _changes(sender: str) -> bool:
    return sender_kind(sender) is SenderKind.ADDRESS and bool(_CHANGING.search(sender.rpartition("@")[0]))
