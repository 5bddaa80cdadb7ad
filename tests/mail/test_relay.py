"""The relay against a real server that misbehaves at every step, and the wire form of addresses and mail."""

from __future__ import annotations

import errno
import itertools
import re
import socket
import ssl
import struct
import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from socket import AF_INET, AF_INET6, SOCK_STREAM
from types import SimpleNamespace

import pytest
from _pytest.mark.structures import ParameterSet
from hypothesis import given, settings
from hypothesis import strategies as st

from portal.mail import relay as relay_module
from portal.mail import smtp_session
from portal.mail.relay import Relay
from portal.mail.wire import path, wire
from portal.model.errors import RelayDeferred, RelayRefused, RelayUnreachable
from tests.builders import ALICE, BOB, SENDER
from tests.envelopes import TRICKS, cut, is_one_path, names, smuggled
from tests.mail.test_smtp_replies import ABOUT_THE_MAIL as REJECTS_THE_MAIL
from tests.mail.test_smtp_replies import ABOUT_US as REJECTS_US
from tests.paths import DATA
from tests.smtp_server import DRIP, DROP, HANG, SmtpServer, nobody_listens

MAIL = b"From: promo@example.net\r\nSubject: Offer\r\n\r\nBuy!\r\n"
CERTIFICATE = DATA / "localhost.pem"
ALL = ("8BITMIME", "SMTPUTF8", "DSN", "PIPELINING")
ONE_BY_ONE = ("8BITMIME", "SMTPUTF8", "DSN")


def patient(server: SmtpServer | str) -> Relay:
    return Relay(server if isinstance(server, str) else server.url)


def quick(server: SmtpServer) -> Relay:
    """Return a relay with short time-outs, for servers that never reply; a busy machine would look like one too."""
    return Relay(server.url, reply_seconds=0.3, total_seconds=1)


def send(relay: Relay, data: bytes = MAIL, recipient: str = ALICE, sender: str = SENDER) -> str:
    return relay.send(sender, recipient, [data], has_8bit=not data.isascii())


def tls() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    return context


@pytest.fixture(params=["smtp", "smtp one by one", "lmtp"])
def server(request: pytest.FixtureRequest) -> Iterator[SmtpServer]:
    """A server for SMTP with and without PIPELINING, and for LMTP."""
    with SmtpServer(lmtp=request.param == "lmtp", extensions=ONE_BY_ONE if "one" in request.param else ALL) as server:
        yield server


