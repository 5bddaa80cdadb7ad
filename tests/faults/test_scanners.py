"""Scanners at the links of a real digest, over HTTP: nothing happens before a person presses."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import pytest

from digest import run
from portal.assemble import Parts
from portal.model.links import Action
from portal.model.message import DeliveryId, State, Tier
from tests.builders import hold, now
from tests.conftest import MakeParts
from tests.faults.conftest import Report, Serve
from tests.faults.scanners import BY_A_PERSON, CLICKERS, READERS, Client
from tests.faults.test_digest_kills import read
from tests.faults.test_kills import full
from tests.smtp_server import Mail, SmtpServer


@pytest.fixture
def server() -> Iterator[SmtpServer]:
    with SmtpServer() as running:
        yield running


def links_of(mail: Mail) -> list[str]:
    """Every address in a digest: text, HTML and header, each once."""
    parsed = read(mail)
    found = [str(parsed["List-Unsubscribe"] or "")]
    for kind in ("plain", "html"):
        part = parsed.get_body((kind,))
        assert part is not None
        found.append(part.get_content())
    return list(dict.fromkeys(re.findall(r"http://127\.0\.0\.1:8080/quarantine/[^\s\"<>]*", " ".join(found))))


Announced = tuple[str, dict[Tier, list[UUID]], list[str]]


def tell(parts: Parts, server: SmtpServer, person: str, minutes_old: float) -> Announced:
    """A digest of that age for this person: two mails of each tier, by tier, and all its links."""
    held = {
        tier: [
            hold(parts.store, recipients=[person], tier=tier, header_from=f"{tier}{n}@example.net").id for n in (0, 1)
        ]
        for tier in Tier
    }
    run.send_all(parts, now() - timedelta(minutes=minutes_old), recipient=person)
    assert server.mails[-1].recipients == [person]
    return person, held, links_of(server.mails[-1])


def changed(parts: Parts, told: Announced) -> Counter[str]:
    """What is no longer as it was after the digest: mails by their tier, and wishes."""
    who, held, _ = told
    found = Counter(
        str(tier)
        for tier, ids in held.items()
        for id in ids
        if parts.store.deliveries.get(DeliveryId(id, 0)).state is not State.HELD
    )
    person = parts.store.recipients.get(who)
    found["wishes"] += bool(person.stopped_at or person.links_valid_from or person.preferences.to_json())
    return +found


def in_words(what: Counter[str]) -> str:
    return " + ".join(f"{number} {name}" for name, number in sorted(what.items())) or "0"


@pytest.mark.parametrize("ages", [(9,), full((0, 1, 9), seconds=600)])
def test_scanners_change_nothing_and_clickers_only_what_is_harmless(
    make_parts: MakeParts,
    server: SmtpServer,
    serve: Serve,
    store_url: str,
    tmp_path: Path,
    ages: tuple[int, ...],
    report: Report,
) -> None:
    parts = make_parts(mail__url=server.url, relay__url=server.url)
    of_site = {"QUARANTINE_RELAY__URL": server.url, "QUARANTINE_LINKS__KEYS_FILE": f"{tmp_path}/links.keys"}
    portal = serve(store_url, QUARANTINE_MAIL__URL=server.url, **of_site)
    done: dict[str, Counter[str]] = {}
    requests = 0
    for scanner in (*READERS, *CLICKERS):
        for age in ages:
            told = tell(parts, server, f"{scanner.__name__}-{age}@example.org", age)
            client = Client(portal.port)
            scanner(client, told[2])
            assert client.answers.total() >= len(told[2]) > 18
            requests += client.answers.total()
            done[f"{scanner.__name__} at {age} min"] = changed(parts, told)
    report(
        "24 scanners over HTTP",
        f"{requests:,} requests to the links of {len(done)} digests, each of 2 spam, 2 suspicious and 2 dangerous "
        f"mails; changed: {', '.join(f'{name}: {in_words(what)}' for name, what in done.items())}",
    )
    harmless = {scanner.__name__ for scanner in CLICKERS}
    for name, what in done.items():
        assert set(what) <= ({"spam"} if name.split()[0] in harmless else set()), name
    assert any(done.values()), "the clickers reach nothing"
    assert portal.tracebacks() == 0
    # And whoever is no scanner gets what they want by one press, fresh as the digest may be.
    told = tell(parts, server, "person@example.org", 0)
    client = Client(portal.port)
    for link in told[2]:
        action = parts.links.verify(link.split("/")[-2], now()).action if "/link/" in link else None
        if action in (Action.RELEASE, Action.REQUEST):
            client.ask("GET", link)
            client.post(link, [("pressed", "1")], BY_A_PERSON)
    assert changed(parts, told) == {"spam": 2, "suspicious": 2, "dangerous": 2}
    assert sorted(mail.recipients for mail in server.mails).count(["person@example.org"]) == 1 + 4
