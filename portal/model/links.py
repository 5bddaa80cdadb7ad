"""Signed links, cookies, form tokens and marks on the portal's own messages, and secrets of authenticator apps: what is
made with the link keys. The only user of itsdangerous.

A link's token signs one *action* (each has its own salt) and one delivery – or, for `PREFERENCES`, `SEVERAL`,
`FORWARDED` and `OPEN`, one digest and therefore its recipient – over packed bytes: 31 characters, a dot, 43 characters
of HMAC-SHA-256. It has 42 characters instead of 31 if the reader's identity is not the delivery's recipient, since the
token then names the reader. A token contains nothing about the message, is a part of the path, and gives access to
nothing else.

itsdangerous ignores the spare bits of base64's last character and junk after it, so one token has many spellings. They
would evade counters, so only the canonical spelling is accepted, of links, cookies, form tokens and marks. Its max_age
is not used either: it rejects a token as expired if its timestamp is one second in the future (``timed.py``), which
happens when the system clock is set back.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import re
import secrets
import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from copy import copy
from datetime import UTC, datetime, timedelta
from enum import Enum
from uuid import UUID

from itsdangerous import BadSignature, Signer

from portal.model.errors import LinkExpired, LinkInvalid, SettingsError
from portal.model.message import DeliveryId, spellings
from portal.model.record import record

MARK_HEADER = "X-Quarantine-Mark"
KEY_BYTES = 32  # minimum; shorter keys are rejected
_PACKED = struct.Struct(">B16sHI")  # action, UUID, delivery number, issued at (Unix seconds)
_READER_OCTETS = 8  # after these, if the delivery's recipient is not the reader's own identity
TOKEN_PATTERN = r"(?:[A-Za-z0-9_-]{31}|[A-Za-z0-9_-]{42})\.[A-Za-z0-9_-]{43}"  # noqa: S105
PLACEHOLDER_PATTERN = r"(?:x{31}|x{42})\.x{43}"
_TOKEN = re.compile(TOKEN_PATTERN, re.ASCII)
_SESSION_HASH_OCTETS = 16  # in the tokens of its forms
_SIGNATURE_OCTETS = hashlib.sha256().digest_size
_CLOCK_STEP = timedelta(minutes=5)  # a token's timestamp may be this far in the future
_DEVICE_RECIPIENTS = 8  # the most recipients in one device cookie
_TOTP_OCTETS = 20  # as RFC 4226, 4 recommends; more is not accepted by all apps
_HASH_CHARACTERS = 16  # of a recipient in a device cookie


class Action(Enum):
    """The action that a link allows. The value is the byte in the token and never changes."""

    RELEASE = 1
    DELETE = 2
    REQUEST = 3
    PREFERENCES = 4
    SHOW = 5
    SEVERAL = 6
    FORWARDED = 7
    OPEN = 8

    @property
    def purpose(self) -> str:
        """The purpose that is a part of the signature's salt. It never changes either: links outlive an upgrade."""
        return "link.ASK" if self is Action.REQUEST else f"link.{self.name}"  # ASK: its name up to version 0.1.1


@record(frozen=True, slots=True)
class Link:
    """A verified token."""

    action: Action
    id: UUID  # of the message; for PREFERENCES, SEVERAL, FORWARDED and OPEN of the digest
    number: int  # of the delivery
    issued_at: datetime
    reader: bytes = b""  # hash of the reader, see `Links.is_for`; empty: the delivery's own recipient

    @property
    def key(self) -> DeliveryId:
        """The delivery's id."""
        return DeliveryId(self.id, self.number)


class _StrictSigner(Signer):
    """A signer that accepts only the canonical spelling of a signature."""

    def verify_signature(self, value: str | bytes, sig: str | bytes) -> bool:
        try:
            text = sig if isinstance(sig, str) else sig.decode("ascii")
            if _b64(urlsafe_b64decode(text + "=" * (-len(text) % 4))) != text:
                return False
        except ValueError:
            return False
        return super().verify_signature(value, sig)


