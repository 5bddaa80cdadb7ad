"""`quarantine copy`: everything arrives in the other store, in all directions, also after a kill."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import time, timedelta
from pathlib import Path
from uuid import UUID

import psycopg
import pytest
from click.testing import CliRunner, Result

from portal.cli import main
from portal.model.audit import Act
from portal.model.domain_value import DomainValue
from portal.model.errors import AlreadyDone, RelayDeferred, RelayRefused, StoreUnavailable
from portal.model.message import Body, DeliveryId, EventKind, Filter, Reader, Start, State, Tier, held_at, new_id
from portal.model.rule import SITE
from portal.model.schedule import Preferences
from portal.model.staff import EVERYWHERE, Grant, Role
from portal.moving import copy as moving
from portal.stores import Store, open_store
from portal.stores.contracts import Messages
from portal.stores.files.messages import FileMessages
from portal.stores.postgres.messages import PostgresMessages
from portal.stores.records import Held, Record
from tests.builders import (
    ALICE,
    BOB,
    BY_LINK,
    BY_OPERATOR,
    MALLORY,
    digesting,
    hold,
    mail,
    now,
    prefer,
    rule,
    second_factor,
)
from tests.contract.test_tokens import token
from tests.databases import Databases
from tests.paths import ROOT

READERS = [Reader(ALICE), Reader(ALICE, (), {ALICE: (ALICE, BOB)})]
KINDS = [("files", "postgres"), ("postgres", "files"), ("files", "files"), ("postgres", "postgres")]

NewUrl = Callable[[str], str]


@pytest.fixture
def new_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[NewUrl]:
    """``new_url("files" or "postgres")``: the URL of another fresh store."""
    with ExitStack() as stack:

        def make(kind: str) -> str:
            if kind == "files":
                return f"files://{tmp_path}/{secrets.token_hex(4)}"
            databases: Databases = request.getfixturevalue("postgres_databases")
            name = databases.acquire()
            stack.callback(databases.release, name)
            return databases.url(name)

        yield make


@pytest.fixture(params=KINDS, ids=lambda kinds: f"{kinds[0]}-to-{kinds[1]}")
def urls(request: pytest.FixtureRequest, new_url: NewUrl) -> tuple[str, str]:
    return new_url(request.param[0]), new_url(request.param[1])


@pytest.fixture
def stores(urls: tuple[str, str]) -> Iterator[tuple[Store, Store]]:
    with ExitStack() as stack:
        opened = [open_store(url) for url in urls]
        for store in opened:
            stack.callback(store.close)
        yield opened[0], opened[1]


def run_copy(*words: str) -> Result:
    result = CliRunner().invoke(main, ["copy", *words])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    return result


def everything(store: Store) -> dict[str, object]:
    """Return everything that a copy must contain, read through the methods of the store."""
    ids = store.messages.ids(None, 1000)
    return {
        "messages": {
            id: (
                b"".join(store.messages.body(id)),
                [(d, store.deliveries.history(d.key)) for d in store.deliveries.of_message(id)],
            )
            for id in ids
        },
        "people": store.recipients.records("", 1000),
        "digests": sorted(store.digests.records(None, 1000), key=lambda d: d.id),
        "key": store.notes.get("links.key"),
        "last digests": {p.recipient: store.digests.last(p.recipient) for p in store.recipients.records("", 1000)},
        "due": store.deliveries.due_releases(now() + timedelta(days=9), 100),
        "rules": store.rules.records(None, 1000),
        "domains": store.domains.records(None, 1000),
        "audit": [each for each in store.audit.records(None, 1000) if each.act != Act.REINDEXED],
        "staff": store.staff.all(),
        "tokens": store.tokens.all(),
        "second factors": store.second_factors.all(),
        "statistics": store.statistics.records(None),
        "found": [store.deliveries.search(Filter(recipient=person), 100) for person in (ALICE, "carol@example.org")],
    }


def release(store: Store, held: Held, number: int, error: Exception | None = None) -> None:
    try:
        with store.deliveries.releasing(DeliveryId(held.id, number), {State.HELD, State.REQUESTED}, BY_LINK, now()):
            if error is not None:
                raise error
    except (RelayDeferred, RelayRefused):
        pass


def fill(store: Store) -> list[Held]:
    """Add mail in every state, with every kind of history, announced or not, and people with preferences."""
    held = [hold(store) for _ in range(4)]
    release(store, held[0], 0)
    release(store, held[0], 1, RelayRefused("550 no such user"))
    release(store, held[1], 0, RelayDeferred("450 busy"))
    for key in (DeliveryId(held[1].id, 1), DeliveryId(held[2].id, 1)):
        store.deliveries.move(
            key, State.REQUESTED, {State.HELD}, BY_LINK, now(), kind=EventKind.REQUESTED, reason="We wait for it."
        )
    store.deliveries.move(key, State.HELD, {State.REQUESTED}, BY_LINK, now(), kind=EventKind.WITHDRAWN)
    with digesting(store, ALICE, now(), 10, ignore_schedule=True):
        pass
    held.append(hold(store, b"", recipients=["Bob@Example.org"]))
    held.append(
        hold(store, b"\x80\xff\0 8 bit\r\n.\r\n", recipients=[ALICE], envelope_sender=None, tier=Tier.DANGEROUS)
    )
    held.append(hold(store, mail(size_bytes=3_000_000), recipients=[], envelope_sender="", announce=()))
    store.deliveries.assign(DeliveryId(held[-1].id, 0), "Carol@example.org", BY_OPERATOR, now())
    store.deliveries.move(
        DeliveryId(held[2].id, 0),
        State.DELETED,
        {State.HELD},
        BY_LINK,
        now(),
        kind=EventKind.DELETED,
        reason="not mine",
    )
    starts = {ALICE: Start(State.BLOCKED, BY_OPERATOR, "rule"), BOB: Start(State.PASSED, BY_OPERATOR)}
    held.append(hold(store, starts=starts))
    shared = mail()
    held += [hold(store, shared, recipients=[ALICE]), hold(store, shared, recipients=[BOB], queue_id=None)]
    store.recipients.set_digests_stopped(BOB, now())
    prefer(store, BOB, Preferences("monday", (time(6, 30),), "Asia/Tokyo"))
    store.recipients.revoke_links(MALLORY, now())
    store.recipients.forget_devices(MALLORY, now())
    fill_rules(store)
    for name, value in (("language", "fr"), ("language", "de"), ("name", "Post"), ("name", None)):
        store.domains.set([DomainValue(new_id(), "example.org", name, value, now(), BY_OPERATOR)])
    store.staff.give(Grant(ALICE, Role.DOMAIN_ADMINISTRATOR, "example.org", now(), BY_OPERATOR))
    store.staff.give(Grant(BOB, Role.AUDITOR, EVERYWHERE, now(), BY_OPERATOR))
    for days in (1, 30):
        store.tokens.add(token(days=days))
    for person in (ALICE, BOB):
        store.second_factors.put(second_factor(person), "", b"s" * 32, BY_OPERATOR, now())
    store.statistics.close(now().date())
    store.notes.set_default("links.key", "0123456789abcdef")
    return held


def fill_rules(store: Store) -> None:
    """Add rules of all kinds: in use, replaced, removed, put back, expired."""
    at = now()
    store.rules.add([rule("promo@example.net", "allow", message_id=new_id(), note="Grüße", expires_at=at)], at)
    store.rules.add([rule("192.0.2.0/24", scope=SITE, actor=BY_OPERATOR, binding=True)], at)
    store.rules.add([rule("replaced.example")], at)
    store.rules.add([rule("replaced.example", "allow", actor=BY_OPERATOR)], at)
    for sender in ("removed.example", "restored.example"):
        [made] = store.rules.add([rule(sender, scope="@example.org")], at)
        store.rules.remove(made.id, BY_OPERATOR, at)
        if sender == "restored.example":
            store.rules.restore(made.id, BY_OPERATOR, at)


def test_everything_arrives_and_nothing_twice(urls: tuple[str, str], stores: tuple[Store, Store]) -> None:
    source, target = stores
    held = fill(source)
    first = run_copy(*urls)
    assert first.exit_code == 0, first.output
    assert f"copied {len(held)} messages" in first.output
    assert "sessions" in first.output
    assert everything(target) == everything(source)
    again = run_copy(*urls)
    assert f"copied 0 messages (0.0 MB), updated 0, {len(held)} unchanged" in again.output
    assert everything(target) == everything(source)


def test_mail_and_changes_during_a_copy_are_copied_by_the_next_run(
    urls: tuple[str, str], stores: tuple[Store, Store]
) -> None:
    source, target = stores
    held = fill(source)
    run_copy(*urls)
    hold(source)
    lost = hold(source, recipients=[], announce=())
    run_copy(*urls)
    source.deliveries.assign(DeliveryId(lost.id, 0), "Carol@example.org", BY_OPERATOR, now())
    release(source, held[3], 1)
    source.deliveries.move(
        DeliveryId(held[2].id, 0), State.HELD, {State.DELETED}, BY_OPERATOR, now(), kind=EventKind.RESTORED
    )
    source.recipients.set_digests_stopped(BOB, None)
    source.recipients.set_digests_stopped(ALICE, now())
    prefer(source, BOB, Preferences("daily"))
    source.recipients.revoke_links(BOB, now())
    with digesting(source, BOB, now(), 3, ignore_schedule=True):
        pass
    for each in source.rules.list(None, 99, now()):
        source.rules.remove(each.id, BY_LINK, now())
    replaced = next(each for each in source.rules.records(None, 99) if each.sender == "replaced.example")
    source.rules.restore(replaced.id, BY_OPERATOR, now())
    source.rules.add([rule("another.example")], now())
    source.staff.remove(BOB, Role.AUDITOR, EVERYWHERE, BY_OPERATOR, now())
    source.tokens.revoke(source.tokens.all()[0].id, BY_OPERATOR, now())
    source.second_factors.reset(BOB, BY_OPERATOR, now())
    result = run_copy(*urls)
    assert "copied 0 messages" in result.output
    assert everything(target) == everything(source)


def test_the_same_mail_is_known_in_the_new_store(urls: tuple[str, str], stores: tuple[Store, Store]) -> None:
    source, target = stores
    data = mail()
    held = hold(source, data)
    run_copy(*urls)
    assert hold(target, data) == Held(held.id, known=True)


def test_a_copied_digest_continues_where_the_old_store_stopped(
    urls: tuple[str, str], stores: tuple[Store, Store]
) -> None:
    source, target = stores
    announced, unannounced = hold(source, recipients=[ALICE]), None
    with digesting(source, ALICE, now(), 10, ignore_schedule=True) as digest:
        pass
    unannounced = hold(source, recipients=[ALICE])
    run_copy(*urls)
    assert target.digests.recipient_of(digest.id).recipient == ALICE
    with digesting(target, ALICE, now(), 10, ignore_schedule=True) as next_digest:
        assert [d.id for d in next_digest.deliveries] == [unannounced.id]
    assert target.deliveries.get(DeliveryId(announced.id, 0)).announced_at is not None


@pytest.mark.parametrize("reader", READERS, ids=["own", "shared"])
@pytest.mark.parametrize("by", [0, 1], ids=["source", "target"])
def test_a_later_copy_does_not_undo_that_a_message_is_put_into_the_next_digest_again(
    urls: tuple[str, str], stores: tuple[Store, Store], reader: Reader, by: int
) -> None:
    again, _ = hold(stores[0], recipients=[ALICE]), hold(stores[0], recipients=[ALICE])
    with digesting(stores[0], reader, now(), 10, ignore_schedule=True):
        pass
    run_copy(*urls)
    stores[by].deliveries.reannounce(DeliveryId(again.id, 0), BY_OPERATOR, now() + timedelta(minutes=1))
    for _ in range(2):
        run_copy(*urls)
        assert [each.id for each in stores[1].digests.unannounced(reader, 10)] == [again.id]


@pytest.mark.parametrize("reader", READERS, ids=["own", "shared"])
def test_what_is_put_into_the_next_digest_again_is_in_that_of_the_new_store(
    urls: tuple[str, str], stores: tuple[Store, Store], reader: Reader
) -> None:
    source, target = stores
    again, _ = hold(source, recipients=[ALICE]), hold(source, recipients=[ALICE])
    with digesting(source, reader, now(), 10, ignore_schedule=True):
        pass
    source.deliveries.reannounce(DeliveryId(again.id, 0), BY_OPERATOR, now() + timedelta(minutes=1))
    run_copy(*urls)
    with digesting(target, reader, now(), 10, ignore_schedule=True) as next_digest:
        assert [d.id for d in next_digest.deliveries] == [again.id]


def test_a_release_under_way_is_tried_again_from_the_new_store(
    urls: tuple[str, str], stores: tuple[Store, Store]
) -> None:
    source, target = stores
    held = hold(source)
    release(source, held, 0, RelayDeferred("450 busy"))
    run_copy(*urls)
    with target.deliveries.releasing(DeliveryId(held.id, 0), set(), BY_LINK, now() + timedelta(hours=1)) as delivery:
        assert delivery.attempts == 2
    assert target.deliveries.get(DeliveryId(held.id, 0)).state is State.RELEASED


def test_changes_in_the_new_store_after_the_switch_are_not_undone(
    urls: tuple[str, str], stores: tuple[Store, Store]
) -> None:
    source, target = stores
    mine, late = hold(source), hold(source)
    source.recipients.set_digests_stopped(ALICE, now())
    [removed] = source.rules.add([rule("removed.example")], now())
    source.staff.give(Grant(BOB, Role.AUDITOR, EVERYWHERE, now(), BY_OPERATOR))
    source.tokens.add(lost := token())
    run_copy(*urls)
    release(source, late, 0)  # the last act before the switch
    [last] = source.rules.add([rule("last.example")], now())
    target.heartbeat(now())
    release(target, mine, 0)
    target.recipients.set_digests_stopped(ALICE, None)
    target.rules.remove(removed.id, BY_LINK, now())
    target.staff.remove(BOB, Role.AUDITOR, EVERYWHERE, BY_OPERATOR, now())
    target.tokens.revoke(lost.id, BY_OPERATOR, now())
    target.notes.set("links.key", "of a rotation")
    came = hold(target)
    source.notes.set("links.key", "of before")
    result = run_copy(*urls)
    assert result.exit_code == 0
    assert target.deliveries.get(DeliveryId(mine.id, 0)).state is State.RELEASED
    assert target.deliveries.get(DeliveryId(late.id, 0)).state is State.RELEASED
    assert target.recipients.get(ALICE).stopped_at is None
    assert target.rules.list(None, 9, now()) == [last]
    assert target.staff.all() == []
    assert target.tokens.get(lost.id).revoked_at
    assert target.notes.get("links.key") == "of a rotation"
    assert target.deliveries.of_message(came.id)


def test_mail_that_came_to_both_stores_stays_in_both_places(urls: tuple[str, str], stores: tuple[Store, Store]) -> None:
    source, target = stores
    hold(source)
    run_copy(*urls)
    data = mail()
    old, new = hold(source, data), hold(target, data)
    assert run_copy(*urls).exit_code == 0
    assert target.deliveries.of_message(old.id)
    assert b"".join(target.messages.body(old.id)) == data
    assert hold(target, data) == Held(new.id, known=True)
    assert run_copy(*urls).exit_code == 0


def test_a_copy_may_go_back(urls: tuple[str, str], stores: tuple[Store, Store]) -> None:
    source, target = stores
    fill(source)
    run_copy(*urls)
    came = hold(target)
    result = run_copy(urls[1], urls[0])
    assert result.exit_code == 0, result.output
    assert source.deliveries.of_message(came.id) == target.deliveries.of_message(came.id)


def test_old_mail_is_copied_to_its_day(urls: tuple[str, str], stores: tuple[Store, Store]) -> None:
    source, target = stores
    from tests.builders import body, export

    data = mail()
    held = source.messages.add(export(data), body(data), Tier.SPAM, [], at=now() - timedelta(days=200))
    run_copy(*urls)
    assert target.deliveries.get(DeliveryId(held.id, 0)).message.held_at == held_at(held.id)


# ---- interrupted


def test_a_copy_that_fails_in_the_middle_can_be_continued(
    urls: tuple[str, str], stores: tuple[Store, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = stores
    held = fill(source)
    calls = 0
    original = type(target.messages).import_record

    def failing(self: Messages, *args: object) -> None:
        nonlocal calls
        calls += 1
        if calls >= 5:
            raise StoreUnavailable("the disk is full: make room")
        original(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(type(target.messages), "import_record", failing)
    result = run_copy(*urls)
    assert result.exit_code == 1
    assert "the disk is full" in result.output
    assert "Run the same command again" in result.output
    brought = len(target.messages.ids(None, 100))
    assert 0 < brought < len(held)
    monkeypatch.undo()
    assert f"copied {len(held) - brought} messages" in run_copy(*urls).output
    assert everything(target) == everything(source)


@pytest.mark.system
def test_a_copy_killed_at_any_time_can_be_continued(urls: tuple[str, str], stores: tuple[Store, Store]) -> None:
    source, target = stores
    for _ in range(120):
        hold(source)
    fill(source)
    program = (
        "import os, signal, sys; from portal.moving.copy import copy, opened\n"
        "def progress(done, total, size):\n"
        "    print(done, flush=True)\n"
        "with opened(sys.argv[1], sys.argv[2]) as (old, new): copy(old, new, progress)\n"
    )
    for stop_at in (3, 40):
        child = subprocess.Popen(
            [sys.executable, "-c", program, *urls], cwd=ROOT, stdout=subprocess.PIPE, text=True, env=os.environ.copy()
        )
        assert child.stdout is not None
        for line in child.stdout:
            if int(line) >= stop_at:
                child.send_signal(signal.SIGKILL)
                break
        child.stdout.close()
        assert child.wait() == -signal.SIGKILL
        assert len(target.messages.ids(None, 1000)) >= stop_at
    assert run_copy(*urls).exit_code == 0
    assert everything(target) == everything(source)


def test_mail_may_come_and_be_released_while_it_runs(urls: tuple[str, str], stores: tuple[Store, Store]) -> None:
    source, target = stores
    held = [hold(source) for _ in range(10)]

    def hold_and_release(done: int, total: int, size_bytes: int) -> None:
        if done % 3 == 0:
            hold(source)
            release(source, held[done % 10], done % 2)

    try:
        moving.copy(source, target, hold_and_release)
    except AlreadyDone:
        pytest.fail("a release met the copy")
    moving.copy(source, target, lambda *_: None)
    assert everything(target) == everything(source)


# ---- bad input


def snapshot(store: Store) -> object:
    return everything(store)


def test_a_store_is_not_copied_onto_itself(store_url: str, store: Store) -> None:
    hold(store)
    before = everything(store)
    same = (
        store_url.replace("files://", "files:///")
        if store_url.startswith("files")
        else store_url + "&application_name=x"
    )
    for target in (store_url, same):
        result = run_copy(store_url, target)
        assert result.exit_code == 2
        assert "same store" in result.output
    assert everything(store) == before


def test_two_quarantines_are_not_mixed(urls: tuple[str, str], stores: tuple[Store, Store]) -> None:
    source, target = stores
    hold(source)
    hold(target)
    before = everything(target)
    result = run_copy(*urls)
    assert result.exit_code == 2
    assert "TO has messages that did not come from FROM" in result.output
    assert "empty store" in result.output
    assert everything(target) == before


def test_a_missing_store_is_named_and_not_created(tmp_path: Path, store_url: str, store: Store) -> None:
    missing = tmp_path / "nowhere"
    result = run_copy(f"files://{missing}", store_url)
    assert result.exit_code == 2
    assert f"FROM: {missing} is no quarantine store" in result.output
    assert not missing.exists()
    result = run_copy(store_url, "postgresql://me:hush-hush@127.0.0.1:1/nowhere")
    assert result.exit_code == 1
    assert "TO: " in result.output
    assert "hush-hush" not in result.output
    result = run_copy(store_url, "mysql://localhost/x")
    assert result.exit_code == 2
    assert "TO: expected files:PATH" in result.output
    assert "not mysql:…" in result.output


def test_a_folder_with_other_files_does_not_become_a_store(tmp_path: Path, store_url: str, store: Store) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.txt").write_text("x")
    result = run_copy(store_url, f"files://{home}")
    assert result.exit_code == 2
    assert "thesis.txt" in result.output
    assert [path.name for path in home.iterdir()] == ["thesis.txt"]


def test_a_database_without_our_tables_or_of_another_version_is_reported(postgres_dsn: str, files_url: str) -> None:
    open_store(files_url).close()
    with psycopg.connect(postgres_dsn, autocommit=True) as connection:
        for version, words in (("0", "quarantine init"), ("999", "upgrade this program")):
            connection.execute("update setting set value = %s where name = 'schema_version'", [version])
            result = run_copy(files_url, postgres_dsn)
            assert result.exit_code == 2
            assert "TO: " in result.output
            assert words in result.output


def damage(url: str, id: UUID) -> None:
    if url.startswith("files"):
        path = next(Path(url.removeprefix("files://")).rglob(f"{id}.eml.zst"))
        data = bytearray(path.read_bytes())
        data[20] ^= 1
        path.write_bytes(data)
    else:
        with psycopg.connect(url) as connection:
            connection.execute(
                "update body_chunk set data = set_byte(data, 20, 255 - get_byte(data, 20))"
                " where body_id = (select body_id from message where id = %s)",
                [id],
            )


def lose(url: str, id: UUID) -> None:
    if url.startswith("files"):
        next(Path(url.removeprefix("files://")).rglob(f"{id}.eml.zst")).unlink()
    else:
        with psycopg.connect(url) as connection:
            connection.execute(
                "delete from body_chunk where body_id = (select body_id from message where id = %s)", [id]
            )


def test_damaged_and_missing_mail_is_listed_and_the_rest_copied(
    urls: tuple[str, str], stores: tuple[Store, Store]
) -> None:
    source, target = stores
    good, damaged, missing, last = [hold(source) for _ in range(4)]
    damage(urls[0], damaged.id)
    lose(urls[0], missing.id)
    for _ in range(2):
        result = run_copy(*urls)
        assert result.exit_code == 1
        assert f"their body is missing in FROM: 1\n  {missing.id}" in result.output
        assert f"their body is damaged in FROM: 1\n  {damaged.id}" in result.output
        assert set(target.messages.ids(None, 10)) == {good.id, last.id}


def test_errors_contain_nothing_of_a_mail(urls: tuple[str, str], stores: tuple[Store, Store]) -> None:
    held = hold(stores[0], subject="Hush hush")
    damage(urls[0], held.id)
    assert "Hush" not in run_copy(*urls).output


def test_what_a_killed_copy_had_not_read_back_the_next_one_reads(
    urls: tuple[str, str], stores: tuple[Store, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = stores
    held = hold(source)
    with monkeypatch.context() as patch:
        patch.setattr(moving, "_verify", lambda *_: sys.exit(9))  # after a mail was written and before it is read back
        assert run_copy(*urls).exit_code == 9
    assert [record.message.id for record in target.messages.records([held.id]).values()] == [held.id]
    damage(urls[1], held.id)
    again = run_copy(*urls)
    assert again.exit_code == 2 and "TO did not return the message" in again.output


def test_what_a_copy_had_not_read_back_is_not_forgotten_by_one_that_is_killed_before_it_comes_there(
    urls: tuple[str, str], stores: tuple[Store, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = stores
    lost, held = hold(source), hold(source)
    lose(urls[0], lost.id)  # its page is read each time
    monkeypatch.setattr(moving, "_MESSAGES", 1)
    for name in ("_verify", "_copy_or_update"):
        with monkeypatch.context() as patch:
            patch.setattr(moving, name, lambda *_: sys.exit(9))
            assert run_copy(*urls).exit_code == 9
    assert set(target.messages.ids(None, 10)) == {held.id}
    damage(urls[1], held.id)
    again = run_copy(*urls)
    assert again.exit_code == 2 and "TO did not return the message" in again.output


def test_a_copy_is_not_read_back_again_once_it_was_complete(urls: tuple[str, str], stores: tuple[Store, Store]) -> None:
    held = hold(stores[0])
    assert run_copy(*urls).exit_code == 0
    damage(urls[1], held.id)
    assert run_copy(*urls).exit_code == 0, "a copy does not look for damage that happens later"


@pytest.mark.parametrize("kind", ["files", "postgres"])
def test_a_target_that_keeps_other_bytes_is_never_taken_for_a_copy(
    new_url: NewUrl, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    source_url, target_url = new_url("files"), new_url(kind)
    source = open_store(source_url)
    held = hold(source)
    source.close()

    def import_record(store: FileMessages, record: Record, body: Body | None) -> None:
        took(store, record, body)
        next(Path(target_url.removeprefix("files://")).rglob("*.eml.zst")).write_bytes(b"rubbish")

    def import_into_rows(store: PostgresMessages, record: Record, body: Body | None) -> None:
        took_into_rows(store, record, body)
        with psycopg.connect(target_url, autocommit=True) as connection:
            connection.execute("update body_chunk set data = 'rubbish'")

    took, took_into_rows = FileMessages.import_record, PostgresMessages.import_record
    with monkeypatch.context() as patch:
        patch.setattr(FileMessages, "import_record", import_record)
        patch.setattr(PostgresMessages, "import_record", import_into_rows)
        results = [run_copy(source_url, target_url)]
    results.append(run_copy(source_url, target_url))
    for result in results:
        assert result.exit_code == 2
        assert f"TO did not return the message {held.id} as it was written" in result.output
