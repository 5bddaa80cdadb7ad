"""``quarantine check``: test all parts as the running system uses them, and report how to fix problems.

Each function checks one subject and yields findings. None of them changes anything.
"""

from __future__ import annotations

import ipaddress
import os
import re
import shutil
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from portal import shipped
from portal.assemble import agree_on_keys, keys_path, make_links, make_people
from portal.cli import password_checks, rspamd_checks, sign_in_checks
from portal.cli.common import SOCKET
from portal.cli.finding import Finding
from portal.mail.relay import Relay
from portal.mail.render import site_problems
from portal.model.domains import shown_address
from portal.model.errors import QuarantineError, RelayDeferred, RelayRefused
from portal.model.message import Filter, State
from portal.model.text import shown
from portal.monitoring import overdue_since, runs
from portal.policy.domains import Domains
from portal.policy.staff import Staff
from portal.settings import Settings, load_from
from portal.stores import Store, notes, open_store
from portal.stores.shared.spellings import PENDING

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_MAX_LISTED = 20  # recipients whose digest the mail server did not accept
_HEARTBEAT = timedelta(minutes=2)

_NGINX_FOLDERS = (Path("/etc/nginx/conf.d"), Path("/etc/nginx/sites-enabled"))
_NGINX_TO_TCP = re.compile(
    r"\bupstream\s+quarantine\s*\{[^}]*\bserver\s+(?!unix:)([^\s;]+)|\buwsgi_pass\s+(127\.0\.0\.1:9000)\s*;"
)
_UWSGI_SOCKET = re.compile(r"^\s*(?:uwsgi-)?socket\s*=\s*(\S+)", re.MULTILINE)
_PING, _PONG = b"\x64\0\0\0", b"\x64\0\0\x01"  # a uwsgi packet with modifier1 100, and its reply


def run_all() -> list[Finding]:
    """Run all checks and return their findings. Raises SettingsError if the settings are invalid."""
    settings, path, _ = load_from()
    findings = [
        Finding(
            True,
            "settings",
            f"read from {path}" if path else "no settings file found, all settings have their defaults",
        )
    ]
    findings += _collect(settings_file, settings, path)
    findings += _collect(addresses, settings)
    findings += _collect(files, settings)
    findings += _collect(uwsgi_socket, settings, path)
    findings += _collect(site_files, settings)
    store: Store | None = None
    try:
        store = open_store(settings.store.place, must_exist=True)
        findings += _collect(storage, settings, store)
        findings += _collect(site_failures, settings, store)
        findings += _collect(domain_values, settings, store)
        findings += _collect(staff_roles, settings, store)
        findings += _collect(sign_in_checks.second_factors, settings, staff_of(settings, store))
        findings += _collect(aliases, settings, store)
    except QuarantineError as error:
        findings.append(Finding(False, "store", str(error)))
    findings += _collect(keys, settings, store)
    findings += _collect(mail_server, "relay", "used for releases", settings.relay.url.get_secret_value())
    if settings.local_domains:
        findings += _collect(
            mail_server,
            "mail",
            "used for digests and all other mail of the portal",
            settings.mail.url.get_secret_value(),
        )
    if settings.local_domains:
        findings += _collect(sign_in_checks.ways, settings)
    findings += _collect(sign_in_checks.providers, settings)
    findings += _collect(sign_in_checks.proxy, settings)
    findings += _collect(password_checks.ldap, settings)
    findings += _collect(password_checks.imap, settings)
    findings += _collect(rspamd_checks.rspamd, settings)
    findings += _collect(rspamd_checks.scanner, settings)
    findings += _collect(rspamd_checks.learning, settings)
    if store is not None:
        findings += _collect(rspamd_checks.block_rules, settings, store, make_people(settings, store))
        store.close()
    return findings


def _collect(check: Callable[..., Iterator[Finding]], *args: Any) -> list[Finding]:
    """Return the findings of a check. An error that ends the check early becomes the last finding."""
    found = []
    try:
        for finding in check(*args):
            found.append(finding)
    except (QuarantineError, OSError) as error:
        found.append(Finding(False, check.__name__.replace("_", " "), str(error)))
    return found


