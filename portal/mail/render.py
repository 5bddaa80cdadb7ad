"""Pages and mails from templates: one Jinja environment, the only user of jinja2.

Autoescape, `StrictUndefined`, no logic in templates beyond loops and conditions. Whatever comes from a held mail is
hostile: `shown()` takes control and bidirectional characters out before a template sees it.
Texts stand in `{% trans %}` blocks and `_()`; `languages` has what they are in each language.

A site may put templates of its own beside: one of the same relative name is used instead of ours (docs/customise.md).
One that fails is never a reason to send nothing: ours is used, and it is said loudly.
"""

from __future__ import annotations

import logging
import re
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from email.headerregistry import BaseHeader, HeaderRegistry, UnstructuredHeader
from email.message import EmailMessage
from email.policy import SMTP, Policy
from email.utils import format_datetime
from pathlib import Path
from typing import Any
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

from portal import shipped
from portal.mail import languages
from portal.mail.languages import Language
from portal.model.domains import shown_address
from portal.model.links import MARK_HEADER
from portal.model.text import TAGS, shown, wrapped

log = logging.getLogger("quarantine.render")


class _Exact(UnstructuredHeader, BaseHeader):
    """A header for machines, written as it is. The package would turn long words into encoded ones (RFC 2047),
    which breaks our mark and RFC 8058's address, and it mangles or refuses mailboxes that are not ASCII."""

    def fold(self, *, policy: Policy) -> str:
        return f"{self.name}: {self}{policy.linesep}"


class _Registry(HeaderRegistry):
    """One class for each kind of header; the package makes a new one for every header of every mail, which took a tenth
    of the time a digest takes."""

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._made:
            self._made[name] = super().__getitem__(name)
        return self._made[name]


_HEADERS = _Registry()
for _name in ("to", "message-id", "list-unsubscribe", MARK_HEADER.lower()):
    _HEADERS.map_to_type(_name, _Exact)
# RFC 2045, 6.7: at most 76 characters a line; the package's own default is 78, which spam filters notice.
_POLICY = SMTP.clone(max_line_length=76, header_factory=_HEADERS)
_PLAIN_LOCAL = re.compile(r"""[^\s()<>@,;:\\"\[\].]+(\.[^\s()<>@,;:\\"\[\].]+)*|"([^"\\]|\\.)*\"""")


_UTC = ZoneInfo("UTC")


@dataclass(frozen=True, slots=True)
class _Spoken:
    """A language and the templates in it."""

    language: Language  # with the site's own texts
    ours: Environment
    site: Environment | None  # None: the site has no folder


