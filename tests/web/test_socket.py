"""The socket between Nginx and the portal, on the real uWSGI with the shipped uwsgi.ini: its path and mode, what a
client of the uwsgi protocol cannot do, and what ``check`` reports."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import socket
import stat
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from portal.cli import checks, rspamd_checks
from portal.cli.finding import Finding
from portal.settings import load_from
from portal.stores import open_store
from tests.paths import ROOT
from tests.ports import free_port
from tests.uwsgi_client import HEALTH, exchange, packet
from tests.web.conftest import Start


def test_without_systemd_the_socket_is_for_owner_and_group_in_a_folder_made_for_it(start: Start) -> None:
    folder = start() / "var"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o750
    assert stat.S_IMODE((folder / "quarantine.sock").stat().st_mode) == 0o660
    assert list(folder.iterdir()) == [folder / "quarantine.sock"]  # the store and its files are elsewhere
    assert exchange(str(folder / "quarantine.sock"), packet(HEALTH)).startswith(b"HTTP/1.1 200 ")


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
        answer = exchange(f"{home}/socket", packet(HEALTH | variables | {"UWSGI_APPID": f"other{number}"}))
        assert answer.startswith(b"HTTP/1.1 400 "), (variables, answer)
        assert not (home / "ran").exists(), variables
    assert exchange(f"{home}/socket", packet(HEALTH)).startswith(b"HTTP/1.1 200 ")


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
    answer = exchange(f"{home}/socket", packet(post | {"UWSGI_POSTFILE": str(keys)}))
    assert answer.startswith(b"HTTP/1.1 400 "), answer
    store = open_store(f"files:{home}/store")
    assert store.messages.ids(None, 10) == []
    store.close()
    assert b'"held"' in exchange(f"{home}/socket", packet(post, b"x" * keys.stat().st_size))


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGHUP])
def test_a_worker_records_what_it_counted_when_it_ends(start: Start, sent: signal.Signals) -> None:
    home = start("--pidfile", "pid", QUARANTINE_SOCKET="socket")
    post = HEALTH | {
        "REQUEST_METHOD": "POST",
        "PATH_INFO": "/quarantine/",
        "CONTENT_TYPE": "message/rfc822",
        "CONTENT_LENGTH": "1",
        "HTTP_X_RSPAMD_RCPT": '["alice@example.org"]',
    }
    assert b'"held"' in exchange(f"{home}/socket", packet(post, b"x"))
    # The answer is there a moment before uWSGI has ended the request, and a worker that is busy runs no exit hook.
    time.sleep(0.5)
    os.kill(int((home / "pid").read_text()), sent)  # the counters are written every ten seconds
    store, until = open_store(f"files:{home}/store"), time.monotonic() + 60
    while not (counted := {name for name in store.notes.counters() if name.startswith("seconds.post.")}):
        assert time.monotonic() < until, "they are lost"
        time.sleep(0.1)
    assert len(counted) == 2
    store.close()


@pytest.mark.slow
def test_a_stop_by_systemd_answers_the_requests_that_run(start: Start) -> None:
    home = start("--pidfile", "pid", "--socket-timeout", "30", QUARANTINE_SOCKET="socket")
    post = HEALTH | {
        "REQUEST_METHOD": "POST",
        "PATH_INFO": "/quarantine/",
        "CONTENT_TYPE": "message/rfc822",
        "CONTENT_LENGTH": "4",
        "HTTP_X_RSPAMD_RCPT": '["alice@example.org"]',
    }
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(30)
        connection.connect(f"{home}/socket")
        connection.sendall(packet(post, b"ha"))
        time.sleep(1)  # a worker reads it
        (sent,) = re.findall(
            "^KillSignal=(.*)$", (ROOT / "deploy/systemd/quarantine.service").read_text(), re.MULTILINE
        )
        os.kill(int((home / "pid").read_text()), signal.Signals[sent])
        time.sleep(1)
        connection.sendall(b"lf")
        assert b'"held"' in b"".join(iter(lambda: connection.recv(1 << 16), b""))
    until = time.monotonic() + 60
    while (home / "pid").exists():  # uWSGI removes it
        assert time.monotonic() < until, "it did not end"
        time.sleep(0.1)


@pytest.mark.slow
def test_the_process_that_reads_messages_has_no_socket_of_uwsgi_and_ends_with_the_service(
    start: Start, tmp_path: Path
) -> None:
    # A name of its own: other tests use the same process at the same time.
    (tmp_path / "sitecustomize.py").write_text("from portal import reading\nreading._warm._name += '-uwsgi'\n")
    # The whole path, since /proc/net/unix below lists the sockets of other tests too, and names as they were bound.
    home = start(QUARANTINE_SOCKET=f"{tmp_path}/socket", QUARANTINE_SITE__NAME="a setting")
    post = HEALTH | {
        "REQUEST_METHOD": "POST",
        "PATH_INFO": "/quarantine/",
        "CONTENT_TYPE": "message/rfc822",
        "CONTENT_LENGTH": "25",
        "HTTP_X_RSPAMD_RCPT": '["alice@example.org"]',
    }
    assert b'"held"' in exchange(f"{home}/socket", packet(post, b"Subject: Offer\r\n\r\nBuy now"))
    store = open_store(f"files:{home}/store")
    [id] = store.messages.ids(None, 10)
    store.sign_ins.start_session(hashlib.sha256(b"session").digest(), "alice@example.org", datetime.now(UTC))
    store.close()
    page = HEALTH | {"PATH_INFO": f"/quarantine/messages/{id}/", "HTTP_COOKIE": "__Host-quarantine-session=session"}
    assert b"Buy now" in exchange(f"{home}/socket", packet(page))
    [reader] = readers("-uwsgi")
    assert b"a setting" not in (reader / "environ").read_bytes()
    inodes = {os.readlink(each) for each in (reader / "fd").iterdir()}
    [listening] = [
        line for line in Path("/proc/net/unix").read_text().splitlines() if line.endswith(f" {tmp_path}/socket")
    ]
    assert f"socket:[{listening.split()[6]}]" not in inodes
    worker = (reader / "stat").read_text().rpartition(")")[2].split()[1]
    os.kill(int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1]), signal.SIGTERM)
    deadline = time.monotonic() + 60
    while reader.exists() and "Z" not in (reader / "stat").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def readers(name_end: str) -> list[Path]:
    """Return the folders in /proc of the processes that fork readers of messages, by the end of their names."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"{name_end}')".encode() in (process / "cmdline").read_bytes():
                found.append(process)
        except OSError:  # it has ended
            pass
    return found


