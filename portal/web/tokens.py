"""The page of API tokens: staff create their own and revoke them here."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from bottle import HTTPResponse

from portal.model.domains import shown_address
from portal.model.errors import BadGrant, BadToken, NotAllowed, NotFound
from portal.model.message import new_id, parse_id
from portal.model.staff import Role
from portal.model.text import N_, shown
from portal.model.token import TOKEN_MAX, Scope, Token
from portal.policy.tokens import NAME_CHARACTERS, Status, TokenRequest
from portal.web.console import ROLE_NAMES, Console, StaffSession, shown_domain
from portal.web.pages import Pages
from portal.web.request import Request

PATH = "/admin/tokens"
_DAYS = 90  # in the form, until somebody types something else

_SCOPE_NAMES = {
    Scope.READ: N_("Read: sees what the role sees and changes nothing"),
    Scope.ACT: N_("Act: does everything that the role permits, except giving roles"),
}
_SCOPE_WORDS = {Scope.READ: N_("read"), Scope.ACT: N_("act")}
_STATUS_TEXTS = {
    Status.ACTIVE: "",
    Status.WITHOUT_ROLE: N_("No effect: this person does not have the role any more."),
    Status.EXPIRED: N_("Expired"),
    Status.REVOKED: N_("Revoked"),
}
_RESULT_TEXTS = {
    "revoked": N_("Token revoked."),
    "known": N_("This form was sent before. A token is shown only once: if you did not copy it, revoke it."),
}
_FIELDS = ("name", "role", "domain", "scope", "days")


@dataclass(frozen=True, slots=True)
class TokenRow:
    """A token as the page lists it."""

    id: UUID
    name: str
    owner: str
    role: str  # its name, to be translated
    domain: str  # "" for all domains
    scope: str  # to be translated
    created: str
    expires: str
    used: str  # "" if it was not used yet
    note: str  # why it has no effect, to be translated; "" if it has one
    may_revoke: bool


class TokenPages:
    """`/admin/tokens`."""

    def __init__(self, pages: Pages, console: Console) -> None:
        self._pages = pages
        self._console = console
        self._tokens = pages.parts.tokens

    def show(self, request: Request, staff: StaffSession) -> HTTPResponse:
        """GET /admin/tokens: list the tokens that this person may see."""
        return self._page(request, staff)

    def change(self, request: Request, staff: StaffSession) -> HTTPResponse:
        """POST /admin/tokens: create a token and show it, or revoke one and redirect (303) to the page."""
        try:
            if request.form("change") == "revoke":
                self._tokens.revoke(_id(request.form("token")), staff.actor, self._pages.now(), staff.member)
                return self._pages.see_other(f"{PATH}?done=revoked")
            return self._create(request, staff)
        except NotAllowed:
            return self._console.forbidden(request)
        except NotFound:
            return self._page(request, staff, 400, error=N_("There is no such token."))
        except (BadGrant, BadToken) as error:
            return self._page(request, staff, 400, error=str(error))

    def _create(self, request: Request, staff: StaffSession) -> HTTPResponse:
        """Create a token. The form has its id, so that sending the form again creates no second one."""
        self._console.check_fresh(request, staff, PATH)
        try:
            role, scope = Role(request.form("role")), Scope(request.form("scope"))
            days = int(request.form("days"))
        except ValueError as error:
            raise BadToken(N_("Choose a role, what the token may do, and for how many days.")) from error
        wanted = TokenRequest(request.form("name"), role, request.form("domain"), scope, days)
        token_id = parse_id(request.form("form")) or new_id()
        now, person = self._pages.now(), staff.member.person
        secret = self._tokens.create(token_id, person, wanted, staff.actor, now, staff.member)
        if secret is None:
            return self._pages.see_other(f"{PATH}?done=known")
        return self._page(request, staff, secret=secret)

    def _page(
        self, request: Request, staff: StaffSession, status: int = 200, error: str = "", secret: str = ""
    ) -> HTTPResponse:
        choices = self._pages.parts.staff.may_be_given(staff.member)
        roles, hosts = dict.fromkeys(role for role, _ in choices), dict.fromkeys(host for _, host in choices)
        typed = {name: shown(request.form(name), NAME_CHARACTERS) if error else "" for name in _FIELDS}
        found, by_end = self._tokens.all(self._pages.now(), staff.member), request.query("order") == "end"
        if by_end:  # those that have no effect any more are last
            found = sorted(found, key=lambda each: (each[1] in (Status.EXPIRED, Status.REVOKED), each[0].expires_at))
        return self._console.page(
            request,
            staff,
            "tokens",
            status,
            result=_RESULT_TEXTS.get(request.query("done"), ""),
            error=error,
            secret=secret,
            by_end=by_end,
            rows=[self._row(request, staff, *each) for each in found],
            roles=[(role.value, ROLE_NAMES[role]) for role in reversed(roles)],
            domains=[(host, shown_domain(host)) for host in sorted(hosts)],
            scopes=[(scope.value, text) for scope, text in _SCOPE_NAMES.items()],
            form=new_id(),
            typed=typed | {"days": typed["days"] or str(_DAYS)},
            name_characters=NAME_CHARACTERS,
            max_days=TOKEN_MAX.days,
        )

    def _row(self, request: Request, staff: StaffSession, token: Token, status: Status) -> TokenRow:
        viewer = self._pages.viewer(request, staff.member.person)
        return TokenRow(
            id=token.id,
            name=token.name,
            owner=shown_address(token.owner),
            role=ROLE_NAMES[token.role],
            domain=shown_domain(token.domain),
            scope=_SCOPE_WORDS[token.scope],
            created=viewer.language.moment(token.created_at, viewer.zone),
            expires=viewer.language.moment(token.expires_at, viewer.zone),
            used="" if token.used_at is None else viewer.language.moment(token.used_at, viewer.zone),
            note=_STATUS_TEXTS[status],
            may_revoke=status in (Status.ACTIVE, Status.WITHOUT_ROLE) and self._tokens.may_revoke(staff.member, token),
        )


def _id(text: str) -> UUID:
    """Return the id of a token. Raises NotFound."""
    found = parse_id(text)
    if found is None:
        raise NotFound("this is no id")
    return found
