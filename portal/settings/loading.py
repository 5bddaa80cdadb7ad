"""Reads the settings file, the environment and secret files, and prints the settings."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import SecretStr, ValidationError

from portal.model.domains import shown_address
from portal.model.errors import SettingsError
from portal.settings.domains import TABLES, keys_of, plain_values
from portal.settings.models import Settings
from portal.settings.values import Section, plain

PREFIX = "QUARANTINE_"
SEARCHED = (Path("quarantine.toml"), Path("/etc/rspamd-quarantine/quarantine.toml"))
_GROUPS = "staff.groups"  # a table whose keys are not settings
_OTHER_VARIABLES = {"QUARANTINE_CONFIG", "QUARANTINE_SOCKET"}  # the latter is read by uwsgi.ini


def load(environ: Mapping[str, str] | None = None) -> Settings:
    """Return the settings in effect. Raises one SettingsError that lists every problem with its source."""
    return load_from(environ)[0]


def load_from(environ: Mapping[str, str] | None = None) -> tuple[Settings, Path | None, dict[str, str]]:
    """Return the settings, their file (None without one), and the source of each key that is set, for people to read.

    Raises SettingsError as `load`.
    """
    environ = os.environ if environ is None else environ
    problems: list[str] = []
    path, values = _from_file(environ, problems)
    readable = not problems
    sources = {key: str(path) for key in _dotted_keys(values)}
    for key, (name, value) in _from_environment(environ, problems).items():
        _set_value(values, key, value)
        sources[key] = f"environment variable {name}"
    _read_secret_files(values, sources, problems)
    settings = _validated(values, sources, problems) if readable else None
    if settings is None or problems:
        raise SettingsError("\n".join(["The settings have problems:", *(f"  - {p}" for p in sorted(set(problems)))]))
    return settings, path, sources


def _validated(values: dict[str, Any], sources: Mapping[str, str], problems: list[str]) -> Settings | None:
    try:
        return Settings(**values)
    except ValidationError as error:
        found = _error_sentences(error, sources)
    problems += [text for _, text in found]
    # pydantic skips rules over several settings if one of these is invalid. Validate again without the invalid ones.
    invalid = {key for key, _ in found if key}
    rest: dict[str, Any] = {
        name: {k: v for k, v in value.items() if f"{name}.{k}" not in invalid} if isinstance(value, dict) else value
        for name, value in values.items()
        if name not in invalid
    }
    try:
        Settings(**rest)
    except ValidationError as error:
        problems += [text for _, text in _error_sentences(error, sources) if not any(key in text for key in invalid)]
    return None


def _from_file(environ: Mapping[str, str], problems: list[str]) -> tuple[Path | None, dict[str, Any]]:
    named = environ.get("QUARANTINE_CONFIG")
    path = Path(named) if named else next(filter(_may_exist, SEARCHED), None)
    if path is None:
        return None, {}
    try:
        return path, tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        problems.append(f"{path}: cannot be read: {error.strerror}")
    except UnicodeDecodeError:
        problems.append(f"{path}: is not UTF-8")
    except tomllib.TOMLDecodeError as error:
        problems.append(f"{path}: is not TOML: {error}")
    return path, {}


def _may_exist(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return True  # its folder cannot be read: report that when opening it, instead of using other settings


def _from_environment(environ: Mapping[str, str], problems: list[str]) -> dict[str, tuple[str, str]]:
    """Return dotted key → (variable, text). Unknown names are reported here, since no other check would find them."""
    known = {PREFIX + key.upper().replace(".", "__"): key for key in keys(with_files=True)}
    found = {}
    for name, value in environ.items():
        if not name.startswith(PREFIX) or name in _OTHER_VARIABLES:
            continue
        if name in known:
            found[known[name]] = (name, value)
        else:
            problems.append(f"environment variable {name}: there is no such setting{_nearest(name, known)}")
    return found


def _nearest(name: str, known: Mapping[str, str] | list[str]) -> str:
    close = difflib.get_close_matches(name, list(known), 1)
    return f" (did you mean {close[0]}?)" if close else ""


def keys(*, with_files: bool = False) -> list[str]:
    """Return all dotted setting names. ``with_files`` adds the `…_file` forms of secrets."""
    names = []
    for name, info in Settings.model_fields.items():
        model = info.annotation
        if isinstance(model, type) and issubclass(model, Section):
            for key, field in model.model_fields.items():
                names.append(f"{name}.{key}")
                if with_files and _is_secret(field.annotation) and f"{key}_file" not in model.model_fields:
                    names.append(f"{name}.{key}_file")
        else:
            names.append(name)
    return names


def _is_secret(annotation: Any) -> bool:
    return "SecretStr" in str(annotation)


def _read_secret_files(values: dict[str, Any], sources: dict[str, str], problems: list[str]) -> None:
    """Replace each ``section.key_file`` by ``section.key`` with the content of the file, without the line end."""
    for key in set(keys(with_files=True)) - set(keys()):
        section, name = key.split(".")
        table = values.get(section)
        if not isinstance(table, dict) or name not in table:
            continue
        source, named, secret = sources.pop(key, ""), table.pop(name), key.removesuffix("_file")
        if not isinstance(named, str) or not named:
            problems.append(f"{key}: expected the path of a file ({source})")
            continue
        path = Path(named)
        if secret in sources:
            problems.append(f"{key}: {secret} is set as well: use one of them ({source})")
            continue
        try:
            table[secret.split(".")[1]] = path.read_text("utf-8").rstrip("\r\n")
            sources[secret] = f"file {path}"
        except OSError as error:
            problems.append(f"{key}: {path} cannot be read: {error.strerror} ({source})")
        except ValueError:
            problems.append(f"{key}: {path} is not UTF-8 ({source})")


def _dotted_keys(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    out: list[str] = []
    for key, value in values.items():
        inner = isinstance(value, dict) and prefix + key not in (*TABLES, _GROUPS)
        out += _dotted_keys(value, f"{prefix}{key}.") if inner else [prefix + key]
    return out


def _set_value(values: dict[str, Any], key: str, value: Any) -> None:
    section, _, name = key.rpartition(".")
    table = values.setdefault(section, {}) if section else values
    if isinstance(table, dict):  # otherwise the file has another type in place of the table, which is reported later
        table[name] = value


def _error_sentences(error: ValidationError, sources: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return for each error its key and a sentence with the source.

    For a rule over several settings of a section the key is that of the section.
    """
    known = keys(with_files=True)
    out = []
    for item in error.errors(include_url=False, include_input=False):
        where, kind, message = [str(part) for part in item["loc"]], item["type"], item["msg"]
        table = next((key for key in TABLES if ".".join(where).startswith(f"{key}.")), "")
        depth = len(table.split(".")) if table else len(where)
        where, inside = where[:depth], where[depth:]
        while len(where) > 1 and kind != "extra_forbidden" and ".".join(where) not in known:
            where.pop()  # an index into a list
        key = ".".join(where)
        full = ".".join([key, *(f'"{name}"' for name in inside[:1]), *inside[1:2]])
        if kind == "extra_forbidden":
            near = _nearest(inside[1], keys_of(table)) if inside else _nearest(key, known)
            message = f"there is no such setting{near}"
        elif kind in ("model_type", "model_attributes_type", "dict_type"):
            message = f"expected a table, written [{full}]"
        message = message.removeprefix("Value error, ")
        if kind == "value_error" and key not in known:
            named = [name for name in sources if name in message]  # the message of such a rule has the names
        else:
            named = [name for name in sources if f"{name}.".startswith(f"{key}.")]
            message = f"{full}: {message}"
        where_from = ", ".join(dict.fromkeys(sources[name] for name in named))
        out.append((key, f"{message.removesuffix('.')} ({where_from})" if where_from else message))
    return out


