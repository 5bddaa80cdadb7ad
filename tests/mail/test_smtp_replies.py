"""Rejections in the words of real mail servers: of the portal, or of a recipient or message."""

from __future__ import annotations

import pytest

from portal.mail.smtp_replies import rejects_portal
from tests.builders import ALICE, SENDER

# Postfix, unless another server is named. Valid at MAIL, RCPT, DATA and the final dot.
ABOUT_US = [
    "554 5.7.1 <host>: Client host rejected: Access denied",
    "554 5.7.1 <unknown[192.0.2.7]>: Client host rejected: Access denied",
    "550 5.7.25 Client host rejected: cannot find your hostname, [192.0.2.7]",
    "550 5.7.1 Client host rejected: cannot find your reverse hostname, [192.0.2.7]",
    "554 5.7.1 <unknown[192.0.2.7]>: Unverified Client host rejected: Generic reverse name",
    "554 5.7.1 <alice@example.org>: Relay access denied",
    "554 5.7.1 <alice@example.org>: Recipient address rejected: Relay access denied",
    "554 5.7.1 <alice@example.org>: Recipient address rejected: Client host [192.0.2.7] is not permitted",
    "554 5.7.1 <alice@example.org>: Recipient address rejected: Mail not allowed from this host",
    "550 Rejected by policy: host not allowed",
    "554 5.7.1 ACL denied: host not in relay_from_hosts",
    "550 5.7.1 <host>: Access refused",
    "504 5.5.2 <quarantine>: Helo command rejected: need fully-qualified hostname",
    "550 5.7.1 <quarantine>: Helo command rejected: Host not found",
    "501 5.5.2 <a_b>: Helo command rejected: Invalid name",
    "530 5.7.0 Must issue a STARTTLS command first",
    "554 5.7.1 Service unavailable; Client host [192.0.2.7] blocked using zen.spamhaus.org; https://www.spamhaus.org/",
    "550 5.7.1 Service unavailable; client [2001:db8::7] blocked using zen.example.net",
    "554 5.7.1 Service unavailable; Helo command [host.example.net] blocked using dbl.example.net",
    "553 5.7.1 <promo@example.net>: Sender address rejected: not logged in",
    "553 5.7.1 <promo@example.net>: Sender address rejected: not owned by user portal@example.org",
    "550 5.3.2 Service currently unavailable",
    "554 5.7.1 <DATA>: Data command rejected: Access denied",
    "555 5.5.4 Unsupported option: NOTIFY=NEVER",  # but not at the final dot
    # Exim
    "550 relay not permitted",
    "550 relay not permitted, authentication required",
    "550 Authentication required",
    "550-Host is not permitted to relay\n550 without SMTP AUTH",
    "550 Access denied - Invalid HELO name (See RFC2821 4.1.1.1)",
    "550-rejected because 192.0.2.7 is in a black list at zen.example.net\n550 see the list's page",
    "550 Sender IP reverse lookup rejected",
    "550 Please turn on SMTP Authentication in your mail client. host [192.0.2.7] is not permitted to relay",
    # Sendmail
    "550 5.7.1 <alice@example.org>... Relaying denied",
    "550 5.7.1 <alice@example.org>... Relaying denied. Proper authentication required.",
    "550 5.7.1 <alice@example.org>... Relaying denied. IP name lookup failed [192.0.2.7]",
    "550 5.7.1 Access denied",
    "550 5.7.1 Rejected: 192.0.2.7 listed at zen.example.net",
    "550 5.7.1 Fix reverse DNS for 192.0.2.7",
    "550 5.7.1 Mail from 192.0.2.7 refused by blackhole site list.example.net",
    "554 5.3.5 Local configuration error",
    # Exchange and Microsoft 365
    "550 5.7.1 Unable to relay",
    "550 5.7.54 SMTP; Unable to relay recipient in non-accepted domain",
    "550 5.7.60 SMTP; Client does not have permissions to send as this sender",
    "550 5.7.1 Client does not have permissions to send as this sender",
    "550 5.7.1 Client does not have permission to submit mail to this server",
    "530 5.7.57 SMTP; Client was not authenticated to send anonymous mail during MAIL FROM",
    "530 5.7.1 Client was not authenticated",
    "550 5.7.64 TenantAttribution; Relay Access Denied SMTP",
    "550 5.7.606 Access denied, banned sending IP [192.0.2.7]. To request removal visit https://sender.example.com/",
    "550 5.7.511 Access denied, banned sender[192.0.2.7].",
    "550 5.7.708 Service unavailable. Access denied, traffic not accepted from this IP.",
    "554 5.2.252 SendAsDenied; portal@example.org not allowed to send as promo@example.net",
    "550 5.7.1 Service unavailable, Client host [192.0.2.7] blocked using Spamhaus.",
    "550 5.7.1 Recipient not authorized, your IP has been found on a block list",
    # Gmail and its relay
    "550-5.7.1 Invalid credentials for relay [192.0.2.7]. The IP address you've\n550 5.7.1 registered does not match",
    "550 5.7.0 Mail relay denied [192.0.2.7]. Visit https://support.example.com/a/answer/6140680#maildenied",
    "550-5.7.25 [192.0.2.7] The IP address sending this message does not have a\n550 5.7.25 PTR record setup",
    "550-5.7.1 [192.0.2.7] The IP you're using to send mail is not authorized to\n550 5.7.1 send email directly",
    "550-5.7.1 [192.0.2.7 12] Our system has detected an unusual rate of\n550-5.7.1 unsolicited mail originating from"
    " your IP address. To protect our\n550 5.7.1 users from spam, mail sent from your IP address has been blocked.",
    "550 5.4.5 Daily SMTP relay sending quota exceeded.",
    "530-5.5.1 Authentication Required. Learn more at\n530 5.5.1 https://support.example.com/mail/?p=WantAuthError",
    "534 5.7.9 Application-specific password required",
    # others
    "553 sorry, that domain isn't in my list of allowed rcpthosts (#5.7.1)",  # qmail
    "553 sorry, that domain isn't in my list of allowed rcpthosts (#5.5.3 - chkuser)",
    "550 5.1.2 Relay not allowed.",  # Stalwart
    "501 5.5.4 You are not allowed to send from this address.",
    "503 5.5.1 You must authenticate first.",
    "530 5.5.1 Invalid command: Must issue an AUTH command first",  # OpenSMTPD
    "513 Relaying denied.",  # Courier
    "530 SMTP authentication is required.",  # hMailServer
    "503 This mail server requires authentication when attempting to send to a non-local e-mail address.",
    "550 Authentication is required for relay",  # SmarterMail
    "553 We do not relay non-local mail, sorry.",  # Mercury
    "554 Relay rejected for policy reasons.",  # Domino
    "550 Open relay not allowed",  # Mimecast
    "554 Your access to this mail system from 192.0.2.7 has been rejected due to the sending MTA's poor reputation.",
    "550 #5.7.1 Your access to submit messages to this e-mail system has been rejected.",  # IronPort
    "554 Blocked - see https://ipcheck.example.com/?ip=192.0.2.7",  # Proofpoint
    "554 5.7.1 Service unavailable; Client host [192.0.2.7] blocked using Barracuda Reputation",
    "553 5.7.1 [BL21] Connections will not be accepted from 192.0.2.7, because the ip is in Spamhaus's list",  # Yahoo
    "553 5.7.2 [TSS09] All messages from 192.0.2.7 will be permanently deferred",
    "554-No SMTP service\n554 Bad DNS PTR resource record.",  # GMX
    "554 IP=192.0.2.7 - None/bad reputation.",  # T-Online
    "550 Access from ip address 192.0.2.7 blocked.",  # mail.ru
    "550 Ip frequency limited",  # QQ
    "553 mail from must equal authorized user",  # 163
    "554 Message rejected: Email address is not verified.",  # Amazon SES
    "521 5.3.2 host does not accept mail",  # RFC 7504
    "550 this server does not accept mail from you",
    "550 5.7.1 Too many connections from your host",
    "550 Encryption required",
    "550 5.7.11 Encryption required for requested authentication mechanism",
    "550 5.7.10 Encryption needed",
    "550 5.7.1 Not authenticated",
    "550 5.7.1 Log in first",
    # 4xx: Postfix's default replies to a client that is not configured as allowed
    "454 4.7.1 <alice@example.org>: Relay access denied",
    "450 4.7.25 Client host rejected: cannot find your hostname, [192.0.2.7]",
    "450 4.7.1 <quarantine>: Helo command rejected: Host not found",
]

