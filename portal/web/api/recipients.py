"""The routes of recipients: their digests, preferences and sign-ins, and what staff do for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial

from pydantic import Field

from portal.model.errors import AlreadyDone, UnknownRecipient
from portal.model.message import State, domain
from portal.policy.recipients import NOT_AN_ADDRESS, REASON_CHARACTERS, DigestAct, Mailbox
from portal.policy.staff import Permission
from portal.web.api.problems import FieldProblem, invalid, problem
from portal.web.api.route import Caller, Model, Route, Text
from portal.web.pages import Pages

_ADDRESS = "The address of a recipient, in any spelling, or an alias of theirs."
_ACTS = {  # with the ends of their paths
    "stop-digests": ("stopDigests", "Stop digests", "Sends no more digests."),
    "resume-digests": ("resumeDigests", "Resume digests", "Sends digests again."),
    "send-digest": (
        "sendDigest",
        "Send a digest",
        "Sends a digest now. It lists what is new; if nothing is, what the last one listed and is still held.",
    ),
    "sign-out": ("signOut", "Sign out", "Ends all sessions of a recipient."),
}


class RecipientQuery(Model):
    """The recipient to show."""

    address: Text = Field(description=_ADDRESS)


class RecipientAct(Model):
    """The recipient to act for."""

    address: Text = Field(description=_ADDRESS)
    reason: str = Field("", max_length=REASON_CHARACTERS, description="For the audit.")


class RecipientResult(Model):
    """The result of an act for a recipient."""

    recipient: str
    changed: bool = Field(description="False if it was so before, or there is nothing to send.")


class SignInDetail(Model):
    """A sign-in, or the browser of a session."""

    at: datetime
    way: str
    client: str


class DigestDetail(Model):
    """The digests of a person. Times of day are in their time zone."""

    schedule: str
    at: list[str]
    timezone: str
    language: str
    only_wanted: bool = Field(description="Digests in which nothing looks wanted are put off, for a week at most.")
    last_at: datetime | None
    next_at: datetime | None = Field(description="null if they are stopped, or never sent.")
    stopped_at: datetime | None
    stopped_by: str | None
    failed_at: datetime | None = Field(description="When the mail server last did not accept one.")
    failure: str


class RecipientDetail(Model):
    """The recipient that an address stands for, with the state of their mail. Rules have a route of their own."""

    recipient: str
    is_person: bool = Field(description="False for a shared mailbox, which has no digests, sign-ins and sessions.")
    readers: list[str] = Field(description="The people who read a shared mailbox.")
    addresses: list[str] = Field(description="Their own address and others, as far as the token may see them.")
    counts: dict[str, int] = Field(description="Deliveries by state.")
    counts_complete: bool = Field(description="False if there may be more.")
    digests: DigestDetail | None
    sign_ins: list[SignInDetail]
    sessions: list[SignInDetail] = Field(description="Browsers that are signed in, with their last use.")


class RecipientRoutes:
    """/recipients and what is below."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages
        self._parts = pages.parts
        self._desk = pages.parts.recipients

    def table(self) -> Sequence[Route]:
        """Return the routes."""
        return (
            Route(
                method="GET", path="/recipients", permission=Permission.SEE_ENVELOPE, operation="getRecipient",
                summary="Show a recipient", text="Returns who an address stands for, and the state of their mail.",
                handler=self.show, query=RecipientQuery, answer=RecipientDetail, example="address=alice@example.org",
            ),
            *(
                Route(
                    method="POST", path=f"/recipients/{act}", permission=Permission.MANAGE_RECIPIENTS,
                    operation=operation, summary=summary, text=text, handler=partial(self._act, act),
                    body=RecipientAct, answer=RecipientResult,
                    example='{"address": "alice@example.org", "reason": "on leave"}',
                )
                for act, (operation, summary, text) in _ACTS.items()
            ),
        )  # fmt: skip

    def show(self, caller: Caller, query: RecipientQuery) -> RecipientDetail:
        """GET /recipients."""
        may_see = self._may(caller, Permission.SEE_ENVELOPE)
        mailbox = self._find(query.address, may_see)
        found = self._desk.profile(mailbox, self._pages.now(), may_see)
        person, plan, contacts = found.person, found.plan, found.contacts
        digests = DigestDetail(
            schedule=plan.schedule,
            at=[f"{each:%H:%M}" for each in plan.at],
            timezone=plan.zone.key,
            language=plan.language,
            only_wanted=plan.only_wanted,
            last_at=contacts.digest_at,
            next_at=found.due_at,
            stopped_at=person.stopped_at,
            stopped_by=contacts.stopped_by.who if contacts.stopped_by else None,
            failed_at=person.failed_at,
            failure=person.failure,
        )
        return RecipientDetail(
            recipient=mailbox.recipient,
            is_person=mailbox.is_person,
            readers=[each for each in mailbox.readers if may_see(domain(each))],
            addresses=[*found.reader.identities],
            counts={State(state).value: count for state, count in found.counts.of.items()},
            counts_complete=found.counts.complete,
            digests=digests if mailbox.is_person else None,
            sign_ins=[SignInDetail(at=at, way=way, client=client) for at, way, client in contacts.sign_ins],
            sessions=[SignInDetail(at=each.used_at, way=each.method, client=each.client) for each in contacts.sessions],
        )

    def _act(self, act: str, caller: Caller, body: RecipientAct) -> RecipientResult:
        """POST /recipients/stop-digests, /resume-digests, /send-digest and /sign-out."""
        mailbox = self._find(body.address, self._may(caller, Permission.MANAGE_RECIPIENTS))
        if not mailbox.is_person:
            raise AlreadyDone("a shared mailbox has no digests and sessions; name one of its readers")
        who, now, reason = (mailbox.recipient, caller.actor), self._pages.now(), body.reason.strip()
        match act:
            case "send-digest":
                changed = self._desk.send_digest(*who, now, reason)
            case "sign-out":
                changed = self._desk.end_sessions(*who, now, reason) > 0
            case _:
                digests = DigestAct.STOP if act == "stop-digests" else DigestAct.RESUME
                changed = bool(self._desk.change(digests, {mailbox.recipient: {}}, caller.actor, now, reason))
        return RecipientResult(recipient=mailbox.recipient, changed=changed)

    def _find(self, address: str, may: Callable[[str], bool]) -> Mailbox:
        """Return the recipient that an address stands for. Raises 404, 422."""
        try:
            return self._desk.find(address, may)
        except UnknownRecipient as unknown:
            if str(unknown) == NOT_AN_ADDRESS:
                raise invalid(FieldProblem(name="address", detail=str(unknown))) from unknown
            raise problem(404, str(unknown)) from unknown

    def _may(self, caller: Caller, permission: Permission) -> Callable[[str], bool]:
        return partial(self._parts.staff.may, caller.member, permission)
