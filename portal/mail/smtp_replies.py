"""Classification of SMTP rejections: about this portal, or about the recipient or message. Pure functions, no I/O.

No code distinguishes the two: Postfix replies ``554 5.7.1`` to an unknown client, for a recipient that may not receive
mail, and for spam. So three sources are used, the clearest first: the reply code, the enhanced status code (RFC 3463,
the registry of RFC 5248, RFC 7372), and the words that mail servers use.

A wrong result loses no mail. If a rejection of the portal is taken for one of the message, the message returns to held
with the reason. In the opposite case the release is retried in vain for days. Unknown replies count as being about the
message.
"""

from __future__ import annotations

import re
from collections.abc import Collection

_MAX_CHARACTERS = 2000  # of a reply that may have 200 lines

# Login and encryption (RFC 4954, 6; RFC 5248), and "this host does not accept mail" (RFC 7504).
_PORTAL_CODES = frozenset({521, 523, 524, 525, 530, 534, 535, 538})
# A command is unknown, not implemented or out of sequence, or has an unknown parameter (RFC 5321, 4.2.2). After the
# final dot 500 is "line too long", and the others are not defined.
_PORTAL_CODES_FOR_COMMANDS = frozenset({500, 502, 503, 555})

# Without the class digit: the system is full, accepts no mail, or is wrongly configured (3.1, 3.2, 3.5); credentials,
# weak or unencrypted login (7.8, 7.10, 7.11), disabled account, trust (7.13, 7.14), reverse DNS (7.25). The others are
# Microsoft's: sending limits, login, relaying, and addresses or tenants that are banned.
_PORTAL_STATUS = re.compile(
    r"3\.[125]|7\.(?:8|10|11|13|14|25|54|57|60|64|511|6[0-4]\d|705|708|750)|1\.90|2\.252|4\.5", re.ASCII
)
# Addresses, mailboxes, sizes, content; priorities and changed owners (7.15 to 7.19); DKIM, SPF, DMARC, null MX
# and ARC (7.20 to 7.24, 7.26, 7.27, 7.29); a recipient's own restrictions and a sending domain's authentication
# (Microsoft's 7.1xx, 7.509 and 7.515).
_MESSAGE_STATUS = re.compile(
    r"1\.\d+|2\.\d+|3\.4|4\.[46]|6\.\d+|7\.(?:7|1[5-9]|2[0-4]|26|27|29|30|1\d\d|509|515)", re.ASCII
)
_STATUS = re.compile(
    r"^\s*#?[245]\.(\d{1,3}\.\d{1,3})(?![.\d])|\(#[245]\.(\d{1,3}\.\d{1,3})\b", re.ASCII | re.MULTILINE
)

# Addresses are chosen by strangers. ``<`` may hold a quoted-string that holds ``>``.
_ADDRESS = re.compile(r'<(?:"(?:[^"\\]|\\.)*"|[^<>"])*>|"(?:[^"\\]|\\.)*"@\S*|\S*@\S*')
_QUOTING = re.compile(r'\\(.)|"')
_IP = re.compile(
    r"\[?(?<![\w.])(?:\d{1,3}(?:\.\d{1,3}){3}|(?:ipv6:)?[0-9a-f]{0,4}(?::[0-9a-f]{0,4}){3,7})(?![\w.:])\]?"
)
_URL = re.compile(r"(?:https?://|www\.)\S+")


def _any(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{pattern})" for pattern in patterns))


_NEGATION = r"(?:\bnot?\b|n't\b|\bcannot\b|\bunable\b|\bnever\b|\brefus\w+)"
_BLOCKED = (
    r"\b(?:block\w*|black ?list\w*|deny ?list\w*|listed|banned|denied|rejected|refused|forbidden|prohibited|deferred"
    r"|disallowed|unauthori[sz]ed|reputation|suspicious\w*|dnsbls?|rbl"
    r"|not (?:\w+ )?(?:allowed|permitted|authori[sz]ed|accepted|welcome))\b"
)
_CLIENT_HOST = (
    r"\b(?:client host|remotehost"
    r"|(?:your|client|sending|connecting|remote|source|originating|sender'?s?) (?:\w+ )?"
    r"(?:ip|host|hostname|server|network|mta|mailserver|machine|system|isp|connection|access))\b"
)
# Text between the two, without a word for another thing that is blocked.
_BETWEEN = r"(?:(?!\bmessage\b|\brecipient|\bmailbox|\bcontent\b|\buser\b).){0,60}?"

