"""A search for plans that single out one text, among those that the strict policy accepts.

Hypothesis draws plans with two or three unusual settings, and sites of all sizes. Plans that
the strict policy accepts are trained with the real training loop, in two ways that measure
the share of one text in the update:

    tracer      each text has a number that it alone moves: the share is how far it moves
    leave out   the text's loss is set to 0, with the same order and dropout: the share is
                the change of the update over the update
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy

from tests.support.hostile_settings import with_changes
from tests.support.tiny import Make
from wardround.client.policy.limits import Limits, Policy
from wardround.client.policy.verdict import refusals_of
from wardround.client.sizes import Sizes, size_refusals
from wardround.common.data.corpus import open_corpus
from wardround.common.data.tokens import TokenisedTexts
from wardround.common.model.influence import RoundSteps
from wardround.common.model.state import open_model
from wardround.common.model.train import Place, train_epochs
from wardround.common.settings.tree import Settings
from wardround.common.tasks.label import LABEL, LabelTask
from wardround.common.wire.signing import Plan

CPU = torch.device("cpu")
MOST = 4.0
"""The policy's promise: no text has more than this many times its even share of an update."""
NUM_ROUNDS = 4
VALUES: Mapping[str, tuple[Any, ...]] = {
    "train.local_epochs": (1, 2, 5),
    "train.batch_size": (1, 4, 8, 16, 32, 64),
    "train.learning_rate": (1e-4, 1e-3, 0.01, 0.1, 1.0),
    "train.head_learning_rate": (None, 1e-4, 0.1, 1.0),
    "train.head_warmup_rounds": (0, 2),
    "train.weight_decay": (0.0, 0.01, 0.5, 10.0),
    "train.proximal_mu": (0.0, 0.01, 0.5, 1.0, 10.0, 1000.0),
    "train.schedule": ("constant", "linear"),
    "train.schedule_rounds": (1, 3, NUM_ROUNDS, 99),
    "train.warmup_fraction": (0.0, 0.1, 0.5, 0.99),
    "train.max_grad_norm": (None, 1e-9, 1.0),
    "train.last_batch": ("even", "short"),
    "train.drop_last": (False, True),
    "train.shuffle": (True, False),
    "train.group_by_length": (False, True),
    "train.frozen": ("embeddings", "none"),
    "train.optimizer": ("sgd", "adamw"),
    "train.control_variates": (False, True),
}
"""Settings that a server may ask for, honest and hostile."""
SIZES = (50, 51, 57, 63, 64, 65, 96, 97)


@st.composite
def drawn_plans(draw: st.DrawFn) -> tuple[dict[str, Any], int, int]:
    """Draw changed settings, the site's number of texts, and a round."""
    any_key = st.sampled_from(sorted(VALUES))
    keys = draw(st.lists(any_key, min_size=2, max_size=3, unique=True))
    changes = {key: draw(st.sampled_from(VALUES[key])) for key in keys}
    num_texts = draw(st.sampled_from(SIZES))
    number = draw(st.integers(1, NUM_ROUNDS))
    return changes, num_texts, number


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Use one thread: the tensors are so small that threads would wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def base(make_settings: Make) -> Settings:
    """Return a plan that the strict policy accepts."""
    return make_settings(
        "engine=deployment",
        "data.label_names=[health,money,sport]",
        "evaluation.where=server",
        "num_clients=3",
        f"num_rounds={NUM_ROUNDS}",
        "threads=1",
        "train.local_epochs=1",
        "train.batch_size=8",
        "train.max_length=16",
        "train.learning_rate=0.05",
        "train.padding=longest",
        "train.last_batch=even",
        "train.frozen=embeddings",
        f"train.schedule_rounds={NUM_ROUNDS}",
    )


def is_accepted(plan: Settings, num_texts: int) -> bool:
    """Return True if a strict site of this size takes part."""
    policy = Policy(models="any", frozen=plan.train.frozen)
    limits = Limits(policy, "a", "SHA256:a", has_own_model=True)
    sites = {name: f"SHA256:{name}" for name in "abc"}
    signed = Plan(2, plan.to_dict(), sites, 0.0, 86_400.0, {}, "")
    refusals = list(refusals_of(signed, plan, limits))
    return not refusals and not list(size_refusals(plan, Sizes(num_texts, 10), policy))


