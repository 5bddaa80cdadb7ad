"""Mass acts in the console: the dry run, the undo window, progress, and who may see and steer which job."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from uuid import UUID, uuid4

import pytest

from digest.housekeeping import run_mass_acts
from portal.assemble import Parts
from portal.batches.batch import Act
from portal.batches.mass import MassAct, Status
from portal.batches.mass_run import MassActs
from portal.model.audit import AuditFilter
from portal.model.message import Filter, Start, State, Tier
from portal.model.staff import EVERYWHERE, Grant, Role
from portal.stores.records import Page
from portal.stores.shared.facets import SqlFacets
from portal.web.auth.session import FRESH
from tests.builders import ALICE, BOB, BY_OPERATOR, MALLORY, now, rule
from tests.smtp_server import SmtpServer
from tests.statements import Statements
from tests.web.test_staff import (
    ADMINISTRATOR,
    AUDITOR,
    ELSEWHERE,
    HELP_DESK,
    NOBODY,
    OF_ANOTHER,
    OF_THE_DOMAIN,
    PEOPLE,
    RECIPIENT,
    Person,
    sign_in,
)
from tests.web_client import Answer, Browser, Site

CAROL = "carol@example.net"
SEARCH = "symbol=BAYES_SPAM"


@pytest.fixture
def relay() -> Iterator[SmtpServer]:
    with SmtpServer() as server:
        yield server


@pytest.fixture
def site(make_parts: Callable[..., Parts], relay: SmtpServer) -> Site:
    return Site(make_parts(relay__url=relay.url, local_domains=("example.org", "example.net")))


def staff(site: Site, role: Role, domain: str = EVERYWHERE, person: str = MALLORY) -> Browser:
    site.store.staff.give(Grant(person, role, domain, site.now, BY_OPERATOR))
    return site.signed_in(person)


def words(answer: Answer) -> str:
    page = answer.text
    return " ".join(html.unescape(re.sub("<[^>]*>", " ", page[page.index("<main") :])).split())


def confirm(site: Site, browser: Browser, act: str = "release", **more: str) -> Answer:
    """Confirm a mass act by the form of the dry run. It can begin a minute later."""
    page = browser.get(f"/admin/jobs/new?{SEARCH}&act={act}").text
    form = dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', page))
    site.now = now()
    return browser.post("/admin/jobs/", {**form, "reason": "Bayes was wrong.", **more})


def run(site: Site) -> None:
    site.now += timedelta(seconds=61)
    run_mass_acts(site.parts, site.now)


def test_all_that_a_search_finds_is_released_after_a_dry_run_and_a_minute(site: Site, relay: SmtpServer) -> None:
    browser = staff(site, Role.ADMINISTRATOR)
    held = [site.hold(recipients=(ALICE,)) for _ in range(3)]
    site.parts.actions.release(held[0].id, 0, BY_OPERATOR, operator=True)
    assert f"/admin/jobs/new?{SEARCH}&amp;act=release" in browser.get(f"/admin/?{SEARCH}").text
    said = words(browser.get(f"/admin/jobs/new?{SEARCH}&act=release"))
    assert "2 of 3 deliveries" in said
    assert "1 example.org Spam Released In another state" in said
    answer = confirm(site, browser)
    page = answer.header("Location") or ""
    shown = browser.get(page)
    assert "Starts soon · 0 of 2 Seconds until the start: 60" in words(shown)
    assert shown.header("Refresh") == "5"
    run_mass_acts(site.parts, site.now)
    assert len(relay.mails) == 1, "not yet"
    run(site)
    shown = browser.get(page)
    assert "Finished · 2 of 2" in words(shown)
    assert shown.header("Refresh") is None
    assert [site.state(each) for each in held] == [State.RELEASED] * 3
    assert len(relay.mails) == 3
    assert "Release Symbol: BAYES_SPAM Finished 2 0 0" in words(browser.get("/admin/jobs/"))


def test_a_job_may_act_on_older_messages_only_than_were_counted(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SqlFacets.tally, "__defaults__", (2,))
    browser = staff(site, Role.ADMINISTRATOR)
    held = [site.hold(recipients=(ALICE,)) for _ in range(4)]
    for newest in held[2:]:
        site.parts.actions.release(newest.id, 0, BY_OPERATOR, operator=True)
    said = words(browser.get(f"/admin/jobs/new?{SEARCH}&act=release"))
    assert "0 of 2 deliveries" in said and "All of them are included." in said
    page = confirm(site, browser).header("Location") or ""
    [entry] = site.store.audit.list(AuditFilter(act="job-started"), 9)
    assert "(at least 0 of symbol=BAYES_SPAM)" in entry.detail
    before = browser.get(page)
    assert "Starts soon · 0 of at least 0" in words(before) and "Left:" not in words(before)
    assert '<progress aria-labelledby="progress"></progress>' in before.text
    assert "Starts soon 0 0 (unknown)" in words(browser.get("/admin/jobs/"))
    run(site)
    assert "Finished · 2 of 2" in words(browser.get(page)) and "Left: 0" in words(browser.get(page))
    assert [site.state(each) for each in held] == [State.RELEASED] * 4
    monkeypatch.setattr(SqlFacets.tally, "__defaults__", (4,))
    form = {"form_token": browser.form_token(), "act": "release", "search": f"?{SEARCH}", "reason": "Again."}
    assert "Reason for the audit" not in browser.get(f"/admin/jobs/new?{SEARCH}&act=release").text
    assert "/jobs/new?" in (browser.post("/admin/jobs/", form).header("Location") or "")


def test_a_job_reaches_what_is_held_for_an_address_without_its_extension(make_parts: Callable[..., Parts]) -> None:
    site = Site(make_parts(local_domains=("example.org",), people__recipient_delimiter="+"))
    held = site.hold(recipients=(ALICE,))
    confirm(site, staff(site, Role.ADMINISTRATOR), "delete", search="?recipient=alice%2Bshop%40example.org")
    run(site)
    assert site.state(held) is State.DELETED


def test_a_search_that_takes_too_long_is_not_said_to_wait_for_the_index(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = site.hold(recipients=(ALICE,))
    browser = staff(site, Role.ADMINISTRATOR)
    page = confirm(site, browser).header("Location") or ""
    with monkeypatch.context() as patch:
        patch.setattr(type(site.store.deliveries), "search", lambda *_: Page((), None, is_cut=True))
        run(site)
    said = words(browser.get(page))
    assert "The search takes too long. Cancel this, and choose a shorter time" in said and "indexed" not in said
    run(site)
    assert "Finished · 1 of 1" in words(browser.get(page)) and site.state(held) is State.RELEASED


def test_jobs_are_listed_in_pages_whoever_began_the_newest(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("portal.stores.contracts.work._JOBS", 2)
    monkeypatch.setattr("portal.web.mass_acts._LISTED", 1)
    own, foreign = (Filter(domains=frozenset({host})) for host in ("example.net", "example.org"))
    acts = MassActs(site.store, site.parts.actions, site.parts.staff)
    ids = []
    for number, wanted in enumerate((own, own, foreign, foreign, foreign)):
        site.now += timedelta(seconds=1)
        ids.append(acts.start(MassAct(Act.DELETE, wanted, "", 1, f"Reason {number}"), BY_OPERATOR, uuid4()).id)
    browser = staff(site, Role.DOMAIN_ADMINISTRATOR, "example.net")
    page = browser.get("/admin/jobs/").text
    assert f"/admin/jobs/{ids[1]}/" in page and f"/admin/jobs/{ids[2]}/" not in page
    [older] = re.findall(r'href="/quarantine(/admin/jobs/\?before=[^"]*)"', page)
    page = browser.get(older).text
    assert f"/admin/jobs/{ids[0]}/" in page and "before=" not in page
    assert browser.get(f"/admin/jobs/?before={ids[4]}").status == 404


def test_it_is_cancelled_in_time_and_a_second_press_is_the_same_job(site: Site, relay: SmtpServer) -> None:
    browser = staff(site, Role.ADMINISTRATOR)
    held = site.hold(recipients=(ALICE,))
    page = confirm(site, browser, form="01890a5d-ac96-774b-bcce-b302099a8057").header("Location")
    assert confirm(site, browser, form="01890a5d-ac96-774b-bcce-b302099a8057").header("Location") == page
    assert page
    for change, status in (("pause", "Paused"), ("resume", "Starts soon"), ("cancel", "Running")):
        browser.post(page, {"form_token": browser.form_token(), "change": change})
        assert status in words(browser.get(page))
    run(site)
    assert "Cancelled · 0 of 1" in words(browser.get(page))
    assert (site.state(held), relay.mails) == (State.HELD, [])


def test_the_page_of_a_job_which_reloads_itself_does_not_keep_the_console_open(site: Site) -> None:
    browser = staff(site, Role.ADMINISTRATOR)
    site.hold(recipients=(ALICE,))
    page = confirm(site, browser).header("Location") or ""
    page = page[page.index("/admin/") :]
    for _ in range(2):
        site.now += timedelta(minutes=20)
        answer = browser.get(page)
    assert (answer.status, "sign-in" in (answer.header("Location") or "")) == (303, True)


def test_a_reason_and_a_fresh_sign_in_are_required(site: Site) -> None:
    browser = staff(site, Role.ADMINISTRATOR)
    site.hold(recipients=(ALICE,))
    for blank in (" ", "\u200b", "\u3164", "\u2800"):
        refused = confirm(site, browser, reason=blank)
        assert (refused.status, "Enter a reason." in refused.text) == (400, True)
    site.now += FRESH + timedelta(minutes=1)
    answer = browser.get(f"/admin/jobs/new?{SEARCH}&act=release")
    assert (answer.status, "sign-in" in (answer.header("Location") or "")) == (303, True)
    assert site.store.jobs.list("mass", 5) == []


def test_staff_of_a_domain_act_there_and_see_no_job_of_others(site: Site) -> None:
    administrator = staff(site, Role.ADMINISTRATOR)
    local, foreign = site.hold(recipients=(ALICE,)), site.hold(recipients=(CAROL,))
    dangerous = site.hold(recipients=(ALICE,), tier=Tier.DANGEROUS)
    of_all = confirm(site, administrator, "delete").header("Location") or ""
    browser = staff(site, Role.DOMAIN_ADMINISTRATOR, "example.org", BOB)
    assert browser.get(of_all).status == 404
    assert browser.post(of_all, {"form_token": browser.form_token(), "change": "cancel"}).status == 404
    administrator.post(of_all, {"form_token": administrator.form_token(), "change": "cancel"})
    said = words(browser.get(f"/admin/jobs/new?{SEARCH}&act=release"))
    assert "1 example.org Possibly dangerous Held Not permitted" in said
    assert "example.net" not in said
    page = confirm(site, browser).header("Location") or ""
    assert of_all.split("/")[-2] not in browser.get("/admin/jobs/").text
    assert administrator.get(page).status == 200
    run(site)
    assert [site.state(each) for each in (local, foreign, dangerous)] == [State.RELEASED, State.HELD, State.HELD]
    assert "Not permitted: 1 Released: 1" in words(browser.get(page))


def test_a_dry_run_says_that_some_may_not_be_permitted_in_the_end(site: Site, relay: SmtpServer) -> None:
    """It counts by domain, tier and state; the job also knows whose message it is, and its tier before the scan."""
    browser = staff(site, Role.ADMINISTRATOR)
    site.hold(recipients=(ALICE,))
    own = site.hold(recipients=(MALLORY,), tier=Tier.DANGEROUS)
    asked = browser.get(f"/admin/jobs/new?{SEARCH}&act=release").text
    assert "2 of 2 deliveries" in asked and "may end as “Not permitted”" in asked
    page = confirm(site, browser).header("Location") or ""
    run(site)
    assert "Not permitted" in browser.get(page).text and len(relay.mails) == 1 and site.state(own) is State.HELD
    assert "may end as" not in browser.get(f"/admin/jobs/new?{SEARCH}&act=delete").text


def test_the_help_desk_deletes_nothing(site: Site) -> None:
    browser = staff(site, Role.HELP_DESK)
    site.hold(recipients=(ALICE,))
    assert "act=release" in browser.get(f"/admin/?{SEARCH}").text
    assert "act=delete" not in browser.get(f"/admin/?{SEARCH}").text
    assert browser.get(f"/admin/jobs/new?{SEARCH}&act=delete").status == 403
    form = {"form_token": browser.form_token(), "act": "delete", "search": f"?{SEARCH}", "reason": "x"}
    assert browser.post("/admin/jobs/", form).status == 403


def test_errors_are_tried_again_as_a_job_of_its_own(site: Site, relay: SmtpServer) -> None:
    browser = staff(site, Role.ADMINISTRATOR)
    held = site.hold(recipients=(ALICE,))
    relay.script["BODY"] = ["554 5.7.1 no"]
    page = confirm(site, browser).header("Location") or ""
    run(site)
    assert "Errors: 1" in words(browser.get(page))
    again = browser.post(page, {"form_token": browser.form_token(), "change": "retry"}).header("Location")
    assert again
    assert again != page
    run(site)
    assert site.state(held) is State.RELEASED


@pytest.mark.parametrize("query", ["act=release", f"{SEARCH}&act=x", f"{SEARCH}", "since=x&act=release"])
def test_an_address_that_names_no_act_leads_to_the_search(site: Site, query: str) -> None:
    answer = staff(site, Role.ADMINISTRATOR).get(f"/admin/jobs/new?{query}")
    assert (answer.status, "/admin/jobs" in (answer.header("Location") or "")) == (303, False)


def test_deleting_all_needs_no_permission_to_release(make_parts: Callable[..., Parts]) -> None:
    site = Site(
        make_parts(domains={"example.org": {"release_spam": "administrator", "release_suspicious": "administrator"}})
    )
    browser = staff(site, Role.DOMAIN_ADMINISTRATOR, "example.org")
    held = site.hold(recipients=(ALICE,))
    assert browser.get(f"/admin/jobs/new?{SEARCH}&act=release").status == 403
    page = confirm(site, browser, "delete").header("Location") or ""
    form = {"form_token": browser.form_token()}
    assert browser.post(page, {**form, "change": "pause"}).status == 303
    browser.post(page, {**form, "change": "resume"})
    run(site)
    assert site.state(held) is State.DELETED


def test_only_who_may_do_all_of_a_job_steers_it(site: Site, relay: SmtpServer) -> None:
    browser = staff(site, Role.ADMINISTRATOR)
    held = site.hold(recipients=(ALICE,), tier=Tier.DANGEROUS)
    page = confirm(site, browser).header("Location") or ""
    browser.post(page, {"form_token": browser.form_token(), "change": "pause"})
    help_desk = staff(site, Role.HELP_DESK, person=BOB)
    assert "Resume" not in help_desk.get(page).text
    for change in ("resume", "cancel", "retry"):
        assert help_desk.post(page, {"form_token": help_desk.form_token(), "change": change}).status == 403
    run(site)
    assert (site.state(held), relay.mails) == (State.HELD, [])
    other = staff(site, Role.ADMINISTRATOR, person=CAROL)
    other.post(page, {"form_token": other.form_token(), "change": "resume"})
    run(site)
    assert site.state(held) is State.RELEASED


# For a release of messages of example.org by an administrator: the status of its page, of each change, and of the form
# that begins such a job.
STEERING: dict[Person, tuple[int, int, int]] = {
    NOBODY: (303, 303, 303),
    RECIPIENT: (404, 404, 404),
    ADMINISTRATOR: (200, 303, 303),
    OF_THE_DOMAIN: (200, 403, 303),
    OF_ANOTHER: (404, 404, 303),
    HELP_DESK: (200, 403, 303),
    AUDITOR: (200, 403, 403),
    **{person: (404, 404, 403 if of is AUDITOR else 303) for person, of in ELSEWHERE.items()},
}


@pytest.mark.parametrize("person", STEERING, ids=lambda each: f"{each.role or each.address}-{each.domain}")
def test_each_role_sees_and_steers_what_it_may(site: Site, relay: SmtpServer, person: Person) -> None:
    assert set(STEERING) == {*PEOPLE, *ELSEWHERE}
    page, change, begin = STEERING[person]
    held = [site.hold(recipients=(ALICE,)) for _ in range(2)]
    search = f"{SEARCH}&domain=example.org"
    acts = MassActs(site.store, site.parts.actions, site.parts.staff)
    begun = confirm(site, staff(site, Role.ADMINISTRATOR, person=BOB), search=search)
    job = UUID((begun.header("Location") or "").split("/")[-2])
    browser = sign_in(site, person)
    form = {"form_token": browser.form_token()} if person.address else {}

    def state() -> tuple[object, ...]:
        found = acts.get(job)
        return found.job, found.status, found.progress, len(site.store.jobs.list("mass", 9))

    def post(path: str, **typed: str) -> int:
        before = state()
        status = browser.post(path, {**form, **typed}).status
        if status in (403, 404) or not person.address:
            assert state() == before, typed
        return status

    assert browser.get(f"/admin/jobs/{job}/").status == page
    shown = browser.get("/admin/jobs/")
    assert (str(job) in shown.text) is (page == 200)
    for name, status in (("pause", Status.PAUSED), ("resume", Status.SCHEDULED)):
        assert post(f"/admin/jobs/{job}/", change=name) == change
        assert acts.get(job).status is (status if change == 303 and person.address else Status.SCHEDULED)
    relay.script["BODY"] = ["554 5.7.1 no"] * 2
    run(site)
    assert (acts.get(job).status, acts.get(job).failed) == (Status.FINISHED, 2)
    browser = sign_in(site, person)
    form = {"form_token": browser.form_token()} if person.address else {}
    for name in ("retry", "cancel"):
        assert post(f"/admin/jobs/{job}/", change=name) == change
    count = len(site.store.jobs.list("mass", 9))
    assert count == (2 if change == 303 and person.address else 1), "a retry is a job of its own"
    typed = {"act": "release", "search": search, "reason": "x", "form": str(uuid4())}
    assert post("/admin/jobs/", **typed) == begin
    finds = begin == 303 and page == 200  # others find nothing that they may act on
    assert len(site.store.jobs.list("mass", 9)) == count + finds
    assert [site.state(each) for each in held] == [State.HELD] * 2


def test_messages_are_held_back_and_recipients_mailed_if_that_is_ticked(site: Site) -> None:
    browser = staff(site, Role.ADMINISTRATOR)
    site.hold(recipients=(ALICE,))
    refused = confirm(site, browser, reason="", notify="1").text
    assert 'name="notify" value="1" checked' in refused and 'name="hold_back" value="1">' in refused
    page = confirm(site, browser, "delete", hold_back="1", notify="1").header("Location") or ""
    assert "kept out of digests" in browser.get(page).text
    run(site)
    assert "Recipients mailed: 1" in words(browser.get(page)) and "kept out" not in browser.get(page).text
    with site.store.outbox.sending(site.now) as mail:
        assert mail is not None and mail.to == ALICE
    assert 'name="hold_back"' not in browser.get(f"/admin/jobs/new?{SEARCH}&act=restore").text
    plain = confirm(site, browser, "restore").header("Location") or ""
    assert "Recipients mailed" not in browser.get(plain).text


def test_what_a_search_by_rule_finds_is_not_held_back(site: Site) -> None:
    browser = staff(site, Role.ADMINISTRATOR)
    by_rule = Start(State.BLOCKED, rule().as_actor)
    held = site.hold(recipients=(ALICE,), starts={ALICE: by_rule})
    search, sentence = "rule=example.net", "Digests cannot leave out what a search by rule finds."
    page = browser.get(f"/admin/jobs/new?{search}&act=release").text
    assert 'name="hold_back"' not in page and sentence in page
    refused = confirm(site, browser, search=f"?{search}", hold_back="1")
    assert (refused.status, refused.text.count(sentence)) == (400, 1)
    assert site.store.jobs.list("mass", 5) == [] and site.state(held) is State.BLOCKED
    assert sentence not in browser.get(f"/admin/jobs/new?{search}&act=restore").text


def test_a_dry_run_takes_few_statements(make_parts: Callable[..., Parts], monkeypatch: pytest.MonkeyPatch) -> None:
    statements = Statements(monkeypatch)
    site = Site(make_parts())
    browser = staff(site, Role.ADMINISTRATOR)
    site.hold(recipients=(ALICE,))
    browser.get(f"/admin/jobs/new?{SEARCH}&act=release")
    with statements.of() as sent:
        browser.get(f"/admin/jobs/new?{SEARCH}&act=release")
    assert len(sent) <= 9, sent
