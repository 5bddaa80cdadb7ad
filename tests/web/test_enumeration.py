"""Answers of the sign-in, the console and the API, which do not disclose who is known or what exists."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest

from portal.assemble import Parts
from portal.model.message import new_id
from portal.model.staff import EVERYWHERE, Grant, Role
from tests.builders import ALICE, BOB, BY_OPERATOR, MALLORY, hold
from tests.web.test_api import Client, name, token_of
from tests.web_client import Answer, Site

DOMAINS = ("example.org", "example.net")


@pytest.fixture
def site(make_parts: Callable[..., Parts]) -> Site:
    return Site(make_parts(local_domains=DOMAINS, staff__administrators=BOB))


def visible(answer: Answer) -> tuple[object, ...]:
    """Return what a client sees of an answer, without the secrets in cookies."""
    headers = sorted((key, value) for key, value in answer.headers if key.lower() != "set-cookie")
    return answer.status, answer.body, headers, sorted(answer.cookies())


def test_staff_get_the_answers_of_everybody_when_they_sign_in(site: Site) -> None:
    site.store.staff.give(Grant(MALLORY, Role.AUDITOR, EVERYWHERE, site.now, BY_OPERATOR))
    hold(site.store, recipients=(ALICE,))
    seen = []
    for number, address in enumerate((ALICE, MALLORY, BOB, "nobody@example.org", "x@elsewhere.example")):
        browser = site.browser()
        browser.peer = f"192.0.2.{number}"
        asked = browser.post("/sign-in", {"address": address})
        page = browser.get("/sign-in/code").text.replace(address, "ADDRESS")
        wrong = browser.post("/sign-in/code", {"code": "12345678"})
        seen.append((visible(asked), page, (wrong.status, wrong.text.replace(address, "ADDRESS"))))
    assert all(each == seen[0] for each in seen)


def test_tokens_that_do_not_work_get_one_answer(site: Site) -> None:
    hold(site.store, recipients=(ALICE,))
    carol, dave = "carol@example.org", "dave@example.org"
    revoked, expired, without_role = token_of(site), token_of(site, owner=carol), token_of(site, owner=dave)
    [token] = [each for each in site.store.tokens.all() if each.owner == MALLORY]
    site.store.tokens.revoke(token.id, BY_OPERATOR, site.now)
    site.store.staff.remove(dave, Role.ADMINISTRATOR, EVERYWHERE, BY_OPERATOR, site.now)
    site.pass_time(days=31)
    site.store.staff.give(Grant(carol, Role.ADMINISTRATOR, EVERYWHERE, site.now, BY_OPERATOR))
    answers = [
        visible(Client(site, secret).get(path))
        for secret in (revoked, expired, without_role, f"qtn_{'0' * 48}")
        for path in ("/messages", f"/messages/{new_id()}.0", "/statistics")
    ]
    assert answers[0][0] == 401 and all(each == answers[0] for each in answers)


def test_messages_of_other_domains_are_answered_like_absent_ones(site: Site) -> None:
    other = hold(site.store, recipients=("carol@example.net",), subject="The secret subject")
    site.store.staff.give(Grant(ALICE, Role.DOMAIN_ADMINISTRATOR, "example.org", site.now, BY_OPERATOR))
    browser = site.signed_in(ALICE)
    program = Client(site, token_of(site, Role.DOMAIN_ADMINISTRATOR, "example.org", owner=ALICE))
    absent = new_id(site.now - timedelta(minutes=1))
    for path in ("", "similar", "text", "formatted", "headers", "source", "html", "next", "download"):
        theirs, none = (browser.get(f"/admin/messages/{id}.0/{path}") for id in (other.id, absent))
        assert visible(theirs) == visible(none) and theirs.status == 404, path
    for act in ("release", "delete", "restore", "deny", "reannounce", "link"):
        form = {"form_token": browser.form_token(), "act": act, "reason": "x", "confirmed": "1"}
        theirs, none = (browser.post(f"/admin/messages/{id}.0/", form) for id in (other.id, absent))
        assert visible(theirs) == visible(none) and theirs.status == 404, act
    assert visible(program.get(f"/messages/{name(other)}")) == visible(program.get(f"/messages/{absent}.0"))
    for act in ("release", "delete", "restore"):
        results = [program.act(act, id)[0] | {"id": ""} for id in (name(other), f"{absent}.0")]
        assert results[0] == results[1], act
