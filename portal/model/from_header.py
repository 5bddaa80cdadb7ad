"""The From field: its mailboxes by the syntax of RFC 5322, 3.4, also if the field departs from it.

An address is never taken from a comment, a quoted string or an encoded word. Encoded words are decoded after the syntax
was read, since they may contain any character.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple, cast

from portal.model.charsets import decode
from portal.model.encoded_words import decode_words
from portal.model.text import cleaned

_READ_CHARACTERS = 8_192  # 0.1 s for hostile text
_MAILBOXES = 100  # more are not counted
_ADDRESS_CHARACTERS = 320  # RFC 5321, 4.5.3.1: 64 + @ + 255; longer texts are no addresses
_NAME_CHARACTERS = 500
_WRITTEN_CHARACTERS = 2_000

_TOKEN = re.compile(
    r"""
    (?P<space>\s++)
    # Mail programs also decode words with blanks, commas and brackets, which RFC 2047, 5 (3) forbids.
    | (?P<word>=\?[^?\s]{1,60}\?[qQbB]\?[^?]*+(?:(?<!=)\?(?!=)[^?]*+)*+\?=)
    | "(?P<quoted>(?:[^"\\]|\\.)*+)"  # a quote that is not closed is an ordinary character
    | (?P<literal>\[[^][\\\s]*+\])
    | (?P<text>(?:(?!=\?)[^]["\\(<>,;:@\s]|\\.)++)
    | (?P<special>.)
    """,
    re.DOTALL | re.VERBOSE,
)
# Most fields; row of the bench: "a post without an expression for simple senders".
_SIMPLE = re.compile(
    r"(?:([A-Za-z0-9]+(?: [A-Za-z0-9]+){0,5}) )?"
    r"<([A-Za-z0-9]+(?:[._+-][A-Za-z0-9]+){0,9}@[A-Za-z0-9.-]{1,200}[A-Za-z])>"
)
_IN_COMMENT = re.compile(r"[^()\\]++|\\.|.", re.DOTALL)
_PAIR = re.compile(r"\\(.)", re.DOTALL)
_NEEDS_QUOTES = re.compile(r'[]()<>[:;@\\,"]|=\?')
_DOMAIN = re.compile(r'[^\s()<>[\]:;@\\,"?\ufffd]+|\[[^\s()<>[\]@\\,"?\ufffd]+\]')
_TO_ESCAPE = re.compile(r'["\\]')
_CONTROLS = re.compile(r"[\x00-\x1f\x7f]")
_SPACE = re.compile(r"\s")
_LONE_SURROGATES = re.compile("[\ud800-\udc7f\udd00-\udfff]")


class Mailbox(NamedTuple):
    """A display name and an address, each "" if missing.

    The name includes comments, as mail programs show them, and has no control characters. The local part of the address
    has quotes only if it needs them.
    """

    name: str
    address: str


class _Token(NamedTuple):
    kind: str  # "space", "comment", "quoted" or "text"; the specials < > @ , ; : are kinds of their own
    text: str  # without the quotes, the outer brackets and the backslashes of pairs


def read(fields: Iterable[str]) -> tuple[Mailbox, ...]:
    """Return the mailboxes of all From fields of a message: at least one for each field, at most 100. Never raises.

    ``fields``: unfolded, with encoded words, and with raw octets as the codec error handler `surrogateescape` writes
    them. Only 8,192 characters are read; what follows counts as one mailbox of which nothing is known.
    """
    found: list[Mailbox] = []
    left = _READ_CHARACTERS
    for field in fields:
        if simple := _SIMPLE.fullmatch(field, 0, left):
            found.append(Mailbox(simple[1] or "", simple[2]))
        else:
            found += _mailboxes(field[:left], encoded=True, complete=len(field) <= left)
        left = max(0, left - len(field))
        if len(found) >= _MAILBOXES:
            break
    return tuple(found[:_MAILBOXES])


@lru_cache(maxsize=4096)  # row of the bench: "a digest without cached senders"
def parse(field: str) -> tuple[Mailbox, ...]:
    """Return the mailboxes of a decoded From field, such as `written` returns; at least one, at most 100. Never raises.

    A name that equals the address is dropped.
    """
    found = _mailboxes(field[:_READ_CHARACTERS], encoded=False, complete=len(field) <= _READ_CHARACTERS)
    return tuple(found[:_MAILBOXES])


def written(mailboxes: Sequence[Mailbox]) -> str:
    """Return the first of the mailboxes as a field that `parse` reads, at most 2,000 characters.

    Names are truncated to 500 characters.
    """
    field = ""
    for name, address in mailboxes:
        phrase = name[:_NAME_CHARACTERS].strip()
        if _NEEDS_QUOTES.search(phrase):
            phrase = _quoted(phrase)
        if not phrase:
            text = address or "<>"
        elif address or len(mailboxes) > 1:  # without brackets, a comma would belong to the name
            text = f"{phrase} <{address}>"
        else:
            text = phrase
        if len(field) + len(text) + 2 > _WRITTEN_CHARACTERS:
            break
        field += f", {text}" if field else text
    return "" if field == "<>" else field


def normal_address(address: str) -> str:
    """Return an address without quotes that its local part does not need, "" if it is no address."""
    local, _, domain = address.rpartition("@")
    if len(local) > 1 and local[0] == local[-1] == '"':
        local = _PAIR.sub(r"\1", local[1:-1])
    return _address(local, domain)


def _mailboxes(field: str, *, encoded: bool, complete: bool) -> list[Mailbox]:
    found: list[Mailbox] = []
    named: list[_Token] = []  # before a comma that belongs to a name: "Berg, Nina <nina@shop.example>"
    parts = list(_parts(_tokens(field)))
    for part in parts if complete else parts[:-1]:
        name, addresses, has_angle = _divided(part)
        if addresses or has_angle:
            found += (
                Mailbox("" if n else _name([*named, *name], address, encoded), address)
                for n, address in enumerate(addresses or [""])
            )
            named = []
        elif any(token.kind != "space" for token in name):
            named += [*name, _Token("text", ", ")]
    if found and complete:
        return found
    return [*found, Mailbox(_name(named[:-1], "", encoded), "")]


def _tokens(field: str) -> Iterator[_Token]:
    text, at = _CONTROLS.sub(" ", field), 0
    while at < len(text):
        match = cast(re.Match[str], _TOKEN.match(text, at))
        at = match.end()
        kind = cast(str, match.lastgroup)
        if match[0] == "(":
            start, at = at, _comment_end(text, at)
            yield _Token("comment", _PAIR.sub(r"\1", text[start : at - 1]))
        elif kind == "special":
            yield _Token(match[0] if match[0] in "<>@,;:" else "text", match[0])
        elif kind in ("word", "literal"):
            yield _Token("text", match[0])
        else:
            yield _Token(kind, _PAIR.sub(r"\1", match[kind]))


def _comment_end(text: str, at: int) -> int:
    """Return the position after the comment whose text begins at ``at``. One that is not closed takes all the rest."""
    depth = 1
    for piece in _IN_COMMENT.finditer(text, at):
        depth += {"(": 1, ")": -1}.get(piece[0], 0)
        if not depth:
            return piece.end()
    return len(text) + 1


def _parts(tokens: Iterator[_Token]) -> Iterator[list[_Token]]:
    """Yield the tokens between the commas and semicolons that divide mailboxes."""
    part: list[_Token] = []
    in_angle = False
    for token in tokens:
        if token.kind in (",", ";") and not in_angle:
            yield part
            part = []
        else:
            in_angle = token.kind == "<" or (in_angle and token.kind != ">")
            part.append(token)
    yield part


def _divided(part: list[_Token]) -> tuple[list[_Token], list[str], bool]:
    """Return (name and comments, addresses, does it have angle brackets?)."""
    before: list[_Token] = []
    inside: list[_Token] = []
    after: list[_Token] = []
    addresses: list[str] = []
    place = before
    for token in [*part, _Token(">", ">")]:
        if token.kind in "<>":
            found, rest = _addresses(inside)
            others = [token for token in inside if token.kind == "comment"] if found else inside
            (after if addresses else before).extend(others)
            addresses += found
            if found and any(token.kind in ("text", "quoted") for token in _without_route(rest)):
                addresses.append("")  # the rest may be the address for another program
            inside = []
            place = inside if token.kind == "<" else after if addresses else before
        else:
            place.append(token)
    if addresses:
        comments = [token for token in after if token.kind == "comment"]
        return [*before, *comments], addresses + _addresses(after)[0], True
    addresses, name = _addresses(before)
    return name, addresses, any(token.kind == "<" for token in part)


def _without_route(tokens: Sequence[_Token]) -> Sequence[_Token]:
    """Return the tokens in angle brackets without the hosts of a source route, ``@a,@b:`` (RFC 5322, 4.4)."""
    kinds = [token.kind for token in tokens if token.kind not in ("space", "comment")]
    if kinds[:1] != ["@"] or ":" not in kinds:
        return tokens
    colon = next(n for n, token in enumerate(tokens) if token.kind == ":")
    return tokens[colon + 1 :]


def _addresses(tokens: Sequence[_Token]) -> tuple[list[str], list[_Token]]:
    """Return (the addresses among the words of a text, all other tokens). Blanks and comments may surround the @."""
    words: list[list[int]] = [[]]
    is_gap, is_end = False, False
    for n, token in enumerate(tokens):
        word = words[-1]
        if token.kind in ("space", "comment"):
            is_gap = True
        elif token.kind in (",", ";", ":"):
            is_end = True
        else:
            if word and (is_end or (is_gap and not _goes_on(tokens[word[-1]], token))):
                words.append(word := [])
            word.append(n)
            is_gap = is_end = False
    addresses: list[str] = []
    taken: set[int] = set()
    for word in words:
        address = _address_of([tokens[n] for n in word])
        if address:
            addresses.append(address)
            taken.update(word)
    return addresses, [token for n, token in enumerate(tokens) if n not in taken]


def _goes_on(before: _Token, after: _Token) -> bool:
    """Return whether two tokens with a blank or comment between them are of one address: beside an @ or a dot (RFC
    5322, 4.4)."""
    return "@" in (before.kind, after.kind) or before.text.endswith(".") or after.text.startswith(".")


def _address_of(word: Sequence[_Token]) -> str:
    kinds = [token.kind for token in word]
    if kinds.count("@") != 1:
        return ""  # two could be read as either address
    at = kinds.index("@")
    if "quoted" in kinds[at:]:
        return ""
    local, domain = ("".join(token.text for token in tokens) for tokens in (word[:at], word[at + 1 :]))
    if local.startswith("'") and domain.endswith("'"):  # Outlook's quotes
        local, domain = local[1:], domain[:-1]
    return _address(local, domain)


def _address(local: str, domain: str) -> str:
    local, domain = cleaned(_decoded(local)), _decoded(domain)
    if not local or not _DOMAIN.fullmatch(domain):
        return ""
    if _SPACE.search(local) or _NEEDS_QUOTES.search(local):
        local = _quoted(local)
    address = f"{local}@{domain}"
    return address if len(address) <= _ADDRESS_CHARACTERS else ""


def _decoded(text: str) -> str:
    """Return text with its raw octets decoded."""
    if text.isascii():
        return text
    return decode(_LONE_SURROGATES.sub("\ufffd", text).encode("utf-8", "surrogateescape"))


def _name(tokens: Sequence[_Token], address: str, encoded: bool) -> str:
    """Return the display name followed by comments, "" if it equals the address."""
    phrase = "".join(" " if token.kind == "comment" else token.text for token in tokens)
    comments = " ".join(token.text for token in tokens if token.kind == "comment")
    phrase, comments = (
        " ".join(cleaned(decode_words(text) if encoded else text).split()) for text in (phrase, comments)
    )
    if address and phrase.strip("'\"<> ").lower() == address.lower():
        phrase = ""
    return f"{phrase} ({comments})" if phrase and comments else phrase or comments


def _quoted(text: str) -> str:
    return '"' + _TO_ESCAPE.sub(r"\\\g<0>", text) + '"'
