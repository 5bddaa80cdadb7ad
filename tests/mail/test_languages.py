"""Languages: their choice for each person, the checks of translations, dates and numbers."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from datetime import UTC, datetime
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import SMTP
from io import StringIO
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from babel.messages import Catalog
from babel.messages.pofile import read_po

from digest.run import send_all
from portal.assemble import Parts
from portal.mail import languages
from portal.mail.languages import faults, negotiated
from portal.mail.render import Render, site_problems
from portal.model.links import Action
from portal.model.message import Actor, ActorKind, Tier
from portal.model.schedule import Preferences
from portal.model.text import TAGS, wrapped
from portal.web.auth.page import Methods
from tests.builders import ALICE, prefer
from tests.smtp_server import SmtpServer
from tests.web_client import Site

AT = datetime(2026, 11, 21, 13, 5, tzinfo=UTC)
BERLIN = ZoneInfo("Europe/Berlin")

# ---- the choice of a language


@pytest.mark.parametrize(
    ("accepted", "language"),
    [
        ("de", "de"),
        ("de-AT,de;q=0.9,en;q=0.8", "de"),
        ("DE-ch", "de"),
        ("en-US,en;q=0.9", "en"),
        ("tlh, de;q=0.5, en;q=0.4", "de"),
        ("en;q=0.4, de;q=0.5", "de"),
        ("de;q=0, en;q=0.1", "en"),
        ("tlh", "en"),
        ("*", "en"),
        ("", "en"),
        (";;,=,q=1,de;q=x,\x00" * 500, "en"),
        ("de;q=0.5;x=y, " * 500, "en"),
    ],
)
def test_a_browser_gets_the_language_it_prefers(accepted: str, language: str) -> None:
    assert negotiated(accepted, "en") == language


def test_a_browser_that_prefers_an_unknown_language_gets_the_sites() -> None:
    assert negotiated("tlh", "de") == negotiated("", "de") == "de"


MAILED_LINK = Methods([], takes_passwords=False, mailed_link=True)
_DOMAIN = '[domains."example.org"]\nlanguage = "de"'
PLACES = {  # settings, preferences, and the expected `lang`
    "a person's own": ("", Preferences(language="de"), "de"),
    "their domain's": (_DOMAIN, Preferences(), "de"),
    "their own before their domain's": (_DOMAIN, Preferences(language="en"), "en"),
    "the site's": ('[digest]\nlanguage = "de"', Preferences(), "de"),
    "one that is gone": ("", Preferences(language="tlh"), "en"),
}


@pytest.mark.parametrize(("settings", "chosen", "language"), PLACES.values(), ids=PLACES)
def test_a_person_is_addressed_in_their_language_everywhere(
    make_parts: Callable[..., Parts], tmp_path: Path, settings: str, chosen: Preferences, language: str
) -> None:
    """The browser's languages do not matter: it may be another person's browser."""
    make_parts()  # creates an empty quarantine.toml
    (tmp_path / "quarantine.toml").write_text(settings)
    with SmtpServer() as server:
        site = Site(make_parts(mail__url=server.url, mail__admin_address="admin@example.com"))
        held, grave = site.hold(), site.hold(tier=Tier.DANGEROUS)
        prefer(site.store, ALICE, chosen)
        send_all(site.parts, site.now, recipient=ALICE)
        digest = bytes(server.mails[0].data)
    other = {"Accept-Language": "en" if language == "de" else "de"}
    pages = [
        site.browser().get(site.link(Action.RELEASE, held), headers=other),
        site.browser().get(site.link(Action.SHOW, held), headers=other),
        site.signed_in(ALICE).get("/", headers=other),
        site.signed_in(ALICE).get(f"/messages/{held.id}/", headers=other),
        site.signed_in(ALICE).get("/messages/00000000-0000-7000-8000-000000000000/", headers=other),
        site.signed_in(ALICE).get("/preferences", headers=other),
    ]
    assert [first(r'<html lang="([\w-]+)" dir="ltr">', page.text) for page in pages] == [language] * len(pages)
    assert languages_of(digest) == [language] * 3
    site.browser().post("/sign-in", {"address": ALICE}, headers=other)
    site.parts.actions.request_release(grave.id, 0, Actor(ActorKind.RECIPIENT))
    site.parts.actions.refuse_request(grave.id, 0, Actor(ActorKind.OPERATOR), "no")
    # The administrator has no local domain here and gets the site's language; the recipient who was denied gets theirs.
    site_language = site.parts.settings.digest.language
    assert [set(languages_of(mail)) for _, mail in queued(site)] == [{language}, {site_language}, {language}]


def first(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    assert found is not None, text
    return found[1]


def languages_of(data: bytes) -> list[str]:
    """Return the declared language of each part of a mail and of each HTML page in it."""
    mail = message_from_bytes(data, policy=SMTP)
    parts = [part for part in mail.walk() if not part.is_multipart()]
    html = [str(part.get_content()) for part in parts if part.get_content_type() == "text/html"]
    return [
        *(str(part["Content-Language"]) for part in parts),
        *(first(r'<html lang="([\w-]+)" dir=', text) for text in html),
    ]


def queued(site: Site) -> list[tuple[str, bytes]]:
    """Return the portal's own queued mail, in order."""
    found: list[tuple[str, bytes]] = []
    while True:
        with site.store.outbox.sending(site.now) as mail:
            if mail is None:
                return found
            found.append((mail.to, mail.mail))


