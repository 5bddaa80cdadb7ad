"""Checks of passwords that are counted."""

from __future__ import annotations

from datetime import timedelta

import pytest

from portal.model.message import new_id
from portal.stores import Store
from portal.stores.lifecycle import account
from portal.stores.records import Admission, PasswordLimits, PasswordTry
from tests.builders import now

OFFICE = "192.0.2.1"


def guess(store: Store, recipient: str, client: str = OFFICE, *, is_local: bool = True) -> Admission:
    attempt = PasswordTry(new_id(), recipient, client, now(), is_local)
    admission = store.passwords.begin(attempt, PasswordLimits())
    if admission is Admission.GRANTED:
        store.passwords.wrong(attempt)
    return admission


def test_foreign_addresses_use_up_no_tries_of_local_ones(store: Store) -> None:
    found = [guess(store, f"p{number}@elsewhere.example", is_local=False) for number in range(31)]
    assert found == [Admission.GRANTED] * 30 + [Admission.LIMITED]
    assert guess(store, "alice@example.org") is Admission.GRANTED


def test_a_mailbox_counts_five_times_for_its_network(store: Store) -> None:
    limits = PasswordLimits(per_pair_quarter_hour=20)
    for _ in range(20):
        attempt = PasswordTry(new_id(), "alice@example.org", OFFICE, now(), is_local=True)
        assert store.passwords.begin(attempt, limits) is Admission.GRANTED
        store.passwords.wrong(attempt)
    found = [guess(store, f"p{number}@example.org") for number in range(26)]
    assert found == [Admission.GRANTED] * 25 + [Admission.LIMITED]
    assert guess(store, "bob@example.org", "198.51.100.1") is Admission.GRANTED


@pytest.mark.parametrize(
    "spelling",
    [
        "ÁLICE@example.org",
        "a\u0301lice@example.org",
        "\uff41lice@example.org",
        "al\u00adice@example.org",
        "al\u200bice@example.org",
        "alice+x@example.org",
        "\u24d0lice@example.org",
    ],
)
def test_spellings_that_a_directory_does_not_distinguish_share_tries(store: Store, spelling: str) -> None:
    for _ in range(5):
        guess(store, "alice@example.org")
    assert guess(store, spelling) is Admission.LIMITED
    store.recipients.forget("alice@example.org", now() + timedelta(hours=1))
    assert guess(store, spelling) is Admission.GRANTED


def test_accounts_stay_distinct() -> None:
    assert len({account(f"{name}@example.org") for name in ("alice", "bob", "李", "лена", "straße", "o'neil")}) == 6