def settings_file(settings: Settings, path: Path | None) -> Iterator[Finding]:
    """Check that the settings file is not world-readable if it has secrets."""
    if path is not None and path.stat().st_mode & 0o004:
        text = path.read_text("utf-8")
        if any(word in text for word in ("password", "postgresql://", "keys =")):
            yield Finding(None, "settings", f"every user can read {path}. If it has passwords, run: chmod 640 {path}")


def addresses(settings: Settings) -> Iterator[Finding]:
    """Check the settings for the portal's URL, its domains and the administrator's address."""
    parts = urlsplit(settings.public_url)
    if parts.scheme == "https":
        yield Finding(True, "public_url", settings.public_url)
    elif parts.hostname in _LOOPBACK:
        yield Finding(None, "public_url", f"{settings.public_url} can only be opened on this host")
    else:
        yield Finding(
            False,
            "public_url",
            f"{settings.public_url} is not https: cookies and links are sent unencrypted, and digests have no "
            "one-click unsubscribe. Set an https URL",
        )
    if not settings.local_domains:
        yield Finding(
            False,
            "local_domains",
            "empty: messages are held, but no digests are sent and nobody can sign in. Set your mail domains",
        )
    else:
        yield Finding(True, "local_domains", ", ".join(map(shown_address, settings.local_domains)))
    if not settings.site.name:
        text = "not set: pages and mail do not name your organization, like phishing. Set a name people know"
        yield Finding(None, "site.name", text)
    if not settings.site.contact:
        text = "not set: digests and pages name your mail administrator. Set whom recipients may ask"
        yield Finding(None, "site.contact", text)
    if settings.digest.domains:
        yield Finding(None, "digest.domains", "the next version will not read it: rename its tables to [domains.…]")
    if settings.mail.admin_address is None:
        yield Finding(
            None,
            "mail.admin_address",
            "not set: release requests for dangerous messages and alarms are not mailed to anyone",
        )


def files(settings: Settings) -> Iterator[Finding]:
    """Check the installed files and programs."""
    for name in ("templates", "quarantine.sql", "uwsgi.ini"):
        shipped(name)
    program = shutil.which("quarantine-digest")
    if program is None:
        yield Finding(
            False,
            "quarantine-digest",
            "not found in PATH: uWSGI cannot start it and would retry without end. Add the installation's bin folder "
            "to PATH of the service (deploy/systemd does)",
        )
    else:
        yield Finding(True, "quarantine-digest", program)


def uwsgi_socket(settings: Settings, path: Path | None) -> Iterator[Finding]:
    """Check that uWSGI is not reachable over TCP, by every process of this host, and that Nginx does not use TCP."""
    found = list(_tcp_sockets(settings, path))
    for text in found:
        # https://systemd.io/CONTAINER_INTERFACE; the image sets it, too
        if os.environ.get("container"):  # noqa: SIM112 - so it is called
            text += (
                ": the other containers of its networks and the programs of its host can connect and claim to be any "
            )
            yield Finding(None, "uwsgi socket", f"{text}client. Run no others there (docs/install.md)")
        else:
            text += ": every process of this host can connect and claim to be any client. Use the unix socket of "
            yield Finding(False, "uwsgi socket", f"{text}deploy/systemd/quarantine.socket (docs/upgrade.md)")
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
                f"again, or change that line to `server unix:{SOCKET};`, then run: nginx -t && systemctl reload nginx",
            )


def _tcp_sockets(settings: Settings, path: Path | None) -> Iterator[str]:
    """Yield a text for each TCP socket: of the environment, of a uwsgi.ini next to the settings, of a running uWSGI."""
    named = os.environ.get("QUARANTINE_SOCKET", "")
    if _is_tcp(named):
        yield f"QUARANTINE_SOCKET is the TCP address {named}"
    config = path.parent / "uwsgi.ini" if path else None
    if config and config.is_file():
        for address in filter(_is_tcp, _UWSGI_SOCKET.findall(config.read_text("utf-8"))):
            yield f"{config} opens the TCP address {address}, unlike {shipped('uwsgi.ini')}"
    for host, port in _uwsgi_listeners(_service_uid(settings)):
        if _speaks_uwsgi(host, port):
            yield f"uWSGI listens on {host}:{port}"


def _is_tcp(name: str) -> bool:
    return ":" in name and not name.startswith("fd://")  # as uWSGI distinguishes them


def _service_uid(settings: Settings) -> int:
    """Return the user id of the portal's processes, also if root runs the check."""
    if os.geteuid() == 0 and keys_path(settings).exists():
        return keys_path(settings).stat().st_uid
    return os.geteuid()


