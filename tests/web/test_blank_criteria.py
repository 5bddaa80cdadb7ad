"""`/api/v1`: a text with nothing to search for is an error. It must never mean a search without that criterion."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from portal.assemble import Parts
from portal.model.criteria import CRITERIA
from portal.model.message import State
from portal.stores.records import Held
from tests.builders import ALICE, now
from tests.web.test_api import DOMAINS, PROBLEM, Client, client
from tests.web_client import Answer, Site

# Blanks, invisible characters, and an accent without a letter, which a search for parts of a sender ignores.
BLANK = (" ", "\t ", "\u3000", "\u200b", "\u3164", "\u0301", "\u00b4")


@pytest.fixture
def site(make_parts: Callable[..., Parts]) -> Site:
    return Site(make_parts(local_domains=DOMAINS))


@pytest.fixture
def held(site: Site) -> list[Held]:
    found = [site.hold(recipients=(ALICE,), header_from="A Shop <shop@example.net>") for _ in range(2)]
    site.now = now()  # a job leaves out what is held later
    return found


def rejected(answer: Answer) -> str:
    """Return the name of the only wrong value."""
    assert (answer.status, answer.header("Content-Type")) == (422, PROBLEM), answer.text
    [wrong] = answer.json["errors"]
    assert wrong["detail"]
    return str(wrong["name"])


def delete(program: Client, search: dict[str, Any], reason: str = "x") -> Answer:
    return program.post("/jobs", {"act": "delete", "search": search, "reason": reason})


def assert_unchanged(site: Site, program: Client, held: list[Held]) -> None:
    assert program.get("/jobs").json["jobs"] == []
    assert [site.state(each) for each in held] == [State.HELD] * len(held)


@pytest.mark.parametrize("criterion", CRITERIA, ids=lambda each: each.name)
def test_a_blank_criterion_is_rejected_and_changes_nothing(site: Site, held: list[Held], criterion: Any) -> None:
    program, name = client(site), criterion.name
    wrong = f"{name}.0" if criterion.many else name
    for blank in BLANK:
        assert rejected(program.get("/messages", (name, blank))) == wrong, repr(blank)
        assert rejected(program.get("/messages/groups", ("by", "symbol"), (name, blank))) == wrong, repr(blank)
        value = [blank] if criterion.many else blank
        assert rejected(delete(program, {name: value})) == f"search.{wrong}", repr(blank)
        assert rejected(delete(program, {"since": "12h", name: value})) == f"search.{wrong}", repr(blank)
    assert_unchanged(site, program, held)


@pytest.mark.parametrize("act", ["delete", "release", "restore", "refuse", "reannounce"])
def test_a_blank_reason_is_rejected_and_changes_nothing(site: Site, held: list[Held], act: str) -> None:
    program = client(site)
    for blank in BLANK:
        body = {"act": act, "search": {"since": "12h"}, "reason": blank}
        assert rejected(program.post("/jobs", body)) == "reason", repr(blank)
    assert_unchanged(site, program, held)


@pytest.mark.parametrize("blank", BLANK)
def test_blank_texts_of_rules_and_recipients_are_rejected(site: Site, blank: str) -> None:
    program = client(site)
    rule = {"scope": "site", "sender": "x.example", "effect": "block"}
    for name in ("scope", "sender"):
        assert rejected(program.post("/rules", {**rule, name: blank})) == name
    assert program.get("/rules").json["rules"] == []
    assert rejected(program.get("/recipients", ("address", blank))) == "address"
    assert rejected(program.post("/recipients/sign-out", {"address": blank})) == "address"


@pytest.mark.parametrize("blank", ["", *BLANK])
def test_blank_parameters_of_rules_and_statistics_are_rejected(site: Site, blank: str) -> None:
    program = client(site)
    assert rejected(program.get("/rules", ("scope", blank))) == "scope"
    for by in ("day", "domain"):
        assert rejected(program.get("/statistics", ("by", by), ("domain", blank))) == "domain"
        assert rejected(program.get("/statistics", ("by", by), ("domain", "@"))) == "domain"
        assert program.get("/statistics", ("by", by)).status == 200
    assert program.get("/rules").status == 200


@pytest.mark.parametrize("name", ["words", "attachment"])
@pytest.mark.parametrize("text", ["*", '""', "- @ …"])
def test_a_text_without_a_word_finds_nothing(site: Site, held: list[Held], name: str, text: str) -> None:
    program = client(site)
    assert program.get("/messages", (name, text)).json["messages"] == []
    assert program.get("/messages/groups", ("by", "domain"), (name, text)).json["groups"] == []
    answer = delete(program, {name: text})
    assert (answer.status, answer.json["job"], answer.json["count"]) == (200, None, 0)
    assert_unchanged(site, program, held)


@pytest.mark.parametrize("name", ["recipient", "domain", "sender-domain", "symbol", "rule"])
def test_an_asterisk_is_no_wildcard(site: Site, held: list[Held], name: str) -> None:
    program = client(site)
    answer = delete(program, {name: ["*"] if name in ("domain", "symbol") else "*"})
    assert answer.json.get("job") is None and answer.json.get("count", 0) == 0
    assert_unchanged(site, program, held)


def test_blanks_around_a_text_are_no_part_of_it(site: Site, held: list[Held]) -> None:
    program = client(site)
    found = program.get("/messages", ("symbol", " BAYES_SPAM "), ("sender", "\tshop\n")).json["messages"]
    assert len(found) == len(held)
    job = delete(program, {"sender": " shop "}, " not wanted ").json["job"]
    assert (job["search"], job["reason"], job["left"]) == ("?sender=shop", "not wanted", len(held))


def test_the_document_says_that_blanks_alone_are_no_text(site: Site) -> None:
    document = site.browser().get("/api/v1/openapi.json").json
    parameters = {each["name"]: each["schema"] for each in document["paths"]["/messages"]["get"]["parameters"]}
    schemas = document["components"]["schemas"]
    reason = schemas["JobRequest"]["properties"]["reason"]
    texts = (parameters["words"], parameters["symbol"]["items"], schemas["JobSearch"]["properties"]["rule"], reason)
    for text in texts:
        assert (text["minLength"], text["pattern"]) == (1, r"\S")
