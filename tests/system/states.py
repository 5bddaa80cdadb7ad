"""States of the pages of recipients, and of mails."""

from __future__ import annotations

import re
from dataclasses import replace

from digest import news
from digest.housekeeping import run_batches, send_queued
from digest.notices import send_notices
from portal.model.links import Action
from portal.model.message import Start, Tier
from portal.model.message import State as DeliveryState
from tests.builders import ALICE, BY_LINK, BY_OPERATOR, rule
from tests.system.local_site import read_mail
from tests.system.samples import PROVEN, WANTED, hold_samples
from tests.system.stage import Stage, State


def _request_link(stage: Stage) -> None:
    stage.go("sign-in").locator("[name=address]").fill(ALICE)
    stage.press("main form button")


def _mailed_link(stage: Stage) -> None:
    send_queued(stage.site.parts, stage.site.now)
    data = stage.site.mail.mails[-1].data.replace(b"=\r\n", b"")
    found = re.search(rb"http://\S+/sign-in/[\w-]{32}/", data)
    assert found
    stage.page.context.clear_cookies()
    stage.page.goto(found[0].decode())


def _release(stage: Stage) -> None:
    stage.link(Action.RELEASE, stage.wanted)
    stage.press("main form button.main")


def _undone(stage: Stage) -> None:
    stage.link(Action.DELETE, stage.of(Tier.SPAM))
    stage.press("main form button.main")
    stage.press("button[name=undo]")


def _show_of_company(stage: Stage) -> None:
    held = stage.company.hold(
        recipients=[ALICE], subject="Minutes of Thursday", header_from="Jane Doe <jane@partner.example>"
    )
    stage.page.goto(stage.company.link(Action.SHOW, held))


def _several_done(stage: Stage) -> None:
    for number in (1, 2, 3):
        stage.new(subject=f"Reminder {number}", header_from=f"Invoices <a{number}@invoices.example>")
    stage.site.digest()
    digest = stage.site.store.digests.last(ALICE)
    assert digest is not None
    stage.page.goto(stage.site.parts.links.url(Action.SEVERAL, digest.id, 0, digest.issued_at))
    for box in stage.page.locator("input[type=checkbox]").all()[:2]:
        box.check()
    stage.press("button[name=do][value=delete]")


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
    actions, spam = stage.site.parts.actions, [stage.site.hold(recipients=[ALICE]) for _ in range(2)]
    actions.release(spam[0].id, 0, BY_LINK)
    actions.delete(spam[1].id, 0, BY_LINK)
    actions.request_release(stage.of(Tier.DANGEROUS).id, 0, BY_LINK)
    stage.go("?state=all")


def _rules(stage: Stage) -> None:
    rules = [rule("bounce-1234567@example.net"), rule("partner.example", "allow")]
    [made, *_] = stage.site.store.rules.add(rules, stage.site.now)
    stage.go(f"rules?done={made.id}")


def _notice(stage: Stage) -> None:
    site, store = stage.site, stage.site.store
    zone = f"Etc/GMT{site.now.hour - 12:+}"  # it is noon there: no notice is sent at night
    store.recipients.set_preferences(
        ALICE, replace(store.recipients.get(ALICE).preferences, timezone=zone, notices=True)
    )
    news.schedule_news(site.parts, site.now)
    subject, sender = WANTED[stage.language][0]
    site.hold(recipients=[ALICE], subject=subject, header_from=sender, symbols=PROVEN, score=15.4)
    assert send_notices(site.parts, site.now).sent
    read_mail(stage.page, site.last_mail())


def _wrong_time(stage: Stage) -> None:
    stage.go("preferences").locator("details summary").first.click()
    # As in a browser without fields for times.
    stage.page.locator("input[type=time]").first.evaluate("field => { field.type = 'text'; field.value = 'noon' }")
    stage.press("button[value=save]")


def _senders(stage: Stage) -> None:
    stage.go("?select=all")
    stage.page.locator(".bar .more summary").first.click()
    stage.press("button[name=do][value=block]")


