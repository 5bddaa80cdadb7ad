"""Lines of the file store's audit journal: actions on deliveries, recipients' preferences, rules, values of domains,
roles and second factors of staff, API tokens, and statistics.

If the SQLite file is lost, it is rebuilt from the mail files (`files.reindex`). The journal has the data that is not in
the mail files, one JSON object per line. Lines are snapshots, not steps: replaying them in order is idempotent and ends
with the state of the last line.

    {"at": …, "kind": "delivery", "id": …, "number": 0, "recipient": …, "address": …, "state": "released",
     "state_at": …, "reason": "", "attempts": 1, "next_try_at": null, "announced_at": null,
     "events": [{"at": …, "what": "released", "who": "recipient", "via": "link", "address": "192.0.2.7", "detail": ""}]}
    {"at": …, "kind": "verdict", "id": …, "tier": "dangerous", "symbols": [[name, score, [option, …], description], …],
     "score": …, "threshold": …, "action": "reject", "flags": []}
    {"at": …, "kind": "scan", "id": …, "scan": {"outcome": "clean", "at": …, "symbols": [], "detail": ""}}
    {"at": …, "kind": "person", "recipient": …, "address": …, "stopped_at": null, "links_valid_from": …,
     "preferences": null}
    {"at": …, "kind": "told", "reader": …, "deliveries": [[id, number], …]}
    {"at": …, "kind": "digest", "id": …, "recipient": …, "address": …, "issued_at": …, "sent_at": …,
     "deliveries": [[id, number], …]}
    {"at": …, "kind": "rule", "id": …, "scope": …, "sender": …, "effect": "block", "binding": false, "created_at": …,
     "by": {"who": …, "via": …, "address": …}, "message_id": null, "expires_at": null, "note": "", "hits": 0,
     "last_hit_at": null, "removed_at": null, "removed_by": null}
    {"at": …, "kind": "domain", "id": …, "domain": …, "name": "language", "value": "fr", "set_at": …,
     "by": {"who": …, "via": …, "address": …}, "replaced_at": null}
    {"at": …, "kind": "audit", "id": …, "done_at": …, "act": "signed-in", "by": {"who": …, "via": …, "address": …},
     "subject": "alice@example.org", "delivery": null, "detail": "", "domain": "example.org"}
    {"at": …, "kind": "staff", "person": …,
     "roles": [{"role": "help-desk", "domain": "", "given_at": …, "by": {"who": …, "via": …, "address": …}}]}
    {"at": …, "kind": "token", "id": …, "secret_sha256": "…", "name": …, "owner": …, "role": "help-desk", "domain": "",
     "scope": "read", "created_at": …, "by": {"who": …, "via": …, "address": …}, "expires_at": …, "used_at": null,
     "revoked_at": null}
    {"at": …, "kind": "second-factor", "person": …,
     "factor": {"salt": "0011…", "key": …, "created_at": …, "recovery": [hash, …]}}  or null
    {"at": …, "kind": "statistics", "day": "2026-01-31", "counts": [["example.org", "tier", "held", "spam", 12], …]}
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, date, datetime
from typing import Any
from uuid import UUID

from portal.model.audit import AuditEntry
from portal.model.domain_value import DomainValue
from portal.model.message import Actor, Delivery, DeliveryId, Event, EventKind, Flag, Message, Tier, identity
from portal.model.rule import Effect, Rule
from portal.model.second_factor import SecondFactor
from portal.model.staff import Grant, Role
from portal.model.statistics import Count
from portal.model.token import Scope, Token
from portal.stores import scans, symbols
from portal.stores.records import DigestRecord, Person


def delivery_line(delivery: Delivery, events: Sequence[Event]) -> dict[str, Any]:
    """Return the line with a delivery's current state and these events."""
    return {
        "kind": "delivery",
        "id": str(delivery.id),
        "number": delivery.number,
        "recipient": delivery.recipient,
        "address": delivery.address,
        "state": delivery.state.value,
        "state_at": delivery.state_at.isoformat(),
        "reason": delivery.reason,
        "attempts": delivery.attempts,
        "next_try_at": _text(delivery.next_try_at),
        "announced_at": _text(delivery.announced_at),
        "events": [
            {
                "at": event.at.isoformat(),
                "what": event.kind,
                "who": event.actor.who,
                "via": event.actor.via,
                "address": event.actor.address,
                "detail": event.detail,
            }
            for event in events
        ],
    }


