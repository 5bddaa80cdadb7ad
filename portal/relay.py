"""Handing bytes to a mail server: SMTP, SMTPS and LMTP. The only user of smtplib."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager


class Connection:
    def send(self, envelope_sender: str, recipient: str, chunks: Iterable[bytes], *, has_8bit: bool) -> str:
        raise NotImplementedError


class Relay:
    """One mail server, by address: ``smtp://[user:password@]host[:port]``, ``smtps://``, ``lmtp://``."""

    def __init__(self, url: str, *, reply_seconds: float = 10, total_seconds: float = 30) -> None:
        self.url = url

    def send(self, envelope_sender: str, recipient: str, chunks: Iterable[bytes], *, has_8bit: bool) -> str:
        raise NotImplementedError

    def connection(self) -> AbstractContextManager[Connection]:
        raise NotImplementedError

    def probe(self) -> str:
        raise NotImplementedError
