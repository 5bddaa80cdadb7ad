"""States of the page of a message."""

from __future__ import annotations

from portal.model.message import Scan, ScanOutcome, Start, Tier
from portal.model.message import State as DeliveryState
from portal.web.help_desk import ask
from tests.builders import ALICE, BY_LINK, BY_OPERATOR, rule
from tests.system.samples import PROVEN
from tests.system.stage import Stage, State

_ATTACHMENTS = b"""From: Jane Doe <jane.doe@partner.example>\r
Content-Type: multipart/mixed; boundary=part\r
\r
--part\r
Content-Type: text/plain; charset=utf-8\r
\r
The minutes and the photos are attached.\r
--part\r
Content-Type: application/pdf\r
Content-Disposition: attachment; filename="Minutes of Thursday.pdf"\r
\r
%PDF-1.4\r
--part\r
Content-Type: application/octet-stream\r
Content-Disposition: attachment; filename="photos.jpg.exe"\r
\r
MZ\r
--part--\r
"""


def _denied(stage: Stage) -> None:
    held, actions = stage.new(Tier.DANGEROUS, subject="Scan of your contract"), stage.site.parts.actions
    actions.request_release(held.id, 0, BY_LINK)
    actions.refuse_request(held.id, 0, BY_OPERATOR, "It has a virus. Please ask the sender for another copy.")
    stage.go(f"messages/{held.id}/")


def _withdrawn(stage: Stage) -> None:
    held, actions = stage.new(Tier.DANGEROUS, subject="Photos of the party"), stage.site.parts.actions
    actions.request_release(held.id, 0, BY_LINK, reason="They are from our neighbours.")
    actions.withdraw_request(held.id, 0, BY_LINK)
    stage.go(f"messages/{held.id}/")


def _rule_made(stage: Stage) -> None:
    held = stage.new(subject="Last reminder", header_from="Billing <billing@invoices.example>", symbols=PROVEN)
    stage.go(f"messages/{held.id}/")
    stage.press("form[action$=delete-block] button")


def _attachments(stage: Stage) -> None:
    held = stage.new(data=_ATTACHMENTS, subject="Minutes and photos", header_from="Jane Doe <jane.doe@partner.example>")
    stage.go(f"messages/{held.id}/")


def _scanned(stage: Stage) -> None:
    sender = "Tom <tom@partner.example>"
    held = stage.new(data=b"Subject: Plan\r\n" + _ATTACHMENTS, subject="Plan and photos", header_from=sender)
    stage.site.store.messages.record_scan(held.id, Scan(ScanOutcome.CLEAN, stage.site.now), Tier.SPAM, stage.site.now)
    stage.go(f"messages/{held.id}/")


def _act(stage: Stage, act: str) -> None:
    stage.press(f"form[action$={act}] button")


def _started(stage: Stage, state: DeliveryState, effect: str) -> None:
    [made] = stage.site.store.rules.add([rule(f"{effect}.example", effect)], stage.site.now)
    sender = f"Raffle <win@{effect}.example>"
    start = Start(state, made.as_actor)
    held = stage.site.hold(recipients=(ALICE,), starts={ALICE: start}, header_from=sender, subject=f"Raffle, {effect}")
    stage.go(f"messages/{held.id}/")


def _question(stage: Stage) -> None:
    stage.go(f"messages/{stage.personal.id}/").locator("details:has(#question) summary").click()
    stage.page.locator("#question").fill("Is this really from Jane?")
    _act(stage, "question")


def _asked_already(stage: Stage) -> None:
    held = stage.new(subject="Tax refund", header_from="Taxes <x@taxes.example>")
    stage.go(f"messages/{held.id}/").locator("details:has(#question) summary").click()
    ask(stage.site.parts.actions, stage.site.delivery(held), ALICE, BY_LINK, "Is this wanted?")
    _act(stage, "question")


def _spam(stage: Stage) -> None:
    held = stage.company.hold(recipients=[ALICE], subject="Miracle cure", header_from="Cure <x@cure.example>")
    stage.go_to_company(f"messages/{held.id}/")
    _act(stage, "spam")


def _role_mailbox(stage: Stage) -> None:
    held = stage.company.hold(
        recipients=["info@example.org"], subject="Offer for chairs", header_from="Chairs <sales@chairs.example>"
    )
    stage.go_to_company(f"messages/{held.id}/")


def _faster(stage: Stage) -> None:
    held = stage.new(subject="Concert tickets", header_from="Tickets <shop@tickets.example>")
    stage.go(f"messages/{held.id}/")
    stage.site.parts.actions.delete(held.id, 0, BY_LINK)
    _act(stage, "release")


