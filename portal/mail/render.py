"""Pages and mails from templates. The only user of jinja2.

Autoescape, `StrictUndefined`, no logic in templates beyond loops and conditions. All values from a held message are
hostile: `shown()` removes control and bidirectional characters before a template gets them.
Texts are in `{% trans %}` blocks and `_()`; `languages` has their translations.

A site may have its own templates: one with the same relative name replaces the shipped one (docs/customise.md). If it
fails, the shipped template is used, so that the mail is sent in any case, and an error is logged.
"""

from __future__ import annotations

import logging
import re
import traceback
from collections.abc import Callable
from datetime import datetime
from email.headerregistry import BaseHeader, HeaderRegistry, UnstructuredHeader
from email.message import EmailMessage
from email.policy import SMTP, Policy
from email.utils import format_datetime
from functools import cache
from pathlib import Path
from typing import Any
from unicodedata import bidirectional
from uuid import UUID
from zoneinfo import ZoneInfo

from jinja2 import (
    Environment,
    FileSystemLoader,
    StrictUndefined,
    TemplateNotFound,
    TemplateSyntaxError,
    UndefinedError,
    meta,
)
from markupsafe import Markup

from portal import __version__, shipped
from portal.mail import languages
from portal.mail.languages import Language
from portal.model.brand import NO_BRAND, ON_DARK, Brand
from portal.model.domains import shown_address
from portal.model.links import MARK_HEADER
from portal.model.record import record
from portal.model.text import TAGS, shown, wrapped

log = logging.getLogger("quarantine.render")


class _Exact(UnstructuredHeader, BaseHeader):
    """A header for programs, written without folding or encoding.

    The email package would turn long words into encoded words (RFC 2047), which breaks the mark and RFC 8058's URL, and
    it mangles or rejects mailboxes that are not ASCII.
    """

    @classmethod
    def parse(cls, value: str, kwds: dict[str, Any]) -> None:
        kwds["parse_tree"], kwds["decoded"] = None, value

    def fold(self, *, policy: Policy) -> str:
        return f"{self.name}: {self}{policy.linesep}"


class _Mime(_Exact):
    """A header of a MIME part, as the email package makes it: ASCII, and longer than a line only with a boundary.

    The package would parse each of them, several times. Row of the bench: "a digest without MIME headers as made".
    """

    def fold(self, *, policy: Policy) -> str:
        return super().fold(policy=policy).replace("; boundary=", f";{policy.linesep} boundary=")


class _Registry(HeaderRegistry):
    """A registry with one class for each name of a header. The email package creates one for each header of each mail.

    Row of the bench: "a digest without cached header classes".
    """

    def __init__(self) -> None:
        super().__init__()
        self._class_of = cache(super().__getitem__)

    def __getitem__(self, name: str) -> Any:
        return self._class_of(name)


_HEADERS = _Registry()
for _name in ("to", "message-id", "list-unsubscribe", MARK_HEADER.lower()):
    _HEADERS.map_to_type(_name, _Exact)
_MIME_HEADERS = ("mime-version", "content-type", "content-transfer-encoding", "content-language")
for _name in _MIME_HEADERS:
    _HEADERS.map_to_type(_name, _Mime)
# RFC 2045, 6.7: at most 76 characters a line. The package's default is 78, which spam filters count against a mail.
_POLICY = SMTP.clone(max_line_length=76, header_factory=_HEADERS)
_PLAIN_LOCAL = re.compile(r"""[^\s()<>@,;:\\"\[\].]+(\.[^\s()<>@,;:\\"\[\].]+)*|"([^"\\]|\\.)*\"""")


# Outlook for Windows breaks no words, and widens a table for them. A comment for it alone has a space without width.
_LONG_WORD = re.compile(r"([^\s\u2e80-\uffff]{32})(?=[^\s\u2e80-\uffff])")
_BREAK = Markup("<!--[if mso]>&#8203;<![endif]-->")
_DIRECTIONS = {"L": "ltr", "R": "rtl", "AL": "rtl"}  # of strong characters (UAX #9)
_UTC = ZoneInfo("UTC")


