"""How addresses and mail look on an SMTP wire. Pure functions, no I/O.

What keeps a release from reaching a stranger stands here: an address is written so that no server can read another
one in it, and a mail so that no server can find its end, or a command, before its end.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator

from portal.model.errors import RelayRefused

_STRAY_CR = re.compile(rb"\r(?!\n)")
_BARE_LF = re.compile(rb"(?<!\r)\n")

_BEYOND_ASCII = "\u0080-\U0010ffff"
_ATOM = rf"[A-Za-z0-9!#$%&'*+/=?^_`{{|}}~{_BEYOND_ASCII}-]+"
_DOT_STRING = re.compile(rf"{_ATOM}(?:\.{_ATOM})*")
_QUOTED_STRING = re.compile(rf'"(?:[ !#-\[\]-~{_BEYOND_ASCII}]|\\[ -~])*"')
_ADDRESS_LITERAL = re.compile(r"\[[A-Za-z0-9.:-]+\]")


def path(address: str, *, is_sender: bool) -> str:
    """The address between < and >, its local part quoted when it needs to be (RFC 5321, 4.1.2).

    Rspamd takes the quotes off: ``a b@example.org`` was ``"a b"@example.org``. A local part that is a whole
    quoted-string stays. Senders without a domain do occur (``<root>``) and stay. Raises RelayRefused.
    """
    if is_sender and not address:
        return "<>"
    what = "sender" if is_sender else "recipient"
    if any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in address):
        raise RelayRefused(f"the {what}'s address has characters that no address can have")
    local, at, domain = address.rpartition("@")
    if is_sender and not at:
        local, domain = address, ""
    elif not _is_domain(domain):
        raise RelayRefused(f"the {what}'s address has no domain that mail can be sent to")
    if not local or len(local.encode()) > 256 or len(address.encode()) > 320:
        raise RelayRefused(f"the {what}'s address is too long or has nothing before the @")
    plain = _DOT_STRING.fullmatch(local) and not any(c.isspace() for c in local)
    if not plain and not _QUOTED_STRING.fullmatch(local):
        local = '"' + re.sub(r'(["\\])', r"\\\1", local) + '"'
    return f"<{local}{at}{domain}>"


def _is_domain(domain: str) -> bool:
    if _ADDRESS_LITERAL.fullmatch(domain):
        return True
    # Beyond ASCII letters, marks and numbers only: some punctuation is read as a dot by IDNA.
    return bool(domain) and all(
        c.isalnum() or c in "._-" if c.isascii() else unicodedata.category(c)[0] in "LMN" for c in domain
    )


def wire(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The mail as it goes over the wire, final dot included; however the chunks are cut, the octets are the same.

    The only line end is CRLF, so that no server between here and the mailbox can see the end of the mail, or a
    command, in what another one takes for text ("SMTP smuggling", CVE-2023-51764).
    """
    held_back, at_line_start = b"", True
    for chunk in chunks:
        data = held_back + chunk
        held_back = b"\r" if data.endswith(b"\r") else b""
        if held_back:
            data = data[:-1]
        if not data:
            continue
        ends = data.count(b"\r\n")
        if data.count(b"\r") != ends:
            data = _STRAY_CR.sub(b" ", data)
        if data.count(b"\n") != ends:
            data = _BARE_LF.sub(b"\r\n", data)
        if at_line_start and data.startswith(b"."):
            yield b"."
        at_line_start = data.endswith(b"\n")
        yield data.replace(b"\n.", b"\n..")
    if held_back:
        yield b" "
        at_line_start = False
    yield b".\r\n" if at_line_start else b"\r\n.\r\n"
