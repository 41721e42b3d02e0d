"""The state of a run after a whole round."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from wardround.common.model.flat import Layout
from wardround.server.record import RoundRecord

if TYPE_CHECKING:
    from torch import Tensor

    from wardround.common.wire.arrays import Payload


@dataclass
class RoundState:
    """Where a run stands: the global tensors after a whole round, and that round's record."""

    layout: Layout
    tensors: Tensor  # (P,) fp32 on the CPU
    record: RoundRecord
    """Its `test` is None until the model has been measured, which sites do a round later."""
    step: tuple[str, Payload] | None = None
    """The version before the last round, and the tensors written against it; None where nobody holds it."""
    mean_steps: float = 0.0
    """Of the clients in the last round; 0 where control variates are not used, or start anew."""

    @property
    def version(self) -> str:
        """SHA-256 of the tensors."""
        return str(self.record.model_sha256)

    @property
    def round(self) -> int:
        """The last whole round; 0 is the initial model."""
        return self.record.round
