"""Actions on several messages of the list: in the request, as a background job, after a crash, twice, and undone."""

import html
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from digest.housekeeping import run_batches
from portal.actions import Actions
from portal.assemble import Parts
from portal.model.errors import RelayRefused
from portal.model.message import EventKind, Start, State, Tier
from portal.stores import LEASE
from portal.stores.records import Held
from tests.builders import ALICE, BOB, BY_LINK, MALLORY, mail, rule
from tests.flows.test_aliases import write
from tests.smtp_server import SmtpServer
from tests.statements import Statements
from tests.web_client import Answer, Browser, Site

INFO = "info@example.org"


@pytest.fixture
def relay() -> Iterator[SmtpServer]:
    with SmtpServer() as server:
        yield server


@pytest.fixture
def aliases(tmp_path: Path) -> Path:
    path = tmp_path / "virtual"
    path.write_text(f"{INFO} {ALICE}, {BOB}\n")
    return path


@pytest.fixture
def site(make_parts: Callable[..., Parts], relay: SmtpServer, aliases: Path) -> Site:
    return Site(make_parts(relay__url=relay.url, people__alias_file=aliases))


def hold_many(site: Site, count: int, recipient: str = ALICE) -> list[Held]:
    """Hold messages of different senders, so that each has a row of its own."""
    return [
        site.hold(recipients=[recipient], header_from=f"a{number}@example.net", subject=f"Offer {number}")
        for number in range(count)
    ]


def post(browser: Browser, mails: Iterable[Held], do: str, **more: str) -> Answer:
    keys = " ".join(f"{each.id}.0" for each in mails)
    form = {"form_token": browser.form_token(), "from": "list", "do": do, "mail": keys, **more}
    return browser.post("/messages", form)


def hidden(page: str) -> dict[str, str]:
    """Return the hidden fields of the last form that acts on messages."""
    form = page[page.rindex('<form method="post" action="/quarantine/messages"') :]
    found = re.findall(r'<input type="hidden" name="([^"]*)" value="([^"]*)"', form[: form.index("</form>")])
    return {name: html.unescape(value) for name, value in found}


def all_that_match(browser: Browser, query: str = "", **more: str) -> dict[str, str]:
    """Return the form of the list in which all messages are selected."""
    found = hidden(browser.get(f"/?select=matching{query}").text)
    return {**found, "mail": found["shown"], **more}


def run(site: Site) -> None:
    run_batches(site.parts, site.now)


def job_page(answer: Answer) -> str:
    location = answer.header("Location") or ""
    assert "/jobs/" in location, location
    return location


def states(site: Site, mails: Iterable[Held]) -> set[State]:
    return {site.state(each) for each in mails}


def jobs_waiting(site: Site) -> int:
    return site.store.stats(site.now).jobs_waiting


# ---- in the request


def test_each_outcome_has_a_line_with_what_failed_and_why(site: Site, relay: SmtpServer) -> None:
    wanted, gone, large = hold_many(site, 3)
    virus = site.hold(Tier.DANGEROUS, recipients=[ALICE], subject="a virus")
    hers = site.hold(subject="of Mallory", recipients=[MALLORY])
    browser = site.signed_in(ALICE)
    post(browser, [gone], "delete")
    relay.script["MAIL"] = lambda line: "552 5.3.4 too large" if relay.mails else None
    for mails in ([wanted, virus, gone, hers], [large]):
        page = browser.follow(post(browser, mails, "release"), "/").text
        if large not in mails:
            assert "<p>Released: 1</p>" in page
            assert "Not released, only an administrator can: 1" in page and "a virus" in page
            assert "Not changed, already deleted: 1" in page and "Not released: the message was deleted on" in page
            assert "of Mallory" not in page
    assert "The last release failed:" in page and "too large" in page
    assert [each.recipients for each in relay.mails] == [[ALICE]]
    assert [site.state(each) for each in (wanted, virus, gone, hers, large)] == [
        State.RELEASED, State.HELD, State.DELETED, State.HELD, State.HELD,
    ]  # fmt: skip
    assert "Released:" not in browser.get("/").text  # it is shown once


