"""Hostile messages: what can be read is shown, within the limits that the kernel keeps, not a clock."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from portal import reading
from portal.reading import child

pytestmark = pytest.mark.slow
SIZE = 250_000
HEAD = b"From: Promo <promo@example.net>\r\nSubject: Offer\r\n"


def read(data: bytes) -> dict[str, Any]:
    """Read a message in a process with the limits of `child`. Fails if the kernel ends it."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = reading._start("from portal.reading.child import main; main()", theirs.fileno())
        theirs.close()

        def send() -> None:
            with suppress(OSError):  # it has read enough
                ours.sendall(b"text\n" + data)
                ours.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        answer = bytearray()
        with suppress(ConnectionResetError):
            while piece := ours.recv(1 << 20):
                answer += piece
        sender.join()
    assert process.wait() == 0
    assert answer[:1] == b"+" and answer[-1:] == child.END
    parsed: dict[str, Any] = json.loads(answer[1:-1])
    return parsed


def long(value: object) -> object:
    """Return a parameter of a test for `make test-system`: all of them take minutes."""
    return pytest.param(value, marks=pytest.mark.system)


def repeated(pattern: str, size: int = SIZE) -> str:
    return pattern * (size // len(pattern))


# fmt: off
HTML = [
    "<a ", "</a", "<!--", "<![CDATA[", "<?", "</p>", "<", "<<a>", "<div>", "<a>", "<b>", "<p><b>", "<table><a>",
    "<svg>", "<select><option>", "<table><tr><td>", "<b><i></b></i><table>", "<form><p>", "<style>", "<style ",
    "<style>a{", "<style>*/", "<textarea>", "<textarea></textarea>", "&", "&#", "&#9", "&amp", "<p style='a:b'>",
    "<p style='", "<a ='", '<a b="', "<a b= ", "<p a=1 ", "<title>", "<plaintext>", "</", "<!", "<base href=//a>",
    "<img alt=x style=display:none>", "<svg><![CDATA[", "<svg><![CDATA[]]>", "<svg><style></style>", "<style></style>",
    "<style media=print>a{}</style>", "<style>a{}</style><a>", "<table><table>", "<select><table>", "background:",
    "<b style='font-size:9px'>", "</b></p><base>",
]
# fmt: on


@pytest.mark.parametrize("pattern", HTML)
@pytest.mark.parametrize("size", [SIZE, long(1_000_000)])
def test_html_is_read_in_linear_time(pattern: str, size: int) -> None:
    seen = read(
        HEAD + b"Content-Type: text/html\r\n\r\n<p>The words</p>" + repeated(pattern, size).encode() + b"<p>after"
    )
    assert "The words" in seen["text"]


# fmt: off
@pytest.mark.parametrize(
    "inside",
    [
        "color:red;", "a", "display:", "/*", "*/", "{", "0", " ", "a:", "!important", ".a{display:none}", "a,", ".a ",
        "(", "'", "'a'", "'a\n", "/", "(/*)", "}", "}a{", "@a;", "a{b:c;", "[", "a[b]{display:none}", "<!--", ": ",
    ],
)
# fmt: on
@pytest.mark.parametrize(
    "frame",
    ["<style>{}</style>", *map(long, ("<style>p{{{}}}</style>", '<p style="{}">', '<p style="font-size:{}">'))],
)
def test_styles_are_read_in_linear_time(inside: str, frame: str) -> None:
    markup = "<p>The words</p>" + frame.format(repeated(inside)) + repeated("<p class='a b'>x")
    assert "The words" in read(HEAD + b"Content-Type: text/html\r\n\r\n" + markup.encode())["text"]


def parts(number: int) -> bytes:
    body = b"--b\r\nContent-Type: text/plain\r\n\r\nThe words\r\n" * number
    return b'Content-Type: multipart/mixed; boundary="b"\r\n\r\n' + body


def beside(rest: bytes) -> bytes:
    return parts(1) + b"--b\r\nContent-Type: application/pdf\r\n\r\n" + rest


MULTIPARTS = b"--b\r\nContent-Type: multipart/mixed; boundary=zz\r\n\r\n--=?utf-8?q?%s?= =?koi8-r?b?bbbb?=\r\n" % (
    b"a" * 60
)


def nested_boundaries(number: int) -> bytes:
    """Return parts with long boundaries that are within each other."""
    names = [bytes([65 + at % 26]) * 250 + b"%d" % at for at in range(number)]
    level = b"Content-Type: multipart/mixed; boundary=%s\r\n\r\n--%s\r\nContent-Type: a/b\r\n\r\nx\r\n--%s\r\n"
    return parts(1) + b"--b\r\n" + b"".join(level % (name, name, name) for name in names)


def alternatives(number: int) -> bytes:
    """Return HTML alternatives of which each has words of its own."""
    words = (" ".join(f"w{at}x{word}" for word in range(150)) for at in range(number))
    body = "".join(f"--b\r\nContent-Type: text/html\r\n\r\n<p>{each}\r\n" for each in words)
    head = 'Content-Type: multipart/alternative; boundary="b"\r\n\r\n'
    return f"{head}--b\r\n\r\nThe words\r\n{body[:900_000]}".encode()


def nested_alternatives(number: int) -> bytes:
    """Return alternatives of which the last one has alternatives."""
    level = "Content-Type: multipart/alternative; boundary={0}\r\n\r\n--{0}\r\n\r\nw{0}\r\n--{0}\r\n"
    return "".join(level.format(each) for each in range(number)).encode()


def nested(kind: str, number: int) -> bytes:
    level = "Content-Type: multipart/{0}; boundary={1}\r\n\r\n--{1}\r\n"
    return "".join(level.format(kind, each) for each in range(number)).encode() + b"\r\nThe words\r\n"


@pytest.mark.parametrize(
    "make",
    [
        lambda: parts(90_000),
        lambda: nested("mixed", 2_000),
        lambda: nested("alternative", 49),
        lambda: nested("alternative", 49) + b"ab " * 300_000,
        lambda: nested_alternatives(49) + b"\r\nThe words" + b"ab " * 300_000,
        lambda: nested("mixed", 40) + b"--x\r\n" * 5_000_000,
        lambda: b"Content-Type: message/rfc822\r\n\r\n" * 500 + b"\r\nThe words",
        lambda: b"Content-Type: message/rfc822\r\n\r\n" * 50 + b"X: y\r\n\r\nThe words\r\n" + b"a\r\n" * 300_000,
        lambda: beside(b"\r\n--" * 10_000_000),
        lambda: beside(b"\r\n--b " * 5_000_000),
        lambda: beside(b"x" * 50_000_000),
        lambda: beside(b"\r" * 50_000_000),
        lambda: parts(1) + MULTIPARTS * 600,
        lambda: parts(1) + b"".join(MULTIPARTS.replace(b"zz", b"z%d" % number) for number in range(600)),
        lambda: parts(1) + b"--b\r\nContent-Type: multipart/mixed; boundary=zz\r\n\r\n" * 900 + b"x\r\n" * 100_000,
        lambda: nested_boundaries(1_000),
        lambda: alternatives(900),
        lambda: b"X: y\r\n" * 2_000_000 + b"\r\nThe words",
        lambda: (b"a\n" * 900 + b"X: y\n") * 140 + b"\nThe words",
        lambda: b"Content-Transfer-Encoding: base64\n" + b"a b\n" * 60_000 + b"\nVGhlIHdvcmRz",
        lambda: b"To: x" + b"\r\n y" * 2_000_000 + b"\r\n\r\nThe words",
        lambda: b"To: " + b"=?utf-8?q?a?= " * 100_000 + b"\r\n\r\nThe words",
        lambda: b"Cc: " + b"a@example.org, " * 100_000 + b"\r\n\r\nThe words",
        lambda: b"Content-Type: text/plain" + b";a=b" * 100_000 + b"\r\n\r\nThe words",
        lambda: b"Content-Type: text/plain" + b"; " * 100_000 + b"\r\n\r\nThe words",
        lambda: b"Content-Type: text/plain" + b";" * 100_000 + b"\r\n\r\nThe words",
        lambda: b"Content-Type: text/plain" + b",a" * 100_000 + b"\r\n\r\nThe words",
        lambda: b"Content-Type: text/plain; charset=" + b"x" * 100_000 + b"\r\n\r\nThe words",
        lambda: b"Content-Type: text/plain; charset=punycode\r\n\r\nThe words" + b"a" * SIZE + b"-" + b"b" * SIZE,
        lambda: b"Content-Type: text/plain; charset=utf-7\r\n\r\nThe words" + b"+" * SIZE,
        lambda: b"Content-Type: text/enriched\r\n\r\nThe words" + b"<param>" * SIZE,
        lambda: b"Content-Type: text/enriched\r\n\r\nThe words" + b"\r\n" * SIZE + b"<" * SIZE,
        lambda: b"Content-Type: text/calendar\r\n\r\nSUMMARY:The words\r\n" + b"A" * SIZE + b"\r\n" + b"A:" * SIZE,
        lambda: b"Content-Type: text/calendar\r\n\r\nSUMMARY:The words\r\n" + b"ORGANIZER;CN=" * SIZE,
        lambda: b"Content-Type: message/delivery-status\r\n\r\nThe words" + b"a: \t" * SIZE,
        lambda: b"Content-Transfer-Encoding: base64\r\n\r\nVGhlIHdvcmRz" + b"=" * 50_000_000,
        lambda: b"Content-Transfer-Encoding: x-uuencode\r\n\r\n" + b")5&AE('=O<F1S\r\n" + b"M\r\n" * 1_000_000,
    ],
)
def test_the_text_is_shown(make: Callable[[], bytes]) -> None:
    assert "The words" in read(HEAD + make())["text"]


@pytest.mark.parametrize(
    "before",
    [
        b"--b\r\nContent-Type: application/pdf\r\n\r\n" + b"\r\n--" * 1_300_000 + b"\r\n",
        b"--b\r\nContent-Type: text/html\r\n\r\n" + b"<p>" * 300_000 + b"\r\n",
        b"--b\r\n\r\nbegin 644 a\r\n" + b"M" * 61 + b"\r\nbegin 644 a\r\n!" * 10_000 + b"\r\n",
        b"--b\r\nContent-Type: text/html\r\n\r\n" + b"<meta '" * 20_000 + b"\r\n",
    ],
)
def test_a_part_leaves_time_for_the_next_one(before: bytes) -> None:
    html = b"--b\r\nContent-Type: text/html\r\n\r\n<p>The words</p>\r\n"
    data = HEAD + b'Content-Type: multipart/mixed; boundary="b"\r\n\r\n' + before + html
    assert "The words" in read(data)["text"]


@pytest.mark.parametrize("parameter", [b",,", b"; '", b'; filename="=?utf-8?q?=C3?="', b";name*0*=%41"])
def test_long_parameters_of_many_parts_are_read_in_time(parameter: bytes) -> None:
    value = parameter * (16_000 // len(parameter))
    part = b"--b\r\nContent-Type: a/b%s\r\nContent-Disposition: attachment%s\r\n\r\nx\r\n" % (value, value)
    assert "The words" in read(HEAD + parts(1) + part * 990)["text"]


def test_a_child_cannot_open_files_or_connections_or_start_processes() -> None:
    attempts = (
        lambda: open("/etc/passwd"),
        lambda: socket.socket(),
        lambda: os.open("/tmp", os.O_RDONLY),
        lambda: os.pipe(),
    )
    pid = os.fork()
    if not pid:
        code = 1
        try:
            child.restrict()
            refused = 0
            for attempt in attempts:
                try:
                    attempt()
                except OSError:
                    refused += 1
            code = 0 if refused == len(attempts) else 2
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
