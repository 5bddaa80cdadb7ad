"""Pages, searches included, with a million and with ten thousand messages held: do they get slower as the store grows?

Each recipient has a hundred messages in both stores, so both show the same page of 25. Some recipients also have real
mail, whose page is opened.
"""

from __future__ import annotations

import io
import random
import statistics
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import count
from pathlib import Path
from uuid import UUID

from bench import fill, load
from bench.processor import Clock, cell, postmaster
from bench.rig import Effort, Row, own_folder, p99, postgres, print_progress, served, spread
from portal import exporter
from portal.keys import read_keys
from portal.model.links import Action, Links
from portal.model.message import Body, Tier, random_token
from portal.stores import open_store
from portal.web.pages import sha256

SMALL, LARGE, EACH, PAGE = 10_000, 1_000_000, 100, 25
CALLS, SESSIONS = 100, 30  # in a round
BAR, TRIAGE_BAR, HEALTH_BAR = "< 30 / < 100, ≤ 1.3", "< 60 / –, ≤ 1.3", "< 2 / –, ≤ 1.3"
REASON = "Several signs of spam"  # of all messages
ROW = b'class="mail"'  # in each row of a list
SUBJECT = b"Offer"  # on the pages of a message
_NUMBERS = count(500_000_000)  # of real mails


