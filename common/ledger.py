"""The ledger of a site: a line for every message that came to the site or left it.

Each line holds the hash of the line before. It names fields, types, sizes and hashes, and
no values: no text, no label, no path. When a file is full, the ledger continues in another:

    ledger.jsonl   ledger.jsonl.000002   ledger.jsonl.000003 …

The first line of a file holds the hash of the last line of the file before: together they
are one chain. `client/node/ledger.py` writes the ledger.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from itertools import islice
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from pydantic import BaseModel, ConfigDict

from wardround.common.errors import Reason
from wardround.common.wire.codec import FIELDS
from wardround.common.wire.messages import KINDS
from wardround.common.words import printable, shown

if TYPE_CHECKING:
    from flwr.app import RecordDict

FILE_NAME = "ledger.jsonl"
OTHER_KIND = "other"
"""The name for every message type that this version does not know."""
AGAIN = "again"
REASONS = frozenset((*get_args(Reason), AGAIN))
"""Reasons in the hourly line: why messages did not count, or that they came or left again."""
START = "0" * 64
"""The hash before the first line."""
_TAIL_BYTES = 1 << 16
_PART_DIGITS = 6
_LONGEST_NUMBER = 20
_MAX_PEOPLE = 10


class _Line(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True
    )


class Others(_Line):
    """Records or fields with names that this version does not know."""

    count: int
    digest: str
    """SHA-256 of the names with their facts: types and sizes of fields, or hashes and
    sizes of records."""


class Sent(_Line):
    """One record of a message."""

    digest: str
    """SHA-256 of its content, as in the signed statement."""
    num_bytes: int
    fields: dict[str, tuple[str, int]]
    """Type of each field by its name, with its number of values, letters or, for tensors,
    bytes."""
    others: Others | None = None
    """The other fields."""


class Contents(_Line):
    """The records of a message, without any value."""

    records: dict[str, Sent] = {}
    others: Others | None = None
    """The other records."""

    def signed(self) -> tuple[dict[str, tuple[str, int]], Others | None]:
        """Return the part that is also in a signed statement; see `told_of`."""
        known = {
            name: (sent.digest, sent.num_bytes) for name, sent in self.records.items()
        }
        return known, self.others

    def digest(self) -> str:
        """Return the SHA-256 of the part that `signed` returns."""
        records, others = self.signed()
        rest = None if others is None else others.digest
        written = json.dumps([sorted(records.items()), rest])
        return hashlib.sha256(written.encode("ascii")).hexdigest()


class Entry(_Line):
    """One line of a ledger."""

    number: int
    """Number of the line, from 1, over all files."""
    at: str
    """Time in UTC, ISO 8601, by the site's clock."""
    salt: str = ""
    """16 random bytes in hexadecimal, so that the line's content cannot be guessed from its
    hash. Lines of earlier versions have no salt."""
    before: str
    """SHA-256 of the line before, without its newline; 64 zeros in the first line."""
    what: Literal[
        "begins",
        "goes_on",
        "opened",
        "approved",
        "came",
        "leaves",
        "left",
        "stayed",
        "accepted",
        "did_not_count",
    ]
    """The event, in this order: a new ledger begins; it goes on in this file; the program has
    connected; an approved plan is executed; a message came; an answer is about to be sent;
    it was sent; it was given up; a person accepted that a line is missing; numbers of
    messages that did not count."""
    site: str = ""
    """The site's name, in `begins`, `goes_on` and `opened`."""
    key: str = ""
    """Fingerprint of the key that signs the site's answers, in the same lines."""
    kind: str = ""
    """Message type: one of `KINDS`, or `OTHER_KIND`."""
    plan: str = ""
    """SHA-256 of the question's plan."""
    run: str = ""
    """SHA-256 of the run's signed statement."""
    round: int = 0
    attempt: int = 0
    question: str = ""
    """SHA-256 of the signed question."""
    reason: str = ""
    """Why an answer was given up; in lines of earlier versions also why a message did not
    count."""
    records: dict[str, Sent] = {}
    others: Others | None = None
    """Records with unknown names."""
    update_norm: float | None = None
    """L2 norm of trained minus received tensors, before any rounding."""
    statement: str = ""
    """In `left`, the SHA-256 of the signed answer. In `accepted`, the hash of the missing
    line."""
    by: str = ""
    """`hand` or `policy`, in `approved`."""
    people: dict[str, str] = {}
    """Fingerprint of the key of each person who signed the approval, by name."""
    since: str = ""
    """Time of the first message, in `did_not_count`; time of approval, in `approved`."""
    counts: dict[str, int] = {}
    """Number of messages by reason, in `did_not_count`."""

    @property
    def contents(self) -> Contents:
        """The records of the message."""
        return Contents(records=self.records, others=self.others)

    def in_words(self) -> str:
        """Return one line for people. Words from the file cannot imitate other lines."""
        number = _number(self.number)
        return f"{number:>6}  {_time(self.at)}  {_WORDS[self.what](self)}"


