"""`/admin/`: what staff find, count and group, and that they find nothing of other domains."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from html import unescape
from urllib.parse import urlencode

import html5lib
import pytest

from portal.assemble import Parts
from portal.model.criteria import CRITERIA, NAMES
from portal.model.message import Symbol, Tier
from portal.model.schedule import Preferences
from portal.model.staff import EVERYWHERE, Grant, Role
from portal.model.statistics import Count
from portal.stores.records import Page
from portal.stores.shared.facets import SqlFacets
from tests.builders import ALICE, BOB, BY_OPERATOR, MALLORY, hold, prefer
from tests.web_client import Browser, Site

BAD = (Symbol("FUZZY_DENIED", 12.0), Symbol("R_SPF_ALLOW", -0.2))
CAROL = "carol@example.net"


@pytest.fixture
def site(make_parts: Callable[..., Parts]) -> Site:
    return Site(make_parts(local_domains=("example.org", "example.net")))


def staff(site: Site, role: Role = Role.HELP_DESK, domain: str = EVERYWHERE) -> Browser:
    site.store.staff.give(Grant(MALLORY, role, domain, site.now, BY_OPERATOR))
    return site.signed_in(MALLORY)


def get(browser: Browser, *pairs: tuple[str, str], status: int = 200) -> str:
    answer = browser.get(f"/admin/?{urlencode(pairs)}")
    assert answer.status == status
    return answer.text


def link(page: str, text: str) -> str:
    """Return the path of the link with this text, below the portal's root."""
    links = re.findall(
        r'<a href="/quarantine(/admin/[^"]*)"[^>]*>(?:<bdi>)?(.*?)(?: <span aria-h[^<]*</span>)?(?:</bdi>)?</a>',
        page,
    )
    [path] = {path for path, shown in links if shown == text}
    return unescape(path)


def test_the_rule_that_went_wrong_is_two_links_away(site: Site) -> None:
    for _ in range(3):
        hold(site.store, recipients=[ALICE], subject="Wrongly held", symbols=BAD, header_from="Shop <a@shop.example>")
    hold(site.store, recipients=[CAROL], subject="Another")
    browser = staff(site)
    groups = browser.get(link(get(browser, ("since", "12h")), "Symbol")).text
    assert groups.index("FUZZY_DENIED") < groups.index("BAYES_SPAM")
    assert re.search(r'FUZZY_DENIED</bdi></a></td><td class="number">3</td><td class="number"><span[^>]*>36', groups)
    found = browser.get(link(groups, "FUZZY_DENIED")).text
    assert found.count("Wrongly held") == 3 and "Another" not in found and "Deliveries: 3" in found
    assert "shop.example" in browser.get(link(found, "Sender domain")).text
    hours = browser.get(link(found, "Hour")).text
    hour = re.search(r'<td><a href="/quarantine(/admin/[^"]*)"><bdi>', hours)
    assert hour is not None
    assert browser.get(unescape(hour[1])).text.count("Wrongly held") == 3
    chip = r'<a href="/quarantine(/admin/[^"]*)"><span><span class="for-readers">[^<]*</span>Symbol'
    without = re.search(chip, found)
    assert without is not None
    assert "Another" in browser.get(unescape(without[1])).text


@pytest.mark.parametrize("role", [Role.DOMAIN_ADMINISTRATOR, Role.HELP_DESK, Role.AUDITOR])
def test_a_role_for_a_domain_finds_only_its_deliveries(site: Site, role: Role) -> None:
    hold(site.store, recipients=[ALICE, CAROL], subject="For both")
    hold(site.store, recipients=[BOB], subject="For the other domain")
    browser = staff(site, role, "example.net")
    finding: tuple[list[tuple[str, str]], ...] = ([], [("symbol", "BAYES_SPAM")], [("words", "for")])
    for pairs in (*finding, [("domain", "example.org")], [("recipient", ALICE)]):
        page = get(browser, *pairs)
        assert f"<td><bdi>{ALICE}" not in page and "other domain" not in page
        assert ("For both" in page) == (pairs in finding)
    assert ">example.org<" not in get(browser, ("by", "domain"))
    assert "Deliveries: 1" in get(browser, ("symbol", "BAYES_SPAM"))
    assert "is not in your domains" in get(browser, ("recipient", ALICE))


