"""mailcow's receiver of quarantined mail (pipe.php) with MariaDB, PHP-FPM and Redis, from a checkout of mailcow.

Its own schema, settings of MariaDB and of PHP, and script. Only host names, ports and passwords are changed.
"""

from __future__ import annotations

import getpass
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import load, nginx
from bench.rig import free_port, own_folder, wait_for_port, wait_until

PROGRAMS = ("nginx", "php", "php-fpm8.2", "mariadbd", "mariadb-install-db", "mariadb", "redis-server", "redis-cli")
EACH = 20  # mailcow's default of messages kept for one recipient
_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin"
_PASSWORD = "bench"


def missing() -> list[str]:
    """Return the programs that are not installed (Debian: php8.2-fpm, -mysql, -redis, -mbstring, mariadb-server)."""
    return [program for program in PROGRAMS if not shutil.which(program, path=_PATH)]


@dataclass(frozen=True)
class Mailcow:
    """A running receiver."""

    port: int
    components: dict[str, int]  # process ids by name
    database: Path  # MariaDB's socket

    def hold(self, count: int) -> None:
        """Insert held messages like those of the posts, `EACH` for one recipient."""
        text = load.mail_head(0) + load.words(load.MAIL_BYTES, 1)
        symbols = load.METADATA["symbols"]
        self._run(
            "insert into quarantine (qid, subject, score, sender, rcpt, symbols, user, ip, msg, action, fuzzy_hashes)"
            f" select concat('4F', seq), concat('Offer ', seq), 21.5, 'promo@example.net',"
            f" concat('person', seq % {max(1, count // EACH)}, '@example.org'), '{symbols}', 'unknown',"
            f" '198.51.100.7', x'{text.hex()}', 'reject', '[]' from seq_1_to_{count}"
        )

    def held(self) -> int:
        """Return the number of held messages."""
        return int(self._run("select count(*) from quarantine"))

    def _run(self, sql: str) -> str:
        command = ["mariadb", "--no-defaults", "-uroot", f"--socket={self.database}", "-N", "mailcow"]
        done = subprocess.run(command, input=sql, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr[:500])
        return done.stdout


@contextmanager
def running(checkout: Path) -> Iterator[Mailcow]:
    """Run it behind Nginx, with the mailboxes alice@example.org and bob@example.org."""
    with ExitStack() as stack:
        home = stack.enter_context(own_folder())
        redis_port = free_port()
        redis = stack.enter_context(
            _process(["redis-server", "--port", str(redis_port), "--requirepass", _PASSWORD, "--save", ""], home)
        )
        wait_for_port(redis_port, redis, home / "redis-server.log")
        for command in (
            ["set", "Q_MAX_SIZE", "100"],
            ["set", "Q_RETENTION_SIZE", str(EACH)],
            ["set", "Q_EXCLUDE_DOMAINS", "[]"],
            ["hset", "DOMAIN_MAP", "example.org", "1"],
        ):
            subprocess.run(
                ["redis-cli", "-p", str(redis_port), "-a", _PASSWORD, *command], check=True, capture_output=True
            )
        database = _mariadb(stack, checkout, home)
        (home / "vars.inc.php").write_text(
            f"<?php $database_type = 'mysql'; $database_sock = '{home}/mysql.sock'; $database_name = 'mailcow';"
            " $database_user = 'root'; $database_pass = '';\n"
        )
        script = (checkout / "data/conf/rspamd/meta_exporter/pipe.php").read_text("utf-8")
        adapted, changes = re.subn(r"'redis-mailcow', 6379", f"'127.0.0.1', {redis_port}", script)
        if changes != 1:
            raise RuntimeError("this pipe.php connects to Redis in another way")
        (home / "pipe.php").write_text(adapted, "utf-8")
        fpm = _php(stack, checkout, home)
        port = free_port()
        front = stack.enter_context(
            nginx.running(
                port,
                f"server {{ listen 127.0.0.1:{port}; client_max_body_size 80m; location / {{\n"
                f"include /etc/nginx/fastcgi_params; fastcgi_param SCRIPT_FILENAME {home}/pipe.php;\n"
                f"fastcgi_read_timeout 120s; fastcgi_pass unix:{home}/php.sock; }} }}\n",
            )
        )
        components = {"Nginx": front.master, "PHP": fpm.pid, "MariaDB": database.pid, "Redis": redis.pid}
        mailcow = Mailcow(port, components, home / "mysql.sock")
        mailcow._run(
            "set sql_mode = ''; set foreign_key_checks = 0;"
            "insert into mailbox (username, active) values ('alice@example.org', 1), ('bob@example.org', 1);"
            "insert into alias (address, goto, active)"
            " values ('alice@example.org', 'alice@example.org', 1), ('bob@example.org', 'bob@example.org', 1)"
        )
        yield mailcow


def _mariadb(stack: ExitStack, checkout: Path, home: Path) -> subprocess.Popen[bytes]:
    data = ["--user=" + getpass.getuser(), f"--datadir={home}/mysql"]
    subprocess.run(
        ["mariadb-install-db", "--no-defaults", "--auth-root-authentication-method=normal", *data],
        check=True, capture_output=True,
    )  # fmt: skip
    settings = home / "my.cnf"
    settings.write_bytes((checkout / "data/conf/mysql/my.cnf").read_bytes())
    command = ["mariadbd", f"--defaults-file={settings}", *data, f"--socket={home}/mysql.sock", "--skip-networking"]
    database = stack.enter_context(_process(command, home))
    wait_until((home / "mysql.sock").exists, database, home / "mariadbd.log")
    make = ["mariadb", "--no-defaults", "-uroot", f"--socket={home}/mysql.sock", "-e", "create database mailcow"]
    subprocess.run(make, check=True, capture_output=True)
    # Run by itself, this file makes the tables. What follows that needs the rest of mailcow; its errors do not matter.
    variables = {"type": "mysql", "sock": f"{home}/mysql.sock", "name": "mailcow", "user": "root", "pass": ""}
    make_tables = "".join(f"$database_{name} = '{value}'; " for name, value in variables.items())
    make_tables += "class Memcached { function addServer() {} function flush() {} } "
    make_tables += f"require '{checkout.resolve()}/data/web/inc/init_db.inc.php';"
    subprocess.run(["php", "-r", make_tables], capture_output=True, check=False)
    return database


def _php(stack: ExitStack, checkout: Path, home: Path) -> subprocess.Popen[bytes]:
    user = getpass.getuser()
    (home / "php.conf").write_text(
        f"[global]\nerror_log = {home}/php-fpm.log\n[mailcow]\nuser = {user}\nlisten = {home}/php.sock\n"
        # The pool of the receiver in mailcow's pools.conf.
        "pm = dynamic\npm.max_children = 15\npm.start_servers = 2\npm.min_spare_servers = 2\npm.max_spare_servers = 4\n"
        "clear_env = no\nphp_admin_value[memory_limit] = 256M\n"
    )
    command = ["php-fpm8.2", "--nodaemonize", "--allow-to-run-as-root", "--fpm-config", str(home / "php.conf")]
    environment = {"REDISPASS": _PASSWORD, "PHP_INI_SCAN_DIR": f":{checkout.resolve()}/data/conf/phpfpm/php-conf.d"}
    fpm = stack.enter_context(_process(command, home, environment))
    wait_until((home / "php.sock").exists, fpm, home / "php-fpm8.2.log")
    return fpm


@contextmanager
def _process(
    command: Sequence[str], home: Path, environment: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    with (home / f"{command[0]}.log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=home, env=os.environ | {"PATH": _PATH} | (environment or {}), stdout=log, stderr=log
        )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)