_RELAY = _any(
    r"\brelay(?:ing|ed)?\b(?!\.\w)(?:[^.;]|\.(?=\w)){0,40}?\b(?:denied|prohibited|refused|forbidden|disallowed|disabled"
    r"|rejected for|not (?:permitted|allowed|authori[sz]ed|enabled))\b",
    rf"{_NEGATION}(?: (?:to|an?|any|be|act|as|use|this|server|host|system|open|mail|e-?mail|messages?|permitted|allowed"
    r"|authori[sz]ed|configured))* relay",
    r"\bden(?:y|ies) relay",
    r"\brelay(?:ing)?\b[^.;]{0,40}\b(?:authenticat|credential)",
    r"\b(?:authenticat|credential)\w*[^.;]{0,40}\brelay(?:ing)?\b",
    r"\brcpthosts\b",
)
# SPF, DKIM and DMARC fail for a message and its sender's domain, although replies use the words for clients.
_SENDER_DOMAIN = _any(r"spf|dkim|dmarc|openspf")
_SENDER_RIGHTS = _any(
    r"\bnot logged in\b",
    r"\bnot owned by\b",
    r"\bsendasdenied",
    r"\bnot (?:have )?(?:the )?(?:permissions?|allowed|authori[sz]ed|permitted) to send (?:as|from|on behalf)\b",
    r"\bmust (?:equal|match)\b.{0,30}\b(?:authori[sz]ed|authenticated|login)\b",
    r"\bemail address is not verified\b",
    r"\bverified sender\b",
    r"\bsending (?:is |was |has been )?(?:suspended|paused|disabled|denied)\b",
)
# Exchange's restrictions of a recipient; mailing lists.
_MESSAGE = _any(
    r"\bresolver\.",
    r"\b(?:no such|unknown) (?:user|recipient|mailbox)\b",
    r"\b(?:user|recipient|mailbox) unknown\b",
    r"\b(?:to|for) (?:this|that|the) (?:mailing|distribution|list|group|recipient|mailbox|alias|user|address)\b",
    r"\b(?:as|like|likely|considered|contains?|identified) (?:\w+ )?(?:spam|unsolicited|junk|virus|malware|phish\w*)\b"
    r"(?! (?:source|sender|host|server))",
    r"\b(?:url|uri|surbl|uribl|attachment|sender domain|domain of sender)\b",
)
# Postfix writes it before the reply of a policy server, which may nevertheless be about the client.
_POSTFIX_PREFIX = re.compile(r"\b(?:recipient|sender) address rejected:")
_CLIENT = _any(
    # login
    r"\b(?:authentication|authori[sz]ation|auth|login|log-?in)\b.{0,20}\b(?:required|needed|mandatory|necessary)\b",
    r"\b(?:requires?|needs?|need) (?:an? |smtp |client |user )*(?:auth\b|authenticat|log-?in\b|login)",
    r"\b(?:must|please|need to|have to) (?:first |be )*(?:authenticate|log ?in|log ?on|sign in|issue an? auth"
    r"|(?:use|enable|turn on) (?:smtp )?auth)",
    r"\b(?:client|you|user|session|connection|host)(?: \w+){0,3} not (?:been )?authenticated\b",
    r"^not authenticated\b",
    r"\bunauthenticated (?:senders?|clients?|users?|hosts?|connections?|access)\b",
    r"\b(?:log ?in|authenticate|auth) first\b",
    r"\b(?:invalid|bad|wrong|missing) (?:login|credentials|password|user ?name)\b",
    r"\bauthentication (?:mechanism|credentials|failed|failure|unsuccessful|rejected|error)\b",
    # encryption
    r"\bstarttls\b",
    r"\b(?:tls|ssl|encryption)(?: \w+){0,2} (?:required|needed|mandatory|necessary)\b",
    r"\b(?:requires?|must use) (?:an? )?(?:tls|ssl|encrypt\w*|secure connection)\b",
    r"\bunencrypted (?:connection|session)",
    # host name and parameters
    r"\b(?:helo|ehlo|lhlo)\b",
    r"\bprotocol (?:error|synchroni[sz]ation)\b",
    r"\b(?:unsupported|unrecogni[sz]ed|unknown|unimplemented) (?:esmtp |mail |rcpt )?(?:option|parameter)",
    r"\b(?:ptr|rdns|reverse[ -](?:dns|hostname|host|lookup|resolution|record|name))\b",
    r"\bcannot (?:find|resolve) your\b",
    r"\bhost ?name lookup\b",
    # IP address
    r"\bmynetworks\b",
    r"\bunauthori[sz]ed (?:client|host)\b",
    r"\bhost (?:is |was )?not (?:allowed|permitted|authori[sz]ed|in|on)\b",
    rf"(?:{_CLIENT_HOST}|\bip\b){_BETWEEN}{_BLOCKED}",
    rf"{_BLOCKED}{_BETWEEN}{_CLIENT_HOST}",
    rf"{_NEGATION}.{{0,40}}?\bfrom (?:you|your|this (?:ip|host|server|network|client)|ip)\b",
)
_SERVER = _any(
    r"\bno smtp service\b",
    r"\b(?:server|host|system|service|machine|we)\b.{0,30}(?:\bnot|n't|\bno longer) accept(?:ing)? "
    r"(?:any )?(?:network |incoming )?(?:messages|mail|e-?mail|connections)\b(?! (?:for|to)\b)",
    r"\b(?:internal|configuration|config) (?:server )?error\b",
    r"\bincorrectly configured\b",
    r"\binsufficient system\b",
)
_LIMIT = _any(
    r"\btoo many (?:concurrent |simultaneous |smtp )*(?:connections|sessions|messages|mails|e-?mails)\b",
    r"\b(?:sending|daily|hourly|submission|outgoing|outbound) (?:\w+ ){0,3}(?:quota|limit|rate)s?\b",
    r"\b(?:rate|frequency)[ -]?limit",
)
# Replies about an address or a message name it. These are about the client if they name neither.
_CLIENT_IF_UNNAMED = _any(
    r"^(?:data command rejected: )?access (?:is |was )?(?:denied|forbidden|refused)\b(?! (?:for|to) @)",
    r"^(?:service|server) (?:is )?(?:currently )?(?:unavailable|not available|refused)\b",
    rf"^(?:connection|client|host) (?:is |was )?{_BLOCKED}",
    r"^blocked\W*(?:see)?$",
    r"\b(?:you|client)(?: \w+)? not (?:allowed|permitted|authori[sz]ed)\b",
    r"\b(?:you|client) (?:do|does) not have permissions?\b",
)
_NAMES_OTHER = _any(
    r"\b(?:recipient|mailbox|user|account|sender|message|content|e-?mail|spam|virus|malware|subject|header|size|list"
    r"|group|domain)s?\b"
)
_RECIPIENT = _any(r"\b(?:recipient|mailbox)(?:'?s)?\b")
_TEMPORARY = _any(
    r"gr[ea]y-?list", r"\btry (?:again|later)\b", r"\btemporar", r"\bcurrently\b", r"\bdeferred\b", r"\bbusy\b"
)


