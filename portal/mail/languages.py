"""The languages that people are spoken to in: texts, plural forms, dates, numbers. The only user of gettext and babel.

Texts stand in the code and the templates in English, marked by `{% trans %}`, `_()` and `N_()`; their translations in
`portal/locale/LANGUAGE/LC_MESSAGES/quarantine.po`. These files are read as they are, once per process and language,
when first needed (docs/decisions/languages.md says why none is compiled). docs/translate.md is for who translates.

Programs, logs and operators' output speak English alone.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from gettext import GNUTranslations, NullTranslations, c2py
from io import BytesIO
from pathlib import Path
from zoneinfo import ZoneInfo

from babel import Locale, UnknownLocaleError
from babel.dates import format_datetime
from babel.messages import Catalog
from babel.messages import Message as Entry
from babel.messages.mofile import write_mo
from babel.messages.pofile import PoFileError, read_po
from babel.numbers import format_decimal, get_decimal_symbol
from babel.units import format_unit

from portal.model.text import TAGS

LOCALE = Path(__file__).resolve().parents[1] / "locale"
# English without a country is American to CLDR; ours is read all over the world, with days before months and 24 hours.
_FORMATS_OF = {"en": "en-GB"}
_RANGE = re.compile(r"\s*([A-Za-z0-9-]{1,35}|\*)\s*(?:;\s*q\s*=\s*([01](?:\.[0-9]{0,3})?)\s*)?")


@dataclass(frozen=True, slots=True)
class Language:
    """One language, ready to be spoken."""

    tag: str  # BCP 47
    direction: str  # "ltr" or "rtl"
    latin: bool  # written in Latin letters
    translations: NullTranslations
    _locale: Locale
    _moment: str  # CLDR date patterns
    _short_moment: str
    _point: str  # of a decimal number

    def gettext(self, text: str) -> str:
        """A text in this language, in English when it has no translation."""
        # The translation of nothing is a catalogue's head.
        return self.translations.gettext(text) if text else ""

    def ngettext(self, one: str, many: str, count: int) -> str:
        """The form of a text that goes with a number."""
        return self.translations.ngettext(one, many, count)

    def moment(self, at: datetime, zone: ZoneInfo) -> str:
        """Like "Saturday, 21 November 2026, 14:05"."""
        return format_datetime(at, self._moment, tzinfo=zone, locale=self._locale)

    def short_moment(self, at: datetime, zone: ZoneInfo) -> str:
        """Like "Sat 21 Nov, 14:05"."""
        return format_datetime(at, self._short_moment, tzinfo=zone, locale=self._locale)

    def number(self, number: int) -> str:
        """Like "1,234"."""
        return str(number) if -1000 < number < 1000 else format_decimal(number, "#,##0", locale=self._locale)

    def days(self, days: int) -> str:
        """Like "14 days"."""
        # Ours, not CLDR's: Babel lacks the word in some languages, and it has to suit our sentences.
        # Translators: an amount that other sentences have in them, like “for 14 days”; they must fit all its forms.
        form = self.ngettext("%(number)s day", "%(number)s days", days)
        return form % {"number": self.number(days)}

    def score(self, score: float) -> str:
        """Like "17.5"."""
        if 0 <= score < 1000:  # as most are; Babel takes twenty times as long, for each row of a digest
            return f"{score:.1f}".replace(".", self._point)
        return format_decimal(score, "#,##0.0", locale=self._locale)

    def place(self, zone: str) -> str:
        """The place that a time zone is named after, like "Wien" for Europe/Vienna."""
        city: str | None = self._locale.time_zones.get(zone, {}).get("city")
        return city or zone.partition("/")[2].replace("_", " ").replace("/", " – ") or zone

    def size(self, size_bytes: int) -> str:
        """A size as people read it, like "12 kB"."""
        if size_bytes < 1000:
            number, unit, pattern = float(size_bytes), "byte", "0"
        elif size_bytes < 999_500:
            number, unit, pattern = size_bytes / 1000, "kilobyte", "0"
        else:
            number, unit, pattern = size_bytes / 1e6, "megabyte", "#,##0.0"
        return format_unit(number, f"digital-{unit}", "short", format=pattern, locale=self._locale)


@cache
def get(tag: str) -> Language:
    """The language of one of `TAGS`."""
    return _speaking(tag, _shipped(tag))


def of_site(tag: str, folder: Path) -> tuple[Language, list[tuple[str, str]]]:
    """A language with a site's own texts before ours, from a folder like `LOCALE`; names and sentences for what is
    wrong there, which is left out."""
    path, ours = po_file(folder, tag), get(tag)
    if not path.is_file():
        return ours, []
    name = path.relative_to(folder.parent).as_posix()
    try:
        catalogue = read_catalogue(path, tag)
    except (OSError, ValueError) as error:
        return ours, [(name, f"cannot be read: {error}")]
    found = list(faults(catalogue))
    for entry, _ in found:
        catalogue.delete(entry.id, entry.context)
    own = _compiled(catalogue)
    own.add_fallback(ours.translations)
    return _speaking(tag, own), [(name, f"line {entry.lineno}: {said}") for entry, said in found]


def _speaking(tag: str, translations: NullTranslations) -> Language:
    formats = _locale(_FORMATS_OF.get(tag, tag))
    join, hours = str(formats.datetime_formats["medium"]), formats.time_formats["short"].pattern

    def joined(day: str) -> str:
        return join.replace("{1}", day).replace("{0}", hours)

    return Language(
        tag=tag,
        direction=formats.text_direction,
        latin=unicodedata.name(own_name(tag)[0]).startswith("LATIN"),
        translations=translations,
        _locale=formats,
        _moment=joined(formats.date_formats["full"].pattern),
        _short_moment=joined(formats.datetime_skeletons["MMMEd"].pattern),
        _point=get_decimal_symbol(formats),
    )


def own_name(tag: str) -> str:
    """What a language calls itself."""
    name = _locale(tag).get_display_name() or tag
    return name[:1].upper() + name[1:]


def negotiated(accept_language: str, default: str) -> str:
    """The tag that suits a browser's Accept-Language best (RFC 9110, 12.5.4), else ``default``.

    "de-AT" gets German, and so does "pt" Brazilian Portuguese: close is better than English.
    """
    wanted: list[tuple[float, str]] = []
    for part in accept_language[:1000].split(","):
        if match := _RANGE.fullmatch(part):
            wanted.append((float(match[2] or 1), match[1].lower()))
    for quality, name in sorted(wanted, key=lambda pair: -pair[0]):
        if quality == 0 or name == "*":
            break
        same = [tag for tag in TAGS if tag.lower() == name] or [tag for tag in TAGS if _main(tag) == _main(name)]
        if same:
            return same[0]
    return default


def _main(tag: str) -> str:
    return tag.partition("-")[0]


def _locale(tag: str) -> Locale:
    return Locale.parse(tag, sep="-")


# ---- catalogues


def po_file(folder: Path, tag: str) -> Path:
    """Where the texts of a language lie."""
    return folder / tag.replace("-", "_") / "LC_MESSAGES" / "quarantine.po"


def read_catalogue(path: Path, tag: str) -> Catalog:
    """A .po file. Raises OSError, and ValueError for one that is none."""
    try:
        with path.open("rb") as file:
            return read_po(file, locale=_locale(tag), abort_invalid=True)
    except (PoFileError, UnknownLocaleError) as error:
        raise ValueError(str(error)) from error


def _shipped(tag: str) -> NullTranslations:
    # The texts themselves are English; only a site may have others for them.
    return NullTranslations() if tag == TAGS[0] else _compiled(read_catalogue(po_file(LOCALE, tag), tag))


def _compiled(catalogue: Catalog) -> GNUTranslations:
    file = BytesIO()
    write_mo(file, catalogue)  # leaves out what is fuzzy or not translated
    file.seek(0)
    return GNUTranslations(file)


_PLACEHOLDER = re.compile(r"%%|%(?:\((\w+)\)s)?")
_MARKUP = re.compile(r"<[^>]*>?|>|&(?:#?\w+;)?")


def faults(catalogue: Catalog) -> Iterator[tuple[Entry, str]]:
    """What is wrong with translations that are there: each would break a page, or print what is not meant."""
    for entry in catalogue:
        said = [entry.string] if isinstance(entry.string, str) else [text or "" for text in entry.string or ()]
        if entry.id and any(said) and not entry.fuzzy:
            yield from ((entry, fault) for fault in _faults(entry, said, catalogue))


def _faults(entry: Entry, said: list[str], catalogue: Catalog) -> Iterator[str]:
    english = entry.id if isinstance(entry.id, str) else entry.id[-1]
    if entry.pluralizable and len(said) != catalogue.num_plurals:
        yield f"it has {len(said)} plural forms, not {catalogue.num_plurals}"
        return
    for form, text in enumerate(said):
        needed, found = _placeholders(english), _placeholders(text)
        if entry.pluralizable and _is_for_one_number(form, catalogue.plural_expr):
            found |= {"%(number)s"} & needed  # "one mail" needs none
        if not text:
            yield f"plural form {form} is missing"
        elif found != needed:
            yield f"placeholders differ: {' '.join(sorted(found ^ needed))}"
        elif sorted(_MARKUP.findall(text)) != sorted(_MARKUP.findall(english)):
            yield "its markup differs"


def _placeholders(text: str) -> set[str]:
    return {match.group() for match in _PLACEHOLDER.finditer(text)}


@cache
def _is_for_one_number(form: int, plural_expr: str) -> bool:
    form_of = c2py(plural_expr)
    return sum(form_of(number) == form for number in range(1000)) == 1
