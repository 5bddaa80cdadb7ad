"""Contact sheets of all pages and states of the portal, and docs/pictures.md, which shows them.

A sheet shows a page, from the left: 320 and 390 pixels wide, dark, in Arabic, in Japanese, 1280 pixels wide.
"""

from __future__ import annotations

import html
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page

from digest import news
from digest.housekeeping import index_facets, run_batches, send_queued
from digest.notices import send_notices
from digest.statistics import count_days
from portal.model.links import Action
from portal.model.message import Tier
from portal.model.staff import EVERYWHERE, Grant, Role
from portal.stores.records import Held
from tests.builders import ALICE, BOB, BY_LINK, BY_OPERATOR, rule
from tests.system.local_site import LocalSite, read_mail, sign_in
from tests.system.samples import PROVEN, WANTED, hold_samples

LANGUAGES = ("en", "ar", "ja")
_HIGHEST = 1600  # pixels of a page that a sheet shows
# caption, language, width in pixels, colour scheme
_VIEWS: list[tuple[str, str, int, Any]] = [
    ("320", "en", 320, "light"),
    ("390", "en", 390, "light"),
    ("390, dark", "en", 390, "dark"),
    ("390, Arabic", "ar", 390, "light"),
    ("390, Japanese", "ja", 390, "light"),
    ("1280", "en", 1280, "light"),
]
_HTML = b"""Content-Type: text/html; charset=utf-8\r\n\r\n<img src="https://offers.example/head.png" alt="Offers Weekly"
width="600" height="90"><h1>Weekly offers</h1><p>Everything for the garden. <a href="https://offers.example/garden">See
all offers</a></p><table><tr><td><img src="https://offers.example/spade.png" alt="Spade" width="140" height="100"></td>
<td><b>Spade</b><br>24.90<br><a href="https://offers.example/1"><img src="https://offers.example/buy.png" alt="Buy now">
</a></td></tr><tr><td><img src="https://offers.example/fork.png" width="140" height="100"></td><td><b>Fork</b><br>19.90
</td></tr></table><img src="https://offers.example/seen.gif" alt="" width="1" height="1">
<script>document.title = "released"</script>"""


class Stage:
    """A portal with mail in all states, and the browser's page."""

    def __init__(self, site: LocalSite, language: str, browser: Browser) -> None:
        self.site = site
        self.url = site.parts.settings.public_url
        self._held = hold_samples(site, language)
        self._browser, self.language = browser, language
        self.page = self._new_page(has_scripts=False)
        site.digest()
        digest = site.store.digests.last(ALICE)
        assert digest is not None
        self._digest = digest
        self.personal, self.wanted = self._held[-2:]
        self.html = site.hold(
            data=_HTML, recipients=[ALICE], subject="Weekly offers, as made", header_from="Offers <news@offers.example>"
        )

    def _new_page(self, has_scripts: bool) -> Page:
        # Transitions between colours would be in the pictures.
        context = self._browser.new_context(
            locale=self.language, java_script_enabled=has_scripts, reduced_motion="reduce"
        )
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


def _request_link(stage: Stage) -> None:
    stage.go("sign-in").locator("[name=address]").fill(ALICE)
    stage.press("main form button")


def _mailed_link(stage: Stage) -> None:
    send_queued(stage.site.parts, stage.site.now)
    data = stage.site.mail.mails[-1].data.replace(b"=\r\n", b"")
    found = re.search(rb"http://\S+/sign-in/[\w-]{32}/", data)
    assert found
    stage.page.context.clear_cookies()
    stage.page.goto(found[0].decode())


def _release(stage: Stage) -> None:
    stage.link(Action.RELEASE, stage.wanted)
    stage.press("main form button.main")


def _list(stage: Stage) -> None:
    stage.sign_in()
    stage.go("")


def _more_of_list(stage: Stage) -> None:
    stage.go("?select=all").locator(".more summary").click()
    for summary in stage.page.locator("summary").all():
        if summary.is_visible() and summary.evaluate("one => !one.parentElement.open"):
            summary.click()


def _states(stage: Stage) -> None:
    actions, spam = stage.site.parts.actions, [stage.site.hold(recipients=[ALICE]) for _ in range(2)]
    actions.release(spam[0].id, 0, BY_LINK)
    actions.delete(spam[1].id, 0, BY_LINK)
    actions.request_release(stage.of(Tier.DANGEROUS).id, 0, BY_LINK)
    stage.go("?state=all")