def _uwsgi_listeners(uid: int) -> Iterator[tuple[str, int]]:
    """Yield the addresses on which this user's uWSGI processes accept TCP connections."""
    descriptors = set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # the process has ended, or may not be read by this user
            if process.stat().st_uid == uid and "uwsgi" in (process / "comm").read_text():
                descriptors |= {str(descriptor.readlink()) for descriptor in (process / "fd").iterdir()}
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        for line in table.read_text().splitlines()[1:] if table.exists() else ():
            _, local, _, state, *_, inode = line.split()[:10]
            if state == "0A" and f"socket:[{inode}]" in descriptors:
                host, _, port = local.partition(":")
                # 32-bit words, each in the byte order of the CPU.
                words = struct.unpack(f"={len(host) // 8}I", bytes.fromhex(host))
                packed = struct.pack(f">{len(words)}I", *words)
                yield str(ipaddress.ip_address(packed)), int(port, 16)


def _speaks_uwsgi(host: str, port: int) -> bool:
    """Return True for a uwsgi socket. uWSGI may also have HTTP sockets, for a test without Nginx."""
    try:
        with socket.create_connection((host, port), timeout=1) as connection:
            connection.sendall(_PING)
            return connection.recv(4) == _PONG
    except OSError:
        return False


def site_files(settings: Settings) -> Iterator[Finding]:
    """Check the site's own templates without rendering them."""
    if settings.site.folder is None:
        return
    problems = site_problems(settings.site.folder)
    for name, text in problems:
        yield Finding(False, "site.folder", f"{name}: {text}")
    if not problems:
        yield Finding(True, "site.folder", str(settings.site.folder))


def site_failures(settings: Settings, store: Store) -> Iterator[Finding]:
    """Report the site's template that failed last when rendered, unless the file was changed since."""
    if settings.site.folder is None:
        return
    failure = notes.TEMPLATE_FAILED.get(store)
    if failure is None or not failure.what:
        return
    path = settings.site.folder / "templates" / failure.what.partition(":")[0]
    if path.exists() and path.stat().st_mtime_ns == failure.changed_ns:
        yield Finding(False, "site.folder", f"{failure.what}: rendering failed, so the shipped template was used")


def domain_values(settings: Settings, store: Store) -> Iterator[Finding]:
    """Report values of domains in the store that are not in effect."""
    for value, reason in Domains(settings, store).unusable():
        host, key = shown_address(value.domain), value.name
        yield Finding(
            None,
            f"domain {host}",
            f"the value of {key} in the store is not in effect: {reason} To remove it, run: "
            f"quarantine domains unset {host} {key}",
        )


def staff_of(settings: Settings, store: Store) -> Staff:
    """Return the roles and permissions of a store."""
    return Staff(settings, store, Domains(settings, store), make_people(settings, store))


def staff_roles(settings: Settings, store: Store) -> Iterator[Finding]:
    """Report roles that nobody can use."""
    staff = staff_of(settings, store)
    for grant in staff.unusable():
        person, role = shown_address(grant.person), grant.role.value
        if staff.is_of_settings(grant):
            text = f"{person} cannot sign in: it must be the address of a person in local_domains"
            yield Finding(False, "staff.administrators", text)
        else:
            host = f" --domain {shown_address(grant.domain)}" if grant.domain else ""
            yield Finding(
                None,
                f"role of {person}",
                f"it is not in effect: the person cannot sign in, or the domain is not in local_domains. To remove it, "
                f"run: quarantine staff remove {person} {role}{host}",
            )


