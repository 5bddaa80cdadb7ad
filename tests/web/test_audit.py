"""The acts of recipients on pages in the audit, on both stores."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from html import unescape

import pytest

from portal.assemble import Parts
from portal.model.audit import ACTS, Act, AuditEntry, AuditFilter
from portal.model.errors import StoreUnavailable
from portal.model.links import Action
from portal.model.schedule import Preferences
from portal.model.staff import EVERYWHERE, Grant, Role
from portal.web.audit import ACT_NAMES
from tests.builders import ALICE, BY_LINK, BY_OPERATOR, digesting
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
        assert browser.post("/preferences", {**form, "change": change}).status == 303
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
        assert subjects(browser.get("/admin/audit").text) <= {"carol@example.net", "mallory@example.net"}
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
    two_domains.store.recipients.set_preferences("mallory@example.org", Preferences(language="de"))
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
