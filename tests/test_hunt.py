"""A hunt for plans that single out one text, among those that the strict policy accepts.

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
"""The promise: no text has more than this many times its even share of an update."""
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
"""What a server may ask for, honest and hostile."""
SIZES = (50, 51, 57, 63, 64, 65, 96, 97)


@st.composite
def drawn_plans(draw: st.DrawFn) -> tuple[dict[str, Any], int, int]:
    """Settings away from their defaults, the site's number of texts, and a round."""
    keys = draw(
        st.lists(st.sampled_from(sorted(VALUES)), min_size=2, max_size=3, unique=True)
    )
    changes = {key: draw(st.sampled_from(VALUES[key])) for key in keys}
    return changes, draw(st.sampled_from(SIZES)), draw(st.integers(1, NUM_ROUNDS))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors are tiny: threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def base(make_settings: Make) -> Settings:
    """A plan that the strict policy accepts."""
    return make_settings(
        *(
            "engine=deployment",
            "data.label_names=[health,money,sport]",
            "evaluation.where=server",
        ),
        *(
            "num_clients=3",
            f"num_rounds={NUM_ROUNDS}",
            "threads=1",
            "train.local_epochs=1",
        ),
        *(
            "train.batch_size=8",
            "train.max_length=16",
            "train.learning_rate=0.05",
            "train.padding=longest",
        ),
        *(
            "train.last_batch=even",
            "train.frozen=embeddings",
            f"train.schedule_rounds={NUM_ROUNDS}",
        ),
    )


def is_accepted(plan: Settings, num_texts: int) -> bool:
    """Whether a strict site of this size takes part."""
    policy = Policy(models="any", frozen=plan.train.frozen)
    limits = Limits(policy, "a", "SHA256:a", has_own_model=True)
    sites = {name: f"SHA256:{name}" for name in "abc"}
    signed = Plan(2, plan.to_dict(), sites, 0.0, 86_400.0, {}, "")
    refusals = list(refusals_of(signed, plan, limits))
    return not refusals and not list(size_refusals(plan, Sizes(num_texts, 10), policy))


def plan_of(base: Settings, changes: Mapping[str, Any]) -> Settings | None:
    """The settings; None if they contradict each other."""
    try:
        return with_changes(base, dict(changes))
    except ValueError:
        return None


# --- the tracer -----------------------------------------------------------------------


class Tracer(nn.Module):
    """A classifier of texts that are one token: each has a number of its own, and answers by it.

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


def traced_influence(plan: Settings, num_texts: int, number: int) -> float:
    """The largest share of a text, as a multiple of its even share, by the tracer."""
    ids = np.arange(num_texts, dtype=np.int32)
    texts = TokenisedTexts(
        ids, np.arange(num_texts + 1), np.zeros(num_texts, dtype=np.int64), 0
    )
    model, indices = Tracer(num_texts), np.arange(num_texts)
    train_epochs(
        model,
        LABEL,
        texts,
        indices,
        plan.train,
        Place(plan.seed, number, 0, CPU, "fp32"),
        ("trace",),
    )
    moved = model.trace.detach().abs()
    return float(num_texts * moved.max() / moved.sum()) if moved.sum() > 0 else np.inf


@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.filter_too_much,
    ],
)
@given(drawn=drawn_plans())
def test_no_accepted_plan_gives_one_text_more_than_its_share(
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
    "weight decay does the same": (
        {"train.weight_decay": 10.0, "train.learning_rate": 0.1},
        96,
    ),
    "a last batch of one text": (
        {"train.last_batch": "short", "train.batch_size": 8},
        97,
    ),
    "both": (
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
def test_the_hunt_would_find_what_the_policy_refuses(base: Settings, name: str) -> None:
    """Each is refused; otherwise the tracer would fail, or training would learn nothing."""
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
        assert traced_influence(plan, 97, NUM_ROUNDS) == pytest.approx(
            expected, rel=1e-4
        )


# --- leaving a text out ---------------------------------------------------------------


@pytest.fixture
def tiny_corpus(make_settings: Make) -> TokenisedTexts:
    """The tiny texts of one label: their gradients point the same way, so that shares add up."""
    texts = open_corpus(make_settings("train.max_length=16")).train
    return texts.take(np.flatnonzero(texts.targets == 0))


@pytest.fixture
def leave_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A text with the label -1 counts nothing in the loss, and as one text in its batch."""

    def weighted(
        task: LabelTask, logits: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        losses = cross_entropy(logits, labels.clamp(min=0), reduction="none")
        return (losses * (labels >= 0)).mean()

    monkeypatch.setattr(LabelTask, "loss", weighted)


def update_of(plan: Settings, texts: TokenisedTexts, number: int) -> torch.Tensor:
    """What a round moves, (P,) fp32."""
    state = open_model(plan, ("health", "money", "sport"), fresh=True)
    start, classifier = state.flat.clone(), state.text_model
    place = Place(plan.seed, number, 0, CPU, "fp32")
    heads = (classifier.new_head, classifier.frozen)
    train_epochs(
        classifier.model, LABEL, texts, np.arange(len(texts)), plan.train, place, *heads
    )
    return state.flat - start


def share_of(plan: Settings, texts: TokenisedTexts, row: int, number: int) -> float:
    """How far the update changes without one text, over the update."""
    whole = update_of(plan, texts, number)
    labels = texts.targets.copy()
    labels[row] = -1
    without = update_of(plan, replace(texts, targets=labels), number)
    return float((whole - without).norm() / whole.norm())


def heaviest_text(plan: Settings, num_texts: int, number: int) -> int:
    """The text with the largest share by the tracer."""
    ids = np.arange(num_texts, dtype=np.int32)
    texts = TokenisedTexts(
        ids, np.arange(num_texts + 1), np.zeros(num_texts, dtype=np.int64), 0
    )
    model = Tracer(num_texts)
    place = Place(plan.seed, number, 0, CPU, "fp32")
    train_epochs(
        model, LABEL, texts, np.arange(num_texts), plan.train, place, ("trace",)
    )
    return int(model.trace.detach().abs().argmax())


def reference_of(plan: Settings) -> Settings:
    """The same plan with a constant rate and no pull, in even batches."""
    plain = {
        "train.schedule": "constant",
        "train.proximal_mu": 0.0,
        "train.weight_decay": 0.0,
    }
    return with_changes(
        plan, plain | {"train.drop_last": False, "train.last_batch": "even"}
    )


def relative_share(
    plan: Settings, base_texts: TokenisedTexts, num_texts: int, number: int
) -> float:
    """Share of the heaviest text over its share in the reference plan."""
    texts = base_texts.take(np.arange(num_texts) % len(base_texts))
    row = heaviest_text(plan, num_texts, number)
    reference = reference_of(plan)
    return share_of(plan, texts, row, number) / share_of(reference, texts, row, number)


@pytest.mark.slow
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
def test_leaving_a_text_out_changes_no_accepted_plan_by_more_than_its_share(
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
@pytest.mark.parametrize("name", ["both", "only the last step counts"])
def test_leaving_a_text_out_would_find_what_the_policy_refuses(
    base: Settings, leave_out: None, tiny_corpus: TokenisedTexts, name: str
) -> None:
    changes, num_texts = HOSTILE_PLANS[name]
    plan = with_changes(base, changes)
    assert relative_share(plan, tiny_corpus, num_texts, 1) > MOST
