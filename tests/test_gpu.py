"""A CUDA device (`make test-gpu`) computes the same rounds as the CPU, in every local engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.support.runs import history
from tests.support.tiny import Make
from wardround.common.runtime import resolve_device
from wardround.server.engines.simulate import count_workers, simulate
from wardround.server.run_folder import RunFolder

pytestmark = pytest.mark.gpu

Run = Callable[..., Path]


@pytest.fixture
def run_on(make_settings: Make, still_model: Path, tmp_path: Path) -> Run:
    """Return a function that runs the tiny model without dropout.

    The random numbers of dropout differ between a CPU and a GPU.
    """

    def run(name: str, *overrides: str) -> Path:
        given = (f"model.name={still_model}", f"run_dir={tmp_path / name}", *overrides)
        simulate(make_settings(*given))
        return tmp_path / name

    return run


def tensors(run_dir: Path) -> torch.Tensor:
    """Return all shared tensors of the newest checkpoint, one after the other."""
    checkpoint = RunFolder(run_dir).load_checkpoint()
    assert checkpoint is not None
    return torch.cat(
        [checkpoint.tensors[name].flatten() for name in sorted(checkpoint.tensors)]
    )


def losses(run_dir: Path) -> list[float]:
    """Return the loss on the test texts for each round."""
    return [line["test"]["loss"] for line in history(run_dir)]


def assert_near(ours: Path, theirs: Path, relative: float) -> None:
    """Compare the last global models, and the loss of every round."""
    expected = tensors(theirs).numpy()
    assert tensors(ours).numpy() == pytest.approx(expected, rel=relative, abs=relative)
    assert losses(ours) == pytest.approx(losses(theirs), rel=relative)


def test_auto_is_the_gpu(make_settings: Make) -> None:
    assert resolve_device("auto") == torch.device("cuda", 0)
    settings = make_settings("device=auto", "engine.workers=auto")
    assert count_workers(settings) == min(3, torch.cuda.device_count())


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("train.micro_batches=by_length",),
        ("train.group_by_length=true", "train.padding=longest"),
        ("train.attention_mask=false",),
        ("train.head_init=per_site", "strategy.server_momentum=0.5"),
        ("transforms=int8",),
        ("evaluation.where=sites",),
        ("engine.workers=3",),
    ],
    ids=" ".join,
)
def test_gpu_and_cpu_give_the_same_rounds(run_on: Run, words: tuple[str, ...]) -> None:
    on_cpu = [word for word in words if "workers" not in word]
    of_cpu = run_on("cpu", "device=cpu", *on_cpu)
    of_gpu = run_on("gpu", "device=cuda", *words)
    assert_near(of_gpu, of_cpu, 1e-4)


def test_adamw_learns_the_same_function(run_on: Run) -> None:
    """The weights differ: the sign of a gradient that is 0 up to rounding makes a step."""
    words = (
        "train.optimizer=adamw",
        "train.max_grad_norm=1",
        "train.learning_rate=1e-3",
    )
    of_cpu = run_on("cpu", "device=cpu", *words)
    of_gpu = run_on("gpu", "device=cuda", *words)
    assert losses(of_gpu) == pytest.approx(losses(of_cpu), rel=1e-4)


def test_bf16_is_near_fp32(run_on: Run) -> None:
    bf16 = run_on("bf16", "device=cuda", "precision=bf16")
    fp32 = run_on("fp32", "device=cuda")
    assert_near(bf16, fp32, 1e-2)


def test_a_stopped_run_continues_from_its_last_round(run_on: Run) -> None:
    whole = run_on("whole", "device=cuda", "num_rounds=3")
    run_on("resumed", "device=cuda", "num_rounds=1")
    assert_near(run_on("resumed", "device=cuda", "num_rounds=3"), whole, 1e-5)


def test_dropout_draws_from_its_own_stream(make_settings: Make, tmp_path: Path) -> None:
    draws: list[torch.Tensor] = []
    for name in ("one", "two"):
        torch.cuda.manual_seed(len(draws))  # earlier draws change nothing
        simulate(make_settings("device=cuda", f"run_dir={tmp_path / name}"))
        draws.append(tensors(tmp_path / name))
    assert (draws[0] - draws[1]).norm() <= 1e-5 * draws[0].norm()
