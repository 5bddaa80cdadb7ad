"""What opens the links of a digest before its reader does: scanners of mail, as they come over HTTP."""

from __future__ import annotations

import http.client
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from html.parser import HTMLParser
from urllib.parse import urlencode, urlsplit

ORIGIN = "http://127.0.0.1:8080"  # of public_url; the portal listens elsewhere
# As Chromium marks what a person did and what a script did.
BY_A_PERSON = {
    "Sec-Fetch-Site": "same-origin",
    "Sec-Fetch-Mode": "navigate",
    "Sec-Fetch-User": "?1",
    "Sec-CH-UA": '"C"',
}
BY_A_SCRIPT = {name: value for name, value in BY_A_PERSON.items() if name != "Sec-Fetch-User"}


@dataclass
class Forms(HTMLParser):
    """The forms of a page: their fields, their checkboxes, and their buttons."""

    found: list[tuple[list[tuple[str, str]], list[tuple[str, str]], list[tuple[str, str]]]] = field(
        default_factory=list
    )

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        if tag == "form" and named.get("method") == "post":
            self.found.append(([], [], []))
        elif self.found and named.get("name") and tag in ("input", "button"):
            kind = 2 if tag == "button" else 1 if named.get("type") == "checkbox" else 0
            self.found[-1][kind].append((str(named["name"]), named.get("value") or ""))


class Client:
    """Asks the portal; counts what it was answered."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.answers: Counter[str] = Counter()

    def ask(self, method: str, url: str, form: Sequence[tuple[str, str]] = (), **headers: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        try:
            sent = {name.replace("_", "-"): value for name, value in headers.items()}
            if method == "POST":
                sent |= {"Content-Type": "application/x-www-form-urlencoded", "Origin": ORIGIN}
            connection.request(method, urlsplit(url).path, urlencode(form), sent)
            answer = connection.getresponse()
            text = answer.read().decode()
        finally:
            connection.close()
        self.answers[f"{method} {answer.status}"] += 1
        return answer.status, text

    def post(self, url: str, form: Sequence[tuple[str, str]], headers: dict[str, str]) -> None:
        self.ask("POST", url, form, **headers)


Scanner = Callable[[Client, Sequence[str]], None]


def heads(client: Client, links: Sequence[str]) -> None:
    for link in links:
        client.ask("HEAD", link)


def curl(client: Client, links: Sequence[str]) -> None:
    for link in links:
        client.ask("GET", link, User_Agent="curl/8.9.1")


def prefetch(client: Client, links: Sequence[str]) -> None:
    for link in links:
        client.ask("GET", link, Sec_Purpose="prefetch")


def prerender(client: Client, links: Sequence[str]) -> None:
    for link in links:
        client.ask("GET", link, Sec_Purpose="prefetch;prerender")
        client.post(link, [], {**BY_A_SCRIPT, "Sec-Purpose": "prefetch;prerender"})


def burst(client: Client, links: Sequence[str]) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda link: client.ask("GET", link), [*links, *links]))


def crawler(client: Client, links: Sequence[str]) -> None:
    """Follows what it finds, once."""
    for link in links:
        _, page = client.ask("GET", link)
        for found in re.findall(r'href="(/quarantine/[^"]*)"', page):
            client.ask("GET", found)


def forms(client: Client, links: Sequence[str]) -> Iterator[tuple[str, list[tuple[str, str]], list[tuple[str, str]]]]:
    """Link, fields with every box ticked, and buttons of each form there is."""
    for link in links:
        parser = Forms()
        parser.feed(client.ask("GET", link)[1])
        for fields, boxes, buttons in parser.found:
            yield link, fields + boxes, buttons


def submitter(client: Client, links: Sequence[str]) -> None:
    """A script's form.submit(): without a button's name."""
    for link, fields, _ in forms(client, links):
        client.post(link, fields, BY_A_SCRIPT)


def script_clicker(client: Client, links: Sequence[str]) -> None:
    """A script's button.click() in a browser."""
    for link, fields, buttons in forms(client, links):
        for button in buttons:
            client.post(link, [*fields, button], BY_A_SCRIPT)


def plain_clicker(client: Client, links: Sequence[str]) -> None:
    """Fills in and sends every form with every button, without a browser."""
    for link, fields, buttons in forms(client, links):
        for button in buttons:
            client.post(link, [*fields, button], {})


READERS: Sequence[Scanner] = (heads, curl, prefetch, prerender, burst, crawler, submitter)
CLICKERS: Sequence[Scanner] = (script_clicker, plain_clicker)
