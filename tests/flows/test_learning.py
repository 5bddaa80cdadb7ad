"""Training of Rspamd by what people do with held messages, on both stores: votes, jobs, alarms, undo."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from digest import housekeeping
from portal.batches.parallel import retry_due
from portal.cli import rspamd_checks
from portal.model.errors import StoreUnavailable
from portal.model.links import Action
from portal.model.message import Actor, ActorKind, EventKind, Scan, ScanOutcome, State, Symbol, Tier
from portal.policy.learning import VOTES_PER_DAY
from portal.rspamd import Rspamd
from portal.stores.records import Held
from tests.builders import ALICE, BOB, BY_LINK, BY_OPERATOR, MALLORY, hold, mail
from tests.conftest import MakeParts
from tests.rspamd_server import RspamdServer
from tests.smtp_server import SmtpServer
from tests.web.test_exporter import post
from tests.web_client import Site

ADMIN = "postmaster@example.org"
PEOPLE = (ALICE, BOB, "carol@example.org", "dave@example.org", "erin@example.org")
SIGNED = (Symbol("DMARC_POLICY_ALLOW", -0.5, ("example.net", "none")), Symbol("BAYES_SPAM", 5.1))
# For what does not depend on the store.
ON_FILES = pytest.mark.parametrize("store_url", ["files"], indirect=True)
MakeSite = Callable[..., Site]


@pytest.fixture
def smtp() -> Iterator[SmtpServer]:
    with SmtpServer() as server:
        yield server


@pytest.fixture
def rspamd() -> Iterator[RspamdServer]:
    with RspamdServer() as server:
        yield server


@pytest.fixture
def make_site(make_parts: MakeParts, smtp: SmtpServer, rspamd: RspamdServer) -> MakeSite:
    def make(learn: str = "agreed", **changes: object) -> Site:
        settings = {"relay__url": smtp.url, "mail__url": smtp.url, "mail__admin_address": ADMIN}
        settings |= {"rspamd__url": rspamd.url, "rspamd__scan_groups": "", "rspamd__learn": learn}
        return Site(make_parts(**settings | changes))

    return make


def newsletter(site: Site, recipient: str, number: int = 1, data: bytes | None = None, **more: Any) -> Held:
    """Hold one recipient's copy of a newsletter, which has bytes and a number of its own."""
    values = {"subject": f"Offer no. {number} of the week", "symbols": SIGNED, "from_count": 1, **more}
    return hold(site.store, data or mail(), [recipient], **values)


def release(site: Site, *messages: Held, actor: Actor = BY_LINK) -> None:
    for held in messages:
        site.parts.actions.release(held.id, 0, actor, operator=actor.kind is ActorKind.OPERATOR)


def confirm(site: Site, *messages: Held, actor: Actor = BY_LINK) -> None:
    for held in messages:
        site.parts.actions.confirm_spam(held.id, 0, actor)


def learn(site: Site) -> None:
    housekeeping.learn_waiting(site.parts, site.now)


def posted(rspamd: RspamdServer) -> list[str]:
    return [path for path, _, _ in rspamd.learned]


def learned(site: Site, held: Held) -> list[tuple[EventKind, str]]:
    kinds = (EventKind.LEARNED_HAM, EventKind.LEARNED_SPAM)
    return [(event.kind, event.detail) for event in site.history(held) if event.kind in kinds]


def alarms(site: Site, smtp: SmtpServer) -> list[str]:
    housekeeping.send_queued(site.parts, site.now)
    return [m.data.decode() for m in smtp.mails if m.recipients == [ADMIN]]


# ---- whose decisions count


@pytest.mark.parametrize("act", [release, confirm])
def test_nothing_is_learned_unless_it_is_switched_on(
    make_site: MakeSite, rspamd: RspamdServer, act: Callable[..., None]
) -> None:
    site = make_site("off")
    act(site, *[newsletter(site, person) for person in PEOPLE])
    act(site, newsletter(site, ALICE), actor=BY_OPERATOR)
    assert site.store.stats(site.now).jobs_waiting == 0


