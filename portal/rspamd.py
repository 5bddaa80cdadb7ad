"""Rspamd's controller over HTTP: the symbols it knows, scans of messages by some of its modules, and test messages.

Source: Rspamd's src/controller.c (``/symbols``), src/libserver/protocol.c (``/checkv2``, headers Settings and Pass). A
scan with ``groups_enabled`` runs the modules of these groups and nothing else, whatever the score and forced verdicts
are: it changes no statistics, no history, and is not exported.
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Collection, Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

from portal.model.errors import RspamdUnavailable
from portal.model.message import Symbol
from portal.model.text import shown

_SYMBOLS_SECONDS = 2.0
_SYMBOLS_VALID_SECONDS = 600.0  # new scanners need a restart of Rspamd, removed ones as well
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
        self._groups: dict[str, frozenset[str]] = {}
        self._groups_until = 0.0

    def symbols_of(self, groups: Collection[str], seconds: float = _SYMBOLS_SECONDS) -> frozenset[str]:
        """Return the names of all symbols in these groups. Kept for ten minutes."""
        if time.monotonic() >= self._groups_until:
            listed = self._ask("GET", "/symbols", seconds)
            try:
                self._groups = {
                    str(group["group"]): frozenset(str(rule["symbol"]) for rule in group["rules"]) for group in listed
                }
            except (TypeError, KeyError) as error:
                raise RspamdUnavailable("Rspamd's answer to /symbols has an unknown form") from error
            self._groups_until = time.monotonic() + _SYMBOLS_VALID_SECONDS
        return frozenset[str]().union(*(self._groups.get(group, ()) for group in groups))

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

        def left() -> float:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise TimeoutError(f"no answer within {seconds:g} s")
            return remaining

        connection = self._connection(self._host, self._port, timeout=seconds)
        try:
            connection.putrequest(method, path)
            for name, value in {**self._headers, **(headers or {})}.items():
                connection.putheader(name, value)
            connection.endheaders()
            for chunk in chunks:
                connection.sock.settimeout(left())
                connection.send(chunk)
            connection.sock.settimeout(left())
            with connection.getresponse() as response:
                body = bytearray()
                while len(body) < _REPLY_BYTES and (piece := response.read1(1 << 16)):
                    body += piece
                    left()
            if response.status in (401, 403):
                raise RspamdUnavailable(
                    f"Rspamd's controller answers {response.status}: check rspamd.password, and secure_ip of its "
                    "worker-controller"
                )
            if response.status != 200:
                raise RspamdUnavailable(f"Rspamd answers {response.status} to {path}")
            return json.loads(body)
        except TimeoutError as error:
            raise RspamdUnavailable(f"Rspamd gave no answer within {seconds:g} s") from error
        except OSError as error:
            raise RspamdUnavailable(f"Rspamd cannot be reached: {error.strerror or error}") from error
        except (http.client.HTTPException, ValueError) as error:
            raise RspamdUnavailable(f"Rspamd's answer to {path} cannot be read: {shown(str(error), 200)}") from error
        finally:
            connection.close()