def _refused(stage: Stage) -> None:
    for number in range(3):
        stage.site.hold(recipients=[ALICE], header_from=f"b{number}@example.net", subject=f"Quote {number}")
    stage.site.mail.script["RCPT"] = ["550 5.1.1 mailbox unavailable", "452 4.2.2 mailbox full"]
    stage.go("?q=quote&select=all")
    stage.press("button[name=do][value=release]")
    stage.site.mail.script.clear()


def _job(stage: Stage) -> None:
    stage.sign_in()
    for number in range(60):
        stage.site.hold(recipients=[ALICE], header_from=f"a{number}@example.net", subject=f"Offer {number}")
    stage.go("?select=matching&tier=spam")
    stage.press(".bulk button[value=delete], button[name=do][value=delete]")
    stage.page.locator("main a[href*=pause]").click()


def _job_done(stage: Stage) -> None:
    run_batches(stage.site.parts, stage.site.now)
    stage.page.reload()


def _toast(stage: Stage) -> None:
    hold_samples(stage.site)
    stage.switch_on_scripts()
    stage.go("").keyboard.press("j")
    stage.page.keyboard.press("d")
    stage.page.locator(".toast").wait_for()


def _shortcuts(stage: Stage) -> None:
    stage.go("").keyboard.press("?")
    stage.page.get_by_role("dialog").wait_for()


def _check_by_link(stage: Stage) -> None:
    for box in stage.digest_link(Action.SEVERAL).locator("input[type=checkbox]").all():
        box.check()
    stage.press("button[name=do][value=release]")


def _company(stage: Stage) -> None:
    stage.page.context.clear_cookies()
    stage.page.goto(f"{stage.company.parts.settings.public_url}/sign-in")


def _not_here(stage: Stage) -> None:
    secret = stage.company.parts.settings.proxy.secret
    assert secret is not None
    headers = {"X-Quarantine-User": "alice@elsewhere.example", "X-Quarantine-Secret": secret.get_secret_value()}
    stage.page.set_extra_http_headers(headers)
    stage.page.goto(f"{stage.company.parts.settings.public_url}/sign-in/proxy")
    stage.page.set_extra_http_headers({})


def _check(stage: Stage) -> None:
    stage.go("?select=all")
    stage.press(".bulk button[value=release], button[name=do][value=release]")


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


def _sign_in_mail(stage: Stage) -> None:
    stage.page.context.clear_cookies()
    _request_link(stage)
    send_queued(stage.site.parts, stage.site.now)
    read_mail(stage.page, stage.site.last_mail())


def _stopped_mail(stage: Stage) -> None:
    url = stage.digest_link(Action.PREFERENCES).url
    assert stage.page.request.post(url, form={"List-Unsubscribe": "One-Click"}).ok
    send_queued(stage.site.parts, stage.site.now)
    read_mail(stage.page, stage.site.last_mail())
    stage.site.store.recipients.set_digests_stopped(ALICE, None)


def _job_refused(stage: Stage) -> None:
    for number in range(60):
        stage.new(header_from=f"c{number}@example.net", subject=f"Tender {number}")
    stage.go("?q=tender&select=matching")
    stage.press(".bulk button[value=release], button[name=do][value=release]")
    stage.site.mail.script["RCPT"] = ["550 5.1.1 mailbox unavailable", "452 4.2.2 mailbox full"] * 3
    run_batches(stage.site.parts, stage.site.now)
    stage.site.mail.script.clear()
    stage.page.reload()


