"""The alerts and the metrics by Prometheus' own tool."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from portal.assemble import Parts
from tests.builders import ALICE, hold
from tests.paths import ROOT
from tests.web_client import Site

pytestmark = pytest.mark.system

FOLDER = ROOT / "deploy" / "prometheus"


def promtool(*arguments: str, text: str | None = None) -> str:
    done = subprocess.run(["promtool", *arguments], cwd=FOLDER, input=text, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_alerts_are_valid_and_pass_their_tests() -> None:
    assert "SUCCESS" in promtool("check", "rules", "quarantine.rules.yml")
    assert "SUCCESS" in promtool("test", "rules", "quarantine.rules.test.yml")


def test_every_alert_is_tested() -> None:
    rules, tests = (FOLDER / f"quarantine.rules{kind}.yml" for kind in ("", ".test"))
    names = [line.split()[-1] for line in rules.read_text("utf-8").splitlines() if "- alert:" in line]
    assert not [name for name in names if name not in tests.read_text("utf-8")]


def test_every_expression_of_the_dashboard_is_valid(tmp_path: Path) -> None:
    panels = json.loads((ROOT / "deploy/grafana/quarantine.json").read_text("utf-8"))["panels"]
    texts = [target["expr"] for panel in panels for target in panel.get("targets", [])]
    assert len(texts) > 30
    texts = [text.replace("$instance", ".*").replace("$__rate_interval", "5m") for text in texts]
    rules = [{"record": f"dashboard:number_{number}", "expr": text} for number, text in enumerate(texts)]
    (tmp_path / "rules.yml").write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    assert f"SUCCESS: {len(texts)} rules found" in promtool("check", "rules", str(tmp_path / "rules.yml"))


def test_durations_on_the_dashboard_are_of_all_outcomes_of_a_host() -> None:
    # The rates of one outcome of one host would be a histogram of neither.
    text = (ROOT / "deploy/grafana/quarantine.json").read_text("utf-8")
    found = re.findall(r"(max by .*?)\(rate\(quarantine_(?:post|release|digest)_seconds_bucket", text)
    assert len(found) == 7 and set(found) == {"max by (le) (sum by (le, instance) "}


def test_metrics_have_the_form_that_prometheus_expects(parts: Parts) -> None:
    hold(parts.store, recipients=[ALICE])
    browser = Site(parts).browser()
    browser.peer = "127.0.0.1"
    browser.get("/sign-in")
    assert promtool("check", "metrics", text=browser.get("/metrics").text) == ""