def plan_of(base: Settings, changes: Mapping[str, Any]) -> Settings | None:
    """Return the changed settings; None if they contradict each other."""
    try:
        return with_changes(base, dict(changes))
    except ValueError:
        return None


# --- the tracer -----------------------------------------------------------------------


class Tracer(nn.Module):
    """A classifier of texts of one token. Each text has a number, which decides its label.

    Numbers stay near 0, so that every text has the same residual in every step. A number
    moves by the total weight of the steps that contain its text.
    """

    SCALE = 1e-6

    def __init__(self, num_texts: int) -> None:
        super().__init__()
        self.trace = nn.Parameter(torch.zeros(num_texts, dtype=torch.float64))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        own = self.SCALE * self.trace[input_ids[:, 0]]
        return SimpleNamespace(logits=torch.stack([own, -own], dim=1))


def traced(plan: Settings, num_texts: int, number: int) -> torch.Tensor:
    """Return how far each text's number moves in a round, (num_texts,)."""
    ids = np.arange(num_texts, dtype=np.int32)
    offsets = np.arange(num_texts + 1)
    labels = np.zeros(num_texts, dtype=np.int64)
    texts = TokenisedTexts(ids, offsets, labels, 0)
    model, indices = Tracer(num_texts), np.arange(num_texts)
    place = Place(plan.seed, number, 0, CPU, "fp32")
    train_epochs(model, LABEL, texts, indices, plan.train, place, ("trace",))
    return model.trace.detach().abs()


def traced_influence(plan: Settings, num_texts: int, number: int) -> float:
    """Return the largest share of a text by the tracer, as a multiple of its even share."""
    moved = traced(plan, num_texts, number)
    if moved.sum() == 0:
        return np.inf
    return float(num_texts * moved.max() / moved.sum())


@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.filter_too_much,
    ],
)
@given(drawn=drawn_plans())
def test_no_accepted_plan_gives_a_text_more_than_its_share(
    base: Settings, drawn: tuple[dict[str, Any], int, int]
) -> None:
    changes, num_texts, number = drawn
    plan = plan_of(base, changes)
    assume(plan is not None and is_accepted(plan, num_texts))
    assert plan is not None
    assert traced_influence(plan, num_texts, number) <= MOST


HOSTILE_PLANS: Mapping[str, tuple[dict[str, Any], int]] = {
    "only the last step counts": (
        {"train.proximal_mu": 10.0, "train.learning_rate": 0.1},
        96,
    ),
    "only the last step counts, by weight decay": (
        {"train.weight_decay": 10.0, "train.learning_rate": 0.1},
        96,
    ),
    "a last batch of one text": (
        {"train.last_batch": "short", "train.batch_size": 8},
        97,
    ),
    "only the last step of one text counts": (
        {
            "train.proximal_mu": 10.0,
            "train.learning_rate": 0.1,
            "train.last_batch": "short",
        },
        97,
    ),
    "a schedule that ends before the round": (
        {"train.schedule": "linear", "train.schedule_rounds": 1},
        64,
    ),
    "texts that are left out": (
        {"train.drop_last": True, "train.last_batch": "short", "train.batch_size": 64},
        65,
    ),
    "a larger pull than one": (
        {"train.proximal_mu": 50.0, "train.learning_rate": 0.1},
        96,
    ),
}


@pytest.mark.parametrize("name", HOSTILE_PLANS)
def test_the_tracer_finds_hostile_plans_that_the_policy_refuses(
    base: Settings, name: str
) -> None:
    """Each is refused. The tracer finds all except the one that leaves texts out."""
    changes, num_texts = HOSTILE_PLANS[name]
    plan = with_changes(base, changes)
    assert not is_accepted(plan, num_texts)
    reference = traced_influence(base, num_texts, NUM_ROUNDS)
    assert reference <= 1.2
    if name != "texts that are left out":
        assert traced_influence(plan, num_texts, NUM_ROUNDS) > MOST


