"""The files that a site keeps for a plan: the last global model, and the site's yardstick.

Both are in the state folder. So a restart of the program makes no bound wider and no message
larger. The folder of a plan is removed when the plan ends.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from wardround.client.yardstick import Yardstick
from wardround.common.files import Writer, write_atomically, write_json

log = logging.getLogger(__name__)

_DISK_PAUSE = 1.0
"""Seconds between two tries to write a file."""
_MOST_SECONDS = 24 * 3600.0
"""Longest wait for room on the disk; a round seldom waits longer."""
_MODEL, _YARDSTICK = "held.model", "yardstick.json"
_HEADER = 512
"""Bytes before the numbers. It is a multiple of their size, so that they can be mapped."""


@dataclass(frozen=True)
class HeldModel:
    """A global model that this site has received and found within its bounds."""

    version: str
    """SHA-256 of the tensors, from the server's request."""
    age: int
    """Number of rounds that made the model; 0 for the first model."""
    tensors: np.ndarray  # (P,) fp32, read only


@dataclass
class Held:
    """The folder of one plan below `state/answers`. Models are written during the training."""

    folder: Path
    _writer: Writer = field(default_factory=Writer)

    def model(self) -> HeldModel | None:
        """Return the last model; None if there is none, or its file is incomplete."""
        path = self.folder / _MODEL
        try:
            header = json.loads(path.open("rb").read(_HEADER))
            tensors = np.memmap(path, dtype=np.float32, mode="r", offset=_HEADER)
        except (OSError, ValueError):
            return None
        if len(tensors) != header["size"]:
            return None
        return HeldModel(header["version"], header["age"], np.asarray(tensors))

    def keep_model(self, model: HeldModel) -> None:
        """Replace the last model, in the background. `wait` returns once it is written."""
        self._writer.write(self._write_model, model)

    def _write_model(self, model: HeldModel) -> None:
        facts = {"version": model.version, "age": model.age, "size": len(model.tensors)}
        header = json.dumps(facts).encode("ascii").ljust(_HEADER)

        def write(part: Path) -> None:
            with part.open("wb") as file:
                file.write(header)
                file.write(model.tensors.data)
            part.chmod(0o600)

        _until_written(lambda: write_atomically(self.folder / _MODEL, write))

    def yardstick(self) -> Yardstick | None:
        """Return how far this site's training moves each tensor; None before the first training."""
        path = self.folder / _YARDSTICK
        if not path.is_file():
            return None
        norms = json.loads(path.read_text(encoding="ascii"))
        return Yardstick(np.array(norms["per_tensor"]), np.array(norms["smallest"]))

    def keep_yardstick(self, yardstick: Yardstick) -> None:
        """Replace the last yardstick. If the disk is full, it waits for room. Raises OSError."""
        norms = {
            "per_tensor": yardstick.per_tensor.tolist(),
            "smallest": yardstick.smallest.tolist(),
        }
        _until_written(lambda: write_json(self.folder / _YARDSTICK, norms))

    def wait(self) -> None:
        """Return once everything is on the disk. Raises OSError."""
        self._writer.wait()


def _until_written(write: Callable[[], None]) -> None:
    """Write, again and again until that succeeds.

    The site's program ends a worker that does not answer in time. A worker without a program ends
    this wait by itself.

    Raises:
        OSError: the file could not be written for `_MOST_SECONDS`.
    """
    until = time.monotonic() + _MOST_SECONDS
    was_reported = False
    while True:
        try:
            return write()
        except OSError as error:
            if time.monotonic() > until:
                raise
            if not was_reported:
                log.warning(
                    "%s: %s. Nothing is answered until this file can be written",
                    error.filename,
                    error.strerror,
                )
            was_reported = True
        time.sleep(_DISK_PAUSE)
