"""Build a model for a task, with its tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wardround.common.checkpoint_labels import check_names, order_of
from wardround.common.model.blend import blend_activations
from wardround.common.model.head_labels import output_layer, put_in_order
from wardround.common.model.heads import HEADS, draw_head
from wardround.common.pretrained import (
    forget_old_task,
    label_names_of,
    load_model,
    load_tokenizer,
    pad_alike,
)
from wardround.common.settings.model import ModelSettings
from wardround.common.tasks.task import Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class TextModel:
    """A model for one task, with its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    new_head: tuple[str, ...]
    """Names of the parameters that the files of the model do not hold."""
    num_outputs: int
    """Outputs of the head, C."""
    task: Task
    frozen: frozenset[str] = frozenset()
    """Names of the parameters that are not trained and do not travel. With adapters these are all
    except the adapters and the new head; with `train.frozen=embeddings`, the embeddings."""
    remarks: tuple[str, ...] = ()
    """What a person should know about the classifier that the model brought, one sentence each."""


def build_model(
    task: Task,
    settings: ModelSettings,
    label_names: tuple[str, ...],
    seed: int,
    attention: str | None = None,
) -> TextModel:
    """Load the pre-trained encoder in fp32, with a head for `label_names` drawn from stream `head`.

    Args:
        attention: transformers' `attn_implementation`; None takes the model's own.

    Raises:
        ValueError: the model is missing, cannot be reached, does not fit the task, brings a
            classifier for other labels, or its encoder does not fit `settings.head`.
    """
    tokenizer = load_tokenizer(settings)
    model, info = load_model(
        settings,
        task.model_class(),
        **task.head_options(label_names),
        dtype="float32",
        attn_implementation=attention,
        ignore_mismatched_sizes=True,
    )
    pad_alike(model, tokenizer)
    mismatched = {entry[0] for entry in info["mismatched_keys"]}
    new_head = tuple(sorted(set(info["missing_keys"]) | mismatched))
    _refuse_new_encoder(settings, model, new_head)
    remarks: tuple[str, ...] = ()
    if settings.head == "own":
        remarks = _fit_own_head(settings, model, label_names, new_head, mismatched)
    forget_old_task(model)
    model, new_head = HEADS[settings.head](settings, model, new_head)
    draw_head(model, new_head, seed)
    if settings.activation == "abu":
        _refuse_undone_head(settings, new_head)
        blend_activations(model, settings)
    return TextModel(
        model, tokenizer, new_head, len(label_names), task, remarks=remarks
    )


def _fit_own_head(
    settings: ModelSettings,
    model: Any,
    label_names: tuple[str, ...],
    new_head: tuple[str, ...],
    mismatched: set[str],
) -> tuple[str, ...]:
    """Put the outputs of a trained classifier into the order of the run's labels.

    Returns:
        Remarks for a person.

    Raises:
        ValueError: the classifier is for as many labels with other names.
    """
    own = label_names_of(settings)
    if mismatched & set(new_head):
        count = f"{len(own)} labels" if own else "another number of labels"
        return (
            f"model.name is '{settings.name}', whose classifier is for {count}. The run has "
            f"{len(label_names)}, so that it starts with a new classifier.",
        )
    if not own:
        if new_head:
            return ()
        return (
            f"model.name is '{settings.name}', whose classifier has no names for its labels. Its "
            f"outputs are taken in this order: {', '.join(label_names)}.",
        )
    if set(output_layer(model)) & set(new_head):
        return ()
    try:
        check_names(own, label_names)
    except ValueError as error:
        raise ValueError(f"model.name is '{settings.name}': {error}") from None
    order = order_of(own, label_names)
    if order is not None and order != tuple(range(len(order))):
        put_in_order(model, order)
    return ()


def _refuse_new_encoder(
    settings: ModelSettings, model: Any, new_head: tuple[str, ...]
) -> None:
    prefix = f"{model.base_model_prefix}."
    encoder = [
        name for name in new_head if name.startswith(prefix) and "pooler" not in name
    ]
    if encoder:
        raise ValueError(
            f"model.name is '{settings.name}', whose files hold no weights for {len(encoder)} "
            f"parameters of the encoder (first: {encoder[0]}). Give a pre-trained model of the "
            "architecture its config.json names."
        )


def _refuse_undone_head(settings: ModelSettings, new_head: tuple[str, ...]) -> None:
    if settings.abu_normalisation == "softmax" and all(
        name.startswith("classifier.") for name in new_head
    ):
        raise ValueError(
            "model.abu_normalisation is 'softmax', which starts with equal weights and would "
            f"undo what '{settings.name}' has learned below its classifier. Set "
            "model.head=distilbert on a BERT encoder, whose pre_classifier is new, or another "
            "normalisation."
        )