def _rules(stage: Stage) -> None:
    rules = [rule("bounce-1234567@example.net"), rule("partner.example", "allow")]
    [made, *_] = stage.site.store.rules.add(rules, stage.site.now)
    stage.go(f"rules?done={made.id}")


def _notice(stage: Stage) -> None:
    site, store = stage.site, stage.site.store
    zone = f"Etc/GMT{site.now.hour - 12:+}"  # it is noon there: no notice is sent at night
    store.recipients.set_preferences(
        ALICE, replace(store.recipients.get(ALICE).preferences, timezone=zone, notices=True)
    )
    news.schedule_news(site.parts, site.now)
    subject, sender = WANTED[stage.language][0]
    site.hold(recipients=[ALICE], subject=subject, header_from=sender, symbols=PROVEN, score=15.4)
    assert send_notices(site.parts, site.now).sent
    read_mail(stage.page, site.last_mail())


def _wrong_time(stage: Stage) -> None:
    stage.go("preferences").locator("details summary").first.click()
    # As in a browser without fields for times.
    stage.page.locator("input[type=time]").first.evaluate("field => { field.type = 'text'; field.value = 'noon' }")
    stage.press("button[value=save]")


def _senders(stage: Stage) -> None:
    stage.go("?select=all")
    stage.page.locator(".bar .more summary").first.click()
    stage.press("button[name=do][value=block]")


def _refused(stage: Stage) -> None:
    for number in range(3):
        stage.site.hold(recipients=[ALICE], header_from=f"b{number}@example.net", subject=f"Quote {number}")
    stage.site.mail.script["RCPT"] = ["550 5.1.1 mailbox unavailable", "452 4.2.2 mailbox full"]
    stage.go("?q=quote&select=all")
    stage.press("button[name=do][value=release]")
    stage.site.mail.script.clear()


def _job(stage: Stage) -> None:
    for number in range(60):
        stage.site.hold(recipients=[ALICE], header_from=f"a{number}@example.net", subject=f"Offer {number}")
    stage.go("?select=matching&tier=spam")
    stage.press(".bulk button[value=delete], button[name=do][value=delete]")
    stage.page.locator("main a[href*=pause]").click()


def _job_done(stage: Stage) -> None:
    run_batches(stage.site.parts, stage.site.now)
    stage.page.reload()


def _toast(stage: Stage) -> None:
    hold_samples(stage.site)
    stage.switch_on_scripts()
    stage.go("").keyboard.press("j")
    stage.page.keyboard.press("d")
    stage.page.locator(".toast").wait_for()


def _shortcuts(stage: Stage) -> None:
    stage.go("").keyboard.press("?")
    stage.page.get_by_role("dialog").wait_for()


def _console(stage: Stage) -> None:
    for address, role in ((ALICE, Role.ADMINISTRATOR), (BOB, Role.HELP_DESK)):
        stage.site.store.staff.give(Grant(address, role, EVERYWHERE, stage.site.now, BY_OPERATOR))
    stage.go("admin/")


def _console_message(stage: Stage) -> None:
    stage.go("admin/?symbol=BAYES_SPAM").locator("a[href*='/admin/messages/']").first.click()
    stage.page.get_by_role("heading", level=1).wait_for()


def _mass_act(stage: Stage) -> None:
    index_facets(stage.site.parts)
    stage.go("admin/jobs/new?symbol=BAYES_SPAM&act=release")


def _console_job(stage: Stage) -> None:
    stage.page.locator("main [name=reason]").fill("A rule of Rspamd was wrong.")
    stage.press("main form button.main")


def _statistics(stage: Stage) -> None:
    index_facets(stage.site.parts)
    count_days(stage.site.parts, stage.site.now)
    stage.go("admin/statistics?period=7")


@dataclass(frozen=True)
class State:
    """A page in one state. ``show`` opens it; later states build on what it did."""

    name: str
    caption: str
    show: Callable[[Stage], Any]


