"""Log lines are those of `logging` with the same format."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator

import pytest

from portal.model.log_lines import FORMAT, REQUEST_ID, JsonFormatter, LineFormatter, begin_request


@pytest.fixture(autouse=True)
def no_request() -> Iterator[None]:
    """Reset the id, which stays until the thread answers another request."""
    token = REQUEST_ID.set("")
    yield
    REQUEST_ID.reset(token)


def record(created: float, message: str, *args: object, **more: object) -> logging.LogRecord:
    made = logging.makeLogRecord(
        {"name": "quarantine.ingest", "levelname": "INFO", "msg": message, "args": args, "created": created, **more}
    )
    made.msecs = (created - int(created)) * 1000
    return made


def failure() -> object:
    try:
        raise ValueError("no such thing")
    except ValueError:
        return sys.exc_info()


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "America/St_Johns"])
def test_lines_are_those_of_the_standard_formatter(zone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    plain, ours = logging.Formatter(FORMAT), LineFormatter()
    last_of_summer = 1792976399  # 25 October 2026, 00:59:59 UTC
    for created in (last_of_summer + 0.0, last_of_summer + 0.0019, last_of_summer + 0.9996, last_of_summer + 1.5, 0.25):
        for each in (
            record(created, "held id=%s size=%d", "x", 19000),
            record(created, "100 % of it"),
            record(created, "two\nlines"),
            record(created, "failed", exc_info=failure()),
            record(created, "failed", stack_info="Stack (most recent call last):"),
        ):
            assert ours.format(each) == plain.format(each)
    monkeypatch.undo()
    time.tzset()


def test_lines_of_a_request_have_its_id() -> None:
    begin_request("4f1d0a5e")
    assert LineFormatter().format(record(0.5, "held id=%s", "x")).endswith(": held id=x request=4f1d0a5e")
    first, *rest = LineFormatter().format(record(0.5, "failed", exc_info=failure())).splitlines()
    assert first.endswith(": failed request=4f1d0a5e")
    assert rest[-1] == "ValueError: no such thing"
    assert json.loads(JsonFormatter().format(record(0.5, "failed")))["request"] == "4f1d0a5e"


@pytest.mark.parametrize("proposed", ["", "short", "x" * 65, "4f1d0a5e\nheld id=x", "4f1d0a5e held", "4f1d0a5é" * 2])
def test_an_id_of_a_request_that_is_none_is_replaced(proposed: str) -> None:
    begin_request("9e107d9d372bb6826bd81d3542a419d6")
    assert REQUEST_ID.get() == "9e107d9d372bb6826bd81d3542a419d6"
    begin_request(proposed)
    assert len(REQUEST_ID.get()) == 32 and REQUEST_ID.get().isalnum() and REQUEST_ID.get() != proposed


def test_json_has_the_values_of_a_line_as_fields() -> None:
    made = JsonFormatter().format(record(0.25, "%s id=%s size=%d: 5%% level=%s two\nlines", "held", "x", 19000, "é"))
    assert json.loads(made) == {
        "time": "1970-01-01T00:00:00.250Z",
        "level": "info",
        "logger": "quarantine.ingest",
        "message": "held id=x size=19000: 5% level=é two\nlines",
        "id": "x",
        "size": "19000",
    }
    assert "\n" not in made
    failed = json.loads(JsonFormatter().format(record(0.25, "failed", exc_info=failure())))
    assert failed["error"].endswith("ValueError: no such thing")
    assert json.loads(JsonFormatter().format(record(0.25, "100 % of it")))["message"] == "100 % of it"
