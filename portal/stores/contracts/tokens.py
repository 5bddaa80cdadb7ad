"""The contract of API tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from portal.model.message import Actor
from portal.model.token import Token


class ApiTokens(ABC):
    """API tokens. Those that expired or were revoked are kept for `TOKENS_KEPT`."""

    @abstractmethod
    def find(self, secret_sha256: bytes) -> Token | None:
        """Return the token whose secret has this hash, also one that cannot be used any more."""

    @abstractmethod
    def get(self, token_id: UUID) -> Token:
        """Return a token. Raises NotFound."""

    @abstractmethod
    def all(self) -> Sequence[Token]:
        """Return all tokens, the newest first."""

    @abstractmethod
    def add(self, token: Token) -> bool:
        """Add a token. Durable on return. Return False, with nothing changed, if there is one with its id."""

    @abstractmethod
    def revoke(self, token_id: UUID, actor: Actor, now: datetime) -> bool:
        """Revoke a token. Durable on return. Return False if there is none, or it was revoked before."""

    @abstractmethod
    def record_use(self, token_id: UUID, now: datetime) -> None:
        """Set the time of a token's last use. Not necessarily durable."""

    @abstractmethod
    def import_records(self, tokens: Sequence[Token]) -> None:
        """Store tokens of another store. Durable on return. Those that are revoked here stay revoked."""
