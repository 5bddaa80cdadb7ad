"""The memory of one worker while it holds and releases mails of 50 MB."""

from __future__ import annotations

import base64
import http.client
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

from bench import load
from bench.rig import Effort, Row, Served, own_folder, postgres, print_progress, served
from portal.keys import read_keys
from portal.model.links import Action, Links
from portal.model.message import DeliveryId, State
from portal.stores import Store, open_store

MAIL_BYTES, MAILS = 50 << 20, 10
ORIGIN = "http://127.0.0.1:8080"  # the default of public_url
BOUNDARY = "bench-boundary"
END = b"\r\n.\r\n"
Post = Callable[[bytes], tuple[dict[str, str], list[bytes]]]  # from a mail to headers and the pieces of a body


def memory(effort: Effort) -> list[Row]:
    """Measure RSS by the high-water mark of the kernel, which is reset before each mail."""
    with own_folder() as path:
        rows = _rows("files", f"files://{path}/store", path / "links.keys", effort)
    with own_folder() as path, postgres() as dsn:
        open_store(dsn, create=True).close()
        return rows + _rows("PostgreSQL", dsn, path / "links.keys", effort)


def _rows(name: str, url: str, keys: Path, effort: Effort) -> list[Row]:
    rows, number = [], 0
    noise = base64.b64encode(os.urandom(MAIL_BYTES * 3 // 4))
    text = b"\r\n".join(noise[at : at + 76] for at in range(0, len(noise), 76))[:MAIL_BYTES]
    environment = {"QUARANTINE_STORE__URL": url, "QUARANTINE_LINKS__KEYS_FILE": str(keys)}
    with (
        sink() as received,
        served(
            "portal.wsgi:application", workers=1, QUARANTINE_RELAY__URL=f"smtp://127.0.0.1:{received.port}",
            **environment,
        ) as site,
    ):  # fmt: skip
        links = Links(read_keys(keys, create=True), f"{ORIGIN}/quarantine", timedelta(days=14))
        store = open_store(url)
        worker = _worker(site)
        idle = _high_water(worker)
        for post in (_default, _multipart):
            peaks = []
            for _ in range(effort.of(MAILS)):
                number += 1
                Path(f"/proc/{worker}/clear_refs").write_text("5")  # proc(5): resets the high-water mark
                _hold_and_release(site, store, links, post, load.mail_head(number) + text)
                peaks.append(_high_water(worker))
            if received.mails != number:
                raise RuntimeError(f"{received.mails} of {number} mails arrived")
            kind, growth = post.__name__.lstrip("_"), peaks[-1] - peaks[0]
            print_progress(f"{kind}: {' '.join(f'{peak:.0f}' for peak in peaks)} MB")
            rows.append(
                Row(
                    f"memory of a worker with mails of 50 MB, `{kind}`, {name}, MB",
                    f"{max(peaks):.0f} ({growth:+.1f} from first to last)", f"{idle:.0f} idle", max(peaks) / idle,
                    "≤ 120 MB",
                )
            )  # fmt: skip
        store.close()
    return rows


def _default(mail: bytes) -> tuple[dict[str, str], list[bytes]]:
    return {f"X-Rspamd-{name}": value for name, value in load.METADATA.items()} | {"Content-Type": "text/plain"}, [mail]


def _multipart(mail: bytes) -> tuple[dict[str, str], list[bytes]]:
    fields = {
        **load.METADATA,
        "rcpt": json.loads(load.METADATA["rcpt"]),
        "symbols": json.loads(load.METADATA["symbols"]),
    }
    head = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="metadata"\r\nContent-Type: application/json\r\n\r\n'
        f"{json.dumps(fields)}\r\n--{BOUNDARY}\r\n"
        'Content-Disposition: form-data; name="message"; filename="message.eml"\r\n'
        "Content-Type: message/rfc822\r\n\r\n"
    )
    pieces = [head.encode(), mail, f"\r\n--{BOUNDARY}--\r\n".encode()]
    return {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}, pieces


def _hold_and_release(site: Served, store: Store, links: Links, post: Post, mail: bytes) -> None:
    headers, pieces = post(mail)
    answer = _request(site, "/quarantine/", headers | {"Content-Length": str(sum(map(len, pieces)))}, pieces, 200)
    id = UUID(json.loads(answer)["id"])
    form = {"Origin": ORIGIN, "Content-Type": "application/x-www-form-urlencoded", "Content-Length": "9"}
    token = links.token(Action.RELEASE, id, 0, datetime.now(UTC))
    _request(site, f"/quarantine/link/{token}/", form, [b"pressed=1"], 303)
    delivery = store.deliveries.get(DeliveryId(id, 0))
    if delivery.state is not State.RELEASED or delivery.message.size_bytes != len(mail):
        raise RuntimeError(f"{delivery.state} {delivery.reason}")


def _request(site: Served, path: str, headers: dict[str, str], pieces: list[bytes], status: int) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", site.port, timeout=60)
    connection.request("POST", path, iter(pieces), headers)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    if answer.status != status:
        raise RuntimeError(f"{path} answered {answer.status}: {body[:300]!r}")
    return body


def _worker(site: Served) -> int:
    children = Path(f"/proc/{site.master}/task/{site.master}/children").read_text().split()
    if len(children) != 1:
        raise RuntimeError(f"uWSGI has {len(children)} children instead of one worker")
    return int(children[0])


def _high_water(process: int) -> float:
    """Return the maximum of RSS since the mark was reset, in MB (10^6 bytes); proc(5)."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6


class _Sink:
    """A server that accepts mail as fast as it comes and discards it."""

    def __init__(self, listener: socket.socket) -> None:
        self.port = listener.getsockname()[1]
        self.mails = 0
        self._listener = listener

    def serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as commands:
            connection.sendall(b"220 sink\r\n")
            for line in commands:
                verb = line[:4].upper()
                if verb == b"EHLO":
                    connection.sendall(b"250-sink\r\n250 8BITMIME\r\n")
                elif verb == b"DATA":
                    connection.sendall(b"354 go on\r\n")
                    tail = b""
                    while not tail.endswith(END):  # one mail at a time: the client sends nothing after its end
                        piece = commands.read1(1 << 20)
                        if not piece:
                            return
                        tail = (tail + piece)[-len(END) :]
                    self.mails += 1
                    connection.sendall(b"250 taken\r\n")
                else:
                    connection.sendall(b"221 bye\r\n" if verb == b"QUIT" else b"250 ok\r\n")


@contextmanager
def sink() -> Iterator[_Sink]:
    """Run an SMTP server in a thread."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taking = _Sink(listener)
        threading.Thread(target=taking.serve, daemon=True).start()
        yield taking
        listener.shutdown(socket.SHUT_RDWR)  # wakes accept()
