"""The server's step from the mean of a round to the new global tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from wardround.common.settings.tree import Settings
from wardround.server.rounds.mean import BLOCK

if TYPE_CHECKING:
    from torch import Tensor


class ServerStep:
    """From the clients' mean to the new global tensors, by `strategy.optimizer`.

    `sgd` is FedAvgM (Hsu, Qi, Brown 2019, arXiv:1909.06335, section 3): v <- b v + (mean - w); w <- w + a v.
    With momentum b = 0 and learning rate a = 1, the defaults, the new global tensors are the mean itself,
    bit for bit. Memory: one more (P,) fp32 where b > 0, none otherwise.

    The others are those of Reddi et al. 2021 (arXiv:2003.00295, algorithm 2), with d = mean - w:
    m <- b1 m + (1 - b1) d; v as in `SECOND_MOMENTS`; w <- w + a m / (sqrt(v) + tau), from m = 0 and
    v = tau^2. Memory: two more (P,) fp32.
    """

    def __init__(
        self,
        settings: Settings,
        state: Mapping[str, Tensor] | None = None,
        head: Sequence[slice] = (),
    ) -> None:
        """Args:
        state: `state` of the server that goes on, as its checkpoint holds it.
        head: where the tensors of the new head lie.
        """
        self._strategy = settings.strategy
        # A head that every site drew anew is a replacement, no direction to go on in.
        self._first_round = 2 if settings.train.draws_heads else 1
        self._head = head if settings.train.head_init == "per_site_rescaled" else ()
        self._head_norms, self._weight = [0.0] * len(self._head), 0.0
        self.state: dict[str, Tensor] = dict(state or {})
        """What goes on from round to round, (P,) fp32 each: `momentum`, `second_moment`, or nothing yet."""

    def note(self, number: int, trained: Tensor, weight: float) -> None:
        """See one update, (P,) fp32, that is going into the mean of round `number` with this weight."""
        if number < self._first_round:
            self._weight += weight
            for place, part in enumerate(self._head):
                self._head_norms[place] += weight * float(trained[part].norm())

    def apply(self, number: int, tensors: Tensor, mean: Tensor) -> Tensor:
        """The global tensors after round `number`.

        Heads that were drawn apart are shorter in the mean than each of them is, by about sqrt(K). With
        `train.head_init=per_site_rescaled` each tensor of the head gets the mean of the norms back.

        Args:
            tensors: (P,) fp32, what the clients started from; left as it is.
            mean: (P,) fp32, the mean of what they trained; may be written into.
        """
        strategy = self._strategy
        rate, decay = strategy.server_learning_rate, strategy.server_momentum
        if number < self._first_round:
            for part, norms in zip(self._head, self._head_norms, strict=True):
                mean[part].mul_(
                    norms / self._weight / max(float(mean[part].norm()), 1e-12)
                )
            return mean
        if strategy.optimizer != "sgd":
            return self._adaptive(tensors, mean)
        if decay == 0:
            return mean if rate == 1 else mean.sub_(tensors).mul_(rate).add_(tensors)
        momentum = self._kept("momentum", tensors, 0.0)
        momentum.mul_(decay).add_(mean).sub_(tensors)
        return torch.add(tensors, momentum, alpha=rate, out=mean)

    def _adaptive(self, tensors: Tensor, mean: Tensor) -> Tensor:
        strategy = self._strategy
        momentum = self._kept("momentum", tensors, 0.0)
        squares = self._kept("second_moment", tensors, strategy.tau**2)
        follow = SECOND_MOMENTS[strategy.optimizer]
        for start in range(0, len(tensors), BLOCK):
            block = slice(start, start + BLOCK)
            delta = mean[block].sub_(tensors[block])
            momentum[block].lerp_(delta, 1 - strategy.beta_1)
            follow(squares[block], delta.square(), strategy.beta_2)
            step = momentum[block] / squares[block].sqrt().add_(strategy.tau)
            torch.add(
                tensors[block], step, alpha=strategy.server_learning_rate, out=delta
            )
        return mean

    def _kept(self, name: str, tensors: Tensor, start: float) -> Tensor:
        if name not in self.state:
            self.state[name] = torch.full_like(tensors, start)
        return self.state[name]


SECOND_MOMENTS: dict[str, Callable[[Tensor, Tensor, float], object]] = {
    "adam": lambda v, squared, beta_2: v.lerp_(squared, 1 - beta_2),
    "yogi": lambda v, squared, beta_2: v.sub_(
        squared * torch.sign(v - squared), alpha=1 - beta_2
    ),
    "adagrad": lambda v, squared, beta_2: v.add_(squared),
}
"""By `strategy.optimizer`: v, in place, from the squared update."""
