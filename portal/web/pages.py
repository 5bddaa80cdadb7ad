"""What all pages share: the mount point, answers and their headers, cookies, and who may post here.

Addresses are built from ``public_url`` alone, never from the request's Host (OWASP Forgot Password cheat sheet).
Redirects are 303 with a path, no scheme and host: Bottle's own build them from the request, and Chromium blocks
a form's redirect to another scheme or host under ``form-action 'self'``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import unquote, urlsplit
from uuid import UUID
from zoneinfo import ZoneInfo

from bottle import FormsDict, HTTPError, HTTPResponse, request

from portal import __version__
from portal.assemble import Parts
from portal.mail.languages import Language, negotiated
from portal.model.message import Actor, Delivery, Message, State, Tier
from portal.model.reasons import Sender, explain, sender_shown, why
from portal.model.schedule import Preferences, plan_for
from portal.model.text import N_, shown

_SYMBOLS = 60  # shown of one mail
_LANGUAGE = "quarantine.language"  # of the request, in its environ
BY_NAME = "recipient:"  # with a reader's identity: an actor who reads under another name, or with others
LOOPBACK_HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})

# Pages load their own style, script and icon, send forms to themselves and are framed by nobody.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; font-src 'self'; connect-src 'self'; "
    "frame-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'"
)
_DEFAULT_HEADERS = (
    ("Content-Security-Policy", _POLICY),
    ("X-Content-Type-Options", "nosniff"),
    # no-referrer would make the Origin of our own forms "null", same-origin would put tokens into access logs.
    ("Referrer-Policy", "strict-origin"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("X-Robots-Tag", "noindex, nofollow, noarchive"),
    ("Cache-Control", "no-store"),
)
_HSTS = ("Strict-Transport-Security", "max-age=31536000")


@dataclass(frozen=True, slots=True)
class Row:
    """A delivery as pages show it to its recipient: cleaned, in words, without anyone else's data."""

    id: UUID
    name: str  # in addresses of pages
    sender: Sender
    subject: str
    held: str
    reasons: list[str]
    dangerous: bool
    state: State
    state_at: str
    reason: str  # why it is held again
    declined: bool  # whether that reason is an administrator's answer to a request
    size: str
    mailbox: str = ""  # the alias or role mailbox it is for; "" when it is for the reader's own address
    by: str = ""  # who of a role mailbox's readers brought it into this state


