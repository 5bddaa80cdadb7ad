"""The whole path of mail for an international domain: both spellings are one person, on both stores."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from email import message_from_bytes
from email.policy import default
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from digest import housekeeping, news, run
from digest.__main__ import main as digest_main
from portal.cli import main
from portal.model.links import Action
from portal.model.message import DeliveryId, State, Tier, identity, new_id
from portal.stores.records import DigestRecord, QueuedMail, SignIn, SignInLimits
from tests.conftest import MakeParts
from tests.flows.test_aliases import MAIL, digests, held, link, send_digests, write
from tests.smtp_server import SmtpServer
from tests.web.test_exporter import post
from tests.web.test_sign_in import request_sign_in, session_recipient
from tests.web_client import Browser, Site

A_LABEL, U_LABEL = "xn--mnchen-3ya.example", "münchen.example"
ERIKA, ERIKA_AS_READ = f"erika@{A_LABEL}", f"erika@{U_LABEL}"  # the identity, and the address as people see it
WRITTEN = [f"Erika@{U_LABEL}", f"Erika@{A_LABEL.upper()}"]  # as envelopes write it
INFO = f"info@{U_LABEL}"


@pytest.fixture
def smtp() -> Iterator[SmtpServer]:
    with SmtpServer() as server:
        yield server
        assert server.violations == []


@pytest.fixture(params=[U_LABEL, A_LABEL])
def local_domain(request: pytest.FixtureRequest) -> str:
    """The domain as spelled in the settings."""
    return str(request.param)


@pytest.fixture
def site(make_parts: MakeParts, smtp: SmtpServer, local_domain: str) -> Site:
    return Site(
        make_parts(
            relay__url=smtp.url,
            mail__url=smtp.url,
            local_domains=local_domain,
            mail__admin_address="postmaster@example.org",
        )
    )


@pytest.fixture
def role(make_parts: MakeParts, smtp: SmtpServer, tmp_path: Path) -> Site:
    """A site whose alias file has a role mailbox of two people."""
    virtual = tmp_path / "virtual"
    write(virtual, f"{INFO} {ERIKA_AS_READ}, max@{A_LABEL}\n")
    return Site(make_parts(relay__url=smtp.url, mail__url=smtp.url, local_domains=U_LABEL, people__alias_file=virtual))


def session_of(site: Site, recipient: str) -> Browser:
    """Return a browser whose session has this recipient in the store, as older versions wrote it."""
    browser, secret = site.browser(), hashlib.sha256(f"{recipient} {site.now}".encode()).hexdigest()
    site.store.sign_ins.start_session(hashlib.sha256(secret.encode()).digest(), recipient, site.now)
    browser.cookies["__Host-quarantine-session"] = secret
    return browser


def is_release(site: Site, url: str) -> bool:
    token = url.rstrip("/").rpartition("/")[2]
    return "/link/" in url and site.parts.links.verify(token, site.now).action is Action.RELEASE


def test_both_spellings_get_one_digest_and_release_to_their_own_envelopes(site: Site, smtp: SmtpServer) -> None:
    mails = [site.hold(recipients=[address], subject=word) for address, word in zip(WRITTEN, ("One", "Two"))]
    assert [site.delivery(mail).recipient for mail in mails] == [ERIKA] * 2
    assert [site.delivery(mail).address for mail in mails] == WRITTEN
    send_digests(site)
    (sent,) = smtp.mails
    header = message_from_bytes(sent.data, policy=default)["To"]
    ((to, text),) = digests(smtp).items()
    assert to == header == WRITTEN[1]  # as the last envelope wrote it
    assert "2 messages" in text
    assert ERIKA_AS_READ in text.lower()
    assert A_LABEL not in text.lower()
    assert "For info" not in text
    releases = [url for url in re.findall(r"^ *(http\S+) *$", text, re.MULTILINE) if is_release(site, url)]
    assert len(releases) == 2
    for url in releases:
        browser = site.browser()
        assert ERIKA_AS_READ in browser.get(url).text
        browser.post(url, {"pressed": "1"})
    assert sorted(sent.recipients for sent in smtp.mails) == sorted([address] for address in WRITTEN)
    assert {site.state(mail) for mail in mails} == {State.RELEASED}
    smtp.mails.clear()
    send_digests(site)
    assert digests(smtp) == {}


@pytest.mark.parametrize("envelope", WRITTEN)
def test_mail_of_ours_has_a_labels_and_a_release_the_envelopes_spelling(
    site: Site, smtp: SmtpServer, envelope: str
) -> None:
    every = smtp.extensions
    smtp.extensions = tuple(name for name in every if name != "SMTPUTF8")
    mail = held(site, envelope)
    send_digests(site)
    (to,) = digests(smtp)
    assert to.isascii()
    assert identity(to) == ERIKA
    smtp.extensions = every
    site.browser().post(site.link(Action.RELEASE, mail), {"pressed": "1"})
    assert [sent.recipients for sent in smtp.mails] == [[envelope]]


@pytest.mark.parametrize(
    "typed", [ERIKA, ERIKA_AS_READ, f"ERIKA@{U_LABEL.upper()}", f"erika@{A_LABEL.upper()}", "erika@münchen。example"]
)
def test_signing_in_with_either_spelling_leads_to_one_list(site: Site, typed: str) -> None:
    mails = [held(site, address, number=number) for number, address in enumerate(WRITTEN)]
    browser = site.browser()
    sign_in = request_sign_in(site, browser, typed)
    assert sign_in.to == WRITTEN[1]
    assert ERIKA_AS_READ in browser.get(sign_in.link).text
    browser.post("/sign-in/code", {"code": sign_in.code})
    assert session_recipient(browser) == ERIKA_AS_READ
    page = browser.get("/").text
    assert all(str(mail.id) in page for mail in mails)
    assert A_LABEL not in page.lower()
    for mail in mails:
        assert browser.get(f"/messages/{mail.id}/").status == 200


def test_an_alias_in_either_spelling_signs_its_person_in(
    role: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "virtual", f"sales@{A_LABEL} {ERIKA_AS_READ}\n")
    for typed in (f"sales@{A_LABEL}", f"Sales@{U_LABEL}"):
        browser = role.browser()
        mail = request_sign_in(role, browser, typed)
        with caplog.at_level("INFO", "quarantine.web"):
            browser.post("/sign-in/code", {"code": mail.code})
        assert session_recipient(browser) == ERIKA_AS_READ
        assert f"signed in recipient={ERIKA} " in caplog.text
        role.pass_time(minutes=2)


def test_a_person_without_mail_signs_in_without_smtputf8(site: Site) -> None:
    for typed in (ERIKA, ERIKA_AS_READ):
        assert request_sign_in(site, site.browser(), typed).to == ERIKA
        site.pass_time(minutes=2)


def test_preferences_and_links_are_one_persons(site: Site, smtp: SmtpServer) -> None:
    held(site, WRITTEN[0])
    send_digests(site)
    (text,) = digests(smtp).values()
    by_link = site.browser()
    by_link.post(link(text, "Change or stop"), {"change": "save", "language": "de", "schedule": "", "timezone": ""})
    browser = session_of(site, ERIKA)
    browser.post("/preferences", {"change": "stop", "form_token": browser.form_token()})
    page = browser.get("/preferences").text
    assert 'lang="de"' in page
    assert ERIKA_AS_READ in page
    held(site, WRITTEN[1], number=2)
    send_digests(site)
    assert digests(smtp) == {}
    browser = session_of(site, ERIKA)
    browser.post("/preferences", {"change": "resume", "form_token": browser.form_token()})
    send_digests(site)
    assert set(digests(smtp)) == {WRITTEN[1]}
    site.pass_time(minutes=1)
    browser = session_of(site, ERIKA)
    browser.post("/preferences", {"change": "revoke", "form_token": browser.form_token()})
    assert site.browser().get(link(text, "Release")).status == 404


def test_a_retry_is_known_by_the_spelling_of_its_envelope(site: Site) -> None:
    """Its dedup key is that of schema version 5, so the messages of older stores are still recognized."""
    first = held(site, WRITTEN[0])
    for written, status in ((WRITTEN[0], "known"), (WRITTEN[1], "held")):
        again = post(site, MAIL % (b"b", 1), headers={"X-Rspamd-rcpt": json.dumps([written])}).json
        assert again["status"] == status
        assert (again["id"] == str(first.id)) is (status == "known")


def test_a_request_names_the_recipient_with_u_labels(site: Site, smtp: SmtpServer) -> None:
    mail = site.hold(Tier.DANGEROUS, recipients=[WRITTEN[1]])
    site.parts.actions.request_release(
        mail.id, 0, site.parts.actions.store.deliveries.history(DeliveryId(mail.id, 0))[0].actor
    )
    housekeeping.send_queued(site.parts, site.now)
    (sent,) = smtp.mails
    read = message_from_bytes(sent.data, policy=default)
    body = read.get_body(("plain",))
    assert body is not None
    assert f"Release requested by {ERIKA_AS_READ}" == read["Subject"]
    assert f"To: Erika@{U_LABEL}" in body.get_content()
    assert f"--recipient {ERIKA}" in body.get_content()  # quoted for any shell


# ---- the alias file


def test_the_alias_file_names_people_in_either_spelling(role: Site, smtp: SmtpServer) -> None:
    mail = held(role, f"Info@{A_LABEL}")
    send_digests(role)
    texts = digests(smtp)
    assert set(texts) == {ERIKA, f"max@{A_LABEL}"}  # no envelope has named them yet
    assert all(f"– Info@{U_LABEL} (1)" in text for text in texts.values())
    role.browser().post(link(texts[ERIKA], "Release"), {"pressed": "1"})
    assert [sent.recipients for sent in smtp.mails] == [[f"Info@{A_LABEL}"]]
    assert f"By {ERIKA_AS_READ}" in role.browser().get(link(texts[f"max@{A_LABEL}"], "Release")).text
    page = role.signed_in(f"max@{A_LABEL}").get(f"/messages/{mail.id}.0/").text
    assert f"\u2068{ERIKA_AS_READ}\u2069" in page
    assert f"<bdi>Info@{U_LABEL}</bdi>" in page


# ---- links, cookies and rows of older versions, with U-labels


def test_a_link_of_an_older_version_opens(role: Site, smtp: SmtpServer) -> None:
    mail = held(role, INFO)
    token = role.parts.links.token(Action.RELEASE, mail.id, 0, role.now, ERIKA_AS_READ)
    assert role.browser().get(f"/link/{token}/").status == 200
    role.browser().post(f"/link/{token}/", {"pressed": "1"})
    assert [sent.recipients for sent in smtp.mails] == [[INFO]]
    for stranger in (f"moritz@{U_LABEL}", INFO):
        token = role.parts.links.token(Action.RELEASE, mail.id, 0, role.now, stranger)
        assert role.browser().get(f"/link/{token}/").status == 404


def test_a_device_cookie_of_an_older_version_is_known(site: Site) -> None:
    mail = held(site, WRITTEN[0])
    browser = site.browser()
    url = site.link(Action.DELETE, mail)
    browser.post(url)  # without the form field of the button
    assert site.state(mail) is State.HELD
    old = site.parts.links.device(None, ERIKA_AS_READ, site.now)
    browser.cookies["__Host-quarantine-device"] = old
    browser.post(url)
    assert site.state(mail) is State.DELETED


def test_a_session_of_an_older_version_stays_valid(site: Site) -> None:
    mail = held(site, WRITTEN[1])
    browser = session_of(site, ERIKA_AS_READ)
    assert session_recipient(browser) == ERIKA_AS_READ
    browser.post(f"/messages/{mail.id}/delete", {"form_token": browser.form_token()})
    assert site.state(mail) is State.DELETED


def test_a_sign_in_of_an_older_version_can_be_used(site: Site) -> None:
    held(site, WRITTEN[1])
    token = "t" * 32
    hashed = hashlib.sha256(token.encode()).digest()
    later = site.now + timedelta(minutes=15)
    sign_in = SignIn(hashed, b"c" * 32, b"b" * 32, ERIKA_AS_READ, "192.0.2.7", site.now, later)
    assert site.store.sign_ins.start(sign_in, SignInLimits(), QueuedMail("", b""))
    browser = site.browser()
    assert ERIKA_AS_READ in browser.get(f"/sign-in/{token}/").text
    browser.post(f"/sign-in/{token}/", {"pressed": "1"}, headers={"Sec-Fetch-User": "?1"})
    assert session_recipient(browser) == ERIKA_AS_READ
    assert 'class="mail"' in browser.get("/").text


def test_the_foot_of_a_digest_of_an_older_version_stops_digests(site: Site) -> None:
    id = new_id(site.now)
    site.store.digests.import_records([DigestRecord(id, ERIKA_AS_READ, ERIKA_AS_READ, site.now, site.now, ())])
    token = site.parts.links.token(Action.PREFERENCES, id, 0, site.now)
    assert ERIKA_AS_READ in site.browser().get(f"/link/{token}/").text
    form = {"List-Unsubscribe": "One-Click"}
    assert site.browser().post(f"/link/{token}/", form).status == 200
    assert site.store.recipients.get(ERIKA).stopped_at == site.now


def test_an_opt_out_from_before_an_upgrade_survives_being_an_alias(role: Site) -> None:
    since = datetime(2026, 11, 22, 7, 0, tzinfo=role.now.tzinfo)
    role.store.notes.set_default("people.stopped", json.dumps({f"max@{U_LABEL}": since.isoformat()}))
    news.find_news(role.parts, role.now)
    assert role.store.recipients.get(f"max@{A_LABEL}").stopped_at == since
    assert role.store.notes.get("people.stopped") == "{}"


# ---- the command line


@pytest.fixture
def call(
    site: Site, store_url: str, smtp: SmtpServer, local_domain: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    for name, value in {
        "CONFIG": "/dev/null", "STORE__URL": store_url, "LOCAL_DOMAINS": local_domain, "RELAY__URL": smtp.url,
        "MAIL__URL": smtp.url, "MAIL__FROM_ADDRESS": "quarantine@example.org",
        "LINKS__KEYS_FILE": str(tmp_path / "links.keys"),
    }.items():  # fmt: skip
        monkeypatch.setenv(f"QUARANTINE_{name}", value)

    def call(*words: str) -> Result:
        command, words = (digest_main, words) if words[0] == "once" else (main, words)
        result = CliRunner().invoke(command, words)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.output
        return result

    return call


@pytest.mark.parametrize("named", [ERIKA, ERIKA_AS_READ])
def test_operators_name_recipients_in_either_spelling(
    site: Site, smtp: SmtpServer, call: Callable[..., Result], named: str
) -> None:
    mails = [held(site, address, "other@example.org", number=number) for number, address in enumerate(WRITTEN)]
    for words in ((), ("--words", "offer")):
        listed = call("list", "--recipient", named, *words).output
        assert listed.count(f"Erika@{U_LABEL}") + listed.count(ERIKA_AS_READ) == 2
        assert all(str(mail.id) in listed for mail in mails)
        assert A_LABEL not in listed.lower()
    found = [json.loads(line) for line in call("list", "--recipient", named, "--json").output.splitlines()]
    assert sorted(delivery["recipient"] for delivery in found) == sorted(WRITTEN)  # for machines, as in the envelope
    for mail in mails:
        done = call("release", str(mail.id), "--recipient", named)
        assert done.exit_code == 0, done.output
        assert U_LABEL in done.output
    assert [sent.recipients for sent in smtp.mails] == [[address] for address in WRITTEN]
    smtp.mails.clear()
    assert f"Erika@{U_LABEL}: released" in call("meta", str(mails[1].id)).output
    held(site, WRITTEN[1], number=3)
    dry = call("once", "--recipient", named, "--dry-run").output
    assert ERIKA_AS_READ in dry
    assert A_LABEL not in dry
    assert ERIKA_AS_READ in call("once", "--recipient", named).output
    assert set(digests(smtp)) == {WRITTEN[1]}
    assert ERIKA_AS_READ in call("once", "--recipient", named, "--resend").output
    assert set(digests(smtp)) == {WRITTEN[1]}


def test_check_and_settings_show_u_labels(call: Callable[..., Result]) -> None:
    assert f"local_domains: {U_LABEL}" in call("check").output
    assert U_LABEL in call("settings").output


def test_a_digest_that_fails_is_logged_with_the_identity(
    site: Site, smtp: SmtpServer, caplog: pytest.LogCaptureFixture
) -> None:
    held(site, WRITTEN[0])
    with caplog.at_level("INFO", "quarantine"):
        news.schedule_news(site.parts, site.now)
        run.send_due(site.parts, site.now + timedelta(days=1))
    assert f"recipient={ERIKA} " in caplog.text
