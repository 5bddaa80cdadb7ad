"""Languages of pages and mails: texts, plural forms, dates, numbers. The only user of gettext and babel.

The texts in the code and the templates are English, marked by `{% trans %}`, `_()` and `N_()`. Their translations are
in `portal/locale/LANGUAGE/LC_MESSAGES/quarantine.po`. Each process reads the file of a language once, when it first
needs it. There are no compiled .mo files (docs/decisions/languages.md says why). docs/translate.md is for translators.

Logs and the output for operators are in English only.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from datetime import date as calendar_date
from datetime import datetime, timedelta
from datetime import time as wall_time
from functools import cache
from gettext import GNUTranslations, NullTranslations, c2py
from io import BytesIO
from pathlib import Path
from zoneinfo import ZoneInfo

from babel import Locale, UnknownLocaleError
from babel.dates import format_datetime, format_skeleton, format_time, format_timedelta
from babel.lists import format_list
from babel.messages import Catalog
from babel.messages import Message as Entry
from babel.messages.mofile import write_mo
from babel.messages.pofile import PoFileError, read_po
from babel.numbers import format_decimal, format_percent, get_decimal_symbol
from babel.units import format_unit

from portal.model.phrase import Phrase
from portal.model.record import record
from portal.model.text import TAGS

LOCALE = Path(__file__).resolve().parents[1] / "locale"
# CLDR takes English without a country for American. These texts are read all over the world, so they have the day
# before the month, and 24 hours.
_FORMATS_OF = {"en": "en-GB"}
_RANGE = re.compile(r"\s*([A-Za-z0-9-]{1,35}|\*)\s*(?:;\s*q\s*=\s*([01](?:\.[0-9]{0,3})?)\s*)?")


@record(frozen=True, slots=True)
class Language:
    """A language with its translations and formats."""

    tag: str  # BCP 47
    direction: str  # "ltr" or "rtl"
    latin: bool  # written in Latin letters
    translations: NullTranslations
    _locale: Locale
    _moment: str  # CLDR date patterns
    _short_moment: str
    _short_day: str
    _day: str
    _date: str
    _time: str
    _decimal_point: str

    def gettext(self, text: str) -> str:
        """Return a text in this language, in English if it has no translation."""
        # gettext's translation of "" is the catalogue's header.
        return self.translations.gettext(text) if text else ""

    def ngettext(self, one: str, many: str, count: int) -> str:
        """Return the plural form of a text for a number."""
        return self.translations.ngettext(one, many, count)

    def moment(self, at: datetime, zone: ZoneInfo) -> str:
        """Return a time like "Saturday, 21 November 2026, 14:05"."""
        return format_datetime(at, self._moment, tzinfo=zone, locale=self._locale)

    def short_moment(self, at: datetime, zone: ZoneInfo) -> str:
        """Return a time like "Sat 21 Nov, 14:05"."""
        return format_datetime(at, self._short_moment, tzinfo=zone, locale=self._locale)

    def short_day(self, at: datetime, zone: ZoneInfo) -> str:
        """Return a day like "21 Nov"."""
        return format_datetime(at, self._short_day, tzinfo=zone, locale=self._locale)

    def day(self, at: datetime, zone: ZoneInfo) -> str:
        """Return a day like "Saturday, 21 November 2026"."""
        return format_datetime(at, self._day, tzinfo=zone, locale=self._locale)

    def date(self, at: datetime, zone: ZoneInfo) -> str:
        """Return a day like "21 Nov 2026"."""
        return format_datetime(at, self._date, tzinfo=zone, locale=self._locale)

    def month(self, day: calendar_date) -> str:
        """Return the month of a day like "November 2026"."""
        return format_skeleton("yMMMM", day, locale=self._locale)

    def time(self, at: datetime, zone: ZoneInfo) -> str:
        """Return a time of the day like "14:05"."""
        return format_datetime(at, self._time, tzinfo=zone, locale=self._locale)

    def times_of_day(self, at: Iterable[wall_time]) -> str:
        """Return times of no certain day, like "07:00 and 14:05"."""
        return format_list([format_time(each, self._time, locale=self._locale) for each in at], locale=self._locale)

    def number(self, number: int) -> str:
        """Return a number like "1,234"."""
        return str(number) if -1000 < number < 1000 else format_decimal(number, "#,##0", locale=self._locale)

    def percent(self, share: float) -> str:
        """Return a share of 1 in per cent like "1.5%"."""
        return format_percent(round(share, 3), locale=self._locale, decimal_quantization=False)

    def duration(self, span: timedelta) -> str:
        """Return a rounded duration: "3 hours"."""
        return format_timedelta(span, granularity="minute", locale=self._locale)

    def days(self, days: int) -> str:
        """Return a number of days like "14 days"."""
        # Not CLDR's unit, since Babel lacks it in some languages, and the form must fit the sentences around it.
        # Translators: an amount that other sentences have in them, like “for 14 days”; they must fit all its forms.
        form = self.ngettext("%(number)s day", "%(number)s days", days)
        return form % {"number": self.number(days)}

    def phrase(self, phrase: Phrase) -> str:
        """Return a sentence with its values, whose direction does not affect the sentence (UAX #9, 2.7)."""
        return self.gettext(phrase.text) % {name: self._value(value) for name, value in phrase.values.items()}

    def _value(self, value: str | timedelta) -> str:
        if isinstance(value, timedelta):
            return self.days(value.days)
        return value if self.direction == "ltr" and value.isascii() else f"\u2068{value}\u2069"

    def removed_in(self, days: int) -> str:
        """Return when a message is removed, from today on: "Removed in 3 days"."""
        if days < 2:
            return self.gettext("Removed tomorrow") if days else self.gettext("Removed today")
        form = self.ngettext("Removed in %(number)s day", "Removed in %(number)s days", days)
        return form % {"number": self.number(days)}

    def score(self, score: float) -> str:
        """Return a score like "17.5"."""
        if 0 <= score < 1000:  # most scores; Babel takes twenty times as long, for each row of a digest
            return f"{score:.1f}".replace(".", self._decimal_point)
        return format_decimal(score, "#,##0.0", locale=self._locale)

    def threshold(self, score: float) -> str:
        """Return a threshold of scores like "15" or "7.5"."""
        return self.number(int(score)) if score.is_integer() else self.score(score)

    def place(self, zone: str) -> str:
        """Return the name of a time zone's city, like "Wien" for Europe/Vienna."""
        city: str | None = self._locale.time_zones.get(zone, {}).get("city")
        return city or zone.partition("/")[2].replace("_", " ").replace("/", " – ") or zone

    def size(self, size_bytes: int) -> str:
        """Return a size like "12 kB"."""
        if size_bytes < 1000:
            # The short form is "84 byte" in English.
            return format_unit(size_bytes, "digital-byte", "long", format="0", locale=self._locale)
        if size_bytes < 999_500:
            number, unit, pattern = size_bytes / 1000, "kilobyte", "0"
        else:
            number, unit, pattern = size_bytes / 1e6, "megabyte", "#,##0.0"
        return format_unit(number, f"digital-{unit}", "short", format=pattern, locale=self._locale)


@cache
def get(tag: str) -> Language:
    """Return the language of one of `TAGS`."""
    return _make_language(tag, _shipped_translations(tag))


def of_site(tag: str, folder: Path) -> tuple[Language, list[tuple[str, str]]]:
    """Return (language, problems): a language whose texts the site may override in a folder like `LOCALE`.

    A problem is (file name, sentence). Texts with problems are not used.
    """
    path, shipped = po_file(folder, tag), get(tag)
    if not path.is_file():
        return shipped, []
    name = path.relative_to(folder.parent).as_posix()
    try:
        catalogue = read_catalogue(path, tag)
    except (OSError, ValueError) as error:
        return shipped, [(name, f"cannot be read: {error}")]
    found = list(faults(catalogue))
    for entry, _ in found:
        catalogue.delete(entry.id, entry.context)
    own = _compiled(catalogue)
    own.add_fallback(shipped.translations)
    return _make_language(tag, own), [(name, f"line {entry.lineno}: {fault}") for entry, fault in found]


def _make_language(tag: str, translations: NullTranslations) -> Language:
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
        _short_day=formats.datetime_skeletons["MMMd"].pattern,
        _day=formats.date_formats["full"].pattern,
        _date=formats.date_formats["medium"].pattern,
        _time=hours,
        _decimal_point=get_decimal_symbol(formats),
    )


