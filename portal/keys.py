"""The file of the keys that sign links."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from portal.model.errors import SettingsError
from portal.model.links import KEY_BYTES

_NEW_KEY_OCTETS = 48


def read_keys(path: Path, *, create: bool = False) -> list[bytes]:
    """Return the keys of a file with one key a line, oldest to newest.

    ``create``: create a missing file with one key, mode 0600. Raises SettingsError when the file cannot be read or
    created, when others may read it, or when a key is too short.
    """
    try:
        if create:
            path.parent.mkdir(parents=True, exist_ok=True)
            _create(path)
        mode = path.stat().st_mode & 0o777
        keys = [line.strip() for line in path.read_bytes().splitlines() if line.strip()]
    except FileNotFoundError as error:
        raise SettingsError(
            f"links.keys_file: {path} does not exist. Run `quarantine init` as the service's user to create it, or "
            "copy it from the other host"
        ) from error
    except OSError as error:
        raise SettingsError(f"links.keys_file: {path}: {error.strerror}") from error
    if mode & 0o077:
        raise SettingsError(f"links.keys_file: {path} can be read by others: run chmod 600 {path}")
    if not keys:
        raise SettingsError(f"links.keys_file: {path} is empty: delete it and run `quarantine init`")
    for number, key in enumerate(keys, 1):
        if len(key) < KEY_BYTES:
            raise SettingsError(f"links.keys_file: {path}: key {number} is shorter than {KEY_BYTES} bytes")
    return keys


def _create(path: Path) -> None:
    """Create the key file unless it exists. It is written first and linked last, so that all workers read one key."""
    if path.exists():
        return
    # A process id is not unique: containers that share the folder may have the same.
    new = path.with_name(f"{path.name}.{secrets.token_hex(4)}.new")
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(secrets.token_urlsafe(_NEW_KEY_OCTETS).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(new, path)
    except FileExistsError:
        pass  # another process was first: its key is used
    finally:
        new.unlink()
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # links signed with this key must still open after a power cut
    finally:
        os.close(folder)