_MESSAGES = [
    State("message", "A message that is probably wanted", lambda s: s.go(f"messages/{s.personal.id}/")),
    State("released", "A released message", lambda s: s.go(f"messages/{s.wanted.id}/")),
    State("suspicious", "A suspicious message", lambda s: s.go(f"messages/{s.of(Tier.SUSPICIOUS).id}/")),
    State(
        "dangerous",
        "A dangerous message whose release was requested",
        lambda s: s.go(f"messages/{s.of(Tier.DANGEROUS).id}/"),
    ),
    State("formatted", "A message as the sender made it", lambda s: s.go(f"messages/{s.html.id}/formatted")),
    State("headers", "The header fields", lambda s: s.go(f"messages/{s.html.id}/headers")),
    State("source", "The source", lambda s: s.go(f"messages/{s.html.id}/source")),
    State("download", "Before a download", lambda s: s.go(f"messages/{s.of(Tier.SUSPICIOUS).id}/download")),
    State("sender", "A rule for the sender", lambda s: s.go(f"messages/{s.of(Tier.SPAM).id}/sender")),
]
SECTIONS = {
    "Links of the digest, without a session": [
        State("link-release", "*Release*", lambda s: s.link(Action.RELEASE, s.wanted)),
        State("link-delete", "*Delete*", lambda s: s.link(Action.DELETE, s.of(Tier.SPAM))),
        State(
            "link-request",
            "*Request release* of a dangerous message",
            lambda s: s.link(Action.REQUEST, s.of(Tier.DANGEROUS)),
        ),
        State("link-show", "*Show*", lambda s: s.link(Action.SHOW, s.wanted)),
        State("link-open", "*Open my quarantine*", lambda s: s.digest_link(Action.OPEN)),
        State("link-several", "Several messages of the digest", lambda s: s.digest_link(Action.SEVERAL)),
        State(
            "link-several-none", "Several messages, none selected", lambda s: s.digest_link(Action.SEVERAL, "?none=1")
        ),
        State("link-forwarded", "*Revoke the links in this digest*", lambda s: s.digest_link(Action.FORWARDED)),
        State("link-preferences", "Preferences from the digest", lambda s: s.digest_link(Action.PREFERENCES)),
        State("link-invalid", "A link that does not work", lambda s: s.go("link/nonsense/")),
        State("link-released", "After *Release*", _release),
    ],
    "Sign-in": [
        State("sign-in", "Sign-in", lambda s: s.go("sign-in")),
        State("about", "About this quarantine", lambda s: s.go("about")),
        State("sign-in-ended", "The session ended before a form was sent", lambda s: s.go("sign-in?ended=form")),
        State("sign-in-code", "After the request for a link", _request_link),
        State("sign-in-link", "The link in another browser", _mailed_link),
    ],
    "List": [
        State("list", "Held messages", _list),
        State("list-selected", "Everything selected, and all orders", _more_of_list),
        State("list-likely", "Likely mistakes first", lambda s: s.go("?order=likely")),
        State("list-like", "Messages of one mailing", lambda s: s.go(f"?like={s.of(Tier.SPAM).id}.0")),
        State("list-states", "All states", _states),
        State("list-senders", "*Always block* for several messages", _senders),
        State("list-refused", "The mail server refuses some of several messages", _refused),
        State("list-empty", "A search that finds nothing", lambda s: s.go("?q=nothing+has+these")),
    ],
    "Messages": _MESSAGES,
    "Rules, preferences and sessions": [
        State("rules", "Rules, one of them new", _rules),
        State("preferences", "Preferences", lambda s: s.go("preferences")),
        State("preferences-zones", "All time zones", lambda s: s.go("preferences?zones=all")),
        State("preferences-error", "A time that is not valid", _wrong_time),
        State("preview", "Preview of the next digest", lambda s: s.go("preferences/digest")),
        State("preview-text", "Preview as text", lambda s: s.go("preferences/digest?as=text")),
        State("sessions", "Sessions", lambda s: s.go("sessions")),
    ],
    "Console": [
        State("console", "Search", _console),
        State("console-found", "Search for a symbol", lambda s: s.go("admin/?symbol=BAYES_SPAM&tier=spam")),
        State("console-groups", "Groups by symbol", lambda s: s.go("admin/?by=symbol")),
        State("console-message", "One message", _console_message),
        State("console-requests", "Requests for release", lambda s: s.go("admin/requests")),
        State("console-mass-act", "Before an act on all that a search finds", _mass_act),
        State("console-job", "After it was confirmed", _console_job),
        State("console-recipient", "One recipient", lambda s: s.go("admin/recipients/?address=alice@example.org")),
        State(
            "console-forget", "Before a person is forgotten", lambda s: s.go(f"admin/recipients/forget?address={BOB}")
        ),
        State("console-domain", "Values of a domain", lambda s: s.go("admin/domains?domain=example.org")),
        State("console-statistics", "Statistics", _statistics),
        State("console-recipients", "Digests of many recipients", lambda s: s.go("admin/recipients/list")),
        State("console-staff", "Staff", lambda s: s.go("admin/staff?done=given")),
        State("console-tokens", "Tokens of the API", lambda s: s.go("admin/tokens")),
        State("console-factor", "Setting up a second factor", lambda s: s.go("admin/second-factor")),
        State("console-audit", "Audit", lambda s: s.go("admin/audit")),
        State("api", "The API", lambda s: s.go("api/v1/")),
    ],
    "Notices": [State("notice", "The mail soon after a message was held that is probably wanted", _notice)],
    "Many messages at once": [
        State("job", "More than 50 messages: the work goes on in the background", _job),
        State("job-done", "Results", _job_done),
    ],
    "The list with scripts": [
        State("script-toast", "After the key *d*", _toast),
        State("script-keys", "The keys, shown by *?*", _shortcuts),
    ],
}