def test_an_unknown_person_gets_the_language_of_their_browser(make_parts: Callable[..., Parts]) -> None:
    site = Site(make_parts(digest__language="en"))
    browser = site.browser()
    for path, words in (
        ("/sign-in", "Geben Sie Ihre E-Mail-Adresse ein"),
        ("/link/nonsense/", "Link oder E-Mail nicht gefunden"),
        ("/nowhere", "Seite nicht gefunden"),
    ):
        assert words in browser.get(path, headers={"Accept-Language": "de-CH, en;q=0.5"}).text
        assert words not in browser.get(path, headers={"Accept-Language": "tlh"}).text
    # Texts for machines stay English.
    answer = browser.post("/", headers={"Accept-Language": "de"}, body=b"x")
    assert "ä" not in answer.text and answer.status in (400, 401, 403)


def test_a_strangers_sign_in_discloses_nothing_by_its_language(make_parts: Callable[..., Parts]) -> None:
    site = Site(make_parts())
    site.hold()
    prefer(site.store, ALICE, Preferences(language="de"))
    pages = []
    for address in (ALICE, "nobody-at-all@example.org"):
        browser = site.browser()
        page = browser.follow(browser.post("/sign-in", {"address": address}), "/sign-in").text
        pages.append(page.replace(address, "the typed address"))
    assert pages[0] == pages[1]


# ---- checks of translations

_PO = """msgid ""
msgstr ""
"Content-Type: text/plain; charset=utf-8\\n"
"Plural-Forms: nplurals=2; plural=(n != 1);\\n"
"""


def put(folder: Path, tag: str, text: str) -> None:
    path = languages.po_file(folder / "locale", tag)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_PO + text, "utf-8")


BROKEN = {
    "a placeholder is missing": ("All links lead to %(host)s.", "Alle Links.", "placeholders differ: %(host)s"),
    "a placeholder too many": ("Save", "%(name)s", "placeholders differ: %(name)s"),
    "a placeholder of another name": ("Size: %(size)s", "Größe: %(groesse)s", "placeholders differ"),
    "a placeholder cut short": ("Size: %(size)s", "Größe: %(size)", "placeholders differ"),
    "a bare percent sign": ("Size: %(size)s", "100 % von %(size)s", "placeholders differ: %"),
    "markup too much": ("Save", "<b>Sichern</b>", "its markup differs"),
    "markup not closed": ("Sign in as <bdi>%(recipient)s</bdi>", "Als <bdi>%(recipient)s", "its markup differs"),
    "a bare ampersand": ("Save", "Sichern & schließen", "its markup differs"),
    "an attribute": (
        "Sign in as <bdi>%(recipient)s</bdi>",
        "Als <bdi onclick=x>%(recipient)s</bdi>",
        "its markup differs",
    ),
}


