"""The commands ``quarantine token …``: tokens of the API."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

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
from portal.cli.options import FILLED, Id
from portal.model.domains import shown_address
from portal.model.errors import BadGrant, BadToken, NotFound
from portal.model.message import new_id
from portal.model.staff import EVERYWHERE, Role
from portal.model.text import shown
from portal.model.token import TOKEN_MAX, Scope, Token
from portal.policy.tokens import Status, TokenRequest

_DAYS = 90


@click.group()
def token() -> None:
    """List, create and revoke the tokens with which programs use the API."""


@token.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
@guarded
def list_(as_json: bool) -> None:
    """List all tokens, the newest first, and those that ended in the last 90 days."""
    now = datetime.now(UTC)
    with open_parts() as parts:
        found = parts.tokens.all(now)
    if as_json:
        for each, status in found:
            click.echo(json_text(_token_json(each, status)))
        return
    table = new_table("id", "name", "person", "role", "domain", "scope", "expires (UTC)", "last used (UTC)", "status")
    for each, status in found:
        add_row(
            table,
            str(each.id),
            shown(each.name),
            shown_address(each.owner),
            each.role,
            shown_address(each.domain) if each.domain else "all domains",
            each.scope,
            f"{each.expires_at:%Y-%m-%d %H:%M}",
            f"{each.used_at:%Y-%m-%d %H:%M}" if each.used_at else "",
            status,
        )
    print_table(table)


@token.command()
@click.argument("address", type=FILLED, metavar="ADDRESS")
@click.argument("role", type=click.Choice([role.value for role in Role]))
@click.option("--name", type=FILLED, required=True, help="What the token is for.")
@click.option("--domain", "host", type=FILLED, metavar="DOMAIN", help="Only for this domain. Default: all domains.")
@click.option(
    "--scope",
    type=click.Choice([scope.value for scope in Scope]),
    default=Scope.READ.value,
    show_default=True,
    help="`read` changes nothing, `act` does what the role permits.",
)
@click.option("--days", type=click.IntRange(1, TOKEN_MAX.days), default=_DAYS, show_default=True, help="Until it ends.")
@guarded
def add(address: str, role: str, name: str, host: str | None, scope: str, days: int) -> None:
    """Create a token that acts for a person, and print it.

    It is printed once: keep it where the program reads its passwords. At each use it may do what ROLE permits, as far
    as the person has this role at that time.
    """
    wanted = TokenRequest(name, Role(role), host or EVERYWHERE, Scope(scope), days)
    token_id, now = new_id(), datetime.now(UTC)
    with open_parts() as parts:
        try:
            secret = parts.tokens.create(token_id, address, wanted, current_operator(), now)
        except (BadGrant, BadToken) as error:
            raise WrongCall(str(error)) from error
    click.echo(f"created {token_id}", err=True)
    click.echo(secret)


@token.command()
@click.argument("id", type=Id("quarantine token list"), metavar="ID")
@guarded
def revoke(id: UUID) -> None:
    """Revoke a token. It takes effect at once."""
    with open_parts() as parts:
        try:
            revoked = parts.tokens.revoke(id, current_operator(), datetime.now(UTC))
        except NotFound as error:
            raise NotDone(f"There is no token {id}. `quarantine token list` shows all tokens.") from error
        except BadToken as error:
            raise NotDone(f"{error} `quarantine token list` shows all tokens.") from error
    click.echo(f"revoked {revoked.id} {shown(revoked.name)}")


def _token_json(each: Token, status: Status) -> dict[str, object]:
    return {
        "id": str(each.id),
        "name": each.name,
        "person": each.owner,
        "role": each.role.value,
        "domain": each.domain or None,
        "scope": each.scope.value,
        "created_at": each.created_at.isoformat(),
        "created_by": each.actor.who,
        "expires_at": each.expires_at.isoformat(),
        "used_at": each.used_at and each.used_at.isoformat(),
        "revoked_at": each.revoked_at and each.revoked_at.isoformat(),
        "status": status.value,
    }


COMMANDS = (token,)
