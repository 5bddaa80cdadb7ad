"""The preferences page of a recipient: schedule, time zone and language of digests, opt-out, and revoking links.

It is reached by a digest's link or from a session. Opening it changes nothing. Each form has one button. Invalid fields
are shown again, each with an error text. Only a signed-in recipient can request a digest now, since a link may have
been forwarded to others.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime, time, timedelta
from functools import cache
from uuid import UUID

from bottle import HTTPResponse

from portal.mail import languages
from portal.mail.languages import own_name
from portal.model.audit import Act, AuditEntry
from portal.model.domains import shown_address
from portal.model.links import Action
from portal.model.message import new_id
from portal.model.schedule import MAX_TIMES, NO_PREFERENCES, Plan, Preferences, Schedule, plan_for, zone_names
from portal.model.text import N_, TAGS, shown
from portal.stores.records import DigestRequest, Person, QueuedMail
from portal.web.auth.session import Session, Sessions
from portal.web.pages import Pages
from portal.web.request import Request

log = logging.getLogger("quarantine.web")

_REQUEST_INTERVAL = timedelta(hours=1)
_AREAS = (
    N_("Africa"),
    N_("America"),
    N_("Antarctica"),
    N_("Arctic"),
    N_("Asia"),
    N_("Atlantic"),
    N_("Australia"),
    N_("Europe"),
    N_("Indian"),
    N_("Pacific"),
)

# Schedules by the names of their radio buttons. Further ones are set by the fields under *Other days and times*.
_DEFAULT, _OWN = "default", "own"
_PRESETS = {
    "morning": (Schedule.DAILY, (time(7),), N_("Every morning at %(at)s")),
    "twice": (Schedule.DAILY, (time(7), time(15)), N_("Twice a day, at %(at)s")),
    "weekly": (Schedule.MONDAY, (time(7),), N_("Weekly, on Monday at %(at)s")),
}

SCHEDULES = {
    Schedule.DAILY: N_("Every day"),
    Schedule.WEEKDAYS: N_("Monday to Friday"),
    Schedule.MONDAY: N_("Every Monday"),
    Schedule.TUESDAY: N_("Every Tuesday"),
    Schedule.WEDNESDAY: N_("Every Wednesday"),
    Schedule.THURSDAY: N_("Every Thursday"),
    Schedule.FRIDAY: N_("Every Friday"),
    Schedule.SATURDAY: N_("Every Saturday"),
    Schedule.SUNDAY: N_("Every Sunday"),
    Schedule.NEVER: N_("Never"),
}

# The text after a change, by the query parameter `done`: (success?, text). The page itself shows stopping and resuming.
_RESULT_TEXTS = {
    "saved": (True, N_("Preferences saved.")),
    "revoked": (True, N_("The links in all earlier digests no longer work. Your next digest will contain new links.")),
    "digest": (True, N_("A digest is on its way. It should be in your inbox within two minutes.")),
    "too-soon": (
        False,
        N_("No digest was sent: you requested one less than an hour ago. Check your inbox for it."),
    ),
    "nothing": (
        False,
        N_(
            "No digest was sent: there are no new held messages, and none are left from your last digest. "
            "Older held messages are on the start page."
        ),
    ),
}
_ACTS = {"stop": Act.DIGESTS_STOPPED, "resume": Act.DIGESTS_RESUMED}
_REQUEST_RESULTS = {DigestRequest.DUE: "digest", DigestRequest.TOO_SOON: "too-soon", DigestRequest.NOTHING: "nothing"}


@dataclass(frozen=True, slots=True)
class Fields:
    """Values of the form's fields. "" means the site's default. ``wrong``: the invalid fields, with their values."""

    preset: str  # the radio button
    schedule: str  # "" unless the radio button is _OWN
    at: tuple[str, ...]  # `MAX_TIMES` values, likewise
    timezone: str
    language: str
    notices: bool
    only_wanted: bool
    wrong: dict[str, str]


class PreferencePages:
    """`/preferences`, and `/link/TOKEN/` for the links at a digest's end."""

    def __init__(self, pages: Pages, sessions: Sessions) -> None:
        self._pages = pages
        self._sessions = sessions
        self._store = pages.parts.store

    def show(self, request: Request) -> HTTPResponse:
        """GET /preferences."""
        session = self._sessions.of(request)
        kept = self._sessions.kept_form(request, session, is_shown=request.query("undone") != "")
        fields = _parse_form(kept.get)[0] if kept.get("change") == "save" else None
        return self.page(request, session.recipient, session=session, fields=fields)

    def act(self, request: Request) -> HTTPResponse:
        """POST /preferences."""
        session = self._sessions.of_form(request, "/preferences?undone=1", keeps=True)
        return self.change(request, session.recipient, back="/preferences", session=session)

    def page(
        self,
        request: Request,
        recipient: str,
        *,
        session: Session | None = None,
        fields: Fields | None = None,
        status: int = 200,
    ) -> HTTPResponse:
        """Return the page of one recipient.

        ``session``: None if the page was reached by a link. ``fields``: rejected input to show again.
        """
        person, domains = self._store.recipients.get(recipient), self._pages.parts.domains
        usual, plan = domains.plan(recipient, NO_PREFERENCES), domains.plan(recipient, person.preferences)
        fields = fields or _fields_of(person, plan)
        upcoming = plan.next_time(self._pages.now())
        good, result_text = _RESULT_TEXTS.get(request.query("done"), (True, ""))
        language, zone = request.language, plan.zone
        live, live_until = self._live_links(person)
        all_zones = bool(request.query("zones")) or "timezone" in fields.wrong
        return self._pages.page(
            request,
            "preferences",
            status,
            signed_in=shown_address(recipient) if session else None,
            form_token=session.form_token if session else "",
            recipient=shown_address(recipient),
            good=good,
            said=result_text if status == 200 else "",
            was_signed_out=session is not None and request.only_reads and request.query("undone") != "",
            stopped=language.moment(person.stopped_at, zone) if person.stopped_at else "",
            upcoming=language.moment(upcoming, zone) if upcoming else "",
            may_be_put_off=plan.only_wanted,
            zone=_zone_label(zone.key),
            fields=fields,
            presets={name: (text, language.times_of_day(at)) for name, (_, at, text) in _PRESETS.items()},
            schedules={name: text for name, text in SCHEDULES.items() if name is not Schedule.NEVER},
            usual_schedule=SCHEDULES[usual.schedule],
            usual_at=language.times_of_day(usual.at),
            is_usual=usual.schedule is not Schedule.NEVER,
            portal=self._pages.parts.domains.of(recipient).public_url,
            usual_zone=_zone_label(usual.zone.key),
            usual_language=own_name(usual.language),
            zones=_zones(fields.timezone, language.tag) if all_zones else (),
            zone_name=zone.key,
            live=live,
            live_until=language.moment(live_until, zone) if live_until else "",
            languages=[(tag, own_name(tag)) for tag in TAGS],
        )

    def _live_links(self, person: Person) -> tuple[int, datetime | None]:
        """Return how many digests and notices of a recipient have links that work, and until when the newest do."""
        lifetime = self._pages.parts.links.lifetime
        since = max(filter(None, [self._pages.now() - lifetime, person.links_valid_from]))
        count, newest = self._store.digests.issued_since(person.recipient, since)
        return count, newest and newest + lifetime

    def change(self, request: Request, recipient: str, *, back: str, session: Session | None = None) -> HTTPResponse:
        """Apply a posted form of the page, then redirect (303) to ``back``, which shows the result."""
        change, now, done, response = request.form("change"), self._pages.now(), "", None
        via = "portal" if session else "link"
        if change == "save":
            fields, preferences = _parse_form(request.form)
            if fields.wrong:
                return self.page(request, recipient, session=session, fields=fields, status=400)
            self._save(request, recipient, preferences, via=via)
            done = "saved"
        elif change == "stop":
            self._store.recipients.set_digests_stopped(recipient, now)
        elif change == "resume":
            self._store.recipients.set_digests_stopped(recipient, None)
        elif change == "revoke":
            response, done = self.revoke(request, recipient, via=via), "revoked"
            if session and request.form("sign-out"):
                self._sessions.end_all(request, recipient)
                return self._sessions.signed_out(response)
        elif change == "digest" and session:
            reader = self._pages.parts.people.reader(recipient)
            result = self._store.digests.request(reader, now, now - _REQUEST_INTERVAL)
            if result is DigestRequest.DUE:
                self._pages.record(request, Act.DIGEST_REQUESTED, recipient, via=via)
            done = _REQUEST_RESULTS[result]
        else:
            raise self._pages.notice(
                request, N_("No action selected"), N_("Go back and press one of the buttons."), 400
            )
        if change in _ACTS:
            self._pages.record(request, _ACTS[change], recipient, via=via)
        log.info("preferences recipient=%s change=%s %s", recipient, change, done)
        if response is not None and not session:
            return response
        return self._pages.see_other(f"{back}?done={done}" if done else back)

    def revoke(self, request: Request, recipient: str, *, via: str) -> HTTPResponse:
        """Revoke all links sent to a recipient until now.

        Returns a page for a browser that used one of these links, since that link no longer opens the previous page.
        """
        self._store.recipients.revoke_links(recipient, self._pages.now())
        self._pages.record(request, Act.LINKS_REVOKED, recipient, via=via)
        log.info("links revoked recipient=%s", recipient)
        return self._pages.notice(
            request,
            N_("Links revoked"),
            N_("The links in all earlier digests no longer work. Your next digest will contain new links."),
            200,
            sign_in=True,
        )

    def unsubscribe(self, request: Request, recipient: str, digest_id: UUID) -> None:
        """Stop a recipient's digests at the request of a mail program (RFC 8058).

        The recipient is notified once, with a link to resume: mail programs have been seen to unsubscribe recipients
        without their knowledge.
        """
        person, parts, now = self._store.recipients.get(recipient), self._pages.parts, self._pages.now()
        policy, mail = parts.domains.of(recipient), None
        if policy.from_address is not None and person.stopped_at is None and parts.settings.is_local(recipient):
            id = new_id(now)
            rendered = parts.render.mail(
                "stopped",
                sender=policy.from_address,
                to=person.address,
                id=id,
                mark=parts.links.mark("mail", id),
                now=now,
                language=parts.domains.plan(recipient, person.preferences).language,
                brand=policy.brand,
                recipient=shown_address(person.address),
                preferences=parts.links.at(policy.public_url).url(Action.PREFERENCES, digest_id, 0, now),
                portal=f"{policy.public_url}/",
                link_days=parts.links.lifetime.days,
                retention_days=min(policy.retention_days.values()),
            )
            mail = QueuedMail(person.address, rendered.as_bytes())
        if person.stopped_at is None:  # first: if it fails, the repeated request still finds them not stopped
            self._pages.record(request, Act.DIGESTS_STOPPED, recipient, via="one-click")
        changed = self._store.recipients.set_digests_stopped(recipient, now, mail=mail)
        log.info("preferences recipient=%s change=one-click stopped=%s", recipient, changed)

    def _save(self, request: Request, recipient: str, chosen: Preferences, *, via: str) -> None:
        """Store the preferences of the form. `never` is stored as an opt-out, so that resuming restores the previous
        schedule.

        Notices remain the default's choice until the box is checked or cleared. Preferences that the form does not have
        are kept, also if another page or process changes them at the same moment.
        """
        now, usual = self._pages.now(), self._pages.parts.domains.of(recipient)

        def after(person: Person) -> Person:
            before = person.preferences
            kept = replace(chosen, monthly_report=before.monthly_report)
            if chosen.notices == plan_for(usual, recipient, before).notices:
                kept = replace(kept, notices=before.notices)
            if chosen.schedule != Schedule.NEVER:
                return replace(person, preferences=kept, stopped_at=None)
            kept = replace(kept, schedule=before.schedule, at=chosen.at or before.at)
            return replace(person, preferences=kept, stopped_at=person.stopped_at or now)

        def entry(person: Person) -> AuditEntry:
            return self._pages.audit_entry(request, Act.PREFERENCES_SET, recipient, via=via)

        self._store.recipients.change([recipient], after, entry)


