"""The digest as a mail: sent through Debian's Postfix, signed by the site's Rspamd, and scanned by it like any mail.
Its rows quote texts of spammers."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import SMTP
from pathlib import Path
from typing import Any

import dkim
import pytest

from digest import run
from portal.assemble import Parts
from portal.model.message import Symbol, Tier
from tests.builders import ALICE, BOB, hold, mail, now
from tests.system.samples import HOSTILE
from tests.system.services import Postfix, Rspamd, http, rspamd, wait_for
from tests.system.test_mail_path import DATA, _inner

pytestmark = pytest.mark.system

JUERGEN = "jürgen@example.org"
# Texts of spammers, and texts that scanners detect at any place.
WORDS = [
    "Confirm your password: https://evil.example/login.php?a=1 or www.evil.example/x",
    "FREE Viagra and Cialis!!! 100% GUARANTEED, act now",
    "Ваш счёт заблокирован – подтвердите данные",
    "恭喜您中奖了！请立即点击领取",
    "\u202egpj.exe\u2066 Rechnung über\u200bfällig",
    "URGENT wire transfer $$$ 1.000.000 USD from Barrister",
    '</td></table><script>alert(1)</script><img src="https://evil.example/a.png">',
    "I recorded you, send 2 BTC to 1BoatSLRHtKNngkdXEeobR76b53LETtpyT now",
    "XJS*C4JDBQADN1.NSBN3*2IDNEN*GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL*C.34X",
    "X5O!P%@AP[4\\PZX54(P^)7CC)7}$EICAR-STANDARD-ANTIVIRUS-TEST-FILE!$H+H*",
]
SENDERS = [
    "PayPal Security <service{}@paypal.com>",
    '"boss@example.org" <x{}@evil.example>',
    "抽奖中心 <lottery{}@xn--80ak6aa92e.com>",
    "Bank of America <alert{}@bankofamerica.com>",
    "<b{}@http.www.evil.example>",
]


@dataclass
class Site:
    """The portal's parts with the site's mail server, which scans and signs."""

    parts: Parts
    postfix: Postfix
    rspamd: Rspamd
    before: int = 0  # mails in all mailboxes when `send_digests` was called

    def send_digests(self) -> list[tuple[str, int]]:
        """Send all digests now and return recipients and numbers of messages."""
        self.before = self.mails()
        return run.send_all(self.parts, now()).sent

    def arrived(self, box: str) -> bytes:
        """Return the mail that arrived in this mailbox since then."""
        wait_for(lambda: self.mails() > self.before, details=self.postfix.log)
        return self.postfix.maildir(box)[-1]

    def mails(self) -> int:
        return sum(len(self.postfix.maildir(box)) for box in (ALICE, BOB, "juergen@example.org"))


@pytest.fixture(scope="module")
def servers(place: Path) -> Iterator[tuple[Postfix, Rspamd]]:
    key = place / "dkim.key"
    shutil.copy(DATA / "dkim.key", key)
    shutil.chown(key, "_rspamd")
    modules = {
        "dkim": "",
        "phishing": "",
        "whitelist": "",
        "dkim_signing": f'domain {{ example.org {{ path = "{key}"; selector = "s"; }} }}\n',
    }
    with ExitStack() as stack:
        signing = stack.enter_context(rspamd(place / "rspamd-signing", "", modules=modules))
        yield stack.enter_context(Postfix(place / "postfix-signing", signing.milter, signing.milter).running()), signing


@pytest.fixture
def store_url(files_url: str) -> str:
    """A single store: the digests of all stores are the same."""
    return files_url


@pytest.fixture
def language() -> str:
    """The language of the digest."""
    return "en"


@pytest.fixture
def site(make_parts: Callable[..., Parts], servers: tuple[Postfix, Rspamd], language: str) -> Site:
    postfix, scanner = servers
    url = "https://quarantine.example.org/quarantine"
    parts = make_parts(mail__url=f"smtp://127.0.0.1:{postfix.smtp}", public_url=url, digest__language=language)
    return Site(parts, postfix, scanner)


def hold_fifty(site: Site, recipient: str = ALICE) -> None:
    """Hold fifty messages, no two of which are near-identical, and one that may be wanted: else few are listed."""
    wanted = (Symbol("R_DKIM_ALLOW", -0.2, ("example.net:s=key",)), Symbol("DMARC_NA", 0))
    hold(site.parts.store, data=mail(), recipients=(recipient,), header_from="Ann <ann@example.net>", symbols=wanted)
    for number in range(50):
        word = "".join(chr(97 + int(digit)) * 2 for digit in str(number))
        hold(
            site.parts.store,
            data=mail(),
            recipients=(recipient,),
            tier=Tier.DANGEROUS if number % 10 == 3 else Tier.SPAM,
            subject=f"{WORDS[number % len(WORDS)]} {word}",
            header_from=SENDERS[number // 3 % len(SENDERS)].format(word),
            symbols=(Symbol("BAYES_SPAM", 5.1), Symbol("DBL_SPAM", 4.0)),
            score=20.0 + number / 10,
        )


def verdict(site: Site, data: bytes, **headers: str) -> dict[str, Any]:
    """Return Rspamd's verdict on a mail."""
    answer = http(f"http://127.0.0.1:{site.rspamd.scan}/checkv2", data, headers)
    assert answer.status == 200, answer.body
    return dict(json.loads(answer.body))


