"""The preferences page, by a digest's link and signed in: choices, wrong input, stopping, requested digests."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import datetime, time, timedelta
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import SMTP
from html import unescape
from pathlib import Path
from typing import Any
from zoneinfo import available_timezones

import pytest

from digest import housekeeping, news, run
from portal.assemble import Parts
from portal.model.audit import AuditFilter
from portal.model.links import Action
from portal.model.schedule import NO_PREFERENCES, Preferences, Schedule
from portal.stores.contracts import Recipients
from portal.stores.records import Held
from tests.builders import ALICE, BOB, BY_LINK, BY_OPERATOR, MALLORY, digesting, prefer
from tests.smtp_server import SmtpServer
from tests.web_client import Answer, Browser, Site

HOUR = timedelta(hours=1)
ONE_CLICK = {"List-Unsubscribe": "One-Click"}


@pytest.fixture
def server() -> Iterator[SmtpServer]:
    with SmtpServer() as running:
        yield running


@pytest.fixture
def site(make_parts: Callable[..., Parts], server: SmtpServer) -> Site:
    return Site(make_parts(mail__url=server.url, digest__timezone="Europe/Berlin", digest__at="06:30"))


@pytest.fixture
def held(site: Site) -> Held:
    return site.hold()


def link_to(site: Site, recipient: str = ALICE) -> str:
    """Return the preferences link of a digest that was just sent."""
    with digesting(site.store, recipient, site.now, 50, ignore_schedule=True) as digest:
        pass
    site.pass_time(seconds=5)
    return site.parts.links.url(Action.PREFERENCES, digest.id, 0, digest.issued_at)


class Page:
    """The page as reached in one way: by a link or signed in."""

    def __init__(self, browser: Browser, path: str, token: str = "") -> None:
        self.browser, self.path = browser, path
        self._token = {"form_token": token} if token else {}

    def open(self) -> str:
        return self.browser.get(self.path).text

    def post(self, change: str, **fields: str) -> Answer:
        form = {name.replace("_", "-"): value for name, value in fields.items()}
        return self.browser.post(self.path, {**self._token, "change": change, **form})

    def after(self, change: str, **fields: str) -> str:
        """Make a change and return the page that it leads to."""
        return self.browser.follow(self.post(change, **fields), self.path).text


@pytest.fixture(params=["link", "portal"])
def page(request: pytest.FixtureRequest, site: Site, held: Held) -> Page:
    """Alice's page, reached in both ways."""
    if request.param == "link":
        return Page(site.browser(), link_to(site))
    browser = site.signed_in(ALICE)
    return Page(browser, "/preferences", browser.form_token())


@pytest.fixture
def portal(site: Site, held: Held) -> Page:
    """Alice's page when she is signed in."""
    browser = site.signed_in(ALICE)
    return Page(browser, "/preferences", browser.form_token())


def chosen(site: Site, recipient: str = ALICE) -> Preferences:
    return site.store.recipients.get(recipient).preferences


def selected(html: str, name: str) -> str:
    options = re.search(rf'<select id="{name}".*?</select>', html, re.DOTALL)
    assert options
    found = re.findall(r'<option value="([^"]*)" selected>', options[0])
    assert len(found) == 1
    return str(found[0])


def preset(html: str) -> str:
    found = re.findall(r'<input type="radio" name="preset" value="([^"]*)" checked>', html)
    assert len(found) == 1
    return str(found[0])


def checked(html: str, name: str) -> bool:
    box = re.search(rf'<input type="checkbox" name="{name}"[^>]*>', html)
    assert box
    return " checked" in box[0]


def hours(html: str) -> list[str]:
    return re.findall(r'<input type="time" [^>]*value="([^"]*)"', html)


def described(html: str, name: str) -> str:
    """Return the sentence at a field, as a screen reader finds it."""
    field = re.search(rf'<(?:select|input)[^>]* name="{name}"[^>]*>', html)
    assert field
    assert 'aria-invalid="true"' in field[0]
    by = re.search(r'aria-describedby="([^"]+)"', field[0])
    assert by
    found = re.search(rf'<p class="wrong" id="{by[1]}">([^<]*)</p>', html)
    assert found
    return unescape(found[1])