def masked(settings: Settings) -> dict[str, Any]:
    """Return all settings by dotted key, for printing. Secrets, and passwords in URLs, are replaced by stars."""
    out: dict[str, Any] = {}
    for key in keys():
        value: Any = settings
        for part in key.split("."):
            value = getattr(value, part)
        if isinstance(value, SecretStr):
            value = mask_url(value.get_secret_value()) if key.endswith(".url") else "********"
        elif key == "local_domains":
            value = [shown_address(name) for name in value]
        elif isinstance(value, tuple):
            value = ["********" if isinstance(v, SecretStr) else str(plain(v)) for v in value]
        elif key == _GROUPS:
            value = {name: [f"{role}:{host}".rstrip(":") for role, host in roles] for name, roles in value.items()}
        elif key in TABLES:
            value = {shown_address(name): plain_values(table) for name, table in value.items()}
        elif isinstance(value, Path):
            value = str(value)
        out[key] = value
    return out


def mask_url(url: str) -> str:
    """Return a URL with stars instead of the passwords in it."""
    # Not with urlsplit: libpq accepts passwords that contain # and ?, at which urlsplit ends the host, and [, at which
    # it fails. libpq also accepts passwords as a parameter after the question mark.
    url = re.sub(r"^([a-z]+://[^:/@]*:)[^/]*@", r"\1********@", url, flags=re.IGNORECASE)
    return re.sub(r"([?&][a-z]*password=)[^&]*", r"\1********", url)
