"""A site's own name, templates and files: they replace the shipped ones, and never stop mail."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from email import message_from_bytes
from email.policy import SMTP
from pathlib import Path
from typing import Any

import pytest

from digest.run import send_all
from portal.assemble import Parts
from portal.cli import checks
from portal.mail.render import Render, site_problems
from portal.model.links import Action
from portal.model.message import new_id
from portal.settings import Settings, load_from
from portal.stores import open_store
from tests.builders import ALICE, hold, now
from tests.paths import ROOT
from tests.smtp_server import SmtpServer
from tests.web_client import Site


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder for a site's files."""
    (tmp_path / "site" / "templates").mkdir(parents=True)
    return tmp_path / "site"


def put(folder: Path, name: str, text: str) -> None:
    path = folder / "templates" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")


def digest_of(make_parts: Callable[..., Parts], **settings: Any) -> str:
    """Return Alice's digest: headers as sent, then text and HTML."""
    with SmtpServer() as server:
        parts = make_parts(mail__url=server.url, **settings)
        hold(parts.store, subject="Held subject")
        summary = send_all(parts, parts.actions.now(), recipient=ALICE)
        assert [recipient for recipient, _ in summary.sent] == [ALICE], summary
        raw = bytes(server.mails[0].data)
    mail = message_from_bytes(raw, policy=SMTP)
    bodies = [str(part.get_content()).replace("\r\n", "\n") for part in mail.walk() if not part.is_multipart()]
    return "\n".join([raw.partition(b"\r\n\r\n")[0].decode(), *bodies])


# ---- replacements


def test_a_name_is_shown_in_mails_and_on_pages(make_parts: Callable[..., Parts]) -> None:
    mail = digest_of(make_parts, site__name="Post of Müller & Co")
    assert "From: Post of =?utf-8?q?M=C3=BCller?= & Co <" in mail
    assert "<quarantine@example.org>" in mail
    assert "Post of Müller & Co" in mail and "Post of Müller &amp; Co" in mail
    page = Site(make_parts(site__name="Post of Müller & Co")).browser().get("/sign-in").text
    assert page.count("Post of Müller &amp; Co") == 2
    assert "Mail quarantine" not in page


@pytest.mark.parametrize("name", ['Say "hi"', "a <b>", "a\\b", "two\nlines", "x" * 61])
def test_a_name_that_no_mail_header_can_carry_is_refused(name: str) -> None:
    from portal.model.errors import SettingsError

    with pytest.raises(SettingsError, match="site.name"):
        load_from({"QUARANTINE_SITE__NAME": name, "QUARANTINE_CONFIG": "/dev/null"})


def test_files_of_the_site_replace_ours_one_by_one(make_parts: Callable[..., Parts], folder: Path) -> None:
    put(folder, "mail/digest/subject.txt", "{{ count }} kept back")
    put(folder, "mail/footer.html", "<p>Help desk: room 7</p>")
    put(folder, "mail/footer.txt", "Help desk: room 7\n")
    put(folder, "mail/colours.html", '{% set main = "#060" %}{% set on_main = "#ffe" %}{% set grave = "#900" %}')
    mail = digest_of(make_parts, site__folder=folder)
    assert "Subject: 1 kept back" in mail
    assert mail.count("Help desk: room 7") == 2
    assert 'bgcolor="#060"' in mail
    assert "Held subject" in mail, "the rest is shipped"


def test_all_mails_have_the_sites_colours(make_parts: Callable[..., Parts], folder: Path) -> None:
    put(folder, "mail/colours.html", '{% set main = "#060" %}{% set on_main = "#ffe" %}{% set grave = "#900" %}')
    render = make_parts(site__folder=folder).render
    links: dict[str, Any] = {"url": "https://x/", "preferences": "https://x/", "portal": "https://x/"}
    values = links | {
        "recipient": ALICE,
        "link_days": 14,
        "retention_days": 30,
        "minutes": 15,
        "code": "1",
        "public_url": "x",
    }
    for name in ("signin", "stopped"):
        mail = render.mail(name, sender="q@example.org", to=ALICE, id=new_id(), mark="m", now=now(), **values)
        html = mail.get_body(("html",))
        assert html is not None and 'bgcolor="#060"' in html.get_content() and "color:#ffe" in html.get_content(), name


def test_pages_and_their_files_can_be_replaced(make_parts: Callable[..., Parts], folder: Path) -> None:
    put(folder, "web/header.html", '<img src="{{ root }}/static/logo.png" alt="Example Ltd">')
    put(folder, "web/static/logo.png", "not really")
    put(folder, "web/static/site.css", ":root { --main: #060; }")
    browser = Site(make_parts(site__folder=folder)).browser()
    assert 'alt="Example Ltd"' in browser.get("/sign-in").text
    assert browser.get("/static/logo.png").body == b"not really"
    assert "--main: #060" in browser.get("/static/site.css").text
    assert "--ground" in browser.get("/static/style.css").text
    assert browser.get("/static/nothing.css").status == 404


def test_a_page_frame_of_version_0_2_goes_on_working(make_parts: Callable[..., Parts], folder: Path) -> None:
    shipped = (ROOT / "templates/web/base.html").read_text("utf-8")
    old = re.sub(r'static\("([a-z.]+)"\)', r"root }}/static/\1?v={{ version", shipped)
    assert "{{ root }}/static/style.css?v={{ version }}" in old
    put(folder, "web/base.html", old)
    browser = Site(make_parts(site__folder=folder)).browser()
    [style] = re.findall(r'"(/quarantine/static/style\.css\?v=[0-9][^"]+)"', browser.get("/sign-in").text)
    assert browser.get(style).header("Cache-Control") == "public, max-age=600"
    assert site_problems(folder) == []


