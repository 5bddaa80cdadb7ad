"""Two hosts on one PostgreSQL are upgraded from version 0.2.0 one after the other, as docs/many-hosts.md says, while
both hold mail, send digests and release messages."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest

from portal.assemble import Parts, assemble
from portal.model.message import DeliveryId, State
from portal.stores import LEASE
from tests.builders import BY_LINK, hold
from tests.conftest import MakeSettings
from tests.faults.conftest import Report
from tests.faults.older import Site, version_0_2_0
from tests.faults.serving import OwnPostgres, Senders, mail_of, read
from tests.faults.test_kills import full, in_words
from tests.faults.test_many_hosts import Hosts, all_arrived, give_work, sent, states
from tests.faults.test_upgrade import Paced
from tests.paths import ROOT
from tests.smtp_server import SmtpServer
from tests.system.services import folder, wait_for

pytestmark = pytest.mark.alone

LONG = 300


class Work:
    """Digests and releases, for whichever host takes them."""

    def __init__(self, parts: Parts, server: SmtpServer, people: int) -> None:
        self.readers: list[str] = []
        self._parts, self._server, self._people = parts, server, people
        self._keys: list[DeliveryId] = []

    def give(self) -> None:
        """Request digests and queue releases for other people than before."""
        readers, keys = give_work(self._parts, range(len(self.readers), len(self.readers) + self._people))
        self.readers += readers
        self._keys += keys

    def wait(self) -> None:
        """Wait until all are at the mail server and recorded."""
        patience = 3 * LEASE.total_seconds()
        wait_for(lambda: all_arrived(self._server, self.readers, len(self.readers)), patience)
        wait_for(lambda: states(self._parts, self._keys) == {State.RELEASED}, patience)


def test_a_restart_waits_for_the_mail_that_is_being_sent(
    store_url: str, make_settings: MakeSettings, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        home, server = stack.enter_context(folder()), stack.enter_context(SmtpServer())
        settings = {"mail__url": server.url, "relay__url": server.url}
        environ = {f"QUARANTINE_{name.upper()}": value for name, value in settings.items()}
        site = Site(store_url, home / "site", ROOT, QUARANTINE_LINKS__KEYS_FILE=f"{tmp_path}/links.keys", **environ)
        stack.callback(site.close)
        parts = assemble(make_settings(store_url, **settings), create=True)
        stack.callback(parts.store.close)
        begun = threading.Event()

        def wait(_line: bytes) -> None:
            begun.set()
            time.sleep(6)

        server.script["BODY"] = wait
        key = DeliveryId(hold(parts.store, announce=[]).id, 0)
        site.start()
        parts.actions.queue_release(*key, BY_LINK)
        assert begun.wait(60)
        site.stop()
        assert parts.store.deliveries.get(key).state is State.RELEASED
        assert len(server.mails) == 1


@pytest.mark.timeout(600)
@pytest.mark.parametrize("people", [20, full(LONG, seconds=1800)])
def test_two_hosts_are_upgraded_one_after_the_other_and_refuse_no_post(
    own_postgres: OwnPostgres, make_settings: MakeSettings, tmp_path: Path, people: int, report: Report
) -> None:
    url = own_postgres.url
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("drop schema public cascade")
        connection.execute("create schema public")
    with ExitStack() as stack:
        home, server = stack.enter_context(folder()), stack.enter_context(SmtpServer())
        older = version_0_2_0(home)
        settings = {"mail__url": server.url, "relay__url": server.url}
        environ = {f"QUARANTINE_{name.upper()}": value for name, value in settings.items()}
        environ["QUARANTINE_LINKS__KEYS_FILE"] = f"{tmp_path}/links.keys"
        sites = [Site(url, home / name, older, **environ) for name in ("first", "second")]
        for site in sites:
            stack.callback(site.close)
        sites[0].command("init")
        for site in sites:
            site.start()
        server.script["BODY"] = lambda _line: time.sleep(0.1)  # so that a stop falls into the middle of one
        senders = Senders(Hosts([Paced(site) for site in sites]), threads=2)
        began = time.monotonic()
        with senders.sending():
            sites[0].code = ROOT
            sites[0].command("init")
            parts = assemble(make_settings(url, **settings), create=False)
            stack.callback(parts.store.close)
            work = Work(parts, server, people)
            work.give()
            work.wait()  # both hosts run the old program
            for site in sites:
                work.give()
                site.code = ROOT
                site.stop()
                site.start()
                work.wait()
            pause_seconds = senders.longest_pause(began)
        digests, releases = sent(server)
        report(
            "26 two hosts upgraded from version 0.2.0, one after the other",
            f"{senders.done:,} messages: {in_words(senders.answers)}; {len(digests)} digests and {len(releases)} "
            f"releases, {sum(len(ids) > 1 for ids in digests.values())} and "
            f"{sum(number > 1 for number in releases.values())} of them twice; longest time without an accepted post "
            f"{pause_seconds:.1f} s",
            "postgres",
        )
        assert [site.tracebacks() for site in sites] == [0, 0]
        # In the short form other tests run: a post may wait for longer than Rspamd does, and version 0.2.0 is killed if
        # it does not finish its mail within 3 s.
        is_busy = people < LONG
        assert set(senders.answers) <= {"200 held"} | ({"200 known", "broken"} if is_busy else set())
        assert sorted(digests) == sorted(work.readers)
        assert all(len(set(ids)) == 1 for ids in digests.values())
        assert set(releases) == {(f"owner{n}@example.org", str(n)) for n in range(len(work.readers))}
        assert max([*map(len, digests.values()), *releases.values()]) <= 1 + is_busy
        for number, id in senders.acknowledged.items():
            assert read(parts.store, id) == mail_of(number)
