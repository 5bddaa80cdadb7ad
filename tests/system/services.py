"""Real servers on loopback for the system tests: each with its own configuration, ports and files in one folder.

Nothing below /etc is changed. The shipped files are tested: the files of deploy/ are used unchanged, except for
addresses, paths and Debian's chroot.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import smtplib
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar
from urllib.parse import urlsplit

from tests.ports import free_port

ROOT = Path(__file__).resolve().parent.parent.parent
DEPLOY = ROOT / "deploy"
BIN = Path(sys.executable).parent
POSTGRES_BIN = Path("/usr/lib/postgresql/15/bin")
T = TypeVar("T")


def wait_for(what: Callable[[], T], seconds: float = 60, *, details: Callable[[], str] = str) -> T:
    """Call ``what`` until its result is true and return it. Connection errors of a starting server count as false."""
    deadline, error = time.monotonic() + seconds, None
    while time.monotonic() < deadline:
        try:
            if answer := what():
                return answer
        except (OSError, smtplib.SMTPException) as caught:
            error = caught
        time.sleep(0.1)
    raise AssertionError(f"not within {seconds} s: {error or ''} {details()}")


def connects(port: int) -> bool:
    """Return True if the port accepts connections. Raises OSError if not."""
    with socket.create_connection(("127.0.0.1", port), 2):
        return True


@contextmanager
def folder() -> Iterator[Path]:
    """A folder that servers running as other users can reach."""
    with tempfile.TemporaryDirectory(prefix="quarantine-system-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@contextmanager
def process(command: list[str], log: Path, stop: int = signal.SIGTERM, **how: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program until the block ends, with its output appended to ``log``."""
    with log.open("ab") as out:
        running = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, **how)
    try:
        yield running
    finally:
        if running.poll() is None:
            running.send_signal(stop)
        try:
            running.wait(90)  # uWSGI waits up to a minute for a worker that was still loading
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()
            raise


# ---- HTTP


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Any
    body: bytes


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


def http(
    url: str, body: bytes | None = None, headers: dict[str, str] | None = None, method: str | None = None
) -> Reply:
    """Send a request without following redirects or checking certificates."""
    trusting = ssl.create_default_context()
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=trusting), _NoRedirect()
    )
    request = urllib.request.Request(url, body, headers or {}, method=method)
    try:
        with opener.open(request, timeout=30) as reply:
            return Reply(reply.status, reply.headers, reply.read())
    except urllib.error.HTTPError as error:
        with error:
            return Reply(error.code, error.headers, error.read())


# ---- SMTP


def send(port: int, sender: str, recipients: list[str], data: bytes) -> tuple[int, str]:
    """Send an unchanged mail by SMTP and return the last reply's code and text. Addresses are written as given."""
    with smtplib.SMTP("127.0.0.1", port, "client.example.net", timeout=60) as client:
        client.ehlo()
        for line in (f"MAIL FROM:<{sender}>", *(f"RCPT TO:<{recipient}>" for recipient in recipients)):
            code, text = client.docmd(line)
            if code != 250:
                return code, f"{line}: {text.decode()}"
        code, text = client.data(data)
        return code, text.decode("utf-8", "replace")


# ---- between Rspamd and the portal


_ANSWERS = {
    "500": b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
    "not-selected": b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 38\r\n"
    b"Connection: close\r\n\r\n"
    b'{"status": "not-selected", "id": null}',
}


