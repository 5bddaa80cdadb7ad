"""Detection of domains that look like another domain: the rules of UTS 39, applied to the data in `confusables`."""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from contextlib import suppress
from functools import lru_cache

from portal.model.confusables import LIVING_LATIN, PROTOTYPES, SCRIPTS

_PROTOTYPES = {c: prototype for prototype, characters in PROTOTYPES.items() for c in characters}
_RANGES = sorted(
    (first, last, script) for script, text in SCRIPTS.items() for first, last in zip(text[::2], text[1::2], strict=True)
)
_STARTS = [first for first, _, _ in _RANGES]
# Scripts that may be mixed in one label (UTS 39, 5.2, "highly restrictive").
_TOGETHER = (
    {"Latin", "Han", "Hiragana", "Katakana"},
    {"Latin", "Han", "Bopomofo"},
    {"Latin", "Han", "Hangul"},
)
_DOTS = re.compile(r"[.\u3002\uff61]")  # label separators (RFC 3490, 3.1), without U+FF0E, which looks like the first
_SECOND_DOT = re.compile(r"[ij\u0131]\u0307")  # rendered as i or j
# The top-level domain where a confusable letter is ordinary. The thorn of Icelandic: the rule is Chromium's.
_HOME = {"\u00fe": "is"}
# Places where a dotless i cannot be a letter of Turkish or of another language that has it. These languages have no w.
# No dotless i follows another vowel. One precedes another vowel only in a compound whose first part ends with it
# (sarıev, sarıoğlu); the vowel before it is then an a or another dotless i. A dotless i that replaces an l matches, as
# it is beside a vowel (paypaı, googıe). One that replaces an i often does not match (mıcrosoft): nothing
# distinguishes it from Turkish. Six of the 291,000 words in hunspell's Turkish dictionary match, four of them
# abbreviations.
_NOT_TURKISH = re.compile(
    r"""
    w
    | [aeiou]\u0131
    | (?: ^ | [^a-z\u0131] ) [^aeiou\u0131]* \u0131 [aeiou]  # the first vowel of a word
    | [eiou] [^aeiou\u0131]* \u0131 [aeiou]  # after a vowel other than a and dotless i
    | \u0131 [aeiou]+ (?: $ | [^a-z\u0131] )  # nothing but vowels up to the end of a word
    """,
    re.VERBOSE,
)
_BETWEEN_ASCII = re.compile(r"(?<![^\x01-\x7f])\0+(?![^\x01-\x7f])")


@lru_cache(maxsize=4096)
def looks_alike(host: str) -> bool:
    """Return whether a domain, in Unicode or with A-labels, has a label that looks like another label.

    Such a label mixes scripts, or has a character that is confusable with ASCII and that no living language uses, or
    consists of letters of one other script that are all confusable with ASCII. The last rule does not apply under a
    top-level domain in the same script, where such letters are ordinary. The label is checked in lower case and as it
    was written, since mail programs show capitals as capitals.
    """
    if host.isascii() and "xn--" not in host.lower():
        return False
    written = _DOTS.split(host)
    labels = [_decoded(label) for label in written]
    if any(label and label.isascii() and label != before for label, before in zip(labels, written, strict=True)):
        return True  # invalid, but a mail program may show what it decodes to
    return any(_confusable(label, labels[-1]) for label in labels)


def _decoded(label: str) -> str:
    """Return the letters of an A-label, also if they are not valid: a mail program may show them."""
    if label[:4].lower() == "xn--":
        with suppress(UnicodeError):  # punycode of nothing
            return label[4:].encode("ascii").decode("punycode")
    return label


def _confusable(label: str, top: str) -> bool:
    # IDNA maps such a character to ASCII. The label looks like the mapped one, but Rspamd checked it as it is.
    if any(not c.isascii() and unicodedata.normalize("NFKC", c).isascii() for c in label):
        return True
    label = unicodedata.normalize("NFKC", label)
    scripts = _scripts(label)
    if len(scripts) > 1 and not any(scripts <= together for together in _TOGETHER):
        return True
    if _SECOND_DOT.search(label) or any(c in _PROTOTYPES and not _script(c) for c in label):
        return True
    lower = label.lower()
    if scripts == {"Latin"}:
        return _latin_confusable(lower, top)
    if "Latin" in scripts:
        return _latin_confusable(lower, top) or _isolated(label)
    return not scripts <= _scripts(top) and (_all_confusable(label) or _all_confusable(lower))


def _latin_confusable(label: str, top: str) -> bool:
    """Return whether a lower-case label has confusable Latin letters.

    A letter that no living language uses is enough. Letters of living languages count if all others are ASCII, since
    the imitated name is ASCII.
    """
    if any(c in _PROTOTYPES and c not in LIVING_LATIN and _script(c) == "Latin" for c in label):
        return True
    living = {c for c in label if c in LIVING_LATIN and _HOME.get(c) != top}
    if not living or not all(c.isascii() or c in LIVING_LATIN for c in label):
        return False
    return living != {"\u0131"} or bool(_NOT_TURKISH.search(label))


def _isolated(label: str) -> bool:
    """Return whether East Asian characters that are confusable with ASCII have no other East Asian character beside."""
    marked = "".join("\0" if c in _PROTOTYPES and _script(c) != "Latin" else c for c in label)
    return bool(_BETWEEN_ASCII.search(marked))


def _all_confusable(label: str) -> bool:
    """Return whether a label has letters, and all characters that belong to one script are confusable with ASCII."""
    letters = [c for c in label if _script(c)]
    return any(c.isalpha() for c in letters) and all(c in _PROTOTYPES for c in letters)


def _scripts(text: str) -> set[str]:
    return {script for c in text if (script := _script(c))}


def _script(c: str) -> str:
    """Return the script of a character, "" for one that several scripts use."""
    at = bisect_right(_STARTS, c) - 1
    return _RANGES[at][2] if at >= 0 and c <= _RANGES[at][1] else ""
