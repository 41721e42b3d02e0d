"""Which parameters of a model turn tokens into vectors, so that a run can leave them as they are.

Every update of a word embedding tells which words its texts use: the row of a word moves only if the word
occurs. The same holds for each layer that reads the vector of a token and nothing else.
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
    """The same model; word, position and type embeddings are not trained and do not travel.

    Frozen as well are their normalisation layers, and a layer that maps an embedding to the width of the
    encoder (ALBERT, ELECTRA), for its input is the embedding of one token.

    Raises:
        ValueError: the architecture does not say which of its parts holds the word embeddings.
    """
    model = text_model.model
    names = frozenset(_embedding_parameters(model)) - set(text_model.new_head)
    if not names:
        raise ValueError(
            f"train.frozen is embeddings, but {type(model).__name__} does not say which of its parameters "
            "are word embeddings. Set train.frozen=none, or choose another model."
        )
    for name in names:
        model.get_parameter(name).requires_grad_(False)
    return replace(text_model, frozen=text_model.frozen | names)


def _embedding_parameters(model: PreTrainedModel) -> set[str]:
    """Names of the parameters of every module that stands before the layers and makes embeddings."""
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
    """The modules of the encoder or decoder that stand in no list of layers, with their names."""
    layers: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList):
            layers.append(f"{name}.")
        is_inside = any(f"{name}.".startswith(layer) for layer in layers)
        if name.startswith(f"{model.base_model_prefix}.") and not is_inside:
            yield name, module


def _width_of_words(model: PreTrainedModel) -> int:
    """Numbers in the embedding of a word; 0 if the model does not say which module makes it."""
    try:
        words = model.get_input_embeddings()
    except NotImplementedError:
        return 0
    return words.embedding_dim if isinstance(words, nn.Embedding) else 0


def _maps_embeddings(module: nn.Module, width: int, model: PreTrainedModel) -> bool:
    """Whether a linear layer reads embeddings of another width than the encoder has."""
    hidden_size = model.config.get_text_config().hidden_size
    if width == hidden_size or not isinstance(module, nn.Linear):
        return False
    return (module.in_features, module.out_features) == (width, hidden_size)
