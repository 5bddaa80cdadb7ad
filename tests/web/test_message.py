"""The page of a message: what is above its text."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from uuid import UUID

import pytest

from portal.assemble import Parts
from portal.model.message import DeliveryId, EventKind, Start, State, Symbol, Tier
from tests.builders import ALICE, BY_OPERATOR, rule
from tests.web_client import Site


@pytest.fixture
def store_url(files_url: str) -> str:
    """A single store: these pages show the same on all stores."""
    return files_url


@pytest.fixture
def site(make_parts: Callable[..., Parts]) -> Site:
    return Site(make_parts())


def words(site: Site, id: UUID) -> str:
    """Return what the page says, as text in one line."""
    page = site.signed_in(ALICE).get(f"/messages/{id}/").text
    return " ".join(html.unescape(re.sub("<[^>]*>", " ", page[page.index("<main") :])).split())


@pytest.mark.parametrize(
    ("symbols", "said"),
    [
        (("DMARC_POLICY_ALLOW",), "Proven by DMARC for example.net"),
        (("R_DKIM_ALLOW", "example.net:s=key"), "Proven by DKIM for example.net"),
        (("R_DKIM_ALLOW", "other.example:s=key"), "Not proven: anyone can write this address"),
        (("R_SPF_ALLOW",), "Not proven: anyone can write this address"),
    ],
)
def test_the_page_says_whether_the_sender_is_proven(site: Site, symbols: tuple[str, ...], said: str) -> None:
    proof = Symbol(symbols[0], -0.5, symbols[1:])
    held = site.hold(header_from="Shop <orders@mail.example.net>", from_count=1, symbols=(proof,))
    assert f"Shop orders@mail.example.net {said}" in words(site, held.id)


def test_a_sender_with_a_warning_gets_no_sign_of_trust(site: Site) -> None:
    dmarc = (Symbol("DMARC_POLICY_ALLOW", -0.5),)
    held = site.hold(header_from='"pat@bank.example" <x@example.net>', from_count=1, symbols=dmarc)
    page = site.signed_in(ALICE).get(f"/messages/{held.id}/").text
    assert "Proven by DMARC for example.net" in page and 'class="proven"' not in page
    main = page[page.index("<main") :]
    assert main.index("a different address") < main.index("<button")


def test_what_releasing_does_stands_above_the_buttons_and_they_above_the_text(site: Site) -> None:
    held = site.hold(data=b"Subject: x\r\n\r\nThe words of the message\r\n", subject="The only subject")
    said = words(site, held.id)
    places = [
        said.index(each)
        for each in ("The only subject", "Held on", "Releasing sends it to your inbox.", "Delete", "The words of")
    ]
    assert places == sorted(places)


def test_what_releasing_does_is_said_of_blocked_messages_too(site: Site) -> None:
    held = site.hold(recipients=(ALICE,), starts={ALICE: Start(State.BLOCKED, rule("example.net").as_actor)})
    said = words(site, held.id)
    assert 0 < said.index("Releasing sends it to your inbox.") < said.index("Release :")


@pytest.mark.parametrize("tier", list(Tier))
@pytest.mark.parametrize("right", ["self", "request", "administrator"])
def test_one_box_has_all_cautions(make_parts: Callable[..., Parts], tier: Tier, right: str) -> None:
    """The graver one; what it leaves out of the sender's warning is among the reasons."""
    rights = {"release_spam": right, "release_suspicious": right, "release_dangerous": right}
    site = Site(make_parts(domains={"example.org": rights}))
    macro = (Symbol("OLETOOLS", 5.0),)
    held = site.hold(tier, header_from='"pat@bank.example" <x@example.net>', from_count=1, symbols=macro)
    page = site.signed_in(ALICE).get(f"/messages/{held.id}/").text
    main = page[page.index("<main") :]
    above = main[: main.index("<button")]
    assert len(re.findall(r'class="(?:warning|state)', above)) == 1
    assert ("pat@bank.example" in above) and ("misleading sender name" in above or "different address" in above)
    assert ("suspicious macro" in above) or tier is Tier.DANGEROUS
    assert "The display name shows a different address than the real sender" in main
    if tier is Tier.SUSPICIOUS and right == "self":
        assert "misleading sender name · suspicious macro. Release it only if you expected it." in above


@pytest.mark.parametrize(
    ("tier", "state"),
    [
        (Tier.SUSPICIOUS, State.HELD),
        (Tier.SUSPICIOUS, State.RELEASED),  # can be sent again
        (Tier.DANGEROUS, State.HELD),
        (Tier.DANGEROUS, State.REQUESTED),
    ],
)
def test_the_caution_stands_before_any_button(site: Site, tier: Tier, state: State) -> None:
    held = site.hold(tier)
    if state is not State.HELD:
        kind = {State.RELEASED: EventKind.RELEASED, State.REQUESTED: EventKind.REQUESTED}[state]
        site.store.deliveries.move(DeliveryId(held.id, 0), state, set(State), BY_OPERATOR, site.now, kind=kind)
    page = site.signed_in(ALICE).get(f"/messages/{held.id}/").text
    main = page[page.index("<main") :]
    assert main.index('class="warning"') < main.index("<button")
    assert ("Releasing sends" in page) == ((tier, state) == (Tier.SUSPICIOUS, State.HELD))
