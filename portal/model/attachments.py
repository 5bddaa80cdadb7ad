"""Kinds of attachments, and what makes them dangerous, in words. Texts are marked with `N_` for catalogues."""

from __future__ import annotations

from enum import StrEnum

from portal.model.text import N_


class Kind(StrEnum):
    """The kind of a file by its content."""

    PROGRAM = "program"
    SCRIPT = "script"  # text that a program on the computer runs, or a shortcut
    OFFICE = "office"
    PDF = "pdf"
    PICTURE = "picture"
    MEDIA = "media"
    ARCHIVE = "archive"
    DISK_IMAGE = "disk-image"
    WEB_PAGE = "web-page"
    TEXT = "text"
    MESSAGE = "message"
    UNKNOWN = "unknown"


class Danger(StrEnum):
    """A reason for a warning beside a file."""

    RUNS = "runs"
    MACROS = "macros"
    DISGUISED = "disguised"
    DISK_IMAGE = "disk-image"
    ENCRYPTED = "encrypted"
    WEB_PAGE = "web-page"


KINDS_IN_WORDS = {
    Kind.PROGRAM: N_("Program"),
    Kind.SCRIPT: N_("Script"),
    Kind.OFFICE: N_("Office document"),
    Kind.PDF: N_("PDF document"),
    Kind.PICTURE: N_("Picture"),
    Kind.MEDIA: N_("Audio or video"),
    Kind.ARCHIVE: N_("Archive"),
    Kind.DISK_IMAGE: N_("Disk image"),
    Kind.WEB_PAGE: N_("Web page"),
    Kind.TEXT: N_("Text file"),
    Kind.MESSAGE: N_("Attached message"),
    Kind.UNKNOWN: N_("Unknown file type"),
}
DANGERS_IN_WORDS = {
    Danger.RUNS: N_("It can run commands on your computer. Do not open it."),
    Danger.MACROS: N_("It contains macros, which can run commands on your computer."),
    Danger.DISGUISED: N_("Its name hides what kind of file it is."),
    Danger.DISK_IMAGE: N_("It can contain programs that virus scanners do not see."),
    Danger.ENCRYPTED: N_("It is encrypted, so virus scanners cannot read it."),
    Danger.WEB_PAGE: N_("It can imitate the sign-in page of another site."),
}
