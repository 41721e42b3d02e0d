"""Random models and random texts of given sizes. Nothing is downloaded."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

LABELS = ("calm", "urgent")
_WORDS = [f"w{number}" for number in range(1000)]
_MARKERS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@dataclass(frozen=True)
class Size:
    """The sizes of a BERT."""

    layers: int
    width: int
    heads: int
    vocabulary: int
    """Rows of the word embedding; the tokenizer always knows about a thousand words."""

    def training_flops(self, lengths: np.ndarray) -> float:
        """Return the operations of a forward and backward pass over such texts, without padding.

        6 per weight and token (Kaplan et al. 2020, arXiv:2001.08361, section 2.1) for the 12
        width² weights of a layer, and 12 width T² for its attention; embeddings, norms and the
        head are left out.
        """
        tokens, squares = (
            float(lengths.sum()),
            float((lengths.astype(np.float64) ** 2).sum()),
        )
        return self.layers * self.width * (72.0 * self.width * tokens + 12.0 * squares)


SIZES = {
    "micro": Size(layers=1, width=16, heads=2, vocabulary=1100),
    "tiny": Size(layers=2, width=128, heads=2, vocabulary=30522),
    "minilm": Size(layers=6, width=384, heads=12, vocabulary=30522),
    "base": Size(layers=12, width=768, heads=12, vocabulary=30522),
}


def write_model(folder: Path, name: str) -> Path:
    """Write a BERT encoder with random weights, and its tokenizer, as `save_pretrained` does."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    size = SIZES[name]
    config = BertConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        intermediate_size=4 * size.width,
    )
    torch.manual_seed(0)
    model = BertModel(config)
    model.save_pretrained(folder)
    vocabulary = {word: number for number, word in enumerate([*_MARKERS, *_WORDS])}
    BertTokenizer(vocab=vocabulary, model_max_length=512).save_pretrained(folder)
    return folder


def write_texts(path: Path, lengths: np.ndarray, seed: int = 0) -> Path:
    """Write a CSV: texts of these numbers of tokens, [CLS] and [SEP] included; labels alternate."""
    random = np.random.default_rng(seed)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for number, length in enumerate(lengths):
            words = random.choice(_WORDS, int(length) - 2)
            writer.writerow([" ".join(words), LABELS[number % len(LABELS)]])
    return path


def ragged_lengths(
    num_texts: int, median: int, longest: int, seed: int = 0
) -> np.ndarray:
    """Return lengths like those of texts: log-normal (sigma 0.8), cut at `longest`; (N,) int64."""
    drawn = np.random.default_rng(seed).lognormal(np.log(median), 0.8, num_texts)
    return np.clip(drawn.round().astype(np.int64), 5, longest)
