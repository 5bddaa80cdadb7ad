"""Test clients of the portal: a site with a clock that tests set, and browsers that keep cookies."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from http.cookies import SimpleCookie
from typing import Any
from urllib.parse import urlencode, urlsplit
from wsgiref.util import setup_testing_defaults

from portal.assemble import Parts
from portal.model.links import Action
from portal.model.message import Delivery, DeliveryId, Event, State, Tier
from portal.policy.second_factor import SecondFactors
from portal.policy.tokens import Tokens
from portal.stores.records import Held
from portal.web import create_app
from tests import builders
from tests.valid_html import assert_valid

ROOT = "/quarantine"
ORIGIN = "http://127.0.0.1:8080"


@dataclass
class Answer:
    """The answer to a request."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)

    def cookies(self) -> dict[str, str]:
        """Return the Set-Cookie lines by name."""
        lines = [value for key, value in self.headers if key.lower() == "set-cookie"]
        return {line.partition("=")[0]: line for line in lines}


@dataclass
class Browser:
    """A browser that calls the WSGI application directly and keeps cookies."""

    app: Any
    cookies: dict[str, str] = field(default_factory=dict)
    peer: str = "192.0.2.7"

    def request(
        self,
        method: str,
        path: str,
        *,
        form: Mapping[str, str] | None = None,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        environ: Mapping[str, Any] | None = None,
    ) -> Answer:
        """Send a request. ``path`` is below the mount point unless it is a whole URL of the portal."""
        path = path.removeprefix(ORIGIN)
        path = path if path.startswith(ROOT) else ROOT + path
        parts = urlsplit(path)
        sent: dict[str, Any] = {"REQUEST_METHOD": method, "PATH_INFO": parts.path, "QUERY_STRING": parts.query}
        sent["SCRIPT_NAME"] = ""
        setup_testing_defaults(sent)
        if form is not None:
            body = urlencode(form).encode()
            sent["CONTENT_TYPE"] = "application/x-www-form-urlencoded"
        sent |= {"REMOTE_ADDR": self.peer, "CONTENT_LENGTH": str(len(body)), "wsgi.input": io.BytesIO(body)}
        sent["wsgi.errors"] = sys.stderr
        if self.cookies:
            sent["HTTP_COOKIE"] = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        for name, value in (headers or {}).items():
            key = name.upper().replace("-", "_")
            sent[key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{key}"] = value
        sent |= environ or {}
        got: list[Any] = []
        chunks = self.app(sent, lambda status, headers, *_: got.extend((status, headers)))
        answer = Answer(int(got[0].split()[0]), got[1], b"".join(chunks))
        if hasattr(chunks, "close"):
            chunks.close()
        self._keep(answer)
        if answer.body and (answer.header("Content-Type") or "").startswith("text/html"):
            assert_valid(answer.text)
        return answer

    def _keep(self, answer: Answer) -> None:
        for line in answer.cookies().values():
            for name, morsel in SimpleCookie(line).items():
                if morsel["max-age"] == "0" or not morsel.value:
                    self.cookies.pop(name, None)
                else:
                    self.cookies[name] = morsel.value

    def get(self, path: str, **more: Any) -> Answer:
        return self.request("GET", path, **more)

    def post(self, path: str, form: Mapping[str, str] | None = None, **more: Any) -> Answer:
        """Post a form from a page of the portal."""
        headers = {"Origin": ORIGIN, "Sec-Fetch-Site": "same-origin", **more.pop("headers", {})}
        return self.request("POST", path, form=form or {}, headers=headers, **more)

    def post_all(self, path: str, form: Sequence[tuple[str, str]]) -> Answer:
        """Post a form with several fields of the same name."""
        headers = {"Origin": ORIGIN, "Sec-Fetch-Site": "same-origin"}
        headers |= {"Content-Type": "application/x-www-form-urlencoded"}
        return self.request("POST", path, body=urlencode(form).encode(), headers=headers)

    def follow(self, answer: Answer, path: str) -> Answer:
        """Return the page that a 303 redirects to."""
        assert answer.status == 303, answer.text
        location = answer.header("Location")
        assert location and "//" not in location
        return self.get(path.partition("?")[0] + location[2:] if location.startswith("./") else location)

    def form_token(self) -> str:
        """Return the anti-forgery token of the pages of this session."""
        found = re.search(r'name="form_token" value="([^"]+)"', self.get("/rules").text)
        assert found
        return found[1]


class Site:
    """Parts with the clock ``now``, and the application on them."""

    def __init__(self, parts: Parts) -> None:
        # Later than all that the test holds with the real clock, also on a busy machine.
        self.now: datetime = builders.now() + timedelta(seconds=30)
        staff = replace(parts.staff, now=lambda: self.now)
        actions = replace(parts.actions, now=lambda: self.now)
        self.parts: Parts = builders.with_parts(
            parts,
            actions=actions,
            rulebook=replace(parts.rulebook, now=lambda: self.now),
            staff=staff,
            second_factors=SecondFactors(parts.store, parts.links, staff, actions),
            tokens=Tokens(parts.store, staff),
        )
        self.store = parts.store
        self.app = create_app(self.parts)

    def browser(self) -> Browser:
        return Browser(self.app)

    def pass_time(self, **amount: float) -> None:
        self.now += timedelta(**amount)

    def signed_in(self, recipient: str) -> Browser:
        """Return a browser with a session of this recipient."""
        browser = self.browser()
        session = hashlib.sha256(f"session of {recipient}".encode()).hexdigest()
        self.store.sign_ins.start_session(
            hashlib.sha256(session.encode()).digest(), recipient, self.now, authenticated_at=self.now
        )
        browser.cookies["__Host-quarantine-session"] = session
        return browser

    def hold(self, tier: Tier = Tier.SPAM, **more: Any) -> Held:
        return builders.hold(self.store, tier=tier, **more)

    def link(self, action: Action, held: Held, number: int = 0, minutes_old: float = 0) -> str:
        """Return the URL of a link in a digest of that age."""
        issued_at = self.now - timedelta(minutes=minutes_old)
        return self.parts.links.url(action, held.id, number, issued_at).removeprefix(ORIGIN)

    def delivery(self, held: Held, number: int = 0) -> Delivery:
        return self.store.deliveries.get(DeliveryId(held.id, number))

    def state(self, held: Held, number: int = 0) -> State:
        return self.delivery(held, number).state

    def history(self, held: Held, number: int = 0) -> list[Event]:
        return list(self.store.deliveries.history(DeliveryId(held.id, number)))


def basic(user: str, password: str) -> str:
    """Return the value of an Authorization header."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
