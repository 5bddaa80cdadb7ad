"""Mails to recipients beside a mass act: digests and notices without its messages, and one mail after it."""

from __future__ import annotations

import re
from contextlib import suppress
from datetime import timedelta
from email import message_from_bytes
from email.policy import default
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from digest.housekeeping import index_facets, run_mass_acts
from digest.news import preview, schedule_news
from digest.notices import send_notices
from digest.run import send_all, send_due
from portal.batches.batch import Act, Outcome
from portal.batches.mass import MassAct, Status
from portal.model.errors import RelayRefused, StoreUnavailable
from portal.model.message import Filter, Reader, Start, State, Symbol, Tier
from portal.model.schedule import Preferences
from portal.model.staff import Role
from portal.stores import LEASE
from portal.stores.records import Command, Job
from portal.stores.shared import facet_index
from tests.builders import ALICE, BOB, BY_LINK, MALLORY, now, prefer, rule
from tests.conftest import MakeParts
from tests.flows.masses import (
    BY_SHELL,
    BY_STAFF,
    CAROL,
    FOUND,
    MINUTE,
    announced,
    give,
    hold,
    masses,
    relay,
    run,
    sent_mails,
    site,
)
from tests.smtp_server import SmtpServer
from tests.web_client import Site

__all__ = ["relay", "site"]  # fixtures


def choose(site: Site, act: Act = Act.RELEASE, **choices: bool) -> Job:
    """Confirm a mass act with these choices. It begins in a minute."""
    site.now = now()
    mass = MassAct(act, FOUND, "", 3, "Bayes was wrong.", **choices)  # type: ignore[arg-type]
    return masses(site).start(mass, BY_SHELL, uuid4())


def listed(site: Site) -> set[UUID]:
    """Send the digests that are due at the next time of the schedule. Return the messages that they announce."""
    before = {each.id for each in site.store.digests.unannounced(Reader(ALICE), 100)}
    site.now += timedelta(days=1)
    schedule_news(site.parts, site.now)
    send_due(site.parts, site.now)
    return before - {each.id for each in site.store.digests.unannounced(Reader(ALICE), 100)}


def test_a_digest_leaves_out_what_is_held_back_and_lists_it_after_a_cancellation(site: Site, relay: SmtpServer) -> None:
    found, other = hold(site, 2), site.hold(recipients=(ALICE,), symbols=())
    job = choose(site, hold_back=True)
    masses(site).steer(masses(site).get(job.id), Command.PAUSE, BY_SHELL)
    assert send_all(site.parts, site.now).sent == [(ALICE, 1)]
    again = send_all(site.parts, site.now)
    assert (again.sent, again.skipped) == ([], [(ALICE, "a job holds messages back until it ends")])
    assert [each.id for each in site.store.digests.unannounced(Reader(ALICE), 9)] == [each.id for each in found]
    masses(site).steer(masses(site).get(job.id), Command.CANCEL, BY_SHELL)
    run(site, job)
    assert listed(site) == {each.id for each in found}
    assert site.state(other) is State.HELD and len(relay.mails) == 2


def test_what_is_held_back_is_listed_by_itself_once_the_job_has_ended(site: Site, relay: SmtpServer) -> None:
    [refused] = hold(site, 1)
    site.now = now()
    mass = MassAct(Act.RELEASE, FOUND, "", 1, "x", hold_back=True)
    job = masses(site).start(mass, BY_SHELL, uuid4(), timedelta(hours=20))
    schedule_news(site.parts, site.now)
    due = site.store.recipients.get(ALICE).next_digest_at
    assert due is not None
    if due < job.not_before:
        site.now = due
        assert send_due(site.parts, site.now).sent == []
    site.now = max(job.not_before, due)
    relay.script["BODY"] = ["554 5.7.1 no"]
    assert run(site, job).progress.counts == {Outcome.FAILED: 1}
    site.now += timedelta(minutes=6)
    schedule_news(site.parts, site.now)
    assert [recipient for recipient, _ in send_due(site.parts, site.now).sent] == [ALICE]
    assert site.store.digests.unannounced(Reader(ALICE), 9) == [] and site.state(refused) is State.HELD


