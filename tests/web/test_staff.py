"""The console: every route and role, its sign-ins, and the page of roles."""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Callable
from typing import NamedTuple

import pytest

from portal.assemble import Parts
from portal.model.message import Tier
from portal.model.staff import EVERYWHERE, Grant, Role
from portal.web.auth.session import _DESTINATION, FRESH
from tests.builders import ALICE, BOB, BY_OPERATOR, MALLORY, hold
from tests.statements import Statements
from tests.web.test_portal import OWN, plain
from tests.web_client import Answer, Browser, Site

DOMAINS = ("example.org", "example.net")


class Person(NamedTuple):
    """A column of the matrix."""

    address: str | None
    role: Role | None = None
    domain: str = EVERYWHERE


NOBODY = Person(None)
RECIPIENT = Person(MALLORY)
ADMINISTRATOR = Person(MALLORY, Role.ADMINISTRATOR)
OF_THE_DOMAIN = Person(MALLORY, Role.DOMAIN_ADMINISTRATOR, "example.org")
OF_ANOTHER = Person("mallory@example.net", Role.DOMAIN_ADMINISTRATOR, "example.net")
HELP_DESK = Person(MALLORY, Role.HELP_DESK)
AUDITOR = Person(MALLORY, Role.AUDITOR)
PEOPLE = (NOBODY, RECIPIENT, ADMINISTRATOR, OF_THE_DOMAIN, OF_ANOTHER, HELP_DESK, AUDITOR)
# They get what the same role in all domains gets, but for the messages and recipients of example.org.
ELSEWHERE = {
    Person("mallory@example.net", Role.HELP_DESK, "example.net"): HELP_DESK,
    Person("mallory@example.net", Role.AUDITOR, "example.net"): AUDITOR,
}

# The console's routes: the status for each of PEOPLE. Forms act on the domain example.org. For all other routes a role
# makes no difference: staff are strangers there.
MATRIX: dict[tuple[str, str], tuple[int, ...]] = {
    ("GET", "/admin"): (303, 404, 303, 303, 303, 303, 303),
    ("GET", "/admin/"): (303, 404, 200, 200, 200, 200, 200),
    ("GET", "/admin/messages/ID/"): (303, 404, 200, 200, 404, 200, 200),
    ("POST", "/admin/messages/ID/"): (303, 404, 303, 303, 404, 403, 403),
    ("GET", "/admin/messages/ID/similar"): (303, 404, 200, 200, 404, 200, 200),
    ("GET", "/admin/messages/ID/VIEW"): (303, 404, 200, 200, 404, 403, 403),
    ("GET", "/admin/messages/ID/html"): (303, 404, 200, 200, 404, 403, 403),
    ("GET", "/admin/messages/ID/WAY"): (303, 404, 303, 303, 404, 303, 303),
    ("GET", "/admin/messages/ID/download"): (303, 404, 200, 200, 404, 403, 403),
    ("POST", "/admin/messages/ID/download"): (303, 404, 200, 200, 404, 403, 403),
    ("GET", "/admin/jobs/"): (303, 404, 200, 200, 200, 200, 200),
    ("POST", "/admin/jobs/"): (303, 404, 303, 303, 303, 403, 403),
    ("GET", "/admin/jobs/new"): (303, 404, 303, 303, 303, 303, 303),
    ("GET", "/admin/jobs/ID/"): (303, 404, 404, 404, 404, 404, 404),
    ("POST", "/admin/jobs/ID/"): (303, 404, 404, 404, 404, 404, 404),
    ("GET", "/admin/requests"): (303, 404, 200, 200, 200, 200, 200),
    ("GET", "/admin/recipients"): (303, 404, 303, 303, 303, 303, 303),
    ("GET", "/admin/recipients/"): (303, 404, 200, 200, 200, 200, 200),
    ("POST", "/admin/recipients/"): (303, 404, 400, 400, 403, 400, 403),
    ("GET", "/admin/recipients/list"): (303, 404, 200, 200, 200, 403, 403),
    ("POST", "/admin/recipients/list"): (303, 404, 400, 400, 403, 403, 403),
    ("POST", "/admin/recipients/list/export"): (303, 404, 200, 200, 403, 403, 403),
    ("GET", "/admin/recipients/forget"): (303, 404, 303, 303, 303, 403, 403),
    ("POST", "/admin/recipients/forget"): (303, 404, 303, 303, 403, 403, 403),
    ("GET", "/admin/domains"): (303, 404, 200, 200, 200, 403, 200),
    ("POST", "/admin/domains"): (303, 404, 400, 400, 403, 403, 403),
    ("GET", "/admin/statistics"): (303, 404, 200, 200, 200, 200, 200),
    ("POST", "/admin/statistics"): (303, 404, 400, 400, 400, 400, 400),
    ("GET", "/admin/statistics/days.svg"): (303, 404, 200, 200, 200, 200, 200),
    ("GET", "/admin/statistics/tiers.svg"): (303, 404, 200, 200, 200, 200, 200),
    ("GET", "/admin/staff"): (303, 404, 200, 200, 200, 403, 200),
    ("POST", "/admin/staff"): (303, 404, 303, 303, 403, 403, 403),
    ("GET", "/admin/tokens"): (303, 404, 200, 200, 200, 200, 200),
    ("POST", "/admin/tokens"): (303, 404, 400, 400, 403, 403, 403),
    ("GET", "/admin/second-factor"): (303, 404, 200, 200, 200, 200, 200),
    ("POST", "/admin/second-factor"): (303, 404, 303, 303, 303, 303, 303),
    ("GET", "/admin/audit"): (303, 404, 200, 200, 200, 403, 200),
    ("POST", "/admin/audit/export"): (303, 404, 200, 200, 200, 403, 200),
}


