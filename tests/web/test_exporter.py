"""The exporter's POST: what is held, what is rejected before the body is read, and that 200 means durable."""

import gzip
import io
import json
import re
from collections.abc import Callable
from email import message_from_bytes
from email.policy import SMTP
from typing import Any
from uuid import UUID

import msgpack
import pytest

from portal.assemble import Parts
from portal.exporter import RULE_VERSION
from portal.model.errors import RelayDeferred, StoreUnavailable
from portal.model.links import Action
from portal.model.message import DeliveryId, Flag, Reader, State, Symbol, Tier
from portal.stores.records import Held
from tests.builders import ALICE, BOB, BY_OPERATOR, SENDER, mail
from tests.smtp_server import SmtpServer
from tests.statements import Statements
from tests.web_client import Answer, Browser, Site, basic

META = {
    "X-Rspamd-rcpt": json.dumps([ALICE, BOB]),
    "X-Rspamd-from": SENDER,
    "X-Rspamd-action": "reject",
    "X-Rspamd-score": "17.5",
    "X-Rspamd-symbols": json.dumps([{"name": "BAYES_SPAM", "score": 5.1, "options": ["99 %"]}]),
    "X-Rspamd-qid": "4XyZq1abc",
    "X-Rspamd-subject": "Offer",
    "X-Rspamd-ip": "198.51.100.9",
    "X-Rspamd-user": "unknown",
    "Content-Type": "text/plain",
}

# Rspamd's formatter `structured` sends no message.
STRUCTURED = {
    "uuid": "019", "qid": "x", "rcpt": [ALICE], "action": "reject", "ip": "198.51.100.9", "user": "unknown",
    "score": 17.5, "from": SENDER, "subject": "Offer", "symbols": [], "fuzzy": [], "text": "Buy", "urls": [],
}  # fmt: skip


@pytest.fixture
def site(parts: Parts) -> Site:
    return Site(parts)


def rspamd(site: Site, peer: str = "127.0.0.1") -> Browser:
    browser = site.browser()
    browser.peer = peer
    return browser


def post(site: Site, body: bytes | None = None, path: str = "/", peer: str = "127.0.0.1", **more: Any) -> Answer:
    headers = {**META, **more.pop("headers", {})}
    return rspamd(site, peer).request("POST", path, body=mail() if body is None else body, headers=headers, **more)


def count(site: Site) -> int:
    return len(site.store.deliveries.list_for(Reader(ALICE), list(State), 50).deliveries)


def test_it_holds_a_mail_byte_for_byte_and_returns_its_id(site: Site) -> None:
    data = mail() + b"\x00\xff bare\nlf"
    answer = post(site, data)
    assert answer.status == 200
    assert answer.header("Content-Type") == "application/json"
    assert answer.json["status"] == "held"
    id = UUID(answer.json["id"])
    assert b"".join(site.store.messages.body(id)) == data
    assert [d.recipient for d in site.store.deliveries.of_message(id)] == [ALICE, BOB]
    assert site.store.deliveries.get(DeliveryId(id, 0)).message.tier is Tier.SPAM


@pytest.mark.parametrize("path", ["/quarantine", "/quarantine/"])
def test_the_mount_point_takes_posts_with_and_without_the_slash(site: Site, path: str) -> None:
    assert post(site, path=path).json["status"] == "held"


def test_the_same_mail_again_is_known_under_its_first_id(site: Site) -> None:
    data = mail()
    first, again = post(site, data), post(site, data, headers={"X-Rspamd-qid": "another"})
    assert again.json == {"status": "known", "id": first.json["id"]}
    assert count(site) == 1


