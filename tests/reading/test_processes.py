"""The processes that read messages: a warm one that forks, and new ones without it."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from portal import reading
from portal.model.errors import Busy
from portal.reading import Preview, read

MAIL = b"To: alice@example.org\r\nSubject: Offer\r\n\r\nBuy now\r\n"


@pytest.fixture(autouse=True)
def own_warm_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A warm process for each test, which no other test uses."""
    warm = reading._Warm()
    warm._name += f"-{os.getpid()}-{time.monotonic_ns()}"
    monkeypatch.setattr(reading, "_warm", warm)
    yield
    if warm._lifeline is not None:
        warm._lifeline.close()
    if warm._process is not None:
        warm._process.kill()
        warm._process.wait()


def warm_process() -> Path:
    """Return the folder in /proc of the running warm process."""
    assert reading._warm._process is not None
    return Path(f"/proc/{reading._warm._process.pid}")


def children(process: Path) -> list[str]:
    return (process / "task" / process.name / "children").read_text().split()


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Slow:
    """A message of which the rest comes after `go_on`."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self._gate = threading.Event()

    def __iter__(self) -> Iterator[bytes]:
        yield MAIL
        self.begun.set()
        self._gate.wait(30)
        yield b"and more\r\n"

    def go_on(self) -> None:
        self._gate.set()


def test_each_message_has_a_process_of_its_own_that_ends_with_it() -> None:
    seen = read([MAIL], "alice@example.org")
    assert seen == Preview((("To", "alice@example.org"),), "Buy now", (), cut=False, failed=False)
    process = warm_process()
    slow = Slow()
    with ThreadPoolExecutor(1) as threads:
        reader = threads.submit(read, slow, "alice@example.org")
        assert slow.begun.wait(30)
        [child] = children(process)
        limits = Path(f"/proc/{child}/limits").read_text()
        assert "Max open files            0 " in limits
        assert "Max cpu time              2 " in limits
        slow.go_on()
        assert reader.result().text == "Buy now\nand more"
    wait_for(lambda: not children(process))
    assert warm_process() == process  # the same one for all messages


def test_the_warm_process_has_nothing_of_the_portal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUARANTINE_STORE__URL", "postgresql://user:password@localhost/x")
    # Nginx changes the environment below Python (UWSGI_SETENV). This variable ends every program at its start.
    os.putenv("LD_DEBUG", "help")
    listening, inherited = os.pipe()
    os.set_inheritable(inherited, True)
    try:
        assert "libs" in subprocess.run(["true"], capture_output=True, text=True, check=True).stdout
        assert read([MAIL], "alice@example.org").text == "Buy now"
        process = warm_process()
        assert (process / "environ").read_bytes() == b""
        opened = {os.readlink(each) for each in (process / "fd").iterdir()}
        assert not any(f"pipe:[{os.fstat(end).st_ino}]" in opened for end in (listening, inherited))
    finally:
        os.unsetenv("LD_DEBUG")
        os.close(listening)
        os.close(inherited)


def test_a_new_warm_process_replaces_one_that_died() -> None:
    read([MAIL], "alice@example.org")
    first = warm_process()
    os.kill(int(first.name), signal.SIGKILL)
    wait_for(lambda: "Z" in (first / "stat").read_text().rpartition(")")[2][:3])
    assert read([MAIL], "alice@example.org").text == "Buy now"
    assert warm_process() != first


def test_without_a_warm_process_a_new_one_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading._warm, "connect", lambda: None)
    assert read([MAIL], "alice@example.org").text == "Buy now"


@pytest.mark.slow
def test_the_warm_process_ends_some_seconds_after_the_last_process_of_the_portal() -> None:
    read([MAIL], "alice@example.org")
    process, lifeline = reading._warm._process, reading._warm._lifeline
    assert process is not None and lifeline is not None
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(12)
    lifeline.close()
    assert process.wait(30) == 0


@pytest.mark.slow
def test_at_most_two_messages_of_a_recipient_and_eight_in_all_are_read_at_once() -> None:
    with ThreadPoolExecutor(16) as threads:
        slow = [Slow() for _ in range(8)]
        people = [f"{number // 2}@example.org" for number in range(8)]
        reading_now = [threads.submit(read, each, person) for each, person in zip(slow, people, strict=True)]
        try:
            assert all(each.begun.wait(30) for each in slow)
            # A third one of the same recipient, and a ninth one.
            refused = [threads.submit(read, [MAIL], person) for person in (people[0], "another@example.org")]
            for answer in refused:
                with pytest.raises(Busy):
                    answer.result()
            waiting = threads.submit(read, [MAIL], people[0])
            slow[0].go_on()
            assert waiting.result().text == "Buy now"
        finally:
            for each in slow:
                each.go_on()
        assert all(each.result().text == "Buy now\nand more" for each in reading_now)


@pytest.mark.slow
def test_a_message_that_needs_too_long_is_given_up_and_its_header_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_SECONDS", 1.0)
    slow = Slow()
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(read, slow, "alice@example.org")
        assert slow.begun.wait(30)
        time.sleep(1.5)
        [child] = children(warm_process())
        os.kill(int(child), signal.SIGSTOP)
        slow.go_on()
        seen = answer.result()
    assert seen.failed and seen.cut
    assert seen.text.splitlines() == ["To: alice@example.org", "Subject: Offer"]
    process = warm_process()
    wait_for(lambda: not children(process))  # it is killed
    assert read([MAIL], "alice@example.org").text == "Buy now"
