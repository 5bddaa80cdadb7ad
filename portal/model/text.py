"""Text for people: marked for translation, cleaned of what hostile text may hold, broken into lines.

Pure functions. The translations themselves are in `portal.mail.languages`.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Literal, get_args

from rich.cells import cell_len

# What each calls itself stands in CLDR. The first is what the texts are written in.
Tag = Literal["en", "de", "fr", "es", "it", "nl", "pl", "pt-BR", "cs", "ja", "ar"]
TAGS: tuple[str, ...] = get_args(Tag)
_SPACE = re.compile(r"\s+")
# Bidirectional controls and invisible characters that make text look like other text, or none look like some (most of
# Unicode's Default_Ignorable_Code_Point; variation selectors stay, since emoji and some letters are drawn by them).
_HIDDEN = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufeff\uffa0"
    "\ufff9-\ufffb\U0001d173-\U0001d17a\U000e0000-\U000e007f]"
)
# Combining marks on one letter: no language piles up more than three, and a hundred cover the rows above and below.
_PILED_UP = re.compile(
    "([\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]{3})"
    "[\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]+"
)
_COLUMNS = 76
_WIDE = "\u1100-\u115f\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff00-\uff60\uffe0-\uffe6"
# What stays together: a word, or one wide character with the marks that must not begin a line.
_PIECE = re.compile(
    f"[ \\t]*(?:[{_WIDE}][、。，．：；！？）」』】〉》ー…]*|[^ \\t{_WIDE}]+)"
)  # not at a no-break blank


def N_(text: str) -> str:
    """Marks a text that is translated where it is shown, and gives it back as it is."""
    return text


def wrapped(text: str) -> str:
    """Plain text with its long lines broken, as terminals and old mail programs show it: at most 76 columns, of which
    Chinese and Japanese characters take two. A line stays whole that has a link or begins with a blank (a command), and
    so does a longer word."""
    return "\n".join(part for line in text.split("\n") for part in _wrap(line))


def _wrap(line: str) -> list[str]:
    # Most lines are short or a link: told without looking at each character.
    if len(line) <= _COLUMNS // 2 or "://" in line or line[0] == " " or _columns(line) <= _COLUMNS:
        return [line]
    lines, more, room = [""], "  " if line.startswith("- ") else "", _COLUMNS
    for piece in _PIECE.findall(line):
        width = _columns(piece)
        if width > room and lines[-1]:
            piece = more + piece.lstrip()
            lines.append("")
            width, room = _columns(piece), _COLUMNS
        lines[-1] += piece
        room -= width
    return lines


def _columns(text: str) -> int:
    return len(text) if text.isascii() else cell_len(text)  # most lines are ASCII


def shown(text: str | None, limit: int = 200) -> str:
    """Hostile text as one harmless line: no controls, no bidi overrides, no invisible characters, no towers of marks,
    no endless length."""
    line = _HIDDEN.sub("", _SPACE.sub(" ", text or ""))
    if not line.isprintable():
        line = "".join(c for c in line if unicodedata.category(c) not in ("Cc", "Cs", "Cn", "Co"))
    line = _PILED_UP.sub(r"\1", line).strip()
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"
