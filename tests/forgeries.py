"""Forgeries of what the portal signs: random ones, changed ones, and ones that are valid in another place.

The methods of `Forger` return a kind of forgery and a text that must not be accepted. The functions try many and return
how many of each kind; none may be accepted.
"""

from __future__ import annotations

import string
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields
from datetime import datetime, timedelta
from random import Random
from urllib.parse import quote
from uuid import uuid4

from portal.model.errors import CodesSuspended, LinkExpired, LinkInvalid, SignInInvalid
from portal.model.links import Action, Links
from portal.model.message import DeliveryId, State, new_id, random_token
from portal.model.staff import EVERYWHERE, Grant, Role
from portal.model.token import Scope
from portal.policy.tokens import TokenRequest
from portal.stores import Store
from portal.stores.records import QueuedMail, SignIn, SignInLimits
from portal.web.pages import sha256
from tests import builders
from tests.builders import ALICE, BOB, BY_OPERATOR
from tests.web_client import Site

_ALPHABET = string.ascii_letters + string.digits + "-_"
_PURPOSES = ("device", "form", "trial", "mark", "session", "link", "")
_SIGN_IN = ("/sign-in", "/sign-in?ended=yes", "/sign-in?ended=form", "/sign-in?ended=kept")
_QUARTER = timedelta(minutes=15)
_LINKS = Links([b"o" * 40, b"n" * 40], "https://mail.example.org/quarantine", timedelta(days=14))
Forgery = tuple[str, str]


