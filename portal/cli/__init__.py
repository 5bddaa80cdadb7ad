"""The operator's command line, ``quarantine``: the verbs of the original manage-quarantine.sh and what was missing.

An ID is a quarantine id or the MTA's queue id. Queue ids come round again: where several messages match, they are
listed and nothing is done. Everything shown that came from a mail has been through `text.shown`, since terminals
obey control characters. Exit status: 0 done, 1 not done (a sentence says why), 2 wrong call, settings or store.
"""

from __future__ import annotations

import getpass
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import MAXYEAR, UTC, datetime, timedelta
from io import TextIOWrapper
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from portal import __version__
from portal.assemble import Parts, assemble, keys_path, make_links
from portal.cli import checks, moving
from portal.cli.common import NotDone, guarded
from portal.mail import wire
from portal.model.domains import shown_address
from portal.model.errors import QuarantineError, RelayDeferred, RelayRefused
from portal.model.message import Actor, ActorKind, Delivery, DeliveryId, Filter, Message, State, Tier, identity
from portal.model.text import shown
from portal.settings import load, load_from, masked
from portal.stores import notes, open_store

LIST_LIMIT = 50
_LIST_COLUMNS = 140  # a terminal's, from which on the list is a table
_BEYOND_ASCII = re.compile(r"[^\x00-\x7e]")
_AGO = re.compile(r"(\d{1,5})([dhm])")
_DATE = re.compile(r"\d{4}-?\d\d-?\d\d")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="quarantine")
def main() -> None:
    """Look after the quarantine. Settings come from QUARANTINE_CONFIG, ./quarantine.toml or
    /etc/rspamd-quarantine/quarantine.toml."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal of ISO 8859-1 cannot write every subject
    # Python writes warnings that nobody takes to stderr, where `release` tells the same in its own words.
    logging.getLogger("quarantine.release").addHandler(logging.NullHandler())


@contextmanager
def _parts() -> Iterator[Parts]:
    parts = assemble(load())
    try:
        yield parts
    finally:
        parts.store.close()


# ---- setting up


@main.command()
@click.option("--new-keys", is_flag=True, help="Accept the present link keys although the store knows others.")
@guarded
def init(new_keys: bool) -> None:
    """Make or upgrade the store and the link keys. Safe to run again, also while mail comes in."""
    settings = load()
    store = open_store(settings.store.place, create=True)
    try:
        store.prepare_days(datetime.now(UTC))
        links = make_links(settings, create=True)
        if new_keys:
            notes.LINK_KEY.set(store, links.fingerprints()[-1])
        kept = notes.LINK_KEY.set_default(store, links.fingerprints()[-1])
    finally:
        store.close()
    click.echo(f"store: {masked(settings)['store.url']} is ready")
    where = "the settings" if settings.links.keys else keys_path(settings)
    click.echo(f"link keys: {where}")
    if kept not in links.fingerprints():
        raise NotDone(
            "These are not the link keys this store was used with. Copy the key file of the other host, or – when "
            "it is lost for good and digests already sent may stop working – run: quarantine init --new-keys"
        )
    click.echo("Next: quarantine check")


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
@guarded
def check(as_json: bool) -> None:
    """Try everything that can be reached and say what is wrong and how to mend it."""
    findings = checks.everything()
    if as_json:
        _print_json([{"ok": f.ok, "what": f.what, "said": f.said} for f in findings])
    else:
        for finding in findings:
            mark = {True: "ok      ", False: "PROBLEM ", None: "note    "}[finding.ok]
            click.echo(f"{mark}{finding.what}: {finding.said}")
    if any(finding.ok is False for finding in findings):
        raise SystemExit(1)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
@guarded
def settings(as_json: bool) -> None:
    """Print the settings in effect and where each comes from; secrets are masked."""
    values, path, sources = load_from()
    if as_json:
        _print_json({k: {"value": v, "source": sources.get(k, "default")} for k, v in masked(values).items()})
        return
    click.echo(f"# file: {path or 'none'}")
    table = _table("setting", "value", "from")
    for key, value in masked(values).items():
        text = ", ".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)
        _add(table, key, shown(text, 10_000), sources.get(key, "default"))
    _print(table)


# ---- looking


@main.command("list")
@click.option("--recipient", help="Only mail for this address.")
@click.option("--sender", help="Only mail whose envelope sender or From contains this.")
@click.option(
    "--words", "--subject", default="", help="Only mail with these words, or beginnings of words, in subject or sender."
)
@click.option("--since", help="Only mail held since then: 2026-01-31, 2026-01-31T08:00, 3d, 12h or 30m.")
@click.option("--until", help="Only mail held before then; a date alone means the end of that day (UTC).")
@click.option("--score-min", type=float, help="Only mail with at least this score.")
@click.option("--score-max", type=float, help="Only mail with at most this score.")
@click.option("--tier", "tiers", multiple=True, type=click.Choice([t.value for t in Tier]), help="May be repeated.")
@click.option("--state", "states", multiple=True, type=click.Choice([s.value for s in State]), help="May be repeated.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=LIST_LIMIT, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@guarded
def list_(
    recipient: str | None,
    sender: str | None,
    words: str,
    since: str | None,
    until: str | None,
    score_min: float | None,
    score_max: float | None,
    tiers: Sequence[str],
    states: Sequence[str],
    limit: int,
    as_json: bool,
) -> None:
    """List deliveries, newest first. What is asked for must all be so."""
    wanted = Filter(
        recipient=identity(recipient) if recipient else None,
        sender=sender,
        words=words,
        since=_moment("--since", since) if since else None,
        until=_moment("--until", until, whole_day=True) if until else None,
        score_min=score_min,
        score_max=score_max,
        tiers=frozenset(Tier(t) for t in tiers),
        states=frozenset(State(s) for s in states),
    )
    with _parts() as parts:
        held_as = parts.people.held_as(recipient) if recipient else None
        if held_as is not None and held_as != wanted.recipient:
            wanted = replace(wanted, also=(held_as,))  # an address with an extension
        rows: list[list[str]] = []
        before, left = None, limit
        while left:
            page = parts.store.deliveries.search(wanted, min(left, 500), before)
            for delivery in page.deliveries:
                if as_json:
                    click.echo(_json(_delivery_json(delivery)))
                else:
                    rows.append(_row(delivery))
            left -= len(page.deliveries)
            before = page.next
            if before is None:
                break
        if not as_json:
            _print_list(rows)
            if before is not None:
                click.echo(f"There are more: --limit {limit * 10}", err=True)


@main.command()
@click.argument("id")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
@guarded
def meta(id: str, as_json: bool) -> None:
    """Everything known about a message, its deliveries and their history."""
    with _parts() as parts:
        message = _one(parts, id)
        deliveries = parts.store.deliveries.of_message(message.id)
        histories = {d.number: parts.store.deliveries.history(d.key) for d in deliveries}
        if as_json:
            out = _message_json(message)
            out["deliveries"] = [
                {
                    **_delivery_json(d),
                    "history": [
                        {"at": e.at.isoformat(), "what": e.kind, "who": e.actor.who, "via": e.actor.via,
                         "address": e.actor.address, "detail": e.detail}
                        for e in histories[d.number]
                    ],
                }
                for d in deliveries
            ]  # fmt: skip
            _print_json(out)
            return
        for name, value in _message_json(message).items():
            if name != "symbols":
                text = ", ".join(value) if isinstance(value, list) else "" if value is None else str(value)
                click.echo(f"{name + ':':18}{shown(text, 500)}")
        table = _table("symbol", "score", "options")
        for symbol in sorted(message.symbols, key=lambda s: -abs(s.score)):
            _add(table, shown(symbol.name, 60), f"{symbol.score:g}", shown(", ".join(symbol.options), 100))
        _print(table)
        for delivery in deliveries:
            click.echo(f"\n{_whose(delivery)}: {delivery.state}")
            if delivery.reason:
                click.echo(f"  reason: {shown(delivery.reason, 500)}")
            for event in histories[delivery.number]:
                who = " ".join(filter(None, [shown_address(event.actor.who), event.actor.via, event.actor.address]))
                detail = f": {shown(event.detail, 300)}" if event.detail else ""
                click.echo(f"  {event.at:%Y-%m-%d %H:%M:%S} {event.kind} by {shown(who)}{detail}")


@main.command("print")
@click.argument("id")
@guarded
def print_(id: str) -> None:
    """Write the message to standard output, exactly as it was received."""
    with _parts() as parts:
        message = _one(parts, id)
        for chunk in parts.store.messages.body(message.id):
            sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()


# ---- acting


@main.command()
@click.argument("id")
@click.option("--recipient", help="Whose delivery; needed when the message has several (or none that is known).")
@click.option("--all", "everybody", is_flag=True, help="To every recipient of the message.")
@click.option("--again", is_flag=True, help="Also when it was released before, and got lost since.")
@guarded
def release(id: str, recipient: str | None, everybody: bool, again: bool) -> None:
    """Send a held message to its recipient, now."""
    failed = False
    with _parts() as parts:
        message = _one(parts, id)
        for delivery in _chosen(parts, message, recipient, everybody, may_assign=True):
            try:
                done = parts.actions.release(delivery.id, delivery.number, _operator(), operator=True, again=again)
                click.echo(f"{_whose(done)}: {done.state}")
            except QuarantineError as error:
                failed = True
                click.echo(f"{_whose(delivery)}: {error}", err=True)
                if isinstance(error, RelayDeferred):
                    click.echo("  The digest process keeps trying.", err=True)
                elif delivery.state is State.RELEASED:
                    click.echo("  If it got lost, send it once more: --again", err=True)
    if failed:
        raise SystemExit(1)


@main.command()
@click.argument("ids", nargs=-1, required=True, metavar="ID [ID …]")
@click.option("--recipient", help="Only this recipient's delivery; else all deliveries of the message.")
@guarded
def delete(ids: Sequence[str], recipient: str | None) -> None:
    """Take messages out of sight; `restore` undoes it until retention."""
    _each(ids, recipient, lambda parts, d: parts.actions.delete(d.id, d.number, _operator()))


@main.command()
@click.argument("ids", nargs=-1, required=True, metavar="ID [ID …]")
@click.option("--recipient", help="Only this recipient's delivery; else all deliveries of the message.")
@guarded
def restore(ids: Sequence[str], recipient: str | None) -> None:
    """Undo `delete`."""
    _each(ids, recipient, lambda parts, d: parts.actions.restore(d.id, d.number, _operator()))


@main.command()
@click.argument("id")
@click.option("--recipient", help="Whose request; needed when the message has several recipients.")
@click.option("--reason", required=True, help="A word of reason; the recipient gets to read it.")
@guarded
def refuse(id: str, recipient: str | None, reason: str) -> None:
    """Decline a recipient's request for a dangerous message."""
    with _parts() as parts:
        for delivery in _chosen(parts, _one(parts, id), recipient, None):
            parts.actions.refuse_request(delivery.id, delivery.number, _operator(), shown(reason, 500))
            click.echo(f"{_whose(delivery)}: refused")


