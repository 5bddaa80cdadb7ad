"""The second factor of staff: setting it up, giving it, recovery codes, and what is closed without it."""

from __future__ import annotations

import hashlib
import logging
import re
from base64 import urlsafe_b64encode
from collections.abc import Callable
from datetime import timedelta
from email import message_from_bytes
from email.policy import default
from pathlib import Path

import pyotp
import pytest

from portal.assemble import Parts
from portal.model.audit import Act, AuditEntry, AuditFilter
from portal.model.errors import NotAllowed, SettingsError
from portal.model.message import Actor, ActorKind
from portal.model.staff import EVERYWHERE, Grant, Role
from portal.policy.staff import Member
from portal.stores.records import Method
from tests.builders import ALICE, BOB, BY_OPERATOR, MALLORY, hold
from tests.conftest import MakeParts
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


def mails(site: Site) -> list[str]:
    """Return the texts of the waiting mails, and remove them."""
    found: list[str] = []
    while True:
        with site.store.outbox.sending(site.now + timedelta(minutes=1)) as mail:
            if mail is None:
                return found
            found.append(message_from_bytes(mail.mail, policy=default).get_content())


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
    mails(here)
    there.now = here.now
    one = sign_in(here)
    other = Browser(there.app, dict(one.cookies))
    with caplog.at_level(logging.INFO, "quarantine.staff"):
        for browser in (one, other, one, other):
            wrong = post(browser, "give", code="000000")
            assert wrong.status == 403 and 'role="alert"' in wrong.text
        last = post(one, "give", code="000000")
    assert last.status == 429 and "codes of the app are not accepted before" in last.text
    assert give(there, other, app).status == 429
    assert app.secret not in caplog.text and codes[0] not in caplog.text and "000000" not in caplog.text
    assert audited(here)[1:] == [("second-factor-refused", ALICE, "5 wrong codes, no more for 15 minutes")]
    [mail] = mails(here)
    assert "entered too many wrong codes" in mail and "192.0.2.7" in mail
    here.store.notes.add_counters({})  # writes what was counted
    counted = here.browser().request("GET", "/metrics", environ={"REMOTE_ADDR": "127.0.0.1"}).text
    assert "quarantine_second_factors_locked_total 1.0" in counted
    there.pass_time(minutes=15)
    assert give(there, other, app).status == 303
    for _ in range(4):
        post(sign_in(there), "give", code="000000")
    there.pass_time(seconds=30)
    assert give(there, sign_in(there), app).status == 303, "a right code ended the count"


def test_the_pauses_become_longer_until_a_right_code_or_a_week_without_wrong_ones(site: Site) -> None:
    app, codes = set_up(site, sign_in(site))
    browser, quarter = sign_in(site), 15
    for factor in (1, 2, 4, 8, 16, 32, 64, 96, 96):
        assert [post(browser, "give", code="000000").status for _ in range(5)] == [403] * 4 + [429], factor
        site.pass_time(minutes=quarter * factor, seconds=-1)
        browser = sign_in(site)
        assert give(site, browser, app).status == 429, factor
        site.pass_time(seconds=1)
    post(browser, "give", code="000000")
    site.pass_time(days=7)
    browser = sign_in(site)
    assert [post(browser, "give", code="000000").status for _ in range(5)] == [403] * 4 + [429]
    assert give(site, browser, app).status == 429
    for _ in range(9):
        assert post(browser, "give", recovery="aaaa-aaaa-aaaa-aaaa").status == 403
    assert post(browser, "give", recovery=codes[0]).status == 303, "recovery codes are not limited"
    site.pass_time(minutes=1)
    assert give(site, sign_in(site), app).status == 303, "and the right one ended the count"


