"""Build all parts from the settings. The only module that knows which part depends on which."""

from __future__ import annotations

import logging
import sys
import threading
from contextlib import suppress
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from portal.keys import read_keys
from portal.model.errors import StoreUnavailable, StoreUnusable
from portal.model.links import Links
from portal.model.message import identity
from portal.model.tiers import Tiers
from portal.people import Directory
from portal.policy.domains import Domains
from portal.settings import Settings
from portal.stores import Store, notes, open_store

if TYPE_CHECKING:
    from email.message import EmailMessage

    from portal.actions import Actions
    from portal.mail.relay import Relay
    from portal.mail.render import Render
    from portal.policy.forgetting import Forgetting
    from portal.policy.learning import Learning
    from portal.policy.recipients import Recipients
    from portal.policy.rulebook import Rulebook
    from portal.policy.second_factor import SecondFactors
    from portal.policy.staff import Staff
    from portal.policy.tokens import Tokens
    from portal.rspamd import Rspamd
    from portal.scanning import Scanning

log = logging.getLogger("quarantine.settings")

OUTCOMES_SECONDS = 60.0  # that a command waits at its end for the store, to record outcomes that nobody else knows
_COUNTERS_SECONDS = 0.3  # to record counters


class Parts:
    """All parts of a web worker, the digest process or a command.

    A part is made, and its modules are imported, when it is first used: a command needs few of them, and all together
    take most of its time. Services make all of them at their start, see `assemble`.
    """

    def __init__(self, settings: Settings, store: Store, links: Links, release_seconds: float) -> None:
        self.settings = settings
        self.store = store
        self.links = links
        self._release_seconds = release_seconds

    def make_all(self) -> None:
        """Make all parts for a process that runs for long: it imports nothing after an upgrade replaced the files."""
        import portal.mail.smtp_replies  # noqa: F401 - see `portal.mail.smtp_session`

        for name, part in vars(type(self)).items():
            if isinstance(part, cached_property):
                getattr(self, name)

    @cached_property
    def render(self) -> Render:
        """The templates of pages and mails."""
        return make_render(self.settings, self.store)

    @cached_property
    def relay(self) -> Relay:
        """The mail server for releases."""
        from portal.mail.relay import Relay

        return Relay(self.settings.relay.url.get_secret_value(), total_seconds=self._release_seconds)

    @cached_property
    def mailer(self) -> Relay:
        """The mail server for the portal's own mail."""
        from portal.mail.relay import Relay

        return Relay(self.settings.mail.url.get_secret_value())

    @cached_property
    def actions(self) -> Actions:
        """The actions on deliveries."""
        from portal.actions import Actions

        return Actions(
            store=self.store,
            relay=self.relay,
            scanning=self.scanning,
            learning=self.learning,
            links=self.links,
            render_mail=self._render_mail,
            domains=self.domains,
            deciders=self.staff.deciders,
            is_local=self.people.is_notified,
            language_of=self._language_of,
            public_url_of=self._public_url_of,
        )

    def _render_mail(self, *args: Any, **values: Any) -> EmailMessage:
        return self.render.mail(*args, **values)  # few actions of commands mail anybody

    def _language_of(self, address: str) -> str:
        readers = self.people.readers(identity(address))
        reader = readers[0] if len(readers) == 1 else identity(address)
        return self.domains.plan(reader, self.store.recipients.get(reader).preferences).language

    def _public_url_of(self, address: str) -> str:
        return self.domains.of(self.people.person(address) or address).public_url

    @cached_property
    def rspamd(self) -> Rspamd | None:
        """Rspamd's controller, None if `rspamd.url` is not set."""
        return make_rspamd(self.settings)

    @cached_property
    def scanning(self) -> Scanning:
        """The virus scans of held messages."""
        from portal.scanning import Scanning

        chosen = self.settings.rspamd
        return Scanning(
            self.store,
            self.tiers,
            self.rspamd,
            chosen.scan_groups if chosen.scan == "on" else (),
            chosen.scan_max_bytes,
            timedelta(minutes=chosen.scan_valid_minutes),
            chosen.release_unscanned,
            chosen.scan == "on",
        )

    @cached_property
    def learning(self) -> Learning:
        """The votes by which Rspamd is trained."""
        from portal.policy.learning import Learning

        chosen = self.settings.rspamd
        return Learning(self.store, self.rspamd, chosen.learn, chosen.learn_agreed, self.people.readers)

    @cached_property
    def tiers(self) -> Tiers:
        """The symbols that decide about the tier of a message."""
        return Tiers(self.settings.tiers.dangerous_symbols, self.settings.tiers.suspicious_symbols)

    @cached_property
    def people(self) -> Directory:
        """The readers of addresses."""
        return make_people(self.settings, self.store)

    @cached_property
    def domains(self) -> Domains:
        """The values that hold for the recipients of a domain."""
        return Domains(self.settings, self.store)

    @cached_property
    def staff(self) -> Staff:
        """The rights of staff."""
        from portal.policy.staff import Staff

        return Staff(self.settings, self.store, self.domains, self.people)

    @cached_property
    def second_factors(self) -> SecondFactors:
        """The second factors of staff."""
        from portal.policy.second_factor import SecondFactors

        return SecondFactors(self.store, self.links, self.staff, self.actions)

    @cached_property
    def tokens(self) -> Tokens:
        """The tokens of the API."""
        from portal.policy.tokens import Tokens

        return Tokens(self.store, self.staff)

    @cached_property
    def rulebook(self) -> Rulebook:
        """The allow and block rules."""
        from portal.policy.rulebook import Rulebook

        return Rulebook(self.store, self.people, self.settings.local_domains, self.settings.is_local)

    @cached_property
    def recipients(self) -> Recipients:
        """The recipients, for staff."""
        from portal.policy.recipients import Recipients

        return Recipients(self.store, self.people, self.domains)

    @cached_property
    def forgetting(self) -> Forgetting:
        """The removal of all data about a person."""
        from portal.policy.forgetting import Forgetting

        return Forgetting(self.store, self.people, self.rulebook, self.staff)


