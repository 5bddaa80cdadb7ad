"""``quarantine confirm-spam`` and ``unlearn``, on both stores."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from digest.housekeeping import learn_waiting
from portal.assemble import assemble
from portal.cli import main
from portal.model.audit import AuditFilter
from portal.model.message import State
from portal.settings import load
from portal.stores import Store
from tests.builders import ALICE, BOB, hold, now
from tests.rspamd_server import RspamdServer

Run = Callable[..., Result]


@pytest.fixture
def rspamd() -> Iterator[RspamdServer]:
    with RspamdServer() as server:
        yield server


@pytest.fixture
def run(store_url: str, store: Store, tmp_path: Path, rspamd: RspamdServer, monkeypatch: pytest.MonkeyPatch) -> Run:
    config = tmp_path / "quarantine.toml"
    config.write_text(
        f'local_domains = ["example.org"]\nstore.url = "{store_url}"\nmail.from_address = "q@example.org"\n'
        f'links.keys_file = "{tmp_path / "links.keys"}"\n'
    )
    monkeypatch.setenv("QUARANTINE_CONFIG", str(config))
    monkeypatch.setenv("QUARANTINE_RSPAMD__URL", rspamd.url)
    monkeypatch.setenv("QUARANTINE_RSPAMD__LEARN", "operators")

    def call(*words: str) -> Result:
        result = CliRunner().invoke(main, words)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        assert "Traceback" not in result.output
        return result

    return call


def learn() -> None:
    parts = assemble(load())
    learn_waiting(parts, now())
    parts.store.close()


def test_spam_is_confirmed_learned_and_unlearned(run: Run, store: Store, rspamd: RspamdServer) -> None:
    held = hold(store, recipients=[ALICE, BOB])
    result = run("unlearn", str(held.id))
    assert (result.exit_code, "has not learned this message" in result.output) == (1, True)
    result = run("confirm-spam", str(held.id))
    assert result.exit_code == 0
    assert f"{held.id} {ALICE}: deleted" in result.output
    learn()
    result = run("unlearn", str(held.id))
    assert result.exit_code == 0
    assert "learned as spam" in result.output
    [entry] = store.audit.list(AuditFilter(act="unlearned"), 9)
    assert (entry.delivery and entry.delivery.message_id, entry.detail) == (held.id, "learned as spam")
    assert entry.actor.who.startswith("operator:")
    learn()
    assert [path for path, _, _ in rspamd.learned] == ["/learnspam", "/learnham"]
    assert [delivery.state for delivery in store.deliveries.of_message(held.id)] == [State.DELETED] * 2
    meta = run("meta", str(held.id)).output
    assert "learned-spam by system: answer 200, by operator:" in meta
    assert "learned-ham by system: answer 200, by operator:" in meta


def test_restore_undoes_both(run: Run, store: Store, rspamd: RspamdServer) -> None:
    held = hold(store, recipients=[ALICE])
    run("confirm-spam", str(held.id), "--recipient", ALICE)
    learn()
    assert run("restore", str(held.id)).exit_code == 0
    learn()
    assert [path for path, _, _ in rspamd.learned] == ["/learnspam", "/learnham"]
    assert [delivery.state for delivery in store.deliveries.of_message(held.id)] == [State.HELD]


def test_nothing_is_deleted_if_nothing_would_be_learned(
    run: Run, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUARANTINE_RSPAMD__LEARN", "off")
    held = hold(store, recipients=[ALICE, BOB])
    result = run("confirm-spam", str(held.id))
    assert result.exit_code == 2
    assert result.output.startswith("rspamd.learn is off") and result.output.count("\n") == 1
    assert [delivery.state for delivery in store.deliveries.of_message(held.id)] == [State.HELD] * 2
    monkeypatch.delenv("QUARANTINE_RSPAMD__URL")
    assert run("unlearn", str(held.id)).exit_code == 2


def test_learning_needs_the_controller(run: Run, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QUARANTINE_RSPAMD__URL")
    result = run("list")
    assert (result.exit_code, "rspamd.learn needs rspamd.url" in result.output) == (2, True)