class Forger:
    """Forges for a portal whose links, cookies and forms it has seen, but not its keys. ``seed``: of all choices."""

    def __init__(self, links: Links, now: datetime, seed: int, delivery: DeliveryId | None = None) -> None:
        """``delivery``: what all links are for, None for any."""
        self._delivery = delivery
        self._links = links
        self._others = Links([b"removed key, or one of others...", b"x" * 64], links.base_url, links.lifetime)
        self._now = now
        self.random = Random(seed)

    # ---- links

    def token(self, links: Links | None = None, action: Action | None = None, at: datetime | None = None) -> str:
        """Return a valid token of any action, for any delivery, with or without a reader."""
        choice, made = self.random.choice, links or self._links
        at = at or self._now - timedelta(minutes=self.random.randrange(20_000))
        action = action or choice([*Action])
        if self._delivery is not None:
            return made.token(action, *self._delivery, at)
        return made.token(action, new_id(at), self.random.randrange(65_536), at, choice(["", ALICE, BOB]))

    def link(self) -> Forgery:
        """Return a forged token of a link."""
        return self._one_of(
            self._random_token,
            self._changed_token,
            self._exchanged_token,
            lambda: ("another key", self.token(self._others)),
            self._token_for_another_purpose,
            self._expired_token,
            self._token_of_another_action,
        )

    def _random_token(self) -> Forgery:
        return "random", f"{self._text(self.random.choice([31, 42]))}.{self._text(43)}"

    def _changed_token(self) -> Forgery:
        return "changed", self._changed(self.token())

    def _exchanged_token(self) -> Forgery:
        one, other = self.token().split("."), self.token().split(".")
        return "signature of another link", f"{one[0]}.{other[1]}"

    def _token_of_another_action(self) -> Forgery:
        """Return a token whose action was exchanged, by the byte or by the whole salt."""
        payload, _, signature = self.token(action=Action.SHOW).partition(".")
        action = self.random.choice([each for each in range(256) if each != Action.SHOW.value])
        forged = self._b64(bytes([action]) + self._octets(payload)[1:])
        if self.random.random() < 0.5 or action not in [each.value for each in Action]:
            return "another action", f"{forged}.{signature}"
        signer = self._links._signer(Action.SHOW.purpose)
        return "another action", signer.sign(forged).decode()

    def _token_for_another_purpose(self) -> Forgery:
        payload = self.token().partition(".")[0]
        signer = self._links._signer(self.random.choice(_PURPOSES))
        return "another purpose", signer.sign(payload).decode()

    def _expired_token(self) -> Forgery:
        late = self._links.lifetime + timedelta(seconds=self.random.randrange(2, 10**7))
        early = -timedelta(seconds=self.random.randrange(302, 10**7))
        return "too old or in the future", self.token(at=self._now - self.random.choice([late, early]))

    def accepts_link(self, token: str) -> bool:
        """Return whether the portal accepts a token."""
        try:
            self._links.verify(token, self._now)
        except (LinkInvalid, LinkExpired):
            return False
        return True

    # ---- forms, cookies and marks

    def form_token(self, session: str) -> Forgery:
        """Return a forged token of the forms of a session."""
        links, wrong = self._links, self.random.choice([each for each in _PURPOSES if each != "form"])
        return self._one_of(
            lambda: ("random", self._text(self.random.choice([43, 86, 174]))),
            lambda: ("changed", self._changed(links.form_token(session, ALICE))),
            lambda: ("another session", links.form_token(self._text(32), ALICE)),
            lambda: ("another key", self._others.form_token(session, ALICE)),
            lambda: ("another purpose", links._signer(wrong).get_signature(session).decode()),
            lambda: ("another purpose", self.token().partition(".")[2]),
            lambda: ("no signature", self.random.choice(["", "A" * 43, "A" * 86, "A" * 174, session])),
        )

    def accepts_form_token(self, session: str, token: str) -> bool:
        """Return whether the portal accepts a form."""
        return self._links.form_token_fits(session, token)

    def cookie(self) -> Forgery:
        """Return a forged value of a signed cookie or mark: a known browser, a sign-in with a provider, own mail."""
        links, random = self._links, self.random
        made: list[Callable[[Links], str]] = [
            lambda of: of.device(None, ALICE, self._now),
            lambda of: of.sign_trial(f"company {self._text(20)}"),
            lambda of: of.mark("release", new_id(self._now)),
        ]
        kind = random.randrange(3)
        purpose = ("device", "trial", "mark")[kind]
        valid = made[kind](links)
        payload = valid.rpartition(".")[0]
        wrong = [each for each in (*_PURPOSES, Action.RELEASE.purpose) if each != purpose]
        return self._one_of(
            lambda: (f"random {purpose}", f"{payload}.{self._text(43)}"),
            lambda: (f"changed {purpose}", self._changed(valid)),
            lambda: (f"another key, {purpose}", made[kind](self._others)),
            lambda: (f"another purpose, {purpose}", links._signer(random.choice(wrong)).sign(payload).decode()),
        )

    def accepts_cookie(self, kind: str, value: str) -> bool:
        """Return whether the portal accepts a value for what it was forged as."""
        links = self._links
        if kind.endswith("device"):
            return links.knows_device(value, ALICE, None)
        return (links.read_trial(value) if kind.endswith("trial") else links.read_mark(value)) is not None

    # ---- secrets that the portal looks up

    def secret(self, valid: str) -> Forgery:
        """Return a forged secret of a session, a mailed link or a token of the API, like a valid one."""
        prefix, _, secret = valid.rpartition("_") if valid.startswith("qtn_") else ("", "", valid)
        alphabet = "0123456789abcdef" if prefix else _ALPHABET
        guess = "".join(self.random.choices(alphabet, k=len(secret)))
        return self._one_of(
            lambda: ("random", f"{prefix}_{guess}" if prefix else guess),
            lambda: ("changed", self._changed(valid)),
        )

    # ----

    def _one_of(self, *makers: Callable[[], Forgery]) -> Forgery:
        return self.random.choice(makers)()

    def _changed(self, valid: str) -> str:
        """Return a valid text with one small change, which is not one of white space: mail servers fold marks."""
        random, forged = self.random, valid
        while "".join(forged.split()) == "".join(valid.split()):
            place = random.randrange(len(valid))
            character = valid[place]
            flipped = chr(ord(character) ^ 1 << random.randrange(8))
            replaced = random.choice(
                [flipped, random.choice(_ALPHABET), character.swapcase(), "", character * 2, "=", "\0"]
            )
            forged = valid[:place] + replaced + valid[place + 1 :]
            if random.random() < 0.1:
                forged = random.choice(
                    [valid[:place], valid[place:], valid + character, valid + "=", f"{valid}.{valid}"]
                )
        return forged

    def _text(self, length: int) -> str:
        return "".join(self.random.choices(_ALPHABET, k=length))

    @staticmethod
    def _octets(payload: str) -> bytes:
        return urlsafe_b64decode(payload + "==")

    @staticmethod
    def _b64(octets: bytes) -> str:
        return urlsafe_b64encode(octets).rstrip(b"=").decode()


# ---- trying them


def try_signed(count: int, seed: int) -> Counter[str]:
    """Try links, form tokens, cookies and marks."""
    forger, session, tried = Forger(_LINKS, builders.now(), seed), "s" * 32, Counter[str]()
    for number in range(count):
        match number % 5:
            case 0:
                kind, forged = forger.form_token(session)
                is_accepted, what = forger.accepts_form_token(session, forged), "form token"
            case 1:
                kind, forged = forger.cookie()
                is_accepted, what = forger.accepts_cookie(kind, forged), "cookie or mark"
            case _:
                kind, forged = forger.link()
                is_accepted, what = forger.accepts_link(forged), "link"
        assert not is_accepted, (what, kind, forged)
        tried[what] += 1
    return tried


