"""What happens to a message that came in: whether it is held, as how dangerous, for whom, and who is notified.

The one way in. The exporter's endpoint uses it for what Rspamd posts, `import-original` for what the original script
kept.
"""

from __future__ import annotations

import hmac
import logging
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from portal.assemble import Parts
from portal.exporter import Posted, content_digest
from portal.model.errors import BodyDamaged, NotFound

log = logging.getLogger("quarantine.ingest")


class Result(StrEnum):
    """What `Ingest.hold` did. The values are the status in the endpoint's answer."""

    HELD = "held"
    KNOWN = "known"  # it was held before
    NOT_SELECTED = "not-selected"  # it is a mail of this portal itself


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result, and the id of the held message if there is one."""

    result: Result
    id: UUID | None = None


class Ingest:
    """Holds messages. One object per process, used by many threads.

    ``alarms``: tell the administrator when Rspamd withholds our own mail, or scans what we released.
    """

    def __init__(self, parts: Parts, *, alarms: bool = True) -> None:
        self._parts = parts
        self._alarms = alarms

    def hold(self, posted: Posted, *, at: datetime | None = None) -> Outcome:
        """Hold a parsed message; on return it is durable.

        ``at``: when it was held elsewhere, aware UTC; None: now. Raises StoreUnavailable, after which holding it again
        is always right.
        """
        parts, export = self._parts, posted.export
        kind, id = (export.mark and parts.links.read_mark(export.mark)) or ("", None)
        if kind in ("digest", "mail"):
            self._alarm(
                "our own mail is withheld by Rspamd",
                "Rspamd exported a digest or sign-in mail of this portal to it, so it withholds them from their "
                "recipients. Let them pass: docs/install.md tells how.",
            )
            log.error("not selected: own mail queue_id=%s mark=%s", export.queue_id, id)
            return Outcome(Result.NOT_SELECTED)
        if kind == "release" and id is not None and self._has_same_content(id, posted):
            self._alarm(
                "released mail is scanned again",
                "Rspamd exported a mail that this portal had released, so relay.url leads to a listener that scans. "
                "Released mail is withheld once more: docs/install.md has the lines for a listener that does not scan.",
            )
            log.error("known: released mail came back queue_id=%s id=%s", export.queue_id, id)
            return Outcome(Result.KNOWN, id)
        tier, people = parts.tiers.of(export), parts.people
        if people.delimiter:
            export = replace(export, identities=tuple(map(people.held_as, export.recipients)))
        notified = {who for who, a in zip(export.held_for, export.recipients, strict=True) if people.is_notified(a)}
        held = parts.store.messages.add(export, posted.body, tier, notified, at=at)
        result = Result.KNOWN if held.known else Result.HELD
        log.info(
            "%s id=%s queue_id=%s size=%d recipients=%d tier=%s flags=%s",
            result.value,
            held.id,
            export.queue_id,
            export.size_bytes,
            len(export.recipients),
            tier.value,
            ",".join(sorted(export.flags)) or "-",
        )
        for raised in held.raised:
            log.warning("tier raised id=%s tier=%s: the mail came again with a worse verdict", raised, tier.value)
        return Outcome(result, held.id)

    def _alarm(self, subject: str, text: str) -> None:
        if self._alarms:
            self._parts.actions.alarm_hourly(subject, text)

    def _has_same_content(self, id: UUID, posted: Posted) -> bool:
        """Return whether the posted mail is the one held under ``id``.

        The mark alone proves nothing: anyone who was sent a released mail can copy it onto another. A damaged mail
        cannot be compared, so the posted one is held.
        """
        try:
            held = content_digest(self._parts.store.messages.body(id))
        except (NotFound, BodyDamaged):
            return False
        return hmac.compare_digest(held, content_digest(posted.body.chunks()))
