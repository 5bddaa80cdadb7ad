"""The routes of allow and block rules."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated
from uuid import UUID

from pydantic import AfterValidator, AwareDatetime, Field

from portal.model.audit import domain_of
from portal.model.errors import BadRule, NotAllowed, NotFound
from portal.model.message import parse_id
from portal.model.rule import NOTE_CHARACTERS, Effect, Rule, ScopeKind, scope_kind
from portal.model.staff import EVERYWHERE
from portal.policy.entry import read_scope, scope_text
from portal.policy.rulebook import Hint
from portal.policy.staff import Permission
from portal.web.api.problems import FieldProblem, invalid
from portal.web.api.route import Caller, Model, Name, Route, Text
from portal.web.pages import Pages

_LIMIT, _LIMIT_MAX = 50, 500
_EXAMPLE = "01a2b3c4-d5e6-7f01-8a2b-3c4d5e6f7a8b"
_NAME = Name("[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "The id of a rule.", _EXAMPLE)
_SCOPE = 'The recipients of the rule: an address, a domain, or "site" for all.'
_CHANGE = (
    "Rules of a recipient need the permission `manage-recipients` in their domain, those of a domain "
    "`manage-domain-policy` there, and those of the site the same for all domains."
)


def _of_rule(id: UUID) -> UUID:
    if parse_id(str(id)) is None:
        raise ValueError("Use the value of next in the answer before.")
    return id


def _in_utc(at: datetime) -> datetime:
    try:
        return at.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("Use a time that exists in UTC as well.") from error


class RuleQuery(Model):
    """The rules to list."""

    scope: Text = Field("", description=f"{_SCOPE} Required unless the token is for all domains.")
    removed: bool = Field(False, description="Whether to list those that were removed or expired in the last 90 days.")
    limit: int = Field(_LIMIT, ge=1, le=_LIMIT_MAX)
    cursor: Annotated[UUID, AfterValidator(_of_rule)] | None = Field(
        None, description="The value of next in the answer before."
    )


class NewRule(Model):
    """A rule to be added. It replaces the one for the same scope and sender."""

    scope: Text = Field(description=_SCOPE)
    sender: Text = Field(description="An address, a domain with its subdomains, or a network.")
    effect: Effect
    binding: bool = Field(False, description="Whether recipients cannot override a block rule of a domain or the site.")
    expires_at: Annotated[AwareDatetime, AfterValidator(_in_utc)] | None = None
    note: Annotated[str, Field(max_length=NOTE_CHARACTERS)] = ""


class RuleDetail(Model):
    """A rule."""

    id: str
    scope: str
    sender: str
    effect: Effect
    binding: bool
    created_at: AwareDatetime
    by: str
    via: str
    expires_at: AwareDatetime | None
    note: str
    hits: int = Field(description="Deliveries that it decided.")
    last_hit_at: AwareDatetime | None
    removed_at: AwareDatetime | None

    @classmethod
    def of(cls, rule: Rule) -> RuleDetail:
        """Return a rule of the store."""
        return cls(
            id=str(rule.id),
            scope=scope_text(rule.scope),
            sender=rule.sender,
            effect=rule.effect,
            binding=rule.binding,
            created_at=rule.created_at,
            by=rule.actor.who,
            via=rule.actor.via,
            expires_at=rule.expires_at,
            note=rule.note,
            hits=rule.hits,
            last_hit_at=rule.last_hit_at,
            removed_at=rule.removed_at,
        )


class RuleList(Model):
    """Rules, the newest first."""

    rules: list[RuleDetail]
    next: str | None = Field(description="The cursor of the next page; null on the last one.")


class AddedRule(Model):
    """A rule that is in use now."""

    rule: RuleDetail
    added: bool = Field(description="False if there was one like it before.")
    hints: list[Hint] = Field(description="What to know about it, for example that another rule overrules it.")


class RuleRoutes:
    """/rules and what is below."""

    def __init__(self, pages: Pages) -> None:
        self._staff = pages.parts.staff
        self._rulebook = pages.parts.rulebook

    def table(self) -> Sequence[Route]:
        """Return the routes."""
        return (
            Route(
                method="GET", path="/rules", permission=Permission.SEE_ENVELOPE, operation="listRules",
                summary="List rules", text="Lists the rules of one scope, or all.", handler=self.list,
                query=RuleQuery, answer=RuleList, example="scope=example.org",
            ),
            Route(
                method="POST", path="/rules", permission=Permission.MANAGE_RECIPIENTS, operation="addRule",
                summary="Add a rule", text=f"Allows or blocks a sender. {_CHANGE}", handler=self.add,
                body=NewRule, answer=AddedRule,
                example='{"scope": "alice@example.org", "sender": "example.net", "effect": "block"}',
            ),
            Route(
                method="POST", path="/rules/{id}/remove", permission=Permission.MANAGE_RECIPIENTS,
                operation="removeRule", summary="Remove a rule", text=f"Removes a rule. {_CHANGE}",
                handler=self.remove, answer=RuleDetail, names={"id": _NAME},
            ),
        )  # fmt: skip

    def list(self, caller: Caller, query: RuleQuery) -> RuleList:
        """GET /rules."""
        scopes = None
        if query.scope:
            scopes = [self._scope(query.scope)]
            if not self._may(caller, Permission.SEE_ENVELOPE, scopes[0]):
                return RuleList(rules=[], next=None)
        elif EVERYWHERE not in self._staff.reach(caller.member, Permission.SEE_ENVELOPE):
            raise invalid(FieldProblem(name="scope", detail="Name a recipient or a domain of this token."))
        rules, now = self._rulebook.store.rules, self._rulebook.now()
        found = rules.list(scopes, query.limit + 1, now, query.cursor, removed=query.removed)
        shown, has_more = found[: query.limit], len(found) > query.limit
        return RuleList(rules=[*map(RuleDetail.of, shown)], next=str(shown[-1].id) if has_more else None)

    def add(self, caller: Caller, body: NewRule) -> AddedRule:
        """POST /rules."""
        try:
            rule = self._rulebook.rule(
                body.scope, body.sender, body.effect, caller.actor,
                binding=body.binding, expires_at=body.expires_at, note=body.note,
            )  # fmt: skip
            self._check_change(caller, rule)
            [in_use] = self._rulebook.add([rule])
        except BadRule as error:
            raise invalid(FieldProblem(name="rule", detail=str(error))) from error
        hints = [*self._rulebook.hints(in_use)]
        return AddedRule(rule=RuleDetail.of(in_use), added=in_use.id == rule.id, hints=hints)

    def remove(self, caller: Caller, id: str) -> RuleDetail:
        """POST /rules/{id}/remove."""
        rule = self._rulebook.store.rules.get(UUID(id))
        if not self._may(caller, Permission.SEE_ENVELOPE, rule.scope):
            raise NotFound("there is no such rule")
        self._check_change(caller, rule)
        return RuleDetail.of(self._rulebook.remove(rule.id, caller.actor))

    def _check_change(self, caller: Caller, rule: Rule) -> None:
        is_of_recipient = scope_kind(rule.scope) is ScopeKind.RECIPIENT
        permission = Permission.MANAGE_RECIPIENTS if is_of_recipient else Permission.MANAGE_DOMAIN_POLICY
        if not self._may(caller, permission, rule.scope):
            raise NotAllowed("this token may not change rules of this scope")

    def _may(self, caller: Caller, permission: Permission, scope: str) -> bool:
        return self._staff.may(caller.member, permission, domain_of(scope))

    def _scope(self, text: str) -> str:
        """Return a scope as rules have it. Raises 422."""
        try:
            scope = read_scope(text)
        except BadRule as error:
            raise invalid(FieldProblem(name="scope", detail=str(error))) from error
        is_of_recipient = scope_kind(scope) is ScopeKind.RECIPIENT
        return self._rulebook.owner(self._rulebook.people.held_as(scope)) if is_of_recipient else scope
