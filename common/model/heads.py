"""The heads that a model can have: how each is built, drawn and scaled.

A variant of a head is a row of `HEADS`. Everything that a study does to a head is here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch

from wardround.common.runtime import stream_seed
from wardround.common.settings.model import ModelSettings

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

Headed = tuple["PreTrainedModel", tuple[str, ...]]
"""A model, and the names of its parameters that pre-training did not bring."""

# Names of the same tensors in BERT and in DistilBERT, replaced in this order.
_RENAMED = (
    ("bert.embeddings.", "distilbert.embeddings."),
    ("bert.encoder.layer.", "distilbert.transformer.layer."),
    (".attention.self.query.", ".attention.q_lin."),
    (".attention.self.key.", ".attention.k_lin."),
    (".attention.self.value.", ".attention.v_lin."),
    (".attention.output.dense.", ".attention.out_lin."),
    (".attention.output.LayerNorm.", ".sa_layer_norm."),
    (".intermediate.dense.", ".ffn.lin1."),
    (".output.dense.", ".ffn.lin2."),
    (".output.LayerNorm.", ".output_layer_norm."),
)
# Fields with the same name in both configurations.
_SAME_FACTS = (
    *("vocab_size", "max_position_embeddings", "initializer_range"),
    *("pad_token_id", "id2label", "label2id"),
)
# The only value that DistilBERT's normalisation layers have.
_LAYER_NORM_EPSILON = 1e-12


def draw_head(
    model: nn.Module, names: tuple[str, ...], seed: int, *, client: int = 0
) -> None:
    """Draw the named parameters anew, in place, as BERT's heads are: N(0, initializer_range),
    biases 0.

    Args:
        client: 0 for the head that all clients share; a client that draws its own head uses its
            number + 1.
    """
    deviation = float(getattr(model.config, "initializer_range", 0.02))
    parameters = dict(model.named_parameters())
    generator = torch.Generator()
    generator.manual_seed(stream_seed(seed, "head", client=client))
    with torch.no_grad():
        for name in names:
            parameter = parameters[name]
            if parameter.dim() > 1:
                drawn = torch.empty(parameter.shape)
                drawn.normal_(0.0, deviation, generator=generator)
                parameter.copy_(drawn)
            else:
                # One-dimensional: a bias, or the gain of a normalisation layer.
                is_weight = name.endswith("weight")
                is_gain = is_weight and "norm" in name.lower()
                parameter.fill_(1.0 if is_gain else 0.0)


def shrink_head(model: nn.Module, names: Iterable[str], scale: float) -> None:
    """Multiply the named matrices by `scale`, in place; biases stay at 0."""
    parameters = dict(model.named_parameters())
    for name in names:
        parameter = parameters[name]
        if parameter.dim() > 1:
            parameter.data.mul_(scale)


def _own(
    settings: ModelSettings, model: PreTrainedModel, new_head: tuple[str, ...]
) -> Headed:
    return model, new_head


def _new(
    settings: ModelSettings, model: PreTrainedModel, new_head: tuple[str, ...]
) -> Headed:
    """Take every parameter outside of the encoder as new, although the files hold them."""
    prefix = f"{model.base_model_prefix}."
    outside = {
        name for name, _ in model.named_parameters() if not name.startswith(prefix)
    }
    return model, tuple(sorted(outside | set(new_head)))


def _distilbert(
    settings: ModelSettings, model: Any, new_head: tuple[str, ...]
) -> Headed:
    """Put the BERT encoder under `pre_classifier`, ReLU, dropout and classifier, all of them new.

    Weights are copied one by one. DistilBERT has no token types. Every token of a single text has
    type 0, so that row 0 is added to the position embeddings. The pooler is left out. The dropout
    before the classifier stays BERT's, so that the two heads differ in their layers only.
    """
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    config = model.config
    _refuse_other_encoder(settings, config)
    _refuse_other_task(settings, model)
    dropout = config.classifier_dropout
    if dropout is None:
        dropout = config.hidden_dropout_prob
    built = DistilBertForSequenceClassification(
        DistilBertConfig(
            **{name: getattr(config, name) for name in _SAME_FACTS},
            n_layers=config.num_hidden_layers,
            n_heads=config.num_attention_heads,
            dim=config.hidden_size,
            hidden_dim=config.intermediate_size,
            dropout=config.hidden_dropout_prob,
            attention_dropout=config.attention_probs_dropout_prob,
            seq_classif_dropout=dropout,
            activation=config.hidden_act,
        )
    )
    built.set_attn_implementation(config._attn_implementation)
    encoder = {
        _renamed(name): tensor
        for name, tensor in model.state_dict().items()
        if name.startswith(("bert.embeddings.", "bert.encoder."))
    }
    token_types = encoder.pop("distilbert.embeddings.token_type_embeddings.weight")
    positions = "distilbert.embeddings.position_embeddings.weight"
    encoder[positions] = encoder[positions] + token_types[0]
    missing, unexpected = built.load_state_dict(encoder, strict=False)
    assert not unexpected, unexpected
    new_layers = ("pre_classifier.", "classifier.")
    assert all(name.startswith(new_layers) for name in missing), missing
    return built, tuple(sorted(missing))


def _renamed(name: str) -> str:
    for ours, theirs in _RENAMED:
        name = name.replace(ours, theirs)
    return name


def _refuse_other_encoder(settings: ModelSettings, config: Any) -> None:
    if config.model_type != "bert" or config.layer_norm_eps != _LAYER_NORM_EPSILON:
        raise ValueError(
            f"model.head is '{settings.head}', which needs a BERT encoder with layer_norm_eps "
            f"1e-12; '{settings.name}' has model_type {config.model_type} and layer_norm_eps "
            f"{getattr(config, 'layer_norm_eps', 'none')}. Set model.head=own."
        )


def _refuse_other_task(settings: ModelSettings, model: Any) -> None:
    """Refuse a model that does not give one answer for the whole text."""
    kind = type(model).__name__
    if not kind.endswith("ForSequenceClassification"):
        raise ValueError(
            f"model.head is '{settings.head}', which gives one answer for a whole text; the task "
            f"needs a {kind}. Set model.head=own."
        )


HEADS: dict[
    str, Callable[[ModelSettings, PreTrainedModel, tuple[str, ...]], Headed]
] = {
    "own": _own,
    "new": _new,
    "distilbert": _distilbert,
}
"""Head of an encoder by `model.head`: that of its own architecture, as the files have it or drawn
anew, or DistilBERT's."""
