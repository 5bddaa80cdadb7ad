"""Names of attachments are read some time after a message was held, and then found by searches."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from digest import attachments
from digest.attachments import read_names
from portal.assemble import Parts
from portal.model.message import DeliveryId, Filter, Symbol, Tier
from portal.moving.copy import copy
from portal.stores import Store, notes, open_store
from tests.builders import ALICE, hold, now
from tests.web_client import Site

ATTACHMENT = (Symbol("HAS_ATTACHMENT", 0.0),)
MINUTES = timedelta(minutes=2)


@pytest.fixture(autouse=True)
def _without_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attachments, "_SECONDS", 60)


def mail(*names: str) -> bytes:
    parts = "".join(
        f"--b\r\nContent-Type: application/pdf\r\nContent-Disposition: attachment; filename*=UTF-8''{name}\r\n\r\nx\r\n"
        for name in names
    )
    head = "Subject: Offer\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\nHello\r\n"
    return f"{head}{parts}--b--\r\n".encode()


def held(parts: Parts, *names: str, **more: Any) -> UUID:
    return hold(parts.store, mail(*names), (ALICE,), symbols=ATTACHMENT, **more).id


def found(store: Store, words: str) -> list[UUID]:
    return [each.id for each in store.deliveries.search(Filter(recipient=ALICE, words=words), 100).deliveries]


def names_of(store: Store, id: UUID) -> tuple[str, ...]:
    return store.deliveries.get(DeliveryId(id, 0)).message.attachments


def test_a_recipient_finds_a_message_by_the_name_of_its_attachment(make_parts: Callable[..., Parts]) -> None:
    site = Site(make_parts())
    held(site.parts, "R%C3%A9sum%C3%A9_4711.pdf")
    browser = site.signed_in(ALICE)
    assert "Offer" not in browser.get("/?q=resume+4711").text
    assert read_names(site.parts, now() + MINUTES) == 1
    assert "Offer" in browser.get("/?q=resume+4711").text
    assert "Offer" not in browser.get("/?q=resume+4712").text


@pytest.mark.parametrize("tier", [Tier.SPAM, Tier.DANGEROUS])
def test_names_are_cleaned_and_limited(parts: Parts, tier: Tier) -> None:
    id = held(parts, "a%0Ab%E2%80%AEfdp.exe", *(f"{n}-{'x' * 150}" for n in range(60)), tier=tier)
    assert read_names(parts, now() + MINUTES) == 1
    first, *others = names_of(parts.store, id)
    assert first.isprintable() and "\u202e" not in first and first.startswith("a")
    assert 10 <= len(others) < 50
    assert sum(map(len, others)) <= 2_000


def test_a_message_without_an_attachment_is_not_read(parts: Parts) -> None:
    id = hold(parts.store, mail("hidden.pdf"), (ALICE,)).id
    assert read_names(parts, now() + MINUTES) == 0
    assert names_of(parts.store, id) == ()


def test_new_messages_are_read_a_minute_after_they_were_held_and_older_ones_afterwards(parts: Parts) -> None:
    days = [held(parts, f"old{n}.pdf", at=now() - timedelta(days=n)) for n in (2, 1)]
    assert read_names(parts, now()) == 2
    new = held(parts, "new.pdf")
    assert read_names(parts, now()) == 0, "ids are not committed in their order"
    assert read_names(parts, now() + MINUTES) == 1
    assert read_names(parts, now() + MINUTES) == 0
    assert [found(parts.store, words) for words in ("old2", "old1", "new")] == [[days[0]], [days[1]], [new]]


def test_a_message_whose_file_is_gone_does_not_stop_the_others(
    parts: Parts, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gone, other = held(parts, "one.pdf"), held(parts, "two.pdf")
    body = parts.store.messages.body

    def without(id: UUID) -> Any:
        return body(UUID(int=0) if id == gone else id)

    monkeypatch.setattr(parts.store.messages, "body", without)
    read_names(parts, now() + MINUTES)
    assert found(parts.store, "two") == [other]
    assert f"attachments not read id={gone}" in caplog.text


def test_when_it_is_stopped_the_next_call_reads_the_rest(parts: Parts) -> None:
    for n in range(5):
        held(parts, f"file{n}.pdf")
    answers = iter([False, False, False, True])
    at = now() + MINUTES
    assert read_names(parts, at, stopped=lambda: next(answers, True)) == 2
    assert read_names(parts, at) == 3
    assert len(found(parts.store, "pdf")) == 5


def test_a_copied_store_reads_the_names_again(parts: Parts, tmp_path: Path) -> None:
    id = held(parts, "invoice.pdf", at=now() - timedelta(days=1))
    read_names(parts, now() + MINUTES)
    target = open_store(f"files://{tmp_path}/target", create=True)
    notes.NAMES_READ.set(target, notes.IdRange(UUID(int=0), UUID(int=(1 << 128) - 1)))
    copy(parts.store, target, lambda done, total, size_bytes: None)
    assert names_of(target, id) == ()
    assert notes.NAMES_READ.get(target) is None
    target.close()


def test_staff_search_names_of_attachments_alone(parts: Parts) -> None:
    id = held(parts, "Rechnung_4711.pdf")
    held(parts, "other.pdf", subject="Rechnung 4711")
    read_names(parts, now() + MINUTES)
    for wanted in (Filter(attachment="rech 4711"), Filter(attachment="rech", size_min=1)):
        assert [each.id for each in parts.store.deliveries.search(wanted, 10).deliveries] == [id]
    assert parts.store.facets.count(Filter(attachment="rechnung")).count == 1
