"""Statistics of a model's predictions on the test texts."""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from typing import Any

from wardround.common.tasks.sums import Sums


def describe_predictions(counts: Sums) -> dict[str, Any]:
    """Share of the test predictions in each class, their entropy, and the largest class's true share.

    The entropy is that of the shares, in nats: 0 where all predictions are one class, ln C where the C
    classes are predicted equally often.
    """
    predicted = counts.confusion.sum(axis=0) / counts.num_examples  # (C,)
    shares = [float(share) for share in predicted]
    return {
        "predicted_shares": shares,
        "prediction_entropy": entropy(shares),
        "largest_class_share": float(counts.confusion.sum(axis=1).max())
        / counts.num_examples,
    }


def entropy(shares: Sequence[float]) -> float:
    """-sum p ln p, in nats."""
    return sum(-share * log(share) for share in shares if share > 0)
