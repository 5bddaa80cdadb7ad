"""The preferences page, reached by a digest's link and by a signed-in recipient: when, how, and whether they are told.

Opening it changes nothing. Its forms carry a button each; what was entered wrongly comes back with a sentence at the
field. Only a signed-in recipient can ask for a digest now: a link may be in many hands.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import time, timedelta
from functools import cache
from uuid import UUID

from bottle import HTTPResponse

from portal.mail import languages
from portal.mail.languages import own_name
from portal.model.domains import shown_address
from portal.model.links import Action
from portal.model.message import new_id
from portal.model.schedule import MAX_TIMES, Preferences, Schedule, plan_for, zone_names
from portal.model.text import N_, TAGS, shown
from portal.stores.records import DigestRequest, Person, QueuedMail
from portal.web.auth.session import Sessions
from portal.web.pages import Pages
from portal.web.request import Request

log = logging.getLogger("quarantine.web")

_ASKED_EVERY = timedelta(hours=1)
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

_SCHEDULES = {
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

# What the page says after a change, by the address it was sent on to. Stopping and resuming show in the page itself.
_SAID = {
    "saved": (True, N_("Your choice was saved.")),
    "revoked": (True, N_("The links in all digests sent until now do nothing any more.")),
    "digest": (True, N_("A digest is on its way. It should be in your inbox within a minute or two.")),
    "too-soon": (
        False,
        N_("You asked for a digest less than an hour ago, so none was sent. Look for that one in your inbox."),
    ),
    "nothing": (
        False,
        N_(
            "No digest was sent: nothing new was held, and nothing of your last digest is left. What is held from "
            "earlier is on the start page."
        ),
    ),
}
_ASKED = {DigestRequest.DUE: "digest", DigestRequest.TOO_SOON: "too-soon", DigestRequest.NOTHING: "nothing"}


@dataclass(frozen=True, slots=True)
class Fields:
    """What the form's fields hold: "" is the default. ``wrong`` names those that make no sense, with what they hold."""

    schedule: str
    at: tuple[str, ...]  # `MAX_TIMES` of them
    timezone: str
    language: str
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
        return self.page(request, session.recipient, form_token=session.form_token)

    def act(self, request: Request) -> HTTPResponse:
        """POST /preferences."""
        session = self._sessions.of_form(request)
        return self.change(request, session.recipient, back="/preferences", form_token=session.form_token)

    def page(
        self,
        request: Request,
        recipient: str,
        *,
        form_token: str = "",
        fields: Fields | None = None,
        status: int = 200,
    ) -> HTTPResponse:
        """Return the page of one recipient.

        ``form_token`` is that of their session, "" when they came by a link; ``fields`` is what was entered wrongly.
        """
        person, site = self._store.recipients.get(recipient), self._pages.parts.settings.digest
        usual, plan = plan_for(site, recipient, Preferences()), plan_for(site, recipient, person.preferences)
        fields = fields or _fields_of(person)
        upcoming = plan.next_time(self._pages.now())
        good, said = _SAID.get(request.query("done"), (True, ""))
        language, zone = request.language, plan.zone
        return self._pages.page(
            request,
            "preferences",
            status,
            signed_in=shown_address(recipient) if form_token else None,
            form_token=form_token,
            recipient=shown_address(recipient),
            good=good,
            said=said if status == 200 else "",
            stopped=language.moment(person.stopped_at, zone) if person.stopped_at else "",
            upcoming=language.moment(upcoming, zone) if upcoming else "",
            zone=_words(zone.key),
            fields=fields,
            schedules=_SCHEDULES,
            usual_schedule=_SCHEDULES[usual.schedule],
            usual_at=", ".join(f"{at:%H:%M}" for at in usual.at),
            usual_zone=_words(usual.zone.key),
            usual_language=own_name(usual.language),
            zones=_zones(fields.timezone, language.tag),
            languages=[(tag, own_name(tag)) for tag in TAGS],
        )

    def change(self, request: Request, recipient: str, *, back: str, form_token: str = "") -> HTTPResponse:
        """Do what a posted form of the page asks, then 303 to ``back``, which shows what came of it."""
        wanted, now, done, answer = request.form("change"), self._pages.now(), "", None
        if wanted == "save":
            fields, preferences = _entered(request)
            if fields.wrong:
                return self.page(request, recipient, form_token=form_token, fields=fields, status=400)
            self._save(recipient, preferences)
            done = "saved"
        elif wanted == "stop":
            self._store.recipients.set_digests_stopped(recipient, now)
        elif wanted == "resume":
            self._store.recipients.set_digests_stopped(recipient, None)
        elif wanted == "revoke":
            answer, done = self.revoke(request, recipient), "revoked"
        elif wanted == "digest" and form_token:
            reader = self._pages.parts.people.reader(recipient)
            done = _ASKED[self._store.digests.request(reader, now, now - _ASKED_EVERY)]
        else:
            raise self._pages.notice(
                request, N_("That did not work"), N_("Nothing was chosen. Go back and press one of the buttons."), 400
            )
        log.info("preferences recipient=%s change=%s %s", recipient, wanted, done)
        if answer is not None and not form_token:
            return answer
        return self._pages.see_other(f"{back}?done={done}" if done else back)

    def revoke(self, request: Request, recipient: str) -> HTTPResponse:
        """Make all links sent to a recipient until now invalid.

        Returns the page for somebody who came by one of them: the page that they came from is closed to them now.
        """
        self._store.recipients.revoke_links(recipient, self._pages.now())
        log.info("links revoked recipient=%s", recipient)
        return self._pages.notice(
            request,
            N_("Links revoked"),
            N_("The links in all digests sent to you until now do nothing any more. Your next digest brings new ones."),
            200,
            sign_in=True,
        )

    def unsubscribe(self, recipient: str, digest_id: UUID) -> None:
        """Stop a recipient's digests on their mail program's word (RFC 8058) and tell them once, with a way back:
        programs that read mail have been seen to unsubscribe people who know nothing of it."""
        person, parts, now = self._store.recipients.get(recipient), self._pages.parts, self._pages.now()
        sender, mail = parts.settings.mail.from_address, None
        if sender is not None and person.stopped_at is None and parts.settings.is_local(recipient):
            id = new_id(now)
            made = parts.render.mail(
                "stopped",
                sender=sender,
                to=person.address,
                id=id,
                mark=parts.links.mark("mail", id),
                now=now,
                language=plan_for(parts.settings.digest, recipient, person.preferences).language,
                recipient=shown_address(person.address),
                preferences=parts.links.url(Action.PREFERENCES, digest_id, 0, now),
                portal=f"{parts.settings.public_url}/",
                link_days=parts.links.lifetime.days,
                retention_days=parts.settings.store.retention_days,
            )
            mail = QueuedMail(person.address, made.as_bytes())
        changed = self._store.recipients.set_digests_stopped(recipient, now, mail=mail)
        log.info("preferences recipient=%s change=one-click stopped=%s", recipient, changed)

    def _save(self, recipient: str, preferences: Preferences) -> None:
        """Keep a choice. `never` is kept as stopped, so that resuming brings back the schedule there was."""
        if preferences.schedule == Schedule.NEVER:
            before = self._store.recipients.get(recipient).preferences
            kept = Preferences(before.schedule, preferences.at, preferences.timezone, preferences.language)
            self._store.recipients.set_preferences(recipient, kept)
            self._store.recipients.set_digests_stopped(recipient, self._pages.now())
        else:
            self._store.recipients.set_preferences(recipient, preferences)
            self._store.recipients.set_digests_stopped(recipient, None)


