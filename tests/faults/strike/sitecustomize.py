"""Let a process of the portal kill itself at a named point. Python loads this at its start if the folder is in its
path.

``$STRIKE_LEASE`` and ``$STRIKE_TAKE_OVER`` are the seconds of a claim, and from an outage until claims are taken over,
so that tests need not wait for a minute and a half.

The file ``$STRIKE_AT`` has the name of the point. The process that reaches it first renames the file to ``….done`` and
dies by SIGKILL.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any


def reach(point: str) -> None:
    path = Path(os.environ["STRIKE_AT"])
    with suppress(FileNotFoundError):
        if path.read_text() == point:
            path.rename(f"{path}.done")  # only one process can
            os.kill(os.getpid(), signal.SIGKILL)


def surround(part: Any, name: str, before: str = "", after: str = "") -> None:
    real = getattr(part, name)

    def call(*args: Any, **more: Any) -> Any:
        if before:
            reach(before)
        result = real(*args, **more)
        if after:
            reach(after)
        return result

    setattr(part, name, call)


def _surround_the_answer(part: Any) -> None:
    real: Callable[..., Iterable[bytes]] = part.__call__

    def call(*args: Any) -> Iterator[bytes]:
        answer = b"".join(real(*args))
        reach("before the answer")
        yield answer[:5]
        reach("in the answer")
        yield answer[5:]
        reach("after the answer")

    part.__call__ = call


def _surround_the_record(part: Any) -> None:
    real = part.releasing

    @contextmanager
    def releasing(*args: Any, **more: Any) -> Iterator[Any]:
        with real(*args, **more) as delivery:
            yield delivery
            reach("before the record")
        reach("after the record")

    part.releasing = releasing


def _install() -> None:
    from portal.actions import Actions
    from portal.policy.rulebook import Rulebook
    from portal.scanning import Scanning
    from portal.stores.files.mail import MailFiles
    from portal.stores.files.messages import FileMessages
    from portal.stores.postgres import database, rows
    from portal.stores.postgres.messages import PostgresMessages
    from portal.stores.shared.deliveries import SqlDeliveries
    from portal.web.exporter import ExporterEndpoint

    surround(Rulebook, "decide", "before the rules", "after the rules")
    surround(Scanning, "scan_posted", "before the scan", "after the scan")
    surround(MailFiles, "write", "before holding", "while holding")
    for messages in (FileMessages, PostgresMessages):
        surround(messages, "add", after="after holding")
    surround(Rulebook, "count", "before the hits", "after the hits")
    _surround_the_answer(ExporterEndpoint)
    surround(SqlDeliveries, "_claim_release", "before the claim", "after the claim")
    surround(Actions, "_prepended_headers", "before sending")
    _surround_the_record(SqlDeliveries)

    ask = database.ask

    def asked(connection: Any, statement: bytes, values: Any, seconds: float) -> Any:
        reach("before holding")
        path = Path(os.environ["STRIKE_AT"])
        with suppress(FileNotFoundError):
            if path.read_text() == "while holding":
                encoded = [value.encode() if isinstance(value, str) else value for value in values]
                formats = [isinstance(value, bytes) for value in values]
                connection.pgconn.send_query_params(statement, encoded, param_formats=formats)
                while connection.pgconn.flush():
                    pass
                reach("while holding")  # the server has the statement; no reply says whether it was committed
        return ask(connection, statement, values, seconds)

    rows.ask = asked  # type: ignore[attr-defined]


def _shorten(lease_seconds: str) -> None:
    from portal.stores import lifecycle
    from portal.stores.shared import outcomes

    lifecycle.LEASE = timedelta(seconds=float(lease_seconds))
    take_over = os.environ.get("STRIKE_TAKE_OVER")
    outcomes.TAKE_OVER_SECONDS = float(take_over) if take_over else outcomes.TAKE_OVER_SECONDS


if "STRIKE_LEASE" in os.environ:
    _shorten(os.environ["STRIKE_LEASE"])
if "STRIKE_AT" in os.environ:
    _install()
