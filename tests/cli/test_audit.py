"""``quarantine audit``, and the names under which commands act, on both stores."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import click
import pytest
from click.testing import CliRunner, Result

from digest.__main__ import main as digest_main
from digest.housekeeping import learn_waiting
from portal.assemble import assemble
from portal.batches.batch import Act as Mass
from portal.batches.mass import MassAct
from portal.batches.mass_run import MassActs
from portal.cli import jobs as cli_jobs
from portal.cli import main
from portal.model.audit import AuditEntry, AuditFilter
from portal.model.message import DeliveryId, Filter, Symbol
from portal.model.staff import EVERYWHERE, Grant, Role
from portal.model.statistics import Count, Month
from portal.settings import load
from portal.stores import Store, open_store
from tests.builders import ALICE, BOB, BY_LINK, BY_OPERATOR, hold, now, rule, second_factor
from tests.cli.test_jobs import digest_process
from tests.contract.helpers import SESSION
from tests.moving.test_original import keep
from tests.rspamd_server import RspamdServer
from tests.smtp_server import SmtpServer

Run = Callable[..., Result]


@pytest.fixture
def run(store_url: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    config = tmp_path / "quarantine.toml"
    config.write_text(
        f'local_domains = ["example.org"]\nstore.url = "{store_url}"\nmail.from_address = "q@example.org"\n'
        f'links.keys_file = "{tmp_path / "links.keys"}"\n'
    )
    monkeypatch.setenv("QUARANTINE_CONFIG", str(config))
    monkeypatch.setenv("LOGNAME", "quarantine")
    monkeypatch.setenv("SUDO_USER", "carol")

    def call(*words: str) -> Result:
        result = CliRunner().invoke(main, words)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return call


def entries(run: Run, *words: str) -> list[dict[str, object]]:
    """Return the entries that the command lists, without those of its own exports."""
    found = [json.loads(line) for line in run("audit", "--json", *words).stdout.splitlines()]
    return [each for each in found if each["act"] != "exported"]


def test_commands_act_under_the_name_of_the_person_who_called_sudo(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for words in (
        ("domains", "set", "example.org", "language"),
        ("--as", "dave", "domains", "set", "example.org", "name"),
    ):
        assert run(*words, "fr").exit_code == 0
    monkeypatch.delenv("SUDO_USER")
    assert run("domains", "unset", "example.org", "name").exit_code == 0
    assert [(each["who"], each["via"], each["detail"]) for each in reversed(entries(run))] == [
        ("operator:carol", "cli", "language = fr"),
        ("operator:dave", "cli:carol", "name = fr"),
        ("operator:quarantine", "cli", "name: as in the settings file"),
    ]


def test_reading_a_message_and_exporting_are_recorded(run: Run, store: Store) -> None:
    held = hold(store, recipients=[ALICE, BOB])
    assert run("print", str(held.id)).exit_code == 0
    assert run("meta", str(held.id)).exit_code == 0  # has no text of the message
    assert run("rules", "export").exit_code == 0
    found = [json.loads(line) for line in run("audit", "--json").stdout.splitlines()]
    assert [(each["act"], each["subject"], each["detail"]) for each in found] == [
        ("exported", "", "audit"),
        ("exported", "", "all rules"),
        *((("body-read", each["subject"], "")) for each in found[2:]),
    ]
    assert {each["subject"] for each in found[2:]} == {ALICE, BOB}
    assert {(each["id"], each["number"]) for each in found[2:]} == {(str(held.id), 0), (str(held.id), 1)}


def test_entries_are_selected(run: Run, store: Store) -> None:
    first, second = hold(store, recipients=[ALICE]), hold(store, recipients=[BOB])
    run("delete", str(first.id))
    run("--as", "dave", "delete", str(second.id))
    run("domains", "set", "example.org", "language", "fr")
    for words, expected in (
        (("--who", "carol"), ["domain-set", "deleted"]),
        (("--who", "dave"), ["deleted"]),
        (("--act", "deleted"), ["deleted", "deleted"]),
        (("--recipient", "Bob@Example.org"), ["deleted"]),
        (("--domain", "example.org"), ["domain-set"]),
        (("--id", str(first.id)), ["deleted"]),
        (("--since", "1h"), ["domain-set", "deleted", "deleted"]),
        (("--until", "1h"), []),
        (("--limit", "1", "--act", "deleted"), ["deleted"]),
    ):
        assert [each["act"] for each in entries(run, *words)] == expected, words
    table = run("audit", "--limit", "1")
    assert "There are more entries. To list more, use --limit 10" in table.stderr


def test_csv_has_no_formulas(run: Run, store: Store) -> None:
    held = hold(store, recipients=[ALICE])
    run("--as", "=cmd|' /C calc'!A0", "refuse", str(held.id), "--recipient", ALICE, "--reason", "no")
    store.deliveries.get(DeliveryId(held.id, 0))
    run("--as", "=1+1", "domains", "set", "example.org", "name", "x")
    rows = [*csv.DictReader(io.StringIO(run("audit", "--csv").stdout))]
    assert {row["who"] for row in rows} >= {"operator:=1+1"}
    assert not [cell for row in rows for cell in row.values() if cell.startswith(("=", "+", "-", "@"))]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--since", "1h", "--until", "2h"), "--since is not before --until"),
        (("--recipient", ALICE, "--domain", "example.org"), "Use either --recipient or --domain."),
        (("--json", "--csv"), "Use either --json or --csv."),
        (("--act", "burned"), "burned"),
        (("--who", ""), "It is empty."),
        (("--recipient", " "), "It is empty."),
        (("--recipient", "alice"), "--recipient alice: This is not an address. Use one like name@example.org."),
        (("--recipient", "example.org"), "--recipient example.org: This is not an address."),
        (("--recipient", "@example.org"), "--recipient @example.org: This is not an address."),
        (("--recipient", "alice@"), "--recipient alice@: This is not an address."),
        (("--domain", ALICE), f"--domain {ALICE}: This is not a domain. Use one like example.org."),
        (("--domain", "@"), "--domain @: This is not a domain."),
    ],
)
def test_wrong_calls_end_with_a_sentence_and_status_2(run: Run, words: tuple[str, ...], sentence: str) -> None:
    result = run("audit", *words)
    assert result.exit_code == 2
    assert sentence in result.output


@pytest.mark.parametrize("name", [" ", "\u200b", "\u3164 "])
def test_a_name_may_not_be_empty(run: Run, name: str) -> None:
    result = run("--as", name, "list")
    assert result.exit_code == 2
    assert "It is empty." in result.output


def test_an_unknown_id_is_explained(run: Run) -> None:
    result = run("audit", "--id", "4XyZ")
    assert result.exit_code == 1
    assert "There is no message" in result.output


# ---- each command that changes something

READ_ONLY = {
    "quarantine check",  # what --send does: tests/cli/test_check_send.py
    "quarantine digests list",
    "quarantine domains list",
    "quarantine domains show",
    "quarantine jobs list",
    "quarantine jobs show",
    "quarantine ldap-aliases",
    "quarantine list",
    "quarantine meta",
    "quarantine recipient",
    "quarantine rules list",
    "quarantine settings",
    "quarantine staff list",
    "quarantine token list",
}
BY_PROGRAMS = {"quarantine-digest run"}  # what it does is in the log


@dataclass
class Stage:
    """The parts that commands need, and helpers that prepare a store for them."""

    run: Run
    store: Store
    folder: Path
    smtp: SmtpServer
    until: ExitStack = field(default_factory=ExitStack)

    def held(self, symbols: tuple[Symbol, ...] = ()) -> str:
        """Hold a message for Alice, and return its id."""
        return str(hold(self.store, recipients=[ALICE], symbols=symbols).id)

    def after(self, *words: str) -> list[str]:
        """Return the last words of another command that must precede."""
        assert self.run(*words).exit_code == 0
        return [*words[2:]]

    def requested(self) -> str:
        """Return the id of a message whose release was requested."""
        held = hold(self.store, recipients=[ALICE])
        parts = assemble(load())
        parts.actions.request_release(held.id, 0, BY_LINK)
        parts.store.close()
        return str(held.id)

    def learned(self) -> str:
        """Return the id of a message that Rspamd learned."""
        [id] = self.after("confirm-spam", "--recipient", ALICE, self.held())[1:]
        parts = assemble(load())
        learn_waiting(parts, now())
        parts.store.close()
        return id

    def job(self, *, ends: bool = False) -> str:
        """Return the id of a release of many messages that waits, or that has ended and failed."""
        self.held(symbols=(Symbol("BAD_RULE", 20.0),))
        self.smtp.script["BODY"] = ["554 5.7.1 no"]
        parts = assemble(load())
        mass = MassAct(Mass.RELEASE, Filter(symbols=("BAD_RULE",)), "symbol=BAD_RULE", 1, "x")
        id = MassActs(parts.store, parts.actions, parts.staff).start(mass, BY_OPERATOR, uuid4(), timedelta()).id
        parts.store.close()
        if ends:
            self.until.enter_context(digest_process())
            while self.run("jobs", "pause", str(id)).exit_code == 0:
                self.run("jobs", "resume", str(id))
        return str(id)

    def paused(self) -> str:
        """Return the id of a job that is paused."""
        return self.after("jobs", "pause", self.job())[0]

    def staff(self) -> str:
        """Return an address with a role."""
        self.store.staff.give(Grant(BOB, Role.AUDITOR, EVERYWHERE, now(), BY_OPERATOR))
        return BOB

    def with_factor(self) -> str:
        """Return an address with a second factor."""
        self.store.second_factors.put(second_factor(self.staff()), "", SESSION, BY_OPERATOR, now())
        return BOB

    def token(self) -> str:
        """Return the id of a token of the API."""
        self.run("token", "add", self.staff(), "auditor", "--name", "x")
        return str(self.store.tokens.all()[0].id)

    def rule(self) -> str:
        """Return the id of a rule."""
        made = rule()
        self.store.rules.add([made], now())
        return str(made.id)

    def rules_file(self) -> str:
        """Return a file with a rule."""
        path = self.folder / "rules.csv"
        path.write_text("scope,sender,effect\n*,evil.example,block\n")
        return str(path)

    def original(self) -> str:
        """Return a folder of the original quarantine.py."""
        path = self.folder / "original"
        path.mkdir()
        keep(path, "4XyZ", b"Subject: x\r\n\r\nx\r\n", RCPT=ALICE)
        return str(path)

    def counted(self) -> str:
        """Return an administrator, to whom last month's numbers can be mailed."""
        self.store.staff.give(Grant(ALICE, Role.ADMINISTRATOR, EVERYWHERE, now(), BY_OPERATOR))
        month = Month(now().date().replace(day=1)).before
        self.store.statistics.import_records(month.last, [Count("", "total", month.last.isoformat(), "held", "", 3)])
        return ALICE


