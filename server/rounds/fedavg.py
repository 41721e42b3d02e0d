"""Federated averaging: what may go into a round's mean, the mean, and the server's step to the new model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, sqrt
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
import torch

from wardround.common.errors import DIVERGED
from wardround.common.model.counts import MOST_COUNTED, Counts
from wardround.common.model.flat import Layout, cosine, distance, tensor_of
from wardround.common.settings import Settings, StrategySettings
from wardround.common.wire.forms import decode
from wardround.common.wire.messages import Refused, Update
from wardround.server.record import RoundRecord
from wardround.server.rounds.clients import Member

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 1 << 18
"""Elements worked on at a time, so that temporaries stay in the cache; also those of an update's sketch."""
_MOST_SQUARED = (
    1e30  # sum of squares of all weights: beyond it, norms and means would overflow
)


@dataclass(frozen=True)
class Agreement:
    """How one client's delta (trained - global) lies towards the mean delta."""

    update_norm: float
    """L2 norm of the delta over all shared tensors."""
    cosine_to_mean: float
    """Cosine between the delta and the mean delta; 0 where either of them is zero."""


@dataclass(frozen=True)
class RoundMean:
    """The outcome of one round."""

    tensors: Tensor  # (P,) fp32, the new global tensors
    update_norm: float
    """L2 norm of the mean delta."""
    agreements: tuple[Agreement, ...]
    """One for each update, in the order they were folded in."""
    weights: tuple[float, ...]
    """Of each update in the mean, in the same order."""


class SumMemory:
    """Three pieces of memory for the whole run: pages fresh from the system cost more than the sums do.

    piece 0   fp64 sums of the tensors' first half; the mean, (P,) fp32, is written over them in the end
    piece 1   fp64 sums of the second half
    piece 2   the mean of the round before: the global tensors that this round's clients started from

    After a round the pieces move on by one place. So a mean holds until the second round after it begins.
    """

    def __init__(self) -> None:
        self.pieces: list[Tensor] = []
        """Each (at least P,) fp32."""

    def reserve(self, size: int) -> None:
        """Have pieces of `size` fp32 numbers; memory that is not written to yet takes no room."""
        if not self.pieces or len(self.pieces[0]) != size:
            self.pieces = [torch.empty(size) for _ in range(3)]


