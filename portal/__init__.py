"""The quarantine portal: holds the messages that Rspamd exports and releases them to their recipients.

`shipped()` finds the files that are shipped with the code: templates, quarantine.sql, uwsgi.ini and deploy/. In a wheel
they are inside this package; in a checkout (and an editable install) they are one level up.
"""

from pathlib import Path

__version__ = "0.3.0.dev0"


def shipped(name: str) -> Path:
    """Return the path of a file or folder that is shipped with the code, e.g. ``templates`` or ``quarantine.sql``.

    Raises FileNotFoundError when the installation is incomplete.
    """
    here = Path(__file__).resolve().parent
    for folder in (here, here.parent):
        if (folder / name).exists():
            return folder / name
    raise FileNotFoundError(f"{name} is neither in {here} nor in its parent folder: the installation is incomplete")
