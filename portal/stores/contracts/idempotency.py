"""The contract of idempotency keys."""

from __future__ import annotations

from abc import ABC, abstractmethod
from datetime import datetime


class IdempotencyKeys(ABC):
    """Requests of the API that a client may repeat, by the hash of the client and its key, and their answers.

    They are kept for `lifecycle.IDEMPOTENCY_KEPT`.
    """

    @abstractmethod
    def begin(self, key_sha256: bytes, request_sha256: bytes, now: datetime) -> bytes | None:
        """Record that a request is being answered. Return the answer that it got before; None: it got none, and
        `finish` or `forget` must follow.

        Raises KeyReused if the key belongs to another request; AlreadyDone while the same request is being answered. If
        its process died, the request may be repeated after `lifecycle.LEASE`.
        """

    @abstractmethod
    def finish(self, key_sha256: bytes, begun_at: datetime, answer: bytes) -> None:
        """Keep the answer to the request that `begin` recorded at this time. It does nothing for one that took so long
        that the same request has begun again."""

    @abstractmethod
    def forget(self, key_sha256: bytes, begun_at: datetime) -> None:
        """Forget such a request that had no effect."""
