"""The commands ``quarantine rules …``: allow and block rules, also as CSV files."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import click

from portal.cli.common import (
    Lines,
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
    record,
    say,
)
from portal.cli.options import FILLED, FILLED_PATH, LIMIT, Id, say_more
from portal.model.audit import Act
from portal.model.domains import shown_address
from portal.model.errors import AlreadyDone, BadRule, NotFound
from portal.model.rule import Effect, Rule
from portal.model.tables import cell, unquoted
from portal.model.text import shown
from portal.policy.entry import read_scope, scope_text
from portal.policy.rulebook import Hint, Rulebook

_REQUIRED = ("scope", "sender", "effect")
_OPTIONAL = ("binding", "expires_at", "note")
_EXPORTED = ("created_at", "made_by", "message_id", "hits", "last_hit_at")  # import ignores them
_DAYS = re.compile(r"([0-9]{1,5})d")
_DATE = re.compile(r"[0-9]{4}-?[0-9]{2}-?[0-9]{2}")
_PAGE = 500
_MAX_LISTED = 20
_HINTS = {
    Hint.OVERRULED: "a binding block rule of the domain or the site overrules it",
    Hint.OVERRIDES: "it overrides another rule of the domain or the site",
    Hint.CHANGING_ADDRESS: "this looks like an address that differs in each message: use its domain instead?",
    Hint.OWN_DOMAIN: "the sender is in one of your own domains",
    Hint.LOOKS_ALIKE: "the domain looks like another one",
    Hint.NOT_LOCAL: "the recipient or domain is not in local_domains",
}


@click.group()
def rules() -> None:
    """List and change the rules that allow or block senders."""


@rules.command("list")
@click.option("--recipient", type=FILLED, metavar="ADDRESS", help="Only the rules of this recipient.")
@click.option("--domain", type=FILLED, metavar="DOMAIN", help="Only the rules for all recipients in this domain.")
@click.option("--site", is_flag=True, help="Only the rules for all recipients.")
@click.option("--removed", is_flag=True, help="List the rules that were removed or have expired in the last 90 days.")
@LIMIT
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
@guarded
def list_(recipient: str | None, domain: str | None, site: bool, removed: bool, limit: int, as_json: bool) -> None:
    """List rules, newest first, and what each has done."""
    with open_parts() as parts:
        scope = _chosen(parts.rulebook, recipient, domain, site) if recipient or domain or site else None
        found: list[Rule] = []
        for rule in _pages(parts.rulebook, scope, removed):
            if len(found) == limit:
                say_more("There are more rules", limit)
                break
            found.append(rule)
    if as_json:
        for rule in found:
            click.echo(json_text(_rule_json(rule)))
        return
    table = new_table("id", "for", "effect", "sender", "made (UTC)", "by", "hits", "last hit", "notes")
    for rule in found:
        add_row(
            table,
            str(rule.id),
            shown_address(scope_text(rule.scope)),
            rule.effect.value + (", binding" if rule.binding else ""),
            shown_address(rule.sender),
            f"{rule.created_at:%Y-%m-%d %H:%M}",
            shown_address(rule.actor.who),
            str(rule.hits),
            "" if rule.last_hit_at is None else f"{rule.last_hit_at:%Y-%m-%d %H:%M}",
            "; ".join(_notes(rule)),
        )
    print_table(table)


@rules.command()
@click.argument("effect", type=click.Choice([effect.value for effect in Effect]))
@click.argument("sender", type=FILLED, metavar="SENDER")
@click.option("--recipient", type=FILLED, metavar="ADDRESS", help="For this recipient.")
@click.option("--domain", type=FILLED, metavar="DOMAIN", help="For all recipients in this domain.")
@click.option("--site", is_flag=True, help="For all recipients.")
@click.option("--binding", is_flag=True, help="A block rule that recipients' own rules do not override.")
@click.option(
    "--expires", type=FILLED, metavar="TIME", help="The end of the rule: 30d, 2026-12-31 or 2026-12-31T08:00 (UTC)."
)
@click.option("--note", type=FILLED, default=None, help="A note for other administrators, at most 200 characters.")
@guarded
def add(
    effect: str,
    sender: str,
    recipient: str | None,
    domain: str | None,
    site: bool,
    binding: bool,
    expires: str | None,
    note: str | None,
) -> None:
    """Allow or block a sender: an address, a domain with its subdomains, or a network.

    The rule replaces one for the same sender. Exactly one of --recipient, --domain and --site is needed.
    """
    with open_parts() as parts:
        scope = _chosen(parts.rulebook, recipient, domain, site)
        try:
            rule = parts.rulebook.rule(
                scope_text(scope),
                sender,
                Effect(effect),
                current_operator(),
                binding=binding,
                expires_at=_parse_end(expires) if expires is not None else None,
                note=note or "",
            )
        except BadRule as error:
            raise WrongCall(f"{shown(sender)}: {error}") from error
        try:
            [in_use] = parts.rulebook.add([rule])
        except BadRule as error:  # there are too many
            raise NotDone(f"{shown(sender)}: {error}") from error
        state = "added" if in_use.id == rule.id else "this rule exists already"
        click.echo(
            f"{in_use.id} {shown_address(scope_text(in_use.scope))} {effect} {shown_address(in_use.sender)}: {state}"
        )
        for hint in parts.rulebook.hints(in_use):
            click.echo(f"note: {_HINTS[hint]}", err=True)


@rules.command()
@click.argument("ids", type=Id("quarantine rules list"), nargs=-1, required=True, metavar="ID [ID …]")
@guarded
def remove(ids: Sequence[UUID]) -> None:
    """Remove rules by their ids."""
    failed = False
    with open_parts() as parts:
        for id in ids:
            try:
                parts.rulebook.remove(id, current_operator())
                say(f"{id}: removed")
            except (NotFound, AlreadyDone) as error:
                failed = True
                say(f"{id}: {error}. Try: quarantine rules list", err=True)
    if failed:
        raise SystemExit(1)


@rules.command("export")
@click.option("--recipient", type=FILLED, metavar="ADDRESS", help="Only the rules of this recipient.")
@click.option("--domain", type=FILLED, metavar="DOMAIN", help="Only the rules for all recipients in this domain.")
@click.option("--site", is_flag=True, help="Only the rules for all recipients.")
@guarded
def export(recipient: str | None, domain: str | None, site: bool) -> None:
    """Write the rules as CSV to standard output, for `import` or a spreadsheet."""
    with open_parts() as parts:
        scope = _chosen(parts.rulebook, recipient, domain, site) if recipient or domain or site else None
        detail = f"rules of {scope_text(scope)}" if scope else "all rules"
        record(parts.store, Act.EXPORTED, scope or "", detail)
        writer = csv.writer(Lines())
        writer.writerow([*_REQUIRED, *_OPTIONAL, *_EXPORTED])
        for rule in _pages(parts.rulebook, scope, removed=False):
            cells = _rule_json(rule)
            writer.writerow([cell(cells[name]) for name in (*_REQUIRED, *_OPTIONAL, *_EXPORTED)])


@rules.command("import")
@click.argument("path", metavar="FILE", type=FILLED_PATH)
@guarded
def import_(path: Path) -> None:
    """Add the rules of a CSV file, or of standard input for "-".

    The first line names the columns: scope (an address, a domain or "site"), sender, effect (allow or block), and if
    wanted binding (yes or no), expires_at and note. If a line is wrong, nothing is imported. Importing a file again
    changes nothing.
    """
    data = read_input(path)
    with open_parts() as parts:
        try:
            rules = _read(parts.rulebook, data)
            in_use = parts.rulebook.add(rules)
        except BadRule as error:  # there are too many
            raise NotDone(f"{error}\nNothing was imported.") from error
    added = len({rule.id for rule in rules} & {rule.id for rule in in_use})
    click.echo(f"added {added} rules, {len(in_use) - added} existed already")


# ---- CSV


def _read(rulebook: Rulebook, data: bytes) -> list[Rule]:
    """Return the rules of a CSV file. Raises WrongCall with the wrong lines."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise WrongCall(
            f"line {line}: This is not UTF-8. Save the file as CSV UTF-8.\nNothing was imported."
        ) from error
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True, restkey="", restval="")
    problems: list[str] = []
    rules: dict[tuple[str, str], tuple[int, Rule]] = {}
    try:
        _check_columns(reader.fieldnames or ())
        for row in reader:
            try:
                rule = _rule(rulebook, row)
                before = rules.setdefault((rule.scope, rule.sender), (reader.line_num, rule))
                if _content(before[1]) != _content(rule):
                    raise BadRule(f"Line {before[0]} has another rule for this sender.")
            except BadRule as error:
                problems.append(f"line {reader.line_num}: {error}")
    except csv.Error as error:
        problems.append(f"line {reader.reader.line_num}: This is not CSV: {error}.")
    if problems:
        more = [f"… and {len(problems) - _MAX_LISTED} more lines"] if len(problems) > _MAX_LISTED else []
        raise WrongCall("\n".join([*problems[:_MAX_LISTED], *more, "Nothing was imported."]))
    return [rule for _, rule in rules.values()]


