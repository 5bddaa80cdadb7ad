"""A site with a mail server, and mass acts that tests begin and run."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from email import message_from_bytes
from email.policy import default
from uuid import UUID, uuid4

import pytest

from digest.housekeeping import run_mass_acts
from digest.run import send_all
from portal.batches.batch import Act
from portal.batches.mass import MassAct, View
from portal.batches.mass_run import MassActs
from portal.model.message import Actor, ActorKind, Filter, Reader, State
from portal.model.staff import EVERYWHERE, Grant, Role
from portal.stores.records import Held, Job
from tests.builders import ALICE, BY_OPERATOR, MALLORY, now
from tests.conftest import MakeParts
from tests.smtp_server import SmtpServer
from tests.web_client import Site

CAROL = "carol@example.net"
BY_STAFF = Actor(ActorKind.OPERATOR, MALLORY, "console", "192.0.2.7")
BY_SHELL = Actor(ActorKind.OPERATOR, "root", "cli")
FOUND = Filter(symbols=("BAYES_SPAM",))
MINUTE = timedelta(minutes=1)


@pytest.fixture
def relay() -> Iterator[SmtpServer]:
    with SmtpServer() as server:
        yield server
        assert server.violations == []


@pytest.fixture
def site(make_parts: MakeParts, relay: SmtpServer) -> Site:
    return Site(make_parts(relay__url=relay.url, mail__url=relay.url, local_domains=("example.org", "example.net")))


def masses(site: Site) -> MassActs:
    return MassActs(site.parts.store, site.parts.actions, site.parts.staff)


def start(site: Site, act: Act = Act.RELEASE, wanted: Filter = FOUND, *, member: str = "") -> Job:
    """Confirm a mass act, and go to the time at which it begins."""
    site.now = now()
    job = masses(site).start(
        MassAct(act, wanted, "symbol=BAYES_SPAM", 3, "Bayes was wrong.", member), BY_STAFF if member else BY_SHELL,
        uuid4(),
    )  # fmt: skip
    site.now += MINUTE
    return job


def run(site: Site, job: Job) -> View:
    run_mass_acts(site.parts, site.now)
    return masses(site).get(job.id)


def states(site: Site, found: list[Held]) -> list[State]:
    return [site.delivery(each).state for each in found]


def hold(site: Site, count: int = 3, **more: object) -> list[Held]:
    return [site.hold(recipients=(ALICE,), subject=f"Offer {n}", **more) for n in range(count)]  # type: ignore[arg-type]


def announced(site: Site) -> set[UUID]:
    """Send all digests now. Return the messages that they announce."""
    found = {each.id for each in site.store.digests.unannounced(Reader(ALICE), 100)}
    sent = send_all(site.parts, site.now).sent
    assert len(sent) == bool(found), sent
    return found


def sent_mails(site: Site) -> list[tuple[str, str]]:
    """Take all mails of the outbox, each with its address and text."""
    found: list[tuple[str, str]] = []
    while True:
        with site.store.outbox.sending(site.now) as mail:
            if mail is None:
                return found
            found.append((mail.to, message_from_bytes(mail.mail, policy=default).get_content()))


def give(site: Site, role: Role, domain: str = EVERYWHERE) -> None:
    site.store.staff.give(Grant(MALLORY, role, domain, site.now, BY_OPERATOR))
