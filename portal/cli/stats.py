"""The command ``quarantine stats``: daily numbers of deliveries, which outlive the messages."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta

import click
from click.core import ParameterSource

from portal.cli.common import (
    Lines,
    NotDone,
    WrongCall,
    add_row,
    guarded,
    json_text,
    local_domain,
    new_table,
    open_parts,
    print_table,
    record,
    say,
)
from portal.cli.options import FILLED, LIMIT, Moment, say_more
from portal.model.audit import Act
from portal.model.message import domain as domain_of
from portal.model.message import identity
from portal.model.statistics import ALL, Line, Month, Outcome, Part, lines
from portal.model.tables import cell
from portal.model.text import shown

_DAYS = 30
_BY = {"day": Part.TOTAL, "tier": Part.TIER, "symbol": Part.SYMBOL, "sender": Part.SENDER, "delay": Part.DELAY}


@click.command()
@click.option(
    "--by", type=click.Choice([*_BY, "domain"]), default="day", show_default=True, help="What one line is about."
)
@click.option("--domain", type=FILLED, metavar="DOMAIN", help="Only recipients of this domain.")
@click.option("--since", type=Moment(), help="From this day on (UTC): 2026-01-31 or 7d. Default: 30d.")
@click.option("--until", type=Moment(), help="Up to this day (UTC). Default: today.")
@LIMIT
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
@click.option(
    "--mail",
    type=FILLED,
    multiple=True,
    metavar="ADDRESS",
    help="Instead, mail this administrator the report of the last month now. Repeatable.",
)
@guarded
def stats(
    by: str,
    domain: str | None,
    since: datetime | None,
    until: datetime | None,
    limit: int,
    as_json: bool,
    as_csv: bool,
    mail: tuple[str, ...],
) -> None:
    """Print how many messages were held, released and so on, one line for each day, tier, symbol or domain.

    ``--by sender`` is about the domains of senders, ``--by domain`` about those of recipients.

    If there are more days than ``--limit``, the newest are printed.

    The numbers are of recipients' deliveries and of days in UTC, and about a minute old.
    """
    now = datetime.now(UTC)
    first, last = (since or now - timedelta(days=_DAYS)).date(), (until or now).date()
    if first > last and until is None:
        raise WrongCall("--since is in the future. Give a day up to today (UTC).")
    if first > last and since is None:
        raise WrongCall(f"--until is before the {_DAYS} days that are the default of --since. Give --since as well.")
    if first > last:
        raise WrongCall("--since is after --until, so no day can match. Exchange them.")
    if as_json and as_csv:
        raise WrongCall("Use either --json or --csv.")
    if mail:
        call = click.get_current_context()
        if any(
            call.get_parameter_source(name) is not ParameterSource.DEFAULT for name in call.params if name != "mail"
        ):
            raise WrongCall("--mail sends the report of the last month: leave out the other options.")
        _mail(mail, now)
        return
    with open_parts() as parts:
        statistics, host = parts.store.statistics, domain_of(domain) if domain else ALL
        if by == "day":
            found: Sequence[Line] = lines(statistics.counts(Part.TOTAL, first, last, host), by_day=True)
        elif by == "domain":
            found = statistics.by_domain(first, last, [host] if domain else None)
        else:
            found = statistics.sums(first, last, [host], [_BY[by]])[_BY[by]]
        if not found and domain:  # a domain that is not local any more has numbers
            local_domain(parts, domain)
    if not found:
        raise NotDone(_why_nothing(first, last, domain))
    total, found = len(found), found[-limit:] if by == "day" else found[:limit]
    if as_json:
        for line in found:
            click.echo(json_text({by: line.name, **_numbers(line), "mistakes": line.mistakes}))
    elif as_csv:
        writer = csv.writer(Lines())
        writer.writerow([by, *Outcome, "mistakes"])
        for line in found:
            writer.writerow([cell(line.name), *_numbers(line).values(), "" if line.mistakes is None else line.mistakes])
    else:
        table = new_table(by, *Outcome, "mistakes")
        for line in found:
            share = "" if line.mistakes is None else f"{line.mistakes:.1%}"
            add_row(table, shown(line.name, 100) or "(not known)", *map(str, _numbers(line).values()), share)
        print_table(table)
    if total > limit:
        say_more(f"There are {total} days; these are the newest" if by == "day" else f"There are {total} lines", limit)


COMMANDS = (stats,)


def _numbers(line: Line) -> dict[str, int]:
    return {outcome.value: line.number(outcome) for outcome in Outcome}


def _mail(addresses: Sequence[str], now: datetime) -> None:
    """Queue the report of the last month for these administrators."""
    from portal.policy.report import Reports

    month = Month(now.date().replace(day=1)).before
    with open_parts() as parts:
        administrators = parts.staff.administrators()
        people = [identity(address) for address in addresses]
        for person in people:
            if person not in administrators:
                raise NotDone(f"{shown(person)} administers no domain: `quarantine staff add` gives the role.")
        for person in people:
            mail = Reports(parts.store, parts.actions).mail(person, administrators[person], month)
            if mail is None:
                raise NotDone(
                    f"Nothing was counted in {month} or the month before, or mail.from_address is not set. "
                    "Try: quarantine check"
                )
            record(parts.store, Act.EXPORTED, person, f"report of {month} by mail", administrators[person])
            parts.store.outbox.add(mail, now)
            say(f"The report of {month} is queued for {shown(person)}. The digest process sends it.")


def _why_nothing(first: date, last: date, domain: str | None) -> str:
    concerned = f" for {shown(domain)}" if domain else ""
    return (
        f"Nothing was counted{concerned} from {first} to {last}. The digest process counts. "
        "Try: journalctl -u quarantine"
    )
