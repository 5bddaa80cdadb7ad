"""The section of staff."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_validator

from portal.model.message import domain, identity
from portal.model.staff import Role, fits
from portal.settings.values import Network, Section, Words, words


def _group_roles(value: Any) -> Any:
    if isinstance(value, str):
        raise ValueError('expected a table like [staff.groups] with "NAME" = "ROLE", which only the file can have')
    if not isinstance(value, dict):
        return value
    return {
        name: tuple(_role_for(name, text) for text in ([roles] if isinstance(roles, str) else roles))
        for name, roles in value.items()
    }


def _role_for(group: str, text: Any) -> tuple[Role, str]:
    """Return the role and the domain of a text like "help-desk" or "help-desk:example.org"."""
    name, _, host = str(text).partition(":")
    try:
        role = Role(name)
    except ValueError as error:
        known = ", ".join(Role)
        raise ValueError(f'"{group}": {text!r} is not a role; the roles are {known}') from error
    if not fits(role, domain(host)):
        wanted = "has no domain" if role is Role.ADMINISTRATOR else f'needs a domain: "{role}:example.org"'
        raise ValueError(f'"{group}": the role {role} {wanted}')
    return role, domain(host)


Groups = Annotated[dict[str, tuple[tuple[Role, str], ...]], BeforeValidator(_group_roles)]


class StaffSettings(Section):
    """The console of administrators, help desk and auditors; see docs/staff.md."""

    administrators: Words = Field(
        (),
        description="Addresses of the first administrators. They give all other roles, on the console's page or with "
        "`quarantine staff`.",
    )
    networks: Annotated[tuple[Network, ...], BeforeValidator(words)] = Field(
        (),
        description="Networks from which the console and the API can be used, in CIDR notation. Default: all. "
        "Elsewhere their addresses are answered with 404.",
    )
    groups: Groups = Field(
        {},
        description="Roles by the groups that OpenID Connect or LDAP names, in a table `[staff.groups]`: "
        '`"mail admins" = "administrator"`. Several roles are a list; `help-desk:example.org` is for one domain.',
    )
    monthly_report: bool = Field(
        True,
        description="Whether administrators, and domain administrators for their domains, get a mail with the "
        "statistics of each month, at the first time of `digest.at` on the first of the next one.",
    )
    help_desk_sees_bodies: bool = Field(
        False, description="Whether the help desk may read the texts and attachments of messages."
    )

    second_factor: bool = Field(
        False,
        description="Whether the console asks everybody for a second factor, except after signing in with OpenID "
        "Connect, whose provider asks. Without it only those are asked who have set one up.",
    )

    @field_validator("administrators")
    @classmethod
    def _addresses(cls, addresses: tuple[str, ...]) -> tuple[str, ...]:
        for address in addresses:
            if not all(address.rpartition("@")) or any(c.isspace() for c in address):
                raise ValueError(f"{address!r} is not an address like me@example.org")
        return tuple(dict.fromkeys(map(identity, addresses)))
