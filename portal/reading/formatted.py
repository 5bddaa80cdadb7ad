"""The HTML of a message as its sender formatted it, cleaned by nh3, with its own pictures and without any others.

This is the first of three layers: the answer's Content-Security-Policy and the frame's sandbox protect the reader even
if hostile HTML comes through here, or takes over the process.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import unquote

import nh3

from portal.model.domains import to_ascii
from portal.reading.mime import PICTURE_BYTES, Parser, Part
from portal.reading.words import markup_of

_USED_CHARACTERS = 8 << 20  # of all pictures as they are in the page, where one may be many times


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_TAGS = _names(
    "a abbr address article aside b bdi bdo big blockquote br caption center cite code col colgroup dd del dfn div dl "
    "dt em figcaption figure font footer h1 h2 h3 h4 h5 h6 header hr i img ins kbd li main nav ol p pre q s samp "
    "section small span strike strong sub sup table tbody td tfoot th thead tr tt u ul var"
)
_WITH_CONTENT = _names(  # of these the content is no text to read either
    "audio canvas embed iframe math noembed noframes noscript object plaintext script style svg template title video "
    "xmp"
)
_CELL = {"bgcolor", "colspan", "height", "nowrap", "rowspan", "width"}
_ATTRIBUTES = {
    "*": {"align", "dir", "lang", "style", "valign"},
    "a": {"href"},
    "col": {"span", "width"},
    "font": {"color", "face", "size"},
    "img": {"alt", "height", "src", "width"},
    "ol": {"start", "type"},
    "table": {"bgcolor", "border", "cellpadding", "cellspacing", "width"},
    "td": _CELL,
    "th": _CELL,
    "tr": {"bgcolor"},
}
# Nothing that moves a box over another one, and nothing that may load something.
_STYLES = _names(
    "background background-color border border-bottom border-collapse border-color border-left border-radius "
    "border-right border-spacing border-style border-top border-width color direction display font-family font-size "
    "font-style font-weight height letter-spacing line-height margin margin-bottom margin-left margin-right margin-top "
    "max-width padding padding-bottom padding-left padding-right padding-top text-align text-decoration text-transform "
    "vertical-align white-space width"
)
# Values without backslashes, comments and functions other than those of colours.
_DECLARATION = re.compile(
    r"\s*+([a-z-]++)\s*+:((?:(?:rgb|hsl)a?\([\d\s.,%-]*+\)|[\w\s.,%#+-]|\"[\w\s.,-]*+\"|'[\w\s.,-]*+')++)",
    re.IGNORECASE,
)
_DISPLAYS = re.compile(r"block|inline|inline-block|none|table(?:-[a-z-]+)?")
_KEYWORD = re.compile(r"[a-z]+(?:-[a-z]+)?")
# Of fonts. Sizes relative to those of the parent multiply.
_SIZE = re.compile(r"([0-9]{1,4}(?:\.[0-9]{1,20})?|\.[0-9]{1,20})(px|pt|em|rem|%)|0|[a-z]+(?:-[a-z]+)?")
_LARGEST = {"px": 72, "pt": 54, "em": 1.5, "rem": 3, "%": 150}
# Of a background picture the colour below it is kept. Nothing outranks the page's own styles.
_LEFT_OUT = re.compile(r"url\([^()\\;]*+\)|!\s*+important", re.IGNORECASE)
_PICTURES = {b"\x89PNG\r\n\x1a\n": "png", b"\xff\xd8\xff": "jpeg", b"GIF87a": "gif", b"GIF89a": "gif"}
_REMOTE = re.compile(r"(?:https?:|//)", re.IGNORECASE)
_URL = re.compile(r"https?://([\w.-]+)(?::[0-9]{1,5})?(?=[/?#]|\Z)", re.IGNORECASE)
_HOST = re.compile(r"[a-z0-9.-]+")
_IGNORED_IN_URLS = re.compile(r"[\t\r\n]")  # by browsers (WHATWG URL, 4.4)
_AROUND_A_URL = "".join(map(chr, range(33)))
# Markup as nh3 writes it: all attributes are quoted, and quotes and angle brackets in them are escaped.
_LINK = re.compile(r'<a((?: [a-z]+="[^"]*")*)>|</a>')
_HREF = re.compile(r' href="([^"]*)"')
_IMG = re.compile(r'<img((?: [a-z]+="[^"]*")*)>')
_VALUE = re.compile(r' ([a-z]+)="([^"]*)"')
_LENGTH = re.compile(r"([0-9]{1,4})(?:px)?|[0-9]{1,3}%")
_TINY = 4  # pixels: a smaller picture counts who reads the message, or is a space
_BOX_HEIGHT = 120  # pixels at most of the box in place of a picture
_NARROW = 100  # pixels: a narrower box has no room for the name of a host


def formatted(receive: Callable[[int], bytes], seconds: Callable[[], float], until: float) -> dict[str, Any]:
    """Return the cleaned HTML of a message, "" if it has none, and how many of its pictures are on the Internet.

    ``receive`` returns the next octets; ``seconds`` the time that was spent, ``until``: the time to stop reading parts.
    nh3 needs quadratic time for some documents: then the limit of processor time ends the process.
    """
    parser = Parser(receive, lambda: seconds() > until, PICTURE_BYTES)
    documents = documents_of(parser.root)
    cleaner = _Cleaner(dict(_pictures(parser.root)))
    return {
        "html": "<hr>".join(cleaner.clean(markup_of(each)) for each in documents),
        "remote": cleaner.remote,
        "cut": parser.is_cut or any(each.is_cut for each in documents),
    }


def documents_of(part: Part) -> list[Part]:
    """Return the HTML texts that mail programs show together: the last alternative, and none of attached messages."""
    if part.is_message:
        return []
    if part.parts:
        found = [inner for each in part.parts if (inner := documents_of(each))]
        return [each for inner in (found[-1:] if part.type == "multipart/alternative" else found) for each in inner]
    return [part] if part.is_shown and part.type in ("text/html", "application/xhtml+xml") and part.octets else []


def _pictures(part: Part) -> Iterator[tuple[str, str]]:
    """Yield the ids and `data:` URLs of pictures. Their octets say what they are, not their headers; never SVG."""
    for each in part.parts if not part.is_message else ():
        yield from _pictures(each)
    octets = part.octets
    kind = next((kind for magic, kind in _PICTURES.items() if octets.startswith(magic)), "")
    if octets[:4] == b"RIFF" and octets[8:12] == b"WEBP":
        kind = "webp"
    name = part.fields.text("content-id").strip("<>")
    if kind and name and not part.is_cut:
        yield name, f"data:image/{kind};base64,{base64.b64encode(octets).decode()}"


class _Cleaner:
    def __init__(self, pictures: dict[str, str]) -> None:
        self.remote = 0
        self._pictures = pictures
        self._left = _USED_CHARACTERS

    def clean(self, markup: str) -> str:
        """Return harmless HTML, in which each link is followed by the host that it leads to."""
        cleaned = nh3.clean(
            markup,
            tags=set(_TAGS),
            clean_content_tags=set(_WITH_CONTENT),
            attributes=_ATTRIBUTES,
            attribute_filter=self._attribute,
            url_schemes={"http", "https", "cid"},
            filter_style_properties=set(_STYLES),
            link_rel="noopener noreferrer nofollow",
        )
        return _with_hosts(_IMG.sub(_shown, cleaned))

    def _attribute(self, tag: str, name: str, value: str) -> str | None:
        if name == "src":
            return self._picture(value)
        if name == "href":
            href = _IGNORED_IN_URLS.sub("", value.strip(_AROUND_A_URL))
            return href if _host_of(href) else None
        return _style(value) if name == "style" else value

    def _picture(self, source: str) -> str | None:
        """Return the `data:` URL of a picture of the message, and `cid:` with the host of one from the Internet.

        Browsers load nothing from a `cid:`, so that a host in an attribute that `_shown` did not see loads nothing.
        """
        if source[:4].lower() == "cid:":
            data = self._pictures.get(unquote(source[4:])) or ""
            self._left -= len(data)
            return data if data and self._left >= 0 else None
        url = _IGNORED_IN_URLS.sub("", source.strip(_AROUND_A_URL))
        if not _REMOTE.match(url):
            return None
        self.remote += 1
        host = _host_of(f"https:{url}" if url.startswith("//") else url)
        return f"cid:{host}" if host else None


def _style(value: str) -> str | None:
    """Return the declarations of an inline style that load nothing and move nothing out of its place."""
    kept = []
    for declaration in _LEFT_OUT.sub("", value).split(";"):
        match = _DECLARATION.fullmatch(declaration)
        if match and not _moves(match[1].lower(), match[2].strip().lower()):
            kept.append(match[0].strip())
    return "; ".join(kept) or None


def _moves(name: str, value: str) -> bool:
    """Return whether a declaration may move text over other text, or a link away from the host that follows it."""
    match name:
        case "display":
            return _DISPLAYS.fullmatch(value) is None
        case "vertical-align":
            return _KEYWORD.fullmatch(value) is None
        case "font-size":
            size = _SIZE.fullmatch(value)
            return size is None or (size[1] is not None and float(size[1]) > _LARGEST[size[2]])
        case _:
            return name.startswith(("margin", "letter-spacing")) and "-" in value


def _host_of(url: str) -> str:
    """Return the host of a web address as browsers look it up, "" if that is not certain: there is no link then."""
    match = _URL.match(url)
    host = to_ascii(match[1]) if match else ""
    return host if _HOST.fullmatch(host) else ""


def _shown(picture: re.Match[str]) -> str:
    """Return an `<img>` with a source as it is, and in place of others, which would look broken, a box with their text
    and the host that they would come from.

    Nothing is left of the tiny ones. The box is as wide as the picture would be; only numbers get into its style. A
    narrow one has its host only for screen readers and pointers.
    """
    values = dict(_VALUE.findall(picture[1]))
    source = values.get("src", "")
    if source.startswith("data:"):
        return picture[0]
    host = source.removeprefix("cid:")
    lengths = {name: _LENGTH.fullmatch(values.get(name, "").strip()) for name in ("width", "height")}
    pixels = [int(length[1]) for length in lengths.values() if length and length[1]]
    if pixels and min(pixels) < _TINY:
        return ""
    style = ""
    if width := lengths["width"]:
        style = f"width:{width[1]}px" if width[1] else f"width:{width[0]}"
    if (height := lengths["height"]) and height[1]:
        style += f";min-height:{min(int(height[1]), _BOX_HEIGHT)}px"
    text = html.escape(html.unescape(values.get("alt", "")).strip())
    if not text and not style:
        return ""
    name = ", ".join(filter(None, (text, host)))
    named = f'role="img" aria-label="{name}"' if name else 'aria-hidden="true"'
    if host:
        named += f' title="{host}"'
        is_narrow = width and width[1] and int(width[1]) < _NARROW
        text += "" if is_narrow else f' <span class="origin">{host}</span>'
    return f'<span class="picture" {named} style="{style.lstrip(";")}">{text.strip()}</span>'


def _with_hosts(cleaned: str) -> str:
    """Insert the host after each link, and put both into a box that nothing around it can pull apart."""
    hosts: list[str] = []

    def boxed(tag: re.Match[str]) -> str:
        if tag[1] is not None:
            href = _HREF.search(tag[1])
            hosts.append(_host_of(html.unescape(href[1])) if href else "")
            return f'<span class="link">{tag[0]}' if hosts[-1] else tag[0]
        host = hosts.pop() if hosts else ""
        return f'{tag[0]}<span class="host"> [{host}]</span></span>' if host else tag[0]

    return _LINK.sub(boxed, cleaned)
