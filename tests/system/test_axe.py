"""axe-core on the digest and the pages, light and dark, on a wide screen and a small phone.

Each page is opened once for each screen."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any
from weakref import WeakKeyDictionary

import pyotp
import pytest
from jinja2 import Environment, Template
from playwright.sync_api import Browser, Page, ViewportSize, expect

from digest.housekeeping import run_batches, send_queued
from portal.assemble import Parts
from portal.model.audit import Act, AuditEntry
from portal.model.errors import RelayRefused
from portal.model.links import Action
from portal.model.message import Actor, ActorKind, Tier
from portal.model.staff import EVERYWHERE, Grant, Role
from portal.stores.records import Held
from tests.builders import ALICE, BOB, BY_LINK, rule
from tests.imap_server import CERTIFICATE, ImapServer
from tests.paths import ROOT
from tests.system.accessibility import Axe, misfits, unclear
from tests.system.local_site import LocalSite, local_site, read_mail, sign_in
from tests.system.samples import hold_samples

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]


@pytest.fixture
def store_url(files_url: str) -> str:
    """A single store: browsers see the same on all stores."""
    return files_url


PROXY_SECRET = "p" * 32
AXES: WeakKeyDictionary[Page, Axe] = WeakKeyDictionary()


@pytest.fixture
def site(make_parts: Callable[..., Parts]) -> Iterator[LocalSite]:
    settings = {"mail__admin_address": "postmaster@example.org", "staff__administrators": ALICE}
    with local_site(make_parts, **settings, proxy__secret=PROXY_SECRET) as made:
        yield made


@pytest.fixture
def page(browser: Browser, size: dict[str, int]) -> Iterator[Page]:
    viewport = ViewportSize(width=size["width"], height=640)
    context = browser.new_context(viewport=viewport, color_scheme="light", reduced_motion="reduce")
    context.set_default_timeout(60_000)  # milliseconds; other tests keep the cores and the disk busy
    page = context.new_page()
    AXES[page] = Axe(context)
    yield page
    context.close()


def findings(page: Page) -> list[str]:
    """Return axe's findings, and what neither fits nor reads well. Of a digest only what is serious or critical."""
    is_page = "/quarantine" in page.url  # web mail has the landmarks, and a digest repeats its buttons
    found = unclear(page) + misfits(page) if is_page else []
    violations = AXES[page].violations(page)
    return found + [
        f"{page.title()}: {one['id']} ({one['impact']}): {node['html'][:150]} {node['failureSummary']}"
        for one in violations
        if is_page or one["impact"] in ("serious", "critical")
        for node in one["nodes"]
    ]


@pytest.mark.parametrize("size", [{"width": 1280}, {"width": 320}], ids=lambda size: f"{size['width']}px")
def test_axe_finds_nothing_serious(site: LocalSite, page: Page, rendered: set[str]) -> None:
    helds = messages_in_all_states(site)
    read_mail(page, site.digest())
    found = findings(page)
    assert page.locator("a").count() > 20
    link = mailed_link(site)
    digest = links_of_digest(site)
    for address in (digest[Action.OPEN], site.link(Action.SHOW, helds[Tier.SPAM][0]), link):  # without a session
        page.goto(address)
        found += findings(page)
    sign_in(site, page.context)
    for address in [*links_of_messages(site, helds), *pages_of_links(digest), *addresses(site, helds)]:
        site.pass_time(seconds=5)  # otherwise the openings count as a burst
        page.goto(address)
        page.locator("summary").evaluate_all("all => all.forEach(one => one.click())")
        found += findings(page)
    base = site.parts.settings.public_url
    for held, button in ((helds[Tier.SPAM][0], "Delete and block sender"), (formatted(site), "Release")):
        page.goto(f"{base}/messages/{held.id}/")
        page.get_by_role("button", name=button).first.click()
        page.wait_for_load_state()
        found += findings(page)
    found += pages_of_several(site, page, base)
    found += pages_of_acts_of_staff(site, page, helds[Tier.SUSPICIOUS][0])
    found += pages_of_second_factor(site, page, base)
    page.goto(f"{base}/")
    page.keyboard.press("j")
    page.keyboard.press("d")
    page.get_by_role("button", name="Close", exact=True).wait_for()
    found += findings(page)
    page.get_by_role("button", name="Close", exact=True).click()
    page.keyboard.press("?")
    page.get_by_role("dialog").wait_for()
    found += findings(page)
    page.goto(digest[Action.PREFERENCES])
    page.locator("[name=schedule]").evaluate("one => { one.options[0].value = 'nonsense'; one.selectedIndex = 0 }")
    page.get_by_role("button", name="Save").click()
    page.get_by_role("alert").wait_for()
    page.wait_for_load_state()
    found += findings(page)
    assert found == [], "\n".join(found)
    templates = {str(path.relative_to(ROOT / "templates")) for path in (ROOT / "templates/web").rglob("*.html")}
    assert templates - rendered == set()


