"""Settings: one TOML file, ``QUARANTINE_SECTION__KEY`` variables that override it, secrets also from files.

The only reader of the environment. `load()` either returns a frozen `Settings` or raises one `SettingsError` that
lists *every* problem with its source, unknown names included, so that an administrator can fix all of them at once.
The models have names, defaults and descriptions; docs/settings.md and quarantine.example.toml are tested against them.
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
from portal.model.message import ACTIONS, domain, identity
from portal.model.schedule import MAX_TIMES, Schedule
from portal.model.store_url import StoreUrl
from portal.model.text import TAGS, Tag

PREFIX = "QUARANTINE_"
SEARCHED = (Path("quarantine.toml"), Path("/etc/rspamd-quarantine/quarantine.toml"))
_TABLES = "digest.domains"  # the only setting that is a table of tables
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
        raise ValueError("the host is invalid, or the port is not a number from 1 to 65535") from error
    if parts.scheme not in ("smtp", "smtps", "lmtp") or not parts.hostname or any(c.isspace() for c in url):
        raise ValueError("expected smtp://host:port, smtps://user:password@host:port or lmtp://host:port")
    if port == 0 or parts.path.strip("/") or parts.query or parts.fragment:
        raise ValueError("expected scheme://[user:password@]host[:port] and nothing after it")
    if bool(parts.username) != bool(parts.password):
        raise ValueError("give both a user and a password, or neither; write @ : / in them as %40 %3A %2F")
    return url


def _address(address: str) -> str:
    # Only addresses that need no quoting and no SMTPUTF8, since they are in the headers of the portal's own mail.
    if not re.fullmatch(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]+@([A-Za-z0-9.-]+|\[[A-Za-z0-9.:]+\])", address):
        raise ValueError(
            "expected one mail address like quarantine@example.org; write an international domain in its xn-- form"
        )
    return address


def _words(value: Any) -> Any:
    """Split a string at commas: environment variables have no other form of lists."""
    return [word.strip() for word in value.split(",") if word.strip()] if isinstance(value, str) else value


Network = Annotated[IPv4Network | IPv6Network, PlainValidator(_network)]
MailAddress = Annotated[str, AfterValidator(_address)]
Words = Annotated[tuple[str, ...], BeforeValidator(_words)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class StoreSettings(Section):
    """Storage of held messages."""

    url: SecretStr = Field(
        SecretStr("files:var/quarantine"),
        description="`files:PATH`, `files:///abs/path` or `postgresql://user:password@host/database`.",
    )
    retention_days: int = Field(
        30,
        ge=1,
        le=3650,
        description="Messages are removed this many days after they were held. In PostgreSQL they may stay for a 45th "
        "of that longer, at least for a day.",
    )

    @field_validator("url")
    @classmethod
    def _known(cls, url: SecretStr) -> SecretStr:
        StoreUrl.parse(url.get_secret_value())
        return url

    @property
    def place(self) -> StoreUrl:
        """The parsed URL."""
        return StoreUrl.parse(self.url.get_secret_value())


class ExporterSettings(Section):
    """Posts of Rspamd's metadata exporter: which are accepted, and which messages are held."""

    user: str | None = Field(None, description="User name for HTTP Basic authentication, as in Rspamd's rule.")
    password: SecretStr | None = Field(
        None,
        description="Password for HTTP Basic authentication. Without one, `allowed_networks` accepts loopback networks "
        "only.",
    )
    allowed_networks: Annotated[tuple[Network, ...], BeforeValidator(_words)] = Field(
        (IPv4Network("127.0.0.0/8"), IPv6Network("::1/128")),
        description="Networks of hosts that may post, in CIDR notation.",
    )
    max_body_bytes: int = Field(
        80 * 2**20,
        ge=2**16,
        le=2**31,
        description="Posts whose body is larger, before or after decompression, are answered with status 413.",
    )
    only_symbols: Words = Field(
        (),
        description="Hold only messages with at least one of these symbols; empty: all messages. `*` and `?` are "
        "wildcards.",
    )
    hold_actions: Words = Field(
        ("reject", "discard"),
        description="Hold only messages to which Rspamd applied one of these actions. Messages with `quarantine` also "
        "stay in Postfix's hold queue; messages with `add header` and `rewrite subject` are also delivered.",
    )

    @field_validator("hold_actions")
    @classmethod
    def _as_exported(cls, actions: tuple[str, ...]) -> tuple[str, ...]:
        # Rspamd's configuration has "add_header" for the action that its replies call "add header".
        names = tuple(action.lower().replace("_", " ") for action in actions)
        for name in names:
            if name not in ACTIONS:
                raise ValueError(f"{name!r} is not an action of Rspamd; these are: {', '.join(ACTIONS)}")
        return names

    @model_validator(mode="after")
    def _guarded(self) -> ExporterSettings:
        if (self.user is None) != (self.password is None):
            raise ValueError("exporter.user and exporter.password go together: set both or neither")
        if self.password is not None and not self.password.get_secret_value():
            raise ValueError("exporter.password is empty")
        if self.user is not None and (not self.user or ":" in self.user):
            raise ValueError("exporter.user is empty or has a colon, which HTTP Basic does not allow (RFC 7617, 2)")
        if self.password is None and not all(network.is_loopback for network in self.allowed_networks):
            raise ValueError(
                "exporter.allowed_networks includes other hosts, so exporter.user and exporter.password are needed"
            )
        return self


