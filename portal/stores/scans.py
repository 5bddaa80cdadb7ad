"""Storage format of a message's last virus scan in both stores and in the audit journal: JSON."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from portal.model.message import Scan, ScanOutcome
from portal.stores import symbols


def to_json(scan: Scan) -> dict[str, Any]:
    """Return the scan as a JSON object."""
    value: dict[str, Any] = {"outcome": scan.outcome.value}
    if scan.at is not None:
        value |= {"at": scan.at.isoformat(), "symbols": symbols.to_json(scan.symbols), "detail": scan.detail}
    return value


def from_json(value: dict[str, Any]) -> Scan:
    """Return the scan of a JSON object. Raises KeyError, ValueError, TypeError if it is malformed."""
    at = value.get("at")
    return Scan(
        ScanOutcome(value["outcome"]),
        None if at is None else datetime.fromisoformat(at).astimezone(UTC),
        symbols.from_json(value.get("symbols", [])),
        str(value.get("detail", "")),
    )


def pack(scan: Scan | None) -> str | None:
    """Return the text of column ``message.scan``."""
    return None if scan is None else json.dumps(to_json(scan))


def unpack(text: str | None) -> Scan | None:
    """Return the scan of that column. Raises ValueError, KeyError, TypeError if it is malformed."""
    return None if text is None else from_json(json.loads(text))
