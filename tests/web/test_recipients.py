"""The page of a recipient in the console, on both stores."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import time, timedelta
from email import message_from_bytes
from email.policy import SMTP
from html import unescape
from pathlib import Path
from urllib.parse import quote, urlencode

import pytest

from digest.housekeeping import forget_waiting
from portal.assemble import Parts
from portal.model.audit import Act, AuditEntry, AuditFilter
from portal.model.errors import NotFound
from portal.model.message import EventKind, State, Tier
from portal.model.schedule import Preferences
from portal.model.staff import EVERYWHERE, Grant, Role
from portal.stores.records import Unsent
from tests.builders import ALICE, BOB, BY_LINK, BY_OPERATOR, MALLORY, digesting, prefer, rule
from tests.smtp_server import SmtpServer
from tests.statements import Statements
from tests.web_client import Answer, Browser, Site

DOMAINS = ("example.org", "example.net", "münchen.example")
ALIASES = "sales@example.net alice@example.org\ninfo@example.org alice@example.org, bob@example.org\n"


@pytest.fixture
def site(make_parts: Callable[..., Parts], tmp_path: Path) -> Site:
    file = tmp_path / "virtual"
    file.write_text(ALIASES)
    return Site(make_parts(local_domains=DOMAINS, people__alias_file=str(file), people__recipient_delimiter="+"))


def staff(site: Site, role: Role = Role.ADMINISTRATOR, domain: str = EVERYWHERE, person: str = MALLORY) -> Browser:
    site.store.staff.give(Grant(person, role, domain, site.now, BY_OPERATOR))
    return site.signed_in(person)


def page_of(browser: Browser, address: str) -> str:
    answer = browser.get(f"/admin/recipients/?address={quote(address)}")
    assert answer.status == 200
    return unescape(answer.text)


def test_the_page_says_what_staff_need_to_know(site: Site) -> None:
    held = site.hold(subject="Invoice 7", recipients=(ALICE,))
    site.hold(Tier.DANGEROUS, subject="For sales", recipients=("sales@example.net",))
    site.hold(subject="For both", recipients=("info@example.org",))
    site.parts.actions.delete(held.id, 0, BY_OPERATOR)
    prefer(site.store, ALICE, Preferences(at=(time(6, 40),), timezone="Asia/Tokyo", language="fr"))
    site.store.rules.add([rule("news.example", "allow")], site.now)
    site.store.audit.record(
        AuditEntry.new(site.now, Act.SIGNED_IN, BY_LINK, ALICE, "Firefox · Windows"),
    )
    site.store.sign_ins.start_session(b"x" * 32, ALICE, site.now, "Safari · iPhone")
    page = page_of(staff(site), ALICE)
    for text in (
        *("Held: 2", "Deleted: 1", "Invoice 7", "For both", "For sales", "<bdi>sales@example.net</bdi></a> · alias"),
        *("BAYES_SPAM 5.1", "17.5 / 15", "Possibly dangerous", "6:40", "Asia/Tokyo", "Français", "None was sent."),
        *("Allow · <strong><bdi>news.example</bdi>", "Firefox · Windows", "Safari · iPhone", "Times are in UTC"),
        '<a href="/quarantine/admin/recipients/?address=info%40example.org"><bdi>info@example.org</bdi></a>',
    ):
        assert text in page, text
    assert "Bob" not in page and BOB not in page
    assert page.index('href="#acts"') < page.index("Invoice 7") < page.index('id="acts"')


@pytest.mark.parametrize("typed", ["Alice+x@Example.ORG", " alice@example.org", "Sales@example.net"])
def test_any_spelling_leads_to_the_person(site: Site, typed: str) -> None:
    page = page_of(staff(site), typed)
    assert f"<h2><bdi>{ALICE}</bdi></h2>" in page
    assert ("is an alias of this recipient" in page) == ("Sales" in typed)


def test_international_domains_are_read_and_shown_with_u_labels(site: Site) -> None:
    site.hold(recipients=("jo@xn--mnchen-3ya.example",))
    browser = staff(site)
    for typed in ("jo@MÜNCHEN.example", "jo@xn--mnchen-3ya.example"):
        page = page_of(browser, typed)
        assert "<h2><bdi>jo@münchen.example</bdi></h2>" in page and "Held: 1" in page


def test_a_shared_mailbox_names_its_readers(site: Site) -> None:
    page = page_of(staff(site), "info@example.org")
    assert "This is a shared mailbox." in page and BOB in page and ALICE in page
    assert "Signed-in browsers" not in page


@pytest.mark.parametrize(
    ("typed", "reason"),
    [
        ("alice", "This is not an email address."),
        ("a b@example.org", "This is not an email address."),
        ("x@elsewhere.example", "This address is not a recipient here"),
        ("nobody@example.org", "Nothing is stored for this address"),
        ('"><script>alert(1)</script>@example.org', "This is not an email address."),
        ("a" * 900 + "@example.org", "This is not an email address."),
        ("\x00\u202e@example.org", "This is not an email address."),
    ],
)
def test_an_unknown_address_says_why(site: Site, typed: str, reason: str) -> None:
    browser = staff(site)
    answer = browser.get(f"/admin/recipients/?address={quote(typed)}")
    assert answer.status == 200 and reason in answer.text and "<script>alert" not in answer.text


def test_a_released_message_has_the_answer_of_the_mail_server(make_parts: Callable[..., Parts]) -> None:
    with SmtpServer() as server:
        site = Site(make_parts(relay__url=server.url))
        held = site.hold(recipients=(ALICE,))
        site.parts.actions.release(held.id, 0, BY_OPERATOR)
    [answer] = [each.detail for each in site.history(held) if each.kind is EventKind.RELEASED]
    assert answer.startswith("250") and f"<bdi>{answer}</bdi>" in page_of(staff(site), ALICE)


def test_a_part_of_an_address_is_enough(site: Site) -> None:
    site.hold(recipients=(ALICE, BOB, "sale_s@example.org"))
    browser = staff(site)
    first = browser.get("/admin/").text
    assert re.search(r'action="/quarantine/admin/recipients/">\s*<input name="address"[^>]* autofocus>', first)
    found = browser.get("/admin/recipients/?address=LIC")
    assert found.header("Location") == "/quarantine/admin/recipients/?address=alice%40example.org"
    several = page_of(browser, "sale")
    assert "<bdi>sale_s@example.org</bdi>" in several and "<bdi>sales@example.net</bdi>" in several
    assert "not an email" in page_of(browser, "s%e") and "not an email" in page_of(browser, "sal_s")
    site.hold(recipients=tuple(f"box{number:02}@example.org" for number in range(30)))
    many = page_of(browser, "box")
    assert many.count("<bdi>box") == 20 and "There are more." in many
    limited = staff(site, Role.HELP_DESK, "example.org", BOB).get("/admin/recipients/?address=sale")
    assert limited.header("Location") == "/quarantine/admin/recipients/?address=sale_s%40example.org"


@pytest.mark.parametrize("address", ['"<b>x"@example.org', "a@b@example.org", '"a b"@example.org'])
def test_an_envelope_recipient_who_cannot_sign_in_leads_to_their_messages(site: Site, address: str) -> None:
    site.hold(recipients=(address,), subject="For nobody")
    browser = staff(site)
    page = browser.get(f"/admin/recipients/?{urlencode({'address': address})}")
    assert page.status == 200, "not a redirect to itself"
    link = f"/admin/?{urlencode({'recipient': address})}"
    assert f'href="/quarantine{link}"' in page.text
    assert "For nobody" in browser.get(link).text


def test_staff_of_a_domain_see_the_recipients_and_addresses_of_the_domain_alone(site: Site) -> None:
    site.hold(subject="For alice", recipients=(ALICE,))
    site.hold(subject="For sales", recipients=("sales@example.net",))
    site.store.rules.add([rule("of-sales.example", scope="sales@example.net")], site.now)
    browser = staff(site, Role.HELP_DESK, "example.org")
    page = page_of(browser, ALICE)
    assert "For alice" in page
    assert "For sales" not in page and "sales@example.net" not in page and "of-sales" not in page
    for typed in ("jo@example.net", "nobody@elsewhere.example", "jo@münchen.example"):
        assert "This address is not in your domains." in page_of(browser, typed)
    other = staff(site, Role.HELP_DESK, "example.net", BOB)
    assert "This address is not in your domains." in page_of(other, "sales@example.net"), "its reader is elsewhere"


def test_the_page_says_why_no_digest_comes(site: Site) -> None:
    site.hold(recipients=(ALICE,))
    browser = staff(site)
    with digesting(site.store, ALICE, site.now, 50, ignore_schedule=True):
        pass
    assert "None was sent." not in page_of(browser, ALICE)
    site.hold(recipients=(ALICE,))
    claims = site.store.digests.claim(site.now, 1, 50, only=[ALICE], ignore_schedule=True)
    site.store.digests.settle([], [Unsent(claims.digests[0], site.now, failure="452 4.2.2 mailbox <full>")], site.now)
    assert "452 4.2.2 mailbox <full>" in page_of(browser, ALICE)
    alice = site.signed_in(ALICE)
    alice.post("/preferences", {"form_token": alice.form_token(), "change": "stop"})
    page = page_of(browser, ALICE)
    assert "Digests stopped on" in page and f"<bdi>{ALICE} (portal)</bdi>" in page


def test_the_page_takes_few_statements(make_parts: Callable[..., Parts], monkeypatch: pytest.MonkeyPatch) -> None:
    statements = Statements(monkeypatch)
    site = Site(make_parts())
    for number in range(30):
        site.hold(subject=f"Offer {number * 7919}")
    with digesting(site.store, ALICE, site.now, 50, ignore_schedule=True):
        pass
    site.store.recipients.set_digests_stopped(ALICE, site.now)
    browser = staff(site)
    browser.get("/admin/requests")  # every ten seconds one page counts the open requests
    site.now += timedelta(minutes=2)
    for at_most in (9, 7):  # once a minute a page records the use of the session and of the console
        with statements.of() as sent:
            assert "Digests stopped" in page_of(browser, ALICE)
        assert len(sent) <= at_most, "\n".join(sent)


# ---- acts


def act(browser: Browser, act: str, address: str = ALICE, **form: str) -> Answer:
    return browser.post(
        "/admin/recipients/", {"form_token": browser.form_token(), "act": act, "address": address, **form}
    )


def result(browser: Browser, act_name: str, address: str = ALICE, **form: str) -> str:
    return unescape(browser.follow(act(browser, act_name, address, **form), "/admin/recipients/").text)


def audited(site: Site) -> list[tuple[str, str, str, str]]:
    """Return what the administrator did: act, way, recipient and details, oldest first."""
    found = site.store.audit.list(AuditFilter(person=MALLORY), 99)
    return [
        (each.act, each.actor.via, each.subject, each.detail) for each in reversed(found) if each.act != "role-given"
    ]


def test_staff_stop_resume_and_set_digests(site: Site) -> None:
    browser = staff(site)
    assert "Digests stopped." in result(browser, "stop", reason="on leave")
    assert site.store.recipients.get(ALICE).stopped_at == site.now
    assert f"<bdi>{MALLORY} (console)</bdi>" in page_of(browser, ALICE)
    site.pass_time(seconds=1)
    assert "it was so already" in result(browser, "stop")
    assert "Digests resumed." in result(browser, "resume")
    site.pass_time(seconds=1)
    chosen = {"schedule": "weekdays", "at": "15:00, 7:05", "timezone": "Europe/Vienna", "language": "cs"}
    page = result(browser, "preferences", **chosen)
    assert "Preferences saved." in page and 'value="07:05, 15:00"' in page and "Europe/Vienna" in page
    kept = site.store.recipients.get(ALICE).preferences
    assert kept == Preferences("weekdays", (time(7, 5), time(15)), "Europe/Vienna", "cs")
    assert audited(site) == [
        ("digests-stopped", "console", ALICE, "on leave"),
        ("digests-resumed", "console", ALICE, ""),
        ("preferences-set", "console", ALICE, kept.to_json()),
    ]


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("schedule", "never", "These days are not known."),
        ("at", "7", "Enter times like 07:00"),
        ("at", "24:00", "Enter times like 07:00"),
        ("at", ",".join(f"0{hour}:00" for hour in range(7)), "six at most"),
        ("timezone", "Mars/<b>Base", "There is no time zone of this name."),
        ("language", "tlh", "This language is not available."),
    ],
)
def test_wrong_preferences_change_nothing_and_are_shown_again(site: Site, name: str, value: str, text: str) -> None:
    answer = act(staff(site), "preferences", **{"language": "de", name: value})
    assert answer.status == 400 and text in answer.text and "<b>Base" not in answer.text
    assert site.store.recipients.get(ALICE).preferences == Preferences()


def test_a_digest_is_sent_again_at_once(site: Site) -> None:
    browser = staff(site)
    assert "No digest was sent" in result(browser, "send-digest")
    held = site.hold(recipients=(ALICE,))
    for _ in range(2):
        site.pass_time(seconds=1)
        assert "A digest is on its way" in result(browser, "send-digest", reason="lost")
        with digesting(site.store, ALICE, site.now, 50) as digest:
            assert [each.id for each in digest.deliveries] == [held.id]
    assert audited(site) == [("digest-requested", "console", ALICE, "lost")] * 2


def test_a_sign_in_link_goes_to_the_recipient_and_to_nobody_else(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    browser = staff(site, Role.HELP_DESK, "example.org")
    with caplog.at_level("INFO"):
        answer = act(browser, "send-link", "alice+x@example.org", reason="lost the digest")
    page = browser.follow(answer, "/admin/recipients/").text
    with site.store.outbox.sending(site.now) as outgoing:
        assert outgoing and outgoing.to == ALICE
        mail = message_from_bytes(outgoing.mail, policy=SMTP)
    body = mail.get_body(("plain",))
    assert body is not None
    text = body.get_content()
    assert "Your administrator sends you this link" in text and "code" not in text
    assert mail["Subject"] == "Sign in to your mail quarantine"
    [token] = re.findall(r"/sign-in/([A-Za-z0-9_-]{32})/", text)
    assert token not in page + caplog.text + str(answer.headers)
    assert "No link was sent" in result(browser, "send-link"), "the rate limit of the mailbox"
    visitor = site.browser()
    assert ALICE in visitor.get(f"/sign-in/{token}/").text
    assert visitor.post(f"/sign-in/{token}/").header("Location") == "./?done=1", "not without a button"
    pressed = visitor.post(f"/sign-in/{token}/", {"pressed": "1"}, headers={"Sec-Fetch-User": "?1"})
    assert pressed.header("Location") == "/quarantine/"
    assert visitor.get("/").status == 200
    assert audited(site) == [("link-sent", "console", ALICE, "lost the digest")]


def test_staff_sign_a_recipient_out_and_remove_a_rule(site: Site) -> None:
    alice, browser = site.signed_in(ALICE), staff(site)
    kept, removed = rule("kept.example"), rule("gone.example")
    of_bob = rule("of-bob.example", scope=BOB)
    site.store.rules.add([kept, removed, of_bob], site.now)
    assert "signed out everywhere" in result(browser, "sign-out", reason="lost phone")
    assert alice.get("/").status == 303
    site.pass_time(seconds=1)
    assert "Sender removed" in result(browser, "remove-rule", rule=str(removed.id))
    assert act(browser, "remove-rule", rule=str(of_bob.id)).status == 404
    assert act(browser, "remove-rule", rule="x").status == 404
    left = site.store.rules.list(None, 9, site.now)
    assert {each.id for each in left} == {kept.id, of_bob.id}
    assert [each[0] for each in audited(site)] == ["signed-out", "rule-removed"]
    assert audited(site)[0][3] == "1 sessions: lost phone"


@pytest.mark.parametrize("name", ["send-link", "send-digest", "stop", "resume", "preferences", "sign-out"])
def test_staff_act_only_for_recipients_of_their_domains_and_within_their_role(site: Site, name: str) -> None:
    site.hold(recipients=(ALICE,))
    before = site.store.recipients.get(ALICE), site.store.recipients.get("info@example.org")
    others = [
        staff(site, Role.DOMAIN_ADMINISTRATOR, "example.net", "dora@example.net"),
        staff(site, Role.AUDITOR, EVERYWHERE, "ann@example.org"),
    ]
    if name != "send-link":
        others.append(staff(site, Role.HELP_DESK, EVERYWHERE, "hal@example.org"))
    for browser in others:
        assert act(browser, name).status == 403
        assert f'value="{name}"' not in page_of(browser, ALICE)
    browser = staff(site)
    assert act(browser, name, "info@example.org").status == 400, "nobody signs in as a shared mailbox"
    assert act(browser, name, "x@elsewhere.example").status == 400
    assert act(browser, name, form_token="x").status == 403
    assert (site.store.recipients.get(ALICE), site.store.recipients.get("info@example.org")) == before
    with site.store.outbox.sending(site.now) as outgoing:
        assert outgoing is None


# ---- forgetting


def forget(browser: Browser, address: str = ALICE, **form: str) -> Answer:
    return browser.post("/admin/recipients/forget", {"form_token": browser.form_token(), "address": address, **form})


def test_a_leaver_is_forgotten_after_a_confirmation(site: Site) -> None:
    held = [site.hold(recipients=(each,)) for each in (ALICE, "sales@example.net", "info@example.org")]
    site.store.staff.give(Grant(ALICE, Role.HELP_DESK, "example.net", site.now, BY_OPERATOR))
    by_group = Grant(ALICE, Role.AUDITOR, "", site.now, BY_OPERATOR, "ldap", "it", site.now + timedelta(days=7))
    site.store.staff.put_groups(ALICE, "ldap", [by_group], site.now)
    alice, browser = site.signed_in(ALICE), staff(site)
    assert "Forget this recipient" in page_of(browser, ALICE)
    page = unescape(browser.get(f"/admin/recipients/forget?address={quote(ALICE)}").text)
    for text in ("Messages: 2", "<bdi>sales@example.net</bdi>", "Role: Help desk · <bdi>example.net</bdi>"):
        assert text in page, text
    assert alice.get("/").status == 200
    done = browser.follow(forget(browser, reason="left"), "/admin/").text
    assert "The recipient is forgotten." in done and "Digests stopped on" in done
    assert alice.get("/").status == 303 and site.store.staff.of(ALICE) == []
    assert site.state(held[0]) is State.HELD, "until the digest process runs"
    forget_waiting(site.parts, site.now)
    for each in held[:2]:
        with pytest.raises(NotFound):
            site.delivery(each)
    assert site.state(held[2]) is State.HELD
    assert ("recipient-forgotten", "console", ALICE, "left") in audited(site)


def test_mail_that_comes_after_the_confirmation_stays(site: Site) -> None:
    """The digest process may begin much later, and a release that is deferred makes it go on for days."""
    held = site.hold(recipients=(ALICE,))
    forget(staff(site))
    site.pass_time(hours=2)
    later = site.hold(recipients=(ALICE,), at=site.now)
    forget_waiting(site.parts, site.now)
    with pytest.raises(NotFound):
        site.delivery(held)
    assert site.state(later) is State.HELD


def test_only_those_who_manage_a_recipient_and_their_roles_forget_them(site: Site) -> None:
    site.store.staff.give(Grant(ALICE, Role.AUDITOR, EVERYWHERE, site.now, BY_OPERATOR))
    dora = staff(site, Role.DOMAIN_ADMINISTRATOR, "example.org", "dora@example.org")
    assert "roles that you may not remove" in dora.get("/admin/recipients/forget?address=alice@example.org").text
    assert forget(dora).status == 403
    assert forget(dora, "dora@example.org").status == 403, "not oneself"
    other = staff(site, Role.DOMAIN_ADMINISTRATOR, "example.net", "ned@example.net")
    assert forget(other).status == 403 and forget(other, "info@example.org").status == 403
    assert site.store.recipients.get(ALICE).stopped_at is None
    browser = staff(site)
    site.pass_time(minutes=20)
    assert "sign-in" in (forget(browser).header("Location") or ""), "not without a fresh sign-in"
    assert site.store.recipients.get(ALICE).stopped_at is None


def test_aliases_in_domains_of_others_are_left_alone(site: Site) -> None:
    held = site.hold(recipients=("sales@example.net",))
    dora = staff(site, Role.DOMAIN_ADMINISTRATOR, "example.org", "dora@example.org")
    assert forget(dora).status == 303
    forget_waiting(site.parts, site.now)
    assert site.state(held) is State.HELD
