"""The exporter's endpoint: Rspamd posts a message, and 200 means that it is durably held.

A WSGI application of its own (PEP 3333), without cookies, forms and templates: this path must be fast, and a web
framework's request and response would be a tenth of the work of holding a mail. Peer, login and size are checked
before a byte is read, and 200 is only answered once the store has the message. Answers are JSON; Rspamd looks at the
status alone, people at the rest.
"""

from __future__ import annotations

import hmac
import logging
from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from http.client import responses
from io import BytesIO
from ipaddress import IPv6Address, ip_address
from tempfile import TemporaryFile
from typing import Any, BinaryIO, NamedTuple, cast

from portal import exporter
from portal.assemble import Parts
from portal.ingest import Ingest, Outcome, Result
from portal.model.errors import BadExport, QuarantineError, TooLarge
from portal.model.fast_json import encode
from portal.model.message import Body
from portal.settings import Network

log = logging.getLogger("quarantine.web")

_MEMORY_BYTES = 1 << 20  # a larger request goes to a file
_STEP_BYTES = 1 << 18
_RETRY_SECONDS = "60"


class _Answer(NamedTuple):
    status: int
    headers: list[tuple[str, str]]
    body: bytes


class _Refused(Exception):
    """The request is answered without looking at the message."""

    def __init__(self, status: int, sentence: str, **headers: str) -> None:
        super().__init__(sentence)
        self.answer = _error(status, sentence, **headers)


def is_export(environ: Mapping[str, Any]) -> bool:
    """Return whether a request of the root is for this endpoint and not for the list of held mail.

    Rspamd sends GET when the message is empty (metadata_exporter.lua). The prefix of the metadata headers is the
    rule's.
    """
    if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
        return True
    return environ.get("CONTENT_LENGTH") in ("0", "") and any(
        name.startswith("HTTP_") and name.endswith(("_RCPT", "_QID", "_ACTION")) for name in environ
    )


def allowed_peer(peer: str, networks: tuple[Network, ...]) -> bool:
    """Return whether the peer's address is in one of the networks.

    A peer without an address (Nginx without ``uwsgi_param REMOTE_ADDR``, a Unix socket) is in none: taking it for
    this host would let in everybody where that line was forgotten.
    """
    return _is_in(peer, networks)


@lru_cache(256)  # a handful of MTAs post thousands of times a second
def _is_in(peer: str, networks: tuple[Network, ...]) -> bool:
    try:
        address = ip_address(peer)
    except ValueError:
        return False
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    return any(address in network for network in networks)


