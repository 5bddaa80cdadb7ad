"""Scanners on the links of a real digest, over HTTP: nothing is changed before a person presses a button."""

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
    """Return the addresses in a digest, in text, HTML and header, each once."""
    parsed = read(mail)
    found = [str(parsed["List-Unsubscribe"] or "")]
    for kind in ("plain", "html"):
        part = parsed.get_body((kind,))
        assert part is not None
        found.append(part.get_content())
    return list(dict.fromkeys(re.findall(r"http://127\.0\.0\.1:8080/quarantine/[^\s\"<>]*", " ".join(found))))


SentDigest = tuple[str, dict[Tier, list[UUID]], list[str]]


def send_digest(parts: Parts, server: SmtpServer, person: str, minutes_old: float) -> SentDigest:
    """Send a digest of that age to a person: return them, two messages of each tier by tier, and all links."""
    held = {
        tier: [
            hold(parts.store, recipients=[person], tier=tier, header_from=f"{tier}{n}@example.net").id for n in (0, 1)
        ]
        for tier in Tier
    }
    run.send_all(parts, now() - timedelta(minutes=minutes_old), recipient=person)
    assert server.mails[-1].recipients == [person]
    return person, held, links_of(server.mails[-1])


def changed(parts: Parts, digest: SentDigest) -> Counter[str]:
    """Return the changes since the digest: the number of messages by their tier, and of preferences."""
    recipient, held, _ = digest
    found = Counter(
        str(tier)
        for tier, ids in held.items()
        for id in ids
        if parts.store.deliveries.get(DeliveryId(id, 0)).state is not State.HELD
    )
    person = parts.store.recipients.get(recipient)
    found["preferences"] += bool(person.stopped_at or person.links_valid_from or person.preferences.to_json())
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
    settings = {"QUARANTINE_RELAY__URL": server.url, "QUARANTINE_LINKS__KEYS_FILE": f"{tmp_path}/links.keys"}
    portal = serve(store_url, QUARANTINE_MAIL__URL=server.url, **settings)
    done: dict[str, Counter[str]] = {}
    requests = 0
    for scanner in (*READERS, *CLICKERS):
        for age in ages:
            digest = send_digest(parts, server, f"{scanner.__name__}-{age}@example.org", age)
            client = Client(portal.port)
            scanner(client, digest[2])
            assert client.answers.total() >= len(digest[2]) > 12
            requests += client.answers.total()
            done[f"{scanner.__name__} at {age} min"] = changed(parts, digest)
    report(
        "24 scanners over HTTP",
        f"{requests:,} requests to the links of {len(done)} digests, each of 2 spam, 2 suspicious and 2 dangerous "
        f"messages; changed: {', '.join(f'{name}: {in_words(what)}' for name, what in done.items())}",
    )
    harmless = {scanner.__name__ for scanner in CLICKERS}
    for name, what in done.items():
        assert set(what) <= ({"spam"} if name.split()[0] in harmless else set()), name
    assert any(done.values()), "the clickers changed nothing"
    assert portal.tracebacks() == 0
    # A person who presses one button succeeds, even with a new digest.
    digest = send_digest(parts, server, "person@example.org", 0)
    client = Client(portal.port)
    for link in digest[2]:
        action = parts.links.verify(link.split("/")[-2], now()).action if "/link/" in link else None
        if action in (Action.RELEASE, Action.REQUEST):
            client.request("GET", link)
            # The field of a page that shows a caution.
            client.post(link, [("pressed", "1"), ("checked", "suspicious")], BY_A_PERSON)
    assert changed(parts, digest) == {"spam": 2, "suspicious": 2, "dangerous": 2}
    assert sorted(mail.recipients for mail in server.mails).count(["person@example.org"]) == 1 + 4
