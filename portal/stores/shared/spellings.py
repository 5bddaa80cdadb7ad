"""Upgrade to schema version 6, which stores the domain of an identity with A-labels. In earlier versions the two
spellings of one international domain were two recipients."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from typing import Any

from portal.model.message import identity
from portal.stores.journal import person_line
from portal.stores.lifecycle import address_of
from portal.stores.shared.recipients import SqlRecipients, earlier, later, person
from portal.stores.shared.session import Engine, Session

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
PENDING = "store.merge_spellings"  # the note that exists while the merge must be done
_COLUMNS = (  # tables and columns that hold an identity
    ("delivery", "recipient"),
    ("announced_to", "reader"),
    ("digest", "recipient"),
    ("session", "recipient"),
    ("sign_in", "recipient"),
    ("link_open", "recipient"),
    ("recipient", "recipient"),
)


def merge_spellings(engine: Engine, recipients: SqlRecipients) -> None:
    """Rewrite identities whose domain has U-labels, and merge the recipients that become one. Idempotent.

    Uses one transaction for each identity. Raises StoreUnavailable; then the next call continues.
    """
    found: dict[str, list[tuple[str, str]]] = {}  # the tables and columns that hold each identity
    with engine.reading() as session:
        for table, column in _COLUMNS:
            select = f"select distinct {column} from {table} where {engine.non_ascii(column)}"
            for (name,) in session.many(select):
                if identity(name) != name:
                    found.setdefault(name, []).append((table, column))
        # Mail for the other spelling was held for an identity that no recipient reads, so it was never announced.
        unread = session.many(
            "select distinct recipient from delivery"
            " where recipient like '%xn--%' and state = 'held' and announced_at is null"
        )
    for old, places in sorted(found.items()):
        with engine.writing() as session:
            for table, column in places:
                _MOVES.get(table, _rename)(session, table, column, old, identity(old))
            session.journal(partial(_line, session, identity(old)))
    with_news = {*map(identity, found), *(name for (name,) in unread)}
    if with_news:
        recipients.find_news(_EPOCH, with_news)
    with engine.writing() as session:
        session.execute("delete from setting where name = :name", name=PENDING)


def _rename(session: Session, table: str, column: str, old: str, new: str) -> None:
    session.execute(f"update {table} set {column} = :new where {column} = :old", old=old, new=new)


def _move_announcements(session: Session, table: str, column: str, old: str, new: str) -> None:
    session.execute(
        "update announced_to set reader = :new where reader = :old and not exists (select 1 from announced_to t"
        " where t.message_id = announced_to.message_id and t.number = announced_to.number and t.reader = :new)",
        old=old,
        new=new,
    )
    session.execute("delete from announced_to where reader = :old", old=old)


def _move_recipient(session: Session, table: str, column: str, old: str, new: str) -> None:
    row = session.one(
        "select address, stopped_at, links_valid_from, news_since, preferences, asked_at, devices_valid_from"
        " from recipient where recipient = :old",
        for_update=True,
        old=old,
    )
    if row is None:
        return
    session.execute("delete from recipient where recipient = :old", old=old)
    address, stopped_at, links_valid_from, news_since, preferences, asked_at, devices_valid_from = row
    # The next digest is unscheduled, since the merged preferences may give it another time.
    session.execute(
        "insert into recipient (recipient, address, stopped_at, links_valid_from, news_since, preferences, asked_at,"
        " devices_valid_from) values (:new, :address, :stopped_at, :links_valid_from, :news_since, :preferences,"
        " :asked_at, :devices_valid_from) on conflict (recipient) do update set"
        " stopped_at = coalesce(recipient.stopped_at, excluded.stopped_at),"
        f" links_valid_from = {later('links_valid_from')},"
        f" devices_valid_from = {later('devices_valid_from')},"
        f" news_since = {earlier('news_since')},"
        " preferences = coalesce(recipient.preferences, excluded.preferences),"
        f" asked_at = {later('asked_at')},"
        " next_digest_at = null, lease = null, lease_until = null, digest_id = null, failures = 0, failure = '',"
        " failed_at = null",
        new=new,
        address=address_of(new, address),
        stopped_at=stopped_at,
        links_valid_from=links_valid_from,
        news_since=news_since,
        preferences=preferences,
        asked_at=asked_at,
        devices_valid_from=devices_valid_from,
    )


_MOVES = {"announced_to": _move_announcements, "recipient": _move_recipient}


def _line(session: Session, recipient: str) -> dict[str, Any]:
    return person_line(person(session, recipient))
