"""The table of one domain: values for its recipients that differ from those of the site."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, ValidationInfo, field_validator

from portal.model.brand import checked_colour, checked_logo, logo_url
from portal.model.domains import shown_address
from portal.model.message import Tier, domain
from portal.model.phrase import BadValue, Phrase
from portal.model.rights import ReleaseRight
from portal.model.schedule import Schedule
from portal.model.text import N_, TAGS, Tag
from portal.settings.oidc import OidcSettings
from portal.settings.values import BAD_TIME, Hours, MailAddress, PlainName, PublicUrl, Section, Words, ZoneName, plain

_Table = TypeVar("_Table", bound=Section)


def _logo(value: str) -> str:
    """Return the data URL of a logo, which is in a file or, in the store, a data URL already. Raises ValueError."""
    if value.startswith("data:"):
        return checked_logo(value)
    try:
        return logo_url(Path(value).read_bytes())
    except OSError as error:
        raise ValueError(f"{value} cannot be read: {error.strerror}") from error


class FormerDomain(Section):
    """The table of a domain up to version 0.2: `[digest.domains."example.net"]`."""

    at: Hours | None = None
    timezone: ZoneName | None = None
    schedule: Schedule | None = None
    language: Tag | None = None


class DomainSettings(Section):
    """Values for the recipients of one domain. A value that is not set is that of the site."""

    domain: Annotated[str, Field(exclude=True, repr=False)]  # the table's name
    name: PlainName | None = Field(None, description=N_("Name of the quarantine, as `site.name`."))
    colour: Annotated[str, AfterValidator(checked_colour)] | None = Field(
        None,
        description=N_(
            "Colour of buttons and links, `#rrggbb`. Its contrast to white and to the pages' ground must be at "
            "least 4.5."
        ),
    )
    colour_dark: Annotated[str, AfterValidator(partial(checked_colour, dark=True))] | None = Field(
        None, description=N_("The same in dark mode, readable beside dark text and grounds.")
    )
    logo: Annotated[str, AfterValidator(_logo)] | None = Field(
        None,
        description=N_(
            "Path of a PNG or WebP picture of at most 20 KB, shown 32 pixels high at the top of pages and mails."
        ),
    )
    from_address: MailAddress | None = Field(
        None, description=N_("The From address, as `mail.from_address`, in this domain or in a subdomain of it.")
    )
    admin_address: MailAddress | None = Field(
        None, description=N_("The domain's administrator, who gets the release requests of its recipients.")
    )
    public_url: PublicUrl | None = Field(
        None,
        description=N_(
            "The portal's URL for these recipients: another host than in `public_url`, with the same path. "
            "Both must be https."
        ),
    )
    at: Hours | None = Field(None, description=N_("As `digest.at`."))
    timezone: ZoneName | None = Field(None, description=N_("As `digest.timezone`."))
    schedule: Schedule | None = Field(None, description=N_("As `digest.schedule`."))
    language: Tag | None = Field(None, description=N_("As `digest.language`."))
    notices: bool | None = Field(None, description=N_("As `digest.notices`."))
    release_spam: ReleaseRight | None = Field(
        None,
        description=N_(
            "Who may release messages of the tier *spam*: `self` (the recipient; the default), `request` (an "
            "administrator, whom the recipient may ask) or `administrator` (without being asked)."
        ),
    )
    release_suspicious: ReleaseRight | None = Field(
        None,
        description=N_("As `release_spam`, for suspicious messages. `self`, the default, can only be set in the file."),
    )
    release_dangerous: ReleaseRight | None = Field(
        None,
        description=N_(
            "As `release_spam`, for dangerous messages. `request` is the default; only the file can set `self`."
        ),
    )
    retention_spam_days: int | None = Field(
        None,
        ge=1,
        le=3650,
        description=N_(
            "Messages of the tier *spam* for these recipients are removed after this many days. Default: "
            "`store.retention_days`."
        ),
    )
    retention_suspicious_days: int | None = Field(
        None, ge=1, le=3650, description=N_("As `retention_spam_days`, for suspicious messages.")
    )
    retention_dangerous_days: int | None = Field(
        None, ge=1, le=3650, description=N_("As `retention_spam_days`, for dangerous messages.")
    )
    recipient_rules: bool | None = Field(
        None, description=N_("Whether recipients may allow and block senders for themselves. Default: true.")
    )
    formatted_view: bool | None = Field(
        None,
        description=N_(
            "Whether recipients may see messages as their senders formatted them, not only their text. Default: true."
        ),
    )
    recipient_downloads: bool | None = Field(
        None,
        description=N_(
            "Whether recipients may download messages that they may release, and attachments in which a virus "
            "scanner found nothing. Default: true."
        ),
    )
    locked: Words = Field((), description="Keys whose values `quarantine domains set` does not change.")

    @field_validator("locked")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in cls.model_fields or name in ("domain", "locked"):
                raise ValueError(f"{name!r} is not a key of a domain's table")
        return names

    @field_validator("from_address")
    @classmethod
    def _own_sender(cls, address: str | None, info: ValidationInfo) -> str | None:
        own, host = info.data["domain"], domain(address or "")
        if host and host != own and not host.endswith(f".{own}"):
            raise BadValue(
                N_("%(address)s is not in %(domain)s or a subdomain of it. Enter an address that is."),
                address=shown_address(address or ""),
                domain=shown_address(own),
            )
        return address


def _only_in_the_file(value: Any) -> Any:
    if isinstance(value, str):
        raise ValueError('expected tables like [domains."example.net"], which only the file can have')
    return value


def _with_names(value: Any) -> Any:
    """Add the name of each table to its values, so that the table can be checked by itself."""
    if not isinstance(value, dict):
        return value
    for name, table in value.items():
        if isinstance(table, dict) and "domain" in table:
            raise ValueError(f'"{name}".domain: there is no such setting')
    return {
        name: {**table, "domain": domain(name)} if isinstance(table, dict) else table for name, table in value.items()
    }


def _as_stored(tables: dict[str, _Table]) -> dict[str, _Table]:
    by_domain: dict[str, _Table] = {}
    for name, values in tables.items():
        if domain(name) in by_domain:
            raise ValueError(f'"{name}" is the second table of one domain: write one table')
        by_domain[domain(name)] = values
    return by_domain


Domains = Annotated[
    dict[str, DomainSettings],
    BeforeValidator(_with_names),
    BeforeValidator(_only_in_the_file),
    AfterValidator(_as_stored),
]
FormerDomains = Annotated[dict[str, FormerDomain], BeforeValidator(_only_in_the_file), AfterValidator(_as_stored)]
# Tables of tables.
TABLES: dict[str, type[Section]] = {"digest.domains": FormerDomain, "domains": DomainSettings, "oidc": OidcSettings}


RETENTIONS = {tier: f"retention_{tier.value}_days" for tier in Tier}  # the keys
EDITABLE = tuple(name for name in DomainSettings.model_fields if name not in ("domain", "locked"))  # in the store
_YES_NO = ("true", "false")
CHOICES: dict[str, tuple[str, ...]] = {  # all values that the store may have, of keys that have few
    "schedule": tuple(Schedule),
    "language": tuple(TAGS),
    "notices": _YES_NO,
    "recipient_rules": _YES_NO,
    "formatted_view": _YES_NO,
    "recipient_downloads": _YES_NO,
    "release_spam": tuple(ReleaseRight),
    # Only the file can have `self` for these, so that access to the store is not enough to permit it.
    "release_suspicious": tuple(ReleaseRight)[1:],
    "release_dangerous": tuple(ReleaseRight)[1:],
}


def rejected(key: str, error: ValidationError) -> Phrase:
    """Return what is wrong with a value from the store and what to do. pydantic's own messages are English only."""
    found = error.errors(include_url=False)[0]
    context = found.get("ctx", {})
    if isinstance(context.get("error"), BadValue):
        problem: Phrase = context["error"].phrase
        return problem
    if key in CHOICES:
        return Phrase(N_("Enter one of: %(values)s."), {"values": ", ".join(CHOICES[key])})
    if key == "at":
        return Phrase(BAD_TIME)
    if found["type"] == "string_too_long":
        return Phrase(N_("Enter at most %(number)s characters."), {"number": str(context["max_length"])})
    return Phrase(N_("This value cannot be used. Enter another one."))


def plain_values(table: Section) -> dict[str, Any]:
    """Return the values that a table has, as plain texts, numbers and lists, for printing."""
    values = table.model_dump(exclude_none=True, exclude={"locked"})
    return {key: [*map(plain, value)] if isinstance(value, tuple) else plain(value) for key, value in values.items()}


def keys_of(table: str) -> list[str]:
    """Return the names of the values that a domain's table in this one of `TABLES` may have."""
    return [name for name, field in TABLES[table].model_fields.items() if not field.exclude]
