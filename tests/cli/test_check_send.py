"""`quarantine check --send`: a test message from Rspamd over the portal to an inbox, and what each step says."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from portal.cli import main, sending
from portal.model.audit import AuditFilter
from portal.model.message import Actor, ActorKind, DeliveryId, EventKind, Filter, State
from portal.stores import Store
from tests.builders import ALICE, BOB, digesting, hold
from tests.smtp_server import SmtpServer

Run = Callable[..., Result]


class Rspamd:
    """A controller whose exporter holds messages in ``store``, if ``action`` is `reject`."""

    def __init__(self, store: Store) -> None:
        rspamd, self.action, self.holds, self.status = self, "reject", True, 200
        self.requests: list[tuple[dict[str, str], bytes]] = []
        self.after: Callable[[DeliveryId], None] = lambda id: None  # called with the held delivery

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:  # noqa: N802 - the name that http.server calls
                body = self.rfile.read(int(self.headers["Content-Length"]))
                rspamd.requests.append((dict(self.headers), body))
                if rspamd.action == "reject" and rspamd.holds:
                    to = [self.headers["Rcpt"]]
                    sender, queue_id = self.headers["From"], self.headers["Queue-Id"]
                    held = hold(store, recipients=to, announce=to, data=body, envelope_sender=sender, queue_id=queue_id)
                    rspamd.after(DeliveryId(held.id, 0))
                answer = json.dumps({"action": rspamd.action, "symbols": {}}).encode()
                self.send_response(rspamd.status)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture
def smtp() -> Iterator[SmtpServer]:
    with SmtpServer() as server:
        yield server


@pytest.fixture
def rspamd(store: Store) -> Iterator[Rspamd]:
    made = Rspamd(store)
    threading.Thread(target=made.server.serve_forever, args=(0.01,)).start()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def digest_process(store: Store) -> Iterator[None]:
    """Send due digests to nobody."""
    stop = threading.Event()

    def work() -> None:
        while not stop.wait(0.05):
            for recipient in store.digests.due(datetime.now(UTC), 10):
                with digesting(store, recipient, datetime.now(UTC), 50):
                    pass

    thread = threading.Thread(target=work)
    thread.start()
    yield
    stop.set()
    thread.join()


@pytest.fixture
def run(store_url: str, tmp_path: Path, smtp: SmtpServer, rspamd: Rspamd, monkeypatch: pytest.MonkeyPatch) -> Run:
    config = tmp_path / "quarantine.toml"
    config.write_text(
        f'local_domains = ["example.org"]\nstore.url = "{store_url}"\nrelay.url = "{smtp.url}"\n'
        f'mail = {{url = "{smtp.url}", from_address = "quarantine@example.org"}}\n'
        f'links.keys_file = "{tmp_path / "links.keys"}"\nrspamd = {{url = "{rspamd.url}", scan_groups = []}}\n'
    )
    monkeypatch.setenv("QUARANTINE_CONFIG", str(config))
    monkeypatch.setattr(sending, "_HELD_SECONDS", 0.5)
    monkeypatch.setattr(sending, "_DIGEST_SECONDS", 5)

    def call(*words: str) -> Result:
        result = CliRunner().invoke(main, words)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    call("init")
    return call


def steps(result: Result) -> list[tuple[str, str]]:
    """Return the mark and the step of each line about the test message."""
    lines = [line for line in result.output.splitlines() if line[8:].startswith("test")]
    return [(line[:8].strip(), line[8:].removeprefix("test: ").split(":")[0]) for line in lines]


def test_a_test_message_goes_from_rspamd_to_the_inbox(
    run: Run, rspamd: Rspamd, store: Store, smtp: SmtpServer, digest_process: None
) -> None:
    others = [hold(store, recipients=[BOB]), hold(store, recipients=[BOB, ALICE])]
    result = run("check", "--send", ALICE)
    assert steps(result) == [("ok", "Rspamd"), ("ok", "portal"), ("ok", "digest"), ("ok", "relay")], result.output
    assert "the mail server answered 250 2.0.0 queued" in result.output
    ((headers, message),) = rspamd.requests
    assert (headers["From"], headers["Rcpt"]) == ("quarantine@example.org", ALICE)
    assert headers["Queue-Id"].encode() in message
    assert json.loads(headers["Settings"])["actions"]["reject"] < -1000
    (mail,) = smtp.mails
    assert (mail.sender, mail.recipients) == ("quarantine@example.org", [ALICE])
    assert mail.data.endswith(message)
    found = store.deliveries.search(Filter(), 50).deliveries
    assert {d.recipient: d.state for d in found if d.message.queue_id == headers["Queue-Id"]} == {ALICE: State.RELEASED}
    assert [d.state for each in others for d in store.deliveries.of_message(each.id)] == [State.HELD] * 3
    assert store.digests.last(BOB) is None
    recorded = [each for each in store.audit.list(AuditFilter(), 9) if each.actor.via == "cli"]
    assert {(each.act, each.subject) for each in recorded} >= {("digest-requested", ALICE), ("released", ALICE)}


def test_the_steps_are_in_the_json_as_well(run: Run, digest_process: None) -> None:
    found = json.loads(run("check", "--send", ALICE, "--json").output)
    assert [each["what"] for each in found][-4:] == ["test: Rspamd", "test: portal", "test: digest", "test: relay"]


def test_without_the_option_nothing_is_sent(run: Run, rspamd: Rspamd, smtp: SmtpServer) -> None:
    run("check")
    assert not rspamd.requests
    assert not smtp.mails


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("alice@elsewhere.example", "is not in local_domains"),
        ("alice", "local_domains"),
        ("a b@example.org\r\nX: y", "not sent"),
        ("info@example.org", "an alias or a role mailbox"),
    ],
)
def test_no_other_address_gets_the_message(
    run: Run, rspamd: Rspamd, smtp: SmtpServer, tmp_path: Path, address: str, why: str
) -> None:
    (tmp_path / "virtual").write_text("info@example.org alice@example.org, bob@example.org\n")
    with (tmp_path / "quarantine.toml").open("a") as config:
        config.write(f'people.alias_file = "{tmp_path / "virtual"}"\n')
    result = run("check", "--send", address)
    assert result.exit_code == 1
    assert [mark for mark, _ in steps(result)] == ["PROBLEM"]
    assert why in result.output
    assert not rspamd.requests
    assert not smtp.mails


def test_each_step_that_fails_says_what_to_do(
    run: Run, rspamd: Rspamd, smtp: SmtpServer, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    rspamd.status = 500
    assert "Set rspamd.url" in run("check", "--send", ALICE).output
    rspamd.status, rspamd.action = 200, "soft reject"
    assert "`quarantine portal:`" in run("check", "--send", ALICE).output
    rspamd.action = "no action"
    assert "the verdict 'no action'" in run("check", "--send", ALICE).output
    rspamd.action, rspamd.holds = "reject", False
    result = run("check", "--send", ALICE)
    assert steps(result) == [("ok", "Rspamd"), ("PROBLEM", "portal")]
    assert "exporter.hold_actions" in result.output
    assert result.exit_code == 1
    assert not smtp.mails

    rspamd.holds = True
    monkeypatch.setattr(sending, "_DIGEST_SECONDS", 0.3)
    smtp.script["RCPT"] = "550 5.7.1 spam"
    result = run("check", "--send", ALICE)
    assert steps(result)[2:] == [("PROBLEM", "digest"), ("PROBLEM", "relay")]
    assert "the digest process does not run" in result.output
    assert "550 5.7.1 spam" in result.output
    assert "deploy/postfix/master.cf.part" in result.output
    smtp.script["RCPT"] = "450 4.2.0 busy"
    assert "The digest process keeps trying" in run("check", "--send", ALICE).output


def test_a_person_who_stopped_digests_gets_the_message_only(run: Run, store: Store, smtp: SmtpServer) -> None:
    store.recipients.set_digests_stopped(ALICE, datetime.now(UTC))
    result = run("check", "--send", ALICE)
    assert steps(result) == [("ok", "Rspamd"), ("ok", "portal"), ("note", "digest"), ("ok", "relay")]
    assert "has stopped digests" in result.output
    assert len(smtp.mails) == 1


def test_a_digest_process_that_is_faster_is_no_recipient_who_stopped_digests(
    run: Run, store: Store, rspamd: Rspamd
) -> None:
    def announce(id: DeliveryId) -> None:
        with digesting(store, ALICE, datetime.now(UTC), 50, ignore_schedule=True):
            pass
        assert store.deliveries.get(id).announced_at is not None

    rspamd.after = announce
    result = run("check", "--send", ALICE)
    assert steps(result) == [("ok", "Rspamd"), ("ok", "portal"), ("ok", "digest"), ("ok", "relay")]


def test_a_message_that_its_recipient_deleted_is_not_waited_for(run: Run, store: Store, rspamd: Rspamd) -> None:
    def delete(id: DeliveryId) -> None:
        actor, kind = Actor(ActorKind.RECIPIENT), EventKind.DELETED
        store.deliveries.move(id, State.DELETED, {State.HELD}, actor, datetime.now(UTC), kind=kind)

    rspamd.after = delete
    result = run("check", "--send", ALICE)
    assert steps(result) == [("ok", "Rspamd"), ("ok", "portal"), ("note", "digest"), ("ok", "relay")]
    assert "somebody deleted the message" in result.output
