"""Texts as token ids: tokenised once, kept without padding, padded batch by batch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wardround.common.data.token_cache import Ragged, cached, chunks_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Batch:
    """The input of one forward pass."""

    input_ids: Tensor  # (B, T) int64
    attention_mask: Tensor | None  # (B, T) int64, 0 on padding; None attends to it
    targets: Tensor  # (B, ...), those of the texts
    rows: Tensor  # (B,) int64 on the CPU, positions in the `TokenisedTexts`

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True)
class TokenisedTexts:
    """N texts as one run of token ids, with their targets."""

    ids: np.ndarray  # (sum of lengths,) int32
    starts: np.ndarray  # (N + 1,) int64; text i is ids[starts[i]:starts[i + 1]]
    targets: np.ndarray  # (N, ...), as `Task.encode` returns them
    pad_id: int

    def __len__(self) -> int:
        return len(self.starts) - 1

    def followed_by(self, more: TokenisedTexts) -> TokenisedTexts:
        """Return these texts, then those of `more`, which the same tokenizer made."""
        return TokenisedTexts(
            np.concatenate([self.ids, more.ids]),
            np.concatenate([self.starts, more.starts[1:] + self.starts[-1]]),
            np.concatenate([self.targets, more.targets]),
            self.pad_id,
        )

    def take(self, indices: np.ndarray) -> TokenisedTexts:
        """Return the texts at these positions, in this order."""
        pieces = [self._ids_of(index) for index in indices]
        starts = np.cumsum([0, *self.lengths_of(indices)], dtype=np.int64)
        return TokenisedTexts(
            np.concatenate([self.ids[:0], *pieces]),
            starts,
            self.targets[indices],
            self.pad_id,
        )

    def lengths_of(self, indices: np.ndarray) -> np.ndarray:
        """Return the number of tokens of the chosen texts, (B,) int64."""
        lengths: np.ndarray = self.starts[indices + 1] - self.starts[indices]
        return lengths

    def batch(
        self,
        indices: np.ndarray,
        *,
        pad_to: int | None,
        mask: bool,
        device: torch.device,
    ) -> Batch:
        """Pad the chosen texts on the right to `pad_to` tokens; None: to the longest of them."""
        # It takes seconds; a site's connection and its plans need this file without it.
        import torch

        lengths = self.lengths_of(indices)
        width = pad_to or int(lengths.max())
        input_ids = np.full((len(indices), width), self.pad_id, dtype=np.int64)
        for row, index in enumerate(indices):
            input_ids[row, : lengths[row]] = self._ids_of(index)
        attention_mask = None
        if mask:
            is_token = np.arange(width) < lengths[:, None]
            attention_mask = torch.from_numpy(is_token.astype(np.int64)).to(device)
        return Batch(
            input_ids=torch.from_numpy(input_ids).to(device),
            attention_mask=attention_mask,
            targets=torch.from_numpy(self.targets[indices]).to(device),
            rows=torch.from_numpy(np.ascontiguousarray(indices)),
        )

    def _ids_of(self, index: int) -> np.ndarray:
        return self.ids[self.starts[index] : self.starts[index + 1]]


def tokenise(
    texts: Sequence[str],
    targets: np.ndarray,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    cache: Path | None = None,
) -> TokenisedTexts:
    """Tokenise every text once, with its markers, cut to `max_length` tokens.

    Args:
        cache: folder that keeps token ids between runs; None keeps none.

    Raises:
        ValueError: the tokenizer has no padding token, or the model takes no text that long.
    """
    if tokenizer.pad_token_id is None:
        raise ValueError(
            "the model's tokenizer has no padding token, which batches of texts need, and "
            "no other special token that no text ends with. Add a pad_token to its "
            "tokenizer files, or choose another model."
        )
    most = tokenizer.model_max_length
    if max_length > most:
        raise ValueError(
            f"train.max_length is {max_length} but the model takes at most {most} tokens. "
            f"Set train.max_length={most} or less."
        )

    def cut() -> Ragged:
        return _cut(texts, tokenizer, max_length)

    ids, starts = cached(cache, texts, tokenizer, max_length, cut)
    return TokenisedTexts(ids, starts, targets, int(tokenizer.pad_token_id))


def token_ids(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None = None,
) -> list[np.ndarray]:
    """Return the token ids of each text with its markers, (T,) int32 each.

    A text that spells a control token, such as `</s>`, does not get the id of that token.

    Args:
        max_length: cut to so many tokens; None keeps all.
    """
    cut: dict[str, Any] = {}
    if max_length is not None:
        cut = {"truncation": True, "max_length": max_length}
    found = tokenizer(list(texts), verbose=False, **cut)["input_ids"]
    ids = [np.asarray(tokens, dtype=np.int32) for tokens in found]
    # `split_special_tokens` is enough for most tokenizers. A vocabulary of pieces can hold the
    # markers as ordinary pieces.
    controls = np.array(_controls(tokenizer), dtype=np.int32)
    usual = int(np.isin(tokenizer("")["input_ids"], controls).sum())
    for row, tokens in enumerate(ids):
        if np.isin(tokens, controls).sum() > usual:
            again = tokenizer(_apart(texts[row], tokenizer), verbose=False, **cut)
            ids[row] = np.asarray(again["input_ids"], dtype=np.int32)
    return ids


def _controls(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids of all control tokens except that of unknown words, which texts may have."""
    return [
        number
        for number in tokenizer.all_special_ids
        if number != tokenizer.unk_token_id
    ]


def _apart(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the text with a space in every control token that it spells: `</s>` is `< /s>`.

    A control token of one sign becomes U+FFFD.
    """
    spelled = "|".join(map(re.escape, tokenizer.all_special_tokens))

    def apart(found: re.Match[str]) -> str:
        first, rest = found[0][0], found[0][1:]
        return f"{first} {rest}" if rest else "\ufffd"

    return re.sub(spelled, apart, text, flags=re.IGNORECASE)


def _cut(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Ragged:
    ids = [np.zeros(0, dtype=np.int32)]
    for chunk in chunks_of(texts):
        ids.extend(token_ids(chunk, tokenizer, max_length))
    # The lengths of the texts; the empty array at the front gives the first start, 0.
    starts = np.cumsum([len(tokens) for tokens in ids], dtype=np.int64)
    return np.concatenate(ids), starts
