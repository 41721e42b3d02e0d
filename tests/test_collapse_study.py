"""The verdicts of the study of the collapse, on curves whose numbers can be checked by hand."""

from __future__ import annotations

import csv
import gzip
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from common.settings import Settings
from server.compose import compose
from server.diagnostics.collapse import chance_limit
from server.report.load import SWEEP_COLUMNS, load_run, load_sweep
from server.sweeps.plan import compose_sweep
from studies.collapse import Curve, gaps, judge
from studies.pairs import Answer, steps_so_far
from tests.support.report_folders import compose_settings, write_report, write_run

DOCS = Path(__file__).parents[1] / "docs" / "collapse"
# 40 texts: K = 1 makes 4 steps a round in batches of 10, K = 4 makes 1.
STUDY = ["experiment=collapse", "data.train_examples=40", "train.batch_size=10", "data.budget_rounds=4"]
ARMS: dict[str, list[str]] = {
    "own": ["model.head=own"],
    "distil": ["model.head=distilbert"],
    "distil_persite": ["model.head=distilbert", "train.head_init=per_site"],
    "momentum": ["model.head=distilbert", "train.head_init=per_site", "strategy.server_momentum=0.9"],
}
FAST, SLOW, STUCK = [0.2, 0.5, 0.7, 0.8, 0.9], [0.2, 0.2, 0.4, 0.6, 0.7], [0.2, 0.2, 0.2, 0.2, 0.2]
Curves = Mapping[tuple[str, int], Sequence[float]]
"""Accuracy by round, by arm and K."""


def settings_of(arm: str, num_clients: int) -> Settings:
    """One cell's settings."""
    return compose_settings(*STUDY, *ARMS[arm], f"arm={arm}", f"num_clients={num_clients}")


def write_study(folder: Path, curves: Curves) -> Path:
    """A sweep folder of finished cells. 64 of 320 test texts carry each of five labels."""
    rows = []
    for (arm, num_clients), curve in curves.items():
        settings = settings_of(arm, num_clients)
        run = write_run(folder / "cells" / settings.cell, settings, curve)
        labels = {"label_names": ["a", "b", "c", "d", "e"], "test_counts": [64] * 5}
        (run / "labels.json").write_text(json.dumps(labels))
        history = (run / "history.jsonl").read_text()
        dealt = history.replace('"num_examples": 160', f'"num_examples": {40 // num_clients}')
        (run / "history.jsonl").write_text(dealt)
        rows.append(["minilm", "bbc_news", num_clients, 0, "finished", curve[-1], "", "", arm])
    return write_arms(folder, rows)


def write_arms(folder: Path, rows: Sequence[Sequence[object]]) -> Path:
    """The table of a sweep with arms."""
    folder.mkdir(exist_ok=True)
    with (folder / "sweep.csv").open("w", newline="") as file:
        csv.writer(file).writerows([[*SWEEP_COLUMNS, "arm"], *rows])
    return folder


def judged(folder: Path) -> dict[str, Answer]:
    """The answers of a sweep folder by their id."""
    return {answer.id: answer for answer in judge(load_sweep(folder))}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With K = 4 DistilBERT's head is slower, one per site stays at chance, momentum cures it."""
    curves: Curves = {
        **{(arm, 1): FAST for arm in ("own", "distil", "distil_persite")},
        ("own", 4): FAST,
        ("distil", 4): SLOW,
        ("distil_persite", 4): STUCK,
        ("momentum", 4): FAST,
    }
    return write_study(tmp_path / "study", curves)


def test_the_real_grid_gives_the_published_numbers(tmp_path: Path) -> None:
    for cell in compose_sweep(["experiment=collapse"]).cells:
        settings = compose(cell).settings
        run = write_run(tmp_path / "cells" / settings.cell, settings, [])
        # 58 of the 250 test texts have the largest label: 0.232, as each history says.
        labels = {"label_names": ["a", "b", "c", "d", "e"], "test_counts": [58, 48, 48, 48, 48]}
        (run / "labels.json").write_text(json.dumps(labels))
        packed = DOCS / "histories" / f"{settings.arm}-k{settings.num_clients}-s{settings.seed}.jsonl.gz"
        (run / "history.jsonl").write_bytes(gzip.decompress(packed.read_bytes()))
    shutil.copy(DOCS / "sweep.csv", tmp_path)
    write_report(tmp_path)
    assert (tmp_path / "report" / "study.json").read_text() == (DOCS / "study.json").read_text()


def test_chance_is_left_by_two_standard_errors() -> None:
    # sqrt(0.2 * 0.8 / 400) = 0.02, so 0.2 + 2 * 0.02
    assert chance_limit(0.2, 400) == pytest.approx(0.24)


def test_head_and_head_init_are_judged_by_pairs_that_differ_in_them_alone(folder: Path) -> None:
    answers = judged(folder)
    # own leaves chance in round 1, distil in round 2; means 2.9/4 against 1.9/4.
    head = answers["a"]
    assert head.verdict == "yes"
    assert head.numbers["difference"] == pytest.approx((1.9 - 2.9) / 4)
    assert (head.numbers["later"], head.numbers["earlier"], head.numbers["pairs"]) == (1, 0, 1)
    assert head.numbers["by_k"]["1"]["difference"] == 0
    assert head.numbers["by_k"]["4"]["left_chance"] == [[1, 2]]
    # The pair under its own head lacks its partner, so one is left; stuck is 0.2 all the way.
    init = answers["b"]
    assert init.verdict == "yes"
    assert init.numbers["difference"] == pytest.approx(0.2 - 1.9 / 4)
    assert init.numbers["by_k"]["4"]["left_chance"] == [[2, None]]
    assert answers["mask"].verdict == "not tested"


