"""The command ``quarantine scan``: all of Rspamd's filters judge a held message again."""

from __future__ import annotations

from collections.abc import Iterator

import click

from portal.cli.common import (
    NotDone,
    add_row,
    find_message,
    guarded,
    new_table,
    open_parts,
    print_table,
    record_each,
)
from portal.cli.options import FILLED
from portal.model.audit import Act
from portal.model.message import Message, Symbol
from portal.model.text import shown
from portal.rspamd import Verdict
from portal.scanning import BACKGROUND_SECONDS

_SAME = 0.005  # scores are printed with two decimals


@click.command()
@click.argument("id", type=FILLED)
@guarded
def scan(id: str) -> None:
    """Have Rspamd judge a message again, and print the difference to its verdict when the message was held.

    Symbols of viruses and phishing make the message dangerous. A better verdict changes nothing.
    """
    with open_parts() as parts:
        held = find_message(parts, id)
        deliveries = parts.store.deliveries.of_message(held.id)
        record_each(parts, Act.SCANNED, deliveries)
        stored, error = held, None
        if parts.scanning.is_on:
            # A forced verdict keeps virus scanners from being asked also in a scan by all filters.
            stored, error = parts.scanning.scan(held, parts.actions.now(), BACKGROUND_SECONDS)
        recipients = [d.address for d in deliveries if d.address]
        stored, verdict = parts.scanning.rescan(stored, recipients, parts.actions.now())
        parts.actions.report_finding(stored)
    _print_difference(held, verdict)
    if parts.scanning.is_on and stored.scan is not None:
        outcome = f"failed: {shown(str(error), 300)}" if error else stored.scan.outcome.value
        click.echo(f"virus scan: {outcome}")
    click.echo(f"tier: {_change(held.tier.value, stored.tier.value)}")
    if error is not None:
        raise NotDone("The virus scan failed. Try again when the scanner works: quarantine check")


def _print_difference(held: Message, verdict: Verdict) -> None:
    limit = "" if verdict.threshold is None else f" (rejected from {verdict.threshold:g})"
    click.echo(f"action: {_change(shown(held.action, 50), verdict.action)}")
    click.echo(f"score: {_change(_score(held.score), _score(verdict.score))}{limit}")
    rows = list(_differences(held.symbols, verdict.symbols))
    if not rows:
        click.echo("symbols: no difference")
        return
    table = new_table("", "symbol", "score", "options")
    for row in rows:
        add_row(table, *row)
    print_table(table)


def _differences(before: tuple[Symbol, ...], after: tuple[Symbol, ...]) -> Iterator[tuple[str, str, str, str]]:
    """Yield rows for the symbols that are new, gone, or have another score, in this order."""
    old, new = ({symbol.name: symbol for symbol in symbols} for symbols in (before, after))
    both = [(old[name], new[name]) for name in new if name in old]
    changed = [(is_, f"{was.score:.2f} -> {is_.score:.2f}") for was, is_ in both if abs(was.score - is_.score) > _SAME]
    for word, rows in (
        ("new", [(new[name], f"{new[name].score:.2f}") for name in new if name not in old]),
        ("gone", [(old[name], f"{old[name].score:.2f}") for name in old if name not in new]),
        ("changed", changed),
    ):
        for symbol, score in sorted(rows, key=lambda row: (-abs(row[0].score), row[0].name)):
            yield word, shown(symbol.name, 60), score, shown(", ".join(symbol.options), 100)


def _score(score: float | None) -> str:
    return "unknown" if score is None else f"{score:.2f}"


def _change(before: str, after: str) -> str:
    before, after = before or "unknown", after or "unknown"
    return before if before == after else f"{before} -> {after}"


COMMANDS = (scan,)
