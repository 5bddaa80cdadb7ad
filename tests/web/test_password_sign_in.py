"""Signing in with a password that the IMAP server checks: limits first, one answer for all, nothing kept."""

import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from portal.model.audit import AuditFilter
from portal.passwords import Proven
from portal.passwords.deadline import Deadline
from tests.builders import ALICE, BOB
from tests.conftest import MakeParts
from tests.imap_server import CERTIFICATE, ImapServer
from tests.web_client import Answer, Browser, Site

PASSWORD = 'pä"ss wört\\ '


@pytest.fixture
def imap() -> Iterator[ImapServer]:
    server = ImapServer()
    server.passwords = {ALICE: PASSWORD, BOB: "of bob", "x@elsewhere.example": "of x"}
    yield server
    server.close()


@pytest.fixture
def site(make_parts: MakeParts, imap: ImapServer) -> Site:
    return Site(make_parts(imap__host="127.0.0.1", imap__port=imap.port, imap__ca_file=CERTIFICATE))


def enter(browser: Browser, address: str = ALICE, password: str = "wrong", peer: str = "192.0.2.7") -> Answer:
    browser.peer = peer
    return browser.post("/sign-in/password", {"address": address, "password": password})


def problem(answer: Answer) -> str:
    found = re.search(r'id="problem">(.*?)</p>', answer.text)
    assert found
    return found[1]


def test_a_right_password_signs_in_and_leads_to_the_page_that_was_opened(site: Site, imap: ImapServer) -> None:
    browser = site.browser()
    browser.get("/preferences")
    page = browser.get("/sign-in").text
    assert 'autocomplete="current-password"' in page and 'formaction="/quarantine/sign-in"' in page
    answer = enter(browser, " Alice@Example.ORG ", PASSWORD)
    assert (answer.status, answer.header("Location")) == (303, "/quarantine/preferences")
    assert imap.tried == [(ALICE, PASSWORD)]
    assert imap.clients == ['("x-originating-ip" "192.0.2.7")']
    assert f"Signed in as <bdi>{ALICE}</bdi>" in browser.get("/").text
    (entry,) = site.store.audit.list(AuditFilter(act="signed-in"), 10)
    assert (entry.actor.who, entry.actor.via, entry.actor.address) == (
        f"recipient:{ALICE}",
        "imap",
        "192.0.2.7",
    )


def test_the_answer_does_not_disclose_who_exists(site: Site, imap: ImapServer) -> None:
    answers = set()
    for address in (ALICE, "nobody@example.org", "x@elsewhere.example"):
        answer = enter(site.browser(), address)
        answers.add((answer.status, answer.text.replace(address, ""), tuple(answer.cookies())))
    assert len(answers) == 1
    assert [user for user, _ in imap.tried] == [ALICE, "nobody@example.org"]