ABOUT_THE_MAIL = [
    "550 5.1.1 <alice@example.org>: Recipient address rejected: User unknown in local recipient table",
    "550 5.1.1 <relay-access-denied@example.org>: Recipient address rejected: User unknown in virtual mailbox table",
    "550 <relay-access-denied@example.org>: no such user",
    "550 client.host.rejected@example.org unknown",
    '550 <"x> Relay access denied <"@example.org>: user unknown',
    "554 5.7.1 <alice@example.org>: Recipient address rejected: Access denied",
    "554 5.7.1 <promo@example.net>: Sender address rejected: Access denied",
    "550 5.1.8 <promo@example.net>: Sender address rejected: Domain not found",
    "504 5.5.2 <alice>: Recipient address rejected: need fully-qualified address",
    "504 5.5.2 <promo>: Sender address rejected: need fully-qualified address",
    "550 5.7.27 <promo@example.net>: Sender address rejected: Domain example.net does not accept mail (nullMX)",
    "556 5.1.10 <alice@example.org>: Recipient address rejected: Domain example.org does not accept mail (nullMX)",
    "550 5.1.1 <alice@example.org>: Recipient address rejected: undeliverable address: host mx.example.org[192.0.2.9] "
    "said: 554 5.7.1 Client host rejected: Access denied (in reply to RCPT TO command)",
    "554 5.7.1 Service unavailable; Sender address [promo@example.net] blocked using dbl.spamhaus.org",
    "552 5.3.4 Message size exceeds fixed limit",
    "554 5.4.0 Error: too many hops",
    "550 5.7.1 Message content rejected",
    "554 5.7.1 Spam message rejected",
    "554 5.5.1 Error: no valid recipients",
    "501 5.1.3 Bad recipient address syntax",
    # amavis, milters, Rspamd
    "554 5.7.0 Reject, id=12345-01 - INFECTED: Eicar-Test-Signature",
    "554 5.7.1 id=12345-01 - BANNED: invoice.exe",
    "550 5.7.1 Blocked by SpamAssassin",
    "554 5.7.1 Rejected due to a URL in the content listed at multi.surbl.org",
    "550 5.7.1 message contains a URL listed in SURBL: 192.0.2.7 is blocked",
    # Exim
    "550 Unrouteable address",
    "550 Unknown user",
    "550 Sender verify failed",
    "550 Administrative prohibition",
    "550 This message was classified as SPAM and may not be delivered",
    "550 [SPF] 192.0.2.7 is not allowed to send mail from example.net.",
    "552 Message size exceeds maximum permitted",
    # Sendmail
    "550 5.1.1 <alice@example.org>... User unknown",
    "550 5.7.1 <promo@example.net>... Access denied",
    "553 5.1.8 <promo@example.net>... Domain of sender address promo@example.net does not exist",
    "550 5.7.1 Command rejected",
    # Exchange and Microsoft 365
    "550 5.4.1 Recipient address rejected: Access denied. AS(201806281)",
    "550 5.1.10 RESOLVER.ADR.RecipientNotFound; Recipient not found by SMTP address lookup",
    "550 5.7.1 RESOLVER.RST.AuthRequired; authentication required",
    "550 5.7.133 RESOLVER.RST.SenderNotAuthenticatedForGroup; authentication required; Delivery restriction check "
    "failed because the sender was not authenticated when sending to this group",
    "550 5.7.1 RESOLVER.RST.NotAuthorized; not authorized",
    "550 5.7.509 Access denied, sending domain example.net does not pass DMARC verification",
    "550 5.7.515 Access denied, sending domain example.net doesn't meet the required authentication level.",
    "550 5.7.1 Message rejected as spam by Content Filtering.",
    "554 5.6.0 Invalid message content",
    "550 5.2.2 Submission quota exceeded for mailbox",
    # Gmail, Yahoo
    "550-5.1.1 The email account that you tried to reach does not exist. Please try\n550 5.1.1 double-checking",
    "552 5.2.2 The email account that you tried to reach is over quota.",
    "550-5.7.26 This mail is unauthenticated, which poses a security risk to the\n550 5.7.26 sender and Gmail users",
    "550-5.7.26 Unauthenticated email from example.net is not accepted due to domain's\n550 5.7.26 DMARC policy.",
    "550-5.7.1 This message does not have authentication information or fails to\n550 5.7.1 pass authentication checks"
    " (SPF or DKIM).",
    "550-5.7.1 [192.0.2.7 12] Our system has detected that this message is\n550-5.7.1 likely unsolicited mail. To"
    " reduce the amount of spam sent to Gmail,\n550 5.7.1 this message has been blocked.",
    "552-5.7.0 This message was blocked because its content presents a potential\n552 5.7.0 security issue.",
    "554 5.7.9 Message not accepted for policy reasons. See https://postmaster.example.com/error-codes",
    # Dovecot, Cyrus and other LMTP
    "550 5.1.1 <alice@example.org> User doesn't exist: alice@example.org",
    "552 5.2.2 <alice@example.org> Quota exceeded (mailbox for user is full)",
    "550-Mailbox unknown.  Either there is no mailbox associated with this\n550-name or you do not have authorization"
    " to see it.\n550 5.1.1 User unknown",
    # others
    "550 sorry, no mailbox here by that name. (#5.1.1)",  # qmail
    "553 sorry, your envelope sender is in my badmailfrom list (#5.7.1)",
    "550 #5.1.0 Address rejected.",  # IronPort
    "550 5.1.2 Mailbox does not exist.",  # Stalwart
    "550 Invalid recipient: <alice@example.org>",  # OpenSMTPD
    "550 I cannot deliver mail for <alice@example.org>",  # Haraka
    "550 permanent failure for one or more recipients (alice@example.org:blocked)",  # Barracuda
    "550 You are not allowed to send to this mailing list",
    "550 5.7.1 You are not authorized to send mail to this group",
    "550 authentication required to send to this list",
    "550 mailbox unavailable",
    "550 5.7.23 SPF validation failed",
    "550 DKIM authentication failed",
    "550 5.7.1 no",
    "554 5.0.0 not here",
    "450 4.2.0 <alice@example.org>: Recipient address rejected: Greylisted, see https://postgrey.example.net/",
    "450 4.3.2 Service currently unavailable",
    "451 4.7.1 Client host rejected: greylisted, try again later",
    "454 4.7.0 Temporary authentication failure",
    "451 4.7.0 [TSS04] Messages from 192.0.2.7 temporarily deferred due to user complaints",
]


