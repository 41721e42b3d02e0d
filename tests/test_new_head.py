"""The new head alone: its learning rate, and rounds in which only the head trains."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.support.runs import hashes, history
from tests.support.tiny import Make
from wardround.common.model.state import open_model
from wardround.server.engines.simulate import simulate

LABELS = ("health", "money", "sport")


def trained(
    make_settings: Make, run_dir: Path, *more: str
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the initial tensors and those after the run."""
    settings = make_settings(f"run_dir={run_dir}", "num_clients=2", "threads=1", *more)
    initial = open_model(settings, LABELS, fresh=True).text_model.model.state_dict()
    before = {name: tensor.clone() for name, tensor in initial.items()}
    simulate(settings)
    return before, load_file(run_dir / "model" / "model.safetensors")


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    """Return the names of the tensors that changed."""
    return {
        name for name, tensor in after.items() if not torch.equal(tensor, before[name])
    }


def test_a_warm_up_trains_the_new_head_alone(
    make_settings: Make, tmp_path: Path
) -> None:
    before, after = trained(
        make_settings,
        tmp_path / "warm",
        "train.head_warmup_rounds=2",
        "num_rounds=2",
        "model.head=distilbert",
    )
    new = {
        f"{layer}.{part}"
        for layer in ("classifier", "pre_classifier")
        for part in ("weight", "bias")
    }
    assert moved(before, after) == new


def test_after_the_warm_up_everything_trains(
    make_settings: Make, tmp_path: Path
) -> None:
    before, after = trained(
        make_settings, tmp_path / "both", "train.head_warmup_rounds=1", "num_rounds=2"
    )
    # Token type 1 and positions past 16 are in no text, but other rows of these tensors are.
    assert moved(before, after) == set(after)


def test_a_resumed_warm_up_is_the_same(make_settings: Make, tmp_path: Path) -> None:
    switches = ("train.head_warmup_rounds=2", "train.head_learning_rate=0.1")
    simulate(make_settings(f"run_dir={tmp_path / 'whole'}", "num_rounds=4", *switches))
    for num_rounds in (1, 4):
        simulate(make_settings(f"num_rounds={num_rounds}", *switches))
    assert hashes(tmp_path / "run") == hashes(tmp_path / "whole")


def test_the_head_has_its_own_learning_rate(
    make_settings: Make, tmp_path: Path, still_model: Path
) -> None:
    """One step of SGD is rate x gradient: the head moves ten times as far, the body does not."""
    one_step = (
        f"model.name={still_model}",
        "num_clients=1",
        "num_rounds=1",
        "train.local_epochs=1",
        "train.batch_size=48",
        "train.learning_rate=0.001",
    )
    before, plain = trained(make_settings, tmp_path / "plain", *one_step)
    _, faster = trained(
        make_settings, tmp_path / "faster", *one_step, "train.head_learning_rate=0.01"
    )
    head = "classifier.weight"
    slow_step = (plain[head] - before[head]).norm()
    fast_step = (faster[head] - before[head]).norm()
    assert (fast_step / slow_step).item() == pytest.approx(10, rel=1e-3)
    assert moved(plain, faster) == {head, "classifier.bias"}


def test_the_same_learning_rate_by_name_changes_nothing(
    make_settings: Make, tmp_path: Path
) -> None:
    simulate(make_settings())
    simulate(
        make_settings(f"run_dir={tmp_path / 'named'}", "train.head_learning_rate=0.5")
    )
    assert hashes(tmp_path / "named") == hashes(tmp_path / "run")


@pytest.mark.parametrize(
    "switch", ["train.head_warmup_rounds=1", "train.head_learning_rate=0.1"]
)
def test_a_model_with_a_trained_head_refuses_settings_of_a_new_head(
    make_settings: Make, tmp_path: Path, switch: str
) -> None:
    simulate(make_settings("num_rounds=1"))
    again = make_settings(
        f"model.name={tmp_path / 'run' / 'model'}",
        f"run_dir={tmp_path / 'again'}",
        switch,
    )
    with pytest.raises(ValueError, match=r"head_warmup_rounds is .* null and 0"):
        simulate(again)
    assert not history(tmp_path / "again")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (
            "train.head_learning_rate=0",
            r"train\.head_learning_rate is 0",
        ),
        (
            "train.head_warmup_rounds=-1",
            r"train\.head_warmup_rounds is -1",
        ),
    ],
)
def test_values_out_of_range_are_refused(
    make_settings: Make, override: str, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        make_settings(override)