@pytest.mark.parametrize(("english", "translation", "fault"), BROKEN.values(), ids=BROKEN)
def test_a_broken_translation_is_found(english: str, translation: str, fault: str) -> None:
    catalogue = Catalog("de")
    catalogue.add(english, translation)
    found = [text for _, text in faults(catalogue)]
    assert len(found) == 1 and found[0].startswith(fault)


@pytest.mark.parametrize(
    ("rule", "forms", "fault"),
    [
        ("nplurals=2; plural=(n != 1);", ("eine E-Mail", "%(number)s E-Mails"), ""),
        ("nplurals=2; plural=(n != 1);", ("%(number)s E-Mail", "E-Mails"), "placeholders differ: %(number)s"),
        ("nplurals=2; plural=(n != 1);", ("%(number)s E-Mails",), "it has 1 plural forms, not 2"),
        ("nplurals=2; plural=(n != 1);", ("eine E-Mail", ""), "plural form 1 is missing"),
        # French uses one form for 0 and for 1, so it needs the number.
        ("nplurals=2; plural=(n > 1);", ("un message", "%(number)s messages"), "placeholders differ: %(number)s"),
        (
            "nplurals=3; plural=(n==1 ? 0 : n%10>=2 && n%10<=4 && (n%100<10 || n%100>=20) ? 1 : 2);",
            ("1 mail", "%(number)s maile", "%(number)s maili"),
            "",
        ),
        ("nplurals=1; plural=0;", ("%(number)s 件",), ""),
    ],
)
def test_plural_forms_are_counted_and_need_their_number(rule: str, forms: tuple[str, ...], fault: str) -> None:
    # The plural rule of a file: Babel's own rule of a language changes with CLDR.
    catalogue = read_po(StringIO(f'msgid ""\nmsgstr ""\n"Plural-Forms: {rule}\\n"\n'))
    catalogue.add(("%(number)s mail", "%(number)s mails"), forms)
    assert [text for _, text in faults(catalogue)] == ([fault] if fault else [])


NASTY = '"><script>alert(1)</script> 100% %s %(count)s {{ 7*7 }} &amp; Release'


@pytest.mark.parametrize("tag", TAGS)
def test_what_a_mail_says_is_escaped_once_in_every_language(tag: str) -> None:
    """The text has a value in a translation, one next to it, and one that is a translation itself."""
    page = Render(tag).page(
        "sign-in-link",
        recipient=NASTY,
        alone=False,
        script=False,
        site_style=False,
        signed_in=NASTY,
        console=True,
        contact="",
        times_in="",
        form_token="",
        root="",
        static=str,
    )
    assert "<script" not in page and "49" not in page
    once = "&#34;&gt;&lt;script&gt;alert(1)&lt;/script&gt; 100% %s %(count)s {{ 7*7 }} &amp;amp; Release"
    assert page.count(f"<bdi>{once}</bdi>") == 3
    assert (
        Render(tag)
        .page(
            "sign-in-link",
            recipient="Release",
            alone=False,
            script=False,
            site_style=False,
            signed_in=None,
            contact="",
            times_in="",
            root="",
            static=str,
        )
        .count("<bdi>Release</bdi>")
        == 2
    ), "not translated"


def test_a_site_can_replace_texts(tmp_path: Path) -> None:
    put(tmp_path, "de", 'msgid "Sign in"\nmsgstr "Hereinspaziert"\n')
    put(tmp_path, "en", 'msgid "Sign in"\nmsgstr "Come in"\n')
    render = Render("de", site_folder=tmp_path)
    values: dict[str, Any] = {
        "address": "",
        "ended": "",
        "leads_back": False,
        "contact": "",
        "times_in": "",
        "root": "",
        "static": str,
        "signed_in": None,
        "script": False,
        "site_style": False,
        "problem": "",
        "problem_url": "",
        "methods": MAILED_LINK,
        "left": None,
    }
    german, english = (render.page("sign-in", language=tag, **values) for tag in ("de", "en"))
    assert "Hereinspaziert" in german and "Link senden" in german, "the rest is the shipped text"
    assert "Come in" in english and "Send link" in english
    assert site_problems(tmp_path) == []


