"""The kind of an attachment by its octets, and what makes it dangerous: a table of what senders of malware use.

The name and the type that a message gives say what the sender wants people to believe. Rspamd and its virus scanners
judge the contents; this table only warns beside a file.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence

from portal.model.attachments import Danger, Kind
from portal.model.text import shown

_HEAD_BYTES = 0x8806  # the last signature that is looked for, that of ISO 9660, ends there
_OVERLAP_BYTES = 64
_BEGINNINGS: tuple[tuple[bytes, Kind], ...] = (
    (b"MZ", Kind.PROGRAM),
    (b"\x7fELF", Kind.PROGRAM),
    (b"\xfe\xed\xfa\xce", Kind.PROGRAM),  # Mach-O
    (b"\xfe\xed\xfa\xcf", Kind.PROGRAM),
    (b"\xce\xfa\xed\xfe", Kind.PROGRAM),
    (b"\xcf\xfa\xed\xfe", Kind.PROGRAM),
    (b"\xca\xfe\xba\xbe", Kind.PROGRAM),  # of several architectures; a class of Java
    (b"dex\n", Kind.PROGRAM),
    (b"!<arch>\n", Kind.PROGRAM),  # a Debian package
    (b"\xed\xab\xee\xdb", Kind.PROGRAM),  # RPM
    (b"ITSF", Kind.PROGRAM),  # compiled help, which runs scripts
    (b"L\0\0\0\x01\x14\x02\0", Kind.SCRIPT),  # a shortcut of Windows
    (b"#!", Kind.SCRIPT),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", Kind.OFFICE),  # OLE
    (b"{\\rt", Kind.OFFICE),
    (b"\xe4\x52\x5c\x7b\x8c\xd8\xa7\x4d", Kind.OFFICE),  # OneNote
    (b"PK\x03\x04", Kind.ARCHIVE),
    (b"PK\x05\x06", Kind.ARCHIVE),
    (b"Rar!\x1a\x07", Kind.ARCHIVE),
    (b"7z\xbc\xaf\x27\x1c", Kind.ARCHIVE),
    (b"\x1f\x8b", Kind.ARCHIVE),
    (b"BZh", Kind.ARCHIVE),
    (b"\xfd7zXZ\0", Kind.ARCHIVE),
    (b"\x28\xb5\x2f\xfd", Kind.ARCHIVE),
    (b"MSCF", Kind.ARCHIVE),
    (b"\x60\xea", Kind.ARCHIVE),  # ARJ
    (b"conectix", Kind.DISK_IMAGE),
    (b"vhdxfile", Kind.DISK_IMAGE),
    (b"QFI\xfb", Kind.DISK_IMAGE),
    (b"KDMV", Kind.DISK_IMAGE),
    (b"\x89PNG\r\n\x1a\n", Kind.PICTURE),
    (b"\xff\xd8\xff", Kind.PICTURE),
    (b"GIF8", Kind.PICTURE),
    (b"II*\0", Kind.PICTURE),
    (b"MM\0*", Kind.PICTURE),
    (b"\0\0\x01\0", Kind.PICTURE),
    (b"ID3", Kind.MEDIA),
    (b"\xff\xfb", Kind.MEDIA),
    (b"OggS", Kind.MEDIA),
    (b"fLaC", Kind.MEDIA),
    (b"\x1a\x45\xdf\xa3", Kind.MEDIA),
)
# (offset, signature, kind)
_INSIDE: tuple[tuple[int, bytes, Kind], ...] = (
    (0x8001, b"CD001", Kind.DISK_IMAGE),  # ISO 9660
    (0x8001, b"BEA01", Kind.DISK_IMAGE),  # UDF
    (257, b"ustar", Kind.ARCHIVE),
    (2, b"-lh", Kind.ARCHIVE),
    (7, b"**ACE**", Kind.ARCHIVE),
    (8, b"WEBP", Kind.PICTURE),
    (8, b"WAVE", Kind.MEDIA),
    (8, b"AVI ", Kind.MEDIA),
    (4, b"ftyphei", Kind.PICTURE),
    (4, b"ftypavif", Kind.PICTURE),
    (4, b"ftyp", Kind.MEDIA),
)
_PAGE_TYPES = ("text/html", "application/xhtml+xml", "image/svg+xml")
_PDF_BYTES = 1_024  # readers accept the signature within these
_PAGE = re.compile(
    rb"\s*(?:<!--.*?-->\s*|<\?xml[^>]*>\s*)*"
    rb"<(?:!doctype\s+(?:html|svg)|html|head|body|script|iframe|svg|meta|title|style|form|div|table|img|a\s)",
    re.DOTALL | re.IGNORECASE,
)
_PAGE_BYTES = 4_096
_NOT_TEXT = re.compile(rb"[\0-\x08\x0e-\x1a\x1c-\x1f]")
# Three letters also occur in compressed data, so a folder counts only as the name of an entry (APPNOTE.TXT, 4.3.7).
_OOXML = re.compile(
    rb"\[Content_Types\]\.xml|mimetypeapplication/vnd\.oasis|PK\x03\x04.{26}(?:word|xl|ppt)/", re.DOTALL
)
_PACKAGE = re.compile(rb"META-INF/MANIFEST\.MF|AndroidManifest\.xml|AppxManifest\.xml")
_MACROS = re.compile(rb"vbaProject\.bin|_\0V\0B\0A\0_\0P\0R\0O\0J\0E\0C\0T|M\0a\0c\0r\0o\0s\0\0")
_ODD = b"".join(re.escape(bytes([octet])) for octet in range(1, 256, 2))
# The flags of an entry (APPNOTE.TXT, 4.4.4: bit 0); the AES coder of 7z; an encrypted document of Office.
_ENCRYPTED = re.compile(
    rb"PK(?:\x03\x04..|\x01\x02....)[%s]|\x06\xf1\x07\x01|E\0n\0c\0r\0y\0p\0t\0e\0d\0P\0a\0c\0k\0a\0g\0e" % _ODD,
    re.DOTALL,
)


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# With the endings that Outlook blocks (Microsoft, "Blocked attachments in Outlook") but for those of harmless uses.
_PROGRAMS = _names(
    "exe com scr pif cpl dll ocx sys drv msi msp mst msu msix msixbundle appx appxbundle jar apk deb rpm pkg app "
    "gadget xll chm hlp xpi crx ipa run bin elf pyc pyo xbap"
)
_SCRIPTS = _names(
    "js jse mjs vbs vbe vb vbp vsmacros ws wsf wsh wsc sct hta htc bat cmd ps1 ps1xml ps2 ps2xml psm1 psd1 psc1 psc2 "
    "msh msh1 msh2 mshxml msh1xml msh2xml cdxml sh bash zsh csh ksh command py pyw pyz pyzw pl rb php asp aspx bas lnk "
    "url website scf shb shs reg inf ins isp its jnlp desktop application appref-ms settingcontent-ms library-ms "
    "search-ms searchconnector-ms printerexport webpnp diagcab msc theme themepack deskthemepack iqy slk rdp webloc "
    "terminal applescript scpt osd pcd prg xnk ade adp accda accde accdr mad maf mag mam maq mar mas mat mau mav maw "
    "mda mde mdt mdw mdz vsw"
)
_WITH_MACROS = _names("docm dotm xlsm xltm xlam xlsb pptm potm ppsm ppam sldm")
_DISK_IMAGES = _names("iso img dmg vhd vhdx vmdk udf daa wim")
_PAGES = _names("html htm xhtml xht shtml svg svgz mht mhtml")
_OF_UNKNOWN_USE = (Kind.TEXT, Kind.UNKNOWN)  # by content; systems decide by the ending
_HIDE = _PROGRAMS | _SCRIPTS | _WITH_MACROS | _DISK_IMAGES | _PAGES  # in a double ending
_HARMLESS = _names(
    "pdf doc docx xls xlsx ppt pptx odt ods odp rtf txt csv jpg jpeg png gif bmp tif tiff webp heic mp3 mp4 wav avi "
    "mov zip rar 7z eml msg"
)
_HIDDEN = re.compile("[\u200e\u200f\u202a-\u202e\u2066-\u2069]")


class Inspector:
    """Looks at the decoded octets of one file, which come in pieces."""

    def __init__(self) -> None:
        self._head = b""
        self._last = b""
        self._has_macros = False
        self._is_encrypted = False

    @property
    def needs_head(self) -> bool:
        """Return whether more octets can change the kind."""
        return len(self._head) < _HEAD_BYTES

    @property
    def needs_more(self) -> bool:
        """Return whether more octets can change what is found."""
        if self.needs_head:
            return True
        is_container = self._head.startswith((b"PK", b"\xd0\xcf\x11\xe0", b"7z\xbc\xaf"))
        return is_container and not (self._has_macros and self._is_encrypted)

    def add(self, octets: bytes) -> None:
        """Look at the next octets."""
        if len(self._head) < _HEAD_BYTES:
            self._head += octets[: _HEAD_BYTES - len(self._head)]
        window = self._last + octets
        if self._head.startswith((b"PK", b"\xd0\xcf\x11\xe0")):
            self._has_macros = self._has_macros or _MACROS.search(window) is not None
        if self._head.startswith((b"PK", b"\xd0\xcf\x11\xe0", b"7z\xbc\xaf")):
            self._is_encrypted = self._is_encrypted or _ENCRYPTED.search(window) is not None
        self._last = window[-_OVERLAP_BYTES:]

    def found(self, names: Sequence[str], type_: str) -> tuple[Kind, list[Danger]]:
        """Return the kind and the dangers of the file that has these names, the likeliest first, and declared type."""
        by_content, is_encrypted = self._kind(), self._is_encrypted or self._is_encrypted_rar()

        def judged(name: str) -> tuple[Kind, list[Danger]]:
            kind, ending = by_content, _endings(name)[-1]
            if kind in _OF_UNKNOWN_USE:
                kind = _kind_by_claim(kind, ending, type_)
            elif kind is Kind.OFFICE and ending in ("msi", "msp", "mst"):
                kind = Kind.PROGRAM
            return kind, _dangers(kind, name, has_macros=self._has_macros, is_encrypted=is_encrypted)

        return _worst([judged(name) for name in _as_read(names)])

    def _kind(self) -> Kind:
        head = self._head
        for offset, signature, kind in _INSIDE:
            if head.startswith(signature, offset):
                return kind
        for signature, kind in _BEGINNINGS:
            if head.startswith(signature):
                if kind is Kind.ARCHIVE and _PACKAGE.search(head):
                    return Kind.PROGRAM
                return Kind.OFFICE if head.startswith(b"PK") and _OOXML.search(head) else kind
        if b"%PDF-" in head[:_PDF_BYTES]:
            return Kind.PDF
        text = _as_utf8(head[:_PAGE_BYTES])
        if _PAGE.match(text):
            return Kind.WEB_PAGE
        return Kind.UNKNOWN if _NOT_TEXT.search(text) or not head else Kind.TEXT

    def _is_encrypted_rar(self) -> bool:
        """Return whether the headers of a RAR archive are encrypted, or its first file (up to RAR 4)."""
        head = self._head.ljust(32, b"\0")
        if head.startswith(b"Rar!\x1a\x07\x01\0"):
            return head[13] == 4  # the type of the first header
        return head.startswith(b"Rar!\x1a\x07\0") and bool(head[10] & 0x80 or head[23] & 4)


def by_names(names: Sequence[str]) -> tuple[Kind, list[Danger]]:
    """Return the kind and the dangers of a file whose octets were not looked at."""

    def judged(name: str) -> tuple[Kind, list[Danger]]:
        kind = _kind_by_claim(Kind.UNKNOWN, _endings(name)[-1], "")
        return kind, _dangers(kind, name, has_macros=False, is_encrypted=False)

    return _worst([judged(name) for name in _as_read(names)])


def _as_read(names: Sequence[str]) -> Iterator[str]:
    """Yield each name, and what programs in C read of it: they end a name at its first NUL."""
    for name in names or ("",):
        yield name
        if "\0" in name:
            yield name.partition("\0")[0]


def _worst(found: Sequence[tuple[Kind, list[Danger]]]) -> tuple[Kind, list[Danger]]:
    """Return the kind and the dangers of a file under all its names: a worse name than the first one is a disguise."""
    kind, dangers = found[0]
    for other, more in found[1:]:
        if set(more) - {Danger.DISGUISED, *dangers}:
            kind = other if kind in _OF_UNKNOWN_USE else kind
            dangers = [danger for danger in Danger if danger in (*dangers, *more, Danger.DISGUISED)]
    return kind, dangers


def _kind_by_claim(kind: Kind, ending: str, type_: str) -> Kind:
    """Return the kind of a file whose octets do not say it: systems decide by the ending what they do with it."""
    if ending in _PROGRAMS:
        return Kind.PROGRAM
    if ending in _SCRIPTS:
        return Kind.SCRIPT
    if ending in _DISK_IMAGES:
        return Kind.DISK_IMAGE
    return Kind.WEB_PAGE if ending in _PAGES or type_ in _PAGE_TYPES else kind


def _dangers(kind: Kind, name: str, *, has_macros: bool, is_encrypted: bool) -> list[Danger]:
    *before, ending = _endings(name)
    is_hidden = bool(before) and before[-1] in _HARMLESS and ending in _HIDE
    runs = kind in (Kind.PROGRAM, Kind.SCRIPT) or ending in _PROGRAMS | _SCRIPTS
    is_other = kind in (Kind.PROGRAM, Kind.SCRIPT, Kind.DISK_IMAGE, Kind.WEB_PAGE) and ending in _HARMLESS
    found = {
        Danger.RUNS: runs,
        Danger.MACROS: has_macros or ending in _WITH_MACROS,
        Danger.DISGUISED: is_hidden or is_other or _HIDDEN.search(name) is not None,
        Danger.DISK_IMAGE: kind is Kind.DISK_IMAGE or ending in _DISK_IMAGES,
        Danger.ENCRYPTED: is_encrypted,
        Danger.WEB_PAGE: kind is Kind.WEB_PAGE or ending in _PAGES,
    }
    return [danger for danger, holds in found.items() if holds]


def _endings(name: str) -> list[str]:
    """Return the last two endings of a name as it is shown and saved, in lower case, the last one "" without any."""
    plain = unicodedata.normalize("NFKC", shown(name, len(name))[-300:]).lower()
    return [each.strip() for each in plain.rstrip(" .").split(".")[1:]][-2:] or [""]


def _as_utf8(head: bytes) -> bytes:
    """Return the beginning of a text without a byte order mark."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return head.decode("utf-16", "replace").encode("utf-8", "replace")
    return head.removeprefix(b"\xef\xbb\xbf")
