"""Tasks: the members of the seam, by numbers for single-label classification."""

from __future__ import annotations

import json
from math import log

import numpy as np
import pytest
import torch

from wardround.common.tasks.label import LABEL, label_sums
from wardround.common.tasks.sums import MOST_COUNTED, Sums
from wardround.common.tasks.table import TASKS, task_of

LOGITS = torch.tensor([[0.5, 0.5], [0.75, 0.25], [0.2, 0.8]]).log()
TARGETS = torch.tensor([0, 0, 0])


def test_every_task_has_its_own_name_as_key() -> None:
    assert [task.name for task in TASKS.values()] == list(TASKS)
    assert all(task.score in task.metric_words for task in TASKS.values())
    assert task_of(None) is LABEL


def test_the_loss_is_a_mean_over_texts() -> None:
    expected = -(log(0.5) + log(0.75) + log(0.2)) / 3
    assert LABEL.loss(LOGITS, TARGETS).item() == pytest.approx(expected, abs=1e-6)


def test_a_residual_is_the_distance_to_the_label() -> None:
    # (p, 1 - p) - (1, 0) has the length (1 - p) sqrt(2).
    expected = [0.5 * 2**0.5, 0.25 * 2**0.5, 0.8 * 2**0.5]
    assert LABEL.residuals(LOGITS, TARGETS).tolist() == pytest.approx(expected)


def test_a_batch_is_measured_and_batches_add_up() -> None:
    found = LABEL.measure(LOGITS, torch.tensor([0, 1, 1]))
    # The first row is a tie, which goes to class 0.
    assert found.arrays["confusion"].tolist() == [[1, 0], [1, 1]]
    assert found.score.item() == pytest.approx(2 / 3)
    arrays = {name: array.numpy() for name, array in found.arrays.items()}
    sums = LABEL.sums(found.loss_sum.item(), arrays, (found.score.item(),))
    both = sums + sums
    assert sums.num_examples == 3
    assert both.num_examples == 6
    assert both.arrays["confusion"].tolist() == [[2, 0], [2, 2]]
    assert both.batch_scores == sums.batch_scores * 2
    assert both.loss == pytest.approx(-(log(0.5) + log(0.25) + log(0.8)) / 3)


def test_validation_sums_add_up_by_themselves() -> None:
    part = label_sums(1.0, np.eye(2, dtype=np.int64))
    whole = Sums(2, 3.0, part.arrays, validation=part)
    assert len(whole.parts) == 2
    both = whole + whole
    assert both.validation is not None
    assert both.loss_sum == 6.0
    assert both.validation.loss_sum == 2.0
    with pytest.raises(AssertionError):
        whole + part


def test_sums_of_a_site_are_read_or_refused() -> None:
    read = LABEL.read_sums(2.0, {"confusion": [3, 1, 0, 4]})
    assert read.arrays["confusion"].tolist() == [[3, 1], [0, 4]]
    assert (read.num_examples, read.loss) == (8, 0.25)
    for cells in ([1, 2, 3], [1, -1, 0, 0], [[1], [2, 3]], ["many"]):
        with pytest.raises(ValueError, match=r"square|shape|invalid literal"):
            LABEL.read_sums(2.0, {"confusion": cells})


def test_sums_that_cannot_be_added_are_refused() -> None:
    good = label_sums(1.0, np.eye(3, dtype=np.int64))
    LABEL.check(good, 3)
    with pytest.raises(ValueError, match=r"3 labels.* 2"):
        LABEL.check(good, 2)
    huge = np.diag([MOST_COUNTED + 1, 0, 0])
    with pytest.raises(ValueError, match=str(MOST_COUNTED + 1)):
        LABEL.check(label_sums(1.0, huge), 3)


@pytest.mark.parametrize(("smallest", "expected"), [(1, False), (3, False), (4, True)])
def test_a_small_cell_is_above_zero_and_below_the_limit(
    smallest: int, expected: bool
) -> None:
    sums = label_sums(1.0, np.array([[5, 0], [3, 9]]))
    assert LABEL.has_small_cell(sums, smallest) is expected


def test_metrics_and_intervals_have_the_names_that_people_read() -> None:
    sums = label_sums(1.0, np.array([[4, 1], [1, 4]]))
    metrics = LABEL.metrics(sums)
    intervals = LABEL.intervals(sums)
    assert list(metrics) == list(intervals) == list(LABEL.metric_words)
    assert metrics == pytest.approx({"accuracy": 0.8, "macro_f1": 0.8})
    site = LABEL.describe_site(sums)
    assert site == pytest.approx({"correct": 8, "accuracy": 0.8})
    for name, (low, high) in intervals.items():
        assert low <= metrics[name] <= high


def test_an_answer_is_a_label_and_its_probabilities() -> None:
    names = ("health", "money")
    assert LABEL.columns(names) == ["label", "health", "money"]
    first, second, third = LABEL.answers(LOGITS, names)
    assert (first[0], second[0], third[0]) == ("health", "health", "money")
    assert third[1:] == pytest.approx([0.2, 0.8])
    json.dumps(third)  # plain values


def test_the_head_has_an_output_for_every_label() -> None:
    assert LABEL.head_options(("a", "b")) == {
        "problem_type": "single_label_classification",
        "num_labels": 2,
        "id2label": {0: "a", 1: "b"},
        "label2id": {"a": 0, "b": 1},
    }
    assert LABEL.model_class().__name__ == "AutoModelForSequenceClassification"
    assert LABEL.strata(np.array([2, 0])).tolist() == [2, 0]
