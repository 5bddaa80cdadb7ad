"""The modules that a short command imports: the start of its process takes most of its time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from portal.model.message import DeliveryId, State, Tier
from portal.stores import Store
from tests.builders import ALICE, BY_LINK, hold, now
from tests.conftest import MakeParts
from tests.smtp_server import SmtpServer

PROGRAM = """
import json, sys
from portal.cli import main

for words in json.loads(sys.argv[1]):
    main(words, standalone_mode=False)
    print(json.dumps([*sys.modules]), file=sys.stderr)
"""
# Templates and their languages, second factors, requests to Rspamd, pages, background jobs.
NEVER = ("jinja2", "babel", "pyotp", "http.client", "bottle", "apscheduler", "portal.batches.mass")
NOT_FOR_LISTS = ("smtplib", "portal.actions", "portal.policy.staff")


def test_short_commands_import_only_what_they_need(
    store_url: str, store: Store, make_parts: MakeParts, tmp_path: Path
) -> None:
    with SmtpServer() as relay:
        parts = make_parts(relay__url=relay.url)  # creates the keys
        sent, asked = hold(store, recipients=[ALICE]).id, hold(store, recipients=[ALICE], tier=Tier.DANGEROUS).id
        parts.actions.request_release(asked, 0, BY_LINK, reason="please")
        while store.facets.index():
            pass
        store.statistics.count(now().date())
        commands = (["list"], ["stats"], ["refuse", str(asked), "--reason", "no"], ["release", str(sent)])
        environ = {
            "QUARANTINE_CONFIG": "/dev/null",
            "QUARANTINE_STORE__URL": store_url,
            "QUARANTINE_RELAY__URL": relay.url,
            "QUARANTINE_LINKS__KEYS_FILE": str(tmp_path / "links.keys"),
        }
        run = subprocess.run(
            [sys.executable, "-c", PROGRAM, json.dumps(commands)],
            env=environ,
            capture_output=True,
            text=True,
            check=True,
        )
        assert [mail.recipients for mail in relay.mails] == [[ALICE]]
    assert store.deliveries.get(DeliveryId(asked, 0)).state is State.HELD
    *lists, refuse, release = (set(json.loads(line)) for line in run.stderr.splitlines())
    assert not release & set(NEVER)
    assert not set.union(*lists) & {*NEVER, *NOT_FOR_LISTS}
    assert len(lists) == 2 and lists[1] < refuse <= release