def _fields_of(person: Person) -> Fields:
    """Return the form of what a recipient chose until now."""
    chosen = person.preferences
    at = [f"{each:%H:%M}" for each in chosen.at or ()][:MAX_TIMES]
    schedule = Schedule.NEVER if person.stopped_at else chosen.schedule or ""
    fields = (*at, *[""] * (MAX_TIMES - len(at)))
    return Fields(schedule, fields, chosen.timezone or "", chosen.language or "", {})


def _entered(request: Request) -> tuple[Fields, Preferences]:
    """Return what the posted form holds, and what it means."""
    schedule, timezone, language = (request.form(n).strip() for n in ("schedule", "timezone", "language"))
    at = {f"at-{number}": request.form(f"at-{number}").strip() for number in range(1, MAX_TIMES + 1)}
    wrong, times = {}, set()
    for name, text in at.items():
        try:
            times |= {_time(text)} if text else set()
        except ValueError:
            wrong[name] = shown(text, 20)
    for name, value, known in (
        ("schedule", schedule, tuple(Schedule)),
        ("timezone", timezone, zone_names()),
        ("language", language, TAGS),
    ):
        if value and value not in known:
            wrong[name] = shown(value, 40)
    fields = Fields(schedule, tuple(at.values()), timezone, language, wrong)
    return fields, Preferences(schedule or None, tuple(sorted(times)) or None, timezone or None, language or None)


def _time(text: str) -> time:
    """An hour as `<input type="time">` sends it, or typed where that is a text field."""
    hour, colon, minute = text.partition(":")
    if not colon or not (hour + minute).isascii() or not hour.isdigit() or not minute.isdigit() or len(minute) != 2:
        raise ValueError("not HH:MM")
    return time(int(hour), int(minute))


def _words(zone: str) -> str:
    return zone.replace("_", " ")


@cache
def _offered(tag: str) -> tuple[tuple[str, tuple[tuple[str, str], ...]], ...]:
    """Time zones by area, with what is shown for each. What is left out are other names of the same."""
    by_area: dict[str, list[tuple[str, str]]] = {"UTC": [("UTC", "UTC")], **{area: [] for area in _AREAS}}
    for name in zone_names():
        area, _, place = name.partition("/")
        if place and area in _AREAS:
            by_area[area].append((name, languages.get(tag).place(name)))
    return tuple((area, tuple(sorted(places, key=lambda pair: pair[1]))) for area, places in by_area.items())


def _zones(chosen: str, tag: str) -> Iterable[tuple[str, tuple[tuple[str, str], ...]]]:
    """The time zones to choose from; a chosen one that is not offered stays."""
    offered = _offered(tag)
    there = not chosen or chosen not in zone_names() or any(chosen == name for _, group in offered for name, _ in group)
    return offered if there else ((chosen, ((chosen, _words(chosen)),)), *offered)