class RelaySettings(Section):
    """The mail server for released messages."""

    url: SecretStr = Field(
        SecretStr("smtp://127.0.0.1:10025"),
        description="A listener that does not scan again: `smtp://HOST:PORT`, `smtps://…` or `lmtp://…`, with "
        "`USER:PASSWORD@` before the host if it needs a login.",
    )
    _check = field_validator("url")(classmethod(lambda cls, url: SecretStr(_relay_url(url.get_secret_value()))))


class MailSettings(Section):
    """The portal's own mail: digests, sign-in mail, notifications and alarms."""

    url: SecretStr = Field(SecretStr("smtp://127.0.0.1:25"), description="The mail server, written like `relay.url`.")
    from_address: MailAddress | None = Field(None, description="The From address. Required if `local_domains` is set.")
    admin_address: MailAddress | None = Field(
        None, description="The administrator, who gets release requests for dangerous messages, and alarms."
    )
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
        raise ValueError(f"expected one to {MAX_TIMES} times of day")
    return tuple(sorted(set(at)))


def _only_in_the_file(value: Any) -> Any:
    if isinstance(value, str):
        raise ValueError('expected tables like [digest.domains."example.net"], which only the file can have')
    return value


Hours = Annotated[tuple[time, ...], BeforeValidator(_one_or_more), AfterValidator(_hours)]
ZoneName = Annotated[str, AfterValidator(_zone)]


class DomainDigest(Section):
    """Defaults for the recipients of one domain. Values that are not set are those of `DigestSettings`."""

    at: Hours | None = None
    timezone: ZoneName | None = None
    schedule: Schedule | None = None
    language: Tag | None = None


class DigestSettings(Section):
    """Digests, the mails that list held messages. Recipients can choose other times, days, time zones and languages."""

    at: Hours = Field(
        (time(7, 0),), description=f"Times at which digests are sent, HH:MM in `timezone`, up to {MAX_TIMES} a day."
    )
    timezone: ZoneName = Field("UTC", description="An IANA time zone like `Europe/Berlin`.")
    schedule: Schedule = Field(
        Schedule.DAILY,
        description="Days on which digests are sent: `daily`, `weekdays` (Monday to Friday), a day of the week like "
        "`monday`, or `never`.",
    )
    language: Tag = Field(
        "en",
        description=f"Language of digests, other mail and pages: {', '.join(f'`{tag}`' for tag in TAGS)}. Before a "
        "recipient has signed in or opened a link, pages use the browser's language.",
    )
    domains: Annotated[dict[str, DomainDigest], BeforeValidator(_only_in_the_file)] = Field(
        {},
        description="Other defaults for the recipients of one domain: `at`, `timezone`, `schedule`, `language` in a "
        'table `[digest.domains."example.net"]`, in the file only.',
    )
    max_rows: int = Field(
        50, ge=1, le=500, description="Maximum number of rows in a digest. It shows how many messages are left out."
    )
    connections: int = Field(
        8, ge=1, le=32, description="Number of connections over which a host sends digests concurrently."
    )
    per_minute: int = Field(
        0, ge=0, le=1_000_000, description="Maximum number of digests that a host sends in a minute; 0: no limit."
    )
    overdue_minutes: int = Field(
        60,
        ge=5,
        le=1440,
        description="Digests that are due for longer are overdue: `/metrics` and `quarantine check` report it, and "
        "`mail.admin_address` gets one mail.",
    )

    @field_validator("domains")
    @classmethod
    def _as_stored(cls, domains: dict[str, DomainDigest]) -> dict[str, DomainDigest]:
        by_domain: dict[str, DomainDigest] = {}
        for name, values in domains.items():
            if domain(name) in by_domain:
                raise ValueError(f'"{name}" is the second table of one domain: write one table')
            by_domain[domain(name)] = values
        return by_domain


