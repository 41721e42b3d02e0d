"""Reports of run and sweep folders, in every state that a folder can have."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.door import tiny, wardround
from tests.support.pages import Page
from tests.support.report_folders import (
    CONF,
    demo_sweep,
    digests,
    settings_with,
    write_report,
    write_run,
    write_table,
)

FIGURES = ("figure1_accuracy", "figure2_rounds_to_target", "figure3_curves")


def test_the_report_of_a_sweep_has_every_file(tmp_path: Path) -> None:
    index = write_report(demo_sweep(tmp_path / "demo"))
    assert index == tmp_path / "demo" / "report" / "index.html"
    expected = {f"{name}.{suffix}" for name in FIGURES for suffix in ("png", "svg")}
    assert {path.name for path in index.parent.iterdir()} == expected | {
        "index.html",
        "summary.md",
        "claims.json",
    }
    for name in FIGURES:
        assert (index.parent / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert b"<svg" in (index.parent / f"{name}.svg").read_bytes()


def test_a_page_needs_no_other_file_and_names_the_runs(tmp_path: Path) -> None:
    page = Page(write_report(demo_sweep(tmp_path / "demo")))
    assert page.targets
    for target in page.targets:
        assert target.startswith("data:image/svg+xml;base64,")
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert page.tags.count("h1") == 1
    assert page.alts[0].startswith("Figure 1. ")
    assert len([alt for alt in page.alts if alt]) == 3
    for fact in (
        "K = 1 and 4 clients and seed 0",
        "2 cells: 2 finished",
        "Best: MiniLM on BBC News with K = 1, accuracy 0.900",
        "Worst: MiniLM on BBC News with K = 4, accuracy 0.720 (chance is 0.2)",
        "80.0%",  # 0.72 / 0.9
    ):
        assert fact in page.text
    assert "Incomplete" not in page.text
    assert "wardround report demo" in page.text
    assert 'name="viewport"' in (tmp_path / "demo/report/index.html").read_text()


def test_the_summary_holds_the_table(tmp_path: Path) -> None:
    write_report(demo_sweep(tmp_path / "demo"))
    summary = (tmp_path / "demo/report/summary.md").read_text()
    assert "| MiniLM | BBC News | 4 | 0.720 | 80.0% | 5 | finished |" in summary
    assert "](figure2_rounds_to_target.png)" in summary


def test_the_file_of_claims_has_five(tmp_path: Path) -> None:
    write_report(demo_sweep(tmp_path / "demo"))
    claims = json.loads((tmp_path / "demo/report/claims.json").read_text())
    assert [item["id"] for item in claims] == [1, 2, 3, 4, 5]
    for item in claims:
        assert item["verdict"] == "not_tested"
        assert set(item) == {"id", "claim", "verdict", "numbers", "explanation"}


def test_the_same_files_give_the_same_bytes(tmp_path: Path) -> None:
    folder = demo_sweep(tmp_path / "demo")
    first = digests(write_report(folder).parent)
    assert digests(write_report(folder).parent) == first


def test_an_unfinished_sweep_names_missing_cells_and_reasons(tmp_path: Path) -> None:
    sweep = demo_sweep(tmp_path / "half")
    failed = settings_with("num_clients=2")
    write_run(
        sweep / "cells" / failed.cell,
        failed,
        [0.2, 0.3],
        "failed",
        "round 2:\nclient 1 has a NaN | loss",
    )
    stopped = settings_with("num_clients=8")
    write_run(sweep / "cells" / stopped.cell, stopped, [0.2, 0.3, 0.4], "stopped")
    write_table(
        sweep,
        [
            ("minilm", "bbc_news", 1, 0, "finished", 0.9, 0.9, 2),
            ("minilm", "bbc_news", 2, 0, "failed", "", 0.9, ""),
            ("minilm", "bbc_news", 8, 0, "stopped", "", 0.9, ""),
            ("minilm", "bbc_news", 16, 0, "running", "", 0.9, ""),
            ("minilm", "bbc_news", 32, 0, "pending", "", 0.9, ""),
        ],
    )
    page = Page(write_report(sweep))
    for fact in (
        "K = 2: failed, 1 rounds done: round 2: client 1 has a NaN | loss",
        "K = 8: stopped, 2 rounds done",
        "K = 16: running, no run folder",
        "Not started (1): MiniLM on BBC News with K = 32",
    ):
        assert fact in page.text
    assert r"a NaN \| loss" in (sweep / "report/summary.md").read_text()


def test_a_sweep_without_a_finished_round_has_a_page(tmp_path: Path) -> None:
    settings = settings_with("num_clients=1")
    write_run(tmp_path / "new" / "cells" / settings.cell, settings, [0.2], "running")
    write_table(tmp_path / "new", [("minilm", "bbc_news", 1, 0, "running", "", "", "")])
    assert "No round has finished yet" in Page(write_report(tmp_path / "new")).text


def test_a_sweep_without_run_folders_or_cells_has_a_page(tmp_path: Path) -> None:
    write_table(
        tmp_path / "planned", [("minilm", "bbc_news", 1, 0, "pending", "", "", "")]
    )
    page = Page(write_report(tmp_path / "planned"))
    assert "No round has finished yet" in page.text
    assert "img" not in page.tags
    write_table(tmp_path / "empty", [])
    assert "nothing has been run" in Page(write_report(tmp_path / "empty")).text


def test_the_report_of_one_run_has_its_numbers(tmp_path: Path) -> None:
    settings = settings_with("num_clients=4")
    folder = write_run(
        tmp_path / "one",
        settings,
        [0.2, 0.5, 0.4],
        "failed",
        "round 3: client 2 timed out.",
    )
    index = write_report(folder)
    files = {path.name for path in index.parent.iterdir()}
    assert files == {"curve.png", "curve.svg", "index.html", "summary.md"}
    page = Page(index)
    assert all(target.startswith("data:") for target in page.targets)
    for fact in (
        "K = 4 clients, seed 0, protocol paper",
        "State: failed, 2 of 4 rounds done",
        "Reason: round 3: client 2 timed out",
        "Test accuracy 0.400 after round 2 (best 0.500 in round 1, chance 0.2)",
    ):
        assert fact in page.text
    summary = (index.parent / "summary.md").read_text()
    assert "| 3 | 160 | 0.5000 | 0.25 | – | 0.900 | – | – | 1.5 |" in summary
    # This history is from a version without diagnostics.
    assert "no predictions" in page.text
    assert "| Seconds: total | 9.0 |" in summary  # 3 lines of 3 seconds
    assert "| Sent by the clients | 1.5 kB |" in summary  # 3 lines of 500 bytes
    first = digests(index.parent)
    assert digests(write_report(folder).parent) == first


def test_a_run_that_has_only_started_has_a_page(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/settings.json").write_text(settings_with().to_json())
    page = Page(write_report(tmp_path / "run"))
    assert "State: not recorded, 0 of 4 rounds done" in page.text
    assert "No round has finished yet" in page.text


def test_names_and_reasons_are_escaped(tmp_path: Path) -> None:
    folder = write_run(
        tmp_path / "run", settings_with(), [0.2], "failed", "<script>alert(1)</script>"
    )
    page = Page(write_report(folder))
    assert "script" not in page.tags
    assert "<script>alert(1)</script>" in page.text


def test_labels_are_drawn_as_they_are(tiny_model: Path, tmp_path: Path) -> None:
    """A dollar sign begins no formula, and an underscore hides no label."""
    labels = ["$$", "$5-$10", "50$ to 100$", "_other"]
    texts = tmp_path / "prices.csv"
    rows = [f"goal of the coach,{labels[row % 4]}" for row in range(40)]
    texts.write_text("\n".join(["text,label", *rows]))
    words = [
        word
        for word in tiny(tiny_model, texts, texts, tmp_path / "run")
        if not word.startswith("data.test_path")
    ]
    assert wardround("simulate", *words).code == 0
    drawn = (write_report(tmp_path / "run").parent / "predictions.svg").read_text()
    assert [label for label in labels if f"{label} -->" not in drawn] == []


@pytest.mark.parametrize("make", [True, False])
def test_a_folder_that_is_neither_run_nor_sweep_is_refused(
    tmp_path: Path, make: bool
) -> None:
    folder = tmp_path / "other"
    if make:
        folder.mkdir()
    with pytest.raises(
        ValueError, match=r"sweep\.csv.*settings\.json.*wardround report"
    ):
        write_report(folder)
    assert not (folder / "report").exists()


def test_reading_and_rendering_import_no_heavy_package() -> None:
    code = (
        "import sys, wardround.server.report.render\n"
        "assert not {'matplotlib', 'torch', 'flwr', 'hydra'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=CONF.parent)
