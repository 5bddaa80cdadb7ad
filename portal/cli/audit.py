"""The command ``quarantine audit``: who did what, on the terminal, as JSON or as CSV."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from datetime import datetime
from uuid import UUID

import click

from portal.assemble import Parts
from portal.cli.common import (
    Lines,
    WrongCall,
    add_row,
    find_message,
    guarded,
    json_text,
    new_table,
    open_parts,
    print_table,
    record,
)
from portal.cli.options import FILLED, LIMIT, Moment, say_more
from portal.model.audit import ACTS, COLUMNS, Act, AuditEntry, AuditFilter, person_typed, subject_typed
from portal.model.domains import shown_address
from portal.model.message import domain as domain_of
from portal.model.tables import cell
from portal.model.text import shown

_PAGE = 500


@click.command()
@click.option("--who", type=FILLED, metavar="NAME", help="Only what this operator or recipient did.")
@click.option("--act", type=click.Choice(ACTS), metavar="ACT", help="Only this act, for example released.")
@click.option("--recipient", type=FILLED, metavar="ADDRESS", help="Only what concerns this recipient.")
@click.option("--domain", type=FILLED, metavar="DOMAIN", help="Only settings and rules of this domain.")
@click.option("--id", type=FILLED, metavar="ID", help="Only what concerns this message.")
@click.option("--since", type=Moment(), help="Only since this time: 2026-01-31, 2026-01-31T08:00, 3d, 12h or 30m.")
@click.option("--until", type=Moment(ends_day=True), help="Only before this time. A date alone means its end (UTC).")
@LIMIT
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
@guarded
def audit(
    who: str | None,
    act: str | None,
    recipient: str | None,
    domain: str | None,
    id: str | None,
    since: datetime | None,
    until: datetime | None,
    limit: int,
    as_json: bool,
    as_csv: bool,
) -> None:
    """List who did what, newest first. Entries are kept for `store.audit_retention_days`."""
    if since and until and since >= until:
        raise WrongCall("--since is not before --until, so no entry can match. Exchange them.")
    if recipient and domain:
        raise WrongCall("Use either --recipient or --domain.")
    if recipient and ("@" not in recipient[1:] or not domain_of(recipient)):
        raise WrongCall(f"--recipient {shown(recipient)}: This is not an address. Use one like name@example.org.")
    if domain and ("@" in domain[1:] or not domain_of(domain)):
        raise WrongCall(f"--domain {shown(domain)}: This is not a domain. Use one like example.org.")
    if as_json and as_csv:
        raise WrongCall("Use either --json or --csv.")
    with open_parts() as parts:
        wanted = AuditFilter(
            person=person_typed(who or ""),
            act=act or "",
            subject=subject_typed(recipient or domain or ""),
            message_id=_message_id(parts, id) if id else None,
            since=since,
            until=until,
        )
        if as_json or as_csv:  # a copy leaves the portal
            options = {"who": who, "act": act, "recipient": recipient, "domain": domain, "id": id}
            detail = "audit " + ", ".join(f"{name} {value}" for name, value in options.items() if value)
            record(parts.store, Act.EXPORTED, detail=detail.strip())
        found = [*_pages(parts, wanted, limit + 1)]
    if as_json:
        for each in found[:limit]:
            click.echo(json_text(dict(zip(COLUMNS, each.values(), strict=True))))
    elif as_csv:
        writer = csv.writer(Lines())
        writer.writerow(COLUMNS)
        writer.writerows([cell(value) for value in each.values()] for each in found[:limit])
    else:
        _print(found[:limit])
    if not found:
        click.echo("No entry matches all criteria. Leave some out.", err=True)
    if len(found) > limit:
        say_more("There are more entries", limit)


def _message_id(parts: Parts, id: str) -> UUID:
    """Return the id of a message, also of one that was purged. Raises NotDone."""
    try:
        return UUID(id)
    except ValueError:
        return find_message(parts, id).id


def _pages(parts: Parts, wanted: AuditFilter, limit: int) -> Iterator[AuditEntry]:
    before = None
    while limit > 0:
        page = parts.store.audit.list(wanted, min(limit, _PAGE), before)
        yield from page
        if len(page) < min(limit, _PAGE):
            return
        limit -= len(page)
        before = page[-1].id


def _print(entries: list[AuditEntry]) -> None:
    table = new_table("at (UTC)", "act", "who", "via", "from", "concerns", "id", "detail")
    for entry in entries:
        add_row(
            table,
            f"{entry.at:%Y-%m-%d %H:%M:%S}",
            entry.act,
            shown_address(entry.actor.who),
            entry.actor.via,
            entry.actor.address,
            shown_address(entry.subject),
            "" if entry.delivery is None else str(entry.delivery.message_id),
            shown(entry.detail, 200),
        )
    print_table(table)


COMMANDS = (audit,)
