"""What the server makes of a round's mean: the new global tensors, or a step towards them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from common.settings import Settings

if TYPE_CHECKING:
    from torch import Tensor


class ServerStep:
    """FedAvgM (Hsu, Qi, Brown 2019, arXiv:1909.06335, section 3): v <- b v + (mean - w); w <- w + a v.

    With momentum b = 0 and learning rate a = 1, the defaults, the new global tensors are the mean itself,
    bit for bit. Memory: one more (P,) fp32 where b > 0, none otherwise.
    """

    def __init__(self, settings: Settings, momentum: Tensor | None = None) -> None:
        """Args: momentum: v as a checkpoint holds it, (P,) fp32; None is zero."""
        self._rate = settings.strategy.server_learning_rate
        self._decay = settings.strategy.server_momentum
        # A head that every site drew anew is a replacement, no direction to go on in.
        self._first_round = 2 if settings.train.head_init == "per_site" else 1
        self.momentum = momentum

    def apply(self, number: int, tensors: Tensor, mean: Tensor) -> Tensor:
        """The global tensors after round `number`.

        Args:
            tensors: (P,) fp32, what the clients started from; left as it is.
            mean: (P,) fp32, the mean of what they trained; may be written into.
        """
        if number < self._first_round or (self._decay == 0 and self._rate == 1):
            return mean
        if self._decay == 0:
            return mean.sub_(tensors).mul_(self._rate).add_(tensors)
        if self.momentum is None:
            self.momentum = torch.zeros_like(tensors)
        self.momentum.mul_(self._decay).add_(mean).sub_(tensors)
        return torch.add(tensors, self.momentum, alpha=self._rate, out=mean)
