"""Measure the global model on the central test set."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from operator import add
from typing import TYPE_CHECKING

import numpy as np

from common.data.batches import by_length, evaluation_batches
from common.data.tokens import TokenisedTexts
from common.model.counts import Counts
from common.model.state import ModelState
from common.model.train import evaluate
from common.settings import Settings

if TYPE_CHECKING:
    from torch import Tensor


class Evaluation:
    """The test set, and the model it is put through."""

    def __init__(self, settings: Settings, model_state: ModelState, test: TokenisedTexts) -> None:
        self.settings = settings
        self.model_state = model_state
        self.test = test

    def measure(self, tensors: Tensor) -> tuple[Counts, float]:
        """Counts and accuracy of the model with these weights, (P,) fp32."""
        self.model_state.load(tensors)
        return MODES[self.settings.evaluation.mode](self)

    def count(self, indices: np.ndarray) -> Counts:
        """Evaluate the chosen test examples in this order."""
        settings, model_state = self.settings, self.model_state
        batches = evaluation_batches(
            self.test, indices, settings.train, settings.evaluation.batch_size, model_state.device
        )
        return evaluate(model_state.classifier.model, batches, settings.precision)


def _over_test_set(evaluation: Evaluation) -> tuple[Counts, float]:
    """Share of all test examples that are right."""
    counts = evaluation.count(by_length(evaluation.test, np.arange(len(evaluation.test))))
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
