"""`import wardround`: the functions for scripts and notebooks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import wardround
from tests.support.door import CommandResult, run_dir_of
from tests.support.tiny import TOPICS


def test_simulate_returns_a_run_that_load_run_reads_again(overrides: list[str]) -> None:
    run = wardround.simulate(*overrides)
    assert run.state == "finished"
    assert run.settings.num_clients == 3
    assert run.history["round"].tolist() == [0, 1, 2, 3]
    assert run.history["accuracy"].between(0, 1).all()
    assert len(run.clients) == 3 * 3
    assert run.report().name == "index.html"
    again = wardround.load_run(str(run.path))
    assert again.history.equals(run.history)
    _, model = again.model("cpu")
    assert model.config.num_labels == 3


def test_predict_returns_a_label_and_shares_for_each_text(
    learned_run: tuple[list[str], CommandResult],
) -> None:
    table = wardround.predict(
        run_dir_of(learned_run[0]), ["goal match", "nurse"], device="cpu"
    )
    assert table.columns.tolist() == ["text", "label", *sorted(TOPICS)]
    assert table["label"].tolist() == ["sport", "health"]
    assert table[sorted(TOPICS)].sum(axis=1).tolist() == pytest.approx([1, 1])


def test_sweep_returns_its_cells_runs_and_report(
    overrides: list[str], tmp_path: Path
) -> None:
    kept = [
        word
        for word in overrides
        if not word.startswith(("num_clients=", "num_rounds=", "run_dir="))
    ]
    rounds = (
        "data.budget_rounds=1",
        "data.second_threshold_rounds=1",
        "num_clients=1,2",
    )
    found = wardround.sweep(*kept, *rounds, f"run_dir={tmp_path / 'sweep'}")
    assert found.cells["num_clients"].tolist() == [1, 2]
    assert found.cells["status"].tolist() == ["finished", "finished"]
    assert [run.settings.num_clients for run in found.runs] == [1, 2]
    assert found.report.is_file()


def test_errors_are_those_of_the_command_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"num_client"):
        wardround.simulate("num_client=2")
    with pytest.raises(ValueError, match=r"settings\.json.*run_dir"):
        wardround.load_run(tmp_path)
    with pytest.raises(ValueError, match=r"model/config\.json.*save_pretrained"):
        wardround.predict(tmp_path, ["a text"])


def test_importing_wardround_imports_no_large_library() -> None:
    heavy = {"torch", "pandas", "flwr", "pydantic", "hydra"}
    code = f"import sys, wardround; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
