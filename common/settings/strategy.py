"""Settings of the server's average, and of the form in which updates travel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from wardround.common.settings.values import Seconds, require


@dataclass(frozen=True)
class TransformSettings:
    """The form in which a client's update travels to the server."""

    name: Literal["exact", "bf16", "fp16", "int8"]
    """Row of the table in `common/wire/forms.py`; all except `exact` lose precision."""
    error_feedback: bool
    """Add the rounding error to the client's next update; `exact` has none."""


@dataclass(frozen=True, kw_only=True)
class StrategySettings:
    """How the server averages, and how long it waits."""

    weighting: Literal["examples", "uniform"]
    """Weight of an update in the mean: its number of examples, or one (the authors' code)."""
    optimizer: Literal["sgd", "adam", "yogi", "adagrad"]
    """Row of the table in `server/rounds/server_step.py`."""
    server_learning_rate: PositiveFloat
    """Distance from the old global model towards the mean; 1 is FedAvg with `sgd`. For the
    other optimisers, about the largest step of a single weight."""
    server_momentum: Annotated[float, Field(ge=0, lt=1)]
    """Share of the last step that is added to the next (FedAvgM, Hsu et al. 2019); 0 is FedAvg
    (`sgd`)."""
    beta_1: Annotated[float, Field(ge=0, lt=1)]
    """Decay of the mean of updates (`adam`, `yogi`, `adagrad`)."""
    beta_2: Annotated[float, Field(ge=0, lt=1)]
    """Decay of the mean of squared updates (`adam`, `yogi`)."""
    tau: PositiveFloat
    """Added to the root of the squared updates. Weights whose updates are smaller than this take
    steps in proportion to them, as with `sgd` (all except `sgd`)."""
    min_sites: PositiveInt
    """Fewest updates that make a round if `on_missing` is `continue`."""
    wait_seconds: Seconds
    """Longest wait for the sites to connect at the start of the run."""
    round_timeout_seconds: Seconds
    """Longest wait for the updates of one round."""
    ask_again_seconds: Seconds
    """After this time without an answer, a site is asked again (deployments)."""
    on_missing: Literal["fail", "continue"]
    """If a client refuses or does not answer: stop the run, or continue with at least
    `min_sites`."""
    max_share: PositiveFloat | None
    """Largest share of one client in the mean; None sets no bound."""
    max_update_norm: PositiveFloat | None
    """Largest L2 norm of an update (trained minus global tensors); None sets no bound."""
    max_norm_ratio: PositiveFloat | None
    """Largest norm as a multiple of the median of earlier rounds; None sets no bound."""
    on_excess: Literal["refuse", "clip"]
    """If an update exceeds its largest norm, or has more examples than its site registered:
    leave it out, or shrink it, or its weight, to the bound."""

    def __post_init__(self) -> None:
        require(
            self.optimizer == "sgd" or self.server_momentum == 0,
            f"strategy.server_momentum is {self.server_momentum}, but "
            f"strategy.optimizer={self.optimizer} uses strategy.beta_1 instead. Set "
            "strategy.server_momentum=0.",
        )
        require(
            self.optimizer == "sgd" or self.server_learning_rate < 1,
            f"strategy.server_learning_rate is {self.server_learning_rate}, and "
            f"strategy.optimizer={self.optimizer} moves a weight by about as much in "
            "one round; it must be less than 1. Set, for example, "
            "strategy.server_learning_rate=0.001.",
        )
        require(
            self.max_norm_ratio is None or self.max_update_norm is not None,
            f"strategy.max_norm_ratio is {self.max_norm_ratio}, which needs earlier "
            "rounds, and round 1 has none. Set strategy.max_update_norm too.",
        )