class Switch:
    """A port that forwards connections, or refuses, hangs, breaks off, answers 500 or ``not-selected``, or loses the
    answer of the server."""

    def __init__(self) -> None:
        self.port = free_port()
        self.target: int | None = None
        self.taken = 0  # connections so far
        self._state = "refuse"
        self._listener: socket.socket | None = None
        self._open: list[socket.socket] = []

    def set(self, state: str) -> None:
        """Set the state: ``pass``, ``refuse``, ``hang``, ``500``, ``not-selected``, ``break`` or ``lose``."""
        self._state = state
        if state == "refuse":
            self.close()
        elif self._listener is None:
            self._listener = socket.create_server(("127.0.0.1", self.port), backlog=100, reuse_port=False)
            threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def close(self) -> None:
        """Stop listening and close all connections."""
        listener, self._listener = self._listener, None
        for thing in [listener, *self._open]:
            if thing is not None:
                with suppress(OSError):
                    thing.shutdown(socket.SHUT_RDWR)
                thing.close()
        self._open.clear()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            self.taken += 1
            threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    def _serve(self, near: socket.socket) -> None:
        state = self._state
        if state == "hang":
            self._open.append(near)
            return
        with near, suppress(OSError):
            if state in _ANSWERS:
                near.recv(1 << 20)
                near.sendall(_ANSWERS[state])
                while near.recv(1 << 20):
                    pass
            elif state == "break":
                near.recv(1 << 20)
            elif self.target is not None:
                with socket.create_connection(("127.0.0.1", self.target), 5) as far:
                    far.settimeout(None)
                    if state == "lose":
                        _forward_and_lose(near, far)
                        return
                    back = threading.Thread(target=_pump, args=(far, near), daemon=True)
                    back.start()
                    _pump(near, far)
                    back.join()


def _forward_and_lose(near: socket.socket, far: socket.socket) -> None:
    """Forward a request until the server has answered, and forward no answer."""
    threading.Thread(target=_pump, args=(near, far), daemon=True).start()
    while far.recv(1 << 16):
        pass


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)


# ---- Rspamd

_PREFIX = os.environ.get("RSPAMD_PREFIX", "")  # where another Rspamd than Debian's is installed
if _PREFIX:
    os.environ["PATH"] = f"{_PREFIX}/bin:{os.environ['PATH']}"
RSPAMD_CONF = f"{_PREFIX}/etc/rspamd/rspamd.conf"
# Rspamd 3.10 and later skip filters once the reject score is reached, also those of test-rules.lua.
_ALL_FILTERS = "check_all_filters = true;" if _PREFIX else ""
BLOCK_MAP = "/var/lib/quarantine-map/block.map"  # in the shipped file
# Modules that need DNS, the network or Redis are off, so that only test-rules.lua sets a score.
_OFF = """arc asn dcc dkim_signing dmarc fuzzy_check greylist history_redis mx_check neural phishing ratelimit rbl
replies reputation surbl spf url_redirector rspamd_update bayes_expiry dkim clickhouse elastic antivirus
whitelist""".split()


# Settings that apply to a message with a certain header.
_SETTINGS = """lax { priority = high; header = { "X-Test-Lax" = "/./" } apply { actions { reject = 40; } } }
skipped { priority = high; header = { "X-Test-Skip" = "/./" } want_spam = yes; }
"""


@dataclass
class Rspamd:
    """A running Rspamd with one of the shipped exporter rules."""

    milter: int
    scan: int  # HTTP
    controller: int
    log: Path
    block_map: Path

    def block(self, *lines: str) -> None:
        """Write the map of block rules as the portal does: another file in its place."""
        new = self.block_map.with_suffix(".new")
        new.write_text("".join(f"{line}\n" for line in ("# block map", *lines)), "utf-8")
        new.chmod(0o644)
        new.replace(self.block_map)


def shipped_rules() -> dict[str, Path]:
    """Return the shipped files for metadata_exporter.conf by name."""
    stock = {path.name: path for path in (DEPLOY / "rspamd-stock").glob("*.conf")}
    return {"metadata_exporter.conf": DEPLOY / "rspamd/metadata_exporter.conf"} | stock


def exporter_conf(name: str, url: str) -> str:
    """Return a shipped rule with another address."""
    text = shipped_rules()[name].read_text()
    assert text.count('"http://127.0.0.1:8081/"') == 1
    return text.replace("http://127.0.0.1:8081/", url)


