"""Writes a site's ledger. Every line is on the disk before anything else happens.

An answer is noted before it is sent. The signed answer holds the hash of its line, and the
server returns the newest hash with its next question. A site whose ledger lacks that hash
has an old copy.

Others can make a site write only a limited amount. A line holds only names of this version, and
at most `MOST_LINE_BYTES`. Messages that do not count have no lines of their own: one line an hour
holds their numbers. A full file is never opened again for writing, and
only the newest file is read when the site starts.
"""

from __future__ import annotations

import errno
import os
import secrets
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from wardround.common.errors import Reason
from wardround.common.files import named, to_disk
from wardround.common.ledger import (
    AGAIN,
    FILE_NAME,
    REASONS,
    START,
    STEP,
    Contents,
    Entry,
    entry_of,
    first_line,
    hash_of,
    known_kind,
    last_line,
    part_of,
    parts_of,
    walk_part,
    written_line,
)
from wardround.common.wire.signing import Question
from wardround.common.words import shown

PART_BYTES = 4 << 20
"""A file of this size or more is full: the next line goes into a new file."""
MOST_LINE_BYTES = 8 << 10
SUM_SECONDS = 3600.0
_SALT_BYTES = 16
_MOST_PARTS_BACK = 64
_MOST_REMEMBERED = 4096


class _OpenPart:
    """The newest file of a ledger. A method that raises OSError has changed nothing."""

    def __init__(self, path: Path, number: int) -> None:
        """Open the file, or create it.

        Args:
            number: number of the file, from 1.
        """
        self.path = part_of(path, number)
        self.number = number
        with named(self.path):
            how = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self._file = os.open(self.path, how, 0o600)
            self.size = os.fstat(self._file).st_size

    def cut_unfinished_line(self) -> None:
        """Remove an incomplete last line: the program ended before the message was sent."""
        last = last_line(self.path)
        if last and not last.endswith(b"\n"):
            self.size -= len(last)
            os.ftruncate(self._file, self.size)

    def write(self, line: bytes) -> None:
        """Add a line, on the disk."""
        with named(self.path):
            try:
                if os.write(self._file, line) < len(line):
                    raise OSError(errno.ENOSPC, "No space left on device")
                os.fsync(self._file)
            except OSError:
                with suppress(OSError):
                    os.ftruncate(self._file, self.size)
                raise
        self.size += len(line)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


@dataclass
class _Hour:
    """Messages that did not count and are not in a line yet."""

    since: str = ""
    ends: float = 0.0
    """Time by `time.monotonic()`."""
    counts: dict[str, int] = field(default_factory=dict)


