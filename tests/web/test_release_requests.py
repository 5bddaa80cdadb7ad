"""Release requests of recipients: their reason, withdrawal, and what recipients and staff see of them."""

from __future__ import annotations

import html
import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from email import message_from_bytes
from email.policy import SMTP
from pathlib import Path
from typing import Any

import pytest

from digest.housekeeping import remind
from portal.assemble import Parts
from portal.model.audit import AuditFilter
from portal.model.errors import NotAllowed
from portal.model.links import Action
from portal.model.message import Actor, ActorKind, EventKind, Start, State, Tier
from portal.model.staff import EVERYWHERE, Grant, Role
from portal.model.statistics import Outcome, Part
from portal.policy.release_requests import ReleaseRequests
from portal.stores.records import Held, QueuedMail
from tests.builders import ALICE, BOB, BY_LINK, BY_OPERATOR, MALLORY, rule
from tests.contract.helpers import concurrently
from tests.flows.test_aliases import write
from tests.smtp_server import SmtpServer
from tests.web.test_api import Client, token_of
from tests.web_client import Answer, Browser, Site

ADMIN = "postmaster@example.org"
TYPED = "  It is our <b>invoice</b>\r\n{{ 7*7 }} 100% %(by)s\u202e\u200b\x07 " + "<script>alert(1)</script>"
REASON = "It is our <b>invoice</b> {{ 7*7 }} 100% %(by)s <script>alert(1)</script>"
PRESS = {"pressed": "1"}


@pytest.fixture
def relay() -> Iterator[SmtpServer]:
    with SmtpServer() as server:
        yield server


@pytest.fixture
def site(make_parts: Callable[..., Parts], relay: SmtpServer) -> Site:
    return Site(make_parts(relay__url=relay.url, mail__admin_address=ADMIN))


def virus(site: Site, subject: str = "A virus", **more: str) -> Held:
    return site.hold(Tier.DANGEROUS, recipients=[ALICE], subject=subject, **more)


def requested(site: Site, reason: str = "") -> Held:
    held = virus(site)
    site.parts.actions.request_release(held.id, 0, BY_LINK, reason=reason)
    return held


def act(browser: Browser, held: Held, what: str, **form: str) -> Answer:
    return browser.post(f"/messages/{held.id}/{what}", {"form_token": browser.form_token(), **form})


def page_after(browser: Browser, held: Held, what: str, **form: str) -> str:
    return browser.follow(act(browser, held, what, **form), "/").text


def staff(site: Site) -> Browser:
    site.store.staff.give(Grant(MALLORY, Role.ADMINISTRATOR, EVERYWHERE, site.now, BY_OPERATOR))
    return site.signed_in(MALLORY)


def decide(browser: Browser, held: Held, what: str, **form: str) -> str:
    path = f"/admin/messages/{held.id}.0/"
    return browser.follow(browser.post(path, {"form_token": browser.form_token(), "act": what, **form}), path).text


def mails(site: Site) -> list[tuple[str, str]]:
    """Return the subjects and texts of the queued mails, and take them out of the queue."""
    found: list[tuple[str, str]] = []
    while True:
        with site.store.outbox.sending(site.now) as mail:
            if mail is None:
                return found
            parsed = message_from_bytes(mail.mail, policy=SMTP.clone(utf8=True))
            found.append((str(parsed["Subject"]), parsed.get_content().replace("\r\n", "\n")))


def without_time(page: str) -> str:
    """Return the text of a page with an asterisk for each time."""
    text = re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", "", page)))
    return re.sub(r"on (\w+, )?\d+ \w+ \d{4},? (at )?\d\d:\d\d( UTC)?", "on *", text)


# ---- the reason


def ask_on_the_page(site: Site, held: Held) -> None:
    browser = site.signed_in(ALICE)
    page = browser.get(f"/messages/{held.id}/").text
    assert "Reason for the request (optional)" in page and 'name="reason"' in page
    act(browser, held, "ask", reason=TYPED)


