"""docs/benchmarks.md contains the results of `make bench` and nothing else."""

from __future__ import annotations

import argparse
import ast
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from bench import fill, page, shortcuts
from bench.__main__ import MEASURES, PAGE, described
from bench.processor import Clock
from bench.rig import Row
from bench.turns import posts
from portal.digests.compose import compose
from portal.model.message import Filter, Reader, State, new_id
from portal.model.rights import ReleaseRight
from portal.stores import open_store
from portal.stores.records import Digest
from portal.stores.search import of_reader
from tests.builders import ALICE, SENDER
from tests.digests.test_compose import LINKS, NOW, RENDER, delivery
from tests.paths import ROOT

BENCH = ROOT / "bench"
FIRST = [Row("posts/s", "100", "200", 0.5, "≥ 0.8"), Row("size, MB", "3.0", "2.0 compressed", None, "–")]


def test_a_run_replaces_its_rows_and_leaves_the_others() -> None:
    first = page.measured(FIRST, "2026-11-26, `bench`: 2 cores")
    again = page.measured([Row("posts/s", "150", "210", 0.71, "≥ 0.8"), Row("new", "1", "1", 1.0, "–")], "2026-11-27")
    text = page.written(page.merged(first, again))
    rows = [line for line in text.splitlines() if line.startswith("| ")][2:]
    assert rows == [
        "| posts/s | 150 | 210 | 0.71 | ≥ 0.8 | – | 1 |",
        "| size, MB | 3.0 | 2.0 compressed | – | – | – | 2 |",
        "| new | 1 | 1 | 1.00 | – | – | 1 |",
    ]
    assert text.endswith("\n1. 2026-11-27\n2. 2026-11-26, `bench`: 2 cores\n")
    assert page.written(page.merged(page.read(text), again)) == text


def test_a_run_without_rows_is_not_listed() -> None:
    text = page.written(page.merged(page.measured(FIRST, "old"), page.measured(FIRST, "new")))
    assert "old" not in text
    assert text.endswith("\n1. new\n")


def test_the_page_is_as_the_program_writes_it() -> None:
    text = PAGE.read_text("utf-8")
    assert page.written(page.read(text)) == text


@pytest.mark.parametrize("damage", [("| 1 |\n", "|\n"), ("1. 2026", "7. 2026"), ("| --- |", "|  |")])
def test_a_row_without_a_run_is_an_error(damage: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match="docs/benchmarks.md"):
        page.read(PAGE.read_text("utf-8").replace(*damage, 1))


def test_the_fixed_texts_of_the_page_have_no_numbers() -> None:
    """Constants of the program are not measured."""
    tree = ast.parse((BENCH / "page.py").read_text("utf-8"))
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    assert any("# Benchmarks" in text for text in texts)
    assert not [text for text in texts if re.search(r"\d", text)]


def test_a_run_has_its_date_command_and_machine() -> None:
    run = described(argparse.Namespace(rounds=3, seconds=2.0, share=1.0, peers=None, only=[next(iter(MEASURES))]))
    assert re.match(r"\d{4}-\d\d-\d\d, `python -m bench --rounds 3 --seconds 2 ingest-files`: \d+ cores, load ", run)
    assert re.search(r"Python 3\.\d+\.\d+; bottle \d.*; PostgreSQL \d+", run)


def test_processor_time_is_that_of_a_process_with_its_descendants() -> None:
    waiting = subprocess.Popen(["sh", "-c", f"{sys.executable} -c 'while True: pass' & wait"], start_new_session=True)
    try:
        clock = Clock({"shell": waiting.pid})
        deadline = time.monotonic() + 60
        while clock.seconds()["shell"] < 0.2:  # the shell itself only waits
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert Clock({"shell": waiting.pid}).seconds()["shell"] < 0.2
    finally:
        os.killpg(waiting.pid, signal.SIGKILL)
        waiting.wait()


def test_searches_find_the_messages_of_a_filled_store(store_url: str, tmp_path: Path) -> None:
    days, people = fill.days_back(120, 3), 10
    url = store_url
    if store_url.startswith("files:"):
        url = f"files://{tmp_path}/filled"
        fill.files(tmp_path / "filled", days, people)
    else:
        fill.postgres(store_url, days, people)
    store = open_store(url)
    try:
        for words, found in {
            "offer": 12,
            "offer promo": 12,
            fill.rare_word(people, 120, 4): 1,
            fill.rare_word(people, 120, 5): 0,
            "absent": 0,
        }.items():
            wanted = of_reader(Reader(fill.person(4)), Filter(states=frozenset({State.HELD}), words=words))
            assert len(store.deliveries.search(wanted, 25).deliveries) == found, words
    finally:
        store.close()


def test_plain_code_in_place_of_a_shortcut_holds_the_same(store_url: str, tmp_path: Path) -> None:
    ways = shortcuts.POST | (shortcuts.FILES if store_url.startswith("files:") else shortcuts.POSTGRES)
    with posts(store_url, tmp_path) as post:
        for way in ways.values():
            post(1)
            with way():
                post(1)
    store = open_store(store_url)
    records = store.messages.records(store.messages.ids(None, 100)).values()
    store.close()
    assert len(records) == 2 * len(ways)
    assert len({replace(record.export(), message_id="", body_sha256=b"", dedup_key=b"") for record in records}) == 1


@pytest.mark.parametrize("name", shortcuts.DIGEST)
def test_plain_code_in_place_of_a_shortcut_composes_the_same(name: str) -> None:
    digest = Digest(new_id(NOW), ALICE, ALICE, NOW, tuple(delivery(number) for number in range(3)))

    def mail() -> bytes:
        made = compose(
            digest,
            links=LINKS,
            render=RENDER,
            sender=SENDER,
            zone=ZoneInfo("UTC"),
            max_rows=50,
            retention_days=30,
            right=lambda _: ReleaseRight.SELF,
            now=NOW,
        )
        text = made.as_bytes()  # which also makes the boundary if there is none
        return text.replace(str(made.get_boundary()).encode(), b"boundary")

    with shortcuts.DIGEST[name]():
        plain = mail()
    assert mail() == plain
