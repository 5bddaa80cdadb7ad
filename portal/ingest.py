"""Decision about an incoming message: is it held, in which tier, for which recipients, and who is notified.

All messages are held through this module. The exporter's endpoint uses it for messages that Rspamd posts,
`import-original` for messages that the original script stored.
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
    """Result of `Ingest.hold`. The values are the status in the endpoint's answer."""

    HELD = "held"
    KNOWN = "known"  # it was held before
    NOT_SELECTED = "not-selected"  # this portal sent it


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result, and the id of the held message if there is one."""

    result: Result
    id: UUID | None = None


class Ingest:
    """Processing of parsed messages. One object per process, used by many threads.

    ``alarms``: notify the administrator when Rspamd withholds this portal's own messages or scans released messages.
    """

    def __init__(self, parts: Parts, *, alarms: bool = True) -> None:
        self._parts = parts
        self._alarms = alarms

    def hold(self, posted: Posted, *, at: datetime | None = None) -> Outcome:
        """Hold a parsed message; on return it is durable.

        ``at``: the time at which another program held it, aware UTC; None: now. Raises StoreUnavailable; holding the
        message again is then always safe.
        """
        parts, export = self._parts, posted.export
        kind, id = (export.mark and parts.links.read_mark(export.mark)) or ("", None)
        if kind in ("digest", "mail"):
            self._alarm(
                "our own mail is withheld by Rspamd",
                "Rspamd exported a digest or sign-in message of this portal, so it withholds such messages from their "
                "recipients. Exempt them in Rspamd: see docs/install.md.",
            )
            log.error("not selected: own mail queue_id=%s mark=%s", export.queue_id, id)
            return Outcome(Result.NOT_SELECTED)
        if kind == "release" and id is not None and self._has_same_content(id, posted):
            self._alarm(
                "released mail is scanned again",
                "Rspamd exported a message that this portal had released, so relay.url points to a listener that "
                "scans. Released messages are withheld again. Set up a listener that does not scan: see "
                "docs/install.md.",
            )
            log.error("known: released mail came back queue_id=%s id=%s", export.queue_id, id)
            return Outcome(Result.KNOWN, id)
        tier, people = parts.tiers.of(export), parts.people
        if people.delimiter:
            export = replace(export, identities=tuple(map(people.held_as, export.recipients)))
        notified = {who for who, a in zip(export.held_for, export.recipients, strict=True) if people.is_notified(a)}
        held = parts.store.messages.add(export, posted.body, tier, notified, at=at, scan=parts.scanning.is_on)
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
            log.warning("tier raised id=%s tier=%s: exported again with a worse verdict", raised, tier.value)
        return Outcome(result, held.id)

    def _alarm(self, subject: str, text: str) -> None:
        if self._alarms:
            self._parts.actions.alarm_hourly(subject, text)

    def _has_same_content(self, id: UUID, posted: Posted) -> bool:
        """Return whether the posted message is the one held under ``id``.

        The mark alone proves nothing: any recipient of a released message can copy its mark to another message. A
        damaged message cannot be compared, so the posted one is held.
        """
        try:
            held = content_digest(self._parts.store.messages.body(id))
        except (NotFound, BodyDamaged):
            return False
        return hmac.compare_digest(held, content_digest(posted.body.chunks()))
