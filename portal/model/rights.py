"""The rights to release held messages."""

from __future__ import annotations

from enum import StrEnum


class ReleaseRight(StrEnum):
    """The right to release a message of one tier to a recipient. The strictest is last."""

    SELF = "self"  # the recipient
    REQUEST = "request"  # an administrator, whom the recipient may ask
    ADMINISTRATOR = "administrator"  # an administrator alone
