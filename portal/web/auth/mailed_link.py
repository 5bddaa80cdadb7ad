"""Sign in with a mailed link or code. There are no passwords, so none can be stolen here.

Whoever asks gets the same answer in the same time, whatever the address: a mail for an address that is not ours is
composed, queued and dropped. The mail carries a link and, for mailboxes whose links scanners open, a code. The
secrets are kept as SHA-256 alone; a pre-session cookie binds both to the browser that asked. The link works in
another browser as well, after a press on a button that names the address: so nobody is signed in to a stranger's
quarantine by following a link (login CSRF).
"""

from __future__ import annotations

import logging
import re
import secrets
from datetime import timedelta
from ipaddress import IPv6Address, IPv6Network, ip_address

from bottle import HTTPResponse

from portal.model.domains import shown_address
from portal.model.errors import LinkInvalid
from portal.model.message import identity, new_id, random_token
from portal.model.schedule import plan_for
from portal.model.text import shown
from portal.stores.records import QueuedMail, SignIn, SignInLimits
from portal.web.auth.session import Sessions, is_address
from portal.web.pages import Pages, sha256
from portal.web.request import Request

log = logging.getLogger("quarantine.web")

_LIFETIME = timedelta(minutes=15)  # the texts have the plural form of 15 minutes, and sign-in-code.html has the number
_SECRET_OCTETS = 24
_SECRET = re.compile(r"[A-Za-z0-9_-]{32}", re.ASCII)
_ADDRESS_LENGTH = 254  # RFC 5321, 4.5.3.1.3, less the angle brackets
_NOBODY = "nobody@invalid"  # the From of mails that are dropped on sites that have none


class MailedLinks:
    """`/sign-in…`."""

    def __init__(self, pages: Pages, sessions: Sessions) -> None:
        self._pages = pages
        self._sessions = sessions
        self._store = pages.parts.store

    def form(self, request: Request) -> HTTPResponse:
        """GET /sign-in. A digest's "open my quarantine" brings the address along."""
        return self._pages.page(request, "sign-in", address=shown(request.query("address"), _ADDRESS_LENGTH))

    def start(self, request: Request) -> HTTPResponse:
        """POST /sign-in: send link and code to the address if it is ours; the answer never tells."""
        self._pages.refuse_foreign(request)
        address = request.form("address").strip()[:_ADDRESS_LENGTH]
        browser, token = _browser(request) or random_token(_SECRET_OCTETS), random_token(_SECRET_OCTETS)
        code = f"{secrets.randbelow(10**6):06d}"
        asked, now = address if is_address(address) else _NOBODY, self._pages.now()
        # An alias signs its person in; the mail goes to that person's own address.
        recipient = self._pages.parts.people.person(asked) or identity(asked)
        person = self._store.recipients.get(recipient)
        language = plan_for(self._pages.parts.settings.digest, recipient, person.preferences).language
        to = (person.address or address) if self._sessions.may_sign_in(recipient) else ""
        sign_in = SignIn(
            token_sha256=sha256(token),
            # A code alone is soon guessed from its hash; together with the browser's secret it is not.
            code_sha256=sha256(browser, code),
            browser_sha256=sha256(browser),
            recipient=recipient,
            client_ip=_client(request.peer),
            created_at=now,
            expires_at=now + _LIFETIME,
        )
        sent = self._store.sign_ins.start(
            sign_in, SignInLimits(), QueuedMail(to, self._mail(to, token, code, language))
        )
        log.info("sign-in asked peer=%s local=%s within_limits=%s", request.peer, bool(to), sent)
        answer = self._pages.see_other("/sign-in/code")
        self._pages.set_cookie(answer, "browser", browser, int(_LIFETIME.total_seconds()))
        return answer

    def code_form(self, request: Request) -> HTTPResponse:
        """GET /sign-in/code."""
        return self._pages.page(request, "sign-in-code", wrong=False)

    def use_code(self, request: Request) -> HTTPResponse:
        """POST /sign-in/code: the code works only in the browser that asked for it."""
        self._pages.refuse_foreign(request)
        browser, code = _browser(request), re.sub(r"\s", "", request.form("code"))
        try:
            if browser is None:
                raise LinkInvalid("no sign-in was begun in this browser")
            sign_in = self._store.sign_ins.use_code(sha256(browser), sha256(browser, code), self._pages.now())
        except LinkInvalid:
            log.warning("sign-in code refused peer=%s", request.peer)
            return self._pages.page(request, "sign-in-code", 403, wrong=True)
        return self._begin(request, sign_in)

    def show(self, request: Request, token: str) -> HTTPResponse:
        """GET /sign-in/TOKEN/: changes nothing. Goes on by itself in the browser that asked."""
        sign_in = self._store.sign_ins.get(sha256(_shaped(token)), self._pages.now())
        alone = _is_browser_of(request, sign_in) and not request.query("done")
        return self._pages.page(
            request, "sign-in-link", recipient=shown_address(sign_in.recipient), alone=alone, script=alone
        )

    def use(self, request: Request, token: str) -> HTTPResponse:
        """POST /sign-in/TOKEN/: pressed by a person, or from the browser that asked."""
        self._pages.refuse_foreign(request)
        hashed, now = sha256(_shaped(token)), self._pages.now()
        if not _is_browser_of(request, self._store.sign_ins.get(hashed, now)):
            if request.form("pressed") != "1":
                return self._pages.see_other("./?done=1")
            # A scanner that presses buttons would be signed in, and use up the code with the link.
            self._pages.refuse_robots(request)
        return self._begin(request, self._store.sign_ins.use(hashed, now))

    def _begin(self, request: Request, sign_in: SignIn) -> HTTPResponse:
        answer = self._sessions.begin(request, sign_in.recipient)
        self._pages.set_cookie(answer, "browser", "", 0)
        return answer

    def _mail(self, to: str, token: str, code: str, language: str) -> bytes:
        parts, id, now = self._pages.parts, new_id(), self._pages.now()
        mail = parts.render.mail(
            "signin",
            sender=parts.settings.mail.from_address or _NOBODY,
            to=to or _NOBODY,
            id=id,
            mark=parts.links.mark("mail", id),
            now=now,
            language=language,
            url=f"{parts.settings.public_url}/sign-in/{token}/",
            code=f"{code[:3]} {code[3:]}",
            public_url=parts.settings.public_url,
            minutes=int(_LIFETIME.total_seconds()) // 60,
        )
        data: bytes = mail.as_bytes()
        return data


def _client(peer: str) -> str:
    """Whom the limits take for one client. Of IPv6 the first 64 bits: a host makes up the others as it likes
    (RFC 4862), so that a limit for each address would be none."""
    try:
        address = ip_address(peer)
    except ValueError:
        return peer
    if not isinstance(address, IPv6Address):
        return peer
    if address.ipv4_mapped:
        return str(address.ipv4_mapped)
    return str(IPv6Network((int(address), 64), strict=False))


def _browser(request: Request) -> str | None:
    """Return the secret of the browser that asked for a sign-in mail."""
    cookie = request.cookie("browser")
    return cookie if cookie and _SECRET.fullmatch(cookie) else None


def _is_browser_of(request: Request, sign_in: SignIn) -> bool:
    browser = _browser(request)
    return browser is not None and secrets.compare_digest(sha256(browser), sign_in.browser_sha256)


def _shaped(token: str) -> str:
    if not _SECRET.fullmatch(token):
        raise LinkInvalid("this is not a sign-in link of ours")
    return token