class Render:
    """The templates, ready. ``language`` is the tag of what is spoken where nothing else is asked for, ``site_name``
    what the site calls its quarantine ("": as we do), ``site_folder`` holds the site's own ``templates`` and
    ``locale``. ``on_failure`` is told the name of a template of the site that failed and why, once each; it must not
    raise."""

    def __init__(
        self,
        language: str = "en",
        *,
        site_name: str = "",
        site_folder: Path | None = None,
        on_failure: Callable[[str, str], None] | None = None,
    ) -> None:
        self.language = language
        self.site_name = site_name
        self.folders = [shipped("templates")]
        if site_folder is not None:
            self.folders.insert(0, site_folder / "templates")
        self._site_folder = site_folder
        self._on_failure = on_failure
        self._failed: set[str] = set()
        self._spoken: dict[str, _Spoken] = {}
        self._names = frozenset(self._in(self.language).ours.list_templates())

    def language_for(self, tag: str) -> Language:
        """A language as this site speaks it."""
        return self._in(tag).language

    def _in(self, tag: str) -> _Spoken:
        # An environment for each language: handed to each call instead, `_` would be missing in what a template
        # imports without its context. Two threads may both make one; either serves.
        spoken = self._spoken.get(tag)
        if spoken is None:
            ours = self._make_environment(self.folders[-1:], speaks := languages.get(tag))
            site = None
            if self._site_folder is not None:
                speaks, problems = languages.of_site(tag, self._site_folder / "locale")
                site = self._make_environment(self.folders, speaks)
                for name, said in problems:
                    log.error("the site's translation is wrong, ours is used instead: %s: %s", name, said)
            spoken = self._spoken[tag] = _Spoken(speaks, ours, site)
        return spoken

    def _make_environment(self, folders: list[Path], spoken: Language) -> Environment:
        environment = Environment(
            loader=FileSystemLoader(folders),
            auto_reload=folders != self.folders[-1:],  # a site may change its own; ours took a tenth of a digest
            autoescape=lambda name: name is not None and name.endswith(".html"),  # noqa: S701 – texts are not HTML
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.i18n"],
        )
        # Not the new style: it takes whatever is translated for HTML and for a format, and so would be what stands in
        # a variable: `_(sender)` printed the sender's own tags, and failed at a percent sign.
        environment.install_gettext_callables(spoken.gettext, spoken.ngettext, newstyle=False)  # type: ignore[attr-defined]
        environment.filters["shown"] = shown
        environment.filters["shown_address"] = shown_address
        environment.filters["number"] = spoken.number
        environment.filters["days"] = spoken.days
        environment.filters["size"] = spoken.size
        environment.filters["utc"] = lambda at: f"{spoken.moment(at, _UTC)} UTC"
        environment.globals["language"] = spoken.tag
        environment.globals["direction"] = spoken.direction
        environment.globals["site_name"] = self.site_name
        return environment

    def _render(self, tag: str, name: str, values: dict[str, Any]) -> str:
        spoken = self._in(tag)
        if spoken.site is not None:
            try:
                return spoken.site.get_template(name).render(values)
            except Exception as error:  # whatever a site wrote: a digest goes out all the same
                # Only kind and line: an error's own text may quote a subject.
                self._tell_failure(name, _in_words(error, self.folders[0]))
        return spoken.ours.get_template(name).render(values)

    def _tell_failure(self, name: str, said: str) -> None:
        """Say once what failed."""
        if name in self._failed:
            return
        self._failed.add(name)
        log.error("the site's template failed, ours is used instead: %s: %s", name, said)
        if self._on_failure is not None:
            self._on_failure(name, said)

    def _values_in(self, folder: str) -> set[str]:
        """The values that our own templates in a folder are handed."""
        ours = self._in(self.language).ours
        assert ours.loader is not None  # noqa: S101 - see _make_environment
        names = [name for name in self._names if name.rpartition("/")[0] == folder and name.endswith((".html", ".txt"))]
        sources = [ours.loader.get_source(ours, name)[0] for name in names]
        return set().union(*(meta.find_undeclared_variables(ours.parse(source)) for source in sources))

    def page(self, name: str, *, language: str = "", **values: Any) -> str:
        """The page ``templates/web/NAME.html`` in a language."""
        return self._render(language or self.language, f"web/{name}.html", values)

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
        headers: dict[str, str] | None = None,
        encoding: str = "quoted-printable",
        **values: Any,
    ) -> EmailMessage:
        """A mail from ``templates/mail/NAME/``: subject.txt, body.txt and, if there is one, body.html, in a language.

        Quoted-printable at 76 columns, explicitly: left to itself the package picks 8bit or base64 by content.
        ``encoding`` "8bit" is smaller, where no line is too long for it (RFC 5321, 4.5.3.1.6).
        The Message-ID comes from ``id``, so that a mail repeated after a crash carries the same one.
        ``to`` is one address as an envelope wrote it; one beyond ASCII makes a mail for SMTPUTF8 (RFC 6532).
        """
        language = language or self.language
        subject = " ".join(self._render(language, f"mail/{name}/subject.txt", values).split())
        mail = EmailMessage(policy=_POLICY.clone(utf8=not to.isascii()))
        name_shown = self.site_name or self._in(language).language.gettext("Mail quarantine")
        name_shown = re.sub(r'[\s"\\]+', " ", name_shown).strip()  # a site's own word for it may be anything
        mail["From"] = f'"{name_shown}" <{sender}>'  # phones show the name alone
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
            # Left to itself the package looks through both texts for one that does not occur in them.
            mail.make_alternative(boundary=f"=_{id.hex}")  # quoted-printable has no "=_"
            mail.add_alternative(html, subtype="html", cte=_fitting(encoding, html), headers=spoken)
        return mail


def _fitting(encoding: str, text: str) -> str:
    too_long = encoding == "8bit" and any(len(line) > 998 for line in text.encode().splitlines())
    return "quoted-printable" if too_long else encoding


def site_problems(site_folder: Path) -> list[tuple[str, str]]:
    """What can be found wrong with a site's templates without using them: names and sentences.

    A file that replaces none of ours (it may be included by one that does) is only read.
    """
    folder = site_folder / "templates"
    found = [problem for tag in TAGS for problem in languages.of_site(tag, site_folder / "locale")[1]]
    if not folder.is_dir():
        if (site_folder / "locale").is_dir():
            return found
        return [(str(folder), "is not there or cannot be read, so our own templates are used")]
    render = Render(site_folder=site_folder)
    spoken = render._in(render.language)
    assert spoken.site is not None  # noqa: S101 - it was given a folder
    for name in sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.*") if p.suffix in (".html", ".txt")):
        try:
            spoken.site.get_template(name)
            used = meta.find_undeclared_variables(spoken.site.parse((folder / name).read_text("utf-8")))
        except Exception as error:
            found.append((name, f"{_in_words(error, folder)}: ours is used instead"))
            continue
        unknown = used - render._values_in(name.rpartition("/")[0]) - set(spoken.ours.globals)
        if unknown and name in render._names:
            found.append(
                (name, f"uses {', '.join(sorted(unknown))}, which we do not hand it: ours may be used instead")
            )
    return found


def _in_words(error: Exception, folder: Path) -> str:
    """What went wrong in a template of the site and where, without values: those may come from a mail."""
    if isinstance(error, TemplateSyntaxError):
        return f"line {error.lineno}: {error.message}"
    if isinstance(error, TemplateNotFound):
        return f"there is no template {error.name}"
    lines = [f"{frame.filename} line {frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)]
    own = [line.removeprefix(f"{folder}/") for line in lines if line.startswith(f"{folder}/")]
    what = error.message if isinstance(error, UndefinedError) and error.message else type(error).__name__
    return f"{own[-1]}: {what}" if own else what


def mailbox(address: str) -> str:
    """An envelope's address as a header may carry it: quotes that were lost on the way come back (RFC 5322, 3.4.1)."""
    local, _, domain = address.rpartition("@")
    if not _PLAIN_LOCAL.fullmatch(local):
        local = '"' + re.sub(r'(["\\])', r"\\\1", local) + '"'
    return f"{local}@{domain}"
