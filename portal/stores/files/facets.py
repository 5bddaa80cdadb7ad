"""Search by facets in the file store: the word index has their terms as well."""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Sequence
from ipaddress import ip_address
from itertools import compress
from typing import Any

from portal.model.message import DeliveryId, Filter, State, first_id
from portal.stores.files import word_index
from portal.stores.files.database import Database
from portal.stores.files.rows import SqliteRows
from portal.stores.files.search import index_waiting
from portal.stores.files.session import SqliteEngine, connection_of
from portal.stores.records import ScoreKey
from portal.stores.search import Terms, has_words
from portal.stores.shared.facet_hits import Batch, batch_by_score, batch_of, columns, conditions
from portal.stores.shared.facet_index import FacetIndex
from portal.stores.shared.facets import SqlFacets
from portal.stores.shared.session import Session

_INDEXED_AT_ONCE = 100  # a transaction of some 20 ms
_ROWIDS_MAX = 5_000  # of one statement
_PAUSE_SECONDS = 0.01  # lets other writers take the lock
_BY_INDEX = (
    "message m CROSS JOIN facet f ON f.key = m.rowid CROSS JOIN delivery d ON d.message_id = m.id "
    "WHERE m.rowid IN (SELECT value FROM json_each(:rowids))"
)
_BY_KEY = "delivery d {index}CROSS JOIN message m ON m.id = d.message_id CROSS JOIN facet f ON f.key = m.rowid WHERE 1"
# The index has the order; the planner would rather sort what a condition finds.
_BY_SCORE = (
    "facet f INDEXED BY facet_score CROSS JOIN message m ON m.rowid = f.key "
    "CROSS JOIN delivery d ON d.message_id = m.id WHERE 1"
)
_TEXTS = "m.subject, m.envelope_sender, m.header_from, m.attachments, m.client_ip"
_EXAMINED_AT_ONCE = 500  # if words are compared
_ACTED_MAX = 20_000  # deliveries of a state that are examined one by one
_ACTED_AT_ONCE = 2_000
FACTS = "FROM delivery d JOIN message m ON m.id = d.message_id LEFT JOIN facet f ON f.key = m.rowid"
_NEWEST_FIRST = "ORDER BY d.message_id DESC, d.number DESC"


class _FileFacetIndex(FacetIndex):
    """See `FacetIndex`."""

    def __init__(self, database: Database, engine: SqliteEngine, rows: SqliteRows) -> None:
        super().__init__(engine, rows, _INDEXED_AT_ONCE)
        self._database = database

    def step(self) -> bool:
        more = super().step()
        if more:
            time.sleep(_PAUSE_SECONDS)
        return more

    def _index_new(self, seconds: float | None = None) -> tuple[bool, bool]:
        more, is_complete = super()._index_new(seconds)
        if not more:
            index_waiting(self._database)
        return more, is_complete


