"""Make the data in this folder with the program of revision 5b8cdfd, schema version 4. README.md describes the steps.

Runs with that revision only. Arguments: the folder to write to, and the URL of an empty PostgreSQL database.
"""
# ruff: noqa: I001 - modules that exist in that revision only are not recognised as ours

from __future__ import annotations

import base64
import getpass
import hashlib
import json
import os
import random
import re
import secrets
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from email import message_from_bytes
from email.policy import default
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psycopg
from click.testing import CliRunner

import digest.__main__
import portal.__main__
import portal.stores.postgres  # else it is imported later, and its clock is not turned
from digest import news, run
from portal.assemble import assemble
from portal.links import Action
from portal.release import utc_now
from portal.settings import load
from portal.stores.files_reindex import reindex
from portal.web import create_app
from tests.smtp_server import HANG, SmtpServer
from tests.web_client import Browser

END = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
ALICE, BOB, CAROL, DAVE, ERIN, FRANK = (f"{n}@example.org" for n in ("alice", "bob", "carol", "dave", "erin", "frank"))
UNICODE, ALABEL = "a@münchen.example", "a@xn--mnchen-3ya.example"  # two spellings of one address
SALES, SMITH, CHEF = "sales@example.org", "carol.smith@example.org", "chef@münchen.example"
VIRTUAL = f"# aliases and a role mailbox\n{SMITH} {CAROL}\n{SALES} {CAROL}, {DAVE}\n{CHEF} {UNICODE}\n"
PEOPLE = {
    who: timedelta(milliseconds=n) for n, who in enumerate((ALICE, BOB, CAROL, DAVE, ERIN, FRANK, UNICODE, ALABEL))
}
NAMES = {UNICODE: "unicode", ALABEL: "alabel"}  # in names of files; others are named by their local part
COPIED = "From: Promo <promo@example.net>\r\nSubject: The same twice\r\n\r\nThe same bytes.\r\n"
SPAM = [{"name": "BAYES_SPAM", "score": 5.1, "options": ["99.99%"]}, {"name": "R_SPF_FAIL", "score": 1.0}]
VIRUS = [*SPAM, {"name": "CLAM_VIRUS", "score": 8.0, "options": ["Eicar-Signature"]}]
ENCRYPTED = [*SPAM, {"name": "MIME_ENCRYPTED_ARCHIVE", "score": 2.0, "options": ["zip"]}]
SYMBOLS = {"spam": SPAM, "dangerous": VIRUS, "suspicious": ENCRYPTED}  # by tier
# Replaces the shipped template, which is several times as large. The text part has all links.
DIGEST_HTML = """<!doctype html>
<html lang="{{ language }}"><body><p>{{ recipient }}</p>
{% for row in rows + dangerous %}<p><a href="{{ row.show }}">{{ row.subject }}</a></p>
{% endfor %}</body></html>
"""


# ---- the clock


class Clock:
    """The time that the program reads as the present."""

    moment = datetime(2026, 11, 19, 4, 0, tzinfo=UTC)

    def set(self, text: str) -> datetime:
        """Turn the clock to "19 07:00:05", day and time in November 2026."""
        day, _, hour = text.partition(" ")
        self.moment = datetime.fromisoformat(f"2026-11-{day}T{hour}+00:00")
        return self.moment

    def time_ns(self) -> int:
        """Return the time. It advances by a millisecond per call, so that ids are in the order of their creation."""
        self.moment += timedelta(milliseconds=1)
        return (self.moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) * 1000

    def patch(self) -> None:
        """Make all modules of the program use this clock."""
        clock = self

        class Turned(datetime):
            @classmethod
            def now(cls, tz: Any = None) -> Any:
                return clock.moment.astimezone(tz)

        for name, module in list(sys.modules.items()):
            if name.split(".")[0] in ("portal", "digest") and getattr(module, "datetime", None) is datetime:
                module.datetime = Turned  # type: ignore[attr-defined]
        time.time_ns = self.time_ns


CLOCK = Clock()


