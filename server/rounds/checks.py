"""Checks of answers, before they may count."""

from __future__ import annotations

from math import isfinite

import numpy as np
import torch
from torch import Tensor

from wardround.common.errors import DIVERGED, BadAnswer, ExamplesChanged, RunFailed
from wardround.common.model.flat import Layout, tensor_of
from wardround.common.tasks.sums import MOST_COUNTED, Sums
from wardround.common.tasks.task import Task
from wardround.common.wire.forms import decode
from wardround.common.wire.messages import Update
from wardround.server.rounds.members import Member

_MOST_SQUARED = 1e30
"""Largest sum of squares of all weights: above it, norms and means would overflow."""


def check_update(update: Update, number: int, layout: Layout, member: Member) -> None:
    """Refuse an update that must not be in the mean. `check_counts` checks its counts.

    Raises:
        BadAnswer: the update is from another round or of another model, its loss or time
            is not a sane number, or it reports no optimiser step.
        ExamplesChanged: it reports another number of examples than when it joined.
    """
    if update.round != number:
        raise BadAnswer(f"its update belongs to round {update.round}")
    if update.layout != layout.digest:
        raise BadAnswer(
            "its update has other tensor names or shapes than the global model"
        )
    if update.num_examples != member.num_examples:
        raise ExamplesChanged(
            f"its update claims {update.num_examples} examples, but it joined with "
            f"{member.num_examples}; it will be asked to introduce itself again"
        )
    if not (_is_sane(update.loss) and _is_sane(update.seconds)):
        raise BadAnswer(
            f"its update has a loss of {update.loss} and took {update.seconds} s"
        )
    if not 0 < update.num_steps < MOST_COUNTED:
        raise BadAnswer(f"its update claims {update.num_steps} optimiser steps")


def open_tensors(update: Update, global_tensors: Tensor, scratch: np.ndarray) -> Tensor:
    """Return the trained tensors of an update, (P,) fp32.

    They lie in the memory of the message or in `scratch`.

    Raises:
        BadAnswer: their size or form is wrong, or they are not finite or so large that
            norms would not be finite.
    """
    try:
        tensors = tensor_of(decode(update.payload, global_tensors.numpy(), scratch))
    except ValueError as error:
        raise BadAnswer(str(error)) from None
    # Written so that NaN is refused too: no comparison with it is true.
    if float(torch.dot(tensors, tensors)) <= _MOST_SQUARED:
        return tensors
    if not bool(torch.isfinite(tensors).all()):
        raise BadAnswer("its update holds values that are not finite")
    raise BadAnswer(
        f"its update holds values that are too large for weights: {DIVERGED}; lower the "
        "learning rate"
    )


def check_counts(
    counts: Sums, task: Task, num_outputs: int, num_parts: int, member: Member
) -> None:
    """Refuse held-out counts that cannot be added to those of the other sites.

    Args:
        num_outputs: outputs of the model.
        num_parts: 2 if a validation part chooses the best model, else 1.

    Raises:
        BadAnswer: the counts have another form than asked for, or are not sane.
        ExamplesChanged: they cover another number of examples than the client reported
            when it joined.
    """
    if len(counts.parts) != num_parts:
        raise BadAnswer(
            f"its counts cover {len(counts.parts)} part(s) of its held-out texts, "
            f"not {num_parts}"
        )
    for part in counts.parts:
        try:
            task.check(part, num_outputs)
        except ValueError as error:
            raise BadAnswer(str(error)) from None
        if part.num_examples == 0:
            raise BadAnswer(f"its counts cover {part.num_examples} held-out examples")
        if not _is_sane(part.loss_sum):
            raise BadAnswer(f"its counts have a summed loss of {part.loss_sum}")
    num_examples = sum(part.num_examples for part in counts.parts)
    most = member.most_examples
    if most is not None and num_examples > most:
        raise BadAnswer(
            f"its counts cover {num_examples} held-out examples, but its registration "
            f"allows at most {most}"
        )
    if num_examples != member.num_held_out:
        raise ExamplesChanged(
            f"its counts cover {num_examples} held-out examples, but it joined with "
            f"{member.num_held_out}; it will be asked to introduce itself again"
        )


def check_finite(round: int, name: str, value: float) -> None:
    """Raise RunFailed if a number of the round's record is not finite."""
    if not isfinite(value):
        raise RunFailed(
            f"round {round}: {name} is {value}: {DIVERGED}. Lower train.learning_rate; "
            "the last good checkpoint is kept."
        )


def _is_sane(value: float) -> bool:
    return isfinite(value) and 0 <= value <= MOST_COUNTED
