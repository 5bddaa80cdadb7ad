"""Staff: which roles people have, and what each role may do. The only place that decides this.

Roles are in the store, and `staff.administrators` in the settings names the first administrators. They are read for
each request, so that a change takes effect at once. docs/staff.md has the table for readers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum

from portal.model.clock import utc_now
from portal.model.errors import BadGrant, NotAllowed
from portal.model.message import API, CONSOLE, Actor, ActorKind, Delivery, State, Tier, domain, identity, is_address
from portal.model.record import record
from portal.model.rights import Access, ReleaseRight, access
from portal.model.staff import EVERYWHERE, Grant, Role, fits
from portal.model.text import N_
from portal.model.token import Scope, Token
from portal.people import Directory
from portal.policy.domains import Domains
from portal.settings import Settings
from portal.stores import Store
from portal.stores.lifecycle import SESSION_MAX
from portal.stores.records import MAILED_LINK, Method, QueuedMail

log = logging.getLogger("quarantine.staff")

NOT_YOURS = N_("This is your own message: somebody else must decide about it.")
NOT_BY_ROLE = "this member of staff may not release this message"
_ADDRESS_CHARACTERS = 254  # as on the sign-in page
# Sign-ins with these prove no more than that somebody reads the person's mail.
_OF_MAILBOX = frozenset({MAILED_LINK.name, "imap"})
SETTINGS = "settings"  # `Actor.via` of the roles that the settings file gives


class Permission(StrEnum):
    """Something that only staff may do to the messages, recipients and settings of a domain."""

    SEE_ENVELOPE = "see-envelope"  # also subject, reasons, symbols, state and history
    SEE_BODY = "see-body"
    RELEASE_SPAM = "release-spam"
    RELEASE_SUSPICIOUS = "release-suspicious"
    RELEASE_DANGEROUS = "release-dangerous"
    DELETE = "delete"
    RESTORE = "restore"
    SEND_LINK = "send-link"  # to the recipient's own address
    MANAGE_RECIPIENTS = "manage-recipients"  # digests, preferences, sessions and rules of other people
    MANAGE_DOMAIN_POLICY = "manage-domain-policy"
    MANAGE_STAFF = "manage-staff"
    READ_AUDIT = "read-audit"


_RELEASE = {
    Tier.SPAM: Permission.RELEASE_SPAM,
    Tier.SUSPICIOUS: Permission.RELEASE_SUSPICIOUS,
    Tier.DANGEROUS: Permission.RELEASE_DANGEROUS,
}
_TIER = {permission: tier for tier, permission in _RELEASE.items()}

# What a role may do at most. `Staff.may` takes some of it away, by the settings and by the policy of a domain.
PERMISSIONS: Mapping[Role, frozenset[Permission]] = {
    Role.ADMINISTRATOR: frozenset(Permission),
    Role.DOMAIN_ADMINISTRATOR: frozenset(Permission) - {Permission.RELEASE_DANGEROUS},
    Role.HELP_DESK: frozenset(
        {Permission.SEE_ENVELOPE, Permission.SEE_BODY, Permission.RELEASE_SPAM, Permission.SEND_LINK}
    ),
    Role.AUDITOR: frozenset({Permission.SEE_ENVELOPE, Permission.READ_AUDIT}),
}

# What an API token may do at most. None may give roles: a stolen token could otherwise give a lasting one.
_ADMINISTERING = frozenset({Role.ADMINISTRATOR, Role.DOMAIN_ADMINISTRATOR})
SCOPES: Mapping[Scope, frozenset[Permission]] = {
    Scope.READ: frozenset({Permission.SEE_ENVELOPE, Permission.SEE_BODY, Permission.READ_AUDIT}),
    Scope.ACT: frozenset(Permission) - {Permission.MANAGE_STAFF},
}

# The strictest `ReleaseRight` with which a role may release. A right says what recipients may do, so the help desk
# releases what the recipient could release.
_STRICTEST = {
    Role.ADMINISTRATOR: ReleaseRight.ADMINISTRATOR,
    Role.DOMAIN_ADMINISTRATOR: ReleaseRight.REQUEST,
    Role.HELP_DESK: ReleaseRight.SELF,
}


@record(frozen=True, slots=True)
class Member:
    """A person with the roles that they have now, or an API token with those that its owner shares with it now."""

    person: str  # identity; the owner of the token
    grants: tuple[Grant, ...]
    token: Token | None = None
    method: str = ""  # name of the sign-in method of their session, whose groups give some of these roles; "": unknown

    def acting_from(self, address: str) -> Actor:
        """Return the actor of what they do in the console, or by the API. ``address``: the client's."""
        via = CONSOLE if self.token is None else f"{API}:{self.token.id}"
        return Actor(ActorKind.OPERATOR, self.person, via, address)

    def is_limited_from(self, permission: Permission) -> bool:
        """Return whether the scope of a token excludes this, whatever its role permits."""
        return self.token is not None and permission not in SCOPES[self.token.scope]


