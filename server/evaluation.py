"""Measure the global model on the central test set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Any

import numpy as np

from common.learning import Counts, evaluate
from common.settings import Settings
from common.tokens import Batch, TokenisedTexts
from common.workplace import Workplace

if TYPE_CHECKING:
    from torch import Tensor


class Evaluation:
    """The test set, and the model it is put through."""

    def __init__(self, settings: Settings, workplace: Workplace, test: TokenisedTexts) -> None:
        self.settings = settings
        self.workplace = workplace
        self.test = test

    def measure(self, tensors: Tensor) -> dict[str, Any]:
        """`loss`, `accuracy`, `macro_f1` and `num_examples` of the model with these weights, (P,) fp32."""
        self.workplace.load(tensors)
        counts, accuracy = MODES[self.settings.evaluation.mode](self)
        return {
            "loss": counts.loss,
            "accuracy": accuracy,
            "macro_f1": counts.macro_f1,
            "num_examples": counts.num_examples,
        }

    def count(self, indices: np.ndarray) -> Counts:
        """Evaluate the chosen test examples in this order."""
        return evaluate(self.workplace.classifier.model, self._batches(indices), self.settings.precision)

    def _batches(self, indices: np.ndarray) -> Iterator[Batch]:
        train = self.settings.train
        size = self.settings.evaluation.batch_size
        # Where padding is hidden from attention, it changes nothing but the time it takes.
        pad_to = None if train.attention_mask else train.max_length
        for start in range(0, len(indices), size):
            yield self.test.batch(
                indices[start : start + size],
                pad_to=pad_to,
                mask=train.attention_mask,
                device=self.workplace.device,
            )


def _over_test_set(evaluation: Evaluation) -> tuple[Counts, float]:
    """Share of all test examples that are right; sorted by length, so that little is padded."""
    counts = evaluation.count(np.argsort(evaluation.test.lengths, kind="stable"))
    return counts, counts.accuracy


def _over_parts(evaluation: Evaluation) -> tuple[Counts, float]:
    """The authors' code: cut the test set into K parts, and average batch accuracies in each."""
    order = np.arange(len(evaluation.test))
    parts = np.array_split(order, min(evaluation.settings.num_clients, len(order)))
    counts = [evaluation.count(part) for part in parts]
    accuracy = float(np.mean([np.mean(part.batch_accuracies) for part in counts]))
    return reduce(add, counts), accuracy


MODES: dict[str, Callable[[Evaluation], tuple[Counts, float]]] = {
    "test": _over_test_set,
    "parts": _over_parts,
}