class Seeded:
    """Secrets and ids that are the same for both stores, so that one set of digests and cookies fits both."""

    def __init__(self) -> None:
        self._source = random.Random("upgrade-4")
        self._moment, self._calls = CLOCK.moment, 0

    def patch(self) -> None:
        """Make the program use these from now on."""
        secrets.token_urlsafe = self.token_urlsafe  # type: ignore[assignment]
        secrets.randbelow = self._source.randrange  # type: ignore[assignment]
        secrets.randbits = self.randbits
        # Digests get their ids in a known order if one is claimed at a time and no time passes within a run.
        run.AHEAD = 1
        run.clock = lambda now: lambda: now

    def token_urlsafe(self, octets: int) -> str:
        return base64.urlsafe_b64encode(self._source.randbytes(octets)).rstrip(b"=").decode()

    def randbits(self, bits: int) -> int:
        """Return bits that depend only on the time and on the number of calls at that time."""
        self._calls = self._calls + 1 if CLOCK.moment == self._moment else 0
        self._moment = CLOCK.moment
        return random.Random(f"{self._moment} {self._calls}").getrandbits(bits)


# ---- one store


class Site:
    """The old program on one store: its web application, its digest process and its commands."""

    def __init__(self, store_url: str, out: Path, work: Path, mail: SmtpServer, relay: SmtpServer) -> None:
        self.out, self.mail, self.relay = out, mail, relay
        (work / "quarantine.toml").touch()
        template = work / "site" / "templates" / "mail" / "digest" / "body.html"
        template.parent.mkdir(parents=True)
        template.write_text(DIGEST_HTML, "utf-8")
        os.environ |= {
            "QUARANTINE_CONFIG": str(work / "quarantine.toml"),
            "QUARANTINE_STORE__URL": store_url,
            "QUARANTINE_LOCAL_DOMAINS": "example.org,münchen.example,xn--mnchen-3ya.example",
            "QUARANTINE_MAIL__FROM_ADDRESS": "quarantine@example.org",
            "QUARANTINE_MAIL__ADMIN_ADDRESS": "admin@example.org",
            "QUARANTINE_MAIL__URL": mail.url,
            "QUARANTINE_RELAY__URL": relay.url,
            "QUARANTINE_LINKS__KEYS_FILE": str(out / "links.keys"),
            "QUARANTINE_PEOPLE__ALIAS_FILE": str(out / "virtual"),
            "QUARANTINE_PEOPLE__RECIPIENT_DELIMITER": "+",
            "QUARANTINE_DIGEST__CONNECTIONS": "1",
            "QUARANTINE_SITE__FOLDER": str(work / "site"),
        }
        self.messages: dict[str, dict[str, Any]] = {}  # by a short name
        self.digests: dict[str, dict[str, Any]] = {}  # by the name of their file
        self.browsers: dict[str, Browser] = {}
        CLOCK.set("19 04:00:00")
        Seeded().patch()
        self.command("init")
        self.parts = assemble(load())
        self.app = create_app(self.parts)

    # ---- actions

    def command(self, *words: str, status: int = 0) -> str:
        """Run `quarantine` and return its output."""
        done = CliRunner().invoke(portal.__main__.main, words, catch_exceptions=False)
        assert done.exit_code == status, done.output
        return done.output

    def post(
        self, at: str, name: str, recipients: Sequence[str], tier: str = "spam", sender: str = "promo@example.net"
    ) -> None:
        """Post a message as Rspamd does. Without recipients their header is missing."""
        CLOCK.set(at)
        subject = f"Öffer {name}" if name == "deleted" else f"Offer {name}"
        body = (
            f"From: Promo <promo@example.net>\r\nTo: undisclosed-recipients:;\r\nSubject: {subject}\r\n"
            f"Message-ID: <{name}@example.net>\r\n\r\nBuy {name}!\r\n"
        )
        headers = {
            "X-Rspamd-rcpt": json.dumps(recipients, ensure_ascii=False),
            "X-Rspamd-from": sender,
            "X-Rspamd-action": "reject",
            "X-Rspamd-score": "17.5",
            "X-Rspamd-symbols": json.dumps(SYMBOLS[tier]),
            "X-Rspamd-qid": f"4X{name}",
            "X-Rspamd-subject": subject,
            "X-Rspamd-ip": "198.51.100.9",
            "X-Rspamd-user": "unknown",
            "Content-Type": "text/plain",
        }
        if not recipients:
            del headers["X-Rspamd-rcpt"]
        headers = {key: value.encode().decode("latin-1") for key, value in headers.items()}
        data = (COPIED if name.startswith("copy") else body).encode()
        answer = Browser(self.app, peer="127.0.0.1").request("POST", "/", body=data, headers=headers)
        assert answer.status == 200 and answer.json["status"] == "held", answer.body
        self.messages[name] = {
            "id": answer.json["id"],
            "recipients": list(recipients),
            "sender": sender,
            "tier": tier,
            "sha256": hashlib.sha256(data).hexdigest(),
        }

    def send_digests(self, at: str) -> None:
        """Do what the digest process does every ten seconds and every hour."""
        now = CLOCK.set(at)
        news.find_news(self.parts, now)
        schedule = self.parts.store.schedule
        # Digests that are due at the same time have no order. Different times give them one, the same in both stores.
        with patch.object(self.parts.store, "schedule", lambda who, at: schedule(who, at + PEOPLE[who])):
            news.schedule_news(self.parts, now)
        before = len(self.mail.mails)
        summary = run.send_due(self.parts, now)
        assert not summary.skipped, summary
        for mail in self.mail.mails[before:]:
            self.keep_digest(mail.recipients[0], mail.data, f"{now:%d}", sent=True)

    def keep_digest(self, recipient: str, data: bytes, day: str, *, sent: bool) -> None:
        """Write a digest to its file."""
        name = f"{day}-{NAMES.get(recipient) or recipient.partition('@')[0]}"
        while name in self.digests:
            name += "-again"
        path = self.out / "digests" / f"{name}.eml"
        path.parent.mkdir(exist_ok=True)
        assert not path.exists() or path.read_bytes() == data, f"{name} differs from that of the other store"
        path.write_bytes(data)
        self.digests[name] = {"recipient": recipient, "sent": sent}

    def link(self, digest: str, action: Action, message: str = "") -> str:
        """Return the path of a digest's link for an action, and for a message unless the action is for all."""
        for token in re.findall(r"/link/([\w.-]+)/", text_of((self.out / "digests" / f"{digest}.eml").read_bytes())):
            link = self.parts.links.verify(token, utc_now())
            if link.action is action and (not message or str(link.id) == self.messages[message]["id"]):
                return f"/link/{token}/"
        raise LookupError(f"{digest} has no such link")

    def browser(self, name: str, peer: str = "192.0.2.7") -> Browser:
        """Return the browser with this name, always the same one."""
        return self.browsers.setdefault(name, Browser(self.app, peer=peer))

    def press(self, at: str, name: str, path: str, status: int = 303, **form: str) -> None:
        """Open a page and press its button a little later."""
        CLOCK.set(at)
        browser = self.browser(name)
        assert browser.get(path).status == 200
        CLOCK.moment += timedelta(seconds=4)
        answer = browser.post(path, form)
        assert answer.status == status, answer.text

    def ask_to_sign_in(self, at: str, name: str, address: str, peer: str) -> None:
        """Ask for a sign-in mail."""
        CLOCK.set(at)
        answer = self.browser(name, peer).post("/sign-in", {"address": address})
        assert answer.header("Location") == "/quarantine/sign-in/code"

    def send_mail(self) -> int:
        """Send the queued mail and return the number of messages sent."""
        CLOCK.moment += timedelta(seconds=5)
        return run.send_queued(self.parts, CLOCK.moment)

    def secrets(self, recipient: str) -> tuple[str, str]:
        """Return the link and the code of the last sign-in mail to a recipient."""
        mail = next(mail for mail in reversed(self.mail.mails) if mail.recipients == [recipient])
        text = text_of(mail.data)
        path, code = re.search(r"/sign-in/[\w-]{32}/", text), re.search(r"^(\d{3} \d{3})$", text, re.MULTILINE)
        assert path and code, text
        return path[0], code[1].replace(" ", "")

    # ---- expected values

    def expected(self) -> dict[str, Any]:
        """Return everything that the tests compare with."""
        names = {message["id"]: name for name, message in self.messages.items()}
        lists: dict[str, dict[str, list[str]]] = {}
        for person in (ALICE, CAROL, UNICODE, ALABEL):
            lists[person] = {}
            for view in ("held", "requested", "released", "deleted"):
                page = self.browser(person).get(f"/?state={view}").text
                ids = dict.fromkeys(re.findall(r"/quarantine/messages/([0-9a-f-]{36})", page))
                lists[person][view] = [names[id] for id in ids]
        metrics = self.browser("metrics", "127.0.0.1").get("/metrics").text
        return {
            "messages": self.messages,
            "digests": self.digests,
            "list": self.command("list", "--limit", "1000").splitlines(),
            "rows": self.rows(),
            "histories": {
                name: [[list(event.values()) for event in delivery["history"]] for delivery in self.meta(message["id"])]
                for name, message in self.messages.items()
            },
            "lists": lists,
            "cookies": {name: browser.cookies for name, browser in self.browsers.items() if browser.cookies},
            "form_tokens": {person: self.browser(person).form_token() for person in lists},
            "sign_ins": {
                name: [recipient, *self.secrets(recipient)]
                for name, recipient in (("alice-unused", ALICE), ("unicode-unused", UNICODE))
            },
            # Durations differ from run to run.
            "metrics": dict(re.findall(r"^quarantine_((?!.*_seconds)\w+) (\S+)$", metrics, re.MULTILINE)),
        }

    def rows(self) -> list[Any]:
        """Return what `quarantine list --json` prints, newest first."""
        return [json.loads(line) for line in self.command("list", "--limit", "1000", "--json").splitlines()]

    def meta(self, id: str) -> list[Any]:
        """Return the deliveries of a message as `quarantine meta --json` prints them."""
        deliveries: list[Any] = json.loads(self.command("meta", id, "--json"))["deliveries"]
        return deliveries


