"""The acts of staff on a message: who may release, delete and restore what, and what the history and the audit have."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest

from portal.assemble import Parts
from portal.model.audit import AuditFilter
from portal.model.message import Reader, Start, State, Tier
from portal.model.staff import EVERYWHERE, Grant, Role
from portal.stores.records import Held
from tests.builders import ALICE, BOB, BY_LINK, BY_OPERATOR, MALLORY, body, export, mail, rule
from tests.smtp_server import SmtpServer
from tests.web_client import Answer, Browser, Site


@pytest.fixture
def relay() -> Iterator[SmtpServer]:
    with SmtpServer() as server:
        yield server


@pytest.fixture
def site(make_parts: Callable[..., Parts], relay: SmtpServer) -> Site:
    return Site(make_parts(relay__url=relay.url, local_domains=("example.org", "example.net")))


def staff(site: Site, role: Role = Role.ADMINISTRATOR, domain: str = EVERYWHERE, person: str = MALLORY) -> Browser:
    site.store.staff.give(Grant(person, role, domain, site.now, BY_OPERATOR))
    return site.signed_in(person)


def act(browser: Browser, held: Held, name: str, **form: str) -> Answer:
    return browser.post(f"/admin/messages/{held.id}.0/", {"form_token": browser.form_token(), "act": name, **form})


def page_after(browser: Browser, held: Held, name: str, **form: str) -> str:
    """Return the page after an act."""
    return browser.follow(act(browser, held, name, **form), f"/admin/messages/{held.id}.0/").text


def audited(site: Site, held: Held) -> list[tuple[str, str, str]]:
    found = site.store.audit.list(AuditFilter(message_id=held.id), 20)
    return [(each.act, each.actor.name, each.detail) for each in reversed(found)]


def test_the_help_desk_releases_spam_with_a_reason(site: Site, relay: SmtpServer) -> None:
    held = site.hold(recipients=(ALICE,))
    page = page_after(staff(site, Role.HELP_DESK), held, "release", reason="She called.")
    assert "Released. The mail server accepted the message." in page and "She called." in page
    assert site.state(held) is State.RELEASED and len(relay.mails) == 1
    assert ("releasing", MALLORY, "She called.") in audited(site, held)
    hers = site.signed_in(ALICE).get(f"/messages/{held.id}/").text
    assert "Release started by an administrator" in hers and "She called." not in hers and MALLORY not in hers


@pytest.mark.parametrize(
    ("role", "domain", "tier", "is_released"),
    [
        (Role.HELP_DESK, EVERYWHERE, Tier.SUSPICIOUS, False),
        (Role.DOMAIN_ADMINISTRATOR, "example.org", Tier.SUSPICIOUS, True),
        (Role.DOMAIN_ADMINISTRATOR, "example.org", Tier.DANGEROUS, False),
        (Role.ADMINISTRATOR, EVERYWHERE, Tier.DANGEROUS, True),
        (Role.AUDITOR, EVERYWHERE, Tier.SPAM, False),
    ],
)
def test_a_role_releases_what_it_may(
    site: Site, relay: SmtpServer, role: Role, domain: str, tier: Tier, is_released: bool
) -> None:
    held = site.hold(tier, recipients=(ALICE,))
    browser = staff(site, role, domain)
    offered = 'value="release"' in browser.get(f"/admin/messages/{held.id}.0/").text
    answer = act(browser, held, "release", confirmed="1")
    assert (offered, answer.status) == (is_released, 303 if is_released else 403)
    assert len(relay.mails) == is_released
    assert site.state(held) is (State.RELEASED if is_released else State.HELD)


def test_a_dangerous_message_is_released_after_a_page_that_says_what_it_does(site: Site, relay: SmtpServer) -> None:
    held = site.hold(Tier.DANGEROUS, recipients=(ALICE,))
    browser = staff(site)
    page = act(browser, held, "release", reason='He "knows" it')
    assert page.status == 200 and site.state(held) is State.HELD
    assert "This message may contain a virus" in page.text and f"It is sent to {ALICE}" in page.text
    assert 'value="He &#34;knows&#34; it"' in page.text
    act(browser, held, "release", confirmed="1")
    assert len(relay.mails) == 1


def test_a_message_that_became_dangerous_before_the_claim_needs_another_role(
    site: Site, relay: SmtpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = mail()
    held = site.hold(data=data, recipients=(ALICE,))
    browser, release = staff(site, Role.HELP_DESK), type(site.parts.actions).release

    def later(*args: object, **more: object) -> object:
        site.store.messages.add(export(data, recipients=(ALICE,)), body(data), Tier.DANGEROUS, ())
        return release(*args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(type(site.parts.actions), "release", later)
    assert "Nothing was changed." in page_after(browser, held, "release")
    assert site.state(held) is State.HELD and relay.mails == []


def test_a_deferred_release_stops_if_the_message_becomes_dangerous(site: Site, relay: SmtpServer) -> None:
    data = mail()
    held = site.hold(data=data, recipients=(ALICE,))
    relay.script["DATA"] = ["451 4.3.0 later"]
    act(staff(site, Role.HELP_DESK), held, "release")
    assert site.state(held) is State.RELEASING
    site.store.messages.add(export(data, recipients=(ALICE,)), body(data), Tier.DANGEROUS, ())
    site.pass_time(minutes=10)
    with pytest.raises(Exception, match="only an administrator"):
        site.parts.actions.retry(held.id, 0)
    assert site.state(held) is State.HELD


def test_deleting_and_restoring(site: Site) -> None:
    held = site.hold(recipients=(ALICE,))
    browser = staff(site)
    assert "Deleted." in page_after(browser, held, "delete", reason="Newsletter")
    assert site.state(held) is State.DELETED
    site.pass_time(seconds=1)
    assert "Deletion undone." in page_after(browser, held, "restore", reason="Mistake")
    assert site.state(held) is State.HELD
    assert audited(site, held) == [("deleted", MALLORY, "Newsletter"), ("restored", MALLORY, "Mistake")]
    assert act(staff(site, Role.HELP_DESK, person=BOB), held, "delete").status == 403


def test_a_role_that_may_not_restore_releases_nothing_that_was_deleted(site: Site, relay: SmtpServer) -> None:
    held = site.hold(recipients=(ALICE,))
    site.parts.actions.delete(held.id, 0, BY_LINK)
    page_after(staff(site, Role.HELP_DESK), held, "release", reason="She called.")
    assert site.state(held) is State.DELETED and relay.mails == []
    page_after(staff(site, person=BOB), held, "release", reason="She called.")
    assert site.state(held) is State.RELEASED


@pytest.mark.parametrize("state", [State.BLOCKED, State.PASSED])
def test_what_a_rule_decided_is_as_before_when_its_deletion_is_undone(site: Site, state: State) -> None:
    held = site.hold(recipients=(ALICE,), starts={ALICE: Start(state, rule("example.net").as_actor)})
    browser, before = staff(site), site.delivery(held)
    site.pass_time(seconds=1)
    act(browser, held, "delete")
    page = page_after(browser, held, "restore")
    assert "Deletion undone." in page and "held again" not in page
    assert site.delivery(held) == before


def test_the_slower_person_reads_who_was_faster(site: Site, relay: SmtpServer) -> None:
    held = site.hold(recipients=(ALICE,))
    act(staff(site, person=BOB), held, "release")
    page = page_after(staff(site), held, "release")
    assert "Not changed: somebody acted on this message before." in page
    assert re.search(rf"started by \u2068{BOB}\u2069", page)
    assert len(relay.mails) == 1


def test_nobody_releases_their_own_message_that_recipients_may_not_release(site: Site, relay: SmtpServer) -> None:
    held = site.hold(Tier.DANGEROUS, recipients=(MALLORY,))
    own = staff(site)
    site.parts.actions.request_release(held.id, 0, BY_LINK)
    answer = act(own, held, "release", confirmed="1")
    assert answer.status == 403 and "somebody else must decide" in answer.text
    assert site.state(held) is State.REQUESTED and relay.mails == []
    act(staff(site, person=BOB), held, "release", confirmed="1")
    assert site.state(held) is State.RELEASED


def test_a_request_is_denied_with_a_reason_that_the_recipient_reads(site: Site) -> None:
    held = site.hold(Tier.DANGEROUS, recipients=(ALICE,))
    site.parts.actions.request_release(held.id, 0, BY_LINK)
    browser = staff(site)
    for blank in (" ", "\u200b", "\u3164", "\u2800"):
        answer = act(browser, held, "deny", reason=blank)
        assert answer.status == 400 and "Enter a reason" in answer.text
    assert "Denied." in page_after(browser, held, "deny", reason="It is phishing.")
    assert site.state(held) is State.HELD
    assert "It is phishing." in site.signed_in(ALICE).get(f"/messages/{held.id}/").text


def test_the_link_goes_to_the_recipient_alone(site: Site) -> None:
    held = site.hold(recipients=(ALICE,))
    browser = staff(site, Role.HELP_DESK)
    page = page_after(browser, held, "link", reason="Asked on the phone")
    assert "on its way to the recipient" in page and "/sign-in/" not in page
    with site.store.outbox.sending(site.now) as outgoing:
        assert outgoing and outgoing.to == ALICE
        link = re.search(rb"/sign-in/[^\s\"]+", outgoing.mail.replace(b"=\r\n", b""))
    assert link
    assert audited(site, held) == [("link-sent", MALLORY, "Asked on the phone")]
    opened = site.browser().post(link[0].decode(), {"pressed": "1"}, headers={"Sec-Fetch-User": "?1"})
    assert opened.header("Location") == f"/quarantine/messages/{held.id}.0/"


def test_other_forms_change_nothing(site: Site) -> None:
    held = site.hold(recipients=(ALICE,))
    browser = staff(site)
    assert act(browser, held, "purge").status == 400
    assert act(browser, held, "release", form_token="x").status == 403
    assert act(staff(site, Role.DOMAIN_ADMINISTRATOR, "example.net", BOB), held, "delete").status == 404
    assert len(site.history(held)) == 1


def test_a_held_message_is_put_into_the_next_digest_again(site: Site) -> None:
    held = site.hold(recipients=(ALICE,))
    [digest] = site.store.digests.claim(site.now, 1, 10, only=[ALICE], ignore_schedule=True).digests
    site.store.digests.settle([digest], [], site.now)
    assert site.store.digests.unannounced(Reader(ALICE), 5) == []
    assert act(staff(site, Role.HELP_DESK), held, "reannounce").status == 403
    browser = staff(site, Role.DOMAIN_ADMINISTRATOR, "example.org", BOB)
    assert "Put into the next digest" in browser.get(f"/admin/messages/{held.id}.0/").text
    page = page_after(browser, held, "reannounce", reason="It was overlooked.")
    assert "The next digest lists this message again." in page
    assert [each.id for each in site.store.digests.unannounced(Reader(ALICE), 5)] == [held.id]
    assert ("reannounced", BOB, "It was overlooked.") in audited(site, held)
    site.parts.actions.delete(held.id, 0, BY_LINK)
    assert 'value="reannounce"' not in browser.get(f"/admin/messages/{held.id}.0/").text