def take(stage: Stage, language: str, folder: Path) -> None:
    """Save a picture of each state, in the sizes and colours that the sheets show in this language."""
    for state in (state for section in SECTIONS.values() for state in section):
        state.show(stage)
        for number, (_, of_language, width, scheme) in enumerate(_VIEWS):
            if of_language == language:
                stage.page.emulate_media(color_scheme=scheme)
                stage.page.set_viewport_size({"width": width, "height": 600})
                stage.page.evaluate("scrollTo(0, 0)")
                height = stage.page.evaluate("document.documentElement.getBoundingClientRect().height")
                stage.page.set_viewport_size({"width": width, "height": min(int(height) + 1, _HIGHEST)})
                stage.page.screenshot(path=folder / f"{state.name}-{number}.png")


def make_sheets(browser: Browser, pictures: Path, folder: Path) -> None:
    """Make a small sheet of the pictures of each state, half as large."""
    page = browser.new_page(viewport={"width": 1600, "height": 600})
    for state in (state for section in SECTIONS.values() for state in section):
        figures = "".join(
            f'<figure><figcaption>{html.escape(caption)}</figcaption><img src="{state.name}-{number}.png" '
            f'width="{width // 2}"></figure>'
            for number, (caption, _, width, _) in enumerate(_VIEWS)
        )
        source = pictures / "sheet.html"
        source.write_text(
            "<!doctype html><style>body { display: flex; gap: 12px; margin: 0; padding: 12px; background: #ccc; "
            "width: max-content; align-items: start } figure { margin: 0 } figcaption { font: 12px sans-serif; "
            f"margin-bottom: 4px }}</style>{figures}",
            "utf-8",
        )
        page.goto(source.as_uri())
        path = folder / f"page-{state.name}.png"
        page.locator("body").screenshot(path=path)
        subprocess.run(["pngquant", "--force", "--ext", ".png", "--speed", "1", "--nofs", "24", path], check=True)
        print(f"{path}  {path.stat().st_size:,} octets")


def describe(path: Path) -> None:
    """Write the page of the documentation that shows all sheets."""
    lines = [
        "# Pictures of all pages",
        "",
        "`python -m tests.system.screenshots` makes these pictures and this page. Each picture shows a page half",
        "as large, from the left: 320 pixels wide, 390, dark, in Arabic, in Japanese, and 1280 pixels wide; at most",
        f"the first {_HIGHEST} pixels of its height. [images](images/README.md) has the digest.",
    ]
    for section, states in SECTIONS.items():
        lines += ["", f"## {section}"]
        for state in states:
            alt = state.caption.replace("*", "")
            lines += ["", f"{state.caption}:", "", f"![{alt}](images/page-{state.name}.png)"]
    path.write_text("\n".join(lines) + "\n", "utf-8")
