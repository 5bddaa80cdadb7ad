"""Schema version 6 keeps the domain of an identity with A-labels. Before, the two spellings of one international
domain were two recipients."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from typing import Any

from portal.model.message import identity
from portal.stores.journal import person_line
from portal.stores.shared.recipients import SqlRecipients, later, person
from portal.stores.shared.session import Engine, Session

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_COLUMNS = (  # that have an identity, and in which it may occur several times
    ("delivery", "recipient"),
    ("digest", "recipient"),
    ("session", "recipient"),
    ("sign_in", "recipient"),
    ("link_open", "recipient"),
)


def merge_spellings(engine: Engine, recipients: SqlRecipients) -> None:
    """Rewrite identities whose domain has U-labels, and merge the recipients that become one. Idempotent.

    One transaction for each identity. Raises StoreUnavailable, after which the next call goes on.
    """
    with engine.reading() as session:
        names = {
            name
            for table, column in (*_COLUMNS, ("recipient", "recipient"), ("announced_to", "reader"))
            for (name,) in session.many(f"select distinct {column} from {table} where {engine.non_ascii(column)}")
        }
        # Mail for the other spelling was held for nobody that reads it: it was never announced.
        unread = session.many(
            "select distinct recipient from delivery"
            " where recipient like '%xn--%' and state = 'held' and announced_at is null"
        )
    merged = {name: identity(name) for name in names if identity(name) != name}
    for old, new in sorted(merged.items()):
        with engine.writing() as session:
            _rewrite(session, old, new)
            session.journal(partial(_line, session, new))
    with_news = {*merged.values(), *(name for (name,) in unread)}
    if with_news:
        recipients.find_news(_EPOCH, with_news)


def _rewrite(session: Session, old: str, new: str) -> None:
    for table, column in _COLUMNS:
        session.execute(f"update {table} set {column} = :new where {column} = :old", old=old, new=new)
    session.execute(
        "update announced_to set reader = :new where reader = :old and not exists (select 1 from announced_to t"
        " where t.message_id = announced_to.message_id and t.number = announced_to.number and t.reader = :new)",
        old=old,
        new=new,
    )
    session.execute("delete from announced_to where reader = :old", old=old)
    row = session.one(
        "select address, stopped_at, links_valid_from, news_since, preferences, asked_at from recipient"
        " where recipient = :old",
        for_update=True,
        old=old,
    )
    if row is None:
        return
    session.execute("delete from recipient where recipient = :old", old=old)
    address, stopped_at, links_valid_from, news_since, preferences, asked_at = row
    # The next digest is scheduled again: it may be due at another time now.
    session.execute(
        "insert into recipient (recipient, address, stopped_at, links_valid_from, news_since, preferences, asked_at)"
        " values (:new, :address, :stopped_at, :links_valid_from, :news_since, :preferences, :asked_at)"
        " on conflict (recipient) do update set"
        " stopped_at = coalesce(recipient.stopped_at, excluded.stopped_at),"
        f" links_valid_from = {later('links_valid_from')},"
        " news_since = coalesce(recipient.news_since, excluded.news_since),"
        " preferences = coalesce(recipient.preferences, excluded.preferences),"
        f" asked_at = {later('asked_at')},"
        " next_digest_at = null, lease = null, lease_until = null, digest_id = null, failures = 0, failure = '',"
        " failed_at = null",
        new=new,
        address=address,
        stopped_at=stopped_at,
        links_valid_from=links_valid_from,
        news_since=news_since,
        preferences=preferences,
        asked_at=asked_at,
    )


def _line(session: Session, recipient: str) -> dict[str, Any]:
    return person_line(person(session, recipient))