def test_an_app_whose_key_is_gone_is_told_so_and_locks_nothing(
    make_parts: Callable[..., Parts], tmp_path: Path
) -> None:
    before = Site(make_parts(staff__administrators=ALICE))
    app, codes = set_up(before, sign_in(before))
    file = tmp_path / "links.keys"
    old = file.read_text()
    for keys in (f"{old.rstrip()}\n{'b' * 64}\n", f"{'b' * 64}\n"):  # a new key, and the old one removed
        file.write_text(keys)
        site = Site(make_parts(staff__administrators=ALICE))
    site.now = before.now
    browser = sign_in(site)
    page = browser.get(PAGE).text
    assert "The codes of your app are not valid any more" in page and 'name="code"' not in page
    for _ in range(6):
        answer = give(site, browser, app)
        assert answer.status == 403 and "not valid any more" in answer.text
    page = browser.follow(post(browser, "give", recovery=codes[0]), PAGE).text
    assert "set up the app again" in page
    assert [act for act, *_ in audited(site)] == ["second-factor-set", "recovery-code-used"]
    site.pass_time(seconds=1)
    new, _ = set_up(site, browser, f"{PAGE}?new=1")
    assert give(site, sign_in(site), new).status == 303


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
    [row] = [form for form in page.split("<form")[1:] if 'value="reset-second-factor"' in form]
    assert f'name="address" value="{BOB}"' in row and 'value="set-up-code"' in row
    assert "Second factor reset." in administrator.follow(reset(administrator, BOB), "/admin/staff").text
    assert bobs.get("/admin/").header("Location") == "/quarantine/sign-in?ended=console"
    assert "no second factor" in reset(administrator, BOB).text
    assert sign_in(site, BOB).get("/admin/").status == 200
    assert audited(site)[1:] == [("second-factor-reset", ALICE, "")]
    _, mail = mails(site)
    assert "An administrator removed your second factor." in mail and ALICE not in mail


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
    set_up(site, sign_in(site, BOB, "ldap"))
    site.parts.staff.put_groups(BOB, "ldap", [])
    assert site.store.staff.of(BOB) == [] and site.store.second_factors.get(BOB)


def test_a_sign_in_of_a_clock_that_was_ahead_is_not_recent(site: Site) -> None:
    site.now += timedelta(days=2)
    browser = sign_in(site)
    site.now -= timedelta(days=1)
    assert browser.get(PAGE).header("Location") == "/quarantine/sign-in?ended=fresh"


def change(browser: Browser, address: str, what: str) -> Answer:
    return browser.post("/admin/staff", {"form_token": browser.form_token(), "change": what, "address": address})


def test_with_a_set_up_code_the_mailbox_alone_sets_up_nothing(strict: Site) -> None:
    strict.store.staff.give(Grant(BOB, Role.AUDITOR, EVERYWHERE, strict.now, BY_OPERATOR))
    administrator = sign_in(strict)
    set_up(strict, administrator)
    assert "No second factor" in administrator.get("/admin/staff").text
    before = sign_in(strict, BOB)
    form = before.get(PAGE).text
    page = change(administrator, BOB, "set-up-code").text
    found = re.search(r'<code class="key" dir="ltr">([a-z2-7-]{19})</code>', page)
    assert found and BOB in page
    mails(strict)
    thief = sign_in(strict, BOB)
    assert "set-up code" in thief.get(PAGE).text and 'class="key"' not in thief.get(PAGE).text
    salt = {"salt": hidden(form, "salt"), "code": app_of(form).at(strict.now)}
    for browser in (before, thief):
        answer = browser.post(PAGE, {"form_token": browser.form_token(), "act": "set-up", "replaces": "", **salt})
        assert answer.status in (303, 403) and thief.get("/admin/").header("Location") == OF_PAGE
    for wrong in ({"code": "000000"}, {"recovery": "aaaa-aaaa-aaaa-aaaa"}):
        assert post(thief, "give", **wrong).status == 403
    browser = sign_in(strict, BOB)
    assert post(browser, "give", recovery=found[1]).status == 303
    app, _ = set_up(strict, browser)
    assert browser.get("/admin/").status == 200
    assert post(sign_in(strict, BOB), "give", recovery=found[1]).status == 403, "it works once"
    assert give(strict, sign_in(strict, BOB), app).status == 303
    assert sorted(audited(strict)) == [
        ("recovery-code-used", BOB, "set-up code"),
        ("second-factor-reset", ALICE, "set-up code"),
        ("second-factor-set", ALICE, ""),
        ("second-factor-set", BOB, ""),
    ]
    texts = " ".join(mails(strict))
    assert "set-up code was used" in texts and "A second factor was set up" in texts and found[1] not in texts


def test_a_set_up_code_ends_after_a_week(strict: Site) -> None:
    code = strict.parts.second_factors.make_set_up_code(ALICE, BY_OPERATOR)
    strict.pass_time(days=8)
    browser = sign_in(strict)
    assert post(browser, "give", recovery=code).status == 403
    code = strict.parts.second_factors.make_set_up_code(ALICE, BY_OPERATOR)
    assert post(browser, "give", recovery=code).header("Location") == "/quarantine/sign-in?ended=console"


COMPANY = {"oidc": {"company": {"issuer": "https://id.example.org", "client_id": "q", "client_secret": "s"}}}


@pytest.fixture
def with_provider(make_parts: Callable[..., Parts]) -> Site:
    groups = {"it": "administrator"}
    return Site(make_parts(staff__administrators=ALICE, staff__second_factor="true", staff__groups=groups, **COMPANY))


