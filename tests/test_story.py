"""What a report says of a run that learns, waits at chance, answers with one class, or blows up."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.pages import Page
from tests.support.report_folders import (
    digests,
    settings_with,
    told_line,
    write_report,
    write_run,
    write_table,
)
from wardround.server.report.render import tell_story
from wardround.server.report.run import load_run
from wardround.server.report.sweep import load_sweep

EVEN = (0.2, 0.2, 0.2, 0.2, 0.2)
ONE = (0.0, 0.0, 1.0, 0.0, 0.0)
# 0.2 + 2 sqrt(0.2 * 0.8 / 320) = 0.2447
CHANCE = "(chance is up to 0.245 here: the largest class's share of the test set, 0.200, and two standard errors)"
WORDS = ("num_clients=4", "train.collapse_rounds=3", "num_rounds=6")


def told_run(
    folder: Path,
    curve: Sequence[float],
    shares: Sequence[float] = EVEN,
    more: Sequence[str] = (),
    state: str = "finished",
    reason: str = "",
) -> Path:
    """A run whose history has diagnostics; every round predicts the same shares."""
    write_run(folder, settings_with(*WORDS, *more), [], state, reason)
    lines = [
        told_line(number, accuracy, shares) + "\n"
        for number, accuracy in enumerate(curve)
    ]
    (folder / "history.jsonl").write_text("".join(lines))
    return folder


def story(folder: Path) -> str:
    return tell_story(load_run(folder))


def test_learning(tmp_path: Path) -> None:
    assert story(told_run(tmp_path / "run", [0.2, 0.24, 0.5, 0.6])) == (
        "Learning: test accuracy went from 0.200 in round 0 to 0.600 in round 3. It has been above chance "
        f"since round 2 {CHANCE}."
    )


def test_at_chance_but_not_for_long(tmp_path: Path) -> None:
    told = f"At chance so far: test accuracy is 0.210 {CHANCE}."
    assert story(told_run(tmp_path / "run", [0.2, 0.2, 0.21])) == told


def test_plateau_at_chance(tmp_path: Path) -> None:
    assert story(told_run(tmp_path / "run", [0.2, 0.2, 0.22, 0.21, 0.2])) == (
        "Plateau at chance since round 1 (test accuracy 0.200 to 0.220, always answering the largest class "
        "0.200). This was flagged as a collapse in round 3."
    )


def test_plateau_that_ended(tmp_path: Path) -> None:
    assert story(told_run(tmp_path / "run", [0.2, 0.2, 0.2, 0.2, 0.5, 0.7])) == (
        "Learning: test accuracy went from 0.200 in round 0 to 0.700 in round 5. It has been above chance "
        f"since round 4 {CHANCE}. Plateau at chance in rounds 1 to 3 (test accuracy 0.200, always answering "
        "the largest class 0.200). This was flagged as a collapse in round 3; it was over in round 4."
    )


def test_single_class_names_it(tmp_path: Path) -> None:
    assert story(told_run(tmp_path / "run", [0.2] * 4, ONE)).startswith(
        "Single class since round 1 (“c”, 100% of the test predictions). Plateau at chance since round 1 "
    )


def test_diverged(tmp_path: Path) -> None:
    reason = "round 3: client 1: the training loss is nan after 5 steps: training diverged; lower it"
    told = story(
        told_run(tmp_path / "run", [0.2, 0.4, 0.5], state="failed", reason=reason)
    )
    assert told.startswith(
        "Diverged in round 3: a number was not finite any more, and the run ended."
    )
    assert "Learning" not in told


def test_before_the_first_round_there_is_nothing_to_tell(tmp_path: Path) -> None:
    assert story(told_run(tmp_path / "run", [0.2])) == ""


def test_the_page_opens_with_it_and_draws_the_diagnostics(tmp_path: Path) -> None:
    folder = told_run(tmp_path / "run", [0.2, 0.2, 0.2, 0.2])
    index = write_report(folder)
    names = {
        f"{name}.{suffix}"
        for name in ("curve", "updates", "predictions")
        for suffix in ("png", "svg")
    }
    assert {path.name for path in index.parent.iterdir()} == names | {
        "index.html",
        "summary.md",
    }
    page, summary = Page(index), (index.parent / "summary.md").read_text()
    assert page.text.index("Plateau at chance since round 1") < page.text.index(
        "MiniLM fine-tuned on"
    )
    assert "flagged as a collapse in round 3" in summary
    assert len(page.alts) == 3
    assert "share of the predictions by class (a, b, c, d, e)" in page.alts[2]
    assert "| 3 | 160 | 0.5000 | 0.25 | 0.15 | 0.900 | -0.125 | 15 | 1.5 |" in summary
    assert (
        "| 2 | 0.2000 | 0.2000 | 1.0000 | 0.5000 | 0.500 | 1.609 | 3.0 |" in summary
    )  # ln 5
    first = digests(index.parent)
    assert digests(write_report(folder).parent) == first


@pytest.mark.parametrize("num_labels", [9, 30])
def test_many_classes_are_drawn_with_the_rest_as_one(
    tmp_path: Path, num_labels: int
) -> None:
    folder = told_run(tmp_path / "run", [0.2, 0.2], [1 / num_labels] * num_labels)
    write_report(folder)
    drawn = (folder / "report/predictions.svg").read_text()
    assert f"{num_labels - 6} others" in drawn


def test_sweep_lists_flags_and_marks_what_a_collapse_ended(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    baseline = told_run(
        sweep / "cells/minilm-bbc_news-k1-s0",
        [0.2, 0.8, 0.85, 0.9, 0.9],
        more=["num_clients=1"],
    )
    assert baseline.is_dir()
    reason = (
        "train.on_collapse=stop: collapse flagged in round 3: at chance since round 1"
    )
    told_run(
        sweep / "cells/minilm-bbc_news-k4-s0",
        [0.2] * 4,
        more=["train.on_collapse=stop"],
        reason=reason,
    )
    told_run(sweep / "cells/minilm-bbc_news-k8-s0", [0.2] * 7, more=["num_clients=8"])
    write_table(
        sweep,
        [
            ("minilm", "bbc_news", 1, 0, "finished", 0.9, 0.9, 2),
            ("minilm", "bbc_news", 4, 0, "finished", "", 0.9, ""),
            ("minilm", "bbc_news", 8, 0, "finished", 0.2, 0.9, ""),
        ],
    )
    assert list(load_sweep(sweep).cells["outcome"]) == [
        "reached",
        "collapsed",
        "not reached",
    ]
    page = Page(write_report(sweep))
    flagged = "collapse flagged in round 3: at chance since round 1"
    assert f"MiniLM on BBC News with K = 4: {flagged}" in page.text
    assert f"MiniLM on BBC News with K = 8: {flagged}" in page.text
    ended = "finished without an accuracy at the budget, 3 rounds done: train.on_collapse=stop: collapse flagged"
    assert f"MiniLM on BBC News with K = 4: {ended}" in page.text
    assert flagged in (sweep / "report/summary.md").read_text()
