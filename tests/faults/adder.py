"""Hold mail in a file store and print each result: run under strace by test_disk.py."""

from __future__ import annotations

import os
import sys

from portal.model.errors import QuarantineError
from portal.model.message import DeliveryId, EventKind, State
from portal.stores.files.store import FileStore
from tests.builders import BY_OPERATOR, hold, now
from tests.faults.serving import mail_of


def write_line(line: str) -> None:
    """Print with one system call, so that strace's log shows when the line was written."""
    os.write(1, f"{line}\n".encode())


def main(folder: str, first: int, mails: int) -> None:
    write_line("begin")
    try:
        store = FileStore.open(folder)
    except QuarantineError as error:
        write_line(f"not-opened {error}")
        return
    write_line("open")
    for number in range(first, first + mails):
        try:
            held = hold(store, mail_of(number))
            write_line(f"held {number} {held.id}")
            if number % 4 == 3:
                store.deliveries.move(
                    DeliveryId(held.id, 1), State.DELETED, {State.HELD}, BY_OPERATOR, now(), kind=EventKind.DELETED
                )
                write_line(f"deleted {number} {held.id}")
            if number % 6 == 5:
                store.ping()
        except QuarantineError as error:
            write_line(f"refused {number} {error}")
    store.close()
    write_line("end")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
