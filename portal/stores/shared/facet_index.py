"""The index for searches by facets: which messages have their row of table `facet`, and the writing of the others.

Only this class writes these rows, after Rspamd got its answer. A change of an indexed message is noted in table
`stale_facet` in the same transaction, which waits for nobody. A note is read before its message, so a row that was made
before the change is written once more.

Two cursors say what is indexed. New messages are looked for from some minutes before `_UNTIL` on, the id of the newest
message that was indexed, but never beyond the time of the store's clock. The clocks of the hosts do not matter: they
may differ, and each host would take the cursor of another one for one that a wrong clock had moved. PostgreSQL notes
messages of a host whose clock is behind in `stale_facet` (`hold_mail`). `_BELOW` goes down until there are no older
messages.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import NamedTuple
from uuid import UUID

from portal.model.errors import StoreUnavailable
from portal.model.message import first_id, held_at
from portal.stores.shared.facet_rows import facet_rows, packed_symbols
from portal.stores.shared.rows import Rows
from portal.stores.shared.session import Engine, Session

log = logging.getLogger("quarantine.store")

_CATCH_UP = 5  # transactions before a search
_OVERLAP = timedelta(minutes=3)  # an `add` takes seconds, and clocks of hosts differ; `hold_mail` notes more
_UNTIL, _BELOW, _COMPLETE = "facets.until", "facets.below", "facets.complete"
_LOWEST, _HIGHEST = UUID(int=0), UUID(int=(1 << 128) - 1)
SKIPPED = "facets.skipped"
_COUNT_SKIPPED = (
    "insert into setting (name, value) values (:name, '1')"
    " on conflict (name) do update set value = cast(cast(setting.value as integer) + 1 as text)"
)
_STATE = (
    "select name, value from setting where name in :names"
    " union all select 'stale', '' where exists (select 1 from stale_facet)"
    " union all select 'clock', {}"
)


class _State(NamedTuple):
    until: UUID | None  # None: nothing was ever indexed
    below: UUID
    is_complete: bool
    has_stale: bool
    now: datetime  # by the store's clock

    @property
    def is_ahead(self) -> bool:
        """True if the store's clock was ahead when it moved the cursor."""
        return self.until is not None and self.until > first_id(self.now + _OVERLAP)


