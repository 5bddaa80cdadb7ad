"""The Debian package on a new Debian: installed, used, upgraded, removed and purged. lintian finds nothing in it. Both
images run without rights: of `make packages`, and of the Containerfile."""

from __future__ import annotations

import email
import gzip
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from email import message_from_bytes, policy
from pathlib import Path
from typing import Any

import click
import pytest

from portal import __version__
from tests.docs.commands import PACKAGE, commands_of, runner_of
from tests.faults.older import version_0_2_0
from tests.ports import free_port
from tests.smtp_server import SmtpServer
from tests.system.debian_root import DebianRoot
from tests.system.services import DEPLOY, http, process, wait_for
from tools.demo import ALICE, SAMPLES, post
from tools.packages import image
from tools.packages.__main__ import Built, build
from tools.packages.manual import PROGRAMS, completion
from tools.packages.release import debian_version

OLDER = "0.2.0-1"
STORE = "/var/lib/quarantine/store"
SETTINGS = "/etc/rspamd-quarantine/quarantine.toml"
pytestmark = [pytest.mark.system, pytest.mark.apart, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The packages of this checkout."""
    return build(tmp_path_factory.mktemp("packages") / "dist")


@pytest.fixture(scope="module")
def layout(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked archive of the image."""
    folder = tmp_path_factory.mktemp("image")
    with tarfile.open(built.image) as packed:
        packed.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="module")
def base(layout: Path) -> Path:
    """An archive of a new Debian: the lower layer of the image."""

    def blob(descriptor: dict[str, str]) -> Path:
        return layout / "blobs" / descriptor["digest"].replace(":", "/")

    (manifest,) = json.loads((layout / "index.json").read_text())["manifests"]
    layers = json.loads(blob(manifest).read_text())["layers"]
    return blob(layers[0])


@pytest.fixture
def debian(base: Path, tmp_path: Path) -> DebianRoot:
    """A new Debian."""
    root = DebianRoot(base, tmp_path / "debian")
    root.pretend_systemd()
    return root


def older(package: Path, home: Path) -> Path:
    """Return a package of version 0.2.0: its own program and uwsgi.ini, in today's package with today's libraries."""
    folder, target, code = home / "older", home / "older.deb", version_0_2_0(home)
    subprocess.run(["dpkg-deb", "--raw-extract", package, folder], check=True)
    build_wheel = [sys.executable, "-m", "build", "--wheel", "--outdir", str(home), str(code)]
    subprocess.run(build_wheel, check=True, stdout=subprocess.DEVNULL)
    (modules,) = folder.glob("usr/lib/rspamd-quarantine/lib/python3.*/site-packages")
    for old in (modules / "portal", modules / "digest", *modules.glob("rspamd_quarantine_portal-*.dist-info")):
        shutil.rmtree(old)
    with zipfile.ZipFile(next(home.glob("*-0.2.0-*.whl"))) as wheel:
        wheel.extractall(modules)
    shutil.copy(code / "uwsgi.ini", folder / "etc/rspamd-quarantine/uwsgi.ini")
    control = folder / "DEBIAN/control"
    control.write_text(control.read_text().replace(f"Version: {debian_version()}", f"Version: {OLDER}"))
    subprocess.run(["dpkg-deb", "--build", "-Zgzip", "-z1", folder, target], check=True, stdout=subprocess.DEVNULL)
    return target


def install(debian: DebianRoot, package: Path) -> str:
    name = f"/root/{package.name}"
    debian.path(name).write_bytes(package.read_bytes())
    return debian.run("dpkg", "--install", name)


def fill_in(debian: DebianRoot, mail: SmtpServer) -> None:
    """Fill in the commented lines of the settings, as install.md says, and the addresses of a mail server."""
    path = debian.path(SETTINGS)
    text = re.sub(r"^#(?=\w+ = )", "", path.read_text(), flags=re.MULTILINE)
    path.write_text(text.replace("[mail]\n", f'[mail]\nurl = "{mail.url}"\n') + f'\n[relay]\nurl = "{mail.url}"\n')


