"""A portal with mail, a browser, and the states that they can show: for pictures of pages, and for axe."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import pyotp
from playwright.sync_api import Browser, Page

from portal.assemble import Parts, assemble
from portal.model.links import Action
from portal.model.message import Tier
from portal.settings import load_from
from portal.stores.records import Held
from tests.builders import ALICE, BOB
from tests.imap_server import CERTIFICATE, ImapServer
from tests.system.local_site import LocalSite, local_site, sign_in
from tests.system.samples import hold_samples

_HTML = b"""Content-Type: text/html; charset=utf-8\r\n\r\n<img src="https://offers.example/head.png" alt="Offers Weekly"
width="600" height="90"><h1>Weekly offers</h1><p>Everything for the garden. <a href="https://offers.example/garden">See
all offers</a></p><table><tr><td><img src="https://offers.example/spade.png" alt="Spade" width="140" height="100"></td>
<td><b>Spade</b><br>24.90<br><a href="https://offers.example/1"><img src="https://offers.example/buy.png" alt="Buy now">
</a></td></tr><tr><td><img src="https://offers.example/fork.png" width="140" height="100"></td><td><b>Fork</b><br>19.90
</td></tr></table><img src="https://offers.example/seen.gif" alt="" width="1" height="1">
<script>document.title = "released"</script>"""


class Stage:
    """A portal with mail in all states, another one of a company, and the browser's page.

    The company signs people in by a proxy or by password, has a role mailbox that Alice and Bob read, and lets
    recipients report spam.
    """

    def __init__(self, site: LocalSite, company: LocalSite, language: str, browser: Browser) -> None:
        self.site, self.company = site, company
        self.url = site.parts.settings.public_url
        self._held = hold_samples(site, language)
        self._browser, self.language = browser, language
        self.page = self._new_page(has_scripts=False)
        site.digest()
        digest = site.store.digests.last(ALICE)
        assert digest is not None
        self._digest = digest
        self.personal, self.wanted = self._held[-2:]
        self.factor: pyotp.TOTP | None = None  # Alice's second factor
        self.html = site.hold(
            data=_HTML, recipients=[ALICE], subject="Weekly offers, as made", header_from="Offers <news@offers.example>"
        )

    def _new_page(self, has_scripts: bool) -> Page:
        # Transitions between colours would be in the pictures.
        context = self._browser.new_context(locale=self.language, reduced_motion="reduce")
        if not has_scripts:  # but axe can run
            context.route(re.compile(r"/static/[^/]+\.js"), lambda route: route.abort())
        return context.new_page()

    def switch_on_scripts(self) -> None:
        self.page = self._new_page(has_scripts=True)
        self.sign_in()

    def of(self, tier: Tier) -> Held:
        return next(held for held in self._held if self.site.delivery(held).message.tier is tier)

    def go(self, path: str) -> Page:
        self.page.goto(f"{self.url}/{path}")
        return self.page

    def digest_link(self, action: Action, query: str = "") -> Page:
        self.site.pass_time(seconds=20)  # otherwise the openings count as a burst
        self.page.goto(self.site.parts.links.url(action, self._digest.id, 0, self._digest.issued_at) + query)
        return self.page

    def link(self, action: Action, held: Held) -> Page:
        self.site.pass_time(seconds=20)
        self.page.goto(self.site.parts.links.url(action, held.id, 0, self._digest.issued_at))
        return self.page

    def press(self, selector: str) -> None:
        self.page.locator(selector).first.click()
        self.page.wait_for_load_state()

    def sign_in(self) -> None:
        sign_in(self.site, self.page.context)

    def show_to(self, person: str, path: str) -> None:
        """Open a page as another person. The next page is Alice's again."""
        sign_in(self.site, self.page.context, person)
        self.go(path)
        self.sign_in()

    def go_to_company(self, path: str, person: str = ALICE) -> Page:
        """Open a page of the company. Browsers send the session's cookie to both portals."""
        sign_in(self.company, self.page.context, person)
        self.page.goto(f"{self.company.parts.settings.public_url}/{path}")
        return self.page

    def new(self, tier: Tier = Tier.SPAM, **facts: Any) -> Held:
        """Hold one more message to Alice."""
        return self.site.hold(tier, recipients=[ALICE], **facts)


@dataclass(frozen=True)
class State:
    """A page in one state. ``show`` opens it; later states build on what it did.

    ``page``: its route as in tests/web/test_portal.py, "" for mails and errors. `gallery.open_states` compares it with
    the address.
    """

    name: str
    caption: str
    page: str
    show: Callable[[Stage], Any]


@contextmanager
def stage_in(language: str, browser: Browser) -> Iterator[Stage]:
    with tempfile.NamedTemporaryFile("w") as aliases, closing(ImapServer()) as passwords:
        aliases.write(f"info@example.org {ALICE}, {BOB}\n")
        aliases.flush()
        company = {
            "proxy__secret": "p" * 32,
            "proxy__title": "Example Company",
            "imap__host": "127.0.0.1",
            "imap__port": str(passwords.port),
            "imap__ca_file": str(CERTIFICATE),
            "people__alias_file": aliases.name,
            "rspamd__url": "http://127.0.0.1:9",  # nobody asks it
            "rspamd__learn": "agreed",
        }
        with (
            site_in(language, mail__admin_address="postmaster@example.org") as site,
            site_in(language, **company) as other,
        ):
            yield Stage(site, other, language, browser)


@contextmanager
def site_in(language: str, **more: str) -> Iterator[LocalSite]:
    """A portal on an empty store."""
    with tempfile.TemporaryDirectory() as home:
        made: list[Parts] = []

        def make(**settings: Any) -> Parts:
            environ = {f"QUARANTINE_{name.upper()}": str(value) for name, value in settings.items()}
            made.append(assemble(load_from({"QUARANTINE_CONFIG": "/dev/null", **environ})[0], create=True))
            return made[-1]

        with local_site(
            make,
            store__url=f"files://{home}/store",
            local_domains="example.org",
            mail__from_address="quarantine@example.org",
            digest__language=language,
            **more,
        ) as site:
            yield site
        made[0].store.close()
