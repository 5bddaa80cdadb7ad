"""``make bench``: each benchmark beside its ceiling in the same run; ``--write`` puts them into docs/benchmarks.md.

Ours and the ceiling take turns, since machines are noisy: read the ratios, not the rates.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
from importlib.metadata import version

from bench import digests, ingest, lists, load, memory, size
from bench.rig import CLIENTS, ROOT, THREADS, WORKERS, Effort, Row, say

MEASURES = {
    "ingest-files": ingest.ingest_files,
    "ingest-postgres": ingest.ingest_postgres,
    "list-files": lists.list_files,
    "list-postgres": lists.list_postgres,
    "stored-files": size.stored_files,
    "stored-postgres": size.stored_postgres,
    "memory": memory.memory,
    "drop-postgres": size.drop_postgres,
    "digests-postgres": digests.digests_postgres,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.md")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--share", type=float, default=1.0, help="fill in only this share of the mails, to try a row")
    parser.add_argument("only", nargs="*", help=f"rows whose name contains one of these: {', '.join(MEASURES)}")
    arguments = parser.parse_args()
    effort = Effort(arguments.rounds, arguments.seconds, arguments.share)
    rows = []
    for name, measure in MEASURES.items():
        if not arguments.only or any(word in name for word in arguments.only):
            print(f"{name} …", file=sys.stderr, flush=True)
            for row in measure(effort):
                rows.append(row)
                say(str(row))
    text = page(rows, arguments)
    print(text)
    if arguments.write:
        (ROOT / "docs" / "benchmarks.md").write_text(text, "utf-8")
    return 0


def page(rows: list[Row], arguments: argparse.Namespace) -> str:
    """Return docs/benchmarks.md: what these rows measured, and how."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("bottle", "psycopg", "pyuwsgi", "zstandard"))
    rows_made = " ".join([f"{arguments.seconds:g}", *arguments.only])
    command = f"python -m bench --write --rounds {arguments.rounds} --seconds {rows_made}"
    return "\n".join(
        [
            "# Benchmarks",
            "",
            f"Made by `make bench` (`{command}`). Ours and a bare ceiling doing the same durable work "
            "(`bench/bare.py`) take turns on the same machine; the figures are medians, the ratio is the median of the "
            "ratios pair by pair. "
            "Machines are noisy: read the ratios.",
            "",
            "Lists: 100 mails for each recipient in the large store as in the small one, call by call in turn. Disk: "
            f"{size.MAILS:,} mails of 4 to 60 KB, each of two recipients and 14 symbols; folders, indexes, empty days "
            "included, the WAL not. Memory: the high-water mark of the one worker's resident set, set back before each "
            f"of {memory.MAILS} mails, each held and released over HTTP.",
            "",
            f"Digests: {digests.PEOPLE:,} recipients with {digests.EACH} mails each, all different, due at the same "
            "moment in PostgreSQL; a local mail server that takes everything at once (`bench/sink.py`). Ours are real "
            "`quarantine-digest run` processes with default settings: claim, rows, composing, sending, recording. "
            "The ceiling has the rows in memory, composes the same mails and sends them over one connection. In the "
            "run until the last digest each recipient was counted once. All share two cores: two digest processes, "
            "PostgreSQL and the mail server.",
            "",
            f"Machine: {os.cpu_count()} cores, {platform.system()} {platform.release()}, Python "
            f"{platform.python_version()}; {packages}; PostgreSQL 18 with its default durability. {WORKERS} uWSGI "
            f"workers with {THREADS} thread, {CLIENTS} clients on the same machine, posts of {load.MAIL_BYTES} bytes "
            "of text-like mail with 14 symbols and two recipients, one connection each.",
            "",
            "| what | ours | ceiling, or compared with | ratio | bar |",
            "| --- | --- | --- | --- | --- |",
            *map(str, rows),
            "",
            "Where the time goes: [benchmarks-notes.md](benchmarks-notes.md).",
            "",
        ]
    )


if __name__ == "__main__":
    shutil.which("uwsgi") or sys.exit("uwsgi is not in PATH: run make bench")
    sys.exit(main())
