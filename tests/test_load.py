"""Sweep and run folders as the report reads them: seeds, thresholds, damaged files."""

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
        write_run(
            tmp_path / "seeds/cells" / settings.cell,
            settings,
            [0.2, 0.3, 0.4, 0.5, accuracy, 0.8][: 5 + seed],
        )
        reached = "" if seed == 0 else 4 + seed
        rows.append(("minilm", "bbc_news", 4, seed, "finished", accuracy, 0.8, reached))
    write_table(tmp_path / "seeds", rows)
    (row,) = load_sweep(tmp_path / "seeds").groups()
    assert row.accuracy is not None
    assert row.accuracy.text(".3f") == "0.700 (0.600–0.800)"
    assert row.share is not None
    assert row.share.text(".2f") == "0.88 (0.75–1.00)"  # 0.7 / 0.8 = 0.875
    # Seed 0 stands at round 4 of 6: still open, not missed.
    assert row.rounds_text == "5.5 (5–6); 1 not yet, 2 reached"
    write_report(tmp_path / "seeds")


def test_not_reached_is_final_only_past_the_second_threshold(tmp_path: Path) -> None:
    for name, curve in (("done", [0.2] * 7), ("open", [0.2] * 5)):
        settings = settings_with("num_clients=4")
        write_run(tmp_path / name / "cells" / settings.cell, settings, curve)
        write_table(
            tmp_path / name, [("minilm", "bbc_news", 4, 0, "finished", 0.2, 0.9, "")]
        )
    assert load_sweep(tmp_path / "done").cells["outcome"][0] == "not reached"
    assert load_sweep(tmp_path / "open").cells["outcome"][0] == "not yet"
    assert "not reached" in Page(write_report(tmp_path / "done")).text


def test_target_fraction_comes_from_the_sweep(tmp_path: Path) -> None:
    sweep = demo_sweep(tmp_path / "demo")
    assert load_sweep(sweep).target_fraction == 0.9
    (sweep / "sweep.json").write_text(json.dumps({"target_fraction": 0.8, "cells": []}))
    assert "Rounds to reach 80% of the K = 1 accuracy" in Page(write_report(sweep)).text


def test_cut_last_line_is_ignored_and_a_broken_line_is_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", settings_with(), [0.2, 0.5, 0.6])
    history = folder / "history.jsonl"
    whole = history.read_text()
    history.write_text(whole + history_line(3, 0.9)[:40])
    assert (load_run(folder).last_round, load_run(folder).problems) == (2, ())
    history.write_text("{broken\n" + whole)
    assert load_run(folder).last_round == 2
    assert load_run(folder).problems == (
        "history.jsonl line 1 cannot be read and was left out",
    )


def test_damaged_settings_cost_only_their_cell(tmp_path: Path) -> None:
    sweep = demo_sweep(tmp_path / "demo")
    (sweep / "cells/minilm-bbc_news-k4-s0/settings.json").write_text('{"model": 1')
    page = Page(write_report(sweep))
    assert "MiniLM on BBC News with K = 4: settings.json cannot be read" in page.text


def test_damaged_table_names_file_line_and_next_step(tmp_path: Path) -> None:
    write_table(tmp_path, [("minilm", "bbc_news", "four", 0, "finished", "", "", "")])
    with pytest.raises(
        ValueError, match=r"sweep\.csv, line 2: .*'four'.*command again"
    ):
        write_report(tmp_path)
    write_table(tmp_path, [("minilm", "bbc_news", 4, 0, "done", "", "", "")])
    with pytest.raises(ValueError, match="status is 'done'"):
        write_report(tmp_path)
    (tmp_path / "sweep.csv").write_text("model,data\n")
    with pytest.raises(ValueError, match="column num_clients, seed"):
        write_report(tmp_path)