def test_a_mailed_link_gives_no_role_of_a_group(with_provider: Site) -> None:
    site = with_provider
    site.parts.staff.put_groups(BOB, "oidc:company", ["it"])
    assert sign_in(site, BOB, "oidc:company").get("/admin/").status == 200
    for method in ("mailed-link", "ldap", "oidc:other"):
        browser = sign_in(site, BOB, method)
        assert browser.get("/admin/").status == browser.get(PAGE).status == 404, method
        assert "/admin/" not in browser.get("/").text, method


def test_who_signed_in_with_a_provider_sets_up_nothing_after_a_mailed_link(with_provider: Site) -> None:
    site = with_provider
    before = sign_in(site)
    form = before.get(PAGE).text
    actor = Actor(ActorKind.RECIPIENT, ALICE, "oidc:company", "192.0.2.1")
    site.store.audit.record(AuditEntry.new(site.now, Act.SIGNED_IN, actor, ALICE))
    thief = sign_in(site)
    page = thief.get(PAGE).text
    assert 'class="key"' not in page and 'href="/quarantine/sign-in/oidc/company"' in page and "set-up code" in page
    for browser in (before, thief, sign_in(site, method="imap")):
        answer = post(browser, "set-up", salt=hidden(form, "salt"), replaces="", code=app_of(form).at(site.now))
        assert answer.status == 403 and site.store.second_factors.get(ALICE) is None
        assert post(browser, "codes", replaces="").status == 403
    set_up(site, sign_in(site, method="ldap"))


def test_people_learn_of_changes_by_mail(site: Site) -> None:
    browser = sign_in(site)
    _, codes = set_up(site, browser)
    post(browser, "codes", replaces=hidden(browser.get(PAGE).text, "replaces"))
    post(sign_in(site), "give", recovery=codes[0])
    site.pass_time(seconds=1)
    first, second = mails(site)
    assert "A second factor was set up" in first and "192.0.2.7" in first
    assert "New recovery codes" in second


class Killed(BaseException):
    pass


