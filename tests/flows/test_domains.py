"""Two companies on one portal: each sees its own values, and nothing of the other."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from pathlib import Path

import pytest

from digest import housekeeping, news, run
from portal.model.links import Action
from portal.model.message import Actor, ActorKind, Tier
from portal.stores.records import Held
from tests.conftest import MakeParts
from tests.smtp_server import SmtpServer
from tests.web_client import Answer, Site

ALICE, BOB = "alice@apples.example", "bob@pears.example"
SETTINGS = """
    local_domains = ["apples.example", "pears.example"]
    [mail]
    from_address = "quarantine@provider.example"
    admin_address = "postmaster@provider.example"
    [site]
    name = "Provider"
    [domains."apples.example"]
    name = "Apple Growers"
    from_address = "quarantine@mail.apples.example"
    admin_address = "it@apples.example"
    language = "de"
    at = "07:00"
    timezone = "Europe/Berlin"
    [domains."pears.example"]
    name = "Pear Growers"
    from_address = "held@pears.example"
    admin_address = "helpdesk@pears.example"
    at = "18:30"
    timezone = "America/New_York"
"""
APPLES, PEARS = ("Apple Growers", "apples.example"), ("Pear Growers", "pears.example")


@pytest.fixture
def smtp() -> Iterator[SmtpServer]:
    with SmtpServer() as server:
        yield server


@pytest.fixture
def site(make_parts: MakeParts, smtp: SmtpServer, tmp_path: Path) -> Site:
    (tmp_path / "quarantine.toml").write_text(SETTINGS)
    return Site(make_parts(**overrides(smtp)))


def overrides(smtp: SmtpServer) -> dict[str, str]:
    return {
        "local_domains": "apples.example,pears.example",
        "mail__from_address": "quarantine@provider.example",
        "relay__url": smtp.url,
        "mail__url": smtp.url,
    }


def mails_to(smtp: SmtpServer, address: str) -> list[EmailMessage]:
    return [message_from_bytes(m.data, policy=default) for m in smtp.mails if m.recipients == [address]]


def texts(mail: EmailMessage) -> str:
    """Return all header fields and all texts of a mail, decoded."""
    parts = [part.get_content() for part in mail.walk() if part.get_content_maintype() == "text"]
    return "\n".join([*(f"{name}: {value}" for name, value in mail.items()), *parts])


def send_all(site: Site) -> None:
    """Send what the digest process sends until tomorrow."""
    news.schedule_news(site.parts, site.now)
    housekeeping.send_queued(site.parts, site.now)
    site.now += timedelta(days=1, hours=1)
    assert not run.send_due(site.parts, site.now).failed


def pages_of(site: Site, held: Held, recipient: str) -> list[Answer]:
    """Return the pages that a recipient can see: signed in, by the links of a digest, and error pages."""
    browser, strangers = site.signed_in(recipient), site.browser()
    id = str(held.id)
    paths = ["/", "/?state=deleted", f"/messages/{id}/", f"/messages/{id}/sender", "/rules", "/preferences"]
    paths += [f"/messages/{id[:-1]}0/", "/messages/x"]
    number = [d.recipient for d in site.store.deliveries.of_message(held.id)].index(recipient)
    links = [site.link(action, held, number) for action in (Action.SHOW, Action.RELEASE, Action.DELETE)]
    found = [browser.get(path) for path in paths] + [strangers.get(link) for link in links]
    return [*found, browser.post("/preferences", {"change": "x"}), browser.post("/preferences", {"form_token": "x"})]


def test_each_domain_has_its_own_name_sender_language_and_hours(site: Site, smtp: SmtpServer) -> None:
    site.hold(recipients=(ALICE, BOB))
    send_all(site)
    [to_alice], [to_bob] = mails_to(smtp, ALICE), mails_to(smtp, BOB)
    assert to_alice["From"] == "Apple Growers <quarantine@mail.apples.example>"
    assert to_bob["From"] == "Pear Growers <held@pears.example>"
    assert "zurückgehalten" in texts(to_alice) and "Times are in America/New York" in texts(to_bob)
    plans = [site.parts.domains.plan(who, site.store.recipients.get(who).preferences) for who in (ALICE, BOB)]
    assert [(plan.at[0].hour, plan.zone.key) for plan in plans] == [(7, "Europe/Berlin"), (18, "America/New_York")]


def test_a_release_request_goes_to_the_administrator_of_the_domain(site: Site, smtp: SmtpServer) -> None:
    held = site.hold(recipients=(ALICE, BOB), tier=Tier.DANGEROUS)
    site.parts.actions.request_release(held.id, 0, Actor(ActorKind.RECIPIENT))
    site.parts.actions.request_release(held.id, 1, Actor(ActorKind.RECIPIENT))
    housekeeping.send_queued(site.parts, site.now)
    assert sorted(mail.recipients[0] for mail in smtp.mails) == ["helpdesk@pears.example", "it@apples.example"]
    [to_admin] = mails_to(smtp, "it@apples.example")
    assert to_admin["From"] == "Apple Growers <quarantine@mail.apples.example>"


@pytest.mark.parametrize(("recipient", "others"), [(ALICE, PEARS), (BOB, APPLES)])
def test_a_company_never_sees_anything_of_another(
    site: Site, smtp: SmtpServer, recipient: str, others: tuple[str, ...]
) -> None:
    held = site.hold(recipients=(ALICE, BOB))
    dangerous = site.hold(recipients=(ALICE, BOB), tier=Tier.DANGEROUS)
    actor = Actor(ActorKind.OPERATOR, "root", "cli")
    for number in (0, 1):
        site.parts.actions.request_release(dangerous.id, number, Actor(ActorKind.RECIPIENT))
    housekeeping.send_queued(site.parts, site.now)
    for number in (0, 1):
        site.parts.actions.refuse_request(dangerous.id, number, actor, "It has a virus")
    for who in (ALICE, BOB):
        site.browser().post("/sign-in", {"address": who})
    send_all(site)
    digest = site.store.digests.last(recipient)
    assert digest is not None
    site.parts.store.recipients.set_digests_stopped(recipient, None)
    link = site.parts.links.token(Action.PREFERENCES, digest.id, 0, site.now)
    site.browser().request("POST", f"/link/{link}/", form={"List-Unsubscribe": "One-Click"})
    housekeeping.send_queued(site.parts, site.now)
    answers = pages_of(site, held, recipient)
    shown = [
        *(answer.text for answer in answers),
        *(f"{name}: {value}" for answer in answers for name, value in answer.headers),
    ]
    domain = recipient.partition("@")[2]
    sent = [texts(message_from_bytes(m.data, policy=default)) for m in smtp.mails if m.recipients[0].endswith(domain)]
    assert len(sent) == 5  # digest, sign-in link, request, denial, end of digests
    for text in [*shown, *sent]:
        for word in (*others, "provider.example", "Provider"):
            assert word not in text, (word, text)
    own = APPLES[0] if recipient == ALICE else PEARS[0]
    assert all(own in text for text in sent)
    assert all(own in answer.text for answer in answers if answer.body)