def text_of(mail: bytes) -> str:
    part = message_from_bytes(mail, policy=default).get_body(("plain",))
    assert part is not None
    return str(part.get_content()).replace("\r\n", "\n")


# ---- the scenario


def thursday_morning(site: Site) -> None:
    post = site.post
    post("19 05:00:00", "shared", [ALICE, BOB])
    post("19 05:01:00", "released", [ALICE])
    post("19 05:02:00", "deleted", [ALICE])
    post("19 05:03:00", "virus", ["Alice@Example.ORG"], "dangerous")
    post("19 05:04:00", "encrypted", [ALICE], "suspicious", sender="")
    post("19 05:05:00", "smith", [SMITH])
    post("19 05:06:00", "sales", [SALES])
    post("19 05:07:00", "sales-released", [SALES])
    post("19 05:08:00", "erin", [ERIN])
    post("19 05:09:00", "unicode", [UNICODE])
    post("19 05:10:00", "alabel", [ALABEL])
    post("19 05:11:00", "both", [UNICODE, ALABEL])
    post("19 05:12:00", "chef", [CHEF])
    post("19 05:13:00", "chef-released", [CHEF])
    post("19 05:14:00", "assigned", [])
    post("19 05:15:00", "unassigned", [])
    post("19 05:16:00", "refused", [BOB], "dangerous")
    post("19 05:17:00", "copy1", [BOB])
    post("19 05:18:00", "copy2", [ERIN])  # the same bytes for somebody else


