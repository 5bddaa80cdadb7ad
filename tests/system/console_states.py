"""States of the console's pages."""

from __future__ import annotations

import pyotp

from digest.housekeeping import index_facets, run_mass_acts
from digest.statistics import count_days
from portal.model.audit import Act, AuditEntry
from portal.model.message import Actor, ActorKind, Tier
from portal.model.staff import EVERYWHERE, Grant, Role
from tests.builders import ALICE, BOB, BY_LINK, BY_OPERATOR
from tests.system.stage import Stage, State


def _console(stage: Stage) -> None:
    for address, role in ((ALICE, Role.ADMINISTRATOR), (BOB, Role.HELP_DESK)):
        stage.site.store.staff.give(Grant(address, role, EVERYWHERE, stage.site.now, BY_OPERATOR))
    stage.go("admin/")


def _console_message(stage: Stage) -> None:
    stage.go("admin/?symbol=BAYES_SPAM").locator("a[href*='/admin/messages/']").first.click()
    stage.page.get_by_role("heading", level=1).wait_for()


def _mass_act(stage: Stage) -> None:
    index_facets(stage.site.parts)
    stage.go("admin/jobs/new?symbol=BAYES_SPAM&act=release")


def _console_job(stage: Stage) -> None:
    stage.page.locator("main [name=reason]").fill("A rule of Rspamd was wrong.")
    stage.press("main form button.main")


def _statistics(stage: Stage) -> None:
    index_facets(stage.site.parts)
    count_days(stage.site.parts, stage.site.now)
    stage.go("admin/statistics?period=7")


def _console_release(stage: Stage) -> None:
    stage.go(f"admin/messages/{stage.of(Tier.SUSPICIOUS).id}.0/")
    stage.press("button[name=act][value=release]")


def _token(stage: Stage) -> None:
    stage.sign_in()
    stage.go("admin/tokens").locator("#name").fill("Monitoring")
    stage.press("button[value=create]")


def _factor_codes(stage: Stage) -> None:
    stage.sign_in()
    key = stage.go("admin/second-factor").locator("code.key").inner_text().replace(" ", "")
    stage.page.locator("main [name=code]").fill(pyotp.TOTP(key).at(stage.site.now))
    stage.press("button[value=set-up]")
    stage.factor = pyotp.TOTP(key)


def _factor_code(stage: Stage) -> None:
    stage.site.pass_time(seconds=60)
    stage.sign_in()
    stage.go("admin/")


def _set_up_code(stage: Stage) -> None:
    assert stage.factor is not None
    stage.page.locator("main [name=code]").first.fill(stage.factor.at(stage.site.now))
    stage.press("main form button.main")
    stage.go("admin/staff")
    stage.page.locator("button[value=set-up-code]").last.click()
    stage.page.locator("code.key").wait_for()


def _requested(stage: Stage) -> None:
    sender = "Law <fax@law.example>"  # to Bob: nobody decides on their own requests
    held = stage.site.hold(Tier.DANGEROUS, recipients=[BOB], subject="Fax from the lawyer", header_from=sender)
    stage.site.parts.actions.request_release(held.id, 0, BY_LINK, reason="I wait for it.")
    stage.go(f"admin/messages/{held.id}.0/")


def _not_denied(stage: Stage) -> None:
    stage.press("button[name=act][value=deny]")


def _denied(stage: Stage) -> None:
    stage.page.locator("#reason").fill("It has a virus.")
    stage.press("button[name=act][value=deny]")


def _domain_wrong(stage: Stage) -> None:
    form = "form:has([name=key][value=retention_spam_days])"
    stage.go("admin/domains?domain=example.org").locator(f"{form} [name=value]").fill("nonsense")
    stage.press(f"{form} button")


def _job_done(stage: Stage) -> None:
    stage.site.pass_time(minutes=2)
    run_mass_acts(stage.site.parts, stage.site.now)
    stage.page.reload()


def _needs_set_up_code(stage: Stage) -> None:
    carol, store, now = "carol@example.org", stage.company.store, stage.company.now
    store.staff.give(Grant(carol, Role.AUDITOR, EVERYWHERE, now, BY_OPERATOR))
    by_proxy = Actor(ActorKind.RECIPIENT, carol, "proxy", "192.0.2.1")
    store.audit.record(AuditEntry.new(now, Act.SIGNED_IN, by_proxy, carol))
    stage.go_to_company("admin/second-factor", carol)


def _type_set_up_code(stage: Stage) -> None:
    stage.site.parts.second_factors.make_set_up_code(ALICE, BY_LINK)
    stage.sign_in()
    stage.go("admin/")


def _wrong_code(stage: Stage) -> None:
    _factor_code(stage)
    _type_wrong_code(stage)


def _type_wrong_code(stage: Stage) -> None:
    stage.page.locator("main [name=code]").first.fill("000000")
    stage.press("main form button.main")