class LinksSettings(Section):
    """Signed links."""

    keys: Annotated[tuple[SecretStr, ...], BeforeValidator(_words)] = Field(
        (), description="Signing keys, oldest to newest, at least 32 bytes each. Prefer `keys_file`."
    )
    keys_file: Path | None = Field(
        None,
        description="A file with one key a line, oldest to newest, mode 0600; created at the first start. Default: "
        "`links.keys` in the file store's folder, `var/quarantine/links.keys` with PostgreSQL.",
    )
    confirm: Literal["auto", "button"] = Field(
        "auto",
        description="`auto`: the page that a link opens may submit itself, by the rules in docs/security.md; `button`: "
        "each action needs a press of a button.",
    )
    autosubmit_after_minutes: int = Field(
        10, ge=1, le=1440, description="Minimum age of a digest before pages opened from it may submit themselves."
    )
    lifetime_days: int = Field(14, ge=1, le=90, description="Days for which a link is valid.")

    @model_validator(mode="after")
    def _usable(self) -> LinksSettings:
        if self.keys and self.keys_file is not None:
            raise ValueError("links.keys and links.keys_file are both set: use one of them")
        if any(len(key.get_secret_value().encode()) < KEY_BYTES for key in self.keys):
            raise ValueError(f"links.keys: each signing key needs at least {KEY_BYTES} bytes")
        return self


class PeopleSettings(Section):
    """Aliases, role mailboxes and address extensions; see docs/people.md."""

    alias_file: Path | None = Field(
        None,
        description="A Postfix virtual alias table in its text form, like `/etc/postfix/virtual`. It says who reads "
        "the messages for aliases and role mailboxes, and is read again when it changes.",
    )
    recipient_delimiter: str = Field(
        "",
        max_length=8,
        description="Postfix's `recipient_delimiter`. With `+` messages for alice+shop@example.org belong to "
        "alice@example.org. Messages that are already held keep their recipient.",
    )
    origin: str | None = Field(
        None, description="Postfix's `myorigin`: the domain of names in `alias_file` that have no domain."
    )

    @field_validator("recipient_delimiter")
    @classmethod
    def _splits(cls, delimiter: str) -> str:
        if any(c.isalnum() or c.isspace() or not c.isascii() or c in '@."\\' for c in delimiter):
            raise ValueError("expected characters like + or -, as in Postfix's recipient_delimiter")
        return delimiter

    @field_validator("origin")
    @classmethod
    def _host(cls, origin: str | None) -> str | None:
        if origin is not None and (not origin or any(c.isspace() or c in "@/:$" for c in origin)):
            raise ValueError("expected a domain like example.org (not $mydomain)")
        return origin and domain(origin)


class SiteSettings(Section):
    """Name and templates of the site; see docs/customise.md."""

    name: str = Field(
        "",
        max_length=60,
        description="Name of the quarantine on pages and in the From header of its mail. Default: Mail quarantine, and "
        "a From header without a name.",
    )
    folder: Path | None = Field(
        None,
        description="A folder with the site's own files. A file in its `templates` replaces the shipped template of "
        "the same name.",
    )

    @field_validator("name")
    @classmethod
    def _plain(cls, name: str) -> str:
        if any(not c.isprintable() or c in '"<>\\' for c in name):
            raise ValueError('must not contain " < > \\ or line breaks, since it is used in a mail header')
        return name.strip()