def write_rspamd(
    home: Path,
    conf: str,
    ports: tuple[int, int, int],
    *,
    discard_on_reject: bool = False,
    modules: Mapping[str, str] = MappingProxyType({}),
    workers: str = "",
    proxies: int = 1,
    dns_port: int = 9,
) -> list[str]:
    """Write a configuration below ``home`` and return the arguments that make rspamd and rspamadm use it.

    ``modules``: further modules to switch on, with their configuration. ``workers``: the configuration of more workers.
    ``proxies``: the number of processes that answer Postfix. ``dns_port``: of a name server on this host.
    """
    milter, scan, controller = ports
    (home.parent / "hyperscan").mkdir(exist_ok=True)
    shutil.chown(home.parent / "hyperscan", "_rspamd")
    for name in ("local.d", "override.d", "db", "run", "log", "maps.d", "plugins.d"):
        (home / name).mkdir(parents=True, exist_ok=True)
    for module in {*_OFF, *modules}:
        (home / f"local.d/{module}.conf").write_text(modules.get(module, "enabled = false;\n"))
    (home / "local.d/metadata_exporter.conf").write_text(conf.replace(BLOCK_MAP, str(home / "block.map")))
    shutil.copy(DEPLOY / "rspamd/quarantine.lua", home / "local.d/quarantine.lua")
    (home / "rspamd.conf.local").write_text(workers)
    # This one is missing in Debian's actions.conf.
    (home / "local.d/actions.conf").write_text('quarantine = { flags = ["no_threshold"]; }\n')
    (home / "local.d/settings.conf").write_text(_SETTINGS)
    override = {
        # Compiling takes Rspamd 15 s, so all Rspamds of a session share the compiled files.
        "options.inc": f"""filters = "chartable,regexp{",dkim" * ("dkim" in modules)}";
hs_cache_dir = "{home.parent}/hyperscan";
dns {{ nameserver = ["127.0.0.1:{dns_port}:1"]; timeout = {0.05 if dns_port == 9 else 2}s; retransmits = 1; }}
control_socket = "{home}/run/rspamd.sock mode=0600"; maps_cache_dir = "{home}/db"; {_ALL_FILTERS}""",
        "logging.inc": f'level = "info"; type = "file"; filename = "{home}/log/rspamd.log";',
        "worker-normal.inc": f'bind_socket = "127.0.0.1:{scan}"; count = 1; enabled = true;',
        "worker-controller.inc": f'bind_socket = "127.0.0.1:{controller}"; count = 1; password = "portal-test";',
        "worker-fuzzy.inc": "count = -1;",
        "worker-proxy.inc": f'bind_socket = "127.0.0.1:{milter}"; count = {proxies}; milter = yes; timeout = 120s;\n'
        'upstream "local" { default = yes; self_scan = yes; }\n'
        f"discard_on_reject = {'true' if discard_on_reject else 'false'};",
    }
    for name, text in override.items():
        (home / "override.d" / name).write_text(text + "\n")
    shutil.copy(Path(__file__).with_name("test-rules.lua"), home / "rspamd.local.lua")
    names = {"LOCAL_CONFDIR": home, "DBDIR": home / "db", "RUNDIR": home / "run", "LOGDIR": home / "log"}
    return [f"--var={name}={value}" for name, value in names.items()]


@contextmanager
def rspamd(home: Path, conf: str, **more: Any) -> Iterator[Rspamd]:
    """Run Rspamd with ``conf`` as metadata_exporter.conf; ``more`` is for `write_rspamd`."""
    ports = free_port(), free_port(), free_port()
    variables = write_rspamd(home, conf, ports, **more)
    subprocess.run(["chown", "-R", "_rspamd:_rspamd", home], check=True)
    command = ["rspamd", "-f", "-u", "_rspamd", "-g", "_rspamd", "-c", RSPAMD_CONF, *variables]
    log = home / "log/rspamd.log"
    with process(command, home / "stdout.log") as running:

        def up() -> bool:
            assert running.poll() is None, (home / "stdout.log").read_text() + log.read_text()
            return http(f"http://127.0.0.1:{ports[1]}/ping").status == 200 and connects(ports[0])

        wait_for(
            up, 180, details=lambda: log.read_text()[-3000:]
        )  # it compiles for long, on a busy machine for minutes
        yield Rspamd(ports[0], ports[1], ports[2], log, home / "block.map")


# ---- ClamAV


VIRUS = b"X-TINY-VIRUS-OF-THE-TESTS"