@contextmanager
def service(debian: DebianRoot) -> Iterator[str]:
    """Run the service as its unit says, and yield the address of the portal."""
    unit = debian.path("/lib/systemd/system/quarantine.service").read_text()
    (command,) = re.findall(r"^ExecStart=(.*)$", unit, re.MULTILINE)
    environment = re.findall(r"^Environment=(.*)$", unit, re.MULTILINE)
    port = free_port()
    as_user = ("runuser", "-u", "quarantine", "--", "env", "-C", "/var/lib/quarantine", *environment)
    with debian.running(*as_user, *command.split(), "--http-socket", f"127.0.0.1:{port}"):
        url = f"http://127.0.0.1:{port}/quarantine"
        log = debian.path("/var/log/program")
        wait_for(lambda: http(f"{url}/healthz").status == 200, details=log.read_text)
        yield url


def check_files_of_root(debian: DebianRoot) -> None:
    """Export and import files in a folder that the service's user may not enter, as operate.md and domains.md say."""
    debian.path("/root").chmod(0o700)
    debian.path("/root/logo.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    commands = """
        quarantine rules add block shop.example --site
        quarantine rules export >rules.csv
        quarantine rules import - <rules.csv
        quarantine digests stop alice@example.org
        quarantine digests export >people.csv
        quarantine digests set --from-file - --dry-run <people.csv
        quarantine digests export --stopped >stopped.csv
        quarantine digests resume --from-file - <stopped.csv
        quarantine domains set example.org logo - <logo.png
    """
    said = debian.run("sh", "-ec", f"cd /root\n{commands}")
    expected = ("added 0 rules, 1 existed already", "alice@example.org: unchanged", "example.org logo: data:image/png")
    assert not [line for line in expected if line not in said], said


def run_commands(debian: DebianRoot, page: str, heading: str) -> str:
    """Run the commands of a section that are for these tests, in one shell. Return what they print.

    `quarantine check` ends with status 1, since neither Rspamd nor Nginx runs.
    """
    found = [command for command in commands_of(page, heading) if runner_of(command) == PACKAGE]
    assert found, f"{page}: {heading}"
    lines = [f"{text} || true" if text == "quarantine check" else text for _, _, text in found]
    return debian.run("sh", "-exc", "\n".join(lines))


def check_backup(debian: DebianRoot) -> None:
    """Make a backup, lose the store and restore it, with the commands of operate.md."""
    before = debian.run("quarantine", "list", "--json")
    debian.path("/backup").mkdir()
    run_commands(debian, "operate.md", "Backup")
    shutil.rmtree(debian.path(STORE))
    debian.run("install", "-d", "-o", "quarantine", "-g", "quarantine", "-m", "700", STORE)
    assert "ok      store" in run_commands(debian, "operate.md", "Restore")
    run_commands(debian, "operate.md", "Reindex")
    assert debian.run("quarantine", "list", "--json") == before
    debian.systemctl_calls()


def stored(debian: DebianRoot) -> set[str]:
    return {path.name for path in debian.path(STORE).rglob("*") if path.is_file() and "sqlite3" not in path.name}


def test_a_site_installs_uses_upgrades_and_removes_the_package(
    built: Built, debian: DebianRoot, tmp_path: Path
) -> None:
    said = install(debian, older(built.package, tmp_path))
    assert f"fill in {SETTINGS}" in said
    assert debian.systemctl_calls() == ["--system daemon-reload"]  # nothing is started
    assert debian.path("/var/lib/quarantine").stat().st_mode & 0o777 == 0o700
    assert debian.path(SETTINGS).stat().st_mode & 0o777 == 0o640

    with SmtpServer() as mail:
        fill_in(debian, mail)
        debian.run("quarantine", "init")
        assert "0.2.0" in debian.run("quarantine", "--version")
        with service(debian) as url:
            held = post(f"{url}/", SAMPLES[0], 1)
            assert held["status"] == "held"
            debian.run("quarantine-digest", "once", "--recipient", ALICE)
            debian.run("quarantine", "release", held["id"])
            subjects = [message_from_bytes(one.data, policy=policy.default)["Subject"] for one in mail.mails]
            assert len(subjects) == 2 and subjects[1] == SAMPLES[0][3]
            kept = post(f"{url}/", SAMPLES[1], 2)
            sent = debian.run("quarantine", "print", kept["id"])

        filled_in = debian.path(SETTINGS).read_text()
        said = install(debian, built.package)
        assert debian.path(SETTINGS).read_text() == filled_in
        assert STORE in said  # as `quarantine init` prints it
        assert "try-restart quarantine.service" in debian.systemctl_calls()
        assert __version__ in debian.run("quarantine", "--version")
        with service(debian):
            assert kept["id"] in debian.run("quarantine", "list")
            assert debian.run("quarantine", "print", kept["id"]) == sent
            check_files_of_root(debian)

    check_backup(debian)
    files = stored(debian)
    assert files
    debian.run("dpkg", "--remove", "rspamd-quarantine")
    assert "stop quarantine.service quarantine.socket" in debian.systemctl_calls()
    assert not debian.path("/usr/lib/rspamd-quarantine").exists()
    assert debian.path(SETTINGS).read_text() == filled_in
    said = debian.run("dpkg", "--purge", "rspamd-quarantine")
    assert "/var/lib/quarantine with held messages and link keys" in said
    assert not debian.path(SETTINGS).exists()
    assert stored(debian) == files


def test_an_upgrade_whose_store_is_away_restarts_nothing_and_says_what_to_do(built: Built, debian: DebianRoot) -> None:
    install(debian, built.package)
    path = debian.path(SETTINGS)
    path.write_text(
        'public_url = "https://quarantine.example.org/"\n[store]\nurl = "postgresql://127.0.0.1:9/quarantine"\n'
    )
    debian.systemctl_calls()
    said = install(debian, built.package)
    assert "mail is deferred.\nRun: quarantine init && systemctl restart quarantine" in said
    assert [call for call in debian.systemctl_calls() if "show" not in call] == ["--system daemon-reload"]

    path.write_text(f'[store]\nurl = "files://{STORE}"\n')  # public_url may be a variable of the unit
    said = install(debian, built.package)
    assert STORE in said and "fill in" not in said
    assert "try-restart quarantine.service" in debian.systemctl_calls()

    debian.pretend_variables_of_the_unit("QUARANTINE_STORE__URL=postgresql://127.0.0.1:9/quarantine")
    said = install(debian, built.package)
    assert f"Put store.url into {SETTINGS}" in said and STORE not in said
    assert "try-restart quarantine.service" not in debian.systemctl_calls()


def test_the_commands_of_the_installation_find_their_files(built: Built, debian: DebianRoot) -> None:
    """Those of other packages only record that they were called: other tests run them with these files."""
    install(debian, built.package)
    for name in ("apt-get", "curl", "nginx", "postfix", "rspamadm"):
        debian.path(f"/usr/local/bin/{name}").write_text("#!/bin/sh\n")
        debian.path(f"/usr/local/bin/{name}").chmod(0o755)
    for folder in ("nginx/conf.d", "postfix", "rspamd/local.d"):
        debian.path(f"/etc/{folder}").mkdir(parents=True)
    with SmtpServer() as mail:
        fill_in(debian, mail)
    sections = ("1. The program", "2. Settings", "3. Postfix", "4. The service and Nginx", "5. Rspamd")
    found = [each for heading in sections for each in commands_of("install.md", heading) if runner_of(each) == PACKAGE]
    debian.run("sh", "-exc", "\n".join(["export PATH=/usr/local/bin:$PATH", *(each.text for each in found)]))
    assert "10025" in debian.path("/etc/postfix/master.cf").read_text()
    assert (
        debian.path("/etc/nginx/conf.d/quarantine.conf").read_text() == (DEPLOY / "nginx/quarantine.conf").read_text()
    )
    for file in (DEPLOY / "rspamd").iterdir():
        assert debian.path(f"/etc/rspamd/local.d/{file.name}").read_bytes() == file.read_bytes()
    assert "enable --now quarantine" in debian.systemctl_calls()


def test_two_builds_give_the_same_files(
    built: Built, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The Debian below is the same one: its packages may change between two downloads. umoci compresses it again.
    unpacked = tmp_path / "base.tar"
    with gzip.open(base) as packed, unpacked.open("wb") as plain:
        shutil.copyfileobj(packed, plain)
    monkeypatch.setattr(image, "base", lambda folder: unpacked)
    again = build(tmp_path / "in another folder/dist")
    assert [path.name for path in again] == [path.name for path in built]
    differing = [one.name for one, other in zip(again, built, strict=True) if digest_of(one) != digest_of(other)]
    assert not differing


def digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def test_the_lists_name_every_library_and_the_source_of_those_that_ask_for_it(built: Built, tmp_path: Path) -> None:
    subprocess.run(["dpkg-deb", "--extract", built.package, tmp_path], check=True)
    metadata = [path.read_text("utf-8") for path in tmp_path.glob("usr/lib/**/*.dist-info/METADATA")]
    names = {(found := email.message_from_string(text))["Name"]: found["Version"] for text in metadata}
    del names["rspamd-quarantine-portal"]
    assert len(names) > 30

    components = json.loads(built.sbom.read_text())["components"]
    assert {each["name"]: each["version"] for each in components} == names
    notice = built.notice.read_text()
    assert not [name for name, version in names.items() if f"  {name} {version}: " not in notice]
    for name, licence in {"pyuwsgi": "GPL", "psycopg": "LGPL", "ldap3": "LGPL", "pygal": "LGPL"}.items():
        source = rf"  {name} {names[name]}: .*{licence}.*\n    https://pypi\.org/project/{name}/{names[name]}/"
        assert re.search(source, notice), name
    assert (tmp_path / "usr/share/doc/rspamd-quarantine/copyright").read_text() == notice


def test_lintian_finds_nothing(built: Built) -> None:
    done = subprocess.run(["lintian", "--fail-on=error,warning", built.package], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_man_pages_are_correct_and_bash_completes_commands(built: Built, debian: DebianRoot) -> None:
    install(debian, built.package)
    for name, group in PROGRAMS.items():
        page = debian.path(f"/usr/share/man/man8/{name}.8.gz")
        shown = subprocess.run(
            ["man", "--warnings", "--local-file", page],
            capture_output=True,
            text=True,
            env={"MANWIDTH": "200", "LC_ALL": "C.UTF-8", "PATH": "/usr/bin:/bin"},
        )
        assert (shown.returncode, shown.stderr) == (0, "")
        for command in group.list_commands(click.Context(group)):
            assert re.search(rf"^ +{command}\b", shown.stdout, re.MULTILINE), command

    script = "source /usr/share/bash-completion/completions/quarantine\n" + (
        'COMP_WORDS=(quarantine rel) COMP_CWORD=1; _quarantine_completion quarantine; echo "${COMPREPLY[*]}"'
    )
    assert debian.run("bash", "-c", script) == "release\n"


@pytest.mark.parametrize("name", PROGRAMS)
def test_completions_are_correct_in_zsh_and_fish(name: str, tmp_path: Path) -> None:
    for shell, check in {"zsh": ["zsh", "-f", "-n"], "fish": ["fish", "--no-config", "--no-execute"]}.items():
        (tmp_path / shell).write_text(completion(name, shell))
        done = subprocess.run([*check, tmp_path / shell], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, ""), shell


def test_fish_completes_commands(tmp_path: Path) -> None:
    (tmp_path / "quarantine.fish").write_text(completion("quarantine", "fish"))
    commands = f"source {tmp_path}/quarantine.fish; complete --do-complete='quarantine rel'"
    environment = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(["fish", "--no-config", "-c", commands], env=environment, capture_output=True, text=True)
    assert [line.partition("\t")[0] for line in done.stdout.splitlines()] == ["release"], done.stderr


@contextmanager
def built_by_containerfile(base: Path, home: Path) -> Iterator[Path]:
    """Build an image by the Containerfile as those who have Docker do, and yield its files.

    buildah needs no daemon. The new Debian stands for the image of the same release at docker.io.
    """
    storage = ("--root", home / "storage", "--runroot", home / "run", "--storage-driver", "vfs")
    certificates = "/etc/ssl/certs/ca-certificates.crt"
    (home / "pip.conf").write_text("[global]\ncert = /etc/certificates-of-the-host.crt\n")

    def buildah(*words: object) -> str:
        command = ["buildah", *storage, *words]
        done = subprocess.run(list(map(str, command)), text=True, capture_output=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    debian = buildah("from", "scratch")
    buildah("add", debian, base, "/")
    buildah("commit", "--rm", debian, "docker.io/library/debian:bookworm-slim")
    mounts = f"{home}/pip.conf:/etc/pip.conf:ro", f"{certificates}:/etc/certificates-of-the-host.crt:ro"
    volumes = [word for mount in mounts for word in ("--volume", mount)]
    file = DEPLOY / "container/Containerfile"
    how = (
        "--isolation",
        "chroot",
        "--network",
        "host",
        "--pull-never",
        *volumes,
        "--file",
        file,
        "--tag",
        "quarantine",
    )
    buildah("build", *how, DEPLOY.parent)
    try:
        yield Path(buildah("mount", buildah("from", "--pull-never", "quarantine")))
    finally:
        buildah("unmount", "--all")


@pytest.mark.parametrize("builder", ["make packages", "Containerfile"])
def test_the_image_runs_without_rights_and_writes_only_its_data(
    builder: str, layout: Path, base: Path, tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle"
    subprocess.run(["umoci", "--log=error", "unpack", "--image", f"{layout}:{__version__}", bundle], check=True)
    run = json.loads((bundle / "config.json").read_text())["process"]
    if builder == "Containerfile":
        with built_by_containerfile(base, tmp_path) as root:
            check_container(root, run, tmp_path)
    else:
        check_container(bundle / "rootfs", run, tmp_path)


def check_container(root: Path, run: dict[str, Any], home: Path) -> None:
    """Start a container of these files, as the configuration of the image says, and post a message."""
    data, port = home / "data", free_port()
    (root / "var/lib/quarantine").rename(data)
    (root / "var/lib/quarantine").mkdir()
    user = f"--reuid={run['user']['uid']}", f"--regid={run['user']['gid']}", "--clear-groups", "--no-new-privs"
    container = [
        *("bwrap", "--ro-bind", root, "/", "--bind", data, "/var/lib/quarantine", "--tmpfs", "/tmp", "--proc", "/proc"),
        *("--dev", "/dev", "--unshare-pid", "--die-with-parent"),  # so that uWSGI ends with it
        *("--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID", "--", "setpriv", *user, "env", "-i"),
        *("-C", run["cwd"], *run["env"], f"QUARANTINE_SOCKET=127.0.0.1:{free_port()}"),
    ]
    command = [str(part) for part in container]
    subprocess.run([*command, "quarantine", "init"], check=True, stdout=subprocess.DEVNULL)
    log = home / "log"
    with process([*command, *run["args"], "--http-socket", f"127.0.0.1:{port}"], log):
        url = f"http://127.0.0.1:{port}/quarantine"
        wait_for(lambda: http(f"{url}/healthz").status == 200, details=log.read_text)
        assert post(f"{url}/", SAMPLES[0], 1)["status"] == "held"
        done = subprocess.run([*command, "quarantine", "check", "--json"], capture_output=True, text=True, check=False)
        findings = [each for each in json.loads(done.stdout) if each["what"] == "uwsgi socket"]
        assert findings and not [each for each in findings if each["ok"] is False], findings
    assert run["user"]["uid"] != 0
    assert (data / "links.keys").exists()


def test_the_containerfile_makes_the_same_image() -> None:
    last_stage = (DEPLOY / "container/Containerfile").read_text().rpartition("\nFROM ")[2]
    text = re.sub(r" (QUARANTINE_SOCKET=|container=)", r"\nENV \1", last_stage)
    said = re.findall(r"^(USER|WORKDIR|VOLUME|ENV|EXPOSE|STOPSIGNAL|CMD) (.*)$", text, re.MULTILINE)
    names = {"user": "USER", "workingdir": "WORKDIR", "volume": "VOLUME", "env": "ENV", "exposedports": "EXPOSE"}
    names["stopsignal"] = "STOPSIGNAL"
    expected = [(names[key], value) for key in names for value in image.CONTAINER[key]]
    assert sorted(said) == sorted([*expected, ("CMD", json.dumps(image.CONTAINER["cmd"]))])


def test_compose_waits_for_the_database_at_its_address() -> None:
    # During its first start the image of PostgreSQL runs a server at the Unix socket alone, and stops it again.
    compose = (DEPLOY / "container/compose.yaml").read_text()
    (check,) = re.findall(r"pg_isready, (.*)\]", compose)
    assert "--host=127.0.0.1" in check.split(", ")


def test_compose_changes_lines_of_the_nginx_file_that_exist() -> None:
    nginx = (DEPLOY / "nginx/quarantine.conf").read_text()
    replaced = re.findall(r"'s\|([^|]+)\|", (DEPLOY / "container/compose.yaml").read_text())
    assert not [text for text in replaced if text not in nginx]
    for text in replaced:
        nginx = nginx.replace(text, "replaced")
    used = re.sub(r"#.*", "", nginx)
    assert not [word for word in ("example.org", "letsencrypt", "unix:", "127.0.0.1") if word in used]
