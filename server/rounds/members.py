"""The clients of a round and the weights of their updates in the mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from wardround.common.settings.strategy import StrategySettings


@dataclass(frozen=True)
class Member:
    """One client of the run."""

    client: int
    """Its number, from 0; sites are numbered in the order of their names."""
    name: str
    """How messages call it: `client 3`, or the name of its site."""
    node_id: int
    num_examples: int
    num_held_out: int = 0
    """Examples it says it holds out."""
    most_examples: int | None = None
    """What it is registered for; None for no bound."""
    site: str | None = None
    """What its site was registered with, or its file is called; None where clients are no sites."""

    @property
    def weight(self) -> int:
        """Examples that its update is weighted by."""
        return (
            self.num_examples
            if self.most_examples is None
            else min(self.num_examples, self.most_examples)
        )


def weights_of(
    members: Sequence[Member], settings: StrategySettings
) -> dict[int, float]:
    """Weight of each member's update in the mean, by client number.

    Bounded by `max_share` of all members; where some do not answer, the shares of the others grow alike.
    """
    is_by_examples = settings.weighting == "examples"
    weights: dict[int, float] = {
        m.client: m.weight if is_by_examples else 1 for m in members
    }
    return (
        weights if settings.max_share is None else capped(weights, settings.max_share)
    )


def capped(weights: Mapping[int, float], max_share: float) -> dict[int, float]:
    """The largest weights lowered to one value, so that none is more than `max_share` of their sum.

    With m lowered to c and a sum R of the others, c = max_share (m c + R); equal weights where nothing else
    will do.
    """
    largest_first = sorted(weights.values(), reverse=True)
    rest = float(sum(largest_first))
    for number, weight in enumerate(largest_first):
        share_left = 1 - max_share * number
        bound = max_share * rest / share_left if share_left > 1e-12 else 0.0
        if weight <= bound:
            return {
                client: min(own, bound) if number else own
                for client, own in weights.items()
            }
        rest -= weight
    return {client: min(largest_first) for client in weights}
