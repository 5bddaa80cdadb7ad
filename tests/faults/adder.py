"""A program that holds mail in a file store and says what it was told: run under strace by test_disk.py."""

from __future__ import annotations

import os
import sys

from portal.model.errors import QuarantineError
from portal.model.message import DeliveryId, EventKind, State
from portal.stores.files.store import FileStore
from tests.builders import BY_OPERATOR, hold, now
from tests.faults.serving import mail_of


def say(line: str) -> None:
    """One write, so that the log of system calls shows when it was said."""
    os.write(1, f"{line}\n".encode())


def main(folder: str, first: int, mails: int) -> None:
    say("begin")
    try:
        store = FileStore.open(folder)
    except QuarantineError as error:
        say(f"not-opened {error}")
        return
    say("open")
    for number in range(first, first + mails):
        try:
            held = hold(store, mail_of(number))
            say(f"held {number} {held.id}")
            if number % 4 == 3:
                store.deliveries.move(
                    DeliveryId(held.id, 1), State.DELETED, {State.HELD}, BY_OPERATOR, now(), kind=EventKind.DELETED
                )
                say(f"deleted {number} {held.id}")
            if number % 6 == 5:
                store.ping()
        except QuarantineError as error:
            say(f"refused {number} {error}")
    store.close()
    say("end")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
