"""``quarantine check``: try everything that can be reached, as the running system would, and say how to mend it.

Each function looks at one thing and yields findings; none of them changes anything.
"""

from __future__ import annotations

import base64
import ipaddress
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from portal import shipped
from portal.assemble import agree_on_keys, keys_path, make_links, make_people
from portal.mail.relay import Relay
from portal.mail.render import site_problems
from portal.model.domains import shown_address
from portal.model.errors import QuarantineError, RelayDeferred, RelayRefused
from portal.model.message import Filter, State
from portal.model.text import shown
from portal.monitoring import overdue_since, runs
from portal.settings import Settings, load_from
from portal.stores import Store, notes, open_store
from portal.stores.shared.spellings import PENDING

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_RSPAMADM_SECONDS = 30
_NAMED = 20  # recipients whose digest the mail server did not take
_HEARTBEAT = timedelta(minutes=2)
_SOCKET = "/run/quarantine.sock"  # deploy/systemd/quarantine.socket
_NGINX_FOLDERS = (Path("/etc/nginx/conf.d"), Path("/etc/nginx/sites-enabled"))
_NGINX_TO_TCP = re.compile(
    r"\bupstream\s+quarantine\s*\{[^}]*\bserver\s+(?!unix:)([^\s;]+)|\buwsgi_pass\s+(127\.0\.0\.1:9000)\s*;"
)
_UWSGI_SOCKET = re.compile(r"^\s*(?:uwsgi-)?socket\s*=\s*(\S+)", re.MULTILINE)
_NGINX_CANNOT = (
    "Nginx does not reach the portal: is the service running, and does quarantine.conf name its socket, "
    f"`server unix:{_SOCKET};`?"
)
_PING, _PONG = b"\x64\0\0\0", b"\x64\0\0\x01"  # a uwsgi packet with modifier1 100, and its answer


@dataclass(frozen=True, slots=True)
class Finding:
    """``ok``: True fine, False a problem, None worth knowing."""

    ok: bool | None
    what: str
    said: str


def everything() -> list[Finding]:
    """All findings. Raises SettingsError when there are no settings to check with."""
    settings, path, _ = load_from()
    findings = [Finding(True, "settings", f"read from {path}" if path else "all defaults, there is no file")]
    findings += _run(settings_file, settings, path)
    findings += _run(addresses, settings)
    findings += _run(files, settings)
    findings += _run(uwsgi_socket, settings, path)
    findings += _run(site_files, settings)
    store: Store | None = None
    try:
        store = open_store(settings.store.place, must_exist=True)
        findings += _run(storage, settings, store)
        findings += _run(site_failures, settings, store)
        findings += _run(aliases, settings, store)
    except QuarantineError as error:
        findings.append(Finding(False, "store", str(error)))
    findings += _run(keys, settings, store)
    findings += _run(mail_server, "relay", "released mail goes here", settings.relay.url.get_secret_value())
    if settings.local_domains:
        findings += _run(mail_server, "mail", "digests go here", settings.mail.url.get_secret_value())
    findings += _run(exporter, settings)
    if store is not None:
        store.close()
    return findings


def _run(look: Callable[..., Iterator[Finding]], *args: Any) -> list[Finding]:
    """What was found until something unforeseen happened, and that."""
    found = []
    try:
        for finding in look(*args):
            found.append(finding)
    except (QuarantineError, OSError) as error:
        found.append(Finding(False, look.__name__.replace("_", " "), str(error)))
    return found


def settings_file(settings: Settings, path: Path | None) -> Iterator[Finding]:
    """Secrets in a file that everybody may read."""
    if path is not None and path.stat().st_mode & 0o004:
        text = path.read_text("utf-8")
        if any(word in text for word in ("password", "postgresql://", "keys =")):
            yield Finding(
                None, "settings", f"{path} may be read by everybody; if it holds passwords run: chmod 640 {path}"
            )


def addresses(settings: Settings) -> Iterator[Finding]:
    """What recipients see."""
    parts = urlsplit(settings.public_url)
    if parts.scheme == "https":
        yield Finding(True, "public_url", settings.public_url)
    elif parts.hostname in _LOOPBACK:
        yield Finding(None, "public_url", f"{settings.public_url} can be opened on this machine only")
    else:
        yield Finding(
            False,
            "public_url",
            f"{settings.public_url} is not https: browsers send cookies and links unprotected, and digests carry no "
            "one-click unsubscribe. Set an https address",
        )
    if not settings.local_domains:
        yield Finding(
            False,
            "local_domains",
            "empty: mail is held, but nobody is told and nobody can sign in. Set the domains you receive mail for",
        )
    else:
        yield Finding(True, "local_domains", ", ".join(map(shown_address, settings.local_domains)))
    if settings.mail.admin_address is None:
        yield Finding(None, "mail.admin_address", "not set: nobody is told of requests for dangerous mail and alarms")


