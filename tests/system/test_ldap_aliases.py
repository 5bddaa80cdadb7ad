"""The alias file that `quarantine ldap-aliases` writes from Debian's slapd, and a sign-in with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from pydantic import SecretStr

from portal.cli import main
from portal.passwords import Proven
from portal.passwords.deadline import Deadline
from portal.passwords.ldap import LdapServer
from portal.people.virtual import parse
from portal.settings.passwords import LdapSettings
from tests.builders import hold
from tests.conftest import MakeParts
from tests.system.password_servers import (
    BASE,
    PORTAL_DN,
    PORTAL_PASSWORD,
    PasswordServers,
    person,
    slapd_and_dovecot,
)
from tests.system.services import folder
from tests.web_client import Site

pytestmark = pytest.mark.system
COUNT = 1200  # entries, of which slapd returns 500 at once
# As in Active Directory, `description` has the values of proxyAddresses.
LDAP = {
    "base": BASE,
    "bind_dn": PORTAL_DN,
    "bind_password": PORTAL_PASSWORD,
    "address_attributes": "mail,description",
    "filter": "(&(objectClass=inetOrgPerson)(|(mail={address})(description=smtp:{address})))",
}
Run = Callable[..., Result]


def entries() -> Iterator[str]:
    """Yield many people: every second one has a primary address that is not in ``mail``."""
    for n in range(COUNT):
        kind = "SMTP" if n % 2 else "smtp"
        yield person(
            f"p{n}",
            "x",
            f"mail: p{n}@example.org",
            f"description: {kind}:First.Last{n}@Example.org",
            f"description: smtp:p{n}@elsewhere.example",
            "description: smtp:everybody@example.org",
            f"description: sip:p{n}@example.org",
        )


@pytest.fixture(scope="module")
def servers() -> Iterator[PasswordServers]:
    with folder() as home, slapd_and_dovecot(home, [*entries()]) as running:
        yield running


@pytest.fixture
def run(servers: PasswordServers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    config = tmp_path / "quarantine.toml"
    config.write_text('local_domains = ["example.org"]\nmail.from_address = "quarantine@example.org"\n')
    monkeypatch.setenv("QUARANTINE_CONFIG", str(config))

    def call(**changed: str) -> Result:
        ldap = {"uri": f"ldaps://localhost:{servers.ldaps}", "ca_file": str(servers.ca_file)} | LDAP | changed
        with monkeypatch.context() as patch:
            for name, value in ldap.items():
                patch.setenv(f"QUARANTINE_LDAP__{name.upper()}", value)
            result = CliRunner().invoke(main, ["ldap-aliases"])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return call


def test_all_pages_of_the_directory_become_an_alias_file(run: Run) -> None:
    result = run()
    assert result.exit_code == 0, result.stderr
    expected = {"bob@example.org": "robert@example.org", "bobby@example.org": "robert@example.org"}
    for n in range(COUNT):
        pair = (f"p{n}@example.org", f"first.last{n}@example.org")
        alias, primary = pair if n % 2 else pair[::-1]
        expected[alias] = primary
    lines = result.stdout.splitlines()
    assert lines == sorted(f"{alias} {primary}" for alias, primary in expected.items())
    names = parse(result.stdout, is_local=lambda address: address.endswith("@example.org"))
    assert not names.problems
    assert names.readers == {alias: (primary,) for alias, primary in expected.items()}

    everybody, twice, alice = result.stderr.splitlines()
    assert alice.startswith(f"warning: uid=alice,{BASE} is left out: it has several addresses")
    assert everybody.startswith(f"warning: everybody@example.org is left out: {COUNT} entries have it: ")
    assert twice.startswith("warning: twice@example.org is left out: 2 entries have it: ")


def test_a_search_that_a_limit_cuts_prints_nothing(run: Run) -> None:
    result = run(bind_dn=f"uid=alice,{BASE}", bind_password="secret of alice")  # slapd's limit is 500 entries
    assert (result.exit_code, result.stdout) == (1, "")
    assert "sizeLimitExceeded. Run quarantine check; if the directory limits what a search returns" in result.stderr


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"filter": "(cn={address}@example.org)"}, "0 entries have no alias in local_domains"),
        ({"filter": "(mail={address})(cn=x)"}, "filter"),
        ({"bind_password": "wrong"}, "does not accept ldap.bind_dn"),
        ({"base": "dc=elsewhere"}, "cannot search ldap.base: noSuchObject"),
    ],
)
def test_a_search_that_finds_nothing_prints_nothing(run: Run, changed: dict[str, str], text: str) -> None:
    result = run(**changed)
    assert (result.exit_code, result.stdout) == (1, "")
    assert text in result.stderr


def test_the_same_address_is_primary_in_a_sign_in(servers: PasswordServers) -> None:
    ldap = LDAP | {"filter": "(|(uid=p0)(cn={address}))", "bind_password": SecretStr(PORTAL_PASSWORD)}
    server = LdapServer(LdapSettings(uri=f"ldaps://localhost:{servers.ldaps}", ca_file=servers.ca_file, **ldap))
    with Deadline() as deadline:
        assert server.check("p0@login.example", "x", "", deadline) == Proven("p0@example.org")


def test_an_alias_of_the_directory_signs_in_its_person(
    run: Run, servers: PasswordServers, make_parts: MakeParts, tmp_path: Path
) -> None:
    aliases = tmp_path / "aliases"
    aliases.write_text(run().stdout)
    ldap = {f"ldap__{name}": value for name, value in LDAP.items()}
    site = Site(
        make_parts(
            people__alias_file=aliases,
            ldap__uri=f"ldaps://localhost:{servers.ldaps}",
            ldap__ca_file=servers.ca_file,
            **ldap,
        )
    )
    for name in ("bob", "robert", "p1"):
        hold(site.store, recipients=[f"{name}@example.org"], subject=f"for {name}")
    browser = site.browser()
    browser.post("/sign-in/password", {"address": "bobby@example.org", "password": 'q"uo\\te'})
    page = browser.get("/").text
    assert "Signed in as <bdi>robert@example.org</bdi>" in page
    assert "for bob" in page and "for robert" in page and "for p1" not in page
