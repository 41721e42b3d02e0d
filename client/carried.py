"""What a client carries from one round to its next and sends to nobody: rounding losses, control variates."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from wardround.common.files import write_atomically

What = Literal["residuals", "variates"]
"""`residuals`: what rounding an update lost, (P,) fp32. `variates`: see `client/variates.py`, (2P,) fp32."""


class Carried(Protocol):
    """Where one client keeps one array of fp32 numbers."""

    def take(self, run: str, round: int, size: int) -> np.ndarray | None:
        """What the round before left, (size,) fp32, to be changed; None where it left nothing."""

    def put(self, run: str, round: int, numbers: np.ndarray) -> None:
        """Keep what this round leaves."""


@dataclass(frozen=True)
class CarriedFiles:
    """In files of a simulation's run folder: any worker may train any client, and a resumed run goes on.

    The newest three are kept: a run that was killed goes on after its last whole checkpoint, and that may be
    of the round before the one whose updates were just averaged.
    """

    folder: Path
    client: int

    def take(self, run: str, round: int, size: int) -> np.ndarray | None:
        """As in `Carried`."""
        path = self._path(round - 1)
        return np.load(path, allow_pickle=False) if path.is_file() else None

    def put(self, run: str, round: int, numbers: np.ndarray) -> None:
        """As in `Carried`. Raises OSError where there is no room."""

        def write(part: Path) -> None:
            with part.open(
                "wb"
            ) as file:  # NumPy appends .npy to a name of its own choice
                np.save(file, numbers, allow_pickle=False)

        write_atomically(self._path(round), write)
        self._path(round - 3).unlink(missing_ok=True)

    def _path(self, round: int) -> Path:
        return self.folder / f"client-{self.client:05d}-round-{round:06d}.npy"


@dataclass
class CarriedMemory:
    """In the memory of a site's process, and gone with it: what comes from patients' texts is not written."""

    _kept: dict[str, tuple[int, np.ndarray]] = field(default_factory=dict)

    def take(self, run: str, round: int, size: int) -> np.ndarray | None:
        """As in `Carried`."""
        last, numbers = self._kept.pop(run, (0, np.empty(0)))
        return numbers if (last, len(numbers)) == (round - 1, size) else None

    def put(self, run: str, round: int, numbers: np.ndarray) -> None:
        """As in `Carried`; what other runs left is let go."""
        self._kept = {run: (round, numbers)}
