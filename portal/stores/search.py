"""Searching, the same in both stores: what of a message is indexed, what a question asks the index for, and pages.

A message is indexed under *terms*: its words – of the subject, the envelope sender and the From header – and, with an
``=`` in front, which no word has, its tier, its score in whole points and a hash of each recipient. Both stores keep
them in their own inverted index, PostgreSQL in a `tsvector` with GIN, SQLite in FTS5; the words are made here, since
the two would cut and fold text differently. What a question asks for becomes groups of terms: one term of each group
must be there. So query text never reaches a query language.

What is bounded: the index is asked day by day, newest first, for a batch of messages below the last one seen, until
the page is full; what the index cannot know (a state, the exact score, the middle of a word of the sender) is looked
at message by message, for at most `LOOKED_AT` of them in a call. A page may then be short, or even empty, and still
have a ``next``.
"""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator

from portal.model.message import Delivery, DeliveryId, Filter, Reader, State, Tier, identity, spellings
from portal.stores.records import Page

LOOKED_AT = 10_000  # messages a call looks at beyond what the index finds
BATCH = 500
FOLDED_CHARS = 2_000  # of a subject or sender that are indexed
SUBJECT_WORDS = 48  # a subject with more is found by its first ones
SENDER_WORDS = 24
WORD_CHARS = 64  # longer ones are found by their beginnings
_SCORE_MIN, _SCORE_MAX = -20, 179  # whole points told apart by the index: 200 of them

Terms = tuple[tuple[str, ...], ...]  # groups, of each of which one term must be there; "abc*" is a beginning

_ASCII_WORD = re.compile(r"[a-z0-9]+")
_ACCENTS = re.compile("[\u0300-\u036f]+")  # of Latin, Greek and Cyrillic; signs of other scripts make other words
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han, Hiragana, Katakana
_UNSPACED_RUN = re.compile(f"([{_UNSPACED}]+)")


def fold(text: str) -> str:
    """Text as it is compared: without case, accents, and forms that only look different (Unicode's NFKC)."""
    if text.isascii():
        return text.lower()
    text = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    return unicodedata.normalize("NFC", _ACCENTS.sub("", text))


def words(text: str, at_most: int) -> list[str]:
    """The different words of a text in their order, folded: runs of letters, digits and their marks.

    Chinese and Japanese have no blanks between words: a run is cut into all its pairs of characters and its last one,
    so that whatever stands inside is found, if rarely more than that.
    """
    folded = fold(text[:FOLDED_CHARS])
    if folded.isascii():
        return list(dict.fromkeys(word[:WORD_CHARS] for word in _ASCII_WORD.findall(folded)))[:at_most]
    blanks = "".join(c if c.isalnum() or unicodedata.category(c)[0] == "M" else " " for c in folded)
    found: list[str] = []
    for piece in _UNSPACED_RUN.sub(r" \1 ", blanks).split():
        if _UNSPACED_RUN.fullmatch(piece):
            found += (piece[n : n + 2] for n in range(len(piece)))
        else:
            found.append(piece[:WORD_CHARS])
    return list(dict.fromkeys(found))[:at_most]


def terms(
    subject: str,
    envelope_sender: str | None,
    header_from: str,
    tier: Tier,
    score: float | None,
    recipients: Iterable[str],
) -> list[str]:
    """What a message is indexed under; ``recipients`` are identities. At most some hundred bytes and 18 a recipient."""
    found = words(subject, SUBJECT_WORDS)
    found += words(f"{envelope_sender or ''} {header_from}", SENDER_WORDS)
    found += [*verdict_terms(tier, score), *(recipient_term(recipient) for recipient in recipients)]
    return list(dict.fromkeys(found))


def verdict_terms(tier: Tier, score: float | None) -> list[str]:
    """Return the terms of a tier and a score."""
    found = [f"={tier.value}"]
    if score is not None and not math.isnan(score):
        found.append(f"=s{_points(score):03}")
    return found


