"""Lists of recipients whose digests staff stop, resume or set together: how they are read and checked.

A list has one address in each line, or is CSV with a first line that names the columns: `address`, and for preferences
those of `COLUMNS`. The page of the console and `quarantine digests` use the same functions; `Recipients.change` makes
the changes.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import field
from datetime import datetime

from portal.model.audit import AuditEntry
from portal.model.errors import BadList, BadPreference, UnknownRecipient
from portal.model.message import Actor, domain
from portal.model.record import record
from portal.model.schedule import NO_PREFERENCES, SWITCH, typed_preferences
from portal.model.tables import cell, unquoted
from portal.model.text import N_
from portal.policy.recipients import DigestAct, Recipients, after
from portal.stores.records import Person

# And the preference of each.
COLUMNS = {
    "days": "schedule",
    "at": "at",
    "zone": "timezone",
    "language": "language",
    "notices": "notices",
    "only-wanted": "only_wanted",
}
DEFAULT = "default"  # instead of a value: that of the domain
_AT_ONCE = 500  # recipients that one query reads

_NOT_UTF8 = N_("This is not UTF-8. Save the file as CSV UTF-8.")
_NOT_CSV = N_("This is not CSV. Check the quotation marks.")
_TOO_MANY_VALUES = N_("There are more values than columns.")
_BAD_COLUMNS = {
    True: N_("The columns are address and, if wanted, days, at, zone, language, notices, only-wanted."),
    False: N_("The only column is address."),
}
TOO_LONG = N_("A list has at most 10,000 lines. Divide it, or use the command “quarantine digests”.")
NO_VALUE = N_("There is no value to set.")
SHARED = N_("This is a shared mailbox. Enter the addresses of its readers, who get the digests.")
TWICE = N_("This recipient is in the list twice, with different values.")


@record(frozen=True, slots=True)
class Line:
    """One recipient of a list. ``number``: the line of the text, 0 if there is none."""

    number: int
    address: str
    values: Mapping[str, str] = field(default_factory=dict)  # by column


@record(frozen=True, slots=True)
class Refused:
    """A line for which nothing is changed."""

    line: Line
    text: str  # why, to be translated


@record(frozen=True, slots=True)
class Checked:
    """The effect of an act on the recipients of a list."""

    changes: Mapping[
        str, Mapping[str, str]
    ]  # recipients that would change, with the preferences as `typed_preferences`
    unchanged: Sequence[str]  # recipients for whom it is so already
    unknown: Sequence[str]  # those of `changes` for whom nothing is stored
    refused: Sequence[Refused]


def read(data: bytes, act: DigestAct) -> Iterator[Line]:
    """Yield the recipients of a list, as a file has it. Raises BadList.

    Values are separated by commas; by semicolons or tabs if the first line has these and no comma, as in files of
    spreadsheets in many countries.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadList(data.count(b"\n", 0, error.start) + 1, _NOT_UTF8) from error
    first = text.partition("\n")[0]
    delimiter = next((each for each in ",;\t" if each in first), ",")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    names = ["address"]
    try:
        for number, row in enumerate(reader):
            cells = [unquoted(cell).strip() for cell in row]
            if not any(cells):
                continue
            if number == 0 and "address" in [cell.lower() for cell in cells]:
                names = [cell.lower() for cell in cells]
                _check_columns(names, act)
                continue
            if any(cells[len(names) :]):
                raise BadList(reader.line_num, _TOO_MANY_VALUES)
            values = dict(zip(names, cells, strict=False))
            address = values.pop("address", "")
            yield Line(reader.line_num, address, {name: value for name, value in values.items() if value})
    except csv.Error as error:
        raise BadList(reader.line_num, _NOT_CSV) from error


def _check_columns(names: Sequence[str], act: DigestAct) -> None:
    known = {"address", *(COLUMNS if act is DigestAct.SET else ())}
    if len({*names}) < len(names) or not known.issuperset(names):
        raise BadList(1, _BAD_COLUMNS[act is DigestAct.SET])


def of_domain(recipients: Recipients, host: str, limit: int) -> list[Line]:
    """Return the people of a domain for whom something is stored. Raises StoreUnavailable, BadList.

    Shared mailboxes are left out, and aliases: the person of an alias may be in another domain. ``limit``: the most
    addresses, with these, since a part of a domain would be taken for all of it.
    """
    found = recipients.store.recipients.names("", [host], limit + 1)
    if len(found) > limit:
        raise BadList(0, TOO_LONG)
    return [Line(0, each) for each in found if recipients.people.is_person(each)]


