"""The operator's commands of docs/operate.md, docs/domains.md and docs/staff.md: each succeeds, in order."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from portal.model.message import DeliveryId, EventKind, State, Tier
from portal.model.statistics import LATER, Count, Part
from portal.stores import Store, open_store
from tests.builders import ALICE, BOB, BY_LINK, hold, now
from tests.docs.commands import OPERATOR, Command, commands_of, runner_of
from tests.docs.pages import Shell
from tests.smtp_server import SmtpServer

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]  # many starts of Python

SETTINGS = """
public_url = "https://quarantine.example.org/quarantine"
local_domains = ["example.org", "example.net"]
store.url = "{store}"
mail.url = "{mail}"
relay.url = "{mail}"
mail.from_address = "quarantine@example.org"
mail.admin_address = "postmaster@example.org"
"""
PEOPLE = """address,days,at,zone,language,notices,only-wanted
alice@example.org,weekdays,"07:00,16:30",,,,on
bob@example.org,default,,Europe/Vienna,cs,off,default
"""


def requested(store: Store) -> str:
    """Hold a message whose release Alice has requested. Return its id."""
    held = hold(store, recipients=(ALICE,), tier=Tier.DANGEROUS)
    store.deliveries.move(
        DeliveryId(held.id, 0), State.REQUESTED, {State.HELD}, BY_LINK, now(), kind=EventKind.REQUESTED
    )
    return str(held.id)


def filled_in(command: Command, store: Store, rule: str) -> str:
    """Return a command with ids of messages or of a rule for ID, and with the answer to its question."""
    text = command.text
    if text.startswith("quarantine rules remove"):
        return text.replace("ID", rule)
    while "ID" in text.split():
        if "--recipient" in text:
            id = requested(store)
        else:
            id = str(hold(store, recipients=(ALICE,)).id)
        text = text.replace(" ID", f" {id}", 1)
    if text.startswith("quarantine forget") and "--dry-run" not in text:
        text += " --yes"
    return text


def test_every_command_succeeds(tmp_path: Path, files_url: str) -> None:
    # The file store alone: tests of each command use both stores.
    (tmp_path / "people.csv").write_text(PEOPLE)
    (tmp_path / "people.txt").write_text(f"{ALICE}\n{BOB}\n")
    (tmp_path / "logo.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    environment = {name: os.environ[name] for name in ("PATH", "HOME", "PYTHONPATH") if name in os.environ}
    ran = 0
    with SmtpServer() as mail, Shell(tmp_path, environment) as shell:
        (tmp_path / "quarantine.toml").write_text(SETTINGS.format(store=files_url, mail=mail.url))
        shell.run("quarantine init")
        shell.run(f"quarantine staff add {ALICE} administrator")
        store = open_store(files_url)
        hold(store)
        hold(store, recipients=("carol@example.net",))
        day = now().date()
        counts = [Count(host, part, str(day), "held", LATER, 3) for host in ("", "example.org") for part in Part]
        store.statistics.import_records(day, counts)
        rule = ""
        for page in ("staff.md", "domains.md", "operate.md"):
            for command in commands_of(page):
                if runner_of(command) != OPERATOR:
                    continue
                printed = shell.run(filled_in(command, store, rule))
                if command.text.startswith("quarantine rules add"):
                    rule = printed.split()[0]
                ran += 1
        store.close()
    assert ran > 50
    assert len(mail.mails) >= 3  # the released ones
