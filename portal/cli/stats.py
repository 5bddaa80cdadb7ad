"""The command ``quarantine stats``: daily numbers of deliveries, which outlive the messages."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import click

from portal.cli.common import NotDone, WrongCall, add_row, guarded, json_text, new_table, open_parts, print_table
from portal.cli.options import FILLED, Moment
from portal.model.message import domain as domain_of
from portal.model.statistics import ALL, Line, Outcome, Part, lines
from portal.model.text import shown

_DAYS = 30
_BY = {"day": Part.TOTAL, "tier": Part.TIER, "symbol": Part.SYMBOL, "sender": Part.SENDER, "delay": Part.DELAY}


@click.command()
@click.option("--by", type=click.Choice([*_BY]), default="day", show_default=True, help="What one line is about.")
@click.option("--domain", type=FILLED, metavar="DOMAIN", help="Only recipients of this domain.")
@click.option("--since", type=Moment(), help="From this day on (UTC): 2026-01-31 or 7d. Default: 30d.")
@click.option("--until", type=Moment(), help="Up to this day (UTC). Default: today.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=50, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
@guarded
def stats(
    by: str, domain: str | None, since: datetime | None, until: datetime | None, limit: int, as_json: bool
) -> None:
    """Print how many messages were held, released and so on, one line for each day, tier, symbol or sender's domain.

    The numbers are of recipients' deliveries and of days in UTC, and about a minute old.
    """
    now = datetime.now(UTC)
    first, last = (since or now - timedelta(days=_DAYS)).date(), (until or now).date()
    if first > last:
        raise WrongCall("--since is after --until, so no day can match. Exchange them.")
    with open_parts() as parts:
        counts = parts.store.statistics.counts(_BY[by], first, last, domain_of(domain) if domain else ALL)
    found = lines(counts, by_day=by == "day")
    if not found:
        raise NotDone(_why_nothing(first, last, domain))
    if as_json:
        for line in found[:limit]:
            click.echo(json_text({by: line.name, **_numbers(line), "mistakes": line.mistakes}))
    else:
        table = new_table(by, *Outcome, "mistakes")
        for line in found[:limit]:
            share = "" if line.mistakes is None else f"{line.mistakes:.1%}"
            add_row(table, shown(line.name, 100) or "(not known)", *map(str, _numbers(line).values()), share)
        print_table(table)
    if len(found) > limit:
        click.echo(f"There are {len(found)} lines. To list more, use --limit {limit * 10}", err=True)


COMMANDS = (stats,)


def _numbers(line: Line) -> dict[str, int]:
    return {outcome.value: line.number(outcome) for outcome in Outcome}


def _why_nothing(first: date, last: date, domain: str | None) -> str:
    concerned = f" for {shown(domain)}" if domain else ""
    return f"Nothing was counted{concerned} from {first} to {last}. The digest process counts: does it run?"