def test_the_tracer_agrees_with_the_closed_form(base: Settings) -> None:
    """In the heaviest step of each epoch a text has the largest share of the policy's rule."""
    for changes in (
        {"train.proximal_mu": 0.5},
        {"train.schedule": "linear", "train.warmup_fraction": 0.3},
        {"train.batch_size": 16, "train.weight_decay": 0.3},
    ):
        plan = with_changes(base, changes)
        expected = RoundSteps(plan.train, 97, NUM_ROUNDS).largest_influence()
        found = traced_influence(plan, 97, NUM_ROUNDS)
        assert found == pytest.approx(expected, rel=1e-4)


# --- leaving a text out ---------------------------------------------------------------


@pytest.fixture
def tiny_corpus(make_settings: Make) -> TokenisedTexts:
    """Return the tiny texts of one label. Their gradients point the same way."""
    texts = open_corpus(make_settings("train.max_length=16")).train
    return texts.take(np.flatnonzero(texts.targets == 0))


@pytest.fixture
def leave_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give a text with the label -1 a loss of 0. It still counts for the size of its batch."""

    def weighted(
        task: LabelTask, logits: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        losses = cross_entropy(logits, labels.clamp(min=0), reduction="none")
        return (losses * (labels >= 0)).mean()

    monkeypatch.setattr(LabelTask, "loss", weighted)


def update_of(plan: Settings, texts: TokenisedTexts, number: int) -> torch.Tensor:
    """Return the update of a round, (P,) fp32."""
    state = open_model(plan, ("health", "money", "sport"), fresh=True)
    start, classifier = state.flat.clone(), state.text_model
    place = Place(plan.seed, number, 0, CPU, "fp32")
    indices = np.arange(len(texts))
    rest = (plan.train, place, classifier.new_head, classifier.frozen)
    train_epochs(classifier.model, LABEL, texts, indices, *rest)
    return state.flat - start


def share_of(plan: Settings, texts: TokenisedTexts, row: int, number: int) -> float:
    """Return the change of the update without one text, over the update."""
    whole = update_of(plan, texts, number)
    labels = texts.targets.copy()
    labels[row] = -1
    without = update_of(plan, replace(texts, targets=labels), number)
    return float((whole - without).norm() / whole.norm())


def heaviest_text(plan: Settings, num_texts: int, number: int) -> int:
    """Return the text with the largest share by the tracer."""
    return int(traced(plan, num_texts, number).argmax())


def reference_of(plan: Settings) -> Settings:
    """Return the same plan with a constant rate and no pull, in even batches."""
    plain = {
        "train.schedule": "constant",
        "train.proximal_mu": 0.0,
        "train.weight_decay": 0.0,
        "train.drop_last": False,
        "train.last_batch": "even",
    }
    return with_changes(plan, plain)


def relative_share(
    plan: Settings, base_texts: TokenisedTexts, num_texts: int, number: int
) -> float:
    """Return the share of the heaviest text over its share in the reference plan."""
    texts = base_texts.take(np.arange(num_texts) % len(base_texts))
    row = heaviest_text(plan, num_texts, number)
    reference = reference_of(plan)
    return share_of(plan, texts, row, number) / share_of(reference, texts, row, number)


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.filter_too_much,
        HealthCheck.too_slow,
    ],
)
@given(drawn=drawn_plans())
@pytest.mark.long
@pytest.mark.slow
def test_no_update_of_an_accepted_plan_changes_much_without_one_text(
    base: Settings,
    leave_out: None,
    tiny_corpus: TokenisedTexts,
    drawn: tuple[dict[str, Any], int, int],
) -> None:
    changes, num_texts, number = drawn
    plan = plan_of(base, changes)
    assume(plan is not None and is_accepted(plan, num_texts))
    assert plan is not None
    assert relative_share(plan, tiny_corpus, num_texts, number) <= MOST


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["only the last step of one text counts", "only the last step counts"]
)
def test_leaving_a_text_out_finds_hostile_plans_that_the_policy_refuses(
    base: Settings, leave_out: None, tiny_corpus: TokenisedTexts, name: str
) -> None:
    changes, num_texts = HOSTILE_PLANS[name]
    plan = with_changes(base, changes)
    assert relative_share(plan, tiny_corpus, num_texts, 1) > MOST
