"""The text of a held mail, for its page: read from hostile bytes by a process that may die.

The standard library's parser meets its limits on hostile mail (RecursionError at 1,000 nested parts, minutes on long
address lists under the newer policies), so a child of our own reads the mail: 2 s of CPU, 512 MB, 5 s in all. It
begins with the old `compat32` policy, which leaves headers alone until asked, and has bounds of its own. When it
fails the page shows the raw headers instead.

This file is both sides: imported, it offers `preview()`; run as a program, it is the child. The child uses the
standard library alone, so that it starts in a few hundredths of a second.
"""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from email.errors import HeaderParseError
from email.header import decode_header
from email.message import Message as Mail
from email.parser import BytesParser
from email.policy import compat32
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

INPUT_BYTES = 1 << 20  # more is not looked at
TEXT_CHARACTERS = 1 << 18
_HEADER_BLOCK_BYTES = 1 << 18
_HEADER_CHARACTERS = 1 << 14
_RAW_HEADER_CHARACTERS = 1 << 14
_DEPTH = 20
_PARTS = 500
_ATTACHMENTS = 50
_CPU_SECONDS = 2
_MEMORY_BYTES = 512 << 20
_WALL_SECONDS = 5
_SHOWN = ("Reply-To", "To", "Cc", "Date")  # sender and subject stand above, from the metadata


@dataclass(frozen=True, slots=True)
class Attachment:
    """A part that is not shown, as it calls itself."""

    name: str
    type: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Preview:
    """What a mail says, cleaned; still to be escaped where it is shown."""

    headers: tuple[tuple[str, str], ...]
    text: str
    attachments: tuple[Attachment, ...]
    cut: bool  # there is more than this
    failed: bool  # the text could not be read; `text` holds the raw headers


def preview(chunks: Iterable[bytes]) -> Preview:
    """Read the beginning of a mail. Raises what ``chunks`` raises; whatever the mail does, it answers within 5 s."""
    data, whole = _beginning(chunks)
    try:
        child = subprocess.run(
            [_python(), "-I", "-S", __file__],
            input=data,
            # Not this process's environment, which Nginx can change (UWSGI_SETENV): LD_PRELOAD would run code.
            env={},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_WALL_SECONDS,
            check=True,
        )
        found: dict[str, Any] = json.loads(child.stdout)
    except (subprocess.SubprocessError, OSError, ValueError, RecursionError):
        # Death by limit is what the child is for; nothing was lost and the page says so.
        return Preview((), _lines(_raw_headers(data)), (), cut=True, failed=True)
    from portal.model.text import shown

    return Preview(
        headers=tuple((name, shown(value, 1000)) for name, value in found["headers"]),
        text=_lines(found["text"]),
        attachments=tuple(Attachment(shown(n, 120), shown(t, 80), s) for n, t, s in found["attachments"]),
        cut=found["cut"] or not whole,
        failed=False,
    )


def _beginning(chunks: Iterable[bytes]) -> tuple[bytes, bool]:
    data = bytearray()
    for chunk in chunks:
        data += chunk
        if len(data) > INPUT_BYTES:
            return bytes(data[:INPUT_BYTES]), False
    return bytes(data), True


def _python() -> str:
    """The interpreter: under uWSGI `sys.executable` may be the server itself."""
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for folder in (sys.prefix, sys.base_prefix):
        path = Path(folder) / "bin" / name
        if path.exists():
            return str(path)
    return sys.executable


def _raw_headers(data: bytes) -> str:
    return data[: min(_header_end(data), _RAW_HEADER_CHARACTERS)].decode("ascii", "replace")


def _header_end(data: bytes) -> int:
    return min((at for at in (data.find(b"\r\n\r\n"), data.find(b"\n\n")) if at >= 0), default=len(data))


def _lines(text: str) -> str:
    """Text of several lines, each made harmless, without stretches of empty ones."""
    from portal.model.text import shown

    lines: list[str] = []
    for line in text.splitlines():
        clean = shown(line, 10_000)
        if clean or (lines and lines[-1]):
            lines.append(clean)
    return "\n".join(lines).strip("\n")


# ---- the child


def _child() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_SECONDS, _CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    data = sys.stdin.buffer.read(INPUT_BYTES)
    sys.stdout.write(json.dumps(_parsed(data)))


def _parsed(data: bytes) -> dict[str, Any]:
    if _header_end(data) > _HEADER_BLOCK_BYTES:
        raise ValueError("the header block is too large")
    mail = BytesParser(policy=compat32).parsebytes(data)
    reader = _Reader()
    reader.read(mail)
    return {
        "headers": [(name, _decoded(str(mail[name]))) for name in _SHOWN if mail[name] is not None],
        "text": reader.text(),
        "attachments": reader.attachments,
        "cut": reader.cut,
    }


