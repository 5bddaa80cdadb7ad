"""Allow and block rules, in table `rule`. Removed rules stay in it for a while: they are the audit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from itertools import islice
from typing import Any, TypeVar
from uuid import UUID

from portal.model.audit import Act, AuditEntry
from portal.model.errors import AlreadyDone, NotFound, TooManyRules
from portal.model.message import Actor, new_id
from portal.model.rule import BLOCKS_PER_SITE, RULES_PER_RECIPIENT, Effect, Rule, ScopeKind, scope_kind
from portal.stores.contracts import Rules
from portal.stores.journal import rule_line
from portal.stores.records import ActiveRule
from portal.stores.shared.audit import record
from portal.stores.shared.session import Engine, Row, Session

_COLUMNS = (
    "id, scope, sender, effect, binding, created_at, actor, via, address, message_id, expires_at, note, hits,"
    " last_hit_at, removed_at, removed_by, removed_via, removed_address"
)
_SELECT = f"select {_COLUMNS} from rule"
_IN_USE = "removed_at is null"  # the condition of the partial indexes; expired rules are left out at each use
_ACTIVE = f"{_IN_USE} and (expires_at is null or expires_at > :now)"
_INSERT = f"insert into rule ({_COLUMNS}) values ({', '.join(f':{name}' for name in _COLUMNS.split(', '))})"
_REPLACE = _INSERT + " on conflict (id) do update set " + ", ".join(
    f"{name} = excluded.{name}" for name in _COLUMNS.split(", ")[1:]
)  # fmt: skip
_REMOVE = (
    "update rule set removed_at = :now, removed_by = :who, removed_via = :via, removed_address = :address"
    f" where {_IN_USE} and "
)
_Item = TypeVar("_Item")
_Key = tuple[str, str]  # scope and sender
_PRUNE = (  # otherwise somebody who adds and removes a rule all day would fill the table
    "delete from rule where scope = :scope and id in (select id from rule where scope = :scope"
    " and removed_at is not null order by removed_at desc, id desc limit 1000000 offset :kept)"
)
_BATCH = 500
_SCOPES = 1_000  # in one statement; SQLite limits the number of parameters
_PAGE = 5_000  # of active rules; a larger one is not faster
_LAST_CHANGE = "rules.last_change"  # in table `setting`
_CHANGED = (
    "insert into setting (name, value) values (:name, :value) on conflict (name) do update set value = excluded.value"
)
_LOCK = "rules"  # serializes changes, so that two of them cannot exceed a limit together


class SqlRules(Rules):
    """See `Rules`."""

    def __init__(self, engine: Engine, *, at_posts: Engine | None = None) -> None:
        """``at_posts``: for what is done while Rspamd waits; it has shorter time limits."""
        self._engine = engine
        self._at_posts = at_posts or engine

    def add(self, rules: Sequence[Rule], now: datetime) -> Sequence[Rule]:
        wanted = {(rule.scope, rule.sender): rule for rule in rules}
        batches = [*_batches([wanted[key] for key in sorted(wanted)])]
        if len(batches) > 1:
            with self._engine.reading() as session:
                in_use = {key: rule for batch in batches for key, rule in _in_use(session, batch).items()}
                _check_limits(session, [*wanted.values()], in_use, now)
        kept: list[Rule] = []
        for batch in batches:
            with self._engine.writing() as session:
                session.lock(_LOCK)
                in_use = _in_use(session, batch)
                _check_limits(session, batch, in_use, now)
                kept += _add(session, batch, in_use, now)
        return kept

    def get(self, rule_id: UUID) -> Rule:
        with self._engine.reading() as session:
            return _get(session, rule_id)

    def remove(self, rule_id: UUID, actor: Actor, now: datetime) -> Rule:
        with self._engine.writing() as session:
            changed = session.execute(f"{_REMOVE} id = :id", actor, id=rule_id, who=actor.who, now=now)
            rule = _get(session, rule_id)
            if not changed:
                raise AlreadyDone("this rule was removed before")
            _prune(session, {rule.scope})
            _changed(session, now)
            session.journal(partial(rule_line, rule))
            record(session, [_audit_entry(rule, Act.RULE_REMOVED, actor, now)])
        return rule

    def restore(self, rule_id: UUID, actor: Actor, now: datetime) -> Rule:
        update = (
            "update rule set removed_at = null, removed_by = null, removed_via = null, removed_address = null"
            " where id = :id and removed_at is not null and not exists (select 1 from rule r where"
            " r.scope = rule.scope and r.sender = rule.sender and r.removed_at is null)"
        )
        with self._engine.writing() as session:
            session.lock(_LOCK)
            _check_limits(session, [_get(session, rule_id)], {}, now)
            if not session.execute(update, id=rule_id):
                raise AlreadyDone("this rule is in use, or a newer one for the same sender is")
            rule = _get(session, rule_id)
            _changed(session, now)
            session.journal(partial(rule_line, rule))
            record(session, [_audit_entry(rule, Act.RULE_ADDED, actor, now)])
        return rule

    def list(
        self,
        scopes: Collection[str] | None,
        limit: int,
        now: datetime,
        before: UUID | None = None,
        *,
        removed: bool = False,
    ) -> Sequence[Rule]:
        unused = "(removed_at is not null or expires_at <= :now)"
        where = [
            unused if removed else _ACTIVE,
            *(["scope in :scopes"] if scopes is not None else []),
            *(["id < :before_id"] if before is not None else []),
        ]
        select = f"{_SELECT} where {' and '.join(where)} order by id desc limit :limit"
        if scopes is not None and not scopes:
            return []
        with self._engine.reading() as session:
            rows = session.many(select, scopes=[*(scopes or ())], now=now, before_id=before, limit=limit)
        return [_rule(row) for row in rows]

    def matching(
        self, scopes: Collection[str], senders: Collection[str], networks: Collection[str], now: datetime
    ) -> Sequence[Rule]:
        found: list[Rule] = []
        select = f"{_SELECT} where {_ACTIVE} and scope in :scopes and sender in :senders"
        left = iter(scopes)
        with self._at_posts.reading() as session:
            while part := [*islice(left, _SCOPES)]:
                # Only domains and the site have rules for networks, and an address has up to 113 networks.
                wide = [scope for scope in part if scope_kind(scope) is not ScopeKind.RECIPIENT]
                statement = select
                if wide and networks:
                    statement += f" union all {_SELECT} where {_ACTIVE} and scope in :wide and sender in :networks"
                found += map(
                    _rule,
                    session.many(statement, scopes=part, senders=[*senders], wide=wide, networks=[*networks], now=now),
                )
        return found

    def active(self, now: datetime, *, recipients: bool) -> Iterator[ActiveRule]:
        wide = "substr(scope, 1, 1) in ('@', '*')"
        select = (
            f"select scope, sender, effect, binding, expires_at from rule where {_IN_USE}"
            f" and {'not ' if recipients else ''}{wide} and (scope, sender) > (:scope, :sender)"
            " order by scope, sender limit :limit"
        )
        scope = sender = ""
        while True:
            with self._engine.reading() as session:
                rows = session.many(select, scope=scope, sender=sender, limit=_PAGE)
            for scope, sender, effect, binding, expires_at in rows:
                if expires_at is None or expires_at > now:
                    yield ActiveRule(scope, sender, Effect(effect), bool(binding), expires_at)
            if len(rows) < _PAGE:
                return

    def last_change(self) -> UUID | None:
        with self._engine.reading() as session:
            row = session.one("select value from setting where name = :name", name=_LAST_CHANGE)
        return UUID(row[0]) if row else None

    def count_hits(self, hits: Mapping[UUID, int], now: datetime) -> None:
        update = "update rule set hits = hits + :hits, last_hit_at = :now where id = :id"
        with self._at_posts.writing(durable=False) as session:
            # Sorted, so that two transactions never wait for each other.
            session.execute_all(update, [{"id": id, "hits": hits[id], "now": now} for id in sorted(hits)])

    def records(self, after: UUID | None, limit: int) -> Sequence[Rule]:
        with self._engine.reading() as session:
            rows = session.many(
                f"{_SELECT} where id > :after order by id limit :limit", after=after or UUID(int=0), limit=limit
            )
        return [_rule(row) for row in rows]

    def import_records(self, rules: Sequence[Rule], now: datetime, *, replace_changed: bool) -> None:
        with self._engine.writing() as session:
            session.lock(_LOCK)
            known = {rule.id: rule for rule in _of_ids(session, [rule.id for rule in rules])}
            for rule in rules:
                if rule == known.get(rule.id) or (rule.id in known and not replace_changed):
                    continue
                if rule.removed_at is None and not replace_changed and _in_use(session, [rule]):
                    continue  # a newer one was made here
                put_rule(session, rule, now)
                session.journal(partial(rule_line, rule))
            _changed(session, now)


def put_rule(session: Session, rule: Rule, now: datetime) -> None:
    """Insert a rule, or replace the one with its id. If it is in use, other rules with its keys are removed."""
    if rule.removed_at is None:
        session.execute(
            f"{_REMOVE} scope = :scope and sender = :sender and id <> :id", rule.actor, who=rule.actor.who,
            scope=rule.scope, sender=rule.sender, id=rule.id, now=now,
        )  # fmt: skip
    session.execute(_REPLACE, **_values(rule))


def rules_of(session: Session, ids: Collection[UUID]) -> Sequence[Rule]:
    """Return those of these rules that exist."""
    found: list[Rule] = []
    for batch in _batches([*ids]):
        found += _of_ids(session, batch)
    return found


def _add(session: Session, rules: Sequence[Rule], in_use: Mapping[_Key, Rule], now: datetime) -> list[Rule]:
    """Add rules with different keys. Return for each the one in use: itself, or an equal one added before."""
    kept, added, replaced = [], [], set()
    for rule in rules:
        before = in_use.get((rule.scope, rule.sender))
        if before is not None and before.is_active(now) and _same(before, rule):
            kept.append(before)
            continue
        if before is not None:
            session.execute(f"{_REMOVE} id = :id", rule.actor, id=before.id, who=rule.actor.who, now=now)
            session.journal(partial(rule_line, replace(before, removed_at=now, removed_by=rule.actor)))
            replaced.add(rule.scope)
        session.journal(partial(rule_line, rule))
        added.append(rule)
        kept.append(rule)
    session.execute_all(_INSERT, [_values(rule) for rule in added])
    record(session, [_audit_entry(rule, Act.RULE_ADDED, rule.actor, now) for rule in added])
    _prune(session, replaced)
    if added:
        _changed(session, now)
    return kept


def _audit_entry(rule: Rule, act: Act, actor: Actor, now: datetime) -> AuditEntry:
    detail = f"{rule.effect} {rule.sender}{', binding' if rule.binding else ''}"
    return AuditEntry.new(now, act, actor, rule.scope, detail)


def _prune(session: Session, scopes: Collection[str]) -> None:
    """Remove the oldest removed rules of recipients for whom one was just removed."""
    for scope in sorted(scopes):
        if scope_kind(scope) is ScopeKind.RECIPIENT:
            session.execute(_PRUNE, scope=scope, kept=RULES_PER_RECIPIENT)


def _changed(session: Session, now: datetime) -> None:
    """Record a change of rules. The last statement of its transaction, so that it never holds the row while waiting."""
    session.execute(_CHANGED, name=_LAST_CHANGE, value=str(new_id(now)))


def _same(one: Rule, other: Rule) -> bool:
    return (one.effect, one.binding, one.expires_at, one.note) == (
        other.effect, other.binding, other.expires_at, other.note
    )  # fmt: skip


def _check_limits(session: Session, added: Sequence[Rule], in_use: Mapping[_Key, Rule], now: datetime) -> None:
    """Raise TooManyRules if these rules exceed a limit when they replace those of ``in_use`` with their keys."""
    growth: Counter[str] = Counter()  # by recipient
    blocks = 0
    for rule in added:
        before = in_use.get((rule.scope, rule.sender))
        if before is not None and not before.is_active(now):
            before = None
        if rule.scope_kind is ScopeKind.RECIPIENT:
            growth[rule.scope] += before is None
        blocks += (rule.effect is Effect.BLOCK) - (before is not None and before.effect is Effect.BLOCK)
    for part in _batches(sorted(scope for scope, more in growth.items() if more)):
        select = f"select scope, count(*) from rule where {_ACTIVE} and scope in :scopes group by scope"
        for scope, count in session.many(select, scopes=[*part], now=now):
            growth[scope] += count
    if any(count > RULES_PER_RECIPIENT for count in growth.values()):
        raise TooManyRules(f"A recipient can have {RULES_PER_RECIPIENT:,} rules. Remove some first.")
    if blocks > 0:
        row = session.one(f"select count(*) from rule where {_ACTIVE} and effect = 'block'", now=now)
        if row and row[0] + blocks > BLOCKS_PER_SITE:
            raise TooManyRules(f"There can be {BLOCKS_PER_SITE:,} block rules. Remove some first.")


def _get(session: Session, rule_id: UUID) -> Rule:
    row = session.one(f"{_SELECT} where id = :id", id=rule_id)
    if row is None:
        raise NotFound("there is no such rule")
    return _rule(row)


def _of_ids(session: Session, ids: Sequence[UUID]) -> list[Rule]:
    return [_rule(row) for row in session.many(f"{_SELECT} where id in :ids", ids=[*ids])]


def _in_use(session: Session, rules: Sequence[Rule]) -> dict[_Key, Rule]:
    """Return the rules in use that have the scope and the sender of one of these, expired ones included."""
    pairs = ", ".join(f"(:scope_{n}, :sender_{n})" for n in range(len(rules)))
    values = {f"scope_{n}": rule.scope for n, rule in enumerate(rules)}
    values |= {f"sender_{n}": rule.sender for n, rule in enumerate(rules)}
    # A condition `(scope, sender) in (values …)` makes SQLite read the whole table.
    select = (
        f"with wanted (wanted_scope, wanted_sender) as (values {pairs}) select {_COLUMNS} from wanted"
        f" cross join rule where scope = wanted_scope and sender = wanted_sender and {_IN_USE}"
    )
    return {(rule.scope, rule.sender): rule for rule in map(_rule, session.many(select, **values))}


def _values(rule: Rule) -> dict[str, Any]:
    by = rule.removed_by
    return {
        **{name: getattr(rule, name) for name in ("id", "scope", "sender", "binding", "created_at", "message_id")},
        **{name: getattr(rule, name) for name in ("expires_at", "note", "hits", "last_hit_at", "removed_at")},
        "effect": rule.effect.value,
        "actor": rule.actor.who,
        "via": rule.actor.via,
        "address": rule.actor.address,
        "removed_by": by and by.who,
        "removed_via": by and by.via,
        "removed_address": by and by.address,
    }


def _rule(row: Row) -> Rule:
    id, scope, sender, effect, binding, created_at, who, via, address, message_id, *rest = row
    expires_at, note, hits, last_hit_at, removed_at, removed_by, removed_via, removed_address = rest
    return Rule(
        id=id,
        scope=scope,
        sender=sender,
        effect=Effect(effect),
        created_at=created_at,
        actor=Actor.from_stored(who, via, address),
        binding=bool(binding),
        message_id=message_id,
        expires_at=expires_at,
        note=note,
        hits=hits,
        last_hit_at=last_hit_at,
        removed_at=removed_at,
        removed_by=None if removed_by is None else Actor.from_stored(removed_by, removed_via, removed_address),
    )


def _batches(items: Sequence[_Item]) -> Iterator[Sequence[_Item]]:
    return (items[start : start + _BATCH] for start in range(0, len(items), _BATCH))
