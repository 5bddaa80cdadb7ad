"""The exporter's endpoint: Rspamd posts a message, and status 200 means that it is durably held.

A WSGI application of its own (PEP 3333), without cookies, forms, templates and the request and response objects of a
web framework. Row of the bench: "a post without its own WSGI application". Peer, login and size are checked before the
body is read, and the status is only 200 once the store has the message. Responses are JSON; Rspamd evaluates the status
alone, the rest is for administrators.
"""

from __future__ import annotations

import hmac
import logging
from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Callable, Iterable, Iterator, Mapping
from http.client import responses
from io import BytesIO
from ipaddress import IPv6Address, ip_address
from tempfile import TemporaryFile
from time import monotonic
from typing import Any, BinaryIO, NamedTuple, cast

from portal import exporter
from portal.assemble import Parts
from portal.ingest import Ingest, Outcome, Result
from portal.model.errors import BadExport, QuarantineError, TooLarge
from portal.model.fast_json import encode
from portal.model.message import Body
from portal.model.text import shown
from portal.monitoring import count_not_selected
from portal.settings import Network
from portal.stores.durations import Measured, observe

log = logging.getLogger("quarantine.web")

_MEMORY_BYTES = 1 << 20  # a larger body is written to a temporary file
_STEP_BYTES = 1 << 18
_RETRY_SECONDS = "60"
_RULES = 10  # versions of Rspamd's files, of several hosts, that are logged


class _Response(NamedTuple):
    status: int
    headers: list[tuple[str, str]]
    body: bytes
    outcome: str  # for the metrics


class _Rejected(Exception):
    """The request is rejected before its message is parsed."""

    def __init__(self, status: int, text: str, **headers: str) -> None:
        super().__init__(text)
        self.response = _error(status, text, **headers)


def is_export(environ: Mapping[str, Any]) -> bool:
    """Return True if a request for ``/`` is for this endpoint, False if it is for the list of held messages.

    Rspamd sends GET if the message is empty (metadata_exporter.lua). Only the ends of the header names are compared,
    since the rule in Rspamd sets their prefix. Everybody can send such headers, so Nginx names requests to its server
    for recipients (``uwsgi_param QUARANTINE_PUBLIC``), and none of these is an export.
    """
    if environ.get("QUARANTINE_PUBLIC"):
        return False
    if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
        return True
    return environ.get("CONTENT_LENGTH") in ("0", "") and any(
        name.startswith("HTTP_") and name.endswith(("_RCPT", "_QID", "_ACTION")) for name in environ
    )


def allowed_peer(peer: str, networks: tuple[Network, ...]) -> bool:
    """Return True if the peer's address is in one of the networks.

    A peer without an address (Nginx without ``uwsgi_param REMOTE_ADDR``, a Unix socket) is in no network. If it were
    treated as this host, a site that forgot that line would accept every client.
    """
    try:
        address = ip_address(peer)
    except ValueError:
        return False
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    return any(address in network for network in networks)


