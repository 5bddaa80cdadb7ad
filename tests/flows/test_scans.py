"""Virus scans of held messages, on both stores: after holding, in the background, and right before a release."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from digest.housekeeping import scan_waiting
from portal.batches.parallel import retry_due
from portal.cli import rspamd_checks
from portal.model.errors import NotAllowed, RelayDeferred, RspamdUnavailable, StoreUnavailable
from portal.model.links import Action
from portal.model.message import DeliveryId, EventKind, Message, Scan, ScanOutcome, State, Symbol, Tier
from portal.scanning import Scanning
from portal.stores.records import Held
from tests.builders import ALICE, BOB, BY_LINK, BY_OPERATOR, hold, mail
from tests.conftest import MakeParts
from tests.rspamd_server import ARCHIVE, UNREADABLE, VIRUS, RspamdServer, wait_long_for_scans
from tests.smtp_server import SmtpServer
from tests.web.test_downloads import download, with_attachment
from tests.web.test_exporter import post
from tests.web_client import Site

ADMIN = "postmaster@example.org"
INFECTED = mail() + VIRUS + b"\r\n"


@pytest.fixture
def smtp() -> Iterator[SmtpServer]:
    with SmtpServer() as server:
        yield server


@pytest.fixture
def rspamd(monkeypatch: pytest.MonkeyPatch) -> Iterator[RspamdServer]:
    wait_long_for_scans(monkeypatch)
    with RspamdServer() as server:
        yield server


@pytest.fixture
def make_site(make_parts: MakeParts, smtp: SmtpServer, rspamd: RspamdServer) -> Callable[..., Site]:
    def make(**changes: object) -> Site:
        settings = {"relay__url": smtp.url, "mail__url": smtp.url, "mail__admin_address": ADMIN}
        return Site(make_parts(**settings | {"rspamd__url": rspamd.url} | changes))

    return make


@pytest.fixture
def site(make_site: Callable[..., Site]) -> Site:
    return make_site()


def held_by_post(site: Site, data: bytes | None = None) -> Held:
    return Held(UUID(post(site, mail() if data is None else data).json["id"]), known=False)


def message(site: Site, held: Held) -> Message:
    return site.delivery(held).message


def scan(site: Site, held: Held) -> Scan:
    found = message(site, held).scan
    assert found is not None
    return found


def release(site: Site, held: Held, *, operator: bool = False, number: int = 0) -> None:
    site.parts.actions.release(held.id, number, BY_OPERATOR if operator else BY_LINK, operator=operator)


def alarms(site: Site, smtp: SmtpServer) -> list[str]:
    from digest.housekeeping import send_queued

    send_queued(site.parts, site.now)
    return [m.data.decode() for m in smtp.mails if m.recipients == [ADMIN]]


# ---- after holding


def test_a_held_message_is_scanned_in_the_background(site: Site, rspamd: RspamdServer) -> None:
    data = mail()
    held = held_by_post(site, data)
    assert rspamd.scans == []  # the sender does not wait for the scanner
    assert message(site, held).tier is Tier.SUSPICIOUS
    assert scan_waiting(site.parts, site.now) == 1
    [(headers, body)] = rspamd.scans
    assert body == data
    assert headers["Pass"] == "all"
    assert json.loads(headers["Settings"]) == {"groups_enabled": ["antivirus"]}
    assert not {"From", "Rcpt", "User", "Ip", "Queue-Id", "Deliver-To"} & set(headers)
    assert scan(site, held).outcome is ScanOutcome.CLEAN
    assert abs((scan(site, held).at or site.now) - site.now) < timedelta(seconds=10)
    assert message(site, held).tier is Tier.SPAM
    assert scan_waiting(site.parts, site.now) == 0
    assert site.store.stats(site.now).jobs_waiting == 0


def test_a_virus_found_in_the_background_makes_the_message_dangerous(
    site: Site, smtp: SmtpServer, rspamd: RspamdServer
) -> None:
    held = held_by_post(site, INFECTED)
    scan_waiting(site.parts, site.now)
    assert message(site, held).tier is Tier.DANGEROUS
    assert "CLAM_VIRUS" in [symbol.name for symbol in message(site, held).symbols]
    assert [event.kind for event in site.history(held)][-1] is EventKind.RAISED
    with pytest.raises(NotAllowed):
        release(site, held)
    [alarm] = alarms(site, smtp)
    assert str(held.id) in alarm
    page = site.signed_in(ALICE).get(f"/messages/{held.id}/").text
    assert "Threat found" in page
    assert "A virus scanner found malware" in page


def test_an_encrypted_archive_is_suspicious_and_no_alarm(site: Site, smtp: SmtpServer) -> None:
    held, other = held_by_post(site, mail() + ARCHIVE), held_by_post(site, mail() + ARCHIVE)
    release(site, other)  # it was suspicious before, as it waited for its scan
    scan_waiting(site.parts, site.now)
    assert message(site, held).verdict_tier is Tier.SUSPICIOUS
    assert [m.recipients for m in smtp.mails] == [[ALICE]]
    assert alarms(site, smtp) == []


def test_a_scanner_with_a_name_of_its_own_is_dangerous(site: Site, rspamd: RspamdServer) -> None:
    rspamd.scanners, rspamd.symbols = ("OUR_SCANNER", "OUR_SCANNER_FAIL"), {"OUR_SCANNER": ["W32/Test"]}
    held = held_by_post(site)
    scan_waiting(site.parts, site.now)
    assert message(site, held).tier is Tier.DANGEROUS


def test_symbols_of_other_rules_are_not_findings(site: Site, rspamd: RspamdServer) -> None:
    rspamd.symbols = {"LOCAL_RULE": ["x"], "DATE_IN_PAST": []}
    held = held_by_post(site)
    scan_waiting(site.parts, site.now)
    assert (scan(site, held).outcome, scan(site, held).symbols) == (ScanOutcome.CLEAN, ())


def test_scans_wait_for_a_scanner_that_is_down(
    site: Site, rspamd: RspamdServer, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = held_by_post(site), held_by_post(site)
    rspamd.symbols = {"CLAM_VIRUS_FAIL": ["failed to scan and retransmits exceed"]}
    assert scan_waiting(site.parts, site.now) == 0
    assert scan(site, first).outcome is ScanOutcome.FAILED
    assert "retransmits" in scan(site, first).detail
    assert message(site, first).tier is Tier.SUSPICIOUS
    assert f"scan failed id={first.id}" in caplog.text
    page = site.signed_in(ALICE).get(f"/messages/{first.id}/").text
    assert "The virus scan could not be completed" in page
    assert "retransmits" not in page
    rspamd.symbols = None
    assert scan_waiting(site.parts, site.now) == 0  # not before a pause
    scan_waiting(site.parts, site.now + timedelta(seconds=11))
    assert {message(site, held).tier for held in (first, second)} == {Tier.SPAM}


def test_scans_are_given_up_after_some_tries(
    site: Site, rspamd: RspamdServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("digest.housekeeping._SCAN_TRIES", 3)
    rspamd.status = 500
    held = held_by_post(site)
    for days in (1, 2, 3):  # whatever the age of the message, as after a reindex
        assert site.store.stats(site.now).jobs_waiting == 1
        scan_waiting(site.parts, site.now + timedelta(days=days))
    assert site.store.stats(site.now).jobs_waiting == 0
    assert f"scan given up id={held.id}" in caplog.text
    assert (scan(site, held).outcome, message(site, held).tier) == (ScanOutcome.FAILED, Tier.SUSPICIOUS)


def test_the_scan_of_a_process_that_died_is_done_by_another(site: Site, rspamd: RspamdServer) -> None:
    held = held_by_post(site)
    [_] = site.store.jobs.claim("scan", 5, site.now)
    assert scan_waiting(site.parts, site.now) == 0
    assert scan_waiting(site.parts, site.now + timedelta(minutes=2)) == 1
    assert scan(site, held).outcome is ScanOutcome.CLEAN


def test_a_scan_that_is_done_is_not_repeated_by_an_old_job(site: Site, rspamd: RspamdServer) -> None:
    held = held_by_post(site)
    release(site, held)
    assert len(rspamd.scans) == 1
    scan_waiting(site.parts, site.now)
    assert len(rspamd.scans) == 1


def test_a_purged_message_is_not_scanned(site: Site, rspamd: RspamdServer) -> None:
    held_by_post(site)
    site.store.purge(site.now + timedelta(days=2), site.now + timedelta(days=3))
    scan_waiting(site.parts, site.now)
    assert (rspamd.scans, site.store.stats(site.now).jobs_waiting) == ([], 0)


def test_many_messages_are_scanned_in_one_call(site: Site, rspamd: RspamdServer) -> None:
    held = [held_by_post(site) for _ in range(11)]
    assert scan_waiting(site.parts, site.now) == 11
    assert {scan(site, each).outcome for each in held} == {ScanOutcome.CLEAN}


def test_without_a_url_nothing_is_scanned(make_site: Callable[..., Site], rspamd: RspamdServer) -> None:
    for changes in ({"rspamd__url": ""}, {"rspamd__scan_groups": ""}):
        site = make_site(**changes)
        held = held_by_post(site)
        scan_waiting(site.parts, site.now)
        release(site, held)
        assert (message(site, held).scan, message(site, held).tier) == (None, Tier.SPAM)
    assert (rspamd.scans, rspamd.listed) == ([], 0)


@pytest.mark.parametrize("kind", ["no scanner", "too large"])
def test_a_message_that_cannot_be_scanned_is_suspicious_and_can_be_released(
    make_site: Callable[..., Site], smtp: SmtpServer, rspamd: RspamdServer, kind: str
) -> None:
    site = make_site(rspamd__scan_max_bytes=65_536)
    if kind == "no scanner":
        rspamd.scanners = ("CLAM_VIRUS_FAIL",)
    held = held_by_post(site, mail(size_bytes=70_000 if kind == "too large" else 0))
    scan_waiting(site.parts, site.now)
    assert (scan(site, held).outcome, message(site, held).tier) == (ScanOutcome.FAILED, Tier.SUSPICIOUS)
    assert (rspamd.scans, site.store.stats(site.now).jobs_waiting) == ([], 0)
    release(site, held)
    assert [m.recipients for m in smtp.mails] == [[ALICE]]


# ---- before a release


def test_a_virus_that_is_known_by_now_stops_the_release(site: Site, smtp: SmtpServer, rspamd: RspamdServer) -> None:
    rspamd.symbols = {}
    held = held_by_post(site, INFECTED)
    scan_waiting(site.parts, site.now)
    assert message(site, held).tier is Tier.SPAM
    rspamd.symbols = None
    site.pass_time(hours=2)
    link, browser = site.link(Action.RELEASE, held), site.browser()
    page = browser.follow(browser.post(link, {"pressed": "1"}), link)
    assert smtp.mails == []
    assert (site.state(held), message(site, held).tier) == (State.HELD, Tier.DANGEROUS)
    assert "the virus scan reported a problem" in page.text
    assert [event.kind for event in site.history(held)][-3:] == ["releasing", "raised", "stopped"]
    assert len(alarms(site, smtp)) == 1
    smtp.mails.clear()
    browser.post(link, {"pressed": "1"})
    assert smtp.mails == []


def test_a_worse_verdict_is_not_reported_as_a_finding_of_a_scan(site: Site, smtp: SmtpServer) -> None:
    data = mail()
    held = held_by_post(site, data)
    smtp.script["MAIL"] = "451 4.3.0 later"
    with pytest.raises(RelayDeferred):
        release(site, held)
    del smtp.script["MAIL"]
    hold(site.store, data, tier=Tier.DANGEROUS, symbols=(Symbol("CLAM_VIRUS", 0.0),))
    site.pass_time(minutes=2)
    retry_due(site.parts.actions)
    assert (site.state(held), message(site, held).tier) == (State.HELD, Tier.DANGEROUS)
    assert alarms(site, smtp) == []


def test_an_operator_may_release_what_the_scan_stopped(site: Site, smtp: SmtpServer) -> None:
    held = held_by_post(site, INFECTED)
    with pytest.raises(NotAllowed):
        release(site, held, operator=True)
    assert smtp.mails == []
    release(site, held, operator=True)
    assert [m.recipients for m in smtp.mails] == [[ALICE]]


def test_a_scan_counts_for_an_hour(site: Site, rspamd: RspamdServer) -> None:
    held = held_by_post(site)
    scan_waiting(site.parts, site.now)
    site.pass_time(minutes=58)
    release(site, held)
    assert len(rspamd.scans) == 1
    site.pass_time(minutes=3)
    release(site, held, number=1)
    assert len(rspamd.scans) == 2


def test_a_release_does_not_wait_for_the_background(site: Site, smtp: SmtpServer) -> None:
    held = held_by_post(site)
    release(site, held)
    assert scan(site, held).outcome is ScanOutcome.CLEAN
    assert [m.recipients for m in smtp.mails] == [[ALICE]]


def test_a_message_from_before_the_scans_is_scanned_at_its_release(site: Site, rspamd: RspamdServer) -> None:
    held = hold(site.store, INFECTED)
    with pytest.raises(NotAllowed):
        release(site, held)
    assert message(site, held).tier is Tier.DANGEROUS


@pytest.mark.parametrize(
    "failure", ["refuses", "500", "401", "no JSON", "other JSON", "deep JSON", "skipped", "fails", "hangs", "drips"]
)
def test_a_release_waits_for_the_scanner(
    site: Site, smtp: SmtpServer, rspamd: RspamdServer, failure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = held_by_post(site)
    match failure:
        case "500":
            rspamd.status = 500
        case "401":
            rspamd.password = "secret"
        case "no JSON":
            rspamd.reply = b"<html>"
        case "other JSON":
            rspamd.reply = b'[{"symbols": null}]'
        case "deep JSON":
            rspamd.reply = b"[" * 200_000
        case "skipped":
            rspamd.skips = True
        case "drips":
            rspamd.drip.set()
        case "fails":
            rspamd.symbols = {"CLAM_VIRUS_FAIL": []}
        case "hangs":
            rspamd.hang.clear()
        case _:
            rspamd.__exit__(None, None, None)
    with monkeypatch.context() as patch, pytest.raises(RelayDeferred, match="waits for the virus scanner"):
        if failure in ("hangs", "drips"):
            patch.setattr("portal.actions.RELEASE_SECONDS", 0.3)
        release(site, held)
    assert smtp.mails == []
    assert (site.state(held), message(site, held).tier) == (State.RELEASING, Tier.SUSPICIOUS)
    link = site.link(Action.RELEASE, held)
    page = site.browser().get(link + "?done=1").text
    assert "The release was deferred. It is retried automatically" in page
    if failure != "refuses":
        rspamd.status, rspamd.password, rspamd.reply, rspamd.symbols, rspamd.skips = 200, "", None, None, False
        rspamd.drip.clear()
        rspamd.hang.set()
        site.pass_time(minutes=2)
        assert retry_due(site.parts.actions) == 1
        assert [m.recipients for m in smtp.mails] == [[ALICE]]
        assert scan(site, held).outcome is ScanOutcome.CLEAN


def test_a_site_may_release_without_a_scan(
    make_site: Callable[..., Site], smtp: SmtpServer, rspamd: RspamdServer
) -> None:
    site = make_site(rspamd__release_unscanned=True)
    rspamd.status = 503
    held = held_by_post(site)
    release(site, held)
    assert [m.recipients for m in smtp.mails] == [[ALICE]]
    assert scan(site, held).outcome is ScanOutcome.FAILED


def test_an_unscanned_message_is_never_released_without_a_press(
    site: Site, smtp: SmtpServer, rspamd: RspamdServer
) -> None:
    held = held_by_post(site)
    link = site.link(Action.RELEASE, held, minutes_old=60)
    site.browser().post(link, {})  # as the page does that submits itself
    assert (site.state(held), rspamd.scans) == (State.HELD, [])
    scan_waiting(site.parts, site.now)
    site.browser().post(link, {})
    assert (site.state(held), len(smtp.mails)) == (State.RELEASED, 1)


def test_the_password_is_sent(make_site: Callable[..., Site], rspamd: RspamdServer, tmp_path: Path) -> None:
    rspamd.password = "secret"
    (tmp_path / "password").write_text("secret\n")
    site = make_site(rspamd__password_file=str(tmp_path / "password"))
    held = held_by_post(site)
    assert scan_waiting(site.parts, site.now) == 1
    assert scan(site, held).outcome is ScanOutcome.CLEAN


def test_each_recipient_is_protected(site: Site, smtp: SmtpServer) -> None:
    held = held_by_post(site, INFECTED)
    with pytest.raises(NotAllowed):
        release(site, held)
    number = next(d.number for d in site.store.deliveries.of_message(held.id) if d.recipient == BOB)
    with pytest.raises(NotAllowed):
        release(site, held, number=number)
    assert site.store.deliveries.history(DeliveryId(held.id, number))[-1].kind is EventKind.RAISED
    assert [m for m in smtp.mails if m.recipients != [ADMIN]] == []


def test_a_finding_of_another_scan_stops_the_release_as_well(
    site: Site, smtp: SmtpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, ask = held_by_post(site, INFECTED), Scanning._ask

    def ask_after_the_background(*of_release: Any) -> Scan:
        monkeypatch.setattr(Scanning, "_ask", ask)
        scan_waiting(site.parts, site.now)
        return ask(*of_release)

    monkeypatch.setattr(Scanning, "_ask", ask_after_the_background)
    with pytest.raises(NotAllowed):
        release(site, held)
    assert smtp.mails == []


def test_a_finding_counts_although_the_scan_of_the_release_failed(
    make_site: Callable[..., Site], smtp: SmtpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = make_site(rspamd__release_unscanned=True)
    held, ask = held_by_post(site, INFECTED), Scanning._ask

    def fail_after_the_background(*_: Any) -> Scan:
        monkeypatch.setattr(Scanning, "_ask", ask)
        scan_waiting(site.parts, site.now)
        raise RspamdUnavailable("no answer")

    monkeypatch.setattr(Scanning, "_ask", fail_after_the_background)
    with pytest.raises(NotAllowed):
        release(site, held)
    assert smtp.mails == []


def test_a_message_that_the_scanner_can_never_read_is_released_after_some_tries(
    site: Site, smtp: SmtpServer, rspamd: RspamdServer
) -> None:
    held = held_by_post(site, mail() + UNREADABLE)
    with pytest.raises(RelayDeferred):
        release(site, held)
    for _ in range(4):
        site.pass_time(hours=1)
        retry_due(site.parts.actions)
    assert [m.recipients for m in smtp.mails] == [[ALICE]]
    assert message(site, held).tier is Tier.SUSPICIOUS


def test_an_operator_does_not_wait_for_the_scanner(site: Site, smtp: SmtpServer, rspamd: RspamdServer) -> None:
    rspamd.status = 500
    held = held_by_post(site)
    release(site, held, operator=True)
    assert [m.recipients for m in smtp.mails] == [[ALICE]]


def test_recipients_read_nothing_about_the_scanner(site: Site, rspamd: RspamdServer) -> None:
    held = held_by_post(site)
    rspamd.symbols = {"CLAM_VIRUS_FAIL": ["failed to scan 10.1.2.3"]}
    with pytest.raises(RelayDeferred):
        release(site, held)
    assert "10.1.2.3" not in site.signed_in(ALICE).get(f"/messages/{held.id}/").text
    site.pass_time(days=6)
    retry_due(site.parts.actions)
    assert site.state(held) is State.HELD
    page = site.signed_in(ALICE).get(f"/messages/{held.id}/").text
    assert "given up after 5 days" in page
    assert "10.1.2.3" not in page


def test_a_failure_does_not_make_an_earlier_scan_undone(site: Site, rspamd: RspamdServer) -> None:
    held = held_by_post(site)
    scan_waiting(site.parts, site.now)
    site.pass_time(hours=2)
    rspamd.status = 500
    with pytest.raises(RelayDeferred):
        release(site, held)
    assert (scan(site, held).outcome, message(site, held).tier) == (ScanOutcome.CLEAN, Tier.SPAM)


def test_a_scanner_that_was_removed_is_not_counted_on(site: Site, rspamd: RspamdServer) -> None:
    held_by_post(site)
    scan_waiting(site.parts, site.now)
    rspamd.scanners, rspamd.symbols = (), {}
    held = held_by_post(site, INFECTED)
    scan_waiting(site.parts, site.now)
    assert scan(site, held).outcome is ScanOutcome.FAILED


def test_a_link_releases_nothing_by_itself_that_was_never_scanned(
    site: Site, smtp: SmtpServer, rspamd: RspamdServer
) -> None:
    rspamd.scanners = ()
    held = hold(site.store)  # before rspamd.url was set
    site.browser().post(site.link(Action.RELEASE, held, minutes_old=60), {})
    assert (site.state(held), smtp.mails) == (State.HELD, [])


def test_the_alarm_of_a_process_that_died_is_sent_by_the_next(
    site: Site, smtp: SmtpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = held_by_post(site, INFECTED)
    with monkeypatch.context() as patch:
        patch.setattr(
            type(site.parts.actions), "report_finding", lambda *_: (_ for _ in ()).throw(StoreUnavailable(""))
        )
        with pytest.raises(StoreUnavailable):
            scan_waiting(site.parts, site.now)
    assert message(site, held).tier is Tier.DANGEROUS
    scan_waiting(site.parts, site.now + timedelta(minutes=3))
    assert len(alarms(site, smtp)) == 1


def test_an_error_of_the_program_ends_a_scan_after_some_tries(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("digest.housekeeping._SCAN_TRIES", 2)
    monkeypatch.setattr(Scanning, "_ask", lambda *_: 1 / 0)
    held_by_post(site)
    scan_waiting(site.parts, site.now)
    scan_waiting(site.parts, site.now + timedelta(hours=1))
    assert site.store.stats(site.now).jobs_waiting == 0
    assert "ZeroDivisionError" in caplog.text


# ---- for administrators


def test_metrics_count_scans(site: Site, rspamd: RspamdServer) -> None:
    held_by_post(site)
    held_by_post(site, INFECTED)
    browser = site.browser()
    browser.peer = "127.0.0.1"
    assert "quarantine_jobs_waiting 2.0" in browser.get("/metrics").text
    scan_waiting(site.parts, site.now)
    rspamd.status = 500
    held_by_post(site)
    scan_waiting(site.parts, site.now)
    text = browser.get("/metrics").text
    for outcome in ("clean", "found", "failed"):
        assert f'quarantine_scans_total{{outcome="{outcome}"}} 1.0' in text
    assert "quarantine_jobs_waiting 1.0" in text


def test_check_tests_the_scanner(make_site: Callable[..., Site], rspamd: RspamdServer) -> None:
    def found(**changes: object) -> list[tuple[bool | None, str]]:
        return [(each.ok, each.text) for each in rspamd_checks.scanner(make_site(**changes).parts.settings)]

    assert found() == [(True, f"Rspamd at {rspamd.url} scans (CLAM_VIRUS, CLAM_VIRUS_ENCRYPTED, CLAM_VIRUS_MACRO)")]
    assert found(rspamd__scan_groups="") == []
    [(ok, text)] = found(rspamd__url="")
    assert (ok, "rspamd.url is not set" in text) == (None, True)
    rspamd.symbols = {"CLAM_VIRUS_FAIL": ["connection refused"]}
    [(ok, text)] = found()
    assert (ok, "CLAM_VIRUS_FAIL connection refused" in text, "Releases wait" in text) == (False, True, True)
    rspamd.scanners = ()
    [(ok, text)] = found()
    assert (ok, "has none in the groups antivirus" in text) == (False, True)
    rspamd.password = "secret"
    [(ok, text)] = found()
    assert (ok, "check rspamd.password" in text) == (False, True)
    [(ok, text)] = found(rspamd__release_unscanned=True)
    assert (ok, "released without a scan" in text) == (False, True)


# ---- before a download


def test_a_download_has_the_message_scanned_as_a_release_has(
    site: Site, smtp: SmtpServer, rspamd: RspamdServer
) -> None:
    rspamd.symbols = {}  # the scanner does not know the virus yet
    whole, single = held_by_post(site, INFECTED), held_by_post(site, with_attachment(VIRUS))
    scan_waiting(site.parts, site.now)
    browser = site.signed_in(ALICE)
    assert download(browser, whole).status == download(browser, single, part="3").status == 200
    site.pass_time(days=3)
    browser = site.signed_in(ALICE)
    rspamd.symbols = {"CLAM_VIRUS": ["Eicar"]}
    for held, form in ((whole, {}), (single, {"part": "3"})):
        answer = download(browser, held, **form)
        assert answer.status == 403 and VIRUS not in answer.body
        assert message(site, held).tier is Tier.DANGEROUS
        assert [event.kind for event in site.history(held)].count(EventKind.DOWNLOADED) == 1
    assert len(alarms(site, smtp)) == 1


def test_without_a_scanner_spam_is_not_downloaded(site: Site, rspamd: RspamdServer) -> None:
    data = with_attachment(b"%PDF-1.7")
    held = held_by_post(site, data)
    scan_waiting(site.parts, site.now)
    site.pass_time(days=3)
    browser = site.signed_in(ALICE)
    rspamd.status = 500
    for form in ({}, {"part": "3"}):
        answer = download(browser, held, **form)
        assert answer.status == 503 and "virus scanner does not answer" in answer.text
    assert EventKind.DOWNLOADED not in [event.kind for event in site.history(held)]
    rspamd.status = 200
    assert download(browser, held).body == data


def test_a_message_that_was_never_scanned_is_downloaded_from_the_page_with_a_warning(
    site: Site, rspamd: RspamdServer
) -> None:
    data = mail()
    held, browser = held_by_post(site, data), site.signed_in(ALICE)
    rspamd.status = 500
    answer = browser.post(f"/messages/{held.id}/download", {"form_token": browser.form_token()})
    page = browser.follow(answer, f"/messages/{held.id}/download").text
    assert 'class="warning"' in page and 'name="warned"' in page
    assert download(browser, held).body == data
