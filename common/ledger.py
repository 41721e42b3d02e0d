"""A site's ledger: what came to it and what left it, one line each, with the hash of the line before.

What leaves is written down, and on the disk, before it is sent. A line names fields, types, sizes and hashes,
and holds no value of theirs: no text, no label, no path. The hash of the line goes along with the answer,
signed, and the server hands the newest one back with its next question: a site whose ledger lacks it holds an
old copy.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from common.files import named
from common.wire.messages import printable

if TYPE_CHECKING:
    from flwr.app import RecordDict

    from common.wire.signing import Question

FILE_NAME = "ledger.jsonl"
_MOST_FIELDS = 256
_START = "0" * 64


class Sent(BaseModel):
    """One record of a message."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    digest: str
    """SHA-256 over all it holds, as the signed statement names it."""
    num_bytes: int
    fields: dict[str, tuple[str, int]]
    """By name: the type, and how many values, letters or (of tensors) bytes it has."""


class Entry(BaseModel):
    """One line."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    number: int
    """From 1."""
    at: str
    """UTC, ISO 8601, by the site's clock."""
    before: str
    """SHA-256 of the line before this, without its newline; 64 zeros in the first."""
    what: Literal["opened", "came", "leaves", "left", "stayed", "accepted"]
    """The program started; a message came; an answer is about to be sent; it was; it was given up; a person
    has accepted that a line is missing."""
    site: str = ""
    """Of `opened`: the site's name."""
    key: str = ""
    """Of `opened`: fingerprint of the key that signs its answers."""
    kind: str = ""
    """Message type."""
    plan: str = ""
    """SHA-256 of the plan that the question belongs to."""
    run: str = ""
    """SHA-256 of the run's signed statement."""
    round: int = 0
    attempt: int = 0
    question: str = ""
    """SHA-256 of the signed question; empty where the message did not count."""
    reason: str = ""
    """Why a message did not count, or an answer was given up."""
    records: dict[str, Sent] = {}
    update_norm: float | None = None
    """L2 norm of trained minus received tensors, before they were made smaller."""
    statement: str = ""
    """Of `left`: SHA-256 of the signed answer. Of `accepted`: the hash that this ledger lacks."""

    def in_words(self) -> str:
        """One line for a person."""
        words = f"{self.number:>6}  {self.at[:19].replace('T', ' ')}  "
        where = f"{self.kind}, round {self.round}, run {self.run[:8]}" if self.run else self.kind
        if self.what == "opened":
            return f"{words}join was started by {self.site}, {self.key}"
        if self.what == "accepted":
            return f"{words}a person accepted that the line {self.statement[:16]}… is missing"
        if self.what == "left":
            return f"{words}  sent, signed as {self.statement[:16]}…"
        if self.what == "stayed":
            return f"{words}  given up ({self.reason}); some of it may have left"
        names = ", ".join(f"{name} ({sent.num_bytes:,} bytes)" for name, sent in self.records.items())
        if self.what == "came":
            return f"{words}came: {where}" + (
                f"; does not count: {self.reason}" if self.reason else f": {names}"
            )
        norm = "" if self.update_norm is None else f"; length of the update {self.update_norm:.4g}"
        return f"{words}about to leave: {where}: {names or 'nothing'}{norm}"


def describe(content: RecordDict, signed: Mapping[str, tuple[str, int]]) -> dict[str, Sent]:
    """The records of a content, without their values.

    Args:
        signed: hash and size of each, as in a statement.
    """
    return {
        printable(name): Sent(digest=signed[name][0], num_bytes=signed[name][1], fields=_fields(record))
        for name, record in content.items()
        if name in signed
    }


def _fields(record: Any) -> dict[str, tuple[str, int]]:
    fields: dict[str, tuple[str, int]] = {}
    for name, value in record.items():
        if hasattr(value, "dtype"):  # a piece of a tensor: their names end with a number
            key = name.rpartition(".")[0] or name
            dtype, size = (
                str(value.dtype),
                fields.get(key, ("", 0))[1] + np.dtype(value.dtype).itemsize * prod(value.shape),
            )
            fields[printable(key)] = (dtype, size)
        elif isinstance(value, list):
            fields[printable(name)] = (
                f"list of {type(value[0]).__name__ if value else 'nothing'}",
                len(value),
            )
        else:
            fields[printable(name)] = (
                type(value).__name__,
                len(value) if isinstance(value, str | bytes) else 1,
            )
        if len(fields) >= _MOST_FIELDS:
            break
    return fields


def hash_of(line: bytes) -> str:
    """SHA-256 of a line, without its newline."""
    return hashlib.sha256(line).hexdigest()


