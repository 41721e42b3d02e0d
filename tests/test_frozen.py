"""Frozen embeddings: weights that hold the vector of a single token are not trained or sent."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.support.tiny import Make, write_model
from wardround.common.data.corpus import open_corpus
from wardround.common.model.state import open_model
from wardround.common.model.train import Place, train_epochs
from wardround.common.tasks.label import LABEL
from wardround.server.engines.simulate import simulate

LABELS = ("health", "money", "sport")
EMBEDDINGS = {
    "bert": {
        "bert.embeddings.word_embeddings.weight",
        "bert.embeddings.position_embeddings.weight",
        "bert.embeddings.token_type_embeddings.weight",
        "bert.embeddings.LayerNorm.weight",
        "bert.embeddings.LayerNorm.bias",
    },
    "distilbert": {
        "distilbert.embeddings.word_embeddings.weight",
        "distilbert.embeddings.position_embeddings.weight",
        "distilbert.embeddings.LayerNorm.weight",
        "distilbert.embeddings.LayerNorm.bias",
    },
    "albert": {
        "albert.embeddings.word_embeddings.weight",
        "albert.embeddings.position_embeddings.weight",
        "albert.embeddings.token_type_embeddings.weight",
        "albert.embeddings.LayerNorm.weight",
        "albert.embeddings.LayerNorm.bias",
        "albert.encoder.embedding_hidden_mapping_in.weight",
        "albert.encoder.embedding_hidden_mapping_in.bias",
    },
    "llama": {"model.embed_tokens.weight"},
}


@pytest.mark.parametrize("kind", EMBEDDINGS)
def test_these_weights_are_frozen(
    make_settings: Make, tmp_path: Path, kind: str
) -> None:
    model = write_model(tmp_path / kind, kind)
    settings = make_settings(f"model.name={model}", "train.frozen=embeddings")
    state = open_model(settings, LABELS, fresh=True)
    assert state.text_model.frozen == EMBEDDINGS[kind]
    everything = {name for name, _ in state.text_model.model.named_parameters()}
    assert set(state.layout.names) == everything - EMBEDDINGS[kind]


def test_frozen_weights_stay_and_all_others_change(
    make_settings: Make, tiny_model: Path, tmp_path: Path
) -> None:
    # Weight decay and clipping would change a weight that is only left out of the message.
    words = (
        "train.frozen=embeddings",
        "train.weight_decay=0.1",
        "train.max_grad_norm=0.5",
    )
    simulate(make_settings(*words))
    before = load_file(tiny_model / "model.safetensors")
    after = load_file(tmp_path / "run" / "model" / "model.safetensors")
    for name, tensor in before.items():
        found = after.get(f"bert.{name}")
        if found is not None:
            is_frozen = f"bert.{name}" in EMBEDDINGS["bert"]
            assert torch.equal(found, tensor) == is_frozen, name


def test_clipping_leaves_out_frozen_weights(make_settings: Make) -> None:
    """Their gradients would add up from step to step, and shrink every step."""
    settings = make_settings("train.frozen=embeddings", "train.max_grad_norm=1")
    corpus = open_corpus(settings)
    state = open_model(settings, corpus.label_names, fresh=True)
    classifier = state.text_model
    place = Place(settings.seed, 1, 0, state.device, settings.precision)
    indices = np.arange(len(corpus.train))
    arguments = (settings.train, place, classifier.new_head, classifier.frozen)
    train_epochs(classifier.model, LABEL, corpus.train, indices, *arguments)
    for name in classifier.frozen:
        assert classifier.model.get_parameter(name).grad is None, name


def test_adapters_of_frozen_layers_are_refused(
    make_settings: Make, tmp_path: Path
) -> None:
    model = write_model(tmp_path / "albert", "albert")
    words = (f"model.name={model}", "train.frozen=embeddings", "adapters=lora")
    targets = "adapters.targets=[query,embedding_hidden_mapping_in]"
    forbidden = make_settings(*words, targets)
    expected = r"^adapters\.targets .*'embedding_hidden_mapping_in'.*train\.frozen=none"
    with pytest.raises(ValueError, match=expected):
        open_model(forbidden, LABELS, fresh=True)
    state = open_model(make_settings(*words), LABELS, fresh=True)
    assert all("lora" in name or "classifier" in name for name in state.layout.names)