@pytest.mark.parametrize("mode", ["operators", "agreed"])
def test_a_decision_of_an_operator_is_learned_at_once(make_site: MakeSite, rspamd: RspamdServer, mode: str) -> None:
    site = make_site(mode, rspamd__password="secret")
    data = mail()
    ham, spam = hold(site.store, data, ["Alice+tag@example.org"]), hold(site.store, mail(), [BOB])
    release(site, ham, actor=BY_OPERATOR)
    confirm(site, spam, actor=BY_OPERATOR)
    assert rspamd.learned == []  # not while somebody waits
    learn(site)
    (path, headers, body), (other, _, _) = sorted(rspamd.learned)
    assert (path, other) == ("/learnham", "/learnspam")
    assert body == data  # the original, not the released copy
    assert ("Rcpt", "Alice+tag@example.org") in headers
    assert ("Password", "secret") in headers
    assert learned(site, ham) == [(EventKind.LEARNED_HAM, "answer 200, by operator:root")]
    assert learned(site, spam) == [(EventKind.LEARNED_SPAM, "answer 200, by operator:root")]
    assert site.state(spam) is State.DELETED
    assert site.store.stats(site.now).jobs_waiting == 0


def test_recipients_do_not_count_if_only_operators_do(make_site: MakeSite, rspamd: RspamdServer) -> None:
    site = make_site("operators")
    release(site, *[newsletter(site, person) for person in PEOPLE])
    learn(site)
    assert rspamd.learned == []


@pytest.mark.parametrize(("act", "path"), [(release, "/learnham"), (confirm, "/learnspam")])
def test_what_three_recipients_agree_on_is_learned(
    make_site: MakeSite, rspamd: RspamdServer, act: Callable[..., None], path: str
) -> None:
    site = make_site()
    copies = [newsletter(site, person, number) for number, person in enumerate(PEOPLE)]
    act(site, *copies[:2])
    learn(site)
    assert rspamd.learned == []
    act(site, copies[2])
    learn(site)
    assert posted(rspamd) == [path] * 3
    assert {dict(headers)["Rcpt"] for _, headers, _ in rspamd.learned} == set(PEOPLE[:3])
    [(_, detail)] = learned(site, copies[0])
    assert all(person in detail for person in PEOPLE[:3])
    act(site, copies[3])
    learn(site)
    assert len(rspamd.learned) == 4  # only the new copy


def test_one_message_to_three_recipients_is_learned_once(make_site: MakeSite, rspamd: RspamdServer) -> None:
    site = make_site()
    held = hold(site.store, mail(), PEOPLE[:3])
    for number in range(3):
        site.parts.actions.release(held.id, number, BY_LINK)
    learn(site)
    assert posted(rspamd) == ["/learnham"]


def test_the_number_of_people_is_a_setting(make_site: MakeSite, rspamd: RspamdServer) -> None:
    site = make_site(rspamd__learn_agreed=2)
    release(site, newsletter(site, ALICE), newsletter(site, BOB))
    learn(site)
    assert len(rspamd.learned) == 2


def test_one_person_is_one_person_under_all_addresses(
    make_site: MakeSite, rspamd: RspamdServer, tmp_path: Path
) -> None:
    aliases = tmp_path / "virtual"
    aliases.write_text(f"sales@example.org {ALICE}\nshop@example.org {ALICE}\nall@example.org {ALICE}, {BOB}\n")
    site = make_site(people__alias_file=aliases)
    own = ("sales@example.org", "shop@example.org", ALICE, "alice+a@example.org", "alice+b@example.org")
    release(site, *[newsletter(site, address) for address in own])
    by_name = Actor(ActorKind.RECIPIENT, ALICE, "portal")
    release(site, newsletter(site, "all@example.org"), actor=by_name)
    learn(site)
    assert rspamd.learned == []


