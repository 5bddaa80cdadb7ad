"""500 slow clients at each listener (20): how long others wait. The short form for the socket of uWSGI is in
tests/system/test_socket.py."""

from __future__ import annotations

import asyncio
import http.client
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial

import pytest

from portal.stores import open_store
from portal.web.pages import sha256
from tests.builders import ALICE
from tests.faults.conftest import Report
from tests.faults.serving import META, percentile_99, repeating
from tests.system.services import Portal, folder, wait_for
from tests.system.test_socket import silent

pytestmark = [pytest.mark.faults, pytest.mark.alone, pytest.mark.timeout(600)]

_CLIENTS = 500
_SECONDS = 30  # several times Nginx's limits of 5 s for a header and 10 s for a body
_OTHER = ("127.0.0.2", 0)  # the address of the clients who wait; Nginx limits connections by address
_HEADER = b"GET /quarantine/sign-in HTTP/1.1\r\nHost: x\r\n"
_BODY = b"POST /quarantine/sign-in HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n"


@pytest.fixture
def portal(store_url: str) -> Iterator[Portal]:
    """A portal behind Nginx. Alice is signed in."""
    with folder() as home, Portal(home / "portal", store_url, {}).running() as running:
        wait_for(lambda: running.log.read_text().count("WSGI app 0") == 4, details=running.log.read_text)
        store = open_store(store_url)
        store.sign_ins.start_session(sha256("session"), ALICE, datetime.now(UTC))
        store.close()
        yield running


def trusting() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def request(portal: Portal, number: int) -> int:
    """Request alice's list, or post a message as Rspamd does, in turns. Return the status."""
    if number % 4 < 2:
        connection = http.client.HTTPConnection("127.0.0.1", portal.nginx.exporter, timeout=60, source_address=_OTHER)
        mail = b"Subject: Offer %d\r\n\r\nBuy %d!\r\n" % (number, time.monotonic_ns())
        connection.request("POST", "/", mail, META)
    else:
        connection = http.client.HTTPSConnection(
            "127.0.0.1", portal.nginx.https, timeout=60, source_address=_OTHER, context=trusting()
        )
        connection.request("GET", "/quarantine/", headers={"Cookie": "__Host-quarantine-session=session"})
    try:
        answer = connection.getresponse()
        answer.read()
        return answer.status
    finally:
        connection.close()


@contextmanager
def slow(port: int, start: bytes, more: bytes, context: ssl.SSLContext | None = None) -> Iterator[list[int]]:
    """Keep `_CLIENTS` connections open during the block, and yield a list with the number opened so far.

    Each sends the start of a request, then a few octets a second. It opens another one when the server closes it.
    """
    opened, ended = [0], threading.Event()

    async def be_slow() -> None:
        while not ended.is_set():
            with suppress(OSError):
                reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
                opened[0] += 1
                writer.write(start)
                while not ended.is_set():
                    writer.write(more)
                    await writer.drain()
                    with suppress(TimeoutError):
                        if not await asyncio.wait_for(reader.read(1 << 16), 1):
                            break
                writer.transport.abort()

    async def be_many() -> None:
        await asyncio.gather(*(be_slow() for _ in range(_CLIENTS)))

    thread = threading.Thread(target=lambda: asyncio.run(be_many()))
    thread.start()
    try:
        yield opened
    finally:
        ended.set()
        thread.join()


@pytest.mark.parametrize(
    "attack", ["headers at 443", "bodies at 443", "handshakes at 443", "headers at 80", "headers at 8081"]
)
def test_others_are_answered_while_nginx_has_500_slow_clients(portal: Portal, attack: str, report: Report) -> None:
    what, _, where = attack.partition(" at ")
    port = {"443": portal.nginx.https, "80": portal.nginx.http, "8081": portal.nginx.exporter}[where]
    context = trusting() if where == "443" and what != "handshakes" else None
    start, more = {
        "headers": (_HEADER, b"X-More: x\r\n"),
        "bodies": (_BODY, b"x"),
        "handshakes": (b"\x16\x03\x01\x02\x00", b"\x01"),  # the start of a ClientHello of 512 octets
    }[what]
    with slow(port, start, more, context) as opened:
        wait_for(lambda: opened[0] >= _CLIENTS)
        with repeating(partial(request, portal)) as answered:
            time.sleep(_SECONDS)
        open_now = opened[0]
    slow_seconds = percentile_99(answered)
    report(
        f"20 slow {what} at Nginx's listener on {where}",
        f"{_CLIENTS} clients for {_SECONDS} s, {open_now:,} connections; of {len(answered):,} other requests "
        f"99 % answered within {slow_seconds * 1000:.0f} ms, the slowest after {longest(answered) * 1000:.0f} ms",
    )
    assert {status for status, _ in answered} == {200}
    assert slow_seconds < 1


def longest(answered: list[tuple[int, float]]) -> float:
    return max(seconds for _, seconds in answered)


def test_a_post_behind_500_silent_connections_at_uwsgis_socket_is_answered(portal: Portal, report: Report) -> None:
    workers = portal.pids("uwsgi")
    with silent(portal.uwsgi, _CLIENTS), repeating(partial(request, portal)) as behind:
        time.sleep(12)  # each occupies one of 64 threads for a second
    with repeating(partial(request, portal)) as after:
        time.sleep(_SECONDS)
    report(
        "20 silent connections at uWSGI's socket, which only Nginx's user can open",
        f"{_CLIENTS} connections of Nginx's user: a request after them waits {longest(behind):.1f} s; of "
        f"{len(after):,} later ones 99 % answered within {percentile_99(after) * 1000:.0f} ms",
    )
    assert {status for status, _ in behind + after} == {200}
    assert longest(behind) < 10  # longer, and Nginx answers 504
    assert percentile_99(after) < 1
    assert portal.pids("uwsgi") == workers
