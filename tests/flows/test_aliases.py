"""The whole path where an address is not a person: aliases, role mailboxes, changes of their readers, permissions."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from email import message_from_bytes
from email.policy import default
from pathlib import Path

import pytest
from click.testing import CliRunner

from digest import housekeeping, news, run
from digest.__main__ import main as digest_main
from digest.outcomes import Summary
from portal.model.links import Action
from portal.model.message import Actor, ActorKind, DeliveryId, EventKind, State
from portal.stores.records import Held
from tests.builders import ALICE, BOB, MALLORY
from tests.conftest import MakeParts
from tests.smtp_server import SmtpServer
from tests.statements import Statements
from tests.web.test_exporter import post
from tests.web_client import Browser, Site

INFO, SALES, SECRET = "info@example.org", "sales@example.org", "bcc@example.org"
VIRTUAL = f"{SALES} {ALICE}\n{INFO} {ALICE}, {BOB}\n"
MAIL = b"From: Promo <promo@example.net>\r\nTo: info@example.org\r\nSubject: Offer %b\r\n\r\nBuy %d\r\n"


@pytest.fixture
def smtp() -> Iterator[SmtpServer]:
    with SmtpServer() as server:
        yield server
        assert server.violations == []


@pytest.fixture
def virtual(tmp_path: Path) -> Path:
    path = tmp_path / "virtual"
    write(path, VIRTUAL)
    return path


@pytest.fixture
def site(make_parts: MakeParts, smtp: SmtpServer, virtual: Path) -> Site:
    return Site(
        make_parts(relay__url=smtp.url, mail__url=smtp.url, people__alias_file=virtual, people__recipient_delimiter="+")
    )


@pytest.fixture
def change(site: Site, virtual: Path) -> Callable[[str], None]:
    """``change(text)`` writes another alias file and makes the site read it."""

    def change(text: str) -> None:
        write(virtual, text)
        site.parts.people._checked_at = float("-inf")

    return change


def write(path: Path, text: str) -> None:
    """Write a file with an older mtime: a file written just now might be incomplete, so it is not read yet."""
    path.write_text(text, "utf-8")
    moment = time.time() - 60
    os.utime(path, (moment, moment))


def held(site: Site, *recipients: str, number: int = 1) -> Held:
    word = bytes(b"abcdefghij"[int(digit)] for digit in str(number))  # subjects with other numbers are near-duplicates
    answer = post(
        site,
        MAIL % (word, number),
        headers={"X-Rspamd-rcpt": json.dumps(recipients), "X-Rspamd-subject": f"Offer {word.decode()}"},
    ).json
    assert answer["status"] == "held", answer
    return Held(site.store.messages.find(answer["id"])[0].id, False)


def send_digests(site: Site) -> Summary:
    """Do the work of the digest process until the next digests are sent."""
    news.schedule_news(site.parts, site.now)
    site.now += timedelta(days=1)
    summary = run.send_due(site.parts, site.now)
    assert not summary.failed
    return summary


def digests(smtp: SmtpServer) -> dict[str, str]:
    """Return the text parts of the digests by recipient, who must have got one each."""
    found: dict[str, str] = {}
    for mail in smtp.mails:
        (to,) = mail.recipients
        assert to not in found, f"{to} got two digests"
        part = message_from_bytes(mail.data, policy=default).get_body(("plain",))
        assert part is not None
        found[to] = part.get_content().replace("\r\n", "\n")
    smtp.mails.clear()
    return found


def link(text: str, word: str) -> str:
    found = re.search(rf"^ *{word}.*\n *(http\S+) *$", text, re.MULTILINE)
    assert found, text
    return found[1]


def test_a_role_mailbox_of_two(site: Site, smtp: SmtpServer) -> None:
    mail = held(site, INFO, SECRET)
    send_digests(site)
    texts = digests(smtp)
    assert set(texts) == {ALICE, BOB, SECRET}
    assert f"Other messages – {INFO} (1)" in texts[ALICE]
    assert f"Other messages – {INFO} (1)" in texts[BOB]
    assert SECRET not in texts[ALICE] + texts[BOB]
    assert not any(address in texts[SECRET] for address in (ALICE, BOB, INFO))

    browser = site.browser()
    browser.post(link(texts[ALICE], "Release"), {"pressed": "1"})
    assert [sent.recipients for sent in smtp.mails] == [[INFO]]  # to the role's own address alone
    smtp.mails.clear()
    (act, *_) = [event for event in site.history(mail, 0) if event.kind == "releasing"]
    assert (act.actor.who, act.actor.via) == (f"recipient:{ALICE}", "link")

    page = site.browser().get(link(texts[BOB], "Release")).text
    assert "Message released" in page
    assert f"By {ALICE}" in page
    assert INFO in page
    assert SECRET not in page
    site.browser().post(link(texts[BOB], "Release"), {"pressed": "1"})
    assert smtp.mails == []

    (_, id) = ("", f"{mail.id}.0")
    for person in (ALICE, BOB):
        page = site.signed_in(person).get(f"/messages/{id}/").text
        by = "through a link in a digest" if person == ALICE else f"by \u2068{ALICE}\u2069"
        assert f"Release started {by}." in page
        assert f"By {ALICE}" in site.signed_in(person).get("/?state=released").text
        assert SECRET not in page
    page = site.signed_in(SECRET).get("/?state=held").text
    assert "Offer" in page
    assert not any(address in page for address in (ALICE, BOB, INFO))
    assert site.state(mail, 1) is State.HELD
    send_digests(site)
    assert digests(smtp) == {}


def test_one_digest_for_a_person_with_several_names(site: Site, smtp: SmtpServer) -> None:
    for number, recipient in enumerate((ALICE, SALES, INFO, "Alice+shop@example.org"), 1):
        held(site, recipient, number=number)
    send_digests(site)
    texts = digests(smtp)
    assert set(texts) == {ALICE, BOB}
    assert texts[ALICE].startswith("Mail quarantine") or "4 messages" in texts[ALICE]
    assert f"Other messages – {SALES} (1)" in texts[ALICE]
    assert f"Other messages – {INFO} (1)" in texts[ALICE]
    rows = site.signed_in(ALICE).get("/").text
    assert rows.count('class="mail"') == 4


def test_a_release_for_an_extension_goes_to_the_address_with_it(site: Site, smtp: SmtpServer) -> None:
    held(site, "Alice+shop@example.org")
    send_digests(site)
    site.browser().post(link(digests(smtp)[ALICE], "Release"), {"pressed": "1"})
    assert [sent.recipients for sent in smtp.mails] == [["Alice+shop@example.org"]]


def test_several_of_a_digest_are_released_to_their_own_addresses_by_name(site: Site, smtp: SmtpServer) -> None:
    mails = [held(site, recipient, number=n) for n, recipient in enumerate((ALICE, SALES, INFO))]
    send_digests(site)
    several = link(digests(smtp)[ALICE], "Release or delete several messages")
    browser = site.browser()
    names = re.findall(r'name="mail" value="([^"]+)"', browser.get(several).text)
    assert len(names) == 3
    for name in names:
        browser.post(several, {"do": "release", "mail": name})
    assert sorted(sent.recipients[0] for sent in smtp.mails) == [ALICE, INFO, SALES]
    actors = [site.history(mail)[1].actor.who for mail in mails]
    assert actors == ["recipient", f"recipient:{ALICE}", f"recipient:{ALICE}"]


@pytest.mark.parametrize("recipient", [ALICE, INFO])
def test_a_page_of_many_mails_takes_few_queries(
    make_parts: MakeParts, smtp: SmtpServer, virtual: Path, monkeypatch: pytest.MonkeyPatch, recipient: str
) -> None:
    statements = Statements(monkeypatch)
    site = Site(make_parts(relay__url=smtp.url, mail__url=smtp.url, people__alias_file=virtual))
    mails = [held(site, recipient, number=n) for n in range(30)]
    for mail in mails[:27]:
        site.store.deliveries.move(
            DeliveryId(mail.id, 0),
            State.DELETED,
            {State.HELD},
            Actor(ActorKind.RECIPIENT, BOB),
            site.now,
            kind=EventKind.DELETED,
        )
    browser = site.signed_in(ALICE)
    undo = {"form_token": browser.form_token(), "from": "list", "do": "delete", "mail": f"{mails[0].id}.0"}
    for done, by_bob, at_most in ((False, 25, 5), (True, 26, 8)):
        if done:
            browser.post("/messages", undo)
        with statements.of() as queries:
            page = browser.get("/?state=deleted").text
        assert page.count('class="mail"') == 25
        assert page.count(f"By {BOB}") == (0 if recipient == ALICE else by_bob)
        assert 3 <= len(queries) <= at_most, queries

    for mail in mails:
        site.store.deliveries.move(
            DeliveryId(mail.id, 0),
            State.HELD,
            set(State),
            Actor(ActorKind.OPERATOR, "root"),
            site.now,
            kind=EventKind.RESTORED,
        )
    send_digests(site)
    several = link(digests(smtp)[ALICE], "Release or delete several messages")
    browser.get(several)
    with statements.of() as queries:
        page = browser.get(several).text
    assert page.count('name="mail"') == 30
    assert 4 <= len(queries) <= 12, queries


# ---- permissions


def test_another_readers_link_leads_a_reader_of_the_role_to_that_message(site: Site, smtp: SmtpServer) -> None:
    mail = held(site, INFO)
    show = site.parts.links.url(Action.SHOW, mail.id, 0, site.now, ALICE).removeprefix("http://127.0.0.1:8080")
    page = f"/quarantine/messages/{mail.id}.0/"
    assert site.signed_in(BOB).get(show).header("Location") == page
    assert site.signed_in(MALLORY).get(show).status == 200
    for who, there in ((BOB, page), (MALLORY, "/quarantine/?link=other")):
        browser = site.browser()
        assert browser.get(show).status == 200
        browser.post("/sign-in", {"address": who})
        with site.store.outbox.sending(site.now) as sent:
            assert sent
            link = re.search(rb"/quarantine/sign-in/[\w-]+/", sent.mail.replace(b"=\r\n", b""))
        assert link
        answer = browser.post(link[0].decode(), {"pressed": "1"})
        assert answer.header("Location") == there
        assert browser.follow(answer, "/").status == 200


def test_a_person_who_leaves_a_role_can_do_nothing_any_more(
    site: Site, smtp: SmtpServer, change: Callable[[str], None]
) -> None:
    mail, own = held(site, INFO), held(site, BOB, number=2)
    send_digests(site)
    texts = digests(smtp)
    several = link(texts[BOB], "Release or delete several messages")
    assert f"{mail.id}.0" in site.browser().get(several).text
    change(f"{INFO} {ALICE}, carol@example.org\n")
    links = re.findall(r"http\S+/link/\S+", texts[BOB])
    gone = [url for url in links if len(url) > len(site.link(Action.RELEASE, own)) + 20 + len("http://")]
    assert len(gone) == 2  # Release, Show
    for url in gone:
        assert site.browser().get(url).status == 404
        assert site.browser().post(url, {"pressed": "1"}).status == 404
    assert f"{mail.id}.0" not in site.browser().get(several).text
    site.browser().post(several, {"do": "delete", "mail": f"{mail.id}.0"})
    bob = site.signed_in(BOB)
    for path in (f"/messages/{mail.id}/", f"/messages/{mail.id}.0/"):
        assert bob.get(path).status == 404
    for name in (str(mail.id), f"{mail.id}.0"):
        form = {"form_token": bob.form_token()}
        assert bob.post(f"/messages/{name}/release", form).status == 404
    assert str(mail.id) not in bob.get("/").text
    assert (site.state(mail), smtp.mails) == (State.HELD, [])
    # Their own links still work, and so do the other reader's.
    assert bob.get(f"/messages/{own.id}/").status == 200
    assert site.browser().get(link(texts[ALICE], "Release")).status == 200
    # A new reader is notified of deliveries that were not announced to all readers; nobody is notified twice.
    send_digests(site)
    send_digests(site)
    assert set(digests(smtp)) == set()


def test_a_person_who_joins_a_role_is_notified_of_its_held_deliveries(
    site: Site, smtp: SmtpServer, change: Callable[[str], None]
) -> None:
    site.store.recipients.set_digests_stopped(BOB, site.now)
    held(site, INFO)
    send_digests(site)
    assert set(digests(smtp)) == {ALICE}
    change(f"{INFO} {ALICE}, carol@example.org\n")
    send_digests(site)
    assert set(digests(smtp)) == {"carol@example.org"}
    send_digests(site)
    assert digests(smtp) == {}


@pytest.mark.parametrize("stranger", [MALLORY, INFO, SALES, "alice+x@example.org", None])
def test_strangers_and_other_names_see_nothing(site: Site, smtp: SmtpServer, stranger: str | None) -> None:
    mail = held(site, INFO, SALES)
    browser: Browser = site.signed_in(stranger) if stranger else site.browser()
    for path in (f"/messages/{mail.id}/", f"/messages/{mail.id}.0/", f"/messages/{mail.id}.1/", "/"):
        answer = browser.get(path)
        assert answer.status in (303, 404) or "Offer" not in answer.text
    for name in (mail.id, f"{mail.id}.0"):
        assert browser.post(f"/messages/{name}/release").status in (303, 403, 404)
    assert site.state(mail) is State.HELD
    assert smtp.mails == []


def test_a_link_names_its_reader_and_nobody_else(site: Site) -> None:
    mail, own = held(site, INFO), held(site, ALICE, number=2)
    links = site.parts.links

    def status(token: str) -> int:
        return site.browser().get(f"/link/{token}/").status

    assert status(links.token(Action.RELEASE, mail.id, 0, site.now, ALICE)) == 200
    assert status(links.token(Action.RELEASE, mail.id, 0, site.now, BOB)) == 200
    for reader in ("", MALLORY, INFO):
        assert status(links.token(Action.RELEASE, mail.id, 0, site.now, reader)) == 404
    assert status(links.token(Action.RELEASE, own.id, 0, site.now)) == 200
    for reader in (ALICE, BOB, MALLORY):
        assert status(links.token(Action.RELEASE, own.id, 0, site.now, reader)) == 404
    token = links.token(Action.RELEASE, mail.id, 0, site.now, ALICE)
    for place in range(0, 42, 3):
        changed = token[:place] + ("A" if token[place] != "A" else "B") + token[place + 1 :]
        assert status(changed) == 404


def test_revoking_ones_links_leaves_the_others(site: Site, smtp: SmtpServer) -> None:
    held(site, INFO)
    send_digests(site)
    texts = digests(smtp)
    site.pass_time(minutes=1)
    assert site.browser().post(link(texts[ALICE], "Revoke"), {"pressed": "1"}).status == 200
    assert site.browser().get(link(texts[ALICE], "Release")).status == 404
    assert site.browser().get(link(texts[BOB], "Release")).status == 200


def test_an_address_that_becomes_an_alias_is_no_longer_a_person(
    site: Site, smtp: SmtpServer, change: Callable[[str], None]
) -> None:
    mail = held(site, BOB)
    send_digests(site)
    texts = digests(smtp)
    bob = site.signed_in(BOB)
    bob.post(f"/messages/{mail.id}/delete", {"form_token": bob.form_token()})
    site.store.recipients.set_digests_stopped(BOB, site.now)
    change(f"{BOB} {ALICE}\n")
    assert bob.get("/").status == 303
    for word in ("Release", "Show", "Release or delete several messages", "Change or stop"):
        assert site.browser().get(link(texts[BOB], word)).status == 404
    page = site.signed_in(ALICE).get(f"/messages/{mail.id}/").text
    assert f"Deleted by \u2068{BOB}\u2069." in page
    assert "by you" not in page
    held(site, BOB, number=2)
    send_digests(site)
    assert set(digests(smtp)) == {ALICE}


def test_an_opt_out_survives_being_an_alias_for_a_while(
    site: Site, smtp: SmtpServer, change: Callable[[str], None]
) -> None:
    since = site.now
    site.store.recipients.set_digests_stopped(BOB, since)
    for number in (1, 3):
        change(f"{BOB} {ALICE}\n")
        held(site, BOB, number=number)
        send_digests(site)
        assert set(digests(smtp)) == {ALICE}
        change(f"{SALES} {ALICE}\n")
        held(site, BOB, number=number + 1)
        send_digests(site)
        assert not smtp.mails
        assert site.store.recipients.get(BOB).stopped_at == since
    site.store.recipients.set_digests_stopped(BOB, None)
    change(f"{SALES} {ALICE}\n# another file\n")
    send_digests(site)
    assert set(digests(smtp)) == {BOB}
    change(f"{BOB} {ALICE}\n")
    send_digests(site)
    change(f"{SALES} {ALICE}\n")
    held(site, BOB, number=5)
    send_digests(site)
    assert set(digests(smtp)) == {BOB}


def test_signing_in_as_an_alias_signs_its_person_in_and_as_a_role_nobody(site: Site, smtp: SmtpServer) -> None:
    for address, to in ((SALES, [[ALICE]]), ("alice+x@example.org", [[ALICE]]), (INFO, [])):
        assert site.browser().post("/sign-in", {"address": address}).status == 303
        housekeeping.send_queued(site.parts, site.now)
        assert [mail.recipients for mail in smtp.mails] == to
        smtp.mails.clear()
        site.pass_time(minutes=2)


# ---- the process


def test_a_mailbox_whose_mail_others_also_read(site: Site, smtp: SmtpServer, change: Callable[[str], None]) -> None:
    change(f"{INFO} {INFO}, {BOB}\n")
    held(site, INFO)
    send_digests(site)
    texts = digests(smtp)
    assert set(texts) == {INFO, BOB}
    site.browser().post(link(texts[INFO], "Release"), {"pressed": "1"})
    assert f"By {INFO}" in site.browser().get(link(texts[BOB], "Release")).text
    smtp.mails.clear()
    # Its own news mark is already set, so later mail sets none for the others; the hourly search finds that mail.
    held(site, INFO, number=2)
    news.schedule_news(site.parts, site.now)
    held(site, INFO, number=3)
    news.find_news(site.parts, site.now)
    send_digests(site)
    texts = digests(smtp)
    assert set(texts) == {INFO, BOB}
    assert "2 messages" in texts[BOB]


def test_news_from_before_the_alias_file_go_to_the_readers(
    make_parts: MakeParts, site: Site, smtp: SmtpServer, change: Callable[[str], None]
) -> None:
    change("# nobody yet\n")
    held(site, SALES)
    news.schedule_news(site.parts, site.now)
    assert site.store.recipients.get(SALES).next_digest_at is not None
    change(VIRTUAL)
    send_digests(site)
    assert set(digests(smtp)) == {ALICE}


def test_the_last_valid_alias_file_is_used_after_it_is_lost(
    site: Site, make_parts: MakeParts, smtp: SmtpServer, virtual: Path
) -> None:
    held(site, INFO)
    send_digests(site)
    assert set(digests(smtp)) == {ALICE, BOB}
    virtual.unlink()
    later = Site(make_parts(relay__url=smtp.url, mail__url=smtp.url, people__alias_file=virtual))
    later.now = site.now
    held(later, INFO, number=2)
    send_digests(later)
    assert set(digests(smtp)) == {ALICE, BOB}
    assert later.parts.people.problem()


def test_once_names_the_reader_of_each_digest(
    site: Site, smtp: SmtpServer, virtual: Path, store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held(site, INFO)
    for name, value in {
        "CONFIG": "/dev/null", "STORE__URL": store_url, "LOCAL_DOMAINS": "example.org", "MAIL__URL": smtp.url,
        "MAIL__FROM_ADDRESS": "quarantine@example.org", "LINKS__KEYS_FILE": str(tmp_path / "links.keys"),
        "PEOPLE__ALIAS_FILE": str(virtual),
    }.items():  # fmt: skip
        monkeypatch.setenv(f"QUARANTINE_{name}", value)
    dry = CliRunner().invoke(digest_main, ["once", "--recipient", INFO, "--dry-run"])
    assert f"{INFO} is read by {ALICE}, {BOB}" in dry.output
    assert smtp.mails == []
    done = CliRunner().invoke(digest_main, ["once", "--recipient", INFO])
    assert done.exit_code == 0, done.output
    assert set(digests(smtp)) == {ALICE, BOB}
    again = CliRunner().invoke(digest_main, ["once", "--recipient", SALES, "--resend"])
    assert f"{SALES} is read by {ALICE}" in again.output
    assert set(digests(smtp)) == {ALICE}