@pytest.mark.parametrize("word", [r"Post\nBcc: mallory@example.net", r"Die \"Post\" \\\\ Ecke", "حجر البريد"])
def test_a_sites_word_for_the_quarantine_breaks_no_header(
    make_parts: Callable[..., Parts], tmp_path: Path, word: str
) -> None:
    put(tmp_path / "site", "de", f'msgid "Mail quarantine"\nmsgstr "{word}"\n')
    site = Site(make_parts(digest__language="de", site__folder=tmp_path / "site"))
    site.browser().post("/sign-in", {"address": ALICE})
    ((_, mail),) = queued(site)
    sent = message_from_bytes(mail, policy=SMTP)
    assert sent["From"].addresses[0].addr_spec == "quarantine@example.org"
    assert sent["Bcc"] is None and not sent.defects


def test_a_broken_text_of_a_site_is_left_out_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(tmp_path, "de", 'msgid "Sign in"\nmsgstr "<h1>Hinein"\n\nmsgid "Send link"\nmsgstr "Her damit"\n')
    values: dict[str, Any] = {
        "address": "",
        "ended": "",
        "leads_back": False,
        "contact": "",
        "times_in": "",
        "root": "",
        "static": str,
        "signed_in": None,
        "script": False,
        "site_style": False,
        "problem": "",
        "problem_url": "",
        "methods": MAILED_LINK,
        "left": None,
    }
    page = Render("de", site_folder=tmp_path).page("sign-in", **values)
    assert "Anmelden" in page and "Her damit" in page and "Hinein" not in page
    assert site_problems(tmp_path) == [("locale/de/LC_MESSAGES/quarantine.po", "line 5: its markup differs")]
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR] == [
        "the site's translation is wrong, the shipped one is used instead: locale/de/LC_MESSAGES/quarantine.po: "
        "line 5: its markup differs"
    ]


@pytest.mark.parametrize("text", [b"\xff\xfe\x00", b"nonsense\n"])
def test_an_invalid_translation_file_of_a_site_stops_nothing(tmp_path: Path, text: bytes) -> None:
    put(tmp_path, "de", "")
    languages.po_file(tmp_path / "locale", "de").write_bytes(text)
    values: dict[str, Any] = {
        "address": "",
        "ended": "",
        "leads_back": False,
        "contact": "",
        "times_in": "",
        "root": "",
        "static": str,
        "signed_in": None,
        "script": False,
        "site_style": False,
        "problem": "",
        "problem_url": "",
        "methods": MAILED_LINK,
        "left": None,
    }
    assert "Anmelden" in Render("de", site_folder=tmp_path).page("sign-in", **values)
    assert "cannot be read" in site_problems(tmp_path)[0][1]


# ---- no English is left


def shown_of(html: str) -> list[str]:
    """Return the texts of a page without those in <bdi>, which quote messages."""
    html = re.sub(r"<(style|script|title)\b.*?</\1>|<bdi[^>]*>.*?</bdi>|<select.*?</select>", " ", html, flags=re.S)
    return [" ".join(line.split()) for line in re.sub(r"<[^>]+>", "\n", html).splitlines() if line.strip()]


def content(mail: EmailMessage, *kinds: str) -> str:
    part = mail.get_body(kinds)
    assert part is not None
    return str(part.get_content())


ENGLISH = re.compile(r"\b(the|this|your|you|and|held|from|released|deleted|nothing|subject|with)\b", re.IGNORECASE)


