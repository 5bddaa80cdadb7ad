"""Hostile HTML in Debian's Chromium, as its sender formatted it: without protection, with each layer alone, and in the
portal's frame. A server that nothing may reach counts requests and connections."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from portal.assemble import Parts
from portal.model.message import Tier
from tests.paths import DATA
from tests.reading.test_formatted import PNG, made
from tests.system.local_site import LocalSite, local_site, sign_in
from tests.web.test_formatted import frame

pytestmark = pytest.mark.system
PAYLOADS = (DATA / "hostile-html.txt").read_text().splitlines()
QUIET_MS = 2_500  # after this time without a request nothing more is expected


@pytest.fixture
def store_url(files_url: str) -> str:
    """A single store: browsers see the same on all stores."""
    return files_url


@pytest.fixture
def site(make_parts: Callable[..., Parts]) -> Iterator[LocalSite]:
    with local_site(make_parts) as made:
        yield made


class Listener:
    """A web server. ``paths``: what was requested, ``connections``: how often something connected."""

    def __init__(self, documents: dict[str, tuple[str, dict[str, str]]]) -> None:
        self.paths: set[str] = set()
        self.connections = 0
        listener = self

        class Handler(BaseHTTPRequestHandler):
            def setup(self) -> None:
                listener.connections += 1
                super().setup()

            def do_GET(self) -> None:
                listener.paths.add(self.path)
                body, headers = documents.get(self.path, ("", {}))
                with suppress(ConnectionError):  # the page is gone
                    self.send_response(200)
                    for name, value in ({"Access-Control-Allow-Origin": "*"} | headers).items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(body.encode())

            do_POST = do_GET

            def log_message(self, *_: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self.server.server_port}"


@contextmanager
def listening(documents: dict[str, tuple[str, dict[str, str]]]) -> Iterator[Listener]:
    listener = Listener(documents)
    thread = threading.Thread(target=listener.server.serve_forever)
    thread.start()
    try:
        yield listener
    finally:
        listener.server.shutdown()
        thread.join()
        listener.server.server_close()


@pytest.fixture
def outside() -> Iterator[Listener]:
    """The Internet, which the mail wants to reach."""
    with listening({}) as listener:
        yield listener


def payloads(outside: Listener) -> list[str]:
    """Return the hostile HTML. Each of them requests a path with its number, which says whether a script ran."""

    def filled(payload: str, number: int) -> str:
        values = {
            "js": f"new Image().src=`http://{outside.host}/js/{number}`",
            "load": f"http://{outside.host}/load/{number}",
            "host": outside.host,
            "path": f"load/{number}",
        }
        return re.sub("{(js|load|host|path)}", lambda name: values[name[1]], payload)

    return [filled(payload, number) for number, payload in enumerate(PAYLOADS)]


def framed(
    browser: Browser, documents: list[str], headers: dict[str, str], sandbox: str | None, outside: Listener
) -> set[str]:
    """Open a page with a frame for each document. Return the paths that were requested outside."""
    attribute = "" if sandbox is None else f' sandbox="{escape(sandbox)}"'
    frames = "".join(f'<iframe src="/{number}"{attribute}></iframe>' for number in range(len(documents)))
    page_and_frames = {"/": (f"<!doctype html><title>x</title>{frames}", {"Content-Type": "text/html"})}
    for number, document in enumerate(documents):
        page_and_frames[f"/{number}"] = (document, {"Content-Type": "text/html; charset=utf-8"} | headers)
    with listening(page_and_frames) as server:
        context = browser.new_context()
        page = context.new_page()
        page.goto(f"http://{server.host}/", wait_until="commit")
        before = -1
        while before < len(outside.paths) + len(server.paths):  # frames load one after the other
            before = len(outside.paths) + len(server.paths)
            page.wait_for_timeout(QUIET_MS)
        assert page.url == f"http://{server.host}/" or sandbox is None
        context.close()
    return set(outside.paths)


def numbers(paths: set[str], kind: str = "") -> set[str]:
    """Return the numbers of the payloads that fired."""
    return {path.split("/")[2] for path in paths if path.startswith(f"/{kind}")}


def layers(site: LocalSite) -> tuple[str, str]:
    """Return the portal's two other layers: the policy of its frame's answer, and the sandbox of the frame."""
    held = site.hold(data=b"Content-Type: text/html\r\n\r\n<p>x")
    policy = frame(site, held).header("Content-Security-Policy")
    page = site.signed_in("alice@example.org").get(f"/messages/{held.id}/formatted").text
    sandbox = re.search(r'<iframe[^>]* sandbox="([^"]*)"', page)
    assert policy and sandbox
    return policy, sandbox[1]


def test_without_protection_hostile_html_fires(browser: Browser, outside: Listener) -> None:
    fired = framed(browser, payloads(outside), {}, None, outside)
    assert len(numbers(fired)) > 60 and len(numbers(fired, "js")) > 30


def test_cleaned_html_alone_loads_and_runs_nothing(browser: Browser, outside: Listener) -> None:
    cleaned = [made(payload)["html"] for payload in payloads(outside)]
    assert framed(browser, cleaned, {}, None, outside) == set() and outside.connections == 0


def test_the_policy_alone_loads_and_runs_nothing(site: LocalSite, browser: Browser, outside: Listener) -> None:
    policy, _ = layers(site)
    assert framed(browser, payloads(outside), {"Content-Security-Policy": policy}, None, outside) == set()


def test_the_sandbox_alone_runs_nothing(site: LocalSite, browser: Browser, outside: Listener) -> None:
    _, sandbox = layers(site)
    fired = framed(browser, payloads(outside), {}, sandbox, outside)
    assert numbers(fired, "js") == set() and len(numbers(fired, "load")) > 20  # pictures are not its task


@contextmanager
def reader(site: LocalSite, browser: Browser, **more: Any) -> Iterator[Page]:
    context = browser.new_context(**more)
    sign_in(site, context)
    yield context.new_page()
    context.close()


def test_in_the_portal_hostile_html_reaches_nobody(site: LocalSite, browser: Browser, outside: Listener) -> None:
    with reader(site, browser) as page:
        for payload in payloads(outside):
            held = site.hold(data=b"Content-Type: text/html\r\n\r\n" + payload.encode())
            address = f"{site.parts.settings.public_url}/messages/{held.id}/formatted"
            page.goto(address)
            assert page.url == address
        page.wait_for_timeout(QUIET_MS)
        assert len(page.context.pages) == 1
    assert (outside.paths, outside.connections) == (set(), 0)


def test_pictures_and_links_in_the_portal(site: LocalSite, browser: Browser, outside: Listener) -> None:
    html = (
        f'<p style="position:fixed;inset:0;background:red">Autumn</p><img src="cid:a"><img src="http://{outside.host}/x">'
        f'<a href="http://{outside.host}/link">https://bank.example</a>'
    )
    data = b"Content-Type: multipart/related; boundary=b\r\n\r\n--b\r\nContent-Type: text/html\r\n\r\n" + html.encode()
    data += b"\r\n--b\r\nContent-Type: image/png\r\nContent-ID: <a>\r\nContent-Transfer-Encoding: binary\r\n\r\n" + PNG
    held = site.hold(data=data + b"\r\n--b--\r\n")
    with reader(site, browser, viewport={"width": 390, "height": 844}, color_scheme="dark") as page:
        errors: list[str] = []
        page.on("console", lambda message: errors.append(message.text))
        page.goto(f"{site.parts.settings.public_url}/messages/{held.id}/formatted")
        inside = page.frame_locator("iframe")
        inside.get_by_text("1 picture from the Internet is not shown.").wait_for()
        assert inside.locator("img[src^='data:image/png']").count() == 1
        document = page.frames[1]
        assert document.evaluate("document.querySelector('img').naturalWidth") == 1
        assert document.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert document.evaluate("getComputedStyle(document.querySelector('p.notice + div p')).position") == "static"
        assert "https://bank.example [127.0.0.1]" in inside.locator(".mail").inner_text()
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


def test_the_frame_is_empty_outside_of_the_portal(site: LocalSite, browser: Browser) -> None:
    held = site.hold(Tier.SPAM, data=b"Content-Type: text/html\r\n\r\n<p>Autumn")
    address = f"{site.parts.settings.public_url}/messages/{held.id}/html"
    with reader(site, browser) as page, listening({"/": (f'<iframe src="{address}"></iframe>', {})}) as other:
        page.goto(f"http://{other.host}/")
        page.wait_for_timeout(500)
        assert all("Autumn" not in each.content() for each in page.frames)
