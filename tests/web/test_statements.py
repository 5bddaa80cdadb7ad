"""At most five statements for each page of a recipient and of the console, on both stores."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest

from digest.housekeeping import run_batches
from digest.news import schedule_news
from portal.assemble import Parts
from portal.batches.batch import Act
from portal.batches.mass import KIND, MassAct
from portal.model.errors import RelayRefused
from portal.model.links import Action
from portal.model.message import ANY, Filter, Start, State, Symbol, Tier
from portal.model.staff import EVERYWHERE, Grant, Role
from portal.stores import search
from portal.stores.records import Held
from portal.web import inbox
from tests.builders import ALICE, BOB, BY_LINK, BY_OPERATOR, MALLORY, digesting, rule
from tests.flows.masses import BY_SHELL, BY_STAFF, masses
from tests.smtp_server import SmtpServer
from tests.statements import Statements
from tests.web.test_sign_in import request_sign_in
from tests.web_client import Site

MIXED = (
    b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\nContent-Type: text/html\r\n\r\n<p>Offers\r\n"
    b"--b\r\nContent-Type: application/pdf; name=offer.pdf\r\n\r\n%PDF-1.4\r\n--b--\r\n"
)
LISTS = (
    *("", "?q=offer", "?q=absent", "?sender=absent", "?order=likely", "?state=all", "?state=released&size=100"),
    "?select=matching",
)
SEARCHES = (
    *("?q=offer&sender=example.net&tier=spam&since=2020-01-01", "?q=offer&attachment=1&score-min=3", "?tier=dangerous"),
    *("?sender=hop", "?attachment=1", "?reason=absent", "?q=offer&order=likely", "?q=%22offer+absent%22"),
)
SIMILAR = ("?like=ID", "?like=ID&select=matching", "?like=ID&order=likely", "?like=ID&q=absent&attachment=1")
NEWER = (
    "?down_to=ID&q=offer&sender=romo",
    *("?order=likely&after=ID&skip=25", "?order=likely&q=offer&after=ID&skip=25"),  # of a row that is gone
)
INFO = "info@example.org"
FEW = 5
MESSAGES = ("", "formatted", "headers", "source", "html", "sender", "download")
OTHERS = (
    *("preferences", "preferences?zones=all", "sessions", "rules", "rules?q=b", "rules?done=RULE", "sign-in"),
    *("sign-in/code", "about"),
)


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> Statements:
    return Statements(monkeypatch)


@pytest.fixture
def site(statements: Statements, make_parts: Callable[..., Parts]) -> Site:
    return Site(make_parts())


@pytest.mark.parametrize("path", [*LISTS, *SEARCHES, *OTHERS])
def test_pages_of_a_recipient_take_few_statements(site: Site, statements: Statements, path: str) -> None:
    for number in range(60):
        site.hold(subject=f"Offer {number * 7919}", header_from=f"<a@n{number}.example.net>", recipients=(ALICE, BOB))
    made, _ = site.store.rules.add([rule("b.example"), rule("c.example", "allow")], site.now)
    browser = site.signed_in(ALICE)
    browser.get("/?tier=spam")  # the file store reads the list of its tables again when there are new ones
    with statements.of() as queries:
        assert browser.get(f"/{path.replace('RULE', str(made.id))}").status == 200
    assert len(queries) <= FEW, "\n".join(queries)


@pytest.mark.parametrize(
    ("act", "page"),
    [
        ("messages", "?undone=several"),
        ("messages", "?q=absent&undone=several"),
        ("messages", "?select=matching&undone=several"),
        ("messages/ID/question", "messages/ID/?undone=ID"),
        ("messages/ID/delete", "?undone=ID"),
        ("rules", "rules?undone=1"),
        ("rules", "messages/ID/sender?undone=1"),
        ("preferences", "preferences?undone=1"),
    ],
)
def test_pages_that_show_a_kept_form_again_take_few_statements(
    site: Site, statements: Statements, act: str, page: str
) -> None:
    mails = [site.hold(subject=f"Offer {number * 7919}") for number in range(60)]
    act, page = (text.replace("ID", str(mails[50].id)) for text in (act, page))
    browser = site.signed_in(ALICE)
    form = {"form_token": browser.form_token(), "from": "list", "mail": f"{mails[0].id}.0 {mails[50].id}.0"}
    if "matching" in page:
        form["all"] = f"{mails[55].id}.0"
    site.pass_time(days=2)
    answer = browser.post(f"/{act}", {**form, "sender": "b.example", "question": "Why?", "change": "save"})
    assert "ended=kept" in (answer.header("Location") or "")
    browser.cookies |= site.signed_in(ALICE).cookies
    browser.get("/?tier=spam")
    if not page.endswith("undone=1"):  # the address says it for one page
        page = (browser.get(f"/{page}").header("Location") or "").removeprefix("/quarantine/")
    with statements.of() as queries:
        assert browser.get(f"/{page}").status == 200
    assert any("kept_form" in query for query in queries)
    assert len(queries) <= FEW, "\n".join(queries)


@pytest.mark.parametrize("path", [*LISTS, *SEARCHES, "?q=offer&state=released"])
def test_searches_of_a_large_mailbox_take_few_statements(
    site: Site, statements: Statements, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """The newest messages are compared without the index of words, the others are found by it, on two days."""
    monkeypatch.setattr(search, "NEWEST_MAX", 10)
    monkeypatch.setattr(inbox, "NEWEST_MAX", 10)
    monkeypatch.setattr(inbox, "_COUNTED", 10)
    for number in range(40):
        at = site.now - timedelta(days=number // 20)
        site.hold(subject=f"Offer {number * 7919}", header_from=f"<a@n{number}.example.net>", at=at)
    browser = site.signed_in(ALICE)
    browser.get("/?tier=spam")  # the file store reads the list of its tables again when there are new ones
    with statements.of() as queries:
        assert browser.get(f"/{path}").status == 200
    assert len(queries) <= FEW, "\n".join(queries)


@pytest.mark.parametrize("acted", [1, 3])
@pytest.mark.parametrize("path", [*LISTS, *SEARCHES, *SIMILAR, *NEWER, "?order=likely&q=offer&up_to=ID&skip=9"])
def test_lists_with_the_result_of_an_act_take_few_statements(
    statements: Statements, make_parts: Callable[..., Parts], tmp_path: Path, path: str, acted: int
) -> None:
    """Of a role mailbox, where each row says who acted, and with a message that another reader has deleted."""
    (tmp_path / "virtual").write_text(f"{INFO} {ALICE}, {BOB}\n")
    site = Site(make_parts(people__alias_file=tmp_path / "virtual"))
    held = [
        site.hold(subject=f"Offer {number * 7919}", header_from=f"<a@n{number}.example.net>", recipients=[INFO])
        for number in range(60)
    ]
    path = path.replace("ID", f"{held[0].id}.0")
    browser = site.signed_in(ALICE)
    form = {"form_token": browser.form_token(), "from": "list", "do": "release"}
    browser.get("/?tier=spam")  # the file store reads the list of its tables again when there are new ones
    bob = site.signed_in(BOB)
    bob.post(f"/messages/{held[0].id}.0/delete", {"form_token": bob.form_token()})
    browser.post("/messages", form | {"mail": " ".join(f"{each.id}.0" for each in held[:acted])})
    with statements.of() as queries:
        page = browser.get(f"/{path}")
    assert "Not released: the message was deleted on" in page.text and "By bob@example.org" in page.text
    assert len(queries) <= FEW, "\n".join(queries)


def test_results_above_a_list_of_a_large_mailbox_take_few_statements(
    statements: Statements, monkeypatch: pytest.MonkeyPatch, make_parts: Callable[..., Parts], tmp_path: Path
) -> None:
    """A batch that could not act on a message, and filters that find little among the newest messages."""
    monkeypatch.setattr(search, "NEWEST_MAX", 10)
    monkeypatch.setattr(inbox, "NEWEST_MAX", 10)
    (tmp_path / "virtual").write_text(f"{INFO} {ALICE}, {BOB}\n")
    site = Site(make_parts(people__alias_file=tmp_path / "virtual"))
    held = [site.hold(subject=f"Offer {number * 7919}", recipients=[INFO]) for number in range(260)]
    browser, bob = site.signed_in(ALICE), site.signed_in(BOB)
    browser.get("/?tier=spam")  # the file store reads the list of its tables again when there are new ones
    for number, path in enumerate((*SEARCHES, *SIMILAR, *NEWER)):
        chosen = held[3 * number : 3 * number + 3]
        bob.post(f"/messages/{chosen[0].id}.0/delete", {"form_token": bob.form_token()})
        form = {"form_token": browser.form_token(), "from": "list", "do": "release"}
        browser.post("/messages", form | {"mail": " ".join(f"{each.id}.0" for each in chosen)})
        with statements.of() as queries:
            page = browser.get(f"/{path.replace('ID', f'{held[0].id}.0')}")
        assert "Not released: the message was deleted on" in page.text
        assert len(queries) <= FEW, "\n".join([path, *queries])


def test_the_page_of_a_job_takes_few_statements(
    statements: Statements, make_parts: Callable[..., Parts], tmp_path: Path
) -> None:
    """While it waits, and afterwards with messages that another reader of a role mailbox has changed."""
    (tmp_path / "virtual").write_text(f"{INFO} {ALICE}, {BOB}\n")
    site = Site(make_parts(people__alias_file=tmp_path / "virtual"))
    held = [site.hold(subject=f"Offer {number * 7919}", recipients=[INFO]) for number in range(60)]
    browser = site.signed_in(ALICE)
    keys = " ".join(f"{each.id}.0" for each in held)
    form = {"form_token": browser.form_token(), "from": "list", "do": "delete", "mail": keys}
    job = browser.post("/messages", form).header("Location") or ""
    assert "/jobs/" in job
    for each in held[:9]:
        site.parts.actions.delete(each.id, 0, BY_LINK)
    for said in ("Waiting to start", "Not changed, already deleted: 9"):
        browser = site.signed_in(ALICE)
        with statements.of() as queries:
            assert said in browser.get(job).text
        assert len(queries) <= FEW, "\n".join(queries)
        run_batches(site.parts, site.now)


@pytest.mark.parametrize("view", MESSAGES)
def test_pages_of_a_message_take_few_statements(site: Site, statements: Statements, view: str) -> None:
    held = site.hold(
        Tier.SPAM if view in ("html", "formatted") else Tier.SUSPICIOUS, data=MIXED, recipients=(ALICE, BOB)
    )
    browser = site.signed_in(ALICE)
    browser.post(f"/messages/{held.id}/delete", {"form_token": browser.form_token()})
    browser.post(f"/messages/{held.id}/restore", {"form_token": browser.form_token()})
    browser = site.signed_in(ALICE)
    with statements.of() as queries:
        assert browser.get(f"/messages/{held.id}/{view}").status == 200
    assert len(queries) <= FEW, "\n".join(queries)


@pytest.mark.parametrize("act", ["again", "spam", "question", "withdraw", "release", "delete", "delete-block"])
def test_the_page_of_a_message_after_an_act_takes_few_statements(
    statements: Statements, make_parts: Callable[..., Parts], tmp_path: Path, act: str
) -> None:
    """Also if another reader of a role mailbox, whose page names them, was faster."""
    (tmp_path / "virtual").write_text(f"{INFO} {ALICE}, {BOB}\n")
    with SmtpServer() as relay:
        settings = {"relay__url": relay.url, "mail__url": relay.url, "mail__admin_address": "admin@example.org"}
        site = Site(make_parts(people__alias_file=tmp_path / "virtual", **settings))
        tier = Tier.DANGEROUS if act == "withdraw" else Tier.SPAM
        starts = {INFO: Start(State.PASSED, rule("example.net").as_actor)} if act == "again" else {}
        # A near-duplicate, which the page counts unless it shows a result.
        held, _ = (site.hold(tier, recipients=[INFO], starts=starts, data=MIXED) for _ in range(2))
        browser, bob, path = site.signed_in(ALICE), site.signed_in(BOB), f"/messages/{held.id}.0/"
        form = {"form_token": browser.form_token(), "from": "message", "question": "Is it real?"}
        if act == "withdraw":
            browser.post(path + "ask", form)
        site.pass_time(minutes=2)
        browser = site.signed_in(ALICE)
        for reader in (browser, bob):
            answer = reader.post(path + act, {**form, "form_token": reader.form_token()})
            with statements.of() as queries:
                assert reader.follow(answer, path).status == 200
            assert len(queries) <= FEW, "\n".join(queries)


def test_the_page_of_a_mailed_link_to_sign_in_takes_few_statements(site: Site, statements: Statements) -> None:
    browser = site.browser()
    link = request_sign_in(site, browser).link
    for opened in (browser, site.browser(), site.signed_in(ALICE)):
        with statements.of() as queries:
            assert opened.get(link).status == 200
        assert len(queries) <= FEW, "\n".join(queries)


@pytest.mark.parametrize(
    "action",
    [
        *(Action.SHOW, Action.RELEASE, Action.DELETE, Action.PREFERENCES, Action.SEVERAL, Action.OPEN),
        Action.FORWARDED,
    ],
)
def test_pages_of_links_take_few_statements(site: Site, statements: Statements, action: Action) -> None:
    """One of them records that the link was opened and reads how often, for the rate limit."""
    held = [site.hold(subject=f"Offer {number * 7919}") for number in range(10)]
    with digesting(site.store, ALICE, site.now, 50, ignore_schedule=True) as digest:
        pass
    of = digest.id if action in (Action.SEVERAL, Action.PREFERENCES, Action.OPEN, Action.FORWARDED) else held[0].id
    with statements.of() as queries:
        assert site.browser().get(site.parts.links.url(action, of, 0, digest.issued_at)).status == 200
    assert len(queries) <= FEW, "\n".join(queries)


@pytest.fixture
def shared(statements: Statements, make_parts: Callable[..., Parts], tmp_path: Path) -> Iterator[Site]:
    """A site with a role mailbox, whose mail server refuses all messages."""
    (tmp_path / "virtual").write_text(f"{INFO} {ALICE}, {BOB}\n")
    with SmtpServer(script={"MAIL": lambda _: "552 5.3.4 too large"}) as server:
        yield Site(make_parts(people__alias_file=tmp_path / "virtual", relay__url=server.url))


def hold_every_second_to_check(site: Site, count: int) -> list[Held]:
    tiers = (Tier.SPAM, Tier.SUSPICIOUS)
    return [site.hold(tiers[n % 2], subject=f"Offer {n * 7919}", recipients=[INFO]) for n in range(count)]


def link_to_several(site: Site) -> str:
    """Send a digest to Alice and return its link to several messages."""
    schedule_news(site.parts, site.now)
    reader = site.parts.people.reader(ALICE)
    with digesting(site.store, reader, site.now, 50, ignore_schedule=True) as digest:
        pass
    return site.parts.links.url(Action.SEVERAL, digest.id, 0, digest.issued_at)


@pytest.mark.parametrize("do", ["release", "delete"])
def test_the_result_of_several_by_a_link_takes_few_statements(shared: Site, statements: Statements, do: str) -> None:
    """Of messages that another reader has deleted, that the mail server refused, and that are left."""
    held = hold_every_second_to_check(shared, 20)
    link, bob = link_to_several(shared), shared.signed_in(BOB)
    for each in held[:4]:
        bob.post(f"/messages/{each.id}.0/delete", {"form_token": bob.form_token()})
    browser, form = shared.browser(), {"do": do, "mail": " ".join(f"{each.id}.0" for each in held[:10])}
    answer = browser.post(link, form | {"suspicious": "leave"})
    with statements.of() as queries:
        page = browser.follow(answer, link).text
    assert "Not changed, already deleted: 4" in page and "By bob@example.org" in page
    released = ("Not released, check these first: 3", "Release failed: 3", "too large")
    for text in released if do == "release" else ("Deleted: 6",):
        assert text in page
    assert len(queries) <= FEW, "\n".join(queries)


def test_the_page_of_several_that_are_not_finished_takes_few_statements(
    shared: Site, statements: Statements, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, link, browser = hold_every_second_to_check(shared, 20), link_to_several(shared), shared.browser()
    monkeypatch.setattr("portal.web.bulk._MAX_SECONDS", -1)
    answer = browser.post(link, {"do": "delete", "mail": " ".join(f"{each.id}.0" for each in held)})
    assert "rest=1" in (answer.header("Location") or "")
    with statements.of() as queries:
        assert "The rest follows shortly" in browser.follow(answer, link).text
    assert len(queries) <= FEW, "\n".join(queries)


@pytest.mark.parametrize("by", ["list", "list, all that match", "link"])
@pytest.mark.parametrize("count", [10, 60])
def test_the_check_before_a_release_takes_few_statements(
    shared: Site, statements: Statements, by: str, count: int
) -> None:
    """The page is the answer to a form. It shows up to 50 messages, some of which the mail server has refused."""
    held = hold_every_second_to_check(shared, count)
    link = link_to_several(shared)
    with suppress(RelayRefused):
        shared.parts.actions.release(held[9].id, 0, BY_LINK)
    browser, form = shared.signed_in(ALICE), {"do": "release", "mail": " ".join(f"{each.id}.0" for each in held)}
    form |= {"form_token": browser.form_token(), "from": "list"}
    if "all" in by:
        form |= {"all": f"{held[-1].id}.0", "shown": form["mail"]}
    with statements.of() as queries:
        page = browser.post(link if by == "link" else "/messages", form).text
    assert f"Suspicious messages: {25 if by == 'link' and count == 60 else count // 2}" in page
    assert f"<bdi>{INFO}</bdi>" in page
    assert len(queries) <= FEW, "\n".join(queries)


@pytest.mark.parametrize("by", ["ticks", "all that match"])
@pytest.mark.parametrize("effect", ["allow", "block"])
def test_the_senders_of_selected_messages_take_few_statements(
    shared: Site, statements: Statements, effect: str, by: str
) -> None:
    """Of the reader's own address and of a role mailbox, with rules of all of them."""
    shared.store.rules.add([rule("b.example"), rule("c.example", "allow")], shared.now)
    held = [
        shared.hold(header_from=f"<a@n{number % 30}.example.net>", recipients=[ALICE, INFO]) for number in range(60)
    ]
    browser = shared.signed_in(ALICE)
    form = {"form_token": browser.form_token(), "from": "list", "do": effect}
    form |= {"mail": " ".join(f"{each.id}.0" for each in held)}
    if by != "ticks":
        form |= {"all": f"{held[-1].id}.1", "shown": form["mail"]}
    with statements.of() as queries:
        page = browser.post("/messages", form).text
    assert page.count("<option") + page.count('type="radio"') > 20
    assert len(queries) <= FEW, "\n".join(queries)


