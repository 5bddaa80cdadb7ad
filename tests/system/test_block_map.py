"""Block rules from the portal to Rspamd: the map that the digest process writes, read as a file and from Nginx."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.system.mails import ALICE, BOB, SENDER, spam
from tests.system.services import BLOCK_MAP, Portal, Postfix, Rspamd, exporter_conf, rspamd, send, wait_for
from tests.system.test_mail_path import held

pytestmark = pytest.mark.system

_words = itertools.count(1)


@dataclass
class Site:
    """A portal that writes a map, and the mail server whose Rspamd reads it."""

    portal: Portal
    postfix: Postfix
    rspamd: Rspamd

    def arrive(self) -> str:
        """Send a message that Rspamd lets pass to alice and bob, and return the word in its subject."""
        word = f"mapped{next(_words):03}x"
        assert send(self.postfix.smtp, SENDER, [ALICE, BOB], spam(word, {}))[0] == 250
        return word

    def inboxes(self, word: str) -> list[str]:
        """Return who has a message in their inbox."""
        needle = f"Subject: {word} ".encode()
        return [who for who in (ALICE, BOB) if any(needle in mail for mail in self.postfix.maildir(who))]

    def check(self) -> list[dict[str, Any]]:
        """Return what `quarantine check` says about the block rules."""
        found = json.loads(self.portal.command("quarantine", "check", "--json", check=False))
        return [each for each in found if each["what"] == "block rules"]


@pytest.fixture(params=["file", "nginx"])
def site(request: pytest.FixtureRequest, place: Path) -> Iterator[Site]:
    home = place / f"map-{request.param}"
    home.mkdir()
    folder = home / "map"
    folder.mkdir()
    shutil.chown(folder, group="_rspamd" if request.param == "file" else "www-data")
    folder.chmod(0o2750)
    path = folder / "block.map"
    portal = Portal(home / "portal", f"files://{home}/store", {"QUARANTINE_RSPAMD__BLOCK_MAP": str(path)})
    url = str(path)
    if request.param == "nginx":
        url = f"{portal.nginx.exporter_url}maps/block"
        portal.nginx.home.mkdir(parents=True)
        (portal.nginx.home / "map").symlink_to(folder)
    conf = exporter_conf("metadata_exporter.conf", portal.nginx.exporter_url).replace(BLOCK_MAP, url)
    with ExitStack() as stack:
        stack.enter_context(portal.running())
        wait_for(path.exists)  # otherwise Rspamd asks Nginx again after minutes
        running = stack.enter_context(rspamd(home / "rspamd", conf))
        postfix = stack.enter_context(Postfix(home / "postfix", running.milter, running.milter).running())
        portal.environment |= {
            "QUARANTINE_RSPAMD__URL": f"http://127.0.0.1:{running.controller}",
            "QUARANTINE_RSPAMD__PASSWORD": "portal-test",
            "QUARANTINE_RSPAMD__SCAN_GROUPS": "",
        }
        yield Site(portal, postfix, running)


def test_a_block_rule_reaches_rspamd_and_leaves_it_again(site: Site) -> None:
    word = site.arrive()
    wait_for(lambda: site.inboxes(word) == [ALICE, BOB])
    made = site.portal.command("quarantine", "rules", "add", "block", SENDER, "--recipient", ALICE)

    def reaches_bob_only() -> str:
        word = site.arrive()
        wait_for(lambda: BOB in site.inboxes(word))
        return word if site.inboxes(word) == [BOB] else ""

    word = wait_for(reaches_bob_only, 120, details=lambda: site.rspamd.log.read_text()[-3000:])
    [delivery] = held(site.portal, word)
    assert (delivery["recipient"], delivery["state"]) == (ALICE, "blocked")
    # All processes of Rspamd have the map by then, the controller's as well.
    wait_for(lambda: [each["ok"] for each in site.check()] == [True, True], 60, details=lambda: str(site.check()))

    site.portal.command("quarantine", "rules", "remove", made.split()[0])

    def reaches_both() -> bool:
        word = site.arrive()
        wait_for(lambda: BOB in site.inboxes(word))
        return site.inboxes(word) == [ALICE, BOB]

    wait_for(reaches_both, 120)
