"""Signing in by mail: one reply for all addresses, links and codes that work once, no session fixation."""

import base64
import email
import email.policy
import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from zoneinfo import ZoneInfo

import pytest

from portal.assemble import Parts
from portal.model.errors import StoreUnavailable
from portal.model.links import Action
from portal.model.message import Tier
from portal.model.schedule import Preferences
from portal.model.staff import EVERYWHERE, Grant, Role
from portal.stores import lifecycle
from portal.web.auth.client import client_name
from tests.builders import ALICE, BOB, BY_OPERATOR, MALLORY, digesting, prefer
from tests.conftest import MakeParts
from tests.statements import Statements
from tests.web_client import ORIGIN, Answer, Browser, Site

SESSION, BROWSER = "__Host-quarantine-session", "__Host-quarantine-browser"


@dataclass
class SignInMail:
    to: str
    link: str
    code: str


@pytest.fixture
def site(parts: Parts) -> Site:
    return Site(parts)


def sent(site: Site) -> list[SignInMail]:
    """Return the queued mails without the dummy ones."""
    found: list[SignInMail] = []
    while True:
        with site.store.outbox.sending(site.now) as waiting:
            if waiting is None:
                return found
            if not waiting.to:
                continue
            mail = email.message_from_bytes(waiting.mail, policy=email.policy.default)
            body = mail.get_body(("plain",))
            assert body is not None
            text = body.get_content().replace("\r\n", "\n")
            link = re.search(r"^http\S+/sign-in/\S+/$", text, re.MULTILINE)
            code = re.search(r"^(\d{4} \d{4})$", text, re.MULTILINE)
            assert link and code
            found.append(SignInMail(waiting.to, link[0], code[1]))


def request_sign_in(site: Site, browser: Browser, address: str = ALICE) -> SignInMail:
    browser.post("/sign-in", {"address": address})
    return sent(site)[-1]


def session_recipient(browser: Browser) -> str | None:
    page = browser.get("/")
    if page.status == 303:
        return None
    return re.search(r"Signed in as <bdi>(.*?)</bdi>", page.text)[1]  # type: ignore[index]


# ---- requesting a mail


def test_every_address_gets_the_same_answer(site: Site) -> None:
    answers: list[tuple[int, bytes, str | None, list[str]]] = []
    for address in (
        ALICE,
        "nobody@example.org",
        "x@elsewhere.example",
        "",
        "a b",
        "x" * 500,
        "\x00@example.org",
        "é@ü",
    ):
        browser = site.browser()
        browser.peer = f"192.0.2.{len(answers)}"
        answer = browser.post("/sign-in", {"address": address})
        answers.append((answer.status, answer.body, answer.header("Location"), sorted(answer.cookies())))
    assert set(map(str, answers)) == {
        str((303, b"", "/quarantine/sign-in/code", sorted([BROWSER, "__Host-quarantine-address"])))
    }


def test_only_local_addresses_are_mailed(site: Site) -> None:
    for address in (ALICE, "x@elsewhere.example", "alice@example.org@evil.example", "<alice@example.org>"):
        site.browser().post("/sign-in", {"address": address})
        site.pass_time(minutes=2)
    assert [mail.to for mail in sent(site)] == [ALICE]


def test_the_mail_goes_to_the_address_as_the_envelope_wrote_it(site: Site) -> None:
    site.hold(recipients=("Alice@Example.ORG",))
    assert request_sign_in(site, site.browser(), " ALICE@example.org ").to == "Alice@Example.ORG"


def test_an_answer_waits_so_that_its_time_says_nothing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """`tests/faults/test_timing.py` compares thousands of answers."""
    monkeypatch.setattr("portal.web.auth.mailed_link._ANSWER_SECONDS", 0.4)
    site.hold(recipients=(ALICE,))
    for address in (ALICE, ALICE, BOB, "x@elsewhere.example", "no address"):  # the second time beyond the limits
        began = time.monotonic()
        assert site.browser().post("/sign-in", {"address": address}).status == 303
        assert time.monotonic() - began >= 0.4


def test_requests_beyond_the_limits_are_dropped_in_silence(site: Site) -> None:
    answers = [site.browser().post("/sign-in", {"address": ALICE}).status for _ in range(3)]
    assert answers == [303] * 3
    assert len(sent(site)) == 1
    site.pass_time(seconds=61)
    site.browser().post("/sign-in", {"address": ALICE})
    assert len(sent(site)) == 1


