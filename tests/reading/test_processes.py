"""The processes that read messages: a warm one that forks, and new ones without it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from itertools import chain, repeat
from pathlib import Path

import pytest

from portal import reading
from portal.model.attachments import Danger, Kind
from portal.model.errors import Busy
from portal.reading import Attachment, Preview, read

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
    wait_for(lambda: not children(process))
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


@pytest.fixture
def blocked_signals() -> Iterator[None]:
    """All signals blocked, as in the threads of uWSGI. Processes inherit that."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


@pytest.mark.usefixtures("blocked_signals")
def test_with_blocked_signals_readers_are_replaced_at_once_and_the_warm_process_can_be_ended() -> None:
    with ThreadPoolExecutor(12) as threads:
        answers = [threads.submit(read, [MAIL], "alice@example.org") for _ in range(12)]
        assert [answer.result().text for answer in answers] == ["Buy now"] * 12  # none of them is Busy
    assert reading._warm._process is not None
    reading._warm._process.terminate()
    assert reading._warm._process.wait(30) == -signal.SIGTERM


@pytest.mark.slow
@pytest.mark.usefixtures("blocked_signals")
def test_with_blocked_signals_a_new_process_can_be_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading._warm, "connect", lambda: None)
    slow = Slow()
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(read, slow, "alice@example.org")
        assert slow.begun.wait(30)
        # Other tests of this process may have left children.
        tasks = [task / "children" for task in Path("/proc/self/task").iterdir()]
        started = {each for task in tasks if task.exists() for each in task.read_text().split()}
        [child] = [each for each in started if b"reading.child" in Path(f"/proc/{each}/cmdline").read_bytes()]
        os.kill(int(child), signal.SIGTERM)
        wait_for(lambda: "Z" in Path(f"/proc/{child}/stat").read_text().rpartition(")")[2][:3])
        slow.go_on()
        assert answer.result().failed


