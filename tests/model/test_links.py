"""Tokens, cookies, form tokens, marks and the key file: only what we signed opens anything, and only as written."""

from __future__ import annotations

import hashlib
import os
import string
import subprocess
import sys
from base64 import urlsafe_b64decode, urlsafe_b64encode
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from itsdangerous import Signer

from portal.keys import read_keys
from portal.model.errors import LinkExpired, LinkInvalid, SettingsError
from portal.model.links import Action, Link, Links
from portal.model.message import new_id
from tests.builders import ALICE, BOB, MALLORY
from tests.paths import ROOT

OLD, NEW, OTHER = b"o" * 32, b"n" * 32, b"x" * 32
NOW = datetime(2026, 11, 22, 7, 0, tzinfo=UTC)
A_LABEL, U_LABEL = "erika@xn--mnchen-3ya.example", "erika@münchen.example"  # one identity; the second up to 0.1.1
ID = UUID("019aa9d2-7c40-7123-8abc-0123456789ab")
ALPHABET = string.ascii_letters + string.digits + "-_"


def make(*keys: bytes) -> Links:
    return Links(keys or (NEW,), "https://mail.example.org/quarantine", timedelta(days=14))


LINKS = make()
TOKEN = LINKS.token(Action.RELEASE, ID, 3, NOW)


def is_refused(token: str, links: Links = LINKS, now: datetime = NOW) -> bool:
    try:
        links.verify(token, now)
    except LinkInvalid:
        return True
    return False


# ---- tokens


@pytest.mark.parametrize("action", Action)
def test_a_token_contains_what_was_signed(action: Action) -> None:
    token = LINKS.token(action, ID, 65535, NOW)
    assert LINKS.verify(token, NOW) == Link(action, ID, 65535, NOW)


def test_a_link_ends_in_a_slash_below_the_public_address() -> None:
    url = LINKS.url(Action.RELEASE, ID, 3, NOW)
    assert url == f"https://mail.example.org/quarantine/link/{TOKEN}/"
    assert len(TOKEN) == 75


def test_a_link_to_a_role_mailbox_names_its_reader() -> None:
    url = LINKS.url(Action.RELEASE, ID, 3, NOW, ALICE)
    assert url == f"https://mail.example.org/quarantine/link/{LINKS.token(Action.RELEASE, ID, 3, NOW, ALICE)}/"
    link = LINKS.verify(url.split("/")[-2], NOW)
    assert LINKS.is_for(link, ALICE, "info@example.org")
    assert not LINKS.is_for(link, BOB, "info@example.org")


def test_the_moment_is_kept_in_whole_seconds() -> None:
    token = LINKS.token(Action.DELETE, ID, 0, NOW + timedelta(milliseconds=999))
    assert LINKS.verify(token, NOW).issued_at == NOW


def test_every_change_of_one_character_is_refused() -> None:
    accepted = [
        changed
        for place in range(len(TOKEN))
        for other in ALPHABET + ".=%/+ "
        if (changed := TOKEN[:place] + other + TOKEN[place + 1 :]) != TOKEN and not is_refused(changed)
    ]
    assert accepted == []


def test_every_lost_or_doubled_character_is_refused() -> None:
    for place in range(len(TOKEN)):
        assert is_refused(TOKEN[:place] + TOKEN[place + 1 :])
        assert is_refused(TOKEN[:place] + TOKEN[place] + TOKEN[place:])


@pytest.mark.parametrize("tail", ["=", "==", "!!", "é", "\n", " ", "/", ".", "A", "\0", "%00", "\udce9", "ſ"])
def test_anything_before_or_after_a_token_is_refused(tail: str) -> None:
    assert is_refused(TOKEN + tail)
    assert is_refused(tail + TOKEN)


@pytest.mark.parametrize("text", ["", ".", "A" * 31 + "." + "A" * 43, "é" * 75, "A" * 100_000, "." * 75, TOKEN.lower()])
def test_text_that_is_no_token_is_refused(text: str) -> None:
    assert is_refused(text)


