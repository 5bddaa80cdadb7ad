"""One interface to Chromium and Firefox, for tests of what both of them must do."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from playwright.sync_api import Browser, BrowserContext

from tests.builders import ALICE
from tests.system.firefox import WAIT, Marionette
from tests.system.local_site import sign_in
from tests.web_client import Site

_SHIFT = "\ue008"  # WebDriver, 17.4.2
_KEYS = {"Tab": "\ue004", "Enter": "\ue007", "Escape": "\ue00c", "Space": " "}


def button(name: str) -> str:
    return f"//button[normalize-space()='{name}']"


def link(name: str) -> str:
    return f"//a[normalize-space()='{name}']"


class Window(Protocol):
    """A window of a browser with cookies of its own. Elements are named by XPath."""

    def open(self, address: str) -> None:
        """Open a page and wait until its document is there, not its pictures and frames."""

    def address(self) -> str: ...

    def text(self) -> str:
        """Return what a reader sees of the page, without its frames."""

    def press(self, xpath: str, *, shift: bool = False) -> None:
        """Click on the first element, as soon as it is there."""

    def keys(self, *names: str) -> None:
        """Press keys: letters, names of ``_KEYS``, and both after ``Shift+``."""

    def run(self, script: str) -> Any:
        """Return what the body of a function returns in the page."""

    def count(self) -> int:
        """Return the number of windows, which grows if a page opens one."""

    def pause(self, seconds: float) -> None: ...

    def sign_in(self, site: Site, recipient: str = ALICE) -> None: ...


def until(window: Window, is_so: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + WAIT
    while not is_so():
        assert time.monotonic() < deadline, what
        window.pause(0.05)


def wait_for(window: Window, text: str) -> None:
    """Wait until the page says something."""
    until(window, lambda: text in window.text(), f"the page does not say {text!r}")


def open_with_frames(window: Window, address: str) -> None:
    """Open a page and wait until it and its frames have loaded everything."""
    window.open(address)
    until(window, lambda: window.run("return document.readyState") == "complete", f"{address} is not loaded")


class ChromiumWindow:
    def __init__(self, context: BrowserContext) -> None:
        self._page = context.new_page()

    def open(self, address: str) -> None:
        self._page.goto(address, wait_until="domcontentloaded")

    def address(self) -> str:
        return self._page.url

    def text(self) -> str:
        return self._page.locator("body").inner_text()

    def press(self, xpath: str, *, shift: bool = False) -> None:
        self._page.locator(xpath).first.click(modifiers=["Shift"] if shift else [])

    def keys(self, *names: str) -> None:
        for name in names:
            self._page.keyboard.press(name)

    def run(self, script: str) -> Any:
        return self._page.evaluate(f"() => {{ {script} }}")

    def count(self) -> int:
        return len(self._page.context.pages)

    def pause(self, seconds: float) -> None:
        self._page.wait_for_timeout(seconds * 1000)  # Playwright receives events only in calls of its own

    def sign_in(self, site: Site, recipient: str = ALICE) -> None:
        sign_in(site, self._page.context, recipient)


class FirefoxWindow:
    def __init__(self, marionette: Marionette) -> None:
        self._firefox = marionette

    def open(self, address: str) -> None:
        self._firefox.send("Navigate", url=address)

    def address(self) -> str:
        return str(self._firefox.send("GetCurrentURL"))

    def text(self) -> str:
        return str(self.run("return document.body?.innerText ?? ''"))  # one step: the page may load itself again

    def press(self, xpath: str, *, shift: bool = False) -> None:
        element = self._firefox.find(xpath)
        if not shift:
            self._firefox.send("ElementClick", id=element)
            return
        x, y = self._firefox.run(
            "const box = (arguments[0].scrollIntoView({block: 'center'}), arguments[0].getBoundingClientRect());"
            "return [Math.round(box.x + box.width / 2), Math.round(box.y + box.height / 2)]",
            element,
        )
        pause = {"type": "pause"}
        press = [{"type": "pointerDown", "button": 0}, {"type": "pointerUp", "button": 0}]
        self._firefox.act(
            {"type": "key", "id": "keys", "actions": [{"type": "keyDown", "value": _SHIFT}, pause, pause]},
            {"type": "pointer", "id": "mouse", "actions": [{"type": "pointerMove", "x": x, "y": y}, *press]},
        )

    def keys(self, *names: str) -> None:
        for name in names:
            key = name.removeprefix("Shift+")
            strokes = [(kind, _KEYS.get(key, key)) for kind in ("keyDown", "keyUp")]
            if key != name:
                strokes.insert(0, ("keyDown", _SHIFT))
            actions = [{"type": kind, "value": value} for kind, value in strokes]
            self._firefox.act({"type": "key", "id": "keys", "actions": actions})

    def run(self, script: str) -> Any:
        return self._firefox.run(script)

    def count(self) -> int:
        return len(self._firefox.send("GetWindowHandles"))

    def pause(self, seconds: float) -> None:
        time.sleep(seconds)

    def sign_in(self, site: Site, recipient: str = ALICE) -> None:
        ((name, value),) = site.signed_in(recipient).cookies.items()
        self.open(f"{site.parts.settings.public_url}/static/icon.svg")  # a browser sets cookies of its page only
        self._firefox.send("DeleteAllCookies")
        self._firefox.send("AddCookie", cookie={"name": name, "value": value, "path": "/", "secure": True})


@contextmanager
def chromium_window(browser: Browser, *, scripts: bool = True) -> Iterator[Window]:
    context = browser.new_context(viewport={"width": 1280, "height": 800}, java_script_enabled=scripts)
    try:
        yield ChromiumWindow(context)
    finally:
        context.close()


@contextmanager
def firefox_window(marionette: Marionette) -> Iterator[Window]:
    """Open a new window, and close all windows but the first one at the end."""
    first = marionette.send("GetWindowHandle")
    marionette.send("SwitchToWindow", handle=marionette.send("NewWindow", type="window")["handle"])
    try:
        yield FirefoxWindow(marionette)
    finally:
        for handle in marionette.send("GetWindowHandles"):
            if handle != first:
                marionette.send("SwitchToWindow", handle=handle)
                marionette.send("CloseWindow")
        marionette.send("SwitchToWindow", handle=first)
