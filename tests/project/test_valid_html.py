"""Tests of the check that all pages pass: it accepts valid HTML and rejects other."""

from __future__ import annotations

import pytest

from tests.valid_html import problems

PAGE = '<!doctype html><html lang="en"><head><title>A</title></head><body><main id="m">{}</main></body></html>'


@pytest.mark.parametrize(
    "content", ["", "<p>A &amp; B</p>", '<label for="a">A</label><input id="a">', '<a href="#m">A</a><a href="#">B</a>']
)
def test_a_valid_page_has_no_problem(content: str) -> None:
    assert problems(PAGE.format(content)) == []


@pytest.mark.parametrize(
    "content",
    [
        "<p>A</b></p>",
        "<p><div>A</div></p>",
        "<table><p>A</p></table>",
        '<form><form action="x"></form></form>',
        '<a href="x"><a href="y">A</a></a>',
        '<i id="m">A</i>',
        '<i id="a" id="b">A</i>',
        '<label for="nothing">A</label>',
        '<ul aria-labelledby="m nothing"></ul>',
        '<a href="#nothing">A</a>',
        "<p>A < B &unknown;</p>",
        "<section>A",
    ],
)
def test_what_is_wrong_is_found(content: str) -> None:
    assert problems(PAGE.format(content))
