"""Settings → opened parts. The one place that knows which part needs what."""

from __future__ import annotations

import logging
import sys
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
from portal.model.message import identity
from portal.model.schedule import plan_for
from portal.model.tiers import Tiers
from portal.people import Directory
from portal.settings import Settings
from portal.stores import Store, notes, open_store

_LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


@dataclass(frozen=True, slots=True)
class Parts:
    """Everything opened, ready to be used by a web worker, the digest process or a command."""

    settings: Settings
    store: Store
    links: Links
    render: Render
    relay: Relay  # releases
    mailer: Relay  # our own mail
    actions: Actions
    tiers: Tiers
    people: Directory


def assemble(settings: Settings, *, release_seconds: float = 30, create: bool = False) -> Parts:
    """Open everything. ``release_seconds`` is what one release may take: 30 while a person waits.

    ``create``: make a file store and link keys that do not exist yet, for the service. Commands leave that to
    `quarantine init`: run in the wrong folder or as the wrong user, they would make an empty store that the service
    cannot use. Raises SettingsError, StoreUnavailable or StoreUnusable.
    """
    store = open_store(settings.store.place, must_exist=not create)
    try:
        return _on_store(settings, store, release_seconds, create)
    except BaseException:
        store.close()  # a worker that waits for its store tries this again with each request
        raise


def _on_store(settings: Settings, store: Store, release_seconds: float, create: bool) -> Parts:
    links = make_links(settings, create=create)
    agree_on_keys(store, links, record=create)
    render = make_render(settings, store)
    relay = Relay(settings.relay.url.get_secret_value(), total_seconds=release_seconds)
    tiers = Tiers(settings.tiers.dangerous_symbols, settings.tiers.suspicious_symbols)
    people = make_people(settings, store)

    def language_of(address: str) -> str:
        readers = people.readers(identity(address))
        reader = readers[0] if len(readers) == 1 else identity(address)
        return plan_for(settings.digest, reader, store.recipients.get(reader).preferences).language

    actions = Actions(
        store=store,
        relay=relay,
        links=links,
        render=render,
        from_address=settings.mail.from_address,
        admin_address=settings.mail.admin_address,
        is_local=people.is_notified,
        language_of=language_of,
    )
    return Parts(
        settings=settings,
        store=store,
        links=links,
        render=render,
        relay=relay,
        mailer=Relay(settings.mail.url.get_secret_value()),
        actions=actions,
        tiers=tiers,
        people=people,
    )


def log_to_stderr() -> None:
    """One line per event on stderr, which uWSGI and the service manager keep.

    From libraries warnings only: psycopg's pool tells of each connection it lends, several lines for every mail.
    """
    # What no line of ours tells need not be looked up (https://docs.python.org/3/howto/logging.html#optimization).
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format=_LOG_FORMAT)
    logging.getLogger("quarantine").setLevel(logging.INFO)


def make_render(settings: Settings, store: Store) -> Render:
    """The templates by the settings. The last failure of one of the site's own is noted in the store, since it may
    happen in a process whose log nobody reads; `quarantine check` tells it until that file is changed."""

    def note(name: str, said: str) -> None:
        with suppress(StoreUnavailable, OSError):  # it was logged, and the mail or page it was about matters more
            path = settings.site.folder / "templates" / name if settings.site.folder else Path(name)
            changed = path.stat().st_mtime_ns if path.exists() else 0
            notes.TEMPLATE_FAILED.set(store, notes.TemplateFailure(changed, f"{name}: {said}"))

    return Render(
        settings.digest.language,
        site_name=settings.site.name,
        site_folder=settings.site.folder,
        on_failure=note,
    )


def make_people(settings: Settings, store: Store) -> Directory:
    """Who reads what, by the settings. The store keeps what the alias file said when it could last be read."""

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
    """Return links signed with the keys of the settings or the key file, which ``create`` makes if it does not exist.

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
    """Check that hosts on one store sign with the same keys: links of one would not open at the other.

    The store has the newest key's fingerprint; ``record`` keeps it up to date. After a rotation our keys have a newer
    one, but they must still include that one. Raises StoreUnusable.
    """
    prints = links.fingerprints()
    kept = notes.LINK_KEY.set_default(store, prints[-1]) if record else notes.LINK_KEY.get(store)
    if kept is not None and kept not in prints:
        raise StoreUnusable(
            "links.keys_file: these link keys are not the ones this store was used with, so links in digests already "
            "sent would not open: copy the key file from the other host (after losing it for good: "
            "`quarantine init --new-keys`)"
        )
    if record and kept != prints[-1]:
        notes.LINK_KEY.set(store, prints[-1])
