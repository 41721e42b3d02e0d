"""One answer for each plan, kind of question and round. It is stored before it is sent.

Two answers to the same round, on other texts or for another model, differ. Their difference
reveals more than each answer alone. So a site trains a round once, and sends the stored
answer if it is asked again. The answer is kept until a later question, signed by the run,
proves that the server has this round's model on its disk.

    answers/<plan>/index.json      the rounds: model, data file, hash of the answer
    answers/<plan>/train-3.answer  the answer to round 3, byte for byte
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from flwr.app import RecordDict
from pydantic import ConfigDict, TypeAdapter, ValidationError

from wardround.common.errors import SiteRefusal
from wardround.common.files import write_atomically, write_json
from wardround.common.wire.arrays import (
    dump_content,
    load_content,
    put_arrays,
    take_arrays,
)
from wardround.common.wire.codec import is_missing_base
from wardround.common.wire.flat_arrays import (
    aligned,
    padded_arrays,
    read_arrays,
    table_of,
)
from wardround.common.wire.messages import EVALUATE, TRAIN

_INDEX = "index.json"
_LENGTH_BYTES = 8
_STORED = frozenset({"few_speak", "diverged", "counts_withheld"})
"""Refusals that reveal something about the texts. They are stored as answers, too."""


@dataclass(frozen=True)
class Begun:
    """A round that this site has begun to answer."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    model: str
    """SHA-256 of the global model in the question."""
    data: str
    """SHA-256 of the data file."""
    stored: str = ""
    """SHA-256 of the stored answer; empty if there is no answer yet."""
    update_norm: float | None = None
    """L2 norm of trained minus received tensors, for the ledger."""


Index = dict[str, dict[int, Begun]]
"""The rounds of a plan, by kind of question and round number."""
_ADAPTER: TypeAdapter[Index] = TypeAdapter(Index)


@dataclass(frozen=True)
class SiteAnswer:
    """The answer to a message."""

    content: RecordDict
    update_norm: float | None = None
    """L2 norm of trained minus received tensors, for the ledger; None if the answer is not
    an update."""