def test_shipped_templates_can_be_extended(make_parts: Callable[..., Parts], folder: Path) -> None:
    put(
        folder,
        "web/base.html",
        "<!doctype html><title>X</title>{% block title %}{% endblock %}<hr>{% block main %}{% endblock %}",
    )
    page = Site(make_parts(site__folder=folder)).browser().get("/sign-in").text
    assert page.startswith("<!doctype html><title>X</title>")
    assert "Email address" in page


# ---- failures

BROKEN = {
    "syntax": "{% if %}",
    "an unknown name": "{{ nonsense }}",
    "an unknown attribute": "{% for row in rows %}{{ row.nonsense }}{% endfor %}",
    "an unknown template": '{% include "mail/nothing.html" %}',
    "an error while it is used": "{{ 1 // (count - count) }}",
    "a loop that is none": "{% for x in count %}{% endfor %}",
    "itself": '{% extends "mail/digest/body.html" %}',
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_a_broken_template_falls_back_to_ours_and_is_named_once(
    make_parts: Callable[..., Parts], folder: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    put(folder, "mail/digest/body.html", text)
    mail = digest_of(make_parts, site__folder=folder)
    assert "1 message held, it does" in mail.partition("<!doctype html>")[2]
    errors = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR and r.name == "quarantine.render"]
    assert len(errors) == 1
    assert "mail/digest/body.html" in errors[0]
    assert "Held subject" not in errors[0]


def test_a_broken_page_falls_back_to_ours(make_parts: Callable[..., Parts], folder: Path) -> None:
    put(folder, "web/base.html", "{{ nonsense }}")
    site = Site(make_parts(site__folder=folder))
    for _ in range(2):
        answer = site.browser().get(site.link(Action.SHOW, site.hold()))
        assert answer.status == 200
        assert "Mail quarantine" in answer.text


def test_a_template_that_is_not_text_falls_back_to_ours(make_parts: Callable[..., Parts], folder: Path) -> None:
    (folder / "templates" / "mail" / "digest").mkdir(parents=True)
    (folder / "templates" / "mail" / "digest" / "subject.txt").write_bytes(b"\xff\xfe\x00")
    assert "Subject: 1 message held, it does" in digest_of(make_parts, site__folder=folder)


def test_a_folder_that_is_not_there_stops_nothing(make_parts: Callable[..., Parts], tmp_path: Path) -> None:
    assert "Held subject" in digest_of(make_parts, site__folder=tmp_path / "nothing")


def test_a_template_larger_than_a_digest_may_be_still_lists_the_mails(
    make_parts: Callable[..., Parts], folder: Path
) -> None:
    put(folder, "mail/footer.html", "<!-- " + "x" * 100_000 + " -->")
    assert "Held subject" in digest_of(make_parts, site__folder=folder)


# ---- quarantine check


def findings(settings: Settings) -> str:
    return "\n".join(f"{finding.ok} {finding.text}" for finding in checks.site_files(settings))


def test_check_names_what_is_wrong_before_it_is_used(
    make_settings: Callable[..., Settings], files_url: str, folder: Path
) -> None:
    settings = make_settings(files_url, site__folder=folder)
    assert findings(settings).startswith("True")
    put(folder, "mail/digest/subject.txt", "{{ count }} kept, {{ telling }}")
    put(folder, "web/header.html", "{{ site_name }} {{ root }} {{ _('Help') }}")
    put(folder, "web/included.html", "{{ whatever }}")
    assert findings(settings).startswith("True"), findings(settings)
    put(folder, "mail/digest/body.html", "<p>\n{% endfor %}")
    put(folder, "mail/signin/body.txt", "{{ nonsense }}")
    text = findings(settings)
    assert "mail/digest/body.html: line 2: " in text
    assert "mail/signin/body.txt: uses unknown values (nonsense)" in text
    assert text.count("False") == 2


def test_check_names_a_folder_that_is_not_there(
    make_settings: Callable[..., Settings], files_url: str, tmp_path: Path
) -> None:
    assert "is missing" in findings(make_settings(files_url, site__folder=tmp_path / "nothing"))


def test_check_reports_a_failure_in_another_process_until_it_is_repaired(
    make_parts: Callable[..., Parts], store_url: str, folder: Path
) -> None:
    put(folder, "mail/digest/body.html", "\n{% for row in rows %}{{ row.nonsense }}{% endfor %}")
    digest_of(make_parts, site__folder=folder)
    parts = make_parts(site__folder=folder)
    found = list(checks.site_failures(parts.settings, parts.store))
    assert [finding.ok for finding in found] == [False]
    assert found[0].text.startswith("mail/digest/body.html: mail/digest/body.html line 2: ")
    put(folder, "mail/digest/body.html", "\n{% for row in rows %}{{ row.subject }}{% endfor %}")
    other = open_store(store_url)
    assert not list(checks.site_failures(parts.settings, other))
    other.close()


@pytest.mark.slow
def test_shipped_templates_have_no_problems() -> None:
    from portal import shipped

    assert site_problems(shipped("templates").parent) == []
    assert Render().page(
        "notice",
        title="T",
        text="x",
        request_id="",
        sign_in=False,
        root="",
        static=str,
        signed_in=None,
        contact="",
        times_in="",
        script=False,
        site_style=False,
    )
