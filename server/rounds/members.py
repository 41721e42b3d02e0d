"""The clients of a round, and the weights of their updates in the mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from wardround.common.settings.strategy import StrategySettings
from wardround.server.record import RoundRecord


@dataclass(frozen=True)
class Member:
    """One client of the run."""

    client: int
    """Its number, from 0; sites are numbered in the order of their names."""
    name: str
    """Its name in messages: `client 3`, or the name of its site."""
    node_id: int
    num_examples: int
    num_held_out: int = 0
    """Number of examples that it holds out, as it reported."""
    most_examples: int | None = None
    """The most examples that its registration allows; None if there is no limit."""
    site: str | None = None
    """The name of its site, from the registration or from the site's file in a
    simulation; None if the client is not a site."""

    @property
    def weight(self) -> int:
        """The number of examples by which its update is weighted."""
        if self.most_examples is None:
            return self.num_examples
        return min(self.num_examples, self.most_examples)


def weights_of(
    members: Sequence[Member], settings: StrategySettings
) -> dict[int, float]:
    """Return the weight of each member's update in the mean, by client number.

    `max_share` bounds the share of each member among all members. If some do not answer,
    the shares of the others grow by the same factor.
    """
    weights: dict[int, float] = {}
    for member in members:
        is_by_examples = settings.weighting == "examples"
        weights[member.client] = member.weight if is_by_examples else 1
    if settings.max_share is None:
        return weights
    return capped(weights, settings.max_share)


def capped(weights: Mapping[int, float], max_share: float) -> dict[int, float]:
    """Lower the largest weights to one value, so that no share of the sum is over `max_share`.

    If m weights are lowered to c and the others have the sum R: c = max_share (m c + R). If
    no such c exists, all weights become equal.
    """
    largest_first = sorted(weights.values(), reverse=True)
    total = sum(largest_first)
    rest = float(total)
    for num_lowered, weight in enumerate(largest_first):
        share_left = 1 - max_share * num_lowered
        bound = 0.0
        if share_left > 1e-12:
            bound = max_share * rest / share_left
        if weight > bound:
            rest -= weight
            continue
        if num_lowered == 0:
            return dict(weights)
        lowered = {}
        for client, own in weights.items():
            lowered[client] = min(own, bound)
        return lowered
    return dict.fromkeys(weights, min(largest_first))


def mean_steps(
    last: RoundRecord, members: Sequence[Member], weights: Mapping[int, float]
) -> float:
    """Return the mean of the clients' optimiser steps in the last round, to send to the clients.

    This is the server's part of SCAFFOLD (`client/variates.py`).

    It is 0 if control variates start again: in round 1, after a round in which a client
    had no control variate, and if clients, their examples or their weights have changed.
    Otherwise the corrections would not cancel in the mean, and their sum would stay in
    it (docs/optimisers.md).

    Args:
        weights: weights of the members' updates in the mean, by client number.
    """
    if any(client.uncorrected for client in last.clients):
        return 0.0
    total = sum(weights.values())
    before = {}
    weighted_steps = []
    for client in last.clients:
        before[client.client] = (client.num_examples, client.share)
        share = client.share or 0.0
        num_steps = client.num_steps or 0
        weighted_steps.append(share * num_steps)
    now = {}
    for member in members:
        share = weights[member.client] / total
        now[member.client] = (member.num_examples, share)
    if before != now:
        return 0.0
    return sum(weighted_steps)
