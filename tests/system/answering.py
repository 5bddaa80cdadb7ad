"""A portal of the tests that answers posts of Rspamd as a test says, and keeps them."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any


@dataclass
class Post:
    """One post: its headers, with names in lower case, and the message."""

    headers: dict[str, str]
    message: bytes

    @property
    def recipients(self) -> list[str]:
        """The posted recipients."""
        found = json.loads(self.headers["x-rspamd-rcpt"])
        assert isinstance(found, list)
        return found

    @property
    def action(self) -> str:
        """The posted action."""
        return self.headers["x-rspamd-action"]

    @property
    def symbols(self) -> list[str]:
        """The names of the posted symbols."""
        return [symbol["name"] for symbol in json.loads(self.headers["x-rspamd-symbols"])]


@dataclass
class AnsweringPortal:
    """Answers until the block ends. Tests change ``status`` and ``answer``; ``posts`` are in order of arrival."""

    status: int = 200
    answer: Callable[[Post], Any] = lambda _: {"status": "held", "id": "0"}  # its JSON, or bytes
    posts: list[Post] = field(default_factory=list)

    def __enter__(self) -> AnsweringPortal:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.01,)).start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()

    def delivers(self, *recipients: str) -> None:
        """Let the next answers name these recipients."""
        self.answer = lambda _: {"status": "held", "id": "0", "deliver": list(recipients)}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        portal = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:  # noqa: N802 - the name that http.server calls
                message = self.rfile.read(int(self.headers["Content-Length"]))
                post = Post({name.lower(): value for name, value in self.headers.items()}, message)
                portal.posts.append(post)
                answer = portal.answer(post)
                body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(portal.status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        return Handler