def thursday(site: Site) -> None:
    site.send_digests("19 07:00:05")
    link, press = site.link, site.press
    CLOCK.set("19 08:00:00")
    assert site.browser("alice-device").get(link("19-alice", Action.SHOW, "released")).status == 200
    press("19 08:01:00", "alice-device", link("19-alice", Action.RELEASE, "released"), pressed="1")
    press("19 08:05:00", "alice-device", link("19-alice", Action.DELETE, "deleted"), pressed="1")
    press("19 08:10:00", "alice-device", link("19-alice", Action.ASK, "virus"), pressed="1")
    press("19 08:15:00", "erin", link("19-erin", Action.FORWARDED), 200, pressed="1")
    CLOCK.set("19 08:20:00")
    stop = site.browser("provider").request(
        "POST", link("19-bob", Action.PREFERENCES), form={"List-Unsubscribe": "One-Click"}
    )
    assert stop.status == 200
    press("19 08:30:00", "carol-device", link("19-carol", Action.RELEASE, "sales-released"), pressed="1")
    choice = {"change": "save", "schedule": "daily", "timezone": "Europe/Berlin", "language": "de"}
    hours = {"at-1": "06:30", "at-2": "18:00"}
    press("19 08:40:00", "alice-device", link("19-alice", Action.PREFERENCES), **choice, **hours)
    choice = {"change": "save", "schedule": "weekdays", "timezone": "Europe/Berlin", "language": "fr", "at-1": "08:00"}
    press("19 08:45:00", "unicode-device", link("19-unicode", Action.PREFERENCES), **choice)
    press("19 08:50:00", "alabel-device", link("19-alabel", Action.PREFERENCES), change="stop")
    press("19 08:55:00", "unicode-device", link("19-unicode", Action.RELEASE, "chef-released"), pressed="1")
    press("19 09:05:00", "bob-device", link("19-bob", Action.ASK, "refused"), pressed="1")
    CLOCK.set("19 09:10:00")
    site.relay.script["RCPT"] = "550 5.1.1 no such mailbox"
    site.command("release", site.messages["assigned"]["id"], "--recipient", FRANK, status=1)
    del site.relay.script["RCPT"]
    CLOCK.set("19 09:30:00")
    site.command("refuse", site.messages["refused"]["id"], "--reason", "It has a virus.")
    CLOCK.set("19 09:31:00")
    site.command("delete", site.messages["encrypted"]["id"])
    CLOCK.set("19 09:32:00")
    site.command("restore", site.messages["encrypted"]["id"])
    site.send_mail()
    post = site.post
    post("19 10:00:00", "queued", [ALICE])
    post("19 10:01:00", "erin2", [ERIN])
    post("19 10:02:00", "unicode2", [UNICODE])
    post("19 10:03:00", "alabel2", [ALABEL])
    post("19 10:04:00", "shop", ["alice+shop@example.org"])
    post("19 10:05:00", "sales-virus", [SALES], "dangerous")
    post("19 10:06:00", "stranger", ["mallory@elsewhere.example"])
    post("19 10:07:00", "bob2", [BOB])


