"""The commands for held messages: show, release, delete and the decisions about them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from portal.assemble import Parts
from portal.cli.common import (
    NotDone,
    WrongCall,
    add_row,
    body_advice,
    current_operator,
    find_message,
    guarded,
    new_table,
    open_parts,
    print_json,
    print_table,
    record_each,
    say,
)
from portal.cli.listing import delivery_json
from portal.cli.options import FILLED, is_matching, matching_options
from portal.model.audit import Act
from portal.model.domains import shown_address
from portal.model.errors import AlreadyDone, NotAllowed, QuarantineError, RelayDeferred, RelayRefused, SettingsError
from portal.model.message import Actor, ActorKind, Delivery, DeliveryId, Message, Scan, State, identity
from portal.model.text import shown
from portal.stores import scans

if TYPE_CHECKING:
    from portal.actions import Actions


@click.command()
@click.argument("id", type=FILLED)
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
@guarded
def meta(id: str, as_json: bool) -> None:
    """Show all data of a message, its deliveries and their history."""
    with open_parts() as parts:
        message = find_message(parts, id)
        deliveries = parts.store.deliveries.of_message(message.id)
        histories = {d.number: parts.store.deliveries.history(d.key) for d in deliveries}
        if as_json:
            out = _message_json(message)
            out["deliveries"] = [
                {
                    **delivery_json(d),
                    "history": [
                        {"at": e.at.isoformat(), "what": e.kind, "who": e.actor.who, "via": e.actor.via,
                         "address": e.actor.address, "detail": e.detail}
                        for e in histories[d.number]
                    ],
                }
                for d in deliveries
            ]  # fmt: skip
            print_json(out)
            return
        for name, value in {**_message_json(message), "scan": _scan_text(message.scan)}.items():
            if name != "symbols":
                text = ", ".join(value) if isinstance(value, list) else "" if value is None else str(value)
                click.echo(f"{name + ':':18}{shown(text, 500)}")
        table = new_table("symbol", "score", "options")
        for symbol in sorted(message.symbols, key=lambda s: -abs(s.score)):
            add_row(table, shown(symbol.name, 60), f"{symbol.score:g}", shown(", ".join(symbol.options), 100))
        print_table(table)
        for delivery in deliveries:
            click.echo(f"\n{_recipient_label(delivery)}: {delivery.state}")
            if delivery.reason:
                click.echo(f"  reason: {shown(delivery.reason, 500)}")
            for event in histories[delivery.number]:
                who = " ".join(filter(None, [shown_address(event.actor.who), event.actor.via, event.actor.address]))
                detail = f": {shown(event.detail, 300)}" if event.detail else ""
                click.echo(f"  {event.at:%Y-%m-%d %H:%M:%S} {event.kind} by {shown(who)}{detail}")


@click.command("print")
@click.argument("id", type=FILLED)
@guarded
def print_(id: str) -> None:
    """Write the message to standard output, exactly as it was received."""
    with open_parts() as parts:
        message = find_message(parts, id)
        record_each(parts, Act.BODY_READ, parts.store.deliveries.of_message(message.id))
        for chunk in parts.store.messages.body(message.id):
            sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()


# ---- actions


@click.command()
@click.argument("ids", type=FILLED, nargs=-1, metavar="[ID …]")
@click.option(
    "--recipient", type=FILLED, help="The recipient; required if a message has several recipients or no known one."
)
@click.option("--all", "to_all", is_flag=True, help="Release each message to all its recipients.")
@click.option(
    "--again", is_flag=True, help="Release it even if it was released before, for example because it was lost."
)
@matching_options()
@guarded
def release(ids: Sequence[str], recipient: str | None, to_all: bool, again: bool, **matching: Any) -> None:
    """Send held messages to their recipients now: those with these ids, or with --matching all that a search finds."""
    if is_matching(ids, matching):
        if to_all or again:
            raise WrongCall("Leave out --all and --again: they are for single messages, not for --matching.")
        _act_on_matching("release", recipient, matching)
        return
    from portal.batches.parallel import AT_ONCE, in_parallel

    with open_parts() as parts:
        deliveries, failed = _select(parts, ids, recipient, to_all, may_assign=True)

        operator = current_operator()

        def check(delivery: Delivery) -> None:
            _check_not_own(parts, operator, delivery)

        def send(actions: Actions, delivery: Delivery) -> Delivery:
            return actions.release(
                delivery.id,
                delivery.number,
                operator,
                operator=True,
                again=again,
                check=check,
                reason=matching["reason"] or "",
            )

        for delivery, outcome in in_parallel(parts.actions, send, deliveries, AT_ONCE):
            if isinstance(outcome, Delivery):
                say(f"{outcome.id} {_recipient_label(outcome)}: {outcome.state}")
                continue
            if not isinstance(outcome, QuarantineError):
                raise outcome
            failed = True
            _print_failure(delivery, outcome)
            if isinstance(outcome, RelayDeferred):
                say("  The digest process keeps trying.", err=True)
            elif isinstance(outcome, RelayRefused):
                say("  It is held again. Remove the cause, then release it again.", err=True)
            elif isinstance(outcome, AlreadyDone) and delivery.state in (State.RELEASED, State.PASSED):
                say("  If the message was lost, send it once more with --again.", err=True)
    if failed:
        raise SystemExit(1)


@click.command()
@click.argument("ids", type=FILLED, nargs=-1, metavar="[ID …]")
@click.option("--recipient", type=FILLED, help="Only this recipient's delivery; else all deliveries of the message.")
@matching_options()
@guarded
def delete(ids: Sequence[str], recipient: str | None, **matching: Any) -> None:
    """Delete messages, or with --matching all that a search finds. Until they are purged, `restore` undoes it."""
    if is_matching(ids, matching):
        _act_on_matching("delete", recipient, matching)
        return
    _apply_to_each(ids, recipient, _with_reason(lambda actions: actions.delete, matching))


@click.command()
@click.argument("ids", type=FILLED, nargs=-1, metavar="[ID …]")
@click.option("--recipient", type=FILLED, help="Only this recipient's delivery; else all deliveries of the message.")
@matching_options()
@guarded
def restore(ids: Sequence[str], recipient: str | None, **matching: Any) -> None:
    """Undo `delete` for messages, or with --matching for all that a search finds."""
    if is_matching(ids, matching):
        _act_on_matching("restore", recipient, matching)
        return
    _apply_to_each(ids, recipient, _with_reason(lambda actions: actions.restore, matching))


@click.command("confirm-spam")
@click.argument("ids", type=FILLED, nargs=-1, required=True, metavar="ID [ID …]")
@click.option("--recipient", type=FILLED, help="Only this recipient's delivery; else all deliveries of the message.")
@guarded
def confirm_spam(ids: Sequence[str], recipient: str | None) -> None:
    """Delete messages as spam, and have Rspamd learn them (`rspamd.learn`). `restore` undoes both."""

    def confirm(parts: Parts, delivery: Delivery) -> Delivery:
        return parts.actions.confirm_spam(delivery.id, delivery.number, current_operator())

    with open_parts() as parts:
        if not parts.learning.counts(ActorKind.OPERATOR):
            raise SettingsError(
                "rspamd.learn is off, so nothing would be learned. To delete messages: quarantine delete"
            )
        _apply(parts, ids, recipient, confirm)


@click.command()
@click.argument("ids", type=FILLED, nargs=-1, required=True, metavar="ID [ID …]")
@guarded
def unlearn(ids: Sequence[str]) -> None:
    """Have Rspamd learn messages as the opposite of what they were learned as."""
    failed = False
    with open_parts() as parts:
        if parts.learning.rspamd is None:
            raise SettingsError("rspamd.url is not set, so nothing can be learned. Set it in the settings file.")
        for id in ids:
            try:
                deliveries = parts.store.deliveries.of_message(find_message(parts, id).id)
                learned = parts.learning.unlearn(deliveries, current_operator(), parts.actions.now())
                if learned is None:
                    raise NotDone(
                        f"{shown(id)}: Rspamd has not learned this message, so there is nothing to undo. "
                        f"See: quarantine meta {shown(id)}"
                    )
            except NotDone as error:
                failed = True
                say(str(error), err=True)
                continue
            say(f"{shown(id)}: learned as {learned}, posted as {learned.opposite} within seconds")
    if failed:
        raise SystemExit(1)


@click.command()
@click.argument("ids", type=FILLED, nargs=-1, metavar="[ID …]")
@click.option("--recipient", type=FILLED, help="Only this recipient's delivery; else all deliveries of the message.")
@matching_options()
@guarded
def reannounce(ids: Sequence[str], recipient: str | None, **matching: Any) -> None:
    """Put held messages into the next digest again, or with --matching all that a search finds."""
    if is_matching(ids, matching):
        _act_on_matching("reannounce", recipient, matching)
        return
    _apply_to_each(
        ids, recipient, _with_reason(lambda actions: actions.reannounce, matching), result="in the next digest again"
    )


@click.command()
@click.argument("ids", type=FILLED, nargs=-1, metavar="[ID …]")
@click.option("--recipient", type=FILLED, help="The recipient; required if a message has several recipients.")
@matching_options(reason="The reason, which the recipients can read. Required.")
@guarded
def refuse(ids: Sequence[str], recipient: str | None, reason: str | None, **matching: Any) -> None:
    """Deny release requests: those for these messages, or with --matching all that a search finds."""
    if is_matching(ids, matching):
        _act_on_matching("refuse", recipient, {**matching, "reason": reason})
        return
    if reason is None:
        raise WrongCall("Give a --reason, which the recipients can read.")

    def deny(parts: Parts, delivery: Delivery) -> Delivery:
        _check_not_own(parts, current_operator(), delivery)
        return parts.actions.refuse_request(delivery.id, delivery.number, current_operator(), reason)

    _apply_to_each(ids, recipient, deny, to_all=None, result="refused")


COMMANDS = (meta, print_, release, delete, restore, confirm_spam, unlearn, reannounce, refuse)


# ---- selection of messages and deliveries


def _select_deliveries(
    parts: Parts, message: Message, recipient: str | None, to_all: bool | None, *, may_assign: bool = False
) -> Sequence[Delivery]:
    """Return the selected deliveries.

    Raises NotDone if the selection is ambiguous or matches no recipient, WrongCall if the options do not fit.

    ``to_all``: None if the command has no --all. ``may_assign``: assign this recipient to a message whose export came
    without recipients.
    """
    deliveries = parts.store.deliveries.of_message(message.id)
    if recipient is not None and to_all:
        raise WrongCall("Use either --recipient or --all.")
    if recipient is not None:
        matching = [d for d in deliveries if identity(recipient) in (d.recipient, identity(d.address))]
        if may_assign and not matching and len(deliveries) == 1 and not deliveries[0].recipient:
            # A recipient can be assigned only once, so reject an address that the message cannot be sent to.
            from portal.mail import wire

            try:
                wire.path(recipient, is_sender=False)
            except RelayRefused as error:
                raise WrongCall(f"--recipient {shown(recipient)}: {error}") from error
            return [
                parts.store.deliveries.assign(
                    DeliveryId(message.id, 0), recipient, current_operator(), parts.actions.now()
                )
            ]
        if not matching:
            raise NotDone(
                f"{shown(recipient)} is not among its recipients. Use one of:\n" + _recipient_list(deliveries)
            )
        return matching
    if len(deliveries) > 1 and not to_all:
        options = "--recipient ADDRESS" if to_all is None else "--recipient ADDRESS or --all"
        raise NotDone(f"The message has several recipients; use {options}:\n" + _recipient_list(deliveries))
    return deliveries


def _recipient_label(delivery: Delivery) -> str:
    return shown_address(delivery.address) or "(recipient not known)"


def _print_failure(delivery: Delivery, error: QuarantineError) -> None:
    advice = f". See: quarantine meta {delivery.id}" if isinstance(error, AlreadyDone) else body_advice(error)
    say(f"{delivery.id} {_recipient_label(delivery)}: {error}{advice}", err=True)


def _recipient_list(deliveries: Sequence[Delivery]) -> str:
    return "\n".join(f"  {_recipient_label(d)}: {d.state}" for d in deliveries)


def _select(
    parts: Parts, ids: Sequence[str], recipient: str | None, to_all: bool | None, *, may_assign: bool = False
) -> tuple[Sequence[Delivery], bool]:
    """Return the selected deliveries of these messages, and whether a message was left out, whose reason is printed.

    The options are those of `_select_deliveries`. Raises WrongCall.
    """
    chosen: list[Delivery] = []
    failed = False
    for id in ids:
        try:
            message = find_message(parts, id)
            chosen += _select_deliveries(parts, message, recipient, to_all, may_assign=may_assign)
        except NotDone as error:
            failed = True
            say(f"{shown(id)}: {error}" if len(ids) > 1 else str(error), err=True)
    return chosen, failed


def _check_not_own(parts: Parts, operator: Actor, delivery: Delivery) -> None:
    """Raise NotAllowed if this operator is a reader of the delivery."""
    if parts.staff.decides_own(identity(operator.name), delivery):
        from portal.policy.staff import NOT_YOURS

        raise NotAllowed(NOT_YOURS)


def _with_reason(
    method: Callable[[Actions], Callable[..., Delivery]], options: Mapping[str, Any]
) -> Callable[[Parts, Delivery], Delivery]:
    """Return an act for `_apply_to_each` by a method of `Actions`, with the reason of these options for the audit."""
    reason = options["reason"] or ""
    return lambda parts, d: method(parts.actions)(d.id, d.number, current_operator(), reason=reason)


def _act_on_matching(act: str, recipient: str | None, options: Mapping[str, Any]) -> None:
    # A command for single messages starts faster without the modules for mass acts.
    from portal.batches import batch
    from portal.cli.jobs import act_on_matching

    act_on_matching(batch.Act(act), recipient, options)


def _apply_to_each(
    ids: Sequence[str],
    recipient: str | None,
    act: Callable[[Parts, Delivery], Delivery],
    *,
    to_all: bool | None = True,
    result: str = "",
) -> None:
    """Open the parts and `_apply` an act."""
    with open_parts() as parts:
        _apply(parts, ids, recipient, act, to_all=to_all, result=result)


def _apply(
    parts: Parts,
    ids: Sequence[str],
    recipient: str | None,
    act: Callable[[Parts, Delivery], Delivery],
    *,
    to_all: bool | None = True,
    result: str = "",
) -> None:
    """Act on the deliveries of these messages and print the results.

    ``to_all``: without a recipient. ``result``: instead of the state afterwards.
    """
    deliveries, failed = _select(parts, ids, recipient, to_all and recipient is None)
    for delivery in deliveries:
        try:
            done = act(parts, delivery)
            say(f"{done.id} {_recipient_label(done)}: {result or done.state}")
        except QuarantineError as error:
            failed = True
            _print_failure(delivery, error)
    if failed:
        raise SystemExit(1)


# ---- output


def _scan_text(scan: Scan | None) -> str:
    if scan is None or scan.at is None:
        return "" if scan is None else scan.outcome.value
    names = ", ".join(symbol.name for symbol in scan.symbols)
    return " ".join(filter(None, [f"{scan.outcome.value} at {scan.at:%Y-%m-%d %H:%M:%S} UTC", names, scan.detail]))


def _message_json(message: Message) -> dict[str, Any]:
    from portal.model.sender import authentic

    return {
        "id": str(message.id),
        "held_at": message.held_at.isoformat(),
        "queue_id": message.queue_id,
        "message_id": message.message_id,
        "envelope_sender": message.envelope_sender,
        "header_from": message.header_from,
        "from_count": message.from_count,
        "authentic": authentic(message),
        "subject": message.subject,
        "action": message.action,
        "score": message.score,
        "threshold": message.threshold,
        "tier": message.tier.value,
        "client_ip": message.client_ip,
        "user": message.user,
        "size_bytes": message.size_bytes,
        "sha256": message.body_sha256.hex(),
        "flags": sorted(flag.value for flag in message.flags),
        "scan": message.scan and scans.to_json(message.scan),
        "attachments": list(message.attachments),
        "symbols": [
            {"name": s.name, "score": s.score, "options": list(s.options), "description": s.description}
            for s in message.symbols
        ],
    }
