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

from portal.reading.styles import Hiding, Own, Style

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


_USED = _names("style hidden class id href xlink:href action formaction alt type value placeholder size color")
# Elements without text in them; any text ends a colgroup.
_VOID = _names(
    "area base basefont bgsound br col embed frame hr img input keygen link meta param source track wbr colgroup"
)
_RAW = _names("script style xmp iframe noembed noframes title textarea plaintext")
_RAW_SHOWN = _names("xmp textarea plaintext")
_NEVER_SHOWN = _names("template datalist")
# Start tags that browsers ignore, or that add to an element that exists in any case: those hide nothing.
_IGNORED = _names("html head body frameset")
# Inside these, elements begin and end by other rules, and so do elements whose content is text elsewhere.
_UNSURE = _names("svg math select")
# In these, mail programs do not agree whether a style sheet counts.
_NO_SHEETS = _UNSURE | _names("template noscript object")
_NO_VALUES = _names("hidden checkbox radio file range color")  # types of input that show no text
_LINES = _names(
    "p div br tr li ul ol dl dt dd table caption blockquote hr pre section article header footer main nav aside "
    "address center details summary fieldset legend form figure figcaption h1 h2 h3 h4 h5 h6 xmp option "
    "hgroup listing search dialog"
)
_CELLS = _names("td th")
_BLOCKS = _LINES | _CELLS | _names("table tbody thead tfoot button marquee object applet menu dir noscript plaintext")
_CLOSE_P = _LINES - _names("br tr caption legend option") | _names("plaintext menu dir")
_HEADINGS = _names("h1 h2 h3 h4 h5 h6")
# Elements that limit which open elements a tag can close, and what is in a table but not in a cell.
_SCOPE = _names("table td th caption button object marquee applet template")
_SCOPE_OF_ENDS = _SCOPE - {"button"}
_TEMPLATE = _names("template")
_TABLE_SCOPE = _names("table template")
_TABLE = _names("table tbody thead tfoot tr")
_IN_TABLE = _TABLE | _names("td th caption colgroup col style script template")
_RUBY = _names("rb rt rtc rp")
_RUBIES = _names("ruby")
_IMPLIED_ENDS = _RUBY | _names("dd dt li option p")
# What a start tag closes, up to the nearest element of the second set.
_CLOSES: dict[str, tuple[frozenset[str], frozenset[str]]] = {
    "li": (frozenset(("li",)), frozenset(("ul", "ol", "menu")) | _SCOPE),
    "dt": (frozenset(("dt", "dd")), frozenset(("dl",)) | _SCOPE),
    "option": (frozenset(("option",)), frozenset(("select",)) | _SCOPE),
    "a": (frozenset(("a",)), _SCOPE - {"button"}),
    "button": (frozenset(("button",)), _SCOPE - {"button"}),
    "nobr": (frozenset(("nobr",)), _SCOPE - {"button"}),
}
_CLOSES["dd"] = _CLOSES["dt"]
# Parts of tables close all that is open up to the nearest of these, and are ignored if there is none.
_ROW_ENDS = _names("tr tbody thead tfoot")
_SECTIONS = dict.fromkeys(("tbody", "thead", "tfoot", "caption", "colgroup", "col"), frozenset(("table",)))
_ROWS = {"tr": _names("table tbody thead tfoot")}
_PARENTS = _SECTIONS | _ROWS | dict.fromkeys(_CELLS, _TABLE)
# Browsers open these again in the next element if it was not their end tag that closed them, and inside an element in
# which their end tag is (WHATWG HTML, 13.2.4.3 and 13.2.6.4.7).
_FORMATTING = _names("a b big code em font i nobr s small strike strong tt u")
_PARAGRAPH = (frozenset(("p",)), _SCOPE)
_NOWHERE = [0]
_DEPTH = 512  # as in browsers; deeper elements are read as siblings


