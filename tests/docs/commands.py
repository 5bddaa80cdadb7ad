"""The command lines of the documentation, and which test runs each."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from tests.paths import ROOT

OPERATOR = "tests/docs/test_operator_commands.py"
_INSTEAD = "not run as it is, but in other words by"
_DATABASE = f"{_INSTEAD} tests/databases.py, which makes users and databases"
_RULE = f"{_INSTEAD} tests/system/test_mail_path.py, which posts messages that Rspamd rejects"
_SOCKET = f"{_INSTEAD} tests/system/test_socket.py, which makes these sockets"
_STATUS = f"{_INSTEAD} tests/cli/test_commands.py, since its status depends on the servers of a site"
_WHEEL = f"{_INSTEAD} tests/system/test_wheel.py, which installs the wheel"
PACKAGE = "tests/system/test_packages.py"
# The page, the heading and the beginning of the command as patterns, and the test that runs it, or the reason why none
# does. The first row that fits counts.
RUNNERS = [
    ("api.md", "", "", "tests/web/test_api_document.py"),
    ("exim.md", "", "systemctl", "not run: systemd does not run in the tests"),
    ("exim.md", "", "", f"{_INSTEAD} tests/system/test_exim.py, which installs the same files"),
    ("", "A rule held thousands", "", "tests/cli/test_jobs.py"),
    ("many-hosts.md", "", "", f"{_INSTEAD} tests/faults/test_patroni.py"),
    ("", "", "make ", "the Makefile, in each run of the tests"),
    ("", "", "certbot|apt-get install certbot", "not run: there is no Let's Encrypt in the tests"),
    ("", "", "docker|skopeo", "not run: there is no Docker in the tests"),
    ("benchmarks-notes.md", "", "", "not run: it measures other products"),
    ("translate.md", "", "", "make test"),
    ("install.md", "1|2|3|4|5", "apt-get install postgresql|runuser", _DATABASE),
    ("install.md", "4", "groupadd|install -d|QUARANTINE_SOCKET", _SOCKET),
    ("install.md", "[1-5]\\.", "", PACKAGE),
    ("install.md", "6", "cat|systemctl|printf|curl", _RULE),
    ("install.md", "6", "quarantine(-digest)? (list|once)", PACKAGE),
    ("install.md|upgrade.md", "From the wheel|0\\.1\\.1", "", _WHEEL),
    ("sign-in.md", "", "/opt/rspamd-quarantine/bin/pip", _WHEEL),
    ("sign-in.md", "Aliases from the directory", "", f"{_INSTEAD} tests/system/test_ldap_aliases.py"),
    ("operate.md", "Upgrade", "/opt/rspamd-quarantine/bin/pip", _WHEEL),
    ("policy.md", "The block map", "install", f"{_INSTEAD} tests/system/test_block_map.py"),
    ("", "", "quarantine check --send", f"{_INSTEAD} tests/cli/test_check_send.py"),
    ("install.md|iredmail.md|learning.md|policy.md", "", "quarantine check$", _STATUS),
    ("", "", "quarantine stats --mail", f"{_INSTEAD} tests/cli/test_stats.py"),
    ("", "", "quarantine scan", f"{_INSTEAD} tests/cli/test_scan.py"),
    ("", "", "quarantine copy", f"{_INSTEAD} tests/moving/test_copy.py"),
    ("", "", "quarantine import-original", f"{_INSTEAD} tests/moving/test_original.py"),
    ("operate.md", "Backup|Restore|Reindex", "runuser|quarantine init", f"{_INSTEAD} tests/faults/test_upgrade.py"),
    ("operate.md", "Backup|Restore|Reindex", "", PACKAGE),
    ("operate.md", "Monitoring", "curl", f"{_INSTEAD} tests/web/test_monitor.py"),
    ("operate.md", "Upgrade", "", PACKAGE),
    ("operate.md|domains.md|staff.md", "", "quarantine", OPERATOR),
]

# Names and forms with which a line of a block begins if it is a command, and not a setting or what a command prints.
_PROGRAMS = """adduser apt-get cat certbot chmod chown curl docker echo etcdctl exim4 git groupadd install ln make nginx
openssl patronictl postfix printf quarantine quarantine-digest rspamadm runuser sed skopeo systemctl tar
update-exim4.conf"""
_COMMAND = re.compile(rf"(?:{'|'.join(map(re.escape, _PROGRAMS.split()))}|\S*/bin/\S+|[A-Za-z_]+=\$?\S*)(?: |$)")
_SETTING = re.compile(r"\w+ = ")
_HEREDOC = re.compile(r"<<'(\w+)'$")


class Command(NamedTuple):
    """A command of a page: below which heading it is, and its text without the comment, all lines in one."""

    page: str
    heading: str
    text: str


def commands() -> Iterator[Command]:
    """Return the commands in indented blocks of the pages for administrators, in order."""
    for page in sorted((ROOT / "docs").glob("*.md")):
        yield from commands_of(page.name)


def commands_of(name: str, heading: str | None = None) -> Iterator[Command]:
    """Return the commands in indented blocks of a page, or those below one of its headings."""
    below, fenced, end, text = "", False, "", ""
    for line in (ROOT / "docs" / name).read_text("utf-8").splitlines():
        stripped = line.strip()
        fenced ^= stripped.startswith("```")
        if end:  # of a here-document
            end = "" if stripped == end else end
        elif not fenced and (found := re.match(r"##+ (.*)", line)):
            below = found[1]
        elif text or (
            not fenced and line.startswith("    ") and _COMMAND.match(stripped) and not _SETTING.match(stripped)
        ):
            text += re.sub(r"\s{2,}#.*", "", stripped)
            here = _HEREDOC.search(text)
            end = here[1] if here else ""
            if text.endswith("\\"):
                text = text.removesuffix("\\")
                continue
            if heading in (None, below):
                yield Command(name, below, text)
            text = ""


def runner_of(command: Command) -> str:
    """Return the test that runs a command, or the reason why none does. "" if neither is known."""
    for page, heading, text, test in RUNNERS:
        if all(re.match(pattern, part) for pattern, part in zip((page, heading, text), command, strict=True)):
            return test
    return ""
