"""The block map for Rspamd: its lines, on both stores, and its file."""

from __future__ import annotations

import logging
import os
import re
import stat
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

import pytest

from portal.assemble import Parts
from portal.cli import rspamd_checks
from portal.model.message import identity
from portal.model.rule import SITE, Rule
from portal.policy import block_map
from portal.policy.block_map import FIRST_LINE, BlockMap, compose, probe_of
from portal.stores.shared import rules as shared_rules
from portal.web.monitor import Monitor
from tests.builders import ALICE, BOB, BY_OPERATOR, now, rule
from tests.rspamd_server import RspamdServer

SECOND = timedelta(seconds=1)
HOUR = timedelta(hours=1)


def lines_for(parts: Parts, *rules: Rule) -> list[str]:
    """Add rules and return the lines of the map, without the first and the last one."""
    parts.store.rules.add(rules, now())
    return composed(parts)


def composed(parts: Parts) -> list[str]:
    written = bytearray()
    compose(parts.store.rules, parts.people, now(), written.extend)
    first, *lines, last = written.decode().splitlines(keepends=True)
    assert first == FIRST_LINE
    assert re.fullmatch(r"block-map@check\.invalid\|m[0-9a-f]{32}\.check\.invalid block\n", last)
    return [line.removesuffix("\n") for line in lines]


def test_block_rules_of_all_scopes_have_a_line(parts: Parts) -> None:
    found = lines_for(
        parts,
        rule("promo@example.net"),
        rule("example.net", scope="@example.org", binding=True),
        rule("192.0.2.0/24", scope=SITE),
        rule("2001:db8::/32", scope="@example.org"),
        rule("gone.example", expires_at=now() + HOUR, created_at=now() - 2 * HOUR),
    )
    assert sorted(found) == [
        "*|192.0.2.0/24 block",
        f"{ALICE}|gone.example block",
        f"{ALICE}|promo@example.net block",
        "example.org|2001:db8::/32 block",
        "example.org|example.net binding",
    ]


def test_removed_and_expired_rules_have_no_line(parts: Parts) -> None:
    at = now()
    removed = rule("a.example")
    parts.store.rules.add([removed, rule("b.example", expires_at=at - SECOND, created_at=at - HOUR)], at - HOUR)
    parts.store.rules.remove(removed.id, BY_OPERATOR, at)
    assert composed(parts) == []


@pytest.mark.parametrize(
    ("allowed", "blocked", "matters"),
    [
        # of the same scope: only a more specific allow rule ends a block
        ((ALICE, "a@b.example"), (ALICE, "b.example"), True),
        ((ALICE, "c.b.example"), (ALICE, "b.example"), True),
        ((ALICE, "b.example"), (ALICE, "a@b.example"), False),
        ((ALICE, "other.example"), (ALICE, "b.example"), False),
        ((SITE, "a@b.example"), (SITE, "b.example"), True),
        ((SITE, "a@b.example"), (SITE, "192.0.2.0/24"), True),
        ((SITE, "192.0.2.0/25"), (SITE, "192.0.2.0/24"), True),
        ((SITE, "192.0.2.0/24"), (SITE, "b.example"), False),
        # of a narrower scope: if a message can match both
        ((ALICE, "a@b.example"), (SITE, "b.example"), True),
        ((ALICE, "b.example"), (SITE, "a@c.b.example"), True),
        ((ALICE, "b.example"), ("@example.org", "b.example"), True),
        ((ALICE, "b.example"), ("@other.example", "b.example"), False),
        ((ALICE, "b.example"), (SITE, "other.example"), False),
        ((ALICE, "b.example"), (SITE, "192.0.2.0/24"), True),
        (("@example.org", "192.0.2.0/24"), (SITE, "b.example"), True),
        # of a wider scope, or for others: never
        ((SITE, "b.example"), (ALICE, "b.example"), False),
        ((BOB, "b.example"), (ALICE, "b.example"), False),
    ],
)
def test_an_allow_rule_has_a_line_only_if_it_can_end_a_block(
    parts: Parts, allowed: tuple[str, str], blocked: tuple[str, str], matters: bool
) -> None:
    found = lines_for(parts, rule(allowed[1], "allow", scope=allowed[0]), rule(blocked[1], "block", scope=blocked[0]))
    assert [line for line in found if line.endswith("allow")] == (
        [f"{allowed[0].removeprefix('@')}|{allowed[1]} allow"] if matters else []
    )


def test_an_allow_rule_of_a_narrower_scope_does_not_end_a_binding_block(parts: Parts) -> None:
    found = lines_for(
        parts,
        rule("b.example", scope=SITE, binding=True),
        rule("b.example", "allow"),
        rule("partner@b.example", "allow", scope=SITE),  # an exception of the same scope does
    )
    assert sorted(found) == ["*|b.example binding", "*|partner@b.example allow"]


