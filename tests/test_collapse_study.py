"""The verdicts of the study of the collapse, on rounds that can be checked by hand."""

from __future__ import annotations

import csv
import gzip
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from studies.collapse import judge, reaching_curves
from studies.pairs import StudyAnswer, steps_so_far
from tests.support.report_folders import write_report, write_run
from wardround.server.compose import compose
from wardround.server.report.run import load_run
from wardround.server.report.sweep import load_sweep
from wardround.server.run_folder import SWEEP_COLUMNS
from wardround.server.sweeps.plan import compose_sweep

DOCS = Path(__file__).parents[1] / "docs" / "collapse"
LIMIT = 60
CELLS = {
    (settings.arm, settings.num_clients, settings.seed): settings
    for settings in (
        compose(cell).settings for cell in compose_sweep(["experiment=collapse"]).cells
    )
}
Rounds = Mapping[tuple[str, int], Sequence[int | None]]
"""For each seed, by arm and K: the round that reached the target; None if no round did."""


def write_study(folder: Path, rounds: Rounds) -> Path:
    """Write a sweep of runs that ended at their target, or after the last round."""
    rows = []
    for (arm, num_clients), by_seed in rounds.items():
        for seed, reached in enumerate(by_seed):
            settings = CELLS[arm, num_clients, seed]
            curve = [0.2] * (LIMIT + 1) if reached is None else [*[0.2] * reached, 0.9]
            run = write_run(folder / "cells" / settings.cell, settings, curve)
            history = run / "history.jsonl"
            num_examples = f'"num_examples": {640 // num_clients}'
            text = history.read_text().replace('"num_examples": 160', num_examples)
            history.write_text(text)
            labels = {"label_names": ["a", "b", "c", "d", "e"], "test_counts": [64] * 5}
            (run / "labels.json").write_text(json.dumps(labels))
            axes = [settings.model.short_name, "bbc_news", num_clients, seed]
            rows.append([*axes, "finished", "", "", "", arm])
    return write_arms(folder, rows)


def write_arms(folder: Path, rows: Sequence[Sequence[object]]) -> Path:
    """Write the table of a sweep with arms."""
    with (folder / "sweep.csv").open("w", newline="") as file:
        csv.writer(file).writerows([[*SWEEP_COLUMNS, "arm"], *rows])
    return folder


def judged(folder: Path) -> dict[str, StudyAnswer]:
    return {answer.id: answer for answer in judge(load_sweep(folder))}


def test_the_real_grid_gives_the_published_numbers(tmp_path: Path) -> None:
    for packed in (DOCS / "histories").glob("*.jsonl.gz"):
        arm, k, s = packed.name.removesuffix(".jsonl.gz").rsplit("-", 2)
        num_clients, seed = int(k.removeprefix("k")), int(s.removeprefix("s"))
        settings = CELLS[arm, num_clients, seed]
        run = write_run(tmp_path / "cells" / settings.cell, settings, [])
        (run / "history.jsonl").write_bytes(gzip.decompress(packed.read_bytes()))
    shutil.copy(DOCS / "sweep.csv", tmp_path)
    write_report(tmp_path)
    published = (DOCS / "study.json").read_text()
    assert (tmp_path / "report" / "study.json").read_text() == published


def test_rounds_are_compared_as_ratios_seed_by_seed(tmp_path: Path) -> None:
    study: Rounds = {("own_persite", 8): [4, 5, 6], ("distil_persite", 8): [8, 10, 12]}
    head = judged(write_study(tmp_path, study))["head"]
    assert head.verdict == "yes"
    assert head.numbers["factor"] == pytest.approx(2.0)
    assert head.numbers["interval"] == pytest.approx([2.0, 2.0])
    assert head.numbers["by_k"]["8"]["never"] == [0, 0]


@pytest.mark.parametrize(
    ("other", "verdict"),
    [
        ([20, 20, 20], "yes"),
        ([5, 5, 5], "no, the other way round"),
        ([11, 11, 11], "no clear difference"),  # certain, but less than a quarter
        ([40, 5, 10], "no clear difference"),  # 4, 0.5 and 1 times as many
        ([None, None, None], "yes"),  # at least 61 instead of 10
        ([20], "one seed, no verdict"),
    ],
)
def test_a_verdict_needs_a_factor_and_an_interval(
    other: list[int | None], verdict: str, tmp_path: Path
) -> None:
    study: Rounds = {
        ("distil_shared", 16): [10] * len(other),
        ("distil_persite", 16): other,
    }
    answers = judged(write_study(tmp_path, study))
    assert answers["sites_distil"].verdict == verdict
    # One shared head is a remedy too, for which the same runs give the inverse.
    remedy = answers["remedies"].numbers["remedies"]["train.head_init=shared"]
    factor = answers["sites_distil"].numbers["factor"]
    assert remedy["factor"] == pytest.approx(1 / factor)


def test_runs_without_the_target_are_counted_and_have_no_round(tmp_path: Path) -> None:
    study: Rounds = {
        ("own_shared", 2): [61 - 1, None, 60],
        ("own_persite", 2): [None, None, None],
    }
    answer = judged(write_study(tmp_path, study))["sites_own"]
    assert answer.numbers["never"] == [1, 3]
    # Two seeds have the factor 61/60. The seed without the target in both arms has none.
    assert answer.numbers["factor"] == pytest.approx((61 / 60) ** (2 / 3))


