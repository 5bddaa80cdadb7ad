"""Signing in by a proxy in front of the portal: its secret, exactly one user, and nothing on other pages."""

from __future__ import annotations

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import Any

import pytest

from portal.cli import sign_in_checks
from portal.model.audit import AuditFilter
from portal.settings.domains import DomainSettings
from tests.builders import ALICE, BOB
from tests.conftest import MakeParts
from tests.system.local_site import local_site
from tests.web_client import Site

SECRET = "p" * 32
HEADERS = {"X-Quarantine-User": ALICE, "X-Quarantine-Secret": SECRET}


@pytest.fixture
def store_url(files_url: str) -> str:
    return files_url


@pytest.fixture
def site(make_parts: MakeParts) -> Site:
    return Site(make_parts(proxy__secret=SECRET, proxy__sign_out_url="https://login.example.org/out?rd=/"))


def test_the_user_of_the_proxy_is_signed_in_and_led_to_the_proxys_sign_out(site: Site) -> None:
    browser = site.browser()
    browser.get("/rules")
    assert 'href="/quarantine/sign-in/proxy"' in browser.get("/sign-in").text
    answer = browser.request("GET", "/sign-in/proxy", headers=HEADERS)
    assert (answer.status, answer.header("Location")) == (303, "/quarantine/rules")
    [entry] = site.store.audit.list(AuditFilter(act="signed-in"), 9)
    assert (entry.actor.name, entry.actor.via) == (ALICE, "proxy")
    assert "Web server" in browser.get("/sessions").text
    page = browser.follow(browser.post("/sign-out", {"form_token": browser.form_token()}), "/sign-out").text
    assert 'href="https://login.example.org/out?rd=/"' in page


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"X-Quarantine-User": ALICE},
        {**HEADERS, "X-Quarantine-Secret": "p" * 31},
        {**HEADERS, "X-Quarantine-Secret": f"{SECRET}, {SECRET}"},
        {**HEADERS, "X-Quarantine-Secret": "\xff" * 32},
        {**HEADERS, "X-Quarantine-User": ""},
        {**HEADERS, "X-Quarantine-User": f"{ALICE}, {ALICE}"},
        {**HEADERS, "X-Quarantine-User": f"{ALICE} x@example.org"},
    ],
    ids=str,
)
def test_forged_and_repeated_headers_sign_nobody_in(site: Site, headers: dict[str, str]) -> None:
    browser = site.browser()
    assert browser.request("GET", "/sign-in/proxy", headers=headers).status == 404
    assert browser.get("/").status == 303


def test_other_addresses_are_refused_and_other_pages_do_not_read_the_header(site: Site) -> None:
    answer = site.browser().request("GET", "/sign-in/proxy", headers={**HEADERS, "X-Quarantine-User": "x@evil.example"})
    assert answer.status == 403 and "x@evil.example" in answer.text
    for path in ("/", "/rules", "/admin/", "/sign-in"):
        browser = site.browser()
        browser.request("GET", path, headers=HEADERS)
        assert not any("session" in name for name in browser.cookies)


def test_the_proxy_does_not_prove_who_sits_there_now(make_parts: MakeParts) -> None:
    site = Site(make_parts(proxy__secret=SECRET, staff__administrators=[ALICE]))
    browser = site.browser()
    browser.request("GET", "/sign-in/proxy", headers=HEADERS)
    form = {"change": "give", "address": BOB, "role": "auditor", "domain": "", "form_token": browser.form_token()}
    answer = browser.post("/admin/staff", form)
    assert answer.header("Location") == "/quarantine/sign-in?ended=fresh"
    page = browser.get("/sign-in?ended=fresh").text
    assert "sign-in/proxy" not in page and "Send link" in page
    assert list(sign_in_checks.ways(site.parts.settings)) == []
    alone = Site(make_parts(proxy__secret=SECRET, sign_in__mailed_link="false"))
    assert "This needs another way to sign in" in alone.browser().get("/sign-in?ended=fresh").text
    [note] = sign_in_checks.ways(alone.parts.settings)
    assert note.ok is None and "the proxy is the only method" in note.text


