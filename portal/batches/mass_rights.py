"""The rights to mass acts: what each act needs, what a person may do to whom, and who may see and steer a job."""

from __future__ import annotations

from portal.batches.batch import Act
from portal.batches.mass import STATES, MassAct, Obstacle
from portal.model.message import State, Tier, domain
from portal.model.record import record
from portal.model.staff import EVERYWHERE
from portal.policy.staff import Member, Permission, Staff
from portal.policy.tokens import Tokens

_RELEASE = (Permission.RELEASE_SPAM, Permission.RELEASE_SUSPICIOUS, Permission.RELEASE_DANGEROUS)
PERMISSIONS = {  # of which one is needed somewhere
    Act.RELEASE: _RELEASE,
    Act.DELETE: (Permission.DELETE,),
    Act.RESTORE: (Permission.RESTORE,),
    Act.REFUSE: _RELEASE,  # who may approve a request denies it
    Act.REANNOUNCE: (Permission.MANAGE_RECIPIENTS,),
}
_NEED_RECIPIENT = (Act.RELEASE, Act.REANNOUNCE)


@record(frozen=True, slots=True)
class MassRights:
    """The rights of staff to mass acts."""

    staff: Staff

    def obstacle(self, act: Act, member: Member | None, host: str, tier: Tier, state: State) -> Obstacle | None:
        """Return why deliveries of this domain, tier and state are left alone, None if they are acted on.

        ``member`` None: the shell, which may do everything.
        """
        if state not in STATES[act]:
            return Obstacle.STATE
        if act in _NEED_RECIPIENT and not host:
            return Obstacle.NO_RECIPIENT
        if member is None:
            return None
        if PERMISSIONS[act] is _RELEASE:
            may = self.staff.may_release_tier(member, tier, host)
        else:
            may = any(self.staff.may(member, permission, host) for permission in PERMISSIONS[act])
        return None if may else Obstacle.NOT_PERMITTED

    def reach(self, act: Act, member: Member) -> frozenset[str]:
        """Return the domains in which a person may do this to some messages, see `Staff.reach`."""
        return frozenset[str]().union(*(self.staff.reach(member, each) for each in PERMISSIONS[act]))

    def member(self, mass: MassAct) -> Member | None:
        """Return the person or token whose rights decide about a mass act now; None: the shell.

        They have no rights if they lost their roles, or the token has ended.
        """
        if mass.token is not None:
            tokens = Tokens(self.staff.store, self.staff)
            return tokens.by_id(mass.token, self.staff.now()) or Member(mass.member, ())
        return self.staff.member(mass.member, mass.method) if mass.member else None

    def may_see(self, member: Member, mass: MassAct) -> bool:
        """Return whether a person may see a mass act: it is theirs, or only about domains whose messages they see."""
        return _is_own(member, mass) or _covers(self.staff.reach(member, Permission.SEE_ENVELOPE), mass)

    def may_steer(self, member: Member, mass: MassAct) -> bool:
        """Return whether a person may pause, resume, cancel or retry a mass act.

        Only if they may do, by the roles of their session or token, everything that it may do by the roles of the
        person who confirmed it, or by its token. That of somebody else only if they may do it in all its domains.
        """
        reach = self.reach(mass.act, member)
        if not reach or not (_is_own(member, mass) or _covers(reach, mass)):
            return False
        owner, domains = self.member(mass), _domains(mass)
        return all(
            self.staff.may(member, permission, host)
            for host in ({EVERYWHERE, *self.staff.domains.local()} if domains is None else domains)
            for permission in PERMISSIONS[mass.act]
            if owner is None or self.staff.may(owner, permission, host)
        )


def _is_own(member: Member, mass: MassAct) -> bool:
    """Return whether a mass act is by this person, or by this token: one with less rights does not steer others."""
    return mass.member == member.person and (member.token is None or member.token.id == mass.token)


def _covers(reach: frozenset[str], mass: MassAct) -> bool:
    """Return whether all messages of a mass act are for these domains."""
    domains = _domains(mass)
    return EVERYWHERE in reach or (domains is not None and domains <= reach)


def _domains(mass: MassAct) -> frozenset[str] | None:
    """Return the domains of the messages of a mass act, None for all."""
    if mass.criteria.recipient is not None:
        return frozenset({domain(mass.criteria.recipient)})
    return mass.criteria.domains
