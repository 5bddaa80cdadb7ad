"""Downloads of a held message by its readers: the page that asks, and the file.

A download is recorded in the history, so it is a form with a button and never an address that opens by itself.
`Domains.access`, or `Staff.access` for staff, decides what may be downloaded, each time, after a virus scan as before a
release.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import chain
from tempfile import TemporaryFile
from typing import IO, NamedTuple

from bottle import HTTPResponse

from portal.model.domains import shown_address
from portal.model.errors import BodyDamaged, Busy, NotFound, StoreUnavailable
from portal.model.file_name import disposition, safe_name
from portal.model.message import Actor, Delivery, Event, EventKind, Tier
from portal.model.rights import Access, Download
from portal.model.text import N_
from portal.reading import copy_part
from portal.web.auth.session import Session, Sessions
from portal.web.limits import check_limit
from portal.web.message import MessagePages
from portal.web.pages import Pages
from portal.web.request import Request

log = logging.getLogger("quarantine.web")

_NUMBER = re.compile(r"[1-9][0-9]{0,3}", re.ASCII)
_PIECE_BYTES = 1 << 16
# Whatever a browser does with the file, it is no page of the portal.
_HEADERS = {"Content-Type": "application/octet-stream", "Content-Security-Policy": "default-src 'none'; sandbox"}


class _File(NamedTuple):
    name: str
    size_bytes: int
    pieces: Iterator[bytes]


class DownloadPages:
    """`/messages/ID/download`."""

    def __init__(self, pages: Pages, sessions: Sessions, messages: MessagePages) -> None:
        self._pages = pages
        self._sessions = sessions
        self._messages = messages
        self._store = pages.parts.store

    def form(self, request: Request, id: str) -> HTTPResponse:
        """GET /messages/ID/download: the button that downloads the message, below a warning."""
        session = self._sessions.of(request)
        delivery = self._messages.delivery(session.recipient, id)
        return self.question(request, session, delivery, self._pages.parts.domains.access, f"messages/{id}")

    def question(
        self, request: Request, session: Session, delivery: Delivery, access: Callable[[Delivery], Access], at: str
    ) -> HTTPResponse:
        """Return the page with the button and the warning. ``at``: the address of the message's page."""
        found = access(delivery)
        self._check(request, found, "")
        return self._pages.page(
            request,
            "download",
            is_unscanned=found.message is Download.WARNED and delivery.message.tier is Tier.SPAM,
            signed_in=shown_address(session.recipient),
            form_token=session.form_token,
            row=self._pages.row(request, delivery, session.recipient),
            at=at,
        )

    def send(self, request: Request, id: str) -> HTTPResponse:
        """POST /messages/ID/download: send the message or one attachment as a file, or raise before the first octet."""
        recipient = self._sessions.of_form(request, f"/messages/{id}/?undone={id}").recipient
        delivery, access = self._messages.delivery(recipient, id), self._pages.parts.domains.access
        self._check(request, access(delivery), request.form("part"))
        check_limit(self._pages, request, recipient, EventKind.DOWNLOADED)
        actor = self._pages.actor(request, "portal", delivery, recipient)
        return self.file(request, delivery, recipient, access, actor, f"/messages/{id}/download")

    def file(
        self,
        request: Request,
        delivery: Delivery,
        reader: str,
        access: Callable[[Delivery], Access],
        actor: Actor,
        page: str,
    ) -> HTTPResponse:
        """Return the file that a form asks for, after a virus scan, and record the download.

        ``access``: what the reader may download; ``page``: the path of `question`. May raise a response instead.
        """
        number = request.form("part")
        self._check(request, access(delivery), number)
        delivery, error = self._pages.parts.actions.scanned(delivery)
        self._check(request, access(delivery), number)
        if error is not None and delivery.message.tier is Tier.SPAM:  # not scanned, it would be suspicious
            raise self._pages.notice(
                request,
                N_("The virus scanner does not answer"),
                N_("The file was not sent. Try again in a few minutes."),
                503,
                Retry_After="300",
            )
        is_warned = request.form("warned") == delivery.message.tier  # else the page warned of something else
        if not number and not is_warned and access(delivery).message is Download.WARNED:
            return self._pages.see_other(page)
        if not self._pages.previews.acquire(blocking=False):
            raise Busy("too many messages are being read")
        try:
            found = self._attachment(request, delivery, reader, number) if number else self._message(delivery)
            self._record(delivery, reader, actor, f"attachment {number}" if number else "message")
        except BaseException:
            self._pages.previews.release()
            raise
        return self._file(found)

    def _message(self, delivery: Delivery) -> _File:
        pieces = _whole(self._store.messages.body(delivery.id), delivery)
        first = next(pieces, b"")
        # The subject is the sender's text, so it is not the name.
        return _File(f"{delivery.id}.eml", delivery.message.size_bytes, chain((first,), pieces))

    def _attachment(self, request: Request, delivery: Delivery, reader: str, number: str) -> _File:
        """Return an attachment, copied to a temporary file: its size is known, and it is whole."""
        if not _NUMBER.fullmatch(number):
            raise NotFound("no such attachment")
        with ExitStack() as files:
            file = files.enter_context(TemporaryFile())
            name = copy_part(self._store.messages.body(delivery.id), reader, int(number), file)
            if name is None:
                raise self._pages.notice(
                    request,
                    N_("This attachment cannot be read"),
                    N_("Download the whole message instead, or release it."),
                    422,
                )
            size_bytes = file.tell()
            file.seek(0)
            files.pop_all()
        return _File(safe_name(name, f"attachment-{number}"), size_bytes, _read(file))

    def _check(self, request: Request, access: Access, number: str) -> None:
        """Raise 403 unless a message or, with its number, an attachment may be downloaded."""
        if not (access.attachments if number else access.message is not Download.NO):
            raise self._refused(request)

    def _refused(self, request: Request) -> HTTPResponse:
        return self._pages.notice(
            request,
            N_("This download is not allowed"),
            N_("The file may be harmful, or your administrator does not allow downloads."),
            403,
        )

    def _record(self, delivery: Delivery, reader: str, actor: Actor, what: str) -> None:
        event = Event(self._pages.now(), EventKind.DOWNLOADED, actor, what)
        self._store.deliveries.record(delivery.key, event)
        log.info("downloaded id=%s recipient=%s reader=%s what=%s", delivery.id, delivery.recipient, reader, what)

    def _file(self, file: _File) -> HTTPResponse:
        """Return the response with a file, which occupies one of `Pages.previews` until it is sent."""

        def sent() -> Iterator[bytes]:
            try:
                yield from file.pieces
            finally:
                self._pages.previews.release()

        headers = {**_HEADERS, "Content-Disposition": disposition(file.name), "Content-Length": str(file.size_bytes)}
        return HTTPResponse(sent(), 200, headers)


def _read(file: IO[bytes]) -> Iterator[bytes]:
    with file:
        while piece := file.read(_PIECE_BYTES):
            yield piece


def _whole(pieces: Iterator[bytes], delivery: Delivery) -> Iterator[bytes]:
    """Yield the pieces of a body, the last one only if all of them were right.

    Otherwise the response is shorter than its Content-Length, so that browsers report a download that failed. Errors
    are raised before the first piece and logged afterwards.
    """
    last, is_first = next(pieces, b""), True
    try:
        for piece in pieces:
            yield last
            last, is_first = piece, False
    except (BodyDamaged, StoreUnavailable) as error:
        if is_first:
            raise
        log.error("download broken off id=%s: %s", delivery.id, error)
        return
    yield last
