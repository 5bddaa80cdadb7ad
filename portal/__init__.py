"""The quarantine portal: holds what Rspamd exports and gives it back to its recipients.

`shipped()` finds the files that travel with the code: templates, quarantine.sql, uwsgi.ini and
deploy/. In a wheel they lie inside this package; in a checkout (and an editable install) one level up.
"""

from pathlib import Path

__version__ = "0.1.1"


def shipped(name: str) -> Path:
    """Path of a file or folder shipped with the code, e.g. ``templates`` or ``quarantine.sql``.

    Raises FileNotFoundError when the installation is incomplete.
    """
    here = Path(__file__).resolve().parent
    for folder in (here, here.parent):
        if (folder / name).exists():
            return folder / name
    raise FileNotFoundError(f"{name} is missing beside {here}: the installation is incomplete")
