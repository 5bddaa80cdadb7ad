"""The socket between Nginx and the portal, on the real uWSGI with the shipped uwsgi.ini: where it is, and what a client
of the uwsgi protocol cannot do."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from portal.preview import preview
from portal.stores import open_store
from tests.uwsgi_client import HEALTH, ask, packet

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
Start = Callable[..., Path]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """``start(*options, NAME="value")``: the portal in a folder of its own, which is returned; stopped afterwards."""
    running: list[subprocess.Popen[bytes]] = []

    def run(*options: str, **environment: str) -> Path:
        with (tmp_path / "log").open("wb") as log:
            process = subprocess.Popen(
                [BIN / "uwsgi", "--ini", ROOT / "uwsgi.ini", "--processes", "1", *options],
                cwd=tmp_path,
                env={
                    "PATH": f"{BIN}:{os.environ['PATH']}",
                    "PYTHONPATH": f"{ROOT}:{tmp_path}",
                    "QUARANTINE_CONFIG": os.devnull,
                    "QUARANTINE_STORE__URL": f"files:{tmp_path}/store",
                    "QUARANTINE_LOCAL_DOMAINS": "example.org",
                    "QUARANTINE_MAIL__FROM_ADDRESS": "quarantine@example.org",
                    **environment,
                },
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        running.append(process)
        deadline = time.monotonic() + 60
        while "WSGI app 0" not in (said := (tmp_path / "log").read_text("utf-8", "replace")):
            assert process.poll() is None and time.monotonic() < deadline, said
            time.sleep(0.1)
        return tmp_path

    yield run
    for process in running:
        process.terminate()
        process.wait(90)


def test_without_systemd_the_socket_is_for_owner_and_group_in_a_folder_made_for_it(start: Start) -> None:
    folder = start() / "var"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o750
    assert stat.S_IMODE((folder / "quarantine.sock").stat().st_mode) == 0o660
    assert list(folder.iterdir()) == [folder / "quarantine.sock"]  # the store is elsewhere: none of its files beside
    assert ask(str(folder / "quarantine.sock"), packet(HEALTH)).startswith(b"HTTP/1.1 200 ")


def test_another_path_makes_no_folder(start: Start) -> None:
    home = start(QUARANTINE_SOCKET="here.sock")
    assert stat.S_IMODE((home / "here.sock").stat().st_mode) == 0o660
    assert not (home / "var").exists()


def test_a_client_cannot_have_code_loaded(start: Start) -> None:
    home = start(QUARANTINE_SOCKET="socket")
    (home / "evil.py").write_text(
        f"open({str(home / 'ran')!r}, 'w').close()\n"
        "def application(environ, start_response):\n"
        "    start_response('200 OK', [])\n"
        "    return [b'evil']\n"
    )
    for number, variables in enumerate(
        (
            {"UWSGI_FILE": str(home / "evil.py")},
            {"UWSGI_MODULE": "evil"},
            {"UWSGI_MODULE": "evil", "UWSGI_CALLABLE": "application"},
            {"UWSGI_SCRIPT": "evil:application"},
            {"UWSGI_SCRIPT": "evil:application", "UWSGI_CHDIR": str(home)},
        )
    ):
        answer = ask(f"{home}/socket", packet(HEALTH | variables | {"UWSGI_APPID": f"other{number}"}))
        assert answer.startswith(b"HTTP/1.1 400 "), (variables, answer)
        assert not (home / "ran").exists(), variables
    assert ask(f"{home}/socket", packet(HEALTH)).startswith(b"HTTP/1.1 200 ")


def test_a_client_cannot_have_one_of_our_files_held_as_a_message(start: Start) -> None:
    home = start(QUARANTINE_SOCKET="socket")
    keys = home / "store" / "links.keys"
    post = HEALTH | {
        "REQUEST_METHOD": "POST",
        "PATH_INFO": "/quarantine/",
        "CONTENT_TYPE": "message/rfc822",
        "CONTENT_LENGTH": str(keys.stat().st_size),
        "HTTP_X_RSPAMD_RCPT": '["alice@example.org"]',
    }
    answer = ask(f"{home}/socket", packet(post | {"UWSGI_POSTFILE": str(keys)}))
    assert answer.startswith(b"HTTP/1.1 400 "), answer
    store = open_store(f"files:{home}/store")
    assert store.message_ids(None, 10) == []
    store.close()
    assert b'"held"' in ask(f"{home}/socket", packet(post, b"x" * keys.stat().st_size))


def test_the_environment_of_a_worker_does_not_reach_the_program_that_reads_mail() -> None:
    # UWSGI_SETENV changes it below Python, as this does. With that variable every program ends before it begins.
    os.putenv("LD_DEBUG", "help")
    try:
        assert "libs" in subprocess.run(["true"], capture_output=True, text=True, check=True).stdout
        seen = preview([b"Subject: Offer\r\n\r\nBuy now\r\n"])
    finally:
        os.unsetenv("LD_DEBUG")
    assert not seen.failed and seen.text.strip() == "Buy now"
