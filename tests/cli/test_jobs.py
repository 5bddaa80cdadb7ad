"""``quarantine release --matching`` and ``quarantine jobs``, as typed by an operator, and as docs/operate.md says."""

from __future__ import annotations

import json
import os
import shlex
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from click.testing import CliRunner, Result

from digest.housekeeping import run_mass_acts
from portal.assemble import Parts, assemble
from portal.batches.batch import Act
from portal.batches.mass import MassAct
from portal.batches.mass_run import MassActs
from portal.cli import jobs as cli_jobs
from portal.cli import main
from portal.model.clock import utc_now
from portal.model.message import DeliveryId, Filter, State, Symbol, Tier
from portal.settings import load
from portal.stores import Store
from portal.stores.records import Page
from portal.stores.shared.facets import SqlFacets
from tests.builders import ALICE, BY_LINK, BY_OPERATOR, MALLORY, hold
from tests.paths import ROOT
from tests.smtp_server import SmtpServer
from tests.terminal import on_terminal

Run = Callable[..., Result]
NEW_RULE = (Symbol("NEW_RULE", 20.0),)


@pytest.fixture
def relay() -> Iterator[SmtpServer]:
    with SmtpServer() as server:
        yield server


@pytest.fixture
def run(store_url: str, store: Store, relay: SmtpServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    config = tmp_path / "quarantine.toml"
    config.write_text(
        f'local_domains = ["example.org"]\nstore.url = "{store_url}"\nrelay.url = "{relay.url}"\n'
        f'mail.from_address = "q@example.org"\nlinks.keys_file = "{tmp_path / "links.keys"}"\n'
    )
    monkeypatch.setenv("QUARANTINE_CONFIG", str(config))
    monkeypatch.setattr(cli_jobs, "_LOOKS_PER_SECOND", 50)
    assemble(load(), create=True).store.close()

    def call(*words: str) -> Result:
        result = CliRunner().invoke(main, words)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return call


@contextmanager
def digest_process() -> Iterator[Parts]:
    """Run mass acts in the background, as the digest process does."""
    parts, ended = assemble(load()), threading.Event()

    def work() -> None:
        while not ended.wait(0.02):
            run_mass_acts(parts, utc_now(), stopped=ended.is_set)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield parts
    finally:
        ended.set()
        thread.join()
        parts.store.close()


def commands() -> list[list[str]]:
    """Return the commands of the section of docs/operate.md."""
    text = (ROOT / "docs" / "operate.md").read_text("utf-8")
    section = text.partition("## A rule held thousands of good messages\n")[2].partition("\n## ")[0]
    return [shlex.split(line)[1:] for line in section.splitlines() if line.startswith("       quarantine ")]


def test_the_commands_of_the_documentation_release_what_a_rule_held(run: Run, store: Store, relay: SmtpServer) -> None:
    found = [hold(store, recipients=(ALICE,), symbols=NEW_RULE) for _ in range(12)]
    other = hold(store, recipients=(ALICE,))
    relay.script["BODY"] = ["554 5.7.1 no"]
    job = ""
    with digest_process() as parts:
        for words in commands():
            words = [job if word == "ID" else word for word in words]
            if words[:2] == ["jobs", "pause"]:  # the documentation's next commands need one that has not ended
                mass = MassAct(Act.RELEASE, Filter(symbols=("NONE",)), "", 1, "x")
                masses = MassActs(store, parts.actions, parts.staff)
                for changes in (("pause", "resume"), ("pause", "cancel")):
                    waiting = masses.start(mass, BY_OPERATOR, uuid4())
                    for change in changes:
                        assert run("jobs", change, str(waiting.id)).exit_code == 0
            if words[:2] in (["jobs", "pause"], ["jobs", "resume"], ["jobs", "cancel"]):
                assert f"The job has ended: finished. See: quarantine jobs show {job}" in run(*words).output
                continue
            done = run(*words, *(["--yes"] if "--reason" in words else []))
            if "--count" in words:
                assert done.output.splitlines()[0] == "0"
            elif words[0] == "list":
                assert ("NEW_RULE" if "symbol" in words else "12") in done.output
            elif "--dry-run" in words:
                assert "12 of 12 deliveries to release" in done.output
                assert [store.deliveries.of_message(each.id)[0].state for each in found] == [State.HELD] * 12
            elif words[0] == "release":
                assert (done.exit_code, len(relay.mails)) == (1, 11), done.output
                job = done.output.split()[done.output.split().index("job") + 1]
            elif words[1] == "retry":
                assert "1 done, 0 failed, 0 left" in done.output
            else:
                assert job in done.output
                assert "release" in done.output
                assert "11" in done.output
    assert [store.deliveries.of_message(each.id)[0].state for each in found] == [State.RELEASED] * 12
    assert store.deliveries.of_message(other.id)[0].state is State.HELD


def test_a_dry_run_says_that_some_may_not_be_permitted_in_the_end(run: Run, store: Store) -> None:
    """It counts by domain, tier and state; the job also knows whose message it is."""
    hold(store, recipients=(ALICE,), symbols=NEW_RULE)
    own = hold(store, recipients=(MALLORY,), symbols=NEW_RULE, tier=Tier.DANGEROUS).id
    search = ("--matching", "--symbol", "NEW_RULE", "--reason", "test")
    asked = run("--as", MALLORY, "release", *search, "--dry-run").output
    assert "2 of 2 deliveries to release" in asked and "may end as not-allowed" in asked
    with digest_process():
        done = run("--as", MALLORY, "release", *search, "--yes")
    assert done.exit_code == 1 and "not-allowed" in done.output
    assert store.deliveries.of_message(own)[0].state is State.HELD
    assert "may end as" not in run("delete", *search, "--dry-run").output


def test_a_job_may_act_on_older_messages_only_than_were_counted(
    run: Run, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SqlFacets.tally, "__defaults__", (2,))
    found = [hold(store, recipients=(ALICE,), symbols=NEW_RULE).id for _ in range(4)]
    command = ("delete", "--matching", "--symbol", "NEW_RULE", "--reason", "test", "--yes")
    with digest_process() as parts:
        for newest in found[2:]:
            parts.actions.delete(newest, 0, BY_OPERATOR)
        done = run(*command)
        assert done.exit_code == 0 and "at least 0 of at least 2 deliveries to delete" in done.output, done.output
        assert "The job includes older ones too." in done.output and "2 done, 0 failed, 0 left" in done.output
        assert [store.deliveries.of_message(id)[0].state for id in found] == [State.DELETED] * 4
        monkeypatch.setattr(SqlFacets.tally, "__defaults__", (4,))
        assert "There is nothing to do." in run(*command).output


def test_a_deletion_of_all_is_undone(run: Run, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("portal.cli.common._PROGRESS_SECONDS", 0)
    found = [hold(store, recipients=(ALICE,), symbols=NEW_RULE).id for _ in range(2)]
    with digest_process():
        for command, state in (("delete", State.DELETED), ("restore", State.HELD)):
            done = run(command, "--matching", "--symbol", "NEW_RULE", "--reason", "test", "--yes")
            assert done.exit_code == 0, done.output
            assert " of 2 deliveries, " in done.output and "MB/s" not in done.output
            assert {store.deliveries.of_message(id)[0].state for id in found} == {state}
    [restored, deleted] = [json.loads(line) for line in run("jobs", "list", "--json").output.splitlines()]
    assert (deleted["act"], deleted["outcomes"], deleted["query"]) == ("delete", {"deleted": 2}, "symbol=NEW_RULE")
    assert (restored["act"], restored["status"]) == ("restore", "finished")


def test_requests_are_denied_and_messages_announced_again(run: Run, store: Store) -> None:
    found = [hold(store, recipients=(ALICE,), symbols=NEW_RULE, tier=Tier.DANGEROUS) for _ in range(2)]
    with digest_process() as parts:
        for each in found:
            parts.actions.request_release(each.id, 0, BY_LINK)
        done = run("refuse", "--matching", "--symbol", "NEW_RULE", "--reason", "It is a virus.", "--yes")
        assert (done.exit_code, "refused: 2" in done.output) == (0, True), done.output
        assert {store.deliveries.of_message(each.id)[0].reason for each in found} == {"It is a virus."}
        done = run("reannounce", "--matching", "--symbol", "NEW_RULE", "--reason", "overlooked", "--yes")
        assert (done.exit_code, "reannounced: 2" in done.output) == (0, True), done.output
    done = run("reannounce", str(found[0].id))
    assert done.output == f"{found[0].id} {ALICE}: in the next digest again\n"
    assert [each.kind for each in store.deliveries.history(DeliveryId(found[0].id, 0))][-2:] == ["reannounced"] * 2


def test_recipients_are_mailed_and_digests_leave_the_messages_out(run: Run, store: Store) -> None:
    hold(store, recipients=(ALICE,), symbols=NEW_RULE)
    with digest_process():
        options = ("--matching", "--symbol", "NEW_RULE", "--reason", "Wrong rule.", "--yes")
        done = run("release", *options, "--notify", "--hold-back")
    assert (done.exit_code, "recipients mailed: 1" in done.output) == (0, True), done.output
    with store.outbox.sending(utc_now()) as mail:
        assert mail is not None and b"Wrong rule." in mail.mail
    [job] = [json.loads(line) for line in run("jobs", "list", "--json").output.splitlines()]
    assert (job["notify"], job["hold_back"], job["mailed"]) == (True, True, 1)


def test_a_search_that_takes_too_long_is_named(run: Run, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    hold(store, recipients=(ALICE,), symbols=NEW_RULE)
    parts = assemble(load())
    mass = MassAct(Act.RELEASE, Filter(), "", 1, "x")
    job = MassActs(store, parts.actions, parts.staff).start(mass, BY_OPERATOR, uuid4(), timedelta())
    monkeypatch.setattr(type(parts.store.deliveries), "search", lambda *_: Page((), None, is_cut=True))
    run_mass_acts(parts, utc_now())
    parts.store.close()
    shown = run("jobs", "show", str(job.id))
    assert "The search takes too long. Cancel the job" in shown.stderr and "indexed" not in shown.stderr


def test_a_terminal_shows_a_bar(run: Run, store: Store, relay: SmtpServer) -> None:
    for _ in range(3):
        hold(store, recipients=(ALICE,), symbols=NEW_RULE)
    command = [
        sys.executable,
        "-m",
        "portal",
        "release",
        "--matching",
        "--symbol",
        "NEW_RULE",
        "--reason",
        "x",
        "--yes",
    ]
    with digest_process():
        status, seen, output = on_terminal(command, os.environ, 100, shown="stderr")
    assert (status, len(relay.mails)) == (0, 3), seen
    assert "3 of 3 deliveries" in seen and "\u2501" in seen and "deliveries/s" in seen and "left" in seen
    assert b"3 done, 0 failed, 0 left" in output


def test_a_job_that_no_process_runs_is_named_after_its_time(run: Run, store: Store) -> None:
    parts = assemble(load())
    masses = MassActs(store, parts.actions, parts.staff)
    mass = MassAct(Act.RELEASE, Filter(), "", 1, "x")
    late, soon = (masses.start(mass, BY_OPERATOR, uuid4(), timedelta(seconds=-old)) for old in (61, 30))
    parts.store.close()
    assert "No process runs the job." in run("jobs", "show", str(late.id)).stderr
    assert "No process" not in run("jobs", "show", str(soon.id)).stderr


def test_what_is_left_of_a_job_is_unknown_if_more_were_found_than_counted(run: Run, store: Store) -> None:
    parts = assemble(load())
    masses = MassActs(store, parts.actions, parts.staff)
    job = masses.start(MassAct(Act.RELEASE, Filter(), "", 2, "x", is_exact=False), BY_OPERATOR, uuid4(), timedelta())
    parts.store.close()
    assert "0 done, 0 failed, at least 2 in all" in run("jobs", "show", str(job.id)).output
    assert json.loads(run("jobs", "show", str(job.id), "--json").output)["left"] is None
    assert run("jobs", "list").output.splitlines()[1].endswith("unknown")


def test_ctrl_c_leaves_the_job_to_the_digest_process(run: Run, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    held = hold(store, recipients=(ALICE,), symbols=NEW_RULE)

    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("portal.cli.jobs.time.sleep", interrupted)
    done = run("release", "--matching", "--symbol", "NEW_RULE", "--reason", "test", "--yes")
    monkeypatch.undo()
    assert done.exit_code == 1
    assert "The job goes on without this command" in done.output
    id = UUID(done.output.split()[-1])
    job = store.jobs.get(id)
    assert job.finished_at is None
    assert job.not_before - job.created_at == timedelta()
    assert store.deliveries.of_message(held.id)[0].state is State.HELD


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("release",), "Give the id of a message, or --matching"),
        (("release", "--matching", "--reason", "x", "--yes"), "give at least one option"),
        (("release", "--matching", "--symbol", "NEW_RULE"), "Give a --reason"),
        (("refuse", "--matching", "--symbol", "NEW_RULE"), "Give a --reason"),
        (("refuse", "4Abc1"), "Give a --reason"),
        (("refuse", "--matching", "--symbol", "NEW_RULE", "--reason", "x", "--notify"), "Leave out --notify"),
        (("restore", "--matching", "--symbol", "NEW_RULE", "--reason", "x", "--hold-back"), "Leave out --hold-back:"),
        (
            ("release", "--matching", "--rule", "x.example", "--reason", "x", "--hold-back"),
            "Leave out --hold-back or --rule",
        ),
        (("release", "--matching", "--symbol", "NEW_RULE", "--reason", "x"), "Confirm with --yes"),
        (("release", "--matching", "--symbol", "NEW_RULE", "--all", "--dry-run"), "not for --matching"),
        (("release", "--matching", "--symbol", "NEW_RULE", "4Abc1"), "Use either ids or --matching"),
        (("delete", "4Abc1", "--symbol", "NEW_RULE"), "add --matching"),
        (("delete", "--matching", "--since", "2d", "--until", "3d", "--dry-run"), "--since"),
        (("jobs", "show", "x"), "'x' is not an id. Try: quarantine jobs list"),
    ],
)
def test_wrong_calls_change_nothing(run: Run, store: Store, words: tuple[str, ...], sentence: str) -> None:
    held = hold(store, recipients=(ALICE,), symbols=NEW_RULE)
    done = run(*words)
    assert (done.exit_code, sentence in done.output) == (2, True), done.output
    assert store.jobs.list("mass", 5) == []
    assert store.deliveries.of_message(held.id)[0].state is State.HELD


def test_a_job_that_does_not_exist_is_a_failure(run: Run) -> None:
    assert run("jobs", "show", str(uuid4())).exit_code == 1
    nothing = run("release", "--matching", "--symbol", "NEW_RULE", "--reason", "x", "--yes")
    assert nothing.exit_code == 1 and "To see what the search finds: quarantine list" in nothing.output
