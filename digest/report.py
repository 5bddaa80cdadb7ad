"""The monthly report, on the first of the month.

A note in the store says who has it already. It is set in the transaction that queues the mail, so several hosts, and a
process that is killed, send each one once. docs/decisions/statistics.md has the reasons.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from digest.housekeeping import clock_is_trusted
from digest.stopping import Stopped, never
from portal.assemble import Parts
from portal.model.statistics import Month
from portal.policy.report import Reports
from portal.stores import notes

log = logging.getLogger("quarantine.digest")

_LATE = timedelta(days=7)  # after an outage at the beginning of the month


def send_reports(parts: Parts, now: datetime, *, stopped: Stopped = never) -> int:
    """Queue the reports about the last month that are due. Return how many mails were queued.

    Raises StoreUnavailable.
    """
    month = _due(parts, now)
    if month is None:
        return 0
    note, count = notes.REPORTED, 0
    for person, hosts in parts.staff.administrators().items():
        text = note.text(parts.store)
        reported = note.from_text(text) if text else notes.Reported(str(month), ())
        people = reported.people if reported.month == str(month) else ()
        if stopped():
            break
        if person in people or parts.store.recipients.get(person).preferences.monthly_report is False:
            continue
        mail = Reports(parts.store, parts.actions).mail(person, hosts, month)
        new = note.to_text(notes.Reported(str(month), (*people, person)))
        if not parts.store.notes.compare_and_set(note.name, text, new, now, mail=mail):
            break  # another host is sending them
        if mail is not None:
            count += 1
            log.info("monthly report queued person=%s month=%s", person, month)
    return count


def _due(parts: Parts, now: datetime) -> Month | None:
    """Return the month whose report is due.

    None: it is not the time yet, the last day of the month is still counted, or counting began in it.
    """
    if not parts.settings.staff.monthly_report:
        return None
    digest = parts.settings.digest
    zone = ZoneInfo(digest.timezone)
    first = now.astimezone(zone).date().replace(day=1)
    due_at = datetime.combine(first, min(digest.at), zone).astimezone(UTC)
    month = Month(first).before
    if not due_at <= now < due_at + _LATE or not clock_is_trusted(parts.store, now):
        return None
    counted = parts.store.statistics.next_day()
    if counted is None or counted <= month.last or not Reports(parts.store, parts.actions).is_whole(month):
        return None
    return month