def test_a_mailed_link_counts_like_the_portal(make_site: MakeSite, rspamd: RspamdServer) -> None:
    site = make_site()
    copies = [newsletter(site, person) for person in PEOPLE[:3]]
    site.browser().post(site.link(Action.RELEASE, copies[0]), {"pressed": "1"}, headers={"Sec-Fetch-User": "?1"})
    for person, held in zip(PEOPLE[1:3], copies[1:], strict=True):
        browser = site.signed_in(person)
        browser.post(f"/messages/{held.id}/release", {"form_token": browser.form_token()})
    learn(site)
    assert len(rspamd.learned) == 3


def test_a_release_that_waited_for_the_mail_server_counts(
    make_site: MakeSite, rspamd: RspamdServer, smtp: SmtpServer
) -> None:
    site = make_site(rspamd__learn_agreed=2)
    waiting = newsletter(site, ALICE)
    site.parts.actions.queue_release(waiting.id, 0, BY_LINK)
    release(site, newsletter(site, BOB))
    learn(site)
    assert rspamd.learned == []
    retry_due(site.parts.actions)
    learn(site)
    assert len(rspamd.learned) == 2


# ---- what is never learned


def test_one_objection_is_enough(make_site: MakeSite, rspamd: RspamdServer) -> None:
    site = make_site()
    confirm(site, newsletter(site, MALLORY))
    release(site, *[newsletter(site, person) for person in PEOPLE])
    learn(site)
    assert rspamd.learned == []


def test_an_objection_before_the_job_ran_is_enough(make_site: MakeSite, rspamd: RspamdServer) -> None:
    site = make_site()
    release(site, *[newsletter(site, person) for person in PEOPLE[:3]])
    confirm(site, newsletter(site, MALLORY))
    learn(site)
    assert rspamd.learned == []


def test_a_decision_that_was_taken_back_is_not_learned(make_site: MakeSite, rspamd: RspamdServer) -> None:
    site = make_site()
    held = newsletter(site, ALICE)
    confirm(site, held, actor=BY_OPERATOR)
    site.parts.actions.restore(held.id, 0, BY_OPERATOR)
    learn(site)
    assert rspamd.learned == []


def test_messages_that_are_not_authentic_are_a_campaign_only_with_the_same_bytes(
    make_site: MakeSite, rspamd: RspamdServer
) -> None:
    site = make_site()
    release(site, *[newsletter(site, person, symbols=()) for person in PEOPLE])
    learn(site)
    assert rspamd.learned == []
    data = mail()
    release(site, *[newsletter(site, person, data=data, symbols=()) for person in PEOPLE[:3]])
    learn(site)
    assert len(rspamd.learned) == 3


@ON_FILES
@pytest.mark.parametrize("subject", ["", "12345", "2026-11-28"])
def test_subjects_without_words_make_no_campaign(make_site: MakeSite, rspamd: RspamdServer, subject: str) -> None:
    site = make_site()
    release(site, *[newsletter(site, person, subject=subject) for person in PEOPLE])
    learn(site)
    assert rspamd.learned == []


def test_other_subjects_and_senders_are_other_campaigns(make_site: MakeSite, rspamd: RspamdServer) -> None:
    site = make_site()
    release(
        site,
        newsletter(site, ALICE),
        newsletter(site, BOB, subject="Your order"),
        newsletter(site, PEOPLE[2], header_from="x <other@example.net>"),
    )
    learn(site)
    assert rspamd.learned == []


@pytest.mark.parametrize("tier", [Tier.SUSPICIOUS, Tier.DANGEROUS])
def test_suspicious_and_dangerous_messages_are_never_learned(
    make_site: MakeSite, rspamd: RspamdServer, tier: Tier
) -> None:
    site = make_site()
    release(site, hold(site.store, mail(), [ALICE], tier), actor=BY_OPERATOR)
    confirm(site, hold(site.store, mail(), [ALICE], tier), actor=BY_OPERATOR)
    copies = [hold(site.store, mail(), [person], tier, symbols=SIGNED) for person in PEOPLE[:3]]
    confirm(site, *copies)
    learn(site)
    assert rspamd.learned == []
    assert site.store.stats(site.now).jobs_waiting == 0


