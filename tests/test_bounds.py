"""The largest allowed step of the global model: numbers by hand, and honest rounds."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.hostile_settings import with_changes
from tests.support.tiny import Make
from wardround.client.bounds import (
    Allowed,
    RoundOfPlan,
    step_norms,
    tensors_too_far,
)
from wardround.client.global_model import check_global_model
from wardround.client.held import Held, HeldModel
from wardround.client.policy.limits import Policy
from wardround.client.yardstick import Yardstick
from wardround.common.errors import SiteRefusal
from wardround.common.files import write_json
from wardround.common.model.flat import Layout

LAYOUT = Layout.of({"a": (4,), "b": (2, 6)})
RATE = 0.5


@pytest.fixture
def plan(make_settings: Make) -> RoundOfPlan:
    """Return a plan of two steps a round, whose learning rates add up to 1."""
    words = (
        "train.local_epochs=1",
        "train.batch_size=8",
        "train.last_batch=even",
        "num_rounds=9",
    )
    settings = make_settings(*words, f"train.learning_rate={RATE}")
    return RoundOfPlan(settings, Policy(), num_texts=16, most_texts=16)


def with_settings(plan: RoundOfPlan, **changes: Any) -> RoundOfPlan:
    """The plan with dotted settings changed; `__` stands for the dot."""
    dotted = {key.replace("__", "."): value for key, value in changes.items()}
    return replace(plan, settings=with_changes(plan.settings, dotted))


def yardstick(a: float, b: float) -> Yardstick:
    """Return the yardstick of a site that moves its tensors by `a` and `b` in a round."""
    return Yardstick.of(np.array([a, b]), 1.0, None)


def norms(plan: RoundOfPlan, rounds: range = range(1, 2)) -> list[float]:
    """Return the bound of each tensor, for a site that moves them by 3 and 4."""
    allowed = plan.allowed(LAYOUT, yardstick(3.0, 4.0), rounds)
    assert allowed.largest == inf
    found: list[float] = allowed.norms.tolist()
    return found


def test_a_tensor_may_move_ten_times_as_far_as_the_site_moves_it(
    plan: RoundOfPlan,
) -> None:
    # 3 and 4 are 5 in all. Tensor a has 4 of 16 numbers: its even share of 5 is 2.5.
    # Tensor b has 12 of them: 4.33.
    once = [30.0, 10 * 5 * (12 / 16) ** 0.5]
    assert norms(plan) == pytest.approx(once)
    # A gap of three rounds has three times the bound, one of two hundred ten times.
    assert norms(plan, range(2, 5)) == pytest.approx([3 * most for most in once])
    assert norms(plan, range(1, 201)) == pytest.approx([10 * most for most in once])


def test_a_fixed_body_gets_no_allowance_from_the_head(plan: RoundOfPlan) -> None:
    """A plan can train the head alone, with a learning rate for the head."""
    with_head = replace(plan, head=frozenset({"a"}))
    allowed = with_head.allowed(LAYOUT, yardstick(3.0, 0.0), range(1, 2))
    assert allowed.norms.tolist() == [30.0, 0.0]


def test_more_texts_elsewhere_and_a_longer_server_step_raise_the_bound(
    plan: RoundOfPlan,
) -> None:
    own = norms(plan)
    larger = replace(plan, most_texts=64)  # another site takes 8 steps, this one 2
    assert norms(larger) == pytest.approx([4 * most for most in own])
    halved = with_settings(
        plan, strategy__server_momentum=0.5, strategy__server_learning_rate=0.5
    )
    assert norms(halved) == pytest.approx(own)
    # Both factors together are at most policy.max_size_ratio.
    strict = Policy(max_size_ratio=10)
    momentum = with_settings(larger, strategy__server_momentum=0.9)
    huge = replace(plan, most_texts=2**40)
    for wide, times in ((huge, 100), (momentum, 4 * 10)):
        assert norms(wide) == pytest.approx([times * most for most in own])
        assert norms(replace(wide, policy=strict)) == pytest.approx(
            [10 * most for most in own]
        )


def test_an_adaptive_server_moves_each_number_by_its_rate(plan: RoundOfPlan) -> None:
    adam = with_settings(
        plan, strategy__optimizer="adam", strategy__server_learning_rate=0.01
    )
    allowed = adam.allowed(LAYOUT, yardstick(3.0, 4.0), range(1, 3))
    assert allowed.norms.tolist() == [inf, inf]
    assert allowed.largest == pytest.approx(2 * 0.02345, rel=1e-3)
    # One number may not move the distance that is allowed for all together.
    before = flat(a=[0] * 4, b=[0] * 12)
    alike = flat(a=[0.04] * 4, b=[0.04] * 12)
    alone = flat(a=[0] * 4, b=[0.06] + [0] * 11)
    assert list(tensors_too_far(LAYOUT, alike, before, allowed)) == []
    (too_far,) = tensors_too_far(LAYOUT, alone, before, allowed)
    assert too_far[0] == "b"


def test_a_yardstick_grows_threefold_at_most_and_shrinks_at_once() -> None:
    first = yardstick(1.0, 1.0)
    grown = Yardstick.of(np.array([100.0, 2.0]), 1.0, first)
    assert grown.per_tensor.tolist() == [3.0, 2.0]
    smaller = Yardstick.of(np.array([0.5, 100.0]), 1.0, grown)
    assert smaller.per_tensor.tolist() == [0.5, 3.0]
    again = Yardstick.of(np.array([100.0, 1.0]), 1.0, smaller)
    assert again.per_tensor.tolist() == [1.5, 1.0]


def test_a_fixed_tensor_keeps_its_yardstick() -> None:
    first = yardstick(0.0, 2.0)  # only the head is trained
    second = Yardstick.of(np.array([5.0, 2.0]), 1.0, first)
    assert second.per_tensor.tolist() == [5.0, 2.0]
    third = Yardstick.of(np.array([0.0, 2.0]), 1.0, second)
    assert third.per_tensor.tolist() == [5.0, 2.0]


def flat(**numbers: Sequence[float]) -> torch.Tensor:
    """Return a model of the layout above, (P,) fp32."""
    found = torch.zeros(LAYOUT.size)
    for name, view in LAYOUT.views(found).items():
        view.copy_(torch.tensor(numbers[name]).reshape(view.shape))
    return found


def test_the_tensors_that_moved_too_far_are_named() -> None:
    before = flat(a=[0] * 4, b=[0] * 12)
    after = flat(a=[3, 4, 0, 0], b=[1] + [0] * 11)
    assert step_norms(LAYOUT, after, before).tolist() == [5.0, 1.0]
    narrow = Allowed(np.array([2.5, 1.0]), inf)
    assert list(tensors_too_far(LAYOUT, after, before, narrow)) == [("a", 2.0)]
    broken = flat(a=[float("nan")] * 4, b=[0] * 12)
    wide = Allowed(np.array([1e9, 1e9]), inf)
    assert [name for name, _ in tensors_too_far(LAYOUT, broken, before, wide)] == ["a"]


# --- the check as a whole -------------------------------------------------------------


class Lab:
    """A site that has answered round 1 of a plan, and receives models."""

    def __init__(self, folder: Path, plan: RoundOfPlan) -> None:
        self.plan, self.held = plan, Held(folder)
        self.start = torch.ones(LAYOUT.size)
        self.num_rehearsals = 0

    def rehearse(self) -> Yardstick:
        self.num_rehearsals += 1
        return yardstick(3.0, 4.0)

    def send(self, model: torch.Tensor, age: int) -> str:
        """Return the refusal; empty if the model is accepted."""
        try:
            check_global_model(
                model.numpy(),
                age,
                LAYOUT,
                self.held,
                self.plan,
                start=lambda: self.start,
                rehearse=self.rehearse,
            )
        except SiteRefusal as no:
            return no.code
        self.held.keep_model(HeldModel("v", age, model.numpy()))
        self.held.wait()
        return ""


@pytest.fixture
def lab(tmp_path: Path, plan: RoundOfPlan) -> Lab:
    """Return a site that has received no model."""
    return Lab(tmp_path / "plan", plan)


def moved(model: torch.Tensor, by: float) -> torch.Tensor:
    """Return the model with its first number moved, which is in tensor a."""
    after = model.clone()
    after[0] += by
    return after


def test_the_first_model_is_the_sites_own(lab: Lab) -> None:
    assert lab.send(moved(lab.start, 1e-3), 0) == "another_start"
    assert lab.send(lab.start.clone(), 0) == ""


def test_later_models_lie_within_the_bound_of_the_one_before(lab: Lab) -> None:
    assert lab.send(lab.start, 0) == ""
    lab.held.keep_yardstick(yardstick(3.0, 4.0))
    assert lab.send(moved(lab.start, 30.5), 1) == "too_far"
    assert lab.send(moved(lab.start, 29.5), 1) == ""
    # The bound is around the last accepted model, also after a restart.
    again = Lab(lab.held.folder, lab.plan)
    assert again.send(moved(lab.start, 29.5 + 30.5), 2) == "too_far"
    assert again.send(moved(lab.start, 29.5 + 29.5), 2) == ""
    # A second model of the same round must be the same.
    assert again.send(moved(lab.start, 1.0), 2) == "too_far"
    # Two rounds at once have twice the bound.
    assert again.send(moved(lab.start, 59 + 59), 4) == ""
    assert (lab.num_rehearsals, again.num_rehearsals) == (0, 0)


def test_a_full_disk_delays_what_a_site_keeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The work goes on when there is room again; it does not fail."""
    held = Held(tmp_path)
    fails = iter([True, True, False])

    def write(path: Path, content: Any) -> None:
        if next(fails):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write_json(path, content)

    pauses: list[float] = []
    monkeypatch.setattr("wardround.client.held.write_json", write)
    monkeypatch.setattr("wardround.client.held.time.sleep", pauses.append)
    held.keep_yardstick(yardstick(3.0, 4.0))
    found = held.yardstick()
    assert found is not None
    assert found.per_tensor.tolist() == [3.0, 4.0]
    assert len(pauses) == 2


