"""People and their addresses: virtual alias tables of Postfix, and changes of the file."""

from __future__ import annotations

import errno
import os
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from portal import people
from portal.model.message import Reader, identity
from portal.people import Directory
from portal.people.virtual import DEPTH, Names, parse

ALICE, BOB, CAROL = "alice@example.org", "bob@example.org", "carol@example.org"


def local(address: str) -> bool:
    return address.rpartition("@")[2] in ("example.org", "example.net")


class Site:
    """A directory on a file that a test writes. Its clock goes on with each change, instead of a test waiting."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
        self.path, self.moment = path, 0.0
        self.kept: str | None = None
        monkeypatch.setattr(time, "monotonic", lambda: self.moment)
        self.options = options

    def open(self) -> Directory:
        return Directory(self.path, is_local=local, last_good=lambda: self.kept, **self.options)

    def write(self, text: str | bytes, *, seconds_ago: float = 60) -> None:
        self.path.write_bytes(text if isinstance(text, bytes) else text.encode())
        written = time.time() - seconds_ago
        os.utime(self.path, (written, written))
        self.moment += 10


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    return Site(tmp_path / "virtual", monkeypatch)


def readers(text: str, address: str, **options: Any) -> tuple[str, ...]:
    return parse(text, is_local=local, **options).readers.get(address, ())


# ---- the format


@pytest.mark.parametrize(
    ("text", "address", "expected"),
    [
        pytest.param("sales@example.org alice@example.org", "sales@example.org", (ALICE,), id="alias"),
        pytest.param(f"info@example.org {ALICE}, {BOB}", "info@example.org", (ALICE, BOB), id="role"),
        pytest.param(
            "info@example.org alice@example.org bob@example.org", "info@example.org", (ALICE, BOB), id="blanks alone"
        ),
        pytest.param("INFO@Example.ORG Alice@Example.org", "info@example.org", (ALICE,), id="case"),
        pytest.param("# a\n\n   # b\nx@example.org alice@example.org\n", "x@example.org", (ALICE,), id="comments"),
        pytest.param(
            "info@example.org\n  alice@example.org,\n# a comment, and an empty line\n\n\tbob@example.org\n",
            "info@example.org", (ALICE, BOB), id="continuation",
        ),
        pytest.param("x@example.org alice@example.org\r\n", "x@example.org", (ALICE,), id="CRLF"),
        pytest.param(
            "all@example.org staff@example.org, carol@example.org\nstaff@example.org alice@example.org bob@example.org",
            "all@example.org", (ALICE, BOB, CAROL), id="a list in a list",
        ),
        pytest.param(
            "info@example.org info@example.org, bob@example.org", "info@example.org", ("info@example.org", BOB),
            id="a mailbox and a copy",
        ),
        pytest.param(
            '"john doe"@example.org alice@example.org', '"john doe"@example.org', (ALICE,), id="quoted, with a blank"
        ),
        pytest.param('"sales"@example.org alice@example.org', "sales@example.org", (ALICE,), id="quotes for nothing"),
        pytest.param(
            "x@example.org a@old.example\n@old.example @example.org\n", "x@example.org", ("a@example.org",),
            id="by an alias domain",
        ),
        pytest.param(
            "x@example.org a@old.example\n@old.example alice@example.org\n", "x@example.org", (ALICE,),
            id="by a catch-all",
        ),
        pytest.param(
            'x@example.org "a@b"@old.example\n@old.example @example.org\n', "x@example.org", ('"a@b"@example.org',),
            id="a quoted name by an alias domain",
        ),
        pytest.param(
            '"a@b"@example.org @example.net\n', '"a@b"@example.org', ('"a@b"@example.net',),
            id="the same quoted name in another domain",
        ),
        pytest.param('x@example.org "j, d"@example.org', "x@example.org", ('"j, d"@example.org',), id="quoted target"),
        pytest.param("x@example.org a/b@example.org", "x@example.org", ("a/b@example.org",), id="a slash in a name"),
        pytest.param(
            "x@example.org alice@example.org\n  # bob@example.org\n", "x@example.org", (ALICE,), id="indented comment"
        ),
        pytest.param(
            "x@example.org @example.net\n", "x@example.org", ("x@example.net",), id="the same name in another domain"
        ),
        pytest.param(
            "x@example.org alice@example.org\nx@example.org bob@example.org", "x@example.org", (ALICE,),
            id="the first of two lines",
        ),
        pytest.param(
            "x@example.org alice@example.org, freelancer@elsewhere.example", "x@example.org", (ALICE,),
            id="nobody elsewhere is told",
        ),
        pytest.param(
            "x@example.org me@elsewhere.example", "x@example.org", ("x@example.org",), id="forwarded elsewhere: its own"
        ),
    ],
)  # fmt: skip
def test_table(text: str, address: str, expected: tuple[str, ...]) -> None:
    assert readers(text, address) == expected


def test_names_without_a_domain_are_in_origin_and_count_after_whole_addresses() -> None:
    text = "sales alice\ninfo bob\ninfo@example.org alice@example.org"
    assert readers(text, "sales@example.org", origin="example.org") == (ALICE,)
    assert readers(text, "info@example.org", origin="example.org") == (ALICE,)
    without = parse(text, is_local=local)
    assert "sales@example.org" not in without.readers
    assert "set people.origin" in without.problems[0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("/^info@/ alice@example.org", "line 1: regular expressions are not followed"),
        ("postmaster: alice@example.org", "line 1: has the syntax of aliases(5), not of virtual(5)"),
        ("x@example.org :include:/etc/list", "line 1: has the syntax of aliases(5), not of virtual(5)"),
        ("# a comment\n\nx@example.org", "line 3: has no target address"),
        ('x@example.org |"/bin/false"', 'line 1: |"/bin/false" is not an address'),
        ('x@example.org "|false"', 'line 1: "|false" is not an address'),
        ("x@example.org /var/mail/x", "line 1: /var/mail/x is not an address"),
        ("x@example.org alice", "line 1: alice has no domain: set people.origin to Postfix's myorigin"),
        ("alice x@example.org", "line 1: alice has no domain: set people.origin to Postfix's myorigin"),
        (
            "\n@example.net alice@example.org",
            "line 2: @example.net is a catch-all: each address that it covers is notified by itself",
        ),
        (
            "@d.example @e.example, bob@example.org",  # a target without a name has no meaning here
            "line 1: @d.example is a catch-all: each address that it covers is notified by itself",
        ),
        (
            "@d.example @example.org\n@d.example @e.example",
            "line 2: is ignored, since an earlier line has @d.example too",
        ),
        (
            "@d.example a@example.org\n@d.example @e.example",
            "line 2: is ignored, since an earlier line has @d.example too",
        ),
        ("@ alice@example.org", "line 1: is ignored, since an earlier line has @ too"),
        ("x@example.org y@example.org\ny@example.org x@example.org", "x@example.org: is in a loop"),
        ("x@example.org y@example.org\ny@example.org x@example.org", "y@example.org: is in a loop"),
        (
            "@a.example @b.example\n@b.example @c.example\n@c.example @a.example",
            "@a.example: is in a loop, or longer than 50 steps",
        ),
        (
            "\n".join(f"@d{n}.example @d{n + 1}.example" for n in range(DEPTH + 1)),
            "@d0.example: is in a loop, or longer than 50 steps",
        ),
        (
            "\n".join(f"x{n}@example.org x{n + 1}@example.org" for n in range(DEPTH + 1)),
            "x0@example.org: needs more than 50 steps",
        ),
        (
            "x@example.org " + " ".join(f"p{n}@example.org" for n in range(1001)),
            "x@example.org: has more than 1000 targets",
        ),
        (
            "\n".join(f"x{n}@example.org alice@example.org" for n in range(1001)),
            "x1000@example.org: alice@example.org reads 1000 addresses already",
        ),
        (
            "\n".join(f"@d{n}.example @example.org" for n in range(51)),
            "line 51: example.org has 50 alias domains already",
        ),
    ],
)
def test_lines_that_cannot_be_followed_are_reported_and_leave_addresses_to_their_owners(text: str, said: str) -> None:
    names = parse(text, is_local=local)
    assert names.problem_count >= 1
    assert said in names.problems
    if "x@example.org" in names.readers:
        assert names.readers["x@example.org"] == ("x@example.org",)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "x@example.org alice@example.org, me@elsewhere.example",
            "x@example.org: some of its targets are not in local_domains and are not notified",
        ),
        (
            "x@example.org alice@example.org\nx@example.org bob@example.org",
            "line 2: is ignored, since an earlier line has x@example.org too",
        ),
        (
            "x@example.org alice@example.org, @example.net",
            "line 1: @example.net is only allowed as the first address",
        ),
    ],
)
def test_what_can_be_followed_in_part_is_told_too(text: str, said: str) -> None:
    names = parse(text, is_local=local)
    assert names.problems == (said,)
    assert names.readers["x@example.org"] == (ALICE,)


def test_the_limits_are_the_most_that_is_followed() -> None:
    for text in (
        "x@example.org " + " ".join(f"p{n}@example.org" for n in range(1000)),
        "\n".join(f"x{n}@example.org alice@example.org" for n in range(1000)),
        "\n".join(f"@d{n}.example @example.org" for n in range(50)),
        "\n".join(f"x{n}@example.org x{n + 1}@example.org" for n in range(DEPTH)),
        "\n".join(f"@d{n}.example @d{n + 1}.example" for n in range(DEPTH)),
    ):
        assert parse(text, is_local=local).problems == ()


def test_a_loop_of_domains_does_not_hide_the_alias_domains_after_it() -> None:
    names = parse("@a.example @b.example\n@b.example @a.example\n@old.example @example.org", is_local=local)
    assert names.alias_domains["example.org"] == ["old.example"]
    assert names.problem_count == 1


def test_twenty_problems_are_told_and_all_are_counted() -> None:
    names = parse("x\n" * 30, is_local=local)
    assert names.problems == tuple(f"line {n}: has no target address" for n in range(1, 21))
    assert names.problem_count == 30


def test_a_list_of_lists_that_would_grow_without_limit_is_cut_early() -> None:
    width = 40
    lines = [
        f"l{level}x{n}@example.org " + " ".join(f"l{level + 1}x{m}@example.org" for m in range(width))
        for level in range(20)
        for n in range(width)
    ]
    names = parse("\n".join(lines), is_local=local)
    assert len(names.readers["l0x0@example.org"]) == width


def test_any_content_of_the_file_is_read() -> None:
    wheel = random.Random(7)
    pieces = ['"', "@", "\\", "example.org", ",", " ", "\t", "\n", "#", "/", ":", "a", "b@example.org", "é", "|", "+"]
    for _ in range(3000):
        text = "".join(wheel.choices(pieces, k=30))
        for found in parse(text, delimiter="+", origin="example.org", is_local=local).readers.values():
            assert found


# ---- international domains

A_LABEL, U_LABEL = "xn--mnchen-3ya.example", "münchen.example"


@pytest.mark.parametrize("host", [U_LABEL, A_LABEL, "MÜNCHEN.example", "XN--MNCHEN-3YA.Example"])
@pytest.mark.parametrize("other", [U_LABEL, A_LABEL])
def test_either_spelling_of_a_domain_names_the_same_people(host: str, other: str) -> None:
    text = (
        f"sales@{host} erika@{other}\ninfo@{other} erika@{host}, max@{other}\noffice erika\n"
        f"@old.example @{host}\n@bücher.example @{other}\n"
    )
    names = parse(text, origin=A_LABEL, is_local=lambda address: address.endswith(f"@{A_LABEL}"))
    erika, max = f"erika@{A_LABEL}", f"max@{A_LABEL}"
    assert names.readers == {
        f"sales@{A_LABEL}": (erika,), f"info@{A_LABEL}": (erika, max), f"office@{A_LABEL}": (erika,)
    }  # fmt: skip
    assert names.domains == {"old.example": A_LABEL, "xn--bcher-kva.example": A_LABEL}
    assert names.problems == ()


@pytest.mark.parametrize("asked", [U_LABEL, A_LABEL])
def test_either_spelling_can_be_looked_up(site: Site, asked: str) -> None:
    site.options = {"delimiter": "+", "origin": U_LABEL}
    site.write(f"sales@{U_LABEL} erika@{U_LABEL}\ninfo erika\n@old.example @{U_LABEL}\n")
    directory = Directory(site.path, is_local=lambda address: address.endswith(f"@{A_LABEL}"), **site.options)
    erika = f"erika@{A_LABEL}"
    for address in (f"Sales@{asked}", f"erika@{asked}", f"erika+x@{asked}", f"info@{asked}", "erika@old.example"):
        assert directory.person(address) == erika, address
    assert directory.held_as(f"Erika+x@{asked}") == erika
    assert directory.is_notified(f"sales@{asked}")


def test_lines_that_joined_the_spellings_of_a_domain_are_not_needed_and_do_no_harm() -> None:
    text = (
        f"erika@{A_LABEL} erika@{U_LABEL}\nerika@{U_LABEL} max@{U_LABEL}\n"
        f"@{A_LABEL} @{U_LABEL}\n@{U_LABEL} @example.org\n"
    )
    names = parse(text, is_local=lambda _: True)
    assert names.readers == {f"erika@{A_LABEL}": ("max@example.org",)}
    assert names.domains == {A_LABEL: "example.org"}
    assert names.problems == ()


def test_problems_are_reported_with_u_labels() -> None:
    text = f"@{U_LABEL} erika@{U_LABEL}\nx@{A_LABEL} y@{A_LABEL}\ny@{A_LABEL} x@{A_LABEL}\n"
    names = parse(text, is_local=lambda _: True)
    assert len(names.problems) == 3
    assert all(U_LABEL in problem and A_LABEL not in problem for problem in names.problems)


# ---- asking


def test_without_a_file_everybody_reads_their_own_mail() -> None:
    directory = Directory(None, is_local=local)
    assert directory.readers(ALICE) == (ALICE,)
    assert directory.reader(ALICE) == Reader(ALICE)
    assert directory.reader(ALICE).is_plain
    assert not directory.is_role(ALICE)
    assert directory.shared_mailboxes() == directory.non_local_names() == []
    assert directory.names() == Names()
    assert directory.person("Alice@Example.org") == ALICE
    assert directory.held_as("alice+shop@example.org") == "alice+shop@example.org"
    assert directory.problem() == ""


def test_a_person_reads_their_aliases_and_shares_role_mailboxes(site: Site) -> None:
    site.write("sales@example.org alice@example.org\ninfo@example.org alice@example.org bob@example.org\n")
    directory = site.open()
    assert directory.reader(ALICE) == Reader(ALICE, (ALICE, "sales@example.org"), {"info@example.org": (ALICE, BOB)})
    assert directory.reader(BOB) == Reader(BOB, (BOB,), {"info@example.org": (ALICE, BOB)})
    assert directory.reader(CAROL).identities == (CAROL,)
    assert directory.person("sales@example.org") == ALICE
    assert directory.person("info@example.org") is None
    assert directory.is_person(ALICE)
    assert not directory.is_person("sales@example.org")
    assert not directory.is_person("info@example.org")
    assert directory.is_role("info@example.org")
    assert not directory.is_role("sales@example.org")
    assert not directory.is_role(ALICE)
    assert directory.shared_mailboxes() == []


def test_a_mailbox_with_a_copy_is_a_person_and_a_role(site: Site) -> None:
    site.write("info@example.org info@example.org, bob@example.org\n")
    directory = site.open()
    assert directory.person("info@example.org") == "info@example.org"
    assert directory.reader("info@example.org") == Reader(
        "info@example.org", (), {"info@example.org": ("info@example.org", BOB)}
    )
    assert directory.is_role("info@example.org")
    assert directory.shared_mailboxes() == ["info@example.org"]


def test_who_reads_a_quoted_address_reads_it_without_its_quotes_too(site: Site) -> None:
    """Rspamd has been seen to take the quotes off."""
    site.write(f'@old.example @example.org\n"john doe"@example.org {ALICE}\n"a@\\"b"@example.org {ALICE}, {BOB}\n')
    directory = site.open()
    reader = directory.reader(ALICE)
    assert reader.alone == (
        ALICE, "alice@old.example", '"john doe"@example.org', "john doe@example.org", '"john doe"@old.example',
        "john doe@old.example",
    )  # fmt: skip
    assert tuple(reader.shared) == (
        '"a@\\"b"@example.org', 'a@"b@example.org', '"a@\\"b"@old.example', 'a@"b@old.example',
    )  # fmt: skip
    for address in reader.identities:
        assert ALICE in directory.readers(address), address
    site.write(f'"j,d"@example.org {BOB}\n')
    assert directory.readers("j,d@example.org") == (BOB,)


def test_a_file_has_a_greatest_size(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(people, "FILE_BYTES", 2 << 20)
    line = b"x@example.org alice@example.org\n"
    site.write(line + b"#" * ((2 << 20) - len(line)))
    directory = site.open()
    assert directory.readers("x@example.org") == (ALICE,)
    assert directory.problem() == ""
    site.write(line.replace(b"alice", b"bobby") + b"#" * ((2 << 20) - len(line) + 1))
    assert directory.readers("x@example.org") == (ALICE,)
    assert directory.problem() == f"{site.path}: is larger than 2 MiB; its previous content stays in use"


def test_an_alias_domain_has_the_same_people(site: Site) -> None:
    site.write(
        "@old.example @example.org\n@older.example @old.example\nsales@example.org alice@example.org\n"
        "bob@old.example carol@example.org\n"
    )
    directory = site.open()
    assert directory.readers("alice@old.example") == (ALICE,)
    assert directory.readers("sales@older.example") == (ALICE,)
    assert directory.readers("bob@old.example") == (CAROL,)  # a line of its own comes first
    assert set(directory.reader(ALICE).identities) == {
        *(ALICE, "alice@old.example", "alice@older.example"),
        *("sales@example.org", "sales@old.example", "sales@older.example"),
    }
    assert "bob@old.example" not in directory.reader(BOB).identities
    assert directory.is_notified("alice@old.example")
    assert not directory.is_notified("alice@elsewhere.example")
    assert set(directory.non_local_names()) == {"old.example", "older.example", "bob@old.example"}


def test_a_line_between_two_alias_domains_decides_who_reads(site: Site) -> None:
    site.write(
        "@old.example @example.org\n@older.example @old.example\nbob@old.example carol@example.org\n"
        "info@example.org alice@example.org\ninfo@old.example bob@example.org carol@example.org\n"
    )
    directory = site.open()
    for address in ("bob@older.example", "info@older.example", "bob@old.example", "info@old.example"):
        who = {person for person in (ALICE, BOB, CAROL) if address in directory.reader(person).identities}
        assert who == set(directory.readers(address)), address


def test_readers_of_an_address_and_addresses_of_a_reader_agree(site: Site) -> None:
    wheel = random.Random(3)
    names = [f"n{n}@{host}" for n in range(12) for host in ("example.org", "old.example", "example.net")]
    for _ in range(300):
        lines = ["@old.example @example.org"] * wheel.randrange(2)
        lines += [f"{wheel.choice(names)} {' '.join(wheel.choices(names, k=wheel.randrange(1, 4)))}" for _ in range(9)]
        site.write("\n".join(lines))
        directory = site.open()
        for address in names:
            for reader in directory.readers(address):
                assert address in directory.reader(reader).identities, lines
        for person in names:
            for address in directory.reader(person).identities:
                assert person in directory.readers(address), lines


def test_an_extension_counts_only_where_the_file_names_it(site: Site) -> None:
    site.options["delimiter"] = "+-"
    site.write("alice+shop@example.org bob@example.org\nx@example.org alice+x@example.org\n")
    directory = site.open()
    assert directory.held_as("Alice+Shop@example.org") == "alice+shop@example.org"
    assert directory.person("alice+shop@example.org") == BOB
    assert directory.held_as("Alice+news@example.org") == ALICE
    assert directory.held_as("alice-a+b@example.org") == ALICE
    assert directory.held_as("+alice@example.org") == "+alice@example.org"
    assert directory.person("alice+news@example.org") == ALICE
    assert directory.readers("x@example.org") == (ALICE,)
    assert directory.held_as('"a+b"@example.org') == '"a+b"@example.org'  # a quoted name has no extension
    site.write("x@example.org sales+x@example.org\nsales@example.org bob@example.org\n")
    assert directory.readers("x@example.org") == (BOB,)


@pytest.mark.parametrize("address", ["sales@elsewhere.example", "john doe@example.org", "Dora@example.org"])
def test_an_address_that_the_file_does_not_lead_anywhere_is_read_by_its_owner(site: Site, address: str) -> None:
    site.write("@elsewhere.example @nowhere.example\nx@example.org alice@example.org\n")
    directory = site.open()
    assert directory.readers(address) == (address,)
    assert directory.person(address) == identity(address)


# ---- the file


def test_a_file_is_looked_at_once_a_second(site: Site) -> None:
    site.write("x@example.org alice@example.org\n")
    directory = site.open()
    assert directory.readers("x@example.org") == (ALICE,)
    changed = site.moment
    site.write("x@example.org bob@example.org\n")
    for seconds, who in ((0.0, ALICE), (0.9, ALICE), (1.0, BOB)):
        site.moment = changed + seconds
        assert directory.readers("x@example.org") == (who,), seconds


def test_while_one_thread_reads_a_changed_file_the_others_use_the_last_one(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.write("x@example.org alice@example.org\n")
    directory = site.open()
    assert directory.readers("x@example.org") == (ALICE,)
    site.write("x@example.org bob@example.org\n")
    reading, go_on = threading.Event(), threading.Event()
    read = people._read

    def slow(*args: Any) -> str:
        reading.set()
        assert go_on.wait(10)
        return read(*args)

    monkeypatch.setattr(people, "_read", slow)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(directory.readers, "x@example.org")
        assert reading.wait(10)
        second = pool.submit(directory.readers, "x@example.org")
        assert second.result(10) == (ALICE,)
        go_on.set()
        assert first.result(10) == (BOB,)


def test_the_first_time_all_threads_wait_for_the_file(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.write("x@example.org alice@example.org\n")
    directory = site.open()
    reading, go_on = threading.Event(), threading.Event()
    read = people._read

    def slow(*args: Any) -> str:
        reading.set()
        assert go_on.wait(10)
        return read(*args)

    monkeypatch.setattr(people, "_read", slow)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(directory.readers, "x@example.org")
        assert reading.wait(10)
        second = pool.submit(directory.readers, "x@example.org")
        with pytest.raises(TimeoutError):
            second.result(0.2)
        go_on.set()
        assert first.result(10) == second.result(10) == (ALICE,)


def test_a_file_that_could_not_be_read_is_tried_again_and_a_bad_one_is_not(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.write("x@example.org alice@example.org\n")
    directory = site.open()
    tries = []

    def failing(error: Exception) -> Callable[..., str]:
        def read(*_: Any) -> str:
            tries.append(error)
            raise error

        return read

    with monkeypatch.context() as patch:
        patch.setattr(people, "_read", failing(OSError(errno.EIO, os.strerror(errno.EIO))))
        assert directory.readers("x@example.org") == ("x@example.org",)
        assert directory.problem() == f"{site.path}: Input/output error; no earlier content is known"
        site.moment += 10
        directory.problem()
        assert len(tries) == 2
    site.moment += 10
    assert directory.readers("x@example.org") == (ALICE,)
    assert directory.problem() == ""
    tries.clear()
    site.write("x@example.org bob@example.org\n")
    with monkeypatch.context() as patch:
        patch.setattr(people, "_read", failing(ValueError("is bad")))
        for _ in range(3):
            site.moment += 10
            assert directory.problem() == f"{site.path}: is bad; its previous content stays in use"
        assert len(tries) == 1


def test_a_changed_file_is_used_at_once_and_an_unchanged_one_is_not_read_again(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.write("x@example.org alice@example.org\n")
    directory = site.open()
    assert directory.readers("x@example.org") == (ALICE,)
    version = directory.names().version
    monkeypatch.setattr(people, "_read", lambda *_: pytest.fail("read again"))
    site.moment += 10
    assert directory.readers("x@example.org") == (ALICE,)
    monkeypatch.undo()
    monkeypatch.setattr(time, "monotonic", lambda: site.moment)
    site.write("x@example.org bob@example.org\n")
    assert directory.readers("x@example.org") == (BOB,)
    assert directory.names().version != version


def test_a_file_that_was_changed_just_now_may_be_incomplete(site: Site) -> None:
    site.write("x@example.org alice@example.org\n")
    directory = site.open()
    assert directory.readers("x@example.org") == (ALICE,)
    site.write("x@example.org bob", seconds_ago=0)
    assert directory.readers("x@example.org") == (ALICE,)
    assert directory.problem() == ""
    site.write("x@example.org bob@example.org\n", seconds_ago=5)
    assert directory.readers("x@example.org") == (BOB,)


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        pytest.param(None, "No such file or directory", id="vanished"),
        pytest.param(b"", "is empty: write a comment into it if there are no aliases", id="empty"),
        pytest.param(
            b"\x00\x13\x15\x61",
            "is not text: use the input file of postmap, not its output",
            id="a database of postmap",
        ),
        pytest.param(b"x@example.org b\xf6b@example.org\n", "is not UTF-8", id="not UTF-8"),
        pytest.param("folder", "is not a regular file", id="a folder"),
        pytest.param("fifo", "is not a regular file", id="a pipe"),
    ],
)
def test_a_file_that_cannot_be_used_is_reported_and_the_last_good_one_stays(
    site: Site, caplog: pytest.LogCaptureFixture, broken: str | bytes | None, said: str
) -> None:
    site.write("x@example.org alice@example.org\n")
    directory = site.open()
    assert directory.readers("x@example.org") == (ALICE,)
    site.path.unlink()
    if broken == "folder":
        site.path.mkdir()
    elif broken == "fifo":
        os.mkfifo(site.path)
    elif broken is not None:
        site.write(broken)
    site.moment += 10
    os.utime(site.path, (1, 1)) if site.path.exists() else None
    assert directory.readers("x@example.org") == (ALICE,)
    assert directory.problem() == f"{site.path}: {said}; its previous content stays in use"
    assert [r.levelname for r in caplog.records if "alias file" in r.message].count("ERROR") == 1
    site.moment += 10
    assert directory.readers("x@example.org") == (ALICE,)
    assert [r.levelname for r in caplog.records if "alias file" in r.message].count("ERROR") == 1  # not each second
    if site.path.is_dir():
        site.path.rmdir()
    site.path.unlink(missing_ok=True)
    site.write("x@example.org bob@example.org\n")
    assert directory.readers("x@example.org") == (BOB,)
    assert directory.problem() == ""


def test_the_last_good_file_outlives_a_restart(site: Site) -> None:
    site.kept = "x@example.org alice@example.org\n"
    directory = site.open()
    assert directory.readers("x@example.org") == (ALICE,)
    assert directory.problem() == f"{site.path}: No such file or directory; using its last readable content"
    assert directory.text() == site.kept


def test_a_file_that_could_never_be_read_makes_nobody_a_reader(site: Site) -> None:
    directory = site.open()
    assert directory.text() == ""
    assert directory.readers("x@example.org") == ("x@example.org",)
    assert directory.problem() == f"{site.path}: No such file or directory; no earlier content is known"
    assert directory.text() == ""


def test_a_hundred_thousand_alias_domains_are_read_in_seconds() -> None:
    text = "".join(f"@d{n}.example @home{n // 50}.example\n" for n in range(100_000))
    started = time.process_time()
    names = parse(text, is_local=local)
    assert (len(names.domains), names.problem_count) == (100_000, 0)
    assert time.process_time() - started < 15


def test_a_hundred_thousand_lines(site: Site) -> None:
    site.write("".join(f"alias{n}@example.org person{n // 3}@example.org\n" for n in range(100_000)))
    directory = site.open()
    assert directory.readers("alias99999@example.org") == ("person33333@example.org",)
    assert directory.reader("person7@example.org").identities == (
        *("person7@example.org", "alias21@example.org", "alias22@example.org", "alias23@example.org"),
    )
