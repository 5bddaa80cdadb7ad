"""The links of a digest: opening changes nothing, a press acts, and only some pages submit themselves."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from urllib.parse import unquote
from uuid import UUID

import pytest

from portal.assemble import Parts
from portal.model.errors import RelayRefused
from portal.model.links import Action
from portal.model.message import DeliveryId, EventKind, Start, State, Symbol, Tier
from portal.stores.records import Held
from tests.builders import ALICE, BOB, BY_OPERATOR, MALLORY, digesting, rule
from tests.moving.test_copy import damage, lose
from tests.smtp_server import SmtpServer, nobody_listens
from tests.web_client import ORIGIN, Answer, Browser, Site

OLD = 11  # minutes: beyond links.autosubmit_after_minutes
PRESS = {"pressed": "1"}


@pytest.fixture
def relay() -> Iterator[SmtpServer]:
    with SmtpServer() as server:
        yield server


@pytest.fixture
def site(make_parts: Callable[..., Parts], relay: SmtpServer) -> Site:
    return Site(make_parts(relay__url=relay.url, mail__admin_address="postmaster@example.org"))


@pytest.fixture
def held(site: Site) -> Held:
    return site.hold()


def submits_itself(page: str) -> bool:
    assert ("data-submit" in page) == ("link.js" in page)
    return "data-submit" in page


def known_browser(site: Site) -> Browser:
    """Return a browser in which a button was pressed for Alice before."""
    browser = site.browser()
    browser.post(site.link(Action.DELETE, site.hold()), PRESS)
    assert "__Host-quarantine-device" in browser.cookies
    return browser


# ---- opening


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("action", [Action.RELEASE, Action.DELETE, Action.REQUEST])
def test_opening_a_link_changes_nothing(site: Site, held: Held, relay: SmtpServer, method: str, action: Action) -> None:
    before = (site.delivery(held), site.history(held))
    answer = site.browser().request(method, site.link(action, held, minutes_old=OLD))
    assert answer.status == 200
    assert (site.delivery(held), site.history(held)) == before
    assert not relay.mails
    assert not answer.cookies()
    assert (answer.body == b"") == (method == "HEAD")


def test_the_page_says_who_what_when_and_why(site: Site, held: Held) -> None:
    page = site.browser().get(site.link(Action.RELEASE, held)).text
    for words in ("promo@example.net", "Offer", "Release to inbox", "resembles known spam", ALICE):
        assert words in page
    assert BOB not in page
    assert page.count("<form") == 1


# ---- pressing


def test_a_press_releases_to_this_recipient_alone(site: Site, held: Held, relay: SmtpServer) -> None:
    browser, link = site.browser(), site.link(Action.RELEASE, held)
    answer = browser.post(link, PRESS)
    assert answer.header("Location") == "./?done=1"
    page = browser.follow(answer, link).text
    assert "Message released" in page
    assert "<form" not in page
    assert [mail.recipients for mail in relay.mails] == [[ALICE]]
    assert site.state(held) is State.RELEASED
    assert site.state(held, 1) is State.HELD


def test_only_a_press_sets_the_device_cookie(site: Site) -> None:
    browser = site.browser()
    answer = browser.post(site.link(Action.RELEASE, site.hold(), minutes_old=OLD), {})
    assert answer.status == 303
    assert not answer.cookies()
    line = browser.post(site.link(Action.RELEASE, site.hold()), PRESS).cookies()["__Host-quarantine-device"]
    for attribute in ("Path=/", "Secure", "HttpOnly", "SameSite=lax"):
        assert attribute.lower() in line.lower()
    assert "domain" not in line.lower()


def test_releasing_twice_shows_what_happened_before(site: Site, held: Held, relay: SmtpServer) -> None:
    browser, link = site.browser(), site.link(Action.RELEASE, held)
    browser.post(link, PRESS)
    again = browser.follow(browser.post(link, PRESS), link)
    assert "Released on" in again.text
    assert len(relay.mails) == 1


def test_a_deletion_offers_undo(site: Site, held: Held) -> None:
    browser, link = site.browser(), site.link(Action.DELETE, held)
    page = browser.follow(browser.post(link, PRESS), link).text
    assert site.state(held) is State.DELETED
    assert 'name="undo"' in page
    page = browser.follow(browser.post(link, {"undo": "1"}), link).text
    assert site.state(held) is State.HELD
    result = page.partition('role="status"')[2].partition("</div>")[0]
    assert "Deletion undone. The message is held again." in result
    assert "Delete this message?" not in page and "<form" not in page
    page = browser.get(link).text
    assert "Delete this message?" in page and "Deletion undone" not in page


def test_the_result_of_a_link_is_announced(site: Site, held: Held) -> None:
    browser = site.browser()
    for action, words in ((Action.DELETE, "Deleted on"), (Action.RELEASE, "the message was deleted on")):
        link = site.link(action, held)
        page = browser.follow(browser.post(link, PRESS), link).text
        assert words in page.partition('role="status"')[2].partition("</div>")[0]


def test_a_caution_about_the_sender_stands_above_the_button_also_if_it_is_a_reason(site: Site) -> None:
    held = site.hold(header_from='"pat@bank.example" <x@example.net>', symbols=(Symbol("SPOOF_DISPLAY_NAME", 8.0),))
    page = site.browser().get(site.link(Action.RELEASE, held)).text
    assert "Caution: The display name shows" in page[: page.index("Release to inbox")].replace("\n", " ")


def test_an_undo_after_the_message_was_released_says_so(site: Site, held: Held) -> None:
    browser, link = site.browser(), site.link(Action.DELETE, held)
    browser.post(link, PRESS)
    site.parts.actions.release(held.id, 0, BY_OPERATOR, operator=True)
    page = browser.follow(browser.post(link, {"undo": "1"}), link).text
    assert "Not changed: the message was released on" in page


def test_the_undo_of_a_blocked_message_says_that_it_is_blocked(site: Site) -> None:
    held = site.hold(recipients=(ALICE,), starts={ALICE: Start(State.BLOCKED, rule("example.net").as_actor)})
    browser, link = site.browser(), site.link(Action.DELETE, held)
    browser.post(link, PRESS)
    assert site.state(held) is State.DELETED
    page = browser.follow(browser.post(link, {"undo": "1"}), link).text
    assert "Deletion undone." in page and "Blocked on" in page and "Release requested" not in page


def test_a_release_link_does_not_undo_a_deletion(site: Site, held: Held, relay: SmtpServer) -> None:
    browser = site.browser()
    browser.post(site.link(Action.DELETE, held), PRESS)
    link = site.link(Action.RELEASE, held)
    page = browser.follow(browser.post(link, {**PRESS, "undo": "1"}), link).text
    assert site.state(held) is State.DELETED
    assert "sign in" in page
    assert not relay.mails


def test_dangerous_mail_can_only_be_requested(site: Site, relay: SmtpServer) -> None:
    held = site.hold(Tier.DANGEROUS)
    browser, release, request = known_browser(site), site.link(Action.RELEASE, held), site.link(Action.REQUEST, held)
    assert "<form" not in browser.get(release).text
    page = browser.follow(browser.post(release, PRESS), release).text
    assert "administrator" in page
    assert site.state(held) is State.HELD
    assert "Release requested on" in browser.follow(browser.post(request, PRESS), request).text
    assert site.state(held) is State.REQUESTED
    browser.post(release, PRESS)
    assert not relay.mails


def test_a_declined_request_says_why(site: Site) -> None:
    held = site.hold(Tier.DANGEROUS)
    link = site.link(Action.REQUEST, held)
    site.browser().post(link, PRESS)
    site.parts.actions.refuse_request(held.id, 0, BY_OPERATOR, "it is a virus")
    page = site.browser().get(link).text
    assert "Your administrator denied the release request on" in page
    assert "it is a virus" in page


def test_a_release_that_the_mail_server_refused_is_not_called_declined(site: Site, relay: SmtpServer) -> None:
    held = site.hold(Tier.DANGEROUS)
    link = site.link(Action.REQUEST, held)
    site.browser().post(link, PRESS)
    relay.script["RCPT"] = "550 5.1.1 no such user"
    with pytest.raises(RelayRefused):
        site.parts.actions.release(held.id, 0, BY_OPERATOR, operator=True)
    page = site.browser().get(link).text
    assert "The last release failed" in page
    assert "no such user" in page
    assert "denied" not in page


def test_a_busy_mail_server_means_on_its_way(make_parts: Callable[..., Parts]) -> None:
    site = Site(make_parts(relay__url=nobody_listens()))
    held = site.hold()
    browser, link = site.browser(), site.link(Action.RELEASE, held)
    page = browser.follow(browser.post(link, PRESS), link).text
    assert "retried automatically" in page
    assert "<form" not in page
    assert site.state(held) is State.RELEASING


def test_a_refusing_mail_server_is_quoted_and_nothing_loops(site: Site, held: Held, relay: SmtpServer) -> None:
    relay.script["RCPT"] = "550 5.1.1 no such <b>user</b>"
    browser, link = known_browser(site), site.link(Action.RELEASE, held, minutes_old=OLD)
    page = browser.follow(browser.post(link, {}), link).text
    assert "no such &lt;b&gt;user" in page
    assert site.state(held) is State.HELD
    assert not submits_itself(page)
    assert not submits_itself(browser.get(link).text)


# ---- pages that submit themselves


def test_a_fresh_digest_waits_for_a_press(site: Site, held: Held, relay: SmtpServer) -> None:
    link = site.link(Action.RELEASE, held, minutes_old=9)
    browser = site.browser()
    assert not submits_itself(browser.get(link).text)
    page = browser.follow(browser.post(link, {}), link)
    assert site.state(held) is State.HELD
    assert "Release to inbox" in page.text
    assert not relay.mails


def test_an_older_digest_acts_on_one_click(site: Site, held: Held, relay: SmtpServer) -> None:
    link, browser = site.link(Action.RELEASE, held, minutes_old=OLD), site.browser()
    assert submits_itself(browser.get(link).text)
    site.pass_time(seconds=2)
    page = browser.follow(browser.post(link, {}), link).text
    assert site.state(held) is State.RELEASED
    assert not submits_itself(page)
    assert len(relay.mails) == 1


def test_a_known_browser_acts_on_one_click_at_once(site: Site, held: Held) -> None:
    link, browser = site.link(Action.RELEASE, held), known_browser(site)
    assert submits_itself(browser.get(link).text)
    browser.post(link, {})
    assert site.state(held) is State.RELEASED


def test_a_browser_known_for_somebody_else_is_not_known(site: Site, held: Held) -> None:
    link, browser = site.link(Action.RELEASE, held, number=1), known_browser(site)
    assert not submits_itself(browser.get(link).text)
    browser.post(link, {})
    assert site.state(held, 1) is State.HELD


def test_a_forged_device_cookie_is_ignored(site: Site, held: Held) -> None:
    browser = known_browser(site)
    value = browser.cookies["__Host-quarantine-device"]
    for forged in (value[:-2] + "AA", value.split(".")[0], "", "é"):
        browser.cookies["__Host-quarantine-device"] = forged
        assert not submits_itself(browser.get(site.link(Action.RELEASE, held)).text)


def test_automatic_deletion_needs_a_known_browser(site: Site, held: Held) -> None:
    link = site.link(Action.DELETE, held, minutes_old=OLD)
    stranger = site.browser()
    assert not submits_itself(stranger.get(link).text)
    stranger.post(link, {})
    assert site.state(held) is State.HELD
    known = known_browser(site)
    assert submits_itself(known.get(link).text)
    known.post(link, {})
    assert site.state(held) is State.DELETED


@pytest.mark.parametrize(
    ("action", "tier"),
    [
        (Action.RELEASE, Tier.SUSPICIOUS),
        (Action.RELEASE, Tier.DANGEROUS),
        (Action.REQUEST, Tier.SPAM),
        (Action.REQUEST, Tier.DANGEROUS),
    ],
)
def test_these_never_submit_themselves(site: Site, action: Action, tier: Tier) -> None:
    held = site.hold(tier)
    link, browser = site.link(action, held, minutes_old=OLD), known_browser(site)
    assert not submits_itself(browser.get(link).text)
    browser.post(link, {})
    assert site.state(held) is State.HELD


def test_a_prefetched_page_does_not_submit_itself(site: Site, held: Held) -> None:
    link = site.link(Action.RELEASE, held, minutes_old=OLD)
    page = site.browser().get(link, headers={"Sec-Purpose": "prefetch;prerender"})
    assert not submits_itself(page.text)


def test_a_site_may_always_require_buttons(make_parts: Callable[..., Parts]) -> None:
    site = Site(make_parts(links__confirm="button"))
    held = site.hold()
    browser, link = known_browser(site), site.link(Action.RELEASE, held, minutes_old=OLD)
    assert not submits_itself(browser.get(link).text)
    browser.post(link, {})
    assert site.state(held) is State.HELD


@pytest.mark.parametrize("state", [State.RELEASED, State.DELETED, State.REQUESTED])
def test_only_held_mail_can_submit_itself(site: Site, held: Held, state: State) -> None:
    site.store.deliveries.move(
        DeliveryId(held.id, 0), state, {State.HELD}, BY_OPERATOR, site.now, kind=EventKind(state.value)
    )
    for action in (Action.RELEASE, Action.DELETE, Action.REQUEST):
        assert not submits_itself(known_browser(site).get(site.link(action, held, minutes_old=OLD)).text)


# ---- bursts, as scanners make them


def test_three_links_of_a_digest_within_ten_seconds_need_buttons_for_a_quarter_of_an_hour(site: Site) -> None:
    issued_at = site.now - timedelta(minutes=OLD)
    mails = [site.hold() for _ in range(4)]
    links = [site.parts.links.url(Action.RELEASE, held.id, 0, issued_at) for held in mails]
    scanner = site.browser()
    pages = []
    for link in links[:3]:
        pages.append(submits_itself(scanner.get(link).text))
        site.pass_time(seconds=3)
    assert pages == [True, True, False]
    # The permission of the first pages is withdrawn before their scripts can use it.
    for held, link in zip(mails, links, strict=True):
        scanner.post(link, {})
        assert site.state(held) is State.HELD
    site.pass_time(minutes=14)
    assert not submits_itself(scanner.get(links[3]).text)
    site.pass_time(minutes=2)
    assert submits_itself(scanner.get(links[0]).text)


def test_two_openings_of_one_link_within_ten_seconds_need_a_button(site: Site, held: Held) -> None:
    link, browser = site.link(Action.RELEASE, held, minutes_old=OLD), site.browser()
    assert submits_itself(browser.get(link).text)
    site.pass_time(seconds=9)
    assert not submits_itself(browser.get(link).text)


def test_release_and_delete_link_of_one_mail_are_one_delivery(site: Site, held: Held) -> None:
    browser = site.browser()
    browser.get(site.link(Action.DELETE, held, minutes_old=OLD))
    assert not submits_itself(browser.get(site.link(Action.RELEASE, held, minutes_old=OLD)).text)


def test_a_person_who_releases_one_mail_after_the_other_needs_no_buttons(site: Site) -> None:
    issued_at, browser = site.now - timedelta(minutes=OLD), site.browser()
    for _ in range(6):
        held = site.hold()
        link = site.parts.links.url(Action.RELEASE, held.id, 0, issued_at)
        assert submits_itself(browser.get(link).text)
        site.pass_time(seconds=2)
        browser.follow(browser.post(link, {}), link)
        assert site.state(held) is State.RELEASED
        site.pass_time(seconds=6)


def test_a_burst_does_not_stop_a_known_browser(site: Site, held: Held) -> None:
    link, browser = site.link(Action.RELEASE, held, minutes_old=OLD), known_browser(site)
    assert [submits_itself(browser.get(link).text) for _ in range(3)] == [True] * 3


def test_too_many_openings_are_slowed_down(site: Site, held: Held) -> None:
    link, browser = site.link(Action.RELEASE, held), site.browser()
    statuses = [browser.get(link).status for _ in range(62)]
    assert statuses[:60] == [200] * 60
    assert statuses[60:] == [429] * 2
    assert browser.post(link, PRESS).status == 429
    assert site.state(held) is State.HELD
    site.pass_time(seconds=61)
    assert browser.get(link).status == 200


# ---- the origin of a form


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:8081"},
        {"Origin": "https://127.0.0.1:8080"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_forms_of_other_sites_are_refused(site: Site, held: Held, headers: dict[str, str]) -> None:
    browser = known_browser(site)
    answer = browser.request("POST", site.link(Action.RELEASE, held), form=PRESS, headers=headers)
    assert answer.status == 403
    assert "another site" in answer.text
    assert site.state(held) is State.HELD


def test_a_browser_that_cannot_say_who_pressed_is_led_to_signing_in(site: Site) -> None:
    held = site.hold(Tier.SUSPICIOUS)
    answer = site.browser().request("POST", site.link(Action.RELEASE, held), form=PRESS, headers={"Origin": ORIGIN})
    assert answer.status == 403
    assert "newer browser" in answer.text and "/quarantine/sign-in" in answer.text
    assert site.state(held) is State.HELD


@pytest.mark.parametrize("headers", [{}, {"Sec-Fetch-Site": "none"}, {"Origin": ORIGIN}])
def test_forms_of_old_browsers_work(site: Site, held: Held, headers: dict[str, str]) -> None:
    site.browser().request("POST", site.link(Action.RELEASE, held), form=PRESS, headers=headers)
    assert site.state(held) is State.RELEASED


# ---- presses of persons and of scripts

SCRIPT = {"Sec-Fetch-Site": "same-origin", "Sec-CH-UA": '"Chromium";v="140"'}
NO_PERSON = [SCRIPT, {"Sec-Fetch-Site": "same-origin", "User-Agent": "Mozilla/5.0 Firefox/143.0"}, {"Origin": ORIGIN}]


@pytest.mark.parametrize("headers", NO_PERSON)
@pytest.mark.parametrize(
    ("action", "tier"),
    [
        (Action.RELEASE, Tier.SUSPICIOUS),
        (Action.DELETE, Tier.SUSPICIOUS),
        (Action.REQUEST, Tier.DANGEROUS),
        (Action.DELETE, Tier.DANGEROUS),
    ],
)
def test_actions_that_may_do_harm_need_a_persons_press(
    site: Site, headers: dict[str, str], action: Action, tier: Tier
) -> None:
    held = site.hold(tier)
    link = site.link(action, held, minutes_old=OLD)
    answer = site.browser().request("POST", link, form=PRESS, headers=headers)
    assert answer.status == 403 and not answer.cookies()
    assert site.state(held) is State.HELD
    form = {**PRESS, "checked": tier.value}
    site.browser().request("POST", link, form=form, headers={**headers, "Sec-Fetch-User": "?1"})
    assert site.state(held) is not State.HELD


@pytest.mark.parametrize("headers", NO_PERSON)
def test_a_scripts_press_may_release_spam_and_makes_no_browser_known(
    site: Site, held: Held, headers: dict[str, str]
) -> None:
    answer = site.browser().request("POST", site.link(Action.RELEASE, held), form=PRESS, headers=headers)
    assert site.state(held) is State.RELEASED
    assert not answer.cookies()


def test_on_plain_http_without_fetch_metadata_everybody_counts_as_a_person(
    make_parts: Callable[..., Parts], relay: SmtpServer
) -> None:
    site = Site(make_parts(relay__url=relay.url, public_url="http://portal.example.org/quarantine"))
    held = site.hold(Tier.SUSPICIOUS)
    path = site.link(Action.RELEASE, held).removeprefix("http://portal.example.org")
    form = {**PRESS, "checked": "suspicious"}
    site.browser().request("POST", path, form=form, headers={"Origin": "http://portal.example.org"})
    assert site.state(held) is State.RELEASED


@pytest.mark.parametrize("headers", NO_PERSON)
def test_preferences_need_a_persons_press(site: Site, held: Held, headers: dict[str, str]) -> None:
    with digesting(site.store, ALICE, site.now, 50, ignore_schedule=True) as digest:
        pass
    before = site.store.recipients.get(ALICE)
    for action, form in (
        (Action.PREFERENCES, {"change": "stop"}),
        (Action.FORWARDED, PRESS),
        (Action.SEVERAL, {"do": "delete", "mail": f"{held.id}.0"}),
    ):
        link = site.parts.links.url(action, digest.id, 0, digest.issued_at)
        assert site.browser().request("POST", link, form=form, headers=headers).status == 403
    assert site.store.recipients.get(ALICE) == before
    assert site.state(held) is State.HELD


# ---- addresses that a mail program or a person changed

TAILS = (
    ".", ",", ";", ":", "!", ")", "]", "}", ">", "<", "'", '"', "*", "_", "-", "|", "\\", "=", "&", "%3E", "%29", "%22",
    "%0D%0A", "%20", "%20Thanks!", "%E2%80%9D", "%C2%BB", "%E3%80%82", "&gt;", "</a>", ">,", ").", ";jsessionid=1", "/",
    "//", "/.", "/%2F", "/index.html", "%253E", "[1]", "(https:/example.net/)",
)  # fmt: skip


def open_path(browser: Browser, path: str, method: str = "GET") -> Answer:
    """Request a path as a web server passes it on: decoded."""
    return browser.request(method, "/", environ={"PATH_INFO": unquote(path).encode().decode("latin-1")})


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_link_opens_followed_by_more(site: Site, held: Held, method: str) -> None:
    browser = site.browser()
    for link in (site.link(Action.RELEASE, held), site.link(Action.SHOW, held)):
        for tail in TAILS:
            for changed in {link + tail, link[:-1] + tail, link[:-1] + tail + "/"} - {link}:
                answer = open_path(browser, changed, method)
                assert (answer.status, answer.header("Location"), answer.body) == (303, link, b""), changed
                assert answer.header("Referrer-Policy") == "strict-origin"
    assert site.state(held) is State.HELD


def test_a_link_opens_with_doubled_slashes_or_broken_by_a_line_end(site: Site, held: Held) -> None:
    link = site.link(Action.RELEASE, held)
    token = link.split("/")[3]
    for path in (
        f"//quarantine/link/{token}/",
        f"/quarantine//link/{token}/",
        f"/quarantine/link//{token}/",
        f"///quarantine///link///{token}///",
        f"/quarantine/link/<{token}>/",
        f"/quarantine/link/{token[:40]}\r\n{token[40:]}/",
        f"/quarantine/link/{token[:40]} {token[40:]}",
    ):
        answer = open_path(site.browser(), path)
        assert (answer.status, answer.header("Location")) == (303, link), path
    assert site.browser().get(link).status == 200


def test_an_address_followed_by_more_acts_on_nothing(site: Site, held: Held) -> None:
    link = site.link(Action.RELEASE, held, minutes_old=OLD)
    for tail in TAILS:
        assert site.browser().post(link + tail, PRESS).status in (404, 405), tail
    assert site.state(held) is State.HELD


def test_the_pages_without_a_token_open_followed_by_more(site: Site, held: Held) -> None:
    browser = site.signed_in(ALICE)
    for page in ("/", "/sign-in", "/sign-in/code", "/preferences", f"/messages/{held.id}/"):
        assert browser.get(page).status == 200
        for tail in (".", ")", ">", "%3E", "/.", "//", "%22,"):
            path = f"/quarantine{page}" if page == "/" else f"/quarantine{page.rstrip('/')}"
            assert open_path(browser, path + tail).header("Location") == f"/quarantine{page}", tail
    form = site.browser().get(f"/sign-in?address={ALICE}%3E).").text
    assert f'value="{ALICE}"' in form


def test_sign_in_links_open_followed_by_more(site: Site) -> None:
    secret = "Ab_-" * 8
    for tail in (".", ")", ">", "%3E", "/>", "//", ""):
        answer = open_path(site.browser(), f"/quarantine/sign-in/{secret}{tail}")
        assert answer.header("Location") == f"/quarantine/sign-in/{secret}/"


def test_an_address_that_is_no_page_is_not_redirected(site: Site, held: Held) -> None:
    for path in (
        "/link/x.",
        f"/messages/{held.id}/more",
        "/preferences/more",
        "/metrics.",
        "/static/style.css.",
        "/x//",
    ):
        answer = site.browser().get(path)
        assert answer.status in (404, 405) or answer.header("Location") == f"/quarantine{path}/", path


# ---- invalid tokens


def refused(site: Site, link: str) -> list[tuple[int, str]]:
    browser = site.browser()
    answers = [browser.get(link), browser.request("HEAD", link), browser.post(link, PRESS)]
    return [(answer.status, answer.text) for answer in answers]


def test_altered_tokens_open_nothing(site: Site, held: Held) -> None:
    link = site.link(Action.RELEASE, held)
    absent = refused(site, link.replace(link[-10:], "AAAAAAAAA/"))
    for place in range(len("/quarantine/link/"), len(link) - 1):
        for other in ("A", "B"):
            altered = link[:place] + other + link[place + 1 :]
            if altered != link:
                assert site.browser().post(altered, PRESS).status == 404, altered
    for junk in ("=", "==", "!", "%C3%A9", "."):
        assert site.browser().post(link[:-1] + junk + "/", PRESS).status == 404
    assert site.state(held) is State.HELD
    assert [status for status, _ in absent] == [404] * 3


def test_a_token_does_not_work_for_another_action_or_delivery(site: Site, held: Held) -> None:
    release, delete = site.link(Action.RELEASE, held), site.link(Action.DELETE, held)
    mixed = release.partition(".")[0] + "." + delete.partition(".")[2]
    assert site.browser().post(mixed, PRESS).status == 404
    assert site.state(held) is State.HELD


def test_an_expired_link_says_so(site: Site, held: Held) -> None:
    link = site.link(Action.RELEASE, held, minutes_old=14 * 24 * 60 + 1)
    assert [status for status, _ in refused(site, link)] == [410] * 3
    assert "has expired" in site.browser().get(link).text
    assert site.state(held) is State.HELD


def test_a_revoked_link_looks_like_one_that_never_existed(site: Site, held: Held) -> None:
    link = site.link(Action.RELEASE, held, minutes_old=1)
    site.store.recipients.revoke_links(ALICE, site.now)
    gone = site.parts.links.url(Action.RELEASE, type(held.id)(int=held.id.int ^ 1), 0, site.now)
    assert refused(site, link) == refused(site, gone) == refused(site, "/link/" + "A" * 31 + "." + "A" * 43 + "/")
    assert site.state(held) is State.HELD
    assert site.browser().get(site.link(Action.RELEASE, held, number=1, minutes_old=1)).status == 200


@pytest.mark.parametrize("spoil", [lose, damage])
def test_a_mail_whose_bytes_are_gone_or_damaged_is_no_longer_here(
    site: Site, held: Held, store_url: str, relay: SmtpServer, spoil: Callable[[str, UUID], None]
) -> None:
    spoil(store_url, held.id)
    answer = site.browser().post(site.link(Action.RELEASE, held), PRESS)
    assert answer.status == 410
    assert "no longer available" in answer.text
    assert site.state(held) is State.HELD, "a retry in an hour would not help"
    assert site.store.deliveries.get(DeliveryId(held.id, 0)).reason
    assert relay.mails == []


# ---- preferences


@pytest.fixture
def digest_link(site: Site, held: Held) -> str:
    with digesting(site.store, ALICE, site.now, 50, ignore_schedule=True) as digest:
        pass
    site.pass_time(seconds=5)
    return site.parts.links.url(Action.PREFERENCES, digest.id, 0, digest.issued_at)


def stopped(site: Site) -> bool:
    return site.store.recipients.get(ALICE).stopped_at is not None


def test_mail_programs_unsubscribe_by_rfc_8058(site: Site, digest_link: str) -> None:
    answer = site.browser().request("POST", digest_link, form={"List-Unsubscribe": "One-Click"})
    assert answer.status == 200
    assert (answer.header("Content-Type") or "").startswith("text/plain")
    assert not answer.cookies()
    assert stopped(site)


def test_mail_programs_may_unsubscribe_with_multipart(site: Site, digest_link: str) -> None:
    body = b'--b\r\nContent-Disposition: form-data; name="List-Unsubscribe"\r\n\r\nOne-Click\r\n--b--\r\n'
    site.browser().request("POST", digest_link, body=body, headers={"Content-Type": "multipart/form-data; boundary=b"})
    assert stopped(site)


def test_a_person_stops_and_resumes_digests(site: Site, digest_link: str) -> None:
    browser = site.browser()
    assert "Stop digests" in browser.get(digest_link).text
    assert not stopped(site)
    page = browser.follow(browser.post(digest_link, {"change": "stop"}), digest_link)
    assert stopped(site)
    assert "Resume digests" in page.text
    browser.post(digest_link, {"change": "resume"})
    assert not stopped(site)


def test_the_links_of_a_forwarded_digest_can_be_revoked(site: Site, held: Held, digest_link: str) -> None:
    link = site.link(Action.RELEASE, held, minutes_old=1)
    answer = site.browser().post(digest_link, {"change": "revoke"})
    assert answer.status == 200
    assert site.browser().post(link, PRESS).status == 404
    assert site.browser().post(digest_link, {"List-Unsubscribe": "One-Click"}).status == 404
    site.pass_time(seconds=2)
    assert site.browser().get(site.link(Action.RELEASE, held)).status == 200


def test_preferences_need_one_of_the_buttons(site: Site, digest_link: str) -> None:
    assert site.browser().post(digest_link, {}).status == 400
    assert (
        site.browser().request("POST", digest_link, form={"change": "stop"}, headers={"Origin": "null"}).status == 403
    )
    assert not stopped(site)


def test_a_digest_link_discloses_nothing_about_mail(site: Site, digest_link: str) -> None:
    page = site.browser().get(digest_link).text
    assert "Offer" not in page
    assert MALLORY not in page


def test_doubt_about_the_sender_is_shown_before_the_button(site: Site) -> None:
    held = site.hold(header_from='"boss@example.org" <x@example.net>')
    for action, before in ((Action.RELEASE, True), (Action.DELETE, False)):
        above, _, below = site.browser().get(site.link(action, held)).text.partition("<button")
        assert ("The display name shows a different address" in above) is before
        assert ("The display name shows a different address" in below) is not before, "once"


def test_a_release_request_is_mailed_once_a_day_and_again_after_a_denial(site: Site) -> None:
    held, other = site.hold(Tier.DANGEROUS), site.hold(Tier.DANGEROUS)
    browser = site.browser()

    def mails() -> int:
        found = 0
        while site.store.stats(site.now).mails_waiting:
            with site.store.outbox.sending(site.now) as mail:
                found += mail is not None and mail.to == "postmaster@example.org"
        return found

    def request_and_undo(count: int, held: Held = held) -> None:
        request, delete = site.link(Action.REQUEST, held), site.link(Action.DELETE, held)
        for _ in range(count):
            browser.post(request, PRESS)
            assert site.state(held) is State.REQUESTED
            browser.post(delete, PRESS)
            browser.post(delete, {"undo": "1"})
            assert site.state(held) is State.HELD

    request_and_undo(15)
    assert mails() == 1
    kinds = [event.kind for event in site.history(held)]
    assert kinds.count(EventKind.REQUESTED) == 15
    request_and_undo(1, other)
    assert mails() == 1
    site.pass_time(hours=23)  # also if it is requested each day
    request_and_undo(1)
    assert mails() == 0
    site.pass_time(hours=2)
    request_and_undo(2)
    assert mails() == 1
    browser.post(site.link(Action.REQUEST, held), PRESS)
    site.parts.actions.refuse_request(held.id, 0, BY_OPERATOR, "No.")
    mails()
    request_and_undo(3)
    assert mails() == 1