def list_postgres(effort: Effort) -> list[Row]:
    """Measure two servers, so that the processor time of each is known."""
    with postgres() as small, postgres() as large:
        for url, number in ((small, SMALL), (large, effort.of(LARGE))):
            fill.postgres(url, fill.days_back(number), number // EACH, alike=False)
            print_progress(f"{number} mails held")
        return _rows("PostgreSQL", small, large, effort)


def list_files(effort: Effort) -> list[Row]:
    with own_folder() as path:
        urls = []
        for name, number in (("small", SMALL), ("large", effort.of(LARGE))):
            fill.files(path / name, fill.days_back(number), number // EACH, alike=False)
            urls.append(f"files://{path}/{name}")
            print_progress(f"{number} mails held")
        return _rows("files", urls[0], urls[1], effort)


def _rows(name: str, small: str, large: str, effort: Effort) -> list[Row]:
    with own_folder() as folder, ExitStack() as stack:
        sites = [
            _Site(stack, small, SMALL, folder / "small"),
            _Site(stack, large, effort.of(LARGE), folder / "large"),
        ]
        held = f"{name} with {sites[1].count:,} held, p50 / p99 in ms"
        return [
            _compared(f"{what} from {held}", [partial(page, site) for site in sites], sites, effort, bar)
            for what, (page, bar) in _PAGES.items()
        ]


@dataclass(frozen=True)
class _Session:
    """A signed-in recipient and their real mails."""

    token: str
    recipient: int
    messages: list[UUID]
    formatted: UUID


class _Site:
    """A filled store, with a web server of one worker."""

    def __init__(self, stack: ExitStack, url: str, held: int, keys: Path) -> None:
        self.count, self.people = held, held // EACH
        self._store = open_store(url)
        stack.callback(self._store.close)
        self._sessions = [self._session(random.randrange(self.people)) for _ in range(SESSIONS)]
        self._links = Links(read_keys(keys, create=True), "http://127.0.0.1:8080/quarantine", timedelta(days=14))
        self._digests = count()
        environment = {"QUARANTINE_STORE__URL": url, "QUARANTINE_LINKS__KEYS_FILE": str(keys)}
        self._served = stack.enter_context(served("portal.wsgi:application", workers=1, **environment))
        self.components = {"worker": self._served.master}
        if not url.startswith("files:"):
            self.components["PostgreSQL"] = postmaster(url)

    def _session(self, recipient: int) -> _Session:
        messages = [self._hold(recipient) for _ in range(2)]
        session = _Session(random_token(32), recipient, messages, self._hold(recipient, formatted=True))
        self._store.sign_ins.start_session(sha256(session.token), fill.person(recipient), datetime.now(UTC))
        return session

    def _hold(self, recipient: int, *, formatted: bool = False) -> UUID:
        number = next(_NUMBERS)
        head = load.mail_head(number).replace(b"<promo@", b"<n%d.promo@" % number)  # messages alike are one row
        text = load.words(load.MAIL_BYTES, 1)
        if formatted:
            head = head.replace(b"text/plain", b"text/html")
            rows = b"".join(b"<tr><td>%s</td></tr>\r\n" % line for line in text.splitlines())
            text = b"<h1>Offer</h1>\r\n<table>\r\n%s</table>\r\n" % rows
        mail = head + text
        values = load.METADATA | {"rcpt": f'["{fill.person(recipient)}"]'}
        headers = {f"x-rspamd-{name}": value for name, value in values.items()} | {"content-type": "text/plain"}
        posted = exporter.parse(headers, Body(io.BytesIO(mail), 0, len(mail)), 1 << 26)
        assert posted is not None
        with posted:
            return self._store.messages.add(posted.export, posted.body, Tier.SPAM, ()).id

    def page(self, rows: int = PAGE, **parameters: str) -> None:
        """Get the list of a random session with these parameters of its address. It must show this many messages."""
        session = random.choice(self._sessions)
        rare = fill.rare_word(self.people, self.count, session.recipient)
        query = urllib.parse.urlencode({name: value.format(rare=rare) for name, value in parameters.items()})
        self._get(session, f"?{query}" if query else "", rows)

    def message(self, view: str = "") -> None:
        """Open a real mail: its text, or another view."""
        session = random.choice(self._sessions)
        self._get(session, f"messages/{random.choice(session.messages)}/{view}", None)

    def formatted(self) -> None:
        """Open the frame of a real mail as its sender made it: the page around it has no text of the mail."""
        session = random.choice(self._sessions)
        self._get(session, f"messages/{session.formatted}/html", None)

    def link(self) -> None:
        """Open a link of a digest. Each is of another digest, since openings of one have a rate limit."""
        session = random.choice(self._sessions)
        issued = datetime.now(UTC) - timedelta(seconds=next(self._digests))
        self._get(session, f"link/{self._links.token(Action.RELEASE, session.messages[0], 0, issued)}/", None)

    def health(self) -> None:
        """Get /healthz."""
        if b'"status": "ok"' not in self._read("healthz", {}):
            raise RuntimeError("the store cannot be used")

    def _get(self, session: _Session, path: str, rows: int | None) -> None:
        page = self._read(path, {"Cookie": f"__Host-quarantine-session={session.token}"})
        if SUBJECT not in page if rows is None else page.count(ROW) != rows:
            raise RuntimeError(f"{path} does not show the message, or {page.count(ROW)} rows instead of {rows}")

    def _read(self, path: str, headers: dict[str, str]) -> bytes:
        request = urllib.request.Request(f"http://127.0.0.1:{self._served.port}/quarantine/{path}", headers=headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return bytes(answer.read())


_PAGES: dict[str, tuple[Callable[[_Site], None], str]] = {  # with their bars
    "the page GET /": (_Site.page, BAR),
    "the page of 50": (partial(_Site.page, size="50", rows=50), TRIAGE_BAR),
    "the page of 100": (partial(_Site.page, size="100", rows=100), TRIAGE_BAR),
    "the page of 100, likely mistakes first,": (partial(_Site.page, order="likely", size="100", rows=100), TRIAGE_BAR),
    "the page of 25, likely mistakes first,": (partial(_Site.page, order="likely"), TRIAGE_BAR),
    "the page of a reason": (partial(_Site.page, reason=REASON), TRIAGE_BAR),
    "a search for a word of all messages": (partial(_Site.page, q="offer"), BAR),
    "a search for a word of one message": (partial(_Site.page, q="{rare}", rows=1), BAR),
    "a search that finds nothing": (partial(_Site.page, q="absent", rows=0), BAR),
    "the page of a message": (_Site.message, BAR),
    "the source of a message": (partial(_Site.message, view="source"), BAR),
    "a message as its sender made it": (_Site.formatted, BAR),
    "the page of a link in a digest": (_Site.link, BAR),
    "the health check": (_Site.health, HEALTH_BAR),
}


def _compared(what: str, calls: Sequence[Callable[[], None]], sites: Sequence[_Site], effort: Effort, bar: str) -> Row:
    """Measure both calls in turn; the processor time is that of the larger store."""
    found: list[tuple[tuple[float, float], tuple[float, float]]] = []
    components = sites[1].components
    clock = Clock(components)
    for n in range(effort.rounds + 1):
        if n == 1:  # the first round warms up
            clock = Clock(components)
        seconds: tuple[list[float], list[float]] = ([], [])
        for _ in range(CALLS):
            for call, taken in zip(calls, seconds, strict=True):
                began = time.perf_counter()
                call()
                taken.append(time.perf_counter() - began)
        if n:
            small, large = ((statistics.median(taken) * 1000, p99(taken) * 1000) for taken in seconds)
            found.append((small, large))
            print_progress(f"{large[0]:.1f} / {large[1]:.1f} ms; {small[0]:.1f} / {small[1]:.1f} ms")
    taken_in_all = clock.seconds()
    p50s, p99s = ([large[which] for _, large in found] for which in (0, 1))
    return Row(
        what,
        f"{spread(p50s, 1)} / {spread(p99s, 1)}",
        " / ".join(f"{statistics.median(small[which] for small, _ in found):.1f}" for which in (0, 1))
        + f" with {SMALL:,}",
        statistics.median(large[0] / small[0] for small, large in found),
        bar,
        cell(taken_in_all, CALLS * effort.rounds),
    )