def test_a_password_is_neither_logged_nor_shown_nor_stored(
    site: Site, imap: ImapServer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        for refusal in ("[AUTHENTICATIONFAILED] no", "[UNAVAILABLE] later"):
            imap.refusal = refusal
            assert "hunter2" not in enter(site.browser(), password="hunter2").text
    assert "password refused peer=192.0.2.7" in caplog.text and "password not checked via=imap" in caplog.text
    assert "hunter2" not in caplog.text


@pytest.mark.parametrize("password", ["", "a\0b", "a\nb", "x" * 1025])
def test_a_password_that_servers_misunderstand_is_not_passed_on(site: Site, imap: ImapServer, password: str) -> None:
    answer = enter(site.browser(), password=password)
    assert (answer.status, problem(answer)) == (400, "Enter your email address and your password.")
    assert imap.tried == []


def test_five_wrong_passwords_of_a_client_suspend_it_for_that_mailbox(site: Site, imap: ImapServer) -> None:
    assert [enter(site.browser()).status for _ in range(6)] == [403] * 5 + [429]
    assert "Too many wrong passwords" in problem(enter(site.browser(), password=PASSWORD))
    assert len(imap.tried) == 5
    assert enter(site.browser(), "alice+x@example.org").status == 429
    assert enter(site.browser(), BOB, "of bob").status == 303  # another mailbox
    assert enter(site.browser(), peer="198.51.100.1").status == 403  # another client
    site.pass_time(minutes=16)
    assert enter(site.browser(), password=PASSWORD).status == 303


def test_a_right_password_resets_the_limit(site: Site) -> None:
    for _ in range(3):
        assert [enter(site.browser()).status for _ in range(4)] == [403] * 4
        assert enter(site.browser(), password=PASSWORD).status == 303


def test_forgetting_a_person_forgets_their_wrong_passwords(site: Site) -> None:
    assert [enter(site.browser()).status for _ in range(6)] == [403] * 5 + [429]
    site.store.recipients.forget(ALICE, site.now)
    assert enter(site.browser()).status == 403


def test_a_mailbox_and_a_network_have_limits_too(site: Site, imap: ImapServer) -> None:
    statuses = [enter(site.browser(), peer=f"198.51.100.{n}").status for n in range(21)]
    assert statuses == [403] * 20 + [429]
    imap.tried.clear()
    statuses = [enter(site.browser(), f"p{n}@example.org", peer=f"2001:db8::{n:x}").status for n in range(31)]
    assert statuses == [403] * 30 + [429]
    assert enter(site.browser(), BOB, "of bob").status == 303
    site.pass_time(minutes=61)
    assert enter(site.browser(), password=PASSWORD).status == 303


def test_a_server_that_cannot_check_passwords_costs_nobody_a_try(site: Site, imap: ImapServer) -> None:
    imap.refusal = "[UNAVAILABLE] Internal error"
    answers = [enter(site.browser()) for _ in range(7)]
    assert {answer.status for answer in answers} == {503}
    assert "cannot be checked at the moment" in problem(answers[0])
    assert enter(site.browser(), password=PASSWORD).status == 303
    imap.close()
    assert enter(site.browser(), password=PASSWORD).status == 503


def test_a_server_that_does_not_answer_to_wrong_passwords_is_no_way_around_the_limits(
    site: Site, imap: ImapServer
) -> None:
    def drop() -> None:
        raise OSError

    imap.signing_in = drop
    assert [enter(site.browser()).status for _ in range(6)] == [503] * 5 + [429]


def test_an_unknown_certificate_is_not_accepted(make_parts: MakeParts, imap: ImapServer) -> None:
    site = Site(make_parts(imap__host="127.0.0.1", imap__port=imap.port))
    assert enter(site.browser(), password=PASSWORD).status == 503
    assert imap.tried == []


def test_one_password_of_a_mailbox_and_two_of_a_process_are_checked_at_once(site: Site, imap: ImapServer) -> None:
    inner: list[Answer] = []

    def meanwhile() -> None:
        if len(imap.tried) == 1:
            inner.append(enter(site.browser(), password=PASSWORD))
            inner.append(enter(site.browser(), BOB, "of bob"))
        elif len(imap.tried) == 2:
            inner.append(enter(site.browser(), "third@example.org"))

    imap.signing_in = meanwhile
    assert enter(site.browser(), password=PASSWORD).status == 303
    assert [answer.status for answer in inner] == [503, 503, 303]
    assert "still being checked" in problem(inner[0])
    assert [user for user, _ in imap.tried] == [ALICE, BOB]


def test_the_password_of_an_alias_is_that_of_its_person(
    make_parts: MakeParts, imap: ImapServer, tmp_path: Path
) -> None:
    aliases = tmp_path / "virtual"
    aliases.write_text("postbox@example.org alice@example.org\n")
    imap.passwords["postbox@example.org"] = "another"
    site = Site(
        make_parts(imap__host="127.0.0.1", imap__port=imap.port, imap__ca_file=CERTIFICATE, people__alias_file=aliases)
    )
    browser = site.browser()
    assert enter(browser, "postbox@example.org", "another").status == 403
    assert enter(browser, "postbox@example.org", PASSWORD).status == 303
    assert f"Signed in as <bdi>{ALICE}</bdi>" in browser.get("/").text


def test_the_imap_server_is_not_asked_about_foreign_addresses(site: Site, imap: ImapServer) -> None:
    """It may ignore domains, so that each of them would have tries of its own for the same account."""
    browser = site.browser()
    answer = enter(browser, "x@elsewhere.example", "of x")
    assert answer.status == 403
    assert "The email address or the password is wrong." in answer.text
    assert imap.tried == []
    assert browser.get("/").status == 303


def test_foreign_addresses_cost_an_office_no_tries(site: Site, imap: ImapServer) -> None:
    statuses = {enter(site.browser(), f"p{number}@elsewhere.example").status for number in range(40)}
    assert (statuses, imap.tried) == ({403}, [])
    assert enter(site.browser(), BOB, "of bob").status == 303


class Directory:
    """A password server that knows everybody by one address."""

    method = "ldap"

    def __init__(self, address: str) -> None:
        self.address = address

    def check(self, address: str, password: str, client_ip: str, deadline: Deadline) -> Proven:
        return Proven(self.address)


@pytest.mark.parametrize(("proven", "status"), [("postbox@example.org", 403), ("info@example.org", 403), (BOB, 303)])
def test_the_alias_file_does_not_change_whom_the_directory_names(
    make_parts: MakeParts, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, proven: str, status: int
) -> None:
    """The account with an address that is an alias of Alice here may be somebody else's there."""
    aliases = tmp_path / "virtual"
    aliases.write_text(f"postbox@example.org {ALICE}\ninfo@example.org {ALICE}, {BOB}\n")
    monkeypatch.setattr("portal.web.password_servers", lambda _: [Directory(proven)])
    browser = Site(make_parts(people__alias_file=aliases)).browser()
    answer = enter(browser, "mallory@corp.example", "right")
    assert answer.status == status
    assert (browser.get("/").status == 200) is (status == 303)


def test_recipients_sign_in_at_the_address_of_their_domain(
    make_parts: MakeParts, imap: ImapServer, tmp_path: Path
) -> None:
    url = "https://mail.example.net/quarantine"
    (tmp_path / "quarantine.toml").write_text(f'[domains."example.net"]\npublic_url = "{url}"\n')
    server = {"imap__host": "127.0.0.1", "imap__port": imap.port, "imap__ca_file": CERTIFICATE}
    own = {"public_url": "https://mail.example.org/quarantine", "local_domains": "example.org,example.net"}
    browser = Site(make_parts(**server, **own)).browser()
    form = {"address": "carol@example.net", "password": "secret"}
    answer = browser.post("/sign-in/password", form, headers={"Origin": "https://mail.example.org"})
    assert answer.status == 403
    assert f'<a href="{url}/sign-in">' in problem(answer)
    assert imap.tried == []


def test_without_mailed_links_only_the_password_is_asked_for(make_parts: MakeParts, imap: ImapServer) -> None:
    server = {"imap__host": "127.0.0.1", "imap__port": imap.port, "imap__ca_file": CERTIFICATE}
    page = Site(make_parts(**server, sign_in__mailed_link="false")).browser().get("/sign-in").text
    assert 'name="password"' in page
    assert "formaction" not in page and "link" not in re.sub(r"<link[^>]*>", "", page)


def test_another_site_cannot_sign_anybody_in(site: Site, imap: ImapServer) -> None:
    form = {"address": ALICE, "password": PASSWORD}
    answer = site.browser().post("/sign-in/password", form, headers={"Origin": "https://evil.example"})
    assert answer.status == 403
    assert imap.tried == []


def test_without_a_server_no_password_is_asked_for(make_parts: MakeParts) -> None:
    browser = Site(make_parts()).browser()
    assert "password" not in re.sub("without a password|No password", "", browser.get("/sign-in").text)
    assert enter(browser, password=PASSWORD).status == 404
