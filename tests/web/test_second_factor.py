"""The second factor of staff: setting it up, giving it, recovery codes, and what is closed without it."""

from __future__ import annotations

import hashlib
import logging
import re
from base64 import urlsafe_b64encode
from collections.abc import Callable
from datetime import timedelta

import pyotp
import pytest

from portal.assemble import Parts
from portal.model.audit import AuditFilter
from portal.model.staff import EVERYWHERE, Grant, Role
from portal.stores.records import Method
from tests.builders import ALICE, BOB, BY_OPERATOR, MALLORY, hold
from tests.statements import Statements
from tests.web.test_portal import plain
from tests.web_client import Answer, Browser, Site

PAGE = "/admin/second-factor"
OF_PAGE = "/quarantine/admin/second-factor"


@pytest.fixture
def site(make_parts: Callable[..., Parts]) -> Site:
    return Site(make_parts(staff__administrators=ALICE))


@pytest.fixture
def strict(make_parts: Callable[..., Parts]) -> Site:
    """A site that requires a second factor."""
    return Site(make_parts(staff__administrators=ALICE, staff__second_factor="true"))


def sign_in(site: Site, person: str = ALICE, method: str = "mailed-link") -> Browser:
    """Return a browser with one more session of this person."""
    browser, secret = site.browser(), f"{person}/{site.now.timestamp()}/{method}"
    hashed = hashlib.sha256(secret.encode()).digest()
    site.store.sign_ins.start_session(hashed, person, site.now, method=Method(method), authenticated_at=site.now)
    browser.cookies["__Host-quarantine-session"] = secret
    return browser


def post(browser: Browser, act: str, **form: str) -> Answer:
    return browser.post(PAGE, {"form_token": browser.form_token(), "act": act, **form})


def hidden(page: str, name: str) -> str:
    found = re.search(f'name="{name}" value="([^"]*)"', page)
    assert found, page
    return found[1]


def app_of(page: str) -> pyotp.TOTP:
    """Return an authenticator app with the key that the page shows."""
    key = re.search(r'<code class="key" dir="ltr">([A-Z2-7 ]+)</code>', page)
    assert key and f"secret={key[1].replace(' ', '')}&" in page
    return pyotp.TOTP(key[1].replace(" ", ""))


def set_up(site: Site, browser: Browser, path: str = PAGE) -> tuple[pyotp.TOTP, list[str]]:
    """Set up a second factor as a person does, and return the app and the recovery codes."""
    page = browser.get(path).text
    app = app_of(page)
    form = {"salt": hidden(page, "salt"), "replaces": hidden(page, "replaces"), "code": app.at(site.now)}
    answer = post(browser, "set-up", **form)
    assert answer.status == 200, answer.text
    codes = re.findall(r"<li><code>([a-z2-7-]{19})</code>", answer.text)
    assert len(set(codes)) == 10
    site.pass_time(seconds=30)  # the code of this step is used up
    return app, codes


def give(site: Site, browser: Browser, app: pyotp.TOTP, steps: int = 0) -> Answer:
    return post(browser, "give", code=app.at(site.now + timedelta(seconds=30 * steps)))


def audited(site: Site) -> list[tuple[str, str, str]]:
    entries = reversed(site.store.audit.list(AuditFilter(), 99))
    return [(e.act, e.actor.name, e.detail) for e in entries if "factor" in e.act or "recovery" in e.act]


# ---- with and without


def test_people_set_up_a_factor_and_are_asked_for_it_at_the_next_sign_in(site: Site) -> None:
    browser = sign_in(site)
    assert browser.get("/admin/").status == 200, "the site does not require one"
    app, codes = set_up(site, browser)
    assert browser.get("/admin/").status == 200, "given by setting it up"
    page = browser.get(PAGE).text
    assert "Recovery codes left: 10" in page and not any(code in page for code in codes), "shown once"
    later = sign_in(site)
    answer = later.get("/admin/staff?done=given")
    assert (answer.status, answer.header("Location")) == (303, OF_PAGE)
    asked = later.get(PAGE).text
    assert "6-digit code" in asked and "/admin/audit" not in asked and 'class="key"' not in asked
    assert later.get("/").status == 200, "the person's own messages need none"
    assert give(site, later, app).header("Location") == "/quarantine/admin/staff?done=given"
    assert later.get("/admin/staff").status == 200
    assert audited(site) == [("second-factor-set", ALICE, "")]


