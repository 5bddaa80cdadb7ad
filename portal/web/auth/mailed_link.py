"""Sign in with a mailed link or code. The portal has no passwords, so none can be stolen from it.

The response and its time are the same for every address, so that they do not disclose which recipients exist: a sign-in
mail for an address that may not sign in is composed, queued and dropped. The mail contains a link and, for mailboxes
whose links are opened by scanners, a code. The store keeps only the SHA-256 of these secrets. A pre-session cookie
binds both to the browser that requested them. The link also works in another browser, but only after a button that
shows the address was pressed, so that following a link cannot sign somebody in to another recipient's quarantine
(login CSRF).
"""

from __future__ import annotations

import logging
import re
import secrets
import time
from datetime import timedelta

from bottle import HTTPResponse

from portal.model.domains import shown_address
from portal.model.errors import CodesSuspended, LinkInvalid, SignInInvalid
from portal.model.message import identity, is_address, new_id, random_token
from portal.model.text import shown
from portal.stores.records import QueuedMail, SignIn, SignInLimits
from portal.web.auth.client import client_key
from portal.web.auth.session import Sessions
from portal.web.pages import Pages, sha256
from portal.web.request import Request

log = logging.getLogger("quarantine.web")

_KNOWN_DEVICE = timedelta(days=30)  # after a button of a digest was pressed in a browser
_LIFETIME = timedelta(minutes=15)  # templates: the plural form of 15 in texts, the number itself in sign-in-code.html
# An answer takes a multiple of this: the work for somebody of whom something is stored takes about 1 % longer.
_ANSWER_SECONDS = 0.05
_SECRET_OCTETS = 24
_CODE_DIGITS = 8  # sign-in-code.html has the number, too
_SECRET = re.compile(r"[A-Za-z0-9_-]{32}", re.ASCII)
_ADDRESS_LENGTH = 254  # RFC 5321, 4.5.3.1.3, less the angle brackets
_PLACEHOLDER = "nobody@invalid"  # To of sign-in mails that are dropped, and their From without one
_GUESSING = (
    "A thousand wrong sign-in codes were entered within an hour, for all recipients together. Until an hour has fewer, "
    "no code is accepted; the links in sign-in mails work. The log lines 'sign-in code refused peer=…' name the "
    "clients: block their networks."
)


