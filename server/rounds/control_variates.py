"""The server's part of SCAFFOLD: the mean number of steps in the last round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from wardround.server.record import RoundRecord
from wardround.server.rounds.members import Member


def mean_steps(
    last: RoundRecord, members: Sequence[Member], weights: Mapping[int, float]
) -> float:
    """Return the mean of the clients' optimiser steps in the last round, to send to the clients.

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
        num_steps = client.num_steps or 0
        weighted_steps.append((client.share or 0.0) * num_steps)
    now = {}
    for member in members:
        share = weights[member.client] / total
        now[member.client] = (member.num_examples, share)
    if before != now:
        return 0.0
    return sum(weighted_steps)
