"""The page of API tokens in the console."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable

import pytest

from portal.assemble import Parts
from portal.model.audit import AuditFilter
from portal.model.message import new_id
from portal.model.staff import EVERYWHERE, Role
from portal.model.token import Scope
from portal.policy.tokens import TokenRequest
from portal.web.auth.session import FRESH
from tests.builders import ALICE, BOB, BY_OPERATOR, MALLORY
from tests.web.test_staff import ADMINISTRATOR, AUDITOR, DOMAINS, OF_THE_DOMAIN, Person, sign_in
from tests.web_client import Answer, Browser, Site

SECRET = re.compile(r"qtn_[0-9a-f]{48}")


@pytest.fixture
def site(make_parts: Callable[..., Parts]) -> Site:
    return Site(make_parts(local_domains=DOMAINS))


def create(browser: Browser, **typed: str) -> Answer:
    page = browser.get("/admin/tokens").text
    form_id = re.search(r'name="form" value="([^"]+)"', page)
    form = {"form_token": browser.form_token(), "change": "create", "form": form_id[1] if form_id else ""}
    form |= {"name": "Nightly report", "role": "help-desk", "domain": "example.org", "scope": "read", "days": "30"}
    return browser.post("/admin/tokens", form | typed)


def secret_of(answer: Answer) -> str:
    assert answer.status == 200, answer.text
    found = SECRET.findall(answer.text)
    assert len(found) == 1
    secret: str = found[0]
    return secret


def test_a_token_is_created_shown_once_used_and_revoked(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    browser = sign_in(site, ADMINISTRATOR)
    assert "No tokens." in browser.get("/admin/tokens").text
    with caplog.at_level(logging.INFO):
        answer = create(browser, name='<b>"Nightly"</b>')
    secret = secret_of(answer)
    assert (answer.header("Cache-Control"), answer.header("Referrer-Policy")) == ("no-store", "strict-origin")
    [(token, _)] = site.parts.tokens.all(site.now)
    assert f"token created id={token.id} person={MALLORY} role=help-desk domain=example.org scope=read" in caplog.text
    [entry] = site.store.audit.list(AuditFilter(act="token-created"), 9)
    assert (entry.actor.name, entry.actor.via, entry.actor.address) == (MALLORY, "console", "192.0.2.7")
    assert str(token.id) in entry.detail
    page = browser.get("/admin/tokens").text
    assert "&lt;b&gt;" in page and "Not used yet" in page and "Help desk" in page
    assert site.parts.tokens.member(secret, site.now)
    page = browser.get("/admin/tokens").text
    assert "Last used on" in page
    for text in (page, caplog.text, browser.get("/admin/audit").text):
        assert secret not in text and token.secret_sha256.hex() not in text
    form = {"form_token": browser.form_token(), "change": "revoke", "token": str(token.id)}
    page = browser.follow(browser.post("/admin/tokens", form), "/admin/tokens").text
    assert "Token revoked." in page and 'value="revoke"' not in page and "Revoked</span>" in page
    assert site.parts.tokens.member(secret, site.now) is None
    again = browser.post("/admin/tokens", form)
    assert again.status == 400 and "This token was revoked before." in again.text


def test_tokens_are_listed_newest_first_or_ending_first(site: Site) -> None:
    browser = sign_in(site, ADMINISTRATOR)
    for name, days in (("in a month", "30"), ("revoked", "1"), ("tomorrow", "2"), ("in a year", "365")):
        secret_of(create(browser, name=name, days=days))
        site.pass_time(minutes=1)
        for token, _ in site.parts.tokens.all(site.now):
            if token.name == "revoked":
                browser.post(
                    "/admin/tokens", {"form_token": browser.form_token(), "change": "revoke", "token": str(token.id)}
                )

    def names(query: str) -> list[str]:
        return re.findall(r"<strong><bdi>([^<]+)</bdi>", browser.get(f"/admin/tokens{query}").text)

    assert names("") == ["in a year", "tomorrow", "revoked", "in a month"]
    assert names("?order=end") == ["tomorrow", "in a month", "in a year", "revoked"]


def test_a_form_that_is_sent_twice_creates_one_token(site: Site) -> None:
    browser = sign_in(site, ADMINISTRATOR)
    page = browser.get("/admin/tokens").text
    [form_id] = re.findall(r'name="form" value="([^"]+)"', page)
    secret_of(create(browser, form=form_id))
    again = create(browser, form=form_id)
    assert again.status == 303 and "shown only once" in browser.follow(again, "/admin/tokens").text
    assert len(site.store.tokens.all()) == 1


def test_a_token_whose_owner_lost_the_role_says_so(site: Site) -> None:
    browser = sign_in(site, ADMINISTRATOR)
    bob = sign_in(site, Person(BOB, Role.ADMINISTRATOR))
    secret = secret_of(create(bob, role="administrator", domain="", scope="act"))
    site.store.staff.remove(BOB, Role.ADMINISTRATOR, EVERYWHERE, BY_OPERATOR, site.now)
    page = browser.get("/admin/tokens").text
    assert "does not have the role any more" in page
    assert site.parts.tokens.member(secret, site.now) is None


def test_domain_administrators_see_and_create_tokens_of_their_domain(site: Site) -> None:
    administrator = sign_in(site, Person(ALICE, Role.ADMINISTRATOR))
    for domain in ("", "example.net", "example.org"):
        secret_of(create(administrator, name=f"Of {domain or 'all'}", domain=domain))
    browser = sign_in(site, OF_THE_DOMAIN)
    page = browser.get("/admin/tokens").text
    assert re.findall(r"Of ([a-z.]+)", page) == ["example.org"]
    assert '<option value="administrator"' not in page and '<option value="example.net"' not in page
    for role, domain in (("administrator", ""), ("help-desk", ""), ("help-desk", "example.net")):
        assert create(browser, role=role, domain=domain).status == 403
    [foreign] = [each for each in site.store.tokens.all() if each.domain == "example.net"]
    form = {"form_token": browser.form_token(), "change": "revoke", "token": str(foreign.id)}
    assert browser.post("/admin/tokens", form).status == 403
    secret_of(create(browser, role="domain-administrator", scope="act"))
    assert all(each.revoked_at is None for each in site.store.tokens.all())


def test_auditors_see_all_tokens_and_have_no_form(site: Site) -> None:
    secret_of(create(sign_in(site, Person(ALICE, Role.ADMINISTRATOR))))
    page = sign_in(site, AUDITOR).get("/admin/tokens").text
    assert "Nightly report" in page and 'value="create"' not in page and 'value="revoke"' not in page


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ({"name": "  "}, "Enter a name"),
        ({"days": "0"}, "1 to 365 days"),
        ({"days": "366"}, "1 to 365 days"),
        ({"days": "9" * 5000}, "for how many days"),
        ({"days": ""}, "for how many days"),
        ({"role": "root"}, "Choose a role"),
        ({"scope": "everything"}, "Choose a role"),
        ({"role": "administrator"}, "An administrator is responsible for all domains."),
        ({"change": "revoke"}, "There is no such token."),
        ({"change": "revoke", "token": "0199f0f0-0000-7000-8000-000000000000"}, "There is no such token."),
    ],
)
def test_what_cannot_be_done_is_said_above_the_form_which_keeps_what_was_typed(
    site: Site, typed: dict[str, str], words: str
) -> None:
    answer = create(sign_in(site, ADMINISTRATOR), **{"name": "Weekly", **typed})
    assert answer.status == 400 and 'role="alert" id="error"' in answer.text and words in answer.text
    assert ('value="Weekly"' in answer.text) == ("name" not in typed)
    assert not site.store.tokens.all()


def test_auditors_revoke_their_own_tokens_and_no_others(site: Site) -> None:
    browser, administrator = sign_in(site, AUDITOR), sign_in(site, Person(BOB, Role.ADMINISTRATOR))
    wanted = TokenRequest("Own", Role.AUDITOR, EVERYWHERE, Scope.READ, 9)
    own, other = new_id(), new_id()
    assert site.parts.tokens.create(own, MALLORY, wanted, BY_OPERATOR, site.now)
    secret_of(create(administrator, form=str(other)))
    assert browser.get("/admin/tokens").text.count('value="revoke"') == 1
    for token, status in ((other, 403), (own, 303)):
        form = {"form_token": browser.form_token(), "change": "revoke", "token": str(token)}
        assert browser.post("/admin/tokens", form).status == status
    assert [each.id for each in site.store.tokens.all() if each.revoked_at] == [own]


@pytest.mark.parametrize("domain", [EVERYWHERE, "example.org"])
def test_the_help_desk_sees_and_revokes_its_own_tokens_and_no_others(site: Site, domain: str) -> None:
    browser = sign_in(site, Person(MALLORY, Role.HELP_DESK, domain))
    site.parts.staff.give(BOB, Role.HELP_DESK, EVERYWHERE, BY_OPERATOR)
    own, others = new_id(), [new_id(), new_id()]
    wanted = TokenRequest("Mine", Role.HELP_DESK, "example.org", Scope.ACT, 9)
    assert site.parts.tokens.create(own, MALLORY, wanted, BY_OPERATOR, site.now)
    for token, host in zip(others, (EVERYWHERE, "example.org"), strict=True):
        foreign = TokenRequest("Of Bob", Role.HELP_DESK, host, Scope.ACT, 9)
        assert site.parts.tokens.create(token, BOB, foreign, BY_OPERATOR, site.now)
    menu = '<a href="/quarantine/admin/tokens"'
    assert menu in browser.get("/admin/").text
    page = browser.get("/admin/tokens").text
    assert "Mine" in page and "Of Bob" not in page and BOB not in page
    assert page.count('value="revoke"') == 1 and 'value="create"' not in page
    assert create(browser).status == 403
    for token, status in (*((each, 403) for each in others), (own, 303)):
        form = {"form_token": browser.form_token(), "change": "revoke", "token": str(token)}
        assert browser.post("/admin/tokens", form).status == status
    assert [each.id for each in site.store.tokens.all() if each.revoked_at] == [own]
    [entry] = site.store.audit.list(AuditFilter(act="token-revoked"), 9)
    assert str(own) in entry.detail and entry.actor.name == MALLORY


def test_tokens_are_created_only_after_a_fresh_sign_in_and_revoked_always(site: Site) -> None:
    browser = sign_in(site, ADMINISTRATOR)
    secret_of(create(browser))
    site.pass_time(minutes=FRESH.total_seconds() / 60 + 1)
    assert create(browser).header("Location") == "/quarantine/sign-in?ended=fresh"
    [token] = site.store.tokens.all()
    form = {"form_token": browser.form_token(), "change": "revoke", "token": str(token.id)}
    assert browser.post("/admin/tokens", {**form, "form_token": "x"}).status == 403
    assert browser.post("/admin/tokens", form).header("Location") == "/quarantine/admin/tokens?done=revoked"
