"""The shipped Nginx configuration in front of the real portal."""

from __future__ import annotations

import json
import subprocess

import pytest

from tests.system.mails import ALICE, SENDER, spam
from tests.system.services import Nginx, Portal, Reply, folder, http
from tests.system.test_mail_path import held, meta

pytestmark = pytest.mark.system


def post(portal: Portal, mail: bytes, **metadata: str) -> Reply:
    """Post an export like an old Rspamd, over Nginx."""
    headers = {"Content-Type": "text/plain", "User-Agent": "rspamd-3.4"}
    return http(
        portal.nginx.exporter_url, mail, headers | {f"X-Rspamd-{name}": value for name, value in metadata.items()}
    )


def symbols(number: int) -> str:
    """Return this number of symbols as JSON, about 130 bytes each; the first one has a high score."""
    many = [{"name": "BAYES_SPAM", "score": 5.1, "options": ["100.00%"]}]
    many += [
        {"name": f"TEST_MANY_SYMBOL_WITH_A_LONG_NAME_{n:03}", "score": 0.0, "options": [f"option-{n}.example.net"],
         "group": "test", "groups": ["test"]}
        for n in range(number)
    ]  # fmt: skip
    return json.dumps(many)


def test_nginx_accepts_the_shipped_configuration() -> None:
    with folder() as home:
        done = subprocess.run([*Nginx(home, "unix:/run/quarantine.sock").write(), "-t"], capture_output=True, text=True)
    assert done.returncode == 0 and "[warn]" not in done.stderr, done.stderr


def test_600_symbols_200_recipients_and_an_absurd_subject_get_through(portal: Portal, needle: str) -> None:
    recipients = [ALICE, *(f"somebody-with-a-long-name-{number:03}@example.org" for number in range(199))]
    metadata = {
        "symbols": symbols(600),
        "rcpt": json.dumps(recipients),
        "subject": f"{needle} " + "absurd " * 4000,
        "from": SENDER,
        "action": "reject",
        "score": "26.1",
        "qid": "4XyZq1abc",
        "user": "u" * 3000,
        "fuzzy": json.dumps(["f" * 128] * 60),
        "scan_time": "120",
        "rspamd_server": "mx1.example.org",
    }
    assert sum(map(len, metadata.values())) > 120_000
    answer = post(portal, spam(needle, {}), **metadata)
    assert answer.status == 200 and json.loads(answer.body)["status"] == "held"
    message = meta(portal, needle)
    assert [delivery["recipient"] for delivery in message["deliveries"]] == recipients
    assert message["flags"] == ["symbols"] and message["tier"] == "suspicious"
    assert "BAYES_SPAM" in [symbol["name"] for symbol in message["symbols"]]
    assert message["queue_id"] == "4XyZq1abc" and message["envelope_sender"] == SENDER


def test_too_many_recipients_are_left_out_rather_than_cut(portal: Portal, needle: str) -> None:
    recipients = json.dumps([f"somebody-{number:04}@example.org" for number in range(1500)])
    metadata = {"rcpt": recipients, "symbols": symbols(2), "from": SENDER, "action": "reject", "score": "20"}
    assert post(portal, spam(needle, {}), **metadata).status == 200
    message = meta(portal, needle)
    assert [delivery["recipient"] for delivery in message["deliveries"]] == [""]
    assert message["flags"] == ["recipients"] and message["tier"] == "suspicious"


def test_the_null_sender_is_distinguished_from_an_unknown_one(portal: Portal, needle: str) -> None:
    metadata = {"rcpt": f'["{ALICE}"]', "symbols": symbols(2), "action": "reject", "score": "20"}
    assert post(portal, spam(needle, {}), **metadata | {"from": ""}).status == 200
    assert meta(portal, needle)["envelope_sender"] == "" and meta(portal, needle)["flags"] == []
    other = needle.replace("needle", "other")
    assert post(portal, spam(other, {}), **metadata).status == 200
    assert meta(portal, other)["envelope_sender"] is None and meta(portal, other)["flags"] == ["sender"]


