"""The facts of this site that a plan depends on."""

from __future__ import annotations

from dataclasses import dataclass

from wardround.client.policy.limits import Refusal
from wardround.client.sizes import Sizes


@dataclass(frozen=True)
class Costs:
    """The costs of one round."""

    bytes: int
    """Most that are sent and received."""
    seconds: float


@dataclass(frozen=True)
class Here:
    """The facts of this site that a plan depends on."""

    sizes: Sizes | None = None
    """None if the texts cannot be read as the plan asks."""
    costs: Costs | None = None
    """None if they were not measured."""
    num_answers: int = 0
    """Rounds that this site has answered so far, over all plans."""
    refusals: tuple[Refusal, ...] = ()
    """Why this site's texts, files or budget do not fit the plan."""
    why_not: str = ""
    """Why `sizes` or `costs` is not known, in words."""
