"""The pages of allowed and blocked senders, as a signed-in recipient uses them."""

from __future__ import annotations

import html
import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from portal.model.links import Action
from portal.model.message import Symbol, Tier
from portal.model.rule import SITE, Effect, Rule
from portal.policy import entry
from portal.stores.shared import rules as shared_rules
from tests.builders import ALICE, BOB, BY_OPERATOR, MALLORY, rule
from tests.conftest import MakeParts
from tests.web.test_sign_in import request_sign_in
from tests.web_client import Answer, Browser, Site

INFO, ALIAS = "info@example.org", "al@example.org"


@pytest.fixture
def site(make_parts: MakeParts, tmp_path: Path) -> Site:
    """Alice has an alias, and reads the role mailbox together with bob."""
    aliases = tmp_path / "virtual"
    aliases.write_text(f"{ALIAS} {ALICE}\n{INFO} {ALICE}, {BOB}\n")
    return Site(make_parts(people__alias_file=aliases))


def rules(site: Site) -> list[Rule]:
    return list(site.store.rules.list(None, 99, site.now))


def add(browser: Browser, effect: str = "block", sender: str = "promo@example.net", **fields: str) -> Answer:
    form = {"form_token": browser.form_token(), "effect": effect, "sender": sender, **fields}
    return browser.post("/rules", form)


def change(browser: Browser, made: Rule, what: str) -> Answer:
    return browser.post(f"/rules/{made.id}/{what}", {"form_token": browser.form_token()})


def test_a_sender_is_added_removed_and_put_back(site: Site) -> None:
    browser = site.signed_in(ALICE)
    assert "No allowed or blocked senders" in browser.get("/rules").text
    page = browser.follow(add(browser, sender=" Promo@Example.NET "), "/rules").text
    [made] = rules(site)
    assert (made.scope, made.sender, made.effect) == (ALICE, "promo@example.net", Effect.BLOCK)
    assert (made.actor.who, made.actor.via, made.actor.address) == ("recipient", "portal", "192.0.2.7")
    assert 'Blocked: <bdi id="done">promo@example.net</bdi>' in page
    assert "by you" in page
    page = browser.follow(change(browser, made, "remove"), "/rules").text
    assert rules(site) == []
    assert 'Removed from your list: <bdi id="done">promo@example.net</bdi>' in page
    page = browser.follow(change(browser, made, "restore"), "/rules").text
    assert rules(site) == [made]
    assert 'Blocked: <bdi id="done">' in page
    for what in ("restore", "remove", "remove"):
        assert change(browser, made, what).status == 303


def test_the_list_says_what_each_rule_has_done(site: Site) -> None:
    at = site.now
    made = rule(hits=1234, last_hit_at=at, expires_at=at + timedelta(days=9), created_at=at)
    site.store.rules.add([made, rule("münchen.example".encode("idna").decode(), "allow", actor=BY_OPERATOR)], at)
    page = site.signed_in(ALICE).get("/rules").text
    assert "Messages: 1,234, the last one on" in page
    assert "Ends on" in page
    assert "Allowed: <bdi>münchen.example</bdi>" in page
    assert "by an administrator" in page
    assert "root" not in page


@pytest.mark.parametrize(
    ("sender", "effect", "sentence"),
    [
        ("*@example.net", "block", entry.WILDCARD),
        ("a@example.net, b@example.net", "block", entry.SEVERAL),
        ("192.0.2.0/24", "block", entry.NETWORK),
        ("gmail.com", "allow", entry.FREEMAIL),
        ("example.org", "allow", entry.LOCAL),
        ("", "block", entry.EMPTY),
        ("x" * 5000, "block", entry.TOO_LONG),
        ('"><script>alert(1)</script>', "block", entry.NEITHER),
    ],
)
def test_a_wrong_sender_is_shown_again_with_a_sentence(site: Site, sender: str, effect: str, sentence: str) -> None:
    answer = add(site.signed_in(ALICE), effect, sender)
    assert answer.status == 400
    assert f'role="alert" id="error">{sentence}</p>' in answer.text
    assert "<script>alert" not in answer.text
    shown = re.search(r'name="sender" value="([^"]*)"', answer.text)
    assert shown and html.unescape(shown[1]).rstrip("…") == sender[: len(html.unescape(shown[1]).rstrip("…"))]
    assert rules(site) == []


