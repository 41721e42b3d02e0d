"""FedAvg, FedAvgM and the adaptive optimisers of the server, on numbers to check by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import FedAdagrad, FedAdam, FedAvg, FedYogi

from tests.support.runs import PowerCut, hashes
from tests.support.tiny import Make
from wardround.server.engines.simulate import simulate
from wardround.server.record import RoundRecord
from wardround.server.rounds.mean import BLOCK
from wardround.server.rounds.recorder import Recorder
from wardround.server.rounds.server_step import ServerStep
from wardround.server.run_folder import RunFolder

MOMENTUM = ("strategy.server_momentum=0.5", "strategy.server_learning_rate=2")
ADAPTIVE = ("strategy.optimizer=yogi", "strategy.server_learning_rate=0.01")


def test_the_default_is_the_mean_itself(make_settings: Make) -> None:
    step = ServerStep(make_settings())
    mean = torch.tensor([1 / 3])
    assert step.apply(1, torch.tensor([0.1]), mean) is mean
    assert mean.tolist() == torch.tensor([1 / 3]).tolist()
    assert step.state == {}


def test_a_learning_rate_goes_past_the_mean(make_settings: Make) -> None:
    step = ServerStep(make_settings("strategy.server_learning_rate=3"))
    # 1 + 3 * (2 - 1) = 4
    assert step.apply(1, torch.tensor([1.0]), torch.tensor([2.0])).tolist() == [4.0]
    assert step.state == {}


def test_momentum_continues_in_the_last_direction(make_settings: Make) -> None:
    step = ServerStep(make_settings(*MOMENTUM))
    tensors = torch.tensor([0.0])
    # v = 1, w = 0 + 2 * 1 = 2
    tensors = step.apply(1, tensors, torch.tensor([1.0]))
    assert tensors.tolist() == [2.0]
    # v = 0.5 * 1 + (3 - 2) = 1.5, w = 2 + 2 * 1.5 = 5
    tensors = step.apply(2, tensors, torch.tensor([3.0]))
    assert tensors.tolist() == [5.0]
    # The clients do not move: v = 0.75, w = 5 + 1.5
    assert step.apply(3, tensors, torch.tensor([5.0])).tolist() == [6.5]


def test_heads_drawn_per_site_do_not_enter_the_momentum(make_settings: Make) -> None:
    step = ServerStep(make_settings("train.head_init=per_site", *MOMENTUM))
    assert step.apply(1, torch.tensor([0.0]), torch.tensor([7.0])).tolist() == [7.0]
    assert step.state == {}
    # v = 8 - 7 = 1, w = 7 + 2 * 1
    assert step.apply(2, torch.tensor([7.0]), torch.tensor([8.0])).tolist() == [9.0]


def test_a_rescaled_head_has_the_mean_norm_of_the_heads(make_settings: Make) -> None:
    # A body of one number, then a head of two. Norms 5 and 10 with weights 3 and 1: 6.25.
    step = ServerStep(
        make_settings("train.head_init=per_site_rescaled"), head=[slice(1, 3)]
    )
    first, second = torch.tensor([1.0, 3.0, 4.0]), torch.tensor([5.0, 8.0, -6.0])
    step.note(1, first, 3)
    step.note(1, second, 1)
    mean = (3 * first + second) / 4
    found = step.apply(1, torch.zeros(3), mean.clone())
    assert found[0] == mean[0]
    assert found[1:].norm().item() == pytest.approx(6.25)
    cosine = torch.nn.functional.cosine_similarity(found[1:], mean[1:], dim=0)
    assert cosine.item() == pytest.approx(1)
    # Later rounds are not rescaled.
    step.note(2, first, 3)
    assert step.apply(2, mean, first.clone()).tolist() == first.tolist()


def test_a_step_uses_one_buffer_beside_the_tensors(make_settings: Make) -> None:
    step = ServerStep(make_settings(*MOMENTUM))
    tensors, mean = torch.zeros(5), torch.ones(5)
    after = step.apply(1, tensors, mean)
    assert after.data_ptr() == mean.data_ptr()
    momentum = step.state["momentum"]
    place = momentum.data_ptr()
    step.apply(2, after, torch.ones(5))
    assert step.state["momentum"] is momentum
    assert momentum.data_ptr() == place


@pytest.mark.parametrize("kind", [MOMENTUM, ADAPTIVE])
def test_a_resumed_run_keeps_the_servers_state(
    make_settings: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: tuple[str, ...],
) -> None:
    whole = make_settings(f"run_dir={tmp_path / 'whole'}", "num_rounds=4", *kind)
    simulate(whole)
    assert len(set(hashes(tmp_path / "whole"))) == 5
    original = Recorder.after_average

    def cut(self: Recorder, record: RoundRecord, *rest: Any) -> None:
        if record.round == at:
            raise PowerCut
        original(self, record, *rest)

    for at in (1, 3):
        settings = make_settings(
            f"run_dir={tmp_path / f'cut{at}'}", "num_rounds=4", *kind
        )
        monkeypatch.setattr(Recorder, "after_average", cut)
        with pytest.raises(PowerCut):
            simulate(settings)
        monkeypatch.setattr(Recorder, "after_average", original)
        simulate(settings)
        assert hashes(tmp_path / f"cut{at}") == hashes(tmp_path / "whole")


def test_a_run_without_momentum_stores_no_momentum(
    make_settings: Make, tmp_path: Path
) -> None:
    simulate(make_settings("num_rounds=1"))
    newest = tmp_path / "run" / "checkpoint" / "round-000001"
    files = {path.name for path in newest.iterdir()}
    assert files == {"shared.safetensors", "record.json"}
    checkpoint = RunFolder(tmp_path / "run").load_checkpoint()
    assert checkpoint is not None
    assert checkpoint.server_state == {}


def adaptive(make_settings: Make, name: str, *more: str) -> ServerStep:
    """Return a step with learning rate 1/2, b1 = 0.5, b2 = 0.75 and tau = 1/4."""
    settings = make_settings(
        f"strategy.optimizer={name}",
        "strategy.server_learning_rate=0.5",
        "strategy.beta_1=0.5",
        "strategy.beta_2=0.75",
        "strategy.tau=0.25",
        *more,
    )
    return ServerStep(settings)


@pytest.mark.parametrize(
    ("name", "second_moment"),
    [
        # v = 1/16 at the start, d = 2: 3/4 * 1/16 + 1/4 * 4
        ("adam", 1.046875),
        # 1/16 - 1/4 * 4 * sign(1/16 - 4)
        ("yogi", 1.0625),
        # 1/16 + 4
        ("adagrad", 4.0625),
    ],
)
def test_a_step_follows_the_mean_over_the_root_of_its_squares(
    make_settings: Make, name: str, second_moment: float
) -> None:
    step = adaptive(make_settings, name)
    after = step.apply(1, torch.tensor([1.0]), torch.tensor([3.0]))
    # m = 1/2 * 0 + 1/2 * 2 = 1, w = 1 + 1/2 * 1 / (sqrt(v) + 1/4)
    assert step.state["momentum"].tolist() == [1.0]
    assert step.state["second_moment"].tolist() == [second_moment]
    expected = 1 + 0.5 / (second_moment**0.5 + 0.25)
    assert after.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", ["adam", "yogi", "adagrad"])
def test_steps_are_those_of_flower(make_settings: Make, name: str) -> None:
    """Five rounds, more weights than one block, and Flower's own class on the same means.

    Flower begins with v = 0, the paper with tau^2, so Flower's v is set here. Flower's Adam scales
    the learning rate by a bias correction that the paper does not have; it is divided out.
    """
    ours = adaptive(make_settings, name)
    rates: dict[str, Any] = {"eta": 0.5, "tau": 0.25}
    theirs: Any = {"adam": FedAdam, "yogi": FedYogi, "adagrad": FedAdagrad}[name](
        **rates
    )
    # Its FedAdagrad takes no betas in its constructor.
    theirs.beta_1, theirs.beta_2 = 0.5, 0.75
    random = np.random.default_rng(0)
    tensors = torch.from_numpy(random.normal(size=BLOCK + 5).astype(np.float32))
    theirs.v_t = {"w": np.full(len(tensors), 0.25**2, dtype=np.float32)}
    for number in range(1, 6):
        mean = torch.from_numpy(random.normal(size=len(tensors)).astype(np.float32))
        theirs.current_arrays = {"w": tensors.numpy().copy()}
        if name == "adam":
            first = 1 - 0.5 ** (number + 1)
            second = 1 - 0.75 ** (number + 1)
            theirs.eta = 0.5 * first / np.sqrt(second)
        with pytest.MonkeyPatch.context() as patch:
            averaged = ArrayRecord({"w": Array(mean.numpy().copy())})
            patch.setattr(FedAvg, "aggregate_train", lambda *_: (averaged, None))  # noqa: B023
            expected, _ = theirs.aggregate_train(number, [])
        before = tensors.clone()
        after = ours.apply(number, tensors, mean)
        assert torch.equal(tensors, before)
        np.testing.assert_allclose(
            after.numpy(), expected["w"].numpy(), rtol=1e-5, atol=1e-6
        )
        tensors = after


def test_with_a_large_tau_adam_is_a_plain_step(make_settings: Make) -> None:
    # tau = 100 outweighs the squares of d = 2: 1/2 * 1 / (sqrt(0.75 * 1e4 + 1) + 100)
    step = adaptive(make_settings, "adam", "strategy.tau=100")
    after = step.apply(1, torch.tensor([0.0]), torch.tensor([2.0]))
    expected = 0.5 / ((0.75 * 1e4 + 1) ** 0.5 + 100)
    assert after.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (
            "strategy.server_momentum=1",
            r"strategy\.server_momentum is 1;",
        ),
        (
            "strategy.server_learning_rate=0",
            r"strategy\.server_learning_rate is 0;",
        ),
        (
            "strategy.optimizer=adam",
            r"strategy\.server_learning_rate is 1\.0.* strategy\.optimizer=adam",
        ),
        ("strategy.beta_2=1", r"strategy\.beta_2 is 1;"),
    ],
)
def test_values_out_of_range_are_refused(
    make_settings: Make, override: str, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        make_settings(override)