def test_halves_of_two_tokens_do_not_fit_together() -> None:
    other = LINKS.token(Action.RELEASE, ID, 4, NOW)
    assert is_refused(TOKEN.partition(".")[0] + "." + other.partition(".")[2])


def test_a_token_for_one_action_opens_no_other() -> None:
    """The action's byte is signed under a salt of its own: swapping the byte needs another signature."""
    packed = urlsafe_b64decode(TOKEN.partition(".")[0] + "=")
    for code in range(256):
        if code != packed[0]:
            payload = urlsafe_b64encode(bytes([code]) + packed[1:]).rstrip(b"=").decode()
            assert is_refused(payload + "." + TOKEN.partition(".")[2])


@pytest.mark.parametrize(
    "salt", ["quarantine.link.DELETE", "quarantine.link.ASK", "quarantine.device", "quarantine.mark"]
)
def test_what_the_same_key_signed_for_something_else_is_refused(salt: str) -> None:
    signer = Signer([NEW], salt=salt, sep=".", key_derivation="hmac", digest_method=hashlib.sha256)
    assert is_refused(signer.sign(TOKEN.partition(".")[0]).decode())


def test_another_key_is_refused() -> None:
    assert is_refused(make(OTHER).token(Action.RELEASE, ID, 3, NOW))


def test_keys_rotate() -> None:
    old, both, new = make(OLD), make(OLD, NEW), make(NEW)
    before, after = (links.token(Action.RELEASE, ID, 0, NOW) for links in (old, both))
    assert both.verify(before, NOW) == both.verify(after, NOW)
    assert new.verify(after, NOW)
    assert is_refused(before, new)
    assert is_refused(after, old)


@pytest.mark.parametrize(
    ("action", "token"),
    [
        (Action.RELEASE, "AQGaqdJ8QHEjirwBI0VniasAA2sCkvA.bhaReh9KHZrEqZ_CfNH8M7dcIcxeejDaut2kTSLLuE0"),
        (Action.DELETE, "AgGaqdJ8QHEjirwBI0VniasAA2sCkvA.o-L5hQhjQGVfN15nJBLE1k5WRdwx_y3g_KhnhrGdz_k"),
        (Action.REQUEST, "AwGaqdJ8QHEjirwBI0VniasAA2sCkvA.XGw1PvXbxpsuU1oUtFKw4zyfqWEzEivQYUBwoIVqpXE"),
        (Action.PREFERENCES, "BAGaqdJ8QHEjirwBI0VniasAA2sCkvA.f8albOvGQ-aLOKj1Y3FaNEPd8z2vtvV8Ev5O1mkgRuw"),
        (Action.SHOW, "BQGaqdJ8QHEjirwBI0VniasAA2sCkvA.z3znW_IEo55-1A5TttFDdIR1eta0GvKX5rEmw_2F2ak"),
        (Action.SEVERAL, "BgGaqdJ8QHEjirwBI0VniasAA2sCkvA.fAv2W2kpyle0Q4h2SOjSR9ZSrk_Y1wnp2QORkBKlZ5c"),
        (Action.FORWARDED, "BwGaqdJ8QHEjirwBI0VniasAA2sCkvA.UbW-DJFML9UW2bRE92DMlgVCZhzpflvZYvDNQS550l4"),
    ],
)
def test_a_link_that_version_0_1_0_signed_is_still_valid(action: Action, token: str) -> None:
    assert make(OLD, NEW).verify(token, NOW) == Link(action, ID, 3, NOW)