def own_name(tag: str) -> str:
    """Return the name of a language in that language."""
    name = _locale(tag).get_display_name() or tag
    return name[:1].upper() + name[1:]


def negotiated(accept_language: str, default: str) -> str:
    """Return the tag that matches a browser's Accept-Language best (RFC 9110, 12.5.4), else ``default``.

    "de-AT" gets German, and "pt" gets Brazilian Portuguese: a related language is better than English.
    """
    wanted: list[tuple[float, str]] = []
    for part in accept_language[:1000].split(","):
        if match := _RANGE.fullmatch(part):
            wanted.append((float(match[2] or 1), match[1].lower()))
    for quality, name in sorted(wanted, key=lambda pair: -pair[0]):
        if quality == 0 or name == "*":
            break
        matching = [tag for tag in TAGS if tag.lower() == name] or [
            tag for tag in TAGS if _primary_subtag(tag) == _primary_subtag(name)
        ]
        if matching:
            return matching[0]
    return default


def _primary_subtag(tag: str) -> str:
    return tag.partition("-")[0]


def _locale(tag: str) -> Locale:
    return Locale.parse(tag, sep="-")


# ---- catalogues


def po_file(folder: Path, tag: str) -> Path:
    """Return the path of a language's .po file."""
    return folder / tag.replace("-", "_") / "LC_MESSAGES" / "quarantine.po"


