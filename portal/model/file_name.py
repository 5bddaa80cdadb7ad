"""Names of downloaded files. The sender of a message chooses them, and every system has names that do harm."""

from __future__ import annotations

import re
from urllib.parse import quote

from portal.model.text import shown

_BYTES = 150  # in UTF-8; file systems allow 255, and browsers add a number
_ENDING_CHARACTERS = 12
_FORBIDDEN = re.compile(r'[<>:"|?*]')  # on Windows, where a colon also names a stream of another file
# They name devices on Windows, whatever ending they have (Microsoft, "Naming Files, Paths, and Namespaces").
_DEVICES = re.compile(r"(?:con|prn|aux|nul|(?:com|lpt)[0-9¹²³]|conin\$|conout\$)\s*(?:\..*)?", re.IGNORECASE)


def safe_name(name: str, otherwise: str) -> str:
    """Return the name of an attachment as the name of a file in any folder of any system.

    It has no path, no control, invisible or direction-changing characters, no dots or blanks at its ends, and at most
    150 octets. ``otherwise``: for a name of which nothing is left.
    """
    last = re.split(r"[/\\]", shown(name[:4_096], 4_096))[-1]
    clean = _shortened(_FORBIDDEN.sub("_", last).strip(" ."))
    if _DEVICES.fullmatch(clean):
        clean = f"_{clean}"
    return clean or otherwise


def _shortened(name: str) -> str:
    """Return a name of at most `_BYTES` octets, which keeps its ending."""
    stem, dot, ending = name.rpartition(".")
    if not stem or len(ending) > _ENDING_CHARACTERS:
        stem, dot, ending = name, "", ""
    left = _BYTES - len(f"{dot}{ending}".encode())
    return stem.encode()[:left].decode("utf-8", "ignore").rstrip(" .") + dot + ending


def disposition(name: str) -> str:
    """Return the Content-Disposition of a file that is always saved (RFC 6266, 4), with a name of `safe_name`.

    Old browsers read the first form, in which some decode percent signs; all others the second one (RFC 8187).
    """
    plain = re.sub(r'[^ -~]|["\\%]', "_", name)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"
