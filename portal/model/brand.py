"""The look of pages and mails for the recipients of one domain."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Brand:
    """The look of the quarantine for one domain, or for the site."""

    name: str = ""  # "": the default name, in the language of the page or mail


NO_BRAND = Brand()
