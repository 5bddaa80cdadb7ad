"""The page of domains in the console, on both stores."""

from __future__ import annotations

import re
from collections.abc import Callable
from html import unescape

import pytest
from babel.messages.catalog import Catalog

from portal.assemble import Parts
from portal.mail.languages import LOCALE, po_file, read_catalogue
from portal.model.audit import AuditFilter
from portal.model.schedule import Preferences
from portal.model.staff import EVERYWHERE, Grant, Role
from portal.policy.domains import Domains
from portal.settings.domains import EDITABLE
from tests.builders import ALICE, BY_OPERATOR, MALLORY, WRONG_VALUES, prefer, with_parts
from tests.web_client import Answer, Browser, Site

DOMAINS = ("example.org", "example.net", "münchen.example")


@pytest.fixture
def site(make_parts: Callable[..., Parts]) -> Site:
    return Site(make_parts(local_domains=DOMAINS))


def staff(site: Site, role: Role = Role.ADMINISTRATOR, domain: str = EVERYWHERE, person: str = MALLORY) -> Browser:
    site.store.staff.give(Grant(person, role, domain, site.now, BY_OPERATOR))
    return site.signed_in(person)


def change(browser: Browser, key: str, value: str, domain: str = "example.org") -> Answer:
    form = {"form_token": browser.form_token(), "domain": domain, "key": key, "value": value}
    return browser.post("/admin/domains", form)


def text_of(answer: Answer) -> str:
    assert answer.status == 200
    return unescape(answer.text)


def test_the_list_has_each_domain_with_its_messages_and_values(site: Site) -> None:
    site.hold(recipients=(ALICE,))
    site.parts.domains.set("example.net", "language", "fr", BY_OPERATOR)
    while site.store.facets.index():
        pass
    browser = staff(site)
    row = r'<bdi>([^<]*)</bdi></a></td><td class="number">(\d+)</td><td><bdi dir="ltr">([^<]*)</bdi>'
    found = [("example.net", "0", "language = fr"), ("example.org", "1", ""), ("münchen.example", "0", "")]
    assert re.findall(row, text_of(browser.get("/admin/domains"))) == found
    by_held = re.findall(row, text_of(browser.get("/admin/domains?order=held")))
    assert by_held == [found[1], found[0], found[2]]


def test_messages_of_other_domains_do_not_displace_those_of_the_viewer(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    facets = type(site.store.facets)
    groups = facets.groups
    monkeypatch.setattr(facets, "groups", lambda each, wanted, by: groups(each, wanted, by, at_most=2))
    for recipient in ("jo@example.net", ALICE, ALICE, ALICE):
        site.pass_time(seconds=1)
        site.hold(recipients=(recipient,))
    while site.store.facets.index():
        pass
    page = text_of(staff(site, Role.DOMAIN_ADMINISTRATOR, "example.net", "net@example.net").get("/admin/domains"))
    assert re.findall(r'<td class="number">(\d+)</td>', page) == ["1"]
    assert "Only the newest messages are counted." not in page
    page = text_of(staff(site).get("/admin/domains"))
    assert re.findall(r'<td class="number">(\d+)</td>', page) == ["0", "2", "0"]
    assert "Only the newest messages are counted." in page


def test_a_value_is_set_and_removed_at_once_with_a_name_in_the_audit(site: Site) -> None:
    browser = staff(site, Role.DOMAIN_ADMINISTRATOR, "example.org")
    page = text_of(browser.follow(change(browser, "at", "16:00, 07:30"), "/admin/domains"))
    assert "Value saved." in page and 'value="07:30, 16:00"' in page and "Set here or by a command" in page
    assert [f"{each:%H:%M}" for each in site.parts.domains.of(ALICE).at] == ["07:30", "16:00"]
    assert "it was so already" in text_of(browser.follow(change(browser, "at", "07:30, 16:00"), "/admin/domains"))
    assert "Value saved." in text_of(browser.follow(change(browser, "at", ""), "/admin/domains"))
    assert [f"{each:%H:%M}" for each in site.parts.domains.of(ALICE).at] == ["07:00"]
    [unset, was_set] = site.store.audit.list(AuditFilter(act="domain-set"), 9)
    assert was_set.detail.startswith("at = ") and (was_set.actor.name, was_set.subject) == (MALLORY, "example.org")
    assert unset.actor.via == "console" and MALLORY in text_of(browser.get("/admin/domains?domain=example.org"))
    international = change(staff(site), "notices", "true", "MÜNCHEN.example")
    assert international.header("Location") == "/quarantine/admin/domains?domain=xn--mnchen-3ya.example&done=saved"
    assert site.parts.domains.of("jo@xn--mnchen-3ya.example").notices


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("timezone", "Mars/<b>Base", "'Mars/<b>Base' is not a time zone. Enter a name like Europe/Berlin."),
        ("at", "25:00", "Enter times like 07:00, without seconds and without a time zone."),
        ("release_dangerous", "self", "Only the settings file can have self. Enter one of: request, administrator."),
        ("from_address", "x@elsewhere.example", "is not in example.org"),
        ("logo", "/etc/passwd", "This value cannot be set here."),
        ("locked", "at", "This value cannot be set here."),
        ("language", "", "it was so already"),
    ],
)
def test_wrong_values_change_nothing_and_are_shown_again(site: Site, key: str, value: str, text: str) -> None:
    browser = staff(site)
    answer = change(browser, key, value)
    page = answer.text if value else browser.follow(answer, "/admin/domains").text
    assert text in unescape(page) and "<b>Base" not in page
    assert answer.status == (400 if value else 303)
    assert site.store.domains.in_use() == []