def test_a_mail_that_comes_again_as_a_virus_cannot_be_released_by_its_old_link(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    data = mail()
    first = post(site, data)
    held = Held(UUID(first.json["id"]), False)
    link = site.link(Action.RELEASE, held, minutes_old=11)
    assert "data-submit" in site.browser().get(link).text
    virus = json.dumps([{"name": "CLAM_VIRUS", "score": 0.0, "options": ["Eicar"]}])
    again = post(site, data, headers={"X-Rspamd-symbols": virus, "X-Rspamd-score": "0.5"})
    assert again.json == {"status": "known", "id": first.json["id"]}
    assert site.delivery(held).message.tier is Tier.DANGEROUS
    assert f"tier raised id={held.id} tier=dangerous" in caplog.text
    page = site.browser().get(link).text
    assert "Only an administrator can release it" in page
    assert "<form" not in page
    site.browser().post(link, {"pressed": "1"})
    assert site.state(held) is State.HELD
    shown = site.browser().get(site.link(Action.SHOW, held)).text
    assert "CLAM_VIRUS" in shown
    assert "BAYES_SPAM" not in shown
    assert "score 0.5" in shown


def test_the_page_shows_the_limit_of_the_score_and_a_description_of_an_unknown_symbol(site: Site) -> None:
    symbols = [
        {"name": "BAYES_SPAM", "score": 5.1, "description": "Message probably spam, probability: "},
        {"name": "LOCAL_RULE_17", "score": 9.0, "description": "<b>Seen</b> at\u202e the\r\nfirewall " + "x" * 300},
        {"name": "LOCAL_RULE_18", "score": 1.0},
    ]
    headers = {"X-Rspamd-symbols": json.dumps(symbols), "X-Rspamd-threshold": "15"}
    held = Held(UUID(post(site, headers=headers).json["id"]), False)
    for page in (site.browser().get(site.link(Action.SHOW, held)), site.signed_in(ALICE).get(f"/messages/{held.id}/")):
        assert "score 17.5, limit 15)" in page.text
        assert page.text.count("Technical description:") == 1  # other symbols have words, or no description
        assert '<bdi lang="en">&lt;b&gt;Seen&lt;/b&gt; at the firewall xxx' in page.text
        assert "x" * 201 not in page.text


def test_the_page_of_a_rule_that_sends_neither_shows_the_score_alone(site: Site) -> None:
    held = Held(UUID(post(site).json["id"]), False)
    page = site.browser().get(site.link(Action.SHOW, held)).text
    assert "(score 17.5)" in page
    assert "limit" not in page
    assert "Technical description" not in page


def test_a_worse_verdict_brings_its_threshold_and_descriptions(site: Site) -> None:
    data = mail()
    held = Held(UUID(post(site, data, headers={"X-Rspamd-threshold": "15"}).json["id"]), False)
    virus = json.dumps([{"name": "LOCAL_VIRUS", "score": 9.0, "description": "seen"}])
    post(site, data, headers={"X-Rspamd-symbols": virus, "X-Rspamd-score": "9", "X-Rspamd-threshold": "7.5"})
    message = site.delivery(held).message
    assert (message.tier, message.score, message.threshold) == (Tier.DANGEROUS, 9.0, 7.5)
    assert message.symbols == (Symbol("LOCAL_VIRUS", 9.0, (), "seen"),)


def test_only_local_recipients_are_announced(site: Site) -> None:
    post(site, headers={"X-Rspamd-rcpt": json.dumps([ALICE, "carol@elsewhere.example"])})
    assert site.store.recipients.get(ALICE).news_since is not None
    assert site.store.recipients.get("carol@elsewhere.example").news_since is None


def test_mail_that_is_not_withheld_is_not_selected(site: Site) -> None:
    answer = post(site, headers={"X-Rspamd-action": "no action"})
    assert (answer.status, answer.json) == (200, {"status": "not-selected", "id": None})
    assert count(site) == 0


def test_mail_that_is_not_selected_is_counted_by_action(site: Site) -> None:
    def counted() -> dict[str, float]:
        text = rspamd(site).get("/metrics").text
        found = re.findall(r'^quarantine_not_selected_total\{action="([^"]*)"\} (\S+)$', text, re.MULTILINE)
        return {action: float(number) for action, number in found}

    assert counted() == {}
    for action in ("no action", "No Action", "greylist", 'made up"\\'):
        assert post(site, headers={"X-Rspamd-action": action}).json["status"] == "not-selected"
    post(site)  # held
    assert counted() == {"no action": 2, "greylist": 1, "other": 1}


def test_rspamd_does_not_wait_for_counters(make_parts: Callable[..., Parts], monkeypatch: pytest.MonkeyPatch) -> None:
    statements = Statements(monkeypatch)
    site = Site(make_parts())
    with statements.of() as sent:
        assert post(site, headers={"X-Rspamd-action": "no action"}).json["status"] == "not-selected"
        wrong = rspamd(site).request("POST", "/", body=b"{}", headers={"Content-Type": "application/json"})
    assert wrong.status == 400
    assert sent == []


def test_mail_that_was_held_before_or_cannot_be_held_is_counted(site: Site) -> None:
    def counted() -> dict[str, str]:
        text = rspamd(site).get("/metrics").text
        return dict(re.findall(r'^quarantine_post_seconds_count\{outcome="([^"]*)"\} (\S+)$', text, re.MULTILINE))

    none = dict.fromkeys(("held", "known", "not-selected", "refused", "failed"), "0.0")
    assert counted() == none
    data = mail()
    for _ in range(3):
        post(site, body=data)
    assert rspamd(site).request("POST", "/", body=b"{}", headers={"Content-Type": "application/json"}).status == 400
    assert counted() == none | {"held": "1.0", "known": "2.0", "refused": "1.0"}


def test_a_mail_without_metadata_is_held_and_suspicious(site: Site) -> None:
    answer = rspamd(site).request("POST", "/", body=mail(), headers={"Content-Type": "message/rfc822"})
    assert answer.json["status"] == "held"
    assert site.store.deliveries.of_message(UUID(answer.json["id"]))[0].message.tier is Tier.SUSPICIOUS


@pytest.mark.parametrize("header", [{"X-Rspamd-forced": "1"}, {"X-Rspamd-symbols": "[]"}])
def test_mail_with_a_forced_verdict_is_suspicious(site: Site, header: dict[str, str]) -> None:
    answer = post(site, headers=header)
    delivery, *_ = site.store.deliveries.of_message(UUID(answer.json["id"]))
    assert delivery.message.tier is Tier.SUSPICIOUS
    assert delivery.message.flags == {Flag.FORCED}


def test_another_version_of_rspamds_files_is_logged_once(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    def logged(*versions: object) -> int:
        caplog.clear()
        names = ("X-Rspamd-Rule-Version", "X-Rspamd-Block-Rules-Version")
        assert post(site, headers=dict(zip(names, map(str, versions), strict=False))).status == 200
        return caplog.text.count("another version of its files")

    assert logged(RULE_VERSION, RULE_VERSION) == 0
    assert logged() == 1
    assert "rule=none block_rules=none" in caplog.text
    assert logged() == 0
    assert logged(RULE_VERSION, "0") == 1
    assert [logged(f"x{n}", RULE_VERSION) for n in range(20)] == [1] * 7 + [0] * 13


def test_an_empty_message_comes_as_get_and_is_not_selected(site: Site) -> None:
    answer = rspamd(site).get("/", headers=META)
    assert (answer.status, answer.json) == (200, {"status": "not-selected", "id": None})


def test_an_empty_message_is_not_selected_whatever_the_prefix_of_its_headers(site: Site) -> None:
    for prefix in ("Spam-", "X-My-Filter-", ""):
        headers = {name.replace("X-Rspamd-", prefix): value for name, value in META.items()}
        assert rspamd(site).get("/", headers=headers).json == {"status": "not-selected", "id": None}


@pytest.mark.parametrize("peer", ["127.0.0.1", "192.0.2.7"])
def test_nothing_that_comes_through_the_public_server_is_an_export(
    site: Site, caplog: pytest.LogCaptureFixture, peer: str
) -> None:
    public = {"QUARANTINE_PUBLIC": "1"}
    assert rspamd(site, peer).request("GET", "/", headers=META, environ=public).status == 303
    assert post(site, peer=peer, environ=public).status == 405
    assert count(site) == 0
    assert "export" not in caplog.text


def test_a_message_with_too_many_recipients_is_refused_and_not_held_for_some(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    rcpt = [ALICE, *(f"r{n}@example.org" for n in range(65_536))]
    export = {"rcpt": rcpt, "from": SENDER, "action": "reject", "score": 17.5, "qid": "4XyZq1abc", "symbols": []}
    body = msgpack.packb(export | {"message": mail()})
    answer = post(site, body, headers={"Content-Type": "application/msgpack", "X-Rspamd-rcpt": json.dumps([ALICE])})
    assert answer.status == 400
    assert "65537 recipients" in answer.json["error"]
    assert "export refused status=400: the message has 65537 recipients" in caplog.text
    assert count(site) == 0


def test_a_browsers_get_is_not_taken_for_an_export(site: Site) -> None:
    assert rspamd(site).get("/").header("Location") == "/quarantine/sign-in"


def test_an_empty_message_from_a_stranger_is_refused(site: Site) -> None:
    assert rspamd(site, "192.0.2.1").get("/", headers=META).status == 403


# ---- access


@pytest.mark.parametrize("peer", ["192.0.2.1", "10.0.0.1", "2001:db8::1", "", "unix:", "nonsense", "::ffff:192.0.2.1"])
def test_peers_outside_the_networks_are_refused(site: Site, peer: str) -> None:
    answer = post(site, peer=peer)
    assert answer.status == 403
    assert "error" in answer.json
    assert count(site) == 0


@pytest.mark.parametrize("peer", ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"])
def test_peers_in_the_networks_are_accepted(site: Site, peer: str) -> None:
    assert post(site, peer=peer).status == 200


LOGIN = {
    "exporter__user": "rspamd",
    "exporter__password": "öl:und:salz",
    "exporter__allowed_networks": "0.0.0.0/0,::/0",
}


@pytest.fixture
def guarded(make_parts: Callable[..., Parts]) -> Site:
    return Site(make_parts(**LOGIN))


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Basic",
        "Basic !!!!",
        "Basic ö",
        "Bearer x",
        basic("rspamd", "wrong"),
        basic("rspamd", ""),
        basic("", "öl:und:salz"),
        basic("rspamd", "öl:und:salz") + "AAAA",
    ],
)
def test_without_the_right_login_nothing_is_read(guarded: Site, authorization: str | None) -> None:
    body = io.BytesIO(mail())
    headers = {} if authorization is None else {"Authorization": authorization}
    answer = post(guarded, headers=headers, environ={"wsgi.input": body, "CONTENT_LENGTH": "100"}, peer="192.0.2.1")
    assert answer.status == 401
    assert answer.header("WWW-Authenticate").startswith("Basic ")  # type: ignore[union-attr]
    assert answer.json == {"error": "user name and password are missing or wrong"}
    assert body.tell() == 0
    assert count(guarded) == 0


def test_with_the_right_login_it_is_held(guarded: Site) -> None:
    headers = {"Authorization": basic("rspamd", "öl:und:salz")}
    assert post(guarded, headers=headers, peer="192.0.2.1").json["status"] == "held"


# ---- sizes


def test_too_large_is_refused_before_it_is_read(make_parts: Callable[..., Parts]) -> None:
    site = Site(make_parts(exporter__max_body_bytes=65536))
    body = io.BytesIO(b"x" * 65537)
    answer = post(site, environ={"wsgi.input": body, "CONTENT_LENGTH": "65537"})
    assert answer.status == 413
    assert "exporter.max_body_bytes" in answer.json["error"]
    assert body.tell() == 0


@pytest.mark.parametrize(
    ("length", "status"), [("", 411), ("-1", 400), ("+5", 400), ("5 5", 400), ("٣", 400), ("9" * 30, 400)]
)
def test_an_absurd_content_length_is_refused(site: Site, length: str, status: int) -> None:
    assert post(site, environ={"CONTENT_LENGTH": length}).status == status
    assert count(site) == 0


def test_a_body_cut_short_is_not_stored(site: Site) -> None:
    answer = post(site, environ={"CONTENT_LENGTH": "100000"})
    assert answer.status == 400
    assert count(site) == 0


def test_a_client_that_goes_away_is_not_stored(site: Site) -> None:
    class Broken(io.BytesIO):
        def read(self, *_: Any) -> bytes:
            raise OSError("error during read on wsgi.input")

    assert post(site, environ={"wsgi.input": Broken(), "CONTENT_LENGTH": "100"}).status == 400
    assert count(site) == 0


def test_a_gzip_bomb_is_refused(make_parts: Callable[..., Parts]) -> None:
    site = Site(make_parts(exporter__max_body_bytes=1 << 20))
    answer = post(site, gzip.compress(bytes(50 << 20)), headers={"Content-Encoding": "gzip"})
    assert answer.status == 413
    assert count(site) == 0


# ---- malformed bodies: a JSON reply says what to do, and nothing is stored


@pytest.mark.parametrize(
    ("content_type", "body", "more"),
    [
        ('multipart/form-data; boundary="abc"', b"--abc\r\nContent-Disposition: form-data", {}),
        ("multipart/form-data", b"--abc\r\n\r\n", {}),
        ("application/json", b'{"qid": "x", "rcpt": ["alice@example.org"], "action": "reject"}', {}),
        ("text/plain", msgpack.packb(STRUCTURED), {}),
        ("text/plain", b"not gzip", {"Content-Encoding": "gzip"}),
        ("text/plain", gzip.compress(mail())[:-9], {"Content-Encoding": "gzip"}),
    ],
)
def test_a_post_without_a_usable_message_is_a_400(
    site: Site, content_type: str, body: bytes, more: dict[str, str]
) -> None:
    headers = {"Content-Type": content_type, **more}
    answer = rspamd(site).request("POST", "/", body=body, headers=headers)
    assert answer.status == 400, answer.text
    assert len(answer.json["error"]) > 10
    assert count(site) == 0


# ---- the store fails


@pytest.mark.parametrize("error", [StoreUnavailable("full"), OSError("disk"), RuntimeError("unforeseen")])
def test_when_the_store_fails_the_sender_keeps_the_mail(
    site: Site, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(site.store.messages, "add", fail)
    answer = post(site)
    assert answer.status == 503
    assert answer.header("Retry-After") == "60"
    assert "again" in answer.json["error"]


# ---- the portal's own mail, exported by Rspamd


def test_our_own_mail_is_never_held_and_raises_one_alarm(make_parts: Callable[..., Parts]) -> None:
    site = Site(make_parts(mail__admin_address="postmaster@example.org"))
    for _ in range(3):
        id = site.hold().id
        marked = f"X-Quarantine-Mark: {site.parts.links.mark('digest', id)}\r\n".encode() + mail()
        assert post(site, marked).json == {"status": "not-selected", "id": None}
    site.pass_time(minutes=59)
    post(site, marked)
    with pytest.raises(RelayDeferred), site.store.outbox.sending(site.now) as alarm:
        assert alarm is not None
        alarm_text = " ".join(message_from_bytes(alarm.mail, policy=SMTP).get_content().split())
        raise RelayDeferred("451 later")
    assert "Rspamd exported a digest or sign-in message of this portal" in alarm_text
    assert "see docs/install.md" in alarm_text
    site.pass_time(seconds=30)
    assert sent_mails(site) == ["postmaster@example.org"]
    site.pass_time(minutes=2)
    post(site, marked)
    assert sent_mails(site) == ["postmaster@example.org"]


def sent_mails(site: Site) -> list[str]:
    sent: list[str] = []
    while True:
        with site.store.outbox.sending(site.now) as waiting:
            if waiting is None:
                return sent
            sent.append(waiting.to)


def test_a_forged_mark_changes_nothing(site: Site) -> None:
    assert post(site, b"X-Quarantine-Mark: digest x.y\r\n" + mail()).json["status"] == "held"


def test_a_released_mail_that_comes_back_is_known(make_parts: Callable[..., Parts]) -> None:
    with SmtpServer() as server:
        site = Site(make_parts(relay__url=server.url, mail__admin_address="postmaster@example.org"))
        id = UUID(post(site).json["id"])
        site.parts.actions.release(id, 0, BY_OPERATOR)
        released = b"Received: by mx.example.org; now\r\n" + server.mails[0].data
    assert post(site, released).json == {"status": "known", "id": str(id)}
    assert sent_mails(site) == ["postmaster@example.org"]


def test_a_copied_release_mark_does_not_hide_another_mail(site: Site) -> None:
    held = site.hold()
    marked = f"X-Quarantine-Mark: {site.parts.links.mark('release', held.id)}\r\n".encode() + mail("another")
    answer = post(site, marked)
    assert answer.json["status"] == "held"
    assert answer.json["id"] != str(held.id)
