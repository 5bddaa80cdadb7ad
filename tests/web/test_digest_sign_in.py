"""From a digest's link to the message by each sign-in method: nothing to type but a password, and to nobody else."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from portal.model.links import Action
from portal.stores.records import Held
from tests.builders import ALICE, BOB, MALLORY
from tests.conftest import MakeParts
from tests.imap_server import CERTIFICATE, ImapServer
from tests.oidc_provider import CLIENT, SECRET, FakeProvider, running
from tests.web.test_sign_in import open_link, sent, session_recipient
from tests.web_client import Answer, Browser, Site

PROXY_SECRET = "p" * 32
OF_ANOTHER = "You opened a link for another recipient. These are your own messages."
REVOKE = {"change": "revoke", "sign-out": "1"}
METHODS = ("proxy", "oidc", "password", "mail")


@pytest.fixture
def provider() -> Iterator[FakeProvider]:
    with running() as made:
        yield made


@pytest.fixture
def imap() -> Iterator[ImapServer]:
    server = ImapServer()
    server.passwords = {ALICE: "of alice", BOB: "of bob"}
    yield server
    server.close()


@pytest.fixture
def settings(provider: FakeProvider, imap: ImapServer) -> dict[str, Any]:
    company = {"issuer": provider.issuer, "client_id": CLIENT, "client_secret": SECRET, "title": "Company"}
    return {
        "oidc": {"company": company, "branch": {**company, "issuer": "http://127.0.0.1:9", "title": "Branch"}},
        "imap__host": "127.0.0.1",
        "imap__port": imap.port,
        "imap__ca_file": CERTIFICATE,
        "proxy__secret": PROXY_SECRET,
    }


@pytest.fixture
def site(make_parts: MakeParts, settings: dict[str, Any]) -> Site:
    return Site(make_parts(**settings))


@pytest.fixture
def held(site: Site) -> Held:
    return site.hold(recipients=[ALICE], subject="Of Alice", data=b"Subject: x\r\n\r\nthe text of the message")


def offered(page: str) -> list[str]:
    """Return the buttons that sign in, in their order."""
    names = re.findall(r">(Sign in with [^<]*|Send me a sign-in link|Send link)<", page)
    return [name.removeprefix("Sign in with ") for name in names]


def password_page(page: str) -> str:
    """Return the address of the password's form on a page of a link."""
    found = re.search(r'href="/quarantine(/sign-in[^"#]*)#password"', page)
    assert found
    return found[1]


def filled_in(form: str) -> str:
    """Return the address in the form of the sign-in page."""
    found = re.search(r'name="address"[^>]* value="([^"]*)"', form)
    assert found
    return found[1]


def sign_in(site: Site, browser: Browser, provider: FakeProvider, method: str, link: str, who: str = ALICE) -> Answer:
    """Sign in by one of the buttons of a link's page, as somebody who types a password at most."""
    page = browser.get(link).text
    if method == "proxy":
        assert 'href="/quarantine/sign-in/proxy"' in page
        return browser.get("/sign-in/proxy", headers={"X-Quarantine-User": who, "X-Quarantine-Secret": PROXY_SECRET})
    if method == "oidc":
        assert 'href="/quarantine/sign-in/oidc/company"' in page
        provider.claims["email"] = who
        start = browser.get("/sign-in/oidc/company").header("Location") or ""
        return browser.get(f"/sign-in/oidc/company/callback?{provider.authorize(start)}")
    if method == "password":
        form = browser.get(password_page(page)).text
        assert "the page that you opened is shown" in form
        typed = {"address": filled_in(form) if who == ALICE else who, "password": f"of {who.partition('@')[0]}"}
        assert browser.post("/sign-in/password", {**typed, "password": "wrong"}).status == 403
        return browser.post("/sign-in/password", typed)
    if who == ALICE:
        browser.post(link, {"pressed": "1"})
    else:
        browser.post("/sign-in", {"address": who})
    return browser.post(sent(site)[-1].link, {})


@pytest.mark.parametrize("method", METHODS)
def test_a_digests_links_lead_to_its_reader_alone_by_each_method(
    site: Site, held: Held, provider: FakeProvider, method: str
) -> None:
    show, mine = site.link(Action.SHOW, held), open_link(site)
    for browser in (site.browser(), site.signed_in(MALLORY)):
        answer = sign_in(site, browser, provider, method, show)
        assert (answer.status, answer.header("Location")) == (303, f"/quarantine/messages/{held.id}/")
        assert "the text of the message" in browser.follow(answer, "/").text
        site.pass_time(minutes=2)
    for link in (show, mine):
        browser = site.browser()
        answer = sign_in(site, browser, provider, method, link, BOB)
        page = browser.follow(answer, "/").text
        assert OF_ANOTHER in page and "Of Alice" not in page and f"Signed in as <bdi>{BOB}</bdi>" in page
    browser = site.browser()
    assert sign_in(site, browser, provider, method, mine).header("Location") == "/quarantine/"
    assert OF_ANOTHER not in browser.get("/").text and session_recipient(browser) == ALICE


