"""Background jobs, in both stores."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID, uuid4

import pytest

from portal.model.audit import Act, AuditEntry, AuditFilter
from portal.model.errors import AlreadyDone, NotFound
from portal.model.message import new_id
from portal.stores import LEASE, Store
from portal.stores.lifecycle import JOBS_KEPT
from portal.stores.records import Command
from tests.builders import BY_OPERATOR, now
from tests.contract.helpers import HOUR, MINUTE, SECOND, UNKNOWN, concurrently

KIND = "mass-release"


def test_a_job_keeps_what_it_was_given(store: Store) -> None:
    at = now()
    id = store.jobs.add(KIND, {"words": "Grüße", "ids": [1, 2]}, BY_OPERATOR, at)
    job = store.jobs.get(id)
    assert (job.kind, job.arguments, job.actor) == (KIND, {"words": "Grüße", "ids": [1, 2]}, BY_OPERATOR)
    assert (job.created_at, job.not_before, job.tries) == (at, at, 0)
    assert (job.progress, job.outcome, job.finished_at) == ({}, None, None)
    with pytest.raises(NotFound):
        store.jobs.get(UNKNOWN)


def test_jobs_are_claimed_by_kind_and_the_longest_due_first(store: Store) -> None:
    at = now()
    later = store.jobs.add(KIND, {}, BY_OPERATOR, at, at + MINUTE)
    second = store.jobs.add(KIND, {}, BY_OPERATOR, at)
    first = store.jobs.add(KIND, {}, BY_OPERATOR, at - MINUTE)
    other = store.jobs.add("learn", {}, BY_OPERATOR, at - HOUR)
    assert [job.id for job in store.jobs.claim(KIND, 5, at)] == [first, second]
    assert store.jobs.claim(KIND, 5, at) == []
    assert [job.id for job in store.jobs.claim(KIND, 5, at + MINUTE)] == [later]
    assert [job.id for job in store.jobs.claim("learn", 1, at)] == [other]


def test_each_job_is_claimed_once(store: Store) -> None:
    at = now()
    ids = [store.jobs.add(KIND, {}, BY_OPERATOR, at) for _ in range(12)]
    claims = concurrently(4, lambda _: store.jobs.claim(KIND, 3, at + SECOND))
    assert sorted(job.id for claim in claims for job in claim) == sorted(ids)


def test_a_job_whose_process_died_is_claimed_again_with_its_progress(store: Store) -> None:
    at = now()
    id = store.jobs.add(KIND, {}, BY_OPERATOR, at)
    [job] = store.jobs.claim(KIND, 1, at)
    store.jobs.keep(job, {"done": 3}, at + MINUTE)
    assert store.jobs.claim(KIND, 1, at + LEASE) == []
    [again] = store.jobs.claim(KIND, 1, at + MINUTE + LEASE)
    assert (again.id, again.tries, again.progress) == (id, 2, {"done": 3})


def test_a_job_that_is_added_twice_exists_once(store: Store) -> None:
    at, arguments = now(), {"words": "Grüße"}
    made = store.jobs.add_once(UNKNOWN, KIND, arguments, BY_OPERATOR, at, claimed=True)
    assert (made.id, made.arguments, made.tries, made.lease is not None) == (UNKNOWN, arguments, 1, True)
    assert store.jobs.claim(KIND, 1, at) == []
    for id in (UNKNOWN, new_id(), new_id()):  # the same id, or an equal job that is not finished
        again = store.jobs.add_once(id, KIND, arguments, BY_OPERATOR, at, claimed=True)
        assert (again, again.lease) == (made, None)
    store.jobs.keep(made, {"done": 1}, at)
    store.jobs.finish(made, "done", at)
    assert store.jobs.add_once(UNKNOWN, KIND, arguments, BY_OPERATOR, at, claimed=True).outcome == "done"
    other = store.jobs.add_once(new_id(), KIND, arguments, BY_OPERATOR, at, claimed=False)
    assert (other.id != UNKNOWN, other.tries, other.lease) == (True, 0, None)
    forms = concurrently(4, lambda n: store.jobs.add_once(new_id(), KIND, {"n": 1}, BY_OPERATOR, at, claimed=True))
    assert len({job.id for job in forms}) == 1 and sum(job.lease is not None for job in forms) == 1


def test_a_process_that_lost_its_claim_changes_nothing(store: Store) -> None:
    at = now()
    store.jobs.add(KIND, {}, BY_OPERATOR, at)
    [lost] = store.jobs.claim(KIND, 1, at)
    [job] = store.jobs.claim(KIND, 1, at + LEASE)
    with pytest.raises(AlreadyDone):
        store.jobs.keep(lost, {"done": 1}, at + LEASE)
    store.jobs.retry(lost, at)
    store.jobs.finish(lost, "released", at)
    store.jobs.finish(lost, None, at)
    assert store.jobs.get(job.id) == job
    store.jobs.keep(job, {"done": 2}, at + LEASE)
    assert store.jobs.get(job.id).progress == {"done": 2}


def test_a_job_is_retried_at_the_time_given(store: Store) -> None:
    at = now()
    store.jobs.add(KIND, {}, BY_OPERATOR, at)
    [job] = store.jobs.claim(KIND, 1, at)
    store.jobs.retry(job, at + HOUR)
    assert store.jobs.claim(KIND, 1, at + HOUR - SECOND) == []
    [job] = store.jobs.claim(KIND, 1, at + HOUR)
    assert job.tries == 2
    store.jobs.retry(job, at, tried=False)
    assert store.jobs.get(job.id).tries == 1


def test_a_finished_job_is_kept_and_not_claimed(store: Store) -> None:
    at = now()
    store.jobs.add(KIND, {}, BY_OPERATOR, at)
    [job] = store.jobs.claim(KIND, 1, at)
    store.jobs.finish(job, "214 released", at + MINUTE)
    finished = store.jobs.get(job.id)
    assert (finished.outcome, finished.finished_at) == ("214 released", at + MINUTE)
    assert store.jobs.claim(KIND, 1, at + HOUR) == []
    assert store.stats(at).jobs_waiting == 0
    store.purge(at - HOUR, at + JOBS_KEPT)
    assert store.jobs.get(job.id) == finished
    store.purge(at - HOUR, at + MINUTE + JOBS_KEPT + SECOND)
    with pytest.raises(NotFound):
        store.jobs.get(job.id)


def test_a_job_without_an_outcome_is_removed_at_its_end(store: Store) -> None:
    at = now()
    id: UUID = store.jobs.add(KIND, {}, BY_OPERATOR, at)
    assert store.stats(at).jobs_waiting == 1
    [job] = store.jobs.claim(KIND, 1, at)
    store.jobs.finish(job, None, at)
    with pytest.raises(NotFound):
        store.jobs.get(id)
    assert store.stats(at).jobs_waiting == 0


def test_a_claim_by_a_clock_that_was_ahead_ends(store: Store) -> None:
    at = now()
    claimed = store.jobs.add(KIND, {}, BY_OPERATOR, at)
    planned = store.jobs.add(KIND, {}, BY_OPERATOR, at, at + 1000 * HOUR)
    store.jobs.claim(KIND, 1, at + 999 * HOUR)
    assert store.repair_clock_skew(at) == 1
    assert [job.id for job in store.jobs.claim(KIND, 5, at)] == [claimed]
    assert store.jobs.get(planned).not_before == at + 1000 * HOUR


def test_a_job_queued_by_a_clock_that_was_ahead_runs(store: Store) -> None:
    at = now()
    id = store.jobs.add(KIND, {}, BY_OPERATOR, at + 1000 * HOUR)
    assert store.repair_clock_skew(at) == 1
    assert [job.id for job in store.jobs.claim(KIND, 5, at)] == [id]


def test_a_job_and_its_entries_in_the_audit_are_written_together(store: Store) -> None:
    at, id = now(), uuid4()
    entry = AuditEntry.new(at, Act.JOB_STARTED, BY_OPERATOR, "example.org")
    for _ in range(2):
        store.jobs.add_once(id, KIND, {}, BY_OPERATOR, at, entries=[entry])
        entry = replace(entry, id=uuid4())
    assert len(store.audit.list(AuditFilter(act="job-started"), 5)) == 1, "not for the same job again"
    store.jobs.add(KIND, {"n": 1}, BY_OPERATOR, at, entries=[entry])
    assert len(store.audit.list(AuditFilter(act="job-started"), 5)) == 2
    with pytest.raises(TypeError):
        store.jobs.add(KIND, {"n": object()}, BY_OPERATOR, at, entries=[replace(entry, id=uuid4())])
    assert len(store.audit.list(AuditFilter(act="job-started"), 5)) == 2


def test_resuming_a_job_keeps_the_time_of_its_start(store: Store) -> None:
    at = now()
    waiting = store.jobs.add(KIND, {}, BY_OPERATOR, at, at + MINUTE)
    failed = store.jobs.add(KIND, {}, BY_OPERATOR, at)
    [job] = store.jobs.claim(KIND, 1, at)
    store.jobs.retry(job, at + MINUTE)
    for each in (waiting, failed):
        store.jobs.command(each, Command.PAUSE, at)
        assert store.jobs.command(each, None, at)
    assert [job.id for job in store.jobs.claim(KIND, 5, at)] == [failed]
    store.jobs.command(waiting, Command.CANCEL, at)
    assert [job.id for job in store.jobs.claim(KIND, 5, at)] == [waiting]
