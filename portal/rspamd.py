"""Rspamd's controller over HTTP: the symbols it knows, scans of messages by some or all modules, learning, and test
messages.

Source: Rspamd's src/controller.c (``/symbols``, ``/counters``, ``/learnham``, ``/learnspam``, ``/auth``, ``/stat``),
src/libserver/protocol.c (``/checkv2``, headers Settings and Pass). A scan with ``groups_enabled`` runs the modules of
these groups and nothing else, whatever the score and forced verdicts are: it changes no statistics, no history, and is
not exported.
"""

from __future__ import annotations

import http.client
import json
import math
import socket
import threading
import time
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from portal.model.errors import RspamdUnavailable
from portal.model.message import Symbol
from portal.model.record import record
from portal.model.text import shown
from portal.model.vote import Label

_REPLY_BYTES = 8 << 20  # /symbols has about 200 KB
# The verdict is the action with the highest threshold that the score reaches. `null` does not remove an action.
_REJECT_ALWAYS = {"reject": -9999, "greylist": 9999, "add header": 9999, "rewrite subject": 9999}
_OPTIONS, _OPTION_CHARACTERS = 10, 200
_SYMBOLS = 2000  # Rspamd 4.1 has 1,500
_RECIPIENTS = 80  # Rspamd limits the size of a request's headers to 80 KB
# A full scan would otherwise post the message to the portal again, under the name of the site's rule, and add a line to
# the history of the web interface.
_EXPORTERS, _HISTORY = "EXPORT_METADATA_", "HISTORY_SAVE"

Header = tuple[str, str | bytes]
_ALL_FILTERS: Header = ("Pass", "all")  # also after the score of `reject` is reached


@record(frozen=True, slots=True)
class Verdict:
    """Rspamd's verdict on a message, with all symbols."""

    action: str
    score: float | None  # None: not a number
    threshold: float | None  # of the action `reject`; None: unknown
    symbols: tuple[Symbol, ...]


