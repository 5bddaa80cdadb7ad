"""The mail to recipients after a mass act: one for each person, with the number of their messages and the reason.

The numbers come from the audit, in which the act for each delivery names the job. So nothing has to be kept for each
recipient while the job runs. Of a release, the state of each delivery says whether the mail server accepted it; those
that it deferred are named apart, since they may fail later.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import NamedTuple

from portal.actions import Actions
from portal.batches.batch import Act, Progress, actor_of
from portal.batches.mass import MassAct
from portal.model.message import EventKind, State
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


@dataclass(frozen=True, slots=True)
class MassMail:
    """Writes the mails about a mass act."""

    actions: Actions
    people: Directory

    def next(self, job: Job, mass: MassAct, progress: Progress) -> tuple[list[QueuedMail], str]:
        """Return mails to the next people, and the last recipient after them; "": nobody follows."""
        counts = self._counts(job, mass, after=progress.mailed_until)
        people = {person for recipient in counts for person in self.people.readers(recipient)}
        read = {person: self.people.reader(person).identities for person in people}
        others = {each for identities in read.values() for each in identities} - counts.keys()
        known = {**counts, **self._counts(job, mass, among=others)} if others else counts
        mails: list[QueuedMail] = []
        for person, identities in sorted(read.items()):
            own = [each for each in identities if each in known]
            # Who reads several addresses gets one mail, when it is the turn of the first of them.
            if own and min(own) in counts:
                mails += self._mail(person, mass, _Counts(*map(sum, zip(*(known[each] for each in own), strict=True))))
        return mails, [*counts][-1] if len(counts) == _RECIPIENTS else ""

    def _counts(
        self, job: Job, mass: MassAct, after: str = "", among: Collection[str] | None = None
    ) -> Mapping[str, _Counts]:
        """Return how many deliveries of each recipient the job has changed."""
        found = self.actions.store.audit.tally(
            actor_of(job.id, job.actor),
            _DONE[mass.act],
            job.created_at - _CLOCKS_DIFFER,
            _RECIPIENTS,
            after=after,
            subjects=among,
        )
        if mass.act is not Act.RELEASE:
            return {recipient: _Counts(sum(states.values())) for recipient, states in found.items()}
        return {
            recipient: _Counts(states.get(State.RELEASED, 0), states.get(State.RELEASING, 0))
            for recipient, states in found.items()
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
            reason=mass.reason,
        )
        return [mail] if mail else ()