# The status for both of ELSEWHERE. What they may do nowhere is not permitted, whether the message exists or not.
OF_OTHERS: dict[tuple[str, str], int] = {
    ("GET", "/admin/messages/ID/"): 404,
    ("POST", "/admin/messages/ID/"): 404,
    ("GET", "/admin/messages/ID/similar"): 404,
    ("GET", "/admin/messages/ID/WAY"): 404,
    ("POST", "/admin/recipients/"): 403,
}


def expected(person: Person, method: str, rule: str) -> int:
    """Return the status that a person gets from a route of the console."""
    if person not in ELSEWHERE:
        return MATRIX[method, rule][PEOPLE.index(person)]
    return OF_OTHERS.get((method, rule)) or MATRIX[method, rule][PEOPLE.index(ELSEWHERE[person])]


@pytest.fixture
def site(make_parts: Callable[..., Parts]) -> Site:
    return Site(make_parts(local_domains=DOMAINS))


def sign_in(site: Site, person: Person) -> Browser:
    if person.address is None:
        return site.browser()
    if person.role is not None:
        site.store.staff.give(Grant(person.address, person.role, person.domain, site.now, BY_OPERATOR))
    return site.signed_in(person.address)


def give(browser: Browser, address: str, role: str, domain: str = "", change: str = "give") -> Answer:
    form = {"form_token": browser.form_token(), "change": change, "address": address, "role": role, "domain": domain}
    return browser.post("/admin/staff", form)


# ---- every route and role


def test_every_route_is_named() -> None:
    console_routes = {route for route in OWN if route[1].startswith("/admin")}
    assert set(MATRIX) == console_routes, "add the new route to the matrix"
    assert all(len(row) == len(PEOPLE) for row in MATRIX.values())