def test_an_address_with_an_extension_finds_what_is_held_without_it(make_parts: Callable[..., Parts]) -> None:
    site = Site(make_parts(local_domains=("example.org",), people__recipient_delimiter="+"))
    hold(site.store, recipients=[ALICE], subject="For the shop")
    for more in ([], [("symbol", "BAYES_SPAM")], [("by", "domain")]):
        page = get(staff(site), ("recipient", "Alice+shop@Example.org"), *more)
        assert "Deliveries: 1" in page or "For the shop" in page, more
        assert "Nothing is stored" not in page


def test_groups_of_whole_days_have_no_limit_and_say_so(site: Site) -> None:
    day = (site.now - timedelta(days=2)).date()
    counts = [Count("", "total", day.isoformat(), "held", "", 150_000)]
    counts += [Count("", "symbol", day.isoformat(), "held", "FUZZY_DENIED", 140_000, 1_400_000)]
    site.store.statistics.import_records(day, counts)
    for _ in range(2):
        hold(site.store, recipients=[ALICE], symbols=BAD)
    page = get(staff(site), ("since", day.isoformat()), ("by", "symbol"))
    assert "Deliveries: 150,002" in page and ">140,002<" in page
    assert f"The days from {day} to {day} (UTC) are from the statistics" in page
    assert "from the statistics" not in get(staff(site), ("since", "12h"), ("by", "symbol"))


@pytest.mark.parametrize("is_relative", [True, False])
def test_an_hour_at_the_end_of_the_search_leads_to_what_was_counted(site: Site, *, is_relative: bool) -> None:
    """Also if the link is followed later: then a search since 12 hours ago would begin later."""
    start = site.now.replace(minute=0, second=0, microsecond=0) - timedelta(hours=13)
    for minutes in (10, 32, 70, 100):
        hold(site.store, recipients=[ALICE], subject=f"After {minutes}", at=start + timedelta(minutes=minutes))
    while site.store.facets.index():
        pass
    site.now = start + timedelta(hours=12, minutes=30, seconds=7, milliseconds=250)
    since, until = (f"{start + timedelta(minutes=minutes):%Y-%m-%dT%H:%M}+00:00" for minutes in (30, 90))
    browser = staff(site, Role.ADMINISTRATOR)
    page = get(browser, ("since", "12h" if is_relative else since), ("until", until), ("by", "hour"))
    links = re.findall(r'<td><a href="/quarantine(/admin/[^"]*)"><bdi>.*?</td><td class="number">(\d+)', page)
    assert [count for _, count in links] == ["1", "1"]
    site.now += timedelta(minutes=5)
    for (path, _), minutes in zip(links, (70, 32), strict=True):
        found = browser.get(unescape(path)).text
        assert re.search(r"Deliveries: 1\b", found) and re.findall(r"After \d+", found) == [f"After {minutes}"], path
        job = unescape(re.findall(r'href="/quarantine(/admin/jobs/new[^"]*act=delete)"', found)[0])
        assert "1 of 1 deliveries" in browser.get(job).text


def test_pages_go_on_before_the_last_delivery(site: Site) -> None:
    for number in range(51):
        hold(site.store, recipients=[ALICE], subject=f"Number {number}.")
    browser = staff(site)
    for pairs in ([], [("symbol", "BAYES_SPAM")]):
        first = get(browser, *pairs)
        assert "Number 50." in first and "Number 0." not in first
        second = browser.get(link(first, "Older")).text
        assert "Number 0." in second and "Number 1." not in second and ">Older<" not in second
        assert "Number 50." in browser.get(link(second, "Newest")).text


def test_the_head_of_the_table_leads_to_other_orders(site: Site) -> None:
    for number in range(51):
        hold(site.store, recipients=[ALICE], subject=f"Number {number}.", score=number / 3)
    browser = staff(site)
    newest = get(browser, ("symbol", "BAYES_SPAM"))
    highest = browser.get(link(newest, "Score")).text
    assert "Number 50." in highest and "Number 0." not in highest and 'aria-sort="descending"' in highest
    assert highest.index("Number 50.") < highest.index("Number 49.")
    last = browser.get(link(highest, "Next page")).text
    assert "Number 0." in last and "Number 1." not in last and ">Next page<" not in last
    assert "Number 50." in browser.get(link(last, "First page")).text
    lowest = browser.get(link(last, "Score")).text
    assert lowest.index("Number 0.") < lowest.index("Number 1.") and 'aria-sort="ascending"' in lowest
    assert "Number 50." in browser.get(link(lowest, "Next page")).text
    assert browser.get(link(lowest, "Held")).text.count("<tr>") == newest.count("<tr>")
    assert "order=" in link(lowest, "BAYES_SPAM") and 'name="order" value="lowest-score"' in lowest


