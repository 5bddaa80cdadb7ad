"""Passwords checked by Debian's slapd and Dovecot."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from portal.cli import password_checks
from portal.model.audit import AuditFilter
from portal.model.errors import PasswordServerUnavailable
from portal.model.staff import Role
from portal.passwords import PasswordServer, Proven
from portal.passwords.deadline import Deadline
from portal.passwords.imap import ImapServer
from portal.passwords.ldap import LdapServer
from portal.settings import Settings
from portal.settings.models import MailSettings
from portal.settings.passwords import ImapSettings, LdapSettings
from portal.settings.staff import StaffSettings
from tests.builders import ALICE, BOB
from tests.conftest import MakeParts
from tests.ports import free_port
from tests.system.password_servers import (
    ADMINISTRATORS,
    BASE,
    PORTAL_DN,
    PORTAL_PASSWORD,
    PasswordServers,
    slapd_and_dovecot,
)
from tests.system.services import folder, wait_for
from tests.web_client import Browser, Site

pytestmark = pytest.mark.system
CLIENT = "198.51.100.1"


@pytest.fixture(scope="module")
def servers() -> Iterator[PasswordServers]:
    with folder() as home, slapd_and_dovecot(home) as running:
        yield running


def ldap_settings(servers: PasswordServers, **changed: Any) -> LdapSettings:
    """Return the settings of the directory over StartTLS."""
    settings = {
        "uri": f"ldap://localhost:{servers.ldap}",
        "ca_file": servers.ca_file,
        "base": BASE,
        "bind_dn": PORTAL_DN,
        "bind_password": SecretStr(PORTAL_PASSWORD),
    }
    return LdapSettings(**settings | changed)


def imap_settings(servers: PasswordServers, **changed: Any) -> ImapSettings:
    """Return the settings of the IMAP server over implicit TLS."""
    settings = {"host": "localhost", "port": servers.imaps, "ca_file": servers.ca_file, "timeout_seconds": 20}
    return ImapSettings(**settings | changed)


def ldap(servers: PasswordServers, **changed: Any) -> LdapServer:
    return LdapServer(ldap_settings(servers, **changed))


def imap(servers: PasswordServers, **changed: Any) -> ImapServer:
    return ImapServer(imap_settings(servers, **changed))


def check(server: PasswordServer, address: str, password: str, client: str = CLIENT) -> Proven | None:
    with Deadline() as deadline:
        return server.check(address, password, client, deadline)


# ---- LDAP


@pytest.mark.parametrize("scheme", ["ldap", "ldaps"])
def test_the_directory_checks_passwords_and_names_groups(servers: PasswordServers, scheme: str) -> None:
    server = ldap(servers, uri=f"{scheme}://localhost:{getattr(servers, scheme)}")
    groups = frozenset({ADMINISTRATORS})
    assert check(server, ALICE, "secret of alice") == Proven(ALICE, groups)
    assert check(server, "a.lice@example.org", "secret of alice") == Proven("a.lice@example.org", groups)
    assert check(server, "juergen@example.org", "pässwört") == Proven("juergen@example.org")
    assert check(server, "x*y@example.org", "secret of odd") is not None
    assert check(server, ALICE, "wrong") is None
    assert check(server, "nobody@example.org", "secret of alice") is None


def test_groups_may_be_searched_for(servers: PasswordServers) -> None:
    server = ldap(servers, group_attribute="none", group_filter="(&(objectClass=groupOfNames)(member={dn}))")
    assert check(server, ALICE, "secret of alice") == Proven(ALICE, frozenset({ADMINISTRATORS}))
    assert check(server, BOB, 'q"uo\\te') == Proven(BOB)
    assert check(server, "nobody@example.org", "secret of alice") is None
    assert [len(entry.groups) for entry in server.entries(ALICE)] == [1]
    away = ldap(servers, group_filter="(member={dn})", group_base="ou=away")
    with pytest.raises(PasswordServerUnavailable, match="cannot search ldap.group_base: noSuchObject"):
        check(away, ALICE, "secret of alice")


@pytest.mark.parametrize(
    "address", ["*", "*@example.org", "alice@example.org)(uid=*", "alice@example.org)(|(uid=alice"]
)
def test_an_address_is_not_part_of_the_filter(servers: PasswordServers, address: str) -> None:
    assert check(ldap(servers), address, "secret of alice") is None
    assert ldap(servers).entries(address) == []


def test_an_address_of_two_entries_signs_nobody_in(servers: PasswordServers) -> None:
    assert len(ldap(servers).entries("twice@example.org")) == 2
    for name in ("one", "two"):
        assert check(ldap(servers), "twice@example.org", f"secret of {name}") is None


def test_a_name_that_the_entry_does_not_have_proves_its_only_address(servers: PasswordServers) -> None:
    server = ldap(servers, filter="(|(uid=bob)(cn={address}))")
    assert check(server, "bob@elsewhere.example", 'q"uo\\te') == Proven(BOB)
    server = ldap(servers, filter="(|(uid=alice)(cn={address}))")  # has two addresses, none of which is the primary one
    assert check(server, "alice@elsewhere.example", "secret of alice") is None


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"ca_file": None}, "certificate verify failed"),
        ({"uri": "ldap://127.0.0.1:{ldap}"}, "not valid for '127.0.0.1'"),
        ({"uri": "ldaps://127.0.0.1:{ldaps}"}, "not valid for '127.0.0.1'"),
        ({"uri": "ldap://localhost:{imap}"}, "localhost"),  # not an LDAP server
        ({"uri": "ldap://localhost:{away}"}, "Connection refused"),
        ({"bind_password": SecretStr("wrong")}, "does not accept ldap.bind_dn: invalidCredentials"),
        ({"bind_dn": "", "bind_password": None}, "cannot search"),
        ({"base": "dc=elsewhere"}, "cannot search ldap.base: noSuchObject"),
    ],
)
def test_a_directory_that_cannot_be_asked_is_not_a_wrong_password(
    servers: PasswordServers, changed: dict[str, Any], text: str
) -> None:
    ports = {name: getattr(servers, name) for name in ("ldap", "ldaps", "imap")} | {"away": free_port()}
    if "uri" in changed:
        changed = {"uri": changed["uri"].format(**ports)}
    with pytest.raises(PasswordServerUnavailable, match=text.replace(".", r"\.")):
        check(ldap(servers, timeout_seconds=2, **changed), ALICE, "secret of alice")


def test_the_prefix_in_capitals_marks_the_primary_address(servers: PasswordServers) -> None:
    proxies = {"address_attributes": ("description",)}
    server = ldap(servers, filter="(description=smtp:{address})", **proxies)
    for address in ("bobby@example.org", "robert@example.org"):
        assert check(server, address, 'q"uo\\te') == Proven(address)
    server = ldap(servers, filter="(description=sip:{address})", **proxies)
    assert check(server, BOB, 'q"uo\\te') == Proven("robert@example.org")


# ---- IMAP


@pytest.mark.parametrize("tls", ["implicit", "starttls"])
def test_dovecot_checks_passwords(servers: PasswordServers, tls: str) -> None:
    server = imap(servers, tls=tls, port=servers.imaps if tls == "implicit" else servers.imap)
    assert check(server, ALICE, "secret of alice") == Proven(ALICE)
    assert check(server, BOB, 'q"uo\\te') == Proven(BOB)
    assert check(server, "juergen@example.org", "pässwört") == Proven("juergen@example.org")
    assert check(server, ALICE, "wrong", f"2001:db8::{len(tls)}") is None


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"ca_file": None}, "certificate verify failed"),
        ({"host": "127.0.0.1"}, "not valid for '127.0.0.1'"),
        ({"tls": "starttls", "timeout_seconds": 1}, "timed out"),  # the port begins with TLS
    ],
)
def test_a_mail_server_that_cannot_be_asked_is_not_a_wrong_password(
    servers: PasswordServers, changed: dict[str, Any], text: str
) -> None:
    with pytest.raises(PasswordServerUnavailable, match=text.replace(".", r"\.")):
        check(imap(servers, **changed), ALICE, "secret of alice")


def test_wrong_passwords_of_one_client_do_not_slow_down_others(servers: PasswordServers) -> None:
    server = imap(servers)
    with ThreadPoolExecutor(3) as threads:
        guesses = [threads.submit(check, server, ALICE, f"guess {n}", "198.51.100.66") for n in range(3)]
        time.sleep(0.5)
        began = time.monotonic()
        assert check(server, ALICE, "secret of alice") == Proven(ALICE)
        assert time.monotonic() - began < 1.5  # Dovecot delays the others by 2 s and more
        assert [guess.result() for guess in guesses] == [None] * 3


# ---- the page


def directory(servers: PasswordServers) -> dict[str, Any]:
    """Return the settings of a site with the directory over TLS."""
    return {
        "ldap__uri": f"ldaps://localhost:{servers.ldaps}",
        "ldap__ca_file": servers.ca_file,
        "ldap__base": BASE,
        "ldap__bind_dn": PORTAL_DN,
        "ldap__bind_password": PORTAL_PASSWORD,
    }


@pytest.fixture
def site(servers: PasswordServers, make_parts: MakeParts, tmp_path: Path) -> Site:
    (tmp_path / "quarantine.toml").write_text(f'[staff.groups]\n"{ADMINISTRATORS}" = "administrator"\n')
    return Site(
        make_parts(
            **directory(servers),
            imap__host="localhost",
            imap__port=servers.imaps,
            imap__ca_file=servers.ca_file,
        )
    )


def sign_in(site: Site, address: str, password: str) -> Browser:
    browser = site.browser()
    browser.post("/sign-in/password", {"address": address, "password": password})
    return browser


def test_a_group_of_the_directory_gives_a_role(site: Site) -> None:
    assert sign_in(site, ALICE, "secret of alice").get("/admin/").status == 200
    assert sign_in(site, BOB, 'q"uo\\te').get("/admin/").status == 404
    assert [(grant.person, grant.role) for grant in site.store.staff.all()] == [(ALICE, Role.ADMINISTRATOR)]


def test_the_mail_server_is_asked_after_the_directory(site: Site) -> None:
    assert sign_in(site, "dora@example.org", "secret of dora").get("/").status == 200
    assert sign_in(site, "dora@example.org", "wrong").get("/").status == 303
    vias = [entry.actor.via for entry in site.store.audit.list(AuditFilter(act="signed-in"), 10)]
    assert vias == ["imap"]


def operations(log: str) -> list[str]:
    """Return what slapd's log has of its clients: connections, requests, and the result of each, with its code."""
    kinds = r"(ACCEPT|STARTTLS|BIND dn=.* method|SRCH base|UNBIND|closed|RESULT tag=\d+ err=\d+)"
    return [re.sub(" dn=.*", "", kind) for kind in re.findall(rf"conn=\d+ (?:fd|op)=\d+ {kinds}", log)]