class Clamd:
    """Debian's clamd with a few signatures of its own, so that no database is downloaded."""

    def __init__(self, home: Path) -> None:
        self.port = free_port()
        self._home = home
        self._conf = home / "clamd.conf"
        (home / "database").mkdir(parents=True)
        self._conf.write_text(
            f"DatabaseDirectory {home}/database\nTCPSocket {self.port}\nTCPAddr 127.0.0.1\nForeground yes\n"
            "User clamav\n"
        )
        self.knows(VIRUS)

    def knows(self, *needles: bytes) -> None:
        """Make these the signatures, from the next start on (clamav.net, "Body-based signatures", .ndb)."""
        lines = [f"Quarantine.Test.{n}:0:*:{needle.hex()}\n" for n, needle in enumerate(needles)]
        (self._home / "database/test.ndb").write_text("".join(lines))

    @contextmanager
    def running(self) -> Iterator[Clamd]:
        log = self._home / "clamd.log"
        with process(["clamd", "-c", str(self._conf)], log):
            wait_for(lambda: connects(self.port), details=lambda: log.read_text()[-2000:])
            yield self

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """Accept connections on clamd's port and answer nothing."""
        with socket.create_server(("127.0.0.1", self.port), backlog=100):
            yield

    def rspamd_conf(self) -> str:
        """Return local.d/antivirus.conf for this scanner, with Rspamd's default time-outs. It scans text as well."""
        server = f'servers = "127.0.0.1:{self.port}"; symbol = "CLAM_VIRUS"; scan_mime_parts = false;'
        return f'clamav {{ type = "clamav"; {server} }}\n'


# ---- Postfix


