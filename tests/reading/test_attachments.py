"""Attachments of hostile messages: their kinds and warnings, and their octets."""

from __future__ import annotations

import base64
import binascii
import io
import os
import zipfile

import pytest

from portal.model.attachments import Danger, Kind
from portal.reading import copy_part, read
from portal.reading.encodings import decoded, decoding
from portal.reading.kinds import Inspector
from tests.builders import ALICE

OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"


def zipped(*names: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, os.urandom(50_000))
    return file.getvalue()


def found(octets: bytes, name: str = "", type_: str = "a/b", size: int = 999) -> tuple[Kind, list[Danger]]:
    inspector = Inspector()
    for at in range(0, len(octets), size):
        inspector.add(octets[at : at + size])
    return inspector.found((name,) if name else (), type_)


ENCRYPTED_ZIP = bytearray(zipped("a.txt"))
ENCRYPTED_ZIP[6] |= 1


@pytest.mark.parametrize(
    ("octets", "name", "kind", "dangers"),
    [
        (b"MZ\x90\0", "customs.pdf.exe", Kind.PROGRAM, [Danger.RUNS, Danger.DISGUISED]),
        (b"MZ\x90\0", "customs.pdf", Kind.PROGRAM, [Danger.RUNS, Danger.DISGUISED]),
        (b"\x7fELF", "tool", Kind.PROGRAM, [Danger.RUNS]),
        (b"#!/bin/sh\n", "a", Kind.SCRIPT, [Danger.RUNS]),
        (b"var a = 1;", "invoice.js", Kind.SCRIPT, [Danger.RUNS]),
        (b"var a = 1;", "invoice.pdf  .JS ", Kind.SCRIPT, [Danger.RUNS, Danger.DISGUISED]),
        (b"L\0\0\0\x01\x14\x02\0", "a.lnk", Kind.SCRIPT, [Danger.RUNS]),
        (b"text", "a\u202efdp.exe", Kind.PROGRAM, [Danger.RUNS, Danger.DISGUISED]),
        (zipped("[Content_Types].xml", "word/document.xml"), "a.docx", Kind.OFFICE, []),
        (zipped("[Content_Types].xml", "x", "word/vbaProject.bin"), "a.docx", Kind.OFFICE, [Danger.MACROS]),
        (OLE + b"\0" * 70_000 + "_VBA_PROJECT".encode("utf-16-le"), "a.doc", Kind.OFFICE, [Danger.MACROS]),
        (OLE + b"\0" * 600 + "EncryptedPackage".encode("utf-16-le"), "a.xlsx", Kind.OFFICE, [Danger.ENCRYPTED]),
        (OLE, "setup.msi", Kind.PROGRAM, [Danger.RUNS]),
        (b"plain", "a.xlsm", Kind.TEXT, [Danger.MACROS]),
        (zipped("a.txt"), "a.zip", Kind.ARCHIVE, []),
        (zipped("word/document.xml"), "a.zip", Kind.OFFICE, []),
        (b"PK\x03\x04" + bytes(40) + b"xl/ word/ ppt/", "a.zip", Kind.ARCHIVE, []),
        (bytes(ENCRYPTED_ZIP), "a.zip", Kind.ARCHIVE, [Danger.ENCRYPTED]),
        (zipped("META-INF/MANIFEST.MF"), "a.zip", Kind.PROGRAM, [Danger.RUNS, Danger.DISGUISED]),
        (b"Rar!\x1a\x07\x01\0crc4\x0d\x04\0", "a.rar", Kind.ARCHIVE, [Danger.ENCRYPTED]),
        (b"Rar!\x1a\x07\0" + b"\0" * 16 + b"\x04\x80", "a.rar", Kind.ARCHIVE, [Danger.ENCRYPTED]),
        (b"7z\xbc\xaf\x27\x1c\0\x04" + b"z" * 99 + b"\x06\xf1\x07\x01", "a.7z", Kind.ARCHIVE, [Danger.ENCRYPTED]),
        (b"\0" * 0x8001 + b"CD001", "a.bin2", Kind.DISK_IMAGE, [Danger.DISK_IMAGE]),
        (b"zeros", "a.img", Kind.DISK_IMAGE, [Danger.DISK_IMAGE]),
        (b"\xef\xbb\xbf <!-- x --><HTML>", "invoice", Kind.WEB_PAGE, [Danger.WEB_PAGE]),
        ("<script>".encode("utf-16"), "a", Kind.WEB_PAGE, [Danger.WEB_PAGE]),
        (b"words", "invoice.pdf.html", Kind.WEB_PAGE, [Danger.DISGUISED, Danger.WEB_PAGE]),
        (b"<svg onload=x>", "logo.png", Kind.WEB_PAGE, [Danger.DISGUISED, Danger.WEB_PAGE]),
        (b"%PDF-1.7", "a.pdf", Kind.PDF, []),
        (b"\n\n%PDF-1.7", "a.pdf", Kind.PDF, []),
        (b"\x89PNG\r\n\x1a\n\0", "report.2026.png", Kind.PICTURE, []),
        (b"hello", "notes.txt", Kind.TEXT, []),
        (b"var a = 1;", "a.js\u200b", Kind.SCRIPT, [Danger.RUNS]),  # it would be saved as a.js
        (b"var a = 1;", "a.js\0.txt", Kind.SCRIPT, [Danger.RUNS, Danger.DISGUISED]),
        (b"text", "a.accde", Kind.SCRIPT, [Danger.RUNS]),
        (b"hello", "archive.tar.gz", Kind.TEXT, []),
        (b"\0\1\2", "x", Kind.UNKNOWN, []),
        (b"", "", Kind.UNKNOWN, []),
    ],
)
def test_the_content_and_the_endings_decide(octets: bytes, name: str, kind: Kind, dangers: list[Danger]) -> None:
    assert found(octets, name) == (kind, dangers)
    assert found(octets, name, size=1 << 20) == (kind, dangers)


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("base64", base64.encodebytes(bytes(range(256)) * 9)),
        ("base64", b"QUJD\r\nREVG RA==SEk=\xff!!QUI"),
        ("base64", b"=====A=B=C" * 99),
        ("quoted-printable", b"a=3D=\r\nb=ZZ\r\n=41 = \r\nc"),
        ("x-uuencode", b"begin 644 a\n" + binascii.b2a_uu(b"hello") + b"`\nend\n"),
        ("7bit", b"plain\r\n"),
    ],
)
@pytest.mark.parametrize("size", [1, 2, 3, 5, 1 << 16])
def test_a_body_is_decoded_in_pieces_as_at_once(encoding: str, body: bytes, size: int) -> None:
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    assert b"".join(decoding(pieces, encoding)) == decoded(body, encoding)