def try_secrets(site: Site, count: int, seed: int) -> Counter[str]:
    """Try secrets of sessions, of mailed links and of tokens of the API in the store."""
    store, forger, tried = site.store, Forger(_LINKS, site.now, seed), Counter[str]()
    session, mailed = random_token(24), random_token(24)
    store.sign_ins.start_session(sha256(session), ALICE, site.now)
    _start(store, SignIn(sha256(mailed), b"c" * 32, b"b" * 32, ALICE, "", site.now, site.now + _QUARTER))
    store.staff.give(Grant(ALICE, Role.ADMINISTRATOR, EVERYWHERE, site.now, BY_OPERATOR))
    wanted = TokenRequest("a program", Role.ADMINISTRATOR, EVERYWHERE, Scope.ACT, 30)
    token = site.parts.tokens.create(uuid4(), ALICE, wanted, BY_OPERATOR, site.now)
    assert token and site.parts.tokens.member(token, site.now) and store.sign_ins.session(sha256(session), site.now)
    for number in range(count):
        what, valid = (("session", session), ("mailed link", mailed), ("API token", token))[number % 3]
        kind, forged = forger.secret(valid)
        found: object = None
        if what == "session":
            found = store.sign_ins.session(sha256(forged), site.now)
        elif what == "API token":
            found = site.parts.tokens.member(forged, site.now)
        else:
            with suppress(SignInInvalid):
                found = store.sign_ins.get(sha256(forged), site.now)
        assert found is None, (what, kind, forged)
        tried[what] += 1
    assert store.sign_ins.use(sha256(mailed), site.now).recipient == ALICE
    return tried


def try_codes(site: Site, count: int, seed: int) -> Counter[str]:
    """Guess sign-in codes: five in the browser that asked for one, then the right one, and the right one in others."""
    store, random, tried, at = site.store, Random(seed), Counter[str](), site.now
    while tried.total() < count:
        browser, code = random_token(24), f"{random.randrange(10**8):08d}"
        other, at = (
            random_token(24),
            at + timedelta(seconds=20),
        )  # so there are fewer than a thousand wrong ones an hour
        hashes = sha256(random_token(24)), sha256(browser, code), sha256(browser)
        _start(store, SignIn(*hashes, f"p{tried.total()}@example.org", "", at, at + _QUARTER))
        guesses = [(browser, f"{(int(code) + random.randrange(1, 10**8)) % 10**8:08d}") for _ in range(5)]
        for who, guess in [(other, code), *guesses, (browser, code)]:
            try:
                found = store.sign_ins.use_code(sha256(who), sha256(who, guess), at)
            except CodesSuspended:
                raise AssertionError("too many at once: the guesses were not compared") from None
            except LinkInvalid:
                tried["sign-in code"] += 1
            else:
                raise AssertionError(f"accepted for {found.recipient}")
    return tried


def try_over_http(site: Site, count: int, seed: int) -> Counter[str]:
    """Open and press forged links, and send forms with forged sessions and form tokens, all for one delivery."""
    held, tried = site.hold(recipients=(ALICE,)), Counter[str]()
    forger = Forger(site.parts.links, site.now, seed, DeliveryId(held.id, 0))
    signed_in, before = site.signed_in(ALICE), (site.delivery(held), site.history(held))
    [(cookie, session)] = signed_in.cookies.items()
    form_token, delete = signed_in.form_token(), f"/messages/{held.id}/delete"
    for number in range(count):
        if number % 3 == 0:
            kind, forged = forger.link()
            path = f"/link/{quote(forged, safe='')}/"
            opened, done = site.browser().get(path), site.browser().post(path, {"pressed": "1", "do": "release"})
            # A link with more characters at its end is repaired by a redirect to the right one.
            is_refused = opened.status in (303, 404, 410) and done.status in (404, 405, 410)
            what = "link"
        elif number % 3 == 1:
            kind, forged = forger.secret(session)
            browser = site.browser()
            browser.cookies[cookie] = quote(forged, safe="=~")
            opened, done = browser.get("/"), browser.post(delete, {"form_token": form_token})
            is_refused = all((each.header("Location") or "").endswith(_SIGN_IN) for each in (opened, done))
            what = "session"
        else:
            kind, forged = forger.form_token(session)
            opened = done = signed_in.post(delete, {"form_token": forged})
            # The form of another session of the same recipient is shown to them again, and does nothing.
            is_kept = kind == "another session" and (done.header("Location") or "").endswith(f"?undone={held.id}")
            is_refused = done.status == 403 or is_kept
            what = "form token"
        assert is_refused, (what, kind, forged, opened.status, done.status)
        tried[f"{what} over HTTP"] += 1
    assert (site.delivery(held), site.history(held)) == before
    signed_in.post(delete, {"form_token": form_token})
    assert site.state(held) is State.DELETED, "the right one works"
    return tried


def _start(store: Store, sign_in: SignIn) -> None:
    limits = SignInLimits(*[10**9] * len(fields(SignInLimits)))
    assert store.sign_ins.start(sign_in, limits, QueuedMail(sign_in.recipient, b"mail"))
