"""Idempotency keys, in table `idempotency_key`."""

from __future__ import annotations

from datetime import datetime

from portal.model.errors import AlreadyDone, KeyReused
from portal.stores import lifecycle
from portal.stores.contracts import IdempotencyKeys
from portal.stores.shared.session import Engine

_SELECT = "select request_sha256, begun_at, answer from idempotency_key where key_sha256 = :key"
_DELETE = "delete from idempotency_key where key_sha256 = :key"
_SAME = "where key_sha256 = :key and begun_at = :begun_at and answer is null"
_INSERT = "insert into idempotency_key (key_sha256, request_sha256, begun_at) values (:key, :request, :now)"


class SqlIdempotencyKeys(IdempotencyKeys):
    """See `IdempotencyKeys`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def begin(self, key_sha256: bytes, request_sha256: bytes, now: datetime) -> bytes | None:
        with self._engine.writing() as session:
            session.lock(f"idempotency {key_sha256.hex()}")  # of two equal requests, one waits for the other
            row = session.one(_SELECT, key=key_sha256)
            if row is not None:
                request, begun_at, answer = row
                kept = lifecycle.LEASE if answer is None else lifecycle.IDEMPOTENCY_KEPT
                if not lifecycle.is_past(begun_at, kept, now):
                    if request != request_sha256:
                        raise KeyReused("this key belongs to another request")
                    if answer is None:
                        raise AlreadyDone("the same request is being answered")
                    found: bytes = answer
                    return found
                session.execute(_DELETE, key=key_sha256)
            session.execute(_INSERT, key=key_sha256, request=request_sha256, now=now)
        return None

    def finish(self, key_sha256: bytes, begun_at: datetime, answer: bytes) -> None:
        update = f"update idempotency_key set answer = :answer {_SAME}"
        with self._engine.writing() as session:
            session.execute(update, answer=answer, key=key_sha256, begun_at=begun_at)

    def forget(self, key_sha256: bytes, begun_at: datetime) -> None:
        with self._engine.writing() as session:
            session.execute(f"delete from idempotency_key {_SAME}", key=key_sha256, begun_at=begun_at)