def people(recipients: Recipients, hosts: Collection[str] | None, *, stopped: bool = False) -> Iterator[Person]:
    """Yield the people of some local domains (None: of all) for whom something is stored, by address.

    ``stopped``: only those whose digests are stopped. Shared mailboxes are left out. Raises StoreUnavailable.
    """
    store, names = recipients.store.recipients, [""]
    while names:
        names = [*store.names("", hosts, _AT_ONCE, names[-1])]
        for each in store.known([name for name in names if recipients.people.is_person(name)]):
            if recipients.domains.is_local(domain(each.recipient)) and (each.stopped_at or not stopped):
                yield each


def chosen(person: Person) -> dict[str, str]:
    """Return the preferences of a person by column, as `read` takes them back.

    A value that is not valid any more, like a time zone that was removed, is `DEFAULT`, since that applies.
    """
    preferences = person.preferences
    at = ",".join(f"{each:%H:%M}" for each in preferences.at or ())
    texts = {"days": preferences.schedule, "at": at, "zone": preferences.timezone, "language": preferences.language}
    texts["notices"] = next((word for word, value in SWITCH.items() if value is preferences.notices), None)
    texts["only-wanted"] = "on" if preferences.only_wanted else None
    return {name: text if text and _is_valid(name, text) else DEFAULT for name, text in texts.items()}


def written(people: Iterable[Person], *, stopped: bool) -> Iterator[list[str]]:
    """Yield the rows of a list as CSV: the columns, and the preferences of each person, or only the address.

    ``stopped``: only addresses, since `stop` and `resume` take no other columns.
    """
    yield ["address", *(() if stopped else COLUMNS)]
    for each in people:
        yield [cell(text) for text in (each.recipient, *(() if stopped else chosen(each).values()))]


def export_entries(now: datetime, actor: Actor, hosts: Collection[str], *, stopped: bool) -> list[AuditEntry]:
    """Return the entries of the audit about a list that leaves the portal. ``hosts``: its domains, "" for all."""
    detail = "addresses of people whose digests are stopped" if stopped else "preferences of recipients"
    return AuditEntry.of_export(now, actor, hosts, detail)


def _is_valid(name: str, text: str) -> bool:
    try:
        typed_preferences(NO_PREFERENCES, {COLUMNS[name]: text})
    except BadPreference:
        return False
    return True


def check(
    recipients: Recipients,
    act: DigestAct,
    lines: Sequence[Line],
    values: Mapping[str, str],
    now: datetime,
    may_manage: Callable[[str], bool] = lambda _: True,
) -> Checked:
    """Check a list, and find out what an act would change. Raises StoreUnavailable.

    ``values``: by column, for all recipients that have no value of their own; ``may_manage``: whether the person who
    acts may manage the recipients of a domain.
    """
    typed: dict[str, Mapping[str, str]] = {}
    refused = []
    for line in lines:
        chosen = {COLUMNS[name]: "" if text == DEFAULT else text for name, text in {**values, **line.values}.items()}
        try:
            mailbox = recipients.find(line.address, may_manage)
            if act is DigestAct.SET and not chosen:
                raise BadPreference(NO_VALUE)
            typed_preferences(NO_PREFERENCES, chosen)
        except (UnknownRecipient, BadPreference) as error:
            refused.append(Refused(line, str(error)))
            continue
        if not mailbox.is_person:
            refused.append(Refused(line, SHARED))
        elif typed.setdefault(mailbox.recipient, chosen) != chosen:
            refused.append(Refused(line, TWICE))
    known = _known(recipients, list(typed))
    changes: dict[str, Mapping[str, str]] = {}
    for name, preferences in typed.items():
        person = known.get(name) or Person(name, name, None, None, None, None)
        if after(act, person, preferences, now) != person:
            changes[name] = preferences
    unchanged = [name for name in typed if name not in changes]
    return Checked(changes, unchanged, [name for name in changes if name not in known], refused)


def _known(recipients: Recipients, names: Sequence[str]) -> dict[str, Person]:
    """Return those of these people for whom the store has anything."""
    found: dict[str, Person] = {}
    for start in range(0, len(names), _AT_ONCE):
        people = recipients.store.recipients.known(names[start : start + _AT_ONCE])
        found |= {each.recipient: each for each in people}
    return found