@main.command()
@click.option("--older-than-days", type=click.IntRange(1, 3650), help="Instead of store.retention_days.")
@guarded
def purge(older_than_days: int | None) -> None:
    """Remove what is past its retention; what is requested or being released stays."""
    with _parts() as parts:
        now = datetime.now(UTC)
        days = older_than_days or parts.settings.store.retention_days
        done = parts.store.purge(now - timedelta(days=days), now)
        click.echo(f"removed {done.messages} messages held more than {days} days ago")
        if done.kept:
            click.echo(f"kept {done.kept} old messages: requested or being released")


for command in moving.COMMANDS:
    main.add_command(command)


# ---- choosing


def _one(parts: Parts, id: str) -> Message:
    found = parts.store.messages.find(id)
    if not found:
        raise NotDone(f"There is no message with the quarantine id or queue id {shown(id)!r}. Try: quarantine list")
    if len(found) > 1:
        lines = [
            f"  {m.id}  {m.held_at:%Y-%m-%d %H:%M}  {shown(m.header_from, 40)}  {shown(m.subject, 60)}" for m in found
        ]
        raise NotDone(
            "\n".join([f"Queue id {shown(id)} fits several messages; nothing was done. Name one of:", *lines])
        )
    return found[0]


def _chosen(
    parts: Parts, message: Message, recipient: str | None, everybody: bool | None, *, may_assign: bool = False
) -> Sequence[Delivery]:
    """The deliveries meant, or NotDone with their list. ``everybody`` None: the command has no --all; ``may_assign``:
    a message whose export had lost its recipients is given this one."""
    deliveries = parts.store.deliveries.of_message(message.id)
    if recipient is not None and everybody:
        raise NotDone("Use either --recipient or --all.")
    if recipient is not None:
        mine = [d for d in deliveries if identity(recipient) in (d.recipient, identity(d.address))]
        if may_assign and not mine and len(deliveries) == 1 and not deliveries[0].recipient:
            # The operator knows who it was for. It is named once, so not wrongly.
            try:
                wire.path(recipient, is_sender=False)
            except RelayRefused as error:
                raise NotDone(f"--recipient {shown(recipient)}: {error}") from error
            return [
                parts.store.deliveries.assign(DeliveryId(message.id, 0), recipient, _operator(), parts.actions.now())
            ]
        if not mine:
            raise NotDone(f"{shown(recipient)} is not among its recipients:\n" + _recipients(deliveries))
        return mine
    if len(deliveries) > 1 and not everybody:
        options = "--recipient ADDRESS" if everybody is None else "--recipient ADDRESS or --all"
        raise NotDone(f"The message has several recipients; say {options}:\n" + _recipients(deliveries))
    return deliveries