def test_a_sentence_is_in_the_language_of_the_recipient(site: Site) -> None:
    browser = site.signed_in(ALICE)
    browser.post("/preferences", {"form_token": browser.form_token(), "change": "save", "language": "de"})
    assert "Platzhalter sind nicht möglich." in add(browser, sender="*").text


def test_a_full_list_is_told(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_rules, "RULES_PER_RECIPIENT", 1)
    browser = site.signed_in(ALICE)
    add(browser)
    [made] = rules(site)
    answer = add(browser, sender="other.example")
    assert (answer.status, "Your list is full. Remove a sender first." in answer.text) == (400, True)
    change(browser, made, "remove")
    add(browser, sender="other.example")
    assert (change(browser, made, "restore").status, len(rules(site))) == (400, 1)


def test_forms_need_the_token_of_their_session(site: Site) -> None:
    browser, other = site.signed_in(ALICE), site.signed_in(MALLORY)
    [made] = site.store.rules.add([rule()], site.now)
    for token in ("", other.form_token()):
        assert browser.post("/rules", {"form_token": token, "effect": "block", "sender": "a.example"}).status == 403
        assert browser.post(f"/rules/{made.id}/remove", {"form_token": token}).status == 403
    form = {"form_token": browser.form_token(), "effect": "block", "sender": "a.example"}
    assert browser.request("POST", "/rules", form=form, headers={"Origin": "https://evil.example"}).status == 403
    assert rules(site) == [made]


# ---- for whom


def test_readers_of_a_role_mailbox_share_its_rules(site: Site) -> None:
    alice, bob, mallory = map(site.signed_in, (ALICE, BOB, MALLORY))
    assert f'<option value="{INFO}">' in alice.get("/rules").text
    assert "<select" not in mallory.get("/rules").text
    add(bob, recipient=INFO)
    [made] = rules(site)
    assert (made.scope, made.actor.name) == (INFO, BOB)
    page = alice.get("/rules").text
    assert "For</span>" not in page and f"<bdi>{INFO}</bdi>" in page and f"(<bdi>{BOB}</bdi>)" in page
    assert "promo@example.net" not in mallory.get("/rules").text
    assert change(mallory, made, "remove").status == 404
    change(alice, made, "remove")
    removed = site.store.rules.get(made.id)
    assert removed.removed_by is not None and removed.removed_by.name == ALICE


@pytest.mark.parametrize("recipient", [BOB, "@example.org", SITE, "nobody"])
def test_nobody_makes_rules_for_others(site: Site, recipient: str) -> None:
    assert add(site.signed_in(ALICE), recipient=recipient).status == 404
    assert rules(site) == []


def test_rules_of_others_and_of_administrators_are_not_listed_and_not_changed(site: Site) -> None:
    theirs = [rule("a.example", scope=BOB), rule("b.example", scope="@example.org"), rule("c.example", scope=SITE)]
    site.store.rules.add(theirs, site.now)
    browser = site.signed_in(ALICE)
    for each in theirs:
        assert each.sender not in browser.get(f"/rules?done={each.id}").text
        assert change(browser, each, "remove").status == change(browser, each, "restore").status == 404
    assert len(rules(site)) == 3


# ---- from a message


def test_the_sender_of_a_message_is_blocked(site: Site) -> None:
    held, browser = site.hold(recipients=[ALIAS]), site.signed_in(ALICE)
    for path in (f"/messages/{held.id}/", f"/messages/{held.id}/sender"):
        page = browser.get(path).text
        assert re.findall(r'name="sender" value="([^"]*)"', page) == ["promo@example.net", "example.net"]
        assert "all addresses and subdomains" in page
    page = browser.follow(add(browser, sender="example.net", message=str(held.id)), "/rules").text
    [made] = rules(site)
    assert (made.scope, made.sender, made.message_id) == (ALICE, "example.net", held.id)
    assert 'Blocked: <bdi id="done">example.net</bdi>' in page


