"""Settings: one TOML file, ``QUARANTINE_SECTION__KEY`` variables above it, secrets also from files.

The only reader of the environment. `load()` either returns a frozen `Settings` or raises one `SettingsError` that
lists *every* problem with its source, unknown names included, so that an administrator mends a file once. Names,
defaults and help stand in the models; docs/settings.md and quarantine.example.toml are tested against them.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from datetime import time
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)

from portal.model.domains import shown_address
from portal.model.errors import SettingsError
from portal.model.links import KEY_BYTES
from portal.model.message import domain, identity
from portal.model.schedule import MAX_TIMES, Schedule
from portal.model.store_url import StoreUrl
from portal.model.text import TAGS, Tag

PREFIX = "QUARANTINE_"
SEARCHED = (Path("quarantine.toml"), Path("/etc/rspamd-quarantine/quarantine.toml"))
_TABLES = "digest.domains"  # the one setting that is a table of tables
_OTHER_VARIABLES = {"QUARANTINE_CONFIG", "QUARANTINE_SOCKET"}  # the latter is read by uwsgi.ini


def _network(value: Any) -> IPv4Network | IPv6Network:
    try:
        return ip_network(value)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{value!r} is not a network like 192.0.2.0/24 or 2001:db8::/32") from error


def _relay_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ValueError("the host is wrong, or the port is not a number from 1 to 65535") from error
    if parts.scheme not in ("smtp", "smtps", "lmtp") or not parts.hostname or any(c.isspace() for c in url):
        raise ValueError("expected smtp://host:port, smtps://user:password@host:port or lmtp://host:port")
    if port == 0 or parts.path.strip("/") or parts.query or parts.fragment:
        raise ValueError("expected scheme://[user:password@]host[:port] and nothing behind it")
    if bool(parts.username) != bool(parts.password):
        raise ValueError("a user needs a password and the other way round; write @ : / in them as %40 %3A %2F")
    return url


def _address(address: str) -> str:
    # What needs no quoting and no SMTPUTF8: it stands in the headers of our own mail.
    if not re.fullmatch(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]+@([A-Za-z0-9.-]+|\[[A-Za-z0-9.:]+\])", address):
        raise ValueError(
            "expected one mail address like quarantine@example.org, a domain beyond ASCII in its xn-- form"
        )
    return address


def _words(value: Any) -> Any:
    """Lists may be written with commas in environment variables."""
    return [word.strip() for word in value.split(",") if word.strip()] if isinstance(value, str) else value


Network = Annotated[IPv4Network | IPv6Network, PlainValidator(_network)]
MailAddress = Annotated[str, AfterValidator(_address)]
Words = Annotated[tuple[str, ...], BeforeValidator(_words)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class StoreSettings(Section):
    """Where mail is kept."""

    url: SecretStr = Field(
        SecretStr("files:var/quarantine"),
        description="`files:PATH`, `files:///abs/path` or `postgresql://user:password@host/database`.",
    )
    retention_days: int = Field(30, ge=1, le=3650, description="Mail is removed this many days after it was held.")

    @field_validator("url")
    @classmethod
    def _known(cls, url: SecretStr) -> SecretStr:
        StoreUrl.parse(url.get_secret_value())
        return url

    @property
    def place(self) -> StoreUrl:
        """Where the store is."""
        return StoreUrl.parse(self.url.get_secret_value())


class ExporterSettings(Section):
    """What Rspamd may post and what of it is held."""

    user: str | None = Field(None, description="HTTP Basic user, as in Rspamd's rule.")
    password: SecretStr | None = Field(
        None, description="HTTP Basic password. Without one only loopback networks are accepted."
    )
    allowed_networks: Annotated[tuple[Network, ...], BeforeValidator(_words)] = Field(
        (IPv4Network("127.0.0.0/8"), IPv6Network("::1/128")),
        description="Peers that may post, as CIDR networks.",
    )
    max_body_bytes: int = Field(
        80 * 2**20,
        ge=2**16,
        le=2**31,
        description="Larger posts are answered 413, also when only unpacked larger.",
    )
    only_symbols: Words = Field(
        (), description="Hold only mail with at least one of these symbols; empty: all. `*` and `?` work."
    )
    hold_actions: Words = Field(
        ("reject", "discard"),
        description="Hold only mail that Rspamd withholds with one of these actions. `quarantine` mail also stays in "
        "Postfix's hold queue; `add header` and `rewrite subject` mail is delivered as well.",
    )

    @field_validator("hold_actions")
    @classmethod
    def _as_exported(cls, actions: tuple[str, ...]) -> tuple[str, ...]:
        # Rspamd's own configuration says add_header for what it calls "add header" in every answer.
        return tuple(action.lower().replace("_", " ") for action in actions)

    @model_validator(mode="after")
    def _guarded(self) -> ExporterSettings:
        if (self.user is None) != (self.password is None):
            raise ValueError("exporter.user and exporter.password go together: set both or neither")
        if self.password is not None and not self.password.get_secret_value():
            raise ValueError("exporter.password is empty")
        if self.user is not None and (not self.user or ":" in self.user):
            raise ValueError("exporter.user is empty or has a colon, which HTTP Basic cannot carry (RFC 7617, 2)")
        if self.password is None and not all(network.is_loopback for network in self.allowed_networks):
            raise ValueError(
                "exporter.allowed_networks reaches beyond this host, so exporter.user and exporter.password are needed"
            )
        return self


class RelaySettings(Section):
    """Where released mail goes."""

    url: SecretStr = Field(
        SecretStr("smtp://127.0.0.1:10025"),
        description="`smtp://`, `smtps://` or `lmtp://`, with user and password in it where needed: a listener that "
        "does not scan again.",
    )
    _check = field_validator("url")(classmethod(lambda cls, url: SecretStr(_relay_url(url.get_secret_value()))))


class MailSettings(Section):
    """How the portal sends mail of its own."""

    url: SecretStr = Field(SecretStr("smtp://127.0.0.1:25"), description="Digests and sign-in mail go here.")
    from_address: MailAddress | None = Field(
        None, description="The From of digests and sign-in mail. Needed once local_domains is set."
    )
    admin_address: MailAddress | None = Field(None, description="Gets the requests for dangerous mail, and alarms.")
    _check = field_validator("url")(classmethod(lambda cls, url: SecretStr(_relay_url(url.get_secret_value()))))


def _zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:
        raise ValueError(f"unknown time zone {name!r}: use a name like Europe/Berlin") from error
    return name


def _one_or_more(value: Any) -> Any:
    value = _words(value)
    return (value,) if isinstance(value, time) else value


def _hours(at: tuple[time, ...]) -> tuple[time, ...]:
    if any(each.tzinfo or each.second or each.microsecond for each in at):
        raise ValueError("expected HH:MM, without seconds and time zone")
    if not 1 <= len(at) <= MAX_TIMES:
        raise ValueError(f"expected one to {MAX_TIMES} hours of the day")
    return tuple(sorted(set(at)))


def _only_in_the_file(value: Any) -> Any:
    if isinstance(value, str):
        raise ValueError('expected tables like [digest.domains."example.net"], which only the file can hold')
    return value


Hours = Annotated[tuple[time, ...], BeforeValidator(_one_or_more), AfterValidator(_hours)]
ZoneName = Annotated[str, AfterValidator(_zone)]


class DomainDigest(Section):
    """Defaults for the recipients of one domain; what is not set is as for all."""

    at: Hours | None = None
    timezone: ZoneName | None = None
    schedule: Schedule | None = None
    language: Tag | None = None


class DigestSettings(Section):
    """The mail that tells recipients what is held. These are defaults: each recipient may choose for themselves."""

    at: Hours = Field(
        (time(7, 0),), description=f"When digests go out, HH:MM in `timezone`; up to {MAX_TIMES} times a day."
    )
    timezone: ZoneName = Field("UTC", description="An IANA name, like `Europe/Berlin`.")
    schedule: Schedule = Field(
        Schedule.DAILY,
        description="On which days: `daily`, `weekdays` (Monday to Friday), one day of the week like `monday`, or "
        "`never`.",
    )
    language: Tag = Field(
        "en",
        description=f"Language of digests, mails and pages: {', '.join(f'`{tag}`' for tag in TAGS)}. Where nobody is "
        "known yet, pages speak the browser's.",
    )
    domains: Annotated[dict[str, DomainDigest], BeforeValidator(_only_in_the_file)] = Field(
        {},
        description="Other defaults for the recipients of one domain: `at`, `timezone`, `schedule`, `language` in a "
        'table `[digest.domains."example.net"]`, in the file only.',
    )
    max_rows: int = Field(50, ge=1, le=500, description="Rows in one digest; the rest is named by number.")
    connections: int = Field(
        8, ge=1, le=32, description="Connections to the mail server over which a host sends digests at the same time."
    )
    per_minute: int = Field(
        0, ge=0, le=1_000_000, description="Digests that a host sends in a minute at most; 0: as fast as it goes."
    )
    overdue_minutes: int = Field(
        60,
        ge=5,
        le=1440,
        description="Digests that wait for longer are overdue: `/metrics`, `quarantine check` and one mail to "
        "`mail.admin_address` say so.",
    )

    @field_validator("domains")
    @classmethod
    def _as_stored(cls, domains: dict[str, DomainDigest]) -> dict[str, DomainDigest]:
        found: dict[str, DomainDigest] = {}
        for name, values in domains.items():
            if domain(name) in found:
                raise ValueError(f'"{name}" is the second table of one domain: write one table')
            found[domain(name)] = values
        return found


class LinksSettings(Section):
    """Signed links."""

    keys: Annotated[tuple[SecretStr, ...], BeforeValidator(_words)] = Field(
        (), description="Signing keys, oldest to newest, at least 32 bytes each. Better: `keys_file`."
    )
    keys_file: Path | None = Field(
        None,
        description="A file with one key a line, oldest to newest, mode 0600; made on first start. Default: "
        "`links.keys` in the file store's folder, `var/quarantine/links.keys` with PostgreSQL.",
    )
    confirm: Literal["auto", "button"] = Field(
        "auto",
        description="`auto`: pages may submit themselves by the rules in docs/security.md; `button`: never.",
    )
    autosubmit_after_minutes: int = Field(
        10, ge=1, le=1440, description="How old a digest must be before a link may submit itself."
    )
    lifetime_days: int = Field(14, ge=1, le=90, description="Links are valid for this long.")

    @model_validator(mode="after")
    def _usable(self) -> LinksSettings:
        if self.keys and self.keys_file is not None:
            raise ValueError("links.keys and links.keys_file are both set: use one of them")
        if any(len(key.get_secret_value().encode()) < KEY_BYTES for key in self.keys):
            raise ValueError(f"links.keys: each signing key needs at least {KEY_BYTES} bytes")
        return self


class PeopleSettings(Section):
    """Whose mail it is, beyond one mailbox for each address; docs/people.md tells how."""

    alias_file: Path | None = Field(
        None,
        description="A Postfix virtual alias table in its text form, like `/etc/postfix/virtual`: whose mail aliases "
        "and role mailboxes are. Read again when it changes.",
    )
    recipient_delimiter: str = Field(
        "",
        max_length=8,
        description="As Postfix has it: with `+` mail for alice+shop@example.org is alice@example.org's, from then on.",
    )
    origin: str | None = Field(
        None, description="Postfix's `myorigin`: the domain of names in `alias_file` that have none."
    )

    @field_validator("recipient_delimiter")
    @classmethod
    def _splits(cls, delimiter: str) -> str:
        if any(c.isalnum() or c.isspace() or not c.isascii() or c in '@."\\' for c in delimiter):
            raise ValueError("expected signs like + or -, as in Postfix's recipient_delimiter")
        return delimiter

    @field_validator("origin")
    @classmethod
    def _host(cls, origin: str | None) -> str | None:
        if origin is not None and (not origin or any(c.isspace() or c in "@/:$" for c in origin)):
            raise ValueError("expected a domain like example.org (not $mydomain)")
        return origin and domain(origin)


class SiteSettings(Section):
    """How the quarantine looks; docs/customise.md tells what can be replaced."""

    name: str = Field(
        "",
        max_length=60,
        description="What recipients know the quarantine by, in the From of its mail and on its pages. Default: Mail "
        "quarantine, and a From without a name.",
    )
    folder: Path | None = Field(
        None,
        description="A folder of the site's own: what lies in its `templates` is used instead of the file of the same "
        "name of ours.",
    )

    @field_validator("name")
    @classmethod
    def _plain(cls, name: str) -> str:
        if any(not c.isprintable() or c in '"<>\\' for c in name):
            raise ValueError('may not contain " < > \\ and line breaks: it stands in a mail header')
        return name.strip()


class TiersSettings(Section):
    """Which symbols make mail more than a nuisance. Names may hold `*` and `?`."""

    # Rspamd 3.4 to 4.1: plugins/antivirus.lua and lualib/lua_scanners (a scanner without `symbol` is named after its
    # rule), plugins/phishing.lua, scores.d and composites.conf. No `*VIRUS*`: CLAM_VIRUS_FAIL says nothing of the mail.
    dangerous_symbols: Words = Field(
        (
            "VIRUS", "*_VIRUS", "*_MALWARE", "CLAMAV", "ESET", "DRWEB", "SOPHOS", "AVAST", "FPROT", "SAVAPI",
            "KASPERSKY", "KASPERSKY_SE", "VIRUSTOTAL", "METADEFENDER", "ICAP", "OLETOOLS", "EICAR", "JUST_EICAR",
            "PHISHING", "*_PHISHING", "PHISHED_URL", "PHISHED_OPENPHISH", "PHISHED_PHISHTANK",
            "PHISHED_GENERIC_SERVICE", "PHISH_EMOTION", "*_PHISH", "DBL_BOTNET", "DBL_ABUSE_BOTNET", "PH_SURBL_MULTI",
            "MW_SURBL_MULTI",
        ),
        description="Their recipients may only ask an administrator for it.",
    )  # fmt: skip
    # plugins/mime_types.lua and antivirus.lua, rules/misc.lua, rules/headers_checks.lua, lualib/lua_content/pdf.lua,
    # scores.d. FORGED_SENDER_MAILLIST and its like are excuses, not accusations, so no `FORGED_*`.
    suspicious_symbols: Words = Field(
        (
            "*_ENCRYPTED", "*_MACRO", "MIME_ENCRYPTED_ARCHIVE", "MIME_OBFUSCATED_ARCHIVE", "MIME_ARCHIVE_IN_ARCHIVE",
            "MIME_EXE_IN_GEN_SPLIT_RAR", "MIME_BAD_EXTENSION", "MIME_DOUBLE_BAD_EXTENSION", "MIME_BAD_ATTACHMENT",
            "MIME_BAD_UNICODE", "PDF_JAVASCRIPT", "PDF_SUSPICIOUS", "SPOOF_DISPLAY_NAME", "SPOOF_REPLYTO",
            "FROM_NEQ_DISPLAY_NAME", "FREEMAIL_REPLYTO_NEQ_FROM_DOM", "DMARC_POLICY_REJECT", "DMARC_POLICY_QUARANTINE",
            "BLACKLIST_DMARC", "OMOGRAPH_URL", "R_SUSPICIOUS_URL", "HTTP_TO_IP", "ZERO_FONT", "DATA_URI_OBFU",
            "LEAKED_PASSWORD_SCAM", "VADE_SCAM", "VADE_SUSPECT", "CRACKED_SURBL", "ABUSE_SURBL",
        ),
        description="Released by a pressed button only.",
    )  # fmt: skip


class Settings(Section):
    public_url: str = Field(
        "http://127.0.0.1:8080/quarantine",
        description="Where recipients reach the portal; its path is the mount point.",
    )
    local_domains: Words = Field(
        (),
        description="Only recipients in these domains are mailed or may sign in; whole addresses are allowed too (a "
        "pilot group). Mail for others is kept for operators. An international domain may be written with or without "
        "`xn--`.",
    )
    store: StoreSettings = StoreSettings()
    exporter: ExporterSettings = ExporterSettings()
    relay: RelaySettings = RelaySettings()
    mail: MailSettings = MailSettings()
    digest: DigestSettings = DigestSettings()
    links: LinksSettings = LinksSettings()
    tiers: TiersSettings = TiersSettings()
    people: PeopleSettings = PeopleSettings()
    site: SiteSettings = SiteSettings()

    @field_validator("public_url")
    @classmethod
    def _absolute(cls, url: str) -> str:
        # The path is also the cookies' and stands in every page, so it is kept to what needs no quoting anywhere.
        if not re.fullmatch(r"https?://(\[[0-9a-f:.]+\]|[\w.-]+)(:[0-9]{1,5})?(/[\w.~-]+)*/?", url, re.I | re.A):
            raise ValueError(
                "expected an address like https://mail.example.org/quarantine, a host beyond ASCII in its xn-- form"
            )
        try:
            parts = urlsplit(url)
            parts.port  # noqa: B018 - it is looked at only when it is asked for
            host = parts.hostname or ""
            if ":" not in host and not all(0 < len(label) < 64 for label in host.removesuffix(".").split(".")):
                raise ValueError("a label of the host name is empty or longer than 63 characters (RFC 1035, 2.3.4)")
        except ValueError as error:
            raise ValueError("its host name or its port cannot be: expected https://mail.example.org:443/…") from error
        return url.rstrip("/")

    @field_validator("local_domains")
    @classmethod
    def _as_stored(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            host = name.rpartition("@")[2]
            if not host or any(c.isspace() or c in "/:*" for c in name) or name.startswith("@"):
                raise ValueError(f"{name!r} is neither a domain like example.org nor an address like me@example.org")
        return tuple(dict.fromkeys(identity(name) if "@" in name else domain(name) for name in names))

    @model_validator(mode="after")
    def _sender_known(self) -> Settings:
        if self.local_domains and self.mail.from_address is None:
            raise ValueError("mail.from_address is needed once local_domains is set: digests are sent from it")
        return self

    @model_validator(mode="after")
    def _domains_local(self) -> Settings:
        ours = {domain(name) for name in self.local_domains}
        for name in self.digest.domains:
            if name not in ours:
                raise ValueError(f'digest.domains."{shown_address(name)}": there is no such domain in local_domains')
        return self

    def is_local(self, address: str) -> bool:
        """Whether the portal may mail this recipient and let them sign in."""
        recipient = identity(address)
        return "@" in recipient and (recipient in self.local_domains or domain(recipient) in self.local_domains)


def load(environ: Mapping[str, str] | None = None) -> Settings:
    """The settings in effect. Raises SettingsError that lists every problem with its source."""
    return load_from(environ)[0]


def load_from(environ: Mapping[str, str] | None = None) -> tuple[Settings, Path | None, dict[str, str]]:
    """Settings, the file they came from (None: there was none), and each set key's source in words."""
    environ = os.environ if environ is None else environ
    problems: list[str] = []
    path, values = _from_file(environ, problems)
    readable = not problems
    sources = {key: str(path) for key in _leaves(values)}
    for key, (name, value) in _from_environment(environ, problems).items():
        _put(values, key, value)
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
        found = _in_words(error, sources)
    problems += [text for _, text in found]
    # Rules over several settings are not looked at while one of these is wrong. Look again without the wrong ones.
    wrong = {key for key, _ in found if key}
    rest: dict[str, Any] = {
        name: {k: v for k, v in value.items() if f"{name}.{k}" not in wrong} if isinstance(value, dict) else value
        for name, value in values.items()
        if name not in wrong
    }
    try:
        Settings(**rest)
    except ValidationError as error:
        problems += [text for _, text in _in_words(error, sources) if not any(key in text for key in wrong)]
    return None


