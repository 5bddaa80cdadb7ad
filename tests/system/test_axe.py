"""axe-core on the digest and the pages, light and dark, on a wide screen and a small phone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, ViewportSize

from digest.housekeeping import run_batches
from portal.assemble import Parts
from portal.model.errors import RelayRefused
from portal.model.links import Action
from portal.model.message import Tier
from portal.model.staff import EVERYWHERE, Grant, Role
from portal.stores.records import Held
from tests.builders import ALICE, BOB, BY_LINK, rule
from tests.system.local_site import LocalSite, local_site, read_mail, sign_in
from tests.system.samples import hold_samples

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]


@pytest.fixture
def store_url(files_url: str) -> str:
    """A single store: browsers see the same on all stores."""
    return files_url


@pytest.fixture
def site(make_parts: Callable[..., Parts]) -> Iterator[LocalSite]:
    with local_site(make_parts, mail__admin_address="postmaster@example.org", staff__administrators=ALICE) as made:
        yield made


@pytest.fixture
def page(browser: Browser, size: dict[str, int], scheme: Any) -> Iterator[Page]:
    viewport = ViewportSize(width=size["width"], height=640)
    context = browser.new_context(viewport=viewport, color_scheme=scheme, reduced_motion="reduce")
    yield context.new_page()
    context.close()


def findings(page: Page) -> list[str]:
    """Return axe's serious and critical findings."""
    return [
        f"{page.title()}: {one['id']} ({one['impact']}): {node['html'][:150]} {node['failureSummary']}"
        for one in Axe().run(page).response["violations"]
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"]
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [{"width": 1280}, {"width": 320}], ids=lambda size: f"{size['width']}px")
def test_axe_finds_nothing_serious(site: LocalSite, page: Page) -> None:
    helds: dict[Tier, list[Held]] = {tier: [] for tier in Tier}
    for held in [*hold_samples(site), *(site.hold(tier=tier, recipients=(ALICE,)) for tier in Tier for _ in range(4))]:
        helds[site.delivery(held).message.tier].append(held)
    mail = site.digest()
    read_mail(page, mail)
    found = findings(page)
    assert page.locator("a").count() > 20

    digest = site.store.digests.last(ALICE)
    assert digest is not None
    spam, doubtful, dangerous = (helds[tier] for tier in (Tier.SPAM, Tier.SUSPICIOUS, Tier.DANGEROUS))
    actions = site.parts.actions
    actions.release(spam[-1].id, 0, BY_LINK)
    actions.delete(spam[-2].id, 0, BY_LINK)
    actions.request_release(dangerous[-1].id, 0, BY_LINK)
    actions.request_release(dangerous[-2].id, 0, BY_LINK)
    actions.refuse_request(dangerous[-2].id, 0, BY_LINK, "It has a virus.")
    site.mail.script["RCPT"] = "550 5.1.1 no such user"
    with pytest.raises(RelayRefused):
        actions.release(doubtful[-1].id, 0, BY_LINK)

    links = [
        site.link(action, held)
        for tier, of_tier in helds.items()
        for held in (of_tier[0], *of_tier[-2:])
        for action in (Action.SHOW, Action.DELETE, Action.REQUEST if tier is Tier.DANGEROUS else Action.RELEASE)
    ]
    several, forwarded, preferences, opening = (
        site.parts.links.url(action, digest.id, 0, digest.issued_at)
        for action in (Action.SEVERAL, Action.FORWARDED, Action.PREFERENCES, Action.OPEN)
    )
    for address in (opening, links[0]):  # after signing in they lead to the list and the message
        page.goto(address)
        found += findings(page)
    base = site.parts.settings.public_url
    formatted = site.hold(data=b"Content-Type: text/html\r\n\r\n<h1>Offers</h1><p><a href=https://x.example>x</a>")
    [made, *_] = site.store.rules.add([rule("bounce-1234567@example.net"), rule("b.example", "allow")], site.now)
    sign_in(site, page.context)
    site.store.staff.give(Grant(BOB, Role.HELP_DESK, EVERYWHERE, site.now, BY_LINK))
    for address in [
        *(f"{base}/admin/", f"{base}/admin/staff?done=given", f"{base}/sign-in?ended=console"),
        *links,
        *(several, f"{several}?since=1&rest=1", f"{several}?none=1", forwarded, preferences),
        *(f"{base}/?state={state}" for state in ("held", "requested", "released", "deleted", "all")),
        *(f"{base}/?order=likely&select=all", f"{base}/?tier=suspicious&attachment=1", f"{base}/sign-in?ended=form"),
        *(
            f"{base}/?q=nothing+has+these",
            f"{base}/?state=requested&sender=e&q=offer",
            f"{base}/?like={spam[0].id}.0",
            f"{base}/preferences",
            f"{base}/preferences?zones=all",
            f"{base}/preferences/digest",
            f"{base}/preferences/digest?as=text",
            f"{base}/sessions",
            f"{base}/sign-in",
            f"{base}/sign-in/code",
        ),
        *(f"{base}/messages/{helds[tier][0].id}/" for tier in Tier),
        f"{base}/messages/{formatted.id}/formatted",
        *(
            f"{base}/messages/{spam[0].id}/sender",
            f"{base}/rules",
            f"{base}/rules?done={made.id}",
            f"{base}/rules?show=allow&q=b",
        ),
        f"{base}/link/nonsense/",
    ]:
        site.pass_time(seconds=5)  # otherwise the openings count as a burst
        page.goto(address)
        page.locator("summary").evaluate_all("all => all.forEach(one => one.click())")
        found += findings(page)
    found += pages_of_several(site, page, base)
    page.goto(f"{base}/")
    page.keyboard.press("j")
    page.keyboard.press("d")
    page.get_by_role("button", name="Close", exact=True).wait_for()
    found += findings(page)
    page.keyboard.press("?")
    page.get_by_role("dialog").wait_for()
    found += findings(page)
    page.goto(preferences)
    page.locator("[name=schedule]").evaluate("one => { one.options[0].value = 'nonsense'; one.selectedIndex = 0 }")
    page.get_by_role("button", name="Save").click()
    page.get_by_role("alert").wait_for()
    found += findings(page)
    assert found == []


def pages_of_several(site: LocalSite, page: Page, base: str) -> list[str]:
    """Return the findings on the pages of actions on several messages."""
    found = []
    for number in range(60):
        site.hold(recipients=[ALICE], header_from=f"a{number}@example.net", subject=f"Offer {number}")
    site.hold(Tier.SUSPICIOUS, recipients=[ALICE], subject="A document with a macro")
    for button in ("Always block senders", "Release selected"):
        page.goto(f"{base}/?select=all&tier={'spam' if 'block' in button else 'suspicious'}")
        page.locator(".more summary").click()
        found += findings(page)
        page.get_by_role("button", name=button, exact=True).click()
        page.get_by_role("link", name="Back to the list").wait_for()
        found += findings(page)
    page.goto(f"{base}/?select=matching&tier=spam")
    page.get_by_role("button", name="Delete selected").click()
    page.get_by_role("link", name="Stop refreshing").click()
    found += findings(page)
    run_batches(site.parts, site.now)
    page.reload()
    page.get_by_role("heading", name="Results").wait_for()
    return found + findings(page)
