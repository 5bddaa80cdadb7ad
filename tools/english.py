"""Look for words that the prose of this project avoids; `english.toml` lists them.

``python -m tools.english [FILE …]`` prints ``file:line: "word" → suggestion`` for each finding and how many there are
for each folder. The exit status is 1 if there are any.

Prose is: comments, docstrings and strings of Python; in tests the messages of assertions, but no other strings, since
those quote mail; templates and Markdown; comments of every other text file. Code is not prose, nor is text in
backticks, nor a single word in double quotes: quote a word that way.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[1]

LOOKED_AT = (
    *("portal", "digest", "templates", "tests", "bench", "deploy", "tools", "docs", ".ci"),
    *("quarantine.sql", "uwsgi.ini", "Makefile", "pyproject.toml"),
    *("README.md", "CHANGELOG.md", "CONTRIBUTING.md"),
)
# Translations, data of tests, this list itself, and a page that is generated from portal/settings.py.
NOT_LOOKED_AT = (
    "portal/locale",
    "tests/data",
    "tools/english.toml",
    "docs/settings.md",
    "docs/assets",
    "portal/policy/freemail.txt",
)

# Code between two pieces of prose: neither white space nor part of a word, so that nothing is found across it.
_CODE = "\x00"


@dataclass(frozen=True)
class Finding:
    path: str
    line: int
    word: str
    instead: str

    def __str__(self) -> str:
        return f'{self.path}:{self.line}: "{self.word}" → {self.instead}'


@dataclass(frozen=True)
class Avoided:
    """An entry of the list: what to look for, where it is right, and the suggestion."""

    words: re.Pattern[str]
    unless: re.Pattern[str] | None
    instead: str

    @classmethod
    def of(cls, entry: dict[str, Any]) -> Self:
        unless = entry.get("unless")
        return cls(_pattern(entry["words"]), _pattern(unless) if unless else None, entry["instead"])

    def found_in(self, prose: str) -> Iterator[re.Match[str]]:
        allowed = [match.span() for match in self.unless.finditer(prose)] if self.unless else []
        for match in self.words.finditer(prose):
            quoted = prose[match.start() - 1 : match.start()] == '"' == prose[match.end() : match.end() + 1]
            if not quoted and not any(start <= match.start() and match.end() <= end for start, end in allowed):
                yield match


def _pattern(words: Iterable[str]) -> re.Pattern[str]:
    alternatives = "|".join(words).replace(" ", r"\s+")
    return re.compile(rf"(?<![\w./-])(?:{alternatives})(?![\w-])", re.IGNORECASE)


_LIST = tomllib.loads((Path(__file__).parent / "english.toml").read_text("utf-8"))
AVOIDED = [Avoided.of(entry) for entry in _LIST["avoid"]]
DOCSTRING = Avoided.of(_LIST["docstring"])


# ---- prose of a file: a text of the same length and lines, in which everything else is blank or _CODE


class _Mask:
    """The prose of a file, filled in piece by piece."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._starts = [0]
        for line in text.splitlines(keepends=True):
            self._starts.append(self._starts[-1] + len(line))
        self._prose = list(re.sub(r"\S", _CODE, text))

    def offset(self, line: int, column: int) -> int:
        """Return the position in the text of a line, counted from 1, and column, counted from 0."""
        return self._starts[line - 1] + column

    def blank(self, start: int, end: int) -> None:
        """Make a piece white space, for marks that only separate prose from prose."""
        for at in range(start, end):
            if not self._text[at].isspace():
                self._prose[at] = " "

    def show(self, start: int, end: int, without: re.Pattern[str] | None = None) -> None:
        """Add a piece of prose, but not the quotations in it: text in backticks, or what ``without`` matches."""
        self._prose[start:end] = self._text[start:end]
        for match in (without or _BACKTICKS).finditer(self._text, start, end):
            for at in range(*match.span()):
                if not self._text[at].isspace():
                    self._prose[at] = _CODE

    def __str__(self) -> str:
        return "".join(self._prose)


_BACKTICKS = re.compile(r"(?<!`)(`{1,3})[^`]+\1(?!`)")
_BACKTICKS_OR_FIELDS = re.compile(rf"{_BACKTICKS.pattern}|\{{[^{{}}]*\}}")
_OPENING = re.compile(r"(\w*)(\"\"\"|'''|[\"'])")
_SQL = re.compile(
    r"\s*(?:--|(?:and|begin|commit|copy|delete|exists|explain|from|group|having|join|left|lock|notify|on|or|order|pragma"
    r"|select|set|truncate|union|update|vacuum|values|where|with)\b)"
    r"|(?s:.*?)^\s*(?:(?i:alter|create|drop)\s+\w+|(?i:insert\s+into))\s+\w",
    re.MULTILINE,
)
_SQL_COMMENT = re.compile(r"--[^\n]*")


