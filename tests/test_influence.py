"""The share of one text in an update: closed form, optimiser and policy agree."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.hostile_settings import with_changes
from tests.support.tiny import Make
from wardround.client.policy.limits import Policy
from wardround.client.policy.steps import adaptive_step
from wardround.client.sizes import MOST_PULL, Sizes, largest_influence, size_refusals
from wardround.common.data.steps import CUTS
from wardround.common.model.influence import RoundSteps, learning_rate_at
from wardround.common.model.speaking import Speaking
from wardround.common.settings.tree import Settings
from wardround.common.tasks.label import LABEL


@pytest.fixture
def plan(make_settings: Make) -> Settings:
    """Return a plan of three rounds of SGD: one epoch each, in even batches of 8."""
    words = ("train.local_epochs=1", "train.batch_size=8", "train.last_batch=even")
    return make_settings(*words, "train.learning_rate=0.1", "num_rounds=3")


def changed(settings: Settings, **train: Any) -> Settings:
    """Return the settings with other values under `train`."""
    changes = {f"train.{key}": value for key, value in train.items()}
    return with_changes(settings, changes)


# --- even batches ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_texts", "sizes"),
    [
        (1, [1]),
        (7, [7]),
        (8, [8]),
        (15, [15]),
        (16, [8, 8]),
        (17, [9, 8]),
        (33, [9, 8, 8, 8]),
    ],
)
def test_even_batches_differ_by_one_and_are_never_small(
    num_texts: int, sizes: list[int]
) -> None:
    batches = CUTS["even"](np.arange(num_texts), 8)
    assert [len(batch) for batch in batches] == sizes
    assert np.concatenate(batches).tolist() == list(range(num_texts))


def test_a_short_last_batch_can_hold_one_text() -> None:
    assert [len(batch) for batch in CUTS["short"](np.arange(17), 8)] == [8, 8, 1]


# --- the weight of a step -------------------------------------------------------------


def test_later_steps_reduce_the_weight_of_a_step(plan: Settings) -> None:
    # Three steps of rate 1/4 with mu + wd = 1: each keeps 3/4 of the steps before it.
    train = changed(plan, learning_rate=0.25, proximal_mu=0.75, weight_decay=0.25).train
    weights = RoundSteps(train, 24, 1).weights(0.25)
    assert weights.tolist() == [0.25 * 0.5625, 0.25 * 0.75, 0.25]


def test_with_a_pull_of_one_over_the_rate_only_the_last_step_counts(
    plan: Settings,
) -> None:
    train = changed(plan, learning_rate=0.1, proximal_mu=10.0).train
    steps = RoundSteps(train, 24, 1)
    assert steps.weights(0.1).tolist() == [0.0, 0.0, 0.1]
    # The update comes from the 8 texts of the last step, of 24.
    assert steps.largest_influence() == pytest.approx(3.0)
    # If the last batch is one text, the update comes from that text.
    short = replace(train, last_batch="short")
    assert RoundSteps(short, 17, 1).largest_influence() == pytest.approx(17.0)


def test_weights_are_those_of_the_optimiser(plan: Settings) -> None:
    """Each step has its own coordinate with gradient 1, which shows its weight at the end."""
    train = changed(
        plan,
        learning_rate=0.2,
        proximal_mu=0.3,
        weight_decay=0.1,
        schedule="linear",
        schedule_rounds=3,
        warmup_fraction=0.4,
    ).train
    steps = RoundSteps(train, 40, 2)
    weights = torch.zeros(steps.total, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([weights], lr=1.0, weight_decay=train.weight_decay)
    for number in range(steps.total):
        optimizer.param_groups[0]["lr"] = steps.rate(train.learning_rate, number)
        weights.grad = torch.zeros_like(weights)
        weights.grad[number] = 1.0
        weights.grad += train.proximal_mu * weights.detach()
        optimizer.step()
    found = -weights.detach().numpy()
    np.testing.assert_allclose(found, steps.weights(0.2), rtol=1e-12)


def test_the_rates_of_a_round_are_those_of_its_steps(plan: Settings) -> None:
    linear = changed(plan, schedule="linear", schedule_rounds=3)
    for warmup in (0.0, 0.3, 0.99):
        train = changed(linear, warmup_fraction=warmup).train
        for number in (1, 2, 3, 4):
            steps = RoundSteps(train, 50, number)
            before, total = (number - 1) * steps.total, 3 * steps.total
            one_by_one = [
                learning_rate_at(0.1, train, before + step, total)
                for step in range(steps.total)
            ]
            np.testing.assert_allclose(steps.rates(0.1), one_by_one, rtol=1e-12)


# --- the verdict of a policy ----------------------------------------------------------


def refused(settings: Settings, num_texts: int) -> list[str]:
    """Return the settings, or codes, for which a strict site of this size refuses a plan."""
    found = size_refusals(settings, Sizes(num_texts, 10), Policy())
    return [key or code for code, key, _ in found]


def test_a_pull_is_bounded_over_all_steps_of_a_round(plan: Settings) -> None:
    # 400 texts make 50 steps of 0.1: mu = 0.08 is a pull of 0.4.
    assert refused(changed(plan, proximal_mu=0.08), 400) == []
    assert refused(changed(plan, proximal_mu=0.081), 400) == ["train.proximal_mu"]
    # The same mu pulls twice as much over twice as many texts.
    assert refused(changed(plan, proximal_mu=0.08), 800) == ["train.proximal_mu"]
    assert refused(changed(plan, weight_decay=0.1), 400) == ["train.weight_decay"]
    # A head with ten times the rate is pulled ten times as much.
    fast_head = changed(plan, proximal_mu=0.01, head_learning_rate=1.0)
    assert refused(fast_head, 400) == ["train.proximal_mu"]


def test_a_site_with_too_few_texts_or_tokens_is_refused(plan: Settings) -> None:
    assert refused(plan, 49) == ["too_few_texts"]
    few = Sizes(50, 10, num_tokens=3071, hidden_size=768)
    codes = [code for code, _, _ in size_refusals(plan, few, Policy())]
    assert codes == ["too_few_tokens"]
    enough = replace(few, num_tokens=3072)
    assert list(size_refusals(plan, enough, Policy())) == []


@pytest.mark.parametrize("num_texts", [50, 63, 64, 65, 400, 401, 407])
@pytest.mark.parametrize("epochs", [1, 2, 10])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.99])
def test_the_worst_plan_within_all_bounds_keeps_the_promise(
    plan: Settings, num_texts: int, epochs: int, warmup: float
) -> None:
    """Schedule, cut and pull at their limits give at most 3.75 times the even share."""
    steps = RoundSteps(changed(plan, local_epochs=epochs).train, num_texts, 1)
    worst = changed(
        plan,
        local_epochs=epochs,
        proximal_mu=MOST_PULL / (steps.total * 0.1),
        schedule="linear",
        schedule_rounds=3,
        warmup_fraction=warmup,
    )
    assert refused(worst, num_texts) == []
    assert 1.0 <= largest_influence(worst, num_texts) <= 3.75


def test_a_schedule_that_ends_before_the_last_round_is_refused(plan: Settings) -> None:
    """After its end no step moves a weight, so that the share of a text has no bound."""
    over = changed(plan, schedule="linear", schedule_rounds=2)
    assert largest_influence(over, 64) == np.inf
    assert refused(over, 64) == ["train.batch_size"]


def test_the_bound_of_an_adaptive_step_is_that_of_the_worst_updates() -> None:
    """The worst sequence of updates of one weight is known."""
    beta_1, beta_2 = 0.9, 0.99
    bound = adaptive_step(beta_1, beta_2)
    assert bound == pytest.approx(2.345, abs=1e-3)
    # It grows by beta_1 / beta_2 for each step backwards: then the two sides of the
    # inequality of Cauchy and Schwarz are equal.
    updates = [(beta_1 / beta_2) ** age for age in reversed(range(400))]
    m = v = 0.0
    for update in updates:
        m = beta_1 * m + (1 - beta_1) * update
        v = beta_2 * v + (1 - beta_2) * update**2
    assert m / v**0.5 == pytest.approx(bound, rel=1e-3)
    assert adaptive_step(0.99, 0.9) == np.inf


# --- the number of speaking texts -----------------------------------------------------


def speaking_with(plan: Settings, probabilities: list[list[float]]) -> float:
    """Return the number of texts that speak. All have label 0 and are in one step."""
    num = len(probabilities)
    steps = RoundSteps(changed(plan, batch_size=num).train, num, 1)
    speaking = Speaking(steps)
    speaking.open(num, torch.device("cpu"))
    logits = torch.tensor(probabilities).log()
    residuals = LABEL.residuals(logits, torch.zeros(num, dtype=torch.int64))
    speaking.note(0, torch.arange(num), residuals, num)
    return speaking.num_speaking()


def test_texts_speak_by_their_residuals(plan: Settings) -> None:
    even = [0.5, 0.5]
    assert speaking_with(plan, [even] * 8) == pytest.approx(8.0)
    # The residuals are 1/2 and 1/4, each times sqrt(2).
    # (8 * 1/2 + 8 * 1/4)^2 / (8 * 1/4 + 8 * 1/16) = 14.4.
    assert speaking_with(plan, [even] * 8 + [[0.75, 0.25]] * 8) == pytest.approx(14.4)
    sure = [1 - 1e-7, 1e-7]
    assert speaking_with(plan, [even] + [sure] * 15) == pytest.approx(1.0, abs=1e-4)


def test_a_text_speaks_in_each_of_its_steps(plan: Settings) -> None:
    steps = RoundSteps(changed(plan, local_epochs=2, batch_size=2).train, 2, 1)
    speaking = Speaking(steps)
    speaking.open(4, torch.device("cpu"))
    for step in range(2):
        speaking.note(step, torch.tensor([1, 3]), torch.ones(2), 2)
    assert speaking.num_speaking() == pytest.approx(2.0)