class Postfix:
    """A Postfix with a scanning listener, one whose Rspamd discards rejected mail, one without SMTP extensions as old
    relays are, and the shipped release listener."""

    def __init__(self, home: Path, milter: int, discarding_milter: int) -> None:
        self.home = home
        self.smtp, self.smtp_discarding, self.smtp_old, self.release = (free_port() for _ in range(4))
        self._milters = milter, discarding_milter

    def maildir(self, recipient: str) -> list[bytes]:
        """Return the mails of a recipient, oldest first, with CRLF, without the header lines that Postfix adds."""
        box = self.home / "mail" / recipient.partition("@")[0] / "new"
        mails = sorted(box.iterdir(), key=lambda path: path.stat().st_mtime_ns) if box.exists() else []
        return [
            re.sub(rb"\A(?:(?:Return-Path|X-Original-To|Delivered-To): .*\r\n)+", b"", _crlf(mail.read_bytes()))
            for mail in mails
        ]

    def log(self) -> str:
        """Return Postfix's log."""
        path = self.home / "mail.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def queue(self) -> str:
        """Return the queue as ``postqueue -p`` shows it, or "" when it is empty."""
        done = subprocess.run(["postqueue", "-c", self.home, "-p"], capture_output=True, text=True, check=True)
        return "" if "Mail queue is empty" in done.stdout else done.stdout

    def empty_queue(self) -> None:
        """Remove all mail from the queue."""
        subprocess.run(["postsuper", "-c", self.home, "-d", "ALL"], capture_output=True, check=True)

    def write(self) -> None:
        home = self.home
        for name in ("queue", "data", "mail"):
            (home / name).mkdir(parents=True)
        shutil.chown(home / "data", "postfix")
        shutil.chown(home / "mail", "nobody", "nogroup")
        (home / "boxes").write_text(
            "".join(
                f"/^{name}(\\+.*)?@example\\.org$/  {name}/\n" for name in ("alice", "bob", "mallory", "postmaster")
            )
            + "/^quo ted@example\\.org$/  quoted/\n/^jürgen@example\\.org$/  juergen/\n"
        )
        shipped = (DEPLOY / "postfix/main.cf.part").read_text()
        assert "inet:127.0.0.1:11332" in shipped
        (home / "main.cf").write_text(
            f"""compatibility_level = 3.6
queue_directory = {home}/queue
data_directory = {home}/data
command_directory = /usr/sbin
daemon_directory = /usr/lib/postfix/sbin
mail_owner = postfix
setgid_group = postdrop
maillog_file = {home}/mail.log
maillog_file_prefixes = {home}
myhostname = mx.example.org
smtpd_authorized_xclient_hosts = 127.0.0.0/8
mydestination =
mynetworks = 127.0.0.0/8
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
smtp_dns_support_level = disabled
alias_maps =
recipient_delimiter = +
default_transport = error:no way out of here
virtual_mailbox_domains = example.org
virtual_mailbox_base = {home}/mail
virtual_mailbox_maps = regexp:{home}/boxes
virtual_minimum_uid = 1
virtual_uid_maps = static:65534
virtual_gid_maps = static:65534
in_flow_delay = 0
smtpd_error_sleep_time = 0
"""
            + shipped.replace("inet:127.0.0.1:11332", f"inet:127.0.0.1:{self._milters[0]}")
        )
        listener = (DEPLOY / "postfix/master.cf.part").read_text()
        assert re.search(r"^127\.0\.0\.1:10025 inet  n       -       y ", listener, re.MULTILINE)
        listener = listener.replace("127.0.0.1:10025 inet  n       -       y ", f"127.0.0.1:{self.release} inet n - n ")
        (home / "master.cf").write_text(
            f"""127.0.0.1:{self.smtp} inet n - n - - smtpd
127.0.0.1:{self.smtp_discarding} inet n - n - - smtpd
  -o smtpd_milters=inet:127.0.0.1:{self._milters[1]}
127.0.0.1:{self.smtp_old} inet n - n - - smtpd
  -o smtpd_discard_ehlo_keywords=smtputf8,8bitmime,pipelining,dsn,chunking,size,vrfy,etrn,enhancedstatuscodes
pickup    unix  n - n 60 1 pickup
cleanup   unix  n - n - 0 cleanup
qmgr      unix  n - n 300 1 qmgr
rewrite   unix  - - n - - trivial-rewrite
bounce    unix  - - n - 0 bounce
defer     unix  - - n - 0 bounce
trace     unix  - - n - 0 bounce
verify    unix  - - n - 1 verify
flush     unix  n - n 1000? 0 flush
proxymap  unix  - - n - - proxymap
proxywrite unix - - n - 1 proxymap
smtp      unix  - - n - - smtp
relay     unix  - - n - - smtp
showq     unix  n - n - - showq
error     unix  - - n - - error
retry     unix  - - n - - error
discard   unix  - - n - - discard
local     unix  - n n - - local
virtual   unix  - n n - - virtual
lmtp      unix  - - n - - lmtp
anvil     unix  - - n - 1 anvil
scache    unix  - - n - 1 scache
postlog   unix-dgram n - n - 1 postlogd
"""
            + listener
        )

    @contextmanager
    def running(self) -> Iterator[Postfix]:
        """Run it until the block ends."""
        self.write()
        subprocess.run(["postfix", "-c", self.home, "start"], check=True, capture_output=True)
        try:
            for port in (self.smtp, self.smtp_discarding, self.smtp_old, self.release):
                wait_for(partial(connects, port), details=self.log)
            yield self
        finally:
            subprocess.run(["postfix", "-c", self.home, "stop"], check=True, capture_output=True)


def _crlf(data: bytes) -> bytes:
    return data.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")


# ---- Nginx