def _release_while(stage: Stage, answer: str, subject: str) -> None:
    held = stage.new(subject=subject, header_from="Museum <news@museum.example>")
    stage.go(f"messages/{held.id}/")
    stage.site.mail.script["RCPT"] = answer
    _act(stage, "release")
    stage.site.mail.script.clear()


def _again_too_soon(stage: Stage) -> None:
    held = stage.new(subject="Train tickets", header_from="Trains <tickets@trains.example>")
    stage.go(f"messages/{held.id}/")
    _act(stage, "release")
    stage.go(f"messages/{held.id}/")
    _act(stage, "again")


def _approved(stage: Stage) -> None:
    held, actions = stage.new(Tier.DANGEROUS, subject="Signed contract"), stage.site.parts.actions
    actions.request_release(held.id, 0, BY_LINK, reason="We signed it yesterday.")
    actions.release(held.id, 0, BY_OPERATOR, operator=True)
    stage.go(f"messages/{held.id}/")


def _deleted(stage: Stage) -> None:
    held = stage.new(subject="Poker", header_from="Poker <x@poker.example>")
    stage.go(f"messages/{held.id}/")
    _act(stage, "delete")


MESSAGES = [
    State(
        "message", "A message that is probably wanted", "/messages/ID/", lambda s: s.go(f"messages/{s.personal.id}/")
    ),
    State("released", "A released message", "/messages/ID/", lambda s: s.go(f"messages/{s.wanted.id}/")),
    State(
        "suspicious", "A suspicious message", "/messages/ID/", lambda s: s.go(f"messages/{s.of(Tier.SUSPICIOUS).id}/")
    ),
    State(
        "dangerous",
        "A dangerous message whose release was requested",
        "/messages/ID/",
        lambda s: s.go(f"messages/{s.of(Tier.DANGEROUS).id}/"),
    ),
    State("denied", "A dangerous message whose release was denied", "/messages/ID/", _denied),
    State("withdrawn", "A dangerous message whose request was withdrawn", "/messages/ID/", _withdrawn),
    State("rule-made", "After *Delete and block sender*", "/messages/ID/", _rule_made),
    State(
        "formatted",
        "A message as the sender made it",
        "/messages/ID/VIEW",
        lambda s: s.go(f"messages/{s.html.id}/formatted"),
    ),
    State("headers", "The header fields", "/messages/ID/VIEW", lambda s: s.go(f"messages/{s.html.id}/headers")),
    State("source", "The source", "/messages/ID/VIEW", lambda s: s.go(f"messages/{s.html.id}/source")),
    State(
        "download",
        "Before a download",
        "/messages/ID/download",
        lambda s: s.go(f"messages/{s.of(Tier.SUSPICIOUS).id}/download"),
    ),
    State(
        "sender",
        "A rule for the sender",
        "/messages/ID/sender",
        lambda s: s.go(f"messages/{s.of(Tier.SPAM).id}/sender"),
    ),
    State("attachments", "A message with attachments", "/messages/ID/", _attachments),
    State("scanned", "A message with attachments after a virus scan that found nothing", "/messages/ID/", _scanned),
    State("role-mailbox", "A message to a role mailbox", "/messages/ID/", _role_mailbox),
    State(
        "blocked",
        "A message that a rule blocked",
        "/messages/ID/",
        lambda s: _started(s, DeliveryState.BLOCKED, "block"),
    ),
    State(
        "passed",
        "A message that a rule let through",
        "/messages/ID/",
        lambda s: _started(s, DeliveryState.PASSED, "allow"),
    ),
    State("approved", "A dangerous message whose release was approved", "/messages/ID/", _approved),
    State("deleted", "After *Delete*", "/messages/ID/", _deleted),
    State("asked", "After a question to the administrator", "/messages/ID/", _question),
    State("asked-already", "A second question on the same day", "/messages/ID/", _asked_already),
    State("reported", "After *Report spam*", "/messages/ID/", _spam),
    State("faster", "After *Release* of a message that another tab deleted in the meantime", "/messages/ID/", _faster),
    State(
        "failed",
        "After *Release*, when the mail server refuses the message",
        "/messages/ID/",
        lambda s: _release_while(s, "550 5.1.1 mailbox unavailable", "Night at the museum"),
    ),
    State(
        "deferred",
        "After *Release*, when the mail server is busy",
        "/messages/ID/",
        lambda s: _release_while(s, "452 4.2.2 mailbox full", "Day at the museum"),
    ),
    State("again", "After *Send again*, twice within a minute", "/messages/ID/", _again_too_soon),
]
