"""The mail to recipients after a mass act: one for each person, with the number of their messages and the reason.

The numbers come from the audit, in which the act for each delivery names the job. So nothing has to be kept for each
recipient while the job runs. Of a release, the state of each delivery says whether the mail server accepted it; those
that it deferred are named apart, since they may fail later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import NamedTuple
from uuid import UUID

from portal.actions import Actions
from portal.batches.batch import Act, Progress, actor_of
from portal.batches.mass import MassAct
from portal.model.message import EventKind, State
from portal.model.record import record
from portal.people import Directory
from portal.stores.lifecycle import address_of
from portal.stores.records import Job, QueuedMail

MAIL_PAUSE = timedelta(seconds=2)  # between two calls of `next`
_RECIPIENTS = 100  # in one call
_CLOCKS_DIFFER = timedelta(days=1)  # at most, of two hosts
_DONE = {
    Act.RELEASE: EventKind.RELEASING,
    Act.DELETE: EventKind.DELETED,
    Act.RESTORE: EventKind.RESTORED,
    Act.REANNOUNCE: EventKind.REANNOUNCED,
}


class _Counts(NamedTuple):
    """Deliveries of one recipient."""

    done: int  # the mail server accepted their release, or the act is done
    deferred: int = 0  # their release is tried again
    blocked: int = 0  # restored, and blocked as before their deletion
    passed: int = 0  # restored, and let through as before


@record(frozen=True, slots=True)
class MassMail:
    """Writes the mails about a mass act."""

    actions: Actions
    people: Directory

    def next(self, job: Job, mass: MassAct, progress: Progress) -> tuple[list[QueuedMail], str]:
        """Return mails to the next people, and the cursor after them; "": nobody follows.

        Each call reads the next entries of the audit, so the work grows with the deliveries and not faster.
        """
        audit, cursor = self.actions.store.audit, UUID(progress.mailed_until) if progress.mailed_until else None
        acted = (actor_of(job.id, job.actor), _DONE[mass.act], job.created_at - _CLOCKS_DIFFER)
        mailed: list[QueuedMail] = []
        while True:
            turn, after = audit.acted_on(*acted, _RECIPIENTS, cursor)
            people = {person for recipient in turn for person in self.people.readers(recipient)}
            read = {person: self.people.reader(person).identities for person in people}
            others = {each for identities in read.values() for each in identities}.difference(turn)
            earlier = audit.acted_before(*acted, others, cursor) if cursor and others else ()
            counts = self._counts(audit.tally(*acted, [*turn, *others]), mass) if turn else {}
            for person, identities in sorted(read.items()):
                # Who reads several addresses gets one mail, when it is the turn of the first of them.
                own = [counts[each] for each in identities if each in counts]
                if own and not any(each in earlier for each in identities):
                    mailed += self._mail(person, mass, _Counts(*map(sum, zip(*own, strict=True))))
            if turn or after is None:
                return mailed, str(after or "")
            cursor = after  # these entries are about recipients whose turn it was before

    @staticmethod
    def _counts(tally: Mapping[str, Mapping[State | None, int]], mass: MassAct) -> Mapping[str, _Counts]:
        """Return how many deliveries of each recipient the job has changed."""
        if mass.act is not Act.RELEASE:
            restored = (State.BLOCKED, State.PASSED) if mass.act is Act.RESTORE else ()
            return {
                recipient: _Counts(sum(states.values()), 0, *(states.get(each, 0) for each in restored))
                for recipient, states in tally.items()
            }
        return {
            recipient: _Counts(states.get(State.RELEASED, 0), states.get(State.RELEASING, 0))
            for recipient, states in tally.items()
        }

    def _mail(self, person: str, mass: MassAct, counts: _Counts) -> Sequence[QueuedMail]:
        """Return the mail to a person, if there is something to say, and they are a recipient here who gets digests."""
        if not any(counts):
            return ()
        stored = self.actions.store.recipients.get(person)
        if stored.stopped_at is not None or not self.actions.is_local(person):
            return ()
        mail = self.actions.mail(
            address_of(person, stored.address),
            "mass",
            self.actions.domains.of(person),
            act=mass.act.value,
            count=counts.done,
            deferred=counts.deferred,
            blocked=counts.blocked,
            passed=counts.passed,
            reason=mass.reason,
        )
        return [mail] if mail else ()
