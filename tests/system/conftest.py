"""The servers of the system tests, started once a session. Needs root on Debian 12 and `install-packages`."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

from portal.assemble import Parts
from tests.system.browsers import Window, chromium_window, firefox_window
from tests.system.firefox import Marionette, firefox
from tests.system.local_site import LocalSite, local_site
from tests.system.outside import Listener, listening
from tests.system.services import Portal, Postfix, Rspamd, Switch, exporter_conf, folder, postgres, rspamd

CHROMIUM = [
    "--no-sandbox",  # we are root
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


def pytest_itemcollected(item: pytest.Item) -> None:
    """Allow more time than for other tests: the first one waits until all servers are up.

    pytest calls this for the tests of this folder only.
    """
    if not item.get_closest_marker("timeout"):
        item.add_marker(pytest.mark.timeout(300))


@pytest.fixture(scope="session")
def place() -> Iterator[Path]:
    """A folder for all files of the session."""
    assert os.geteuid() == 0, "the system tests start Postfix and Rspamd as their own users: run them as root"
    with folder() as path:
        yield path


@pytest.fixture
def site(make_parts: Callable[..., Parts]) -> Iterator[LocalSite]:
    """A portal for a browser, in this process."""
    with local_site(make_parts) as made:
        yield made


@dataclass
class Mx:
    """A mail server: Postfix with two Rspamds, which export over a switch."""

    postfix: Postfix
    rspamd: Rspamd
    switch: Switch


@pytest.fixture(scope="session")
def running_mx(place: Path) -> Iterator[Mx]:
    switch = Switch()
    conf = exporter_conf("metadata_exporter.conf", f"http://127.0.0.1:{switch.port}/")
    with ExitStack() as stack:
        stack.callback(switch.close)
        plain = stack.enter_context(rspamd(place / "rspamd", conf))
        discarding = stack.enter_context(rspamd(place / "rspamd-discarding", conf, discard_on_reject=True))
        postfix = stack.enter_context(Postfix(place / "postfix", plain.milter, discarding.milter).running())
        yield Mx(postfix, plain, switch)


@pytest.fixture
def mx(running_mx: Mx) -> Mx:
    """The mail server with the switch to the portal open and an empty queue."""
    running_mx.switch.set("refuse")
    running_mx.switch.set("pass")
    running_mx.postfix.empty_queue()
    return running_mx


@pytest.fixture(scope="session", params=["files", "postgresql"])
def store_of_portal(request: pytest.FixtureRequest, place: Path) -> Iterator[str]:
    """The URL of an empty store."""
    home = place / f"store-{next(_numbers)}"  # a process that runs several files starts it again for each of them
    if request.param == "files":
        yield f"files://{home}"
    else:
        with postgres(home) as url:
            yield url


@pytest.fixture(scope="session")
def portal(store_of_portal: str, place: Path, running_mx: Mx) -> Iterator[Portal]:
    """The whole product on one of the stores, connected to Rspamd's switch."""
    home = place / f"portal-{next(_numbers)}"
    mail = {  # releases are sent to the listener that does not scan, the portal's own mail to the one that does
        "QUARANTINE_RELAY__URL": f"smtp://127.0.0.1:{running_mx.postfix.release}",
        "QUARANTINE_MAIL__URL": f"smtp://127.0.0.1:{running_mx.postfix.smtp}",
    }
    made = Portal(home, store_of_portal, mail)
    with made.running():
        running_mx.switch.target = made.nginx.exporter
        yield made


@pytest.fixture
def other_portal() -> Iterator[Portal]:
    """A separate portal on the file store, without a mail server and not started yet."""
    with folder() as home:
        yield Portal(home, f"files://{home}/store", {})


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Debian's Chromium without a user interface of its own, which takes half of the processor time of Chromium."""
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path="/usr/bin/chromium-headless-shell", args=CHROMIUM)
        yield running
        running.close()


@pytest.fixture(scope="session")
def with_scripts() -> Iterator[Marionette]:
    """Debian's Firefox."""
    with firefox() as running:
        yield running


@pytest.fixture(scope="session")
def without_scripts() -> Iterator[Marionette]:
    """Debian's Firefox without JavaScript. One Firefox cannot have windows of both kinds."""
    with firefox(scripts=False) as running:
        yield running


@pytest.fixture
def scripts() -> bool:
    """JavaScript in ``window``; a parameter of a test overrides it."""
    return True


@pytest.fixture(params=["chromium", "firefox"])
def window(request: pytest.FixtureRequest, browser: Browser, scripts: bool) -> Iterator[Window]:
    """An empty window of each browser."""
    if request.param == "chromium":
        with chromium_window(browser, scripts=scripts) as made:
            yield made
    else:
        with firefox_window(request.getfixturevalue("with_scripts" if scripts else "without_scripts")) as made:
            yield made


@pytest.fixture
def outside() -> Iterator[Listener]:
    """The Internet, which hostile mail wants to reach."""
    with listening({}) as listener:
        yield listener


_numbers = itertools.count(1)


@pytest.fixture
def needle() -> str:
    """A word that no other mail of this session has."""
    return f"needle{next(_numbers):04}x"
