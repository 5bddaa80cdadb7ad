"""The command ``quarantine list``: search, count and group the deliveries of all recipients."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from shutil import get_terminal_size
from typing import Any

import click

from portal.assemble import Parts
from portal.cli.common import (
    WrongCall,
    add_row,
    guarded,
    json_text,
    new_table,
    open_parts,
    print_table,
)
from portal.cli.options import LIMIT, criteria_options, say_more, typed_filter
from portal.model.clock import utc_now
from portal.model.domains import shown_address
from portal.model.message import Delivery, DeliveryId, Filter, Message
from portal.model.text import shown
from portal.policy.empty_search import why_nothing
from portal.stores.contracts.facets import COUNTED_MAX
from portal.stores.records import GroupBy, Order, Page, ScoreKey, ScorePage

_COLUMNS = 140  # width of the terminal from which on the list is printed as a table
_PAGE = 500
_NOT_INDEXED = "There may be more: some messages are still being indexed. Try again in some minutes."
_TOO_LONG = "There may be more: the search took too long. Limit the time with --since and --until."


@click.command("list")
@criteria_options()
@click.option(
    "--order", type=click.Choice([each.value for each in Order]), help="Order of the list.  [default: newest]"
)
@LIMIT
@click.option("--count", "only_count", is_flag=True, help="Print only how many there are.")
@click.option(
    "--group-by", type=click.Choice([by.value for by in GroupBy]), help="Print only how many there are of each."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
@guarded
def list_(
    order: str | None, limit: int, only_count: bool, group_by: str | None, as_json: bool, **typed: Sequence[str]
) -> None:
    """List deliveries, newest first, or by score: then only those that have one.

    Only those that match all options are listed. Times are in UTC.
    """
    if only_count and group_by:
        raise WrongCall("Use either --count or --group-by.")
    if order and (only_count or group_by):
        raise WrongCall("Leave out --order, which is for lists, with --count and --group-by.")
    wanted = typed_filter(typed)
    with open_parts() as parts:
        wanted, now = parts.people.searched(wanted), utc_now()
        if only_count:
            found = _print_count(parts, wanted, as_json)
        elif group_by:
            found = _print_groups(parts, wanted, GroupBy(group_by), limit, as_json)
        else:
            found = _print_deliveries(parts, wanted, Order(order or Order.NEWEST), limit, as_json)
        if not found:
            days = parts.domains.longest_retention_days
            click.echo(str(why_nothing(parts.store, wanted, parts.people.is_notified, days, now)), err=True)


COMMANDS = (list_,)


def _print_count(parts: Parts, wanted: Filter, as_json: bool) -> int:
    total = parts.store.facets.count(wanted)
    if as_json:
        click.echo(json_text({"count": total.count, "exact": total.exact, "indexed": total.indexed}))
    else:
        beyond = "more than" if total.count >= COUNTED_MAX else "at least"  # the time was over, or see below
        click.echo(f"{total.count}" if total.exact else f"{beyond} {total.count}")
    if not total.indexed:
        click.echo(_NOT_INDEXED, err=True)
    return total.count


def _print_groups(parts: Parts, wanted: Filter, by: GroupBy, limit: int, as_json: bool) -> int:
    groups = parts.store.facets.groups(wanted, by)
    has_points = by is GroupBy.SYMBOL
    table = new_table(by.value, "deliveries", *(["score in all"] if has_points else []))
    for group in groups.groups[:limit]:
        if as_json:
            found = {by.value: group.name, "count": group.count, "exact": groups.total.exact}
            click.echo(json_text(found | {"score": group.points} if has_points else found))
        points = [f"{group.points:.1f}"] if has_points else []
        add_row(table, shown(group.name, 100) or "(not known)", str(group.count), *points)
    if not as_json and groups.groups:
        print_table(table)
    if not groups.total.indexed:
        click.echo(_NOT_INDEXED, err=True)
    elif not groups.total.exact:
        since = f" They were held since {groups.since:%Y-%m-%d %H:%M} UTC." if groups.since else ""
        click.echo(f"There are more: only the newest {groups.total.count} deliveries were counted.{since}", err=True)
    if groups.whole_days is not None:
        click.echo(
            "{} to {} are whole days from the statistics, with messages that were removed since.".format(
                *groups.whole_days
            ),
            err=True,
        )
    if len(groups.groups) > limit:
        say_more(f"There are {len(groups.groups)} groups", limit)
    return groups.total.count


def _print_deliveries(parts: Parts, wanted: Filter, order: Order, limit: int, as_json: bool) -> int:
    rows: list[list[str]] = []
    count, more = 0, False
    notes: set[str] = set()
    for delivery in _deliveries(parts, wanted, order, limit + 1, notes):
        if count == limit:
            more = True
            break
        count += 1
        if as_json:
            click.echo(json_text(delivery_json(delivery)))
        else:
            rows.append(_row(delivery))
    for note in sorted(notes):
        click.echo(note, err=True)
    if not as_json:
        _print_list(rows)
    if more:
        say_more("There are more deliveries", limit)
    return count


def _deliveries(parts: Parts, wanted: Filter, order: Order, at_most: int, notes: set[str]) -> Iterator[Delivery]:
    """Yield what is found, and add what people must know about it to ``notes``."""
    before: DeliveryId | None = None
    after: ScoreKey | None = None
    while at_most:
        page: Page | ScorePage
        if order is Order.NEWEST:
            page = parts.store.deliveries.search(wanted, min(at_most, _PAGE), before)
            before = page.next
        else:
            highest_first = order is Order.HIGHEST
            page = parts.store.facets.by_score(wanted, min(at_most, _PAGE), after, highest_first=highest_first)
            after = page.next
        yield from page.deliveries
        at_most -= len(page.deliveries)
        if page.is_cut:
            notes.add(_TOO_LONG)
        if not page.indexed:
            notes.add(_NOT_INDEXED)
        if page.is_cut or page.next is None:
            return


def _print_list(rows: Sequence[Sequence[str]]) -> None:
    if rows and sys.stdout.isatty() and get_terminal_size().columns < _COLUMNS:
        # In a table, id, time and state would leave no width for recipient, sender and subject.
        for id, held_at, recipient, sender, subject, *facts in rows:
            click.echo(" ".join(filter(None, (id, held_at, *facts))))
            click.echo(f"    to {recipient} from {sender}\n    {subject}")
        return
    table = new_table("id", "held at (UTC)", "recipient", "sender", "subject", "score", "tier", "state")
    for row in rows:
        add_row(table, *row)
    print_table(table)


def _row(delivery: Delivery) -> list[str]:
    message = delivery.message
    return [
        str(message.id),
        f"{message.held_at:%Y-%m-%d %H:%M}",
        shown_address(delivery.address, 60) or "(not known)",
        shown(message.header_from or _sender(message), 60),
        shown(message.subject, 60),
        "" if message.score is None else f"{message.score:.1f}",
        message.tier.value,
        delivery.state.value,
    ]


def _sender(message: Message) -> str:
    return "(not known)" if message.envelope_sender is None else message.envelope_sender or "<>"


def delivery_json(delivery: Delivery) -> dict[str, Any]:
    """Return a delivery for a JSON encoder."""
    message = delivery.message
    return {
        "id": str(message.id),
        "recipient": delivery.address,
        "state": delivery.state.value,
        "state_at": delivery.state_at.isoformat(),
        "reason": delivery.reason,
        "attempts": delivery.attempts,
        "next_try_at": delivery.next_try_at and delivery.next_try_at.isoformat(),
        "announced_at": delivery.announced_at and delivery.announced_at.isoformat(),
        "held_at": message.held_at.isoformat(),
        "envelope_sender": message.envelope_sender,
        "header_from": message.header_from,
        "subject": message.subject,
        "score": message.score,
        "threshold": message.threshold,
        "tier": message.tier.value,
        "queue_id": message.queue_id,
        "action": message.action,
        "client_ip": message.client_ip,
        "size_bytes": message.size_bytes,
        "attachments": list(message.attachments),
        "symbols": [{"name": symbol.name, "score": symbol.score} for symbol in message.symbols],
    }
