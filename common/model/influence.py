"""The share of one text in an update: the weight of each step, and the residual of each text.

With plain SGD, weight decay wd and the pull mu of FedProx, a round of K steps moves the weights by

    - sum over k of a_k g_k,    a_k = rate_k (1 - rate_{k+1} (mu + wd)) ... (1 - rate_K (mu + wd))

because every later step shrinks the gradient g_k of step k. A text in step k is 1/|B_k| of that
step. So its share of the update is the sum of |a_k| / |B_k| over its steps, divided by the sum
of all |a_k|.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wardround.common.data.steps import CUTS, count_steps
from wardround.common.settings.train import TrainSettings


def learning_rate_at(
    peak: float, settings: TrainSettings, step: int, total_steps: int
) -> float:
    """Return the learning rate of a step: constant, or warmed up linearly and then decayed to zero.

    Args:
        peak: largest rate of the schedule.
        step: number of steps that this client has taken in the whole run so far.
        total_steps: number of steps in the schedule.
    """
    if settings.schedule == "constant":
        return peak
    warmup = int(settings.warmup_fraction * total_steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    left = total_steps - step
    decay_steps = max(1, total_steps - warmup)
    return peak * max(0.0, left / decay_steps)


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
        """Number of steps in one pass. Raises ValueError if `drop_last` leaves no step."""
        return count_steps(self.num_texts, self.settings)

    @property
    def total(self) -> int:
        """Number of steps in the round, K."""
        return self.settings.local_epochs * self.per_epoch

    def rate(self, peak: float, step: int) -> float:
        """Return the learning rate of a step of this round.

        Args:
            peak: largest rate of the parameter's group.
            step: from 0.
        """
        first_step = (self.round - 1) * self.total
        spanned = (self.settings.schedule_rounds or 0) * self.total
        return learning_rate_at(peak, self.settings, first_step + step, spanned)

    def rates(self, peak: float) -> np.ndarray:
        """Return the learning rate of every step, (K,) fp64: `rate` for all steps at once."""
        if self.settings.schedule == "constant":
            return np.full(self.total, peak)
        spanned = (self.settings.schedule_rounds or 0) * self.total
        warmup = int(self.settings.warmup_fraction * spanned)
        step = (self.round - 1) * self.total + np.arange(self.total)
        rising = (step + 1) / max(1, warmup)
        left = spanned - step
        decay_steps = max(1, spanned - warmup)
        falling = np.maximum(0.0, left / decay_steps)
        rates: np.ndarray = peak * np.where(step < warmup, rising, falling)
        return rates

    def weights(self, peak: float) -> np.ndarray:
        """Return |a_k| of every step, (K,) fp64.

        For AdamW there is no such closed form, since its steps do not grow with the gradient.
        The same numbers are used for it, with its decoupled weight decay.
        """
        rates = self.rates(peak)
        pull = self.settings.proximal_mu + self.settings.weight_decay
        kept = np.abs(1 - rates * pull)
        # Of each step, the product over itself and all later steps.
        products = np.cumprod(kept[::-1])[::-1]
        after = np.append(products[1:], 1.0)
        weights: np.ndarray = rates * after
        return weights

    def sizes(self) -> np.ndarray:
        """Return the number of texts in every step, (K,) int64."""
        cut = CUTS[self.settings.last_batch]
        batches = cut(np.arange(self.num_texts), self.settings.batch_size)
        sizes = np.array([len(batch) for batch in batches[: self.per_epoch]])
        return np.tile(sizes, self.settings.local_epochs)

    def largest_influence(self) -> float:
        """Return the largest share that a text can have, as a multiple of its even share 1/n.

        The order of the texts is drawn anew in each epoch, so that a text may be in the heaviest
        step of every epoch.
        """
        return max(self._largest_influence(peak) for peak in peaks(self.settings))

    def _largest_influence(self, peak: float) -> float:
        weights = self.weights(peak)
        if not weights.sum() > 0:
            return np.inf
        shares = weights / self.sizes()
        by_epoch = shares.reshape(self.settings.local_epochs, -1)
        heaviest = by_epoch.max(axis=1)
        return float(self.num_texts * heaviest.sum() / weights.sum())


def peaks(settings: TrainSettings) -> tuple[float, ...]:
    """Return the largest learning rate of the body, and that of the new head if it has its own."""
    head = settings.head_learning_rate
    if head is None:
        return (settings.learning_rate,)
    return (settings.learning_rate, head)
