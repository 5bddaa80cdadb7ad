"""Virus scans of held messages, in both stores."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from uuid import UUID

import pytest

from portal.model.errors import NotFound
from portal.model.message import WAITING, DeliveryId, EventKind, Filter, Message, Scan, ScanOutcome, State, Symbol, Tier
from portal.stores import Store, open_store
from portal.stores.files.reindex import reindex
from portal.stores.shared.jobs import SCAN
from tests.builders import ALICE, BOB, BY_LINK, MALLORY, body, export, hold, mail, now
from tests.contract.helpers import MINUTE, UNKNOWN

VIRUS = Symbol("CLAM_VIRUS", 0.0, ("Eicar",))


def hold_for_scan(store: Store, data: bytes | None = None, tier: Tier = Tier.SPAM) -> UUID:
    data = data or mail()
    return store.messages.add(export(data), body(data), tier, (), scan=WAITING).id


def message_of(store: Store, id: UUID) -> Message:
    [message] = store.messages.find(str(id))
    return message


def clean(at: datetime) -> Scan:
    return Scan(ScanOutcome.CLEAN, at)


def failed(at: datetime) -> Scan:
    return Scan(ScanOutcome.FAILED, at, detail="Rspamd did not answer")


def found_by_tier(store: Store, tier: Tier) -> list[UUID]:
    return [d.id for d in store.deliveries.search(Filter(tiers=frozenset({tier})), 100).deliveries if d.number == 0]


def test_a_message_waits_for_its_scan_as_suspicious(store: Store) -> None:
    id, other = hold_for_scan(store), hold(store).id
    message = message_of(store, id)
    assert (message.scan, message.verdict_tier, message.tier) == (WAITING, Tier.SPAM, Tier.SUSPICIOUS)
    assert message_of(store, other).scan is None
    assert found_by_tier(store, Tier.SUSPICIOUS) == [id]
    [job] = store.jobs.claim(SCAN, 5, now())
    assert job.arguments == {"message": str(id)}


def test_the_same_mail_again_queues_no_second_scan(store: Store) -> None:
    data = mail()
    assert hold_for_scan(store, data) == hold_for_scan(store, data)
    assert store.stats(now()).jobs_waiting == 1


def test_a_clean_scan_ends_the_caution(store: Store) -> None:
    id, at = hold_for_scan(store), now()
    message = store.messages.record_scan(id, clean(at), Tier.SPAM, at)
    assert message == message_of(store, id)
    assert (message.scan, message.tier) == (clean(at), Tier.SPAM)
    assert found_by_tier(store, Tier.SPAM) == [id]
    assert found_by_tier(store, Tier.SUSPICIOUS) == []


def test_a_failed_scan_leaves_it_suspicious(store: Store) -> None:
    id, at = hold_for_scan(store), now()
    store.messages.record_scan(id, failed(at), Tier.SPAM, at)
    assert (message_of(store, id).scan, message_of(store, id).tier) == (failed(at), Tier.SUSPICIOUS)
    worse = hold_for_scan(store, tier=Tier.DANGEROUS)
    store.messages.record_scan(worse, failed(at), Tier.DANGEROUS, at)
    assert message_of(store, worse).tier is Tier.DANGEROUS


def test_a_message_that_was_not_held_for_a_scan_can_be_scanned(store: Store) -> None:
    id, at = hold(store).id, now()
    store.messages.record_scan(id, failed(at), Tier.SPAM, at)
    assert message_of(store, id).tier is Tier.SUSPICIOUS
    store.messages.record_scan(id, clean(at + MINUTE), Tier.SPAM, at + MINUTE)
    assert message_of(store, id).tier is Tier.SPAM


def test_a_found_virus_makes_the_message_dangerous(store: Store) -> None:
    id, at = hold_for_scan(store), now()
    released, other = store.deliveries.of_message(id)
    with store.deliveries.releasing(released.key, {State.HELD}, BY_LINK, at):
        pass
    scan = Scan(ScanOutcome.FOUND, at, (VIRUS,))
    message = store.messages.record_scan(id, scan, Tier.DANGEROUS, at)
    assert message == message_of(store, id)
    assert (message.scan, message.tier) == (scan, Tier.DANGEROUS)
    assert [symbol.name for symbol in message.symbols] == ["BAYES_SPAM", "R_SPF_FAIL", "CLAM_VIRUS"]
    assert found_by_tier(store, Tier.DANGEROUS) == [id]
    assert store.deliveries.history(other.key)[-1].kind is EventKind.RAISED
    assert store.deliveries.history(other.key)[-1].detail == "spam -> dangerous"
    assert store.deliveries.history(released.key)[-1].kind is EventKind.RELEASED
    assert store.messages.record_scan(id, scan, Tier.DANGEROUS, at) == message
    assert len([e for e in store.deliveries.history(other.key) if e.kind is EventKind.RAISED]) == 1
    assert [symbol.name for symbol in message_of(store, id).symbols].count("CLAM_VIRUS") == 1


def test_what_a_scan_found_stays(store: Store) -> None:
    id, at = hold_for_scan(store), now()
    found = Scan(ScanOutcome.FOUND, at, (VIRUS,))
    store.messages.record_scan(id, found, Tier.DANGEROUS, at)
    for later in (clean(at + MINUTE), failed(at + MINUTE)):
        store.messages.record_scan(id, later, Tier.SPAM, at + MINUTE)
        assert (message_of(store, id).scan, message_of(store, id).tier) == (found, Tier.DANGEROUS)


def test_a_failed_scan_does_not_replace_one_that_was_done(store: Store) -> None:
    id, at = hold_for_scan(store), now()
    store.messages.record_scan(id, clean(at), Tier.SPAM, at)
    store.messages.record_scan(id, failed(at + MINUTE), Tier.SPAM, at + MINUTE)
    assert (message_of(store, id).scan, message_of(store, id).tier) == (clean(at), Tier.SPAM)


def test_a_finding_applies_to_all_messages_with_these_bytes(store: Store) -> None:
    data, at = mail(), now()
    ids = [hold(store, data, [recipient]).id for recipient in (ALICE, BOB)]
    store.messages.record_scan(ids[0], clean(at), Tier.SPAM, at)
    released = hold(store, data, [MALLORY]).id
    with store.deliveries.releasing(DeliveryId(released, 0), {State.HELD}, BY_LINK, at):
        pass
    found = Scan(ScanOutcome.FOUND, at, (VIRUS,))
    store.messages.record_scan(ids[1], found, Tier.DANGEROUS, at)
    for id in ids:
        assert (message_of(store, id).tier, message_of(store, id).scan) == (Tier.DANGEROUS, found)
        assert message_of(store, id).symbols[-1] == VIRUS
        assert store.deliveries.history(DeliveryId(id, 0))[-1].kind is EventKind.RAISED
    assert message_of(store, released).tier is Tier.SPAM


def test_a_later_verdict_leaves_the_scan(store: Store) -> None:
    data, at = mail(), now()
    id = hold_for_scan(store, data)
    hold(store, data, tier=Tier.SUSPICIOUS, symbols=(Symbol("MIME_BAD", 3.0),))
    assert (message_of(store, id).scan, message_of(store, id).tier) == (WAITING, Tier.SUSPICIOUS)
    store.messages.record_scan(id, clean(at), Tier.SPAM, at)
    assert (message_of(store, id).scan, message_of(store, id).tier) == (clean(at), Tier.SUSPICIOUS)


def test_the_scan_of_an_unknown_message(store: Store) -> None:
    with pytest.raises(NotFound):
        store.messages.record_scan(UNKNOWN, clean(now()), Tier.SPAM, now())


def test_deleted_deliveries_are_raised_as_well(store: Store) -> None:
    id, at = hold_for_scan(store), now()
    first, _ = store.deliveries.of_message(id)
    store.deliveries.move(first.key, State.DELETED, {State.HELD}, BY_LINK, at, kind=EventKind.DELETED)
    store.messages.record_scan(id, Scan(ScanOutcome.FOUND, at, (VIRUS,)), Tier.DANGEROUS, at)
    assert store.deliveries.history(first.key)[-1].kind is EventKind.RAISED


def test_a_reindex_keeps_scans(files_url: str) -> None:
    store, at = open_store(files_url), now()
    done, found, waiting = (hold_for_scan(store) for _ in range(3))
    store.messages.record_scan(done, clean(at), Tier.SPAM, at)
    store.messages.record_scan(found, Scan(ScanOutcome.FOUND, at, (VIRUS,)), Tier.DANGEROUS, at)
    before = [message_of(store, id) for id in (done, found, waiting)]
    store.close()
    assert reindex(Path(files_url.removeprefix("files://")), lambda *_: None).unreadable_lines == 0
    store = open_store(files_url)
    assert [message_of(store, id) for id in (done, found, waiting)] == before
    # The new database asks for all scans again; those that were done are not repeated.
    assert {job.arguments["message"] for job in store.jobs.claim(SCAN, 9, at)} >= {str(waiting)}
    store.close()


def test_a_copy_keeps_scans(store: Store, tmp_path: Path) -> None:
    at = now()
    done, waiting = hold_for_scan(store), hold_for_scan(store)
    store.messages.record_scan(done, failed(at), Tier.SPAM, at)
    other = open_store(f"files://{tmp_path}/other")
    for id, record in store.messages.records([done, waiting]).items():
        data = b"".join(store.messages.body(id))
        other.messages.import_record(record, body(data))
        assert message_of(other, id) == message_of(store, id)
    jobs = other.jobs.claim(SCAN, 5, now())
    assert {job.arguments["message"] for job in jobs} == {str(done), str(waiting)}  # neither scan was done
    other.close()


def test_a_copy_does_not_replace_what_a_scan_found(store: Store, tmp_path: Path) -> None:
    at, data = now(), mail()
    id, other = hold_for_scan(store, data), open_store(f"files://{tmp_path}/other")
    store.messages.record_scan(id, clean(at), Tier.SPAM, at)
    record = store.messages.records([id])[id]
    other.messages.import_record(record, body(data))
    found = Scan(ScanOutcome.FOUND, at, (VIRUS,))
    other.messages.record_scan(id, found, Tier.DANGEROUS, at)
    other.messages.import_record(record, body(data))
    assert message_of(other, id).scan == found
    other.close()


def test_a_copy_into_this_store_keeps_scans(store: Store, tmp_path: Path) -> None:
    at, other = now(), open_store(f"files://{tmp_path}/other")
    done, waiting = hold_for_scan(other), hold_for_scan(other)
    other.messages.record_scan(done, clean(at), Tier.SPAM, at)
    for id, record in other.messages.records([done, waiting]).items():
        store.messages.import_record(record, body(b"".join(other.messages.body(id))))
        assert message_of(store, id) == message_of(other, id)
    assert [job.arguments for job in store.jobs.claim(SCAN, 5, at)] == [{"message": str(waiting)}]
    other.close()
