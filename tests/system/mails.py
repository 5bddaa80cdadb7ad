"""Mail for the system tests."""

from __future__ import annotations

ALICE, BOB, MALLORY = "alice@example.org", "bob@example.org", "mallory@example.org"
SENDER = "promo@example.net"
REJECTED = {"X-Test-Score": "20"}


def spam(word: str, headers: dict[str, str], body: bytes = b"Buy!\r\n") -> bytes:
    """Return a mail with ``word`` in its Subject whose headers make test-rules.lua set a verdict."""
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return (
        f"{head}From: Promo <{SENDER}>\r\nTo: {ALICE}\r\nDate: Sun, 22 Nov 2026 08:00:00 +0000\r\n"
        f"Subject: {word} Grüße\r\nMessage-ID: <{word}@example.net>\r\nMIME-Version: 1.0\r\n"
        "Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n"
    ).encode() + body
