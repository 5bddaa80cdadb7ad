"""Unusable stores: commands and the service report each one in a sentence with what to do, and change nothing."""

from __future__ import annotations

import gzip
import http.client
import os
import shutil
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import click
import psycopg
import pytest
from click.testing import CliRunner
from pytest import mark, param

from digest.__main__ import main as digest_main
from portal.assemble import assemble
from portal.cli import main
from portal.keys import read_keys
from portal.model.errors import StoreUnusable
from portal.stores import open_store
from tests.builders import hold
from tests.conftest import MakeSettings
from tests.faults.serving import BIN, ROOT
from tests.faults.standby import Server, prepare, program
from tests.ports import free_port

Failing = Callable[..., str]


@pytest.fixture
def failing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Failing:
    """``failing(store_url, "list")`` runs a command that must fail and returns its output."""
    (tmp_path / "quarantine.toml").touch()
    monkeypatch.setenv("QUARANTINE_CONFIG", str(tmp_path / "quarantine.toml"))
    monkeypatch.setenv("QUARANTINE_LINKS__KEYS_FILE", str(tmp_path / "links.keys"))
    read_keys(tmp_path / "links.keys", create=True)

    def call(store_url: str, *words: str) -> str:
        monkeypatch.setenv("QUARANTINE_STORE__URL", store_url)
        result = CliRunner().invoke(main, words)
        assert isinstance(result.exception, SystemExit), (words, result.exception, result.output)
        assert result.exit_code in (1, 2)
        assert "Traceback" not in result.output
        assert "hush-hush" not in result.output
        return result.output

    return call