def part(content: bytes, name: str, *fields: str) -> bytes:
    lines = [
        f'Content-Disposition: attachment; filename="{name}"',
        *fields,
        "Content-Transfer-Encoding: base64",
        "",
        "",
    ]
    return "\r\n".join(lines).encode() + base64.encodebytes(content)


@pytest.mark.parametrize(
    ("fields", "dangers"),
    [
        ("Content-Type: text/plain; name=notes.txt\nContent-Disposition: attachment; filename=notes.txt", []),
        ("Content-Type: text/plain; name=a.js\nContent-Disposition: attachment; filename=notes.txt", ["runs"]),
        ("Content-Disposition: attachment; filename=notes.txt; filename=a.js", ["runs"]),
        ("Content-Disposition: attachment; filename=a.js; filename*=UTF-8''notes.txt", ["runs"]),
        ("Content-Disposition: attachment; filename=a.iso; filename*0=notes; filename*1=.txt", ["disk-image"]),
        ("Content-Disposition: attachment; filename=notes.txt\nContent-Disposition: inline; filename=a.js", ["runs"]),
        ("Content-Type: text/plain; name=notes.txt\nContent-Type: text/plain; name=a.html", ["web-page"]),
        ("\n".join(f"Content-Disposition: attachment; filename={n}" for n in ("notes.txt", "b.txt", "a.js")), ["runs"]),
        ("Content-Type: message/rfc822; name=a.exe\nContent-Disposition: attachment; filename=notes.txt", ["runs"]),
    ],
)
def test_the_worst_of_all_names_that_a_mail_program_may_use_decides(fields: str, dangers: list[str]) -> None:
    (listed,) = read([message(f"{fields}\n\nwords\n".encode())], ALICE).attachments
    assert listed.name == "notes.txt"
    assert set(listed.dangers) == ({*dangers, "disguised"} if dangers else set())


