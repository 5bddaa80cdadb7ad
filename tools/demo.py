"""``make demo``: the whole path on this machine, without any real mail server.

It starts the portal under uWSGI on a file store in var/demo, with its digest process, and a mail catcher that stands
for the site's mail server, with a web page to read the mail. It posts sample messages like Rspamd's metadata_exporter,
has the digests sent, and prints what to open. Ctrl-C ends it. With ``--once`` it ends after that; the exit status is 0
if everything arrived.
"""

from __future__ import annotations

import argparse
import html
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from email import message_from_bytes, policy
from email.header import Header
from email.utils import formataddr, parseaddr
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session

ROOT = Path(__file__).resolve().parents[1]
HERE = ROOT / "var" / "demo"
ALICE, BOB = "alice@example.org", "bob@example.org"

# sender, From, recipients, subject, score, symbols, text
Sample = tuple[str, str, list[str], str, float, list[tuple[str, float]], str]
SAMPLES: list[Sample] = [
    ("news@shoes.example.net", "Shoe Shop <news@shoes.example.net>", [ALICE], "Your order 4711 has been shipped", 15.4,
     [("R_DKIM_ALLOW", -0.2), ("R_SPF_ALLOW", -0.2), ("BAYES_SPAM", 5.1), ("HTML_SHORT_LINK_IMG_1", 2)],
     "Dear Alice,\n\nyour shoes are on their way. They will arrive on Thursday.\n\nThe shoe shop\n"),
    ("promo@pills.example.net", "Dr. Health <promo@pills.example.net>", [ALICE, BOB], "Lose 20 kg in 3 days!!!", 31.7,
     [("BAYES_SPAM", 5.1), ("FUZZY_DENIED", 12), ("RBL_SPAMHAUS_SBL", 4), ("R_SPF_FAIL", 1)],
     "Only today: pills that do it all.\n"),
    ("billing@example.net", "Accounts <billing@example.net>", [ALICE], "Invoice 2026-0815 overdue", 18.2,
     [("OLETOOLS_MACRO_SUSPICIOUS", 6), ("MIME_BAD_EXTENSION", 4), ("FORGED_SENDER_FORWARDING", 1)],
     "Please open the attached document and allow macros.\n"),
    ("security@bank.example.net", '"Your Bank bob@bank.example" <security@bank.example.net>', [BOB],
     "Your account will be closed", 42.0, [("PHISHED_OPENPHISH", 7), ("DMARC_POLICY_REJECT", 2)],
     "Click here and type in your password.\n"),
    ("grusse@example.net", "Jürgen Müller <grusse@example.net>", [BOB], "Grüße aus Köln – 挨拶", 16.0,
     [("BAYES_SPAM", 5.1), ("FROM_EXCESS_BASE64", 1.5)], "Schöne Grüße!\n"),
]  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--once", action="store_true", help="end after the digests have arrived")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that the finally block stops the child processes
    parser.add_argument("--port", type=int, default=8080, help="the portal's port")
    once, port = (arguments := parser.parse_args()).once, free_port(arguments.port)
    shutil.rmtree(HERE, ignore_errors=True)
    HERE.mkdir(parents=True)

    caught = Caught()
    catcher = Controller(caught, hostname="127.0.0.1", port=free_port(10025), enable_SMTPUTF8=True)
    catcher.start()
    mailbox = ThreadingHTTPServer(("127.0.0.1", free_port(8025)), caught.page())
    threading.Thread(target=mailbox.serve_forever, daemon=True).start()

    public = f"http://127.0.0.1:{port}/quarantine"
    environment = os.environ | {
        "QUARANTINE_CONFIG": os.devnull,
        "QUARANTINE_PUBLIC_URL": public,
        "QUARANTINE_LOCAL_DOMAINS": "example.org",
        "QUARANTINE_STORE__URL": f"files:{HERE / 'store'}",
        "QUARANTINE_RELAY__URL": f"smtp://127.0.0.1:{catcher.port}",
        "QUARANTINE_MAIL__URL": f"smtp://127.0.0.1:{catcher.port}",
        "QUARANTINE_MAIL__FROM_ADDRESS": "quarantine@example.org",
        "QUARANTINE_MAIL__ADMIN_ADDRESS": "postmaster@example.org",
        "QUARANTINE_SOCKET": "var/demo/quarantine.sock",  # an absolute path may be too long for a socket
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }
    log = (HERE / "portal.log").open("wb")
    portal = subprocess.Popen(
        ["uwsgi", "--ini", "uwsgi.ini", "--http-socket", f"127.0.0.1:{port}"],
        cwd=ROOT, env=environment, stdout=log, stderr=log,
    )  # fmt: skip
    try:
        wait_for(f"{public}/healthz", portal)
        print("Posting messages like Rspamd's metadata_exporter:")
        for number, sample in enumerate(SAMPLES):
            answer = post(f"{public}/", sample, number)
            print(f"  {answer['status']}  {answer['id']}  {', '.join(sample[2])}: {sample[3]}")
        print("Sending the digests (they would go out at 07:00):")
        subprocess.run(["quarantine-digest", "once"], cwd=ROOT, env=environment, check=True)
        for _ in range(100):
            if len(caught.mails) >= 2:
                break
            time.sleep(0.1)
        else:
            print(f"The digests have not arrived; see {HERE / 'portal.log'}", file=sys.stderr)
            return 1
        for number, (to, mail) in enumerate(caught.mails):
            (HERE / f"digest-{number}.eml").write_bytes(mail)
            print(f"\nIn {to}'s digest: {message_from_bytes(mail, policy=policy.default)['Subject']}")
            for line in text_of(mail).splitlines():
                if line.strip().startswith("http"):
                    print(f"  {line.strip()}")
        print(f"\nOpen these:\n  the mailbox with the digests   http://127.0.0.1:{mailbox.server_port}/")
        print(f"  the portal                     {public}/   (sign in as {ALICE} or {BOB})")
        print(f"Released mail arrives in that mailbox too. The portal's log: {HERE / 'portal.log'}")
        if once:
            return 0
        print("Ctrl-C ends the demonstration.")
        return portal.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        portal.terminate()
        portal.wait(20)
        mailbox.shutdown()
        catcher.stop()


