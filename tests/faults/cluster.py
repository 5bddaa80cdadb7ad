"""Three database hosts, each a network namespace with etcd, Patroni and PostgreSQL of Debian 12, as deploy/patroni sets
them up: its files are used unchanged but for addresses, ports, paths and passwords. Needs root."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import tempfile
import tomllib
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psycopg

from tests.docs.pages import parts_of
from tests.paths import ROOT
from tests.ports import free_port
from tests.system.services import connects, process, wait_for

FILES = ROOT / "deploy" / "patroni"
TTL_SECONDS = int(re.findall(r"^ +ttl: (\d+)$", (FILES / "patroni.yml").read_text(), re.MULTILINE)[0])
_PREFIX = "qdb"  # of namespaces and devices, followed by the pid of the test and the host's number
_PASSWORD = "secret"


@dataclass
class Member:
    """A host as Patroni sees it."""

    name: str
    role: str
    state: str
    timeline: int


class Host:
    """A database host: db1, db2 or db3."""

    def __init__(self, number: int, network: str, folder: Path) -> None:
        self.name, self.address = f"db{number}", f"{network}.1{number}"
        self.namespace = self.device = f"{_PREFIX}{os.getpid()}-{number}"
        self.folder = folder / self.name
        self._network = network
        self._running: list[subprocess.Popen[bytes]] = []

    def localized(self, text: str) -> str:
        """Return a shipped file or a command of the documentation with the addresses and paths of this host."""
        for old, new in {
            "10.0.0.": f"{self._network}.",
            "/etc/patroni/config.yml": f"{self.folder}/patroni.yml",
            "/var/lib/postgresql/": f"{self.folder}/",
            "/var/run/postgresql": f"{self.folder}",
            "/var/lib/etcd/": f"{self.folder}/memory/",
        }.items():
            text = text.replace(old, new)
        return re.sub(r"CHANGE-ME(-\d)?", _PASSWORD, text)

    def prepare(self, bridge: str) -> None:
        """Create the namespace and write the files."""
        for words in (
            f"netns add {self.namespace}",
            f"link add {self.device} type veth peer name eth0 netns {self.namespace}",
            f"link set {self.device} master {bridge} up",
            f"-n {self.namespace} addr add {self.address}/24 dev eth0",
            f"-n {self.namespace} link set eth0 up",
            f"-n {self.namespace} link set lo up",
        ):
            _ip(words)
        self.folder.mkdir(mode=0o755)
        # In memory, so that etcd does not suffer from the writes of all hosts on one disk.
        memory = Path(tempfile.mkdtemp(prefix="quarantine-etcd-", dir="/dev/shm"))
        (self.folder / "memory").symlink_to(memory)
        (self.folder / "15").mkdir()
        lines = self.localized((FILES / "patroni.yml").read_text()).splitlines()
        mine = [self._named(line) if line.endswith("# this host") else line for line in lines]
        (self.folder / "patroni.yml").write_text("\n".join(mine))
        for path in (self.folder, memory, self.folder / "15", self.folder / "patroni.yml"):
            shutil.chown(path, "postgres", "postgres")

    def _named(self, line: str) -> str:
        return line.replace("db1", self.name).replace(f"{self._network}.11", self.address)

    def start_etcd(self) -> None:
        """Start etcd with the shipped environment."""
        text = (FILES / "etcd").read_text()
        values = dict(re.findall(r'^(ETCD_\w+)="(.*)"$', text, re.MULTILINE))
        for name, value in values.items():
            local = self.localized(value)
            values[name] = local if name == "ETCD_INITIAL_CLUSTER" else self._named(local)
        self._start(["etcd"], values)

    def start_patroni(self) -> None:
        """Start Patroni, which starts PostgreSQL."""
        self._start(["patroni", str(self.folder / "patroni.yml")], {})

    def _start(self, command: list[str], environ: dict[str, str]) -> None:
        with (self.folder / f"{command[0]}.log").open("ab") as log:
            started = subprocess.Popen(
                self.inside(*command), cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8", **environ}, start_new_session=True,
            )  # fmt: skip
        self._running.append(started)

    def inside(self, *command: str) -> list[str]:
        """Return a command that runs another one on this host as postgres."""
        user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
        return ["ip", "netns", "exec", self.namespace, *user, *command]

    def kill_database(self) -> None:
        """Kill -9 Patroni and PostgreSQL with all its processes at once; etcd goes on."""
        self._kill(lambda name: name != "etcd")

    def kill_etcd(self) -> None:
        """Kill -9 etcd; Patroni and PostgreSQL go on."""
        self._kill(lambda name: name == "etcd")

    def kill_postgres(self) -> None:
        """Kill -9 PostgreSQL with all its processes; Patroni goes on, and starts it again."""
        self._kill(lambda name: name == "postgres")

    def _kill(self, chosen: Callable[[str], bool]) -> None:
        pids = _ip(f"netns pids {self.namespace}").split()
        for pid in pids:
            with suppress(OSError):
                if chosen(Path(f"/proc/{pid}/comm").read_text().strip()):
                    os.kill(int(pid), signal.SIGKILL)

    def cut_link(self) -> None:
        """Lose all packets from and to this host."""
        _ip(f"link set {self.device} down")

    def mend_link(self) -> None:
        _ip(f"link set {self.device} up")

    def log(self) -> str:
        """Return the end of the log of Patroni and PostgreSQL."""
        path = self.folder / "patroni.log"
        return path.read_text(errors="replace")[-20_000:] if path.exists() else ""

    def remove(self) -> None:
        """End all processes, and remove the namespace."""
        _remove(self.namespace)
        for running in self._running:
            running.wait()
        with suppress(FileNotFoundError):
            shutil.rmtree((self.folder / "memory").resolve())


class Cluster:
    """The three hosts, and the ways to their database."""

    def __init__(self, folder: Path) -> None:
        network = f"10.213.{random.randrange(256)}"
        self._folder = folder
        self._bridge = f"{_PREFIX}{os.getpid()}"
        self._gateway = f"{network}.1"
        self.hosts = [Host(number, network, folder) for number in (1, 2, 3)]
        self.dsn = self._documented_url("The way to the database")

    @contextmanager
    def running(self) -> Iterator[Cluster]:
        """Run the cluster with an empty database, made as docs/many-hosts.md says, until the block ends."""
        _remove_leftovers()
        with ExitStack() as stack:
            _ip(f"link add {self._bridge} type bridge")
            stack.callback(_remove, self._bridge)
            _ip(f"addr add {self._gateway}/24 dev {self._bridge}")
            _ip(f"link set {self._bridge} up")
            for host in self.hosts:
                stack.callback(host.remove)
                host.prepare(self._bridge)
                host.start_etcd()
            for host in self.hosts:
                host.start_patroni()
            self.wait_until_healthy(120)
            self.run_documented("The database")
            yield self

    def members(self) -> list[Member]:
        """Return what Patroni knows, from the first host that answers; [] if none does."""
        return next(filter(None, map(_members, self.hosts)), [])

    def leader(self) -> Host:
        """Return the host that accepts writes. Raises StopIteration if none does."""
        name = next(member.name for member in self.members() if member.role == "leader")
        return next(host for host in self.hosts if host.name == name)

    def standbys(self) -> tuple[Host, Host]:
        leader = self.leader()
        first, second = (host for host in self.hosts if host is not leader)
        return first, second

    def lead_etcd(self, host: Host) -> None:
        """Make the etcd of this host the leader of the etcds."""
        endpoints = ",".join(f"http://{each.address}:2379" for each in self.hosts)
        printed = _output(["etcdctl", f"--endpoints={endpoints}", "endpoint", "status", "--write-out=json"])
        found = json.loads(printed)
        leader = found[0]["Status"]["leader"]
        ids = {status["Endpoint"]: status["Status"]["header"]["member_id"] for status in found}
        (current,) = [endpoint for endpoint, id in ids.items() if id == leader]
        wanted = ids[f"http://{host.address}:2379"]
        if wanted != leader:
            _output(["etcdctl", f"--endpoints={current}", "move-leader", f"{wanted:x}"])

    def wait_for_another_leader(self, old: Host) -> None:
        def replaced() -> bool:
            return any(member.role == "leader" and member.name != old.name for member in self.members())

        wait_for(replaced, 90, details=self.details)

    def wait_until_healthy(self, seconds: float = 90) -> None:
        """Wait until all hosts agree on a leader that both others follow synchronously."""

        def healthy() -> bool:
            # A host that was cut off answers for some seconds what it knew before.
            members, *others = map(_members, self.hosts)
            return (
                sorted(member.role for member in members) == ["leader", "sync_standby", "sync_standby"]
                and all(member.state in ("running", "streaming") for member in members)
                and len({member.timeline for member in members}) == 1
                and all(other == members for other in others)
            )

        wait_for(healthy, seconds, details=self.details)

    def details(self) -> str:
        return "\n".join([*map(str, self.members()), *(f"{host.name}:\n{host.log()}" for host in self.hosts)])

    def run_documented(self, heading: str) -> str:
        """Run the commands under this heading of docs/many-hosts.md on the leader, as root; return what they print."""
        host = self.leader()
        command = ["ip", "netns", "exec", host.namespace, "env", f"PGHOST={host.folder}", "bash", "-ec"]
        return _output([*command, host.localized(_documented("sh", heading))])

    @contextmanager
    def haproxy(self) -> Iterator[str]:
        """Run HAProxy, installed as docs/many-hosts.md says, and yield the URL of the database through it."""
        port, folder = free_port(), self._folder / "haproxy"
        self._install("HAProxy", folder, "haproxy.cfg", {"127.0.0.1:5000": f"127.0.0.1:{port}"})
        with process(["haproxy", "-db", "-f", str(folder / "haproxy.cfg")], self._folder / "haproxy.log"):
            url = self._documented_url("HAProxy").replace(":5000", f":{port}")
            wait_for(lambda: _answers(url), details=self.details)
            yield url

    @contextmanager
    def pgbouncer(self) -> Iterator[str]:
        """Run PgBouncer before HAProxy, both installed as docs/many-hosts.md says, and yield the URL of the database
        through it."""
        with self.haproxy() as leader_url:
            port, folder = free_port(), self._folder / "pgbouncer"
            replaced = {
                "port=5000": f"port={psycopg.conninfo.conninfo_to_dict(leader_url)['port']}",
                "listen_port = 6432": f"listen_port = {port}",
                "/etc/pgbouncer/": f"{folder}/",
                "/var/log/postgresql/": f"{folder}/",
                "/var/run/postgresql/": f"{folder}/",
            }
            self._install("PgBouncer", folder, "pgbouncer.ini", replaced)
            with process(
                ["pgbouncer", "-q", str(folder / "pgbouncer.ini")], folder / "out.log",
                user="postgres", group="postgres", extra_groups=[], cwd=folder,
            ):  # fmt: skip
                wait_for(lambda: connects(port), details=lambda: (folder / "out.log").read_text())
                url = self._documented_url("PgBouncer").replace(":6432", f":{port}")
                wait_for(lambda: _answers(url), details=self.details)
                yield url

    def _install(self, heading: str, folder: Path, name: str, replaced: dict[str, str]) -> None:
        """Run the commands under this heading of docs/many-hosts.md on the portal host with ``folder`` in place of
        Debian's. ``replaced``: the ports and paths of the shipped file ``name``."""
        text = (FILES / name).read_text()
        for old, new in replaced.items():
            assert old in text
            text = text.replace(old, new)
        shipped = self._folder / "shipped"
        for path in (shipped, folder):
            path.mkdir(exist_ok=True)
        (shipped / name).write_text(self.hosts[0].localized(text))
        shutil.chown(folder, "postgres")
        commands = _documented("sh", heading).replace(f"/etc/{folder.name}/", f"{folder}/")
        # The packages are there, and the test starts the program.
        without = 'apt-get() { command -v "${@: -1}"; }; systemctl() { :; }\n'
        _output(["env", "-C", str(shipped), "bash", "-ec", without + self.hosts[0].localized(commands)])

    def _documented_url(self, heading: str) -> str:
        """Return the `store.url` under this heading of docs/many-hosts.md."""
        url = tomllib.loads(_documented("toml", heading))["store"]["url"]
        return self.hosts[0].localized(url)


