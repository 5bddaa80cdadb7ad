"""Upgrade stores that were in use: `data/upgrade-4` has one of schema version 4 for each engine.

The tests use HTTP and commands only, not the methods of a store, so they hold for every later schema.

The data ends on 20 November 2026 at 12:00 UTC (`END`). Links, sessions and sign-ins expire, so most tests set the
clock to three minutes later (`NOW`), whatever the date of the host: `Site` in `web_client` replaces
`Parts.actions.now`, from which pages and releases take the time; functions of the digest process get the time as an
argument; and `quarantine-digest once` has `--now`. Commands of `quarantine` run with the clock of the host. Those that
are used here do not depend on it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import sqlite3
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from email import message_from_bytes
from email.policy import default
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit, urlunsplit
from uuid import UUID

import psycopg
import pytest
from click.testing import CliRunner
from psycopg import sql

from digest import housekeeping
from portal.assemble import assemble
from portal.batches.parallel import retry_due
from portal.cli import main
from portal.model.errors import QuarantineError
from portal.settings import load_from
from portal.web import create_app
from tests import paths
from tests.builders import ALICE, BOB
from tests.faults.serving import BIN, META, mail_of
from tests.smtp_server import SmtpServer
from tests.web_client import Answer, Browser, Site

pytestmark = [pytest.mark.slow, pytest.mark.system]

DATA = paths.DATA / "upgrade-4"
CAROL, DAVE, ERIN, FRANK = (f"{name}@example.org" for name in ("carol", "dave", "erin", "frank"))
UNICODE, ALABEL = "a@münchen.example", "a@xn--mnchen-3ya.example"  # two spellings of one address
VIEWS = ("held", "requested", "released", "deleted")
KINDS = {1: "release", 2: "delete", 3: "ask", 4: "preferences", 5: "show", 6: "several", 7: "forwarded"}
OF_A_DIGEST = ("preferences", "several", "forwarded")
PACKED = struct.Struct(">B16sHI")  # of a link: action, message or digest, delivery, issued at
SYMBOLS = {"spam": "BAYES_SPAM", "suspicious": "MIME_ENCRYPTED_ARCHIVE", "dangerous": "CLAM_VIRUS"}

EXPECTED: dict[str, Any] = json.loads((DATA / "expected.json").read_text("utf-8"))
MESSAGES: dict[str, dict[str, Any]] = EXPECTED["messages"]
ROWS: list[dict[str, Any]] = EXPECTED["rows"]
NAMES = {message["id"]: name for name, message in MESSAGES.items()}
END = datetime.fromisoformat(EXPECTED["now"])
NOW = END + timedelta(minutes=3)

Rows = list[dict[str, Any]]


# ---- the old stores


@contextmanager
def database(request: pytest.FixtureRequest, template: str | None = None) -> Iterator[tuple[str, str]]:
    """The name and the URL of a new database, empty or a copy of another one. It is dropped at the end."""
    server = request.getfixturevalue("postgres_server")
    name = f"quarantine_upgrade_{os.getpid()}_{os.urandom(4).hex()}"
    names = sql.Identifier(name), sql.Identifier(template or "template1")
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(*names))
        try:
            yield name, urlunsplit(urlsplit(server)._replace(path=f"/{name}"))
        finally:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def restore_folder(folder: Path) -> None:
    """Make the old file store in a folder that does not exist yet."""
    for name in ("mail", "journal"):
        shutil.copytree(DATA / "files" / name, folder / name)
    folder.chmod(0o700)
    with closing(sqlite3.connect(folder / "quarantine.sqlite3")) as connection:
        connection.executescript((DATA / "files" / "quarantine-sqlite.sql").read_text("utf-8"))


def restore_database(url: str) -> None:
    """Make the old tables in an empty database."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute((DATA / "postgres.sql").read_bytes())