@pytest.mark.parametrize("size", [{"width": 1280}, {"width": 320}], ids=lambda size: f"{size['width']}px")
def test_axe_finds_nothing_in_the_form_with_all_methods(make_parts: Callable[..., Parts], page: Page) -> None:
    server = ImapServer()
    settings = {"imap__host": "127.0.0.1", "imap__port": server.port, "imap__ca_file": CERTIFICATE}
    company = {"issuer": "http://127.0.0.1:9", "client_id": "quarantine", "title": "Example Company"}  # it is down
    providers = {"oidc": {"company": company}, "proxy__secret": PROXY_SECRET}
    found = []
    with local_site(make_parts, **settings, **providers) as site:
        base = site.parts.settings.public_url
        for path in ("sign-in/oidc/company", "sign-in?left=company", "sign-in?ended=fresh", "sign-in"):
            page.goto(f"{base}/{path}")
            found += findings(page)
        assert page.get_by_role("link", name="Sign in with").count() == 2
        page.goto(site.link(Action.SHOW, site.hold(recipients=[ALICE])))
        found += findings(page)
        page.get_by_role("link", name="Sign in with your password").click()
        assert page.get_by_label("Email address").input_value() == ALICE
        expect(page.get_by_label("Password")).to_be_focused()
        page.get_by_label("Email address").fill(ALICE)
        page.get_by_label("Password").fill("wrong")
        page.keyboard.press("Enter")
        page.get_by_text("The email address or the password is wrong.").wait_for()
        found += findings(page)
    server.close()
    assert not found


