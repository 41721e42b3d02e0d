"""A site's ledger, written: what came and what left is on the disk before anything else happens.

An answer is written down before it is sent. The hash of its line goes along with it, signed, and the server
hands the newest one back with its next question: a site whose ledger lacks it holds an old copy.

What others can make a site write is bounded. A line holds names of this version only, and is at most
`MOST_LINE_BYTES` long. Messages that do not count have no lines of their own: one line an hour holds their
numbers. A file that is full is closed for good, and only the newest file is read when the site starts.
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
"""A file of this size or more is full: the next line opens another."""
MOST_LINE_BYTES = 8 << 10
SUM_SECONDS = 3600.0
_SALT_BYTES = 16
_MOST_PARTS_BACK = 64
_MOST_REMEMBERED = 4096


class _OpenPart:
    """The newest file of a ledger. What raises OSError has changed nothing."""

    def __init__(self, path: Path, number: int) -> None:
        """Open it, or make it. Args: number: of the file, from 1."""
        self.path, self.number = part_of(path, number), number
        with named(self.path):
            how = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self._file = os.open(self.path, how, 0o600)
            self.size = os.fstat(self._file).st_size

    def cut_what_was_never_whole(self) -> None:
        """A line without its end was being written when the program ended: what it tells of was not sent."""
        last = last_line(self.path)
        if last and not last.endswith(b"\n"):
            self.size -= len(last)
            os.ftruncate(self._file, self.size)

    def write(self, line: bytes) -> None:
        """Add a line, and bring it to the disk."""
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
        """Write no more."""
        os.close(self._file)


@dataclass
class _Hour:
    """Messages that did not count, and that no line tells of yet."""

    since: str = ""
    ends: float = 0.0
    """By `time.monotonic()`."""
    counts: dict[str, int] = field(default_factory=dict)


class Ledger:
    """The ledger in a site's state folder, which its `Journal` has claimed; use it as a context.

    It belongs to one key. A method that writes raises OSError if that fails; it can be called again.
    """

    def __init__(self, folder: Path, site: str, key: str) -> None:
        """Args: site: its name. key: fingerprint of the key that signs its answers."""
        self.path = folder / FILE_NAME
        self._site, self._key = site, key
        self._newest: _OpenPart
        self._number, self._head = 0, START
        self._known: set[str] = set()
        """Hashes of the lines of the newest file."""
        self._accepted: set[str] = set()
        """Hashes of lines that are missing, as a person has accepted."""
        self._told: dict[tuple[str, ...], str] = {}
        """By question, or by question and answer: hash of the line that tells of it. The newest ones."""
        self._is_leaving = False
        """Whether the newest line tells of an answer, and no line yet what became of it."""
        self._hour = _Hour()

    def __enter__(self) -> Ledger:
        """Open it, and make sure that its newest file is whole and goes on from the one before.

        Raises:
            ValueError: it is not what was written, it is another key's, or it cannot be written.
        """
        parts = parts_of(self.path)
        try:
            self._newest = _OpenPart(self.path, max(1, len(parts)))
            try:
                self._newest.cut_what_was_never_whole()
                self._read(parts)
                if self._newest.size == 0:
                    self._begin()
            except BaseException:
                self._newest.close()
                raise
        except OSError as error:
            raise ValueError(
                f"'{error.filename or self.path}' cannot be written ({error.strerror}). Make room or give "
                "this user access: what cannot be written down is not sent."
            ) from None
        return self

    def _read(self, parts: list[Path]) -> None:
        """Take over the newest file, and the end of the one before.

        Raises:
            ValueError: they are not what was written, or another key's.
        """
        holder = ""
        if len(parts) > 1:
            first, last = first_line(parts[-2]), last_line(parts[-2])
            begin, end = entry_of(first), entry_of(last)
            if begin is None or end is None:
                raise ValueError(
                    f"{parts[-2]}: its first or last line is no line of a ledger. {STEP}"
                )
            holder = begin.key
            self._number, self._head = end.number, hash_of(last)
        for found, entry in walk_part(self._newest.path, self._number + 1, self._head):
            self._keep(found, entry)
            holder = entry.key or holder
        if holder not in ("", self._key):
            raise ValueError(
                f"state is '{self.path.parent}', whose ledger belongs to the key {shown(holder)}, and not to "
                f"key.signing, {self._key}. Put that key back, or set state: to a new folder in site.yaml."
            )

    def __exit__(self, *_: object) -> None:
        try:
            if self._hour.counts:
                self._write_hour()
        finally:
            self._newest.close()

    def __contains__(self, found: str) -> bool:
        """Whether it holds a line of this hash, or a person has accepted that it does not.

        A run that is resumed after months hands an old hash back. So older files are searched as well: the
        newest 64 of them, about 500,000 lines. Raises OSError.
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
        """Hash of the newest line; 64 zeros if there is none."""
        return self._head

    def opened(self) -> str:
        """The program has connected for the first time since it was started."""
        return self._append("opened", site=self._site, key=self._key)

    def approved(
        self, plan: str, at: float, by: str, people: Mapping[str, str]
    ) -> None:
        """A plan is executed from now on. Of one decision there is one line.

        Args:
            plan: its SHA-256.
            at: when it was approved, seconds since 1970.
            by: `hand` or `policy`.
            people: who signed, by name: fingerprint of the key.
        """
        since = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")
        if ("approved", plan, since) not in self._told:
            self._append("approved", plan=plan, by=by, people=dict(people), since=since)

    def came(self, kind: str, question: Question, contents: Contents) -> str:
        """An authentic message came. If it came before, it is counted, and has no line again."""
        line = self._told.get(("came", question.digest))
        if line is None:
            return self._append("came", **_about(kind, question, contents))
        self._count(AGAIN)
        return line

    def does_not_count(self, reason: Reason) -> bool:
        """A message came that is not authentic. Returns whether it is the first of this reason in an hour.

        A program that is killed loses the numbers of its last hour; the site's journal has them, too.
        """
        return self._count(reason)

    def sent_again(self) -> None:
        """An answer that a line tells of was sent once more."""
        self._count(AGAIN)

    def leaves(
        self,
        kind: str,
        question: Question | None,
        contents: Contents,
        update_norm: float | None,
    ) -> str:
        """An answer is about to be sent; returns the hash that goes along with it.

        If this answer to this question has left before, it is counted, and has no line again.

        Args:
            question: None for a message that did not count: there is no line then, and the hash is empty.
        """
        self._is_leaving = False
        if question is None:
            return ""
        line = self._told.get(("leaves", question.digest, contents.digest()))
        if line is not None:
            self._count(AGAIN)
            return line
        line = self._append(
            "leaves", update_norm=update_norm, **_about(kind, question, contents)
        )
        self._is_leaving = True
        return line

    def left(self, statement: str) -> None:
        """The answer was sent. Args: statement: SHA-256 of the signed answer."""
        self._conclude("left", statement=statement)

    def stayed(self, reason: str) -> None:
        """The answer was given up; some of it may have left."""
        self._conclude("stayed", reason=reason)

    def _conclude(self, what: str, **facts: Any) -> None:
        """Say what became of the answer that the line before tells of."""
        if self._is_leaving:
            self._write(what, **facts)

    def accept(self, missing: str) -> str:
        """A person says that the line of this hash is missing, and that the site goes on."""
        return self._append("accepted", statement=missing)

    def sum_up(self) -> None:
        """Write the line of the hour, if the hour is over."""
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
        """Go on in another file if the newest is full."""
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
        """Write the first line of a file: whose ledger it is."""
        to_disk(
            self.path.parent
        )  # the file's name; a file without a line is as good as none
        self._write(
            "begins" if self._number == 0 else "goes_on", site=self._site, key=self._key
        )

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
        self._number, self._head = entry.number, found
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
        self._told[what] = found
        if len(self._told) > _MOST_REMEMBERED:
            del self._told[next(iter(self._told))]


def _holds(part: Path, found: str) -> bool:
    """Whether a file holds the line of this hash, or a person's word that it is missing. Raises OSError."""
    accepted = f'"statement":"{found}"'.encode("ascii", errors="replace")
    with part.open("rb") as file:
        for line in file:
            is_accepted = b'"what":"accepted"' in line and accepted in line
            if is_accepted or hash_of(line) == found:
                return True
    return False


def _about(kind: str, question: Question, contents: Contents) -> dict[str, Any]:
    said = question.statement
    return {
        "kind": known_kind(kind),
        "plan": question.plan,
        "run": said.run,
        "round": said.round,
        "attempt": said.attempt,
        "question": question.digest,
        "records": contents.records,
        "others": contents.others,
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