def test_it_is_off_by_default(make_parts: MakeParts) -> None:
    site = Site(make_parts())
    assert site.browser().request("GET", "/sign-in/proxy", headers={**HEADERS, "X-Quarantine-Secret": ""}).status == 404
    assert "sign-in/proxy" not in site.browser().get("/sign-in").text


def test_the_check_sends_forged_headers_through_the_public_url(make_parts: MakeParts) -> None:
    with local_site(make_parts, proxy__secret=SECRET) as site:
        [found] = sign_in_checks.proxy(site.parts.settings)
        assert found.ok is False and "forged headers reach the portal" in found.text
        app = site.app

        def without_headers(environ: dict[str, str], start_response: Any) -> Any:
            kept = {name: value for name, value in environ.items() if not name.startswith("HTTP_X_QUARANTINE")}
            return app(kept, start_response)

        site.app = without_headers  # type: ignore[assignment]  # as the shipped Nginx file
        [found] = sign_in_checks.proxy(site.parts.settings)
        assert found.ok, found.text


class Leaky(BaseHTTPRequestHandler):
    """A web server that passes on one spelling of the headers, and shows the user as the portal's page does."""

    def do_GET(self) -> None:
        self.send_response(403)
        self.end_headers()
        self.wfile.write((self.headers[self.server.passed_on] or "").encode())  # type: ignore[attr-defined]

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def leaky() -> Iterator[HTTPServer]:
    with HTTPServer(("127.0.0.1", 0), Leaky) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_the_check_tries_each_public_url_and_both_spellings(make_parts: MakeParts, leaky: HTTPServer) -> None:
    """Domains may have servers of their own; to WSGI, X_Quarantine_User is the same header."""
    url, own = (f"http://{host}:{leaky.server_port}/quarantine" for host in ("127.0.0.1", "localhost"))
    settings = make_parts(proxy__secret=SECRET, public_url=url).settings
    table = DomainSettings(domain="example.org").model_copy(update={"public_url": own})
    settings = settings.model_copy(update={"domains": {"example.org": table}})  # the settings demand https here
    for name in ("X-Quarantine-User", "X_Quarantine_User"):
        leaky.passed_on = name  # type: ignore[attr-defined]
        found = list(sign_in_checks.proxy(settings))
        assert [each.ok for each in found] == [False, False], name
        for each, address in zip(found, (url, own), strict=True):
            assert f"through {address}/sign-in/proxy, so everybody" in each.text
    leaky.passed_on = "X-Other"  # type: ignore[attr-defined]
    assert [each.ok for each in sign_in_checks.proxy(settings)] == [True, True]


def test_the_check_does_not_send_the_secret_to_another_host(make_parts: MakeParts) -> None:
    """A proxy leads to its identity provider, which must not learn it."""
    asked: list[str | None] = []

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.headers["X-Quarantine-Secret"])
            self.send_response(302)
            self.send_header("Location", f"http://localhost:{self.server.server_port}/login")  # type: ignore[attr-defined]
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/quarantine"
        [found] = sign_in_checks.proxy(make_parts(proxy__secret=SECRET, public_url=url).settings)
        server.shutdown()
    assert found.ok is None and "asks to sign in first (302)" in found.text
    assert asked == [SECRET]


def test_an_address_extension_is_no_name_of_an_account(make_parts: MakeParts) -> None:
    site = Site(make_parts(proxy__secret=SECRET, people__recipient_delimiter="+-"))
    for user in ("alice-smith@example.org", "alice+x@example.org", "@example.org"):
        browser = site.browser()
        headers = {**HEADERS, "X-Quarantine-User": user}
        assert browser.request("GET", "/sign-in/proxy", headers=headers).status in (403, 404), user
        assert browser.get("/").status == 303
