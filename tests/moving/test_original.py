"""`quarantine import-original`: mail from the files and tables of sys4's quarantine.py."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from click.testing import CliRunner, Result

from portal.cli import main
from portal.keys import read_keys
from portal.model.links import MARK_HEADER, Links
from portal.model.message import Filter, Flag, Message, State, Tier
from portal.stores import Store
from tests.builders import ALICE, BOB, SENDER, mail
from tests.smtp_server import SmtpServer

SYMBOLS = [{"name": "BAYES_SPAM", "score": 5.1, "options": ["99%"], "groups": []}, {"name": "R_SPF_FAIL", "score": 1.0}]
YESTERDAY = datetime.now(UTC).replace(microsecond=0) - timedelta(days=1)

# The tables of quarantine.sql of the original.
TABLES = """
create table meta (qid char(30) constraint firstkey primary key, timestamp timestamp, score double precision, ip inet,
    action char(20), "from" bytea, symbols json);
create table msg (qid char(30) references meta(qid), content text);
"""

Run = Callable[..., Result]


@pytest.fixture
def run(store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    config = tmp_path / "quarantine.toml"
    config.write_text(
        f'local_domains = ["example.org"]\nstore.url = "{store_url}"\nmail.from_address = "quarantine@example.org"\n'
        f'links.keys_file = "{tmp_path / "links.keys"}"\n'
    )
    monkeypatch.setenv("QUARANTINE_CONFIG", str(config))

    def call(*words: str) -> Result:
        result = CliRunner().invoke(main, words)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        assert "Traceback" not in result.output
        return result

    return call


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "original"
    made.mkdir()
    return made


def keep(folder: Path, qid: str, data: bytes, at: datetime = YESTERDAY, **fields: str) -> None:
    """Write files as the original does: a line for each header, values as WSGI has them, encoded as UTF-8."""
    headers = {"QID": qid, "SCORE": "17.50", "IP": "198.51.100.9", "ACTION": "reject", "FROM": SENDER,
            "SYMBOLS": json.dumps(SYMBOLS), **fields}  # fmt: skip
    with gzip.open(folder / f"{qid}-meta.gz", "wb") as file:
        for name, value in headers.items():
            file.write(f"{name}: {value}\n".encode())
    with gzip.open(folder / f"{qid}-msg.gz", "wb") as file:
        file.write(data)
    os.utime(folder / f"{qid}-msg.gz", (at.timestamp(), at.timestamp()))


def one(store: Store, qid: str) -> Message:
    found = store.messages.find(qid)
    assert len(found) == 1
    return found[0]


def test_mail_from_files_is_held_as_it_came(run: Run, store: Store, folder: Path) -> None:
    data = mail() + b"\x00\xff 8 bit\nbare LF\r\n.\r\n"
    keep(folder, "4Abc1", data, RCPT=json.dumps([ALICE, "Bob@example.org"]), SUBJECT="Größe".encode().decode("latin-1"))
    result = run("import-original", "--dir", str(folder))
    assert result.exit_code == 0, result.output
    assert "imported 1 messages" in result.output
    message = one(store, "4Abc1")
    assert b"".join(store.messages.body(message.id)) == data
    assert message.held_at == YESTERDAY
    assert (message.envelope_sender, message.score, message.action) == (SENDER, 17.5, "reject")
    assert (message.subject, message.client_ip, message.flags) == ("Größe", "198.51.100.9", frozenset())
    assert [s.name for s in message.symbols] == ["BAYES_SPAM", "R_SPF_FAIL"]
    assert message.symbols[0].options == ("99%",)
    assert [d.recipient for d in store.deliveries.of_message(message.id)] == [ALICE, BOB]
    assert store.digests.due(None, 10) == [ALICE, BOB]


def test_mail_without_recipients_waits_for_an_operator(
    run: Run, store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = mail()
    keep(folder, "4Abc2", data)
    result = run("import-original", "--dir", str(folder))
    assert "1 have no recipients" in result.output
    assert "release ID --recipient" in result.output
    message = one(store, "4Abc2")
    assert Flag.RECIPIENTS in message.flags
    assert message.tier is Tier.SUSPICIOUS
    assert [(d.recipient, d.state) for d in store.deliveries.of_message(message.id)] == [("", State.HELD)]
    with SmtpServer() as smtp:
        monkeypatch.setenv("QUARANTINE_RELAY__URL", smtp.url)
        assert run("release", "4Abc2", "--recipient", ALICE).exit_code == 0
        assert [m.recipients for m in smtp.mails] == [[ALICE]]
        assert smtp.mails[0].data.endswith(data)


def test_mail_for_an_address_extension_is_held_for_its_person(run: Run, store: Store, folder: Path) -> None:
    with Path(os.environ["QUARANTINE_CONFIG"]).open("a") as config:
        config.write('people.recipient_delimiter = "+"\n')
    keep(folder, "4Abc1", mail(), RCPT=json.dumps(["Alice+shop@example.org", BOB]))
    assert run("import-original", "--dir", str(folder)).exit_code == 0
    first, second = store.deliveries.of_message(one(store, "4Abc1").id)
    assert (first.recipient, first.address) == (ALICE, "Alice+shop@example.org")
    assert (second.recipient, second.address) == (BOB, BOB)
    assert store.digests.due(None, 10) == [ALICE, BOB]


def test_a_digest_of_the_portal_that_the_original_kept_is_not_held(run: Run, store: Store, folder: Path) -> None:
    run("init")
    links = Links(read_keys(Path(folder.parent, "links.keys")), "http://127.0.0.1:8080/quarantine", timedelta(days=30))
    mark = links.mark("digest", uuid4())
    keep(folder, "4Abc1", f"{MARK_HEADER}: {mark}\r\n".encode() + mail(), RCPT=json.dumps([ALICE]))
    keep(folder, "4Abc2", mail(), RCPT=json.dumps([ALICE]))
    result = run("import-original", "--dir", str(folder))
    assert result.exit_code == 0
    assert "skipped: 1 digests and sign-in mails of this portal" in result.output
    with store.outbox.sending(datetime.now(UTC)) as mail_queued:
        assert mail_queued is None, "an old file must not raise an alarm"
    assert not store.messages.find("4Abc1")
    assert store.messages.find("4Abc2")


def test_run_again_it_holds_nothing_twice(run: Run, store: Store, folder: Path) -> None:
    for n in range(3):
        keep(folder, f"4Again{n}", mail(), RCPT=json.dumps([ALICE]) if n else "")
    run("import-original", "--dir", str(folder))
    keep(folder, "4New", mail())
    assert "imported 1 messages, 3 were already held" in run("import-original", "--dir", str(folder)).output
    assert len(store.messages.ids(None, 100)) == 4


def test_mail_that_the_next_purge_would_remove_is_skipped(run: Run, store: Store, folder: Path) -> None:
    keep(folder, "4Old", mail(), at=YESTERDAY - timedelta(days=40))
    keep(folder, "4Future", mail(), at=YESTERDAY + timedelta(days=40))
    result = run("import-original", "--dir", str(folder))
    assert "skipped: 1 older than store.retention_days (30)" in result.output
    assert len(store.messages.find("4Future")) == 1
    assert not store.messages.find("4Old")


def test_damaged_missing_and_foreign_files_are_listed_and_the_rest_is_held(
    run: Run, store: Store, folder: Path
) -> None:
    for n in range(5):
        keep(folder, f"4File{n}", mail())
    cut = folder / "4File0-msg.gz"
    cut.write_bytes(cut.read_bytes()[:-9])
    (folder / "4File1-msg.gz").write_bytes(b"no gzip")
    (folder / "4File2-msg.gz").unlink()
    (folder / "4File3-meta.gz").write_bytes(b"no gzip either")
    (folder / "README").write_text("x")
    keep(folder, "4Empty", b"")
    before = sorted(path.name for path in folder.iterdir())
    result = run("import-original", "--dir", str(folder))
    assert result.exit_code == 1
    assert "imported 2 messages" in result.output
    assert "NOT IMPORTED: 4" in result.output
    assert "4File2: metadata without a message" in result.output
    assert "4Empty: the message has 0 bytes" in result.output
    assert one(store, "4File3").flags >= {Flag.RECIPIENTS, Flag.SYMBOLS, Flag.SENDER}
    assert sorted(path.name for path in folder.iterdir()) == before


def test_a_mail_that_looks_like_an_export_stays_a_mail(run: Run, store: Store, folder: Path) -> None:
    data = json.dumps({"qid": "x", "action": "reject", "score": 1, "rcpt": ["mallory@example.org"]}).encode()
    keep(folder, "4Json", data)
    run("import-original", "--dir", str(folder))
    assert b"".join(store.messages.body(one(store, "4Json").id)) == data


def test_mail_from_the_tables_is_held(run: Run, store: Store, postgres_dsn: str) -> None:
    text = mail().decode() + "Grüße\r\n"
    local = YESTERDAY.astimezone()
    with psycopg.connect(postgres_dsn, autocommit=True) as connection:
        connection.execute(TABLES)
        for n in range(3):
            connection.execute(
                "insert into meta values (%s, %s::timestamptz::timestamp, 17.5, '198.51.100.9', 'reject', %s, %s)",
                [f"4Sql{n}", local, SENDER.encode(), json.dumps(SYMBOLS)],
            )
        connection.execute("insert into msg values ('4Sql0', %s), ('4Sql1', %s)", [text, mail().decode()])
    result = run("import-original", "--dsn", postgres_dsn)
    assert result.exit_code == 1
    assert "imported 2 messages" in result.output
    assert "2 have no recipients" in result.output
    assert "DKIM" in result.output
    assert "4Sql2: metadata without a message" in result.output
    message = one(store, "4Sql0")
    assert b"".join(store.messages.body(message.id)) == text.encode()
    assert (message.envelope_sender, message.score, message.action) == (SENDER, 17.5, "reject")
    assert message.client_ip == "198.51.100.9"
    assert message.held_at == YESTERDAY
    assert [s.name for s in message.symbols] == ["BAYES_SPAM", "R_SPF_FAIL"]
    assert Flag.SYMBOLS not in message.flags
    assert "imported 0 messages, 2 were already held" in run("import-original", "--dsn", postgres_dsn).output
    assert len(store.deliveries.search(Filter(recipient=""), 10).deliveries) == 2


@pytest.mark.parametrize("columns", ["qid text", "qid text, rcpt text, subject text, note int"])
def test_tables_with_fewer_or_more_columns_are_accepted(
    run: Run, store: Store, postgres_dsn: str, columns: str
) -> None:
    with psycopg.connect(postgres_dsn, autocommit=True) as connection:
        connection.execute(f"create table meta ({columns}); create table msg (qid text, content bytea)")
        connection.execute("insert into meta (qid) values ('4Odd')")
        connection.execute("insert into msg values ('4Odd', %s)", [b"Subject: \xff\r\n\r\nx"])
        if "rcpt" in columns:
            connection.execute("update meta set rcpt = %s, subject = 'Hi', note = 1", [json.dumps([ALICE])])
    assert run("import-original", "--dsn", postgres_dsn).exit_code == 0
    message = one(store, "4Odd")
    assert b"".join(store.messages.body(message.id)) == b"Subject: \xff\r\n\r\nx"
    assert store.deliveries.of_message(message.id)[0].recipient == (ALICE if "rcpt" in columns else "")


def test_bad_calls_are_explained(run: Run, folder: Path, postgres_dsn: str) -> None:
    run("init")
    for words, expected in (
        ([], "either --dir DIR or --dsn DSN"),
        (["--dir", str(folder), "--dsn", postgres_dsn], "either --dir DIR or --dsn DSN"),
        (["--dir", str(folder)], "has no files QID-meta.gz"),
        (["--dir", str(folder / "nowhere")], "cannot be read"),
        (["--dsn", postgres_dsn], "no table meta"),
        (["--dsn", "postgresql://me:hush-hush@127.0.0.1:1/nowhere"], "--dsn: the database cannot be used"),
        (["--dsn", "postgresql://me:hush/hush@host"], "--dsn"),
    ):
        result = run("import-original", *words)
        assert result.exit_code in (1, 2)
        assert expected in result.output
        assert "hush" not in result.output