def _python(text: str, tree: ast.Module, *, in_tests: bool) -> str:
    mask = _Mask(text)
    lines = text.splitlines(keepends=True)

    def offset(line: int, byte: int) -> int:
        return mask.offset(line, len(lines[line - 1].encode()[:byte].decode()))  # ast counts in bytes of UTF-8

    strings: dict[int, tuple[int, str]] = {}  # by their beginnings: their ends, and their texts
    for node in _messages(tree) if in_tests else ast.walk(tree):
        value = _string(node)
        if value is not None and isinstance(node, ast.expr):
            end = offset(node.end_lineno or node.lineno, node.end_col_offset or 0)
            strings.setdefault(offset(node.lineno, node.col_offset), (end, value))  # an f-string before its parts

    until, value = 0, ""  # the string that the current token is a part of; implicit concatenation makes one of several
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        start, end = mask.offset(*token.start), mask.offset(*token.end)
        if token.type == tokenize.COMMENT:
            if not token.string.startswith(("# noqa", "# type:", "# fmt:", "#!")):
                mask.show(start, end)
                mask.blank(start, start + 1)
        elif token.type == tokenize.STRING or tokenize.tok_name[token.type].startswith("FSTRING"):
            until, value = strings.get(start, (until, value))
            if start < until and _SQL.match(value):
                for comment in _SQL_COMMENT.finditer(text, start, end):
                    mask.show(*comment.span())
            elif start < until and len(value.split()) > 1:
                opening = _OPENING.match(token.string)
                mask.show(start, end, _BACKTICKS_OR_FIELDS if opening and "f" in opening[1].lower() else _BACKTICKS)
                if opening:
                    mask.blank(start, start + opening.end())
                    mask.blank(end - len(opening[2]), end)
    return str(mask)


def _messages(tree: ast.Module) -> Iterator[ast.AST]:
    """Docstrings and messages of assertions and errors: other strings in tests are data."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr):
            yield node.value
        elif isinstance(node, ast.Assert) and node.msg:
            yield from ast.walk(node.msg)
        elif isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            yield from node.exc.args


def _string(node: ast.AST) -> str | None:
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    return None


_JINJA = re.compile(r"\{\{.*?\}\}|\{%.*?%\}", re.DOTALL)
_JINJA_STRING = re.compile(r"\"[^\"]*\"|'[^']*'")
_TAG_WITHOUT_TEXTS = re.compile(r"(?<=\s)(?!title=|alt=|aria-label=|placeholder=)[\w-]+=(?:\"[^\"]*\"|'[^']*')")


def _template(text: str) -> str:
    """Everything but attributes without texts and the code of Jinja; strings in that code are texts."""
    mask = _Mask(text)
    at = 0
    for code in _JINJA.finditer(text):
        mask.show(at, code.start())
        for string in _JINJA_STRING.finditer(code.group()):
            mask.show(code.start() + string.start() + 1, code.start() + string.end() - 1)
        at = code.end()
    mask.show(at, len(text))
    prose = str(mask)
    return _TAG_WITHOUT_TEXTS.sub(lambda match: re.sub(r"\S", _CODE, match.group()), prose)


def _everything(text: str) -> str:
    mask = _Mask(text)
    mask.show(0, len(text))
    return str(mask)


def _comments(text: str, marks: str) -> str:
    """The comments that begin with one of ``marks``, a regular expression, and end with their line."""
    mask = _Mask(text)
    for match in re.finditer(rf"(?:^|(?<=\s))({marks})+[^\n]*", text, re.MULTILINE):
        mask.show(*match.span())
        mask.blank(match.start(), match.end(1))
    return str(mask)


def prose_of(path: Path, text: str) -> str:
    """Return the prose of a file in as many lines as the file has; a run of code in a line is one `_CODE`."""
    return re.sub(rf"{_CODE}[{_CODE} \t]*{_CODE}", _CODE, _prose_of(path, text))


def _prose_of(path: Path, text: str) -> str:
    match path.suffix:
        case ".py":
            return _python(text, ast.parse(text), in_tests="tests" in path.parts)
        case ".html" | ".txt":
            return _template(text)
        case ".md" | ".css" | ".js":
            return _everything(text)
        case ".sql" | ".lua":
            return _comments(text, "--")
        case _:
            return _comments(text, "#")


# ---- findings


def _docstrings(text: str) -> Iterator[tuple[int, str]]:
    """Strings that are statements, with their lines: docstrings, also those of attributes."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, node.value.value


def check(path: Path, text: str) -> list[Finding]:
    """Return the findings in the text of one file, first to last. ``path``: relative to the root of the project."""
    prose, name = prose_of(path, text), path.as_posix()
    findings = []
    for avoided in AVOIDED:
        for match in avoided.found_in(prose):
            line = prose.count("\n", 0, match.start()) + 1
            findings.append(Finding(name, line, " ".join(match.group().split()), avoided.instead))
    if path.suffix == ".py":
        for line, docstring in _docstrings(text):
            beginning = DOCSTRING.words.match(docstring.lstrip())
            if beginning:
                findings.append(Finding(name, line, f"{beginning.group()} …", DOCSTRING.instead))
    return sorted(findings, key=lambda finding: finding.line)


def files() -> Iterator[Path]:
    """Text files of the project that have prose, relative to its root."""
    for name in LOOKED_AT:
        path = ROOT / name
        for file in sorted(path.rglob("*")) if path.is_dir() else [path] * path.exists():
            relative = file.relative_to(ROOT)
            if not file.is_file() or {"__pycache__", "node_modules"} & set(relative.parts):
                continue
            if not any(relative.is_relative_to(other) for other in NOT_LOOKED_AT) and _is_text(file):
                yield relative


def _is_text(file: Path) -> bool:
    return file.suffix not in (".png", ".svg", ".pyc", ".po", ".json") and b"\0" not in file.read_bytes()[:1024]


def main(names: list[str]) -> int:
    """Check the files of these names, or all."""
    counts: Counter[str] = Counter()
    for path in [Path(name).resolve().relative_to(ROOT) for name in names] or files():
        for finding in check(path, (ROOT / path).read_text("utf-8")):
            print(finding)
            counts[path.parts[0] if len(path.parts) < 3 else "/".join(path.parts[:2])] += 1
    if counts:
        print(f"\n{counts.total()} findings: " + ", ".join(f"{name} {count}" for name, count in sorted(counts.items())))
        print("The words and their replacements are in tools/english.toml, the rule in CONTRIBUTING.md.")
    return 1 if counts else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
