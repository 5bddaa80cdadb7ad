"""Mass acts of staff: what they reach and leave alone, after a crash, twice, paused, and without a mail server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import fields, replace
from datetime import timedelta
from ipaddress import ip_network
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from digest.run import send_due
from portal.batches.batch import Act, Outcome, Progress, actor_of, criteria_from_json, criteria_to_json
from portal.batches.mass import MassAct, Obstacle, Status, Waiting
from portal.batches.parallel import retry_due
from portal.model.audit import AuditEntry, AuditFilter
from portal.model.errors import RelayRefused, StoreUnavailable
from portal.model.message import (
    Actor,
    ActorKind,
    DeliveryId,
    EventKind,
    Filter,
    Scan,
    ScanOutcome,
    State,
    Symbol,
    Tier,
    new_id,
)
from portal.model.staff import EVERYWHERE, Role
from portal.model.token import Scope
from portal.policy.tokens import TokenRequest
from portal.stores import LEASE
from portal.stores.records import Command
from tests.builders import ALICE, BY_LINK, BY_OPERATOR, MALLORY, now
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
    start,
    states,
)
from tests.smtp_server import SmtpServer
from tests.web_client import Site

__all__ = ["relay", "site"]  # fixtures


def test_everything_found_is_released_once_and_later_mail_is_not(site: Site, relay: SmtpServer) -> None:
    found = hold(site)
    other = site.hold(recipients=(ALICE,), symbols=())
    deleted = hold(site, 1)[0]
    site.parts.actions.delete(deleted.id, 0, BY_LINK)
    job = start(site)
    late = hold(site, 1, at=site.now)
    shown = run(site, job)
    assert (shown.status, shown.progress.counts, shown.left) == (Status.FINISHED, {Outcome.RELEASED: 3}, 0)
    assert states(site, [*found, other, deleted, *late]) == [State.RELEASED] * 3 + [
        State.HELD,
        State.DELETED,
        State.HELD,
    ]
    assert len(relay.mails) == 3
    event = site.history(found[0])[-1]
    assert (event.actor.name, event.actor.via) == ("root", f"cli/{job.id}")
    [entry] = site.store.audit.list(AuditFilter(act="job-started"), 5)
    assert "Bayes was wrong." in entry.detail
    assert str(job.id) in entry.detail


def test_a_search_is_the_same_in_a_job(site: Site) -> None:
    """Each field has a value, so a criterion that is added and forgotten here would act on everything else."""
    full = Filter(
        states=frozenset({State.HELD}), words="a", sender="b", since=now(), until=now(), tiers=frozenset({Tier.SPAM}),
        reason="c", has_attachment=True, attachment="d", like=DeliveryId(UUID(int=1), 2), recipient=ALICE,
        also=(MALLORY,), score_min=1.0, score_max=2.0, symbols=("E",), actions=frozenset({"reject"}),
        client=ip_network("192.0.2.0/24"), size_min=1, size_max=2, sender_domain="f", domains=frozenset({"g"}),
        rule="h",
    )  # fmt: skip
    assert not [field.name for field in fields(Filter) if getattr(full, field.name) == getattr(Filter(), field.name)]
    assert criteria_from_json(json.loads(json.dumps(criteria_to_json(full)))) == full


def test_nobody_approves_their_own_request_under_their_name(site: Site, relay: SmtpServer) -> None:
    site.now = now()
    own = site.hold(recipients=(ALICE,), tier=Tier.DANGEROUS)
    other = site.hold(recipients=(MALLORY,), tier=Tier.DANGEROUS)
    mass = MassAct(Act.RELEASE, Filter(symbols=("BAYES_SPAM",)), "", 2, "mine")
    job = masses(site).start(mass, Actor(ActorKind.OPERATOR, ALICE, "cli"), uuid4(), timedelta())
    site.now = now()
    assert run(site, job).progress.counts == {Outcome.NOT_ALLOWED: 1, Outcome.RELEASED: 1}
    assert states(site, [own, other]) == [State.HELD, State.RELEASED]


@pytest.mark.parametrize("tiers", [frozenset[Tier](), frozenset({Tier.SPAM})], ids=["any tier", "spam"])
@pytest.mark.parametrize("is_planned", [False, True], ids=["before the undo window ended", "while it waited"])
def test_what_became_dangerous_after_the_confirmation_is_not_released(
    site: Site, relay: SmtpServer, tiers: frozenset[Tier], is_planned: bool
) -> None:
    site.now = now()
    found = hold(site, 20)
    before = site.hold(tier=Tier.DANGEROUS, recipients=(ALICE,), subject="Dangerous from the beginning")
    job = start(site, wanted=replace(FOUND, tiers=tiers))
    if is_planned:
        relay.script["BANNER"] = "421 4.3.2 shutting down"
        assert run(site, job).status is Status.WAITING
        site.now = masses(site).get(job.id).job.not_before
        del relay.script["BANNER"]
    raised = [each for each in found if site.state(each) is State.HELD][0]
    virus = Scan(ScanOutcome.FOUND, site.now, (Symbol("CLAM_VIRUS", 15),))
    site.store.messages.record_scan(raised.id, virus, Tier.DANGEROUS, site.now)
    shown = run(site, job)
    assert (site.state(raised), shown.status) == (State.HELD, Status.FINISHED)
    is_found = is_planned or not tiers  # by the search
    assert (shown.progress.counts.get(Outcome.TO_CHECK, 0), shown.failed) == (int(is_found), 0)
    assert (site.state(before) is State.HELD) == bool(tiers), "it was confirmed with its tier"


def test_what_became_dangerous_between_two_tries_of_a_job_is_held_again(site: Site, relay: SmtpServer) -> None:
    found = hold(site)
    job = start(site)
    relay.script["RCPT"] = "451 4.7.1 try again later"
    assert run(site, job).progress.counts == {Outcome.RELEASING: 3}
    del relay.script["RCPT"]
    virus = Scan(ScanOutcome.FOUND, site.now, (Symbol("CLAM_VIRUS", 15),))
    site.store.messages.record_scan(found[0].id, virus, Tier.DANGEROUS, site.now)
    site.now += timedelta(hours=1)
    assert retry_due(site.parts.actions) == 3
    assert states(site, found) == [State.HELD, State.RELEASED, State.RELEASED]


def test_a_cancelled_job_stays_cancelled(site: Site, relay: SmtpServer) -> None:
    found = hold(site)
    job = start(site)
    for command in (Command.CANCEL, Command.PAUSE, None):
        masses(site).steer(masses(site).get(job.id), command, BY_STAFF)
    assert run(site, job).status is Status.CANCELLED
    assert states(site, found) == [State.HELD] * 3


def test_nothing_happens_before_the_undo_window_ends(site: Site, relay: SmtpServer) -> None:
    found = hold(site)
    job = start(site)
    site.now -= timedelta(seconds=30)
    assert run(site, job).status is Status.SCHEDULED
    masses(site).steer(masses(site).get(job.id), Command.CANCEL, BY_STAFF)
    assert run(site, job).status is Status.CANCELLED
    site.now += 2 * MINUTE
    run(site, job)
    assert (states(site, found), relay.mails) == ([State.HELD] * 3, [])


def test_a_deletion_of_all_is_undone_by_a_restoration_of_all(site: Site) -> None:
    found = hold(site)
    assert run(site, start(site, Act.DELETE)).progress.counts == {Outcome.DELETED: 3}
    assert states(site, found) == [State.DELETED] * 3
    assert run(site, start(site, Act.RESTORE)).progress.counts == {Outcome.RESTORED: 3}
    assert states(site, found) == [State.HELD] * 3


def test_release_requests_are_denied_with_a_mail_for_each(site: Site) -> None:
    give(site, Role.DOMAIN_ADMINISTRATOR, "example.org")
    found = hold(site, 2, tier=Tier.SUSPICIOUS)
    dangerous = hold(site, 1, tier=Tier.DANGEROUS)[0]
    own = site.hold(recipients=(MALLORY,), tier=Tier.SUSPICIOUS)
    for each in (*found, dangerous, own):
        site.parts.actions.request_release(each.id, 0, BY_LINK)
    other = hold(site, 1)
    sent_mails(site)
    shown = run(site, start(site, Act.REFUSE, member=MALLORY))
    assert shown.progress.counts == {Outcome.REFUSED: 2, Outcome.NOT_ALLOWED: 2}
    assert states(site, [*found, dangerous, own, *other]) == [
        *[State.HELD] * 2, State.REQUESTED, State.REQUESTED, State.HELD
    ]  # fmt: skip
    assert site.delivery(found[0]).reason == "Bayes was wrong."
    assert [to for to, _ in sent_mails(site)] == [ALICE] * 2


def test_held_messages_are_put_into_the_next_digest_again(site: Site) -> None:
    found, other = hold(site), site.hold(recipients=(ALICE,), symbols=())
    deleted = hold(site, 1)[0]
    assert announced(site) == {each.id for each in (*found, other, deleted)}
    site.parts.actions.delete(deleted.id, 0, BY_LINK)
    assert announced(site) == set()
    shown = run(site, start(site, Act.REANNOUNCE))
    assert shown.progress.counts == {Outcome.REANNOUNCED: 3}
    assert states(site, found) == [State.HELD] * 3
    assert send_due(site.parts, site.now).sent == [], "not before the next time of the schedule"
    assert announced(site) == {each.id for each in found}
    assert (site.history(found[0])[-1].kind, announced(site)) == (EventKind.REANNOUNCED, set())


def test_a_dry_run_says_what_will_not_be_done_and_why(site: Site) -> None:
    give(site, Role.DOMAIN_ADMINISTRATOR, "example.org")
    hold(site, 3)
    hold(site, 2, tier=Tier.DANGEROUS)
    released = hold(site, 1)[0]
    site.parts.actions.release(released.id, 0, BY_OPERATOR, operator=True)
    site.hold(recipients=(CAROL,))
    member = site.parts.staff.member(MALLORY)
    found = masses(site).dry_run(Act.RELEASE, FOUND, member)
    assert {(each.domain, each.tier, each.state, each.count, each.obstacle) for each in found.parts} == {
        ("example.org", Tier.SPAM, State.HELD, 3, None),
        ("example.org", Tier.DANGEROUS, State.HELD, 2, Obstacle.NOT_PERMITTED),
        ("example.org", Tier.SPAM, State.RELEASED, 1, Obstacle.STATE),
        ("example.net", Tier.SPAM, State.HELD, 1, Obstacle.NOT_PERMITTED),
    }
    assert found.count == 3
    assert masses(site).dry_run(Act.RELEASE, FOUND, None).count == 6


def test_rights_are_checked_for_each_delivery_and_a_removed_role_stops_the_rest(site: Site) -> None:
    give(site, Role.DOMAIN_ADMINISTRATOR, "example.org")
    spam, dangerous = hold(site, 1), hold(site, 1, tier=Tier.DANGEROUS)
    foreign = site.hold(recipients=(CAROL,))
    shown = run(site, start(site, member=MALLORY))
    assert shown.progress.counts == {Outcome.RELEASED: 1, Outcome.NOT_ALLOWED: 2}
    assert states(site, [*spam, *dangerous, foreign]) == [State.RELEASED, State.HELD, State.HELD]

    left = hold(site)
    job = start(site, member=MALLORY)
    site.parts.staff.remove(MALLORY, Role.DOMAIN_ADMINISTRATOR, "example.org", BY_OPERATOR)
    assert run(site, job).status is Status.STOPPED
    assert states(site, left) == [State.HELD] * 3


def test_a_paused_job_goes_on_where_it_was(site: Site, relay: SmtpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("portal.batches.mass_run._STEP", 1)
    found = hold(site)
    job = start(site)
    [claimed] = site.store.jobs.claim("mass", 1, site.now)
    shown = masses(site).get(job.id)
    relay.script["BODY"] = lambda _: masses(site).steer(shown, Command.PAUSE, BY_STAFF)  # during the first release
    masses(site).run(claimed, lambda: False)
    shown = masses(site).get(job.id)
    assert (shown.status, shown.done, shown.left) == (Status.PAUSED, 1, 2)
    assert run(site, job).status is Status.PAUSED
    del relay.script["BODY"]
    masses(site).steer(shown, None, BY_STAFF)
    assert (run(site, job).status, len(relay.mails)) == (Status.FINISHED, 3)
    assert states(site, found) == [State.RELEASED] * 3


def test_overlapping_jobs_release_each_delivery_once(site: Site, relay: SmtpServer) -> None:
    hold(site)
    first, second = start(site), start(site, wanted=replace(FOUND, tiers=frozenset({Tier.SPAM})))
    run(site, first)
    assert len(relay.mails) == 3
    assert sum(masses(site).get(each.id).done for each in (first, second)) == 3


def test_refused_releases_are_tried_again_and_others_are_not(site: Site, relay: SmtpServer) -> None:
    found = hold(site)
    relay.script["BODY"] = ["554 5.7.1 no", None, "554 5.7.1 no"]
    shown = run(site, start(site))
    assert shown.progress.counts == {Outcome.RELEASED: 1, Outcome.FAILED: 2}
    stranger = hold(site, 1)
    site.now += MINUTE
    again = masses(site).retry_failed(shown, BY_SHELL)
    assert masses(site).retry_failed(shown, BY_SHELL).id == again.id
    assert run(site, again).progress.counts == {Outcome.RELEASED: 2}
    assert states(site, found) == [State.RELEASED] * 3
    assert states(site, stranger) == [State.HELD]


def test_what_a_cancelled_retry_left_can_be_tried_again(site: Site, relay: SmtpServer) -> None:
    found = hold(site)
    relay.script["BODY"] = ["554 5.7.1 no"] * 3
    shown = run(site, start(site))
    first = masses(site).retry_failed(shown, BY_SHELL)
    masses(site).steer(masses(site).get(first.id), Command.CANCEL, BY_SHELL)
    assert run(site, first).status is Status.CANCELLED
    second = masses(site).retry_failed(shown, BY_SHELL)
    assert run(site, second).progress.counts == {Outcome.RELEASED: 3}
    assert states(site, found) == [State.RELEASED] * 3


def test_a_pause_does_not_shorten_the_undo_window(site: Site, relay: SmtpServer) -> None:
    hold(site)
    job = start(site)
    site.now -= timedelta(seconds=40)
    for command in (Command.PAUSE, None):
        masses(site).steer(masses(site).get(job.id), command, BY_STAFF)
    assert (run(site, job).status, relay.mails) == (Status.SCHEDULED, [])
    site.now += timedelta(seconds=40)
    assert run(site, job).status is Status.FINISHED


def test_a_release_that_failed_before_a_crash_counts_as_failed(site: Site, relay: SmtpServer) -> None:
    [held] = hold(site, 1)
    job = start(site)
    [claimed] = site.store.jobs.claim("mass", 1, site.now)
    planned = Progress(is_counted=True, is_last=True, planned=(DeliveryId(held.id, 0),))
    site.store.jobs.keep(claimed, planned.to_json(), site.now)
    relay.script["BODY"] = ["554 5.7.1 no"]
    with pytest.raises(RelayRefused):
        site.parts.actions.release(held.id, 0, actor_of(job.id, BY_SHELL), operator=True)
    site.now += 2 * LEASE
    shown = run(site, job)
    assert (shown.progress.counts, shown.left) == ({Outcome.FAILED: 1}, 0)
    assert run(site, masses(site).retry_failed(shown, BY_SHELL)).progress.counts == {Outcome.RELEASED: 1}


def test_staff_who_retry_a_job_of_the_shell_need_the_right_to_release(site: Site, relay: SmtpServer) -> None:
    give(site, Role.HELP_DESK)
    found = [*hold(site, 1), *hold(site, 1, tier=Tier.DANGEROUS)]
    relay.script["BODY"] = ["554 5.7.1 no", "554 5.7.1 no"]
    shown = run(site, start(site))
    assert shown.failed == 2
    again = masses(site).retry_failed(shown, BY_STAFF, site.parts.staff.member(MALLORY))
    assert run(site, again).progress.counts == {Outcome.RELEASED: 1, Outcome.NOT_ALLOWED: 1}
    assert states(site, found) == [State.RELEASED, State.HELD]


def test_without_a_mail_server_the_job_waits_and_says_so(site: Site, relay: SmtpServer) -> None:
    found = hold(site, 20)
    job = start(site)
    relay.script["BANNER"] = "421 4.3.2 shutting down"
    shown = run(site, job)
    assert (shown.status, shown.progress.waits_for, shown.failed) == (Status.WAITING, Waiting.MAIL_SERVER, 0)
    assert states(site, found).count(State.HELD) >= 12
    site.now = shown.job.not_before
    assert run(site, job).job.not_before - site.now > timedelta(seconds=15)
    del relay.script["BANNER"]
    site.now += MINUTE
    shown = run(site, job)
    assert (shown.status, shown.progress.waits_for) == (Status.FINISHED, "")
    assert sum(shown.progress.counts.values()) == 20
    assert State.HELD not in states(site, found)


_WORKER = """
import time
from digest.housekeeping import run_mass_acts
from digest.news import schedule_news
from digest.notices import send_notices
from digest.run import send_all, send_due
from portal.assemble import assemble
from portal.model.clock import utc_now
from portal.settings import load
parts = assemble(load())
while not run_mass_acts(parts, utc_now()):
    time.sleep(0.05)