@pytest.fixture
def beyond_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Treat 127.0.0.1 as another host: test machines have no other address that is certain to work."""
    monkeypatch.setattr(smtp_session, "_is_loopback", lambda sock: False)


# ---- delivered mail


def test_the_mail_arrives_as_it_was_at_its_recipient_alone(server: SmtpServer) -> None:
    reply = send(patient(server))
    assert reply == "250 2.0.0 queued as 4Bx7"
    [mail] = server.mails
    assert (mail.sender, mail.recipients, mail.data) == (SENDER, [ALICE], MAIL)
    assert mail.recipient_parameters == ["NOTIFY=NEVER"]
    assert mail.sender_parameters == ""
    assert server.verbs[-1] == "QUIT"
    assert not server.violations


def test_the_null_sender_stays_null(server: SmtpServer) -> None:
    send(patient(server), sender="")
    assert server.mails[0].sender == ""
    assert b"MAIL FROM:<>" in server.commands


def test_8bit_mail_says_so_where_that_is_offered(server: SmtpServer) -> None:
    send(patient(server), b"Subject: x\r\n\r\nGr\xfc\xdfe\r\n")
    assert server.mails[0].sender_parameters == "BODY=8BITMIME"
    assert not server.violations


def test_only_offered_extensions_are_used() -> None:
    with SmtpServer(extensions=()) as server:
        send(patient(server), b"Subject: x\r\n\r\nGr\xfc\xdfe\r\n")
        assert server.mails[0].data == b"Subject: x\r\n\r\nGr\xfc\xdfe\r\n"
        assert (server.mails[0].sender_parameters, server.mails[0].recipient_parameters) == ("", [""])
        assert not server.violations


def test_utf8_addresses_need_smtputf8_and_utf8_headers_do_not(server: SmtpServer) -> None:
    send(patient(server), "Subject: Grüße\r\n\r\nx\r\n".encode())
    send(patient(server), recipient="jürgen@bücher.example")
    assert [mail.sender_parameters for mail in server.mails] == ["BODY=8BITMIME", "SMTPUTF8"]
    assert server.mails[1].recipients == ["jürgen@bücher.example"]
    assert not server.violations


def test_a_utf8_address_is_refused_where_the_server_has_no_smtputf8() -> None:
    with SmtpServer(extensions=("8BITMIME",)) as server:
        for sender, recipient in (("jürgen@example.net", ALICE), (SENDER, "jürgen@example.org")):
            with pytest.raises(RelayRefused, match="SMTPUTF8"):
                send(patient(server), sender=sender, recipient=recipient)
        assert "MAIL" not in server.verbs


@pytest.mark.slow
def test_50_megabytes_go_through_without_being_kept() -> None:
    piece = (b"x" * 76 + b"\r\n") * 3360
    tracemalloc.start()
    try:
        assert sum(len(p) for p in wire(itertools.repeat(piece, 200))) == len(piece) * 200 + len(b".\r\n")
        assert tracemalloc.get_traced_memory()[1] < 6 * len(piece)
    finally:
        tracemalloc.stop()
    with SmtpServer() as server:
        Relay(server.url).send(SENDER, ALICE, itertools.repeat(piece, 200), has_8bit=False)
        assert server.mails[0].data == piece * 200


# ---- the state table


def verb_cases() -> Iterator[ParameterSet | tuple[str, str, type[Exception]]]:
    for verb in ("BANNER", "EHLO", "MAIL", "RCPT", "DATA", "BODY"):
        early = verb in ("BANNER", "EHLO")
        yield verb, "450 4.2.0 come back later", RelayDeferred
        yield verb, "421 4.3.2 shutting down", RelayDeferred
        yield verb, "550 5.7.1 no\n550 5.7.1 and again no", RelayDeferred if early else RelayRefused
        yield verb, "554 5.0.0 not here", RelayDeferred if early else RelayRefused
        yield verb, "530 5.7.0 log in first", RelayDeferred
        yield verb, "450 what\n" * 300 + "450 is this", RelayDeferred
        yield verb, "what is this", RelayDeferred
        yield verb, DROP, RelayDeferred
        yield pytest.param(verb, HANG, RelayDeferred, marks=pytest.mark.slow)
        yield pytest.param(verb, DRIP, RelayDeferred, marks=pytest.mark.slow)
    yield "INPUT", DROP, RelayDeferred


@pytest.mark.parametrize(("verb", "behaviour", "error"), list(verb_cases()))
def test_each_failure_at_each_step_is_reported_as_deferred_or_refused(
    server: SmtpServer, verb: str, behaviour: str, error: type[Exception]
) -> None:
    server.script[verb] = behaviour
    with pytest.raises((RelayDeferred, RelayRefused)) as caught:
        send(quick(server) if behaviour in (HANG, DRIP) else patient(server))
    assert isinstance(caught.value, error)
    text = str(caught.value)
    assert re.fullmatch(r"[ -~]{1,300}", text)
    if behaviour[:1].isdigit() and len(behaviour) < 100:
        assert behaviour[:3] in text and behaviour.split("\n")[0][4:] in text
    assert not server.mails
    assert not server.violations
    if verb != "BODY":
        assert not server.unanswered


def test_a_server_that_stops_reading_is_given_up() -> None:
    with (
        SmtpServer(script={"INPUT": HANG}) as server,
        pytest.raises(RelayDeferred, match="sending the message: timed out"),
    ):
        quick(server).send(SENDER, ALICE, itertools.repeat(b"x" * 76 + b"\r\n", 10**7), has_8bit=False)


def test_slow_content_is_given_up_as_well() -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield b"x" * 998 + b"\r\n"

    with SmtpServer() as server, pytest.raises(RelayDeferred, match="timed out"):
        quick(server).send(SENDER, ALICE, endless(), has_8bit=False)
    assert not server.unanswered


def test_nobody_listening_and_unknown_hosts_are_deferred() -> None:
    with pytest.raises(RelayDeferred, match="Connection refused"):
        send(patient(nobody_listens()))
    with pytest.raises(RelayDeferred, match="cannot be resolved"):
        send(patient("smtp://no-such-host.invalid:25"))


def resolves_to(monkeypatch: pytest.MonkeyPatch, *addresses: tuple[str, int]) -> None:
    """``resolves_to(addresses)`` makes every host name resolve to these addresses."""
    found = [(AF_INET6 if ":" in host else AF_INET, SOCK_STREAM, 0, "", (host, port)) for host, port in addresses]
    monkeypatch.setattr("portal.mail.smtp_session.socket.getaddrinfo", lambda *_, **__: found)


def test_an_address_that_this_machine_cannot_reach_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_ipv6(family: int, *more: int) -> socket.socket:
        if family == AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return socket.socket(family, *more)

    with SmtpServer() as server:
        resolves_to(monkeypatch, ("::1", server.port), ("127.0.0.1", server.port))
        sockets = SimpleNamespace(**{**vars(socket), "socket": without_ipv6})
        monkeypatch.setattr(smtp_session, "socket", sockets)
        send(patient(f"smtp://localhost:{server.port}"))
        assert len(server.mails) == 1
        resolves_to(monkeypatch, ("::1", server.port))
        with pytest.raises(RelayUnreachable, match="Address family not supported"):
            send(patient(f"smtp://localhost:{server.port}"))


def test_an_address_that_drops_packets_leaves_time_for_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    with SmtpServer() as server, socket.create_server(("127.0.0.2", 0), backlog=0) as silent, ExitStack() as stack:
        port = silent.getsockname()[1]
        for _ in range(2):  # fill its queue: the kernel drops later connections
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(("127.0.0.2", port))
        resolves_to(monkeypatch, ("127.0.0.2", port), ("127.0.0.1", server.port))
        send(Relay("smtp://mx.example.org:25", reply_seconds=2))
        assert len(server.mails) == 1


def test_a_connection_reset_right_after_a_reply_is_deferred() -> None:
    def reset() -> None:
        for _ in range(tries):
            sock, _ = listener.accept()
            sock.setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )  # close with RST, as after a crash
            sock.sendall(b"220 mx.example.org ready\r\n")
            sock.recv(100)
            sock.sendall(b"250 mx.example.org\r\n")
            sock.close()

    tries = 20
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=reset, daemon=True)
        thread.start()
        for _ in range(tries):
            with pytest.raises(RelayDeferred):
                send(patient(f"smtp://127.0.0.1:{listener.getsockname()[1]}"))
        thread.join()


def test_a_failing_quit_does_not_undo_a_delivery(server: SmtpServer) -> None:
    for behaviour in (DROP, "500 what", "421 bye"):
        server.script["QUIT"] = behaviour
        assert send(patient(server)).startswith("250")
    assert len(server.mails) == 3


def test_a_refused_recipient_gets_nothing_even_if_data_is_answered_354() -> None:
    for verb in ("MAIL", "RCPT"):
        with SmtpServer(script={verb: "550 5.1.1 no such user", "DATA": "354 go on"}) as server:
            with patient(server).connection() as connection:
                with pytest.raises(RelayRefused, match="no such user|MAIL first"):
                    connection.send(SENDER, ALICE, [MAIL], has_8bit=False)
                server.script.clear()
                connection.send(SENDER, BOB, [MAIL], has_8bit=False)
            assert [mail.recipients for mail in server.mails] == [[BOB]]
            assert not server.unanswered
            assert not server.violations


def test_when_the_mail_cannot_be_read_to_its_end_no_server_takes_it(server: SmtpServer) -> None:
    def breaks() -> Iterator[bytes]:
        yield MAIL
        raise OSError("disk gone")

    with patient(server).connection() as connection:
        with pytest.raises(OSError, match="disk gone"):
            connection.send(SENDER, ALICE, breaks(), has_8bit=False)
        connection.send(SENDER, BOB, [MAIL], has_8bit=False)
    assert [mail.recipients for mail in server.mails] == [[BOB]]
    assert not server.unanswered


# ---- a reply counts only for commands that were sent before it


@contextmanager
def listening_long() -> Iterator[None]:
    """Wait longer for early replies, so that a busy machine cannot make the server late. A reply ends the wait."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("_EARLY_REPLY_SECONDS", "_EARLY_REPLY_LARGE_SECONDS"):
            patch.setattr(relay_module, name, 5)
        yield


