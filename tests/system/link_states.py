"""States of the links in a digest, and of sign-in."""

from __future__ import annotations

import re

from digest.housekeeping import send_queued
from portal.model.links import Action
from portal.model.message import Tier
from tests.builders import ALICE, BY_LINK
from tests.system.stage import Stage, State


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


def _check_by_link(stage: Stage) -> None:
    for box in stage.digest_link(Action.SEVERAL).locator("input[type=checkbox]").all():
        box.check()
    stage.press("button[name=do][value=release]")


def _faster(stage: Stage) -> None:
    held = stage.new(subject="Your parcel", header_from="Parcels <info@parcels.example>")
    stage.link(Action.RELEASE, held)
    stage.site.parts.actions.delete(held.id, 0, BY_LINK)
    stage.press("main form button.main")


def _deferred(stage: Stage) -> None:
    stage.link(Action.RELEASE, stage.new(subject="Lunch", header_from="Tom <tom@partner.example>"))
    stage.site.mail.script["RCPT"] = "452 4.2.2 mailbox full"
    stage.press("main form button.main")
    stage.site.mail.script.clear()


def _requested(stage: Stage) -> None:
    held = stage.new(Tier.DANGEROUS, subject="Voice message", header_from="Phone <voice@phone.example>")
    stage.link(Action.REQUEST, held).locator("textarea").fill("I wait for a call.")
    stage.press("main form button.main")


def _expired(stage: Stage) -> None:
    stage.page.goto(stage.site.link(Action.RELEASE, stage.personal, minutes_old=400 * 24 * 60))


def _nothing_selected(stage: Stage) -> None:
    stage.digest_link(Action.SEVERAL, "?none=1")
    stage.press("button[name=do][value=delete]")


def _preferences_saved(stage: Stage) -> None:
    stage.digest_link(Action.PREFERENCES)
    stage.press("button[value=save]")


def _revoked(stage: Stage) -> None:
    site = stage.company
    site.digest()
    digest = site.store.digests.last(ALICE)
    assert digest is not None
    stage.page.goto(site.parts.links.url(Action.FORWARDED, digest.id, 0, digest.issued_at))
    stage.press("main form button.main")


def request_link(stage: Stage) -> None:
    stage.go("sign-in").locator("[name=address]").fill(ALICE)
    stage.press("main form button")


def _mailed_link(stage: Stage) -> None:
    send_queued(stage.site.parts, stage.site.now)
    data = stage.site.mail.mails[-1].data.replace(b"=\r\n", b"")
    found = re.search(rb"http://\S+/sign-in/[\w-]{32}/", data)
    assert found
    stage.page.context.clear_cookies()
    stage.page.goto(found[0].decode())


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


def _wrong_code(stage: Stage) -> None:
    stage.page.locator("main [name=code]").fill("00000000")
    stage.press("main form button")


def _wrong_password(stage: Stage) -> None:
    _company(stage)
    stage.page.locator("main [name=address]").fill(ALICE)
    stage.page.locator("main [name=password]").fill("wrong")
    stage.press("main form button")


LINKS = [
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
    State("link-several", "Several messages of the digest", "/link/TOKEN/", lambda s: s.digest_link(Action.SEVERAL)),
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
    State("link-faster", "*Release* of a message that was deleted in the meantime", "/link/TOKEN/", _faster),
    State("link-deferred", "*Release*, when the mail server is busy", "/link/TOKEN/", _deferred),
    State("link-requested", "After *Request release*", "/link/TOKEN/", _requested),
    State("link-several-nothing", "*Delete* without selected messages", "/link/TOKEN/", _nothing_selected),
    State("link-preferences-saved", "Preferences, saved", "/link/TOKEN/", _preferences_saved),
    State("link-expired", "A link that has expired", "/link/TOKEN/", _expired),
    State("link-revoked", "After all links were revoked", "/link/TOKEN/", _revoked),
]
SIGN_IN = [
    State("sign-in", "Sign-in", "/sign-in", lambda s: s.go("sign-in")),
    State("sign-in-company", "Sign-in by a company's proxy, by password or by link", "/sign-in", _company),
    State("not-here", "An address without a quarantine", "/sign-in/proxy", _not_here),
    State("about", "About this quarantine", "/about", lambda s: s.go("about")),
    State(
        "sign-in-ended",
        "The session ended before a form was sent",
        "/sign-in",
        lambda s: s.go("sign-in?ended=kept"),
    ),
    State("sign-in-code", "After the request for a link", "/sign-in/code", request_link),
    State("sign-in-code-wrong", "A code that is not valid", "/sign-in/code", _wrong_code),
    State("sign-in-link", "The link in another browser", "/sign-in/TOKEN/", _mailed_link),
    State(
        "sign-in-link-old",
        "A sign-in link that is no longer valid",
        "/sign-in/TOKEN/",
        lambda s: s.go(f"sign-in/{'x' * 32}/"),
    ),
    State("sign-in-password-wrong", "A password that is not right", "/sign-in/password", _wrong_password),
    State("sign-in-console", "The console needs a new sign-in", "/sign-in", lambda s: s.go("sign-in?ended=console")),
]