class FacetIndex:
    """See the module."""

    def __init__(self, engine: Engine, rows: Rows, at_once: int = 500) -> None:
        """``at_once``: messages that one transaction indexes."""
        self._engine = engine
        self._rows = rows
        self._at_once = at_once

    def catch_up(self, seconds: float) -> bool:
        """Index what waits, for about so many seconds. Return whether all messages are indexed.

        Raises nothing, since a search also answers without the messages that cannot be indexed now.
        """
        deadline = monotonic() + seconds
        for _ in range(_CATCH_UP):
            left = deadline - monotonic()
            if left <= 0:
                break
            try:
                more, is_complete = self._index_new(left)
            except StoreUnavailable as error:
                log.warning("searching without the newest messages: %s", error)
                break
            if not more:
                return is_complete
        return False

    def step(self) -> bool:
        """Index some messages. Return whether there may be more."""
        return self._index_new()[0] or self._index_older()

    def recheck(self, *, are_missing: bool = False) -> None:
        """See `Facets.recheck`."""
        with self._engine.writing(durable=False) as session:
            session.lock("facets")
            if self._state(session).until is not None:
                _begin_again(session, are_missing=are_missing)

    def is_complete(self) -> bool:
        """See `Facets.is_complete`."""
        with self._engine.reading() as session:
            return self._state(session).is_complete

    def _index_new(self, seconds: float | None = None) -> tuple[bool, bool]:
        """Index some new and changed messages. Return whether there may be more, and whether all older are indexed."""
        with self._engine.reading() as session:
            state = self._state(session)
            is_begun = state.until is not None and not state.is_ahead
            if is_begun and not state.has_stale and not self._new(session, state.until or _LOWEST):
                return False, state.is_complete  # nothing to write: so it is for most searches
        with self._engine.writing(durable=False) as session:
            if seconds is not None:
                session.limit(seconds)
            session.lock("facets")
            state = self._state(session)
            if state.until is None:
                self._begin(session, state.now)
                return True, False
            if state.is_ahead:
                repair(session, self._engine.clock)
                return True, False
            stale = session.many("select seq, message_id from stale_facet order by seq limit :n", n=self._at_once)
            if stale:
                self._write(session, list(dict.fromkeys(id for _, id in stale)), replace=True)
                session.execute("delete from stale_facet where seq in :seqs", seqs=[seq for seq, _ in stale])
            ids = self._new(session, state.until)
            if ids:
                self._write(session, ids)
                _set(session, {_UNTIL: max(state.until, min(ids[-1], first_id(state.now)))})
        return self._at_once in (len(stale), len(ids)), state.is_complete

    def _begin(self, session: Session, now: datetime) -> None:
        is_old = session.many("select id from message where id < :low limit 1", low=first_id(now - _OVERLAP))
        cursors = {_BELOW: _HIGHEST} if is_old else {_BELOW: _LOWEST, _COMPLETE: _LOWEST}
        _set(session, {_UNTIL: first_id(now), **cursors})

    def _state(self, session: Session) -> _State:
        return _state(session, self._engine.clock)

    def _new(self, session: Session, until: UUID) -> list[UUID]:
        since = first_id(held_at(until) - _OVERLAP)
        return self._rows.without_facets(session, since, _HIGHEST, self._at_once)

    def _index_older(self) -> bool:
        """Index some messages below the cursor. Return whether there may be more."""
        with self._engine.reading() as session:
            if self._state(session).below == _LOWEST:
                return False
        with self._engine.writing(durable=False) as session:
            session.lock("facets")
            below = self._state(session).below
            rows = session.many(
                "select id from message where id < :below order by id desc limit :n", below=below, n=self._at_once
            )
            if rows:
                self._write(session, self._rows.without_facets(session, rows[-1][0], below, len(rows)))
            more = len(rows) == self._at_once
            _set(session, {_BELOW: rows[-1][0]} if more else {_BELOW: _LOWEST, _COMPLETE: _LOWEST})
        return more

    def _write(self, session: Session, ids: Sequence[UUID], *, replace: bool = False) -> None:
        """Write the rows of these messages. One that cannot be indexed does not keep the others from it."""
        try:
            with session.savepoint():
                self._put(session, ids, replace=replace)
            return
        except Exception as error:
            if not session.is_of_values(error):
                raise
        for id in ids:
            try:
                with session.savepoint():
                    self._put(session, [id], replace=replace)
            except Exception as error:
                if not session.is_of_values(error):
                    raise
                log.error("cannot index a message for searches of staff id=%s: %s", id, type(error).__name__)
                self._rows.put_bare_facets(session, id)
                session.execute(_COUNT_SKIPPED, name=SKIPPED)

    def _put(self, session: Session, ids: Sequence[UUID], *, replace: bool) -> None:
        messages = self._rows.messages(session, "where id in :ids order by id", ids=list(ids))
        if messages:
            found = facet_rows(session, messages)
            self._rows.put_facets(session, found, packed_symbols(session, found), replace=replace)


def repair(session: Session, clock: str) -> bool:
    """Set back a cursor that a clock that was ahead has moved, and look for what was missed since then.

    ``clock``: see `Engine`.
    """
    state = _state(session, clock)
    if not state.is_ahead:
        return False
    _set(session, {_UNTIL: first_id(state.now)})
    _begin_again(session, are_missing=True)
    return True


def _begin_again(session: Session, *, are_missing: bool) -> None:
    _set(session, {_BELOW: _HIGHEST})
    if are_missing:
        session.execute("delete from setting where name = :name", name=_COMPLETE)


def _state(session: Session, clock: str) -> _State:
    found: dict[str, str] = dict(session.many(_STATE.format(clock), names=[_UNTIL, _BELOW, _COMPLETE]))
    return _State(
        UUID(found[_UNTIL]) if _UNTIL in found else None,
        UUID(found[_BELOW]) if _BELOW in found else _LOWEST,
        _COMPLETE in found,
        "stale" in found,
        datetime.fromtimestamp(float(found["clock"]), UTC),
    )


def _set(session: Session, cursors: Mapping[str, UUID]) -> None:
    upsert = (
        "insert into setting (name, value) values (:name, :value)"
        " on conflict (name) do update set value = excluded.value"
    )
    session.execute_all(upsert, [{"name": name, "value": str(value)} for name, value in cursors.items()])