def read_ledger(path: Path) -> dict[str, Entry]:
    """The lines by their hashes, in order, each found to follow the one before.

    Raises:
        ValueError: the file is missing, or names the first line that is not what was written there.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}. Name a site's {FILE_NAME}.") from None
    entries: dict[str, Entry] = {}
    before = _START
    for number, line in enumerate(content.splitlines(keepends=True), 1):
        try:
            entry = Entry.model_validate_json(line)
        except ValidationError:
            raise ValueError(f"{path}, line {number}: this is no line of a ledger. {_STEP}") from None
        is_whole = line.endswith(b"\n") and line[:-1] == _line(entry)
        if not is_whole or (entry.number, entry.before) != (number, before):
            raise ValueError(f"{path}, line {number}: it does not follow the line before. {_STEP}")
        before = hash_of(line[:-1])
        entries[before] = entry
    return entries


_STEP = "Somebody has changed this file, or a disk is damaged: keep it, and ask who could write there."


def _line(entry: Entry) -> bytes:
    written = entry.model_dump(mode="json", exclude_defaults=True)
    return json.dumps(written, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


class Ledger:
    """The ledger in a site's state folder, which its `Journal` has claimed; use it as a context."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE_NAME
        self._hashes: list[str] = []
        self._known: set[str] = set()
        self._file = -1
        self._size = 0

    def __enter__(self) -> Ledger:
        """Open it, and make sure that it is whole.

        Raises:
            ValueError: it is not what was written, or cannot be written.
        """
        try:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            self._cut_what_was_never_whole()
        except OSError as error:
            raise ValueError(
                f"'{self.path}' cannot be written ({error.strerror}). Make room or give this user access: "
                "what cannot be written down is not sent."
            ) from None
        for found, entry in read_ledger(self.path).items():
            self._keep(found, entry)
        self._size = os.fstat(self._file).st_size
        return self

    def _cut_what_was_never_whole(self) -> None:
        """A line without its end was being written when the program ended: what it tells of was not sent."""
        content = self.path.read_bytes()
        os.ftruncate(self._file, content.rfind(b"\n") + 1)

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def __contains__(self, found: str) -> bool:
        """Whether it holds a line of this hash, or a person has accepted that it does not."""
        return found in self._known

    def __len__(self) -> int:
        return len(self._hashes)

    @property
    def head(self) -> str:
        """Hash of the newest line; 64 zeros where there is none."""
        return self._hashes[-1] if self._hashes else _START

    def opened(self, site: str, key: str) -> str:
        """The program of this site has started. Raises OSError, as all that write."""
        return self._append(what="opened", site=site, key=key)

    def came(
        self, kind: str, question: Question | None, records: Mapping[str, Sent], reason: str = ""
    ) -> str:
        """A message came; `reason` says why it does not count."""
        return self._append(
            what="came", kind=printable(kind), records=records, reason=reason, **_about(question)
        )

    def leaves(
        self, kind: str, question: Question | None, records: Mapping[str, Sent], update_norm: float | None
    ) -> str:
        """An answer is about to be sent; returns the hash that goes along with it."""
        return self._append(
            what="leaves",
            kind=printable(kind),
            records=records,
            update_norm=update_norm,
            **_about(question),
        )

    def left(self, statement: str) -> str:
        """The answer written down last was sent."""
        return self._append(what="left", statement=statement)

    def stayed(self, reason: str) -> str:
        """The answer written down last was given up; some of it may have left."""
        return self._append(what="stayed", reason=reason)

    def accept(self, missing: str) -> str:
        """A person says that the line of this hash is missing, and that the site goes on."""
        return self._append(what="accepted", statement=missing)

    def _append(self, **facts: Any) -> str:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        entry = Entry(number=len(self) + 1, at=now, before=self.head, **facts)
        line = _line(entry)
        with named(self.path):
            try:
                written = os.write(self._file, line + b"\n")
                if written <= len(line):
                    raise OSError(errno.ENOSPC, "No space left on device")
                os.fsync(self._file)
            except OSError:
                with suppress(OSError):
                    os.ftruncate(self._file, self._size)
                raise
        self._size += len(line) + 1
        self._keep(hash_of(line), entry)
        return self.head

    def _keep(self, found: str, entry: Entry) -> None:
        self._hashes.append(found)
        self._known.add(found)
        if entry.what == "accepted":
            self._known.add(entry.statement)


def _about(question: Question | None) -> dict[str, Any]:
    if question is None:
        return {}
    said = question.statement
    told = {"round": said.round, "attempt": said.attempt, "question": question.digest}
    return {"plan": question.plan, "run": said.run} | told
