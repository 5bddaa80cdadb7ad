"""Compare what the portal reads of mail with two independent parsers: ``python -m tools.corpora FOLDER NODE_MODULES``.

FOLDER has messages (every file that is not JSON or documentation), NODE_MODULES is the folder in which npm
installed postal-mime (``npm install --prefix /tmp/parsers postal-mime``: /tmp/parsers/node_modules). The other parser
is Python's email. Where both agree on a subject, a sender's address, words of the text or names of attachments, the
portal must show the same. A subject or name in which both have lost octets (U+FFFD) is not compared. Prints a table in
Markdown, and each difference to stderr.
"""

from __future__ import annotations

import html
import io
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from email import message_from_bytes, policy
from email.message import EmailMessage
from email.utils import parseaddr
from pathlib import Path

from portal.exporter.values import own_fields
from portal.reading import child
from portal.reading.mime import Parser

_ASPECTS = ("subject", "sender", "text", "attachment")
_LOST = "\ufffd"
_NOT_MAIL = re.compile(r".*\.(json|mjs|md)|COPYING|\..*")
_NODE = """
import fs from "node:fs";
import PostalMime from "%s/postal-mime/dist/esm/postal-mime.js";
for (const path of JSON.parse(fs.readFileSync(0, "utf8"))) {
    let found = null;
    try {
        const mail = await PostalMime.parse(fs.readFileSync(path));
        found = {
            subject: mail.subject || "", sender: mail.from?.address || "",
            plain: mail.text || "", html: mail.html || "",
            names: mail.attachments.map((each) => each.filename || "").filter((name) => name),
        };
    } catch (error) {}
    console.log(JSON.stringify(found));
}
"""


@dataclass(frozen=True)
class Read:
    """A message as one parser reads it."""

    subject: str
    sender: str
    plain: str
    html: str
    names: list[str]


def by_email(data: bytes) -> Read | None:
    """Return a message as Python's email reads it, None if it raises."""
    try:
        mail = message_from_bytes(data, policy=policy.default)
        texts: dict[str, list[str]] = {"text/plain": [], "text/html": []}
        names = []
        for part in mail.walk():
            if part.get_filename():
                names.append(part.get_filename() or "")
            is_text = part.get_content_type() in texts and part.get_content_disposition() != "attachment"
            if is_text and isinstance(part, EmailMessage):
                texts[part.get_content_type()].append(part.get_content())
        sender = parseaddr(str(mail.get("from", "")))[1]
        plain, marked_up = ("\n".join(each) for each in texts.values())
        return Read(str(mail.get("subject", "")), sender, plain, marked_up, names)
    except Exception:  # email raises many kinds of errors for broken messages
        return None


def by_postal_mime(paths: list[Path], modules: Path) -> Iterator[Read | None]:
    """Return the messages as postal-mime reads them, in order, None where it raises."""
    command = ["node", "--input-type=module", "--eval", _NODE % modules.resolve()]
    names = json.dumps([str(path.resolve()) for path in paths])
    done = subprocess.run(command, input=names, capture_output=True, text=True, check=True)
    for line in done.stdout.splitlines():
        found = json.loads(line)
        yield Read(**found) if found else None


def by_portal(data: bytes) -> Read:
    """Return a message as the portal shows it; the text is in `plain`."""
    shown = child.read(io.BytesIO(data).read, lambda: 0)
    own = own_fields(_header(data))
    sender = own.mailboxes[0].address if own.mailboxes else ""
    names = [name for name, _, _ in shown["attachments"]]
    return Read(
        Parser(io.BytesIO(data).read, lambda: False).root.fields.text("subject"), sender, shown["text"], "", names
    )


def _header(data: bytes) -> bytes:
    end = re.search(rb"\n\r?\n", data)
    return data[: end.end()] if end else data


def words(text: str) -> set[str]:
    """Return the words of a text."""
    return set(re.findall(r"\w{2,}", text.lower()))


def html_words(markup: str) -> set[str]:
    """Return the words of HTML that no style hides."""
    markup = re.sub(r"(?is)<!--.*?-->|<(style|script|title|head)\b.*?</\1>", " ", markup)
    markup = re.sub(r"(?is)<(\w+)[^>]*style=[^>]*(?:font-size: *0|display: *none)[^>]*>.*?</\1>", "", markup)
    markup = re.sub(r"(?is)</?(p|div|br|t[rdh]|li|h[1-6]|table)\b", r" <\1", markup)
    return words(html.unescape(re.sub(r"(?s)</?[a-zA-Z!?][^>]*>", "", markup)))


def _plain(text: str) -> str:
    return " ".join(text.split())


def differences(ours: Read, one: Read, other: Read) -> dict[str, str]:
    """Return what is wrong by aspect: where two parsers agree and the portal differs."""
    found = {}
    if _plain(one.subject) == _plain(other.subject) != _plain(ours.subject) and _LOST not in one.subject:
        found["subject"] = f"{one.subject!r} != {ours.subject!r}"
    if one.sender.lower() == other.sender.lower() != ours.sender.lower():
        found["sender"] = f"{one.sender!r} != {ours.sender!r}"
    shown = words(ours.plain)
    agreed = html_words(one.html) & html_words(other.html) or words(one.plain) & words(other.plain)
    if missing := agreed - shown:
        found["text"] = f"missing {sorted(missing)[:10]} of {len(agreed)}"
    names = Counter(map(_plain, one.names)) & Counter(map(_plain, other.names))
    listed = [_plain(name) for name in ours.names]
    if lost := [name for name in names if _LOST not in name and not any(each.startswith(name) for each in listed)]:
        found["attachment"] = f"missing {lost}"
    return found


def main(folder: Path, modules: Path) -> None:
    """Print the table of the folders in ``folder``."""
    print("| messages | number | compared |", " | ".join(f"wrong {aspect}" for aspect in _ASPECTS), "|")
    print("| --- |" + " --- |" * (len(_ASPECTS) + 2))
    for corpus in sorted(each for each in folder.iterdir() if each.is_dir()):
        paths = sorted(p for p in corpus.rglob("*") if p.is_file() and not _NOT_MAIL.fullmatch(p.name))
        if not paths:
            continue
        wrong: Counter[str] = Counter()
        compared = 0
        for path, other in zip(paths, by_postal_mime(paths, modules), strict=True):
            data = path.read_bytes()
            one, ours = by_email(data), by_portal(data)
            if one is None or other is None:
                continue
            compared += 1
            for aspect, text in differences(ours, one, other).items():
                wrong[aspect] += 1
                print(f"{path}: {aspect}: {text}", file=sys.stderr)
        counts = " | ".join(str(wrong[aspect]) for aspect in _ASPECTS)
        print(f"| {corpus.name} | {len(paths)} | {compared} | {counts} |", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
