"""`portal.exporter`: recorded posts, awkward posts, and posts that no program would send."""

from __future__ import annotations

import base64
import gzip
import io
import json
import random
import re
import tempfile
import tracemalloc
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from portal.exporter import Posted, content_digest, dedup_key, parse, wanted
from portal.exporter.values import symbols as read_symbols
from portal.model.errors import BadExport, TooLarge
from portal.model.message import Body, Flag
from tests.paths import DATA, ROOT

HERE = DATA / "exporter"
SHARED = ROOT.parent / "shared"
LIMIT = 80 * 2**20

MAIL = (
    b"Received: from mx.example.net by mx1.example.org\r\n\tid 1; Thu, 2 Jan 2025 10:00:01 +0000\r\n"
    b"From: Offers <promo@example.net>\r\nTo: alice@example.org\r\nSubject: Buy now\r\n"
    b"Message-ID: <m1@example.net>\r\n\r\nHello,\r\n\r\nplease buy.\r\n"
)
WITHOUT_SUBJECT = MAIL.replace(b"Subject: Buy now\r\n", b"")
METADATA: dict[str, Any] = {
    "ip": "198.51.100.7",
    "user": "unknown",
    "qid": "4XqAbc1",
    "subject": "Buy now",
    "action": "reject",
    "score": 20.9,
    "rcpt": ["alice@example.org", "bob@example.org"],
    "from": "promo@example.net",
    "symbols": [{"name": "TEST", "score": 20, "options": ["a"], "group": "g"}, {"name": "OTHER", "score": 0.9}],
    "fuzzy": [],
    "scan_time": 22,
    "size": len(MAIL),
}
ALL_FLAGS = frozenset(Flag) - {Flag.FORCED}  # of metadata that are missing


def body_of(data: bytes) -> Body:
    """Return ``data`` as a window in the middle of a file. The rest of the file must not be read."""
    return Body(io.BytesIO(b'{"message":"' + data + b"\r\n--B--"), 12, len(data))


def post(headers: dict[str, str], data: bytes, limit: int = LIMIT) -> Posted | None:
    return parse(headers, body_of(data), limit)


def posting(headers: dict[str, str], data: bytes) -> Posted:
    """Return the result of a post that is not empty."""
    posted = post(headers, data)
    assert posted is not None
    return posted


def message_of(posted: Posted | None) -> bytes:
    assert posted is not None
    return b"".join(posted.body.chunks(7_777))


def mail_of(posted: Posted | None) -> bytes:
    assert posted is not None
    with posted:
        return message_of(posted)


def as_headers(fields: dict[str, Any], prefix: str = "x-rspamd-") -> dict[str, str]:
    """Return metadata as the endpoint passes it: lists as JSON in UTF-8, each octet a character."""
    texts = {k: v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for k, v in fields.items()}
    wsgi = {k: v.encode("utf-8", "surrogatepass").decode("latin-1") for k, v in texts.items()}
    return {"content-type": "text/plain"} | {prefix + name.replace("_", "-"): value for name, value in wsgi.items()}


def as_default(mail: bytes, fields: dict[str, Any] = METADATA) -> tuple[dict[str, str], bytes]:
    return as_headers(fields), mail


def as_multipart(mail: bytes, fields: Any = METADATA, *, metadata_first: bool = False) -> tuple[dict[str, str], bytes]:
    metadata = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    parts = [
        b'Content-Disposition: form-data; name="message"; filename="message.eml"\r\nContent-Type: message/rfc822\r\n'
        b"Content-Transfer-Encoding: binary\r\n\r\n" + mail,
        b'Content-Disposition: form-data; name="metadata"\r\nContent-Type: application/json\r\n\r\n' + metadata,
    ]
    if metadata_first:
        parts.reverse()
    data = b"".join(b"--cc511575ffb5bc48\r\n" + part + b"\r\n" for part in parts) + b"--cc511575ffb5bc48--\r\n"
    return {"content-type": 'multipart/form-data; boundary="cc511575ffb5bc48"'}, data


def as_json(mail: bytes, fields: dict[str, Any] = METADATA) -> tuple[dict[str, str], bytes]:
    value = dict(fields)
    value["message"] = base64.b64encode(mail).decode()
    # JSON of Rspamd has no blanks. The default type of its rules is wrong for JSON.
    return {"content-type": "text/plain"}, json.dumps(value, separators=(",", ":")).encode()


def packable(value: Any) -> Any:
    """Return the nearest value that msgpack can encode: no lone surrogates, no integers over 64 bits."""
    if isinstance(value, dict):
        return {packable(key): packable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [packable(item) for item in value]
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    return max(-(2**63), min(value, 2**64 - 1)) if isinstance(value, int) and not isinstance(value, bool) else value


def as_msgpack(mail: bytes, fields: dict[str, Any] = METADATA) -> tuple[dict[str, str], bytes]:
    value = dict(list(packable(fields).items())[:4])
    try:
        value["message"] = mail.decode()
    except UnicodeDecodeError:
        value["message"] = mail
    return {"content-type": "text/plain"}, msgpack.packb(value | packable(fields))


FORMATS = {"default": as_default, "multipart": as_multipart, "json_with_message": as_json, "msgpack": as_msgpack}
every_format = pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS.keys())


# ---- recorded posts


def read_http(file: Path) -> tuple[dict[str, str], bytes]:
    head, _, data = file.read_bytes().partition(b"\r\n\r\n")
    lines = (line.partition(": ") for line in head.decode("latin-1").split("\r\n")[1:])
    return {name.lower().replace("_", "-"): value for name, _, value in lines}, data


def recorded(folder: Path) -> list[Any]:
    index = folder / "index.json"
    if not index.exists():
        return []
    return [pytest.param(folder, entry, id=entry["file"]) for entry in json.loads(index.read_text("utf-8"))]


