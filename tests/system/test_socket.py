"""The socket between Nginx and the portal as in systemd's unit: permissions to connect, other permissions of Nginx's
user, the cost of silent connections, and mail with an Nginx file of an earlier version."""

from __future__ import annotations

import pwd
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from portal.stores import open_store
from portal.web.pages import sha256
from tests.ports import free_port
from tests.system.conftest import Mx
from tests.system.mails import ALICE, REJECTED, SENDER, spam
from tests.system.services import (
    DEPLOY,
    ROOT,
    Nginx,
    Portal,
    folder,
    http,
    listening,
    postgres,
    send,
    unit,
    wait_for,
)
from tests.system.test_mail_path import held
from tests.uwsgi_client import HEALTH, exchange, packet

pytestmark = pytest.mark.system

NGINX = unit("quarantine.socket")["SocketUser"]
SERVICE = "games"  # a user of every Debian, other than root, Nginx's user and "nobody"
# The interpreter of the tests may be in root's home, so the service may read all files here. It cannot write more
# than its user, who owns the files that it makes.
AS_SERVICE = [
    "setpriv", f"--reuid={SERVICE}", f"--regid={SERVICE}", "--clear-groups",
    "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search",
]  # fmt: skip


def command_as(user: str, code: str, *arguments: str) -> list[str]:
    """Return a Python command that changes to this user before it runs ``code``. Root must start the interpreter."""
    become = (
        "import os, pwd, socket, sys\n"
        "from tests.uwsgi_client import HEALTH, exchange, packet\n"
        f"user = pwd.getpwnam({user!r})\n"
        "os.initgroups(user.pw_name, user.pw_gid)\n"
        "os.setgid(user.pw_gid)\n"
        "os.setuid(user.pw_uid)\n"
    )
    return [sys.executable, "-c", become + code, *arguments]


def output_as(user: str, code: str, *arguments: str) -> str:
    """Run such a program and return its output, or the exception that ended it."""
    done = subprocess.run(command_as(user, code, *arguments), cwd=ROOT, capture_output=True, text=True, timeout=60)
    return (done.stdout or done.stderr).strip().rpartition("\n")[2]


@contextmanager
def silent(path: Path, connections: int) -> Iterator[None]:
    """Open this number of connections as Nginx's user and write nothing to them."""
    code = (
        "connections = [socket.socket(socket.AF_UNIX) for _ in range(int(sys.argv[2]))]\n"
        "for connection in connections:\n"
        "    connection.connect(sys.argv[1])\n"
        "print('open', flush=True)\n"
        "sys.stdin.read()\n"
    )
    command = command_as(NGINX, code, str(path), str(connections))
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "open\n"
        yield
        holder.communicate()


@pytest.fixture
def service() -> Iterator[Portal]:
    """A portal with its own user and its settings in a file, as in docs/install.md."""
    with folder() as home:
        made = Portal(home, "", {})
        made.run_as = AS_SERVICE
        settings, state = home / "etc" / "quarantine.toml", home / "state"
        settings.parent.mkdir(mode=0o750)
        settings.write_text(f'store.url = "files://{state}/store"\nlinks.keys_file = "{state}/links.keys"\n')
        settings.chmod(0o640)
        state.mkdir(mode=0o700)
        for path in (settings.parent, settings):
            shutil.chown(path, "root", SERVICE)
        shutil.chown(state, SERVICE, SERVICE)
        del made.environment["QUARANTINE_STORE__URL"]
        made.environment["QUARANTINE_CONFIG"] = str(settings)
        with made.running():
            wait_for(lambda: made.log.read_text().count("WSGI app 0") == 4, details=made.log.read_text)
            yield made


