"""Settings of the measurement after each round, and of personal models after the last."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from wardround.common.settings.values import require


@dataclass(frozen=True)
class EvaluationSettings:
    """How the global model is measured after each round."""

    where: Literal["server", "sites"]
    """`server`: on a central test set. `sites`: each site counts on the texts that it holds
    out, and the counts are added."""
    mode: Literal["test", "parts"]
    """`test`: over all test examples. `parts`: the mean over K parts of the mean batch accuracy
    (the authors' code)."""
    batch_size: PositiveInt
    """Examples per forward pass; in mode `parts` it also sets the weight of the last batch."""
    target_accuracy: Annotated[float, Field(ge=0, le=1)] | None
    """Stop at the first round that reaches this accuracy; None never does."""
    validation_fraction: Annotated[float, Field(ge=0, lt=1)]
    """Share of the held-out texts that chooses the best model and is not reported; with 0 the
    last model is kept."""
    patience: PositiveInt | None
    """Stop after this many rounds without a better model on the validation part; None never
    does."""

    def __post_init__(self) -> None:
        require(
            self.patience is None or self.validation_fraction > 0,
            f"evaluation.patience is {self.patience}, but no texts choose the best "
            "model. Set evaluation.validation_fraction=0.2, or "
            "evaluation.patience=null.",
        )
        require(
            self.where == "server" or self.mode == "test",
            "evaluation.mode=parts cuts a central test set, which "
            "evaluation.where=sites does not have. Set evaluation.mode=test.",
        )


@dataclass(frozen=True)
class PersonalisationSettings:
    """What each client makes of the run's model after the last round. Nothing is sent."""

    name: Literal["none", "mixture", "fine_tuned", "local", "all"]
    """Models that a client trains and compares with the global one; `all`: three of them
    (docs/personal.md)."""
    epochs: PositiveInt
    """Passes over the client's own texts; the best epoch on its validation part is kept."""
    learning_rate: PositiveFloat | None
    """Step size; None is `train.learning_rate`."""
    gate_hidden: PositiveInt
    """Units of the mixture's gate, between the encoder's state and the weight."""
    everyone: bool
    """Measure each client's models on the test texts of all clients too (simulations)."""
    keep_models: bool
    """Keep the chosen models in the run folder, `personal/<client>/` (simulations)."""
    opt_out_clients: tuple[NonNegativeInt, ...]
    """Numbers of simulated clients that take part in no round but make personal models."""