def test_an_unfinished_run_does_not_count(tmp_path: Path) -> None:
    study: Rounds = {("own_shared", 2): [3, 3, 3], ("own_persite", 2): [3, 3, None]}
    write_study(tmp_path, study)
    (run,) = (tmp_path / "cells").glob("*own_persite-k2-s2")
    lines = (run / "history.jsonl").read_text().splitlines(keepends=True)
    (run / "history.jsonl").write_text("".join(lines[:40]))
    curves = reaching_curves(load_sweep(tmp_path))
    assert len(curves) == 5
    assert judged(tmp_path)["sites_own"].numbers["pairs"] == 2


def test_a_k_that_some_seeds_lack_is_shown_and_not_judged(tmp_path: Path) -> None:
    study: Rounds = {
        ("distil_shared", 8): [5, 5, 5],
        ("distil_persite", 8): [10, 10, 10],
        ("distil_shared", 16): [9],
        ("distil_persite", 16): [54],
    }
    answer = judged(write_study(tmp_path, study))["sites_distil"]
    assert answer.numbers["factor"] == pytest.approx(2.0)
    assert (answer.verdict, answer.numbers["pairs"]) == ("yes", 3)
    assert answer.numbers["by_k"]["16"]["factor"] == pytest.approx(6.0)
    cure = judged(tmp_path)["remedies"].numbers["remedies"]["train.head_init=shared"]
    assert (cure["num_clients"], cure["factor"]) == (8, pytest.approx(0.5))


def test_poolers_and_lengths_have_their_own_pairs(tmp_path: Path) -> None:
    study: Rounds = {
        ("distil_shared", 8): [10, 11, 12],
        ("distil_shrunk", 8): [30, 33, 36],
        ("distil_persite", 8): [30, 33, 36],
        ("trained_shared", 8): [5, 6, 6],
        ("shuffled_shared", 8): [20, 24, 24],
    }
    answers = judged(write_study(tmp_path, study))
    factors = {id: answer.numbers.get("factor") for id, answer in answers.items()}
    assert factors["length"] == pytest.approx(3.0)
    assert factors["rest"] == pytest.approx(1.0)
    assert factors["learned"] == pytest.approx(4.0)
    assert factors["trained"] == pytest.approx(2.0, rel=0.05)
    # Each is paired with distil_shared.
    assert answers["trained"].numbers["pairs"] == 3
    assert answers["head"].verdict == "not tested"


@pytest.mark.parametrize(
    ("rounds", "factor", "verdict"),
    [
        ([20, 20, 20], 1.0, "yes, as far as can be told"),
        ([40, 40, 40], 2.0, "no, not for own_shared"),
        ([40], 2.0, "no verdict: an arm has one seed only"),
    ],
)
def test_the_clock_counts_steps(
    rounds: list[int], factor: float, verdict: str, tmp_path: Path
) -> None:
    # Clients make two passes over their part of 640 texts in batches of 32.
    # K = 2: 10 batches a pass, 20 steps a round, 80 steps in 4 rounds.
    # K = 16: 40 texts, 2 batches a pass, 4 steps a round, 80 steps in 20 rounds.
    study: Rounds = {("own_shared", 2): [4, 4, 4], ("own_shared", 16): rounds}
    clock = judged(write_study(tmp_path, study))["clock"]
    assert clock.numbers["by_arm"]["own_shared"]["factor"] == pytest.approx(factor)
    assert clock.verdict == verdict


def test_the_page_answers_with_two_pictures(tmp_path: Path) -> None:
    study: Rounds = {
        ("own_persite", 8): [4, 5, 6],
        ("distil_persite", 8): [8, None, 12],
    }
    write_study(tmp_path, study)
    write_report(tmp_path)
    answers = json.loads((tmp_path / "report" / "study.json").read_text())
    assert [entry["id"] for entry in answers][-2:] == ["clock", "remedies"]
    page = (tmp_path / "report" / "index.html").read_text()
    assert "Rounds to the target" in page
    for name in ("study_rounds", "study_why"):
        assert (tmp_path / "report" / f"{name}.png").exists()


def test_steps_are_in_the_history_or_follow_from_the_settings(tmp_path: Path) -> None:
    settings = CELLS["own_shared", 2, 0]
    run = load_run(write_run(tmp_path / "run", settings, [0.2, 0.5, 0.7]))
    # 160 examples in batches of 32, two epochs a round.
    assert steps_so_far(run) == [0, 10, 20]
    rounds = [record.model_copy(deep=True) for record in run.rounds]
    for record in rounds:
        for client in record.clients:
            client.total_steps = 5 * record.round
    assert steps_so_far(replace(run, rounds=tuple(rounds))) == [0, 5, 10]


def test_a_study_that_has_not_begun_has_a_page(tmp_path: Path) -> None:
    row = ["minilm", "bbc_news", 1, 0, "pending", "", "", "", "own_shared"]
    write_arms(tmp_path, [row])
    answers = json.loads((write_report(tmp_path).parent / "study.json").read_text())
    assert {answer["verdict"] for answer in answers} == {"not tested"}
