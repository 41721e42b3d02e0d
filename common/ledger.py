"""What a site's ledger says: what came to the site and what left it, a line each.

Each line holds the hash of the line before. It names fields, types, sizes and hashes, and holds no value of
them: no text, no label, no path. A ledger goes on in another file when one is full:

    ledger.jsonl   ledger.jsonl.000002   ledger.jsonl.000003 …

The first line of a file holds the hash of the last line of the file before: all of them are one chain.
`client/node/ledger.py` writes it.
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
"""Stands for every message type that this version does not know."""
AGAIN = "again"
REASONS = frozenset((*get_args(Reason), AGAIN))
"""What the line of an hour counts: why messages did not count; and what came or left again."""
START = "0" * 64
"""Stands in the first line for the hash of a line before."""
_TAIL_BYTES = 1 << 16
_PART_DIGITS = 6
_LONGEST_NUMBER = 20
_MOST_PEOPLE = 10


class _Line(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True
    )


class Others(_Line):
    """What is not told by name, since this version knows no such name."""

    count: int
    digest: str
    """SHA-256 of the names, with the sizes and types of fields, or the hashes and sizes of records."""


class Sent(_Line):
    """One record of a message."""

    digest: str
    """SHA-256 over all it holds, as the signed statement names it."""
    num_bytes: int
    fields: dict[str, tuple[str, int]]
    """By name: the type, and how many values, letters or (of tensors) bytes it has."""
    others: Others | None = None
    """Its other fields."""


class Contents(_Line):
    """What a message holds, without any value."""

    records: dict[str, Sent] = {}
    others: Others | None = None
    """Its other records."""

    def signed(self) -> tuple[dict[str, tuple[str, int]], Others | None]:
        """The part that a signed statement tells, too; see `told_of`."""
        return {
            name: (sent.digest, sent.num_bytes) for name, sent in self.records.items()
        }, self.others

    def digest(self) -> str:
        """SHA-256 of that part."""
        records, others = self.signed()
        written = json.dumps(
            [sorted(records.items()), None if others is None else others.digest]
        )
        return hashlib.sha256(written.encode("ascii")).hexdigest()


class Entry(_Line):
    """One line."""

    number: int
    """From 1, over all files."""
    at: str
    """UTC, ISO 8601, by the site's clock."""
    salt: str = ""
    """16 random bytes, in hexadecimal: from the line's hash nobody can try out what it says. Lines of earlier
    versions have none."""
    before: str
    """SHA-256 of the line before this, without its newline; 64 zeros in the first."""
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
    """A new ledger begins; it goes on in this file; the program has connected; a plan is executed, since it
    was approved; a message came; an answer is
    about to be sent; it was; it was given up; a person has accepted that a line is missing; numbers of
    messages that did not count."""
    site: str = ""
    """Of `begins`, `goes_on` and `opened`: the site's name."""
    key: str = ""
    """Of the same: fingerprint of the key that signs its answers."""
    kind: str = ""
    """Message type: one of `KINDS`, or `OTHER_KIND`."""
    plan: str = ""
    """SHA-256 of the plan that the question belongs to."""
    run: str = ""
    """SHA-256 of the run's signed statement."""
    round: int = 0
    attempt: int = 0
    question: str = ""
    """SHA-256 of the signed question."""
    reason: str = ""
    """Why an answer was given up. In lines of earlier versions also why a message did not count."""
    records: dict[str, Sent] = {}
    others: Others | None = None
    """Records that are not told by name."""
    update_norm: float | None = None
    """L2 norm of trained minus received tensors, before they were made smaller."""
    statement: str = ""
    """Of `left`: SHA-256 of the signed answer. Of `accepted`: the hash that this ledger lacks."""
    by: str = ""
    """Of `approved`: `hand` or `policy`."""
    people: dict[str, str] = {}
    """Of `approved`: who signed the approval, by name: fingerprint of the key. Empty if nobody signed."""
    since: str = ""
    """Of `did_not_count`: when the first of them came. Of `approved`: when it was approved."""
    counts: dict[str, int] = {}
    """Of `did_not_count`: how many, by reason."""

    @property
    def contents(self) -> Contents:
        """What the message holds."""
        return Contents(records=self.records, others=self.others)

    def in_words(self) -> str:
        """One line for a person. Words that come from a file can move no cursor and imitate no line."""
        return f"{_number(self.number):>6}  {_time(self.at)}  {_WORDS[self.what](self)}"


