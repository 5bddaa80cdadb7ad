"""Schedule digests: find recipients with news, resolve aliases, and record when each digest is due for `digest.run`.

A recipient has news if messages are held for them that no digest has announced.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from digest.postponing import HELD_BACK
from portal.assemble import Parts
from portal.batches.mass_hold import HeldBack
from portal.batches.mass_rights import MassRights
from portal.model.domains import shown_address
from portal.model.message import Delivery, Reader
from portal.model.schedule import NO_PREFERENCES, Schedule
from portal.stores import notes
from portal.stores.records import Person

log = logging.getLogger("quarantine.digest")

PAGE = 500  # recipients in one query
RECHECK_AFTER = timedelta(days=1)  # for recipients who get no digests
NEWS_LOOKED_FOR = timedelta(days=2)  # how far back `find_news` searches


@dataclass(slots=True)
class AppliedAliases:
    """The version of the alias file that this process applied last, "" for none. It lives as long as the process.

    The store's note alone is not enough: hosts with different files would apply them in turn without end.
    """

    version: str = ""


def schedule_news(parts: Parts, now: datetime, limit: int = PAGE, *, applied: AppliedAliases | None = None) -> int:
    """Set the time of the next digest for up to ``limit`` recipients with news. Return how many were set.

    It is the first time of their plan after their oldest news, so a digest that was missed is due at once. Recipients
    who get no digests (not local, or schedule `never`) get no notices either. They are checked again the next day:
    `send_due` does not mail them.
    """
    people = _unscheduled(parts, now, limit, applied or AppliedAliases())
    for person in people:
        # At most `now`: news recorded while a clock was ahead would otherwise wait until that time.
        since = min(person.news_since or now, now)
        plan = parts.domains.plan(person.recipient, person.preferences)
        planned = plan.next_time(since) if parts.settings.is_local(person.recipient) else None
        parts.store.recipients.schedule(
            person.recipient, planned or now + RECHECK_AFTER, notices=plan.notices and planned is not None
        )
    return len(people)


def _unscheduled(parts: Parts, now: datetime, limit: int, applied: AppliedAliases) -> list[Person]:
    """Return people with news whose digest has no time yet, after passing on the news of aliases and role mailboxes."""
    if parts.people.file is None:
        return list(parts.store.recipients.unscheduled(limit))
    _apply_changed_file(parts, now, applied)
    people, passed = parts.store.recipients.unscheduled(limit), False
    for person in people:
        passed = pass_news_on(parts, person.recipient) or passed
    if passed:
        people = parts.store.recipients.unscheduled(limit)
    return [person for person in people if parts.people.is_person(person.recipient)]


def pass_news_on(parts: Parts, recipient: str) -> bool:
    """Pass the news of an alias or a role mailbox to its readers, except those to whom it was announced already.

    Return whether the address is an alias or a role mailbox.
    """
    readers = parts.people.readers(recipient)
    if readers == (recipient,):
        return False
    shared = {recipient: readers} if len(readers) > 1 else {}
    aliases = () if shared else (recipient,)
    parts.store.recipients.pass_news_on(
        recipient,
        [
            who
            for who in readers
            if who == recipient or parts.store.digests.unannounced(Reader(who, aliases, shared), 1)
        ],
    )
    return True


def _apply_changed_file(parts: Parts, now: datetime, applied: AppliedAliases) -> None:
    """Apply a new version of the alias file, unless another process did: new readers get the unannounced messages.

    If digests were stopped for an address that became an alias, its readers get its messages nevertheless. The opt-out
    is restored when the address is a person again. Raises StoreUnavailable.
    """
    version = parts.people.names().version
    if not parts.people.text() or version == applied.version or notes.ALIASES.get(parts.store) == version:
        return
    find_old_news(parts, now)
    stopped = _restore_opt_outs(parts)
    after = ""
    while people := parts.store.recipients.records(after, PAGE):
        after = people[-1].recipient
        aliases = {
            person.recipient: person.stopped_at
            for person in people
            if person.stopped_at is not None and not parts.people.is_person(person.recipient)
        }
        if aliases:
            # Recorded before digests resume: an interruption in between must not lose the opt-outs.
            stopped |= aliases
            notes.STOPPED_ALIASES.set(parts.store, stopped)
        for address in aliases:
            parts.store.recipients.set_digests_stopped(address, None)
        for person in people:
            if person.news_since is not None:
                pass_news_on(parts, person.recipient)
    notes.ALIASES_LAST_GOOD.set(parts.store, parts.people.text())
    notes.ALIASES.set(parts.store, version)
    applied.version = version


def _restore_opt_outs(parts: Parts) -> dict[str, datetime]:
    """Stop digests again for addresses that had stopped them, became an alias, and are a person again.

    Return the addresses that are still an alias, each with the time of its opt-out.
    """
    stopped = dict(notes.STOPPED_ALIASES.get(parts.store) or {})
    restored = [address for address in stopped if parts.people.is_person(address)]
    for address in restored:
        parts.store.recipients.set_digests_stopped(address, stopped.pop(address))
    if restored:
        notes.STOPPED_ALIASES.set(parts.store, stopped)
    return stopped


def skip_reason(parts: Parts, recipient: str) -> str:
    """Return why this recipient gets no digests, "" if they get them. The store itself leaves out opt-outs."""
    if not parts.people.is_person(recipient):
        return f"read by {', '.join(map(shown_address, parts.people.readers(recipient)))}"
    if not parts.settings.is_local(recipient):
        return "not in local_domains"
    # A recipient's own schedule matters only if the default is `never`. This saves most recipients a query.
    if parts.domains.plan(recipient, NO_PREFERENCES).schedule is not Schedule.NEVER:
        return ""
    chosen = parts.domains.plan(recipient, parts.store.recipients.get(recipient).preferences).schedule
    return "digest.schedule is never" if chosen is Schedule.NEVER else ""


def recipients_with_news(parts: Parts) -> Iterator[str]:
    """Yield the identities of all recipients with news who did not stop digests, sorted."""
    after = ""
    while page := parts.store.digests.due(None, PAGE, after):
        yield from page
        after = page[-1]


def preview(
    parts: Parts, people: Sequence[str] | None, max_deliveries: int, now: datetime
) -> Iterator[tuple[str, tuple[Delivery, ...], str]]:
    """Yield recipients, the deliveries that a digest sent now would announce, and if there are none, why.

    ``people`` None: all recipients with news. Claims nothing.
    """
    held_back = HeldBack.at(parts.store, MassRights(parts.staff), now)
    for who in recipients_with_news(parts) if people is None else people:
        reason, deliveries = skip_reason(parts, who), tuple[Delivery, ...]()
        if not reason:
            found = parts.store.digests.unannounced(parts.people.reader(who), max_deliveries)
            deliveries = held_back.left(found)
            reason = HELD_BACK if found else "no unannounced messages"
        yield who, deliveries, "" if deliveries else reason


def find_news(parts: Parts, now: datetime, *, applied: AppliedAliases | None = None) -> int:
    """Mark recipients of held and never announced messages as having news. Return how many were marked.

    This repairs marks that a race prevented and times that were set while a clock was ahead. It also marks recipients
    whose domain became local. Raises StoreUnavailable.
    """
    repaired = parts.store.repair_clock_skew(now)
    if repaired:
        log.warning("a clock was ahead: rescheduled digests, releases or mails=%d", repaired)
    found = _find_news(parts, now - NEWS_LOOKED_FOR)
    if parts.people.file is not None:
        _apply_changed_file(parts, now, applied or AppliedAliases())
        # The address itself may have been marked earlier. New mail for it then does not mark its other readers.
        for recipient in [
            *parts.store.recipients.with_unannounced(parts.people.shared_mailboxes(), now - NEWS_LOOKED_FOR),
            *recipients_with_news(parts),
        ]:
            pass_news_on(parts, recipient)
    return found


def find_old_news(parts: Parts, now: datetime) -> int:
    """Mark recipients as `find_news` does, for messages of any age. Return how many were marked.

    `rows.mark_news` reads the mark and does not lock it, so a digest that is recorded at the same time can clear it.
    Raises StoreUnavailable.
    """
    return _find_news(parts, now - timedelta(days=parts.domains.longest_retention_days))


def _find_news(parts: Parts, since: datetime) -> int:
    found = parts.store.recipients.find_news(since, [*parts.settings.local_domains, *parts.people.non_local_names()])
    if found:
        log.info("found news for recipients=%d", found)
    return found
