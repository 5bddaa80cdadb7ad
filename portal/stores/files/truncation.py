"""Removal of old days from the audit journal. Lines of them that are still valid are written to today's file first."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from datetime import date, datetime
from functools import partial
from itertools import groupby
from typing import Any
from uuid import UUID

from portal.model.message import EventKind
from portal.model.record import record
from portal.stores import lifecycle
from portal.stores.files.database import Database
from portal.stores.files.messages import FileMessages
from portal.stores.files.session import SqliteEngine
from portal.stores.journal import (
    audit_entries_of,
    audit_line,
    delivery_line,
    domain_value_line,
    person_line,
    rule_line,
    scan_line,
    second_factor_line,
    staff_line,
    statistics_line,
    token_line,
    verdict_line,
)
from portal.stores.records import Person
from portal.stores.shared import recipients
from portal.stores.shared.audit import entries_of
from portal.stores.shared.domains import domain_values_after
from portal.stores.shared.recipients import SqlRecipients
from portal.stores.shared.rules import rules_of
from portal.stores.shared.second_factors import all_factors
from portal.stores.shared.staff import all_grants
from portal.stores.shared.statistics import counts_of
from portal.stores.shared.tokens import all_tokens

_BATCH = 500  # lines that are written at once
_DOMAIN_VALUES = 1_000_000  # more than any site has

Lines = list[dict[str, Any]]


@record(frozen=True, slots=True)
class Truncation:
    """The removal of old days of one store's journal."""

    db: Database
    engine: SqliteEngine
    messages: FileMessages
    recipients: SqlRecipients

    def truncate(self, before: datetime, now: datetime) -> None:
        """Remove the days before ``before`` that are older than any digest that is kept.

        None is removed if what is still valid cannot be written to today's file.
        """
        until = min(before, now - lifecycle.DIGESTS_KEPT).date()
        with self.db.translated():
            old = [day for day in self.db.journal.days() if day < until]
        if old and self._write_current_state() and self._write_rules_of(old) and self._write_others_of(old):
            with self.db.translated():
                self.db.journal.remove(old)

    def _write_current_state(self) -> bool:
        """Write the choices of all recipients, the values of domains, roles, second factors, API tokens, and deliveries
        that are requested or releasing. Return False if that failed."""
        people: Sequence[Person] = [Person("", "", None, None, None, None)]

        def person_lines() -> Lines:
            nonlocal people
            people = self.recipients.records(people[-1].recipient, _BATCH)
            return [person_line(person) for person in people if recipients.choices(person) != recipients.NO_CHOICES]

        while people:
            if not self.db.write_journal(person_lines):
                return False
        lines = (self._domain_lines, self._staff_lines, self._factor_lines, self._token_lines)
        if not all(map(self.db.write_journal, lines)):
            return False
        with self.engine.reading() as session:
            rows = session.many("SELECT DISTINCT message_id FROM delivery WHERE state IN ('requested', 'releasing')")
        return self._write([id for (id,) in rows], self._delivery_lines)

    def _write_rules_of(self, days: Sequence[date]) -> bool:
        """Write the rules whose lines are in these days. Return False if that failed.

        Only these, since writing all of up to 100,000 rules would add 30 MB to each day's journal.
        """
        ids = set()
        for line in self._lines_of(days, "rule"):
            with suppress(KeyError, ValueError, TypeError, AttributeError):
                ids.add(UUID(line["id"]))
        return self._write(sorted(ids), self._rule_lines)

    def _write_others_of(self, days: Sequence[date]) -> bool:
        """Write the statistics and the entries of the audit that these days have. Return False if that failed."""
        ids: list[UUID] = []
        counted: list[str] = []
        for line in self._lines_of(days, "audit", "delivery", "statistics"):
            with suppress(KeyError, ValueError, TypeError, AttributeError):
                if line["kind"] == "statistics":
                    counted.append(str(line["day"]))
                else:
                    ids += [entry.id for entry in audit_entries_of(line)]
        of_days = (self.db.write_journal(partial(self._statistics_lines, [day])) for day in dict.fromkeys(counted))
        return all(of_days) and self._write(ids, self._audit_lines)

    def _lines_of(self, days: Sequence[date], *kinds: str) -> Iterator[dict[str, Any]]:
        with self.db.translated():
            for line in self.db.journal.lines(days):
                if line is not None and line.get("kind") in kinds:
                    yield line

    def _write(self, ids: Sequence[UUID], lines: Callable[[Collection[UUID]], Lines]) -> bool:
        """Write the lines of these ids in batches. Return False if that failed."""
        return all(
            self.db.write_journal(partial(lines, ids[start : start + _BATCH])) for start in range(0, len(ids), _BATCH)
        )

    # ---- lines

    def _audit_lines(self, ids: Collection[UUID]) -> Lines:
        with self.engine.reading() as session:
            return [audit_line(entry) for entry in entries_of(session, ids)]

    def _statistics_lines(self, days: Sequence[str]) -> Lines:
        with self.engine.reading() as session:
            return [statistics_line(day, counts) for day, counts in counts_of(session, days)]

    def _rule_lines(self, ids: Collection[UUID]) -> Lines:
        with self.engine.reading() as session:
            return [rule_line(rule) for rule in rules_of(session, ids)]

    def _domain_lines(self) -> Lines:
        with self.engine.reading() as session:
            return [domain_value_line(value) for value in domain_values_after(session, None, _DOMAIN_VALUES)]

    def _staff_lines(self) -> Lines:
        with self.engine.reading() as session:
            given = [grant for grant in all_grants(session) if not grant.source]
            grants = groupby(given, key=lambda grant: grant.person)
        return [staff_line(person, list(of_person)) for person, of_person in grants]

    def _factor_lines(self) -> Lines:
        with self.engine.reading() as session:
            return [second_factor_line(factor.person, factor) for factor in all_factors(session)]

    def _token_lines(self) -> Lines:
        with self.engine.reading() as session:
            return [token_line(token) for token in all_tokens(session)]

    def _delivery_lines(self, ids: Collection[UUID]) -> Lines:
        lines: Lines = []
        for held in self.messages.records(ids).values():
            if any(event.kind is EventKind.RAISED for events in held.histories for event in events):
                lines.append(verdict_line(held.message))
            if held.message.scan is not None:
                lines.append(scan_line(held.message))
            lines += map(delivery_line, held.deliveries, held.histories)
        return lines
