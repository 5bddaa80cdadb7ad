"""CSS that hides text, as far as mail uses it: inline styles, and rules of style sheets with one plain selector."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

_COMMENT = re.compile(r"/\*.*?(?:\*/|\Z)", re.DOTALL)
_BRACES = re.compile(r"([{}])")
_VALUE_CHARACTERS = 100  # of what matters of a declaration
_OF_BOXES = frozenset(("display", "opacity", "height", "max-height", "overflow"))
_ATTRIBUTES = ("style", "class", "id", "hidden", "color", "size")
_KNOWN = 1_000  # kept results: the elements of a mail are much alike
_INHERITED = ("", "inherit", "unset")
_SIMPLE = re.compile(r"([a-z][a-z0-9]*)?(?:([.#])(-?[\w-]+))?", re.IGNORECASE)
_NAME = re.compile(r"[.#]?-?[a-zA-Z_][\w-]*")
_NUMBER_ZERO = r"[+-]?(?:0++(?:\.0*+)?|\.0++)"
_NO_OPACITY = re.compile(rf"{_NUMBER_ZERO}%?")
_ZERO = re.compile(rf"{_NUMBER_ZERO}(?:px|pt|em|ex|rem|%|vw|vh|in|cm|mm|q|pc|ch)?")
_TINY = re.compile(r"\+?(?:0*\.[0-9]++|0*1(?:\.0*+)?)(?:px|pt)")
_HEX_COLOUR = re.compile(r"#([0-9a-f]{3}|[0-9a-f]{6})")
_RGB_COLOUR = re.compile(r"rgba?\(([0-9]{1,3})[, ]+([0-9]{1,3})[, ]+([0-9]{1,3})(?:[, ]+1)?\)")
_NAMED_COLOURS = {"white": (255, 255, 255), "black": (0, 0, 0)}
_PALE = 250  # of 255, each channel of a colour that is not seen on white
# Elements whose height is what CSS says, and declarations that let clipped text be seen nevertheless.
_CLIPPED = frozenset(("div", "p", "center", "section"))
_UNCLIPPING = ("padding", "display", "min-", "position", "float", "border")
# Declarations that show text in another colour than `color` says, and documents in which the canvas may not be white.
_REPAINTING = ("text-shadow", "text-fill", "background-image", "filter", "mix-blend")
_CANVAS = ("background", "bgcolor", *_REPAINTING)


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


_NOTHING = Own()


class Hiding:
    """The hidden elements of one document, by its style sheets and their attributes.

    In doubt text is visible. Rules in `@media` and rules with several parts in a selector hide nothing, but if such a
    rule shows an element again, or may do so against an inline style (`!important`), the element counts as visible.
    White text is hidden only in documents that never speak of a background. What mail programs ignore, such as
    `position`, hides nothing.
    """

    def __init__(self, sheets: str = "", markup: str = "") -> None:
        self._known: dict[tuple[str | None, ...], Own] = {}
        self._is_white = not any(word in markup for word in _CANVAS)
        # Properties by selector that hide what it matches, by name in any selector that show it, and that show it
        # against an inline style.
        self._hidden: dict[str, set[str]] = {}
        self._shown: dict[str, set[str]] = {}
        self._forced: dict[str, set[str]] = {}
        for selectors, style, important, is_conditional in _rules(_COMMENT.sub(" ", sheets)):
            effects = _effects(style)
            hides = set() if is_conditional else {name for name in effects if effects[name]}
            shows = effects.keys() - {name for name in effects if effects[name]}
            for selector in selectors.lower().split(",") if effects else ():
                selector = selector.strip()
                names = {"*"} if "[" in selector or "*" in selector else set(_NAME.findall(selector))
                for name in names if shows else ():
                    self._shown.setdefault(name, set()).update(shows)
                    self._forced.setdefault(name, set()).update(shows & important)
                if hides and _SIMPLE.fullmatch(selector):
                    self._hidden.setdefault(selector, set()).update(hides)

    def of(self, name: str, attributes: Mapping[str, str]) -> Own:
        """Return what is said about an element."""
        key = (name, *(attributes.get(each) for each in _ATTRIBUTES))
        own = self._known.get(key)
        if own is None:
            if len(self._known) >= _KNOWN:
                self._known.clear()
            own = self._known[key] = self._of(name, attributes)
        return own

    def _of(self, name: str, attributes: Mapping[str, str]) -> Own:
        style = _inline(attributes["style"]) if "style" in attributes else {}
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
        if (style and name in _CLIPPED and _is_clipped(style)) or hidden & {"display", "opacity"}:
            own = replace(own, is_gone=True)
        if "hidden" in attributes and "display" not in style.keys() | shown:
            own = replace(own, is_gone=True)
        if own.is_invisible is None and "visibility" in hidden | shown:
            own = replace(own, is_invisible="visibility" in hidden)
        if own.is_small is None and ("font-size" in hidden | shown or (name == "font" and attributes.get("size"))):
            own = replace(own, is_small="font-size" in hidden)
        colour = style.get("color") or (attributes.get("color", "").strip().lower() if name == "font" else "")
        if colour and own.is_pale is None:
            own = replace(own, is_pale=self._is_white and _is_white(colour))
        elif name == "a" and own.is_pale is None:
            own = replace(own, is_pale=False)  # browsers show links in blue
        return own


def _all(properties: Mapping[str, set[str]], names: set[str]) -> set[str]:
    return {each for name in names & properties.keys() for each in properties[name]}


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
    """Return what declarations say, whatever the element is."""
    size, visibility, space = (style.get(name, "") for name in ("font-size", "visibility", "white-space"))
    if not size and "font" in style:
        size = next((word for word in re.split(r"[\s/]+", style["font"]) if word[:1].isdigit()), "")
    own = Own(
        is_gone=style.get("display") == "none" or bool(_NO_OPACITY.fullmatch(style.get("opacity", ""))),
        is_invisible=None if visibility in _INHERITED else visibility in ("hidden", "collapse"),
        is_small=None if size in _INHERITED else bool(_ZERO.fullmatch(size) or _TINY.fullmatch(size)),
        is_pale=_is_like_ground(style) or None,
        is_pre=None if space in _INHERITED else space.startswith(("pre", "break-spaces")),
    )
    return _NOTHING if own == _NOTHING else own


def _is_clipped(style: Mapping[str, str]) -> bool:
    """Return whether a block has no height, and what overflows is cut."""
    if not style.get("overflow", "").startswith(("hidden", "clip")):
        return False
    is_flat = any(_ZERO.fullmatch(style.get(side, "")) for side in ("height", "max-height"))
    return is_flat and not any(name.startswith(_UNCLIPPING) for name in style)


def _is_like_ground(style: Mapping[str, str]) -> bool:
    """Return whether text has the colour of its own background, or none."""
    if any(word in name for name in style for word in _REPAINTING):
        return False
    ground = _colour(style.get("background-color") or style.get("background", ""))
    colour = style.get("color", "")
    return colour == "transparent" or (ground is not None and _colour(colour) == ground)


def _inline(text: str) -> dict[str, str]:
    return _declarations(_COMMENT.sub("", text) if "/*" in text else text)[0]


def _effects(style: Mapping[str, str]) -> dict[str, bool]:
    """Return the properties of a rule that matter, with whether they hide."""
    own = _own(style)
    effects = {name: _own({name: style[name]}).is_gone for name in _OF_BOXES & style.keys()}
    if own.is_invisible is not None:
        effects["visibility"] = own.is_invisible
    if own.is_small is not None:
        effects["font-size"] = own.is_small
    return effects


def _colour(value: str) -> tuple[int, ...] | None:
    """Return red, green and blue, None for what is not such a colour alone."""
    if match := _HEX_COLOUR.fullmatch(value):
        digits = match[1] if len(match[1]) == 6 else "".join(digit * 2 for digit in match[1])
        return tuple(bytes.fromhex(digits))
    if match := _RGB_COLOUR.fullmatch(value):
        return tuple(min(255, int(channel)) for channel in match.groups())
    return _NAMED_COLOURS.get(value)


def _is_white(value: str) -> bool:
    colour = _colour(value)
    return colour is not None and min(colour) >= _PALE