@record(frozen=True, slots=True)
class _Templates:
    """The templates in one language."""

    language: Language  # with the site's own texts
    shipped: Environment
    site: Environment | None  # None: the site has no folder


class Render:
    """Renders pages and mails.

    ``language`` is the tag of the default language. ``site_folder`` has the site's own ``templates`` and ``locale``.
    ``on_failure`` is called once for each template of the site that fails, with its name and the error; it must not
    raise.
    """

    def __init__(
        self,
        language: str = "en",
        *,
        site_folder: Path | None = None,
        on_failure: Callable[[str, str], None] | None = None,
    ) -> None:
        self.language = language
        self.folders = [shipped("templates")]
        if site_folder is not None:
            self.folders.insert(0, site_folder / "templates")
        self._site_folder = site_folder
        self._on_failure = on_failure
        self._failed: set[str] = set()
        self._by_language: dict[str, _Templates] = {}
        self._names = frozenset(self._templates(self.language).shipped.list_templates())

    def language_for(self, tag: str) -> Language:
        """Return a language with the site's own texts."""
        return self._templates(tag).language

    def _templates(self, tag: str) -> _Templates:
        # One environment for each language. If `_` were passed to each call instead, it would be missing in templates
        # that are imported without context. Two threads may both create one; either can be used.
        templates = self._by_language.get(tag)
        if templates is None:
            shipped_only = self._make_environment(self.folders[-1:], language := languages.get(tag))
            site = None
            if self._site_folder is not None:
                language, problems = languages.of_site(tag, self._site_folder / "locale")
                site = self._make_environment(self.folders, language)
                for name, problem in problems:
                    log.error("the site's translation is wrong, the shipped one is used instead: %s: %s", name, problem)
            templates = self._by_language[tag] = _Templates(language, shipped_only, site)
        return templates

    def _make_environment(self, folders: list[Path], language: Language) -> Environment:
        environment = Environment(
            loader=FileSystemLoader(folders),
            auto_reload=folders != self.folders[-1:],  # a site may change its templates at any time
            autoescape=lambda name: name is not None and name.endswith(".html"),  # noqa: S701 – texts are not HTML
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.i18n"],
        )
        # Not the new style: it takes all translated values for HTML and for a format string, also those of variables.
        # `_(sender)` printed the sender's own tags, and failed at a percent sign.
        environment.install_gettext_callables(language.gettext, language.ngettext, newstyle=False)  # type: ignore[attr-defined]
        environment.filters["shown"] = shown
        environment.filters["isolated"] = _isolated(language.direction)
        environment.filters["shown_address"] = shown_address
        environment.filters["number"] = language.number
        environment.filters["percent"] = language.percent
        environment.filters["days"] = language.days
        environment.filters["month"] = language.month
        environment.filters["size"] = language.size
        environment.filters["score"] = language.score
        environment.filters["threshold"] = language.threshold
        environment.filters["utc"] = lambda at: f"{language.moment(at, _UTC)} UTC"
        environment.globals["language"] = language.tag
        environment.globals["direction"] = language.direction
        environment.globals["version"] = __version__  # for a site's own web/base.html of version 0.2
        return environment

    def _render(self, tag: str, name: str, values: dict[str, Any]) -> str:
        templates = self._templates(tag)
        if templates.site is not None:
            try:
                return templates.site.get_template(name).render(values)
            except Exception as error:  # a site's template may raise anything; the digest must be sent nevertheless
                # Only the kind of error and the line, since the text of an error may quote a subject.
                self._report_failure(name, _describe(error, self.folders[0]))
        return templates.shipped.get_template(name).render(values)

    def _report_failure(self, name: str, reason: str) -> None:
        """Log a template's failure and call ``on_failure``, once for each template."""
        if name in self._failed:
            return
        self._failed.add(name)
        log.error("the site's template failed, the shipped one is used instead: %s: %s", name, reason)
        if self._on_failure is not None:
            self._on_failure(name, reason)

    def _values_in(self, folder: str) -> set[str]:
        """Return the names of the values that the shipped templates in a folder get."""
        environment = self._templates(self.language).shipped
        assert environment.loader is not None  # noqa: S101 - see _make_environment
        names = [name for name in self._names if name.rpartition("/")[0] == folder and name.endswith((".html", ".txt"))]
        sources = [environment.loader.get_source(environment, name)[0] for name in names]
        return set().union(*(meta.find_undeclared_variables(environment.parse(source)) for source in sources))

    def page(self, name: str, *, language: str = "", brand: Brand = NO_BRAND, **values: Any) -> str:
        """Return the page ``templates/web/NAME.html`` in a language, with the look of ``brand``."""
        return self._render(language or self.language, f"web/{name}.html", {**values, **_of_brand(brand)})

    def mail(
        self,
        name: str,
        *,
        sender: str,
        to: str,
        id: UUID,
        mark: str,
        now: datetime,
        language: str = "",
        brand: Brand = NO_BRAND,
        headers: dict[str, str] | None = None,
        encoding: str = "quoted-printable",
        **values: Any,
    ) -> EmailMessage:
        """Return a mail from ``templates/mail/NAME/``: subject.txt, body.txt and, if present, body.html, in a language.

        Quoted-printable at 76 columns is explicit, since the email package would pick 8bit or base64 by content.
        ``encoding`` "8bit" is smaller, and is used unless a line is too long for it (RFC 5321, 4.5.3.1.6).
        The Message-ID is made from ``id``, so that a mail that is repeated after a crash has the same one.
        ``to`` is one address as in an envelope. If it is not ASCII, the mail needs SMTPUTF8 (RFC 6532).
        """
        language, values = language or self.language, {**values, **_of_brand(brand)}
        logo_cid = f"{brand.logo_name}@{sender.rpartition('@')[2]}" if brand.logo else ""
        values["logo_cid"] = logo_cid
        subject = " ".join(self._render(language, f"mail/{name}/subject.txt", values).split())
        mail = EmailMessage(policy=_POLICY.clone(utf8=not to.isascii()))
        name_shown = brand.name or self._templates(language).language.gettext("Mail quarantine")
        name_shown = re.sub(r'[\s"\\]+', " ", name_shown).strip()  # the site's translation may be any text
        mail["From"] = f'"{name_shown}" <{sender}>'  # phones show the name only
        mail["To"] = mailbox(to)
        mail["Subject"] = subject
        mail["Date"] = format_datetime(now)
        mail["Message-ID"] = f"<{id}@{sender.rpartition('@')[2].rstrip('>')}>"
        mail["Auto-Submitted"] = "auto-generated"
        mail["X-Auto-Response-Suppress"] = "All"
        mail[MARK_HEADER] = mark
        for header, value in (headers or {}).items():
            mail[header] = value
        text = wrapped(self._render(language, f"mail/{name}/body.txt", values))
        spoken = [f"Content-Language: {language}"]  # RFC 3282
        mail.set_content(text, cte=_fitting(encoding, text), headers=spoken)
        if f"mail/{name}/body.html" in self._names:
            html = self._render(language, f"mail/{name}/body.html", values)
            mail.make_alternative()
            mail.add_alternative(html, subtype="html", cte=_fitting(encoding, html), headers=spoken)
            if logo_cid:
                # Within the mail: a remote picture would show its server who reads the mail, and most programs hide it.
                html_part = [*mail.iter_parts()][-1]
                kind = brand.logo_name.rpartition(".")[2]
                html_part.add_related(brand.logo_octets, "image", kind, cid=f"<{logo_cid}>", disposition="inline")
        return mail