def listener(backlog: int) -> socket.socket:
    """Return a listening socket at the name of the warm process."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.bind("\0" + reading._warm._name)
    listening.listen(backlog)
    listening.setblocking(False)
    return listening


def test_another_process_that_never_accepts_does_not_stop_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_START_SECONDS", 0.2)
    with ThreadPoolExecutor(1) as threads, ExitStack() as stack:
        listening = stack.enter_context(listener(0))
        with pytest.raises(BlockingIOError):
            while True:
                connection = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
                connection.setblocking(False)
                connection.connect(listening.getsockname())
        assert threads.submit(read, [MAIL], "alice@example.org").result(30).text == "Buy now"


def test_a_warm_process_that_does_not_answer_is_asked_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_ANSWER_SECONDS", 0.1)
    with listener(64) as listening, ExitStack() as stack:
        assert read([MAIL], "alice@example.org").text == "Buy now"
        with pytest.raises(BlockingIOError):
            while True:
                stack.enter_context(listening.accept()[0])
        assert read([MAIL], "alice@example.org").text == "Buy now"
        with pytest.raises(BlockingIOError):
            listening.accept()
        reading._warm._not_before = 0.0
        assert read([MAIL], "alice@example.org").text == "Buy now"
        stack.enter_context(listening.accept()[0])


def test_a_process_that_lost_the_race_to_start_does_not_stay_a_zombie() -> None:
    read([MAIL], "alice@example.org")
    warm = reading._warm._process
    assert warm is not None
    loser = reading._start(f"from portal.reading.warm import main; main({reading._warm._name!r})", subprocess.DEVNULL)
    reading._warm._process = loser
    try:
        wait_for(lambda: "Z" in Path(f"/proc/{loser.pid}/stat").read_text().rpartition(")")[2][:3])
        read([MAIL], "alice@example.org")
        assert not Path(f"/proc/{loser.pid}").exists()
    finally:
        reading._warm._process = warm


def test_a_message_that_is_read_only_in_part_is_answered_while_the_rest_is_sent() -> None:
    # More parts than are read. The answer does not fit into the buffer of the connection, and neither does the rest.
    mail = b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\nBuy now " + b"x y " * 65_000 + b"\r\n"
    mail += b"--b\r\n\r\nx\r\n" * 1_001 + b"y" * 1_000_000
    seen = read([mail[at : at + (1 << 16)] for at in range(0, len(mail), 1 << 16)], "alice@example.org")
    assert seen.text.startswith("Buy now") and seen.cut and not seen.failed


GOOD = {"headers": [["To", "alice"]], "text": "Buy now", "cut": False, "has_html": False}
GOOD["attachments"] = [["name", 1, "text", ["runs"], 2]]


def answered(monkeypatch: pytest.MonkeyPatch, answers: Iterable[bytes]) -> Preview:
    """Return what `read` makes of the answers of a child that a message took over."""
    ours, theirs = socket.socketpair()
    monkeypatch.setattr(reading._warm, "connect", lambda: ours)

    def send() -> None:
        with theirs, suppress(OSError):
            for answer in chain([b"+"], answers):
                theirs.sendall(answer)
            theirs.shutdown(socket.SHUT_WR)
            while theirs.recv(4096):
                pass

    with ThreadPoolExecutor(1) as threads:
        threads.submit(send)
        return read([MAIL], "alice@example.org")


def test_a_good_answer_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    assert answered(monkeypatch, [json.dumps(GOOD).encode(), b"."]) == Preview(
        (("To", "alice"),), "Buy now", (Attachment("name", 1, Kind.TEXT, (Danger.RUNS,), 2),), cut=False, failed=False
    )


@pytest.mark.parametrize(
    "answer",
    [b"", b"{", b"[]", b"{}", b"\xff", b"[" * 1_000_000, b'{"text":' * 100_000, b"[" * 9_000_000]
    + [
        json.dumps(GOOD | wrong).encode()
        for wrong in (
            {"headers": None},
            {"headers": ["Reply-To"]},
            {"headers": [["To", 1]]},
            {"text": ["Buy now"]},
            {"attachments": [["name", 1]]},
            {"attachments": [["name", "1", "text", [], 2]]},
            {"attachments": [[{}, 1, "text", [], 2]]},
            {"attachments": [["name", 1, "<b>", [], 2]]},
            {"attachments": [["name", 1, "text", ["<b>"], 2]]},
            {"attachments": [["name", 1, "text", [], "2"]]},
            {"cut": "no"},
            {"text": "x" * 20_000_000},
        )
    ],
    ids=lambda answer: repr(answer[:60]),
)
def test_a_malformed_answer_fails_and_the_header_is_shown(monkeypatch: pytest.MonkeyPatch, answer: bytes) -> None:
    seen = answered(monkeypatch, [answer, b"."])
    assert seen.failed and seen.text.splitlines() == ["To: alice@example.org", "Subject: Offer"]


def test_an_answer_that_a_limit_ended_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    assert answered(monkeypatch, [json.dumps(GOOD).encode()]).failed


def test_an_endless_answer_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    assert answered(monkeypatch, repeat(b" " * 4096)).failed


def test_an_answer_that_comes_octet_by_octet_fails_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_SECONDS", 0.5)

    def octets() -> Iterator[bytes]:
        until = time.monotonic() + 20
        while time.monotonic() < until:
            time.sleep(0.001)
            yield b" "
        yield json.dumps(GOOD).encode() + b"."

    assert answered(monkeypatch, octets()).failed


def test_many_attachments_with_long_names_are_listed() -> None:
    part = b'--b\r\nContent-Type: application/pdf; name="' + "é".encode() * 1_000 + b'"\r\n\r\nx\r\n'
    mail = b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\nBuy now\r\n" + part * 900
    seen = read([mail], "alice@example.org")
    assert seen.text == "Buy now" and len(seen.attachments) == 900
    assert seen.attachments[0].name == "é" * 199 + "…"


@pytest.mark.slow
def test_an_attachment_that_needs_too_long_is_listed_without_a_size() -> None:
    head = b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\nWORDS\r\n--b\r\n"
    fields = b"Content-Type: a/b; name=a\r\nContent-Transfer-Encoding: x-uuencode\r\n\r\n"
    seen = read([head, fields, *[b"M\r\n" * 100_000] * 80], "alice@example.org")
    assert seen == Preview((), "WORDS", (Attachment("a", None, Kind.UNKNOWN, (), 3),), cut=True, failed=False)


def test_a_program_that_read_a_message_ends_without_warnings() -> None:
    code = "from portal.reading import read; print(read([b'Subject: x\\r\\n\\r\\nBuy now'], 'alice@example.org').text)"
    done = subprocess.run([sys.executable, "-X", "dev", "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("Buy now\n", "")
