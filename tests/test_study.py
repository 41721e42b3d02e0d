"""The verdicts of a study, on curves whose numbers can be checked by hand."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from common.settings import Settings
from server.report.report import write_report
from server.report.result_files import SWEEP_COLUMNS, read_run, read_sweep
from studies.study import Study
from studies.study_curves import Curve, above_chance, steps_so_far
from studies.study_verdicts import Answer, gaps, judge_study
from tests.support.report_folders import compose_settings, write_run

# 40 texts: K = 1 makes 4 steps a round in batches of 10, K = 4 makes 1.
STUDY = ["experiment=collapse", "data.train_examples=40", "train.batch_size=10", "data.budget_rounds=4"]
ARMS: dict[str, list[str]] = {
    "own": ["model.head=own"],
    "distil": ["model.head=distilbert"],
    "distil_persite": ["model.head=distilbert", "train.head_init=per_site"],
    "momentum": ["model.head=distilbert", "train.head_init=per_site", "strategy.server_momentum=0.9"],
}
FAST, SLOW, STUCK = [0.2, 0.5, 0.7, 0.8, 0.9], [0.2, 0.2, 0.4, 0.6, 0.7], [0.2, 0.2, 0.2, 0.2, 0.2]


def settings_of(arm: str, num_clients: int) -> Settings:
    """One cell's settings."""
    return compose_settings(*STUDY, *ARMS[arm], f"arm={arm}", f"num_clients={num_clients}")


def write_study(folder: Path, curves: dict[tuple[str, int], Sequence[float]]) -> Path:
    """A sweep folder of finished cells. 64 of 320 test texts carry each of five labels."""
    rows = []
    for (arm, num_clients), curve in curves.items():
        settings = settings_of(arm, num_clients)
        run = write_run(folder / "cells" / settings.cell, settings, curve)
        labels = {"label_names": ["a", "b", "c", "d", "e"], "test_counts": [64] * 5}
        (run / "labels.json").write_text(json.dumps(labels))
        history = (run / "history.jsonl").read_text()
        (run / "history.jsonl").write_text(
            history.replace('"num_examples": 160', f'"num_examples": {40 // num_clients}')
        )
        rows.append(["minilm", "bbc_news", num_clients, 0, "finished", curve[-1], "", "", arm])
    with (folder / "sweep.csv").open("w", newline="") as file:
        csv.writer(file).writerows([[*SWEEP_COLUMNS, "arm"], *rows])
    return folder


def judged(folder: Path) -> dict[str, Answer]:
    """The answers of a sweep folder by their id."""
    return {answer.id: answer for answer in judge_study(Study.of(read_sweep(folder)))}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With K = 4 DistilBERT's head is slower, one per site stays at chance, momentum cures it."""
    return write_study(
        tmp_path / "study",
        {
            ("own", 1): FAST,
            ("distil", 1): FAST,
            ("distil_persite", 1): FAST,
            ("own", 4): FAST,
            ("distil", 4): SLOW,
            ("distil_persite", 4): STUCK,
            ("momentum", 4): FAST,
        },
    )


def test_chance_is_left_by_two_standard_errors() -> None:
    # sqrt(0.2 * 0.8 / 400) = 0.02, so 0.2 + 2 * 0.02
    assert above_chance(0.2, 400) == pytest.approx(0.24)


def test_head_and_head_init_are_judged_by_pairs_that_differ_in_them_alone(folder: Path) -> None:
    answers = judged(folder)
    # own leaves chance in round 1, distil in round 2; means 2.9/4 against 1.9/4.
    head = answers["a"]
    assert head.verdict == "yes"
    assert head.numbers["difference"] == pytest.approx((1.9 - 2.9) / 4)
    assert (head.numbers["later"], head.numbers["earlier"], head.numbers["pairs"]) == (1, 0, 1)
    by_k = head.numbers["by_k"]
    assert isinstance(by_k, dict)
    assert by_k["1"]["difference"] == 0
    assert by_k["4"]["left_chance"] == [[1, 2]]
    # The pair under its own head lacks its partner, so one is left; stuck is 0.2 all the way.
    init = answers["b"]
    assert init.verdict == "yes"
    assert init.numbers["difference"] == pytest.approx(0.2 - 1.9 / 4)
    assert init.numbers["by_k"]["4"]["left_chance"] == [[2, None]]  # type: ignore[index]
    assert answers["mask"].verdict == "not tested"


