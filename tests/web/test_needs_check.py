"""Messages that a recipient should look at before releasing them: the same ones in the list, in a digest's page of
several, and when several are released."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from portal.assemble import Parts
from portal.model.links import Action
from portal.model.message import Scan, ScanOutcome, Start, State, Tier
from portal.stores.records import Held
from tests.builders import ALICE, rule
from tests.smtp_server import SmtpServer
from tests.web.test_digest import foot, names, send_digest
from tests.web.test_selection import hidden, post
from tests.web_client import Site

FORGED = '"boss@example.org" <x@example.net>'
CHECK = "Check this message before you release it"

needing_check = pytest.mark.parametrize(
    ("tier", "header_from", "needs_check"),
    [
        (Tier.SPAM, "Ann <ann@example.net>", False),
        (Tier.SPAM, FORGED, True),
        (Tier.SUSPICIOUS, "Ann <ann@example.net>", True),
    ],
    ids=["plain", "forged", "suspicious"],
)


@pytest.fixture
def relay() -> Iterator[SmtpServer]:
    with SmtpServer() as server:
        yield server


@pytest.fixture
def site(make_parts: Callable[..., Parts], relay: SmtpServer) -> Site:
    return Site(make_parts(relay__url=relay.url))


@needing_check
def test_a_row_of_the_list_has_review_instead_of_release(
    site: Site, tier: Tier, header_from: str, needs_check: bool
) -> None:
    site.hold(tier, recipients=[ALICE], header_from=header_from)
    row = site.signed_in(ALICE).get("/").text.partition('<div class="do">')[2].partition("</div>")[0]
    assert re.findall(r"<(\w+)[^>]*>(\w+)<", row)[0] == (("a", "Review") if needs_check else ("button", "Release"))


@needing_check
def test_the_list_releases_it_only_after_its_caution_was_shown(
    site: Site, tier: Tier, header_from: str, needs_check: bool
) -> None:
    held, other = site.hold(tier, recipients=[ALICE], header_from=header_from), site.hold(recipients=[ALICE])
    browser = site.signed_in(ALICE)
    answer = post(browser, [held, other], "release")
    assert (answer.status == 200) is needs_check
    assert site.state(held) is (State.HELD if needs_check else State.RELEASED)
    if needs_check:
        assert "Check before you release" in answer.text
        browser.post("/messages", {**hidden(answer.text), "suspicious": "release"})
        assert (site.state(held), site.state(other)) == (State.RELEASED, State.RELEASED)


@needing_check
def test_the_page_of_several_says_so_and_asks(site: Site, tier: Tier, header_from: str, needs_check: bool) -> None:
    held = site.hold(tier, recipients=[ALICE], header_from=header_from)
    digest, browser = send_digest(site), site.browser()
    path = foot(site, Action.SEVERAL, digest)
    page = browser.get(path).text
    assert (CHECK in page) is needs_check
    answer = browser.post(path, {"drawn": "0", "mail": names(page)[0], "do": "release"})
    assert ("Check before you release" in answer.text) is needs_check
    assert site.state(held) is (State.HELD if needs_check else State.RELEASED)


@needing_check
def test_the_page_of_a_digests_link_never_submits_itself(
    site: Site, tier: Tier, header_from: str, needs_check: bool
) -> None:
    held = site.hold(tier, recipients=[ALICE], header_from=header_from)
    link = site.link(Action.RELEASE, held, minutes_old=60)
    assert ("data-submit" in site.browser().get(link).text) is not needs_check
    site.browser().post(link, {})
    assert site.state(held) is (State.HELD if needs_check else State.RELEASED)
    site.browser().post(link, checked(site.browser().get(link).text))
    assert site.state(held) is State.RELEASED


# ---- pages that are older than the caution


def checked(page: str) -> dict[str, str]:
    """Return the fields of the form that releases the message of a page."""
    found = re.search(r'name="checked" value="(\w+)"', page)
    return {"pressed": "1", **({"checked": found[1]} if found else {})}


def raise_tier(site: Site, held: Held) -> None:
    site.store.messages.record_scan(held.id, Scan(ScanOutcome.CLEAN, site.now), Tier.SUSPICIOUS, site.now)


@pytest.mark.parametrize("place", ["list", "list?q=offer", "message"])
@pytest.mark.parametrize("act", ["release", "again"])
def test_an_old_page_does_not_send_what_became_suspicious_since(
    site: Site, relay: SmtpServer, place: str, act: str
) -> None:
    starts = {ALICE: Start(State.PASSED, rule("example.net").as_actor)} if act == "again" else {}
    held, browser = site.hold(recipients=[ALICE], starts=starts), site.signed_in(ALICE)
    site.pass_time(minutes=2)
    state, path = site.state(held), f"/messages/{held.id}/"
    form = {"form_token": browser.form_token(), "from": place}
    assert 'name="checked"' not in browser.get(path).text
    raise_tier(site, held)
    answer = browser.post(path + act, form)
    assert (answer.header("Location") or "").startswith(f"/quarantine{path}?")
    assert ("list=%3Fq%3Doffer" in (answer.header("Location") or "")) is ("offer" in place)
    for _ in range(2):  # a script reads the page before the browser opens it
        page = browser.follow(answer, path).text
        assert f"Not {'sent again' if act == 'again' else 'released'}: check this message first." in page
        assert "Release it only if you expected it." in page
    assert (site.state(held), relay.mails) == (state, [])
    browser.post(path + act, {**form, **checked(page)})
    assert (site.state(held), len(relay.mails)) == (State.RELEASED, 1)


def test_an_old_page_of_a_link_does_not_release_what_became_suspicious_since(site: Site, relay: SmtpServer) -> None:
    held, browser = site.hold(recipients=[ALICE]), site.browser()
    link = site.link(Action.RELEASE, held)
    old = checked(browser.get(link).text)
    raise_tier(site, held)
    page = browser.follow(browser.post(link, old), link).text
    assert "Not released: check this message first." in page and "Release it only if you expected it." in page
    assert (site.state(held), relay.mails) == (State.HELD, [])
    browser.post(link, checked(page))
    assert site.state(held) is State.RELEASED


def test_a_page_that_showed_more_cautions_releases_what_turned_out_better(site: Site) -> None:
    """A message that waited for its scan was suspicious when its page was made."""
    held, browser = site.hold(Tier.SPAM, recipients=[ALICE], header_from=FORGED), site.signed_in(ALICE)
    form = {"form_token": browser.form_token(), "from": "message", "checked": "suspicious"}
    browser.post(f"/messages/{held.id}/release", form)
    assert site.state(held) is State.RELEASED


def test_a_confirmation_counts_for_the_cautions_that_it_showed(site: Site, relay: SmtpServer) -> None:
    held, browser = site.hold(Tier.SPAM, recipients=[ALICE], header_from=FORGED), site.signed_in(ALICE)
    confirmation = {**hidden(post(browser, [held], "release").text), "suspicious": "release"}
    raise_tier(site, held)
    again = browser.post("/messages", confirmation)
    assert "Check before you release" in again.text
    assert (site.state(held), relay.mails) == (State.HELD, [])
    browser.post("/messages", {**hidden(again.text), "suspicious": "release"})
    assert site.state(held) is State.RELEASED


@pytest.mark.parametrize("by", ["page", "link"])
def test_what_becomes_suspicious_just_before_the_claim_is_not_released(
    site: Site, relay: SmtpServer, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    held, browser = site.hold(recipients=[ALICE]), site.signed_in(ALICE)
    form = {"form_token": browser.form_token(), "from": "message", "pressed": "1"}
    releasing = site.store.deliveries.releasing

    def late(*args: Any, **values: Any) -> Any:
        raise_tier(site, held)
        return releasing(*args, **values)

    monkeypatch.setattr(site.store.deliveries, "releasing", late)
    path = site.link(Action.RELEASE, held) if by == "link" else f"/messages/{held.id}/"
    answer = browser.post(path if by == "link" else f"{path}release", form)
    assert "Not released" in browser.follow(answer, path).text
    assert (site.state(held), relay.mails) == (State.HELD, [])


def test_an_address_does_not_say_for_ever_that_nothing_was_released(site: Site) -> None:
    held, browser = site.hold(Tier.SUSPICIOUS, recipients=[ALICE]), site.signed_in(ALICE)
    path = f"/messages/{held.id}/?unchecked=release"
    old = browser.get(path).text
    assert "Not released: check this message first." in old
    form = {"form_token": browser.form_token(), "from": "message", **checked(old)}
    browser.post(f"/messages/{held.id}/release", form)
    page = browser.get(path).text
    assert "Not released" not in page and "Released on" in page


def test_a_row_has_review_instead_of_send_again(site: Site) -> None:
    held = site.hold(recipients=[ALICE], starts={ALICE: Start(State.PASSED, rule("example.net").as_actor)})
    browser = site.signed_in(ALICE)
    for button in (f'formaction="/quarantine/messages/{held.id}/again"', ">Review<"):
        assert button in browser.get("/?state=all").text
        raise_tier(site, held)
    assert "/again" not in browser.get("/?state=all").text


@needing_check
def test_after_a_sign_out_the_list_offers_no_release_without_the_caution(
    site: Site, tier: Tier, header_from: str, needs_check: bool
) -> None:
    held = site.hold(tier, recipients=[ALICE], header_from=header_from)
    browser = site.signed_in(ALICE)
    page = browser.follow(browser.get(f"/?undone={held.id}"), "/").text
    box = page.partition('<p id="undone">')[2].partition('<nav class="views"')[0]
    assert (f'href="/quarantine/messages/{held.id}/" aria-describedby="undone">Review<' in box) is needs_check
    assert ("/release" in box) is not needs_check and "/delete" in box