@pytest.fixture
def rendered(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The names of the templates that were rendered, as pages or as parts of a page."""
    names: set[str] = set()
    get = Environment.get_template

    def noting(environment: Environment, name: Any, *more: Any) -> Template:
        names.add(str(name))
        return get(environment, name, *more)

    monkeypatch.setattr(Environment, "get_template", noting)
    return names


def messages_in_all_states(site: LocalSite) -> dict[Tier, list[Held]]:
    """Hold messages of each tier. The last ones are released, deleted, requested, refused or withdrawn, or were
    not accepted."""
    helds: dict[Tier, list[Held]] = {tier: [] for tier in Tier}
    for held in hold_samples(site):
        helds[site.delivery(held).message.tier].append(held)
    for tier, of_tier in helds.items():
        of_tier += [site.hold(tier, recipients=(ALICE,), subject=f"Offer {tier} {number}") for number in range(4)]
    spam, doubtful, dangerous = (helds[tier] for tier in (Tier.SPAM, Tier.SUSPICIOUS, Tier.DANGEROUS))
    actions = site.parts.actions
    actions.release(spam[-1].id, 0, BY_LINK)
    actions.delete(spam[-2].id, 0, BY_LINK)
    for held in dangerous[-3:]:
        actions.request_release(held.id, 0, BY_LINK, reason="We wait for this invoice.")
    actions.refuse_request(dangerous[-2].id, 0, BY_LINK, "It has a virus.")
    actions.withdraw_request(dangerous[-3].id, 0, BY_LINK)
    site.mail.script["RCPT"] = "550 5.1.1 no such user"
    with pytest.raises(RelayRefused):
        actions.release(doubtful[-1].id, 0, BY_LINK)
    del site.mail.script["RCPT"]
    return helds


def mailed_link(site: LocalSite) -> str:
    """Return the sign-in link that another browser requested."""
    origin = site.parts.settings.public_url.removesuffix("/quarantine")
    site.browser().post("/sign-in", {"address": ALICE}, headers={"Origin": origin})
    send_queued(site.parts, site.now)
    found = re.search(rb"http://\S+/sign-in/[\w-]{32}/", site.mail.mails[-1].data.replace(b"=\r\n", b""))
    assert found
    return found[0].decode()


def links_of_digest(site: LocalSite) -> dict[Action, str]:
    digest = site.store.digests.last(ALICE)
    assert digest is not None
    actions = (Action.SEVERAL, Action.FORWARDED, Action.PREFERENCES, Action.OPEN)
    return {action: site.parts.links.url(action, digest.id, 0, digest.issued_at) for action in actions}


def pages_of_links(links: dict[Action, str]) -> list[str]:
    several = links[Action.SEVERAL]
    queries = ("?select=all", "?since=1&rest=1", "?none=1")
    return [*(several + query for query in queries), links[Action.FORWARDED], links[Action.PREFERENCES]]


def links_of_messages(site: LocalSite, helds: dict[Tier, list[Held]]) -> list[str]:
    return [
        site.link(action, held)
        for tier, of_tier in helds.items()
        for held in (of_tier[0], *of_tier[-2:])
        for action in (Action.SHOW, Action.DELETE, Action.REQUEST if tier is Tier.DANGEROUS else Action.RELEASE)
    ]


def formatted(site: LocalSite) -> Held:
    return site.hold(data=b"Content-Type: text/html\r\n\r\n<h1>Offers</h1><p><a href=https://x.example>x</a>")


def addresses(site: LocalSite, helds: dict[Tier, list[Held]]) -> list[str]:
    """Return the pages of a signed-in recipient."""
    spam, doubtful = helds[Tier.SPAM][0].id, helds[Tier.SUSPICIOUS][0].id
    html = formatted(site).id
    site.store.staff.give(Grant(BOB, Role.HELP_DESK, EVERYWHERE, site.now, BY_LINK))
    [made, *_] = site.store.rules.add([rule("bounce-1234567@example.net"), rule("b.example", "allow")], site.now)
    paths = [
        *(f"?state={state}" for state in ("held", "requested", "released", "deleted", "all")),
        *("?order=likely&select=all", "?tier=suspicious&attachment=1", "?q=nothing+has+these"),
        *("?state=requested&sender=e&q=offer", f"?like={spam}.0"),
        *("preferences", "preferences?zones=all", "preferences/digest", "preferences/digest?as=text", "sessions"),
        *("sign-in", "sign-in?ended=form", "sign-in/code", "link/nonsense/", "about"),
        *(f"messages/{helds[tier][0].id}/" for tier in Tier),
        *(f"messages/{held.id}/" for held in helds[Tier.DANGEROUS][-3:]),
        *(f"messages/{html}/{view}" for view in ("formatted", "headers", "source")),
        *(f"messages/{spam}/sender", f"messages/{doubtful}/download"),
        *(f"admin/{query}" for query in ("", "?symbol=BAYES_SPAM&tier=spam", "?by=symbol", "?since=x", "?symbol=X")),
        *("admin/jobs/", "admin/jobs/new?symbol=BAYES_SPAM&act=release"),
        *(f"admin/recipients/?address={address}" for address in (ALICE, "nobody@example.org", "x")),
        "admin/recipients/list",
        *("admin/recipients/forget?address=bob@example.org", "admin/domains", "admin/domains?domain=example.org"),
        *(
            f"admin/messages/{spam}.0/{part}"
            for part in ("?search=%3Fsymbol%3DBAYES_SPAM", "text", "headers", "similar")
        ),
        *(f"admin/messages/{helds[Tier.DANGEROUS][place].id}.0/" for place in (0, -1, -3)),
        f"admin/messages/{html}.0/formatted",
        *(
            "admin/staff?done=given",
            "admin/statistics",
            "admin/statistics?period=7",
            "admin/audit",
            "admin/tokens",
            "api/v1/",
            "admin/second-factor",
            "sign-in?ended=console",
        ),
        "admin/requests",
        *("rules", f"rules?done={made.id}", "rules?show=allow&q=b"),
    ]
    return [f"{site.parts.settings.public_url}/{path}" for path in paths]


def pages_of_acts_of_staff(site: LocalSite, page: Page, doubtful: Held) -> list[str]:
    """Return the findings on the pages before and after acts in the console, and for somebody without a quarantine."""
    base = site.parts.settings.public_url
    page.goto(f"{base}/admin/messages/{doubtful.id}.0/")
    page.get_by_role("button", name="Release", exact=True).click()
    page.wait_for_load_state()
    found = findings(page)
    page.goto(f"{base}/admin/jobs/new?symbol=BAYES_SPAM&act=delete")
    page.locator("main [name=reason]").fill("A rule was wrong.")
    page.get_by_role("button", name="Delete all").click()
    page.wait_for_load_state()
    found += findings(page)
    page.context.set_extra_http_headers(
        {"X-Quarantine-User": "x@elsewhere.example", "X-Quarantine-Secret": PROXY_SECRET}
    )
    page.goto(f"{base}/sign-in/proxy")
    page.context.set_extra_http_headers({})
    return found + findings(page)


def pages_of_second_factor(site: LocalSite, page: Page, base: str) -> list[str]:
    """Return the findings on the page after a second factor was set up, and on the one that asks for it."""
    sign_in(site, page.context)
    page.goto(f"{base}/admin/second-factor")
    key = page.locator("code.key").inner_text().replace(" ", "")
    page.get_by_label("6-digit code").fill(pyotp.TOTP(key).at(site.now))
    page.get_by_role("button", name="Set up").click()
    page.wait_for_load_state()
    found = findings(page)
    site.pass_time(seconds=1)
    sign_in(site, page.context)
    page.goto(f"{base}/admin/")
    page.get_by_label("6-digit code").wait_for()
    found += findings(page)
    for _ in range(5):
        page.get_by_label("6-digit code").fill("000000")
        page.get_by_label("6-digit code").press("Enter")
        page.locator("[role=alert]").wait_for()
    found += findings(page)
    site.parts.staff.give(BOB, Role.AUDITOR, EVERYWHERE, BY_LINK)
    by_proxy = Actor(ActorKind.RECIPIENT, BOB, "proxy", "192.0.2.1")
    site.store.audit.record(AuditEntry.new(site.now, Act.SIGNED_IN, by_proxy, BOB))
    sign_in(site, page.context, BOB)
    page.goto(f"{base}/admin/second-factor")
    page.get_by_text("Ask an administrator for a set-up code.").wait_for()
    found += findings(page)
    code = site.parts.second_factors.make_set_up_code(ALICE, BY_LINK)
    sign_in(site, page.context)
    page.goto(f"{base}/admin/")
    found += findings(page)
    page.get_by_label("Set-up code").fill(code)
    page.get_by_label("Set-up code").press("Enter")
    page.locator("code.key").wait_for()
    page.goto(f"{base}/admin/staff")
    found += findings(page)
    page.get_by_role("button", name="Set-up code", exact=False).click()
    page.locator("code.key").wait_for()
    return found + findings(page)


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