@pytest.fixture(scope="module")
def german() -> Catalog:
    """The German catalogue, which takes long to read."""
    return read_catalogue(po_file(LOCALE, "de"), "de")


def sentence(answer: Answer, key: str) -> str:
    """Return what the page says about a wrong value."""
    found = re.search(r'<p class="state bad" role="alert" id="wrong">(.*?)</p>', answer.text)
    assert answer.status == 400 and found
    name, text = re.fullmatch(r'<bdi lang="en">(.*?)</bdi>: (.*)', found[1]).groups()  # type: ignore[union-attr]
    assert name == key
    return unescape(text)


@pytest.mark.parametrize(("key", "value"), [(key, value) for key in EDITABLE for value in WRONG_VALUES[key]])
def test_a_wrong_value_is_explained_in_the_language_of_the_reader(
    site: Site, german: Catalog, key: str, value: str
) -> None:
    browser = staff(site)
    english = sentence(change(browser, key, value), key)
    prefer(site.store, MALLORY, Preferences(language="de"))
    translated = sentence(change(browser, key, value), key)
    assert re.search(r"\b(Enter|Use|Leave out) ", english) and not re.search(r"\b(Enter|Use|is|the) ", translated)

    def says(text: str, sentence: str) -> bool:
        return bool(re.fullmatch(re.sub(r"%\\\(\w+\\\)s", ".+", re.escape(text)), sentence))

    assert [
        entry for entry in german if entry.id and says(str(entry.id), english) and says(str(entry.string), translated)
    ]


def test_a_value_of_the_settings_file_is_not_removed_here(make_parts: Callable[..., Parts]) -> None:
    parts = make_parts(local_domains=DOMAINS)
    table = parts.settings.of_domain("example.org").model_copy(update={"timezone": "Asia/Tokyo"})
    settings = parts.settings.model_copy(update={"domains": {"example.org": table}})
    site = Site(with_parts(parts, domains=Domains(settings, parts.store)))
    answer = change(staff(site), "timezone", "")
    assert "If the settings file has it, change it there." in sentence(answer, "timezone")


def test_the_help_of_values_is_in_the_language_of_the_reader(site: Site) -> None:
    browser = staff(site)
    assert "Name of the quarantine, as site.name." in browser.get("/admin/domains?domain=example.org").text
    prefer(site.store, MALLORY, Preferences(language="de"))
    page = browser.get("/admin/domains?domain=example.org").text
    assert "Name der Quarant\xe4ne, wie site.name." in page and "as site.name" not in page


def test_locked_values_have_no_form(make_parts: Callable[..., Parts]) -> None:
    parts = make_parts(local_domains=DOMAINS)
    table = parts.settings.of_domain("example.org").model_copy(update={"notices": True, "locked": ("notices",)})
    settings = parts.settings.model_copy(update={"domains": {"example.org": table}})
    site = Site(with_parts(parts, domains=Domains(settings, parts.store)))
    browser = staff(site)
    page = text_of(browser.get("/admin/domains?domain=example.org"))
    assert "Locked in the settings file" in page and 'name="key" value="notices"' not in page
    answer = change(browser, "notices", "false")
    assert answer.status == 400 and "This value is locked in the settings file. Change it there." in answer.text
    assert site.store.domains.in_use() == []


def test_who_administers_one_domain_does_not_choose_where_sign_in_links_lead(site: Site) -> None:
    browser = staff(site, Role.DOMAIN_ADMINISTRATOR, "example.org")
    evil = "https://evil.example/quarantine"
    assert 'value="public_url"' not in text_of(browser.get("/admin/domains?domain=example.org"))
    assert "cannot be set here" in unescape(change(browser, "public_url", evil).text)
    assert site.store.domains.in_use() == []
    administrator = staff(site, person="ann@example.org")
    assert 'value="public_url"' in text_of(administrator.get("/admin/domains?domain=example.org"))


def test_staff_of_a_domain_see_and_change_that_domain_alone(site: Site) -> None:
    browser = staff(site, Role.DOMAIN_ADMINISTRATOR, "example.net", "ned@example.net")
    page = text_of(browser.get("/admin/domains"))
    assert "example.net" in page and "example.org" not in page.replace("@example.org", "")
    for name in ("example.org", "elsewhere.example", "<script>"):
        assert browser.get(f"/admin/domains?domain={name}").status == 404
    assert change(browser, "language", "fr").status == 403
    assert change(browser, "language", "fr", "").status == 403
    auditor = staff(site, Role.AUDITOR, EVERYWHERE, "ann@example.org")
    assert "<select" not in text_of(auditor.get("/admin/domains?domain=example.org"))
    assert change(auditor, "language", "fr").status == 403
    administrator = staff(site)
    site.pass_time(minutes=20)
    assert "sign-in" in (change(administrator, "language", "fr").header("Location") or "")
    assert site.store.domains.in_use() == []