@pytest.mark.parametrize(
    ("method", "text"),
    [
        ("check", "too many wrong codes"),
        ("check", "was used to open the console"),
        ("put", "A second factor was set up"),
        ("put", "New recovery codes"),
        ("put_set_up_code", "created a set-up code"),
        ("reset", "removed your second factor"),
    ],
)
def test_a_process_that_is_killed_after_a_change_leaves_its_mail(
    site: Site, method: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, codes = set_up(site, sign_in(site))
    mails(site)
    factors, session, actor = site.parts.second_factors, b"s" * 32, Actor(ActorKind.RECIPIENT, ALICE, "", "192.0.2.7")
    factor, offer = site.store.second_factors.get(ALICE), factors.offer(ALICE, "Quarantine")
    assert factor
    version, code = factor.version, pyotp.TOTP(offer.secret).at(site.now)
    for _ in range(4):
        factors.check(ALICE, session, "000000", "", actor)
    acts: dict[str, Callable[[], object]] = {
        "too many wrong codes": lambda: factors.check(ALICE, session, "000000", "", actor),
        "was used to open the console": lambda: factors.check(ALICE, session, "", codes[0], actor),
        "A second factor was set up": lambda: factors.set_up(ALICE, session, offer.salt, code, version, actor),
        "New recovery codes": lambda: factors.renew_recovery_codes(ALICE, session, version, actor),
        "created a set-up code": lambda: factors.make_set_up_code(ALICE, BY_OPERATOR),
        "removed your second factor": lambda: factors.reset(ALICE, BY_OPERATOR),
    }
    done = getattr(type(site.store.second_factors), method)

    def killed(*args: object, **values: object) -> None:
        done(*args, **values)
        raise Killed

    monkeypatch.setattr(type(site.store.second_factors), method, killed)
    with pytest.raises(Killed):
        acts[text]()
    [mail] = mails(site)
    assert text in mail


def test_a_proxy_that_asks_itself_is_enough(make_parts: Callable[..., Parts]) -> None:
    proxy = {"proxy__secret": "p" * 32, "staff__second_factor": "true", "staff__administrators": ALICE}
    alone = {"sign_in__mailed_link": "false", **proxy}
    with pytest.raises(SettingsError, match=r"staff\.second_factor is true, but the proxy is the only way"):
        make_parts(**alone)
    assert sign_in(Site(make_parts(**proxy)), method="proxy").get("/admin/").header("Location") == OF_PAGE
    trusting = Site(make_parts(**alone, proxy__second_factor="true"))
    assert sign_in(trusting, method="proxy").get("/admin/").status == 200
    assert sign_in(trusting).get("/admin/").header("Location") == OF_PAGE


def test_a_factor_counts_for_the_roles_that_a_directory_or_an_old_domain_may_give_back(
    make_parts: Callable[..., Parts],
) -> None:
    directory = {"ldap__uri": "ldaps://ldap.example.org", "ldap__base": "dc=example,dc=org"}
    site = Site(make_parts(staff__administrators=ALICE))
    of_groups = Site(make_parts(staff__administrators=ALICE, staff__groups={"it": "administrator"}, **directory))
    of_groups.now = site.now
    for person, role in ((BOB, Role.DOMAIN_ADMINISTRATOR), (MALLORY, Role.HELP_DESK)):
        site.store.staff.give(Grant(person, role, "example.org", site.now, BY_OPERATOR))
    set_up(site, sign_in(site, MALLORY))
    assert reset(sign_in(of_groups, BOB), MALLORY).status == 403, "she may be an administrator at the next sign-in"
    gone = Grant(MALLORY, Role.DOMAIN_ADMINISTRATOR, "gone.example", site.now, BY_OPERATOR)
    site.store.staff.give(gone)
    assert reset(sign_in(site, BOB), MALLORY).status == 403, "the domain may come back"
    assert change(sign_in(site, BOB), MALLORY, "set-up-code").status == 403
    for each in site.store.staff.of(MALLORY):
        site.store.staff.remove(MALLORY, each.role, each.domain, BY_OPERATOR, site.now)
    assert reset(sign_in(site, BOB), MALLORY).status == 403, "nobody knows what it protected"
    page = sign_in(site).get("/admin/staff").text
    assert "No role at the moment" in page
    assert reset(sign_in(site), MALLORY).status == 303


# ---- ways around it


def directory(make_parts: MakeParts) -> tuple[Site, Member]:
    """Return a site where Alice is administrator by a group that nobody has seen for eight days, with a second factor,
    and the administrator of her domain."""
    groups = {"adm": "administrator"}
    site = Site(
        make_parts(
            ldap__uri="ldaps://ldap.example.org", ldap__base="dc=x", staff__groups=groups, staff__second_factor=True
        )
    )
    site.parts.staff.put_groups(ALICE, "ldap", ["adm"])
    set_up(site, sign_in(site, ALICE, "ldap"))
    site.now += timedelta(days=8)
    grant = Grant(BOB, Role.DOMAIN_ADMINISTRATOR, "example.org", site.now, BY_OPERATOR)
    return site, Member(BOB, (grant,))


def test_who_may_not_reset_a_factor_does_not_reset_it_by_giving_and_removing_a_role(make_parts: MakeParts) -> None:
    site, by = directory(make_parts)
    staff, actor = site.parts.staff, by.acting_from("192.0.2.1")
    assert staff.give(ALICE, Role.AUDITOR, "example.org", actor, by)
    staff.remove(ALICE, Role.AUDITOR, "example.org", actor, by)
    assert site.store.second_factors.get(ALICE) is not None
    staff.give(ALICE, Role.AUDITOR, "example.org", BY_OPERATOR)
    staff.remove(ALICE, Role.AUDITOR, "example.org", BY_OPERATOR)
    assert site.store.second_factors.get(ALICE) is None, "by the command line"


def test_who_may_not_reset_a_factor_does_not_forget_its_person(make_parts: MakeParts) -> None:
    site, by = directory(make_parts)
    site.parts.staff.put_groups(ALICE, "ldap", [])
    forgetting = site.parts.forgetting
    with pytest.raises(NotAllowed):
        forgetting.begin(forgetting.leaver(ALICE, site.now), by.acting_from("192.0.2.1"), site.now, "left", by)
    assert site.store.second_factors.get(ALICE) is not None


def test_a_set_up_code_is_not_used_up_after_an_old_sign_in(make_parts: MakeParts) -> None:
    site = Site(make_parts(staff__administrators=ALICE, staff__second_factor=True))
    code = site.parts.second_factors.make_set_up_code(ALICE, BY_OPERATOR)
    browser = sign_in(site)
    assert browser.get(PAGE).status == 200
    site.pass_time(minutes=16)
    assert "ended=fresh" in (post(browser, "give", recovery=code).header("Location") or "")
    again = sign_in(site)
    assert post(again, "give", recovery=code).header("Location") == f"/quarantine{PAGE}?done=recovered"
    assert again.get(PAGE).status == 200


def test_who_used_a_proxy_is_told_of_set_up_codes_only(make_parts: MakeParts) -> None:
    """Its sign-ins are never fresh, so it is no way to a set-up."""
    site = Site(make_parts(proxy__secret="p" * 32, staff__second_factor=True, staff__administrators=ALICE))
    headers = {"X-Quarantine-User": ALICE, "X-Quarantine-Secret": "p" * 32}
    site.browser().request("GET", "/sign-in/proxy", headers=headers)
    site.pass_time(seconds=5)
    page = sign_in(site).get(PAGE).text
    assert "Ask an administrator for a set-up code." in page and "sign in with:" not in page
