"""``quarantine token``, as typed by an operator, on both stores."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from click.testing import CliRunner, Result

from portal.assemble import assemble
from portal.cli import main
from portal.model.staff import Grant, Role
from portal.settings import load
from portal.stores import Store
from tests.builders import ALICE, BOB, BY_OPERATOR, now
from tests.cli.test_staff import run as staff_run

__all__ = ["staff_run"]  # sets up the settings
Run = Callable[..., Result]


@pytest.fixture
def run(staff_run: Run) -> Run:
    def call(*words: str) -> Result:
        result = CliRunner().invoke(main, ["token", *words])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return call


def test_a_token_is_created_listed_used_and_revoked(run: Run, store: Store) -> None:
    store.staff.give(Grant(BOB, Role.HELP_DESK, "example.org", now(), BY_OPERATOR))
    made = run("add", "Bob@Example.org", "help-desk", "--name", "Ticket system", "--domain", "example.org")
    assert made.exit_code == 0 and made.stdout.startswith("qtn_") and made.stdout.count("\n") == 1
    secret = made.stdout.strip()
    [listed] = [json.loads(line) for line in run("list", "--json").output.splitlines()]
    assert (listed["person"], listed["role"], listed["domain"]) == (BOB, "help-desk", "example.org")
    assert (listed["name"], listed["scope"], listed["status"]) == ("Ticket system", "read", "active")
    assert listed["created_by"].startswith("operator:") and listed["used_at"] is None
    assert secret not in run("list").output and "Ticket system" in run("list").output
    parts = assemble(load())
    member = parts.tokens.member(secret, now())
    parts.store.close()
    assert member and member.person == BOB
    revoked = run("revoke", listed["id"])
    assert (revoked.exit_code, revoked.output) == (0, f"revoked {listed['id']} Ticket system\n")
    assert json.loads(run("list", "--json").output)["status"] == "revoked"
    again = run("revoke", listed["id"])
    assert (again.exit_code, "revoked before. `quarantine token list`" in again.output) == (1, True)


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        (("add", BOB, "help-desk", "--name", "x"), 2, "This person does not have this role"),
        (("add", "sales@example.org", "help-desk", "--name", "x"), 2, "This person does not have this role"),
        (("add", ALICE, "root", "--name", "x"), 2, "'root' is not one of"),
        (("add", ALICE, "auditor"), 2, "Missing option '--name'"),
        (("add", ALICE, "auditor", "--name", " "), 2, "It is empty"),
        (("add", ALICE, "auditor", "--name", "x", "--domain", "other.example"), 2, "not a local domain"),
        (("add", ALICE, "auditor", "--name", "x", "--days", "366"), 2, "1<=x<=365"),
        (("add", ALICE, "auditor", "--name", "x", "--scope", "all"), 2, "'all' is not one of"),
        (("revoke", "x"), 2, "'x' is not an id. Try: quarantine token list"),
        (("revoke", "0199f0f0-0000-7000-8000-000000000000"), 1, "There is no token"),
    ],
)
def test_what_cannot_be_done_is_said_and_has_a_status(
    run: Run, store: Store, words: tuple[str, ...], status: int, text: str
) -> None:
    result = run(*words)
    assert result.exit_code == status
    assert text in result.output
    assert store.tokens.all() == []