# ---- choosing


def test_a_choice_is_kept_and_shown(site: Site, page: Page) -> None:
    html = page.after("save", schedule="monday", at_1="18:00", at_4="07:30", timezone="Asia/Kathmandu", language="en")
    assert "Preferences saved." in html
    assert chosen(site) == Preferences("monday", (time(7, 30), time(18)), "Asia/Kathmandu", "en")
    assert chosen(site, BOB) == NO_PREFERENCES
    assert [selected(html, name) for name in ("schedule", "timezone", "language")] == ["monday", "Asia/Kathmandu", "en"]
    assert hours(html) == ["07:30", "18:00", "", "", "", ""]
    assert re.search(r"Next digest: Monday, \d+ \w+ \d+, (07:30|18:00) \(Asia/Kathmandu\)\.", html)


def test_notices_and_waiting_are_off_until_their_boxes_are_checked(site: Site, page: Page) -> None:
    assert not checked(page.open(), "only-wanted")
    html = page.after("save", only_wanted="1")
    assert checked(html, "only-wanted") and ", or later if no message looks wanted." in html
    assert chosen(site) == Preferences(only_wanted=True)
    assert not checked(page.after("save"), "only-wanted")
    assert chosen(site) == NO_PREFERENCES
    assert not checked(page.open(), "notices")
    assert checked(page.after("save", notices="1"), "notices")
    assert chosen(site) == Preferences(notices=True)
    assert checked(page.after("save", preset="never", notices="1"), "notices")
    assert chosen(site) == Preferences(notices=True), "kept while digests are stopped"
    assert not checked(page.after("save"), "notices")
    assert chosen(site) == Preferences(notices=False)


def test_the_default_of_a_domain_holds_until_the_box_is_changed(site: Site, page: Page) -> None:
    site.parts.domains.set("example.org", "notices", "true", BY_OPERATOR)
    assert checked(page.open(), "notices")
    page.after("save", notices="1", timezone="Asia/Tokyo")
    assert chosen(site) == Preferences(timezone="Asia/Tokyo"), "not chosen by the recipient"
    page.after("save", timezone="Asia/Tokyo")
    assert chosen(site) == Preferences(timezone="Asia/Tokyo", notices=False)


def test_empty_fields_mean_the_default(site: Site, page: Page) -> None:
    page.post("save", schedule="monday", at_1="18:00", timezone="Asia/Kathmandu", language="en")
    html = page.after("save", schedule="", at_1="", timezone="", language="")
    assert chosen(site) == NO_PREFERENCES
    assert [selected(html, name) for name in ("schedule", "timezone", "language")] == ["", "", ""]
    assert hours(html) == [""] * 6
    assert preset(html) == "default"
    for words in ("Default: Every day · 06:30", "Default: Europe/Berlin", "English"):
        assert words in html
    assert re.search(r", 06:30 \(Europe/Berlin\)", html)


def test_the_default_is_that_of_the_domain(make_parts: Callable[..., Parts], tmp_path: Path) -> None:
    parts = make_parts()  # creates an empty quarantine.toml
    (tmp_path / "quarantine.toml").write_text('[domains."example.org"]\nat = "11:00"\nschedule = "sunday"')
    site = Site(make_parts())
    html = site.signed_in(ALICE).get("/preferences").text
    assert parts.settings.domains == {}
    assert "Default: Every Sunday · 11:00" in html
    assert re.search(r"Next digest: Sunday, \d+ \w+ \d+, 11:00 \(UTC\)", html)


@pytest.mark.parametrize("schedule", [s for s in Schedule if s is not Schedule.NEVER])
def test_every_schedule_can_be_chosen(site: Site, portal: Page, schedule: Schedule) -> None:
    assert f'<option value="{schedule}"' in portal.open()
    assert selected(portal.after("save", schedule=schedule), "schedule") == schedule
    assert chosen(site).schedule == schedule


