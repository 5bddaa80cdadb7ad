"""Every text is translated into every language, and the translations are valid."""

from __future__ import annotations

from functools import cache
from gettext import c2py

import pytest
from babel import Locale
from babel.messages.catalog import Catalog

from portal.mail.languages import LOCALE, faults, po_file, read_catalogue
from tools import catalogues
from tools.catalogues import TEMPLATE, TRANSLATED, written


@cache
def extracted() -> Catalog:
    """Return all texts. Extracting them takes most of a second, so it is done once."""
    return catalogues.extracted()


def test_the_pot_file_has_the_current_texts() -> None:
    assert TEMPLATE.read_text("utf-8") == written(extracted()), "run: make catalogues"


@pytest.mark.parametrize("tag", TRANSLATED)
def test_every_text_is_translated(tag: str) -> None:
    catalogue = read_catalogue(po_file(LOCALE, tag), tag)
    wanted = {entry.id for entry in extracted() if entry.id}
    there = {entry.id: entry for entry in catalogue if entry.id}
    assert not wanted - set(there), "run: make catalogues, then translate what it left empty"
    assert not set(there) - wanted, "run: make catalogues"
    open_ = [id for id, entry in there.items() if entry.fuzzy or not entry.string or not all(entry.string)]
    assert not open_, f"{len(open_)} without a translation, or with a fuzzy one"


@pytest.mark.parametrize("tag", TRANSLATED)
def test_no_translation_is_broken(tag: str) -> None:
    assert [(entry.id, fault) for entry, fault in faults(read_catalogue(po_file(LOCALE, tag), tag))] == []


@pytest.mark.slow
@pytest.mark.parametrize("tag", TRANSLATED)
def test_plural_forms_are_those_of_cldr(tag: str) -> None:
    """Each form is one category of CLDR and the other way round, for every possible number of messages.

    French, Italian, Spanish and Portuguese have one more, for whole millions."""
    catalogue = read_catalogue(po_file(LOCALE, tag), tag)
    form, category = c2py(catalogue.plural_expr), Locale.parse(tag, sep="-").plural_form
    pairs = {(form(number), category(number)) for number in range(100_000)}
    assert len(pairs) == len(dict(pairs)) == len({name for _, name in pairs}) == catalogue.num_plurals


def test_extraction_covers_every_folder_with_texts() -> None:
    """If a folder of texts were left out, all other tests would still pass."""
    ids = {entry.id for entry in extracted()}
    assert {
        "The text resembles known spam",  # portal/*.py
        "released before",  # digest/*.py
        "No held messages.",  # templates/web
        ("%(number)s held message may be wanted", "%(number)s held messages may be wanted"),  # templates/mail/…/*.txt
        "All links lead to %(host)s. These pages never ask for a password.",  # …/*.html
    } <= ids
