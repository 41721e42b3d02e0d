"""SCAFFOLD's control variates at a client: the correction of its steps, and its own variate.

Karimireddy et al. 2020 (arXiv:1910.06378), algorithm 1 with option II, with all clients in every
round. A variate is kept as a round's mean step, learning rate times gradient, so that the head
may have its own rate:

    step          y <- y - rate * gradient - (c - c_i)
    afterwards    c_i <- (x - y) / K_i - (c - c_i)       the client's mean step by its gradients
                  c   <- (x - x_next) / mean K           from the next global tensors

docs/optimisers.md derives the last line. For it, the server sends only the mean of the K_i.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wardround.client.site import Site
from wardround.common.settings.tree import Settings
from wardround.common.wire.messages import TrainRequest


@dataclass(frozen=True)
class Variates:
    """The variates of one client in one round, if `train.control_variates` is set."""

    num_steps: int
    """K_i, optimiser steps in this round."""
    correction: np.ndarray | None
    """(P,) fp32, c - c_i, which each step subtracts. None if the variates start anew, or if this
    client has none."""
    is_lacking: bool
    """True if a correction is needed, but this client has none."""

    @classmethod
    def open(
        cls,
        request: TrainRequest,
        settings: Settings,
        site: Site,
        received: np.ndarray,
        num_steps: int,
    ) -> Variates:
        """Compute the correction before training.

        Args:
            settings: the run's settings.
            received: (P,) fp32, the global tensors x of this round.

        Raises:
            ValueError: the request's mean of steps is impossible for this run's clients, or this
                process cannot keep a variate.
        """
        carried = site.carried("variates", settings)
        if carried is None:
            raise ValueError(
                "train.control_variates is true, but this client keeps nothing between messages. "
                "Start the site with wardround-site, or set train.control_variates=false."
            )
        if request.mean_steps == 0:
            return cls(num_steps, None, is_lacking=False)
        # The weights of the mean grow with the steps, so one client's K_i is at most num_clients
        # times the mean. So the server's variate, over all steps, moves training at most by that
        # many global steps.
        most_steps = settings.num_clients * request.mean_steps
        if not num_steps * (1 - 1e-9) <= most_steps < np.inf:
            raise ValueError(
                f"the server names a mean of {request.mean_steps} optimiser steps per client; with "
                f"{num_steps} here and num_clients={settings.num_clients} that is impossible."
            )
        kept = carried.take(settings.to_json(), request.round, 2 * len(received))
        if kept is None:
            return cls(num_steps, None, is_lacking=True)
        # The global tensors of the round before, and c_i.
        correction, own = np.split(kept, 2)
        correction -= received
        correction /= request.mean_steps
        correction -= own
        return cls(num_steps, correction, is_lacking=False)

    def keep(
        self,
        round: int,
        settings: Settings,
        site: Site,
        received: np.ndarray,
        trained: np.ndarray,
    ) -> None:
        """Keep x and the new c_i after training.

        Args:
            received: (P,) fp32, x.
            trained: (P,) fp32, y.
        """
        carried = site.carried("variates", settings)
        assert carried is not None, "checked before training"
        kept = np.concatenate([received, received])
        own = kept[len(received) :]
        own -= trained
        own /= self.num_steps
        if self.correction is not None:
            own -= self.correction
        carried.put(settings.to_json(), round, kept)
