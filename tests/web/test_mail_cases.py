"""Mail that other products showed wrong: what the list and the page of the message show, on both stores."""

from __future__ import annotations

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
    def attachments(self) -> str:
        return "\n".join(self._found('<ul class="attachments">(.*?)</ul>'))


@pytest.fixture
def shown(parts: Parts) -> Callable[[str], Shown]:
    """A function that holds a file of `CASES` and returns what its recipient reads."""
    site = Site(parts)
    return lambda name: Shown(site, (CASES / name).read_bytes())


Read = Callable[[str], Shown]


@pytest.mark.parametrize(
    ("name", "subject"),
    [
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
    ],
)
def test_the_text(shown: Read, name: str, text: str) -> None:
    assert text in shown(name).text
