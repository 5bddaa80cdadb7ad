"""The pages that a digest's other links open: "Show", several at once, and "Revoke the links in this digest"."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterator

import pytest

from digest.housekeeping import run_batches
from portal.assemble import Parts
from portal.model.errors import StoreUnavailable
from portal.model.links import Action
from portal.model.message import State, Symbol, Tier
from portal.stores.records import Digest, Held
from portal.web import bulk as web_bulk
from portal.web import digest as web_digest
from tests.builders import ALICE, BOB, BY_LINK, BY_OPERATOR, MALLORY, digesting
from tests.moving.test_copy import damage
from tests.smtp_server import SmtpServer, nobody_listens
from tests.web_client import ORIGIN, ROOT, Browser, Site

PRESS = {"pressed": "1"}


@pytest.fixture
def relay() -> Iterator[SmtpServer]:
    with SmtpServer() as server:
        yield server


@pytest.fixture
def site(make_parts: Callable[..., Parts], relay: SmtpServer) -> Site:
    return Site(make_parts(relay__url=relay.url))


@pytest.fixture
def held(site: Site) -> Held:
    return site.hold()


def send_digest(site: Site, recipient: str = ALICE) -> Digest:
    """Send a recipient's digest, as a moment ago, and return it."""
    with digesting(site.store, recipient, site.now, 5000, ignore_schedule=True) as digest:
        pass
    site.pass_time(seconds=5)
    return digest


def foot(site: Site, action: Action, digest: Digest) -> str:
    return site.parts.links.url(action, digest.id, 0, digest.issued_at).removeprefix(ORIGIN)


def several(site: Site, digest: Digest) -> str:
    return foot(site, Action.SEVERAL, digest)


def names(page: str) -> list[str]:
    return re.findall(r'name="mail" value="([^"]+)"', page)


def choose(browser: Browser, path: str, do: str, mails: list[str], page: str) -> str:
    """Tick mails, press a button and return the next page. Browsers repeat a field for each ticked box."""
    drawn = re.search(r'name="drawn" value="([0-9]+)"', page)
    assert drawn
    body = "&".join([f"drawn={drawn[1]}", *(f"mail={name}" for name in mails), f"do={do}"]).encode()
    answer = browser.request(
        "POST",
        path,
        body=body,
        headers={
            "Origin": ORIGIN,
            "Sec-Fetch-Site": "same-origin",
            "Content-Type": "application/x-www-form-urlencoded",
        },
    )
    return browser.follow(answer, path).text


# ---- Show


def test_show_gives_facts_and_reasons_and_no_text_of_the_mail(site: Site, held: Held) -> None:
    page = site.browser().get(site.link(Action.SHOW, held)).text
    for words in ("promo@example.net", "Offer", "resembles known spam", "BAYES_SPAM", "17.5", "sign-in link", ALICE):
        assert words in page, words
    assert "Buy " not in page
    assert BOB not in page
    assert page.count("<form") == 1 and "<script" not in page


def test_show_leads_to_the_links_that_the_digest_has_for_the_mail(site: Site, held: Held, relay: SmtpServer) -> None:
    browser, show = site.browser(), site.link(Action.SHOW, held, minutes_old=3)
    issued_at = site.parts.links.verify(show.split("/")[-2], site.now).issued_at
    links = re.findall(r'href="(/quarantine/link/[^"]+)"', browser.get(show).text)
    found = [site.parts.links.verify(link.split("/")[-2], site.now) for link in links]
    assert [(link.action, link.id, link.number) for link in found] == [
        (Action.RELEASE, held.id, 0),
        (Action.DELETE, held.id, 0),
    ]
    assert {link.issued_at for link in found} == {issued_at}, (
        "dated like the digest, so they expire and are revoked together"
    )
    browser.post(links[0], PRESS)
    assert [mail.recipients for mail in relay.mails] == [[ALICE]]
    assert "Message released" not in browser.get(show).text
    assert "Released on" in browser.get(show).text
    assert "/link/" not in browser.get(show).text, "nothing is left to do"


