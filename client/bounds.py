"""How far a round's model may lie from the one before: each tensor is held against this site's own training.

A server that may move single tensors at will can make a model in which all texts but a chosen one have no
say. An honest round moves a tensor about as far as the sites themselves do. So a site measures its own update
of each tensor T and allows the global step

    ratio * sum of rates * max(y_T, sqrt(|T| / P) y) * min(size * s / (1 - b), most)

with the yardstick y_T = |own update of T| / sum of its rates; y the same for all P numbers of T's group (the
new head, or the rest, for they can have different learning rates); `size` how many times as many steps the
largest site of the plan takes; s and b the server's learning rate and momentum. An adaptive server optimizer
moves every single number by `adaptive_step` times its learning rate at most.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite, sqrt
from typing import TYPE_CHECKING

import numpy as np

from wardround.client.policy.limits import Policy
from wardround.client.policy.steps import adaptive_step
from wardround.client.yardstick import Yardstick
from wardround.common.model.flat import Layout, distance
from wardround.common.model.influence import RoundSteps
from wardround.common.settings.tree import Settings

if TYPE_CHECKING:
    from torch import Tensor

_MOST_ROUNDS = 10
"""Rounds that lie between two models widen the bound up to this many: rounds do not all go one way."""
_SLACK = 1e-6
"""Of rounding, as a share of a tensor's own norm, or of its largest number."""


@dataclass(frozen=True)
class Allowed:
    """How far a step may go."""

    norms: np.ndarray  # (T,) fp64, L2 norm of each tensor's step
    largest: float
    """Of every single number."""


@dataclass(frozen=True)
class RoundOfPlan:
    """What the bound of a step needs to know of its plan and of this site."""

    settings: Settings
    policy: Policy
    num_texts: int
    """n, training texts of this site."""
    most_texts: int
    """The most training texts that a site of the plan may have; `num_texts` if the plan does not say."""
    head: frozenset[str] = frozenset()
    """Names of the tensors of the new head."""

    def sum_of_rates(self, number: int) -> float:
        """Of all steps that this site takes in a round."""
        steps = RoundSteps(self.settings.train, self.num_texts, number)
        return float(steps.rates(self.settings.train.learning_rate).sum())

    def others(self) -> float:
        """How many times as far as this site the others, and the server's step, may take the model.

        The largest site takes more steps than this one, and the server's momentum adds rounds up. Together
        they are at most `policy.max_size_ratio`.
        """
        most = int(self.policy.max_size_ratio * self.num_texts)
        largest = max(self.num_texts, min(self.most_texts, most))
        theirs = RoundSteps(self.settings.train, largest, 1)
        ours = RoundSteps(self.settings.train, self.num_texts, 1)
        strategy = self.settings.strategy
        server = strategy.server_learning_rate / (1 - strategy.server_momentum)
        return min(self.policy.max_size_ratio, theirs.total / ours.total * server)

    def allowed(self, layout: Layout, yardstick: Yardstick, rounds: range) -> Allowed:
        """How far each tensor may move over some rounds.

        Args:
            rounds: those that lie between the model before and the model that came.
        """
        strategy = self.settings.strategy
        if strategy.optimizer != "sgd":
            step = (
                adaptive_step(strategy.beta_1, strategy.beta_2)
                * strategy.server_learning_rate
            )
            return Allowed(np.full(len(layout.names), np.inf), len(rounds) * step)
        assert self.policy.max_step_ratio is not None, "asked only if there is a bound"
        rates = sum(self.sum_of_rates(number) for number in rounds)
        rates *= min(1.0, _MOST_ROUNDS / max(1, len(rounds)))
        reach = np.maximum(yardstick.per_tensor, self._even_reach(layout, yardstick))
        return Allowed(
            self.policy.max_step_ratio * rates * reach * self.others(), np.inf
        )

    def _even_reach(self, layout: Layout, yardstick: Yardstick) -> np.ndarray:
        """How far each tensor would move if all numbers of its group moved alike, (T,) fp64."""
        sizes = np.array(layout.num_elements(), dtype=np.float64)
        in_head = np.array([name in self.head for name in layout.names])
        reach = np.zeros(len(sizes))
        for group in (in_head, ~in_head):
            whole = np.linalg.norm(yardstick.per_tensor[group])
            reach[group] = np.sqrt(sizes[group] / max(1.0, sizes[group].sum())) * whole
        return reach


def tensors_too_far(
    layout: Layout, received: Tensor, before: Tensor, allowed: Allowed
) -> Iterator[tuple[str, float]]:
    """Names of the tensors that moved further than is allowed, and how many times as far.

    Args:
        received, before: (P,) fp32.
    """
    moved = step_norms(layout, received, before)
    norms = step_norms(layout, before, None)
    for name, step, bound, norm in zip(
        layout.names, moved, allowed.norms, norms, strict=True
    ):
        most = bound + _SLACK * norm
        if not step <= most:
            yield name, float(step / most) if most > 0 else float("inf")
    if isfinite(allowed.largest):
        yield from _numbers_too_far(layout, received, before, allowed.largest)


def _numbers_too_far(
    layout: Layout, received: Tensor, before: Tensor, largest: float
) -> Iterator[tuple[str, float]]:
    """The same for the largest step of a single number of each tensor."""
    theirs = layout.views(before)
    for name, tensor in layout.views(received).items():
        step = float((tensor - theirs[name]).abs().max())
        most = largest + _SLACK * float(theirs[name].abs().max())
        if not step <= most:
            yield name, step / most


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