def test_the_wait_for_room_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(path: Path, content: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    clock = iter([0.0, 10.0, 1e9])
    monkeypatch.setattr("wardround.client.held.write_json", write)
    monkeypatch.setattr("wardround.client.held.time.monotonic", lambda: next(clock))
    monkeypatch.setattr("wardround.client.held.time.sleep", lambda seconds: None)
    with pytest.raises(OSError, match=r"No space") as caught:
        Held(tmp_path).keep_yardstick(yardstick(3.0, 4.0))
    assert caught.value.errno == errno.ENOSPC


def test_a_late_site_rehearses_on_its_own_start(lab: Lab) -> None:
    assert lab.send(moved(lab.start, 61), 2) == "too_far"
    assert lab.num_rehearsals == 1
    assert lab.send(moved(lab.start, 59), 2) == ""


def test_a_damaged_file_of_the_held_model_is_not_used(lab: Lab) -> None:
    assert lab.send(lab.start, 0) == ""
    (file,) = lab.held.folder.glob("held.*")
    assert file.stat().st_mode & 0o077 == 0
    file.write_bytes(file.read_bytes()[:-8])
    assert lab.held.model() is None


def test_a_policy_without_a_bound_allows_any_step(lab: Lab) -> None:
    lab.plan = replace(lab.plan, policy=Policy(max_step_ratio=None))
    assert lab.send(moved(lab.start, 1e9), 3) == ""
    assert lab.num_rehearsals == 0