"""


def worker_of(site: Site, relay: SmtpServer, store_url: str, folder: Path) -> subprocess.Popen[bytes]:
    """Run the mass acts of a store in a process of its own."""
    environment = {
        **os.environ,
        "QUARANTINE_STORE__URL": store_url,
        "QUARANTINE_RELAY__URL": relay.url,
        "QUARANTINE_MAIL__FROM_ADDRESS": "q@example.org",
        "QUARANTINE_LOCAL_DOMAINS": "example.org",
        "QUARANTINE_LINKS__KEYS_FILE": str(site.parts.settings.links.keys_file),
    }
    return subprocess.Popen([sys.executable, "-c", _WORKER], env=environment, cwd=folder)


def test_a_killed_worker_loses_nothing_and_repeats_only_what_was_in_flight(
    make_parts: MakeParts, relay: SmtpServer, store_url: str, tmp_path: Path
) -> None:
    site = Site(make_parts(relay__url=relay.url))
    found = hold(site, 120)
    site.now = now()
    job = masses(site).start(MassAct(Act.RELEASE, FOUND, "", 120, "x"), BY_SHELL, uuid4(), timedelta())
    worker = worker_of(site, relay, store_url, tmp_path)

    def kill_in_the_middle(_: bytes) -> None:
        if len(relay.mails) >= 30:
            worker.kill()  # the final dot of this mail has arrived

    relay.script["BODY"] = kill_in_the_middle
    assert worker.wait(120) == -signal.SIGKILL
    del relay.script["BODY"]
    assert 30 <= len(relay.mails) < 120
    site.now += 2 * LEASE + MINUTE
    shown = run(site, job)
    for _ in range(3):  # a release whose process died is due again after its lease
        site.now += 10 * MINUTE
        retry_due(site.parts.actions)
    assert shown.status is Status.FINISHED
    assert states(site, found) == [State.RELEASED] * 120
    assert 120 <= len(relay.mails) <= 120 + 8


def test_the_rights_of_a_token_decide_about_its_job_until_it_is_revoked(site: Site) -> None:
    give(site, Role.ADMINISTRATOR)
    site.now = now()
    wanted = TokenRequest("repair", Role.DOMAIN_ADMINISTRATOR, "example.org", Scope.ACT, 1)
    secret = site.parts.tokens.create(new_id(), MALLORY, wanted, BY_OPERATOR, site.now)
    program, person = site.parts.tokens.member(secret or "", site.now), site.parts.staff.member(MALLORY)
    assert program and program.token
    found = site.hold(recipients=(ALICE, CAROL), tier=Tier.SPAM)
    rights = masses(site).rights
    mass = MassAct(Act.DELETE, FOUND, "symbol=BAYES_SPAM", 2, "x", MALLORY, token=program.token.id)
    assert MassAct.from_json(json.loads(json.dumps(mass.to_json()))) == mass
    jobs = [masses(site).start(mass, program.acting_from("192.0.2.7"), uuid4(), timedelta()) for _ in range(2)]
    of_person = replace(mass, token=None)
    assert [rights.may_steer(each, mass) for each in (program, person)] == [True, True]
    assert [rights.may_steer(program, of_person), rights.may_see(program, of_person)] == [False, False]
    run(site, jobs[0])
    assert [site.delivery(found, number).state for number in range(2)] == [State.DELETED, State.HELD]
    assert site.history(found, 0)[-1].actor.via == f"api:{program.token.id}/{jobs[0].id}"
    again = replace(mass, criteria=replace(FOUND, states=frozenset({State.DELETED})), act=Act.RESTORE)
    stopped = masses(site).start(again, program.acting_from("192.0.2.7"), uuid4(), timedelta())
    site.parts.tokens.revoke(program.token.id, BY_OPERATOR, site.now)
    assert run(site, stopped).status is Status.STOPPED
    assert site.delivery(found, 0).state is State.DELETED


@pytest.mark.parametrize(("act", "kind"), [(Act.REFUSE, EventKind.REFUSED), (Act.REANNOUNCE, EventKind.REANNOUNCED)])
def test_a_killed_worker_denies_and_announces_each_once(
    make_parts: MakeParts, relay: SmtpServer, store_url: str, tmp_path: Path, act: Act, kind: EventKind
) -> None:
    site = Site(make_parts(relay__url=relay.url))
    found = hold(site, 120, tier=Tier.DANGEROUS)
    if act is Act.REFUSE:
        for each in found:
            site.parts.actions.request_release(each.id, 0, BY_LINK)
        sent_mails(site)
    site.now = now()
    mass = MassAct(act, FOUND, "", 120, "x", notify=act is Act.REANNOUNCE)
    job = masses(site).start(mass, BY_SHELL, uuid4(), timedelta())
    worker = worker_of(site, relay, store_url, tmp_path)
    while len(site.store.audit.list(AuditFilter(act=kind), 30)) < 30:
        assert worker.poll() is None
        time.sleep(0.005)
    worker.kill()
    worker.wait()
    assert masses(site).get(job.id).status is Status.RUNNING
    site.now += 2 * LEASE
    shown = run(site, job)
    assert (shown.status, shown.done, shown.left) == (Status.FINISHED, 120, 0)
    assert all([event.kind for event in site.history(each)].count(kind) == 1 for each in found)
    mails = [text for _, text in sent_mails(site)]
    assert len(mails) == (120 if act is Act.REFUSE else 1)
    assert act is Act.REFUSE or "Number of messages: 120" in mails[0]


def test_a_command_and_its_entry_in_the_audit_are_one(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    hold(site)
    job = start(site)

    def dies(_: object, entries: Sequence[AuditEntry]) -> None:
        if entries:
            raise StoreUnavailable("the process died before the entry was recorded")

    monkeypatch.setattr("portal.stores.shared.jobs.record", dies)
    with pytest.raises(StoreUnavailable):
        masses(site).steer(masses(site).get(job.id), Command.PAUSE, BY_SHELL)
    assert masses(site).get(job.id).job.command is None


def test_a_job_has_the_roles_of_the_session_in_which_it_was_confirmed(make_parts: MakeParts) -> None:
    """A job by somebody who only reads the mail has no roles that a directory gives after a password."""
    site = Site(make_parts(ldap__uri="ldaps://l.example", ldap__base="dc=x", staff__groups={"adm": "administrator"}))
    staff = site.parts.staff
    staff.give(MALLORY, Role.HELP_DESK, EVERYWHERE, BY_OPERATOR)
    staff.put_groups(MALLORY, "ldap", ["adm"])
    by_link, by_password = staff.member(MALLORY, "mailed-link"), staff.member(MALLORY, "ldap")
    rights = masses(site).rights
    for member, may in ((by_link, False), (by_password, True)):
        mass = MassAct(Act.RELEASE, Filter(), "", 1, "x", MALLORY, method=member.method)
        found = rights.member(MassAct.from_json(mass.to_json()))
        assert found and staff.may_release_tier(found, Tier.DANGEROUS, "example.org") is may
        assert rights.may_steer(member, mass)
    assert not rights.may_steer(by_link, mass), "it could go on with more than the session may do"


def test_nobody_steers_the_job_of_their_token_with_less_than_its_rights(make_parts: MakeParts) -> None:
    """Jobs of tokens have no sign-in method, and their tokens have roles that a directory gives after a password."""
    domains = ("example.org", "example.net")
    site = Site(
        make_parts(
            ldap__uri="ldaps://l.example",
            ldap__base="dc=x",
            local_domains=domains,
            staff__groups={"adm": "administrator"},
        )
    )
    staff, tokens = site.parts.staff, site.parts.tokens
    staff.give(MALLORY, Role.HELP_DESK, EVERYWHERE, BY_OPERATOR)
    staff.put_groups(MALLORY, "ldap", ["adm"])
    programs = []
    for role in (Role.ADMINISTRATOR, Role.HELP_DESK):
        wanted = TokenRequest("repair", role, EVERYWHERE, Scope.ACT, 1)
        program = tokens.member(tokens.create(new_id(), MALLORY, wanted, BY_OPERATOR, site.now) or "", site.now)
        assert program and program.token
        programs.append(program)
    by_link, by_password = staff.member(MALLORY, "mailed-link"), staff.member(MALLORY, "ldap")
    rights = masses(site).rights
    expected = {0: (True, False, False, True), 1: (True, True, True, True)}
    for number, may in expected.items():
        token = programs[number].token
        mass = MassAct(Act.RELEASE, Filter(), "", 1, "x", MALLORY, token=token.id if token else None)
        assert tuple(rights.may_steer(each, mass) for each in (programs[0], programs[1], by_link, by_password)) == may


def test_steering_a_job_needs_its_rights_in_each_of_its_domains(site: Site) -> None:
    """The help desk releases spam where the recipients may, so its role for all domains is not enough in each."""
    staff, rights = site.parts.staff, masses(site).rights
    for key, right in (("release_spam", "request"), ("release_suspicious", "administrator")):
        site.parts.domains.set("example.net", key, right, BY_OPERATOR)
    staff.give(ALICE, Role.HELP_DESK, EVERYWHERE, BY_OPERATOR)
    staff.give(MALLORY, Role.DOMAIN_ADMINISTRATOR, "example.net", BY_OPERATOR)
    staff.give(MALLORY, Role.AUDITOR, EVERYWHERE, BY_OPERATOR)
    limited = Filter(domains=frozenset({"example.net"}), tiers=frozenset({Tier.SPAM}))
    for wanted in (limited, Filter(recipient=CAROL)):
        mass = MassAct(Act.RELEASE, wanted, "", 1, "x", MALLORY, method="ldap")
        assert not rights.may_steer(staff.member(ALICE, "ldap"), mass)
    for method in ("ldap", "mailed-link"):
        member = staff.member(MALLORY, method)
        assert rights.may_steer(member, MassAct(Act.RELEASE, Filter(), "", 1, "x", MALLORY, method="ldap"))
