"""The commands ``quarantine staff …``: who has which role, and second factors."""

from __future__ import annotations

import click

from portal.cli.common import (
    NotDone,
    WrongCall,
    add_row,
    current_operator,
    guarded,
    json_text,
    new_table,
    open_parts,
    print_table,
)
from portal.cli.options import FILLED
from portal.model.domains import shown_address
from portal.model.errors import BadGrant
from portal.model.message import domain, identity
from portal.model.staff import EVERYWHERE, Grant, Role
from portal.model.text import shown

_ROLE = click.Choice([role.value for role in Role])


@click.group()
def staff() -> None:
    """List, give and remove the roles of administrators, help desk and auditors."""


@staff.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
@guarded
def list_(as_json: bool) -> None:
    """List the roles in effect, and who gave them."""
    with open_parts() as parts:
        grants = [(grant, parts.staff.is_of_settings(grant)) for grant in parts.staff.all()]
    if as_json:
        for grant, of_settings in grants:
            click.echo(json_text(_grant_json(grant, of_settings=of_settings)))
        return
    table = new_table("person", "role", "domain", "given at (UTC)", "by")
    for grant, of_settings in grants:
        given = ("", "settings") if of_settings else (f"{grant.given_at:%Y-%m-%d %H:%M}", shown(grant.actor.who))
        add_row(table, shown_address(grant.person), grant.role, _domain(grant.domain), *given)
    print_table(table)


@staff.command()
@click.argument("address", type=FILLED, metavar="ADDRESS")
@click.argument("role", type=_ROLE)
@click.option("--domain", "host", type=FILLED, metavar="DOMAIN", help="Only for this domain. Default: all domains.")
@guarded
def add(address: str, role: str, host: str | None) -> None:
    """Give a role to a person.

    A domain-administrator needs a domain, an administrator has none. It takes effect at once.
    """
    with open_parts() as parts:
        try:
            is_new = parts.staff.give(address, Role(role), host or EVERYWHERE, current_operator())
        except BadGrant as error:
            raise WrongCall(str(error)) from error
    click.echo(f"{_line(address, role, host)}: {'given' if is_new else 'given before'}")


@staff.command()
@click.argument("address", type=FILLED, metavar="ADDRESS")
@click.argument("role", type=_ROLE)
@click.option("--domain", "host", type=FILLED, metavar="DOMAIN", help="The domain of the role. Default: all domains.")
@guarded
def remove(address: str, role: str, host: str | None) -> None:
    """Remove a role from a person, and sign them out of the console."""
    with open_parts() as parts:
        try:
            parts.staff.remove(address, Role(role), host or EVERYWHERE, current_operator())
        except BadGrant as error:
            raise NotDone(f"{error} `quarantine staff list` shows all roles.") from error
    click.echo(f"{_line(address, role, host)}: removed")


@staff.command("reset-second-factor")
@click.argument("address", type=FILLED, metavar="ADDRESS")
@guarded
def reset_second_factor(address: str) -> None:
    """Remove the second factor of a person who lost it, and sign them out of the console.

    They set up a new one when they sign in.
    """
    with open_parts() as parts:
        is_reset = parts.second_factors.reset(address, current_operator())
    if not is_reset:
        raise NotDone(f"{shown_address(identity(address))} has no second factor: check the address")
    click.echo(f"{shown_address(identity(address))}: second factor removed")


@staff.command("set-up-code")
@click.argument("address", type=FILLED, metavar="ADDRESS")
@guarded
def set_up_code(address: str) -> None:
    """Print a code with which a person sets up a second factor.

    It works once, and replaces their present second factor. Give it to the person by telephone, not by mail.
    """
    with open_parts() as parts:
        try:
            code = parts.second_factors.make_set_up_code(address, current_operator())
        except BadGrant as error:
            raise NotDone(f"{error} `quarantine staff list` shows all roles.") from error
    click.echo(code)


def _line(address: str, role: str, host: str | None) -> str:
    return f"{shown_address(identity(address))} {role} {_domain(domain(host or EVERYWHERE))}"


def _domain(host: str) -> str:
    return shown_address(host) if host != EVERYWHERE else "all domains"


def _grant_json(grant: Grant, *, of_settings: bool) -> dict[str, object]:
    return {
        "person": grant.person,
        "role": grant.role.value,
        "domain": grant.domain or None,
        "given_at": None if of_settings else grant.given_at.isoformat(),
        "given_by": "settings" if of_settings else grant.actor.who,
        "group": grant.group or None,
        "source": grant.source or None,
        "expires_at": None if grant.expires_at is None else grant.expires_at.isoformat(),
    }


COMMANDS = (staff,)
