"""Statistics of the updates in a mean, and their part of the round's record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import hypot, sqrt

from torch import Tensor

from wardround.common.model.flat import Layout, cosine, distance
from wardround.common.wire.messages import Update
from wardround.server.record import ClientRecord, Diagnostics
from wardround.server.rounds.mean import RoundMean
from wardround.server.rounds.members import Member


@dataclass(frozen=True)
class Head:
    """The places of the newly added layers in the flat buffer; the rest is the body."""

    slices: tuple[slice, ...]

    @classmethod
    def of(cls, layout: Layout, names: Sequence[str]) -> Head:
        """Args: names: the head's parameters, as in `TextModel.new_head`."""
        places = layout.places()
        return cls(tuple(places[name] for name in layout.names if name in names))

    def body_norm(self, trained: Tensor, start: Tensor) -> float:
        """Return the L2 norm of `trained - start`, both (P,) fp32, over the body.

        If only the head has moved, a difference of squared norms would be mostly rounding.
        """
        starts = [0, *(part.stop for part in self.slices)]
        ends = [*(part.start for part in self.slices), len(trained)]
        parts = (slice(first, end) for first, end in zip(starts, ends, strict=True))
        return hypot(*(distance(trained[part], start[part]) for part in parts))

    def update_norm(self, trained: Tensor, start: Tensor) -> float:
        """Return the L2 norm of `trained - start`, both (P,) fp32, over the head.

        It is 0 if there is no new head.
        """
        deltas = (trained[part] - start[part] for part in self.slices)
        return sqrt(sum(delta.dot(delta).item() for delta in deltas))

    def length(self, tensors: Tensor) -> float:
        """Return the L2 norm of the head in `tensors`, (P,) fp32; 0 without a new head."""
        parts = (tensors[part] for part in self.slices)
        return sqrt(sum(part.dot(part).item() for part in parts))


@dataclass(frozen=True)
class FoldedUpdate:
    """An update that is in the mean of a round."""

    member: Member
    message: Update
    """The update as it was received, without its tensors."""
    num_bytes: int
    """Bytes of the tensors, as they travelled."""
    head_norm: float | None = None
    """L2 norm over the head; None if the server cannot see single updates."""
    norm_received: float | None = None
    """L2 norm before clipping; None if it was not clipped."""


def client_records(
    updates: Sequence[FoldedUpdate],
    outcome: RoundMean,
    steps_before: Mapping[int, int],
    has_shares: bool,
) -> list[ClientRecord]:
    """Return the record of each update, in the order of folding.

    Args:
        outcome: their mean. Statistics that it lacks are None in the records.
        steps_before: optimiser steps in all earlier rounds, by client number.
        has_shares: True if the records hold each update's share of the mean.
    """
    records = []
    total_weight = sum(outcome.weights)
    unknown = [None] * len(updates)
    norms = outcome.client_norms or unknown
    to_mean = outcome.cosines_to_mean or unknown
    to_others = cosines_to_others(outcome)
    for place, update in enumerate(updates):
        message = update.message
        client = update.member.client
        share = outcome.weights[place] / total_weight
        record = ClientRecord(
            client=client,
            num_examples=message.num_examples,
            loss=message.loss,
            seconds=message.seconds,
            num_bytes=update.num_bytes,
            num_steps=message.num_steps,
            total_steps=steps_before.get(client, 0) + message.num_steps,
            head_norm=update.head_norm,
            norm_received=update.norm_received,
            site=update.member.site,
            update_norm=norms[place],
            cosine_to_mean=to_mean[place],
            cosine_to_others=to_others[place],
            share=share if has_shares else None,
            uncorrected=bool(message.uncorrected) or None,
        )
        records.append(record)
    return records


def describe_updates(
    outcome: RoundMean | None, head_norm: float, body_norm: float, head_length: float
) -> Diagnostics:
    """Return the statistics of a round's updates together; those of predictions are None.

    Args:
        outcome: the mean and its updates; None in round 0.
        head_norm: L2 norm of the mean update over the head.
        body_norm: L2 norm of the mean update over the body.
        head_length: L2 norm of the head in the new global tensors.
    """
    unknown = dict.fromkeys(Diagnostics.model_fields)
    known: dict[str, float | None] = {"head_length": head_length}
    if outcome is not None:
        known["mean_update_norm"] = outcome.update_norm
        known["norm_ratio"] = norm_ratio(outcome)
        known["head_norm"] = head_norm
        known["body_norm"] = body_norm
    return Diagnostics.model_validate(unknown | known)


def norm_ratio(outcome: RoundMean) -> float | None:
    """Norm of the mean update over the weighted mean of the norms; in [0, 1].

    1: all updates point the same way; 1/sqrt(K): K updates of equal norm and weight are
    like independent noise; 0: they cancel, or nothing moved. None if the norms of single
    updates are not known.
    """
    if outcome.client_norms is None:
        return None
    pairs = zip(outcome.client_norms, outcome.weights, strict=True)
    weighted = sum(norm * weight for norm, weight in pairs)
    mean_of_norms = weighted / sum(outcome.weights)
    return min(1.0, outcome.update_norm / mean_of_norms) if mean_of_norms > 0 else 0.0


def cosines_to_others(outcome: RoundMean) -> list[float | None]:
    """Cosine of each update to the weighted mean of the others: 0 for independent noise.

    The cosine to the mean of all includes the update's own share. If two updates cancel,
    that cosine is 0, and this one is -1. With p the update's share of the weights, d the
    update and m the mean of all, the others have the direction m - p d. Its products with d and
    with itself follow from the norms and the cosine to m.

    Returns:
        One for each update: 0 if it or the others do not move; None if there are no
        others, or if single updates are not known.
    """
    weights = outcome.weights
    norms = outcome.client_norms
    to_mean = outcome.cosines_to_mean
    if norms is None or to_mean is None or len(weights) == 1:
        return [None] * len(weights)
    total = sum(weights)
    cosines: list[float | None] = []
    for norm, cosine_to_mean, weight in zip(norms, to_mean, weights, strict=True):
        share = weight / total
        with_mean = cosine_to_mean * norm * outcome.update_norm  # <d, m>
        with_others = with_mean - share * norm**2  # <d, m - p d>
        others_squared = (
            outcome.update_norm**2 - 2 * share * with_mean + (share * norm) ** 2
        )
        scale = norm * sqrt(max(0.0, others_squared))
        cosines.append(cosine(with_others, scale))
    return cosines