@pytest.mark.parametrize("person", [*PEOPLE, *ELSEWHERE], ids=lambda each: f"{each.role or each.address}-{each.domain}")
def test_each_role_reaches_what_the_matrix_says(site: Site, person: Person) -> None:
    secret = "The secret subject"
    held = [hold(site.store, recipients=(ALICE,), subject=secret, tier=tier) for tier in (Tier.SPAM, Tier.DANGEROUS)]
    before = [(site.delivery(each), site.history(each)) for each in held]
    for method, rule in sorted({(method, plain(rule)) for method, rule in site.app.routes}):
        browser = sign_in(site, person)
        form = {"change": "resume", "address": MALLORY, "code": "123456"}
        if (method, rule) in MATRIX:
            form = {
                "change": "give",
                "address": BOB,
                "role": "auditor",
                "domain": "example.org",
                "act": "delete",
                "scope": "act",
                "days": "9",
                "warned": "spam",
            }
        if person.address:
            form["form_token"] = browser.form_token()
        # What staff may act on is not among the messages that stay as they are.
        acted = hold(site.store, recipients=(ALICE,), subject=secret)
        is_act = method == "POST" and rule.startswith("/admin/messages/")
        names = {
            "ID": str((acted if is_act else held[0]).id),
            "ACT": "release",
            "NAME": "style.css",
            "PATH": "messages/x",
            "TOKEN": "A" * 32,
        }
        names |= {"RULE": str(held[0].id), "CHANGE": "remove", "WAY": "next", "VIEW": "formatted"}
        path = "/".join(names.get(part, part) for part in rule.split("/"))
        answer = browser.get(path) if method == "GET" else browser.post(path, form)
        if answer.status >= 400:
            assert len(site.history(acted)) == 1
        if (method, rule) in MATRIX:
            assert answer.status == expected(person, method, rule), (method, rule, answer.text)
        elif not rule.startswith("/link/"):  # in test_portal.py, with valid links
            assert answer.status == OWN[method, rule][0 if person is NOBODY else 2], (method, rule, answer.text)
            assert secret not in answer.text
    assert [(site.delivery(each), site.history(each)) for each in held] == before


def test_the_menu_has_a_second_line_for_the_administration(site: Site) -> None:
    browser = sign_in(site, ADMINISTRATOR)
    page = browser.get("/admin/").text
    assert "Administration</a>" in page and "/admin/audit" not in page
    page = browser.get("/admin/staff").text
    assert '<a href="/quarantine/admin/domains" aria-current="true">Administration</a>' in page
    assert 'aria-current="page">Staff</a>' in page and 'href="/quarantine/admin/audit"' in page
    assert "Administration" not in sign_in(site, Person(BOB, Role.HELP_DESK)).get("/admin/").text


# ---- who reaches the console


def test_staff_find_the_console_in_the_menu_and_others_do_not(site: Site) -> None:
    link = '<a href="/quarantine/admin/"'
    assert link not in site.signed_in(ALICE).get("/").text
    browser = sign_in(site, HELP_DESK)
    page = browser.get("/").text
    assert link in page
    home = browser.get("/admin/").text
    assert "Help desk" in home and "All domains" in home and 'href="/quarantine/admin/staff"' not in home


def test_the_settings_name_the_first_administrators(make_parts: Callable[..., Parts]) -> None:
    site = Site(make_parts(staff__administrators="Alice@example.org"))
    browser = site.signed_in(ALICE)
    assert "Console</span></a>" in browser.get("/").text
    page = browser.get("/admin/staff").text
    assert "Given in the settings file" in page and 'value="remove"' not in page


def test_a_role_holds_and_ends_at_once(site: Site) -> None:
    browser, administrator = site.signed_in(ALICE), sign_in(site, ADMINISTRATOR)
    assert browser.get("/admin/").status == 404
    assert give(administrator, ALICE, "auditor").status == 303
    assert browser.get("/admin/").status == 200
    assert give(administrator, ALICE, "help-desk", "example.org").status == 303
    assert give(administrator, ALICE, "auditor", change="remove").status == 303
    answer = browser.get("/admin/")
    assert (answer.status, answer.header("Location")) == (303, "/quarantine/sign-in?ended=console")
    assert browser.get("/").status == 200, "her own pages still work"
    assert site.signed_in(ALICE).get("/admin/").status == 200, "after signing in, with the other role"
    give(administrator, ALICE, "help-desk", "example.org", change="remove")
    assert browser.get("/admin/").status == 404


def test_the_console_needs_a_sign_in_or_a_use_within_30_minutes(site: Site) -> None:
    browser = sign_in(site, AUDITOR)
    for _ in range(4):
        site.pass_time(minutes=29)
        assert browser.get("/admin/").status == 200
    for _ in range(3):
        site.pass_time(minutes=20)
        assert browser.get("/").status == 200  # does not count
    answer = browser.get("/admin/staff?done=given")
    assert (answer.status, answer.header("Location")) == (303, "/quarantine/sign-in?ended=console")
    assert "The console needs a recent sign-in." in browser.follow(answer, "/admin/").text
    assert browser.get("/").status == 200
    form = {"form_token": browser.form_token()}
    assert browser.post("/admin/staff", form).header("Location") == "/quarantine/sign-in?ended=console"


