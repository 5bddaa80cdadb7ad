"""Values of domains, in both stores."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import timedelta

from portal.model.domain_value import DomainValue
from portal.model.message import new_id
from portal.stores import Store
from portal.stores.lifecycle import DOMAIN_VALUES_KEPT
from tests.builders import BY_LINK, BY_OPERATOR, now
from tests.contract.helpers import MINUTE, concurrently


def value(text: str | None, name: str = "language", domain: str = "example.org") -> DomainValue:
    return DomainValue(new_id(), domain, name, text, now(), BY_OPERATOR)


def test_the_newest_value_is_in_use_and_the_others_are_the_history(store: Store) -> None:
    first = value("fr")
    other, elsewhere = value("Post", "name"), value("it", domain="example.net")
    second = replace(value("de"), actor=BY_LINK)
    for each in (first, other, elsewhere, second):
        store.domains.set([each])
    assert store.domains.in_use() == [elsewhere, second, other]
    assert store.domains.history("example.org", 9) == [second, other, replace(first, replaced_at=second.set_at)]
    assert store.domains.history("example.org", 1) == [second]
    removed = value(None)
    store.domains.set([removed])
    assert removed in store.domains.in_use()


def test_values_of_another_store_end_in_the_same_state_in_any_order(store: Store) -> None:
    values = [value(text) for text in ("fr", None, "de", "it")]
    expected = [
        replace(each, replaced_at=later.set_at) for each, later in zip(values, values[1:], strict=False)
    ] + values[-1:]
    for _ in range(3):
        random.shuffle(values)
        for each in values:
            store.domains.set([each])
    found = store.domains.records(None, 9)
    assert [each.id for each in found] == [each.id for each in expected]
    assert [each.replaced_at is None for each in found] == [False, False, False, True]
    assert store.domains.in_use() == expected[-1:]
    assert store.domains.records(found[0].id, 2) == found[1:3]


def test_each_change_changes_the_version(store: Store) -> None:
    versions = [store.domains.version()]
    for text in ("fr", "de", None):
        store.domains.set([value(text)])
        versions.append(store.domains.version())
    assert len(set(versions)) == 4


def test_values_that_are_set_at_once_leave_one_in_use(store: Store) -> None:
    values = [value(f"name {n}", "name") for n in range(8)]
    concurrently(len(values), lambda number: store.domains.set([values[number]]))
    assert [each.id for each in store.domains.in_use()] == [max(each.id for each in values)]


def test_purge_forgets_replaced_values_after_a_year(store: Store) -> None:
    at = now()
    old, new = value("fr"), value("de")
    store.domains.set([replace(old, set_at=at - DOMAIN_VALUES_KEPT - timedelta(days=2))])
    store.domains.set([replace(new, set_at=at - DOMAIN_VALUES_KEPT - MINUTE)])
    store.purge(at - timedelta(days=30), at)
    assert [each.id for each in store.domains.records(None, 9)] == [new.id]
