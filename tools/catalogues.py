"""Write quarantine.pot from the code and the templates, and update the catalogues: ``make catalogues``.

Run it after a text was added, changed or removed. New texts have no translation yet; removed ones are taken out of the
catalogues. tests/mail/test_translations.py compares.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path

from babel import Locale
from babel.messages import Catalog
from babel.messages.extract import DEFAULT_KEYWORDS, extract_from_file
from babel.messages.pofile import write_po

from portal.mail.languages import LOCALE, po_file, read_catalogue
from portal.model.text import TAGS

ROOT = Path(__file__).resolve().parents[1]
TEMPLATE = LOCALE / "quarantine.pot"
TRANSLATED = TAGS[1:]  # all but English
WIDTH = 110
HEADER = """\
# Texts of the quarantine portal. docs/translate.md says how this file is made and used."""
JINJA = {"trim_blocks": "true", "lstrip_blocks": "true", "silent": "false"}  # as in portal/mail/render.py


def sources() -> Iterator[tuple[str, str, dict[str, str]]]:
    """Yield the files that may have texts, the extraction method of each, and its options."""
    for folder in ("portal", "digest"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path.relative_to(ROOT).as_posix(), "python", {}
    for path in sorted((ROOT / "templates").rglob("*.*")):
        if path.suffix in (".html", ".txt"):
            yield path.relative_to(ROOT).as_posix(), "jinja2.ext:babel_extract", JINJA


def extracted() -> Catalog:
    """Return all texts of the code and the templates."""
    catalogue = Catalog(header_comment=HEADER, project="quarantine", charset="utf-8")
    keywords = {**DEFAULT_KEYWORDS, "N_": None}
    for name, method, options in sources():
        for _, text, comments, context in extract_from_file(
            method, str(ROOT / name), keywords=keywords, comment_tags=("Translators:",), options=options
        ):
            catalogue.add(text, locations=[(name, 0)], auto_comments=comments, context=context)
    return catalogue


def written(catalogue: Catalog) -> str:
    """Return a catalogue as a file without dates and line numbers, so that it changes only with its texts."""
    file = io.BytesIO()
    write_po(file, catalogue, width=WIDTH, include_lineno=False, ignore_obsolete=True)
    dated = r'"(POT-Creation-Date|PO-Revision-Date|Generated-By|Report-Msgid-Bugs-To|Project-Id-Version): .*\n'
    text = re.sub(dated, "", file.getvalue().decode("utf-8"))
    return re.sub(r'"(Last-Translator|Language-Team): .*\n', "", text).replace('#, fuzzy\nmsgid ""', 'msgid ""')


def update(tag: str, template: Catalog) -> None:
    """Update the .po file of a language to the texts of the template."""
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
    """Write the template and all catalogues."""
    template = extracted()
    LOCALE.mkdir(exist_ok=True)
    TEMPLATE.write_text(written(template), "utf-8")
    for tag in TRANSLATED:
        update(tag, template)


if __name__ == "__main__":
    main()
