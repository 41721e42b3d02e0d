"""The server's step: from the mean of a round to the new global tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from wardround.common.settings.tree import Settings
from wardround.server.rounds.mean import BLOCK


class ServerStep:
    """Computes the new global tensors from the clients' mean, by `strategy.optimizer`.

    `sgd` is FedAvgM (Hsu, Qi, Brown 2019, arXiv:1909.06335, section 3):
    v <- b v + (mean - w); w <- w + a v. With momentum b = 0 and learning rate a = 1, the
    defaults, the new global tensors are the mean itself, bit for bit. Memory: one more
    (P,) fp32 if b > 0.

    The other optimisers are those of Reddi et al. 2021 (arXiv:2003.00295, algorithm 2), with
    d = mean - w: m <- b1 m + (1 - b1) d; v as in `SECOND_MOMENTS`;
    w <- w + a m / (sqrt(v) + tau), from m = 0 and v = tau^2. Memory: two more (P,) fp32.
    """

    def __init__(
        self,
        settings: Settings,
        state: Mapping[str, Tensor] | None = None,
        head: Sequence[slice] = (),
    ) -> None:
        """Args:
        state: the `state` in the checkpoint of a run that is resumed.
        head: the places of the new head's tensors in the flat buffer.
        """
        self._strategy = settings.strategy
        # The mean of heads that sites drew separately is a new start, not a direction.
        self._first_round = 2 if settings.train.draws_heads else 1
        is_rescaled = settings.train.head_init == "per_site_rescaled"
        self._head = head if is_rescaled else ()
        self._head_norms = [0.0] * len(self._head)
        self._weight = 0.0
        self.state: dict[str, Tensor] = dict(state or {})
        """Kept from round to round: `momentum` and `second_moment`, (P,) fp32 each, if
        the optimiser has them and has made a step."""

    def note(self, number: int, trained: Tensor, weight: float) -> None:
        """Read one update, (P,) fp32, with its weight in the mean of round `number`."""
        if number >= self._first_round:
            return
        self._weight += weight
        for place, part in enumerate(self._head):
            self._head_norms[place] += weight * float(trained[part].norm())

    def apply(self, number: int, tensors: Tensor, mean: Tensor) -> Tensor:
        """Return the global tensors after round `number`, (P,) fp32.

        Averaging K separately drawn heads makes them shorter, by about sqrt(K). With
        `train.head_init=per_site_rescaled` each tensor of the mean head is rescaled to
        the mean of the clients' norms.

        Args:
            tensors: (P,) fp32, from which the clients started; is not changed.
            mean: (P,) fp32, the mean of the trained tensors; may be overwritten.
        """
        if number < self._first_round:
            return self._rescaled(mean)
        if self._strategy.optimizer != "sgd":
            return self._adaptive(tensors, mean)
        rate = self._strategy.server_learning_rate
        decay = self._strategy.server_momentum
        if decay > 0:
            momentum = self._kept("momentum", tensors, 0.0)
            momentum.mul_(decay)
            momentum.add_(mean)
            momentum.sub_(tensors)
            return torch.add(tensors, momentum, alpha=rate, out=mean)
        if rate == 1:
            return mean
        step = mean.sub_(tensors)
        step.mul_(rate)
        return step.add_(tensors)

    def _rescaled(self, mean: Tensor) -> Tensor:
        for part, norms in zip(self._head, self._head_norms, strict=True):
            length = float(mean[part].norm())
            mean_of_lengths = norms / self._weight
            mean[part].mul_(mean_of_lengths / max(length, 1e-12))
        return mean

    def _adaptive(self, tensors: Tensor, mean: Tensor) -> Tensor:
        strategy = self._strategy
        rate = strategy.server_learning_rate
        momentum = self._kept("momentum", tensors, 0.0)
        squares = self._kept("second_moment", tensors, strategy.tau**2)
        update_moment = SECOND_MOMENTS[strategy.optimizer]
        for start in range(0, len(tensors), BLOCK):
            block = slice(start, start + BLOCK)
            delta = mean[block].sub_(tensors[block])
            momentum[block].lerp_(delta, 1 - strategy.beta_1)
            update_moment(squares[block], delta.square(), strategy.beta_2)
            step = momentum[block] / squares[block].sqrt().add_(strategy.tau)
            torch.add(tensors[block], step, alpha=rate, out=delta)
        return mean

    def _kept(self, name: str, tensors: Tensor, start: float) -> Tensor:
        if name not in self.state:
            self.state[name] = torch.full_like(tensors, start)
        return self.state[name]


def _adam(v: Tensor, squared: Tensor, beta_2: float) -> None:
    v.lerp_(squared, 1 - beta_2)


def _yogi(v: Tensor, squared: Tensor, beta_2: float) -> None:
    v.sub_(squared * torch.sign(v - squared), alpha=1 - beta_2)


def _adagrad(v: Tensor, squared: Tensor, beta_2: float) -> None:
    v.add_(squared)


SECOND_MOMENTS: dict[str, Callable[[Tensor, Tensor, float], None]] = {
    "adam": _adam,
    "yogi": _yogi,
    "adagrad": _adagrad,
}
"""Functions that change v in place from the squared update, by `strategy.optimizer`."""