@pytest.mark.parametrize(
    ("pair", "sentence"),
    [
        (("since", "soon"), "Held since: &#39;soon&#39; is not a date"),
        (("client", "host"), "Sending server: &#39;host&#39; is not an IP address"),
        (("tier", "<b>"), "Kind: &#39;&lt;b&gt;&#39; is not one of"),
        (("score-min", "NaN"), "Lowest score: &#39;NaN&#39; is not a number"),
    ],
)
def test_a_wrong_value_is_named_and_nothing_is_listed(site: Site, pair: tuple[str, str], sentence: str) -> None:
    hold(site.store, subject="Held")
    page = get(staff(site), pair, status=400)
    assert sentence in page and "<td" not in page


def test_a_text_with_nothing_to_search_for_is_an_error(site: Site) -> None:
    hold(site.store, recipients=[ALICE])
    browser = staff(site, Role.ADMINISTRATOR)
    pair = ("sender", "\u0301")  # an accent without a letter, which comparison ignores
    page = get(browser, pair, status=400)
    assert "Sender: this is empty: enter a value" in page and "<td" not in page and "Delete all" not in page
    assert browser.get(f"/admin/jobs/new?{urlencode([pair, ('act', 'delete')])}").status == 303


def test_empty_values_and_unknown_names_restrict_nothing(site: Site) -> None:
    hold(site.store, recipients=[ALICE], subject="Wanted")
    assert "Wanted" in get(staff(site), ("recipient", ""), ("since", " "), ("x", "1"), ("by", "x"), ("before", "x"))


def submitted(page: str, **typed: str) -> list[tuple[str, str]]:
    """Return what a browser sends for the form of the search, after somebody typed these values into its fields."""
    document = html5lib.parse(page, namespaceHTMLElements=False)
    [form] = (each for each in document.iter("form") if each.get("class") == "staff-search")
    pairs = []
    for each in form.iter():
        if each.tag == "input":
            value = each.get("value", "")
        elif each.tag == "select":
            chosen = [option for option in each.iter("option") if "selected" in option.attrib]
            value = (chosen or list(each.iter("option")))[-1 if chosen else 0].get("value", "")
        else:
            continue
        pairs.append((each.get("name"), value if each.get("type") == "hidden" else typed.get(each.get("name"), value)))
    return pairs


def chips(page: str) -> list[tuple[str, str]]:
    """Return the criteria that a page names, and where the links lead that remove them."""
    return sorted(
        (f"{name}: {value}", unescape(path))
        for path, name, value in re.findall(
            r'<li><a href="/quarantine(/admin/[^"]*)"><span><span class="for-readers">Remove filter: </span>'
            r"(.*?): <bdi>(.*?)</bdi>",
            page,
        )
    )


REPEATED = {
    "symbol": ("BAYES_SPAM", "FUZZY_DENIED", "A'\"<&"),
    "domain": ("example.org", "example.net", "example.com"),
    "action": ("reject", "add header", "greylist"),
    "tier": ("spam", "dangerous", "suspicious"),
    "state": ("held", "expired", "released"),  # the form has no choice for expired ones
}


def test_each_criterion_that_may_be_repeated_is_tested() -> None:
    assert set(REPEATED) == {each.name for each in CRITERIA if each.many}


@pytest.mark.parametrize("name", REPEATED)
@pytest.mark.parametrize("order", [slice(None), slice(None, None, -1)], ids=["forwards", "backwards"])
def test_the_form_keeps_all_values_of_a_criterion(site: Site, name: str, order: slice) -> None:
    browser = staff(site)
    pairs = [("words", "offer"), *((name, value) for value in REPEATED[name][order]), ("order", "lowest-score")]
    page = get(browser, *pairs)
    assert len(chips(page)) == 4
    again = get(browser, *submitted(page))
    assert [text for text, _ in chips(again)] == [text for text, _ in chips(page)]
    narrower = get(browser, *submitted(again, recipient=ALICE))
    assert [text for text, _ in chips(narrower)] == sorted([*(text for text, _ in chips(page)), f"Recipient: {ALICE}"])
    for text, path in chips(narrower):
        fewer = browser.get(path).text
        assert [each for each, _ in chips(get(browser, *submitted(fewer)))] == [
            each for each, _ in chips(narrower) if each != text
        ]


