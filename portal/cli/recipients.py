"""The commands for one recipient: forget a person who left."""

from __future__ import annotations

import sys

import click

from portal.assemble import Parts
from portal.cli.common import NotDone, WrongCall, current_operator, guarded, open_parts, progress
from portal.cli.options import FILLED
from portal.model.domains import shown_address
from portal.model.errors import NotAllowed
from portal.model.message import is_address
from portal.policy.forgetting import Leaver


@click.command()
@click.argument("address", type=FILLED, metavar="ADDRESS")
@click.option("--dry-run", is_flag=True, help="Print what would be removed, and change nothing.")
@click.option("--reason", type=FILLED, help="The reason, for the audit.")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@guarded
def forget(address: str, dry_run: bool, reason: str | None, yes: bool) -> None:
    """Remove all messages and data of a person who left, and stop their digests. It cannot be undone.

    If it was interrupted, call it again.
    """
    with open_parts() as parts:
        leaver = parts.forgetting.leaver(_person(parts, address), parts.actions.now())
        if not leaver.is_known:
            raise NotDone(f"Nothing is stored for {shown_address(leaver.recipient)}. Check the spelling.")
        try:
            parts.forgetting.check(leaver)
        except NotAllowed as error:
            raise NotDone(str(error)) from error
        click.echo(_summary(leaver))
        if dry_run:
            return
        if not yes and not sys.stdin.isatty():
            raise WrongCall("Confirm with --yes, or look first with --dry-run.")
        if not yes and not click.confirm("Remove all of it? This cannot be undone."):
            raise NotDone("Nothing was changed.")
        parts.forgetting.begin(leaver, current_operator(), parts.actions.now(), reason or "")
        _remove_deliveries(parts, leaver)


def _person(parts: Parts, address: str) -> str:
    """Return the person of an address, also in a domain that is no longer local. Raises WrongCall."""
    if not is_address(address):
        raise WrongCall(f"{shown_address(address)} is not an email address.")
    person = parts.people.person(address)
    if person is None:
        raise WrongCall(f"{shown_address(address)} is a shared mailbox. Only people can be forgotten.")
    return person


def _summary(leaver: Leaver) -> str:
    number = sum(leaver.counts.of.values())
    more = "" if leaver.counts.complete else "more than "
    lines = [f"{shown_address(leaver.recipient)}: {more}{number} deliveries, {leaver.sessions} sessions, "
             f"{leaver.rules} rules"]  # fmt: skip
    others = [shown_address(each) for each in leaver.identities if each != leaver.recipient]
    if others:
        lines.append(f"  with the deliveries for: {', '.join(others)}")
    lines += [f"  role: {grant.role} {shown_address(grant.domain) or 'of all domains'}" for grant in leaver.grants]
    return "\n".join(lines)


def _remove_deliveries(parts: Parts, leaver: Leaver) -> None:
    total, removed, left = sum(leaver.counts.of.values()), 0, 0
    if leaver.identities:
        with progress("deliveries") as report:

            def count(number: int) -> None:
                nonlocal removed
                removed += number
                report(removed, max(total, removed), 0)

            left = parts.forgetting.remove(leaver.identities, report=count)
    click.echo(f"{shown_address(leaver.recipient)}: forgotten, {removed} deliveries removed")
    if left:
        raise NotDone(f"{left} deliveries are being released. Call it again when that has ended: quarantine list")


COMMANDS = (forget,)