def ask_in_the_row(site: Site, held: Held) -> None:
    browser = site.signed_in(ALICE)
    assert 'name="reason"' in browser.get("/").text
    act(browser, held, "ask", reason=TYPED, **{"from": "list"})


def ask_for_several(site: Site, held: Held) -> None:
    browser = site.signed_in(ALICE)
    form = {"form_token": browser.form_token(), "from": "list", "do": "ask", "mail": f"{held.id}.0", "reason": TYPED}
    assert browser.post("/messages", form).status == 303


def ask_by_a_link(site: Site, held: Held) -> None:
    browser, link = site.browser(), site.link(Action.REQUEST, held)
    assert 'name="reason"' in browser.get(link).text
    browser.post(link, {**PRESS, "reason": TYPED}, headers={"Sec-Fetch-User": "?1"})
    assert html.escape(REASON) in browser.get(link).text


@pytest.mark.parametrize("ask", [ask_on_the_page, ask_in_the_row, ask_for_several, ask_by_a_link])
def test_those_who_decide_read_the_reason(
    site: Site, ask: Callable[[Site, Held], None], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    held, administrator = virus(site), staff(site)
    ask(site, held)
    assert (site.state(held), site.delivery(held).reason) == (State.REQUESTED, REASON)
    [(subject, text)] = mails(site)
    assert subject == f"Release requested by {ALICE}" and f"    > {REASON}\n" in text
    for path in ("/admin/requests", f"/admin/messages/{held.id}.0/"):
        page = administrator.get(path).text
        assert REASON not in page and html.escape(REASON) in html.unescape(html.escape(page)), path
    [entry] = site.store.audit.list(AuditFilter(message_id=held.id, act="requested"), 9)
    assert entry.detail == REASON
    assert "invoice" not in caplog.text
    hers = site.signed_in(ALICE).get(f"/messages/{held.id}/").text
    assert hers.count(html.escape(REASON)) == 2  # at the state, and in the history


def test_a_reason_is_not_needed(site: Site) -> None:
    held, browser = virus(site), site.signed_in(ALICE)
    page = page_after(browser, held, "ask")
    assert "Release requested on" in page and "Reason given" not in page
    [(_, text)] = mails(site)
    assert "Their reason" not in text and "\n    > " not in text
    assert "recipient's reason" not in html.unescape(staff(site).get(f"/admin/messages/{held.id}.0/").text)


@pytest.mark.parametrize("typed", ["\u200b\r\n \u202e", "x" * 5_000, "\u0301" * 5_000, "\x00\ud800"])
def test_a_reason_is_short(site: Site, typed: str) -> None:
    held = virus(site)
    site.parts.actions.request_release(held.id, 0, BY_LINK, reason=typed)
    assert len(site.delivery(held).reason) <= 300
    staff(site).get("/admin/requests")
    site.signed_in(ALICE).get(f"/messages/{held.id}/")


def test_the_reminder_has_the_reason(site: Site) -> None:
    requested(site, "We wait for it.")
    site.pass_time(hours=25)
    mails(site)
    assert remind(site.parts, site.now) == 1
    [(_, text)] = mails(site)
    assert "    > We wait for it.\n" in text


def test_the_reason_is_shown_before_a_release_is_confirmed(site: Site) -> None:
    held, browser = requested(site, "We wait for it."), staff(site)
    form = {"form_token": browser.form_token(), "act": "approve"}
    page = browser.post(f"/admin/messages/{held.id}.0/", form).text
    assert "Release this message?" in page and "We wait for it." in page and 'value="approve"' in page


# ---- withdrawing


def withdraw_on_the_page(site: Site, held: Held) -> str:
    browser = site.signed_in(ALICE)
    assert "Withdraw request" in browser.get(f"/messages/{held.id}/").text
    return page_after(browser, held, "withdraw")


def withdraw_in_the_row(site: Site, held: Held) -> str:
    browser = site.signed_in(ALICE)
    assert f"/messages/{held.id}/withdraw" in browser.get("/?state=requested").text
    return page_after(browser, held, "withdraw", **{"from": "list?state=requested"})


def withdraw_several(site: Site, held: Held) -> str:
    browser, other = site.signed_in(ALICE), virus(site)
    site.parts.actions.request_release(other.id, 0, BY_LINK)
    keys = f"{held.id}.0 {other.id}.0"
    assert 'name="do" value="withdraw"' in browser.get("/?state=requested").text
    form = {"form_token": browser.form_token(), "from": "list?state=requested", "do": "withdraw", "mail": keys}
    page = browser.follow(browser.post("/messages", form), "/").text
    assert "<p>Request withdrawn: 2</p>" in page and site.state(other) is State.HELD
    return page


@pytest.mark.parametrize("withdraw", [withdraw_on_the_page, withdraw_in_the_row, withdraw_several])
def test_a_withdrawn_request_waits_for_nobody(site: Site, withdraw: Callable[[Site, Held], str]) -> None:
    held, administrator = requested(site, "We wait for it."), staff(site)
    assert "equest withdrawn" in withdraw(site, held)
    assert (site.state(held), site.delivery(held).reason) == (State.HELD, "")
    assert site.history(held)[-1].kind is EventKind.WITHDRAWN
    [entry] = site.store.audit.list(AuditFilter(message_id=held.id, act="withdrawn"), 9)
    assert (entry.actor.name, entry.subject) == (ALICE, ALICE)
    assert "No open requests." in administrator.get("/admin/requests").text
    page = without_time(administrator.get(f"/admin/messages/{held.id}.0/").text)
    assert "Release requested on *, withdrawn by the recipient on *." in page
    assert "Approve and release" not in page and "Deny request" not in page
    site.pass_time(hours=25)
    assert remind(site.parts, site.now) == 0
    assert site.store.stats(site.now).requests_waiting == 0
    site.store.facets.index()
    day = site.now.date()
    for counted in (day, day - timedelta(days=2), day - timedelta(days=1)):
        site.store.statistics.count(counted)
    counts = site.store.statistics.counts(Part.TOTAL, day - timedelta(days=2), day)
    numbers = {outcome: sum(each.number for each in counts if each.outcome == outcome) for outcome in Outcome}
    assert numbers[Outcome.REQUESTED] >= 1 and numbers[Outcome.REFUSED] == 0


def test_a_withdrawn_request_can_be_made_again(site: Site) -> None:
    held, browser = requested(site, "First"), site.signed_in(ALICE)
    act(browser, held, "withdraw")
    act(browser, held, "ask", reason="Second")
    assert (site.state(held), site.delivery(held).reason) == (State.REQUESTED, "Second")
    assert "First" not in staff(site).get("/admin/requests").text


def test_others_cannot_withdraw_a_request(site: Site) -> None:
    held = requested(site)
    assert act(site.signed_in(BOB), held, "withdraw").status == 404
    assert act(staff(site), held, "withdraw").status == 404
    assert site.state(held) is State.REQUESTED


def test_withdrawing_twice_says_so_once_more(site: Site) -> None:
    held, browser = requested(site), site.signed_in(ALICE)
    for _ in range(2):
        assert "Request withdrawn. The message is still held." in page_after(browser, held, "withdraw")
    assert [each.kind for each in site.history(held)].count(EventKind.WITHDRAWN) == 1


# ---- the state before

END = {"withdraw": "Request withdrawn", "deny": "Your administrator denied the release request on *: A virus."}


@pytest.mark.parametrize(("state", "heading"), [("blocked", "Blocked on *."), ("passed", "Let through on *.")])
@pytest.mark.parametrize("end", END)
def test_what_a_rule_decided_is_so_again_when_a_request_ends(site: Site, state: str, heading: str, end: str) -> None:
    start = Start(State(state), rule("example.net").as_actor)
    held = site.hold(Tier.DANGEROUS, recipients=[ALICE], starts={ALICE: start})
    hers, before = site.signed_in(ALICE), site.delivery(held)
    site.pass_time(minutes=1)
    act(hers, held, "ask")
    assert site.state(held) is State.REQUESTED
    site.pass_time(minutes=1)
    if end == "deny":
        assert "Denied. The recipient gets a mail with the reason." in decide(staff(site), held, end, reason="A virus.")
        page = without_time(hers.get(f"/messages/{held.id}/").text)
        listed = hers.get("/?state=all").text
        assert "The release request was denied: A virus." in listed and "Last release" not in listed
    else:
        page = without_time(page_after(hers, held, end))
    assert END[end] in page and heading in page and "held again" not in page
    reason = "A virus." if end == "deny" else ""
    assert site.delivery(held) == replace(before, reason=reason)
    act(hers, held, "delete")
    act(hers, held, "restore")
    assert site.delivery(held) == replace(before, reason=reason)


def test_a_denial_and_its_time_survive_a_deletion_that_is_undone(site: Site) -> None:
    held, hers = requested(site), site.signed_in(ALICE)
    decide(staff(site), held, "deny", reason="It has a virus.")
    before = site.delivery(held)
    site.pass_time(hours=1)
    act(hers, held, "delete")
    assert "Deletion undone." in page_after(hers, held, "restore")
    assert site.delivery(held) == before
    page = without_time(hers.get(f"/messages/{held.id}/").text)
    assert END["deny"].replace("A virus", "It has a virus") in page
    act(hers, held, "ask")
    act(hers, held, "delete")
    act(hers, held, "restore")
    assert (site.state(held), site.delivery(held).reason) == (State.HELD, "")


# ---- a decision and a withdrawal


def test_approving_a_withdrawn_request_releases_nothing(site: Site, relay: SmtpServer) -> None:
    held, browser = requested(site), staff(site)
    assert 'value="approve"' in browser.get(f"/admin/messages/{held.id}.0/").text
    act(site.signed_in(ALICE), held, "withdraw")
    for more in ({}, {"confirmed": "1"}):
        page = decide(browser, held, "approve", **more)
        assert "Not changed: somebody acted on this message before." in page
        assert f"Release request withdrawn by \u2068{ALICE}" in page
    assert site.state(held) is State.HELD and relay.mails == []


def test_denying_a_withdrawn_request_mails_nobody(site: Site) -> None:
    held, browser = requested(site), staff(site)
    act(site.signed_in(ALICE), held, "withdraw")
    mails(site)
    page = decide(browser, held, "deny", reason="A virus")
    assert "Not changed: somebody acted on this message before." in page
    assert site.delivery(held).reason == "" and mails(site) == []


def test_withdrawing_a_decided_request_says_what_was_decided(site: Site, relay: SmtpServer) -> None:
    approved, denied, deleted = requested(site), requested(site), requested(site)
    browser, hers = staff(site), site.signed_in(ALICE)
    decide(browser, approved, "approve", confirmed="1")
    decide(browser, denied, "deny", reason="It has a virus.")
    decide(browser, deleted, "delete")
    assert len(relay.mails) == 1
    page = without_time(page_after(hers, approved, "withdraw"))
    assert "Not changed: the message was released on *." in page and "withdrawn" not in page
    page = without_time(page_after(hers, denied, "withdraw"))
    assert "Not changed" in page and "withdrawn" not in page
    assert "Your administrator denied the release request on *: It has a virus." in page
    page = without_time(page_after(hers, deleted, "withdraw"))
    assert "Not changed: the message was deleted on *." in page and "withdrawn" not in page
    assert [site.state(each) for each in (approved, denied, deleted)] == [State.RELEASED, State.HELD, State.DELETED]


def test_a_batch_says_which_requests_were_decided_before(site: Site) -> None:
    first, second = requested(site), requested(site)
    browser = site.signed_in(ALICE)
    site.parts.actions.refuse_request(first.id, 0, BY_OPERATOR, "It has a virus.")
    keys = f"{first.id}.0 {second.id}.0"
    form = {"form_token": browser.form_token(), "from": "list", "do": "withdraw", "mail": keys}
    page = without_time(browser.follow(browser.post("/messages", form), "/").text)
    assert "Request withdrawn: 1" in page and "Not changed: 1" in page
    assert "Your administrator denied the release request on *: It has a virus." in page


# ---- what the recipient sees


def test_the_recipient_sees_when_it_was_asked_and_decided(site: Site, relay: SmtpServer) -> None:
    approved, denied, withdrawn = (requested(site, "We wait for it.") for _ in range(3))
    browser, hers = staff(site), site.signed_in(ALICE)
    decide(browser, approved, "approve", confirmed="1", reason="For the audit alone")
    decide(browser, denied, "deny", reason="It has a virus.")
    act(hers, withdrawn, "withdraw")
    hers.get("/")
    asked = "Release requested on *. Reason given: We wait for it. "
    page = without_time(hers.get(f"/messages/{approved.id}/").text)
    assert asked + "Your administrator approved the request on *." in page
    assert "For the audit alone" not in page and MALLORY not in page
    page = without_time(hers.get(f"/messages/{denied.id}/").text)
    assert "Your administrator denied the release request on *: It has a virus." in page and asked in page
    assert MALLORY not in page
    act(hers, denied, "delete")
    hers.get("/")
    page = without_time(hers.get(f"/messages/{denied.id}/").text)
    assert asked + "Your administrator denied the release request on *: It has a virus." in page
    page = without_time(hers.get(f"/messages/{withdrawn.id}/").text)
    assert asked + "Request withdrawn on *." in page


# ---- at the same moment


@pytest.mark.parametrize("decision", ["approve", "deny"])
def test_of_a_decision_and_a_withdrawal_at_the_same_moment_one_wins(
    site: Site, relay: SmtpServer, decision: str
) -> None:
    administrator, hers = staff(site), site.signed_in(ALICE)
    token, her_token = administrator.form_token(), hers.form_token()
    form = {"form_token": token, "act": decision, "confirmed": "1", "reason": "It has a virus."}
    for _ in range(10):
        held, sent = requested(site), len(relay.mails)

        def work(number: int, held: Held = held) -> Answer:
            if number:
                return administrator.post(f"/admin/messages/{held.id}.0/", form)
            return hers.post(f"/messages/{held.id}/withdraw", {"form_token": her_token})

        answers = concurrently(2, work)
        kinds = [each.kind for each in site.history(held)]
        is_withdrawn = EventKind.WITHDRAWN in kinds
        assert is_withdrawn is not (EventKind.RELEASING in kinds or EventKind.REFUSED in kinds)
        assert len(relay.mails) - sent == (decision == "approve" and not is_withdrawn)
        theirs = administrator.follow(answers[1], "/").text
        assert ("Not changed: somebody acted on this message before." in theirs) is is_withdrawn
        assert ("Request withdrawn. The message is still held." in hers.follow(answers[0], "/").text) is is_withdrawn


# ---- other programs


def test_the_api_and_the_command_show_the_reason_and_the_withdrawal(site: Site) -> None:
    held, program = requested(site, "We wait for it."), Client(site, token_of(site))
    [found] = program.get("/messages", ("state", "requested")).json["messages"]
    assert found["reason"] == "We wait for it."
    site.parts.actions.withdraw_request(held.id, 0, Actor(ActorKind.RECIPIENT, via="portal"))
    assert program.get("/messages", ("state", "requested")).json["messages"] == []
    detail = program.get(f"/messages/{held.id}.0").json
    assert (detail["state"], detail["reason"]) == ("held", "")
    assert [(each["kind"], each["detail"]) for each in detail["history"][1:]] == [
        ("requested", "We wait for it."),
        ("withdrawn", ""),
    ]


# ---- the whole path


def test_a_request_whose_message_was_deleted_is_not_shown_as_open(site: Site) -> None:
    held, browser = requested(site), site.signed_in(ALICE)
    act(browser, held, "delete")
    act(browser, held, "restore")
    browser.get("/")
    assert "Release requested on" not in browser.get(f"/messages/{held.id}/").text


def test_nobody_is_reminded_of_a_request_that_ends_at_the_same_moment(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = requested(site)
    site.pass_time(hours=25)
    mails(site)
    compose = ReleaseRequests.request_mails

    def withdrawn_meanwhile(self: ReleaseRequests, *args: Any, **more: Any) -> list[QueuedMail]:
        site.parts.actions.withdraw_request(held.id, 0, BY_LINK)
        return compose(self, *args, **more)

    monkeypatch.setattr(ReleaseRequests, "request_mails", withdrawn_meanwhile)
    assert remind(site.parts, site.now) == 0
    assert mails(site) == [] and site.history(held)[-1].kind is EventKind.WITHDRAWN


def test_a_denial_has_a_reason_that_can_be_read(site: Site) -> None:
    held = requested(site)
    with pytest.raises(NotAllowed):
        site.parts.actions.refuse_request(held.id, 0, BY_OPERATOR, " \u200b\u202e")
    assert site.state(held) is State.REQUESTED


@pytest.mark.parametrize(("role", "person"), [(Role.HELP_DESK, BOB), (Role.AUDITOR, BOB), (Role.ADMINISTRATOR, ALICE)])
@pytest.mark.parametrize("what", ["approve", "deny", "release"])
def test_others_cannot_decide(site: Site, relay: SmtpServer, role: Role, person: str, what: str) -> None:
    held = requested(site)
    site.store.staff.give(Grant(person, role, EVERYWHERE, site.now, BY_OPERATOR))
    browser = site.signed_in(person)
    form = {"form_token": browser.form_token(), "act": what, "reason": "x", "confirmed": "1"}
    assert browser.post(f"/admin/messages/{held.id}.0/", form).status == 403
    assert site.state(held) is State.REQUESTED and relay.mails == []


def test_a_request_for_a_removed_message_is_not_found(site: Site) -> None:
    held, browser = requested(site), site.signed_in(ALICE)
    act(browser, held, "withdraw")
    site.store.purge(site.now + timedelta(days=1), site.now)
    for what in ("ask", "withdraw"):
        assert act(browser, held, what).status == 404


def test_a_batch_of_all_requests_withdraws_only_those(site: Site) -> None:
    waiting, other = requested(site), virus(site)
    browser = site.signed_in(ALICE)
    page = browser.get("/?state=requested&select=matching").text
    [ceiling] = re.findall(r'name="all" value="([^"]+)"', page)
    form = {"form_token": browser.form_token(), "from": "list?state=requested", "all": ceiling, "do": "withdraw"}
    assert browser.post("/messages", form).status == 303
    assert (site.state(waiting), site.state(other)) == (State.HELD, State.HELD)
    assert [each.kind for each in site.history(other)] == [EventKind.HELD]


def test_a_reader_of_a_role_mailbox_withdraws_the_request_of_another(
    make_parts: Callable[..., Parts], tmp_path: Path
) -> None:
    info = "info@example.org"
    write(tmp_path / "virtual", f"{info} {ALICE}, {BOB}\n")
    site = Site(make_parts(people__alias_file=tmp_path / "virtual"))
    held = site.hold(Tier.DANGEROUS, recipients=[info])
    hers, his = site.signed_in(ALICE), site.signed_in(BOB)
    hers.post(f"/messages/{held.id}.0/ask", {"form_token": hers.form_token(), "reason": "We wait for it."})
    assert "We wait for it." in his.get(f"/messages/{held.id}.0/").text
    his.post(f"/messages/{held.id}.0/withdraw", {"form_token": his.form_token()})
    [entry] = site.store.audit.list(AuditFilter(message_id=held.id, act="withdrawn"), 9)
    assert entry.actor.name == BOB
    page = without_time(hers.get(f"/messages/{held.id}.0/").text)
    assert "Request withdrawn on *." in page and f"withdrawn by \u2068{BOB}" in page
