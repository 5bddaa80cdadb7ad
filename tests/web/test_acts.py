"""Buttons of a message that do two things, questions to the administrator, and limits for each person."""

from __future__ import annotations

import email
import html
import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from digest import housekeeping
from portal.assemble import Parts
from portal.model.errors import RelayDeferred, RelayRefused, StoreUnavailable, TooManyRules
from portal.model.message import EventKind, Scan, ScanOutcome, Start, State, Symbol, Tier
from portal.model.rule import Effect
from portal.stores.records import Held
from portal.web import limits
from tests.builders import ALICE, BOB, BY_LINK, BY_OPERATOR, MALLORY, SENDER, rule
from tests.smtp_server import SmtpServer
from tests.statements import Statements
from tests.web_client import Answer, Browser, Site

ADMIN = "helpdesk@example.org"
PROVEN = (Symbol("DMARC_POLICY_ALLOW", -0.5, ("example.net", "none")),)


@pytest.fixture
def smtp() -> Iterator[SmtpServer]:
    with SmtpServer() as server:
        yield server


@pytest.fixture
def site(make_parts: Callable[..., Parts], smtp: SmtpServer) -> Site:
    return Site(make_parts(relay__url=smtp.url, mail__url=smtp.url, mail__admin_address=ADMIN))


def hold(site: Site, tier: Tier = Tier.SPAM, **more: Any) -> Held:
    return site.hold(tier, recipients=[ALICE], symbols=PROVEN, from_count=1, **more)


def press(browser: Browser, held: Held, act: str, **form: str) -> Answer:
    return browser.post(f"/messages/{held.id}/{act}", {"form_token": browser.form_token(), "from": "message", **form})


def said(browser: Browser, answer: Answer) -> str:
    """Return what the next page says, as text in one line."""
    page = browser.follow(answer, "/").text
    return " ".join(html.unescape(re.sub("<[^>]*>", " ", page[page.index("<main") :])).split())


def page_of(site: Site, held: Held) -> str:
    return site.signed_in(ALICE).get(f"/messages/{held.id}/").text


def rules(site: Site) -> list[tuple[str, str, Effect]]:
    return [(each.scope, each.sender, each.effect) for each in site.store.rules.list([ALICE], 10, site.now)]


# ---- two things with one button


def test_a_message_is_released_and_its_sender_allowed_once(site: Site, smtp: SmtpServer) -> None:
    held, browser = hold(site), site.signed_in(ALICE)
    assert "Release and allow sender" in page_of(site, held)
    for _ in range(2):
        text = said(browser, press(browser, held, "release-allow"))
        assert "Released on" in text
        assert f"Allowed: {SENDER}" in text
    assert [mail.recipients for mail in smtp.mails] == [[ALICE]]
    assert rules(site) == [(ALICE, SENDER, Effect.ALLOW)]
    assert "Allowed:" not in page_of(site, held)


def test_a_message_is_deleted_and_its_sender_blocked(site: Site) -> None:
    held, browser = site.hold(recipients=[ALICE]), site.signed_in(ALICE)
    text = said(browser, press(browser, held, "delete-block"))
    assert site.state(held) is State.DELETED
    assert "Deleted on" in text and f"Blocked: {SENDER}" in text
    assert "Undo deletion" in text
    assert rules(site) == [(ALICE, SENDER, Effect.BLOCK)]


