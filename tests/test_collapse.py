"""The rules that detect a collapse, on histories made by hand and in a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import log
from pathlib import Path

import pytest

from tests.support.runs import history
from tests.support.tiny import Make
from wardround.common.settings.tree import Settings
from wardround.common.tasks.label import LABEL
from wardround.common.tasks.label_health import CONDITIONS, ScoredRound
from wardround.server.diagnostics.collapse import (
    Collapse,
    Episode,
    find_collapses,
    scored_rounds,
    standing_collapse,
)
from wardround.server.engines.simulate import simulate
from wardround.server.record import RoundRecord
from wardround.server.run_folder import RunFolder
from wardround.server.sweeps.run import sweep

EVEN = (0.25, 0.25, 0.25, 0.25)
FIRST = (0.97, 0.03, 0.0, 0.0)
SECOND = (0.03, 0.97, 0.0, 0.0)
LABELS = ("sport", "money", "health", "art")
LEARNED = 0.8


def scored(
    round: int,
    accuracy: float = LEARNED,
    shares: tuple[float, ...] = EVEN,
    loss: float = 1.0,
    largest: float = 0.25,
) -> ScoredRound:
    """Return a round on 100 examples of 4 classes.

    The limit of chance is 0.25 + 2 sqrt(0.25 * 0.75 / 100) = 0.3366.
    """
    return ScoredRound(round, accuracy, loss, 100, shares, largest)


def rounds(*accuracies: float) -> list[ScoredRound]:
    """Return rounds 0, 1 … with these accuracies and predictions in all classes."""
    return [scored(round, accuracy) for round, accuracy in enumerate(accuracies)]


def flags(
    scores: Sequence[ScoredRound], num_rounds: int = 3
) -> list[tuple[int, str, int, int, bool]]:
    """Return (round, kind, first, last, is_up) of each flag."""
    found = find_collapses(scores, num_rounds)
    return [
        (flag.round, flag.episodes[0].kind, flag.first, flag.last, flag.is_up)
        for flag in found
    ]


def test_enough_rounds_at_chance_are_flagged() -> None:
    assert flags(rounds(0.2, 0.25, 0.3, 0.25)) == [(3, "at chance", 1, 3, True)]
    assert flags(rounds(0.2, 0.25, 0.3, 0.25, 0.2)) == [(3, "at chance", 1, 4, True)]
    assert flags(rounds(0.2, 0.25, 0.3, 0.25), num_rounds=4) == []


def test_the_initial_model_does_not_count() -> None:
    assert flags(rounds(0.25, 0.25, 0.25)) == []
    assert flags(rounds(0.25)) == []
    assert flags([]) == []


def test_two_standard_errors_above_the_largest_class_is_not_chance() -> None:
    assert scored(1).chance_limit == pytest.approx(0.3366, abs=5e-5)
    assert flags(rounds(0, 0.336, 0.336, 0.336)) == [(3, "at chance", 1, 3, True)]
    assert flags(rounds(0, 0.336, 0.337, 0.336)) == []
    # If one class is 60 % of the test set, the limit is 0.6 + 2 sqrt(0.24 / 100) = 0.698.
    assert flags([scored(r, 0.65, largest=0.6) for r in (1, 2, 3)]) == [
        (3, "at chance", 1, 3, True)
    ]


def test_a_plateau_that_ends_is_over_and_another_is_flagged_again() -> None:
    scores = rounds(0.2, 0.2, 0.2, 0.2, 0.2, 0.5, 0.2, 0.2, 0.2)
    assert flags(scores) == [
        (3, "at chance", 1, 4, False),
        (8, "at chance", 6, 8, True),
    ]
    (over, up) = find_collapses(scores, 3)
    assert "round 3: at chance in rounds 1 to 4" in over.words(LABELS)
    assert over.words(LABELS).endswith("over since round 5")
    assert "round 8: at chance since round 6" in up.words(LABELS)
    assert "over since" not in up.words(LABELS)


def test_a_single_class_is_named_by_its_label() -> None:
    scores = [scored(r, accuracy=0.25, shares=SECOND) for r in (1, 2, 3)]
    # The rounds are also at chance: there is one flag, with the clearer reason.
    (flag,) = find_collapses(scores, 3)
    episodes = (
        Episode("single class", CONDITIONS["single class"], 1, 1, 3),
        Episode("at chance", CONDITIONS["at chance"], 0, 1, 3),
    )
    assert flag == Collapse(3, episodes, is_up=True)
    words = flag.words(LABELS)
    assert "round 3: single class since round 1" in words
    assert "95%" in words
    assert "'money'" in words
    assert "at chance" not in words
    assert "'class 1'" not in words
    assert "'class 1'" in flag.words(())


def test_a_single_class_needs_95_percent_of_the_predictions_each_round() -> None:
    def single(
        *shares: tuple[float, ...], largest: float = 0.25
    ) -> list[tuple[int, str, int, int, bool]]:
        rounds = enumerate(shares, start=1)
        return flags([scored(r, 1.0, s, largest=largest) for r, s in rounds])

    below = (0.94, 0.06, 0.0, 0.0)
    assert single(FIRST, FIRST, FIRST) == [(3, "single class", 1, 3, True)]
    assert single(FIRST, below, FIRST) == []
    assert single(FIRST, SECOND, FIRST) == []
    # Almost the whole test set is one class.
    assert single(FIRST, FIRST, FIRST, largest=0.96) == []


def test_there_is_one_flag_while_the_single_class_changes() -> None:
    scores = [scored(r, 0.25, FIRST if r <= 4 else SECOND) for r in range(1, 9)]
    (flag,) = find_collapses(scores, 3)
    assert (flag.round, flag.first, flag.last, flag.is_up) == (3, 1, 8, True)
    words = flag.words(LABELS)
    assert "single class in rounds 1 to 4" in words
    assert "at chance since round 1" in words


def test_a_very_large_loss_has_diverged() -> None:
    # The limit is ten times ln 4 = 13.86.
    above = [scored(r, loss=14.0) for r in (1, 2, 3)]
    assert flags(above) == [(3, "diverged", 1, 3, True)]
    below = [scored(r, loss=10 * log(4) - 0.01) for r in (1, 2, 3)]
    assert flags(below) == []


def test_lines_without_predictions_are_ignored() -> None:
    test = {"accuracy": 0.25, "loss": 1.4, "num_examples": 100}
    shares = {"predicted_shares": list(EVEN), "largest_class_share": 0.25}
    old = {"round": 1, "test": {"accuracy": 0.25}}
    waiting = {"round": 2, "test": None, "diagnostics": dict.fromkeys(shares)}
    new = [{"round": number, "test": test, "diagnostics": shares} for number in (3, 4)]
    lines = [RoundRecord.read(json.dumps(line)) for line in (old, waiting, *new)]
    assert [entry.round for entry in scored_rounds(lines, LABEL)] == [3, 4]
    assert standing_collapse(lines, LABEL, 3) is None
    found = standing_collapse(lines, LABEL, 2)
    assert found is not None
    assert found.round == 4


# With this rate the model does not move, so that it stays at chance.
STILL = ("train.learning_rate=1e-9", "train.collapse_rounds=2")


def test_a_run_prints_a_collapse_once(
    make_settings: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    simulate(make_settings(*STILL))
    printed = capsys.readouterr().err
    assert printed.count("collapse flagged in round 2: ") == 1
    assert "train.head_learning_rate=" in printed
    simulate(make_settings(*STILL, "num_rounds=4"))
    assert "collapse flagged" not in capsys.readouterr().err


def test_the_alarm_names_the_next_step(make_settings: Make) -> None:
    (flag,) = find_collapses(rounds(0.25, 0.25, 0.25), 2)
    apart = make_settings("train.head_init=per_site", "num_clients=2")
    text = flag.alarm(LABELS, apart)
    assert "train.head_init=shared" in text
    assert "train.head_learning_rate=5 (now 0.5)" in text
    one = make_settings("train.learning_rate=0.002")
    assert "train.head_learning_rate=0.02 (now 0.002)" in flag.alarm(LABELS, one)
    (over,) = find_collapses(rounds(0.25, 0.25, 0.25, LEARNED), 2)
    assert over.alarm(LABELS, apart) == over.words(LABELS)
    (diverged,) = find_collapses([scored(r, loss=100.0) for r in range(3)], 2)
    alarm = diverged.alarm(LABELS, apart)
    assert alarm.endswith("Lower train.learning_rate (now 0.5).")


@pytest.mark.parametrize(("where", "last"), [("server", 2), ("sites", 3)])
def test_on_collapse_stop_ends_the_run_and_warn_does_not(
    make_settings: Make, tmp_path: Path, where: str, last: int
) -> None:
    """Sites measure the model of round 2 in round 3, which is then complete."""
    words = (*STILL, f"evaluation.where={where}", "num_rounds=5")
    run = RunFolder(tmp_path / "run")
    for _ in range(2):  # the second time there are no further rounds
        simulate(make_settings(*words, "train.on_collapse=stop"))
        assert [line["round"] for line in history(run.path)] == list(range(last + 1))
        assert run.status()["state"] == "finished"
        reason = "train.on_collapse=stop: collapse flagged in round 2: "
        assert run.status()["reason"].startswith(reason)
    assert (run.path / "model" / "config.json").exists()
    simulate(make_settings(*words, "train.on_collapse=warn"))
    assert [line["round"] for line in history(run.path)] == [0, 1, 2, 3, 4, 5]
    assert run.status()["reason"] == "all 5 rounds are done"


def test_collapse_rounds_of_0_are_refused(make_settings: Make) -> None:
    with pytest.raises(ValueError, match=r"^train\.collapse_rounds is 0;"):
        make_settings("train.collapse_rounds=0")


@pytest.mark.long
@pytest.mark.slow
def test_a_sweep_does_not_continue_a_collapsed_cell(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The flag is in round 2: before a budget of 3 rounds, and after a budget of 1."""

    def refuse(settings: Settings) -> None:
        raise AssertionError(f"{settings.cell} was started again")

    axes = [
        text
        for text in overrides
        if text.split("=")[0] not in ("num_clients", "num_rounds", "run_dir")
    ]
    words = [
        *axes,
        *STILL,
        "num_clients=1,3",
        "data.second_threshold_rounds=4",
        "sweep.target_fraction=1.5",
    ]
    for budget, accuracies in ((3, [False, False]), (1, [True, True])):
        folder = tmp_path / f"budget{budget}"
        command = [*words, f"data.budget_rounds={budget}", f"run_dir={folder}"]
        rows = sweep([*command, "train.on_collapse=stop"]).rows
        assert [row.status for row in rows] == ["finished", "finished"]
        assert [row.accuracy_at_budget is not None for row in rows] == accuracies
        cells = sorted((folder / "cells").iterdir())
        assert [len(history(cell)) for cell in cells] == [3, 3]
        with monkeypatch.context() as patch:
            patch.setattr("wardround.server.sweeps.run.simulate", refuse)
            assert sweep([*command, "train.on_collapse=stop"]).rows == rows
        rows = sweep(command).rows  # with train.on_collapse=warn they continue
        assert [row.accuracy_at_budget is not None for row in rows] == [True, True]
        assert [len(history(cell)) for cell in cells] == [5, 5]


def test_settings_without_on_collapse_are_refused_by_its_name(
    make_settings: Make,
) -> None:
    values = make_settings().to_dict()
    del values["train"]["on_collapse"]
    with pytest.raises(ValueError, match=r"^train\.on_collapse is missing\."):
        Settings.from_dict(values)
