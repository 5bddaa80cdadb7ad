"""Two companies on one portal: each sees its own values, and nothing of the other."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from datetime import timedelta
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from pathlib import Path

import pytest

from digest import housekeeping, news, run
from portal.batches.parallel import retry_due
from portal.model.brand import LOGO_OCTETS
from portal.model.errors import BadDomainValue, SettingsError
from portal.model.links import Action
from portal.model.message import Actor, ActorKind, DeliveryId, Filter, Scan, ScanOutcome, State, Tier, held_at
from portal.model.staff import Role
from portal.stores.records import Held
from tests import builders
from tests.conftest import MakeParts
from tests.smtp_server import SmtpServer
from tests.system.samples import PROVEN
from tests.web_client import Answer, Browser, Site

ALICE, BOB = "alice@apples.example", "bob@pears.example"
SETTINGS = """
    local_domains = ["apples.example", "pears.example"]
    [mail]
    from_address = "quarantine@provider.example"
    admin_address = "postmaster@provider.example"
    [site]
    name = "Provider"
    [domains."apples.example"]
    name = "Apple Growers"
    from_address = "quarantine@mail.apples.example"
    admin_address = "it@apples.example"
    language = "de"
    at = "07:00"
    timezone = "Europe/Berlin"
    [domains."pears.example"]
    name = "Pear Growers"
    from_address = "held@pears.example"
    admin_address = "helpdesk@pears.example"
    at = "18:30"
    timezone = "America/New_York"
