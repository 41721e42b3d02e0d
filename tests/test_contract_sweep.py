"""The files of a sweep: table, cells, report. A sweep can be started again."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import contract
from tests.support.door import changed, contents, for_sweep, tiny, wardround


@dataclass(frozen=True)
class Swept:
    """A finished sweep over K = 1 and K = 2."""

    folder: Path
    overrides: list[str]
    out: str


@pytest.fixture(scope="module")
def swept(
    tiny_model: Path,
    tiny_texts: Path,
    tiny_test_texts: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Swept:
    folder = tmp_path_factory.mktemp("contract") / "sweep"
    overrides = changed(
        for_sweep(tiny(tiny_model, tiny_texts, tiny_test_texts, folder)),
        "num_clients=1,2",
        "data.budget_rounds=2",
        "data.second_threshold_rounds=3",
    )
    said = wardround("sweep", *overrides)
    assert said.code == 0, said.err
    return Swept(folder, overrides, said.out)


CELLS = ["tiny-files-k1-s0", "tiny-files-k2-s0"]


def test_the_table_has_this_header_and_a_row_for_each_cell(swept: Swept) -> None:
    text = (swept.folder / "sweep.csv").read_text()
    assert text.splitlines()[0] == contract.SWEEP_HEADER
    rows = list(csv.DictReader(text.splitlines()))
    assert [row["num_clients"] for row in rows] == ["1", "2"]
    assert {row["data"] for row in rows} == {"files"}
    assert {row["seed"] for row in rows} == {"0"}
    assert {row["status"] for row in rows} == {"finished"}
    for row, cell in zip(rows, CELLS, strict=True):
        lines = [json.loads(line) for line in history(swept, cell).splitlines()]
        accuracies = {line["round"]: line["test"]["accuracy"] for line in lines}
        assert float(row["accuracy_at_budget"]) == accuracies[2]
        assert float(row["baseline_accuracy"]) == float(rows[0]["accuracy_at_budget"])
        target = 0.9 * float(row["baseline_accuracy"])
        reached = [
            number
            for number, value in accuracies.items()
            if number > 0 and value >= target
        ]
        assert row["rounds_to_target"] == (str(reached[0]) if reached else "")


def history(swept: Swept, cell: str) -> str:
    """Return the history of one cell."""
    return (swept.folder / "cells" / cell / "history.jsonl").read_text()


def test_every_cell_is_a_run_folder(swept: Swept) -> None:
    assert sorted(entry.name for entry in (swept.folder / "cells").iterdir()) == CELLS
    for cell in CELLS:
        folder = swept.folder / "cells" / cell
        settings = json.loads((folder / "settings.json").read_text())
        contract.check(settings, "settings")
        assert settings["run_dir"] == str(folder)
        assert json.loads((folder / "status.json").read_text())["state"] == "finished"
        assert (folder / "model" / "model.safetensors").is_file()


def test_the_claims_are_not_tested_without_the_papers_models(swept: Swept) -> None:
    claims = json.loads((swept.folder / "report" / "claims.json").read_text())
    contract.check(claims, contract.CLAIMS)
    assert [claim["id"] for claim in claims] == [1, 2, 3, 4, 5]
    # The paper's models did not run, so that no claim can be supported or contradicted.
    assert {claim["verdict"] for claim in claims} == {"not_tested"}


def test_the_report_has_these_files(swept: Swept) -> None:
    report = swept.folder / "report"
    figures = ("figure1_accuracy", "figure2_rounds_to_target", "figure3_curves")
    assert {entry.name for entry in report.iterdir()} == {
        "index.html",
        "summary.md",
        "claims.json",
        *(f"{figure}.{kind}" for figure in figures for kind in ("png", "svg")),
    }
    for figure in figures:
        assert (report / f"{figure}.png").read_bytes().startswith(b"\x89PNG\r\n")
        assert "</svg>" in (report / f"{figure}.svg").read_text()
    assert f"report: {report / 'index.html'}" in swept.out


@pytest.mark.slow
def test_a_finished_sweep_runs_no_cell_again(swept: Swept) -> None:
    before = contents(swept.folder)
    said = wardround("sweep", *swept.overrides)
    assert said.code == 0, said.err
    assert "round 1/" not in said.err
    assert contents(swept.folder) == before


def test_other_settings_in_the_same_folder_are_refused(swept: Swept) -> None:
    before = contents(swept.folder)
    said = wardround("sweep", *changed(swept.overrides, "train.batch_size=5"))
    assert said.code == 2
    assert f"run_dir is '{swept.folder}" in said.err
    assert "train.batch_size: 8 -> 5" in said.err
    assert contents(swept.folder) == before


@pytest.mark.slow
def test_a_failed_cell_is_recorded_and_the_others_run(
    swept: Swept, tmp_path: Path
) -> None:
    # 48 examples cannot be dealt to 49 clients.
    folder = tmp_path / "sweep"
    words = changed(swept.overrides, "num_clients=1,49", f"run_dir={folder}")
    said = wardround("sweep", *words)
    assert said.code == 1
    assert "1 cells failed" in said.err
    assert "tiny-files-k49-s0 failed: num_clients is 49" in said.err
    rows = list(csv.DictReader((folder / "sweep.csv").read_text().splitlines()))
    assert [row["num_clients"] for row in rows] == ["1", "49"]
    assert [row["status"] for row in rows] == ["finished", "failed"]
    cell = folder / "cells" / "tiny-files-k49-s0"
    reason = json.loads((cell / "status.json").read_text())["reason"]
    assert "num_clients is 49" in reason
    assert "48" in reason
