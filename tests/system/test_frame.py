"""Hostile HTML in Debian's Chromium and Firefox, as its sender formatted it: without protection, with each layer alone,
and in the portal's frame. A server that nothing may reach counts requests and connections."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from portal.model.message import Tier
from tests.reading.test_formatted import PNG, made
from tests.system.browsers import Window, open_with_frames
from tests.system.local_site import LocalSite, sign_in
from tests.system.outside import PAYLOADS, QUIET, Listener, framed, listening, numbers, payloads
from tests.web.test_formatted import frame

pytestmark = pytest.mark.system


@pytest.fixture
def store_url(files_url: str) -> str:
    """A single store: browsers see the same on all stores."""
    return files_url


def layers(site: LocalSite) -> tuple[str, str]:
    """Return the portal's two other layers: the policy of its frame's answer, and the sandbox of the frame."""
    held = site.hold(data=b"Content-Type: text/html\r\n\r\n<p>x")
    policy = frame(site, held).header("Content-Security-Policy")
    page = site.signed_in("alice@example.org").get(f"/messages/{held.id}/formatted").text
    sandbox = re.search(r'<iframe[^>]* sandbox="([^"]*)"', page)
    assert policy and sandbox
    return policy, sandbox[1]


def test_without_protection_hostile_html_fires(window: Window, outside: Listener) -> None:
    fired = framed(window, payloads(outside), {}, None, outside)
    assert len(numbers(fired)) > 60 and len(numbers(fired, "js")) > 30


def test_cleaned_html_alone_loads_and_runs_nothing(window: Window, outside: Listener) -> None:
    cleaned = [made(payload)["html"] for payload in payloads(outside)]
    assert framed(window, cleaned, {}, None, outside) == set() and outside.connections == 0


def test_the_policy_alone_loads_and_runs_nothing(site: LocalSite, window: Window, outside: Listener) -> None:
    policy, _ = layers(site)
    assert framed(window, payloads(outside), {"Content-Security-Policy": policy}, None, outside) == set()


def test_the_sandbox_alone_runs_nothing(site: LocalSite, window: Window, outside: Listener) -> None:
    _, sandbox = layers(site)
    fired = framed(window, payloads(outside), {}, sandbox, outside)
    assert numbers(fired, "js") == set() and len(numbers(fired, "load")) > 20  # pictures are not its task


def test_in_the_portal_hostile_html_reaches_nobody(site: LocalSite, window: Window, outside: Listener) -> None:
    window.sign_in(site)
    windows, requests = window.count(), site.requests()
    for payload in payloads(outside):
        held = site.hold(data=b"Content-Type: text/html\r\n\r\n" + payload.encode())
        address = f"{site.parts.settings.public_url}/messages/{held.id}/formatted"
        open_with_frames(window, address)
        assert window.address() == address
    window.pause(QUIET)
    assert sum(kind == "iframe" for kind, _ in requests) == len(PAYLOADS)
    assert window.count() == windows
    assert (outside.paths, outside.connections) == (set(), 0)


@contextmanager
def reader(site: LocalSite, browser: Browser, **more: Any) -> Iterator[Page]:
    context = browser.new_context(**more)
    sign_in(site, context)
    yield context.new_page()
    context.close()


def test_pictures_and_links_in_the_portal(site: LocalSite, browser: Browser, outside: Listener) -> None:
    html = (
        f'<p style="position:fixed;inset:0;background:red">Autumn</p><img src="cid:a"><img src="http://{outside.host}/x">'
        f'<img src="http://{outside.host}/y" alt="Spade" width=200>'
        f'<img src="http://{outside.host}/1" width=1 height=1>'
        f'<a href="http://{outside.host}/link">https://bank.example<img src="//bank.example/x" alt=Go width=200></a>'
    )
    data = b"Content-Type: multipart/related; boundary=b\r\n\r\n--b\r\nContent-Type: text/html\r\n\r\n" + html.encode()
    data += b"\r\n--b\r\nContent-Type: image/png\r\nContent-ID: <a>\r\nContent-Transfer-Encoding: binary\r\n\r\n" + PNG
    held = site.hold(data=data + b"\r\n--b--\r\n")
    with reader(site, browser, viewport={"width": 390, "height": 844}, color_scheme="dark") as page:
        errors: list[str] = []
        page.on("console", lambda message: errors.append(message.text))
        page.goto(f"{site.parts.settings.public_url}/messages/{held.id}/formatted")
        inside = page.frame_locator("iframe")
        inside.get_by_text("4 pictures from the Internet are not shown.").wait_for()
        assert inside.locator("img[src^='data:image/png']").count() == 1
        document = page.frames[1]
        assert document.evaluate("document.querySelector('img').naturalWidth") == 1
        assert document.evaluate("document.images.length") == 1, "browsers show pictures without a source as broken"
        spade = "document.querySelector('.picture[aria-label^=Spade]').getBoundingClientRect()"
        assert "Spade 127.0.0.1" in inside.locator(".mail").inner_text()
        width, height = document.evaluate(f"[{spade}.width, {spade}.height]")
        assert width == 200 and 24 <= height <= 60
        assert document.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert document.evaluate("getComputedStyle(document.querySelector('p.notice + div p')).position") == "static"
        assert "https://bank.exampleGo [127.0.0.1]" in inside.locator(".mail").inner_text(), (
            "the host of the link alone"
        )
        box = page.locator("iframe").bounding_box()
        assert box and box["x"] >= 0 and box["x"] + box["width"] <= 390 and box["height"] < 844
        assert outside.connections == 0
        with page.context.expect_page() as opened:
            inside.get_by_text("https://bank.example").click()
        opened.value.wait_for_load_state()
        assert opened.value.url == f"http://{outside.host}/link"
        assert opened.value.evaluate("[window.opener, document.referrer]") == [None, ""]
        assert page.url.endswith("/formatted") and errors == []


@pytest.mark.parametrize(
    "link",
    [
        "{}<span style='letter-spacing:-3000px'>.</span>",
        "{}<span style='vertical-align:-4000px'>.</span>",
        "<span style='display:block;padding-bottom:5000px'>{}</span>",
        "<table height=5000 style='height:5000px;padding:3000px'><tr><td>{}</table>",
        "{}" + "<br>" * 500,
        "{}" + "<p>&nbsp;</p>" * 300,
        "<span style='white-space:pre'>{}" + " " * 3_000 + "\n" * 300 + "</span>",
    ],
)
def test_the_host_of_a_link_stays_beside_it(site: LocalSite, browser: Browser, link: str) -> None:
    html = (
        "<div style='display:flex;font-size:16px'><a style='padding:3000px;display:block' href='https://evil.example/'>"
    )
    html += f"{link.format('<b>https://bank.example</b>')}</a></div>"
    held = site.hold(data=b"Content-Type: text/html\r\n\r\n" + html.encode())
    with reader(site, browser, viewport={"width": 390, "height": 844}) as page:
        page.goto(f"{site.parts.settings.public_url}/messages/{held.id}/formatted")
        inside = page.frame_locator("iframe")
        text, host = (inside.locator(each).bounding_box() for each in ("b", ".host"))
        assert text and host and abs(host["y"] - text["y"]) < 200, (text, host)
        assert 0 <= host["x"] and host["x"] + host["width"] <= 390, host


_LINK = "<a href='https://evil.example/'><b>https://bank.example/{}</b></a>".format("x" * 35)  # fills a line


@pytest.mark.parametrize(
    "html",
    [
        f"<bdo dir=rtl>{_LINK}</bdo>",
        f"\u202e{_LINK}",
        f"<p style='line-height:3000px'>{_LINK}</p>",
        f"<p style='font-size:3000px'><span style='font-size:16px;line-height:1'>{_LINK}</span></p>",
        f"{'<big>' * 25}<p><span style='font-size:16px'>{_LINK}</span></p>",
        f"{_LINK}<img src='cid:a' width=300>",
        f"{_LINK}<span style='display:inline-block;height:3000px'></span>",
        f"{_LINK}<span style='display:inline-block;padding-top:3000px'>x</span>",
        f"{_LINK}<span style='line-height:3000px'>x</span>",
        f"{_LINK}<table style='display:inline-block;height:3000px'><tr><td>x</table>",
        _LINK.replace("</b>", "</b><span style='font-size:3000px'>&nbsp;</span>"),
        _LINK.replace("</b>", f"</b><span style='line-height:3000px'>{'x' * 50}</span>"),
        f"<table><tr><td style='width:1px'>{_LINK}</td></tr></table>",
        f"<div><div style='display:table-caption'>{_LINK}</div></div>",
    ],
)
def test_nothing_around_a_link_moves_or_mirrors_its_host(site: LocalSite, browser: Browser, html: str) -> None:
    data = b"Content-Type: multipart/related; boundary=b\r\n\r\n--b\r\nContent-Type: text/html; charset=utf-8\r\n\r\n"
    data += html.encode() + b"\r\n--b\r\nContent-Type: image/png\r\nContent-ID: <a>\r\n\r\n"
    held = site.hold(data=data + png(1, 3000) + b"\r\n--b--\r\n")
    with reader(site, browser, viewport={"width": 390, "height": 844}) as page:
        page.goto(f"{site.parts.settings.public_url}/messages/{held.id}/formatted")
        inside = page.frame_locator("iframe")
        text, host = (inside.locator(each).bounding_box() for each in ("b", ".host"))
        assert text and host and 0 <= host["y"] - text["y"] < 200 and host["width"] > 40, (text, host)
        assert 0 <= host["x"] and host["x"] + host["width"] <= 390, host
        first, last = inside.locator(".host").evaluate("""host => {
            const text = host.firstChild, begin = text.data.indexOf("evil");
            return [begin, begin + 3].map(at => {
                const letter = new Range();
                letter.setStart(text, at);
                letter.setEnd(text, at + 1);
                return letter.getBoundingClientRect().left;
            });
        }""")
        assert first < last, "the host reads from left to right"


def png(width: int, height: int) -> bytes:
    """Return a white picture."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = zlib.compress((b"\0" + b"\xff" * width) * height)
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_the_frame_is_empty_outside_of_the_portal(site: LocalSite, browser: Browser) -> None:
    held = site.hold(Tier.SPAM, data=b"Content-Type: text/html\r\n\r\n<p>Autumn")
    address = f"{site.parts.settings.public_url}/messages/{held.id}/html"
    with reader(site, browser) as page, listening({"/": (f'<iframe src="{address}"></iframe>', {})}) as other:
        page.goto(f"http://{other.host}/")
        page.wait_for_timeout(500)
        assert all("Autumn" not in each.content() for each in page.frames)
