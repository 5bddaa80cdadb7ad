"""The commands of ``quarantine`` that move or rebuild whole stores: copy, import-original, reindex."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click

from portal.assemble import assemble
from portal.cli.common import NotDone, guarded, progress
from portal.ingest import Ingest
from portal.model.errors import StoreUnavailable
from portal.model.text import shown
from portal.moving import original
from portal.moving.copy import copy, opened
from portal.settings import load
from portal.stores.files.reindex import reindex as rebuild

_LISTED = 50


@click.command("copy")
@click.argument("source", metavar="FROM")
@click.argument("target", metavar="TO")
@guarded
def copy_(source: str, target: str) -> None:
    """Copy everything from one store to another.

    FROM and TO are written as store.url is: files:PATH or postgresql://…. The programs may go on running on FROM; run
    it again to carry what came meanwhile, also after it was interrupted. docs/operate.md tells how to switch over.
    """
    with opened(source, target) as (old, new), progress("messages") as told:
        try:
            done = copy(old, new, told)
        except (StoreUnavailable, KeyboardInterrupt) as error:
            said = str(error) or "interrupted"
            raise NotDone(f"{said}\nThe copy is not complete. Run the same command again: it goes on.") from error
    click.echo(
        f"copied {done.messages} messages ({done.size_bytes / 1e6:.1f} MB), brought {done.changed} up to date, "
        f"{done.same} were the same; {done.people} people, {done.digests} digests"
    )
    click.echo("not copied: sessions, sign-ins, openings of links, mail of ours that waits to be sent")
    if done.mails_waiting:
        click.echo(f"{done.mails_waiting} mails of ours wait in FROM: its digest process sends them")
    click.echo("The link keys are a file of their own: keep it, or links in digests already sent will not open.")
    for ids, why in ((done.missing, "their mail is missing from FROM"), (done.damaged, "their mail is damaged")):
        if ids:
            click.echo(f"NOT COPIED, {why}: {len(ids)}", err=True)
            for id in ids:
                click.echo(f"  {id}", err=True)
    if done.missing or done.damaged:
        raise SystemExit(1)


@click.command("import-original")
@click.option(
    "--dir", "folder", type=click.Path(path_type=Path), help="The original's PREFIX: QID-meta.gz, QID-msg.gz."
)
@click.option("--dsn", help="The original's database: tables meta and msg.")
@guarded
def import_original(folder: Path | None, dsn: str | None) -> None:
    """Take over what sys4's original quarantine.py stored, from its folder or its database.

    Nothing is changed there. It can be run again: what is held already is not held twice.
    """
    if (folder is None) == (dsn is None):
        raise NotDone("Say either --dir DIR or --dsn DSN. Where the original wrote to both, --dir: it knows more.")
    settings = load()
    oldest = datetime.now(UTC) - timedelta(days=settings.store.retention_days)
    parts = assemble(settings)
    try:
        with original.opened(folder, dsn) as source, progress("mails") as told:
            done = original.import_messages(source, Ingest(parts, alarms=False), oldest, told)
    finally:
        parts.store.close()
    click.echo(f"held {done.held} mails, {done.known} were held before")
    if done.too_old:
        click.echo(
            f"left alone: {done.too_old} older than store.retention_days ({settings.store.retention_days}), which the "
            "next purge would remove"
        )
    if done.own:
        click.echo(f"left alone: {done.own} digests and sign-in mails of this portal")
    if done.without_recipients:
        click.echo(
            f"{done.without_recipients} have no recipients: the original did not keep them. They are in nobody's "
            "digest; release them with: quarantine release ID --recipient ADDRESS"
        )
    if dsn is not None:
        click.echo(
            "The original's tables hold no recipients, and no mail that is not valid UTF-8. The mail was kept as text, "
            "which may differ from the bytes that came: signatures (DKIM) may not verify any more."
        )
    if done.problems:
        click.echo(f"NOT TAKEN OVER: {len(done.problems)}", err=True)
        for name, why in done.problems:
            click.echo(f"  {shown(name)}: {shown(why, 300)}", err=True)
        raise SystemExit(1)


@click.command()
@guarded
def reindex() -> None:
    """Make the file store's database anew from its mail files and its audit journal.

    For when it is lost or damaged. Stop the programs before; mail that comes meanwhile is deferred. The old database is
    kept beside the new one.
    """
    folder = load().store.place.folder
    if folder is None:
        click.echo(
            "PostgreSQL keeps everything in the database: there is nothing to rebuild. Where it is lost, restore it "
            "from a backup (docs/operate.md)."
        )
        return
    with progress("mail files") as told:
        done = rebuild(folder, told)
    click.echo(f"read {done.messages} messages from their files")
    if done.journal_since is None:
        click.echo(
            "There is no audit journal: all mail is held, as on the day it came; who stopped digests is not known."
        )
    else:
        click.echo(
            f"from the audit journal, since {done.journal_since:%Y-%m-%d %H:%M} UTC: {done.actions} acts, "
            f"{done.people} wishes of recipients, {done.digests} digests"
        )
    click.echo("Not rebuilt: sessions and sign-ins (people sign in again), mail of ours that waited to be sent.")
    click.echo("The old database is kept in the folder before-reindex of the store: remove it once all is well.")
    _list_paths("CANNOT BE READ, left as they are, not held any more", done.damaged)
    _list_paths("none of ours, left alone", done.foreign)
    if done.unreadable_lines:
        click.echo(f"lines of the journal that cannot be read: {done.unreadable_lines}", err=True)
    if done.damaged:
        raise SystemExit(1)


def _list_paths(what: str, paths: Sequence[Path]) -> None:
    if paths:
        click.echo(f"{what}: {len(paths)}", err=True)
        for path in paths[:_LISTED]:
            click.echo(f"  {shown(str(path), 300)}", err=True)
        if len(paths) > _LISTED:
            click.echo("  …", err=True)


COMMANDS = (copy_, import_original, reindex)