def test_what_version_0_1_0_signed_is_still_ours() -> None:
    links = make(OLD, NEW)
    of_reader = "BwGaqdJ8QHEjirwBI0VniasAAGsCkvCo_sBOkWwNlQ.xphQAN-HTzzxtPwBq-o49tE84DbqOjOEqwzuASnqu0w"
    link = links.verify(of_reader, NOW)
    assert links.is_for(link, ALICE, "info@example.org")
    assert not links.is_for(link, BOB, "info@example.org")
    device = "IvcPyaJ4ijVoj_SI.iM5NTaNOpAofN3klY4egD4Jae70ULhhbNVQGkMid6QE"
    assert links.knows_device(device, ALICE, None)
    assert not links.knows_device(device, ALICE, NOW - timedelta(days=9_000))  # its time is not known
    assert links.form_token_fits("session one", "nwfp-7-YWLg6NoOty8FUNfSXgsMSEpbleejAIYGtWSs")
    mark = f"release {ID}.YiL4eoQEzeFyJJzJbqbzyRYHAVG-zJNUtOQjIvA2vsE"
    assert links.read_mark(mark) == ("release", ID)
    assert links.fingerprints() == ["760e5f8e5e45b54b", "6c3adaaad0ba2109"]  # hosts of both versions have the same keys


def test_a_key_may_be_longer_than_a_hash_takes() -> None:
    links = make(b"long" * 30)
    link = links.verify(links.token(Action.RELEASE, ID, 3, NOW, ALICE), NOW)
    assert links.is_for(link, ALICE, "info@example.org")
    assert links.knows_device(links.device(None, ALICE, NOW), ALICE, None)


def test_a_token_expires() -> None:
    assert LINKS.verify(TOKEN, NOW + timedelta(days=14))
    with pytest.raises(LinkExpired):
        LINKS.verify(TOKEN, NOW + timedelta(days=14, seconds=1))


def test_an_old_token_that_is_not_ours_is_invalid_not_expired() -> None:
    forged = make(OTHER).token(Action.RELEASE, ID, 3, NOW)
    with pytest.raises(LinkInvalid) as error:
        LINKS.verify(forged, NOW + timedelta(days=400))
    assert not isinstance(error.value, LinkExpired)


def test_a_clock_that_steps_back_a_little_breaks_no_link() -> None:
    assert LINKS.verify(TOKEN, NOW - timedelta(minutes=5))
    with pytest.raises(LinkInvalid):
        LINKS.verify(TOKEN, NOW - timedelta(minutes=5, seconds=1))


@given(
    st.sampled_from(Action),
    st.uuids(),
    st.integers(0, 65535),
    st.datetimes(datetime(2020, 1, 1), datetime(2100, 1, 1)),
)
@settings(max_examples=300, deadline=None)
def test_every_token_is_verified(action: Action, id: UUID, number: int, at: datetime) -> None:
    at = at.replace(microsecond=0, tzinfo=UTC)
    assert LINKS.verify(LINKS.token(action, id, number, at), at) == Link(action, id, number, at)


@given(st.text(ALPHABET, min_size=31, max_size=31), st.text(ALPHABET, min_size=43, max_size=43))
@settings(max_examples=2000, deadline=None)
@pytest.mark.slow
def test_random_forgeries_are_refused(payload: str, signature: str) -> None:
    assert is_refused(f"{payload}.{signature}")


@given(st.binary(min_size=1, max_size=60), st.integers(0, 74))
@settings(max_examples=1000, deadline=None)
def test_garbage_within_a_token_is_refused(garbage: bytes, place: int) -> None:
    text = garbage.decode("latin-1")
    changed = TOKEN[:place] + text + TOKEN[place + len(text) :]
    assert changed == TOKEN or is_refused(changed)


def test_errors_never_repeat_the_token() -> None:
    for wrong in (TOKEN + "=", make(OTHER).token(Action.RELEASE, ID, 3, NOW)):
        with pytest.raises(LinkInvalid) as error:
            LINKS.verify(wrong, NOW)
        assert wrong[:10] not in str(error.value)


