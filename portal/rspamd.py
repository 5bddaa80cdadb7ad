"""Rspamd's controller over HTTP: the symbols it knows, scans of messages by some of its modules, and test messages.

Source: Rspamd's src/controller.c (``/symbols``), src/libserver/protocol.c (``/checkv2``, headers Settings and Pass). A
scan with ``groups_enabled`` runs the modules of these groups and nothing else, whatever the score and forced verdicts
are: it changes no statistics, no history, and is not exported.
"""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from portal.model.errors import RspamdUnavailable
from portal.model.message import Symbol
from portal.model.text import shown

_REPLY_BYTES = 8 << 20  # /symbols has about 200 KB
# The verdict is the action with the highest threshold that the score reaches. `null` does not remove an action.
_REJECT_ALWAYS = {"reject": -9999, "greylist": 9999, "add header": 9999, "rewrite subject": 9999}
_OPTIONS, _OPTION_CHARACTERS = 10, 200


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
        self._headers = {"Password": password} if password else {}

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
        headers = {
            "Content-Length": str(size_bytes),
            "Settings": json.dumps({"groups_enabled": list(groups)}),
            "Pass": "all",
        }
        reply = self._ask("POST", "/checkv2", seconds, headers, chunks)
        try:
            if reply.get("is_skipped"):
                raise RspamdUnavailable("Rspamd skips the scan: its settings exempt this host")
            return tuple(
                Symbol(
                    shown(str(symbol["name"]), 100),
                    float(symbol["score"]),
                    tuple(shown(str(o), _OPTION_CHARACTERS) for o in symbol.get("options", ())[:_OPTIONS]),
                )
                for symbol in reply["symbols"].values()
            )
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise RspamdUnavailable("Rspamd's answer to a scan has an unknown form") from error

    def submit(self, message: bytes, sender: str, recipient: str, queue_id: str, seconds: float) -> str:
        """Have Rspamd treat a message as received from a mail server, with the verdict `reject`. Return its verdict.

        The verdict comes from thresholds for this message alone, so that Rspamd's exporter posts it like any rejected
        message. It is `soft reject` if the exporter's rule could not post it. Rspamd learns nothing from the message.
        """
        headers: dict[str, str | bytes] = {
            "Content-Length": str(len(message)),
            "From": sender.encode(),
            "Rcpt": recipient.encode(),
            "Queue-Id": queue_id,
            "Flags": "no_stat",
            "Settings": json.dumps({"actions": _REJECT_ALWAYS}),
        }
        reply = self._ask("POST", "/checkv2", seconds, headers, [message])
        try:
            return str(reply["action"])
        except (TypeError, KeyError) as error:
            raise RspamdUnavailable("Rspamd's answer to a scan has an unknown form") from error

    def _ask(
        self,
        method: str,
        path: str,
        seconds: float,
        headers: Mapping[str, str | bytes] | None = None,
        chunks: Iterable[bytes] = (),
    ) -> Any:
        deadline = time.monotonic() + seconds
        sent: dict[str, str | bytes] = {**self._headers, **(headers or {})}
        connection = self._connection(self._host, self._port, timeout=max(0.001, seconds))
        try:
            connection.connect()
            # The time-outs of a socket are for one operation. This one ends a reply that comes octet by octet.
            watch = threading.Timer(max(0.0, deadline - time.monotonic()), _shut_down, (connection.sock,))
            watch.daemon = True
            watch.start()
            try:
                status, body = self._exchange(connection, method, path, sent, chunks)
            finally:
                watch.cancel()
            if status in (401, 403):
                raise RspamdUnavailable(
                    f"Rspamd's controller answers {status}: check rspamd.password, and secure_ip of its "
                    "worker-controller"
                )
            if status != 200:
                raise RspamdUnavailable(f"Rspamd answers {status} to {path}")
            return json.loads(body)
        except (OSError, http.client.HTTPException, ValueError, RecursionError) as error:
            if time.monotonic() >= deadline:
                raise RspamdUnavailable(f"Rspamd gave no answer within {seconds:.0f} s") from error
            if isinstance(error, OSError):
                raise RspamdUnavailable(f"Rspamd cannot be reached: {error.strerror or error}") from error
            raise RspamdUnavailable(f"Rspamd's answer to {path} cannot be read: {shown(str(error), 200)}") from error
        finally:
            connection.close()

    @staticmethod
    def _exchange(
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        headers: Mapping[str, str | bytes],
        chunks: Iterable[bytes],
    ) -> tuple[int, bytes]:
        """Send a request and return the status and the body of the answer."""
        connection.putrequest(method, path)
        for name, value in headers.items():
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


def _shut_down(connected: socket.socket) -> None:
    with suppress(OSError):
        connected.shutdown(socket.SHUT_RDWR)
