"""Checks of answers before they may change the model."""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING

import numpy as np
import torch

from wardround.common.errors import DIVERGED, BadAnswer, ExamplesChanged, RunFailed
from wardround.common.model.flat import Layout, tensor_of
from wardround.common.tasks.sums import MOST_COUNTED, Sums
from wardround.common.wire.forms import decode
from wardround.common.wire.messages import Update
from wardround.server.rounds.members import Member

if TYPE_CHECKING:
    from torch import Tensor

_MOST_SQUARED = (
    1e30  # sum of squares of all weights: beyond it, norms and means would overflow
)


def check_update(update: Update, number: int, layout: Layout, member: Member) -> None:
    """Refuse what must not go into the mean. What sites counted is held against `check_counts`.

    Raises:
        BadAnswer: the update is from another round, of another model, holds a loss that is none, or claims no
            optimiser step.
        ExamplesChanged: it claims another example count than the client introduced itself with.
    """
    if update.round != number:
        raise BadAnswer(f"its update belongs to round {update.round}")
    if update.layout != layout.digest:
        raise BadAnswer(
            "its update has other tensor names or shapes than the global model"
        )
    if update.num_examples != member.num_examples:
        raise ExamplesChanged(
            f"its update claims {update.num_examples} examples, but it joined with {member.num_examples}; it "
            "will be asked to introduce itself again"
        )
    if not (_is_sane(update.loss) and _is_sane(update.seconds)):
        raise BadAnswer(
            f"its update has a loss of {update.loss} and took {update.seconds} s"
        )
    if not 0 < update.num_steps < MOST_COUNTED:
        raise BadAnswer(f"its update claims {update.num_steps} optimiser steps")


def open_tensors(update: Update, global_tensors: Tensor, scratch: np.ndarray) -> Tensor:
    """The trained tensors of an update, (P,) fp32, in the message's memory or in `scratch`.

    Raises:
        BadAnswer: they are of another size or form, not finite, or so large that norms would not be.
    """
    try:
        tensors = tensor_of(decode(update.payload, global_tensors.numpy(), scratch))
    except ValueError as error:
        raise BadAnswer(str(error)) from None
    if (
        not float(torch.dot(tensors, tensors)) <= _MOST_SQUARED
    ):  # not a number is not less either
        if not bool(torch.isfinite(tensors).all()):
            raise BadAnswer("its update holds values that are not finite")
        raise BadAnswer(
            f"its update holds values larger than weights are: {DIVERGED}; lower the learning rate"
        )
    return tensors


def check_counts(counts: Sums, num_labels: int, num_parts: int, member: Member) -> None:
    """Refuse held-out counts that cannot be added to the other sites', or are not of as many examples as the
    client introduced itself with.

    Args:
        num_parts: 2 where a validation part chooses the best model, else 1.

    Raises:
        BadAnswer.
    """
    if len(counts.parts) != num_parts:
        raise BadAnswer(
            f"its counts are of {len(counts.parts)} part(s) of its held-out texts, not {num_parts}"
        )
    for part in counts.parts:
        if part.confusion.shape != (num_labels, num_labels):
            raise BadAnswer(
                f"its counts are of {len(part.confusion)} labels, not of the run's {num_labels}"
            )
        if part.confusion.max() > MOST_COUNTED or part.num_examples == 0:
            raise BadAnswer(f"its counts are of {part.num_examples} held-out examples")
        if not _is_sane(part.loss_sum):
            raise BadAnswer(f"its counts have a summed loss of {part.loss_sum}")
    num_examples = sum(part.num_examples for part in counts.parts)
    most = member.most_examples
    if most is not None and num_examples > most:
        raise BadAnswer(
            f"its counts are of {num_examples} held-out examples, but it is registered with {most} at most"
        )
    if num_examples != member.num_held_out:
        raise ExamplesChanged(
            f"its counts are of {num_examples} held-out examples, but it joined with "
            f"{member.num_held_out}; it will be asked to introduce itself again"
        )


def check_finite(round: int, what: str, value: float) -> None:
    """Raise RunFailed where a number of the round's record is none."""
    if not isfinite(value):
        rule = "Lower train.learning_rate; the last good checkpoint is kept."
        raise RunFailed(f"round {round}: {what} is {value}: {DIVERGED}. {rule}")


def _is_sane(value: float) -> bool:
    return isfinite(value) and 0 <= value <= MOST_COUNTED