class ExporterEndpoint:
    """`POST /`, and Rspamd's GET of the same address. One object per process, used by many threads."""

    def __init__(self, parts: Parts) -> None:
        settings = parts.settings.exporter
        self._settings = settings
        self._ingest = Ingest(parts)
        self._login: bytes | None = None
        if settings.user is not None and settings.password is not None:
            self._login = f"{settings.user}:{settings.password.get_secret_value()}".encode()

    def __call__(self, environ: Mapping[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answer a request (PEP 3333). Never raises."""
        answer = self._answer(environ)
        start_response(f"{answer.status} {responses[answer.status]}", answer.headers)
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [answer.body]

    def _answer(self, environ: Mapping[str, Any]) -> _Answer:
        try:
            if environ["REQUEST_METHOD"] not in ("POST", "GET", "HEAD"):
                raise _Refused(405, "this address takes messages by POST", Allow="GET, HEAD, POST")
            self._check_peer(environ)
            size_bytes = self._size(environ)
            chunks = _read(environ["wsgi.input"], size_bytes)
            if size_bytes <= _MEMORY_BYTES:
                return self._take(environ, Body(BytesIO(b"".join(chunks)), 0, size_bytes))
            with TemporaryFile() as file:
                file.writelines(chunks)
                return self._take(environ, Body(cast(BinaryIO, file), 0, size_bytes))
        except _Refused as refused:
            log.warning(
                "export refused status=%s peer=%s: %s", refused.answer.status, environ.get("REMOTE_ADDR"), refused
            )
            return refused.answer
        except TooLarge as error:
            log.error("export refused status=413 size=%s: %s", environ.get("CONTENT_LENGTH"), error)
            return _error(413, str(error))
        except BadExport as error:
            log.error("export refused status=400: %s", error)
            return _error(400, str(error))
        except QuarantineError as error:
            log.error("export failed status=503: %s", error)
        except Exception:
            # Whatever it is, the sender must keep the mail: an unforeseen failure is no verdict on the message.
            log.exception("export failed status=503")
        return _error(503, "the mail could not be stored now: try again later", Retry_After=_RETRY_SECONDS)

    def _check_peer(self, environ: Mapping[str, Any]) -> None:
        if not allowed_peer(environ.get("REMOTE_ADDR", ""), self._settings.allowed_networks):
            raise _Refused(403, "this address may not post here: see exporter.allowed_networks")
        if self._login is None:
            return
        scheme, _, credentials = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
        try:
            given = b64decode(credentials.strip(), validate=True) if scheme.lower() == "basic" else b""
        except (Base64Error, ValueError):
            given = b""
        if not hmac.compare_digest(given, self._login):
            raise _Refused(401, "login needed", WWW_Authenticate='Basic realm="quarantine", charset="UTF-8"')

    def _size(self, environ: Mapping[str, Any]) -> int:
        text = environ.get("CONTENT_LENGTH") or ""
        if not text:
            if environ["REQUEST_METHOD"] == "POST":
                raise _Refused(411, "Content-Length is needed")
            return 0
        if not (text.isascii() and text.isdigit() and len(text) < 20):
            raise _Refused(400, "Content-Length is not a number")
        if int(text) > self._settings.max_body_bytes:
            raise _Refused(
                413, f"larger than exporter.max_body_bytes, {self._settings.max_body_bytes}: it will never be taken"
            )
        return int(text)

    def _take(self, environ: Mapping[str, Any], body: Body) -> _Answer:
        posted = exporter.parse(_headers(environ), body, self._settings.max_body_bytes)
        if posted is None:
            log.info("not selected: an empty message")
            return _done(Outcome(Result.NOT_SELECTED))
        with posted:
            export = posted.export
            if not exporter.wanted(export, self._settings.only_symbols, self._settings.hold_actions):
                log.info("not selected queue_id=%s action=%s", export.queue_id, export.action)
                return _done(Outcome(Result.NOT_SELECTED))
            return _done(self._ingest.hold(posted))


def _read(source: BinaryIO, size_bytes: int) -> Iterator[bytes]:
    """The request's body. One that is cut short (Rspamd ran into its time-out) must not be stored."""
    left = size_bytes
    while left:
        try:
            chunk = source.read(min(left, _STEP_BYTES))
        except OSError as error:  # uWSGI: the client went away or was too slow
            raise _Refused(400, "the body broke off before Content-Length") from error
        if not chunk:
            raise _Refused(400, "the body is shorter than Content-Length")
        yield chunk
        left -= len(chunk)


def _headers(environ: Mapping[str, Any]) -> dict[str, str]:
    """The request's headers with lower-case names as HTTP spells them."""
    headers = {name[5:].replace("_", "-").lower(): value for name, value in environ.items() if name.startswith("HTTP_")}
    for name in ("CONTENT_TYPE", "CONTENT_LENGTH"):
        if environ.get(name):
            headers[name.replace("_", "-").lower()] = environ[name]
    return headers


def _done(outcome: Outcome) -> _Answer:
    id = None if outcome.id is None else str(outcome.id)
    return _answer(200, {"status": outcome.result.value, "id": id})


def _error(status: int, sentence: str, **headers: str) -> _Answer:
    return _answer(status, {"error": sentence}, **headers)


def _answer(status: int, value: Mapping[str, Any], **headers: str) -> _Answer:
    body = encode(value) + b"\n"
    named = [(name.replace("_", "-"), said) for name, said in headers.items()]
    return _Answer(status, [("Content-Type", "application/json"), ("Content-Length", str(len(body))), *named], body)
