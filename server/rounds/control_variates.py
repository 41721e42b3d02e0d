"""The server's part of SCAFFOLD: the mean number of steps of the last round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from wardround.server.record import RoundRecord
from wardround.server.rounds.members import Member


def mean_steps(
    last: RoundRecord, members: Sequence[Member], weights: Mapping[int, float]
) -> float:
    """Optimiser steps of the clients in the last round, in its mean: what SCAFFOLD's clients have to be told.

    0 where control variates start anew: in round 1, after a round in which a client had none, and where
    clients, their examples or their weights have changed since. Else the corrections would not cancel in the
    mean, and what is left over would stay in it (docs/optimisers.md).

    Args:
        weights: of the members' updates in the mean, by client number.
    """
    total = sum(weights.values())
    then = {
        client.client: (client.num_examples, client.share) for client in last.clients
    }
    now = {
        member.client: (member.num_examples, weights[member.client] / total)
        for member in members
    }
    if then != now or any(client.uncorrected for client in last.clients):
        return 0.0
    return sum(
        (client.share or 0.0) * (client.num_steps or 0) for client in last.clients
    )
