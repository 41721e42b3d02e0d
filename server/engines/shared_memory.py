"""A simulation's tensors and texts in memory that its processes share."""

from __future__ import annotations

import json
import mmap
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from common.data.corpus import Corpus
from common.data.tokens import TokenisedTexts
from common.wire.local import aligned, create

if TYPE_CHECKING:
    from torch import Tensor

_PAGE = mmap.PAGESIZE
_PARTS, _ARRAYS = ("train", "test"), ("ids", "starts", "labels")


def tensor_bytes(size: int) -> int:
    """Bytes that one tensor of `size` fp32 numbers takes: whole pages."""
    return -(-size * 4 // _PAGE) * _PAGE


def tensors_in(fd: int, size: int) -> list[Tensor]:
    """The memory behind `fd` as tensors of `size` fp32 numbers each."""
    step = tensor_bytes(size)
    count = os.fstat(fd).st_size // step
    memory = mmap.mmap(fd, count * step)
    return [
        torch.frombuffer(memory, dtype=torch.float32, count=size, offset=number * step)
        for number in range(count)
    ]


def corpus_to_memory(corpus: Corpus) -> int:
    """Write the tokenised texts into fresh memory; returns its descriptor."""
    arrays = [getattr(getattr(corpus, part), name) for part in _PARTS for name in _ARRAYS]
    header = {
        "arrays": [[str(array.dtype), len(array)] for array in arrays],
        "pad_id": corpus.train.pad_id,
        "label_names": corpus.label_names,
        "site_sizes": corpus.site_sizes,
        "test_sizes": corpus.test_sizes,
    }
    written = json.dumps(header).encode()
    chunks = [np.frombuffer(len(written).to_bytes(8, "little") + written, np.uint8), *arrays]
    fd = create(sum(aligned(chunk.nbytes) for chunk in chunks))
    with mmap.mmap(fd, 0) as memory:
        start = 0
        for chunk in chunks:
            memory[start : start + chunk.nbytes] = np.ascontiguousarray(chunk).data.cast("B")
            start += aligned(chunk.nbytes)
    return fd


def corpus_from_memory(fd: int) -> Corpus:
    """Inverse of `corpus_to_memory`; the arrays are views, read only, and there are no findings."""
    memory = mmap.mmap(fd, 0, access=mmap.ACCESS_READ)
    length = int.from_bytes(memory[:8], "little")
    header: dict[str, Any] = json.loads(memory[8 : 8 + length])
    arrays, start = [], aligned(8 + length)
    for kind, count in header["arrays"]:
        array = np.frombuffer(memory, np.dtype(kind), count, start)
        arrays.append(array)
        start += aligned(array.nbytes)
    parts = [arrays[first : first + len(_ARRAYS)] for first in range(0, len(arrays), len(_ARRAYS))]
    train, test = (TokenisedTexts(ids, starts, labels, header["pad_id"]) for ids, starts, labels in parts)
    return Corpus(
        train=train,
        test=test,
        label_names=tuple(header["label_names"]),
        site_sizes=tuple((str(name), int(size)) for name, size in header["site_sizes"]),
        test_sizes=tuple(header["test_sizes"]),
        findings=(),
    )
