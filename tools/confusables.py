"""Write `portal/model/confusables.py`, the data of `portal.model.look_alikes`, from files of Unicode.

    mkdir unicode && cd unicode
    curl -O https://www.unicode.org/Public/17.0.0/security/confusables.txt
    curl -O https://www.unicode.org/Public/17.0.0/security/IdentifierType.txt
    curl -O https://www.unicode.org/Public/17.0.0/ucd/Scripts.txt
    cd .. && python tools/confusables.py unicode && rm -r unicode

Run it again when Unicode publishes a new version: replace the version in the addresses, run the script, then `pytest
tests/model/test_look_alikes.py`. The tables below list the characters that are added or left out by hand; each entry
needs a reason. The files and the generated module are under the Unicode License V3 (LICENSE-UNICODE).
"""

from __future__ import annotations

import argparse
import re
import sys
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

OUTPUT = Path(__file__).resolve().parents[1] / "portal/model/confusables.py"
COLUMNS = 120

# Scripts that may be mixed with Latin in one label. Their characters that look like punctuation are kept too.
EAST_ASIAN = {"Han", "Hiragana", "Katakana", "Bopomofo", "Hangul"}
# Confusable with w since Unicode 17. With it, Russian names and words (саша, груша) would count as Latin.
LEFT_OUT = "ш"
# UTS 39 compares single characters in one font and has no ASCII prototype for these. In a whole word they look like
# ASCII: Chromium's idn_spoof_checker.cc lists them as well.
ADDED = {
    "b": "ьъβ", "bi": "ы", "e": "ε", "g": "ԍ", "io": "ю", "k": "κ", "n": "пη", "p": "ԗ", "t": "τ", "w": "ω", "x": "χ",
}  # fmt: skip

HEAD = '''"""Characters that are confusable with ASCII, and the scripts of all characters.

Written by tools/confusables.py: do not edit. The data come from confusables.txt and IdentifierType.txt (UTS 39) and
Scripts.txt (UAX 24) of Unicode {version}.
Copyright (C) 1991-{year} Unicode, Inc., used under the terms in LICENSE-UNICODE.
SPDX-License-Identifier: Unicode-3.0
"""

UNICODE_VERSION = "{version}"
'''


class Broken(Exception):
    """The input files are missing or do not belong together."""


class Data:
    """The content of the three files."""

    def __init__(self, folder: Path) -> None:
        self.version = ""
        self.year = ""
        self.scripts = {c: script for c, (script,) in self._rows(folder / "Scripts.txt")}
        self.types = {c: set(types.split()) for c, (types,) in self._rows(folder / "IdentifierType.txt")}
        self.prototypes = {
            c: "".join(chr(int(code, 16)) for code in target.split())
            for c, (target, *_) in self._rows(folder / "confusables.txt")
        }

    def _rows(self, path: Path) -> Iterator[tuple[str, list[str]]]:
        """Yield each character of a file with its fields. Raises Broken if it is missing or of another version."""
        try:
            text = path.read_text("utf-8-sig")
        except OSError as error:
            raise Broken(str(error)) from None
        version = re.search(r"^# (?:Version: |\w+-)(\d+\.\d+\.\d+)", text, re.MULTILINE)
        if not version or version[1] != (self.version or version[1]):
            raise Broken(f"{path} is of version {version and version[1]}, the others are of version {self.version}")
        self.version = version[1]
        self.year = max(self.year, *re.findall(r"^# Date: (\d{4})", text, re.MULTILINE), "")
        for line in text.splitlines():
            content = line.partition("#")[0]
            if ";" in content:
                code, *fields = (field.strip() for field in content.split(";"))
                first, _, last = code.partition("..")
                for number in range(int(first, 16), int(last or first, 16) + 1):
                    yield chr(number), fields


def prototypes(data: Data) -> dict[str, str]:
    """Return each character that is confusable with ASCII and its prototype in lower case."""
    # A small Cherokee letter has the shape of its capital.
    capitals = {c: c.upper() for c, script in data.scripts.items() if script == "Cherokee" and c.upper() != c}
    found = {
        c: target.lower()
        for c, target in {**data.prototypes, **_small_capitals(data)}.items()
        if not c.isascii() and target.isascii() and c not in LEFT_OUT and _counts(data, c, target)
    }
    found |= {c: found[capital] for c, capital in capitals.items() if capital in found}
    return found | {c: target for target, characters in ADDED.items() for c in characters}


