"""`/api/v1`: tokens, permissions, search, one message, acts, and requests that are sent again."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import Any
from urllib.parse import urlencode
from uuid import uuid4

import pytest

from digest.housekeeping import run_mass_acts
from portal.assemble import Parts
from portal.batches.batch import Act as BatchAct
from portal.batches.mass import MassAct
from portal.batches.mass_run import MassActs
from portal.model.audit import AuditFilter
from portal.model.message import Filter, State, Symbol, Tier
from portal.model.staff import EVERYWHERE, Grant, Role
from portal.model.token import Scope
from portal.policy.tokens import TokenRequest
from portal.stores.records import Held
from portal.web.api import frame
from tests.builders import ALICE, BOB, BY_OPERATOR, MALLORY, hold
from tests.builders import rule as rule_of
from tests.contract.helpers import concurrently
from tests.smtp_server import SmtpServer
from tests.statements import Statements
from tests.web.test_portal import OWN, plain
from tests.web_client import Answer, Site

DOMAINS = ("example.org", "example.net")
CAROL = "carol@example.net"
PROBLEM = "application/problem+json"


class Client:
    """A program with a token."""

    def __init__(self, site: Site, secret: str) -> None:
        self._browser = site.browser()
        self._secret = secret

    def get(self, path: str, *pairs: tuple[str, str], **more: Any) -> Answer:
        query = f"?{urlencode(pairs)}" if pairs else ""
        return self._browser.request("GET", f"/api/v1{path}{query}", headers=self._headers(more), **more)

    def post(self, path: str, body: Any, **more: Any) -> Answer:
        headers = self._headers(more, {"Content-Type": "application/json"})
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self._browser.request("POST", f"/api/v1{path}", body=content, headers=headers, **more)

    def act(self, act: str, *ids: str, **more: Any) -> list[dict[str, Any]]:
        answer = self.post(f"/messages/{act}", {"ids": ids, **more})
        assert answer.status == 200, answer.text
        results: list[dict[str, Any]] = answer.json["results"]
        return results

    def _headers(self, more: dict[str, Any], others: Mapping[str, str] | None = None) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._secret}", **(others or {}), **more.pop("headers", {})}


@pytest.fixture
def relay() -> Iterator[SmtpServer]:
    with SmtpServer() as server:
        yield server


@pytest.fixture
def site(make_parts: Callable[..., Parts], relay: SmtpServer) -> Site:
    return Site(make_parts(local_domains=DOMAINS, relay__url=relay.url))


def token_of(
    site: Site,
    role: Role = Role.ADMINISTRATOR,
    domain: str = EVERYWHERE,
    scope: Scope = Scope.ACT,
    owner: str = MALLORY,
) -> str:
    """Return the secret of a new token, whose owner has the same role."""
    site.store.staff.give(Grant(owner, role, domain, site.now, BY_OPERATOR))
    wanted = TokenRequest("a program", role, domain, scope, 30)
    secret = site.parts.tokens.create(uuid4(), owner, wanted, BY_OPERATOR, site.now)
    assert secret
    return secret


def client(site: Site, *args: Any, **more: Any) -> Client:
    return Client(site, token_of(site, *args, **more))


def name(held: Held, number: int = 0) -> str:
    return f"{held.id}.{number}"


def subjects(answer: Answer) -> list[str]:
    assert answer.status == 200, answer.text
    return [each["subject"] for each in answer.json["messages"]]


# ---- every route and token

# The tokens of the columns: the role, its domain, and the scope. The messages are for a recipient in example.org.
TOKENS: tuple[tuple[Role, str, Scope], ...] = (
    (Role.ADMINISTRATOR, EVERYWHERE, Scope.ACT),
    (Role.ADMINISTRATOR, EVERYWHERE, Scope.READ),
    (Role.DOMAIN_ADMINISTRATOR, "example.org", Scope.ACT),
    (Role.DOMAIN_ADMINISTRATOR, "example.net", Scope.ACT),
    (Role.HELP_DESK, EVERYWHERE, Scope.ACT),
    (Role.AUDITOR, EVERYWHERE, Scope.ACT),
    (Role.HELP_DESK, "example.net", Scope.ACT),
    (Role.AUDITOR, "example.net", Scope.ACT),
)
# The status for each of TOKENS; with a status of 200, an act may still have the outcome that it is not permitted.
API: dict[tuple[str, str], tuple[int, ...]] = {
    ("GET", "/api/v1"): (303,) * 8,
    ("GET", "/api/v1/"): (200,) * 8,
    ("GET", "/api/v1/openapi.json"): (200,) * 8,
    ("GET", "/api/v1/messages"): (200, 200, 200, 200, 200, 200, 200, 200),
    ("GET", "/api/v1/messages/groups"): (200, 200, 200, 200, 200, 200, 200, 200),
    ("GET", "/api/v1/messages/ID"): (200, 200, 200, 404, 200, 200, 404, 404),
    ("POST", "/api/v1/messages/release"): (200, 403, 200, 200, 200, 403, 200, 403),
    ("POST", "/api/v1/messages/delete"): (200, 403, 200, 200, 403, 403, 403, 403),
    ("POST", "/api/v1/messages/restore"): (200, 403, 200, 200, 403, 403, 403, 403),
    ("GET", "/api/v1/jobs"): (200, 200, 200, 200, 200, 200, 200, 200),
    ("POST", "/api/v1/jobs"): (200, 403, 200, 200, 403, 403, 403, 403),
    ("GET", "/api/v1/jobs/ID"): (200, 200, 200, 404, 200, 200, 404, 404),
    ("POST", "/api/v1/jobs/ID/pause"): (200, 403, 200, 404, 403, 403, 404, 404),
    ("POST", "/api/v1/jobs/ID/resume"): (200, 403, 200, 404, 403, 403, 404, 404),
    ("POST", "/api/v1/jobs/ID/cancel"): (200, 403, 200, 404, 403, 403, 404, 404),
    ("POST", "/api/v1/jobs/ID/retry"): (409, 403, 409, 404, 403, 403, 404, 404),
    ("GET", "/api/v1/rules"): (200, 200, 200, 200, 200, 200, 200, 200),
    ("POST", "/api/v1/rules"): (200, 403, 200, 403, 403, 403, 403, 403),
    ("POST", "/api/v1/rules/ID/remove"): (200, 403, 200, 404, 403, 403, 403, 403),
    ("GET", "/api/v1/recipients"): (200, 200, 200, 404, 200, 200, 404, 404),
    ("POST", "/api/v1/recipients/stop-digests"): (200, 403, 200, 404, 403, 403, 403, 403),
    ("POST", "/api/v1/recipients/resume-digests"): (200, 403, 200, 404, 403, 403, 403, 403),
    ("POST", "/api/v1/recipients/send-digest"): (200, 403, 200, 404, 403, 403, 403, 403),
    ("POST", "/api/v1/recipients/sign-out"): (200, 403, 200, 404, 403, 403, 403, 403),
    ("GET", "/api/v1/statistics"): (200, 200, 200, 200, 200, 200, 200, 200),
}
QUERIES = {
    "/api/v1/messages/groups": "by=symbol",
    "/api/v1/recipients": f"address={ALICE}",
    "/api/v1/rules": "scope=example.org",
}
FREE = ("/api/v1", "/api/v1/", "/api/v1/openapi.json")  # without a token


def body_of(rule: str, held: Held) -> Any:
    """Return the body of a POST, for messages and recipients in example.org."""
    match rule.split("/")[3]:
        case "messages":
            return {"ids": [name(held)]}
        case "jobs":
            return {"act": "restore", "search": {"domain": ["example.org"]}, "reason": "x", "dry_run": True}
        case "rules":
            return {"scope": ALICE, "sender": "added.example", "effect": "block"}
        case _:
            return {"address": ALICE}


def test_every_route_is_in_the_matrix(site: Site) -> None:
    routes = {(method, plain(rule)) for method, rule in site.app.routes if rule.startswith("/api")}
    assert routes == set(API), "add the new route to the matrix"


@pytest.mark.parametrize("column", range(len(TOKENS)), ids=lambda n: "-".join(filter(None, TOKENS[n])))
def test_each_token_reaches_what_the_matrix_says(site: Site, column: int) -> None:
    program = client(site, *TOKENS[column])
    dangerous = hold(site.store, recipients=(ALICE,), tier=Tier.DANGEROUS)
    mass = MassAct(BatchAct.RESTORE, Filter(domains=frozenset({"example.org"})), "domain=example.org", 1, "x")
    job = MassActs(site.store, site.parts.actions, site.parts.staff).start(mass, BY_OPERATOR, uuid4())
    [blocked] = site.store.rules.add([rule_of("added.example")], site.now)
    ids = {"messages": name(dangerous), "jobs": str(job.id), "rules": str(blocked.id)}
    before = site.delivery(dangerous), site.history(dangerous)
    for (method, rule), statuses in API.items():
        path = rule.removeprefix("/api/v1").replace(
            "ID", ids.get(rule.split("/")[3] if rule.count("/") > 2 else "", "")
        )
        query = f"?{QUERIES[rule]}" if rule in QUERIES and method == "GET" else ""
        answer = program.get(path + query) if method == "GET" else program.post(path, body_of(rule, dangerous))
        assert answer.status == statuses[column], (method, rule, answer.text)
        if answer.status >= 400:
            assert answer.header("Content-Type") == PROBLEM and answer.json["detail"]
    if API["POST", "/api/v1/messages/delete"][column] != 200 or TOKENS[column][1] == "example.net":
        assert (site.delivery(dangerous), site.history(dangerous)) == before


def test_no_token_and_no_cookie_opens_a_route(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame, "REFUSALS_A_MINUTE", 1_000_000)
    site = Site(site.parts)
    held = site.hold()
    secret = token_of(site)
    browser = site.signed_in(MALLORY)
    asked: dict[str, str] = {}
    for method, rule in sorted(API):
        if rule in FREE:
            continue
        path = rule.replace("ID", name(held) if "/messages/" in rule else str(held.id))
        for authorization in ("", "Bearer ", "Bearer qtn_" + "0" * 48, f"Basic {secret}", f"Bearer {secret}x", secret):
            headers = {"Authorization": authorization, "Content-Type": "application/json"}
            body = json.dumps({"ids": [name(held)]}).encode() if method == "POST" else b""
            for query in ("", f"?access_token={secret}", f"?token={secret}"):
                answer = browser.request(method, path + query, body=body, headers=headers)
                assert answer.status == 401, (method, rule, authorization)
                asked[authorization] = answer.header("WWW-Authenticate") or ""
    assert asked[""] == "Bearer" and asked["Bearer qtn_" + "0" * 48] == 'Bearer error="invalid_token"'
    assert site.state(held) is State.HELD


def test_a_token_is_nothing_to_pages(site: Site, relay: SmtpServer) -> None:
    held = site.hold(subject="The secret subject")
    headers = {"Authorization": f"Bearer {token_of(site)}"}
    before = site.delivery(held), site.history(held)
    for (method, rule), statuses in OWN.items():
        if rule.startswith(("/api", "/link/")):
            continue
        path = rule.replace("/ID", f"/{held.id}").replace("ACT", "delete").replace("VIEW", "source")
        path = path.replace("WAY", "next").replace("TOKEN", "A" * 32).replace("NAME", "style.css")
        path = path.replace("RULE", str(held.id)).replace("CHANGE", "remove").replace("PATH", "messages/x")
        answer = (
            site.browser().get(path, headers=headers) if method == "GET" else site.browser().post(path, headers=headers)
        )
        assert answer.status == statuses[0], (method, rule, answer.text)
        assert "The secret subject" not in answer.text
    assert (site.delivery(held), site.history(held)) == before


def test_answers_are_for_programs_and_set_no_cookies(site: Site) -> None:
    program = client(site)
    answers = [
        program.get("/messages"),
        program.get("/nothing"),
        program.get("/messages", ("x", "y")),
        program.post("/messages", {}),
        Client(site, "x").get("/messages"),
        program.get("/messages", headers={"Origin": "https://evil.example"}),
    ]
    assert [each.status for each in answers] == [200, 404, 422, 405, 401, 200]
    for each in answers:
        assert not each.cookies() and each.header("Cache-Control") == "no-store"
        assert not [key for key, _ in each.headers if key.lower().startswith("access-control")]
        assert each.header("Content-Type") == ("application/json" if each.status == 200 else PROBLEM)
    assert answers[3].header("Allow") == "GET"


def test_tokens_stop_with_their_owners_role_and_outside_of_the_networks(make_parts: Callable[..., Parts]) -> None:
    site = Site(make_parts(staff__networks="192.0.2.0/24"))
    program = client(site, Role.HELP_DESK)
    assert program.get("/messages").status == 200
    for path in ("/messages", "/", "/openapi.json", "/nothing", ""):
        answer = program.get(path, environ={"REMOTE_ADDR": "198.51.100.1"})
        assert (answer.status, answer.json["title"]) == (404, "Not Found")
    site.store.staff.remove(MALLORY, Role.HELP_DESK, EVERYWHERE, BY_OPERATOR, site.now)
    assert program.get("/messages").status == 401


def test_a_token_sends_a_limited_number_of_requests(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame, "REQUESTS_A_MINUTE", 2)
    monkeypatch.setattr(frame, "REFUSALS_A_MINUTE", 2)
    site = Site(site.parts)
    program, other = client(site), client(site, owner=BOB)
    assert [program.get("/messages").status for _ in range(3)] == [200, 200, 429]
    assert 1 <= int(program.get("/messages").header("Retry-After") or "") <= 60
    assert other.get("/messages").status == 200
    assert [Client(site, "x").get("/messages").status for _ in range(3)] == [401, 401, 429]
    assert other.get("/messages").status == 200


# ---- search


def test_a_list_goes_on_with_its_cursor_in_each_order(site: Site) -> None:
    for number in range(5):
        hold(site.store, recipients=(ALICE,), subject=f"Number {number}", score=float(number % 3))
    program = client(site, Role.HELP_DESK)
    for order in ("newest", "highest-score", "lowest-score"):
        found, cursor = [], ""
        while True:
            pairs = [("order", order), ("limit", "2"), *([("cursor", cursor)] if cursor else [])]
            answer = program.get("/messages", *pairs).json
            found += [(each["subject"], each["score"]) for each in answer["messages"]]
            cursor = answer["next"]
            if not cursor:
                break
        assert len(set(found)) == 5
        scores = [score for _, score in found]
        assert order == "newest" or scores == sorted(scores, reverse=order == "highest-score")
    assert [subject for subject, _ in found][-1].startswith("Number 2")


def test_criteria_find_and_count_what_the_console_finds(site: Site) -> None:
    hold(site.store, recipients=(ALICE,), subject="Wanted", symbols=(Symbol("FUZZY", 7.5, ("secret",)),))
    hold(site.store, recipients=(ALICE,), subject="Other")
    program = client(site, Role.AUDITOR)
    answer = program.get("/messages", ("symbol", "FUZZY"), ("state", "held"), ("count", "true"))
    assert subjects(answer) == ["Wanted"]
    assert (answer.json["total"], answer.json["complete"]) == ({"count": 1, "exact": True}, True)
    [found] = answer.json["messages"]
    assert found["symbols"] == [{"name": "FUZZY", "score": 7.5}] and found["recipient"] == ALICE
    assert found["held_at"].endswith("Z")
    assert program.get("/messages").json["total"] is None
    empty = program.get("/messages", ("symbol", "ABSENT")).json
    assert empty["messages"] == [] and "No message has had the symbol ABSENT" in empty["note"]
    groups = program.get("/messages/groups", ("by", "symbol"), ("words", "wanted")).json
    assert groups["groups"] == [{"name": "FUZZY", "count": 1, "score": 7.5}] and groups["total"]["count"] == 1
    assert groups["note"] == ""
    for by in ("symbol", "domain", "hour"):
        nothing = program.get("/messages/groups", ("by", by), ("symbol", "ABSENT")).json
        assert (nothing["groups"], nothing["note"]) == ([], empty["note"])


def test_an_address_with_an_extension_finds_what_is_held_without_it(make_parts: Callable[..., Parts]) -> None:
    site = Site(make_parts(local_domains=DOMAINS, people__recipient_delimiter="+"))
    held = hold(site.store, recipients=(ALICE,), subject="For the shop")
    program, typed = client(site), "alice+shop@example.org"
    answer = program.get("/messages", ("recipient", typed))
    assert subjects(answer) == ["For the shop"] and answer.json["note"] == ""
    groups = program.get("/messages/groups", ("recipient", typed), ("by", "domain")).json
    assert groups["total"]["count"] == 1
    job = program.post("/jobs", {"act": "delete", "search": {"recipient": typed}, "reason": "Tests."}).json["job"]
    site.now += timedelta(seconds=61)
    run_mass_acts(site.parts, site.now)
    assert program.get(f"/jobs/{job['id']}").json["done"] == 1 and site.state(held) is State.DELETED


def test_a_token_of_a_domain_finds_only_its_deliveries(site: Site) -> None:
    both = hold(site.store, recipients=(ALICE, CAROL), subject="For both")
    other = hold(site.store, recipients=(BOB,), subject="Foreign")
    program = client(site, Role.DOMAIN_ADMINISTRATOR, "example.net")
    assert subjects(program.get("/messages")) == ["For both"]
    for pairs in ([("domain", "example.org")], [("recipient", ALICE)], [("words", "foreign")]):
        assert subjects(program.get("/messages", *pairs)) == []
    assert [each["name"] for each in program.get("/messages/groups", ("by", "domain")).json["groups"]] == [
        "example.net"
    ]
    detail = program.get(f"/messages/{both.id}").json
    assert (detail["id"], detail["recipient"], detail["others"]) == (name(both, 1), CAROL, [])
    absent = program.get("/messages/01900000-0000-7000-8000-000000000001.0")
    for id in (name(both, 0), name(other), str(other.id)):
        answer = program.get(f"/messages/{id}")
        assert (answer.status, answer.text) == (404, absent.text)
    results = program.act("delete", name(both, 0), name(other), name(both, 1))
    assert [each["outcome"] for each in results] == ["not-found", "not-found", "done"]
    assert site.state(both, 0) is State.HELD and site.state(other) is State.HELD


@pytest.mark.parametrize(
    ("query", "wrong"),
    [
        ("since=soon", "since"),
        ("since=3d&until=2001-01-01", "since"),
        ("recipient=", "recipient"),
        ("recipient=a%00b", "recipient"),
        ("tier=harmless", "tier.0"),
        ("limit=0", "limit"),
        ("limit=201", "limit"),
        ("limit=1&limit=2", "limit"),
        ("order=oldest", "order"),
        ("cursor=x", "cursor"),
        ("cursor=%C3%BC", "cursor"),
        ("symbols=FUZZY", "symbols"),
        ("count=maybe", "count"),
        ("words=%ff", "query"),
    ],
)
def test_a_wrong_value_is_named(site: Site, query: str, wrong: str) -> None:
    site.hold()
    answer = client(site).get(f"/messages?{query}")
    assert (answer.status, answer.header("Content-Type")) == (422, PROBLEM)
    assert [each["name"] for each in answer.json["errors"]] == [wrong] and answer.json["errors"][0]["detail"]


def test_lists_need_few_statements(make_parts: Callable[..., Parts], monkeypatch: pytest.MonkeyPatch) -> None:
    statements = Statements(monkeypatch)
    site = Site(make_parts())
    held, program = site.hold(), client(site)
    program.get("/messages")  # the first one records the use of the token
    for path in ("/messages?state=held", f"/messages/{held.id}"):
        with statements.of() as sent:
            assert program.get(path).status == 200
        assert 0 < len(sent) <= 6, sent


# ---- one message, and acts


def test_a_message_has_everything_but_its_content(site: Site) -> None:
    held = site.hold(subject="Grüße")
    program = client(site, Role.HELP_DESK)
    detail = program.get(f"/messages/{name(held)}").json
    assert detail["subject"] == "Grüße" and detail["tier"] == "spam" and detail["state"] == "held"
    bayes = next(each for each in detail["symbols"] if each["name"] == "BAYES_SPAM")
    assert bayes == {
        "name": "BAYES_SPAM", "score": 5.1, "text": "The text resembles known spam", "options": ["99.99%"]
    }  # fmt: skip
    assert "The text resembles known spam" in detail["reasons"]
    assert [each["recipient"] for each in detail["others"]] == [BOB]
    assert detail["history"][0]["kind"] == "held" and "Buy" not in json.dumps(detail)


def test_acts_have_one_outcome_for_each_id_and_the_token_in_the_audit(site: Site, relay: SmtpServer) -> None:
    spam, harmful = site.hold(recipients=(ALICE,)), site.hold(Tier.SUSPICIOUS, recipients=(ALICE,))
    released = site.hold(recipients=(BOB,))
    program = client(site)
    ids = [name(spam), name(harmful), name(released)]
    program.act("release", name(released))
    results = program.act("release", *ids, reason="false positive")
    assert [(each["id"], each["outcome"], each["state"]) for each in results] == [
        (ids[0], "done", "released"), (ids[1], "too-harmful", "held"), (ids[2], "unchanged", "released")
    ]  # fmt: skip
    assert len(relay.mails) == 2, "each was sent once"
    [done] = program.act("release", name(harmful), max_tier="suspicious")
    assert done["outcome"] == "done"
    [token, *_] = (each for each, _ in site.parts.tokens.all(site.now))
    [entry] = site.store.audit.list(AuditFilter(act="releasing", message_id=spam.id), 9)
    assert (entry.actor.name, entry.detail) == (MALLORY, "false positive") and str(token.id) in entry.actor.via
    other = site.hold(recipients=(ALICE,))
    assert [each["outcome"] for each in program.act("restore", name(other))] == ["unchanged"]
    assert [each["state"] for each in program.act("delete", name(other))] == ["deleted"]
    assert [each["state"] for each in program.act("restore", name(other))] == ["held"]


@pytest.mark.parametrize("act", ["release", "delete", "restore"])
def test_an_act_takes_no_other_spelling_of_an_id(site: Site, act: str) -> None:
    held, program = site.hold(), client(site)
    for id in (f"{held.id}.00", f"{held.id}.01", f"{str(held.id).upper()}.0", f"{held.id.hex:-<36}.0", f"{held.id}"):
        answer = program.post(f"/messages/{act}", {"ids": [id]})
        found = answer.status == 422 or answer.json["results"][0]["outcome"] == "not-found"
        assert found and site.state(held) is State.HELD, (id, answer.text)
    assert [each["id"] for each in program.act("delete", name(held))] == [name(held)]


def test_a_role_that_may_not_act_on_a_message_changes_nothing(site: Site, relay: SmtpServer) -> None:
    harmful, dangerous = site.hold(Tier.SUSPICIOUS), site.hold(Tier.DANGEROUS)
    ids = [name(harmful), name(dangerous)]
    desk = client(site, Role.HELP_DESK)
    assert [each["outcome"] for each in desk.act("release", *ids, max_tier="dangerous")] == ["not-permitted"] * 2
    domain = client(site, Role.DOMAIN_ADMINISTRATOR, "example.org", owner=BOB)
    results = domain.act("release", ids[1], max_tier="dangerous")
    assert [(each["outcome"], each["state"]) for each in results] == [("not-permitted", "held")]
    assert not relay.mails


def test_nobody_releases_their_own_dangerous_message_by_a_token(site: Site) -> None:
    held = hold(site.store, recipients=(MALLORY,), tier=Tier.DANGEROUS)
    [result] = client(site).act("release", name(held), max_tier="dangerous")
    assert result["outcome"] == "not-permitted" and "somebody else" in result["detail"]


def test_a_mail_server_that_does_not_answer_defers_the_release(make_parts: Callable[..., Parts]) -> None:
    site = Site(make_parts(relay__url="smtp://127.0.0.1:1"))
    held = site.hold()
    [result] = client(site).act("release", name(held))
    assert (result["outcome"], result["state"]) == ("deferred", "releasing")
    assert site.state(held) is State.RELEASING


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 422),
        (b"\xff", 400),
        ({}, 422),
        ({"ids": []}, 422),
        ({"ids": ["x"]}, 422),
        ({"ids": "01900000-0000-7000-8000-000000000001.0"}, 422),
        ({"ids": ["01900000-0000-7000-8000-000000000001.0"] * 2}, 422),
        ({"ids": ["01900000-0000-7000-8000-00000000000a.0", "01900000-0000-7000-8000-00000000000a.00"]}, 422),
        ({"ids": [f"01900000-0000-7000-8000-000000000001.{n}" for n in range(51)]}, 422),
        ({"ids": ["01900000-0000-7000-8000-000000000001.0"], "force": True}, 422),
        (b" " * (64 * 1024 + 1), 413),
    ],
)
def test_a_body_that_cannot_be_used_is_rejected(site: Site, body: Any, status: int) -> None:
    answer = client(site).post("/messages/release", body)
    assert (answer.status, answer.header("Content-Type")) == (status, PROBLEM), answer.text


@pytest.mark.parametrize("size", ["99", "x", "-1", "9" * 30])
def test_a_body_of_another_size_is_rejected(site: Site, size: str) -> None:
    held = site.hold()
    body = json.dumps({"ids": [name(held)]}).encode()
    answer = client(site).post("/messages/delete", body, environ={"CONTENT_LENGTH": size})
    assert answer.status == 400 and site.state(held) is State.HELD


def test_a_form_is_not_a_body(site: Site) -> None:
    answer = client(site).post(
        "/messages/delete", b"ids=x", headers={"Content-Type": "application/x-www-form-urlencoded"}
    )
    assert answer.status == 415


# ---- requests that are sent again


def test_the_same_request_with_the_same_key_is_performed_once(site: Site, relay: SmtpServer) -> None:
    held, other = site.hold(recipients=(ALICE,)), site.hold(recipients=(ALICE,))
    program = client(site)
    key = {"Idempotency-Key": '"8e03978e-40d5-43dd-bc93-6894a57f9324"'}
    body = {"ids": [name(held)]}
    first = program.post("/messages/release", body, headers=key)
    again = program.post("/messages/release", body, headers=key)
    assert (first.status, first.json["results"][0]["outcome"]) == (200, "done")
    assert (again.status, again.body) == (200, first.body) and len(relay.mails) == 1
    changed = program.post("/messages/release", {"ids": [name(other)]}, headers=key)
    assert changed.status == 422 and "another request" in changed.json["detail"]
    assert program.post("/messages/delete", body, headers=key).status == 422, "another address"
    assert client(site, owner=BOB).post("/messages/delete", body, headers=key).status == 200, "another token"
    site.pass_time(hours=24)
    assert program.post("/messages/release", body, headers=key).json["results"][0]["outcome"] != "done"
    for wrong in ("", "two words", "x" * 256):
        assert program.post("/messages/release", body, headers={"Idempotency-Key": wrong}).status == 422


def test_requests_at_once_release_a_message_once(site: Site, relay: SmtpServer) -> None:
    held, program = site.hold(recipients=(ALICE,)), client(site)
    answers = concurrently(8, lambda _: program.post("/messages/release", {"ids": [name(held)]}))
    assert {each.status for each in answers} <= {200, 503}  # so many releases may wait for the mail server
    outcomes = [each.json["results"][0]["outcome"] for each in answers if each.status == 200]
    assert sorted(outcomes) == ["done", *["unchanged"] * (len(outcomes) - 1)] and len(relay.mails) == 1


def test_a_request_that_is_being_answered_is_a_conflict(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    held, program, seen = site.hold(recipients=(ALICE,)), client(site), list[int]()
    key, body = {"Idempotency-Key": "k"}, {"ids": [name(held)]}
    get = type(site.store.deliveries).of_message

    def of_message(*args: Any) -> Any:
        if not seen:
            seen.append(0)
            seen.append(program.post("/messages/delete", body, headers=key).status)
        return get(*args)

    monkeypatch.setattr(type(site.store.deliveries), "of_message", of_message)
    assert program.post("/messages/delete", body, headers=key).status == 200
    assert seen == [0, 409]


def test_a_request_that_failed_may_be_sent_again_with_its_key(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    held, program = site.hold(recipients=(ALICE,)), client(site)
    key, body = {"Idempotency-Key": "k"}, {"ids": [name(held)]}
    with monkeypatch.context() as patch, caplog.at_level(logging.ERROR):
        patch.setattr(type(site.store.deliveries), "of_message", lambda *_: 1 / 0)
        failed = program.post("/messages/delete", body, headers=key)
    assert (failed.status, failed.header("Content-Type")) == (500, PROBLEM)
    assert "request failed POST /api/v1/messages/delete" in caplog.text and "ZeroDivision" not in failed.text
    assert program.post("/messages/delete", body, headers=key).json["results"][0]["outcome"] == "done"
