"""Texts and their targets in memory: examples, and a data set ready to be dealt to clients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

T = TypeVar("T")


def cut_words(text: str, max_words: int | None) -> str:
    """Return the first `max_words` words of a text, cut at white space; None changes nothing."""
    return text if max_words is None else " ".join(text.split()[:max_words])


@dataclass(frozen=True)
class TextsAndTargets:
    """N examples, in the order of their source."""

    texts: list[str]
    """N texts, none of them empty."""
    targets: np.ndarray
    """(N, ...), one for each text, as `Task.encode` returns them."""

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, rows: np.ndarray) -> TextsAndTargets:
        """Return the examples at these positions, in this order."""
        return TextsAndTargets([self.texts[row] for row in rows], self.targets[rows])

    def cut(self, max_words: int | None) -> TextsAndTargets:
        """Return the same examples with at most `max_words` words each; None changes nothing."""
        texts = [cut_words(text, max_words) for text in self.texts]
        return TextsAndTargets(texts, self.targets)


@dataclass(frozen=True, eq=False)
class TextData(Generic[T]):
    """A data set that is ready to be dealt to clients, as texts or as token ids.

    Two objects are never equal, so that a cache can use one as a key.
    """

    train: T
    test: T
    label_names: tuple[str, ...]
    """Names of the model's outputs, in their order: for the task `label`, the labels."""
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