def _whose(delivery: Delivery) -> str:
    return shown_address(delivery.address) or "(recipient not known)"


def _recipients(deliveries: Sequence[Delivery]) -> str:
    return "\n".join(f"  {_whose(d)}: {d.state}" for d in deliveries)


def _each(ids: Sequence[str], recipient: str | None, act: Callable[[Parts, Delivery], Delivery]) -> None:
    failed = False
    with _parts() as parts:
        for id in ids:
            try:
                message = _one(parts, id)
                chosen = _chosen(parts, message, recipient, recipient is None)
            except NotDone as error:
                failed = True
                click.echo(str(error), err=True)
                continue
            for delivery in chosen:
                try:
                    done = act(parts, delivery)
                    click.echo(f"{message.id} {_whose(done)}: {done.state}")
                except QuarantineError as error:
                    failed = True
                    click.echo(f"{message.id} {_whose(delivery)}: {error}", err=True)
    if failed:
        raise SystemExit(1)


def _operator() -> Actor:
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # a container's user that /etc/passwd does not know; OSError since Python 3.13
        name = str(os.getuid())
    return Actor(ActorKind.OPERATOR, shown(name), "cli")


def _moment(option: str, text: str, *, whole_day: bool = False) -> datetime:
    """The moment meant; ``whole_day``: a date alone is the end of that day. Raises NotDone."""
    ago = _AGO.fullmatch(text)
    if ago:
        unit = {"d": "days", "h": "hours", "m": "minutes"}[ago[2]]
        return datetime.now(UTC) - timedelta(**{unit: int(ago[1])})
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise NotDone(
            f"{option}: {shown(text)!r} is no date: write 2026-01-31, 2026-01-31T08:00, 3d, 12h or 30m"
        ) from error
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    ends_day = whole_day and _DATE.fullmatch(text) and moment.year < MAXYEAR  # which has no next day, and no mail
    return moment + timedelta(days=1) if ends_day else moment


