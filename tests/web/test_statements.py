"""At most five statements for each page of a recipient, on both stores."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from portal.assemble import Parts
from portal.model.links import Action
from portal.model.message import Tier
from tests.builders import ALICE, BOB, digesting, rule
from tests.statements import Statements
from tests.web_client import Site

MIXED = (
    b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\nContent-Type: text/html\r\n\r\n<p>Offers\r\n"
    b"--b\r\nContent-Type: application/pdf; name=offer.pdf\r\n\r\n%PDF-1.4\r\n--b--\r\n"
)
LISTS = (
    *("", "?q=offer", "?q=absent", "?sender=absent", "?order=likely", "?state=all", "?state=released&size=100"),
    "?select=matching",
)
# The index of terms is read from the newest day to older ones, until a page is full. Without a match the other states
# are searched as well.
SEARCHES = ("?q=offer&sender=example.net&tier=spam&since=2020-01-01", "?q=offer&attachment=1", "?tier=dangerous")
FEW, SEARCHING = 5, 10
MESSAGES = ("", "formatted", "headers", "source", "html", "sender", "download")
OTHERS = ("preferences", "preferences?zones=all", "sessions", "rules", "rules?q=b", "sign-in")


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> Statements:
    return Statements(monkeypatch)


@pytest.fixture
def site(statements: Statements, make_parts: Callable[..., Parts]) -> Site:
    return Site(make_parts())


@pytest.mark.parametrize("path", [*LISTS, *SEARCHES, *OTHERS])
def test_pages_of_a_recipient_take_few_statements(site: Site, statements: Statements, path: str) -> None:
    for number in range(60):
        site.hold(subject=f"Offer {number * 7919}", header_from=f"<a@n{number}.example.net>", recipients=(ALICE, BOB))
    site.store.rules.add([rule("b.example"), rule("c.example", "allow")], site.now)
    browser = site.signed_in(ALICE)
    browser.get(f"/{path}")  # the first search writes the index of the file store
    with statements.of() as queries:
        assert browser.get(f"/{path}").status == 200
    assert len(queries) <= (SEARCHING if path in SEARCHES else FEW), "\n".join(queries)


@pytest.mark.parametrize("view", MESSAGES)
def test_pages_of_a_message_take_few_statements(site: Site, statements: Statements, view: str) -> None:
    held = site.hold(
        Tier.SPAM if view in ("html", "formatted") else Tier.SUSPICIOUS, data=MIXED, recipients=(ALICE, BOB)
    )
    browser = site.signed_in(ALICE)
    browser.post(f"/messages/{held.id}/delete", {"form_token": browser.form_token()})
    browser.post(f"/messages/{held.id}/restore", {"form_token": browser.form_token()})
    browser = site.signed_in(ALICE)
    with statements.of() as queries:
        assert browser.get(f"/messages/{held.id}/{view}").status == 200
    assert len(queries) <= FEW, "\n".join(queries)


@pytest.mark.parametrize(
    ("action", "most"),
    [(Action.SHOW, FEW), (Action.RELEASE, FEW), (Action.DELETE, FEW), (Action.PREFERENCES, FEW), (Action.SEVERAL, 9)],
)
def test_pages_of_links_take_few_statements(site: Site, statements: Statements, action: Action, most: int) -> None:
    """One of them records that the link was opened, and one reads how often: both count for the rate limit."""
    held = [site.hold(subject=f"Offer {number * 7919}") for number in range(10)]
    with digesting(site.store, ALICE, site.now, 50, ignore_schedule=True) as digest:
        pass
    of = digest.id if action in (Action.SEVERAL, Action.PREFERENCES) else held[0].id
    with statements.of() as queries:
        assert site.browser().get(site.parts.links.url(action, of, 0, digest.issued_at)).status == 200
    assert len(queries) <= most, "\n".join(queries)