def test_a_site_requires_it_before_anything_else_of_the_console(strict: Site) -> None:
    browser = sign_in(strict)
    page = browser.follow(browser.get("/admin/"), "/admin/").text
    assert "Set up a second factor" in page and "/admin/audit" not in page
    set_up(strict, browser)
    assert browser.get("/admin/").status == 200


def test_a_stolen_link_opens_nothing_of_the_console(strict: Site) -> None:
    set_up(strict, sign_in(strict))
    held = hold(strict.store, recipients=(BOB,), subject="The secret subject")
    thief, names = sign_in(strict), {"ID": str(held.id), "WAY": "next", "VIEW": "text"}
    token, before = thief.form_token(), (strict.history(held), strict.store.staff.all())
    routes = {(method, plain(rule)) for method, rule in strict.app.routes if rule.startswith("/admin")}
    assert len(routes) > 30
    form = {"form_token": token, "act": "delete", "change": "give", "address": MALLORY, "role": "administrator"}
    for method, rule in sorted(routes - {("GET", PAGE), ("POST", PAGE)}):
        path = "/".join(names.get(part, part) for part in rule.split("/"))
        answer = thief.get(path) if method == "GET" else thief.post(path, {**form, "q": "secret"})
        assert (answer.status, answer.header("Location"), answer.body) == (303, OF_PAGE, b""), (method, rule)
    assert (strict.history(held), strict.store.staff.all()) == before
    assert "The secret subject" not in thief.get(PAGE).text


@pytest.mark.parametrize(
    ("method", "asked"),
    [("mailed-link", True), ("ldap", True), ("imap", True), ("proxy", True), ("oidc:company", False)],
)
def test_only_providers_ask_for_a_factor_themselves(strict: Site, method: str, asked: bool) -> None:
    browser = sign_in(strict, method=method)
    assert browser.get("/admin/").status == (303 if asked else 200)
    set_up(strict, sign_in(strict))
    again = sign_in(strict, method=method)
    assert again.get("/admin/").status == (303 if asked else 200)
    assert "6-digit code" in again.get(PAGE).text, "to change it they need it"
    assert post(again, "codes", replaces="").status == 403


def test_a_page_of_the_console_needs_no_further_statement(
    make_parts: Callable[..., Parts], monkeypatch: pytest.MonkeyPatch
) -> None:
    statements = Statements(monkeypatch)
    site = Site(make_parts(staff__administrators=ALICE))
    browser = sign_in(site)
    browser.get("/admin/")
    site.pass_time(minutes=2)
    with statements.of() as without:
        browser.get("/admin/")
    set_up(site, browser)
    site.pass_time(minutes=2)
    browser.get("/admin/requests")
    site.pass_time(minutes=2)
    with statements.of() as given:
        assert browser.get("/admin/").status == 200
    assert len(given) <= len(without)
    for path in (PAGE, "/admin/staff"):
        with statements.of() as sent:
            assert browser.get(path).status == 200
        assert 0 < len(sent) <= 5, sent


# ---- codes


@pytest.mark.parametrize(("steps", "status"), [(-2, 403), (-1, 303), (0, 303), (1, 303), (2, 403)])
def test_codes_of_a_clock_that_is_30_seconds_wrong_are_accepted(site: Site, steps: int, status: int) -> None:
    app, _ = set_up(site, sign_in(site))
    site.pass_time(minutes=5)
    assert give(site, sign_in(site), app, steps).status == status


def test_each_code_works_once_in_all_browsers(site: Site) -> None:
    first = sign_in(site)
    page = first.get(PAGE).text
    app = app_of(page)
    form = {"salt": hidden(page, "salt"), "replaces": "", "code": app.at(site.now)}
    assert post(first, "set-up", **form).status == 200
    one, other = sign_in(site), sign_in(site, method="ldap")
    assert give(site, one, app).status == 403, "used up by setting it up"
    site.pass_time(seconds=30)
    assert give(site, one, app).status == 303
    assert give(site, one, app).status == 303, "the form was sent twice"
    assert give(site, other, app).status == 403
    assert give(site, other, app, -1).status == 403, "an earlier code neither"
    site.pass_time(seconds=30)
    assert give(site, other, app).status == 303


