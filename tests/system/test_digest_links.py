"""The links in the digest's HTML: by thumb on a small phone without JavaScript, and with a keyboard alone. The results
are checked in the store and at the mail server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from playwright.sync_api import Browser, Locator, Page

from digest import housekeeping
from portal.assemble import Parts
from portal.model.message import State
from portal.stores.records import Held
from tests.builders import ALICE
from tests.system.local_site import INBOX, LocalSite, local_site, part, read_mail
from tests.system.samples import hold_samples

pytestmark = pytest.mark.system

SHOP, MINUTES, BANK = (
    "Your order 4711 has been shipped",
    "Re: Minutes of Thursday's meeting",
    "Your account will be closed",
)
OFFERS = "Weekly offers, issue"


@pytest.fixture
def store_url(files_url: str) -> str:
    """A single store: browsers do the same on all stores."""
    return files_url


@pytest.fixture
def site(make_parts: Callable[..., Parts]) -> Iterator[LocalSite]:
    with local_site(make_parts, mail__admin_address="postmaster@example.org") as made:
        yield made


class Thumb:
    """A small phone, no JavaScript."""

    context = {"viewport": {"width": 320, "height": 568}, "has_touch": True, "java_script_enabled": False}

    def press(self, page: Page, what: Locator) -> None:
        page.wait_for_load_state()  # before the style sheet is loaded, buttons are small
        box = what.bounding_box()
        assert box is not None and box["width"] >= 44 and box["height"] >= 43, box
        assert page.evaluate("document.documentElement.scrollWidth") <= 320
        what.tap()


class Keyboard:
    """No mouse and no touch: elements are reached by the Tab key, and the focus must be visible."""

    context = {"viewport": {"width": 1000, "height": 700}}

    def press(self, page: Page, what: Locator) -> None:
        for _ in range(150):
            page.keyboard.press("Tab")
            if what.evaluate("one => one === document.activeElement"):
                break
        else:
            raise AssertionError("cannot be reached by the keyboard")
        style = what.evaluate("one => getComputedStyle(one).outlineStyle")
        assert style != "none", "the focus cannot be seen"
        page.keyboard.press("Space" if what.get_attribute("type") == "checkbox" else "Enter")


@dataclass
class Reader:
    """Alice with her digest and a browser, which she uses in one of these ways."""

    site: LocalSite
    page: Page
    way: Thumb | Keyboard
    helds: list[Held]

    def held(self, subject: str) -> Held:
        return next(held for held in self.helds if subject in self.site.delivery(held).message.subject)

    def state(self, subject: str) -> State:
        return self.site.state(self.held(subject))

    def link(self, name: str, row: str = "") -> None:
        """Follow a link of the digest, in a message's row or at the foot."""
        self.page.goto(INBOX)
        where = self.page.locator("tr").filter(has_text=row) if row else self.page
        self.way.press(self.page, where.get_by_role("link", name=name, exact=True))
        self.page.wait_for_url(lambda url: url != INBOX)

    def button(self, name: str) -> None:
        self.way.press(self.page, self.page.get_by_role("button", name=name))

    def reads(self, heading: str) -> None:
        self.page.get_by_role("heading", name=heading).wait_for()

    def released_mails(self) -> list[tuple[list[str], bytes]]:
        """Return recipients and bytes of the released mails, without the header lines of the portal."""
        return [
            (mail.recipients, mail.data[mail.data.index(b"From: ") :])
            for mail in self.site.mail.mails
            if b"Auto-Submitted:" not in mail.data
        ]

    def bytes_of(self, subject: str) -> bytes:
        return b"".join(self.site.store.messages.body(self.held(subject).id))


@pytest.fixture(params=[Thumb, Keyboard], ids=["thumb", "keyboard"])
def alice(request: pytest.FixtureRequest, site: LocalSite, browser: Browser) -> Iterator[Reader]:
    helds = hold_samples(site)
    way = request.param()
    context = browser.new_context(**way.context)
    page = context.new_page()
    read_mail(page, site.digest())
    yield Reader(site, page, way, helds)
    context.close()


def test_release_delivers_the_mail_to_her_alone(alice: Reader) -> None:
    alice.link("Release", SHOP)
    alice.reads("Release this message?")
    assert alice.state(SHOP) is State.HELD
    alice.button("Release to inbox")
    alice.reads("Message released")
    assert alice.state(SHOP) is State.RELEASED
    assert alice.released_mails() == [([ALICE], alice.bytes_of(SHOP))]


def test_delete_and_undo(alice: Reader) -> None:
    alice.link(MINUTES)
    alice.way.press(alice.page, alice.page.get_by_role("link", name="Delete", exact=True))
    alice.button("Delete")
    alice.reads("Message deleted")
    assert alice.state(MINUTES) is State.DELETED
    alice.button("Undo")
    alice.page.get_by_role("status").get_by_text("Deletion undone").wait_for()
    assert alice.state(MINUTES) is State.HELD
    assert alice.released_mails() == []