def is_about_portal(reply: str, *addresses: str, at_final_dot: bool = False) -> bool:
    """Return whether a reply, in the form in which a server sends it, rejects the portal."""
    lines = [line[4:] for line in reply.split("\n")]
    return rejects_portal(int(reply[:3]), "\n".join(lines), addresses, at_final_dot=at_final_dot)


@pytest.mark.parametrize("reply", ABOUT_US)
def test_replies_that_turn_this_portal_away_are_about_us(reply: str) -> None:
    assert is_about_portal(reply, SENDER, ALICE)
    assert is_about_portal(reply.upper(), SENDER, ALICE)


@pytest.mark.parametrize("reply", ABOUT_THE_MAIL)
def test_replies_about_a_recipient_or_a_message_are_not_about_us(reply: str) -> None:
    assert not is_about_portal(reply, SENDER, ALICE)
    assert not is_about_portal(reply, SENDER, ALICE, at_final_dot=True)


@pytest.mark.parametrize("code", [500, 502, 503, 555])
def test_commands_that_are_not_understood_are_about_us_but_not_at_the_final_dot(code: int) -> None:
    assert is_about_portal(f"{code} 5.5.2 line too long")
    assert not is_about_portal(f"{code} 5.5.2 line too long", at_final_dot=True)


@pytest.mark.parametrize(
    "recipient",
    [
        '"client host rejected: access denied"@example.org',
        '"x> relay access denied <"@example.org',
        '"authentication required said: "@example.org',
        "helo@example.org",
        "starttls.required@example.org",
    ],
)
@pytest.mark.parametrize("reply", ["550 {}: user unknown", "550 <{}> no such user", "550 no such user: {local}"])
def test_no_address_can_make_its_rejection_look_like_one_of_us(recipient: str, reply: str) -> None:
    for form in (recipient, recipient.replace('"', "")):
        local = form.rpartition("@")[0]
        assert not is_about_portal(reply.format(form, local=local), recipient)


def test_a_huge_reply_is_classified_quickly() -> None:
    for piece in ("your ip ", "not to an any mail ", '<"', "1:", "sending host ", "@", "client host "):
        assert is_about_portal(f"550 {piece * 10000}") in (True, False)