@pytest.mark.parametrize(
    ("tier", "more", "offered"),
    [
        (Tier.SPAM, {}, {"release-allow", "delete-block"}),
        (Tier.SPAM, {"symbols": ()}, {"delete-block"}),  # not proven
        (Tier.SPAM, {"header_from": '"pat@bank.example" <promo@example.net>'}, {"delete-block"}),
        (Tier.SPAM, {"header_from": "Bob <bob@example.org>", "symbols": ()}, set()),  # forged
        (Tier.SPAM, {"header_from": "List <bounce-12345678@example.net>"}, set()),  # differs in each message
        (Tier.SPAM, {"header_from": "", "envelope_sender": ""}, set()),
        (Tier.SUSPICIOUS, {}, {"delete-block"}),
        (Tier.SUSPICIOUS, {"symbols": ()}, set()),
        (Tier.DANGEROUS, {}, {"delete-block"}),
        (Tier.DANGEROUS, {"symbols": ()}, set()),
    ],
)
def test_what_is_not_offered_does_nothing(
    site: Site, smtp: SmtpServer, tier: Tier, more: dict[str, Any], offered: set[str]
) -> None:
    values: dict[str, Any] = {"symbols": PROVEN, "from_count": 1} | more
    held, browser = site.hold(tier, recipients=[ALICE], **values), site.signed_in(ALICE)
    page = page_of(site, held)
    for act in ("release-allow", "delete-block"):
        assert (f"/messages/{held.id}/{act}" in page) == (act in offered)
        if act not in offered:
            assert press(browser, held, act).status == 403
    assert (site.state(held), rules(site), smtp.mails) == (State.HELD, [], [])


def test_the_sender_is_not_allowed_if_the_message_is_not_released(site: Site, smtp: SmtpServer) -> None:
    held, browser = hold(site), site.signed_in(ALICE)
    smtp.script["RCPT"] = "550 5.1.1 no such user"
    text = said(browser, press(browser, held, "release-allow"))
    assert "The last release failed" in text and f"No rule was made for {SENDER}" in text
    site.parts.actions.delete(held.id, 0, site.history(held)[-1].actor)
    text = said(browser, press(browser, held, "release-allow"))
    assert "Not released: the message was deleted on" in text
    assert rules(site) == []


def test_the_page_says_so_if_an_administrator_overrules_the_rule(site: Site) -> None:
    held, browser = hold(site), site.signed_in(ALICE)
    binding = rule("example.net", scope="*", binding=True)
    site.store.rules.add([binding], site.now)
    text = said(browser, press(browser, held, "release-allow"))
    assert f"Allowed: {SENDER}" in text
    assert "Your administrator blocks this sender, so messages are still held." in text


