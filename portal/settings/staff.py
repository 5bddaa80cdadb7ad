"""The section of staff."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field, field_validator

from portal.model.message import identity
from portal.settings.values import Network, Section, Words, words


class StaffSettings(Section):
    """The console of administrators, help desk and auditors; see docs/staff.md."""

    administrators: Words = Field(
        (),
        description="Addresses of the first administrators. They give all other roles, on the console's page or with "
        "`quarantine staff`.",
    )
    networks: Annotated[tuple[Network, ...], BeforeValidator(words)] = Field(
        (),
        description="Networks from which the console can be used, in CIDR notation. Default: all. Elsewhere its pages "
        "are answered with 404.",
    )
    help_desk_sees_bodies: bool = Field(
        False, description="Whether the help desk may read the texts and attachments of messages."
    )

    @field_validator("administrators")
    @classmethod
    def _addresses(cls, addresses: tuple[str, ...]) -> tuple[str, ...]:
        for address in addresses:
            if not all(address.rpartition("@")) or any(c.isspace() for c in address):
                raise ValueError(f"{address!r} is not an address like me@example.org")
        return tuple(dict.fromkeys(map(identity, addresses)))
