"""The part of a list that a page reads: a range of deliveries, and the direction in which they are read."""

from __future__ import annotations

from typing import NamedTuple
from uuid import UUID

from portal.model.message import DeliveryId, Filter, first_id


class Span(NamedTuple):
    """Deliveries from ``low`` on and before ``high``; None: without a limit."""

    low: DeliveryId | None = None
    high: DeliveryId | None = None
    oldest_first: bool = False

    @classmethod
    def of(cls, wanted: Filter, before: DeliveryId | None = None, down_to: DeliveryId | None = None) -> Span:
        """Return the span of the days that are wanted: newest first, before a delivery; or oldest first, from
        ``down_to`` on."""
        since = DeliveryId(first_id(wanted.since), 0) if wanted.since is not None else None
        until = DeliveryId(first_id(wanted.until), 0) if wanted.until is not None else None
        return cls(
            max((each for each in (since, down_to) if each is not None), default=None),
            min((each for each in (until, before) if each is not None), default=None),
            oldest_first=down_to is not None,
        )

    def after(self, key: DeliveryId) -> Span:
        """Return what is left after this delivery was read."""
        return self._at(DeliveryId(key.message_id, key.number + 1) if self.oldest_first else key)

    def after_message(self, id: UUID) -> Span:
        """Return what is left after all deliveries of this message were read."""
        return self._at(DeliveryId(UUID(int=id.int + self.oldest_first), 0))

    def _at(self, cursor: DeliveryId) -> Span:
        return self._replace(low=cursor) if self.oldest_first else self._replace(high=cursor)

    @property
    def cursor(self) -> DeliveryId | None:
        """The delivery at which reading begins: the next ``down_to`` or ``before``."""
        return self.low if self.oldest_first else self.high
