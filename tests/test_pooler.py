"""The pooler that the study of the collapse trains without labels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModel, BertConfig
from transformers.models.bert.modeling_bert import BertPooler

from studies.pooler import (
    make,
    make_shuffled,
    pairs_of,
    shuffle,
    size_of,
    spare_articles,
    train_pooler,
)
from tests.support.tiny import Make, model_at
from wardround.common.data.dataset import read_texts
from wardround.common.model.build import build_model
from wardround.common.tasks.label import LABEL
from wardround.server.compose import compose

ARTICLES = [
    "goal match. team goal! win cup?",
    "bank money. market share.",
    "vote law. party vote. law bill.",
]


def test_pairs_are_neighbours_and_strangers() -> None:
    pairs, labels = pairs_of(ARTICLES, seed=0)
    assert labels.tolist() == [1, 0] * 5  # 2 + 1 + 2 neighbours
    assert pairs[0] == ("goal match.", "team goal!")
    own = [next(text for text in ARTICLES if first in text) for first, _ in pairs]
    is_near = [second in text for (_, second), text in zip(pairs, own, strict=True)]
    assert is_near == [True, False] * 5


def test_a_shuffled_pooler_has_the_same_numbers_in_another_order() -> None:
    pooler = BertPooler(BertConfig(hidden_size=8))
    before = [parameter.detach().clone() for parameter in pooler.parameters()]
    shuffle(pooler, seed=0)
    for old, new in zip(before, pooler.parameters(), strict=True):
        in_order = new.detach().flatten().sort().values
        assert torch.equal(old.flatten().sort().values, in_order)
    assert not torch.equal(before[0], pooler.dense.weight)


def test_the_size_of_a_pooler_is_its_norm_and_its_largest_direction() -> None:
    pooler = BertPooler(BertConfig(hidden_size=8))
    pooler.dense.weight.data = torch.outer(torch.ones(8), torch.full((8,), 2.0))
    norm, largest = size_of(pooler)
    # The matrix has one direction only, so both measures are equal.
    assert norm == pytest.approx(16.0) == largest
    pooler.dense.weight.data = torch.eye(8)
    assert size_of(pooler) == pytest.approx((8**0.5, 1.0))


def test_a_pooler_learns_a_difference_that_a_constant_one_cannot() -> None:
    torch.manual_seed(0)
    states = torch.randn(2000, 8)
    pooler = BertPooler(BertConfig(hidden_size=8))
    torch.nn.init.zeros_(pooler.dense.weight)
    fixed, trained = train_pooler(pooler, states, (states[:, 0] > 0).long(), seed=0)
    assert fixed < 0.65
    assert trained > 0.95


def weights(folder: Path | str) -> dict[str, Tensor]:
    """Return the tensors of an encoder."""
    found: dict[str, Tensor] = AutoModel.from_pretrained(folder).state_dict()
    return found


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    """Return the names of the tensors that differ."""
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.slow
def test_two_folders_differ_in_the_pooler_alone(
    make_settings: Make, tmp_path: Path
) -> None:
    settings = make_settings()
    num_pairs, *accuracies = make(settings, ARTICLES * 4, tmp_path / "out")
    assert num_pairs == 40
    assert all(0 <= accuracy <= 1 for accuracy in accuracies)
    start = weights(settings.model.name)
    trained = weights(tmp_path / "out/trained")
    shuffled = weights(tmp_path / "out/shuffled")
    pooler = {"pooler.dense.weight", "pooler.dense.bias"}
    assert changed(start, trained) == pooler
    assert changed(trained, shuffled) == pooler
    make_shuffled(settings, None, tmp_path / "only")
    # A bias of zeros stays the same.
    only = weights(tmp_path / "only/shuffled")
    assert changed(start, only) == {"pooler.dense.weight"}
    # Only the classifier is new in such a folder, and is trained.
    built = build_model(LABEL, model_at(tmp_path / "out/trained"), ("a", "b"), seed=0)
    assert built.new_head == ("classifier.bias", "classifier.weight")


def test_no_run_of_the_study_uses_the_spare_articles(overrides: list[str]) -> None:
    kept = [
        text
        for text in overrides
        if not text.startswith(("seed", "data.train", "data.test"))
    ]
    some = [
        *kept,
        "data.train_examples=6",
        "data.test_fraction=0.2",
        "data.test_examples=2",
    ]
    spare = spare_articles(some, [0, 1])
    assert spare
    for seed in (0, 1):
        drawn = read_texts(LABEL, compose([*some, f"seed={seed}"]).settings.data, seed)
        assert not {*drawn.train.texts, *drawn.test.texts} & set(spare)
