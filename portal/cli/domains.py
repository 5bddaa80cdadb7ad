"""The commands ``quarantine domains …``: values of single domains, kept in the store."""

from __future__ import annotations

from pathlib import Path

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
    read_input,
)
from portal.cli.options import FILLED
from portal.model.brand import logo_url
from portal.model.domain_value import DomainValue
from portal.model.domains import shown_address
from portal.model.errors import BadDomainValue, DomainValueNotSet
from portal.model.message import domain
from portal.model.text import shown
from portal.policy.domains import Domains
from portal.settings.domains import EDITABLE, plain_values
from portal.settings.values import plain

_HISTORY = 50


@click.group()
def domains() -> None:
    """List and change the values that domains have of their own."""


@domains.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
@guarded
def list_(as_json: bool) -> None:
    """List the domains with values of their own, and these values."""
    with open_parts() as parts:
        found = {name: plain_values(parts.domains.own(name)) for name in parts.domains.names()}
    if as_json:
        for name, values in found.items():
            click.echo(json_text({"domain": name, **values}))
        return
    table = new_table("domain", "values")
    for name, values in found.items():
        add_row(table, shown_address(name), ", ".join(f"{key} = {_text(value)}" for key, value in values.items()))
    print_table(table)


@domains.command()
@click.argument("name", type=FILLED, metavar="DOMAIN")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@guarded
def show(name: str, as_json: bool) -> None:
    """Show the values of a domain, where each comes from, and the latest changes."""
    with open_parts() as parts:
        try:
            values, history = plain_values(parts.domains.own(name)), parts.domains.history(name, _HISTORY)
        except BadDomainValue as error:
            raise WrongCall(str(error)) from error
        sources = parts.domains.sources(name)
    if as_json:
        click.echo(json_text({"values": values, "sources": sources, "history": list(map(_change_json, history))}))
        return
    table = new_table("key", "value", "from")
    for key in EDITABLE:
        add_row(table, key, _text(values.get(key, "")), sources[key])
    print_table(table)
    for change in history:
        value = "removed" if change.value is None else f"= {_text(plain(change.value))}"
        click.echo(f"{change.set_at:%Y-%m-%d %H:%M} {change.name} {value}, by {shown(change.actor.who)}")


@domains.command("set")
@click.argument("name", type=FILLED, metavar="DOMAIN")
@click.argument("key", type=FILLED, metavar="KEY")
@click.argument("value", type=FILLED, metavar="VALUE")
@guarded
def set_(name: str, key: str, value: str) -> None:
    """Set a value of a domain.

    It takes effect within seconds, in all processes. Lists are written with commas. For the logo, give the path of a
    file, or "-" for standard input.
    """
    if key == "logo":
        try:
            value = logo_url(read_input(Path(value)))
        except ValueError as error:
            raise WrongCall(f"logo: {error}") from error
    with open_parts() as parts:
        _set(parts.domains, name, key, value)


@domains.command()
@click.argument("name", type=FILLED, metavar="DOMAIN")
@click.argument("key", type=FILLED, metavar="KEY")
@guarded
def unset(name: str, key: str) -> None:
    """Remove a value of a domain, so that the one of the settings file applies again."""
    with open_parts() as parts:
        _set(parts.domains, name, key, None)


def _set(domains: Domains, name: str, key: str, value: str | None) -> None:
    try:
        domains.set(name, key, value, current_operator())
        in_effect = plain_values(domains.own(name)).get(key) if value is not None else None
    except DomainValueNotSet as error:
        raise NotDone(str(error)) from error
    except BadDomainValue as error:
        raise WrongCall(str(error)) from error
    click.echo(f"{shown_address(domain(name))} {shown(key)}: {'removed' if value is None else _text(in_effect)}")


def _change_json(change: DomainValue) -> dict[str, object]:
    return {
        "key": change.name,
        "value": change.value and plain(change.value),
        "set_at": change.set_at.isoformat(),
        "set_by": change.actor.who,
        "replaced_at": change.replaced_at and change.replaced_at.isoformat(),
    }


def _text(value: object) -> str:
    if isinstance(value, bool):
        value = str(value).lower()  # as in the settings file
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return shown(text, 80)


COMMANDS = (domains,)