@pytest.mark.parametrize(("folder", "entry"), recorded(HERE) + recorded(SHARED / "exporter-posts"))
def test_recorded_posts_of_rspamd_are_understood(folder: Path, entry: dict[str, Any]) -> None:
    headers, data = read_http(folder / entry["file"])
    expected = entry["expected"]
    if entry["formatter"] in ("json", "structured", "email_alert"):
        with pytest.raises(BadExport, match='formatter = "multipart"'):
            post(headers, data)
        return
    posted = post(headers, data)
    if not expected["size"]:
        assert posted is None
        return
    assert posted is not None
    with posted:
        export = posted.export
        assert sha256(message_of(posted)).hexdigest() == expected["sha256"] == export.body_sha256.hex()
        assert export.size_bytes == expected["size"]
        # Repeated ones come once.
        assert export.recipients == tuple(dict.fromkeys(expected["recipients"] or ()))
        assert (Flag.RECIPIENTS in export.flags) == (not expected["recipients"])
        assert export.envelope_sender == expected["sender"]
        assert (Flag.SENDER in export.flags) == (expected["sender"] is None)
        if expected["subject"] is not None:
            readings = [expected["subject"], *entry.get("also_ok", {}).get("subject", [])]
            if "\ufffd" in expected["subject"]:  # Rspamd damaged it, so the message's own counts
                readings = ["Größe für Käufer"]
            # Rspamd's mojibake may hold control characters; an Export never does.
            assert export.subject in [re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", reading) for reading in readings]
        assert export.queue_id == expected["qid"]
        assert export.action == expected["action"]
        assert export.score == (None if expected["score"] is None else pytest.approx(expected["score"]))
        assert export.client_ip == expected["ip"]
        assert export.user == expected["user"]
        assert (Flag.NO_METADATA in export.flags) == (entry["formatter"] == "default" and not entry["meta_headers"])


# ---- the bytes are the same with every formatter


def corpus() -> list[Path]:
    files = [f for f in (SHARED / "corpus").rglob("*") if f.is_file() and f.suffix not in (".json", ".mjs", ".md")]
    return sorted(f for f in files if f.stat().st_size)


@every_format
def test_mail_of_other_projects_comes_out_byte_for_byte(form: Any) -> None:
    for file in corpus():
        mail = file.read_bytes()
        with posting(*form(mail)) as posted:
            assert message_of(posted) == mail, file
            assert posted.export.flags == frozenset(), file
            assert posted.export.size_bytes == len(mail)
            assert posted.export.has_8bit == (not mail.isascii())


AWKWARD = [
    b"\r\n", b"\n", b"\r", b"\0", b"-", b"{", b"{}", b"\x80", b"\xde\x00\x01", b"--cc511575ffb5bc48x",
    b"x\r\n--cc511575",
    b"Subject: a\n\nx\r", b"\r\n\r\n", b"a\r\n--\r\n", MAIL * 9_000, b"\r\n--cc511575ffb5bc4" * 30_000,
    b"x" * 65_535 + b"\r\n" + b"y" * 65_536 + b"\r", b'{"message":"QQ=="}', b'"', b"\xff\xfe\x00" * 100_000,
    b"\xff" * 300,
]  # fmt: skip


@every_format
@pytest.mark.parametrize("mail", AWKWARD, ids=range(len(AWKWARD)))
def test_awkward_bytes_come_out_as_they_went_in(form: Any, mail: bytes) -> None:
    for headers, data in (form(mail), ({**form(mail)[0], "content-encoding": "gzip"}, gzip.compress(form(mail)[1], 1))):
        with posting(headers, data) as posted:
            assert message_of(posted) == mail
            assert posted.export.recipients == ("alice@example.org", "bob@example.org")


@every_format
def test_metadata_is_the_same_whatever_the_formatter(form: Any) -> None:
    with posting(*form(MAIL, METADATA | {"subject": "Grüße – für Sie", "from": ""})) as posted:
        export = posted.export
    assert export.subject == "Grüße – für Sie"
    assert export.envelope_sender == ""
    assert export.message_id == "m1@example.net"
    assert export.header_from == "Offers <promo@example.net>"
    assert [(s.name, s.score, s.options) for s in export.symbols] == [("TEST", 20, ("a",)), ("OTHER", 0.9, ())]
    assert (export.queue_id, export.action, export.score, export.user) == ("4XqAbc1", "reject", 20.9, None)
    assert export.flags == frozenset()


@every_format
@pytest.mark.parametrize(
    ("mail", "has_8bit"),
    [
        (MAIL, False),
        ("Subject: ü\r\n\r\n".encode(), True),
        (MAIL + b"x" * 300_000 + b"\xff", True),
        (MAIL + b"x" * 300_000, False),
        (b"\x80" + MAIL + b"x" * 300_000, True),
        (b"\x7f", False),
    ],
    ids=range(6),
)
def test_any_octet_above_127_is_noticed(form: Any, mail: bytes, has_8bit: bool) -> None:
    with posting(*form(mail)) as posted:
        assert posted.export.has_8bit is has_8bit
        assert posted.export.size_bytes == len(mail)


@every_format
def test_rspamds_message_id_goes_before_the_messages_own(form: Any) -> None:
    with posting(*form(MAIL, METADATA | {"message_id": "told@example.net"})) as posted:
        assert posted.export.message_id == ("m1@example.net" if form is as_default else "told@example.net")
    with posting(*form(MAIL, METADATA | {"message_id": "unknown"})) as posted:
        assert posted.export.message_id == "m1@example.net"


def test_the_parts_of_a_multipart_post_may_come_in_any_order() -> None:
    for first in (True, False):
        assert mail_of(post(*as_multipart(MAIL, metadata_first=first))) == MAIL


def test_a_message_with_base64_escaped_as_in_php_is_read() -> None:
    for mail in (b"\xff\xff\xff" * 100_000, random.Random(1).randbytes(300_000)):
        headers, data = as_json(mail)
        assert mail_of(post(headers, data.replace(b"/", b"\\/"))) == mail


def test_pretty_json_is_read_as_well() -> None:
    headers, data = as_json(MAIL)
    assert mail_of(post(headers, json.dumps(json.loads(data), indent=2).encode())) == MAIL


def test_of_two_parts_with_one_name_the_first_counts() -> None:
    headers, data = as_multipart(MAIL)
    end = b"--cc511575ffb5bc48--\r\n"
    other = as_multipart(b"Subject: another\r\n\r\n", METADATA | {"rcpt": ["mallory@example.org"]})[1]
    with posting(headers, data.removesuffix(end) + other) as posted:
        assert message_of(posted) == MAIL
        assert posted.export.recipients == ("alice@example.org", "bob@example.org")
        assert posted.export.flags == frozenset()


def test_metadata_may_have_control_characters_and_broken_utf_8() -> None:
    raw = json.dumps(METADATA).encode().replace(b"Buy now", b"Buy\x01\tnow \xff!")
    with posting(*as_multipart(WITHOUT_SUBJECT, raw)) as posted:
        assert (posted.export.subject, posted.export.flags) == ("Buy  now \ufffd!", frozenset())
    headers, data = as_msgpack(MAIL.replace(b"Buy now", b""))
    with posting(headers, data.replace(b"Buy now", b"B\x01y \xff\xfe!")) as posted:
        assert (posted.export.subject, posted.export.flags) == ("B y \ufffd\ufffd!", frozenset())


@pytest.mark.parametrize("form", [as_json, as_msgpack], ids=["json", "msgpack"])
def test_metadata_over_four_megabytes_is_not_rspamds(form: Any) -> None:
    for size, is_metadata in ((4_190_000, True), (4_200_000, False)):
        headers, data = form(MAIL, METADATA | {"x": "y" * size})
        with posting(headers, data) as posted:
            assert message_of(posted) == (MAIL if is_metadata else data)


def test_the_key_of_the_message_may_lie_across_two_reads() -> None:
    mail = b"Subject: x\r\n\r\n" + b"y" * 4_500_000
    at = as_json(mail)[1].index(b'"message":"') + len(',"x":""')
    for before in range(13):
        headers, data = as_json(mail, METADATA | {"x": "y" * ((1 << 18) - at - before)})
        assert data.index(b'"message":"') == (1 << 18) - before
        with posting(headers, data) as posted:
            assert posted.export.size_bytes == len(mail), before
            assert posted.export.body_sha256 == sha256(mail).digest()


@every_format
def test_an_empty_message_has_nothing_to_hold(form: Any) -> None:
    assert post(*form(b"")) is None


def test_an_empty_post_has_nothing_to_hold() -> None:
    assert post({}, b"") is None
    assert post({"content-type": "text/plain", "content-encoding": "gzip"}, gzip.compress(b"")) is None


# ---- a mail or an export: in doubt it is a mail


@pytest.mark.parametrize("data", [as_json(MAIL)[1], as_msgpack(MAIL)[1], json.dumps(METADATA).encode()])
def test_a_mail_that_looks_like_an_export_is_held_as_it_is_when_headers_say_otherwise(data: bytes) -> None:
    with posting(as_headers(METADATA | {"qid": "OTHER", "rcpt": ["alice@example.org"]}), data) as posted:
        assert message_of(posted) == data
        assert posted.export.recipients == ("alice@example.org",)


@pytest.mark.parametrize("data", [as_json(MAIL)[1], as_msgpack(MAIL)[1], json.dumps(METADATA).encode()])
def test_a_mail_that_looks_like_an_export_is_held_as_it_is_when_its_type_is_that_of_mail(data: bytes) -> None:
    with posting({"content-type": "message/rfc822"}, data) as posted:
        assert message_of(posted) == data
        assert posted.export.flags == ALL_FLAGS


@pytest.mark.parametrize(
    "data", [b"{", b'{"a": 1}', b"{" * 100_000, b"\x81\xa1a\x01", b"\x81", b"\xdf\xff\xff\xff\xff", b"\x91"]
)
def test_a_body_without_the_keys_of_an_export_is_a_mail(data: bytes) -> None:
    with posting({"content-type": "text/plain"}, data) as posted:
        assert message_of(posted) == data
        assert Flag.NO_METADATA in posted.export.flags


def test_json_with_metadata_headers_is_unpacked_when_both_agree() -> None:
    headers, data = as_json(MAIL)
    assert mail_of(post(headers | as_headers(METADATA), data)) == MAIL


@pytest.mark.parametrize(
    ("field", "other"), [("qid", "4XqAbc2"), ("action", "discard"), ("scan_time", 23), ("score", 20.92), ("score", "x")]
)
def test_json_is_the_mail_itself_when_headers_describe_another_mail(field: str, other: Any) -> None:
    headers, data = as_json(MAIL)
    with posting(headers | as_headers(METADATA | {field: other}), data) as posted:
        assert message_of(posted) == data


def test_a_score_may_be_rounded_in_one_of_two_places() -> None:
    headers, data = as_json(MAIL)
    for score in ("20.9", "20.90", 20.905, 20.895):
        assert mail_of(post(headers | as_headers(METADATA | {"score": score}), data)) == MAIL


def test_json_without_the_message_names_the_formatter_to_use() -> None:
    for headers in ({"content-type": "text/plain"}, {"content-type": "application/json"}, as_headers(METADATA)):
        with pytest.raises(BadExport, match='formatter = "multipart".*meta_headers = true'):
            post(headers, json.dumps(METADATA).encode())


# ---- metadata headers


@pytest.mark.parametrize("prefix", ["x-rspamd-", "x-quarantine-", "x-site-a-rspamd-", "xq"])
def test_any_prefix_of_metadata_headers_is_found(prefix: str) -> None:
    headers = as_headers(METADATA, prefix) | {"x-real-ip": "203.0.113.9", "x-user": "x", "soapaction": "x", "host": "h"}
    with posting(headers, MAIL) as posted:
        assert posted.export.queue_id == "4XqAbc1"
        assert posted.export.client_ip == "198.51.100.7"
        assert posted.export.flags == frozenset()


def test_headers_of_proxies_are_no_metadata() -> None:
    headers = {"x-real-ip": "203.0.113.9", "x-forwarded-user": "x", "soapaction": "x", "soapuser": "x"}
    with posting(headers, MAIL) as posted:
        assert posted.export.flags == ALL_FLAGS
        assert posted.export.subject == "Buy now"
        assert posted.export.client_ip is None


@pytest.mark.parametrize(
    ("value", "subject"),
    [
        ("Gr=?UTF-8?Q?=C3=BC=C3=9Fe?= aus K=?UTF-8?Q?=C3=B6ln?==?UTF-8?Q?_=E2=80=93?=", "Grüße aus Köln –"),
        ("=?UTF-8?Q?Gr=C3=BC=C3=9Fe_aus?= =?UTF-8?Q?_K=C3=B6ln?=", "Grüße aus Köln"),
        ("a=?UTF-8?Q?=C3?==?UTF-8?Q?=BC?=b", "aüb"),
        ("=?UTF-8?Q?=C3?= =?UTF-8?Q?=BC?=", "ü"),
        ("=?UTF-8?Q?Hi=0D=0ABcc:_x?=", "=?UTF-8?Q?Hi=0D=0ABcc:_x?="),
        ("=?UTF-8?Q?=C3=BC=0D=0ABcc:_x?=", "ü  Bcc: x"),
        ("=?UTF-8?Q?=C3=BC", "=?UTF-8?Q?=C3=BC"),
        ("=?UTF-8?Q?=FF=FE?=", "\ufffd\ufffd"),
        ("Grüße".encode().decode("latin-1"), "Grüße"),
        ("Gr\xfc\xdfe", "Gr\ufffd\ufffde"),
        ("already “decoded”", "already “decoded”"),
        ("", ""),
        ("a\0b\tc\u0085d", "a b c\ufffdd"),
    ],
)
def test_header_values_are_decoded_in_every_shape_rspamd_gave_them(value: str, subject: str) -> None:
    with posting(as_headers(METADATA) | {"x-rspamd-subject": value}, WITHOUT_SUBJECT) as posted:
        assert posted.export.subject == subject


@pytest.mark.parametrize(
    ("reported", "own", "subject"),
    [
        ("Gr\xfc\xdfe", b"Gr\xc3\xbc\xc3\x9fe", "Grüße"),
        ("=?UTF-8?Q?Gr=C3=BC=EF=BF=BDe?=", b"=?iso-8859-1?Q?Gr=FC=DFe?=", "Grüße"),
        ("=?UTF-8?B?R3LDvMOfZQ==", b"=?UTF-8?B?R3LDvMOfZQ==", "Grüße"),  # left undecoded
        ("=?UTF-8?Q?Gr=C3?= =?UTF-8?Q?e?=", b"=?utf-8?Q?Gr=C3=BC=C3=9Fe?=", "Grüße"),  # octets between are lost
        ("Hello", b"Gr\xc3\xbc\xc3\x9fe", "Hello"),
        ("Gr\ufffd\ufffde", b"", "Gr\ufffd\ufffde"),
        ("", b"Hello", ""),
    ],
)
def test_a_subject_that_rspamd_reports_damaged_is_the_messages_own(reported: str, own: bytes, subject: str) -> None:
    mail = MAIL.replace(b"Buy now", own)
    with posting(as_headers(METADATA) | {"x-rspamd-subject": reported}, mail) as posted:
        assert posted.export.subject == subject


def test_envelope_addresses_may_have_angle_brackets_and_quotes() -> None:
    fields = METADATA | {"rcpt": ['<"quo ted"@example.org>', "<bob+news@example.org>"], "from": "<>"}
    with posting(as_headers(fields), MAIL) as posted:
        assert posted.export.recipients == ('"quo ted"@example.org', "bob+news@example.org")
        assert posted.export.envelope_sender == ""
        assert posted.export.flags == frozenset()


def test_unusual_local_parts_stay_as_written_and_repeated_recipients_come_once() -> None:
    rcpt = ["Alice@Example.org", "a b@example.org", "at@sign@example.org", "alice@example.org", "jürgen@example.org"]
    with posting(*as_default(MAIL, METADATA | {"rcpt": rcpt})) as posted:
        assert posted.export.recipients == (*rcpt[:3], rcpt[4])
        assert posted.export.flags == frozenset()


def test_recipients_in_both_spellings_of_a_domain_come_once() -> None:
    a_label, u_label = "Erika@XN--mnchen-3ya.example", "erika@münchen.example"
    for rcpt in ([a_label, u_label], [u_label, a_label]):
        with posting(*as_default(MAIL, METADATA | {"rcpt": rcpt})) as posted:
            assert posted.export.recipients == (a_label,)
            assert posted.export.held_for == ("erika@xn--mnchen-3ya.example",)
            assert posted.export.flags == frozenset()


def test_recipients_whose_letters_only_look_alike_in_lower_case_are_two_people() -> None:
    rcpt = ["mike@example.org", "mi\u212ae@example.org"]  # KELVIN SIGN
    with posting(*as_default(MAIL, METADATA | {"rcpt": rcpt})) as posted:
        assert posted.export.recipients == tuple(rcpt)


@pytest.mark.parametrize(
    ("rcpt", "kept"),
    [
        ("unknown", ()),
        ("", ()),
        ("[]", ()),
        ('["alice@example.org","bo', ("alice@example.org",)),
        ('["alice@example.org", "bob@example.org', ("alice@example.org",)),
        ('["alice@example.org" "bob@example.org"', ("alice@example.org", "bob@example.org")),
        ('["alice@example.org",7,null,["x@y"],""]', ("alice@example.org",)),
        ('["alice@example.org","postmaster","bob@","@example.org"]', ("alice@example.org",)),
        ('["alice@example.org","a\\r\\nRCPT TO:<mallory@example.org>@example.org"]', ("alice@example.org",)),
        ('["alice@example.org","\\ud800@example.org","a\\u0000@example.org"]', ("alice@example.org",)),
        (json.dumps(["alice@example.org", "x" * 400 + "@example.org"]), ("alice@example.org",)),
        ("alice@example.org", ()),
        ('"alice@example.org"', ()),
        ("[" * 100_000, ()),
    ],
)
def test_recipients_that_cannot_be_used_are_dropped_and_flagged(rcpt: str, kept: tuple[str, ...]) -> None:
    with posting(as_headers(METADATA | {"rcpt": rcpt}), MAIL) as posted:
        assert posted.export.recipients == kept
        assert posted.export.flags == {Flag.RECIPIENTS}


def test_as_many_recipients_as_deliveries_have_numbers_are_kept_and_more_are_refused() -> None:
    rcpt = [f"r{n}@example.org" for n in range(65_537)]
    with posting(*as_multipart(MAIL, METADATA | {"rcpt": rcpt[:-1]})) as posted:
        assert posted.export.recipients == tuple(rcpt[:-1])
        assert not posted.export.flags
    with pytest.raises(BadExport, match="has 65537 recipients, and 65536 are the most"):
        posting(*as_multipart(MAIL, METADATA | {"rcpt": rcpt}))
    with posting(*as_multipart(MAIL, METADATA | {"rcpt": [*rcpt[:-1], "R0@EXAMPLE.org"]})) as posted:
        assert posted.export.recipients == tuple(rcpt[:-1])


def test_symbols_cut_anywhere_keep_what_can_be_read_and_are_flagged() -> None:
    whole = json.dumps(METADATA["symbols"] + [{"name": "GRÜSSE", "score": -1.5}], ensure_ascii=False).encode()
    for end in range(len(whole)):
        headers = as_headers(METADATA) | {"x-rspamd-symbols": whole[:end].decode("latin-1")}
        with posting(headers, MAIL) as posted:
            assert Flag.SYMBOLS in posted.export.flags
            names = [symbol.name for symbol in posted.export.symbols]
            assert names == ["TEST", "OTHER", "GRÜSSE"][: len(names)]
    assert len(names) == 3  # only the bracket is missing


@pytest.mark.parametrize(
    "text",
    [
        '[{"name":"A","score":1,"options":["a","b"],"weight":2},{"name":"B","score":-1.5},{"name":"C","options":[]}]',
        '[{"name":"A","score":1e7},{"name":"B","score":1e999},{"name":"C","score":"2"},{"name":"D","score":null}]',
        '[{"name":"A","score":true},{"name":"B","score":NaN},{"name":"C","score":' + "9" * 400 + "}]",
        '[{"name":""},{"name":7},{"score":1},7,[],{"name":"B","options":["x",7]},{"name":"C","options":"x"}]',
        '[{"name":"A\\u0001\\ud800","options":["\\n"]},{"name":"\x7f","options":["\x80"]}]',
        '[{"name":"' + "N" * 1500 + '","options":["' + "o" * 600 + '"]}]',
        '[{"name":"A\\u0001","options":["\\n"]}]',
        '[{"name":"A\x7f"}]',
        '[{"name":"A\x80","options":["\u2028"]}]',
        '[{"name":"A","score":1000000},{"name":"B","score":-1000000}]',
        '[{"name":"A","score":1000000.5},{"name":"B","score":-1000000.5}]',
        '[{"name":"A","options":null}]',
        '[{"name":"A","name":"B","score":1}]',
        '[{"name":"A","groups":' + "[" * 500 + "]" * 500 + "}]",
        "[]",
    ],
)
def test_the_short_way_reads_symbols_as_the_long_one(text: str) -> None:
    assert repr(read_symbols(text)) == repr(read_symbols(json.loads(text)))


@pytest.mark.parametrize(
    ("symbols", "names"),
    [
        ('[{"name":""},{"score":1},7,{"name":"B","score":1}]', ["B"]),
        ('[{"name":"A"},{"name":null},{"name":"B"}]', ["A", "B"]),
        ("{}", []),
        ('"A"', []),
    ],
)
def test_symbols_without_a_name_are_left_out_and_noticed(symbols: str, names: list[str]) -> None:
    with posting(*as_default(MAIL, METADATA | {"symbols": symbols})) as posted:
        assert [symbol.name for symbol in posted.export.symbols] == names
        assert posted.export.flags == {Flag.SYMBOLS}


@pytest.mark.parametrize("ip", ["", "unknown", "fe80::1%eth0", "1.2.3", "198.51.100.7:25", "x" * 1000])
def test_text_that_is_no_ip_address_is_not_shown_as_one(ip: str) -> None:
    with posting(*as_default(MAIL, METADATA | {"ip": ip})) as posted:
        assert posted.export.client_ip is None


@pytest.mark.parametrize(
    ("encoding", "packed"), [("identity", False), ("Identity", False), ("x-gzip", True), ("X-GZIP", True)]
)
def test_both_names_of_gzip_and_identity_are_known(encoding: str, packed: bool) -> None:
    headers, data = as_default(MAIL)
    body = gzip.compress(data) if packed else data
    with posting(headers | {"content-encoding": encoding}, body) as posted:
        assert message_of(posted) == MAIL


@pytest.mark.parametrize("form", [as_default, as_msgpack, as_multipart])
@pytest.mark.parametrize(
    ("metadata", "flags"),
    [
        ({"forced": "1"}, {Flag.FORCED}),
        ({"symbols": []}, {Flag.FORCED}),
        ({"symbols": [], "forced": "1"}, {Flag.FORCED}),
        ({"forced": "0"}, set()),
        ({}, set()),
    ],
)
def test_a_verdict_without_filters_is_flagged(form: Any, metadata: dict[str, Any], flags: set[Flag]) -> None:
    with posting(*form(MAIL, METADATA | metadata)) as posted:
        assert posted.export.flags == flags


def test_too_many_symbols_and_options_are_cut() -> None:
    symbols = [{"name": f"S{n}", "score": 1, "options": ["x" * 900] * 60} for n in range(1001)]
    with posting(*as_msgpack(MAIL, METADATA | {"symbols": symbols[:70]})) as posted:
        assert posted.export.symbols[0].options == ("x" * 500,) * 50
        assert posted.export.flags == frozenset()
    for symbol in symbols:
        del symbol["options"]
    for form in (as_default, as_msgpack):  # text and list
        with posting(*form(MAIL, METADATA | {"symbols": symbols})) as posted:
            assert len(posted.export.symbols) == 1000
            assert posted.export.flags == {Flag.SYMBOLS}
        with posting(*form(MAIL, METADATA | {"symbols": symbols[:1000]})) as posted:
            assert len(posted.export.symbols) == 1000
            assert posted.export.flags == frozenset()


@pytest.mark.parametrize("score", ["nan", "inf", "-Infinity", "1e300", "", "x", True, None, [1], "9" * 5000])
def test_invalid_scores_are_unknown(score: Any) -> None:
    for form in FORMATS.values():
        with posting(*form(MAIL, METADATA | {"score": score})) as posted:
            assert posted.export.score is None
            assert Flag.SCORE in posted.export.flags


@pytest.mark.parametrize(
    ("threshold", "expected"), [("15", 15.0), ("7.5", 7.5), (15, 15.0), ("nan", None), ("", None), ("x", None)]
)
def test_the_threshold_is_read_and_never_missed(threshold: Any, expected: float | None) -> None:
    for form in FORMATS.values():
        with posting(*form(MAIL, METADATA | {"threshold": threshold})) as posted:
            assert posted.export.threshold == expected
            assert posted.export.flags == frozenset()
        with posting(*form(MAIL)) as posted:
            assert posted.export.threshold is None


@pytest.mark.parametrize(
    ("description", "expected"),
    [
        ("EXE file in archive", "EXE file in archive"),
        ("Grüße\r\n\x00 X", "Grüße    X"),
        ("x" * 900, "x" * 300),
        ("", ""),
        (None, ""),
        ([1], ""),
        ({"a": 1}, ""),
    ],
)
def test_descriptions_of_symbols_are_clean_and_of_sane_length(description: Any, expected: str) -> None:
    symbols = [{"name": "LOCAL_RULE", "score": 9.0, "description": description}, {"name": "OTHER", "score": 0.9}]
    for form in FORMATS.values():
        with posting(*form(MAIL, METADATA | {"symbols": symbols})) as posted:
            assert [symbol.description for symbol in posted.export.symbols] == [expected, ""]
            assert posted.export.flags == frozenset()


def test_texts_are_clean_and_of_sane_length() -> None:
    wild = "\ud800\x00a\r\nb" * 200_000
    fields = METADATA | {"subject": wild, "qid": wild, "user": wild, "action": wild, "ip": wild, "message_id": wild}
    headers, data = as_multipart(WITHOUT_SUBJECT, b"{}")
    for posted in (post(*as_default(WITHOUT_SUBJECT, fields)), post(headers | as_headers(fields), data)):
        assert posted is not None
        export = posted.export
        assert len(export.subject) == 4000
        assert len(export.queue_id or "") == len(export.user or "") == len(export.action or "") == 1000
        assert export.client_ip is None
        for text in (export.subject, export.queue_id, export.user, export.action, export.message_id):
            assert not re.search(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", text or "")


@pytest.mark.parametrize("sender", ["unknown", "a\nb@example.net", "x" * 330, "\udc80@example.net"])
def test_a_sender_that_cannot_be_used_is_not_known_rather_than_null(sender: str) -> None:
    for form in (as_multipart, as_json):
        with posting(*form(MAIL, METADATA | {"from": sender})) as posted:
            assert posted.export.envelope_sender is None
            assert posted.export.flags == {Flag.SENDER}


@pytest.mark.parametrize("metadata", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 200_000, b"7" * 5_000_000])
def test_unreadable_metadata_never_loses_the_message(metadata: bytes) -> None:
    with posting(*as_multipart(MAIL, metadata)) as posted:
        assert message_of(posted) == MAIL
        assert posted.export.flags == ALL_FLAGS


# ---- the message's own header fields


@pytest.mark.parametrize(
    ("head", "subject"),
    [
        (b"Subject: plain\n", "plain"),
        (b"subject :  a\r\n b\r\n\tc\r\n", "a b\tc".replace("\t", " ")),
        (b"Subject: =?utf-8?q?Gr=C3=BC?=\n =?utf-8?b?w58=?=\n", "Grüß"),
        (b"Subject: =?iso-8859-1?Q?=FC?= =?utf-8*de?Q?=C3=BC?= x\n", "üü x"),
        (b"Subject: =?utf-8?b?w?= =?nonsense?q?x?= =?hex?q?x?=\n", "=?utf-8?b?w?= xx"),
        (b"Subject: Gr\xc3\xbc\xc3\x9fe\n", "Grüße"),
        (b"Subject: Gr\xfc\xdfe\n", "Grüße"),
        (b"Subject: =?utf-8?q?a=0D=0ABcc:_x=00?=\n", "a  Bcc: x"),
        (b"Subject: first\nSubject: second\n", "first"),
        (b"X: y\n\nSubject: in the body\n", ""),
        (b"\nSubject: in the body\n", ""),
        (b"\r\nSubject: in the body\r\n\r\n", ""),
        (b"X: " + b"y" * 1_000_000 + b"\nSubject: far down\n", "far down"),
        (b"X: " + b"y" * 1_100_000 + b"\nSubject: too far down\n", ""),
        (b"\xef\xbb\xbfSubject: after a byte order mark\n", "after a byte order mark"),
        (b"no field\n\xd0\x9e\xd1\x82: x\nSubject: after others\n", "after others"),
        (b"Subject: " + b"=?utf-8?q?" * 100_000, "=?utf-8?q?" * 400),
    ],
)
def test_without_metadata_the_subject_comes_from_the_message(head: bytes, subject: str) -> None:
    with posting({"content-type": "message/rfc822"}, head) as posted:
        assert posted.export.subject == subject


def test_the_first_mark_is_handed_on() -> None:
    mail = b"Received: x\r\nX-Quarantine-Mark: one\r\nX-Quarantine-Mark: two\r\n" + MAIL
    with posting(*as_default(mail)) as posted:
        assert posted.export.mark == "one"
    with posting(*as_default(MAIL + b"\r\nX-Quarantine-Mark: in the body\r\n")) as posted:
        assert posted.export.mark is None


# ---- dedup keys


def dedup_key_of(mail: bytes, **changed: Any) -> bytes:
    with posting(*as_default(mail, METADATA | changed)) as posted:
        return posted.export.dedup_key


RETRIES = [
    b"X-Greylist: delayed 312 seconds\r\n" + MAIL,
    b"Received: from elsewhere\r\n\tby mx2; Thu, 2 Jan 2025 10:09:00 +0000\r\n" + MAIL,
    b"Received-SPF: pass\nAuthentication-Results: mx2;\n spf=pass\nReturn-Path: <promo@example.net>\n" + MAIL,
    MAIL.replace(b"\r\n\tid 1;", b"\n\tid 7;"),
    MAIL.partition(b"From:")[1] + MAIL.partition(b"From:")[2],
]


@pytest.mark.parametrize("mail", RETRIES)
def test_a_retry_with_other_trace_fields_is_the_same_mail(mail: bytes) -> None:
    assert dedup_key_of(mail) == dedup_key_of(MAIL)
    assert dedup_key_of(mail, qid="another", rcpt=["Bob@example.org", "alice@EXAMPLE.org"]) == dedup_key_of(MAIL)


def test_another_recipient_sender_or_body_is_another_mail() -> None:
    mails = [
        dedup_key_of(MAIL),
        dedup_key_of(MAIL, rcpt=["alice@example.org"]),
        dedup_key_of(MAIL, rcpt=["alice@example.org", "mallory@example.org"]),
        dedup_key_of(MAIL, **{"from": ""}),
        dedup_key_of(MAIL, **{"from": "unknown"}),
        dedup_key_of(MAIL, **{"from": "bob@example.org", "rcpt": ["promo@example.net", "alice@example.org"]}),
        dedup_key_of(MAIL + b"x"),
        dedup_key_of(MAIL.replace(b"To:", b"Received: from x\r\nTo:")),
        dedup_key_of(MAIL.replace(b"\r\n\r\nHello", b"\r\n\r\nX-Greylist: x\r\nHello")),
    ]
    assert len(set(mails)) == len(mails)


def test_mails_whose_recipients_were_lost_are_different_mails() -> None:
    to_bob = MAIL.replace(b"\tid 1;", b"\tid 1 for <bob@example.org>;")
    assert dedup_key_of(MAIL, rcpt="unknown") != dedup_key_of(to_bob, rcpt="unknown")
    assert dedup_key_of(MAIL, rcpt="unknown") != dedup_key_of(MAIL, rcpt="unknown", qid="another")
    assert dedup_key_of(MAIL, rcpt="unknown") == dedup_key_of(MAIL, rcpt="unknown")


def test_a_release_that_comes_back_has_the_digest_of_what_was_held() -> None:
    held = b"Received: first\nSubject: x\n\nbare\nlone\rcr\r"
    released = (
        b"Received: from postfix\r\nReceived: from portal\r\n\tid 1\r\nX-Quarantine-Mark: abc\r\n"
        b"Received: first\r\nSubject: x\r\n\r\nbare\r\nlone cr \r\n"
    )
    assert content_digest([held]) == content_digest([released])
    assert content_digest([held[i : i + 1] for i in range(len(held))]) == content_digest([released])
    assert content_digest([]) == content_digest([b"Received: x\r\n"])
    big = b"Received: y\r\n" + b"Subject: x\r\n\r\n" + b"line\r\n" * 50_000
    for step in (1000, 65_536, 65_537, 300_001):
        assert content_digest([big[i : i + step] for i in range(0, len(big), step)]) == content_digest([big])


@pytest.mark.parametrize(
    ("sender", "recipients", "more", "key"),
    [
        ("promo@example.net", ("Bob@example.org", "alice@EXAMPLE.org"), (), "ca66d90136b0bd69a936632c684dcafe"),
        (None, (), (), "8d5865fc74ae0eef8a3b9105b88d3dd5"),
        ("", ("a@münchen.example",), (), "fedcf8ca8612ccb67c284a49b6e323c6"),
        ("x@y.example", ("a@b.example",), (b"q" * 32, b"4XqAbc1"), "334a9e452b48ba707ce1b04885d475e6"),
    ],
)
def test_dedup_keys_are_those_of_version_0_1_0(
    sender: str | None, recipients: tuple[str, ...], more: tuple[bytes, ...], key: str
) -> None:
    """A retry that comes after an upgrade is compared with keys that were stored before it."""
    assert dedup_key(bytes(range(32)), sender, recipients, *more).hex().startswith(key)


def test_a_message_and_its_release_have_the_digests_of_version_0_1_0() -> None:
    assert dedup_key_of(MAIL).hex().startswith("5389d10feca8624c3789a3a621fabb42")
    assert content_digest([MAIL]).hex().startswith("ad9e8519d2b192b780dc1b88458a99b2")


# ---- selection


def test_only_what_is_known_says_that_mail_is_not_wanted() -> None:
    def is_wanted(only: tuple[str, ...], actions: tuple[str, ...], **changed: Any) -> bool:
        with posting(*as_default(MAIL, METADATA | changed)) as posted:
            return wanted(posted.export, only, actions)

    assert is_wanted((), ())
    assert is_wanted((), ("reject", "discard"))
    assert is_wanted((), ("Reject",))
    assert not is_wanted((), ("reject", "discard"), action="add header")
    assert is_wanted((), ("reject",), action="")
    assert is_wanted(("te*",), ("reject",))
    assert not is_wanted(("tes",), ())
    assert not is_wanted(("NOPE", "X?"), (), symbols=[])
    assert is_wanted(("NOPE",), (), symbols='[{"name":"TEST"')
    assert is_wanted(("NOPE",), (), symbols="")


# ---- broken and hostile posts


def test_broken_packing_is_refused_with_a_sentence() -> None:
    headers, data = as_multipart(MAIL)
    packed = gzip.compress(data)
    zipped = headers | {"content-encoding": "gzip"}
    json_headers = {"content-type": "application/json"}
    cases = [
        *((headers, data[:end]) for end in (0, 10, 60, 300, len(data) - 8)),
        (headers, data.replace(b'name="message"', b'name="other"')),
        (headers, data.replace(b"form-data;", b"attachment;")),
        ({"content-type": "multipart/form-data"}, data),
        ({"content-type": 'multipart/form-data; boundary=""'}, data),
        ({"content-type": "multipart/form-data; boundary=other"}, data),
        *((zipped, packed[:end]) for end in (0, 5, 50, len(packed) - 1)),
        (zipped, packed + b"x"),
        (zipped, packed + packed),
        (zipped, data),
        (headers | {"content-encoding": "br"}, data),
        (json_headers, as_json(MAIL)[1][:-20]),
        (json_headers, b'{"a": 1}'),
        (json_headers, as_json(MAIL)[1].replace(b'"message":"UmV', b'"message":"!mV')),
        (json_headers, as_json(MAIL)[1].replace(b'"message":"UmV', b'"message":"Um=')),
        (json_headers, as_json(MAIL)[1].replace(b'"message":"UmVj', b'"message":"!!!!')),
        (json_headers, as_json(MAIL, METADATA)[1].replace(b'"message":"', b'"message":"Q')),
        ({"content-type": "application/msgpack"}, as_msgpack(MAIL)[1][:-1]),
        *(
            ({"content-type": "application/msgpack"}, as_msgpack(mail)[1][: as_msgpack(mail)[1].index(mail) + 10])
            for mail in (MAIL, MAIL * 500, b"\xff" * 20)
        ),
        ({"content-type": "application/msgpack"}, as_msgpack(MAIL)[1] + b"x"),
    ]
    for number, (headers, data) in enumerate(cases):
        if data:
            with pytest.raises(BadExport) as caught:
                post(headers, data)
                pytest.fail(f"case {number} was taken")
            assert len(str(caught.value)) > 20


def test_a_gzip_bomb_is_refused_before_it_is_unpacked_completely() -> None:
    bomb = gzip.compress(b"\0" * 30_000_000)
    headers = {"content-type": "message/rfc822", "content-encoding": "gzip"}
    tracemalloc.start()
    try:
        with pytest.raises(TooLarge, match="max_body_bytes"):
            post(headers, bomb, limit=20_000_000)
        assert tracemalloc.get_traced_memory()[1] < 8_000_000, "it is unpacked in pieces"
    finally:
        tracemalloc.stop()
    assert len(mail_of(post(headers, bomb, limit=30_000_000))) == 30_000_000
    noise = gzip.compress(random.Random(1).randbytes(100_000), 1)
    with pytest.raises(TooLarge, match="max_body_bytes"):
        post(headers, noise, limit=99_999)
    assert len(mail_of(post(headers, noise))) == 100_000
    with pytest.raises(TooLarge, match="max_body_bytes"):
        post({}, b"x" * 1001, limit=1000)
    assert len(mail_of(post({}, b"x" * 1000, limit=1000))) == 1000


@pytest.mark.parametrize("form", [as_default, as_multipart, as_json])
def test_a_mail_of_50_mb_is_never_in_memory(form: Any) -> None:
    mark = b"MARK" * 30
    headers, data = form(mark)
    packed = base64.b64encode(mark) if form is as_json else mark
    before, _, after = data.partition(packed)
    piece = packed * 500
    with tempfile.TemporaryFile() as file:
        file.write(before)
        count = 50_000_000 // len(piece)
        for _ in range(count):
            file.write(piece)
        file.write(after)
        body = Body(file, 0, file.tell())
        tracemalloc.start()
        try:
            with parse(headers, body, LIMIT) as posted:  # type: ignore[union-attr]
                peak = tracemalloc.get_traced_memory()[1]
                digest = sha256()
                for chunk in posted.body.chunks():
                    digest.update(chunk)
                assert digest.digest() == posted.export.body_sha256
                assert posted.body.size_bytes == count * len(mark) * 500
        finally:
            tracemalloc.stop()
    assert peak < 20_000_000


def test_temporary_files_are_removed_by_close() -> None:
    posted = post(*as_multipart(MAIL * 10_000))
    assert posted is not None
    posted.close()
    posted.close()
    with pytest.raises(ValueError, match="closed"):
        message_of(posted)


# ---- fuzzing: no errors except BadExport and TooLarge, and no changed bytes

QUIET = settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck))
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["unknown", "undef"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["name", "score", "options"]), inner),
    max_leaves=8,
)
metadata = st.dictionaries(st.sampled_from([*METADATA, "message_id", "uuid", "x"]), values)
latin1 = st.text(st.characters(max_codepoint=255))