def _of_brand(brand: Brand) -> dict[str, str]:
    """Return the values of a brand for the templates of pages and mails."""
    return {
        "site_name": brand.name,
        "brand_colour": brand.colour,
        "brand_colour_dark": brand.colour_dark,
        "brand_on_dark": ON_DARK,
        "brand_style": brand.style_name,
        "brand_logo": brand.logo_name,
    }


def _fitting(encoding: str, text: str) -> str:
    too_long = encoding == "8bit" and any(len(line) > 998 for line in text.encode().splitlines())
    return "quoted-printable" if too_long else encoding


def site_problems(site_folder: Path) -> list[tuple[str, str]]:
    """Return (name, sentence) for each problem of a site's templates and translations that is found without using them.

    A template without a shipped one of the same name may be included by another one, so only its syntax is checked.
    """
    folder = site_folder / "templates"
    found = [problem for tag in TAGS for problem in languages.of_site(tag, site_folder / "locale")[1]]
    if not folder.is_dir():
        if (site_folder / "locale").is_dir():
            return found
        return [(str(folder), "is missing or cannot be read, so the shipped templates are used")]
    render = Render(site_folder=site_folder)
    templates = render._templates(render.language)
    assert templates.site is not None  # noqa: S101 - it was given a folder
    values_in = cache(render._values_in)  # it parses all templates of a folder
    for name in sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.*") if p.suffix in (".html", ".txt")):
        try:
            templates.site.get_template(name)
            used = meta.find_undeclared_variables(templates.site.parse((folder / name).read_text("utf-8")))
        except Exception as error:
            found.append((name, f"{_describe(error, folder)}: the shipped one is used instead"))
            continue
        unknown = used - values_in(name.rpartition("/")[0]) - set(templates.shipped.globals)
        if unknown and name in render._names:
            found.append(
                (name, f"uses unknown values ({', '.join(sorted(unknown))}): the shipped one may be used instead")
            )
    return found


