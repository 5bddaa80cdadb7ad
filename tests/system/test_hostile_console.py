"""Hostile HTML in everything that senders, recipients and staff write, in Debian's Chromium and Firefox: the console,
answers to hostile addresses and forms, and mails. Escaping holds without the policies, and each policy without it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import SMTP
from typing import Any
from urllib.parse import quote, urlencode
from uuid import uuid4

import pytest

from digest import news
from digest.housekeeping import index_facets, send_queued
from digest.notices import send_notices
from digest.statistics import count_days
from portal.assemble import Parts
from portal.batches.batch import Act as BatchAct
from portal.batches.mass import MassAct
from portal.batches.mass_run import MassActs
from portal.model import criteria
from portal.model.audit import Act, AuditEntry
from portal.model.message import Actor, ActorKind, Filter, Symbol, Tier
from portal.model.staff import EVERYWHERE, Grant, Role
from portal.model.statistics import Month
from portal.model.token import Scope
from portal.policy.report import Reports
from portal.policy.tokens import TokenRequest
from portal.stores.records import Held
from tests.builders import ALICE, BY_LINK, BY_OPERATOR, prefer, rule
from tests.paths import ROOT
from tests.system.browsers import Window, open_with_frames
from tests.system.local_site import LocalSite, local_site, part
from tests.system.outside import QUIET, Listener, framed, numbers, payloads
from tests.system.samples import PROVEN
from tests.system.test_hostile_pages import everything_in, without_policy
from tests.web.test_portal import plain
from tests.web_client import Answer, Browser

pytestmark = pytest.mark.system

_AT_ONCE = 6  # parameters in one address; one that is wrong may hide the others
_LIST = ("q", "sender", "state", "tier", "size", "order", "select", "skip", "before", "like", "by", "show")
_HARMLESS = ("application/json", "application/problem+json", "text/plain", "text/css")
_STAFF = Actor(ActorKind.OPERATOR, ALICE, "console", "192.0.2.7")


@pytest.fixture
def store_url(files_url: str) -> str:
    """A single store: browsers see the same on all stores."""
    return files_url


@pytest.fixture
def site(make_parts: Callable[..., Parts]) -> Iterator[LocalSite]:
    with local_site(make_parts, mail__admin_address="postmaster@example.org", staff__administrators=ALICE) as made:
        yield made


def hold_hostile(site: LocalSite, payload: str, number: int) -> Held:
    """Hold a message with hostile HTML in every field that its sender, its recipient or Rspamd filled."""
    return site.hold(
        tuple(Tier)[number % 3],
        recipients=(ALICE, f'"{payload[:40]}"@example.org'),
        subject=payload,
        header_from=f'"{payload[:60]}" <s{number}@n{number}.example>',
        envelope_sender=f'"{payload}"@n{number}.example',
        data=payload.encode(),
        queue_id=payload,
        message_id=payload,
        action=payload,
        user=payload,
        client_ip=payload,
        symbols=(Symbol(payload, 7.0, (payload,), payload), Symbol("MIME_BAD_EXTENSION", 4.0, (payload,), payload)),
    )


def fill(site: LocalSite, hostile: list[str]) -> dict[str, Any]:
    """Let senders, recipients and staff write hostile HTML wherever they can. Return the ids of what they made."""
    helds = [hold_hostile(site, payload, number) for number, payload in enumerate(hostile)]
    full, store, actions = everything_in(site, hostile), site.store, site.parts.actions
    staff = Grant(ALICE, Role.ADMINISTRATOR, EVERYWHERE, site.now, BY_OPERATOR)
    store.staff.give(staff)
    rules = [
        rule(f'"{payload[:50]}"@r{number}.example', ("block", "allow")[number % 2], note=payload)
        for number, payload in enumerate(hostile)
    ]
    [made, *_] = store.rules.add(rules, site.now)
    for number, payload in enumerate(hostile[:30]):
        store.audit.record(AuditEntry.new(site.now, Act.EXPORTED, _STAFF, payload, payload))
        named = Actor(ActorKind.OPERATOR, payload, payload, payload)
        store.audit.record(AuditEntry.new(site.now, Act.EXPORTED, named, f'"{payload}"@example.org', payload))
        store.staff.give(Grant(f'"{payload}"@example.org', Role.HELP_DESK, "example.org", site.now, named))
        wanted = TokenRequest(payload[:60], Role.ADMINISTRATOR, EVERYWHERE, Scope.READ, 30)
        site.parts.tokens.create(uuid4(), ALICE, wanted, BY_OPERATOR, site.now)
    requested = [held for held in helds if site.delivery(held).message.tier is Tier.DANGEROUS]
    for held, payload in zip(requested, hostile, strict=False):
        actions.request_release(held.id, 0, BY_LINK)
        if held is not requested[-1]:
            actions.refuse_request(held.id, 0, _STAFF, payload)
    for held in helds[:30:3]:  # the monthly report lists symbols and senders with mistakes
        actions.release(held.id, 0, BY_LINK)
    masses = MassActs(store, actions, site.parts.staff)
    jobs = [
        masses.start(MassAct(BatchAct.RESTORE, Filter(words=one), f"words={one}", 1, one, ALICE), _STAFF, uuid4())
        for one in hostile[:20]
    ]
    index_facets(site.parts)
    count_days(site.parts, site.now)
    return {"full": full, "helds": helds, "rule": made, "jobs": jobs, "requested": requested[-1]}


def console_pages(made: dict[str, Any], hostile: list[str]) -> list[str]:
    """Return the paths of all pages of the console, several with hostile addresses."""
    query = quote(hostile[2])
    message = f"admin/messages/{made['full'].id}.0"
    fields = ("recipient", "sender", "words", "attachment", "symbol", "rule", "since", "domain", "client", "score-min")
    return [
        *(f"admin/?{name}={query}" for name in fields),
        *(f"admin/?by={by}" for by in ("symbol", "sender-domain", "domain", "hour")),
        *("admin/", "admin/requests", "admin/jobs/", "admin/staff", "admin/tokens", "admin/audit", "admin/domains"),
        *(f"admin/audit?who={query}&about={query}", f"admin/jobs/new?act=release&words={query}"),
        *(f"admin/statistics?domain={query}", "admin/statistics?period=7", "admin/statistics/days.svg"),
        *(f"admin/recipients/?address={one}" for one in (ALICE, query, quote(f'"{hostile[2][:40]}"@example.org'))),
        *("admin/recipients/list", f"admin/recipients/forget?address={ALICE}", "admin/domains?domain=example.org"),
        *(f"{message}/{each}" for each in ("", f"?search={query}", "similar", "text", "headers", "source", "download")),
        *(f"admin/messages/{held.id}.0/" for held in (*made["helds"][:6], made["requested"])),
        *(f"admin/jobs/{job.id}/" for job in made["jobs"][:3]),
        *("admin/second-factor", "api/v1/", f"rules?done={made['rule'].id}", "sessions", "about"),
    ]


def test_the_console_shows_hostile_html_as_text(site: LocalSite, window: Window, outside: Listener) -> None:
    hostile = payloads(outside)
    made = fill(site, hostile)
    window.sign_in(site)
    without_policy(site)
    windows, texts, base = window.count(), dict[str, str](), site.parts.settings.public_url
    for path in console_pages(made, hostile):
        open_with_frames(window, f"{base}/{path}")
        assert window.address() == f"{base}/{path}"
        texts[path] = str(window.run("return document.body?.innerText ?? ''"))  # an image has no body
    window.pause(QUIET)
    assert (outside.paths, window.count()) == (set(), windows)
    shown = {path: text.count("/js/") + text.count("/load/") for path, text in texts.items()}
    for path in ("admin/", "admin/audit", "admin/tokens", "admin/staff", "admin/requests", "admin/jobs/"):
        assert shown[path] > 0, "the page shows it"
    assert shown["admin/?by=symbol"] > 40 and shown[f"admin/messages/{made['helds'][0].id}.0/"] > 5


# ---- all answers


def addresses(site: LocalSite, made: dict[str, Any], hostile: list[str]) -> Iterator[str]:
    """Yield paths of all GET routes, alone and with the parameters that the code reads, and of nothing."""
    names = {"ID": f"{made['full'].id}.0", "VIEW": "headers", "WAY": "next", "NAME": "style.css", "TOKEN": "A" * 32}
    code = "".join(path.read_text() for path in (ROOT / "portal/web").rglob("*.py"))
    parameters = sorted({*re.findall(r'\.query\("(\w+)"\)', code), *criteria.NAMES, *_LIST})
    values = itertools.cycle(hostile)
    for method, pattern in site.app.routes:
        path = plain(pattern)
        if method != "GET" or path == "/PATH":
            continue
        path = "/".join(names.get(each, each) for each in path.split("/"))
        yield path
        for first in range(0, len(parameters), _AT_ONCE):
            yield f"{path}?{urlencode({name: next(values) for name in parameters[first : first + _AT_ONCE]})}"
    for payload in hostile[::2]:
        yield from (f"/{quote(payload)}", f"/admin/{quote(payload)}", f"/messages/{quote(payload)}/")


def answers(site: LocalSite, made: dict[str, Any], hostile: list[str]) -> Iterator[tuple[str, Answer]]:
    """Yield what the portal answers to hostile addresses, forms and headers."""
    browser: Browser = site.signed_in(ALICE)
    for path in addresses(site, made, hostile):
        yield path, browser.get(path, headers={"Sec-Fetch-Dest": "iframe"})
    names = ("address", "sender", "reason", "search", "act", "change", "note", "name", "from", "schedule", "code")
    headers = {"Origin": site.parts.settings.public_url.removesuffix("/quarantine")}
    token = browser.form_token()
    posted = [pattern for method, pattern in site.app.routes if method == "POST" and "sign-out" not in pattern]
    for number, pattern in enumerate(posted):
        path = plain(pattern).replace("/ID", f"/{made['full'].id}.0").replace("ACT", "question")
        for payload in (hostile[number % len(hostile)], hostile[-1 - number % len(hostile)]):
            form = dict.fromkeys(names, payload) | {"form_token": token}
            yield path, browser.post(path, form, headers=headers)
            yield path, browser.post(path, form | {"form_token": payload}, headers={"Origin": payload})
            yield path, site.browser().post(path, form, headers=headers | {"Authorization": f"Bearer {payload}"})


def sent(site: LocalSite, hostile: list[str]) -> list[str]:
    """Return the HTML parts of mails about what was written: a digest, notices, the monthly report, sign-in mails."""
    store = site.store
    wanted = store.recipients.get(ALICE).preferences
    prefer(store, ALICE, replace(wanted, timezone=f"Etc/GMT{site.now.hour - 12:+}", notices=True))
    site.digest()
    for number, payload in enumerate(hostile[:20]):
        name = f"Shop <w{number}@w{number}.example>"  # a hostile name makes no message likely a mistake
        site.hold(recipients=(ALICE,), subject=payload, header_from=name, symbols=PROVEN, score=15.4)
    site.pass_time(minutes=1)
    news.schedule_news(site.parts, site.now)
    assert send_notices(site.parts, site.now).sent
    report = Reports(store, site.parts.actions).mail(ALICE, (EVERYWHERE,), Month(site.now.date().replace(day=1)))
    assert report
    store.outbox.add(report, site.now)
    origin = site.parts.settings.public_url.removesuffix("/quarantine")
    for address in (ALICE, f'"{hostile[0][:40]}"@example.org'):
        site.browser().post("/sign-in", {"address": address}, headers={"Origin": origin, "User-Agent": hostile[0]})
    send_queued(site.parts, site.now)
    mails = [message_from_bytes(mail.data, policy=SMTP.clone(utf8=True)) for mail in site.mail.mails]
    return [part(mail, "html") for mail in mails if isinstance(mail, EmailMessage) and mail.get_body(("html",))]


def test_no_answer_and_no_mail_has_hostile_html_that_runs(site: LocalSite, window: Window, outside: Listener) -> None:
    """Their documents without any policy: only escaping, and the type of the answer, protects."""
    hostile = payloads(outside)
    made = fill(site, hostile)
    mails, pages = sent(site, hostile), dict[str, str]()
    assert len(mails) >= 4
    for path, answer in answers(site, made, hostile):
        kind = answer.header("Content-Type") or ""
        assert answer.status < 500, (path, answer.status)
        assert answer.header("X-Content-Type-Options") == "nosniff"
        location = answer.header("Location") or "./"
        assert location.startswith(("./", "/quarantine/")) and "//" not in location.partition("?")[0], (path, location)
        if kind.startswith(("text/html", "image/svg")):
            pages.setdefault(re.sub(r'value="[\w.-]{80,}"', "", answer.text), path)
        elif answer.body:
            is_saved = (answer.header("Content-Disposition") or "").startswith("attachment;")
            assert is_saved or kind.startswith(_HARMLESS), (path, kind)
    documents = [*pages, *mails]
    quoting = [each for each in documents if "/js/" in each or "/load/" in each]
    assert len(quoting) > 50
    found = set[str]()
    for first in range(0, len(quoting), 120):  # a page with more frames is slow
        found |= framed(window, quoting[first : first + 120], {}, None, outside)
    assert found == set() and outside.connections == 0


def test_each_policy_alone_runs_nothing(site: LocalSite, window: Window, outside: Listener) -> None:
    message = f"/admin/messages/{site.hold(data=b'Content-Type: text/html').id}.0"
    site.store.staff.give(Grant(ALICE, Role.ADMINISTRATOR, EVERYWHERE, site.now, BY_OPERATOR))
    browser, hostile = site.signed_in(ALICE), payloads(outside)
    paths = ("/", "/admin/", "/api/v1/", "/preferences/digest/html", "/admin/statistics/days.svg", "/nothing")
    frame = {"Sec-Fetch-Dest": "iframe"}
    found = {browser.get(path, headers=frame).header("Content-Security-Policy") for path in (*paths, f"{message}/html")}
    assert None not in found and 2 <= len(found) <= 4
    for policy in filter(None, found):
        opened = re.sub("frame-ancestors '(?:none|self)'", "frame-ancestors *", policy)  # or none would be in its frame
        assert numbers(framed(window, hostile, {"Content-Security-Policy": opened}, None, outside), "js") == set()