def test_signing_in_again_leads_back_to_the_console(site: Site) -> None:
    browser = sign_in(site, AUDITOR)
    site.pass_time(minutes=31)
    browser.get("/admin/staff?done=x")
    browser.post("/sign-in", {"address": MALLORY})
    with site.store.outbox.sending(site.now) as outgoing:
        assert outgoing
        link = re.search(rb"https?://\S+/sign-in/(?:=\r?\n|\S)+", outgoing.mail)
    assert link
    path = link[0].replace(b"=\r\n", b"").replace(b"=\n", b"").decode()
    answer = browser.post(path[path.index("/sign-in/") :])
    assert answer.header("Location") == "/quarantine/admin/staff?done=x"
    assert browser.get("/admin/staff?done=x").status == 200


@pytest.mark.parametrize("page", ["/admin", "/admin/", "/admin/staff", "/admin/staff?q=a%40b", "/admin/jobs/0-1/"])
def test_pages_of_the_console_are_shown_after_signing_in(page: str) -> None:
    assert _DESTINATION.fullmatch(page)


@pytest.mark.parametrize(
    "page", ["/admin//evil.example", "/admin/../../evil", "/admin/..", "/admin/..%2f", "/adminx/", "//admin/"]
)
def test_other_addresses_are_not(page: str) -> None:
    assert not _DESTINATION.fullmatch(page)


@pytest.mark.parametrize(
    ("peer", "status"),
    [("192.0.2.7", 200), ("::ffff:192.0.2.7", 200), ("198.51.100.1", 404), ("2001:db8::1", 404), ("", 404)],
)
def test_networks_limit_where_the_console_answers(make_parts: Callable[..., Parts], peer: str, status: int) -> None:
    site = Site(make_parts(staff__networks="192.0.2.0/24", staff__administrators=ALICE))
    browser = site.signed_in(ALICE)
    browser.peer = peer
    answer = browser.get("/admin/", headers={"X-Forwarded-For": "192.0.2.7", "X-Real-IP": "192.0.2.7"})
    assert answer.status == status
    page = browser.get("/")
    assert page.status == 200 and ("Console</span></a>" in page.text) == (status == 200)
    if status == 404:
        assert browser.get("/admin/nothing").text == answer.text, "as if there were no console"
        stranger = site.browser()
        stranger.peer = peer
        assert stranger.get("/admin/").status == 404


def test_pages_of_the_console_need_few_statements(
    make_parts: Callable[..., Parts], monkeypatch: pytest.MonkeyPatch
) -> None:
    statements = Statements(monkeypatch)
    site = Site(make_parts())
    browser = sign_in(site, ADMINISTRATOR)
    browser.get("/admin/requests")  # every ten seconds one page counts the open requests
    site.pass_time(minutes=2)
    for path in ("/admin/", "/admin/staff", "/admin/tokens", "/admin/audit?who=root"):
        with statements.of() as sent:
            assert browser.get(path).status == 200
        assert 0 < len(sent) <= 5, sent


# ---- the page of roles


