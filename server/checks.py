"""What the server refuses: updates and counts that must not go into a mean or a sum."""

from __future__ import annotations

from math import isfinite

import torch

from common.learning import Counts
from common.messages import Refused, Update
from common.sharing import Layout
from server.roster import Member

# In one cell, and for the steps of a round; sums over cells, sites and rounds stay inside 64 bits.
_MOST_COUNTED = 2**40


def check_counts(counts: Counts, num_labels: int) -> None:
    """Refuse held-out counts that cannot be added to the other sites'. Raises Refused."""
    if counts.confusion.shape != (num_labels, num_labels):
        raise Refused(f"its counts are of {len(counts.confusion)} labels, not of the run's {num_labels}")
    if counts.confusion.max() > _MOST_COUNTED or counts.num_examples == 0:
        raise Refused(f"its counts are of {counts.num_examples} held-out examples")


def check_update(update: Update, number: int, layout: Layout, num_labels: int, member: Member) -> None:
    """Refuse what must not go into the mean.

    Raises:
        Refused: the update is from another round, of another model, not finite, holds counts of other
            labels, claims no optimiser step, or another example count than its client introduced itself with.
    """
    if update.round != number:
        raise Refused(f"its update belongs to round {update.round}")
    if update.layout != layout.digest or tuple(update.tensors.shape) != (layout.size,):
        raise Refused("its update has other tensor names or shapes than the global model")
    if update.tensors.dtype != torch.float32:
        raise Refused(f"its update holds {update.tensors.dtype}, not float32")
    if update.num_examples != member.num_examples:
        raise Refused(
            f"its update claims {update.num_examples} examples, but it joined with {member.num_examples}"
        )
    if not (isfinite(update.loss) and isfinite(update.seconds)):
        raise Refused(f"its update has a loss of {update.loss} and took {update.seconds} s")
    if not 0 < update.num_steps < _MOST_COUNTED:
        raise Refused(f"its update claims {update.num_steps} optimiser steps")
    if update.test is not None:
        check_counts(update.test, num_labels)
    if not bool(torch.isfinite(update.tensors.sum())) and not bool(torch.isfinite(update.tensors).all()):
        raise Refused("its update holds values that are not finite")
