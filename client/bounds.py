"""Bounds for the global model: each tensor's step is compared with this site's own training.

A server that can move single tensors freely can make a model in which only one chosen text has
influence. An honest round moves a tensor about as far as the sites do. So a site measures its own
update of each tensor T and allows the global step

    ratio * sum of rates * max(y_T, sqrt(|T| / P) y) * min(size * s / (1 - b), most)

with the yardstick y_T = |own update of T| / sum of its rates; y, the same for all P numbers of
T's group (the new head, or the rest: their learning rates can differ); `size`, the steps of the
plan's largest site divided by this site's steps; s and b, the server's learning rate and
momentum. An adaptive server optimizer moves every single number by at most `adaptive_step` times
its learning rate.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf, isfinite, sqrt

import numpy as np
from torch import Tensor

from wardround.client.policy.limits import Policy
from wardround.client.policy.steps import adaptive_step
from wardround.client.yardstick import Yardstick
from wardround.common.model.flat import Layout, distance
from wardround.common.model.influence import RoundSteps
from wardround.common.settings.tree import Settings

_MOST_ROUNDS = 10
"""The bound grows with the rounds between two models, up to this number of rounds.

It stays the same for more rounds, because their steps differ in direction.
"""
_SLACK = 1e-6
"""Share of a tensor's norm, or of its largest number, that is allowed for rounding."""


@dataclass(frozen=True)
class Allowed:
    """The bounds of a step."""

    norms: np.ndarray  # (T,) fp64, L2 norm of each tensor's step
    largest: float
    """Largest allowed step of a single number."""


@dataclass(frozen=True)
class RoundOfPlan:
    """The facts of a plan and of this site that bound a step."""

    settings: Settings
    policy: Policy
    num_texts: int
    """n, the number of training texts of this site."""
    most_texts: int
    """The plan's largest number of training texts at a site; `num_texts` if it has no bound."""
    head: frozenset[str] = frozenset()
    """Names of the tensors of the new head."""

    def sum_of_rates(self, number: int) -> float:
        """Return the sum of the learning rates of all this site's steps in a round."""
        steps = RoundSteps(self.settings.train, self.num_texts, number)
        return float(steps.rates(self.settings.train.learning_rate).sum())

    def others(self) -> float:
        """Return the allowed step of other sites and server, as a multiple of this site's step.

        The largest site takes more steps than this one, and the server's momentum adds up rounds.
        The product is at most `policy.max_size_ratio`.
        """
        most = int(self.policy.max_size_ratio * self.num_texts)
        largest = max(self.num_texts, min(self.most_texts, most))
        theirs = RoundSteps(self.settings.train, largest, 1)
        ours = RoundSteps(self.settings.train, self.num_texts, 1)
        strategy = self.settings.strategy
        server = strategy.server_learning_rate / (1 - strategy.server_momentum)
        return min(self.policy.max_size_ratio, theirs.total / ours.total * server)

    def allowed(self, layout: Layout, yardstick: Yardstick, rounds: range) -> Allowed:
        """Return the bounds of the step over some rounds.

        Args:
            rounds: the rounds between the last model and the received one.
        """
        strategy = self.settings.strategy
        if strategy.optimizer != "sgd":
            step = adaptive_step(strategy.beta_1, strategy.beta_2)
            step *= strategy.server_learning_rate
            no_bounds = np.full(len(layout.names), np.inf)
            return Allowed(no_bounds, len(rounds) * step)
        assert self.policy.max_step_ratio is not None, "asked only if there is a bound"
        rates = sum(self.sum_of_rates(number) for number in rounds)
        rates *= min(1.0, _MOST_ROUNDS / max(1, len(rounds)))
        even_reach = self._even_reach(layout, yardstick)
        reach = np.maximum(yardstick.per_tensor, even_reach)
        norms = self.policy.max_step_ratio * rates * reach * self.others()
        return Allowed(norms, np.inf)

    def _even_reach(self, layout: Layout, yardstick: Yardstick) -> np.ndarray:
        """Return the step of each tensor if all numbers of its group moved alike, (T,) fp64."""
        sizes = np.array(layout.num_elements(), dtype=np.float64)
        in_head = np.array([name in self.head for name in layout.names])
        reach = np.zeros(len(sizes))
        for group in (in_head, ~in_head):
            whole = np.linalg.norm(yardstick.per_tensor[group])
            shares = sizes[group] / max(1.0, sizes[group].sum())
            reach[group] = np.sqrt(shares) * whole
        return reach


def tensors_too_far(
    layout: Layout, received: Tensor, before: Tensor, allowed: Allowed
) -> Iterator[tuple[str, float]]:
    """Yield the tensors that moved too far: name, and the step as a multiple of the bound.

    Args:
        received, before: (P,) fp32.
    """
    moved = step_norms(layout, received, before)
    most = allowed.norms + _SLACK * _norms(layout, before)
    for name, step, bound in zip(layout.names, moved, most, strict=True):
        if not step <= bound:
            yield name, _times(step, bound)
    if isfinite(allowed.largest):
        yield from _numbers_too_far(layout, received, before, allowed.largest)


def _numbers_too_far(
    layout: Layout, received: Tensor, before: Tensor, largest: float
) -> Iterator[tuple[str, float]]:
    """Like `tensors_too_far`, for the largest step of a single number in each tensor."""
    theirs = layout.views(before)
    for name, tensor in layout.views(received).items():
        before_step = theirs[name]
        step = float((tensor - before_step).abs().max())
        bound = largest + _SLACK * float(before_step.abs().max())
        if not step <= bound:
            yield name, _times(step, bound)


def _times(step: float, bound: float) -> float:
    """Return a step as a multiple of its bound."""
    return float(step / bound) if bound > 0 else inf


def step_norms(layout: Layout, after: Tensor, before: Tensor) -> np.ndarray:
    """Return the L2 norm of (after - before) for each tensor, (T,) fp64."""
    theirs = layout.views(before)
    norms = []
    for name, tensor in layout.views(after).items():
        norms.append(distance(tensor.reshape(-1), theirs[name].reshape(-1)))
    return np.array(norms)


def _norms(layout: Layout, flat: Tensor) -> np.ndarray:
    """Return the L2 norm of each tensor, (T,) fp64."""
    norms = []
    for tensor in layout.views(flat).values():
        numbers = tensor.reshape(-1)
        norms.append(sqrt(float(numbers.dot(numbers))))
    return np.array(norms)