@dataclass(frozen=True, slots=True)
class _Element:
    name: str
    style: Style
    target: str = ""  # shown when the element ends
    shown: frozenset[str] = frozenset()  # inherited values with which a formatting element shows text again
    around: Style | None = None  # the style around the formatting elements that it is in, without a block in between


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
        self._is_unsure = False  # whether browsers open the same elements
        # What the open formatting elements show again: for each of them that does, together with those around it.
        self._formatting: list[frozenset[str]] = [frozenset()]
        self._reopened: frozenset[str] = frozenset()  # what those show that browsers opened again

    def read(self, markup: str) -> None:
        self._hiding = Hiding(list(_style_sheets(markup, self._is_late)), _unescaped(markup).lower())
        self._base = self._first_base(markup)
        for name, attributes, text in _tokens(markup, len(markup)):
            if self._is_late():
                break
            if not name:
                self._text(text)
            elif name.startswith("/"):
                self._end(name[1:])
            else:
                self._start(name, self._attributes(attributes))
                if name in _RAW_SHOWN or (self._is_unsure and name in _RAW):
                    self._text(text, pre=True)
        self._pop_to(1)

    def _first_base(self, markup: str) -> str:
        """Return the URL that a document's relative links are relative to, also those before it."""
        for name, attributes, _ in _tokens(markup, markup.lower().rfind("<base") + 1):
            if self._is_late():
                break
            if name == "base" and (href := self._attributes(attributes).get("href")):
                return href
        return ""

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
            return
        self._close_implied(name)
        if name in _LINES:
            self._put("\n")
        elif name in _CELLS:
            self._put(" ")
        if name in _IGNORED or (name in _PARENTS and not self._in_table(name)):
            return
        self._is_unsure = self._is_unsure or name in _UNSURE
        style, around = self._parent_style(name), self._open[-1].around
        if name in _FORMATTING:
            around = around or style
        elif name in _BLOCKS:
            # The end tag of a formatting element takes a block in it out of all other elements that are in it.
            style, around = around if around and not style.is_visible else style, None
        shown: frozenset[str] = frozenset()
        if not self._is_unsure:
            own = self._hiding.of(name, attributes)
            if name == "form":
                # Browsers ignore a form in another form, and end one that is in a table at once: it hides nothing.
                own = Own().showing(own.shown)
            elif name in _FORMATTING:
                shown = own.shown
            elif name != "span":
                own = own.showing(self._reopened | self._formatting[-1])
            style = style.inherited(own)
        if name in _NEVER_SHOWN and not self._is_unsure:
            style = style.hidden()
        target = ""
        if name in ("a", "area"):
            href = attributes.get("href", attributes.get("xlink:href"))
            target = "" if href is None else target_of(href, self._base)
        elif name == "form" and "action" in attributes:
            target = target_of(attributes["action"], self._base)
        elif "formaction" in attributes:
            target = target_of(attributes["formaction"], self._base)
        if style.is_visible:
            self._put(self._replacement(name, attributes))
        if name in _VOID:
            self._put(f" [{target}]" if target and style.is_visible else "")
        elif len(self._open) < _DEPTH:
            self._push(_Element(name, style, target, shown, around))

    @staticmethod
    def _replacement(name: str, attributes: dict[str, str]) -> str:
        """Return the text that an element without text shows."""
        if name in ("img", "area"):
            return _SPACES.sub(" ", attributes.get("alt", ""))
        kind = attributes.get("type", "").lower()
        if name == "input" and kind not in _NO_VALUES:
            value = "" if kind == "password" else attributes.get("value", "")
            shown = value or attributes.get("placeholder") or attributes.get("alt", "")
            return _SPACES.sub(" ", f" {shown} ")
        return ""

    def _close_implied(self, name: str) -> None:
        # Without a DOCTYPE, a table does not end a paragraph.
        if name in _CLOSE_P and (name != "table" or not self._open[-1].style.is_visible):
            self._close(*_PARAGRAPH)
        if name in _HEADINGS and self._open[-1].name in _HEADINGS:
            self._pop_to(len(self._open) - 1)
        if name in _CLOSES:
            self._close(*_CLOSES[name])
        if name in _RUBY and self._last(_RUBIES) > self._last(_SCOPE):
            while self._open[-1].name in _IMPLIED_ENDS:
                self._pop_to(len(self._open) - 1)
        if name == "table":  # one in another, but not in a cell, ends that
            self._close(frozenset(("table",)), _CELLS | {"caption", "template"})

    def _in_table(self, name: str) -> bool:
        """End what a part of a table ends. Return False if there is no table that it can be in."""
        place = self._last(_PARENTS[name])
        if place <= self._last(_TEMPLATE):
            return False
        self._pop_to(place + 1)
        return True

    def _close(self, names: frozenset[str], scope: frozenset[str]) -> None:
        place = self._last(names)
        if place and place > self._last(scope):
            self._pop_visibly(place)

    def _last(self, names: frozenset[str]) -> int:
        """Return the place of the innermost open element with one of these names, 0 if there is none."""
        last = 0
        for name in names & self._places.keys():
            last = max(last, self._places[name][-1])
        return last

    def _end(self, name: str) -> None:
        place = self._places.get(name, _NOWHERE)[-1]
        if name in _HEADINGS:
            place = self._last(_HEADINGS)
        elif not place and name in _ROW_ENDS:  # the row of a cell without one
            place = (self._last(_TABLE) or -1) + 1
        if 0 < place < len(self._open) and name not in ("body", "html"):
            self._close_to(name, place)
        if name in _LINES:
            self._put("\n")

    def _close_to(self, name: str, place: int) -> None:
        """End the elements up to a place by an end tag, which may also be the one of an element outside of others.

        Browsers ignore it if a table or cell is in between.
        """
        scope = (_TABLE_SCOPE if name in _IN_TABLE else _SCOPE_OF_ENDS) - {name}
        if self._open[-1].style.is_visible and place < self._last(scope):
            return
        self._pop_visibly(place, name)

    def _pop_visibly(self, place: int, ended: str = "") -> None:
        """End open elements, of which browsers may keep some open: text that was visible stays visible."""
        style = self._open[-1].style
        is_certain = place == len(self._open) - 1 and self._open[place].name == (ended or self._open[place].name)
        self._pop_to(place, ended)
        if style.is_visible and not is_certain and not self._open[-1].style.is_visible:
            self._push(_Element("", style))

    def _push(self, element: _Element) -> None:
        self._places.setdefault(element.name, []).append(len(self._open))
        self._open.append(element)
        if element.shown:
            self._formatting.append(self._formatting[-1] | element.shown)

    def _pop_to(self, place: int, ended: str = "") -> None:
        """End the open elements from a place on. ``ended``: the name of the end tag."""
        while len(self._open) > place:
            element = self._open.pop()
            places = self._places[element.name]
            places.pop()
            if not places:
                del self._places[element.name]
            if element.shown:
                self._formatting.pop()
                if element.name != ended:
                    self._reopened |= element.shown
            if element.target and element.style.is_visible:
                self._put(f" [{element.target}]")

    def _parent_style(self, name: str) -> Style:
        """Return the style that an element or text at this place inherits.

        In a table but outside of its cells, browsers move both in front of the table.
        """
        if self._is_unsure:
            return Style()
        if self._open[-1].name in _TABLE and name not in _IN_TABLE and (tables := self._places.get("table")):
            return self._open[tables[-1] - 1].style
        return self._open[-1].style

    # ---- text

    def _text(self, text: str, *, pre: bool = False) -> None:
        style = self._parent_style("").showing(self._reopened)
        if not style.is_visible:
            return
        if not (pre or style.is_pre or "pre" in self._places):
            text = _SPACES.sub(" ", text)
        self._put(_unescaped(text))

    def _put(self, text: str) -> None:
        if text:
            self.pieces.append(text)


