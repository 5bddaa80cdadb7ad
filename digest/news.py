"""Who has news, whose news it is, and when they are told: the marks and times that `digest.run` sends by."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import datetime, timedelta

from portal.assemble import Parts
from portal.model.domains import shown_address
from portal.model.message import Reader
from portal.model.schedule import NO_PREFERENCES, Plan, Preferences, Schedule, plan_for
from portal.stores import notes
from portal.stores.records import Person

log = logging.getLogger("quarantine.digest")

PAGE = 500  # recipients looked up at once
RECHECK_AFTER = timedelta(days=1)  # those who are not told
NEWS_LOOKED_FOR = timedelta(days=2)  # how far back `find_news` looks


def plan_of(parts: Parts, recipient: str, preferences: Preferences) -> Plan:
    """When and how this recipient is told."""
    return plan_for(parts.settings.digest, recipient, preferences)


def schedule_news(parts: Parts, now: datetime, limit: int = PAGE) -> int:
    """Give every recipient with news the time of their digest; returns how many got one.

    It is the first of their plan after the oldest news, so one that was missed is due at once. Those who are not told
    (not local, or `never` by the settings) are looked at again the next day: `send_due` does not mail them.
    """
    people = _with_aliases_passed_on(parts, now, limit)
    for person in people:
        # Never after now: what was held while a clock was ahead would wait until then.
        since = min(person.news_since or now, now)
        planned = plan_of(parts, person.recipient, person.preferences).next_time(since)
        local = parts.settings.is_local(person.recipient)
        parts.store.recipients.schedule(person.recipient, planned if local and planned else now + RECHECK_AFTER)
    return len(people)


def _with_aliases_passed_on(parts: Parts, now: datetime, limit: int) -> list[Person]:
    """Recipients without a time, once the news of addresses that others read are those others'."""
    if parts.people.file is None:
        return list(parts.store.recipients.unscheduled(limit))
    _apply_changed_file(parts, now)
    people, passed = parts.store.recipients.unscheduled(limit), False
    for person in people:
        passed = pass_news_on(parts, person.recipient) or passed
    if passed:
        people = parts.store.recipients.unscheduled(limit)
    return [person for person in people if parts.people.is_person(person.recipient)]


def pass_news_on(parts: Parts, recipient: str) -> bool:
    """Give the news of an alias or a role mailbox to those of its readers who were not told; whether it is one."""
    readers = parts.people.readers(recipient)
    if readers == (recipient,):
        return False
    shared = {recipient: readers} if len(readers) > 1 else {}
    told_of = () if shared else (recipient,)
    parts.store.recipients.pass_news_on(
        recipient,
        [
            who
            for who in readers
            if who == recipient or parts.store.digests.unannounced(Reader(who, told_of, shared), 1)
        ],
    )
    return True


def _apply_changed_file(parts: Parts, now: datetime) -> None:
    """Once for each change of the alias file, in whichever process: who reads instead shall hear of what nobody was
    told. Digests that were stopped for an address go on as its readers', and are stopped again once it is a person
    again. Raises StoreUnavailable.
    """
    version = parts.people.names().version
    # The process's own memory as well: hosts whose files differ would take turns for ever.
    if (
        not parts.people.text()
        or version == parts.people.processed_version
        or notes.ALIASES.get(parts.store) == version
    ):
        return
    _find_news(parts, now - timedelta(days=parts.settings.store.retention_days))
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
            # Before they go on: an interruption in between must not forget who had stopped.
            stopped |= aliases
            notes.STOPPED_ALIASES.set(parts.store, stopped)
        for address in aliases:
            parts.store.recipients.set_digests_stopped(address, None)
        for person in people:
            if person.news_since is not None:
                pass_news_on(parts, person.recipient)
    notes.ALIASES_LAST_GOOD.set(parts.store, parts.people.text())
    notes.ALIASES.set(parts.store, version)
    parts.people.processed_version = version


def _restore_opt_outs(parts: Parts) -> dict[str, datetime]:
    """Stop the digests of those who had stopped them, became an alias, and are a person again; returns who is still an
    alias, and since when their digests were stopped."""
    stopped = dict(notes.STOPPED_ALIASES.get(parts.store) or {})
    back = [address for address in stopped if parts.people.is_person(address)]
    for address in back:
        parts.store.recipients.set_digests_stopped(address, stopped.pop(address))
    if back:
        notes.STOPPED_ALIASES.set(parts.store, stopped)
    return stopped


def skip_reason(parts: Parts, recipient: str) -> str:
    """Why this recipient is not told, in words; "" when they are. Those who stopped are the store's to know."""
    if not parts.people.is_person(recipient):
        return f"read by {', '.join(map(shown_address, parts.people.readers(recipient)))}"
    if not parts.settings.is_local(recipient):
        return "not in local_domains"
    # Who chose a schedule is asked for only where that matters: the defaults alone cost no question.
    if plan_of(parts, recipient, NO_PREFERENCES).schedule is not Schedule.NEVER:
        return ""
    chosen = plan_of(parts, recipient, parts.store.recipients.get(recipient).preferences).schedule
    return "digest.schedule is never" if chosen is Schedule.NEVER else ""


def recipients_with_news(parts: Parts) -> Iterator[str]:
    """Identities of all recipients with news who did not stop digests, in order."""
    after = ""
    while page := parts.store.digests.due(None, PAGE, after):
        yield from page
        after = page[-1]


def find_news(parts: Parts, now: datetime) -> int:
    """Mark recipients with held mail that was never announced as having news; returns how many were.

    Heals what a race left out, and what a clock that was ahead did to times; tells those whose domain became local.
    Raises StoreUnavailable.
    """
    mended = parts.store.repair_clock_skew(now)
    if mended:
        log.warning("a clock was ahead: planned anew digests, releases or mails=%d", mended)
    found = _find_news(parts, now - NEWS_LOOKED_FOR)
    if parts.people.file is not None:
        _apply_changed_file(parts, now)
        # Their own mark may stand since before: new mail for such an address leaves none for the others.
        for recipient in [
            *parts.store.recipients.with_unannounced(parts.people.shared_mailboxes(), now - NEWS_LOOKED_FOR),
            *recipients_with_news(parts),
        ]:
            pass_news_on(parts, recipient)
    return found


def _find_news(parts: Parts, since: datetime) -> int:
    found = parts.store.recipients.find_news(since, [*parts.settings.local_domains, *parts.people.non_local_names()])
    if found:
        log.info("found news for recipients=%d", found)
    return found
