"""The accident of docs/operate.md on the pages of the console: a rule held many wanted messages."""

from __future__ import annotations

import re
from datetime import timedelta
from html import unescape

from digest.housekeeping import run_mass_acts
from digest.run import send_all
from portal.model.message import State, Symbol
from portal.model.staff import EVERYWHERE, Grant, Role
from tests.builders import ALICE, BOB, BY_OPERATOR, MALLORY, now
from tests.flows.masses import relay, sent_mails, site
from tests.paths import ROOT
from tests.smtp_server import SmtpServer
from tests.web_client import Browser, Site

__all__ = ["relay", "site"]  # fixtures

NEW_RULE = (Symbol("NEW_RULE", 20.0),)


def section() -> str:
    """Return what the documentation says about the console."""
    text = (ROOT / "docs/operate.md").read_text("utf-8")
    return " ".join(text.partition("### The same on the console\n")[2].partition("\n## ")[0].split())


def link(page: str, text: str) -> str:
    """Return where the link with this text leads, which the documentation names unless it is a symbol."""
    assert f"*{text}" in section() or text == "NEW_RULE", text
    [target] = re.findall(rf'<a href="/quarantine([^"]*)"[^>]*>(?:<bdi>)?{re.escape(text)}', page)
    return unescape(target)


def tick(page: str, text: str) -> dict[str, str]:
    """Return the form's field of a box with this text."""
    assert f"*{text}" in section(), text
    [name] = re.findall(rf'<input type="checkbox" name="(\w+)" value="1"><span>{re.escape(text)}', page)
    return {name: "1"}


def hidden(page: str) -> dict[str, str]:
    return {name: unescape(value) for name, value in re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', page)}


def press(browser: Browser, path: str, text: str) -> str:
    """Press a button of a page that the documentation names, and return the page after it."""
    page = browser.get(path).text
    assert f"*{text}*" in section(), text
    [value] = re.findall(rf'<button name="change" value="(\w+)"[^>]*>{re.escape(text)}<', page)
    return browser.follow(browser.post(path, {**hidden(page), "change": value}), "/admin/").text


def test_the_pages_mend_what_a_rule_held(site: Site, relay: SmtpServer) -> None:
    site.store.staff.give(Grant(MALLORY, Role.ADMINISTRATOR, EVERYWHERE, site.now, BY_OPERATOR))
    found = [site.hold(recipients=(who,), symbols=NEW_RULE) for who in (ALICE, ALICE, ALICE, BOB)]
    other = site.hold(recipients=(ALICE,))
    site.now = now()
    browser = site.signed_in(MALLORY)
    search = browser.get("/admin/?since=24h").text
    assert "Held since" in search and "*Held since*" in section() and "*Group by: Symbol*" in section()
    [groups] = re.findall(r"""<a href="/quarantine([^"]*)"[^>]*>Symbol</a>""", search)
    results = browser.get(link(browser.get(unescape(groups)).text, "NEW_RULE")).text
    page = browser.get(link(results, "Release all…")).text
    assert "4 of 4 deliveries" in page
    choices = tick(page, "Keep these messages out of digests until this has ended") | tick(page, "Mail the recipients")
    assert "Release all</button>" in page and "*Release all*" in section()
    job = browser.post("/admin/jobs/", {**hidden(page), **choices, "reason": "A rule was wrong."})
    path = job.header("Location") or ""
    assert "Seconds until the start: 60" in browser.get(path).text
    assert send_all(site.parts, site.now).sent == [(ALICE, 1)], "the other message only"
    relay.script["BODY"] = ["554 5.7.1 no"]
    for _ in range(3):
        site.now += timedelta(seconds=61)
        run_mass_acts(site.parts, site.now)
    assert "Finished</strong>" in browser.get(path).text and "*Finished*" in section()
    del relay.script["BODY"]
    press(browser, path, "Retry errors")
    run_mass_acts(site.parts, site.now)
    assert [site.state(each) for each in (*found, other)] == [State.RELEASED] * 4 + [State.HELD]
    mails = sent_mails(site)
    assert {to for to, _ in mails} == {ALICE, BOB} and all("A rule was wrong." in text for _, text in mails)
    assert len([mail for mail in relay.mails if mail.recipients != [MALLORY]]) == 5