@pytest.mark.parametrize("tag", [tag for tag in TAGS if tag != "en"])
def test_pages_and_mails_are_in_one_language(make_parts: Callable[..., Parts], tag: str) -> None:
    with SmtpServer() as server:
        site = Site(make_parts(mail__url=server.url, mail__admin_address=ALICE, digest__language=tag))
        held, grave, gone = site.hold(score=17.5), site.hold(tier=Tier.DANGEROUS), site.hold()
        send_all(site.parts, site.now, recipient=ALICE)
        digest = bytes(server.mails[0].data)
    browser, person = site.browser(), site.signed_in(ALICE)
    site.browser().post("/sign-in", {"address": ALICE})
    site.parts.actions.request_release(grave.id, 0, Actor(ActorKind.RECIPIENT))
    site.parts.actions.refuse_request(grave.id, 0, Actor(ActorKind.OPERATOR), "?")
    site.parts.actions.delete(gone.id, 0, Actor(ActorKind.RECIPIENT, via="link"))
    links = re.findall(r"https?://\S+/link/[\w.-]+/", content(message_from_bytes(digest, policy=SMTP), "plain"))
    pages = [browser.get(link) for link in links]
    pages += [browser.get(path) for path in ("/sign-in", "/sign-in/code", "/link/x/", "/nowhere")]
    pages += [person.get(path) for path in ("/", "/?state=deleted", "/?state=released", "/?q=nothing", "/preferences")]
    pages += [person.get(f"/messages/{each.id}/") for each in (held, grave, gone)]
    pages += [
        browser.post("/sign-in/code", {"code": "1"}),
        browser.post(links[0], headers={"Origin": "https://x.example"}),
    ]
    assert {page.status for page in pages} == {200, 403, 404}
    mails = [message_from_bytes(data, policy=SMTP) for data in (digest, *(mail for _, mail in queued(site)))]
    lines = {line for page in pages for line in shown_of(page.text)}
    for mail in mails:
        lines |= set(shown_of(content(mail, "html", "plain"))) | {str(mail["Subject"])}
        lines |= set(content(mail, "plain").splitlines())
    assert len(lines) > 150
    left = {line for line in lines if ENGLISH.search(re.sub(r"\S*[@/]\S*|quarantine (release|refuse) .*", "", line))}
    assert left == set()


@pytest.mark.parametrize("tag", TAGS)
def test_every_page_says_its_language_and_direction(tag: str) -> None:
    page = Render(tag).page(
        "sign-in",
        address="",
        ended="",
        leads_back=False,
        problem="",
        problem_url="",
        methods=MAILED_LINK,
        left=None,
        root="",
        static=str,
        signed_in=None,
        contact="",
        times_in="",
        script=False,
        site_style=False,
    )
    assert f'<html lang="{tag}" dir="{"rtl" if tag == "ar" else "ltr"}">' in page


# ---- dates and numbers


@pytest.mark.parametrize(
    ("tag", "moment", "short", "number", "score", "size"),
    [
        ("en", "Saturday, 21 November 2026, 14:05", "Sat 21 Nov, 14:05", "12,345", "17.5", "12 kB"),
        ("de", "Samstag, 21. November 2026, 14:05", "Sa., 21. Nov., 14:05", "12.345", "17,5", "12 kB"),
        ("fr", "samedi 21 novembre 2026, 14:05", "sam. 21 nov., 14:05", "12 345", "17,5", "12 ko"),
        ("es", "sábado, 21 de noviembre de 2026, 14:05", "sáb, 21 nov, 14:05", "12.345", "17,5", "12 kB"),
        ("it", "sabato 21 novembre 2026, 14:05", "sab 21 nov, 14:05", "12.345", "17,5", "12 kB"),
        ("nl", "zaterdag 21 november 2026, 14:05", "za 21 nov, 14:05", "12.345", "17,5", "12 kB"),
        ("pl", "sobota, 21 listopada 2026, 14:05", "sob., 21 lis, 14:05", "12 345", "17,5", "12 kB"),
        (
            "pt-BR",
            "sábado, 21 de novembro de 2026 14:05",
            "sáb., 21 de nov. 14:05",
            "12.345",
            "17,5",
            "12 kB",
        ),
        ("cs", "sobota 21. listopadu 2026 14:05", "so 21. 11. 14:05", "12 345", "17,5", "12 kB"),
        ("ja", "2026年11月21日土曜日 14:05", "11月21日(土) 14:05", "12,345", "17.5", "12 KB"),
        ("ar", "السبت، 21 نوفمبر 2026، 2:05 م", "السبت، 21 نوفمبر، 2:05 م", "12,345", "17.5", "12 كيلوبايت"),
    ],
)
def test_dates_and_numbers_are_written_as_cldr_has_them(
    tag: str, moment: str, short: str, number: str, score: str, size: str
) -> None:
    language = languages.get(tag)
    assert language.moment(AT, BERLIN) == moment
    assert language.short_moment(AT, BERLIN) == short
    assert [language.threshold(15.0), language.threshold(17.5)] == ["15", score]
    numbers = [language.number(12345), language.score(17.5), language.size(12_300)]
    assert [" ".join(each.split()) for each in numbers] == [number, score, size], (
        "some spaces are narrow or no-break spaces"
    )