def _from_file(environ: Mapping[str, str], problems: list[str]) -> tuple[Path | None, dict[str, Any]]:
    named = environ.get("QUARANTINE_CONFIG")
    path = Path(named) if named else next(filter(_is_there, SEARCHED), None)
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


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return True  # in a folder closed to us: say so instead of running with other settings


def _from_environment(environ: Mapping[str, str], problems: list[str]) -> dict[str, tuple[str, str]]:
    """Dotted key → (variable, text). An unknown name is a problem here, since nothing else would look at it."""
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
    """All dotted setting names; ``with_files`` adds the `…_file` forms of the secret ones."""
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
    """Replace ``section.key_file`` by ``section.key`` with what the file holds, without the line end."""
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


def _leaves(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    out: list[str] = []
    for key, value in values.items():
        inner = isinstance(value, dict) and prefix + key != _TABLES
        out += _leaves(value, f"{prefix}{key}.") if inner else [prefix + key]
    return out


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    section, _, name = key.rpartition(".")
    table = values.setdefault(section, {}) if section else values
    if isinstance(table, dict):  # else the file has something else where a table should be: a problem of its own
        table[name] = value


def _in_words(error: ValidationError, sources: Mapping[str, str]) -> list[tuple[str, str]]:
    """What is wrong: the key, or section for a rule over several of its settings, and a sentence with the source."""
    known = keys(with_files=True)
    out = []
    for item in error.errors(include_url=False, include_input=False):
        where, kind, message = [str(part) for part in item["loc"]], item["type"], item["msg"]
        where, inside = (where[:2], where[2:]) if ".".join(where[:2]) == _TABLES else (where, [])
        while len(where) > 1 and kind != "extra_forbidden" and ".".join(where) not in known:
            where.pop()  # an index into a list
        key = ".".join(where)
        full = ".".join([key, *(f'"{name}"' for name in inside[:1]), *inside[1:2]])
        if kind == "extra_forbidden":
            near = _nearest(inside[1], list(DomainDigest.model_fields)) if inside else _nearest(key, known)
            message = f"there is no such setting{near}"
        elif kind in ("model_type", "model_attributes_type", "dict_type"):
            message = f"expected a table, written [{full}]"
        message = message.removeprefix("Value error, ")
        if kind == "value_error" and key not in known:
            named = [name for name in sources if name in message]  # such a rule names its settings itself
        else:
            named = [name for name in sources if f"{name}.".startswith(f"{key}.")]
            message = f"{full}: {message}"
        where_from = ", ".join(dict.fromkeys(sources[name] for name in named))
        out.append((key, f"{message} ({where_from})" if where_from else message))
    return out


def masked(settings: Settings) -> dict[str, Any]:
    """All settings by dotted key, printable: secrets as stars, passwords in addresses too."""
    out: dict[str, Any] = {}
    for key in keys():
        value: Any = settings
        for part in key.split("."):
            value = getattr(value, part)
        if isinstance(value, SecretStr):
            value = _mask_url(value.get_secret_value()) if key.endswith(".url") else "********"
        elif key == "local_domains":
            value = [shown_address(name) for name in value]
        elif isinstance(value, tuple):
            value = ["********" if isinstance(v, SecretStr) else _plain(v) for v in value]
        elif key == _TABLES:
            value = {shown_address(name): _chosen(table) for name, table in value.items()}
        elif isinstance(value, Path):
            value = str(value)
        out[key] = value
    return out


def _chosen(table: DomainDigest) -> dict[str, Any]:
    values = table.model_dump(exclude_none=True)
    return {key: [_plain(v) for v in value] if key == "at" else _plain(value) for key, value in values.items()}


def _plain(value: Any) -> str:
    return f"{value:%H:%M}" if isinstance(value, time) else str(value)


def _mask_url(url: str) -> str:
    # Not by urlsplit: libpq takes passwords with # and ? in them, where that sees the host end, and with [, where it
    # fails. It also takes passwords behind the question mark.
    url = re.sub(r"^([a-z]+://[^:/@]*:)[^/]*@", r"\1********@", url, flags=re.IGNORECASE)
    return re.sub(r"([?&][a-z]*password=)[^&]*", r"\1********", url)
