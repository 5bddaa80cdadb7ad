"""Hostile HTML as the text of every page, in Debian's Chromium and Firefox: pages escape it, and their policy runs
nothing. Each holds without the other. What a sender formatted has tests of its own (test_frame.py)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import pytest

from portal.assemble import Parts
from portal.model.links import Action
from portal.model.message import Scan, ScanOutcome, Tier
from portal.stores.records import Held
from tests.builders import ALICE, rule
from tests.system.browsers import Window, open_with_frames
from tests.system.local_site import LocalSite, local_site
from tests.system.outside import QUIET, Listener, framed, numbers, payloads

pytestmark = pytest.mark.system


@pytest.fixture
def store_url(files_url: str) -> str:
    """A single store: browsers see the same on all stores."""
    return files_url


@pytest.fixture
def site(make_parts: Callable[..., Parts]) -> Iterator[LocalSite]:
    with local_site(make_parts) as made:
        yield made


def without_policy(site: LocalSite) -> None:
    """Serve all pages without Content-Security-Policy from now on, so that only escaping protects them."""
    app = site.app

    def unprotected(environ: dict[str, str], start_response: Callable[..., Any]) -> Any:
        def start(status: str, headers: list[tuple[str, str]], *more: Any) -> Any:
            kept = [pair for pair in headers if "content-security" not in pair[0].lower()]
            return start_response(status, kept, *more)

        return app(environ, start)

    site.app = unprotected  # type: ignore[assignment]


def everything_in(site: LocalSite, hostile: list[str]) -> Held:
    """Hold a message that has all of the hostile HTML in its text, its fields and the names of its attachments."""
    lines = [f"X-Field-{number}: {payload}" for number, payload in enumerate(hostile)]
    lines += ["Content-Type: multipart/mixed; boundary=b", "", "--b", "Content-Type: text/plain", "", *hostile]
    for number, payload in enumerate(hostile[:20]):
        name = quote(payload, safe="")
        lines += ["--b", f"Content-Type: text/plain; name*=utf-8''{name}.txt", "", f"attachment {number}"]
    held = site.hold(subject=hostile[0], data="\r\n".join([*lines, "--b--", ""]).encode())
    site.store.messages.record_scan(held.id, Scan(ScanOutcome.CLEAN, site.now), Tier.SPAM, site.now)
    return held


def test_pages_show_hostile_html_as_text(site: LocalSite, window: Window, outside: Listener) -> None:
    hostile = payloads(outside)
    # Names are short on purpose: longer ones are cut off. Senders differ, or the list would fold similar messages.
    helds = [
        site.hold(
            tuple(Tier)[number % 3],
            subject=payload,
            header_from=f'"{payload[:60]}" <s{number}@n{number}.example>',
            data=payload.encode(),
        )
        for number, payload in enumerate(hostile)
    ]
    full = everything_in(site, hostile)
    site.digest()
    digest = site.store.digests.last(ALICE)
    assert digest is not None
    [made, *_] = site.store.rules.add([rule("b.example")], site.now)
    window.sign_in(site)
    without_policy(site)
    links, base, query = site.parts.links, site.parts.settings.public_url, quote(hostile[2])
    message = f"{base}/messages/{full.id}"
    addresses = [
        *(f"{base}/?size=100", f"{base}/?order=likely&size=100", f"{base}/?q={query}&sender={query}"),
        *(f"{message}/", f"{message}/headers", f"{message}/source", f"{message}/sender"),
        *(f"{base}/rules?done={made.id}", f"{base}/rules?q={query}", f"{base}/sign-in?ended={query}"),
        links.url(Action.SEVERAL, digest.id, 0, digest.issued_at),
        *(links.url(Action.DELETE, held.id, 0, site.now) for held in helds[:3]),
        *(f"{base}/messages/{held.id}/" for held in helds[:3]),
    ]
    windows, texts = window.count(), {}
    for address in addresses:
        open_with_frames(window, address)
        assert window.address() == address
        texts[address] = window.text()
    window.pause(QUIET)
    assert (outside.paths, window.count()) == (set(), windows)
    for address in (f"{message}/", f"{message}/headers", f"{message}/source"):
        assert texts[address].count("/js/") > 40, "the page shows them"
    assert texts[addresses[0]].count("/js/") > 20 and texts[addresses[-1]].count("/js/") > 0


def test_the_policy_of_pages_alone_runs_nothing(site: LocalSite, window: Window, outside: Listener) -> None:
    policy = site.signed_in(ALICE).get("/").header("Content-Security-Policy")
    assert policy and "frame-ancestors 'none'" in policy
    policy = re.sub("frame-ancestors 'none'", "frame-ancestors *", policy)  # or none would be in its frame
    fired = framed(window, payloads(outside), {"Content-Security-Policy": policy}, None, outside)
    assert numbers(fired, "js") == set()
