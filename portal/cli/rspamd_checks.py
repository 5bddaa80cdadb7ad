"""The checks of ``quarantine check`` about Rspamd: its configuration, as rspamadm prints it, and its virus scanner.

None changes anything.
"""

from __future__ import annotations

import base64
import grp
import itertools
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any

from portal.assemble import make_rspamd
from portal.cli.common import SOCKET
from portal.cli.finding import Finding
from portal.exporter import RULE_VERSION
from portal.model.clock import utc_now
from portal.model.errors import RspamdUnavailable
from portal.model.rule import BLOCKED, Effect
from portal.model.text import shown
from portal.people import Directory
from portal.policy.block_map import PROBED, compose, probe_of
from portal.scanning import HARMLESS, failures, scanners
from portal.settings import ExporterSettings, Settings
from portal.stores import Store, notes

_COPY = "copy the files of deploy/rspamd to /etc/rspamd/local.d/ and restart Rspamd"
_RSPAMADM_SECONDS = 30
_SCAN_SECONDS = 10.0
_WRITTEN_SECONDS = 10.0  # from a change of rules until the digest process has written the map
_MAP_SECONDS = 60.0  # from then until Rspamd uses it: 30 with the shipped files
PROBE = (
    "From: <check@{sender}>\r\nTo: <block-map@check.invalid>\r\nSubject: Check of the block map\r\n"
    "Message-ID: <check@{sender}>\r\nDate: Sat, 28 Nov 2026 12:00:00 +0000\r\n\r\nThis message was made by "
    "`quarantine check`.\r\n"
)
_NGINX_HINT = (
    "Nginx does not reach the portal. Check that the service is running and that quarantine.conf names its socket, "
    f"`server unix:{SOCKET};`"
)


class _NotTested(Exception):
    """rspamadm is missing, or did not answer in time."""


def rspamd(settings: Settings) -> Iterator[Finding]:
    """Check Rspamd's rules, its treatment of rejected messages, and that it always asks virus scanners."""
    try:
        rules, workers, options = map(_dumps, ("metadata_exporter", "worker", "options"))
    except _NotTested as problem:
        yield Finding(None, "exporter", f"{problem}, so Rspamd's rule was not tested")
        return
    yield from _exporter(rules)
    yield from _discarding(workers, settings.exporter)
    yield from _filters(options)


def scanner(settings: Settings) -> Iterator[Finding]:
    """Check that Rspamd scans held messages for viruses, with a harmless message. It is held and exported nowhere."""
    chosen, controller = settings.rspamd, make_rspamd(settings)
    if not chosen.scan_groups or chosen.scan == "off":
        return
    if controller is None:
        yield Finding(
            None,
            "virus scanner",
            "rspamd.url is not set: messages are not scanned after they were held, nor before a release, and allow "
            "rules let nothing through. If Rspamd has a virus scanner, set it to the controller's URL. With "
            'rspamd.scan = "off" allow rules act without a scan',
        )
        return
    try:
        names = scanners(controller, chosen.scan_groups, _SCAN_SECONDS)
        if not names:
            yield Finding(
                False,
                "virus scanner",
                f"Rspamd at {chosen.url} has none in the groups {', '.join(chosen.scan_groups)}, so all messages count "
                "as not scanned and are suspicious. Configure one in Rspamd's antivirus.conf, or remove rspamd.url",
            )
            return
        failed = failures(controller, HARMLESS, chosen.scan_groups, _SCAN_SECONDS)
    except RspamdUnavailable as error:
        yield Finding(False, "virus scanner", f"{chosen.url}: {error}. {_consequence(chosen.release_unscanned)}")
        return
    if failed:
        text = f"Rspamd's scanner failed: {'; '.join(failed)}. {_consequence(chosen.release_unscanned)}"
        yield Finding(False, "virus scanner", text)
    else:
        yield Finding(True, "virus scanner", f"Rspamd at {chosen.url} scans ({', '.join(sorted(names))})")


