"""The command line ``quarantine``, as typed by an operator, on both stores with a real mail server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from portal.assemble import Parts
from portal.cli import main
from portal.exporter import RULE_VERSION
from portal.model.audit import AuditFilter
from portal.model.message import DeliveryId, EventKind, Flag, Scan, ScanOutcome, State, Symbol, Tier
from portal.stores import Store, open_store
from tests.builders import ALICE, BOB, BY_LINK, hold, mail, now
from tests.moving.test_copy import damage, lose
from tests.smtp_server import SmtpServer
from tests.terminal import on_terminal

Run = Callable[..., Result]

# For what does not depend on the store, in tests that start a process.
ON_FILES = pytest.mark.parametrize("store_url", ["files"], indirect=True)


@pytest.fixture
def smtp() -> Iterator[SmtpServer]:
    with SmtpServer() as server:
        yield server


@pytest.fixture
def run(store_url: str, tmp_path: Path, smtp: SmtpServer, monkeypatch: pytest.MonkeyPatch) -> Run:
    config = tmp_path / "quarantine.toml"
    config.write_text(
        f'local_domains = ["example.org"]\nstore.url = "{store_url}"\nrelay.url = "{smtp.url}"\n'
        f'mail = {{url = "{smtp.url}", from_address = "quarantine@example.org"}}\n'
        f'links.keys_file = "{tmp_path / "links.keys"}"\n'
    )
    monkeypatch.setenv("QUARANTINE_CONFIG", str(config))

    def call(*words: str) -> Result:
        result = CliRunner().invoke(main, words)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        assert "Traceback" not in result.output
        return result

    return call


def test_init_may_be_run_again_and_makes_keys_of_mode_0600(run: Run, tmp_path: Path) -> None:
    assert run("init").exit_code == 0
    before = (tmp_path / "links.keys").read_bytes()
    result = run("init")
    assert result.exit_code == 0
    assert "quarantine check" in result.output
    assert (tmp_path / "links.keys").read_bytes() == before
    assert (tmp_path / "links.keys").stat().st_mode & 0o777 == 0o600


def test_other_link_keys_are_noticed_and_only_accepted_on_demand(run: Run, tmp_path: Path) -> None:
    run("init")
    (tmp_path / "links.keys").write_text("k" * 40 + "\n")
    for command in (["list"], ["init"]):
        result = run(*command)
        assert result.exit_code != 0
        assert "init --new-keys" in result.output
    assert run("init", "--new-keys").exit_code == 0
    assert run("list").exit_code == 0


def test_list_shows_deliveries_newest_first_and_filters(run: Run, store: Store) -> None:
    hold(store, recipients=[ALICE], subject="First one")
    hold(store, recipients=[BOB], subject="Second one", envelope_sender="other@example.com")
    result = run("list")
    assert result.exit_code == 0
    assert result.output.index("Second one") < result.output.index("First one")
    assert "First" in run("list", "--recipient", "Alice@Example.ORG").output
    assert "Second" not in run("list", "--recipient", ALICE).output
    assert "First" not in run("list", "--sender", "OTHER@").output
    assert "First" not in run("list", "--state", "released").output
    assert "First" in run("list", "--since", "1h").output
    assert "First" not in run("list", "--since", "2999-01-01").output
    lines = [json.loads(line) for line in run("list", "--json").output.splitlines()]
    assert {(line["score"], line["threshold"]) for line in lines} == {(17.5, 15.0)}
    assert [line["subject"] for line in lines] == ["Second one", "First one"]


def test_list_says_when_there_is_more(run: Run, store: Store) -> None:
    for _ in range(3):
        hold(store, recipients=[ALICE])
    result = run("list", "--limit", "2", "--json")
    assert len(result.stdout.splitlines()) == 2
    for words in ((), ("--json",)):
        assert "There are more deliveries. To list more, use --limit 20" in run("list", "--limit", "2", *words).stderr
    assert "There are more" not in run("list", "--limit", "3").output


def test_the_last_possible_day_is_a_valid_date(run: Run, store: Store) -> None:
    held = hold(store)
    assert str(held.id) in run("list", "--until", "9999-12-31").output
    assert str(held.id) not in run("list", "--since", "9999-12-31").output


@ON_FILES
@pytest.mark.parametrize("columns", [80, 100, 200])
def test_list_shows_who_and_what_on_a_terminal_of_any_width(run: Run, store: Store, columns: int) -> None:
    hold(store, subject="A subject of some words", recipients=[ALICE], tier=Tier.SUSPICIOUS)
    status, seen, _ = on_terminal([sys.executable, "-m", "portal", "list"], os.environ, columns)
    assert status == 0
    for text in (ALICE, "promo@example.net", "subject of", "suspicious", "held"):
        assert text in seen


def test_piped_each_delivery_is_one_line_whatever_its_letters(run: Run, store: Store) -> None:
    long = "\u65e5\u672c" * 40
    hold(store, subject=long, header_from=f"{long} <promo@example.net>", recipients=[f"{'a' * 60}@example.org"])
    assert len(run("list").output.splitlines()) == 2


@ON_FILES
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii"])
@pytest.mark.parametrize("words", [["list", "--json"], ["meta", "ID", "--json"]])
def test_json_is_json_on_every_terminal_and_has_no_control_characters(
    run: Run, store: Store, words: list[str], encoding: str
) -> None:
    subject = "\U0001f600 M\xfcller \u202etxt \x9b31m \x7f \u2028"
    held = hold(store, subject=subject, recipients=(ALICE,))
    command = [sys.executable, "-m", "portal", *(str(held.id) if word == "ID" else word for word in words)]
    done = subprocess.run(command, env={**os.environ, "PYTHONIOENCODING": encoding}, capture_output=True, check=False)
    text = done.stdout.decode(encoding)
    assert json.loads(text)["subject"] == subject
    assert text.replace("\n", "").isprintable()
    assert ("M\xfcller" in text) == (encoding != "ascii")


@ON_FILES
@pytest.mark.parametrize("words", [["list"], ["list", "--json"], ["meta", "ID"], ["settings"]])
def test_a_terminal_that_cannot_write_every_letter_gets_codes(run: Run, store: Store, words: list[str]) -> None:
    held = hold(store, subject="\u65e5\u672c", recipients=(ALICE,))
    environ = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    command = [sys.executable, "-m", "portal", *(str(held.id) if word == "ID" else word for word in words)]
    done = subprocess.run(command, env=environ, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"\\u65e5\\u672c" in done.stdout or words == ["settings"]


@ON_FILES
@pytest.mark.parametrize("words", [["list"], ["list", "--json"], ["print", "ID"]])
def test_output_to_a_full_disk_fails_with_a_sentence(run: Run, store: Store, words: list[str]) -> None:
    held = hold(store, mail(size_bytes=100_000), recipients=(ALICE,))
    command = [sys.executable, "-m", "portal", *(str(held.id) if word == "ID" else word for word in words)]
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode
    assert done.stderr.startswith(b"the output could not be written: No space left on device. Make room")


def without_reader(*words: str, errors: bool = False) -> int:
    """Run a command whose output nobody reads, and if wanted its errors. Return the exit status."""
    reading, writing = os.pipe()
    os.close(reading)
    where = writing if errors else subprocess.DEVNULL
    try:
        return subprocess.run(
            [sys.executable, "-m", "portal", *words],
            stdin=subprocess.DEVNULL,
            stdout=writing,
            stderr=where,
            check=False,
        ).returncode
    finally:
        os.close(writing)


@pytest.mark.parametrize("verb", ["delete", "release", "forget", "rules"])
def test_a_command_acts_on_all_although_nobody_reads_its_output(run: Run, store: Store, verb: str) -> None:
    ids = [hold(store, recipients=(ALICE,)).id for _ in range(3)]
    if verb == "forget":
        assert without_reader("forget", ALICE, "--yes") == 0
        assert not any(store.messages.find(str(id)) for id in ids)
    elif verb == "rules":
        for sender in ("a.example", "b.example", "c.example"):
            run("rules", "add", "block", sender, "--recipient", ALICE)
        added = [str(each.id) for each in store.rules.list(None, 9, now())]
        assert len(added) == 3 and without_reader("rules", "remove", *added) == 0
        assert not store.rules.list(None, 9, now())
    else:
        assert without_reader(verb, *map(str, ids)) == 0
        expected = State.DELETED if verb == "delete" else State.RELEASED
        assert [store.deliveries.get(DeliveryId(id, 0)).state for id in ids] == [expected] * 3


def test_what_was_not_done_is_a_failure_although_nobody_reads_it(run: Run, store: Store) -> None:
    first, last = (hold(store, recipients=(ALICE,)).id for _ in range(2))
    assert without_reader("delete", "nonsense", str(first), "missing", str(last), errors=True) == 1
    assert [store.deliveries.get(DeliveryId(id, 0)).state for id in (first, last)] == [State.DELETED] * 2
    assert without_reader("release", "nonsense", errors=True) == 1
    hold(store, recipients=(ALICE,))
    assert without_reader("delete", "--matching", "--recipient", ALICE, "--reason", "x", "--yes") == 1


def test_a_user_without_a_name_acts_under_their_number(run: Run, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    held = hold(store, recipients=(ALICE,))
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
    assert run("delete", str(held.id)).exit_code == 0
    assert store.deliveries.history(DeliveryId(held.id, 0))[-1].actor.who == f"operator:{os.getuid()}"
    monkeypatch.setenv("LOGNAME", "m\udcfcller")  # in ISO 8859-1
    assert run("restore", str(held.id)).exit_code == 0
    assert store.deliveries.history(DeliveryId(held.id, 0))[-1].actor.who.startswith("operator:m")


def test_an_invalid_date_is_explained(run: Run, store: Store) -> None:
    result = run("list", "--since", "yesterdayish")
    assert result.exit_code == 2
    assert "2026-01-31" in result.output


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["list", "--recipient", ""], "--recipient"),
        (["list", "--sender", " "], "--sender"),
        (["list", "--since", ""], "--since"),
        (["list", "--since", "2026-02-02", "--until", "2026-02-01"], "--since is not before --until"),
        (["list", "--since", "1h", "--until", "2h"], "--since is not before --until"),
        (["list", "--score-min", "5", "--score-max", "4.9"], "--score-min is above --score-max"),
        (["list", "--symbol", ""], "--symbol"),
        (["list", "--group-by", ""], "--group-by"),
        (["list", "--size-min", "2k", "--size-max", "1k"], "--size-min is above --size-max"),
        (["list", "--domain", "@"], "--domain: '@' is not a domain"),
        (["list", "--client", "192.0.2.0/33"], "--client: '192.0.2.0/33' is not an IP address"),
        (["list", "--score-min", "nan"], "--score-min: 'nan' is not a number"),
        (["list", "--size-max", "big"], "--size-max: 'big' is not a size"),
        (["list", "--tier", "bad"], "--tier: 'bad' is not one of spam, suspicious, dangerous"),
        (["list", "--sender", "a", "--sender", "b"], "--sender: give it once"),
        (["list", "--count", "--group-by", "hour"], "either --count or --group-by"),
        (["release", "ID", "--recipient", ""], "--recipient"),
        (["release", "ID", "--recipient", "", "--all"], "--recipient"),
        (["release", "ID", "--recipient", ALICE, "--all"], "either --recipient or --all"),
        (["delete", "ID", "--recipient", ""], "--recipient"),
        (["delete", ""], "ID"),
        (["delete", "ID", "--reason", "\u200b"], "--reason"),
        (["delete", "--matching", "--recipient", ALICE, "--yes", "--reason", "\u00ad\u200b "], "--reason"),
        (["list", "--recipient", "\u200b"], "--recipient"),
        (["refuse", "ID", "--reason", ""], "--reason"),
        (["rules", "add", "block", "example.net", "--recipient", ""], "--recipient"),
        (["rules", "list", "--domain", ""], "--domain"),
    ],
)
def test_an_empty_value_never_selects_everything(
    run: Run, store: Store, smtp: SmtpServer, words: list[str], sentence: str
) -> None:
    """A script whose variable is empty must not list, release or delete what it did not name."""
    held = hold(store, recipients=(ALICE,))
    result = run(*(str(held.id) if word == "ID" else word for word in words))
    assert result.exit_code == 2
    assert sentence in result.output and str(held.id) not in result.stdout
    assert store.deliveries.get(DeliveryId(held.id, 0)).state is State.HELD
    assert not smtp.mails and not store.rules.list(None, 9, now())


def test_hostile_subjects_reach_no_terminal(run: Run, store: Store) -> None:
    held = hold(store, recipients=[ALICE], subject="[bold]loud[/bold] \u202etxt")
    for words in (["list"], ["meta", str(held.id)]):
        output = run(*words).output
        assert "\u202e" not in output
        assert "[bold]loud[/bold]" in output


def test_meta_shows_everything_by_quarantine_id_and_by_queue_id(run: Run, store: Store) -> None:
    held = hold(store, subject="Offer of the day", queue_id="4Abc")
    for id in (str(held.id), "4Abc"):
        output = run("meta", id).output
        for fact in (str(held.id), "Offer of the day", "BAYES_SPAM", ALICE, BOB, "held"):
            assert fact in output
    meta = json.loads(run("meta", "4Abc", "--json").output)
    assert [d["recipient"] for d in meta["deliveries"]] == [ALICE, BOB]
    assert meta["deliveries"][0]["history"][0]["what"] == "held"
    assert (meta["score"], meta["threshold"]) == (17.5, 15.0)
    assert [s["description"] for s in meta["symbols"]] == ["Message probably spam, probability: ", ""]


def test_meta_shows_the_virus_scan(run: Run, store: Store) -> None:
    held, at = hold(store), datetime(2026, 11, 27, 9, 30, tzinfo=UTC)
    scan = Scan(ScanOutcome.FOUND, at, (Symbol("CLAM_VIRUS", 0.0, ("Eicar",)),))
    store.messages.record_scan(held.id, scan, Tier.DANGEROUS, at)
    assert "found at 2026-11-27 09:30:00 UTC CLAM_VIRUS\n" in run("meta", str(held.id)).output
    shown = json.loads(run("meta", str(held.id), "--json").output)["scan"]
    assert (shown["outcome"], shown["symbols"]) == ("found", [["CLAM_VIRUS", 0.0, ["Eicar"]]])
    store.messages.record_scan(
        hold(store, queue_id="4Def").id, Scan(ScanOutcome.FAILED, at, detail="no"), Tier.SPAM, at
    )
    assert "failed at 2026-11-27 09:30:00 UTC no\n" in run("meta", "4Def").output


def test_print_writes_the_exact_bytes(run: Run, store: Store) -> None:
    data = b"Subject: x\nNUL\0 and 8 bit \xff\r\n.\r\n"
    held = hold(store, data)
    assert run("print", str(held.id)).stdout_bytes == data


@pytest.mark.parametrize("verb", ["meta", "print", "release", "delete", "restore"])
def test_unknown_ids_are_reported(run: Run, verb: str) -> None:
    assert run("init").exit_code == 0
    for id in ("nonsense", "01890000-0000-7000-8000-000000000000"):
        result = run(verb, id)
        assert result.exit_code == 1
        assert "no message" in result.output


@pytest.mark.parametrize("verb", ["meta", "print", "release", "delete"])
def test_a_queue_id_of_several_messages_lists_them_and_does_nothing(
    run: Run, store: Store, smtp: SmtpServer, verb: str
) -> None:
    ids = [hold(store, recipients=[ALICE], queue_id="4Twice").id for _ in range(2)]
    result = run(verb, "4Twice")
    assert result.exit_code == 1
    assert all(str(id) in result.output for id in ids)
    assert all(store.deliveries.get(DeliveryId(id, 0)).state is State.HELD for id in ids)
    assert smtp.mails == []


def test_release_to_one_of_several_needs_a_name_and_reaches_only_them(run: Run, store: Store, smtp: SmtpServer) -> None:
    data = mail()
    held = hold(store, data)
    result = run("release", str(held.id))
    assert result.exit_code == 1
    assert ALICE in result.output
    assert smtp.mails == []
    assert run("release", str(held.id), "--recipient", BOB.upper()).exit_code == 0
    assert [m.recipients for m in smtp.mails] == [[BOB]]
    assert smtp.mails[0].data.endswith(data)
    assert [d.state for d in store.deliveries.of_message(held.id)] == [State.HELD, State.RELEASED]
    again = run("release", str(held.id), "--recipient", BOB)
    assert again.exit_code == 1
    assert len(smtp.mails) == 1
    assert run("release", str(held.id), "--recipient", "mallory@example.org").exit_code == 1
    assert len(smtp.mails) == 1


def test_release_all_sends_one_mail_for_each(run: Run, store: Store, smtp: SmtpServer) -> None:
    held = hold(store)
    assert run("release", str(held.id), "--all").exit_code == 0
    assert sorted(m.recipients[0] for m in smtp.mails) == [ALICE, BOB]


def test_release_all_reuses_connections_and_answers_in_order(run: Run, store: Store, smtp: SmtpServer) -> None:
    recipients = [f"person{n:02}@example.org" for n in range(30)]
    smtp.script["RCPT"] = lambda line: "550 5.1.1 no such user" if recipients[7].encode() in line else None
    held = hold(store, mail(), recipients=recipients)
    result = run("release", str(held.id), "--all")
    assert result.exit_code == 1
    lines = [f"{held.id} {each}: released" for each in recipients]
    lines[7] = f"{held.id} {recipients[7]}: RCPT TO: 550 5.1.1 no such user"
    lines.insert(8, "  It is held again. Remove the cause, then release it again.")
    assert result.output.splitlines() == lines
    assert sorted(mail.recipients[0] for mail in smtp.mails) == sorted({*recipients} - {recipients[7]})
    assert smtp.connections < len(smtp.mails)


def test_several_messages_are_released_and_denied_at_once(run: Run, store: Store, smtp: SmtpServer) -> None:
    held = [hold(store, recipients=[ALICE], tier=Tier.DANGEROUS) for _ in range(3)]
    both = hold(store, recipients=[ALICE, BOB])
    result = run("release", str(held[0].id), "4XyZ", str(both.id), str(held[1].id))
    assert result.exit_code == 1
    assert result.stdout.splitlines() == [f"{each.id} {ALICE}: released" for each in held[:2]]
    assert "There is no message with the quarantine id or queue id '4XyZ'" in result.stderr
    assert f"{both.id}: The message has several recipients" in result.stderr
    for each in held[2:]:
        key = DeliveryId(each.id, 0)
        store.deliveries.move(key, State.REQUESTED, {State.HELD}, BY_LINK, now(), kind=EventKind.REQUESTED)
    result = run("refuse", str(held[2].id), str(held[0].id), "--reason", "It is a virus.")
    assert result.exit_code == 1
    assert result.stdout == f"{held[2].id} {ALICE}: refused\n"
    assert f"{held[0].id} {ALICE}: this delivery is released" in result.stderr
    assert len(smtp.mails) == 2


def test_operators_release_dangerous_and_deleted_mail(run: Run, store: Store, smtp: SmtpServer) -> None:
    held = hold(store, recipients=[ALICE], tier=Tier.DANGEROUS)
    assert run("delete", str(held.id)).exit_code == 0
    assert run("release", str(held.id)).exit_code == 0
    assert [m.recipients for m in smtp.mails] == [[ALICE]]


def test_a_released_mail_that_got_lost_is_sent_again_only_on_demand(run: Run, store: Store, smtp: SmtpServer) -> None:
    held = hold(store, recipients=[ALICE])
    run("release", str(held.id))
    result = run("release", str(held.id))
    assert result.exit_code == 1
    assert "--again" in result.output
    assert len(smtp.mails) == 1
    assert run("release", str(held.id), "--again").exit_code == 0
    assert [m.recipients for m in smtp.mails] == [[ALICE], [ALICE]]


def test_the_command_suggested_for_several_recipients_works(run: Run, store: Store) -> None:
    held = hold(store)
    assert "--recipient ADDRESS or --all" in run("release", str(held.id)).output
    result = run("refuse", str(held.id), "--reason", "no")
    assert result.exit_code == 1
    assert "use --recipient ADDRESS:" in result.output and ALICE in result.output
    assert "--all" not in result.output


def test_the_reason_of_a_failed_release_is_printed_once(run: Run, store: Store, smtp: SmtpServer) -> None:
    held = hold(store, recipients=[ALICE])
    smtp.script["RCPT"] = "550 5.1.1 no such user"
    command = [sys.executable, "-m", "portal", "release", str(held.id)]  # as a process, since pytest captures logging
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    advice = "  It is held again. Remove the cause, then release it again."
    assert (done.returncode, done.stderr) == (1, f"{held.id} {ALICE}: RCPT TO: 550 5.1.1 no such user\n{advice}\n")


@pytest.mark.parametrize("is_missing", [False, True])
def test_a_damaged_or_missing_message_is_reported_with_what_to_do(
    run: Run, store: Store, store_url: str, smtp: SmtpServer, is_missing: bool
) -> None:
    held = hold(store, recipients=[ALICE])
    (lose if is_missing else damage)(store_url, held.id)
    for verb in ("release", "print"):
        result = run(verb, str(held.id))
        assert result.exit_code == 1
        assert result.stderr.endswith(". Restore the stored mail from a backup (docs/operate.md), then try again.\n")
        assert result.stderr.count("\n") == 1
    assert smtp.mails == []


def test_meta_shows_the_reply_of_the_mail_server(run: Run, store: Store) -> None:
    held = hold(store, recipients=[ALICE])
    run("release", str(held.id))
    assert "released by operator:" in (last_line := run("meta", str(held.id)).output.splitlines()[-1])
    assert last_line.endswith(" cli: 250 2.0.0 queued as 4Bx7")


def test_a_mail_whose_recipients_were_lost_can_be_given_one(run: Run, store: Store, smtp: SmtpServer) -> None:
    held = hold(store, recipients=(), flags=frozenset({Flag.RECIPIENTS}), announce=())
    answer = run("release", str(held.id)).output
    assert answer.startswith(f"{held.id} (recipient not known): the recipient of this message")
    assert smtp.mails == []
    assert run("delete", str(held.id)).output == f"{held.id} (recipient not known): deleted\n"
    assert run("delete", str(held.id)).output.startswith(f"{held.id} (recipient not known): this delivery is")
    assert run("restore", str(held.id)).exit_code == 0
    for verb in (["delete"], ["restore"], ["refuse", "--reason", "no"]):  # release adds the recipient
        result = run(*verb, str(held.id), "--recipient", "alise@example.org")
        assert "is not among its recipients" in result.output and "(recipient not known): held" in result.output
    assert store.deliveries.get(DeliveryId(held.id, 0)).address == ""
    for wrong in ("alice", "alice@", "alice@exa mple.org"):
        assert run("release", str(held.id), "--recipient", wrong).exit_code == 2
    assert run("release", str(held.id), "--recipient", ALICE).exit_code == 0
    assert [m.recipients for m in smtp.mails] == [[ALICE]]


def test_rejected_and_deferred_releases_are_reported(run: Run, store: Store, smtp: SmtpServer) -> None:
    held = hold(store, recipients=[ALICE])
    smtp.script["RCPT"] = "550 5.1.1 no such user"
    result = run("release", str(held.id))
    assert result.exit_code == 1
    assert "550" in result.output
    assert store.deliveries.get(DeliveryId(held.id, 0)).state is State.HELD
    smtp.script["RCPT"] = "554 5.7.1 <host>: Client host rejected: Access denied"
    result = run("release", str(held.id))
    assert result.exit_code == 1
    assert "Client host rejected: Access denied" in result.output
    assert "keeps trying" in result.output
    assert store.deliveries.get(DeliveryId(held.id, 0)).state is State.RELEASING
    assert "Client host rejected: Access denied" in run("meta", str(held.id)).output


def test_a_release_waits_for_a_busy_mail_server(run: Run, store: Store, smtp: SmtpServer) -> None:
    held = hold(store, recipients=[ALICE])
    smtp.script["RCPT"] = "450 4.2.1 busy"
    result = run("release", str(held.id))
    assert result.exit_code == 1
    assert "keeps trying" in result.output
    assert store.deliveries.get(DeliveryId(held.id, 0)).state is State.RELEASING


def test_delete_and_restore_take_several_ids_and_continue_after_a_wrong_one(run: Run, store: Store) -> None:
    one, two = hold(store), hold(store, recipients=[ALICE])
    result = run("delete", str(one.id), "nonsense", str(two.id))
    assert result.exit_code == 1
    states = [d.state for h in (one, two) for d in store.deliveries.of_message(h.id)]
    assert states == [State.DELETED] * 3
    assert run("restore", str(one.id), "--recipient", ALICE).exit_code == 0
    assert [d.state for d in store.deliveries.of_message(one.id)] == [State.HELD, State.DELETED]


def test_the_reason_of_an_act_on_single_messages_is_in_the_audit(run: Run, store: Store, smtp: SmtpServer) -> None:
    held = hold(store, recipients=[ALICE])
    for command in ("delete", "restore", "reannounce", "release"):
        assert run(command, str(held.id), "--reason", f"The reason of {command}.").exit_code == 0
    details = [each.detail for each in store.audit.list(AuditFilter(message_id=held.id), 20)]
    assert all(f"The reason of {command}." in details for command in ("delete", "restore", "reannounce", "release"))


def test_refuse_gives_the_recipient_a_reason(run: Run, store: Store, parts: Parts) -> None:
    held = hold(store, recipients=[ALICE], tier=Tier.DANGEROUS)
    assert run("refuse", str(held.id), "--reason", "no").exit_code == 1
    parts.actions.request_release(held.id, 0, BY_LINK)
    assert run("refuse", str(held.id), "--reason", "It holds a virus.").exit_code == 0
    delivery = store.deliveries.get(DeliveryId(held.id, 0))
    assert (delivery.state, delivery.reason) == (State.HELD, "It holds a virus.")
    assert store.deliveries.history(DeliveryId(held.id, 0))[-1].actor.who.startswith("operator:")


def test_the_reason_and_the_withdrawal_of_a_request_are_shown(run: Run, store: Store, parts: Parts) -> None:
    held = hold(store, recipients=[ALICE], tier=Tier.DANGEROUS)
    parts.actions.request_release(held.id, 0, BY_LINK, reason="We wait\x1b[2J for it.")
    assert "  reason: We wait [2J for it.\n" in run("meta", str(held.id)).output.replace("We wait[2J", "We wait [2J")
    [found] = map(json.loads, run("list", "--state", "requested", "--json").output.splitlines())
    assert found["reason"].startswith("We wait")
    parts.actions.withdraw_request(held.id, 0, BY_LINK)
    assert " withdrawn by " in run("meta", str(held.id)).output
    assert run("list", "--state", "requested", "--json").output.count("{") == 0


def test_purge_keeps_what_is_young(run: Run, store: Store) -> None:
    held = hold(store)
    result = run("purge")
    assert result.exit_code == 0
    assert "removed 0" in result.output
    assert store.deliveries.of_message(held.id)


def test_wrong_settings_stop_every_command_with_all_problems(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUARANTINE_STORE__RETENTION_DAYS", "many")
    monkeypatch.setenv("QUARANTINE_RELAY__ULR", "x")
    for words in (["init"], ["check"], ["settings"], ["list"], ["meta", "x"], ["purge"]):
        result = run(*words)
        assert result.exit_code == 2
        assert "QUARANTINE_STORE__RETENTION_DAYS" in result.output
        assert "QUARANTINE_RELAY__URL?" in result.output


def test_settings_are_printed_with_their_source_and_without_secrets(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUARANTINE_EXPORTER__USER", "rspamd")
    monkeypatch.setenv("QUARANTINE_EXPORTER__PASSWORD", "very-secret")
    output = run("settings").output
    assert "QUARANTINE_EXPORTER__USER" in output
    assert "very-secret" not in output
    assert json.loads(run("settings", "--json").output)["exporter.user"]["value"] == "rspamd"


def test_settings_are_printed_whole(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUARANTINE_LOCAL_DOMAINS", ",".join(f"department-{n:02}.example.org" for n in range(30)))
    output = run("settings").output
    assert "department-29.example.org" in output
    assert "\u2026" not in output


def test_check_names_each_problem_and_how_to_repair_it(
    run: Run, smtp: SmtpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("init")
    result = run("check")
    assert result.exit_code == 1  # without a running digest process
    assert "quarantine-digest run" in result.output
    assert "ok      relay" in result.output
    assert "ok      link keys" in result.output
    assert "ok      store" in result.output
    monkeypatch.setenv("QUARANTINE_RELAY__URL", "smtp://127.0.0.1:1")
    monkeypatch.setenv("QUARANTINE_PUBLIC_URL", "http://mail.example.org/quarantine")
    output = run("check").output
    assert "PROBLEM relay" in output
    assert "PROBLEM public_url" in output
    findings = json.loads(run("check", "--json").output)
    assert {f["what"] for f in findings if f["ok"] is False} >= {"relay", "public_url", "digest process"}


def test_check_warns_if_mails_and_pages_do_not_say_whose_they_are(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run("init")
    values = {"site.name": "Example Company", "site.contact": "the help desk, help@example.org"}
    for what, value in values.items():
        said = {f["what"]: f for f in json.loads(run("check", "--json").output)}[what]
        assert said["ok"] is None and said["said"].startswith("not set: ")
        monkeypatch.setenv(f"QUARANTINE_{what.upper().replace('.', '__')}", value)
    assert not values.keys() & {f["what"] for f in json.loads(run("check", "--json").output)}


def test_check_names_a_key_file_that_depends_on_the_current_folder(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QUARANTINE_LINKS__KEYS_FILE", "my.keys")
    run("init")
    assert "set links.keys_file to an absolute path" in run("check").output


def test_a_store_that_cannot_be_reached_is_a_sentence_without_its_password(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUARANTINE_STORE__URL", "postgresql://me:hush-hush@127.0.0.1:1/nowhere")
    for words in (["list"], ["init"], ["check"]):
        result = run(*words)
        assert result.exit_code in (1, 2)
        assert "hush-hush" not in result.output


def test_check_reports_the_alias_file_and_its_ignored_lines(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("init")
    virtual = tmp_path / "virtual"
    monkeypatch.setenv("QUARANTINE_PEOPLE__ALIAS_FILE", str(virtual))
    assert f"PROBLEM people.alias_file: {virtual}: No such file or directory" in run("check").output
    virtual.write_text("info@example.org alice@example.org bob@example.org\n/^x/ y\n", "utf-8")
    output = run("check").output
    assert f"ok      people.alias_file: {virtual}: 1 addresses, 1 of them with several readers" in output
    assert "note    people.alias_file: line 2: regular expressions are not followed" in output


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("SMTP", "is not the portal's address: 220 "),
        ("http://127.0.0.1:port/", "is not the portal's address: nonnumeric port"),
        ("http://[::1/", "is not the portal's address: Invalid IPv6 URL"),
        ("http://127.0.0.1:1/", "cannot be reached: [Errno 111]"),
    ],
)
@pytest.mark.parametrize("blocks", [1, 2])
def test_check_reports_a_rule_with_another_address(
    run: Run, smtp: SmtpServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blocks: int, url: str, text: str
) -> None:
    run("init")
    rule = {"url": smtp.url.replace("smtp:", "http:") if url == "SMTP" else url, "backend": "http", "defer": True}
    rules = [{f"RULE{n}": rule} for n in range(blocks)]  # UCL makes a list of two blocks of one name
    (tmp_path / "dump.json").write_text(json.dumps({"rules": rules if blocks > 1 else rules[0]}))
    (tmp_path / "rspamadm").write_text(f"#!/bin/sh\ncat {tmp_path}/dump.json\n")
    (tmp_path / "rspamadm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    findings = {f["what"]: f["said"] for f in json.loads(run("check", "--json").output)}
    for n in range(blocks):
        assert text in findings[f"exporter rule RULE{n}"]


@pytest.fixture
def rspamadm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``rspamadm(worker='{"rspamd_proxy": {…}}')`` makes it print these texts for these sections."""
    folder = tmp_path / "dumps"
    folder.mkdir()
    (tmp_path / "rspamadm").write_text(f'#!/bin/sh\ncat "{folder}/$3" 2>&1\n')
    (tmp_path / "rspamadm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def prints(**sections: str) -> None:
        for name, text in sections.items():
            (folder / name).write_text(text)

    return prints


# As rspamadm prints workers: one object after the other.
DISCARDING = '{"normal": {"mime": true}}\n{"rspamd_proxy": {"discard_on_reject": true, "milter": true}}\n'


@ON_FILES
@pytest.mark.parametrize(
    ("variables", "worker", "lost"),
    [
        ({}, DISCARDING, ""),
        ({"HOLD_ACTIONS": ""}, DISCARDING, ""),
        ({"HOLD_ACTIONS": "discard"}, DISCARDING, "exporter.hold_actions does not contain reject: add it"),
        ({"ONLY_SYMBOLS": "BAYES_SPAM"}, DISCARDING, "exporter.only_symbols holds only some of the rejected messages"),
        ({"HOLD_ACTIONS": "discard"}, DISCARDING.replace('reject": true', 'reject": false'), ""),
        ({"HOLD_ACTIONS": "discard"}, DISCARDING.replace("true, ", "1, "), "exporter.hold_actions does not contain"),
        (
            {"HOLD_ACTIONS": "discard"},
            '{"rspamd_proxy": [{"milter": true}, {"discard_on_reject": true}]}',
            "exporter.hold_actions does not contain",
        ),
        ({"HOLD_ACTIONS": "discard"}, "no JSON", ""),
    ],
)
def test_check_reports_that_mail_is_discarded_without_being_held(
    run: Run,
    rspamadm: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    worker: str,
    lost: str,
) -> None:
    run("init")
    for name, value in variables.items():
        monkeypatch.setenv(f"QUARANTINE_EXPORTER__{name}", value)
    rspamadm(worker=worker)
    said = [f["said"] for f in json.loads(run("check", "--json").output) if f["what"] == "discard_on_reject"]
    assert len(said) == bool(lost)
    for text in said:
        assert text.startswith(lost) and "those that are not held are lost" in text


@ON_FILES
@pytest.mark.parametrize(
    ("rule", "ok", "text"),
    [
        ({"backend": "portal", "version": RULE_VERSION}, None, ""),
        ({"backend": "portal"}, False, "has version none, and this portal is made for"),
        ({"backend": "portal", "version": RULE_VERSION + 1}, False, f"has version {RULE_VERSION + 1}, and this portal"),
        ({"backend": "http", "defer": True}, None, "is a stock one"),
    ],
)
def test_check_compares_the_version_of_the_rule(
    run: Run, rspamadm: Callable[..., None], rule: dict[str, object], ok: bool | None, text: str
) -> None:
    run("init")
    rule |= {"url": "not a URL"}
    rspamadm(metadata_exporter=json.dumps({"rules": {"QUARANTINE": rule}}))
    found = [f for f in json.loads(run("check", "--json").output) if f["what"] == "exporter rule QUARANTINE"]
    found = [f for f in found if "is not an http or https URL" not in f["said"]]
    assert [f["ok"] for f in found] == ([ok] if text else [])
    assert all(f["said"].startswith(text) for f in found)


@ON_FILES
@pytest.mark.parametrize(
    ("options", "ok"),
    [('{"filters": "dkim"}', False), ('{"check_all_filters": false}', False), ('{"check_all_filters": true}', None)],
)
def test_check_reports_that_scanners_are_not_always_asked(
    run: Run, rspamadm: Callable[..., None], options: str, ok: bool | None
) -> None:
    run("init")
    rspamadm(options=options)
    found = [f for f in json.loads(run("check", "--json").output) if f["what"] == "check_all_filters"]
    assert [f["ok"] for f in found] == ([] if ok is None else [ok])


def test_check_continues_when_rspamadm_hangs(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("init")
    (tmp_path / "rspamadm").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "rspamadm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr("portal.cli.rspamd_checks._RSPAMADM_SECONDS", 0.5)
    findings = {f["what"]: f["said"] for f in json.loads(run("check", "--json").output)}
    assert findings["exporter"] == "rspamadm did not answer within 0.5 s, so Rspamd's rule was not tested"


def test_check_reports_that_the_merge_of_recipients_was_interrupted(run: Run, store_url: str) -> None:
    run("init")
    store = open_store(store_url)
    store.notes.set("store.merge_spellings", "")
    store.close()
    warning = "in international domains were merged: run `quarantine init`"
    assert warning in run("check").output
    assert warning in run("check").output, "check changes nothing"
    run("init")
    assert warning not in run("check").output