def test_only_nginxs_user_can_connect_and_it_reads_none_of_the_services_files(service: Portal) -> None:
    uid = pwd.getpwnam(SERVICE).pw_uid
    assert {Path(f"/proc/{pid}").stat().st_uid for pid in service.pids("uwsgi")} == {uid}

    healthy = "print(exchange(sys.argv[1], packet(HEALTH))[:15].decode())"
    assert output_as(NGINX, healthy, str(service.uwsgi)) == "HTTP/1.1 200 OK"
    for user in ("nobody", "daemon"):
        assert output_as(user, healthy, str(service.uwsgi)) == "PermissionError: [Errno 13] Permission denied"

    state = service.home / "state"
    for path in (state / "store" / "quarantine.sqlite3", state / "links.keys", service.home / "etc/quarantine.toml"):
        assert path.stat().st_size
        assert output_as(NGINX, "open(sys.argv[1])", str(path)).startswith("PermissionError: "), path


def test_a_post_after_200_silent_connections_waits_at_most_5_seconds(service: Portal) -> None:
    workers = service.pids("uwsgi")
    headers = {"Content-Type": "message/rfc822", "X-Rspamd-rcpt": f'["{ALICE}"]', "X-Rspamd-from": SENDER}
    with silent(service.uwsgi, 200):
        began = time.monotonic()
        assert http(service.nginx.exporter_url, spam("behind", {}), headers).status == 200
        assert time.monotonic() - began < 5
    assert http(service.nginx.exporter_url, spam("after", {}), headers).status == 200
    assert service.pids("uwsgi") == workers
    listed = service.command("quarantine", "list", "--json")
    assert listed.count('"behind ') == 1 and listed.count('"after ') == 1


def test_requests_wait_while_the_service_restarts(other_portal: Portal) -> None:
    other_portal.command("quarantine", "init")
    path, answers = str(other_portal.uwsgi), []
    with listening(other_portal.uwsgi) as listener:
        with other_portal.serving(listener):
            assert b" 200 OK" in exchange(path, packet(HEALTH))
        assert other_portal.uwsgi.is_socket()  # uWSGI removes only sockets that it created
        waiting = threading.Thread(target=lambda: answers.append(exchange(path, packet(HEALTH))))
        waiting.start()
        time.sleep(1)
        assert not answers
        with other_portal.serving(listener):
            waiting.join(60)
    assert b" 200 OK" in answers[0]


def test_behind_an_earlier_nginx_file_mail_is_deferred_and_comes_in_once_that_is_replaced(
    mx: Mx, portal: Portal, needle: str
) -> None:
    mail = spam(needle, REJECTED)
    with folder() as home:
        # The earlier file names 127.0.0.1:9000, which is not served any more.
        nginx = Nginx(home / "nginx", f"127.0.0.1:{free_port()}")
        with nginx.running():
            mx.switch.target = nginx.exporter
            try:
                for port in (mx.postfix.smtp, mx.postfix.smtp_discarding):
                    assert send(port, SENDER, [ALICE], mail) == (451, "4.7.1 Try again later")
                assert mx.postfix.queue() == "" and held(portal, needle) == []
                nginx.upstream = portal.nginx.upstream
                subprocess.run([*nginx.write(), "-s", "reload"], check=True, capture_output=True)
                wait_for(lambda: http(nginx.exporter_url + "healthz").status == 200)
                # The worker with the earlier file may still answer for a moment; senders retry.
                wait_for(lambda: send(mx.postfix.smtp, SENDER, [ALICE], mail)[0] == 554)
            finally:
                mx.switch.target = portal.nginx.exporter
    assert [delivery["recipient"] for delivery in held(portal, needle)] == [ALICE]


