"""Second factors of staff: the secret of an authenticator app, its codes, and recovery codes.

Whether somebody needs one is decided by `Staff.needs_factor`.
"""

from __future__ import annotations

import hmac
import logging
import re
import secrets
from base64 import b32encode
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime

import pyotp

from portal.model.domains import shown_address
from portal.model.errors import AlreadyDone
from portal.model.links import Links
from portal.model.message import Actor
from portal.model.second_factor import (
    SALT_OCTETS,
    STEP_SECONDS,
    FactorOutcome,
    SecondFactor,
    new_recovery_codes,
    recovery_hash,
    recovery_hashes,
    time_step,
)
from portal.stores import Store

log = logging.getLogger("quarantine.staff")

_TOLERANCE = (1, 0, -1)  # steps by which the clocks of a phone and the portal may differ (RFC 6238, 5.2)
_DIGITS = 6


@dataclass(frozen=True, slots=True)
class Offer:
    """A secret that a person may add to an authenticator app. It holds once a code of it was typed."""

    salt: bytes
    secret: str  # base32, as people type it into an app
    url: str  # otpauth:, for the app


@dataclass(frozen=True, slots=True)
class SecondFactors:
    """The acts of people on their own second factor. Callers have checked the session (`portal.web.second_factor`)."""

    store: Store
    links: Links
    now: Callable[[], datetime]

    def offer(self, person: str, site: str, salt: bytes | None = None) -> Offer:
        """Return a new secret for a person, or that of this salt, which an offer before had.

        ``person``: an identity. ``site``: the name of the quarantine in the app.
        """
        salt = salt if salt and len(salt) == SALT_OCTETS else secrets.token_bytes(SALT_OCTETS)
        secret = self._secret(person, salt, self.links.fingerprints()[-1])
        assert secret is not None  # noqa: S101 - the key is there
        # The label of the URL ends at a colon.
        url = pyotp.TOTP(secret).provisioning_uri(name=shown_address(person), issuer_name=site.replace(":", " "))
        return Offer(salt, secret, url)

    def set_up(
        self, person: str, session_sha256: bytes, salt: bytes, code: str, replaces: str, actor: Actor
    ) -> tuple[str, ...]:
        """Set up the secret of an offer, and return the recovery codes. Empty: the code is wrong.

        ``replaces`` as in the store. Raises AlreadyDone if the present factor is another one.
        """
        key, now = self.links.fingerprints()[-1], self.now()
        factor = SecondFactor(person, salt, key, now, ())
        step = self._step_of(factor, code, now)
        if step is None:
            return ()
        codes = new_recovery_codes()
        # The code that was typed is used up with this.
        made = replace(factor, recovery=recovery_hashes(codes), last_step=step)
        self._put(made, replaces, session_sha256, actor)
        log.info("second factor set person=%s", person)
        return codes

    def renew_recovery_codes(self, person: str, session_sha256: bytes, replaces: str, actor: Actor) -> tuple[str, ...]:
        """Return new recovery codes; those before do not work any more. Raises AlreadyDone as `set_up`."""
        present = self.store.second_factors.get(person)
        if present is None:
            raise AlreadyDone("the second factor was removed")
        codes = new_recovery_codes()
        self._put(replace(present, recovery=recovery_hashes(codes)), replaces, session_sha256, actor)
        log.info("recovery codes set person=%s", person)
        return codes

    def check(self, person: str, session_sha256: bytes, typed: str, recovery: str, actor: Actor) -> FactorOutcome:
        """Compare a code of the app, or a recovery code; see `SecondFactors.check` of the store."""
        now = self.now()
        outcome = self.store.second_factors.check(
            person,
            session_sha256,
            lambda factor: self._step_of(factor, typed, now),
            recovery_hash(recovery) if recovery else "",
            actor,
            now,
        )
        if outcome in (FactorOutcome.WRONG, FactorOutcome.LIMITED):
            log.warning("second factor refused person=%s peer=%s: %s", person, actor.address, outcome.value)
        if outcome is FactorOutcome.RECOVERED:
            log.info("recovery code used person=%s peer=%s", person, actor.address)
        return outcome

    def _put(self, factor: SecondFactor, replaces: str, session_sha256: bytes, actor: Actor) -> None:
        if not self.store.second_factors.put(factor, replaces, session_sha256, actor, self.now()):
            raise AlreadyDone("the second factor was changed in the meantime")

    def _step_of(self, factor: SecondFactor, typed: str, now: datetime) -> int | None:
        """Return the time step whose code was typed, None if it is not the code of a step around this moment."""
        secret = self._secret(factor.person, factor.salt, factor.key)
        code = re.sub(r"\s", "", typed)
        if secret is None or len(code) != _DIGITS:
            return None
        totp = pyotp.TOTP(secret, digits=_DIGITS, interval=STEP_SECONDS)
        steps = [time_step(now) + by for by in _TOLERANCE]
        return next(
            (step for step in steps if hmac.compare_digest(totp.generate_otp(step).encode(), code.encode())), None
        )

    def _secret(self, person: str, salt: bytes, fingerprint: str) -> str | None:
        secret = self.links.totp_secret(person, salt, fingerprint)
        return None if secret is None else b32encode(secret).decode()