def test_show_offers_to_request_dangerous_mail(site: Site) -> None:
    held = site.hold(Tier.DANGEROUS)
    page = site.browser().get(site.link(Action.SHOW, held)).text
    actions = [
        site.parts.links.verify(link.split("/")[-2], site.now).action
        for link in re.findall(r'href="(/quarantine/link/[^"]+)"', page)
    ]
    assert actions == [Action.REQUEST, Action.DELETE]


@pytest.mark.parametrize("form", [PRESS, {"pressed": "1", "undo": "1"}, {}])
def test_show_does_nothing_to_the_message_when_a_form_is_sent_to_it(
    site: Site, held: Held, relay: SmtpServer, form: dict[str, str]
) -> None:
    before = site.delivery(held)
    answer = site.browser().post(site.link(Action.SHOW, held), form)
    assert answer.status == 303 and "__Host-quarantine-device" not in answer.cookies()
    assert site.delivery(held) == before
    assert not relay.mails


def test_the_text_is_shown_only_after_signing_in(site: Site, held: Held) -> None:
    link = f"{ROOT}/messages/{held.id}/"
    assert link in site.browser().get(site.link(Action.SHOW, held)).text
    assert site.browser().get(link).header("Location") == f"{ROOT}/sign-in"
    assert "Buy " in site.signed_in(ALICE).get(link).text
    assert site.signed_in(MALLORY).get(link).status == 404


def test_opening_show_counts_as_opening_a_link(site: Site, held: Held) -> None:
    browser, link = site.browser(), site.link(Action.SHOW, held)
    for _ in range(60):
        assert browser.get(link).status == 200
    assert browser.get(link).status == 429


# ---- several


def test_several_lists_what_of_this_digest_is_still_held(site: Site) -> None:
    mine, gone = site.hold(subject="Mine"), site.hold(subject="Gone")
    site.hold(Tier.DANGEROUS, subject="Virus")
    digest = send_digest(site)
    site.hold(subject="Later")
    send_digest(site)
    site.browser().post(site.link(Action.DELETE, gone), PRESS)
    page = site.browser().get(several(site, digest)).text
    assert names(page) == [f"{mine.id}.0"]
    for absent in ("Virus", "Later", "Gone", BOB, "data-submit", "<script", "checked"):
        assert absent not in page


def test_chosen_mails_are_released_to_this_recipient_and_the_others_are_not(site: Site, relay: SmtpServer) -> None:
    helds = [site.hold(subject=f"Mail {name}") for name in ("one", "two", "three")]
    digest, browser = send_digest(site), site.browser()
    page = browser.get(several(site, digest)).text
    assert len(names(page)) == 3
    page = choose(browser, several(site, digest), "release", [f"{helds[0].id}.0", f"{helds[2].id}.0"], page)
    assert [mail.recipients for mail in relay.mails] == [[ALICE]] * 2
    assert [site.state(held) for held in helds] == [State.RELEASED, State.HELD, State.RELEASED]
    assert [site.state(held, 1) for held in helds] == [State.HELD] * 3, "Bob's"
    assert page.count("Released on") == 2 and "<details><summary>Released: 2</summary>" in page
    assert names(page) == [f"{helds[1].id}.0"]
    assert "__Host-quarantine-device" in browser.cookies, "a press sets the device cookie"


def test_chosen_mails_are_deleted(site: Site) -> None:
    helds = [site.hold(subject=f"Mail {name}") for name in ("one", "two")]
    digest, browser = send_digest(site), site.browser()
    page = browser.get(several(site, digest)).text
    page = choose(browser, several(site, digest), "delete", names(page), page)
    assert [site.state(held) for held in helds] == [State.DELETED] * 2
    assert page.count("Deleted on") == 2
    assert "No messages of this digest are left" in page
    assert {event.actor.via.partition("/")[0] for held in helds for event in site.history(held)[1:]} == {"link"}


