"""International domain names: one form to store and compare, one to show. The only user of idna.

The form that is stored has A-labels (``xn--mnchen-3ya.example``), since DNS and mail without SMTPUTF8 have no other one
(RFC 5890, 2.3.2.1). The form that is shown has U-labels (``münchen.example``).
"""

from __future__ import annotations

import re
from functools import lru_cache

import idna

from portal.model.look_alikes import looks_alike
from portal.model.text import shown

_DOMAIN_CHARS = 255  # RFC 1035, 2.3.4; longer names are not converted
_ADDRESS_CHARS = 320  # RFC 5321, 4.5.3.1: 64 + @ + 255
_DOTS = re.compile(r"[.\u3002\uff0e\uff61]")  # label separators (RFC 3490, 3.1)


def lower_case(text: str) -> str:
    """Return the text in lower case, without letters whose conversion cannot be reversed.

    Upper case of the new letter must be the old letter: U+212A (KELVIN SIGN) in lower case is a k, but an address with
    it names another mailbox.
    """
    if text.isascii():
        return text.lower()
    return "".join(small if (small := letter.lower()).upper() == letter else letter for letter in text)


def to_ascii(host: str) -> str:
    """Return a domain in lower case with A-labels, as the mapping of UTS 46 makes them, not transitional.

    A name that IDNA 2008 rejects is only converted to lower case. Never raises.
    """
    # ASCII needs no conversion: IDNA leaves it as it is.
    return host.lower() if host.isascii() else _encoded(lower_case(host))


@lru_cache(maxsize=4096)  # a site has a few domains
def _encoded(host: str) -> str:
    """Return a lower-case domain with A-labels. Lower case makes the result idempotent for rejected names too."""
    if len(host) > _DOMAIN_CHARS:
        return host
    try:
        return idna.encode(host, uts46=True).decode("ascii")
    except ValueError:  # IDNAError is one; Python's Unicode tables may lack a character of idna's
        return host


@lru_cache(maxsize=4096)
def to_unicode(host: str) -> str:
    """Return a domain with U-labels if its A-labels are valid and convert back to the same A-labels, else the domain.

    The result is not safe to show: it may look like another domain; see `shown_address`.
    """
    lower = host.lower()
    if "xn--" not in lower or not lower.isascii() or len(lower) > _DOMAIN_CHARS:
        return host
    try:
        found = idna.decode(lower)
    except ValueError:
        return host
    return found if to_ascii(found) == lower else host


def shown_address(address: str, limit: int = _ADDRESS_CHARS) -> str:
    """Return an address or a domain, cleaned by `shown`, with U-labels in the domain.

    A-labels are kept if the U-labels look like another domain or lose a character in cleaning.
    """
    local, at, host = address.rpartition("@")
    readable = to_unicode(host)
    if readable != host and shown(readable, len(readable)) == readable and not looks_alike(readable):
        address = f"{local}{at}{readable}"
    return shown(address, limit)


def punycode(host: str) -> str:
    """Return the name that browsers look up in DNS, converted label by label, also if IDNA 2008 rejects a label."""
    labels = []
    for label in _DOTS.split(host):
        try:
            labels.append(label if label.isascii() else idna.encode(label, uts46=True).decode("ascii"))
        except idna.IDNAError:  # an emoji, for example, which IDNA 2003 allowed and some resolvers still look up
            labels.append(f"xn--{label.encode('punycode').decode('ascii')}")
    return ".".join(labels)