def _fields_of(person: Person, plan: Plan) -> Fields:
    """Return the form with the recipient's present preferences."""
    chosen = person.preferences
    kept = _OWN if chosen.schedule or chosen.at else _DEFAULT
    for name, (schedule, hours, _) in _PRESETS.items():
        kept = name if (chosen.schedule, chosen.at) == (schedule, hours) else kept
    at = [f"{each:%H:%M}" for each in chosen.at or ()][:MAX_TIMES] if kept == _OWN else []
    return Fields(
        preset=Schedule.NEVER if person.stopped_at else kept,
        schedule=(chosen.schedule or "") if kept == _OWN else "",
        at=(*at, *[""] * (MAX_TIMES - len(at))),
        timezone=chosen.timezone or "",
        language=chosen.language or "",
        notices=plan.notices,
        only_wanted=plan.only_wanted,
        wrong={},
    )


def _parse_form(field: Callable[[str], str]) -> tuple[Fields, Preferences]:
    """Return the values of a posted form, and the preferences parsed from them. ``field``: returns a value by name."""
    preset, schedule, timezone, language = (field(n).strip() for n in ("preset", "schedule", "timezone", "language"))
    at = {f"at-{number}": field(f"at-{number}").strip() for number in range(1, MAX_TIMES + 1)}
    # Somebody who fills in fields that were empty means them, whatever radio button is still checked.
    is_own = preset not in (_DEFAULT, Schedule.NEVER, *_PRESETS)
    if not is_own and not field("own"):
        is_own = bool(schedule or any(at.values()))
    invalid, times = {}, set()
    for name, text in at.items() if is_own else ():
        try:
            times |= {_parse_time(text)} if text else set()
        except ValueError:
            invalid[name] = shown(text, 20)
    for name, value, known in (
        ("schedule", schedule if is_own else "", tuple(Schedule)),
        ("timezone", timezone, zone_names()),
        ("language", language, TAGS),
    ):
        if value and value not in known:
            invalid[name] = shown(value, 40)
    shown_preset, notices, only_wanted = (
        _OWN if is_own else preset,
        bool(field("notices")),
        bool(field("only-wanted")),
    )
    fields = Fields(shown_preset, schedule, tuple(at.values()), timezone, language, notices, only_wanted, invalid)
    days: str | None
    days, hours = (schedule or None, tuple(sorted(times)) or None) if is_own else (None, None)
    if not is_own and preset == Schedule.NEVER:
        days = Schedule.NEVER
    elif not is_own and preset in _PRESETS:
        days, hours, _ = _PRESETS[preset]
    chosen = Preferences(days, hours, timezone or None, language or None, notices, only_wanted=only_wanted or None)
    return fields, chosen


