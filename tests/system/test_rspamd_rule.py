"""The shipped Rspamd rules on a real Rspamd: their exports, and that no verdict loses mail while the portal is down.
See docs/exporter.md."""

from __future__ import annotations

import smtplib
import subprocess
from pathlib import Path

import pytest

from tests.ports import free_port
from tests.system.conftest import Mx
from tests.system.mails import ALICE, BOB, REJECTED, SENDER, spam
from tests.system.services import (
    RSPAMD_CONF,
    Portal,
    Postfix,
    exporter_conf,
    rspamd,
    send,
    shipped_rules,
    write_rspamd,
)
from tests.system.test_mail_path import held, meta

pytestmark = pytest.mark.system

RULES = shipped_rules()
# "quarantine" makes Postfix keep the mail in its hold queue when it is not deferred.
VERDICTS = {"scored": REJECTED} | {
    f"forced {action}": {"X-Test-Force": action} for action in ("reject", "discard", "quarantine")
}


@pytest.mark.parametrize("discarding", [False, True], ids=["rejecting", "discarding"])
@pytest.mark.parametrize("verdict", VERDICTS)
@pytest.mark.parametrize("failure", ["refuse", "500", "break"])
def test_mail_is_deferred_while_the_portal_is_down(
    mx: Mx, needle: str, failure: str, verdict: str, discarding: bool
) -> None:
    mx.switch.set("refuse")
    mx.switch.set(failure)
    port = mx.postfix.smtp_discarding if discarding else mx.postfix.smtp
    assert send(port, SENDER, [ALICE, BOB], spam(needle, VERDICTS[verdict])) == (451, "4.7.1 Try again later")
    assert mx.postfix.queue() == ""


@pytest.mark.parametrize("discarding", [False, True], ids=["rejecting", "discarding"])
@pytest.mark.parametrize("verdict", ["scored", "forced discard"])
def test_mail_is_deferred_while_the_portal_hangs(mx: Mx, needle: str, verdict: str, discarding: bool) -> None:
    mx.switch.set("hang")
    port = mx.postfix.smtp_discarding if discarding else mx.postfix.smtp
    mx.switch.set("refuse")
    mx.switch.set("hang")
    assert send(port, SENDER, [ALICE], spam(needle, VERDICTS[verdict])) == (451, "4.7.1 Try again later")


def test_mail_that_is_delivered_needs_no_portal(mx: Mx, needle: str) -> None:
    mx.switch.set("refuse")
    taken = mx.switch.taken
    assert send(mx.postfix.smtp, SENDER, [ALICE], spam(needle, {}))[0] == 250
    assert send(mx.postfix.smtp, SENDER, [ALICE], spam(needle, {"X-Test-Score": "7"}))[0] == 250
    assert mx.switch.taken == taken


@pytest.mark.parametrize("discarding", [False, True], ids=["rejecting", "discarding"])
@pytest.mark.parametrize("verdict", ["scored", "forced reject", "forced discard"])
def test_mail_that_is_not_selected_is_rejected_and_the_next_one_is_not(
    mx: Mx, portal: Portal, needle: str, verdict: str, discarding: bool
) -> None:
    """Rspamd keeps `set_milter_reply{reject=…}` for the later messages of an SMTP connection."""
    port = mx.postfix.smtp_discarding if discarding else mx.postfix.smtp
    with smtplib.SMTP("127.0.0.1", port, "client.example.net", timeout=60) as client:
        client.ehlo()
        for state, code in (("not-selected", 554), ("pass", 250 if discarding else 554), ("not-selected", 554)):
            mx.switch.set(state)
            client.mail(SENDER)
            client.rcpt(ALICE)
            assert client.data(spam(needle, VERDICTS[verdict if state != "pass" else "scored"]))[0] == code, state
    mx.switch.set("pass")
    assert [d["recipient"] for d in held(portal, needle)] == [ALICE]
    assert mx.postfix.queue() == ""