def test_a_clock_that_was_ahead_locks_nobody_out(site: Site) -> None:
    app, _ = set_up(site, sign_in(site))
    site.pass_time(days=400)
    browser = sign_in(site)
    for _ in range(4):
        post(browser, "give", code="000000")
    assert give(site, browser, app).status == 303
    site.pass_time(days=-399)
    assert give(site, sign_in(site), app).status == 303


def test_five_wrong_codes_close_the_door_for_15_minutes_in_all_processes(
    make_parts: Callable[..., Parts], caplog: pytest.LogCaptureFixture
) -> None:
    here, there = (Site(make_parts(staff__administrators=ALICE)) for _ in range(2))
    there.now = here.now
    app, codes = set_up(here, sign_in(here))
    there.now = here.now
    one = sign_in(here)
    other = Browser(there.app, dict(one.cookies))
    with caplog.at_level(logging.INFO, "quarantine.staff"):
        for browser in (one, other, one, other, one):
            wrong = post(browser, "give", code="000000")
            assert wrong.status == 403 and 'role="alert"' in wrong.text
    assert give(there, other, app).status == 429
    assert post(other, "give", recovery=codes[0]).status == 429
    assert f"second factor refused person={ALICE} peer=192.0.2.7: limited" in caplog.text
    assert app.secret not in caplog.text and codes[0] not in caplog.text and "000000" not in caplog.text
    assert audited(here)[1:] == [("second-factor-refused", ALICE, "5 wrong codes")]
    there.pass_time(minutes=15)
    assert give(there, other, app).status == 303
    for _ in range(4):
        post(sign_in(there), "give", code="000000")
    there.pass_time(seconds=30)
    assert give(there, sign_in(there), app).status == 303, "a right code ended the count"


@pytest.mark.parametrize("code", ["", " ", "١٢٣٤٥٦", "12345", "1234567", "\x00" * 6, "é" * 6, "<b>\"'" * 400])
def test_other_input_is_a_wrong_code(site: Site, code: str) -> None:
    set_up(site, sign_in(site))
    for name in ("code", "recovery"):
        answer = post(sign_in(site), "give", **{name: code})
        assert answer.status == 403 and "<b>" not in answer.text


# ---- recovery codes


def test_a_recovery_code_works_once_and_then_the_app_can_be_set_up_again(site: Site) -> None:
    app, codes = set_up(site, sign_in(site))
    browser = sign_in(site)
    browser.get("/admin/audit")
    typed = f" {codes[3].upper().replace('-', ' ').replace('O', '0')} "
    page = browser.follow(post(browser, "give", recovery=typed), PAGE).text
    assert "Recovery codes left: 9" in page and "set up the app again" in page
    site.pass_time(seconds=1)
    assert post(sign_in(site), "give", recovery=codes[3]).status == 403
    new, _ = set_up(site, browser, f"{PAGE}?new=1")
    assert new.secret != app.secret
    later = sign_in(site)
    assert give(site, later, app).status == 403
    assert post(later, "give", recovery=codes[4]).status == 403, "those of the former app do not work either"
    assert give(site, later, new).status == 303
    assert [act for act, *_ in audited(site)] == ["second-factor-set", "recovery-code-used", "second-factor-set"]


def test_new_recovery_codes_replace_those_before(site: Site) -> None:
    browser = sign_in(site)
    _, old = set_up(site, browser)
    form = {"replaces": hidden(browser.get(PAGE).text, "replaces")}
    answer = post(browser, "codes", **form)
    new = re.findall(r"<li><code>([a-z2-7-]{19})</code>", answer.text)
    assert len(new) == 10 and not set(new) & set(old)
    again = post(browser, "codes", **form)  # the form was sent twice, or is in another tab
    assert again.header("Location") == f"{OF_PAGE}?done=changed"
    assert "the second factor is new already" in browser.get(f"{PAGE}?done=changed").text
    assert post(sign_in(site), "give", recovery=old[0]).status == 403
    assert post(sign_in(site), "give", recovery=new[0]).status == 303
    assert ("second-factor-set", ALICE, "recovery codes") in audited(site)


