"""``make bench``: each benchmark and its ceiling in the same run; ``--write`` puts the rows into docs/benchmarks.md.

The portal and the ceiling alternate, since machines are noisy: read the ratios, not the rates. docs/benchmarks-notes.md
describes the rows.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from bench import (
    accident,
    api,
    beside,
    digests,
    facets,
    ingest,
    lists,
    mass,
    memory,
    page,
    peers,
    recipients,
    releases,
    retention,
    rules,
    seen,
    shortcuts,
    size,
    start,
)
from bench.rig import ROOT, Effort, postgres_version, print_progress

PAGE = ROOT / "docs" / "benchmarks.md"

MEASURES = {
    "ingest-files": ingest.ingest_files,
    "ingest-postgres": ingest.ingest_postgres,
    "ingest-nginx": ingest.ingest_nginx,
    "recipients-files": recipients.recipients_files,
    "recipients-postgres": recipients.recipients_postgres,
    "beside-files": beside.beside_files,
    "beside-postgres": beside.beside_postgres,
    "list-files": lists.list_files,
    "list-postgres": lists.list_postgres,
    "facets-files": facets.facets_files,
    "facets-postgres": facets.facets_postgres,
    "facets-large": facets.facets_large,
    "api-postgres": api.api_postgres,
    "stored-files": size.stored_files,
    "stored-postgres": size.stored_postgres,
    "memory": memory.memory,
    "retention-files": retention.retention_files,
    "retention-postgres": retention.retention_postgres,
    "seen-files": seen.seen_files,
    "seen-postgres": seen.seen_postgres,
    "rules-files": rules.rules_files,
    "rules-postgres": rules.rules_postgres,
    "drop-postgres": size.drop_postgres,
    "mass-files": mass.mass_files,
    "mass-postgres": mass.mass_postgres,
    "mass-scanned": mass.mass_scanned,
    "mass-large": mass.mass_large,
    "start-files": start.start_files,
    "start-postgres": start.start_postgres,
    "accident-postgres": accident.accident_postgres,
    "releases-files": releases.releases_files,
    "releases-postgres": releases.releases_postgres,
    "digests-files": digests.digests_files,
    "digests-postgres": digests.digests_postgres,
    "peers": peers.peers,
    "shortcuts-files": shortcuts.shortcuts_files,
    "shortcuts-postgres": shortcuts.shortcuts_postgres,
    "shortcuts-digest": shortcuts.shortcuts_digest,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="put the rows into docs/benchmarks.md")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--share", type=float, default=1.0, help="fill in only this share of the mails, to try a row")
    parser.add_argument("--peers", type=Path, help="the folder with the sources of other quarantines (bench/peers.py)")
    parser.add_argument("only", nargs="*", help=f"rows whose name contains one of these: {', '.join(MEASURES)}")
    arguments = parser.parse_args()
    if arguments.write and arguments.share != 1:
        parser.error("--share is for trying a row: such rows are not written")
    effort = Effort(arguments.rounds, arguments.seconds, arguments.share, arguments.peers)
    run = described(arguments)
    rows = []
    for name, measure in MEASURES.items():
        if not arguments.only or any(word in name for word in arguments.only):
            print(f"{name} …", file=sys.stderr, flush=True)
            for row in measure(effort):
                rows.append(row)
                print_progress(str(row))
    new = page.measured(rows, run)
    print(page.written(new))
    if arguments.write:
        PAGE.write_text(page.written(page.merged(page.read(PAGE.read_text("utf-8")), new)), "utf-8")
    return 0


def described(arguments: argparse.Namespace) -> str:
    """Return the date, the command and the machine of this run."""
    share = [] if arguments.share == 1 else [f"--share {arguments.share:g}"]
    peer_folder = ["--peers FOLDER"] if arguments.peers else []
    rounds = f"--rounds {arguments.rounds} --seconds {arguments.seconds:g}"
    command = " ".join(["python -m bench", rounds, *share, *peer_folder, *arguments.only])
    packages = ", ".join(f"{name} {version(name)}" for name in ("bottle", "psycopg", "pyuwsgi", "zstandard"))
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, `{command}`: {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before, "
        f"{platform.system()} {platform.release()}, Python {platform.python_version()}; {packages}; "
        f"PostgreSQL {postgres_version()}"
    )


if __name__ == "__main__":
    shutil.which("uwsgi") or sys.exit("uwsgi is not in PATH: run make bench")
    sys.exit(main())