class WeightedMean:
    """FedAvg (McMahan et al. 2017, arXiv:1602.05629, algorithm 1): sum of n_k w_k over sum of n_k.

    Sums are fp64, so a single update comes back bit for bit, and the order of folding is the caller's:
    folding in site order makes the result independent of arrival. Memory does not grow with the number
    of updates, but for a sketch of BLOCK fp32 numbers each, from which the cosines are computed: exact
    where P <= BLOCK, else within about 1/sqrt(BLOCK) = 0.002 (count sketch, Charikar et al. 2002).
    """

    def __init__(self, global_tensors: Tensor, memory: SumMemory | None = None) -> None:
        """Args:
        global_tensors: (P,) fp32 on the CPU, what the clients started from.
        memory: of the means before, to go on with.
        """
        self._global = global_tensors
        self._half = min(
            len(global_tensors), -(-len(global_tensors) // (2 * BLOCK)) * BLOCK
        )
        self._memory = SumMemory() if memory is None else memory
        self._delta = torch.empty(min(BLOCK, len(global_tensors)))
        self._total: float = 0
        self._weights: list[float] = []
        self._norms: list[float] = []
        self._sketches: list[Tensor] = []
        generator = torch.Generator().manual_seed(0)
        signs = (
            torch.randint(0, 2, (BLOCK,), generator=generator).mul_(2).sub_(1).float()
        )
        self._signs = torch.cat(
            [signs, signs]
        )  # every rotation of them is a part of this

    def add(self, trained: Tensor, weight: float) -> None:
        """Fold one update in. `trained` is (P,) fp32 and not kept; `weight` is positive."""
        assert weight > 0, weight
        norm_squared = 0.0
        sketch = torch.zeros(BLOCK)
        for block, total in self._sums():
            new = trained[block]
            if self._total == 0:
                total.copy_(new).mul_(weight)
            else:
                total.add_(new, alpha=weight)
            delta = torch.sub(new, self._global[block], out=self._delta[: len(new)])
            norm_squared += torch.dot(delta, delta).item()
            # A different rotation of the signs for each block makes them independent between blocks.
            turned = BLOCK - block.start // BLOCK % BLOCK
            sketch[: len(delta)].addcmul_(
                delta, self._signs[turned : turned + len(delta)]
            )
        self._total += weight
        self._weights.append(weight)
        self._norms.append(sqrt(norm_squared))
        self._sketches.append(sketch)

    def finish(self) -> RoundMean:
        """The mean of everything folded in, after which nothing more can be. One update must have been."""
        assert self._total > 0, "nothing was folded in"
        tensors = self._memory.pieces[0][: len(self._global)]
        norm_squared = 0.0
        for block, total in self._sums():
            # The sums under `mean` are those of this block and of earlier ones, which nobody needs any more.
            mean = tensors[block].copy_(total / self._total)
            delta = torch.sub(mean, self._global[block], out=self._delta[: len(mean)])
            norm_squared += torch.dot(delta, delta).item()
        self._memory.pieces.append(
            self._memory.pieces.pop(0)
        )  # the mean is kept for a round
        mean_norm = sqrt(norm_squared)
        weighted = zip(self._sketches, self._weights, strict=True)
        mean_sketch = (
            sum((sketch * weight for sketch, weight in weighted), torch.zeros(BLOCK))
            / self._total
        )
        agreements = tuple(
            Agreement(
                norm, cosine(torch.dot(sketch, mean_sketch).item(), norm * mean_norm)
            )
            for sketch, norm in zip(self._sketches, self._norms, strict=True)
        )
        return RoundMean(tensors, mean_norm, agreements, tuple(self._weights))

    def _sums(self) -> Iterator[tuple[slice, Tensor]]:
        """Every block of the tensors, in order, and its fp64 sums."""
        size, half = len(self._global), self._half
        self._memory.reserve(2 * half)
        for sums, first, end in zip(
            self._memory.pieces, (0, half), (half, size), strict=False
        ):
            for start in range(first, end, BLOCK):
                block = slice(start, min(start + BLOCK, end))
                yield (
                    block,
                    sums.view(torch.float64)[block.start - first : block.stop - first],
                )


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


class ExamplesChanged(Refused):
    """A client has other examples than it introduced itself with: its file has grown, say."""


def check_counts(
    counts: Counts, num_labels: int, num_parts: int, member: Member
) -> None:
    """Refuse held-out counts that cannot be added to the other sites', or are not of as many examples as the
    client introduced itself with.

    Args:
        num_parts: 2 where a validation part chooses the best model, else 1.

    Raises:
        Refused.
    """
    if len(counts.parts) != num_parts:
        raise Refused(
            f"its counts are of {len(counts.parts)} part(s) of its held-out texts, not {num_parts}"
        )
    for part in counts.parts:
        if part.confusion.shape != (num_labels, num_labels):
            raise Refused(
                f"its counts are of {len(part.confusion)} labels, not of the run's {num_labels}"
            )
        if part.confusion.max() > MOST_COUNTED or part.num_examples == 0:
            raise Refused(f"its counts are of {part.num_examples} held-out examples")
        if not _is_sane(part.loss_sum):
            raise Refused(f"its counts have a summed loss of {part.loss_sum}")
    num_examples = sum(part.num_examples for part in counts.parts)
    most = member.most_examples
    if most is not None and num_examples > most:
        raise Refused(
            f"its counts are of {num_examples} held-out examples, but it is registered with {most} at most"
        )
    if num_examples != member.num_held_out:
        raise ExamplesChanged(
            f"its counts are of {num_examples} held-out examples, but it joined with "
            f"{member.num_held_out}; it will be asked to introduce itself again"
        )


def _is_sane(value: float) -> bool:
    return isfinite(value) and 0 <= value <= MOST_COUNTED


def check_update(update: Update, number: int, layout: Layout, member: Member) -> None:
    """Refuse what must not go into the mean. What sites counted is held against `check_counts`.

    Raises:
        Refused: the update is from another round, of another model, holds a loss that is none, or claims no
            optimiser step.
        ExamplesChanged: it claims another example count than the client introduced itself with.
    """
    if update.round != number:
        raise Refused(f"its update belongs to round {update.round}")
    if update.layout != layout.digest:
        raise Refused(
            "its update has other tensor names or shapes than the global model"
        )
    if update.num_examples != member.num_examples:
        raise ExamplesChanged(
            f"its update claims {update.num_examples} examples, but it joined with {member.num_examples}; it "
            "will be asked to introduce itself again"
        )
    if not (_is_sane(update.loss) and _is_sane(update.seconds)):
        raise Refused(
            f"its update has a loss of {update.loss} and took {update.seconds} s"
        )
    if not 0 < update.num_steps < MOST_COUNTED:
        raise Refused(f"its update claims {update.num_steps} optimiser steps")


def open_tensors(update: Update, global_tensors: Tensor, scratch: np.ndarray) -> Tensor:
    """The trained tensors of an update, (P,) fp32, in the message's memory or in `scratch`.

    Raises:
        Refused: they are of another size or form, not finite, or so large that norms would not be.
    """
    try:
        tensors = tensor_of(decode(update.payload, global_tensors.numpy(), scratch))
    except ValueError as error:
        raise Refused(str(error)) from None
    if (
        not float(torch.dot(tensors, tensors)) <= _MOST_SQUARED
    ):  # not a number is not less either
        if not bool(torch.isfinite(tensors).all()):
            raise Refused("its update holds values that are not finite")
        raise Refused(
            f"its update holds values larger than weights are: {DIVERGED}; lower the learning rate"
        )
    return tensors


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


class NormBound:
    """Largest L2 norm of an update; relative to the median of what earlier rounds took, if so set."""

    def __init__(
        self, settings: StrategySettings, earlier: Iterable[float] = ()
    ) -> None:
        """Args: earlier: norms of all updates that the run's rounds took so far."""
        self._settings = settings
        self._norms = list(earlier)

    @property
    def largest(self) -> float | None:
        """The bound in this round; None for none."""
        bound, ratio = self._settings.max_update_norm, self._settings.max_norm_ratio
        if ratio is None or not self._norms:
            return bound
        relative = ratio * median(self._norms)
        return relative if bound is None else min(bound, relative)

    def close_round(self, norms: Iterable[float]) -> None:
        """Take the norms of a round's updates into account from the next round on."""
        self._norms += norms

    def apply(
        self, trained: Tensor, global_tensors: Tensor
    ) -> tuple[Tensor, float | None]:
        """The update within its bound, both (P,) fp32, and its norm as received if that was beyond it.

        Raises:
            Refused: it is beyond, and `strategy.on_excess` is `refuse`.
        """
        largest = self.largest
        if largest is None:
            return trained, None
        norm = distance(trained, global_tensors)
        if norm <= largest:
            return trained, None
        if self._settings.on_excess == "refuse":
            raise Refused(
                f"its update has a norm of {norm:.4g}, and {largest:.4g} is the most here"
            )
        return torch.sub(trained, global_tensors).mul_(largest / norm).add_(
            global_tensors
        ), norm