@pytest.mark.parametrize("others", [0, 1], ids=["alone", "with another one"])
def test_a_dangerous_message_that_its_reader_may_release_is_to_be_checked_first(
    make_parts: Callable[..., Parts], relay: SmtpServer, others: int
) -> None:
    """It is released on its own page only. No page says that only an administrator can do it."""
    site = Site(make_parts(relay__url=relay.url, domains={"example.org": {"release_dangerous": "self"}}))
    virus, *plain = site.hold(Tier.DANGEROUS, recipients=[ALICE], subject="a virus"), *hold_many(site, others)
    browser = site.signed_in(ALICE)
    relay.script["RCPT"] = "550 5.1.1 no such user"
    with pytest.raises(RelayRefused):
        site.parts.actions.release(virus.id, 0, BY_LINK)
    relay.script.clear()
    page = browser.follow(post(browser, [virus, *plain], "release"), "/").text
    assert "Not released: open this message and check it first." in page
    assert ("Not released, check these first: 1" in page) is (others == 1)
    assert "no such user" in page and "only an administrator" not in page
    assert [site.state(each) for each in (virus, *plain)] == [State.HELD, *[State.RELEASED] * others]


def in_every_state(site: Site, relay: SmtpServer) -> dict[str, Held]:
    """Hold a message for each state that the view of all messages shows."""
    by_rule = rule("example.net").as_actor
    starts = {state: Start(State(state), by_rule) for state in ("blocked", "passed")}
    helds = {
        state: site.hold(recipients=[ALICE], subject=f"It is {state}", starts={ALICE: starts[state]})
        if state in starts
        else site.hold(Tier.DANGEROUS if state == "requested" else Tier.SPAM, subject=f"It is {state}")
        for state in ("held", "requested", "releasing", "released", "passed", "blocked", "deleted")
    }
    actions = site.parts.actions
    actions.request_release(helds["requested"].id, 0, BY_LINK)
    actions.queue_release(helds["releasing"].id, 0, BY_LINK)
    actions.release(helds["released"].id, 0, BY_LINK)
    actions.delete(helds["deleted"].id, 0, BY_LINK)
    relay.mails.clear()
    return helds


@pytest.mark.parametrize(
    ("do", "matching", "lines", "after"),
    [
        (
            "release",
            True,
            {"Released: 2", "Not changed, already released: 1", "Not changed, release in progress: 1"}
            | {"Not changed, already let through: 1", "Not changed, already deleted: 1"}
            | {"Not changed, release requested: 1"},
            {"held": "released", "blocked": "released"},
        ),
        (
            "delete",
            False,
            {"Deleted: 4", "Not changed, already released: 1", "Not changed, release in progress: 1"}
            | {"Not changed, already deleted: 1"},
            dict.fromkeys(("held", "requested", "passed", "blocked"), "deleted"),
        ),
        ("restore", True, {"Deletion undone: 1", "Not changed, not deleted: 6"}, {"deleted": "held"}),
        (
            "ask",
            False,
            {"Not requested, you can release these yourself: 2", "Not changed, release requested: 1"}
            | {"Not changed, already released: 1", "Not changed, release in progress: 1"}
            | {"Not changed, already let through: 1", "Not changed, already deleted: 1"},
            {},
        ),
    ],
)
def test_of_all_messages_each_is_changed_or_the_result_says_why_not(
    site: Site, relay: SmtpServer, do: str, matching: bool, lines: set[str], after: dict[str, str]
) -> None:
    helds, browser = in_every_state(site, relay), site.signed_in(ALICE)
    assert f'name="do" value="{do}"' in browser.get("/?state=all").text
    if matching:
        answer = browser.post("/messages", all_that_match(browser, "&state=all", do=do))
    else:
        answer = post(browser, helds.values(), do, **{"from": "list?state=all"})
    page = browser.follow(answer, "/").text
    result = page[page.index('role="status"') : page.index('class="views"')]
    assert set(re.findall(r"<(?:p|summary)>([^<]*: \d+)</", result)) == lines
    assert "held again" not in result
    assert {name: site.state(each).value for name, each in helds.items()} == {each: each for each in helds} | after
    assert len(relay.mails) == (2 if do == "release" else 0)


def test_a_deletion_that_was_not_undone_is_not_reported_as_undone(site: Site) -> None:
    browser = site.signed_in(ALICE)
    page = browser.follow(post(browser, hold_many(site, 1), "restore"), "/?state=all").text
    assert "Not changed, not deleted" in page and "Deletion undone" not in page


@pytest.mark.parametrize(
    ("do", "state", "why"),
    [
        ("release", "released", "Not changed, already released"),
        ("release", "passed", "Not changed, already let through"),
        ("delete", "deleted", "Not changed, already deleted"),
        ("ask", "requested", "Not changed, release requested"),
    ],
)
def test_of_one_message_the_result_says_that_the_act_changed_nothing(
    site: Site, relay: SmtpServer, do: str, state: str, why: str
) -> None:
    helds, browser = in_every_state(site, relay), site.signed_in(ALICE)
    page = browser.follow(post(browser, [helds[state]], do, **{"from": "list?state=all"}), "/?state=all").text
    assert f'<p class="state bad">{why}</p>' in page
    assert site.state(helds[state]).value == state


