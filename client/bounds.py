"""How far a round's model may lie from the one before: each tensor is held against this site's own training.

A server that may move single tensors at will can make a model in which all texts but a chosen one have no
say. An honest round moves a tensor about as far as the sites themselves do. So a site measures its own update
of each tensor T and allows the global step

    ratio * sum of rates * max(y_T, sqrt(|T| / P) y) * size * s / (1 - b)

with the yardstick y_T = |own update of T| / sum of its rates, y the same for the whole model of P numbers,
`size` how many times as many steps the largest site of the plan takes, s and b the server's learning rate and
momentum. An adaptive server optimizer moves every number by `adaptive_step` times its learning rate at most.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING

import numpy as np

from client.policy import Policy, adaptive_step
from common.model.flat import Layout, distance
from common.model.influence import RoundSteps
from common.settings import Settings

if TYPE_CHECKING:
    from torch import Tensor

_MOST_GROWTH = 3.0
"""A yardstick is at most so many times the smallest that was measured under its plan: a server that makes a
site move further cannot buy itself a wider bound with that."""
_SLACK = 1e-6
"""Of rounding, as a share of a tensor's own norm."""


@dataclass(frozen=True)
class Yardstick:
    """How far this site moves each tensor of a plan's model, per unit of learning rate."""

    per_tensor: np.ndarray  # (T,) fp64, in the order of `Layout.names`
    whole: float
    """The same for all tensors together."""
    smallest: np.ndarray  # (T + 1,) fp64: the smallest of every tensor so far, and of the whole; 0 for none

    @classmethod
    def of(cls, norms: np.ndarray, sum_of_rates: float, before: Yardstick | None) -> Yardstick:
        """From one update.

        Args:
            norms: (T,) fp64, L2 norm of the update of each tensor.
            sum_of_rates: of all optimiser steps that made it.
            before: the yardstick so far; None if there is none.
        """
        measured = np.append(norms, np.linalg.norm(norms)) / sum_of_rates
        smallest = measured if before is None else _smaller(before.smallest, measured)
        # A tensor that a round leaves alone says nothing about how far it moves when it is trained.
        previous = measured if before is None else np.append(before.per_tensor, before.whole)
        moved = np.where(measured > 0, np.minimum(measured, _MOST_GROWTH * smallest), previous)
        return cls(moved[:-1], float(moved[-1]), smallest)


def _smaller(before: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """The smaller of two positive numbers; 0 stands for none."""
    both = np.minimum(before, measured)
    return np.where(before == 0, measured, np.where(measured == 0, before, both))


@dataclass(frozen=True)
class RoundOfPlan:
    """What the bound of a step needs to know of its plan and of this site."""

    settings: Settings
    policy: Policy
    num_texts: int
    """n, training texts of this site."""
    most_texts: int
    """The most training texts that a site of the plan may have; `num_texts` if the plan does not say."""

    def sum_of_rates(self, number: int) -> float:
        """Of all steps that this site takes in a round."""
        steps = RoundSteps(self.settings.train, self.num_texts, number)
        return float(steps.rates(self.settings.train.learning_rate).sum())

    def size(self) -> float:
        """How many times as many steps the largest site takes, within `policy.max_size_ratio`."""
        largest = min(self.most_texts, int(self.policy.max_size_ratio * self.num_texts))
        theirs = RoundSteps(self.settings.train, max(largest, self.num_texts), 1)
        ours = RoundSteps(self.settings.train, self.num_texts, 1)
        return theirs.total / ours.total

    def allowed(self, layout: Layout, yardstick: Yardstick, rounds: range) -> np.ndarray:
        """Largest L2 norm of the step of each tensor over these rounds, (T,) fp64.

        Args:
            rounds: those that lie between the model before and the model that came.
        """
        strategy = self.settings.strategy
        sizes = np.array(layout.num_elements(), dtype=np.float64)
        if strategy.optimizer != "sgd":
            largest = adaptive_step(strategy.beta_1, strategy.beta_2) * strategy.server_learning_rate
            return len(rounds) * largest * np.sqrt(sizes)
        assert self.policy.max_step_ratio is not None, "asked only if there is a bound"
        rates = sum(self.sum_of_rates(number) for number in rounds)
        reach = np.maximum(yardstick.per_tensor, np.sqrt(sizes / sizes.sum()) * yardstick.whole)
        server = strategy.server_learning_rate / (1 - strategy.server_momentum)
        bound: np.ndarray = self.policy.max_step_ratio * rates * reach * self.size() * server
        return bound


def tensors_too_far(
    layout: Layout, received: Tensor, before: Tensor, allowed: np.ndarray
) -> Iterator[tuple[str, float]]:
    """Names of the tensors that moved further than is allowed, and how many times as far.

    Args:
        received, before: (P,) fp32. allowed: (T,) fp64, as `RoundOfPlan.allowed` gives it.
    """
    moved = step_norms(layout, received, before)
    norms = step_norms(layout, before, None)
    for name, step, bound, norm in zip(layout.names, moved, allowed, norms, strict=True):
        most = bound + _SLACK * norm
        if not step <= most:
            yield name, float(step / most) if most > 0 else float("inf")


def step_norms(layout: Layout, after: Tensor, before: Tensor | None) -> np.ndarray:
    """L2 norm of (after - before) for each tensor, (T,) fp64; of `after` alone if `before` is None."""
    ours = layout.views(after)
    theirs = None if before is None else layout.views(before)
    norms = []
    for name, tensor in ours.items():
        flat = tensor.reshape(-1)
        if theirs is None:
            norms.append(sqrt(float(flat.dot(flat))))
        else:
            norms.append(distance(flat, theirs[name].reshape(-1)))
    return np.array(norms, dtype=np.float64)