class MailedLinks:
    """`/sign-in…`."""

    def __init__(self, pages: Pages, sessions: Sessions) -> None:
        self._pages = pages
        self._sessions = sessions
        self._store = pages.parts.store

    def start(self, request: Request) -> HTTPResponse:
        """POST /sign-in: send a link and a code if the address may sign in. The response is always the same."""
        self._pages.check_same_origin(request)
        if not self._pages.parts.settings.sign_in.mailed_link:
            return self._pages.see_other("/sign-in")
        return self.request_mail(request, request.form("address").strip()[:_ADDRESS_LENGTH])

    def request_mail(self, request: Request, address: str, destination: str | None = None) -> HTTPResponse:
        """Send a link and a code to this address if it may sign in, and return the redirect to the form for the code.

        ``destination``: the page to show after signing in, None for the one that this browser opened before. It is
        stored, since the link may be opened in another browser.
        """
        began = time.monotonic()
        response = self._request_mail(request, address, destination)
        time.sleep(_ANSWER_SECONDS - (time.monotonic() - began) % _ANSWER_SECONDS)
        return response

    def _request_mail(self, request: Request, address: str, destination: str | None) -> HTTPResponse:
        browser, token = _browser_secret(request) or random_token(_SECRET_OCTETS), random_token(_SECRET_OCTETS)
        code = f"{secrets.randbelow(10**_CODE_DIGITS):0{_CODE_DIGITS}d}"
        requested_address, now = address if is_address(address) else _PLACEHOLDER, self._pages.now()
        # The address of an alias signs in its person. The mail is sent to that person's own address.
        recipient = self._pages.parts.people.person(requested_address) or identity(requested_address)
        destination = self._sessions.destination(request, recipient) if destination is None else destination
        person = self._store.recipients.get(recipient)
        language = self._pages.parts.domains.plan(recipient, person.preferences).language
        to = (person.address or address) if self._sessions.may_sign_in(recipient) else ""
        sign_in = SignIn(
            token_sha256=sha256(token),
            # Hashed with the browser's secret: the hash of a code alone could be reversed by trying all codes.
            code_sha256=sha256(browser, code),
            browser_sha256=sha256(browser),
            recipient=recipient,
            client_ip=client_key(request.peer),
            created_at=now,
            expires_at=now + _LIFETIME,
            destination=destination,
        )
        sent = self._store.sign_ins.start(
            sign_in,
            SignInLimits(),
            QueuedMail(to, self._mail(to, recipient, token, code, language)),
            self._pages.parts.people.reader(recipient).identities,
        )
        log.info("sign-in requested peer=%s local=%s within_limits=%s", request.peer, bool(to), sent)
        response = self._pages.see_other("/sign-in/code")
        self._pages.set_cookie(response, "browser", browser, int(_LIFETIME.total_seconds()))
        self._sessions.keep_typed_address(response, address)
        return response

    def send_link(self, recipient: str, peer: str, destination: str = "") -> bool:
        """Send a recipient a sign-in link that staff requested. Return False if a rate limit is exceeded.

        It is only in the mail to the recipient's own address. No browser has requested it, so there is no code, and the
        link works after a button is pressed. ``peer``: the client of the staff; ``destination`` as for `request_mail`.
        Raises LinkInvalid if the recipient may not sign in, or gets no mail.
        """
        has_sender = self._pages.parts.domains.of(recipient).from_address is not None
        if not (has_sender and self._sessions.may_sign_in(recipient)):
            raise LinkInvalid("this recipient may not sign in")
        token, now = random_token(_SECRET_OCTETS), self._pages.now()
        person = self._store.recipients.get(recipient)
        language = self._pages.parts.domains.plan(recipient, person.preferences).language
        sign_in = SignIn(
            token_sha256=sha256(token),
            code_sha256=sha256(random_token(_SECRET_OCTETS)),
            browser_sha256=sha256(random_token(_SECRET_OCTETS)),
            recipient=recipient,
            client_ip=client_key(peer),
            created_at=now,
            expires_at=now + _LIFETIME,
            destination=destination,
        )
        mail = QueuedMail(person.address, self._mail(person.address, recipient, token, "", language))
        sent = self._store.sign_ins.start(
            sign_in, SignInLimits(), mail, self._pages.parts.people.reader(recipient).identities
        )
        log.info("sign-in link for recipient=%s peer=%s within_limits=%s", recipient, peer, sent)
        return sent

    def code_form(self, request: Request) -> HTTPResponse:
        """GET /sign-in/code."""
        return self._code_page(request, wrong=False)

    def _code_page(self, request: Request, status: int = 200, *, wrong: bool) -> HTTPResponse:
        address = shown(self._sessions.typed_address(request), _ADDRESS_LENGTH)
        return self._pages.page(request, "sign-in-code", status, wrong=wrong, address=address)

    def use_code(self, request: Request) -> HTTPResponse:
        """POST /sign-in/code: the code works only in the browser that requested it."""
        self._pages.check_same_origin(request)
        browser, code = _browser_secret(request), re.sub(r"\s", "", request.form("code"))
        try:
            if browser is None:
                raise LinkInvalid("no sign-in was started in this browser")
            sign_in = self._store.sign_ins.use_code(sha256(browser), sha256(browser, code), self._pages.now())
        except LinkInvalid as error:
            log.warning("sign-in code refused peer=%s: %s", request.peer, error)
            if isinstance(error, CodesSuspended):
                self._pages.parts.actions.alarm_hourly("somebody is guessing sign-in codes", _GUESSING)
            return self._code_page(request, 403, wrong=True)
        return self._start_session(request, sign_in)

    def show(self, request: Request, token: str) -> HTTPResponse:
        """GET /sign-in/TOKEN/: change nothing. The form submits itself in the browser that requested the link.

        It does so at once in a browser in which a button of a digest was pressed for this recipient lately; others show
        for a moment who is being signed in.
        """
        try:
            sign_in = self._store.sign_ins.get(sha256(_checked_token(token)), self._pages.now())
        except SignInInvalid:
            if self._sessions.current(request):
                return self._pages.see_other("/")  # the link was used in this browser
            raise
        self._pages.check_host(request, sign_in.recipient)
        autosubmit = _is_same_browser(request, sign_in) and not request.query("done") and not request.is_prefetch
        return self._pages.page(
            request,
            "sign-in-link",
            recipient=shown_address(sign_in.recipient),
            alone=autosubmit,
            at_once=autosubmit and self._is_known_device(request, sign_in.recipient),
            script=autosubmit,
        )

    def _is_known_device(self, request: Request, recipient: str) -> bool:
        """Return whether a button was pressed for this recipient in this browser in the last 30 days.

        Earlier presses do not count either if the recipient signed out everywhere since.
        """
        since = self._pages.now() - _KNOWN_DEVICE
        forgotten = self._store.recipients.get(recipient).devices_valid_from
        cookie = request.cookie("device")
        return self._pages.parts.links.knows_device(cookie, recipient, max(since, forgotten or since))

    def use(self, request: Request, token: str) -> HTTPResponse:
        """POST /sign-in/TOKEN/: accept the form from the same browser, or a button pressed by a person."""
        self._pages.check_same_origin(request)
        token_sha256, now = sha256(_checked_token(token)), self._pages.now()
        sign_in = self._store.sign_ins.get(token_sha256, now)
        self._pages.check_host(request, sign_in.recipient)
        if not _is_same_browser(request, sign_in):
            if request.form("pressed") != "1":
                return self._pages.see_other("./?done=1")
            # Otherwise a scanner that presses buttons would be signed in, and the link and its code would be used up.
            self._pages.check_user_gesture(request)
        return self._start_session(request, self._store.sign_ins.use(token_sha256, now))

    def _start_session(self, request: Request, sign_in: SignIn) -> HTTPResponse:
        response = self._sessions.begin(request, sign_in.recipient, sign_in.destination, self._pages.now())
        self._pages.set_cookie(response, "browser", "", 0)
        return response

    def _mail(self, to: str, recipient: str, token: str, code: str, language: str) -> bytes:
        parts, id, now = self._pages.parts, new_id(), self._pages.now()
        policy = parts.domains.of(recipient)
        mail = parts.render.mail(
            "signin",
            sender=policy.from_address or _PLACEHOLDER,
            to=to or _PLACEHOLDER,
            id=id,
            mark=parts.links.mark("mail", id),
            now=now,
            language=language,
            brand=policy.brand,
            url=f"{policy.public_url}/sign-in/{token}/",
            code=f"{code[: _CODE_DIGITS // 2]} {code[_CODE_DIGITS // 2 :]}".strip(),
            public_url=policy.public_url,
            minutes=int(_LIFETIME.total_seconds()) // 60,
        )
        data: bytes = mail.as_bytes()
        return data


def _browser_secret(request: Request) -> str | None:
    """Return the secret in the browser's pre-session cookie, None without a valid one."""
    cookie = request.cookie("browser")
    return cookie if cookie and _SECRET.fullmatch(cookie) else None


def _is_same_browser(request: Request, sign_in: SignIn) -> bool:
    browser = _browser_secret(request)
    return browser is not None and secrets.compare_digest(sha256(browser), sign_in.browser_sha256)


def _checked_token(token: str) -> str:
    if not _SECRET.fullmatch(token):
        raise SignInInvalid("malformed sign-in token")
    return token
