"""The portal in this process on a real port, with a mail server that keeps its mail: for browsers that open a digest
and its links."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import SMTP
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from playwright.sync_api import BrowserContext, Page, Route

from digest import run
from portal.assemble import Parts
from tests.builders import ALICE
from tests.ports import free_port
from tests.smtp_server import SmtpServer
from tests.web_client import Site

INBOX = "http://webmail.test/"  # the site of the web mail, another one than the portal's, as in practice


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Silent(WSGIRequestHandler):
    def log_message(self, *_: Any) -> None: ...


class LocalSite(Site):
    """A listening site and its mail server: ``mail.mails`` are its digests and releases."""

    def __init__(self, parts: Parts, mail: SmtpServer) -> None:
        super().__init__(parts)
        self.mail = mail

    def digest(self, recipient: str = ALICE) -> EmailMessage:
        """Send a recipient's digest now and return the mail as it arrived."""
        summary = run.send_all(self.parts, self.now, recipient=recipient)
        assert [reader for reader, _ in summary.sent] == [recipient], summary
        return self.last_mail()

    def last_mail(self) -> EmailMessage:
        """Return the last mail that arrived."""
        read = message_from_bytes(self.mail.mails[-1].data, policy=SMTP.clone(utf8=True))
        assert isinstance(read, EmailMessage)
        return read

    def requests(self) -> list[tuple[str, str]]:
        """Return a list that grows with each answer but redirects: what it is for (`Sec-Fetch-Dest`), and the path."""
        found: list[tuple[str, str]] = []
        app = self.app

        def counting(environ: dict[str, str], start_response: Callable[..., Any]) -> Any:
            def start(status: str, *more: Any) -> Any:
                if not status.startswith("30"):
                    found.append((environ.get("HTTP_SEC_FETCH_DEST", ""), environ["PATH_INFO"]))
                return start_response(status, *more)

            return app(environ, start)

        self.app = counting  # type: ignore[assignment]
        return found


@contextmanager
def local_site(make_parts: Callable[..., Parts], **settings: Any) -> Iterator[LocalSite]:
    """Serve until the block ends. ``make_parts`` is the fixture, or a function with the same parameters."""
    port = free_port()
    with SmtpServer() as mail:
        urls = {"relay__url": mail.url, "mail__url": mail.url, "public_url": f"http://127.0.0.1:{port}/quarantine"}
        made = LocalSite(make_parts(**urls | settings), mail)
        # Look up the app for each request: a test may replace it by a wrapper.
        with make_server("127.0.0.1", port, lambda *arguments: made.app(*arguments), _Server, _Silent) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            try:
                yield made
            finally:
                server.shutdown()
                thread.join()


def part(mail: EmailMessage, kind: str) -> str:
    """Return the ``plain`` or ``html`` part of a mail."""
    body = mail.get_body((kind,))
    assert body is not None
    return str(body.get_content()).replace("\r\n", "\n")


def read_mail(page: Page, mail: EmailMessage) -> None:
    """Open the HTML part in a browser, as web mail does."""

    def answer(route: Route) -> None:
        route.fulfill(body=part(mail, "html"), content_type="text/html; charset=utf-8")

    page.route(INBOX, answer)
    page.goto(INBOX)


def sign_in(site: Site, context: BrowserContext, recipient: str = ALICE) -> None:
    """Give a browser a session of this recipient."""
    ((name, value),) = site.signed_in(recipient).cookies.items()
    cookie = {"name": name, "value": value, "domain": "127.0.0.1", "path": "/", "secure": True, "httpOnly": True}
    context.add_cookies([cookie])  # type: ignore[list-item]
