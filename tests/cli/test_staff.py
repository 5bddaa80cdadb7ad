"""``quarantine staff``, as typed by an operator, on both stores."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from portal.cli import checks, main, sign_in_checks
from portal.model.audit import Act, AuditEntry, AuditFilter
from portal.model.message import Actor, ActorKind
from portal.model.second_factor import recovery_hashes
from portal.model.staff import EVERYWHERE, Grant, Role
from portal.settings import load
from portal.stores import Store
from tests.builders import ALICE, BOB, BY_OPERATOR, now, second_factor
from tests.contract.helpers import SESSION

Run = Callable[..., Result]


@pytest.fixture
def run(store_url: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    config = tmp_path / "quarantine.toml"
    config.write_text(
        f'local_domains = ["example.org", "münchen.example"]\nstore.url = "{store_url}"\n'
        f'mail.from_address = "q@example.org"\nlinks.keys_file = "{tmp_path / "links.keys"}"\n'
        'people.recipient_delimiter = "+"\n'
        f'[staff]\nadministrators = ["Alice@example.org"]\n'
    )
    monkeypatch.setenv("QUARANTINE_CONFIG", str(config))

    def call(*words: str) -> Result:
        result = CliRunner().invoke(main, ["staff", *words])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return call


def test_roles_are_given_listed_and_removed(run: Run, store: Store) -> None:
    assert run("add", "Bob@Example.org", "domain-administrator", "--domain", "MÜNCHEN.example").output == (
        "bob@example.org domain-administrator münchen.example: given\n"
    )
    assert run("add", BOB, "auditor").output == "bob@example.org auditor all domains: given\n"
    assert run("add", BOB, "auditor").output == "bob@example.org auditor all domains: given before\n"
    listed = [json.loads(line) for line in run("list", "--json").output.splitlines()]
    assert [(each["person"], each["role"], each["domain"]) for each in listed] == [
        (ALICE, "administrator", None),
        (BOB, "auditor", None),
        (BOB, "domain-administrator", "xn--mnchen-3ya.example"),
    ]
    assert (listed[0]["given_by"], listed[0]["given_at"]) == ("settings", None)
    assert listed[1]["given_by"].startswith("operator:") and listed[1]["given_at"]
    assert "münchen.example" in run("list").output
    store.sign_ins.start_session(SESSION, BOB, now())
    assert run("remove", BOB, "auditor").output == "bob@example.org auditor all domains: removed\n"
    session = store.sign_ins.session(SESSION, now())
    assert (
        session
        and session.staff_until is None
        and [each.role for each in session.grants] == [Role.DOMAIN_ADMINISTRATOR]
    )
    assert run("remove", BOB, "domain-administrator", "--domain", "münchen.example").exit_code == 0
    assert store.staff.all() == []


def test_a_lost_second_factor_is_reset(run: Run, store: Store) -> None:
    store.sign_ins.start_session(SESSION, BOB, now())
    store.second_factors.put(second_factor(BOB), "", SESSION, BY_OPERATOR, now())
    session = store.sign_ins.session(SESSION, now())
    assert session and (session.has_factor, session.factor_given) == (True, True)
    assert run("reset-second-factor", "Bob@Example.org").output == "bob@example.org: second factor removed\n"
    session = store.sign_ins.session(SESSION, now())
    assert session and (session.has_factor, session.factor_given, session.staff_until) == (False, False, None)
    again = run("reset-second-factor", BOB)
    assert (again.exit_code, again.output) == (1, "bob@example.org has no second factor: check the address\n")
    [entry] = store.audit.list(AuditFilter(act="second-factor-reset"), 9)
    assert entry.subject == BOB and entry.actor.via != "console"


def test_a_set_up_code_replaces_a_second_factor(run: Run, store: Store) -> None:
    unknown = run("set-up-code", BOB)
    assert unknown.exit_code == 1 and "does not have this role" in unknown.output
    assert len(list(sign_in_checks.second_factors(load(), checks.staff_of(load(), store)))) == 1
    store.second_factors.put(second_factor(ALICE), "", SESSION, BY_OPERATOR, now())
    assert list(sign_in_checks.second_factors(load(), checks.staff_of(load(), store))) == []
    code = run("set-up-code", ALICE).output.strip()
    factor = store.second_factors.get(ALICE)
    assert factor and factor.recovery == recovery_hashes([code]) and not factor.has_app
    with store.outbox.sending(now()) as mail:
        assert mail and mail.to == ALICE and b"set-up code" in mail.mail and code.encode() not in mail.mail


def test_check_names_whose_roles_are_open_to_everybody_who_reads_their_mail(
    run: Run, store: Store, tmp_path: Path
) -> None:
    run("add", BOB, "auditor")
    [found] = sign_in_checks.second_factors(load(), checks.staff_of(load(), store))
    assert found.ok is None and f"not set up by {ALICE}, {BOB}: " in found.text
    assert "Set staff.second_factor = true" in found.text
    config = tmp_path / "quarantine.toml"
    provider = '[oidc.company]\nissuer = "https://id.example.org"\nclient_id = "q"\nclient_secret = "s"\n'
    config.write_text(f"{config.read_text()}second_factor = true\n{provider}")
    actor = Actor(ActorKind.RECIPIENT, ALICE, "oidc:company", "192.0.2.1")
    store.audit.record(AuditEntry.new(now(), Act.SIGNED_IN, actor, ALICE))
    [found] = sign_in_checks.second_factors(load(), checks.staff_of(load(), store))
    assert f"not set up by {BOB}: " in found.text and "set-up-code ADDRESS" in found.text


def test_check_reports_roles_that_nobody_can_use(run: Run, store: Store, tmp_path: Path) -> None:
    run("add", BOB, "auditor")
    assert list(checks.staff_roles(load(), store)) == []
    gone = Grant("eve@gone.example", Role.HELP_DESK, EVERYWHERE, now(), BY_OPERATOR)
    for grant in (gone, Grant(BOB, Role.HELP_DESK, "gone.example", now(), BY_OPERATOR)):
        store.staff.give(grant)
    config = tmp_path / "quarantine.toml"
    config.write_text(config.read_text().replace("Alice@example.org", "alice@gone.example"))
    texts = {f"{found.ok} {found.topic}: {found.text}" for found in checks.staff_roles(load(), store)}
    assert len(texts) == 3 and any(text.startswith("False staff.administrators: alice@gone.example") for text in texts)
    for text in texts:
        command = text.partition("run: quarantine staff ")[2].split()
        assert not command or run(*command).exit_code == 0
    assert len(list(checks.staff_roles(load(), store))) == 1


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        (("add", BOB, "root"), 2, "'root' is not one of 'administrator', 'domain-administrator'"),
        (("add", BOB), 2, "Missing argument"),
        (("add", " ", "auditor"), 2, "It is empty"),
        (("add", BOB, "auditor", "--domain", ""), 2, "It is empty"),
        (("add", BOB, "domain-administrator"), 2, "A domain administrator needs a domain."),
        (("add", BOB, "administrator", "--domain", "example.org"), 2, "all domains"),
        (("add", BOB, "auditor", "--domain", "other.example"), 2, "not a local domain. Check the spelling."),
        (("add", "x@other.example", "auditor"), 2, "Enter an address in a local domain."),
        (("add", "bob+x@example.org", "auditor"), 2, "Enter the address without it."),
        (("add", "@example.org", "auditor"), 2, "Enter the address of a mailbox"),
        (("remove", BOB, "auditor"), 1, "`quarantine staff list` shows all roles."),
        (("remove", ALICE, "administrator"), 1, "settings file"),
    ],
)
def test_what_cannot_be_done_is_said_and_has_a_status(
    run: Run, store: Store, words: tuple[str, ...], status: int, text: str
) -> None:
    result = run(*words)
    assert result.exit_code == status
    assert text in result.output
    assert store.staff.all() == []