@pytest.mark.parametrize(
    ("pairs", "problem"),
    [
        ([("symbol", f"S{number}") for number in range(101)], "give it at most 100 times"),
        ([("words", "offer " * 60)], "this is longer than 320 characters"),
        ([("symbol", f"S{number}") for number in range(90)] + [("sender", "a"), ("sender", "b")], "give it once"),
    ],
    ids=["too many", "too long", "the last ones"],
)
def test_no_criterion_is_left_out_in_silence(site: Site, pairs: list[tuple[str, str]], problem: str) -> None:
    hold(site.store, recipients=[ALICE])
    browser = staff(site, Role.ADMINISTRATOR)
    page = get(browser, *pairs, status=400)
    assert problem in page and ALICE not in page and "act=delete" not in page
    answer = browser.get(f"/admin/jobs/new?{urlencode(pairs)}&act=delete")
    assert (answer.status, "/admin/?" in (answer.header("Location") or "")) == (303, True)


@pytest.mark.parametrize(("name", "value"), [("tier", "SPAM"), ("state", "Held"), ("action", "Add Header")])
def test_the_form_keeps_a_choice_in_upper_case(site: Site, name: str, value: str) -> None:
    browser = staff(site)
    assert chips(get(browser, *submitted(get(browser, (name, value))))) == chips(get(browser, (name, value.lower())))


def test_a_search_that_was_submitted_again_finds_no_more(site: Site) -> None:
    hold(site.store, recipients=[ALICE], subject="Has both", symbols=(Symbol("A", 1), Symbol("B", 1)))
    hold(site.store, recipients=[ALICE], subject="Has one", symbols=(Symbol("B", 1),))
    browser = staff(site, Role.ADMINISTRATOR)
    page = get(browser, *submitted(get(browser, ("symbol", "A"), ("symbol", "B")), recipient=ALICE))
    assert "Has both" in page and "Has one" not in page
    asked = browser.get(link(page, "Delete all…")).text
    assert "Symbol: A, Symbol: B" in asked


def test_a_field_that_was_changed_replaces_its_own_value_only(site: Site) -> None:
    browser = staff(site)
    page = get(browser, ("symbol", "A"), ("symbol", "B"))
    assert [text for text, _ in chips(get(browser, *submitted(page, symbol="C")))] == ["Symbol: A", "Symbol: C"]
    assert [text for text, _ in chips(get(browser, *submitted(page, symbol="")))] == ["Symbol: A"]


@pytest.mark.parametrize(
    ("pairs", "reason"),
    [
        ([("recipient", "x@elsewhere.example")], "is not a recipient of this site"),
        ([("recipient", "nobody@example.org")], "Nothing is stored for nobody@example.org"),
        ([("symbol", "NOPE")], "No message has had the symbol NOPE"),
        ([("until", "2020-01-01")], "they are kept for 30 days"),
        ([("since", "2999-01-01")], "in the future"),
        ([("recipient", ALICE), ("state", "released"), ("by", "hour")], "No delivery matches all criteria"),
    ],
)
def test_an_empty_answer_says_why(site: Site, pairs: list[tuple[str, str]], reason: str) -> None:
    browser = staff(site)
    assert "No messages." in get(browser) and "Nothing is held." in get(browser, ("words", "offer"))
    hold(site.store, recipients=[ALICE])
    while site.store.facets.index():
        pass
    assert "No messages." not in get(browser)
    assert reason in get(browser, *pairs)


def test_what_a_search_answers_is_in_the_language_of_the_reader(site: Site) -> None:
    prefer(site.store, MALLORY, Preferences(language="de"))
    hold(site.store, recipients=[ALICE])
    browser = staff(site)
    page = get(browser, ("recipient", "nobody@example.org"))
    assert "F\xfcr nobody@example.org ist nichts gespeichert." in page and "werden 30 Tage aufbewahrt" in page
    page = get(browser, ("since", "soon"), status=400)
    assert "Zur\xfcckgehalten seit: &#39;soon&#39; ist kein Datum" in page
    page = get(browser, ("score-min", "9"), ("score-max", "8"), status=400)
    assert "daher passt keine Nachricht. Tauschen Sie die Werte." in page and 'lang="en"' not in page


