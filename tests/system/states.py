"""States of the list, of rules, preferences and sessions, and of errors; all states but those of the console."""

from __future__ import annotations

import re
from datetime import timedelta
from hashlib import sha256
from unittest.mock import patch

from digest.housekeeping import run_batches
from portal.model.audit import AuditEntry
from portal.model.errors import StoreUnavailable
from portal.model.message import Actor, ActorKind, EventKind, Start, Tier, new_id
from portal.model.message import State as DeliveryState
from portal.model.schedule import Preferences
from tests.builders import ALICE, BOB, BY_LINK, prefer, rule
from tests.system.link_states import LINKS, SIGN_IN
from tests.system.mail_states import MAILS
from tests.system.message_states import MESSAGES
from tests.system.samples import PROVEN, hold_samples
from tests.system.stage import Stage, State


def _blocked(stage: Stage) -> None:
    for number in (1, 2):
        start = Start(DeliveryState.BLOCKED, rule("lottery.example").as_actor)
        sender, subject = f"Lottery <win{number}@lottery.example>", f"You won, part {number}"
        stage.site.hold(recipients=(ALICE,), starts={ALICE: start}, header_from=sender, subject=subject)
    stage.go("?state=blocked")


def _list(stage: Stage) -> None:
    stage.sign_in()
    stage.go("")


def _more_of_list(stage: Stage) -> None:
    stage.go("?select=all").locator(".more summary").click()
    for summary in stage.page.locator("summary").all():
        if summary.is_visible() and summary.evaluate("one => !one.parentElement.open"):
            summary.click()


def _states(stage: Stage) -> None:
    actions, spam = stage.site.parts.actions, [stage.new(subject=f"Offer {number}") for number in (1, 2)]
    actions.release(spam[0].id, 0, BY_LINK)
    actions.delete(spam[1].id, 0, BY_LINK)
    actions.request_release(stage.of(Tier.DANGEROUS).id, 0, BY_LINK)
    stage.go("?state=all")


def _rules(stage: Stage) -> None:
    rules = [rule("bounce-1234567@example.net"), rule("partner.example", "allow")]
    [made, *_] = stage.site.store.rules.add(rules, stage.site.now)
    stage.go(f"rules?done={made.id}")


def _wrong_time(stage: Stage) -> None:
    stage.go("preferences").locator("details summary").first.click()
    # As in a browser without fields for times.
    stage.page.locator("input[type=time]").first.evaluate("field => { field.type = 'text'; field.value = 'noon' }")
    stage.press("button[value=save]")


def _senders(stage: Stage) -> None:
    stage.go("?select=all")
    stage.page.locator(".bar .more summary").first.click()
    stage.press("button[name=do][value=block]")


def _senders_blocked(stage: Stage) -> None:
    _select(stage, "Raffles")
    stage.page.locator(".bar .more summary").first.click()
    stage.press("button[name=do][value=block]")
    stage.press("main form button.main")


def _new(stage: Stage) -> None:
    stage.sign_in()
    stage.go("")
    stage.site.pass_time(hours=1)
    for number in (1, 2):
        sender, at = f"Canteen <menu{number}@canteen.example>", stage.site.now - timedelta(minutes=10 * number)
        stage.new(at=at, subject=f"Menu of week {number}", header_from=sender)
    stage.go("?order=newest").locator(".news").wait_for()
    stage.page.context.clear_cookies(name=re.compile("visit"))  # otherwise all later lists mark them


def _refused(stage: Stage) -> None:
    for number in range(3):
        stage.site.hold(recipients=[ALICE], header_from=f"b{number}@example.net", subject=f"Quote {number}")
    stage.site.mail.script["RCPT"] = ["550 5.1.1 mailbox unavailable", "452 4.2.2 mailbox full"]
    stage.go("?q=quote&select=all")
    stage.press("button[name=do][value=release]")
    stage.site.mail.script.clear()


def _newest(stage: Stage) -> None:
    stage.sign_in()
    stage.go("?size=25")


