"""The documents agree with the code."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import textwrap
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import pytest

from portal.cli import main
from portal.ingest import Result
from portal.model.message import State
from portal.model.staff import Role
from portal.model.text import TAGS
from portal.policy.staff import PERMISSIONS, Permission
from portal.settings import load
from tests.paths import ROOT
from tools.docs import GENERATED

OPERATE = (ROOT / "docs" / "operate.md").read_text("utf-8")


@pytest.mark.parametrize("name", GENERATED)
def test_generated_pages_agree_with_the_models(name: str) -> None:
    assert (ROOT / name).read_text("utf-8") == GENERATED[name](), "run: make docs"


def test_every_language_has_a_row_that_says_who_reviewed_it() -> None:
    table = (ROOT / "docs" / "translate.md").read_text("utf-8")
    found = re.findall(r"^\| [A-Z][A-Za-z ]+ \| `([A-Za-z-]+)` \| \S.* \|$", table, re.MULTILINE)
    assert sorted(found) == sorted(TAGS)


def test_example_file_changes_nothing_and_its_values_are_the_defaults(tmp_path: Path) -> None:
    text = (ROOT / "quarantine.example.toml").read_text("utf-8")
    assert not any(isinstance(v, dict) and v for v in tomllib.loads(text).values()), "everything is commented out"
    live: list[str] = []
    for line in text.splitlines():
        if line.startswith("#  ") and live:
            live[-1] += " " + line[3:]  # a long list continues
        elif line.startswith("[") or (line.startswith("#") and not line.startswith("# ")):
            live.append(line.removeprefix("#"))
    path = tmp_path / "quarantine.toml"
    path.write_text("\n".join(line for line in live if not line.endswith('= ""')), "utf-8")
    assert load({"QUARANTINE_CONFIG": str(path)}) == load({"QUARANTINE_CONFIG": "/dev/null"})


# ---- docs/operate.md against the code: log lines, metrics, states and messages, in both directions


@cache
def sources() -> dict[str, ast.Module]:
    paths = [path for folder in ("portal", "digest") for path in sorted((ROOT / folder).rglob("*.py"))]
    return {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text("utf-8")) for path in paths}


def strings() -> set[str]:
    """Return the strings of the code, with … for each inserted value."""
    found = set()
    for _, tree in sources().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                found.add("".join(str(p.value) if isinstance(p, ast.Constant) else "…" for p in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
    return found


def log_lines() -> dict[str, str]:
    """Return the formats of all log lines, with … for each value, and their places in the code."""
    levels = {"debug", "info", "warning", "error", "exception", "critical"}
    found = {}
    for name, tree in sources().items():
        for node in ast.walk(tree) if not name.startswith("portal/moving/") else ():  # a command's messages
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in levels):
                continue
            if not (isinstance(node.func.value, ast.Name) and node.func.value.id == "log"):
                continue
            first = node.args[0]
            assert isinstance(first, ast.Constant) and isinstance(first.value, str), f"{name}:{node.lineno}: a constant"
            values = [ast.unparse(value) for value in node.args[1:]]
            lines = [first.value]
            if values and values[0] == "result.value":  # its first word is the result
                lines = [first.value.replace("%s", result.value, 1) for result in (Result.HELD, Result.KNOWN)]
            elif values and values[0] in ("self.kind", "self._kind"):  # of a run
                lines = [first.value.replace("%s", kind, 1) for kind in ("digest", "notice")]
            for line in lines:
                found[re.sub(r"%[-+ 0]*\d*(?:\.\d+)?[a-z]", "…", line)] = f"{name}:{node.lineno}"
    return found


def table(head: str) -> list[tuple[list[str], str]]:
    """Return the rows of the table of docs/operate.md with this first column: its quotations, and the rest."""
    lines = OPERATE.split(f"\n| {head} |")[1].splitlines()[2:]
    rows = []
    for line in lines[: lines.index("")]:
        first, _, rest = line.strip("| ").partition(" | ")
        rows.append((re.findall(r"`([^`]+)`", first), rest))
    assert rows
    return rows


def explains(documented: str, line: str) -> bool:
    """Return whether ``line`` begins with this text, in which ``=…`` is any value and another … an inserted value."""
    return re.match(re.escape(documented).replace("=…", "=.*") + r"(?!\w)", line) is not None


def test_every_log_line_is_explained_and_every_explained_line_is_logged() -> None:
    logged = log_lines()
    explained = [text for texts, rest in table("line") if not rest.startswith("in ") for text in texts]
    assert not [text for text in explained if not any(explains(text, line) for line in logged)]
    assert not {line: at for line, at in logged.items() if not any(explains(text, line) for text in explained)}


def test_every_text_within_a_log_line_or_message_that_is_explained_is_in_the_code() -> None:
    texts = [text for texts, rest in table("line") if rest.startswith("in ") for text in texts]
    texts += [text for messages, _ in table("it says") for text in messages]
    code = strings()
    for text in texts:
        text = text.removeprefix("FROM: ").removeprefix("TO: ")  # `copy` puts these before the errors of a store
        pattern = re.escape(text.strip("… ")).replace("…", ".*")
        assert len(text) >= 10 and any(re.search(pattern, string) for string in code), text


def test_every_state_is_explained() -> None:
    assert {text for texts, _ in table("what `list` says") for text in texts} - {"meta"} == set(State)


def test_every_metric_is_explained_and_every_explained_metric_exists() -> None:
    tree = sources()["portal/web/monitor.py"]
    suffixes = {"_gauge": "", "_gauges": "", "_info": "", "_histogram": "", "_counter": "_total", "_counters": "_total"}
    metrics = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in suffixes:
            (name, *_) = node.args
            assert isinstance(name, ast.Constant)
            metrics.add(f"quarantine_{name.value!s}{suffixes[node.func.id]}")
    assert len(metrics) > 10
    pages = {path: path.read_text("utf-8") for path in (ROOT / "docs").rglob("*.md")}
    named = {path: set(re.findall(r"`(quarantine_\w+)`", text)) for path, text in pages.items()}
    assert named[ROOT / "docs" / "operate.md"] >= metrics
    assert not {path.name: names - metrics for path, names in named.items() if names - metrics}


def _anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as views of repositories make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    texts = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings]
    return {re.sub(r"[^\w -]", "", text).replace(" ", "-") for text in texts}


def test_every_document_and_heading_that_another_one_links_to_exists() -> None:
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for target, anchor in re.findall(r"\]\(([^)#:]*)#?([^)#:]*)\)", page.read_text("utf-8")):
            file = page.parent / target if target else page
            assert file.exists(), f"{page.name} links to {target}"
            assert not anchor or anchor in _anchors(file), f"{page.name} links to {target}#{anchor}"


# ---- commands in the documents


def _blocks() -> list[tuple[str, str]]:
    """Return (page, line) for each line of an indented block of the documents."""
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    return [
        (page.name, line.strip())
        for page in pages
        for line in page.read_text("utf-8").splitlines()
        if line.startswith("    ") and "quarantine" in line
    ]


def _command(name: str) -> click.Command:
    found = main.get_command(click.Context(main), name)
    assert found is not None, name
    return found


def _commands(group: click.Command, context: click.Context) -> Iterator[tuple[str, click.Command]]:
    """Yield all commands below a command, with their names as they are typed."""
    if not isinstance(group, click.Group):
        yield context.command_path, group
        return
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield from _commands(command, click.Context(command, parent=context, info_name=name))


# ---- the lines for sudo

# The permission that a role needs for the same in the console. Other commands are for administrators.
_READING = {
    "audit": Permission.READ_AUDIT,
    "domains list": Permission.READ_AUDIT,
    "domains show": Permission.READ_AUDIT,
    "jobs list": Permission.SEE_ENVELOPE,
    "jobs show": Permission.SEE_ENVELOPE,
    "list": Permission.SEE_ENVELOPE,
    "meta": Permission.SEE_ENVELOPE,
    "recipient": Permission.SEE_ENVELOPE,
    "rules list": Permission.SEE_ENVELOPE,
    "staff list": Permission.READ_AUDIT,
    "stats": Permission.SEE_ENVELOPE,
    "token list": Permission.READ_AUDIT,
}
_NEEDS_WORDS = {"domains show", "jobs show", "meta", "recipient"}


def _sudoers() -> str:
    """Return the lines of docs/operate.md for /etc/sudoers.d."""
    found = re.search(r"\n\n((?:    .*\n)*    %quarantine-admins .*\n(?:    .*\n)*)", OPERATE)
    assert found
    return textwrap.dedent(found[1])


def _permitted(group: str) -> list[str]:
    """Return the commands of a group of users."""
    text = _sudoers().replace("\\\n", " ")
    aliases = {name: words.strip() for name, words in re.findall(r"^Cmnd_Alias (\w+) *=(.*)$", text, re.MULTILINE)}
    [line] = re.findall(rf"^%{group} +ALL=\(root\) (.*)$", text, re.MULTILINE)
    for name, words in aliases.items():
        line = line.replace(name, words)
    return [" ".join(each.split()) for each in line.split(",")]


@pytest.mark.parametrize(
    ("group", "role"), [("quarantine-helpdesk", Role.HELP_DESK), ("quarantine-auditors", Role.AUDITOR)]
)
def test_sudo_permits_what_a_role_may_do_in_the_console_and_no_more(group: str, role: Role) -> None:
    commands = dict(_commands(main, click.Context(main, info_name="quarantine")))
    expected = set()
    for name, permission in _READING.items():
        assert f"quarantine {name}" in commands
        if permission in PERMISSIONS[role]:
            expected |= {f"{name} *"} if name in _NEEDS_WORDS else {name, f"{name} *"}
    found = [each.removeprefix("/usr/sbin/quarantine ") for each in _permitted(group)]
    assert [each for each in found if each.startswith("!")] == ["!/usr/sbin/quarantine stats *--mail*"]
    assert sorted(each for each in found if not each.startswith("!")) == sorted(expected)


def test_sudo_permits_administrators_both_programs() -> None:
    assert _permitted("quarantine-admins") == ["/usr/sbin/quarantine", "/usr/sbin/quarantine-digest"]


@pytest.mark.system
def test_sudo_accepts_the_lines(tmp_path: Path) -> None:
    path = tmp_path / "sudoers"
    path.write_text(_sudoers())
    path.chmod(0o440)
    checked = subprocess.run(["/usr/sbin/visudo", "-cf", path], capture_output=True, text=True, check=False)
    assert (checked.returncode, "parsed OK" in checked.stdout) == (0, True), checked.stdout + checked.stderr


def test_every_option_of_a_command_is_in_the_documents() -> None:
    documents = "\n".join(path.read_text("utf-8") for path in sorted((ROOT / "docs").glob("*.md")))
    documented = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", documents))
    commands = dict(_commands(main, click.Context(main, info_name="quarantine")))
    assert {"quarantine list", "quarantine staff add"} <= set(commands)
    missing = {
        f"{command} {option}"
        for command, found in commands.items()
        for parameter in found.params
        if isinstance(parameter, click.Option)
        for option in (*parameter.opts, *parameter.secondary_opts)
        if option not in documented
    }
    assert not missing, sorted(missing)


def test_commands_of_operators_in_the_documents_can_be_parsed() -> None:
    parsed = 0
    for page, line in _blocks():
        command, _, comment = line.partition("  #")
        assert not re.search(r"\bquarantine [a-z]+ ", comment), f"{page}: a command in a comment: {line}"
        for part in re.split(r"\s(?:[|;]|&&)\s|; ", command):
            if part.strip().startswith("quarantine "):
                name, *arguments = shlex.split(part)[1:]
                _command(name).make_context(
                    name, [word for word in arguments if word != "…" and not word.startswith(">")]
                )
                parsed += 1
    assert parsed > 20
