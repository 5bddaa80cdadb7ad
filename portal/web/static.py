"""The style sheets, scripts and pictures of pages: the site's own files, else the shipped ones.

Pages name them by addresses that contain a hash of the content, so browsers keep them for a year without asking.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from bottle import HTTPResponse, static_file

from portal.web.request import Request

FOREVER = "public, max-age=31536000, immutable"  # RFC 8246
_SHORTLY = "public, max-age=600"  # an address without the hash, as in a site's own template, or with an older one


class StaticFiles:
    """`/static/NAME`. ``folders``: those of the templates, the first one with a file of that name has it."""

    def __init__(self, folders: Sequence[Path], root: str) -> None:
        self._folders = [folder / "web" / "static" for folder in folders]
        self._root = root
        self._hashes: dict[tuple[Path, int, int], str] = {}  # by path, time of the last change, and size

    def url(self, name: str) -> str:
        """Return the address of a file for a page."""
        version = self._hash(name)
        return f"{self._root}/static/{name}{f'?v={version}' if version else ''}"

    def has(self, name: str) -> bool:
        """Return True if a site or the portal has this file."""
        return self._hash(name) != ""

    def send(self, request: Request, name: str) -> HTTPResponse:
        """GET /static/NAME."""
        is_current = request.query("v") == self._hash(name) != ""
        response = static_file(name, root=self._folder(name))
        response.set_header("Cache-Control", FOREVER if is_current else _SHORTLY)
        return response

    def _folder(self, name: str) -> Path:
        return next((folder for folder in self._folders if (folder / name).is_file()), self._folders[-1])

    def _hash(self, name: str) -> str:
        """Return a hash of the file's present content, "" if there is no such file. A site may change its files."""
        path = self._folder(name) / name
        try:
            status = path.stat()
            key = (path, status.st_mtime_ns, status.st_size)
            if key not in self._hashes:
                self._hashes[key] = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        except OSError:
            return ""
        return self._hashes[key]