# ---- quarantine check


@pytest.fixture
def findings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[Finding]]:
    """A function that returns the findings of ``check`` on the socket, with its own settings folder and no Nginx."""
    path = tmp_path / "etc" / "quarantine.toml"
    path.parent.mkdir()
    path.write_text(f'store.url = "files:{tmp_path}/store"\n')
    monkeypatch.setenv("QUARANTINE_CONFIG", str(path))
    monkeypatch.setattr(checks, "_NGINX_FOLDERS", (tmp_path / "nginx",))
    (tmp_path / "nginx").mkdir()
    return lambda: list(checks.uwsgi_socket(*load_from()[:2]))


def problems(findings: list[Finding]) -> str:
    return "\n".join(f"{finding.topic}: {finding.text}" for finding in findings if finding.ok is False)


def test_check_finds_a_running_tcp_socket_and_leaves_http_alone(
    start: Start, findings: Callable[[], list[Finding]]
) -> None:
    tcp, web = free_port(), free_port()
    start("--http-socket", f"127.0.0.1:{web}", QUARANTINE_SOCKET=f"127.0.0.1:{tcp}")
    output = problems(findings())
    assert f"uwsgi socket: uWSGI listens on 127.0.0.1:{tcp}: every process of this host can connect" in output
    assert str(web) not in output


