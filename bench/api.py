"""Lists and groups by the API over all held messages, through HTTP, from a web server of one worker.

The store is filled as for the searches of staff, whose rows show what of the time is the query.
"""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import cycle
from uuid import uuid4

from bench import facets, fill
from bench.rig import Effort, Row, own_folder, postgres, print_progress, served
from portal.model.message import Actor, ActorKind
from portal.model.staff import EVERYWHERE, Role
from portal.model.token import Scope, Token, hash_of, new_secret
from portal.stores import Store, open_store

HELD = 1_000_000
TOKENS = 10  # so that no token reaches its limit of requests
OWNER = fill.person(0)
_BAR = "< – / < 300"
_PATHS = {
    "a list": ("messages?limit=50", _BAR),
    "a list of a symbol of one in 2,000": ("messages?limit=50&symbol=RARE_700", _BAR),
    "a list of a state, counted": ("messages?limit=50&state=released&count=true", "–"),
    "groups by symbol of the last 12 hours": ("messages/groups?by=symbol&since=12h", "–"),
}


def api_postgres(effort: Effort) -> list[Row]:
    with postgres() as url, own_folder() as folder:
        held = effort.of(HELD)
        facets.fill_facets(url, held)
        print_progress(f"{held} mails held")
        store = open_store(url)
        secrets = cycle([_token(store) for _ in range(TOKENS)])
        store.close()
        environment = {
            "QUARANTINE_STORE__URL": url,
            "QUARANTINE_LINKS__KEYS_FILE": str(folder / "keys"),
            "QUARANTINE_STAFF__ADMINISTRATORS": OWNER,
        }
        with served("portal.wsgi:application", workers=1, **environment) as server:
            url = f"http://127.0.0.1:{server.port}/quarantine/api/v1/"
            return [
                facets.measured(
                    f"API: {what}, {held:,} held, p50 / p99 in ms", partial(_call, url + path, secrets), bar, effort
                )
                for what, (path, bar) in _PATHS.items()
            ]


def _token(store: Store) -> str:
    """Return the secret of a new token of an administrator."""
    secret, now = new_secret(), datetime.now(UTC)
    actor, ends = Actor(ActorKind.OPERATOR, "bench", "cli"), now + timedelta(days=1)
    role, sha256 = Role.ADMINISTRATOR, hash_of(secret) or b""
    store.tokens.add(Token(uuid4(), sha256, "bench", OWNER, role, EVERYWHERE, Scope.READ, now, actor, ends))
    return secret


def _call(url: str, secrets: Iterator[str]) -> None:
    headers = {"Authorization": f"Bearer {next(secrets)}"}
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60) as response:
        response.read()
