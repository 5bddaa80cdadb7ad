"""OpenID Connect, as its relying party: discovery, the authorization code flow with PKCE, and logout.

joserfc verifies signatures; this module checks everything else that OpenID Connect Core 1.0, RFC 7636 (PKCE), RFC 9207
(`iss`) and Back-Channel Logout 1.0 require. Nothing is requested before somebody signs in, so a provider that is down
does not stop the portal.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import json
import logging
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, urlencode

from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from portal.model.text import shown
from portal.openid import AddressUnverified, Logout, Person, ProviderUnavailable, SignInRefused, Trial
from portal.passwords.deadline import Deadline
from portal.settings import OidcSettings, is_safe_url

log = logging.getLogger("quarantine.openid")

_TIMEOUT_SECONDS = 3  # for a whole answer: a thread of the worker waits as long
_MAX_BYTES = 1 << 20
_FRESH_SECONDS = 3600.0
_RETRY_SECONDS = 10.0  # forged key ids, and a provider that is down, cause at most one request in this time
_LEEWAY_SECONDS = 60  # between the clocks
_LOGOUT_AGE_SECONDS = 300
_MAX_AGE_SECONDS = 300  # of a sign-in there, if the person must prove again who they are
# Never "none", and never HMAC: its key would be the provider's public one (RFC 8725, 2.1).
_ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
_LOGOUT_EVENT = "http://schemas.openid.net/event/backchannel-logout"


class Provider:
    """One provider. Used by many threads."""

    def __init__(self, name: str, settings: OidcSettings, *, wants_groups: bool) -> None:
        """``wants_groups``: whether groups give roles, so that it is worth a request to ask for them."""
        self.title = settings.title or name
        self._name = name
        self._settings = settings
        self._wants_groups = wants_groups
        self._lock = threading.Lock()
        self._metadata: dict[str, Any] | None = None
        self._metadata_at = self._keys_at = self._failed_at = float("-inf")
        self._keys: KeySet | None = None

    # ---- signing in

    def authorization_url(self, trial: Trial, redirect_uri: str) -> str:
        """Return the address at the provider to which the browser is sent. Raises ProviderUnavailable."""
        digest = hashlib.sha256(trial.verifier.encode()).digest()
        query = {
            "response_type": "code",
            "client_id": self._settings.client_id,
            "redirect_uri": redirect_uri,
            "scope": " ".join(self._settings.scopes),
            "state": trial.state,
            "nonce": trial.nonce,
            "code_challenge": base64.urlsafe_b64encode(digest).rstrip(b"=").decode(),
            "code_challenge_method": "S256",
        }
        if trial.is_fresh:
            query["max_age"] = str(_MAX_AGE_SECONDS)  # so auth_time must be in the token (Core, 3.1.2.1)
        return _with_query(self._endpoint("authorization_endpoint"), query)

    def finish(self, query: Mapping[str, str], trial: Trial, redirect_uri: str) -> Person:
        """Return who signed in. ``query``: the parameters with which the provider sent the browser back.

        Raises SignInRefused, ProviderUnavailable.
        """
        if not hmac.compare_digest(query.get("state", "").encode(), trial.state.encode()):
            raise SignInRefused("the state is another one")
        issuer = query.get("iss", "")
        if (issuer or self.metadata().get("authorization_response_iss_parameter_supported")) and (
            issuer != self._settings.issuer
        ):
            raise SignInRefused("the answer is from another issuer")
        if query.get("error") or not query.get("code"):
            raise SignInRefused(f"the provider answered {query.get('error', '') or 'without a code'!r:.80}")
        tokens = self._tokens(query["code"], trial, redirect_uri)
        claims = self._verified(str(tokens.get("id_token", "")), {"nonce": {"essential": True, "value": trial.nonce}})
        if self._lacks_claims(claims) and "userinfo_endpoint" in self.metadata():
            try:
                claims = self._with_user_info(claims, str(tokens.get("access_token", "")))
            except ProviderUnavailable as error:
                if self._lacks_address(claims):
                    raise
                log.warning("groups could not be asked for method=oidc:%s: %s", self._name, error)
                return replace(self._person(claims), groups=None)
        return self._person(claims)

    def _lacks_claims(self, claims: Mapping[str, Any]) -> bool:
        lacks_groups = _claim(claims, self._settings.groups_claim) is None and not _has_too_many_groups(claims)
        return self._lacks_address(claims) or (self._wants_groups and lacks_groups)

    def _lacks_address(self, claims: Mapping[str, Any]) -> bool:
        return any(name not in claims for name in self._address_claims)

    @property
    def _address_claims(self) -> tuple[str, ...]:
        """The claims that prove the address together, so that all of them must be of the same document."""
        verified = ("email_verified",) if self._settings.require_verified else ()
        return (self._settings.address_claim, *verified)

    def _tokens(self, code: str, trial: Trial, redirect_uri: str) -> dict[str, Any]:
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": redirect_uri,
            "code_verifier": trial.verifier,
        }
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        secret = self._secret()
        supported = self.metadata().get("token_endpoint_auth_methods_supported") or ["client_secret_basic"]
        if secret and "client_secret_basic" in supported:
            # RFC 6749, 2.3.1: both are form-encoded before they are joined.
            pair = f"{quote(self._settings.client_id, safe='')}:{quote(secret, safe='')}"
            headers["Authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
        elif secret:
            form |= {"client_id": self._settings.client_id, "client_secret": secret}
        else:
            form["client_id"] = self._settings.client_id
        return _fetch(self._endpoint("token_endpoint"), urlencode(form).encode(), headers)

    def _secret(self) -> str:
        try:
            return self._settings.secret()
        except (OSError, ValueError) as error:
            raise ProviderUnavailable(f"client_secret_file cannot be read: {error}") from error

    def _with_user_info(self, claims: dict[str, Any], access_token: str) -> dict[str, Any]:
        found = _fetch(self._endpoint("userinfo_endpoint"), None, {"Authorization": f"Bearer {access_token}"})
        if found.get("sub") != claims["sub"]:
            raise SignInRefused("userinfo is about another person")  # Core, 5.3.2
        of_token = all(name in claims for name in self._address_claims)
        return found | claims | {name: found.get(name) for name in self._address_claims if not of_token}

    def _person(self, claims: dict[str, Any]) -> Person:
        address = claims.get(self._settings.address_claim)
        if not isinstance(address, str) or not address:
            raise AddressUnverified(f"there is no claim {self._settings.address_claim}")
        if self._settings.require_verified and claims.get("email_verified") not in (True, "true"):
            raise AddressUnverified("email_verified is not true")
        if self._wants_groups and _has_too_many_groups(claims):
            log.warning("groups left out of the token method=oidc:%s: they are too many (docs/sign-in.md)", self._name)
        groups = _claim(claims, self._settings.groups_claim) or []
        names = [groups] if isinstance(groups, str) else groups if isinstance(groups, list) else []
        session, auth_time = claims.get("sid"), claims.get("auth_time")
        return Person(
            address,
            frozenset(name for name in names if isinstance(name, str)),
            str(claims["sub"]),
            session if isinstance(session, str) else "",
            _moment(auth_time),
        )

    # ---- signing out

    def end_session_url(self, back: str) -> str:
        """Return the address at which the person signs out at the provider, "" if it has none.

        ``back``: where the provider may send the browser afterwards. Raises ProviderUnavailable.
        """
        if "end_session_endpoint" not in self.metadata():
            return ""
        query = {"client_id": self._settings.client_id, "post_logout_redirect_uri": back}
        return _with_query(self._endpoint("end_session_endpoint"), query)

    def logout(self, token: str) -> Logout:
        """Return what a logout token says. Raises SignInRefused if it is not valid, ProviderUnavailable."""
        claims = self._verified(token, {})
        events = claims.get("events")
        if not isinstance(events, dict) or not isinstance(events.get(_LOGOUT_EVENT), dict) or "nonce" in claims:
            raise SignInRefused("this is not a logout token")  # an ID token, for example
        subject, session = (str(claims.get(name) or "") for name in ("sub", "sid"))
        issued_at = claims.get("iat")
        if not (subject or session) or not isinstance(issued_at, int | float):
            raise SignInRefused("the logout token names nobody")
        if issued_at < time.time() - _LOGOUT_AGE_SECONDS:
            raise SignInRefused("the logout token is too old")
        return Logout(subject, session, issued_at + _LEEWAY_SECONDS)

    # ---- the provider's documents

    def check(self) -> None:
        """Read all documents and the client's secret. Raises ProviderUnavailable."""
        for name in ("authorization_endpoint", "token_endpoint"):
            self._endpoint(name)
        self.keys()
        self._secret()

    def metadata(self) -> dict[str, Any]:
        """Return the discovery document, at most an hour old. Raises ProviderUnavailable."""
        with self._lock:
            now = time.monotonic()
            if self._metadata is not None and now - self._metadata_at < _FRESH_SECONDS:
                return self._metadata
            with self._pause_after_failure():
                found = _fetch(f"{self._settings.issuer.rstrip('/')}/.well-known/openid-configuration")
                if found.get("issuer") != self._settings.issuer:
                    raise ProviderUnavailable(
                        f"its discovery document has another issuer: {found.get('issuer')!r:.200}"
                    )
            self._metadata, self._metadata_at = found, now
            return found

    @contextmanager
    def _pause_after_failure(self) -> Iterator[None]:
        """Read a document of the provider, unless reading one failed a moment ago."""
        if time.monotonic() - self._failed_at < _RETRY_SECONDS:
            raise ProviderUnavailable("the provider did not answer a moment ago")
        try:
            yield
        except ProviderUnavailable:
            self._failed_at = time.monotonic()
            raise

    def _endpoint(self, name: str) -> str:
        url = self.metadata().get(name)
        if not isinstance(url, str) or not is_safe_url(url):
            raise ProviderUnavailable(f"its discovery document has no usable {name}")
        return url

    def keys(self, *, again: bool = False) -> KeySet:
        """Return the provider's public keys. ``again``: a token has another key. Raises ProviderUnavailable."""
        url = self._endpoint("jwks_uri")
        with self._lock:
            age = time.monotonic() - self._keys_at
            if self._keys is None or age > _FRESH_SECONDS or (again and age > _RETRY_SECONDS):
                with self._pause_after_failure():
                    self._keys = _key_set(_fetch(url))
                self._keys_at = time.monotonic()
            return self._keys

    def _verified(self, token: str, more: dict[str, Any]) -> dict[str, Any]:
        """Return the claims of a token of this provider for this portal. ``more``: further rules for claims."""
        try:
            try:
                found = jwt.decode(token, self.keys(), algorithms=_ALGORITHMS)
            except (JoseError, ValueError):
                found = jwt.decode(token, self.keys(again=True), algorithms=_ALGORITHMS)
            claims = dict(found.claims)
            rules: dict[str, Any] = {
                "iss": {"essential": True, "value": self._settings.issuer},
                "aud": {"essential": True, "value": self._settings.client_id},
                "exp": {"essential": True},
                "iat": {"essential": True},
                **more,
            }
            jwt.JWTClaimsRegistry(leeway=_LEEWAY_SECONDS, **rules).validate(claims)
        except (JoseError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise SignInRefused(shown(f"the token is not valid: {type(error).__name__} {error}", 200)) from error
        audience = claims["aud"]
        if isinstance(audience, list) and len(audience) > 1 and claims.get("azp") != self._settings.client_id:
            raise SignInRefused("the token is for another client")
        if more and not isinstance(claims.get("sub"), str):
            raise SignInRefused("the token names nobody")
        return claims


def _key_set(document: dict[str, Any]) -> KeySet:
    try:
        return KeySet.import_key_set(document)  # type: ignore[arg-type]
    except (JoseError, ValueError, KeyError, TypeError) as error:
        raise ProviderUnavailable(shown(f"its keys cannot be read: {error}", 200)) from error


def _claim(claims: Mapping[str, Any], name: str) -> Any:
    """Return a claim, None if it is missing. ``name``: also a path, like Keycloak's ``realm_access.roles``."""
    if name in claims:  # a name may have points, like https://example.org/groups
        return claims[name]
    found: Any = claims
    for part in name.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found


def _has_too_many_groups(claims: Mapping[str, Any]) -> bool:
    """Return whether Entra ID left out the groups, as it does if there are more than 200.

    https://learn.microsoft.com/entra/identity-platform/id-token-claims-reference#groups-overage-claim
    """
    elsewhere = claims.get("_claim_names")
    return claims.get("hasgroups") in (True, "true") or (isinstance(elsewhere, dict) and "groups" in elsewhere)


def _moment(seconds: object) -> datetime | None:
    """Return the time of a claim, None if it is not one."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        return None
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


class _Connection(http.client.HTTPConnection):
    """A connection that ends at a deadline, also while the provider sends the status and headers octet by octet."""

    def __init__(self, *values: Any, deadline: Deadline, **named: Any) -> None:
        super().__init__(*values, **named)
        self._deadline = deadline

    def connect(self) -> None:
        super().connect()
        self._deadline.watch(self.sock)


class _TlsConnection(http.client.HTTPSConnection, _Connection):
    """The same with TLS, whose handshake comes after `_Connection.connect`."""


class _WithDeadline(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    def __init__(self, deadline: Deadline) -> None:
        urllib.request.HTTPSHandler.__init__(self)
        self._deadline = deadline

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_Connection, req, deadline=self._deadline)  # type: ignore[arg-type]

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_TlsConnection, req, deadline=self._deadline)


def _fetch(url: str, data: bytes | None = None, headers: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return the JSON object at a URL. Raises SignInRefused for status 400 and 401, otherwise ProviderUnavailable."""
    request = urllib.request.Request(url, data, {"Accept": "application/json", **(headers or {})})  # noqa: S310
    with Deadline(_TIMEOUT_SECONDS) as deadline:
        try:
            body = _read(request, deadline)
        except urllib.error.HTTPError as error:
            with error:
                kind = SignInRefused if data is not None and error.code in (400, 401) else ProviderUnavailable
                text = b""
                with suppress(OSError, http.client.HTTPException):
                    text = error.read(300)
                raise kind(f"it answered {error.code} at {url}: {text!r}") from None
        except (OSError, http.client.HTTPException) as error:
            raise ProviderUnavailable(shown(f"{url} cannot be reached: {deadline.reason(error)}", 300)) from error
    try:
        found = json.loads(body)
    except ValueError as error:
        raise ProviderUnavailable(f"{url} did not answer with JSON") from error
    if not isinstance(found, dict):
        raise ProviderUnavailable(f"{url} did not answer with a JSON object")
    return found


def _read(request: urllib.request.Request, deadline: Deadline) -> bytes:
    """Return the body of the answer. Raises OSError, HTTPException, ProviderUnavailable if it is too large."""
    opener = urllib.request.build_opener(_NoRedirect, _WithDeadline(deadline))
    with opener.open(request, timeout=_TIMEOUT_SECONDS) as answer:
        body: bytes = answer.read(_MAX_BYTES + 1)
    if len(body) > _MAX_BYTES:
        raise ProviderUnavailable("its answer is too large")
    deadline.left(_TIMEOUT_SECONDS)  # an answer without a length just ends when the connection is shut down
    return body


def _with_query(url: str, query: Mapping[str, str]) -> str:
    return f"{url}{'&' if '?' in url else '?'}{urlencode(query)}"
