"""A route of the API, and the base of the models that read its requests and write its answers."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from portal.model.message import Actor
from portal.model.text import is_blank
from portal.policy.staff import Member, Permission

PREFIX = "/api/v1"


class Model(BaseModel):
    """The base of all models. Unknown names in a request are an error, so that a misspelt one is not ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _readable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("control and format characters are not allowed")
    if is_blank(text):
        raise ValueError("at least one visible character is needed")
    return text


# For a text of a request, without the blanks around it. The pattern documents that blanks alone are rejected.
FILLED = StringConstraints(strip_whitespace=True, min_length=1, pattern=r"\S")
READABLE = AfterValidator(_readable)
Text = Annotated[str, FILLED, Field(max_length=320), READABLE]


@dataclass(frozen=True, slots=True)
class Caller:
    """The token that a request came with: what it may do, whom the audit names, and its id."""

    member: Member
    actor: Actor
    token: UUID
    request: UUID  # the same for a request that is sent again with its idempotency key


@dataclass(frozen=True, slots=True)
class Name:
    """A part of a path that differs, ``{id}`` for example."""

    pattern: str  # a regular expression
    description: str
    example: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One route. The frame, the OpenAPI document and the page of documentation are all made from it.

    ``handler`` takes the `Caller` and, as keywords, the names in the path, ``query`` and ``body``, if there are such.
    It is called if the token has ``permission`` for one domain at least, and checks the domain itself.
    """

    method: str
    path: str  # below `PREFIX`
    permission: Permission
    operation: str  # its name for programs that are generated from the document
    summary: str
    text: str
    handler: Callable[..., Model]
    answer: type[Model]
    query: type[Model] | None = None
    body: type[Model] | None = None
    names: Mapping[str, Name] = field(default_factory=dict)
    example: str = ""  # the query string, or the JSON of the body

    @property
    def is_act(self) -> bool:
        """True if the route changes something, so that a client may want to send a request again safely."""
        return self.method != "GET"

    @property
    def rule(self) -> str:
        """The route as Bottle takes it."""
        return PREFIX + re.sub(r"{(\w+)}", lambda found: f"<{found[1]}:re:{self.names[found[1]].pattern}>", self.path)