def test_check_finds_a_running_tcp_socket_of_ipv6(start: Start, findings: Callable[[], list[Finding]]) -> None:
    port = free_port()
    start(QUARANTINE_SOCKET=f"[::1]:{port}")
    assert f"uWSGI listens on ::1:{port}: " in problems(findings())


def test_check_finds_an_address_in_the_environment(
    findings: Callable[[], list[Finding]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUARANTINE_SOCKET", "127.0.0.1:1")
    assert "QUARANTINE_SOCKET is the TCP address 127.0.0.1:1: " in problems(findings())
    monkeypatch.setenv("container", "oci")
    assert "QUARANTINE_SOCKET" not in problems(findings())
    assert [(each.ok, "Run no others there" in each.text) for each in findings()] == [(None, True)]
    monkeypatch.setenv("QUARANTINE_SOCKET", "/run/quarantine/socket")
    assert "QUARANTINE_SOCKET" not in problems(findings())


def test_check_finds_the_earlier_uwsgi_ini_beside_the_settings(
    findings: Callable[[], list[Finding]], tmp_path: Path
) -> None:
    ini = tmp_path / "etc" / "uwsgi.ini"
    ini.write_text(
        "[uwsgi]\nif-env = QUARANTINE_SOCKET\nsocket = $(QUARANTINE_SOCKET)\nendif =\n"
        "if-not-env = QUARANTINE_SOCKET\nsocket = 127.0.0.1:9000\nendif =\n"
    )
    output = problems(findings())
    assert f"{ini} opens the TCP address 127.0.0.1:9000, unlike {ROOT / 'uwsgi.ini'}: " in output
    ini.write_bytes((ROOT / "uwsgi.ini").read_bytes())
    assert str(ini) not in problems(findings())


@pytest.mark.parametrize(
    "text",
    [
        "upstream quarantine {\n    server 127.0.0.1:9000;  # QUARANTINE_SOCKET in uwsgi.ini\n}\n",
        "upstream quarantine { keepalive 2; server 127.0.0.1:9000 max_fails=0; }",
        "location /quarantine/ { uwsgi_pass 127.0.0.1:9000; }",
    ],
)
def test_check_finds_nginx_still_at_the_earlier_address(
    findings: Callable[[], list[Finding]], tmp_path: Path, text: str
) -> None:
    (tmp_path / "nginx" / "quarantine.conf").write_text(text)
    output = problems(findings())
    assert "quarantine.conf passes requests to 127.0.0.1:9000: copy " in output
    assert "`server unix:/run/quarantine.sock;`, then run: nginx -t && systemctl reload nginx" in output


@pytest.mark.parametrize("status", [502, 504])
def test_check_says_that_nginx_does_not_reach_the_portal(
    findings: Callable[[], list[Finding]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    class Answer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_error(status)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as nginx:
        threading.Thread(target=nginx.handle_request).start()
        rule = {"url": f"http://127.0.0.1:{nginx.server_port}/", "backend": "http", "defer": True}
        (tmp_path / "rspamadm").write_text(f"#!/bin/sh\necho '{json.dumps({'rules': {'QUARANTINE': rule}})}'\n")
        (tmp_path / "rspamadm").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        finding = next(found for found in rspamd_checks.rspamd(load_from()[0]) if found.ok is False)
    assert f"answers {status}: Nginx does not reach the portal" in finding.text
    assert "`server unix:/run/quarantine.sock;`" in finding.text


def test_check_accepts_other_lines_of_nginx(findings: Callable[[], list[Finding]], tmp_path: Path) -> None:
    (tmp_path / "nginx" / "other.conf").write_text(
        "upstream php { server 127.0.0.1:9000; }\n# uwsgi_pass 127.0.0.1:9000;\n"
        "upstream quarantine {\n    server unix:/run/quarantine.sock;  # was: server 127.0.0.1:9000;\n}\n"
    )
    (tmp_path / "nginx" / "quarantine.conf").write_bytes((ROOT / "deploy/nginx/quarantine.conf").read_bytes())
    assert "nginx" not in problems(findings())
