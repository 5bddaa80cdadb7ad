"""Signing in with OpenID Connect: what is accepted, what is refused, roles by groups, and logout."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from portal.cli import sign_in_checks
from portal.model.audit import AuditFilter
from portal.model.staff import EVERYWHERE, Role
from portal.openid import provider as openid
from tests.builders import ALICE, BOB
from tests.conftest import MakeParts
from tests.oidc_provider import CLIENT, SECRET, FakeProvider, new_key, running
from tests.web_client import Answer, Browser, Site

START, CALLBACK = "/sign-in/oidc/company", "/sign-in/oidc/company/callback"
NOT_COMPLETED = "The sign-in was not completed."

MakeSite = Callable[..., Site]


@pytest.fixture
def provider() -> Iterator[FakeProvider]:
    with running() as made:
        yield made


@pytest.fixture
def store_url(files_url: str) -> str:
    return files_url  # tests/contract has what both stores do


@pytest.fixture
def make_site(make_parts: MakeParts, provider: FakeProvider) -> MakeSite:
    def make(more: dict[str, Any] | None = None, **settings: Any) -> Site:
        company = {"issuer": provider.issuer, "client_id": CLIENT, "client_secret": SECRET, "title": "Company & ID"}
        return Site(make_parts(oidc={"company": company | (more or {})}, **settings))

    return make


@pytest.fixture
def site(make_site: MakeSite) -> Site:
    return make_site()


def sign_in(browser: Browser, provider: FakeProvider) -> Answer:
    url = browser.get(START).header("Location")
    assert url and url.startswith(f"{provider.issuer}/authorization?")
    return browser.get(f"{CALLBACK}?{provider.authorize(url)}")


def is_signed_in(browser: Browser) -> bool:
    return browser.get("/").status == 200


def test_a_person_signs_in_and_sees_the_page_that_they_opened(site: Site, provider: FakeProvider) -> None:
    browser = site.browser()
    browser.get("/rules")
    page = browser.get("/sign-in").text
    assert "Sign in with Company &amp; ID" in page and f'href="/quarantine{START}"' in page
    start = browser.get(START)
    [cookie] = [line for name, line in start.cookies().items() if "oidc" in name]
    assert "SameSite=lax" in cookie and "Max-Age=600" in cookie and cookie.startswith("__Host-")
    answer = sign_in(browser, provider)
    assert (answer.status, answer.header("Location")) == (303, "/quarantine/rules")
    assert "alice@example.org" in browser.get("/rules").text
    assert "Company" not in browser.get("/sessions").text and "· company" in browser.get("/sessions").text
    [entry] = site.store.audit.list(AuditFilter(act="signed-in"), 9)
    assert (entry.actor.name, entry.actor.via) == (ALICE, "oidc:company")


def test_several_tabs_can_sign_in_and_each_try_works_once(site: Site, provider: FakeProvider) -> None:
    browser = site.browser()
    first, second = (browser.get(START).header("Location") or "" for _ in range(2))
    query = provider.authorize(first)
    assert browser.get(f"{CALLBACK}?{query}").status == 303
    assert browser.get(f"{CALLBACK}?{provider.authorize(second)}").status == 303
    assert "started in another browser" in browser.get(f"{CALLBACK}?{query}").text


def hs256(provider: FakeProvider, claims: dict[str, Any]) -> str:
    """Return a token whose HMAC has the public key as its secret."""
    head, body = (
        base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=")
        for part in ({"alg": "HS256", "kid": "one"}, claims)
    )
    signature = hmac.new(provider.keys[0].as_pem(private=False), head + b"." + body, hashlib.sha256).digest()
    return b".".join((head, body, base64.urlsafe_b64encode(signature).rstrip(b"="))).decode()


def unsigned(provider: FakeProvider, claims: dict[str, Any]) -> str:
    parts = ({"alg": "none"}, claims)
    return ".".join(base64.urlsafe_b64encode(json.dumps(p).encode()).rstrip(b"=").decode() for p in parts) + "."


@pytest.mark.parametrize(
    "claims",
    [
        {"nonce": "another"},
        {"nonce": None},
        {"aud": "another"},
        {"aud": [CLIENT, "another"]},
        {"iss": "https://another.example"},
        {"exp": 1},
        {"exp": None},
        {"sub": None},
    ],
    ids=str,
)
def test_tokens_with_wrong_claims_are_refused(site: Site, provider: FakeProvider, claims: dict[str, Any]) -> None:
    browser = site.browser()
    provider.claims |= claims
    answer = sign_in(browser, provider)
    assert answer.status == 403 and NOT_COMPLETED in answer.text
    assert not is_signed_in(browser)


@pytest.mark.parametrize("forge", [hs256, unsigned, None], ids=["hs256", "none", "foreign-key"])
def test_tokens_that_the_provider_did_not_sign_are_refused(site: Site, provider: FakeProvider, forge: Any) -> None:
    browser = site.browser()
    url = browser.get(START).header("Location") or ""
    nonce = url.partition("nonce=")[2].partition("&")[0]
    now = int(time.time())
    claims = {"iss": provider.issuer, "aud": CLIENT, "sub": "x", "iat": now, "exp": now + 60, "nonce": nonce}
    claims |= {"email": BOB, "email_verified": True}
    provider.raw_token = forge(provider, claims) if forge else provider.token(claims, new_key("one"))
    answer = browser.get(f"{CALLBACK}?{provider.authorize(url)}")
    assert answer.status == 403 and NOT_COMPLETED in answer.text
    assert not is_signed_in(browser)


def test_answers_for_other_browsers_and_of_other_issuers_are_refused(site: Site, provider: FakeProvider) -> None:
    mallory, alice = site.browser(), site.browser()
    query = provider.authorize(mallory.get(START).header("Location") or "")
    alice.get(START)
    assert "started in another browser" in alice.get(f"{CALLBACK}?{query}").text
    assert NOT_COMPLETED in mallory.get(f"{CALLBACK}?{query.replace(provider.issuer, 'https://evil.example')}").text
    late = site.browser()
    query = provider.authorize(late.get(START).header("Location") or "")
    site.pass_time(minutes=11)
    assert "took too long" in late.get(f"{CALLBACK}?{query}").text
    cancelled = site.browser()
    state = (cancelled.get(START).header("Location") or "").partition("state=")[2].partition("&")[0]
    answer = cancelled.get(f"{CALLBACK}?error=access_denied&state={state}")
    assert answer.status == 403 and NOT_COMPLETED in answer.text
    assert not any(map(is_signed_in, (mallory, alice, late, cancelled)))


def test_the_answer_of_one_provider_is_not_accepted_at_another(make_parts: MakeParts, provider: FakeProvider) -> None:
    with running() as other:
        providers = {"company": provider, "school": other}
        site = Site(
            make_parts(
                oidc={
                    name: {"issuer": each.issuer, "client_id": CLIENT, "client_secret": SECRET, "title": f"The {name}"}
                    for name, each in providers.items()
                }
            )
        )
        page = site.browser().get("/sign-in").text
        for name in providers:
            assert f"Sign in with The {name}" in page and f'href="/quarantine/sign-in/oidc/{name}"' in page
        for begun, answered in (("company", "school"), ("school", "company")):
            for answering in providers.values():  # if the other one is hostile, it makes an answer for the same state
                browser = site.browser()
                url = browser.get(f"/sign-in/oidc/{begun}").header("Location") or ""
                assert url.startswith(f"{providers[begun].issuer}/authorization?")
                refused = browser.get(f"/sign-in/oidc/{answered}/callback?{answering.authorize(url)}")
                assert refused.status == 403 and not is_signed_in(browser)
        assert "/token" not in [*provider.requests, *other.requests], "no code was sent to the other one"
        for name, each in providers.items():
            browser = site.browser()
            url = browser.get(f"/sign-in/oidc/{name}").header("Location") or ""
            assert browser.get(f"/sign-in/oidc/{name}/callback?{each.authorize(url)}").status == 303
            assert is_signed_in(browser)


def test_an_address_counts_only_if_it_is_confirmed_and_local(make_site: MakeSite, provider: FakeProvider) -> None:
    for verified in (False, None, "false"):
        provider.claims["email_verified"] = verified
        answer = sign_in(make_site().browser(), provider)
        assert answer.status == 403 and "does not confirm your email address" in answer.text
    lenient = make_site({"require_verified": False})
    assert sign_in(lenient.browser(), provider).status == 303
    provider.claims["email"] = "eve@elsewhere.example"
    browser = lenient.browser()
    answer = sign_in(browser, provider)
    assert answer.status == 403 and "No quarantine for this address" in answer.text and "eve@elsewhere" in answer.text
    assert not is_signed_in(browser)


def test_an_alias_signs_in_its_person(make_site: MakeSite, provider: FakeProvider, tmp_path: Any) -> None:
    (tmp_path / "virtual").write_text(f"a.smith@example.org {ALICE}\ninfo@example.org {ALICE}, {BOB}\n")
    site = make_site(people__alias_file=tmp_path / "virtual")
    provider.claims["email"] = "A.Smith@Example.org"
    browser = site.browser()
    assert sign_in(browser, provider).status == 303
    assert f"Signed in as <bdi>{ALICE}</bdi>" in browser.get("/").text
    provider.claims["email"] = "info@example.org"
    assert sign_in(site.browser(), provider).status == 403, "a shared mailbox is nobody"


def test_claims_may_come_from_userinfo_of_the_same_person(site: Site, provider: FakeProvider) -> None:
    provider.claims = {}
    provider.user_info = {"sub": "alice-1", "email": ALICE, "email_verified": True}
    assert sign_in(site.browser(), provider).status == 303
    provider.user_info["sub"] = "bob-2"
    assert NOT_COMPLETED in sign_in(site.browser(), provider).text


def test_groups_may_come_from_userinfo(make_site: MakeSite, provider: FakeProvider) -> None:
    site = make_site(staff__groups={"mail": "administrator"})
    provider.user_info = {"sub": "alice-1", "groups": ["mail"], "email": BOB, "email_verified": True}
    browser = site.browser()
    sign_in(browser, provider)
    assert browser.get("/admin/").status == 200
    assert f"Signed in as <bdi>{ALICE}</bdi>" in browser.get("/").text, "the token's address counts"
    provider.requests.clear()
    sign_in(make_site().browser(), provider)
    assert "/userinfo" not in provider.requests, "no group gives a role"


def test_a_sign_in_goes_on_if_groups_cannot_be_asked_for_and_leaves_the_roles(
    make_site: MakeSite, provider: FakeProvider
) -> None:
    site = make_site(staff__groups={"mail": "administrator"})
    provider.claims["groups"] = ["mail"]
    sign_in(site.browser(), provider)
    del provider.claims["groups"]
    provider.has_no_user_info = True
    browser = site.browser()
    sign_in(browser, provider)
    assert browser.get("/admin/").status == 200
    del provider.claims["email"]
    assert sign_in(site.browser(), provider).status == 503, "without an address"


def test_the_address_and_its_confirmation_are_of_the_same_document(site: Site, provider: FakeProvider) -> None:
    provider.claims = {"email": BOB}
    provider.user_info = {"sub": "alice-1", "email": ALICE, "email_verified": True}
    browser = site.browser()
    sign_in(browser, provider)
    assert f"Signed in as <bdi>{ALICE}</bdi>" in browser.get("/").text


def test_groups_give_roles_until_the_next_sign_in_without_them(make_site: MakeSite, provider: FakeProvider) -> None:
    site = make_site(staff__groups={"mail": "administrator"})
    browser = site.browser()
    provider.claims["groups"] = ["mail", "canteen", 7]
    sign_in(browser, provider)
    assert browser.get("/admin/").status == 200
    page = browser.get("/admin/staff").text
    assert "group mail (oidc:company)" in page and 'value="remove"' not in page
    assert [(g.role, g.domain) for g in site.parts.staff.member(ALICE).grants] == [(Role.ADMINISTRATOR, EVERYWHERE)]
    provider.claims["groups"] = []
    sign_in(site.browser(), provider)
    assert browser.get("/admin/").status == 404


def test_a_fresh_sign_in_makes_the_provider_ask_and_say_when(make_site: MakeSite, provider: FakeProvider) -> None:
    site = make_site(staff__administrators=[ALICE])
    browser = site.browser()

    def give() -> str:
        form = {"change": "give", "address": BOB, "role": "auditor", "domain": "", "form_token": browser.form_token()}
        return browser.post("/admin/staff", form).header("Location") or ""

    def ask(query: str = "?fresh=1") -> Answer:
        url = browser.get(f"{START}{query}").header("Location") or ""
        assert ("&max_age=300" in url) is bool(query)
        return browser.get(f"{CALLBACK}?{provider.authorize(url)}")

    for claims in ({}, {"auth_time": "now"}, {"auth_time": True}, {"auth_time": time.time() - 3600}):
        provider.claims |= claims
        assert ask("").status == 303, "a session of the provider is enough for other pages"
        assert give() == "/quarantine/sign-in?ended=fresh"
        assert f'href="/quarantine{START}?fresh=1"' in browser.get("/sign-in?ended=fresh").text
        answer = ask()
        assert answer.status == 403 and "does not confirm that you signed in just now" in answer.text
        assert f"{START}?fresh=1" in answer.text
    assert site.store.staff.of(BOB) == []
    provider.claims["auth_time"] = int(time.time()) + 30
    assert ask().header("Location") == "/quarantine/admin/staff"
    assert give() == "/quarantine/admin/staff?done=given"
    site.pass_time(minutes=16)
    assert give() == "/quarantine/sign-in?ended=fresh"


def test_somebody_else_gets_neither_the_session_nor_the_page(make_site: MakeSite, provider: FakeProvider) -> None:
    site = make_site(staff__administrators=[ALICE])
    browser = site.browser()
    sign_in(browser, provider)
    token, old = browser.form_token(), dict(browser.cookies)
    browser.post(
        "/admin/staff", {"change": "give", "address": BOB, "role": "auditor", "domain": "", "form_token": token}
    )
    provider.claims |= {"email": BOB, "auth_time": int(time.time())}
    assert sign_in(browser, provider).header("Location") == "/quarantine/"
    assert f"Signed in as <bdi>{BOB}</bdi>" in browser.get("/").text
    assert browser.get("/admin/staff").status == 404
    assert browser.post("/sign-out", {"form_token": token}).status == 403
    browser.cookies = old
    assert not is_signed_in(browser)


def test_new_keys_of_the_provider_are_used(site: Site, provider: FakeProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sign_in(site.browser(), provider).status == 303
    provider.keys = [new_key("two")]
    assert sign_in(site.browser(), provider).status == 403, "keys were fetched a moment ago"
    monkeypatch.setattr(openid, "_RETRY_SECONDS", 0.0)
    assert sign_in(site.browser(), provider).status == 303
    assert provider.requests.count("/keys") == 2
    assert provider.requests.count("/.well-known/openid-configuration") == 1


def test_unreadable_keys_are_not_asked_for_again_at_once(site: Site, provider: FakeProvider) -> None:
    provider.has_no_keys = True
    for _ in range(3):
        assert sign_in(site.browser(), provider).status == 503
    assert provider.requests.count("/keys") == 1


def test_forged_tokens_cause_no_requests_while_the_keys_are_unreadable(
    site: Site, provider: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sign_in(site.browser(), provider).status == 303
    provider.has_no_keys = True
    keys = site.browser()
    monkeypatch.setattr(time, "monotonic", lambda start=time.monotonic(): start + 60)
    for _ in range(3):
        keys.request("POST", "/oidc/company/logout", form={"logout_token": provider.token({}, new_key("forged"))})
    assert provider.requests.count("/keys") == 2


@pytest.mark.parametrize("part", ["pause", "header_pause"])
def test_a_slow_answer_of_the_provider_ends(
    site: Site, provider: FakeProvider, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    monkeypatch.setattr(openid, "_TIMEOUT_SECONDS", 0.2)
    setattr(provider, part, 0.05)
    began = time.monotonic()
    assert site.browser().get(START).status == 503
    assert time.monotonic() - began < 2


def test_a_provider_that_is_down_stops_nothing_else(site: Site, provider: FakeProvider) -> None:
    provider.is_down = True
    for _ in range(3):
        answer = site.browser().get(START)
        assert answer.status == 503 and "The sign-in service does not answer." in answer.text
        assert "Send link" in answer.text
    assert len(provider.requests) == 1, "it is not asked again at once"


def test_the_check_names_the_redirect_address(make_site: MakeSite, provider: FakeProvider) -> None:
    settings = make_site().parts.settings
    [found] = sign_in_checks.providers(settings)
    assert found.ok and found.text.endswith("/quarantine/sign-in/oidc/company/callback")
    provider.extra = {"issuer": "https://evil.example"}
    [found] = sign_in_checks.providers(settings)
    assert found.ok is False and "evil.example" in found.text
    assert list(sign_in_checks.ways(settings)) == []


def test_signing_out_offers_to_sign_out_of_the_provider(site: Site, provider: FakeProvider) -> None:
    browser = site.browser()
    sign_in(browser, provider)
    answer = browser.post("/sign-out", {"form_token": browser.form_token()})
    page = browser.follow(answer, "/sign-out").text
    assert "not of Company &amp; ID" in page and 'href="/quarantine/oidc/company/sign-out"' in page
    url = browser.get("/oidc/company/sign-out").header("Location")
    assert url and url.startswith(f"{provider.issuer}/end_session?client_id=quarantine&post_logout_redirect_uri=http")
    assert "left" not in browser.get("/sign-in?left=%3Cx%3E").text


def test_the_provider_ends_sessions(site: Site, provider: FakeProvider) -> None:
    first, second = site.browser(), site.browser()
    sign_in(first, provider)
    provider.claims["sid"] = "s2"
    sign_in(second, provider)

    def log_out(**claims: Any) -> int:
        return (
            site.browser()
            .request("POST", "/oidc/company/logout", form={"logout_token": provider.logout_token(**claims)})
            .status
        )

    assert log_out(events={}) == 400, "an ID token, for example"
    for name, value in (("nonce", "n"), ("aud", "x"), ("iss", "x"), ("exp", 1), ("sub", None), ("iat", 1)):
        assert log_out(**{name: value}) == 400, name
    assert site.browser().request("POST", "/oidc/company/logout", form={}).status == 400
    assert is_signed_in(first) and is_signed_in(second)
    assert log_out(sid="s1") == 200
    assert not is_signed_in(first) and is_signed_in(second)
    assert log_out() == 200
    assert not is_signed_in(second)
    found = site.store.audit.list(AuditFilter(act="signed-out"), 9)
    assert [(e.actor.via, e.subject) for e in found] == [("oidc:company", ALICE)] * 2


def test_an_old_logout_ends_no_new_session(site: Site, provider: FakeProvider) -> None:
    token = provider.logout_token()
    site.pass_time(minutes=3)
    browser = site.browser()
    sign_in(browser, provider)
    assert site.browser().request("POST", "/oidc/company/logout", form={"logout_token": token}).status == 200
    assert is_signed_in(browser)