# ---- who may change it


def test_without_the_factor_nobody_replaces_or_sees_it(site: Site) -> None:
    before = sign_in(site)
    page = before.get(PAGE).text  # a form from before, in another browser
    app, _ = set_up(site, sign_in(site, method="ldap"))
    factor = site.store.second_factors.get(ALICE)
    assert factor
    thief = sign_in(site)
    own = app_of(page)
    for salt, replaces in ((hidden(page, "salt"), ""), (factor.salt.hex(), factor.version), ("", "")):
        for browser in (before, thief):
            answer = post(browser, "set-up", salt=salt, replaces=replaces, code=own.at(site.now))
            assert answer.status == 403 and 'class="key"' not in answer.text and app.secret not in answer.text
            assert post(browser, "codes", replaces=factor.version).status == 403
    for path in (PAGE, f"{PAGE}?new=1"):
        assert 'class="key"' not in thief.get(path).text
    assert site.store.second_factors.get(ALICE) == factor


def test_the_form_of_another_person_sets_up_nothing_for_them(site: Site) -> None:
    site.store.staff.give(Grant(BOB, Role.AUDITOR, EVERYWHERE, site.now, BY_OPERATOR))
    page = sign_in(site, BOB).get(PAGE).text
    browser = sign_in(site)
    form = {"salt": hidden(page, "salt"), "replaces": "", "code": app_of(page).at(site.now)}
    answer = post(browser, "set-up", **form)
    assert answer.status == 403 and app_of(answer.text).secret != app_of(page).secret
    forged = {"form_token": "x", "act": "set-up", **form}
    assert browser.post(PAGE, forged).status == 403
    foreign = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}
    assert browser.post(PAGE, {**forged, "form_token": browser.form_token()}, headers=foreign).status == 403
    assert site.store.second_factors.all() == []


def test_a_set_up_form_that_is_sent_twice_sets_up_once(site: Site) -> None:
    browser = sign_in(site)
    page = browser.get(PAGE).text
    form = {"salt": hidden(page, "salt"), "replaces": "", "code": app_of(page).at(site.now)}
    assert post(browser, "set-up", **form).status == 200
    factor = site.store.second_factors.get(ALICE)
    assert post(browser, "set-up", **form).header("Location") == f"{OF_PAGE}?done=changed"
    assert site.store.second_factors.get(ALICE) == factor


def test_a_wrong_code_keeps_the_key_that_was_scanned(site: Site) -> None:
    browser = sign_in(site)
    page = browser.get(PAGE).text
    answer = post(browser, "set-up", salt=hidden(page, "salt"), replaces="", code="000000")
    assert answer.status == 403 and app_of(answer.text).secret == app_of(page).secret
    assert 'aria-invalid="true"' in answer.text and site.store.second_factors.get(ALICE) is None


def test_changes_need_a_fresh_sign_in(site: Site) -> None:
    browser = sign_in(site)
    site.pass_time(minutes=16)
    assert browser.get(PAGE).header("Location") == "/quarantine/sign-in?ended=fresh"
    browser = sign_in(site)
    set_up(site, browser)
    site.pass_time(minutes=16)
    assert browser.get(PAGE).status == 200
    assert browser.get(f"{PAGE}?new=1").header("Location") == "/quarantine/sign-in?ended=fresh"
    assert post(browser, "codes", replaces="").header("Location") == "/quarantine/sign-in?ended=fresh"


def test_a_new_factor_is_asked_for_in_the_other_sessions(site: Site) -> None:
    browser = sign_in(site)
    set_up(site, browser)
    other = sign_in(site, method="ldap")
    site.pass_time(seconds=30)
    page = browser.get(f"{PAGE}?new=1").text
    form = {"salt": hidden(page, "salt"), "replaces": hidden(page, "replaces")}
    app = app_of(page)
    assert post(browser, "set-up", **form, code=app.at(site.now)).status == 200
    assert browser.get("/admin/").status == 200
    assert other.get("/admin/").header("Location") == OF_PAGE