def files(settings: Settings) -> Iterator[Finding]:
    """What the installation brought."""
    for name in ("templates", "quarantine.sql", "uwsgi.ini"):
        shipped(name)
    program = shutil.which("quarantine-digest")
    if program is None:
        yield Finding(
            False,
            "quarantine-digest",
            "not found in PATH: uWSGI would start it again and again in vain. Put the installation's bin folder into "
            "PATH of the service (deploy/systemd does)",
        )
    else:
        yield Finding(True, "quarantine-digest", program)


def uwsgi_socket(settings: Settings, path: Path | None) -> Iterator[Finding]:
    """Whether uWSGI can be reached over TCP, by every process of this host, and whether Nginx expects that."""
    found = list(_tcp_sockets(settings, path))
    for said in found:
        yield Finding(
            False,
            "uwsgi socket",
            f"{said}: every process of this host can connect and act for every client. Use the unix socket of "
            "deploy/systemd/quarantine.socket (docs/upgrade.md)",
        )
    if not found:
        yield Finding(True, "uwsgi socket", "not on TCP")
    for file in (file for folder in _NGINX_FOLDERS for file in sorted(folder.glob("*"))):
        if not file.is_file() or not os.access(file, os.R_OK):
            continue
        for match in _NGINX_TO_TCP.finditer(re.sub(r"#.*", "", file.read_text("utf-8", "replace"))):
            yield Finding(
                False,
                "nginx",
                f"{file} passes requests to {match[1] or match[2]}: copy {shipped('deploy')}/nginx/quarantine.conf "
                f"anew, or change that line to `server unix:{_SOCKET};`, then run: nginx -t && systemctl reload nginx",
            )


def _tcp_sockets(settings: Settings, path: Path | None) -> Iterator[str]:
    """What says so: the environment, a uwsgi.ini beside the settings, a running uWSGI."""
    named = os.environ.get("QUARANTINE_SOCKET", "")
    if _is_tcp(named):
        yield f"QUARANTINE_SOCKET is the TCP address {named}"
    config = path.parent / "uwsgi.ini" if path else None
    if config and config.is_file():
        for address in filter(_is_tcp, _UWSGI_SOCKET.findall(config.read_text("utf-8"))):
            yield f"{config} opens the TCP address {address}, unlike {shipped('uwsgi.ini')}"
    for host, port in _uwsgi_listeners(_service_uid(settings)):
        if _answers_uwsgi(host, port):
            yield f"uWSGI listens on {host}:{port}"


def _is_tcp(name: str) -> bool:
    return ":" in name and not name.startswith("fd://")  # as uWSGI tells them apart


def _service_uid(settings: Settings) -> int:
    """Whose processes are the portal's: root may check a service of another user."""
    if os.geteuid() == 0 and keys_path(settings).exists():
        return keys_path(settings).stat().st_uid
    return os.geteuid()


def _uwsgi_listeners(uid: int) -> Iterator[tuple[str, int]]:
    """Addresses on which this user's uWSGI processes accept TCP connections."""
    held = set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended, or is not ours to look into
            if process.stat().st_uid == uid and "uwsgi" in (process / "comm").read_text():
                held |= {str(descriptor.readlink()) for descriptor in (process / "fd").iterdir()}
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        for line in table.read_text().splitlines()[1:] if table.exists() else ():
            _, local, _, state, *_, inode = line.split()[:10]
            if state == "0A" and f"socket:[{inode}]" in held:
                host, _, port = local.partition(":")
                # Words of 32 bits, each in the processor's byte order.
                words = struct.unpack(f"={len(host) // 8}I", bytes.fromhex(host))
                packed = struct.pack(f">{len(words)}I", *words)
                yield str(ipaddress.ip_address(packed)), int(port, 16)


def _answers_uwsgi(host: str, port: int) -> bool:
    """Whether the uwsgi protocol is spoken there: uWSGI may also have HTTP sockets, for a trial without Nginx."""
    try:
        with socket.create_connection((host, port), timeout=1) as connection:
            connection.sendall(_PING)
            return connection.recv(4) == _PONG
    except OSError:
        return False


def site_files(settings: Settings) -> Iterator[Finding]:
    """The site's own templates, as far as one can see without using them."""
    if settings.site.folder is None:
        return
    problems = site_problems(settings.site.folder)
    for name, said in problems:
        yield Finding(False, "site.folder", f"{name}: {said}")
    if not problems:
        yield Finding(True, "site.folder", str(settings.site.folder))


