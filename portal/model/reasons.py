"""Rspamd's verdict in plain language, and senders cleaned for showing, both for pages and digests.

Depends on the message alone. Texts are marked with `N_` for catalogues; templates translate them with ``_()``.
`text.shown` cleans all text from the message; templates must still escape it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache

from portal.model.domains import lower_case, punycode
from portal.model.look_alikes import looks_alike
from portal.model.message import Flag, Message, Symbol, Tier
from portal.model.text import N_, shown

REASONS = 3  # in a row


# The first match wins; `*` as in fnmatch. The names are those of Rspamd's stock configuration
# (rspamd conf/scores.d and rules/), grouped by their meaning to a recipient.
_WORDS: tuple[tuple[str, str], ...] = (
    ("*VIRUS*", N_("A virus scanner found malware")),
    ("CLAM*", N_("A virus scanner found malware")),
    ("*MALWARE*", N_("Contains malware or a link to malware")),
    ("URLHAUS*", N_("Contains a link to a site that spreads malware")),
    ("*PHISH*", N_("Looks like phishing: tries to get your password or money")),
    ("PH_SURBL_MULTI", N_("Contains a link to a known phishing site")),
    ("MW_SURBL_MULTI", N_("Contains a link to a site that spreads malware")),
    ("CRACKED_SURBL", N_("Contains a link to a hacked site")),
    ("ABUSE_SURBL", N_("Contains a link to a known spam site")),
    ("OLETOOLS*", N_("Contains an Office document with a suspicious macro")),
    ("*MACRO*", N_("Contains an Office document with a macro")),
    ("MIME_ENCRYPTED_ARCHIVE", N_("Contains an encrypted archive that cannot be scanned")),
    ("MIME_ARCHIVE_IN_ARCHIVE", N_("Contains an archive inside another archive")),
    ("MIME_DOUBLE_BAD_EXTENSION", N_("An attachment is disguised as another file type")),
    ("MIME_BAD_EXTENSION", N_("An attachment has a dangerous file type")),
    ("MIME_BAD_ATTACHMENT", N_("An attachment has a dangerous file type")),
    ("MIME_OBFUSCATED_ARCHIVE", N_("Contains an archive that hides its contents")),
    ("MIME_EXE_IN_GEN_SPLIT_RAR", N_("Contains a program hidden in an archive")),
    ("PDF_*", N_("Contains a suspicious PDF document")),
    ("SPOOF_DISPLAY_NAME", N_("The display name shows a different address than the real sender")),
    ("*SPOOF*", N_("Pretends to be from someone else")),
    ("FORGED_SENDER*", N_("The From address differs from the sending address")),
    ("FORGED_RECIPIENTS*", N_("Not addressed to you")),
    ("FROM_NEQ_DISPLAY_NAME", N_("The display name shows a different address than the real sender")),
    ("DISPLAY_NAME_*", N_("The display name shows a different address than the real sender")),
    ("FORGED_*", N_("The named email program did not create this message")),
    ("DMARC_POLICY_*", N_("The sender's domain rejects this message as forged (DMARC)")),
    ("R_SPF_FAIL", N_("Sending server not authorized by the sender's domain (SPF)")),
    ("R_SPF_SOFTFAIL", N_("Sending server probably not authorized by the sender's domain (SPF)")),
    ("R_DKIM_REJECT", N_("Invalid signature: the message may have been altered")),
    ("ARC_REJECT", N_("Invalid signature: the message may have been altered")),
    ("FUZZY_DENIED", N_("The same message was reported as spam elsewhere")),
    ("FUZZY_PROB", N_("A very similar message was reported as spam elsewhere")),
    ("*FUZZY*", N_("A very similar message was reported as spam elsewhere")),
    ("RAZOR*", N_("The same message was reported as spam elsewhere")),
    ("PYZOR*", N_("The same message was reported as spam elsewhere")),
    ("DCC*", N_("The same message was sent to many recipients")),
    ("BAYES_SPAM", N_("The text resembles known spam")),
    ("NEURAL_SPAM*", N_("The overall pattern resembles known spam")),
    ("RBL_SPAMHAUS*", N_("Sent from a server known for spam")),
    ("DBL_*", N_("Contains a link to a known spam site")),
    ("URIBL_*", N_("Contains a link to a known spam site")),
    ("*_URIBL*", N_("Contains a link to a known spam site")),
    ("*SURBL*", N_("Contains a link to a known spam site")),
    ("RSPAMD_URIBL", N_("Contains a link to a known spam site")),
    ("RSPAMD_EMAILBL", N_("Contains an email address known for spam")),
    ("MSBL_EBL*", N_("Contains an email address known for spam")),
    ("RBL_*", N_("Sent from a server known for spam")),
    ("*_RBL", N_("Sent from a server known for spam")),
    ("RECEIVED_*", N_("Passed through a server known for spam")),
    ("IP_SCORE*", N_("The sending network has sent a lot of spam")),
    ("IP_REPUTATION_SPAM", N_("The sending network has sent a lot of spam")),
    ("URL_REPUTATION_SPAM", N_("Contains a link to a site often found in spam")),
    ("*REPUTATION_SPAM", N_("The sender has a bad reputation")),
    ("HFILTER_H*", N_("The sending server is not set up like a mail server")),
    ("RDNS_NONE", N_("The sending server has no DNS name")),
    ("RDNS_DNSFAIL", N_("The sending server has no DNS name")),
    ("ONCE_RECEIVED*", N_("Sent directly from a computer, not through a mail server")),
    ("DIRECT_TO_MX", N_("Sent directly from a computer, not through a mail server")),
    ("HTTP_TO_IP", N_("Contains a link to an IP address instead of a site name")),
    ("URL_*", N_("Contains a link that hides its destination")),
    ("SUSPICIOUS_URL*", N_("Contains a link that hides its destination")),
    ("*REDIRECTOR*", N_("Contains a link that hides its destination")),
    ("ZERO_*FONT*", N_("Contains invisible text")),
    ("R_WHITE_ON_WHITE", N_("Contains invisible text")),
    ("MANY_INVISIBLE_PARTS", N_("Contains invisible text")),
    ("R_MIXED_CHARSET*", N_("Mixes look-alike letters from different alphabets")),
    ("R_SUSPICIOUS_IMAGES", N_("Mostly images, hardly any text")),
    ("HTML_SHORT_LINK_IMG*", N_("Mostly images, hardly any text")),
    ("R_PARTS_DIFFER", N_("The plain text differs from the formatted text")),
    ("SUBJ_ALL_CAPS", N_("The subject is all capitals")),
    ("SUBJECT_*", N_("The subject looks like spam")),
    ("SUBJ_*", N_("The subject looks like spam")),
    ("LEAKED_PASSWORD_SCAM*", N_("Contains threats and demands money")),
    ("*SCAM*", N_("Looks like a scam")),
    ("*BITCOIN*", N_("Asks for a payment in cryptocurrency")),
    ("ADVANCE_FEE*", N_("Promises money in return for an advance payment")),
    ("FREEMAIL_REPLYTO*", N_("Replies go to a different address at a free email provider")),
    ("*REPLYTO*", N_("Replies go to a different address")),
    ("INVALID_*", N_("Does not follow email standards")),
    ("MISSING_*", N_("Required headers are missing")),
    ("BROKEN_*", N_("Does not follow email standards")),
    ("MULTIPLE_*", N_("Does not follow email standards")),
    ("GTUBE", N_("Test message for spam filters")),
    ("*BLACKLIST*", N_("The sender is on your mail server's blocklist")),
    ("*BLOCKLIST*", N_("The sender is on your mail server's blocklist")),
    ("BULK*", N_("Bulk email")),
    ("GREYLIST", N_("First message from this sender")),
)
# These take precedence over `_WORDS`: stock symbols of Rspamd for which those patterns give a wrong text, and symbols
# with a high score that no pattern matches. The texts are those above.
_EXCEPTIONS: tuple[tuple[str, str], ...] = (
    ("RBL_VIRUSFREE*", N_("Sent from a server known for spam")),  # the name of a blocklist
    # Not a blocklist of the site: Rspamd's whitelist has the domain, and the message fails the domain's policies
    # (whitelist_group.conf).
    ("BLACKLIST_DMARC", N_("Pretends to be from someone else")),
    ("BLACKLIST_SPF*", N_("Pretends to be from someone else")),
    ("BLACKLIST_DKIM", N_("Pretends to be from someone else")),
    ("VIOLATED_DIRECT_SPF", N_("Sending server not authorized by the sender's domain (SPF)")),
    ("MIME_BAD_UNICODE", N_("An attachment is disguised as another file type")),
    ("R_UNDISC_RCPT", N_("Not addressed to you")),
    ("OMOGRAPH_URL", N_("Mixes look-alike letters from different alphabets")),
    ("ZERO_WIDTH_SPACE_URL", N_("Contains a link that hides its destination")),
    ("R_SUSPICIOUS_URL", N_("Contains a link that hides its destination")),
    ("HTML_META_REFRESH_URL", N_("Contains a link that hides its destination")),
    ("URL_IN_SUBJECT", N_("The subject looks like spam")),
    ("FREEMAIL_AFF", N_("Promises money in return for an advance payment")),
    ("UNDISC_RCPTS_BULK", N_("Bulk email")),
    ("EMPTY_SUBJECT", N_("Required headers are missing")),
    *(
        (name, N_("Does not follow email standards"))
        for name in (
            "*_EMPTY_DELIMITER", "*_EXCESS_BASE64", "*_EXCESS_QP", "*_NEEDS_ENCODING", "BOGUS_*", "CTYPE_*",
            "DATE_IN_*", "ENVFROM_INVALID", "FORGED_GENERIC_RECEIVED*", "FROM_INVALID", "HFILTER_FROMHOST_*",
            "HFILTER_MID_*", "HFILTER_RCPT_*", "RCVD_ILLEGAL_CHARS", "REPLYTO_EMAIL_HAS_TITLE", "REPLYTO_UNPARSEABLE",
            "SUSPICIOUS_BOUNDARY*",
        )
    ),
)  # fmt: skip


@lru_cache(maxsize=4096)  # a site has some hundred symbols; row of the bench: "a digest without cached reasons"
def _text_of(name: str) -> str | None:
    upper = name.upper()
    patterns = (*_EXCEPTIONS, *_WORDS)
    return next((words for pattern, words in patterns if fnmatchcase(upper, pattern)), None)


def explain(symbol: Symbol) -> str:
    """Return one symbol as a text; for an unknown symbol, a text about its score."""
    if symbol.score < 0:
        return N_("A sign that the message is legitimate")
    words = _text_of(symbol.name)
    if words is not None and symbol.score > 0:
        return words
    if symbol.score >= 4:
        return N_("A strong sign of spam")
    if symbol.score > 0:
        return N_("A sign of spam")
    return N_("Information only, no effect on the score")


def why(message: Message) -> list[str]:
    """Return the main reasons why a message was held, one to three."""
    against = sorted((s for s in message.symbols if s.score > 0), key=lambda s: (-s.score, s.name))
    if message.tier is Tier.DANGEROUS:
        # Symbols of dangerous content come first, regardless of their score.
        against.sort(key=lambda s: not any(fnmatchcase(s.name.upper(), p) for p in _DANGEROUS))
    found = list(dict.fromkeys(words for words in (_text_of(s.name) for s in against) if words))[:REASONS]
    if not found:
        found = [_by_score(message, against)]
    if message.flags:
        unchecked = message.flags == {Flag.FORCED}
        problem = N_("Some checks may have been skipped") if unchecked else N_("The spam filter's report is incomplete")
        found = [*found[: REASONS - 1], problem]
    return found


_DANGEROUS = ("*VIRUS*", "CLAM*", "*MALWARE*", "URLHAUS*", "*PHISH*", "P?_SURBL_MULTI", "MW_SURBL_MULTI", "OLETOOLS*")


def _by_score(message: Message, against: list[Symbol]) -> str:
    if message.tier is Tier.DANGEROUS:
        return N_("Classified as dangerous")
    if against and against[0].score >= 4:
        return N_("A strong sign of spam")
    if len(against) > 1:
        return N_("Several signs of spam")
    return N_("Classified as spam")


@dataclass(frozen=True, slots=True)
class Sender:
    """A sender, cleaned for showing: never show the name without the address. ``str()`` returns both in one line."""

    name: str  # "" if missing
    address: str  # "" if missing
    warning: str  # "" or a sentence to show next to it, to be translated
    instead: str = ""  # a text to show if the address is missing, to be translated

    def __str__(self) -> str:
        address = self.address or self.instead
        return f"{self.name} <{address}>" if self.name else address


_ADDRESS = re.compile(r"[^\s<>()\[\]\",;:]{1,64}@[^\s<>()\[\]\",;:@]{1,255}")


def sender_shown(message: Message) -> Sender:
    """Return the sender of a message for recipients: from the From header, else from the envelope.

    It has a warning if the display name contains another address, which mail programs that hide the real address would
    show, or if the domain has letters that look like others. A domain that is not ASCII is followed by its punycode.
    """
    name, address = _split(message.header_from)
    if not address:
        envelope = message.envelope_sender
        if not envelope:
            instead = N_("unknown sender") if envelope is None else N_("no sender address, as in automatic replies")
            return Sender(shown(name, 80), "", "", instead)
        warning = LOOKS_ALIKE if _pretends(envelope, envelope) else ""
        return Sender(shown(name, 80), _address_shown(envelope), warning)
    warning = ""
    others = [other for other in _addresses(name) if other.lower() != address.lower()]
    if others:
        warning = N_("The display name shows a different address than the real sender")
    elif _pretends(address, message.header_from):
        warning = LOOKS_ALIKE
    return Sender(shown(name, 80), _address_shown(address), warning)


def from_address(message: Message) -> str:
    """Return the address in the From header in lower case, else the envelope sender's, "" if both are missing."""
    return address_in(message.header_from) or lower_case(message.envelope_sender or "")