def _time(written: str) -> str:
    try:
        return f"{datetime.fromisoformat(written):%Y-%m-%d %H:%M:%S}"
    except ValueError:
        return shown(written)


def _holder(entry: Entry) -> str:
    return f"{shown(entry.site)}, {shown(entry.key)}"


def _message(entry: Entry) -> str:
    """Return the type, round and run of the message."""
    kind = shown(entry.kind)
    if not entry.run:
        return kind
    return f"{kind}, round {_number(entry.round)}, run {shown(entry.run[:8])}"


def _names(entry: Entry) -> str:
    names = [
        f"{shown(name)} ({_number(sent.num_bytes)} bytes)"
        for name, sent in entry.records.items()
    ]
    num_unknown = max(0, len(names) - len(FIELDS))
    names = names[: len(FIELDS)]
    if entry.others is not None:
        num_unknown += entry.others.count
    if num_unknown:
        names.append(f"{_number(num_unknown)} unknown records")
    return ", ".join(names) or "nothing"


def _number(number: int) -> str:
    return printable(f"{number:,}", _LONGEST_NUMBER)


def _came(entry: Entry) -> str:
    if entry.reason:
        return f"came: {_message(entry)}; does not count: {shown(entry.reason)}"
    return f"came: {_message(entry)}: {_names(entry)}"


def _leaves(entry: Entry) -> str:
    norm = ""
    if entry.update_norm is not None:
        norm = f"; length of the update {entry.update_norm:.4g}"
    return f"about to leave: {_message(entry)}: {_names(entry)}{norm}"


def _approved(entry: Entry) -> str:
    people = [
        f"{shown(name)} ({shown(key)})"
        for name, key in islice(entry.people.items(), _MAX_PEOPLE)
    ]
    signed = f", signed by {', '.join(people)}" if people else ""
    by = {"hand": "by hand", "policy": "by the policy"}.get(entry.by, shown(entry.by))
    plan = shown(entry.plan[:12])
    return f"plan {plan} was approved {by} at {_time(entry.since)}{signed}"


def _did_not_count(entry: Entry) -> str:
    numbers = ", ".join(
        f"{shown(reason)} {_number(number)}"
        for reason, number in islice(entry.counts.items(), len(REASONS))
    )
    return f"did not count since {_time(entry.since)}: {numbers}"


_WORDS: Mapping[str, Callable[[Entry], str]] = {
    "begins": lambda entry: f"a new ledger begins, for {_holder(entry)}",
    "goes_on": lambda entry: f"the ledger continues here, for {_holder(entry)}",
    "opened": lambda entry: f"join was started by {_holder(entry)}",
    "approved": _approved,
    "came": _came,
    "leaves": _leaves,
    "left": lambda entry: f"  sent, signed as {shown(entry.statement[:16])}…",
    "stayed": lambda entry: (
        f"  given up ({shown(entry.reason)}); a part of it may have been sent"
    ),
    "accepted": lambda entry: (
        f"a person accepted that the line {shown(entry.statement[:16])}… is missing"
    ),
    "did_not_count": _did_not_count,
}
"""The words of a line after number and time, by `Entry.what`."""


def known_kind(kind: str) -> str:
    """Return a message type as a ledger names it."""
    return kind if kind in KINDS else OTHER_KIND


def told_of(
    signed: Mapping[str, tuple[str, int]],
) -> tuple[dict[str, tuple[str, int]], Others | None]:
    """Return the records of a signed statement in two parts: known names, and the others."""
    known = {name: facts for name, facts in signed.items() if name in FIELDS}
    rest = {name: facts for name, facts in signed.items() if name not in FIELDS}
    return known, _others(rest)


def describe(content: RecordDict, signed: Mapping[str, tuple[str, int]]) -> Contents:
    """Describe the records of a content, without their values.

    Args:
        signed: hash and size of each record, as in a statement.
    """
    known, others = told_of(signed)
    records = {}
    for name, (digest, num_bytes) in known.items():
        if name not in content:
            continue
        sizes = _sizes(content[name])
        fields = {field: size for field, size in sizes.items() if field in FIELDS[name]}
        rest = {
            field: size for field, size in sizes.items() if field not in FIELDS[name]
        }
        records[name] = Sent(
            digest=digest, num_bytes=num_bytes, fields=fields, others=_others(rest)
        )
    return Contents(records=records, others=others)


def _others(rest: Mapping[str, tuple[str, int]]) -> Others | None:
    if not rest:
        return None
    written = json.dumps(rest, sort_keys=True).encode("ascii")
    return Others(count=len(rest), digest=hashlib.sha256(written).hexdigest())


