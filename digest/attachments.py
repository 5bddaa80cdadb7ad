"""Reading the names of attachments, for searches: a pass over messages after they were held.

A post to the portal parses no MIME. This pass reads the messages for which Rspamd reports an attachment, in the
restricted process that also reads them for pages. It works like a cursor in two directions: new messages first, then
those held before it began, newest first. A message whose names are recorded is not read again, so the pass may begin
again at any time, and several processes may run it.
"""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from uuid import UUID

from digest.stopping import Stopped, never, or_after
from portal.assemble import Parts
from portal.model.errors import BodyDamaged, Busy, NotFound
from portal.model.message import Message, first_id
from portal.model.reasons import has_attachment
from portal.reading import read
from portal.stores import notes
from portal.stores.notes import IdRange

log = logging.getLogger("quarantine.digest")

_SECONDS = 2  # of five
_COMMITTED = timedelta(minutes=1)  # ids are not committed in their order
_AT_ONCE = 20
_NAMES = 50  # of one message
_NAMES_CHARS = 2_000  # of all its names
_LOWEST = UUID(int=0)
_READER = ""  # the reader of the messages, for the limits of `read`


def read_names(parts: Parts, now: datetime, *, stopped: Stopped = never) -> int:
    """Read the names of attachments for a while. Return how many messages were read. Raises StoreUnavailable."""
    stopped, count = or_after(_SECONDS, stopped), 0
    messages, end = parts.store.messages, first_id(now - _COMMITTED)
    done = notes.NAMES_READ.get(parts.store) or IdRange(end, end)
    if done.last > end:  # the clock was ahead
        done = IdRange(end, end)
    while not stopped():
        found = messages.without_names(done.last, end, _AT_ONCE)
        if found:
            done = done._replace(last=UUID(int=found[-1].id.int + 1))
        elif done.first == _LOWEST:
            break
        else:
            found = messages.without_names(_LOWEST, done.first, _AT_ONCE, newest_first=True)
            done = done._replace(first=found[-1].id if found else _LOWEST)
        for message in filter(has_attachment, found):
            if stopped() or not _record(parts, message):
                return count
            count += 1
        notes.NAMES_READ.set(parts.store, done)
    return count


def _record(parts: Parts, message: Message) -> bool:
    """Record the names of one message. Return False if it cannot be read now."""
    try:
        found = read(parts.store.messages.body(message.id), _READER).attachments
    except Busy:
        return False
    except (NotFound, BodyDamaged) as error:
        log.error("attachments not read id=%s: %s", message.id, error)
        return True
    names, left = list[str](), _NAMES_CHARS
    for attachment in found[:_NAMES]:
        left -= len(attachment.name) + 1
        if attachment.name and left >= 0:
            names.append(attachment.name)
    parts.store.messages.record_names(message.id, names)
    return True
