"""SCAFFOLD's control variates at a client: what corrects its steps, and what it keeps for its next round.

Karimireddy et al. 2020 (arXiv:1910.06378), algorithm 1 with option II, for everybody in every round. A
variate is kept as a round's mean step, learning rate times gradient, so that the head may have its own rate:

    step          y <- y - rate * gradient - (c - c_i)
    afterwards    c_i <- (x - y) / K_i - (c - c_i)       the client's mean step by its gradients
                  c   <- (x - x_next) / mean K           read off the next global tensors

docs/optimisers.md derives the last line, for which nothing but the mean of the K_i has to travel.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wardround.client.site import Site
from wardround.common.settings.tree import Settings
from wardround.common.wire.messages import TrainRequest


@dataclass(frozen=True)
class Variates:
    """One client's, in one round of a run with `train.control_variates`."""

    num_steps: int
    """K_i, optimiser steps in this round."""
    correction: np.ndarray | None
    """(P,) fp32, c - c_i: what each step takes away besides. None where the variates start anew, or this
    client has none."""
    is_lacking: bool
    """Whether a correction was asked for, and there is none."""

    @classmethod
    def open(
        cls,
        task: TrainRequest,
        settings: Settings,
        site: Site,
        received: np.ndarray,
        num_steps: int,
    ) -> Variates:
        """Before training.

        Args:
            settings: the run's.
            received: (P,) fp32, the global tensors x of this round.

        Raises:
            ValueError: the task's mean of steps cannot be that of this run's clients, or nothing can be kept
                here.
        """
        carried = site.carried("variates", settings)
        if carried is None:
            raise ValueError(
                "train.control_variates is true, but this client keeps nothing from one message to the next. "
                "Start the site with wardround-site, or set train.control_variates=false."
            )
        if task.mean_steps == 0:
            return cls(num_steps, None, is_lacking=False)
        # In a mean whose weights grow with the steps, one client's K_i is at most num_clients times the mean.
        # So the server's variate, over all steps, moves training no further than that many global steps.
        if (
            not num_steps * (1 - 1e-9)
            <= settings.num_clients * task.mean_steps
            < np.inf
        ):
            raise ValueError(
                f"the task says that the clients take {task.mean_steps} optimiser steps in the mean; with "
                f"{num_steps} here and num_clients={settings.num_clients} that cannot be."
            )
        kept = carried.take(settings.to_json(), task.round, 2 * len(received))
        if kept is None:
            return cls(num_steps, None, is_lacking=True)
        correction, own = np.split(
            kept, 2
        )  # the global tensors of the round before, and c_i
        correction -= received
        correction /= task.mean_steps
        correction -= own
        return cls(num_steps, correction, is_lacking=False)

    def keep(
        self,
        task: TrainRequest,
        settings: Settings,
        site: Site,
        received: np.ndarray,
        trained: np.ndarray,
    ) -> None:
        """After training: x and the new c_i. Args: received, trained: (P,) fp32, x and y."""
        carried = site.carried("variates", settings)
        assert carried is not None, "checked before training"
        kept = np.concatenate([received, received])
        own = kept[len(received) :]
        own -= trained
        own /= self.num_steps
        if self.correction is not None:
            own -= self.correction
        carried.put(settings.to_json(), task.round, kept)
