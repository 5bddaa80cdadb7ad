"""Text for people: marking for translation, cleaning of hostile text, wrapping of lines.

Pure functions. The translations are in `portal.mail.languages`.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Literal, get_args

from rich.cells import cell_len

# CLDR has each language's own name. The texts are written in the first one.
Tag = Literal["en", "de", "fr", "es", "it", "nl", "pl", "pt-BR", "cs", "ja", "ar"]
TAGS: tuple[str, ...] = get_args(Tag)
_SPACE = re.compile(r"\s+")
# Bidirectional controls and invisible characters, which make text look like other text or empty text look present (most
# of Unicode's Default_Ignorable_Code_Point; variation selectors are kept, since emoji and some letters need them).
_HIDDEN = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufeff\uffa0"
    "\ufff9-\ufffb\U0001d173-\U0001d17a\U000e0000-\U000e007f]"
)
# Combining marks on one letter: no language stacks more than three, and a hundred cover the lines above and below.
_STACKED_MARKS = re.compile(
    "([\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]{3})"
    "[\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]+"
)
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_SURROGATES = re.compile(r"[\ud800-\udfff]")
_BRAILLE_BLANK = "\u2800"  # a symbol for Unicode, but without dots
_COLUMNS = 76
_WIDE = "\u1100-\u115f\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff00-\uff60\uffe0-\uffe6"
# An unbreakable unit: a word, or one wide character with the punctuation that must not begin a line. A no-break space
# is a part of a word.
_UNIT = re.compile(f"[ \\t]*(?:[{_WIDE}][、。，．：；！？）」』】〉》ー…]*|[^ \\t{_WIDE}]+)")


def N_(text: str) -> str:
    """Mark a text for translation and return it unchanged. The code that shows it translates it."""
    return text


def wrapped(text: str) -> str:
    """Return plain text with long lines wrapped at 76 columns, for terminals and old mail programs.

    A Chinese or Japanese character takes two columns. Lines that contain a link or begin with a space (commands) are
    not wrapped, and longer words are not broken.
    """
    return "\n".join(part for line in text.split("\n") for part in _wrap(line))


def _wrap(line: str) -> list[str]:
    if "://" in line or line.startswith(" ") or cell_len(line) <= _COLUMNS:
        return [line]
    lines, indent, left = [""], "  " if line.startswith("- ") else "", _COLUMNS
    for unit in _UNIT.findall(line):
        width = cell_len(unit)
        if width > left and lines[-1]:
            unit = indent + unit.lstrip()
            lines.append("")
            width, left = cell_len(unit), _COLUMNS
        lines[-1] += unit
        left -= width
    return lines


def cleaned(text: str) -> str:
    """Return text as `Facts` requires it: spaces for control characters, U+FFFD for lone surrogates."""
    return _SURROGATES.sub("\ufffd", _CONTROLS.sub(" ", text))


def is_blank(text: str) -> bool:
    """Return True if text has nothing to read or to search for: only spaces, invisible characters, and marks that are
    on no letter."""
    # NFKD, as in comparisons of a search, turns an accent that has a character of its own into a space with a mark.
    visible = _HIDDEN.sub("", unicodedata.normalize("NFKD", text))
    return all(c == _BRAILLE_BLANK or unicodedata.category(c)[0] in "CMZ" for c in visible)


def shown(text: str | None, limit: int = 200) -> str:
    """Return hostile text as one harmless line of at most ``limit`` characters.

    It has no control characters, bidirectional overrides, invisible characters or stacks of combining marks.
    """
    line = _HIDDEN.sub("", _SPACE.sub(" ", text or ""))
    if not line.isprintable():
        line = "".join(c for c in line if unicodedata.category(c) not in ("Cc", "Cs", "Cn", "Co"))
    line = _STACKED_MARKS.sub(r"\1", line).strip()
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"
