"""The task `label`: each text has one of several labels (single-label classification).

torch is imported inside the methods that compute with it. It takes seconds, and a site's
connection reads and checks sums without it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import inf, isqrt, log, sqrt
from typing import TYPE_CHECKING, Any

import numpy as np

from wardround.common.runtime import numpy_stream
from wardround.common.settings.data import DataSettings
from wardround.common.tasks.label_health import ScoredRound
from wardround.common.tasks.label_names import (
    alike,
    check_declared,
    find_label_names,
    label_column,
    numbered_by_name,
)
from wardround.common.tasks.sums import MOST_COUNTED, Sums
from wardround.common.tasks.targets import Target, TargetColumns, TargetTable
from wardround.common.tasks.task import BatchSums, Interval

if TYPE_CHECKING:
    from torch import Tensor

_CONFUSION = "confusion"
# 95 % of a normal distribution lie within so many deviations of the mean.
_Z = 1.959964
_DRAWS = 1000


class LabelTask:
    """One label a text.

    Logits are (B, C), targets (B,) int64 with class numbers, and the array `confusion` is (C, C)
    int64: rows are true classes, columns are predicted ones.
    """

    name = "label"
    peft_type = "SEQ_CLS"
    pipeline = "text-classification"
    metric_words: Mapping[str, str] = {"accuracy": "accuracy", "macro_f1": "macro F1"}
    score = "accuracy"
    higher_is_better = True
    prediction_names: tuple[str, ...] = (
        "predicted_shares",
        "prediction_entropy",
        "largest_class_share",
    )
    ranges: Mapping[str, tuple[float, float]] = {
        "accuracy": (0, 1),
        "macro_f1": (0, 1),
        "correct": (0, inf),
        "predicted_shares": (0, 1),
        "prediction_entropy": (0, inf),
        "largest_class_share": (0, 1),
    }
    sum_names: tuple[str, ...] = (_CONFUSION,)

    def model_class(self) -> Any:
        """Return the class of transformers for sequence classification."""
        from transformers import AutoModelForSequenceClassification

        return AutoModelForSequenceClassification

    def head_options(self, label_names: Sequence[str]) -> dict[str, Any]:
        """Return the labels, their numbers, and the kind of labels that they are."""
        return {
            "problem_type": "single_label_classification",
            "num_labels": len(label_names),
            "id2label": dict(enumerate(label_names)),
            "label2id": {name: number for number, name in enumerate(label_names)},
        }

    # --- training -----------------------------------------------------------------------

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy of a batch, ()."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(logits, targets)

    def residuals(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return |p - y| of each text, (B,): the probabilities minus the label's unit vector."""
        import torch

        residuals = logits.softmax(dim=1)
        rows = torch.arange(len(targets), device=targets.device)
        residuals[rows, targets] -= 1
        lengths: Tensor = residuals.norm(dim=1)
        return lengths

    def mix(self, gate: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """Return log(h p + (1 - h) q), (B, C), for h the sigmoid of the gate."""
        import torch
        from torch.nn.functional import log_softmax, logsigmoid

        # As a sum of exponentials: a probability too small for fp32 does not make the loss
        # infinite.
        return torch.logaddexp(
            logsigmoid(gate) + log_softmax(first, dim=1),
            logsigmoid(-gate) + log_softmax(second, dim=1),
        )

    # --- evaluation ---------------------------------------------------------------------

    def measure(self, logits: Tensor, targets: Tensor) -> BatchSums:
        """Count each pair of true and predicted class."""
        import torch
        from torch.nn.functional import cross_entropy

        predicted = logits.argmax(dim=1)
        num_classes = logits.shape[1]
        cells = torch.bincount(
            targets * num_classes + predicted, minlength=num_classes**2
        )
        return BatchSums(
            loss_sum=cross_entropy(logits, targets, reduction="sum"),
            arrays={_CONFUSION: cells.view(num_classes, num_classes)},
            score=(predicted == targets).float().mean(),
        )

    def sums(
        self,
        loss_sum: float,
        arrays: Mapping[str, np.ndarray],
        batch_scores: tuple[float, ...] = (),
    ) -> Sums:
        """Return the sums of an evaluation; the matrix counts every text once."""
        return label_sums(loss_sum, arrays[_CONFUSION], batch_scores)

    def read_sums(self, loss_sum: float, arrays: Mapping[str, Any]) -> Sums:
        """Return the sums that a site sent. Raises ValueError if they are no square of counts."""
        cells = np.array(arrays[_CONFUSION], dtype=np.int64)
        num_classes = isqrt(len(cells))
        if num_classes**2 != len(cells) or cells.min(initial=0) < 0:
            raise ValueError("held-out counts are not a square of whole numbers")
        confusion = cells.reshape(num_classes, num_classes)
        return label_sums(loss_sum, confusion)

    def check(self, sums: Sums, num_outputs: int) -> None:
        """Refuse a matrix for other labels, or one whose counts are too large.

        Raises ValueError.
        """
        confusion = _confusion(sums)
        if confusion.shape != (num_outputs, num_outputs):
            raise ValueError(
                f"its counts have {len(confusion)} labels, but the run has {num_outputs}"
            )
        if confusion.max() > MOST_COUNTED:
            raise ValueError(f"its counts cover {sums.num_examples} held-out examples")

    def has_small_cell(self, sums: Sums, smallest: int) -> bool:
        """Return true if a count of the matrix is above 0 and below `smallest`."""
        cells = _confusion(sums)
        is_small = (cells > 0) & (cells < smallest)
        return bool(is_small.any())

    def metrics(self, sums: Sums) -> dict[str, float]:
        """Return accuracy, and macro F1: the unweighted mean of the classes' F1.

        A class that is neither present nor predicted counts as 0.
        """
        return {
            "accuracy": _num_correct(sums) / sums.num_examples,
            "macro_f1": float(_macro_f1(_confusion(sums))),
        }

    def intervals(self, sums: Sums) -> dict[str, Interval]:
        """Return Wilson's interval for the accuracy, and a bootstrap interval for macro F1."""
        accuracy = _num_correct(sums) / sums.num_examples
        return {
            "accuracy": _wilson(accuracy, sums.num_examples),
            "macro_f1": _bootstrap(_confusion(sums), sums.num_examples),
        }

    def describe_site(self, sums: Sums) -> dict[str, float]:
        """Return the number of right answers, and the accuracy."""
        correct = _num_correct(sums)
        return {"correct": correct, "accuracy": correct / sums.num_examples}

    def describe(self, sums: Sums) -> dict[str, Any]:
        """Return the shares of predictions by class, their entropy, and the largest true share.

        The entropy is in nats: 0 if all predictions are one class, ln C if the C classes are
        predicted equally often.
        """
        confusion = _confusion(sums)
        predicted = confusion.sum(axis=0) / sums.num_examples  # (C,)
        shares = [float(share) for share in predicted]
        largest = float(confusion.sum(axis=1).max())
        return {
            "predicted_shares": shares,
            "prediction_entropy": entropy(shares),
            "largest_class_share": largest / sums.num_examples,
        }

    def scored(self, round: int, facts: Mapping[str, Any]) -> ScoredRound | None:
        """Return what tells a collapse: accuracy, loss, and shares of classes."""
        return ScoredRound.of(round, facts)

    # --- data ---------------------------------------------------------------------------

    def target_columns(self, settings: DataSettings) -> TargetColumns:
        """Return `data.label_column`, with the names of `data.label_map`."""
        if settings.label_names is not None:
            check_declared(settings.label_names)
        return label_column(settings.label_column, dict(settings.label_map))

    def output_names(
        self,
        settings: DataSettings,
        parts: Mapping[str, Sequence[TargetTable]],
        site_names: Sequence[str],
        given: Sequence[str] | None,
    ) -> tuple[str, ...]:
        """Return the labels, in the order of `data.label_names`, or as the source gives them."""
        names = find_label_names(
            settings.label_names, parts, site_names, settings.label_column
        )
        if settings.label_names is None and given is not None:
            return tuple(given)
        return names

    def encode(self, targets: Sequence[Target], names: Sequence[str]) -> np.ndarray:
        """Return the number of each label, (N,) int64."""
        number_of = {name: number for number, name in enumerate(names)}
        numbers = [number_of[target] for target in targets]
        return np.array(numbers, dtype=np.int64)

    def strata(self, targets: np.ndarray) -> np.ndarray:
        """Return the class numbers themselves."""
        return targets

    def strata_by_name(self, targets: np.ndarray, names: Sequence[str]) -> np.ndarray:
        """Return class numbers in the sorted order of the label names."""
        return numbered_by_name(targets, names)

    def counts(self, targets: np.ndarray, names: Sequence[str]) -> list[int] | None:
        """Return the number of texts of each label."""
        counts: list[int] = np.bincount(targets, minlength=len(names)).tolist()
        return counts

    def remarks(self, targets: np.ndarray, names: Sequence[str]) -> list[str]:
        """Return a remark if there are labels that no text has."""
        counts = np.bincount(targets, minlength=len(names))
        unseen = [name for name, count in zip(names, counts, strict=True) if not count]
        remarks = alike(names)
        if not unseen:
            return remarks
        return [
            *remarks,
            f"no example of {len(unseen)} of {len(names)} labels: {', '.join(unseen)}",
        ]

    # --- answers ------------------------------------------------------------------------

    def columns(self, label_names: Sequence[str]) -> list[str]:
        """Return `label`, then the labels."""
        return ["label", *label_names]

    def answers(
        self, logits: Tensor, label_names: Sequence[str]
    ) -> Iterator[list[str | float]]:
        """Yield the most probable label of each text, then the probability of each label."""
        for probabilities in logits.softmax(dim=1).cpu():
            label = label_names[int(probabilities.argmax())]
            yield [label, *probabilities.tolist()]


def label_sums(
    loss_sum: float, confusion: np.ndarray, batch_scores: tuple[float, ...] = ()
) -> Sums:
    """Return the sums of an evaluation. Args: confusion: (C, C) int64."""
    num_examples = int(confusion.sum())
    return Sums(num_examples, loss_sum, {_CONFUSION: confusion}, batch_scores)


def _confusion(sums: Sums) -> np.ndarray:
    return sums.arrays[_CONFUSION]


def _num_correct(sums: Sums) -> int:
    return int(np.trace(_confusion(sums)))


def _macro_f1(confusion: np.ndarray) -> np.ndarray:
    """(…, C, C) -> (…)."""
    true_positives = np.diagonal(confusion, axis1=-2, axis2=-1)
    denominator = confusion.sum(axis=-2) + confusion.sum(axis=-1)
    f1 = 2 * true_positives / np.maximum(denominator, 1)
    mean: np.ndarray = np.mean(f1, axis=-1)
    return mean


def _wilson(share: float, num_examples: int) -> Interval:
    """Wilson's score interval (1927). It stays inside [0, 1], and is right for few examples too."""
    spread = _Z * sqrt(
        share * (1 - share) / num_examples + (_Z / (2 * num_examples)) ** 2
    )
    middle = share + _Z**2 / (2 * num_examples)
    scale = 1 + _Z**2 / num_examples
    # Rounding may lead past 0 and 1.
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


def _bootstrap(confusion: np.ndarray, num_examples: int) -> Interval:
    """Percentile bootstrap of macro F1 (Efron 1979): 1,000 draws of the same size.

    The draws are the same each time.
    """
    shares = confusion.ravel() / num_examples
    generator = numpy_stream(0, "bootstrap")
    drawn = generator.multinomial(num_examples, shares, _DRAWS)
    values = _macro_f1(drawn.reshape(-1, *confusion.shape))
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def entropy(shares: Sequence[float]) -> float:
    """Return -sum p ln p, in nats."""
    return sum(-share * log(share) for share in shares if share > 0)


LABEL = LabelTask()
