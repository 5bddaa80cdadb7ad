"""Mail that other products showed wrong: what the list and the page of the message show, on both stores."""

from __future__ import annotations

import gzip
import html
import re
from collections.abc import Callable
from uuid import UUID

import pytest

from portal.assemble import Parts
from tests.builders import ALICE
from tests.paths import ROOT
from tests.web_client import Site

CASES = ROOT / "tests" / "data" / "mail-cases"
WEB_PAGE = "form.htm Web page, 29 bytes It can imitate the sign-in page of another site."
CUT = "Only the beginning of the message is shown."
META = {"X-Rspamd-Rcpt": f'["{ALICE}"]', "X-Rspamd-From": "env@example.net", "X-Rspamd-Action": "reject"}


class Shown:
    """The page and the list that a recipient reads of one message."""

    def __init__(self, site: Site, data: bytes) -> None:
        rspamd = site.browser()
        rspamd.peer = "127.0.0.1"
        id = UUID(rspamd.request("POST", "/", body=data, headers=META).json["id"])
        browser = site.signed_in(ALICE)
        self.page = browser.get(f"/messages/{id}/").text
        self.list = html.unescape(browser.get("/").text)

    def _found(self, pattern: str) -> list[str]:
        return [html.unescape(re.sub("<[^>]*>", "", each)).strip() for each in re.findall(pattern, self.page, re.S)]

    @property
    def text(self) -> str:
        return "\n".join(self._found(r'<div class="text"[^>]*>(.*?)</div>'))

    @property
    def subject(self) -> str:
        return self._found("<h1>(.*?)</h1>")[0]

    @property
    def who(self) -> str:
        return " ".join(self._found('<bdi class="who">(.*?)</bdi>'))

    @property
    def headers(self) -> str:
        return "\n".join(self._found('<dl class="headers">(.*?)</dl>'))

    @property
    def attachments(self) -> list[str]:
        lists = re.findall('<ul class="attachments">(.*?)</ul>', self.page, re.S)
        items = re.findall("<li>(.*?)</li>", "".join(lists), re.S)
        return [" ".join(html.unescape(re.sub("<[^>]*>", "", item)).split()) for item in items]


@pytest.fixture
def shown(parts: Parts) -> Callable[[str], Shown]:
    """A function that holds a file of `CASES` and returns what its recipient reads."""
    site = Site(parts)

    def shown(name: str) -> Shown:
        data = (CASES / name).read_bytes()
        return Shown(site, gzip.decompress(data) if name.endswith(".gz") else data)

    return shown


Read = Callable[[str], Shown]


@pytest.mark.parametrize(
    ("name", "subject"),
    [
        ("K18-long-to.eml", "Order 4711"),
        ("K02-latin1-quotes.eml", "It’s “ready” – 5 €"),
        ("K02-gb2312-gbk.eml", "镕先生您好"),
        ("K02-sjis-cp932.eml", "①髙橋様"),
        ("K02-thai.eml", "สวัสดีครับ"),
        ("K02-cp-850.eml", "Größe für Käse"),
        ("K05-latin1.eml", "Käse und Gemüse"),
        ("K06-cut-in-a-character.eml", "Grüße aus München für"),
        ("K07-question-mark.eml", "Noch Fragen? Grüße"),
        ("K07-not-ended.eml", "Café im März"),
    ],
)
def test_the_subject(shown: Read, name: str, subject: str) -> None:
    seen = shown(name)
    assert seen.subject == subject
    assert subject in seen.list