"""
APPLES, PEARS = ("Apple Growers", "apples.example"), ("Pear Growers", "pears.example")


@pytest.fixture
def smtp() -> Iterator[SmtpServer]:
    with SmtpServer() as server:
        yield server


@pytest.fixture
def site(make_parts: MakeParts, smtp: SmtpServer, tmp_path: Path) -> Site:
    (tmp_path / "quarantine.toml").write_text(SETTINGS)
    return Site(make_parts(**overrides(smtp)))


def overrides(smtp: SmtpServer) -> dict[str, str]:
    return {
        "local_domains": "apples.example,pears.example",
        "mail__from_address": "quarantine@provider.example",
        "relay__url": smtp.url,
        "mail__url": smtp.url,
    }


def mails_to(smtp: SmtpServer, address: str) -> list[EmailMessage]:
    return [message_from_bytes(m.data, policy=default) for m in smtp.mails if m.recipients == [address]]


def texts(mail: EmailMessage) -> str:
    """Return all header fields and all texts of a mail, decoded."""
    parts = [part.get_content() for part in mail.walk() if part.get_content_maintype() == "text"]
    return "\n".join([*(f"{name}: {value}" for name, value in mail.items()), *parts])


def send_all(site: Site) -> None:
    """Send what the digest process sends until tomorrow."""
    news.schedule_news(site.parts, site.now)
    housekeeping.send_queued(site.parts, site.now)
    site.now += timedelta(days=1, hours=1)
    assert not run.send_due(site.parts, site.now).failed


def pages_of(site: Site, held: Held, recipient: str) -> list[Answer]:
    """Return the pages that a recipient can see: signed in, by the links of a digest, and error pages."""
    browser, strangers = site.signed_in(recipient), site.browser()
    id = str(held.id)
    paths = ["/", "/?state=deleted", f"/messages/{id}/", f"/messages/{id}/sender", "/rules", "/preferences"]
    paths += [f"/messages/{id[:-1]}0/", "/messages/x"]
    number = [d.recipient for d in site.store.deliveries.of_message(held.id)].index(recipient)
    links = [site.link(action, held, number) for action in (Action.SHOW, Action.RELEASE, Action.DELETE)]
    found = [browser.get(path) for path in paths] + [strangers.get(link) for link in links]
    return [*found, browser.post("/preferences", {"change": "x"}), browser.post("/preferences", {"form_token": "x"})]


def test_each_domain_has_its_own_name_sender_language_and_hours(site: Site, smtp: SmtpServer) -> None:
    site.hold(recipients=(ALICE, BOB))
    send_all(site)
    [to_alice], [to_bob] = mails_to(smtp, ALICE), mails_to(smtp, BOB)
    assert to_alice["From"] == "Apple Growers <quarantine@mail.apples.example>"
    assert to_bob["From"] == "Pear Growers <held@pears.example>"
    assert "zurückgehalten" in texts(to_alice) and "Times are in America/New York" in texts(to_bob)
    plans = [site.parts.domains.plan(who, site.store.recipients.get(who).preferences) for who in (ALICE, BOB)]
    assert [(plan.at[0].hour, plan.zone.key) for plan in plans] == [(7, "Europe/Berlin"), (18, "America/New_York")]


def test_a_release_request_goes_to_the_administrator_of_the_domain(site: Site, smtp: SmtpServer) -> None:
    held = site.hold(recipients=(ALICE, BOB), tier=Tier.DANGEROUS)
    site.parts.actions.request_release(held.id, 0, Actor(ActorKind.RECIPIENT))
    site.parts.actions.request_release(held.id, 1, Actor(ActorKind.RECIPIENT))
    housekeeping.send_queued(site.parts, site.now)
    assert sorted(mail.recipients[0] for mail in smtp.mails) == ["helpdesk@pears.example", "it@apples.example"]
    [to_admin] = mails_to(smtp, "it@apples.example")
    assert to_admin["From"] == "Apple Growers <quarantine@mail.apples.example>"


@pytest.mark.parametrize(("recipient", "others"), [(ALICE, PEARS), (BOB, APPLES)])
def test_a_company_never_sees_anything_of_another(
    site: Site, smtp: SmtpServer, recipient: str, others: tuple[str, ...]
) -> None:
    held = site.hold(recipients=(ALICE, BOB))
    dangerous = site.hold(recipients=(ALICE, BOB), tier=Tier.DANGEROUS)
    actor = Actor(ActorKind.OPERATOR, "root", "cli")
    for number in (0, 1):
        site.parts.actions.request_release(dangerous.id, number, Actor(ActorKind.RECIPIENT))
    housekeeping.send_queued(site.parts, site.now)
    for number in (0, 1):
        site.parts.actions.refuse_request(dangerous.id, number, actor, "It has a virus")
    for who in (ALICE, BOB):
        site.browser().post("/sign-in", {"address": who})
    send_all(site)
    digest = site.store.digests.last(recipient)
    assert digest is not None
    site.parts.store.recipients.set_digests_stopped(recipient, None)
    link = site.parts.links.token(Action.PREFERENCES, digest.id, 0, site.now)
    site.browser().request("POST", f"/link/{link}/", form={"List-Unsubscribe": "One-Click"})
    housekeeping.send_queued(site.parts, site.now)
    answers = pages_of(site, held, recipient)
    shown = [
        *(answer.text for answer in answers),
        *(f"{name}: {value}" for answer in answers for name, value in answer.headers),
    ]
    domain = recipient.partition("@")[2]
    sent = [texts(message_from_bytes(m.data, policy=default)) for m in smtp.mails if m.recipients[0].endswith(domain)]
    assert len(sent) == 5  # digest, sign-in link, request, denial, end of digests
    for text in [*shown, *sent]:
        for word in (*others, "provider.example", "Provider"):
            assert word not in text, (word, text)
    own = APPLES[0] if recipient == ALICE else PEARS[0]
    assert all(own in text for text in sent)
    assert all(own in answer.text for answer in answers if answer.body)


# ---- who may release, and who may make rules


def with_values(site: Site, domain: str, **values: str) -> None:
    for key, value in values.items():
        site.parts.domains.set(domain, key, value, Actor(ActorKind.OPERATOR, "root", "cli"))


@pytest.mark.parametrize("tier", [Tier.SPAM, Tier.SUSPICIOUS])
@pytest.mark.parametrize("right", ["request", "administrator"])
def test_a_domain_may_leave_releases_to_its_administrator(site: Site, smtp: SmtpServer, tier: Tier, right: str) -> None:
    with_values(site, "apples.example", **{f"release_{tier.value}": right})
    held = site.hold(recipients=(ALICE, BOB), tier=tier)
    links = [site.link(Action.RELEASE, held, number, minutes_old=60) for number in (0, 1)]
    for number, link in enumerate(links):
        page = site.browser().get(link)
        assert ("data-submit" in page.text) is (number == 1 and tier is Tier.SPAM)
        assert ("Freigeben" in page.text or "Release" in page.text) or number == 0
        form = {"pressed": "1", "checked": tier.value}
        site.browser().post(link, form, headers={"Sec-Fetch-User": "?1"})
    alice = site.signed_in(ALICE)
    act = f"/messages/{held.id}/"
    assert f"{act}release" not in alice.get(act).text
    assert (f"{act}ask" in alice.get(act).text) is (right == "request")
    alice.post(f"{act}release", {"form_token": alice.form_token()})
    assert [site.state(held, number) for number in (0, 1)] == [State.HELD, State.RELEASED]
    alice.post(f"{act}ask", {"form_token": alice.form_token()})
    assert site.state(held) is (State.REQUESTED if right == "request" else State.HELD)
    released = site.parts.actions.release(held.id, 0, Actor(ActorKind.OPERATOR, "root", "cli"), operator=True)
    assert released.state is State.RELEASED


def test_spam_that_was_not_scanned_is_not_released_by_those_who_may_not_release_spam(site: Site) -> None:
    with_values(site, "apples.example", release_spam="administrator")
    held = site.hold(recipients=(ALICE, BOB))
    site.store.messages.record_scan(held.id, Scan(ScanOutcome.FAILED, site.now), Tier.SPAM, site.now)
    for number, recipient in enumerate((ALICE, BOB)):
        browser = site.signed_in(recipient)
        form = {"form_token": browser.form_token(), "checked": "suspicious"}
        browser.post(f"/messages/{held.id}/release", form)
        assert site.state(held, number) is (State.HELD if recipient == ALICE else State.RELEASED)


@pytest.mark.parametrize(("right", "links"), [("self", 1), ("request", 1), ("administrator", 0)])
def test_the_digest_has_the_links_that_work(site: Site, smtp: SmtpServer, right: str, links: int) -> None:
    with_values(site, "pears.example", release_spam=right)
    site.hold(recipients=(BOB,))
    send_all(site)
    [mail] = mails_to(smtp, BOB)
    plain = mail.get_body(("plain",))
    assert plain is not None
    text = plain.get_content()
    found = [label for label in ("Release to my inbox:", "Request release:") if label in text]
    assert len(found) == links and found == {"self": ["Release to my inbox:"], "request": ["Request release:"]}.get(
        right, []
    )
    assert ("choose Release" in text) is (right == "self")
    assert "Show:" in text


def test_dangerous_messages_can_only_be_given_to_recipients_by_the_file(
    make_parts: MakeParts, smtp: SmtpServer, tmp_path: Path
) -> None:
    (tmp_path / "quarantine.toml").write_text(SETTINGS + '    release_dangerous = "self"')  # for pears.example
    site = Site(make_parts(**overrides(smtp)))
    held = site.hold(recipients=(ALICE, BOB), tier=Tier.DANGEROUS)
    for number in (0, 1):
        link = site.link(Action.RELEASE, held, number, minutes_old=60)
        assert "data-submit" not in site.browser().get(link).text
        form = {"pressed": "1", "checked": "dangerous"}
        site.browser().post(link, form, headers={"Sec-Fetch-User": "?1"})
    assert [site.state(held, number) for number in (0, 1)] == [State.HELD, State.RELEASED]
    for key in ("release_dangerous", "release_suspicious"):
        with pytest.raises(BadDomainValue, match="Only the settings file can have self"):
            with_values(site, "apples.example", **{key: "self"})


def test_a_right_that_was_taken_away_stops_a_release_that_waits(site: Site, smtp: SmtpServer) -> None:
    held = site.hold(recipients=(BOB,))
    smtp.script["RCPT"] = ["451 busy"]
    site.browser().post(site.link(Action.RELEASE, held), {"pressed": "1"})
    assert site.state(held) is State.RELEASING
    with_values(site, "pears.example", release_spam="administrator")
    site.pass_time(hours=1)
    retry_due(site.parts.actions)
    assert site.state(held) is State.HELD and not smtp.mails


def test_a_domain_may_keep_its_recipients_from_making_rules(site: Site) -> None:
    held = site.hold(recipients=(ALICE, BOB))
    alice, form = site.signed_in(ALICE), {"sender": "promo@example.net", "effect": "block"}
    assert alice.post("/rules", {**form, "form_token": alice.form_token()}).status == 303
    [rule] = site.store.rules.list([ALICE], 9, site.now)
    with_values(site, "apples.example", recipient_rules="false")
    page = f"/messages/{held.id}/"
    for path in ("/rules", page, site.link(Action.SHOW, held)):
        assert 'name="effect"' not in alice.get(path).text and "/sender" not in alice.get(path).text
    assert alice.get(f"{page}sender").status == 403
    assert alice.post("/rules", {**form, "form_token": alice.form_token()}).status == 403
    assert rule.sender in alice.get("/rules").text
    assert alice.post(f"/rules/{rule.id}/remove", {"form_token": alice.form_token()}).status == 303
    assert alice.post(f"/rules/{rule.id}/restore", {"form_token": alice.form_token()}).status == 403
    assert 'name="effect"' in site.signed_in(BOB).get("/rules").text


def test_an_alias_in_another_domain_does_not_let_a_person_make_rules(
    make_parts: MakeParts, smtp: SmtpServer, tmp_path: Path
) -> None:
    (tmp_path / "quarantine.toml").write_text(SETTINGS)
    aliases = tmp_path / "virtual"
    aliases.write_text(f"al@pears.example {ALICE}\nbo@apples.example {BOB}\n")
    site = Site(make_parts(**overrides(smtp) | {"people__alias_file": str(aliases)}))
    with_values(site, "apples.example", recipient_rules="false")
    for person, alias, may_rule in ((ALICE, "al@pears.example", False), (BOB, "bo@apples.example", True)):
        held, browser = site.hold(recipients=(alias,)), site.signed_in(person)
        page = f"/messages/{held.id}/"
        assert ('name="effect"' in browser.get(page).text) is may_rule
        assert browser.get(f"{page}sender").status == (200 if may_rule else 403)
        form = {"sender": "promo@example.net", "effect": "block", "form_token": browser.form_token()}
        for names in ({"recipient": alias}, {"message": str(held.id)}):
            assert browser.post("/rules", form | names).status == (303 if may_rule else 403)
    assert {rule.scope for rule in site.store.rules.list(None, 9, site.now)} == {BOB}


# ---- retention


def recipients_of(site: Site, held: Held) -> list[str]:
    """Return the recipients for whom a message can still be found."""
    found = site.store.deliveries.search(Filter(), 99).deliveries
    return sorted(delivery.recipient for delivery in found if delivery.id == held.id and delivery.recipient)


def test_each_domain_forgets_at_its_own_time_and_days_are_dropped_at_the_longest(
    make_parts: MakeParts, smtp: SmtpServer, tmp_path: Path
) -> None:
    limits = "[store]\n    retention_days = 20\n    retention_max_days = 60\n    [domains"
    (tmp_path / "quarantine.toml").write_text(SETTINGS.replace("[domains", limits, 1))
    site = Site(make_parts(**overrides(smtp) | {"local_domains": "apples.example,pears.example,nuts.example"}))
    with_values(site, "apples.example", retention_spam_days="5", retention_dangerous_days="60")
    carol = "carol@nuts.example"
    held = {tier: site.hold(tier, recipients=(ALICE, BOB, carol)) for tier in (Tier.SPAM, Tier.DANGEROUS)}
    waiting = site.hold(recipients=(ALICE,))
    site.parts.actions.request_release(waiting.id, 0, Actor(ActorKind.RECIPIENT))
    began = site.now
    site.store.statistics.close((began + timedelta(days=70)).date())
    shown: dict[int, list[str]] = {}
    for day in range(70):
        site.now = began + timedelta(days=day, minutes=1)
        housekeeping.daily(site.parts, site.now)
        found = [
            f"{delivery.recipient[0]} {tier.value}"
            for delivery in site.store.deliveries.search(Filter(), 99).deliveries
            for tier in held
            if delivery.id == held[tier].id and delivery.recipient
        ]
        found.sort()
        if not shown or found != shown[max(shown)]:
            shown[day] = found
    everything = ["a dangerous", "a spam", "b dangerous", "b spam", "c dangerous", "c spam"]
    assert shown[0] == everything
    assert shown[5] == [each for each in everything if each != "a spam"]
    assert shown[20] == ["a dangerous"]
    assert [day for day, found in shown.items() if not found][0] in (60, 61, 62)  # PostgreSQL drops whole days
    assert site.state(waiting) is State.REQUESTED


def test_deliveries_are_forgotten_within_a_minute_of_their_time(site: Site) -> None:
    with_values(site, "apples.example", retention_spam_days="5")
    held = site.hold(recipients=(ALICE, BOB))
    end = held_at(held.id) + timedelta(days=5)
    site.store.statistics.close(end.date())
    housekeeping.daily(site.parts, end - timedelta(days=2))
    housekeeping.daily(site.parts, end - timedelta(days=1))
    housekeeping.expire(site.parts, end - timedelta(seconds=30))
    assert recipients_of(site, held) == [ALICE, BOB]
    housekeeping.expire(site.parts, end + timedelta(seconds=30))
    assert recipients_of(site, held) == [BOB]
    assert site.signed_in(ALICE).get(f"/messages/{held.id}/").status == 404


def test_a_shorter_retention_applies_to_what_is_held_already(site: Site) -> None:
    held = site.hold(recipients=(ALICE, BOB))
    later = site.now + timedelta(days=6)
    for at in (later - timedelta(days=1), later):
        housekeeping.daily(site.parts, at)
    assert recipients_of(site, held) == [ALICE, BOB]
    with_values(site, "apples.example", retention_spam_days="5")
    housekeeping.expire(site.parts, later)
    assert recipients_of(site, held) == [BOB]


@pytest.mark.parametrize("size_bytes", [0, 1 << 19])
def test_a_mail_that_comes_again_after_the_end_of_one_delivery_is_held_for_everybody(
    site: Site, size_bytes: int
) -> None:
    data = builders.mail(size_bytes=size_bytes)
    first = site.hold(data=data, recipients=(ALICE, BOB))
    assert site.hold(data=data, recipients=(ALICE, BOB)).known
    with_values(site, "apples.example", retention_spam_days="5")
    for days in (5, 6):
        housekeeping.daily(site.parts, site.now + timedelta(days=days))
    again = site.hold(data=data, recipients=(ALICE, BOB))
    assert not again.known and recipients_of(site, again) == [ALICE, BOB]
    assert site.hold(data=data, recipients=(ALICE, BOB)).id == again.id
    assert recipients_of(site, first) == [BOB]


def test_nothing_is_forgotten_by_a_clock_that_jumped(site: Site) -> None:
    with_values(site, "apples.example", retention_spam_days="5")
    held = site.hold(recipients=(ALICE,))
    for days in (0.0, 1.0):
        housekeeping.daily(site.parts, site.now + timedelta(days=days))
    for days in (400.0, 400.5):
        housekeeping.daily(site.parts, site.now + timedelta(days=days))
        housekeeping.expire(site.parts, site.now + timedelta(days=days))
    assert site.delivery(held).recipient == ALICE


def test_a_retention_is_between_the_limits_of_the_site(site: Site) -> None:
    for value in ("31", "0", "x", "-1"):
        with pytest.raises(BadDomainValue, match="retention_spam_days"):
            with_values(site, "apples.example", retention_spam_days=value)
    with_values(site, "apples.example", retention_spam_days="30")


# ---- logo and colours

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
WEBP = b"RIFF\x1a\x00\x00\x00WEBPVP8L\r\x00\x00\x00/\x00\x00\x00\x10\x07\x10\x11\x11\x88\x88\xfe\x07\x00"


def data_url(octets: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(octets).decode()}"


def test_logo_and_colours_are_those_of_the_recipients_domain(site: Site, smtp: SmtpServer) -> None:
    with_values(site, "apples.example", logo=data_url(PNG), colour="#7A1F5C", colour_dark="#f0a8d8")
    with_values(site, "pears.example", logo=data_url(WEBP, "webp"), colour="#2f5d1e")
    site.hold(recipients=(ALICE, BOB))
    files: dict[str, list[str]] = {}
    for who in (ALICE, BOB):
        files[who] = re.findall(r'"/quarantine(/brand/[^"]+)"', site.signed_in(who).get("/").text)
    assert [name.rpartition(".")[2] for name in files[ALICE] + files[BOB]] == ["css", "png", "css", "webp"]
    assert not {*files[ALICE]} & {*files[BOB]}
    style, logo = (site.browser().get(name) for name in files[ALICE])
    assert style.header("Content-Type") == "text/css; charset=utf-8"
    assert style.text.count("--main: #7a1f5c") == style.text.count("--main: #f0a8d8") == 1
    assert (logo.header("Content-Type"), logo.body) == ("image/png", PNG)
    for answer in (style, logo):
        assert answer.header("X-Content-Type-Options") == "nosniff"
        assert "immutable" in (answer.header("Cache-Control") or "")
    assert site.browser().get(files[BOB][1]).header("Content-Type") == "image/webp"
    assert not re.search("/brand/", site.browser().get("/sign-in").text)
    assert site.browser().get("/brand/0123456789abcdef.png").status == 404
    send_all(site)
    for who, octets, others in ((ALICE, PNG, "#2f5d1e"), (BOB, WEBP, "#7a1f5c")):
        [mail] = mails_to(smtp, who)
        html = next(part for part in mail.walk() if part.get_content_type() == "text/html").get_content()
        [picture] = [part for part in mail.walk() if part.get_content_maintype() == "image"]
        assert f'src="cid:{picture["Content-ID"].strip("<>")}"' in html
        assert picture.get_content() == octets and picture.get_content_disposition() == "inline"
        assert "http" not in "".join(re.findall(r'src="[^"]*"', html)) and others not in html
        assert html.count("#7a1f5c" if who == ALICE else "#2f5d1e") >= 2


def test_a_digest_with_the_largest_logo_and_many_rows_is_not_clipped(site: Site, smtp: SmtpServer) -> None:
    with_values(site, "pears.example", logo=data_url(PNG + bytes(LOGO_OCTETS - len(PNG))))
    for number in range(60):
        subject, sender = f"{number} " + "a subject that is long " * 6, f"Promo <promo@shop{number}.example>"
        site.hold(recipients=(BOB,), subject=subject, header_from=sender)
    site.hold(recipients=(BOB,), header_from="Jane <jane@partner.example>", symbols=PROVEN, score=15.2)  # looks wanted
    send_all(site)
    [sent] = [mail for mail in smtp.mails if mail.recipients == [BOB]]
    assert 60_000 < len(sent.data) < 90_000


DARKER = "colour: Enter a darker colour. Its contrast to the ground of pages in light mode,"


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("colour", "#12345", "colour: Enter a colour like #1f5fa8"),
        ("colour", "red", "colour: Enter a colour like #1f5fa8"),
        ("colour", "#fff; } body { display: none", "colour: Enter a colour like"),
        ("colour", "#ffee00", f"{DARKER} #ffffff, is 1.2, below 4.5 (WCAG AA)."),
        ("colour", "#767676", f"{DARKER} #f4f5f7, is 4.2, below 4.5 (WCAG AA)."),
        (
            "colour_dark",
            "#1f5fa8",
            "colour_dark: Enter a lighter colour. Its contrast to the text on buttons in dark mode, #0b1a2c, is 2.7",
        ),
        ("logo", "logo.png", "logo: The store keeps the picture, not a path"),
        ("logo", data_url(b"<svg xmlns='http://www.w3.org/2000/svg'/>"), "logo: The logo is neither PNG nor WebP"),
        ("logo", data_url(b"GIF89a"), "logo: The logo is neither PNG nor WebP"),
        ("logo", data_url(PNG + bytes(20_480)), "logo: The logo has 205"),
        ("logo", "data:image/svg+xml;base64,PHN2Zz4=", "logo: Use the path of a PNG or WebP file"),
        ("logo", "data:text/html;base64,PHN2Zz4=", "logo: Use the path of a PNG or WebP file"),
    ],
)
def test_a_wrong_logo_or_colour_is_rejected_with_a_sentence(site: Site, key: str, value: str, sentence: str) -> None:
    with pytest.raises(BadDomainValue) as error:
        with_values(site, "apples.example", **{key: value})
    assert str(error.value).startswith(sentence)


def test_the_file_names_a_logo_by_its_path(make_parts: MakeParts, smtp: SmtpServer, tmp_path: Path) -> None:
    (tmp_path / "logo.dat").write_bytes(PNG)
    config = tmp_path / "quarantine.toml"
    config.write_text(SETTINGS + f'    logo = "{tmp_path}/logo.dat"')  # for pears.example
    parts = make_parts(**overrides(smtp))
    assert parts.domains.of(BOB).brand.logo_octets == PNG and not parts.domains.of(ALICE).brand.logo
    config.write_text(SETTINGS + f'    logo = "{tmp_path}/none.png"')
    with pytest.raises(SettingsError, match=r'domains."pears.example".logo: /.*none.png cannot be read'):
        make_parts(**overrides(smtp))


# ---- public URL

HOST = "quarantine.apples.example"
APPLE_URL = f"https://{HOST}/quarantine"
PROVIDER_URL = "https://quarantine.provider.example/quarantine"


@pytest.fixture
def hosts(make_parts: MakeParts, smtp: SmtpServer, tmp_path: Path) -> Site:
    """A site over https at which apples.example has a host of its own."""
    (tmp_path / "quarantine.toml").write_text(SETTINGS)
    (tmp_path / "aliases").write_text("alias@apples.example bob@pears.example\n")
    site = Site(make_parts(**overrides(smtp), public_url=PROVIDER_URL, people__alias_file=tmp_path / "aliases"))
    with_values(site, "apples.example", public_url=APPLE_URL)
    return site


def request(browser: Browser, method: str, url: str, form: dict[str, str] | None = None, **headers: str) -> Answer:
    """Send a request to the host of this URL, as a browser does that shows a page of it."""
    host, _, path = url.removeprefix("https://").partition("/")
    sent = {"Host": host, **({"Origin": f"https://{host}"} if method == "POST" else {}), **headers}
    return browser.request(method, f"/{path}", form=form, headers=sent)


def test_all_links_of_a_domain_lead_to_its_host(hosts: Site, smtp: SmtpServer) -> None:
    hosts.hold(recipients=(ALICE, BOB))
    for who in (ALICE, BOB):
        request(hosts.browser(), "POST", f"{PROVIDER_URL}/sign-in", {"address": who})
    send_all(hosts)
    for who, own, other in ((ALICE, APPLE_URL, PROVIDER_URL), (BOB, PROVIDER_URL, APPLE_URL)):
        for mail in mails_to(smtp, who):
            assert own in texts(mail) and other.partition("//")[2].partition("/")[0] not in texts(mail)
            assert not mail["List-Unsubscribe"] or mail["List-Unsubscribe"].startswith(f"<{own}/link/")


@pytest.mark.parametrize(
    ("receiver", "own"),
    [
        (BOB, PROVIDER_URL),  # an administrator of the domain, who signs in elsewhere
        ("eve@apples.example", APPLE_URL),
        ("", APPLE_URL),  # the admin_address of the domain
        ("it@pears.example", PROVIDER_URL),
        ("postmaster@provider.example", PROVIDER_URL),
        ("alias@apples.example", PROVIDER_URL),  # of Bob
    ],
)
@pytest.mark.parametrize("is_reminder", [False, True])
def test_the_mail_about_a_request_leads_to_the_host_of_its_receiver(
    hosts: Site, smtp: SmtpServer, receiver: str, own: str, is_reminder: bool
) -> None:
    if receiver in (BOB, "eve@apples.example"):
        hosts.parts.staff.give(receiver, Role.DOMAIN_ADMINISTRATOR, "apples.example", builders.BY_OPERATOR)
    elif receiver:
        with_values(hosts, "apples.example", admin_address=receiver)
    held = hosts.hold(recipients=(ALICE,), tier=Tier.SUSPICIOUS)
    hosts.parts.actions.request_release(held.id, 0, Actor(ActorKind.RECIPIENT))
    housekeeping.send_queued(hosts.parts, hosts.now)
    if is_reminder:
        smtp.mails.clear()
        hosts.now += timedelta(days=1, hours=1)
        assert hosts.parts.actions.remind(DeliveryId(held.id, 0))
        housekeeping.send_queued(hosts.parts, hosts.now)
    [mail] = mails_to(smtp, receiver or "it@apples.example")
    assert mail["From"] == "Apple Growers <quarantine@mail.apples.example>"
    [link] = re.findall(r"https://\S+/admin/messages/\S+", texts(mail))
    assert link == f"{own}/admin/messages/{held.id}.0/"
    if receiver == BOB:
        browser = hosts.signed_in(BOB)
        assert request(browser, "GET", link).status == 200


def test_links_and_forms_of_a_domain_work_at_its_host_only(hosts: Site, smtp: SmtpServer) -> None:
    held = hosts.hold(recipients=(ALICE, BOB))
    for number, own, other in ((0, APPLE_URL, PROVIDER_URL), (1, PROVIDER_URL, APPLE_URL)):
        path = "/link/" + hosts.link(Action.RELEASE, held, number).partition("/link/")[2]
        browser = hosts.browser()
        moved = request(browser, "GET", f"{other}{path}?since=1")
        assert (moved.status, moved.header("Location")) == (303, f"{own}{path}?since=1")
        assert request(browser, "POST", other + path, {"pressed": "1"}).status == 403
        assert request(browser, "POST", own + path, {"pressed": "1"}, Origin=other[: other.index("/q")]).status == 403
        assert hosts.state(held, number) is State.HELD
        assert request(browser, "GET", own + path).status == 200
        assert request(browser, "POST", own + path, {"pressed": "1"}).status == 303
        assert hosts.state(held, number) is State.RELEASED


def test_a_recipient_signs_in_at_the_host_of_their_domain_only(hosts: Site, smtp: SmtpServer) -> None:
    browser = hosts.browser()
    assert request(browser, "POST", f"{PROVIDER_URL}/sign-in", {"address": ALICE}).status == 303
    housekeeping.send_queued(hosts.parts, hosts.now)
    text = texts(mails_to(smtp, ALICE)[0])
    [code] = re.findall(r"\b\d{4} \d{4}\b", text)[:1]
    token = re.findall(r"/sign-in/([A-Za-z0-9_-]{32})/", text)[0]
    assert (
        request(browser, "GET", f"{PROVIDER_URL}/sign-in/{token}/").header("Location")
        == f"{APPLE_URL}/sign-in/{token}/"
    )
    assert request(browser, "POST", f"{PROVIDER_URL}/sign-in/{token}/", {"pressed": "1"}).status == 403
    assert not any("session" in name for name in browser.cookies)
    mine = hosts.browser()
    done = request(mine, "POST", f"{APPLE_URL}/sign-in/{token}/", {"pressed": "1"}, **{"Sec-Fetch-User": "?1"})
    assert done.status == 303 and any("session" in name for name in mine.cookies)
    assert request(mine, "GET", f"{APPLE_URL}/").status == 200
    moved = request(mine, "GET", f"{PROVIDER_URL}/?state=deleted")
    assert (moved.status, moved.header("Location")) == (303, f"{APPLE_URL}/?state=deleted")
    request(browser, "POST", f"{PROVIDER_URL}/sign-in", {"address": ALICE})
    assert request(browser, "POST", f"{PROVIDER_URL}/sign-in/code", {"code": code}).status == 403


def test_the_sign_in_page_looks_like_the_domain_of_its_host(hosts: Site) -> None:
    browser = hosts.browser()
    for host in (HOST, f"{HOST.upper()}:443"):
        for path in ("/sign-in", "/nothing", "/link/x/"):
            page = request(browser, "GET", f"https://{host}/quarantine{path}")
            assert "Apple Growers" in page.text and "Provider" not in page.text and 'lang="de"' in page.text
        assert "provider" not in request(browser, "GET", f"https://{host}/elsewhere").text
    for host in ("quarantine.provider.example", "unknown.example", "", f"{HOST}.evil.example"):
        page = request(browser, "GET", f"https://{host}/quarantine/sign-in")
        assert "Provider" in page.text and "Apple" not in page.text
    with_values(hosts, "pears.example", public_url=APPLE_URL)
    shared = request(browser, "GET", f"{APPLE_URL}/sign-in").text
    assert "Provider" in shared and "Apple" not in shared and "Pear" not in shared


def test_an_old_one_click_link_still_ends_digests(hosts: Site, smtp: SmtpServer) -> None:
    hosts.hold(recipients=(ALICE,))
    send_all(hosts)
    digest = hosts.store.digests.last(ALICE)
    assert digest is not None
    token = hosts.parts.links.token(Action.PREFERENCES, digest.id, 0, hosts.now)
    answer = hosts.browser().request(
        "POST",
        f"/link/{token}/",
        form={"List-Unsubscribe": "One-Click"},
        headers={"Host": "quarantine.provider.example"},
    )
    assert answer.status == 200 and hosts.store.recipients.get(ALICE).stopped_at is not None


@pytest.mark.parametrize("url", ["http://q.apples.example/quarantine", "https://q.apples.example/other", "q.example"])
def test_the_url_of_a_domain_is_https_and_has_the_path_of_the_site(hosts: Site, url: str) -> None:
    with pytest.raises(BadDomainValue, match="public_url: "):
        with_values(hosts, "apples.example", public_url=url)
