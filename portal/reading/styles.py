"""CSS that hides text, as far as mail uses it: inline styles, and rules of style sheets with one plain selector."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

# Comments, strings and simple brackets; the last group is what makes it unsure where declarations end.
_STRING = r"\"[^\"\\\n\r\f]*+\"|'[^'\\\n\r\f]*+'"
_PIECE = re.compile(
    rf"(/\*.*?(?:\*/|\Z))|({_STRING})|\((?:[^()\[\]{{}};!\"'\\/]++|/(?!\*)|{_STRING})*+\)|([\"'\\()]|<!--|-->)",
    re.DOTALL,
)
_BRACKETS = re.compile(r"[\[\]{}]")
_BRACES = re.compile(r"([{}])")
_VALUE_CHARACTERS = 100  # of what matters of a declaration
_OF_BOXES = frozenset(("display", "opacity"))
_HIDING = ("display", "opacity", "visibility", "font-size")
_ATTRIBUTES = ("style", "class", "id", "hidden", "color", "size")
_KNOWN = 1_000  # kept results: the elements of a mail are much alike
_INHERITED = ("", "inherit", "unset")
_AT_STATEMENTS = re.compile(r"\s*(?:@[^;{}]*+;\s*+)*+")
_SIMPLE = re.compile(r"[a-z][a-z0-9]*(?:[.#]-?[a-z_][\w-]*)?|[.#]-?[a-z_][\w-]*", re.ASCII)
_PLAIN = re.compile(r"[\w.#\s>+~-]+")
_NAME = re.compile(r"[.#]?[\w-]+")
_NUMBER_ZERO = r"\+?(?:0++(?:\.0++)?|\.0++)"
_NO_OPACITY = re.compile(rf"{_NUMBER_ZERO}%?")
_ZERO = re.compile(rf"{_NUMBER_ZERO}(?:px|pt|em|ex|rem|%|vw|vh|in|cm|mm|q|pc|ch)?")
_TINY = re.compile(r"\+?(?:0*\.[0-9]++|0*1(?:\.0++)?)(?:px|pt)")
# Elements whose height is what CSS says, and declarations that let clipped text be seen nevertheless.
_CLIPPED = frozenset(("div", "p", "center", "section"))
_UNCLIPPING = ("padding", "display", "min-", "overflow-", "float", "border")
# Controls have a font of their own, and a table has none of its parents' in documents without a DOCTYPE.
_OWN_FONT = frozenset(("table", "button", "input", "textarea", "select", "option"))
# In these the text is larger than around them, and they can be in one another.
_LARGER = frozenset(("big", "h1", "h2", "h3"))
_OWN_COLOUR = frozenset(("a", "table"))
_PALE = re.compile(
    r"white|transparent|#fff|#(?:f[d-f]){3}|rgb\(25[3-5], ?25[3-5], ?25[3-5]\)|rgba\((?:[0-9]{1,3}, ?){3}0(?:\.0+)?\)"
)
# White text is seen in a document in which anything is painted that is not white, or is drawn at another place.
_WHITE_GROUND = re.compile(
    r"background(?:-color)?\s*:\s*(?:white|#fff(?:fff)?)\s*(?=[;\"'])|bgcolor\s*=\s*[\"']?(?:white|#fff(?:fff)?)[\"'\s>]"
)
_PAINTED = re.compile(
    r"<(?:img|image|picture|svg|math|video|canvas|object|embed|iframe|hr|mark|input|button|textarea|select|meter|progress)"
    r"|background|bgcolor|color-scheme|border|outline|shadow|stroke|text-fill|filter|blend|position|transform|:\s*-|\\"
)
_COLOURING = re.compile(r"color|\ball\b|@import|\\")


@dataclass(frozen=True, slots=True)
class Style:
    """The computed values that decide whether text is visible. Text inherits them from its element."""

    is_gone: bool = False  # with everything inside
    is_invisible: bool = False  # `visibility`, which an element inside can change
    is_small: bool = False  # a font size of 0, which an element inside can change
    is_pale: bool = False  # the colour of the ground, which an element inside can change
    is_pre: bool = False

    @property
    def is_visible(self) -> bool:
        return not (self.is_gone or self.is_invisible or self.is_small or self.is_pale)

    def hidden(self) -> Style:
        return replace(self, is_gone=True)

    def showing(self, values: frozenset[str]) -> Style:
        """Return the style of text that these inherited values cannot hide."""
        return replace(self, **dict.fromkeys(values, False)) if values else self

    def inherited(self, own: Own) -> Style:
        """Return the style of an element inside. ``own``: what is said about that element."""
        if own is _NOTHING:
            return self
        return Style(
            self.is_gone or own.is_gone,
            self.is_invisible if own.is_invisible is None else own.is_invisible,
            self.is_small if own.is_small is None else own.is_small,
            self.is_pale if own.is_pale is None else own.is_pale,
            self.is_pre if own.is_pre is None else own.is_pre,
        )


@dataclass(frozen=True, slots=True)
class Own:
    """The values that an element's own declarations set; None: they do not."""

    is_gone: bool = False
    is_invisible: bool | None = None
    is_small: bool | None = None
    is_pale: bool | None = None
    is_pre: bool | None = None

    @property
    def shown(self) -> frozenset[str]:
        """The names of the values that show again what an element around hides."""
        return frozenset(name for name in _SHOWING if getattr(self, name) is False)

    def showing(self, values: frozenset[str]) -> Own:
        """Return these declarations, of which these values hide nothing."""
        return replace(self, **dict.fromkeys(values, False)) if values else self