def verdict_line(message: Message) -> dict[str, Any]:
    """Return the line with Rspamd's verdict on a message that was received again."""
    return {
        "kind": "verdict",
        "id": str(message.id),
        "tier": message.verdict_tier.value,
        "symbols": symbols.to_json(message.symbols),
        "score": message.score,
        "threshold": message.threshold,
        "action": message.action,
        "flags": sorted(message.flags),
    }


def with_verdict_of(line: dict[str, Any], message: Message) -> Message:
    """Return the message with the verdict of a `verdict_line`.

    Raises KeyError, ValueError, TypeError when the line is malformed.
    """
    return replace(
        message,
        verdict_tier=Tier(line["tier"]),
        symbols=symbols.from_json(line["symbols"]),
        score=None if line["score"] is None else float(line["score"]),
        threshold=None if line.get("threshold") is None else float(line["threshold"]),  # missing before 0.3.0
        action=None if line["action"] is None else str(line["action"]),
        flags=frozenset(map(Flag, line["flags"])),
    )


def scan_line(message: Message) -> dict[str, Any]:
    """Return the line with a message's last virus scan."""
    return {"kind": "scan", "id": str(message.id), "scan": message.scan and scans.to_json(message.scan)}


def events_of(line: dict[str, Any]) -> list[Event]:
    """Return the events of a `delivery_line`. Raises KeyError, ValueError, TypeError when the line is malformed."""
    return [
        Event(
            parse_time(e["at"]),
            EventKind(e["what"]),
            Actor.from_stored(str(e["who"]), str(e["via"]), str(e["address"])),
            str(e["detail"]),
        )
        for e in line["events"]
    ]


def person_line(person: Person) -> dict[str, Any]:
    """Return the line with a recipient's current opt-out, revoked links, forgotten devices and preferences."""
    return {
        "kind": "person",
        "recipient": person.recipient,
        "address": person.address,
        "stopped_at": _text(person.stopped_at),
        "links_valid_from": _text(person.links_valid_from),
        "devices_valid_from": _text(person.devices_valid_from),
        "preferences": person.preferences.to_json(),
    }


def announced_line(reader: str, deliveries: Sequence[DeliveryId]) -> dict[str, Any]:
    """Return the line that a reader was notified of deliveries held under another name, or that several people read."""
    return {"kind": "told", "reader": reader, "deliveries": [[str(id), number] for id, number in deliveries]}


def digest_line(digest: DigestRecord) -> dict[str, Any]:
    """Return the line of a sent digest and the deliveries it announced."""
    return {
        "kind": "digest",
        "id": str(digest.id),
        "recipient": digest.recipient,
        "address": digest.address,
        "issued_at": digest.issued_at.isoformat(),
        "sent_at": _text(digest.sent_at),
        "deliveries": [[str(message_id), number] for message_id, number in digest.deliveries],
        "is_notice": digest.is_notice,
    }


def rule_line(rule: Rule) -> dict[str, Any]:
    """Return the line with the current state of a rule."""
    return {
        "kind": "rule",
        "id": str(rule.id),
        "scope": rule.scope,
        "sender": rule.sender,
        "effect": rule.effect.value,
        "binding": rule.binding,
        "created_at": rule.created_at.isoformat(),
        "by": _actor_json(rule.actor),
        "message_id": rule.message_id and str(rule.message_id),
        "expires_at": _text(rule.expires_at),
        "note": rule.note,
        "hits": rule.hits,
        "last_hit_at": _text(rule.last_hit_at),
        "removed_at": _text(rule.removed_at),
        "removed_by": rule.removed_by and _actor_json(rule.removed_by),
    }


