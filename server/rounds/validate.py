"""What an answer must be like before it may go into a mean or a sum; whatever is not is refused by name."""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING

import numpy as np
import torch

from common.errors import DIVERGED
from common.model.counts import MOST_COUNTED, Counts
from common.model.flat import Layout, tensor_of
from common.wire.forms import decode
from common.wire.messages import Refused, Update
from server.rounds.roster import Member

if TYPE_CHECKING:
    from torch import Tensor

# Sum of squares of all weights: beyond it, norms and means would overflow.
_MOST_SQUARED = 1e30


class ExamplesChanged(Refused):
    """A client has other examples than it introduced itself with: its file has grown, say."""


def check_counts(counts: Counts, num_labels: int, member: Member) -> None:
    """Refuse held-out counts that cannot be added to the other sites', or are not of as many examples as the
    client introduced itself with.

    Raises:
        Refused.
    """
    if counts.confusion.shape != (num_labels, num_labels):
        raise Refused(f"its counts are of {len(counts.confusion)} labels, not of the run's {num_labels}")
    if counts.confusion.max() > MOST_COUNTED or counts.num_examples == 0:
        raise Refused(f"its counts are of {counts.num_examples} held-out examples")
    if not _is_sane(counts.loss_sum):
        raise Refused(f"its counts have a summed loss of {counts.loss_sum}")
    if counts.num_examples != member.num_held_out:
        raise ExamplesChanged(
            f"its counts are of {counts.num_examples} held-out examples, but it joined with "
            f"{member.num_held_out}; it will be asked to introduce itself again"
        )


def _is_sane(value: float) -> bool:
    return isfinite(value) and abs(value) <= MOST_COUNTED


def check_update(
    update: Update, number: int, layout: Layout, num_labels: int, member: Member, *, is_counted: bool
) -> None:
    """Refuse what must not go into the mean.

    Args:
        is_counted: whether sites count what the model gets right on their held-out texts.

    Raises:
        Refused: the update is from another round, of another model, holds counts of other labels or a loss
            that is no number, lacks counts where sites evaluate, or claims no optimiser step.
        ExamplesChanged: it claims another example count than the client introduced itself with.
    """
    if update.round != number:
        raise Refused(f"its update belongs to round {update.round}")
    if update.layout != layout.digest:
        raise Refused("its update has other tensor names or shapes than the global model")
    if update.num_examples != member.num_examples:
        raise ExamplesChanged(
            f"its update claims {update.num_examples} examples, but it joined with {member.num_examples}; it "
            "will be asked to introduce itself again"
        )
    if not (_is_sane(update.loss) and _is_sane(update.seconds)):
        raise Refused(f"its update has a loss of {update.loss} and took {update.seconds} s")
    if not 0 < update.num_steps < MOST_COUNTED:
        raise Refused(f"its update claims {update.num_steps} optimiser steps")
    if update.test is None and is_counted:
        raise Refused("its update holds no counts of held-out examples")
    if update.test is not None:
        check_counts(update.test, num_labels, member)


def open_tensors(update: Update, global_tensors: Tensor, scratch: np.ndarray) -> Tensor:
    """The trained tensors of an update, (P,) fp32, in the message's memory or in `scratch`.

    Raises:
        Refused: they are of another size or form, not finite, or so large that norms would not be.
    """
    try:
        tensors = tensor_of(decode(update.payload, global_tensors.numpy(), scratch))
    except ValueError as error:
        raise Refused(str(error)) from None
    if not float(torch.dot(tensors, tensors)) <= _MOST_SQUARED:  # not a number is not less either
        if not bool(torch.isfinite(tensors).all()):
            raise Refused("its update holds values that are not finite")
        raise Refused(f"its update holds values larger than weights are: {DIVERGED}; lower the learning rate")
    return tensors
