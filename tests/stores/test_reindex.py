"""`quarantine reindex` and the audit journal: the database is rebuilt from files only."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from portal.cli import main
from portal.model.audit import Act
from portal.model.domain_value import DomainValue
from portal.model.errors import StoreUnavailable
from portal.model.message import DeliveryId, EventKind, Reader, State, held_at, new_id
from portal.model.schedule import Preferences
from portal.model.staff import EVERYWHERE, Grant, Role
from portal.model.statistics import Count
from portal.stores import Store
from portal.stores.files import reindex as files_reindex
from portal.stores.files.database import unused
from portal.stores.files.journal import Journal
from portal.stores.files.store import FileStore
from portal.stores.journal import person_line
from portal.stores.records import Person
from portal.stores.shared.recipients import choices
from tests.builders import ALICE, BOB, BY_LINK, BY_OPERATOR, body, digesting, hold, now, prefer, rule, second_factor
from tests.contract.test_tokens import token
from tests.moving.test_copy import everything, fill, fill_rules, release
from tests.paths import ROOT

Run = Callable[[], Result]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "quarantine"


@pytest.fixture
def open_store(folder: Path) -> Iterator[Callable[[], FileStore]]:
    made: list[FileStore] = []

    def open_() -> FileStore:
        made.append(FileStore.open(str(folder)))
        return made[-1]

    yield open_
    for store in made:
        store.close()


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("QUARANTINE_STORE__URL", f"files:{folder}")
    monkeypatch.setenv("QUARANTINE_CONFIG", "/dev/null")

    def call() -> Result:
        result = CliRunner().invoke(main, ["reindex"])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return call


def kept(store: Store) -> dict[str, object]:
    """Return everything that the journal and the mail files contain."""
    return {name: value for name, value in everything(store).items() if name != "key"}


def lines(folder: Path) -> list[dict[str, object]]:
    return [
        json.loads(line) for path in sorted((folder / "journal").glob("*")) for line in path.read_text().splitlines()
    ]


def lose_database(folder: Path) -> None:
    for path in folder.glob("quarantine.sqlite3*"):
        path.unlink()


@pytest.mark.parametrize("what", ["there", "lost", "damaged"])
def test_everything_is_rebuilt(folder: Path, open_store: Callable[[], FileStore], run: Run, what: str) -> None:
    store = open_store()
    held = fill(store)
    for _ in range(3):
        hold(store)
    before = kept(store)
    store.close()
    if what == "lost":
        lose_database(folder)
    if what == "damaged":
        (folder / "quarantine.sqlite3").write_bytes(b"rubbish" * 1000)
    result = run()
    assert result.exit_code == 0, result.output
    assert f"read {len(held) + 3} messages" in result.output
    assert "sessions" in result.output
    assert kept(open_store()) == before
    assert not (folder / "reindex").exists()


def test_rebuilding_twice_changes_nothing(open_store: Callable[[], FileStore], run: Run) -> None:
    store = open_store()
    fill(store)
    before = kept(store)
    store.close()
    for _ in range(2):
        run()
    assert kept(open_store()) == before


def test_a_copied_store_is_rebuilt_with_its_states(
    folder: Path, open_store: Callable[[], FileStore], run: Run, tmp_path: Path
) -> None:
    source = FileStore.open(str(tmp_path / "other"))
    fill(source)
    assert CliRunner().invoke(main, ["copy", f"files:{tmp_path}/other", f"files:{folder}"]).exit_code == 0
    wanted = kept(source)
    source.close()
    lose_database(folder)
    run()
    store = open_store()
    store.recipients.find_news(now() - timedelta(days=2), None)  # as the digest process does
    rebuilt = kept(store)
    assert rebuilt["messages"] == wanted["messages"]
    assert rebuilt["digests"] == wanted["digests"]
    wanted_choices = {(p.recipient, choices(p)) for p in wanted["people"]}  # type: ignore[attr-defined]
    assert wanted_choices <= {(p.recipient, choices(p)) for p in store.recipients.records("", 100)}


def test_without_a_journal_all_mail_is_held_and_this_is_reported(
    folder: Path, open_store: Callable[[], FileStore], run: Run
) -> None:
    store = open_store()
    held = hold(store)
    store.close()
    result = run()
    assert "There is no audit journal" in result.output
    assert [d.state for d in open_store().deliveries.of_message(held.id)] == [State.HELD] * 2


def test_announced_mail_is_not_announced_again(open_store: Callable[[], FileStore], run: Run) -> None:
    store = open_store()
    hold(store, recipients=[ALICE])
    with digesting(store, ALICE, now(), 10, ignore_schedule=True):
        pass
    store.close()
    run()
    store = open_store()
    assert store.digests.due(None, 10) == []
    new = hold(store, recipients=[ALICE])
    assert [d.id for d in store.digests.unannounced(Reader(ALICE), 10)] == [new.id]


def test_what_was_put_into_the_next_digest_again_stays_there(open_store: Callable[[], FileStore], run: Run) -> None:
    store = open_store()
    held = [hold(store, recipients=[ALICE]) for _ in range(2)]
    with digesting(store, ALICE, now(), 10, ignore_schedule=True):
        pass
    store.deliveries.reannounce(DeliveryId(held[0].id, 0), BY_OPERATOR, now())
    store.close()
    run()
    store = open_store()
    assert [d.id for d in store.digests.unannounced(Reader(ALICE), 10)] == [held[0].id]
    with digesting(store, ALICE, now(), 10, ignore_schedule=True):
        pass
    store.close()
    run()
    assert open_store().digests.unannounced(Reader(ALICE), 10) == []


def test_truncated_and_unknown_lines_affect_nothing_else(
    folder: Path, open_store: Callable[[], FileStore], run: Run
) -> None:
    store = open_store()
    one, two = hold(store), hold(store)
    release(store, one, 0)
    path = next((folder / "journal").glob("*.jsonl"))
    with path.open("ab") as file:
        file.write(b'{"at": "2026-01-01T00:00:00+00:00", "kind": "delivery", "id": "nonsense"}\n[1]\n')
        file.write(b'{"at": "x"}\n{"at": "2026-01-01T00:00:00+00:00", "kind": "dance"}\n\xff\xfe\n{"at": "2026-01-')
    release(store, two, 1)  # it is written after the truncated line
    store.close()
    result = run()
    assert "unreadable lines in the journal: 6" in result.output
    store = open_store()
    assert store.deliveries.get(DeliveryId(one.id, 0)).state is State.RELEASED
    assert store.deliveries.get(DeliveryId(two.id, 1)).state is State.RELEASED


def test_an_act_whose_line_was_lost_is_done_again_rather_than_never(
    open_store: Callable[[], FileStore], run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store()
    held = hold(store)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "_open", full)
        release(store, held, 0)
    assert "audit journal not written" in caplog.text
    assert store.deliveries.get(DeliveryId(held.id, 0)).state is State.RELEASED
    store.close()
    run()
    assert open_store().deliveries.get(DeliveryId(held.id, 0)).state is State.HELD


def test_an_act_that_failed_has_no_line(folder: Path, open_store: Callable[[], FileStore]) -> None:
    store = open_store()
    held = hold(store)
    with pytest.raises(ZeroDivisionError), store.db.write():
        store.db.journal_after_commit({"kind": "delivery"})
        raise ZeroDivisionError
    assert not (folder / "journal").exists()
    store.deliveries.move(DeliveryId(held.id, 0), State.DELETED, {State.HELD}, BY_LINK, now(), kind=EventKind.DELETED)
    assert [line["state"] for line in lines(folder)] == ["deleted"]


def test_the_journal_says_who_did_what_and_holding_mail_writes_nothing(
    folder: Path, open_store: Callable[[], FileStore]
) -> None:
    store = open_store()
    held = hold(store, subject="Hush")
    assert not (folder / "journal").exists()
    store.deliveries.move(DeliveryId(held.id, 1), State.DELETED, {State.HELD}, BY_LINK, now(), kind=EventKind.DELETED)
    store.recipients.set_digests_stopped(ALICE, now())
    with digesting(store, BOB, now(), 10, ignore_schedule=True):
        pass
    deleted, stopped = lines(folder)
    assert (deleted["id"], deleted["number"], deleted["recipient"]) == (str(held.id), 1, BOB)
    assert deleted["events"][0]["address"] == "192.0.2.7"  # type: ignore[index]
    assert stopped["recipient"] == ALICE
    assert "Hush" not in next((folder / "journal").glob("*")).read_text()
    assert all(path.stat().st_mode & 0o077 == 0 for path in [folder / "journal", *(folder / "journal").iterdir()])


def test_requests_with_their_reasons_and_withdrawals_are_rebuilt(
    folder: Path, open_store: Callable[[], FileStore], run: Run
) -> None:
    store = open_store()
    waiting, withdrawn = DeliveryId(hold(store).id, 0), DeliveryId(hold(store).id, 0)
    for key in (waiting, withdrawn):
        store.deliveries.move(
            key, State.REQUESTED, {State.HELD}, BY_LINK, now(), kind=EventKind.REQUESTED, reason="We wait for it."
        )
    store.deliveries.move(withdrawn, State.HELD, {State.REQUESTED}, BY_LINK, now(), kind=EventKind.WITHDRAWN)
    before = kept(store)
    store.close()
    (folder / "quarantine.sqlite3").unlink()
    assert run().exit_code == 0
    store = open_store()
    assert kept(store)["messages"] == before["messages"]
    assert store.deliveries.get(waiting).reason == "We wait for it."
    assert store.deliveries.history(withdrawn)[-1].kind is EventKind.WITHDRAWN


# ---- age of the journal


def test_purge_shortens_the_journal_and_keeps_current_lines(
    folder: Path, open_store: Callable[[], FileStore], run: Run
) -> None:
    store = open_store()
    held, requested = hold(store), hold(store)
    release(store, held, 0)
    store.deliveries.move(
        DeliveryId(requested.id, 0), State.REQUESTED, {State.HELD}, BY_LINK, now(), kind=EventKind.REQUESTED
    )
    store.recipients.set_digests_stopped(ALICE, now())
    prefer(store, BOB, Preferences("monday"))
    today = next((folder / "journal").glob("*.jsonl"))
    old = today.rename(today.with_name("2020-01-01.jsonl"))
    store.purge(now() - timedelta(days=30), now())
    assert not old.exists()
    before = kept(store)
    store.close()
    run()
    store = open_store()
    assert store.deliveries.get(DeliveryId(requested.id, 0)).state is State.REQUESTED
    assert store.deliveries.history(DeliveryId(requested.id, 0)) == before["messages"][requested.id][1][0][1]  # type: ignore[index]
    assert store.recipients.get(ALICE).stopped_at is not None
    assert store.recipients.get(BOB).preferences == Preferences("monday")


def test_purge_keeps_the_rules_of_the_days_that_it_removes(
    folder: Path, open_store: Callable[[], FileStore], run: Run
) -> None:
    store = open_store()
    fill_rules(store)
    store.domains.set([DomainValue(new_id(), "example.org", "language", "fr", now(), BY_OPERATOR)])
    for role in (Role.AUDITOR, Role.HELP_DESK):
        store.staff.give(Grant(ALICE, role, EVERYWHERE, now(), BY_OPERATOR))
    store.staff.remove(ALICE, Role.HELP_DESK, EVERYWHERE, BY_OPERATOR, now())
    store.tokens.add(revoked := token())
    store.tokens.revoke(revoked.id, BY_OPERATOR, now())
    for person in (ALICE, BOB):
        store.second_factors.put(second_factor(person), "", b"s" * 32, BY_OPERATOR, now())
    store.second_factors.reset(BOB, BY_OPERATOR, now())
    counts = [Count("", "total", "2020-01-01", "held", "", 7)]
    store.statistics.import_records(date(2020, 1, 1), counts)
    today = next((folder / "journal").glob("*.jsonl"))
    today.rename(today.with_name("2020-01-01.jsonl"))
    later = rule("later.example")
    store.rules.add([later], now())
    assert len(lines(folder)) > 8
    store.purge(now() - timedelta(days=30), now())
    before, values = store.rules.records(None, 99), store.domains.records(None, 99)
    audit, staff, tokens = store.audit.records(None, 99), store.staff.all(), store.tokens.all()
    factors = store.second_factors.all()
    current = (before, values, audit, staff, factors, tokens)
    assert len(lines(folder)) == sum(map(len, current)) + 1  # today not again
    store.close()
    assert "changes of rules" in run().output
    assert open_store().rules.records(None, 99) == before
    assert open_store().domains.records(None, 99) == values != []
    assert [each for each in open_store().audit.records(None, 99) if each.act != Act.REINDEXED] == audit != []
    assert open_store().staff.all() == staff != []
    assert open_store().tokens.all() == tokens != []
    assert open_store().second_factors.all() == factors == [second_factor(ALICE)]
    assert open_store().statistics.records(None) == (date(2020, 1, 1), counts)


def test_preferences_set_while_purge_shortens_the_journal_are_the_last_ones(
    folder: Path, open_store: Callable[[], FileStore], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, other = open_store(), open_store()
    prefer(store, ALICE, Preferences("monday"))
    today = next((folder / "journal").glob("*.jsonl"))
    today.rename(today.with_name("2020-01-01.jsonl"))
    writer = threading.Thread(target=other.recipients.set_digests_stopped, args=(ALICE, now()))

    def slow_line(person: Person) -> dict[str, object]:
        writer.start()
        writer.join(0.3)
        return person_line(person)

    monkeypatch.setattr("portal.stores.files.truncation.person_line", slow_line)
    store.purge(now() - timedelta(days=30), now())
    writer.join()
    store.close()
    other.close()
    assert run().exit_code == 0
    assert open_store().recipients.get(ALICE).stopped_at is not None


def test_purge_keeps_a_journal_that_is_still_needed(folder: Path, open_store: Callable[[], FileStore]) -> None:
    store = open_store()
    store.recipients.set_digests_stopped(ALICE, now())
    store.purge(now() - timedelta(days=30), now())
    assert len(lines(folder)) == 1


def test_purge_keeps_the_journal_when_it_cannot_rewrite_it(
    folder: Path, open_store: Callable[[], FileStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store()
    store.recipients.set_digests_stopped(ALICE, now())
    today = next((folder / "journal").glob("*.jsonl"))
    old = today.rename(today.with_name("2020-01-01.jsonl"))
    monkeypatch.setattr(Journal, "append", lambda *_: None)
    store.purge(now() - timedelta(days=30), now())
    assert old.exists()


# ---- bad input and interruptions


def test_it_refuses_while_a_program_uses_the_store(folder: Path, open_store: Callable[[], FileStore], run: Run) -> None:
    store = open_store()
    hold(store)
    before = (folder / "quarantine.sqlite3").stat().st_ino
    result = run()
    assert result.exit_code == 1
    assert "stop the portal" in result.output
    assert (folder / "quarantine.sqlite3").stat().st_ino == before
    assert not (folder / "reindex").exists()
    hold(store)


def test_programs_started_during_reindex_wait(folder: Path, open_store: Callable[[], FileStore]) -> None:
    open_store().close()
    with unused(folder), pytest.raises(StoreUnavailable, match="quarantine reindex"):
        FileStore.open(str(folder))
    open_store()


def test_damaged_and_foreign_files_are_listed_and_left(
    folder: Path, open_store: Callable[[], FileStore], run: Run
) -> None:
    store = open_store()
    good, damaged, cut = hold(store), hold(store), hold(store)
    store.close()
    path_of = {id: next(folder.rglob(f"{id}.eml.zst")) for id in (damaged.id, cut.id)}
    data = bytearray(path_of[damaged.id].read_bytes())
    data[25] ^= 255
    path_of[damaged.id].write_bytes(data)
    path_of[cut.id].write_bytes(path_of[cut.id].read_bytes()[:-20])
    (folder / "mail" / "README\x1b[31m.txt").write_text("mine")
    wrong = folder / "mail" / f"{good.id}.eml.zst"
    wrong.write_bytes(b"x")
    result = run()
    assert result.exit_code == 1
    assert "UNREADABLE (kept on disk, no longer in the quarantine): 2" in result.output
    assert str(damaged.id) in result.output
    assert str(cut.id) in result.output
    assert "not mail files of the portal (left in place): 2" in result.output
    assert "\x1b" not in result.output
    assert all(path.exists() for path in (*path_of.values(), wrong))
    assert open_store().messages.ids(None, 10) == [good.id]


def test_a_file_that_is_named_like_a_mail_of_an_invalid_year_is_foreign(
    folder: Path, open_store: Callable[[], FileStore], run: Run
) -> None:
    store = open_store()
    held = hold(store)
    day = next(folder.rglob("*.eml.zst")).parent.parent
    strange = day / "ff" / "ffffffff-ffff-7fff-bfff-ffffffffffff.eml.zst"
    strange.write_bytes(b"x")
    store.purge(now() - timedelta(days=1), now())
    store.close()
    assert str(strange) in run().output
    assert open_store().messages.ids(None, 10) == [held.id]


def test_mail_deleted_by_cron_during_reindex_does_not_stop_it(
    folder: Path, open_store: Callable[[], FileStore]
) -> None:
    store = open_store()
    held = [hold(store).id for _ in range(3)]
    store.close()

    def delete(*_: int) -> None:
        for path in folder.rglob(f"{held[1]}.eml.zst"):
            path.unlink()

    done = files_reindex.reindex(str(folder), delete)
    assert (done.messages, done.damaged) == (2, [])
    assert open_store().messages.ids(None, 10) == [held[0], held[2]]


def test_two_files_of_the_same_mail_are_both_kept(open_store: Callable[[], FileStore], run: Run) -> None:
    store = open_store()
    held = hold(store, b"Subject: x\r\n\r\n")
    record = store.messages.records([held.id])[held.id]
    id = new_id()
    message = replace(record.message, id=id)
    deliveries = tuple(replace(d, message=message, state_at=held_at(id)) for d in record.deliveries)
    other = replace(record, message=message, deliveries=deliveries)
    store.messages.import_record(other, body(b"Subject: x\r\n\r\n"))
    before = kept(store)
    store.close()
    run()
    assert kept(open_store())["messages"] == before["messages"]


def test_a_missing_store_is_not_created(folder: Path, run: Run) -> None:
    result = run()
    assert result.exit_code == 2
    assert "is no quarantine store" in result.output
    assert not folder.exists()


def test_postgresql_has_nothing_to_rebuild(postgres_dsn: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUARANTINE_STORE__URL", postgres_dsn)
    result = run()
    assert result.exit_code == 0
    assert "nothing to rebuild" in result.output


def test_killed_before_its_end_it_changes_nothing(folder: Path, open_store: Callable[[], FileStore], run: Run) -> None:
    store = open_store()
    fill(store)
    for _ in range(50):
        hold(store)
    before = kept(store)
    store.close()
    program = (
        "import sys; from portal.stores.files.reindex import reindex\n"
        "reindex(sys.argv[1], lambda done, total, size: print(done, flush=True))\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True, env=os.environ.copy()
    )
    assert child.stdout is not None
    for line in child.stdout:
        if int(line) >= 20:
            child.send_signal(signal.SIGKILL)
            break
    child.stdout.close()
    assert child.wait() == -signal.SIGKILL
    store = open_store()
    assert kept(store) == before
    store.close()
    assert run().exit_code == 0
    assert kept(open_store()) == before


@pytest.mark.parametrize("step", range(1, 5))
def test_interrupted_while_replacing_files_it_loses_no_mail_and_a_second_run_completes(
    folder: Path, open_store: Callable[[], FileStore], run: Run, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    store = open_store()
    fill(store)
    before = kept(store)
    connection = store.db._connect("FULL")  # this keeps the -wal and -shm files, as a crash does
    store.close()
    calls = 0
    rename = Path.rename

    def cut_off(self: Path, target: Path) -> Path:
        nonlocal calls
        calls += 1
        if calls == step:
            raise OSError(5, "Input/output error")
        return rename(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", cut_off)
        with pytest.raises(StoreUnavailable):
            files_reindex.reindex(str(folder), lambda *_: None)
    store = open_store()
    assert set(store.messages.ids(None, 100)) == set(before["messages"])  # type: ignore[call-overload]
    store.close()
    connection.close()
    assert run().exit_code == 0
    assert kept(open_store()) == before


def test_the_old_database_is_kept(folder: Path, open_store: Callable[[], FileStore], run: Run) -> None:
    store = open_store()
    store.deliveries.move(
        DeliveryId(hold(store).id, 0), State.DELETED, {State.HELD}, BY_OPERATOR, now(), kind=EventKind.DELETED
    )
    store.close()
    result = run()
    assert "before-reindex" in result.output
    assert (folder / "before-reindex" / "quarantine.sqlite3").stat().st_size > 0