def test_no_mail_is_discarded_by_a_proxy_that_rejects_beside_one_that_discards(
    mx: Mx, portal: Portal, place: Path, needle: str
) -> None:
    discarding = free_port()
    worker = (
        f'worker "rspamd_proxy" {{ bind_socket = "127.0.0.1:{discarding}"; count = 1; milter = yes; '
        'discard_on_reject = true; upstream "local" { default = yes; self_scan = yes; } }\n'
    )
    conf = exporter_conf("metadata_exporter.conf", f"http://127.0.0.1:{mx.switch.port}/")
    with rspamd(place / f"rspamd-two-{needle}", conf, workers=worker) as both:
        postfix = Postfix(place / f"postfix-two-{needle}", both.milter, discarding)
        with postfix.running():
            # Lua sees the rejecting proxy only, so what follows a rejected message in a connection is rejected, too.
            for port, codes in ((postfix.smtp, (554, 554, 554)), (postfix.smtp_discarding, (250, 554, 554))):
                with smtplib.SMTP("127.0.0.1", port, "client.example.net", timeout=60) as client:
                    client.ehlo()
                    for state, code in zip(("pass", "not-selected", "pass"), codes, strict=True):
                        mx.switch.set(state)
                        client.mail(SENDER)
                        client.rcpt(ALICE)
                        mail = spam(f"{needle}{port}{len(held(portal, needle))}", REJECTED)
                        assert client.data(mail)[0] == code, (state, codes)
    mx.switch.set("pass")
    assert len(held(portal, needle)) == 4


@pytest.mark.parametrize("action", ["reject", "discard"])
def test_forced_verdicts_are_held(mx: Mx, portal: Portal, needle: str, action: str) -> None:
    send(mx.postfix.smtp_discarding, SENDER, [ALICE], spam(needle, {"X-Test-Force": action}))
    message = meta(portal, needle)
    assert message["action"] == action
    assert message["flags"] == ["forced"] and message["tier"] == "suspicious"  # no filter ran, so no virus scanner
    assert message["threshold"] is None  # the score is not the reason


def test_the_rule_exports_everything_and_nothing_is_flagged(mx: Mx, portal: Portal, needle: str) -> None:
    send(mx.postfix.smtp, SENDER, [ALICE], spam(needle, REJECTED | {"X-Test-Options": "1"}))
    message = meta(portal, needle)
    assert message["flags"] == [] and message["tier"] == "spam"
    assert message["subject"] == f"{needle} Grüße" and message["client_ip"] == "127.0.0.1" and message["score"] >= 20
    assert message["queue_id"] and message["action"] == "reject" and message["threshold"] == 15
    descriptions = {symbol["name"]: symbol["description"] for symbol in message["symbols"]}
    scored = descriptions.pop("TEST_SCORE")
    assert scored.startswith('The "score"  of a header, üüü') and scored.endswith("ü") and len(scored.encode()) < 201
    assert len(descriptions) > 6 and 3 <= sum(map(bool, descriptions.values())) <= 5
    options = next(symbol["options"] for symbol in message["symbols"] if symbol["name"] == "TEST_OPTIONS")
    assert 'with "quotes", a comma' in options and "Grüße 漢字" in options


def test_hundreds_of_symbols_are_cut_at_a_whole_one_and_that_is_noticed(mx: Mx, portal: Portal, needle: str) -> None:
    send(mx.postfix.smtp, SENDER, [ALICE], spam(needle, REJECTED | {"X-Test-Symbols": "600"}))
    message = meta(portal, needle)
    names = [symbol["name"] for symbol in message["symbols"]]
    assert message["flags"] == ["symbols"] and message["tier"] == "suspicious"
    assert "TEST_SCORE" in names and len(names) > 100  # symbols with the highest score come first and are kept


def test_a_virus_is_exported_beside_hundreds_of_symbols(mx: Mx, portal: Portal, needle: str) -> None:
    many = REJECTED | {"X-Test-Symbols": "200", "X-Test-Virus": "1"}
    send(mx.postfix.smtp, SENDER, [ALICE], spam(needle, many))
    message = meta(portal, needle)
    names = [symbol["name"] for symbol in message["symbols"]]
    assert message["flags"] == ["symbols"]  # some have no options
    assert "TEST_VIRUS" in names and len(names) > 200
    assert any(symbol["options"] for symbol in message["symbols"])


