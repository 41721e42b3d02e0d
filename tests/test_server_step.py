"""FedAvg, FedAvgM and a server learning rate, on numbers checkable by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from server.engines.simulate import simulate
from server.record import RoundRecord
from server.rounds.callbacks import Checkpoints
from server.rounds.fedavg import ServerStep
from server.run_folder import RunFolder
from tests.support.runs import PowerCut, hashes
from tests.support.tiny import Make

MOMENTUM = ("strategy.server_momentum=0.5", "strategy.server_learning_rate=2")


def test_the_default_is_the_mean_itself(make_settings: Make) -> None:
    step, mean = ServerStep(make_settings()), torch.tensor([1 / 3])
    assert step.apply(1, torch.tensor([0.1]), mean) is mean
    assert mean.tolist() == torch.tensor([1 / 3]).tolist()
    assert step.momentum is None


def test_a_learning_rate_goes_past_the_mean(make_settings: Make) -> None:
    step = ServerStep(make_settings("strategy.server_learning_rate=3"))
    # 1 + 3 * (2 - 1) = 4
    assert step.apply(1, torch.tensor([1.0]), torch.tensor([2.0])).tolist() == [4.0]
    assert step.momentum is None


def test_momentum_goes_on_in_the_last_direction(make_settings: Make) -> None:
    step = ServerStep(make_settings(*MOMENTUM))
    tensors = torch.tensor([0.0])
    # v = 1, w = 0 + 2 * 1 = 2
    tensors = step.apply(1, tensors, torch.tensor([1.0]))
    assert tensors.tolist() == [2.0]
    # v = 0.5 * 1 + (3 - 2) = 1.5, w = 2 + 2 * 1.5 = 5
    tensors = step.apply(2, tensors, torch.tensor([3.0]))
    assert tensors.tolist() == [5.0]
    # The clients stand still: v = 0.75, w = 5 + 1.5
    assert step.apply(3, tensors, torch.tensor([5.0])).tolist() == [6.5]


def test_heads_drawn_per_site_are_no_direction(make_settings: Make) -> None:
    step = ServerStep(make_settings("train.head_init=per_site", *MOMENTUM))
    assert step.apply(1, torch.tensor([0.0]), torch.tensor([7.0])).tolist() == [7.0]
    assert step.momentum is None
    # v = 8 - 7 = 1, w = 7 + 2 * 1
    assert step.apply(2, torch.tensor([7.0]), torch.tensor([8.0])).tolist() == [9.0]


def test_one_buffer_is_all_the_memory(make_settings: Make) -> None:
    step = ServerStep(make_settings(*MOMENTUM))
    tensors, mean = torch.zeros(5), torch.ones(5)
    after = step.apply(1, tensors, mean)
    assert after.data_ptr() == mean.data_ptr()
    momentum = step.momentum
    assert momentum is not None
    place = momentum.data_ptr()
    step.apply(2, after, torch.ones(5))
    assert step.momentum is momentum
    assert momentum.data_ptr() == place


def test_a_resumed_run_keeps_its_momentum(
    make_settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make_settings(f"run_dir={tmp_path / 'whole'}", "num_rounds=4", *MOMENTUM)
    simulate(whole)
    assert len(set(hashes(tmp_path / "whole"))) == 5
    original = Checkpoints.after_average

    def cut(self: Checkpoints, record: RoundRecord, *rest: Any) -> None:
        if record.round == at:
            raise PowerCut
        original(self, record, *rest)

    for at in (1, 3):
        settings = make_settings(f"run_dir={tmp_path / f'cut{at}'}", "num_rounds=4", *MOMENTUM)
        monkeypatch.setattr(Checkpoints, "after_average", cut)
        with pytest.raises(PowerCut):
            simulate(settings)
        monkeypatch.setattr(Checkpoints, "after_average", original)
        simulate(settings)
        assert hashes(tmp_path / f"cut{at}") == hashes(tmp_path / "whole")


def test_a_run_without_momentum_stores_none(make_settings: Make, tmp_path: Path) -> None:
    simulate(make_settings("num_rounds=1"))
    newest = tmp_path / "run" / "checkpoint" / "round-000001"
    assert {path.name for path in newest.iterdir()} == {"shared.safetensors", "record.json"}
    checkpoint = RunFolder(tmp_path / "run").load_checkpoint()
    assert checkpoint is not None
    assert checkpoint.momentum is None


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("strategy.server_momentum=1", r"strategy\.server_momentum is 1; it must be less than 1"),
        (
            "strategy.server_learning_rate=0",
            r"strategy\.server_learning_rate is 0; it must be greater",
        ),
    ],
)
def test_values_out_of_range_are_refused(make_settings: Make, override: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make_settings(override)