_MESSAGES = [
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
]
BEFORE = {
    "Links of the digest, without a session": [
        State("link-release", "*Release*", "/link/TOKEN/", lambda s: s.link(Action.RELEASE, s.wanted)),
        State("link-delete", "*Delete*", "/link/TOKEN/", lambda s: s.link(Action.DELETE, s.of(Tier.SPAM))),
        State(
            "link-request",
            "*Request release* of a dangerous message",
            "/link/TOKEN/",
            lambda s: s.link(Action.REQUEST, s.of(Tier.DANGEROUS)),
        ),
        State("link-show", "*Show*", "/link/TOKEN/", lambda s: s.link(Action.SHOW, s.wanted)),
        State("link-show-company", "*Show*, with all methods to sign in", "/link/TOKEN/", _show_of_company),
        State("link-open", "*Open my quarantine*", "/link/TOKEN/", lambda s: s.digest_link(Action.OPEN)),
        State(
            "link-several", "Several messages of the digest", "/link/TOKEN/", lambda s: s.digest_link(Action.SEVERAL)
        ),
        State(
            "link-several-none",
            "Several messages, none selected",
            "/link/TOKEN/",
            lambda s: s.digest_link(Action.SEVERAL, "?none=1"),
        ),
        State("link-check", "One of several messages is suspicious", "/link/TOKEN/", _check_by_link),
        State(
            "link-forwarded",
            "*Revoke the links in this digest*",
            "/link/TOKEN/",
            lambda s: s.digest_link(Action.FORWARDED),
        ),
        State(
            "link-preferences",
            "Preferences from the digest",
            "/link/TOKEN/",
            lambda s: s.digest_link(Action.PREFERENCES),
        ),
        State("link-invalid", "A link that does not work", "/link/TOKEN/", lambda s: s.go("link/nonsense/")),
        State("link-released", "After *Release*", "/link/TOKEN/", _release),
        State("link-undone", "After *Undo* of *Delete*", "/link/TOKEN/", _undone),
        State("link-several-done", "Several messages, after *Delete*", "/link/TOKEN/", _several_done),
    ],
    "Sign-in": [
        State("sign-in", "Sign-in", "/sign-in", lambda s: s.go("sign-in")),
        State("sign-in-company", "Sign-in by a company's proxy, by password or by link", "/sign-in", _company),
        State("not-here", "An address without a quarantine", "/sign-in/proxy", _not_here),
        State("about", "About this quarantine", "/about", lambda s: s.go("about")),
        State(
            "sign-in-ended",
            "The session ended before a form was sent",
            "/sign-in",
            lambda s: s.go("sign-in?ended=form"),
        ),
        State("sign-in-code", "After the request for a link", "/sign-in/code", _request_link),
        State("sign-in-link", "The link in another browser", "/sign-in/TOKEN/", _mailed_link),
    ],
    "List": [
        State("list", "Held messages", "/", _list),
        State("list-selected", "Everything selected, and all orders", "/", _more_of_list),
        State("list-likely", "Likely mistakes first", "/", lambda s: s.go("?order=likely")),
        State("list-like", "Messages of one mailing", "/", lambda s: s.go(f"?like={s.of(Tier.SPAM).id}.0")),
        State("list-states", "All states", "/", _states),
        State("list-blocked", "Blocked messages", "/", _blocked),
        State("list-senders", "*Always block* for several messages", "/messages", _senders),
        State("list-check", "One of the selected messages is suspicious", "/messages", _check),
        State("list-refused", "The mail server refuses some of several messages", "/", _refused),
        State("list-empty", "A search that finds nothing", "/", lambda s: s.go("?q=nothing+has+these")),
    ],
    "Messages": _MESSAGES,
    "Rules, preferences and sessions": [
        State("rules", "Rules, one of them new", "/rules", _rules),
        State("preferences", "Preferences", "/preferences", lambda s: s.go("preferences")),
        State("preferences-zones", "All time zones", "/preferences", lambda s: s.go("preferences?zones=all")),
        State("preferences-error", "A time that is not valid", "/preferences", _wrong_time),
        State("preview", "Preview of the next digest", "/preferences/digest", lambda s: s.go("preferences/digest")),
        State("preview-text", "Preview as text", "/preferences/digest", lambda s: s.go("preferences/digest?as=text")),
        State("sessions", "Sessions", "/sessions", lambda s: s.go("sessions")),
    ],
}
AFTER = {
    "Mails": [
        State("notice", "The notice of a message that is probably wanted", "", _notice),
        State("mail-sign-in", "The mail with a sign-in link", "", _sign_in_mail),
        State("mail-stopped", "The answer to an unsubscription", "", _stopped_mail),
    ],
    "Many messages at once": [
        State("job", "More than 50 messages: the work goes on in the background", "/jobs/ID/", _job),
        State("job-done", "Results", "/jobs/ID/", _job_done),
        State("job-refused", "Results, if the mail server refuses some", "/jobs/ID/", _job_refused),
    ],
    "The list with scripts": [
        State("script-toast", "After the key *d*", "/", _toast),
        State("script-keys", "The keys, shown by *?*", "/", _shortcuts),
    ],
}