@pytest.fixture(scope="module")
def password_server() -> Iterator[str]:
    """HOST:PORT of a server that requires passwords; the one of user postgres is hush-hush."""
    with tempfile.TemporaryDirectory(prefix="qpg-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        prepare(folder)
        (folder / "password").write_text("hush-hush\n")
        if os.geteuid() == 0:
            shutil.chown(folder / "password", "pgserver")
        program(
            "initdb",
            "--auth=scram-sha-256",
            f"--pwfile={folder}/password",
            "--username=postgres",
            "-D",
            folder / "data",
        )
        with (folder / "data" / "postgresql.conf").open("a") as file:
            file.write(f"listen_addresses = '127.0.0.1'\nunix_socket_directories = '{folder}'\n")
        server = Server(folder / "data", free_port())
        server.start()
        address = f"127.0.0.1:{server.port}"
        with psycopg.connect(f"postgresql://postgres:hush-hush@{address}/postgres", autocommit=True) as connection:
            connection.execute("create role weak login password 'hush-hush'")
            connection.execute("create role other superuser login password 'hush-hush'")
            connection.execute("create database elsewhere")
            connection.execute("create database empty")
            connection.execute("create database newer")
        open_store(f"postgresql://postgres:hush-hush@{address}/postgres", create=True).close()
        open_store(f"postgresql://postgres:hush-hush@{address}/newer", create=True).close()
        with psycopg.connect(f"postgresql://postgres:hush-hush@{address}/newer", autocommit=True) as connection:
            connection.execute("update setting set value = '999' where name = 'schema_version'")
        with psycopg.connect(f"postgresql://postgres:hush-hush@{address}/elsewhere", autocommit=True) as connection:
            connection.execute("create table setting (key text)")
            connection.execute("create table message (text text)")
        yield address
        server.stop()


@pytest.mark.parametrize(
    ("user", "database", "sentences"),
    [
        ("postgres:wrong", "postgres", ["password authentication failed", "check store.url"]),
        ("postgres", "postgres", ["no password supplied", "check store.url"]),
        ("postgres:hush-hush", "nowhere", ['"nowhere" does not exist', "check store.url"]),
        ("postgres:hush-hush", "elsewhere", ["tables of another program", "a separate database"]),
        ("weak:hush-hush", "postgres", ["permission denied", "make it the database's owner"]),
    ],
)
def test_a_database_that_cannot_be_used(
    failing: Failing, password_server: str, tmp_path: Path, user: str, database: str, sentences: list[str]
) -> None:
    url = f"postgresql://{user}@{password_server}/{database}"
    open_store(f"files://{tmp_path}/store").close()
    for words in (["check"], ["list"], ["init"], ["purge"], ["copy", f"files://{tmp_path}/store", url]):
        output = failing(url, *words)
        for sentence in sentences:
            assert sentence in output, (words, output)


@pytest.mark.parametrize("host", ["db..example.org", "d" * 64 + ".example.org"])
def test_an_invalid_database_host(failing: Failing, tmp_path: Path, host: str) -> None:
    url = f"postgresql://quarantine:hush-hush@{host}/q"
    open_store(f"files://{tmp_path}/store").close()
    for words in (["check"], ["list"], ["init"], ["copy", f"files://{tmp_path}/store", url]):
        assert "store.url: invalid host name" in failing(url, *words)
    assert "--dsn: invalid host name" in failing(f"files://{tmp_path}/store", "import-original", "--dsn", url)


def test_a_database_of_something_else_stays_as_it_was(failing: Failing, password_server: str) -> None:
    url = f"postgresql://postgres:hush-hush@{password_server}/elsewhere"
    failing(url, "init")
    with psycopg.connect(url) as connection:
        tables = connection.execute("select tablename from pg_tables where schemaname = 'public' order by 1").fetchall()
    assert tables == [("message",), ("setting",)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A file store with one mail."""
    store = open_store(f"files://{tmp_path}/store")
    hold(store)
    store.close()
    return tmp_path / "store"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def read_only(folder: Path) -> Iterator[Path]:
    """Make a folder read-only by a mount, or by its mode if this user may not mount."""
    if os.geteuid():
        folder.chmod(0o500)
        yield folder
        folder.chmod(0o700)
        return
    subprocess.run(["mount", "--bind", str(folder), str(folder)], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(folder)], check=True)
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_read_only_file_store(failing: Failing, read_only: Path, tmp_path: Path) -> None:
    url, before = f"files://{read_only}", contents(read_only)
    open_store(f"files://{tmp_path}/other").close()
    copies = (["copy", url, f"files://{tmp_path}/new"], ["copy", f"files://{tmp_path}/other", url])
    for words in (["check"], ["list"], ["init"], ["purge"], ["reindex"], *copies):
        output = failing(url, *words)
        assert "check owner, permissions and mount" in output, (words, output)
    assert contents(read_only) == before


def test_a_disk_low_on_inodes_is_reported(failing: Failing, tmp_path: Path) -> None:
    """With small messages, inodes run out before space. Without permission to mount, only look for the finding."""
    if os.geteuid():
        open_store(f"files://{tmp_path}/store").close()
        assert "inodes: " in failing(f"files://{tmp_path}/store", "check")
        return
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m,nr_inodes=1000", "quarantine-test", disk], check=True)
    try:
        open_store(f"files://{disk}/store").close()
        assert "ok      inodes: " in failing(f"files://{disk}/store", "check")
        for number in range(950):
            (disk / str(number)).touch()
        output = failing(f"files://{disk}/store", "check")
        assert "PROBLEM inodes: " in output and "ok      disk: " in output
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_file_store_with_other_things_in_the_place_of_its_own(failing: Failing, folder: Path) -> None:
    url = f"files://{folder}"
    for name, words in (
        ("quarantine.sqlite3", "move away files that do not belong to the store"),
        ("lock", "move away files that do not belong to the store"),
        ("mail", "is in the way of a folder"),
        ("tmp", "is in the way of a folder"),
    ):
        aside = folder / "aside"
        (folder / name).rename(aside)
        if aside.is_dir():
            (folder / name).write_text("a thesis")
        else:
            (folder / name).mkdir()
        for command in ("check", "list", "init", "purge"):
            output = failing(url, command)
            assert words in output, (name, command, output)
            assert name in output
        (folder / name).unlink() if aside.is_dir() else (folder / name).rmdir()
        aside.rename(folder / name)
    assert len(contents(folder / "mail")) == 1


@pytest.mark.parametrize("instead", ["a folder", "a link to nowhere", "a link to a folder", "a pipe", "rubbish"])
def test_a_mail_file_with_something_else_in_its_place(
    failing: Failing, folder: Path, instead: str, tmp_path: Path
) -> None:
    """The message is reported as missing or damaged; the other file is neither followed nor removed."""
    path = next(folder.rglob("*.eml.zst"))
    id = path.name.removesuffix(".eml.zst")
    path.rename(tmp_path / "aside")
    if instead == "a folder":
        path.mkdir()
    elif instead == "a pipe":
        os.mkfifo(path)
    elif instead == "rubbish":
        path.write_bytes(b"rubbish" * 100)
    else:
        path.symlink_to(tmp_path if instead == "a link to a folder" else tmp_path / "nowhere")
    url = f"files://{folder}"
    assert id in failing(url, "print", id)
    assert "NOT COPIED" in failing(url, "copy", url, f"files://{tmp_path}/new")
    assert "UNREADABLE (kept on disk, no longer in the quarantine)" in failing(url, "reindex")
    assert os.path.lexists(path)


@pytest.mark.parametrize("spelled", ["{0}/", "{0}/../store", "{0}/mail/..", "{1}/link"])
def test_a_file_store_is_not_copied_onto_itself_however_it_is_spelled(
    failing: Failing, folder: Path, tmp_path: Path, spelled: str
) -> None:
    (tmp_path / "link").symlink_to(folder)
    before = contents(folder / "mail")
    url = f"files://{folder}"
    assert "same store" in failing(url, "copy", url, "files://" + spelled.format(folder, tmp_path))
    assert contents(folder / "mail") == before
    assert not (folder / "mail" / "mail").exists()


@pytest.mark.parametrize("spelled", ["localhost", "the socket", "two hosts", "another user", "keywords"])
def test_a_database_is_not_copied_onto_itself_however_it_is_spelled(
    failing: Failing, password_server: str, spelled: str
) -> None:
    port = int(password_server.partition(":")[2])
    server = next(Path(tempfile.gettempdir()).glob(f"qpg-*/.s.PGSQL.{port}")).parent
    other = {
        "localhost": f"postgresql://postgres:hush-hush@localhost:{port}/postgres",
        "the socket": f"postgresql://postgres:hush-hush@/postgres?host={server}&port={port}",
        "two hosts": f"postgresql://postgres:hush-hush@127.0.0.1:1,{password_server}/postgres",
        "another user": f"postgresql://other:hush-hush@{password_server}/postgres",
        "keywords": f"postgres://{password_server}/?user=postgres&password=hush-hush&dbname=postgres",
    }[spelled]
    url = f"postgresql://postgres:hush-hush@{password_server}/postgres"
    store = open_store(url)
    held = hold(store)
    for source, target in ((url, other), (other, url)):
        output = failing(url, "copy", source, target)
        assert "FROM and TO are the same store: nothing was copied; use another store as TO" in output
    assert held.id in store.messages.ids(None, 1000)
    store.close()


class Started:
    """``uwsgi --ini uwsgi.ini`` with one worker on a store, until it exits or is stopped."""

    def __init__(self, store_url: str, folder: Path) -> None:
        self.log, self.port = folder / "uwsgi.log", free_port()
        (folder / "quarantine.toml").touch()
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [BIN / "uwsgi", "--ini", "uwsgi.ini", "--processes", "1", "--http-socket", f"127.0.0.1:{self.port}"],
                cwd=ROOT,
                env={
                    "PATH": f"{BIN}:{os.environ['PATH']}",
                    "QUARANTINE_CONFIG": str(folder / "quarantine.toml"),
                    "QUARANTINE_SOCKET": f"{folder}/socket",
                    "QUARANTINE_STORE__URL": store_url,
                    "QUARANTINE_LINKS__KEYS_FILE": f"{folder}/links.keys",
                },
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def wait_for(self, words: str) -> None:
        """Return once these words are in the log."""
        deadline = time.monotonic() + 60
        while words not in self.log.read_text():
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)

    def health(self) -> int:
        """Return the status of /quarantine/healthz."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)) as connection:
            connection.request("GET", "/quarantine/healthz")
            return connection.getresponse().status

    def stop(self) -> None:
        """Stop the service and return when it has ended."""
        self.process.terminate()
        self.process.wait(90)


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[[str], Started]]:
    """``started(store_url)`` starts the service on a store and stops it after the test."""
    running = []

    def start(store_url: str) -> Started:
        running.append(Started(store_url, tmp_path))
        return running[-1]

    yield start
    for each in running:
        each.stop()


@pytest.mark.parametrize(
    ("store", "sentence"),
    [
        param("empty", "the database has no quarantine tables yet: run `quarantine init`", marks=mark.system),
        param("newer", "the database has schema version 999, this program knows", marks=mark.system),
        param("elsewhere", "the database has tables of another program with the same names", marks=mark.system),
        param("a newer folder", "it was used by a newer program, upgrade this one", marks=mark.system),
        param("a damaged folder", "stop the programs and run `quarantine reindex`", marks=mark.system),
        ("a file", "is in the way of a folder: name another one"),
    ],
)
def test_the_service_ends_with_a_sentence_on_a_store_that_is_not_its_own(
    started: Callable[[str], Started], password_server: str, folder: Path, store: str, sentence: str
) -> None:
    url = f"files://{folder}"
    if store == "a newer folder":
        with sqlite3.connect(folder / "quarantine.sqlite3") as connection:
            connection.execute("pragma user_version = 999")
    elif store == "a damaged folder":
        (folder / "quarantine.sqlite3").write_bytes(b"rubbish" * 1000)
    elif store == "a file":
        shutil.rmtree(folder)
        folder.write_text("a thesis")
    else:
        url = f"postgresql://postgres:hush-hush@{password_server}/{store}"
    service = started(url)
    assert service.process.wait(60) != 0
    log = service.log.read_text()
    assert sentence in log.partition("not started: ")[2].partition("\n")[0]
    assert "Traceback" not in log and "hush-hush" not in log


@pytest.mark.parametrize(
    ("store", "sentence"),
    [
        ("postgresql://127.0.0.1:1/nowhere", "check store.url – host, port, user, password, database – and that"),
        param("postgresql://postgres:wrong@{0}/postgres", "password authentication failed", marks=mark.system),
        param("postgresql://weak:hush-hush@{0}/postgres", "make it the database's owner", marks=mark.system),
        ("files://{1}", "check owner, permissions and mount"),
    ],
)
def test_the_service_waits_with_a_sentence_for_a_store_that_may_recover(
    started: Callable[[str], Started], password_server: str, read_only: Path, store: str, sentence: str
) -> None:
    """It keeps answering 503, so mail is deferred. The log and the health check say what to do."""
    service = started(store.format(password_server, read_only))
    service.wait_for("WSGI app 0")
    assert service.health() == 503
    service.wait_for("still without the store")
    assert service.process.poll() is None
    log = service.log.read_text()
    assert sentence in log.partition("started without the store: ")[2]
    assert "Traceback" not in log and "hush-hush" not in log


# Further arguments of each command. None: it opens no store, or its purpose is to create one.
WORDS: dict[str, tuple[str, ...] | None] = {
    "audit": (),
    "check": (),
    "copy": None,
    "confirm-spam": ("4Abc1",),
    "delete": ("4Abc1",),
    "forget": ("alice@example.org", "--yes"),
    "digests": ("stop", "alice@example.org"),
    "recipient": ("alice@example.org",),
    "import-original": ("--dir", "original"),
    "init": None,
    "jobs": ("list",),
    "ldap-aliases": None,  # reads no store
    "list": (),
    "domains": ("list",),
    "rules": ("list",),
    "meta": ("4Abc1",),
    "print": ("4Abc1",),
    "stats": (),
    "purge": (),
    "reannounce": ("4Abc1",),
    "refuse": ("4Abc1", "--reason", "no"),
    "reindex": (),
    "release": ("4Abc1",),
    "restore": ("4Abc1",),
    "scan": ("4Abc1",),
    "staff": ("list",),
    "settings": None,
    "token": ("list",),
    "unlearn": ("4Abc1",),
}
DIGEST_WORDS: dict[str, tuple[str, ...] | None] = {"once": (), "run": None}  # `run` is the service


def test_every_command_is_here() -> None:
    assert set(WORDS) == set(main.list_commands(click.Context(main)))
    assert set(DIGEST_WORDS) == set(digest_main.commands)


@pytest.mark.parametrize("command", [name for name, words in (WORDS | DIGEST_WORDS).items() if words is not None])
def test_a_command_in_the_wrong_folder_makes_nothing(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "original").mkdir()
    (tmp_path / "original" / "4Abc1-msg.gz").write_bytes(gzip.compress(b"Subject: x\r\n\r\n"))
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    program, words = (main, WORDS[command]) if command in WORDS else (digest_main, DIGEST_WORDS[command])
    result = CliRunner().invoke(program, [command, *(words or ())])
    assert isinstance(result.exception, SystemExit), (result.exception, result.output)
    assert result.exit_code == (1 if command == "check" else 2)
    assert f"{tmp_path}/var/quarantine is no quarantine store" in result.output
    assert "quarantine init" in result.output
    assert sorted(tmp_path.rglob("*")) == before


def test_a_command_makes_no_key(failing: Failing, tmp_path: Path) -> None:
    open_store(f"files://{tmp_path}/store").close()
    (tmp_path / "links.keys").unlink()
    sentence = failing(f"files://{tmp_path}/store", "list")
    assert "links.keys does not exist" in sentence
    assert "quarantine init" in sentence
    assert not (tmp_path / "links.keys").exists()


@pytest.mark.parametrize("command", ["check", "list", "purge"])
def test_a_command_makes_no_database_and_upgrades_none(failing: Failing, tmp_path: Path, command: str) -> None:
    url, database = f"files://{tmp_path}/store", tmp_path / "store" / "quarantine.sqlite3"
    store = open_store(url)
    hold(store)
    store.close()
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("pragma user_version = 4")
    output = failing(url, command)
    assert "schema version 4" in output
    assert "quarantine init" in output
    with closing(sqlite3.connect(database)) as connection:
        assert connection.execute("pragma user_version").fetchone() == (4,)
    for path in database.parent.glob("quarantine.sqlite3*"):
        path.unlink()
    before = sorted(database.parent.rglob("*"))
    output = failing(url, command)
    assert "quarantine.sqlite3 is missing" in output
    assert "quarantine reindex" in output
    assert sorted(database.parent.rglob("*")) == before


def notes(store_url: str) -> list[tuple[str, str]]:
    """Return the notes of a store, without the note about write access."""
    statement = "select name, value from setting where name not like 'store.%' order by name"
    if store_url.startswith("files:"):
        with closing(sqlite3.connect(Path(store_url.removeprefix("files://"), "quarantine.sqlite3"))) as connection:
            return connection.execute(statement).fetchall()
    with psycopg.connect(store_url) as connection:
        return connection.execute(statement).fetchall()


def test_check_changes_nothing(store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "site" / "templates").mkdir(parents=True)
    (tmp_path / "virtual").write_text("info@example.org alice@example.org\n")
    config = tmp_path / "quarantine.toml"
    config.write_text(
        f'store.url = "{store_url}"\nlocal_domains = ["example.org"]\nlinks.keys_file = "{tmp_path}/links.keys"\n'
        f'site.folder = "{tmp_path}/site"\npeople.alias_file = "{tmp_path}/virtual"\n'
        'mail.from_address = "quarantine@example.org"\n'
    )
    monkeypatch.setenv("QUARANTINE_CONFIG", str(config))
    store = open_store(store_url)
    hold(store)
    store.close()
    (tmp_path / "links.keys").write_text("k" * 40 + "\n")
    (tmp_path / "links.keys").chmod(0o600)
    paths, kept = sorted(tmp_path.rglob("*")), notes(store_url)
    result = CliRunner().invoke(main, ["check"])
    assert "Traceback" not in result.output
    assert "ok      store: can be written to" in result.output
    assert "ok      link keys: 1 in" in result.output
    assert sorted(tmp_path.rglob("*")) == paths
    assert notes(store_url) == kept


def test_a_store_that_fails_to_open_is_closed(store_url: str, make_settings: MakeSettings, tmp_path: Path) -> None:
    """A worker that waits for its store opens it with each request; a later step may fail as well."""
    assemble(make_settings(store_url), create=True).store.close()
    (tmp_path / "links.keys").write_text("k" * 40 + "\n")
    settings, descriptors = make_settings(store_url), Path("/proc/self/fd")
    before = len(list(descriptors.iterdir()))
    for _ in range(10):
        with pytest.raises(StoreUnusable, match=r"these link keys are not the ones"):
            assemble(settings, create=True)
    assert len(list(descriptors.iterdir())) <= before


def test_the_service_leaves_other_files_beside_a_file_store_alone(
    started: Callable[[str], Started], folder: Path
) -> None:
    for path in (folder / "thesis.txt", folder / "mail" / "2026" / "notes.txt", folder / "mail" / "old" / "x.eml.zst"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("a thesis")
    service = started(f"files://{folder}")
    service.wait_for("WSGI app 0")
    assert service.health() == 200  # a worker that is stopped before its threads start takes 60 s
    service.stop()
    left = [path for path in contents(folder).values() if path == b"a thesis"]
    assert len(left) == 3