def test_a_rule_holds_for_every_address_that_only_its_person_reads(
    make_parts: Callable[..., Parts], tmp_path: Path
) -> None:
    aliases = tmp_path / "virtual"
    aliases.write_text(f"al@example.org {ALICE}\ninfo@example.org {ALICE}, {BOB}\n@example.com @example.org\n")
    parts = make_parts(people__alias_file=aliases)
    found = lines_for(
        parts,
        rule("x.example"),
        rule("role.example", scope="info@example.org"),
        rule("x.example", "allow", scope="al@example.org"),  # made before al@ was an alias; block wins
        rule("old.example", scope="al@example.org"),
    )
    host = ALICE.partition("@")[0]
    assert sorted(found) == sorted(
        [
            f"{ALICE}|x.example block",
            f"{host}@example.com|x.example block",
            "al@example.org|x.example block",
            "al@example.com|x.example block",
            "al@example.org|old.example block",
            "info@example.org|role.example block",
        ]
    )


@pytest.mark.parametrize(("delimiter", "lines"), [("", []), ("+", ["recipient_delimiter| +"])])
def test_rspamd_learns_the_recipient_delimiter(
    make_parts: Callable[..., Parts], delimiter: str, lines: list[str]
) -> None:
    assert composed(make_parts(people__recipient_delimiter=delimiter)) == lines


def test_rspamd_learns_which_addresses_with_an_extension_have_other_readers(
    make_parts: Callable[..., Parts], tmp_path: Path
) -> None:
    aliases = tmp_path / "virtual"
    aliases.write_text(f"alice+list@example.org {BOB}\nal@example.org {ALICE}\n")
    parts = make_parts(people__alias_file=aliases, people__recipient_delimiter="+")
    lines = lines_for(parts, rule("x.example"))
    assert lines[:2] == ["recipient_delimiter| +", "alice+list@example.org| whole"]
    assert sorted(lines[2:]) == ["al@example.org|x.example block", f"{ALICE}|x.example block"]


def test_international_domains_have_a_line_for_each_spelling(parts: Parts) -> None:
    found = lines_for(parts, rule(identity("ü@bücher.example"), scope=identity("jörg@münchen.example")))
    assert set(found) == {
        f'"jörg@{host}|ü@{sender}" block'
        for host in ("münchen.example", "xn--mnchen-3ya.example")
        for sender in ("bücher.example", "xn--bcher-kva.example")
    }


@pytest.mark.parametrize(
    ("recipient", "sender", "line"),
    [
        ('"quo ted"@example.org', "a@b.example", '"quo ted@example.org|a@b.example" block'),
        ("a#b@example.org", "b.example", '"a#b@example.org|b.example" block'),
        ("/ann@example.org", "b.example", '"/ann@example.org|b.example" block'),
        (ALICE, "a|b@c.example", f"{ALICE}|a|b@c.example block"),
        (ALICE, '"a b"@c.example', f'"{ALICE}|a b@c.example" block'),
        ("a|b@example.org", "c.example", None),
        (ALICE, '"a\\"b"@c.example', None),
        (ALICE, 'a" block\n*|b.example@c.example', None),
        (ALICE, "x\n*|example.net block\n@c.example", None),
        (ALICE, "x\r*|example.net block@c.example", None),
        (ALICE, "x\x01@c.example", None),
        (ALICE, "x\\@c.example", None),
        ('" a"@example.org', "c.example", None),
        ('"a\nb"@example.org', "c.example", None),
    ],
)
def test_hostile_keys_add_no_line_and_change_none(parts: Parts, recipient: str, sender: str, line: str | None) -> None:
    """Lines like these were tried with Rspamd 3.4: it found each of those with the expected value, and no other key."""
    assert lines_for(parts, rule(sender, scope=recipient)) == ([line] if line else [])


def test_no_person_loses_a_block_by_the_aliases_and_allow_rules_of_others(
    make_parts: Callable[..., Parts], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block_map, "LINES", 4)
    monkeypatch.setattr(block_map, "_SPARE", 1)
    aliases = tmp_path / "virtual"
    aliases.write_text("".join(f"a{n}@example.org {ALICE}\n" for n in range(5)))
    parts = make_parts(people__alias_file=aliases)
    parts.store.rules.add([rule("x.example"), rule("y.example", scope=BOB), rule("z.example", scope=SITE)], now())
    parts.store.rules.add([rule("z.example", "allow", scope=BOB)], now())
    written = bytearray()
    summary = compose(parts.store.rules, parts.people, now(), written.extend)
    found = written.decode().splitlines()[1:-1]
    assert {f"{ALICE}|x.example block", f"{BOB}|y.example block", "*|z.example block"} < set(found)
    assert (summary.lines, len(found), summary.left_out) == (4, 4, 5)


