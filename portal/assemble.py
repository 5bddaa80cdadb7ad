"""Build all parts from the settings. The only module that knows which part depends on which."""

from __future__ import annotations

import logging
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from portal.actions import Actions
from portal.keys import read_keys
from portal.mail.relay import Relay
from portal.mail.render import Render
from portal.model.errors import StoreUnavailable, StoreUnusable
from portal.model.links import Links
from portal.model.log_lines import JsonFormatter, LineFormatter, leave_out_unused
from portal.model.message import identity
from portal.model.tiers import Tiers
from portal.people import Directory
from portal.policy.domains import Domains
from portal.policy.forgetting import Forgetting
from portal.policy.learning import Learning
from portal.policy.recipients import Recipients
from portal.policy.rulebook import Rulebook
from portal.policy.second_factor import SecondFactors
from portal.policy.staff import Staff
from portal.policy.tokens import Tokens
from portal.rspamd import Rspamd
from portal.scanning import Scanning
from portal.settings import Settings
from portal.stores import Store, notes, open_store

log = logging.getLogger("quarantine.settings")

OUTCOMES_SECONDS = 60.0  # that a command waits at its end for the store, to record outcomes that nobody else knows
_COUNTERS_SECONDS = 0.3  # to record counters


@dataclass(frozen=True, slots=True)
class Parts:
    """All parts, opened and ready for a web worker, the digest process or a command."""

    settings: Settings
    store: Store
    links: Links
    render: Render
    relay: Relay  # releases
    mailer: Relay  # the portal's own mail
    actions: Actions
    scanning: Scanning
    learning: Learning
    tiers: Tiers
    people: Directory
    domains: Domains
    staff: Staff
    second_factors: SecondFactors
    tokens: Tokens
    rulebook: Rulebook
    recipients: Recipients
    forgetting: Forgetting


def assemble(settings: Settings, *, release_seconds: float = 30, create: bool = False) -> Parts:
    """Open all parts. ``release_seconds`` is the time limit of one release; the default is for a user who waits for it.

    ``create``: create a file store and link keys that do not exist yet, for the service. Commands leave that to
    `quarantine init`: in the wrong folder or as the wrong user they would create an empty store that the service cannot
    use. Raises SettingsError, StoreUnavailable or StoreUnusable.
    """
    store = open_store(settings.store.place, must_exist=not create)
    try:
        return _build_parts(settings, store, release_seconds, create)
    except BaseException:
        store.close()  # a worker whose store is unavailable calls this again for each request
        raise


def _build_parts(settings: Settings, store: Store, release_seconds: float, create: bool) -> Parts:
    if create and settings.digest.domains:
        log.warning("digest.domains: the next version will not read it: rename its tables to [domains.…]")
    links = make_links(settings, create=create)
    agree_on_keys(store, links, record=create)
    render = make_render(settings, store)
    relay = Relay(settings.relay.url.get_secret_value(), total_seconds=release_seconds)
    tiers = Tiers(settings.tiers.dangerous_symbols, settings.tiers.suspicious_symbols)
    rspamd = make_rspamd(settings)
    scanning = make_scanning(settings, store, tiers, rspamd)
    people = make_people(settings, store)
    learning = Learning(store, rspamd, settings.rspamd.learn, settings.rspamd.learn_agreed, people.readers)
    domains = Domains(settings, store)

    def language_of(address: str) -> str:
        readers = people.readers(identity(address))
        reader = readers[0] if len(readers) == 1 else identity(address)
        return domains.plan(reader, store.recipients.get(reader).preferences).language

    staff = Staff(settings, store, domains, people)
    actions = Actions(
        store=store,
        relay=relay,
        scanning=scanning,
        learning=learning,
        links=links,
        render=render,
        domains=domains,
        deciders=staff.deciders,
        is_local=people.is_notified,
        language_of=language_of,
    )
    rulebook = Rulebook(store, people, settings.local_domains, settings.is_local)
    return Parts(
        settings=settings,
        store=store,
        links=links,
        render=render,
        relay=relay,
        mailer=Relay(settings.mail.url.get_secret_value()),
        actions=actions,
        scanning=scanning,
        learning=learning,
        tiers=tiers,
        people=people,
        domains=domains,
        staff=staff,
        second_factors=SecondFactors(store, links, staff, actions),
        tokens=Tokens(store, staff),
        rulebook=rulebook,
        recipients=Recipients(store, people, domains),
        forgetting=Forgetting(store, people, rulebook, staff),
    )


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
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter())
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    leave_out_unused()
    logging.getLogger("quarantine").setLevel(logging.INFO)


def log_as_chosen(settings: Settings) -> None:
    """Log from now on in the form of ``log.format``."""
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

    return Render(
        settings.digest.language,
        site_folder=settings.site.folder,
        on_failure=record_failure,
    )


def make_rspamd(settings: Settings) -> Rspamd | None:
    """Return Rspamd's controller according to the settings, None if `rspamd.url` is not set."""
    url, password = settings.rspamd.url, settings.rspamd.password
    return Rspamd(url, password.get_secret_value() if password else "") if url else None


def make_scanning(settings: Settings, store: Store, tiers: Tiers, rspamd: Rspamd | None) -> Scanning:
    """Return the scans according to the settings."""
    chosen = settings.rspamd
    return Scanning(
        store,
        tiers,
        rspamd,
        chosen.scan_groups if chosen.scan == "on" else (),
        chosen.scan_max_bytes,
        timedelta(minutes=chosen.scan_valid_minutes),
        chosen.release_unscanned,
        chosen.scan == "on",
    )


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
