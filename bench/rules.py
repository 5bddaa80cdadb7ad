"""100,000 allow and block rules: the decision about a message, compared with a thousand, and the map for Rspamd."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime

from bench.rig import Effort, Row, own_folder, postgres, print_progress, spread
from portal.model.message import Actor, ActorKind, Facts, Symbol, Tier, new_id
from portal.model.rule import SITE, Effect, Rule
from portal.people import Directory
from portal.policy.block_map import compose
from portal.policy.rulebook import Rulebook
from portal.stores import open_store

FEW, MANY = 1_000, 100_000
DECISIONS = 200  # in a turn
RECIPIENTS = ("user1@example.org", "user4@example.org", "user7@example.org")


def rules_postgres(effort: Effort) -> list[Row]:
    """Measure with PostgreSQL."""
    with postgres() as few, postgres() as many:
        return _measured("PostgreSQL", few, many, effort)


def rules_files(effort: Effort) -> list[Row]:
    """Measure with files."""
    with own_folder() as folder:
        return _measured("files", f"files://{folder}/few", f"files://{folder}/many", effort)


def _measured(name: str, few: str, many: str, effort: Effort) -> list[Row]:
    number = effort.of(MANY)
    works = [_deciding(few, FEW), _deciding(many, number)]
    writing = _writing(many)
    found = []
    for _ in range(effort.rounds + 1):
        found.append([work() * 1e3 for work in works])
        print_progress("; ".join(f"{taken:.2f} ms" for taken in found[-1]))
    return [
        Row(
            f"a decision with {number:,} rules, {name}, ms",
            spread([large for _, large in found[1:]], 2),
            f"{statistics.median(small for small, _ in found[1:]):.2f} with {FEW:,}",
            statistics.median(small / large for small, large in found[1:]),
            "< 2",
        ),
        Row(
            f"the block map of {number:,} rules, {name}, s of processor time",
            spread([writing() for _ in range(effort.rounds)], 2),
            "–",
            None,
            "< 1",
        ),
    ]


def _deciding(url: str, number: int) -> Callable[[], float]:
    """Fill a store with rules. Return a function that returns the seconds of a decision."""
    store, at = open_store(url, create=True), datetime.now(UTC)
    store.rules.add([_rule(n, at) for n in range(number)], at)
    book = Rulebook(store, Directory(None, is_local=lambda _: True), ["example.org"], lambda _: True)
    message = _message()
    decided = book.decide(message, Tier.SPAM, RECIPIENTS, scanned=True)
    if {each.effect for each in decided.values()} != {Effect.BLOCK}:
        raise RuntimeError("a rule of the site should block this message")
    print_progress(f"{number:,} rules")

    def decide() -> float:
        began = time.perf_counter()
        for _ in range(DECISIONS):
            book.decide(message, Tier.SPAM, RECIPIENTS, scanned=True)
        return (time.perf_counter() - began) / DECISIONS

    return decide


def _writing(url: str) -> Callable[[], float]:
    """Return a function that returns the seconds of this process's processors that the lines of the map take."""
    store, people = open_store(url), Directory(None, is_local=lambda _: True)

    def write() -> float:
        began = time.process_time()
        compose(store.rules, people, datetime.now(UTC), lambda _: None)
        return time.process_time() - began

    return write


def _rule(n: int, at: datetime) -> Rule:
    """Return a rule: a third for the site, for recipients, for domains; half of them for addresses."""
    scope = (SITE, f"user{n % 20_000}@example.org", f"@d{n % 50}.example")[n % 3]
    sender = f"d{n}.example" if n % 2 == 0 else f"s{n}@d{n % 5_000}.example"
    actor = Actor(ActorKind.OPERATOR, "bench", "cli")
    return Rule(id=new_id(at), scope=scope, sender=sender, effect=Effect.BLOCK, created_at=at, actor=actor)


def _message() -> Facts:
    """Return the facts of a message that a rule of the site matches by a parent domain, from a host with IPv6."""
    return Facts(
        envelope_sender="bounce-77@mailer.d12.example",
        subject="Offer",
        header_from="Promo <promo@news.shop.d6.example>",
        queue_id=None,
        message_id=None,
        action="reject",
        score=17.5,
        client_ip="2001:db8::25",
        user=None,
        symbols=(Symbol("DMARC_POLICY_ALLOW", 0.0, ("d6.example",)),),
        flags=frozenset(),
        body_sha256=bytes(32),
        size_bytes=1_000,
        has_8bit=False,
        from_count=1,
    )