@pytest.mark.parametrize(
    ("peers", "mails"),
    [
        ([f"2001:db8:1:2:{n:x}::1" for n in range(12)], 10),  # one IPv6 network, which may belong to a single host
        ([f"2001:db8:1:{n:x}::1" for n in range(12)], 12),
        ([f"{start}192.0.2.1" for start in ("", "::ffff:") for _ in range(6)], 10),
        ([f"192.0.2.{n}" for n in range(12)], 12),
        (["fe80::1%eth0"] * 12, 10),
        ([""] * 12, 10),  # a socket without a client address
    ],
    ids=["one-ipv6", "many-ipv6", "one-ipv4", "many-ipv4", "zone", "none"],
)
def test_a_client_is_counted_as_one_whichever_of_its_addresses_it_uses(
    site: Site, peers: list[str], mails: int
) -> None:
    for number, peer in enumerate(peers):
        browser = site.browser()
        browser.peer = peer
        browser.post("/sign-in", {"address": f"person{number}@example.org"})
    assert len(sent(site)) == mails


def test_requests_for_foreign_addresses_do_not_use_up_the_limits_of_ours(site: Site) -> None:
    for number in range(130):
        browser = site.browser()
        browser.peer = f"2001:db8:1:{number % 30:x}::1" if number % 2 else f"192.0.2.{number}"
        browser.post("/sign-in", {"address": f"person{number}@elsewhere.example"})
    browser = site.browser()
    browser.peer = "2001:db8:1:1::1"
    assert request_sign_in(site, browser).to == ALICE


def test_invented_addresses_do_not_keep_recipients_out(site: Site) -> None:
    site.hold(recipients=[ALICE])
    for number in range(130):
        browser = site.browser()
        browser.peer = f"192.0.2.{number}"
        browser.post("/sign-in", {"address": f"person{number}@example.org"})
    assert len(sent(site)) == 120
    assert request_sign_in(site, site.browser()).to == ALICE


def test_whoever_requests_sign_ins_for_somebody_cannot_keep_them_out(site: Site) -> None:
    newest: list[SignInMail] = []
    for number in range(90):  # each half minute, always from another client
        attacker = site.browser()
        attacker.peer = f"198.51.100.{number}"
        attacker.post("/sign-in", {"address": f"alice+{number % 3}@example.org" if number % 5 == 1 else ALICE})
        newest = [mail for mail in sent(site) if mail.to == ALICE] or newest
        site.pass_time(seconds=30)
        if number % 15 == 14:
            alice = site.browser()
            alice.post("/sign-in", {"address": ALICE})
            newest = sent(site) or newest
            alice.post(newest[-1].link, {"pressed": "1"})
            assert session_recipient(alice) == ALICE


def test_the_address_of_a_digests_link_is_filled_in_and_escaped(site: Site) -> None:
    page = site.browser().get("/sign-in?address=%22%3E%3Cscript%3E").text
    assert "&#34;&gt;&lt;script&gt;" in page


# ---- the link


def test_the_link_signs_in(site: Site) -> None:
    browser = site.browser()
    mail = request_sign_in(site, browser)
    page = browser.get(mail.link)
    assert "data-submit" in page.text
    assert ALICE in page.text
    assert session_recipient(browser) is None
    answer = browser.post(mail.link, {})
    assert answer.header("Location") == "/quarantine/"
    assert session_recipient(browser) == ALICE


def test_opening_the_link_uses_nothing_up(site: Site) -> None:
    browser = site.browser()
    mail = request_sign_in(site, browser)
    for method in ("GET", "HEAD", "GET"):
        answer = site.browser().request(method, mail.link)
        assert answer.status == 200
        assert not answer.cookies()
    browser.post(mail.link, {})
    assert session_recipient(browser) == ALICE


def test_another_browser_needs_a_press_on_a_button_that_names_the_address(site: Site) -> None:
    mail, other = request_sign_in(site, site.browser()), site.browser()
    page = other.get(mail.link).text
    assert "data-submit" not in page
    assert f"Sign in as <bdi>{ALICE}" in page
    other.post(mail.link, {})
    assert session_recipient(other) is None
    other.post(mail.link, {"pressed": "1"})
    assert session_recipient(other) == ALICE


def test_a_robot_that_presses_the_button_is_not_signed_in_and_uses_nothing_up(site: Site) -> None:
    browser, scanner = site.browser(), site.browser()
    mail = request_sign_in(site, browser)
    for marks in ({"Sec-CH-UA": '"Chromium";v="150"'}, {"User-Agent": "Mozilla/5.0 … Firefox/150.0"}):
        answer = scanner.post(mail.link, {"pressed": "1"}, headers=marks)
        assert (answer.status, answer.cookies()) == (403, {})
    answer = scanner.request("POST", mail.link, form={"pressed": "1"}, headers={"Origin": ORIGIN})
    assert answer.status == 403
    assert "Sign-in or newer browser required" in answer.text
    browser.post("/sign-in/code", {"code": mail.code})
    assert session_recipient(browser) == ALICE