@pytest.mark.parametrize("by", ["", MALLORY], ids=["shell", "staff"])
@pytest.mark.parametrize("jobs", [1, 3])
def test_previews_of_a_digest_take_few_statements_while_jobs_hold_messages_back(
    site: Site, statements: Statements, by: str, jobs: int
) -> None:
    site.store.staff.give(Grant(MALLORY, Role.ADMINISTRATOR, EVERYWHERE, site.now, BY_OPERATOR))
    for number in range(9):
        symbols = (Symbol("BAYES_SPAM", 5.0), Symbol(f"S{number % 3}", 1.0))
        site.hold(subject=f"Offer {'abcdefghi'[number]}.", symbols=symbols)
    for number in range(jobs - 1, -1, -1):
        mass = MassAct(Act.DELETE, Filter(symbols=(f"s{number}",)), "", 3, "Reason", by, hold_back=True)
        masses(site).start(mass, BY_STAFF if by else BY_SHELL, uuid4())
    browser = site.signed_in(ALICE)
    left = [] if jobs == 3 else ["b", "c", "e", "f", "h", "i"]
    for path in ("/preferences/digest?as=text", "/preferences/digest/html"):
        with statements.of() as queries:
            page = browser.get(path).text
        assert sorted(set(re.findall(r"Offer (\w)\.", page))) == left
        assert len(queries) <= FEW, "\n".join(queries)


