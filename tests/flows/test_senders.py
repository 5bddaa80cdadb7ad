"""The sender of a message, from Rspamd's POST to the list, the page and the digest, on both stores."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from email import message_from_bytes
from email.policy import default
from typing import Any

import pytest

from portal.model.links import Action
from portal.model.sender import LOOKS_ALIKE, OTHER_IN_NAME, SEVERAL
from portal.stores.records import Held
from tests.builders import ALICE
from tests.conftest import MakeParts
from tests.flows.test_aliases import send_digests
from tests.paths import DATA
from tests.smtp_server import SmtpServer
from tests.web_client import Site

CASES = DATA / "mail-cases"
KNOWN = "released before"
BANK = "Bank <service@bank.example>"
PASSED = [{"name": "DMARC_POLICY_ALLOW", "score": -0.5, "options": ["bank.example", "reject"]}]
SPAM = {"name": "BAYES_SPAM", "score": 5.0}


@pytest.fixture
def smtp() -> Iterator[SmtpServer]:
    with SmtpServer() as server:
        yield server


@pytest.fixture
def site(make_parts: MakeParts, smtp: SmtpServer) -> Site:
    return Site(make_parts(relay__url=smtp.url, mail__url=smtp.url))


def post(site: Site, mail: bytes, *, sender: str = "env@example.net", **headers: str) -> Held:
    """Post a message as Rspamd does, and return it."""
    rspamd = site.browser()
    rspamd.peer = "127.0.0.1"
    fields = {"X-Rspamd-Rcpt": json.dumps([ALICE]), "X-Rspamd-From": sender, "X-Rspamd-Action": "reject", **headers}
    answer = rspamd.request("POST", "/", body=mail, headers=fields).json
    assert answer["status"] == "held", answer
    return Held(site.store.messages.find(answer["id"])[0].id, False)


def mail_from(*fields: str, subject: str = "Order") -> bytes:
    return "".join([*(f"From: {field}\r\n" for field in fields), f"Subject: {subject}\r\n\r\nx\r\n"]).encode(
        "ascii", "surrogateescape"
    )


@dataclass(frozen=True)
class Seen:
    """The texts about one message that a recipient reads."""

    subject: str
    name: str
    address: str
    envelope: str
    warning: str


def seen(page: str) -> Seen:
    def found(pattern: str, text: str) -> str:
        match = re.search(pattern, text, re.DOTALL)
        return html.unescape(re.sub("<[^>]*>", "", match[1])).strip() if match else ""

    [origin] = re.findall('<div class="origin">.*?</div>', page, re.DOTALL)
    return Seen(
        found("<h1>(.*?)</h1>", page),
        found('<bdi class="who">(.*?)</bdi>', origin),
        found('<bdi class="address">(.*?)</bdi>', origin),
        found("<dt>Sending address</dt>.*?<dd>(.*?)</dd>", page),
        next((each for each in (SEVERAL, OTHER_IN_NAME, LOOKS_ALIKE) if each in html.unescape(page)), ""),
    )


def page_of(site: Site, held: Held) -> Seen:
    return seen(site.signed_in(ALICE).get(f"/messages/{held.id}/").text)


def digest(site: Site, smtp: SmtpServer) -> tuple[str, str, str]:
    """Send Alice's digest and return its subject, text part and HTML part."""
    smtp.mails.clear()
    send_digests(site)
    [mail] = [message_from_bytes(each.data, policy=default) for each in smtp.mails]
    parts = [mail.get_body((kind,)) for kind in ("plain", "html")]
    text, page = (part.get_content() for part in parts if part is not None)
    return str(mail["Subject"]), text, html.unescape(page)


