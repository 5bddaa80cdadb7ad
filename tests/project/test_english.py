"""`make check-english` finds the words to avoid in prose and nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.english import ROOT, check, files


def found(name: str, text: str) -> list[tuple[int, str]]:
    return [(finding.line, finding.word) for finding in check(Path(name), text)]


@pytest.mark.parametrize(
    "text",
    [
        "x = 1  # it is told here",
        "# it waits for\n# ever",
        '"""A docstring.\n\nIt is told here."""',
        'x = "it is told here"',
        'x = f"it is told {here} again"',
        'x = (\n    "it waits for "\n    "ever"\n)',
        'x: int\n"""It is told here."""',
        'raise ValueError(f"it is told {here}")',
        'x = """\n    alter table a rename to b;\n    -- it is told here\n"""',
    ],
)
def test_comments_docstrings_and_strings_of_python_are_prose(text: str) -> None:
    assert len(found("portal/a.py", text)) == 1


@pytest.mark.parametrize(
    "text",
    [
        "told = meanwhile(anew)",
        'x = "told"',
        'x = f"it is {told} again"',
        "# `told` was renamed, and ``SHUT_RDWR`` stays",
        'x = "select told from meanwhile"',
        'x = "ALTER TABLE told RENAME TO announced_to"',
        'x = """\n    alter table told rename to announced_to;\n"""',
        "import os  # noqa: shall",
        "x = 1  # waits for\nfor ever in y: pass",
    ],
)
def test_code_sql_and_quotations_are_not(text: str) -> None:
    assert not found("portal/a.py", text)


def test_in_tests_strings_are_mail_and_not_prose_unless_they_are_messages() -> None:
    text = 'SUBJECT = "You shall be told"\nassert SUBJECT == "it shall", f"it shall be {SUBJECT}"  # it shall\n'
    assert found("portal/a.py", text) == [(1, "shall"), (1, "told"), (2, "shall"), (2, "shall"), (2, "shall")]
    assert found("tests/a.py", text) == [(2, "shall"), (2, "shall")]


@pytest.mark.parametrize("word", ["What", "Who", "Whose", "Whom", "Whether", "Where", "Which", "How", "When"])
def test_a_docstring_begins_with_a_verb_or_a_noun(word: str) -> None:
    assert found("portal/a.py", f'def f():\n    """{word} it is."""') == [(2, f"{word} …")]
    assert not found("portal/a.py", f'def f():\n    """Return it. {word} it is."""\n    # {word} it is.\n')


def test_templates_are_prose_without_their_code() -> None:
    text = (
        '<p class="told" title="you shall">{# it is told #}{{ row.told }}{% if told %}it was told{% endif %}\n'
        '{{ _("Whoever") }} {% trans meanwhile=told %}anew{% endtrans %}'
    )
    assert sorted(found("templates/a.html", text)) == [
        *((1, "shall"), (1, "told"), (1, "told")),
        *((2, "Whoever"), (2, "anew")),
    ]


def test_markdown_is_prose_but_for_quotations_in_backticks() -> None:
    assert found("docs/a.md", "It was told\n`not told` and made\nanew, for\never.") == [
        (1, "told"),
        (3, "anew"),
        (3, "for ever"),
    ]


@pytest.mark.parametrize(("name", "mark"), [("a.sql", "--"), ("a.ini", "#"), ("Makefile", "#"), ("a.lua", "--")])
def test_comments_of_other_files_are_prose(name: str, mark: str) -> None:
    assert found(name, f"told = anew\n{mark} it is told\nx {mark} anew\n") == [(2, "told"), (3, "anew")]


@pytest.mark.parametrize(
    "sentence",
    [
        "It runs behind a proxy.",
        "It runs behind the shipped Nginx.",
        "Many people behind one company's NAT share an address.",
        "The upgrade waits behind a long transaction.",
        "By a clock that is an hour behind the mail is old.",
        "The two cannot be told apart.",
        "The letter Ø stands for a diameter.",
        "It is empty when there is none.",
        "The date is None before the release.",
        "It cannot be sent.",
        "It means none of the messages.",
        "If it happens again, tell your administrator.",
        'The line {"kind": "told"} has an old name.',
    ],
)
def test_words_in_their_proper_sense_are_let_through(sentence: str) -> None:
    assert not found("docs/a.md", sentence)


@pytest.mark.parametrize(
    ("sentence", "word"),
    [
        ("The tag is behind the mail.", "behind"),
        ("That is nobody's business.", "nobody's business"),
        ("That is a riddle.", "riddle"),
        ('The "riddle of it" is solved.', "riddle"),
        ("Whoever reads it.", "Whoever"),
        ("So and so many of them.", "So and so many"),
        ("A digest of before.", "of before"),
        ("It is none of ours.", "none of ours"),
        ("An address that is none.", "is none"),
        ("The file that is there.", "that is there"),
        ("A host name in it cannot be: look for dots.", "cannot be"),
        ("The page tells of it.", "tells"),
        ("The text stands in the head.", "stands"),
        ("The file lies beside it.", "lies beside"),
        ("Meanwhile it goes on.", "Meanwhile"),
    ],
)
def test_words_to_avoid_are_found(sentence: str, word: str) -> None:
    assert found("docs/a.md", sentence) == [(1, word)]


def test_every_package_is_checked_and_translations_are_not() -> None:
    names = {path.as_posix() for path in files()}
    assert {
        *("portal/__init__.py", "portal/stores/files/store.py", "digest/run.py", "tests/faults/victim.py"),
        *("bench/bare.py", "tools/demo.py", "deploy/nginx/quarantine.conf", "tools/english.py", "quarantine.sql"),
        *("templates/web/list.html", "templates/mail/digest/body.txt", "templates/web/static/link.js", "uwsgi.ini"),
        *("docs/operate.md", "docs/decisions/links.md", "README.md", "CHANGELOG.md", "Makefile", ".ci/run"),
    } <= names
    assert not {name for name in names if name.endswith((".po", ".pot", ".png")) or "data" in name.split("/")}
    assert all((ROOT / name).is_file() for name in names)