def rejects_portal(code: int, text: str, addresses: Collection[str] = (), *, at_final_dot: bool = False) -> bool:
    """Return True if a 4xx or 5xx reply to MAIL, RCPT, DATA or the final dot rejects this portal.

    True for a reply about the portal's IP address, host name, login, encryption, right to relay or to use that sender,
    sending limits, use of the protocol, or about the mail server's own configuration. False for a reply about this
    recipient or this message. ``text`` is the reply without its code, with \\n between its lines. ``addresses`` are
    sender and recipient as they were sent, since the server may repeat them. A 4xx reply is about the portal only if it
    gives a permanent reason.
    """
    words = _normalized(text, addresses)
    if code < 500:
        return _rejects_client(words) and not (_TEMPORARY.search(words) or _LIMIT.search(words))
    if code in _PORTAL_CODES or (code in _PORTAL_CODES_FOR_COMMANDS and not at_final_dot):
        return True
    found = _STATUS.search(text)
    status = (found[1] or found[2]) if found else ""
    if _PORTAL_STATUS.fullmatch(status):
        return True
    if _RELAY.search(words):
        return True
    if _MESSAGE_STATUS.fullmatch(status):
        return False
    if _rejects_client(words):
        return True
    if _SENDER_DOMAIN.search(words) or _MESSAGE.search(words) or _POSTFIX_PREFIX.search(words):
        return False
    if _SERVER.search(words) or (_LIMIT.search(words) and not _RECIPIENT.search(words)):
        return True
    # 5.7.9 is "authentication mechanism too weak", but Yahoo's "message not accepted for policy reasons" as well.
    return bool(status == "7.9" or _CLIENT_IF_UNNAMED.search(words)) and not _NAMES_OTHER.search(words)


def _rejects_client(words: str) -> bool:
    """Return True if the words of a reply are about the client."""
    if _RELAY.search(words):
        return True
    if _SENDER_DOMAIN.search(words):
        return False
    if _SENDER_RIGHTS.search(words):
        return True
    return bool(_CLIENT.search(words)) and not _MESSAGE.search(words)


def _normalized(text: str, addresses: Collection[str]) -> str:
    """Return the reply in lower case on one line, with ``@`` for each mail address and ``ip`` for each IP address.

    A quoted reply of another server ("… said: …") is removed, since it explains why a recipient is not reachable.
    """
    text = text[:_MAX_CHARACTERS].lower()
    for written in addresses:
        for address in (written.lower(), _QUOTING.sub(r"\1", written.lower())):
            local, at, _ = address.rpartition("@")
            text = text.replace(address, " @ ") if at else text
            text = text.replace(local, " @ ") if " " in local else text  # a quoted local part may be a whole sentence
    text = _STATUS.sub(" ", text)
    text = _ADDRESS.sub(lambda match: " @ " if "@" in match[0] else " ", text)
    text = _URL.sub(lambda match: " openspf " if "openspf" in match[0] else " ", text)
    text = _IP.sub(" ip ", text)
    return " ".join(text.partition(" said:")[0].split()).lstrip(" :;,.-!")
