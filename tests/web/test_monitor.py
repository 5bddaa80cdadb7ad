"""`/metrics` as Prometheus reads it, its access list and token, and the files for Prometheus and Grafana."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest

from digest import run, sizes
from digest.housekeeping import index_facets
from portal import __version__
from portal.assemble import Parts
from portal.model.errors import QuarantineError, StoreUnavailable
from portal.policy.block_map import BlockMap
from portal.stores import Store
from portal.stores.records import Held, Sizes
from tests.builders import ALICE, BOB, BY_OPERATOR, hold, mail, now
from tests.paths import ROOT
from tests.smtp_server import SmtpServer
from tests.statements import Statements
from tests.uwsgi_client import HEALTH, exchange, packet
from tests.web.conftest import Start
from tests.web_client import Answer, Browser, Site

MakeParts = Callable[..., Parts]
TOKEN = "0123456789abcdef0123"
RULES = ROOT / "deploy" / "prometheus" / "quarantine.rules.yml"
DASHBOARD = ROOT / "deploy" / "grafana" / "quarantine.json"
OPERATE = (ROOT / "docs" / "operate.md").read_text("utf-8")


def local(parts: Parts) -> Browser:
    browser = Site(parts).browser()
    browser.peer = "127.0.0.1"
    return browser


def metrics(parts: Parts) -> dict[str, float]:
    text = local(parts).get("/metrics").text
    return {name: float(value) for name, value in re.findall(r"^quarantine_(\S+) (\S+)$", text, re.MULTILINE)}


def post(parts: Parts, data: bytes, **headers: str) -> Answer:
    return local(parts).request("POST", "/", body=data, headers={"X-Rspamd-rcpt": json.dumps([ALICE]), **headers})


# ---- what is measured


def test_durations_of_all_processes_are_added_up(parts: Parts, make_parts: MakeParts) -> None:
    other, data = make_parts(), mail()
    assert metrics(parts)['post_seconds_sum{outcome="held"}'] == 0
    for each in (parts, other, other):
        assert post(each, data).status == 200
    local(other).get("/sign-in")
    local(other).get("/no-such-page")
    other.store.close()
    found = metrics(parts)
    assert found['post_seconds_count{outcome="held"}'] == found['post_seconds_bucket{le="+Inf",outcome="held"}'] == 1
    assert found['post_seconds_count{outcome="known"}'] == 2
    buckets = [number for name, number in found.items() if re.match(r'post_seconds_bucket.*"known"', name)]
    assert len(buckets) == 9 and buckets == sorted(buckets), "they are cumulative"
    assert 0 < found['post_seconds_sum{outcome="known"}'] < 60
    assert found['page_seconds_count{path="/sign-in"}'] == 1


def test_posts_have_the_outcomes_of_the_documentation(make_parts: MakeParts) -> None:
    parts = make_parts(exporter__hold_actions=["reject"])
    actions = ("reject", "add header")
    results = [post(parts, mail(action), **{"X-Rspamd-action": action}).json["status"] for action in actions]
    assert results == ["held", "not-selected"]
    found = metrics(parts)
    outcomes = re.findall(r'post_seconds_count\{outcome="(.*?)"\}', " ".join(found))
    (row,) = re.findall(
        r"^\| `quarantine_post_seconds` \|.*", (ROOT / "docs/operate.md").read_text("utf-8"), re.MULTILINE
    )
    assert sorted(outcomes) == sorted(set(re.findall(r"`([a-z-]+)`", row)) - {"outcome"})
    assert found['post_seconds_count{outcome="not-selected"}'] == 1


def test_a_post_that_fails_is_measured(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **named: object) -> None:
        raise StoreUnavailable("full disk")

    with monkeypatch.context() as patch:
        patch.setattr(type(parts.store.messages), "add", fail)
        assert post(parts, mail()).status == 503
    assert metrics(parts)['post_seconds_count{outcome="failed"}'] == 1
    assert metrics(parts)['post_seconds_count{outcome="refused"}'] == 0, "an alert needs a series that increases"


def test_releases_and_digests_are_measured_by_the_answer(make_parts: MakeParts) -> None:
    with SmtpServer() as server:
        parts = make_parts(relay__url=server.url, mail__url=server.url)
        for answer in (None, "451 busy", "550 no"):
            server.script.update({"RCPT": answer} if answer else {})
            held = hold(parts.store, recipients=[ALICE])
            release(parts, held)
        server.script.clear()
        hold(parts.store, recipients=[BOB])
        run.send_all(parts, now(), recipient=[BOB])
    closed = make_parts(relay__url="smtp://127.0.0.1:1")
    release(closed, hold(closed.store, recipients=[ALICE]))
    closed.store.notes.counters()
    found = metrics(parts)
    counts = {
        answer: found.get(f'release_seconds_count{{answer="{answer}"}}') for answer in ("2xx", "4xx", "5xx", "none")
    }
    assert counts == {"2xx": 1, "4xx": 1, "5xx": 1, "none": 1}
    assert found['digest_seconds_count{answer="2xx"}'] == 1


def release(parts: Parts, held: Held) -> None:
    with suppress(QuarantineError):
        parts.actions.release(held.id, 0, BY_OPERATOR)


def test_what_the_store_has_is_counted_by_the_digest_process(parts: Parts) -> None:
    assert "deliveries_stored" not in str(metrics(parts))
    at = now()
    hold(parts.store, recipients=[ALICE, BOB])
    parts.store.recipients.schedule(ALICE, at)
    sizes.measure(parts, at)
    found = metrics(parts)
    assert found['deliveries_stored{state="held"}'] == 2
    assert found['deliveries_stored{state="released"}'] == 0
    assert 0 <= found["oldest_unannounced_seconds"] < 600
    assert found["store_bytes"] > 10_000
    is_local = parts.settings.store.place.folder is not None
    assert [name in found for name in ("store_free_bytes", "store_free_inodes")] == [is_local] * 2
    hold(parts.store, recipients=[ALICE])
    sizes.measure(parts, at + timedelta(minutes=1))
    assert metrics(parts)['deliveries_stored{state="held"}'] == 2, "counted a moment ago"
    sizes.measure(parts, at + timedelta(hours=13))
    assert metrics(parts)['deliveries_stored{state="held"}'] == 3


def test_a_file_system_that_makes_inodes_on_demand_has_no_number_of_them(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Btrfs reports 0 inodes, and 0 free ones, which an alert would take for a full disk."""
    statvfs = os.statvfs
    monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result([*statvfs(path)[:5], 0, 0, 0, 0, 255, 0]))
    found = metrics(parts)
    assert ("store_free_bytes" in found) == (parts.settings.store.place.folder is not None)
    assert "store_free_inodes" not in found


