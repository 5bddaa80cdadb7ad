"""The value of ``store.url`` and of the arguments of ``quarantine copy``: a file store or a PostgreSQL database."""

from __future__ import annotations

from dataclasses import field
from pathlib import Path

from portal.model.record import record


@record(frozen=True, slots=True)
class StoreUrl:
    """The location of a store."""

    folder: Path | None  # of a file store; None: the store is in PostgreSQL
    dsn: str = field(default="", repr=False)  # a PostgreSQL connection URI, which may contain a password

    @classmethod
    def parse(cls, text: str) -> StoreUrl:
        """Parse ``files:PATH``, ``files:///abs/path`` or ``postgresql://…``. Raises ValueError for anything else."""
        scheme, _, rest = text.partition(":")
        path = rest.removeprefix("//")
        if scheme == "files" and path:
            return cls(Path(path))
        if scheme in ("postgresql", "postgres") and path:
            return cls(None, text)
        # Name the scheme only if it is one: other text may contain a password.
        unlike = f", not {scheme}:…" if path and scheme.isalnum() else ""
        raise ValueError(f"expected files:PATH, files:///abs/path or postgresql://…{unlike}")
