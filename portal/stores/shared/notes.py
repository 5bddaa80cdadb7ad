"""Notes and counters, in table `setting`."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime

from portal.model.errors import QuarantineError
from portal.stores.contracts import Notes
from portal.stores.records import QueuedMail
from portal.stores.shared.outbox import queue
from portal.stores.shared.session import Engine

COUNT_SECONDS = 10.0  # between two writes of what `count` got
_COUNTER = "tally."
_INSERT = "insert into setting (name, value) values (:name, :value) on conflict (name)"


class SqlNotes(Notes):
    """See `Notes`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._counts = Counter[str]()  # not written yet
        self._lock = threading.Lock()  # of `_counts` and `_thread`
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()

    def get(self, name: str) -> str | None:
        with self._engine.reading() as session:
            row = session.one("select value from setting where name = :name", name=name)
        return str(row[0]) if row else None

    def set(self, name: str, value: str) -> None:
        with self._engine.writing() as session:
            session.execute(f"{_INSERT} do update set value = excluded.value", name=name, value=value)

    def set_default(self, name: str, value: str) -> str:
        with self._engine.writing() as session:
            session.execute(f"{_INSERT} do nothing", name=name, value=value)
            row = session.one("select value from setting where name = :name", name=name)
        return str(row[0]) if row else value

    def compare_and_set(
        self, name: str, old: str | None, new: str, now: datetime, *, mail: QueuedMail | None = None
    ) -> bool:
        update = "update setting set value = :value where name = :name and value = :old"
        with self._engine.writing() as session:
            changed = session.execute(f"{_INSERT} do nothing" if old is None else update, name=name, old=old, value=new)
            if changed and mail is not None:
                queue(session, mail, now)
        return bool(changed)

    def add_counters(self, amounts: Mapping[str, float]) -> None:
        add = (
            "do update set value = cast(cast(setting.value as double precision)"
            " + cast(excluded.value as double precision) as text)"
        )
        # Sorted, so that two transactions never wait for each other.
        rows = [{"name": _COUNTER + name, "value": repr(float(amounts[name]))} for name in sorted(amounts)]
        with self._engine.writing(durable=False) as session:
            session.execute_all(f"{_INSERT} {add}", rows)

    def count(self, amounts: Mapping[str, float]) -> None:
        with self._lock:
            self._counts.update(amounts)  # adds floats as well
            # An error that nobody expected may have ended it.
            if (self._thread is not None and self._thread.is_alive()) or self._closed.is_set():
                return
            self._thread = threading.Thread(target=self._write_later, name="counters", daemon=True)
            try:
                self._thread.start()
            except (RuntimeError, MemoryError):  # RLIMIT_NPROC; the next call tries again
                self._thread = None

    def close(self) -> None:
        """Write what was counted, if the store is available; then forget it."""
        self._closed.set()
        with suppress(QuarantineError):
            self._write_counts()

    def _write_later(self) -> None:
        while not self._closed.wait(COUNT_SECONDS):
            with suppress(QuarantineError):  # which the store has logged; the next turn tries again
                self._write_counts()
            with self._lock:
                if not self._counts:
                    self._thread = None
                    return

    def _write_counts(self) -> None:
        with self._lock:
            counts, self._counts = self._counts, Counter()
        try:
            if counts:
                self.add_counters(counts)
        except BaseException:
            with self._lock:
                self._counts.update(counts)
            raise

    def counters(self) -> Mapping[str, float]:
        with suppress(QuarantineError):  # what is written can be read although the disk is full
            self._write_counts()
        with self._engine.reading() as session:
            rows = session.many("select name, value from setting where name like :names", names=_COUNTER + "%")
        return {name.removeprefix(_COUNTER): float(value) for name, value in rows}
