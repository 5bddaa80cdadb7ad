"""``quarantine forget``, as typed by an operator, on both stores."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from digest import housekeeping
from portal.assemble import assemble
from portal.cli import main
from portal.model.audit import AuditFilter
from portal.model.errors import NotFound
from portal.model.message import DeliveryId, EventKind, Reader, State
from portal.model.schedule import Preferences
from portal.model.staff import Grant, Role
from portal.policy import forgetting
from portal.settings import load
from portal.stores import Store
from tests.builders import ALICE, BOB, BY_OPERATOR, digesting, hold, now, rule
from tests.contract.helpers import SESSION

Run = Callable[..., Result]
SALES = "sales@example.org"


@pytest.fixture
def run(store_url: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    config, aliases = tmp_path / "quarantine.toml", tmp_path / "virtual"
    aliases.write_text("sales@example.org alice@example.org\ninfo@example.org alice@example.org, bob@example.org\n")
    config.write_text(
        f'local_domains = ["example.org"]\nstore.url = "{store_url}"\n'
        f'mail.from_address = "q@example.org"\nlinks.keys_file = "{tmp_path / "links.keys"}"\n'
        f'[people]\nalias_file = "{aliases}"\n[staff]\nadministrators = ["{BOB}"]\n'
    )
    monkeypatch.setenv("QUARANTINE_CONFIG", str(config))

    def call(*words: str) -> Result:
        result = CliRunner().invoke(main, ["--as", "carol", *words])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return call


def numbers_of(store: Store, recipient: str) -> int:
    return sum(store.deliveries.counts(Reader(recipient, (recipient,)), 1_000).of.values())


def test_a_leaver_is_forgotten_and_others_keep_what_they_share(run: Run, store: Store) -> None:
    at = now()
    shared, own, alias, role = (
        hold(store, recipients=to).id for to in ((ALICE, BOB), (ALICE,), (SALES,), ("info@example.org",))
    )
    store.deliveries.move(DeliveryId(own, 0), State.REQUESTED, {State.HELD}, BY_OPERATOR, at, kind=EventKind.REQUESTED)
    with digesting(store, ALICE, at, 50, ignore_schedule=True):
        pass
    store.recipients.set_preferences(ALICE, Preferences(language="fr"))
    store.rules.add([rule(), rule("of-bob.example", scope=BOB)], at)
    store.staff.give(Grant(ALICE, Role.HELP_DESK, "example.org", at, BY_OPERATOR))
    store.sign_ins.start_session(SESSION, ALICE, at)
    dry = run("forget", "Alice@Example.org", "--dry-run")
    assert dry.output.splitlines() == [
        f"{ALICE}: 3 deliveries, 1 sessions, 1 rules",
        f"  with the deliveries for: {SALES}",
        "  role: help-desk example.org",
    ]
    assert store.sign_ins.session(SESSION, at)
    done = run("forget", ALICE, "--yes", "--reason", "left in May")
    assert done.exit_code == 0 and f"{ALICE}: forgotten, 3 deliveries removed" in done.output
    for id in (own, alias):
        with pytest.raises(NotFound):
            store.deliveries.of_message(id)
    left = store.deliveries.of_message(shared)
    assert [(each.recipient, each.address, each.state) for each in left] == [
        ("", "", State.EXPIRED),
        (BOB, BOB, State.HELD),
    ]
    assert b"".join(store.messages.body(shared))
    assert [each.state for each in store.deliveries.of_message(role)] == [State.HELD]
    person = store.recipients.get(ALICE)
    assert person.stopped_at and person.links_valid_from and person.news_since is None
    assert person.preferences == Preferences()
    assert store.digests.last(ALICE) is None and store.sign_ins.session(SESSION, at) is None
    assert store.staff.of(ALICE) == [] and [each.scope for each in store.rules.list(None, 9, at)] == [BOB]
    [entry] = store.audit.list(AuditFilter(act="recipient-forgotten"), 9)
    assert (entry.actor.name, entry.subject, entry.detail) == ("carol", ALICE, "left in May")
    assert run("forget", ALICE, "--yes").exit_code == 0, "it may be repeated"


def test_mail_for_somebody_forgotten_is_held_and_in_no_digest_until_digests_are_resumed(run: Run, store: Store) -> None:
    hold(store, recipients=(ALICE,))
    run("forget", ALICE, "--yes")
    later = hold(store, recipients=(ALICE,))
    soon = now() + timedelta(days=2)
    assert store.recipients.unscheduled(9) == [] and store.digests.due(None, 9) == []
    store.recipients.set_digests_stopped(ALICE, None)
    [person] = store.recipients.unscheduled(9)
    store.recipients.schedule(ALICE, soon)
    [digest] = store.digests.claim(soon, 1, 50).digests
    assert person.recipient == ALICE and [each.id for each in digest.deliveries] == [later.id]


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        ((BOB, "--yes"), 1, "The settings file gives this person a role."),
        (("nobody@example.org", "--yes"), 1, "Nothing is stored for nobody@example.org. Check the spelling."),
        (("info@example.org", "--yes"), 2, "info@example.org is a shared mailbox."),
        (("alice", "--yes"), 2, "alice is not an email address."),
        ((" ", "--yes"), 2, "It is empty."),
        ((ALICE,), 2, "Confirm with --yes"),
    ],
)
def test_wrong_calls_change_nothing(run: Run, store: Store, words: tuple[str, ...], status: int, text: str) -> None:
    hold(store)
    result = run("forget", *words)
    assert result.exit_code == status and text in result.output
    assert numbers_of(store, ALICE) == numbers_of(store, BOB) == 1
    assert store.recipients.get(ALICE).stopped_at is None


def test_what_is_being_released_is_removed_later(run: Run, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forgetting, "_AT_ONCE", 3)
    keys = [DeliveryId(hold(store, recipients=(ALICE,)).id, 0) for _ in range(10)]
    store.deliveries.move(keys[4], State.RELEASING, {State.HELD}, BY_OPERATOR, now(), kind=EventKind.RELEASING)
    result = run("forget", ALICE, "--yes")
    assert result.exit_code == 1 and "1 deliveries are being released." in result.output
    assert numbers_of(store, ALICE) == 1
    store.deliveries.move(keys[4], State.HELD, {State.RELEASING}, BY_OPERATOR, now(), kind=EventKind.FAILED)
    assert run("forget", ALICE, "--yes").exit_code == 0
    assert numbers_of(store, ALICE) == 0


def test_the_digest_process_goes_on_after_a_stop(run: Run, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forgetting, "_AT_ONCE", 3)
    for _ in range(10):
        hold(store, recipients=(ALICE,))
    parts = assemble(load())
    stops = iter([False, False, False, *[True] * 20])
    store.jobs.add(forgetting.FORGET, {"identities": [ALICE]}, BY_OPERATOR, now())
    assert housekeeping.forget_waiting(parts, now(), stopped=lambda: next(stops)) == 1
    assert 0 < numbers_of(store, ALICE) < 10
    housekeeping.forget_waiting(parts, now() + timedelta(minutes=1))
    assert numbers_of(store, ALICE) == 0
    assert store.jobs.claim(forgetting.FORGET, 1, now() + timedelta(days=1)) == []
    parts.store.close()