class Nginx:
    """The shipped configuration with other ports, paths and a certificate made here."""

    def __init__(self, home: Path, upstream: str) -> None:
        self.home, self.upstream = home, upstream
        self.https, self.http, self.exporter = free_port(), free_port(), free_port()
        self.access_log, self.error_log = home / "quarantine.log", home / "quarantine-error.log"

    @property
    def public_url(self) -> str:
        """The portal's URL for recipients."""
        return f"https://127.0.0.1:{self.https}/quarantine"

    @property
    def exporter_url(self) -> str:
        """The portal's URL for Rspamd."""
        return f"http://127.0.0.1:{self.exporter}/"

    def write(self) -> list[str]:
        """Write all files and return the command without -g or -t."""
        home = self.home
        home.mkdir(parents=True, exist_ok=True)
        make = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
        subprocess.run(
            ["openssl", *make.split(), "-keyout", home / "key.pem", "-out", home / "cert.pem"],
            check=True,
            capture_output=True,
        )
        text = (DEPLOY / "nginx/quarantine.conf").read_text()
        for old, new in {
            "unix:/run/quarantine.sock": self.upstream,
            "listen 127.0.0.1:8081;": f"listen 127.0.0.1:{self.exporter};",
            "listen 443 ssl;": f"listen 127.0.0.1:{self.https} ssl;",
            "listen [::]:443 ssl;": "",
            "listen 80;": f"listen 127.0.0.1:{self.http};",
            "listen [::]:80;": "",
            "/etc/letsencrypt/live/quarantine.example.org/fullchain.pem": str(home / "cert.pem"),
            "/etc/letsencrypt/live/quarantine.example.org/privkey.pem": str(home / "key.pem"),
            "/var/log/nginx/": f"{home}/",
            "/var/www/html": f"{home}/www",
            "/var/lib/quarantine-map/": f"{home}/map/",
            "include uwsgi_params;": "include /etc/nginx/uwsgi_params;",
        }.items():
            assert old in text, old
            text = text.replace(old, new)
        (home / "nginx.conf").write_text(
            f"user www-data;\npid {home}/nginx.pid;\nerror_log {home}/main-error.log;\nworker_processes 1;\n"
            "events { worker_connections 768; }\n"  # as in Debian's file
            "http {\n"
            + "".join(f"{kind}_temp_path {home}/{kind};\n" for kind in "client_body proxy fastcgi uwsgi scgi".split())
            + f"access_log {home}/main.log;\n{text}}}\n"
        )
        return ["nginx", "-p", str(home), "-c", str(home / "nginx.conf"), "-e", str(home / "main-error.log")]

    @contextmanager
    def running(self) -> Iterator[Nginx]:
        """Run it until the block ends."""
        command = self.write()
        with process([*command, "-g", "daemon off;"], self.home / "out.log", stop=signal.SIGTERM):
            wait_for(lambda: connects(self.exporter), details=lambda: (self.home / "out.log").read_text())
            yield self


# ---- PostgreSQL 15


@contextmanager
def postgres(home: Path) -> Iterator[str]:
    """Run Debian's PostgreSQL 15 with an empty database and yield its URL."""
    home.mkdir()
    shutil.chown(home, "postgres")
    port, data = free_port(), home / "data"
    as_postgres: dict[str, Any] = {"user": "postgres", "group": "postgres", "extra_groups": [], "cwd": home}
    make = [str(POSTGRES_BIN / "initdb"), "-D", str(data), "-A", "trust", "-E", "UTF8", "--no-locale", "-U", "postgres"]
    subprocess.run(make, check=True, capture_output=True, **as_postgres)
    command = [str(POSTGRES_BIN / "postgres"), "-D", str(data), "-p", str(port), "-k", str(home)]
    log = home / "postgres.log"
    log.touch()
    with process([*command, "-c", "listen_addresses=127.0.0.1"], log, stop=signal.SIGINT, **as_postgres):
        sql = ["psql", "-h", "127.0.0.1", "-p", str(port), "-U", "postgres", "-qc", "CREATE DATABASE quarantine"]
        wait_for(
            lambda: subprocess.run(sql, capture_output=True, cwd=home).returncode == 0, details=lambda: log.read_text()
        )
        yield f"postgresql://postgres@127.0.0.1:{port}/quarantine"


@contextmanager
def pgbouncer(home: Path, server: str) -> Iterator[str]:
    """Run Debian's PgBouncer in transaction mode in front of a server of `postgres`; yield its host and port."""
    home.mkdir()
    shutil.chown(home, "postgres")
    port, log = free_port(), home / "pgbouncer.log"
    (home / "users").write_text('"postgres" ""\n')
    (home / "pgbouncer.ini").write_text(
        f"""[databases]
* = host=127.0.0.1 port={urlsplit(server).port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = trust
auth_file = {home}/users
pool_mode = transaction
default_pool_size = 3
max_client_conn = 500
"""
    )
    command = ["pgbouncer", str(home / "pgbouncer.ini")]
    with process(command, log, user="postgres", group="postgres", extra_groups=[], cwd=home):
        wait_for(lambda: connects(port), details=lambda: log.read_text())
        yield f"127.0.0.1:{port}"


