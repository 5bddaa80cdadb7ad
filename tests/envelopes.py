"""Odd addresses, and messages that try to smuggle another one: what a relay that writes either wrongly gives away."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from random import Random

# ---- addresses

_ODD = 'abc"\\.@ <>,;:()[]é+'
_INVALID = "\r\n\t\0\x7f\x85\u2028\ud800\ufffd"
_WHOLE = (
    "", "<>", "alice", "@", "@example.org", "alice@", "root", "MAILER-DAEMON", "unknown", "<alice@example.org>",
    "alice@example.org> NOTIFY=SUCCESS", "alice@example.org>\r\nRCPT TO:<mallory@example.org",
    "alice@example.org,mallory@example.org", "alice@example.org mallory@example.org", "a" * 257 + "@example.org",
    "é" * 129 + "@example.org", "alice@" + "e" * 320,
)  # fmt: skip
_DOMAINS = (
    "exa mple.org", "example,org", "example。org", "é.example", "例え.jp", "[192.0.2.1]", "[192.0.2.1", "[IPv6:::1]",
    "example.org>", "example.org\r\n", "EXAMPLE.org", "example.org.", "a..b", "-", "x@example.net",
)  # fmt: skip
_LITERAL = re.compile(r'<((?:"(?:[^"\\\r\n]|\\[ -~])*"|[^\s<>",;:()\\@]+)@[^\s<>"@]+)>')


def odd_local_part(dice: Random) -> str:
    """Return a local part without control characters that mostly needs quotes."""
    return "".join(dice.choices(_ODD, k=dice.randint(1, 9)))


def odd_address(dice: Random) -> str:
    """Return an address as a hostile client may write it, often an invalid one."""
    if dice.random() < 0.02:
        return dice.choice(_WHOLE)
    local = odd_local_part(dice) * dice.choice((*[1] * 30, 40))
    if dice.random() < 0.1:
        local = f'"{local}"' if dice.random() < 0.5 else f"{local[:3]}{dice.choice(_INVALID)}{local[3:]}"
    return f"{local}@{dice.choice(_DOMAINS) if dice.random() < 0.1 else 'example.org'}"


def is_one_path(written: str) -> bool:
    """Return whether a strict server reads one path with a domain, and nothing after it (RFC 5321, 4.1.2)."""
    return _LITERAL.fullmatch(written) is not None


def names(written: str, address: str) -> bool:
    """Return whether a path, without < and >, names exactly this address: as it is if it was quoted before."""
    quoted = re.fullmatch(r'"((?:[^"\\]|\\.)*)"(|@[^@]*)', written)
    return address in (written, re.sub(r"\\(.)", r"\1", quoted[1]) + quoted[2] if quoted else written)


# ---- messages

_ENDS = (b"\r", b"\n", b"\r\n", b"\r\r\n", b"\n\r", b"\r\n\r", b"\n\n", b"\r\n\n")
TRICKS = tuple(
    dict.fromkeys(
        [a + b"." + b for a, b in itertools.product(_ENDS, _ENDS)]
        + [a + b"." + b + c for a, b, c in itertools.product((b"\r", b"\n", b"\r\n"), repeat=3)]
    )
)
SECOND_MAIL = (
    b"MAIL FROM:<mallory@example.org>\r\nRCPT TO:<bob@example.org>\r\nDATA\r\nSubject: smuggled\r\n\r\nx\r\n.\r\n"
)


def canonical(data: bytes) -> bytes:
    """Return the data that must arrive, computed in another way than the product does."""
    out = re.sub(rb"\r\n|\r|\n", lambda end: b" " if end[0] == b"\r" else b"\r\n", data)
    return out if out.endswith(b"\r\n") or not out else out + b"\r\n"


def smuggled(trick: bytes, head: bytes, length: int = 0) -> bytes:
    """Return a message whose text ends for some servers at the trick, with commands after it.

    ``head``: its header and the start of its text. It is filled up with lines so that the trick starts at ``length``.
    """
    lines, rest = divmod(max(0, length - len(head)), 78)
    return head + (b"x" * 76 + b"\r\n") * lines + b"x" * rest + trick + SECOND_MAIL


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    """Return the data in pieces."""
    return [data[a:b] for a, b in itertools.pairwise([0, *places, len(data)])]


def smuggling_variants(head: bytes, edges: Sequence[int]) -> Iterator[list[bytes]]:
    """Yield the pieces of messages in which each octet of each trick is the first one after an edge of a buffer.

    Each is one piece, two pieces that meet at the edge, and pieces of one octet around it.
    """
    for trick in TRICKS:
        for edge, before in itertools.product(edges, range(len(trick) + 1)):
            data = smuggled(trick, head, edge - before)
            yield [data]
            yield cut(data, [edge])
            yield cut(data, range(edge - 8, edge + 9))
