"""The commands for the portal itself: init, check, settings, purge."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import chain

import click

from portal.assemble import keys_path, make_links
from portal.cli import checks, sending
from portal.cli.common import (
    NotDone,
    add_row,
    current_operator,
    guarded,
    new_table,
    open_parts,
    print_json,
    print_table,
    record,
    say,
)
from portal.cli.options import FILLED
from portal.model.audit import Act
from portal.model.text import shown
from portal.policy.retention import expire_ended
from portal.settings import load, load_from, masked
from portal.stores import notes, open_store


@click.command()
@click.option("--new-keys", is_flag=True, help="Accept the present link keys even if the store was used with others.")
@guarded
def init(new_keys: bool) -> None:
    """Create or upgrade the store, and create missing link keys. Safe to repeat, also while mail arrives."""
    settings = load()
    store = open_store(settings.store.place, create=True)
    try:
        store.prepare_days(datetime.now(UTC), settings.store.retention_days)
        links = make_links(settings, create=True)
        if new_keys:
            record(store, Act.LINK_KEYS_ACCEPTED)
            notes.LINK_KEY.set(store, links.fingerprints()[-1])
        known_key = notes.LINK_KEY.set_default(store, links.fingerprints()[-1])
    finally:
        store.close()
    click.echo(f"store: {masked(settings)['store.url']} is ready")
    where = "the settings" if settings.links.keys else keys_path(settings)
    click.echo(f"link keys: {where}")
    if known_key not in links.fingerprints():
        raise NotDone(
            "These are not the link keys that this store was used with. Copy the key file from the other host. If it "
            "is lost, run: quarantine init --new-keys (links in digests already sent then stop working)"
        )
    click.echo("Next: quarantine check")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
@click.option(
    "--send",
    "address",
    type=FILLED,
    metavar="ADDRESS",
    help="Also send a test message from Rspamd over the portal to this local address, with a digest. Takes up to two "
    "minutes.",
)
@guarded
def check(as_json: bool, address: str | None) -> None:
    """Check settings, store, mail servers and Rspamd's rule. Print the problems and how to fix them."""
    findings = []
    tests = sending.prove(load(), address, current_operator()) if address is not None else ()
    for finding in chain(checks.run_all(), tests):
        findings.append(finding)
        if not as_json:
            mark = {True: "ok      ", False: "PROBLEM ", None: "note    "}[finding.ok]
            say(f"{mark}{finding.topic}: {finding.text}")
    if as_json:
        print_json([{"ok": f.ok, "what": f.topic, "said": f.text} for f in findings])
    if any(finding.ok is False for finding in findings):
        raise SystemExit(1)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
@guarded
def settings(as_json: bool) -> None:
    """Print the settings in effect and the source of each. Secrets are masked."""
    values, path, sources = load_from()
    if as_json:
        print_json({k: {"value": v, "source": sources.get(k, "default")} for k, v in masked(values).items()})
        return
    click.echo(f"# file: {path or 'none'}")
    table = new_table("setting", "value", "from")
    for key, value in masked(values).items():
        text = ", ".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)
        add_row(table, key, shown(text, 10_000), sources.get(key, "default"))
    print_table(table)


@click.command()
@click.option(
    "--older-than-days", type=click.IntRange(1, 3650), help="Use this retention instead of store.retention_days."
)
@guarded
def purge(older_than_days: int | None) -> None:
    """Remove messages past their retention, except requested ones and those being released."""
    with open_parts() as parts:
        now = datetime.now(UTC)
        days = older_than_days or parts.domains.longest_retention_days
        record(parts.store, Act.PURGED, detail=f"messages held more than {days} days ago")
        forgotten = expire_ended(parts.store, parts.domains, now, all_of_them=True)
        done = parts.store.purge(now - timedelta(days=days), now)
        audited = parts.store.audit.expire(now - timedelta(days=parts.settings.store.audit_retention_days))
        if forgotten:
            click.echo(f"forgot {forgotten} deliveries whose own retention is shorter")
        click.echo(f"removed {done.messages} messages held more than {days} days ago")
        if done.kept:
            click.echo(f"kept {done.kept} old messages: requested or being released")
        if audited:
            click.echo(f"removed {audited} entries of the audit")


COMMANDS = (
    check,
    init,
    purge,
    settings,
)