def _kept(stage: Stage) -> None:
    boxes = stage.go("?size=25").locator(".list [name=mail]")
    for place in (1, 3, -1):
        boxes.nth(place).check()
    for number in (1, 2):
        stage.new(subject=f"Programme {number}", header_from=f"Cinema <news{number}@cinema{number}.example>")
    stage.site.store.sign_ins.end_sessions(ALICE)
    stage.press("button[name=do][value=delete]")
    stage.sign_in()
    stage.go("?size=25&undone=several").locator(".beside").wait_for()


def _job(stage: Stage) -> None:
    stage.sign_in()
    for number in range(60):
        stage.site.hold(recipients=[ALICE], header_from=f"a{number}@example.net", subject=f"Offer {number}")
    stage.go("?select=matching&tier=spam")
    stage.press(".bulk button[value=delete], button[name=do][value=delete]")
    stage.page.locator("main a[href*=pause]").click()


def _job_late(stage: Stage) -> None:
    stage.site.pass_time(minutes=2)
    stage.page.locator(".done a[href*='/jobs/']").click()
    stage.page.locator("main a[href*=pause]").click()
    stage.page.locator(".state.bad").wait_for()


def _job_done(stage: Stage) -> None:
    run_batches(stage.site.parts, stage.site.now)
    stage.page.reload()


def _toast(stage: Stage) -> None:
    for number in range(4):
        stage.new(subject=f"Quotation {number}", header_from=f"Sales <sales@company{number}.example>")
    stage.switch_on_scripts()
    stage.go("").keyboard.press("j")
    stage.page.keyboard.press("d")
    stage.page.locator(".toast").wait_for()


def _shortcuts(stage: Stage) -> None:
    stage.go("").keyboard.press("?")
    stage.page.get_by_role("dialog").wait_for()


def _check(stage: Stage) -> None:
    stage.go("?select=all")
    stage.press(".bulk button[value=release], button[name=do][value=release]")


def _job_refused(stage: Stage) -> None:
    for number in range(60):
        stage.new(header_from=f"c{number}@example.net", subject=f"Tender {number}")
    stage.go("?q=tender&select=matching")
    stage.press(".bulk button[value=release], button[name=do][value=release]")
    stage.site.mail.script["RCPT"] = ["550 5.1.1 mailbox unavailable", "452 4.2.2 mailbox full"] * 3
    run_batches(stage.site.parts, stage.site.now)
    stage.site.mail.script.clear()
    stage.page.reload()


def _select(stage: Stage, word: str) -> None:
    """Hold three messages with this word, and select them."""
    for number in (1, 2, 3):
        stage.new(subject=f"{word} {number}", header_from=f"{word} <x{number}@{word.lower()}.example>")
    stage.go(f"?q={word}&select=all")


def _nothing_selected(stage: Stage) -> None:
    stage.go("")
    stage.press("button[name=do][value=delete]")


def _deleted(stage: Stage) -> None:
    _select(stage, "Casino")
    stage.press("button[name=do][value=delete]")


def _released_one(stage: Stage) -> None:
    stage.new(subject="Agenda", header_from="Tom <tom@partner.example>")
    stage.go("?q=Agenda")
    stage.press(".do button")


def _signed_out(stage: Stage) -> None:
    held = stage.new(subject="Theatre", header_from="Theatre <news@theatre.example>")
    stage.go(f"?q=offers&undone={held.id}.0")


def _role_list(stage: Stage) -> None:
    hold_samples(stage.company, stage.language)
    for number in (1, 2, 3, 4):
        sender, symbols = f"Customer {number} <buyer@customer{number}.example>", PROVEN if number > 2 else ()
        stage.company.hold(
            recipients=["info@example.org"], subject=f"Order {number}", header_from=sender, symbols=symbols
        )
    stage.go_to_company("").locator(".filters summary").click()