class _Reader:
    """Walks the parts and keeps what can be shown."""

    def __init__(self) -> None:
        self._plain: list[str] = []
        self._html: list[str] = []
        self.attachments: list[tuple[str, str, int]] = []
        self.cut = False
        self._parts = 0

    def text(self) -> str:
        """The plain text; the HTML's, reduced, when there is none worth showing."""
        plain = "\n\n".join(self._plain)
        text = plain if plain.strip() else "\n\n".join(_html_text(html) for html in self._html)
        if len(text) > TEXT_CHARACTERS:
            self.cut = True
        return text[:TEXT_CHARACTERS]

    def read(self, part: Mail, depth: int = 0) -> None:
        self._parts += 1
        if depth > _DEPTH or self._parts > _PARTS:
            self.cut = True
            return
        if part.is_multipart():
            for inner in part.get_payload():
                self.read(inner, depth + 1)  # type: ignore[arg-type]
            return
        kind, name = part.get_content_type(), part.get_filename()
        content = part.get_payload(decode=True)
        content = content if isinstance(content, bytes) else b""
        if kind in ("text/plain", "text/html") and part.get_content_disposition() != "attachment" and not name:
            if len(content) > TEXT_CHARACTERS:
                self.cut = True
            text = _unicode(content[:TEXT_CHARACTERS], part.get_content_charset())
            (self._plain if kind == "text/plain" else self._html).append(text)
        elif len(self.attachments) < _ATTACHMENTS:
            self.attachments.append((_decoded(name or ""), kind, len(content)))
        else:
            self.cut = True


def _unicode(content: bytes, charset: str | None) -> str:
    try:
        return content.decode(charset or "utf-8", "replace")
    except (LookupError, ValueError):  # no such charset, or not one for text
        return content.decode("latin-1")


def _decoded(value: str) -> str:
    """A header with its encoded words (RFC 2047) decoded; as it stands when they are broken."""
    value = value[:_HEADER_CHARACTERS]
    try:
        pieces = decode_header(value)
    except (HeaderParseError, ValueError):
        return value.encode("utf-8", "replace").decode()
    words = [
        _unicode(piece, None if charset == "unknown-8bit" else charset) if isinstance(piece, bytes) else piece
        for piece, charset in pieces
    ]
    return "".join(words).encode("utf-8", "replace").decode()


_HIDDEN_TAGS = frozenset({"script", "style", "title", "template"})
# fmt: off
_LINE_TAGS = frozenset({
    "p", "div", "br", "tr", "li", "ul", "ol", "table", "blockquote", "hr", "pre", "section", "article", "header",
    "footer", "h1", "h2", "h3", "h4", "h5", "h6", "dt", "dd",
})
# fmt: on


def _html_text(html: str) -> str:
    """HTML reduced to its text."""
    reducer = _Reducer()
    reducer.feed(html)
    reducer.close()
    return "".join(reducer.pieces)


class _Reducer(HTMLParser):
    """Keeps the text, and the host of each link behind it: a forger's link shows one and leads to another."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.pieces: list[str] = []
        self._host = ""  # of the link that is open
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _HIDDEN_TAGS:
            self._hidden += 1
        elif tag in _LINE_TAGS:
            self.pieces.append("\n")
        elif tag in ("td", "th"):
            self.pieces.append(" ")
        elif tag == "a":
            self._end_link()  # a link within a link ends the outer one
            # Of two attributes of one name browsers take the first.
            self._host = _host(next((value for name, value in attrs if name == "href"), "") or "")

    def handle_endtag(self, tag: str) -> None:
        if tag in _HIDDEN_TAGS:
            self._hidden = max(0, self._hidden - 1)
        elif tag in _LINE_TAGS:
            self.pieces.append("\n")
        elif tag == "a":
            self._end_link()

    def close(self) -> None:
        super().close()
        self._end_link()  # one that is never closed leads there all the same

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            # Line ends of the source mean nothing in HTML.
            self.pieces.append(data.replace("\r", " ").replace("\n", " "))

    def _end_link(self) -> None:
        self.pieces.append(f" [{self._host}]" if self._host else "")
        self._host = ""


# As browsers read it (WHATWG URL, 4.4), not RFC 3986: behind these schemes any number of slashes will do, of either
# kind, or none.
_AUTHORITY = re.compile(r"(?:(?:https?|ftp|wss?):[/\\]*|(?:[a-z][a-z0-9+.-]*:)?[/\\]{2,})([^/\\?#]*)", re.I | re.A)
_AROUND_A_URL = "".join(map(chr, range(0x21)))


def _host(href: str) -> str:
    """Where a link leads, "" when to no host: what stands before an @ is a name for logging in, not a host."""
    found = _AUTHORITY.match(re.sub(r"[\t\r\n]", "", href.strip(_AROUND_A_URL)))
    return found[1].rpartition("@")[2] if found else ""


if __name__ == "__main__":
    _child()
