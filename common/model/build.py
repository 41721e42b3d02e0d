"""Build the classifier and its tokenizer, and draw the head that pre-training did not bring."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wardround.common.model.blend import blend_activations
from wardround.common.pretrained import load_classifier, load_tokenizer
from wardround.common.runtime import stream_seed
from wardround.common.settings import ModelSettings

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


Headed = tuple["PreTrainedModel", tuple[str, ...]]
"""A classifier, and the names of its parameters that no pre-training brought."""

# BERT's names and DistilBERT's for the same tensors; the first that fits a name counts.
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
# What both configurations call the same.
_SAME_FACTS = (
    *("vocab_size", "max_position_embeddings", "initializer_range"),
    *("pad_token_id", "id2label", "label2id"),
)
# DistilBERT's normalisation layers have no other.
_LAYER_NORM_EPSILON = 1e-12


@dataclass(frozen=True)
class Classifier:
    """A sequence classifier with its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    new_head: tuple[str, ...]
    """Parameters the checkpoint did not hold: `classifier.*`, and DistilBERT's `pre_classifier.*`."""
    num_labels: int
    frozen: frozenset[str] = frozenset()
    """Parameters that are not trained and do not travel: with adapters all but them and the new head, with
    `train.frozen=embeddings` the embeddings."""


def build_classifier(
    settings: ModelSettings,
    label_names: tuple[str, ...],
    seed: int,
    attention: str | None = None,
) -> Classifier:
    """Load the pre-trained encoder in fp32, with a head for `label_names` drawn from stream `head`.

    Args:
        attention: transformers' `attn_implementation`; None takes the model's own.

    Raises:
        ValueError: the model is not there, is out of reach, is no text classifier, or has an encoder that
            does not fit the head of `settings.head`.
    """
    tokenizer = load_tokenizer(settings)
    model, info = load_classifier(
        settings,
        num_labels=len(label_names),
        id2label=dict(enumerate(label_names)),
        label2id={name: number for number, name in enumerate(label_names)},
        dtype="float32",
        attn_implementation=attention,
        ignore_mismatched_sizes=True,
    )
    if tokenizer.pad_token_id is not None:
        # Decoders look for the last token that is no padding, by this number alone.
        model.config.pad_token_id = model.config.get_text_config().pad_token_id = (
            tokenizer.pad_token_id
        )
    mismatched = {entry[0] for entry in info["mismatched_keys"]}
    new_head = tuple(sorted(set(info["missing_keys"]) | mismatched))
    _refuse_new_encoder(settings, model, new_head)
    model, new_head = HEADS[settings.head](settings, model, new_head)
    draw_head(model, new_head, seed)
    if settings.activation == "abu":
        _refuse_undone_head(settings, new_head)
        blend_activations(model, settings)
    return Classifier(model, tokenizer, new_head, len(label_names))


def draw_head(
    model: nn.Module, names: tuple[str, ...], seed: int, *, client: int = 0
) -> None:
    """Draw the named parameters anew, in place, as BERT's heads are: N(0, initializer_range), biases 0.

    `client` 0 is the server's one shared head; clients that draw their own use their number + 1.
    """
    import torch

    deviation = float(getattr(model.config, "initializer_range", 0.02))
    parameters = dict(model.named_parameters())
    generator = torch.Generator().manual_seed(stream_seed(seed, "head", client=client))
    with torch.no_grad():
        for name in names:
            parameter = parameters[name]
            if parameter.dim() > 1:
                drawn = torch.empty(parameter.shape).normal_(
                    0.0, deviation, generator=generator
                )
                parameter.copy_(drawn)
            else:
                # One-dimensional: a bias, or the gain of a normalisation layer.
                is_gain = "norm" in name.lower() and name.endswith("weight")
                parameter.fill_(1.0 if is_gain else 0.0)


def shrink_head(classifier: Classifier, scale: float) -> None:
    """Multiply the matrices of the new head by `scale`, in place; biases begin at 0."""
    parameters = dict(classifier.model.named_parameters())
    for name in classifier.new_head:
        if parameters[name].dim() > 1:
            parameters[name].data.mul_(scale)


