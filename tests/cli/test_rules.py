"""``quarantine rules``, as typed by an operator, on both stores."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from portal.cli import main
from portal.model.message import new_id
from portal.model.rule import SITE, Effect, Rule
from portal.policy import entry, rulebook
from portal.stores import Store
from portal.stores.shared import rules as shared_rules
from tests.builders import ALICE, BOB, BY_LINK, now, rule

Run = Callable[..., Result]


@pytest.fixture
def run(store_url: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    config = tmp_path / "quarantine.toml"
    config.write_text(
        f'local_domains = ["example.org"]\nstore.url = "{store_url}"\n'
        f'mail.from_address = "quarantine@example.org"\nlinks.keys_file = "{tmp_path / "links.keys"}"\n'
    )
    monkeypatch.setenv("QUARANTINE_CONFIG", str(config))

    def call(*words: str, **options: object) -> Result:
        result = CliRunner().invoke(main, ["rules", *words], **options)  # type: ignore[arg-type]
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        assert "Traceback" not in result.output
        return result

    return call


def active(store: Store) -> list[Rule]:
    return list(store.rules.list(None, 99, now()))


def test_add_list_and_remove(run: Run, store: Store) -> None:
    result = run("add", "block", "Promo@Example.NET", "--recipient", "Alice@example.org", "--note", "asked by phone")
    assert result.exit_code == 0, result.output
    [made] = active(store)
    assert (made.scope, made.sender, made.effect) == (ALICE, "promo@example.net", Effect.BLOCK)
    assert made.actor.who.startswith("operator:")
    assert f"{made.id} {ALICE} block promo@example.net: added" in result.output
    assert (
        "exists already"
        in run("add", "block", "promo@example.net", "--recipient", ALICE, "--note", "asked by phone").output
    )
    assert active(store) == [made]
    store.rules.count_hits({made.id: 3}, now())
    listed = run("list").output
    for text in (str(made.id), ALICE, "promo@example.net", made.actor.who, " 3 ", "asked by phone"):
        assert text in listed
    wrong = run("remove", str(made.id), "nonsense")
    assert (wrong.exit_code, "'nonsense' is not an id. Try: quarantine rules list" in wrong.output) == (2, True)
    assert active(store) == [replace(made, hits=3, last_hit_at=active(store)[0].last_hit_at)]
    removed = run("remove", str(made.id), str(new_id()))
    assert removed.exit_code == 1
    assert f"{made.id}: removed" in removed.output
    assert removed.output.count("there is no such rule") == 1
    assert active(store) == []
    assert "removed before" in run("remove", str(made.id)).output
    assert str(made.id) not in run("list").output
    assert "removed 20" in run("list", "--removed").output


def test_scopes_effects_and_options(run: Run, store: Store) -> None:
    run("add", "allow", "partner.example", "--domain", "Example.org", "--expires", "30d")
    run("add", "block", "192.0.2.0/24", "--site", "--binding", "--expires", "2099-12-31")
    by_scope = {each.scope: each for each in active(store)}
    assert set(by_scope) == {"@example.org", SITE}
    assert by_scope[SITE].binding
    assert by_scope[SITE].expires_at == datetime(2100, 1, 1, tzinfo=UTC)  # the end of that day
    ends = by_scope["@example.org"].expires_at
    assert ends is not None
    assert timedelta(days=29) < ends - now() < timedelta(days=31)
    for options, count in ((["--site"], 1), (["--domain", "example.org"], 1), (["--recipient", BOB], 0), ([], 2)):
        lines = run("list", "--json", *options).output.splitlines()
        assert len(lines) == count
    listed = json.loads(run("list", "--json", "--site").output)
    assert (listed["scope"], listed["sender"], listed["binding"]) == ("site", "192.0.2.0/24", True)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["block", "*@example.net", "--site"], f"*@example.net: {entry.WILDCARD}"),
        (["allow", "gmail.com", "--site"], f"gmail.com: {entry.FREEMAIL}"),
        (["block", "192.0.2.1", "--recipient", ALICE], f"192.0.2.1: {rulebook.NETWORK_SCOPE}"),
        (["block", "example.net", "--recipient", ALICE, "--binding"], f"example.net: {rulebook.BINDING}"),
        (["block", "example.net", "--site", "--expires", "2020-01-01"], rulebook.EXPIRED),
        (["block", "example.net", "--site", "--expires", "soon"], "'soon' is not a time: use 30d"),
        (["block", "example.net", "--site", "--expires", "999999d"], "is not a time"),
        (["block", "example.net"], "Use exactly one of --recipient ADDRESS, --domain DOMAIN and --site."),
        (["block", "example.net", "--site", "--domain", "example.org"], "Use exactly one of"),
        (["block", "example.net", "--recipient", "example.org"], "--recipient example.org: This is not an address."),
        (["block", "example.net", "--recipient", "site"], "--recipient site: This is not an address."),
        (["block", "example.net", "--domain", ALICE], f"--domain {ALICE}: This is not a domain."),
        (["block", "example.net", "--domain", "nonsense"], f"--domain nonsense: {entry.NEITHER}"),
        (["block", "ex\x1b[31mample", "--site"], entry.INVISIBLE),
    ],
)
def test_what_is_wrong_is_one_sentence(run: Run, store: Store, words: list[str], sentence: str) -> None:
    result = run("add", *words)
    assert result.exit_code == 2
    assert sentence in result.output
    assert len(result.output.splitlines()) == 1
    assert "\x1b" not in result.output
    assert active(store) == []


def test_hints_are_notes(run: Run) -> None:
    run("add", "block", "example.net", "--site", "--binding")
    result = run("add", "allow", "example.net", "--recipient", ALICE)
    assert result.exit_code == 0
    assert "note: a binding block rule of the domain or the site overrules it" in result.output
    assert "not in local_domains" in run("add", "block", "example.net", "--domain", "foreign.example").output


def test_a_long_list_is_cut(run: Run, store: Store) -> None:
    store.rules.add([rule(f"{n}.example") for n in range(3)], now())
    result = run("list", "--limit", "2")
    assert "more rules. To list more, use --limit 20" in result.output
    assert len(run("list", "--limit", "2", "--json").stdout.splitlines()) == 2
    assert "more rules" not in run("list", "--limit", "3").output


# ---- CSV

FORMULAS = ['=cmd|"/c calc"!A1', "+1", "-1", "@x", "'=x", "'", "O'Neil", 'say "x", ok', "Grüße"]


def test_an_export_is_imported_without_changes(run: Run, store: Store, store_url: str) -> None:
    at = now()
    many = [rule(f"{n}.example", note=note) for n, note in enumerate(FORMULAS)]
    others = [
        rule("=x@example.net", scope="-b@example.org"), rule("partner.example", "allow", "@example.org", binding=False),
        rule("192.0.2.0/24", scope=SITE, binding=True, expires_at=at + timedelta(days=9), message_id=new_id()),
        rule("gone.example", expires_at=at - timedelta(days=1)),
    ]  # fmt: skip
    store.rules.add([*many, *others], at)
    exported = run("export").output
    rows = list(csv.DictReader(io.StringIO(exported)))
    assert len(rows) == len(many) + len(others) - 1  # one has expired
    assert not [cell for row in rows for cell in row.values() if cell[:1] in "=+-@" and cell]
    again = run("import", "-", input=exported.encode())
    assert again.output == f"added 0 rules, {len(rows)} existed already\n"
    before = {(r.scope, r.sender): (r.effect, r.binding, r.expires_at, r.note) for r in active(store)}
    for each in active(store):
        store.rules.remove(each.id, BY_LINK, at)
    assert run("import", "-", input=exported.encode()).output == f"added {len(rows)} rules, 0 existed already\n"
    assert {(r.scope, r.sender): (r.effect, r.binding, r.expires_at, r.note) for r in active(store)} == before


def test_an_export_of_one_scope(run: Run, store: Store) -> None:
    store.rules.add([rule(), rule(scope=BOB), rule(scope=SITE)], now())
    assert len(run("export", "--recipient", ALICE).output.splitlines()) == 2
    assert len(run("export").output.splitlines()) == 4


def test_a_file_from_a_spreadsheet_is_imported(run: Run, store: Store, tmp_path: Path) -> None:
    file = tmp_path / "rules.csv"
    file.write_bytes(
        '\ufeffeffect,scope,sender,note\r\nBlock,example.org,münchen.example,"two\r\nlines"\r\n'
        "allow, alice@example.org ,Promo <promo@example.net>,\r\n".encode()
    )
    assert run("import", str(file)).output == "added 2 rules, 0 existed already\n"
    assert {(r.scope, r.sender, r.effect.value, r.note) for r in active(store)} == {
        ("@example.org", "xn--mnchen-3ya.example", "block", "two lines"),
        (ALICE, "promo@example.net", "allow", ""),
    }


HEAD = "scope,sender,effect,binding,expires_at,note\n"


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("", ["line 1: Give the names of the columns in this line: scope, sender, effect"]),
        ("scope;sender;effect\n", ["line 1: Give the names of the columns"]),
        ("scope,sender,effect,color\n", ["line 1: Give the names of the columns"]),
        ("scope,sender,effect,effect\n", ["line 1: Give the names of the columns"]),
        (HEAD + "site,*,block,,,\n", [f"line 2: {entry.WILDCARD}"]),
        (
            HEAD + "site,a.example,block,,,\nsite,b@,block,,,\n,c.example,allow,,,\n",
            [f"line 3: {entry.NEITHER}", f"line 4: {entry.EMPTY}"],
        ),
        (HEAD + "site,a.example,deny,,,\n", ["line 2: The effect must be allow or block."]),
        (HEAD + "site,a.example,block,maybe,,\n", ["line 2: The value of binding must be yes or no."]),
        (HEAD + "site,a.example,block,,later,\n", ["line 2: 'later' is not a time"]),
        (HEAD + "site,a.example,block,,,,,surplus\n", ["line 2: There are more values than columns."]),
        (HEAD + "site,a.example\n", ["line 2: The effect must be allow or block."]),
        (HEAD + 'site,a.example,block,,,"\nnot closed', ["line 3: This is not CSV"]),
        (
            HEAD + "site,a.example,block,,,\nsite,A.example,allow,,,\n",
            ["line 3: Line 2 has another rule for this sender."],
        ),
        (HEAD + "site,a.example,allow,yes,,\n", [f"line 2: {rulebook.BINDING}"]),
        (HEAD + "\n".join(f"site,{n},block,,," for n in range(30)), ["line 2: ", "… and 10 more lines"]),
    ],
)  # fmt: skip
def test_a_file_with_a_wrong_line_is_not_imported(run: Run, store: Store, text: str, lines: list[str]) -> None:
    result = run("import", "-", input=text)
    assert result.exit_code == 2
    assert result.output.endswith("Nothing was imported.\n")
    for line in lines:
        assert line in result.output
    assert active(store) == []


def test_a_file_in_another_charset_or_none_is_not_imported(run: Run, store: Store, tmp_path: Path) -> None:
    data = (HEAD + "site,a.example,block,,,\nsite,münchen.example,block,,,\n").encode("latin-1")
    result = run("import", "-", input=data)
    assert (result.exit_code, "line 3: This is not UTF-8" in result.output) == (2, True)
    missing = run("import", str(tmp_path / "missing.csv"))
    assert (missing.exit_code, "No such file or directory. Check its path" in missing.output) == (1, True)
    assert active(store) == []


def test_the_same_line_twice_is_one_rule(run: Run, store: Store) -> None:
    text = HEAD + "site,a.example,block,,,\nsite,A.example.,block,,,\n"
    assert run("import", "-", input=text).output == "added 1 rules, 0 existed already\n"


def test_a_file_that_exceeds_a_limit_adds_nothing(run: Run, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_rules, "BLOCKS_PER_SITE", 700)
    store.rules.add([rule("0.example", scope=SITE)], now())
    text = HEAD + "".join(f"site,{n}.example,block,,,\n" for n in range(701))
    result = run("import", "-", input=text)
    assert result.exit_code == 1
    assert "Remove some first.\nNothing was imported." in result.output
    assert len(active(store)) == 1
    assert run("import", "-", input=text.removesuffix("site,700.example,block,,,\n")).output.startswith(
        "added 699 rules, 1"
    )


def test_an_import_replaces_a_rule_for_the_same_sender(run: Run, store: Store) -> None:
    [before] = store.rules.add([rule("a.example", scope=SITE)], now())
    run("import", "-", input=HEAD + "site,a.example,allow,,,\n")
    [made] = active(store)
    assert (made.effect, made.id != before.id) == (Effect.ALLOW, True)
    assert replace(store.rules.get(before.id), removed_at=None, removed_by=None) == before
