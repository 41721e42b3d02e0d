"""Tiny models and tiny texts: real architectures and real file formats, random weights."""

from __future__ import annotations

import csv
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wardround.common.settings.model import ModelSettings
from wardround.common.settings.tree import Settings

Make = Callable[..., Settings]

TOPICS = {
    "sport": ["match", "goal", "team", "coach", "league"],
    "money": ["bank", "shares", "profit", "market", "loan"],
    "health": ["doctor", "ward", "nurse", "patient", "fever"],
}
FILLER = ["the", "a", "of", "said", "today", "was", "new", "and", "on", "very"]


def write_texts(path: Path, num_examples: int, seed: int) -> Path:
    """Write a CSV of short texts with words of their topics. Return its path."""
    random = np.random.default_rng(seed)
    names = list(TOPICS)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for number in range(num_examples):
            label = names[number % len(names)]
            words = [
                *random.choice(TOPICS[label], 3),
                *random.choice(FILLER, random.integers(2, 9)),
            ]
            writer.writerow([" ".join(random.permutation(words)), label])
    return path


def model_at(folder: Path | str, head: str = "own", **more: str) -> ModelSettings:
    """Return settings of the model in a folder.

    Args:
        more: `abu_where` or `abu_normalisation`, for a model with blended activations.
    """
    fields: dict[str, Any] = {
        "label": "tiny",
        "source": "hub",
        "name": str(folder),
        "revision": None,
        "head": head,
        "activation": "abu" if more else "own",
        "abu_where": "head",
        "abu_normalisation": "none",
        "sha256": None,
    }
    return ModelSettings(**fields | more)


def write_model(folder: Path, kind: str, dropout: float = 0.1) -> Path:
    """Write an encoder without a head, and its tokenizer. Return the folder."""
    from transformers import (
        AlbertConfig,
        AlbertModel,
        BertConfig,
        BertModel,
        BertTokenizer,
        DistilBertConfig,
        DistilBertModel,
    )

    if kind in ("llama", "qwen2"):
        return _write_decoder(folder, kind)
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *FILLER,
        *chain.from_iterable(TOPICS.values()),
    ]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = BertTokenizer(vocab=vocabulary, model_max_length=32)
    common: dict[str, Any] = {"vocab_size": len(words), "max_position_embeddings": 32}
    bert: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
    }
    torch.manual_seed(0)
    model: Any
    if kind == "bert":
        model = BertModel(BertConfig(**common, **bert))
    elif kind == "albert":
        albert = AlbertConfig(
            **common, **bert, embedding_size=8, classifier_dropout_prob=dropout
        )
        model = AlbertModel(albert)
    else:
        config = DistilBertConfig(
            **common,
            dim=16,
            n_layers=2,
            n_heads=2,
            hidden_dim=32,
            dropout=dropout,
            attention_dropout=dropout,
        )
        model = DistilBertModel(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _write_decoder(folder: Path, kind: str) -> Path:
    """Write a decoder without a head. The tokenizer of `llama` has no padding token."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import (
        LlamaConfig,
        LlamaModel,
        PreTrainedTokenizerFast,
        Qwen2Config,
        Qwen2Model,
    )

    words = [
        "<unk>",
        "<s>",
        "</s>",
        "<pad>",
        *FILLER,
        *chain.from_iterable(TOPICS.values()),
    ]
    vocabulary = {word: number for number, word in enumerate(words)}
    core = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = Whitespace()
    core.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    if kind == "qwen2":
        special["pad_token"] = "<pad>"
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, model_max_length=32, **special
    )
    size: dict[str, Any] = {
        "vocab_size": len(words),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 32,
    }
    torch.manual_seed(0)
    model: Any
    if kind == "llama":
        model = LlamaModel(LlamaConfig(**size))
    else:
        model = Qwen2Model(Qwen2Config(**size))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