class TiersSettings(Section):
    """Symbols that make a message dangerous or suspicious. `*` and `?` are wildcards."""

    # Rspamd 3.4 to 4.1: plugins/antivirus.lua and lualib/lua_scanners (a scanner without `symbol` is named after its
    # rule), plugins/phishing.lua, scores.d and composites.conf. Not `*VIRUS*`: CLAM_VIRUS_FAIL is a scanner's failure.
    dangerous_symbols: Words = Field(
        (
            "VIRUS", "*_VIRUS", "*_MALWARE", "CLAMAV", "ESET", "DRWEB", "SOPHOS", "AVAST", "FPROT", "SAVAPI",
            "KASPERSKY", "KASPERSKY_SE", "VIRUSTOTAL", "VIRUSTOTAL_LOW", "VIRUSTOTAL_MEDIUM", "VIRUSTOTAL_HIGH",
            "METADEFENDER", "METADEFENDER_LOW", "METADEFENDER_MEDIUM", "METADEFENDER_HIGH", "EXPURGATE_DANGEROUS_*",
            "ICAP", "OLETOOLS", "EICAR", "JUST_EICAR",
            "PHISHING", "*_PHISHING", "PHISHED_URL", "PHISHED_OPENPHISH", "PHISHED_PHISHTANK",
            "PHISHED_GENERIC_SERVICE", "PHISH_EMOTION", "*_PHISH", "DBL_BOTNET", "DBL_ABUSE_BOTNET", "PH_SURBL_MULTI",
            "MW_SURBL_MULTI",
        ),
        description="Dangerous: only an administrator can release the message; its recipients can request that.",
    )  # fmt: skip
    # plugins/mime_types.lua and antivirus.lua, rules/misc.lua, rules/headers_checks.lua, lualib/lua_content/pdf.lua,
    # scores.d. Not `FORGED_*`: FORGED_SENDER_MAILLIST and similar symbols explain a forged sender as harmless.
    suspicious_symbols: Words = Field(
        (
            "*_ENCRYPTED", "*_MACRO", "MIME_ENCRYPTED_ARCHIVE", "MIME_OBFUSCATED_ARCHIVE", "MIME_ARCHIVE_IN_ARCHIVE",
            "MIME_EXE_IN_GEN_SPLIT_RAR", "MIME_BAD_EXTENSION", "MIME_DOUBLE_BAD_EXTENSION", "MIME_BAD_ATTACHMENT",
            "MIME_BAD_UNICODE", "PDF_JAVASCRIPT", "PDF_SUSPICIOUS", "SPOOF_DISPLAY_NAME", "SPOOF_REPLYTO",
            "FROM_NEQ_DISPLAY_NAME", "FREEMAIL_REPLYTO_NEQ_FROM_DOM", "DMARC_POLICY_REJECT", "DMARC_POLICY_QUARANTINE",
            "BLACKLIST_DMARC", "OMOGRAPH_URL", "URL_HOMOGRAPH_ATTACK", "URL_RTL_OVERRIDE", "URL_ZERO_WIDTH_SPACES",
            "ZERO_WIDTH_SPACE_URL", "URL_OBFUSCATED_TEXT", "URL_NUMERIC_IP_USER", "URL_USER_*", "R_SUSPICIOUS_URL",
            "HTTP_TO_IP", "ZERO_FONT", "DATA_URI_OBFU",
            "EXE_*", "SINGLE_FILE_*", "UDF_*", "MIME_BAD_EXT_*", "MISIDENTIFIED_RAR", "HAS_FILE_URL",
            "HAS_IPFS_GATEWAY_URL", "LEAKED_PASSWORD_SCAM", "GPT_SCAM", "VADE_SCAM", "VADE_SUSPECT", "CRACKED_SURBL",
            "ABUSE_SURBL",
        ),
        description="Suspicious: the message is released only after a press of a button.",
    )  # fmt: skip


class RspamdSettings(Section):
    """Rspamd's controller, which scans held messages for viruses: after holding, and again before a release."""

    url: str | None = Field(
        None,
        description="URL of the controller, as `http://127.0.0.1:11334`. Without it, messages are not scanned.",
    )
    password: SecretStr | None = Field(
        None, description="The controller's password. Not needed if `secure_ip` of its worker includes this host."
    )
    scan_groups: Words = Field(
        ("antivirus",),
        description="Groups of symbols whose modules scan; empty: messages are not scanned.",
    )
    scan_max_bytes: int = Field(
        20_000_000,
        ge=2**16,
        le=2**31,
        description="Larger messages are not scanned, and thus at least suspicious. At most the limit of the scanner "
        "(`max_size` in Rspamd's antivirus.conf, `StreamMaxLength` of clamd): it ignores larger ones without notice.",
    )
    scan_valid_minutes: int = Field(
        60, ge=0, le=10_080, description="A release within this time after a scan is not scanned once more."
    )
    release_unscanned: bool = Field(
        False,
        description="If the scanner does not answer: `false` lets releases wait, `true` releases without a scan.",
    )

    @field_validator("url")
    @classmethod
    def _controller(cls, url: str | None) -> str | None:
        try:
            parts = urlsplit(url or "http://localhost")
            parts.port  # noqa: B018 - validated only on access
        except ValueError as error:
            raise ValueError("expected a URL like http://127.0.0.1:11334") from error
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path not in ("", "/") or parts.query:
            raise ValueError("expected a URL like http://127.0.0.1:11334, without a path")
        return url or None