def site_failures(settings: Settings, store: Store) -> Iterator[Finding]:
    """The last template of the site that failed when it was used, unless it was changed since."""
    if settings.site.folder is None:
        return
    failure = notes.TEMPLATE_FAILED.get(store)
    if failure is None or not failure.what:
        return
    path = settings.site.folder / "templates" / failure.what.partition(":")[0]
    if path.exists() and path.stat().st_mtime_ns == failure.changed_ns:
        yield Finding(False, "site.folder", f"{failure.what}: it failed when it was used, ours was used instead")


def storage(settings: Settings, store: Store) -> Iterator[Finding]:
    """The store and what the digest process leaves in it."""
    store.ping()
    yield Finding(True, "store", "can be written to")
    if store.notes.get(PENDING) is not None:
        said = (
            "the upgrade was interrupted before recipients in international domains were merged: run `quarantine init`"
        )
        yield Finding(False, "store", said)
    folder = settings.store.place.folder
    if folder is not None:
        usage = shutil.disk_usage(folder)
        free = usage.free / usage.total
        yield Finding(free > 0.05, "disk", f"{usage.free // 2**20} MiB free ({free:.0%})")
        inodes = os.statvfs(folder)
        if inodes.f_files:  # 0: made as they are needed
            free = inodes.f_favail / inodes.f_files
            yield Finding(free > 0.05, "inodes", f"{inodes.f_favail} more files find room ({free:.0%})")
    now = datetime.now(UTC)
    figures = store.stats(now)
    if figures.heartbeat_at is None or now - figures.heartbeat_at > _HEARTBEAT:
        seen = "never" if figures.heartbeat_at is None else f"at {figures.heartbeat_at:%Y-%m-%d %H:%M} UTC"
        yield Finding(
            False,
            "digest process",
            f"last seen {seen}: no digests, sign-in mail or retries go out. It runs beside uWSGI (uwsgi.ini); "
            "by hand: quarantine-digest run",
        )
    else:
        yield Finding(True, "digest process", f"seen at {figures.heartbeat_at:%H:%M:%S} UTC")
    done = runs(store)
    sent = "never" if done.last_sent_at is None else f"at {done.last_sent_at:%Y-%m-%d %H:%M} UTC"
    since = overdue_since(figures, done.last_sent_at, now, timedelta(minutes=settings.digest.overdue_minutes))
    if since is not None:
        yield Finding(
            False,
            "digests",
            f"overdue: {figures.digests_due} due, the oldest since {since:%Y-%m-%d %H:%M} UTC; last sent {sent}",
        )
    failing = store.recipients.failing(_NAMED)
    for person in failing:
        yield Finding(
            None,
            "digests",
            f"{shown_address(person.recipient)}: not taken at {person.failed_at:%Y-%m-%d %H:%M} UTC: {person.failure}",
        )
    if figures.digests_failing > len(failing):
        yield Finding(None, "digests", f"and {figures.digests_failing - len(failing)} more recipients like these")
    if figures.requests_waiting:
        yield Finding(
            None, "requests", f"{figures.requests_waiting} wait for an answer: quarantine list --state requested"
        )
    if figures.releases_waiting:
        waiting = store.deliveries.search(Filter(states=frozenset({State.RELEASING})), _NAMED).deliveries
        why = next((f"; one of them failed last with: {shown(d.reason, 300)}" for d in waiting if d.reason), "")
        yield Finding(None, "releases", f"{figures.releases_waiting} wait for the mail server{why}")


def aliases(settings: Settings, store: Store) -> Iterator[Finding]:
    """Whether the alias file can be used, and what of it is not followed."""
    if settings.people.alias_file is None:
        return
    people = make_people(settings, store)
    names, trouble = people.names(), people.problem()
    if trouble:
        yield Finding(False, "people.alias_file", trouble)
    else:
        roles = sum(1 for readers in names.readers.values() if len(readers) > 1)
        yield Finding(
            True,
            "people.alias_file",
            f"{settings.people.alias_file}: {len(names.readers)} addresses, {roles} of them with several readers, "
            f"{len(names.domains)} alias domains",
        )
    if not settings.people.alias_file.is_absolute():
        yield Finding(None, "people.alias_file", "is looked for from the current folder: set it to a whole path")
    for problem in names.problems:
        yield Finding(None, "people.alias_file", shown(problem, 300))
    if names.problem_count > len(names.problems):
        yield Finding(None, "people.alias_file", f"and {names.problem_count - len(names.problems)} more such lines")


