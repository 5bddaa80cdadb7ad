"""The HTML of a message as its sender formatted it: what is left of hostile HTML, pictures, links and styles."""

from __future__ import annotations

import base64
import html
import io
import re
from email.message import EmailMessage
from html.parser import HTMLParser
from typing import Any

import pytest

from portal.reading import formatted, read, read_formatted
from tests.paths import DATA

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
HOSTILE = (DATA / "hostile-html.txt").read_text().splitlines()


def made(markup: str, *pictures: tuple[str, bytes, str]) -> dict[str, Any]:
    """Return what is left of HTML with these pictures: id, octets and media type of each."""
    mail = EmailMessage()
    mail.set_content(markup, subtype="html", cte="base64")
    for name, octets, subtype in pictures:
        mail.add_related(octets, "image", subtype, cid=f"<{name}>")
    return formatted.formatted(io.BytesIO(mail.as_bytes()).read, lambda: 0.0, 1.0)


class Found(HTMLParser):
    """All tags and attributes of a document."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.values: list[tuple[str, str, str]] = []
        self.feed(markup)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.values += [(tag, name, value or "") for name, value in attrs]


@pytest.mark.parametrize("payload", HOSTILE)
def test_hostile_html_is_left_with_nothing_that_runs_or_loads(payload: str) -> None:
    names = {"js": "alert(1)", "load": "http://evil.example/x", "host": "evil.example", "path": "x"}
    found = Found(made(f"<p>before {re.sub('{(js|load|host|path)}', lambda name: names[name[1]], payload)}")["html"])
    assert found.tags <= formatted._TAGS
    for tag, name, value in found.values:
        if (tag, name) == ("a", "href"):
            assert value.startswith(("http://", "https://"))
        elif (tag, name) == ("span", "class"):
            assert value in ("host", "link", "origin", "picture")
        elif name in ("aria-label", "title"):
            assert tag == "span"  # text, also if it is the name of a host
        else:
            assert not name.startswith("on") and name not in ("src", "srcset", "background", "id", "name"), (tag, name)
            assert "url(" not in value and "evil" not in value and "position" not in value, (name, value)


def test_pictures_of_the_message_are_shown_by_what_their_octets_say() -> None:
    svg, webp = b'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"/>', b"RIFF\0\0\0\0WEBPVP8 "
    html = made(
        '<img src="cid:a%40x" width=9><img src="cid:b"><img src="cid:c"><img src="CID:d"><img src="cid:e">',
        *(("a@x", PNG, "svg+xml"), ("b", svg, "png"), ("c", b"\xff\xd8\xff\xe0", "gif"), ("d", webp, "png")),
    )["html"]
    assert re.findall(r'src="data:image/(\w+);base64,', html) == ["png", "jpeg", "webp"]
    assert base64.b64encode(PNG).decode() in html and "svg" not in html


def test_a_picture_that_is_in_the_page_many_times_counts_each_time() -> None:
    html = made('<img src="cid:a">' * 400, ("a", PNG + b"x" * 200_000, "png"))["html"]
    assert 8_000_000 < len(html) < 8_400_000
    assert html.count("data:image/png") == 31


def test_pictures_beyond_the_limit_are_not_kept() -> None:
    pictures = [(f"a{number}", PNG + b"x" * 3_000_000, "png") for number in range(5)]
    found = made("".join(f'<img src="cid:{name}">' for name, _, _ in pictures), *pictures)
    assert found["html"].count("data:image") == 2 and len(found["html"]) < 8_400_000


def test_pictures_from_the_internet_are_counted() -> None:
    found = made('<img src="http://x/1"><img src=" HTTPS://x/2"><img src="//x/3"><img src="cid:a"><img src="data:,x">')
    assert found["remote"] == 3 and "src" not in found["html"]


@pytest.mark.parametrize(
    ("picture", "left"),
    [
        ('<img src="http://x/1" alt="Spade &amp; &quot;fork&quot;">', ('Spade & "fork" x', "")),
        ('<img src="http://x/1" width="600" height=80 alt=Spade>', ("Spade x", "width:600px;min-height:80px")),
        ('<img src="http://x/1" width="100%" height=2000>', ("x", "width:100%;min-height:120px")),
        ('<img src="cid:missing" alt="Logo" style="width:9px">', ("Logo", "")),
        ('<img src="http://x/1" width="1;position:fixed" height="9)" alt="<b>y</b>">', ("<b>y</b> x", "")),
        ('<img src="http://x/1" width=99 alt=Fork>', ("Fork", "width:99px")),
        ('<img src="http://x/1" alt="">', None),
        ('<img src="http://x/1" width=1 height=1 alt="read">', None),
        ('<img src="http://x/1" width=600 height="1px">', None),
    ],
)
def test_a_picture_that_is_not_shown_is_a_box_with_its_alternative_text(
    picture: str, left: tuple[str, str] | None
) -> None:
    markup = made(f"<p>{picture}</p>")["html"]
    found = Found(markup)
    assert "img" not in found.tags
    boxes = [value for tag, name, value in found.values if (tag, name) == ("span", "style")]
    assert boxes == ([left[1]] if left else [])
    assert html.unescape(re.sub("<[^>]*>", "", markup)).strip() == (left[0] if left else "")
    names = [name for _, name, _ in found.values]
    assert names.count("aria-label") == (left is not None)


@pytest.mark.parametrize(
    ("source", "host"),
    [
        ("https://pictures.example/1?a=<b>", "pictures.example"),
        (" HT&#9;TP://Pictures.example:8080/1", "pictures.example"),
        ("//pictures.example", "pictures.example"),
        ("https://täst.example/", "xn--tst-qla.example"),
        # What browsers read otherwise than people has no name.
        ("https://bank.example@evil.example/", ""),
        ("https:\\\\evil.example/", ""),
        ("https://bank.example&quot; onload=alert(1)/", ""),
        ("cid:bank.example", ""),
        ("data:image/png;base64,x", ""),
        ("/1", ""),
    ],
)
def test_the_box_names_the_host_that_a_picture_would_come_from(source: str, host: str) -> None:
    markup = made(f'<p><img src="{source}" alt="Spade" width=200></p>')["html"]
    found = Found(markup)
    assert found.tags == {"p", "span"}
    assert re.sub("<[^>]*>", "", markup).strip() == f"Spade {host}".strip()
    assert [value for _, name, value in found.values if name == "title"] == ([host] if host else [])
    assert [value for _, name, value in found.values if name == "aria-label"] == [f"Spade, {host}" if host else "Spade"]


@pytest.mark.parametrize(
    ("href", "host"),
    [
        ("https://shop.example/a?b=c&amp;d#e", "shop.example"),
        ("HTTP://Shop.example:8080", "shop.example"),
        (" ht&#9;tps://shop.example/", "shop.example"),
        ("https://täst.example/", "xn--tst-qla.example"),
        ("https://ｓｈｏｐ.example/", "shop.example"),
        # What browsers read otherwise than people is no link.
        ("https://bank.example@evil.example/", ""),
        ("https://evil.example\\@bank.example/", ""),
        ("https:\\\\evil.example/", ""),
        ("https:evil.example", ""),
        ("https://%65vil.example/", ""),
        ("//evil.example/", ""),
        ("/sign-out", ""),
        ("mailto:x@evil.example", ""),
        ("javascript:alert(1)", ""),
        ("data:text/html,x", ""),
        ("cid:a", ""),
    ],
)
def test_each_link_is_followed_by_its_host_and_opens_by_itself(href: str, host: str) -> None:
    html = made(f'<p><a href="{href}" target=_top rel=opener title="bank.example">https://bank.example</a>')["html"]
    assert 'rel="noopener noreferrer nofollow"' in html and "target" not in html and "title" not in html
    after = f'<span class="host"> [{host}]</span></span>' if host else ""
    assert f"https://bank.example</a>{after}\n</p>" in html
    assert ("href" in html) is ('<span class="link"><a ' in html) is bool(host)


def test_a_link_around_a_table_with_a_link_is_followed_by_its_own_host() -> None:
    html = made('<a href="https://a.example"><table><tr><td><a href="https://b.example">x</a></table>y</a>')["html"]
    assert [each.start() for each in re.finditer(r"\[b.example\]", html)] < [html.index("[a.example]")]


@pytest.mark.parametrize(
    ("style", "left"),
    [
        ("color:red;font-family:'Open Sans', Arial", 'color:red;font-family:"Open Sans",Arial'),
        ("background:#fff url(http://x/y) no-repeat", "background:#fff no-repeat"),
        ("background-color:rgb(1, 2, 3) !important", "background-color:rgb(1,2,3)"),
        ("position:fixed;top:0;z-index:9;opacity:0;transform:scale(9)", ""),
        ("margin-top:-90px;margin:4px", "margin:4px"),
        ("letter-spacing:-3000px;vertical-align:-4000px;display:flex", ""),
        (
            "letter-spacing:1px;vertical-align:text-top;display:inline-block",
            "letter-spacing:1px;vertical-align:text-top;display:inline-block",
        ),
        ("b\\61 ckground:url(x)", ""),
        ("color:red/*;*/;width:calc(9px)", ""),
        ("background:url(a\\)url(b)", ""),
        ("color:var(--x);width:attr(x)", ""),
        ('font-family:"a;color:red', "color:red"),
        (
            "font-size:72px;font-size:1.5em;font-size:x-large;font-size:0",
            "font-size:72px;font-size:1.5em;font-size:x-large;font-size:0",
        ),
        ("font-size:73px;font-size:2em;font-size:3000pt;font-size:1e9px;font-size:9vh;font-size:+9px", ""),
    ],
)
def test_styles_load_nothing_and_cover_nothing(style: str, left: str) -> None:
    styles = re.findall(r'style="([^"]*)"', made(f"<p style='{style.replace(chr(39), '&#39;')}'>x")["html"])
    assert "".join(styles).replace("&quot;", '"').replace(" ", "") == left.replace(" ", "")


@pytest.mark.parametrize(
    ("data", "html"),
    [
        (b"Content-Type: text/html; charset=koi8-r\r\n\r\n<b>\xf3\xde\xa3\xd4</b>", "<b>Счёт</b>"),
        (b"Content-Type: text/plain\r\n\r\n<b>x</b>", ""),
        (b"Content-Type: text/html\r\nContent-Disposition: attachment\r\n\r\n<b>x</b>", "<b>x</b>"),
        (
            b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\nContent-Type: text/html\r\n\r\n<b>x\r\n--b\r\n"
            b"Content-Type: text/html\r\n\r\ny\r\n--b\r\nContent-Type: text/html\r\n"
            b"Content-Disposition: attachment\r\n\r\nz\r\n--b\r\nContent-Type: message/rfc822\r\n\r\n"
            b"Content-Type: text/html\r\n\r\nz\r\n--b--",
            "<b>x</b><hr>y",
        ),
        (
            b"Content-Type: multipart/alternative; boundary=b\r\n\r\n--b\r\nContent-Type: text/html\r\n\r\nx\r\n--b\r\n"
            b"Content-Type: text/html\r\n\r\ny\r\n--b\r\nContent-Type: text/plain\r\n\r\nz\r\n--b--",
            "y",
        ),
    ],
    ids=["charset", "plain", "whole", "several", "alternatives"],
)
def test_the_restricted_process_answers_with_the_html_that_mail_programs_show(data: bytes, html: str) -> None:
    found = read_formatted([data], "alice@example.org")
    assert found and found.html.replace("\r\n", "").replace("\n", "") == html
    assert read([data], "alice@example.org").has_html is bool(html)


def test_the_restricted_process_has_all_that_it_needs_for_international_links() -> None:
    data = 'Content-Type: text/html; charset=utf-8\r\n\r\n<a href="https://ünique.example/">x</a>'.encode()
    found = read_formatted([data], "alice@example.org")
    assert found and "[xn--nique-jva.example]" in found.html


@pytest.mark.slow
@pytest.mark.parametrize("markup", [b"<div>" * 200_000, b"&" * (1 << 20)], ids=["nested", "ampersands"])
def test_html_that_takes_too_long_is_given_up_and_the_text_stays(markup: bytes) -> None:
    data = b"Content-Type: text/html\r\n\r\nThe words" + markup
    assert read_formatted([data], "alice@example.org") is None
    assert read([data], "alice@example.org").text.startswith("The words")
