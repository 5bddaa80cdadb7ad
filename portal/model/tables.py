"""Cells of CSV files that spreadsheets do not take for formulas."""

from __future__ import annotations

import re

_FORMULA = re.compile(r"[=+\-@\t\r]")  # spreadsheets execute cells that begin with one of these
_QUOTED_FORMULA = re.compile(r"'[=+\-@\t\r]")


def cell(value: object) -> str:
    """Return a value of a cell that no spreadsheet takes for a formula; `unquoted` undoes it."""
    text = "" if value is None else {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
    return f"'{text}" if _FORMULA.match(text) or _QUOTED_FORMULA.match(text) else text


def unquoted(text: str) -> str:
    """Return the text of a cell that `cell` returned."""
    return text[1:] if text.startswith("'") and (_FORMULA.match(text[1:]) or _QUOTED_FORMULA.match(text[1:])) else text