@dataclass
class Case:
    """A call of a command, and what is recorded: act, what it concerns, and the detail."""

    command: str
    words: Callable[[Stage], list[str]]  # after the command
    act: str
    subject: str = ""
    detail: str | None = None  # None: of the stores' tests

    def __str__(self) -> str:
        return self.command


CASES = [
    Case("quarantine audit", lambda _: ["--json"], "exported", "", "audit"),
    Case("quarantine confirm-spam", lambda s: [s.held()], "confirmed", ALICE),
    Case("quarantine copy", lambda s: ["@STORE", f"files:{s.folder}/new"], "exported", "",
         "everything to files:@FOLDER/new"),
    Case("quarantine delete", lambda s: [s.held()], "deleted", ALICE),
    Case("quarantine digests export", lambda _: [], "exported"),
    Case("quarantine digests resume", lambda s: s.after("digests", "stop", ALICE), "digests-resumed", ALICE),
    Case("quarantine digests set", lambda _: [ALICE, "--language", "fr"], "preferences-set", ALICE),
    Case("quarantine digests stop", lambda _: [ALICE], "digests-stopped", ALICE),
    Case("quarantine domains set", lambda _: ["example.org", "language", "fr"], "domain-set", "example.org"),
    Case("quarantine domains unset", lambda s: s.after("domains", "set", "example.org", "language", "fr")[:2],
         "domain-set", "example.org"),
    Case("quarantine forget", lambda s: [s.held() and ALICE, "--yes"], "recipient-forgotten", ALICE),
    Case("quarantine import-original", lambda s: ["--dir", s.original()], "imported", "", "@FOLDER/original"),
    Case("quarantine init", lambda _: ["--new-keys"], "link-keys-accepted", "", ""),
    Case("quarantine jobs cancel", lambda s: [s.job()], "job-changed"),
    Case("quarantine jobs pause", lambda s: [s.job()], "job-changed"),
    Case("quarantine jobs resume", lambda s: [s.paused()], "job-changed"),
    Case("quarantine jobs retry", lambda s: [s.job(ends=True)], "job-started"),
    Case("quarantine print", lambda s: [s.held()], "body-read", ALICE, ""),
    Case("quarantine purge", lambda _: [], "purged", "", "messages held more than 30 days ago"),
    Case("quarantine purge", lambda _: ["--older-than-days", "3"], "purged", "", "messages held more than 3 days ago"),
    Case("quarantine reannounce", lambda s: [s.held()], "reannounced", ALICE),
    Case("quarantine refuse", lambda s: [s.requested(), "--reason", "x"], "refused", ALICE),
    Case("quarantine reindex", lambda s: s.store.close() or [], "reindexed", "", ""),
    Case("quarantine release", lambda s: [s.held()], "released", ALICE),
    Case("quarantine restore", lambda s: [s.after("delete", "--recipient", ALICE, s.held())[-1]], "restored", ALICE),
    Case("quarantine rules add", lambda _: ["block", "evil.example", "--site"], "rule-added", "*"),
    Case("quarantine rules export", lambda _: [], "exported", "", "all rules"),
    Case("quarantine rules import", lambda s: [s.rules_file()], "rule-added", "*"),
    Case("quarantine rules remove", lambda s: [s.rule()], "rule-removed", ALICE),
    Case("quarantine scan", lambda s: [s.held()], "scanned", ALICE, ""),
    Case("quarantine staff add", lambda _: [BOB, "auditor"], "role-given", BOB),
    Case("quarantine staff remove", lambda s: [s.staff(), "auditor"], "role-removed", BOB),
    Case("quarantine staff reset-second-factor", lambda s: [s.with_factor()], "second-factor-reset", BOB),
    Case("quarantine staff set-up-code", lambda s: [s.staff()], "second-factor-reset", BOB, "set-up code"),
    Case("quarantine stats", lambda s: ["--mail", s.counted()], "exported", ALICE),
    Case("quarantine token add", lambda s: [s.staff(), "auditor", "--name", "x"], "token-created", BOB),
    Case("quarantine token revoke", lambda s: [s.token()], "token-revoked", BOB),
    Case("quarantine unlearn", lambda s: [s.learned()], "unlearned", ALICE),
    Case("quarantine-digest once", lambda _: [], "digest-requested", "", ""),
    Case("quarantine-digest once", lambda _: ["--recipient", "Alice@Example.org"], "digest-requested", ALICE, ""),
    Case("quarantine-digest once", lambda _: ["--recipient", ALICE, "--resend"], "digest-requested", ALICE, "resend"),
]  # fmt: skip