def address_in(header_from: str) -> str:
    """Return the address in a decoded From header in lower case, "" if missing."""
    return lower_case(_split(header_from)[1])


LOOKS_ALIKE = N_("The sender's domain contains look-alike letters and may imitate another domain")

_ENDS = "<>()[]\",;:'."  # characters that may follow an address, see `_ADDRESS` and `_addresses`


def _pretends(address: str, written: str) -> bool:
    """Return whether an address's domain looks like another one, also after `shown` removed characters from it.

    ``written``: the address or header before cleaning. A domain with an invisible character is another domain than the
    one that is shown, and Rspamd did not check the DMARC policy of the latter.
    """
    seen = shown(address, 320)
    _, at, host = seen.rpartition("@")
    _, there, behind = written.rpartition(at + host)
    if at and (not there or not (behind == "" or behind[0].isspace() or behind[0] in _ENDS)):
        return True
    return looks_alike(host)


def _host(address: str) -> str:
    """Return the domain of a sender in lower case, otherwise as written.

    The mapping of UTS 46 would make a domain that only looks like a known sender's equal to it, although Rspamd checked
    another domain.
    """
    return address.rpartition("@")[2].lower()


def _addresses(text: str) -> Iterator[str]:
    # Invisible characters must not prevent an address from being found.
    return (match.group().strip(".'") for match in _ADDRESS.finditer(shown(text, 1000)))


