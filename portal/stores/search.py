"""Search, the same in both stores: the terms of a message, the terms of a query, and pages of results.

A message is indexed under *terms*. These are the words of its subject, envelope sender and From header, later those of
the names of its attachments and, with the
prefix ``=``, which no word has, its tier, its score in whole points and a hash of each recipient. Both stores keep an
inverted index of their own, PostgreSQL a `tsvector` with GIN, SQLite FTS5. The words are made here, since the two
would split and fold text differently. A query becomes groups of terms, and a message must have one term of each group.
So query text never reaches a query language.

The work of one call is bounded. The index is queried for a range of days at a time, newest first, for a batch of
messages below the last one found, until the page is full. Conditions that the index cannot answer (a state, the exact
score, the middle of a word of the sender) are checked message by message, for at most `EXAMINED_MAX` messages. A page
may therefore be short, or even empty, and still have a ``next``.

A recipient has few messages, while the index of a frequent word has many, and those with words that begin with it. So
the recipient's newest messages are compared one by one (`NEWEST_MAX`), and the index is queried for what is older.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

from portal.model.message import Delivery, DeliveryId, Filter, Message, Reader, State, Tier, identity, spellings
from portal.model.ranking import Likeness
from portal.model.reasons import has_attachment, why
from portal.stores.records import Page
from portal.stores.span import Span

EXAMINED_MAX = 10_000  # messages or deliveries that one call examines
NEWEST_MAX = 1_000  # a recipient's deliveries whose words are compared without the index
NEWEST_FIRST = 128  # so many of them at first, then twice as many as before
BATCH = 500
CANDIDATES_MAX = 200  # deliveries that may be near-duplicates of another one, for a count; a page has as many more
FOLDED_CHARS = 2_000  # indexed characters of a subject or sender
SUBJECT_WORDS = 48  # a subject with more words is found by its first ones
SENDER_WORDS = 24
ATTACHMENT_WORDS = 48
WORD_CHARS = 64  # longer words are found by their beginnings
_SCORE_MIN, _SCORE_MAX = -20, 179  # the index distinguishes whole points in this range, 200 values

Terms = tuple[tuple[str, ...], ...]  # groups: a message must have one term of each; "abc*" is a prefix

_ASCII_WORD = re.compile(r"[a-z0-9]+")
_ACCENTS = re.compile("[\u0300-\u036f]+")  # of Latin, Greek and Cyrillic; marks of other scripts make different words
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han, Hiragana, Katakana
_QUOTES = str.maketrans(dict.fromkeys("“”„‟«»「」『』＂", '"'))
_UNSPACED_RUN = re.compile(f"([{_UNSPACED}]+)")


def fold(text: str) -> str:
    """Return text for comparison: without case, accents, and differences of form only (Unicode's NFKC)."""
    if text.isascii():
        return text.lower()
    text = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    return unicodedata.normalize("NFC", _ACCENTS.sub("", text))


def words(text: str, limit: int) -> list[str]:
    """Return the distinct words of a text, folded, in order of appearance: runs of letters, digits and their marks.

    Chinese and Japanese have no spaces between words: a run is split into all pairs of adjacent characters and its last
    character, so that every part of it is found. False matches are rare.
    """
    folded = fold(text[:FOLDED_CHARS])
    if folded.isascii():  # row of the bench: "a post without code for ASCII words"
        return list(dict.fromkeys(word[:WORD_CHARS] for word in _ASCII_WORD.findall(folded)))[:limit]
    found: list[str] = []
    for piece in _UNSPACED_RUN.sub(r" \1 ", _blanked(folded)).split():
        if _UNSPACED_RUN.fullmatch(piece):
            found += (piece[n : n + 2] for n in range(len(piece)))
        else:
            found.append(piece[:WORD_CHARS])
    return list(dict.fromkeys(found))[:limit]


def _blanked(folded: str) -> str:
    """Return a folded text with blanks for all characters that are not part of a word."""
    return "".join(c if c.isalnum() or unicodedata.category(c)[0] == "M" else " " for c in folded)


def phrases(text: str) -> list[str]:
    """Return the phrases of a query: what is between two quotation marks and has several words. The words are folded
    and separated by single blanks."""
    found = (" ".join(_blanked(fold(phrase)).split()) for phrase in text.translate(_QUOTES).split('"')[1:-1:2])
    return [phrase for phrase in found if " " in phrase]


def terms(
    subject: str,
    envelope_sender: str | None,
    header_from: str,
    tier: Tier,
    score: float | None,
    recipients: Iterable[str],
    attachments: Iterable[str] = (),
) -> list[str]:
    """Return the terms of a message; ``recipients`` are identities, ``attachments`` names.

    Their size is a few hundred bytes, and 18 for each recipient.
    """
    found = words(subject, SUBJECT_WORDS)
    found += words(_sender_text(envelope_sender, header_from), SENDER_WORDS)
    found += attachment_words(attachments)
    found += [*verdict_terms(tier, score), *(recipient_term(recipient) for recipient in recipients)]
    return list(dict.fromkeys(found))


def _sender_text(envelope_sender: str | None, header_from: str) -> str:
    return f"{envelope_sender or ''} {header_from}"


def attachment_words(names: Iterable[str]) -> list[str]:
    """Return the words of names of attachments, which are terms of their message."""
    return words("\n".join(names), ATTACHMENT_WORDS)


def verdict_terms(tier: Tier, score: float | None) -> list[str]:
    """Return the terms of a tier and a score."""
    found = [f"={tier.value}"]
    if score is not None and not math.isnan(score):
        found.append(f"=s{_points(score):03}")
    return found


def recipient_term(recipient: str) -> str:
    """Return the term of a recipient's identity: a hash, since addresses are long and may contain any character."""
    return "=r" + hashlib.blake2b(recipient.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def _points(score: float) -> int:
    return math.floor(max(_SCORE_MIN, min(_SCORE_MAX, score))) - _SCORE_MIN


def between(prefix: str, low: int, high: int) -> Iterator[str]:
    """Yield terms for the numbers of three digits from ``low`` to ``high``: a prefix covers a hundred or ten of
    them."""
    while low <= high:
        width = next(width for width in (100, 10, 1) if low % width == 0 and low + width - 1 <= high)
        digits = f"{low:03}"
        yield f"{prefix}{digits}" if width == 1 else f"{prefix}{digits[: 4 - len(str(width))]}*"
        low += width


def of_reader(reader: Reader, wanted: Filter) -> Filter:
    """Return the filter for a reader's own list; the reader must have an identity."""
    first, *also = reader.identities
    return replace(wanted, recipient=first, also=tuple(also))


def wanted_terms(wanted: Filter) -> Terms | None:
    """Return the terms to query the index for; empty if the list of deliveries is the better source, None if no
    message can match."""
    groups: list[tuple[str, ...]] = []
    if wanted.words and not wanted.words.isspace():
        word_groups = _word_groups(wanted.words)
        if word_groups is None:
            return None
        groups += word_groups
    if wanted.attachment:
        word_groups = _word_groups(wanted.attachment)
        if word_groups is None:
            return None
        groups += word_groups
    if wanted.sender:
        if not fold(wanted.sender).strip():
            return None
        groups += _sender_groups(wanted.sender)
    if wanted.tiers and wanted.tiers != frozenset(Tier):
        groups.append(tuple(f"={tier.value}" for tier in sorted(wanted.tiers)))
    if wanted.score_min is not None or wanted.score_max is not None:
        low = _points(_SCORE_MIN if wanted.score_min is None else wanted.score_min)
        high = _points(_SCORE_MAX if wanted.score_max is None else wanted.score_max)
        if low > high:
            return None
        groups.append(tuple(between("=s", low, high)))
    if groups and wanted.recipient is not None:
        groups.append(recipient_group(wanted.recipient, *wanted.also))
    return tuple(groups)


def recipient_group(*recipients: str) -> tuple[str, ...]:
    """Return the terms of which a message to one of these recipients has at least one."""
    # Messages held before schema version 6 are indexed under the spelling with U-labels.
    return tuple(recipient_term(name) for each in recipients for name in spellings(identity(each)))


def _word_groups(text: str) -> list[tuple[str, ...]] | None:
    found = words(text, FOLDED_CHARS)
    # A word that is a prefix of another one is redundant. Each of the others must match a word of the message.
    found = [word for word in found if not any(other != word and other.startswith(word) for other in found)]
    if not found or len(text) > FOLDED_CHARS or len(found) > SUBJECT_WORDS + SENDER_WORDS:
        return None
    return [(f"{word}*",) for word in found]


def _sender_groups(text: str) -> list[tuple[str, ...]]:
    """Return groups for the words that every sender containing ``text`` has: all, except for a first word that may be
    the end of a longer one.

    Returns no groups for Chinese and Japanese, whose pairs may be cut as well.
    """
    folded = fold(text)
    found = [] if _UNSPACED_RUN.search(folded) else words(folded, SENDER_WORDS)
    if found and folded.startswith(found[0]):
        found = found[1:]
    return [(f"{word}*",) for word in found]


def _has_phrases(query: str, texts: Texts) -> bool:
    """Return whether one of the texts has each phrase. Its last word may be the beginning of one."""
    each = texts.subject, texts.envelope_sender or "", texts.header_from, *texts.attachments
    parts = [f" {' '.join(_blanked(fold(text[:FOLDED_CHARS])).split())}" for text in each]
    return all(any(f" {phrase}" in part for part in parts) for phrase in phrases(query))


Batch = tuple[Iterable[Delivery], DeliveryId | None, int]  # see `gather`


class Texts(NamedTuple):
    """The texts of a message that have its words."""

    subject: str
    envelope_sender: str | None
    header_from: str
    attachments: Sequence[str]  # names

    @classmethod
    def of(cls, message: Message) -> Texts:
        """Return the texts of a message."""
        return cls(message.subject, message.envelope_sender, message.header_from, message.attachments)


def begins_with_newest(wanted: Filter) -> bool:
    """Return whether a recipient's newest deliveries are compared with the words, before the index is queried.

    Nearly all deliveries are held. Of the few in another state, the newest ones may be far apart.
    """
    if wanted.recipient is None or (wanted.states and State.HELD not in wanted.states):
        return False
    has_other_terms = wanted.tiers or wanted.score_min is not None or wanted.score_max is not None
    return bool(wanted.words) and not wanted.words.isspace() and not has_other_terms


def has_words(
    groups: str, subject: str, envelope_sender: str | None, header_from: str, attachments: str | None
) -> bool:
    """Return whether the texts of a message have a word of each group, as the index of `terms` finds them.

    ``groups``: JSON of `Terms` without those that begin with ``=``; ``attachments``: names, as `names_from` takes them.
    """
    return _has_words(_groups_of(groups), Texts(subject, envelope_sender, header_from, names_from(attachments)))


def names_from(stored: str | None) -> tuple[str, ...]:
    """Return the names of the column ``message.attachments``: each in a line, NULL as long as they were not read."""
    return tuple(stored.split("\n")) if stored else ()


def has_terms(groups: str, terms: str) -> bool:
    """Return whether a message with these terms, separated by blanks, has one of each group; ``groups``: JSON of
    `Terms`."""
    return has_one_of_each(_groups_of(groups), terms.split(" "))


def has_one_of_each(groups: Iterable[Sequence[str]], found: Sequence[str]) -> bool:
    """Return whether one of these terms fits each group."""
    return all(
        any(word.startswith(term[:-1]) if term.endswith("*") else word == term for term in group for word in found)
        for group in groups
    )


@lru_cache(maxsize=8)
def _groups_of(groups: str) -> list[list[str]]:
    found: list[list[str]] = json.loads(groups)
    return found


def _has_words(groups: Iterable[Sequence[str]], texts: Texts) -> bool:
    subject, sender = texts.subject, _sender_text(texts.envelope_sender, texts.header_from)
    # Every word and every beginning of one is a part of the folded text, and finding that is faster than its words.
    names = "\n".join(texts.attachments)
    folded = f"{fold(subject[:FOLDED_CHARS])} {fold(sender[:FOLDED_CHARS])} {fold(names[:FOLDED_CHARS])}"
    if any(all(term.rstrip("*") not in folded for term in group) for group in groups):
        return False
    found = [*words(subject, SUBJECT_WORDS), *words(sender, SENDER_WORDS), *words(names, ATTACHMENT_WORDS)]
    return has_one_of_each(groups, found)


def needs_filtering(wanted: Filter) -> bool:
    """Return whether deliveries must be checked one by one with `matches`, in addition to the index and SQL."""
    has_score = wanted.score_min is not None or wanted.score_max is not None
    return has_score or bool(wanted.sender or wanted.reason) or wanted.has_attachment


def needs_texts(wanted: Filter) -> bool:
    """Return whether `has_texts` may be false."""
    return bool(wanted.sender or wanted.attachment) or '"' in wanted.words.translate(_QUOTES)


def has_texts(wanted: Filter, texts: Texts) -> bool:
    """Return whether a message has the phrases, the part of a sender, and the words of names of attachments."""
    if '"' in wanted.words.translate(_QUOTES) and not _has_phrases(wanted.words, texts):
        return False
    groups = (_word_groups(wanted.attachment) or [("=",)]) if wanted.attachment else []  # "=": no word
    if groups and not has_one_of_each(groups, attachment_words(texts.attachments)):
        return False
    part = fold(wanted.sender or "")
    return part in fold(texts.envelope_sender or "") or part in fold(texts.header_from)


def matches(wanted: Filter, delivery: Delivery) -> bool:
    """Return whether a delivery matches the conditions that the index answers only roughly (sender, score and tier) or
    not at all (a phrase, a reason, attachments).

    A message whose tier was raised stays indexed under its earlier tier as well.
    """
    message = delivery.message
    if wanted.tiers and message.tier not in wanted.tiers:
        return False
    if wanted.has_attachment and not has_attachment(message):
        return False
    if wanted.reason and wanted.reason not in why(message):
        return False
    if not has_texts(wanted, Texts.of(message)):
        return False
    if wanted.score_min is not None and (message.score is None or not message.score >= wanted.score_min):
        return False
    return wanted.score_max is None or (message.score is not None and message.score <= wanted.score_max)


# Returns those of the first so many deliveries of a span, in its direction, that may be near-duplicates, at most a
# number of them. Each has its place among the examined deliveries, from 1 on. The last examined one is among them.
Candidates = Callable[[Span, int, int], Sequence[tuple[Delivery, int]]]


def prefilter(likeness: Likeness) -> tuple[bytes, str, str | None]:
    """Return the parameters of a store's `Candidates`: the hash of the body, the From header, and an address that the
    header contains in lower case.

    A candidate has one of them. An address that is not ASCII is None, since the engines change its case differently.
    """
    is_plain = likeness.sender != "" and likeness.sender.isascii()
    return likeness.body_sha256, likeness.header_from, likeness.sender if is_plain else None


def newest_alike(likeness: Likeness, candidates: Candidates) -> Page:
    """Return deliveries with a likeness among the newest ones. Examines `NEWEST_MAX` in one query at most."""
    return _fitting(likeness.fits, candidates, Span(), NEWEST_MAX, CANDIDATES_MAX, CANDIDATES_MAX)


def alike(likeness: Likeness, wanted: Filter, limit: int, span: Span, terms: Terms, candidates: Candidates) -> Page:
    """Return the deliveries with a likeness that match. The recipient's are examined, without the index of terms.

    One query at most, so a page may be short if many candidates are no near-duplicates.
    """
    groups = [group for group in terms if not group[0].startswith("=")]

    def fits(delivery: Delivery) -> bool:
        return likeness.fits(delivery) and matches(wanted, delivery) and _has_words(groups, Texts.of(delivery.message))

    return _fitting(fits, candidates, span, EXAMINED_MAX, limit + CANDIDATES_MAX, limit)


def _fitting(
    fits: Callable[[Delivery], bool],
    candidates: Candidates,
    span: Span,
    examined: int,
    at_most: int,
    limit: int,
) -> Page:
    """Return those of the first ``examined`` deliveries of a span that fit, of ``at_most`` candidates."""
    found = candidates(span, examined, at_most)
    has_more = len(found) == at_most or (len(found) > 0 and found[-1][1] == examined)
    fitting = [each for each, _ in found if fits(each)]
    if len(fitting) > limit:
        return _page(span, fitting[:limit], span.after(fitting[limit - 1].key).cursor)
    return _page(span, fitting, span.after(found[-1][0].key).cursor if has_more else None)


def gather(wanted: Filter, limit: int, span: Span, batches: Iterator[Batch]) -> Page:
    """Return a page from batches of deliveries, in the direction of the span.

    Each batch has its deliveries, the cursor after it, and the number of messages or deliveries examined for it. The
    list ends with the last batch.
    """
    found: list[Delivery] = []
    examined_total = 0
    for deliveries, cursor, examined in batches:
        for delivery in deliveries:
            if matches(wanted, delivery):
                if len(found) == limit:
                    return _page(span, found, span.after(found[-1].key).cursor)
                found.append(delivery)
        examined_total += examined
        if examined_total >= EXAMINED_MAX:
            return _page(span, found, cursor)
    return _page(span, found, None)


def _page(span: Span, found: Sequence[Delivery], next: DeliveryId | None) -> Page:
    return Page(tuple(reversed(found) if span.oldest_first else found), next)