def test_systemd_accepts_the_units_and_the_service_is_as_hardened_as_before(tmp_path: Path) -> None:
    for path in (DEPLOY / "systemd").iterdir():
        text = path.read_text().replace("/opt/rspamd-quarantine/bin/uwsgi", "/bin/true")
        (tmp_path / path.name).write_text(text)
    units = [tmp_path / "quarantine.service", tmp_path / "quarantine.socket"]

    def exposure_is_at_most(tenths: int) -> None:
        done = subprocess.run(["systemd-analyze", "verify", "--man=no", *units], capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        judge = ["systemd-analyze", "security", "--offline=true", f"--threshold={tenths}", str(units[0])]
        done = subprocess.run(judge, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout

    exposure_is_at_most(11)  # 1.1 of 10
    text = units[0].read_text()
    assert "ProcSubset=" not in re.sub(r"#.*", "", text)  # without /proc/sys the file store does not open
    with units[0].open("a") as service:
        service.write((tmp_path / "network.conf").read_text())
    exposure_is_at_most(9)


def test_processes_of_the_service_cannot_read_the_memory_of_others() -> None:
    def calls(name: str) -> set[str]:
        if not name.startswith("@"):
            return {name}
        listed = subprocess.run(["systemd-analyze", "syscall-filter", name], capture_output=True, text=True, check=True)
        return set().union(
            *(calls(word) for line in listed.stdout.splitlines()[1:] for word in re.findall(r"^ +([^#\s]+)$", line))
        )

    allowed: set[str] = set()
    for line in (DEPLOY / "systemd" / "quarantine.service").read_text().splitlines():
        if line.startswith("SystemCallFilter="):
            words = line.partition("=")[2]
            named = set().union(*map(calls, words.lstrip("~").split()))
            allowed = allowed - named if words.startswith("~") else allowed | named
    assert {"read", "prlimit64"} <= allowed
    assert not allowed & {"ptrace", "process_vm_readv", "process_vm_writev", "pidfd_getfd"}


# Runs a command with the restrictions of the unit that a program can fail on: no memory that is writable and executable
# (PR_SET_MDWE, Linux 6.3), and a user namespace with two users, whose processes keep the socket of the host.
RESTRICTED = [
    sys.executable,
    "-c",
    "import ctypes, os, sys\n"
    "def check(result):\n"
    "    if result != 0:\n"
    "        sys.exit(os.strerror(ctypes.get_errno()))\n"
    "libc = ctypes.CDLL(None, use_errno=True)\n"
    "check(libc.prctl(65, 1, 0, 0, 0))\n"
    "CLONE_NEWUSER, CLONE_NEWNS, CLONE_NEWIPC = 0x10000000, 0x20000, 0x08000000\n"
    "ready, go = os.pipe(), os.pipe()\n"
    "parent = os.getpid()\n"
    "helper = os.fork()\n"
    "if helper == 0:\n"
    "    os.read(ready[0], 1)\n"
    "    for kind in ('uid', 'gid'):\n"
    "        with open(f'/proc/{parent}/{kind}_map', 'w') as table:\n"
    "            table.write('0 0 1\\n65534 65534 1\\n')\n"
    "    os._exit(0)\n"
    "check(libc.unshare(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWIPC))\n"
    "os.write(ready[1], b'x')\n"
    "os.waitpid(helper, 0)\n"
    "os.execvp(sys.argv[1], sys.argv[1:])\n",
]


@pytest.mark.parametrize("kind", ["files", "postgresql"])
def test_the_product_works_without_executable_memory_and_in_a_user_namespace(kind: str, needle: str) -> None:
    with folder() as home, ExitStack() as stack:
        files = kind == "files"
        store_url = f"files://{home}/store" if files else stack.enter_context(postgres(home / "postgresql"))
        portal = Portal(home, store_url, {})
        portal.run_as = RESTRICTED
        with portal.running():
            worker = portal.pids("uwsgi")[0]
            assert Path(f"/proc/{worker}/ns/user").readlink() != Path("/proc/self/ns/user").readlink()
            headers = {"Content-Type": "message/rfc822", "X-Rspamd-rcpt": f'["{ALICE}"]', "X-Rspamd-from": SENDER}
            assert http(portal.nginx.exporter_url, spam(needle, {}), headers).status == 200
            id = held(portal, needle)[0]["id"]
            with closing(open_store(store_url)) as store:
                store.sign_ins.start_session(sha256("secret"), ALICE, datetime.now(UTC))
            cookie = {"Cookie": "__Host-quarantine-session=secret"}
            page = http(f"{portal.nginx.public_url}/messages/{id}/", headers=cookie)
            assert page.status == 200
            assert b"Buy!" in page.body  # a child process with its own restrictions read the message