class Web:
    """The parts, and how this site's pages are answered."""

    def __init__(self, parts: Parts) -> None:
        url = urlsplit(parts.settings.public_url)
        self.parts = parts
        self.root = url.path.rstrip("/")  # as it stands in addresses
        self.mount = unquote(self.root).encode().decode("latin-1")  # as it stands in PATH_INFO (PEP 3333)
        self.origin = _origin(parts.settings.public_url)
        self.https = url.scheme == "https"
        # Browsers keep __Host- cookies on https and, tried with Chromium and Firefox, on loopback http.
        self.secure_cookies = self.https or url.hostname in LOOPBACK_HOSTS
        self._zone = ZoneInfo(parts.settings.digest.timezone)
        self.default_headers = [*_DEFAULT_HEADERS, *([_HSTS] if self.https else [])]

    def now(self) -> datetime:
        """The current time; tests turn this clock."""
        return self.parts.acts.now()

    # ---- answers

    def page(self, name: str, status: int = 200, **values: Any) -> HTTPResponse:
        """The page ``templates/web/NAME.html``."""
        values = {"signed_in": None, "form_token": "", "script": False, **values}
        html = self.parts.render.page(name, language=self.language.tag, root=self.root, version=__version__, **values)
        return HTTPResponse(html.encode(), status, {"Content-Type": "text/html; charset=utf-8"})

    def notice(self, title: str, text: str, status: int, *, sign_in: bool = False, **headers: str) -> HTTPResponse:
        """A page that says one thing and what to do about it; both are translated here."""
        answer = self.page("notice", status, title=title, text=text, sign_in=sign_in)
        for header, value in headers.items():
            answer.set_header(header.replace("_", "-"), value)
        return answer

    def see_other(self, path: str) -> HTTPResponse:
        """303 to a path below the mount point, or (``./…``) relative to this page."""
        return HTTPResponse(b"", 303, {"Location": path if path.startswith("./") else self.root + path})

    # ---- the request

    def form(self, name: str) -> str:
        """A field of the posted form, ``""`` when it is not there. Raises 400 for what is no form."""
        value: str = self._forms().getunicode(name) or ""
        return value

    def all_of_form(self, name: str) -> list[str]:
        """All fields of the posted form that have this name. Raises 400 for what is no form."""
        values: list[str] = self._forms().getall(name)
        return values

    def _forms(self) -> FormsDict:
        try:
            return request.forms
        except (ValueError, LookupError) as error:
            # Bottle stumbles over a Content-Type that is none, and over a charset that there is not: not our fault.
            raise HTTPError(400) from error

    def query(self, name: str) -> str:
        """A parameter of the address, ``""`` when it is not there."""
        value: str = request.query.getunicode(name) or ""
        return value

    def actor(self, via: str, delivery: Delivery, reader: str) -> Actor:
        """The person at the other end, for the history; by name where it might be somebody else as well."""
        own = reader == delivery.recipient and not self.parts.people.is_role(delivery.recipient)
        who = "recipient" if own else f"{BY_NAME}{reader}"
        return Actor(who, via, request.environ.get("REMOTE_ADDR", ""))

    def refuse_foreign(self) -> None:
        """Raise 403 when a page of another site made the browser send this form.

        Origin decides (Fetch standard, "origin header"); old browsers that leave it away are told by
        Sec-Fetch-Site, and what has neither is left to the token or cookie it carries.
        """
        origin = request.environ.get("HTTP_ORIGIN")
        site = request.environ.get("HTTP_SEC_FETCH_SITE")
        if origin == self.origin or (origin is None and site in (None, "same-origin", "none")):
            return
        raise self.notice(
            N_("This came from another site"),
            N_(
                "The form was not sent from our own page, so nothing was done. Open the link in your mail again, or "
                "open this portal by its usual address."
            ),
            403,
        )

    def refuse_old_form(self, session: str) -> None:
        """Raise 403 unless the form carries the anti-forgery token of this session."""
        if not self.parts.links.form_token_fits(session, self.form("form_token")):
            raise self.notice(
                N_("This form is from an earlier session"),
                N_("Nothing was done. Go back, load the page again and press the button once more."),
                403,
            )

    # ---- whom a page speaks to

    def speak_to(self, recipient: str, preferences: Preferences) -> None:
        """From here on this request's pages are for a recipient, in the language that is theirs."""
        request.environ[_LANGUAGE] = plan_for(self.parts.settings.digest, recipient, preferences).language

    @property
    def language(self) -> Language:
        """The language of this request's pages: the recipient's once known, until then the browser's."""
        tag = request.environ.get(_LANGUAGE) or negotiated(
            request.environ.get("HTTP_ACCEPT_LANGUAGE", ""), self.parts.settings.digest.language
        )
        return self.parts.render.speaks(tag)

    def pressed_by_a_person(self) -> bool:
        """Whether the browser says that a person made it send this form.

        Chromium and Firefox mark with Sec-Fetch-User what a person did and not what a script did (Fetch Metadata,
        2.4). Safari may leave that away: of others Sec-Fetch-Site is enough, which what is no browser does not send.
        To plain http beyond loopback browsers send none of these; there everybody counts as a person.
        """
        sent = request.environ
        if not self.secure_cookies or sent.get("HTTP_SEC_FETCH_USER") == "?1":
            return True
        marks = "HTTP_SEC_CH_UA" in sent or "Firefox/" in sent.get("HTTP_USER_AGENT", "")
        return "HTTP_SEC_FETCH_SITE" in sent and not marks

    def refuse_robots(self) -> None:
        """Raise 403 unless a person pressed. Signed in, nobody is asked for that."""
        if not self.pressed_by_a_person():
            raise self.notice(
                N_("This needs a newer browser, or signing in"),
                N_(
                    "Your browser does not say whether a person pressed the button, so nothing was done. Sign in to do "
                    "it there, or open the link in a newer browser."
                ),
                403,
                sign_in=True,
            )

    # ---- cookies

    def cookie(self, name: str) -> str | None:
        """A cookie of ours, unverified.

        Read by hand: the standard library stops at the first cookie it dislikes, and a webmail on the same host
        may well have set one.
        """
        wanted = self._cookie_name(name)
        for pair in request.environ.get("HTTP_COOKIE", "").split(";"):
            key, _, value = pair.strip().partition("=")
            if key == wanted:
                text: str = value
                return text
        return None

    def set_cookie(self, answer: HTTPResponse, name: str, value: str, max_age_seconds: int) -> None:
        """Set a cookie of ours; an age of 0 removes it."""
        answer.set_cookie(
            self._cookie_name(name),
            value,
            path="/",
            max_age=max_age_seconds,
            secure=self.secure_cookies,
            httponly=True,
            samesite="lax",
        )

    def _cookie_name(self, name: str) -> str:
        # The prefix makes browsers refuse such a cookie from other hosts and plain http (RFC 6265bis, 4.1.3.2).
        return f"{'__Host-' if self.secure_cookies else ''}quarantine-{name}"

    # ---- values for templates

    def when(self, at: datetime, zone: ZoneInfo | None = None) -> str:
        """A moment in a time zone, else the site's, in words."""
        return self.language.moment(at, zone or self._zone)

    def row(self, delivery: Delivery, reader: str) -> Row:
        """A delivery for a template, as one who reads it sees it."""
        message = delivery.message
        role = self.parts.people.is_role(delivery.recipient)
        other = role or reader != delivery.recipient
        return Row(
            id=message.id,
            name=f"{message.id}.{delivery.number}" if other else str(message.id),
            sender=sender_shown(message),
            subject=shown(message.subject, 200),
            held=self.when(message.held_at),
            reasons=why(message),
            dangerous=message.tier is Tier.DANGEROUS,
            state=delivery.state,
            state_at=self.when(delivery.state_at),
            reason=shown(delivery.reason, 300),
            declined=bool(delivery.reason) and delivery.state is State.HELD and self._declined(delivery),
            size=self.language.size(message.size_bytes),
            mailbox=shown(delivery.address) if other else "",
            by=self._by(delivery) if role else "",
        )

    def _by(self, delivery: Delivery) -> str:
        """Which reader brought a role mailbox's delivery into its state; "" when none did."""
        what = {State.RELEASED: State.RELEASING.value}.get(delivery.state, delivery.state.value)
        events = self.parts.store.history(delivery.id, delivery.number)
        return next((by_name(event.actor) for event in reversed(events) if event.what == what), "")

    def _declined(self, delivery: Delivery) -> bool:
        """Whether its reason is an administrator's word: after a request, an operator's release may have failed."""
        events = self.parts.store.history(delivery.id, delivery.number)
        return next((e.what for e in reversed(events) if e.what in ("refused", "failed", "stopped")), "") == "refused"

    def findings(self, message: Message) -> dict[str, Any]:
        """What Rspamd found, the weightiest first, for the template's ``findings``: score, and symbols in words."""
        symbols = sorted(message.symbols, key=lambda symbol: (-abs(symbol.score), symbol.name))
        return {
            "score": "" if message.score is None else self.language.score(message.score),
            "symbols": [(shown(s.name, 80), self.language.score(s.score), explain(s)) for s in symbols[:_SYMBOLS]],
        }


def by_name(actor: Actor) -> str:
    """The reader who acted, where they are known by name, else ""."""
    return shown(actor.who.removeprefix(BY_NAME)) if actor.who.startswith(BY_NAME) else ""


def json_answer(status: int, value: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> HTTPResponse:
    """An answer for machines."""
    body = json.dumps(value).encode() + b"\n"
    return HTTPResponse(body, status, {"Content-Type": "application/json", **(headers or {})})


def sha256(*words: str) -> bytes:
    """What the store keeps of a secret."""
    return hashlib.sha256(" ".join(words).encode()).digest()


def _origin(url: str) -> str:
    """An address's origin as browsers write it (RFC 6454, 6.2): lower case, the default port left out."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    name = f"[{host}]" if ":" in host else host.encode("idna").decode("ascii")
    port = "" if parts.port in (None, {"http": 80, "https": 443}[parts.scheme]) else f":{parts.port}"
    return f"{parts.scheme}://{name}{port}"