@pytest.mark.parametrize(
    ("name", "who", "address", "subject"),
    [
        ("K05-latin1.eml", "Jürgen", "j@shop.example", "Käse und Gemüse"),
        ("K07-b-not-ended-with-name.eml", "Jürgen", "j@shop.example", "Order 4711"),
        ("K17-blank-before-colon.eml", "", "nina@shop.example", "Old syntax"),
        ("K17-name-not-ascii.eml", "Nina", "nina@shop.example", "x"),
        ("K18-byte-order-mark.eml", "Nina", "nina@shop.example", "Order 4711"),
        ("K18-long-to.eml", "Nina", "nina@shop.example", "Order 4711"),
        ("K23-brackets-in-comment.eml", "Your bank <service@bank.example>", "evil@bad.example", "Order 4711"),
        ("K23-empty-brackets.eml", "MAILER DAEMON", "env@example.net", "Order 4711"),
        ("K23-name-is-address.eml", "", "joe@shop.example", "Order 4711"),
        ("K23-quoted-pairs.eml", "Joe (sales) \\ Miller", "joe@shop.example", "Order 4711"),
    ],
)
def test_mail_of_odd_senders(site: Site, smtp: SmtpServer, name: str, who: str, address: str, subject: str) -> None:
    held = post(site, (CASES / name).read_bytes())
    page = page_of(site, held)
    assert (page.name, page.address, page.subject) == (who, address, subject)
    assert page.envelope == ("" if address == "env@example.net" else "env@example.net")
    browser = site.signed_in(ALICE)
    listed = html.unescape(re.sub(r'<span class="local">(.*?)</span>', r"\1", browser.get("/").text))
    assert subject in html.unescape(browser.get(f"/?q={address}").text)
    assert 'class="mail"' not in browser.get("/?q=nobody").text
    text, layout = digest(site, smtp)[1:]
    line = f"{who} <{address}>" if who else address
    assert f"<bdi>{address}</bdi>" in listed
    assert line in text
    for words in filter(None, (who, address, subject)):
        assert words in listed
    for words in filter(None, (who, address.partition("@")[2], subject)):  # beside a long name, the domain alone
        assert words in layout


def test_a_subject_that_rspamd_damaged_is_the_messages_own(site: Site, smtp: SmtpServer) -> None:
    reported = "=?UTF-8?Q?=F0=9F=A4=A9_Big_sale_ends_today=2C_15=25_offJ\xf9u?==?UTF-8?Q?=9F=A4=A9?="
    held = post(site, (CASES / "K19-lost-octets.eml").read_bytes(), **{"X-Rspamd-Subject": reported})
    subject = "🤩 Big sale ends today, 15% off 🤩"
    assert page_of(site, held).subject == subject
    assert subject in site.signed_in(ALICE).get("/").text
    assert subject in digest(site, smtp)[1]


@pytest.mark.parametrize(
    ("fields", "name", "address", "warned"),
    [
        ([BANK, "Eve <eve@bad.example>"], "Bank", "service@bank.example, eve@bad.example", True),
        ([BANK, BANK], "Bank", "service@bank.example, service@bank.example", True),
        (["", BANK], "", "service@bank.example", True),
        (["a@a.example, b@b.example, c@c.example"], "", "a@a.example, b@b.example, …", True),
        (["<service@bank.example> <eve@bad.example>"], "", "service@bank.example, eve@bad.example", True),
        (["Eve <eve@bad.example> service@bank.example"], "Eve", "eve@bad.example, service@bank.example", True),
        (["Berg, Nina <nina@shop.example>"], "Berg, Nina", "nina@shop.example", False),
        (["Shop: nina@shop.example;"], "Shop:", "nina@shop.example", False),
        (['"a@b.example, c@d.example" <nina@shop.example>'], "a@b.example, c@d.example", "nina@shop.example", True),
        (["J\udcfcrgen <nina@shop.example>"], "Jürgen", "nina@shop.example", False),
        (["J\udcc3\udcbcrgen <nina@shop.example>"], "Jürgen", "nina@shop.example", False),
        (
            ["Nina (at the shop) <(x) nina (y) @ (z) shop.example>"],
            "Nina (at the shop x y z)",
            "nina@shop.example",
            False,
        ),
        ([], "", "env@example.net", False),
    ],
)
def test_several_addresses_are_a_warning(
    site: Site, smtp: SmtpServer, fields: Sequence[str], name: str, address: str, warned: bool
) -> None:
    page = page_of(site, post(site, mail_from(*fields)))
    assert (page.name, page.address, bool(page.warning)) == (name, address, warned)
    listed = site.signed_in(ALICE).get("/").text
    text, layout = digest(site, smtp)[1:]
    for words in (listed, layout):
        assert (html.escape(page.warning) in words) is True
    assert ("Caution:" in text) is warned
    assert ("Caution:" in layout) is warned


# ---- trust


def honest(site: Site, subject: str = "Honest") -> Held:
    return post(
        site, mail_from(BANK, subject=subject), sender="service@bank.example", **symbols(*PASSED, SPAM), **score(17)
    )


def symbols(*found: Mapping[str, Any]) -> dict[str, str]:
    return {"X-Rspamd-Symbols": json.dumps(found), "X-Rspamd-Qid": "4XyZq1abc"}


def score(points: float) -> dict[str, str]:
    return {"X-Rspamd-Score": str(points)}


def release(site: Site, held: Held) -> None:
    site.browser().post(site.link(Action.RELEASE, held), {"pressed": "1"})


def signed(domain: str) -> dict[str, Any]:
    return {"name": "R_DKIM_ALLOW", "score": -0.2, "options": [f"{domain}:s=sel"]}


