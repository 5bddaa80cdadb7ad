"""API tokens: their rights at each use, and who may create and revoke them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from itertools import product
from typing import Any

import pytest

from portal.assemble import Parts, assemble
from portal.model.errors import BadGrant, BadToken, NotAllowed, StoreUnavailable
from portal.model.message import ActorKind, DeliveryId, Tier, new_id
from portal.model.staff import EVERYWHERE, Grant, Role, fits
from portal.model.token import Scope, Token
from portal.policy.staff import SCOPES, Member, Permission
from portal.policy.tokens import Status, TokenRequest
from tests.builders import ALICE, BOB, BY_OPERATOR, hold, now
from tests.conftest import MakeSettings

OWN, OTHER = "example.org", "example.net"
ADMIN, DOMAIN, HELP, AUDITOR = Role


@pytest.fixture
def parts(files_url: str, make_settings: MakeSettings) -> Iterator[Parts]:
    opened = assemble(make_settings(files_url, local_domains=(OWN, OTHER)), create=True)
    yield opened
    opened.store.close()


def give(parts: Parts, role: Role, domain: str, person: str = BOB) -> Member:
    assert parts.store.staff.give(Grant(person, role, domain, now(), BY_OPERATOR))
    return parts.staff.member(person)


def take(parts: Parts, role: Role, domain: str, person: str = BOB) -> None:
    assert parts.store.staff.remove(person, role, domain, BY_OPERATOR, now())


def create(parts: Parts, role: Role, domain: str, scope: Scope = Scope.ACT, **more: Any) -> str:
    wanted = TokenRequest("report", role, domain, scope, more.pop("days", 30))
    owner = more.pop("owner", BOB)
    secret = parts.tokens.create(new_id(), owner, wanted, BY_OPERATOR, now(), more.pop("by", None))
    assert secret
    return secret


def test_a_token_may_what_its_role_and_those_of_its_owner_permit_together(parts: Parts) -> None:
    """Every role of a token with every role of its owner, and both scopes."""
    roles = [(role, host) for role in Role for host in (EVERYWHERE, OWN) if fits(role, host)]
    owner = give(parts, ADMIN, EVERYWHERE)
    secrets = {(*role, scope): create(parts, *role, scope) for role in roles for scope in Scope}
    take(parts, ADMIN, EVERYWHERE)
    for mine in roles:
        owner = give(parts, *mine)
        for (role, host, scope), secret in secrets.items():
            member = parts.tokens.member(secret, now())
            asked = Member(BOB, (Grant(BOB, role, host, now(), BY_OPERATOR),))
            if member is None:  # the help desk and the auditor are no part of each other
                assert {role, mine[0]} == {HELP, AUDITOR}
                continue
            for permission, each in product(Permission, (EVERYWHERE, OWN, OTHER)):
                expected = (
                    parts.staff.may(owner, permission, each)
                    and parts.staff.may(asked, permission, each)
                    and permission in SCOPES[scope]
                )
                assert parts.staff.may(member, permission, each) == expected, (mine, role, host, permission, each)
                reach = parts.staff.reach(member, permission)
                assert (each in reach or EVERYWHERE in reach) == expected
            assert not parts.staff.may_be_given(member), "a stolen token must not make itself a lasting role"
        take(parts, *mine)


def test_a_reading_token_changes_nothing_and_no_token_decides_about_its_owners_mail(parts: Parts) -> None:
    give(parts, ADMIN, EVERYWHERE)
    assert SCOPES[Scope.READ] == {Permission.SEE_ENVELOPE, Permission.SEE_BODY, Permission.READ_AUDIT}
    reading = parts.tokens.member(create(parts, ADMIN, EVERYWHERE, Scope.READ), now())
    acting = parts.tokens.member(create(parts, ADMIN, EVERYWHERE), now())
    assert reading and acting
    held = hold(parts.store, recipients=(ALICE, BOB), tier=Tier.DANGEROUS)
    hers, own = (parts.store.deliveries.get(DeliveryId(held.id, number)) for number in range(2))
    assert [parts.staff.may_release(reading, each) for each in (hers, own)] == [False, False]
    assert [parts.staff.may_release(acting, each) for each in (hers, own)] == [True, False]


def test_a_token_works_only_with_its_secret_until_it_ends_and_its_owner_loses_the_role(parts: Parts) -> None:
    give(parts, HELP, OWN)
    secret = create(parts, HELP, OWN, days=2)
    [(token, status)] = parts.tokens.all(now())
    assert status is Status.ACTIVE and secret not in repr(token) and token.secret_sha256.hex() not in repr(token)
    member = parts.tokens.member(secret, now())
    assert member and (member.person, member.token) == (BOB, token)
    actor = member.acting_from("192.0.2.7")
    assert (actor.kind, actor.name, actor.via) == (ActorKind.OPERATOR, BOB, f"api:{token.id}") and actor.is_limited
    for wrong in ("", "qtn_", secret[:-1], secret + "0", secret.upper(), "é" * 52, f"qtn_{'0' * 48}", f"{secret}\n"):
        assert parts.tokens.member(wrong, now()) is None
    assert parts.tokens.member(secret, now() + timedelta(days=3)) is None
    assert parts.tokens.all(now() + timedelta(days=3))[0][1] is Status.EXPIRED
    take(parts, HELP, OWN)
    assert parts.tokens.member(secret, now()) is None and parts.tokens.by_id(token.id, now()) is None
    assert parts.tokens.all(now())[0][1] is Status.WITHOUT_ROLE
    give(parts, DOMAIN, OWN)
    assert parts.tokens.by_id(token.id, now())
    parts.tokens.revoke(token.id, BY_OPERATOR, now())
    assert parts.tokens.member(secret, now()) is None and parts.tokens.by_id(token.id, now()) is None
    assert parts.tokens.all(now())[0][1] is Status.REVOKED
    with pytest.raises(BadToken, match="before"):
        parts.tokens.revoke(token.id, BY_OPERATOR, now())
    assert parts.tokens.by_id(new_id(), now()) is None


def test_a_token_of_somebody_who_cannot_sign_in_or_for_a_domain_that_is_gone_has_no_effect(
    parts: Parts, files_url: str, make_settings: MakeSettings, tmp_path: Any
) -> None:
    give(parts, ADMIN, EVERYWHERE)
    secrets = [create(parts, HELP, host) for host in (EVERYWHERE, OTHER)]
    fewer = assemble(make_settings(files_url, local_domains=(OWN,)))
    assert [fewer.tokens.member(each, now()) is not None for each in secrets] == [True, False]
    (tmp_path / "virtual").write_text(f"{BOB} {ALICE}\n")  # he left, and his mail goes to her
    without = assemble(make_settings(files_url, people__alias_file=tmp_path / "virtual"))
    assert without.tokens.member(secrets[0], now()) is None
    assert {status for _, status in without.tokens.all(now())} == {Status.WITHOUT_ROLE}
    for each in (fewer, without):
        each.store.close()


def test_the_last_use_is_recorded_at_most_once_a_minute(parts: Parts) -> None:
    give(parts, HELP, OWN)
    secret, at = create(parts, HELP, OWN), now()

    def used_after(seconds: float) -> Any:
        assert parts.tokens.member(secret, at + timedelta(seconds=seconds))
        return parts.store.tokens.all()[0].used_at

    assert [used_after(seconds) for seconds in (0, 59, 61)] == [at, at, at + timedelta(seconds=61)]
    assert used_after(-7200) == at - timedelta(hours=2), "the clock was ahead before"


ALL = [(role, host) for role in Role for host in (EVERYWHERE, OWN, OTHER) if fits(role, host)]


@pytest.mark.parametrize(
    ("held", "allowed"),
    [
        ([(ADMIN, EVERYWHERE)], ALL),
        ([(DOMAIN, OWN)], [(DOMAIN, OWN), (HELP, OWN), (AUDITOR, OWN)]),
        ([(HELP, EVERYWHERE), (AUDITOR, EVERYWHERE)], []),
        ([(DOMAIN, OWN), (AUDITOR, EVERYWHERE)], [(DOMAIN, OWN), (HELP, OWN), (AUDITOR, OWN)]),
    ],
)
def test_staff_create_tokens_with_the_roles_that_they_may_give(
    parts: Parts, held: list[tuple[Role, str]], allowed: list[tuple[Role, str]]
) -> None:
    for each in held:
        give(parts, *each)
    by = parts.staff.member(BOB)
    for role, host in ALL:
        if (role, host) in allowed:
            assert create(parts, role, host, by=by)
        else:
            with pytest.raises(NotAllowed):
                create(parts, role, host, by=by)
    assert len(parts.store.tokens.all()) == len(allowed)


def test_nobody_creates_a_token_of_somebody_else_or_with_a_token(parts: Parts) -> None:
    by = give(parts, ADMIN, EVERYWHERE)
    give(parts, ADMIN, EVERYWHERE, ALICE)
    with pytest.raises(NotAllowed):
        create(parts, HELP, OWN, owner=ALICE, by=by)
    member = parts.tokens.member(create(parts, ADMIN, EVERYWHERE, by=by), now())
    with pytest.raises(NotAllowed):
        create(parts, HELP, OWN, by=member)
    assert len(parts.store.tokens.all()) == 1


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"name": " "}, "Enter a name"),
        ({"days": 0}, "1 to 365"),
        ({"days": 366}, "1 to 365"),
        ({"role": AUDITOR}, "does not have this role"),
        ({"domain": OTHER}, "does not have this role"),
        ({"domain": ""}, "does not have this role"),
        ({"domain": "elsewhere.example"}, "not a local domain"),
        ({"role": DOMAIN, "domain": ""}, "needs a domain"),
    ],
)
def test_what_cannot_be_created_is_said_also_on_the_command_line(
    parts: Parts, changed: dict[str, Any], words: str
) -> None:
    give(parts, HELP, OWN)
    wanted = replace(TokenRequest("report", HELP, OWN, Scope.READ, 30), **changed)
    with pytest.raises((BadToken, BadGrant), match=words):
        parts.tokens.create(new_id(), BOB, wanted, BY_OPERATOR, now())
    assert not parts.store.tokens.all()


def test_tokens_are_revoked_by_their_owner_and_by_those_who_may_remove_such_a_role(parts: Parts) -> None:
    give(parts, ADMIN, EVERYWHERE)
    create(parts, HELP, OWN)
    create(parts, HELP, EVERYWHERE)
    everywhere, of_domain = sorted((token for token, _ in parts.tokens.all(now())), key=lambda each: each.domain)
    domain_admin = give(parts, DOMAIN, OWN, ALICE)

    def may(member: Member) -> list[bool]:
        return [parts.tokens.may_revoke(member, token) for token in (everywhere, of_domain)]

    def seen(member: Member) -> list[Token]:
        return [token for token, _ in parts.tokens.all(now(), member)]

    assert (may(domain_admin), seen(domain_admin)) == ([False, True], [of_domain])
    take(parts, DOMAIN, OWN, ALICE)
    auditor = give(parts, AUDITOR, EVERYWHERE, ALICE)
    assert (may(auditor), len(seen(auditor))) == ([False, False], 2)
    assert (may(parts.staff.member(BOB)), len(seen(parts.staff.member(BOB)))) == ([True, True], 2)
    with pytest.raises(NotAllowed):
        parts.tokens.revoke(everywhere.id, BY_OPERATOR, now(), auditor)
    assert seen(parts.staff.member("carol@example.org")) == []


def test_forgetting_a_person_revokes_their_tokens(parts: Parts) -> None:
    give(parts, HELP, OWN)
    create(parts, HELP, OWN)
    parts.forgetting.begin(parts.forgetting.leaver(BOB, now()), BY_OPERATOR, now())
    assert [token.revoked_at is not None for token in parts.store.tokens.all()] == [True]


def test_a_token_works_while_the_store_can_only_be_read(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    give(parts, ADMIN, EVERYWHERE)
    secret = create(parts, ADMIN, EVERYWHERE)

    def full(*_: object) -> None:
        raise StoreUnavailable("the disk is full")

    monkeypatch.setattr(parts.store.tokens, "record_use", full)
    assert parts.tokens.member(secret, now())


def test_somebody_of_whom_only_tokens_are_left_is_forgotten(parts: Parts) -> None:
    give(parts, ADMIN, EVERYWHERE)
    secret = create(parts, ADMIN, EVERYWHERE)
    take(parts, ADMIN, EVERYWHERE)
    leaver = parts.forgetting.leaver(BOB, now())
    assert leaver.is_known and leaver.tokens == 1
    parts.forgetting.begin(leaver, BY_OPERATOR, now())
    give(parts, ADMIN, EVERYWHERE)
    assert parts.tokens.member(secret, now()) is None
    assert parts.forgetting.leaver(BOB, now()).tokens == 0