@record(frozen=True, slots=True)
class Staff:
    """Roles and permissions. Thread-safe; one for each process."""

    settings: Settings
    store: Store
    domains: Domains
    people: Directory
    now: Callable[[], datetime] = utc_now

    # ---- who has which role

    def member(self, person: str, method: str | None = None, stored: Sequence[Grant] | None = None) -> Member:
        """Return a person with their roles, of which there may be none. ``person``: an identity.

        ``method``: the name of their session's, in which the groups of other methods give no roles; "": no groups do.
        ``stored``: all their roles in the store, if they were read just now.
        """
        stored = self.store.staff.of(person) if stored is None else stored
        valid = [grant for grant in stored if method is None or grant.source in ("", method)]
        return Member(person, tuple(self._in_effect([*self._of_settings(person), *valid])), method=method or "")

    def all(self, known: Sequence[Grant] | None = None) -> Sequence[Grant]:
        """Return all roles that are in effect, ordered by person, role and domain. ``known``: by `known`, if read."""
        found = self._in_effect(self.known() if known is None else known)
        return sorted(found, key=lambda grant: (grant.person, grant.role, grant.domain))

    def known(self) -> Sequence[Grant]:
        """Return all roles, also those that have no effect now, in no order."""
        of_settings = [grant for person in self.settings.staff.administrators for grant in self._of_settings(person)]
        return [*of_settings, *self.store.staff.all()]

    @staticmethod
    def administers(member: Member) -> bool:
        """Return whether a person administers a domain."""
        return any(grant.role in _ADMINISTERING for grant in member.grants)

    def administrators(self) -> Mapping[str, frozenset[str]]:
        """Return the people who administer domains and can sign in, with these domains: EVERYWHERE alone for all."""
        found: dict[str, set[str]] = {}
        for grant in self.all():
            if grant.role in _ADMINISTERING and self.can_sign_in(grant.person):
                found.setdefault(grant.person, set()).add(grant.domain)
        return {person: frozenset({EVERYWHERE} if EVERYWHERE in hosts else hosts) for person, hosts in found.items()}

    def unusable(self) -> Sequence[Grant]:
        """Return the roles that were given and that nobody can use: the person cannot sign in, or the domain is not
        local. Those by groups end by themselves."""
        found = [grant for grant in self.known() if not grant.source]
        return [grant for grant in found if not self._in_effect([grant]) or not self.can_sign_in(grant.person)]

    def can_sign_in(self, person: str) -> bool:
        """Return whether this identity is a person in a local domain."""
        return is_address(person) and self.settings.is_local(person) and self.people.is_person(person)

    def is_of_settings(self, grant: Grant) -> bool:
        """Return whether the settings file gives this role, so that it can be removed only there."""
        return not grant.source and grant.actor.via == SETTINGS

    def _of_settings(self, person: str) -> list[Grant]:
        if person not in self.settings.staff.administrators:
            return []
        long_ago = datetime.fromtimestamp(0, UTC)
        return [Grant(person, Role.ADMINISTRATOR, EVERYWHERE, long_ago, Actor(ActorKind.OPERATOR, SETTINGS, SETTINGS))]

    def _in_effect(self, grants: Sequence[Grant]) -> list[Grant]:
        """Return the roles for domains that are still local, each once: the settings file's comes first.

        A role by a group is in effect until it expires, and as long as the settings give it to the group.
        """
        found: dict[tuple[str, Role, str], Grant] = {}
        for grant in grants:
            if grant.source and not self._is_by_group(grant):
                continue
            if grant.domain == EVERYWHERE or self.domains.is_local(grant.domain):
                found.setdefault((grant.person, grant.role, grant.domain), grant)
        return list(found.values())

    def _is_by_group(self, grant: Grant) -> bool:
        given = self.settings.staff.groups.get(grant.group, ())
        is_given = (grant.role, grant.domain) in given and self.settings.has_sign_in(grant.source)
        return is_given and grant.expires_at is not None and grant.expires_at > self.now()

    def put_groups(self, person: str, source: str, groups: Collection[str]) -> None:
        """Give a person the roles of their groups, as `staff.groups` says, and remove those of their former groups.

        ``source``: the sign-in method that named the groups. The roles end after `SESSION_MAX`, unless the person signs
        in again: nobody says that somebody has left a group.
        """
        now, found = self.now(), []
        for group in sorted(set(groups) & set(self.settings.staff.groups)):
            actor = Actor(ActorKind.OPERATOR, f"group {group}", source)
            found += [
                Grant(person, role, host, now, actor, source, group, now + SESSION_MAX)
                for role, host in self.settings.staff.groups[group]
            ]
        if found or any(grant.source == source for grant in self.store.staff.of(person)):
            self.store.staff.put_groups(person, source, found, now)
            log.info("roles by groups person=%s source=%s count=%d", person, source, len(found))

    def end_groups(self, person: str) -> None:
        """Remove all roles of a person that groups give. They come back with a sign-in that names such groups."""
        for source in sorted({grant.source for grant in self.store.staff.of(person)} - {""}):
            self.put_groups(person, source, ())

    # ---- their second factor

    def needs_factor(self, method: Method, *, has_factor: bool) -> bool:
        """Return whether the console asks for a second factor in a session that began with this method.

        ``has_factor``: whether the person has set one up.
        """
        is_asked_elsewhere = method.has_own_factor or (method.name == "proxy" and self.settings.proxy.second_factor)
        return not is_asked_elsewhere and (has_factor or self.settings.staff.second_factor)

    def proofs(self, person: str, method: Method) -> Collection[str]:
        """Return the sign-in methods of which a person must use one before they set up their first factor.

        ``method``: of the session. Empty if it may be set up in this session: either it proves more than access to the
        mailbox, or the person never signed in with another method that the settings still have. The audit knows that.
        """
        if method.name not in _OF_MAILBOX:
            return ()
        used = self.store.audit.sign_in_methods(person)
        return sorted(name for name in used if name not in _OF_MAILBOX and self.settings.has_sign_in(name))

    def resettable(self, by: Member, known: Sequence[Grant], factors: Collection[str]) -> Sequence[str]:
        """Return the other people whose second factor a person may replace. ``known``: by `known`; ``factors``: the
        people who have a second factor.

        People without one are among them, unless they have roles by groups only: most providers ask themselves.
        """
        people = {*factors, *(grant.person for grant in known if not grant.source)}
        return [each for each in sorted(people - {by.person}) if self._may_reset(by, each, _of(each, known))]

    def open_by_mail(self) -> Sequence[str]:
        """Return the people whose roles everybody has who can read their mail: no group gives them, and there is no
        second factor, or the first one can be set up after a mailed link."""
        people = {grant.person for grant in self.all() if not grant.source and self.can_sign_in(grant.person)}
        people -= {factor.person for factor in self.store.second_factors.all()}
        is_required = self.settings.staff.second_factor
        return sorted(each for each in people if not (is_required and self.proofs(each, MAILED_LINK)))

    def _may_reset(self, by: Member, person: str, known: Sequence[Grant]) -> bool:
        """Return whether somebody may give all roles that the second factor of a person protects.

        ``known``: the roles of the person, also those that have no effect now. The factor also protects what the person
        may have after the next sign-in: roles by the groups of a directory, which only the directory knows. Of somebody
        without a role nobody knows what it protected.
        """
        protected = [(grant.role, grant.domain) for grant in known]
        if self.settings.ldap.uri:  # providers ask for a factor themselves, and other methods name no groups
            protected += [role for roles in self.settings.staff.groups.values() for role in roles]
        if not known:
            protected.append((Role.ADMINISTRATOR, EVERYWHERE))
        return all(self.may_give(by, role, host, person) for role, host in protected)

    def check_reset(self, person: str, by: Member | None) -> None:
        """Raise NotAllowed unless somebody may replace the second factor of a person. ``by`` as in `give`."""
        if by is not None and not self._may_reset(by, person, self._known_of(person)):
            raise NotAllowed("this member of staff may not reset the second factor of this person")

    def _known_of(self, person: str) -> Sequence[Grant]:
        return [*self._of_settings(person), *self.store.staff.of(person)]

    def reset_factor(self, person: str, actor: Actor, mail: QueuedMail | None = None) -> bool:
        """Remove the second factor of a person, and end their use of the console. Return False if there is none.
        ``mail``: about it, queued with it."""
        is_removed = self.store.second_factors.reset(person, actor, self.now(), mail=mail)
        if is_removed:
            log.info("second factor reset person=%s by=%s", person, actor.who)
        return is_removed

    # ---- what they may do

    def may(self, member: Member, permission: Permission, host: str) -> bool:
        """Return whether a person may do this to the messages, recipients and settings of a domain.

        ``host``: the domain as in an identity, or EVERYWHERE for what concerns the whole site.
        """
        return not member.is_limited_from(permission) and any(
            self._gives(grant.role, permission, host) for grant in member.grants if grant.domain in (EVERYWHERE, host)
        )

    def may_for(self, member: Member, permission: Permission, delivery: Delivery) -> bool:
        """Return whether a person may do this to a delivery. The domain of its recipient decides."""
        return self.may(member, permission, domain(delivery.recipient))

    def may_release(self, member: Member, delivery: Delivery) -> bool:
        """Return whether a person may release a delivery, by its tier and the policy of its recipient's domain."""
        if self.decides_own(member.person, delivery):
            return False
        # As `Domains.right`: a message that was not scanned is suspicious, and the rule for its verdict holds as well.
        tiers = {delivery.message.tier, delivery.message.verdict_tier}
        return all(self.may_for(member, _RELEASE[tier], delivery) for tier in tiers)

    def decides_own(self, person: str, delivery: Delivery) -> bool:
        """Return whether a person would decide about a message of their own that its recipients may not release.

        Nobody approves their own request, or releases it without one. ``person``: identity.
        """
        is_decided = delivery.state is State.REQUESTED or self.domains.right(delivery) is not ReleaseRight.SELF
        return is_decided and delivery.recipient != "" and person in self.people.readers(delivery.recipient)

    def deciders(self, delivery: Delivery) -> Sequence[str]:
        """Return the administrators of the recipient's domain who may decide about a request to release a delivery."""
        host, grants = domain(delivery.recipient), self._in_effect(self.store.staff.all())
        people = sorted(
            {each.person for each in grants if (each.role, each.domain) == (Role.DOMAIN_ADMINISTRATOR, host)}
        )
        members = [Member(person, _of(person, grants)) for person in people if self.can_sign_in(person)]
        return [member.person for member in members if self.may_release(member, delivery)]

    def check_release(self, member: Member, delivery: Delivery) -> None:
        """Raise NotAllowed unless a person may release a delivery. For `Actions.release`, right before it."""
        is_kept = delivery.state is not State.DELETED or self.may_for(member, Permission.RESTORE, delivery)
        if not (is_kept and self.may_release(member, delivery)):
            raise NotAllowed(NOT_YOURS if self.decides_own(member.person, delivery) else NOT_BY_ROLE)

    def may_release_tier(self, member: Member, tier: Tier, host: str) -> bool:
        """Return whether a person may release messages of this tier for the recipients of a domain."""
        return self.may(member, _RELEASE[tier], host)

    def access(self, member: Member, delivery: Delivery) -> Access:
        """Return what a person may see and download of a delivery whose content they may read.

        They download what they may release, as recipients do; `recipient_downloads` is not about staff.
        """
        right = ReleaseRight.SELF if self.may_release(member, delivery) else ReleaseRight.ADMINISTRATOR
        return access(delivery.message, right, downloads=True)

    def reach(self, member: Member, permission: Permission) -> frozenset[str]:
        """Return the domains for which a person may do this; EVERYWHERE is one of them if it holds for all mail.

        Empty: they may do it nowhere.
        """
        if member.is_limited_from(permission):
            return frozenset()
        return frozenset(grant.domain for grant in member.grants if self._gives(grant.role, permission, grant.domain))

    def _gives(self, role: Role, permission: Permission, host: str) -> bool:
        if permission not in PERMISSIONS[role]:
            return False
        if permission is Permission.SEE_BODY and role is Role.HELP_DESK:
            return self.settings.staff.help_desk_sees_bodies
        if permission in _TIER:
            rights = tuple(ReleaseRight)
            return rights.index(self.domains.of(host).release[_TIER[permission]]) <= rights.index(_STRICTEST[role])
        return True

    def visible(self, member: Member, grants: Sequence[Grant]) -> Sequence[Grant]:
        """Return those of all roles that a person may see: where they may read the audit."""
        return [grant for grant in grants if self.may(member, Permission.READ_AUDIT, grant.domain)]

    # ---- giving and removing roles

    def may_be_given(self, member: Member) -> Sequence[tuple[Role, str]]:
        """Return the roles that a person may give, each with a domain or EVERYWHERE."""
        return [
            (role, host)
            for role in Role
            for host in (EVERYWHERE, *self.domains.local())
            if self.may_give(member, role, host) and fits(role, host)
        ]

    def may_give(self, member: Member, role: Role, host: str, person: str = "") -> bool:
        """Return whether a person may give a role for a domain to somebody, or remove it.

        They need the right to manage staff there and everything that the role gives. People who manage the staff of
        some domains only may give roles only to people of these domains. ``person``: an identity, "" for nobody yet.
        """
        if not self.may(member, Permission.MANAGE_STAFF, host):
            return False
        held = {grant.role for grant in member.grants if grant.domain in (EVERYWHERE, host)}
        if not any(PERMISSIONS[role] <= PERMISSIONS[each] for each in held):
            return False
        return not person or self.may(member, Permission.MANAGE_STAFF, domain(person))

    def give(self, person: str, role: Role, host: str, actor: Actor, by: Member | None = None) -> Grant | None:
        """Give a role to a person for a domain, or for all mail. Return None if they have it already.

        ``by``: the member of staff who does it; None: the command line, which may give every role. Raises NotAllowed,
        BadGrant.
        """
        grant = Grant(self._checked_person(person), role, self.checked_domain(role, host), self.now(), actor)
        if by is not None and not self.may_give(by, role, grant.domain, grant.person):
            raise NotAllowed("this member of staff may not give this role")
        if self._of_settings(grant.person) and role is Role.ADMINISTRATOR:
            return None
        if not self.store.staff.give(grant):
            return None
        log.info("role given person=%s role=%s domain=%s by=%s", grant.person, role, grant.domain or "all", actor.who)
        return grant

    def remove(self, person: str, role: Role, host: str, actor: Actor, by: Member | None = None) -> None:
        """Remove a role of a person, and end their use of the console. Raises NotAllowed, BadGrant.

        ``by`` as in `give`. Roles of people who cannot sign in any more, and for domains that are not local any more,
        can be removed as well.
        """
        person, host = identity(person), domain(host)
        if by is not None and not self.may_give(by, role, host, person):
            raise NotAllowed("this member of staff may not remove this role")
        may_reset = by is None or self._may_reset(by, person, self._known_of(person))
        # First, since the store may give the same role as the settings file, and would still give it afterwards.
        is_removed = self.store.staff.remove(person, role, host, actor, self.now())
        if role is Role.ADMINISTRATOR and self._of_settings(person):
            raise BadGrant(N_("The settings file gives this role, so it can only be removed there."))
        if not is_removed and any((each.role, each.domain) == (role, host) for each in self.member(person).grants):
            raise BadGrant(N_("A group gives this role, so it can only be removed in the directory of the group."))
        if not is_removed:
            raise BadGrant(N_("This person does not have this role."))
        log.info("role removed person=%s role=%s domain=%s by=%s", person, role, host or "all", actor.who)
        # Only by who may reset it: it also protects what the person may get by a group at the next sign-in.
        if may_reset and not self.member(person).grants:
            self.reset_factor(person, actor)

    def _checked_person(self, address: str) -> str:
        person = identity(address.strip())
        if not is_address(person) or person.startswith("@") or len(person) > _ADDRESS_CHARACTERS:
            raise BadGrant(N_("Enter the address of a mailbox, like alice@example.org."))
        if not self.settings.is_local(person):
            text = N_(
                "Nobody can sign in with this address: its domain is not a local one. "
                "Enter an address in a local domain."
            )
            raise BadGrant(text)
        if self.people.held_as(person) != person:
            raise BadGrant(N_("This address has an extension. Enter the address without it."))
        if not self.people.is_person(person):
            raise BadGrant(N_("This address is an alias or a shared mailbox. Enter the address of a person."))
        return person

    def checked_domain(self, role: Role, name: str) -> str:
        """Return the domain that was typed for a role, as it is stored. Raises BadGrant."""
        host = domain(name.strip())
        if not fits(role, host) and role is Role.ADMINISTRATOR:
            raise BadGrant(N_("An administrator is responsible for all domains. Choose “All domains”."))
        if not fits(role, host):
            raise BadGrant(N_("A domain administrator needs a domain."))
        if host != EVERYWHERE and not self.domains.is_local(host):
            raise BadGrant(N_("This is not a local domain. Check the spelling."))
        return host


def _of(person: str, grants: Sequence[Grant]) -> tuple[Grant, ...]:
    return tuple(grant for grant in grants if grant.person == person)