def test_rules_beyond_one_page_are_read_once(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_rules, "_PAGE", 3)
    made = [rule(f"d{n}.example", scope=scope) for n in range(4) for scope in (ALICE, BOB, SITE, "@example.org")]
    assert len(lines_for(parts, *made)) == len(set(composed(parts))) == 16


# ---- the file


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "map"
    folder.mkdir()
    return folder / "block.map"


@pytest.fixture
def written(parts: Parts, path: Path, monkeypatch: pytest.MonkeyPatch) -> BlockMap:
    monkeypatch.setattr(block_map, "_PAUSE", 0)
    return BlockMap(path, parts.store, parts.people)


def entries(path: Path) -> Sequence[str]:
    return path.read_text().splitlines()[1:-1]


def test_the_file_follows_the_rules(parts: Parts, path: Path, written: BlockMap) -> None:
    assert written.refresh(now()) and entries(path) == []
    assert not written.refresh(now())
    [added] = parts.store.rules.add([rule("x.example")], now())
    assert written.refresh(now()) and entries(path) == [f"{ALICE}|x.example block"]
    parts.store.rules.remove(added.id, BY_OPERATOR, now())
    assert written.refresh(now()) and entries(path) == []
    parts.store.rules.restore(added.id, BY_OPERATOR, now())
    assert written.refresh(now()) and entries(path) == [f"{ALICE}|x.example block"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert list(path.parent.iterdir()) == [path]


def test_a_rule_leaves_the_file_when_it_expires(parts: Parts, path: Path, written: BlockMap) -> None:
    at = now()
    parts.store.rules.add([rule("x.example", expires_at=at + HOUR)], at)
    written.refresh(at)
    assert not written.refresh(at + HOUR - SECOND)
    assert written.refresh(at + HOUR) and entries(path) == []


def test_a_changed_alias_file_changes_the_map(
    make_parts: Callable[..., Parts], tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("portal.people._CHECK_EVERY_SECONDS", 0)
    monkeypatch.setattr("portal.people._SETTLED_SECONDS", 0)
    aliases = tmp_path / "virtual"
    aliases.write_text("# none\n")
    parts = make_parts(people__alias_file=aliases)
    monkeypatch.setattr(block_map, "_PAUSE", 0)
    written = BlockMap(path, parts.store, parts.people)
    parts.store.rules.add([rule("x.example")], now())
    written.refresh(now())
    aliases.write_text(f"al@example.org {ALICE}\n")
    assert written.refresh(now())
    assert entries(path) == [f"{ALICE}|x.example block", "al@example.org|x.example block"]


def test_unchanged_content_is_not_written_again(parts: Parts, path: Path, written: BlockMap) -> None:
    parts.store.rules.add([rule("x.example")], now())
    written.refresh(now())
    before = path.stat()
    parts.store.rules.add([rule("y.example", "allow")], now())  # a change, but none of the map
    assert not written.refresh(now())
    assert not BlockMap(path, parts.store, parts.people).refresh(now())  # after a restart
    after = path.stat()
    assert (after.st_mtime_ns, after.st_ino) == (before.st_mtime_ns, before.st_ino)
    path.unlink()
    assert written.refresh(now())


def test_another_content_has_another_second(parts: Parts, path: Path, written: BlockMap) -> None:
    """Nginx makes its ETag of the second and the size, so Rspamd would not see a change within one second."""
    seen = set()
    for name in ("a", "b", "c"):
        [added] = parts.store.rules.add([rule(f"{name}.example")], now())
        written.refresh(now())
        seen.add(int(path.stat().st_mtime))
        parts.store.rules.remove(added.id, BY_OPERATOR, now())
    assert len(seen) == 3


def test_a_file_that_cannot_be_written_stays_and_is_tried_again(
    parts: Parts, path: Path, written: BlockMap, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    parts.store.rules.add([rule("x.example")], now())
    written.refresh(now())
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, os.strerror(28))

    parts.store.rules.add([rule("y.example")], now())
    with monkeypatch.context() as patched, caplog.at_level(logging.INFO):
        patched.setattr(os, "fsync", full)
        patched.setattr(block_map, "RETRY_SECONDS", 0)
        for _ in range(3):
            assert not written.refresh(now())
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]
    [line] = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert "block map not written" in line and "No space left on device" in line
    assert written.refresh(now()) and len(entries(path)) == 2


def test_the_probe_names_the_content(parts: Parts, path: Path, written: BlockMap) -> None:
    probes = set()
    for name in ("a", "b"):
        parts.store.rules.add([rule(f"{name}.example")], now())
        written.refresh(now())
        probes.add(probe_of(path))
    assert len(probes) == 2 and "" not in probes
    path.write_bytes(path.read_bytes()[:-1])
    assert probe_of(path) == ""


# ---- what monitoring and `quarantine check` say


@pytest.fixture
def mapped(make_parts: Callable[..., Parts], path: Path, monkeypatch: pytest.MonkeyPatch) -> Parts:
    """The parts of a site with a map, which has been written once."""
    monkeypatch.setattr(block_map, "_PAUSE", 0)
    monkeypatch.setattr(rspamd_checks, "_WRITTEN_SECONDS", 0)
    return make_parts(rspamd__block_map=path)


def findings(parts: Parts) -> list[tuple[bool | None, str]]:
    return [(found.ok, found.text) for found in rspamd_checks.block_rules(parts.settings, parts.store, parts.people)]


def metrics(parts: Parts) -> dict[str, float]:
    samples = [sample for metric in Monitor(parts).collect() for sample in metric.samples]
    return {each.name.removeprefix("quarantine_block_map_"): each.value for each in samples if "block_map" in each.name}


def test_block_rules_without_a_map_are_a_problem(parts: Parts) -> None:
    parts.store.rules.add([rule("x.example", "allow")], now())
    assert findings(parts) == []
    parts.store.rules.add([rule("y.example")], now())
    [(ok, said)] = findings(parts)
    assert not ok and "set rspamd.block_map" in said
    assert metrics(parts) == {}


def test_the_map_is_compared_with_the_rules(mapped: Parts, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [ok for ok, _ in findings(mapped)] == [False]
    assert metrics(mapped) == {}
    written = BlockMap(path, mapped.store, mapped.people)
    mapped.store.rules.add([rule("x.example")], now() - HOUR)
    written.refresh(now())
    [(ok, said), (tested, _)] = findings(mapped)
    assert ok and f"{path}: 1 lines, readable by the group" in said and tested is None
    found = metrics(mapped)
    assert found.pop("written_timestamp_seconds") == path.stat().st_mtime
    assert found == {"behind_seconds": 0, "lines": 1, "left_out": 0}
    mapped.store.rules.add([rule("y.example")], now() - HOUR)
    assert 3590 < metrics(mapped)["behind_seconds"] < 4000
    assert (False, f"{path} does not have the last changes, which the digest process of this host writes") in findings(
        mapped
    )
    path.parent.chmod(0o755)
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    written.refresh(now() - HOUR)
    assert 3590 < metrics(mapped)["behind_seconds"] < 4000
    assert (False, f"{path} does not have the last changes: {path}: No space left on device") in findings(mapped)
    monkeypatch.undo()


def test_lines_that_do_not_fit_are_a_problem(mapped: Parts, path: Path) -> None:
    mapped.store.rules.add([rule('"a\\"b"@c.example')], now())
    BlockMap(path, mapped.store, mapped.people).refresh(now())
    assert findings(mapped)[0] == (
        False,
        f"1 lines do not fit into {path}, or their addresses cannot be written there",
    )
    assert metrics(mapped)["left_out"] == 1


@pytest.mark.parametrize(
    ("blocks", "age", "ok", "said"),
    [
        (True, 100, True, "uses the present map, 100 s old"),
        (False, 5, None, "does not use the present map yet"),
        (False, 100, False, "has an older one or none"),
    ],
)
def test_rspamd_is_asked_about_the_last_line(
    make_parts: Callable[..., Parts], path: Path, blocks: bool, age: int, ok: bool | None, said: str
) -> None:
    with RspamdServer() as rspamd:
        parts = make_parts(rspamd__block_map=path, rspamd__url=rspamd.url)
        BlockMap(path, parts.store, parts.people).refresh(now())
        at = path.stat().st_mtime - age
        os.utime(path, (at, at))
        rspamd.verdict_symbols = {"PORTAL_BLOCK": 0.0} if blocks else {}
        _, (found, text) = findings(parts)
        assert found is ok and said in text
        [(headers, body)] = rspamd.checks
    sender = probe_of(path)
    assert ("Rcpt", "block-map@check.invalid") in headers and ("From", f"check@{sender}") in headers
    assert f"From: <check@{sender}>".encode() in body
    assert "EXPORT_METADATA_QUARANTINE" in dict(headers)["Settings"]  # otherwise it would be held


def test_an_unreachable_rspamd_is_reported(make_parts: Callable[..., Parts], path: Path) -> None:
    parts = make_parts(rspamd__block_map=path, rspamd__url="http://127.0.0.1:9")
    BlockMap(path, parts.store, parts.people).refresh(now())
    _, (ok, text) = findings(parts)
    assert ok is False and "cannot be reached" in text