def test_a_link_does_not_lead_somebody_else_to_their_own_copy_of_its_message(site: Site) -> None:
    held = site.hold(recipients=[ALICE, BOB], subject="For both")
    browser = site.browser()
    browser.get(site.link(Action.SHOW, held))
    answer = browser.post("/sign-in/password", {"address": BOB, "password": "of bob"})
    assert answer.header("Location") == "/quarantine/?link=other"


def test_a_digests_link_has_no_effect_after_its_reader_moved_on_or_signed_out(site: Site, held: Held) -> None:
    show = site.link(Action.SHOW, held)
    bob = site.browser()
    bob.post("/sign-in", {"address": BOB})
    form = password_page(bob.get(show).text)
    assert [filled_in(bob.get(page).text) for page in ("/sign-in", form)] == [BOB, ALICE]
    bobs = bob.follow(bob.get("/"), "/").text
    assert filled_in(bobs) == BOB and "the page that you opened is shown" not in bobs
    answer = bob.post("/sign-in/password", {"address": BOB, "password": "of bob"})
    assert answer.header("Location") == "/quarantine/"
    alice = site.browser()
    alice.get(show)
    alice.get("/")
    answer = alice.post("/sign-in/password", {"address": ALICE, "password": "of alice"})
    assert answer.header("Location") == "/quarantine/"
    for path, act in (("/sign-out", {}), ("/sessions", {"end": "all"}), ("/preferences", REVOKE)):
        browser = site.signed_in(BOB)
        browser.cookies["__Host-quarantine-address"] = bob.cookies["__Host-quarantine-address"]
        browser.get(show)
        browser.post(path, {"form_token": browser.form_token(), **act})
        assert browser.cookies == {} and filled_in(browser.get(form).text) == "", path


def test_the_methods_are_those_of_the_sign_in_page_in_its_order(
    make_parts: MakeParts, settings: dict[str, Any], site: Site, held: Held
) -> None:
    account, link = "your organization's account", "Send me a sign-in link"
    turned = {"oidc": dict(reversed(settings["oidc"].items()))}
    imap = {name: value for name, value in settings.items() if "imap" in name}
    off = {"sign_in__mailed_link": "false"}
    cases: list[tuple[dict[str, Any], list[str]]] = [
        (settings, [account, "Company", "Branch", "your password", link]),
        ({**imap, **turned, **off}, ["Branch", "Company", "your password"]),
        ({**imap, "oidc": {}}, ["your password", link]),
        ({**off, "oidc": {}}, [link]),
    ]
    for number, (chosen, expected) in enumerate(cases):
        other = Site(make_parts(**chosen))
        other.pass_time(hours=number)  # one mail a minute
        for url in (site.link(Action.SHOW, held), open_link(site)):
            other.pass_time(minutes=2)
            browser = other.browser()
            page = browser.get(url).text
            assert offered(page) == expected
            assert page.count('"button large main"') + page.count('"main large"') == 1
            browser.post(url, {"pressed": "1"})
            assert len(sent(other)) == expected.count(link)


def test_links_that_do_not_work_offer_nothing_and_scanners_are_not_signed_in(site: Site, held: Held) -> None:
    for good in (site.link(Action.SHOW, held), open_link(site)):
        scanner = site.browser()
        for method in ("HEAD", "GET", "GET"):
            assert scanner.request(method, f"{good}?next=//evil.example").status == 200
        scanner.post(good, {})
        assert session_recipient(scanner) is None
        altered = good.replace(good.rstrip("/")[-20:], "A" * 20)
        old = site.link(Action.SHOW, held, minutes_old=400 * 24 * 60)
        for bad in (altered, old, f"{good}%0d%0aSet-Cookie:x=y/", good.replace("/link/", "/link//evil.example/")):
            browser = site.browser()
            answer = browser.get(bad)
            assert answer.status in (303, 404, 410) and not offered(answer.text), bad
            assert browser.cookies == {} and "evil.example" not in (answer.header("Location") or "")
    site.store.recipients.revoke_links(ALICE, site.now)
    for revoked in (site.link(Action.SHOW, held, minutes_old=1), good):
        browser = site.browser()
        assert browser.get(revoked).status == 404 and browser.cookies == {}
    assert sent(site) == []
