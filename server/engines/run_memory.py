"""Tensors and tokenised texts in memory that a simulation shares with its workers."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wardround.common.data.corpus import Corpus
from wardround.common.data.texts import PARTS
from wardround.common.data.tokens import TokenisedTexts
from wardround.common.process.shared_memory import bytes_of, memory_for
from wardround.common.wire.flat_arrays import read_arrays

_ARRAYS = ("ids", "starts", "targets")
_FACTS = ("label_names", "site_sizes", "test_sizes", "opted_out_sizes")
"""Fields of a corpus that are not arrays."""


def tensors_in(descriptor: int, size: int) -> list[Tensor]:
    """Return the memory as tensors of `size` fp32 numbers each, one after the other."""
    memory = mmap.mmap(descriptor, 0)
    numbers = torch.frombuffer(memory, dtype=torch.float32)
    return list(numbers.split(size))


def corpus_to_memory(corpus: Corpus) -> tuple[int, dict[str, Any]]:
    """Write the tokenised texts into fresh memory.

    Returns:
        The memory's descriptor, and the other facts about the corpus, as JSON values.
    """
    arrays = {
        f"{part}.{name}": np.ascontiguousarray(getattr(getattr(corpus, part), name))
        for part in PARTS
        for name in _ARRAYS
    }
    descriptor, table = memory_for(arrays)
    facts = {name: getattr(corpus, name) for name in _FACTS}
    return descriptor, {"table": table, "pad_id": corpus.train.pad_id} | facts


def corpus_from_memory(descriptor: int, facts: dict[str, Any]) -> Corpus:
    """Inverse of `corpus_to_memory`, without findings; the arrays are read-only views."""
    memory = bytes_of(descriptor)
    memory.flags.writeable = False
    arrays = read_arrays(memory, facts["table"])
    parts = {}
    for part in PARTS:
        texts = {name: arrays[f"{part}.{name}"] for name in _ARRAYS}
        parts[part] = TokenisedTexts(**texts, pad_id=facts["pad_id"])
    return Corpus(
        **parts,
        label_names=tuple(facts["label_names"]),
        site_sizes=tuple((str(name), int(size)) for name, size in facts["site_sizes"]),
        test_sizes=tuple(facts["test_sizes"]),
        opted_out_sizes=tuple(facts["opted_out_sizes"]),
        findings=(),
    )