_SHOWING = ("is_invisible", "is_small", "is_pale")
_NOTHING = Own()
_SHOWN = Own(is_invisible=False, is_small=False, is_pale=False)


class Hiding:
    """The hidden elements of one document, by its style sheets and their attributes.

    In doubt text is visible. Rules that not every mail program applies and rules with several parts in a selector hide
    nothing, but if such a rule shows an element again, or may do so against an inline style (`!important`), the element
    counts as visible. If it is unsure where a declaration of a style sheet ends, nothing in the document is hidden by
    CSS or attributes. White text is hidden only in documents in which nothing has another colour. Properties that
    mail programs ignore, such as `position`, hide nothing.
    """

    def __init__(self, sheets: Sequence[tuple[str, bool]] = (), markup: str = "") -> None:
        self._known: dict[tuple[str | None, ...], Own] = {}
        # Properties by selector that hide what it matches, by name in any selector that show it, and that show it
        # against an inline style.
        self._hidden: dict[str, set[str]] = {}
        self._shown: dict[str, set[str]] = {}
        self._forced: dict[str, set[str]] = {}
        self._is_white = not _PAINTED.search(_WHITE_GROUND.sub(" ", markup))
        self._is_clipping = not sheets and "position" not in markup and "\\" not in markup
        self._is_sure = True
        for sheet, is_applied in sheets:
            self._is_white = self._is_white and not _COLOURING.search(sheet.lower())
            plain = _plain(sheet.strip().removeprefix("<!--").removesuffix("-->"))
            self._is_sure = self._is_sure and plain is not None and "keyframes" not in plain
            if self._is_sure and plain:
                self._add(plain, is_applied)

    def _add(self, sheet: str, is_applied: bool) -> None:
        for prelude, style, important, is_conditional in _rules(sheet):
            effects = _effects(style)
            if "all" in style:
                important = set(_HIDING)
            hides = {name for name in effects if effects[name]}
            shows = effects.keys() - hides
            selectors = [selector.strip() for selector in prelude.split(",")]
            for selector in selectors if shows else ():
                for name in _NAME.findall(selector) if _PLAIN.fullmatch(selector) else ("*",):
                    self._shown.setdefault(name, set()).update(shows)
                    self._forced.setdefault(name, set()).update(shows & important)
            # One wrong selector makes browsers ignore the rule.
            if hides and is_applied and not is_conditional and all(map(_SIMPLE.fullmatch, selectors)):
                for selector in selectors:
                    self._hidden.setdefault(selector, set()).update(hides)

    def of(self, name: str, attributes: Mapping[str, str]) -> Own:
        """Return what is said about an element."""
        key = (name, *(attributes.get(each) for each in _ATTRIBUTES)) if attributes else (name,)
        own = self._known.get(key)
        if own is None:
            if len(self._known) >= _KNOWN:
                self._known.clear()
            own = self._known[key] = self._of(name, attributes)
        return own

    def _of(self, name: str, attributes: Mapping[str, str]) -> Own:
        text = _plain(attributes.get("style", ""))
        style = {"all": ""} if text is None else _declarations(text)[0]
        if "all" in style or not self._is_sure:
            return _SHOWN
        hidden, shown = set(), set()
        if self._hidden or self._shown:
            names = {name, *(f".{each}" for each in attributes.get("class", "").lower().split()[:50])}
            if "id" in attributes:
                names.add(f"#{attributes['id'].lower()}")
            shown = _all(self._shown, names | {"*"})
            hidden = _all(self._hidden, names | {name + each for each in names if each != name}) - shown - style.keys()
            forced = _all(self._forced, names | {"*"})
            style = {each: value for each, value in style.items() if each not in forced}
        own = _own(style) if style else _NOTHING
        if (self._is_clipping and name in _CLIPPED and _is_clipped(style)) or hidden & {"display", "opacity"}:
            own = replace(own, is_gone=True)
        # A marquee has a `display` of its own.
        if "hidden" in attributes and name != "marquee" and "display" not in style.keys() | shown:
            own = replace(own, is_gone=True)
        if own.is_invisible is None and "visibility" in hidden | shown:
            own = replace(own, is_invisible="visibility" in hidden)
        if own.is_small is None and ("font-size" in hidden | shown or (name == "font" and attributes.get("size"))):
            own = replace(own, is_small="font-size" in hidden)
        elif own.is_small is None and name in _OWN_FONT | _LARGER:
            own = replace(own, is_small=False)
        colour = style.get("color") or (attributes.get("color", "").strip().lower() if name == "font" else "")
        if colour:
            own = replace(own, is_pale=self._is_white and bool(_PALE.fullmatch(colour)))
        elif name in _OWN_COLOUR:
            own = replace(own, is_pale=False)
        return own


