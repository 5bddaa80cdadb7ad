"""ID tokens as Keycloak, Entra ID, Authentik and Google send them, with the settings of docs/sign-in.md."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.builders import ALICE
from tests.conftest import MakeParts
from tests.oidc_provider import CLIENT, SECRET, FakeProvider, running
from tests.web_client import Answer, Browser, Site

START = "/sign-in/oidc/company"
ADMINISTRATORS = "3f6d1c1e-2b4a-4a8f-9c1d-5e0f7a2b8c90"  # a group of Entra ID

KEYCLOAK: dict[str, Any] = {
    "auth_time": int(time.time()) - 20,
    "jti": "e5f3b1a4-98d2-4a3f-a2a3-2c6a2f6f3a55",
    "aud": [CLIENT, "account"],
    "sub": "7b1f5d3c-1f5e-4b26-8f65-0d9c1f1f6b7a",
    "typ": "ID",
    "azp": CLIENT,
    "sid": "b7a5c6d0-63d3-4a5e-8f38-5a6e7b3a9c11",
    "at_hash": "L1XkI1eDkEwMh0bKkq9c6Q",
    "acr": "1",
    "email_verified": True,
    "realm_access": {"roles": ["offline_access", "uma_authorization", "quarantine-admin"]},
    "resource_access": {"account": {"roles": ["manage-account"]}},
    "name": "Alice Smith",
    "preferred_username": "alice",
    "given_name": "Alice",
    "family_name": "Smith",
    "email": ALICE,
}
ENTRA: dict[str, Any] = {
    "nbf": int(time.time()) - 5,
    "aio": "AWQAm/8ZAAAAkV0",
    "groups": ["c1b9a2f0-0000-4c2e-8f3c-111111111111", ADMINISTRATORS],
    "name": "Alice Smith",
    "oid": "11111111-2222-3333-4444-555555555555",
    "preferred_username": "Alice@Example.org",
    "email": ALICE,
    "rh": "1.AXEA",
    "sid": "00aa11bb-cc22-dd33-ee44-ff5566778899",
    "sub": "AAAAAAAAAAAAAAAAAAAAAIkzqFVrSaSaFHy782bbtaQ",
    "tid": "aaaabbbb-0000-cccc-1111-dddd2222eeee",
    "uti": "bc1DEf",
    "ver": "2.0",
}
AUTHENTIK: dict[str, Any] = {
    "sub": "0c4a638f33a46df28d6c406d118c33d916cd5834cd5150d5f2192b3ba747f21b",
    "auth_time": int(time.time()) - 20,
    "acr": "goauthentik.io/providers/oauth2/default",
    "amr": ["pwd"],
    "azp": CLIENT,
    "sid": "5d1c2b",
    "uid": "Wm7",
    "email": ALICE,
    "email_verified": True,  # by a mapping; the default is false since 2025.10
    "name": "Alice Smith",
    "given_name": "Alice Smith",
    "preferred_username": "alice",
    "nickname": "alice",
    "groups": ["authentik Admins", "mail admins"],
}
GOOGLE: dict[str, Any] = {
    "azp": CLIENT,
    "sub": "110169484474386276334",
    "hd": "example.org",
    "email": ALICE,
    "email_verified": True,
    "at_hash": "HK6E_P6Dh8Y93mRNtsDB1Q",
}
OF_ENTRA = {"address_claim": "preferred_username", "require_verified": False}


@pytest.fixture
def provider() -> Iterator[FakeProvider]:
    with running() as made:
        yield made


@pytest.fixture
def store_url(files_url: str) -> str:
    return files_url


def site_of(make_parts: MakeParts, provider: FakeProvider, settings: dict[str, Any], group: str = "") -> Site:
    company = {"issuer": provider.issuer, "client_id": CLIENT, "client_secret": SECRET, **settings}
    return Site(make_parts(oidc={"company": company}, staff__groups={group: "administrator"} if group else {}))


def sign_in(browser: Browser, provider: FakeProvider, claims: dict[str, Any]) -> Answer:
    provider.claims = claims
    provider.user_info = {"sub": claims["sub"]}
    url = browser.get(START).header("Location") or ""
    return browser.get(f"{START}/callback?{provider.authorize(url)}")


@pytest.mark.parametrize(
    ("claims", "settings", "group"),
    [
        (KEYCLOAK, {"groups_claim": "realm_access.roles"}, "quarantine-admin"),
        (ENTRA, OF_ENTRA, ADMINISTRATORS),
        (AUTHENTIK, {}, "mail admins"),
        (GOOGLE, {}, ""),
    ],
    ids=["keycloak", "entra", "authentik", "google"],
)
def test_the_documented_settings_fit_the_claims(
    make_parts: MakeParts, provider: FakeProvider, claims: dict[str, Any], settings: dict[str, Any], group: str
) -> None:
    browser = site_of(make_parts, provider, settings, group).browser()
    assert sign_in(browser, provider, claims).status == 303
    assert f"Signed in as <bdi>{ALICE}</bdi>" in browser.get("/").text
    assert browser.get("/admin/").status == (200 if group else 404)


@pytest.mark.parametrize("claims", [ENTRA, AUTHENTIK | {"email_verified": False}], ids=["entra", "authentik"])
def test_an_address_that_the_provider_does_not_confirm_is_refused(
    make_parts: MakeParts, provider: FakeProvider, claims: dict[str, Any]
) -> None:
    answer = sign_in(site_of(make_parts, provider, {}).browser(), provider, claims)
    assert answer.status == 403 and "does not confirm your email address" in answer.text


@pytest.mark.parametrize(
    "overage",
    [
        {
            "_claim_names": {"groups": "src1"},
            "_claim_sources": {"src1": {"endpoint": "https://graph.windows.net/x/users/y/getMemberObjects"}},
        },
        {"hasgroups": True},
    ],
    ids=["names", "hasgroups"],
)
def test_too_many_groups_give_no_role_and_say_so(
    make_parts: MakeParts, provider: FakeProvider, caplog: pytest.LogCaptureFixture, overage: dict[str, Any]
) -> None:
    site = site_of(make_parts, provider, OF_ENTRA, ADMINISTRATORS)
    browser = site.browser()
    sign_in(browser, provider, ENTRA)
    assert browser.get("/admin/").status == 200
    assert sign_in(browser, provider, {**ENTRA, **overage, "groups": None}).status == 303
    assert browser.get("/admin/").status == 404, "a role that is not confirmed ends"
    assert "groups left out of the token method=oidc:company" in caplog.text
    assert "/userinfo" not in provider.requests


@pytest.mark.parametrize(
    ("name", "claims"),
    [
        ("https://example.org/groups", {"https://example.org/groups": ["mail"]}),
        ("resource_access.quarantine.roles", {"resource_access": {CLIENT: {"roles": ["mail"]}}}),
        ("groups", {"groups": "mail"}),
    ],
)
def test_groups_are_found_by_name_and_path(
    make_parts: MakeParts, provider: FakeProvider, name: str, claims: dict[str, Any]
) -> None:
    browser = site_of(make_parts, provider, {"groups_claim": name}, "mail").browser()
    sign_in(browser, provider, GOOGLE | claims)
    assert browser.get("/admin/").status == 200


@pytest.mark.parametrize("value", [7, "admin", ["mail"], {"roles": 7}, {"roles": {"mail": 1}}, None], ids=str)
def test_a_path_that_leads_nowhere_gives_no_group(make_parts: MakeParts, provider: FakeProvider, value: Any) -> None:
    browser = site_of(make_parts, provider, {"groups_claim": "realm_access.roles"}, "mail").browser()
    assert sign_in(browser, provider, GOOGLE | {"realm_access": value}).status == 303
    assert browser.get("/admin/").status == 404
