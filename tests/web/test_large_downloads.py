"""Downloads of 50 MB under the real uWSGI: whole or visibly broken off, with bounded memory."""

from __future__ import annotations

import base64
import hashlib
import http.client
import os
import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlencode

import pytest

from portal.model.message import Scan, ScanOutcome, Tier
from portal.stores import Store, open_store
from portal.stores.records import Held
from tests.builders import ALICE, hold
from tests.ports import free_port
from tests.system.services import wait_for
from tests.web.conftest import Start
from tests.web_client import ORIGIN, ROOT

SECRET = "s" * 32
MOST_KB = 24 << 10  # more than before, of a worker: much less than the message
pytestmark = pytest.mark.slow


@dataclass
class Portal:
    """A running portal, and its store."""

    folder: Path
    port: int
    store: Store

    def request(self, method: str, path: str, form: dict[str, str] | None = None) -> tuple[str | None, bytes]:
        """Return Content-Length and body of an answer with status 200. Raises IncompleteRead."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        headers = {"Cookie": f"__Host-quarantine-session={SECRET}", "Origin": ORIGIN}
        headers["Content-Type"] = "application/x-www-form-urlencoded"
        with closing(connection):
            connection.request(method, f"{ROOT}{path}", urlencode(form or {}) if form else None, headers)
            response = connection.getresponse()
            assert response.status == 200
            return response.getheader("Content-Length"), response.read()

    def download(self, held: Held, **form: str) -> tuple[str | None, bytes]:
        token = re.search(r'name="form_token" value="([^"]+)"', self.request("GET", "/rules")[1].decode())
        assert token
        return self.request("POST", f"/messages/{held.id}/download", {"form_token": token[1], **form})

    def workers(self) -> list[Path]:
        """Return the folders in /proc of uWSGI's processes."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if (process / "cwd").resolve() == self.folder and b"uwsgi.ini" in (process / "cmdline").read_bytes():
                    found.append(process)
            except OSError:
                continue
        assert found
        return found

    def peak_kb(self) -> int:
        """Return the largest peak of memory among the workers since `forget_peaks`."""
        status = [(process / "status").read_text() for process in self.workers()]
        return max(int(peak) for text in status for peak in re.findall(r"VmHWM:\s+(\d+)", text))

    def forget_peaks(self) -> None:
        for process in self.workers():
            (process / "clear_refs").write_text("5")  # proc(5)


@pytest.fixture
def portal(start: Start) -> Iterator[Portal]:
    port = free_port()
    folder = start("--http-socket", f"127.0.0.1:{port}")
    store = open_store(f"files:{folder}/store")
    store.sign_ins.start_session(hashlib.sha256(SECRET.encode()).digest(), ALICE, datetime.now(UTC))
    yield Portal(folder.resolve(), port, store)
    store.close()


def test_fifty_megabytes_are_whole_and_take_little_memory(portal: Portal) -> None:
    content = os.urandom(36 << 20)
    data = b"Content-Type: a/b; name=a\r\nContent-Transfer-Encoding: base64\r\n\r\n" + base64.encodebytes(content)
    assert len(data) > 50_000_000
    held = hold(portal.store, data)
    now = datetime.now(UTC)
    portal.store.messages.record_scan(held.id, Scan(ScanOutcome.CLEAN, now), Tier.SPAM, now)
    small = hold(portal.store, b"Subject: x\r\n\r\nsmall\r\n")
    assert portal.download(small, warned="spam")[1] == b"Subject: x\r\n\r\nsmall\r\n"
    portal.forget_peaks()
    before = portal.peak_kb()
    for form, expected in (({}, data), ({"part": "1"}, content)):
        assert portal.download(held, **form) == (str(len(expected)), expected)
    assert portal.peak_kb() - before < MOST_KB


def test_a_message_that_is_damaged_at_its_end_is_no_whole_download(portal: Portal) -> None:
    held = hold(portal.store, b"Subject: x\r\n\r\n" + os.urandom(8 << 20))
    path = next(portal.folder.rglob(f"{held.id}.eml.zst"))
    octets = bytearray(path.read_bytes())
    octets[-1000] ^= 1
    path.write_bytes(octets)
    with pytest.raises(http.client.IncompleteRead):
        portal.download(held, warned="spam")
    # The worker logs it when the client has seen the end.
    wait_for(lambda: f"download broken off id={held.id}" in (portal.folder / "log").read_text())
