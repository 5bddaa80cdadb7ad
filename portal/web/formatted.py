"""The frame in which a message is shown as its sender formatted it.

Three layers protect the reader, each by itself: a restricted process cleaned the HTML (`reading.formatted`), the answer
has a policy of its own, and the page's frame is sandboxed. The last two hold even if that process was taken over.
"""

from __future__ import annotations

from typing import Any

from bottle import HTTPResponse
from markupsafe import Markup

from portal.model.errors import BodyDamaged, BodyMissing, Busy
from portal.model.message import Delivery
from portal.model.text import N_
from portal.reading import read_formatted
from portal.web.auth.session import Sessions
from portal.web.message import MessagePages
from portal.web.pages import Pages
from portal.web.request import Request
from portal.web.views import SANDBOX

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src data:; style-src 'unsafe-inline'; form-action 'none'; "
    f"base-uri 'none'; frame-ancestors 'self'; sandbox {SANDBOX}",
    "Referrer-Policy": "no-referrer",
    "X-DNS-Prefetch-Control": "off",
}

_BUSY = N_("Too many messages are being opened right now. Reload this page in a few seconds.")


class FormattedMessages:
    """`/messages/ID/html`."""

    def __init__(self, pages: Pages, sessions: Sessions, messages: MessagePages) -> None:
        self._pages = pages
        self._sessions = sessions
        self._messages = messages

    def show(self, request: Request, id: str) -> HTTPResponse:
        """GET /messages/ID/html: answer the frame. Anything else than a frame gets a file of plain text."""
        recipient = self._sessions.of(request).recipient
        return self.frame(request, self._messages.delivery(recipient, id), recipient)

    def frame(self, request: Request, delivery: Delivery, reader: str) -> HTTPResponse:
        """Return the answer with a message. ``reader``: identity of the person who reads it."""
        self._messages.views.check_formatted(request, delivery)
        response = self._pages.page(request, "frame", **self._values(delivery, reader))
        for name, value in _HEADERS.items():
            response.set_header(name, value)
        if not request.is_for_frame:
            response.set_header("Content-Type", "text/plain; charset=utf-8")
            response.set_header("Content-Disposition", 'attachment; filename="message.txt"')
        return response

    def _values(self, delivery: Delivery, reader: str) -> dict[str, Any]:
        if not self._pages.previews.acquire(blocking=False):
            return {"problem": _BUSY}
        try:
            found = read_formatted(self._pages.parts.store.messages.body(delivery.id), reader)
        except Busy:
            return {"problem": _BUSY}
        except (BodyDamaged, BodyMissing):
            return {"problem": N_("This message is no longer available.")}
        finally:
            self._pages.previews.release()
        if found is None:
            return {
                "problem": N_(
                    "The formatting of this message takes too long or cannot be read. Its text is still available."
                )
            }
        if not found.html.strip():
            return {"problem": N_("This message has no formatting. Its text is all there is.")}
        return {"problem": "", "made": Markup(found.html), "remote": found.remote, "cut": found.cut}  # noqa: S704
