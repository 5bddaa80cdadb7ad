"""Every failure a caller may meet, one tree, told apart by what the caller *does* about it.

Each library's errors are translated once, at its door, with ``raise … from``. Messages are sentences for
people and carry ids at most: never subjects, bodies, passwords or tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from portal.model.message import Delivery


class QuarantineError(Exception):
    """Parent of all: caught at the outermost edges only."""


class SettingsError(QuarantineError):
    """The configuration is wrong. The message lists every problem with its source; the program stops."""


class BadExport(QuarantineError):
    """A POST that is no export of a message: HTTP 400. The message says what to change."""


class TooLarge(QuarantineError):
    """A POST over ``exporter.max_body_bytes``, also once unpacked: HTTP 413."""


class StoreUnavailable(QuarantineError):
    """The store cannot be used now (down, full, locked, too slow): HTTP 503, try again later."""


class BodyDamaged(StoreUnavailable):
    """The stored mail is not what was received (its SHA-256 differs): nothing may be done with what was read."""


class StoreUnusable(QuarantineError):
    """The store is there but not ours to use: no schema, another version, other link keys. Needs an operator."""


class NotFound(QuarantineError):
    """No such message or delivery, or not this recipient's: the two are never told apart."""


class BodyMissing(NotFound):
    """The message is known but its mail is gone (its file was deleted behind the store's back)."""


class LinkInvalid(QuarantineError):
    """A token that we did not make, or one that was revoked. Never reveals whether the mail exists."""


class LinkExpired(LinkInvalid):
    """A token of ours, past its lifetime."""


class AlreadyDone(QuarantineError):
    """The act was done before, or another process is doing it. ``delivery`` tells what happened, if known."""

    def __init__(self, message: str, delivery: Delivery | None = None) -> None:
        super().__init__(message)
        self.delivery = delivery


class NotAllowed(QuarantineError):
    """This person may not do that (a recipient releasing dangerous mail)."""


class RelayDeferred(QuarantineError):
    """The mail server cannot take it now (4xx, no connection, time-out) or rejects this portal: try again later.

    ``portal_rejected``: it rejects this portal and not the mail (unknown client, wrong password, no right to relay).
    The administrator must change something; the recipient is not shown its words.
    """

    def __init__(self, message: str, *, portal_rejected: bool = False) -> None:
        super().__init__(message)
        self.portal_rejected = portal_rejected


class RelayUnreachable(RelayDeferred):
    """No mail server that takes any mail of ours: says nothing about this one."""


class RelayRefused(QuarantineError):
    """The mail server rejects this mail or recipient (5xx, an address it cannot express): give up, show the reason."""
