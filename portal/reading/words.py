"""The text of a message and its list of attachments, made of its parts.

Nothing that an inbox would show is left out: of alternatives the last one is shown, and an earlier one too if it says
something else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from portal.model.attachments import Danger, Kind
from portal.model.charsets import codec_of, decode
from portal.model.encoded_words import decode_field
from portal.reading.encodings import uuencoded_files
from portal.reading.html import text_of
from portal.reading.kinds import by_names
from portal.reading.mime import HTML_TYPES, REPORT_TYPES, Part

TEXT_CHARACTERS = 1 << 18  # more are not shown
_TAG = re.compile(
    rb"<(?:!--.*?(?:-->|\Z)|(/?[a-z][^\s/>]*+)((?:\"[^\"]*\"|'[^']*'|[^>\"'])*+)>)", re.DOTALL | re.IGNORECASE
)
_ATTRIBUTE = re.compile(rb"([^\s/>=]++)\s*+=\s*+(\"[^\"]*\"|'[^']*'|[^\s>]*+)")
_CONTENT_CHARSET = re.compile(rb"charset\s*=\s*[\"']?\s*([^\s;\"']+)", re.IGNORECASE)
_XML_ENCODING = re.compile(rb"<\?xml\s[^>]*?encoding\s*=\s*[\"']([^\"'>]+)")
_META_BYTES = 4_096
_CONTENT_IDS = re.compile(rb"cid:([^\s\"'<>)]{1,200})", re.IGNORECASE)
_WORDS = re.compile(r"\w{2,}")
_ADDRESSES = re.compile(r"\S*://\S*|\[[^\]\s]*\]")
_TARGETS = re.compile(r"\[([^\]\s]*)\]")
_HOSTS = re.compile(r"[\w@-][\w.@:-]*[\w-]")
_RICH_COMMAND = re.compile(r"<(<)|</?([A-Za-z0-9-]{1,60})>")
_RICH_LINES = re.compile(r"\r?\n((?:\r?\n)*)")
_CALENDAR_FOLD = re.compile(r"\r?\n[ \t]")
_CALENDAR_LINE = re.compile(r"^([A-Za-z-]++)([^:\r\n]*+):([^\r\n]*+)", re.MULTILINE)
_EVENTS = ("VEVENT", "VTODO", "VJOURNAL")
_CALENDAR_TIME = re.compile(r"([0-9]{4})([0-9]{2})([0-9]{2})(?:T([0-9]{2})([0-9]{2})[0-9]*(Z?))?")


class Listed(NamedTuple):
    """An attachment."""

    name: str
    type: str  # as declared
    size_bytes: int | None
    kind: Kind
    dangers: list[Danger]
    number: int  # of its part, 0: it cannot be read by itself


class Words:
    """Collects the text and the attachments of a message.

    ``seconds``: returns the time that was spent; ``until``: the time at which to stop.
    """

    def __init__(self, root: Part, seconds: Callable[[], float], until: float) -> None:
        self.attachments: list[Listed] = []
        self.is_cut = False
        self._seconds = seconds
        self._until = until
        self._html_left = _html_parts(root)
        self._in_text = {name for html in _html_texts(root) for name in _CONTENT_IDS.findall(html)}
        self.text = "\n\n".join(self._blocks(root))

    def _blocks(self, part: Part) -> list[str]:
        """Return the texts of a part, and add its attachments."""
        if self._seconds() > self._until:
            self.is_cut = True
            return []
        if part.is_message:
            return self._message(part)
        if part.parts:
            return self._alternatives(part) if part.type == "multipart/alternative" else self._all(part.parts)
        if part.type.startswith("multipart/"):
            return []
        if part.is_file and not self._is_in_text(part):
            self._list(part, part.fields.file_name)
        text = self._text(part).strip("\r\n") if part.is_shown else ""
        return [text] if text.strip() else []

    def _list(self, part: Part, name: str) -> None:
        names = part.fields.file_names
        kind, dangers = by_names(names) if part.inspector is None else part.inspector.found(names, part.type)
        if part.is_message:
            kind = Kind.MESSAGE
        self.attachments.append(Listed(name, part.type, part.size_bytes, kind, dangers, part.number))

    def _is_in_text(self, part: Part) -> bool:
        """Return whether an HTML text shows this picture. Only pictures: nothing else can be hidden from the list."""
        name = part.fields.values.get("content-id", b"").strip(b"<> ")
        if part.inspector is None or part.fields.disposition == "attachment" or name not in self._in_text:
            return False
        kind, dangers = part.inspector.found(part.fields.file_names, part.type)
        return kind is Kind.PICTURE and not dangers

    def _all(self, parts: Iterable[Part]) -> list[str]:
        return [block for part in parts for block in self._blocks(part)]

    def _alternatives(self, part: Part) -> list[str]:
        """Return the last alternative that has text, after others that say something else, and before invitations.

        Any word or target of a link that only an HTML part has counts, since some mail programs show HTML wherever it
        is; otherwise half of the words, since a plain text and its HTML always differ a little.
        """
        invitations = [each for each in part.parts if each.type == "text/calendar"]
        # Mail programs no longer know text/enriched.
        order = sorted(part.parts, key=lambda each: each.type not in ("text/enriched", "text/richtext"))
        texts = [(each, text) for each in order if each not in invitations and (text := self._blocks(each))]
        if len(texts) < 2 or self._seconds() > self._until:  # each of many in one another would compare the same words
            return [block for _, text in texts for block in text] + self._all(invitations)
        shown = [text for _, text in texts[-1:]]
        last = "\n".join(each for text in shown for each in text).lower()
        known, hosts = set(_WORDS.findall(last)), set(_HOSTS.findall(last))
        for each, text in reversed(texts[:-1]):
            lines = "\n".join(text).lower()
            words = set(_WORDS.findall(_ADDRESSES.sub(" ", lines)))
            missing, is_html = len(words - known), _has_html(each)
            leads_elsewhere = is_html and not hosts.issuperset(_TARGETS.findall(lines))
            if leads_elsewhere or (missing and (is_html or missing * 2 >= len(words))):
                shown.append(text)
                known |= words
                hosts.update(_HOSTS.findall(lines))
        return [block for text in reversed(shown) for block in text] + self._all(invitations)

    def _message(self, part: Part) -> list[str]:
        """Return the words of an attached message, set apart like a quotation."""
        inner = part.parts[0]
        sender, subject = inner.fields.text("from"), inner.fields.text("subject")
        title = ": ".join(filter(None, (sender, subject)))
        name = part.fields.file_name
        self._list(part, f"{name} ({title})" if name and title else name or title)
        header = [f"{label}: {value}" for label, value in (("From", sender), ("Subject", subject)) if value]
        text = "\n\n".join(["\n".join(header), *self._blocks(inner)])
        if len(text) > TEXT_CHARACTERS:  # each of many messages in one another makes it longer
            text, self.is_cut = text[:TEXT_CHARACTERS], True
        return ["\n".join(f"> {line}" for line in text.splitlines())]

    def _text(self, part: Part) -> str:
        self.is_cut = self.is_cut or part.is_cut
        octets, charset = part.octets, part.fields.charset
        if part.type in HTML_TYPES:
            # If more HTML follows, one takes at most half of the time that is left.
            self._html_left -= 1
            until = (self._seconds() + self._until) / 2 if self._html_left else self._until
            text = text_of(markup_of(part), lambda: self._seconds() > until)
            self.is_cut = self.is_cut or self._seconds() > until
            return text
        if part.type == "text/plain":
            octets, files = uuencoded_files(octets)
            for octets_of_name, size in files:
                name = decode_field(octets_of_name)
                self.attachments.append(Listed(name, "application/octet-stream", size, *by_names((name,)), 0))
        text = decode(octets, charset)
        if part.type in ("text/enriched", "text/richtext"):
            return _enriched(text)
        if part.type == "text/calendar":
            return _calendar(text)
        if part.type in REPORT_TYPES:
            return re.sub(r"(?im)^([^:\n]*:[ \t]*)(?:rfc822|dns|smtp|utf-8);[ \t]*", r"\1", text)
        return text


def markup_of(part: Part) -> str:
    """Return the HTML of a part, in the charset of its header, or else in the one that it names itself."""
    charset = part.fields.charset
    if not codec_of(charset):
        charset = _meta_charset(part.octets) or charset
    return decode(part.octets, charset)


def _html_parts(part: Part) -> int:
    """Return the number of HTML texts that are shown."""
    if part.parts:
        return sum(map(_html_parts, part.parts))
    return int(part.is_shown and part.type in HTML_TYPES)


def _html_texts(part: Part) -> Iterator[bytes]:
    """Yield the HTML texts that are shown."""
    if part.is_shown and part.type in HTML_TYPES:
        yield part.octets
    for each in part.parts:
        yield from _html_texts(each)


def _has_html(part: Part) -> bool:
    return part.type in HTML_TYPES or any(map(_has_html, part.parts))


def _meta_charset(octets: bytes) -> str:
    """Return the charset that HTML names itself, "" if it names none (WHATWG HTML, 13.2.3.2)."""
    for tag in _TAG.finditer(octets, 0, _META_BYTES):
        if (tag[1] or b"").lower() != b"meta":
            continue
        found: dict[bytes, bytes] = {}
        for name, value in _ATTRIBUTE.findall(tag[2]):
            found.setdefault(name.lower(), value.strip(b"\"'"))
        label = found.get(b"charset", b"")
        if not label and found.get(b"http-equiv", b"").strip().lower() == b"content-type":
            match = _CONTENT_CHARSET.search(found.get(b"content", b""))
            label = match[1] if match else b""
        if codec := codec_of(label.decode("latin-1")):
            # It could not be read if it were not a superset of ASCII.
            return "utf-8" if codec.startswith("utf") else label.decode("latin-1")
    declaration = _XML_ENCODING.match(octets, 0, _META_BYTES)
    return declaration[1].decode("latin-1") if declaration else ""


def _enriched(text: str) -> str:
    """Return the words of text/enriched (RFC 1896): commands left out, single line ends are blanks."""
    text = _RICH_LINES.sub(lambda ends: "\n" * ends[1].count("\n") or " ", text)
    text = re.sub(r"<param>[^<]*+(?:</param>)?", "", text, flags=re.IGNORECASE)
    return _RICH_COMMAND.sub(lambda command: "<" if command[1] else "", text)


def _calendar(text: str) -> str:
    """Return the words of a calendar's events and tasks (RFC 5545), the text itself if it has none."""
    events: list[tuple[dict[str, str], dict[str, str]]] = []
    is_alarm = False  # its description is less than that of its event
    for match in _CALENDAR_LINE.finditer(_CALENDAR_FOLD.sub("", text)):
        name, value = match[1].upper(), match[3].strip()
        if name == "BEGIN" and value.upper() in _EVENTS:
            events.append(({}, {}))
        if name in ("BEGIN", "END"):
            is_alarm = name == "BEGIN" and value.upper() == "VALARM"
        elif events:
            if name == "ORGANIZER":
                common_name = re.search(r"CN=(\"[^\"]*\"|[^;]*)", match[2], re.IGNORECASE)
                value = " ".join(filter(None, (common_name and common_name[1].strip('"'), value)))
            events[-1][is_alarm].setdefault(name, value)
    blocks = (_event(alarm | {key: value for key, value in event.items() if value}) for event, alarm in events)
    return "\n\n".join(dict.fromkeys(blocks)) if events else text


def _event(found: Mapping[str, str]) -> str:
    """Return title, time, place, organizer, link and description of an event."""
    times = [_moment(found[name]) for name in ("DTSTART", "DTEND", "DUE") if name in found]
    lines = [found.get("SUMMARY"), " – ".join(times), *map(found.get, ("LOCATION", "ORGANIZER", "URL"))]
    words = "\n".join(line for line in lines if line) + "\n\n" + found.get("DESCRIPTION", "")
    return re.sub(r"\\(.)", lambda pair: "\n" if pair[1] in "nN" else pair[1], words)


def _moment(value: str) -> str:
    return _CALENDAR_TIME.sub(
        lambda time: (
            f"{time[1]}-{time[2]}-{time[3]}" + (f" {time[4]}:{time[5]}{time[6] and ' UTC'}" if time[4] else "")
        ),
        value,
    )
