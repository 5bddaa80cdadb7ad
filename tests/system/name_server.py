"""A name server with a few zones, for DKIM, DMARC and SPF."""

from __future__ import annotations

import socket
import threading
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType

import dns.flags
import dns.message
import dns.rcode
import dns.rrset


class NameServer:
    """Answers TXT and A over UDP until the block ends.

    ``zones``: texts by name; any other name does not exist. All names but those of policies and keys have one address.
    """

    def __init__(self, zones: Mapping[str, str], address: str) -> None:
        self._zones, self._address = zones, address
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port = int(self._socket.getsockname()[1])

    def __enter__(self) -> NameServer:
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._socket.close()

    def _serve(self) -> None:
        while True:
            try:
                data, peer = self._socket.recvfrom(4096)
            except OSError:
                return
            with suppress(dns.exception.DNSException, OSError):
                self._socket.sendto(self._answer(dns.message.from_wire(data)).to_wire(), peer)

    def _answer(self, query: dns.message.Message) -> dns.message.Message:
        answer = dns.message.make_response(query)
        answer.flags |= dns.flags.AA | dns.flags.RA
        [question] = query.question
        name = question.name.to_text(omit_final_dot=True).lower()
        text = self._zones.get(name)
        if text is None:
            answer.set_rcode(dns.rcode.NXDOMAIN)
        elif question.rdtype == dns.rdatatype.TXT:
            parts = " ".join(f'"{text[n : n + 250]}"' for n in range(0, len(text), 250))
            answer.answer.append(dns.rrset.from_text(question.name, 60, "IN", "TXT", parts))
        elif question.rdtype == dns.rdatatype.A and "_" not in name:
            answer.answer.append(dns.rrset.from_text(question.name, 60, "IN", "A", self._address))
        return answer