DAYS = {  # as in the foot of a digest: links and held messages for 1, 3 and 30 days
    "en": [
        "Its links are valid for 1 day; held messages are removed after 1 day.",
        "Its links are valid for 3 days; held messages are removed after 3 days.",
        "Its links are valid for 30 days; held messages are removed after 30 days.",
    ],
    "de": [
        "Ihre Links gelten 1 Tag, zurückgehaltene E-Mails werden 1 Tag aufbewahrt.",
        "Ihre Links gelten 3 Tage, zurückgehaltene E-Mails werden 3 Tage aufbewahrt.",
        "Ihre Links gelten 30 Tage, zurückgehaltene E-Mails werden 30 Tage aufbewahrt.",
    ],
    "cs": [
        "Jeho odkazy platí 1 den; zadržené zprávy se uchovávají 1 den.",
        "Jeho odkazy platí 3 dny; zadržené zprávy se uchovávají 3 dny.",
        "Jeho odkazy platí 30 dní; zadržené zprávy se uchovávají 30 dní.",
    ],
    "ar": [
        "روابطه صالحة لمدة يوم واحد، وتزال الرسائل المحتجزة بعد يوم واحد.",
        "روابطه صالحة لمدة 3 أيام، وتزال الرسائل المحتجزة بعد 3 أيام.",
        "روابطه صالحة لمدة 30 يومًا، وتزال الرسائل المحتجزة بعد 30 يومًا.",
    ],
}


@pytest.mark.parametrize(("tag", "sentences"), DAYS.items(), ids=DAYS)
def test_amounts_of_days_read_right(make_parts: Callable[..., Parts], tag: str, sentences: list[str]) -> None:
    with SmtpServer() as server:
        for days, sentence in zip((1, 3, 30), sentences, strict=True):
            site = Site(
                make_parts(
                    mail__url=server.url, digest__language=tag, links__lifetime_days=days, store__retention_days=days
                )
            )
            site.hold()
            server.mails.clear()
            send_all(site.parts, site.now, recipient=ALICE)
            (sent,) = server.mails
            mail = message_from_bytes(sent.data, policy=SMTP)
            texts = [str(part.get_content()) for part in mail.walk() if not part.is_multipart()]
            assert [sentence in " ".join(text.split()) for text in texts] == [True, True]


def test_time_zones_are_offered_by_the_names_their_places_have(make_parts: Callable[..., Parts]) -> None:
    html = Site(make_parts(digest__language="de")).signed_in(ALICE).get("/preferences?zones=all").text
    assert '<option value="Europe/Vienna">Wien</option>' in html
    assert '<option value="America/Argentina/Ushuaia">' in html
    assert '<optgroup label="Amerika">' in html and '<optgroup label="Indischer Ozean">' in html


def test_a_line_of_text_is_not_broken_before_a_french_colon() -> None:
    for width in range(60, 80):
        lines = wrapped("x" * (width - 4) + " mot\u00a0: la suite \u00ab\u00a0et plus\u00a0» encore")
        assert not [line for line in lines.splitlines() if line.startswith((":", "»"))]
