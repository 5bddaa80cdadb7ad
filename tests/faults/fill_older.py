"""Hold messages with the program in PYTHONPATH, of any version since 0.2.0, and print number and id of each.

``python -P fill_older.py STORE_URL MESSAGES PARTS PART FILE``: every PARTS-th message, from PART on.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from portal.model.message import DeliveryId, EventKind, State
from portal.stores import open_store
from tests.builders import BY_LINK, digesting, hold, now

DAYS = 20  # the messages come from
PEOPLE = 1000
DELETED, RELEASED = 7, 11  # of 50 numbers


def small_mail(number: int) -> bytes:
    """Return the mail with this number, always the same: up to 2 KB."""
    return f"Subject: Offer {number}\r\nMessage-ID: <{number}@example.net>\r\n\r\n".encode() + (
        f"Buy {number} now\r\n".encode() * (number % 100)
    )


def recipients_of(number: int) -> list[str]:
    return [f"person{number % PEOPLE}@example.org", f"person{(7 * number + 1) % PEOPLE}@example.org"]


def main(store_url: str, messages: int, parts: int, part: int, path: str) -> None:
    for name in ("fsync", "fdatasync"):  # the fill itself need not survive a power cut
        setattr(os, name, lambda _: None)
    clock = time.time_ns
    store = open_store(store_url)
    with Path(path).open("w") as held:
        for number in range(part, messages, parts):
            ago = (DAYS - number * DAYS // messages) * 86_400_000_000_000
            setattr(time, "time_ns", lambda ago=ago: clock() - ago)
            id = hold(store, small_mail(number), recipients_of(number)).id
            if number % 50 == DELETED:
                store.deliveries.move(
                    DeliveryId(id, 0), State.DELETED, {State.HELD}, BY_LINK, now(), kind=EventKind.DELETED
                )
            elif number % 50 == RELEASED:
                with store.deliveries.releasing(DeliveryId(id, 1), {State.HELD}, BY_LINK, now()):
                    pass
            elif number % 50 == 0:
                with digesting(store, recipients_of(number)[0], now(), 10, ignore_schedule=True):
                    pass
            held.write(f"{number} {id}\n")
    store.close()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
