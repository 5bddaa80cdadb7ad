"""API tokens: who may create and revoke them, and what each may do now.

A token is used as a `Member`, so `Staff` decides about it as about the person who owns it, with fewer rights: those of
the token's role in the token's domain, as far as the owner has them at that moment. See docs/decisions/tokens.md.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from enum import StrEnum
from uuid import UUID

from portal.model.errors import BadToken, NotAllowed, NotFound, StoreUnavailable
from portal.model.message import Actor, identity
from portal.model.record import record
from portal.model.staff import EVERYWHERE, Grant, Role
from portal.model.text import N_, shown
from portal.model.token import TOKEN_MAX, Scope, Token, hash_of, new_secret
from portal.policy.staff import PERMISSIONS, Member, Permission, Staff
from portal.stores import Store
from portal.stores.lifecycle import is_past

log = logging.getLogger("quarantine.staff")

NAME_CHARACTERS = 60
_USE_RECORDED = timedelta(minutes=1)  # the shortest interval between two records of a token's use


class Status(StrEnum):
    """The status of a token: active, or the reason for which it has no effect."""

    ACTIVE = "active"
    WITHOUT_ROLE = "without-role"  # its owner has lost the roles that it had, or cannot sign in any more
    EXPIRED = "expired"
    REVOKED = "revoked"


@record(frozen=True, slots=True)
class TokenRequest:
    """The values of a token to be created."""

    name: str
    role: Role
    domain: str  # as typed, or EVERYWHERE
    scope: Scope
    days: int  # until it expires


@record(frozen=True, slots=True)
class Tokens:
    """The API tokens of the site. Thread-safe; one for each process."""

    store: Store
    staff: Staff

    # ---- use

    def member(self, secret: str, now: datetime) -> Member | None:
        """Return whom a secret authenticates, with their rights now. Record the use, at most once a minute.

        None: there is no such token, it has expired or was revoked, or its owner has none of its rights any more.
        """
        sha256 = hash_of(secret)
        token = self.store.tokens.find(sha256) if sha256 else None
        member = self._member(token, now) if token else None
        if token and member and is_past(token.used_at, _USE_RECORDED, now):
            with suppress(StoreUnavailable):  # a store that can only be read is still read
                self.store.tokens.record_use(token.id, now)
        return member

    def by_id(self, token_id: UUID, now: datetime) -> Member | None:
        """Return what a token may do now, for work that it began. None as in `member`."""
        try:
            return self._member(self.store.tokens.get(token_id), now)
        except NotFound:
            return None

    def _member(self, token: Token, now: datetime) -> Member | None:
        if not token.is_usable(now):
            return None
        grants = self._shared(token, self.staff.member(token.owner).grants)
        return Member(token.owner, grants, token) if grants else None

    def _shared(self, token: Token, grants: Sequence[Grant]) -> tuple[Grant, ...]:
        """Return what the roles of a token's owner and the role of the token both permit."""
        if token.domain != EVERYWHERE and not self.staff.domains.is_local(token.domain):
            return ()
        if not self.staff.can_sign_in(token.owner):
            return ()
        return tuple(both for grant in grants if (both := _both(grant, token)))

    # ---- creating and revoking

    def all(self, now: datetime, member: Member | None = None) -> Sequence[tuple[Token, Status]]:
        """Return the tokens, the newest first, and whether each can be used now.

        ``member``: only those that this person may see: their own, and those of domains whose audit they read.
        """
        grants: dict[str, list[Grant]] = {}
        for grant in self.staff.all():
            grants.setdefault(grant.person, []).append(grant)
        return [
            (token, self._status(token, grants.get(token.owner, ()), now))
            for token in self.store.tokens.all()
            if member is None
            or token.owner == member.person
            or self.staff.may(member, Permission.READ_AUDIT, token.domain)
        ]

    def _status(self, token: Token, grants: Sequence[Grant], now: datetime) -> Status:
        if token.revoked_at is not None:
            return Status.REVOKED
        if not token.is_usable(now):
            return Status.EXPIRED
        return Status.ACTIVE if self._shared(token, grants) else Status.WITHOUT_ROLE

    def create(
        self, token_id: UUID, owner: str, wanted: TokenRequest, actor: Actor, now: datetime, by: Member | None = None
    ) -> str | None:
        """Create a token, and return its secret. Return None if the token of this id was created before.

        ``by``: the member of staff who creates it for themselves, with a role that they may give; None: the command
        line. Nobody gets a token with a right that they do not have. Raises NotAllowed, BadGrant, BadToken.
        """
        owner, host = identity(owner.strip()), self.staff.checked_domain(wanted.role, wanted.domain)
        if by is not None and (by.token or by.person != owner or not self.staff.may_give(by, wanted.role, host)):
            raise NotAllowed("this member of staff may not create this token")
        name = shown(wanted.name.strip(), NAME_CHARACTERS)
        if not name:
            raise BadToken(N_("Enter a name, so that you recognize the token."))
        if not 1 <= wanted.days <= TOKEN_MAX.days:
            raise BadToken(N_("A token is valid for 1 to 365 days."))
        if not self._has(owner, wanted.role, host):
            raise BadToken(N_("This person does not have this role, so a token cannot have it either."))
        secret = new_secret()
        sha256 = hash_of(secret)
        assert sha256 is not None  # noqa: S101 - what `new_secret` returns is a secret
        expires_at = now + timedelta(days=wanted.days)
        token = Token(token_id, sha256, name, owner, wanted.role, host, wanted.scope, now, actor, expires_at)
        if not self.store.tokens.add(token):
            return None
        log.info(
            "token created id=%s person=%s role=%s domain=%s scope=%s by=%s",
            token.id, owner, token.role, host or "all", token.scope, actor.who,
        )  # fmt: skip
        return secret

    def may_revoke(self, member: Member, token: Token) -> bool:
        """Return whether a person may revoke a token: it is theirs, or they may remove such a role from its owner."""
        return token.owner == member.person or self.staff.may_give(member, token.role, token.domain, token.owner)

    def revoke(self, token_id: UUID, actor: Actor, now: datetime, by: Member | None = None) -> Token:
        """Revoke a token, and return it. ``by`` as in `create`. Raises NotFound, NotAllowed, BadToken."""
        token = self.store.tokens.get(token_id)
        if by is not None and not self.may_revoke(by, token):
            raise NotAllowed("this member of staff may not revoke this token")
        if not self.store.tokens.revoke(token_id, actor, now):
            raise BadToken(N_("This token was revoked before."))
        log.info("token revoked id=%s person=%s by=%s", token.id, token.owner, actor.who)
        return token

    def _has(self, owner: str, role: Role, host: str) -> bool:
        """Return whether a person has everything that a role permits in a domain."""
        grants = self.staff.member(owner).grants
        return self.staff.can_sign_in(owner) and any(
            PERMISSIONS[role] <= PERMISSIONS[grant.role] and grant.domain in (EVERYWHERE, host) for grant in grants
        )


def _both(grant: Grant, token: Token) -> Grant | None:
    """Return what a role of the owner and the role of the token both permit, None if that is no role.

    The help desk and the auditor have only the envelope in common, which is not worth a role of its own.
    """
    hosts = {grant.domain, token.domain} - {EVERYWHERE}
    smaller = token.role if PERMISSIONS[token.role] <= PERMISSIONS[grant.role] else grant.role
    if len(hosts) > 1 or not PERMISSIONS[smaller] <= PERMISSIONS[token.role]:
        return None
    return replace(grant, role=smaller, domain=hosts.pop() if hosts else EVERYWHERE)