def _split(header: str) -> tuple[str, str]:
    """Return display name and address of a decoded From header. The *last* angle brackets count (RFC 5322, 3.4)."""
    header = header.strip()[:2000]
    before, bracket, rest = header.rpartition("<")
    if bracket:
        address = rest.partition(">")[0].strip()
        if "@" in address:
            return before.strip().strip('"').replace('\\"', '"').strip(), address
    if "@" in header and not re.search(r"\s", header):
        return "", header.strip("<>")
    found = list(_addresses(header))
    return (header, "") if not found else (header.replace(found[-1], "").strip(' ()<>"'), found[-1])


_ADDRESS_CHARACTERS = 120


def _address_shown(address: str) -> str:
    """Return an address cleaned for showing. If its domain is not ASCII, the name that DNS knows follows."""
    clean = shown(address, 1000)
    host = _host(clean)
    return _cut(clean) if host.isascii() else f"{_cut(clean)} ({_cut(punycode(host))})"


def _cut(address: str) -> str:
    """Shorten an address in the middle: the end shows who owns a domain, while a forged address may begin with a
    complete other address."""
    if len(address) <= _ADDRESS_CHARACTERS:
        return address
    return f"{address[: _ADDRESS_CHARACTERS // 2 - 1]}…{address[-_ADDRESS_CHARACTERS // 2 :]}"
