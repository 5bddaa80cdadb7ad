"""Every route for readers of another address, by an alias or a shared mailbox, and with every method.

The statuses for the recipient and strangers are in `test_portal.OWN`, those of the roles in `test_staff.MATRIX`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlencode
from uuid import UUID

import pytest

from portal.assemble import Parts
from portal.model.audit import AuditFilter
from portal.model.links import Action
from portal.model.message import State
from portal.model.staff import EVERYWHERE, Grant, Role
from portal.stores.records import Held
from tests.builders import ALICE, BOB, BY_OPERATOR, MALLORY, hold, mail
from tests.builders import rule as rule_of
from tests.flows.test_aliases import write
from tests.smtp_server import SmtpServer
from tests.web.test_exporter import post
from tests.web.test_portal import OWN, relay
from tests.web_client import ORIGIN, Answer, Browser, Site

__all__ = ["relay"]  # a fixture

INFO, SALES = "info@example.org", "sales@example.org"
SECRET = "The secret subject"
METHODS = ("HEAD", "OPTIONS", "PUT", "PATCH", "DELETE", "TRACE", "CONNECT", "PROPFIND", "G ET")


@pytest.fixture
def site(make_parts: Callable[..., Parts], relay: SmtpServer, tmp_path: Path) -> Site:
    write(tmp_path / "virtual", f"{SALES} {ALICE}\n{INFO} {ALICE}, {BOB}\n")
    file = tmp_path / "virtual"
    return Site(make_parts(relay__url=relay.url, people__alias_file=file, people__recipient_delimiter="+"))


def path_of(rule: str, held: Held, *, act: str = "delete", token: str = "A" * 32, rule_id: str = "") -> str:
    """Return the path of a route for a message."""
    names = {"ID": str(held.id), "ACT": act, "NAME": "style.css", "PATH": "messages/x", "RULE": rule_id or str(held.id)}
    names |= {"CHANGE": "remove", "WAY": "next", "VIEW": "formatted", "TOKEN": token}
    return "/".join(names.get(part, part) for part in rule.split("/"))


def arrived(site: Site, address: str) -> Held:
    """Hold a message as it comes from Rspamd, so that it is held for those who read the address."""
    answer = post(site, mail(SECRET), headers={"X-Rspamd-rcpt": json.dumps([address]), "X-Rspamd-subject": SECRET})
    return Held(UUID(answer.json["id"]), known=False)


def ask(browser: Browser, method: str, path: str, form: dict[str, str]) -> Answer:
    return browser.get(path) if method == "GET" else browser.post(path, form)


# The person, the address that the message is for, and whether that person reads it.
READERS = [
    (ALICE, INFO, True),
    (BOB, INFO, True),
    (ALICE, SALES, True),
    (BOB, SALES, False),
    (MALLORY, INFO, False),
    (MALLORY, SALES, False),
    (ALICE, f"{ALICE.replace('@', '+shop@')}", True),
    (BOB, f"{ALICE.replace('@', '+shop@')}", False),
]


@pytest.mark.parametrize("act", ["release", "delete", "ask"])
@pytest.mark.parametrize(("person", "address", "reads"), READERS, ids=lambda value: str(value).partition("@")[0])
def test_readers_of_another_address_reach_what_its_recipient_would(
    site: Site, relay: SmtpServer, person: str, address: str, reads: bool, act: str
) -> None:
    held = arrived(site, address)
    browser = site.signed_in(person)
    before, token = (site.delivery(held), site.history(held)), browser.form_token()
    shown = 0
    for (method, rule), statuses in OWN.items():
        if rule.startswith(("/link/", "/rules/", "/sign-out", "/metrics")):
            continue
        if act != "release" and "/ACT" not in rule:
            continue  # it is the same route for each act
        form = {"change": "resume", "address": MALLORY, "code": "123456", "form_token": token, "warned": "spam"}
        answer = ask(browser, method, path_of(rule, held, act=act), form)
        assert answer.status == statuses[1 if reads else 2], (method, rule, answer.text)
        shown += SECRET in answer.text
    assert (shown > 3) == (reads and act == "release")
    if not reads:
        assert (site.delivery(held), site.history(held), relay.mails) == (*before, [])
    for event in site.history(held)[1:]:
        assert event.actor.name == (person if address in (INFO, SALES) else ""), (
            "an act on mail for another address names its reader"
        )


@pytest.mark.parametrize("is_staff", [False, True], ids=["recipient", "administrator"])
def test_other_methods_reach_nothing(site: Site, relay: SmtpServer, is_staff: bool) -> None:
    """HEAD is answered like GET and changes nothing; no route has any other method, so a new one fails here."""
    held = hold(site.store, recipients=(ALICE,), subject=SECRET)
    if is_staff:
        site.store.staff.give(Grant(ALICE, Role.ADMINISTRATOR, EVERYWHERE, site.now, BY_OPERATOR))
    [hers] = site.store.rules.add([rule_of("secret.example")], site.now)
    link = site.link(Action.RELEASE, held, minutes_old=20)
    token = link.rstrip("/").rpartition("/")[2]
    browser, before = site.signed_in(ALICE), (site.delivery(held), site.history(held))
    form = urlencode({"form_token": browser.form_token(), "pressed": "1", "act": "delete", "do": "delete"}).encode()
    headers = {"Origin": ORIGIN, "Sec-Fetch-Site": "same-origin", "Content-Type": "application/x-www-form-urlencoded"}
    rules = {rule for _, rule in OWN}
    for rule in sorted(rules - {"/PATH"}):
        path = path_of(rule, held, token=token if rule.startswith("/link") else "A" * 32, rule_id=str(hers.id))
        for method in METHODS:
            answer = browser.request(method, path, body=b"" if method == "HEAD" else form, headers=headers)
            if method == "HEAD" and ("GET", rule) in OWN:
                assert answer.status == browser.get(path).status and answer.body == b"", (rule, answer.status)
            else:
                assert answer.status in (404, 405), (method, rule, answer.status)
                assert SECRET not in answer.text
    assert {method for method, _ in site.app.routes} == {"GET", "POST"}, "test a new method like these"
    assert (site.delivery(held), site.history(held)) == before and site.state(held) is State.HELD
    assert site.store.rules.get(hers.id) == hers and not relay.mails
    assert browser.get("/").status == 200, "the session goes on"


@pytest.mark.parametrize("method", ["POST", "post", "Post"])
def test_forms_of_another_site_and_without_token_change_nothing(site: Site, relay: SmtpServer, method: str) -> None:
    """Bottle finds the routes of POST for "post" as well, so each check of a form must hold for it."""
    held = hold(site.store, recipients=(ALICE,), subject=SECRET)
    site.store.staff.give(Grant(ALICE, Role.ADMINISTRATOR, EVERYWHERE, site.now, BY_OPERATOR))
    browser, before = site.signed_in(ALICE), (site.delivery(held), site.history(held))
    audited = site.store.audit.list(AuditFilter(), 100)
    token, staff = browser.form_token(), site.store.staff.all()
    values = {"address": BOB, "role": "auditor", "scope": "act", "days": "9", "name": "x", "domain": "example.org"}
    form = {"act": "delete", "do": "delete", "change": "give", "mail": f"{held.id}.0", "report": "on", **values}
    other = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}
    own = {"Origin": ORIGIN, "Sec-Fetch-Site": "same-origin"}
    for of_method, rule in sorted(OWN):
        if (
            of_method != "POST"
            or rule.startswith(("/api/", "/link/", "/sign-in", "/sign-out", "/oidc/"))
            or rule == "/"
        ):
            continue
        path = path_of(rule, held)
        for headers, sent in (
            (own, form),
            (own, {**form, "form_token": token[:-2]}),
            (other, form | {"form_token": token}),
        ):
            answer = browser.request(method, path, form=sent, headers=headers)
            assert answer.status == 403, (method, rule, answer.status, headers)
    assert (site.delivery(held), site.history(held)) == before and not relay.mails
    assert (site.store.audit.list(AuditFilter(), 100), site.store.staff.all()) == (audited, staff)
