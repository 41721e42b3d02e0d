"""Build the classifier and its tokenizer, and draw the head that pre-training did not bring."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from common.model.heads import put_head
from common.pretrained import load_tokenizer, loading, locate, quietly
from common.runtime import stream_seed
from common.settings import ModelSettings

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Classifier:
    """A sequence classifier with its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    new_head: tuple[str, ...]
    """Parameters the checkpoint did not hold: `classifier.*`, and DistilBERT's `pre_classifier.*`."""
    num_labels: int


def build_classifier(
    settings: ModelSettings, label_names: tuple[str, ...], seed: int, attention: str | None = None
) -> Classifier:
    """Load the pre-trained encoder in fp32, with a head for `label_names` drawn from stream `head`.

    Args:
        attention: transformers' `attn_implementation`; None takes the model's own.

    Raises:
        ValueError: the model is not there, is out of reach, or is no text classifier.
    """
    from transformers import AutoModelForSequenceClassification

    location = locate(settings)
    tokenizer = load_tokenizer(settings)
    with loading(settings), quietly():
        model, info = AutoModelForSequenceClassification.from_pretrained(
            location,
            revision=settings.revision,
            num_labels=len(label_names),
            id2label=dict(enumerate(label_names)),
            label2id={name: number for number, name in enumerate(label_names)},
            dtype="float32",
            attn_implementation=attention,
            ignore_mismatched_sizes=True,
            trust_remote_code=False,
            use_safetensors=True,  # the other form is read by an unpickler
            output_loading_info=True,
        )
    mismatched = {entry[0] for entry in info["mismatched_keys"]}
    new_head = tuple(sorted(set(info["missing_keys"]) | mismatched))
    _refuse_new_encoder(settings, model, new_head)
    model, new_head = put_head(settings, model, new_head)
    draw_head(model, new_head, seed)
    return Classifier(model, tokenizer, new_head, len(label_names))


def draw_head(model: nn.Module, names: tuple[str, ...], seed: int, *, client: int = 0) -> None:
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
                drawn = torch.empty(parameter.shape).normal_(0.0, deviation, generator=generator)
                parameter.copy_(drawn)
            else:
                # One-dimensional: a bias, or the gain of a normalisation layer.
                is_gain = "norm" in name.lower() and name.endswith("weight")
                parameter.fill_(1.0 if is_gain else 0.0)


def _refuse_new_encoder(settings: ModelSettings, model: Any, new_head: tuple[str, ...]) -> None:
    prefix = f"{model.base_model_prefix}."
    encoder = [name for name in new_head if name.startswith(prefix) and "pooler" not in name]
    if encoder:
        raise ValueError(
            f"model.name is '{settings.name}', whose files hold no weights for {len(encoder)} parameters of "
            f"the encoder (first: {encoder[0]}). Give a pre-trained model of the architecture its "
            "config.json names."
        )
