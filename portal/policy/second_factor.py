"""Second factors of staff: the secret of an authenticator app, its codes, recovery codes and set-up codes.

Whether somebody needs one, and who may reset it, is decided by `Staff`.
"""

from __future__ import annotations

import hmac
import logging
import re
import secrets
from base64 import b32encode
from collections.abc import Callable, Collection
from dataclasses import replace
from datetime import datetime
from typing import Any

import pyotp

from portal.model.domains import shown_address
from portal.model.errors import AlreadyDone, BadGrant, QuarantineError
from portal.model.links import Links
from portal.model.message import Actor, identity
from portal.model.record import record
from portal.model.second_factor import (
    SALT_OCTETS,
    SET_UP_CODE_LIFETIME,
    STEP_SECONDS,
    FactorAnswer,
    FactorOutcome,
    SecondFactor,
    new_recovery_codes,
    recovery_hash,
    recovery_hashes,
    time_step,
)
from portal.model.text import N_
from portal.policy.mailing import Mailing
from portal.policy.staff import Member, Staff
from portal.stores import Store
from portal.stores.records import QueuedMail

log = logging.getLogger("quarantine.staff")

_TOLERANCE = (1, 0, -1)  # steps by which the clocks of a phone and the portal may differ (RFC 6238, 5.2)
_DIGITS = 6
COUNTER = "second_factor.locked"


@record(frozen=True, slots=True)
class Offer:
    """A secret that a person may add to an authenticator app. It holds once a code of it was typed."""

    salt: bytes
    secret: str  # base32, as people type it into an app
    url: str  # otpauth:, for the app


@record(frozen=True, slots=True)
class SecondFactors:
    """The acts of people on their own second factor, and of administrators on those of others.

    Callers have checked the session (`portal.web.second_factor`). The person gets a mail about each change, since
    somebody who has taken over the mailbox or the phone would not report them. It is queued in the transaction of the
    change: a process that dies in between leaves neither without the other.
    """

    store: Store
    links: Links
    staff: Staff
    mailing: Mailing

    def now(self) -> datetime:
        """Return the present time."""
        return self.staff.now()

    # ---- their own

    def people(self) -> Collection[str]:
        """Return the people who have a second factor, or a set-up code for one."""
        return {factor.person for factor in self.store.second_factors.all()}

    def is_usable(self, factor: SecondFactor) -> bool:
        """Return whether codes of the app can be right: the link key of its secret was not removed."""
        return self._secret(factor.person, factor.salt, factor.key) is not None

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
        self._put(made, replaces, session_sha256, actor, "set")
        log.info("second factor set person=%s", person)
        return codes

    def renew_recovery_codes(self, person: str, session_sha256: bytes, replaces: str, actor: Actor) -> tuple[str, ...]:
        """Return new recovery codes; those before do not work any more. Raises AlreadyDone as `set_up`."""
        present = self.store.second_factors.get(person)
        if present is None or not present.has_app:
            raise AlreadyDone("the second factor was removed")
        codes = new_recovery_codes()
        self._put(replace(present, recovery=recovery_hashes(codes)), replaces, session_sha256, actor, "codes")
        log.info("recovery codes set person=%s", person)
        return codes

    def check(self, person: str, session_sha256: bytes, typed: str, recovery: str, actor: Actor) -> FactorAnswer:
        """Compare a code of the app, or a recovery code; see `SecondFactors.check` of the store."""
        now, present = self.now(), self.store.second_factors.get(person)
        if present is not None and not recovery and not self.is_usable(present):
            # Nobody guesses: the person types what the app shows.
            return FactorAnswer(FactorOutcome.UNUSABLE)
        mail = self._mails(person, actor)

        def mail_of(answer: FactorAnswer) -> QueuedMail | None:
            match answer.outcome:
                case FactorOutcome.LOCKED:
                    return mail("locked", until=answer.until)
                case FactorOutcome.RECOVERED:
                    return mail("recovered", left=answer.left)
            return None

        answer = self.store.second_factors.check(
            person,
            session_sha256,
            lambda factor: self._step_of(factor, typed, now),
            recovery_hash(recovery) if recovery else "",
            actor,
            now,
            mail_of=mail_of,
        )
        outcome = answer.outcome
        if outcome in (FactorOutcome.WRONG, FactorOutcome.LOCKED, FactorOutcome.LIMITED):
            log.warning("second factor refused person=%s peer=%s: %s", person, actor.address, outcome.value)
        if outcome is FactorOutcome.LOCKED:
            self.store.notes.count({COUNTER: 1})
        if outcome is FactorOutcome.RECOVERED:
            log.info("recovery code used person=%s peer=%s", person, actor.address)
        return answer

    # ---- those of others

    def make_set_up_code(self, person: str, actor: Actor, by: Member | None = None) -> str:
        """Replace the second factor of a person, if there is one, by a code with which they set up the next one.

        ``by`` as in `Staff.give`. Raises NotAllowed, BadGrant.
        """
        person, now = identity(person.strip()), self.now()
        self.staff.check_reset(person, by)
        if not self.staff.member(person).grants and self.store.second_factors.get(person) is None:
            raise BadGrant(N_("This person does not have this role."))
        codes = new_recovery_codes(1)
        salt = secrets.token_bytes(SALT_OCTETS)
        made = SecondFactor(person, salt, "", now, recovery_hashes(codes))
        self.store.second_factors.put_set_up_code(made, actor, now, mail=self._mails(person, actor)("set-up-code"))
        log.info("set-up code made person=%s by=%s", person, actor.who)
        return codes[0]

    def reset(self, person: str, actor: Actor, by: Member | None = None) -> bool:
        """Remove the second factor of a person as `Staff.reset_factor` does."""
        person = identity(person.strip())
        self.staff.check_reset(person, by)
        return self.staff.reset_factor(person, actor, self._mails(person, actor)("reset"))

    # ---- parts

    def _mails(self, person: str, actor: Actor) -> Callable[..., QueuedMail | None]:
        """Return the function that makes a mail to a person about their second factor, without queries to the store.

        It has no secrets. None if the person cannot sign in, or no mail can be made.
        """
        address, policy = self.store.recipients.get(person).address, self.staff.domains.of(person)
        language = self.mailing.language_of(address)

        def mail(what: str, **values: Any) -> QueuedMail | None:
            if not self.staff.can_sign_in(person):
                return None
            try:
                return self.mailing.mail(
                    address,
                    "factor",
                    policy,
                    language=language,
                    what=what,
                    person=shown_address(person),
                    at=self.now(),
                    client="" if actor.name != person else actor.address,
                    days=SET_UP_CODE_LIFETIME.days,
                    **values,
                )
            except QuarantineError as error:  # a template of the site
                log.error("mail about the second factor not queued person=%s: %s", person, error)
                return None

        return mail

    def _put(self, factor: SecondFactor, replaces: str, session_sha256: bytes, actor: Actor, what: str) -> None:
        mail, now = self._mails(factor.person, actor)(what), self.now()
        if not self.store.second_factors.put(factor, replaces, session_sha256, actor, now, mail=mail):
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