def test_a_message_that_became_dangerous_meanwhile_is_not_learned(make_site: MakeSite, rspamd: RspamdServer) -> None:
    site = make_site()
    held = hold(site.store, mail(), [ALICE, BOB])
    release(site, held, actor=BY_OPERATOR)
    site.store.messages.record_scan(
        held.id, Scan(ScanOutcome.FOUND, site.now, (Symbol("CLAM_VIRUS"),)), Tier.DANGEROUS, site.now
    )
    learn(site)
    assert rspamd.learned == []


def test_a_message_waits_for_its_virus_scan(make_site: MakeSite, rspamd: RspamdServer) -> None:
    site = make_site("operators", rspamd__scan_groups="antivirus")
    id = post(site, mail()).json["id"]
    [message] = site.store.messages.find(id)
    site.parts.actions.confirm_spam(message.id, 0, BY_OPERATOR)
    learn(site)
    assert rspamd.learned == []
    housekeeping.scan_waiting(site.parts, site.now)
    site.pass_time(minutes=2)
    learn(site)
    assert posted(rspamd) == ["/learnspam"]


def test_what_a_rule_let_in_is_nobodys_decision(make_site: MakeSite, rspamd: RspamdServer) -> None:
    site = make_site("operators")
    held = hold(site.store, mail(), [ALICE])
    rule = Actor(ActorKind.RULE, "example.net", ALICE)
    site.parts.actions.release(held.id, 0, rule)
    site.parts.actions.release(held.id, 0, BY_OPERATOR, operator=True, again=True)
    learn(site)
    assert rspamd.learned == []


def test_a_message_that_was_purged_is_not_learned(make_site: MakeSite, rspamd: RspamdServer) -> None:
    site = make_site("operators")
    held = hold(site.store, mail(), [ALICE])
    release(site, held, actor=BY_OPERATOR)
    site.pass_time(days=40)
    site.store.purge(site.now, site.now)
    learn(site)
    assert rspamd.learned == []
    assert site.store.stats(site.now).jobs_waiting == 0


# ---- limits


