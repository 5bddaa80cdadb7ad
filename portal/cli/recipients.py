"""The commands for one recipient: show what is known, and forget a person who left."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import datetime

import click

from portal.assemble import Parts
from portal.cli.common import (
    NotDone,
    WrongCall,
    add_row,
    current_operator,
    guarded,
    new_table,
    open_parts,
    print_json,
    print_table,
    progress,
    say,
)
from portal.cli.listing import delivery_json
from portal.cli.options import FILLED
from portal.model.domains import shown_address
from portal.model.errors import NotAllowed, UnknownRecipient
from portal.model.message import is_address
from portal.model.schedule import Schedule
from portal.model.text import shown
from portal.policy.forgetting import Leaver
from portal.policy.recipients import NOT_AN_ADDRESS, Profile


@click.command()
@click.argument("address", type=FILLED, metavar="ADDRESS")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
@guarded
def recipient(address: str, as_json: bool) -> None:
    """Show what is known about a recipient: messages, digests, sign-ins, rules. Times are in UTC."""
    with open_parts() as parts:
        try:
            mailbox = parts.recipients.find(address)
        except UnknownRecipient as error:
            raise (WrongCall if str(error) == NOT_AN_ADDRESS else NotDone)(str(error)) from error
        profile = parts.recipients.profile(mailbox, parts.actions.now())
    if as_json:
        print_json(_json(profile))
        return
    for name, value in _facts(profile):
        click.echo(f"{name + ':':18}{value}")
    table = new_table("id", "held at (UTC)", "sender", "subject", "score", "tier", "state")
    for each in profile.newest:
        message = each.message
        score = "" if message.score is None else f"{message.score:.1f}"
        score += "" if message.threshold is None else f" / {message.threshold:g}"
        sender, subject = shown(message.header_from or message.envelope_sender or "", 60), shown(message.subject, 60)
        add_row(table, str(each.id), _time(message.held_at), sender, subject, score, message.tier, each.state)
    if profile.newest:
        click.echo()
        print_table(table)


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
        say(_summary(leaver))
        if dry_run:
            return
        if not yes and not sys.stdin.isatty():
            raise WrongCall("Confirm with --yes, or look first with --dry-run.")
        if not yes and not click.confirm("Remove all of it? This cannot be undone."):
            raise NotDone("Nothing was changed.")
        now = parts.actions.now()
        parts.forgetting.begin(leaver, current_operator(), now, reason or "")
        _remove_deliveries(parts, leaver, now)


def _person(parts: Parts, address: str) -> str:
    """Return the person of an address, also in a domain that is no longer local. Raises WrongCall."""
    if not is_address(address):
        raise WrongCall(f"{shown_address(address)} is not an email address. Enter one like name@example.org.")
    person = parts.people.person(address)
    if person is None:
        raise WrongCall(f"{shown_address(address)} is a shared mailbox. Give the address of a person.")
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


def _remove_deliveries(parts: Parts, leaver: Leaver, until: datetime) -> None:
    total, removed, left = sum(leaver.counts.of.values()), 0, 0
    if leaver.identities:
        with progress("deliveries") as report:

            def count(number: int) -> None:
                nonlocal removed
                removed += number
                report(removed, max(total, removed), 0)

            left = parts.forgetting.remove(leaver.identities, until, report=count)
    say(f"{shown_address(leaver.recipient)}: forgotten, {removed} deliveries removed")
    if left:
        raise NotDone(f"{left} deliveries are being released. Call it again when that has ended: quarantine list")


COMMANDS = (forget, recipient)


# ---- output


def _facts(profile: Profile) -> Iterator[tuple[str, str]]:
    """Yield the lines of the text: name and value."""
    mailbox, person, plan, contacts = profile.mailbox, profile.person, profile.plan, profile.contacts
    yield "recipient", shown_address(mailbox.recipient)
    counts = ", ".join(f"{state} {number}" for state, number in sorted(profile.counts.of.items()))
    yield "deliveries", (counts or "none") + ("" if profile.counts.complete else " (of the newest)")
    aliases, shared = _addresses(profile)
    if aliases:
        yield "aliases", ", ".join(map(shown_address, aliases))
    if shared:
        yield "shared mailboxes", ", ".join(map(shown_address, shared))
    if not mailbox.is_person:
        yield "read by", ", ".join(map(shown_address, mailbox.readers))
        return
    at = ", ".join(f"{each:%H:%M}" for each in plan.at)
    yield "digests", f"{plan.schedule}{f' at {at}' if plan.schedule != Schedule.NEVER else ''} in {plan.zone.key}"
    yield "language", plan.language
    yield "only if mail looks wanted", "on" if plan.only_wanted else "off"
    yield "notices", "on" if plan.notices else "off"
    yield "last digest", _time(contacts.digest_at) or "none"
    if person.stopped_at:
        who = f" by {shown(contacts.stopped_by.who)}" if contacts.stopped_by else ""
        yield "digests stopped", f"{_time(person.stopped_at)}{who}"
    elif profile.due_at:
        yield "next digest", f"{_time(profile.due_at)}, if there are new messages"
    if person.failed_at:
        yield "digest failed", f"{_time(person.failed_at)}: {shown(person.failure, 500)}"
    if person.links_valid_from:
        yield "links revoked", _time(person.links_valid_from)
    for signed_in, via, client in contacts.sign_ins:
        yield "signed in", f"{_time(signed_in)} {shown(via)} {shown(client)}"
    for each in contacts.sessions:
        yield (
            "session",
            f"{shown(each.client)}, {shown(each.method)}, since {_time(each.started_at)}, used {_time(each.used_at)}",
        )
    for rule in profile.rules:
        yield (
            "rule",
            f"{rule.id} {rule.effect} {shown_address(rule.sender)}, hits {rule.hits}, by {shown(rule.actor.who)}",
        )


def _json(profile: Profile) -> dict[str, object]:
    mailbox, person, plan, contacts = profile.mailbox, profile.person, profile.plan, profile.contacts
    aliases, shared = _addresses(profile)
    return {
        "recipient": mailbox.recipient,
        "is_person": mailbox.is_person,
        "readers": list(mailbox.readers),
        "aliases": aliases,
        "shared_mailboxes": shared,
        "deliveries": dict(profile.counts.of),
        "all_counted": profile.counts.complete,
        "digests": {
            "days": plan.schedule,
            "at": [f"{each:%H:%M}" for each in plan.at],
            "zone": plan.zone.key,
            "language": plan.language,
            "only_wanted": plan.only_wanted,
            "notices": plan.notices,
            "last_at": _iso(contacts.digest_at),
            "next_at": _iso(profile.due_at),
            "stopped_at": _iso(person.stopped_at),
            "stopped_by": contacts.stopped_by and contacts.stopped_by.who,
            "failed_at": _iso(person.failed_at),
            "failure": person.failure,
            "links_valid_from": _iso(person.links_valid_from),
        },
        "sign_ins": [{"at": _iso(at), "via": via, "client": client} for at, via, client in contacts.sign_ins],
        "sessions": [
            {
                "client": each.client,
                "method": each.method,
                "started_at": _iso(each.started_at),
                "used_at": _iso(each.used_at),
            }
            for each in contacts.sessions
        ],
        "rules": [
            {"id": str(rule.id), "scope": rule.scope, "sender": rule.sender, "effect": rule.effect, "hits": rule.hits}
            for rule in profile.rules
        ],
        "newest": [delivery_json(each) for each in profile.newest],
    }


def _addresses(profile: Profile) -> tuple[list[str], list[str]]:
    """Return the aliases and the shared mailboxes of a person."""
    reader, own = profile.reader, profile.mailbox.recipient
    aliases = [each for each in reader.identities if each != own and each not in reader.shared]
    return aliases, [each for each in reader.shared if each != own]


def _time(at: datetime | None) -> str:
    return f"{at:%Y-%m-%d %H:%M}" if at else ""


def _iso(at: datetime | None) -> str | None:
    return at.isoformat() if at else None