def test_the_browser_that_deleted_several_can_undo_it_for_ten_minutes(site: Site) -> None:
    helds = [site.hold(subject=f"Mail {name}") for name in ("one", "two")]
    digest, browser, other = send_digest(site), site.browser(), site.browser()
    path = several(site, digest)
    page = choose(browser, path, "delete", [f"{helds[0].id}.0"], browser.get(path).text)
    assert "Undo deletion" in page and "<details open><summary>Deleted: 1</summary>" in page
    page = other.get(path + "?since=1").text
    assert "<summary>Deleted: 1</summary>" in page and "Undo deletion" not in page
    other.post_all(path, [("do", "restore")])
    assert site.state(helds[0]) is State.DELETED
    page = browser.follow(browser.post_all(path, [("do", "restore")]), path).text
    assert [site.state(held) for held in helds] == [State.HELD] * 2
    result = page.partition('<section class="done" role="status"')[2].partition("</section>")[0]
    assert "Deletion undone: 1" in result and "Undo deletion" not in page
    assert "Deletion undone" not in browser.get(path).text
    page = choose(browser, path, "delete", [f"{held.id}.0" for held in helds], browser.get(path).text)
    assert "Deletion undone" not in page
    assert [site.state(held) for held in helds] == [State.DELETED] * 2
    site.pass_time(minutes=11)
    assert "Undo deletion" not in browser.get(path + "?since=1").text
    browser.post_all(path, [("do", "restore")])
    assert [site.state(held) for held in helds] == [State.DELETED] * 2


def test_an_undo_that_comes_too_late_says_so(site: Site) -> None:
    held = site.hold(subject="Mail one")
    browser, path = site.browser(), several(site, send_digest(site))
    choose(browser, path, "delete", [f"{held.id}.0"], browser.get(path).text)
    site.parts.actions.restore(held.id, 0, BY_OPERATOR)
    page = browser.follow(browser.post_all(path, [("do", "restore")]), path).text
    assert "Not changed, not deleted: 1" in page and "Deletion undone" not in page


def test_suspicious_messages_of_a_digest_are_released_after_their_cautions(site: Site, relay: SmtpServer) -> None:
    spam, macro = site.hold(subject="spam"), site.hold(Tier.SUSPICIOUS, subject="macro")
    path, browser = several(site, send_digest(site)), site.browser()
    page = browser.get(path).text
    body = [("do", "release"), *(("mail", name) for name in names(page))]
    page = browser.post_all(path, body).text
    assert "Release only the others (1)" in page and "macro" in page and not relay.mails
    confirmed = [("confirmed", f"{macro.id}.0.suspicious")]
    assert f'name="confirmed" value="{macro.id}.0.suspicious"' in page
    assert "macro" in browser.post_all(path, [("suspicious", "release"), *body]).text and not relay.mails
    for press, state in (("leave", State.HELD), ("release", State.RELEASED)):
        page = browser.follow(browser.post_all(path, [("suspicious", press), *confirmed, *body]), path).text
        assert (site.state(spam), site.state(macro)) == (State.RELEASED, state)
        assert ("<summary>Not released, check these first: 1</summary>" in page) is (press == "leave")


def test_near_identical_mails_are_listed_together(site: Site) -> None:
    for subject, score in (("Order 1", 15.0), ("Other", 16.0), ("Order 2", 17.0)):
        site.hold(subject=subject, score=score)
    page = site.browser().get(several(site, send_digest(site))).text
    assert re.findall(r'class="subject"><bdi>([^<]+)', page) == ["Order 2", "Order 1", "Other"]