class ExporterEndpoint:
    """`POST /`, and Rspamd's GET of the same address. One object per process, used by many threads."""

    def __init__(self, parts: Parts, threads: int) -> None:
        """``threads``: the number of requests that this process answers at the same time."""
        settings = parts.settings.exporter
        self._settings = settings
        # The other posts do not wait for a scanner, even if it needs all the time that it gets (see `Pages`).
        self._ingest = Ingest(parts, scans_at_once=max(1, threads // 8))
        self._store = parts.store
        self._rules = {(str(exporter.RULE_VERSION),) * 2}  # versions of Rspamd's files that need no log line
        self._credentials: bytes | None = None
        if settings.user is not None and settings.password is not None:
            self._credentials = f"{settings.user}:{settings.password.get_secret_value()}".encode()

    def __call__(self, environ: Mapping[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answer a request (PEP 3333). Never raises."""
        began = monotonic()
        response = self._handle(environ)
        observe(self._store, Measured.POST, response.outcome, monotonic() - began)
        start_response(f"{response.status} {responses[response.status]}", response.headers)
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [response.body]

    def _handle(self, environ: Mapping[str, Any]) -> _Response:
        try:
            if environ["REQUEST_METHOD"] not in ("POST", "GET", "HEAD"):
                raise _Rejected(405, "only GET, HEAD and POST are allowed here", Allow="GET, HEAD, POST")
            self._check_peer(environ)
            size_bytes = self._size(environ)
            chunks = _read(environ["wsgi.input"], size_bytes)
            if size_bytes <= _MEMORY_BYTES:
                return self._hold(environ, Body(BytesIO(b"".join(chunks)), 0, size_bytes))
            with TemporaryFile() as file:
                file.writelines(chunks)
                return self._hold(environ, Body(cast(BinaryIO, file), 0, size_bytes))
        except _Rejected as rejected:
            log.warning(
                "export refused status=%s peer=%s: %s", rejected.response.status, environ.get("REMOTE_ADDR"), rejected
            )
            return rejected.response
        except TooLarge as error:
            log.error("export refused status=413 size=%s: %s", environ.get("CONTENT_LENGTH"), error)
            return _error(413, str(error))
        except BadExport as error:
            log.error("export refused status=400: %s", error)
            return _error(400, str(error))
        except QuarantineError as error:
            log.error("export failed status=503: %s", error)
        except Exception:
            # 503, so that the sender keeps the message: an unexpected failure is no verdict on it.
            log.exception("export failed status=503")
        return _error(503, "the message could not be stored: try again later", Retry_After=_RETRY_SECONDS)

    def _check_peer(self, environ: Mapping[str, Any]) -> None:
        if not allowed_peer(environ.get("REMOTE_ADDR", ""), self._settings.allowed_networks):
            raise _Rejected(403, "this client is not in exporter.allowed_networks")
        if self._credentials is None:
            return
        scheme, _, credentials = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
        try:
            sent_credentials = b64decode(credentials.strip(), validate=True) if scheme.lower() == "basic" else b""
        except (Base64Error, ValueError):
            sent_credentials = b""
        if not hmac.compare_digest(sent_credentials, self._credentials):
            raise _Rejected(
                401,
                "user name and password are missing or wrong",
                WWW_Authenticate='Basic realm="quarantine", charset="UTF-8"',
            )

    def _size(self, environ: Mapping[str, Any]) -> int:
        text = environ.get("CONTENT_LENGTH") or ""
        if not text:
            if environ["REQUEST_METHOD"] == "POST":
                raise _Rejected(411, "Content-Length is required")
            return 0
        if not (text.isascii() and text.isdigit() and len(text) < 20):
            raise _Rejected(400, "Content-Length is not a number")
        if int(text) > self._settings.max_body_bytes:
            raise _Rejected(
                413, f"larger than exporter.max_body_bytes ({self._settings.max_body_bytes}): retrying will not help"
            )
        return int(text)

    def _hold(self, environ: Mapping[str, Any], body: Body) -> _Response:
        headers = _headers(environ)
        self._compare_rule(headers)
        posted = exporter.parse(headers, body, self._settings.max_body_bytes)
        if posted is None:
            log.info("not selected: an empty message")
            return _success(Outcome(Result.NOT_SELECTED))
        with posted:
            export = posted.export
            if exporter.wanted(export, self._settings.only_symbols, self._settings.hold_actions):
                outcome = self._ingest.hold(posted)
            else:
                log.info("not selected queue_id=%s action=%s", export.queue_id, export.action)
                outcome = Outcome(Result.NOT_SELECTED)
            if outcome.result is Result.NOT_SELECTED:
                count_not_selected(self._store, export.action)
            return _success(outcome)

    def _compare_rule(self, headers: Mapping[str, str]) -> None:
        """Log once if Rspamd does not have the rule, or the block rules, of this version. Both work with any other."""
        sent = headers.get("x-rspamd-rule-version", "none"), headers.get("x-rspamd-block-rules-version", "none")
        if sent not in self._rules and len(self._rules) < _RULES:
            self._rules.add(sent)
            rule, block_rules = (shown(version, 20) for version in sent)
            log.warning(
                "Rspamd has another version of its files rule=%s block_rules=%s expected=%s",
                rule,
                block_rules,
                exporter.RULE_VERSION,
            )


def _read(source: BinaryIO, size_bytes: int) -> Iterator[bytes]:
    """Yield the body in chunks. Raises _Rejected if it is truncated (Rspamd's time-out): it must not be stored then."""
    left = size_bytes
    while left:
        try:
            chunk = source.read(min(left, _STEP_BYTES))
        except OSError as error:  # uWSGI: the client disconnected or was too slow
            raise _Rejected(400, "the connection ended before Content-Length was reached") from error
        if not chunk:
            raise _Rejected(400, "the body is shorter than Content-Length")
        yield chunk
        left -= len(chunk)


def _headers(environ: Mapping[str, Any]) -> dict[str, str]:
    """Return the request's headers. Names are in lower case, with hyphens."""
    headers = {name[5:].replace("_", "-").lower(): value for name, value in environ.items() if name.startswith("HTTP_")}
    for name in ("CONTENT_TYPE", "CONTENT_LENGTH"):
        if environ.get(name):
            headers[name.replace("_", "-").lower()] = environ[name]
    return headers


def _success(outcome: Outcome) -> _Response:
    id = None if outcome.id is None else str(outcome.id)
    deliver = {"deliver": outcome.deliver} if outcome.deliver else {}
    return _json(200, {"status": outcome.result.value, "id": id, **deliver}, outcome.result.value)


def _error(status: int, text: str, **headers: str) -> _Response:
    return _json(status, {"error": text}, "failed" if status == 503 else "refused", **headers)


def _json(status: int, value: Mapping[str, Any], outcome: str, **headers: str) -> _Response:
    body = encode(value) + b"\n"
    named = [(name.replace("_", "-"), header_value) for name, header_value in headers.items()]
    fixed = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    return _Response(status, [*fixed, *named], body, outcome)