def test_a_person_with_another_browser_is_signed_in_by_a_press(site: Site) -> None:
    mail, other = request_sign_in(site, site.browser()), site.browser()
    other.post(mail.link, {"pressed": "1"}, headers={"Sec-CH-UA": '"Chromium";v="150"', "Sec-Fetch-User": "?1"})
    assert session_recipient(other) == ALICE


def test_another_site_cannot_sign_anybody_in(site: Site) -> None:
    mail, victim = request_sign_in(site, site.browser(), MALLORY), site.browser()
    for headers in ({"Origin": "https://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}):
        assert victim.request("POST", mail.link, form={"pressed": "1"}, headers=headers).status == 403
        assert victim.request("POST", "/sign-in", form={"address": ALICE}, headers=headers).status == 403
        assert victim.request("POST", "/sign-in/code", form={"code": mail.code}, headers=headers).status == 403
    assert session_recipient(victim) is None


def test_the_link_works_once(site: Site) -> None:
    browser, late = site.browser(), site.browser()
    mail = request_sign_in(site, browser)
    browser.post(mail.link, {"pressed": "1"})
    assert late.post(mail.link, {"pressed": "1"}).status == 404
    page = late.get(mail.link)
    assert page.status == 404
    assert "This sign-in link is no longer valid" in page.text and "works once" in page.text
    assert session_recipient(late) is None
    assert browser.get(mail.link).header("Location") == "/quarantine/"


def test_the_link_works_for_a_quarter_of_an_hour(site: Site) -> None:
    browser = site.browser()
    mail = request_sign_in(site, browser)
    site.pass_time(minutes=16)
    assert browser.post(mail.link, {"pressed": "1"}).status == 404
    assert session_recipient(browser) is None


@pytest.mark.parametrize("token", ["A" * 32, "A" * 31, "..", "A" * 33])
def test_invented_links_are_refused(site: Site, token: str) -> None:
    for method in ("GET", "POST"):
        assert site.browser().request(method, f"/sign-in/{token}/", headers={"Origin": ORIGIN}).status == 404


def test_after_a_link_was_used_the_next_mail_is_sent_at_once(site: Site) -> None:
    for _ in range(3):
        browser = site.browser()
        browser.post(request_sign_in(site, browser).link, {})
        assert session_recipient(browser) == ALICE
    site.browser().post("/sign-in", {"address": ALICE})
    site.browser().post("/sign-in", {"address": ALICE})
    assert len(sent(site)) == 1


# ---- from a digest


def open_link(site: Site, recipient: str = ALICE) -> str:
    """Return the link *Open my quarantine* of a digest."""
    site.hold(recipients=[recipient])
    with digesting(site.store, recipient, site.now, 10, ignore_schedule=True) as digest:
        pass
    return site.parts.links.url(Action.OPEN, digest.id, 0, digest.issued_at)


def test_a_digests_show_leads_to_the_message_in_three_presses_without_an_address(site: Site) -> None:
    held = site.hold(recipients=[ALICE], data=b"Subject: x\r\n\r\nthe text of the message")
    show = site.link(Action.SHOW, held)
    browser = site.browser()
    assert "Send me a sign-in link" in browser.get(show).text
    answer = browser.post(show, {"pressed": "1"})
    assert answer.header("Location") == "/quarantine/sign-in/code"
    [mail] = sent(site)
    assert mail.to == ALICE
    for reader in (browser, site.browser()):  # also in the browser that the mail program opens
        reader.get(mail.link)
    answer = browser.post(mail.link, {})
    assert "the text of the message" in browser.follow(answer, "/").text
    assert browser.follow(browser.get(show), show).text.count("the text of the message") == 1


KNOWN = 'data-submit="now"'


def test_a_device_that_pressed_a_button_within_30_days_is_signed_in_at_once(site: Site) -> None:
    browser, other, held = site.browser(), site.browser(), site.hold(recipients=[ALICE])
    for each in (browser, other):  # the other one for another recipient
        recipient = ALICE if each is browser else BOB
        each.post(site.link(Action.RELEASE, site.hold(recipients=[recipient])), {"pressed": "1"})

    def request_by(browser: Browser) -> str:
        before = {mail.link for mail in sent(site)}
        browser.post(site.link(Action.SHOW, held), {"pressed": "1"})
        [link] = {mail.link for mail in sent(site)} - before
        return link

    site.pass_time(days=29)
    link = request_by(browser)
    scanner = Browser(site.app, {name: value for name, value in browser.cookies.items() if "browser" not in name})
    for _ in range(3):
        assert KNOWN in browser.get(link).text
        assert "data-submit" not in scanner.get(link).text, "with the device's cookie, without that of the sign-in"
        assert "data-submit" not in browser.get(link, headers={"Sec-Purpose": "prefetch;prerender"}).text
        assert scanner.post(link, {}).header("Location") == "./?done=1"
    answer = browser.post(link, {})
    assert answer.header("Location") == f"/quarantine/messages/{held.id}/", "nothing was used up by the others"
    browser.cookies.pop(SESSION)
    site.pass_time(days=2)
    page = browser.get(request_by(browser)).text
    assert "data-submit" in page and KNOWN not in page
    site.pass_time(minutes=15)
    page = other.get(request_by(other)).text
    assert "data-submit" in page and KNOWN not in page


def test_signing_out_everywhere_forgets_known_devices_for_signing_in(site: Site) -> None:
    browser = site.browser()
    browser.post(site.link(Action.RELEASE, site.hold(recipients=[ALICE])), {"pressed": "1"})
    assert KNOWN in browser.get(request_sign_in(site, browser).link).text
    site.pass_time(minutes=2)
    end(sign_in(site, FIREFOX), "all")
    site.pass_time(minutes=2)
    assert KNOWN not in browser.get(request_sign_in(site, browser).link).text


def test_the_pages_before_signing_in_say_what_will_happen(site: Site) -> None:
    browser, held = site.browser(), site.hold(recipients=[ALICE])
    assert f"The link is sent to <bdi>{ALICE}</bdi>." in browser.get(site.link(Action.SHOW, held)).text
    assert "the page that you opened is shown" in browser.get("/sign-in").text, "after signing in there, too"
    assert "the page that you opened" not in site.browser().get("/sign-in").text
    release = site.link(Action.RELEASE, held)
    message = re.search(r'href="/quarantine(/messages/[^"]*)">Read this message', browser.get(release).text)
    assert message
    page = browser.follow(browser.get(message[1]), "/").text
    assert "the page that you opened is shown" in page
    answer = browser.post(request_sign_in(site, browser).link, {})
    assert answer.header("Location") == f"/quarantine{message[1]}"


def test_a_digests_open_leads_to_the_list(site: Site) -> None:
    browser, link = site.browser(), open_link(site)
    assert "Send me a sign-in link" in browser.get(link).text
    browser.post(link, {"pressed": "1"})
    [mail] = sent(site)
    answer = browser.post(mail.link, {})
    assert answer.header("Location") == "/quarantine/"
    assert session_recipient(browser) == ALICE
    assert browser.get(link).header("Location") == "/quarantine/"
    assert "Send me a sign-in link" in site.signed_in(MALLORY).get(link).text


@pytest.mark.parametrize("named", [True, False])
def test_a_digests_similar_messages_are_shown_after_the_sign_in(site: Site, named: bool) -> None:
    held = site.hold(Tier.DANGEROUS, recipients=[ALICE])
    link = f"{open_link(site)}?like={held.id}.0{'' if named else 'x'}"
    place = f"/quarantine/?like={held.id}.0" if named else "/quarantine/"
    browser = site.browser()
    browser.get(link)
    browser.post(link, {"pressed": "1"})
    [mail] = sent(site)
    assert browser.post(mail.link, {}).header("Location") == place
    assert browser.get(link).header("Location") == place


@pytest.mark.parametrize("action", [Action.SHOW, Action.OPEN])
def test_whoever_has_a_digest_gets_the_sign_in_link_sent_to_its_recipient_only(site: Site, action: Action) -> None:
    link = open_link(site) if action is Action.OPEN else site.link(action, site.hold(recipients=[ALICE]))
    scanner, thief = site.browser(), site.signed_in(MALLORY)
    scanner.post(link, {})
    scanner.post(link, {"pressed": "1"}, headers={"Sec-CH-UA": '"Chromium";v="150"'})
    assert thief.request("POST", link, form={"pressed": "1"}, headers={"Origin": "https://evil.example"}).status == 403
    assert sent(site) == []
    for _ in range(3):
        thief.post(link, {"pressed": "1"})
    assert [mail.to for mail in sent(site)] == [ALICE]
    assert session_recipient(thief) == MALLORY
    site.store.recipients.revoke_links(ALICE, site.now + timedelta(seconds=1))
    assert site.browser().post(link, {"pressed": "1"}).status == 404


def test_the_typed_address_is_filled_in_when_another_mail_is_requested(site: Site) -> None:
    browser = site.browser()
    page = browser.follow(browser.post("/sign-in", {"address": ALICE}), "/").text
    assert ALICE in page and "one message a minute" in page
    assert f'value="{ALICE}"' in browser.get("/sign-in").text
    browser.post(sent(site)[-1].link, {})
    browser.post("/sign-out", {"form_token": browser.form_token()})
    assert ALICE not in browser.get("/sign-in").text


# ---- the code


def test_the_code_signs_in(site: Site) -> None:
    browser = site.browser()
    mail = request_sign_in(site, browser)
    browser.post("/sign-in/code", {"code": mail.code})
    assert session_recipient(browser) == ALICE
    assert BROWSER not in browser.cookies


def test_the_code_does_not_work_in_another_browser(site: Site) -> None:
    mail, other = request_sign_in(site, site.browser()), site.browser()
    assert other.post("/sign-in/code", {"code": mail.code}).status == 403
    other.peer = "192.0.2.99"
    other.post("/sign-in", {"address": MALLORY})
    assert other.post("/sign-in/code", {"code": mail.code}).status == 403
    assert session_recipient(other) is None


def test_five_wrong_codes_end_the_code_and_not_the_link(site: Site) -> None:
    browser = site.browser()
    mail = request_sign_in(site, browser)
    wrong = "0000 0000" if mail.code != "0000 0000" else "1111 1111"
    for _ in range(5):
        assert browser.post("/sign-in/code", {"code": wrong}).status == 403
    page = browser.post("/sign-in/code", {"code": mail.code})
    assert page.status == 403
    assert "This code is not valid. Open the link in the message, or request a new code." in page.text
    assert session_recipient(browser) is None
    browser.post(mail.link)
    assert session_recipient(browser) == ALICE


def test_many_wrong_codes_suspend_codes_and_alarm_the_administrator_once(
    make_parts: Callable[..., Parts], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "WRONG_CODES_OF_ALL_MAX", 8)
    site = Site(make_parts(mail__admin_address="postmaster@example.org"))
    alice, mallory = site.browser(), site.browser()
    mail = request_sign_in(site, alice)
    for _ in range(2):
        request_sign_in(site, mallory, MALLORY)
        for _ in range(5):
            assert mallory.post("/sign-in/code", {"code": "wrong"}).status == 403
        site.pass_time(minutes=2)
    for _ in range(3):
        assert alice.post("/sign-in/code", {"code": mail.code}).status == 403
    with site.store.outbox.sending(site.now) as alarm:
        assert alarm and alarm.to == "postmaster@example.org"
        assert b"guessing sign-in codes" in alarm.mail
    assert site.store.stats(site.now).mails_waiting == 0
    alice.post(mail.link)
    assert session_recipient(alice) == ALICE


def test_requesting_again_in_the_same_browser_keeps_the_first_mail_valid(site: Site) -> None:
    browser = site.browser()
    mail = request_sign_in(site, browser)
    browser.post("/sign-in", {"address": ALICE})  # dropped, since it comes within a minute
    browser.post("/sign-in/code", {"code": mail.code})
    assert session_recipient(browser) == ALICE


# ---- sessions


def test_a_session_gets_a_new_name_whatever_the_browser_brought(site: Site) -> None:
    browser = site.browser()
    browser.cookies[SESSION] = "planted"
    mail = request_sign_in(site, browser)
    line = browser.post(mail.link, {}).cookies()[SESSION]
    assert browser.cookies[SESSION] != "planted"
    for attribute in ("path=/", "secure", "httponly", "samesite=lax"):
        assert attribute in line.lower()
    thief = site.browser()
    thief.cookies[SESSION] = "planted"
    assert session_recipient(thief) is None


def test_signing_in_again_ends_the_session_before(site: Site) -> None:
    browser, old = site.signed_in(MALLORY), site.browser()
    old.cookies = dict(browser.cookies)
    browser.post(request_sign_in(site, browser).link, {"pressed": "1"})
    assert session_recipient(browser) == ALICE
    assert session_recipient(old) is None


def test_signing_out_ends_the_session(site: Site) -> None:
    browser, copy = site.signed_in(ALICE), site.browser()
    copy.cookies = dict(browser.cookies)
    browser.post("/sign-out", {"form_token": browser.form_token()})
    assert SESSION not in browser.cookies
    assert session_recipient(copy) is None


def test_another_site_cannot_sign_out(site: Site) -> None:
    browser = site.signed_in(ALICE)
    token = browser.form_token()
    assert (
        browser.request(
            "POST", "/sign-out", form={"form_token": token}, headers={"Origin": "https://evil.example"}
        ).status
        == 403
    )
    assert browser.post("/sign-out", {"form_token": "wrong"}).status == 403
    assert session_recipient(browser) == ALICE


def test_a_page_of_an_earlier_session_does_not_pretend_to_sign_out(site: Site) -> None:
    browser = site.signed_in(ALICE)
    token = browser.form_token()  # from a page in another tab
    browser.post(request_sign_in(site, browser).link)
    copy = site.browser()
    copy.cookies = dict(browser.cookies)
    answer = browser.post("/sign-out", {"form_token": token})
    assert (answer.status, answer.cookies()) == (403, {})
    assert "from an earlier session" in answer.text
    browser.post("/sign-out", {"form_token": browser.form_token()})
    assert session_recipient(copy) is None
    assert browser.post("/sign-out", {"form_token": token}).header("Location") == "/quarantine/sign-in"


def test_a_session_ends_unused(site: Site) -> None:
    browser = site.signed_in(ALICE)
    site.pass_time(hours=11)
    assert session_recipient(browser) == ALICE
    site.pass_time(hours=13)
    assert session_recipient(browser) is None


FIREFOX = "Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:145.0) Gecko/20100101 Firefox/145.0"
IPHONE = (
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.5 "
    "Mobile/15E148 Safari/604.1"
)


def sign_in(site: Site, user_agent: str) -> Browser:
    """Sign Alice in with another browser."""
    browser = site.browser()
    site.pass_time(minutes=2)
    mail = request_sign_in(site, browser)
    browser.post(mail.link, {}, headers={"User-Agent": user_agent})
    assert session_recipient(browser) == ALICE
    return browser


def session_names(page: str) -> list[str]:
    return re.findall(r'name="session" value="([0-9a-f]{64})"', page)


def end(browser: Browser, what: str, **more: str) -> Answer:
    return browser.post("/sessions", {"end": what, "form_token": browser.form_token(), **more})


def revoke(browser: Browser, **more: str) -> Answer:
    return browser.post("/preferences", {"change": "revoke", "form_token": browser.form_token(), **more})


def test_the_page_lists_the_browsers_that_are_signed_in(site: Site) -> None:
    here, phone = sign_in(site, FIREFOX), sign_in(site, IPHONE)
    site.signed_in(MALLORY)
    site.pass_time(minutes=5)
    phone.get("/")
    assert 'href="/quarantine/sessions"' in here.get("/preferences").text
    page = here.get("/sessions").text
    assert page.index("Firefox · Windows</bdi> (this browser)") < page.index("Safari · iPhone")  # this one first
    assert len(session_names(page)) == 2
    assert "Safari · iPhone</bdi> (this browser)" in phone.get("/sessions").text
    assert "Unknown browser</bdi> (this browser)" in sign_in(site, "<script>").get("/sessions").text


def test_sessions_are_listed_in_the_zone_and_language_of_their_recipient(site: Site) -> None:
    here = sign_in(site, FIREFOX)
    prefer(site.store, ALICE, Preferences(timezone="Asia/Kathmandu", language="de"))
    page = here.get("/sessions").text
    assert f"{site.now.astimezone(ZoneInfo('Asia/Kathmandu')):%H:%M}" in page
    assert "Angemeldete Browser" in page


def test_a_browser_is_signed_out_from_another_one(site: Site) -> None:
    here, phone, other = sign_in(site, FIREFOX), sign_in(site, IPHONE), site.signed_in(MALLORY)
    site.pass_time(minutes=5)
    name = session_names(phone.get("/sessions").text)[0]
    answer = end(here, "one", session=name)
    assert "That browser is signed out." in here.follow(answer, "/sessions").text
    assert session_recipient(phone) is None
    assert session_recipient(here) == ALICE
    theirs = session_names(other.get("/sessions").text)[0]
    for wrong in (theirs, name, "", "x", "0" * 64, "é"):
        assert end(here, "one", session=wrong).status == 303
    assert session_recipient(other) == MALLORY
    assert session_recipient(here) == ALICE


def test_ending_this_browsers_own_session_leads_to_the_sign_in_page(site: Site) -> None:
    here = sign_in(site, FIREFOX)
    answer = end(here, "one", session=session_names(here.get("/sessions").text)[0])
    assert answer.header("Location") == "/quarantine/sign-in"
    assert SESSION not in here.cookies


def test_all_other_browsers_are_signed_out(site: Site) -> None:
    here = sign_in(site, FIREFOX)
    assert "all other browsers" not in here.get("/sessions").text
    phone, other = sign_in(site, IPHONE), site.signed_in(MALLORY)
    assert "Sign out all other browsers" in here.get("/sessions").text
    page = here.follow(end(here, "others"), "/sessions").text
    assert "All other browsers are signed out." in page
    assert len(session_names(page)) == 1
    assert [session_recipient(each) for each in (here, phone, other)] == [ALICE, None, MALLORY]
    assert end(here, "nonsense").status == 400


def test_signing_out_everywhere_ends_all_sessions_of_this_recipient(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "quarantine")
    here, phone, other = sign_in(site, FIREFOX), sign_in(site, IPHONE), site.signed_in(MALLORY)
    stolen = site.browser()
    stolen.cookies = dict(here.cookies)
    answer = end(here, "all")
    assert (answer.status, answer.header("Location")) == (303, "/quarantine/sign-in")
    assert SESSION not in here.cookies
    assert [session_recipient(each) for each in (here, phone, stolen, other)] == [None, None, None, MALLORY]
    assert f"sessions ended recipient={ALICE} count=2" in caplog.text


@pytest.mark.parametrize("way", ["all", "others", "revoke"])
def test_signing_out_everywhere_forgets_the_browsers_in_which_a_button_was_pressed(site: Site, way: str) -> None:
    elsewhere, here = site.browser(), sign_in(site, FIREFOX)
    elsewhere.post(site.link(Action.RELEASE, site.hold()), {"pressed": "1"})
    site.pass_time(seconds=2)
    assert " data-submit" in elsewhere.get(site.link(Action.RELEASE, site.hold(), minutes_old=0)).text
    if way == "revoke":
        revoke(here, **{"sign-out": "1"})
    else:
        end(here, way)
    site.pass_time(seconds=2)
    link = site.link(Action.RELEASE, site.hold(), minutes_old=0)
    assert " data-submit" not in elsewhere.get(link).text
    elsewhere.post(link, {"pressed": "1"})
    site.pass_time(seconds=2)
    assert " data-submit" in elsewhere.get(site.link(Action.RELEASE, site.hold(), minutes_old=0)).text


def test_revoking_the_links_ends_the_sessions_if_asked(site: Site) -> None:
    here, phone = sign_in(site, FIREFOX), sign_in(site, IPHONE)
    link = site.link(Action.RELEASE, site.hold(), minutes_old=1)
    revoke(here)
    assert [session_recipient(each) for each in (here, phone)] == [ALICE, ALICE]
    answer = revoke(here, **{"sign-out": "1"})
    assert answer.status == 200
    assert "Links revoked" in answer.text
    assert "Signed in as" not in answer.text
    assert [session_recipient(each) for each in (here, phone)] == [None, None]
    assert site.browser().get(link).status == 404


def test_sessions_cannot_be_ended_from_another_site_or_by_a_digests_link(site: Site) -> None:
    here = sign_in(site, FIREFOX)
    name, token = session_names(here.get("/sessions").text)[0], here.form_token()
    site.hold()
    with digesting(site.store, ALICE, site.now, 10, ignore_schedule=True) as digest:
        pass
    link = site.parts.links.url(Action.PREFERENCES, digest.id, 0, digest.issued_at)
    page = site.browser().get(link).text
    assert "signed out" not in page
    assert not re.search("sign out|signed-in", page, re.IGNORECASE)
    for what in ("one", "others", "all"):
        form = {"end": what, "session": name}
        evil = {"Origin": "https://evil.example"}
        assert here.request("POST", "/sessions", form={**form, "form_token": token}, headers=evil).status == 403
        assert here.post("/sessions", form).status == 403
        assert site.browser().post(link, form).status == 400
    assert site.browser().post(link, {"change": "revoke", "sign-out": "1"}).status == 200
    assert session_recipient(here) == ALICE


def test_without_its_store_the_page_says_so(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    here = sign_in(site, FIREFOX)
    token = here.form_token()

    def unavailable(*_: object) -> None:
        raise StoreUnavailable("the database is down")

    monkeypatch.setattr(site.store.sign_ins, "sessions", unavailable)
    monkeypatch.setattr(site.store.sign_ins, "end_sessions", unavailable)
    for answer in (here.get("/sessions"), here.post("/sessions", {"end": "all", "form_token": token})):
        assert answer.status == 503
        assert "temporarily unavailable" in answer.text
    assert SESSION in here.cookies


def test_a_page_reads_the_session_once_and_writes_nothing(
    make_parts: Callable[..., Parts], monkeypatch: pytest.MonkeyPatch
) -> None:
    statements = Statements(monkeypatch)
    site = Site(make_parts())
    here = sign_in(site, FIREFOX)
    with statements.of() as queries:
        here.get("/")
    assert sum("from session s left join recipient" in each for each in queries) == 1
    assert not [each for each in queries if re.match(r"\s*(insert|update|delete)\b", each, re.IGNORECASE)]


@pytest.mark.parametrize(
    ("user_agent", "name"),
    [
        (FIREFOX, "Firefox · Windows"),
        (IPHONE, "Safari · iPhone"),
        ("Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.5 "
         "Safari/605.1.15", "Safari · macOS"),
        ("Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36",
         "Chrome · Linux"),
        ("Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 "
         "Safari/537.36 Edg/142.0.0.0", "Edge · Windows"),
        ("Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) SamsungBrowser/28.0 "
         "Chrome/130.0.0.0 Mobile Safari/537.36", "Samsung Internet · Android"),
        ("Mozilla/5.0 (X11; CrOS x86_64 14541.0.0) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 "
         "Safari/537.36 OPR/120.0.0.0", "Opera · ChromeOS"),
        ("Mozilla/5.0 (iPad; CPU OS 18_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) CriOS/142.0.0.0 "
         "Mobile/15E148 Safari/604.1", "Chrome · iPad"),
        ("Mozilla/5.0 (Windows NT 10.0) Something/1.0", "Windows"),
        ("curl/8.5.0", ""),
        ("", ""),
    ],
)  # fmt: skip
def test_the_name_of_a_browser(user_agent: str, name: str) -> None:
    assert client_name(user_agent) == name


def test_cookies_are_plain_where_browsers_drop_secure_ones(make_parts: object) -> None:
    site = Site(make_parts(public_url="http://mail.example.org/quarantine"))  # type: ignore[operator]
    answer = site.browser().request(
        "POST", "/sign-in", form={"address": ALICE}, headers={"Origin": "http://mail.example.org"}
    )
    line = answer.cookies()["quarantine-browser"]
    assert "secure" not in line.lower()
    assert "httponly" in line.lower()


def test_an_odd_cookie_of_a_neighbour_does_not_sign_out(site: Site) -> None:
    browser = site.signed_in(ALICE)
    cookies = "; ".join(f"{name}={value}" for name, value in browser.cookies.items())
    browser.cookies = {}
    page = browser.get("/", headers={"Cookie": f'prefs={{"a": [1]}}; x="; bad name=1; {cookies}'})
    assert page.status == 200


# ---- the page that was meant


@pytest.mark.parametrize(
    "path",
    [
        "/rules",
        "/preferences",
        "/preferences/digest?as=text",
        "/messages/{}/",
        "/messages/{}.0/",
        "/messages/{}/sender",
        "/?state=held&q=offer+more",
        "/messages/{}/?list=state%3Dheld",
    ],
)
def test_signing_in_leads_to_the_page_that_was_opened(site: Site, path: str) -> None:
    held, browser = site.hold(recipients=[ALICE]), site.browser()
    browser.get(path.format(held.id))
    answer = browser.post(request_sign_in(site, browser).link, {})
    assert answer.header("Location") == f"/quarantine{path.format(held.id)}"
    assert browser.follow(answer, "/").status == 200


@pytest.mark.parametrize(
    "value",
    [
        "",
        "//evil.example",
        "\\\\evil.example",
        "javascript:alert(1)",
        f"/rules%0d%0aSet-Cookie:x {ALICE}",
        f"//evil.example {ALICE}",
        pytest.param("/?" + "x" * 3000, id="long"),
        "https://evil.example",
        "/sign-out",
        "/messages/x/",
        "/rules/../sign-out",
        "/?\r\nSet-Cookie: x=y",
        "rules",
        "%2frules",
        "é",
    ],
)
def test_a_cookie_of_another_site_leads_to_no_other_page(site: Site, value: str) -> None:
    browser = site.browser()
    browser.cookies["__Host-quarantine-destination"] = base64.urlsafe_b64encode(value.encode()).decode().rstrip("=")
    mail = request_sign_in(site, browser)
    assert browser.post(mail.link, {}).header("Location") == "/quarantine/"


def test_only_pages_are_remembered(site: Site) -> None:
    browser = site.browser()
    for path in ("/", "/?'", "/?" + "x" * 5000, "/link/x/", "/healthz"):
        browser.get(path)
    assert browser.cookies == {}


def test_without_mailed_links_the_page_offers_none_and_no_mail_is_sent(make_parts: MakeParts) -> None:
    site = Site(make_parts(sign_in__mailed_link="false"))
    browser = site.browser()
    assert "<form" not in browser.get("/sign-in").text
    assert browser.post("/sign-in", {"address": ALICE}).header("Location") == "/quarantine/sign-in"
    assert sent(site) == []


def test_sign_in_requests_take_the_same_statements_whoever_is_known(
    make_parts: MakeParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each takes some of the time of the answer, which must not say who is known."""
    statements = Statements(monkeypatch)
    site = Site(make_parts())
    site.hold(recipients=(ALICE,))
    site.store.staff.give(Grant(MALLORY, Role.ADMINISTRATOR, EVERYWHERE, site.now, BY_OPERATOR))
    sent = {}
    for address in (ALICE, MALLORY, "nobody@example.org", "x@elsewhere.example"):
        site.pass_time(minutes=11)
        with statements.of() as found:
            assert site.browser().post("/sign-in", {"address": address}).status == 303
        sent[address] = [re.split(r"[^a-z_]", each.lower(), maxsplit=1)[0] for each in found]
    assert len(sent[ALICE]) > 2 and list(sent.values()) == [sent[ALICE]] * 4, sent
