"""Every text is translated into every language, and nothing is broken by it.

``python -m tests.test_translations`` looks through code and templates, writes `quarantine.pot` again and brings the
.po files up to it: what is new has no translation yet, what is gone is taken out.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from gettext import c2py
from pathlib import Path

import pytest
from babel import Locale
from babel.messages import Catalog
from babel.messages.extract import DEFAULT_KEYWORDS, extract_from_file
from babel.messages.pofile import write_po

from portal.mail.languages import LOCALE, faults, po_file, read_catalogue
from portal.model.text import TAGS

ROOT = Path(__file__).resolve().parents[1]
TEMPLATE = LOCALE / "quarantine.pot"
TRANSLATED = TAGS[1:]
WIDTH = 110
HEADER = """\
# Texts of the quarantine portal. docs/translate.md says how this file is made and used."""
JINJA = {"trim_blocks": "true", "lstrip_blocks": "true", "silent": "false"}  # as in portal/mail/render.py


def sources() -> Iterator[tuple[str, str, dict[str, str]]]:
    """Files that may hold texts, and how they are read."""
    for folder in ("portal", "digest"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path.relative_to(ROOT).as_posix(), "python", {}
    for path in sorted((ROOT / "templates").rglob("*.*")):
        if path.suffix in (".html", ".txt"):
            yield path.relative_to(ROOT).as_posix(), "jinja2.ext:babel_extract", JINJA


def extracted() -> Catalog:
    """All texts as they stand in code and templates."""
    catalogue = Catalog(header_comment=HEADER, project="quarantine", charset="utf-8")
    keywords = {**DEFAULT_KEYWORDS, "N_": None}
    for name, method, options in sources():
        for _, text, comments, context in extract_from_file(
            method, str(ROOT / name), keywords=keywords, comment_tags=("Translators:",), options=options
        ):
            catalogue.add(text, locations=[(name, 0)], auto_comments=comments, context=context)
    return catalogue


def written(catalogue: Catalog) -> str:
    """A catalogue as a file: without dates and line numbers, which change for no reason."""
    file = io.BytesIO()
    write_po(file, catalogue, width=WIDTH, include_lineno=False, ignore_obsolete=True)
    dated = r'"(POT-Creation-Date|PO-Revision-Date|Generated-By|Report-Msgid-Bugs-To|Project-Id-Version): .*\n'
    text = re.sub(dated, "", file.getvalue().decode("utf-8"))
    return re.sub(r'"(Last-Translator|Language-Team): .*\n', "", text).replace('#, fuzzy\nmsgid ""', 'msgid ""')


def update(tag: str, template: Catalog) -> None:
    """Bring the .po file of a language up to the texts there are."""
    path = po_file(LOCALE, tag)
    there = read_catalogue(path, tag) if path.exists() else Catalog(Locale.parse(tag, sep="-"))
    new = Catalog(there.locale, header_comment=HEADER, charset="utf-8")
    new.mime_headers = [("Plural-Forms", there.plural_forms)]
    for entry in template:
        if entry.id:
            old = there.get(entry.id, entry.context)
            string, flags = (old.string, old.flags) if old else ("", ())
            new.add(entry.id, string, entry.locations, flags, entry.auto_comments, context=entry.context)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(written(new), "utf-8")


def main() -> None:
    template = extracted()
    LOCALE.mkdir(exist_ok=True)
    TEMPLATE.write_text(written(template), "utf-8")
    for tag in TRANSLATED:
        update(tag, template)


# ---- the tests


def test_the_pot_file_has_the_texts_that_there_are() -> None:
    assert TEMPLATE.read_text("utf-8") == written(extracted()), "run: python -m tests.test_translations"


@pytest.mark.parametrize("tag", TRANSLATED)
def test_every_text_is_translated(tag: str) -> None:
    catalogue = read_catalogue(po_file(LOCALE, tag), tag)
    wanted = {entry.id for entry in extracted() if entry.id}
    there = {entry.id: entry for entry in catalogue if entry.id}
    assert not wanted - set(there), "run: python -m tests.test_translations, then translate what it left empty"
    assert not set(there) - wanted, "run: python -m tests.test_translations"
    open_ = [id for id, entry in there.items() if entry.fuzzy or not entry.string or not all(entry.string)]
    assert not open_, f"{len(open_)} without a translation, or with a fuzzy one"


@pytest.mark.parametrize("tag", TRANSLATED)
def test_no_translation_is_broken(tag: str) -> None:
    assert [(entry.id, said) for entry, said in faults(read_catalogue(po_file(LOCALE, tag), tag))] == []


@pytest.mark.parametrize("tag", TRANSLATED)
def test_plural_forms_are_those_of_cldr(tag: str) -> None:
    """Each form stands for one category of CLDR and the other way round, for as many mails as there may be.

    French, Italian, Spanish and Portuguese have one more, for whole millions."""
    catalogue = read_catalogue(po_file(LOCALE, tag), tag)
    form, category = c2py(catalogue.plural_expr), Locale.parse(tag, sep="-").plural_form
    pairs = {(form(number), category(number)) for number in range(100_000)}
    assert len(pairs) == len(dict(pairs)) == len({name for _, name in pairs}) == catalogue.num_plurals


def test_extraction_sees_every_folder_that_speaks() -> None:
    """Were a folder of texts left out, all of the above would be green."""
    ids = {entry.id for entry in extracted()}
    assert {
        "The text resembles known spam",  # portal/*.py
        "You have released messages from this sender before",  # digest/*.py
        "No held messages.",  # templates/web
        ("%(number)s message held for you", "%(number)s messages held for you"),  # templates/mail/…/*.txt
        "All links lead to %(host)s. These pages never ask for a password.",  # …/*.html
    } <= ids


if __name__ == "__main__":
    main()