def test_a_mail_of_many_megabytes_is_held_as_it_is(portal: Portal, needle: str) -> None:
    mail = spam(needle, {}, body=b"0123456789" * 7 * 300_000 + b"\r\n")
    metadata = {"rcpt": f'["{ALICE}"]', "symbols": symbols(2), "from": SENDER, "action": "reject", "score": "20"}
    assert post(portal, mail, **metadata).status == 200
    command = [portal.bin / "quarantine", "print", held(portal, needle)[0]["id"]]
    done = subprocess.run(command, env=portal.environment, cwd=portal.home, capture_output=True, check=True)
    assert done.stdout == mail


def test_an_oversize_post_is_413(portal: Portal) -> None:
    assert post(portal, b"x" * (80 * 2**20 + 1)).status == 413


@pytest.mark.parametrize("path", ["", "/", "//", "/./", "/%2e/", "?a=b", "/%2F"])
@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_the_public_server_takes_no_export(portal: Portal, method: str, path: str) -> None:
    answer = http(portal.nginx.public_url + path, b"x", {"Content-Type": "message/rfc822"}, method)
    assert answer.status == 405


@pytest.mark.parametrize("path", ["/metrics", "/metrics/", "//metrics", "/%6Detrics", "/x/../metrics"])
def test_the_public_server_hides_the_metrics(portal: Portal, path: str) -> None:
    assert http(portal.nginx.public_url + path).status == 404


def test_monitoring_on_this_host_sees_health_and_metrics(portal: Portal) -> None:
    assert json.loads(http(portal.nginx.exporter_url + "healthz").body)["status"] == "ok"
    assert b"quarantine_store_up 1" in http(portal.nginx.exporter_url + "metrics").body


def test_the_exporters_server_has_nothing_else(portal: Portal) -> None:
    for path in ("quarantine/sign-in", "sign-in", "quarantine/messages/", "static/style.css"):
        assert http(portal.nginx.exporter_url + path).status == 404


def test_a_proof_for_a_certificate_is_served_without_tls(portal: Portal) -> None:
    folder = portal.nginx.home / "www" / ".well-known" / "acme-challenge"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "token").write_text("proof")
    for path in (portal.nginx.home, portal.nginx.home / "www", folder.parent, folder):
        path.chmod(0o755)
    address = f"http://127.0.0.1:{portal.nginx.http}/.well-known/acme-challenge/"
    answer = http(f"{address}token", headers={"Host": "quarantine.example.org"})
    assert (answer.status, answer.body, answer.headers["Content-Type"]) == (200, b"proof", "text/plain")
    assert http(f"{address}none").status == 404
    assert http(f"{address}../../secret").status == 301


def test_people_are_led_to_https_and_to_the_mount_point(portal: Portal) -> None:
    for headers in ({}, {"Host": "evil.example.net"}, {"Host": "evil.example.net:81"}):
        answer = http(f"http://127.0.0.1:{portal.nginx.http}/quarantine/?a=b", headers=headers)
        assert answer.status == 301 and answer.headers["Location"] == "https://quarantine.example.org/quarantine/?a=b"
    assert http(f"https://127.0.0.1:{portal.nginx.https}/").headers["Location"].endswith("/quarantine/")
    assert http(portal.nginx.public_url + "/sign-in").status == 200


def test_no_token_is_written_to_the_access_log(portal: Portal, needle: str) -> None:
    for path in (
        f"/link/{needle}/",
        f"/link/{needle}",
        f"/%6Cink/{needle}/",
        f"//link//{needle}/",
        f"/LINK/{needle}/",
        f"/sign-in/{needle}/?from={needle}",
        f"/sign-in?address={needle}",
    ):
        http(portal.nginx.public_url + path, headers={"Referer": f"https://example.org/{needle}"})
    log = portal.nginx.access_log.read_text()
    assert "/quarantine/link/- " in log and "/quarantine/sign-in/- " in log
    assert needle not in log
    assert needle not in portal.nginx.error_log.read_text()
    assert needle not in portal.log.read_text()


def test_guessing_links_and_sign_ins_is_slowed_down(portal: Portal) -> None:
    with (
        folder() as home,
        Nginx(home, portal.nginx.upstream).running() as nginx,
    ):  # a separate Nginx, so that other tests are not slowed down
        answers = [http(f"{nginx.public_url}/link/guess{number}/").status for number in range(80)]
        assert set(answers) == {404, 429}
        answers = [http(f"{nginx.public_url}/sign-in", b"address=x").status for _ in range(40)]
        assert 429 in answers
        assert "guess" not in nginx.error_log.read_text()
