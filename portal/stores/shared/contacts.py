"""A recipient's last digest, sign-ins and sessions, for staff. See `Recipients.contacts`."""

from __future__ import annotations

from datetime import datetime

from portal.model.audit import Act
from portal.model.message import Actor
from portal.stores.records import Contacts, StartedSession
from portal.stores.shared.session import Row, Session
from portal.stores.shared.sign_ins import GOES_ON, session_limits

_SIGN_INS, _SESSIONS = 5, 20
_COLUMNS = 7  # of `_CONTACTS`
_DIGEST, _SESSION = "digest", "session"
# Columns that a kind does not have are null or empty.
_CONTACTS = f"""
select '{_DIGEST}' as kind, issued_at as at, null as used_at, '' as client, '' as actor, '' as via,
    null as session_sha256
from (
    select issued_at from digest where recipient = :recipient and sent_at is not null and not is_notice
    order by issued_at desc limit 1
) as last_digest
union all
select '{_SESSION}', started_at, used_at, client, '', method, session_sha256
from (
    select started_at, used_at, client, method, session_sha256 from session where recipient = :recipient and {GOES_ON}
    order by used_at desc, session_sha256 limit {_SESSIONS}
) as sessions
union all
select '{Act.SIGNED_IN}', at, null, detail, actor, via, null
from (
    select at, detail, actor, via from audit where subject = :recipient and act = '{Act.SIGNED_IN}'
    order by id desc limit {_SIGN_INS}
) as sign_ins
union all
select '{Act.DIGESTS_STOPPED}', at, null, detail, actor, via, null
from (
    select at, detail, actor, via from audit where subject = :recipient
    and act in ('{Act.DIGESTS_STOPPED}', '{Act.RECIPIENT_FORGOTTEN}')
    order by id desc limit 1
) as stops
"""
# One statement, since the page has several others. Each row has the recipient, who may be unknown.
_SELECT = (
    f"select {{columns}}, kind, at, used_at, client, actor, via, session_sha256 from (select 1) as one"
    f" left join recipient on recipient = :recipient left join ({_CONTACTS}) as contact on true"
)


def contacts(session: Session, recipient: str, now: datetime, columns: str) -> tuple[Row, Contacts]:
    """See `Recipients.contacts`. Return these columns of the recipient as well, which are null if there is none."""
    found = session.many(_SELECT.format(columns=columns), recipient=recipient, **session_limits(now))
    rows = [row[-_COLUMNS:] for row in found if row[-_COLUMNS] is not None]
    of_all = Contacts(
        digest_at=next((at for kind, at, *_ in rows if kind == _DIGEST), None),
        sign_ins=tuple((at, via, client) for kind, at, _, client, _, via, _ in rows if kind == Act.SIGNED_IN),
        sessions=tuple(
            StartedSession(sha256, client, at, used_at, method)
            for kind, at, used_at, client, _, method, sha256 in rows
            if kind == _SESSION
        ),
        stopped_by=next(
            (Actor.from_stored(who, via, "") for kind, *_, who, via, _ in rows if kind == Act.DIGESTS_STOPPED), None
        ),
    )
    return found[0][:-_COLUMNS], of_all
