"""The commands of ``quarantine`` that move or rebuild whole stores: copy, import-original, reindex."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click

from portal.assemble import assemble
from portal.cli.common import NotDone, WrongCall, guarded, progress, record, say
from portal.cli.options import FILLED, FILLED_PATH
from portal.ingest import Ingest
from portal.model.audit import Act
from portal.model.errors import StoreUnavailable
from portal.model.text import shown
from portal.moving import original
from portal.moving.copy import copy, opened
from portal.settings import load, mask_url
from portal.stores import notes, open_store
from portal.stores.files.reindex import reindex as rebuild

_MAX_LISTED = 50


@click.command("copy")
@click.argument("source", type=FILLED, metavar="FROM")
@click.argument("target", type=FILLED, metavar="TO")
@guarded
def copy_(source: str, target: str) -> None:
    """Copy everything from one store to another.

    FROM and TO have the form of store.url: files:PATH or postgresql://…. The programs may keep running on FROM. Run the
    command again to copy later changes, or after an interruption. docs/operate.md describes how to switch over.
    """
    with opened(source, target) as (old, new), progress("messages") as report:
        record(old, Act.EXPORTED, detail=f"everything to {shown(mask_url(target), 300)}")
        try:
            done = copy(old, new, report)
        except (StoreUnavailable, KeyboardInterrupt) as error:
            error_text = str(error) or "interrupted"
            raise NotDone(
                f"{error_text}\nThe copy is not complete. Run the same command again: it continues."
            ) from error
    say(
        f"copied {done.messages} messages ({done.size_bytes / 1e6:.1f} MB), updated {done.changed}, "
        f"{done.same} unchanged; {done.people} recipients, {done.digests} digests, {done.rules} rules"
    )
    say("not copied: sessions, sign-ins, opens of links, the portal's own mail that waits to be sent")
    if done.mails_waiting:
        say(f"{done.mails_waiting} of the portal's own messages wait in FROM: its digest process sends them")
    say("The link keys are in a separate file. Keep it, or links in digests already sent stop working.")
    for ids, why in ((done.missing, "their body is missing in FROM"), (done.damaged, "their body is damaged in FROM")):
        if ids:
            say(f"NOT COPIED, {why}: {len(ids)}", err=True)
            for id in ids:
                say(f"  {id}", err=True)
    if done.missing or done.damaged:
        raise SystemExit(1)


@click.command("import-original")
@click.option(
    "--dir",
    "folder",
    type=FILLED_PATH,
    help="The original's PREFIX folder, with QID-meta.gz and QID-msg.gz.",
)
@click.option("--dsn", type=FILLED, help="The original's database, with the tables meta and msg.")
@guarded
def import_original(folder: Path | None, dsn: str | None) -> None:
    """Import the messages that sys4's original quarantine.py stored, from its folder or its database.

    The source is not changed. The command may be repeated: a message that is already held is not held twice.
    """
    if (folder is None) == (dsn is None):
        raise WrongCall(
            "Use either --dir DIR or --dsn DSN. If the original wrote to both, use --dir: the files have more metadata."
        )
    settings = load()
    oldest = datetime.now(UTC) - timedelta(days=settings.store.retention_days)
    parts = assemble(settings)
    try:
        with original.opened(folder, dsn) as source, progress("messages") as report:
            record(parts.store, Act.IMPORTED, detail="a database" if folder is None else shown(str(folder), 300))
            done = original.import_messages(source, Ingest(parts, alarms=False), oldest, report)
        parts.store.facets.recheck(are_missing=True)  # they were held in the past
        notes.NAMES_READ.set(parts.store, None)
    finally:
        parts.store.close()
    say(f"imported {done.held} messages, {done.known} were already held")
    if done.too_old:
        say(
            f"skipped: {done.too_old} older than store.retention_days ({settings.store.retention_days}), which the "
            "next purge would remove"
        )
    if done.own:
        say(f"skipped: {done.own} digests and sign-in mails of this portal")
    if done.without_recipients:
        say(
            f"{done.without_recipients} have no recipients, since the original did not store them. No digest lists "
            "them. Release them with: quarantine release ID --recipient ADDRESS"
        )
    if dsn is not None:
        say(
            "The original's tables have no recipients, and no messages that are not valid UTF-8. They store messages "
            "as text, which may differ from the received bytes, so DKIM signatures may no longer verify."
        )
    if done.problems:
        say(f"NOT IMPORTED: {len(done.problems)}", err=True)
        for name, why in done.problems:
            say(f"  {shown(name)}: {shown(why, 300)}", err=True)
        raise SystemExit(1)


@click.command()
@guarded
def reindex() -> None:
    """Rebuild the file store's database from its mail files and its audit journal.

    Use it if the database is lost or damaged. Stop the programs first. Mail that arrives in the meantime is deferred.
    The old database is kept.
    """
    place = load().store.place
    if place.folder is None:
        say(
            "PostgreSQL keeps everything in the database: there is nothing to rebuild. If the database is lost, "
            "restore it from a backup (docs/operate.md)."
        )
        return
    with progress("mail files") as report:
        done = rebuild(place.folder, report)
    with closing(open_store(place)) as store:
        record(store, Act.REINDEXED)
    say(f"read {done.messages} messages from their files")
    if done.journal_since is None:
        say(
            "There is no audit journal: all messages are held, as when they arrived. Opt-outs from digests and rules "
            "are lost."
        )
    else:
        say(
            f"from the audit journal, since {done.journal_since:%Y-%m-%d %H:%M} UTC: {done.actions} actions, "
            f"{done.people} preferences of recipients, {done.digests} digests, {done.rules} changes of rules"
        )
    say("Not rebuilt: sessions and sign-ins (recipients sign in again), the portal's own mail that waited to be sent.")
    say("The old database is in the folder before-reindex of the store. Remove it when everything works.")
    _list_paths("UNREADABLE (kept on disk, no longer in the quarantine)", done.damaged)
    _list_paths("not mail files of the portal (left in place)", done.foreign)
    if done.unreadable_lines:
        say(f"unreadable lines in the journal: {done.unreadable_lines}", err=True)
    if done.damaged:
        raise SystemExit(1)


def _list_paths(heading: str, paths: Sequence[Path]) -> None:
    if paths:
        say(f"{heading}: {len(paths)}", err=True)
        for path in paths[:_MAX_LISTED]:
            say(f"  {shown(str(path), 300)}", err=True)
        if len(paths) > _MAX_LISTED:
            say("  …", err=True)


COMMANDS = (copy_, import_original, reindex)