def _role_rules(stage: Stage) -> None:
    own = [rule("lottery.example"), rule("orders@shop.example", "allow")]
    shared = [rule(f"{name}.example", effect, "info@example.org") for name, effect in _ROLE_RULES.items()]
    stage.company.store.rules.add([*own, *shared], stage.company.now)
    stage.go_to_company("rules")


def _rule_removed(stage: Stage) -> None:
    stage.go("rules")
    stage.press("button[formaction$=remove]")


def _rule_error(stage: Stage) -> None:
    stage.go("rules").locator("details.add summary").click()
    stage.page.locator("#sender").fill("not a sender")
    stage.press("details.add button[value=block]")


def _saved(stage: Stage) -> None:
    stage.go("preferences")
    stage.press("button[value=save]")


def _stopped(stage: Stage) -> None:
    stage.go("preferences")
    stage.press("button[value=stop]")
    stage.site.store.recipients.set_digests_stopped(ALICE, None)


def _waiting_digest(stage: Stage) -> None:
    dave, site = "dave@example.org", stage.site
    prefer(site.store, dave, Preferences(only_wanted=True))
    for number in (1, 2):
        site.hold(recipients=[dave], subject=f"Miracle {number}", header_from=f"Cure <x{number}@cure.example>")
        if number == 1:
            site.digest(dave)
    stage.show_to(dave, "preferences/digest")


def _sessions(stage: Stage) -> None:
    for number, client in enumerate(("Firefox · Android", "Safari · iPhone", "Chrome · Windows"), 1):
        at = stage.site.now - timedelta(hours=3 * number)
        stage.site.store.sign_ins.start_session(sha256(bytes([number])).digest(), ALICE, at, client)
    stage.go("sessions")


def _session_ended(stage: Stage) -> None:
    stage.page.locator("button[value=one]").last.click()
    stage.page.wait_for_load_state()


def _too_many(stage: Stage) -> None:
    asked, alice = stage.site.now - timedelta(hours=20), Actor(ActorKind.RECIPIENT, ALICE, "portal", "192.0.2.1")
    for number in range(20):
        at = asked + timedelta(minutes=number)
        stage.site.store.audit.record(AuditEntry(new_id(at), at, EventKind.ASKED, alice, ALICE))
    stage.go(f"messages/{stage.wanted.id}/").locator("details:has(#question) summary").click()
    stage.press("form[action$=question] button")


def _fail(stage: Stage, error: Exception) -> None:
    with patch.object(stage.site.store.sign_ins, "session", side_effect=error):
        stage.go("")


