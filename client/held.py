"""What a site keeps of a plan it executes: the global model it was sent last, and its own yardstick.

Both lie in the state folder, so that a restart of the program makes no bound wider and no message larger.
The folder of a plan is removed when the plan is over.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from wardround.client.yardstick import Yardstick
from wardround.common.files import Writer, write_atomically, write_json

_MODEL, _YARDSTICK = "held.model", "yardstick.json"
_HEADER = 512
"""Bytes in front of the numbers, so that they can be mapped on a page boundary of their own type."""


@dataclass(frozen=True)
class HeldModel:
    """A model that this site was sent and has found within its bounds."""

    version: str
    """SHA-256 of the tensors, as the server named it."""
    age: int
    """Rounds that the model has behind it; 0 for the first."""
    tensors: np.ndarray  # (P,) fp32, read only


@dataclass
class Held:
    """The folder of one plan below `state/answers`; writes go on beside the training."""

    folder: Path
    _writer: Writer = field(default_factory=Writer)

    def model(self) -> HeldModel | None:
        """The model that was kept last; None if there is none, or it is not whole."""
        path = self.folder / _MODEL
        try:
            told = json.loads(path.open("rb").read(_HEADER))
            tensors = np.memmap(path, dtype=np.float32, mode="r", offset=_HEADER)
        except (OSError, ValueError):
            return None
        if len(tensors) != told["size"]:
            return None
        return HeldModel(told["version"], told["age"], np.asarray(tensors))

    def keep_model(self, model: HeldModel) -> None:
        """Write a model in place of the last one, in the background; `wait` says when it is there."""
        self._writer.write(self._write_model, model)

    def _write_model(self, model: HeldModel) -> None:
        told = {"version": model.version, "age": model.age, "size": len(model.tensors)}
        header = json.dumps(told).encode("ascii").ljust(_HEADER)

        def write(part: Path) -> None:
            with part.open("wb") as file:
                file.write(header)
                file.write(model.tensors.data)
            part.chmod(0o600)

        write_atomically(self.folder / _MODEL, write)

    def yardstick(self) -> Yardstick | None:
        """How far this site moved each tensor so far; None before its first training under the plan."""
        path = self.folder / _YARDSTICK
        if not path.is_file():
            return None
        told = json.loads(path.read_text(encoding="ascii"))
        return Yardstick(np.array(told["per_tensor"]), np.array(told["smallest"]))

    def keep_yardstick(self, yardstick: Yardstick) -> None:
        """Write it in place of the last one. Raises OSError."""
        told = {
            "per_tensor": yardstick.per_tensor.tolist(),
            "smallest": yardstick.smallest.tolist(),
        }
        write_json(self.folder / _YARDSTICK, told)

    def wait(self) -> None:
        """Return once everything is on the disk. Raises OSError."""
        self._writer.wait()