def _isolated(direction: str) -> Callable[[str], Markup]:
    """Return a filter for texts of messages in mails: their direction does not change what is beside them.

    Browsers isolate a span with `dir`. Word knows neither isolation nor `bdi`: the mark after the span stops the text
    from moving numbers and punctuation that follow it. Texts in the ``direction`` of the mail need neither.
    """
    mark = "&rlm;" if direction == "rtl" else "&lrm;"

    def isolated(text: str) -> Markup:
        html = _breakable(text)
        if text.isascii() and direction == "ltr":
            return html
        found = [each for letter in text if (each := _DIRECTIONS.get(bidirectional(letter)))]
        if all(each == direction for each in found):
            return html
        return Markup(f'<span dir="{found[0]}">{html}</span>{mark}')  # noqa: S704 - HTML already

    return isolated


def _breakable(text: str) -> Markup:
    """Return HTML of a text in which Outlook for Windows can break words of more than 32 characters."""
    return _BREAK.join(_LONG_WORD.sub("\\1\0", text).split("\0"))


def _describe(error: Exception, folder: Path) -> str:
    """Return a site template's error and its line, without values, which may come from a mail."""
    if isinstance(error, TemplateSyntaxError):
        return f"line {error.lineno}: {error.message}"
    if isinstance(error, TemplateNotFound):
        return f"there is no template {error.name}"
    lines = [f"{frame.filename} line {frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)]
    own = [line.removeprefix(f"{folder}/") for line in lines if line.startswith(f"{folder}/")]
    what = error.message if isinstance(error, UndefinedError) and error.message else type(error).__name__
    return f"{own[-1]}: {what}" if own else what


def mailbox(address: str) -> str:
    """Return an envelope's address for a header, with quotes that it may have lost added again (RFC 5322, 3.4.1)."""
    local, _, domain = address.rpartition("@")
    if not _PLAIN_LOCAL.fullmatch(local):
        local = '"' + re.sub(r'(["\\])', r"\\\1", local) + '"'
    return f"{local}@{domain}"
