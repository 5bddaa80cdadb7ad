"""The shipped Nginx configuration in front of the real portal."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import json
import os
import re
import signal
import socket
import ssl
import subprocess
from contextlib import ExitStack, closing
from datetime import timedelta
from email.utils import parsedate_to_datetime
from urllib.parse import urlencode

import pytest

from portal.model.clock import utc_now
from portal.stores import open_store
from tests.system.mails import ALICE, SENDER, spam
from tests.system.services import Nginx, Portal, Reply, folder, wait_for
from tests.system.services import http as fetch
from tests.system.test_mail_path import held, meta

pytestmark = pytest.mark.system


def post(portal: Portal, mail: bytes, **metadata: str) -> Reply:
    """Post an export like an old Rspamd, over Nginx."""
    headers = {"Content-Type": "text/plain", "User-Agent": "rspamd-3.4"}
    return fetch(
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
    headers = {"Content-Type": "message/rfc822"}
    for more in ({}, {"Sec-Fetch-Site": "cross-site"}):
        assert fetch(portal.nginx.public_url + path, b"x", headers | more, method).status == 405


def test_an_empty_message_is_reported_to_the_server_for_rspamd_only(portal: Portal) -> None:
    headers = {"X-Rspamd-Rcpt": f'["{ALICE}"]', "X-Rspamd-Action": "reject", "Content-Length": "0"}
    internal = fetch(portal.nginx.exporter_url, headers=headers)
    assert (internal.status, json.loads(internal.body)["status"]) == (200, "not-selected")
    for path in ("", "/", "/?a=b"):
        for more in ({}, {"Sec-Fetch-Site": "cross-site"}):
            public = fetch(portal.nginx.public_url + path, headers=headers | more)
            assert (public.status, public.headers["Location"]) == (303, "/quarantine/sign-in")


# The headers of every response to a recipient, and those that only https responses have.
PROTECTING = (
    "Content-Security-Policy",
    "X-Content-Type-Options",
    "Referrer-Policy",
    "Cross-Origin-Opener-Policy",
    "Cross-Origin-Resource-Policy",
    "X-Robots-Tag",
    "Cache-Control",
)


def raw(port: int, request: bytes, *, tls: bool) -> Reply:
    """Send octets that no HTTP client sends, and return the answer."""
    trusting = ssl.create_default_context()
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection(("127.0.0.1", port), 10) as plain:
        with trusting.wrap_socket(plain) if tls else plain as connection:
            connection.sendall(request)
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            return Reply(answer.status, answer.headers, answer.read())


def check_headers(answer: Reply, *, https: bool = True) -> None:
    for name in (*PROTECTING, *(["Strict-Transport-Security"] if https else [])):
        assert len(answer.headers.get_all(name, [])) == 1, (answer.status, name)
    assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Cache-Control"] == "no-store"


def test_errors_and_redirects_of_nginx_itself_carry_the_security_headers(portal: Portal) -> None:
    public, https = portal.nginx.public_url, portal.nginx.https
    answers = {
        "root": (302, fetch(f"https://127.0.0.1:{https}/")),
        "elsewhere": (404, fetch(f"https://127.0.0.1:{https}/other")),
        "metrics": (404, fetch(public + "/metrics")),
        "export": (405, fetch(public + "/", b"x")),
        # Only the header: Nginx answers before the rest, and closes the connection.
        "large form": (
            413,
            raw(https, b"POST /quarantine/sign-in HTTP/1.1\r\nHost: a\r\nContent-Length: 70000\r\n\r\n", tls=True),
        ),
        "not HTTP": (400, raw(https, b"GET / HTTP/1.1\r\n\r\n", tls=True)),
        "not TLS": (400, raw(https, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", tls=False)),
        "portal's page": (200, fetch(public + "/sign-in")),
        "portal's error": (404, fetch(public + "/nothing")),
    }
    for name, (status, answer) in answers.items():
        assert answer.status == status, name
        check_headers(answer)
    plain = fetch(f"http://127.0.0.1:{portal.nginx.http}/quarantine/")
    assert plain.status == 301
    check_headers(plain, https=False)
    style = fetch(public + "/static/style.css")
    assert style.status == 200
    assert style.headers.get_all("Cache-Control") == ["public, max-age=600"]


def unpacked(answer: Reply) -> str:
    """Return the text of a compressed answer. Fails if it is not compressed."""
    assert (answer.headers["Content-Encoding"], answer.headers["Vary"]) == ("gzip", "Accept-Encoding")
    return gzip.decompress(answer.body).decode()


GZIP = {"Accept-Encoding": "gzip"}


@pytest.mark.parametrize("path", ["", "/", "/sign-in", "/sign-in/code", "/link/none/", "/messages/none/", "/none"])
def test_pages_are_compressed_unless_another_site_caused_the_request(portal: Portal, path: str) -> None:
    url = portal.nginx.public_url + path
    answer = fetch(url, headers=GZIP)
    if answer.status != 303:
        assert "</html>" in unpacked(answer)
    for site in ("none", "same-origin", "same-site"):
        other = fetch(url, headers=GZIP | {"Sec-Fetch-Site": site})
        assert (other.status, other.headers["Content-Encoding"]) == (answer.status, answer.headers["Content-Encoding"])
    plain = fetch(url, headers=GZIP | {"Sec-Fetch-Site": "cross-site"})
    assert (plain.status, plain.headers["Content-Encoding"]) == (answer.status, None)
    check_headers(plain)


def test_a_page_names_compressed_files_that_browsers_keep(portal: Portal) -> None:
    page = unpacked(fetch(portal.nginx.public_url + "/sign-in", headers=GZIP))
    files = re.findall(r'"(?:/quarantine)(/static/[^"]+)"', page)
    assert {name.partition("?")[0] for name in files} == {"/static/icon.svg", "/static/style.css"}
    for name in files:
        answer = fetch(portal.nginx.public_url + name, headers=GZIP)
        assert answer.status == 200
        assert answer.headers.get_all("Cache-Control") == ["public, max-age=31536000, immutable"]
    style = next(name for name in files if "style" in name)
    assert "--ground" in unpacked(fetch(portal.nginx.public_url + style, headers=GZIP))


def test_nothing_for_rspamd_or_monitoring_is_compressed(portal: Portal, needle: str) -> None:
    metadata = {"rcpt": f'["{ALICE}"]', "symbols": symbols(2), "from": SENDER, "action": "reject", "score": "20"}
    headers = {f"X-Rspamd-{name}": value for name, value in metadata.items()} | {"Content-Type": "text/plain"}
    answers = [fetch(portal.nginx.exporter_url, spam(needle, {}), headers | GZIP)]
    answers += [fetch(portal.nginx.exporter_url + path, headers=GZIP) for path in ("healthz", "metrics")]
    for answer in answers:
        assert (answer.status, answer.headers["Content-Encoding"]) == (200, None)
    assert len(answers[-1].body) > 500


def test_a_portal_that_is_down_gets_an_error_with_the_security_headers() -> None:
    with folder() as home, Nginx(home, f"unix:{home}/nobody.sock").running() as nginx:
        answer = fetch(nginx.public_url + "/sign-in")
        assert answer.status == 502
        check_headers(answer)


def test_programs_get_the_errors_of_nginx_as_json(portal: Portal) -> None:
    request = b"POST /quarantine/api/v1/jobs HTTP/1.1\r\nHost: a\r\nContent-Length: 70000\r\n\r\n"
    answers = {413: raw(portal.nginx.https, request, tls=True)}
    with folder() as home, Nginx(home, f"unix:{home}/nobody.sock").running() as nginx:
        answers[503] = fetch(nginx.public_url + "/api/v1/jobs")
    for status, answer in answers.items():
        assert (answer.status, answer.headers["Content-Type"]) == (status, "application/problem+json")
        assert json.loads(answer.body)["status"] == status and json.loads(answer.body)["detail"]
        check_headers(answer)


def test_one_client_cannot_have_more_than_32_requests_at_once() -> None:
    with folder() as home:
        path = home / "silent.sock"
        with socket.socket(socket.AF_UNIX) as silent, ExitStack() as stack:
            silent.bind(str(path))
            path.chmod(0o777)
            silent.listen(100)  # it never answers, so each request occupies a connection
            nginx = stack.enter_context(Nginx(home / "nginx", f"unix:{path}").running())
            trusting = ssl.create_default_context()
            trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE

            def ask(source: str) -> http.client.HTTPSConnection:
                connection = http.client.HTTPSConnection(
                    "127.0.0.1", nginx.https, timeout=10, context=trusting, source_address=(source, 0)
                )
                stack.callback(connection.close)
                connection.request("GET", "/quarantine/preferences")
                return connection

            for _ in range(32):
                ask("127.0.0.1")
                stack.enter_context(silent.accept()[0])
            one_more = ask("127.0.0.1").getresponse()
            assert one_more.status == 429
            ask("127.0.0.2")
            stack.enter_context(silent.accept()[0])  # another client is served


@pytest.mark.parametrize("path", ["/metrics", "/metrics/", "//metrics", "/%6Detrics", "/x/../metrics"])
def test_the_public_server_hides_the_metrics(portal: Portal, path: str) -> None:
    assert fetch(portal.nginx.public_url + path).status == 404


def test_monitoring_on_this_host_sees_health_and_metrics(portal: Portal) -> None:
    assert json.loads(fetch(portal.nginx.exporter_url + "healthz").body)["status"] == "ok"
    assert b"quarantine_store_up 1" in fetch(portal.nginx.exporter_url + "metrics").body


def test_the_exporters_server_has_nothing_else(portal: Portal) -> None:
    for path in ("quarantine/sign-in", "sign-in", "quarantine/messages/", "static/style.css"):
        assert fetch(portal.nginx.exporter_url + path).status == 404


def test_a_proof_for_a_certificate_is_served_without_tls(portal: Portal) -> None:
    folder = portal.nginx.home / "www" / ".well-known" / "acme-challenge"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "token").write_text("proof")
    for path in (portal.nginx.home, portal.nginx.home / "www", folder.parent, folder):
        path.chmod(0o755)
    address = f"http://127.0.0.1:{portal.nginx.http}/.well-known/acme-challenge/"
    answer = fetch(f"{address}token", headers={"Host": "quarantine.example.org"})
    assert (answer.status, answer.body, answer.headers["Content-Type"]) == (200, b"proof", "text/plain")
    assert fetch(f"{address}none").status == 404
    assert fetch(f"{address}../../secret").status == 301


def test_people_are_led_to_https_and_to_the_mount_point(portal: Portal) -> None:
    for headers in ({}, {"Host": "evil.example.net"}, {"Host": "evil.example.net:81"}):
        answer = fetch(f"http://127.0.0.1:{portal.nginx.http}/quarantine/?a=b", headers=headers)
        assert answer.status == 301 and answer.headers["Location"] == "https://quarantine.example.org/quarantine/?a=b"
    assert fetch(f"https://127.0.0.1:{portal.nginx.https}/").headers["Location"].endswith("/quarantine/")
    assert fetch(portal.nginx.public_url + "/sign-in").status == 200


def test_a_link_followed_by_more_is_redirected_to_the_page(portal: Portal) -> None:
    token = "A" * 31 + "." + "B" * 43
    for path in (f"link/{token}/%3E", f"link/{token})", f"/link//{token}/%0D%0A", f"link/{token}/>"):
        answer = fetch(f"{portal.nginx.public_url}/{path}")
        assert (answer.status, answer.headers["Location"]) == (303, f"/quarantine/link/{token}/"), path


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
        fetch(portal.nginx.public_url + path, headers={"Referer": f"https://example.org/{needle}"})
    log = portal.nginx.access_log.read_text()
    assert "/quarantine/link/- " in log and "/quarantine/sign-in/- " in log
    assert needle not in log
    assert needle not in portal.nginx.error_log.read_text()
    assert needle not in portal.log.read_text()


def test_each_request_gets_an_id_of_nginx_for_both_logs(portal: Portal, needle: str) -> None:
    fetch(portal.nginx.public_url + "/sign-in", headers={"X-Request-ID": needle})
    assert wait_for(lambda: re.search(r" [0-9a-f]{32}\n$", portal.nginx.access_log.read_text()), 5)
    fetch(
        portal.nginx.exporter_url,
        spam(needle, {}),
        {"Content-Type": "message/rfc822", "X-Rspamd-rcpt": json.dumps([ALICE]), "X-Request-ID": f"of-client-{needle}"},
    )
    log = portal.log.read_text()
    assert re.search(r": held id=\S+ .* request=[0-9a-f]{32}$", log, re.MULTILINE)
    assert "of-client" not in log


@pytest.mark.parametrize("site", ["same-origin", "cross-site"])
def test_guessing_links_and_sign_ins_is_slowed_down(portal: Portal, site: str) -> None:
    with (
        folder() as home,
        Nginx(home, portal.nginx.upstream).running() as nginx,
    ):  # a separate Nginx, so that other tests are not slowed down
        trusting = ssl.create_default_context()
        trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
        # One connection, since on a busy machine 80 of them take so long that the rate is below the limit.
        connection = http.client.HTTPSConnection("127.0.0.1", nginx.https, timeout=30, context=trusting)

        def status(method: str, path: str, body: bytes | None = None) -> int:
            connection.request(method, f"/quarantine/{path}", body, {"Sec-Fetch-Site": site})
            with connection.getresponse() as answer:
                answer.read()
                return answer.status

        assert {status("GET", f"link/guess{number}/") for number in range(80)} == {404, 429}
        assert 429 in [status("POST", "sign-in", b"address=x") for _ in range(40)]
        connection.close()
        assert "guess" not in nginx.error_log.read_text()


def test_the_block_map_is_served_to_rspamd_only(portal: Portal) -> None:
    """Rspamd 4 asks every 10 minutes only if there is no Expires beside the validators."""
    file = portal.nginx.home / "map/block.map"
    file.parent.mkdir()
    url = portal.nginx.exporter_url + "maps/block"
    assert fetch(url).status == 404
    file.write_text("# block map\n")
    answer = fetch(url)
    assert (answer.status, answer.body) == (200, b"# block map\n")
    assert parsedate_to_datetime(answer.headers["Expires"]) - parsedate_to_datetime(
        answer.headers["Date"]
    ) == timedelta(seconds=10)
    head = fetch(url, method="HEAD")
    assert (head.status, head.body, head.headers["Content-Length"]) == (200, b"", "12")
    for header, value in (("If-None-Match", "ETag"), ("If-Modified-Since", "Last-Modified")):
        assert fetch(url, headers={header: answer.headers[value]}).status == 304
    assert fetch(url, b"x").status == 405
    assert fetch(portal.nginx.public_url.removesuffix("/quarantine") + "/maps/block").status == 404


def test_what_browsers_write_into_the_headers_of_a_proxy_is_removed(other_portal: Portal) -> None:
    secret = "s" * 32
    other_portal.environment["QUARANTINE_PROXY__SECRET"] = secret
    with other_portal.running():
        for user, proof in (
            ("X-Quarantine-User", "X-Quarantine-Secret"),
            ("x-quarantine-user", "x-quarantine-secret"),
            ("X_Quarantine_User", "X_Quarantine_Secret"),
            ("X-Quarantine_User", "X_Quarantine-Secret"),
        ):
            answer = fetch(other_portal.nginx.public_url + "/sign-in/proxy", headers={user: ALICE, proof: secret})
            assert answer.status == 404, user
        text = (other_portal.nginx.home / "nginx.conf").read_text()
        assert text.count("uwsgi_param HTTP_X_QUARANTINE_") == 2
        # With these lines in place of the shipped ones, the same request signs in: the test would see a leak.
        kept = text.replace("uwsgi_param HTTP_X_QUARANTINE_", "uwsgi_param UNUSED_")
        (other_portal.nginx.home / "nginx.conf").write_text(kept)
        pid = int((other_portal.nginx.home / "nginx.pid").read_text())
        os.kill(pid, signal.SIGHUP)

        def signs_in() -> bool:
            headers = {"X-Quarantine-User": ALICE, "X-Quarantine-Secret": secret}
            return fetch(other_portal.nginx.public_url + "/sign-in/proxy", headers=headers).status == 303

        wait_for(signs_in)


def test_an_action_leads_back_to_a_long_search(other_portal: Portal, needle: str) -> None:
    """A letter of such a search takes up to 15 characters in an address, and Nginx reads 4 KiB of a head by default."""
    search = urlencode({"q": f"{needle} " + "検" * 150, "sender": "索" * 200, "reason": "語" * 100})
    with other_portal.running():
        post(other_portal, spam(needle, {}), rcpt=json.dumps([ALICE]), symbols=symbols(1), score="20", action="reject")
        id, site = meta(other_portal, needle)["id"], other_portal.nginx.public_url
        with closing(open_store(other_portal.environment["QUARANTINE_STORE__URL"])) as store:
            store.sign_ins.start_session(hashlib.sha256(b"secret").digest(), ALICE, utc_now())
        signed_in = {"Cookie": "__Host-quarantine-session=secret", "Origin": site.removesuffix("/quarantine")}
        page = fetch(f"{site}/messages/{id}/?{urlencode({'list': f'?{search}'})}", headers=signed_in)
        assert page.status == 200
        token = re.search(r'name="form_token" value="([^"]+)"', page.body.decode())
        assert token
        form = urlencode({"form_token": token[1], "from": f"message?{search}"}).encode()
        answer = fetch(f"{site}/messages/{id}/delete", form, headers=signed_in)
        assert answer.status == 303 and len(answer.headers["Location"]) > 6000
        assert (
            fetch(f"{site}/{answer.headers['Location'].partition('/quarantine/')[2]}", headers=signed_in).status == 200
        )
