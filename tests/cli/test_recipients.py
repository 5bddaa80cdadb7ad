"""``quarantine recipient``, ``forget`` and ``digests``, as typed by an operator, on both stores."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, time, timedelta
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
from tests.builders import ALICE, BOB, BY_OPERATOR, digesting, hold, now, prefer, rule
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
    prefer(store, ALICE, Preferences(language="fr"))
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
    arguments = {"identities": [ALICE], "until": now().isoformat()}
    store.jobs.add(forgetting.FORGET, arguments, BY_OPERATOR, now())
    assert housekeeping.forget_waiting(parts, now(), stopped=lambda: next(stops)) == 1
    assert 0 < numbers_of(store, ALICE) < 10
    housekeeping.forget_waiting(parts, now() + timedelta(minutes=1))
    assert numbers_of(store, ALICE) == 0
    assert store.jobs.claim(forgetting.FORGET, 1, now() + timedelta(days=1)) == []
    parts.store.close()


# ---- what is known


def test_the_facts_of_a_recipient_are_printed(run: Run, store: Store) -> None:
    hold(store, recipients=(ALICE,), subject="An offer\x1b[2J")
    hold(store, recipients=(SALES,))
    store.recipients.set_digests_stopped(ALICE, now())
    store.rules.add([rule("news.example", "allow")], now())
    store.sign_ins.start_session(SESSION, ALICE, now(), "Firefox · Linux")
    text = run("recipient", "Sales@example.org").output
    for line in (
        *("recipient:        alice@example.org", "deliveries:       held 2", "aliases:          sales@example.org"),
        *("shared mailboxes: info@example.org", "daily at 07:00 in UTC", "digests stopped:", "Firefox · Linux"),
        *("allow news.example, hits 0", "17.5 / 15"),
    ):
        assert line in text, line
    assert "\x1b" not in text
    found = json.loads(run("recipient", ALICE, "--json").output)
    assert found["recipient"] == ALICE and found["deliveries"] == {"held": 2}
    assert found["digests"]["stopped_at"] and found["digests"]["next_at"] is None
    assert [each["subject"] for each in found["newest"]] == ["Offer", "An offer\x1b[2J"]
    assert "read by:          alice@example.org, bob@example.org" in run("recipient", "info@example.org").output
    unknown = run("recipient", "x@elsewhere.example")
    assert unknown.exit_code == 1 and "This address is not a recipient here" in unknown.output
    assert "Check the spelling." in unknown.output


# ---- digests of many recipients


def test_digests_are_stopped_and_resumed_for_a_list(run: Run, store: Store, tmp_path: Path) -> None:
    file = tmp_path / "leavers.txt"
    file.write_text(f"\ufeff{ALICE}\r\n\r\nBob@Example.org\r\n")
    assert run("digests", "stop", "--from-file", str(file), "--dry-run").output.splitlines() == [
        f"{ALICE}: would be changed",
        f"{BOB}: would be changed",
    ]
    assert store.recipients.get(ALICE).stopped_at is None
    run("digests", "stop", ALICE)
    done = run("digests", "stop", "--from-file", str(file), "--reason", "holidays")
    assert done.exit_code == 0
    assert done.output.splitlines() == [f"{ALICE}: unchanged", f"{BOB}: changed"]
    assert store.recipients.get(BOB).stopped_at
    assert run("digests", "resume", ALICE, BOB).output == f"{ALICE}: changed\n{BOB}: changed\n"
    assert store.recipients.get(BOB).stopped_at is None
    entries = store.audit.list(AuditFilter(subject=BOB), 9)
    assert [(each.act, each.actor.name, each.detail) for each in entries] == [
        ("digests-resumed", "carol", ""),
        ("digests-stopped", "carol", "holidays"),
    ]


def test_digests_are_stopped_for_the_people_of_a_domain(run: Run, store: Store) -> None:
    hold(store, recipients=(ALICE, SALES, "info@example.org", "jo@sub.example.org"))
    assert run("digests", "stop", "--domain", "Example.org").output == f"{ALICE}: changed\n"
    assert store.recipients.get(ALICE).stopped_at and not store.recipients.get("info@example.org").stopped_at


def test_preferences_are_exported_as_set_takes_them_back(run: Run, store: Store, tmp_path: Path) -> None:
    formula = "=1+1@example.org"
    hold(store, recipients=(ALICE, SALES, BOB, formula, "info@example.org", "jo@elsewhere.example"))
    chosen = Preferences("weekdays", (time(7), time(16, 30)), "Asia/Tokyo", notices=False, only_wanted=True)
    prefer(store, ALICE, chosen)
    prefer(store, BOB, Preferences("never", None, "Mars/North", "fr", notices=True))
    store.recipients.set_digests_stopped(BOB, datetime(2026, 1, 2, 3, 4, tzinfo=UTC))
    exported = run("digests", "export", "--domain", "Example.org").output
    assert exported.splitlines() == [
        "address,days,at,zone,language,notices,only-wanted",
        "'=1+1@example.org,default,default,default,default,default,default",
        f'{ALICE},weekdays,"07:00,16:30",Asia/Tokyo,default,off,on',
        f"{BOB},default,default,default,fr,on,default",
    ]
    file = tmp_path / "people.csv"
    file.write_text(exported)
    assert (
        run(
            "digests", "set", ALICE, "--days", "monday", "--language", "cs", "--notices", "on", "--only-wanted", "off"
        ).exit_code
        == 0
    )
    done = run("digests", "set", "--from-file", str(file), "--reason", "as before")
    assert (done.exit_code, f"{ALICE}: changed" in done.output) == (0, True), done.output
    assert store.recipients.get(ALICE).preferences == chosen
    assert store.recipients.get(BOB).preferences == Preferences(None, None, None, "fr", notices=True)
    stopped = run("digests", "export", "--stopped").output
    assert stopped.splitlines() == ["address", BOB]
    file.write_text(stopped)
    assert run("digests", "resume", "--from-file", str(file)).output == f"{BOB}: changed\n"
    entries = [each for each in store.audit.list(AuditFilter(), 99) if each.act == "exported"]
    assert [(each.actor.name, each.domain, each.detail) for each in reversed(entries)] == [
        ("carol", "example.org", "preferences of recipients"),
        ("carol", "", "addresses of people whose digests are stopped"),
    ]
    assert run("digests", "export", "--domain", "elsewhere.example").exit_code == 2


def test_the_people_of_a_domain_are_listed_with_their_choices(
    run: Run, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("portal.policy.recipient_lists._AT_ONCE", 1)
    hold(store, recipients=(ALICE, BOB, "info@example.org"))
    prefer(store, ALICE, Preferences(language="fr", notices=True, only_wanted=True))
    store.recipients.set_digests_stopped(BOB, datetime(2026, 1, 2, 3, 4, tzinfo=UTC))
    header, *rows = [line.split() for line in run("digests", "list", "--domain", "example.org").output.splitlines()]
    assert header == ["recipient", "days", "at", "zone", "language", "notices", "only", "wanted", "stopped", "(UTC)"]
    assert rows == [
        [ALICE, "default", "default", "default", "fr", "on", "on"],
        [BOB, "default", "default", "default", "default", "default", "default", "2026-01-02", "03:04"],
    ]
    [line] = run("digests", "list", "--stopped", "--json").output.splitlines()
    found = json.loads(line)
    assert (found["recipient"], found["stopped_at"]) == (BOB, "2026-01-02T03:04:00+00:00")


def test_preferences_are_set_from_a_table(run: Run, store: Store, tmp_path: Path) -> None:
    prefer(store, ALICE, Preferences(language="fr", timezone="Asia/Tokyo"))
    file = tmp_path / "people.csv"
    file.write_text(f'Address,days,at,language\n{ALICE},weekdays,"07:00, 16:30",default\n{BOB},,,cs\n')
    done = run("digests", "set", "--from-file", str(file), "--days", "monday")
    assert done.output == f"{ALICE}: changed\n{BOB}: changed\n", done.output
    assert store.recipients.get(ALICE).preferences == Preferences("weekdays", (time(7), time(16, 30)), "Asia/Tokyo")
    assert store.recipients.get(BOB).preferences == Preferences("monday", None, None, "cs")
    assert run("digests", "set", BOB, "--language", "cs").output == f"{BOB}: unchanged\n"


@pytest.mark.parametrize(
    ("words", "content", "text"),
    [
        (("stop",), "", "Give at least one address"),
        (("stop", " "), "", "It is empty."),
        (("stop", "--domain", "elsewhere.example"), "", "elsewhere.example is not a domain of local_domains."),
        (("set", BOB), "", "Give at least one value"),
        (("set", BOB, "--zone", "Mars"), "", "bob@example.org: There is no time zone of this name."),
        (("set", BOB, "--notices", "yes"), "", "bob@example.org: Enter on or off."),
        (("set", BOB, "--only-wanted", "never"), "", "bob@example.org: Enter on or off."),
        (("set", BOB, "--days", "never"), "", "These days are not known."),
        (("stop",), f"{BOB}\nx@elsewhere.example\nalice\n", "line 3: This is not an email address."),
        (("stop",), f"{BOB}\ninfo@example.org\n", "line 2: This is a shared mailbox. Enter the addresses of its"),
        (("stop",), f"{BOB},de\n", "line 1: There are more values than columns."),
        (("set",), f"address,at\n{BOB},7\n{ALICE},25:00\n", "line 3: Enter times like 07:00"),
        (("set",), f"address,colour\n{BOB},red\n", "line 1: The columns are address and, if wanted, days, at"),
        (
            ("set",),
            f"address,language\n{BOB},de\nBOB@example.org,fr\n",
            "line 3: This recipient is in the list twice, with different values.",
        ),
        (("set",), f'address,language\n{BOB},"de\n', "This is not CSV"),
        (("stop",), b"\n\xff\n", "line 2: This is not UTF-8."),
    ],
)
def test_one_wrong_line_changes_nothing(
    run: Run, store: Store, tmp_path: Path, words: tuple[str, ...], content: str | bytes, text: str
) -> None:
    file = tmp_path / "people.csv"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    result = run("digests", *words, *(["--from-file", str(file)] if content else []))
    assert result.exit_code == 2 and text in result.output, result.output
    assert store.recipients.get(BOB).stopped_at is None and store.recipients.get(BOB).preferences == Preferences()
