"""The journal of a site: the questions it has answered, and the current message."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from wardround.common.errors import NotAuthentic
from wardround.common.files import write_json
from wardround.common.wire.signing import CLOCK_SECONDS, Question
from wardround.common.words import shown


class Journal:
    """A file in the site's state folder. Use it as a context: it locks the folder.

    Raises:
        ValueError: another process uses the folder, or the file cannot be written, is
            damaged, or belongs to another key.
    """

    def __init__(self, folder: Path, key: str = "") -> None:
        """Prepare the journal in this folder.

        Args:
            key: fingerprint of the key that signs the site's answers; empty: any key.
        """
        self._folder = folder
        self._file = folder / "journal.json"
        self._key = key
        self._lock = FileLock(folder / ".lock")
        self._content: dict[str, Any] = {
            "answered": {},
            "in_hand": "",
            "refused": {},
            "plans": {},
            "key": "",
        }

    def __enter__(self) -> Journal:
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock.acquire(timeout=1)
            if self._file.exists():
                text = self._file.read_text(encoding="utf-8")
                self._content |= json.loads(text)
            self._write()
        except Timeout:
            raise ValueError(
                f"state is '{self._folder}', which another `wardround-site join` is using. "
                "Stop that one first; a site joins once."
            ) from None
        except OSError as error:
            raise ValueError(
                f"state is '{self._folder}', which cannot be written ({error.strerror}). Make "
                "room, give this user access, or set state: to another folder in site.yaml."
            ) from None
        except (ValueError, TypeError, KeyError):
            raise ValueError(
                f"'{self._file}' is not what this program wrote. Without it, questions could "
                "be answered twice: ask the coordinator if a run is active, then move the file "
                "away."
            ) from None
        self._bind()
        return self

    def _bind(self) -> None:
        """Bind the journal to the key. The next note writes the key to the disk.

        Before that, the ledger is checked: it must belong to the key, too.

        Raises:
            ValueError: the file belongs to another key.
        """
        holder = str(self._content["key"])
        if self._key and holder and holder != self._key:
            self._lock.release()
            raise ValueError(
                f"state is '{self._folder}', whose journal belongs to the key {shown(holder)}, "
                f"and not to key.signing, {self._key}. Restore that key, or set state: to a new "
                "folder in site.yaml."
            )
        self._content["key"] = holder or self._key

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    @property
    def current(self) -> bytes:
        """The message that was pulled and is not answered yet; empty if there is none."""
        return base64.b64decode(self._content["in_hand"])

    @property
    def refused(self) -> dict[str, int]:
        """Number of messages that did not count, by reason."""
        return dict(self._content["refused"])

    def take(self, written: bytes) -> None:
        """Note a message before the work on it begins. Raises OSError."""
        text = base64.b64encode(written).decode("ascii")
        self._write(in_hand=text)

    def begin(self, question: Question) -> None:
        """Note that a question is being answered. It is never answered again.

        Raises:
            NotAuthentic: `replayed`: this question, or a later one of its run, was begun.
            OSError: the note cannot be written, so nothing may be answered.
        """
        run = question.statement.run
        attempt = question.statement.attempt
        answered = self._content["answered"]
        before = answered.get(run)
        if before is not None and attempt <= before["attempt"]:
            raise NotAuthentic("replayed")
        # Questions do not count after the end of their run, so older runs can go.
        now = time.time()
        kept = {
            name: last
            for name, last in answered.items()
            if last["ends"] + 2 * CLOCK_SECONDS > now
        }
        last = {"attempt": attempt, "ends": question.run_ends}
        self._write(answered=kept | {run: last})

    def last_round_before(self, plan: str) -> int:
        """Return the last round that an earlier version answered without storing it, or 0.

        Args:
            plan: SHA-256 of the plan.
        """
        found = self._content["plans"].get(plan)
        return 0 if found is None else int(found["round"])

    def was_begun(self, question: Question) -> bool:
        """Return True if this question was begun before; its answer may be lost."""
        asked = question.statement
        last = self._content["answered"].get(asked.run)
        return last is not None and last["attempt"] == asked.attempt

    def put_down(self) -> None:
        """Note that there is no current message any more. Raises OSError."""
        self._write(in_hand="")

    def count_refused(self, reason: str) -> None:
        """Count one more message that does not count. Raises OSError."""
        refused = self.refused
        refused[reason] = refused.get(reason, 0) + 1
        self._write(refused=refused)

    def _write(self, **changed: Any) -> None:
        """Write changes. If that fails, the journal stays as it is."""
        content = self._content | changed
        write_json(self._file, content)
        self._content = content
