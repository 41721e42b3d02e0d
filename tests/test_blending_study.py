"""The verdict on blending units, on curves whose numbers can be checked by hand."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from itertools import product
from pathlib import Path

import pytest

from studies.blending import judge
from studies.pairs import interval
from tests.support.report_folders import compose_settings, write_report, write_run
from wardround.server.report.sweep import load_sweep
from wardround.server.run_folder import SWEEP_COLUMNS

ARMS = {
    "own": ["model.activation=own"],
    "abu": ["model.activation=abu"],
    "abu_softmax": ["model.activation=abu", "model.abu_normalisation=softmax"],
}
LOW = 0.5
"""Accuracy of the model's own activation in both rounds."""


def write_study(folder: Path, gains: Mapping[str, list[float]]) -> Path:
    """Write a sweep of K = 1 and 4. `gains` by arm and seed hold for each round and K."""
    rows = []
    num_seeds = max(map(len, gains.values()))
    for arm, by_seed in {"own": [0.0] * num_seeds, **gains}.items():
        for (seed, gain), num_clients in product(enumerate(by_seed), (1, 4)):
            words = (
                f"arm={arm}",
                f"num_clients={num_clients}",
                f"seed={seed}",
                "data.budget_rounds=2",
            )
            settings = compose_settings("experiment=blending", *ARMS[arm], *words)
            # At K = 1 blends lose, which does not count for the verdict.
            shown = LOW + (gain if num_clients > 1 or arm == "own" else -0.2)
            cell = folder / "cells" / settings.cell
            run = write_run(cell, settings, [0.2, shown, shown])
            labels = {"label_names": ["a", "b", "c", "d", "e"], "test_counts": [64] * 5}
            (run / "labels.json").write_text(json.dumps(labels))
            axes = ["minilm", "bbc_news", num_clients, seed]
            rows.append([*axes, "finished", shown, "", "", arm])
    with (folder / "sweep.csv").open("w", newline="") as file:
        csv.writer(file).writerows([[*SWEEP_COLUMNS, "arm"], *rows])
    return folder


@pytest.mark.parametrize(
    ("by_seed", "verdict"),
    [
        ([0.10, 0.12, 0.11], "yes"),
        ([-0.10, -0.12, -0.11], "no, it harms"),
        # certain, but too small to count
        ([0.01, 0.02, 0.015], "no clear difference"),
        # large, but not certain
        ([0.30, -0.10, 0.10], "no clear difference"),
        ([0.30], "one seed, no verdict"),
    ],
)
def test_a_blend_is_judged_by_the_interval_over_seeds(
    by_seed: list[float], verdict: str, tmp_path: Path
) -> None:
    (answer,) = judge(load_sweep(write_study(tmp_path, {"abu": by_seed})))
    assert (answer.id, answer.verdict) == ("abu", verdict)
    assert answer.numbers["gain"]["mean"] == pytest.approx(sum(by_seed) / len(by_seed))
    assert answer.numbers["by_k"]["1"]["mean"] == pytest.approx(-0.2)


def test_an_interval_is_the_one_of_student() -> None:
    # The mean is 2, the standard error 1 / sqrt(3).
    # The 97.5 % quantile of t with 2 degrees of freedom is 4.303.
    half = 4.303 / 3**0.5
    assert interval([1.0, 2.0, 3.0]) == pytest.approx((2 - half, 2 + half))
    assert interval([1.0]) is None


def test_the_page_of_a_sweep_with_blends_is_about_them(tmp_path: Path) -> None:
    write_study(
        tmp_path, {"abu": [0.10, 0.12, 0.11], "abu_softmax": [-0.10, -0.12, -0.11]}
    )
    write_report(tmp_path)
    answers = json.loads((tmp_path / "report" / "study.json").read_text())
    assert [(entry["id"], entry["verdict"]) for entry in answers] == [
        ("abu", "yes"),
        ("abu_softmax", "no, it harms"),
    ]
    page = (tmp_path / "report" / "index.html").read_text()
    assert "abu_softmax" in page
    assert (tmp_path / "report" / "study_blending.png").exists()
