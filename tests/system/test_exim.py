"""docs/exim.md with Debian's Exim, its own configuration and the shipped parts: Rspamd scans, the portal holds, and a
release arrives unchanged."""

from __future__ import annotations

import json
import re
import shutil
import smtplib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.paths import ROOT
from tests.ports import free_port
from tests.system.conftest import Mx
from tests.system.mails import ALICE, REJECTED, SENDER, spam
from tests.system.services import DEPLOY, Portal, connects, process, wait_for

pytestmark = pytest.mark.system

UNPACKED = Path("/opt/exim-of-the-tests")  # by `install-packages`: Debian does not install Exim beside Postfix
PARTS = {"main.part": "conf.d/main/00_quarantine", "acl.part": "conf.d/acl/50_quarantine", "quarantine.data": ""}


class Exim:
    """Debian's Exim with the shipped parts, and mailboxes for alice and postmaster."""

    def __init__(self, home: Path, scan_port: int) -> None:
        self.smtp, self.release = free_port(), free_port()
        self.home = home
        etc = home / "etc"
        shutil.copytree(UNPACKED / "etc/exim4", etc)
        page = (ROOT / "docs/exim.md").read_text("utf-8")
        for part, place in PARTS.items():
            assert f"exim/{part}" in page and f"/etc/exim4/{place or part}" in page
            text = (DEPLOY / "exim" / part).read_text("utf-8").replace("/etc/exim4/", f"{etc}/")
            text = text.replace("127.0.0.1 11333", f"127.0.0.1 {scan_port}").replace("{10025}", f"{{{self.release}}}")
            (etc / (place or part)).write_text(text, "utf-8")
        (etc / "conf.d/main/01_tests").write_text(
            f"log_file_path = {home}/%slog\npid_file_path = {home}/exim.pid\nMAIN_HOST_LOOKUP = :\n"
            "deliver_drop_privilege = true\n"  # since Exim itself distrusts configurations outside of /etc
        )
        (etc / "conf.d/router/050_tests").write_text(
            "mailbox:\n  driver = accept\n  domains = example.org\n  local_parts = alice : postmaster\n"
            "  transport = mailbox\n"
        )
        (etc / "conf.d/transport/50_tests").write_text(
            f"mailbox:\n  driver = appendfile\n  maildir_format\n  directory = {home}/mail/${{local_part_data}}\n"
            "  create_directory\n  user = Debian-exim\n"
        )
        (etc / "update-exim4.conf.conf").write_text(
            "dc_eximconfig_configtype='internet'\ndc_other_hostnames='example.org'\n"
            f"dc_local_interfaces='127.0.0.1.{self.smtp} ; 127.0.0.1.{self.release}'\n"
            "dc_use_split_config='true'\ndc_localdelivery='mail_spool'\ndc_mailname_in_oh='true'\nCFILEMODE='644'\n"
        )
        for folder in (home, home / "spool", home / "mail"):
            folder.mkdir(exist_ok=True)
            shutil.chown(folder, "Debian-exim")
        made = home / "exim.conf"
        command: list[str | Path] = [UNPACKED / "usr/sbin/update-exim4.conf", "-d", etc, "-o", made]
        subprocess.run(command, check=True, capture_output=True)
        text = made.read_text("utf-8").replace("/var/spool/exim4", f"{home}/spool")
        for path in ("/usr/sbin/exim4", "/etc/email-addresses"):
            text = text.replace(path, f"{UNPACKED}{path}")
        made.write_text(re.sub("^ETC_MAILNAME=.*", "ETC_MAILNAME=example.org", text, flags=re.MULTILINE), "utf-8")

    def mails(self, word: str) -> list[bytes]:
        """Return Alice's mails with this word in the subject."""
        found = [path.read_bytes() for path in self.home.glob("mail/alice/new/*")]
        return [mail for mail in found if f"Subject: {word} ".encode() in mail]

    def send(self, data: bytes) -> tuple[int, bytes]:
        """Send a mail from another address than this host's own, and return the last reply."""
        with smtplib.SMTP("127.0.0.1", self.smtp, "client.example.net", 60, ("127.0.0.2", 0)) as client:
            client.ehlo()
            client.mail(SENDER)
            assert client.rcpt(ALICE)[0] == 250
            return client.data(data)


@pytest.fixture(scope="module")
def exim(running_mx: Mx, place: Path) -> Iterator[Exim]:
    home = place / "exim"
    made = Exim(home, running_mx.rspamd.scan)
    command = [str(UNPACKED / "usr/sbin/exim4"), "-C", str(home / "exim.conf"), "-bdf"]
    with process(command, home / "stdout.log"):
        wait_for(lambda: connects(made.release), details=lambda: (home / "stdout.log").read_text())
        yield made


@pytest.fixture
def portal_behind_exim(mx: Mx, exim: Exim, other_portal: Portal) -> Iterator[Portal]:
    for key in ("RELAY", "MAIL"):
        other_portal.environment[f"QUARANTINE_{key}__URL"] = f"smtp://127.0.0.1:{exim.release}"
    before = mx.switch.target
    with other_portal.running():
        mx.switch.target = other_portal.nginx.exporter
        yield other_portal
    mx.switch.target = before


def test_exim_has_messages_held_and_delivers_releases(mx: Mx, exim: Exim, portal_behind_exim: Portal) -> None:
    portal = portal_behind_exim
    assert exim.send(spam("Wanted", {}))[0] == 250
    wait_for(lambda: exim.mails("Wanted"))

    mail = spam("Held", REJECTED)
    code, text = exim.send(mail)
    assert (code, text) == (550, b"Rejected as spam")
    (held,) = map(json.loads, portal.command("quarantine", "list", "--json").splitlines())
    assert (held["recipient"], held["state"]) == (ALICE, "held")

    assert ALICE in portal.command("quarantine-digest", "once")
    wait_for(lambda: list(exim.home.glob("mail/alice/new/*")))
    portal.command("quarantine", "release", held["id"])
    (released,) = wait_for(lambda: exim.mails("Held"))
    assert released.replace(b"\r\n", b"\n").endswith(mail.replace(b"\r\n", b"\n"))


def test_the_installed_files_are_in_the_configuration(exim: Exim) -> None:
    for option, text in (("-bV", "Configuration file is"), ("-bP acl_smtp_rcpt", "acl_release_rcpt")):
        command = [str(UNPACKED / "usr/sbin/exim4"), "-C", str(exim.home / "exim.conf"), *option.split()]
        assert text in subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_the_sender_tries_again_while_the_portal_is_down(mx: Mx, exim: Exim) -> None:
    mx.switch.set("refuse")
    assert exim.send(spam("Later", REJECTED))[0] == 451
    assert not exim.mails("Later")


def test_the_release_port_refuses_unknown_recipients(exim: Exim) -> None:
    with smtplib.SMTP("127.0.0.1", exim.release, timeout=30) as client:
        client.ehlo()
        client.mail(SENDER)
        assert client.rcpt("nobody-here@example.org")[0] == 550
        assert client.rcpt("somebody@elsewhere.example")[0] == 550