def friday(site: Site) -> None:
    now = CLOCK.set("20 03:17:05")
    run.daily(site.parts, now)
    site.mail.script["RCPT"] = lambda line: "550 5.1.1 no such mailbox" if FRANK.encode() in line else None
    site.send_digests("20 05:30:05")
    site.send_digests("20 07:00:05")
    del site.mail.script["RCPT"]
    sign_in(site, "20 08:50:00", ALICE, "192.0.2.11", by_code=True)
    sign_in(site, "20 09:10:00", UNICODE, "192.0.2.12")
    sign_in(site, "20 09:20:00", ALABEL, "192.0.2.13")
    sign_in(site, "20 09:25:00", CAROL, "192.0.2.14")
    site.post("20 09:30:00", "dave", [DAVE])
    site.press("20 10:00:00", "carol-device", site.link("20-carol", Action.ASK, "sales-virus"), pressed="1")
    CLOCK.set("20 11:00:00")
    assert site.browser("alice-device").get(site.link("20-alice", Action.SHOW, "queued")).status == 200
    site.post("20 11:40:00", "alice-new", [ALICE])
    site.post("20 11:41:00", "smith-new", [SMITH])
    now = CLOCK.set("20 11:45:00")
    carol = site.browser(CAROL)
    answer = carol.post("/preferences", {"change": "digest", "form_token": carol.form_token()})
    assert answer.header("Location") == "/quarantine/preferences?done=digest"
    site.send_digests("20 11:45:10")
    CLOCK.set("20 11:50:00")
    own = (site.out / "digests" / "20-carol.eml").read_bytes()
    headers = {"X-Rspamd-rcpt": json.dumps([CAROL]), "X-Rspamd-from": "", "X-Rspamd-action": "reject"}
    answer = Browser(site.app, peer="127.0.0.1").request("POST", "/", body=own, headers=headers)
    assert answer.json["status"] == "not-selected"
    assert site.send_mail() == 2  # Carol's request and the alarm
    site.ask_to_sign_in("20 11:55:00", "unicode-unused", UNICODE, "192.0.2.15")
    site.ask_to_sign_in("20 11:57:00", "alice-unused", ALICE, "192.0.2.16")
    assert site.send_mail() == 2
    CLOCK.set("20 11:58:00")
    alice = site.browser(ALICE)
    site.relay.script["BODY"] = "450 4.3.2 try again later"
    path = f"/messages/{site.messages['queued']['id']}"
    assert alice.post(f"{path}/release", {"form_token": alice.form_token()}).status == 303
    site.ask_to_sign_in("20 11:58:30", "bob-queued", BOB, "192.0.2.17")
    site.mail.script["BODY"] = "450 4.3.2 try again later"
    assert site.send_mail() == 0
    del site.mail.script["BODY"]
    CLOCK.set("20 11:59:00")
    site.parts.store.heartbeat(CLOCK.moment)
    site.parts.store.close()
    begin_digest(site)
    CLOCK.moment = END
    site.parts = assemble(load())
    site.app = create_app(site.parts)
    for browser in site.browsers.values():
        browser.app = site.app


