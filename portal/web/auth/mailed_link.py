"""Signing in by mail: no passwords, so none to steal here.

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

from bottle import HTTPResponse, request

from portal.model.errors import LinkInvalid
from portal.model.message import identity, new_id, random_token
from portal.model.schedule import plan_for
from portal.model.text import shown
from portal.stores import SignIn, SignInLimits
from portal.web.pages import Web, sha256

log = logging.getLogger("quarantine.web")

_LIFETIME = timedelta(minutes=15)  # the texts have the plural form of 15 minutes, and sign-in-code.html has the number
_SESSION_SECONDS = 7 * 24 * 3600  # the store ends it earlier when it is not used
_SECRET_OCTETS = 24
_SECRET = re.compile(r"[A-Za-z0-9_-]{32}", re.ASCII)
_ADDRESS_LENGTH = 254  # RFC 5321, 4.5.3.1.3, less the angle brackets
_NOBODY = "nobody@invalid"  # the From of mails that are dropped on sites that have none


class SignInPages:
    """`/sign-in…` and `/sign-out`."""

    def __init__(self, web: Web) -> None:
        self._web = web
        self._store = web.parts.store

    def form(self) -> HTTPResponse:
        """GET /sign-in. A digest's "open my quarantine" brings the address along."""
        return self._web.page("sign-in", address=shown(self._web.query("address"), _ADDRESS_LENGTH))

    def start(self) -> HTTPResponse:
        """POST /sign-in: send link and code to the address if it is ours; the answer never tells."""
        self._web.refuse_foreign()
        address = self._web.form("address").strip()[:_ADDRESS_LENGTH]
        browser, token = self._browser() or random_token(_SECRET_OCTETS), random_token(_SECRET_OCTETS)
        code = f"{secrets.randbelow(10**6):06d}"
        asked, now = address if _is_plain(address) else _NOBODY, self._web.now()
        peer = request.environ.get("REMOTE_ADDR", "")
        # An alias signs its person in; the mail goes to that person's own address.
        recipient = self._web.parts.people.person(asked) or identity(asked)
        person = self._store.person(recipient)
        language = plan_for(self._web.parts.settings.digest, recipient, person.preferences).language
        to = (person.address or address) if self._may_sign_in(recipient) else ""
        sign_in = SignIn(
            token_sha256=sha256(token),
            # A code alone is soon guessed from its hash; together with the browser's secret it is not.
            code_sha256=sha256(browser, code),
            browser_sha256=sha256(browser),
            recipient=recipient,
            client_ip=_client(peer),
            created_at=now,
            expires_at=now + _LIFETIME,
        )
        sent = self._store.start_sign_in(sign_in, SignInLimits(), to, self._mail(to, token, code, language))
        log.info("sign-in asked peer=%s local=%s within_limits=%s", peer, bool(to), sent)
        answer = self._web.see_other("/sign-in/code")
        self._web.set_cookie(answer, "browser", browser, int(_LIFETIME.total_seconds()))
        return answer

    def code_form(self) -> HTTPResponse:
        """GET /sign-in/code."""
        return self._web.page("sign-in-code", wrong=False)

    def use_code(self) -> HTTPResponse:
        """POST /sign-in/code: the code works only in the browser that asked for it."""
        self._web.refuse_foreign()
        browser, code = self._browser(), re.sub(r"\s", "", self._web.form("code"))
        try:
            if browser is None:
                raise LinkInvalid("no sign-in was begun in this browser")
            sign_in = self._store.use_sign_in_code(sha256(browser), sha256(browser, code), self._web.now())
        except LinkInvalid:
            log.warning("sign-in code refused peer=%s", request.environ.get("REMOTE_ADDR"))
            return self._web.page("sign-in-code", 403, wrong=True)
        return self._begin(sign_in)

    def show(self, token: str) -> HTTPResponse:
        """GET /sign-in/TOKEN/: changes nothing. Goes on by itself in the browser that asked."""
        sign_in = self._store.sign_in(sha256(_shaped(token)), self._web.now())
        alone = self._is_browser_of(sign_in) and not self._web.query("done")
        return self._web.page("sign-in-link", recipient=shown(sign_in.recipient), alone=alone, script=alone)

    def use(self, token: str) -> HTTPResponse:
        """POST /sign-in/TOKEN/: pressed by a person, or from the browser that asked."""
        self._web.refuse_foreign()
        hashed, now = sha256(_shaped(token)), self._web.now()
        if not self._is_browser_of(self._store.sign_in(hashed, now)):
            if self._web.form("pressed") != "1":
                return self._web.see_other("./?done=1")
            # A scanner that presses buttons would be signed in, and use up the code with the link.
            self._web.refuse_robots()
        return self._begin(self._store.use_sign_in(hashed, now))

    def sign_out(self) -> HTTPResponse:
        """POST /sign-out."""
        self._web.refuse_foreign()
        session = self._web.cookie("session")
        if session:
            # Without the right token nothing may be done, and then it must not look as if it had been.
            self._web.refuse_old_form(session)
            self._store.end_session(sha256(session))
        answer = self._web.see_other("/sign-in")
        self._web.set_cookie(answer, "session", "", 0)
        return answer

    def _begin(self, sign_in: SignIn) -> HTTPResponse:
        """A new session under a new name, whatever the browser brought along (session fixation)."""
        if not self._may_sign_in(sign_in.recipient):
            raise LinkInvalid("not ours")
        old = self._web.cookie("session")
        if old:
            self._store.end_session(sha256(old))
        session = random_token(_SECRET_OCTETS)
        self._store.start_session(sha256(session), sign_in.recipient, self._web.now())
        log.info("signed in recipient=%s peer=%s", sign_in.recipient, request.environ.get("REMOTE_ADDR"))
        answer = self._web.see_other("/")
        self._web.set_cookie(answer, "session", session, _SESSION_SECONDS)
        self._web.set_cookie(answer, "browser", "", 0)
        return answer

    def _may_sign_in(self, recipient: str) -> bool:
        parts = self._web.parts
        return _is_plain(recipient) and parts.settings.is_local(recipient) and parts.people.is_person(recipient)

    def _browser(self) -> str | None:
        cookie = self._web.cookie("browser")
        return cookie if cookie and _SECRET.fullmatch(cookie) else None

    def _is_browser_of(self, sign_in: SignIn) -> bool:
        browser = self._browser()
        return browser is not None and secrets.compare_digest(sha256(browser), sign_in.browser_sha256)

    def _mail(self, to: str, token: str, code: str, language: str) -> bytes:
        parts, id, now = self._web.parts, new_id(), self._web.now()
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


def _is_plain(address: str) -> bool:
    """Whether this can be a recipient's address; others come near neither the store nor a mail's headers."""
    return (
        address.count("@") == 1 and address.isprintable() and not any(c.isspace() or c in '<>,;:"\\()' for c in address)
    )


def _shaped(token: str) -> str:
    if not _SECRET.fullmatch(token):
        raise LinkInvalid("this is not a sign-in link of ours")
    return token
