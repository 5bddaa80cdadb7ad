"""Votes on what messages are, in table `vote`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from portal.model.message import DeliveryId, new_id
from portal.model.vote import Label, Vote
from portal.stores.contracts import Votes
from portal.stores.shared.session import Engine


class SqlVotes(Votes):
    """See `Votes`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def cast(self, vote: Vote, at_most: int, since: datetime) -> bool:
        count = "select count(*) from vote where person = :person and at > :since and campaign <> :campaign"
        insert = (
            "insert into vote (id, campaign, person, label, message_id, number, at)"
            " values (:id, :campaign, :person, :label, :message_id, :number, :at)"
            " on conflict (campaign, person) do update set label = excluded.label,"
            " message_id = excluded.message_id, number = excluded.number, at = excluded.at"
        )
        with self._engine.writing() as session:
            session.lock(vote.person)  # so that two requests cannot exceed the limit together
            counted = session.one(count, person=vote.person, since=since, campaign=vote.campaign)
            if counted is not None and counted[0] >= at_most:
                return False
            session.execute(
                insert,
                vote.delivery,
                id=new_id(vote.at),
                campaign=vote.campaign,
                person=vote.person,
                label=vote.label.value,
                at=vote.at,
            )
        return True

    def withdraw(self, vote: Vote) -> bool:
        update = (
            "update vote set label = :none where campaign = :campaign and person = :person and label = :label"
            " and message_id = :message_id and number = :number"
        )
        with self._engine.writing() as session:
            changed = session.execute(
                update,
                vote.delivery,
                campaign=vote.campaign,
                person=vote.person,
                label=vote.label.value,
                none=Label.NONE.value,
            )
        return changed > 0

    def of_campaign(self, campaign: bytes, label: Label, limit: int) -> Sequence[Vote]:
        select = (
            "select person, message_id, number, at from vote where campaign = :campaign and label = :label"
            " order by at desc, id desc limit :limit"
        )
        with self._engine.reading() as session:
            rows = session.many(select, campaign=campaign, label=label.value, limit=limit)
        return [Vote(campaign, person, label, DeliveryId(id, number), at) for person, id, number, at in rows]
