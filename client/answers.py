"""One answer for each plan, kind of question and round: stored before it leaves, and sent again if asked.

A second training of the same round, on other texts or for another model, would be a second look at the same
texts: the difference of two answers tells more than each of them. So a site trains a round once. The answer
is kept until a later question, signed by the run, proves that the server has this round's model on its disk.

    answers/<plan>/index.json      which rounds were begun, for which model and file, and what was stored
    answers/<plan>/train-3.answer  the answer to round 3, byte for byte
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from flwr.app import RecordDict
from pydantic import ConfigDict, TypeAdapter, ValidationError

from wardround.common.errors import SiteRefusal
from wardround.common.files import write_atomically, write_json
from wardround.common.wire.codec import is_missing_base
from wardround.common.wire.contents import (
    dump_content,
    load_content,
    put_arrays,
    take_arrays,
)
from wardround.common.wire.flat_arrays import padded_arrays, read_arrays, table_of
from wardround.common.wire.messages import EVALUATE, TRAIN

_INDEX = "index.json"
_LENGTH, _ALIGNMENT = 8, 64
_STORED = frozenset({"few_speak", "diverged", "counts_withheld"})
"""Refusals that say something of the texts: they are answers as well, and are given once."""


@dataclass(frozen=True)
class Begun:
    """A round that this site has begun to answer."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    model: str
    """SHA-256 of the global model that came with the question."""
    data: str
    """SHA-256 of the file of texts."""
    stored: str = ""
    """SHA-256 of the stored answer; empty as long as nothing was stored."""
    update_norm: float | None = None
    """L2 norm of trained minus received tensors, for the ledger."""


Index = dict[str, dict[int, Begun]]
"""By kind of question and by round."""
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
        """Of one plan. Args: plan: its SHA-256."""
        return self._folder / plan

    def begin(
        self, plan: str, kind: str, round: int, begun: Begun, floor: int, most: int
    ) -> SiteAnswer | None:
        """Note that a round is being answered; the answer that was stored for it, if there is one.

        Args:
            plan: its SHA-256.
            kind: a message type.
            floor: last round that an earlier version of this program answered, without storing it.
            most: rounds that this site answers in all (`policy.max_total_answers`).

        Raises:
            SiteRefusal: `answered_otherwise`: it was begun for another model; `answer_lost`: it left and is not
                here any more; `out_of_order`: a later round was begun; `over_budget`; `beyond_plan`: held-out
                texts were counted for another round.
            OSError: this cannot be noted, so that nothing may be answered.
            ValueError: the index is not what this program wrote.
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
        """Store an answer, before it leaves. Raises OSError: nothing may leave then."""
        if not _is_final(content):
            return
        digest = _write_answer(self._path(plan, kind, round), content)
        index = self._index(plan)
        begun = replace(index[kind][round], stored=digest, update_norm=norm)
        self._write(plan, index | {kind: index[kind] | {round: begun}})

    def num_answers(self) -> int:
        """Rounds of training that this site has answered, over all plans."""
        return sum(1 for _ in self._given())

    def answered(self) -> Iterator[tuple[str, str]]:
        """SHA-256 of plan and data file of every answer, each pair once."""
        yield from sorted({(plan, begun.data) for plan, begun in self._given()})

    def _given(self) -> Iterator[tuple[str, Begun]]:
        """Every answered round of training, with the SHA-256 of its plan."""
        for plan in self.plans():
            for begun in self._index(plan).get(TRAIN, {}).values():
                if begun.stored:
                    yield plan, begun

    def end(self, plan: str) -> None:
        """Forget all but the index of a plan that is over. Raises OSError."""
        for path in self.folder(plan).glob("*"):
            if path.name != _INDEX:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def plans(self) -> list[str]:
        """SHA-256 of every plan that something was begun for."""
        return sorted(folder.name for folder in self._folder.glob("*"))

    def last_round(self, plan: str) -> int:
        """The last round of a plan that was begun; 0 for none."""
        return max(self._index(plan).get(TRAIN, {}), default=0)

    def _read(self, plan: str, kind: str, round: int, begun: Begun) -> SiteAnswer:
        content = _read_answer(self._path(plan, kind, round), begun.stored)
        if content is None:
            raise SiteRefusal("answer_lost")
        return SiteAnswer(content, begun.update_norm)

    def _forget_before(self, plan: str, round: int) -> None:
        """A question about a round proves that the server holds the model of the round before."""
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
                f"'{path}' is not what this program wrote. Without it, rounds that were answered could be "
                "answered again: revoke the plan, then move its folder away."
            ) from None

    def _write(self, plan: str, index: Index) -> None:
        told = {
            kind: {number: asdict(b) for number, b in rounds.items()}
            for kind, rounds in index.items()
        }
        write_json(self.folder(plan) / _INDEX, told)

    def _path(self, plan: str, kind: str, round: int) -> Path:
        return self.folder(plan) / f"{kind}-{round}.answer"


def _is_final(content: RecordDict) -> bool:
    """Whether it is the answer to a round, and not the word of a process that could not give one."""
    refusal = content.config_records.get("refusal")
    if refusal is not None:
        return str(refusal["code"]) in _STORED
    return not is_missing_base(content)


def _write_answer(path: Path, content: RecordDict) -> str:
    """Write an answer whole or not at all; returns its SHA-256. Raises OSError."""
    rest, arrays = take_arrays(content)
    words = dump_content({"table": table_of(arrays)}, rest)
    # Numbers begin on a boundary of their own type; JSON may end with spaces.
    words = words.ljust(-(-(len(words) + _LENGTH) // _ALIGNMENT) * _ALIGNMENT - _LENGTH)
    digest = hashlib.sha256()

    def write(part: Path) -> None:
        part.touch(mode=0o600)
        with part.open("wb") as file:
            for piece in (
                len(words).to_bytes(_LENGTH, "little"),
                words,
                *padded_arrays(arrays),
            ):
                digest.update(piece)
                file.write(piece)

    write_atomically(path, write)
    return digest.hexdigest()


def _read_answer(path: Path, digest: str) -> RecordDict | None:
    """Inverse of `_write_answer`; None if the file is not there, or is not what was written.

    Its arrays are mapped, not copied.
    """
    try:
        memory = np.asarray(np.memmap(path, np.uint8, mode="r"))
    except (OSError, ValueError):
        return None
    if hashlib.sha256(memory.data).hexdigest() != digest:
        return None
    end = _LENGTH + int.from_bytes(memory[:_LENGTH].tobytes(), "little")
    words, content = load_content(memory[_LENGTH:end].tobytes())
    put_arrays(content, read_arrays(memory[end:], words["table"]))
    return content
