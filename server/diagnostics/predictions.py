"""Statistics of a model's predictions on the test texts."""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from typing import Any

from wardround.common.tasks.sums import Sums


def describe_predictions(counts: Sums) -> dict[str, Any]:
    """Return the predictions' fields of `Diagnostics`.

    These are the share of the test predictions in each class, their entropy, and the
    share of the largest true class. The entropy is in nats: 0 if all predictions are one
    class, ln C if the C classes are predicted equally often.
    """
    num_examples = counts.num_examples
    shares = [float(share) for share in counts.confusion.sum(axis=0) / num_examples]
    largest_class = float(counts.confusion.sum(axis=1).max())
    return {
        "predicted_shares": shares,
        "prediction_entropy": entropy(shares),
        "largest_class_share": largest_class / num_examples,
    }


def entropy(shares: Sequence[float]) -> float:
    """Return -sum p ln p, in nats."""
    return sum(-share * log(share) for share in shares if share > 0)