def storage(settings: Settings, store: Store) -> Iterator[Finding]:
    """Check the store, its disk, and the records of the digest process in it."""
    store.ping()
    yield Finding(True, "store", "can be written to")
    if store.notes.get(PENDING) is not None:
        text = (
            "the upgrade was interrupted before recipients in international domains were merged: run `quarantine init`"
        )
        yield Finding(False, "store", text)
    folder = settings.store.place.folder
    if folder is not None:
        usage = shutil.disk_usage(folder)
        free = usage.free / usage.total
        yield Finding(free > 0.05, "disk", f"{usage.free // 2**20} MiB free ({free:.0%})")
        inodes = os.statvfs(folder)
        if inodes.f_files:  # 0: the file system creates inodes on demand
            free = inodes.f_favail / inodes.f_files
            yield Finding(free > 0.05, "inodes", f"{inodes.f_favail} inodes free ({free:.0%})")
    now = datetime.now(UTC)
    stats = store.stats(now)
    if stats.heartbeat_at is None or now - stats.heartbeat_at > _HEARTBEAT:
        seen = "never" if stats.heartbeat_at is None else f"at {stats.heartbeat_at:%Y-%m-%d %H:%M} UTC"
        yield Finding(
            False,
            "digest process",
            f"last seen {seen}: no digests, sign-in mail or retries are sent. uWSGI starts it (uwsgi.ini); "
            "by hand: quarantine-digest run",
        )
    else:
        yield Finding(True, "digest process", f"seen at {stats.heartbeat_at:%H:%M:%S} UTC")
    done = runs(store)
    sent = "never" if done.last_sent_at is None else f"at {done.last_sent_at:%Y-%m-%d %H:%M} UTC"
    since = overdue_since(stats, done.last_sent_at, now, timedelta(minutes=settings.digest.overdue_minutes))
    if since is not None:
        yield Finding(
            False,
            "digests",
            f"overdue: {stats.digests_due} due, the oldest since {since:%Y-%m-%d %H:%M} UTC; last sent {sent}",
        )
    failing = store.recipients.failing(_MAX_LISTED)
    for person in failing:
        yield Finding(
            None,
            "digests",
            f"{shown_address(person.recipient)}: not accepted at {person.failed_at:%Y-%m-%d %H:%M} UTC: "
            f"{person.failure}",
        )
    if stats.digests_failing > len(failing):
        yield Finding(None, "digests", f"and {stats.digests_failing - len(failing)} more recipients")
    if stats.requests_waiting:
        yield Finding(
            None, "requests", f"{stats.requests_waiting} wait for a decision: quarantine list --state requested"
        )
    if stats.releases_waiting:
        waiting = store.deliveries.search(Filter(states=frozenset({State.RELEASING})), _MAX_LISTED).deliveries
        why = next((f"; last error of one of them: {shown(d.reason, 300)}" for d in waiting if d.reason), "")
        yield Finding(None, "releases", f"{stats.releases_waiting} wait for the mail server{why}")


def aliases(settings: Settings, store: Store) -> Iterator[Finding]:
    """Check that the alias file can be used, and report its lines that are not followed."""
    if settings.people.alias_file is None:
        return
    people = make_people(settings, store)
    names, file_problem = people.names(), people.problem()
    if file_problem:
        yield Finding(False, "people.alias_file", file_problem)
    else:
        roles = sum(1 for readers in names.readers.values() if len(readers) > 1)
        yield Finding(
            True,
            "people.alias_file",
            f"{settings.people.alias_file}: {len(names.readers)} addresses, {roles} of them with several readers, "
            f"{len(names.domains)} alias domains",
        )
    if not settings.people.alias_file.is_absolute():
        yield Finding(None, "people.alias_file", "is relative to the current folder: set an absolute path")
    for problem in names.problems:
        yield Finding(None, "people.alias_file", shown(problem, 300))
    if names.problem_count > len(names.problems):
        yield Finding(None, "people.alias_file", f"and {names.problem_count - len(names.problems)} more lines")


def keys(settings: Settings, store: Store | None) -> Iterator[Finding]:
    """Check the keys that sign links."""
    where = "settings" if settings.links.keys else str(keys_path(settings))
    if not settings.links.keys and not keys_path(settings).exists():
        yield Finding(False, "link keys", f"{where} does not exist yet: run quarantine init as the service's user")
        return
    if not settings.links.keys and not keys_path(settings).is_absolute():
        yield Finding(
            None,
            "link keys",
            f"{where} is relative to the current folder: set links.keys_file to an absolute path, or service and "
            "commands may use different keys",
        )
    links = make_links(settings)
    if store is not None:
        agree_on_keys(store, links, record=False)
    yield Finding(True, "link keys", f"{len(links.fingerprints())} in {where}")


def mail_server(topic: str, use: str, url: str) -> Iterator[Finding]:
    """Check that a mail server replies, with TLS and login as for sending."""
    try:
        yield Finding(True, topic, f"{Relay(url).probe()} ({use})")
    except (RelayDeferred, RelayRefused) as error:
        yield Finding(False, topic, f"{error} ({use})")