@pytest.mark.parametrize(
    ("curves", "verdict"),
    [
        ({("own", 4): STUCK, ("distil", 4): FAST}, "no, the other way round"),
        ({("own", 4): SLOW, ("distil", 4): SLOW}, "no clear difference"),
        ({("own", 1): FAST, ("distil", 1): STUCK}, "not tested"),
    ],
)
def test_other_verdicts_on_the_head(tmp_path: Path, curves: Curves, verdict: str) -> None:
    assert judged(write_study(tmp_path, curves))["a"].verdict == verdict


def test_a_remedy_is_compared_with_the_same_run_without_it(folder: Path) -> None:
    answer = judged(folder)["d"]
    # Momentum: 2.9/4 - 0.2; one shared head, which stands in the grid: 1.9/4 - 0.2.
    found = answer.numbers["remedies"]
    assert list(found) == ["train.head_init=shared", "strategy.server_momentum=0.9"]
    gains = [entry["by_k"]["4"]["difference"] for entry in found.values()]
    assert gains == pytest.approx([1.9 / 4 - 0.2, 2.9 / 4 - 0.2])
    assert answer.verdict == "yes: train.head_init=shared and strategy.server_momentum=0.9"


@pytest.mark.parametrize(("treated", "outcome"), [(SLOW, "no clear effect"), (STUCK, "harms")])
def test_a_remedy_that_does_nothing_or_harm(tmp_path: Path, treated: list[float], outcome: str) -> None:
    answer = judged(write_study(tmp_path, {("distil_persite", 4): SLOW, ("momentum", 4): treated}))["d"]
    assert answer.verdict == "none that was tried"
    assert answer.numbers["remedies"]["strategy.server_momentum=0.9"]["outcome"] == outcome


def curve(steps_per_round: int, accuracies: Sequence[float]) -> Curve:
    """A curve of so many steps a round."""
    return Curve(accuracies, [steps_per_round * number for number in range(len(accuracies))], 0.2)


def test_curves_that_are_one_line_in_steps_have_no_gap_there() -> None:
    # Accuracy = 0.2 + 0.05 x steps; K = 2 makes 1 step a round, K = 1 makes 2.
    slow = curve(1, [0.2 + 0.05 * step for step in range(9)])
    fast = curve(2, [0.2 + 0.05 * step for step in range(0, 14, 2)])
    # By rounds 1 to 6 they are 0.05 x round apart: 0.05 x 21 / 6.
    assert gaps(fast, slow) == pytest.approx((0.05 * 21 / 6, 0), abs=1e-12)


def test_too_few_steps_in_common_are_no_comparison() -> None:
    assert gaps(curve(4, [0.2] * 9), curve(1, [0.2] * 9)) is None  # steps 4 and 8 only


LINE = [0.2 + 0.04 * step for step in range(17)]


@pytest.mark.parametrize(
    ("one", "four", "verdict"),
    [
        (LINE[::4], LINE[:13], "yes"),
        (LINE[::4], [0.2] * 13, "no"),
        ([0.2] * 5, [0.2] * 13, "nothing to explain"),
    ],
)
def test_the_clock(tmp_path: Path, one: list[float], four: list[float], verdict: str) -> None:
    clock = judged(write_study(tmp_path, {("own", 1): one, ("own", 4): four}))["c"]
    assert clock.verdict == verdict
    assert (clock.numbers["gap_by_steps"] < 1e-9) == (verdict != "no")


def test_steps_are_told_by_the_history_or_follow_from_the_settings(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path / "run", settings_of("own", 4), FAST[:3]))
    # 160 examples in batches of 10, one epoch a round.
    assert steps_so_far(run) == [0, 16, 32]
    told = [record.model_copy(deep=True) for record in run.rounds]
    for record in told:
        for client in record.clients:
            client.total_steps = 5 * record.round
    assert steps_so_far(replace(run, rounds=tuple(told))) == [0, 5, 10]


def test_the_page_has_every_question_and_every_run(folder: Path) -> None:
    report = write_report(folder).parent
    names = {f"study_{name}" for name in ("a", "b", "mask", "c", "d")}
    assert {path.name for path in report.iterdir()} == {
        *("index.html", "summary.md", "study.json"),
        *(f"{name}.{kind}" for name in names for kind in ("png", "svg")),
    }
    text = (report / "summary.md").read_text()
    assert "| distil\\_persite | MiniLM | 4 | 0 | not within 4 | 0.200 | 0.200 | finished |" in text
    assert "| own | MiniLM | 4 | 0 | 1 | 0.725 | 0.900 | finished |" in text
    assert "One seed" in text
    before = {path.name: path.read_bytes() for path in report.iterdir()}
    write_report(folder)
    assert {path.name: path.read_bytes() for path in report.iterdir()} == before


def test_a_study_that_has_not_begun_is_drawn_all_the_same(tmp_path: Path) -> None:
    write_arms(tmp_path, [["minilm", "bbc_news", 1, 0, "pending", "", "", "", "own"]])
    answers = json.loads((write_report(tmp_path).parent / "study.json").read_text())
    assert {answer["verdict"] for answer in answers} == {"not tested"}
