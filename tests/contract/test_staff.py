"""Roles of staff, in both stores."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from portal.model.audit import AuditFilter
from portal.model.message import Actor, ActorKind
from portal.model.staff import EVERYWHERE, Grant, Role
from portal.stores import Store
from portal.stores.lifecycle import STAFF_IDLE
from portal.stores.records import Method
from tests.builders import ALICE, BOB, BY_OPERATOR, now
from tests.contract.helpers import SESSION

BY_ALICE = Actor(ActorKind.OPERATOR, ALICE, "console", "192.0.2.7")


def grant(person: str, role: Role, domain: str = EVERYWHERE, actor: Actor = BY_OPERATOR) -> Grant:
    return Grant(person, role, domain, now(), actor)


def test_people_have_several_roles_and_each_is_given_and_removed_by_itself(store: Store) -> None:
    first = grant(BOB, Role.DOMAIN_ADMINISTRATOR, "example.org")
    second = grant(BOB, Role.DOMAIN_ADMINISTRATOR, "xn--mnchen-3ya.example", BY_ALICE)
    third, other = grant(BOB, Role.AUDITOR), grant(ALICE, Role.HELP_DESK)
    assert all(store.staff.give(each) for each in (second, first, third, other))
    assert not store.staff.give(grant(BOB, Role.AUDITOR, actor=BY_ALICE)), "the first giver stays"
    assert store.staff.of(BOB) == [third, first, second]
    assert store.staff.all() == [other, third, first, second]
    assert store.staff.remove(BOB, Role.DOMAIN_ADMINISTRATOR, "example.org", BY_ALICE, now())
    assert not store.staff.remove(BOB, Role.DOMAIN_ADMINISTRATOR, "example.org", BY_ALICE, now())
    assert not store.staff.remove(ALICE, Role.HELP_DESK, "example.org", BY_ALICE, now())
    assert store.staff.of(BOB) == [third, second]


def test_the_audit_says_who_gave_and_removed_roles(store: Store) -> None:
    given = grant(BOB, Role.HELP_DESK, "example.org", BY_ALICE)
    for _ in range(2):
        store.staff.give(given)
        store.staff.remove(BOB, Role.AUDITOR, EVERYWHERE, BY_OPERATOR, now())
    store.staff.remove(BOB, Role.HELP_DESK, "example.org", BY_OPERATOR, now() + timedelta(seconds=1))
    found = [(e.act, e.actor, e.subject, e.detail) for e in store.audit.list(AuditFilter(), 9)]
    assert found == [
        ("role-removed", BY_OPERATOR, BOB, "help-desk of example.org"),
        ("role-given", BY_ALICE, BOB, "help-desk of example.org"),
    ]


def test_a_removed_role_ends_the_use_of_the_console_in_all_sessions(store: Store) -> None:
    at = now()
    store.staff.give(grant(ALICE, Role.AUDITOR))
    store.staff.give(grant(ALICE, Role.HELP_DESK))
    other = b"t" * 32
    for session, recipient in ((SESSION, ALICE), (other, BOB)):
        store.sign_ins.start_session(session, recipient, at, authenticated_at=at)
    store.sign_ins.extend_staff_use(SESSION, at + 2 * STAFF_IDLE)
    found = store.sign_ins.session(SESSION, at)
    assert found and (found.staff_until, found.authenticated_at) == (at + 2 * STAFF_IDLE, at)
    assert [each.role for each in found.grants] == [Role.AUDITOR, Role.HELP_DESK]
    store.staff.remove(ALICE, Role.AUDITOR, EVERYWHERE, BY_ALICE, now())
    store.sign_ins.extend_staff_use(SESSION, at + 2 * STAFF_IDLE)  # by a request that began before
    found = store.sign_ins.session(SESSION, at + timedelta(minutes=1))
    assert found and found.staff_until is None and [each.role for each in found.grants] == [Role.HELP_DESK]
    unchanged = store.sign_ins.session(other, at)
    assert unchanged and (unchanged.staff_until, unchanged.grants) == (at + STAFF_IDLE, ())


def test_all_roles_are_replaced_by_those_of_another_store(store: Store) -> None:
    kept, gone, new = grant(ALICE, Role.AUDITOR), grant(BOB, Role.HELP_DESK), grant(BOB, Role.AUDITOR)
    store.staff.give(kept)
    store.staff.give(gone)
    store.staff.replace_all([kept, new])
    assert store.staff.all() == [kept, new]


DAY = timedelta(days=1)


def by_group(role: Role, group: str, until: datetime) -> Grant:
    actor = Actor(ActorKind.OPERATOR, f"group {group}", "oidc:company")
    return Grant(ALICE, role, EVERYWHERE, now(), actor, "oidc:company", group, until)


def test_roles_by_groups_are_replaced_as_a_whole_and_given_ones_stay(store: Store) -> None:
    at = now()
    given = grant(ALICE, Role.AUDITOR)
    store.staff.give(given)
    help_desk, auditor = (by_group(role, "it", at + STAFF_IDLE) for role in (Role.HELP_DESK, Role.AUDITOR))
    store.staff.put_groups(ALICE, "oidc:company", [help_desk, auditor], at)
    assert store.staff.of(ALICE) == [given, auditor, help_desk]
    store.sign_ins.start_session(SESSION, ALICE, at)
    later = replace(help_desk, expires_at=at + 2 * STAFF_IDLE)
    store.staff.put_groups(ALICE, "ldap", [], at)
    store.staff.put_groups(ALICE, "oidc:company", [later], at)
    assert store.staff.of(ALICE) == [given, later], "those of another source stay"
    ended = store.sign_ins.session(SESSION, at)
    assert ended and ended.staff_until is None, "she lost a role, so the console ends"
    assert not store.staff.remove(ALICE, Role.HELP_DESK, EVERYWHERE, BY_OPERATOR, at), "only the group gives it"
    found = {(e.act, e.actor.name, e.detail) for e in store.audit.list(AuditFilter(), 9)} - {
        ("role-given", BY_OPERATOR.name, "auditor")
    }
    assert found == {
        ("role-given", "group it", "help-desk, group it"),
        ("role-given", "group it", "auditor, group it"),
        ("role-removed", "group it", "auditor, group it"),
    }


def test_an_expired_role_by_a_group_is_removed_with_an_entry(store: Store) -> None:
    at = now()
    later = by_group(Role.AUDITOR, "it", at + 2 * DAY)
    expiring = by_group(Role.HELP_DESK, "it", at + timedelta(hours=1))
    store.staff.put_groups(ALICE, "oidc:company", [expiring, later], at)
    for _ in range(2):
        store.staff.remove_expired(at + DAY)
    assert store.staff.of(ALICE) == [later]
    removed = store.audit.list(AuditFilter(act="role-removed"), 9)
    assert [(each.actor.name, each.subject, each.detail) for each in removed] == [
        ("group it", ALICE, "help-desk, group it, expired")
    ]
    store.staff.put_groups(ALICE, "oidc:company", [replace(later, expires_at=at + 9 * DAY)], at + 3 * DAY)
    found = [each.detail for each in store.audit.list(AuditFilter(), 2)]
    assert sorted(found) == ["auditor, group it", "auditor, group it, expired"], "she did not have it for a day"


def test_the_daily_removal_includes_roles(store: Store) -> None:
    at = now()
    store.staff.put_groups(ALICE, "oidc:company", [by_group(Role.HELP_DESK, "it", at + timedelta(hours=1))], at)
    store.purge(at - 30 * DAY, at + DAY)
    assert store.staff.of(ALICE) == []


def test_a_session_has_the_roles_of_its_recipient(store: Store) -> None:
    at = now()
    store.staff.give(grant(ALICE, Role.AUDITOR))
    store.staff.give(grant(BOB, Role.ADMINISTRATOR))
    store.staff.put_groups(ALICE, "oidc:company", [by_group(Role.HELP_DESK, "it", at + timedelta(hours=1))], at)
    store.sign_ins.start_session(SESSION, ALICE, at, method=Method("oidc:company"))
    for job_id in (None, store.jobs.add("scan", {}, BY_ALICE, at)):
        found = store.sign_ins.session(SESSION, at, job_id)
        assert found and list(found.grants) == list(store.staff.of(ALICE)), "policy decides which are in effect"
        assert len(found.grants) == 2 and (found.job.id if found.job else None) == job_id