def _parse_time(text: str) -> time:
    """Parse a time as `<input type="time">` sends it, or as typed into a text field. Raises ValueError."""
    hour, colon, minute = text.partition(":")
    if not colon or not (hour + minute).isascii() or not hour.isdigit() or not minute.isdigit() or len(minute) != 2:
        raise ValueError("not HH:MM")
    return time(int(hour), int(minute))


def _zone_label(zone: str) -> str:
    return zone.replace("_", " ")


@cache
def _zones_by_area(tag: str) -> tuple[tuple[str, tuple[tuple[str, str], ...]], ...]:
    """Return the time zones by area, each with its label. Names outside of the areas are aliases and left out."""
    by_area: dict[str, list[tuple[str, str]]] = {"UTC": [("UTC", "UTC")], **{area: [] for area in _AREAS}}
    for name in zone_names():
        area, _, place = name.partition("/")
        if place and area in _AREAS:
            by_area[area].append((name, languages.get(tag).place(name)))
    return tuple((area, tuple(sorted(places, key=lambda pair: pair[1]))) for area, places in by_area.items())


def _zones(chosen: str, tag: str) -> Iterable[tuple[str, tuple[tuple[str, str], ...]]]:
    """Return the time zones to choose from. The chosen one is added if it is not among them."""
    zones = _zones_by_area(tag)
    is_offered = (
        not chosen or chosen not in zone_names() or any(chosen == name for _, group in zones for name, _ in group)
    )
    return zones if is_offered else ((chosen, ((chosen, _zone_label(chosen)),)), *zones)
