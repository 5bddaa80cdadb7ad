"""The decision about a message by the rules of its recipients. Pure functions.

The order is: malware, forced verdict, then the rule of the recipient, of their domain, of the site. Within one scope an
address is more specific than its domain, and that more than the parent domains; networks come last. Of two rules of
equal rank, block wins, and of two blocks a binding one. A binding block of a domain or the site wins over all narrower
rules.

Block rules match every address in the From field, and the envelope sender. Allow rules match the From field alone, and
have an effect only if the owner of its domain sent the message (`sender.authentic`). An allow rule for a network
matches the sending host, and needs an authentic From as well. An allow rule without an effect still overrides wider
blocks: then no rule decides, and Rspamd's verdict applies.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from enum import StrEnum

from portal.model import from_header
from portal.model.message import Facts, Flag, Tier, identity
from portal.model.record import record
from portal.model.rule import Effect, Rule, address_keys, network_keys
from portal.model.sender import authentic

Levels = tuple[tuple[str, ...], ...]  # of `recipient_scopes`


class WhyNot(StrEnum):
    """Why an allow rule has no effect on a message."""

    MALWARE = "malware"  # the message is dangerous
    FORCED = "forced"  # Rspamd's verdict was forced, perhaps before any filter ran
    SUSPICIOUS = "suspicious"
    NOT_AUTHENTIC = "not authentic"
    NOT_SCANNED = "not scanned"  # no virus scanner has read the message


@record(frozen=True, slots=True)
class Decision:
    """The decision of the rules about one delivery."""

    effect: Effect | None = None  # None: Rspamd's verdict applies
    rule: Rule | None = None  # that decides, or that would allow the message; None: no rule matches
    why_not: WhyNot | None = None  # why that rule does not allow it
    overruled: Rule | None = None  # the allow rule that a binding block overrules


NOTHING = Decision()


@record(frozen=True, slots=True)
class SenderKeys:
    """The senders of rules that match a message, each with its rank: the lower, the more specific."""

    header_from: Mapping[str, int]
    envelope: Mapping[str, int]
    networks: Mapping[str, int]

    @property
    def names(self) -> list[str]:
        """All addresses and domains."""
        return [*{**self.header_from, **self.envelope}]

    def rank(self, rule: Rule) -> int | None:
        """Return how specific a rule is for the message, None if it does not match."""
        seen = (self.header_from, self.networks, self.envelope if rule.effect is Effect.BLOCK else {})
        return min((ranks[rule.sender] for ranks in seen if rule.sender in ranks), default=None)


def sender_keys(message: Facts) -> SenderKeys:
    """Return the senders of rules that match a message."""
    shown = [identity(mailbox.address) for mailbox in from_header.parse(message.header_from) if mailbox.address]
    networks = network_keys(message.client_ip)
    return SenderKeys(
        _ranks(shown),
        _ranks([identity(message.envelope_sender)] if message.envelope_sender else []),
        # After all domains: a domain has at most 127 labels (RFC 1035, 2.3.4).
        {network: 128 + position for position, network in enumerate(networks)},
    )


def _ranks(addresses: Collection[str]) -> dict[str, int]:
    ranks: dict[str, int] = {}
    for address in addresses:
        for rank, key in enumerate(address_keys(address)):
            ranks[key] = min(rank, ranks.get(key, rank))
    return ranks


def decide(
    message: Facts, tier: Tier, scopes: Mapping[str, Levels], rules: Iterable[Rule], *, scanned: bool
) -> dict[str, Decision]:
    """Return the decision for each recipient. Rules that do not match are ignored.

    ``tier``: by the verdict and the scan, if there was one; ``scopes``: the levels of each recipient
    (`recipient_scopes`); ``rules``: active ones; ``scanned``: a virus scanner has read the message, or the site uses
    none. If only the scan is missing, the reason is `NOT_SCANNED`, so that a caller can scan (`after_scan`).
    """
    keys = sender_keys(message)
    ranked: dict[str, list[tuple[int, bool, Rule]]] = {}
    for rule in rules:
        rank = keys.rank(rule)
        if rank is not None:
            ranked.setdefault(rule.scope, []).append((rank, rule.effect is Effect.ALLOW, rule))
    if not ranked:
        return dict.fromkeys(scopes, NOTHING)
    reason = why_not(message, tier, scanned=scanned)
    return {recipient: _decision(levels, ranked, reason) for recipient, levels in scopes.items()}


def _decision(levels: Levels, ranked: Mapping[str, list[tuple[int, bool, Rule]]], why_not: WhyNot | None) -> Decision:
    winners = []
    for level in levels:
        matching = [entry for scope in level for entry in ranked.get(scope, ())]
        if matching:
            winners.append(min(matching, key=lambda entry: (entry[:2], not entry[2].binding, entry[2].id))[2])
    for n in range(len(winners) - 1, -1, -1):
        if winners[n].binding:
            overruled = next((rule for rule in winners[:n] if rule.effect is Effect.ALLOW), None)
            return Decision(Effect.BLOCK, winners[n], overruled=overruled)
    if not winners:
        return NOTHING
    if winners[0].effect is Effect.BLOCK:
        return Decision(Effect.BLOCK, winners[0])
    return Decision(Effect.ALLOW if why_not is None else None, winners[0], why_not)


def after_scan(decisions: Mapping[str, Decision]) -> dict[str, Decision]:
    """Return the decisions about the same message after a virus scanner found nothing in it."""
    return {
        recipient: replace(each, effect=Effect.ALLOW, why_not=None) if each.why_not is WhyNot.NOT_SCANNED else each
        for recipient, each in decisions.items()
    }


def why_not(message: Facts, tier: Tier, *, scanned: bool) -> WhyNot | None:
    """Return why no allow rule can have an effect on a message, None if one can. Parameters as for `decide`."""
    if tier is Tier.DANGEROUS:
        return WhyNot.MALWARE
    if Flag.FORCED in message.flags:
        return WhyNot.FORCED
    if tier is not Tier.SPAM:
        return WhyNot.SUSPICIOUS
    if not authentic(message):
        return WhyNot.NOT_AUTHENTIC
    return None if scanned else WhyNot.NOT_SCANNED