def test_suspicious_messages_are_released_only_after_their_cautions_were_shown(site: Site, relay: SmtpServer) -> None:
    spam, first, second = hold_many(site, 1)[0], *(site.hold(Tier.SUSPICIOUS, subject=f"macro {n}") for n in (1, 2))
    virus = site.hold(Tier.DANGEROUS, subject="a virus")
    browser = site.signed_in(ALICE)
    page = post(browser, [spam, first, virus], "release").text
    assert "Suspicious messages: 1" in page and "macro 1" in page and "a virus" not in page
    assert "Release only the others (1)" in page and "Release all (2)" in page
    assert not relay.mails
    form = {**hidden(page), "suspicious": "leave"}
    page = browser.follow(browser.post("/messages", form), "/").text
    assert states(site, [first, second]) == {State.HELD} and site.state(spam) is State.RELEASED
    assert "Not released, check these first: 1" in page
    form = {**hidden(post(browser, [second, virus], "release").text), "suspicious": "release"}
    browser.post("/messages", form)
    assert [site.state(each) for each in (first, second, virus)] == [State.HELD, State.RELEASED, State.HELD]
    page = browser.post("/messages", all_that_match(browser, do="release", suspicious="release")).text
    assert "Suspicious messages: 1" in page and site.state(first) is State.HELD
    browser.post("/messages", {**hidden(page), "suspicious": "release"})
    assert [site.state(each) for each in (first, virus)] == [State.RELEASED, State.HELD]


@pytest.mark.parametrize("count", [1, 60])
def test_a_suspicious_message_that_was_restored_after_the_cautions_is_not_released(
    site: Site, relay: SmtpServer, count: int
) -> None:
    shown, restored = (site.hold(Tier.SUSPICIOUS, recipients=[ALICE], subject=f"macro {n}") for n in (1, 2))
    spam = hold_many(site, count)
    site.parts.actions.delete(restored.id, 0, BY_LINK)
    browser = site.signed_in(ALICE)
    page = browser.post("/messages", all_that_match(browser, do="release")).text
    assert "macro 1" in page and "macro 2" not in page
    form = {**hidden(page), "suspicious": "release"}
    if count == 1:  # before the second form: its caution is shown as well
        site.parts.actions.restore(restored.id, 0, BY_LINK)
        page = browser.post("/messages", form).text
        assert "macro 1" in page and "macro 2" in page and not relay.mails
    else:  # before the background job
        answer = browser.post("/messages", form)
        site.parts.actions.restore(restored.id, 0, BY_LINK)
        run(site)
        page = browser.get(job_page(answer)).text
        assert f"<p>Released: {count + 1}</p>" in page and "Not released, check these first: 1" in page
        assert states(site, [*spam, shown]) == {State.RELEASED}
    assert site.state(restored) is State.HELD


def test_a_message_that_becomes_suspicious_just_before_its_release_is_not_released(
    site: Site, relay: SmtpServer
) -> None:
    """The job has planned it already, and it is one of those that are sent last."""
    found: dict[str, Any] = {"data": mail("found later"), "recipients": [ALICE]}
    worse, others = site.hold(**found), hold_many(site, 49)
    lock, raised = threading.Lock(), list[Held]()

    def raise_tier(_: bytes) -> None:
        with lock:
            if not raised:
                raised.append(site.hold(Tier.SUSPICIOUS, **found))

    relay.script["MAIL"] = raise_tier
    browser = site.signed_in(ALICE)
    form = all_that_match(browser, do="release")
    spam = hold_many(site, 1)  # newer than all that match
    answer = browser.post("/messages", form)
    page = browser.follow(answer, "/").text
    assert "<p>Released: 49</p>" in page and "Not released, check these first: 1" in page
    assert states(site, others) == {State.RELEASED} and states(site, [worse, *spam]) == {State.HELD}


def test_cautions_that_a_page_does_not_show_are_not_confirmed(site: Site, relay: SmtpServer) -> None:
    spam, browser = hold_many(site, 1), site.signed_in(ALICE)
    macros = [site.hold(Tier.SUSPICIOUS, recipients=[ALICE], subject=f"macro {n}") for n in range(51)]
    page = browser.post("/messages", all_that_match(browser, do="release")).text
    assert "Suspicious messages: 51" in page and "Release only the others (1)" in page
    assert "Release all" not in page and "select at most 50" in page
    page = browser.post("/messages", all_that_match(browser, do="release", suspicious="release")).text
    assert "Suspicious messages: 51" in page
    assert states(site, [*spam, *macros]) == {State.HELD} and not relay.mails
    browser.post("/messages", {**hidden(page), "suspicious": "leave"})
    run(site)
    assert states(site, macros) == {State.HELD} and states(site, spam) == {State.RELEASED}