def _tokens(markup: str, before: int) -> Iterator[tuple[str, str, str]]:
    """Return (name, attributes, content of an element whose content is text), ("/name", "", ""), ("", "", text).

    ``before``: where the last one begins at the latest.
    """
    at, end, is_foreign = 0, len(markup), False
    while at < before:
        found = _MARKUP.search(markup, at)
        if found is None or found.start() > at:
            stop = found.start() if found else end
            yield "", "", markup[at:stop]
            at = stop
        elif tag := _TAG.match(markup, at):
            name, at = tag[2].lower(), tag.end()
            is_foreign = is_foreign or name in ("svg", "math")
            begin = at
            if name in _RAW and not tag[1]:
                at = _end_of_raw(markup, at, name)
            yield tag[1] + name, tag[3], markup[begin:at]
        elif is_foreign and markup.startswith("<![CDATA[", at):
            stop = markup.find("]]>", at)
            yield "", "", markup[at + 9 : stop if stop >= 0 else end]
            at = stop + 3 if stop >= 0 else end
        else:
            if at == end - 2 and markup[at + 1] == "/":
                yield "", "", "</"
            at = _end_of_comment(markup, at)


def _end_of_raw(markup: str, at: int, name: str) -> int:
    """Return where the end tag of an element begins whose content is text."""
    ended = None if name == "plaintext" else re.compile(rf"</{name}(?=[{_WS}/>])", re.IGNORECASE).search(markup, at)
    return ended.start() if ended else len(markup)


def _end_of_comment(markup: str, at: int) -> int:
    """Return where the text goes on after a comment, or after what is read as one."""
    following = markup[at + 1 : at + 3]
    if following[:1].isalpha() or (following[1:].isalpha() and following[0] == "/"):
        return len(markup)  # a tag that is not ended is not shown, with all that follows
    if following == "!-" and markup.startswith("<!--", at):
        if markup.startswith((">", "->"), at + 4):
            return markup.index(">", at) + 1
        comment = _COMMENT_END.search(markup, at + 4)
        return comment.end() if comment else len(markup)
    bogus = markup.find(">", at)  # <!DOCTYPE>, <![CDATA[>, <?xml>, </ >: comments that end at the first bracket
    return bogus + 1 if bogus >= 0 else len(markup)


def _style_sheets(markup: str, is_late: Callable[[], bool]) -> Iterator[tuple[str, bool]]:
    """Return the style sheets of a document, each with whether every mail program applies it."""
    is_sure = True
    for name, text, content in _tokens(markup, markup.lower().rfind("<style") + 1):
        if is_late():
            return
        is_sure = is_sure and name not in _NO_SHEETS
        if name == "style":
            found = {  # the first of each name
                key.lower(): _unescaped("".join(values)).lower() for key, *values in reversed(_ATTRIBUTES.findall(text))
            }
            media, kind = found.get("media", "").strip(), found.get("type", "")
            yield content, is_sure and media in ("", "all", "screen") and kind in ("", "text/css")


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
    return target_of(base) if base else ""
