"""The store stops between the mail server's 250 and its record: a process that lives repeats nothing.

Hosts run under uWSGI with the shipped uwsgi.ini, digest process included.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest

from portal.assemble import Parts, assemble
from portal.model.errors import QuarantineError
from portal.model.links import Action
from portal.model.message import DeliveryId, State
from tests.builders import ALICE, BY_LINK, hold, now
from tests.conftest import MakeSettings
from tests.digest.test_process import environ
from tests.faults.conftest import Report, Serve
from tests.faults.serving import ROOT, OwnPostgres, Portal, children, command
from tests.faults.test_kills import full
from tests.smtp_server import SmtpServer

PATIENCE_SECONDS = 150  # the lease of a claim whose commit was not answered, and some


@pytest.fixture
def server() -> Iterator[SmtpServer]:
    with SmtpServer() as running:
        yield running


@pytest.fixture
def parts(make_settings: MakeSettings, own_postgres: OwnPostgres, keys: Path) -> Iterator[Parts]:
    opened = assemble(make_settings(own_postgres.url, links__keys_file=keys), create=True)
    yield opened
    opened.store.close()


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """The links.keys of all hosts."""
    return tmp_path / "links.keys"


def host(serve: Serve, parts: Parts, server: SmtpServer, lease_seconds: int = 90) -> Portal:
    keys = str(parts.settings.links.keys_file)
    urls = {"QUARANTINE_MAIL__URL": server.url, "QUARANTINE_RELAY__URL": server.url}
    place = parts.settings.store.url.get_secret_value()
    lease = {"STRIKE_LEASE": str(lease_seconds), "PYTHONPATH": str(Path(__file__).parent / "strike")}
    return serve(place, workers=1, QUARANTINE_LINKS__KEYS_FILE=keys, **urls, **lease)


def log_of(portal: Portal) -> str:
    return portal.log.read_text("utf-8", "replace")


def digest_process(portal: Portal) -> list[int]:
    return [pid for pid in children(portal.process.pid) if "quarantine-digest" in command(pid)]


def wait_until(is_so: Callable[[], bool], seconds: float = PATIENCE_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while True:
        with suppress(QuarantineError):
            if is_so():
                return
        assert time.monotonic() < deadline
        time.sleep(0.1)


def halt_between(
    server: SmtpServer, postgres: OwnPostgres, kinds: set[bytes], prepared: threading.Event | None = None
) -> threading.Event:
    """Stop PostgreSQL when mails to recipients of all these kinds wait for their 250, and answer them afterwards.

    ``prepared``: it is not stopped before this is set.
    """
    arrived, are_there, gone, halting = set[bytes](), threading.Event(), threading.Event(), threading.Lock()

    def note_kind(line: bytes) -> None:
        arrived.update(kind for kind in kinds if kind in line)
        if arrived == kinds:
            are_there.set()

    def halt(_line: bytes) -> None:
        are_there.wait(20)
        if prepared is not None:
            prepared.wait(20)
        time.sleep(0.2)
        with halting:
            if not gone.is_set():
                postgres.halt()
            gone.set()

    server.script.update(RCPT=note_kind, BODY=halt)
    return gone


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("outage_seconds", "lease_seconds"), [(17, 15), full(5, 90, seconds=600), full(100, 90, seconds=600)]
)
def test_hosts_that_live_send_nothing_twice_after_an_outage(
    serve: Serve,
    own_postgres: OwnPostgres,
    parts: Parts,
    server: SmtpServer,
    outage_seconds: int,
    lease_seconds: int,
    report: Report,
) -> None:
    """Also if it is longer than the leases, and one host needs some seconds longer than the other to come back."""
    readers, owners = ([f"{kind}{each}@example.org" for each in range(60)] for kind in ("reader", "owner"))
    prepared = threading.Event()
    gone = halt_between(server, own_postgres, {b"reader", b"owner"}, prepared)
    hosts = [host(serve, parts, server, lease_seconds) for _ in range(2)]
    keys = [DeliveryId(hold(parts.store, recipients=[owner]).id, 0) for owner in owners]
    for reader in readers:
        hold(parts.store, recipients=[reader])
        parts.store.recipients.schedule(reader, now() - timedelta(minutes=1))
    for key in keys:
        parts.actions.queue_release(*key, BY_LINK)
    prepared.set()
    assert gone.wait(60)
    time.sleep(outage_seconds / 2)
    slow = next(pid for each in hosts if "kept in memory" in log_of(each) for pid in digest_process(each))
    os.kill(slow, signal.SIGSTOP)
    time.sleep(outage_seconds / 2)
    own_postgres.start()
    time.sleep(11)  # the heartbeat of the other one is up to 10 s after the return
    os.kill(slow, signal.SIGCONT)
    wait_until(
        lambda: (
            {parts.store.deliveries.get(key).state for key in keys} == {State.RELEASED}
            and all(parts.store.recipients.get(reader).news_since is None for reader in readers)
        )
    )
    found = Counter(recipient for mail in server.mails for recipient in mail.recipients)
    logs = "".join(map(log_of, hosts))
    late = re.findall(r"recorded later: (digest|release).*", logs)
    report(
        "6 PostgreSQL stopped between the mail server's 250 and its record",
        f"{outage_seconds} s, two hosts: {len(found)} digests and releases, {found.total() - len(found)} twice",
        "postgres",
    )
    assert {*late} == {"digest", "release"}
    assert "lost" not in logs
    assert found == Counter([*readers, *owners])
    assert sum(each.tracebacks() for each in hosts) == 0


@pytest.mark.parametrize("is_back", [True, False], ids=["back", "away"])
def test_a_worker_that_is_stopped_records_what_it_knows_or_names_it(
    serve: Serve, own_postgres: OwnPostgres, parts: Parts, server: SmtpServer, is_back: bool
) -> None:
    portal = host(serve, parts, server)
    held = hold(parts.store)
    halt_between(server, own_postgres, {b"RCPT"})
    link = parts.links.token(Action.RELEASE, held.id, 0, now())
    portal.request("POST", f"/quarantine/link/{link}/", b"pressed=1", FORM)
    assert [mail.recipients for mail in server.mails] == [[ALICE]]
    time.sleep(4)  # uWSGI calls nothing in a busy worker, and after its answer a request waits for the store again
    portal.process.terminate()
    if is_back:
        time.sleep(1)
        own_postgres.start()
    portal.process.wait(30)
    log = log_of(portal)
    own_postgres.start()
    is_recorded = parts.store.deliveries.get(DeliveryId(held.id, 0)).state is State.RELEASED
    assert (is_recorded, f"lost, may be sent again: release id={held.id}" in log) == (is_back, not is_back), log[-3000:]


def test_a_command_waits_for_the_store_and_says_so(
    own_postgres: OwnPostgres, parts: Parts, server: SmtpServer, tmp_path: Path
) -> None:
    held = hold(parts.store)
    gone = halt_between(server, own_postgres, {b"RCPT"})
    process = subprocess.Popen(
        [sys.executable, "-m", "portal", "release", str(held.id), "--recipient", ALICE],
        cwd=ROOT,
        env=environ(own_postgres.url, tmp_path, server.url, QUARANTINE_RELAY__URL=server.url),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert gone.wait(60)
    time.sleep(3)
    own_postgres.start()
    out, err = process.communicate(timeout=70)
    assert f"waiting up to 60 s for the store, to record: release id={held.id}" in err
    assert "Traceback" not in err
    assert f"{held.id} {ALICE}: released" in out
    assert parts.store.deliveries.get(DeliveryId(held.id, 0)).state is State.RELEASED
    assert [mail.recipients for mail in server.mails] == [[ALICE]]


FORM = {"Content-Type": "application/x-www-form-urlencoded", "Sec-Fetch-Site": "same-origin", "Sec-Fetch-User": "?1"}