def message(*parts: bytes) -> bytes:
    head = b'MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary="b"\r\n\r\npreamble\r\n'
    return head + b"".join(b"--b\r\n" + each + b"\r\n" for each in parts) + b"--b--\r\nepilogue\r\n"


def take(data: bytes, number: int) -> tuple[str | None, bytes]:
    file = io.BytesIO()
    name = copy_part(iter([data]), ALICE, number, file)
    return name, file.getvalue()


def test_each_listed_attachment_is_found_again_by_its_number() -> None:
    inner = message(b"Content-Type: text/plain\r\n\r\ninner\r\n", part(b"deep", "deep.bin"))
    nested = b"Content-Type: message/rfc822\r\n\r\n" + inner.replace(b'"b"', b'"c"').replace(b"--b", b"--c")
    data = message(
        b"Content-Type: text/plain\r\n\r\nhello\r\n",
        part(b"one" * 1000, "one.bin"),
        nested,
        b"Content-Type: multipart/mixed; boundary=wrong\r\n\r\n--d\r\n" + part(b"two", "../two.bin") + b"\r\n--d--\r\n",
        b'Content-Type: text/plain; name="empty.txt"\r\n\r\n',
    )
    listed = {each.name: each for each in read([data], ALICE).attachments}
    assert set(listed) == {"one.bin", "message/rfc822", "deep.bin", "../two.bin", "empty.txt"} - {"message/rfc822"} | {
        ""
    }
    taken = {name: take(data, each.number) for name, each in listed.items()}
    assert taken["one.bin"] == ("one.bin", b"one" * 1000)
    assert taken["deep.bin"] == ("deep.bin", b"deep")
    assert taken["../two.bin"] == ("../two.bin", b"two")
    assert taken["empty.txt"] == ("empty.txt", b"")
    assert taken[""][1].rstrip() == inner.replace(b'"b"', b'"c"').replace(b"--b", b"--c").rstrip()
    assert listed[""].kind is Kind.MESSAGE


def test_parts_that_cannot_be_found_again_have_no_number() -> None:
    inner = message(part(b"deep", "deep.bin"))
    encoded = b"Content-Type: message/rfc822\r\nContent-Transfer-Encoding: base64\r\n\r\n" + base64.encodebytes(inner)
    data = message(b"Content-Type: text/plain\r\n\r\nx\nbegin 644 a.exe\n#86%A\n`\nend\n", encoded)
    numbers = {each.name: each.number for each in read([data], ALICE).attachments}
    assert numbers["deep.bin"] == numbers["a.exe"] == 0
    assert numbers[""] > 0


@pytest.mark.parametrize("number", [0, 4, 9999])
def test_a_part_that_does_not_exist_is_none(number: int) -> None:
    assert take(message(part(b"one", "one.bin"), part(b"two", "two.bin")), number)[0] is None


def test_a_part_that_takes_too_long_is_none() -> None:
    head = b"Content-Type: a/b; name=a\r\nContent-Transfer-Encoding: x-uuencode\r\n\r\n"
    chunks = iter([head, *[b"M\r\n" * 100_000] * 80])
    assert copy_part(chunks, ALICE, 1, io.BytesIO()) is None


def test_pictures_of_the_text_are_not_listed_and_nothing_else_is_left_out() -> None:
    html = b'Content-Type: text/html\r\n\r\n<img src="cid:logo"><img src=cid:trick><img src="cid:kept">\r\n'
    png = b"\x89PNG\r\n\x1a\n" + b"x" * 99
    inline = ("Content-Type: image/png", "Content-Disposition: inline")

    def picture(name: str, content: bytes, fields: tuple[str, ...]) -> bytes:
        return part(content, name, f"Content-ID: <{name}>", *fields).split(b"\r\n", 1)[1]

    data = message(
        html,
        picture("logo", png, inline),
        picture("trick", b"MZ", inline),
        picture("unused", png, inline),
        picture("kept", png, ("Content-Type: image/png", "Content-Disposition: attachment")),
    )
    kinds = [each.kind for each in read([data], ALICE).attachments]
    assert kinds == [Kind.PROGRAM, Kind.PICTURE, Kind.PICTURE]