def recipient_term(recipient: str) -> str:
    """The term of a recipient's identity: hashed, since addresses are long and may hold anything."""
    return "=r" + hashlib.blake2b(recipient.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def _points(score: float) -> int:
    return math.floor(max(_SCORE_MIN, min(_SCORE_MAX, score))) - _SCORE_MIN


def _between(low: int, high: int) -> Iterator[str]:
    """Terms for these points and those between: a hundred or ten of them are one beginning."""
    while low <= high:
        width = next(width for width in (100, 10, 1) if low % width == 0 and low + width - 1 <= high)
        digits = f"{low:03}"
        yield f"=s{digits}" if width == 1 else f"=s{digits[: 4 - len(str(width))]}*"
        low += width


def of_reader(reader: Reader, states: Collection[State], words: str) -> Filter:
    """Return the search of a reader's own list, of one who reads something."""
    first, *also = reader.identities
    return Filter(recipient=first, also=tuple(also), states=frozenset(states), words=words)


def wanted_terms(wanted: Filter) -> Terms | None:
    """What to ask the index for; nothing when the list of deliveries serves better, None when nothing can be found."""
    groups: list[tuple[str, ...]] = []
    if wanted.words and not wanted.words.isspace():
        asked = _asked(wanted.words)
        if asked is None:
            return None
        groups += asked
    if wanted.sender:
        groups += _of_sender(wanted.sender)
    if wanted.tiers and wanted.tiers != frozenset(Tier):
        groups.append(tuple(f"={tier.value}" for tier in sorted(wanted.tiers)))
    if wanted.score_min is not None or wanted.score_max is not None:
        low = _points(_SCORE_MIN if wanted.score_min is None else wanted.score_min)
        high = _points(_SCORE_MAX if wanted.score_max is None else wanted.score_max)
        if low > high:
            return None
        groups.append(tuple(_between(low, high)))
    if groups and wanted.recipient is not None:
        # Messages held before schema version 6 are indexed under the spelling with U-labels.
        names = [name for each in (wanted.recipient, *wanted.also) for name in spellings(identity(each))]
        groups.append(tuple(map(recipient_term, names)))
    return tuple(groups)


def _asked(text: str) -> list[tuple[str, ...]] | None:
    found = words(text, FOLDED_CHARS)
    # A word that another one begins with says nothing; of the rest each needs a word of its own.
    found = [word for word in found if not any(other != word and other.startswith(word) for other in found)]
    if not found or len(text) > FOLDED_CHARS or len(found) > SUBJECT_WORDS + SENDER_WORDS:
        return None
    return [(f"{word}*",) for word in found]


def _of_sender(text: str) -> list[tuple[str, ...]]:
    """The words that surely are in a sender with this part: all, but for a first one that may be the end of a word.

    None of Chinese and Japanese, whose pairs may be cut as well.
    """
    folded = fold(text)
    found = [] if _UNSPACED_RUN.search(folded) else words(folded, SENDER_WORDS)
    if found and folded.startswith(found[0]):
        found = found[1:]
    return [(f"{word}*",) for word in found]


def needs_filtering(wanted: Filter) -> bool:
    """Whether deliveries must be looked at one by one (`fits`), whatever the index and the database's own say."""
    return bool(wanted.sender) or wanted.score_min is not None or wanted.score_max is not None


def fits(wanted: Filter, delivery: Delivery) -> bool:
    """Whether a delivery has what the index knows only roughly: the part of a sender, the score, the tier.

    A message whose tier was raised stays indexed under the one it had.
    """
    message = delivery.message
    if wanted.tiers and message.tier not in wanted.tiers:
        return False
    if wanted.sender:
        part = fold(wanted.sender)
        if part not in fold(message.envelope_sender or "") and part not in fold(message.header_from):
            return False
    if wanted.score_min is not None and (message.score is None or not message.score >= wanted.score_min):
        return False
    return wanted.score_max is None or (message.score is not None and message.score <= wanted.score_max)


def gather(wanted: Filter, limit: int, batches: Iterator[tuple[Collection[Delivery], DeliveryId, int]]) -> Page:
    """A page from batches of deliveries, newest first; each comes with the key it reaches down to and how many
    messages or deliveries were looked at for it. The end of the batches is the end of the list."""
    found: list[Delivery] = []
    looked_at = 0
    for deliveries, reached, looked in batches:
        for delivery in deliveries:
            if fits(wanted, delivery):
                if len(found) == limit:
                    return Page(tuple(found), found[-1].key)
                found.append(delivery)
        looked_at += looked
        if looked_at >= LOOKED_AT:
            return Page(tuple(found), reached)
    return Page(tuple(found), None)