class Caught:
    """A handler for an SMTP server that keeps the received mail, and a web page to read it."""

    def __init__(self) -> None:
        self.mails: list[tuple[str, bytes]] = []

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        assert isinstance(envelope.content, bytes)
        for recipient in envelope.rcpt_tos:
            self.mails.append((recipient, envelope.content))
            print(f"  mail for {recipient} has arrived", flush=True)
        return "250 2.0.0 caught"

    def page(self) -> type[BaseHTTPRequestHandler]:
        caught = self

        class Page(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name = self.path.strip("/")
                if name.isdecimal() and int(name) < len(caught.mails):
                    mail = message_from_bytes(caught.mails[int(name)][1], policy=policy.default)
                    part = mail.get_body(("html", "plain"))
                    text = part.get_content() if part else ""
                    if not part or part.get_content_subtype() != "html":
                        text = f"<pre>{html.escape(text)}</pre>"
                else:
                    rows = "".join(
                        f'<li><p><a href="/{n}">{html.escape(to)}: '
                        f"{html.escape(str(message_from_bytes(mail, policy=policy.default)['Subject']))}</a>"
                        for n, (to, mail) in enumerate(caught.mails)
                    )
                    text = f"<title>Mailbox</title><h1>Received mail</h1><ol start=0>{rows}</ol>"
                body = f'<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width">{text}'
                self.send_response(200)
                self.send_header("Content-Type", "text/html; charset=utf-8")
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *_: object) -> None:
                pass

        return Page


def post(url: str, sample: Sample, number: int) -> dict[str, Any]:
    """Post one message like Rspamd's `multipart` formatter, in two parts: metadata and message. Return the answer."""
    sender, header_from, recipients, subject, score, symbols, text = sample
    mail = "\r\n".join(
        [
            f"From: {formataddr(parseaddr(header_from))}",
            f"To: {', '.join(recipients)}",
            f"Subject: {Header(subject, 'us-ascii' if subject.isascii() else 'utf-8').encode()}",
            f"Message-ID: <{number}.{os.getpid()}@example.net>",
            f"Date: {time.strftime('%a, %d %b %Y %H:%M:%S +0000', time.gmtime())}",
            "MIME-Version: 1.0",
            'Content-Type: text/plain; charset="utf-8"',
            "Content-Transfer-Encoding: 8bit",
            "",
            text.replace("\n", "\r\n"),
        ]
    ).encode()
    metadata = {
        "action": "reject",
        "from": sender,
        "rcpt": recipients,
        "subject": subject,
        "score": score,
        "qid": f"4DEMO{number}",
        "ip": "198.51.100.7",
        "user": "unknown",
        "header_from": [header_from],
        "size": len(mail),
        "symbols": [{"name": name, "score": value, "group": "demo", "groups": ["demo"]} for name, value in symbols],
    }
    boundary = "0123456789abcdef"
    body = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="metadata"\r\nContent-Type: application/json\r\n'
        f"Content-Transfer-Encoding: binary\r\n\r\n{json.dumps(metadata)}\r\n"
        f'--{boundary}\r\nContent-Disposition: form-data; name="message"; filename="message.eml"\r\n'
        f"Content-Type: message/rfc822\r\nContent-Transfer-Encoding: binary\r\n\r\n"
    ).encode() + mail + f"\r\n--{boundary}--\r\n".encode()  # fmt: skip
    headers = {"Content-Type": f'multipart/form-data; boundary="{boundary}"', "User-Agent": "rspamd-4.1.6"}
    with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=10) as answer:
        result: dict[str, Any] = json.load(answer)
        return result


def text_of(mail: bytes) -> str:
    part = message_from_bytes(mail, policy=policy.default).get_body(("plain",))
    return part.get_content() if part else ""


def wait_for(url: str, portal: subprocess.Popen[bytes]) -> None:
    for _ in range(300):
        if portal.poll() is not None:
            break
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    print((HERE / "portal.log").read_text("utf-8", "replace"), file=sys.stderr)
    raise SystemExit("The portal did not start; its log is above.")


def free_port(wanted: int) -> int:
    """Return the wanted port if it is free, else any free port."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise OSError("no free port")


if __name__ == "__main__":
    sys.exit(main())
