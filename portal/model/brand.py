"""The look of pages and mails for the recipients of one domain."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass
from functools import cached_property

from portal.model.phrase import BadValue
from portal.model.text import N_

LOGO_OCTETS = 20_480  # in a mail as base64 a third more, of the 90,000 octets of a digest
_COLOUR = re.compile(r"#[0-9a-f]{6}", re.IGNORECASE)
_DATA_URL = re.compile(r"data:image/(png|webp);base64,([A-Za-z0-9+/=]+)")
_CONTRAST = 4.5  # WCAG 2.2, 1.4.3 (AA), for text of any size
# Text on buttons, and the grounds of links, in pages and mails (templates/web/static/style.css).
_LIGHT = ("#ffffff", "#f4f5f7")
_DARK = ("#0b1a2c", "#1e2329")
ON_DARK = _DARK[0]
_ON_LIGHT_GROUND = N_(
    "Enter a darker colour. Its contrast to the ground of pages in light mode, %(other)s, is %(found)s, below "
    "%(needed)s (WCAG AA)."
)
_BAD_CONTRAST = {  # by the other colour
    **dict.fromkeys(_LIGHT, _ON_LIGHT_GROUND),
    ON_DARK: N_(
        "Enter a lighter colour. Its contrast to the text on buttons in dark mode, %(other)s, is %(found)s, below "
        "%(needed)s (WCAG AA)."
    ),
    _DARK[1]: N_(
        "Enter a lighter colour. Its contrast to the ground of pages in dark mode, %(other)s, is %(found)s, below "
        "%(needed)s (WCAG AA)."
    ),
}


@dataclass(frozen=True)
class Brand:
    """The look of the quarantine for one domain, or for the site. Empty values are those of the templates."""

    name: str = ""
    colour: str = ""  # of buttons and links, #rrggbb
    colour_dark: str = ""  # the same in dark mode
    logo: str = ""  # a data URL, see `logo_url`

    @cached_property
    def logo_name(self) -> str:
        """The name of the logo's file, with a hash of its content, "" without a logo."""
        match = _DATA_URL.fullmatch(self.logo)
        return f"{_hash(self.logo)}.{match[1]}" if match else ""

    @cached_property
    def style_name(self) -> str:
        """The name of the style sheet with the colours, "" without colours."""
        return f"{_hash(self.style)}.css" if self.style else ""

    @cached_property
    def style(self) -> str:
        """The style sheet with the colours."""
        schemes = (("light", self.colour, "#fff"), ("dark", self.colour_dark, ON_DARK))
        return "".join(
            f"@media (prefers-color-scheme: {scheme}) {{ :root {{ --main: {main}; --on-main: {on_main}; }} }}\n"
            for scheme, main, on_main in schemes
            if main
        )

    @cached_property
    def logo_octets(self) -> bytes:
        """The content of the logo."""
        match = _DATA_URL.fullmatch(self.logo)
        return base64.b64decode(match[2]) if match else b""


NO_BRAND = Brand()


def logo_url(octets: bytes) -> str:
    """Return a logo as a data URL. Raises BadValue unless it is a PNG or WebP picture of at most `LOGO_OCTETS`.

    Only the first octets are looked at, never the file's name. SVG may contain scripts and is not accepted. The errors
    are not translated: no page changes a logo.
    """
    if len(octets) > LOGO_OCTETS:
        raise BadValue(
            "The logo has %(octets)s octets. Use a picture of at most %(limit)s.",
            octets=str(len(octets)),
            limit=str(LOGO_OCTETS),
        )
    if octets.startswith(b"\x89PNG\r\n\x1a\n"):
        kind = "png"
    elif octets[:4] == b"RIFF" and octets[8:12] == b"WEBP":
        kind = "webp"
    else:
        raise BadValue("The logo is neither PNG nor WebP. Use a picture in one of these formats.")
    return f"data:image/{kind};base64,{base64.b64encode(octets).decode()}"


def checked_logo(url: str) -> str:
    """Return the data URL of a logo. Raises BadValue as `logo_url`."""
    match = _DATA_URL.fullmatch(url)
    if not match:
        raise BadValue("Use the path of a PNG or WebP file.")
    return logo_url(base64.b64decode(match[2]))


def checked_colour(text: str, *, dark: bool = False) -> str:
    """Return the colour of buttons and links in lower case. Raises BadValue if text could not be read beside it."""
    if not _COLOUR.fullmatch(text):
        raise BadValue(N_("Enter a colour like #1f5fa8."))
    for other in _DARK if dark else _LIGHT:
        found = contrast(text, other)
        if found < _CONTRAST:
            raise BadValue(_BAD_CONTRAST[other], other=other, found=f"{found:.1f}", needed=str(_CONTRAST))
    return text.lower()


def contrast(one: str, other: str) -> float:
    """Return the contrast ratio of two colours (WCAG 2.2, definition of contrast ratio), from 1 to 21."""
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(text: str) -> float:
    parts = [int(text[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