class Settings(Section):
    public_url: str = Field(
        "http://127.0.0.1:8080/quarantine",
        description="The portal's URL for recipients. Its path is the mount point.",
    )
    local_domains: Words = Field(
        (),
        description="Only recipients in these domains get mail from the portal and can sign in; addresses are allowed "
        "too (for a pilot group). Messages for other recipients are held for operators. An international domain may be "
        "written with or without `xn--`.",
    )
    store: StoreSettings = StoreSettings()
    exporter: ExporterSettings = ExporterSettings()
    relay: RelaySettings = RelaySettings()
    mail: MailSettings = MailSettings()
    digest: DigestSettings = DigestSettings()
    links: LinksSettings = LinksSettings()
    rspamd: RspamdSettings = RspamdSettings()
    tiers: TiersSettings = TiersSettings()
    people: PeopleSettings = PeopleSettings()
    site: SiteSettings = SiteSettings()

    @field_validator("public_url")
    @classmethod
    def _absolute(cls, url: str) -> str:
        # The path is also that of the cookies and part of every page, so no character may need quoting.
        if not re.fullmatch(r"https?://(\[[0-9a-f:.]+\]|[\w.-]+)(:[0-9]{1,5})?(/[\w.~-]+)*/?", url, re.I | re.A):
            raise ValueError(
                "expected a URL like https://mail.example.org/quarantine; write an international host name in its xn-- "
                "form"
            )
        try:
            parts = urlsplit(url)
            parts.port  # noqa: B018 - validated only on access
            host = parts.hostname or ""
            if ":" not in host and not all(0 < len(label) < 64 for label in host.removesuffix(".").split(".")):
                raise ValueError("a label of the host name is empty or longer than 63 characters (RFC 1035, 2.3.4)")
        except ValueError as error:
            raise ValueError(
                "the host name or the port is invalid: expected a URL like https://mail.example.org:443/quarantine"
            ) from error
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
            raise ValueError("mail.from_address is required if local_domains is set: digests are sent from it")
        return self

    @model_validator(mode="after")
    def _domains_local(self) -> Settings:
        local = {domain(name) for name in self.local_domains}
        for name in self.digest.domains:
            if name not in local:
                raise ValueError(f'digest.domains."{shown_address(name)}": this domain is not in local_domains')
        return self

    def is_local(self, address: str) -> bool:
        """Return whether the portal may mail this recipient and let them sign in."""
        recipient = identity(address)
        return "@" in recipient and (recipient in self.local_domains or domain(recipient) in self.local_domains)


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
        inner = isinstance(value, dict) and prefix + key != _TABLES
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
            named = [name for name in sources if name in message]  # the message of such a rule has the names
        else:
            named = [name for name in sources if f"{name}.".startswith(f"{key}.")]
            message = f"{full}: {message}"
        where_from = ", ".join(dict.fromkeys(sources[name] for name in named))
        out.append((key, f"{message} ({where_from})" if where_from else message))
    return out


def masked(settings: Settings) -> dict[str, Any]:
    """Return all settings by dotted key, for printing. Secrets, and passwords in URLs, are replaced by stars."""
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
    # Not with urlsplit: libpq accepts passwords that contain # and ?, at which urlsplit ends the host, and [, at which
    # it fails. libpq also accepts passwords as a parameter after the question mark.
    url = re.sub(r"^([a-z]+://[^:/@]*:)[^/]*@", r"\1********@", url, flags=re.IGNORECASE)
    return re.sub(r"([?&][a-z]*password=)[^&]*", r"\1********", url)
