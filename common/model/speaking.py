"""How strongly each text speaks in an update, collected while a round trains."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from wardround.common.model.influence import RoundSteps


@dataclass
class Speaking:
    """Collects the strength of each text in the update while a round trains.

    In a step this is |a_k| / |B_k| times the length of the text's residual p - y: the prediction
    minus the label. A model can be made in such a way that only one chosen text has a residual.
    """

    steps: RoundSteps
    _strength: Tensor = field(init=False)
    """(N,) fp64 on the device, by position in the corpus."""
    _weights: np.ndarray = field(init=False)

    def open(self, num_rows: int, device: torch.device) -> None:
        """Begin a round. Args: num_rows: N, number of texts in the whole corpus."""
        self._strength = torch.zeros(num_rows, dtype=torch.float64, device=device)
        self._weights = self.steps.weights(self.steps.settings.learning_rate)

    @torch.no_grad()
    def note(self, step: int, rows: Tensor, residuals: Tensor, size: int) -> None:
        """Add the strengths of the texts of one step, before the step is taken.

        Args:
            step: number of the step in the round, from 0.
            rows: (b,) int64, positions in the corpus.
            residuals: (b,), lengths of the texts' residuals (`Task.residuals`).
            size: |B_k|, number of texts in the whole step.
        """
        strength = residuals.double() * (self._weights[step] / size)
        self._strength.index_add_(0, rows, strength)

    def num_speaking(self) -> float:
        """Return the effective number of texts: n if all are equally strong, 1 if only one counts.

        This is the participation ratio (sum of s_i)^2 / sum of s_i^2 of the strengths s_i; 0 if all
        are 0.
        """
        strength = self._strength
        squares = float(strength.square().sum())
        return float(strength.sum()) ** 2 / squares if squares > 0 else 0.0