def read_catalogue(path: Path, tag: str) -> Catalog:
    """Read a .po file. Raises OSError, and ValueError for an invalid file."""
    try:
        with path.open("rb") as file:
            return read_po(file, locale=_locale(tag), abort_invalid=True)
    except (PoFileError, UnknownLocaleError) as error:
        raise ValueError(str(error)) from error


def _shipped_translations(tag: str) -> NullTranslations:
    # The texts themselves are English. Only a site may have an English catalogue, to override them.
    return NullTranslations() if tag == TAGS[0] else _compiled(read_catalogue(po_file(LOCALE, tag), tag))


def _compiled(catalogue: Catalog) -> GNUTranslations:
    file = BytesIO()
    write_mo(file, catalogue)  # leaves out fuzzy and untranslated entries
    file.seek(0)
    return GNUTranslations(file)


_PLACEHOLDER = re.compile(r"%%|%(?:\((\w+)\)s)?")
_MARKUP = re.compile(r"<[^>]*>?|>|&(?:#?\w+;)?")


def faults(catalogue: Catalog) -> Iterator[tuple[Entry, str]]:
    """Yield (entry, fault) for translations that would break a page or show a wrong text, not for missing ones."""
    for entry in catalogue:
        translated = [entry.string] if isinstance(entry.string, str) else [text or "" for text in entry.string or ()]
        if entry.id and any(translated) and not entry.fuzzy:
            yield from ((entry, fault) for fault in _faults(entry, translated, catalogue))


def _faults(entry: Entry, translated: list[str], catalogue: Catalog) -> Iterator[str]:
    english = entry.id if isinstance(entry.id, str) else entry.id[-1]
    if entry.pluralizable and len(translated) != catalogue.num_plurals:
        yield f"it has {len(translated)} plural forms, not {catalogue.num_plurals}"
        return
    for form, text in enumerate(translated):
        needed, found = _placeholders(english), _placeholders(text)
        if entry.pluralizable and _is_for_one_number(form, catalogue.plural_expr):
            found |= {"%(number)s"} & needed  # "one message" needs no number
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