def _small_capitals(data: Data) -> dict[str, str]:
    """Return small capitals and their letters: UTS 39 has a prototype only for those shaped like a small letter."""
    found = {}
    for c, script in data.scripts.items():
        letter = re.fullmatch("LATIN LETTER SMALL CAPITAL ([A-Z])", unicodedata.name(c, ""))
        if script == "Latin" and letter:
            found[c] = letter[1]
    return found


def _counts(data: Data, c: str, target: str) -> bool:
    """Return whether `look_alikes` needs a character with an ASCII prototype."""
    types, script = data.types.get(c, set()), data.scripts.get(c, "Common")
    if "Not_NFKC" in types:
        return False  # `look_alikes` applies NFKC, as IDNA does
    if script in EAST_ASIAN or script == "Common":
        return len(target) == 1 and not target.isspace()
    if script == "Latin":
        # Latin labels are checked in lower case. A living letter for two ASCII letters, such as æ, looks different.
        return c == c.lower() and target.isalnum() and (len(target) == 1 or "Recommended" not in types)
    return target.isalpha()  # a letter that looks like a digit (б) makes no imitation of a word


def ranges(data: Data) -> dict[str, str]:
    """Return the first and last character of each range per script. Ranges may include unassigned characters."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    before = ""
    for c in sorted(data.scripts):
        script = data.scripts[c]
        if script == before:
            found[script][-1] = c
        else:
            found[script] += [c, c]
        before = script
    return {script: "".join(found[script]) for script in sorted(found) if script not in ("Common", "Inherited")}


def _escaped(text: str) -> list[str]:
    return [f"\\u{ord(c):04x}" if ord(c) < 0x10000 else f"\\U{ord(c):08x}" for c in text]


def _literal(indent: str, before: str, pieces: list[str]) -> Iterator[str]:
    """Yield ``before`` and a string literal as `ruff format` writes them."""
    one = f'{indent}{before}"{"".join(pieces)}"'
    if len(one) < COLUMNS:
        yield one
        return
    yield f"{indent}{before}("
    line = ""
    for piece in [*pieces, ""]:
        if not piece or len(line) + len(piece) + len(indent) + 6 > COLUMNS:
            yield f'{indent}    "{line}"'
            line = ""
        line += piece
    yield f"{indent})"


def written(data: Data) -> str:
    """Return the source of the module."""
    found = prototypes(data)
    living = sorted(c for c in found if data.scripts.get(c) == "Latin" and "Recommended" in data.types.get(c, set()))
    by_target: defaultdict[str, list[str]] = defaultdict(list)
    for c in sorted(found):
        by_target[found[c]].append(c)
    lines = [
        HEAD.format(version=data.version, year=data.year),
        "# ASCII prototype in lower case: characters.",
    ]
    lines.append("PROTOTYPES = {")
    for target in sorted(by_target):
        quoted = "'" + target + "'" if '"' in target else '"' + target.replace("\\", "\\\\") + '"'
        lines += _entry(quoted, by_target[target])
    lines += ["}", "# Those that are Latin letters of living languages (Identifier_Type Recommended)."]
    lines += _literal("", "LIVING_LATIN = ", _escaped("".join(living)))
    lines += ["# First and last character of each range. Common and inherited characters are left out.", "SCRIPTS = {"]
    for script, text in ranges(data).items():
        lines += _entry(f'"{script}"', list(text))
    return "\n".join([*lines, "}", ""])


def _entry(key: str, characters: list[str]) -> Iterator[str]:
    *lines, last = _literal("    ", f"{key}: ", _escaped("".join(characters)))
    yield from lines
    yield f"{last},"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="has confusables.txt, IdentifierType.txt and Scripts.txt")
    parser.add_argument("output", type=Path, nargs="?", default=OUTPUT)
    arguments = parser.parse_args()
    try:
        text = written(Data(arguments.folder))
    except Broken as error:
        sys.exit(str(error))
    arguments.output.write_text(text, "ascii")


if __name__ == "__main__":
    main()
