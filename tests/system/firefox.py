"""Debian's Firefox, steered over its own remote protocol (Marionette), which geckodriver speaks too.

The protocol is JSON over TCP: the commands are those of WebDriver, each with its length before it. Sources:
firefox-source-docs.mozilla.org/testing/marionette/Protocol.html, and W3C WebDriver for the commands' parameters.
"""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

WAIT = 20  # seconds until something must be there
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the key of an element's id (WebDriver, 11.1)
_CAPABILITIES = {
    "pageLoadStrategy": "eager",  # hostile pages may never have loaded everything
    "unhandledPromptBehavior": "ignore",  # the next command fails, and so does the test
}


class CommandFailed(Exception):
    """Firefox answered with an error."""


class Marionette:
    """A connection to a running Firefox with one session."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=90)
        self._answers = self._socket.makefile("rb")
        self._numbers = itertools.count(1)
        self._read()  # its greeting
        self.send("NewSession", capabilities={"alwaysMatch": _CAPABILITIES})

    def send(self, command: str, **parameters: Any) -> Any:
        """Send a WebDriver command and return its result."""
        message = json.dumps([0, next(self._numbers), f"WebDriver:{command}", parameters]).encode()
        self._socket.sendall(b"%d:%s" % (len(message), message))
        _, _, error, result = self._read()
        if error:
            raise CommandFailed(f"{command}: {error['error']}: {error['message']}")
        return result["value"] if isinstance(result, dict) and "value" in result else result

    def find(self, xpath: str) -> str:
        """Return the id of the first element, which may take a moment to be there."""
        deadline = time.monotonic() + WAIT
        while True:
            found = self.send("FindElements", using="xpath", value=xpath)
            if found or time.monotonic() > deadline:
                assert found, f"{self.send('GetCurrentURL')} has no {xpath}"
                return str(found[0][_ELEMENT])
            time.sleep(0.05)

    def run(self, script: str, *elements: str) -> Any:
        """Run the body of a function in the page. Elements are its arguments."""
        return self.send("ExecuteScript", script=script, args=[{_ELEMENT: element} for element in elements])

    def act(self, *devices: dict[str, Any]) -> None:
        self.send("PerformActions", actions=list(devices))
        self.send("ReleaseActions")

    def close(self) -> None:
        self._answers.close()
        self._socket.close()

    def _read(self) -> Any:
        length = b""
        while (octet := self._answers.read(1)) not in (b":", b""):
            length += octet
        if not length:
            raise CommandFailed("Firefox closed the connection")
        return json.loads(self._answers.read(int(length)))


@contextmanager
def firefox(*, scripts: bool = True) -> Iterator[Marionette]:
    """Run a Firefox with an empty profile, with or without JavaScript in pages."""
    preferences = {"marionette.port": 0, "javascript.enabled": scripts}
    with tempfile.TemporaryDirectory(prefix="firefox") as home:
        lines = (f"user_pref({json.dumps(name)}, {json.dumps(value)});\n" for name, value in preferences.items())
        Path(home, "user.js").write_text("".join(lines))
        command = ["/usr/bin/firefox-esr", "--headless", "--marionette", "--no-remote", "--profile", home]
        # Its tests as root need a home folder of root, and write to it.
        environ = os.environ | {"HOME": home, "MOZ_CRASHREPORTER_DISABLE": "1"}
        with subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
            connection = None
            try:
                connection = Marionette(_port(Path(home, "MarionetteActivePort"), running))
                yield connection
            finally:
                if connection:
                    connection.close()
                running.kill()


def _port(path: Path, running: subprocess.Popen[bytes]) -> int:
    """Return the port that Firefox wrote to its profile."""
    deadline = time.monotonic() + 60
    while running.poll() is None and time.monotonic() < deadline:
        if path.exists() and (text := path.read_text().strip()):
            return int(text)
        time.sleep(0.05)
    raise CommandFailed(f"firefox-esr did not start (exit status {running.returncode}): tests/system/install-packages")
