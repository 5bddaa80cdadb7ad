"""A controller of Rspamd with a virus scanner. The answers are those of Rspamd 3.4 with ClamAV."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

import pytest

VIRUS = b"X-TINY-VIRUS-OF-THE-TESTS"
ARCHIVE = b"X-ENCRYPTED-ARCHIVE-OF-THE-TESTS"
UNREADABLE = b"X-LIMITS-EXCEEDED-OF-THE-TESTS"
FOUND = {"CLAM_VIRUS": ["Quarantine.Test.Signature.UNOFFICIAL"]}
SCANNERS = ("CLAM_VIRUS", "CLAM_VIRUS_FAIL", "CLAM_VIRUS_ENCRYPTED", "CLAM_VIRUS_MACRO")


def wait_long_for_scans(monkeypatch: pytest.MonkeyPatch) -> None:
    """Allow a minute for each scan: on a busy machine even this server's answers take seconds."""
    for limit in (
        "portal.ingest.POST_SECONDS",
        "portal.actions.RELEASE_SECONDS",
        "portal.cli.scan.BACKGROUND_SECONDS",
        "digest.housekeeping.BACKGROUND_SECONDS",
    ):
        monkeypatch.setattr(limit, 60.0)


class RspamdServer:
    """Answers until the block ends. Tests change its attributes; ``scans`` has the requests, oldest first."""

    def __init__(self) -> None:
        self.scanners: tuple[str, ...] = SCANNERS
        self.symbols: Mapping[str, list[str]] | None = None  # of every scan; None: what the message contains
        self.status = 200
        self.password = ""
        self.reply: bytes | None = None  # instead of JSON
        self.skips = False
        self.drip = threading.Event()  # set: answers come octet by octet
        self.hang = threading.Event()
        self.hang.set()  # cleared: requests wait until it is set again
        self.scans: list[tuple[dict[str, str], bytes]] = []
        self.listed = 0  # requests for /symbols
        self.counters: Any = [{"symbol": "EXPORT_METADATA_QUARANTINE"}, {"symbol": "BAYES_SPAM"}]
        self.verdict: Mapping[str, Any] = {  # of all filters; `symbols` are added
            "is_skipped": False,
            "score": 12.5,
            "required_score": 15.0,
            "action": "add header",
        }
        self.check_reply: bytes | None = None  # to requests for a verdict, instead of JSON
        self.verdict_symbols: Mapping[str, Any] = {}  # name → score
        self.checks: list[tuple[list[tuple[str, str]], bytes]] = []  # requests for a verdict, with all header fields
        self.learn_status: int | tuple[int, str] = 200  # with the reason phrase
        self.learn_hangs = False
        self.learn_raw = b""  # instead of an answer
        self.learned: list[tuple[str, list[tuple[str, str]], bytes]] = []  # path, all header fields, message
        self.auth: Any = {"auth": "ok", "read_only": False}
        self.stat: Any = {"statfiles": [{"symbol": "BAYES_SPAM"}]}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> RspamdServer:
        threading.Thread(target=self._server.serve_forever, args=(0.01,)).start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.hang.set()
        self.drip.clear()
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        rspamd = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:  # noqa: N802 - the name that http.server calls
                rspamd.listed += 1
                rules = [{"symbol": name, "weight": 0.0, "description": ""} for name in rspamd.scanners]
                others = [{"symbol": "BAYES_SPAM", "weight": 5.1, "description": "Message probably spam"}]
                groups = [{"group": "antivirus", "rules": rules}, {"group": "statistics", "rules": others}]
                self._answer(
                    {"/symbols": groups, "/counters": rspamd.counters, "/auth": rspamd.auth, "/stat": rspamd.stat}.get(
                        self.path, {"error": "unknown"}
                    )
                )

            def do_POST(self) -> None:  # noqa: N802
                body = self.rfile.read(int(self.headers["Content-Length"]))
                rspamd.hang.wait(30)
                if self.path.startswith("/learn"):
                    status = rspamd.learn_status
                    code, reason = (status, None) if isinstance(status, int) else status
                    rspamd.learned.append((self.path, self.headers.items(), body))
                    if rspamd.learn_hangs:
                        time.sleep(1)
                        return
                    if rspamd.learn_raw:
                        self.wfile.write(rspamd.learn_raw)
                        return
                    self.send_response(code, reason)
                    self.end_headers()
                    self.wfile.write(b"" if code == 204 else (reason or "").encode())
                    return
                if "groups_enabled" not in self.headers.get("Settings", ""):
                    rspamd.checks.append((self.headers.items(), body))
                    named = {n: {"name": n, "score": s, "options": ["x"]} for n, s in rspamd.verdict_symbols.items()}
                    self._answer({**rspamd.verdict, "symbols": named}, rspamd.check_reply)
                    return
                rspamd.scans.append((dict(self.headers), body))
                symbols = rspamd.symbols
                if symbols is None:
                    symbols = FOUND if VIRUS in body else {}
                    symbols |= {SCANNERS[2]: []} if ARCHIVE in body else {}
                    symbols |= {SCANNERS[1]: ["Heuristics.Limits.Exceeded"]} if UNREADABLE in body else {}
                found = {n: {"name": n, "score": 0.0, "metric_score": 0.0, "options": o} for n, o in symbols.items()}
                self._answer({"is_skipped": rspamd.skips, "score": 0.0, "required_score": 15.0, "symbols": found})

            def _answer(self, value: Any, reply: bytes | None = None) -> None:
                status = rspamd.status
                if rspamd.password and self.headers.get("Password") != rspamd.password:
                    status, value = 401, {"error": "Unauthorized"}
                body = reply or rspamd.reply
                if body is None:
                    body = json.dumps(value).encode()
                if rspamd.drip.is_set():
                    self._drip()
                    return
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def _drip(self) -> None:
                with suppress(OSError):
                    while rspamd.drip.is_set():
                        self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                        time.sleep(0.05)

            def log_message(self, *_: object) -> None:
                pass

        return Handler
