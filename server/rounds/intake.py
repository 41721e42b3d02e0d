"""Opens the answers of one round: checked, decoded, and within the norm bound."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from flwr.app import RecordDict
from torch import Tensor

from wardround.common.errors import BadAnswer
from wardround.common.wire.codec import unpack_update
from wardround.common.wire.forms import WHOLE
from wardround.common.wire.messages import Update
from wardround.server.rounds.bounds import NormBound
from wardround.server.rounds.checks import check_update, open_tensors
from wardround.server.rounds.evaluation import Evaluation
from wardround.server.rounds.members import Member
from wardround.server.rounds.state import RoundState


@dataclass(frozen=True)
class OpenUpdate:
    """A checked update that may be added to the mean."""

    message: Update
    tensors: Tensor  # (P,) fp32, valid until the next answer
    norm_received: float | None
    """L2 norm before clipping; None if it was not clipped."""


class Intake:
    """Opens one answer after the other."""

    def __init__(
        self, state: RoundState, evaluation: Evaluation, norm_bound: NormBound
    ) -> None:
        """Args: state: of the last whole round, whose tensors the clients received."""
        self._state = state
        self._evaluation = evaluation
        self._norm_bound = norm_bound
        self._scratch = np.empty(0, dtype=np.float32)

    def open(self, member: Member, answer: RecordDict | BadAnswer) -> OpenUpdate:
        """Return the update in an answer.

        Raises:
            BadAnswer: there is no update, or it must not count.
        """
        state = self._state
        content = content_or_refusal(answer)
        update = unpack_update(
            content, self._evaluation.task, state.layout.most_update_bytes()
        )
        check_update(update, state.round + 1, state.layout, member)
        self._evaluation.check(update, member)
        if update.payload.form != WHOLE and len(self._scratch) == 0:
            # Made once, and only if it is needed.
            self._scratch = np.empty(state.layout.size, dtype=np.float32)
        received = open_tensors(update, state.tensors, self._scratch)
        tensors, norm_received = self._norm_bound.apply(received, state.tensors)
        return OpenUpdate(update, tensors, norm_received)


def content_or_refusal(answer: RecordDict | BadAnswer) -> RecordDict:
    """Return the content of an answer. If there is none, raise the refusal."""
    if isinstance(answer, BadAnswer):
        raise answer
    return answer