def _refuse_new_encoder(
    settings: ModelSettings, model: Any, new_head: tuple[str, ...]
) -> None:
    prefix = f"{model.base_model_prefix}."
    encoder = [
        name for name in new_head if name.startswith(prefix) and "pooler" not in name
    ]
    if encoder:
        raise ValueError(
            f"model.name is '{settings.name}', whose files hold no weights for {len(encoder)} parameters of "
            f"the encoder (first: {encoder[0]}). Give a pre-trained model of the architecture its "
            "config.json names."
        )


def _refuse_undone_head(settings: ModelSettings, new_head: tuple[str, ...]) -> None:
    if settings.abu_normalisation == "softmax" and all(
        name.startswith("classifier.") for name in new_head
    ):
        raise ValueError(
            f"model.abu_normalisation is 'softmax', which begins even and would undo what '{settings.name}' "
            "has learned below its classifier. Set model.head=distilbert on a BERT encoder, whose "
            "pre_classifier is new, or another normalisation."
        )


def _own(
    settings: ModelSettings, model: PreTrainedModel, new_head: tuple[str, ...]
) -> Headed:
    return model, new_head


def _distilbert(
    settings: ModelSettings, model: Any, new_head: tuple[str, ...]
) -> Headed:
    """The same BERT encoder under `pre_classifier`, ReLU, dropout and classifier, all of them new.

    Weights are copied one by one. DistilBERT has no token types, so row 0, which every token of a single
    text has, goes into the position embeddings; the pooler is left behind. The dropout before the
    classifier stays BERT's, so that the two heads differ in their layers only.
    """
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    config = model.config
    _refuse_other_encoder(settings, config)
    dropout = config.classifier_dropout
    worn = DistilBertForSequenceClassification(
        DistilBertConfig(
            **{name: getattr(config, name) for name in _SAME_FACTS},
            n_layers=config.num_hidden_layers,
            n_heads=config.num_attention_heads,
            dim=config.hidden_size,
            hidden_dim=config.intermediate_size,
            dropout=config.hidden_dropout_prob,
            attention_dropout=config.attention_probs_dropout_prob,
            seq_classif_dropout=config.hidden_dropout_prob
            if dropout is None
            else dropout,
            activation=config.hidden_act,
        )
    )
    worn.set_attn_implementation(config._attn_implementation)
    encoder = {
        _renamed(name): tensor
        for name, tensor in model.state_dict().items()
        if name.startswith(("bert.embeddings.", "bert.encoder."))
    }
    token_types = encoder.pop("distilbert.embeddings.token_type_embeddings.weight")
    positions = encoder["distilbert.embeddings.position_embeddings.weight"]
    encoder["distilbert.embeddings.position_embeddings.weight"] = (
        positions + token_types[0]
    )
    missing, unexpected = worn.load_state_dict(encoder, strict=False)
    assert not unexpected, unexpected
    assert all(
        name.startswith(("pre_classifier.", "classifier.")) for name in missing
    ), missing
    return worn, tuple(sorted(missing))


def _renamed(name: str) -> str:
    for ours, theirs in _RENAMED:
        name = name.replace(ours, theirs)
    return name


def _refuse_other_encoder(settings: ModelSettings, config: Any) -> None:
    if config.model_type != "bert" or config.layer_norm_eps != _LAYER_NORM_EPSILON:
        raise ValueError(
            f"model.head is '{settings.head}', which needs a BERT encoder with layer_norm_eps 1e-12; "
            f"'{settings.name}' has model_type {config.model_type} and layer_norm_eps "
            f"{getattr(config, 'layer_norm_eps', 'none')}. Set model.head=own."
        )


HEADS: dict[
    str, Callable[[ModelSettings, PreTrainedModel, tuple[str, ...]], Headed]
] = {
    "own": _own,
    "distilbert": _distilbert,
}
"""By `model.head`: the head an encoder wears, its own architecture's or DistilBERT's."""
