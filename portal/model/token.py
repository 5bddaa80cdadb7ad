"""API tokens: what lets a program use the API in the name of a member of staff."""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import field
from datetime import datetime, timedelta
from enum import StrEnum
from uuid import UUID

from portal.model.message import Actor
from portal.model.record import record
from portal.model.staff import Role

TOKEN_MAX = timedelta(days=365)  # between the creation and the expiry of a token
_OCTETS = 24  # 192 random bits, so that a plain hash of the secret is enough: no list of guesses is this long
_SECRET = re.compile(rf"qtn_[0-9a-f]{{{2 * _OCTETS}}}")  # the prefix lets scanners of source code find lost secrets


class Scope(StrEnum):
    """The limit of what a token may do, see `portal.policy.staff`. The values are kept in stores and journals."""

    READ = "read"  # see, and change nothing
    ACT = "act"


@record(frozen=True, slots=True)
class Token:
    """An API token. Its secret is shown once; only its hash is kept.

    At each use its rights are those of ``role`` in ``domain``, as far as its owner has them at that time.
    """

    id: UUID
    secret_sha256: bytes = field(repr=False)
    name: str  # for people, to tell tokens apart
    owner: str  # identity of a member of staff
    role: Role
    domain: str  # in lower case, with A-labels, or EVERYWHERE
    scope: Scope
    created_at: datetime
    actor: Actor  # who created it: the owner, or an operator of the command line
    expires_at: datetime
    used_at: datetime | None = None  # of the last use, to a minute
    revoked_at: datetime | None = None

    def is_usable(self, now: datetime) -> bool:
        """Return whether the token has neither expired nor been revoked."""
        return self.revoked_at is None and self.expires_at > now


def new_secret() -> str:
    """Return the secret of a new token."""
    return f"qtn_{secrets.token_hex(_OCTETS)}"


def hash_of(secret: str) -> bytes | None:
    """Return the SHA-256 of a secret, None if the text cannot be one."""
    return hashlib.sha256(secret.encode()).digest() if _SECRET.fullmatch(secret) else None