def test_time_zones_are_offered_by_area_and_any_can_be_chosen(site: Site, portal: Page) -> None:
    html = portal.browser.get("/preferences?zones=all").text
    offered = set(re.findall(r'<option value="([A-Z]\w+/[^"]+|UTC)"', html))
    assert offered <= available_timezones()
    assert len(offered) > 400
    assert '<optgroup label="America">' in html
    assert ">Argentina – Buenos Aires</option>" in html
    html = portal.after("save", timezone="Etc/GMT+3")
    assert selected(html, "timezone") == chosen(site).timezone == "Etc/GMT+3"
    assert "<optgroup" not in html and "?zones=all" in html
    assert len(html) < 9_000, "the zones were two thirds of the page"


def test_never_stops_and_another_schedule_resumes(site: Site, page: Page) -> None:
    page.post("save", schedule="weekdays", at_1="08:00")
    html = page.after("save", schedule="never", at_1="09:00")
    assert "Digests stopped on" in html
    assert preset(html) == "never"
    assert site.store.recipients.get(ALICE).stopped_at is not None
    assert chosen(site) == Preferences("weekdays", (time(9),))
    html = page.after("resume")
    assert selected(html, "schedule") == "weekdays", "the schedule from before stopping"
    page.post("stop")
    page.post("save", schedule="daily")
    assert site.store.recipients.get(ALICE).stopped_at is None
    assert chosen(site).schedule == "daily"


@pytest.mark.parametrize(
    ("name", "schedule", "at"),
    [("morning", "daily", (time(7),)), ("twice", "daily", (time(7), time(15))), ("weekly", "monday", (time(7),))],
)
def test_a_preset_is_one_press(site: Site, page: Page, name: str, schedule: str, at: tuple[time, ...]) -> None:
    html = page.after("save", preset=name, timezone="Asia/Tokyo")
    assert chosen(site) == Preferences(schedule, at, "Asia/Tokyo")
    assert (preset(html), hours(html), selected(html, "schedule")) == (name, [""] * 6, "")
    assert "<details open" not in html
    assert "Twice a day, at 07:00 and 15:00" in html
    html = page.after("save", preset="default", timezone="Asia/Tokyo")
    assert chosen(site) == Preferences(timezone="Asia/Tokyo")
    page.post("save", preset=name)
    html = page.after("save", preset="never")
    assert preset(html) == "never"
    page.post("resume")
    assert chosen(site) == Preferences(schedule, at), "as before stopping"


def test_fields_that_were_filled_in_count_whatever_preset_is_checked(site: Site, page: Page) -> None:
    html = page.after("save", preset="default", schedule="weekdays", at_1="08:15")
    assert chosen(site) == Preferences("weekdays", (time(8, 15),))
    assert preset(html) == "own" and "<details open" in html and hours(html)[0] == "08:15"
    fields = {"schedule": "weekdays", "at_1": "08:15", "own": "1"}  # as this page sends them
    page.post("save", preset="own", **fields)
    assert chosen(site) == Preferences("weekdays", (time(8, 15),))
    page.post("save", preset="morning", **fields)
    assert chosen(site) == Preferences("daily", (time(7),))


@pytest.mark.parametrize(
    ("preset", "kept"),
    [
        ("default", Preferences(language="fr", monthly_report=True)),
        ("never", Preferences("monday", (time(9),), language="fr", monthly_report=True)),
    ],
)
def test_a_change_at_the_same_moment_is_kept_unless_the_form_has_it(
    site: Site, page: Page, monkeypatch: pytest.MonkeyPatch, preset: str, kept: Preferences
) -> None:
    store = site.store.recipients
    known = type(store).known
    other = Preferences("monday", (time(9),), "Asia/Tokyo", monthly_report=True)

    def overtaken(read: Callable[..., Any]) -> Callable[..., Any]:
        def read_then_changed(self: Recipients, wanted: Any) -> Any:
            found = read(self, wanted)
            with pytest.MonkeyPatch.context() as unpatched:  # the other change reads, too
                unpatched.setattr(type(store), "known", known)
                prefer(site.store, ALICE, other)
            return found

        return read_then_changed

    with monkeypatch.context() as patched:
        for name in ("get", "known"):
            patched.setattr(type(store), name, overtaken(getattr(type(store), name)))
        assert page.post("save", preset=preset, language="fr").status == 303
    assert chosen(site) == kept