class Links:
    """Signer (with the newest key) and verifier (with all keys). ``base_url``: the public URL without a final slash."""

    def __init__(self, keys: Sequence[bytes], base_url: str, lifetime: timedelta) -> None:
        if not keys or any(len(key) < KEY_BYTES for key in keys):
            raise SettingsError(f"links.keys: each signing key needs at least {KEY_BYTES} bytes")
        self._keys = list(keys)
        self.base_url = base_url
        self.lifetime = lifetime

    def at(self, base_url: str) -> Links:
        """Return the same signer with another public URL."""
        if base_url == self.base_url:
            return self
        other = copy(self)
        other.base_url = base_url
        return other

    def fingerprints(self) -> list[str]:
        """Return a short public fingerprint of each key, oldest to newest, to detect hosts with different keys."""
        return [hashlib.sha256(b"quarantine key " + key).hexdigest()[:16] for key in self._keys]

    # ---- links

    def url(self, action: Action, id: UUID, number: int, issued_at: datetime, reader: str = "") -> str:
        """Return the URL of a link. It ends in a slash since mail programs cut other endings off.

        ``reader``: the identity whose link it is, if this is not the delivery's own recipient.
        """
        return f"{self.base_url}/link/{self.token(action, id, number, issued_at, reader)}/"

    def token(self, action: Action, id: UUID, number: int, issued_at: datetime, reader: str = "") -> str:
        """Return the token of a link, without the URL."""
        packed = _PACKED.pack(action.value, id.bytes, number, int(issued_at.timestamp()))
        payload = _b64(packed + (_reader_hash(reader, self._keys[-1]) if reader else b""))
        return self._signer(action.purpose).sign(payload).decode("ascii")

    def verify(self, token: str, now: datetime) -> Link:
        """Return the link of a token. Raises LinkInvalid or LinkExpired. The caller checks revocation."""
        if not _TOKEN.fullmatch(token):
            raise LinkInvalid("this is not a link of this portal")
        payload, _, _ = token.partition(".")
        packed = urlsafe_b64decode(payload + "==")
        if _b64(packed) != payload:
            raise LinkInvalid("this is not a link of this portal")
        code, id_bytes, number, issued = _PACKED.unpack_from(packed)
        try:
            action = Action(code)
            self._signer(action.purpose).unsign(token)
        except (ValueError, BadSignature) as error:
            raise LinkInvalid("this is not a link of this portal") from error
        issued_at = datetime.fromtimestamp(issued, UTC)
        if issued_at > now + _CLOCK_STEP:
            raise LinkInvalid("this link was issued in the future: a host's clock is wrong")
        if now - issued_at > self.lifetime:
            raise LinkExpired("this link is too old")
        return Link(action, UUID(bytes=id_bytes), number, issued_at, packed[_PACKED.size :])

    def is_for(self, link: Link, reader: str, recipient: str) -> bool:
        """Return whether a link to a delivery of ``recipient`` belongs to this reader; both are identities."""
        if not link.reader:
            return reader == recipient
        names = spellings(reader)
        # Up to version 0.1.1 the two spellings of a domain were two people, and one could read the other's messages.
        if reader == recipient and len(names) == 1:
            return False
        return any(hmac.compare_digest(link.reader, _reader_hash(name, key)) for name in names for key in self._keys)

    # ---- the second factor of staff

    def totp_secret(self, person: str, salt: bytes, fingerprint: str) -> bytes | None:
        """Return the secret of a person's authenticator app, None if this portal has no key of this fingerprint.

        It is derived and not stored, so that a copy of the database does not disclose it. ``fingerprint``: one of
        `fingerprints`; the newest key is for new secrets. ``person``: identity.
        """
        keys = dict(zip(self.fingerprints(), self._keys, strict=True))
        if fingerprint not in keys:
            return None
        derived = hmac.digest(keys[fingerprint], b"quarantine totp " + salt + person.encode(), "sha256")
        return derived[:_TOTP_OCTETS]

    # ---- the device cookie: browsers in which a button was pressed for a recipient

    def device(self, cookie: str | None, recipient: str, now: datetime) -> str:
        """Return the cookie's value with this recipient added, or the time renewed."""
        pressed = self._pressed(cookie)
        for each in spellings(recipient):
            pressed.pop(self._recipient_hash(each), None)
        entries = [self._recipient_hash(recipient) + _packed_time(now), *(key + at for key, at in pressed.items())]
        return self._signer("device").sign(".".join(entries[:_DEVICE_RECIPIENTS])).decode("ascii")

    def knows_device(self, cookie: str | None, recipient: str, since: datetime | None) -> bool:
        """Return whether a button was pressed for this recipient in the browser that sent the cookie.

        ``since``: presses before this time do not count; None: all count.
        """
        pressed, begin = self._pressed(cookie), math.ceil(since.timestamp()) if since else 0
        found = [pressed[key] for each in spellings(recipient) if (key := self._recipient_hash(each)) in pressed]
        return any(_unpacked_time(at) >= begin for at in found)

    def _pressed(self, cookie: str | None) -> dict[str, str]:
        """Return the hashes of the recipients in a cookie, each with the time, which is "" before version 0.3."""
        try:
            entries = self._signer("device").unsign(cookie or "").decode("ascii").split(".")
        except (BadSignature, UnicodeError):
            return {}
        return {entry[:_HASH_CHARACTERS]: entry[_HASH_CHARACTERS:] for entry in entries}

    def _recipient_hash(self, recipient: str) -> str:
        # Uses the oldest key, so that cookies stay valid when a newer key is added.
        return _b64(hashlib.blake2b(recipient.encode(), key=self._keys[0][:64], digest_size=12).digest())

    # ---- tries to sign in with a provider

    def sign_trial(self, text: str) -> str:
        """Return a cookie's value with this text, which `read_trial` returns."""
        return self._signer("trial").sign(_b64(text.encode())).decode("ascii")

    def read_trial(self, cookie: str | None) -> str | None:
        """Return the text of a cookie's value, None if this portal did not sign it."""
        try:
            return urlsafe_b64decode(self._signer("trial").unsign(cookie or "") + b"==").decode()
        except (BadSignature, ValueError):
            return None

    # ---- forms of signed-in pages

    def form_token(self, session: str, recipient: str) -> str:
        """Return a token for the forms of a session: against CSRF, and to know whose forms they are after its end.

        ``session``: the secret value of its cookie. The token is another one for each page: a random pad, and masked
        with it the hash of the session, the recipient and their signature. Pages are compressed and repeat what was
        typed into a search, so the size of many pages with the same token would disclose it (BREACH).
        """
        content = _session_hash(session) + recipient.encode()
        octets = content + urlsafe_b64decode(self._signer("page").get_signature(content) + b"=")
        pad = secrets.token_bytes(len(octets))
        return _b64(pad + _xor(pad, octets))

    def form_token_fits(self, session: str, token: str) -> bool:
        """Return whether a form's token belongs to the session.

        Tokens without a mask are valid: pages of version 0.2 may still be open. They are never in a compressed page.
        """
        octets = _canonical(token)
        if len(octets) == _SIGNATURE_OCTETS:
            return self._signer("form").verify_signature(session.encode(), token)
        return hmac.compare_digest(self._form_content(octets)[:_SESSION_HASH_OCTETS], _session_hash(session))

    def form_owner(self, token: str) -> str | None:
        """Return the recipient of the session whose page had this token, also after the session has ended.

        None for a token that this portal did not make, and for one of version 0.2, which does not have the recipient.
        """
        return self._form_content(_canonical(token))[_SESSION_HASH_OCTETS:].decode() or None

    def _form_content(self, octets: bytes) -> bytes:
        """Return what `form_token` signed, empty if nothing was signed."""
        half = len(octets) // 2
        if len(octets) % 2 or half <= _SIGNATURE_OCTETS:
            return b""
        unmasked = _xor(octets[:half], octets[half:])
        content, signature = unmasked[:-_SIGNATURE_OCTETS], unmasked[-_SIGNATURE_OCTETS:]
        return content if self._signer("page").verify_signature(content, _b64(signature)) else b""

    # ---- marks on messages that this portal sends: releases, digests and other messages of its own

    def mark(self, kind: str, id: UUID) -> str:
        """Return the signed value of `MARK_HEADER`. ``kind``: ``release``, ``digest`` or ``mail``."""
        return self._signer("mark").sign(f"{kind} {id}").decode("ascii")

    def read_mark(self, value: str | None) -> tuple[str, UUID] | None:
        """Return the kind and id of a mark, or None if this portal did not sign it."""
        try:
            # A server on the path may have folded the header at the space (RFC 5322, 2.2.3).
            text = " ".join((value or "").split())
            kind, _, id = self._signer("mark").unsign(text).decode("ascii").partition(" ")
            return kind, UUID(id)
        except (BadSignature, ValueError):
            return None

    def _signer(self, purpose: str) -> Signer:
        # itsdangerous takes keys oldest to newest, signs with the last and verifies with all.
        return _StrictSigner(
            self._keys, salt=f"quarantine.{purpose}", sep=".", key_derivation="hmac", digest_method=hashlib.sha256
        )