def sign_in(site: Site, at: str, person: str, peer: str, *, by_code: bool = False) -> None:
    site.ask_to_sign_in(at, person, person, peer)
    assert site.send_mail() == 1
    path, code = site.secrets(person)
    browser = site.browser(person)
    answer = browser.post("/sign-in/code", {"code": code}) if by_code else browser.post(path)
    assert answer.header("Location") == "/quarantine/", answer.text


def begin_digest(site: Site) -> None:
    """Kill a digest process whose mail arrived whole and was not answered."""
    CLOCK.set("20 11:59:10")
    site.mail.script["BODY"] = HANG
    words = [sys.executable, __file__, "--digest-once", CLOCK.moment.isoformat(), "--recipient", DAVE]
    child = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not site.mail.unanswered or site.mail.unanswered[-1].recipients != [DAVE]:
        assert child.poll() is None
        time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    child.wait()
    del site.mail.script["BODY"]
    site.keep_digest(DAVE, site.mail.unanswered[-1].data, "20", sent=False)


# ---- output


def dump_sqlite(path: Path, target: Path) -> None:
    """Write a database as SQL. Rowids are kept, since the search index refers to messages by them."""
    with closing(sqlite3.connect(path)) as connection:
        target.write_text("".join(f"{statement};\n" for statement in _sqlite_statements(connection)), "utf-8")


def _sqlite_statements(connection: sqlite3.Connection) -> Iterator[str]:
    connection.execute("update setting set value = '00000000-0000-4000-8000-000000000000' where name = 'store.boot_id'")
    connection.commit()
    version = connection.execute("pragma user_version").fetchone()[0]
    objects = connection.execute(
        "select type, name, sql from sqlite_master where sql is not null order by type = 'index', rowid"
    ).fetchall()
    virtual = [name for _, name, text in objects if text.startswith("CREATE VIRTUAL")]
    for type_, name, text in objects:
        owned = any(name.startswith(f"{table}_") for table in virtual)  # made with the virtual table
        if not owned:
            yield text
        if type_ != "table" or name in virtual:
            continue
        columns = [row[1] for row in connection.execute(f"pragma table_info({name})")]
        keyless = "WITHOUT ROWID" not in text.upper() and "INTEGER PRIMARY KEY" not in text.upper()
        columns = ["rowid", *columns] if keyless else columns
        if owned:
            yield f"DELETE FROM {name}"
        quoted = ", ".join(f"quote({column})" for column in columns)
        rows = [f"({', '.join(row)})" for row in connection.execute(f"select {quoted} from {name}")]
        if rows:
            yield f"INSERT INTO {name} ({', '.join(columns)}) VALUES\n" + ",\n".join(rows)
    yield f"PRAGMA user_version = {version}"


