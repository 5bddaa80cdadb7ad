"""The pages of allowed and blocked senders, as a signed-in recipient uses them."""

from __future__ import annotations

import html
import re
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from portal.model.links import Action
from portal.model.message import Actor, ActorKind, Symbol, Tier
from portal.model.rule import SITE, Effect, Rule
from portal.policy import entry
from portal.stores.shared import rules as shared_rules
from tests.builders import ALICE, BOB, BY_OPERATOR, MALLORY, rule
from tests.conftest import MakeParts
from tests.statements import Statements
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


def listed(page: str) -> dict[str, list[str]]:
    """Return the senders that a page lists, by effect."""
    sections = re.findall(r'<section aria-labelledby="(block|allow)">(.*?)</section>', page, re.DOTALL)
    return {effect: re.findall(r'class="who">([^<]*)</bdi>', section) for effect, section in sections}


def change(browser: Browser, made: Rule, what: str) -> Answer:
    return browser.post(f"/rules/{made.id}/{what}", {"form_token": browser.form_token()})


def test_a_sender_is_added_removed_and_put_back(site: Site) -> None:
    browser = site.signed_in(ALICE)
    page = browser.get("/rules").text
    assert "No blocked senders" in page and "No allowed senders" in page
    page = browser.follow(add(browser, sender=" Promo@Example.NET "), "/rules").text
    [made] = rules(site)
    assert (made.scope, made.sender, made.effect) == (ALICE, "promo@example.net", Effect.BLOCK)
    assert (made.actor.who, made.actor.via, made.actor.address) == ("recipient", "portal", "192.0.2.7")
    assert 'Blocked: <bdi id="done">promo@example.net</bdi>' in page
    assert listed(page) == {"block": ["promo@example.net"], "allow": []}
    assert "by you" in page
    page = browser.follow(change(browser, made, "remove"), "/rules").text
    assert rules(site) == []
    assert 'Removed from your list: <bdi id="done">promo@example.net</bdi>' in page
    page = browser.follow(change(browser, made, "restore"), "/rules").text
    assert rules(site) == [made]
    assert 'Blocked: <bdi id="done">' in page
    assert listed(page)["block"] == ["promo@example.net"]
    for what in ("restore", "remove", "remove"):
        assert change(browser, made, what).status == 303


def test_the_list_says_what_each_rule_has_done(site: Site) -> None:
    at = site.now
    made = rule(hits=1234, last_hit_at=at, expires_at=at + timedelta(days=9), created_at=at)
    site.store.rules.add([made, rule("münchen.example".encode("idna").decode(), "allow", actor=BY_OPERATOR)], at)
    page = site.signed_in(ALICE).get("/rules").text
    assert "Messages: 1,234, the last one on" in page
    assert "Ends on" in page
    assert listed(page) == {"block": ["example.net"], "allow": ["münchen.example"]}
    assert "/?state=blocked&amp;q=example.net" in page
    assert "by an administrator" in page
    assert "root" not in page


def test_a_rule_shows_its_note_and_links_to_its_message_while_that_is_kept(site: Site) -> None:
    held, browser = site.hold(recipients=[ALICE]), site.signed_in(ALICE)
    site.store.rules.add([rule(message_id=held.id, note="until <b>May</b>")], site.now)
    page = browser.get("/rules").text
    assert "until &lt;b&gt;May&lt;/b&gt;" in page
    assert browser.get(f"/messages/{held.id}/").status == 200 and f'href="/quarantine/messages/{held.id}/"' in page
    site.pass_time(days=31)
    assert str(held.id) not in site.signed_in(ALICE).get("/rules").text


def test_many_rules_are_searched_and_paged(
    make_parts: MakeParts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    statements = Statements(monkeypatch)
    aliases = tmp_path / "virtual"
    aliases.write_text(f"{INFO} {ALICE}, {BOB}\n")
    site = Site(make_parts(people__alias_file=aliases))
    made = [rule(f"n{n:03}@shop.example", note="Zürich" if n == 7 else "") for n in range(101)]
    site.store.rules.add(
        [*made, rule("partner.example", "allow", scope=INFO, actor=Actor(ActorKind.RECIPIENT, BOB))], site.now
    )
    browser = site.signed_in(ALICE)
    with statements.of() as queries:
        page = browser.get("/rules").text
    assert len(queries) <= 5
    assert [len(listed(page)[effect]) for effect in ("block", "allow")] == [20, 1]
    assert "Show all (101)" in page
    seen, path = [], "/rules?show=block"
    for _ in range(3):
        page = browser.get(path).text
        seen += listed(page)["block"]
        assert "allow" not in listed(page)
        older = re.search(r'href="/quarantine(/rules[^"]*)">Older<', page)
        path = html.unescape(older[1]) if older else ""
    assert path == ""
    assert sorted(seen) == [each.sender for each in made]
    for words, found in (("N042", ["n042@shop.example"]), ("shop zürich", ["n007@shop.example"]), ("info@", [])):
        assert listed(browser.get(f"/rules?{urlencode({'q': words})}").text)["block"] == found
    assert listed(browser.get("/rules?q=bob").text) == {"block": [], "allow": ["partner.example"]}
    for odd in ("show=block&page=99999", "show=block&page=-1", "show=x&page=2", "show=block&page=9999", "q=%00"):
        assert browser.get(f"/rules?{odd}").status == 200


def test_removing_a_rule_keeps_the_place_in_the_list(site: Site) -> None:
    site.store.rules.add([rule(f"n{n:03}@shop.example") for n in range(60)], site.now)
    browser = site.signed_in(ALICE)
    page = browser.get("/rules?q=shop&show=block&page=2").text
    act = re.search(r'formaction="/quarantine(/rules/[^"]*/remove)"', page)
    fields = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', page))
    assert act
    answer = browser.post(act[1], fields)
    assert (answer.header("Location") or "").endswith("&q=shop&show=block&page=2")
    page = browser.follow(answer, "/rules").text
    assert "Removed from your list:" in page
    assert len(listed(page)["block"]) == 9


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


@pytest.mark.parametrize("tier", list(Tier))
@pytest.mark.parametrize("page", ["", "sender"])
def test_a_message_that_may_be_harmful_offers_no_allow_rule(site: Site, tier: Tier, page: str) -> None:
    held = site.hold(tier, recipients=[ALICE])
    text = site.signed_in(ALICE).get(f"/messages/{held.id}/{page}").text
    assert 'value="block">Always block<' in text
    assert ('value="allow">Always allow<' in text) is (tier is Tier.SPAM)
    assert ("Messages like this are held even if their sender is allowed." in text) is (tier is not Tier.SPAM)


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