SPF = {"name": "R_SPF_ALLOW", "score": -0.2}
NO_DMARC = {"name": "DMARC_NA", "score": 0.0}
OF_BAD = {"name": "DMARC_POLICY_ALLOW", "score": -0.5, "options": ["bad.example", "reject"]}


def cases() -> Iterator[Any]:
    for path in sorted(CASES.glob("K24-*.json")):
        mail = json.loads(path.read_text("utf-8"))["second"]
        yield pytest.param([mail["from_header"]], mail["symbols"], id=path.stem)


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        *cases(),
        pytest.param(["evil@bad.example (Bank <service@bank.example>)"], [OF_BAD, SPF], id="comment"),
        pytest.param(['"Bank <service@bank.example>" <evil@bad.example>'], [OF_BAD], id="quoted string"),
        pytest.param(["=?utf-8?Q?=3Cservice=40bank=2Eexample=3E?= <evil@bad.example>"], [OF_BAD], id="encoded word"),
        pytest.param([BANK, "evil@bad.example"], [signed("bank.example")], id="second field"),
        pytest.param([BANK + ", evil@bad.example"], PASSED, id="second address"),
        pytest.param([BANK], [OF_BAD, SPF], id="DMARC of another domain"),
        pytest.param([BANK], [signed("bank.example:s=x.bad.example"), NO_DMARC], id="colon in the domain"),
        pytest.param([BANK], [signed("example"), NO_DMARC], id="public suffix"),
        pytest.param([BANK], [{"name": "DMARC_POLICY_SOFTFAIL"}, signed("bank.example")], id="DMARC failed"),
        pytest.param([BANK], [{"name": "DMARC_BAD_POLICY"}, signed("bank.example")], id="bad policy"),
        pytest.param([BANK], [SPF], id="SPF alone"),
        pytest.param([BANK], [{"name": "R_DKIM_ALLOW", "score": -0.2}], id="DKIM of an unknown domain"),
    ],
)
def test_a_forgery_gets_no_sign_of_trust(site: Site, smtp: SmtpServer, fields: list[str], found: list[Any]) -> None:
    release(site, honest(site, "First"))
    post(site, mail_from("Nina <nina@shop.example>", subject="Plain"), **symbols(SPAM), **score(16))
    post(
        site,
        mail_from(*fields, subject="Forged"),
        sender="evil@bad.example",
        **symbols(*found, SPAM, {"name": "FORGED_SENDER", "score": 0.3}),
        **score(17),
    )
    subject, text, _ = digest(site, smtp)
    assert "Plain" in text
    assert "Forged" in text
    assert KNOWN not in text
    assert "bank.example" not in subject
    assert text.index("Plain") < text.index("Forged")


@pytest.mark.parametrize(
    "found",
    [
        pytest.param(PASSED, id="DMARC"),
        pytest.param([{"name": "DMARC_POLICY_ALLOW", "score": -0.5}], id="DMARC without options"),
        pytest.param([signed("bank.example"), NO_DMARC], id="DKIM"),
        pytest.param([signed("mail.bank.example"), NO_DMARC], id="DKIM of a subdomain"),
        pytest.param([signed("bad.example"), signed("bank.example"), {"name": "DMARC_DNSFAIL"}], id="two signatures"),
    ],
)
def test_the_real_sender_gets_all_three(site: Site, smtp: SmtpServer, found: list[Any]) -> None:
    release(site, honest(site, "First"))
    post(site, mail_from("Nina <nina@shop.example>", subject="Plain"), **symbols(SPAM), **score(16))
    held = post(
        site,
        mail_from(BANK, subject="Statement"),
        sender="bounce@mailer.example",
        **symbols(*found, SPAM, {"name": "FORGED_SENDER", "score": 0.3}),
        **score(30),
    )
    subject, text, _ = digest(site, smtp)
    assert text.count(KNOWN) == 1
    assert subject.endswith(" may be wanted: bank.example")
    assert text.index("Statement") < text.index("Plain")
    page = page_of(site, held)
    assert (page.envelope, page.warning) == ("bounce@mailer.example", "")


def test_a_damaged_list_of_symbols_proves_nothing(site: Site, smtp: SmtpServer) -> None:
    release(site, honest(site, "First"))
    cut = json.dumps([*PASSED, SPAM])[:-3]
    post(site, mail_from(BANK, subject="Cut"), **{"X-Rspamd-Symbols": cut}, **score(17))
    subject, text, _ = digest(site, smtp)
    assert "Cut" in text
    assert KNOWN not in text
    assert "bank.example" not in subject
