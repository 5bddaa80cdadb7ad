"""The product as one process tree: ``uwsgi --ini uwsgi.ini`` with its workers and the digest process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.ports import free_port
from tests.system.mails import ALICE, SENDER, spam
from tests.system.services import BIN, ROOT, Portal, folder, http, postgres, process, wait_for
from tests.uwsgi_client import packet

pytestmark = pytest.mark.system


@pytest.fixture
def started(other_portal: Portal) -> Iterator[Portal]:
    """A separate portal for this test."""
    with other_portal.running():
        wait_for(lambda: "WSGI app 0" in other_portal.log.read_text())
        yield other_portal


def raw(where: int | Path, data: bytes) -> bytes:
    """Send bytes to a port or a unix socket, close the sending side and return the reply."""
    family, address = (socket.AF_INET, ("127.0.0.1", where)) if isinstance(where, int) else (socket.AF_UNIX, str(where))
    with socket.socket(family) as connection, suppress(OSError):
        connection.settimeout(10)
        connection.connect(address)
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        return connection.recv(1 << 16)
    return b""


def test_workers_survive_garbage(started: Portal) -> None:
    before = started.pids("uwsgi")
    cut_off = packet({"REQUEST_METHOD": "POST", "PATH_INFO": "/quarantine/", "CONTENT_LENGTH": "99999999"})
    for data in (
        os.urandom(4096),
        b"\0\xff\xff\0" + b"\xff" * 70_000,  # a uwsgi packet that declares more data than it has
        cut_off,
        b"\0" + (8).to_bytes(2, "little") + b"\0" + b"\xff\xff\xff\xff\0\0\0\0",
        b"GET / HTTP/1.1\r\n\r\n",
        b"",
    ):
        for _ in range(20):
            raw(started.uwsgi, data)
    for head in (
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nshort",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /\x00\xff HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nX-Rspamd-rcpt: " + b"\xff[" * 1000 + b"\r\nContent-Length: 0\r\n\r\n",
    ):
        raw(started.nginx.exporter, head)
    assert http(started.nginx.exporter_url + "healthz").status == 200
    assert started.pids("uwsgi") == before
    assert started.command("quarantine", "list", "--json") == "Nothing is held.\n"  # on standard error


def test_a_post_cut_off_on_the_way_is_not_held(started: Portal) -> None:
    mail = spam("cut", {})
    head = f'POST / HTTP/1.1\r\nHost: x\r\nX-Rspamd-rcpt: ["{ALICE}"]\r\nContent-Length: {len(mail) + 100}\r\n\r\n'
    raw(started.nginx.exporter, head.encode() + mail)
    variables = {
        "REQUEST_METHOD": "POST",
        "PATH_INFO": "/quarantine/",
        "REMOTE_ADDR": "127.0.0.1",
        "HTTP_X_RSPAMD_RCPT": f'["{ALICE}"]',
        "CONTENT_LENGTH": str(len(mail) + 100),
    }
    assert b"200 OK" not in raw(started.uwsgi, packet(variables, mail))
    assert started.command("quarantine", "list", "--json") == "Nothing is held.\n"  # on standard error


def test_a_stop_stops_everything(started: Portal) -> None:
    assert started.process is not None
    assert len(started.pids("uwsgi")) >= 3 and started.pids("quarantine-digest")
    started.process.send_signal(signal.SIGTERM)
    started.process.wait(90)  # uWSGI waits up to a minute for a worker that was still loading (docs/reliability.md)
    wait_for(lambda: not started.pids("uwsgi") and not started.pids("quarantine-digest"), 10)


def test_a_killed_digest_process_is_restarted_and_health_reports_it(started: Portal) -> None:
    (first,) = wait_for(lambda: started.pids("quarantine-digest"))
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: started.pids("quarantine-digest") not in ([], [first]))
    assert b'"digest_heartbeat_age_seconds": ' in http(started.nginx.exporter_url + "healthz").body


def test_a_killed_worker_is_restarted_and_held_mail_stays(started: Portal) -> None:
    headers = {"Content-Type": "message/rfc822", "X-Rspamd-rcpt": f'["{ALICE}"]', "X-Rspamd-from": SENDER}
    assert http(started.nginx.exporter_url, spam("kept", {}), headers).status == 200
    assert started.process is not None
    workers = [pid for pid in started.pids("uwsgi") if pid != started.process.pid]
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: http(started.nginx.exporter_url + "healthz").status == 200)
    assert started.command("quarantine", "list", "--json").count("kept") == 1
    assert b'"known"' in http(started.nginx.exporter_url, spam("kept", {}), headers).body


@pytest.mark.parametrize("store", ["files", "postgresql"])
def test_workers_share_the_modules_of_the_master_and_nothing_of_the_store(store: str) -> None:
    with folder() as home, ExitStack() as stack:
        url = f"files://{home}/store" if store == "files" else stack.enter_context(postgres(home / "postgresql"))
        portal = stack.enter_context(Portal(home / "portal", url, {}).running())
        wait_for(lambda: portal.log.read_text().count("WSGI app 0") == 4)
        assert portal.process is not None
        master = portal.process.pid
        workers = [pid for pid in portal.pids("uwsgi") if pid != master]
        assert len(workers) == 4
        mapped = Path(f"/proc/{master}/maps").read_text()
        assert "_pydantic_core" in mapped and ("psycopg" in mapped) == (store == "postgresql")
        assert len(list(Path(f"/proc/{master}/task").iterdir())) == 1  # the pool of connections has threads
        assert not any(str(home / "store") in name for name in open_files(master))
        own = [open_files(pid) - open_files(master) for pid in workers]
        if store == "files":
            assert all(f"{home}/store/in-use" in names for names in own)
        else:  # a connection is a socket
            sockets = [{name for name in names if name.startswith("socket:")} for names in own]
            assert all(sockets) and len(set.union(*sockets)) == sum(map(len, sockets))


def open_files(pid: int) -> set[str]:
    """Return what the open files of a process are: paths, or kinds with numbers."""
    found = set()
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            found.add(str(path.readlink()))
    return found


def test_each_mail_leaves_a_line_in_the_log_without_its_subject(started: Portal) -> None:
    headers = {"Content-Type": "message/rfc822", "X-Rspamd-rcpt": f'["{ALICE}"]', "X-Rspamd-from": SENDER}
    answer = http(started.nginx.exporter_url, spam("secretword", {}), headers)
    id = answer.body.decode().partition('"id": "')[2][:36]
    wait_for(lambda: f"held id={id}" in started.log.read_text(), 5, details=started.log.read_text)
    assert "secretword" not in started.log.read_text()


def test_neither_a_client_that_goes_away_nor_a_hang_puts_a_token_into_the_log(tmp_path: Path) -> None:
    # Use an application that can hang; the rest is the shipped file.
    (tmp_path / "stub.py").write_text(
        "import time\n"
        "def application(environ, start_response):\n"
        "    time.sleep(1 if 'gone' in environ['PATH_INFO'] else 60)\n"
        "    start_response('200 OK', [])\n"
        "    return [b'x' * 3_000_000]\n"
    )
    (tmp_path / "quarantine-digest").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "quarantine-digest").chmod(0o755)
    shipped = (ROOT / "uwsgi.ini").read_text()
    assert "\nmodule = portal.wsgi:application\n" in shipped and "\nharakiri = 60\n" in shipped
    (tmp_path / "uwsgi.ini").write_text(
        shipped.replace("portal.wsgi:application", "stub:application").replace("harakiri = 60", "harakiri = 3")
    )
    port, log = free_port(), tmp_path / "log"
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "QUARANTINE_SOCKET": "socket"}
    command = [str(BIN / "uwsgi"), "--ini", "uwsgi.ini", "--http-socket", f"127.0.0.1:{port}"]
    with process(command, log, env=environment | {"PYTHONPATH": str(tmp_path)}, cwd=tmp_path):
        wait_for(lambda: "WSGI app 0" in log.read_text())
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(b"GET /link/secrettoken-gone/ HTTP/1.0\r\n\r\n")
        time.sleep(2)  # in this time it writes to the closed connection
        assert raw(port, b"GET /link/secrettoken-hanging/ HTTP/1.0\r\n\r\n") == b""
        wait_for(lambda: "WSGI app 0" in log.read_text().partition("Respawned")[2])
    assert "secrettoken" not in log.read_text()


def test_bad_settings_stop_it_and_are_named(other_portal: Portal) -> None:
    other_portal.environment["QUARANTINE_DIGEST__AT"] = "25:00"
    command = [str(other_portal.bin / "uwsgi"), "--ini", str(other_portal.ini)]
    done = subprocess.run(
        command, env=other_portal.environment, cwd=other_portal.home, capture_output=True, text=True, timeout=60
    )
    assert done.returncode != 0
    assert "QUARANTINE_DIGEST__AT" in done.stdout + done.stderr


def test_an_unknown_option_in_the_ini_stops_it(other_portal: Portal, tmp_path: Path) -> None:
    ini = tmp_path / "uwsgi.ini"
    ini.write_text((ROOT / "uwsgi.ini").read_text() + "no-such-option = 1\n")
    started = time.monotonic()
    done = subprocess.run(
        [str(other_portal.bin / "uwsgi"), "--ini", str(ini)],
        env=other_portal.environment,
        capture_output=True,
        timeout=60,
    )
    assert done.returncode != 0 and time.monotonic() - started < 60
    assert b"no-such-option" in done.stdout + done.stderr