# ---- the portal

# Runs a command with a socket as systemd passes one: descriptor 3, and the pid of the process that may use it.
HANDED_OVER = [
    sys.executable,
    "-c",
    "import os, sys\n"
    "os.dup2(int(sys.argv[1]), 3)\n"
    "os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()))\n"
    "os.execvp(sys.argv[2], sys.argv[2:])\n",
]


def unit(name: str) -> dict[str, str]:
    """Return the settings of a shipped systemd unit by name; the last one if a name is repeated."""
    lines = (DEPLOY / "systemd" / name).read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))


@contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    """Make a socket at ``path`` as systemd does for the shipped quarantine.socket; remove it when the block ends."""
    values = unit("quarantine.socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        shutil.chown(path, values["SocketUser"], values["SocketGroup"])
        path.chmod(int(values["SocketMode"], 8))
        listener.listen(int(values["Backlog"]))
        listener.setblocking(False)
        try:
            yield listener
        finally:
            path.unlink()


class Portal:
    """The product as it is installed: ``uwsgi --ini uwsgi.ini`` with settings from the environment, on a socket from
    systemd's unit, behind Nginx."""

    def __init__(self, home: Path, store_url: str, settings: dict[str, str]) -> None:
        self.home = home
        self.uwsgi = home / "quarantine.sock"
        self.nginx = Nginx(home / "nginx", f"unix:{self.uwsgi}")
        self.log = home / "portal.log"
        self.bin = BIN
        self.ini = ROOT / "uwsgi.ini"
        self.run_as: list[str] = []  # a command in front of each of the portal's commands
        self.environment = {
            "PATH": f"{BIN}:/usr/bin:/bin",
            "HOME": str(home),
            "LANG": "C.UTF-8",
            "QUARANTINE_STORE__URL": store_url,
            "QUARANTINE_PUBLIC_URL": self.nginx.public_url,
            "QUARANTINE_LOCAL_DOMAINS": "example.org",
            "QUARANTINE_MAIL__FROM_ADDRESS": "quarantine@example.org",
            "QUARANTINE_MAIL__ADMIN_ADDRESS": "postmaster@example.org",
            **settings,
        }
        self.process: subprocess.Popen[bytes] | None = None

    def command(self, *words: str, check: bool = True) -> str:
        """Run ``quarantine`` or ``quarantine-digest`` with the portal's settings and return its output."""
        done = subprocess.run(
            [*self.run_as, self.bin / words[0], *words[1:]],
            env=self.environment,
            cwd=self.home,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
        )
        assert not check or done.returncode == 0, f"{words}: {done.returncode}\n{done.stdout}"
        return done.stdout

    @contextmanager
    def running(self) -> Iterator[Portal]:
        """Initialise the store and run all servers until the block ends."""
        self.home.mkdir(parents=True, exist_ok=True)
        self.command("quarantine", "init")
        with listening(self.uwsgi) as listener, self.serving(listener), self.nginx.running():

            def up() -> bool:
                assert self.process is not None and self.process.poll() is None, self.log.read_text()
                return http(self.nginx.exporter_url + "healthz").status == 200

            wait_for(up, details=lambda: self.log.read_text()[-5000:])
            yield self

    @contextmanager
    def serving(self, listener: socket.socket) -> Iterator[None]:
        """Run uWSGI alone, on this socket, until the block ends."""
        command = [*self.run_as, *HANDED_OVER, str(listener.fileno()), str(self.bin / "uwsgi"), "--ini", str(self.ini)]
        how: dict[str, Any] = {"env": self.environment, "cwd": self.home, "pass_fds": [listener.fileno()]}
        with process(command, self.log, **how) as self.process:
            yield

    def pids(self, name: str) -> list[int]:
        """Return the pids of this portal's processes whose command line contains ``name``."""
        found = []
        for path in Path("/proc").iterdir():
            if path.name.isdigit():
                with suppress(OSError):
                    ours = str(self.home).encode() in (path / "environ").read_bytes()
                    if ours and name.encode() in (path / "cmdline").read_bytes():
                        found.append(int(path.name))
        return found
