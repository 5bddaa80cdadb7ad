"""After a session has ended: the page that was open before is shown again, and says that nothing was done."""

import html
import re
from urllib.parse import quote, urlencode

import pytest

from portal.assemble import Parts
from portal.model.message import State
from portal.stores.records import Held
from tests.builders import ALICE
from tests.web_client import Answer, Browser, Site

PROXY_BUFFER = 4096  # Nginx takes no longer head of an answer, by default
JAPANESE = "請求書のお知らせ"


@pytest.fixture
def site(parts: Parts) -> Site:
    return Site(parts)


def sign_in(site: Site, browser: Browser) -> Answer:
    """Sign in by the mailed link, and return the redirect to the page that was open before."""
    browser.post("/sign-in", {"address": ALICE})
    with site.store.outbox.sending(site.now) as mail:
        assert mail
        link = re.search(rb"/quarantine/sign-in/[\w-]+/", mail.mail.replace(b"=\r\n", b""))
    assert link
    return browser.post(link[0].decode(), {"pressed": "1"})


def opened_later(site: Site, browser: Browser, path: str) -> str:
    """Open a page after the session has ended, sign in, and return where that leads."""
    site.pass_time(days=2)
    answer = browser.get(path)
    assert answer.header("Location") == "/quarantine/sign-in?ended=yes"
    assert len("".join(f"{name}: {value}\r\n" for name, value in answer.headers)) < PROXY_BUFFER - 500
    return sign_in(site, browser).header("Location") or ""


@pytest.mark.parametrize(("rel", "subject"), [("prev", "pear a"), ("next", "pear c")])
def test_the_way_to_a_neighbour_goes_on(site: Site, rel: str, subject: str) -> None:
    held = {each: site.hold(subject=each) for each in ("pear c", "plum c", "pear b", "plum b", "pear a")}
    browser = site.signed_in(ALICE)
    page = browser.get(f"/messages/{held['pear b'].id}.0/?list=%3Fq%3Dpear").text
    link = re.search(rf'href="/quarantine([^"]+)" rel="{rel}"', page)
    assert link
    location = opened_later(site, browser, html.unescape(link[1]))
    assert f"<h1><bdi>{subject}</bdi></h1>" in browser.follow(browser.get(location), "/").text


@pytest.mark.parametrize("length", [1, 70, 130])
def test_a_message_of_a_list_with_a_long_search_is_opened_in_it(site: Site, length: int) -> None:
    words = (JAPANESE * 20)[:length]
    held, browser = site.hold(subject=words), site.signed_in(ALICE)
    path = f"/messages/{held.id}/?list={quote('?' + urlencode({'q': words}), safe='')}"
    location = opened_later(site, browser, path)
    assert f'<a href="/quarantine/?{urlencode({"q": words})}">' in browser.get(location).text


@pytest.mark.parametrize("typed", ["invoice*", "a-b_c.d~e f", "50% & more = +1", "from:alice@example.net '\"(x)"])
def test_a_search_that_a_browser_sends_is_opened_again(site: Site, typed: str) -> None:
    query = quote(typed, safe="*-._ ").replace(" ", "+")  # application/x-www-form-urlencoded of the URL Standard
    assert opened_later(site, site.signed_in(ALICE), f"/?q={query}") == f"/quarantine/?q={query}"


def test_of_an_address_that_is_too_long_the_page_is_opened(site: Site) -> None:
    held, browser = site.hold(), site.signed_in(ALICE)
    location = opened_later(site, browser, f"/messages/{held.id}/?list={'x' * 3000}")
    assert location == f"/quarantine/messages/{held.id}/"


@pytest.mark.parametrize("place", ["", "?q=offer", "?state=held&q=offer"])
@pytest.mark.parametrize("do", ["delete", "release", "block"])
def test_an_act_on_several_messages_does_nothing_and_says_so(site: Site, do: str, place: str) -> None:
    mails = [site.hold(subject=f"Offer {number}", header_from=f"a{number}@example.net") for number in range(2)]
    browser = site.signed_in(ALICE)
    form = {"form_token": browser.form_token(), "from": f"list{place}", "do": do, "mail": keys(mails)}
    site.pass_time(days=2)
    page = browser.follow(browser.post("/messages", form), "/").text
    assert "You were signed out, so nothing was changed." in page
    back = sign_in(site, browser)
    answer = browser.follow(back, "/")
    page = browser.follow(answer, "/").text
    assert "You were signed out, so nothing was changed." in page
    assert answer.header("Location") == f"/quarantine/{place}"
    assert (back.header("Location") or "").startswith(f"/quarantine/{place}")
    assert ('value="offer"' in page) == bool(place) and page.count('class="mail"') == 2
    assert {site.state(each) for each in mails} == {State.HELD}
    assert "You were signed out" not in browser.follow(answer, "/").text, "reloaded, or by a bookmark"


def test_the_page_of_a_message_says_once_that_nothing_was_done(site: Site) -> None:
    held, browser = site.hold(), site.signed_in(ALICE)
    form = {"form_token": browser.form_token(), "from": f"messages/{held.id}"}
    site.pass_time(days=2)
    browser.post(f"/messages/{held.id}/delete", form)
    answer = browser.follow(sign_in(site, browser), "/")
    assert answer.header("Location") == f"/quarantine/messages/{held.id}/"
    assert "You were signed out, so nothing was changed." in browser.follow(answer, "/").text
    assert "You were signed out" not in browser.follow(answer, "/").text
    assert site.state(held) is State.HELD


@pytest.mark.parametrize("name", ["x", "%0d%0aX:%20y", "several%3B"])
def test_an_address_with_another_name_says_nothing(site: Site, name: str) -> None:
    site.hold()
    browser = site.signed_in(ALICE)
    answer = browser.get(f"/?undone={name}&q=offer")
    assert answer.header("Location") == "/quarantine/?q=offer"
    assert "You were signed out" not in browser.follow(answer, "/").text


def keys(mails: list[Held]) -> str:
    return " ".join(f"{each.id}.0" for each in mails)