class Rspamd:
    """One controller. Thread-safe.

    ``url``: http or https, without a path. Each method takes ``seconds`` at most and raises RspamdUnavailable if
    Rspamd cannot be reached in that time, rejects the password, or does not answer as Rspamd does.
    """

    def __init__(self, url: str, password: str = "") -> None:
        parts = urlsplit(url)
        self._connection: type[http.client.HTTPConnection] = (
            http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        )
        self._host, self._port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
        self._headers: Sequence[Header] = [("Password", password)] if password else []

    def symbols_of(self, groups: Collection[str], seconds: float) -> frozenset[str]:
        """Return the names of all symbols in these groups.

        Not cached: a scanner that was removed must not be counted on. It takes a few milliseconds.
        """
        listed = self._ask("GET", "/symbols", seconds)
        try:
            rules = [rule for group in listed if group["group"] in groups for rule in group["rules"]]
            return frozenset(str(rule["symbol"]) for rule in rules)
        except (TypeError, KeyError) as error:
            raise RspamdUnavailable("Rspamd's answer to /symbols has an unknown form") from error

    def scan(
        self, chunks: Iterable[bytes], size_bytes: int, groups: Collection[str], seconds: float
    ) -> tuple[Symbol, ...]:
        """Scan a message by the modules of these groups only, and return the symbols they report.

        Raises the errors of ``chunks`` as well.
        """
        settings = {"groups_enabled": list(groups)}
        return _symbols(self._scan(chunks, size_bytes, [("Settings", json.dumps(settings)), _ALL_FILTERS], seconds))

    def check(
        self,
        chunks: Iterable[bytes],
        size_bytes: int,
        *,
        sender: str | None,
        recipients: Sequence[str],
        client_ip: str | None,
        seconds: float,
    ) -> Verdict:
        """Scan a message by all modules, and return the verdict. It is not exported, and not added to the history.

        ``sender`` and ``client_ip``: None if unknown. At most 80 of the recipients are named, and never a user: Rspamd
        would take the message for the site's own outgoing mail. Raises the errors of ``chunks`` as well.
        """
        deadline = time.monotonic() + seconds
        settings = {"symbols_disabled": [*self._exporters(seconds), _HISTORY]}
        headers: list[Header] = [("Settings", json.dumps(settings)), _ALL_FILTERS]
        headers += [("Rcpt", recipient.encode()) for recipient in recipients[:_RECIPIENTS]]
        if sender is not None:
            headers.append(("From", sender.encode() or b"<>"))
        if client_ip is not None:
            headers.append(("IP", client_ip))
        reply = self._scan(chunks, size_bytes, headers, deadline - time.monotonic())
        symbols = _symbols(reply)
        return Verdict(
            shown(str(reply.get("action") or ""), 50),
            _number(reply, "score"),
            _number(reply, "required_score"),
            symbols,
        )

    def _exporters(self, seconds: float) -> list[str]:
        """Return the symbols with which metadata exporters select messages, one for each of their rules."""
        counters = self._ask("GET", "/counters", seconds)
        if not isinstance(counters, list) or not all(isinstance(each, dict) for each in counters):
            raise RspamdUnavailable("Rspamd's answer to /counters has an unknown form")
        return [name for each in counters if (name := str(each.get("symbol"))).startswith(_EXPORTERS)]

    def _scan(self, chunks: Iterable[bytes], size_bytes: int, headers: Iterable[Header], seconds: float) -> Any:
        reply = self._ask("POST", "/checkv2", seconds, [("Content-Length", str(size_bytes)), *headers], chunks)
        if isinstance(reply, dict) and reply.get("is_skipped"):
            raise RspamdUnavailable("Rspamd skips the scan: its settings exempt this host")
        return reply

    def submit(self, message: bytes, sender: str, recipient: str, queue_id: str, seconds: float) -> str:
        """Have Rspamd treat a message as received from a mail server, with the verdict `reject`. Return its verdict.

        The verdict comes from thresholds for this message alone, so that Rspamd's exporter posts it like any rejected
        message. It is `soft reject` if the exporter's rule could not post it. Rspamd learns nothing from the message.
        """
        headers: list[Header] = [
            ("Content-Length", str(len(message))),
            ("From", sender.encode()),
            ("Rcpt", recipient.encode()),
            ("Queue-Id", queue_id),
            ("Flags", "no_stat"),
            ("Settings", json.dumps({"actions": _REJECT_ALWAYS})),
        ]
        reply = self._ask("POST", "/checkv2", seconds, headers, [message])
        try:
            return str(reply["action"])
        except (TypeError, KeyError) as error:
            raise RspamdUnavailable("Rspamd's answer to a scan has an unknown form") from error

    def learn(self, label: Label, chunks: Iterable[bytes], size_bytes: int, recipient: str, seconds: float) -> int:
        """Train Rspamd's statistics with a message, and return the HTTP status of the answer.

        ``recipient``: the user, if the statistics are kept for each user. It is always sent: otherwise the sender of
        the message could name a user in its To field. The text of the answer contains the message's Message-ID, so it
        is not returned. Raises RspamdUnavailable without an answer, and the errors of ``chunks``.
        """
        headers: list[Header] = [("Content-Length", str(size_bytes)), ("Rcpt", recipient.encode())]
        return self._request("POST", f"/learn{label}", seconds, headers, chunks)[0]

    def may_learn(self, seconds: float) -> bool:
        """Return whether the password is one with which Rspamd may be trained (`enable_password`)."""
        reply = self._ask("GET", "/auth", seconds)
        return isinstance(reply, dict) and reply.get("auth") == "ok" and reply.get("read_only") is not True

    def has_statistics(self, seconds: float) -> bool:
        """Return whether a classifier is in use. Without one, Rspamd 3.4 answers 200 to messages to be learned."""
        reply = self._ask("GET", "/stat", seconds)
        return isinstance(reply, dict) and bool(reply.get("statfiles"))

    def _ask(
        self,
        method: str,
        path: str,
        seconds: float,
        headers: Iterable[Header] = (),
        chunks: Iterable[bytes] = (),
    ) -> Any:
        status, body = self._request(method, path, seconds, headers, chunks)
        if status in (401, 403):
            raise RspamdUnavailable(
                f"Rspamd's controller answers {status}: check rspamd.password, and secure_ip of its worker-controller"
            )
        if status != 200:
            raise RspamdUnavailable(f"Rspamd answers {status} to {path}")
        try:
            return json.loads(body)
        except (ValueError, RecursionError) as error:
            raise RspamdUnavailable(f"Rspamd's answer to {path} is not JSON") from error

    def _request(
        self, method: str, path: str, seconds: float, headers: Iterable[Header], chunks: Iterable[bytes]
    ) -> tuple[int, bytes]:
        """Send a request, and return the status and the body of the answer. Raises RspamdUnavailable."""
        deadline = time.monotonic() + seconds
        sent = [*self._headers, *headers]
        connection = self._connection(self._host, self._port, timeout=max(0.001, seconds))
        try:
            connection.connect()
            # The time-outs of a socket are for one operation. This one ends a reply that comes octet by octet.
            watch = threading.Timer(max(0.0, deadline - time.monotonic()), _shut_down, (connection.sock,))
            watch.daemon = True
            watch.start()
            try:
                return self._exchange(connection, method, path, sent, chunks)
            finally:
                watch.cancel()
        except (OSError, http.client.HTTPException, ValueError) as error:
            if time.monotonic() >= deadline:
                raise RspamdUnavailable(f"Rspamd gave no answer within {seconds:.0f} s") from error
            if isinstance(error, OSError):
                raise RspamdUnavailable(f"Rspamd cannot be reached: {error.strerror or error}") from error
            # Without its text, which may contain that of the answer.
            raise RspamdUnavailable(f"Rspamd's answer to {path} cannot be read: {type(error).__name__}") from error
        finally:
            connection.close()

    @staticmethod
    def _exchange(
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        headers: Iterable[Header],
        chunks: Iterable[bytes],
    ) -> tuple[int, bytes]:
        """Send a request and return the status and the body of the answer."""
        connection.putrequest(method, path)
        for name, value in headers:
            connection.putheader(name, value)
        connection.endheaders()
        for chunk in chunks:
            try:
                connection.send(chunk)
            except (BrokenPipeError, ConnectionResetError):
                break  # it answered before it had read everything
        with connection.getresponse() as response:
            body = bytearray()
            while len(body) < _REPLY_BYTES and (piece := response.read1(1 << 16)):
                body += piece
            return response.status, bytes(body)


def _symbols(reply: Any) -> tuple[Symbol, ...]:
    """Return the symbols of a scan. Raises RspamdUnavailable."""
    try:
        if len(reply["symbols"]) > _SYMBOLS:
            raise RspamdUnavailable(f"Rspamd's answer to a scan has more than {_SYMBOLS} symbols")
        return tuple(
            Symbol(
                shown(str(symbol["name"]), 100),
                score if math.isfinite(score := float(symbol["score"])) else 0.0,
                tuple(shown(str(o), _OPTION_CHARACTERS) for o in symbol.get("options", ())[:_OPTIONS]),
            )
            for symbol in reply["symbols"].values()
        )
    except (TypeError, KeyError, ValueError, AttributeError, OverflowError) as error:
        raise RspamdUnavailable("Rspamd's answer to a scan has an unknown form") from error


def _number(reply: Any, name: str) -> float | None:
    value = reply.get(name)
    return float(value) if isinstance(value, int | float) and abs(value) < 1e9 and math.isfinite(value) else None


def _shut_down(connected: socket.socket) -> None:
    with suppress(OSError):
        connected.shutdown(socket.SHUT_RDWR)
