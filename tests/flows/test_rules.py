"""Allow and block rules, from Rspamd's POST to the list, the page and the digest, on both stores."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from datetime import timedelta
from uuid import UUID

import pytest

from portal.exporter import parse
from portal.ingest import Ingest
from portal.model.errors import StoreUnavailable
from portal.model.message import ActorKind, EventKind, State
from portal.model.rule import SITE, Rule
from portal.stores.records import Held
from tests.builders import ALICE, BOB, BY_LINK, BY_OPERATOR, body, mail, rule
from tests.conftest import MakeParts
from tests.flows.test_aliases import send_digests
from tests.smtp_server import SmtpServer
from tests.web.test_exporter import META, post
from tests.web_client import Site

BLOCK = [{"name": "BAYES_SPAM", "score": 5.1}, {"name": "PORTAL_BLOCK", "score": 0}]
MANY = ["alice+a@example.org", "Alice+B@Example.org", BOB]


@pytest.fixture
def smtp() -> Iterator[SmtpServer]:
    with SmtpServer() as server:
        yield server


@pytest.fixture
def site(make_parts: MakeParts, smtp: SmtpServer) -> Site:
    return Site(make_parts(relay__url=smtp.url, mail__url=smtp.url))


def add(site: Site, made: Rule) -> Rule:
    [in_use] = site.parts.rulebook.add([made])
    return in_use


def held_by_post(site: Site, **headers: object) -> Held:
    answer = post(site, headers={name: json.dumps(value) for name, value in headers.items()})
    assert answer.json["status"] == "held", answer.text
    return Held(UUID(answer.json["id"]), known=False)


def states(site: Site, held: Held) -> list[State]:
    return [d.state for d in site.store.deliveries.of_message(held.id)]


def hits(site: Site, made: Rule) -> int:
    return site.store.rules.get(made.id).hits


def test_a_blocked_delivery_is_held_without_a_digest(site: Site, smtp: SmtpServer) -> None:
    made = add(site, rule("example.net"))
    held = held_by_post(site)
    assert states(site, held) == [State.BLOCKED, State.HELD]
    [_, event] = site.history(held)
    assert (event.kind, event.actor.kind, event.actor.name) == (EventKind.BLOCKED, ActorKind.RULE, "example.net")
    assert str(made.id) in event.detail
    assert "recipient" in event.detail
    assert hits(site, made) == 1
    send_digests(site)
    assert [m.recipients for m in smtp.mails] == [[BOB]]
    assert "Offer" not in site.signed_in(ALICE).get("/").text


def test_its_page_names_the_rule_and_offers_a_release(site: Site, smtp: SmtpServer) -> None:
    add(site, rule("example.net"))
    held, alice = held_by_post(site), site.signed_in(ALICE)
    page = alice.get(f"/messages/{held.id}/").text
    assert "By your rule for example.net" in page
    assert "Blocked by your rule for \u2068example.net\u2069." in page
    alice.post(f"/messages/{held.id}/release", {"form_token": alice.form_token()})
    assert site.state(held) is State.RELEASED
    assert [m.recipients for m in smtp.mails] == [[ALICE]]


def test_a_rule_of_an_administrator_is_not_disclosed(site: Site) -> None:
    add(site, rule("198.51.100.0/24", scope=SITE, actor=BY_OPERATOR))
    held = held_by_post(site)
    assert states(site, held) == [State.BLOCKED, State.BLOCKED]
    page = site.signed_in(ALICE).get(f"/messages/{held.id}/").text
    assert "By a rule of your administrator" in page
    assert "198.51.100.0/24" not in page


def test_a_blocked_delivery_can_be_put_back(site: Site, smtp: SmtpServer) -> None:
    add(site, rule("example.net"))
    held = held_by_post(site)
    site.parts.actions.unblock(held.id, 0, BY_LINK)
    assert site.state(held) is State.HELD
    assert site.history(held)[-1].kind is EventKind.UNBLOCKED


def test_a_blocked_delivery_is_blocked_again_after_its_deletion_was_undone(site: Site, smtp: SmtpServer) -> None:
    add(site, rule("example.net"))
    held, alice = held_by_post(site), site.signed_in(ALICE)
    before = site.delivery(held)
    site.pass_time(minutes=5)
    form = {"form_token": alice.form_token(), "from": "list?state=blocked"}
    alice.post(f"/messages/{held.id}/delete", form)
    assert site.state(held) is State.DELETED
    page = alice.follow(alice.post(f"/messages/{held.id}/restore", form), "/").text
    assert "Deletion undone." in page and "held again" not in page
    assert site.delivery(held) == before
    assert "By your rule for example.net" in alice.get(f"/messages/{held.id}/").text
    assert "Offer" in alice.get("/?state=blocked").text and "Offer" not in alice.get("/").text
    for do in ("delete", "restore"):  # selected in the lists
        alice.post("/messages", {**form, "do": do, "mail": f"{held.id}.0", "shown": f"{held.id}.0"})
    assert site.history(held)[-1].kind is EventKind.RESTORED
    assert site.delivery(held) == before
    send_digests(site)
    assert [m.recipients for m in smtp.mails] == [[BOB]]


def test_a_mail_that_rspamd_withheld_by_rules_is_always_held(make_parts: MakeParts) -> None:
    site = Site(make_parts(exporter__hold_actions=["reject"], exporter__only_symbols=["VIRUS*"]))
    for symbols, status in ((BLOCK, "held"), (BLOCK[:1], "not-selected")):
        headers = {"X-Rspamd-action": "discard", "X-Rspamd-symbols": json.dumps(symbols)}
        answer = post(site, headers=headers).json
        assert answer["status"] == status
        if status == "held":  # the rule was removed after Rspamd had read it
            held = Held(UUID(answer["id"]), known=False)
    assert states(site, held) == [State.BLOCKED, State.BLOCKED]
    assert "Blocked on" in site.signed_in(ALICE).get(f"/messages/{held.id}/").text


def test_each_address_of_a_blocking_recipient_is_blocked(make_parts: MakeParts) -> None:
    site = Site(make_parts(people__recipient_delimiter="+"))
    made = add(site, rule("promo@example.net"))
    held = held_by_post(site, **{"X-Rspamd-rcpt": MANY})
    assert states(site, held) == [State.BLOCKED, State.BLOCKED, State.HELD]
    assert hits(site, made) == 1


def test_a_rule_acts_on_the_next_mail_and_not_after_its_removal(site: Site) -> None:
    assert states(site, held_by_post(site)) == [State.HELD, State.HELD]
    made = add(site, rule("example.net"))
    assert states(site, held_by_post(site)) == [State.BLOCKED, State.HELD]
    site.parts.rulebook.remove(made.id, BY_OPERATOR)
    assert states(site, held_by_post(site)) == [State.HELD, State.HELD]


def test_an_allow_rule_ends_a_block_of_the_site_without_letting_a_forger_in(site: Site) -> None:
    add(site, rule("example.net", scope=SITE, actor=BY_OPERATOR))
    allowing = add(site, rule("example.net", "allow"))
    assert states(site, held_by_post(site)) == [State.HELD, State.BLOCKED]
    assert hits(site, allowing) == 0


def test_a_repeated_mail_counts_once(site: Site) -> None:
    made, data = add(site, rule("example.net")), mail()
    assert post(site, data).json["status"] == "held"
    assert post(site, data).json["status"] == "known"
    assert hits(site, made) == 1


def test_hits_that_cannot_be_counted_do_not_fail_the_post(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise StoreUnavailable("the disk is full")

    add(site, rule("example.net"))
    monkeypatch.setattr(type(site.store.rules), "count_hits", fail)
    assert states(site, held_by_post(site)) == [State.BLOCKED, State.HELD]
    assert "hits of rules not counted: the disk is full" in caplog.text


def test_imported_mail_is_held_whatever_the_rules_say(site: Site) -> None:
    add(site, rule("example.net"))
    data = mail()
    posted = parse({name.lower(): value for name, value in META.items()}, body(data), 1 << 20)
    assert posted is not None
    with posted:
        outcome = Ingest(site.parts).hold(posted, at=site.now - timedelta(days=1))
    assert outcome.id is not None
    assert states(site, Held(outcome.id, known=False)) == [State.HELD, State.HELD]


def press(site: Site, person: str, page: str, label: str) -> str:
    """Press the button with this label on a page, and return the page after it."""
    browser = site.signed_in(person)
    forms = re.findall(r'<form method="post" action="/quarantine([^"]*)">(.*?)</form>', browser.get(page).text, re.S)
    [(action, body)] = [(a, b) for a, b in forms if label in b]
    fields = dict(re.findall(r'name="([^"]*)" value="([^"]*)"', body))
    answer = browser.post(action, {name: html.unescape(value) for name, value in fields.items()})
    return browser.follow(answer, action).text


def test_blocked_messages_have_their_own_list_with_undo(site: Site) -> None:
    add(site, rule("example.net"))
    held = held_by_post(site)
    browser = site.signed_in(ALICE)
    assert "Offer" not in browser.get("/").text
    listed = browser.get("/?state=blocked").text
    assert "Offer" in listed and "By your rule for example.net" in listed
    assert "Moved to held messages." in press(site, ALICE, f"/messages/{held.id}/", "Move to held messages")
    assert site.state(held) is State.HELD
    assert "Offer" in browser.get("/").text and "Offer" not in browser.get("/?state=blocked").text


def test_who_removes_a_rule_sees_what_it_blocked(site: Site) -> None:
    made = add(site, rule("example.net"))
    held = held_by_post(site)
    page = press(site, ALICE, f"/messages/{held.id}/", "Remove this rule")
    assert 'Removed from your list: <bdi id="done">example.net</bdi>' in page
    [link] = re.findall(r'<a href="/quarantine([^"]*)">Messages that it blocked</a>', page)
    assert "Offer" in site.signed_in(ALICE).get(html.unescape(link)).text
    assert not site.store.rules.get(made.id).is_active(site.now)
    assert "Remove this rule" not in site.signed_in(ALICE).get(f"/messages/{held.id}/").text
    unused = add(site, rule("other.example"))
    browser = site.signed_in(ALICE)
    browser.post(f"/rules/{unused.id}/remove", {"form_token": browser.form_token()})
    assert "Messages that it blocked" not in browser.get(f"/rules?done={unused.id}").text


def test_nobody_is_offered_to_remove_an_administrators_rule(site: Site) -> None:
    add(site, rule("example.net", scope=SITE, actor=BY_OPERATOR))
    held = held_by_post(site)
    page = site.signed_in(ALICE).get(f"/messages/{held.id}/").text
    assert "Move to held messages" in page and "Remove this rule" not in page
