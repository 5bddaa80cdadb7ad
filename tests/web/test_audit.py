"""The acts of recipients on pages in the audit, on both stores."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from portal.assemble import Parts
from portal.model.audit import AuditFilter
from portal.model.links import Action
from tests.builders import ALICE, digesting
from tests.web_client import Site


@pytest.fixture
def site(make_parts: Callable[..., Parts]) -> Site:
    return Site(make_parts())


def entries(site: Site) -> list[tuple[str, str, str]]:
    """Return act, actor and way of all entries, oldest first."""
    found = site.store.audit.list(AuditFilter(), 99)
    assert {each.subject for each in found} <= {ALICE}
    return [(each.act, each.actor.who, each.actor.via) for each in reversed(found)]


def test_preferences_and_signing_out_are_recorded(site: Site) -> None:
    browser = site.signed_in(ALICE)
    form = {"form_token": browser.form_token()}
    for change in ("stop", "resume", "revoke", "save"):
        site.pass_time(seconds=1)
        assert browser.post("/preferences", {**form, "change": change}).status == 303
    site.pass_time(seconds=1)
    browser.post("/sign-out", form)
    assert entries(site) == [
        (act, f"recipient:{ALICE}", "portal")
        for act in ("digests-stopped", "digests-resumed", "links-revoked", "preferences-set", "signed-out")
    ]


def test_the_ends_of_sessions_are_recorded(site: Site) -> None:
    browser = site.signed_in(ALICE)
    form = {"form_token": browser.form_token()}
    browser.post("/sessions", {**form, "end": "others"})  # there are none
    assert entries(site) == []
    browser.post("/sessions", {**form, "end": "all"})
    assert entries(site) == [("signed-out", f"recipient:{ALICE}", "portal")]


def test_what_links_do_is_recorded(site: Site) -> None:
    held = site.hold()
    with digesting(site.store, ALICE, site.now, 50, ignore_schedule=True) as digest:
        pass
    site.pass_time(seconds=5)
    link = site.parts.links.url(Action.PREFERENCES, digest.id, 0, digest.issued_at)
    browser = site.browser()
    for _ in range(2):
        assert browser.request("POST", link, form={"List-Unsubscribe": "One-Click"}).status == 200
    site.pass_time(seconds=1)
    assert browser.post(link, {"change": "resume"}).status == 303
    site.pass_time(seconds=1)
    assert browser.post(site.link(Action.DELETE, held), {"pressed": "1"}).status == 303
    assert entries(site) == [
        ("digests-stopped", f"recipient:{ALICE}", "one-click"),
        ("digests-resumed", f"recipient:{ALICE}", "link"),
        ("deleted", f"recipient:{ALICE}", "link"),
    ]