def test_similar_messages_have_a_page_of_their_own_with_all_of_them_selected(site: Site) -> None:
    first, other, last = (site.hold(subject=subject) for subject in ("Order 1", "Other", "Order 2"))
    digest, browser = send_digest(site), site.browser()
    group = f"{several(site, digest)}?like={last.id}.0"
    page = browser.get(group).text
    assert names(page) == [f"{last.id}.0", f"{first.id}.0"]
    assert page.count(" checked") == 2
    # Of those that are left, the page shows the group of the digest, although the one that names it is gone.
    page = choose(browser, group, "delete", [f"{last.id}.0"], page)
    assert names(page) == [f"{first.id}.0"] and page.count("Deleted on") == 1
    assert site.state(other) is State.HELD
    assert "No messages selected" in (page := choose(browser, group, "delete", [], page))
    assert names(page) == [f"{first.id}.0"]
    for nonsense in (f"{other.id}.7", f"{digest.id}.0"):
        assert names(browser.get(f"{several(site, digest)}?like={nonsense}").text) == []
    assert len(names(browser.get(f"{several(site, digest)}?like=nonsense").text)) == 2


def test_a_link_selects_all_messages_of_the_page_or_none(site: Site) -> None:
    helds = [site.hold(subject=subject) for subject in ("Order 1", "Other", "Order 2")]
    path, browser = several(site, send_digest(site)), site.browser()
    group = f"like={helds[2].id}.0"
    for shown, count, link in (
        ("", 0, "select=all"),
        ("?select=all", 3, "select=none"),
        (f"?{group}", 2, f"select=none&amp;{group}"),
        (f"?select=none&{group}", 0, f"select=all&amp;{group}"),
    ):
        page = browser.get(f"{path}{shown}").text
        assert page.count(" checked") == count and f'<a href="./?{link}">' in page
    page = choose(browser, path, "delete", [f"{helds[0].id}.0"], page)
    [link] = re.findall(r'<a href="\./([^"]*select=all[^"]*)">', page)
    assert "Undo deletion" in browser.get(f"{path}{html.unescape(link)}").text, "the result stays"