def test_an_administrator_gives_and_removes_roles(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    browser = sign_in(site, ADMINISTRATOR)
    with caplog.at_level(logging.INFO, "quarantine.staff"):
        page = browser.follow(
            give(browser, "Bob@example.org", "domain-administrator", "example.net"), "/admin/staff"
        ).text
    assert "Role given." in page and "<bdi>bob@example.org</bdi></strong> · Domain administrator" in page
    assert f"by {MALLORY}" in page
    assert f"role given person={BOB} role=domain-administrator domain=example.net by=operator:{MALLORY}" in caplog.text
    [grant] = site.store.staff.of(BOB)
    assert (grant.actor.name, grant.actor.via, grant.actor.address) == (MALLORY, "console", "192.0.2.7")
    again = browser.follow(give(browser, BOB, "domain-administrator", "example.net"), "/admin/staff").text
    assert "This person has this role already." in again
    forms = re.findall(r'name="address" value="([^"]*)">\s*<input[^>]*name="role" value="([^"]*)">\s*'
                       r'<input[^>]*name="domain" value="([^"]*)">', page)  # fmt: skip
    assert (BOB, "domain-administrator", "example.net") in forms
    removed = give(browser, BOB, "domain-administrator", "example.net", change="remove")
    assert "Role removed." in browser.follow(removed, "/admin/staff").text
    assert site.store.staff.of(BOB) == []


def test_what_cannot_be_given_is_said_above_the_form_which_keeps_what_was_typed(site: Site) -> None:
    browser = sign_in(site, ADMINISTRATOR)
    answer = give(browser, "eve@elsewhere.example", "help-desk", "example.net")
    assert answer.status == 400
    assert 'role="alert" id="error">Nobody can sign in with this address' in answer.text
    assert 'value="eve@elsewhere.example"' in answer.text
    assert (
        '<option value="help-desk" selected>' in answer.text and '<option value="example.net" selected>' in answer.text
    )
    for role, domain in itertools.product(("", "root", "ADMINISTRATOR"), ("", "example.org")):
        assert give(browser, BOB, role, domain).status == 400
    for address in ('"><script>alert(1)</script>', "a" * 500 + "@example.org\x00", "\u202e@example.org"):
        assert "<script>alert" not in give(browser, address, "help-desk").text


def test_a_domain_administrator_sees_and_changes_the_roles_of_the_domain_alone(site: Site) -> None:
    for person in (
        ADMINISTRATOR,
        Person(BOB, Role.HELP_DESK, "example.org"),
        Person(ALICE, Role.AUDITOR, "example.net"),
    ):
        sign_in(site, person)
    browser = sign_in(site, Person("dora@example.org", Role.DOMAIN_ADMINISTRATOR, "example.org"))
    page = browser.get("/admin/staff").text
    assert BOB in page and MALLORY not in page and ALICE not in page and "example.net" not in page
    assert '<option value="administrator"' not in page
    before = site.store.staff.all()
    for role, domain in (("administrator", ""), ("help-desk", ""), ("help-desk", "example.net")):
        assert give(browser, BOB, role, domain).status == 403
    assert give(browser, MALLORY, "administrator", change="remove").status == 403
    assert give(browser, ALICE, "auditor", "example.net", change="remove").status == 403
    assert site.store.staff.all() == before
    assert give(browser, BOB, "help-desk", "example.org", change="remove").status == 303
    assert site.store.staff.of(BOB) == []


def test_an_auditor_sees_all_roles_and_has_no_form(site: Site) -> None:
    sign_in(site, Person(BOB, Role.HELP_DESK, "example.net"))
    page = sign_in(site, AUDITOR).get("/admin/staff").text
    assert BOB in page and 'name="role"' not in page


def test_roles_are_listed_by_address_or_by_role(site: Site) -> None:
    for person, role in ((ALICE, Role.HELP_DESK), (BOB, Role.DOMAIN_ADMINISTRATOR), (MALLORY, Role.ADMINISTRATOR)):
        host = "" if role is Role.ADMINISTRATOR else "example.org"
        site.parts.staff.give(person, role, host, BY_OPERATOR)
    browser = site.signed_in(MALLORY)

    def names(query: str) -> list[str]:
        found = re.findall(r'id="role-\d+"><strong><bdi>([^<]+)</bdi>', browser.get(f"/admin/staff{query}").text)
        return [name for name in found if name in (ALICE, BOB, MALLORY)]

    assert names("") == sorted((ALICE, BOB, MALLORY))
    assert names("?order=role") == [MALLORY, BOB, ALICE]


def test_roles_change_only_after_a_fresh_sign_in(site: Site) -> None:
    browser = sign_in(site, ADMINISTRATOR)
    site.pass_time(minutes=FRESH.total_seconds() / 60 + 1)
    assert browser.get("/admin/staff").status == 200
    answer = give(browser, BOB, "auditor")
    assert answer.header("Location") == "/quarantine/sign-in?ended=fresh"
    assert site.store.staff.of(BOB) == []
    assert give(site.signed_in(MALLORY), BOB, "auditor").header("Location") == "/quarantine/admin/staff?done=given"


def test_the_form_of_another_site_or_session_changes_nothing(site: Site) -> None:
    browser = sign_in(site, ADMINISTRATOR)
    form = {"change": "give", "address": BOB, "role": "administrator", "domain": ""}
    assert browser.post("/admin/staff", {**form, "form_token": "x"}).status == 403
    foreign = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}
    assert browser.post("/admin/staff", {**form, "form_token": browser.form_token()}, headers=foreign).status == 403
    assert site.store.staff.of(BOB) == []