def test_stopping_says_where_messages_are_seen_then(site: Site, page: Page) -> None:
    assert f"after signing in at <bdi>{site.parts.settings.public_url}</bdi>" in page.open()
    assert "Stop digests" not in page.after("stop")


def test_choosing_moves_the_next_digest(site: Site, held: Held, portal: Page) -> None:
    news.schedule_news(site.parts, site.now)
    portal.post("save", at_1="23:59", timezone="UTC")
    assert site.store.recipients.get(ALICE).next_digest_at is None
    news.schedule_news(site.parts, site.now)
    planned = site.store.recipients.get(ALICE).next_digest_at
    assert planned is not None
    assert (planned.hour, planned.minute) == (23, 59)


def test_where_digests_are_off_they_are_sent_only_to_recipients_who_choose_them(
    make_parts: Callable[..., Parts],
) -> None:
    site = Site(make_parts(digest__schedule="never"))
    site.hold()
    browser = site.signed_in(ALICE)
    page = Page(browser, "/preferences", browser.form_token())
    html = page.open()
    assert "only sent if you choose days" in html
    assert "Send a digest now" not in html
    assert "Next digest:" in page.after("save", schedule="daily")


# ---- wrong input


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("at-1", "25:00", "“25:00” is not a valid time. Enter a time such as 07:30."),
        ("at-6", "seven", "“seven” is not a valid time."),
        ("at-2", "7:3", "“7:3” is not a valid time."),
        ("at-2", "٠٧:٣٠", "is not a valid time."),
        ("at-2", "07:00:00", "is not a valid time."),
        ("schedule", "hourly", "“hourly” is not available."),
        ("timezone", "Mars/Olympus", "“Mars/Olympus” is not available."),
        ("timezone", "../../etc/passwd", "is not available."),
        ("language", "tlh", "“tlh” is not available."),
        ("language", "<script>alert(1)</script>\u202e", "“<script>alert(1)</script>” is not available"),
    ],
)
def test_wrong_input_comes_back_with_a_sentence_at_the_field(
    site: Site, page: Page, field: str, value: str, sentence: str
) -> None:
    page.post("save", at_1="05:00")
    fields = {"schedule": "weekdays", "at-1": "07:15", "timezone": "Asia/Tokyo", field: value}
    answer = page.post("save", **fields)
    assert answer.status == 400
    assert sentence in described(answer.text, field)
    assert 'role="alert"' in answer.text
    assert "<script>" not in answer.text
    assert chosen(site) == Preferences(at=(time(5),)), "nothing was saved"
    if field != "schedule":
        assert selected(answer.text, "schedule") == "weekdays", "valid input stays in the form"


def test_all_wrong_fields_are_reported_at_once(page: Page) -> None:
    html = page.post("save", schedule="x", at_1="x", at_2="07:00", at_3="y", timezone="x", language="x").text
    assert all(described(html, name) for name in ("schedule", "at-1", "at-3", "timezone", "language"))
    assert html.count("aria-invalid") == 5


def test_a_short_hour_and_duplicates_are_accepted(site: Site, portal: Page) -> None:
    portal.post("save", at_1="7:05", at_2=" 07:05 ", at_3="0:00")
    assert chosen(site).at == (time(0), time(7, 5))


def test_a_time_zone_that_no_longer_exists_shows_the_default(site: Site, portal: Page) -> None:
    prefer(site.store, ALICE, Preferences(timezone="Mars/Olympus", language="tlh", schedule="lunar"))
    html = portal.open()
    assert "(Europe/Berlin)" in html
    assert "Preferences saved." in portal.after("save", schedule="daily")


# ---- opening, and permissions


