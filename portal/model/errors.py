"""The exceptions of this program, one class for each reaction of a caller.

The module that uses a library translates its errors, with ``raise … from``. Messages are sentences for people and
contain ids at most: never subjects, bodies, passwords or tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from portal.model.phrase import Phrase

if TYPE_CHECKING:
    from portal.model.message import Delivery


class QuarantineError(Exception):
    """Base class, caught only in entry points."""


class SettingsError(QuarantineError):
    """The configuration is wrong. The message lists every problem with its source; the program stops."""


class BadExport(QuarantineError):
    """A POST that is not an export of a message: HTTP 400. The error message says what to change."""


class TooLarge(QuarantineError):
    """A POST larger than ``exporter.max_body_bytes``, packed or unpacked: HTTP 413."""


class StoreUnavailable(QuarantineError):
    """The store cannot be used now (down, full, locked, too slow): HTTP 503, try again later."""


class BodyDamaged(StoreUnavailable):
    """The stored body is not the one that was received (its SHA-256 differs): discard all that was read of it."""


class StoreUnusable(QuarantineError):
    """The store exists but cannot be used: no schema, another version, other link keys. Needs an operator."""


class NotFound(QuarantineError):
    """The message or delivery does not exist or is another recipient's. The error does not disclose which."""


class BodyMissing(NotFound):
    """The message is known but its body is missing (its file was deleted outside of this program)."""


class LinkInvalid(QuarantineError):
    """A token that this portal did not sign, or a revoked one. Never discloses whether the message exists."""


class SignInInvalid(LinkInvalid):
    """A mailed sign-in that is unknown, used or expired."""


class CodesSuspended(LinkInvalid):
    """So many wrong sign-in codes were entered, for all recipients together, that none is accepted for a while."""


class LinkExpired(LinkInvalid):
    """A token that this portal signed, past its lifetime."""


class AlreadyDone(QuarantineError):
    """The action was done before, or another process is doing it. ``delivery`` shows the outcome, if known."""

    def __init__(self, message: str, delivery: Delivery | None = None) -> None:
        super().__init__(message)
        self.delivery = delivery


class KeyReused(QuarantineError):
    """An idempotency key that belongs to another request."""


class NotAllowed(QuarantineError):
    """This person may not do this (for example, a recipient who releases a dangerous message)."""


class NotConfirmed(NotAllowed):
    """The message is suspicious, and the reader did not confirm its release after they saw its cautions."""


class BadRule(QuarantineError):
    """A rule that cannot be made. The message says what to enter instead."""


class BadDomainValue(QuarantineError):
    """A value that a domain cannot have, or a domain that cannot have any."""

    def __init__(self, problem: Phrase, key: str = "") -> None:
        """``problem``: what is wrong and what to do; ``key``: of the value, "" if it is about the domain."""
        self.problem = problem
        super().__init__(f"{key}: {problem}" if key else str(problem))


class DomainValueNotSet(BadDomainValue):
    """A value that cannot be removed, since the store does not have it."""


class BadGrant(QuarantineError):
    """A role that cannot be given or removed. The message says why, and is a text to be translated."""


class BadToken(QuarantineError):
    """An API token that cannot be created or revoked. The message says why, and is a text to be translated."""


class BadPreference(QuarantineError):
    """A value that no preference can have. The message says what to enter, and is a text to be translated."""


class BadList(QuarantineError):
    """A list of recipients that cannot be read. The message says why, and is a text to be translated.

    ``line``: the first one that cannot be read.
    """

    def __init__(self, line: int, text: str) -> None:
        super().__init__(text)
        self.line = line


class UnknownRecipient(QuarantineError):
    """An address that is no recipient here, or not one for this viewer. The message is a text to be translated."""


class TooManyRules(BadRule):
    """No more rules can be made. The message says which limit is reached."""


class RspamdUnavailable(QuarantineError):
    """Rspamd or its virus scanner did not answer as expected: try again later."""


class PasswordServerUnavailable(QuarantineError):
    """The directory or IMAP server did not check a password: it is away, or rejects the portal. Try again later."""


class PasswordUnanswered(PasswordServerUnavailable):
    """The server got a password and did not answer in time. It may be wrong: servers delay such answers."""


class Busy(QuarantineError):
    """As much is being done at once as this host or recipient may: try again in some seconds."""


class RelayDeferred(QuarantineError):
    """The mail server defers the message (4xx, no connection, time-out) or rejects this portal: try again later.

    ``portal_rejected``: it rejects this portal and not the message (unknown client, wrong password, relaying denied).
    The administrator must change something; the recipient is not shown the mail server's reply.
    """

    has_answer = True  # of the mail server to this message

    def __init__(self, message: str, *, portal_rejected: bool = False) -> None:
        super().__init__(message)
        self.portal_rejected = portal_rejected


class RelayUnreachable(RelayDeferred):
    """The mail server failed or rejected this portal before any command for the message: not about the message."""

    has_answer = False


class RelayRefused(QuarantineError):
    """The mail server rejects the message or recipient (5xx, unsupported address): give up, show the reason."""


class RulesInUse(QuarantineError):
    """The store has allow or block rules, so the caller must decide by them first, see `Messages.add`."""


class BadCriterion(QuarantineError):
    """A search criterion that cannot be used. The caller shows it under its own name of the criterion."""

    def __init__(self, name: str, problem: Phrase, other: str | None = None) -> None:
        """``other``: the name of a criterion that this one contradicts; %(first)s and %(second)s are both."""
        self.name = name
        self.problem = problem
        self.other = other
        super().__init__(self.sentence(str))

    def sentence(self, label: Callable[[str], str], translate: Callable[[Phrase], str] = str) -> str:
        """Return the problem; ``label`` returns what the reader knows a criterion by."""
        if self.other is None:
            return f"{label(self.name)}: {translate(self.problem)}"
        return translate(Phrase(self.problem.text, {"first": label(self.name), "second": label(self.other)}))