def _content(rule: Rule) -> tuple[object, ...]:
    return rule.effect, rule.binding, rule.expires_at, rule.note


def _check_columns(names: Sequence[str]) -> None:
    known = (*_REQUIRED, *_OPTIONAL, *_EXPORTED)
    missing = [name for name in _REQUIRED if name not in names]
    unknown = [name for name in names if name not in known]
    twice = len({*names}) < len(names)
    if missing or unknown or twice:
        raise WrongCall(
            f"line 1: Give the names of the columns in this line: {', '.join(_REQUIRED)}, and if wanted "
            f"{', '.join(_OPTIONAL)}, separated by commas.\nNothing was imported."
        )


def _rule(rulebook: Rulebook, row: dict[str, Any]) -> Rule:
    """Return the rule of one line. Raises BadRule."""
    if row.get(""):
        raise BadRule("There are more values than columns.")
    values = {name: unquoted(value).strip() for name, value in row.items() if isinstance(value, str)}
    try:
        effect = Effect(values["effect"].lower())
    except ValueError:
        raise BadRule("The effect must be allow or block.") from None
    binding = values.get("binding", "").lower()
    if binding not in ("", "yes", "no"):
        raise BadRule("The value of binding must be yes or no.")
    expires = values.get("expires_at", "")
    return rulebook.rule(
        values["scope"],
        values["sender"],
        effect,
        current_operator(),
        binding=binding == "yes",
        expires_at=_parse_end(expires) if expires else None,
        note=values.get("note", ""),
    )