class Ledger:
    """The ledger in a site's state folder, which its `Journal` has locked; use it as a context.

    It belongs to one key. If a method raises OSError, nothing was written; call it again.
    """

    def __init__(self, folder: Path, site: str, key: str) -> None:
        """Prepare the ledger in this folder.

        Args:
            site: the site's name.
            key: fingerprint of the key that signs its answers.
        """
        self.path = folder / FILE_NAME
        self._site = site
        self._key = key
        self._newest: _OpenPart
        self._number = 0
        self._head = START
        self._known: set[str] = set()
        """Hashes of the lines of the newest file."""
        self._accepted: set[str] = set()
        """Hashes of missing lines that a person has accepted."""
        self._lines: dict[tuple[str, ...], str] = {}
        """Hashes of the lines of the newest questions, answers and approvals."""
        self._is_leaving = False
        """True if the newest line is an answer whose outcome is not noted yet."""
        self._hour = _Hour()

    def __enter__(self) -> Ledger:
        """Open the ledger, and check that its newest file continues the one before.

        Raises:
            ValueError: it was changed, belongs to another key, or cannot be written.
        """
        parts = parts_of(self.path)
        try:
            self._newest = _OpenPart(self.path, max(1, len(parts)))
            try:
                self._newest.cut_unfinished_line()
                self._read(parts)
                if self._newest.size == 0:
                    self._begin()
            except BaseException:
                self._newest.close()
                raise
        except OSError as error:
            raise ValueError(
                f"'{error.filename or self.path}' cannot be written ({error.strerror}). Make "
                "room or give this user access: without a ledger nothing is sent."
            ) from None
        return self

    def _read(self, parts: list[Path]) -> None:
        """Read the newest file, and the end of the one before.

        Raises:
            ValueError: they were changed, or belong to another key.
        """
        holder = ""
        if len(parts) > 1:
            last = last_line(parts[-2])
            begin = entry_of(first_line(parts[-2]))
            end = entry_of(last)
            if begin is None or end is None:
                raise ValueError(
                    f"{parts[-2]}: its first or last line is not a line of a ledger. {STEP}"
                )
            holder = begin.key
            self._number = end.number
            self._head = hash_of(last)
        for found, entry in walk_part(self._newest.path, self._number + 1, self._head):
            self._keep(found, entry)
            holder = entry.key or holder
        if holder not in ("", self._key):
            raise ValueError(
                f"state is '{self.path.parent}', whose ledger belongs to the key "
                f"{shown(holder)}, and not to key.signing, {self._key}. Restore that key, or "
                "set state: to a new folder in site.yaml."
            )

    def __exit__(self, *_: object) -> None:
        try:
            if self._hour.counts:
                self._write_hour()
        finally:
            self._newest.close()

    def __contains__(self, found: str) -> bool:
        """Return True if the line of this hash is here, or a person accepted its absence.

        A run that is resumed after months returns an old hash. So older files are
        searched as well: the newest 64, about 500,000 lines. Raises OSError.
        """
        return (
            found in self._known
            or found in self._accepted
            or self._is_in_older_parts(found)
        )

    def _is_in_older_parts(self, found: str) -> bool:
        oldest = max(1, self._newest.number - _MOST_PARTS_BACK)
        return any(
            _holds(part_of(self.path, number), found)
            for number in range(self._newest.number - 1, oldest - 1, -1)
        )

    def __len__(self) -> int:
        return self._number

    @property
    def head(self) -> str:
        """Hash of the newest line; 64 zeros if the ledger is empty."""
        return self._head

    def opened(self) -> str:
        """Note that the program has connected for the first time since its start."""
        return self._append("opened", site=self._site, key=self._key)

    def approved(
        self, plan: str, at: float, by: str, people: Mapping[str, str]
    ) -> None:
        """Note that a plan is executed from now on, once for each decision.

        Args:
            plan: its SHA-256.
            at: time of approval, seconds since 1970.
            by: `hand` or `policy`.
            people: fingerprint of the key of each person who signed, by name.
        """
        since = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")
        if ("approved", plan, since) not in self._lines:
            self._append("approved", plan=plan, by=by, people=dict(people), since=since)

    def came(self, kind: str, question: Question, contents: Contents) -> str:
        """Note an authentic message. If it came before, it is only counted."""
        line = self._lines.get(("came", question.digest))
        if line is None:
            return self._append("came", **_about(kind, question, contents))
        self._count(AGAIN)
        return line

    def does_not_count(self, reason: Reason) -> bool:
        """Count a message that is not authentic. Return True for the first in an hour.

        A program that is killed loses the numbers of its last hour. The site's journal
        has them, too.
        """
        return self._count(reason)

    def leaves(
        self,
        kind: str,
        question: Question | None,
        contents: Contents,
        update_norm: float | None,
    ) -> str:
        """Note an answer that is about to be sent. Return the hash to send with it.

        If this answer to this question was sent before, it is only counted.

        Args:
            question: None for a message that does not count. Then there is no line, and
                the hash is empty.
        """
        self._is_leaving = False
        if question is None:
            return ""
        line = self._lines.get(("leaves", question.digest, contents.digest()))
        if line is not None:
            self._count(AGAIN)
            return line
        line = self._append(
            "leaves", update_norm=update_norm, **_about(kind, question, contents)
        )
        self._is_leaving = True
        return line

    def left(self, statement: str) -> None:
        """Note that the answer was sent. Args: statement: SHA-256 of the signed answer."""
        self._conclude("left", statement=statement)

    def stayed(self, reason: str) -> None:
        """Note that the answer was given up. A part of it may have been sent."""
        self._conclude("stayed", reason=reason)

    def _conclude(self, what: str, **facts: Any) -> None:
        """Note the outcome of the answer that the line before names."""
        if self._is_leaving:
            self._write(what, **facts)

    def accept(self, missing: str) -> str:
        """Note that a person accepts that the line of this hash is missing."""
        return self._append("accepted", statement=missing)

    def sum_up(self) -> None:
        """Write the hourly line, if the hour is over."""
        if self._hour.counts and time.monotonic() >= self._hour.ends:
            self._write_hour()

    def _count(self, reason: str) -> bool:
        assert reason in REASONS, reason
        self.sum_up()
        hour = self._hour
        if not hour.counts:
            hour.since = _now()
            hour.ends = time.monotonic() + SUM_SECONDS
        hour.counts[reason] = hour.counts.get(reason, 0) + 1
        return hour.counts[reason] == 1

    def _write_hour(self) -> None:
        self._make_room()
        self._write("did_not_count", since=self._hour.since, counts=self._hour.counts)
        self._hour = _Hour()

    def _append(self, what: str, **facts: Any) -> str:
        self.sum_up()
        self._make_room()
        return self._write(what, **facts)

    def _make_room(self) -> None:
        """Continue in another file if the newest is full."""
        full = self._newest
        if full.size < PART_BYTES:
            return
        self._newest = _OpenPart(self.path, full.number + 1)
        try:
            self._begin()
        except OSError:
            self._newest.close()
            self._newest = full
            raise
        full.close()
        self._known = {self._head}

    def _begin(self) -> None:
        """Write the first line of a file: the ledger's site and key."""
        to_disk(self.path.parent)  # the name of the file
        what = "begins" if self._number == 0 else "goes_on"
        self._write(what, site=self._site, key=self._key)

    def _write(self, what: str, **facts: Any) -> str:
        entry = Entry(
            number=self._number + 1,
            at=_now(),
            salt=secrets.token_hex(_SALT_BYTES),
            before=self._head,
            what=what,  # type: ignore[arg-type]
            **facts,
        )
        line = written_line(entry)
        assert len(line) <= MOST_LINE_BYTES, f"a line of {len(line)} bytes"
        self._newest.write(line)
        self._is_leaving = False
        self._keep(hash_of(line), entry)
        return self._head

    def _keep(self, found: str, entry: Entry) -> None:
        self._number = entry.number
        self._head = found
        self._known.add(found)
        if entry.what == "accepted":
            self._accepted.add(entry.statement)
        if entry.what == "came" and entry.question:
            self._remember(found, "came", entry.question)
        if entry.what == "approved":
            self._remember(found, "approved", entry.plan, entry.since)
        if entry.what == "leaves" and entry.question:
            self._remember(found, "leaves", entry.question, entry.contents.digest())

    def _remember(self, found: str, *what: str) -> None:
        self._lines[what] = found
        if len(self._lines) > _MOST_REMEMBERED:
            del self._lines[next(iter(self._lines))]


def _holds(part: Path, found: str) -> bool:
    """Return True if the file holds this line, or a person's consent that it is missing.

    Raises:
        OSError: the file cannot be read.
    """
    accepted = f'"statement":"{found}"'.encode("ascii", errors="replace")
    with part.open("rb") as file:
        for line in file:
            is_accepted = b'"what":"accepted"' in line and accepted in line
            if is_accepted or hash_of(line) == found:
                return True
    return False


def _about(kind: str, question: Question, contents: Contents) -> dict[str, Any]:
    statement = question.statement
    return {
        "kind": known_kind(kind),
        "plan": question.plan,
        "run": statement.run,
        "round": statement.round,
        "attempt": statement.attempt,
        "question": question.digest,
        "records": contents.records,
        "others": contents.others,
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
