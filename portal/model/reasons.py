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
from portal.model.message import Message, Symbol, Tier
from portal.model.text import N_, shown

REASONS = 3  # in a row


# The first match wins; `*` as in fnmatch. The names are those of Rspamd's stock configuration
# (rspamd conf/scores.d and rules/), grouped by their meaning to a recipient.
_WORDS: tuple[tuple[str, str], ...] = (
    ("*VIRUS*", N_("A virus scanner found malware in it")),
    ("CLAM*", N_("A virus scanner found malware in it")),
    ("*MALWARE*", N_("It contains or links to malware")),
    ("URLHAUS*", N_("It links to a site that spreads malware")),
    ("*PHISH*", N_("It looks like phishing: it wants your password or your money")),
    ("PH_SURBL_MULTI", N_("It links to a known phishing site")),
    ("MW_SURBL_MULTI", N_("It links to a site that spreads malware")),
    ("CRACKED_SURBL", N_("It links to a site that was broken into")),
    ("ABUSE_SURBL", N_("It links to a site known for spam")),
    ("OLETOOLS*", N_("It has an office document with a suspicious macro")),
    ("*MACRO*", N_("It has an office document with a macro")),
    ("MIME_ENCRYPTED_ARCHIVE", N_("It has an encrypted archive that cannot be checked")),
    ("MIME_ARCHIVE_IN_ARCHIVE", N_("It has an archive hidden in an archive")),
    ("MIME_DOUBLE_BAD_EXTENSION", N_("It has an attachment that pretends to be another kind of file")),
    ("MIME_BAD_EXTENSION", N_("It has an attachment of a dangerous kind")),
    ("MIME_BAD_ATTACHMENT", N_("It has an attachment of a dangerous kind")),
    ("MIME_OBFUSCATED_ARCHIVE", N_("It has an archive that hides what is in it")),
    ("MIME_EXE_IN_GEN_SPLIT_RAR", N_("It has a program hidden in an archive")),
    ("PDF_*", N_("It has a suspicious PDF document")),
    ("SPOOF_DISPLAY_NAME", N_("The sender's name contains another address")),
    ("*SPOOF*", N_("It pretends to come from somebody else")),
    ("FORGED_SENDER*", N_("The sender shown is not the one who sent it")),
    ("FORGED_RECIPIENTS*", N_("It is not addressed to you")),
    ("FROM_NEQ_DISPLAY_NAME", N_("The sender's name contains another address")),
    ("DISPLAY_NAME_*", N_("The sender's name contains another address")),
    ("FORGED_*", N_("It claims to be written with a program that did not write it")),
    ("DMARC_POLICY_*", N_("The sender's domain says that mail like this is forged")),
    ("R_SPF_FAIL", N_("It came from a server the sender's domain does not use")),
    ("R_SPF_SOFTFAIL", N_("It came from a server the sender's domain hardly uses")),
    ("R_DKIM_REJECT", N_("Its signature does not fit: it may have been changed")),
    ("ARC_REJECT", N_("Its signature does not fit: it may have been changed")),
    ("FUZZY_DENIED", N_("The same mail was reported as spam elsewhere")),
    ("FUZZY_PROB", N_("A mail very much like it was reported as spam elsewhere")),
    ("*FUZZY*", N_("A mail very much like it was reported as spam elsewhere")),
    ("RAZOR*", N_("The same mail was reported as spam elsewhere")),
    ("PYZOR*", N_("The same mail was reported as spam elsewhere")),
    ("DCC*", N_("The same mail was sent to very many people")),
    ("BAYES_SPAM", N_("Its words are like those of earlier spam")),
    ("NEURAL_SPAM*", N_("Taken together it looks like earlier spam")),
    ("RBL_SPAMHAUS*", N_("It came from a server known for spam")),
    ("DBL_*", N_("It links to a site known for spam")),
    ("URIBL_*", N_("It links to a site known for spam")),
    ("*_URIBL*", N_("It links to a site known for spam")),
    ("*SURBL*", N_("It links to a site known for spam")),
    ("RSPAMD_URIBL", N_("It links to a site known for spam")),
    ("RSPAMD_EMAILBL", N_("It names a mail address known for spam")),
    ("MSBL_EBL*", N_("It names a mail address known for spam")),
    ("RBL_*", N_("It came from a server known for spam")),
    ("*_RBL", N_("It came from a server known for spam")),
    ("RECEIVED_*", N_("It passed through a server known for spam")),
    ("IP_SCORE*", N_("Much spam came from the same network before")),
    ("IP_REPUTATION_SPAM", N_("Much spam came from the same network before")),
    ("URL_REPUTATION_SPAM", N_("Much spam linked to the same site before")),
    ("*REPUTATION_SPAM", N_("The sender has a bad reputation")),
    ("HFILTER_H*", N_("The server it came from is not set up like a mail server")),
    ("RDNS_NONE", N_("The server it came from has no name")),
    ("RDNS_DNSFAIL", N_("The server it came from has no name")),
    ("ONCE_RECEIVED*", N_("It came straight from a computer, not from a mail server")),
    ("DIRECT_TO_MX", N_("It came straight from a computer, not from a mail server")),
    ("HTTP_TO_IP", N_("It links to a bare number instead of a named site")),
    ("URL_*", N_("It has a link that hides where it leads")),
    ("SUSPICIOUS_URL*", N_("It has a link that hides where it leads")),
    ("*REDIRECTOR*", N_("It has a link that hides where it leads")),
    ("ZERO_*FONT*", N_("It has text that is made invisible")),
    ("R_WHITE_ON_WHITE", N_("It has text that is made invisible")),
    ("MANY_INVISIBLE_PARTS", N_("It has text that is made invisible")),
    ("R_MIXED_CHARSET*", N_("It mixes look-alike letters of several alphabets")),
    ("R_SUSPICIOUS_IMAGES", N_("It is nearly all picture and no text")),
    ("HTML_SHORT_LINK_IMG*", N_("It is nearly all picture and no text")),
    ("R_PARTS_DIFFER", N_("Its plain text says something else than its formatted text")),
    ("SUBJ_ALL_CAPS", N_("Its subject is all capitals")),
    ("SUBJECT_*", N_("Its subject looks like spam")),
    ("SUBJ_*", N_("Its subject looks like spam")),
    ("LEAKED_PASSWORD_SCAM*", N_("It threatens you and asks for money")),
    ("*SCAM*", N_("It looks like a fraud")),
    ("*BITCOIN*", N_("It asks for money in a crypto-currency")),
    ("ADVANCE_FEE*", N_("It promises money for an advance payment")),
    ("FREEMAIL_REPLYTO*", N_("An answer would go to another, free mail address")),
    ("*REPLYTO*", N_("An answer would go to another address")),
    ("INVALID_*", N_("It breaks the rules that mail programs follow")),
    ("MISSING_*", N_("It lacks what every proper mail has")),
    ("BROKEN_*", N_("It breaks the rules that mail programs follow")),
    ("MULTIPLE_*", N_("It breaks the rules that mail programs follow")),
    ("GTUBE", N_("It is a test mail for spam filters")),
    ("*BLACKLIST*", N_("Your mail server's list blocks this sender")),
    ("*BLOCKLIST*", N_("Your mail server's list blocks this sender")),
    ("BULK*", N_("It is bulk mail")),
    ("GREYLIST", N_("It came from a sender never seen before")),
)
# These take precedence over `_WORDS`: stock symbols of Rspamd for which those patterns give a wrong text, and symbols
# with a high score that no pattern matches. The texts are those above.
_EXCEPTIONS: tuple[tuple[str, str], ...] = (
    ("RBL_VIRUSFREE*", N_("It came from a server known for spam")),  # the name of a blocklist
    # Not a blocklist of the site: Rspamd's whitelist has the domain, and the message fails the domain's policies
    # (whitelist_group.conf).
    ("BLACKLIST_DMARC", N_("It pretends to come from somebody else")),
    ("BLACKLIST_SPF*", N_("It pretends to come from somebody else")),
    ("BLACKLIST_DKIM", N_("It pretends to come from somebody else")),
    ("VIOLATED_DIRECT_SPF", N_("It came from a server the sender's domain does not use")),
    ("MIME_BAD_UNICODE", N_("It has an attachment that pretends to be another kind of file")),
    ("R_UNDISC_RCPT", N_("It is not addressed to you")),
    ("OMOGRAPH_URL", N_("It mixes look-alike letters of several alphabets")),
    ("ZERO_WIDTH_SPACE_URL", N_("It has a link that hides where it leads")),
    ("R_SUSPICIOUS_URL", N_("It has a link that hides where it leads")),
    ("HTML_META_REFRESH_URL", N_("It has a link that hides where it leads")),
    ("URL_IN_SUBJECT", N_("Its subject looks like spam")),
    ("FREEMAIL_AFF", N_("It promises money for an advance payment")),
    ("UNDISC_RCPTS_BULK", N_("It is bulk mail")),
    ("EMPTY_SUBJECT", N_("It lacks what every proper mail has")),
    *(
        (name, N_("It breaks the rules that mail programs follow"))
        for name in (
            "*_EMPTY_DELIMITER", "*_EXCESS_BASE64", "*_EXCESS_QP", "*_NEEDS_ENCODING", "BOGUS_*", "CTYPE_*",
            "DATE_IN_*", "ENVFROM_INVALID", "FORGED_GENERIC_RECEIVED*", "FROM_INVALID", "HFILTER_FROMHOST_*",
            "HFILTER_MID_*", "HFILTER_RCPT_*", "RCVD_ILLEGAL_CHARS", "REPLYTO_EMAIL_HAS_TITLE", "REPLYTO_UNPARSEABLE",
            "SUSPICIOUS_BOUNDARY*",
        )
    ),
)  # fmt: skip


