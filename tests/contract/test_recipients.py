"""`Recipients` on every store: preferences, opt-outs, and who has news."""

from __future__ import annotations

from dataclasses import replace
from datetime import time, timedelta

import pytest

from portal.model.audit import Act, AuditEntry, AuditFilter
from portal.model.message import held_at
from portal.model.schedule import Preferences
from portal.stores import Store
from portal.stores.records import Person, QueuedMail
from tests.builders import ALICE, BOB, BY_OPERATOR, MALLORY, hold, now, prefer
from tests.contract.helpers import CHOSEN, DAY, HOUR, SECOND, concurrently, delete, send_digest


def test_an_unknown_person_is_empty(store: Store) -> None:
    person = store.recipients.get(MALLORY)
    assert person.recipient == MALLORY
    assert (person.stopped_at, person.links_valid_from, person.news_since, person.next_digest_at) == (None,) * 4


def test_a_person_has_the_address_last_written_and_the_time_of_their_oldest_news(store: Store) -> None:
    first = hold(store, recipients=["alice@Example.org"])
    hold(store, recipients=["Alice@example.org"])
    assert store.recipients.get(ALICE) == Person(ALICE, "Alice@example.org", None, None, held_at(first.id), None)


@pytest.mark.parametrize("chosen", [CHOSEN, Preferences(), Preferences(at=(time(0),)), Preferences(timezone="UTC")])
def test_preferences_are_kept(store: Store, chosen: Preferences) -> None:
    hold(store, recipients=[ALICE])
    prefer(store, ALICE, CHOSEN)
    prefer(store, ALICE, chosen)
    assert store.recipients.get(ALICE).preferences == chosen
    assert [p.preferences for p in store.recipients.unscheduled(10)] == [chosen]
    assert store.recipients.get(BOB).preferences == Preferences()


def test_preferences_can_be_set_before_any_mail_is_held(store: Store) -> None:
    prefer(store, MALLORY, CHOSEN)
    person = store.recipients.get(MALLORY)
    assert (person.preferences, person.news_since, person.next_digest_at) == (CHOSEN, None, None)
    hold(store, recipients=["Mallory@Example.org"])
    assert store.recipients.get(MALLORY).preferences == CHOSEN
    assert store.recipients.get(MALLORY).address == "Mallory@Example.org"


def test_setting_preferences_unschedules_the_next_digest(store: Store) -> None:
    hold(store)
    store.recipients.schedule(ALICE, now() + DAY)
    store.recipients.schedule(BOB, now() + DAY)
    prefer(store, ALICE, CHOSEN)
    assert [p.recipient for p in store.recipients.unscheduled(10)] == [ALICE]


def test_setting_equal_preferences_changes_nothing(store: Store) -> None:
    at = now()
    hold(store, recipients=[ALICE])
    prefer(store, ALICE, CHOSEN)
    store.recipients.schedule(ALICE, at + DAY)
    before = store.recipients.get(ALICE)
    prefer(store, ALICE, CHOSEN)
    assert store.recipients.get(ALICE) == before
    assert (before.preferences, before.next_digest_at) == (CHOSEN, at + DAY)
    assert [entry.subject for entry in store.audit.list(AuditFilter(), 9)] == [ALICE]


def test_stopping_digests_succeeds_once_and_queues_its_mail(store: Store) -> None:
    at = now()
    assert store.recipients.set_digests_stopped(ALICE, at, mail=QueuedMail("Alice@example.org", b"stopped"))
    assert not store.recipients.set_digests_stopped(ALICE, at + HOUR, mail=QueuedMail("Alice@example.org", b"again"))
    assert store.recipients.get(ALICE).stopped_at == at
    with store.outbox.sending(at) as mail:
        assert mail is not None
        assert (mail.to, mail.mail) == ("Alice@example.org", b"stopped")
    assert store.stats(at).mails_waiting == 0
    assert store.recipients.set_digests_stopped(ALICE, None)
    assert not store.recipients.set_digests_stopped(ALICE, None)
    assert store.recipients.get(ALICE).stopped_at is None


def test_of_20_concurrent_stops_one_queues_its_mail(store: Store, second: Store) -> None:
    at = now()
    results = concurrently(
        20,
        lambda n: (second if n % 2 else store).recipients.set_digests_stopped(ALICE, at, mail=QueuedMail(ALICE, b"x")),
    )
    assert sorted(results) == [False] * 19 + [True]
    assert store.stats(at).mails_waiting == 1


def test_a_change_of_many_keeps_the_stop_of_somebody_of_whom_nothing_was_stored(store: Store, second: Store) -> None:
    at, chosen = now(), Preferences(language="de")
    own_acts = iter([at])  # Alice stops her digests while the change of many is decided

    def after(person: Person) -> Person:
        for stopped_at in own_acts:
            second.recipients.set_digests_stopped(ALICE, stopped_at)
        return replace(person, preferences=chosen)

    def entry(person: Person) -> AuditEntry:
        return AuditEntry.new(at, Act.PREFERENCES_SET, BY_OPERATOR, person.recipient)

    assert sorted(store.recipients.change([BOB, ALICE], after, entry)) == [ALICE, BOB]
    alice = store.recipients.get(ALICE)
    assert (alice.stopped_at, alice.preferences) == (at, chosen)
    assert store.recipients.get(BOB).preferences == chosen


