"""Labelled texts in memory: examples, and a data set that is ready to be dealt to clients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

T = TypeVar("T")


def cut_words(text: str, max_words: int | None) -> str:
    """Return the first `max_words` words of a text, cut at white space; None changes nothing."""
    return text if max_words is None else " ".join(text.split()[:max_words])


@dataclass(frozen=True)
class LabelledTexts:
    """N examples, in the order of their source."""

    texts: list[str]
    """N texts, none of them empty."""
    labels: np.ndarray
    """(N,) int64, positions in `TextData.label_names`."""

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, rows: np.ndarray) -> LabelledTexts:
        """Return the examples at these positions, in this order."""
        return LabelledTexts([self.texts[row] for row in rows], self.labels[rows])

    def cut(self, max_words: int | None) -> LabelledTexts:
        """Return the same examples with at most `max_words` words each; None changes nothing."""
        texts = [cut_words(text, max_words) for text in self.texts]
        return LabelledTexts(texts, self.labels)


@dataclass(frozen=True, eq=False)
class TextData(Generic[T]):
    """A data set that is ready to be dealt to clients, as texts or as token ids.

    Two objects are never equal, so that a cache can use one as a key.
    """

    train: T
    test: T
    label_names: tuple[str, ...]
    """Labels in the order of their numbers."""
    site_sizes: tuple[tuple[str, int], ...]
    """Name and number of training examples of each site, in the order of `train`; () unless
    `data.path` is a folder with one file for each site."""
    test_sizes: tuple[int, ...]
    """Number of held-out examples of each site, in the order of `test`; () if the test set
    belongs to no site."""
    opted_out: T
    """Training texts that take part in no round. They are in no other part."""
    opted_out_sizes: tuple[int, ...]
    """Number of opted-out texts of each site, in the order of `opted_out`; () as `site_sizes`."""
    findings: tuple[str, ...]
    """Remarks for a person, one sentence each."""


PARTS = ("train", "test", "opted_out")
"""Fields of `TextData` that hold texts."""