@pytest.mark.parametrize(
    "page", ["//evil.example/", "https://evil.example/", "/admin/../../evil", "/sign-out", "\r\nX: y"]
)
def test_a_hostile_destination_is_not_followed(site: Site, page: str) -> None:
    app, _ = set_up(site, sign_in(site))
    browser = sign_in(site)
    browser.cookies["__Host-quarantine-destination"] = urlsafe_b64encode(page.encode()).rstrip(b"=").decode()
    assert give(site, browser, app).header("Location") == "/quarantine/admin/"


# ---- reset


def reset(browser: Browser, address: str) -> Answer:
    form = {"form_token": browser.form_token(), "change": "reset-second-factor", "address": address}
    return browser.post("/admin/staff", form)


def test_an_administrator_resets_the_factor_of_somebody_who_lost_it(site: Site) -> None:
    site.store.staff.give(Grant(BOB, Role.AUDITOR, EVERYWHERE, site.now, BY_OPERATOR))
    bobs, administrator = sign_in(site, BOB), sign_in(site)
    set_up(site, bobs)
    page = administrator.get("/admin/staff").text
    assert re.search(rf'name="address" value="{BOB}">\s*<button name="change" value="reset-second-factor"', page)
    assert "Second factor reset." in administrator.follow(reset(administrator, BOB), "/admin/staff").text
    assert bobs.get("/admin/").header("Location") == "/quarantine/sign-in?ended=console"
    assert "no second factor" in reset(administrator, BOB).text
    assert sign_in(site, BOB).get("/admin/").status == 200
    assert audited(site)[1:] == [("second-factor-reset", ALICE, "")]


def test_nobody_resets_the_factor_of_somebody_with_more_rights(site: Site) -> None:
    for person, role, domain in (
        (BOB, Role.DOMAIN_ADMINISTRATOR, "example.org"),
        (MALLORY, Role.HELP_DESK, "example.org"),
    ):
        site.store.staff.give(Grant(person, role, domain, site.now, BY_OPERATOR))
    for person in (ALICE, MALLORY):
        set_up(site, sign_in(site, person))
    browser = sign_in(site, BOB)
    page = browser.get("/admin/staff").text
    assert 'value="reset-second-factor"' in page and ALICE not in page
    assert reset(browser, ALICE).status == 403
    assert reset(browser, "nobody@example.org").status == 403
    assert reset(sign_in(site, MALLORY), ALICE).header("Location") == OF_PAGE
    assert [each.person for each in site.store.second_factors.all()] == [ALICE, MALLORY]
    assert reset(browser, MALLORY).status == 303
    site.pass_time(minutes=16)
    assert reset(browser, MALLORY).header("Location") == "/quarantine/sign-in?ended=fresh"


def test_the_factor_ends_with_the_last_role(site: Site) -> None:
    for role in (Role.AUDITOR, Role.HELP_DESK):
        site.store.staff.give(Grant(BOB, role, EVERYWHERE, site.now, BY_OPERATOR))
    set_up(site, sign_in(site, BOB))
    staff = site.parts.staff
    staff.remove(BOB, Role.AUDITOR, EVERYWHERE, BY_OPERATOR)
    assert site.store.second_factors.get(BOB)
    staff.remove(BOB, Role.HELP_DESK, EVERYWHERE, BY_OPERATOR)
    assert site.store.second_factors.get(BOB) is None


def test_a_sign_in_without_groups_leaves_the_factor(make_parts: Callable[..., Parts]) -> None:
    """A provider may leave groups out by mistake, and the next sign-in names them again."""
    directory = {"ldap__uri": "ldaps://ldap.example.org", "ldap__base": "dc=example,dc=org"}
    site = Site(make_parts(staff__administrators=ALICE, staff__groups={"it": "administrator"}, **directory))
    site.parts.staff.put_groups(BOB, "ldap", ["it"])
    set_up(site, sign_in(site, BOB))
    site.parts.staff.put_groups(BOB, "ldap", [])
    assert site.store.staff.of(BOB) == [] and site.store.second_factors.get(BOB)


def test_a_sign_in_of_a_clock_that_was_ahead_is_not_recent(site: Site) -> None:
    site.now += timedelta(days=2)
    browser = sign_in(site)
    site.now -= timedelta(days=1)
    assert browser.get(PAGE).header("Location") == "/quarantine/sign-in?ended=fresh"
