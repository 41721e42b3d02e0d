"""The report reads sweep and run folders: seeds, thresholds, damaged files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.pages import Page
from tests.support.report_folders import (
    demo_sweep,
    history_line,
    settings_with,
    write_report,
    write_run,
    write_table,
)
from wardround.server.report.run import load_run
from wardround.server.report.sweep import load_sweep


def test_several_seeds_show_mean_and_range(tmp_path: Path) -> None:
    rows = []
    for seed, accuracy in ((0, 0.6), (1, 0.7), (2, 0.8)):
        settings = settings_with("num_clients=4", f"seed={seed}")
        curve = [0.2, 0.3, 0.4, 0.5, accuracy, 0.8][: 5 + seed]
        write_run(tmp_path / "seeds/cells" / settings.cell, settings, curve)
        reached = "" if seed == 0 else 4 + seed
        rows.append(("minilm", "bbc_news", 4, seed, "finished", accuracy, 0.8, reached))
    write_table(tmp_path / "seeds", rows)
    (row,) = load_sweep(tmp_path / "seeds").groups()
    assert row.accuracy is not None
    assert row.accuracy.text(".3f") == "0.700 (0.600–0.800)"
    assert row.share is not None
    assert row.share.text(".2f") == "0.88 (0.75–1.00)"  # 0.7 / 0.8 = 0.875
    # Seed 0 is in round 4 of 6, so that it may still reach the target.
    assert row.rounds_text == "5.5 (5–6); 1 not yet, 2 reached"
    write_report(tmp_path / "seeds")


def test_not_reached_is_final_only_after_the_second_threshold(tmp_path: Path) -> None:
    for name, curve in (("done", [0.2] * 7), ("open", [0.2] * 5)):
        settings = settings_with("num_clients=4")
        write_run(tmp_path / name / "cells" / settings.cell, settings, curve)
        row = ("minilm", "bbc_news", 4, 0, "finished", 0.2, 0.9, "")
        write_table(tmp_path / name, [row])
    assert load_sweep(tmp_path / "done").cells["outcome"][0] == "not reached"
    assert load_sweep(tmp_path / "open").cells["outcome"][0] == "not yet"
    assert "not reached" in Page(write_report(tmp_path / "done")).text


def test_the_target_fraction_comes_from_the_sweep(tmp_path: Path) -> None:
    sweep = demo_sweep(tmp_path / "demo")
    assert load_sweep(sweep).target_fraction == 0.9
    (sweep / "sweep.json").write_text(json.dumps({"target_fraction": 0.8, "cells": []}))
    assert load_sweep(sweep).target_fraction == 0.8
    assert "80% of the K = 1 accuracy" in Page(write_report(sweep)).text


def test_a_cut_last_line_is_ignored_and_a_broken_line_is_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", settings_with(), [0.2, 0.5, 0.6])
    history = folder / "history.jsonl"
    whole = history.read_text()
    history.write_text(whole + history_line(3, 0.9)[:40])
    run = load_run(folder)
    assert run.last_round == 2
    assert run.problems == ()
    history.write_text("{broken\n" + whole)
    run = load_run(folder)
    assert run.last_round == 2
    (problem,) = run.problems
    assert problem.startswith("history.jsonl line 1 ")


def test_a_cell_with_damaged_settings_is_left_out_and_named(tmp_path: Path) -> None:
    sweep = demo_sweep(tmp_path / "demo")
    (sweep / "cells/minilm-bbc_news-k4-s0/settings.json").write_text('{"model": 1')
    page = Page(write_report(sweep))
    assert "MiniLM on BBC News with K = 4: settings.json" in page.text


def test_a_damaged_table_is_refused_by_line_and_column(tmp_path: Path) -> None:
    write_table(tmp_path, [("minilm", "bbc_news", "four", 0, "finished", "", "", "")])
    expected = r"sweep\.csv, line 2: num_clients is 'four'.*command again"
    with pytest.raises(ValueError, match=expected):
        write_report(tmp_path)
    write_table(tmp_path, [("minilm", "bbc_news", 4, 0, "done", "", "", "")])
    with pytest.raises(ValueError, match=r"sweep\.csv, line 2: status is 'done'"):
        write_report(tmp_path)
    (tmp_path / "sweep.csv").write_text("model,data\n")
    with pytest.raises(ValueError, match=r"sweep\.csv: column num_clients, seed, "):
        write_report(tmp_path)
