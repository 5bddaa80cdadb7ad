"""The acts of recipients on pages in the audit, on both stores."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from html import unescape
from uuid import uuid4

import pytest

from digest.housekeeping import run_mass_acts
from portal.assemble import Parts
from portal.model.audit import ACTS, Act, AuditEntry, AuditFilter
from portal.model.errors import StoreUnavailable
from portal.model.links import Action
from portal.model.schedule import Preferences
from portal.model.staff import EVERYWHERE, Grant, Role
from portal.policy.recipients import DigestAct
from portal.web.audit import ACT_NAMES
from portal.web.console_acts import _DECISIONS, _PERMISSIONS
from portal.web.mass_acts import _CHANGES
from portal.web.recipients import _ACTS
from tests.builders import ALICE, BOB, BY_LINK, BY_OPERATOR, digesting, prefer, rule
from tests.smtp_server import SmtpServer
from tests.web.test_second_factor import app_of, hidden
from tests.web.test_staff import MATRIX
from tests.web_client import Answer, Browser, Site


@pytest.fixture
def site(make_parts: Callable[..., Parts]) -> Site:
    return Site(make_parts())


def entries(site: Site) -> list[tuple[str, str, str]]:
    """Return act, actor and way of all entries, oldest first."""
    found = site.store.audit.list(AuditFilter(), 99)
    assert {each.subject for each in found} <= {ALICE}
    return [(each.act, each.actor.who, each.actor.via) for each in reversed(found)]


def test_preferences_and_signing_out_are_recorded(site: Site) -> None:
    browser = site.signed_in(ALICE)
    form = {"form_token": browser.form_token()}
    for change in ("stop", "resume", "revoke", "save"):
        site.pass_time(seconds=1)
        assert browser.post("/preferences", {**form, "change": change, "language": "de"}).status == 303
    site.pass_time(seconds=1)
    browser.post("/sign-out", form)
    assert entries(site) == [
        (act, f"recipient:{ALICE}", "portal")
        for act in ("digests-stopped", "digests-resumed", "links-revoked", "preferences-set", "signed-out")
    ]


def test_the_ends_of_sessions_are_recorded(site: Site) -> None:
    browser = site.signed_in(ALICE)
    form = {"form_token": browser.form_token()}
    browser.post("/sessions", {**form, "end": "others"})  # there are none
    assert entries(site) == []
    browser.post("/sessions", {**form, "end": "all"})
    assert entries(site) == [("signed-out", f"recipient:{ALICE}", "portal")]


def test_what_links_do_is_recorded(site: Site) -> None:
    held = site.hold()
    with digesting(site.store, ALICE, site.now, 50, ignore_schedule=True) as digest:
        pass
    site.pass_time(seconds=5)
    link = site.parts.links.url(Action.PREFERENCES, digest.id, 0, digest.issued_at)
    browser = site.browser()
    for _ in range(2):
        assert browser.request("POST", link, form={"List-Unsubscribe": "One-Click"}).status == 200
    site.pass_time(seconds=1)
    assert browser.post(link, {"change": "resume"}).status == 303
    site.pass_time(seconds=1)
    assert browser.post(site.link(Action.DELETE, held), {"pressed": "1"}).status == 303
    assert entries(site) == [
        ("digests-stopped", f"recipient:{ALICE}", "one-click"),
        ("digests-resumed", f"recipient:{ALICE}", "link"),
        ("deleted", f"recipient:{ALICE}", "link"),
    ]


# ---- the page in the console


def audited(site: Site) -> None:
    """Record acts of several people in two domains, and one that concerns the whole site."""
    entries = [
        AuditEntry.new(site.now, Act.RULE_ADDED, BY_OPERATOR, "*", "block =evil.example"),
        AuditEntry.new(site.now, Act.DOMAIN_SET, BY_OPERATOR, "example.org", "language = fr"),
        AuditEntry.new(site.now, Act.SIGNED_IN, BY_LINK, ALICE, "<script>alert(1)</script>"),
        AuditEntry.new(site.now, Act.SIGNED_IN, BY_LINK, "carol@example.net"),
    ]
    site.store.audit.record(*entries)


def staff(site: Site, role: Role, domain: str = EVERYWHERE) -> Browser:
    who = f"mallory@{domain or 'example.org'}"
    site.store.staff.give(Grant(who, role, domain, site.now, BY_OPERATOR))
    return site.signed_in(who)


@pytest.fixture
def two_domains(make_parts: Callable[..., Parts]) -> Site:
    return Site(make_parts(local_domains=("example.org", "example.net")))


def exported(browser: Browser, **fields: str) -> Answer:
    return browser.post("/admin/audit/export", {"form_token": browser.form_token(), **fields})


def subjects(page: str) -> set[str]:
    """Return what the rows concern."""
    return set(re.findall(r"<td><bdi>([^<]*)</bdi></td><td class=\"id\">", page))


def test_auditors_see_all_and_others_only_their_domains(two_domains: Site) -> None:
    audited(two_domains)
    page = staff(two_domains, Role.AUDITOR).get("/admin/audit").text
    assert subjects(page) >= {"*", "example.org", ALICE, "carol@example.net"}
    assert "&lt;script&gt;" in page and "<script>alert" not in page
    for role in (Role.AUDITOR, Role.DOMAIN_ADMINISTRATOR):
        browser = staff(two_domains, role, "example.net")
        seen = subjects(browser.get("/admin/audit").text)
        assert seen <= {"carol@example.net", "mallory@example.net", "example.net"}
        assert subjects(browser.get(f"/admin/audit?about={ALICE}").text) == set()
        assert "alice" not in exported(browser).text


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("who=root", {"*", "example.org"}),
        (f"who={ALICE.upper()}", {ALICE}),
        ("act=domain-set", {"example.org"}),
        ("about=Alice@Example.org", {ALICE}),
        ("about=example.org", {"example.org"}),
        ("since=2020-01-01&act=domain-set", {"example.org"}),
        ("since=2099-01-01", set()),
        ("until=2020-01-01", set()),
        ("message=01a2223a-d4b5-7000-bfc9-4a589579ad92", set()),
        ("message=nonsense", set()),
        ("act=burned&since=yesterday&until=9999-12-31&before=x&who=root", {"*", "example.org"}),
    ],
)
def test_the_page_is_filtered_by_what_was_typed(two_domains: Site, query: str, expected: set[str]) -> None:
    audited(two_domains)
    browser = staff(two_domains, Role.ADMINISTRATOR)
    answer = browser.get(f"/admin/audit?{query}")
    assert answer.status == 200
    assert {each for each in subjects(answer.text) if "mallory" not in each} == expected


def test_acts_have_names_in_the_language_of_the_reader(two_domains: Site) -> None:
    assert set(ACT_NAMES) == set(ACTS)
    audited(two_domains)
    browser = staff(two_domains, Role.AUDITOR)
    page = browser.get("/admin/audit").text
    assert "<td>Rule added</td>" in page and "rule-added</td>" not in page
    prefer(two_domains.store, "mallory@example.org", Preferences(language="de"))
    page = browser.get("/admin/audit?act=domain-set").text
    assert "<td>Wert einer Domain ge\xe4ndert</td>" in page
    assert '<option value="domain-set" selected>Wert einer Domain ge\xe4ndert</option>' in page
    assert ",domain-set," in exported(browser).text


def test_older_entries_are_on_the_next_page(two_domains: Site) -> None:
    made = [AuditEntry.new(two_domains.now, Act.EXPORTED, BY_OPERATOR, f"p{n}@example.org") for n in range(120)]
    two_domains.store.audit.record(*made)
    browser, seen, path = staff(two_domains, Role.AUDITOR), [], "/admin/audit?act=exported"
    for _ in range(3):
        page = browser.get(path).text
        seen += re.findall(r"<td><bdi>(p\d+@example.org)</bdi></td>", page)
        found = re.search(r'<a href="/quarantine(/admin/audit\?[^"]*)" rel="next"', page)
        path = unescape(found[1]) if found else ""
    assert sorted(seen) == sorted(each.subject for each in made)
    assert path == ""


def test_the_csv_file_is_recorded_and_has_no_formulas(two_domains: Site) -> None:
    audited(two_domains)
    two_domains.store.audit.record(AuditEntry.new(two_domains.now, Act.EXPORTED, BY_OPERATOR, detail="=1+1"))
    browser = staff(two_domains, Role.AUDITOR)
    answer = exported(browser, act="exported")
    assert answer.header("Content-Disposition") == 'attachment; filename="audit.csv"'
    rows = [*csv.DictReader(io.StringIO(answer.text))]
    assert {row["detail"] for row in rows} == {"'=1+1", "audit act=exported"}
    assert {row["who"] for row in rows} == {"operator:root", "operator:mallory@example.org"}
    answer = exported(browser, act="exported", format="json")
    assert answer.header("Content-Disposition") == 'attachment; filename="audit.jsonl"'
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert sorted(line["detail"] for line in lines) == ["=1+1", "audit act=exported", "audit act=exported"]
    assert browser.post("/admin/audit/export", {"act": "exported"}).status == 403  # a form of another site
    assert len(two_domains.store.audit.list(AuditFilter(act="exported"), 9)) == 3


def test_an_export_is_in_the_audit_of_the_domains_that_it_is_about(make_parts: Callable[..., Parts]) -> None:
    site = Site(make_parts(local_domains=("example.org", "example.net", "example.com")))
    for domain in ("example.net", "example.com"):
        site.store.staff.give(Grant(ALICE, Role.DOMAIN_ADMINISTRATOR, domain, site.now, BY_OPERATOR))
    site.store.staff.give(Grant(BOB, Role.ADMINISTRATOR, EVERYWHERE, site.now, BY_OPERATOR))
    for person in (ALICE, BOB):
        browser = site.signed_in(person)
        form = {"form_token": browser.form_token(), "domain": "", "stopped": ""}
        assert exported(browser).status == 200
        assert browser.post("/admin/recipients/list/export", form).status == 200
    for domain, who in (
        ("example.net", {ALICE}), ("example.com", {ALICE}), ("example.org", set()), (EVERYWHERE, {ALICE, BOB}),
    ):  # fmt: skip
        page = staff(site, Role.AUDITOR, domain).get("/admin/audit?act=exported").text
        assert {each for each in (ALICE, BOB) if each in page} == who, domain
        if domain not in ("", "example.org"):
            assert subjects(page) == {domain}
            assert "<td><bdi>audit</bdi></td>" in page and "<td><bdi>preferences of recipients</bdi></td>" in page


def test_a_role_is_in_the_audit_of_its_domain(two_domains: Site) -> None:
    for change in (two_domains.parts.staff.give, two_domains.parts.staff.remove):
        change(ALICE, Role.AUDITOR, "example.net", BY_OPERATOR)
    for act in ("role-given", "role-removed"):
        for domain, expected in (("example.net", {ALICE}), ("example.org", set())):
            page = staff(two_domains, Role.DOMAIN_ADMINISTRATOR, domain).get(f"/admin/audit?act={act}&about={ALICE}")
            assert subjects(page.text) == expected, (act, domain)


class AuditFails:
    """The audit of a store whose next entries cannot be written."""

    def __init__(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        self._patch = monkeypatch.context()
        self._audit = type(site.store.audit)

    def __enter__(self) -> None:
        self._patch.__enter__().setattr(self._audit, "record", self._fail)

    def __exit__(self, *error: object) -> None:
        self._patch.__exit__(None, None, None)

    @staticmethod
    def _fail(*_: object) -> None:
        raise StoreUnavailable("the disk is full")


def test_what_is_repeated_since_the_audit_failed_is_recorded(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.hold()
    with digesting(site.store, ALICE, site.now, 50, ignore_schedule=True) as digest:
        pass
    link = site.parts.links.url(Action.PREFERENCES, digest.id, 0, digest.issued_at)
    one_click = {"List-Unsubscribe": "One-Click"}
    browser = site.signed_in(ALICE)
    form = {"form_token": browser.form_token()}
    with AuditFails(site, monkeypatch):
        assert site.browser().request("POST", link, form=one_click).status >= 500
        assert browser.post("/sign-out", form).status >= 500
    assert site.browser().request("POST", link, form=one_click).status == 200
    assert browser.post("/sign-out", form).status == 303
    assert {act for act, _, _ in entries(site)} == {"digests-stopped", "signed-out"}


# ---- each form of the console

# Not recorded: a right code of the second factor, which changes only the session.


class Forms:
    """Posts the forms of the console, each of which must add entries of the person to the audit."""

    def __init__(self, site: Site, browser: Browser) -> None:
        self._site = site
        self.browser = browser
        self.posted = set[tuple[str, str]]()  # routes and acts

    def post(self, rule: str, act: str = "", path: str = "", /, **form: str) -> Answer:
        """Post a form. ``path``: if it differs from the rule."""
        audit, browser = self._site.store.audit, self.browser
        self._site.pass_time(seconds=1)
        before = {each.id for each in audit.list(AuditFilter(), 999)}
        answer = browser.post(path or rule, {"form_token": browser.form_token(), **form})
        assert answer.status in (200, 303), (rule, act, answer.text)
        entries = [each for each in audit.list(AuditFilter(), 999) if each.id not in before]
        assert {(each.actor.name, each.actor.via) for each in entries} == {("mallory@example.org", "console")}, (
            rule,
            act,
        )
        self.posted.add((rule, act))
        return answer


def test_each_form_of_the_console_that_changes_something_is_recorded(
    make_parts: Callable[..., Parts],
) -> None:
    with SmtpServer() as relay:
        site = Site(make_parts(local_domains=("example.org", "example.net"), relay__url=relay.url))
        forms = Forms(site, staff(site, Role.ADMINISTRATOR))
        post_all_forms(site, forms, relay)
    acts = {("/admin/messages/ID/", act) for act in (*_PERMISSIONS, *_DECISIONS)}
    acts |= {("/admin/recipients/", act) for act in _ACTS}
    acts |= {("/admin/recipients/list", act.value) for act in DigestAct}
    acts |= {("/admin/jobs/ID/", act) for act in (*_CHANGES, "retry")}
    assert {rule for rule, _ in forms.posted} == {rule for method, rule in MATRIX if method == "POST"}
    assert forms.posted >= acts


def post_all_forms(site: Site, forms: Forms, relay: SmtpServer) -> None:
    """Post each form of the console at least once."""
    for act in (*_PERMISSIONS, *_DECISIONS):
        held = site.hold(recipients=(ALICE,))
        if act in ("approve", "deny"):
            site.parts.actions.request_release(held.id, 0, BY_LINK)
        elif act == "restore":
            site.parts.actions.delete(held.id, 0, BY_OPERATOR)
        elif act == "again":
            site.parts.actions.release(held.id, 0, BY_OPERATOR, operator=True)
        forms.post("/admin/messages/ID/", act, f"/admin/messages/{held.id}.0/", act=act, reason="x")
    held = site.hold(recipients=(ALICE,))
    forms.post("/admin/messages/ID/download", "", f"/admin/messages/{held.id}.0/download", warned="spam")

    blocks = rule()
    site.store.rules.add([blocks], site.now)
    site.pass_time(minutes=2)  # between two links
    for act in _ACTS:
        more = {"language": "fr"} if act == "preferences" else {"rule": str(blocks.id)}
        forms.post("/admin/recipients/", act, act=act, address=ALICE, **more)
    for act in DigestAct:
        typed = {"language": "de"} if act is DigestAct.SET else {}
        forms.post("/admin/recipients/list", act.value, act=act.value, list=BOB, confirm="1", **typed)
    forms.post("/admin/recipients/list/export", domain="example.org")
    forms.post("/admin/recipients/forget", address=ALICE)

    forms.post("/admin/domains", domain="example.org", key="language", value="fr")
    forms.post("/admin/statistics", report="off")
    forms.post("/admin/staff", change="give", address=BOB, role="auditor", domain="")
    forms.post("/admin/staff", change="remove", address=BOB, role="auditor", domain="")
    wanted = {"name": "x", "role": "auditor", "domain": "", "scope": "read", "days": "9"}
    forms.post("/admin/tokens", change="create", form=str(uuid4()), **wanted)
    [(token, _)] = site.parts.tokens.all(site.now)
    forms.post("/admin/tokens", change="revoke", token=str(token.id))
    forms.post("/admin/audit/export", act="exported")

    for changes in (("pause", "resume", "cancel"), ("retry",)):
        site.hold(recipients=(BOB,))
        relay.script["BODY"] = ["554 5.7.1 no"] if changes == ("retry",) else []
        begun = forms.post("/admin/jobs/", act="release", search="symbol=BAYES_SPAM", reason="x", form=str(uuid4()))
        if changes == ("retry",):
            site.pass_time(seconds=61)
            run_mass_acts(site.parts, site.now)
        for change in changes:
            path = (begun.header("Location") or "").removeprefix("/quarantine")
            forms.post("/admin/jobs/ID/", change, path, change=change)

    page = forms.browser.get("/admin/second-factor").text
    typed = {"salt": hidden(page, "salt"), "replaces": "", "code": app_of(page).at(site.now)}
    forms.post("/admin/second-factor", "set-up", act="set-up", **typed)
    replaces = hidden(forms.browser.get("/admin/second-factor").text, "replaces")
    forms.post("/admin/second-factor", act="renew", replaces=replaces)