def test_a_row_has_the_names_of_attachments(site: Site) -> None:
    held = hold(site.store, recipients=[ALICE])
    site.store.messages.record_names(held.id, ["<b>bill</b>.pdf", "b.zip", "c.exe", "d.iso"])
    row = get(staff(site))
    assert "<bdi>&lt;b&gt;bill&lt;/b&gt;.pdf</bdi>, <bdi>b.zip</bdi>, <bdi>c.exe</bdi> +1" in row


def test_the_page_says_that_there_may_be_more(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    hold(site.store, recipients=[ALICE], symbols=BAD)
    hold(site.store, recipients=[ALICE], symbols=BAD, at=site.now - timedelta(days=2))
    browser = staff(site)
    for pairs in ([("symbol", "FUZZY_DENIED")], [("by", "symbol")]):
        assert "still being indexed, so there may be more" in get(browser, *pairs)
    assert "Deliveries: at least 1 " in get(browser, ("symbol", "FUZZY_DENIED"))
    while site.store.facets.index():
        pass
    assert "there may be more" not in get(browser, ("symbol", "FUZZY_DENIED"))
    cut = Page((), None, is_cut=True)
    monkeypatch.setattr(type(site.store.facets), "page", lambda *_: cut)
    page = get(browser, ("symbol", "FUZZY_DENIED"))
    assert "The search took too long, so there may be more" in page and "No messages" not in page


def test_the_page_says_that_only_the_newest_were_counted(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(4):
        hold(site.store, recipients=[ALICE], at=site.now - timedelta(hours=number))
    while site.store.facets.index():
        pass
    browser = staff(site)
    assert "Deliveries: 4" in get(browser, ("symbol", "BAYES_SPAM"))
    monkeypatch.setattr("portal.web.console_search._PAGE", 2)
    monkeypatch.setattr("portal.web.console_search.COUNTED_MAX", 3)
    monkeypatch.setattr(SqlFacets.count, "__defaults__", (3,))
    monkeypatch.setattr(SqlFacets.groups, "__defaults__", (3,))
    assert "Deliveries: more than 3 " in get(browser, ("symbol", "BAYES_SPAM"))
    groups = get(browser, ("symbol", "BAYES_SPAM"), ("by", "domain"))
    assert "The newest 3 deliveries, held since" in groups and '<td class="number">3<' in groups


def test_nobody_learns_which_symbols_other_domains_have(site: Site) -> None:
    hold(site.store, recipients=[ALICE], symbols=BAD)
    hold(site.store, recipients=[CAROL])
    while site.store.facets.index():
        pass
    browser = staff(site, domain="example.net")
    answers = [get(browser, ("symbol", symbol)) for symbol in ("FUZZY_DENIED", "FUZZY_ABSENT")]
    assert [re.findall(r'<p class="empty"[^>]*>(.*?)</p>', answer) for answer in answers] == [
        ["No delivery matches all criteria. Leave some out."]
    ] * 2


def test_hostile_text_and_bodies_are_not_shown(site: Site) -> None:
    hostile = "<script>alert(1)</script>"
    hold(
        site.store,
        b"Subject: x\r\n\r\nThe secret body\r\n",
        subject=hostile,
        header_from=f"{hostile} <x@example.net>",
        symbols=(Symbol(hostile, 3.0),),
        tier=Tier.DANGEROUS,
        at=site.now - timedelta(minutes=1),
    )
    browser = staff(site)
    for pairs in ([], [("by", "symbol")], [("symbol", hostile)], [("words", hostile)]):
        page = get(browser, *pairs)
        assert "<script>alert" not in page and "secret body" not in page


@pytest.mark.parametrize("name", [*NAMES, "before", "by", "order"])
def test_no_text_breaks_a_search(site: Site, name: str) -> None:
    hold(site.store)
    browser = staff(site, Role.DOMAIN_ADMINISTRATOR, "example.org")
    for text in (
        "\0",
        "'\"\\",
        "%_*:",
        "a|b & !c",
        "\u202e@\u202e",
        "\U0001f600",
        "9" * 400,
        "00000000-0000-7000-8000-000000000000.1",
        "1e999_00000000-0000-7000-8000-000000000000.1",
    ):
        for more in ([], [("by", "domain")], [("symbol", "BAYES_SPAM")], [("order", "lowest-score")]):
            assert browser.get(f"/admin/?{urlencode([(name, text), *more])}").status in (200, 400), text