class FileFacets(SqlFacets):
    """See `Facets`."""

    def __init__(self, database: Database) -> None:
        engine, rows = SqliteEngine(database), SqliteRows()
        super().__init__(engine, rows, _FileFacetIndex(database, engine, rows))

    def _hits(
        self,
        session: Session,
        terms: Terms,
        wanted: Filter,
        before: DeliveryId | None,
        at_once: int,
        *,
        with_facts: bool,
    ) -> Generator[Batch]:
        selected = columns(wanted, with_facts=with_facts)
        if not terms:
            yield from self._by_key(session, wanted, before, at_once, selected)
            return
        if _are_few(session, terms, wanted):
            yield from self._by_key(session, wanted, before, max(at_once, _ACTED_AT_ONCE), selected)
            return
        since, below = _keys(wanted)
        if before is not None:
            begin = word_index.millisecond(word_index.key(before.message_id))
            is_begin = before.message_id == word_index.first_id_of(begin)  # all of the millisecond was examined
            below = min(below, begin if is_begin else word_index.next_millisecond(begin))
        where, values = conditions(wanted, before)
        select = f"SELECT {selected} FROM {' AND '.join([_BY_INDEX, *where])} {_NEWEST_FIRST}"
        for rowids in word_index.find(connection_of(session), terms, since, below, min(at_once, _ROWIDS_MAX)):
            lowest = DeliveryId(word_index.first_id_of(word_index.millisecond(rowids[-1])), 0)
            yield batch_of(session.many(select, **values, rowids=json.dumps(rowids)), lowest)

    def _by_key(
        self, session: Session, wanted: Filter, before: DeliveryId | None, at_once: int, selected: str
    ) -> Generator[Batch]:
        """Yield the hits of a search that needs no terms: for a recipient, a state, some days, or everything."""
        source = _BY_KEY.format(index=_index(wanted))
        found = at_once
        while found == at_once:
            where, values = conditions(wanted, before)
            _add_period(wanted, where, values)
            rows = session.many(
                f"SELECT {selected} FROM {' AND '.join([source, *where])} {_NEWEST_FIRST} LIMIT :limit",
                **values,
                limit=at_once,
            )
            found = len(rows)
            if rows:
                batch = batch_of(rows, None)
                before = batch.lowest
                yield batch

    def _sources(
        self, session: Session, terms: Terms, wanted: Filter, at_most: int
    ) -> Generator[tuple[str, dict[str, Any]]]:
        where, values = conditions(wanted, None)
        if not terms or _are_few(session, terms, wanted):
            _add_period(wanted, where, values)
            yield " AND ".join([_BY_KEY.format(index=_index(wanted)), *where]), values
            return
        source = " AND ".join([_BY_INDEX, *where])
        for rowids in word_index.find(connection_of(session), terms, *_keys(wanted), min(at_most, _ROWIDS_MAX)):
            yield source, values | {"rowids": json.dumps(rowids)}

    def _hits_by_score(
        self, session: Session, terms: Terms, wanted: Filter, after: ScoreKey | None, limit: int, *, highest_first: bool
    ) -> Generator[Batch]:
        direction, sign = ("DESC", "<") if highest_first else ("ASC", ">")
        order = f"f.score {direction}, f.key {direction}, d.number {direction}"
        words = [group for group in terms if not group[0].startswith("=")]
        found = at_once = _EXAMINED_AT_ONCE if terms else limit + 1
        while found == at_once:
            where, values = conditions(wanted, None)
            _add_period(wanted, where, values)
            if after is None:
                where.append("f.score IS NOT NULL")
            else:  # the first condition is one of the index
                where.append(f"(f.score, f.key) {sign}= (:key_score, :key)")
                where.append(f"(f.score, f.key, d.number) {sign} (:key_score, :key, :key_number)")
                row = session.one("SELECT rowid FROM message WHERE id = :id", id=after.key.message_id)
                key = row[0] if row else word_index.key(after.key.message_id)  # it may have been removed
                values |= {"key_score": after.score, "key": key, "key_number": after.key.number}
            rows = session.many(
                f"SELECT {columns(wanted)}, {_TEXTS} FROM {' AND '.join([_BY_SCORE, *where])} "
                f"ORDER BY {order} LIMIT :limit",
                **values,
                limit=at_once,
            )
            found = len(rows)
            if rows:
                batch = batch_by_score([row[:-5] for row in rows])
                after = ScoreKey(batch.score, batch.lowest)
                having = [_has(words, wanted, *row[-5:]) for row in rows]
                yield batch._replace(hits=list(compress(batch.hits, having)))


def _has(
    words: Sequence[Sequence[str]],
    wanted: Filter,
    subject: str,
    envelope_sender: str | None,
    header_from: str,
    attachments: str | None,
    client_ip: str | None,
) -> bool:
    """Return whether a message has the words and the server of a search; `conditions` are all others.

    The word index would read all hits of a day for each message.
    """
    if wanted.client is not None:
        try:
            if ip_address(client_ip or "") not in wanted.client:
                return False
        except ValueError:
            return False
    return not words or has_words(json.dumps(words), subject, envelope_sender, header_from, attachments)


def _index(wanted: Filter) -> str:
    """Return the index of deliveries for a search: one without those that are held, if it does not want these."""
    is_small = wanted.recipient is None and wanted.states and State.HELD not in wanted.states
    return "INDEXED BY delivery_acted " if is_small else ""


def _are_few(session: Session, terms: Terms, wanted: Filter) -> bool:
    """Return whether all deliveries of the wanted states can be examined, instead of what the index of terms finds.

    That may be most messages. Words and servers are not among the `conditions`.
    """
    if wanted.client is not None or not (index := _index(wanted)) or not all(each[0].startswith("=") for each in terms):
        return False
    where, values = conditions(Filter(states=wanted.states), None)
    _add_period(wanted, where, values)
    found = f"SELECT 1 FROM delivery d {index}WHERE {' AND '.join(where)} LIMIT :limit"
    [(number,)] = session.many(f"SELECT count(*) FROM ({found})", **values, limit=_ACTED_MAX + 1)
    return bool(number <= _ACTED_MAX)


def _keys(wanted: Filter) -> tuple[int, int]:
    """Return the lowest key of the period of a search, and the lowest one after it."""
    since = word_index.key(first_id(wanted.since)) if wanted.since else 0
    return since, word_index.key(first_id(wanted.until)) if wanted.until else word_index.KEY_MAX


def _add_period(wanted: Filter, where: list[str], values: dict[str, Any]) -> None:
    if wanted.since is not None:
        where.append("d.message_id >= :low")
        values["low"] = first_id(wanted.since)
    if wanted.until is not None:
        where.append("d.message_id < :high")
        values["high"] = first_id(wanted.until)