def test_so_many_decisions_of_one_person_count_in_a_day(
    make_site: MakeSite, rspamd: RspamdServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert VOTES_PER_DAY == 20
    monkeypatch.setattr("portal.policy.learning.VOTES_PER_DAY", 2)
    site = make_site(rspamd__learn_agreed=2)
    words = ("one", "two", "three")
    release(site, *[newsletter(site, ALICE, subject=word) for word in words])
    release(site, newsletter(site, BOB, subject="three"))
    learn(site)
    assert rspamd.learned == []
    release(site, newsletter(site, BOB, subject="two"))
    learn(site)
    assert len(rspamd.learned) == 2
    site.pass_time(days=1, minutes=1)
    release(site, newsletter(site, ALICE, subject="three"))
    learn(site)
    assert len(rspamd.learned) == 4


def test_so_many_messages_are_learned_in_a_day(
    make_site: MakeSite, rspamd: RspamdServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("portal.policy.learning.LEARNED_PER_DAY", 2)
    site = make_site("operators")
    for name in ("root", "ann", "ben"):
        confirm(site, hold(site.store, mail(), [ALICE]), actor=Actor(ActorKind.OPERATOR, name, "cli"))
    learn(site)
    assert len(rspamd.learned) == 2
    site.pass_time(days=1)
    confirm(site, hold(site.store, mail(), [ALICE]), actor=Actor(ActorKind.OPERATOR, "zoe", "cli"))
    learn(site)
    assert len(rspamd.learned) == 3


# ---- Rspamd's answers


@ON_FILES
@pytest.mark.parametrize(("status", "in_history"), [(200, True), (208, True), (204, False)])
def test_answers_that_are_success(
    make_site: MakeSite, rspamd: RspamdServer, smtp: SmtpServer, status: int, in_history: bool
) -> None:
    site = make_site("operators")
    rspamd.learn_status = status
    held = hold(site.store, mail(), [ALICE])
    release(site, held, actor=BY_OPERATOR)
    learn(site)
    assert (len(rspamd.learned), site.store.stats(site.now).jobs_waiting) == (1, 0)
    expected = [(EventKind.LEARNED_HAM, f"answer {status}, by operator:root")]
    assert learned(site, held) == (expected if in_history else [])
    assert alarms(site, smtp) == []
    browser = site.browser()
    browser.peer = "127.0.0.1"
    assert f'quarantine_learned_total{{answer="ham.{status}"}} 1.0' in browser.get("/metrics").text


@pytest.mark.parametrize("status", [401, 403, 429])
def test_a_rejected_password_pauses_learning_with_one_alarm(
    make_site: MakeSite, rspamd: RspamdServer, smtp: SmtpServer, status: int
) -> None:
    site = make_site("operators")
    rspamd.learn_status = status
    for _ in range(3):
        release(site, hold(site.store, mail(), [ALICE]), actor=BY_OPERATOR)
    for _ in range(5):
        learn(site)
        site.pass_time(minutes=10)
    assert len(rspamd.learned) == 1
    site.pass_time(hours=1)
    learn(site)
    learn(site)
    assert len(rspamd.learned) == 2
    [alarm] = alarms(site, smtp)
    assert f"answers {status} to /learnham" in alarm.replace("=\r\n", "").replace("\r\n", " ")
    rspamd.learn_status = 200
    site.pass_time(hours=1, minutes=1)
    learn(site)
    site.pass_time(hours=1, minutes=1)
    learn(site)
    assert len(rspamd.learned) == 5
    assert len(alarms(site, smtp)) == 1
    rspamd.learn_status = status
    release(site, hold(site.store, mail(), [ALICE]), actor=BY_OPERATOR)
    learn(site)
    assert len(alarms(site, smtp)) == 2  # a new problem


def test_an_unknown_classifier_is_not_tried_again(make_site: MakeSite, rspamd: RspamdServer, smtp: SmtpServer) -> None:
    site = make_site("operators")
    rspamd.learn_status = 404
    release(site, hold(site.store, mail(), [ALICE]), actor=BY_OPERATOR)
    for _ in range(5):
        learn(site)
        site.pass_time(hours=2)
    assert (len(rspamd.learned), site.store.stats(site.now).jobs_waiting) == (1, 0)
    assert len(alarms(site, smtp)) == 1


@ON_FILES
@pytest.mark.parametrize("failure", ["500", "down", "drips"])
def test_a_failure_is_tried_three_times(
    make_site: MakeSite, rspamd: RspamdServer, smtp: SmtpServer, failure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("portal.policy.learning._POST_SECONDS", 0.3)
    site = make_site("operators")
    held = hold(site.store, mail(), [ALICE])
    release(site, held, actor=BY_OPERATOR)
    tries: list[Any] = []
    post = Rspamd.learn

    def count(*arguments: Any) -> int:
        tries.append(arguments)
        return post(*arguments)

    monkeypatch.setattr(Rspamd, "learn", count)
    match failure:
        case "500":
            rspamd.learn_status = 500
        case "down":
            rspamd.__exit__(None, None, None)
        case _:
            rspamd.learn_hangs = True
    for _ in range(30):
        learn(site)
        site.pass_time(minutes=1)
    assert len(tries) == 3
    assert site.store.stats(site.now).jobs_waiting == 0
    assert learned(site, held) == []
    assert alarms(site, smtp) == []


@ON_FILES
def test_a_message_that_rspamd_does_not_take_is_not_tried_again(make_site: MakeSite, rspamd: RspamdServer) -> None:
    site = make_site("operators")
    rspamd.learn_status = 400
    release(site, hold(site.store, mail(), [ALICE]), actor=BY_OPERATOR)
    for _ in range(3):
        learn(site)
        site.pass_time(hours=2)
    assert (len(rspamd.learned), site.store.stats(site.now).jobs_waiting) == (1, 0)


@ON_FILES
@pytest.mark.parametrize("status", [200, 208, 400, 401, 500])
def test_neither_the_answer_nor_people_are_logged(
    make_site: MakeSite, rspamd: RspamdServer, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    site = make_site(rspamd__learn_agreed=2)
    rspamd.learn_status = (status, "<evil@example.net> has been already learned")
    release(site, *[newsletter(site, person) for person in PEOPLE[:2]])
    caplog.clear()
    with caplog.at_level(logging.INFO):
        for _ in range(4):
            learn(site)
            site.pass_time(hours=2)
    assert "learned id=" in caplog.text
    for text in ("evil", *PEOPLE, "already"):
        assert text not in caplog.text


@ON_FILES
def test_an_answer_that_is_not_http_is_not_logged(
    make_site: MakeSite, rspamd: RspamdServer, caplog: pytest.LogCaptureFixture
) -> None:
    site = make_site("operators")
    rspamd.learn_raw = b"<evil@example.net> has been already learned\r\n\r\n"
    release(site, hold(site.store, mail(), [ALICE]), actor=BY_OPERATOR)
    for _ in range(30):
        learn(site)
        site.pass_time(minutes=1)
    assert "learning given up" in caplog.text
    assert "evil" not in caplog.text


def test_a_release_succeeds_although_the_vote_cannot_be_recorded(
    make_site: MakeSite, smtp: SmtpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = make_site()

    def fail(*_: object) -> None:
        raise StoreUnavailable("gone")

    monkeypatch.setattr(type(site.store.votes), "cast", fail)
    held = newsletter(site, ALICE)
    release(site, held)
    assert site.state(held) is State.RELEASED
    deleted = newsletter(site, ALICE)
    confirm(site, deleted)
    assert site.state(deleted) is State.DELETED


# ---- undo


def test_an_operator_who_takes_spam_back_has_it_learned_as_ham(make_site: MakeSite, rspamd: RspamdServer) -> None:
    site = make_site("operators")
    held = hold(site.store, mail(), [ALICE])
    confirm(site, held, actor=BY_OPERATOR)
    learn(site)
    site.parts.actions.restore(held.id, 0, BY_OPERATOR)
    learn(site)
    assert posted(rspamd) == ["/learnspam", "/learnham"]
    assert [kind for kind, _ in learned(site, held)] == [EventKind.LEARNED_SPAM, EventKind.LEARNED_HAM]
    confirm(site, held, actor=BY_OPERATOR)
    learn(site)
    assert posted(rspamd) == ["/learnspam", "/learnham", "/learnspam"]


def test_one_recipient_who_takes_spam_back_trains_nothing_all_of_them_do(
    make_site: MakeSite, rspamd: RspamdServer
) -> None:
    site = make_site()
    copies = [newsletter(site, person) for person in PEOPLE[:3]]
    confirm(site, *copies)
    learn(site)
    assert posted(rspamd) == ["/learnspam"] * 3
    for held in copies[:2]:
        site.parts.actions.restore(held.id, 0, BY_LINK)
    learn(site)
    assert len(rspamd.learned) == 3
    site.parts.actions.restore(copies[2].id, 0, BY_LINK)
    learn(site)
    assert posted(rspamd)[3:] == ["/learnham"] * 3


def test_a_recipient_cannot_undo_what_an_operator_had_learned(make_site: MakeSite, rspamd: RspamdServer) -> None:
    site = make_site()
    data = mail()
    held = hold(site.store, data, [ALICE, BOB])
    site.parts.actions.confirm_spam(held.id, 1, BY_OPERATOR)
    learn(site)
    confirm(site, held)
    site.parts.actions.restore(held.id, 0, BY_LINK)
    learn(site)
    assert posted(rspamd) == ["/learnspam"]


def test_deleting_and_restoring_trains_nothing(make_site: MakeSite, rspamd: RspamdServer) -> None:
    site = make_site()
    held = hold(site.store, mail(), [ALICE])
    confirm(site, held, actor=BY_OPERATOR)
    learn(site)
    site.store.deliveries.move(
        site.delivery(held).key, State.HELD, {State.DELETED}, BY_OPERATOR, site.now, kind=EventKind.RESTORED
    )
    site.parts.actions.delete(held.id, 0, BY_LINK)
    site.parts.actions.restore(held.id, 0, BY_LINK)
    learn(site)
    assert posted(rspamd) == ["/learnspam"]


def test_an_operator_has_a_message_unlearned_also_after_learning_was_switched_off(
    make_site: MakeSite, rspamd: RspamdServer
) -> None:
    site = make_site()
    copies = [newsletter(site, person) for person in PEOPLE[:4]]
    release(site, *copies[:3])
    learn(site)
    off = make_site("off")
    deliveries = off.store.deliveries.of_message(copies[0].id)
    assert off.parts.learning.unlearn(deliveries, BY_OPERATOR, off.now) == "ham"
    learn(off)
    assert posted(rspamd)[3:] == ["/learnspam"]
    assert learned(off, copies[0])[-1] == (EventKind.LEARNED_SPAM, "answer 200, by operator:root")
    release(site, copies[3])  # the campaign is not learned as ham again
    learn(site)
    assert len(rspamd.learned) == 4
    other = off.store.deliveries.of_message(hold(off.store, mail(), [ALICE]).id)
    assert off.parts.learning.unlearn(other, BY_OPERATOR, off.now) is None


# ---- pages and checks


def test_recipients_report_spam_on_the_page_of_a_message(make_site: MakeSite, rspamd: RspamdServer) -> None:
    site = make_site(rspamd__learn_agreed=2)
    copies = [newsletter(site, person) for person in PEOPLE[:2]]
    for person, held in zip(PEOPLE[:2], copies, strict=True):
        browser = site.signed_in(person)
        page = f"/messages/{held.id}/"
        before = browser.get(page).text
        assert f'action="/quarantine{page}spam"' in before
        assert "deletes this message and reports it to the spam filter" in before and "once 2 people say so" in before
        answer = browser.post(f"{page}spam", {"form_token": browser.form_token()})
        text = browser.follow(answer, page).text
        assert "Reported as spam and deleted on" in text
        assert "Undo deletion" in text
        assert f"{page}spam" not in text
    learn(site)
    assert posted(rspamd) == ["/learnspam"] * 2
    text = site.signed_in(ALICE).get(f"/messages/{copies[0].id}/").text
    assert "Reported as spam and deleted by you." in text
    assert "The spam filter learned this message as spam." in text
    assert "answer 200" not in text  # and thus not who agreed


@ON_FILES
@pytest.mark.parametrize("mode", ["off", "operators"])
def test_without_agreement_there_is_no_button(make_site: MakeSite, mode: str) -> None:
    site = make_site(mode)
    held = newsletter(site, ALICE)
    assert "/spam" not in site.signed_in(ALICE).get(f"/messages/{held.id}/").text


@ON_FILES
def test_check_proves_that_rspamd_can_learn(make_site: MakeSite, rspamd: RspamdServer) -> None:
    def found(mode: str = "agreed") -> list[tuple[bool | None, str]]:
        return [(each.ok, each.text) for each in rspamd_checks.learning(make_site(mode).parts.settings)]

    assert found("off") == []
    assert found() == [(True, f"Rspamd at {rspamd.url} can learn (rspamd.learn = agreed)")]
    stats: list[Any] = [{}, {"statfiles": []}, [], "x", None]
    for stat in stats:
        rspamd.stat = stat
        [(ok, text)] = found()
        assert (ok, "has no statistics" in text) == (False, True)
    auths: list[Any] = [{"auth": "ok", "read_only": True}, {}, [], 1]
    for auth in auths:
        rspamd.auth = auth
        [(ok, text)] = found()
        assert (ok, "enable_password" in text) == (False, True)
    rspamd.password = "secret"
    [(ok, text)] = found()
    assert (ok, "check rspamd.password" in text) == (False, True)
    assert rspamd.learned == []
