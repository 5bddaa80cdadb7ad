"""Permissions: the whole matrix of roles, and who may give which role."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from itertools import product
from typing import Any

import pytest

from portal.assemble import assemble
from portal.model.domain_value import DomainValue
from portal.model.errors import BadGrant, NotAllowed
from portal.model.message import DeliveryId, Scan, ScanOutcome, Tier, new_id
from portal.model.staff import EVERYWHERE, Grant, Role
from portal.policy.staff import PERMISSIONS, Member, Permission, Staff
from tests.builders import ALICE, BOB, BY_OPERATOR, hold, now
from tests.conftest import MakeSettings

OWN, OTHER = "example.org", "example.net"
ADMIN, DOMAIN, HELP, AUDITOR = Role  # in the order of the columns below

# x: yes. b: if staff.help_desk_sees_bodies. r: if the domain's right is self or request. s: if it is self.
MATRIX = {
    Permission.SEE_ENVELOPE: "xxxx",
    Permission.SEE_BODY: "xxb.",
    Permission.RELEASE_SPAM: "xrs.",
    Permission.RELEASE_SUSPICIOUS: "xr..",
    Permission.RELEASE_DANGEROUS: "x...",
    Permission.DELETE: "xx..",
    Permission.RESTORE: "xx..",
    Permission.SEND_LINK: "xxx.",
    Permission.MANAGE_RECIPIENTS: "xx..",
    Permission.MANAGE_DOMAIN_POLICY: "xx..",
    Permission.MANAGE_STAFF: "xx..",
    Permission.READ_AUDIT: "xx.x",
}

MakeStaff = Callable[..., Staff]


@pytest.fixture
def make_staff(files_url: str, make_settings: MakeSettings) -> Iterator[MakeStaff]:
    opened = []

    def make(**overrides: Any) -> Staff:
        settings = make_settings(files_url, local_domains=(OWN, OTHER), **overrides)
        opened.append(assemble(settings, create=True))
        return opened[-1].staff

    yield make
    for parts in opened:
        parts.store.close()


@pytest.fixture
def staff(make_staff: MakeStaff) -> Staff:
    return make_staff()


def member(*roles: tuple[Role, str], person: str = BOB) -> Member:
    return Member(person, tuple(Grant(person, role, domain, now(), BY_OPERATOR) for role, domain in roles))


def set_policy(staff: Staff, domain: str, **values: str) -> None:
    changes = [DomainValue(new_id(), domain, key, value, now(), BY_OPERATOR) for key, value in values.items()]
    staff.store.domains.set(changes)
    staff.domains._read_at = -1e9  # read again at once


def test_the_matrix_names_every_permission_and_role() -> None:
    assert set(MATRIX) == set(Permission) and len(Role) == 4
    assert set(PERMISSIONS) == set(Role)


@pytest.mark.parametrize("bodies", [False, True])
@pytest.mark.parametrize("right", ["self", "request", "administrator"])
def test_each_role_may_what_the_matrix_says(make_staff: MakeStaff, right: str, bodies: bool) -> None:
    staff = make_staff(staff__help_desk_sees_bodies=bodies)
    # In the store, since a domain's page can set it; only the settings file can set `self`, the default.
    if right != "self":
        set_policy(staff, OWN, release_spam=right, release_suspicious=right)
    means = {"x": True, ".": False, "b": bodies, "r": right != "administrator", "s": right == "self"}
    for permission, (column, role) in product(MATRIX, enumerate(Role)):
        expected = means[MATRIX[permission][column]]
        of_domain, of_site = member((role, OWN)), member((role, EVERYWHERE))
        if role is not ADMIN:
            assert staff.may(of_domain, permission, OWN) == expected, (role, permission)
            assert not staff.may(of_domain, permission, OTHER), (role, permission)
            assert not staff.may(of_domain, permission, EVERYWHERE), (role, permission)
        if role is not DOMAIN:
            assert staff.may(of_site, permission, OWN) == expected, (role, permission)
        assert not staff.may(member(), permission, OWN)


def test_a_delivery_is_that_of_its_recipients_domain(staff: Staff) -> None:
    held = hold(staff.store, recipients=(ALICE, "carol@example.net", "dave@elsewhere.example"))
    [hers, carols, elsewhere] = (staff.store.deliveries.get(DeliveryId(held.id, number)) for number in range(3))
    of_domain, of_site = member((HELP, OWN)), member((HELP, EVERYWHERE))
    for permission in (Permission.SEE_ENVELOPE, Permission.SEND_LINK):
        assert [staff.may_for(of_domain, permission, each) for each in (hers, carols, elsewhere)] == [
            True,
            False,
            False,
        ]
        assert all(staff.may_for(of_site, permission, each) for each in (hers, carols, elsewhere))
    assert [staff.may_release(of_domain, each) for each in (hers, carols)] == [True, False]


def test_the_tier_decides_who_releases(staff: Staff) -> None:
    people = (member((ADMIN, EVERYWHERE)), member((DOMAIN, OWN)), member((HELP, OWN)), member((AUDITOR, OWN)))
    for tier, expected in (
        (Tier.SPAM, [True, True, True, False]),
        (Tier.SUSPICIOUS, [True, True, False, False]),
        (Tier.DANGEROUS, [True, False, False, False]),
    ):
        delivery = staff.store.deliveries.get(DeliveryId(hold(staff.store, tier=tier).id, 0))
        assert [staff.may_release(each, delivery) for each in people] == expected
    # Only suspicious because it was not scanned: the rule for its verdict holds as well.
    set_policy(staff, OWN, release_spam="administrator")
    held = staff.store.deliveries.get(DeliveryId(hold(staff.store, tier=Tier.SPAM).id, 0))
    unscanned = replace(held, message=replace(held.message, scan=Scan(ScanOutcome.WAITING)))
    assert [staff.may_release(each, unscanned) for each in people] == [True, False, False, False]


def test_reach_is_where_a_person_may_do_something(staff: Staff) -> None:
    both = member((DOMAIN, OWN), (AUDITOR, EVERYWHERE))
    assert staff.reach(both, Permission.SEE_ENVELOPE) == {OWN, EVERYWHERE}
    assert staff.reach(both, Permission.DELETE) == {OWN}
    assert staff.reach(both, Permission.RELEASE_DANGEROUS) == frozenset()


def test_nobody_gives_or_removes_what_they_do_not_hold(staff: Staff) -> None:
    everything = {(role, domain) for role in Role for domain in (EVERYWHERE, OWN, OTHER)}
    everything -= {(ADMIN, OWN), (ADMIN, OTHER), (DOMAIN, EVERYWHERE)}
    expected: dict[Member, set[tuple[Role, str]]] = {
        member((ADMIN, EVERYWHERE)): everything,
        member((DOMAIN, OWN)): {(DOMAIN, OWN), (HELP, OWN), (AUDITOR, OWN)},
        member((HELP, EVERYWHERE)): set(),
        member((AUDITOR, EVERYWHERE), (HELP, OWN)): set(),
        member((DOMAIN, OWN), (AUDITOR, EVERYWHERE)): {(DOMAIN, OWN), (HELP, OWN), (AUDITOR, OWN)},
        member(): set(),
    }
    for person, roles in expected.items():
        assert set(staff.may_be_given(person)) == roles
        for role, domain in everything:
            if (role, domain) in roles:
                assert staff.give(ALICE, role, domain, BY_OPERATOR, person)
                assert not staff.give(ALICE, role, domain, BY_OPERATOR, person)
                staff.remove(ALICE, role, domain, BY_OPERATOR, person)
            else:
                with pytest.raises(NotAllowed):
                    staff.give(ALICE, role, domain, BY_OPERATOR, person)
                with pytest.raises(NotAllowed):
                    staff.remove(ALICE, role, domain, BY_OPERATOR, person)
    assert staff.store.staff.all() == []


def test_a_domain_administrator_gives_roles_only_to_people_of_the_domain(staff: Staff) -> None:
    with pytest.raises(NotAllowed):
        staff.give("carol@example.net", HELP, OWN, BY_OPERATOR, member((DOMAIN, OWN)))
    assert staff.give("carol@example.net", HELP, OWN, BY_OPERATOR, member((DOMAIN, OWN), (DOMAIN, OTHER)))
    with pytest.raises(NotAllowed):
        staff.remove("carol@example.net", HELP, OWN, BY_OPERATOR, member((DOMAIN, OWN)))


@pytest.mark.parametrize(
    ("person", "role", "domain", "words"),
    [
        ("x@elsewhere.example", HELP, "", "not a local one"),
        ("alice", HELP, "", "address of a mailbox"),
        ("", HELP, "", "address of a mailbox"),
        ("\u202ea@example.org", HELP, "", "address of a mailbox"),
        (ALICE, ADMIN, OWN, "all domains"),
        (ALICE, DOMAIN, "", "needs a domain"),
        (ALICE, HELP, "elsewhere.example", "not a local domain"),
    ],
)
def test_roles_that_would_have_no_effect_are_refused(
    staff: Staff, person: str, role: Role, domain: str, words: str
) -> None:
    with pytest.raises(BadGrant, match=words):
        staff.give(person, role, domain, BY_OPERATOR)


def test_addresses_and_domains_are_compared_as_identities(make_staff: MakeStaff) -> None:
    staff = make_staff(staff__administrators="Alice@Example.ORG")
    assert staff.give("Bob@Example.org ", HELP, "EXAMPLE.org", BY_OPERATOR)
    assert staff.may(staff.member(BOB), Permission.RELEASE_SPAM, OWN)
    assert staff.may(staff.member(ALICE), Permission.RELEASE_DANGEROUS, OTHER)


def test_administrators_of_the_settings_can_only_be_removed_there(make_staff: MakeStaff) -> None:
    staff = make_staff(staff__administrators=ALICE)
    assert not staff.give(ALICE, ADMIN, EVERYWHERE, BY_OPERATOR), "she has the role already"
    with pytest.raises(BadGrant, match="settings file"):
        staff.remove(ALICE, ADMIN, EVERYWHERE, BY_OPERATOR)
    [grant] = staff.all()
    assert staff.is_of_settings(grant) and (grant.person, grant.role) == (ALICE, ADMIN)
    staff.store.staff.give(Grant(ALICE, ADMIN, EVERYWHERE, now(), BY_OPERATOR))  # before the settings named her
    with pytest.raises(BadGrant, match="settings file"):
        staff.remove(ALICE, ADMIN, EVERYWHERE, BY_OPERATOR)
    assert staff.store.staff.all() == [], "or she would have the role when the settings no longer name her"


def test_a_role_for_a_domain_that_is_no_longer_local_is_not_in_effect(make_staff: MakeStaff) -> None:
    staff = make_staff()
    staff.store.staff.give(Grant(BOB, DOMAIN, "gone.example", now(), BY_OPERATOR))
    assert staff.member(BOB).grants == () and staff.all() == []
    staff.remove(BOB, DOMAIN, "gone.example", BY_OPERATOR)
    assert staff.store.staff.all() == []


def test_an_alias_gets_no_role(make_staff: MakeStaff, tmp_path: Any) -> None:
    table = tmp_path / "virtual"
    table.write_text(f"sales@example.org {ALICE}\n")
    staff = make_staff(people__alias_file=table)
    with pytest.raises(BadGrant, match="alias"):
        staff.give("sales@example.org", HELP, OWN, BY_OPERATOR)


DIRECTORY = {"ldap__uri": "ldaps://ldap.example.org", "ldap__base": "dc=example,dc=org"}


def test_groups_give_the_roles_of_the_settings_until_they_expire_or_the_settings_change(make_staff: MakeStaff) -> None:
    def roles(staff: Staff) -> list[tuple[Role, str]]:
        return [(each.role, each.domain) for each in staff.member(BOB).grants]

    groups = {"mail admins": "administrator", "it": [f"help-desk:{OWN}", "auditor"]}
    staff = make_staff(staff__groups=groups, **DIRECTORY)
    staff.put_groups(BOB, "ldap", ["it", "canteen"])
    assert roles(staff) == [(AUDITOR, EVERYWHERE), (HELP, OWN)]
    assert roles(replace(staff, now=lambda: now() + timedelta(days=8))) == []
    changed = make_staff(staff__groups={"it": "auditor"}, **DIRECTORY)
    assert roles(replace(changed, store=staff.store)) == [(AUDITOR, EVERYWHERE)], "at once, without a sign-in"
    with pytest.raises(BadGrant, match="group"):
        staff.remove(BOB, AUDITOR, EVERYWHERE, BY_OPERATOR)
    without = make_staff(staff__groups=groups)
    assert roles(replace(without, store=staff.store)) == [], "the directory is no longer asked"
    staff.put_groups(BOB, "imap", [])
    assert roles(staff), "another method does not know these groups"
    staff.put_groups(BOB, "ldap", [])
    assert roles(staff) == []
