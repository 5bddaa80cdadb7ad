"""CSS that hides text, as far as mail uses it: inline styles, and rules of style sheets with one plain selector."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

_COMMENT = re.compile(r"/\*.*?(?:\*/|\Z)", re.DOTALL)
_BRACES = re.compile(r"([{}])")
_VALUE_CHARACTERS = 100  # of what matters of a declaration
_SHOWING = frozenset(("display", "visibility", "font-size", "max-height", "height", "opacity"))
_SIMPLE = re.compile(r"([a-z][a-z0-9]*)?(?:([.#])(-?[\w-]+))?", re.IGNORECASE)
_NAME = re.compile(r"[.#]?-?[a-zA-Z_][\w-]*")
_ZERO = re.compile(r"[+-]?0*\.?0*(px|pt|em|ex|rem|%|vw|vh|in|cm|mm|q|pc|ch)?")
_TINY = re.compile(r"\+?(0*\.[0-9]+|0*1)(px|pt)")
_FAR = re.compile(r"-[0-9]{3,}(\.[0-9]*)?(px|pt|em|rem)")
_RELATIVE = re.compile(r"[0-9.+]+(em|%|ex|ch)|inherit|unset|smaller|larger")
_COLOURS = {"white": "#ffffff", "#fff": "#ffffff", "black": "#000000", "#000": "#000000", "rgb(255,255,255)": "#ffffff"}


@dataclass(frozen=True, slots=True)
class Style:
    """The computed values that decide whether text is visible. Text inherits them from its element."""

    is_gone: bool = False  # with everything inside
    is_invisible: bool = False  # `visibility`, which an element inside can change
    is_small: bool = False  # a font size of 0, which an element inside can change
    is_pre: bool = False

    @property
    def is_visible(self) -> bool:
        return not (self.is_gone or self.is_invisible or self.is_small)

    def hidden(self) -> Style:
        return replace(self, is_gone=True)

    def inherited(self, own: Own) -> Style:
        """Return the style of an element inside. ``own``: what is said about that element."""
        if own is _NOTHING:
            return self
        return Style(
            self.is_gone or own.is_gone,
            self.is_invisible if own.is_invisible is None else own.is_invisible,
            self.is_small if own.is_small is None else own.is_small,
            self.is_pre if own.is_pre is None else own.is_pre,
        )


@dataclass(frozen=True, slots=True)
class Own:
    """The values that an element's own declarations set; None: they do not."""

    is_gone: bool = False
    is_invisible: bool | None = None
    is_small: bool | None = None
    is_pre: bool | None = None


_NOTHING = Own()


class Hiding:
    """The hidden elements of one document, by its style sheets and their attributes.

    Rules in `@media` and rules with several parts in a selector hide nothing. But if such a rule shows an element
    again, or a rule may do so against an inline style (`!important`), the element counts as visible.
    """

    def __init__(self, sheets: str = "") -> None:
        self._hidden: set[str] = set()
        self._shown: set[str] = set()
        self._forced: set[str] = set()
        for selectors, style, important, is_conditional in _rules(_COMMENT.sub(" ", sheets)):
            shows = _shown_by(style)
            hides = not is_conditional and _hides(_own(style))
            for selector in selectors.lower().split(",") if shows or hides else ():
                selector = selector.strip()
                names = {"*"} if "[" in selector or "*" in selector else set(_NAME.findall(selector))
                if shows:
                    self._shown |= names
                    self._forced |= names if shows & important else set()
                if hides and _SIMPLE.fullmatch(selector):
                    self._hidden.add(selector)

    def of(self, name: str, attributes: Mapping[str, str]) -> Own:
        """Return what is said about an element."""
        own = _inline(attributes["style"]) if "style" in attributes else _NOTHING
        if "hidden" in attributes and not own.is_gone:
            own = replace(own, is_gone="display" not in attributes.get("style", "").lower())
        if not own.is_small and name == "font" and attributes.get("size"):
            own = replace(own, is_small=False)
        if not (self._hidden or self._forced):
            return own
        names = {name, *(f".{each}" for each in attributes.get("class", "").lower().split()[:50])}
        if "id" in attributes:
            names.add(f"#{attributes['id'].lower()}")
        if _hides(own):
            return _NOTHING if self._forced & (names | {"*"}) else own
        hidden = self._hidden & (names | {name + each for each in names if each != name})
        if hidden and not self._shown & (names | {"*"}) and "display" not in attributes.get("style", "").lower():
            return replace(own, is_gone=True)
        return own


