"""Signing and verifying: links, cookies, form tokens and the marks on our own mail. The only user of itsdangerous.

A link's token signs one *action* (each has a salt of its own) and one delivery – or, for `PREFERENCES`, `SEVERAL` and
`FORWARDED`, one digest and so its recipient – over packed bytes: 31 characters, a dot, 43 characters of
HMAC-SHA-256; 42 instead of 31 where mail is read under another name than its own, since such a link says whose it is.
It says nothing about the mail, stands in the path, and opens nothing else.

itsdangerous ignores the spare bits of base64's last character and junk after it, so one token has many spellings;
they would dodge counters, so only the canonical one is taken. Its own max_age is not used either: it calls every
token expired whose clock is a second ahead (``timed.py``), which a backward step of our clock would cause.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from uuid import UUID

from itsdangerous import BadSignature, Signer

from portal.model.errors import LinkExpired, LinkInvalid, SettingsError
from portal.model.message import DeliveryId, spellings

MARK_HEADER = "X-Quarantine-Mark"
KEY_BYTES = 32  # the least; shorter keys are refused
_PACKED = struct.Struct(">B16sHI")  # action, UUID, delivery number, issued at (Unix seconds)
_READER_OCTETS = 8  # behind these, for mail that is held for another name than the reader's
_TOKEN = re.compile(r"(?:[A-Za-z0-9_-]{31}|[A-Za-z0-9_-]{42})\.[A-Za-z0-9_-]{43}", re.ASCII)
_CLOCK_STEP = timedelta(minutes=5)  # how far in the future a token may seem to come from
_DEVICE_PEOPLE = 8  # recipients one browser is remembered for


class Action(Enum):
    """What a link may do. The value is the byte in the token and never changes; the salt is the name."""

    RELEASE = 1
    DELETE = 2
    REQUEST = 3
    PREFERENCES = 4
    SHOW = 5
    SEVERAL = 6
    FORWARDED = 7


@dataclass(frozen=True, slots=True)
class Link:
    """A verified token."""

    action: Action
    id: UUID  # of the message; for PREFERENCES, SEVERAL and FORWARDED of the digest
    number: int  # of the delivery
    issued_at: datetime
    reader: bytes = b""  # whose link it is, see `Links.is_for`; empty: the delivery's own recipient's

    @property
    def key(self) -> DeliveryId:
        """The delivery."""
        return DeliveryId(self.id, self.number)


class Links:
    """Signs with the newest of its keys, verifies with all. ``base_url`` is the public one, without end slash."""

    def __init__(self, keys: Sequence[bytes], base_url: str, lifetime: timedelta) -> None:
        if not keys or any(len(key) < KEY_BYTES for key in keys):
            raise SettingsError(f"links.keys: each signing key needs at least {KEY_BYTES} bytes")
        self._keys = list(keys)
        self._signers: dict[str, Signer] = {}  # by purpose
        self.base_url = base_url
        self.lifetime = lifetime

    def fingerprints(self) -> list[str]:
        """A short public name of each key, oldest to newest, to notice hosts with different ones."""
        return [hashlib.sha256(b"quarantine key " + key).hexdigest()[:16] for key in self._keys]

    # ---- links

    def url(self, action: Action, id: UUID, number: int, issued_at: datetime, reader: str = "") -> str:
        """The address of a link, ending in a slash since mail programs cut other endings off. ``reader`` is whose it
        is, where that is not the delivery's own recipient."""
        return f"{self.base_url}/link/{self.token(action, id, number, issued_at, reader)}/"

    def token(self, action: Action, id: UUID, number: int, issued_at: datetime, reader: str = "") -> str:
        """The token alone."""
        packed = _PACKED.pack(action.value, id.bytes, number, int(issued_at.timestamp()))
        payload = _b64(packed + (_reader(reader, self._keys[-1]) if reader else b""))
        return self._signer(f"link.{action.name}").sign(payload).decode("ascii")

    def verify(self, token: str, now: datetime) -> Link:
        """What a token stands for. Raises LinkInvalid or LinkExpired; revocation is the caller's to check."""
        if not _TOKEN.fullmatch(token):
            raise LinkInvalid("this is not a link of ours")
        payload, _, signature = token.partition(".")
        packed = urlsafe_b64decode(payload + "==")
        if _b64(packed) != payload or _b64(urlsafe_b64decode(signature + "=")) != signature:
            raise LinkInvalid("this is not a link of ours")
        code, id_bytes, number, issued = _PACKED.unpack_from(packed)
        try:
            action = Action(code)
            self._signer(f"link.{action.name}").unsign(token)
        except (ValueError, BadSignature) as error:
            raise LinkInvalid("this is not a link of ours") from error
        issued_at = datetime.fromtimestamp(issued, UTC)
        if issued_at > now + _CLOCK_STEP:
            raise LinkInvalid("this link comes from the future: a clock is wrong")
        if now - issued_at > self.lifetime:
            raise LinkExpired("this link is too old")
        return Link(action, UUID(bytes=id_bytes), number, issued_at, packed[_PACKED.size :])

    def is_for(self, link: Link, reader: str, recipient: str) -> bool:
        """Whether a link to a delivery of ``recipient`` is this reader's; both are identities."""
        if not link.reader:
            return reader == recipient
        names = spellings(reader)
        # Up to version 0.1.1 the two spellings of a domain were two people, and one could read the other's mail.
        if reader == recipient and len(names) == 1:
            return False
        return any(hmac.compare_digest(link.reader, _reader(name, key)) for name in names for key in self._keys)

    # ---- the device cookie: browsers in which a button was pressed for a recipient

    def device(self, cookie: str | None, recipient: str) -> str:
        """The cookie's value with this recipient added."""
        known = {self._person(each) for each in spellings(recipient)}
        people = [self._person(recipient), *(person for person in self._people(cookie) if person not in known)]
        return self._signer("device").sign(".".join(people[:_DEVICE_PEOPLE])).decode("ascii")

    def knows_device(self, cookie: str | None, recipient: str) -> bool:
        """Whether a button was pressed for this recipient in the browser that sent the cookie."""
        people = self._people(cookie)
        return any(self._person(each) in people for each in spellings(recipient))

    def _people(self, cookie: str | None) -> list[str]:
        try:
            return self._signer("device").unsign(cookie or "").decode("ascii").split(".")
        except (BadSignature, UnicodeError):
            return []

    def _person(self, recipient: str) -> str:
        # Under the oldest key, so that adding a newer one does not make browsers forget.
        return _b64(hashlib.blake2b(recipient.encode(), key=self._keys[0][:64], digest_size=12).digest())

    # ---- forms of signed-in pages

    def form_token(self, session: str) -> str:
        """The anti-forgery token for the forms of a session, whose secret cookie value is ``session``."""
        return self._signer("form").get_signature(session).decode("ascii")

    def form_token_fits(self, session: str, token: str) -> bool:
        """Whether a form's token belongs to the session."""
        try:
            return self._signer("form").verify_signature(session.encode(), token.encode("ascii"))
        except UnicodeError:
            return False

    # ---- marks on mail of ours: trace of a release, and "this is our own digest"

    def mark(self, kind: str, id: UUID) -> str:
        """The value of `MARK_HEADER`: what this mail is, signed. ``kind`` is ``release``, ``digest`` or ``mail``."""
        return self._signer("mark").sign(f"{kind} {id}").decode("ascii")

    def read_mark(self, value: str | None) -> tuple[str, UUID] | None:
        """What a mark says, or None when it is not ours."""
        try:
            # A server on the way may have folded the header at the blank (RFC 5322, 2.2.3).
            text = " ".join((value or "").split())
            kind, _, id = self._signer("mark").unsign(text).decode("ascii").partition(" ")
            return kind, UUID(id)
        except (BadSignature, ValueError):
            return None

    def _signer(self, purpose: str) -> Signer:
        if purpose not in self._signers:
            # itsdangerous takes keys oldest to newest, signs with the last and verifies with all.
            self._signers[purpose] = Signer(
                list(self._keys),
                salt=f"quarantine.{purpose}",
                sep=".",
                key_derivation="hmac",
                digest_method=hashlib.sha256,
            )
        return self._signers[purpose]


def _reader(identity: str, key: bytes) -> bytes:
    return hashlib.blake2b(b"reader " + identity.encode(), key=key[:64], digest_size=_READER_OCTETS).digest()


def _b64(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode("ascii")