def _members(host: Host) -> list[Member]:
    """Return what the Patroni of this host knows; [] if it does not answer."""
    with suppress(OSError, ValueError, KeyError):
        with urllib.request.urlopen(f"http://{host.address}:8008/cluster", timeout=2) as reply:
            found = json.load(reply)["members"]
        return [Member(m["name"], m["role"], m["state"], m.get("timeline", 0)) for m in found]
    return []


def _documented(kind: str, heading: str) -> str:
    """Return the parts of this kind under this heading of docs/many-hosts.md."""
    found, current = "", ""
    for part, text in parts_of("many-hosts.md"):
        if part == "heading":
            current = text
        elif part == kind and current == heading:
            found += text
    assert found, heading
    return found


def _answers(url: str) -> bool:
    with suppress(psycopg.OperationalError), psycopg.connect(url, connect_timeout=2):
        return True
    return False


def _output(command: list[str]) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60)
    assert done.returncode == 0, f"{command}: {done.stdout}"
    return done.stdout


def _ip(words: str) -> str:
    return _output(["ip", *words.split()])


def _remove(name: str) -> None:
    """Remove the namespace and the device with this name, if they exist, and the processes in it."""
    if name in _ip("netns list").split():
        for pid in _ip(f"netns pids {name}").split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        _ip(f"netns del {name}")
    # The kernel removes it with the namespace, but other processes may keep that for a while.
    if Path(f"/sys/class/net/{name}").exists():
        with suppress(AssertionError):
            _ip(f"link del {name}")


def _remove_leftovers() -> None:
    """Remove what tests that were killed have left."""
    names = re.findall(rf"\b{_PREFIX}\d+(?:-\d)?\b", _ip("netns list") + _ip("-o link show"))
    for name in set(names):
        if not Path("/proc", re.sub(r"-\d$", "", name.removeprefix(_PREFIX))).exists():
            _remove(name)