def test_show_names_the_reasons_and_leads_on(alice: Reader) -> None:
    alice.link(SHOP)
    alice.reads("Why this message was held")
    assert "Mostly images, hardly any text" in alice.page.inner_text("main")
    assert "Buy" not in alice.page.inner_text("main"), "the text is shown only after signing in"
    alice.way.press(alice.page, alice.page.get_by_role("link", name="Release", exact=True))
    alice.reads("Release this message?")
    alice.button("Release to inbox")
    alice.reads("Message released")
    assert alice.released_mails() == [([ALICE], alice.bytes_of(SHOP))]


def test_dangerous_mail_is_requested(alice: Reader) -> None:
    row = alice.page.locator("tr").filter(has_text=BANK)
    assert row.get_by_role("link").all_inner_texts() == [BANK, "Request release"]
    alice.link("Request release", BANK)
    alice.button("Request release")
    alice.reads("Release requested")
    assert alice.state(BANK) is State.REQUESTED
    housekeeping.send_queued(alice.site.parts, alice.site.now)
    assert alice.site.mail.mails[-1].recipients == ["postmaster@example.org"]
    assert alice.released_mails() == []


@pytest.mark.parametrize(("name", "state"), [("Release selected", State.RELEASED), ("Delete selected", State.DELETED)])
def test_several_at_once(alice: Reader, name: str, state: State) -> None:
    alice.link("Release or delete several messages")
    ticks = alice.page.get_by_role("checkbox")
    assert ticks.count() == len(alice.helds) - 1, "all but the dangerous one"
    for subject in (SHOP, MINUTES):
        tick = alice.page.get_by_role("listitem").filter(has_text=subject).get_by_role("checkbox")
        if isinstance(alice.way, Thumb):
            tick.locator("xpath=..").tap()  # at any place of the row
        else:
            alice.way.press(alice.page, tick)
        assert tick.is_checked()
    alice.button(name)
    alice.reads("Results")
    assert {alice.state(SHOP), alice.state(MINUTES)} == {state}
    assert sum(alice.site.state(held) is not State.HELD for held in alice.helds) == 2
    released = [([ALICE], alice.bytes_of(subject)) for subject in (SHOP, MINUTES)]
    assert sorted(alice.released_mails()) == (sorted(released) if state is State.RELEASED else [])


def test_similar_messages_are_deleted_together(alice: Reader) -> None:
    alice.link("2 similar messages")
    ticks = alice.page.get_by_role("checkbox")
    assert ticks.count() == 3 and all(tick.is_checked() for tick in ticks.all())
    alice.button("Delete selected")
    alice.reads("Results")
    deleted = [held for held in alice.helds if alice.site.state(held) is State.DELETED]
    assert len(deleted) == 3
    assert all(OFFERS in alice.site.delivery(held).message.subject for held in deleted)


def test_preferences_stop_digests_and_send_them_again(alice: Reader) -> None:
    alice.link("Change or stop digests")
    assert alice.site.store.recipients.get(ALICE).stopped_at is None
    alice.button("Stop digests")
    alice.page.get_by_role("button", name="Resume digests").wait_for()
    assert alice.site.store.recipients.get(ALICE).stopped_at is not None
    alice.button("Resume digests")
    alice.page.get_by_role("button", name="Stop digests").wait_for()
    assert alice.site.store.recipients.get(ALICE).stopped_at is None


def test_the_links_of_a_forwarded_digest_are_revoked(alice: Reader) -> None:
    alice.site.pass_time(seconds=2)
    alice.link("Revoke the links in this digest")
    alice.button("Revoke all links")
    alice.reads("Links revoked")
    alice.link("Release", SHOP)
    assert alice.page.get_by_role("button").count() == 0
    assert alice.state(SHOP) is State.HELD


def test_her_quarantine_opens_by_a_mailed_link_and_needs_no_password(alice: Reader) -> None:
    alice.link("Open my quarantine")
    assert alice.page.locator("input[type=password]").count() == 0
    alice.button("Send me a sign-in link")
    alice.page.get_by_role("textbox").wait_for()
    housekeeping.send_queued(alice.site.parts, alice.site.now)
    assert alice.site.mail.mails[-1].recipients == [ALICE]


def test_every_link_of_the_digest_can_be_hit_with_a_thumb(site: LocalSite, browser: Browser) -> None:
    hold_samples(site)
    mail = site.digest()
    for width in (320, 390):
        page = browser.new_context(viewport={"width": width, "height": 640}).new_page()
        read_mail(page, mail)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        # The area for a finger counts: padding belongs to a link, though it moves no line.
        boxes = page.locator("a").evaluate_all(
            "all => all.map(one => { const b = one.getBoundingClientRect(); return [b.x, b.y, b.width, b.height] })"
        )
        assert len(boxes) == part(mail, "html").count("<a ")
        assert all(w >= 44 and h >= 43 for _, _, w, h in boxes), boxes
        for one, (x, y, w, h) in enumerate(boxes):
            for ax, ay, aw, ah in boxes[one + 1 :]:
                across, down = min(x + w, ax + aw) - max(x, ax), min(y + h, ay + ah) - max(y, ay)
                assert across <= 0 or down <= 4, "two links overlap"
        page.context.close()