def test_the_other_way_round_and_no_difference(tmp_path: Path) -> None:
    other = judged(write_study(tmp_path / "a", {("own", 4): STUCK, ("distil", 4): FAST}))
    assert other["a"].verdict == "no, the other way round"
    same = judged(write_study(tmp_path / "b", {("own", 4): SLOW, ("distil", 4): SLOW}))
    assert same["a"].verdict == "no clear difference"
    baseline = judged(write_study(tmp_path / "c", {("own", 1): FAST, ("distil", 1): STUCK}))
    assert baseline["a"].verdict == "not tested"


def test_a_remedy_is_compared_with_the_same_run_without_it(folder: Path) -> None:
    answer = judged(folder)["d"]
    # Momentum: 2.9/4 - 0.2; one shared head, which stands in the grid: 1.9/4 - 0.2.
    found = answer.numbers["remedies"]
    assert isinstance(found, dict)
    assert list(found) == ["train.head_init=shared", "strategy.server_momentum=0.9"]
    gains = [entry["by_k"]["4"]["difference"] for entry in found.values()]
    assert gains == pytest.approx([1.9 / 4 - 0.2, 2.9 / 4 - 0.2])
    assert answer.verdict == "yes: train.head_init=shared and strategy.server_momentum=0.9"


def test_a_remedy_that_does_nothing_or_harm(tmp_path: Path) -> None:
    def outcome(name: str, treated: Sequence[float]) -> object:
        curves = {("distil_persite", 4): SLOW, ("momentum", 4): treated}
        answer = judged(write_study(tmp_path / name, curves))["d"]
        assert answer.verdict == "none that was tried"
        return answer.numbers["remedies"]["strategy.server_momentum=0.9"]["outcome"]  # type: ignore[index]

    assert outcome("same", SLOW) == "no clear effect"
    assert outcome("worse", STUCK) == "harms"


def curve(num_clients: int, steps_per_round: int, accuracies: Sequence[float]) -> Curve:
    """A curve of so many steps a round."""
    steps = tuple(steps_per_round * number for number in range(len(accuracies)))
    return Curve("arm", num_clients, {}, tuple(accuracies), steps, 0.2, 0.24)


def test_curves_that_are_one_line_in_steps_have_no_gap_there() -> None:
    # Accuracy = 0.2 + 0.05 x steps; K = 2 makes 1 step a round, K = 1 makes 2.
    slow = curve(2, 1, [0.2 + 0.05 * step for step in range(9)])
    fast = curve(1, 2, [0.2 + 0.05 * step for step in range(0, 14, 2)])
    found = gaps(fast, slow)
    assert found is not None
    by_rounds, by_steps = found
    # By rounds 1 to 6 they are 0.05 x round apart: 0.05 x 21 / 6.
    assert by_rounds == pytest.approx(0.05 * 21 / 6)
    assert by_steps == pytest.approx(0, abs=1e-12)


def test_too_few_steps_in_common_are_no_comparison() -> None:
    assert gaps(curve(1, 4, [0.2] * 9), curve(4, 1, [0.2] * 9)) is None  # steps 4 and 8 only


def test_the_clock(tmp_path: Path) -> None:
    line = [0.2 + 0.04 * step for step in range(17)]
    one, four = line[::4], line[:13]
    yes = judged(write_study(tmp_path / "yes", {("own", 1): one, ("own", 4): four}))["c"]
    assert yes.verdict == "yes"
    assert yes.numbers["gap_by_steps"] == pytest.approx(0, abs=1e-9)
    no = judged(write_study(tmp_path / "no", {("own", 1): one, ("own", 4): [0.2] * 13}))["c"]
    assert no.verdict == "no"
    same = judged(write_study(tmp_path / "same", {("own", 1): [0.2] * 5, ("own", 4): [0.2] * 13}))["c"]
    assert same.verdict == "nothing to explain"


def test_steps_are_told_by_the_history_or_follow_from_the_settings(tmp_path: Path) -> None:
    settings = settings_of("own", 4)
    run = read_run(write_run(tmp_path / "run", settings, FAST[:3]))
    # 160 examples in batches of 10, one epoch a round.
    assert steps_so_far(run) == (0, 16, 32)
    told = [
        replace(
            entry,
            clients=tuple(replace(client, total_steps=5 * entry.number) for client in entry.clients),
        )
        for entry in run.rounds
    ]
    assert steps_so_far(replace(run, rounds=tuple(told))) == (0, 5, 10)


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
    folder = tmp_path / "study"
    folder.mkdir()
    with (folder / "sweep.csv").open("w", newline="") as file:
        row = ["minilm", "bbc_news", 1, 0, "pending", "", "", "", "own"]
        csv.writer(file).writerows([[*SWEEP_COLUMNS, "arm"], row])
    answers = json.loads((write_report(folder).parent / "study.json").read_text())
    assert {answer["verdict"] for answer in answers} == {"not tested"}
