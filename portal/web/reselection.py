"""The selection of a list whose form was posted after the session had ended. The list selects it again."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from portal.model.message import DeliveryId, State
from portal.web.auth.kept_form import KeptForm
from portal.web.listing import cursor, name_of, place_of
from portal.web.rows import Row


@dataclass(frozen=True, slots=True)
class Reselection:
    """The selection of a kept form. Its texts were posted: they are compared with what the reader may read."""

    names: frozenset[str]  # of deliveries
    unticked: frozenset[str]  # of all that match
    ceiling: DeliveryId | None  # the newest of all that match, if they were selected
    act: str  # the button of the bar that was pressed, "" if it was another one
    reason: str  # of a release request

    def ticked(self, row: str) -> str:
        """Return the names of a row's deliveries that are selected, "" without any. ``row``: the names of all."""
        if self.ceiling:
            return row if self.unticked.isdisjoint(row.split()) else ""
        return " ".join(name for name in row.split() if name in self.names)

    def beside(self, on_page: Collection[DeliveryId]) -> list[DeliveryId]:
        """Return the deliveries that were selected one by one and are not on this page."""
        if self.ceiling:
            return []
        return [key for name in sorted(self.names) if (key := cursor(name)) and key not in on_page]

    def names_beside(
        self, on_page: Collection[DeliveryId], rows: Mapping[DeliveryId, Row], states: Collection[State]
    ) -> list[str]:
        """Return the names of `beside` that the list has on other pages.

        ``rows``: of all of them that the reader may read; ``states``: those of the list.
        """
        return [name_of(key) for key in self.beside(on_page) if key in rows and rows[key].delivery.state in states]


NONE = Reselection(frozenset(), frozenset(), None, "", "")


def reselection(form: KeptForm) -> Reselection:
    """Return the selection of a kept form, `NONE` if it is not one of the list."""
    if place_of(form.get("from"))[0] != "list":
        return NONE
    act, _, row = form.get("only").partition(" ")
    senders = [name for name in form.all("message") if form.get(f"sender.{name}")]
    names = frozenset(" ".join([row] if act else [*form.all("mail"), *senders]).split())
    ceiling = None if act else cursor(form.get("all"))
    unticked = frozenset(form.get("shown").split()) - names if ceiling else frozenset[str]()
    return Reselection(names, unticked, ceiling, act or form.get("do") or form.get("effect"), form.get("reason"))
