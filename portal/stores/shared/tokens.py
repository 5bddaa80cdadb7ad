"""API tokens, in table `token`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import partial
from typing import Any
from uuid import UUID

from portal.model.audit import Act, AuditEntry
from portal.model.errors import NotFound
from portal.model.message import Actor
from portal.model.staff import Role
from portal.model.token import Scope, Token
from portal.stores.contracts import ApiTokens
from portal.stores.journal import token_line
from portal.stores.shared.audit import record
from portal.stores.shared.session import Engine, Row, Session

_COLUMNS = (
    "id, secret_sha256, name, owner, role, domain, scope, created_at, actor, via, address, expires_at, used_at,"
    " revoked_at"
)
_SELECT = f"select {_COLUMNS} from token"
_INSERT = f"insert into token ({_COLUMNS}) values ({', '.join(f':{name}' for name in _COLUMNS.split(', '))})"
_ADD = f"{_INSERT} on conflict (id) do nothing"
_PUT = (
    f"{_INSERT} on conflict (id) do update set used_at = coalesce(excluded.used_at, token.used_at),"
    " revoked_at = coalesce(token.revoked_at, excluded.revoked_at)"
)


class SqlTokens(ApiTokens):
    """See `ApiTokens`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def find(self, secret_sha256: bytes) -> Token | None:
        with self._engine.reading() as session:
            row = session.one(f"{_SELECT} where secret_sha256 = :sha256", sha256=secret_sha256)
        return None if row is None else _token(row)

    def get(self, token_id: UUID) -> Token:
        with self._engine.reading() as session:
            return _get(session, token_id)

    def all(self) -> Sequence[Token]:
        with self._engine.reading() as session:
            return all_tokens(session)

    def add(self, token: Token) -> bool:
        with self._engine.writing() as session:
            is_new = session.execute(_ADD, **_values(token)) == 1
            if is_new:
                record(session, [_entry(Act.TOKEN_CREATED, token, token.actor, token.created_at)])
                session.journal(partial(token_line, token))
        return is_new

    def revoke(self, token_id: UUID, actor: Actor, now: datetime) -> bool:
        update = "update token set revoked_at = :now where id = :id and revoked_at is null"
        with self._engine.writing() as session:
            is_revoked = session.execute(update, id=token_id, now=now) == 1
            if is_revoked:
                token = _get(session, token_id)
                record(session, [_entry(Act.TOKEN_REVOKED, token, actor, now)])
                session.journal(partial(token_line, token))
        return is_revoked

    def record_use(self, token_id: UUID, now: datetime) -> None:
        with self._engine.writing(durable=False) as session:
            session.execute("update token set used_at = :now where id = :id", id=token_id, now=now)

    def import_records(self, tokens: Sequence[Token]) -> None:
        with self._engine.writing() as session:
            for token in tokens:
                put_token(session, token)
                session.journal(partial(token_line, _get(session, token.id)))


def all_tokens(session: Session) -> list[Token]:
    """Return all tokens, the newest first."""
    return [_token(row) for row in session.many(f"{_SELECT} order by created_at desc, id desc")]


def put_token(session: Session, token: Token) -> None:
    """Store a token as it is in a journal or another store."""
    session.execute(_PUT, **_values(token))


def _get(session: Session, token_id: UUID) -> Token:
    row = session.one(f"{_SELECT} where id = :id", id=token_id)
    if row is None:
        raise NotFound("there is no such token")
    return _token(row)


def _values(token: Token) -> dict[str, Any]:
    return {
        "id": token.id,
        "secret_sha256": token.secret_sha256,
        "name": token.name,
        "owner": token.owner,
        "role": token.role.value,
        "domain": token.domain,
        "scope": token.scope.value,
        "created_at": token.created_at,
        "actor": token.actor.who,
        "via": token.actor.via,
        "address": token.actor.address,
        "expires_at": token.expires_at,
        "used_at": token.used_at,
        "revoked_at": token.revoked_at,
    }


def _token(row: Row) -> Token:
    id, sha256, name, owner, role, domain, scope, created_at, who, via, address, expires_at, used_at, revoked_at = row
    return Token(
        id=id,
        secret_sha256=bytes(sha256),
        name=name,
        owner=owner,
        role=Role(role),
        domain=domain,
        scope=Scope(scope),
        created_at=created_at,
        actor=Actor.from_stored(who, via, address),
        expires_at=expires_at,
        used_at=used_at,
        revoked_at=revoked_at,
    )


def _entry(act: Act, token: Token, actor: Actor, at: datetime) -> AuditEntry:
    """Return the entry of the audit, in the domain of the token's role, like that of a role."""
    role = f"{token.role} of {token.domain}" if token.domain else token.role.value
    detail = f"{token.id} {token.name}: {role}, {token.scope}, until {token.expires_at:%Y-%m-%d %H:%M} UTC"
    return AuditEntry.new(at, act, actor, token.owner, detail, domain=token.domain)