def verifies(data: bytes) -> bool:
    public = (DATA / "dkim.pub").read_bytes()
    record = public if public.startswith(b"v=DKIM1") else b"v=DKIM1; p=" + _inner(public)
    return bool(dkim.verify(data, dnsfunc=lambda *_, **__: record))


def read(data: bytes) -> EmailMessage:
    parsed = message_from_bytes(data, policy=SMTP.clone(utf8=True))
    assert isinstance(parsed, EmailMessage)
    return parsed


def check_shape(data: bytes) -> None:
    """Check line lengths and headers by RFC 5322 and 2045, with a margin."""
    head, _, body = data.partition(b"\r\n\r\n")
    # If quoted-printable is too large, the digest is 8bit, with lines of up to 998 octets (RFC 5322, 2.1.1).
    assert max(map(len, body.split(b"\r\n"))) <= (76 if body.isascii() else 998)
    assert head.isascii()
    # 78 is a SHOULD of RFC 5322, 2.1.1; addresses for machines cannot be folded.
    exact = (b"list-unsubscribe:", b"x-quarantine-mark:", b"message-id:")
    for line in head.split(b"\r\n"):
        assert len(line) <= (250 if line.lower().startswith(exact) else 78), line
    parsed = read(data)
    assert [part.defects for part in parsed.walk()] == [[], [], []]
    for name in ("From", "To", "Subject", "Date", "Message-ID", "MIME-Version"):
        assert len(parsed.get_all(name, [])) == 1, name


@pytest.mark.parametrize("language", ["en", "ar", "ja"])
def test_a_digest_of_50_hostile_rows_arrives_whole_and_signed(site: Site) -> None:
    hold_fifty(site)
    assert site.send_digests() == [(ALICE, 51)]
    arrived = site.arrived(ALICE)
    check_shape(arrived)
    assert "from=<>, size=" in site.postfix.log(), "the null sender, so that no mail server replies to a digest"
    (signature,) = read(arrived).get_all("DKIM-Signature", [])
    (signed,) = re.findall(r"\bh=([^;]+)", str(signature))
    names = set(re.sub(r"\s", "", signed).lower().split(":"))
    # RFC 8058, 4: the signature covers both headers of the one-click unsubscription.
    assert {"from", "to", "subject", "date", "message-id", "list-unsubscribe", "list-unsubscribe-post"} <= names
    assert verifies(arrived)
    assert not verifies(arrived.replace(b"List-Unsubscribe: <https://q", b"List-Unsubscribe: <https://x"))
    assert not verifies(arrived.replace(b"PayPal", b"PeyPal", 1))
    found = verdict(site, arrived, IP="127.0.0.1", Helo="localhost", From="", Rcpt=ALICE)
    assert found["action"] == "no action" and found["score"] < 1, found


