"""How much of an update one text can be: the weight of each step, and which texts speak in it.

With plain SGD, weight decay wd and the pull mu of FedProx, a round of K steps moves the weights by

    - sum over k of a_k g_k,    a_k = rate_k (1 - rate_{k+1} (mu + wd)) ... (1 - rate_K (mu + wd))

for the gradient g_k of step k is shrunk by every later step. A text that stands in step k is 1/|B_k| of that
step. So its share of the update is the sum of |a_k| / |B_k| over its steps, divided by the sum of all |a_k|.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from wardround.common.data.batches import CUTS, count_steps
from wardround.common.settings.train import TrainSettings


def learning_rate_at(
    peak: float, settings: TrainSettings, step: int, total_steps: int
) -> float:
    """Learning rate of one step: constant, or warmed up linearly and then decayed to zero.

    Args:
        peak: the largest rate of the schedule.
        step: steps that this client has taken in the whole run so far.
        total_steps: steps that the schedule spans.
    """
    if settings.schedule == "constant":
        return peak
    warmup = int(settings.warmup_fraction * total_steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * max(0.0, (total_steps - step) / max(1, total_steps - warmup))


@dataclass(frozen=True)
class RoundSteps:
    """The optimiser steps of one client in one round."""

    settings: TrainSettings
    num_texts: int
    """n, the client's training texts."""
    round: int
    """From 1."""

    @property
    def per_epoch(self) -> int:
        """Steps of one pass. Raises ValueError if `drop_last` leaves no step."""
        return count_steps(self.num_texts, self.settings)

    @property
    def total(self) -> int:
        """Steps of the round, K."""
        return self.settings.local_epochs * self.per_epoch

    def rate(self, peak: float, step: int) -> float:
        """Learning rate of a step of this round, from 0. Args: peak: of the parameter's group."""
        first_step = (self.round - 1) * self.total
        spanned = (self.settings.schedule_rounds or 0) * self.total
        return learning_rate_at(peak, self.settings, first_step + step, spanned)

    def rates(self, peak: float) -> np.ndarray:
        """Learning rate of every step, (K,) fp64: `rate` for all of them at once."""
        if self.settings.schedule == "constant":
            return np.full(self.total, peak)
        spanned = (self.settings.schedule_rounds or 0) * self.total
        warmup = int(self.settings.warmup_fraction * spanned)
        step = (self.round - 1) * self.total + np.arange(self.total)
        rising = (step + 1) / max(1, warmup)
        falling = np.maximum(0.0, (spanned - step) / max(1, spanned - warmup))
        rates: np.ndarray = peak * np.where(step < warmup, rising, falling)
        return rates

    def weights(self, peak: float) -> np.ndarray:
        """|a_k| of every step, (K,) fp64.

        For AdamW there is no such closed form, since its steps do not grow with the gradient; the same
        numbers stand for them, with its decoupled weight decay.
        """
        rates = self.rates(peak)
        kept = np.abs(
            1 - rates * (self.settings.proximal_mu + self.settings.weight_decay)
        )
        after = np.cumprod(kept[::-1])[::-1]
        weights: np.ndarray = rates * np.append(after[1:], 1.0)
        return weights

    def sizes(self) -> np.ndarray:
        """Texts in every step, (K,) int64."""
        epoch = CUTS[self.settings.last_batch](
            np.arange(self.num_texts), self.settings.batch_size
        )
        sizes = np.array([len(batch) for batch in epoch[: self.per_epoch]])
        return np.tile(sizes, self.settings.local_epochs)

    def largest_influence(self) -> float:
        """The largest share that a text can have, as a multiple of its even share 1/n.

        The order of the texts is drawn anew in each epoch, so a text may stand in the heaviest step of all.
        """
        return max(self._largest_influence(peak) for peak in peaks(self.settings))

    def _largest_influence(self, peak: float) -> float:
        weights = self.weights(peak)
        if not weights.sum() > 0:
            return np.inf
        heaviest = (
            (weights / self.sizes()).reshape(self.settings.local_epochs, -1).max(axis=1)
        )
        return float(self.num_texts * heaviest.sum() / weights.sum())


def peaks(settings: TrainSettings) -> tuple[float, ...]:
    """Largest learning rate of each group of parameters: the body's, and the new head's if it has its own."""
    head = settings.head_learning_rate
    return (settings.learning_rate,) if head is None else (settings.learning_rate, head)


@dataclass
class Speaking:
    """Collects, while a round trains, how strongly each text speaks in the update.

    A text speaks in a step by |a_k| / |B_k| times the length of its residual p - y: what the model answers
    minus the label. A model can be made so that all texts but a chosen one have no residual.
    """

    steps: RoundSteps
    _strength: Tensor = field(init=False)
    """(N,) fp64 on the device, by position in the corpus."""
    _weights: np.ndarray = field(init=False)

    def open(self, num_rows: int, device: torch.device) -> None:
        """Begin a round. Args: num_rows: N, texts in the corpus that the client's are a part of."""
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
        """How many texts speak: n if all do alike, 1 if one alone does.

        The participation ratio (sum of s_i)^2 / sum of s_i^2 of their strengths s_i; 0 if no text speaks.
        """
        strength = self._strength
        squares = float(strength.square().sum())
        return float(strength.sum()) ** 2 / squares if squares > 0 else 0.0