def test_revoked_links_stay_revoked(store: Store) -> None:
    at = now()
    store.recipients.revoke_links(ALICE, at)
    assert store.recipients.get(ALICE).links_valid_from == at
    store.recipients.revoke_links(ALICE, at - DAY)
    assert store.recipients.get(ALICE).links_valid_from == at
    store.recipients.revoke_links(ALICE, at + DAY)
    assert store.recipients.get(ALICE).links_valid_from == at + DAY
    assert store.recipients.get(BOB).links_valid_from is None


def test_forgotten_devices_stay_forgotten(store: Store) -> None:
    at = now()
    store.recipients.forget_devices(ALICE, at)
    store.recipients.forget_devices(ALICE, at - DAY)
    assert store.recipients.get(ALICE).devices_valid_from == at
    store.recipients.forget_devices(ALICE, at + DAY)
    assert store.recipients.get(ALICE).devices_valid_from == at + DAY
    assert store.recipients.get(BOB).devices_valid_from is None


def test_news_are_scheduled_then_due(store: Store) -> None:
    hold(store)
    at = now()
    assert sorted(p.recipient for p in store.recipients.unscheduled(10)) == [ALICE, BOB]
    assert len(store.recipients.unscheduled(1)) == 1
    assert store.recipients.unscheduled(10)[0].news_since is not None
    assert not list(store.digests.due(at + DAY, 10))
    store.recipients.schedule(ALICE, at + 2 * HOUR)
    store.recipients.schedule(BOB, at + HOUR)
    assert store.recipients.get(ALICE).next_digest_at == at + 2 * HOUR
    assert not list(store.recipients.unscheduled(10))
    assert not list(store.digests.due(at + HOUR - SECOND, 10))
    assert list(store.digests.due(at + HOUR, 10)) == [BOB]
    assert list(store.digests.due(at + 3 * HOUR, 10)) == [BOB, ALICE]
    assert list(store.digests.due(at + 3 * HOUR, 1)) == [BOB]


def test_a_time_scheduled_concurrently_is_kept(store: Store) -> None:
    hold(store, recipients=[ALICE])
    at = now()
    store.recipients.schedule(ALICE, at + HOUR)
    store.recipients.schedule(ALICE, at + DAY)
    assert store.recipients.get(ALICE).next_digest_at == at + HOUR


def test_all_recipients_with_news_are_listed_in_pages_by_identity(store: Store) -> None:
    people = sorted(f"p{n}@example.org" for n in range(7))
    hold(store, recipients=people[::-1])
    store.recipients.schedule(people[0], now() + DAY)
    store.recipients.set_digests_stopped(people[1], now())
    send_digest(store, people[2], now())
    left = [people[0], *people[3:]]
    assert list(store.digests.due(None, 10)) == left
    assert list(store.digests.due(None, 3)) == left[:3]
    assert list(store.digests.due(None, 3, left[2])) == left[3:]
    assert not list(store.digests.due(None, 3, left[-1]))


@pytest.mark.parametrize(
    ("local", "expected"),
    [
        ({"example.org"}, [ALICE, BOB]),
        ({ALICE}, [ALICE]),
        ({ALICE, "example.com"}, [ALICE, "carol@example.com"]),
        ({"sub.example.org", "org"}, []),
        (set(), []),
        (None, [ALICE, BOB, "carol@example.com"]),
    ],
    ids=["domain", "address", "both", "other", "nobody", "everybody"],
)
def test_find_news_marks_unnotified_recipients(store: Store, local: set[str] | None, expected: list[str]) -> None:
    hold(store, recipients=["Alice@Example.org", BOB, "carol@example.com"], announce=())
    hold(store, recipients=(), announce=())
    since = now() - HOUR
    assert not list(store.recipients.unscheduled(10))
    assert store.recipients.find_news(since, local) == len(expected)
    assert sorted(p.recipient for p in store.recipients.unscheduled(10)) == expected
    assert list(store.digests.due(None, 10)) == expected


def test_find_news_looks_at_held_and_unannounced_mail_of_that_time(store: Store) -> None:
    announced, at = hold(store, recipients=[ALICE]), now()
    send_digest(store, ALICE, at)
    delete(store, hold(store, recipients=[BOB], announce=()), at)
    late = hold(store, recipients=["carol@example.org"], announce=())
    assert store.recipients.find_news(held_at(late.id) + timedelta(milliseconds=1), None) == 0
    assert store.recipients.find_news(held_at(announced.id), None) == 1
    assert list(store.digests.due(None, 10)) == ["carol@example.org"]
    assert store.recipients.get("carol@example.org").news_since == held_at(late.id)