@lru_cache(maxsize=4096)  # a site has some hundred symbols, and digests show them again and again
def _text_of(name: str) -> str | None:
    upper = name.upper()
    patterns = (*_EXCEPTIONS, *_WORDS)
    return next((words for pattern, words in patterns if fnmatchcase(upper, pattern)), None)


def explain(symbol: Symbol) -> str:
    """Return one symbol as a text; for an unknown symbol, a text about its score."""
    if symbol.score < 0:
        return N_("This speaks for the mail")
    words = _text_of(symbol.name)
    if words is not None and symbol.score > 0:
        return words
    if symbol.score >= 4:
        return N_("A strong sign of spam")
    if symbol.score > 0:
        return N_("A sign of spam")
    return N_("A note, without weight")


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
        found = [*found[: REASONS - 1], N_("The spam filter's report did not arrive complete")]
    return found


_DANGEROUS = ("*VIRUS*", "CLAM*", "*MALWARE*", "URLHAUS*", "*PHISH*", "P?_SURBL_MULTI", "MW_SURBL_MULTI", "OLETOOLS*")


def _by_score(message: Message, against: list[Symbol]) -> str:
    if message.tier is Tier.DANGEROUS:
        return N_("It was found to be dangerous")
    if against and against[0].score >= 4:
        return N_("A strong sign of spam was found")
    if len(against) > 1:
        return N_("Many small signs of spam came together")
    return N_("The spam filter judged it to be spam")


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
            instead = N_("unknown sender") if envelope is None else N_("no sender, as automatic replies have")
            return Sender(shown(name, 80), "", "", instead)
        warning = LOOKS_ALIKE if _pretends(envelope, envelope) else ""
        return Sender(shown(name, 80), _address_shown(envelope), warning)
    warning = ""
    others = [other for other in _addresses(name) if other.lower() != address.lower()]
    if others:
        warning = N_("The name contains another address than the one this mail is from")
    elif _pretends(address, message.header_from):
        warning = LOOKS_ALIKE
    return Sender(shown(name, 80), _address_shown(address), warning)


def from_address(message: Message) -> str:
    """Return the address in the From header in lower case, else the envelope sender's, "" if both are missing."""
    return address_in(message.header_from) or lower_case(message.envelope_sender or "")


def address_in(header_from: str) -> str:
    """Return the address in a decoded From header in lower case, "" if missing."""
    return lower_case(_split(header_from)[1])


LOOKS_ALIKE = N_("The sender's domain has letters that look like others, so it may pretend to be somebody else")

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
