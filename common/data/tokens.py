"""Texts as token ids: tokenised once, kept ragged, padded batch by batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from common.data.token_cache import Ragged, remembered

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

_CHUNK = 10_000  # texts handed to the tokenizer at a time


@dataclass(frozen=True)
class Batch:
    """What one forward pass takes."""

    input_ids: Tensor  # (B, T) int64
    attention_mask: Tensor | None  # (B, T) int64, 0 on padding; None attends to it
    labels: Tensor  # (B,) int64

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class TokenisedTexts:
    """N labelled texts as one run of token ids."""

    ids: np.ndarray  # (sum of lengths,) int32
    starts: np.ndarray  # (N + 1,) int64; text i is ids[starts[i]:starts[i + 1]]
    labels: np.ndarray  # (N,) int64
    pad_id: int

    def __len__(self) -> int:
        return len(self.labels)

    def lengths_of(self, indices: np.ndarray) -> np.ndarray:
        """Tokens of the chosen texts, (B,) int64."""
        lengths: np.ndarray = self.starts[indices + 1] - self.starts[indices]
        return lengths

    def batch(self, indices: np.ndarray, *, pad_to: int | None, mask: bool, device: torch.device) -> Batch:
        """Pad the chosen texts on the right to `pad_to` tokens, or to the longest of them for None."""
        lengths = self.lengths_of(indices)
        width = pad_to or int(lengths.max())
        input_ids = np.full((len(indices), width), self.pad_id, dtype=np.int64)
        for row, index in enumerate(indices):
            input_ids[row, : lengths[row]] = self.ids[self.starts[index] : self.starts[index + 1]]
        attention = (np.arange(width) < lengths[:, None]).astype(np.int64) if mask else None
        return Batch(
            input_ids=torch.from_numpy(input_ids).to(device),
            attention_mask=None if attention is None else torch.from_numpy(attention).to(device),
            labels=torch.from_numpy(self.labels[indices]).to(device),
        )


def tokenise(
    texts: Sequence[str],
    labels: np.ndarray,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    cache: Path | None = None,
) -> TokenisedTexts:
    """Tokenise every text once, markers included, cut to `max_length` tokens.

    Args:
        cache: folder of token ids from earlier runs; what is not there yet is added. None keeps none.

    Raises:
        ValueError: the tokenizer has no padding token, or the model takes no text that long.
    """
    if tokenizer.pad_token_id is None:
        raise ValueError(
            "the model's tokenizer has no padding token, which batches of texts need. "
            "Choose an encoder model such as bert, or add a pad_token to its tokenizer files."
        )
    if max_length > tokenizer.model_max_length:
        raise ValueError(
            f"train.max_length is {max_length} but the model takes at most {tokenizer.model_max_length} "
            f"tokens. Set train.max_length={tokenizer.model_max_length} or less."
        )

    def cut() -> Ragged:
        return _cut(texts, tokenizer, max_length)

    ids, starts = cut() if cache is None else remembered(cache, texts, tokenizer, max_length, cut)
    return TokenisedTexts(ids, starts, np.asarray(labels, dtype=np.int64), int(tokenizer.pad_token_id))


def _cut(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int) -> Ragged:
    ids: list[np.ndarray] = []
    lengths: list[int] = []
    for chunk in _chunks(texts):
        for tokens in tokenizer(chunk, truncation=True, max_length=max_length)["input_ids"]:
            ids.append(np.asarray(tokens, dtype=np.int32))
            lengths.append(len(tokens))
    return (
        np.concatenate(ids) if ids else np.zeros(0, dtype=np.int32),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
    )


def _chunks(texts: Sequence[str]) -> Iterator[list[str]]:
    for start in range(0, len(texts), _CHUNK):
        yield list(texts[start : start + _CHUNK])