def test_descriptions_give_way_to_symbols(mx: Mx, portal: Portal, needle: str) -> None:
    seen = set()
    for count in range(136, 160, 4):  # around 15,000 bytes
        word = f"{needle}{count}"
        send(mx.postfix.smtp, SENDER, [ALICE], spam(word, REJECTED | {"X-Test-Symbols": str(count)}))
        message = meta(portal, word)
        seen.add((message["flags"] == [], any(symbol["description"] for symbol in message["symbols"])))
    assert seen == {(True, True), (True, False), (False, False)}


def test_a_subject_cannot_add_a_header_to_the_export(mx: Mx, portal: Portal, needle: str) -> None:
    evil = "=?utf-8?q?a=0D=0AX-Rspamd-action:_no_action=0D=0AX-Rspamd-rcpt:_[]?="
    mail = spam(needle, REJECTED).replace(b"Subject: ", f"Subject: {evil} ".encode())
    assert send(mx.postfix.smtp, SENDER, [ALICE], mail)[0] == 554
    assert meta(portal, needle)["action"] == "reject"
    assert [d["recipient"] for d in held(portal, needle)] == [ALICE]


def test_a_long_subject_is_cut_between_characters(mx: Mx, portal: Portal, needle: str) -> None:
    mail = spam(needle, REJECTED).replace("Grüße".encode(), "ü\r\n ".encode() * 1500)
    assert send(mx.postfix.smtp, SENDER, [ALICE], mail)[0] == 554
    assert "\ufffd" not in meta(portal, needle)["subject"]


def test_the_stock_exporter_of_debians_rspamd_works_too(
    mx: Mx, portal: Portal, place: Path, tmp_path_factory: pytest.TempPathFactory, needle: str
) -> None:
    home = place / f"rspamd-stock-{needle}"
    conf = exporter_conf("metadata_exporter-old.conf", f"http://127.0.0.1:{mx.switch.port}/")
    with rspamd(home, conf) as stock:
        postfix = Postfix(place / f"postfix-stock-{needle}", stock.milter, stock.milter)
        with postfix.running():
            mail = spam(needle, REJECTED | {"X-Test-Symbols": "300"})
            assert send(postfix.smtp, SENDER, [ALICE, BOB], mail)[0] == 554
            message = meta(portal, needle)
            assert [d["recipient"] for d in message["deliveries"]] == [ALICE, BOB]
            assert message["flags"] == ["symbols"]  # 40 KB of symbols, cut by Nginx
            assert message["tier"] == "suspicious" and message["envelope_sender"] == SENDER
            mx.switch.set("refuse")
            assert send(postfix.smtp, SENDER, [ALICE], mail)[0] == 451


@pytest.mark.parametrize("name", RULES)
def test_rspamd_itself_accepts_the_rule(place: Path, name: str) -> None:
    home = place / f"configtest-{name}"
    ports = free_port(), free_port(), free_port()
    variables = write_rspamd(home, RULES[name].read_text(), ports, discard_on_reject=False)
    command = ["rspamadm", *variables, "configtest", "-c", RSPAMD_CONF]
    done = subprocess.run(command, capture_output=True, text=True)
    output = done.stdout + done.stderr
    assert done.returncode == 0 and "syntax OK" in output, output
    # Debian's 3.4 has no formatter "multipart"; that rule must have no other error.
    assert "no sender is blocked" not in output and "quarantine.lua" not in output, output
    wrong = [line for line in output.splitlines() if "metadata_exporter" in line and "rror" in line]
    assert all("multipart" in line for line in wrong) and (not wrong or "3.14" in name), output


def test_without_the_file_of_the_block_rules_the_rule_works_and_says_so(place: Path) -> None:
    home = place / "configtest-without"
    ports = free_port(), free_port(), free_port()
    variables = write_rspamd(home, RULES["metadata_exporter.conf"].read_text(), ports)
    (home / "local.d/quarantine.lua").unlink()
    command = ["rspamadm", *variables, "configtest", "-c", RSPAMD_CONF]
    done = subprocess.run(command, capture_output=True, text=True)
    output = done.stdout + done.stderr
    assert done.returncode == 0 and "no sender is blocked: cannot open" in output, output


def test_the_rules_differ_only_where_they_say_so() -> None:
    texts = [path.read_text() for path in RULES.values()]
    assert all("defer = true;" in text for text in texts if 'backend = "http"' in text)
    assert all(text.count('"http://127.0.0.1:8081/"') == 1 for text in texts)
