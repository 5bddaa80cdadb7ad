"""The last step of all sign-in methods, which know who somebody is: the check that they are a recipient here, roles by
groups, and the session."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from datetime import datetime

from bottle import HTTPResponse

from portal.model.domains import shown_address
from portal.model.message import identity, is_address
from portal.model.text import shown
from portal.stores.records import Method
from portal.web.auth.session import Sessions
from portal.web.pages import Pages
from portal.web.request import Request

log = logging.getLogger("quarantine.web")

_ADDRESS_LENGTH = 254


@dataclass(frozen=True, slots=True)
class Identified:
    """A person whom a sign-in method has identified."""

    address: str  # as the method wrote it; it may be an alias
    method: Method
    authenticated_at: datetime | None  # when they proved who they are, None if the method does not know
    groups: frozenset[str] | None = field(default=frozenset())  # for `staff.groups`; None: not known now
    is_own_address: bool = False  # whether it must be the person's own: the alias file is not applied


class Arrivals:
    """Signs in people whom a method other than the mailed link has identified."""

    def __init__(self, pages: Pages, sessions: Sessions) -> None:
        self._pages = pages
        self._sessions = sessions

    def begin(self, request: Request, identified: Identified) -> HTTPResponse:
        """Begin the session and return the redirect to the page that the browser opened before.

        Returns a page with status 403 for an address that is not a recipient here. A recipient of a domain with another
        host is redirected to the sign-in page there, since a session is valid for one host only.
        """
        people, address = self._pages.parts.people, identified.address.strip()
        # An extension is part of a mail address, not of the name of an account: alice-smith@ may be somebody else.
        is_whole = is_address(address) and not address.startswith("@") and people.held_as(address) == identity(address)
        person = people.person(address) if is_whole else None
        if identified.is_own_address and person != identity(address):
            person = None  # the alias file says that this address is somebody else's, or a role's
        if person is None or not self._sessions.may_sign_in(person):
            log.warning("sign-in refused peer=%s method=%s: not a recipient", request.peer, identified.method.name)
            return self._not_here(request, address)
        host = self._pages.parts.domains.of(person).public_url
        if host != request.site.url:
            return HTTPResponse(b"", 303, {"Location": f"{host}/sign-in"})
        if identified.groups is not None:
            self._pages.parts.staff.put_groups(person, identified.method.name, identified.groups)
        return self._sessions.begin(
            request,
            person,
            self._sessions.destination(request, person),
            identified.authenticated_at,
            identified.method,
        )

    def _not_here(self, request: Request, address: str) -> HTTPResponse:
        return self._pages.page(
            request, "not-here", 403, address=shown_address(identity(shown(address, _ADDRESS_LENGTH)))
        )