# ---- options and output


def _chosen(rulebook: Rulebook, recipient: str | None, domain: str | None, site: bool) -> str:
    """Return the scope that the options name. Raises WrongCall."""
    if (recipient is not None) + (domain is not None) + site != 1:
        raise WrongCall("Use exactly one of --recipient ADDRESS, --domain DOMAIN and --site.")
    if site:
        return "*"
    option, text = ("--recipient", recipient) if recipient is not None else ("--domain", domain)
    try:
        scope = read_scope(text or "")
    except BadRule as error:
        raise WrongCall(f"{option} {shown(text)}: {error}") from error
    if scope == "*" or scope.startswith("@") is (option == "--recipient"):
        is_address = option == "--recipient"
        expected, example = ("an address", "name@example.org") if is_address else ("a domain", "example.org")
        raise WrongCall(f"{option} {shown(text)}: This is not {expected}. Use one like {example}.")
    return rulebook.owner(rulebook.people.held_as(scope)) if option == "--recipient" else scope


def _parse_end(text: str) -> datetime:
    """Return the time at which a rule ends. A date alone means the end of that day. Raises BadRule."""
    days = _DAYS.fullmatch(text)
    try:
        if days:
            return datetime.now(UTC) + timedelta(days=int(days[1]))
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return moment.astimezone(UTC) + timedelta(days=1 if _DATE.fullmatch(text) else 0)
    except (ValueError, OverflowError):
        raise BadRule(f"{shown(text)!r} is not a time: use 30d, 2026-12-31 or 2026-12-31T08:00.") from None


def _pages(rulebook: Rulebook, scope: str | None, removed: bool) -> Iterator[Rule]:
    before: UUID | None = None
    scopes = None if scope is None else [scope]
    while found := rulebook.store.rules.list(scopes, _PAGE, rulebook.now(), before, removed=removed):
        yield from found
        before = found[-1].id


def _notes(rule: Rule) -> Iterator[str]:
    if rule.expires_at is not None:
        yield f"until {rule.expires_at:%Y-%m-%d %H:%M}"
    if rule.removed_at is not None and rule.removed_by is not None:
        yield f"removed {rule.removed_at:%Y-%m-%d %H:%M} by {shown_address(rule.removed_by.who)}"
    if rule.note:
        yield shown(rule.note)


def _rule_json(rule: Rule) -> dict[str, Any]:
    return {
        "id": str(rule.id),
        "scope": scope_text(rule.scope),
        "sender": rule.sender,
        "effect": rule.effect.value,
        "binding": rule.binding,
        "expires_at": rule.expires_at and rule.expires_at.isoformat(),
        "note": rule.note,
        "created_at": rule.created_at.isoformat(),
        "made_by": rule.actor.who,
        "message_id": rule.message_id and str(rule.message_id),
        "hits": rule.hits,
        "last_hit_at": rule.last_hit_at and rule.last_hit_at.isoformat(),
        "removed_at": rule.removed_at and rule.removed_at.isoformat(),
        "removed_by": rule.removed_by and rule.removed_by.who,
    }


COMMANDS = (rules,)
