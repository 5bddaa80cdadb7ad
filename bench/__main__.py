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


WHERE_THE_TIME_GOES = (
    "## Where the time goes",
    "",
    "Processor time for each mail in one busy process; under uWSGI with several workers all of it takes up to twice as "
    "long, ours as the ceiling's, since each mail meets cold caches after waiting for the disk. The ceiling writes the "
    "same rows into the same tables and indexes, search terms included, but knows them before: it looks at nothing of "
    "the post but one SHA-256 of the mail.",
    "",
    "- Files, on a disk in memory, where fsync costs nothing: 500 to 540 µs, the ceiling 260. Of both, some 60 are "
    "compressing the mail and 80 SQLite's statements and log. Two fsyncs on a real disk add the kernel's time to both.",
    "- Understanding the post takes 70 µs, of which the ceiling spends 11: 24 are two SHA-256 of the mail, 11 the "
    "symbols, the rest headers, addresses and the mail's own fields. Tier, log line and answer take 15.",
    "- Making what the ceiling has ready: search terms, the metadata behind the mail, packed symbols, values of the "
    "rows, locks and limits of time, looking whether the recipients have news: each 3 to 11 µs. The rest of the "
    "distance is Python's own, spread thin over some 800 calls for each mail.",
    "- With several workers SQLite reads pages again after another process has written, a few for each index, and "
    "whoever finds the lock taken naps for 0.1 ms or more: flock cannot wait with a limit. On a machine that is busy "
    "with other things that happens several times for each mail.",
    "- PostgreSQL: parameters are sent as they are, in one call of one function. The call with its round trip took "
    "289 µs; 218 since the body's place is taken from its SHA-256 instead of being looked for, and the answer is one "
    "text. The ceiling's prepared INSERTs take 222, psycopg's adapters included. Making the parameters takes 41. "
    "Preparing the call saves nothing that can be seen: 500 posts with and 500 without in turn, twelve times, took the "
    "same, and so did other ways to write the function.",
    "- Bottle is not on this path, nor is a file for a mail of less than 1 MiB.",
    "- Dropping a day: 0.2 s are counting its messages, for what purge says, by their primary key; most of the rest is "
    "the kernel unlinking the tables' files, 2 GB of them with search terms and all indexes.",
    "- A digest of ten rows takes its process 4 ms: two thirds are composing, of which the email package's headers and "
    "quoted-printable take a half, templates and links most of the rest; recording, claiming with its rows, and SMTP "
    "with the log line are 15, 14 and 7 %. PostgreSQL, in its own process, takes 1.4 with eight connections, 2.7 with "
    "four, 4.4 with two: it plans each statement over all days anew, and digests that end at the same time are "
    "recorded by one. Each answer from the network lets another of the threads in, which costs as much as a tenth of a "
    "digest when all of them compose: so one composes at a time.",
    "",
)


def page(rows: list[Row], arguments: argparse.Namespace) -> str:
    """docs/benchmarks.md."""
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
            *WHERE_THE_TIME_GOES,
        ]
    )


if __name__ == "__main__":
    shutil.which("uwsgi") or sys.exit("uwsgi is not in PATH: run make bench")
    sys.exit(main())
