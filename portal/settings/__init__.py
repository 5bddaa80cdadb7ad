"""Settings: one TOML file, ``QUARANTINE_SECTION__KEY`` variables that override it, secrets also from files.

The only reader of the environment. `load()` either returns a frozen `Settings` or raises one `SettingsError` that
lists *every* problem with its source, unknown names included, so that an administrator can fix all of them at once.
The models have names, defaults and descriptions; docs/settings.md and quarantine.example.toml are tested against them.
"""

from portal.settings.domains import DomainSettings
from portal.settings.loading import keys, load, load_from, mask_url, masked
from portal.settings.models import DigestSettings, Settings
from portal.settings.oidc import OidcSettings, is_safe_url
from portal.settings.rspamd import ExporterSettings, TiersSettings
from portal.settings.values import Network, Section

__all__ = [
    "DigestSettings",
    "DomainSettings",
    "ExporterSettings",
    "Network",
    "OidcSettings",
    "Section",
    "Settings",
    "TiersSettings",
    "is_safe_url",
    "keys",
    "load",
    "load_from",
    "mask_url",
    "masked",
]