def check(posted: Posted | None) -> None:
    if posted is None:
        return
    with posted:
        export = posted.export
        texts = [export.subject, export.header_from, export.queue_id, export.message_id, export.action, export.user]
        texts += [export.mark, export.envelope_sender, *export.recipients]
        for text in texts + [text for symbol in export.symbols for text in (symbol.name, *symbol.options)]:
            assert not re.search(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", text or "")
        assert all(symbol.score == symbol.score for symbol in export.symbols)
        assert sha256(message_of(posted)).digest() == export.body_sha256
        assert len(export.dedup_key) == 32


@every_format
@QUIET
@given(mail=st.binary(min_size=1, max_size=300), fields=metadata)
def test_any_metadata_is_taken_and_any_message_comes_out_unchanged(
    form: Any, mail: bytes, fields: dict[str, Any]
) -> None:
    sure = {field: fields.get(field, METADATA[field]) for field in ("rcpt", "symbols", "qid", "action", "from")}
    headers, data = form(mail, fields | sure)
    posted = post(headers, data)
    assert message_of(posted) == mail
    check(posted)


@QUIET
@given(
    headers=st.dictionaries(
        st.sampled_from(
            ["content-type", "content-encoding", "x-rspamd-rcpt", "x-rspamd-from", "x-rspamd-symbols", "x-rspamd-ip"]
            + ["x-rspamd-subject", "x-rspamd-score", "x-rspamd-qid", "-action", "x-rspamd-scan-time", "x"]
        ),
        latin1
        | st.sampled_from(["multipart/form-data; boundary=B", "gzip", "application/json", "application/msgpack"]),
    ),
    data=st.binary()
    | st.sampled_from([b"--B\r\n", b"{}", b"\x81\xa7message"]).flatmap(lambda b: st.binary().map(b.__add__)),
)
def test_no_request_raises_another_error(headers: dict[str, str], data: bytes) -> None:
    try:
        check(post(headers, data))
    except (BadExport, TooLarge) as error:
        assert str(error)


@every_format
@QUIET
@given(st.data())
def test_no_damaged_post_raises_another_error(form: Any, data: st.DataObject) -> None:
    headers, whole = form(MAIL)
    at = data.draw(st.integers(0, len(whole)))
    until = data.draw(st.integers(at, len(whole)))
    damaged = whole[:at] + data.draw(st.binary(max_size=20)) + whole[until:]
    try:
        check(post(headers, damaged))
        check(post(headers | {"content-encoding": "gzip"}, gzip.compress(damaged)))
    except (BadExport, TooLarge) as error:
        assert str(error)