@pytest.mark.parametrize(
    ("signed_for", "reader", "recipient", "theirs"),
    [
        ("", A_LABEL, A_LABEL, True),
        (U_LABEL, A_LABEL, "info@xn--mnchen-3ya.example", True),
        (A_LABEL, A_LABEL, "info@xn--mnchen-3ya.example", True),
        (U_LABEL, A_LABEL, A_LABEL, True),  # formerly two people, now one
        (A_LABEL, A_LABEL, A_LABEL, True),
        (U_LABEL, BOB, A_LABEL, False),
        (U_LABEL, BOB, "info@xn--mnchen-3ya.example", False),
        ("max@münchen.example", A_LABEL, "info@xn--mnchen-3ya.example", False),
        ("erika@munchen.example", A_LABEL, "info@xn--mnchen-3ya.example", False),
        (BOB, BOB, BOB, False),
    ],
)
def test_a_link_of_an_older_version_names_its_reader_with_u_labels(
    signed_for: str, reader: str, recipient: str, theirs: bool
) -> None:
    links = make(OLD, NEW)
    for signer in (make(OLD), make(OLD, NEW)):
        link = links.verify(signer.token(Action.RELEASE, ID, 3, NOW, signed_for), NOW)
        assert links.is_for(link, reader, recipient) is theirs


# ---- the device cookie


def test_a_browser_is_known_for_recipients_whose_button_was_pressed() -> None:
    cookie = LINKS.device(None, ALICE, NOW)
    assert LINKS.knows_device(cookie, ALICE, None)
    assert not LINKS.knows_device(cookie, BOB, None)
    both = LINKS.device(cookie, BOB, NOW)
    assert LINKS.knows_device(both, ALICE, None)
    assert LINKS.knows_device(both, BOB, None)
    assert not LINKS.knows_device(both, MALLORY, None)


def test_a_browser_is_known_for_the_last_eight() -> None:
    cookie = None
    people = [f"p{n}@example.org" for n in range(9)]
    for person in people:
        cookie = LINKS.device(cookie, person, NOW)
    assert not LINKS.knows_device(cookie, people[0], None)
    assert all(LINKS.knows_device(cookie, person, None) for person in people[1:])
    again = LINKS.device(cookie, people[1], NOW)
    assert len(again) == len(cookie or "")
    assert all(LINKS.knows_device(again, person, None) for person in people[1:])


def test_presses_before_a_time_do_not_count() -> None:
    later = NOW + timedelta(hours=1)
    cookie = LINKS.device(LINKS.device(None, ALICE, NOW), BOB, later)
    for since, alice in ((NOW - timedelta(hours=1), True), (NOW, True), (NOW + timedelta(milliseconds=1), False)):
        assert LINKS.knows_device(cookie, ALICE, since) is alice
        assert LINKS.knows_device(cookie, BOB, since)
    assert LINKS.knows_device(LINKS.device(cookie, ALICE, later), ALICE, later)


def test_the_device_cookie_names_nobody() -> None:
    assert "alice" not in LINKS.device(None, ALICE, NOW)


def test_a_newer_key_does_not_make_browsers_forget() -> None:
    cookie = make(OLD).device(None, ALICE, NOW)
    assert make(OLD, NEW).knows_device(cookie, ALICE, None)


def test_a_device_cookie_of_an_older_version_names_people_with_u_labels() -> None:
    for _ in range(2):
        cookie = LINKS.device(LINKS.device(None, BOB, NOW), U_LABEL, NOW)
        assert LINKS.knows_device(cookie, A_LABEL, None)
        again = LINKS.device(cookie, A_LABEL, NOW)
        assert LINKS.knows_device(again, A_LABEL, None)
        assert len(again) == len(cookie)  # is not in it twice
    assert not LINKS.knows_device(LINKS.device(None, BOB, NOW), A_LABEL, None)


@pytest.mark.parametrize("cookie", [None, "", ".", "a.b", "é", "\udce9", "\0", "x" * 5000, TOKEN])
def test_an_invalid_device_cookie_names_nobody(cookie: str | None) -> None:
    assert not LINKS.knows_device(cookie, ALICE, None)
    assert LINKS.knows_device(LINKS.device(cookie, ALICE, NOW), ALICE, None)


def test_a_forged_device_cookie_names_nobody() -> None:
    assert not LINKS.knows_device(make(OTHER).device(None, ALICE, NOW), ALICE, None)
    cookie = LINKS.device(None, ALICE, NOW)
    assert not LINKS.knows_device("A" + cookie[1:] if cookie[0] != "A" else "B" + cookie[1:], ALICE, None)


