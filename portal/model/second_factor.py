"""The second factor of a member of staff: a code of an authenticator app (TOTP, RFC 6238), or a recovery code."""

from __future__ import annotations

import hashlib
import re
import secrets
from base64 import b32encode
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum

STEP_SECONDS = 30  # as every authenticator app assumes
SALT_OCTETS = 16
RECOVERY_CODES = 10
_RECOVERY_OCTETS = 10  # 80 bits: a fast hash of them is safe
_MISREAD = str.maketrans("018", "olb")  # digits that base32 does not have


class FactorOutcome(Enum):
    """The answer to a code."""

    RIGHT = "right"
    RECOVERED = "recovered"  # a recovery code, which is used up
    WRONG = "wrong"  # also a code that was used before
    LIMITED = "limited"  # too many wrong codes: the code was not compared
    MISSING = "missing"  # the person has no second factor


@dataclass(frozen=True, slots=True)
class SecondFactor:
    """A person's second factor as the store has it. The secret of the app is not in it, see `Links.totp_secret`."""

    person: str  # identity
    salt: bytes  # of the secret
    key: str  # fingerprint of the link key that the secret is derived from
    created_at: datetime
    recovery: tuple[str, ...]  # SHA-256 of the recovery codes that were not used, hexadecimal
    last_step: int = field(default=0, compare=False)  # of the last code that was right; not in the journal

    @property
    def version(self) -> str:
        """A name of this state for forms: it changes with each new secret and each change of recovery codes."""
        return hashlib.sha256(b" ".join([self.salt, *(each.encode() for each in self.recovery)])).hexdigest()[:32]


def time_step(now: datetime) -> int:
    """Return the number of the time step, by which an app and the portal compute the same code."""
    return int(now.timestamp()) // STEP_SECONDS


def new_recovery_codes() -> tuple[str, ...]:
    """Return new recovery codes for people, in four groups of four characters."""
    texts = (b32encode(secrets.token_bytes(_RECOVERY_OCTETS)).decode().lower() for _ in range(RECOVERY_CODES))
    return tuple("-".join(text[start : start + 4] for start in range(0, len(text), 4)) for text in texts)


def recovery_hash(typed: str) -> str:
    """Return the hash of a recovery code as somebody typed it: case, spaces and hyphens make no difference."""
    plain = re.sub(r"[\s-]", "", typed).lower().translate(_MISREAD)
    return hashlib.sha256(plain.encode(errors="replace")).hexdigest()


def recovery_hashes(codes: Sequence[str]) -> tuple[str, ...]:
    """Return the hashes of recovery codes, for `SecondFactor.recovery`."""
    return tuple(map(recovery_hash, codes))
