"""docs/settings.md and quarantine.example.toml say what the models say.

Both are written from the models: ``python -m tests.test_docs`` writes them again after a setting was changed.
"""

from __future__ import annotations

import json
import re
import textwrap
import tomllib
from collections.abc import Iterator
from datetime import time
from pathlib import Path
from typing import Any

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from portal.settings import Section, Settings, keys, load

ROOT = Path(__file__).resolve().parents[1]

PAGE_HEAD = """# Settings

One TOML file: the one that `QUARANTINE_CONFIG` names, else `./quarantine.toml`, else
`/etc/rspamd-quarantine/quarantine.toml`. Each key can also be given as an environment variable, which wins:
`store.url` is `QUARANTINE_STORE__URL`, `public_url` is `QUARANTINE_PUBLIC_URL`; lists are written with commas there.
Keys marked 🔑 can be read from a file: `store.url_file = "/run/credentials/store-url"` or
`QUARANTINE_STORE__URL_FILE`; the file holds the value alone.

An unknown key or a wrong value stops every program with a list of all problems and where each comes from.
`quarantine settings` prints the values in effect, secrets masked. `QUARANTINE_SOCKET` is no setting: `uwsgi.ini` reads
it, the path of the uwsgi socket where systemd does not make that (default `var/quarantine.sock`).
"""

EXAMPLE_HEAD = """# The quarantine portal's settings. Every key is shown with its default, commented out.
# Where it is looked for: $QUARANTINE_CONFIG, ./quarantine.toml, /etc/rspamd-quarantine/quarantine.toml.
# The full description is in docs/settings.md; `quarantine check` tells whether it fits.
"""


def fields() -> Iterator[tuple[str, FieldInfo]]:
    """(dotted key, field) for every setting, top level first."""
    for name, field in Settings.model_fields.items():
        if not (isinstance(field.annotation, type) and issubclass(field.annotation, Section)):
            yield name, field
    for name, field in Settings.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            for key, inner in field.annotation.model_fields.items():
                yield f"{name}.{key}", inner


def plain(value: Any) -> Any:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, time):
        return value.strftime("%H:%M")
    if isinstance(value, tuple):
        return [str(plain(v)) for v in value]
    return value


def settings_page() -> str:
    out, section = [PAGE_HEAD], None
    for key, field in fields():
        prefix = key.rpartition(".")[0]
        if prefix != section:
            section = prefix
            model = Settings.model_fields[prefix].annotation if prefix else None
            out.append(f"\n## {prefix}\n\n{model.__doc__}\n" if model else "\n## Top level\n")
            out.append("| key | default | meaning |\n| --- | --- | --- |")
        default = plain(field.default)
        shown = (
            "–"
            if default in (None, [], "", {})
            else f"`{', '.join(default) if isinstance(default, list) else default}`"
        )
        mark = " 🔑" if "SecretStr" in str(field.annotation) and f"{key}_file" not in keys() else ""
        out.append(f"| `{key}`{mark} | {shown} | {field.description} |")
    return "\n".join(out) + "\n"


def example() -> str:
    out, section = [EXAMPLE_HEAD], ""
    for key, field in fields():
        prefix, _, name = key.rpartition(".")
        if prefix != section:
            section = prefix
            out.append(f"\n[{prefix}]")
        assert field.description is not None, key
        out += textwrap.wrap(field.description.replace("`", ""), 100, initial_indent="# ", subsequent_indent="# ")
        default = plain(field.default)
        value = '""' if default is None else json.dumps(default)
        out += [
            f"#{line}" if i == 0 else f"#  {line}" for i, line in enumerate(textwrap.wrap(f"{name} = {value}", 110))
        ]
    return "\n".join(out) + "\n"


def test_settings_page_says_what_the_models_say() -> None:
    assert (ROOT / "docs" / "settings.md").read_text("utf-8") == settings_page(), "run: python -m tests.test_docs"


def test_example_file_says_what_the_models_say() -> None:
    assert (ROOT / "quarantine.example.toml").read_text("utf-8") == example(), "run: python -m tests.test_docs"


def test_example_file_changes_nothing_and_its_values_are_the_defaults(tmp_path: Path) -> None:
    text = (ROOT / "quarantine.example.toml").read_text("utf-8")
    assert not any(isinstance(v, dict) and v for v in tomllib.loads(text).values()), "everything is commented out"
    live: list[str] = []
    for line in text.splitlines():
        if line.startswith("#  ") and live:
            live[-1] += " " + line[3:]  # a long list goes on
        elif line.startswith("[") or (line.startswith("#") and not line.startswith("# ")):
            live.append(line.removeprefix("#"))
    path = tmp_path / "quarantine.toml"
    path.write_text("\n".join(line for line in live if not line.endswith('= ""')), "utf-8")
    assert load({"QUARANTINE_CONFIG": str(path)}) == load({"QUARANTINE_CONFIG": "/dev/null"})


def test_every_line_and_metric_that_the_operators_page_explains_is_written_somewhere() -> None:
    page = (ROOT / "docs" / "operate.md").read_text("utf-8")
    code = "".join(p.read_text("utf-8") for folder in ("portal", "digest") for p in (ROOT / folder).glob("**/*.py"))
    explained = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    for text in re.findall(r"`([^`]+)`", " ".join(explained)):
        for part in text.removeprefix("quarantine_").split("…"):
            assert part.removesuffix("id=").strip(" :") in code, text


def test_every_document_that_readme_links_to_exists() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("**/*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


if __name__ == "__main__":
    (ROOT / "docs" / "settings.md").write_text(settings_page(), "utf-8")
    (ROOT / "quarantine.example.toml").write_text(example(), "utf-8")