CONSOLE = (
    *("", "?recipient=alice@example.org", "?recipient=nobody@example.org", "jobs/", "jobs/JOB/", "requests"),
    *("messages/ID/", "messages/ID/similar", "messages/ID/next", "messages/ID/download", "domains", "staff", "tokens"),
    *(f"messages/ID/{view}" for view in ("text", "headers", "source", "formatted", "html")),
    *("recipients/", "recipients/?address=ali", f"recipients/?address={ALICE}", f"recipients/?address={INFO}"),
    *("recipients/list", "statistics/days.svg", "statistics/tiers.svg", "second-factor", "audit"),
    f"jobs/new?act=delete&recipient={ALICE}",
)
# Searches for symbols look their numbers up, and ask which messages are not indexed yet, and which tables or partitions
# there are. Before a person is forgotten, all tables are read that have something of them.
MORE = {
    "?symbol=BAYES_SPAM": 9,
    "?symbol=R_DKIM_NA": 9,
    "?by=symbol": 8,
    "?by=symbol&symbol=BAYES_SPAM": 9,
    "jobs/new?act=release&symbol=BAYES_SPAM": 8,
    f"recipients/forget?address={ALICE}": 7,
    "statistics": 6,  # the domains are a statement of their own
}


@pytest.mark.parametrize(("path", "most"), [*((path, FEW) for path in CONSOLE), *MORE.items()])
def test_pages_of_the_console_take_few_statements(
    statements: Statements,
    make_parts: Callable[..., Parts],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    most: int,
) -> None:
    """A list of several pages is counted as well; one that is a single page need not be.

    After a midnight (UTC) since the tests began, there is one partition more.
    """
    monkeypatch.setattr("portal.web.console._COUNT_SECONDS", 600)
    (tmp_path / "virtual").write_text(f"{INFO} {ALICE}, {BOB}\n")
    site = Site(make_parts(people__alias_file=tmp_path / "virtual"))
    for number in range(60):
        symbols = (Symbol("BAYES_SPAM", 5.0), *([Symbol("R_DKIM_NA", 0.0)] if number < 10 else []))
        recipients = (ALICE, BOB) if number % 2 else (INFO,)
        held = site.hold(subject=f"Offer {number * 7919}", data=MIXED, symbols=symbols, recipients=recipients)
    site.store.rules.add([rule("b.example"), rule("c.example", "allow")], site.now)
    site.store.staff.give(Grant(BOB, Role.ADMINISTRATOR, EVERYWHERE, site.now, BY_OPERATOR))
    browser = site.signed_in(BOB)
    browser.get("/admin/?symbol=BAYES_SPAM")  # which indexes them, and counts the open requests
    mass = MassAct(Act.DELETE, ANY, "symbol=BAYES_SPAM", 60, "Test", BOB)
    job = site.store.jobs.add(KIND, mass.to_json(), BY_OPERATOR, site.now)
    with statements.of() as queries:
        page = browser.get(f"/admin/{path.replace('ID', f'{held.id}.0').replace('JOB', str(job))}")
    assert page.status in (200, 303), page.text
    assert len(queries) <= most, "\n".join(queries)
