"""The commands of ``quarantine`` that move or rebuild whole stores: copy, import-original, reindex."""

from __future__ import annotations

import click

from portal import moving
from portal.cli import NotDone, guarded, progress
from portal.errors import StoreUnavailable


@click.command("copy")
@click.argument("source", metavar="FROM")
@click.argument("target", metavar="TO")
@guarded
def copy_(source: str, target: str) -> None:
    """Copy everything from one store to another.

    FROM and TO are written as store.url is: files:PATH or postgresql://…. The programs may go on running on FROM; run
    it again to carry what came meanwhile, also after it was interrupted. docs/operate.md tells how to switch over.
    """
    with moving.opened(source, target) as (old, new), progress("messages") as told:
        try:
            done = moving.copy(old, new, told)
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


COMMANDS = (copy_,)
