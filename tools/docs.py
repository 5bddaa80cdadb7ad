"""Write docs/settings.md and quarantine.example.toml from the models in `portal.settings`: ``make docs``.

Run it after a setting was added or its default or description was changed; tests/project/test_docs.py compares.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from datetime import time
from pathlib import Path
from typing import Any

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from portal.settings import DomainSettings, OidcSettings, Section, Settings, keys
from portal.settings.domains import keys_of

ROOT = Path(__file__).resolve().parents[1]

_PAGE_HEAD = """# Settings

One TOML file: the one that `QUARANTINE_CONFIG` names, else `./quarantine.toml`, else
`/etc/rspamd-quarantine/quarantine.toml`. Each key can also be given as an environment variable, which wins:
`store.url` is `QUARANTINE_STORE__URL`, `public_url` is `QUARANTINE_PUBLIC_URL`; lists are written with commas there.
Keys marked 🔑 can be read from a file: `store.url_file = "/run/credentials/store-url"` or
`QUARANTINE_STORE__URL_FILE`; the file holds the value alone.

An unknown key or a wrong value stops every program with a list of all problems and where each comes from.
`quarantine settings` prints the values in effect, secrets masked. `QUARANTINE_SOCKET` is not a setting: `uwsgi.ini`
reads it, the path of the uwsgi socket where systemd does not make that (default `var/quarantine.sock`).
"""

_DOMAINS_HEAD = """
## domains

Values for the recipients of one domain, in a table for each domain. All are optional: the site's value applies where a
domain has none. [domains.md](domains.md) explains them.

    [domains."example.net"]
    name = "Example Net"

| key | meaning |
| --- | --- |"""

_OIDC_HEAD = """
## oidc

Providers of OpenID Connect, in a table for each. [sign-in.md](sign-in.md) has the steps.

    [oidc.company]
    issuer = "https://id.example.org/realms/main"
    client_id = "quarantine"

| key | default | meaning |
| --- | --- | --- |"""

_EXAMPLE_HEAD = """# The quarantine portal's settings. Every key is shown with its default, commented out.
# Where it is looked for: $QUARANTINE_CONFIG, ./quarantine.toml, /etc/rspamd-quarantine/quarantine.toml.
# The full description is in docs/settings.md; `quarantine check` tests your settings.
"""


def fields() -> Iterator[tuple[str, FieldInfo]]:
    """Yield (dotted key, field) for every setting, top level first."""
    for name, field in Settings.model_fields.items():
        if not (isinstance(field.annotation, type) and issubclass(field.annotation, Section)):
            yield name, field
    for name, field in Settings.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            for key, inner in field.annotation.model_fields.items():
                yield f"{name}.{key}", inner


def settings_page() -> str:
    """Return docs/settings.md."""
    out, section = [_PAGE_HEAD], None
    for key, field in fields():
        prefix = key.rpartition(".")[0]
        if prefix != section:
            section = prefix
            model = Settings.model_fields[prefix].annotation if prefix else None
            out.append(f"\n## {prefix}\n\n{model.__doc__}\n" if model else "\n## Top level\n")
            out.append("| key | default | meaning |\n| --- | --- | --- |")
        shown = _shown(_plain(field.default))
        mark = " 🔑" if "SecretStr" in str(field.annotation) and f"{key}_file" not in keys() else ""
        out.append(f"| `{key}`{mark} | {shown} | {field.description} |")
    out.append(_DOMAINS_HEAD)
    out += [f"| `{name}` | {DomainSettings.model_fields[name].description} |" for name in keys_of("domains")]
    out.append(_OIDC_HEAD)
    for name, field in OidcSettings.model_fields.items():
        shown = _shown(None if field.is_required() else _plain(field.default))
        out.append(f"| `{name}` | {shown} | {field.description} |")
    return "\n".join(out) + "\n"


def _shown(default: Any) -> str:
    if default in (None, [], "", {}):
        return "–"
    return f"`{', '.join(default) if isinstance(default, list) else default}`"


def example() -> str:
    """Return quarantine.example.toml."""
    out, section = [_EXAMPLE_HEAD], ""
    for key, field in fields():
        prefix, _, name = key.rpartition(".")
        if prefix != section:
            section = prefix
            out.append(f"\n[{prefix}]")
        if field.description is None:
            raise ValueError(f"{key} has no description")
        out += textwrap.wrap(field.description.replace("`", ""), 100, initial_indent="# ", subsequent_indent="# ")
        default = _plain(field.default)
        value = '""' if default is None else json.dumps(default)
        lines = textwrap.wrap(f"{name} = {value}", 110)
        out += [f"#{line}" if i == 0 else f"#  {line}" for i, line in enumerate(lines)]
    return "\n".join(out) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, time):
        return value.strftime("%H:%M")
    if isinstance(value, tuple):
        return [str(_plain(v)) for v in value]
    return value


GENERATED = {"docs/settings.md": settings_page, "quarantine.example.toml": example}


def main() -> None:
    for name, text in GENERATED.items():
        (ROOT / name).write_text(text(), "utf-8")


if __name__ == "__main__":
    main()