@pytest.mark.parametrize(
    "headers",
    [
        {"IP": "127.0.0.1", "Helo": "localhost", "From": "", "Rcpt": ALICE},
        {"IP": "203.0.113.9", "Helo": "mx.example.org", "Hostname": "mx.example.org", "From": "", "Rcpt": ALICE},
    ],
    ids=["at home", "elsewhere"],
)
@pytest.mark.parametrize("hostile", [True, False], ids=["50 hostile rows", "samples"])
def test_rspamd_does_not_call_a_digest_spam(site: Site, headers: dict[str, str], hostile: bool) -> None:
    if hostile:
        hold_fifty(site)
    else:
        for subject, header_from, score, symbols, tier in HOSTILE:
            more: dict[str, Any] = {"subject": subject, "header_from": header_from, "score": score, "symbols": symbols}
            hold(site.parts.store, data=mail(), recipients=(ALICE,), tier=tier, **more)
    assert len(site.send_digests()) == 1
    found = verdict(site, site.arrived(ALICE), **headers)
    scores = {name: one["score"] for name, one in found["symbols"].items()}
    scored = ", ".join(f"{name} {score:g}" for name, score in sorted(scores.items(), key=lambda one: -one[1]))
    print(f"\nRspamd on a digest: {found['action']}, score {found['score']:g} of {found['required_score']:g}: {scored}")
    assert found["action"] == "no action", scored
    assert found["score"] < 2, scored
    # No symbol for the text, the links or the format. The others come from the network of the test: no name server,
    # no TLS.
    blamed = {
        name for name, score in scores.items() if score > 0 and not name.startswith(("HFILTER_", "RDNS_", "RCVD_"))
    }
    assert blamed == set(), scored


def test_rspamd_would_have_called_its_words_spam(site: Site) -> None:
    """The test above would prove nothing if Rspamd accepted the same words in a plain mail."""
    text = "\r\n".join([*WORDS[:8], *(sender.format("a") for sender in SENDERS), "No page asks for a password."])
    head = f"From: quarantine@example.org\r\nTo: {ALICE}\r\nSubject: x\r\nMessage-ID: <1@example.org>\r\n"
    head += "Date: Sun, 22 Nov 2026 08:00:00 +0000\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n"
    for body in (text, WORDS[8]):
        found = verdict(site, f"{head}\r\n{body}\r\n".encode(), IP="127.0.0.1", From="", Rcpt=ALICE)
        assert found["action"] != "no action", found


def test_a_recipient_beyond_ascii_gets_a_digest_where_the_mail_server_speaks_smtputf8(site: Site) -> None:
    hold(site.parts.store, recipients=(JUERGEN,))
    assert site.send_digests() == [(JUERGEN, 1)]
    arrived = site.arrived("juergen@example.org")
    assert f"\r\nTo: {JUERGEN}\r\n".encode() in arrived
    assert read(arrived).get_body(("plain",)).get_content().count(JUERGEN) == 2  # type: ignore[union-attr]
    assert verifies(arrived)


def test_without_smtputf8_that_recipient_waits_and_the_others_are_notified(
    site: Site, make_parts: Callable[..., Parts]
) -> None:
    old = make_parts(mail__url=f"smtp://127.0.0.1:{site.postfix.smtp_old}", public_url=site.parts.settings.public_url)
    hold(site.parts.store, recipients=(JUERGEN, BOB))
    site.before = site.mails()
    summary = run.send_all(old, now())
    assert summary.sent == [(BOB, 1)]
    ((left, why),) = summary.failed
    assert left == JUERGEN and "SMTPUTF8" in why
    check_shape(site.arrived(BOB))
    assert site.mails() == site.before + 1
    later = now() + timedelta(hours=1)
    assert run.send_all(site.parts, later).sent == [(JUERGEN, 1)], "nothing is lost: a server that accepts it gets it"
