"""`/admin/recipients/list`: stop, resume or set the digests of a list or of the people of a domain.

The first form has the list, the second one, with what would be done and what not and why, confirms it. Nothing is kept
in between: the second form has the list as well, and it is checked again.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from bottle import HTTPResponse

from portal.mail.languages import own_name
from portal.model.domains import shown_address
from portal.model.errors import BadList, BadPreference
from portal.model.message import domain
from portal.model.schedule import NO_PREFERENCES, Schedule, typed_preferences
from portal.model.staff import EVERYWHERE
from portal.model.text import N_, TAGS, shown
from portal.policy import recipient_lists
from portal.policy.recipient_lists import COLUMNS, DEFAULT, NO_VALUE, Checked, Line
from portal.policy.recipients import REASON_CHARACTERS, DigestAct
from portal.policy.staff import Permission
from portal.web.console import Console, StaffSession
from portal.web.pages import Pages
from portal.web.preferences import SCHEDULES
from portal.web.request import Request

PATH = "/admin/recipients/list"
_MAX_LINES = 10_000  # which takes some seconds; `quarantine digests` has no limit
_LISTED = 100  # of each group
_VALUE_CHARS = 60
_ACTS = {
    DigestAct.STOP: N_("Stop digests"),
    DigestAct.RESUME: N_("Resume digests"),
    DigestAct.SET: N_("Set preferences"),
}
_EMPTY = N_("Enter addresses, choose a file or choose a domain.")
_ONE_SOURCE = N_("Either enter addresses, choose a file or choose a domain, not several of these.")
_NO_ACT = N_("Choose an action.")
_NOBODY = N_("Nothing is stored for recipients of this domain.")


@dataclass(frozen=True, slots=True)
class _Form:
    """The values of the form."""

    act: DigestAct | None
    data: bytes  # of the list
    host: str  # the domain whose people are meant, "" for the list
    sources: int  # text, file and domain: how many of them there are
    values: Mapping[str, str]  # by column
    reason: str


class RecipientListPages:
    """`/admin/recipients/list`."""

    def __init__(self, pages: Pages, console: Console) -> None:
        self._pages = pages
        self._console = console
        self._parts = pages.parts

    def show(self, request: Request, staff: StaffSession) -> HTTPResponse:
        """GET /admin/recipients/list: the form. It needs a fresh sign-in, so that no list is typed twice."""
        self._console.check_fresh(request, staff, PATH)
        return self._page(request, staff, None)

    def act(self, request: Request, staff: StaffSession) -> HTTPResponse:
        """POST /admin/recipients/list: show what would be done or, if that is confirmed, do it and show the result.

        The result has no address of its own: sending the form again changes nothing more.
        """
        self._console.check_fresh(request, staff, PATH)
        form = _form(request)
        if form.host and not self._may_manage(staff, domain(form.host)):
            return self._console.forbidden(request)
        try:
            lines = self._lines(form)
            if form.act is None:
                raise BadList(0, _NO_ACT)
            if form.act is DigestAct.SET and not form.values and not any(line.values for line in lines):
                raise BadList(0, NO_VALUE)
            typed_preferences(NO_PREFERENCES, {COLUMNS[name]: _typed(text) for name, text in form.values.items()})
        except (BadList, BadPreference) as bad:
            line = bad.line if isinstance(bad, BadList) else 0
            return self._page(request, staff, form, 400, error=str(bad), error_line=line)
        now = self._pages.now()
        with self._pages.searching():
            checked = recipient_lists.check(
                self._parts.recipients, form.act, lines, form.values, now, lambda host: self._may_manage(staff, host)
            )
            changed: Sequence[str] | None = None
            if request.form("confirm"):
                changed = self._parts.recipients.change(form.act, checked.changes, staff.actor, now, form.reason)
        return self._page(request, staff, form, checked=checked, changed=changed)

    def export(self, request: Request, staff: StaffSession) -> HTTPResponse:
        """POST /admin/recipients/list/export: people and their preferences as CSV, which the audit records."""
        self._console.check_fresh(request, staff, PATH)
        host, stopped = domain(request.form("domain").strip()), request.form("stopped") != ""
        if host and not self._may_manage(staff, host):
            return self._console.forbidden(request)
        reach = self._parts.staff.reach(staff.member, Permission.MANAGE_RECIPIENTS)
        hosts = frozenset({host}) if host else reach
        with self._pages.searching():
            people = recipient_lists.people(
                self._parts.recipients, None if EVERYWHERE in hosts else hosts, stopped=stopped
            )
            found = list(islice(people, _MAX_LINES + 1))
        if len(found) > _MAX_LINES:
            return self._page(request, staff, None, 400, error=recipient_lists.TOO_LONG)
        entries = recipient_lists.export_entries(self._pages.now(), staff.actor, hosts, stopped=stopped)
        self._parts.store.audit.record(*entries)
        text = io.StringIO()
        csv.writer(text).writerows(recipient_lists.written(found, stopped=stopped))
        headers = {
            "Content-Type": "text/csv; charset=utf-8",
            "Content-Disposition": 'attachment; filename="recipients.csv"',
        }
        return HTTPResponse(text.getvalue().encode(), 200, headers)

    def _lines(self, form: _Form) -> list[Line]:
        """Return the recipients that are meant. Raises BadList."""
        if form.sources > 1:
            raise BadList(0, _ONE_SOURCE)
        if form.host:
            lines = recipient_lists.of_domain(self._parts.recipients, domain(form.host), _MAX_LINES)
        else:
            lines = list(islice(recipient_lists.read(form.data, form.act or DigestAct.SET), _MAX_LINES + 1))
        if len(lines) > _MAX_LINES:
            raise BadList(0, recipient_lists.TOO_LONG)
        if not lines:
            raise BadList(0, _NOBODY if form.host else _EMPTY)
        return lines

    def _may_manage(self, staff: StaffSession, host: str) -> bool:
        return self._parts.staff.may(staff.member, Permission.MANAGE_RECIPIENTS, host)

    def _page(
        self,
        request: Request,
        staff: StaffSession,
        form: _Form | None,
        status: int = 200,
        *,
        checked: Checked | None = None,
        changed: Sequence[str] | None = None,
        error: str = "",
        error_line: int = 0,
    ) -> HTTPResponse:
        values: dict[str, Any] = {"checked": None}
        if checked is not None:
            values = _result_values(checked, changed)
        return self._console.page(
            request,
            staff,
            "recipient-list",
            status,
            **values,
            acts=[(act.value, text) for act, text in _ACTS.items()],
            act=form.act.value if form and form.act else "",
            act_name=_ACTS[form.act] if form and form.act else "",
            text=form.data.decode("utf-8-sig", "replace") if form else "",
            domains=[
                (host, shown_address(host)) for host in self._parts.domains.local() if self._may_manage(staff, host)
            ],
            host=form.host if form else "",
            host_name=shown_address(form.host) if form else "",
            typed=dict.fromkeys(COLUMNS, "") | dict(form.values if form else {}),
            reason=shown(form.reason, REASON_CHARACTERS) if form else "",
            reason_characters=REASON_CHARACTERS,
            default=DEFAULT,
            schedules=[(day.value, text) for day, text in SCHEDULES.items() if day is not Schedule.NEVER],
            languages=[(tag, own_name(tag)) for tag in TAGS],
            error=error,
            error_line=error_line,
        )


def _form(request: Request) -> _Form:
    act = next((act for act in DigestAct if act.value == request.form("act")), None)
    values = {}
    if act is DigestAct.SET:
        values = {name: request.form(name).strip()[:_VALUE_CHARS] for name in COLUMNS}
    typed, file, host = request.form("list").encode(), request.file("file"), request.form("domain").strip()
    return _Form(
        act=act,
        data=_without_controls(file if file.strip() else typed),
        host=host,
        sources=sum(map(bool, (typed.strip(), file.strip(), host))),
        values={name: value for name, value in values.items() if value},
        reason=request.form("reason").strip(),
    )


def _without_controls(data: bytes) -> bytes:
    """Return a list without characters that the second form cannot show: what is confirmed is what was checked."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data  # which is refused
    return "".join(each for each in text if each.isprintable() or each in "\t\r\n").encode()


def _typed(text: str) -> str:
    return "" if text == DEFAULT else text


def _result_values(checked: Checked, changed: Sequence[str] | None) -> dict[str, Any]:
    """Return the groups of a checked list as template values. ``changed``: None if nothing was to be changed yet."""
    changes = checked.changes if changed is None else changed
    refused = [(each.line.number, shown(each.line.address, 100), each.text) for each in checked.refused]
    return {
        "checked": checked,
        "is_done": changed is not None,
        "changes": len(changes),
        "unchanged": len(checked.unchanged) + len(checked.changes) - len(changes),
        "reasons": Counter(each.text for each in checked.refused).most_common(),
        "refused": refused[:_LISTED],
        "refused_left": max(0, len(refused) - _LISTED),
        "unknown": [shown_address(each) for each in checked.unknown[:_LISTED]],
        "unknown_count": len(checked.unknown),
    }
