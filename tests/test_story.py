"""The story in a report: a run learns, stays at chance, predicts one class, or diverges."""

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
from wardround.common.errors import DIVERGED
from wardround.server.report.render import tell_story
from wardround.server.report.run import load_run
from wardround.server.report.sweep import load_sweep

EVEN = (0.2, 0.2, 0.2, 0.2, 0.2)
ONE = (0.0, 0.0, 1.0, 0.0, 0.0)
# 0.2 + 2 sqrt(0.2 * 0.8 / 320) = 0.2447
CHANCE = "0.245"
WORDS = ("num_clients=4", "train.collapse_rounds=3", "num_rounds=6")


def told_run(
    folder: Path,
    curve: Sequence[float],
    shares: Sequence[float] = EVEN,
    more: Sequence[str] = (),
    state: str = "finished",
    reason: str = "",
) -> Path:
    """A run whose history has diagnostics. The shares of predictions are the same in each round."""
    write_run(folder, settings_with(*WORDS, *more), [], state, reason)
    lines = [
        told_line(number, accuracy, shares) + "\n"
        for number, accuracy in enumerate(curve)
    ]
    (folder / "history.jsonl").write_text("".join(lines))
    return folder


def story(folder: Path) -> str:
    return tell_story(load_run(folder))


def assert_all_in(text: str, *facts: str) -> None:
    """Require all facts in the text, in this order."""
    start = 0
    for fact in facts:
        assert fact in text[start:], (fact, text)
        start = text.index(fact, start) + len(fact)


def test_a_run_that_learns_has_its_accuracies(tmp_path: Path) -> None:
    text = story(told_run(tmp_path / "run", [0.2, 0.24, 0.5, 0.6]))
    assert_all_in(text, "Learning", "0.200 in round 0", "0.600 in round 3")
    assert_all_in(text, "since round 2", CHANCE)
    assert "collapse" not in text


def test_a_short_time_at_chance_is_no_collapse(tmp_path: Path) -> None:
    text = story(told_run(tmp_path / "run", [0.2, 0.2, 0.21]))
    assert_all_in(text, "At chance", "0.210", CHANCE)
    assert "collapse" not in text


def test_a_plateau_at_chance_is_a_collapse(tmp_path: Path) -> None:
    text = story(told_run(tmp_path / "run", [0.2, 0.2, 0.22, 0.21, 0.2]))
    assert_all_in(text, "Plateau at chance since round 1", "0.200 to 0.220")
    assert_all_in(text, "collapse in round 3")
    assert "over in round" not in text


def test_a_plateau_that_has_ended_has_its_last_round(tmp_path: Path) -> None:
    text = story(told_run(tmp_path / "run", [0.2, 0.2, 0.2, 0.2, 0.5, 0.7]))
    assert_all_in(text, "Learning", "0.700 in round 5", "since round 4", CHANCE)
    assert_all_in(text, "Plateau at chance in rounds 1 to 3", "collapse in round 3")
    assert_all_in(text, "collapse in round 3", "over in round 4")


def test_a_run_that_predicts_one_class_names_it(tmp_path: Path) -> None:
    text = story(told_run(tmp_path / "run", [0.2] * 4, ONE))
    assert_all_in(text, "Single class since round 1", "“c”", "100%")
    assert_all_in(text, "Plateau at chance")


def test_a_run_that_diverged_names_the_round_and_the_setting(tmp_path: Path) -> None:
    reason = f"round 3: client 1: the training loss is nan: {DIVERGED}"
    folder = told_run(tmp_path / "run", [0.2, 0.4, 0.5], state="failed", reason=reason)
    text = story(folder)
    assert_all_in(text, "Diverged in round 3", "train.learning_rate")
    assert "Learning" not in text


def test_before_the_first_round_the_story_is_empty(tmp_path: Path) -> None:
    assert story(told_run(tmp_path / "run", [0.2])) == ""


def test_the_page_opens_with_the_story_and_draws_the_diagnostics(
    tmp_path: Path,
) -> None:
    folder = told_run(tmp_path / "run", [0.2, 0.2, 0.2, 0.2])
    index = write_report(folder)
    names = {
        f"{name}.{suffix}"
        for name in ("curve", "updates", "predictions")
        for suffix in ("png", "svg")
    }
    files = {path.name for path in index.parent.iterdir()}
    assert files == names | {"index.html", "summary.md"}
    page = Page(index)
    summary = (index.parent / "summary.md").read_text()
    assert_all_in(page.text, "Plateau at chance since round 1", "K = 4 clients")
    assert "collapse in round 3" in summary
    assert len(page.alts) == 3
    assert "(a, b, c, d, e)" in page.alts[2]
    assert "| 3 | 160 | 0.5000 | 0.25 | 0.15 | 0.900 | -0.125 | 15 | 1.5 |" in summary
    # An entropy of ln 5 = 1.609
    assert "| 2 | 0.2000 | 0.2000 | 1.0000 | 0.5000 | 0.500 | 1.609 | 3.0 |" in summary
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


def test_a_sweep_lists_collapses_and_marks_cells_that_they_ended(
    tmp_path: Path,
) -> None:
    sweep = tmp_path / "sweep"
    baseline = told_run(
        sweep / "cells/minilm-bbc_news-k1-s0",
        [0.2, 0.8, 0.85, 0.9, 0.9],
        more=["num_clients=1"],
    )
    assert baseline.is_dir()
    flagged = "collapse flagged in round 3: at chance since round 1"
    reason = f"train.on_collapse=stop: {flagged}"
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
    outcomes = list(load_sweep(sweep).cells["outcome"])
    assert outcomes == ["reached", "collapsed", "not reached"]
    page = Page(write_report(sweep))
    assert f"K = 4: {flagged}" in page.text
    assert f"K = 8: {flagged}" in page.text
    assert f"3 rounds done: train.on_collapse=stop: {flagged}" in page.text
    assert flagged in (sweep / "report/summary.md").read_text()
