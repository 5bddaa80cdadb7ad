"""The rights to held messages: who may release them, and what their recipients may see and download."""

from __future__ import annotations

from enum import StrEnum

from portal.model.message import Message, ScanOutcome, Tier
from portal.model.record import record


class ReleaseRight(StrEnum):
    """The right to release a message of one tier to a recipient. The strictest is last."""

    SELF = "self"  # the recipient
    REQUEST = "request"  # an administrator, whom the recipient may ask
    ADMINISTRATOR = "administrator"  # an administrator alone


class Download(StrEnum):
    """The right to download a message."""

    NO = "no"
    WARNED = "warned"  # from a page with a warning only
    YES = "yes"


@record(frozen=True, slots=True)
class Access:
    """Rights of a recipient to see and download a delivery. Its text and its header fields they may always see."""

    source: bool
    message: Download  # as a file
    attachments: bool  # each as a file


def access(message: Message, right: ReleaseRight, *, downloads: bool) -> Access:
    """Return what a recipient may see and download. ``downloads``: what their domain allows.

    A file on the recipient's computer is as harmful as a released message, so nobody downloads what they may not
    release. Without a warning they download only what a virus scanner has read: an attachment is opened with one click
    more, and a mail program shows the message as a whole like any other.
    """
    if message.tier is Tier.DANGEROUS:
        return Access(source=False, message=Download.NO, attachments=False)
    is_allowed, is_spam = downloads and right is ReleaseRight.SELF, message.tier is Tier.SPAM
    is_clean = message.scan is not None and message.scan.outcome is ScanOutcome.CLEAN
    return Access(
        source=True,
        message=(Download.YES if is_spam and is_clean else Download.WARNED) if is_allowed else Download.NO,
        attachments=is_allowed and is_spam and is_clean,
    )
