"""The sender of a message: which address it is, whether Rspamd authenticated it, and how it is shown.

Texts are marked with `N_` for catalogues; templates translate them with ``_()``. `text.shown` cleans all text from the
message; templates must still escape it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from functools import cache

from publicsuffixlist import PublicSuffixList

from portal.model import from_header
from portal.model.domains import lower_case, punycode, to_ascii, to_unicode
from portal.model.look_alikes import looks_alike
from portal.model.message import Facts, Flag, Message, Tier
from portal.model.record import record
from portal.model.text import N_, shown

LOOKS_ALIKE = N_("The sender's domain contains look-alike letters and may imitate another domain")
OTHER_IN_NAME = N_("The display name shows a different address than the real sender")
SEVERAL = N_("The message names several senders; mail programs may show only one of them")

_SHOWN_ADDRESSES = 2
_NAME_CHARACTERS = 80
_ADDRESS_CHARACTERS = 120
_ADDRESS = re.compile(r"[^\s<>()\[\]\",;:]{1,64}@[^\s<>()\[\]\",;:@]{1,255}")
# Other spellings that people read as an address: blanks around the @, or a word in brackets in its place.
_SPELLED_ADDRESS = re.compile(
    r"([^\s<>()\[\]{}\"',;:@]{1,64}) ?(?:@|[(\[{] ?(?:at|@) ?[)\]}]) ?((?:[\w-]{1,63}\.){1,9}[^\W\d][\w-]{1,62})",
    re.IGNORECASE,
)
# The option of R_DKIM_ALLOW. A domain or selector with a colon could make it look like another domain's.
_SIGNED_BY = re.compile(r"([^:\s]+):s=[^:\s]+")
_IP = frozenset("0123456789]")  # no top-level domain ends with one of these
_DMARC_PASSED = "DMARC_POLICY_ALLOW"
_DMARC_FAILED = frozenset(
    {
        "DMARC_POLICY_REJECT", "DMARC_POLICY_QUARANTINE", "DMARC_POLICY_SOFTFAIL", "DMARC_BAD_POLICY",
        "BLACKLIST_DMARC",
    }
)  # fmt: skip


@record(frozen=True, slots=True)
class Sender:
    """A sender, cleaned for showing: never show the name without the address. ``str()`` returns both in one line."""

    name: str  # "" if missing
    address: str  # "" if missing; the first two, if there are several
    warning: str  # "" or a sentence to show next to it, to be translated
    instead: str = ""  # a text to show if the address is missing, to be translated
    envelope: str = ""  # the envelope sender's address if it is another one

    def __str__(self) -> str:
        address = self.address or self.instead
        return f"{self.name} <{address}>" if self.name else address


def from_address(message: Facts) -> str:
    """Return the address in the From field in lower case, else the envelope sender's, "" if both are missing.

    It is the first one if the field has several.
    """
    return address_in(message.header_from) or lower_case(message.envelope_sender or "")


def address_in(header_from: str) -> str:
    """Return the first address of a `Facts.header_from` in lower case, "" if missing."""
    return next((lower_case(each.address) for each in from_header.parse(header_from) if each.address), "")


@record(frozen=True, slots=True)
class Proof:
    """A proof that the owner of a domain sent a message."""

    method: str  # DMARC or DKIM
    domain: str  # with A-labels


def authentic(message: Facts) -> bool:
    """Return whether the owner of the domain in the From field sent the message."""
    return proof(message) is not None


def proof(message: Facts) -> Proof | None:
    """Return what proves, by Rspamd's symbols, that the owner of the domain in the From field sent the message.

    The message must have one From field with one address. DMARC passed, or it did not fail and a valid DKIM signature
    is of the same organizational domain (RFC 7489, 3.2): many domains have no DMARC record. SPF alone proves nothing,
    since it checks the domain of the envelope sender. FORGED_SENDER, that domain differs, is usual for bulk mail.
    """
    if message.from_count != 1 or Flag.SYMBOLS in message.flags:
        return None
    domain = organizational_domain(address_in(message.header_from).rpartition("@")[2])
    if not domain:
        return None
    symbols = {symbol.name: symbol.options for symbol in message.symbols}
    # DMARC is checked for the domain that Rspamd found in the field. It must be the one that is shown.
    checked = symbols.get(_DMARC_PASSED)
    if checked is not None and (not checked or domain == organizational_domain(checked[0])):
        return Proof("DMARC", domain)
    if not _DMARC_FAILED.isdisjoint(symbols):
        return None
    signed_by = (match[1] for option in symbols.get("R_DKIM_ALLOW", ()) if (match := _SIGNED_BY.fullmatch(option)))
    return Proof("DKIM", domain) if domain in map(organizational_domain, signed_by) else None


def trusted(message: Facts) -> bool:
    """Return whether signs of trust may be shown: the message is authentic, and its From field gets no warning."""
    return authentic(message) and not sender_shown(message).warning


def needs_check(message: Message) -> bool:
    """Return whether a recipient should look at a message before releasing it: because of its tier, or because its From
    field gets a warning."""
    return message.tier is not Tier.SPAM or sender_shown(message).warning != ""


def organizational_domain(host: str) -> str:
    """Return the domain that was registered below a public suffix, with A-labels; a public suffix is its own.

    Returns "" for a name that IDNA maps to another one, since Rspamd checks it as it is written, and for an IP address.
    """
    encoded = to_ascii(host)
    if not encoded.isascii() or to_unicode(encoded) not in (lower_case(host), to_unicode(host)) or encoded[-1:] in _IP:
        return ""
    return _suffixes().privatesuffix(encoded) or encoded


def is_public_suffix(host: str) -> bool:
    """Return whether anybody can register a domain below this one, which has A-labels."""
    return _suffixes().privatesuffix(host) is None


def is_top_level(label: str) -> bool:
    """Return whether this is a top-level domain of the public suffix list."""
    return _suffixes().publicsuffix(label, accept_unknown=False) == label


@cache
def _suffixes() -> PublicSuffixList:
    return PublicSuffixList()  # loaded when it is first needed: 50 ms, 4 MB


def sender_shown(message: Facts) -> Sender:
    """Return the sender of a message for recipients: from the From fields, else from the envelope.

    It has a warning if there are several, if the display name contains another address, which mail programs that hide
    the real address would show, or if the domain has letters that look like others. A domain that is not ASCII is
    followed by its punycode.
    """
    mailboxes = from_header.parse(message.header_from)
    found = [mailbox.address for mailbox in mailboxes if mailbox.address]
    envelope, name = message.envelope_sender, mailboxes[0].name
    if not found and not envelope:
        instead = N_("unknown sender") if envelope is None else N_("no sender address, as in automatic replies")
        return Sender(shown(name, _NAME_CHARACTERS), "", "", instead)
    addresses = found or [envelope or ""]
    warning = ""
    if max(message.from_count or 0, len(mailboxes)) > 1:
        warning = SEVERAL
    elif any(other.lower() != addresses[0].lower() for other in _addresses_in(name)):
        warning = OTHER_IN_NAME
    elif _pretends(addresses[0]):
        warning = LOOKS_ALIKE
    several = ", ".join(map(_address_shown, addresses[:_SHOWN_ADDRESSES]))
    return Sender(
        shown(name, _NAME_CHARACTERS),
        several + ", …" if len(addresses) > _SHOWN_ADDRESSES else several,
        warning,
        envelope=_address_shown(envelope) if envelope and not _is_among(envelope, addresses) else "",
    )


def _is_among(envelope_sender: str, addresses: list[str]) -> bool:
    same = {envelope_sender.lower(), from_header.normal_address(envelope_sender).lower()}
    return any(address.lower() in same for address in addresses)


def _pretends(address: str) -> bool:
    """Return whether an address's domain looks like another one, also after `shown` removed characters from it.

    A domain with an invisible character is another domain than the one that is shown, and Rspamd did not check the
    DMARC policy of the latter.
    """
    host = address.rpartition("@")[2]
    return shown(host, len(host)) != host or looks_alike(host)


def _addresses_in(name: str) -> Iterator[str]:
    # Invisible characters must not prevent an address from being found, and neither must other forms of the @.
    text = unicodedata.normalize("NFKC", shown(name, 1000))[:2000]
    yield from (match.group().strip(".'") for match in _ADDRESS.finditer(text))
    yield from (f"{local}@{host}" for local, host in _SPELLED_ADDRESS.findall(text))


def _address_shown(address: str) -> str:
    """Return an address cleaned for showing. If its domain is not ASCII, the name that DNS knows follows."""
    clean = shown(address, 1000)
    host = _host(clean)
    return _cut(clean) if host.isascii() else f"{_cut(clean)} ({_cut(punycode(host))})"


def _host(address: str) -> str:
    """Return the domain of a sender in lower case, otherwise as written.

    The mapping of UTS 46 would make a domain that only looks like a known sender's equal to it, although Rspamd checked
    another domain.
    """
    return address.rpartition("@")[2].lower()


def _cut(address: str) -> str:
    """Shorten an address in the middle: the end shows who owns a domain, while a forged address may begin with a
    complete other address."""
    if len(address) <= _ADDRESS_CHARACTERS:
        return address
    return f"{address[: _ADDRESS_CHARACTERS // 2 - 1]}…{address[-_ADDRESS_CHARACTERS // 2 :]}"