@pytest.mark.parametrize("group_filter", ["", "(member={dn})"])
def test_the_directory_has_the_same_work_for_an_address_without_an_entry(
    servers: PasswordServers, make_parts: MakeParts, group_filter: str
) -> None:
    """The time of the answer would disclose who has an entry."""
    site = Site(make_parts(**directory(servers), ldap__group_filter=group_filter))
    found = []
    for address in (ALICE, "nobody@example.org", "twice@example.org"):
        before = len(servers.log.read_text())
        answer = site.browser().post("/sign-in/password", {"address": address, "password": "wrong"})
        assert (answer.status, "The email address or the password is wrong." in answer.text) == (403, True)
        wait_for(lambda: operations(servers.log.read_text()[before:])[-1:] == ["closed"])  # noqa: B023 - called at once
        found.append(operations(servers.log.read_text()[before:]))
    assert found[0] == found[1] == found[2]
    assert found[0].count("BIND") == 2 and found[0].count("SRCH base") == (2 if group_filter else 1)


# ---- quarantine check


def test_the_check_names_what_prevents_signing_in(servers: PasswordServers) -> None:
    settings = Settings(
        local_domains=("example.org",),
        mail=MailSettings(from_address="quarantine@example.org"),
        staff=StaffSettings(administrators=(ALICE, "nobody@example.org", "twice@example.org")),
        ldap=ldap_settings(servers),
        imap=imap_settings(servers),
    )
    found = [(finding.ok, finding.text) for finding in password_checks.ldap(settings)]
    assert found == [
        (True, f"ldap://localhost:{servers.ldap}: its certificate is valid, and it can be searched"),
        (True, "one entry for alice@example.org, with 1 groups"),
        (False, "no entry for nobody@example.org (ldap.base, ldap.filter): a password cannot sign them in"),
        (False, "several entries for twice@example.org (ldap.base, ldap.filter): a password cannot sign them in"),
    ]
    passes, note = password_checks.imap(settings)
    assert passes.ok and "it takes passwords" in passes.text
    assert note.ok is None and "login_trusted_networks" in note.text