class Answers:
    """The folder `answers` of a site's state."""

    def __init__(self, state: Path) -> None:
        self._folder = state / "answers"

    def folder(self, plan: str) -> Path:
        """Return the folder of one plan. Args: plan: its SHA-256."""
        return self._folder / plan

    def begin(
        self, plan: str, kind: str, round: int, begun: Begun, floor: int, most: int
    ) -> SiteAnswer | None:
        """Note that a round is being answered. Return its stored answer, if there is one.

        Args:
            plan: its SHA-256.
            kind: a message type.
            floor: last round that an earlier version answered without storing it.
            most: rounds that this site answers in total (`policy.max_total_answers`).

        Raises:
            SiteRefusal: `answered_otherwise`: the round was begun for another model;
                `answer_lost`: the answer was sent, and its file is missing;
                `out_of_order`: a later round was begun; `over_budget`;
                `beyond_plan`: held-out texts were counted for another round.
            OSError: the note cannot be written, so nothing may be answered.
            ValueError: the index is damaged.
        """
        index = self._index(plan)
        rounds = index.setdefault(kind, {})
        before = rounds.get(round)
        if kind == EVALUATE and rounds and before is None:
            raise SiteRefusal("beyond_plan")
        if before is not None:
            if before.model != begun.model:
                raise SiteRefusal("answered_otherwise")
            if before.stored:
                return self._read(plan, kind, round, before)
            begun = replace(before, data=begun.data)
        elif round <= floor:
            raise SiteRefusal("answer_lost")
        elif round < max(rounds, default=0):
            raise SiteRefusal("out_of_order")
        elif kind == TRAIN and self.num_answers() >= most:
            raise SiteRefusal("over_budget")
        self._write(plan, index | {kind: rounds | {round: begun}})
        if kind == TRAIN:
            self._forget_before(plan, round)
        return None

    def keep(
        self, plan: str, kind: str, round: int, content: RecordDict, norm: float | None
    ) -> None:
        """Store an answer before it is sent. Raises OSError: then nothing may be sent."""
        if not _is_final(content):
            return
        digest = _write_answer(self._path(plan, kind, round), content)
        index = self._index(plan)
        begun = replace(index[kind][round], stored=digest, update_norm=norm)
        self._write(plan, index | {kind: index[kind] | {round: begun}})

    def num_answers(self) -> int:
        """Return the number of training rounds that this site has answered, over all plans."""
        return sum(1 for _ in self._given())

    def answered(self) -> Iterator[tuple[str, str]]:
        """Yield the SHA-256 of plan and data file of every answer, each pair once."""
        yield from sorted({(plan, begun.data) for plan, begun in self._given()})

    def _given(self) -> Iterator[tuple[str, Begun]]:
        """Yield every answered training round, with the SHA-256 of its plan."""
        for plan in self.plans():
            for begun in self._index(plan).get(TRAIN, {}).values():
                if begun.stored:
                    yield plan, begun

    def end(self, plan: str) -> None:
        """Delete everything except the index of a plan that is over. Raises OSError."""
        for path in self.folder(plan).glob("*"):
            if path.name != _INDEX:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def plans(self) -> list[str]:
        """Return the SHA-256 of every plan with a begun round."""
        return sorted(folder.name for folder in self._folder.glob("*"))

    def last_round(self, plan: str) -> int:
        """Return the last round of a plan that was begun; 0 if there is none."""
        return max(self._index(plan).get(TRAIN, {}), default=0)

    def _read(self, plan: str, kind: str, round: int, begun: Begun) -> SiteAnswer:
        content = _read_answer(self._path(plan, kind, round), begun.stored)
        if content is None:
            raise SiteRefusal("answer_lost")
        return SiteAnswer(content, begun.update_norm)

    def _forget_before(self, plan: str, round: int) -> None:
        """Delete the answers to earlier rounds. A question proves that the server has the model."""
        for path in self.folder(plan).glob(f"{TRAIN}-*.answer"):
            if int(path.stem.removeprefix(f"{TRAIN}-")) < round:
                path.unlink()

    def _index(self, plan: str) -> Index:
        path = self.folder(plan) / _INDEX
        if not path.is_file():
            return {}
        try:
            return _ADAPTER.validate_json(path.read_bytes())
        except ValidationError:
            raise ValueError(
                f"'{path}' is damaged. Without it, rounds could be answered twice: revoke "
                "the plan, then move its folder away."
            ) from None

    def _write(self, plan: str, index: Index) -> None:
        write_json(self.folder(plan) / _INDEX, _ADAPTER.dump_python(index))

    def _path(self, plan: str, kind: str, round: int) -> Path:
        return self.folder(plan) / f"{kind}-{round}.answer"


def _is_final(content: RecordDict) -> bool:
    """Return True for the answer to a round, False if no answer could be computed."""
    refusal = content.config_records.get("refusal")
    if refusal is not None:
        return str(refusal["code"]) in _STORED
    return not is_missing_base(content)


def _write_answer(path: Path, content: RecordDict) -> str:
    """Write a complete answer or nothing. Return its SHA-256. Raises OSError."""
    rest, arrays = take_arrays(content)
    header = dump_content({"table": table_of(arrays)}, rest)
    # The arrays begin on a boundary, and JSON may end with spaces.
    end = aligned(_LENGTH_BYTES + len(header))
    header = header.ljust(end - _LENGTH_BYTES)
    length = len(header).to_bytes(_LENGTH_BYTES, "little")
    digest = hashlib.sha256()

    def write(part: Path) -> None:
        part.touch(mode=0o600)
        with part.open("wb") as file:
            for piece in (length, header, *padded_arrays(arrays)):
                digest.update(piece)
                file.write(piece)

    write_atomically(path, write)
    return digest.hexdigest()


def _read_answer(path: Path, digest: str) -> RecordDict | None:
    """Inverse of `_write_answer`; None if the file is missing or damaged.

    The arrays are mapped, not copied.
    """
    try:
        memory = np.asarray(np.memmap(path, np.uint8, mode="r"))
    except (OSError, ValueError):
        return None
    if hashlib.sha256(memory.data).hexdigest() != digest:
        return None
    length = int.from_bytes(memory[:_LENGTH_BYTES].tobytes(), "little")
    end = _LENGTH_BYTES + length
    facts, content = load_content(memory[_LENGTH_BYTES:end].tobytes())
    put_arrays(content, read_arrays(memory[end:], facts["table"]))
    return content