_ROLE_RULES = {"customer1": "allow", "customer2": "allow", "chairs": "block"}  # domains of .example
BEFORE = {
    "Links of the digest, without a session": LINKS,
    "Sign-in": SIGN_IN,
    "List": [
        State("list", "Held messages", "/", _list),
        State("list-selected", "Everything selected, and all orders", "/", _more_of_list),
        State("list-likely", "Likely mistakes first", "/", lambda s: s.go("?order=likely")),
        State("list-like", "Messages of one mailing", "/", lambda s: s.go(f"?like={s.of(Tier.SPAM).id}.0")),
        State("list-filtered", "Some filters", "/", lambda s: s.go("?q=offers&tier=spam&since=2026-01-01")),
        State("list-released-one", "After *Release* of a message", "/", _released_one),
        State("list-deleted", "After *Delete* of several messages", "/", _deleted),
        State("list-undone", "After *Undo* of it", "/", lambda s: s.press("button[name=undo]")),
        State("list-nothing", "After *Delete* without selected messages", "/", _nothing_selected),
        State("list-signed-out", "After an expired session", "/", _signed_out),
        State("list-other", "After a link for somebody else", "/", lambda s: s.go("?link=other")),
        State("list-states", "All states", "/", _states),
        State("list-requested", "Requested messages", "/", lambda s: s.go("?state=requested")),
        State("list-released", "Released messages", "/", lambda s: s.go("?state=released")),
        State("list-bin", "Deleted messages", "/", lambda s: s.go("?state=deleted")),
        State("list-blocked", "Blocked messages", "/", _blocked),
        State("list-senders", "*Always block* for several messages", "/messages", _senders),
        State("list-senders-blocked", "After *Always block*", "/", _senders_blocked),
        State("list-check", "One of the selected messages is suspicious", "/messages", _check),
        State("list-refused", "The mail server refuses some of several messages", "/", _refused),
        State("list-empty", "A search that finds nothing", "/", lambda s: s.go("?q=nothing+has+these")),
        State("list-nobody", "Nothing is held", "/", lambda s: s.show_to(BOB, "")),
        State("list-role", "The list of somebody who reads a role mailbox, too", "/", _role_list),
        State("list-new", "What was held since the last visit", "/", _new),
    ],
    "Messages": MESSAGES,
    "Rules, preferences and sessions": [
        State("rules", "Rules, one of them new", "/rules", _rules),
        State("rules-removed", "After *Remove*", "/rules", _rule_removed),
        State("rules-error", "A sender that is not valid", "/rules", _rule_error),
        State("rules-search", "A search that finds nothing", "/rules", lambda s: s.go("rules?q=nothing+has+these")),
        State("rules-none", "No rules", "/rules", lambda s: s.show_to(BOB, "rules")),
        State("rules-role", "Rules for a role mailbox, too", "/rules", _role_rules),
        State("preferences", "Preferences", "/preferences", lambda s: s.go("preferences")),
        State("preferences-zones", "All time zones", "/preferences", lambda s: s.go("preferences?zones=all")),
        State("preferences-error", "A time that is not valid", "/preferences", _wrong_time),
        State("preferences-saved", "After *Save*", "/preferences", _saved),
        State("preferences-stopped", "After *Stop digests*", "/preferences", _stopped),
        State("preview", "Preview of the next digest", "/preferences/digest", lambda s: s.go("preferences/digest")),
        State("preview-text", "Preview as text", "/preferences/digest", lambda s: s.go("preferences/digest?as=text")),
        State("preview-none", "No next digest", "/preferences/digest", lambda s: s.show_to(BOB, "preferences/digest")),
        State("preview-waits", "The digest waits for wanted messages", "/preferences/digest", _waiting_digest),
        State("sessions", "Sessions", "/sessions", _sessions),
        State("sessions-ended", "After *Sign out* of one", "/sessions", _session_ended),
    ],
    "Errors": [
        State("error-path", "An address without a page", "", lambda s: s.go("nothing/here")),
        State("error-message", "A message that is not there", "", lambda s: s.go(f"messages/{new_id(s.site.now)}/")),
        State("error-limit", "Too many questions", "", _too_many),
        State("error-store", "The store is not available", "", lambda s: _fail(s, StoreUnavailable("locked"))),
        State("error-bug", "An unexpected error", "", lambda s: _fail(s, RuntimeError("as if there were a bug"))),
    ],
}
AFTER = {
    "Mails": MAILS,
    "Many messages at once": [
        State("list-newest", "The first of several pages", "/", _newest),
        State("list-older", "The second page", "/", lambda s: s.press("a[rel=next]")),
        State("list-matching", "All matches selected", "/", lambda s: s.go("?select=matching&tier=spam&size=25")),
        State("list-kept", "After sign-in: what was selected when the session had ended", "/", _kept),
        State("job", "More than 50 messages: the work goes on in the background", "/jobs/ID/", _job),
        State("list-job", "The list in the meantime", "/", lambda s: s.go("")),
        State("job-late", "The background service does not run", "/jobs/ID/", _job_late),
        State("job-done", "Results", "/jobs/ID/", _job_done),
        State("job-refused", "Results, if the mail server refuses some", "/jobs/ID/", _job_refused),
    ],
    "The list with scripts": [
        State("script-toast", "After the key *d*", "/", _toast),
        State("script-keys", "The keys, shown by *?*", "/", _shortcuts),
    ],
}