def _time(written: str) -> str:
    try:
        return f"{datetime.fromisoformat(written):%Y-%m-%d %H:%M:%S}"
    except ValueError:
        return shown(written)


def _holder(entry: Entry) -> str:
    return f"{shown(entry.site)}, {shown(entry.key)}"


def _message(entry: Entry) -> str:
    """Which message it was."""
    kind = shown(entry.kind)
    if not entry.run:
        return kind
    return f"{kind}, round {_number(entry.round)}, run {shown(entry.run[:8])}"


def _names(entry: Entry) -> str:
    names = [
        f"{shown(name)} ({_number(sent.num_bytes)} bytes)"
        for name, sent in entry.records.items()
    ]
    more = max(0, len(names) - len(FIELDS)) + (
        entry.others.count if entry.others else 0
    )
    told = names[: len(FIELDS)] + ([f"{_number(more)} unknown records"] if more else [])
    return ", ".join(told) or "nothing"


def _number(number: int) -> str:
    return printable(f"{number:,}", _LONGEST_NUMBER)


def _came(entry: Entry) -> str:
    if entry.reason:
        return f"came: {_message(entry)}; does not count: {shown(entry.reason)}"
    return f"came: {_message(entry)}: {_names(entry)}"


def _leaves(entry: Entry) -> str:
    norm = (
        ""
        if entry.update_norm is None
        else f"; length of the update {entry.update_norm:.4g}"
    )
    return f"about to leave: {_message(entry)}: {_names(entry)}{norm}"


def _approved(entry: Entry) -> str:
    people = [
        f"{shown(name)} ({shown(key)})"
        for name, key in islice(entry.people.items(), _MOST_PEOPLE)
    ]
    signed = f", signed by {', '.join(people)}" if people else ""
    by = {"hand": "by hand", "policy": "by the policy"}.get(entry.by, shown(entry.by))
    return f"plan {shown(entry.plan[:12])} was approved {by} at {_time(entry.since)}{signed}"


def _did_not_count(entry: Entry) -> str:
    numbers = ", ".join(
        f"{shown(reason)} {_number(number)}"
        for reason, number in islice(entry.counts.items(), len(REASONS))
    )
    return f"did not count since {_time(entry.since)}: {numbers}"


_WORDS: Mapping[str, Callable[[Entry], str]] = {
    "begins": lambda entry: f"a new ledger begins, of {_holder(entry)}",
    "goes_on": lambda entry: f"the ledger goes on in this file, of {_holder(entry)}",
    "opened": lambda entry: f"join was started by {_holder(entry)}",
    "approved": _approved,
    "came": _came,
    "leaves": _leaves,
    "left": lambda entry: f"  sent, signed as {shown(entry.statement[:16])}…",
    "stayed": lambda entry: (
        f"  given up ({shown(entry.reason)}); some of it may have left"
    ),
    "accepted": lambda entry: (
        f"a person accepted that the line {shown(entry.statement[:16])}… is missing"
    ),
    "did_not_count": _did_not_count,
}
"""By `Entry.what`: the rest of the line."""


# --- what a message holds ----------------------------------------------------------------------------------


def known_kind(kind: str) -> str:
    """A message type as a ledger names it."""
    return kind if kind in KINDS else OTHER_KIND


def told_of(
    signed: Mapping[str, tuple[str, int]],
) -> tuple[dict[str, tuple[str, int]], Others | None]:
    """The records of a signed statement as a ledger tells of them: those with known names, and the rest."""
    known = {name: facts for name, facts in signed.items() if name in FIELDS}
    return known, _others(
        {name: facts for name, facts in signed.items() if name not in FIELDS}
    )