def assemble(settings: Settings, *, release_seconds: float = 30, create: bool = False) -> Parts:
    """Open the store. ``release_seconds`` is the time limit of one release; the default is for a user who waits for it.

    ``create``: make all parts now, and create a file store and link keys that do not exist yet, for the service.
    Commands leave that to `quarantine init`: in the wrong folder or as the wrong user they would create an empty store
    that the service cannot use. Raises SettingsError, StoreUnavailable or StoreUnusable.
    """
    store = open_store(settings.store.place, must_exist=not create)
    try:
        if create and settings.digest.domains:
            log.warning("digest.domains: the next version will not read it: rename its tables to [domains.…]")
        links = make_links(settings, create=create)
        agree_on_keys(store, links, record=create)
        parts = Parts(settings, store, links, release_seconds)
        if create:
            parts.make_all()
        return parts
    except BaseException:
        store.close()  # a worker whose store is unavailable calls this again for each request
        raise


def close_outcomes(store: Store, seconds: float) -> None:
    """Call `Store.close_outcomes`, but wait little longer than ``seconds``: the process ends, and the counters may wait
    for a store that is unavailable."""
    closing = threading.Thread(target=store.close_outcomes, args=[seconds], daemon=True)
    closing.start()
    closing.join(seconds + _COUNTERS_SECONDS)


def log_to_stderr() -> None:
    """Log one line for each event to stderr, which uWSGI and the service manager keep.

    Libraries log warnings only: psycopg's pool logs each connection that it lends, several lines for every message.
    """
    from portal.model.log_lines import LineFormatter, leave_out_unused

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter())
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    leave_out_unused()
    logging.getLogger("quarantine").setLevel(logging.INFO)


def log_as_chosen(settings: Settings) -> None:
    """Log from now on in the form of ``log.format``."""
    from portal.model.log_lines import JsonFormatter, LineFormatter

    if settings.log.format == "json":
        for handler in logging.root.handlers:
            if isinstance(handler.formatter, LineFormatter):
                handler.setFormatter(JsonFormatter())


def make_render(settings: Settings, store: Store) -> Render:
    """Return the templates according to the settings.

    The store records the last failure of a site's own template, since it may occur in a process whose log is not read.
    `quarantine check` reports it until that file is changed.
    """

    def record_failure(name: str, error_text: str) -> None:
        with suppress(StoreUnavailable, OSError):  # it is in the log, and sending the mail or page is more important
            path = settings.site.folder / "templates" / name if settings.site.folder else Path(name)
            changed = path.stat().st_mtime_ns if path.exists() else 0
            notes.TEMPLATE_FAILED.set(store, notes.TemplateFailure(changed, f"{name}: {error_text}"))

    from portal.mail.render import Render

    return Render(
        settings.digest.language,
        site_folder=settings.site.folder,
        on_failure=record_failure,
    )


def make_rspamd(settings: Settings) -> Rspamd | None:
    """Return Rspamd's controller according to the settings, None if `rspamd.url` is not set."""
    url, password = settings.rspamd.url, settings.rspamd.password
    if not url:
        return None
    from portal.rspamd import Rspamd

    return Rspamd(url, password.get_secret_value() if password else "")


def make_people(settings: Settings, store: Store) -> Directory:
    """Return the directory of readers according to the settings. The store keeps the alias file's last usable text."""

    def last_good() -> str | None:
        try:
            return notes.ALIASES_LAST_GOOD.get(store)
        except StoreUnavailable:
            return None

    return Directory(
        settings.people.alias_file,
        delimiter=settings.people.recipient_delimiter,
        origin=settings.people.origin or "",
        is_local=settings.is_local,
        last_good=last_good,
    )


def make_links(settings: Settings, *, create: bool = False) -> Links:
    """Return links signed with the keys of the settings or of the key file. ``create``: create a missing key file.

    Raises SettingsError.
    """
    keys = [key.get_secret_value().encode() for key in settings.links.keys]
    return Links(
        keys or read_keys(keys_path(settings), create=create),
        settings.public_url,
        timedelta(days=settings.links.lifetime_days),
    )


def keys_path(settings: Settings) -> Path:
    """Return the path of the key file."""
    if settings.links.keys_file is not None:
        return settings.links.keys_file
    return (settings.store.place.folder or Path("var/quarantine")) / "links.keys"


def agree_on_keys(store: Store, links: Links, *, record: bool) -> None:
    """Check that all hosts of a store sign with the same keys: otherwise links of one host are invalid at another.

    The store has the newest key's fingerprint; ``record`` keeps it up to date. After a rotation this host has a newer
    key, but it must still have the recorded one. Raises StoreUnusable.
    """
    prints = links.fingerprints()
    kept = notes.LINK_KEY.set_default(store, prints[-1]) if record else notes.LINK_KEY.get(store)
    if kept is not None and kept not in prints:
        raise StoreUnusable(
            "links.keys_file: these link keys are not the ones this store was used with, so links in digests already "
            "sent would be invalid: copy the key file from the other host (if it is lost: `quarantine init --new-keys`)"
        )
    if record and kept != prints[-1]:
        notes.LINK_KEY.set(store, prints[-1])