class Placeholders(Links):
    """Writes what is as long as the links and marks of `Links`, without keys: they allow nothing and prove nothing."""

    def __init__(self, lifetime: timedelta) -> None:
        self._keys = []
        self.base_url = ""  # see `at`
        self.lifetime = lifetime

    def token(self, action: Action, id: UUID, number: int, issued_at: datetime, reader: str = "") -> str:
        """Return a placeholder for a token."""
        return f"{'x' * (42 if reader else 31)}.{'x' * 43}"

    def mark(self, kind: str, id: UUID) -> str:
        """Return a placeholder for a mark."""
        return f"{kind} {id}.{'x' * 43}"


def _packed_time(at: datetime) -> str:
    return _b64(struct.pack(">I", int(at.timestamp())))


def _unpacked_time(text: str) -> int:
    return int.from_bytes(urlsafe_b64decode(text + "=="), "big")


def _reader_hash(identity: str, key: bytes) -> bytes:
    return hashlib.blake2b(b"reader " + identity.encode(), key=key[:64], digest_size=_READER_OCTETS).digest()


def _canonical(token: str) -> bytes:
    """Return the octets of a token, empty if it is not spelled as `_b64` does."""
    try:
        octets = urlsafe_b64decode(token + "==")
    except ValueError:
        return b""
    return octets if _b64(octets) == token else b""


def _session_hash(session: str) -> bytes:
    return hashlib.sha256(session.encode()).digest()[:_SESSION_HASH_OCTETS]


def _xor(one: bytes, other: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(one, other, strict=True))


def _b64(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode("ascii")
