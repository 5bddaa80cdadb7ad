"""The views of a message's content: its text, its headers, its source, and as its sender formatted it.

Recipients and staff see the same ones. The caller has checked that the reader may see the content.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from portal.model.attachments import DANGERS_IN_WORDS, KINDS_IN_WORDS
from portal.model.errors import BodyDamaged, BodyMissing, Busy, NotFound
from portal.model.message import Delivery, Tier
from portal.model.rights import Access
from portal.model.text import N_
from portal.reading import Preview, read, read_headers
from portal.reading.raw import raw_source
from portal.web.pages import Pages
from portal.web.request import Request
from portal.web.rows import Viewer, headers

# What a message in a frame may do: open a link in a new window, which is a window like any other.
SANDBOX = "allow-popups allow-popups-to-escape-sandbox"


class MessageViews:
    """The views of a message, by the last part of the address of its page; "" is the text."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages
        # The link's text, and what returns the values of the template `message-VIEW.html`.
        self._views: dict[str, tuple[str, Callable[[Delivery, Viewer], dict[str, Any]]]] = {
            "": (N_("Text"), self._text),
            "formatted": (N_("As the sender made it"), lambda *_: {"sandbox": SANDBOX}),
            "headers": (N_("Headers"), self._headers),
            "source": (N_("Source"), self._source),
        }

    def check(self, request: Request, delivery: Delivery, access: Access, view: str) -> None:
        """Raise 404 unless the message may be shown in this view."""
        if view == "formatted":
            self.check_formatted(request, delivery)
        if view == "source" and not access.source:
            raise NotFound("the source of this message is not shown")

    def values(self, view: str, delivery: Delivery, viewer: Viewer) -> dict[str, Any]:
        """Return the template values of a view."""
        return self._views[view][1](delivery, viewer)

    def links(self, delivery: Delivery, access: Access, preview: Preview | None) -> list[tuple[str, str]]:
        """Return the last parts and the texts of the links to a message's views, without those that show nothing."""
        has_formatted = not self._not_formatted(delivery) and (preview is None or preview.has_html)
        hidden = {"formatted": not has_formatted, "source": not access.source}
        return [(name, label) for name, (label, _) in self._views.items() if not hidden.get(name)]

    def check_formatted(self, request: Request, delivery: Delivery) -> None:
        """Raise 404, with the reason, unless a message may be shown as its sender formatted it."""
        if reason := self._not_formatted(delivery):
            raise self._pages.notice(request, N_("Formatted view not available"), reason, 404)

    def _not_formatted(self, delivery: Delivery) -> str:
        """Return why a message is not shown as its sender formatted it, "" if it is."""
        if delivery.message.tier is Tier.DANGEROUS:
            return N_("The formatted view is not available for messages that may be harmful.")
        if not self._pages.parts.domains.of(delivery.recipient).formatted_view:
            return N_("The formatted view is switched off for your mailbox.")
        return ""

    def _text(self, delivery: Delivery, viewer: Viewer) -> dict[str, Any]:
        """Return the text of the message as template values. ``preview`` is None if there is none."""
        found = self._reading(delivery, lambda body: read(body, viewer.reader))
        preview = found["found"]
        return {
            **found,
            "preview": preview,
            "headers": headers(preview.headers, viewer) if preview else [],
            "kinds": KINDS_IN_WORDS,
            "dangers": DANGERS_IN_WORDS,
        }

    def _headers(self, delivery: Delivery, viewer: Viewer) -> dict[str, Any]:
        return self._reading(delivery, lambda body: read_headers(body, viewer.reader))

    def _source(self, delivery: Delivery, _: Viewer) -> dict[str, Any]:
        return self._reading(delivery, raw_source)

    def _reading(self, delivery: Delivery, read: Callable[[Iterator[bytes]], object]) -> dict[str, Any]:
        """Return what is read of the message as template values.

        ``found`` is None if the body is missing or damaged. ``busy``: too many messages are being read, so this one is
        not.
        """
        if not self._pages.previews.acquire(blocking=False):
            return {"found": None, "busy": True}
        try:
            return {"found": read(self._pages.parts.store.messages.body(delivery.id)), "busy": False}
        except Busy:
            return {"found": None, "busy": True}
        except (BodyDamaged, BodyMissing):
            return {"found": None, "busy": False}
        finally:
            self._pages.previews.release()