def test_a_message_of_others_makes_no_rule(site: Site) -> None:
    held = site.hold(recipients=[BOB])
    assert add(site.signed_in(ALICE), message=str(held.id)).status == 404
    assert add(site.signed_in(ALICE), message="nonsense").status == 404
    assert rules(site) == []


@pytest.mark.parametrize(
    ("overrides", "senders"),
    [
        ({"header_from": "Promo <a@gmail.com>"}, ["a@gmail.com"]),
        ({"header_from": "", "envelope_sender": "b@example.net"}, ["b@example.net", "example.net"]),
        (
            {"header_from": "A <a@x.example>, B <b@y.example>, <c@z.example>"},
            ["a@x.example", "x.example", "b@y.example", "y.example"],
        ),
        ({"header_from": "Promo <a@[192.0.2.1]>"}, ["a@[192.0.2.1]"]),
        ({"header_from": "", "envelope_sender": ""}, []),
    ],
)  # fmt: skip
def test_the_senders_to_choose_from(site: Site, overrides: dict[str, Any], senders: list[str]) -> None:
    held = site.hold(recipients=[ALICE], **overrides)
    page = site.signed_in(ALICE).get(f"/messages/{held.id}/").text
    assert re.findall(r'name="sender" value="([^"]*)"', page) == senders
    assert ("This message names no sender." in page) is (not senders)


# ---- hints


def test_the_author_of_a_rule_is_told_what_it_will_not_do(site: Site) -> None:
    browser, held = site.signed_in(ALICE), site.hold(recipients=[ALICE])

    def page(effect: str, sender: str, **fields: str) -> str:
        return browser.follow(add(browser, effect, sender, **fields), "/rules").text

    assert "not authenticated" in page("allow", "promo@example.net", message=str(held.id))
    assert "not authenticated" not in page("block", "promo@example.net", message=str(held.id))
    assert "probably changes with each message" in page("block", "bounce-12345678@example.net")
    assert "your own organization" in page("block", "example.org")
    site.store.rules.add(
        [rule("bad.example", scope=SITE, binding=True), rule("b.example", scope="@example.org")], site.now
    )
    assert "Your administrator blocks this sender" in page("allow", "x@bad.example")
    assert "Yours takes precedence" in page("allow", "b.example")
    assert "look-alike" in page("allow", "xn--pypal-4ve.com")


def test_an_authentic_message_gets_no_hint_also_when_it_is_gone(site: Site) -> None:
    passed = (Symbol("DMARC_POLICY_ALLOW", 0.0, ("example.net",)),)
    held, browser = site.hold(recipients=[ALICE], symbols=passed), site.signed_in(ALICE)
    answer = add(browser, "allow", "example.net", message=str(held.id))
    assert 'class="warning"' not in browser.follow(answer, "/rules").text
    site.store.purge(site.now + timedelta(days=1), site.now)
    assert browser.follow(answer, "/rules").status == 200


# ---- the way from a digest


@pytest.mark.parametrize("tier", [Tier.SPAM, Tier.DANGEROUS])
def test_a_digest_leads_to_the_form_after_signing_in(site: Site, tier: Tier) -> None:
    held, browser = site.hold(tier, recipients=[ALICE]), site.browser()
    page = browser.get(site.link(Action.SHOW, held)).text
    link = re.search(r'href="/quarantine(/messages/[^"]*/sender)"', page)
    assert link
    assert rules(site) == []
    answer = browser.get(link[1])
    assert answer.header("Location") == "/quarantine/sign-in"
    mail = request_sign_in(site, browser)
    signed_in = browser.post(mail.link, {})
    assert signed_in.header("Location") == f"/quarantine{link[1]}"
    assert "Always block" in browser.follow(signed_in, "/").text
    assert "__Host-quarantine-destination" not in browser.cookies
