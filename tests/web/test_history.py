"""The history on the page of a message: a sentence for each event."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from zoneinfo import ZoneInfo

import pytest

from portal.assemble import Parts
from portal.model.message import Actor, ActorKind, DeliveryId, Event, EventKind, State
from portal.stores.records import Held
from tests.builders import ALICE, BY_LINK, BY_OPERATOR
from tests.smtp_server import SmtpServer
from tests.web_client import Site

BY_ALICE = Actor(ActorKind.RECIPIENT, via="portal", address="192.0.2.7")


@pytest.fixture
def store_url(files_url: str) -> str:
    """A single store: the pages show the same on all stores."""
    return files_url


@pytest.fixture
def relay() -> Iterator[SmtpServer]:
    with SmtpServer() as server:
        yield server


@pytest.fixture
def site(make_parts: Callable[..., Parts], relay: SmtpServer) -> Site:
    return Site(make_parts(relay__url=relay.url))


def lines(site: Site, held: Held) -> list[str]:
    """Return the history as text, without the times at which the lines begin."""
    page = site.signed_in(ALICE).get(f"/messages/{held.id}/").text
    [listed] = re.findall('<ol class="history">(.*?)</ol>', page, re.DOTALL)
    found = re.findall("<li>(.*?)</li>", listed, re.DOTALL)
    return [html.unescape(re.sub("<[^>]*>", "", line)).partition(": ")[2] for line in found]


def record(site: Site, held: Held, kind: EventKind, actor: Actor = BY_ALICE, detail: str = "") -> None:
    site.pass_time(minutes=1)
    site.store.deliveries.record(DeliveryId(held.id, 0), Event(site.now, kind, actor, detail))


def test_each_event_is_a_sentence_that_says_who_did_it(site: Site, relay: SmtpServer) -> None:
    held, actions = site.hold(), site.parts.actions
    actions.delete(held.id, 0, BY_OPERATOR)
    actions.restore(held.id, 0, BY_ALICE)
    actions.request_release(held.id, 0, BY_ALICE)
    actions.refuse_request(held.id, 0, BY_OPERATOR, 'No "invoices" <b>here</b>\u202e')
    relay.script["RCPT"] = "554 5.7.1 <script>no</script>"
    browser = site.signed_in(ALICE)
    browser.post(f"/messages/{held.id}/release", {"form_token": browser.form_token()})
    relay.script.clear()
    actions.release(held.id, 0, BY_LINK)
    said = lines(site, held)
    assert [line for line in said if "554" not in line and "250" not in line] == [
        "Held by the spam filter.",
        "Deleted by an administrator.",
        "Deletion undone by you.",
        "Release requested by you.",
        'Release request denied by an administrator. No "invoices" <b>here</b>',
        "Release started by you.",
        "Release started through a link in a digest.",
    ]
    assert said[6].startswith("Release failed. ") and "554 5.7.1 <script>no</script>" in said[6]
    assert said[8].startswith("Delivered by the mail server. 250")


def test_downloads_do_not_push_out_other_events(site: Site) -> None:
    held = site.hold()
    for number in range(120):
        record(site, held, EventKind.DOWNLOADED, detail="message" if number % 2 else f"attachment {number}")
    site.parts.actions.delete(held.id, 0, BY_ALICE)
    for _ in range(60):
        record(site, held, EventKind.DOWNLOADED, detail="message")
    last = site.parts.render.language_for("en").moment(site.now, ZoneInfo("UTC"))
    assert [line.partition(", the last one")[0] for line in lines(site, held)] == [
        "Held by the spam filter.",
        "Attachment downloaded by you. 60 times",
        "Message downloaded by you. 60 times",
        "Deleted by you.",
        "Message downloaded by you. 60 times",
    ]
    assert lines(site, held)[-1].endswith(f"the last one on {last}")


def test_what_the_mail_server_says_about_the_portal_is_for_operators(site: Site, relay: SmtpServer) -> None:
    held = site.hold()
    relay.script["MAIL"] = "454 4.7.1 relay 10.0.0.7 does not know you"
    browser = site.signed_in(ALICE)
    browser.post(f"/messages/{held.id}/release", {"form_token": browser.form_token()})
    assert site.state(held) is State.RELEASING
    site.now += timedelta(hours=1)
    page = site.signed_in(ALICE).get(f"/messages/{held.id}/").text
    assert "Not delivered yet. The release is tried again automatically." in page
    assert "10.0.0.7" not in page
