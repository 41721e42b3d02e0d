"""Limits of a model: how many tokens of a text it takes, and which token numbers.

A tokenizer knows neither. It is compared with the model before anything is trained.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Modules with one row for each position of a token, in the architectures of transformers.
_POSITIONS = (
    *("position_embeddings", "embed_positions", "positions_embed", "wpe"),
    "char_position_embeddings",
)
_COMPUTED = {
    "ctrl": "n_positions",
    "gptj": "n_positions",
    "mpt": "max_seq_len",
}
"""Architectures that compute their positions, up to a number in their configuration, by
`model_type`."""


def most_tokens(model: Any) -> int | None:
    """Return how many tokens the model has positions for; None if it sets no limit.

    Args:
        model: a model of transformers on any device, also `meta`: only shapes are read.
    """
    config = model.config.get_text_config()
    limits = [
        rows - _unused_rows(module)
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in _POSITIONS
        and (rows := _num_rows(module)) is not None
    ]
    key = _COMPUTED.get(config.model_type)
    if limits or key is not None:
        # Some tables have more rows than the model uses.
        stated = getattr(config, key or "max_position_embeddings", None)
        if isinstance(stated, int):
            limits.append(stated)
    return min(limits, default=None)


def _num_rows(module: Any) -> int | None:
    weight = getattr(module, "weight", None)
    if weight is None or weight.dim() != 2:
        return None
    return int(weight.shape[0])


def _unused_rows(module: Any) -> int:
    """Return how many rows no token of a text has: BART leaves out 2, RoBERTa those up to that
    of padding."""
    offset = getattr(module, "offset", None)
    if isinstance(offset, int):
        return offset
    padding = getattr(module, "padding_idx", None)
    return 0 if padding is None else int(padding) + 1


def num_word_vectors(model: Any) -> int | None:
    """Return the number of token numbers that the model knows; None if it has no such table."""
    try:
        words = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    return _num_rows(words)


def highest_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the highest token number that a text can get.

    Special tokens that only a chat or an image needs are left out: no text can spell them.
    """
    added = tokenizer.added_tokens_decoder
    unreachable = {number for number, token in added.items() if token.special}
    markers = {*tokenizer("")["input_ids"]}
    markers |= {tokenizer.pad_token_id, tokenizer.unk_token_id}
    reached = set(_numbers(tokenizer)) - (unreachable - markers)
    return max(reached, default=0)


def _numbers(tokenizer: PreTrainedTokenizerBase) -> Iterator[int]:
    try:
        yield from tokenizer.get_vocab().values()
    except NotImplementedError:  # a tokenizer of characters has no list
        return