def describe(content: RecordDict, signed: Mapping[str, tuple[str, int]]) -> Contents:
    """The records of a content, without their values.

    Args:
        signed: hash and size of each, as in a statement.
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
    """Type and size of each field of a record; the pieces of one array together."""
    found: dict[str, tuple[str, int]] = {}
    for name, value in record.items():
        if hasattr(
            value, "dtype"
        ):  # a piece of an array: their names end with a number
            array = name.rpartition(".")[0] or name
            num_bytes = np.dtype(value.dtype).itemsize * prod(value.shape)
            found[array] = (str(value.dtype), found.get(array, ("", 0))[1] + num_bytes)
        elif isinstance(value, list):
            found[name] = (
                f"list of {type(value[0]).__name__}" if value else "empty list",
                len(value),
            )
        else:
            found[name] = (
                type(value).__name__,
                len(value) if isinstance(value, str | bytes) else 1,
            )
    return found


# --- reading -----------------------------------------------------------------------------------------------


STEP = "Somebody has changed this file, or a disk is damaged: keep it, and ask who could write there."


def hash_of(line: bytes) -> str:
    """SHA-256 of a line. Args: line: with its newline, which is not hashed."""
    return hashlib.sha256(line[:-1]).hexdigest()


def part_of(path: Path, number: int) -> Path:
    """A file of the ledger whose first file is `path`. Args: number: from 1."""
    return (
        path
        if number == 1
        else path.with_name(f"{path.name}.{number:0{_PART_DIGITS}d}")
    )


def parts_of(path: Path) -> list[Path]:
    """The files of a ledger whose first file is `path`, in their order; empty if there are none.

    Raises:
        ValueError: one of them is missing.
    """
    if not path.parent.is_dir():
        return []
    found = sorted(file for file in path.parent.iterdir() if _belongs_to(file, path))
    for number, part in enumerate(found, 1):
        if part != part_of(path, number):
            raise ValueError(
                f"'{part_of(path, number)}' is missing, but '{found[-1].name}', which goes on from it, is "
                "there. Put it back: without it nobody can tell what came and what left."
            )
    return found


def _belongs_to(file: Path, path: Path) -> bool:
    """Whether a file has the name of a ledger's first file, or of one that goes on from it."""
    if file.name == path.name:
        return True
    first, _, number = file.name.rpartition(".")
    return first == path.name and _is_part_number(number)


def _is_part_number(text: str) -> bool:
    return len(text) == _PART_DIGITS and text.isdecimal() and text.isascii()


def walk(path: Path) -> Iterator[tuple[str, Entry]]:
    """The lines of a ledger with their hashes, in order, each found to follow the line before.

    Args:
        path: its first file; the files that go on from it stand beside it.

    Raises:
        ValueError: a file is missing, or is not what was written; names the first such line.
    """
    first, _, number_of_part = path.name.rpartition(".")
    if _is_part_number(number_of_part) and path.with_name(first).exists():
        raise ValueError(
            f"{path} goes on from another file. Name that one: {path.with_name(first)}"
        )
    number, newest = 1, START
    for part in parts_of(path) or [path]:
        for found, entry in walk_part(part, number, newest):
            number, newest = entry.number + 1, found
            yield found, entry


def read_ledger(path: Path) -> dict[str, Entry]:
    """All lines by their hashes, in order. Raises ValueError as `walk` does."""
    return dict(walk(path))


def walk_part(part: Path, number: int, before: str) -> Iterator[tuple[str, Entry]]:
    """The same of one file.

    Args:
        number: of its first line.
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
                        f"{part}, line {place}: this is no line of a ledger. {STEP}"
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
    """What a line says; None if it is not written as this program writes lines."""
    try:
        entry = Entry.model_validate_json(line)
        return entry if line == written_line(entry) else None
    except ValueError:  # of pydantic too
        return None


def written_line(entry: Entry) -> bytes:
    """A line as it stands in the file, with its newline."""
    told = entry.model_dump(mode="json", exclude_defaults=True)
    return (
        json.dumps(told, sort_keys=True, separators=(",", ":"), allow_nan=False).encode(
            "ascii"
        )
        + b"\n"
    )


def first_line(part: Path) -> bytes:
    """The first line of a file, with its newline. Raises OSError."""
    with part.open("rb") as file:
        return file.readline()


def last_line(part: Path) -> bytes:
    """The last line of a file, with its newline if it has one; reads the file's end only.

    Raises OSError.
    """
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
