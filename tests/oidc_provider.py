"""A provider of OpenID Connect in this process, which signs whatever a test wants."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlsplit

from joserfc import jwt
from joserfc.jwk import KeySet, RSAKey

CLIENT, SECRET = "quarantine", "s3cret/ü"
LOGOUT_EVENT = "http://schemas.openid.net/event/backchannel-logout"


def new_key(kid: str) -> RSAKey:
    return RSAKey.generate_key(2048, {"kid": kid, "use": "sig", "alg": "RS256"}, private=True)


class FakeProvider:
    """The provider. ``claims``: those of the next ID token, beside the usual ones."""

    def __init__(self) -> None:
        self.keys = [new_key("one")]
        self.claims: dict[str, Any] = {"email": "alice@example.org", "email_verified": True, "sid": "s1"}
        self.user_info: dict[str, Any] = {"sub": "alice-1"}
        self.raw_token: str | None = None  # the ID token to send instead
        self.extra: dict[str, Any] = {}  # of the discovery document
        self.requests: list[str] = []
        self.pause = 0.0  # seconds after each octet of an answer's body
        self.header_pause = 0.0  # seconds after each header
        self.is_down = self.has_no_keys = self.has_no_user_info = False
        self._codes: dict[str, dict[str, str]] = {}
        self.issuer = ""

    def authorize(self, url: str) -> str:
        """Return the query with which the provider sends the browser back from its page at ``url``."""
        asked = dict(parse_qsl(urlsplit(url).query))
        assert asked["client_id"] == CLIENT and asked["code_challenge_method"] == "S256"
        code = secrets.token_urlsafe(8)
        self._codes[code] = asked
        return f"code={code}&state={asked['state']}&iss={self.issuer}"

    def token(self, claims: dict[str, Any], key: RSAKey | None = None) -> str:
        """Return a signed token with these claims beside the usual ones; None leaves one out."""
        now = int(time.time())
        usual = {"iss": self.issuer, "aud": CLIENT, "sub": "alice-1", "iat": now, "exp": now + 300}
        values = {name: value for name, value in (usual | claims).items() if value is not None}
        key = key or self.keys[0]
        return jwt.encode({"alg": "RS256", "kid": key.kid}, values, key)

    def logout_token(self, **claims: Any) -> str:
        return self.token({"events": {LOGOUT_EVENT: {}}, "jti": secrets.token_hex(4), **claims})

    def answer(self, path: str, form: dict[str, str], authorization: str) -> tuple[int, Any]:
        self.requests.append(path)
        if self.is_down:
            return 503, {}
        match path:
            case "/.well-known/openid-configuration":
                names = ("authorization", "token", "userinfo", "end_session")
                urls = {f"{name}_endpoint": f"{self.issuer}/{name}" for name in names}
                return 200, {"issuer": self.issuer, "jwks_uri": f"{self.issuer}/keys", **urls, **self.extra}
            case "/keys":
                if self.has_no_keys:
                    return 503, {}
                return 200, KeySet([*self.keys]).as_dict(private=False)
            case "/userinfo":
                if self.has_no_user_info:
                    return 403, {}
                return 200, self.user_info
            case "/token":
                return self._exchange(form, authorization)
        return 404, {}

    def _exchange(self, form: dict[str, str], authorization: str) -> tuple[int, Any]:
        asked = self._codes.pop(form["code"], None)  # a code works once
        expected = base64.b64encode(b"quarantine:s3cret%2F%C3%BC").decode()
        challenge = base64.urlsafe_b64encode(hashlib.sha256(form["code_verifier"].encode()).digest()).rstrip(b"=")
        if authorization != f"Basic {expected}" or asked is None or asked["code_challenge"] != challenge.decode():
            return 400, {"error": "invalid_grant"}
        assert asked["redirect_uri"] == form["redirect_uri"]
        id_token = self.raw_token or self.token({"nonce": asked["nonce"], **self.claims})
        return 200, {"id_token": id_token, "access_token": "a", "token_type": "Bearer"}


@contextmanager
def running() -> Iterator[FakeProvider]:
    provider = FakeProvider()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer({})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            self._answer({name: values[0] for name, values in parse_qs(body).items()})

        def _answer(self, form: dict[str, str]) -> None:
            status, value = provider.answer(self.path, form, self.headers.get("Authorization", ""))
            body = json.dumps(value).encode()
            self.send_response(status)
            for number in range(1000 if provider.header_pause else 0):
                self.send_header(f"X-Slow-{number}", "x")
                self.flush_headers()
                time.sleep(provider.header_pause)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            for octet in body if provider.pause else ():
                self.wfile.write(bytes([octet]))
                time.sleep(provider.pause)
            self.wfile.write(b"" if provider.pause else body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    provider.issuer = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield provider
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