def test_release_is_requested_for_several(site: Site) -> None:
    viruses = [site.hold(Tier.DANGEROUS, recipients=[ALICE], subject=f"virus {n}") for n in range(2)]
    browser = site.signed_in(ALICE)
    page = browser.follow(post(browser, [*viruses, *hold_many(site, 1)], "ask"), "/").text
    assert "<p>Release requested: 2</p>" in page
    assert "Not requested, you can release these yourself: 1" in page
    assert states(site, viruses) == {State.REQUESTED}
    form = all_that_match(browser, do="ask")
    hold_many(site, 51)
    assert "select at most 50 messages" in browser.post("/messages", all_that_match(browser, do="ask")).text
    assert "The message is still held." in browser.follow(browser.post("/messages", form), "/").text
    form = all_that_match(browser, do="ask")
    form["mail"] = " ".join(form["shown"].split()[2:])  # without two ticks, 50 are left
    assert "yourself: 50" in browser.follow(browser.post("/messages", form), "/").text


def test_limits_of_an_act_do_not_count_what_it_does_not_change(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("portal.web.selection._EXAMINED", 10)
    virus = site.hold(Tier.DANGEROUS, recipients=[ALICE], subject="virus")
    macro = site.hold(Tier.SUSPICIOUS, recipients=[ALICE], subject="macro")
    for each in hold_many(site, 51):
        site.parts.actions.delete(each.id, 0, BY_LINK)
    browser = site.signed_in(ALICE)
    page = browser.post("/messages", all_that_match(browser, "&state=all", do="release")).text
    assert "Suspicious messages: 1<" in page and "Release all (1)" in page
    browser.post("/messages", all_that_match(browser, "&state=all", do="ask"))
    browser.post("/messages", {**hidden(page), "suspicious": "release"})
    run(site)
    assert [site.state(each) for each in (virus, macro)] == [State.REQUESTED, State.RELEASED]


def test_all_that_match_are_those_that_the_reader_could_see(site: Site) -> None:
    old, other = hold_many(site, 30), site.hold(recipients=[ALICE], subject="Invoice")
    browser = site.signed_in(ALICE)
    page = browser.get("/?q=offer").text
    assert "Select all matches" in page and "Select all 31" in browser.get("/").text
    page = browser.get("/?q=offer&select=matching").text
    assert "Selected, also on other pages: 30" in page
    form = {**hidden(page), "do": "delete"}
    form["mail"] = form["shown"].replace(f"{old[29].id}.0", "")  # without a tick
    [late] = hold_many(site, 1)
    page = browser.follow(browser.post("/messages", form), "/").text
    assert "<p>Deleted: 29</p>" in page and 'value="offer"' in page
    assert states(site, old[:29]) == {State.DELETED}
    assert states(site, [late, other, old[29]]) == {State.HELD}


def test_more_than_a_thousand_matches_are_not_counted(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("portal.web.inbox._COUNTED", 30)
    hold_many(site, 40)
    assert "Selected, also on other pages: 30+" in site.signed_in(ALICE).get("/?select=matching").text


def test_the_list_with_everything_selected_takes_few_statements(
    make_parts: Callable[..., Parts], monkeypatch: pytest.MonkeyPatch
) -> None:
    statements = Statements(monkeypatch)
    site = Site(make_parts())
    hold_many(site, 40)
    browser = site.signed_in(ALICE)
    with statements.of() as queries:
        assert browser.get("/?select=matching&q=offer").text.count('class="mail"') == 25
    assert len(queries) <= 5, queries


@pytest.mark.parametrize(
    "form",
    [
        {"do": "delete"},
        {"do": "delete", "mail": "x y.z 01900000-0000-7000-8000-000000000000.0"},
        {"do": "", "mail": "KEY"},
        {"do": "spam", "mail": "KEY"},
        {"do": "reannounce", "mail": "KEY"},  # of staff
        {"only": "refuse KEY"},
        {"do": "restore", "all": "KEY"},  # not offered for held messages
        {"only": "purge KEY"},
        {"only": "delete"},
    ],
)
def test_an_incomplete_form_of_the_list_changes_nothing(site: Site, form: dict[str, str]) -> None:
    [held] = hold_many(site, 1)
    browser = site.signed_in(ALICE)
    filled = {name: value.replace("KEY", f"{held.id}.0") for name, value in form.items()}
    answer = browser.post("/messages", {"form_token": browser.form_token(), "from": "list?q=offer", **filled})
    page = browser.follow(answer, "/").text
    assert "No messages selected." in page and 'value="offer"' in page
    assert site.state(held) is State.HELD
    assert browser.post("/messages", filled).status == 403


# ---- as a background job


def test_many_messages_are_left_to_the_digest_process(site: Site) -> None:
    mails, browser = hold_many(site, 120), site.signed_in(ALICE)
    path = job_page(browser.post("/messages", all_that_match(browser, do="delete")))
    answer = browser.get(path)
    assert "Waiting to start" in answer.text and "You can close this page" in answer.text
    assert answer.header("Refresh") == "3"
    assert browser.get(f"{path}?pause=1").header("Refresh") is None
    assert states(site, mails) == {State.HELD}
    site.pass_time(minutes=2)
    assert "does not run at the moment. Nothing is lost" in browser.get(path).text
    assert "Waiting to start" in browser.get("/").text  # with a link to the page
    run(site)
    assert states(site, mails) == {State.DELETED}
    answer = browser.get(path)
    assert "<p>Deleted: 120</p>" in answer.text and answer.header("Refresh") is None
    assert "<p>Deleted: 120</p>" in browser.get("/").text
    for other in (site.signed_in(MALLORY), site.signed_in(BOB)):
        assert other.get(path).status == 404
        job = path.split("/")[-2]
        assert other.post("/messages", {"form_token": other.form_token(), "undo": job}).status == 404
    event = next(e for e in site.history(mails[0]) if e.kind is EventKind.DELETED)
    assert (event.actor.who, event.actor.via) == ("recipient", f"portal/{job}")


@pytest.mark.parametrize(
    ("state", "do", "heading"),
    [
        ("held", "release", "Releasing messages"),
        ("held", "delete", "Deleting messages"),
        ("requested", "withdraw", "Withdrawing requests"),
        ("deleted", "restore", "Undoing the deletion"),
    ],
)
def test_the_page_of_a_job_names_its_act(site: Site, state: str, do: str, heading: str) -> None:
    browser = site.signed_in(ALICE)
    for number in range(51):
        held = site.hold(Tier.DANGEROUS if state == "requested" else Tier.SPAM, subject=f"Offer {number}")
        if state == "requested":
            site.parts.actions.request_release(held.id, 0, BY_LINK)
        if state == "deleted":
            site.parts.actions.delete(held.id, 0, BY_LINK)
    page = browser.get(job_page(browser.post("/messages", all_that_match(browser, f"&state={state}", do=do)))).text
    assert f"<h1>{heading}</h1>" in page and f"<title>{heading} (" in page


def test_a_whole_batch_is_undone_and_nothing_else(site: Site) -> None:
    mails, browser = hold_many(site, 70), site.signed_in(ALICE)
    post(browser, mails[:2], "delete")
    path = job_page(browser.post("/messages", all_that_match(browser, do="delete")))
    run(site)
    again = f"/messages/{mails[5].id}/"  # restored and deleted once more, alone
    for act in ("restore", "delete"):
        browser.post(again + act, {"form_token": browser.form_token()})
    [undo] = re.findall(r'name="undo" value="([^"]*)"', browser.get(path).text)
    path = job_page(browser.post("/messages", {"form_token": browser.form_token(), "from": "list", "undo": undo}))
    run(site)
    page = browser.get(path).text
    assert "<p>Deletion undone: 67</p>" in page
    # Not those that were deleted before the batch.
    assert "Not changed: 1" in page and re.findall(r'<li><a href="/quarantine(/messages/[^"]*)">', page) == [again]
    assert states(site, [*mails[:2], mails[5]]) == {State.DELETED}
    assert states(site, [*mails[2:5], *mails[6:]]) == {State.HELD}


class Killed(BaseException):
    """The end of the process."""


@pytest.mark.parametrize("ticked", [True, False])
def test_a_killed_job_goes_on_and_does_everything_once(
    site: Site, monkeypatch: pytest.MonkeyPatch, ticked: bool
) -> None:
    mails, browser = hold_many(site, 120), site.signed_in(ALICE)
    form = all_that_match(browser, do="delete")
    path = job_page(post(browser, mails, "delete") if ticked else browser.post("/messages", form))
    delete, left = Actions.delete, iter(range(70))

    def delete_some(self: Actions, *args: Any) -> Any:
        if next(left, None) is None:
            raise Killed
        return delete(self, *args)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("portal.batches.run._METHODS", {"delete": delete_some})
        run(site)
    assert sum(site.state(each) is State.DELETED for each in mails) == 70
    assert "50 of 120" in browser.get(path).text
    run(site)  # the claim of the process that died has not ended yet
    assert sum(site.state(each) is State.DELETED for each in mails) == 70
    site.now += LEASE
    run(site)
    assert "<p>Deleted: 120</p>" in browser.get(path).text
    for each in mails:
        assert [event.kind for event in site.history(each)] == [EventKind.HELD, EventKind.DELETED]


def test_what_changed_before_the_job_ran_is_left_alone(site: Site, aliases: Path, relay: SmtpServer) -> None:
    found: dict[str, Any] = {"data": mail("found later"), "recipients": [BOB]}
    own, shared, virus = hold_many(site, 59, BOB), hold_many(site, 60, INFO), site.hold(**found)
    browser = site.signed_in(BOB)
    of_mailbox = browser.post("/messages", all_that_match(browser, f"&mailbox={INFO}", do="delete"))
    all_of_them = browser.post("/messages", all_that_match(browser, do="release"))
    site.hold(Tier.DANGEROUS, **found)  # the same message with a worse verdict
    write(aliases, f"{INFO} {ALICE}\n")
    site.parts.people._checked_at = float("-inf")
    run(site)
    assert "Nothing was changed." in browser.get(job_page(of_mailbox)).text
    page = browser.get(job_page(all_of_them)).text
    assert "<p>Released: 59</p>" in page and "Not released, only an administrator can: 1" in page
    assert states(site, own) == {State.RELEASED} and len(relay.mails) == 59
    assert states(site, [*shared, virus]) == {State.HELD}


def read_by(site: Site, aliases: Path, *readers: str) -> None:
    """Change who reads the role mailbox."""
    write(aliases, f"{INFO} {', '.join(readers)}\n")
    site.parts.people._checked_at = float("-inf")


@pytest.mark.parametrize("do", ["delete", "release", "block"])
def test_all_of_a_mailbox_that_was_lost_selects_nothing_else(site: Site, aliases: Path, do: str) -> None:
    own, shared, browser = hold_many(site, 2, BOB), hold_many(site, 2, INFO), site.signed_in(BOB)
    form = all_that_match(browser, f"&mailbox={INFO}", do=do)
    read_by(site, aliases, ALICE)
    assert "No messages selected" in browser.follow(browser.post("/messages", form), "/").text
    assert states(site, [*own, *shared]) == {State.HELD}
    assert 'class="mail"' not in browser.get(f"/?mailbox={INFO}").text


def test_a_mailbox_that_was_gained_is_left_alone(site: Site, aliases: Path) -> None:
    shared, own, browser = hold_many(site, 2, INFO), hold_many(site, 60, MALLORY), site.signed_in(MALLORY)
    path = job_page(browser.post("/messages", all_that_match(browser, do="delete")))
    read_by(site, aliases, ALICE, MALLORY)
    run(site)
    assert "<p>Deleted: 60</p>" in browser.get(path).text
    assert states(site, own) == {State.DELETED} and states(site, shared) == {State.HELD}


def test_what_was_restored_before_a_killed_job_went_on_stays(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    mails, browser = hold_many(site, 60), site.signed_in(ALICE)
    path = job_page(browser.post("/messages", all_that_match(browser, do="delete")))
    deleted: list[Any] = []
    delete = Actions.delete

    def delete_some(self: Actions, *args: Any) -> Any:
        if len(deleted) == 3:
            raise Killed
        deleted.append(delete(self, *args))
        return deleted[-1]

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("portal.batches.run._METHODS", {"delete": delete_some})
        run(site)
    browser.post(f"/messages/{deleted[0].id}/restore", {"form_token": browser.form_token()})
    site.now += LEASE
    run(site)
    assert "<p>Deleted: 59</p>" in browser.get(path).text
    assert [each.id for each in mails if site.state(each) is State.HELD] == [deleted[0].id]


# ---- where the reader goes on


def rows_of(page: str) -> list[str]:
    return re.findall(r'<li id="(m-[^"]*)"', page)


def goes_on_at(answer: Answer) -> str:
    assert answer.status == 303, answer.text
    return (answer.header("Location") or "").partition("#")[2]


@pytest.mark.parametrize("order", ["newest", "likely"])
@pytest.mark.parametrize(
    ("ticked", "next"), [([0], 1), ([1, 2], 3), ([0, 2], 1), ([4], 5), ([5], 4), ([2, 5], 3), (range(6), None)]
)
def test_after_an_act_on_several_rows_the_reader_goes_on_below_the_first(
    site: Site, order: str, ticked: list[int], next: int | None
) -> None:
    hold_many(site, 3)
    for _ in range(3):  # in one row
        site.hold(subject="Weekly offers", header_from="<a@weekly.example>")
    for number in range(2):
        site.hold(subject=f"Order {number * 7919}", header_from=f"<b@shop{number}.example>")
    browser = site.signed_in(ALICE)
    page = browser.get(f"/?order={order}").text
    rows, boxes = rows_of(page), re.findall(r'name="mail" value="([^"]*)"', page)
    assert len(rows) == len(boxes) == 6
    answer = browser.post("/messages", {**hidden(page), "do": "delete", "mail": " ".join(boxes[n] for n in ticked)})
    assert goes_on_at(answer) == ("" if next is None else rows[next])
    left = browser.follow(answer, "/").text
    assert rows_of(left) == [row for number, row in enumerate(rows) if number not in ticked]
    # Then undone: the browser goes to the newest message that is back.
    undo = re.search(r'name="undo" value="([^"]*)"', left)
    assert undo
    form = {"form_token": browser.form_token(), "from": "list", "undo": undo[1]}
    assert goes_on_at(browser.post("/messages", form)) == max(rows[number] for number in ticked)


def test_after_release_all_of_a_row_the_reader_goes_on_at_the_next(site: Site) -> None:
    hold_many(site, 1)
    for _ in range(3):
        site.hold(subject="Weekly offers", header_from="<a@weekly.example>")
    page = (browser := site.signed_in(ALICE)).get("/").text
    only = re.search(r'name="only" value="(release [^"]*)"', page)
    assert only
    assert goes_on_at(browser.post("/messages", {**hidden(page), "only": only[1]})) == rows_of(page)[1]


def test_after_a_question_the_reader_goes_on_at_the_same_row(site: Site) -> None:
    hold_many(site, 2)
    doubtful = site.hold(Tier.SUSPICIOUS, subject="Scanned document")
    page = (browser := site.signed_in(ALICE)).get("/").text
    question = browser.post("/messages", {**hidden(page), "do": "release", "mail": f"{doubtful.id}.0"}).text
    answer = browser.post("/messages", {**hidden(question), "suspicious": "release"})
    assert site.state(doubtful) is State.RELEASED and goes_on_at(answer) == rows_of(page)[1]


def test_names_that_are_no_rows_lead_to_the_list(site: Site) -> None:
    [held] = hold_many(site, 1)
    answer = post(site.signed_in(ALICE), [held], "delete", rows='" x=1 //evil.example \r\nX:y')
    assert answer.header("Location") == "/quarantine/"


# ---- twice


def test_a_form_that_is_posted_twice_is_done_once(site: Site) -> None:
    mails, browser = hold_many(site, 60), site.signed_in(ALICE)
    form, other_tab = all_that_match(browser, do="delete"), all_that_match(browser, do="delete")
    paths = {job_page(browser.post("/messages", each)) for each in (form, form, other_tab)}
    assert len(paths) == 1 and jobs_waiting(site) == 1
    run(site)
    assert "<p>Deleted: 60</p>" in browser.follow(browser.post("/messages", form), "/").text
    assert jobs_waiting(site) == 0
    form = {**hidden(browser.get("/?state=deleted").text), "do": "restore", "mail": f"{mails[0].id}.0"}
    for _ in range(2):
        assert "Deletion undone" in browser.follow(browser.post("/messages", form), "/").text
    form = {**hidden(browser.get("/").text), "do": "delete", "mail": f"{mails[0].id}.0"}
    for _ in range(2):  # deleted, restored, and deleted by the same form: a new wish
        browser.post("/messages", form)
        assert site.state(mails[0]) is State.DELETED
        post(browser, mails[:1], "restore")
    assert len(site.history(mails[0])) == 1 + 2 + 2 * 2


# ---- the senders of the selected messages


def test_the_senders_of_selected_messages_are_blocked_after_a_page_named_them(site: Site) -> None:
    mails = [
        site.hold(recipients=[ALICE], header_from=f"<{address}>" if address else "", envelope_sender=address)
        for address in ("a@shop.example", "a@shop.example", "x@gmail.com", "")
    ]
    role = site.hold(recipients=[INFO], header_from="<a@shop.example>")
    hers = site.hold(recipients=[MALLORY], header_from="<secret@hers.example>")
    site.store.rules.add([rule("a@shop.example", "allow")], site.now)
    browser = site.signed_in(ALICE)
    page = post(browser, [*mails, role, hers], "block").text
    assert "Block these senders?" in page and "secret" not in page
    assert re.findall(r"<legend><bdi>(.*?)</bdi>", page) == ["a@shop.example", "x@gmail.com", "a@shop.example"]
    assert page.count('value="shop.example"') == 2 and 'value="gmail.com"' not in page
    assert page.count("You have the opposite rule for this sender.") == 1
    form = [(name, value) for name, value in re.findall(r'name="([^"]*)" value="([^"]*)" checked', page)]
    names = re.findall(r'name="message" value="([^"]*)"', page)
    answer = browser.post_all(
        "/rules/senders",
        [
            ("form_token", browser.form_token()),
            ("from", "list?q=x"),
            ("effect", "block"),
            *form[:1],
            (form[1][0], ""),  # left out
            (form[2][0], "shop.example"),
            *(("message", name) for name in (*names, f"{hers.id}.0")),
            (f"sender.{hers.id}.0", "secret@hers.example"),
        ],
    )
    page = browser.follow(answer, "/").text
    assert "Senders blocked: 2" in page and 'value="x"' in page
    found = site.store.rules.list([ALICE, INFO, MALLORY], 10, site.now)
    assert {(each.scope, each.sender, each.effect.value) for each in found} == {
        (ALICE, "a@shop.example", "block"), (INFO, "shop.example", "block"),
    }  # fmt: skip
    assert {each.message_id for each in found} <= {mails[0].id, mails[1].id, role.id}
    assert states(site, mails) == {State.HELD}


def test_a_rule_that_cannot_be_made_is_not_offered(site: Site) -> None:
    [one] = [site.hold(recipients=[ALICE], header_from="<boss@example.org>")]
    browser = site.signed_in(ALICE)
    page = post(browser, [one], "allow").text
    assert 'value="example.org" disabled' in page and "This is a domain of your own organization." in page
    assert "not authenticated" in page
    key = f"{one.id}.0"
    form = {"form_token": browser.form_token(), "from": "list", "effect": "allow", "message": key}
    for sender in ("example.org", "other@elsewhere.example"):
        assert browser.post("/rules/senders", {**form, f"sender.{key}": sender}).status == 400
    assert site.store.rules.list([ALICE], 10, site.now) == []


def test_allow_rules_are_not_offered_for_messages_that_may_be_harmful(site: Site) -> None:
    [spam] = hold_many(site, 1)
    harmful = [
        site.hold(tier, recipients=[ALICE], header_from=f"{tier}@shop.example")
        for tier in (Tier.SUSPICIOUS, Tier.DANGEROUS)
    ]
    browser = site.signed_in(ALICE)
    page = post(browser, [spam, *harmful], "allow").text
    assert re.findall(r"<legend><bdi>(.*?)</bdi>", page) == ["a0@example.net"]
    assert "Left out, since they may be harmful: 2." in page
    page = post(browser, [spam, *harmful], "block").text
    assert page.count("<legend>") == 3 and "Left out" not in page
    page = post(browser, harmful, "allow").text
    assert "Left out, since they may be harmful: 2." in page and "<legend>" not in page


def test_of_many_senders_those_of_most_messages_are_listed(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    hold_many(site, 52)
    for _ in range(3):
        site.hold(recipients=[ALICE], header_from="a0@example.net")
    browser = site.signed_in(ALICE)
    form = all_that_match(browser, do="block")
    page = browser.post("/messages", form).text
    assert re.findall(r"<legend><bdi>(.*?)</bdi>", page)[:3] == ["a0@example.net", "a51@example.net", "a50@example.net"]
    assert page.count("<legend>") == 50 and "More senders: 2." in page and "newest messages" not in page
    assert re.findall(r"Number of messages: (\d+)", page) == ["4"]
    fields = re.findall(r'name="([^"]*)" value="([^"]*)"(?: checked)?>', page)
    fields = [(name, value) for name, value in fields if name in ("form_token", "from", "message")]
    chosen = re.findall(r'name="([^"]*)" value="([^"]*)" checked', page)
    answer = browser.post_all("/rules/senders", [*fields, ("effect", "block"), *chosen])
    assert "Senders blocked: 50" in browser.follow(answer, "/").text
    assert len(site.store.rules.list([ALICE], 99, site.now)) == 50
    monkeypatch.setattr("portal.web.selection._EXAMINED", 5)
    page = browser.post("/messages", form).text
    assert page.count("<legend>") == 3 and "These are the senders of the 5 newest messages." in page


def test_the_page_of_senders_takes_few_statements(
    make_parts: Callable[..., Parts], monkeypatch: pytest.MonkeyPatch
) -> None:
    statements = Statements(monkeypatch)
    site = Site(make_parts())
    mails, browser = hold_many(site, 40), site.signed_in(ALICE)
    with statements.of() as queries:
        assert post(browser, mails, "allow").text.count("<legend>") == 40
    assert len(queries) <= 5 + 2, queries  # with the page that the form token comes from
