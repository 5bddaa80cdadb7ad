"""Slow work of pages, as releases while the mail server hangs, leaves threads for Rspamd's posts. Only the order of
answers and their number are checked, never times."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

import pytest

from portal.assemble import Parts
from portal.batches.parallel import retry_due
from portal.keys import read_keys
from portal.mail.relay import Relay
from portal.model.errors import StoreUnavailable
from portal.model.links import Action, Links
from portal.model.message import ActorKind, DeliveryId, EventKind, State, Tier
from portal.model.schedule import Preferences
from portal.model.staff import EVERYWHERE, Grant, Role
from portal.model.text import TAGS
from portal.stores import Store, open_store
from portal.stores.records import Held
from portal.web import create_app
from tests.builders import ALICE, BY_LINK, BY_OPERATOR, SENDER, mail, prefer, with_parts
from tests.smtp_server import SmtpServer
from tests.uwsgi_client import HEALTH, exchange, packet
from tests.web.conftest import Start
from tests.web_client import ORIGIN, ROOT, Answer, Browser, Site

THREADS = 16  # as in uwsgi.ini
AT_ONCE = THREADS // 4  # releases
PRESS = {"pressed": "1"}


class HangingServer(SmtpServer):
    """A mail server that accepts connections and says nothing until `work` is called."""

    def __enter__(self) -> HangingServer:
        self._gate = threading.Event()
        self.script["BANNER"] = self._wait
        super().__enter__()
        return self

    def _wait(self, _: bytes) -> None:
        self._gate.wait()

    def work(self) -> None:
        self._gate.set()

    def close(self) -> None:
        self.work()
        super().close()


@pytest.fixture
def relay() -> Iterator[HangingServer]:
    with HangingServer() as server:
        yield server


@pytest.fixture
def site(make_parts: Callable[..., Parts], relay: HangingServer) -> Site:
    parts = make_parts(relay__url=relay.url)
    patient = Relay(relay.url, reply_seconds=300, total_seconds=300)  # longer than any test
    return Site(with_parts(parts, actions=replace(parts.actions, relay=patient)))


@pytest.fixture
def pool(relay: HangingServer) -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(64) as threads:
        yield threads
        relay.work()


def wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def post_of_rspamd(site: Site) -> Answer:
    headers = {"Content-Type": "message/rfc822", "X-Rspamd-rcpt": f'["{ALICE}"]', "X-Rspamd-from": SENDER}
    return Browser(site.app, peer="127.0.0.1").request("POST", "/", body=mail(), headers=headers)


def hung_releases(site: Site, relay: HangingServer, pool: ThreadPoolExecutor) -> list[Future[Answer]]:
    """Press as many links as may wait for the mail server. Return the future answers."""
    links = [site.link(Action.RELEASE, site.hold()) for _ in range(AT_ONCE)]
    waiting = [pool.submit(site.browser().post, link, PRESS) for link in links]
    wait_for(lambda: relay.connections == AT_ONCE)
    return waiting


def by_link(site: Site, held: Held) -> str:
    browser, link = site.browser(), site.link(Action.RELEASE, held)
    return browser.follow(browser.post(link, PRESS), link).text


def signed_in(site: Site, held: Held) -> str:
    browser = site.signed_in(ALICE)
    path = f"/messages/{held.id}/"
    return browser.follow(browser.post(f"{path}release", {"form_token": browser.form_token()}), path).text


def from_the_list(site: Site, held: Held) -> str:
    browser = site.signed_in(ALICE)
    form = {"form_token": browser.form_token(), "from": "list?state=held"}
    return browser.follow(browser.post(f"/messages/{held.id}/release", form), "/").text


@pytest.mark.parametrize("press", [by_link, signed_in, from_the_list])
def test_beyond_the_releases_at_once_the_digest_process_sends(
    site: Site, relay: HangingServer, pool: ThreadPoolExecutor, press: Callable[[Site, Held], str]
) -> None:
    waiting = hung_releases(site, relay, pool)
    more = [site.hold(recipients=[ALICE]) for _ in range(3)]
    for held in more:
        assert "This message is on its way to the inbox." in press(site, held)
        assert "on its way" in press(site, held)  # again: nothing else happens
        delivery = site.delivery(held)
        assert (delivery.state, delivery.attempts, delivery.next_try_at) == (State.RELEASING, 0, site.now)
    assert post_of_rspamd(site).json["status"] == "held"
    assert not any(answer.done() for answer in waiting)
    assert relay.connections == AT_ONCE
    relay.work()
    assert {answer.result().status for answer in waiting} == {303}
    assert retry_due(site.parts.actions) == len(more)
    for held in more:
        assert site.state(held) is State.RELEASED
        events = site.history(held)[1:]
        assert [event.kind for event in events] == [EventKind.RELEASING, EventKind.RELEASED]
        assert [event.actor.kind for event in events] == [ActorKind.RECIPIENT, ActorKind.DIGEST]
    assert len(relay.mails) == AT_ONCE + len(more)
    assert retry_due(site.parts.actions) == 0


def test_a_finished_release_makes_room_for_the_next(site: Site, relay: HangingServer, pool: ThreadPoolExecutor) -> None:
    waiting = hung_releases(site, relay, pool)
    relay.work()
    for answer in waiting:
        answer.result()
    assert "Released" in by_link(site, held := site.hold())
    assert site.state(held) is State.RELEASED


def digest_link(site: Site) -> str:
    """Announce what is held for Alice in a digest. Return the link to its page for several messages."""
    claims = site.store.digests.claim(site.now, 1, 50, only=[ALICE], ignore_schedule=True)
    site.store.digests.settle(claims.digests, [], site.now)
    return site.parts.links.url(Action.SEVERAL, claims.digests[0].id, 0, site.now)


def release_several(browser: Browser, link: str, several: list[Held]) -> Answer:
    form = [("do", "release"), *(("mail", f"{held.id}.0") for held in several)]
    return browser.request(
        "POST",
        link,
        body=urlencode(form).encode(),
        headers={
            "Origin": ORIGIN,
            "Sec-Fetch-Site": "same-origin",
            "Content-Type": "application/x-www-form-urlencoded",
        },
    )


def test_several_messages_of_a_digest_do_not_wait_either(
    site: Site, relay: HangingServer, pool: ThreadPoolExecutor
) -> None:
    waiting = hung_releases(site, relay, pool)
    several = [site.hold(recipients=[ALICE]) for _ in range(5)]
    link, browser = digest_link(site), site.browser()
    answer = release_several(browser, link, several)
    assert browser.follow(answer, link).text.count("on its way to the inbox") == len(several)
    assert not any(answer.done() for answer in waiting)
    relay.work()
    assert retry_due(site.parts.actions) == len(several)
    assert {site.state(held) for held in several} == {State.RELEASED}


def test_several_messages_of_a_digest_wait_in_the_places_that_are_free(
    site: Site, relay: HangingServer, pool: ThreadPoolExecutor
) -> None:
    first = pool.submit(site.browser().post, site.link(Action.RELEASE, site.hold()), PRESS)
    wait_for(lambda: relay.connections == 1)
    several = [site.hold(recipients=[ALICE]) for _ in range(3 * AT_ONCE)]
    link, browser = digest_link(site), site.browser()
    others = pool.submit(release_several, browser, link, several)
    wait_for(lambda: relay.connections == AT_ONCE)
    assert "This message is on its way to the inbox." in by_link(site, one_more := site.hold())
    assert post_of_rspamd(site).json["status"] == "held"
    assert not first.done() and not others.done()
    assert relay.connections == AT_ONCE
    relay.work()
    assert first.result().status == 303
    assert browser.follow(others.result(), link).text.count("Released") >= len(several)
    assert relay.connections == AT_ONCE < len(relay.mails)
    assert {site.state(held) for held in several} == {State.RELEASED}
    assert site.state(one_more) is State.RELEASING


@pytest.mark.parametrize(("threads", "batches"), [(4, 1), (7, 2), (16, 3)])
def test_a_single_release_finds_a_place_beside_releases_of_several_messages(
    site: Site, relay: HangingServer, pool: ThreadPoolExecutor, threads: int, batches: int
) -> None:
    app = create_app(site.parts, threads)
    places = max(2, threads // 4)
    several = [site.hold(recipients=[ALICE]) for _ in range(2 * places)]
    link = digest_link(site)
    for number in range(batches):
        chosen = several[2 * number : 2 * number + 2] if batches > 1 else several
        pool.submit(release_several, Browser(app), link, chosen)
    wait_for(lambda: relay.connections == places - 1)
    single = pool.submit(Browser(app).post, site.link(Action.RELEASE, one := site.hold()), PRESS)
    wait_for(lambda: relay.connections == places)
    assert not single.done(), "it is at the mail server, not queued"
    assert site.delivery(one).attempts == 1
    assert post_of_rspamd(site).json["status"] == "held"


def test_a_store_that_fails_gives_the_places_back(
    site: Site, relay: HangingServer, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    several = [site.hold(recipients=[ALICE]) for _ in range(5)]
    link = digest_link(site)

    def down(*_: Any, **__: Any) -> Any:
        raise StoreUnavailable("down")

    with monkeypatch.context() as patch:
        patch.setattr(site.store.deliveries, "releasing", down)
        assert "rest=1" in (release_several(site.browser(), link, several).header("Location") or "")
    hung_releases(site, relay, pool)  # fails unless all places are free


def test_a_queued_release_checks_the_message_as_every_release(
    site: Site, relay: HangingServer, pool: ThreadPoolExecutor
) -> None:
    hung_releases(site, relay, pool)
    dangerous, deleted = site.hold(Tier.DANGEROUS), site.hold()
    site.parts.actions.delete(deleted.id, 0, BY_LINK)
    for held, state in ((dangerous, State.HELD), (deleted, State.DELETED)):
        by_link(site, held)
        assert site.state(held) is state
    relay.work()
    assert retry_due(site.parts.actions) == 0


def test_a_queued_message_that_becomes_dangerous_is_not_sent(
    site: Site, relay: HangingServer, pool: ThreadPoolExecutor
) -> None:
    waiting, data = hung_releases(site, relay, pool), mail()
    held = site.hold(data=data)
    by_link(site, held)
    assert site.hold(Tier.DANGEROUS, data=data).known
    relay.work()
    for answer in waiting:
        answer.result()
    retry_due(site.parts.actions)
    assert site.state(held) is State.HELD
    assert len(relay.mails) == AT_ONCE


def test_many_previews_at_once_leave_threads_and_say_so(
    site: Site, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, browser = site.hold(), site.signed_in(ALICE)
    gate, reading = threading.Event(), threading.Semaphore(0)
    body = type(site.store.messages).body

    def slow(*arguments: Any) -> Any:
        reading.release()
        gate.wait()
        return body(*arguments)

    monkeypatch.setattr(type(site.store.messages), "body", slow)
    try:
        waiting = [pool.submit(browser.get, f"/messages/{held.id}/") for _ in range(THREADS // 2)]
        for _ in waiting:
            assert reading.acquire(timeout=60)
        page = browser.get(f"/messages/{held.id}/")
        assert page.status == 200
        assert "Reload this page in a few seconds." in page.text
        assert "Release" in page.text
        assert "no longer available" not in page.text
        texts = set()
        for tag in TAGS:
            prefer(site.store, ALICE, Preferences(None, None, None, tag))
            found = re.search(
                r'<h2 id="says"[^>]*>.*?</h2>\s*<p class="state">(.*?)</p>', browser.get(f"/messages/{held.id}/").text
            )
            assert found
            texts.add(found[1])
        assert len(texts) == len(TAGS)
        assert post_of_rspamd(site).json["status"] == "held"
        assert not any(answer.done() for answer in waiting)
    finally:
        gate.set()
    assert all("Buy" in answer.result().text for answer in waiting)
    assert "Buy" in browser.get(f"/messages/{held.id}/").text


def test_searches_of_staff_leave_connections_to_rspamd(
    site: Site, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.store.staff.give(Grant(ALICE, Role.ADMINISTRATOR, EVERYWHERE, site.now, BY_OPERATOR))
    browser = site.signed_in(ALICE)
    form = {"form_token": browser.form_token()}
    gate, searching = threading.Event(), threading.Semaphore(0)
    groups = type(site.store.facets).groups

    def slow(*arguments: Any) -> Any:
        with site.store.facets._engine.reading():  # type: ignore[attr-defined]
            searching.release()
            gate.wait()
        return groups(*arguments)

    monkeypatch.setattr(type(site.store.facets), "groups", slow)
    try:
        waiting = [pool.submit(browser.get, "/admin/?by=symbol") for _ in range(2)]
        for _ in waiting:
            assert searching.acquire(timeout=60)
        answers = [browser.get(path) for path in ("/admin/?by=symbol", "/admin/?words=x", "/admin/audit")]
        for answer in (*answers, browser.post("/admin/audit/export", form)):
            assert (answer.status, answer.header("Retry-After")) == (503, "5"), answer.text
        assert browser.get("/admin/staff").status == 200
        assert post_of_rspamd(site).json["status"] == "held"
    finally:
        gate.set()
    assert [answer.result().status for answer in waiting] == [200, 200]
    assert browser.get("/admin/audit").status == 200


# ---- under uWSGI


def press(socket: str, token: str) -> bytes:
    form = b"pressed=1&checked=suspicious"
    return exchange(
        socket,
        packet(
            HEALTH
            | {
                "REQUEST_METHOD": "POST",
                "PATH_INFO": f"{ROOT}/link/{token}/",
                "HTTP_ORIGIN": ORIGIN,
                "HTTP_SEC_FETCH_SITE": "same-origin",
                "CONTENT_TYPE": "application/x-www-form-urlencoded",
                "CONTENT_LENGTH": str(len(form)),
            },
            form,
        ),
    )


def post(socket: str, data: bytes) -> bytes:
    variables = {
        "REQUEST_METHOD": "POST",
        "PATH_INFO": f"{ROOT}/",
        "CONTENT_TYPE": "message/rfc822",
        "CONTENT_LENGTH": str(len(data)),
        "HTTP_X_RSPAMD_RCPT": f'["{ALICE}"]',
    }
    return exchange(socket, packet(HEALTH | variables, data))


def ids(store: Store) -> list[UUID]:
    return list(store.messages.ids(None, 1000))


@pytest.mark.slow
@pytest.mark.parametrize("threads", [THREADS, 4])
def test_under_uwsgi_a_post_is_answered_before_hung_releases(
    start: Start, store_url: str, tmp_path: Path, relay: HangingServer, pool: ThreadPoolExecutor, threads: int
) -> None:
    keys = tmp_path / "links.keys"
    (tmp_path / "sitecustomize.py").write_text(
        "from portal.mail.relay import Relay\nRelay.__init__.__kwdefaults__['reply_seconds'] = 30\n"
    )
    home = start(
        *("--threads", str(threads)),
        QUARANTINE_SOCKET="socket",
        QUARANTINE_STORE__URL=store_url,
        QUARANTINE_RELAY__URL=relay.url,
        QUARANTINE_LINKS__KEYS_FILE=str(keys),
    )
    socket, count, at_once = f"{home}/socket", 2 * threads, max(2, threads // 4)
    for _ in range(count):
        assert b'"held"' in post(socket, mail())
    store = open_store(store_url)
    try:
        links = Links(read_keys(keys, create=False), f"{ORIGIN}{ROOT}", timedelta(days=14))
        held = ids(store)
        tokens = [links.token(Action.RELEASE, id, 0, datetime.now(UTC)) for id in held]
        pressed = [pool.submit(press, socket, token) for token in tokens]
        wait_for(lambda: sum(answer.done() for answer in pressed) >= count - at_once)
        assert b'"held"' in post(socket, mail())
        assert sum(answer.done() for answer in pressed) == count - at_once
        assert {store.deliveries.get(DeliveryId(id, 0)).state for id in held} == {State.RELEASING}
        relay.work()
        assert all(answer.result().startswith(b"HTTP/1.1 303 ") for answer in pressed)
        wait_for(lambda: all(store.deliveries.get(DeliveryId(id, 0)).state is State.RELEASED for id in held))
    finally:
        store.close()
    assert len(relay.mails) == count
    assert not relay.violations
