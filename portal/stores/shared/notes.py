"""Notes and counters, in table `setting`."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from portal.stores.contracts import Notes
from portal.stores.records import QueuedMail
from portal.stores.shared.outbox import queue
from portal.stores.shared.session import Engine

_COUNTER = "tally."
_INSERT = "insert into setting (name, value) values (:name, :value) on conflict (name)"


class SqlNotes(Notes):
    """See `Notes`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

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
        with self._engine.writing(durable=False) as session:
            for name in sorted(amounts):  # so that two transactions never wait for each other
                session.execute(f"{_INSERT} {add}", name=_COUNTER + name, value=repr(float(amounts[name])))

    def counters(self) -> Mapping[str, float]:
        with self._engine.reading() as session:
            rows = session.many("select name, value from setting where name like :names", names=_COUNTER + "%")
        return {name.removeprefix(_COUNTER): float(value) for name, value in rows}
