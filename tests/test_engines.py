"""The same run gives the same model in every round, with every engine."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.runs import hashes
from tests.support.tiny import Make
from wardround.client import site
from wardround.common.data.corpus import forget_corpora
from wardround.common.data.partitions import partition
from wardround.common.model.train import OPTIMIZERS
from wardround.server.engines.simulate import simulate


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.parametrize(("num_clients", "num_cpus"), [(1, 2), (3, 1), (8, 2)])
def test_ray_equals_inprocess(
    make_settings: Make, tmp_path: Path, num_clients: int, num_cpus: int
) -> None:
    common = [
        f"num_clients={num_clients}",
        "num_rounds=2",
        f"engine.num_cpus={num_cpus}",
    ]
    for engine in ("inprocess", "ray"):
        words = (f"engine={engine}", f"run_dir={tmp_path / engine}")
        simulate(make_settings(*common, *words))
    assert len(set(hashes(tmp_path / "inprocess"))) == 3
    assert hashes(tmp_path / "ray") == hashes(tmp_path / "inprocess")


def test_at_most_nine_frames_are_between_the_round_and_the_optimiser(
    make_settings: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    stacks: list[traceback.StackSummary] = []

    class Noted(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            stacks.append(traceback.extract_stack())
            return super().step(closure)

    monkeypatch.setitem(OPTIMIZERS, "sgd", Noted)
    simulate(make_settings("num_rounds=1", "train.optimizer=sgd"))
    frames = [
        frame
        for frame in stacks[0]
        if not frame.filename.startswith(str(Path(torch.__file__).parent))
    ]
    in_loop = max(
        number
        for number, frame in enumerate(frames)
        if frame.filename.endswith("server/rounds/loop.py")
    )
    assert frames[in_loop].name == "_train"
    between = [frame.name for frame in frames[in_loop + 1 : -1]]
    assert between[-2:] == ["run_local_round", "train_epochs"]
    assert len(between) <= 9, between


def test_texts_are_dealt_to_clients_once(
    make_settings: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    dealt = []

    def counted(*arguments: Any) -> list[np.ndarray]:
        dealt.append(arguments)
        return partition(*arguments)

    monkeypatch.setattr(site, "partition", counted)
    forget_corpora()
    simulate(make_settings("num_clients=3", "num_rounds=2"))
    assert len(dealt) == 1