def test_of_many_messages_the_result_names_some(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("portal.web.digest.NAMED", 2)
    helds = [site.hold(subject=f"Order {number}", header_from=f"a{number}@example.net") for number in range(4)]
    path = several(site, send_digest(site))
    for each in helds:
        site.parts.actions.delete(each.id, 0, BY_LINK)
    page = site.browser().get(f"{path}?since=1").text
    assert "Deleted: 4" in page and page.count("Deleted on") == 2


@pytest.mark.parametrize("do", ["release", "delete"])
def test_only_harmless_mail_of_this_digest_and_recipient_can_be_chosen(site: Site, relay: SmtpServer, do: str) -> None:
    listed, virus, bobs = site.hold(), site.hold(Tier.DANGEROUS), site.hold(recipients=[BOB])
    digest, browser = send_digest(site), site.browser()
    later = site.hold()
    send_digest(site)
    page = browser.get(several(site, digest)).text
    wanted = [f"{virus.id}.0", f"{bobs.id}.0", f"{later.id}.0", f"{listed.id}.1", "x", "", "../etc", f"{listed.id}.0"]
    choose(browser, several(site, digest), do, wanted, page)
    assert site.state(listed) is (State.RELEASED if do == "release" else State.DELETED)
    assert [site.state(held) for held in (virus, bobs, later)] == [State.HELD] * 3
    assert site.state(listed, 1) is State.HELD
    assert len(relay.mails) == (do == "release")


@pytest.mark.parametrize("do", ["", "restore", "purge"])
def test_without_a_button_of_the_page_nothing_is_done(site: Site, held: Held, do: str) -> None:
    digest, browser = send_digest(site), site.browser()
    page = browser.get(several(site, digest)).text
    page = choose(browser, several(site, digest), do, names(page), page)
    assert site.state(held) is State.HELD
    assert "No messages selected" in page


def test_a_press_with_nothing_ticked_gets_a_message(site: Site, held: Held) -> None:
    digest, browser = send_digest(site), site.browser()
    page = browser.get(several(site, digest)).text
    assert "No messages selected" in choose(browser, several(site, digest), "release", [], page)
    assert site.state(held) is State.HELD


def test_a_form_of_another_site_does_nothing(site: Site, held: Held) -> None:
    digest = send_digest(site)
    answer = site.browser().post(
        several(site, digest), {"mail": f"{held.id}.0", "do": "release"}, headers={"Origin": "https://evil.example"}
    )
    assert answer.status == 403
    assert site.state(held) is State.HELD


def test_rejected_mail_is_reported_and_the_others_are_released(site: Site, relay: SmtpServer) -> None:
    helds = [site.hold(subject=f"Mail {name}", envelope_sender=f"{name}@example.net") for name in ("one", "two")]
    digest, browser = send_digest(site), site.browser()
    page = browser.get(several(site, digest)).text
    site.browser().post(site.link(Action.RELEASE, helds[0]), PRESS)
    page = choose(browser, several(site, digest), "release", [f"{held.id}.0" for held in helds], page)
    assert page.count("Released on") == 2, "the mail that was released earlier is reported as well"
    assert len(relay.mails) == 2


def test_mail_that_the_server_defers_is_on_its_way(make_parts: Callable[..., Parts]) -> None:
    site = Site(make_parts(relay__url=nobody_listens()))
    helds = [site.hold(subject=f"Mail {name}") for name in ("one", "two")]
    digest, browser = send_digest(site), site.browser()
    page = browser.get(several(site, digest)).text
    page = choose(browser, several(site, digest), "release", names(page), page)
    assert [site.state(held) for held in helds] == [State.RELEASING] * 2
    assert page.count("retried automatically") == 2


def test_a_slow_server_gets_as_many_as_there_is_time_for(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    helds = [site.hold(subject=f"Mail {name}") for name in ("one", "two")]
    digest, browser = send_digest(site), site.browser()
    page = browser.get(several(site, digest)).text
    monkeypatch.setattr(web_bulk, "_MAX_SECONDS", 0)
    page = choose(browser, several(site, digest), "release", names(page), page)
    assert [site.state(held) for held in helds].count(State.HELD) >= 1
    assert "Not all messages were processed" in page
    assert names(page)


def test_a_store_that_fails_midway_leaves_the_rest_and_reports_it(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two", "three"):
        site.hold(subject=f"Mail {name}")
    digest, browser = send_digest(site), site.browser()
    page = browser.get(several(site, digest)).text
    real, calls = type(site.store.deliveries).move, []

    def move(*args: object, **more: object) -> object:
        calls.append(args)
        if len(calls) == 2:
            raise StoreUnavailable("down")
        return real(*args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(type(site.store.deliveries), "move", move)
    page = choose(browser, several(site, digest), "delete", names(page), page)
    assert len(calls) == 2
    assert page.count("Deleted on") == 1
    assert "The rest follows shortly" in page
    assert len(names(page)) == 2
    site.pass_time(minutes=1)
    assert run_batches(site.parts, site.now) == 1
    assert names(browser.get(several(site, digest)).text) == []


def test_a_mail_that_is_damaged_leaves_the_others(site: Site, store_url: str, relay: SmtpServer) -> None:
    helds = [site.hold(subject=f"Mail {name}", recipients=[ALICE]) for name in ("one", "two", "three")]
    damage(store_url, helds[0].id)
    digest, browser = send_digest(site), site.browser()
    page = browser.get(several(site, digest)).text
    page = choose(browser, several(site, digest), "release", [f"{held.id}.0" for held in helds], page)
    assert [site.state(held) for held in helds] == [State.HELD, State.RELEASED, State.RELEASED]
    assert "Not all messages were processed" not in page
    assert len(relay.mails) == 2


def test_a_digest_of_many_mails_shows_a_bounded_page(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_digest, "_MAX_MESSAGES", 3)
    for name in ("one", "two", "three", "four", "five"):
        site.hold(subject=f"Mail {name}")
    digest, browser = send_digest(site), site.browser()
    page = browser.get(several(site, digest)).text
    assert len(names(page)) == 3
    assert "2 more messages will appear here" in page
    page = choose(browser, several(site, digest), "delete", names(page), page)
    assert len(names(page)) == 2


@pytest.mark.parametrize(
    "query", ["?since=x", "?since=-1", "?since=99999999999", "?since=", "?since=1e9&rest=2&none=0"]
)
def test_odd_queries_are_harmless(site: Site, held: Held, query: str) -> None:
    page = site.browser().get(several(site, send_digest(site)) + query)
    assert page.status == 200
    assert "Results" not in page.text


def test_hostile_text_stays_text(site: Site) -> None:
    site.hold(subject="</bdi><script>alert(1)</script>", header_from='"><img src=x> <x@example.com>')
    page = site.browser().get(several(site, send_digest(site))).text
    assert "<script" not in page and "<img" not in page
    assert "&lt;script&gt;" in page


# ---- access


@pytest.mark.parametrize("action", [Action.SEVERAL, Action.FORWARDED])
def test_a_digest_link_opens_nothing_else(site: Site, held: Held, action: Action) -> None:
    digest = send_digest(site)
    for path in (
        site.parts.links.url(action, held.id, 0, digest.issued_at),  # a message id is not a digest id
        foot(site, action, digest).replace("/link/", "/link/A"),
    ):
        assert site.browser().get(path).status == 404
        assert site.browser().post(path, {"pressed": "1", "do": "delete"}).status == 404
    site.store.recipients.revoke_links(ALICE, site.now)
    assert site.browser().get(foot(site, action, digest)).status == 404
    site.pass_time(days=15)
    assert site.browser().get(foot(site, action, digest)).status == 410


@pytest.mark.parametrize("action", [Action.SHOW, Action.SEVERAL, Action.FORWARDED])
def test_no_earlier_press_makes_these_pages_submit_themselves(site: Site, held: Held, action: Action) -> None:
    digest, browser = send_digest(site), site.browser()
    browser.post(site.link(Action.DELETE, site.hold()), PRESS)
    site.pass_time(minutes=30)
    path = site.link(Action.SHOW, held, minutes_old=30) if action is Action.SHOW else foot(site, action, digest)
    page = browser.get(path).text
    assert "data-submit" not in page and "<script" not in page
    assert browser.post(path, {}).status == 303
    assert site.state(held) is State.HELD
    assert site.store.recipients.get(ALICE).links_valid_from is None


# ---- forwarded


def test_revoking_the_links_of_a_digest_revokes_all_earlier_links(site: Site, held: Held) -> None:
    digest, browser = send_digest(site), site.browser()
    link, path = site.link(Action.RELEASE, held, minutes_old=1), foot(site, Action.FORWARDED, digest)
    assert site.store.recipients.get(ALICE).links_valid_from is None
    page = browser.get(path).text
    assert page.count("<form") == 1 and ALICE in page
    assert browser.get(link).status == 200, "opening revokes nothing"
    answer = browser.post(path, PRESS)
    assert answer.status == 200 and "revoked" in answer.text
    for dead in (link, path, several(site, digest), site.link(Action.SHOW, held, minutes_old=1)):
        assert browser.get(dead).status == 404
    site.pass_time(seconds=2)
    assert browser.get(site.link(Action.RELEASE, held)).status == 200, "the next digest's links work"


def test_known_senders_come_first_on_the_page_too(site: Site) -> None:
    proven = (Symbol("R_DKIM_ALLOW", -0.2, ("example.com:s=key",)), Symbol("BAYES_SPAM", 9))
    before = site.hold(header_from="Ann <ann@friends.example.com>")
    site.browser().post(site.link(Action.RELEASE, before), PRESS)
    site.hold(subject="Near", score=15.0)
    site.hold(subject="From Ann", score=25.0, header_from="Ann <ann@friends.example.com>", symbols=proven)
    page = site.browser().get(several(site, send_digest(site))).text
    assert re.findall(r'class="subject"><bdi>([^<]+)', page) == ["From Ann", "Near"]