def _rules(sheet: str) -> Iterator[tuple[str, dict[str, str], set[str], bool]]:
    """Return (selectors, declarations, important ones, is it in an @-rule?) of the rules of a style sheet."""
    opened: list[str] = []
    before = ""
    for piece in _BRACES.split(sheet):
        if piece == "{":
            opened.append(before.rpartition("-->")[2].rpartition("<!--")[2].rpartition(";")[2].strip())
        elif piece == "}" and opened:
            selectors = opened.pop()
            if before.strip():
                yield selectors, *_declarations(before), bool(opened) or selectors.startswith("@")
            piece = ""
        before = piece if piece != "{" else ""


def _declarations(text: str) -> tuple[dict[str, str], set[str]]:
    """Return declarations and the names of the important ones. The last of a property counts, an important one more."""
    found: dict[str, str] = {}
    important: set[str] = set()
    for declaration in text.split(";"):
        name, _, value = declaration.partition(":")
        name, value = name.strip().lower(), value.strip().lower()
        value, _, flag = value.partition("!")
        if flag.strip() == "important":
            important.add(name)
        elif name in important:
            continue
        found[name] = value.strip()[:_VALUE_CHARACTERS]
    return found, important


def _own(style: Mapping[str, str]) -> Own:
    """Return what declarations say."""
    clips = style.get("overflow", "").startswith(("hidden", "clip"))
    colour, ground = style.get("color", ""), style.get("background-color") or style.get("background", "")
    is_gone = (
        style.get("display") == "none"
        or bool(_ZERO.fullmatch(style.get("opacity", "1")))
        or (
            clips
            and any(_ZERO.fullmatch(style.get(side, "1")) for side in ("height", "max-height", "width", "max-width"))
        )
        or any(_FAR.fullmatch(style.get(side, "")) for side in ("text-indent", "left", "top", "margin-left"))
        or colour == "transparent"
        or bool(colour and _colour(colour) == _colour(ground))
    )
    size, visibility, space = (style.get(name, "") for name in ("font-size", "visibility", "white-space"))
    if not size and "font" in style:
        size = next((word for word in re.split(r"[\s/]+", style["font"]) if word[:1].isdigit()), "")
    is_small = (
        None
        if not size or (_RELATIVE.fullmatch(size) and not _ZERO.fullmatch(size))
        else bool(_ZERO.fullmatch(size) or _TINY.fullmatch(size))
    )
    own = Own(
        is_gone,
        None if not visibility or visibility == "inherit" else visibility in ("hidden", "collapse"),
        is_small,
        None if not space or space == "inherit" else space.startswith(("pre", "break-spaces")),
    )
    return _NOTHING if own == _NOTHING else own


def _inline(text: str) -> Own:
    return _own(_declarations(_COMMENT.sub("", text) if "/*" in text else text)[0])


def _hides(own: Own) -> bool:
    return bool(own.is_gone or own.is_invisible or own.is_small)


def _shown_by(style: Mapping[str, str]) -> set[str]:
    """Return the properties that show what another rule hides."""
    names = _SHOWING & style.keys()
    return {name for name in names if not _hides(_own({name: style[name], "overflow": "hidden"}))}


def _colour(value: str) -> str:
    value = re.sub(r"\s+", "", value)
    return _COLOURS.get(value, value)
