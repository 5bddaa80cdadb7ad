"""Log lines are those of `logging` with the same format."""

from __future__ import annotations

import logging
import sys
import time

import pytest

from portal.model.log_lines import FORMAT, LineFormatter


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
