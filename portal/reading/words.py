"""The text of a message and its list of attachments, made of its parts.

Nothing that an inbox would show is left out: of alternatives the last one is shown, and an earlier one too if it says
something else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from portal.model.charsets import codec_of, decode
from portal.reading.html import text_of
from portal.reading.mime import Part

_META = re.compile(rb"<meta[^>]{1,500}?charset\s*=\s*[\"']?\s*([A-Za-z0-9_.:-]{1,60})", re.IGNORECASE)
_META_BYTES = 4_096
_WORDS = re.compile(r"\w{2,}")
_ADDRESSES = re.compile(r"\S*://\S*|\[[^\]\s]*\]")
_RICH_COMMAND = re.compile(r"<(<)|</?([A-Za-z0-9-]{1,60})>")
_RICH_LINES = re.compile(r"\r?\n((?:\r?\n)*)")
_CALENDAR_FOLD = re.compile(r"\r?\n[ \t]")
_CALENDAR_LINE = re.compile(r"^([A-Za-z-]++)([^:\r\n]*+):([^\r\n]*+)", re.MULTILINE)
_CALENDAR_TIME = re.compile(r"([0-9]{4})([0-9]{2})([0-9]{2})(?:T([0-9]{2})([0-9]{2})[0-9]*(Z?))?")
_ATTACHED_TEXTS = (
    "text/csv",
    "text/vcard",
    "text/x-vcard",
    "text/directory",
    "text/xml",
    "text/css",
    "text/javascript",
    "text/rtf",
)
# The last two are other forms of the same message, for Gmail and for watches.
_HTML = ("text/html", "application/xhtml+xml", "text/x-amp-html", "text/watch-html")
# The parts of reports that are for people too, as fields of a header.
_REPORTS = ("message/delivery-status", "message/disposition-notification", "message/feedback-report")


class Words:
    """Collects the text and the attachments of a message."""

    def __init__(self, root: Part, is_late: Callable[[], bool]) -> None:
        self.attachments: list[tuple[str, str, int]] = []
        self.is_cut = False
        self._is_late = is_late
        self.text = "\n\n".join(self._blocks(root))

    def _blocks(self, part: Part) -> list[str]:
        """Return the texts of a part, and add its attachments."""
        if part.is_message:
            return self._message(part)
        if part.parts:
            return self._alternatives(part) if part.type == "multipart/alternative" else self._all(part.parts)
        if part.type.startswith("multipart/"):
            return []
        is_shown = _is_shown(part)
        if not is_shown or part.fields.file_name:
            self.attachments.append((part.fields.file_name, part.type, part.size_bytes))
        text = self._text(part).strip("\r\n") if is_shown else ""
        return [text] if text.strip() else []

    def _all(self, parts: Iterable[Part]) -> list[str]:
        return [block for part in parts for block in self._blocks(part)]

    def _alternatives(self, part: Part) -> list[str]:
        """Return the last alternative that has text, after others that say something else, and before invitations.

        Any word that only an HTML part has counts, since some mail programs show HTML wherever it is; otherwise half of
        the words, since a plain text and its HTML always differ a little.
        """
        invitations = [each for each in part.parts if each.type == "text/calendar"]
        # Mail programs no longer know text/enriched.
        order = sorted(part.parts, key=lambda each: each.type not in ("text/enriched", "text/richtext"))
        texts = [(each, text) for each in order if each not in invitations and (text := self._blocks(each))]
        shown = [text for _, text in texts[-1:]]
        known = set(_WORDS.findall("\n".join(each for text in shown for each in text).lower()))
        for each, text in reversed(texts[:-1]):
            words = set(_WORDS.findall(_ADDRESSES.sub(" ", "\n".join(text)).lower()))
            missing = len(words - known)
            if missing and (missing * 2 >= len(words) or each.type in _HTML):
                shown.append(text)
                known |= words
        return [block for text in reversed(shown) for block in text] + self._all(invitations)

    def _message(self, part: Part) -> list[str]:
        """Return the words of an attached message, set apart like a quotation."""
        inner = part.parts[0]
        sender, subject = inner.fields.text("from"), inner.fields.text("subject")
        title = ": ".join(filter(None, (sender, subject)))
        name = part.fields.file_name
        self.attachments.append((f"{name} ({title})" if name and title else name or title, part.type, part.size_bytes))
        header = [f"{label}: {value}" for label, value in (("From", sender), ("Subject", subject)) if value]
        text = "\n\n".join(["\n".join(header), *self._blocks(inner)])
        return ["\n".join(f"> {line}" for line in text.splitlines())]

    def _text(self, part: Part) -> str:
        self.is_cut = self.is_cut or part.is_cut
        octets, charset = part.octets, part.fields.charset
        if part.type in _HTML:
            if not codec_of(charset) and (meta := _META.search(octets, 0, _META_BYTES)):
                charset = meta[1].decode()
            text = text_of(decode(octets, charset), self._is_late)
            self.is_cut = self.is_cut or self._is_late()
            return text
        text = decode(octets, charset)
        if part.type in ("text/enriched", "text/richtext"):
            return _enriched(text)
        if part.type == "text/calendar":
            return _invitation(text)
        if part.type in _REPORTS:
            return re.sub(r"(?im)^([^:\n]*:[ \t]*)(?:rfc822|dns|smtp|utf-8);[ \t]*", r"\1", text)
        return text


def _is_shown(part: Part) -> bool:
    """Return whether mail programs show a part as text: also with a file name, unless it is an attachment."""
    if part.fields.disposition == "attachment":
        return False
    if part.type in ("text/plain", *_HTML, "text/enriched", "text/richtext", "text/calendar", *_REPORTS):
        return True
    return part.type.startswith("text/") and part.type not in _ATTACHED_TEXTS and not part.fields.file_name


def _enriched(text: str) -> str:
    """Return the words of text/enriched (RFC 1896): commands left out, single line ends are blanks."""
    text = _RICH_LINES.sub(lambda ends: "\n" * ends[1].count("\n") or " ", text)
    text = re.sub(r"<param>[^<]*+(?:</param>)?", "", text, flags=re.IGNORECASE)
    return _RICH_COMMAND.sub(lambda command: "<" if command[1] else "", text)


def _invitation(text: str) -> str:
    """Return the words of a calendar's first event (RFC 5545): title, time, place, organizer and description."""
    found: dict[str, str] = {}
    for match in _CALENDAR_LINE.finditer(_CALENDAR_FOLD.sub("", text).partition("END:VEVENT")[0]):
        name, value = match[1].upper(), match[3].strip()
        if name == "BEGIN" and value.upper() == "VEVENT":
            found = {key: found[key] for key in found if key == "METHOD"}
        if name == "ORGANIZER":
            common_name = re.search(r"CN=(\"[^\"]*\"|[^;]*)", match[2], re.IGNORECASE)
            value = " ".join(filter(None, (common_name and common_name[1].strip('"'), value)))
        found.setdefault(name, value)
    times = [_moment(found[name]) for name in ("DTSTART", "DTEND") if name in found]
    lines = [found.get("SUMMARY"), " – ".join(times), found.get("LOCATION"), found.get("ORGANIZER")]
    words = "\n".join(line for line in lines if line) + "\n\n" + found.get("DESCRIPTION", "")
    return re.sub(r"\\(.)", lambda pair: "\n" if pair[1] in "nN" else pair[1], words)


def _moment(value: str) -> str:
    return _CALENDAR_TIME.sub(
        lambda time: (
            f"{time[1]}-{time[2]}-{time[3]}" + (f" {time[4]}:{time[5]}{time[6] and ' UTC'}" if time[4] else "")
        ),
        value,
    )
