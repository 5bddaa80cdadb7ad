"""API tokens, in both stores."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from portal.model.audit import AuditFilter
from portal.model.errors import NotFound
from portal.model.message import Actor, ActorKind, new_id
from portal.model.staff import EVERYWHERE, Role
from portal.model.token import Scope, Token, hash_of, new_secret
from portal.stores import Store
from portal.stores.lifecycle import TOKENS_KEPT
from tests.builders import ALICE, BY_OPERATOR, now

BY_ALICE = Actor(ActorKind.OPERATOR, ALICE, "console", "192.0.2.7")


def token(name: str = "report", domain: str = EVERYWHERE, days: int = 30) -> Token:
    sha256, at = hash_of(new_secret()), now()
    assert sha256
    return Token(
        new_id(), sha256, name, ALICE, Role.HELP_DESK, domain, Scope.READ, at, BY_ALICE, at + timedelta(days=days)
    )


def test_a_token_is_found_by_the_hash_of_its_secret_and_revoked_once(store: Store) -> None:
    first, second = token(domain="example.org"), token("später")
    assert store.tokens.add(first) and store.tokens.add(second)
    assert not store.tokens.add(replace(second, secret_sha256=b"x" * 32)), "the same form again"
    assert store.tokens.find(first.secret_sha256) == store.tokens.get(first.id) == first
    assert store.tokens.find(b"x" * 32) is None
    assert {each.id for each in store.tokens.all()} == {first.id, second.id}
    at = now()
    store.tokens.record_use(first.id, at)
    assert store.tokens.revoke(first.id, BY_OPERATOR, at)
    assert not store.tokens.revoke(first.id, BY_OPERATOR, at)
    assert store.tokens.get(first.id) == replace(first, used_at=at, revoked_at=at)
    with pytest.raises(NotFound):
        store.tokens.get(new_id())
    found = [(each.act, each.actor, each.subject, each.domain) for each in store.audit.list(AuditFilter(), 9)]
    assert sorted(found, key=str) == sorted(
        [
            ("token-created", BY_ALICE, ALICE, "example.org"),
            ("token-created", BY_ALICE, ALICE, ""),
            ("token-revoked", BY_OPERATOR, ALICE, "example.org"),
        ],
        key=str,
    )
    details = [each.detail for each in store.audit.list(AuditFilter(act="token-created"), 9)]
    assert any(each.startswith(f"{first.id} report: help-desk of example.org, read, until 2") for each in details)
    assert all(first.secret_sha256.hex() not in each for each in details)


def test_a_purge_removes_tokens_some_time_after_their_end(store: Store) -> None:
    kept, expired, revoked = token(days=365), token(days=1), token(days=365)
    for each in (kept, expired, revoked):
        store.tokens.add(each)
    store.tokens.revoke(revoked.id, BY_OPERATOR, now())
    store.purge(now() - timedelta(days=999), now() + TOKENS_KEPT - timedelta(hours=1))
    assert len(store.tokens.all()) == 3
    store.purge(now() - timedelta(days=999), now() + TOKENS_KEPT + timedelta(days=2))
    assert [each.id for each in store.tokens.all()] == [kept.id]