def _sizes(record: Any) -> dict[str, tuple[str, int]]:
    """Return type and size of each field of a record. Pieces of an array count together."""
    found: dict[str, tuple[str, int]] = {}
    for name, value in record.items():
        if hasattr(value, "dtype"):  # a piece of an array; its name ends with a number
            array = name.rpartition(".")[0] or name
            num_bytes = np.dtype(value.dtype).itemsize * prod(value.shape)
            found[array] = (str(value.dtype), found.get(array, ("", 0))[1] + num_bytes)
        elif isinstance(value, list):
            kind = f"list of {type(value[0]).__name__}" if value else "empty list"
            found[name] = (kind, len(value))
        else:
            length = len(value) if isinstance(value, str | bytes) else 1
            found[name] = (type(value).__name__, length)
    return found


STEP = (
    "Somebody has changed this file, or a disk is damaged: keep it, and ask who could write "
    "there."
)


def hash_of(line: bytes) -> str:
    """Return the SHA-256 of a line. Its newline is not hashed."""
    return hashlib.sha256(line[:-1]).hexdigest()


def part_of(path: Path, number: int) -> Path:
    """Return the path of one file of a ledger.

    Args:
        path: the first file.
        number: number of the file, from 1.
    """
    if number == 1:
        return path
    return path.with_name(f"{path.name}.{number:0{_PART_DIGITS}d}")


def parts_of(path: Path) -> list[Path]:
    """Return the files of a ledger whose first file is `path`, in order.

    Raises:
        ValueError: one of them is missing.
    """
    if not path.parent.is_dir():
        return []
    found = sorted(file for file in path.parent.iterdir() if _belongs_to(file, path))
    for number, part in enumerate(found, 1):
        if part != part_of(path, number):
            raise ValueError(
                f"'{part_of(path, number)}' is missing, but '{found[-1].name}', which continues "
                "it, is present. Restore it: without it the ledger is not complete."
            )
    return found


def _belongs_to(file: Path, path: Path) -> bool:
    """Return True for the name of a ledger's first file, or of one that continues it."""
    if file.name == path.name:
        return True
    first, _, number = file.name.rpartition(".")
    return first == path.name and _is_part_number(number)


def _is_part_number(text: str) -> bool:
    return len(text) == _PART_DIGITS and text.isdecimal() and text.isascii()


def walk(path: Path) -> Iterator[tuple[str, Entry]]:
    """Yield the lines of a ledger with their hashes, and check that they are one chain.

    Args:
        path: the first file. The other files are in the same folder.

    Raises:
        ValueError: a file is missing or was changed. The message has the first wrong line.
    """
    first, _, number_of_part = path.name.rpartition(".")
    if _is_part_number(number_of_part) and path.with_name(first).exists():
        raise ValueError(
            f"{path} continues another file. Give that file: {path.with_name(first)}"
        )
    number = 1
    newest = START
    for part in parts_of(path) or [path]:
        for found, entry in walk_part(part, number, newest):
            number = entry.number + 1
            newest = found
            yield found, entry


def read_ledger(path: Path) -> dict[str, Entry]:
    """Return all lines by their hashes, in order. Raises ValueError as `walk` does."""
    return dict(walk(path))


def walk_part(part: Path, number: int, before: str) -> Iterator[tuple[str, Entry]]:
    """Yield the lines of one file, as `walk`.

    Args:
        number: number of its first line.
        before: hash of the line before that.

    Raises:
        ValueError: as `walk`.
    """
    try:
        with part.open("rb") as file:
            for place, line in enumerate(file, 1):
                entry = entry_of(line)
                if entry is None:
                    raise ValueError(
                        f"{part}, line {place}: this is not a line of a ledger. {STEP}"
                    )
                if (entry.number, entry.before) != (number, before):
                    raise ValueError(
                        f"{part}, line {place}: it does not follow the line before. {STEP}"
                    )
                before = hash_of(line)
                number += 1
                yield before, entry
    except OSError as error:
        raise ValueError(
            f"{part} cannot be read: {error.strerror}. Name a site's {FILE_NAME}."
        ) from None


def entry_of(line: bytes) -> Entry | None:
    """Read a line. Return None if this program would write it in another form."""
    try:
        entry = Entry.model_validate_json(line)
        return entry if line == written_line(entry) else None
    except ValueError:  # also pydantic's
        return None


def written_line(entry: Entry) -> bytes:
    """Return a line as in the file, with its newline."""
    values = entry.model_dump(mode="json", exclude_defaults=True)
    line = json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return f"{line}\n".encode("ascii")


def first_line(part: Path) -> bytes:
    """Return the first line of a file, with its newline. Raises OSError."""
    with part.open("rb") as file:
        return file.readline()


def last_line(part: Path) -> bytes:
    """Return the last line of a file, with its newline if it has one. Raises OSError."""
    with part.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        size = _TAIL_BYTES
        while True:
            start = max(0, end - size)
            file.seek(start)
            tail = file.read(end - start)
            begin = tail.rfind(b"\n", 0, -1) + 1
            if begin > 0 or start == 0:
                return tail[begin:]
            size *= 2
