"""`quarantine stats` on both stores."""

from __future__ import annotations

import csv
import io
import json
import re
from datetime import timedelta

import pytest

from portal.model.audit import AuditFilter
from portal.model.staff import EVERYWHERE, Grant, Role
from portal.model.statistics import Count, Month
from portal.stores import Store
from tests.builders import ALICE, BY_OPERATOR, hold, now
from tests.cli.test_list import Run, bad, run

__all__ = ["bad", "run"]  # fixtures


def test_each_line_has_the_numbers_of_a_day_or_a_symbol(run: Run, store: Store, bad: str) -> None:
    while store.facets.index():
        pass
    store.statistics.count(now().date())
    shown = run("stats")
    assert shown.exit_code == 0 and f"{now():%Y-%m-%d}" in shown.output
    found = [json.loads(line) for line in run("stats", "--by", "symbol", "--json").output.splitlines()]
    assert next(each for each in found if each["symbol"] == "FUZZY_DENIED")["mistakes"] == 0
    tiers = [json.loads(line) for line in run("stats", "--by", "tier", "--json").output.splitlines()]
    assert {each["tier"]: each["held"] for each in tiers} == {"spam": 1, "suspicious": 1}
    assert "to list more, use --limit 10" in run("stats", "--by", "symbol", "--limit", "1").output.lower()


def test_a_domain_and_days_restrict_the_numbers(run: Run, store: Store, bad: str) -> None:
    hold(store, recipients=["dora@example.com"])
    while store.facets.index():
        pass
    store.statistics.count(now().date())
    [line] = run("stats", "--domain", "Example.com", "--json").output.splitlines()
    assert json.loads(line)["held"] == 1
    nothing = run("stats", "--since", "2020-01-01", "--until", "2020-01-02")
    assert nothing.exit_code == 1 and "Nothing was counted from 2020-01-01 to 2020-01-02" in nothing.output
    local, elsewhere = (
        run("stats", "--domain", name, "--since", "2020-01-01", "--until", "2020-01-02")
        for name in ("example.org", "elsewhere.example")
    )
    assert (local.exit_code, "for example.org from" in local.output) == (1, True)
    assert (elsewhere.exit_code, "is not a domain of local_domains" in elsewhere.output) == (2, True)


def test_the_domains_of_recipients_have_lines(run: Run, store: Store, bad: str) -> None:
    day = now().date()
    counts = [
        Count(host, "total", day.isoformat(), "held", "", number)
        for host, number in (("", 8), ("example.net", 3), ("example.org", 5))
    ]
    store.statistics.import_records(day, counts)

    def found(*words: str) -> list[tuple[str, int]]:
        lines = [json.loads(line) for line in run("stats", "--by", "domain", "--json", *words).output.splitlines()]
        return [(line["domain"], line["held"]) for line in lines]

    assert found() == [("example.org", 5), ("example.net", 3)]
    assert found("--domain", "Example.NET") == [("example.net", 3)]


def test_wrong_arguments_are_named(run: Run) -> None:
    run("init")
    assert run("stats", "--since", "2026-02-01", "--until", "2026-01-01").exit_code == 2
    for words in (
        *(["--since", ""], ["--domain", ""], ["--by", "x"], ["--json", "--csv"], ["--mail", ""]),
        ["--mail", ALICE, "--json"],
        ["--mail", ALICE, "--by", "symbol"],
        ["--mail", ALICE, "--by", "day"],
        ["--mail", ALICE, "--limit", "5"],
    ):
        assert run("stats", *words).exit_code == 2


def test_csv_has_the_same_numbers(run: Run, store: Store, bad: str) -> None:
    day = now().date().isoformat()
    store.statistics.import_records(now().date(), [Count("", "sender", day, "held", "=cmd|x.example", 3)])
    [line] = csv.DictReader(io.StringIO(run("stats", "--by", "sender", "--csv").output))
    assert (line["sender"], line["held"], line["released"], line["mistakes"]) == ("'=cmd|x.example", "3", "0", "0.0")


@pytest.mark.parametrize("form", ["table", "--json", "--csv"])
def test_the_newest_days_are_printed_in_order(run: Run, store: Store, form: str) -> None:
    run("init")
    days = [now().date() - timedelta(days=number) for number in reversed(range(60))]
    for number, day in enumerate(days, start=1):
        store.statistics.import_records(day, [Count("", "total", day.isoformat(), "held", "", number)])

    def printed(*words: str) -> tuple[list[str], str]:
        result = run("stats", "--since", days[0].isoformat(), *words, *([form] if form != "table" else []))
        assert result.exit_code == 0, result.output
        return re.findall(r"\d{4}-\d\d-\d\d", result.stdout), result.stderr

    every = [day.isoformat() for day in days]
    newest, said = printed()
    assert newest == every[10:] and said == "There are 60 days; these are the newest. To list more, use --limit 500\n"
    assert printed("--limit", "1")[0] == every[-1:]
    assert printed("--limit", "1000") == (every, "")


def test_the_report_of_the_last_month_is_mailed_to_an_administrator(run: Run, store: Store, bad: str) -> None:
    month = Month(now().date().replace(day=1)).before
    refused = run("stats", "--mail", ALICE)
    assert refused.exit_code == 1 and "administers no domain" in refused.output
    store.staff.give(Grant(ALICE, Role.ADMINISTRATOR, EVERYWHERE, now(), BY_OPERATOR))
    assert "Nothing was counted" in run("stats", "--mail", ALICE).output
    counts = [Count("", "total", month.last.isoformat(), "held", "", 3)]
    store.statistics.import_records(month.last, counts)
    done = run("stats", "--mail", ALICE.upper())
    assert done.exit_code == 0 and f"report of {month} is queued for {ALICE}" in done.output
    with store.outbox.sending(now()) as mail:
        assert mail is not None and mail.to == ALICE and b"Subject: Quarantine report for" in mail.mail
    assert [each.domain for each in store.audit.list(AuditFilter(act="exported"), 9)] == [EVERYWHERE]


def test_a_mailed_report_is_in_the_audit_of_its_domains(
    run: Run, store: Store, bad: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUARANTINE_LOCAL_DOMAINS", "example.org,example.com")
    month = Month(now().date().replace(day=1)).before
    hosts = ("example.com", "example.org")
    counts = [Count(each, "total", month.last.isoformat(), "held", "", 3) for each in hosts]
    store.statistics.import_records(month.last, counts)
    for domain in hosts:
        store.staff.give(Grant(ALICE, Role.DOMAIN_ADMINISTRATOR, domain, now(), BY_OPERATOR))
    assert run("stats", "--mail", ALICE).exit_code == 0
    found = [(each.domain, each.subject) for each in store.audit.list(AuditFilter(act="exported"), 9)]
    assert sorted(found) == [(each, ALICE) for each in hosts]