def rule_of(line: dict[str, Any]) -> Rule:
    """Return the rule of a `rule_line`. Raises KeyError, ValueError, TypeError when the line is malformed."""
    return Rule(
        id=UUID(line["id"]),
        scope=str(line["scope"]),
        sender=str(line["sender"]),
        effect=Effect(line["effect"]),
        binding=bool(line["binding"]),
        created_at=parse_time(line["created_at"]),
        actor=_actor(line["by"]),
        message_id=None if line["message_id"] is None else UUID(line["message_id"]),
        expires_at=parse_time_or_none(line["expires_at"]),
        note=str(line["note"]),
        hits=int(line["hits"]),
        last_hit_at=parse_time_or_none(line["last_hit_at"]),
        removed_at=parse_time_or_none(line["removed_at"]),
        removed_by=None if line["removed_by"] is None else _actor(line["removed_by"]),
    )


def domain_value_line(value: DomainValue) -> dict[str, Any]:
    """Return the line of a domain's value."""
    return {
        "kind": "domain",
        "id": str(value.id),
        "domain": value.domain,
        "name": value.name,
        "value": value.value,
        "set_at": value.set_at.isoformat(),
        "by": _actor_json(value.actor),
        "replaced_at": _text(value.replaced_at),
    }


def domain_value_of(line: dict[str, Any]) -> DomainValue:
    """Return the value of a `domain_value_line`. Raises KeyError, ValueError, TypeError when the line is malformed."""
    return DomainValue(
        id=UUID(line["id"]),
        domain=str(line["domain"]),
        name=str(line["name"]),
        value=None if line["value"] is None else str(line["value"]),
        set_at=parse_time(line["set_at"]),
        actor=_actor(line["by"]),
        replaced_at=parse_time_or_none(line["replaced_at"]),
    )


def audit_line(entry: AuditEntry) -> dict[str, Any]:
    """Return the line of an entry of the audit."""
    return {
        "kind": "audit",
        "id": str(entry.id),
        "done_at": entry.at.isoformat(),
        "act": str(entry.act),
        "by": _actor_json(entry.actor),
        "subject": entry.subject,
        "delivery": entry.delivery and [str(entry.delivery.message_id), entry.delivery.number],
        "detail": entry.detail,
        "domain": entry.domain,
    }


def audit_entries_of(line: dict[str, Any]) -> list[AuditEntry]:
    """Return the entries of an `audit_line`, or those of the events of a `delivery_line`.

    Raises KeyError, ValueError, TypeError when the line is malformed.
    """
    if line["kind"] == "audit":
        delivery = line["delivery"] and DeliveryId(UUID(line["delivery"][0]), int(line["delivery"][1]))
        at, act, subject = parse_time(line["done_at"]), str(line["act"]), str(line["subject"])
        detail, host = str(line["detail"]), str(line["domain"])
        return [AuditEntry(UUID(line["id"]), at, act, _actor(line["by"]), subject, delivery, detail, host)]
    key, recipient = DeliveryId(UUID(line["id"]), int(line["number"])), identity(str(line["recipient"]))
    entries = (AuditEntry.of_event(event, key, recipient) for event in events_of(line))
    return [entry for entry in entries if entry is not None]


def statistics_line(day: date, counts: Sequence[Count]) -> dict[str, Any]:
    """Return the line of the statistics of a day."""
    rows = [
        [count.domain, count.part, count.outcome, count.name, count.number, *([count.points] if count.points else [])]
        for count in counts
    ]
    return {"kind": "statistics", "day": day.isoformat(), "counts": rows}


def statistics_of(line: dict[str, Any]) -> tuple[date, list[Count]]:
    """Return the day and counts of a `statistics_line`. Raises KeyError, ValueError, TypeError if it is malformed."""
    day = date.fromisoformat(line["day"])
    rows = [
        Count(str(domain), str(part), day.isoformat(), str(outcome), str(name), int(number), *map(int, points[:1]))
        for domain, part, outcome, name, number, *points in line["counts"]
    ]
    return day, rows