def _all(properties: Mapping[str, set[str]], names: set[str]) -> set[str]:
    return {each for name in names & properties.keys() for each in properties[name]}


def _rules(sheet: str) -> Iterator[tuple[str, dict[str, str], set[str], bool]]:
    """Return (selectors, declarations, important ones, is it in an @-rule?) of the rules of a style sheet."""
    opened: list[str] = []
    before = ""
    for piece in _BRACES.split(sheet):
        if piece == "{":
            if opened and ";" in before:  # declarations before a rule in a rule
                yield opened[-1], *_declarations(before), True
            opened.append(_AT_STATEMENTS.sub("", before, 1).strip())
            before = ""
        elif piece == "}" and opened:
            selectors = opened.pop()
            if before.strip():
                yield selectors, *_declarations(before), bool(opened) or selectors.startswith("@")
            before = ""
        else:
            before += piece
    if opened:
        yield opened[-1], *_declarations(before), True


def _plain(text: str) -> str | None:
    """Return lower-case CSS without comments and strings, None if it is unsure where its declarations end."""
    pieces: list[str] = []
    at = 0
    for piece in _PIECE.finditer(text):
        comment, string, unsure = piece.groups()
        if unsure:
            return None
        if comment or string:
            pieces += (text[at : piece.start()], " " if comment else "~")
            at = piece.end()
    return ("".join(pieces) + text[at:]).lower()


def _declarations(text: str) -> tuple[dict[str, str], set[str]]:
    """Return declarations and the names of the important ones. The last of a property counts, an important one more.

    `all` among them: any of them may have another value.
    """
    if _BRACKETS.search(text):
        return {"all": ""}, set()
    found: dict[str, str] = {}
    important: set[str] = set()
    for declaration in text.split(";"):
        name, _, value = declaration.partition(":")
        name = name.strip()
        value, mark, flag = value.partition("!")
        if mark and flag.strip() != "important":
            continue  # as browsers do
        if mark:
            important.add(name)
        elif name in important:
            continue
        found[name] = value.strip()[:_VALUE_CHARACTERS]
    return found, important


def _own(style: Mapping[str, str]) -> Own:
    """Return what declarations say, whatever the element is."""
    size, visibility, space = (style.get(name, "") for name in ("font-size", "visibility", "white-space"))
    if "font" in style:
        size = "medium"  # or any other, but not certainly 0
    own = Own(
        is_gone=style.get("display") == "none" or bool(_NO_OPACITY.fullmatch(style.get("opacity", ""))),
        is_invisible=None if visibility in _INHERITED else visibility in ("hidden", "collapse"),
        is_small=None if size in _INHERITED else bool(_ZERO.fullmatch(size) or _TINY.fullmatch(size)),
        is_pre=None if space in _INHERITED else space.startswith(("pre", "break-spaces")),
    )
    return _NOTHING if own == _NOTHING else own


def _is_clipped(style: Mapping[str, str]) -> bool:
    """Return whether a block has no height, and what overflows is cut."""
    if style.get("overflow") != "hidden":
        return False
    is_flat = any(_ZERO.fullmatch(style.get(side, "")) for side in ("height", "max-height"))
    return is_flat and not any(name.startswith(_UNCLIPPING) for name in style)


def _effects(style: Mapping[str, str]) -> dict[str, bool]:
    """Return the properties of a rule that matter, with whether they hide."""
    if "all" in style:
        return dict.fromkeys(_HIDING, False)
    own = _own(style)
    effects = {name: _own({name: style[name]}).is_gone for name in _OF_BOXES & style.keys()}
    if own.is_invisible is not None:
        effects["visibility"] = own.is_invisible
    if own.is_small is not None:
        effects["font-size"] = own.is_small
    # What is inherited may be visible.
    return effects | {name: False for name in _HIDING if style.get(name) in ("inherit", "unset")}