def keys(settings: Settings, store: Store | None) -> Iterator[Finding]:
    """The keys links are signed with."""
    where = "settings" if settings.links.keys else str(keys_path(settings))
    if not settings.links.keys and not keys_path(settings).exists():
        yield Finding(False, "link keys", f"{where} does not exist yet: run quarantine init as the service's user")
        return
    if not settings.links.keys and not keys_path(settings).is_absolute():
        yield Finding(
            None,
            "link keys",
            f"{where} is looked for from the current folder: set links.keys_file to a whole path, or service and "
            "commands may use different keys",
        )
    links = make_links(settings)
    if store is not None:
        agree_on_keys(store, links, record=False)
    yield Finding(True, "link keys", f"{len(links.fingerprints())} in {where}")


def mail_server(what: str, use: str, url: str) -> Iterator[Finding]:
    """Whether a mail server answers, with TLS and login as a send would need."""
    try:
        yield Finding(True, what, f"{Relay(url).probe()} ({use})")
    except (RelayDeferred, RelayRefused) as error:
        yield Finding(False, what, f"{error} ({use})")


def exporter(settings: Settings) -> Iterator[Finding]:
    """Rspamd's view: its own rules, read by rspamadm, tried with an empty message, which is never held."""
    rspamadm = shutil.which("rspamadm")
    if rspamadm is None:
        yield Finding(None, "exporter", "Rspamd is not on this host, so its rule cannot be tried from here")
        return
    try:
        dump = subprocess.run(
            [rspamadm, "configdump", "--json", "metadata_exporter"],
            capture_output=True,
            timeout=_RSPAMADM_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        said = f"rspamadm did not answer within {_RSPAMADM_SECONDS} s, so its rule is not tried"
        yield Finding(None, "exporter", said)
        return
    try:
        found = json.loads(dump.stdout)["rules"]
    except (ValueError, KeyError, TypeError):
        found = {}
    blocks = found if isinstance(found, list) else [found]  # UCL makes a list of blocks of one name
    rules = {
        name: rule
        for block in blocks
        if isinstance(block, dict)
        for name, rule in block.items()
        if isinstance(rule, dict) and "url" in rule
    }
    if not rules:
        yield Finding(
            False,
            "exporter",
            "Rspamd has no metadata_exporter rule: copy deploy/rspamd/metadata_exporter.conf to "
            "/etc/rspamd/local.d/ and restart Rspamd",
        )
    for name, rule in rules.items():
        yield from _exporter_rule(name, rule)


def _exporter_rule(name: str, rule: dict[str, Any]) -> Iterator[Finding]:
    what, url = f"exporter rule {name}", str(rule["url"])
    if rule.get("backend") == "http" and rule.get("defer") is not True:
        yield Finding(False, what, "has no defer = true: mail is lost whenever the portal cannot be reached")
    if rule.get("formatter", "default") in ("json", "structured", "email_alert"):
        yield Finding(
            False,
            what,
            f'formatter = "{rule["formatter"]}" carries no message: use "multipart", or "default" before 3.14.2',
        )
    if not url.startswith(("http://", "https://")):
        yield Finding(False, what, f"url {url!r} is not http")
        return
    headers = {"Content-Type": "text/plain", "X-Rspamd-action": "reject", "X-Rspamd-qid": "check"}
    if rule.get("user"):
        login = base64.b64encode(f"{rule['user']}:{rule.get('password', '')}".encode())
        headers["Authorization"] = f"Basic {login.decode()}"
    try:
        request = urllib.request.Request(url, b"", headers, method="POST")  # noqa: S310 - checked above
        with urllib.request.urlopen(request, timeout=5) as answer:  # noqa: S310
            status = answer.status
    except urllib.error.HTTPError as error:
        status = error.code
    except OSError as error:
        yield Finding(False, what, f"{url} cannot be reached: {getattr(error, 'reason', error)}")
        return
    except (HTTPException, ValueError) as error:  # a mail server's port, an address that is none
        yield Finding(False, what, f"{shown(url, 300)} is not the portal's address: {shown(str(error), 300)}")
        return
    said = {
        200: "answers",
        401: "answers 401: user or password differ from exporter.user and exporter.password",
        403: "answers 403: this host is not in exporter.allowed_networks",
        404: "answers 404: the url's path is not the mount point of public_url",
        502: f"answers 502: {_NGINX_CANNOT}",
        504: f"answers 504: {_NGINX_CANNOT}",
    }.get(status, f"answers {status}")
    yield Finding(status == 200, what, f"{url} {said}")
