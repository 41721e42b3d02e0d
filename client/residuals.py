"""What rounding an update lost (error feedback), kept from one round of a client to its next."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from common.files import write_atomically


class Residuals(Protocol):
    """Where one client keeps its residual, (P,) fp32."""

    def take(self, run: str, round: int, size: int) -> np.ndarray:
        """What the round before left, to be changed; zeros where it left nothing."""

    def put(self, run: str, round: int, residual: np.ndarray) -> None:
        """Keep what this round leaves."""


@dataclass(frozen=True)
class ResidualFiles:
    """In files of a simulation's run folder: any worker may train any client, and a resumed run goes on.

    The newest three are kept: a run that was killed goes on after its last whole checkpoint, and that may be
    of the round before the one whose updates were just averaged.
    """

    folder: Path
    client: int

    def take(self, run: str, round: int, size: int) -> np.ndarray:
        """As in `Residuals`."""
        path = self._path(round - 1)
        return np.load(path, allow_pickle=False) if path.is_file() else np.zeros(size, dtype=np.float32)

    def put(self, run: str, round: int, residual: np.ndarray) -> None:
        """As in `Residuals`. Raises OSError where there is no room."""

        def write(part: Path) -> None:
            with part.open("wb") as file:  # NumPy appends .npy to a name of its own choice
                np.save(file, residual, allow_pickle=False)

        write_atomically(self._path(round), write)
        self._path(round - 3).unlink(missing_ok=True)

    def _path(self, round: int) -> Path:
        return self.folder / f"client-{self.client:05d}-round-{round:06d}.npy"


@dataclass
class ResidualMemory:
    """In the memory of a site's process, and gone with it: what comes from patients' texts is not written."""

    _kept: dict[str, tuple[int, np.ndarray]] = field(default_factory=dict)

    def take(self, run: str, round: int, size: int) -> np.ndarray:
        """As in `Residuals`."""
        last, residual = self._kept.pop(run, (0, np.empty(0)))
        return residual if (last, len(residual)) == (round - 1, size) else np.zeros(size, dtype=np.float32)

    def put(self, run: str, round: int, residual: np.ndarray) -> None:
        """As in `Residuals`; what other runs left is let go."""
        self._kept = {run: (round, residual)}