def dump_postgres(url: str, target: Path) -> None:
    """Write a database as SQL that psycopg can execute: without commands of psql and settings of later servers."""
    with psycopg.connect(url, autocommit=True) as connection:
        # One empty day is kept; the others would only make the file larger.
        later = connection.execute(
            "select relname from pg_class where relkind = 'r' and relname ~ '_2026112[2-9]$'"
        ).fetchall()
        for (table,) in later:
            connection.execute(f"drop table {table}".encode())
    words = ["pg_dump", "--no-owner", "--no-privileges", "--no-comments", "--rows-per-insert=1000", "--dbname", url]
    text = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    unwanted = ("--", "\\", "SET transaction_timeout", "SET default_table_access_method")
    lines = [line for line in text.splitlines() if line and not line.startswith(unwanted)]
    target.write_text("\n".join(lines) + "\n", "utf-8")


def put_folder(store: Path, target: Path) -> None:
    """Copy a file store without its database and its locks."""
    for name in ("mail", "journal"):
        shutil.copytree(store / name, target / name)
    dump_sqlite(store / "quarantine.sqlite3", target / "quarantine-sqlite.sql")


def reindexed(site: Site, work: Path) -> list[Any]:
    """Return those rows of the list that change when the old program rebuilds the database from mail and journal."""
    before = site.rows()
    folder = work / "rebuilt"
    for name in ("mail", "journal"):
        shutil.copytree(site.out / "files" / name, folder / name)
    reindex(folder, lambda *_: None)
    with patch.dict(os.environ, {"QUARANTINE_STORE__URL": f"files://{folder}"}):
        return [row for row in site.rows() if row not in before]


def make(out: Path, postgres_url: str) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for name in ("files", "digests"):
        shutil.rmtree(out / name, ignore_errors=True)
    (out / "links.keys").unlink(missing_ok=True)
    (out / "virtual").write_text(VIRTUAL, "utf-8")
    os.utime(out / "virtual", (0, 0))  # a file that was just written is not read yet
    getpass.getuser = lambda: "admin"
    socket.getfqdn = lambda name="": "quarantine.example.org"
    CLOCK.patch()
    everything: dict[str, Any] = {}
    for engine in ("files", "postgres"):
        with tempfile.TemporaryDirectory() as folder, SmtpServer() as mail, SmtpServer() as relay:
            work = Path(folder)
            site = Site(f"files://{work}/store" if engine == "files" else postgres_url, out, work, mail, relay)
            for part in (thursday_morning, thursday, friday):
                part(site)
            values = site.expected()
            site.parts.store.close()
            if engine == "files":
                put_folder(work / "store", out / "files")
                everything = {"now": END.isoformat(), **values, "reindexed": reindexed(site, work)}
            else:
                dump_postgres(postgres_url, out / "postgres.sql")
                differing = [key for key, value in values.items() if value != everything[key]]
                assert not differing, differing
    (out / "expected.json").write_text(to_json(everything), "utf-8")


def to_json(values: dict[str, Any]) -> str:
    """Return JSON with a line per value of the inner tables and lists."""
    lines = []
    for key, value in values.items():
        if isinstance(value, dict):
            inner = ",\n".join(f"  {_json(name)}: {_json(each)}" for name, each in value.items())
            lines.append(f"{_json(key)}: {{\n{inner}\n }}")
        elif isinstance(value, list):
            inner = ",\n".join(f"  {_json(each)}" for each in value)
            lines.append(f"{_json(key)}: [\n{inner}\n ]")
        else:
            lines.append(f"{_json(key)}: {_json(value)}")
    return "{\n " + ",\n ".join(lines) + "\n}\n"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def main() -> None:
    if sys.argv[1] == "--digest-once":
        CLOCK.moment = datetime.fromisoformat(sys.argv[2])
        CLOCK.patch()
        Seeded().patch()
        digest.__main__.main(["once", "--now", sys.argv[2], *sys.argv[3:]])
    else:
        make(Path(sys.argv[1]).absolute(), sys.argv[2])


if __name__ == "__main__":
    main()
