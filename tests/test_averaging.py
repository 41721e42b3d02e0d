"""The weighted mean and its statistics of the updates, on numbers checked by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from wardround.common.errors import DIVERGED, RunFailed
from wardround.server.rounds.checks import check_finite
from wardround.server.rounds.mean import BLOCK, SumMemory, WeightedMean


def average(
    start: list[float], *updates: tuple[list[float], int]
) -> tuple[list[float], WeightedMean]:
    """Return the mean of (trained tensors, examples) pairs."""
    mean = WeightedMean(torch.tensor(start))
    for trained, num_examples in updates:
        mean.add(torch.tensor(trained), num_examples)
    return mean.finish().tensors.tolist(), mean


def test_mean_weighs_clients_by_examples() -> None:
    # A client of 1 example has 0, one of 3 examples has 4: (0*1 + 4*3) / 4 = 3
    assert average([7.0], ([0.0], 1), ([4.0], 3))[0] == [3.0]
    # (1*10 + 2*20 + 4*70) / 100 = 3.3
    assert average([0.0], ([1.0], 10), ([2.0], 20), ([4.0], 70))[0] == [
        pytest.approx(3.3, rel=1e-7)
    ]


def test_one_update_comes_back_bit_for_bit() -> None:
    start, trained = torch.randn(1000), torch.randn(1000)
    trained[:3] = torch.tensor([1e-38, -1e-12, 3e38])
    mean = WeightedMean(start)
    mean.add(trained, 12345)
    assert torch.equal(mean.finish().tensors, trained)


def test_averaging_weights_equals_adding_the_mean_delta() -> None:
    # FedAvg written both ways: sum n w / sum n, and w0 + sum n (w - w0) / sum n.
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(BLOCK + 17, generator=generator)
    updates = [
        (start + 0.01 * torch.randn(len(start), generator=generator), n)
        for n in (3, 50, 7)
    ]
    mean = WeightedMean(start)
    for trained, num_examples in updates:
        mean.add(trained, num_examples)
    weighted = [n * (w.double() - start.double()) for w, n in updates]
    delta = sum(weighted, torch.zeros(1)) / 60
    expected = (start.double() + delta).float()
    torch.testing.assert_close(mean.finish().tensors, expected, rtol=2e-7, atol=1e-9)


@pytest.mark.parametrize(
    "size", [1, 2, 1001, BLOCK, BLOCK + 1, 2 * BLOCK, 5 * BLOCK + 3]
)
def test_memory_that_was_used_before_changes_nothing(size: int) -> None:
    generator = torch.Generator().manual_seed(3)
    memory, current = SumMemory(), torch.randn(size, generator=generator)
    for _ in range(5):
        before = current.clone()
        updates = [
            (current + torch.randn(size, generator=generator), n) for n in (3, 50)
        ]
        mean, fresh = WeightedMean(current, memory), WeightedMean(before)
        for trained, num_examples in updates:
            mean.add(trained, num_examples)
            fresh.add(trained, num_examples)
        outcome, expected = mean.finish(), fresh.finish()
        assert torch.equal(outcome.tensors, expected.tensors)
        assert outcome.client_norms == expected.client_norms
        assert outcome.cosines_to_mean == expected.cosines_to_mean
        assert outcome.update_norm == expected.update_norm
        # The tensors that the clients started from are unchanged in this round.
        assert torch.equal(current, before)
        (first, n), (second, m) = updates
        whole = ((first.double() * n + second.double() * m) / (n + m)).float()
        torch.testing.assert_close(outcome.tensors, whole, rtol=1e-7, atol=0)
        current = outcome.tensors


def test_norms_and_cosines() -> None:
    # Deltas (3, 4) and (3, -4) of equal weight have norms 5 and 5.
    # Their mean (3, 0) has a norm of 3, so that the cosines are 3/5.
    mean = WeightedMean(torch.tensor([1.0, 1.0]))
    mean.add(torch.tensor([4.0, 5.0]), 2)
    mean.add(torch.tensor([4.0, -3.0]), 2)
    outcome = mean.finish()
    assert outcome.update_norm == 3.0
    assert outcome.client_norms == (5.0, 5.0)
    assert outcome.cosines_to_mean == pytest.approx((0.6, 0.6))


def test_updates_that_cancel_have_no_direction() -> None:
    mean = WeightedMean(torch.zeros(2))
    mean.add(torch.tensor([1.0, 2.0]), 1)
    mean.add(torch.tensor([-1.0, -2.0]), 1)
    outcome = mean.finish()
    assert outcome.update_norm == 0.0
    assert outcome.cosines_to_mean == (0.0, 0.0)


def test_sketched_cosine_is_close_on_many_blocks() -> None:
    generator = torch.Generator().manual_seed(2)
    size = 5 * BLOCK + 3
    common = torch.randn(size, generator=generator)
    deltas = [common + torch.randn(size, generator=generator) for _ in range(3)]
    mean = WeightedMean(torch.zeros(size))
    for delta in deltas:
        mean.add(delta, 1)
    exact = sum(deltas, torch.zeros(size)) / 3
    expected = [_cosine(delta, exact) for delta in deltas]
    assert mean.finish().cosines_to_mean == pytest.approx(expected, abs=0.01)


def _cosine(left: Tensor, right: Tensor) -> float:
    return torch.nn.functional.cosine_similarity(left, right, dim=0).item()


def test_a_norm_that_is_not_finite_ends_the_run() -> None:
    mean = WeightedMean(torch.tensor([-1e25]))
    mean.add(torch.tensor([1.0]), 1)
    expected = rf"round 3: norm is inf: {DIVERGED}.*train\.learning_rate"
    with pytest.raises(RunFailed, match=expected):
        check_finite(3, "norm", mean.finish().update_norm)