def block_rules(settings: Settings, store: Store, people: Directory) -> Iterator[Finding]:
    """Check that the file with the block rules is up to date, and that Rspamd uses it.

    Rspamd judges a message of the sender in the map's last line, which no mail has. It is held and exported nowhere.
    """
    path = settings.rspamd.block_map
    if path is None:
        if _has_blocks(store):
            text = "there are some, but Rspamd does not know them: set rspamd.block_map (docs/policy.md)"
            yield Finding(False, "block rules", text)
        return
    try:
        yield from _file(path, store, people)
        sender, written = probe_of(path), path.stat().st_mtime
    except OSError as error:
        yield Finding(False, "block rules", f"{path}: {error.strerror or error}")
        return
    url, controller = settings.rspamd.url, make_rspamd(settings)
    if controller is None:
        text = "rspamd.url is not set, so it was not tested whether Rspamd uses them"
        yield Finding(None, "block rules", text)
        return
    age = max(0.0, time.time() - written)
    try:
        verdict = controller.check(
            [message := PROBE.format(sender=sender).encode()],
            len(message),
            sender=f"check@{sender}",
            recipients=[PROBED],
            client_ip=None,
            seconds=_SCAN_SECONDS,
        )
    except RspamdUnavailable as error:
        yield Finding(False, "block rules", f"{url}: {error}")
        return
    if BLOCKED in {symbol.name for symbol in verdict.symbols}:
        yield Finding(True, "block rules", f"Rspamd at {url} uses the present map, {age:.0f} s old")
    elif age < _MAP_SECONDS:
        text = f"Rspamd at {url} does not use the present map yet, which is {age:.0f} s old: check again"
        yield Finding(None, "block rules", text)
    else:
        yield Finding(
            False,
            "block rules",
            f"Rspamd at {url} does not use the present map, which is {age:.0f} s old: it has an older one or "
            "none. Its log names the map and the error (docs/policy.md)",
        )


def _has_blocks(store: Store) -> bool:
    now = utc_now()
    found = itertools.chain(store.rules.active(now, recipients=False), store.rules.active(now, recipients=True))
    return any(rule.effect is Effect.BLOCK for rule in found)


def _file(path: Path, store: Store, people: Directory) -> Iterator[Finding]:
    """Compare the file with the rules. Raises OSError."""
    deadline = time.monotonic() + _WRITTEN_SECONDS
    while True:
        present = bytearray()
        summary = compose(store.rules, people, utc_now(), present.extend)
        is_current = path.read_bytes() == present
        if is_current or time.monotonic() > deadline:
            break
        time.sleep(1)
    state = path.stat()
    group = grp.getgrgid(state.st_gid).gr_name if state.st_gid in {each.gr_gid for each in grp.getgrall()} else "?"
    found = notes.block_map(socket.gethostname()).get(store)
    if not is_current:
        problem = f": {found.problem}" if found and found.problem else ", which the digest process of this host writes"
        yield Finding(False, "block rules", f"{path} does not have the last changes{problem}")
    elif summary.left_out:
        text = f"{summary.left_out} lines do not fit into {path}, or their addresses cannot be written there"
        yield Finding(False, "block rules", text)
    else:
        yield Finding(True, "block rules", f"{path}: {summary.lines} lines, readable by the group {group}")


def learning(settings: Settings) -> Iterator[Finding]:
    """Check that Rspamd can be trained. Nothing is learned."""
    if settings.rspamd.learn == "off":
        return
    controller = make_rspamd(settings)
    if controller is None:
        return  # not possible: the settings would be wrong
    where = f"Rspamd at {settings.rspamd.url}"
    try:
        if not controller.may_learn(_SCAN_SECONDS):
            text = "accepts rspamd.password for reading only: set it to enable_password of its worker-controller"
            yield Finding(False, "learning", f"{where} {text}")
        elif not controller.has_statistics(_SCAN_SECONDS):
            text = (
                "has no statistics, so it would learn nothing and answer that it did: configure Redis (local.d/"
                "redis.conf) and the classifier (local.d/classifier-bayes.conf)"
            )
            yield Finding(False, "learning", f"{where} {text}")
        else:
            yield Finding(True, "learning", f"{where} can learn (rspamd.learn = {settings.rspamd.learn})")
    except RspamdUnavailable as error:
        yield Finding(False, "learning", f"{settings.rspamd.url}: {error}")


def _consequence(release_unscanned: bool) -> str:
    return "Messages are released without a scan" if release_unscanned else "Releases wait for it"


def _exporter(dumps: Sequence[dict[str, Any]]) -> Iterator[Finding]:
    """Check the rules by posting an empty message, which is never held."""
    # UCL makes a list of several blocks with the same name.
    found = [dump.get("rules") for dump in dumps]
    blocks = [block for each in found for block in (each if isinstance(each, list) else [each])]
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
            f"Rspamd has no metadata_exporter rule: {_COPY}",
        )
    for name, rule in rules.items():
        yield from _exporter_rule(name, rule)


