"""Arrays that a client keeps between rounds and never sends: residuals, control variates."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from wardround.common.files import write_atomically

ArrayKind = Literal["residuals", "variates"]
"""`residuals`: the loss of rounding an update, (P,) fp32. `variates`: see `client/variates.py`,
(2P,) fp32."""


class Carried(Protocol):
    """The place that keeps one client's array of fp32 numbers."""

    def take(self, run: str, round: int, size: int) -> np.ndarray | None:
        """Return the array of the round before, (size,) fp32, or None. The caller may change it."""

    def put(self, run: str, round: int, numbers: np.ndarray) -> None:
        """Keep the array of this round."""


@dataclass(frozen=True)
class CarriedFiles:
    """Files in a simulation's run folder. Any worker may train any client, also after a restart.

    The newest three are kept: a killed run continues after its last whole checkpoint, which may
    be one round behind the updates that were averaged last.
    """

    folder: Path
    client: int

    def take(self, run: str, round: int, size: int) -> np.ndarray | None:
        """As in `Carried`."""
        path = self._path(round - 1)
        return np.load(path, allow_pickle=False) if path.is_file() else None

    def put(self, run: str, round: int, numbers: np.ndarray) -> None:
        """As in `Carried`. Raises OSError if the disk is full."""

        def write(part: Path) -> None:
            # Given a path, NumPy would append .npy to it.
            with part.open("wb") as file:
                np.save(file, numbers, allow_pickle=False)

        write_atomically(self._path(round), write)
        self._path(round - 3).unlink(missing_ok=True)

    def _path(self, round: int) -> Path:
        return self.folder / f"client-{self.client:05d}-round-{round:06d}.npy"


@dataclass
class CarriedMemory:
    """The memory of a site's process: nothing from patients' texts is written to a disk."""

    _kept: dict[str, tuple[int, np.ndarray]] = field(default_factory=dict)

    def take(self, run: str, round: int, size: int) -> np.ndarray | None:
        """As in `Carried`."""
        last, numbers = self._kept.pop(run, (0, np.empty(0)))
        return numbers if (last, len(numbers)) == (round - 1, size) else None

    def put(self, run: str, round: int, numbers: np.ndarray) -> None:
        """As in `Carried`. It drops arrays of other runs."""
        self._kept = {run: (round, numbers)}