def staff_line(person: str, grants: Sequence[Grant]) -> dict[str, Any]:
    """Return the line with all roles that a person has now."""
    return {
        "kind": "staff",
        "person": person,
        "roles": [
            {
                "role": grant.role.value,
                "domain": grant.domain,
                "given_at": grant.given_at.isoformat(),
                "by": _actor_json(grant.actor),
            }
            for grant in grants
        ],
    }


def grants_of(line: dict[str, Any]) -> list[Grant]:
    """Return the roles of a `staff_line`. Raises KeyError, ValueError, TypeError when the line is malformed."""
    return [
        Grant(
            str(line["person"]),
            Role(each["role"]),
            str(each["domain"]),
            parse_time(each["given_at"]),
            _actor(each["by"]),
        )
        for each in line["roles"]
    ]


def second_factor_line(person: str, factor: SecondFactor | None) -> dict[str, Any]:
    """Return the line with a person's second factor, None if it was removed. The secret of the app is not in it."""
    made = factor and {
        "salt": factor.salt.hex(),
        "key": factor.key,
        "created_at": factor.created_at.isoformat(),
        "recovery": list(factor.recovery),
    }
    return {"kind": "second-factor", "person": person, "factor": made}


def second_factor_of(line: dict[str, Any]) -> SecondFactor | None:
    """Return the factor of a `second_factor_line`. Raises KeyError, ValueError, TypeError if it is malformed."""
    made = line["factor"]
    if made is None:
        return None
    recovery = tuple(map(str, made["recovery"]))
    created_at = parse_time(made["created_at"])
    return SecondFactor(str(line["person"]), bytes.fromhex(made["salt"]), str(made["key"]), created_at, recovery)


def token_line(token: Token) -> dict[str, Any]:
    """Return the line with the current state of an API token."""
    return {
        "kind": "token",
        "id": str(token.id),
        "secret_sha256": token.secret_sha256.hex(),
        "name": token.name,
        "owner": token.owner,
        "role": token.role.value,
        "domain": token.domain,
        "scope": token.scope.value,
        "created_at": token.created_at.isoformat(),
        "by": _actor_json(token.actor),
        "expires_at": token.expires_at.isoformat(),
        "used_at": _text(token.used_at),
        "revoked_at": _text(token.revoked_at),
    }


def token_of(line: dict[str, Any]) -> Token:
    """Return the token of a `token_line`. Raises KeyError, ValueError, TypeError when the line is malformed."""
    return Token(
        id=UUID(line["id"]),
        secret_sha256=bytes.fromhex(line["secret_sha256"]),
        name=str(line["name"]),
        owner=str(line["owner"]),
        role=Role(line["role"]),
        domain=str(line["domain"]),
        scope=Scope(line["scope"]),
        created_at=parse_time(line["created_at"]),
        actor=_actor(line["by"]),
        expires_at=parse_time(line["expires_at"]),
        used_at=parse_time_or_none(line["used_at"]),
        revoked_at=parse_time_or_none(line["revoked_at"]),
    )


def _actor_json(actor: Actor) -> dict[str, str]:
    return {"who": actor.who, "via": actor.via, "address": actor.address}


def _actor(value: dict[str, Any]) -> Actor:
    return Actor.from_stored(str(value["who"]), str(value["via"]), str(value["address"]))


def parse_time_or_none(text: str | None) -> datetime | None:
    """Return a time of a line, None for None. Raises ValueError, TypeError."""
    return None if text is None else parse_time(text)


def parse_time(text: str) -> datetime:
    """Return a time of a line, aware UTC. Raises ValueError, TypeError."""
    at = datetime.fromisoformat(text)
    if at.tzinfo is None:
        raise ValueError("a time without a time zone")
    return at.astimezone(UTC)


def _text(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat()
