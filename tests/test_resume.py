"""A run that was stopped or killed ends with the same numbers as one without a break."""

from __future__ import annotations

import os
import signal
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from tests.support.runs import (
    PowerCut,
    hashes,
    history,
    measured,
    start,
    wait_for_round,
    with_keys,
)
from tests.support.tiny import Make
from wardround.common.model.flat import Layout, model_sha256, tensors_to_flat
from wardround.server.engines.simulate import simulate
from wardround.server.record import RoundRecord
from wardround.server.rounds.callbacks import Callback
from wardround.server.rounds.loop import FederatedAveraging
from wardround.server.rounds.recorder import Recorder
from wardround.server.rounds.state import RoundState
from wardround.server.run_folder import Checkpoint, RunFolder
from wardround.server.sweeps.run import sweep
from wardround.server.sweeps.table import SweepFolder
from wardround.server.watchers import Live, Target

NUM_ROUNDS = 40


@pytest.mark.e2e
@pytest.mark.slow
def test_a_killed_run_continues_to_the_same_model(
    overrides: list[str], tmp_path: Path
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = start(
        "simulate", with_keys(overrides, num_rounds=NUM_ROUNDS, run_dir=whole)
    )
    assert process.wait(240) == 0
    command = with_keys(overrides, num_rounds=NUM_ROUNDS, run_dir=killed)
    for number in (3, 9):
        process = start("simulate", command)
        wait_for_round(process, killed, number)
        process.kill()  # kill -9, somewhere inside the next round
        assert process.wait(60) == -signal.SIGKILL
        assert RunFolder(killed).status()["state"] == "running"
        assert number < len(history(killed)) < NUM_ROUNDS
    assert start("simulate", command).wait(240) == 0
    assert RunFolder(killed).status()["state"] == "finished"
    assert hashes(killed) == hashes(whole)
    assert len(set(hashes(whole))) == NUM_ROUNDS + 1


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_by_signal_is_recorded(
    overrides: list[str], tmp_path: Path, kind: signal.Signals
) -> None:
    command = with_keys(overrides, num_rounds=5000)
    process = start("simulate", command)
    wait_for_round(process, tmp_path / "run", 2)
    os.kill(process.pid, kind)
    assert process.wait(120) == 130
    assert process.stderr is not None
    assert "the same command goes on" in process.stderr.read()
    assert RunFolder(tmp_path / "run").status()["state"] == "stopped"


@pytest.mark.e2e
@pytest.mark.slow
def test_a_killed_sweep_skips_finished_cells_and_continues(
    overrides: list[str], tmp_path: Path
) -> None:
    command = [
        *with_keys(overrides, num_clients="1,3", run_dir=tmp_path / "sweep"),
        f"data.budget_rounds={NUM_ROUNDS}",
        f"data.second_threshold_rounds={NUM_ROUNDS}",
        "sweep.target_fraction=0.5",
    ]
    command = [text for text in command if not text.startswith("num_rounds")]
    folder = SweepFolder(tmp_path / "sweep")
    process = start("sweep", command)
    wait_for_round(process, folder.run_folder("tiny-files-k3-s7").path, 5)
    process.kill()
    process.wait(60)
    first = folder.run_folder("tiny-files-k1-s7").path / "history.jsonl"
    finished_at = first.stat().st_mtime_ns
    assert start("sweep", command).wait(240) == 0
    assert first.stat().st_mtime_ns == finished_at
    rows = folder.rows()
    assert [(row.num_clients, row.status) for row in rows] == [
        (1, "finished"),
        (3, "finished"),
    ]
    assert len(hashes(folder.run_folder("tiny-files-k3-s7").path)) == NUM_ROUNDS + 1


@pytest.mark.parametrize(
    ("callback", "moment", "where"),
    [
        (Recorder, "after_average", "server"),
        pytest.param(Recorder, "after_average", "sites", marks=pytest.mark.slow),
        pytest.param(Recorder, "after_round", "server", marks=pytest.mark.slow),
        (Recorder, "after_round", "sites"),
        pytest.param(Target, "after_round", "server", marks=pytest.mark.slow),
        pytest.param(Target, "after_round", "sites", marks=pytest.mark.slow),
    ],
)
def test_resume_equals_uninterrupted_at_every_moment(
    make_settings: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    callback: type[Callback],
    moment: str,
    where: str,
) -> None:
    """Stop before a checkpoint, before the history line, and after both, in every round."""
    whole = make_settings(f"run_dir={tmp_path / 'whole'}", f"evaluation.where={where}")
    simulate(whole)
    original = getattr(callback, moment)

    def cut(self: Callback, record: RoundRecord, *rest: Any) -> Any:
        if record.round == at:
            raise PowerCut
        return original(self, record, *rest)

    for at in (0, 1, 2, 3):
        settings = make_settings(
            f"run_dir={tmp_path / f'cut{at}'}", f"evaluation.where={where}"
        )
        monkeypatch.setattr(callback, moment, cut)
        with pytest.raises(PowerCut):
            simulate(settings)
        monkeypatch.setattr(callback, moment, original)
        simulate(settings)
        assert measured(Path(settings.run_dir)) == measured(tmp_path / "whole")


def test_a_finished_run_continues_to_more_rounds(
    make_settings: Make, tmp_path: Path
) -> None:
    simulate(make_settings(f"run_dir={tmp_path / 'five'}", "num_rounds=5"))
    simulate(make_settings("num_rounds=2"))
    simulate(make_settings("num_rounds=5"))
    assert hashes(tmp_path / "run") == hashes(tmp_path / "five")


def test_only_the_newest_two_checkpoints_stay(
    make_settings: Make, tmp_path: Path
) -> None:
    simulate(make_settings())
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoint").iterdir())
    assert names == ["round-000002", "round-000003"]


def test_a_checkpoint_that_is_written_late_has_its_own_round(
    make_settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Sums of later rounds overwrite older global tensors; a write must be over by then.
    save, right = RunFolder.save_checkpoint, []

    def slowly(self: RunFolder, checkpoint: Checkpoint) -> None:
        time.sleep(0.5)  # longer than many rounds of this model
        tensors = checkpoint.tensors
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        layout = Layout.of(shapes)
        found = model_sha256(layout, tensors_to_flat(layout, tensors))
        right.append(found == checkpoint.record.model_sha256)
        save(self, checkpoint)

    monkeypatch.setattr(RunFolder, "save_checkpoint", slowly)
    simulate(make_settings("num_rounds=5"))
    assert right == [True] * 6


def test_a_cut_history_line_is_dropped(make_settings: Make, tmp_path: Path) -> None:
    simulate(make_settings())
    before = hashes(tmp_path / "run")
    with (tmp_path / "run" / "history.jsonl").open("a") as file:
        file.write('{"round": 4, "te')
    simulate(make_settings("num_rounds=4"))
    assert hashes(tmp_path / "run")[:4] == before
    assert len(hashes(tmp_path / "run")) == 5


def test_a_sweep_continues_to_the_target_or_the_second_threshold(
    overrides: list[str], tmp_path: Path
) -> None:
    """K = 3 at a tiny learning rate stays at chance; K = 1's target is met by definition."""
    command = [
        *with_keys(overrides, num_clients="1,3", run_dir=tmp_path / "sweep"),
        "data.budget_rounds=2",
        "data.second_threshold_rounds=4",
        "sweep.target_fraction=1.5",
    ]
    command = [text for text in command if not text.startswith("num_rounds")]
    rows = sweep(command).rows
    folder = SweepFolder(tmp_path / "sweep")
    assert [row.rounds_to_target for row in rows] == [None, None]
    for k in (1, 3):
        cell = folder.run_folder(f"tiny-files-k{k}-s7")
        assert len(hashes(cell.path)) == 5
    assert rows[1].baseline_accuracy == rows[0].accuracy_at_budget
    before = (folder.path / "sweep.csv").read_bytes()
    sweep(command)
    assert (folder.path / "sweep.csv").read_bytes() == before


def test_a_layout_is_in_name_order_and_aligned() -> None:
    layout = Layout.of({"b": (3,), "a": (2, 5)})
    assert layout.names == ("a", "b")
    assert layout.offsets == (0, 16)
    assert layout.size == 32


def test_the_first_tensors_are_freed_after_the_first_round(
    make_settings: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tensors of the start need as much memory as the model."""
    starts: list[weakref.ref[Tensor]] = []
    start = FederatedAveraging.start
    tell = Live.before_round
    held: dict[int, bool] = {}

    def noted(self: FederatedAveraging, layout: Layout, tensors: Tensor) -> RoundState:
        starts.append(weakref.ref(tensors))
        return start(self, layout, tensors)

    def look(self: Live, round: int, names: Sequence[str]) -> None:
        held[round] = starts[0]() is not None
        tell(self, round, names)

    monkeypatch.setattr(FederatedAveraging, "start", noted)
    monkeypatch.setattr(Live, "before_round", look)
    simulate(make_settings("num_rounds=3"))
    assert held == {1: True, 2: False, 3: False}
