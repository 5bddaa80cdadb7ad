"""The page of the audit in the console: who did what, in the domains that a person may see."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from urllib.parse import urlencode
from uuid import UUID
from zoneinfo import ZoneInfo

from bottle import HTTPResponse

from portal.model.audit import ACTS, COLUMNS, Act, AuditEntry, AuditFilter, person_typed, subject_typed
from portal.model.domains import shown_address
from portal.model.message import EventKind, parse_id
from portal.model.staff import EVERYWHERE
from portal.model.tables import cell
from portal.model.text import N_, shown
from portal.policy.staff import Permission
from portal.web.console import Console, StaffSession
from portal.web.listing import period
from portal.web.pages import Pages
from portal.web.request import Request

PATH = "/admin/audit"
_SIZE = 50
_EXPORTED = 100_000  # entries in a file; the page before it selects fewer
_BATCH = 1_000
_ENDS = "The file ends here. There may be older entries: choose earlier days."
ACT_NAMES: dict[str, str] = {
    Act.SIGNED_IN: N_("Sign-in"),
    Act.SIGNED_OUT: N_("Sign-out"),
    Act.RULE_ADDED: N_("Rule added"),
    Act.RULE_REMOVED: N_("Rule removed"),
    Act.DOMAIN_SET: N_("Domain value changed"),
    Act.ROLE_GIVEN: N_("Role given"),
    Act.ROLE_REMOVED: N_("Role removed"),
    Act.TOKEN_CREATED: N_("API token created"),
    Act.TOKEN_REVOKED: N_("API token revoked"),
    Act.SECOND_FACTOR_SET: N_("Second factor set up"),
    Act.SECOND_FACTOR_RESET: N_("Second factor removed"),
    Act.SECOND_FACTOR_REFUSED: N_("Second factor blocked after wrong codes"),
    Act.RECOVERY_CODE_USED: N_("Recovery code used"),
    Act.PREFERENCES_SET: N_("Preferences changed"),
    Act.DIGESTS_STOPPED: N_("Digests stopped"),
    Act.DIGESTS_RESUMED: N_("Digests resumed"),
    Act.DIGEST_REQUESTED: N_("Digest requested"),
    Act.LINK_SENT: N_("Sign-in link sent"),
    Act.LINKS_REVOKED: N_("Links revoked"),
    Act.RECIPIENT_FORGOTTEN: N_("Recipient's data removed"),
    Act.BODY_READ: N_("Message read"),
    Act.JOB_STARTED: N_("Job started"),
    Act.JOB_CHANGED: N_("Job changed"),
    Act.UNLEARNED: N_("Learning reversed"),
    Act.EXPORTED: N_("Data exported"),
    Act.SCANNED: N_("Message scanned again"),
    Act.PURGED: N_("Old messages removed"),
    Act.IMPORTED: N_("Messages imported"),
    Act.REINDEXED: N_("Database rebuilt"),
    Act.LINK_KEYS_ACCEPTED: N_("Other link keys accepted"),
    EventKind.HELD: N_("Message held"),
    EventKind.ASSIGNED: N_("Recipient assigned"),
    EventKind.REQUESTED: N_("Release requested"),
    EventKind.WITHDRAWN: N_("Release request withdrawn"),
    EventKind.REMINDED: N_("Administrators reminded"),
    EventKind.REFUSED: N_("Release request denied"),
    EventKind.RELEASING: N_("Release started"),
    EventKind.DEFERRED: N_("Release deferred"),
    EventKind.RELEASED: N_("Message released"),
    EventKind.FAILED: N_("Release failed"),
    EventKind.CONFIRMED: N_("Reported as spam and deleted"),
    EventKind.LEARNED_HAM: N_("Learned as wanted"),
    EventKind.LEARNED_SPAM: N_("Learned as spam"),
    EventKind.STOPPED: N_("Release stopped"),
    EventKind.DELETED: N_("Message deleted"),
    EventKind.RESTORED: N_("Deletion undone"),
    EventKind.RAISED: N_("Classified as more dangerous"),
    EventKind.PASSED: N_("Message let through"),
    EventKind.BLOCKED: N_("Message blocked"),
    EventKind.UNBLOCKED: N_("Moved to held messages"),
    EventKind.REANNOUNCED: N_("Put into the next digest again"),
    EventKind.ASKED: N_("Administrator asked"),
    EventKind.DOWNLOADED: N_("Message downloaded"),
}
_TYPED = ("who", "act", "about", "message", "since", "until")
_CHARACTERS = 254


@dataclass(frozen=True, slots=True)
class EntryRow:
    """An entry as the page lists it."""

    at: str
    act: str  # to be translated
    who: str
    via: str
    address: str
    subject: str
    message: str
    detail: str


class AuditPages:
    """`/admin/audit` and `/admin/audit/export`."""

    def __init__(self, pages: Pages, console: Console) -> None:
        self._pages = pages
        self._console = console
        self._staff = pages.parts.staff
        self._audit = pages.parts.store.audit

    def show(self, request: Request, staff: StaffSession) -> HTTPResponse:
        """GET /admin/audit: one page of the entries that match, newest first."""
        zone = self._pages.viewer(request, staff.member.person).zone
        wanted = self._wanted(request.query, staff, zone)
        with self._pages.searching():
            entries = self._audit.list(wanted, _SIZE + 1, parse_id(request.query("before")))
        typed = {name: shown(request.query(name), _CHARACTERS) for name in _TYPED}
        used = {name: value for name, value in typed.items() if value}
        older = {**used, "before": str(entries[_SIZE - 1].id)} if len(entries) > _SIZE else None
        return self._console.page(
            request,
            staff,
            "audit",
            times_in=zone.key,
            typed=typed,
            exported=used,
            acts=sorted(
                ((act, request.language.gettext(ACT_NAMES[act])) for act in ACTS), key=lambda each: each[1].casefold()
            ),
            rows=[_row(request, each, zone) for each in entries[:_SIZE]],
            older=older and f"{PATH}?{urlencode(older)}",
            first=f"{PATH}?{urlencode(used)}" if request.query("before") else "",
        )

    def export(self, request: Request, staff: StaffSession) -> HTTPResponse:
        """POST /admin/audit/export: the entries that match as a file, which is recorded in the audit itself."""
        is_json = request.form("format") == "json"
        zone = self._pages.viewer(request, staff.member.person).zone
        wanted = self._wanted(request.form, staff, zone)
        used = {name: value for name in _TYPED if (value := request.form(name))}
        detail = shown(f"audit {urlencode(used)}".strip(), 500)
        reach = self._staff.reach(staff.member, Permission.READ_AUDIT)
        self._audit.record(*AuditEntry.of_export(self._pages.now(), staff.actor, reach, detail))
        left, before, entries = _EXPORTED, None, list[AuditEntry]()
        with self._pages.searching():
            while left and (page := self._audit.list(wanted, min(left, _BATCH), before)):
                left, before = left - len(page), page[-1].id
                entries += page
        text = _json_lines(entries, is_whole=left > 0) if is_json else _csv(entries, is_whole=left > 0)
        kind, name = ("application/jsonl", "audit.jsonl") if is_json else ("text/csv", "audit.csv")
        headers = {
            "Content-Type": f"{kind}; charset=utf-8",
            "Content-Disposition": f'attachment; filename="{name}"',
        }
        return HTTPResponse(text.encode(errors="backslashreplace"), 200, headers)

    def _wanted(self, typed: Callable[[str], str], staff: StaffSession, zone: ZoneInfo) -> AuditFilter:
        """Return what was typed, in the domains that this person may see. ``typed``: returns the text of a field.

        A malformed message id selects nothing; other values that do not fit are left out.
        """
        who, about, act = (typed(name).strip()[:_CHARACTERS] for name in ("who", "about", "act"))
        domains = self._staff.reach(staff.member, Permission.READ_AUDIT)
        message = typed("message").strip()
        since, until = period(typed("since"), typed("until"), zone)
        found = AuditFilter(
            person=person_typed(who),
            act=act if act in ACTS else "",
            subject=subject_typed(about),
            domains=None if EVERYWHERE in domains else domains,
            since=since,
            until=until,
        )
        return replace(found, message_id=parse_id(message) or UUID(int=0)) if message else found


def _csv(entries: Sequence[AuditEntry], *, is_whole: bool) -> str:
    lines = io.StringIO()
    writer = csv.writer(lines)
    writer.writerow(COLUMNS)
    writer.writerows([cell(value) for value in each.values()] for each in entries)
    if not is_whole:
        writer.writerow([_ENDS])
    return lines.getvalue()


def _json_lines(entries: Sequence[AuditEntry], *, is_whole: bool) -> str:
    """Return one object for each line, as `quarantine audit --json` prints them."""
    values: list[dict[str, str | int | None]] = [dict(zip(COLUMNS, each.values(), strict=True)) for each in entries]
    notes = [] if is_whole else [{"note": _ENDS}]
    return "".join(f"{json.dumps(each, ensure_ascii=False)}\n" for each in (*values, *notes))


def _row(request: Request, entry: AuditEntry, zone: ZoneInfo) -> EntryRow:
    return EntryRow(
        at=request.language.short_moment(entry.at, zone),
        act=ACT_NAMES.get(entry.act, entry.act),
        who=shown_address(entry.actor.name or entry.actor.who),
        via=entry.actor.via,
        address=entry.actor.address,
        subject=shown_address(entry.subject),
        message="" if entry.delivery is None else str(entry.delivery.message_id),
        detail=shown(entry.detail, 300),
    )