@pytest.mark.parametrize("name", ["K05-latin1.eml", "K07-b-not-ended-with-name.eml"])
def test_the_name_of_the_sender(shown: Read, name: str) -> None:
    assert shown(name).who == "Jürgen"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("K01-none-cp1252.eml", "Grüße aus Köln, 50 €"),
        ("K01-us-ascii-but-utf8.eml", "Größe: 2 m²"),
        ("K01-unknown-name-utf8.eml", "Größe: 2 m²"),
        ("K01-says-utf8-is-latin1.eml", "Fraîche près du château"),
        ("K02-latin1-quotes.eml", "It’s “ready” – 5 €"),
        ("K02-gb2312-gbk.eml", "镕先生您好"),
        ("K02-sjis-cp932.eml", "①髙橋様"),
        ("K02-thai.eml", "สวัสดีครับ"),
        ("K02-cp-850.eml", "Größe für Käse"),
        ("K03-koi8r.eml", "Счёт за ноябрь"),
        ("K09-blank-behind.eml", "Please pay order 4711"),
        ("K09-comment.eml", "Grüße aus Köln"),
        ("K09-in-quotes.eml", "Please pay order 4711"),
        ("K10-two-blocks.eml", "Thank you for your order. Now pay to account 99."),
        ("K11-for.eml", "Dear Pat\n\norder 4711 is ready"),
        ("K12-blank.eml", "The real words"),
        ("K13-plain-inline-name.eml", "The only words there are"),
        ("K13-html-inline-filename.eml", "Order 4711 was shipped"),
        ("K14-list-footer.eml", "Please sign contract 4711\n\n______\nStaff list\nhttps://lists.example"),
        ("K14-alternative-then-html.eml", "Hello Pat\n\nPlease pay 500 today"),
        (
            "K14-placeholder-plain.eml",
            "To view this mail, please use a mail program that shows HTML.\n\nTicket 99 is closed",
        ),
        ("K15-named.eml", "see attached\n\n> From: boss@corp.example\n> Subject: Transfer today\n>\n> Inner words"),
        ("K15-whose-words.eml", "see below\n\n> From: boss@corp.example\n> Subject: Transfer today\n>\n> Inner words"),
        ("K16-second-attachment.eml.gz", "two files"),
        ("K17-name-not-ascii.eml", "Words to read"),
        ("K17-blank-before-colon.eml", "Words to read"),
        (
            "K20-delivery-status.eml",
            "Reporting-MTA: mx.example\n\nFinal-Recipient: bob@example.net\nAction: failed\nStatus: 5.1.1",
        ),
        ("K20-calendar.eml", "Budget meeting"),
        ("K21-none-named.eml", "The real words"),
        ("K22-pre.eml", "line one\nline two"),
        ("K22-base-href.eml", "Your bank [evil.example]"),
        ("K22-picture-alt.eml", "Autumn sale, all shoes [shop.example]"),
        ("K22-hidden-words.eml", "Buy pills"),
    ],
)
def test_the_text(shown: Read, name: str, text: str) -> None:
    assert shown(name).text == text


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("K04-to-and-name-utf8.eml", "Zoë Groß <pat@example.org>"),
        ("K04-latin1.eml", "Jürgen <pat@example.org>"),
        ("K05-latin1.eml", "Zöe <pat@example.org>"),
        ("K08-to.eml", "Jürgen <pat@example.org>"),
        ("K18-long-to.eml", '"Person 0" <person0@example.org>, "Person 1" <person1@example.org>'),
    ],
)
def test_the_header_lines(shown: Read, name: str, words: str) -> None:
    assert words in shown(name).headers


@pytest.mark.parametrize(
    ("name", "attachments"),
    [
        ("K04-to-and-name-utf8.eml", ["Rechnung Müller.pdf Text file, 1 byte"]),
        ("K13-html-inline-filename.eml", [WEB_PAGE, "o.bmp Text file, 1 byte"]),
        ("K13-plain-inline-name.eml", ["body.txt Text file, 26 bytes"]),
        ("K15-named.eml", ["thanks.eml (boss@corp.example: Transfer today) Attached message, 89 bytes"]),
        ("K15-whose-words.eml", ["boss@corp.example: Transfer today Attached message, 89 bytes"]),
        (
            "K16-second-attachment.eml.gz",
            ["first.pdf Text file, 826 kB", "second.zip Text file, 2 bytes"],
        ),
    ],
)
def test_the_attachments(shown: Read, name: str, attachments: list[str]) -> None:
    assert shown(name).attachments == attachments


def test_a_long_line_is_shown_whole(parts: Parts) -> None:
    """K27: before, it ended after 10,000 characters, and the page did not say so."""
    line = "word " * 5_000 + "END"
    seen = Shown(Site(parts), f"Subject: x\r\nContent-Type: text/plain\r\n\r\n{line}\r\n".encode())
    assert seen.text == line
    assert CUT not in seen.page


@pytest.mark.parametrize("kind", ["plain", "html"])
def test_what_is_cut_says_so(parts: Parts, kind: str) -> None:
    data = f"Subject: x\r\nContent-Type: text/{kind}\r\n\r\n{'many words ' * 30_000}END".encode()
    seen = Shown(Site(parts), data)
    assert seen.text.startswith("many words many words")
    assert len(seen.text) > 250_000
    assert "END" not in seen.text
    assert CUT in seen.page
