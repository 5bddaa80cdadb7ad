"""`/api/v1`: jobs, rules, recipients and statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import date, timedelta
from typing import Any
from uuid import UUID

import pytest

from digest.housekeeping import run_mass_acts
from portal.assemble import Parts
from portal.batches.mass import MassAct
from portal.model.audit import AuditFilter
from portal.model.errors import StoreUnavailable
from portal.model.message import State, Tier
from portal.model.staff import EVERYWHERE, Role
from portal.model.statistics import Count
from portal.stores.shared.facets import SqlFacets
from tests.builders import ALICE, BOB, BY_OPERATOR, MALLORY, hold, now, rule
from tests.smtp_server import SmtpServer
from tests.web.test_api import CAROL, DOMAINS, Client, client
from tests.web_client import Answer, Site


@pytest.fixture
def relay() -> Iterator[SmtpServer]:
    with SmtpServer() as server:
        yield server


@pytest.fixture
def site(make_parts: Callable[..., Parts], relay: SmtpServer) -> Site:
    return Site(make_parts(local_domains=DOMAINS, relay__url=relay.url))


def done(answer: Answer) -> Any:
    assert answer.status == 200, answer.text
    return answer.json


def wrong(answer: Answer) -> list[str]:
    assert answer.status == 422, answer.text
    return [each["name"] for each in answer.json["errors"]]


def start(site: Site, program: Client, body: Any) -> Any:
    """Start a job now: it leaves out what is held later than the clock of the site."""
    site.now = now()
    return done(program.post("/jobs", body))


def run(site: Site) -> None:
    site.now = max(site.now, now())
    run_mass_acts(site.parts, site.now)


BLOCK = {"scope": "example.org", "sender": "a@b.example", "effect": "block"}
RELEASE = {"act": "release", "search": {"symbol": ["BAYES_SPAM"]}, "reason": "wrong rule"}

# ---- jobs


def test_a_job_is_counted_started_and_followed(site: Site, relay: SmtpServer) -> None:
    held = [site.hold(recipients=(ALICE,)) for _ in range(3)]
    suspicious = site.hold(Tier.SUSPICIOUS, recipients=(ALICE,))
    program = client(site)
    counted = start(site, program, {**RELEASE, "dry_run": True})
    assert (counted["job"], counted["count"], counted["total"]) == (None, 3, {"count": 4, "exact": True})
    assert counted["parts"] == [
        {"domain": "example.org", "tier": "spam", "state": "held", "count": 3, "obstacle": None},
        {"domain": "example.org", "tier": "suspicious", "state": "held", "count": 1, "obstacle": "too-harmful"},
    ]
    deleted = start(site, program, {**RELEASE, "act": "delete", "dry_run": True})
    assert deleted["count"] == 4 and {each["obstacle"] for each in deleted["parts"]} == {None}
    assert done(program.get("/jobs")) == {"jobs": [], "next": None}
    job = start(site, program, RELEASE)["job"]
    assert (job["act"], job["reason"], job["search"]) == ("release", "wrong rule", "?symbol=BAYES_SPAM&tier=spam")
    assert job["by"] == f"operator:{MALLORY}" and job["via"].startswith("api:")
    run(site)
    shown = done(program.get(f"/jobs/{job['id']}"))
    assert (shown["status"], shown["done"], shown["left"], shown["outcomes"]) == ("finished", 3, 0, {"released": 3})
    assert [site.state(each) for each in held] == [State.RELEASED] * 3 and len(relay.mails) == 3
    assert site.state(suspicious) is State.HELD
    assert done(program.get("/jobs"))["jobs"] == [shown]
    [entry] = site.store.audit.list(AuditFilter(act="job-started"), 9)
    assert entry.actor.via == job["via"] and "wrong rule" in entry.detail
    more = start(site, program, {**RELEASE, "max_tier": "dangerous", "dry_run": True})
    assert more["count"] == 1
    ended = program.post(f"/jobs/{job['id']}/pause", {})
    assert ended.status == 409 and "the job has ended" in ended.json["detail"]
    assert program.post(f"/jobs/{job['id']}/retry", {}).status == 409


def test_a_job_may_act_on_older_messages_only_than_were_counted(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SqlFacets.tally, "__defaults__", (2,))
    held = [site.hold(recipients=(ALICE,)) for _ in range(4)]
    for newest in held[2:]:
        site.parts.actions.release(newest.id, 0, BY_OPERATOR, operator=True)
    program = client(site)
    started = start(site, program, RELEASE)
    assert (started["count"], started["total"]) == (0, {"count": 2, "exact": False})
    assert started["job"]["left"] is None
    run(site)
    ended = done(program.get(f"/jobs/{started['job']['id']}"))
    assert (ended["outcomes"], ended["left"]) == ({"released": 2}, 0)
    assert [site.state(each) for each in held] == [State.RELEASED] * 4
    monkeypatch.setattr(SqlFacets.tally, "__defaults__", (4,))
    assert start(site, program, RELEASE)["job"] is None, "there is nothing to do"


def test_a_job_is_paused_resumed_and_cancelled(site: Site) -> None:
    held = site.hold(recipients=(ALICE,))
    program = client(site)
    job = start(site, program, {**RELEASE, "act": "delete"})["job"]["id"]
    assert done(program.post(f"/jobs/{job}/pause", {}))["status"] == "paused"
    run(site)
    assert site.state(held) is State.HELD
    assert done(program.post(f"/jobs/{job}/resume", {}))["status"] == "running"
    assert done(program.post(f"/jobs/{job}/cancel", {}))["id"] == job
    run(site)
    assert done(program.get(f"/jobs/{job}"))["status"] == "cancelled" and site.state(held) is State.HELD


def test_failed_releases_are_retried_in_a_new_job(site: Site, relay: SmtpServer) -> None:
    held = site.hold(recipients=(ALICE,))
    program = client(site)
    relay.script["BODY"] = ["554 5.7.1 no"]
    job = start(site, program, RELEASE)["job"]["id"]
    run(site)
    assert done(program.get(f"/jobs/{job}"))["failed"] == 1
    again = done(program.post(f"/jobs/{job}/retry", {}))
    assert again["retries"] == job and again["via"].startswith("api:")
    run(site)
    assert site.state(held) is State.RELEASED


def test_jobs_are_listed_in_pages_of_those_that_the_token_may_see(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("portal.stores.contracts.work._JOBS", 2)
    everywhere, own = client(site, owner=BOB), client(site, Role.DOMAIN_ADMINISTRATOR, "example.net")
    ids = {}
    for number in range(7):
        recipient = CAROL if number in (0, 1, 5) else ALICE
        site.hold(recipients=(recipient,))
        search = {"recipient": recipient, "symbol": ["BAYES_SPAM"]}
        ids[number] = start(site, everywhere, {**RELEASE, "act": "delete", "search": search})["job"]["id"]
    first = done(own.get("/jobs?limit=2"))
    second = done(own.get(f"/jobs?limit=2&cursor={first['next']}"))
    assert [each["id"] for each in (*first["jobs"], *second["jobs"])] == [ids[5], ids[1], ids[0]]
    assert second["next"] is None and len(done(everywhere.get("/jobs"))["jobs"]) == 7
    assert wrong(own.get(f"/jobs?cursor={ids[2]}")) == ["cursor"], "it is not shown to this token"


def test_a_token_of_a_domain_starts_and_sees_jobs_of_that_domain_only(site: Site) -> None:
    both = hold(site.store, recipients=(ALICE, CAROL))
    whole = start(site, client(site, owner=BOB), {**RELEASE, "act": "restore"})
    assert whole["job"] is None, "there is nothing to do"
    foreign = start(site, client(site, owner=BOB), {**RELEASE, "act": "delete", "search": {"recipient": ALICE}})
    program = client(site, Role.DOMAIN_ADMINISTRATOR, "example.net")
    job = start(site, program, {**RELEASE, "act": "delete"})
    assert [each["domain"] for each in job["parts"]] == ["example.net"]
    assert [each["id"] for each in done(program.get("/jobs"))["jobs"]] == [job["job"]["id"]]
    for path in ("", "/pause", "/cancel"):
        answer = program.post(f"/jobs/{foreign['job']['id']}{path}", {}) if path else None
        answer = answer or program.get(f"/jobs/{foreign['job']['id']}")
        assert answer.status == 404
    client(site, owner=BOB).post(f"/jobs/{foreign['job']['id']}/cancel", {})
    run(site)
    assert [site.state(both, number) for number in range(2)] == [State.HELD, State.DELETED]


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"search": {}}, "search"),
        ({"search": {"symbol": []}}, "search"),
        ({"search": {"symbols": ["X"]}}, "search.symbols"),
        ({"search": {"since": "soon"}}, "since"),
        ({"act": "ask"}, "act"),
        ({"act": "purge"}, "act"),
        ({"reason": ""}, "reason"),
        ({"reason": "a\x00b"}, "reason"),
        ({"reason": "x" * 301}, "reason"),
        ({"search": {"tier": ["dangerous"]}}, "max_tier"),
        ({"dry_run": "yes"}, "dry_run"),
        ({"act": "restore", "hold_back": True}, "hold_back"),
        ({"act": "refuse", "notify": True}, "notify"),
        ({"search": {"rule": "shop.example"}, "hold_back": True}, "hold_back"),
    ],
)
def test_a_job_that_cannot_be_started_changes_nothing(site: Site, changed: dict[str, Any], name: str) -> None:
    site.hold(recipients=(ALICE,))
    program = client(site)
    assert wrong(program.post("/jobs", {**RELEASE, **changed})) == [name]
    assert done(program.get("/jobs")) == {"jobs": [], "next": None}


def test_messages_are_kept_out_of_digests_and_recipients_are_mailed_if_a_job_says_so(site: Site) -> None:
    site.hold(recipients=(ALICE,))
    job = start(site, client(site), {**RELEASE, "hold_back": True, "notify": True})["job"]
    assert (job["hold_back"], job["notify"]) == (True, True)
    mass = MassAct.from_json(site.store.jobs.get(UUID(job["id"])).arguments)
    assert (mass.hold_back, mass.notify) == (True, True)


def test_the_same_start_with_the_same_key_is_one_job(site: Site) -> None:
    site.hold(recipients=(ALICE,))
    program = client(site)
    site.now = now()
    answers = [program.post("/jobs", RELEASE, headers={"Idempotency-Key": "k"}) for _ in range(2)]
    assert answers[0].body == answers[1].body and len(done(program.get("/jobs"))["jobs"]) == 1


def test_a_job_whose_answer_was_not_recorded_is_not_begun_again(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    held = site.hold(recipients=(ALICE,))
    program, key = client(site), {"Idempotency-Key": "k"}

    def died(*_: Any) -> None:
        raise StoreUnavailable("the process died")

    with monkeypatch.context() as patch:
        patch.setattr(type(site.store.idempotency), "finish", died)
        assert program.post("/jobs", RELEASE, headers=key).status == 503
    assert program.post("/jobs", RELEASE, headers=key).status == 409
    [job] = done(program.get("/jobs"))["jobs"]
    site.parts.actions.release(held.id, 0, BY_OPERATOR)
    site.pass_time(seconds=91)
    again = done(program.post("/jobs", RELEASE, headers=key))
    assert (again["job"]["id"], again["count"]) == (job["id"], 0)
    assert len(done(program.get("/jobs"))["jobs"]) == 1


def test_a_key_begins_another_job_when_it_has_expired(site: Site) -> None:
    site.hold(recipients=(ALICE,))
    program, key = client(site), {"Idempotency-Key": "nightly"}
    site.now = now()
    first = done(program.post("/jobs", RELEASE, headers=key))["job"]
    run(site)
    site.hold(recipients=(ALICE,))
    site.pass_time(hours=25)
    second = done(program.post("/jobs", RELEASE, headers=key))["job"]
    assert second["id"] != first["id"] and second["left"] == 1


def test_an_act_without_a_body_is_repeated_safely_as_well(site: Site) -> None:
    program, key = client(site), {"Idempotency-Key": "k"}
    added = done(program.post("/rules", {"scope": ALICE, "sender": "a.example", "effect": "block"}))
    path = f"/rules/{added['rule']['id']}/remove"
    first = program.post(path, {}, headers=key)
    assert first.status == 200 and program.post(path, {}, headers=key).body == first.body
    assert program.post(path, {}).status == 409


# ---- rules


def test_rules_are_added_listed_and_removed(site: Site) -> None:
    program = client(site)
    body = {"scope": "Alice@example.org", "sender": "Promo <promo@example.net>", "effect": "block", "note": "Grüße"}
    added = done(program.post("/rules", {**body, "expires_at": (site.now + timedelta(days=9)).isoformat()}))
    assert (added["rule"]["scope"], added["rule"]["sender"], added["added"]) == (ALICE, "promo@example.net", True)
    assert added["rule"]["via"].startswith("api:") and added["rule"]["expires_at"].endswith("Z")
    site.pass_time(seconds=1)
    again = done(
        program.post("/rules", {"scope": "site", "sender": "spam.example", "effect": "block", "binding": True})
    )
    site.pass_time(seconds=1)
    hinted = done(program.post("/rules", {"scope": ALICE, "sender": "spam.example", "effect": "allow"}))
    assert hinted["hints"] == ["overruled"]
    page = done(program.get("/rules?limit=2"))
    rest = done(program.get(f"/rules?limit=2&cursor={page['next']}"))
    assert [each["scope"] for each in (*page["rules"], *rest["rules"])] == [ALICE, "site", ALICE]
    assert rest["next"] is None
    removed = done(program.post(f"/rules/{again['rule']['id']}/remove", {}))
    assert removed["removed_at"]
    assert program.post(f"/rules/{again['rule']['id']}/remove", {}).status == 409
    assert [each["id"] for each in done(program.get("/rules?removed=true"))["rules"]] == [again["rule"]["id"]]
    assert {each.act for each in site.store.audit.list(AuditFilter(), 9)} >= {"rule-added", "rule-removed"}


def test_a_token_of_a_domain_sees_and_changes_rules_of_that_domain_only(site: Site) -> None:
    scopes = (ALICE, CAROL, "@example.org", "@example.net", "*")
    rules = site.store.rules.add([rule(scope=scope) for scope in scopes], site.now)
    of = {each.scope: str(each.id) for each in rules}
    program = client(site, Role.DOMAIN_ADMINISTRATOR, "example.net")
    assert wrong(program.get("/rules")) == ["scope"]
    for scope, count in ((CAROL, 1), ("example.net", 1), (ALICE, 0), ("example.org", 0), ("site", 0)):
        assert len(done(program.get("/rules", ("scope", scope)))["rules"]) == count
    removed = {scope: program.post(f"/rules/{of[scope]}/remove", {}).status for scope in scopes}
    assert removed == {ALICE: 404, "@example.org": 404, "*": 404, CAROL: 200, "@example.net": 200}
    for scope, status in ((ALICE, 403), ("site", 403), ("example.org", 403), (CAROL, 200), ("example.net", 200)):
        assert program.post("/rules", {"scope": scope, "sender": "x.example", "effect": "block"}).status == status
    desk = client(site, Role.HELP_DESK, owner=BOB)
    assert len(done(desk.get("/rules"))["rules"]) == 5


@pytest.mark.parametrize(
    "body",
    [
        {"scope": ALICE, "sender": "gmail.com", "effect": "allow"},
        {"scope": ALICE, "sender": "x.example", "effect": "block", "binding": True},
        {"scope": ALICE, "sender": "192.0.2.0/24", "effect": "block"},
        {"scope": "site", "sender": "x.example", "effect": "block", "expires_at": "2001-01-01T00:00:00Z"},
        {"scope": "site", "sender": "x.example", "effect": "block", "expires_at": "2099-01-01T00:00:00"},
        {"scope": "*.example", "sender": "x.example", "effect": "block"},
        {"scope": ALICE, "sender": "x.example", "effect": "deny"},
    ],
)
def test_a_rule_that_cannot_be_made_is_not_added(site: Site, body: dict[str, Any]) -> None:
    program = client(site)
    assert wrong(program.post("/rules", body)) and not done(program.get("/rules"))["rules"]


# ---- recipients


def test_a_recipient_is_shown_and_acted_for(site: Site) -> None:
    site.hold(recipients=(ALICE,))
    site.signed_in(ALICE)
    program = client(site)
    shown = done(program.get("/recipients?address=Alice%40example.org"))
    assert (shown["recipient"], shown["is_person"], shown["counts"]) == (ALICE, True, {"held": 1})
    assert shown["digests"]["stopped_at"] is None and len(shown["sessions"]) == 1
    body = {"address": ALICE, "reason": "on leave"}
    assert [done(program.post("/recipients/stop-digests", body))["changed"] for _ in range(2)] == [True, False]
    stopped = done(program.get("/recipients?address=alice%40example.org"))["digests"]
    assert stopped["stopped_at"] and stopped["next_at"] is None and stopped["stopped_by"] == f"operator:{MALLORY}"
    assert not done(program.post("/recipients/send-digest", body))["changed"], "they are stopped"
    assert done(program.post("/recipients/resume-digests", body))["changed"]
    assert done(program.post("/recipients/send-digest", body))["changed"]
    assert done(program.post("/recipients/sign-out", body)) == {"recipient": ALICE, "changed": True}
    assert done(program.get("/recipients?address=alice%40example.org"))["sessions"] == []
    [entry] = site.store.audit.list(AuditFilter(act="digests-stopped"), 9)
    assert (entry.actor.name, entry.subject, entry.detail) == (MALLORY, ALICE, "on leave")
    assert entry.actor.via.startswith("api:")


def test_recipients_of_other_domains_and_no_recipients_are_not_found(site: Site) -> None:
    program = client(site, Role.DOMAIN_ADMINISTRATOR, "example.net")
    answers = [program.get("/recipients", ("address", each)) for each in (ALICE, "nobody@example.org")]
    assert [each.status for each in answers] == [404, 404] and answers[0].text == answers[1].text
    assert program.post("/recipients/sign-out", {"address": ALICE}).status == 404
    assert program.get("/recipients", ("address", CAROL)).status == 200
    everywhere = client(site, owner=BOB)
    outside = everywhere.get("/recipients", ("address", "x@elsewhere.example"))
    assert outside.status == 404 and "local_domains" in outside.json["detail"]
    assert wrong(everywhere.get("/recipients", ("address", "x"))) == ["address"]


def test_a_shared_mailbox_has_no_digests(make_parts: Callable[..., Parts], tmp_path: Any) -> None:
    table = tmp_path / "virtual"
    table.write_text(f"info@example.org {ALICE}, {BOB}\n")
    site = Site(make_parts(local_domains=DOMAINS, people__alias_file=table))
    program = client(site)
    shown = done(program.get("/recipients?address=info@example.org"))
    assert (shown["is_person"], shown["digests"], shown["readers"]) == (False, None, [ALICE, BOB])
    table.write_text(f"info@example.net {ALICE}, a@example.net\n")
    site = Site(make_parts(local_domains=DOMAINS, people__alias_file=table))
    program = client(site, Role.AUDITOR, "example.net")
    shown = done(program.get("/recipients?address=info@example.net"))
    assert shown["readers"] == ["a@example.net"], "nobody of another domain"


def test_a_shared_mailbox_is_not_stopped(make_parts: Callable[..., Parts], tmp_path: Any) -> None:
    table = tmp_path / "virtual"
    table.write_text(f"info@example.org {ALICE}, {BOB}\n")
    program = client(Site(make_parts(local_domains=DOMAINS, people__alias_file=table)))
    answer = program.post("/recipients/stop-digests", {"address": "info@example.org"})
    assert answer.status == 409 and "one of its readers" in answer.json["detail"]


# ---- values that no store takes


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("get", "/rules?cursor=ffffffff-ffff-ffff-ffff-ffffffffffff", ()),
        ("post", "/rules", ({**BLOCK, "expires_at": "9999-12-31T23:59:59.999999-23:59"},)),
    ],
)
def test_values_beyond_the_calendar_are_no_fault_of_the_store(site: Site, method: str, path: str, body: Any) -> None:
    assert wrong(getattr(client(site), method)(path, *body))


# ---- statistics


def test_statistics_are_those_of_the_domains_of_a_token(site: Site) -> None:
    day = date(2026, 1, 31)
    counts = [
        Count(domain, "total", day.isoformat(), outcome, "", number)
        for domain, outcome, number in (("", "held", 8), ("", "released", 2), ("example.net", "held", 4))
    ]
    site.store.statistics.import_records(day, counts)
    program = client(site)
    period = "since=2026-01-01&until=2026-02-01"
    [line] = done(program.get(f"/statistics?{period}"))["lines"]
    assert (line["name"], line["numbers"]["held"], line["mistakes"]) == ("2026-01-31", 8, 0.25)
    assert done(program.get("/statistics"))["lines"] == []
    limited = client(site, Role.HELP_DESK, "example.net", owner=BOB)
    for query in (period, f"{period}&domain=Example.NET"):
        found = done(limited.get(f"/statistics?{query}"))
        assert found["domain"] == "example.net" and found["lines"][0]["numbers"]["held"] == 4
    assert wrong(limited.get("/statistics?domain=example.org")) == ["domain"]
    assert wrong(program.get("/statistics?since=2026-02-01&until=2026-01-01")) == ["since"]
    assert wrong(program.get("/statistics?since=soon")) == ["since"]
    assert done(program.get("/statistics?until=0001-01-01"))["lines"] == []
    assert EVERYWHERE == done(program.get("/statistics?by=delay"))["domain"]


def test_statistics_say_which_lines_are_left_out(site: Site) -> None:
    days = [date(2025, 1, 31) + timedelta(days=number) for number in range(367)]
    for day in days:
        site.store.statistics.import_records(day, [Count("", "total", day.isoformat(), "held", "", 1)])
    hosts = [f"d{number:03}.example" for number in range(120)]
    counts = [Count(host, "total", "2024-12-31", "held", "", 1) for host in hosts]
    site.store.statistics.import_records(date(2024, 12, 31), counts)
    program = client(site)

    def found(query: str) -> tuple[list[str], bool]:
        answer = done(program.get(f"/statistics?{query}&until=2026-02-01"))
        return [line["name"] for line in answer["lines"]], answer["complete"]

    every = [day.isoformat() for day in days]
    assert found("since=2025-01-31") == (every, True)
    assert found("since=2025-01-31&limit=2") == (every[-2:], False)
    assert found("since=2025-01-31&limit=367") == (every, True)
    assert found("since=2024-12-31&by=domain") == (hosts, True)
    assert found("since=2024-12-31&by=domain&limit=119") == (hosts[:119], False)


def test_statistics_by_domain_are_those_of_the_domains_of_a_token(site: Site) -> None:
    day = date(2026, 1, 31)
    hosts = ("", "example.org", "example.net", "example.com")
    counts = [Count(host, "total", day.isoformat(), "held", "", 9 - number) for number, host in enumerate(hosts)]
    site.store.statistics.import_records(day, counts)
    path = "/statistics?by=domain&since=2026-01-01&until=2026-02-01"

    def found(program: Client, query: str = "") -> list[tuple[str, int]]:
        return [(line["name"], line["numbers"]["held"]) for line in done(program.get(path + query))["lines"]]

    everything = [("example.org", 8), ("example.net", 7), ("example.com", 6)]
    program = client(site)
    assert found(program) == everything
    assert found(program, "&limit=1") == everything[:1]
    assert found(program, "&domain=Example.net") == [("example.net", 7)]
    limited = client(site, Role.HELP_DESK, "example.net", owner=BOB)
    assert found(limited) == [("example.net", 7)]
    assert wrong(limited.get(f"{path}&domain=example.org")) == ["domain"]