def commands(command: click.Command, name: str) -> Iterator[str]:
    """Yield the names of all commands of a program."""
    if not isinstance(command, click.Group):
        yield name
        return
    context = click.Context(command)
    for each in command.list_commands(context):
        found = command.get_command(context, each)
        assert found
        yield from commands(found, f"{name} {each}")


def test_every_command_that_changes_something_is_recorded() -> None:
    """A new command is added to `CASES`, or to the commands that only read."""
    known = {*commands(main, "quarantine"), *commands(digest_main, "quarantine-digest")}
    assert known == READ_ONLY | BY_PROGRAMS | {case.command for case in CASES}
    assert not READ_ONLY & {case.command for case in CASES}


def recorded(store_url: str) -> list[AuditEntry]:
    store = open_store(store_url)
    found = [*store.audit.list(AuditFilter(), 99)]
    store.close()
    return found


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_command_is_recorded(
    case: Case, run: Run, store: Store, store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if case.act == "reindexed" and not store_url.startswith("files:"):
        assert "there is nothing to rebuild" in run("reindex").output
        return
    monkeypatch.setattr(cli_jobs, "_LOOKS_PER_SECOND", 50)
    monkeypatch.setenv("QUARANTINE_STAFF__ADMINISTRATORS", "root@example.org")
    monkeypatch.setenv("QUARANTINE_RSPAMD__LEARN", "operators")
    program, *group = case.command.split()
    with RspamdServer() as rspamd, SmtpServer() as smtp, ExitStack() as until:
        monkeypatch.setenv("QUARANTINE_RSPAMD__URL", rspamd.url)
        for section in ("RELAY", "MAIL"):
            monkeypatch.setenv(f"QUARANTINE_{section}__URL", smtp.url)
        assert run("init").exit_code == 0
        words = [*group, *case.words(Stage(run, store, tmp_path, smtp, until))]
        words = [store_url if word == "@STORE" else word for word in words]
        before = {each.id for each in recorded(store_url)}
        result = CliRunner().invoke(main if program == "quarantine" else digest_main, ["--as", "dave", *words])
    assert result.exit_code == 0, (result.output, result.exception)
    entries = [each for each in recorded(store_url) if each.id not in before]
    by = {(each.actor.who, each.actor.via.partition("/")[0]) for each in entries}  # without the id of a job
    assert by == {("operator:dave", "cli:carol")}
    found = {(each.act, each.subject): each.detail for each in entries}
    assert (case.act, case.subject) in found
    if case.detail is not None:
        assert found[case.act, case.subject] == case.detail.replace("@FOLDER", str(tmp_path))


def test_a_copy_is_recorded_without_the_password_of_its_target(run: Run, store: Store, store_url: str) -> None:
    target = "postgresql://copier:secret@127.0.0.1:1/gone"
    run("copy", store_url, target)
    assert "secret" not in str(recorded(store_url))


@pytest.mark.parametrize("words", [("once", "--dry-run"), ("once", "--recipient", "x")], ids=str)
def test_digests_that_are_not_sent_are_not_recorded(
    run: Run, store: Store, store_url: str, words: tuple[str, ...]
) -> None:
    held = hold(store, recipients=[ALICE])
    assert held
    CliRunner().invoke(digest_main, words)
    assert recorded(store_url) == []
