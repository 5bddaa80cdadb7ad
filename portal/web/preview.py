"""The text of a held message, for its page. A child process extracts it, since the message may be hostile.

The standard library's parser fails on some hostile messages (RecursionError at 1,000 nested parts, minutes on long
address lists under the newer policies). The child process is therefore limited to 2 s of CPU, 512 MB and 5 s in all. It
uses the old `compat32` policy, which parses a header only on access, and has limits of its own. If it fails, the page
shows the raw headers instead.

This file is both parent and child: the portal imports `preview()`, which runs the same file as a program. The child
imports the standard library and `portal.model.encoded_words` alone, so that it starts in a tenth of a second.
"""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from email.message import Message as Mail
from email.parser import BytesParser
from email.policy import compat32
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # The folder comes last, so that nothing in it hides a standard module.
    sys.path.append(str(Path(__file__).resolve().parents[2]))

from portal.model.charsets import decode
from portal.model.encoded_words import decode_words

INPUT_BYTES = 1 << 20  # the rest of the message is not read
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
_FOLD = re.compile(r"\r?\n")
_SHOWN = ("Reply-To", "To", "Cc", "Date")  # the page shows sender and subject from the metadata


@dataclass(frozen=True, slots=True)
class Attachment:
    """A part that is not shown. Name and type are the sender's claims."""

    name: str
    type: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Preview:
    """The shown parts of a message, sanitized for display but not escaped for HTML."""

    headers: tuple[tuple[str, str], ...]
    text: str
    attachments: tuple[Attachment, ...]
    cut: bool  # the message has more than is shown
    failed: bool  # the message could not be parsed; `text` holds the raw headers


def preview(chunks: Iterable[bytes]) -> Preview:
    """Return the preview of a message, within 5 s for every message. Raises the errors of ``chunks``."""
    data, complete = _beginning(chunks)
    try:
        child = subprocess.run(
            [_python(), "-I", __file__],
            input=data,
            # Not the environment of this process: Nginx can change it (UWSGI_SETENV), and LD_PRELOAD would run code.
            env={},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_WALL_SECONDS,
            check=True,
        )
        parsed: dict[str, Any] = json.loads(child.stdout)
    except (subprocess.SubprocessError, OSError, ValueError, RecursionError):
        # Expected for hostile messages: the child exceeded a limit. Nothing is lost, and the page shows what happened.
        return Preview((), _lines(_raw_headers(data)), (), cut=True, failed=True)
    from portal.model.text import shown

    return Preview(
        headers=tuple((name, shown(value, 1000)) for name, value in parsed["headers"]),
        text=_lines(parsed["text"]),
        attachments=tuple(Attachment(shown(n, 120), shown(t, 80), s) for n, t, s in parsed["attachments"]),
        cut=parsed["cut"] or not complete,
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
    """Return the path of the interpreter. Under uWSGI, `sys.executable` may be the server itself."""
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
    """Return the text with each line sanitized and runs of empty lines reduced to one."""
    from portal.model.text import shown

    lines: list[str] = []
    for line in text.splitlines():
        clean = shown(line, 10_000)
        if clean or (lines and lines[-1]):
            lines.append(clean)
    return "\n".join(lines).strip("\n")


# ---- the child process


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
    """Walks the parts of a message and collects texts and attachments."""

    def __init__(self) -> None:
        self._plain: list[str] = []
        self._html: list[str] = []
        self.attachments: list[tuple[str, str, int]] = []
        self.cut = False
        self._parts = 0

    def text(self) -> str:
        """Return the plain text or, if it is empty, the text of the HTML parts."""
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
    return decode(content, charset or "")


def _decoded(value: str) -> str:
    """Return a header field unfolded, with its encoded words (RFC 2047) decoded."""
    return decode_words(_FOLD.sub("", value[:_HEADER_CHARACTERS])).encode("utf-8", "replace").decode()


_HIDDEN_TAGS = frozenset({"script", "style", "title", "template"})
# fmt: off
_LINE_TAGS = frozenset({
    "p", "div", "br", "tr", "li", "ul", "ol", "table", "blockquote", "hr", "pre", "section", "article", "header",
    "footer", "h1", "h2", "h3", "h4", "h5", "h6", "dt", "dd",
})
# fmt: on


def _html_text(html: str) -> str:
    """Return the text of an HTML part."""
    reducer = _Reducer()
    reducer.feed(html)
    reducer.close()
    return "".join(reducer.pieces)


class _Reducer(HTMLParser):
    """Collects the text. Adds the host after each link: a forged link shows one host and leads to another."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.pieces: list[str] = []
        self._host = ""  # of the current link
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _HIDDEN_TAGS:
            self._hidden += 1
        elif tag in _LINE_TAGS:
            self.pieces.append("\n")
        elif tag in ("td", "th"):
            self.pieces.append(" ")
        elif tag == "a":
            self._end_link()  # a nested link ends the outer one
            # Browsers use the first of several attributes with the same name.
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
        self._end_link()  # a link without an end tag works in browsers as well

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            # Line breaks in the source are white space in HTML.
            self.pieces.append(data.replace("\r", " ").replace("\n", " "))

    def _end_link(self) -> None:
        self.pieces.append(f" [{self._host}]" if self._host else "")
        self._host = ""


# As in browsers (WHATWG URL, 4.4), not RFC 3986: these schemes may be followed by any number of slashes or
# backslashes, or none.
_AUTHORITY = re.compile(r"(?:(?:https?|ftp|wss?):[/\\]*|(?:[a-z][a-z0-9+.-]*:)?[/\\]{2,})([^/\\?#]*)", re.I | re.A)
_AROUND_A_URL = "".join(map(chr, range(0x21)))


def _host(href: str) -> str:
    """Return the host of a link, "" if it has none. The part before an @ is a user name, not a host."""
    match = _AUTHORITY.match(re.sub(r"[\t\r\n]", "", href.strip(_AROUND_A_URL)))
    return match[1].rpartition("@")[2] if match else ""


if __name__ == "__main__":
    _child()