@dataclass
class Old:
    """A site with the data of the old program: a store, its link keys and the alias file."""

    store_url: str
    folder: Path  # it has everything except the database
    servers: dict[str, SmtpServer] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("links.keys", "virtual"):
            shutil.copyfile(DATA / name, self.folder / name)
        (self.folder / "links.keys").chmod(0o600)
        (self.folder / "quarantine.toml").touch()

    @property
    def mail(self) -> SmtpServer:
        """The mail server that gets digests and sign-in mails."""
        return self.servers["mail"]

    @property
    def relay(self) -> SmtpServer:
        """The mail server that gets released messages."""
        return self.servers["relay"]

    def environ(self) -> dict[str, str]:
        """The settings that the old program had."""
        return {
            "QUARANTINE_CONFIG": str(self.folder / "quarantine.toml"),
            "QUARANTINE_STORE__URL": self.store_url,
            "QUARANTINE_LOCAL_DOMAINS": "example.org,münchen.example,xn--mnchen-3ya.example",
            "QUARANTINE_MAIL__FROM_ADDRESS": "quarantine@example.org",
            "QUARANTINE_MAIL__ADMIN_ADDRESS": "admin@example.org",
            "QUARANTINE_LINKS__KEYS_FILE": str(self.folder / "links.keys"),
            "QUARANTINE_PEOPLE__ALIAS_FILE": str(self.folder / "virtual"),
            "QUARANTINE_PEOPLE__RECIPIENT_DELIMITER": "+",
            **{f"QUARANTINE_{name.upper()}__URL": server.url for name, server in self.servers.items()},
        }

    def program(self, name: str, *words: str) -> subprocess.CompletedProcess[str]:
        """Run `quarantine` or `quarantine-digest` as a process of its own."""
        done = subprocess.run(
            [str(BIN / name), *words],
            env={**{n: v for n, v in os.environ.items() if not n.startswith("QUARANTINE_")}, **self.environ()},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def command(self, *words: str) -> bytes:
        """Run `quarantine` in this process, which is faster, and return its output."""
        done = CliRunner().invoke(main, words, env=self.environ(), catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.stdout_bytes

    def rows(self) -> Rows:
        """Return what `quarantine list --json` prints."""
        return [json.loads(line) for line in self.command("list", "--limit", "10000", "--json").splitlines()]

    def states(self) -> dict[tuple[str, str], str]:
        """Return the state of each delivery, by the short name of the message and its address."""
        return {(NAMES[row["id"]], row["recipient"]): row["state"] for row in self.rows()}

    @contextmanager
    def site(self, now: datetime = NOW, **environ: str) -> Iterator[Site]:
        """The web application on this store, with its clock set to another time."""
        parts = assemble(load_from({**self.environ(), **environ})[0], create=True)
        try:
            site = Site(parts)
            site.now = now
            yield site
        finally:
            parts.store.close()


@pytest.fixture(scope="module", params=["files", "postgres"])
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def old_store(engine: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The store before the upgrade, to be copied: a folder, or the name of a database."""
    if engine == "files":
        folder = tmp_path_factory.mktemp("old") / "quarantine"
        restore_folder(folder)
        yield str(folder)
        return
    with database(request) as (name, url):
        restore_database(url)
        yield name


@pytest.fixture(scope="module")
def new_store(
    engine: str, old_store: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The store after `quarantine init`, to be copied."""
    folder = tmp_path_factory.mktemp("new")
    with copied(engine, old_store, request, folder) as (site, name):
        done = site.program("quarantine", "init")
        assert done.returncode == 0, done.stderr
        yield name


@contextmanager
def copied(
    engine: str, store: str, request: pytest.FixtureRequest, folder: Path, *, pooler: str = ""
) -> Iterator[tuple[Old, str]]:
    """A site with a copy of a store, and the copy's folder or the name of its database."""
    with SmtpServer() as mail, SmtpServer() as relay:
        servers = {"mail": mail, "relay": relay}
        if engine == "files":
            shutil.copytree(store, folder / "quarantine")
            yield Old(f"files://{folder}/quarantine", folder, servers), str(folder / "quarantine")
        else:
            with database(request, store) as (name, url):
                parts = urlsplit(url)
                through = parts._replace(netloc=f"{parts.username}@{pooler}") if pooler else parts
                yield Old(urlunsplit(through), folder, servers), name
        assert mail.violations == relay.violations == []


@pytest.fixture
def before(engine: str, old_store: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Old]:
    """The site before the upgrade."""
    pooler = request.config.getoption("--postgres-through") or ""
    with copied(engine, old_store, request, tmp_path, pooler=pooler) as (site, _):
        yield site


@pytest.fixture
def upgraded(engine: str, new_store: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Old]:
    """The site after `quarantine init`."""
    pooler = request.config.getoption("--postgres-through") or ""
    with copied(engine, new_store, request, tmp_path, pooler=pooler) as (site, _):
        yield site


# ---- the old digests


@dataclass(frozen=True)
class Link:
    """A link of an old digest."""

    digest: str  # the name of its file
    kind: str
    message: str  # its short name, "" for links of the whole digest
    number: int  # of the delivery
    path: str

    @property
    def name(self) -> str:
        """The name of the delivery in forms."""
        return f"{MESSAGES[self.message]['id']}.{self.number}"

    @property
    def address(self) -> str:
        """The address of the delivery."""
        return str((MESSAGES[self.message]["recipients"] or [FRANK])[self.number])


def text_of(mail: bytes) -> str:
    part = message_from_bytes(mail, policy=default).get_body(("plain",))
    assert part is not None
    return str(part.get_content())


@cache
def links() -> tuple[Link, ...]:
    """Return the links of all old digests, also of the one that was not recorded as sent."""
    found = []
    for digest in EXPECTED["digests"]:
        text = text_of((DATA / "digests" / f"{digest}.eml").read_bytes())
        for token in dict.fromkeys(re.findall(r"/link/([\w.-]+)/", text)):
            packed = base64.urlsafe_b64decode(token.partition(".")[0] + "==")
            kind, id, number, _ = PACKED.unpack_from(packed)
            found.append(Link(digest, KINDS[kind], NAMES.get(str(UUID(bytes=id)), ""), number, f"/link/{token}/"))
    return tuple(found)


def link(digest: str, kind: str, message: str = "") -> Link:
    [found] = [each for each in links() if (each.digest, each.kind, each.message) == (digest, kind, message)]
    return found


def is_revoked(link: Link) -> bool:
    """Return whether the recipient revoked the link before the upgrade."""
    return link.digest == "19-erin"


def browser(site: Site, name: str) -> Browser:
    """Return a browser with the cookies that the old program set in it."""
    opened = site.browser()
    opened.cookies = dict(EXPECTED["cookies"].get(name, {}))
    return opened


def press(site: Site, link: Link, **form: str) -> Answer:
    """Open a link, press its button and return the page that follows."""
    visitor = site.browser()
    page = visitor.get(link.path)
    assert page.status == 200, link
    if shown := re.search(r'name="checked" value="(\w+)"', page.text):  # of a message with a caution
        form["checked"] = shown[1]
    site.pass_time(seconds=20)  # openings per minute are limited
    answer = visitor.post(link.path, form)
    return visitor.follow(answer, link.path) if answer.status == 303 else answer


def states_before() -> dict[tuple[str, str], str]:
    return {(NAMES[row["id"]], row["recipient"]): row["state"] for row in ROWS}


# ---- two spellings


def with_a_label(text: str) -> str:
    """Return the text with the domain of `UNICODE` in the spelling of `ALABEL`, so that both compare as equal."""
    return text.replace("münchen.example", "xn--mnchen-3ya.example")


def seen_as_one_person(view: str) -> set[str]:
    """Return the messages in a view of somebody whose identity is both `UNICODE` and `ALABEL`.

    For the old program these were two people, and each saw a part of the messages.
    """
    return {name for person in (UNICODE, ALABEL) for name in EXPECTED["lists"][person][view]}


# ---- the upgrade


def test_the_data_has_everything() -> None:
    """Without these links the tests below would pass as well."""
    kinds = {(each.kind, states_before().get((each.message, each.address), "")) for each in links() if each.message}
    assert {("release", "held"), ("release", "released"), ("release", "releasing"), ("ask", "requested")} <= kinds
    assert {("ask", "held"), ("delete", "held"), ("delete", "deleted"), ("show", "requested")} <= kinds
    assert {each.kind for each in links() if not each.message} == set(OF_A_DIGEST)
    assert len(links()) > 60


def test_other_commands_name_the_one_to_run(before: Old) -> None:
    for name, words in (
        ("quarantine", ["list"]),
        ("quarantine", ["purge"]),
        ("quarantine", ["check"]),
        ("quarantine-digest", ["once", "--dry-run"]),
    ):
        done = before.program(name, *words)
        assert done.returncode in (1, 2), words
        output = done.stdout + done.stderr
        assert "schema version 4" in output, words
        assert "run `quarantine init`" in output, words


def test_init_can_be_repeated(before: Old) -> None:
    for _ in range(2):
        done = before.program("quarantine", "init")
        assert done.returncode == 0, done.stderr
    assert [row["id"] for row in before.rows()] == [row["id"] for row in ROWS]


class Posting:
    """Threads that post numbered messages to an application that opens the store as soon as this is possible.

    A message whose post is not answered 200 is posted again, as a sender does.
    """

    def __init__(self, old: Old) -> None:
        self._settings = load_from(old.environ())[0]
        self._opening = threading.Lock()
        self._close: Callable[[], None] = lambda: None
        self._app: Any = None
        self._numbers = count()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(2)]
        self.held: dict[int, str] = {}
        self.refused = 0

    def __enter__(self) -> Posting:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._close()

    def wait_until(self, reached: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not reached():
            assert any(thread.is_alive() for thread in self._threads)
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def _run(self) -> None:
        while not self._stop.is_set():
            number = next(self._numbers)
            while number not in self.held:
                answer = self._post(number)
                if answer is not None and answer.status == 200:
                    self.held[number] = answer.json["id"]
                else:
                    assert answer is None or answer.status == 503, answer.body
                    self.refused += 1
                    time.sleep(0.05)
            time.sleep(0.02)  # all messages are compared at the end

    def _post(self, number: int) -> Answer | None:
        """Post a message. None means that the application cannot open the store yet."""
        with self._opening:
            if self._app is None:
                try:
                    parts = assemble(self._settings, create=True)
                except QuarantineError:
                    return None
                self._app, self._close = create_app(parts), parts.store.close
        return Browser(self._app, peer="127.0.0.1").request("POST", "/", body=mail_of(number), headers=META)


def test_what_is_answered_200_during_the_upgrade_is_held(before: Old) -> None:
    with Posting(before) as posting:
        posting.wait_until(lambda: posting.refused + len(posting.held) > 3)
        done = before.program("quarantine", "init")
        assert done.returncode == 0, done.stderr
        during = len(posting.held)
        posting.wait_until(lambda: len(posting.held) > during + 60)
    rows = before.rows()
    assert len(set(posting.held.values())) == len(posting.held)
    there = [(row["id"], row["recipient"]) for row in rows]
    assert sorted(there) == sorted(
        [(row["id"], row["recipient"]) for row in ROWS]
        + [(id, recipient) for id in posting.held.values() for recipient in (ALICE, BOB)]
    )
    for number, id in posting.held.items():
        assert before.command("print", id) == mail_of(number)


# ---- commands of operators


def test_the_list_is_the_same(upgraded: Old) -> None:
    done = upgraded.program("quarantine", "list", "--limit", "1000")
    assert [cells(line) for line in done.stdout.splitlines()] == [cells(line) for line in EXPECTED["list"]]
    assert with_expected_keys(upgraded.rows()) == ROWS


def cells(line: str) -> list[str]:
    """Return the cells of a line of the list. A domain may be shown in either spelling, so columns may be wider."""
    return re.split(r" {2,}", with_a_label(line.rstrip()))


def with_expected_keys(rows: Rows) -> Rows:
    """Return the rows without the keys that later versions add."""
    return [{key: value for key, value in row.items() if key in ROWS[0]} for row in rows]


def test_the_list_finds_messages(upgraded: Old) -> None:
    for words, names in (
        (["--recipient", ALICE, "--state", "requested"], ["virus"]),
        (["--recipient", "alice+shop@example.org", "--state", "held", "--words", "shop"], ["shop"]),
        (["--tier", "suspicious", "--recipient", FRANK], ["assigned"]),
        (["--words", "öffer delet"], ["deleted"]),
        (["--sender", "promo@example.net", "--words", "offer smith-new"], ["smith-new"]),
        (["--since", "2026-11-20T11:41", "--until", "2026-11-20"], ["smith-new"]),
        (["--recipient", "chef@münchen.example", "--state", "released"], ["chef-released"]),
    ):
        rows = [json.loads(line) for line in upgraded.command("list", "--json", *words).splitlines()]
        assert [NAMES[row["id"]] for row in rows] == names, words


def test_histories_are_the_same(upgraded: Old) -> None:
    for name, expected in EXPECTED["histories"].items():
        shown = json.loads(upgraded.command("meta", MESSAGES[name]["id"], "--json"))
        assert shown["message_id"] == f"{name}@example.net" or name.startswith("copy")
        assert [symbol["name"] for symbol in shown["symbols"]][2:] == (
            [] if MESSAGES[name]["tier"] == "spam" else [SYMBOLS[MESSAGES[name]["tier"]]]
        )
        histories = [
            [[event[key] for key in ("at", "what", "who", "via", "address", "detail")] for event in each["history"]]
            for each in shown["deliveries"]
        ]
        shown_events, expected_events = (json.dumps(each, ensure_ascii=False) for each in (histories, expected))
        assert with_a_label(shown_events) == with_a_label(expected_events), name


def test_a_queue_id_finds_the_message(upgraded: Old) -> None:
    assert json.loads(upgraded.command("meta", "4Xvirus", "--json"))["id"] == MESSAGES["virus"]["id"]


def test_messages_are_byte_identical(upgraded: Old) -> None:
    for name, message in MESSAGES.items():
        assert hashlib.sha256(upgraded.command("print", message["id"])).hexdigest() == message["sha256"], name


def test_operators_decide_requests(upgraded: Old) -> None:
    done = upgraded.program("quarantine", "release", MESSAGES["virus"]["id"])
    assert done.returncode == 0, done.stderr
    assert [mail.recipients for mail in upgraded.relay.mails] == [["Alice@Example.ORG"]]
    done = upgraded.program("quarantine", "refuse", MESSAGES["sales-virus"]["id"], "--reason", "It has a virus.")
    assert done.returncode == 0, done.stderr
    states = upgraded.states()
    assert states["virus", "Alice@Example.ORG"] == "released"
    assert states["sales-virus", "sales@example.org"] == "held"


def test_an_operator_assigns_a_message_without_recipients(upgraded: Old) -> None:
    done = upgraded.program("quarantine", "release", MESSAGES["unassigned"]["id"], "--recipient", FRANK)
    assert done.returncode == 0, done.stderr
    assert upgraded.states()["unassigned", FRANK] == "released"


def test_metrics_are_the_same(upgraded: Old) -> None:
    with upgraded.site(END) as site:
        machine = site.browser()
        machine.peer = "127.0.0.1"
        shown = dict(re.findall(r"^quarantine_(\w+) (\S+)$", machine.get("/metrics").text, re.MULTILINE))
        assert {name: shown.get(name) for name in EXPECTED["metrics"]} == EXPECTED["metrics"]
        assert shown["digest_heartbeat_age_seconds"] == "60.0"
        assert float(shown["digest_last_sent_timestamp_seconds"]) == (END - timedelta(seconds=890)).timestamp()


# ---- ingest


def headers_of(name: str) -> dict[str, str]:
    """Return the metadata of an old message as Rspamd posts it."""
    message = MESSAGES[name]
    symbols = [SYMBOLS["spam"], "R_SPF_FAIL", *([SYMBOLS[message["tier"]]] if message["tier"] != "spam" else [])]
    headers = {
        "X-Rspamd-rcpt": json.dumps(message["recipients"], ensure_ascii=False),
        "X-Rspamd-from": message["sender"],
        "X-Rspamd-action": "reject",
        "X-Rspamd-score": "17.5",
        "X-Rspamd-symbols": json.dumps([{"name": symbol, "score": 1.0} for symbol in symbols]),
        "X-Rspamd-qid": f"4X{name}",
        "X-Rspamd-ip": "198.51.100.9",
        "Content-Type": "text/plain",
    }
    if not message["recipients"]:
        del headers["X-Rspamd-rcpt"]
    return {key: value.encode().decode("latin-1") for key, value in headers.items()}


def post(site: Site, body: bytes, headers: Mapping[str, str]) -> Any:
    rspamd = site.browser()
    rspamd.peer = "127.0.0.1"
    answer = rspamd.request("POST", "/", body=body, headers=headers)
    assert answer.status == 200, answer.body
    return answer.json


def known_when_posted_again() -> list[tuple[str, dict[str, Any]]]:
    """Return the messages, except one for both spellings of one recipient: it had two recipients, and has one now."""
    return [(name, message) for name, message in MESSAGES.items() if name != "both"]


def test_a_message_that_is_posted_again_is_known(upgraded: Old) -> None:
    with upgraded.site() as site:
        for name, message in known_when_posted_again():
            answer = post(site, upgraded.command("print", message["id"]), headers_of(name))
            assert answer == {"status": "known", "id": message["id"]}, name
    assert with_expected_keys(upgraded.rows()) == ROWS


def test_a_message_that_comes_again_with_a_virus_is_dangerous(upgraded: Old) -> None:
    headers = headers_of("shared") | {"X-Rspamd-symbols": json.dumps([{"name": "CLAM_VIRUS", "score": 8.0}])}
    with upgraded.site() as site:
        answer = post(site, upgraded.command("print", MESSAGES["shared"]["id"]), headers)
    assert answer["status"] == "known"
    tiers = {NAMES[row["id"]]: row["tier"] for row in upgraded.rows()}
    assert tiers["shared"] == "dangerous"
    assert tiers["erin"] == "spam"


def health(site: Site) -> dict[str, Any]:
    """Return the values of /healthz for this host."""
    browser = site.browser()
    browser.peer = "127.0.0.1"
    found: dict[str, Any] = browser.get("/healthz").json
    return found


def test_marks_of_old_mails_are_recognised(upgraded: Old) -> None:
    own = (DATA / "digests" / "19-bob.eml").read_bytes()
    headers = {"X-Rspamd-rcpt": json.dumps([BOB]), "X-Rspamd-from": "", "X-Rspamd-action": "reject"}
    with upgraded.site() as site:
        assert post(site, own, headers)["status"] == "not-selected"
        # The administrator was notified 13 minutes ago. This is done at most once an hour.
        assert health(site)["mails_waiting"] == 1
        site.pass_time(hours=1)
        assert post(site, own, headers)["status"] == "not-selected"
        assert health(site)["mails_waiting"] == 2


# ---- links of old digests


def test_every_link_opens(upgraded: Old) -> None:
    states = states_before()
    with upgraded.site() as site:
        for each in links():
            site.pass_time(seconds=5)
            page = site.browser().get(each.path)
            if is_revoked(each):
                assert page.status == 404, each
                continue
            assert page.status == 200, (each, page.text)
            can_act = 'name="pressed"' in page.text
            if each.kind == "forwarded":
                assert can_act
            elif each.kind == "preferences":
                assert 'name="schedule"' in page.text
            elif each.kind == "several":
                offered = {other.name for other in links() if is_offered(other, each.digest)}
                assert set(re.findall(r'name="mail" value="([^"]+)"', page.text)) == offered, each
            else:
                assert f"ffer {each.message}" in page.text or each.message.startswith("copy")
                held = states[each.message, each.address] == "held"
                assert can_act == (held or each.kind == "show"), each  # the page of "show" mails a sign-in link
                assert ('name="undo"' in page.text) == (each.message == "deleted" and each.kind == "delete")


def is_offered(link: Link, digest: str) -> bool:
    """Return whether the page for several messages of a digest has the delivery of this link."""
    is_held = link.message != "" and states_before()[link.message, link.address] == "held"
    return link.digest == digest and link.kind == "release" and is_held and EXPECTED["digests"][digest]["sent"]


def test_release_links_release(upgraded: Old) -> None:
    states = states_before()
    with upgraded.site() as site:
        for each in links():
            if each.kind == "release" and not is_revoked(each):
                page = press(site, each, pressed="1")
                assert page.status == 200, each
                # A release that was deferred is tried again at once.
                if states[each.message, each.address] in ("held", "releasing"):
                    states[each.message, each.address] = "released"
    assert upgraded.states() == states
    released = {key for key, state in states.items() if state != states_before()[key]}
    assert len(released) > 10
    sent = []
    for mail in upgraded.relay.mails:
        [address] = mail.recipients
        _, _, content = mail.data.partition(b"\r\nX-Quarantine-Mark: ")
        sent.append((hashlib.sha256(content.partition(b"\r\n")[2]).hexdigest(), with_a_label(address)))
    assert sorted(sent) == sorted((MESSAGES[name]["sha256"], with_a_label(address)) for name, address in released)


def test_delete_links_delete_and_undo(upgraded: Old) -> None:
    states = states_before()
    with upgraded.site() as site:
        deletes = [each for each in links() if each.kind == "delete" and not is_revoked(each)]
        for each in deletes:
            press(site, each, pressed="1")
        deleted = {key for key, state in upgraded.states().items() if state == "deleted"}
        held = {(each.message, each.address) for each in deletes if states[each.message, each.address] == "held"}
        assert deleted == held | {("deleted", ALICE)}
        for each in deletes:
            press(site, each, undo="1")
    assert upgraded.states() == states | {("deleted", ALICE): "held"}
    assert upgraded.relay.mails == []


def test_request_links_request(upgraded: Old) -> None:
    with upgraded.site() as site:
        for each in links():
            if each.kind == "ask":
                press(site, each, pressed="1")
        assert housekeeping.send_queued(site.parts, site.now) == 2
    assert sorted(mail.recipients[0] for mail in upgraded.mail.mails) == ["admin@example.org", BOB]
    assert upgraded.states() == states_before() | {("refused", BOB): "requested"}


def test_several_messages_of_an_old_digest(upgraded: Old) -> None:
    several = link("19-carol", "several")
    chosen = [link("19-carol", "release", name).name for name in ("smith", "sales")]
    with upgraded.site() as site:
        visitor = site.browser()
        answer = visitor.request(
            "POST",
            several.path,
            body=urlencode([("do", "release"), *(("mail", name) for name in chosen)]).encode(),
            headers={"Content-Type": "application/x-www-form-urlencoded", "Sec-Fetch-Site": "same-origin"},
        )
        assert visitor.follow(answer, several.path).status == 200
    changed = {key for key, state in upgraded.states().items() if state != states_before()[key]}
    assert changed == {("smith", "carol.smith@example.org"), ("sales", "sales@example.org")}
    assert len(upgraded.relay.mails) == 2


@pytest.mark.parametrize("digest", ["19-alice", "19-carol", "20-erin", "20-unicode"])
def test_the_links_of_a_forwarded_digest_are_revoked(upgraded: Old, digest: str) -> None:
    recipient = EXPECTED["digests"][digest]["recipient"]
    with upgraded.site() as site:
        assert press(site, link(digest, "forwarded"), pressed="1").status == 200
        for each in links():
            site.pass_time(seconds=5)
            owner = EXPECTED["digests"][each.digest]["recipient"]
            if owner == recipient:
                assert site.browser().get(each.path).status == 404, each
            elif with_a_label(owner) != with_a_label(recipient) and not is_revoked(each):
                assert site.browser().get(each.path).status == 200, each


@pytest.mark.parametrize("digest", ["19-alice", "20-carol", "20-erin", "20-dave-again"])
def test_one_click_unsubscribe(upgraded: Old, digest: str) -> None:
    unsubscribe = link(digest, "preferences")
    with upgraded.site() as site:
        answer = site.browser().request("POST", unsubscribe.path, form={"List-Unsubscribe": "One-Click"})
        assert answer.status == 200
        assert are_digests_stopped(site, unsubscribe)
        assert housekeeping.send_queued(site.parts, site.now) == 2
    # A sign-in mail was queued for Bob.
    assert sorted(mail.recipients[0] for mail in upgraded.mail.mails) == sorted(
        [BOB, EXPECTED["digests"][digest]["recipient"]]
    )


def test_one_click_unsubscribe_of_an_international_address(upgraded: Old) -> None:
    with upgraded.site() as site:
        for digest in ("20-unicode", "19-unicode", "19-alabel"):
            unsubscribe = link(digest, "preferences")
            answer = site.browser().request("POST", unsubscribe.path, form={"List-Unsubscribe": "One-Click"})
            assert answer.status == 200
            assert are_digests_stopped(site, unsubscribe)


def are_digests_stopped(site: Site, preferences: Link) -> bool:
    page = site.browser().get(preferences.path).text
    stopped = 'value="resume"' in page
    assert stopped != ('value="stop"' in page)
    return stopped


def test_digests_are_resumed_and_stopped_by_old_links(upgraded: Old) -> None:
    bob, alice = link("19-bob", "preferences"), link("19-alice", "preferences")
    with upgraded.site() as site:
        assert are_digests_stopped(site, bob)
        press(site, bob, change="resume")
        assert not are_digests_stopped(site, bob)
        assert not are_digests_stopped(site, alice)
        press(site, alice, change="stop")
        assert are_digests_stopped(site, alice)


def test_links_expire_as_before(upgraded: Old) -> None:
    with upgraded.site(END + timedelta(days=13, hours=12)) as site:
        assert site.browser().get(link("20-alice", "preferences").path).status == 200
        assert site.browser().get(link("19-alice", "preferences").path).status == 410


def test_an_old_device_cookie_is_known(upgraded: Old) -> None:
    """The page of a delete link submits itself on a known device only."""
    with upgraded.site() as site:
        for device, digest, message in (
            ("alice-device", "19-alice", "encrypted"),
            ("carol-device", "19-carol", "sales"),
            ("bob-device", "19-bob", "shared"),
            ("unicode-device", "19-unicode", "unicode"),
            ("unicode-device", "19-unicode", "chef"),
        ):
            delete = link(digest, "delete", message)
            assert "data-submit" not in site.browser().get(delete.path).text
            other = "alice-device" if device != "alice-device" else "bob-device"
            assert "data-submit" not in browser(site, other).get(delete.path).text, device
            known = browser(site, device)
            assert "data-submit" in known.get(delete.path).text, device
            known.post(delete.path)
            assert upgraded.states()[message, delete.address] == "deleted"


# ---- signed in


def shown_in(visitor: Browser, view: str) -> list[str]:
    page = visitor.get(f"/?state={view}")
    assert page.status == 200
    return [NAMES[id] for id in dict.fromkeys(re.findall(r"/quarantine/messages/([0-9a-f-]{36})", page.text))]


def test_a_session_lists_the_same_messages(upgraded: Old) -> None:
    with upgraded.site() as site:
        for person in (ALICE, CAROL):
            visitor = browser(site, person)
            assert {view: shown_in(visitor, view) for view in VIEWS} == EXPECTED["lists"][person]


def test_a_session_of_either_spelling_lists_its_messages(upgraded: Old) -> None:
    with upgraded.site() as site:
        for person in (UNICODE, ALABEL):
            visitor = browser(site, person)
            for view in VIEWS:
                assert set(shown_in(visitor, view)) == seen_as_one_person(view)
                # The old messages are indexed under the old name.
                assert set(shown_in(visitor, f"{view}&q=promo")) == seen_as_one_person(view)


@pytest.mark.parametrize("person", [ALICE, CAROL, UNICODE, ALABEL])
def test_a_session_opens_its_messages(upgraded: Old, person: str) -> None:
    others = {ALICE: "erin", CAROL: "shared", UNICODE: "bob2", ALABEL: "stranger"}
    with upgraded.site() as site:
        visitor = browser(site, person)
        for view in VIEWS:
            for name in re.findall(r"/quarantine/messages/([0-9a-f.-]+)/", visitor.get(f"/?state={view}").text)[:1]:
                page = visitor.get(f"/messages/{name}/")
                assert page.status == 200
                assert f"Buy {NAMES[name[:36]]}!" in page.text
        assert visitor.get(f"/messages/{MESSAGES[others[person]]['id']}/").status == 404


@pytest.mark.parametrize("person", [ALICE, CAROL, UNICODE, ALABEL])
def test_a_form_of_an_old_page_is_accepted(upgraded: Old, person: str) -> None:
    name = EXPECTED["lists"][person]["held"][-1]
    with upgraded.site() as site:
        visitor = browser(site, person)
        path = f"/messages/{MESSAGES[name]['id']}"
        assert visitor.post(f"{path}/delete", {"form_token": "x"}).status == 403
        assert visitor.post(f"{path}/delete", {"form_token": EXPECTED["form_tokens"][person]}).status == 303
    changed = {name for (name, _), state in upgraded.states().items() if state == "deleted"}
    assert changed == {name, "deleted"}


def test_a_session_ends_as_before(upgraded: Old) -> None:
    with upgraded.site(END + timedelta(hours=11, minutes=50)) as site:
        assert browser(site, ALICE).get("/").status == 200
        assert browser(site, "alice-unused").get("/").status == 303
    with upgraded.site(END + timedelta(days=8)) as site:
        assert browser(site, CAROL).get("/").status == 303


@pytest.mark.parametrize("name", ["alice-unused", "unicode-unused"])
@pytest.mark.parametrize("way", ["link", "link in another browser", "code"])
def test_an_old_sign_in_works_once(upgraded: Old, name: str, way: str) -> None:
    person, path, code = EXPECTED["sign_ins"][name]
    with upgraded.site() as site:
        visitor = browser(site, name) if way != "link in another browser" else site.browser()
        if way == "code":
            answer = visitor.post("/sign-in/code", {"code": code})
        else:
            page = visitor.get(path)
            assert page.status == 200
            assert ("data-submit" in page.text) == (way == "link")
            answer = visitor.post(path, {"pressed": "1"} if way != "link" else {})
        assert answer.status == 303
        assert answer.header("Location") == "/quarantine/"
        assert set(EXPECTED["lists"][person]["held"]) <= set(shown_in(visitor, "held"))
        assert site.browser().get(path).status == 404
        assert browser(site, name).post("/sign-in/code", {"code": code}).status == 403


def test_an_old_sign_in_expires(upgraded: Old) -> None:
    with upgraded.site(END + timedelta(minutes=13)) as site:
        assert browser(site, "alice-unused").get(EXPECTED["sign_ins"]["alice-unused"][1]).status == 404


@pytest.mark.parametrize("person", [ALICE, CAROL])
def test_preferences_are_kept(upgraded: Old, person: str) -> None:
    with upgraded.site() as site:
        page = browser(site, person).get("/preferences").text
    chosen = re.findall(r'<option value="([^"]+)" selected', page)
    hours = [hour for hour in re.findall(r'name="at-\d" value="([^"]*)"', page) if hour]
    if person == ALICE:
        assert chosen == ["daily", "de", "Europe/Berlin"]
        assert hours == ["06:30", "18:00"]
        assert '<html lang="de"' in page
    else:
        assert (chosen, hours) == ([], [])


def test_a_digest_cannot_be_requested_twice_in_an_hour(upgraded: Old) -> None:
    with upgraded.site() as site:
        carol = browser(site, CAROL)
        for minutes, done in ((0, "too-soon"), (60, "digest")):
            site.pass_time(minutes=minutes)
            post(site, b"Subject: new\r\n\r\n", headers_of("smith"))
            answer = carol.post("/preferences", {"change": "digest", "form_token": carol.form_token()})
            assert answer.header("Location") == f"/quarantine/preferences?done={done}"


def test_aliases_and_role_mailboxes_are_read_without_the_alias_file(upgraded: Old) -> None:
    """The store has a copy of the file."""
    (upgraded.folder / "virtual").unlink()
    with upgraded.site() as site:
        visitor = browser(site, CAROL)
        assert {view: shown_in(visitor, view) for view in VIEWS} == EXPECTED["lists"][CAROL]


# ---- the digest process


def test_a_queued_release_goes_out(upgraded: Old) -> None:
    with upgraded.site() as site:
        assert retry_due(site.parts.actions) == 1
    [mail] = upgraded.relay.mails
    assert mail.recipients == [ALICE]
    assert upgraded.states() == states_before() | {("queued", ALICE): "released"}
    history = json.loads(upgraded.command("meta", MESSAGES["queued"]["id"], "--json"))["deliveries"][0]["history"]
    assert [event["what"] for event in history] == ["held", "releasing", "deferred", "released"]


def test_queued_mail_goes_out(upgraded: Old) -> None:
    with upgraded.site() as site:
        assert housekeeping.send_queued(site.parts, site.now) == 1
        [mail] = upgraded.mail.mails
        assert mail.recipients == [BOB]
        path = re.search(r"/sign-in/[\w-]{32}/", text_of(mail.data))
        assert path
        visitor = browser(site, "bob-queued")
        assert visitor.post(path[0]).header("Location") == "/quarantine/"
        assert set(shown_in(visitor, "held")) == {"bob2", "copy1", "refused", "shared"}


def test_a_digest_that_was_begun_is_sent_under_the_same_id(upgraded: Old) -> None:
    done = upgraded.program("quarantine-digest", "once", "--now", NOW.isoformat(), "--recipient", DAVE)
    assert done.returncode == 0, done.stderr
    [mail] = upgraded.mail.mails
    first = message_from_bytes((DATA / "digests" / "20-dave-again.eml").read_bytes(), policy=default)
    again = message_from_bytes(mail.data, policy=default)
    assert again["Message-ID"] == first["Message-ID"]
    assert "Offer dave" in text_of(mail.data)
    with upgraded.site() as site:
        page = site.browser().get(link("20-dave-again", "several").path).text
        assert link("20-dave-again", "release", "dave").name in page


def test_the_next_digests_announce_what_was_not_announced(upgraded: Old) -> None:
    at = END + timedelta(days=1)
    done = upgraded.program("quarantine-digest", "once", "--now", at.isoformat())
    assert done.returncode == 0, done.stderr
    announced = {
        mail.recipients[0]: sorted(re.findall(r"^Offer (\S+)\s*$", text_of(mail.data), re.MULTILINE))
        for mail in upgraded.mail.mails
    }
    assert len(announced) == len(upgraded.mail.mails)
    assert {person: names for person, names in announced.items() if person.endswith("@example.org")} == {
        ALICE: ["alice-new"],
        DAVE: ["dave"],
        FRANK: ["assigned"],
    }
    # The message for `ALABEL` is announced only if stopped digests are resumed by a merge of both spellings.
    assert [names for person, names in announced.items() if not person.endswith("@example.org")] in ([], [["alabel2"]])
    with upgraded.site(at + timedelta(minutes=1)) as site:
        assert health(site)["digests_failing"] == 0


# ---- reindex


@pytest.fixture(params=["old", "upgraded"])
def rebuilt(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Old]:
    """A file store without its database, old or upgraded, after `quarantine reindex`."""
    folder = tmp_path / "quarantine"
    restore_folder(folder)
    with SmtpServer() as mail, SmtpServer() as relay:
        site = Old(f"files://{folder}", tmp_path, {"mail": mail, "relay": relay})
        if request.param == "upgraded":
            assert site.program("quarantine", "init").returncode == 0
        for path in folder.glob("quarantine.sqlite3*"):
            path.unlink()
        done = site.program("quarantine", "reindex")
        assert done.returncode == 0, done.stderr
        yield site


def test_reindex_rebuilds_the_same_list(rebuilt: Old) -> None:
    # The journal does not have the time of announcement of a message for an alias or a role mailbox.
    unknown = {(row["id"], row["recipient"]) for row in EXPECTED["reindexed"]}
    assert {recipient.partition("@")[0] for _, recipient in unknown} == {"carol.smith", "sales", "chef"}

    def known(rows: Rows) -> Rows:
        return [{**row, "announced_at": ""} if (row["id"], row["recipient"]) in unknown else row for row in rows]

    assert known(with_expected_keys(rebuilt.rows())) == known(ROWS)


def test_links_of_old_digests_open_after_reindex(rebuilt: Old) -> None:
    with rebuilt.site() as site:
        for each in links():
            site.pass_time(seconds=5)
            page = site.browser().get(each.path)
            is_of_unsent = not EXPECTED["digests"][each.digest]["sent"] and not each.message
            assert page.status == (404 if is_revoked(each) or is_of_unsent else 200), each


def test_a_message_that_is_posted_again_is_known_after_reindex(rebuilt: Old) -> None:
    with rebuilt.site() as site:
        for name, message in known_when_posted_again():
            answer = post(site, rebuilt.command("print", message["id"]), headers_of(name))
            assert answer == {"status": "known", "id": message["id"]}, name


def test_preferences_and_stopped_digests_are_kept_by_reindex(rebuilt: Old) -> None:
    with rebuilt.site() as site:
        assert are_digests_stopped(site, link("19-bob", "preferences"))
        page = site.browser().get(link("19-alice", "preferences").path).text
    assert re.findall(r'<option value="([^"]+)" selected', page) == ["daily", "de", "Europe/Berlin"]