def _discarding(dumps: Sequence[dict[str, Any]], settings: ExporterSettings) -> Iterator[Finding]:
    """Check that no message is discarded without being held.

    With discard_on_reject, Rspamd's proxy answers 250 to a rejected message (src/libserver/milter.c), which is lost if
    the portal does not select it.
    """
    names = [name for dump in dumps for name, worker in dump.items() if _discards(worker)]
    lost = []
    if settings.hold_actions and "reject" not in settings.hold_actions:
        lost.append("exporter.hold_actions does not contain reject: add it")
    if settings.only_symbols:
        lost.append("exporter.only_symbols holds only some of the rejected messages: empty it")
    for name, text in itertools.product(names, lost):
        yield Finding(
            False,
            "discard_on_reject",
            f"{text}, or remove discard_on_reject from Rspamd's worker {name}: it answers 250 to rejected messages, "
            "and unless Rspamd has this version's exporter rule, those that are not held are lost",
        )


def _discards(worker: Any) -> bool:
    """Return whether a worker, or one of several of its type, discards rejected messages."""
    if isinstance(worker, list):
        return any(map(_discards, worker))
    return isinstance(worker, dict) and bool(worker.get("discard_on_reject"))  # true, or a number


def _filters(dumps: Sequence[dict[str, Any]]) -> Iterator[Finding]:
    """Check that Rspamd asks virus scanners also about messages that have reached the reject score."""
    if dumps and not any(dump.get("check_all_filters") for dump in dumps):
        yield Finding(
            False,
            "check_all_filters",
            "not set: Rspamd 3.10 and later do not ask virus scanners about messages whose score is high enough, so "
            "viruses are held as spam. Add `check_all_filters = true;` to /etc/rspamd/local.d/options.inc and restart "
            "Rspamd",
        )


def _dumps(section: str) -> list[dict[str, Any]]:
    """Return a section of Rspamd's configuration, as one object for each of its blocks. Raises _NotTested."""
    rspamadm = shutil.which("rspamadm")
    if rspamadm is None:
        raise _NotTested("rspamadm is not on this host")
    try:
        command = [rspamadm, "configdump", "--json", section]
        done = subprocess.run(command, capture_output=True, timeout=_RSPAMADM_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise _NotTested(f"rspamadm did not answer within {_RSPAMADM_SECONDS} s") from None
    text, found = done.stdout.decode("utf-8", "replace").lstrip(), []
    decoder = json.JSONDecoder()
    while text:
        try:
            value, end = decoder.raw_decode(text)
        except ValueError:
            break
        found.append(value)
        text = text[end:].lstrip()
    return [value for value in found if isinstance(value, dict)]


def _exporter_rule(name: str, rule: dict[str, Any]) -> Iterator[Finding]:
    topic, url = f"exporter rule {name}", str(rule["url"])
    if rule.get("backend") == "http" and rule.get("defer") is not True:
        yield Finding(False, topic, "defer = true is missing: mail is lost whenever the portal cannot be reached")
    if rule.get("backend") == "http":
        text = "is a stock one: allowed messages are held and released, and Rspamd knows no block rules"
        yield Finding(None, topic, text)
    elif rule.get("version") != RULE_VERSION:
        text = f"has version {rule.get('version', 'none')}, and this portal is made for {RULE_VERSION}: {_COPY}"
        yield Finding(False, topic, text)
    if rule.get("formatter", "default") in ("json", "structured", "email_alert"):
        yield Finding(
            False,
            topic,
            f'formatter = "{rule["formatter"]}" does not send the message: use "multipart", or "default" before 3.14.2',
        )
    if not url.startswith(("http://", "https://")):
        yield Finding(False, topic, f"url {url!r} is not an http or https URL")
        return
    headers = {"Content-Type": "text/plain", "X-Rspamd-action": "reject", "X-Rspamd-qid": "check"}
    if rule.get("user"):
        login = base64.b64encode(f"{rule['user']}:{rule.get('password', '')}".encode())
        headers["Authorization"] = f"Basic {login.decode()}"
    try:
        request = urllib.request.Request(url, b"", headers, method="POST")  # noqa: S310 - checked above
        with urllib.request.urlopen(request, timeout=5) as response:  # noqa: S310
            status = response.status
    except urllib.error.HTTPError as error:
        status = error.code
    except OSError as error:
        yield Finding(False, topic, f"{url} cannot be reached: {getattr(error, 'reason', error)}")
        return
    except (HTTPException, ValueError) as error:  # the port of a mail server, a malformed URL
        yield Finding(False, topic, f"{shown(url, 300)} is not the portal's address: {shown(str(error), 300)}")
        return
    text = {
        200: "answers",
        401: "answers 401: user or password differ from exporter.user and exporter.password",
        403: "answers 403: this host is not in exporter.allowed_networks",
        404: "answers 404: the path of the url is not the path of public_url",
        502: f"answers 502: {_NGINX_HINT}",
        504: f"answers 504: {_NGINX_HINT}",
    }.get(status, f"answers {status}")
    yield Finding(status == 200, topic, f"{url} {text}")
