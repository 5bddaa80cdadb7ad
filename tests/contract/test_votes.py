"""Votes on what messages are, in both stores."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from portal.model.message import DeliveryId, new_id
from portal.model.vote import Label, Vote
from portal.stores import Store
from portal.stores.lifecycle import VOTES_KEPT
from tests.builders import now
from tests.contract.helpers import DAY, HOUR, MINUTE, concurrently

CAMPAIGN, OTHER = b"c" * 32, b"o" * 32


def vote(person: str = "recipient:alice@example.org", label: Label = Label.HAM, **changes: Any) -> Vote:
    made = Vote(CAMPAIGN, person, label, DeliveryId(new_id(), 3), now())
    return replace(made, **changes)


def cast(store: Store, *votes: Vote, at_most: int = 99, since: datetime | None = None) -> list[bool]:
    return [store.votes.cast(each, at_most, since or each.at - DAY) for each in votes]


def test_the_votes_of_a_campaign_newest_first(store: Store) -> None:
    at = now()
    first, second = vote(at=at - HOUR), vote("recipient:bob@example.org", at=at)
    spam, elsewhere = vote("operator:root", Label.SPAM), vote(campaign=OTHER)
    assert cast(store, first, second, spam, elsewhere) == [True] * 4
    assert store.votes.of_campaign(CAMPAIGN, Label.HAM, 9) == [second, first]
    assert store.votes.of_campaign(CAMPAIGN, Label.HAM, 1) == [second]
    assert store.votes.of_campaign(CAMPAIGN, Label.SPAM, 9) == [spam]
    assert store.votes.of_campaign(OTHER, Label.HAM, 9) == [elsewhere]
    assert spam.is_operator and not first.is_operator


def test_a_person_has_one_vote_on_a_campaign(store: Store) -> None:
    at = now()
    ham, spam = vote(at=at), vote(label=Label.SPAM, at=at + MINUTE)
    cast(store, ham, spam)
    assert store.votes.of_campaign(CAMPAIGN, Label.HAM, 9) == []
    assert store.votes.of_campaign(CAMPAIGN, Label.SPAM, 9) == [spam]


def test_a_vote_is_taken_back_unless_there_is_a_newer_one(store: Store) -> None:
    old, new = vote(label=Label.SPAM), vote(label=Label.SPAM)
    cast(store, old, new)
    assert not store.votes.withdraw(old)
    assert not store.votes.withdraw(replace(new, person="recipient:bob@example.org"))
    assert store.votes.of_campaign(CAMPAIGN, Label.SPAM, 9) == [new]
    assert store.votes.withdraw(new)
    assert not store.votes.withdraw(new)
    assert store.votes.of_campaign(CAMPAIGN, Label.SPAM, 9) == []
    assert store.votes.of_campaign(CAMPAIGN, Label.NONE, 9) == [replace(new, label=Label.NONE)]


def test_a_person_can_vote_on_so_many_campaigns(store: Store) -> None:
    at = now()
    votes = [vote(campaign=bytes([n]) * 32, at=at) for n in range(3)]
    assert cast(store, *votes, at_most=2) == [True, True, False]
    assert store.votes.of_campaign(votes[2].campaign, Label.HAM, 9) == []
    again = replace(votes[0], label=Label.SPAM)
    assert cast(store, again, at_most=2) == [True]  # another vote on the same campaign
    assert cast(store, vote("recipient:bob@example.org"), at_most=2) == [True]
    assert cast(store, votes[2], at_most=2, since=at + MINUTE) == [True]


def test_requests_at_the_same_moment_do_not_exceed_the_limit(store: Store) -> None:
    at = now()
    done = concurrently(8, lambda n: store.votes.cast(vote(campaign=bytes([n]) * 32, at=at), 3, at - DAY))
    assert sorted(done) == [False] * 5 + [True] * 3


def test_votes_are_purged(store: Store) -> None:
    at = now()
    old, new = vote(at=at - VOTES_KEPT - MINUTE), vote("recipient:bob@example.org", at=at)
    cast(store, old, new)
    store.purge(at - timedelta(days=300), at)
    assert store.votes.of_campaign(CAMPAIGN, Label.HAM, 9) == [new]