def _locked(stage: Stage) -> None:
    for _ in range(4):
        _type_wrong_code(stage)


CONSOLE = [
    State("console", "Search", "/admin/", _console),
    State("console-found", "Search for a symbol", "/admin/", lambda s: s.go("admin/?symbol=BAYES_SPAM&tier=spam")),
    State("console-nothing", "A search that finds nothing", "/admin/", lambda s: s.go("admin/?symbol=NO_SUCH_SYMBOL")),
    State("console-error", "A day that is not valid", "/admin/", lambda s: s.go("admin/?since=x")),
    State("console-groups", "Groups by symbol", "/admin/", lambda s: s.go("admin/?by=symbol")),
    State("console-message", "One message", "/admin/messages/ID/", _console_message),
    State(
        "console-text",
        "The text of a message",
        "/admin/messages/ID/VIEW",
        lambda s: s.go(f"admin/messages/{s.html.id}.0/text"),
    ),
    State(
        "console-formatted",
        "A message as the sender made it",
        "/admin/messages/ID/VIEW",
        lambda s: s.go(f"admin/messages/{s.html.id}.0/formatted"),
    ),
    State(
        "console-similar",
        "Similar held messages",
        "/admin/messages/ID/similar",
        lambda s: s.go(f"admin/messages/{s.of(Tier.SPAM).id}.0/similar"),
    ),
    State("console-release", "Before the release of a suspicious message", "/admin/messages/ID/", _console_release),
    State(
        "console-download",
        "Before a download",
        "/admin/messages/ID/download",
        lambda s: s.go(f"admin/messages/{s.of(Tier.SUSPICIOUS).id}.0/download"),
    ),
    State("console-requested", "A request for release", "/admin/messages/ID/", _requested),
    State("console-not-denied", "*Deny* without a reason", "/admin/messages/ID/", _not_denied),
    State("console-denied", "After *Deny*", "/admin/messages/ID/", _denied),
    State("console-requests", "Requests for release", "/admin/requests", lambda s: s.go("admin/requests")),
    State("console-mass-act", "Before an act on all that a search finds", "/admin/jobs/new", _mass_act),
    State("console-job", "After it was confirmed", "/admin/jobs/ID/", _console_job),
    State("console-job-done", "After it has ended", "/admin/jobs/ID/", _job_done),
    State("console-jobs", "Actions on many messages", "/admin/jobs/", lambda s: s.go("admin/jobs/")),
    State(
        "console-recipient",
        "One recipient",
        "/admin/recipients/",
        lambda s: s.go("admin/recipients/?address=alice@example.org"),
    ),
    State(
        "console-unknown",
        "A recipient of whom nothing is stored",
        "/admin/recipients/",
        lambda s: s.go("admin/recipients/?address=nobody@example.org"),
    ),
    State("console-find", "Nobody is selected", "/admin/recipients/", lambda s: s.go("admin/recipients/")),
    State(
        "console-forget",
        "Before a person is forgotten",
        "/admin/recipients/forget",
        lambda s: s.go(f"admin/recipients/forget?address={BOB}"),
    ),
    State("console-domains", "Domains", "/admin/domains", lambda s: s.go("admin/domains")),
    State("console-domain", "Values of a domain", "/admin/domains", lambda s: s.go("admin/domains?domain=example.org")),
    State("console-domain-wrong", "A value that is not valid", "/admin/domains", _domain_wrong),
    State("console-statistics", "Statistics", "/admin/statistics", _statistics),
    State(
        "console-recipients",
        "Digests of many recipients",
        "/admin/recipients/list",
        lambda s: s.go("admin/recipients/list"),
    ),
    State("console-staff", "Staff", "/admin/staff", lambda s: s.go("admin/staff?done=given")),
    State("console-tokens", "Tokens of the API", "/admin/tokens", lambda s: s.go("admin/tokens")),
    State("console-token", "A new token, shown once", "/admin/tokens", _token),
    State(
        "console-factor", "Setting up a second factor", "/admin/second-factor", lambda s: s.go("admin/second-factor")
    ),
    State("console-factor-codes", "Recovery codes, shown once", "/admin/second-factor", _factor_codes),
    State("console-factor-code", "The console asks for the second factor", "/admin/second-factor", _factor_code),
    State("console-set-up-code", "A set-up code, shown once", "/admin/staff", _set_up_code),
    State("console-audit", "Audit", "/admin/audit", lambda s: s.go("admin/audit")),
    State("api", "The API", "/api/v1/", lambda s: s.go("api/v1/")),
    State("console-factor-wrong", "A code that is not valid", "/admin/second-factor", _wrong_code),
    State("console-factor-locked", "Too many wrong codes", "/admin/second-factor", _locked),
    State("console-factor-proof", "A mailed link is not enough", "/admin/second-factor", _needs_set_up_code),
    State("console-factor-set-up", "The console asks for a set-up code", "/admin/second-factor", _type_set_up_code),
]