EARLY = [
    ("DATA", "354 go on\r\n250 2.0.0 queued\r\n"),
    ("INPUT", "250 2.0.0 queued"),
    ("PART", "250 2.0.0 queued"),
    ("MAIL", "250 2.1.0 ok\r\n250 2.1.5 ok\r\n354 go on\r\n250 2.0.0 queued\r\n"),
]


@pytest.mark.parametrize("lines", [1, 20_000])
@pytest.mark.parametrize(("verb", "early"), EARLY)
def test_a_reply_before_the_final_dot_does_not_count(server: SmtpServer, verb: str, early: str, lines: int) -> None:
    server.script[verb] = [early]
    with patient(server).connection() as connection:
        with listening_long(), pytest.raises(RelayDeferred, match="the server sent an unsolicited reply: 250"):
            connection.send(SENDER, ALICE, [MAIL * lines], has_8bit=False)
        assert not server.mails and not server.unanswered
        connection.send(SENDER, BOB, [MAIL * lines], has_8bit=False)
    assert [mail.recipients for mail in server.mails] == [[BOB]]
    assert server.connections == 2


@pytest.mark.parametrize(("verb", "early"), EARLY)
def test_a_reply_before_the_final_dot_does_not_count_under_tls(
    verb: str, early: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
    with SmtpServer(tls=tls(), implicit_tls=True, script={verb: early}) as server:
        with listening_long(), pytest.raises(RelayDeferred, match="the server sent an unsolicited reply: 250"):
            send(patient(server))
        assert not server.mails and not server.unanswered


def test_a_reply_during_the_content_is_reported(server: SmtpServer) -> None:
    server.script["PART"] = "552 5.3.4 message too large"
    with listening_long(), pytest.raises(RelayDeferred, match="unsolicited reply: 552 5.3.4 message too large"):
        send(patient(server))


def test_replies_sent_with_the_greeting_do_not_count() -> None:
    banner = "220 hi\r\n250-x\r\n250 PIPELINING\r\n250 ok\r\n250 ok\r\n354 go\r\n250 queued\r\n"
    with SmtpServer(script={"BANNER": banner}) as server:
        with pytest.raises(RelayUnreachable, match="the server sent an unsolicited reply: 250-x"):
            send(patient(server))
        assert not server.mails and "MAIL" not in server.verbs


@pytest.mark.parametrize("verb", ["BANNER", "EHLO", "MAIL", "RCPT", "DATA", "BODY"])
def test_lines_with_different_codes_are_an_invalid_reply(server: SmtpServer, verb: str) -> None:
    yes = {"BANNER": 220, "DATA": 354}.get(verb, 250)
    for reply in (f"550-no\r\n{yes} ok\r\n", f"{yes}-ok\r\n550 no\r\n", f"{yes}-ok\r\n{yes + 1} ok\r\n"):
        server.script[verb] = reply
        with pytest.raises(RelayDeferred, match="the server's reply is not valid SMTP"):
            send(patient(server))
    assert verb == "BODY" or not server.mails


def unexpected() -> Iterator[tuple[str, int]]:
    yield from (("BODY", code) for code in (200, 214, 220, 221, 235, 300, 334, 354))
    yield from ((verb, code) for verb in ("MAIL", "RCPT") for code in (220, 235, 354))
    yield from (("DATA", code) for code in (220, 250, 334, 355))


@pytest.mark.parametrize(("verb", "code"), list(unexpected()))
def test_only_expected_replies_mean_success(server: SmtpServer, verb: str, code: int) -> None:
    server.script[verb] = f"{code} fine"
    with pytest.raises(RelayDeferred, match=f"unexpected reply {code} fine"):
        send(patient(server))
    assert not server.mails


def test_a_recipient_that_is_forwarded_is_accepted(server: SmtpServer) -> None:
    for code in (251, 252):
        server.script["RCPT"] = f"{code} user not local; will forward"
        assert send(patient(server)).startswith("250")


@pytest.mark.parametrize("more", ["250 2.0.0 queued", "550 5.7.1 rejected", "451 4.3.0 later", "what"])
@pytest.mark.parametrize("first", ["250 2.0.0 queued", "550 5.7.1 rejected"])
def test_two_replies_to_one_mail_do_not_count(server: SmtpServer, first: str, more: str) -> None:
    server.script["BODY"] = [f"{first}\r\n{more}\r\n"]
    with patient(server).connection() as connection:
        with pytest.raises(
            RelayDeferred, match=r"final dot: (more than one reply|the server's reply is not valid SMTP)"
        ):
            connection.send(SENDER, ALICE, [MAIL], has_8bit=False)
        connection.send(SENDER, BOB, [MAIL], has_8bit=False)
    assert server.mails[-1].recipients == [BOB]
    assert server.connections == 2


def test_a_goodbye_after_the_reply_leaves_it_a_success(server: SmtpServer) -> None:
    server.script["BODY"] = ["250 2.0.0 queued\r\n421 4.7.0 enough for now\r\n"]
    with patient(server).connection() as connection:
        assert connection.send(SENDER, ALICE, [MAIL], has_8bit=False) == "250 2.0.0 queued"
        connection.send(SENDER, BOB, [MAIL], has_8bit=False)
    assert [mail.recipients for mail in server.mails] == [[ALICE], [BOB]]
    assert server.connections == 2


@pytest.mark.parametrize("reply", ["421 4.4.2 idle for too long", "250 2.0.0 queued", "354 go on", "x" * 9000])
def test_an_unexpected_reply_between_two_mails_ends_the_connection(server: SmtpServer, reply: str) -> None:
    with patient(server).connection() as connection:
        connection.send(SENDER, ALICE, [MAIL], has_8bit=False)
        server.send_unsolicited(reply)
        connection.send(SENDER, BOB, [MAIL], has_8bit=False)
    assert [mail.recipients for mail in server.mails] == [[ALICE], [BOB]]
    assert server.connections == 2


# ---- rejections of the portal and of the mail


@pytest.mark.parametrize("verb", ["MAIL", "RCPT", "DATA", "BODY"])
def test_a_server_that_rejects_this_portal_is_deferred(server: SmtpServer, verb: str) -> None:
    with patient(server).connection() as connection:
        for reply in REJECTS_US:
            if verb == "BODY" and reply[:3] in ("503", "555"):
                continue
            server.script[verb] = [reply]
            with pytest.raises(RelayDeferred) as caught:
                connection.send(SENDER, ALICE, [MAIL], has_8bit=False)
            assert caught.value.portal_rejected, reply
            assert not isinstance(caught.value, RelayUnreachable)
            assert reply[:3] in str(caught.value)
        assert not server.mails
        connection.send(SENDER, BOB, [MAIL], has_8bit=False)
    assert [mail.recipients for mail in server.mails] == [[BOB]]
    assert server.connections == 1


@pytest.mark.parametrize("verb", ["MAIL", "RCPT", "DATA", "BODY"])
def test_a_server_that_rejects_the_mail_is_refused(server: SmtpServer, verb: str) -> None:
    with patient(server).connection() as connection:
        for reply in REJECTS_THE_MAIL:
            server.script[verb] = [reply]
            with pytest.raises((RelayDeferred, RelayRefused)) as caught:
                connection.send(SENDER, ALICE, [MAIL], has_8bit=False)
            assert isinstance(caught.value, RelayRefused) is reply.startswith("5"), reply
            assert not getattr(caught.value, "portal_rejected", False)
    assert not server.mails
    assert server.connections == 1


def test_no_recipient_can_look_like_a_server_that_rejects_this_portal(server: SmtpServer) -> None:
    server.script["RCPT"] = lambda line: f"550 {line.decode()[8:].partition(' NOTIFY')[0]}: no such user"
    for recipient in ("relay-access-denied@example.org", '"x> client host rejected: <"@example.org'):
        with pytest.raises(RelayRefused, match="no such user"):
            send(patient(server), recipient=recipient)


@pytest.mark.parametrize("verb", ["BANNER", "EHLO", "AUTH"])
def test_a_5xx_before_any_mail_is_about_this_portal(verb: str) -> None:
    with SmtpServer(users={"portal": "geheim"}) as server:
        relay = patient(server.url.replace("//", "//portal:geheim@"))
        for reply, portal_rejected in (("554 5.7.1 no", True), ("454 4.7.0 not now", False), (DROP, False)):
            server.script[verb] = reply
            with pytest.raises(RelayUnreachable) as caught:
                send(relay)
            assert caught.value.portal_rejected is portal_rejected


# ---- many mails over one connection


def test_many_mails_share_a_connection(server: SmtpServer) -> None:
    with patient(server).connection() as connection:
        for number in range(20):
            connection.send(SENDER, f"user{number}@example.org", [MAIL], has_8bit=False)
    assert server.connections == 1
    assert [mail.recipients for mail in server.mails] == [[f"user{number}@example.org"] for number in range(20)]
    assert not server.violations


def test_a_failed_mail_leaves_the_next_one_alone(server: SmtpServer) -> None:
    refusals = {"MAIL": "550 5.1.0 no", "RCPT": "450 4.2.0 no", "DATA": "554 5.0.0 no", "BODY": "452 4.3.1 no"}
    with patient(server).connection() as connection:
        for verb, reply in refusals.items():
            server.script[verb] = [reply]
            with pytest.raises((RelayDeferred, RelayRefused)):
                connection.send(SENDER, ALICE, [MAIL], has_8bit=False)
            connection.send(SENDER, BOB, [MAIL], has_8bit=False)
    assert [mail.recipients for mail in server.mails] == [[BOB]] * 4
    assert server.connections == 1
    assert not server.violations


def test_a_connection_closed_between_two_mails_is_opened_again(server: SmtpServer) -> None:
    with patient(server).connection() as connection:
        connection.send(SENDER, ALICE, [MAIL], has_8bit=False)
        server.drop_connections()
        connection.send(SENDER, BOB, [MAIL], has_8bit=False)
        server.script["MAIL"] = ["421 4.7.0 too many mails, bye"]
        connection.send(SENDER, "carol@example.org", [MAIL], has_8bit=False)
    assert [mail.recipients for mail in server.mails] == [[ALICE], [BOB], ["carol@example.org"]]
    assert server.connections == 3


def test_a_new_connection_is_tried_only_once(server: SmtpServer) -> None:
    with patient(server).connection() as connection:
        connection.send(SENDER, ALICE, [MAIL], has_8bit=False)
        server.script["MAIL"] = DROP
        with pytest.raises(RelayDeferred, match="closed the connection"):
            connection.send(SENDER, BOB, [MAIL], has_8bit=False)
    assert server.connections == 2


def test_a_connection_lost_after_the_dot_is_not_repeated_by_itself(server: SmtpServer) -> None:
    with patient(server).connection() as connection:
        connection.send(SENDER, ALICE, [MAIL], has_8bit=False)
        server.script["BODY"] = [DROP]
        with pytest.raises(RelayDeferred, match="final dot"):
            connection.send(SENDER, BOB, [MAIL], has_8bit=False)
        connection.send(SENDER, ALICE, [MAIL], has_8bit=False)
    assert len(server.mails) == 2
    assert [mail.recipients for mail in server.unanswered] == [[BOB]]


# ---- TLS and login


def test_smtps_needs_a_certificate_that_is_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    with SmtpServer(tls=tls(), implicit_tls=True) as server:
        with pytest.raises(RelayDeferred, match="certificate is not valid"):
            send(patient(server))
        assert not server.commands
        monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
        send(Relay(server.url))
        assert len(server.mails) == 1
    with SmtpServer(tls=tls(), implicit_tls=True, host="127.0.0.2") as server:
        with pytest.raises(RelayDeferred, match="certificate is not valid: IP address mismatch"):
            send(patient(server))


def test_starttls_is_used_when_offered_but_not_on_loopback(request: pytest.FixtureRequest) -> None:
    with SmtpServer(tls=tls()) as server:
        send(Relay(server.url))
        assert "STARTTLS" not in server.verbs
        request.getfixturevalue("beyond_loopback")
        send(Relay(server.url))
        assert server.verbs.count("STARTTLS") == 1
        assert len(server.mails) == 2


@pytest.mark.usefixtures("beyond_loopback")
def test_a_password_is_sent_only_under_verified_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    with SmtpServer(users={"portal": "geheim"}) as server:
        url = server.url.replace("//", "//portal:geheim@")
        with pytest.raises(RelayDeferred, match="offers no STARTTLS"):
            send(patient(url))
        server.tls = tls()
        with pytest.raises(RelayDeferred, match="certificate is not valid"):
            send(patient(url))
        assert not any(verb == "AUTH" for verb in server.verbs)
        monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
        send(Relay(url))
        assert len(server.mails) == 1


@pytest.mark.usefixtures("beyond_loopback")
def test_replies_sent_before_tls_are_not_trusted() -> None:
    with SmtpServer(tls=tls(), script={"STARTTLS": "220 go\r\n250-mx\r\n250 AUTH PLAIN\r\n"}) as server:
        with pytest.raises(RelayDeferred, match="STARTTLS: the server sent more"):
            send(patient(server))


@pytest.mark.parametrize("methods", ["PLAIN", "LOGIN", "CRAM-MD5 LOGIN PLAIN"])
def test_it_logs_in_with_any_characters(methods: str) -> None:
    with SmtpServer(users={"port@l": "ge:h/eim ü"}, login_methods=methods) as server:
        send(patient(server.url.replace("//", "//port%40l:ge%3Ah%2Feim%20%C3%BC@")))
        assert len(server.mails) == 1


def test_a_wrong_password_is_the_sites_mistake_and_is_never_shown() -> None:
    with SmtpServer(users={"portal": "right"}) as server:
        relay = patient(server.url.replace("//", "//portal:geheim@"))
        for reply in (None, "535 5.7.8 what is cG9ydGFs geheim AHBvcnRhbABnZWhlaW0=", "504 5.5.4 geheim"):
            server.script["AUTH"] = reply
            with pytest.raises(RelayDeferred, match=r"login: 5\d\d 5\.[57]\.[48] user or password") as caught:
                send(relay)
            assert "geheim" not in repr(caught.value) and "AHBv" not in str(caught.value)
        assert "geheim" not in repr(vars(relay))
    with SmtpServer() as server, pytest.raises(RelayDeferred, match="neither AUTH PLAIN nor AUTH LOGIN"):
        send(patient(server.url.replace("//", "//portal:geheim@")))


# ---- probe, addresses of servers


def test_the_probe_reports_what_it_found(server: SmtpServer) -> None:
    found = patient(server).probe()
    assert f"127.0.0.1:{server.port} answers as mx.example.org by {'LMTP' if server.lmtp else 'SMTP'}" in found
    assert "without TLS" in found and "8BITMIME, DSN" in found
    assert server.verbs == ["LHLO" if server.lmtp else "EHLO", "QUIT"]


def test_the_probe_logs_in_and_misses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
    with SmtpServer(tls=tls(), implicit_tls=True, users={"u": "p"}, extensions=("8BITMIME",)) as server:
        found = Relay(server.url.replace("//", "//u:p@")).probe()
    assert "with TLSv1.3, logged in; it offers 8BITMIME, but not DSN, PIPELINING, SMTPUTF8" in found


def test_the_probe_fails_as_a_release_would() -> None:
    with SmtpServer(script={"BANNER": "554 5.3.2 no mail today"}) as server:
        with pytest.raises(RelayDeferred, match="greeting: 554 5.3.2 no mail today"):
            patient(server).probe()


def test_ipv6_addresses_are_in_brackets() -> None:
    with SmtpServer(host="::1") as server:
        send(patient(server))
        assert len(server.mails) == 1


@pytest.mark.parametrize("url", ["http://h", "smtp://", "smtp:h", "lmtps://h", "smtp://h:99999"])
def test_other_urls_are_not_a_relay(url: str) -> None:
    with pytest.raises(ValueError):
        Relay(url)


# ---- the envelope


@pytest.mark.parametrize(
    ("address", "written"),
    [
        ("a b@example.org", '"a b"@example.org'),
        ('"a b"@example.org', '"a b"@example.org'),
        ("at@sign@example.org", '"at@sign"@example.org'),
        ("a,b@c.d", '"a,b"@c.d'),
        ("a>b@c.d", '"a>b"@c.d'),
        ("@relay.example:bob@example.org", '"@relay.example:bob"@example.org'),
        ('a"b@example.org', '"a\\"b"@example.org'),
        ('"a"b"@example.org', '"\\"a\\"b\\""@example.org'),
        ("a\\b@example.org", '"a\\\\b"@example.org'),
        ("a..b@example.org", '"a..b"@example.org'),
        ("alice+news@example.org", "alice+news@example.org"),
        ("Alice@Example.org", "Alice@Example.org"),
        ("bob@[192.0.2.1]", "bob@[192.0.2.1]"),
        ("bob@[IPv6:2001:db8::1]", "bob@[IPv6:2001:db8::1]"),
    ],
)
def test_local_parts_are_quoted_when_they_need_to_be(server: SmtpServer, address: str, written: str) -> None:
    send(patient(server), recipient=address, sender=address)
    assert (server.mails[0].sender, server.mails[0].recipients) == (written, [written])
    assert not server.violations


@pytest.mark.parametrize(
    "address",
    [
        "",
        "alice",
        "@example.org",
        "alice@",
        "alice@exa mple.org",
        "alice@example.org> NOTIFY=SUCCESS",
        "alice@example.org>\r\nRCPT TO:<mallory@example.org",
        "alice\r\n@example.org",
        "alice\n@example.org",
        "alice\0@example.org",
        "alice\x7f@example.org",
        "alice\x85@example.org",
        "alice\u2028@example.org",
        "alice\udcff@example.org",
        "alice@example,org",
        "alice@example。org",
        "alice@[192.0.2.1",
        "a" * 257 + "@example.org",
        "alice@" + "e" * 320,
    ],
)
def test_addresses_that_smtp_cannot_express_are_refused_before_anything_is_sent(address: str) -> None:
    with SmtpServer() as server:
        with pytest.raises(RelayRefused, match="address"):
            send(patient(server), recipient=address)
        assert server.connections == 0


def test_a_sender_without_a_domain_stays_and_other_odd_ones_are_refused() -> None:
    with SmtpServer() as server:
        send(patient(server), sender="root")
        assert server.mails[0].sender == "root"
        for sender in ("promo@example.net>\r\nRSET", "promo@", "pro\nmo"):
            with pytest.raises(RelayRefused, match="sender's address"):
                send(patient(server), sender=sender)
        assert len(server.mails) == 1


@settings(max_examples=2000, deadline=None)
@given(
    st.one_of(
        st.text(max_size=40),
        st.builds("{}@{}".format, st.text('ab"\\.@ <>,;:()\r\n\0é', max_size=12), st.text("ab.-_[]: >é1", max_size=12)),
        st.builds("{}@example.org".format, st.text(max_size=30)),
    )
)
def test_any_address_is_written_as_itself_or_not_at_all(address: str) -> None:
    try:
        written = path(address, is_sender=False)
    except RelayRefused:
        return
    assert is_one_path(written)
    assert names(written[1:-1], address)


# ---- the content


def test_no_mail_is_smuggled_however_its_lines_end_and_its_pieces_are_cut() -> None:
    with SmtpServer() as server:
        sent = 0
        with Relay(server.url).connection() as connection:
            head = b"Subject: x\r\n\r\nhello"
            for trick in TRICKS:
                data = smuggled(trick, head)
                cuts = [(), *((len(head) + n,) for n in range(len(trick) + 1)), tuple(range(1, len(data)))]
                received = set()
                for places in cuts:
                    connection.send(SENDER, ALICE, cut(data, places), has_8bit=False)
                    sent += 1
                    received.add(server.mails[-1].data)
                assert len(received) == 1
        assert len(server.mails) == sent
        assert {tuple(mail.recipients) for mail in server.mails} == {(ALICE,)}
        assert set(server.verbs) == {"EHLO", "MAIL", "RCPT", "DATA", "QUIT"}
        assert not server.violations


@pytest.mark.parametrize(
    ("data", "canonical"),
    [
        (b"", b""),
        (b".", b".\r\n"),
        (b".\r\n", b".\r\n"),
        (b"..\r\n.x\r\n", b"..\r\n.x\r\n"),
        (b"a: b\n c\r\n\r\nno end", b"a: b\r\n c\r\n\r\nno end\r\n"),
        (b"a\rb\r\n", b"a b\r\n"),
        (b"a\r\r\nb\r\n", b"a \r\nb\r\n"),
        (b"a\r", b"a \r\n"),
        (b"a\n\rb", b"a\r\n b\r\n"),
        (b"nul \0 stays\r\n", b"nul \0 stays\r\n"),
        (b"\r\n\r\n", b"\r\n\r\n"),
    ],
)
def test_line_ends_are_made_canonical_and_nothing_else(server: SmtpServer, data: bytes, canonical: bytes) -> None:
    send(patient(server), data)
    assert server.mails[0].data == canonical
    assert not server.violations


@settings(max_examples=500, deadline=None)
@given(st.lists(st.text("ab.\r\n", max_size=6).map(str.encode), max_size=8))
def test_how_the_mail_is_cut_into_pieces_makes_no_difference(pieces: list[bytes]) -> None:
    whole = b"".join(pieces)
    onto_wire = b"".join(wire(pieces))
    assert onto_wire == b"".join(wire([whole]))
    assert onto_wire.endswith(b".\r\n") and onto_wire.count(b"\r\n.\r\n") + onto_wire.startswith(b".\r\n") == 1
    assert not re.search(rb"\r(?!\n)|(?<!\r)\n", onto_wire)