def test_what_is_held_back_gives_new_messages_no_digests_of_their_own(site: Site) -> None:
    site.now = now().replace(hour=3) + timedelta(days=1)
    [waiting] = hold(site, 1, at=site.now)
    site.now += MINUTE
    mass = MassAct(Act.RELEASE, FOUND, "", 1, "x", hold_back=True)
    job = masses(site).start(mass, BY_SHELL, uuid4(), timedelta(hours=23))

    def sent() -> list[tuple[str, int]]:
        """Hold another message and run what is due, at each tenth minute of an hour."""
        found: list[tuple[str, int]] = []
        for _ in range(6):
            site.hold(recipients=(ALICE,), symbols=(), at=site.now)
            schedule_news(site.parts, site.now)
            found += send_due(site.parts, site.now).sent
            site.now += 10 * MINUTE
        return found

    def unannounced() -> set[UUID]:
        return {each.id for each in site.store.digests.unannounced(Reader(ALICE), 99)}

    sent()
    due = site.parts.domains.plan(ALICE, Preferences()).next_time(site.now)
    assert due is not None
    site.now = due - 10 * MINUTE
    [(_, first)] = sent()
    assert first == 8 and waiting.id in unannounced(), "all others were announced at the time of the plan"
    assert sent() == [], "the others wait for its next time"
    site.store.digests.request(Reader(ALICE), site.now, site.now - timedelta(hours=1))
    assert len(sent()) == 1, "it was requested"
    site.now = due + timedelta(days=1) - 10 * MINUTE
    masses(site).steer(masses(site).get(job.id), Command.CANCEL, BY_SHELL)
    run(site, job)
    sent()
    assert waiting.id not in unannounced()