def test_opening_changes_nothing(site: Site, page: Page) -> None:
    before = site.store.recipients.get(ALICE)
    for path in (page.path, f"{page.path}?done=saved", f"{page.path}?done=digest"):
        assert page.browser.get(path).status == 200
        assert page.browser.request("HEAD", path).status == 200
    assert site.store.recipients.get(ALICE) == before
    assert site.store.stats(site.now).mails_waiting == 0


def test_only_our_own_form_changes_anything(site: Site, held: Held, portal: Page) -> None:
    path, form = link_to(site, BOB), {"change": "save", "schedule": "daily"}
    for headers in ({"Origin": "https://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}):
        for where in (path, "/preferences"):
            assert portal.browser.request("POST", where, form=form, headers=headers).status == 403
    assert portal.browser.post("/preferences", form).status == 403, "without the form's token"
    assert chosen(site) == chosen(site, BOB) == NO_PREFERENCES


def test_the_page_says_how_many_digests_have_links_that_work(site: Site, held: Held, server: SmtpServer) -> None:
    def said(until: datetime | None = None) -> str:
        page = site.signed_in(ALICE).get("/preferences").text
        [found] = re.findall(r"<p>([^<]*(?:digest|notice)[^<]* links that [^<]*)</p>", page)
        zone = site.parts.domains.plan(ALICE, NO_PREFERENCES).zone
        day = f"{(until + timedelta(days=14)).astimezone(zone):%-d %B}" if until else ""
        assert day in found
        return str(found)

    first = site.now
    assert said() == "No digest or notice has links that still work."
    run.send_all(site.parts, site.now)
    assert said(first).startswith("1 digest or notice has links that work, until ")
    site.pass_time(days=3)
    site.hold()
    run.send_all(site.parts, site.now)
    assert said(site.now).startswith("2 digests and notices have links that work, the newest until ")
    site.pass_time(days=12)
    assert said(first + timedelta(days=3)).startswith("1 digest")
    run.resend(site.parts, site.now, ALICE)
    assert said(site.now).startswith("1 digest"), "its links are new"
    site.pass_time(seconds=5)
    site.store.recipients.revoke_links(ALICE, site.now)
    assert said().startswith("No digest")


def test_a_revoked_or_foreign_link_opens_nothing(site: Site, held: Held) -> None:
    page = Page(site.browser(), link_to(site))
    assert MALLORY not in page.open()
    site.store.recipients.revoke_links(ALICE, site.now)
    assert page.browser.get(page.path).status == 404
    assert page.post("save", schedule="never").status == 404
    assert chosen(site) == NO_PREFERENCES


# ---- requested digests


def test_a_requested_digest_is_sent_at_the_next_tick(site: Site, portal: Page, server: SmtpServer) -> None:
    assert "Send a digest now" in portal.open()
    assert "A digest is on its way." in portal.after("digest")
    news.schedule_news(site.parts, site.now)
    assert run.send_due(site.parts, site.now).sent == [(ALICE, 1)]
    assert [mail.recipients for mail in server.mails] == [[ALICE]]


def test_a_digest_can_be_requested_once_an_hour(site: Site, portal: Page) -> None:
    portal.post("digest")
    assert "less than an hour ago" in portal.after("digest")
    site.pass_time(minutes=59)
    assert "less than an hour ago" in portal.after("digest")
    site.pass_time(minutes=2)
    assert "on its way" in portal.after("digest")
    requests = site.store.audit.list(AuditFilter(act="digest-requested"), 9)
    assert [(each.actor.who, each.subject) for each in requests] == [(f"recipient:{ALICE}", ALICE)] * 2


def test_without_news_the_last_digest_is_repeated(site: Site, held: Held, portal: Page, server: SmtpServer) -> None:
    gone = site.hold(subject="Gone")
    run.send_all(site.parts, site.now)
    site.parts.actions.delete(gone.id, 0, BY_LINK)
    site.pass_time(hours=3)
    assert "on its way" in portal.after("digest")
    assert run.send_due(site.parts, site.now).sent == [(ALICE, 1)]
    site.parts.actions.delete(held.id, 0, BY_LINK)
    site.pass_time(hours=3)
    assert "No digest was sent" in portal.after("digest")
    assert run.send_due(site.parts, site.now).sent == []


def test_nobody_gets_a_digest_by_a_link_or_while_stopped(site: Site, held: Held, portal: Page) -> None:
    by_link = Page(site.browser(), link_to(site, BOB))
    assert "Send a digest now" not in by_link.open()
    assert by_link.post("digest").status == 400
    portal.post("stop")
    assert "Send a digest now" not in portal.open()
    assert "No digest was sent" in portal.after("digest")
    assert list(site.store.digests.due(site.now + HOUR, 10)) == []


# ---- one click (RFC 8058)


def waiting(site: Site, server: SmtpServer) -> list[EmailMessage]:
    """Send the queued mail and return all mail that the server got."""
    housekeeping.send_queued(site.parts, site.now)
    read = [message_from_bytes(mail.data, policy=SMTP) for mail in server.mails]
    assert all(isinstance(mail, EmailMessage) for mail in read)
    return read


def test_one_click_stops_and_confirms_by_one_mail_with_a_way_back(site: Site, server: SmtpServer) -> None:
    site.hold(recipients=["Alice@Example.org"])
    path = link_to(site)
    for _ in range(3):  # mail providers repeat the request
        answer = site.browser().request("POST", path, form=ONE_CLICK)
        assert (answer.status, answer.cookies()) == (200, {})
    (mail,) = waiting(site, server)
    assert mail["To"] == "Alice@Example.org"
    assert mail["Subject"] == "Your digests have been stopped"
    parts = [mail.get_body(kind) for kind in (("plain",), ("html",))]
    texts = [unescape(part.get_content()) for part in parts if part is not None]
    for text in texts:
        (back,) = set(re.findall(r"http://\S+?/link/[^\s\"]+", text))
        assert "Alice@Example.org" in text
        assert "30 days" in text
    assert "Resume digests" in site.browser().get(back).text
    Page(site.browser(), back).post("resume")
    assert site.store.recipients.get(ALICE).stopped_at is None
    site.pass_time(hours=1)
    site.browser().request("POST", path, form=ONE_CLICK)
    assert len(waiting(site, server)) == 2, "stopped again, so confirmed again"


def test_stopping_on_the_page_sends_no_mail(site: Site, page: Page, server: SmtpServer) -> None:
    page.post("stop")
    page.browser.request("POST", page.path, form=ONE_CLICK)
    assert waiting(site, server) == []


def test_one_click_works_on_a_site_that_cannot_send_mail(make_parts: Callable[..., Parts], server: SmtpServer) -> None:
    local = Site(make_parts())
    local.hold()
    path = link_to(local)
    elsewhere = Site(make_parts(local_domains="example.net", mail__url=server.url))
    assert elsewhere.browser().request("POST", path, form=ONE_CLICK).status == 200
    assert elsewhere.store.recipients.get(ALICE).stopped_at is not None
    assert waiting(elsewhere, server) == []


def test_a_one_click_unsubscription_is_confirmed_at_most_once_an_hour(site: Site, held: Held) -> None:
    browser, link = site.browser(), link_to(site)
    for _ in range(15):
        assert browser.request("POST", link, form=ONE_CLICK).status == 200
        assert browser.post(link, {"change": "resume"}).status == 303
    assert site.store.stats(site.now).mails_waiting == 1
    site.pass_time(minutes=59)
    browser.request("POST", link, form=ONE_CLICK)
    assert site.store.recipients.get(ALICE).stopped_at == site.now
    browser.post(link, {"change": "resume"})
    assert site.store.stats(site.now).mails_waiting == 1
    site.pass_time(minutes=2)
    browser.request("POST", link, form=ONE_CLICK)
    assert site.store.stats(site.now).mails_waiting == 2
    bobs = link_to(site, BOB)
    browser.request("POST", bobs, form=ONE_CLICK)
    assert site.store.stats(site.now).mails_waiting == 3
