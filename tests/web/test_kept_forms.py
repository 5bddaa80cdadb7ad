"""Forms that were posted after their session had ended: what they had is shown again, and nothing of it is done."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlencode

import pytest

from portal.assemble import Parts
from portal.model.message import State, Tier
from portal.model.schedule import NO_PREFERENCES
from portal.stores.records import Held
from tests.builders import ALICE, BOB
from tests.web_client import Answer, Browser, Site

HOSTILE = '"><script>alert(1)</script>\x00\x7f‮'
COOKIE = "__Host-quarantine-form"
NOTHING_DONE = "You were signed out, so nothing was changed."


@pytest.fixture
def site(make_parts: Callable[..., Parts]) -> Site:
    return Site(make_parts(mail__admin_address="postmaster@example.org"))


def key(held: Held) -> str:
    return f"{held.id}.0"


def sign_in(site: Site, browser: Browser, address: str = ALICE) -> Answer:
    """Sign in by the mailed link, and return the page to which it leads."""
    browser.post("/sign-in", {"address": address})
    with site.store.outbox.sending(site.now) as mail:
        assert mail
        link = re.search(rb"/quarantine/sign-in/[\w-]+/", mail.mail.replace(b"=\r\n", b""))
    assert link
    return followed(browser, browser.post(link[0].decode(), {"pressed": "1"}))


def followed(browser: Browser, answer: Answer) -> Answer:
    """Return the page to which redirects lead."""
    while answer.status == 303:
        answer = browser.follow(answer, "/")
    return answer


def opened(browser: Browser, path: str) -> str:
    """Return the page of an address to which a sign-in may lead."""
    return followed(browser, browser.get(path)).text


def posted_late(site: Site, path: str, fields: Sequence[tuple[str, str]]) -> Browser:
    """Post a form of a page whose session has ended."""
    browser = site.signed_in(ALICE)
    token = browser.form_token()
    site.pass_time(days=2)
    answer = browser.post_all(path, [("form_token", token), *fields])
    assert answer.header("Location") == "/quarantine/sign-in?ended=kept"
    assert "with all that you selected and typed" in browser.follow(answer, "/").text
    return browser


def ticked(page: str) -> set[str]:
    """Return the names of the messages that a list has selected."""
    boxes = re.findall(r'<input type="checkbox" name="mail" value="([^"]+)" checked>', page)
    return {name for names in boxes for name in names.split()}


def hold(site: Site, number: int) -> list[Held]:
    return [site.hold(subject=f"Offer {each * 7919}", header_from=f"<a@n{each}.example.net>") for each in range(number)]


def test_the_list_selects_the_same_messages_again_and_names_the_button(site: Site) -> None:
    mails = hold(site, 5)
    chosen = [key(each) for each in mails[1:4]]
    fields = [("from", "list?q=offer"), ("do", "release"), *(("mail", each) for each in chosen)]
    browser = posted_late(site, "/messages", fields)
    page = sign_in(site, browser).text
    assert NOTHING_DONE in page
    assert ticked(page) == set(chosen)
    assert "Messages that are still selected: 3 · To go on, press “Release selected”." in page
    assert {site.state(each) for each in mails} == {State.HELD}
    cookie = browser.cookies[COOKIE]
    again = {"form_token": browser.form_token(), "from": "list?q=offer", "do": "delete", "mail": " ".join(chosen)}
    assert browser.post("/messages", again).status == 303
    assert [site.state(each) for each in mails] == [State.HELD, *[State.DELETED] * 3, State.HELD]
    assert COOKIE not in browser.cookies
    browser.cookies[COOKIE] = cookie
    assert not ticked(opened(browser, "/?q=offer&undone=several"))  # it is forgotten with the next press


def test_selected_messages_on_another_page_remain_selected(site: Site) -> None:
    mails = hold(site, 3)
    fields = [("from", "list"), ("do", "delete"), *(("mail", key(each)) for each in mails)]
    browser = posted_late(site, "/messages", fields)
    newer = hold(site, 24)  # which the first page lists instead of two of the others
    page = sign_in(site, browser).text
    assert ticked(page) == {key(each) for each in mails}
    assert f'value="{key(mails[2])}" checked' in page
    beside = re.search(
        r'<input type="checkbox" name="mail" value="([^"]+)" checked><span>Selected messages on other pages: 2<', page
    )
    assert beside and set(beside[1].split()) == {key(each) for each in mails[:2]}
    assert "Messages that are still selected: 3" in page
    assert 'type="hidden" name="mail"' not in page
    assert {site.state(each) for each in (*mails, *newer)} == {State.HELD}


def test_of_all_that_match_the_same_ones_are_selected_again(site: Site) -> None:
    mails = hold(site, 30)
    browser = site.signed_in(ALICE)
    page = browser.get("/?select=matching").text
    ceiling, shown = (re.search(rf'name="{name}" value="([^"]+)"', page) for name in ("all", "shown"))
    assert ceiling and shown
    left_out = key(mails[-1])
    token = browser.form_token()
    site.pass_time(days=2)
    ticks = [("mail", each) for each in shown[1].split() if each != left_out]
    given = [("form_token", token), ("from", "list"), ("do", "delete"), ("all", ceiling[1]), ("shown", shown[1])]
    browser.post_all("/messages", [*given, *ticks])
    late = site.hold(subject="Held in between")
    page = sign_in(site, browser).text
    assert "To go on, press “Delete selected”." in page and "Held in between" not in page
    assert ticked(page) == set(shown[1].split()) - {left_out}
    form = dict(re.findall(r'<input type="hidden" name="(form_token|from|form|all|shown)" value="([^"]*)">', page))
    form = {name: html.unescape(value) for name, value in form.items()}
    answer = browser.post("/messages", {**form, "do": "delete", "mail": " ".join(sorted(ticked(page)))})
    assert answer.status == 303 and "/jobs/" not in (answer.header("Location") or "")
    assert [site.state(each) for each in (late, mails[-1])] == [State.HELD, State.HELD]
    assert {site.state(each) for each in mails[:-1]} == {State.DELETED}


def test_the_button_of_one_row_keeps_the_reason_and_the_other_ticks(site: Site) -> None:
    mails = hold(site, 3)
    fields = [("from", "list"), ("reason", "Ich warte darauf: <b>Größe</b>"), ("mail", key(mails[0]))]
    browser = posted_late(site, f"/messages/{mails[2].id}/delete", fields)
    page = sign_in(site, browser).text
    assert ticked(page) == {key(mails[0])}
    assert f"/messages/{mails[2].id}/delete" in page
    assert ">Ich warte darauf: &lt;b&gt;Größe&lt;/b&gt;</textarea>" in page
    assert {site.state(each) for each in mails} == {State.HELD}


def test_no_two_buttons_of_the_list_have_the_same_name(site: Site) -> None:
    held = site.hold(subject="Offer")
    page = sign_in(site, posted_late(site, f"/messages/{held.id}/release", [("from", "list")])).text
    assert re.search(r'<p id="undone"><bdi>Offer</bdi></p>', page)
    buttons = re.findall(r"<button([^>]*)>(.*?)</button>", page, re.DOTALL)
    releases = [
        (re.sub("<[^>]+>", "", inside).strip(), re.findall('aria-describedby="(.*?)"', attributes))
        for attributes, inside in buttons
        if "Release" in inside
    ]
    assert releases == [("Release", ["undone"]), ("Release: Offer", []), ("Release selected", [])]


def test_a_form_of_a_long_address_is_shown_without_the_search(site: Site) -> None:
    held = site.hold()
    query = urlencode({"q": "語" * 150, "sender": "語" * 150})
    browser = posted_late(site, "/messages", [("from", f"list?{query}"), ("do", "delete"), ("mail", key(held))])
    page = sign_in(site, browser).text
    assert NOTHING_DONE in page and ticked(page) == {key(held)} and "語" not in page
    token = site.parts.links.form_token("an earlier session", ALICE)
    browser = site.signed_in(ALICE)  # in another tab
    fields = {"form_token": token, "from": f"list?{query}", "do": "delete", "mail": key(held)}
    page = followed(browser, browser.post("/messages", fields)).text
    assert NOTHING_DONE in page and ticked(page) == {key(held)}
    assert site.state(held) is State.HELD


@pytest.mark.parametrize("act", ["question", "ask"])
def test_what_was_typed_on_a_page_of_a_message_is_there_again(site: Site, act: str) -> None:
    tier = Tier.SPAM if act == "question" else Tier.DANGEROUS
    held = site.hold(tier)
    name = "question" if act == "question" else "reason"
    fields = [("from", "message?q=offer"), (name, "Is this one real?")]
    browser = posted_late(site, f"/messages/{held.id}/{act}", fields)
    page = sign_in(site, browser).text
    assert NOTHING_DONE in page and ">Is this one real?</textarea>" in page
    assert 'href="/quarantine/?q=offer"' in page
    assert site.state(held) is State.HELD
    assert not [each for each in site.history(held) if each.kind.value in ("asked", "requested")]
    other = site.hold(tier)  # another message has nothing of it
    assert "Is this one real?" not in opened(browser, f"/messages/{other.id}/?undone={other.id}")


def test_the_form_for_a_sender_is_filled_as_typed(site: Site) -> None:
    browser = posted_late(site, "/rules", [("sender", "Kiosk.Example"), ("effect", "block")])
    page = sign_in(site, browser).text
    assert NOTHING_DONE in page and 'name="sender" value="Kiosk.Example"' in page
    assert '<details class="add" open>' in page
    assert not site.parts.rulebook.own(site.parts.people.reader(ALICE))


def test_the_sender_of_a_message_is_chosen_as_before(site: Site) -> None:
    held = site.hold(header_from="Shop <a@shop.example.net>")
    browser = site.signed_in(ALICE)
    choices = re.findall(r'name="sender" value="([^"]+)"', browser.get(f"/messages/{held.id}/sender").text)
    assert len(choices) > 1
    fields = [("message", str(held.id)), ("sender", choices[-1]), ("effect", "allow")]
    browser = posted_late(site, "/rules", fields)
    page = sign_in(site, browser).text
    assert NOTHING_DONE in page
    assert re.findall(r'name="sender" value="([^"]+)" checked', page) == [choices[-1]]


def test_preferences_are_filled_in_as_before(site: Site) -> None:
    fields = [("change", "save"), ("preset", "own"), ("own", "1"), ("schedule", "friday"), ("at-1", "06:45")]
    browser = posted_late(site, "/preferences", [*fields, ("timezone", "Asia/Tokyo"), ("only-wanted", "1")])
    page = sign_in(site, browser).text
    assert NOTHING_DONE in page and 'name="at-1" value="06:45"' in page
    for part in ('value="friday" selected', 'value="Asia/Tokyo" selected', 'name="only-wanted" value="1"'):
        assert part in page
    assert site.store.recipients.get(ALICE).preferences == NO_PREFERENCES


def test_somebody_else_who_signs_in_sees_nothing_of_it(site: Site) -> None:
    held = site.hold(recipients=[ALICE, BOB], subject="for both")
    fields = [("from", "list?q=secretword"), ("do", "delete"), ("mail", f"{held.id}.0 {held.id}.1")]
    browser = posted_late(site, "/messages", [*fields, ("reason", "Private reason")])
    page = sign_in(site, browser, BOB).text
    assert not ticked(page) and "secretword" not in page and NOTHING_DONE not in page
    assert "You opened a link for another recipient" not in page
    for path in (
        "/?undone=several",
        "/rules?undone=1",
        f"/messages/{held.id}/?undone={held.id}",
        "/preferences?undone=1",
    ):
        page = opened(browser, path)
        assert "Private reason" not in page and not ticked(page)


def test_somebody_else_who_signs_in_gets_their_list_also_after_a_form_of_a_message(site: Site) -> None:
    held = site.hold(recipients=[ALICE, BOB], subject="for both")
    browser = posted_late(site, f"/messages/{held.id}/question", [("from", "message"), ("question", "Is it real?")])
    page = sign_in(site, browser, BOB).text
    assert "<title>Held" in page and "You opened a link for another recipient" not in page
    assert NOTHING_DONE not in page


def test_another_browser_gets_the_page_without_what_was_typed(site: Site) -> None:
    browser = posted_late(site, "/rules", [("sender", "kiosk.example"), ("effect", "block")])
    other = site.browser()
    assert "kiosk.example" not in sign_in(site, other).text
    other.cookies[COOKIE] = "another browser's"
    assert "kiosk.example" not in other.get("/rules?undone=1").text
    other.cookies[COOKIE] = browser.cookies[COOKIE]
    assert "kiosk.example" in other.get("/rules?undone=1").text  # the secret is all that was missing


def test_it_is_forgotten_after_an_hour_and_by_signing_out(site: Site) -> None:
    browser = posted_late(site, "/rules", [("sender", "kiosk.example"), ("effect", "block")])
    cookie = browser.cookies[COOKIE]
    sign_in(site, browser)
    browser.post("/sign-out", {"form_token": browser.form_token()})
    assert COOKIE not in browser.cookies
    browser = site.signed_in(ALICE)
    browser.cookies[COOKIE] = cookie
    assert "kiosk.example" not in browser.get("/rules?undone=1").text
    browser = posted_late(site, "/rules", [("sender", "kiosk.example"), ("effect", "block")])
    sign_in(site, browser)
    assert "kiosk.example" in browser.get("/rules?undone=1").text
    site.pass_time(minutes=61)
    assert "kiosk.example" not in browser.get("/rules?undone=1").text


def test_a_form_of_a_tab_from_before_signing_in_again_is_shown_again(site: Site) -> None:
    held, browser = site.hold(), site.signed_in(ALICE)
    token = browser.form_token()
    site.pass_time(days=2)
    sign_in(site, browser)  # in another tab
    answer = browser.post("/messages", {"form_token": token, "from": "list", "do": "delete", "mail": key(held)})
    page = followed(browser, answer).text
    assert NOTHING_DONE in page and ticked(page) == {key(held)}
    assert site.state(held) is State.HELD
    sign_in(site, browser, BOB)
    answer = browser.post("/messages", {"form_token": token, "from": "list", "do": "delete", "mail": key(held)})
    assert answer.status == 403 and "This form is from an earlier session" in answer.text


@pytest.mark.parametrize("token", ["", "x", "A" * 43, "A" * 86, "A" * 172, "A" * 250, "é", "%00"])
def test_a_form_without_a_token_of_ours_is_not_kept(site: Site, token: str) -> None:
    browser = site.browser()
    answer = browser.post("/rules", {"form_token": token, "sender": "kiosk.example", "effect": "block"})
    assert answer.header("Location") == "/quarantine/sign-in?ended=form"
    assert COOKIE not in browser.cookies
    assert "kiosk.example" not in sign_in(site, browser).text


@pytest.mark.parametrize("owner", ["carol@example.com", "sales@example.org"])
def test_a_form_of_somebody_who_may_not_sign_in_any_more_is_not_kept(
    make_parts: Callable[..., Parts], tmp_path: Path, owner: str
) -> None:
    """Their domain is no longer local, or they are an alias by now."""
    aliases = tmp_path / "aliases"
    aliases.write_text("sales@example.org alice@example.org\n")
    site = Site(make_parts(mail__admin_address="postmaster@example.org", people__alias_file=aliases))
    browser, token = site.browser(), site.parts.links.form_token("an ended session", owner)
    answer = browser.post("/rules", {"form_token": token, "sender": "kiosk.example", "effect": "block"})
    assert answer.header("Location") == "/quarantine/sign-in?ended=form"
    assert COOKIE not in browser.cookies


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/messages", {"from": f"list?q={HOSTILE}", "mail": HOSTILE, "do": HOSTILE, "reason": HOSTILE}),
        ("/messages", {"from": "list", "mail": "x.1 .. 0.0", "all": HOSTILE, "shown": HOSTILE, "only": HOSTILE}),
        ("/messages", {"from": "list", "all": "ffffffff-ffff-ffff-ffff-ffffffffffff.99999", "shown": "x"}),
        ("/rules", {"sender": HOSTILE, "recipient": HOSTILE, "effect": HOSTILE}),
        ("/rules", {"sender": HOSTILE, "message": "../../sign-in"}),
        ("/rules/senders", {"from": "list", "message": HOSTILE, "sender.x": HOSTILE}),
        ("/preferences", {"change": "save", "at-1": HOSTILE, "timezone": HOSTILE, "preset": HOSTILE, "language": "x"}),
        ("/messages/01900000-0000-7000-8000-000000000001/question", {"question": HOSTILE}),
    ],
)
def test_hostile_fields_do_nothing_but_fill_a_form(site: Site, path: str, fields: Mapping[str, str]) -> None:
    held = site.hold()
    browser = posted_late(site, path, list(fields.items()))
    page = sign_in(site, browser)
    assert page.status in (200, 404) and "<script>alert" not in page.text
    assert site.state(held) is State.HELD
    assert not site.parts.rulebook.own(site.parts.people.reader(ALICE))
    assert site.store.recipients.get(ALICE).preferences == NO_PREFERENCES


def test_messages_of_others_are_not_selected(site: Site) -> None:
    mine, other = site.hold(subject="mine"), site.hold(recipients=[BOB], subject="of Bob alone")
    fields = [("from", "list"), ("do", "delete"), ("mail", f"{key(mine)} {key(other)}")]
    page = sign_in(site, posted_late(site, "/messages", fields)).text
    assert str(other.id) not in page and "of Bob alone" not in page
    assert "Messages that are still selected: 1" in page


def test_a_hundred_rows_fit(site: Site) -> None:
    mails = hold(site, 100)
    fields = [("from", "list?size=100"), ("do", "delete"), *(("mail", key(each)) for each in mails)]
    page = sign_in(site, posted_late(site, "/messages", fields)).text
    assert ticked(page) == {key(each) for each in mails}
    assert "Messages that are still selected: 100" in page
