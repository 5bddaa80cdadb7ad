"""Messages that a recipient should look at before releasing them: the same ones in the list, in a digest's page of
several, and when several are released."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest

from portal.assemble import Parts
from portal.model.links import Action
from portal.model.message import State, Tier
from tests.builders import ALICE
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
def site(make_parts: Callable[..., Parts]) -> Iterator[Site]:
    with SmtpServer() as relay:
        yield Site(make_parts(relay__url=relay.url))


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
    site.browser().post(link, {"pressed": "1"})
    assert site.state(held) is State.RELEASED
