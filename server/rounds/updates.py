"""What a round's updates and test predictions tell: how far clients agree, what they move and predict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import hypot, prod, sqrt
from typing import TYPE_CHECKING

from wardround.common.model.flat import cosine, distance
from wardround.server.record import Diagnostics

if TYPE_CHECKING:
    from torch import Tensor

    from wardround.common.model.flat import Layout
    from wardround.server.rounds.mean import RoundMean


@dataclass(frozen=True)
class Head:
    """Where the parameters that pre-training did not bring lie in the flat buffer; all else is the body."""

    slices: tuple[slice, ...]

    @classmethod
    def of(cls, layout: Layout, names: Sequence[str]) -> Head:
        """Args: names: the head's parameters, as in `Classifier.new_head`."""
        places = zip(layout.names, layout.shapes, layout.offsets, strict=True)
        return cls(
            tuple(
                slice(start, start + prod(shape))
                for name, shape, start in places
                if name in names
            )
        )

    def body_norm(self, trained: Tensor, start: Tensor) -> float:
        """L2 norm of `trained - start`, both (P,) fp32, over all but the head.

        As a difference of squares it would be mostly rounding when the head alone has moved.
        """
        ends = [*(part.start for part in self.slices), len(trained)]
        starts = [0, *(part.stop for part in self.slices)]
        parts = (slice(first, end) for first, end in zip(starts, ends, strict=True))
        return hypot(*(distance(trained[part], start[part]) for part in parts))

    def update_norm(self, trained: Tensor, start: Tensor) -> float:
        """L2 norm of `trained - start`, both (P,) fp32, over the head alone; 0 where there is no new head."""
        deltas = (trained[part] - start[part] for part in self.slices)
        return sqrt(sum(delta.dot(delta).item() for delta in deltas))

    def length(self, tensors: Tensor) -> float:
        """L2 norm of the head in `tensors`, (P,) fp32; 0 where there is no new head."""
        return sqrt(
            sum(tensors[part].dot(tensors[part]).item() for part in self.slices)
        )


def describe_updates(
    outcome: RoundMean | None, head_norm: float, body_norm: float, head_length: float
) -> Diagnostics:
    """What a round's updates tell together; what the model predicts is not known yet.

    Args:
        outcome: the mean and its updates; None in round 0.
        head_norm: L2 norm of the mean update over the head.
        body_norm: L2 norm of the mean update over all else.
        head_length: L2 norm of the head in the new global tensors.
    """
    told: dict[str, float] = {"head_length": head_length}
    if outcome is not None:
        told |= {
            "mean_update_norm": outcome.update_norm,
            "norm_ratio": norm_ratio(outcome),
        }
        told |= {"head_norm": head_norm, "body_norm": body_norm}
    return Diagnostics.model_validate(dict.fromkeys(Diagnostics.model_fields) | told)


def norm_ratio(outcome: RoundMean) -> float:
    """Norm of the mean update over the mean of the norms, both weighted as the mean is; in [0, 1].

    1: all updates point the same way; 1/sqrt(K): K updates of equal norm and weight are as independent noise;
    0: they cancel, or nothing moved.
    """
    pairs = zip(outcome.agreements, outcome.weights, strict=True)
    mean_of_norms = sum(
        agreement.update_norm * weight for agreement, weight in pairs
    ) / sum(outcome.weights)
    return min(1.0, outcome.update_norm / mean_of_norms) if mean_of_norms > 0 else 0.0


def cosines_to_others(outcome: RoundMean) -> list[float | None]:
    """Cosine of each update to the weighted mean of the others: 0 for independent noise, whatever K is.

    The cosine to the mean of all holds an update's own share, and is 0 where two updates cancel; this one is
    -1 there. With p the update's share of the weights, d the update and m the mean of all, the others point
    along m - p d, whose products with d and with itself follow from the norms and the cosine to m.

    Returns:
        One for each update; 0 where it or the others do not move, None where there are no others.
    """
    if len(outcome.agreements) == 1:
        return [None]
    total = sum(outcome.weights)
    cosines: list[float | None] = []
    for agreement, weight in zip(outcome.agreements, outcome.weights, strict=True):
        share, norm = weight / total, agreement.update_norm
        with_mean = agreement.cosine_to_mean * norm * outcome.update_norm  # <d, m>
        with_others = with_mean - share * norm**2  # <d, m - p d>
        others_squared = (
            outcome.update_norm**2 - 2 * share * with_mean + (share * norm) ** 2
        )
        scale = norm * sqrt(max(0.0, others_squared))
        cosines.append(cosine(with_others, scale))
    return cosines
