"""Mail scanners, which open the links of a digest before its reader does, as HTTP clients."""

from __future__ import annotations

import http.client
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from html.parser import HTMLParser
from urllib.parse import urlencode, urlsplit

ORIGIN = "http://127.0.0.1:8080"  # of public_url; the portal listens on another port
# Chromium's headers for a press of a person and of a script.
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
    """Sends requests to the portal and counts the replies."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.answers: Counter[str] = Counter()

    def request(self, method: str, url: str, form: Sequence[tuple[str, str]] = (), **headers: str) -> tuple[int, str]:
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
        self.request("POST", url, form, **headers)


Scanner = Callable[[Client, Sequence[str]], None]


def heads(client: Client, links: Sequence[str]) -> None:
    for link in links:
        client.request("HEAD", link)


def curl(client: Client, links: Sequence[str]) -> None:
    for link in links:
        client.request("GET", link, User_Agent="curl/8.9.1")


def prefetch(client: Client, links: Sequence[str]) -> None:
    for link in links:
        client.request("GET", link, Sec_Purpose="prefetch")


def prerender(client: Client, links: Sequence[str]) -> None:
    for link in links:
        client.request("GET", link, Sec_Purpose="prefetch;prerender")
        client.post(link, [], {**BY_A_SCRIPT, "Sec-Purpose": "prefetch;prerender"})


def burst(client: Client, links: Sequence[str]) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda link: client.request("GET", link), [*links, *links]))


def crawler(client: Client, links: Sequence[str]) -> None:
    """Follow the links on each page, once."""
    for link in links:
        _, page = client.request("GET", link)
        for found in re.findall(r'href="(/quarantine/[^"]*)"', page):
            client.request("GET", found)


def forms(client: Client, links: Sequence[str]) -> Iterator[tuple[str, list[tuple[str, str]], list[tuple[str, str]]]]:
    """Yield for each form its link, its fields with every box ticked, and its buttons."""
    for link in links:
        parser = Forms()
        parser.feed(client.request("GET", link)[1])
        for fields, boxes, buttons in parser.found:
            yield link, fields + boxes, buttons


def submitter(client: Client, links: Sequence[str]) -> None:
    """Call form.submit() by script, which sends no button's name."""
    for link, fields, _ in forms(client, links):
        client.post(link, fields, BY_A_SCRIPT)


def script_clicker(client: Client, links: Sequence[str]) -> None:
    """Call button.click() by script in a browser."""
    for link, fields, buttons in forms(client, links):
        for button in buttons:
            client.post(link, [*fields, button], BY_A_SCRIPT)


def plain_clicker(client: Client, links: Sequence[str]) -> None:
    """Fill in and send every form with every button, without a browser."""
    for link, fields, buttons in forms(client, links):
        for button in buttons:
            client.post(link, [*fields, button], {})


READERS: Sequence[Scanner] = (heads, curl, prefetch, prerender, burst, crawler, submitter)
CLICKERS: Sequence[Scanner] = (script_clicker, plain_clicker)
