"""What ``store.url`` and the arguments of ``quarantine copy`` name: a file store or a PostgreSQL database."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class StoreUrl:
    """The place of a store."""

    folder: Path | None  # of a file store; None: it is in PostgreSQL
    dsn: str = field(default="", repr=False)  # a connection URI of PostgreSQL, which may hold a password

    @classmethod
    def parse(cls, text: str) -> StoreUrl:
        """Read ``files:PATH``, ``files:///abs/path`` or ``postgresql://…``. Raises ValueError for anything else."""
        scheme, _, rest = text.partition(":")
        path = rest.removeprefix("//")
        if scheme == "files" and path:
            return cls(Path(path))
        if scheme in ("postgresql", "postgres") and path:
            return cls(None, text)
        # Named only if it is a scheme: anything else may hold a password.
        unlike = f", not {scheme}:…" if path and scheme.isalnum() else ""
        raise ValueError(f"expected files:PATH, files:///abs/path or postgresql://…{unlike}")
