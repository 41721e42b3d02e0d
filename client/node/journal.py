"""What a site must not forget when it is killed: the questions it has answered, and the one in hand."""

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
    """A file in the site's state folder; use it as a context, which claims the folder.

    Raises:
        ValueError: another process has claimed it, it cannot be written, the file is not what was written, or
            it belongs to another key.
    """

    def __init__(self, folder: Path, key: str = "") -> None:
        """Args: key: fingerprint of the key that signs the site's answers; empty for any."""
        self._folder, self._file, self._key = folder, folder / "journal.json", key
        self._lock = FileLock(folder / ".lock")
        self._content: dict[str, Any] = {
            "answered": {},
            "in_hand": "",
            "refused": {},
            "plans": {},
        }
        self._content["key"] = ""

    def __enter__(self) -> Journal:
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock.acquire(timeout=1)
            if self._file.exists():
                self._content |= json.loads(self._file.read_text(encoding="utf-8"))
            self._write()
        except Timeout:
            raise ValueError(
                f"state is '{self._folder}', which another `wardround-site join` is using. End that one "
                "first; a site joins once."
            ) from None
        except OSError as error:
            raise ValueError(
                f"state is '{self._folder}', which cannot be written ({error.strerror}). Make room, give "
                "this user access, or set state: to another folder in site.yaml."
            ) from None
        except (ValueError, TypeError, KeyError):
            raise ValueError(
                f"'{self._file}' is not what this program wrote. Without it, questions that were answered "
                "could be asked again: ask the coordinator whether a run is on, then move the file away."
            ) from None
        self._bind()
        return self

    def _bind(self) -> None:
        """Belong to this key. It is written with the next note: by then the ledger was found to be its, too.

        Raises:
            ValueError: the file belongs to another key.
        """
        holder = str(self._content["key"])
        if self._key and holder and holder != self._key:
            self._lock.release()
            raise ValueError(
                f"state is '{self._folder}', whose journal belongs to the key {shown(holder)}, and not to "
                f"key.signing, {self._key}. Put that key back, or set state: to a new folder in site.yaml."
            )
        self._content["key"] = holder or self._key

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    @property
    def in_hand(self) -> bytes:
        """The message that was pulled and not answered yet; empty for none."""
        return base64.b64decode(self._content["in_hand"])

    @property
    def refused(self) -> dict[str, int]:
        """How many messages did not count, by reason."""
        return dict(self._content["refused"])

    def take(self, written: bytes) -> None:
        """Note a message before anything is done about it. Raises OSError."""
        self._write(in_hand=base64.b64encode(written).decode("ascii"))

    def begin(self, question: Question) -> None:
        """Note that a question is being answered: it never will be again.

        Raises:
            NotAuthentic: `replayed`: it, or one that came after it in its run, was answered.
            OSError: this cannot be noted, so that nothing may be answered.
        """
        run, attempt = question.statement.run, question.statement.attempt
        answered = self._content["answered"]
        if attempt <= answered.get(run, {"attempt": 0})["attempt"]:
            raise NotAuthentic("replayed")
        # No question of a run counts after its end, so older runs can be forgotten.
        now = time.time()
        kept = {
            name: told
            for name, told in answered.items()
            if told["ends"] + 2 * CLOCK_SECONDS > now
        }
        self._write(
            answered=kept | {run: {"attempt": attempt, "ends": question.run_ends}}
        )

    def last_round_before(self, plan: str) -> int:
        """The last round that a version of this program answered which stored no answers; 0 for none.

        Args:
            plan: SHA-256 of the plan.
        """
        told = self._content["plans"].get(plan, {"round": 0})
        return int(told["round"])

    def was_begun(self, question: Question) -> bool:
        """Whether this very question was begun before, and perhaps its answer lost on the way."""
        told = self._content["answered"].get(question.statement.run)
        return told is not None and told["attempt"] == question.statement.attempt

    def put_down(self) -> None:
        """Nothing is in hand any more. Raises OSError."""
        self._write(in_hand="")

    def count_refused(self, reason: str) -> None:
        """One more message that did not count. Raises OSError."""
        self._write(refused=self.refused | {reason: self.refused.get(reason, 0) + 1})

    def _write(self, **changed: Any) -> None:
        """What cannot be written has not happened."""
        content = self._content | changed
        write_json(self._file, content)
        self._content = content