def test_a_count_that_failed_is_not_tried_again_at_once(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[int] = []

    def fails(store: Store) -> Sizes:
        tries.append(1)
        raise StoreUnavailable("the time limit was exceeded")

    at = now()
    hold(parts.store, recipients=[ALICE])
    with monkeypatch.context() as failing:
        failing.setattr(type(parts.store), "sizes", fails)
        with pytest.raises(StoreUnavailable):
            sizes.measure(parts, at)
        for minutes in range(1, 5):
            sizes.measure(parts, at + timedelta(minutes=minutes))
    assert len(tries) == 1
    sizes.measure(parts, at + timedelta(minutes=6))
    assert metrics(parts)['deliveries_stored{state="held"}'] == 1


def test_recipients_who_want_no_digests_do_not_count_as_late(parts: Parts) -> None:
    hold(parts.store, recipients=[ALICE], at=now() - timedelta(days=12))
    sizes.measure(parts, now())
    assert metrics(parts)["oldest_unannounced_seconds"] == 0


def test_a_scrape_takes_few_statements_and_reads_no_deliveries(
    make_parts: MakeParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    statements = Statements(monkeypatch)
    parts = make_parts()
    sizes.measure(parts, now())
    metrics(parts)
    with statements.of() as queries:
        metrics(parts)
    assert len(queries) <= 9, "\n".join(queries)
    waiting = [query for query in queries if "delivery" in query]
    assert all("'releasing'" in query for query in waiting), "\n".join(waiting)  # the condition of a small index


# ---- who may read it


def test_metrics_have_an_access_list_and_a_token_of_their_own(make_parts: MakeParts) -> None:
    browser = Site(make_parts(metrics__allowed_networks="192.0.2.0/28", metrics__token=TOKEN)).browser()
    for peer, credentials, status in (
        ("127.0.0.1", f"Bearer {TOKEN}", 403),
        ("192.0.2.77", f"Bearer {TOKEN}", 403),
        ("192.0.2.3", "", 401),
        ("192.0.2.3", f"Basic {TOKEN}", 401),
        ("192.0.2.3", f"Bearer {TOKEN}x", 401),
        ("192.0.2.3", "Bearer é", 401),
        ("192.0.2.3", f"bearer {TOKEN}", 200),
    ):
        browser.peer = peer
        answer = browser.get("/metrics", headers={"Authorization": credentials})
        assert (answer.status, "quarantine_store_up" in answer.text) == (status, status == 200), credentials
    assert browser.get("/healthz").json.keys() == {"status"}, "it has the networks of the exporter"


# ---- request ids


def test_errors_of_a_request_have_its_id(
    parts: Parts, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*args: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("portal.web.auth.page.SignInPage.show", fail)
    browser = Site(parts).browser()
    page = browser.get("/sign-in", headers={"X-Request-ID": "4f1d0a5e0001"})
    assert page.status == 500
    assert "Request ID: 4f1d0a5e0001" in page.text
    assert "Request ID: " + "<b>" not in browser.get("/sign-in", headers={"X-Request-ID": "<b>x</b>--"}).text
    assert "Request ID" not in browser.get("/no-such-page").text


@pytest.mark.slow
def test_workers_and_the_digest_process_log_json(start: Start) -> None:
    home, data = start(QUARANTINE_LOG__FORMAT="json", QUARANTINE_SOCKET="socket"), mail()
    variables = HEALTH | {"REQUEST_METHOD": "POST", "PATH_INFO": "/quarantine/", "CONTENT_LENGTH": str(len(data))}
    variables |= {"CONTENT_TYPE": "message/rfc822", "HTTP_X_REQUEST_ID": "4f1d0a5e0001"}
    answer = exchange(str(home / "socket"), packet(variables, data))
    lines: list[dict[str, str]] = []
    deadline = time.monotonic() + 30
    while not any(line["logger"] == "quarantine.digest" for line in lines) and time.monotonic() < deadline:
        time.sleep(0.1)
        texts = (home / "log").read_text("utf-8").splitlines()
        lines = [json.loads(text) for text in texts if text.startswith("{") and text.endswith("}")]
    [held] = [line for line in lines if line["message"].startswith("held ")]
    assert held["id"] in answer.decode() and held["request"] == "4f1d0a5e0001"
    assert any(line["message"].startswith(f"running {__version__}") for line in lines)


# ---- the files for Prometheus and Grafana


def named(text: str) -> set[str]:
    return set(re.findall(r"\bquarantine_\w+", text))


@pytest.fixture
def real(make_parts: MakeParts, tmp_path: Path) -> set[str]:
    """The names of all metrics, with the suffixes of their samples."""
    aliases = tmp_path / "virtual"
    aliases.write_text("info@example.org alice@example.org\n")
    with SmtpServer() as server:
        parts = make_parts(
            people__alias_file=str(aliases), rspamd__block_map=str(tmp_path / "map"), mail__url=server.url
        )
        at = now()
        hold(parts.store, recipients=[ALICE, BOB])
        run.send_all(parts, at, recipient=[ALICE])
    parts.store.recipients.schedule(BOB, at - timedelta(minutes=1))
    parts.store.heartbeat(at)
    BlockMap(tmp_path / "map", parts.store, parts.people).refresh(at)
    index_facets(parts)
    sizes.measure(parts, at)
    found = re.findall(r"^# TYPE (\S+) (\S+)$", local(parts).get("/metrics").text, re.MULTILINE)
    suffixes = {"histogram": ("", "_bucket", "_count", "_sum")}
    return {name + suffix for name, kind in found for suffix in suffixes.get(kind, ("",))}


@pytest.mark.parametrize("store_url", ["files"], indirect=True)  # which has all of them
def test_rules_and_dashboard_use_metrics_that_exist(real: set[str]) -> None:
    for path in (RULES, DASHBOARD):
        assert not named(path.read_text("utf-8")) - real, path.name


@pytest.mark.parametrize("store_url", ["files"], indirect=True)
def test_every_metric_is_documented(real: set[str]) -> None:
    families = {name for name in real if not re.search(r"_(bucket|count|sum)$", name)}
    assert len(families) > 30
    assert not families - set(re.findall(r"`(quarantine_\w+)`", OPERATE))


def test_each_alert_is_documented_with_what_to_do() -> None:
    alerts = re.findall(r"^ +- alert: (\w+)$", RULES.read_text("utf-8"), re.MULTILINE)
    assert len(alerts) > 10
    assert alerts == re.findall(r"^\| `(Quarantine\w+)` \| .{30,} \|$", OPERATE, re.MULTILINE)


def test_the_dashboard_can_be_imported() -> None:
    board = json.loads(DASHBOARD.read_text("utf-8"))
    assert board["uid"] == "rspamd-quarantine" and board["templating"]["list"][0]["type"] == "datasource"
    places = set[tuple[int, int]]()
    for panel in board["panels"]:
        grid = panel["gridPos"]
        cells = {
            (x, y) for x in range(grid["x"], grid["x"] + grid["w"]) for y in range(grid["y"], grid["y"] + grid["h"])
        }
        assert not places & cells, panel["title"]
        places |= cells


def test_the_version_is_a_metric(parts: Parts) -> None:
    store = "files" if parts.settings.store.place.folder else "postgresql"
    [name] = [name for name in metrics(parts) if name.startswith("build_info")]
    assert f'version="{__version__}"' in name and f'store="{store}"' in name
