"""Wire format of addresses and messages in SMTP. Pure functions, no I/O.

These functions keep a release from reaching a stranger: an address is written so that no server can read another
address in it, and a message so that no server can find its end, or a command, before its end.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator

from portal.model.errors import RelayRefused

# Each class excludes what ASCII has of other characters, so that everything beyond ASCII belongs to it (RFC 6531).
# Ranges up to U+10FFFF would take milliseconds to compile, at each start of a command.
_ATOM = r'[^\0-\x20"(),.:;<>@\[\\\]\x7f]+'
_DOT_STRING = re.compile(rf"{_ATOM}(?:\.{_ATOM})*")
_QUOTED_STRING = re.compile(r'"(?:[^\0-\x1f"\\\x7f]|\\[ -~])*"')
_ADDRESS_LITERAL = re.compile(r"\[[A-Za-z0-9.:-]+\]")


def path(address: str, *, is_sender: bool) -> str:
    """Return the address between < and >, with its local part quoted if necessary (RFC 5321, 4.1.2).

    Rspamd removes the quotes: ``a b@example.org`` was ``"a b"@example.org``. A local part that is a quoted-string
    already is kept. Senders without a domain (``<root>``) do occur and are kept. Raises RelayRefused.
    """
    if is_sender and not address:
        return "<>"
    what = "sender" if is_sender else "recipient"
    if any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in address):
        raise RelayRefused(f"the {what}'s address contains invalid characters")
    local, at, domain = address.rpartition("@")
    if is_sender and not at:
        local, domain = address, ""
    elif not _is_domain(domain):
        raise RelayRefused(f"the {what}'s address has no valid domain")
    if not local or len(local.encode()) > 256 or len(address.encode()) > 320:
        raise RelayRefused(f"the {what}'s address is too long or has no local part")
    plain = _DOT_STRING.fullmatch(local) and not any(c.isspace() for c in local)
    if not plain and not _QUOTED_STRING.fullmatch(local):
        local = '"' + re.sub(r'(["\\])', r"\\\1", local) + '"'
    return f"<{local}{at}{domain}>"


def _is_domain(domain: str) -> bool:
    if _ADDRESS_LITERAL.fullmatch(domain):
        return True
    # Of the characters beyond ASCII only letters, marks and numbers, since IDNA reads some punctuation as a dot.
    return bool(domain) and all(
        c.isalnum() or c in "._-" if c.isascii() else unicodedata.category(c)[0] in "LMN" for c in domain
    )


def wire(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the message as it is sent, including the final dot. The octets do not depend on the borders of the chunks.

    The only line end is CRLF, so that no server between here and the mailbox can see the end of the message, or a
    command, in octets that another server takes for text ("SMTP smuggling", CVE-2023-51764).
    """
    held_back, at_line_start = b"", True
    for chunk in chunks:
        data = held_back + chunk
        held_back = b"\r" if data.endswith(b"\r") else b""
        if held_back:
            data = data[:-1]
        if not data:
            continue
        data = data.replace(b"\r\n", b"\n").replace(b"\r", b" ").replace(b"\n", b"\r\n")
        if at_line_start and data.startswith(b"."):
            yield b"."
        at_line_start = data.endswith(b"\n")
        yield data.replace(b"\n.", b"\n..")
    if held_back:
        yield b" "
        at_line_start = False
    yield b".\r\n" if at_line_start else b"\r\n.\r\n"
