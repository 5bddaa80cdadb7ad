"""``quarantine ldap-aliases``: which addresses of an entry are aliases of which person, and what is left out."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from portal.cli import main
from portal.passwords.ldap import Entry, LdapServer
from tests.ports import free_port

Run = Callable[..., Result]


def entry(name: str, addresses: str, primary: str | None) -> Entry:
    return Entry(f"cn={name}", tuple(addresses.split()), primary, frozenset())


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command with a directory that has these entries, or with the real client if there are none."""
    config = tmp_path / "quarantine.toml"
    config.write_text(
        'local_domains = ["example.org", "münchen.example"]\nmail.from_address = "quarantine@example.org"\n'
        'people.recipient_delimiter = "+"\nldap.base = "dc=example,dc=org"\n'
    )
    monkeypatch.setenv("QUARANTINE_CONFIG", str(config))

    def call(entries: Sequence[Entry] = (), **ldap: str) -> Result:
        settings = {"uri": f"ldap://127.0.0.1:{free_port()}"} | ldap
        for name, value in settings.items():
            monkeypatch.setenv(f"QUARANTINE_LDAP__{name.upper()}", value)
        with monkeypatch.context() as patch:
            if entries:
                patch.setattr(LdapServer, "all_entries", lambda _: [*entries])
            result = CliRunner().invoke(main, ["ldap-aliases"])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return call


def test_lines_are_sorted_and_name_the_primary_address(run: Run) -> None:
    found = [
        entry("b", "b@example.org z@example.org bb@example.org", "b@example.org"),
        entry("a", "a@example.org a@elsewhere.example aa@xn--mnchen-3ya.example", "a@example.org"),
        entry("c", "c@example.org", "c@example.org"),
        entry("d", "d@elsewhere.example", "d@elsewhere.example"),
    ]
    expected = "aa@xn--mnchen-3ya.example a@example.org\nbb@example.org b@example.org\nz@example.org b@example.org\n"
    for entries in (found, found[::-1]):
        result = run(entries)
        assert (result.exit_code, result.stdout, result.stderr) == (0, expected, "")


def test_an_address_of_two_entries_is_nobodys_alias(run: Run) -> None:
    result = run(
        [
            entry("a", "a@example.org both@example.org aa@example.org", "a@example.org"),
            entry("b", "b@example.org both@example.org", "b@example.org"),
            # Whose messages are those for shared@?
            entry("c", "shared@example.org cc@example.org", "shared@example.org"),
            entry("d", "d@example.org shared@example.org dd@example.org", "d@example.org"),
        ]
    )
    assert (result.exit_code, result.stdout) == (0, "aa@example.org a@example.org\ndd@example.org d@example.org\n")
    assert result.stderr.splitlines() == [
        "warning: both@example.org is left out: 2 entries have it: cn=a; cn=b",
        "warning: shared@example.org is left out: 2 entries have it: cn=c; cn=d",
        "warning: cn=c is left out: another entry has its primary address shared@example.org too: "
        "shared@example.org, cc@example.org",
    ]


def test_an_entry_without_one_local_primary_address_has_no_aliases(run: Run) -> None:
    result = run(
        [
            entry("a", "a@example.org aa@example.org", "a@example.org"),
            entry("b", "b@example.org bb@example.org", None),
            entry("c", "c@elsewhere.example cc@example.org ccc@example.org", "c@elsewhere.example"),
        ]
    )
    assert (result.exit_code, result.stdout) == (0, "aa@example.org a@example.org\n")
    assert result.stderr.splitlines() == [
        "warning: cn=b is left out: it has several addresses, and none is marked as the primary one: "
        "b@example.org, bb@example.org",
        "warning: cn=c is left out: its primary address c@elsewhere.example is not in local_domains: "
        "cc@example.org, ccc@example.org",
    ]


def test_a_line_that_would_be_read_as_something_else_is_left_out(run: Run) -> None:
    result = run(
        [
            entry("a", "a@example.org #a@example.org /a@example.org aa@example.org", "a@example.org"),
            entry("b", "b+x@example.org bb@example.org", "b+x@example.org"),  # b@ may be somebody else
            entry("c", "|c@example.org cc@example.org", "|c@example.org"),
        ]
    )
    assert (result.exit_code, result.stdout) == (0, "aa@example.org a@example.org\n")
    for address in ("#a", "/a", "bb", "cc"):
        assert f"warning: {address}@example.org is left out: an alias file cannot have it" in result.stderr


def test_without_aliases_there_is_nothing_to_replace_a_file_with(run: Run) -> None:
    result = run([entry("a", "a@example.org", "a@example.org"), entry("b", "b@example.org bb@example.org", None)])
    assert (result.exit_code, result.stdout) == (1, "")
    assert "warning: cn=b is left out" in result.stderr
    assert "2 entries have no alias in local_domains. Check ldap.base, ldap.filter and" in result.stderr


def test_a_directory_that_is_away_prints_nothing(run: Run) -> None:
    result = run()
    assert (result.exit_code, result.stdout) == (1, "")
    assert "Connection refused. Run quarantine check" in result.stderr


@pytest.mark.parametrize("comparison", [":caseIgnoreMatch:=", ":=", "~=", ">="])
def test_a_filter_without_a_wildcard_finds_nobody(run: Run, comparison: str) -> None:
    result = run(filter=f"(&(objectClass=user)(|(cn={{address}})(mail{comparison}{{address}})))")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "ldap.filter compares {address} by" in result.stderr and "Use `=`" in result.stderr


def test_without_a_directory_or_its_library_it_says_what_is_missing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(uri="")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "ldap.uri is not set" in result.stderr
    monkeypatch.delitem(sys.modules, "portal.passwords.ldap")
    monkeypatch.setitem(sys.modules, "ldap3", None)
    result = run()
    assert (result.exit_code, result.stdout) == (2, "")
    assert "pip install 'rspamd-quarantine-portal[ldap]'" in result.stderr
