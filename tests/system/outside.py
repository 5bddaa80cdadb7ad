"""A server that nothing may reach, and hostile HTML that wants to reach it."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.paths import DATA
from tests.system.browsers import Window

PAYLOADS = (DATA / "hostile-html.txt").read_text().splitlines()
QUIET = 2.5  # seconds; after this time without a request nothing more is expected


class Listener:
    """A web server. ``paths``: what was requested, ``connections``: how often something connected."""

    def __init__(self, documents: dict[str, tuple[str, dict[str, str]]]) -> None:
        self.paths: set[str] = set()
        self.connections = 0
        listener = self

        class Handler(BaseHTTPRequestHandler):
            def setup(self) -> None:
                listener.connections += 1
                super().setup()

            def do_GET(self) -> None:
                listener.paths.add(self.path)
                body, headers = documents.get(self.path, ("", {}))
                with suppress(ConnectionError):  # the page is gone
                    self.send_response(200)
                    for name, value in ({"Access-Control-Allow-Origin": "*"} | headers).items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(body.encode())

            do_POST = do_GET

            def log_message(self, *_: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self.server.server_port}"


@contextmanager
def listening(documents: dict[str, tuple[str, dict[str, str]]]) -> Iterator[Listener]:
    listener = Listener(documents)
    thread = threading.Thread(target=listener.server.serve_forever)
    thread.start()
    try:
        yield listener
    finally:
        listener.server.shutdown()
        thread.join()
        listener.server.server_close()


def payloads(outside: Listener) -> list[str]:
    """Return the hostile HTML. Each of them requests a path with its number, which says whether a script ran."""

    def filled(payload: str, number: int) -> str:
        values = {
            "js": f"new Image().src=`http://{outside.host}/js/{number}`",
            "load": f"http://{outside.host}/load/{number}",
            "host": outside.host,
            "path": f"load/{number}",
        }
        return re.sub("{(js|load|host|path)}", lambda name: values[name[1]], payload)

    return [filled(payload, number) for number, payload in enumerate(PAYLOADS)]


def framed(
    window: Window, documents: list[str], headers: dict[str, str], sandbox: str | None, outside: Listener
) -> set[str]:
    """Open a page with a frame for each document. Return the paths that were requested outside."""
    attribute = "" if sandbox is None else f' sandbox="{escape(sandbox)}"'
    frames = "".join(f'<iframe src="/{number}"{attribute}></iframe>' for number in range(len(documents)))
    page_and_frames = {"/": (f"<!doctype html><title>x</title>{frames}", {"Content-Type": "text/html"})}
    for number, document in enumerate(documents):
        page_and_frames[f"/{number}"] = (document, {"Content-Type": "text/html; charset=utf-8"} | headers)
    with listening(page_and_frames) as server:
        window.open(f"http://{server.host}/")
        before = -1
        while before < len(outside.paths) + len(server.paths):  # frames load one after the other
            before = len(outside.paths) + len(server.paths)
            window.pause(QUIET)
        assert window.address() == f"http://{server.host}/" or sandbox is None
        window.open("about:blank")
    return set(outside.paths)


def numbers(paths: set[str], kind: str = "") -> set[str]:
    """Return the numbers of the payloads that fired."""
    return {path.split("/")[2] for path in paths if path.startswith(f"/{kind}")}
