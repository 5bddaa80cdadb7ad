"""HTML reduced to the text that a mail program shows, with alternative texts of pictures and the targets of links.

A tokenizer by WHATWG HTML, 13.2.5, and the parts of its tree construction that decide what is visible. Each octet is
looked at a bounded number of times: parsers that build a tree need minutes for 50,000 nested elements, thousands of
attributes or unclosed formatting elements (docs/decisions/reader.md).

Hidden text is left out. In doubt text is shown: style sheets are understood only as far as `Hiding` says.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from urllib.parse import unquote

from portal.reading.styles import Hiding, Style

_WS = "\t\n\f\r "
# A quoted value that is not ended goes to the end of the text, and then the tag does not match.
_ATTRIBUTE = (
    rf"[{_WS}/]*+(=[^{_WS}/>=]*+|[^{_WS}/>=]++)"
    rf"(?:[{_WS}]*+=[{_WS}]*+(?:\"([^\"]*+)(?:\"|\Z)|'([^']*+)(?:'|\Z)|([^{_WS}\"'>][^{_WS}>]*+|(?=>))))?+"
)
_ATTRIBUTES = re.compile(_ATTRIBUTE)
_TAG = re.compile(
    rf"<(/?)([a-zA-Z][^{_WS}/>]*+)((?:{_ATTRIBUTE.replace('(=', '(?:=').replace('([^', '(?:[^')})*+)[{_WS}/]*+>"
)
_MARKUP = re.compile(r"<(?=[a-zA-Z/!?])")
_COMMENT_END = re.compile(r"--!?>")
_SPACES = re.compile(rf"[{_WS}]+")
_LONG_NUMBER = re.compile(r"&#0*([0-9]{8,}|[xX]0*[0-9a-fA-F]{7,});?")


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_USED = _names("style hidden class id href action formaction alt type value size color")
_VOID = _names("area base br col embed hr img input link meta param source track wbr")
_RAW = _names("script style xmp iframe noembed noframes title textarea plaintext")
_RAW_SHOWN = _names("xmp textarea plaintext")
_NEVER_SHOWN = _names("template datalist")
_LINES = _names(
    "p div br tr li ul ol dl dt dd table caption blockquote hr pre section article header footer main nav aside "
    "address center details summary fieldset legend form figure figcaption h1 h2 h3 h4 h5 h6 xmp option"
)
_CELLS = _names("td th")
_CLOSE_P = _LINES - _names("br tr caption legend option") | _names("plaintext menu dir")
_HEADINGS = _names("h1 h2 h3 h4 h5 h6")
# Elements that limit which open elements a tag can close, and what is in a table but not in a cell.
_SCOPE = _names("table td th caption button object marquee applet template html")
_TABLE = _names("table tbody thead tfoot tr")
_IN_TABLE = _TABLE | _names("td th caption colgroup col style script template")
# What a start tag closes, up to the nearest element of the second set.
_CLOSES: dict[str, tuple[frozenset[str], frozenset[str]]] = {
    "li": (frozenset(("li",)), frozenset(("ul", "ol", "menu")) | _SCOPE),
    "dt": (frozenset(("dt", "dd")), frozenset(("dl",)) | _SCOPE),
    "td": (_CELLS, frozenset(("table",))),
    "tr": (frozenset(("tr", "caption")), frozenset(("table",))),
    "tbody": (frozenset(("tbody", "thead", "tfoot", "caption")), frozenset(("table",))),
    "option": (frozenset(("option",)), frozenset(("select",)) | _SCOPE),
    "a": (frozenset(("a",)), _SCOPE),
    "button": (frozenset(("button",)), _SCOPE - {"button"}),
    "nobr": (frozenset(("nobr",)), _SCOPE),
}
_CLOSES |= {"dd": _CLOSES["dt"], "th": _CLOSES["td"]} | dict.fromkeys(("thead", "tfoot"), _CLOSES["tbody"])
_PARAGRAPH = (frozenset(("p",)), _SCOPE)
_NOWHERE = [0]
_DEPTH = 512  # as in browsers; deeper elements are read as siblings


@dataclass(frozen=True, slots=True)
class _Element:
    name: str
    style: Style
    target: str = ""  # shown when the element ends


def text_of(markup: str, is_late: Callable[[], bool] = lambda: False) -> str:
    """Return the text of an HTML document, in lines as on a screen. Reading ends when ``is_late`` returns True."""
    reduction = _Reduction(is_late)
    reduction.read(markup)
    return "".join(reduction.pieces)


class _Reduction:
    def __init__(self, is_late: Callable[[], bool]) -> None:
        self._is_late = is_late
        self.pieces: list[str] = []
        self._open = [_Element("", Style())]
        self._places: dict[str, list[int]] = {}  # of the open elements with a name, in the list above
        self._hiding = Hiding()
        self._base = ""

    def read(self, markup: str) -> None:
        self._hiding = Hiding("\n".join(_style_sheets(markup)), markup.lower())
        at, end = 0, len(markup)
        while at < end and not self._is_late():
            found = _MARKUP.search(markup, at)
            if found is None or found.start() > at:
                stop = found.start() if found else end
                self._text(markup[at:stop])
                at = stop
                continue
            at = self._markup(markup, at)
        self._pop_to(1)

    def _markup(self, markup: str, at: int) -> int:
        """Read a tag or comment. Return where the text goes on."""
        tag = _TAG.match(markup, at)
        if tag:
            name = tag[2].lower()
            if tag[1]:
                self._end(name)
                return tag.end()
            self._start(name, self._attributes(tag[3]))
            return self._raw(markup, tag.end(), name) if name in _RAW else tag.end()
        following = markup[at + 1 : at + 3]
        if following[:1].isalpha() or (following[1:].isalpha() and following[0] == "/"):
            return len(markup)  # a tag that is not ended is not shown, with all that follows
        if following == "!-" and markup.startswith("<!--", at):
            if markup.startswith((">", "->"), at + 4):
                return markup.index(">", at) + 1
            comment = _COMMENT_END.search(markup, at + 4)
            return comment.end() if comment else len(markup)
        if following == "/":  # the last character
            self._text("</")
            return len(markup)
        bogus = markup.find(">", at)  # <!DOCTYPE>, <![CDATA[>, <?xml>, </ >: comments that end at the first bracket
        return bogus + 1 if bogus >= 0 else len(markup)

    def _raw(self, markup: str, at: int, name: str) -> int:
        """Read an element whose content is text. Return where its end tag begins."""
        ended = None if name == "plaintext" else re.compile(rf"</{name}(?=[{_WS}/>])", re.IGNORECASE).search(markup, at)
        stop = ended.start() if ended else len(markup)
        if name in _RAW_SHOWN:
            self._text(markup[at:stop], pre=True)
        return stop

    @staticmethod
    def _attributes(text: str) -> dict[str, str]:
        """Return the attributes that matter, the first of each name."""
        found: dict[str, str] = {}
        for name, *values in _ATTRIBUTES.findall(text) if text else ():
            if (lower := name.lower()) in _USED and lower not in found:
                found[lower] = _unescaped("".join(values))
        return found

    # ---- elements

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        if name == "image":
            name = "img"
        if name == "base":
            self._base = self._base or attributes.get("href", "")
            return
        self._close_implied(name)
        if name in _LINES:
            self._put("\n")
        elif name in _CELLS:
            self._put(" ")
        style = self._parent_style(name).inherited(self._hiding.of(name, attributes))
        if name in _NEVER_SHOWN:
            style = style.hidden()
        target = ""
        if name in ("a", "area"):
            target = target_of(attributes.get("href", ""), self._base)
        elif name == "form":
            target = target_of(attributes.get("action", ""), self._base)
        elif "formaction" in attributes:
            target = target_of(attributes["formaction"], self._base)
        if style.is_visible:
            self._put(self._replacement(name, attributes))
        if name in _VOID:
            self._put(f" [{target}]" if target and style.is_visible else "")
        elif len(self._open) < _DEPTH:
            self._places.setdefault(name, []).append(len(self._open))
            self._open.append(_Element(name, style, target))

    @staticmethod
    def _replacement(name: str, attributes: dict[str, str]) -> str:
        """Return the text that an element without text shows."""
        if name in ("img", "area"):
            return _SPACES.sub(" ", attributes.get("alt", ""))
        if name == "input" and attributes.get("type", "").lower() in ("submit", "button", "reset", "image", "", "text"):
            return _SPACES.sub(" ", f" {attributes.get('value', attributes.get('alt', ''))} ")
        return ""

    def _close_implied(self, name: str) -> None:
        if name in _CLOSE_P:
            self._close(*_PARAGRAPH)
        if name in _HEADINGS and self._open[-1].name in _HEADINGS:
            self._pop_to(len(self._open) - 1)
        if name in _CLOSES:
            self._close(*_CLOSES[name])

    def _close(self, names: frozenset[str], scope: frozenset[str]) -> None:
        place = self._last(names)
        if place and place > self._last(scope):
            self._pop_to(place)

    def _last(self, names: frozenset[str]) -> int:
        """Return the place of the innermost open element with one of these names, 0 if there is none."""
        last = 0
        for name in names & self._places.keys():
            last = max(last, self._places[name][-1])
        return last

    def _end(self, name: str) -> None:
        place = self._last(_HEADINGS) if name in _HEADINGS else self._places.get(name, _NOWHERE)[-1]
        if place and name not in ("body", "html"):
            self._pop_to(place)
        if name in _LINES:
            self._put("\n")

    def _pop_to(self, place: int) -> None:
        while len(self._open) > place:
            element = self._open.pop()
            places = self._places[element.name]
            places.pop()
            if not places:
                del self._places[element.name]
            if element.target and element.style.is_visible:
                self._put(f" [{element.target}]")

    def _parent_style(self, name: str) -> Style:
        """Return the style that an element or text at this place inherits.

        In a table but outside of its cells, browsers move both in front of the table.
        """
        if self._open[-1].name in _TABLE and name not in _IN_TABLE and (tables := self._places.get("table")):
            return self._open[tables[-1] - 1].style
        return self._open[-1].style

    # ---- text

    def _text(self, text: str, *, pre: bool = False) -> None:
        style = self._parent_style("")
        if not style.is_visible:
            return
        if not (pre or style.is_pre or "pre" in self._places):
            text = _SPACES.sub(" ", text)
        self._put(_unescaped(text))

    def _put(self, text: str) -> None:
        if text:
            self.pieces.append(text)


def _style_sheets(markup: str) -> Iterator[str]:
    lower, at = markup.lower(), 0
    while (at := lower.find("<style", at)) >= 0 and (begin := lower.find(">", at)) >= 0:
        at = lower.find("</style", begin)
        yield markup[begin + 1 : at if at >= 0 else len(markup)]
        if at < 0:
            return


def _unescaped(text: str) -> str:
    if "&" not in text:
        return text
    return html.unescape(_LONG_NUMBER.sub("\ufffd", text))  # Python refuses numbers of more than 4,300 digits


# As in browsers (WHATWG URL, 4.4), not RFC 3986: these schemes may be followed by any number of slashes or
# backslashes, or none.
_AUTHORITY = re.compile(r"(?:(?:https?|ftp|wss?):[/\\]*|(?:[a-z][a-z0-9+.-]*:)?[/\\]{2,})([^/\\?#]*)", re.I | re.A)
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:", re.I | re.A)
_AROUND_A_URL = "".join(map(chr, range(0x21)))


def target_of(href: str, base: str = "") -> str:
    """Return where a link leads: its host, the address of `mailto:`, the scheme of others, "" if nowhere."""
    href = re.sub(r"[\t\r\n]", "", href.strip(_AROUND_A_URL))
    if match := _AUTHORITY.match(href):
        return unquote(match[1].rpartition("@")[2])  # the part before an @ is a user name
    if scheme := _SCHEME.match(href):
        is_mail = scheme[0].lower() == "mailto:"
        return href[len(scheme[0]) :].partition("?")[0] if is_mail else scheme[0].lower()
    return target_of(base) if base and href else ""
