"""`Settings` and most of its sections, with their names, defaults, descriptions and checks."""

from __future__ import annotations

from datetime import time
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    BeforeValidator,
    Field,
    SecretStr,
    field_validator,
    model_validator,
)

from portal.model.domains import shown_address
from portal.model.links import KEY_BYTES
from portal.model.message import domain, identity
from portal.model.phrase import Phrase
from portal.model.schedule import MAX_TIMES, Schedule
from portal.model.store_url import StoreUrl
from portal.model.text import N_, TAGS, Tag
from portal.settings.domains import RETENTIONS, Domains, DomainSettings, FormerDomains
from portal.settings.monitoring import LogSettings, MetricsSettings
from portal.settings.oidc import Providers
from portal.settings.passwords import ImapSettings, LdapSettings
from portal.settings.rspamd import ExporterSettings, RspamdSettings, TiersSettings
from portal.settings.sign_in import ProxySettings, SignInSettings
from portal.settings.staff import StaffSettings
from portal.settings.values import (
    Hours,
    MailAddress,
    PlainName,
    PlainText,
    PublicUrl,
    Section,
    Words,
    ZoneName,
    relay_url,
    words,
)


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
    blocked_retention_days: int = Field(
        7,
        ge=1,
        le=3650,
        description="Messages that a rule blocks are removed this many days after they were held, if that is sooner.",
    )

    audit_retention_days: int = Field(
        365, ge=30, le=3650, description="How long the audit is kept: who did what, see docs/operate.md."
    )
    retention_min_days: int = Field(
        1, ge=1, le=3650, description="The shortest retention that a domain may have, see docs/domains.md."
    )
    retention_max_days: int | None = Field(
        None,
        ge=1,
        le=3650,
        description="The longest retention that a domain may have. Default: `retention_days`. It determines how long "
        "bodies stay on disk if a domain uses it.",
    )

    @model_validator(mode="after")
    def _in_order(self) -> StoreSettings:
        if not self.retention_min_days <= self.retention_days <= self.longest_days:
            raise ValueError(
                "store.retention_days is not between store.retention_min_days and store.retention_max_days"
            )
        return self

    @property
    def longest_days(self) -> int:
        """The longest retention that a domain may have."""
        return self.retention_days if self.retention_max_days is None else self.retention_max_days

    @property
    def bad_retention(self) -> Phrase:
        """The sentence about a retention that a domain cannot have."""
        text = N_(
            "Enter a whole number from %(low)s to %(high)s. store.retention_min_days and store.retention_max_days set "
            "these limits."
        )
        return Phrase(text, {"low": str(self.retention_min_days), "high": str(self.longest_days)})

    @field_validator("url")
    @classmethod
    def _known(cls, url: SecretStr) -> SecretStr:
        StoreUrl.parse(url.get_secret_value())
        return url

    @property
    def place(self) -> StoreUrl:
        """The parsed URL."""
        return StoreUrl.parse(self.url.get_secret_value())


class RelaySettings(Section):
    """The mail server for released messages."""

    url: SecretStr = Field(
        SecretStr("smtp://127.0.0.1:10025"),
        description="A listener that does not scan again: `smtp://HOST:PORT`, `smtps://…` or `lmtp://…`, with "
        "`USER:PASSWORD@` before the host if it needs a login.",
    )
    _check = field_validator("url")(classmethod(lambda cls, url: SecretStr(relay_url(url.get_secret_value()))))


