"""The portal's own mail that waits to be sent, in table `outbox`."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from uuid import UUID, uuid4

from portal.model.errors import QuarantineError
from portal.model.message import new_id
from portal.stores import lifecycle
from portal.stores.contracts import Outbox
from portal.stores.records import OutgoingMail, QueuedMail
from portal.stores.shared.outcomes import Outcomes
from portal.stores.shared.session import Engine, Session

log = logging.getLogger("quarantine.store")


class SqlOutbox(Outbox):
    """See `Outbox`."""

    def __init__(self, engine: Engine, outcomes: Outcomes) -> None:
        self._engine = engine
        self._outcomes = outcomes

    def add(self, mail: QueuedMail, now: datetime) -> None:
        with self._engine.writing() as session:
            queue(session, mail, now)

    @contextmanager
    def sending(self, now: datetime) -> Iterator[OutgoingMail | None]:
        lease = uuid4()
        claimed = self._claim(lease, now)
        if claimed is None:
            yield None
            return
        outgoing, queued_at = claimed
        try:
            yield outgoing
        except BaseException as error:
            later = lifecycle.next_mail_try(error, outgoing.attempts, queued_at, now)
            try:
                failure = partial(self._record_failure, outgoing, lease, later)
                self._outcomes.record(f"failed mail id={outgoing.id}", failure)
            except QuarantineError as store_error:  # the mail is retried once the lease expires
                log.error("failure of outgoing mail not recorded id=%s: %s", outgoing.id, store_error)
            raise

        def record() -> None:
            with self._engine.writing() as session:
                session.execute("delete from outbox where id = :id", id=outgoing.id)

        self._outcomes.record(f"mail id={outgoing.id}", record)

    def _claim(self, lease: UUID, now: datetime) -> tuple[OutgoingMail, datetime] | None:
        self._outcomes.record_kept()
        free = self._outcomes.and_free()
        with self._engine.writing() as session:
            row = session.one(
                f"select id, address, mail, attempts, queued_at from outbox where next_try_at <= :now{free}"
                " order by next_try_at limit 1",
                for_update=True,
                skip_locked=True,
                now=now,
            )
            if row is None:
                return None
            id, to, mail, attempts, queued_at = row
            claim = "update outbox set attempts = attempts + 1, next_try_at = :until, lease = :lease where id = :id"
            session.execute(claim, until=now + lifecycle.LEASE, lease=lease, id=id)
        return OutgoingMail(id, to, mail, attempts + 1), queued_at

    def _record_failure(self, mail: OutgoingMail, lease: UUID, next_try_at: datetime | None) -> None:
        statement = "delete from outbox where id = :id and lease = :lease"
        if next_try_at is not None:
            statement = "update outbox set next_try_at = :at, lease = null where id = :id and lease = :lease"
        with self._engine.writing() as session:
            session.execute(statement, mail, lease=lease, at=next_try_at)


def queue(session: Session, mail: QueuedMail, now: datetime) -> None:
    """Put a mail into the outbox."""
    insert = "insert into outbox (id, address, mail, queued_at, next_try_at) values (:id, :to, :content, :now, :now)"
    session.execute(insert, mail, id=new_id(now), now=now)
