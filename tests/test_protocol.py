"""Every switch between the paper's text and the authors' code has its effect."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.runs import history
from tests.support.tiny import Make, model_at, write_model
from wardround.common.data.batches import training_steps
from wardround.common.data.steps import count_steps
from wardround.common.data.tokens import TokenisedTexts
from wardround.common.model.build import build_model
from wardround.common.model.flat import flatten_model
from wardround.common.model.heads import draw_head
from wardround.common.model.influence import learning_rate_at
from wardround.common.model.state import open_model
from wardround.common.tasks.label import LABEL, label_sums
from wardround.common.tasks.sums import Sums
from wardround.server.engines.simulate import simulate
from wardround.server.rounds.evaluation import Evaluation
from wardround.server.rounds.mean import WeightedMean

CPU = torch.device("cpu")
# Three texts of 3, 5 and 4 tokens.
TEXTS = TokenisedTexts(
    ids=np.array([2, 9, 3, 2, 5, 6, 7, 3, 2, 8, 8, 3], dtype=np.int32),
    starts=np.array([0, 3, 8, 12]),
    targets=np.array([0, 1, 0]),
    pad_id=0,
)


def test_a_batch_is_padded_and_masked() -> None:
    batch = TEXTS.batch(np.array([2, 0]), pad_to=6, mask=True, device=CPU)
    assert batch.input_ids.tolist() == [[2, 8, 8, 3, 0, 0], [2, 9, 3, 0, 0, 0]]
    assert batch.attention_mask is not None
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0, 0]]
    assert batch.targets.tolist() == [0, 0]
    longest = TEXTS.batch(np.array([2, 0]), pad_to=None, mask=False, device=CPU)
    assert longest.input_ids.shape == (2, 4)
    assert longest.attention_mask is None


@pytest.mark.parametrize("shuffle", [True, False])
def test_shuffling_draws_a_new_order_each_epoch(
    make_settings: Make, shuffle: bool
) -> None:
    settings = make_settings(
        f"train.shuffle={str(shuffle).lower()}", "train.batch_size=1"
    ).train
    texts = TokenisedTexts(
        np.arange(40, dtype=np.int32), np.arange(41), np.zeros(40, dtype=np.int64), 0
    )
    steps = list(
        training_steps(texts, np.arange(40), settings, np.random.default_rng(0), CPU)
    )
    seen = [int(batch.input_ids[0, 0]) for (batch,) in steps]
    first, second = seen[:40], seen[40:]
    assert sorted(first) == sorted(second) == list(range(40))
    assert (first == second == list(range(40))) is not shuffle


def test_drop_last_leaves_out_the_short_batch(make_settings: Make) -> None:
    keep = make_settings().train
    drop = make_settings("train.drop_last=true").train
    # In batches of 4:
    assert count_steps(10, keep) == 3
    assert count_steps(10, drop) == 2
    with pytest.raises(ValueError, match=r"train\.drop_last=true"):
        count_steps(3, drop)


def test_linear_schedule_warms_up_and_decays(make_settings: Make) -> None:
    settings = make_settings(
        "protocol=modern", "train.learning_rate=1.0", "train.warmup_fraction=0.2"
    ).train
    rates = [learning_rate_at(1.0, settings, step, 10) for step in (0, 1, 2, 6, 10, 12)]
    # Two steps up (1/2, 1), then eight down to zero at step 10, and zero after it.
    assert rates == [0.5, 1.0, 1.0, 0.5, 0.0, 0.0]


@pytest.mark.parametrize(
    ("kind", "head"),
    [
        ("bert", ("classifier.bias", "classifier.weight")),
        ("albert", ("classifier.bias", "classifier.weight")),
        (
            "distilbert",
            (
                "classifier.bias",
                "classifier.weight",
                "pre_classifier.bias",
                "pre_classifier.weight",
            ),
        ),
    ],
)
def test_the_new_head_is_not_pretrained(
    tmp_path: Path, kind: str, head: tuple[str, ...]
) -> None:
    where = model_at(write_model(tmp_path / kind, kind))
    first = build_model(LABEL, where, ("a", "b"), seed=1)
    again, other = (build_model(LABEL, where, ("a", "b"), seed=seed) for seed in (1, 2))
    assert first.new_head == head
    weights = [
        dict(built.model.named_parameters())["classifier.weight"]
        for built in (first, again, other)
    ]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert weights[0].std().item() == pytest.approx(0.02, rel=0.5)


def test_averaging_heads_drawn_per_site_shrinks_them() -> None:
    # The mean of K independent heads of deviation s has deviation s / sqrt(K).
    # For K = 16: 0.02 / 4.
    model: Any = torch.nn.Module()
    model.config = SimpleNamespace(initializer_range=0.02)
    model.register_parameter(
        "classifier_weight", torch.nn.Parameter(torch.zeros(200, 50))
    )
    _, flat = flatten_model(model, CPU)
    mean = WeightedMean(flat.clone())
    for client in range(16):
        draw_head(model, ("classifier_weight",), seed=0, client=client + 1)
        mean.add(flat, 10)
    assert mean.finish().tensors.std().item() == pytest.approx(0.02 / 4, rel=0.05)


def test_per_site_heads_change_round_one_only(
    make_settings: Make, tmp_path: Path
) -> None:
    for name in ("shared", "per_site"):
        simulate(
            make_settings(
                f"train.head_init={name}",
                f"run_dir={tmp_path / name}",
                "train.learning_rate=1e-9",
            )
        )
    shared, per_site = (
        [line["model_sha256"] for line in history(tmp_path / name)]
        for name in ("shared", "per_site")
    )
    norms = history(tmp_path / "per_site")
    assert shared[0] == per_site[0]
    assert shared[1] != per_site[1]
    # At this learning rate training changes nothing; only round 1 replaces the head.
    assert norms[1]["clients"][0]["update_norm"] > 0.01
    assert norms[2]["clients"][0]["update_norm"] < 1e-4


def test_a_shrunk_head_has_the_norm_of_a_mean_of_drawn_heads(
    make_settings: Make,
) -> None:
    shared, shrunk = (
        open_model(
            make_settings(f"train.head_init={name}", "num_clients=4"),
            ("a", "b", "c"),
            fresh=True,
        )
        for name in ("shared", "shared_shrunk")
    )
    for name, tensor in shared.text_model.model.named_parameters():
        factor = 0.5 if name == "classifier.weight" else 1.0  # 1 / sqrt(4)
        assert torch.equal(shrunk.text_model.model.get_parameter(name), tensor * factor)


def test_without_an_attention_mask_padding_changes_the_loss(
    make_settings: Make,
) -> None:
    losses = []
    for mask in ("true", "false"):
        settings = make_settings(f"train.attention_mask={mask}")
        model_state = open_model(settings, ("a", "b", "c"), fresh=True)
        texts = TokenisedTexts(TEXTS.ids % 20, TEXTS.starts, TEXTS.targets, 0)
        evaluation = Evaluation(settings, model_state, texts)
        losses.append(evaluation.count(texts, np.arange(3)).loss)
    assert losses[0] != losses[1]


def test_parts_accuracy_is_a_mean_of_batch_means(make_settings: Make) -> None:
    # Five test texts, two parts (3 and 2), batches of 2. The means of the parts have equal weight.
    # The means of the batches inside a part have equal weight too, even of a short batch.
    settings = make_settings(
        "num_clients=2", "evaluation.mode=parts", "evaluation.batch_size=2"
    )
    model_state = open_model(settings, ("a", "b", "c"), fresh=True)
    evaluation = Evaluation(settings, model_state, _five())
    batches = {0: (1.0, 0.0), 3: (0.5,)}

    def count(test: TokenisedTexts, indices: np.ndarray) -> Sums:
        return label_sums(1.0, np.diag([len(indices), 0, 0]), batches[int(indices[0])])

    evaluation.count = count  # type: ignore[method-assign]
    measured = evaluation.measure(evaluation.model_state.flat.clone())
    assert measured is not None
    counts, accuracy = measured
    assert accuracy == pytest.approx((0.5 + 0.5) / 2)
    assert counts.num_examples == 5


def _five() -> TokenisedTexts:
    return TokenisedTexts(
        np.arange(5, dtype=np.int32), np.arange(6), np.zeros(5, dtype=np.int64), 0
    )


def test_accuracy_loss_and_macro_f1_are_those_computed_by_hand() -> None:
    # Class 0: 2 of 3 correct; class 1: 1 of 1, and one 0 predicted as 1; class 2 is absent.
    counts = label_sums(6.0, np.array([[2, 1, 0], [0, 1, 0], [0, 0, 0]]))
    metrics = LABEL.metrics(counts)
    assert metrics["accuracy"] == 3 / 4
    assert counts.loss == 1.5
    # F1: 2*2/(3+2) = 0.8, 2*1/(1+2) = 2/3, 0
    assert metrics["macro_f1"] == pytest.approx((0.8 + 2 / 3 + 0) / 3)
    both = counts + counts
    assert (both.num_examples, both.loss) == (8, 1.5)


def test_a_run_with_the_authors_protocol_finishes(make_settings: Make) -> None:
    settings = make_settings(
        "protocol=authors_code", "train.batch_size=4", "num_rounds=2"
    )
    simulate(settings)
    assert len(history(Path(settings.run_dir))) == 3


def test_a_run_with_the_modern_protocol_learns(make_settings: Make) -> None:
    settings = make_settings(
        "protocol=modern", "train.learning_rate=0.03", "num_rounds=6"
    )
    simulate(settings)
    assert history(Path(settings.run_dir))[-1]["test"]["accuracy"] > 0.6
