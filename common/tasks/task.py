"""The seam between a task and the rest: everything that depends on what is learned."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from wardround.common.settings.data import DataSettings
from wardround.common.tasks.health import Scored
from wardround.common.tasks.sums import Sums
from wardround.common.tasks.targets import Target, TargetColumns, TargetTable

if TYPE_CHECKING:
    from torch import Tensor

Interval = tuple[float, float]
"""Lower and upper bound, with 95 % confidence."""


@dataclass(frozen=True)
class BatchSums:
    """Sums over one batch, still on the device of the model."""

    loss_sum: Tensor
    """(), fp32."""
    arrays: Mapping[str, Tensor]
    """Integer arrays by name, as in `Sums`."""
    score: Tensor
    """(), fp32: the score of this batch alone."""


class Task(Hashable, Protocol):
    """What is learned from a text. Logits are (B, ...) fp32, targets are tensors of B texts.

    `B` is the number of texts in a batch, `N` the number of texts in a data set.
    """

    name: str
    """Key of its row in `TASKS`."""
    peft_type: str
    """`task_type` in the `adapter_config.json` that peft reads."""
    pipeline: str
    """Name of the task for pipelines of transformers, and on a model card."""
    metric_words: Mapping[str, str]
    """Names of the metrics, each with the words for people."""
    score: str
    """The metric that chooses the best model, one of `metric_words`."""
    higher_is_better: bool
    """False if a lower score is a better one."""
    prediction_names: tuple[str, ...]
    """Names of the facts that `describe` returns."""
    ranges: Mapping[str, tuple[float, float]]
    """Lowest and highest value of metrics and facts, by name; a value outside is damaged."""
    sum_names: tuple[str, ...]
    """Names of the arrays in `Sums`, also on the wire."""

    def model_class(self) -> Any:
        """Return the class of transformers that loads a model with a head for this task."""

    def head_options(self, label_names: Sequence[str]) -> dict[str, Any]:
        """Return the options of `from_pretrained` that shape the head."""

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of a batch, (), with its graph."""

    def residuals(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return (B,): for each text the length of the loss's gradient by the logits."""

    def mix(self, gate: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """Return the logits of a mixture of two models.

        Args:
            gate: (B, 1); its sigmoid is the weight of the first model.
            first, second: logits of the two models.
        """

    def measure(self, logits: Tensor, targets: Tensor) -> BatchSums:
        """Compare a batch of logits with its targets."""

    def sums(
        self,
        loss_sum: float,
        arrays: Mapping[str, np.ndarray],
        batch_scores: tuple[float, ...] = (),
    ) -> Sums:
        """Return the sums of an evaluation. Args: arrays: by the names in `sum_names`."""

    def read_sums(self, loss_sum: float, arrays: Mapping[str, Any]) -> Sums:
        """Return the sums that a site sent.

        Args:
            arrays: by the names in `sum_names`, each as it came: a flat list of integers, if it
                is honest.

        Raises:
            ValueError: no evaluation has such sums.
        """

    def check(self, sums: Sums, num_outputs: int) -> None:
        """Refuse sums that cannot be added to those of other sites.

        Args:
            num_outputs: outputs of the model.

        Raises:
            ValueError: says why.
        """

    def has_small_cell(self, sums: Sums, smallest: int) -> bool:
        """Return true if a count is above 0 and below `smallest`: it may tell of a single text."""

    def metrics(self, sums: Sums) -> dict[str, float]:
        """Return every metric by its name, in the order of `metric_words`."""

    def intervals(self, sums: Sums) -> dict[str, Interval]:
        """Return a confidence interval for every metric, by its name."""

    def describe_site(self, sums: Sums) -> dict[str, float]:
        """Return facts about one site's held-out texts for the record of a round."""

    def describe(self, sums: Sums) -> dict[str, Any]:
        """Return facts about the predictions for the diagnostics of a round."""

    def scored(self, round: int, facts: Mapping[str, Any]) -> Scored | None:
        """Return the numbers of a round that tell a collapse.

        None if one is missing, or if the task knows no sign of a collapse.

        Args:
            facts: loss, `num_examples` and metrics of the round's model, and those of `describe`.
        """

    def target_columns(self, settings: DataSettings) -> TargetColumns:
        """Return the columns that hold the target.

        Raises:
            ValueError: the settings of the target contradict each other.
        """

    def output_names(
        self,
        settings: DataSettings,
        parts: Mapping[str, Sequence[TargetTable]],
        site_names: Sequence[str],
        given: Sequence[str] | None,
    ) -> tuple[str, ...]:
        """Return a name for each output of the model, and check all targets.

        Args:
            parts: tables by the name of their part, `train` among them.
            site_names: names of the sites of `train`; () if there are no sites.
            given: names that the source gives; None if it gives none.

        Raises:
            ValueError: a target is missing or wrong; names its place.
        """

    def encode(self, targets: Sequence[Target], names: Sequence[str]) -> np.ndarray:
        """Return the targets for the model, (N, ...).

        Args:
            targets: those that `output_names` has checked.
            names: as `output_names` returns them.
        """

    def strata(self, targets: np.ndarray) -> np.ndarray:
        """Return a group for each text, (N,) int64. Draws and partitions go by groups."""

    def strata_by_name(self, targets: np.ndarray, names: Sequence[str]) -> np.ndarray:
        """Return `strata`, numbered so that the order of the names changes nothing.

        Held-out texts are drawn by them, because a server chooses the order of the names.
        """

    def counts(self, targets: np.ndarray, names: Sequence[str]) -> list[int] | None:
        """Return the number of texts for each name; None if names are not counted."""

    def remarks(self, targets: np.ndarray, names: Sequence[str]) -> list[str]:
        """Return remarks about training targets that are unusual, but no error."""

    def columns(self, label_names: Sequence[str]) -> list[str]:
        """Return the names of the columns that `answers` fills."""

    def answers(
        self, logits: Tensor, label_names: Sequence[str]
    ) -> Iterator[list[str | float]]:
        """Yield one row of values for each text: the prediction and its probabilities."""


def merit(task: Task, score: float) -> float:
    """Return the score, negated if a lower one is better: the higher the merit, the better."""
    return score if task.higher_is_better else -score
