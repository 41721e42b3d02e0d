"""The state of a run after a whole round."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from wardround.common.model.flat import Layout
from wardround.common.wire.arrays import Payload
from wardround.server.record import RoundRecord


@dataclass(frozen=True)
class RoundState:
    """The global tensors after a whole round, and the record of that round."""

    layout: Layout
    tensors: Tensor  # (P,) fp32 on the CPU
    record: RoundRecord
    """Its `test` is None until the model is measured. Sites do that in the next round."""
    step: tuple[str, Payload] | None = None
    """The version of the tensors before this round, and the new tensors as a difference
    from it; None if no client holds that version."""

    @property
    def version(self) -> str:
        """SHA-256 of the tensors."""
        return str(self.record.model_sha256)

    @property
    def round(self) -> int:
        """The number of the round; 0 is the initial model."""
        return self.record.round