# ---- printing


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column in ("id", "held at (UTC)", "state", "tier", "score"))
    return table


def _add(table: Table, *cells: str) -> None:
    table.add_row(*map(Text, cells))  # as Text: square brackets of a subject are no markup


def _print(table: Table) -> None:
    # Into a pipe or file: wide enough that nothing is folded away from grep, also in letters of two columns.
    Console(width=None if sys.stdout.isatty() else 1000, highlight=False, markup=False).print(table)


def _print_list(rows: Sequence[Sequence[str]]) -> None:
    if rows and sys.stdout.isatty() and Console().width < _LIST_COLUMNS:
        # Beside the id and the short facts there would be no column left for who and what.
        for id, held_at, recipient, sender, subject, *facts in rows:
            click.echo(" ".join(filter(None, (id, held_at, *facts))))
            click.echo(f"    to {recipient} from {sender}\n    {subject}")
        return
    table = _table("id", "held at (UTC)", "recipient", "sender", "subject", "score", "tier", "state")
    for row in rows:
        _add(table, *row)
    _print(table)


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


def _message_json(message: Message) -> dict[str, Any]:
    return {
        "id": str(message.id),
        "held_at": message.held_at.isoformat(),
        "queue_id": message.queue_id,
        "message_id": message.message_id,
        "envelope_sender": message.envelope_sender,
        "header_from": message.header_from,
        "subject": message.subject,
        "action": message.action,
        "score": message.score,
        "tier": message.tier.value,
        "client_ip": message.client_ip,
        "user": message.user,
        "size_bytes": message.size_bytes,
        "sha256": message.body_sha256.hex(),
        "flags": sorted(flag.value for flag in message.flags),
        "symbols": [{"name": s.name, "score": s.score, "options": list(s.options)} for s in message.symbols],
    }


def _delivery_json(delivery: Delivery) -> dict[str, Any]:
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
        "tier": message.tier.value,
        "queue_id": message.queue_id,
    }


def _print_json(value: object) -> None:
    click.echo(_json(value, indent=2))


def _json(value: object, indent: int | None = None) -> str:
    """JSON with letters as they are, for who reads or greps it; with escapes for what terminals obey, and for what
    their alphabet lacks: those that Python would write are none of JSON's."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    encoding = sys.stdout.encoding or "utf-8"

    def letter(character: str) -> str:
        try:
            character.encode(encoding)
        except UnicodeEncodeError:
            return json.dumps(character)[1:-1]
        return character if character.isprintable() else json.dumps(character)[1:-1]

    return _BEYOND_ASCII.sub(lambda match: letter(match[0]), text)