class MailSettings(Section):
    """The portal's own mail: digests, sign-in mail, notifications and alarms."""

    url: SecretStr = Field(SecretStr("smtp://127.0.0.1:25"), description="The mail server, written like `relay.url`.")
    from_address: MailAddress | None = Field(None, description="The From address. Required if `local_domains` is set.")
    admin_address: MailAddress | None = Field(
        None, description="The administrator, who gets release requests, questions about messages, and alarms."
    )
    _check = field_validator("url")(classmethod(lambda cls, url: SecretStr(relay_url(url.get_secret_value()))))


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
    notices: bool = Field(
        False,
        description="Whether recipients who chose nothing get a notice soon after a message was held that is probably "
        "wanted ([people.md](people.md#notices)). Each recipient can switch notices on and off.",
    )
    domains: FormerDomains = Field(
        {},
        description="Replaced by `domains` in version 0.3, and still read by this version.",
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


class LinksSettings(Section):
    """Signed links."""

    keys: Annotated[tuple[SecretStr, ...], BeforeValidator(words)] = Field(
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

    name: PlainName = Field(
        "",
        description="Name of the quarantine on pages and in the From header of its mail. Default: Mail quarantine, and "
        "a From header without a name.",
    )
    contact: PlainText = Field(
        "",
        description="Whom recipients may ask, at the top of digests and below pages, like "
        "`the help desk, help@example.org`. Default: "
        "your mail administrator.",
    )
    folder: Path | None = Field(
        None,
        description="A folder with the site's own files. A file in its `templates` replaces the shipped template of "
        "the same name.",
    )


# A default made by calling a section's class would have pydantic build a validator for this section alone.
_SECTION: Any = Field({}, validate_default=True)


class Settings(Section):
    public_url: PublicUrl = Field(
        "http://127.0.0.1:8080/quarantine",
        description="The portal's URL for recipients. Its path is the mount point.",
    )
    local_domains: Words = Field(
        (),
        description="Only recipients in these domains get mail from the portal and can sign in; addresses are allowed "
        "too (for a pilot group). Messages for other recipients are held for operators. An international domain may be "
        "written with or without `xn--`.",
    )
    domains: Domains = Field(
        {},
        description='Other values for the recipients of one domain, in a table `[domains."example.net"]`; see '
        "docs/domains.md.",
    )
    store: StoreSettings = _SECTION
    exporter: ExporterSettings = _SECTION
    relay: RelaySettings = _SECTION
    mail: MailSettings = _SECTION
    digest: DigestSettings = _SECTION
    links: LinksSettings = _SECTION
    rspamd: RspamdSettings = _SECTION
    tiers: TiersSettings = _SECTION
    people: PeopleSettings = _SECTION
    oidc: Providers = Field(
        {},
        description="Providers of OpenID Connect, in a table `[oidc.NAME]` for each; see docs/sign-in.md.",
    )
    sign_in: SignInSettings = _SECTION
    proxy: ProxySettings = _SECTION
    staff: StaffSettings = _SECTION
    ldap: LdapSettings = _SECTION
    imap: ImapSettings = _SECTION
    site: SiteSettings = _SECTION
    metrics: MetricsSettings = _SECTION
    log: LogSettings = _SECTION

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
    def _names_unique(self) -> Settings:
        if self.imap.host and self.imap.user == "local-part" and len({domain(name) for name in self.local_domains}) > 1:
            raise ValueError(
                "imap.user is local-part, but local_domains has several domains: the names of their people may be equal"
            )
        return self

    @model_validator(mode="after")
    def _factor_possible(self) -> Settings:
        others = self.sign_in.mailed_link or self.oidc or self.ldap.uri or self.imap.host
        asks = self.staff.second_factor and not self.proxy.second_factor
        if asks and self.proxy.secret is not None and not others:
            raise ValueError(
                "staff.second_factor is true, but the proxy is the only way to sign in, and nobody can set up a second "
                "factor after it: set proxy.second_factor if the proxy asks for one, or staff.second_factor to false"
            )
        return self

    @model_validator(mode="after")
    def _domains_local(self) -> Settings:
        local = {domain(name) for name in self.local_domains}
        for key, tables in (("domains", self.domains), ("digest.domains", self.digest.domains)):
            for name in tables:
                if name not in local:
                    raise ValueError(f'{key}."{shown_address(name)}": this domain is not in local_domains')
        for group, roles in self.staff.groups.items():
            for _, host in roles:
                if host and host not in local:
                    raise ValueError(f'staff.groups."{group}": {shown_address(host)} is not in local_domains')
        for name, table in self.domains.items():
            problem = self.problem_of(table)
            if problem:
                raise ValueError('domains."{}".{}: {}'.format(shown_address(name), *problem))
        for name in self.digest.domains:
            if name in self.domains:
                raise ValueError(
                    f'digest.domains."{shown_address(name)}": the domain has a table in domains as well: write all of '
                    "its values there"
                )
        return self

    def problem_of(self, table: DomainSettings) -> tuple[str, Phrase] | None:
        """Return the key of a domain's value that does not fit those of the site, and what to do; None if all fit."""
        if table.public_url is not None:
            own, site = urlsplit(table.public_url), urlsplit(self.public_url)
            if (own.scheme, site.scheme, own.path) != ("https", "https", site.path):
                text = N_(
                    "Enter a URL with the same path as that of the site (%(url)s). Both must begin with https://."
                )
                return "public_url", Phrase(text, {"url": self.public_url})
        for key in RETENTIONS.values():
            days = getattr(table, key)
            if days is not None and not self.store.retention_min_days <= days <= self.store.longest_days:
                return key, self.store.bad_retention
        return None

    def of_domain(self, name: str) -> DomainSettings:
        """Return the values that the file has for a domain, also those of the former table in `digest.domains`."""
        former = self.digest.domains.get(name)
        if former is not None:
            return DomainSettings(domain=name, **former.model_dump(exclude_none=True))
        return self.domains.get(name) or DomainSettings(domain=name)

    def has_sign_in(self, method: str) -> bool:
        """Return whether people can sign in by a method other than the mailed link: "ldap", "imap", "proxy" or
        "oidc:NAME"."""
        kind, _, name = method.partition(":")
        others = {"ldap": self.ldap.uri, "imap": self.imap.host, "proxy": self.proxy.secret, "oidc": name in self.oidc}
        return bool(others.get(kind))

    @property
    def takes_passwords(self) -> bool:
        """True if people may sign in with a password, which the site's directory or IMAP server checks."""
        return bool(self.ldap.uri or self.imap.host)

    def is_local(self, address: str) -> bool:
        """Return whether the portal may mail this recipient and let them sign in."""
        recipient = identity(address)
        return "@" in recipient and (recipient in self.local_domains or domain(recipient) in self.local_domains)