def respelled(signed: str) -> list[str]:
    """Return other spellings of the signature at the end of a text: spare bits, padding, and ignored junk."""
    digits = string.ascii_uppercase + string.ascii_lowercase + string.digits + "-_"
    last = digits.index(signed[-1])
    bits = [digits[other] for other in range(64) if other // 4 == last // 4 and other != last]
    return [*(signed[:-1] + letter for letter in bits), signed + "=", signed + "==", signed + "!", signed + "\n"]


def test_a_device_cookie_has_one_spelling() -> None:
    cookie = LINKS.device(None, ALICE, NOW)
    assert LINKS.knows_device(cookie, ALICE, None)
    for other in respelled(cookie):
        assert not LINKS.knows_device(other, ALICE, None), other


def test_a_form_token_has_one_spelling() -> None:
    for other in respelled(LINKS.form_token("session one", ALICE)):
        assert not LINKS.form_token_fits("session one", other), other


def test_a_mark_has_one_spelling_but_for_white_space() -> None:
    for other in respelled(LINKS.mark("digest", ID)):
        assert (LINKS.read_mark(other) is None) is not other.endswith("\n"), other


# ---- form tokens


def test_every_page_has_another_form_token() -> None:
    tokens = [LINKS.form_token("session one", ALICE) for _ in range(100)]
    assert all(LINKS.form_token_fits("session one", token) for token in tokens)
    starts = range(0, len(tokens[0]) - 8, 8)
    pieces = {token[at : at + 8] for token in tokens for at in starts}
    assert len(pieces) == len(tokens) * len(starts), "no part of it repeats, which a compressed page would disclose"


def test_a_form_token_that_was_changed_does_not_fit() -> None:
    token = LINKS.form_token("session one", ALICE)
    other = LINKS.form_token("session one", ALICE)
    for at, letter in enumerate(token):
        changed = "A" if letter != "A" else "Q"
        assert not LINKS.form_token_fits("session one", token[:at] + changed + token[at + 1 :])
    assert not LINKS.form_token_fits("session one", token[:43] + other[43:])
    assert not LINKS.form_token_fits("session one", token[:43])
    assert not LINKS.form_token_fits("session one", token + other)


def test_a_form_token_fits_its_session_only() -> None:
    token = LINKS.form_token("session one", ALICE)
    assert LINKS.form_token_fits("session one", token)
    assert not LINKS.form_token_fits("session two", token)
    assert not make(OTHER).form_token_fits("session one", token)
    assert make(NEW, OTHER).form_token_fits("session one", token)


def test_a_form_token_names_its_recipient_to_this_portal() -> None:
    for recipient in (ALICE, "a@b.example", "größe@example.org", "x" * 250 + "@example.org"):
        assert LINKS.form_owner(LINKS.form_token("session one", recipient)) == recipient
    token = LINKS.form_token("session one", ALICE)
    assert make(NEW, OTHER).form_owner(token) == ALICE
    assert make(OTHER).form_owner(token) is None
    for at, letter in enumerate(token):
        assert LINKS.form_owner(token[:at] + ("A" if letter != "A" else "Q") + token[at + 1 :]) is None


@pytest.mark.parametrize("token", ["", "é", "x", "=", "\udce9", "\0", "A" * 43, "A" * 100_000])
def test_a_strange_form_token_fits_nothing(token: str) -> None:
    assert not LINKS.form_token_fits("session one", token)
    assert not LINKS.form_token_fits("", token)
    assert LINKS.form_owner(token) is None


# ---- marks


@pytest.mark.parametrize("kind", ["release", "digest", "mail"])
def test_a_mark_contains_the_kind_of_our_mail(kind: str) -> None:
    mark = LINKS.mark(kind, ID)
    assert LINKS.read_mark(mark) == (kind, ID)
    assert make(NEW, OTHER).read_mark(mark) == (kind, ID)
    assert make(OTHER).read_mark(mark) is None


def test_a_mark_is_one_printable_header_value() -> None:
    mark = LINKS.mark("release", ID)
    assert mark.isascii()
    assert mark.isprintable()


def test_a_mark_that_was_folded_on_the_way_is_still_ours() -> None:
    mark = LINKS.mark("release", ID)
    assert LINKS.read_mark(f" {mark}\r\n") == ("release", ID)
    assert LINKS.read_mark(mark.replace(" ", "\r\n\t")) == ("release", ID)


@pytest.mark.parametrize("value", [None, "", "release", f"release {ID}", f"release {ID}.x", "é", "\udce9", TOKEN])
def test_a_strange_mark_is_not_ours(value: str | None) -> None:
    assert LINKS.read_mark(value) is None


def test_a_changed_mark_is_not_ours() -> None:
    mark = LINKS.mark("release", ID)
    assert LINKS.read_mark(mark.replace("release", "digest")) is None
    assert LINKS.read_mark(mark.replace(str(ID), str(new_id()))) is None


# ---- keys


def test_short_or_no_keys_are_refused() -> None:
    for keys in ([], [b""], [b"x" * 31], [NEW, b"short"]):
        with pytest.raises(SettingsError, match="32 bytes"):
            Links(keys, "https://mail.example.org", timedelta(days=1))


def test_fingerprints_distinguish_keys_and_hide_them() -> None:
    old, new = make(OLD, NEW).fingerprints()
    assert [old] == make(OLD).fingerprints()
    assert old != new
    assert NEW.decode()[:4] not in new


def test_a_key_file_is_made_once_and_private(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "links.keys"
    with pytest.raises(SettingsError, match="quarantine init"):
        read_keys(path)
    assert not path.parent.exists()
    keys = read_keys(path, create=True)
    assert len(keys) == 1
    assert len(keys[0]) >= 32
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_keys(path) == keys
    assert os.listdir(path.parent) == ["links.keys"]
    assert read_keys(tmp_path / "other", create=True) != keys


def test_a_permissive_umask_does_not_open_a_key_file(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        read_keys(tmp_path / "links.keys", create=True)
    finally:
        os.umask(before)
    assert (tmp_path / "links.keys").stat().st_mode & 0o777 == 0o600


def key_file(folder: Path, data: bytes, mode: int = 0o600) -> Path:
    path = folder / "links.keys"
    path.write_bytes(data)
    path.chmod(mode)
    return path


def test_keys_are_one_a_line_oldest_first(tmp_path: Path) -> None:
    assert read_keys(key_file(tmp_path, OLD + b"\r\n\n  " + NEW + b" \n\n")) == [OLD, NEW]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o620])
def test_a_key_file_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = key_file(tmp_path, NEW, mode)
    with pytest.raises(SettingsError, match=f"chmod 600 {path}"):
        read_keys(path)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (NEW + b"\nshort\n", "key 2 is shorter than 32 bytes"),
        (b"x" * 31, "key 1 is shorter"),
    ],
)
def test_an_empty_or_short_key_file_is_refused(tmp_path: Path, data: bytes, sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence) as error:
        read_keys(key_file(tmp_path, data))
    assert "links.keys_file" in str(error.value)
    assert "short\n" not in str(error.value)


def test_a_key_file_that_cannot_be_read_or_created_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir(mode=0o700)
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone" / "links.keys")
    for path in (tmp_path / "file" / "links.keys", tmp_path / "folder", tmp_path / "nowhere"):
        with pytest.raises(SettingsError, match=f"links.keys_file: {path}"):
            read_keys(path, create=True)


def test_many_processes_that_start_at_once_agree_on_one_key(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib; from portal.keys import read_keys; sys.stdin.read(1);"
        "print(read_keys(pathlib.Path(sys.argv[1]), create=True))"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, tmp_path / "links.keys"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for _ in range(6)
    ]
    answers = set()
    for process in processes:  # all processes wait for this before they read the file
        assert process.stdin
        process.stdin.write(b"x")
        process.stdin.flush()
    for process in processes:
        answers.add(process.communicate()[0])
        assert process.returncode == 0
    assert answers == {f"{read_keys(tmp_path / 'links.keys')}\n".encode()}
    assert os.listdir(tmp_path) == ["links.keys"]
