"""Databases for tests: created from a template, emptied after a test, and reused while their schema is unchanged.

Creating and dropping a database takes 100 ms, which is longer than most tests; emptying one takes 5 ms.
"""

from __future__ import annotations

import itertools
import time
from urllib.parse import urlsplit, urlunsplit

import psycopg
from psycopg import sql

_GROWTH_MAX_BYTES = 1 << 20  # larger databases are dropped, so that no test depends on an earlier one

# Catalogs and tables that a test can change in addition to mail. A changed row has a different transaction in xmin.
_CATALOGS = {
    "pg_class": "relnamespace = 'public'::regnamespace",
    "pg_attribute": "attrelid in (select oid from pg_class where relnamespace = 'public'::regnamespace)",
    "pg_index": "true",
    "pg_proc": "pronamespace = 'public'::regnamespace",
    "pg_statistic": "true",
    "pg_namespace": "nspname !~ '^pg_(temp|toast)'",
    "pg_db_role_setting": "setdatabase = (select oid from pg_database where datname = current_database())",
}
_FINGERPRINT = "select concat_ws(' ', {}), (select sum(pg_relation_size(oid)) from pg_class where {})".format(
    ", ".join(
        f"(select count(*) || ':' || max(xmin::text) from {name} where {rows})" for name, rows in _CATALOGS.items()
    ),
    _CATALOGS["pg_class"],
)
_TABLES = f"select oid::regclass::text from pg_class where {_CATALOGS['pg_class']} and not relispartition and relkind"

_END_OTHER_SESSIONS = (
    "select pg_terminate_backend(pid) from pg_stat_activity"
    " where datname = current_database() and pid <> pg_backend_pid()"
)


class Databases:
    """The databases with the schema in one server."""

    def __init__(self, server: str, template: str) -> None:
        """``server``: the URL of one of its databases, with a role that may create databases."""
        self._server, self._template = server, template
        self._numbers = itertools.count(1)
        self._free: list[str] = []
        self._connections: dict[str, psycopg.Connection] = {}  # kept open: a new one reads the catalogs for 20 ms
        self._fresh: tuple[str, int] | None = None
        self._settings: list[tuple[str, str]] = []

    def url(self, name: str) -> str:
        """Return the URL of a database."""
        return urlunsplit(urlsplit(self._server)._replace(path=f"/{name}"))

    def acquire(self) -> str:
        """Return the name of a database without mail."""
        if self._free:
            return self._free.pop()
        name = f"{self._template}_{next(self._numbers)}"
        self._execute("CREATE DATABASE {} TEMPLATE {}", name, self._template)
        connection = psycopg.connect(self.url(name), autocommit=True, options="-c lock_timeout=5s")
        self._connections[name] = connection
        if self._fresh is None:
            self._fresh = self._measure(name)
            self._settings = connection.execute("select name, value from setting").fetchall()
        return name

    def release(self, name: str) -> None:
        """Empty a database for the next test, or drop it if more than mail changed."""
        try:
            is_empty = self._empty(name)
        except psycopg.Error:  # it is read-only, a table is missing, the server was restarted …
            is_empty = False
        if is_empty:
            self._free.append(name)
        else:
            self._connections.pop(name).close()
            self._execute("DROP DATABASE IF EXISTS {} WITH (FORCE)", name)

    def close(self) -> None:
        """Drop all databases that are not in use."""
        for name in self._free:
            self._connections.pop(name).close()
            self._execute("DROP DATABASE {} WITH (FORCE)", name)

    def _empty(self, name: str) -> bool:
        connection = self._connections[name]
        # Connections that a test left open end here, as they would if the database were dropped. Given a time-out,
        # pg_terminate_backend would look for the end only every 100 ms.
        while connection.execute(_END_OTHER_SESSIONS).rowcount:
            time.sleep(0.001)
        fresh, now = self._fresh, self._measure(name)
        if fresh is None or now[0] != fresh[0] or now[1] > fresh[1] + _GROWTH_MAX_BYTES:
            return False
        tables = [table for (table,) in connection.execute(f"{_TABLES} in ('r', 'p')")]
        sequences = [sequence for (sequence,) in connection.execute(f"{_TABLES} = 'S'")]
        deletes = [f"delete from {table}" for table in tables]
        resets = [f"select setval('{sequence}', 1, false)" for sequence in sequences]
        connection.execute(";".join([*deletes, *resets]))
        for setting in self._settings:
            connection.execute("insert into setting (name, value) values (%s, %s)", setting)
        return True

    def _measure(self, name: str) -> tuple[str, int]:
        """Return a fingerprint of everything but mail, and the size of all tables and indexes in bytes."""
        ((fingerprint, size_bytes),) = self._connections[name].execute(_FINGERPRINT).fetchall()
        return fingerprint, size_bytes

    def _execute(self, statement: str, *names: str) -> None:
        with psycopg.connect(self._server, autocommit=True) as connection:
            connection.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))