@pytest.mark.parametrize("error", [TooManyRules("full"), StoreUnavailable("locked")])
def test_the_page_says_so_if_only_the_rule_fails(
    site: Site, smtp: SmtpServer, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    held, browser = hold(site), site.signed_in(ALICE)

    def fail(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(type(site.store.rules), "add", fail)
        text = said(browser, press(browser, held, "release-allow"))
    assert "Released on" in text and f"No rule was made for {SENDER}" in text
    text = said(browser, press(browser, held, "release-allow"))
    assert f"Allowed: {SENDER}" in text
    assert len(smtp.mails) == 1


def test_the_page_with_both_results_takes_few_statements(
    make_parts: Callable[..., Parts], monkeypatch: pytest.MonkeyPatch
) -> None:
    statements = Statements(monkeypatch)
    site = Site(make_parts())
    held, browser = hold(site), site.signed_in(ALICE)
    press(browser, held, "delete-block")
    with statements.of() as queries:
        assert "Blocked:" in browser.get(f"/messages/{held.id}/").text
    assert len(queries) <= 5, "\n".join(queries)


# ---- another tab was faster

# What the page says of each act that was done, in the states that it leads to.
DONE = {
    "release": r"Released on|on its way|was deferred",
    "release-allow": r"Released on|on its way|was deferred",
    "again": r"on its way|was deferred",
    "delete": r"Deleted on",
    "delete-block": r"Deleted on",
    "spam": r"Reported as spam and deleted on",
    "restore": r"Deletion undone",
    "unblock": r"Moved to held messages",
    "ask": r"Release requested on",
    "withdraw": r"Request withdrawn",
}
# An act of another tab, and what the page says after an act that it made impossible.
FASTER = [
    ("held", "delete", "release", "Not released: the message was deleted on"),
    ("held", "delete", "release-allow", "Not released: the message was deleted on"),
    ("held", "delete", "spam", "Not reported: the message was deleted on"),
    ("held", "spam", "spam", "Reported as spam and deleted on"),
    ("held", "spam", "delete", "Deleted on"),
    ("held", "ask", "release", "Not released: its release was requested on"),
    ("held", "release", "release", "Released on"),
    ("held", "release", "delete", "Not changed: the message was released on"),
    ("held", "release", "delete-block", "Not changed: the message was released on"),
    ("held", "release", "spam", "Not changed: the message was released on"),
    ("held", "deferred", "release", "was deferred"),
    ("held", "deferred", "delete", "Not changed: the message was released on"),
    ("dangerous", "delete", "ask", "Not released: the message was deleted on"),
    ("dangerous", "approve", "ask", "Not changed: the message was released on"),
    ("dangerous", "approve", "delete", "Not changed: the message was released on"),
    ("blocked", "delete", "release", "Not released: the message was deleted on"),
    ("blocked", "delete", "unblock", "Not changed: the message was deleted on"),
    ("blocked", "release", "unblock", "Not changed: the message was released on"),
    ("blocked", "deferred", "unblock", "Not changed: the message was released on"),
    ("blocked", "ask", "unblock", "Not changed: its release was requested on"),
    ("blocked", "unblock", "unblock", "Moved to held messages"),
    ("blocked", "raised", "release", "Not released: only an administrator can release this message"),
    ("failed", "raised", "release", "Not released: only an administrator can release this message. The last release"),
    ("passed", "delete", "again", "Not sent again: the message was deleted on"),
    ("passed", "ask", "again", "Not sent again: its release was requested on"),
    ("passed", "again", "again", "Not sent again: it was sent less than a minute ago"),
    ("passed", "again", "delete", "Not changed: the message was released on"),
    ("passed", "deferred", "again", "was deferred"),
    ("passed", "raised", "again", "Not sent again: only an administrator can release this message"),
    ("released", "raised", "again", "Not sent again: only an administrator can release this message"),
    ("released", "again", "again", "Not sent again: it was sent less than a minute ago"),
    ("requested", "delete", "withdraw", "Not changed: the message was deleted on"),
    ("requested", "approve", "withdraw", "Not changed: the message was released on"),
    ("requested", "deny", "withdraw", "Not changed Your administrator denied the release request on"),
    ("requested", "withdraw", "withdraw", "Request withdrawn"),
    ("requested", "approve", "delete", "Not changed: the message was released on"),
    ("deleted", "ask", "restore", "Not changed: its release was requested on"),
    ("deleted", "release", "restore", "Not changed: the message was released on"),
    ("deleted", "deferred", "restore", "Not changed: the message was released on"),
    ("deleted", "restore", "restore", "Deletion undone"),
]


def begin(site: Site, smtp: SmtpServer, state: str) -> Held:
    """Hold a message for Alice, and bring it to this state."""
    tier = Tier.DANGEROUS if state in ("dangerous", "requested") else Tier.SPAM
    starts = {ALICE: Start(State(state), rule("example.net").as_actor)} if state in ("passed", "blocked") else {}
    held = hold(site, tier, starts=starts)
    if state == "released":
        site.parts.actions.release(held.id, 0, BY_LINK)
    if state == "requested":
        site.parts.actions.request_release(held.id, 0, BY_LINK)
    if state == "deleted":
        site.parts.actions.delete(held.id, 0, BY_LINK)
    if state == "failed":
        smtp.script["RCPT"] = "550 5.1.1 no such user"
        with pytest.raises(RelayRefused):
            site.parts.actions.release(held.id, 0, BY_LINK)
        smtp.script.clear()
    site.pass_time(minutes=2)
    return held


def overtake(site: Site, smtp: SmtpServer, held: Held, state: str, act: str) -> None:
    """Do what another tab, an administrator or a virus scan does."""
    actions, delivery = site.parts.actions, (held.id, 0)
    if state == "deleted" and act != "restore":
        actions.restore(*delivery, BY_LINK)
    again = state in ("passed", "released")
    match act:
        case "release" | "again":
            actions.release(*delivery, BY_LINK, again=again)
        case "deferred":
            smtp.script["RCPT"] = "451 4.3.0 try again later"
            with pytest.raises(RelayDeferred):
                actions.release(*delivery, BY_LINK, again=again)
        case "approve":
            actions.release(*delivery, BY_OPERATOR, operator=True)
        case "deny":
            actions.refuse_request(*delivery, BY_OPERATOR, "It has a virus.")
        case "raised":
            site.store.messages.record_scan(held.id, Scan(ScanOutcome.FOUND, site.now), Tier.DANGEROUS, site.now)
        case _:
            method = {
                "delete": actions.delete,
                "spam": actions.confirm_spam,
                "restore": actions.restore,
                "unblock": actions.unblock,
                "ask": actions.request_release,
                "withdraw": actions.withdraw_request,
            }[act]
            method(*delivery, BY_LINK)


@pytest.mark.parametrize("place", ["message", "list"])
@pytest.mark.parametrize(("state", "other", "act", "expected"), FASTER)
def test_each_act_says_so_if_another_tab_was_faster(
    site: Site, smtp: SmtpServer, place: str, state: str, other: str, act: str, expected: str
) -> None:
    held, browser = begin(site, smtp, state), site.signed_in(ALICE)
    overtake(site, smtp, held, state, other)
    before, events = site.state(held), len(site.history(held))
    text = said(browser, press(browser, held, act, **{"from": place}))
    assert (site.state(held), len(site.history(held))) == (before, events)
    assert expected in text
    assert re.search(rf"Not (changed|released|reported|sent)|{DONE[act]}", expected)


# ---- questions


def mailed(site: Site, smtp: SmtpServer) -> list[str]:
    """Send the waiting mail. Return the texts of the mails to the administrator."""
    housekeeping.send_queued(site.parts, site.now)
    texts = []
    for sent in smtp.mails:
        assert sent.recipients == [ADMIN]
        mail = email.message_from_bytes(sent.data)
        texts.append(f"{mail['Subject']}\n{mail.get_payload(decode=True).decode()}")  # type: ignore[union-attr]
    smtp.mails.clear()
    return texts


def test_a_question_reaches_the_administrator_once_a_day(site: Site, smtp: SmtpServer) -> None:
    held, browser = hold(site, subject="The secret subject"), site.signed_in(ALICE)
    hostile = 'Is it "real"?\r\nBcc: x@evil.example\n\n.\nquarantine release \u202e<script>no</script>'
    assert "Your question was sent" in said(browser, press(browser, held, "question", question=hostile))
    for _ in range(2):
        text = said(browser, press(browser, held, "question", question="again"))
        assert "Not sent: your administrator was asked on" in text
    [text] = mailed(site, smtp)
    assert f"Question about a message, from {ALICE}" in text and f"quarantine meta {held.id}" in text
    assert '    > Is it "real"? Bcc: x@evil.example . quarantine release <script>no</script>' in text
    for hidden in ("secret subject", "promo", "Buy", "\u202e"):
        assert hidden not in text
    page = page_of(site, held)
    assert "Administrator asked by you." in page and "&lt;script&gt;no&lt;/script&gt;" in page
    assert "<textarea" not in page and site.state(held) is State.HELD
    site.pass_time(days=1)
    assert "<textarea" in page_of(site, held)
    press(browser, held, "question", question="x" * 5000)
    [text] = mailed(site, smtp)
    assert "x" * 499 + "…" in text.replace("=\n", "") and "x" * 500 not in text
    kinds = [event.kind for event in site.history(held)]
    assert kinds.count(EventKind.ASKED) == 2


def test_a_question_may_be_empty(site: Site, smtp: SmtpServer) -> None:
    held, browser = site.hold(Tier.DANGEROUS), site.signed_in(BOB)
    press(browser, held, "question")
    [text] = mailed(site, smtp)
    assert f"{BOB} asks you to look at a message in the quarantine." in text


def test_readers_of_a_role_mailbox_share_its_rule_and_its_question(
    make_parts: Callable[..., Parts], smtp: SmtpServer, tmp_path: Path
) -> None:
    aliases = tmp_path / "virtual"
    aliases.write_text(f"info@example.org {ALICE}, {BOB}\n")
    settings = {"relay__url": smtp.url, "mail__url": smtp.url, "mail__admin_address": ADMIN}
    site = Site(make_parts(people__alias_file=aliases, **settings))
    held = site.hold(recipients=["info@example.org"], symbols=PROVEN, from_count=1)
    alice, bob, path = site.signed_in(ALICE), site.signed_in(BOB), f"/messages/{held.id}.0/"
    alice.post(f"{path}question", {"form_token": alice.form_token(), "from": "message", "question": "Ours?"})
    [text] = mailed(site, smtp)
    assert f"{ALICE} has a question" in text and "To: info@example.org" in text
    page = bob.get(path).text
    assert f"Administrator asked by \u2068{ALICE}\u2069." in page and "<textarea" not in page
    alice.post(f"{path}release-allow", {"form_token": alice.form_token(), "from": "message"})
    assert [mail.recipients for mail in smtp.mails] == [["info@example.org"]]
    [made] = site.store.rules.list(["info@example.org"], 10, site.now)
    assert (made.sender, made.effect, made.actor.name) == (SENDER, Effect.ALLOW, ALICE)


def test_nobody_is_asked_without_an_administrator(make_parts: Callable[..., Parts], smtp: SmtpServer) -> None:
    site = Site(make_parts(mail__url=smtp.url))
    held, browser = site.hold(), site.signed_in(ALICE)
    assert "Ask your administrator" not in page_of(site, held)
    assert press(browser, held, "question", question="?").status == 404
    assert len(site.history(held)) == 1


def test_a_stranger_asks_nothing(site: Site, smtp: SmtpServer) -> None:
    held = hold(site)
    for act in ("question", "release-allow", "delete-block"):
        assert press(site.signed_in(MALLORY), held, act).status == 404
    assert (mailed(site, smtp), len(site.history(held))) == ([], 1)


# ---- limits


@pytest.mark.parametrize(
    ("kind", "act", "status"),
    [(EventKind.DOWNLOADED, "download", 200), (EventKind.RELEASING, "again", 303), (EventKind.ASKED, "question", 303)],
)
def test_a_person_is_limited_over_all_messages(
    site: Site, monkeypatch: pytest.MonkeyPatch, kind: EventKind, act: str, status: int
) -> None:
    limit = limits._LIMITS[kind]
    monkeypatch.setitem(limits._LIMITS, kind, limit._replace(number=3))
    messages = [site.hold() for _ in range(4)]
    browsers = {person: site.signed_in(person) for person in (ALICE, BOB)}
    if act == "again":
        for held in messages:
            for number in (0, 1):
                site.parts.actions.release(held.id, number, site.history(held)[0].actor)
        site.pass_time(minutes=2)
    for held in messages[:3]:
        assert press(browsers[ALICE], held, act, warned="spam").status == status
    answer = press(browsers[ALICE], messages[3], act, warned="spam")
    assert answer.status == 429 and answer.header("Retry-After") and html.escape(limit.text) in answer.text
    assert press(browsers[BOB], messages[3], act, warned="spam").status == status
    site.now += limit.interval + timedelta(seconds=1)
    browsers[ALICE] = site.signed_in(ALICE)
    assert press(browsers[ALICE], messages[3], act, warned="spam").status == status
