"""Hostile HTML as the text of every page, in Debian's Chromium and Firefox: pages escape it, and their policy runs
nothing. Each holds without the other. What a sender formatted has tests of its own (test_frame.py)."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest

from digest.housekeeping import run_batches
from portal.model.links import Action
from portal.model.message import Scan, ScanOutcome, Tier
from portal.stores.records import Held
from tests.builders import ALICE, rule
from tests.system.browsers import Window, open_with_frames, wait_for
from tests.system.local_site import LocalSite
from tests.system.outside import QUIET, Listener, framed, numbers, payloads

pytestmark = pytest.mark.system


@pytest.fixture
def store_url(files_url: str) -> str:
    """A single store: browsers see the same on all stores."""
    return files_url


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


def in_an_address(payload: str) -> str:
    """Return hostile HTML that works in the address of a sender for whom rules can be made.

    Such an address has no "://", and pages show it in lower case.
    """
    return re.sub(r"new Image\(\)\.src=(`.*?`)", r"fetch(\1)", payload).replace("http:", "").lower()


def quoted(text: str) -> str:
    """Return the local part or name of an address as a quoted string (RFC 5322, 3.2.4)."""
    return '"' + re.sub(r'(["\\])', r"\\\1", text) + '"'


def press(window: Window, name: str, value: str, expected: str) -> str:
    """Press a button, wait until the next page says something, and return what it says with all details open.

    Of a page with a result, return the result.
    """
    window.press(f"//button[@name='{name}'][@value='{value}']")
    wait_for(window, expected)
    return opened(window)


def opened(window: Window) -> str:
    """Open all details of a page. Return the text of its result, or of the page if it has none."""
    window.run("for (const each of document.querySelectorAll('details')) each.open = true")
    return str(window.run("return (document.querySelector('.done') ?? document.body).innerText"))


def test_pages_after_forms_show_hostile_html_as_text(site: LocalSite, window: Window, outside: Listener) -> None:
    """The answers to forms, and the results of acts on several messages. The mail server's replies are hostile too."""
    hostile = payloads(outside)
    local_parts = [in_an_address(payload) for payload in hostile]
    for number, (payload, local_part) in enumerate(zip(hostile, local_parts, strict=True)):
        site.hold(
            tuple(Tier)[number % 3],
            recipients=[ALICE],
            subject=payload,
            header_from=f"{quoted(payload[:60])} <{quoted(local_part)}@n{number}.example>",
            data=payload.encode(),
        )
    site.digest()
    digest = site.store.digests.last(ALICE)
    assert digest is not None
    replies = itertools.cycle(hostile)
    site.mail.script["MAIL"] = lambda _: f"552 5.3.4 {next(replies)}"
    window.sign_in(site)
    without_policy(site)
    base, texts, windows = site.parts.settings.public_url, dict[str, str](), window.count()

    open_with_frames(window, f"{site.parts.links.url(Action.SEVERAL, digest.id, 0, digest.issued_at)}?select=all")
    texts["check, by a link"] = press(window, "do", "release", "Check before you release")
    texts["result, by a link"] = press(window, "suspicious", "leave", "Release failed")
    open_with_frames(window, f"{base}/?select=matching")
    texts["check"] = press(window, "do", "release", "Check before you release")
    press(window, "suspicious", "leave", "Waiting to start")
    job = window.address()
    assert "/jobs/" in job
    run_batches(site.parts, site.now)
    for name, address in (("job", job), ("list", f"{base}/")):
        open_with_frames(window, address)
        texts[name] = opened(window)
    open_with_frames(window, f"{base}/?select=matching")
    opened(window)
    texts["senders"] = press(window, "do", "block", "Block these senders?")
    press(window, "effect", "block", "Senders blocked:")

    window.pause(QUIET)
    assert (outside.paths, window.count()) == (set(), windows)
    shown = {name: text.count("/js/") + text.count("/load/") for name, text in texts.items()}
    assert min(shown.values()) > 80, "the pages show them"
    assert len(numbers(framed(window, local_parts, {}, None, outside))) > 70, "they run where nothing escapes them"


def test_the_policy_of_pages_alone_runs_nothing(site: LocalSite, window: Window, outside: Listener) -> None:
    policy = site.signed_in(ALICE).get("/").header("Content-Security-Policy")
    assert policy and "frame-ancestors 'none'" in policy
    policy = re.sub("frame-ancestors 'none'", "frame-ancestors *", policy)  # or none would be in its frame
    fired = framed(window, payloads(outside), {"Content-Security-Policy": policy}, None, outside)
    assert numbers(fired, "js") == set()