def test_a_job_holds_back_however_many_were_begun_after_it(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("portal.stores.contracts.work._JOBS", 2)
    hold(site, 1)
    choose(site, hold_back=True)
    for number in range(3):
        mass = MassAct(Act.DELETE, Filter(symbols=("OTHER",)), "", 1, f"Reason {number}")
        masses(site).start(mass, BY_SHELL, uuid4(), timedelta(hours=5))
    assert send_all(site.parts, site.now).sent == []


def test_previews_leave_out_what_is_held_back(site: Site) -> None:
    hold(site, 2)
    choose(site, hold_back=True)
    assert [*preview(site.parts, None, 9, site.now)] == [(ALICE, (), "a job holds messages back until it ends")]
    browser = site.signed_in(ALICE)
    assert "your mail administrator is working on the new messages" in browser.get("/preferences/digest").text
    assert browser.get("/preferences/digest/html").text == ""
    other = site.hold(recipients=(ALICE,), symbols=(), subject="Another")
    [(_, [listed], reason)] = preview(site.parts, None, 9, site.now)
    assert (listed.id, reason) == (other.id, "")
    shown = browser.get("/preferences/digest/html").text
    assert "Another" in shown and "Offer" not in shown


def test_nobody_holds_back_what_they_may_not_act_on(site: Site) -> None:
    site.hold(recipients=(CAROL,))
    give(site, Role.AUDITOR)
    give(site, Role.DOMAIN_ADMINISTRATOR, "example.org")
    [dangerous] = hold(site, 1, tier=Tier.DANGEROUS)
    site.now = now()
    mass = MassAct(Act.RELEASE, FOUND, "", 2, "x", MALLORY, hold_back=True)
    masses(site).start(mass, BY_STAFF, uuid4())
    assert {recipient for recipient, _ in send_all(site.parts, site.now).sent} >= {ALICE}
    assert dangerous.id not in {each.id for each in site.store.digests.unannounced(Reader(ALICE), 9)}


def test_an_index_that_is_behind_holds_nothing_back(site: Site) -> None:
    hold(site, 1)
    other = site.hold(recipients=(BOB,), symbols=())
    index_facets(site.parts)
    with site.store.engine.writing() as session:  # type: ignore[attr-defined]
        session.execute("delete from setting where name = :n", n=facet_index._COMPLETE)
        highest = str(facet_index._HIGHEST)
        session.execute("update setting set value = :v where name = :n", n=facet_index._BELOW, v=highest)
    choose(site, hold_back=True)
    assert {recipient for recipient, _ in send_all(site.parts, site.now).sent} >= {BOB}
    assert other.id not in {each.id for each in site.store.digests.unannounced(Reader(BOB), 9)}


def test_a_forgotten_job_hides_nothing_for_longer_than_a_day(site: Site) -> None:
    found = hold(site, 1)
    job = choose(site, hold_back=True)
    masses(site).steer(masses(site).get(job.id), Command.PAUSE, BY_SHELL)
    assert send_all(site.parts, site.now).sent == []
    site.now += timedelta(hours=23)
    assert send_all(site.parts, site.now).sent == []
    site.now += timedelta(hours=2)
    assert announced(site) == {found[0].id}


def test_a_notice_leaves_out_what_is_held_back(site: Site, relay: SmtpServer) -> None:
    prefer(site.store, ALICE, Preferences(notices=True))
    signed = (
        Symbol("R_DKIM_ALLOW", -0.2, ("example.net:s=s",)),
        Symbol("DMARC_POLICY_ALLOW", -0.5, ("example.net,none",)),
    )
    site.now = now().replace(hour=12, minute=0) + timedelta(days=1)  # no digest is due soon
    hold(site, 1, header_from="Ann <ann@example.net>", symbols=signed, score=15.5, at=site.now)
    site.now += MINUTE
    mass = MassAct(Act.RELEASE, Filter(symbols=("R_DKIM_ALLOW",)), "", 1, "x", hold_back=True)
    job = masses(site).start(mass, BY_SHELL, uuid4())
    schedule_news(site.parts, site.now)
    assert (send_notices(site.parts, site.now).sent, relay.mails) == ([], [])
    masses(site).steer(masses(site).get(job.id), Command.CANCEL, BY_SHELL)
    run(site, job)
    site.now += timedelta(minutes=6)
    assert len(send_notices(site.parts, site.now).sent) == 1


def mails_of(site: Site, job: Job) -> list[tuple[str, str]]:
    """Run a job to its end. Return the mails that it queues."""
    for _ in range(30):
        if run(site, job).status is Status.FINISHED:
            break
        site.now += timedelta(seconds=5)
    return sorted(sent_mails(site))


def test_each_recipient_gets_one_mail_with_the_number_and_the_reason(
    make_parts: MakeParts, relay: SmtpServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aliases = tmp_path / "aliases"
    aliases.write_text("sales@example.org alice@example.org\ninfo@example.org alice@example.org bob@example.org\n")
    site = Site(make_parts(relay__url=relay.url, people__alias_file=str(aliases)))
    monkeypatch.setattr("portal.batches.mass_mail._RECIPIENTS", 1)
    for address, count in ((ALICE, 3), ("sales@example.org", 1), ("info@example.org", 1), (MALLORY, 1)):
        for _ in range(count):
            site.hold(recipients=(address,), subject="Secret")
    site.hold(recipients=(CAROL,))  # not local
    site.store.recipients.set_digests_stopped(MALLORY, site.now)
    relay.script["BODY"] = ["554 5.7.1 no"]  # one of them
    job = choose(site, notify=True)
    site.now += MINUTE
    mails = mails_of(site, job)
    numbers = {to: re.findall(r"Number of messages: (\d)", text) for to, text in mails}
    assert masses(site).get(job.id).progress.mailed == len(numbers)
    assert {ALICE} <= numbers.keys() <= {ALICE, BOB} and numbers.get(BOB, ["1"]) == ["1"]
    assert int(numbers[ALICE][0]) in (4, 5)
    for _, text in mails:
        assert "Your mail administrator released messages" in text and "Reason: Bayes was wrong." in text
        assert "Secret" not in text and site.parts.domains.site.public_url in text
    run_mass_acts(site.parts, site.now + 2 * LEASE)
    assert sent_mails(site) == []


def test_the_mail_counts_what_the_mail_server_has_accepted(
    site: Site, relay: SmtpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("portal.batches.mass_mail._RECIPIENTS", 1)
    later = site.hold(recipients=(BOB,))
    hold(site, 3)
    monkeypatch.setattr("portal.batches.mass_run.AT_ONCE", 1)  # the newest first
    releasing = type(site.store.deliveries).releasing

    def one_after_the_other(*args: Any, **more: Any) -> Any:
        site.now += timedelta(milliseconds=1)
        return releasing(*args, **more)

    monkeypatch.setattr(type(site.store.deliveries), "releasing", one_after_the_other)
    relay.script["BODY"] = ["250 ok", "554 5.7.1 no", "451 4.3.0 later", "451 4.3.0 later"]
    job = choose(site, notify=True)
    site.now += MINUTE
    run(site, job)
    [(to, text)] = sent_mails(site)
    assert (to, "Number of messages: 1" in text, "Still being delivered: 1. A message" in text) == (ALICE, True, True)
    relay.script["BODY"] = ["554 5.7.1 no"]
    site.now += MINUTE
    with suppress(RelayRefused):
        site.parts.actions.retry(later.id, 0)
    assert site.state(later) is State.HELD
    assert mails_of(site, job) == [], "nothing was released to Bob"


def test_the_mail_does_not_say_released_before_the_mail_server_accepted_anything(site: Site, relay: SmtpServer) -> None:
    hold(site, 2)
    relay.script["BODY"] = ["451 4.3.0 later"] * 2
    job = choose(site, notify=True)
    site.now += MINUTE
    run(site, job)
    assert {each.state for each in site.store.deliveries.matching(Reader(ALICE), FOUND, 9).deliveries} == {
        State.RELEASING
    }
    with site.store.outbox.sending(site.now) as queued:
        assert queued is not None
        mail = message_from_bytes(queued.mail, policy=default)
    assert mail["Subject"] == "Held messages are on their way to you"
    text = " ".join(mail.get_content().split())
    assert "The mail server has not accepted them yet." in text and "Still being delivered: 2." in text
    assert "Number of messages" not in text


def test_the_mails_of_a_job_read_each_entry_of_the_audit_once(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("portal.batches.mass_mail._RECIPIENTS", 2)
    monkeypatch.setattr("portal.stores.shared.audit._PAGE", 3)
    people = [f"p{n}@example.org" for n in range(5)]
    for number in range(15):
        site.hold(recipients=(people[number % 5] if number > 4 else people[0],))
    read: list[UUID | None] = []
    acted_on = type(site.store.audit).acted_on

    def counted(*args: Any, **more: Any) -> Any:
        found, after = acted_on(*args, **more)
        read.append(after)
        return found, after

    monkeypatch.setattr(type(site.store.audit), "acted_on", counted)
    job = choose(site, Act.DELETE, notify=True)
    site.now += MINUTE
    mails = mails_of(site, job)
    assert [to for to, _ in mails] == people, "each once"
    assert sum(int(re.findall(r"Number of messages: (\d)", text)[0]) for _, text in mails) == 15
    assert read[-1] is None and len({*read}) == len(read) <= 8, "each call goes on where the last one ended"


@pytest.mark.parametrize(
    ("act", "sentence"),
    [
        (Act.DELETE, "administrator deleted messages"),
        (Act.RESTORE, "administrator restored deleted"),
        (Act.REANNOUNCE, "Your next digest lists"),
    ],
)
def test_the_mail_says_what_was_done(site: Site, act: Act, sentence: str) -> None:
    for held in hold(site, 2):
        if act is Act.RESTORE:
            site.parts.actions.delete(held.id, 0, BY_LINK)
    job = choose(site, act, notify=True)
    site.now += MINUTE
    [(to, text)] = mails_of(site, job)
    assert (to, sentence in text, "Number of messages: 2" in text) == (ALICE, True, True)


def test_the_mail_says_which_restored_messages_are_not_held(site: Site) -> None:
    by_rule = rule("example.net").as_actor
    starts = [Start(State(state), by_rule) for state in ("blocked", "blocked", "passed")]
    helds = [*hold(site, 1), *(site.hold(recipients=(ALICE,), starts={ALICE: start}) for start in starts)]
    for held in helds:
        site.parts.actions.delete(held.id, 0, BY_LINK)
    job = choose(site, Act.RESTORE, notify=True)
    site.now += MINUTE
    [(_, text)] = mails_of(site, job)
    assert [site.state(each).value for each in helds] == ["held", "blocked", "blocked", "passed"]
    assert "Number of messages: 4" in text and "held for you" not in text
    assert "Blocked again, as before their deletion: 2" in text and "Let through before their deletion: 1" in text


def test_mails_are_queued_once_if_the_process_dies_in_between(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("portal.batches.mass_mail._RECIPIENTS", 1)
    people = [f"p{n}@example.org" for n in range(5)]
    for each in people:
        site.hold(recipients=(each,))
    job = choose(site, Act.DELETE, notify=True)
    site.now += MINUTE
    retry, failures = type(site.store.jobs).retry, iter([True, False, True, True, False, False])

    def dies(*args: object, **more: object) -> None:
        if next(failures, False):
            raise StoreUnavailable("the process died after the commit")
        retry(*args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(type(site.store.jobs), "retry", dies)
    finish, deaths = type(site.store.jobs).finish, iter([True])

    def dies_at_the_end(*args: object) -> None:
        if next(deaths, False):
            raise StoreUnavailable("the process died before the end was recorded")
        finish(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(type(site.store.jobs), "finish", dies_at_the_end)
    found: list[tuple[str, str]] = []
    for _ in range(20):
        with suppress(StoreUnavailable):
            run(site, job)
        found += sent_mails(site)
        site.now += LEASE + MINUTE
    assert sorted(to for to, _ in found) == people
    assert masses(site).get(job.id).status is Status.FINISHED
