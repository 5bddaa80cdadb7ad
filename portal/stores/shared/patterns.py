"""Conditions with LIKE."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any


def literal(text: str) -> str:
    """Return a text as a part of a pattern of LIKE with ``escape '!'``."""
    return re.sub(r"([!%_])", r"!\1", text)


def of_domains(column: str, domains: Collection[str] | None) -> tuple[str, dict[str, Any]]:
    """Return the condition that an identity is of one of these domains, and its parameters. None: of any."""
    if domains is None:
        return "1 = 1", {}
    values = {f"domain_{number}": f"%@{literal(each)}" for number, each in enumerate(sorted(domains))}
    likes = " or ".join(f"{column} like :{name} escape '!'" for name in values)
    return f"({likes or '1 = 0'})", values
