"""A second task: a number for each text, learned by mean squared error.

It shows that a row of the table is all that a new task needs, as far as that is true.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from math import inf
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from tests.support.tiny import Make
from wardround.common.data.corpus import forget_corpora, open_corpus
from wardround.common.personal_record import PersonalRecord
from wardround.common.settings.data import DataSettings
from wardround.common.tasks import table
from wardround.common.tasks.health import Scored
from wardround.common.tasks.sums import Sums
from wardround.common.tasks.targets import Target, TargetColumns, TargetTable
from wardround.common.tasks.task import BatchSums, Interval, Task
from wardround.server.deployment.status import read_status
from wardround.server.engines.simulate import simulate
from wardround.server.record import best_of
from wardround.server.report.run import load_run
from wardround.server.run_folder import RunFolder

NUM_TEXTS = 40


class ScoreTask:
    """A number for each text. Logits are (B, 1), targets (B,) float32."""

    name = "score"
    peft_type = "SEQ_CLS"
    pipeline = "text-classification"
    metric_words: Mapping[str, str] = {"mse": "mean squared error"}
    score = "mse"
    higher_is_better = False
    prediction_names: tuple[str, ...] = ()
    ranges: Mapping[str, tuple[float, float]] = {"mse": (0, inf)}
    # The number of texts. A record of the wire has only names of tasks that were in the table
    # when it was imported, so that this one takes the name of another array.
    sum_names: tuple[str, ...] = ("confusion",)

    def model_class(self) -> Any:
        return AutoModelForSequenceClassification

    def head_options(self, label_names: Sequence[str]) -> dict[str, Any]:
        return {"num_labels": 1, "id2label": {0: "score"}, "label2id": {"score": 0}}

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return (logits[:, 0] - targets).square().mean()

    def residuals(self, logits: Tensor, targets: Tensor) -> Tensor:
        return 2 * (logits[:, 0] - targets).abs()

    def mix(self, gate: Tensor, first: Tensor, second: Tensor) -> Tensor:
        weight = gate.sigmoid()
        return weight * first + (1 - weight) * second

    def measure(self, logits: Tensor, targets: Tensor) -> BatchSums:
        squares = (logits[:, 0] - targets).square()
        count = torch.tensor([len(targets)], device=targets.device)
        return BatchSums(squares.sum(), {"confusion": count}, squares.mean())

    def sums(
        self,
        loss_sum: float,
        arrays: Mapping[str, np.ndarray],
        batch_scores: tuple[float, ...] = (),
    ) -> Sums:
        return Sums(int(arrays["confusion"][0]), loss_sum, arrays, batch_scores)

    def read_sums(self, loss_sum: float, arrays: Mapping[str, Any]) -> Sums:
        return self.sums(loss_sum, {"confusion": np.array(arrays["confusion"])})

    def check(self, sums: Sums, num_outputs: int) -> None:
        if num_outputs != 1:
            raise ValueError(f"the model has {num_outputs} outputs")

    def has_small_cell(self, sums: Sums, smallest: int) -> bool:
        return sums.num_examples < smallest

    def metrics(self, sums: Sums) -> dict[str, float]:
        return {"mse": sums.loss}

    def intervals(self, sums: Sums) -> dict[str, Interval]:
        return {"mse": (0.0, 2 * sums.loss)}

    def describe_site(self, sums: Sums) -> dict[str, float]:
        return self.metrics(sums)

    def describe(self, sums: Sums) -> dict[str, Any]:
        return {}

    def scored(self, round: int, facts: Mapping[str, Any]) -> Scored | None:
        return None

    def target_columns(self, settings: DataSettings) -> TargetColumns:
        return TargetColumns("data.label_column", (settings.label_column,), _number)

    def output_names(
        self,
        settings: DataSettings,
        parts: Mapping[str, Sequence[TargetTable]],
        site_names: Sequence[str],
        given: Sequence[str] | None,
    ) -> tuple[str, ...]:
        for tables in parts.values():
            for found in tables:
                if None in found.targets:
                    row = found.targets.index(None)
                    raise ValueError(f"no number in {found.place(row)}. Add it.")
        return ("score",)

    def encode(self, targets: Sequence[Target], names: Sequence[str]) -> np.ndarray:
        return np.array(targets, dtype=np.float32)

    def strata(self, targets: np.ndarray) -> np.ndarray:
        return np.zeros(len(targets), dtype=np.int64)

    def strata_by_name(self, targets: np.ndarray, names: Sequence[str]) -> np.ndarray:
        return self.strata(targets)

    def counts(self, targets: np.ndarray, names: Sequence[str]) -> list[int] | None:
        return None

    def remarks(self, targets: np.ndarray, names: Sequence[str]) -> list[str]:
        return []

    def columns(self, label_names: Sequence[str]) -> list[str]:
        return ["score"]

    def answers(
        self, logits: Tensor, label_names: Sequence[str]
    ) -> Iterator[list[str | float]]:
        for (value,) in logits.tolist():
            yield [value]


def _number(values: Mapping[str, Any], place: str) -> float | None:
    ((column, value),) = values.items()
    if value in (None, ""):
        return None
    try:
        return float(value)
    except ValueError:
        raise ValueError(
            f"{place}: column '{column}' holds no number. Correct it."
        ) from None


SCORE = ScoreTask()


@pytest.fixture
def score_run(
    make_settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Any]:
    """Make settings of a run whose task is `score`."""
    rows = cast(dict[str, Task], table.TASKS)
    monkeypatch.delitem(rows, "label")
    monkeypatch.setitem(rows, "score", SCORE)
    draw = random.Random(0)
    lines = ["body,pain"]
    lines += [f"text {number},{draw.uniform(0, 10):.2f}" for number in range(NUM_TEXTS)]
    file = tmp_path / "scores.csv"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def make(*more: str) -> Any:
        return make_settings(
            f"data.path={file}",
            "data.test_path=null",
            "data.text_columns=[body]",
            "data.label_column=pain",
            "data.label_names=null",
            "data.test_fraction=0.5",
            "num_clients=2",
            "num_rounds=2",
            "train.learning_rate=0.01",
            *more,
        )

    forget_corpora()
    yield make
    forget_corpora()


def test_targets_are_numbers(score_run: Any) -> None:
    corpus = open_corpus(score_run())
    assert corpus.train.targets.dtype == np.float32
    assert len(corpus.train) + len(corpus.test) == NUM_TEXTS
    assert corpus.label_names == ("score",)


@pytest.mark.parametrize("where", ["server", "sites"])
def test_a_run_learns_numbers(score_run: Any, where: str) -> None:
    settings = score_run(
        f"evaluation.where={where}", "evaluation.validation_fraction=0.5"
    )
    simulate(settings)
    folder = RunFolder(Path(settings.run_dir))
    lines = [json.loads(line) for line in folder.history_lines()]
    assert [list(line["test"]) for line in lines] == [
        ["loss", "mse", "num_examples"]
    ] * 3
    assert all(line["test"]["mse"] == line["test"]["loss"] for line in lines)
    assert "predicted_shares" not in lines[0]["diagnostics"]
    # A lower error is a better one.
    best = best_of(folder.history(), SCORE)
    assert best is not None
    errors = [line["validation"]["mse"] for line in lines]
    assert best.round == errors.index(min(errors))
    assert folder.labels().label_names == ("score",)
    assert folder.labels().test_counts is None
    status = read_status(folder, None)
    assert status.collapses == ()
    assert "mean squared error" in status.to_text()
    assert "accuracy" not in status.to_text()
    found = load_run(folder.path).table
    assert found["mse"].notna().all()
    card = (folder.path / "model" / "README.md").read_text(encoding="utf-8")
    assert "test mean squared error" in card


def test_personal_models_are_chosen_by_the_lowest_error(score_run: Any) -> None:
    settings = score_run(
        "evaluation.where=sites",
        "evaluation.validation_fraction=0.5",
        "personalisation=all",
        "personalisation.epochs=1",
    )
    simulate(settings)
    folder = RunFolder(Path(settings.run_dir))
    record = PersonalRecord.read(folder.path)
    assert record is not None
    for site in record.sites:
        found = {
            method: candidate.validation_accuracy
            for method, candidate in site.candidates.items()
        }
        assert found[site.chosen] == min(found.values())
    errors = [site.candidates[site.chosen].test.metric("mse") for site in record.sites]
    worst = record.worst(SCORE)
    assert worst.candidates[worst.chosen].test.metric("mse") == max(errors)
    text = read_status(folder, None).to_text()
    assert "personal models, mean squared error" in text
    assert f"worst off: {worst.name}" in text


def test_a_run_stops_at_a_low_error(score_run: Any) -> None:
    settings = score_run("evaluation.target_accuracy=1", "num_rounds=1")
    simulate(settings)
    status = RunFolder(Path(settings.run_dir)).status()
    assert "reached the target" not in status["reason"]


def test_a_cell_without_a_number_is_named(score_run: Any, tmp_path: Path) -> None:
    settings = score_run()
    with (tmp_path / "scores.csv").open("a", encoding="utf-8") as file:
        file.write("one more,much\n")
    with pytest.raises(ValueError, match=r"line 42: column 'pain'"):
        open_corpus(settings)
