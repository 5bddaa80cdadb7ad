"""The second factor of a member of staff: a code of an authenticator app (TOTP, RFC 6238), or a recovery code."""

from __future__ import annotations

import hashlib
import re
import secrets
from base64 import b32encode
from collections.abc import Sequence
from dataclasses import field
from datetime import datetime, timedelta
from enum import Enum

from portal.model.record import record

STEP_SECONDS = 30  # as every authenticator app assumes
SALT_OCTETS = 16
SET_UP_CODE_LIFETIME = timedelta(days=7)
RECOVERY_CODES = 10
_RECOVERY_OCTETS = 10  # 80 bits: a fast hash of them is safe
_MISREAD = str.maketrans("018", "olb")  # digits that base32 does not have


class FactorOutcome(Enum):
    """The answer to a code."""

    RIGHT = "right"
    RECOVERED = "recovered"  # a recovery code, which is used up
    WRONG = "wrong"  # also a code that was used before
    LOCKED = "locked"  # wrong, and so many were that no code of the app is compared for a while
    LIMITED = "limited"  # the code was not compared because of that
    UNUSABLE = "unusable"  # no code of the app can be right any more: the key of its secret was removed
    MISSING = "missing"  # the person has no second factor


@record(frozen=True, slots=True)
class FactorAnswer:
    """The answer to a code, with what the person needs to know."""

    outcome: FactorOutcome
    until: datetime | None = None  # of LOCKED and LIMITED: when codes of the app are compared again
    left: int = 0  # of RECOVERED: recovery codes


@record(frozen=True, slots=True)
class SecondFactor:
    """A person's second factor as the store has it. The secret of the app is not in it, see `Links.totp_secret`."""

    person: str  # identity
    salt: bytes  # of the secret
    key: str  # fingerprint of the link key that the secret is derived from, "" if there is a set-up code instead
    created_at: datetime
    recovery: tuple[str, ...]  # SHA-256 of the recovery codes that were not used, hexadecimal
    last_step: int = field(default=0, compare=False)  # of the last code that was right; not in the journal

    @property
    def has_app(self) -> bool:
        """True if an app was set up. Otherwise the only recovery code is the set-up code that an administrator made."""
        return self.key != ""

    def accepts(self, recovery_sha256: str, now: datetime) -> bool:
        """Return whether a recovery code, or the set-up code, is right and can be used now."""
        is_late = not self.has_app and abs(now - self.created_at) > SET_UP_CODE_LIFETIME
        return recovery_sha256 in self.recovery and not is_late

    @property
    def version(self) -> str:
        """A name of this state for forms: it changes with each new secret and each change of recovery codes."""
        return hashlib.sha256(b" ".join([self.salt, *(each.encode() for each in self.recovery)])).hexdigest()[:32]


def time_step(now: datetime) -> int:
    """Return the number of the time step, by which an app and the portal compute the same code."""
    return int(now.timestamp()) // STEP_SECONDS


def new_recovery_codes(count: int = RECOVERY_CODES) -> tuple[str, ...]:
    """Return new recovery codes for people, in four groups of four characters."""
    texts = (b32encode(secrets.token_bytes(_RECOVERY_OCTETS)).decode().lower() for _ in range(count))
    return tuple("-".join(text[start : start + 4] for start in range(0, len(text), 4)) for text in texts)


def recovery_hash(typed: str) -> str:
    """Return the hash of a recovery code as somebody typed it: case, spaces and hyphens make no difference."""
    plain = re.sub(r"[\s-]", "", typed).lower().translate(_MISREAD)
    return hashlib.sha256(plain.encode(errors="replace")).hexdigest()


def recovery_hashes(codes: Sequence[str]) -> tuple[str, ...]:
    """Return the hashes of recovery codes, for `SecondFactor.recovery`."""
    return tuple(map(recovery_hash, codes))
