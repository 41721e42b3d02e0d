"""Freeze the parameters that turn tokens into vectors.

An update of word embeddings reveals the words of its texts: the row of a word moves only if the
word occurs. The same holds for each layer that reads the vector of one token and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import nn

from wardround.common.model.build import TextModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def freeze_embeddings(text_model: TextModel) -> TextModel:
    """Freeze word, position and type embeddings: they are not trained and do not travel.

    Their normalisation layers are frozen too, and a layer that maps an embedding to the width of
    the encoder (ALBERT, ELECTRA), because its input is the embedding of one token.

    Raises:
        ValueError: the architecture does not name the part that holds the word embeddings.
    """
    model = text_model.model
    names = frozenset(_embedding_parameters(model)) - set(text_model.new_head)
    if not names:
        raise ValueError(
            f"train.frozen is embeddings, but {type(model).__name__} does not name its word "
            "embeddings. Set train.frozen=none, or choose another model."
        )
    for name in names:
        model.get_parameter(name).requires_grad_(False)
    return replace(text_model, frozen=text_model.frozen | names)


def _embedding_parameters(model: PreTrainedModel) -> set[str]:
    """Return the names of the parameters of all modules before the layers that make embeddings."""
    width = _width_of_words(model)
    found: set[str] = set()
    for name, module in _outside_of_layers(model):
        is_embedding = (
            isinstance(module, nn.Embedding) or "emb" in name.rpartition(".")[2].lower()
        )
        if is_embedding or _maps_embeddings(module, width, model):
            found |= {f"{name}.{own}" for own, _ in module.named_parameters()}
    # A tensor that two modules share has one name among the model's parameters.
    return found & {name for name, _ in model.named_parameters()}


def _outside_of_layers(model: PreTrainedModel) -> Iterator[tuple[str, nn.Module]]:
    """Yield name and module for every part that is in no list of layers, below the base model."""
    layers: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList):
            layers.append(f"{name}.")
        is_inside = any(f"{name}.".startswith(layer) for layer in layers)
        if name.startswith(f"{model.base_model_prefix}.") and not is_inside:
            yield name, module


def _width_of_words(model: PreTrainedModel) -> int:
    """Return the width of a word embedding; 0 if the model does not name the module."""
    try:
        words = model.get_input_embeddings()
    except NotImplementedError:
        return 0
    return words.embedding_dim if isinstance(words, nn.Embedding) else 0


def _maps_embeddings(module: nn.Module, width: int, model: PreTrainedModel) -> bool:
    """Return true if a linear layer reads embeddings of another width than that of the encoder."""
    hidden_size = model.config.get_text_config().hidden_size
    if width == hidden_size or not isinstance(module, nn.Linear):
        return False
    return (module.in_features, module.out_features) == (width, hidden_size)
