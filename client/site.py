"""A client's own facts: which number it has, and which examples are its own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from flwr.app import Context

from common.partitions import partition
from common.settings import Settings
from common.workplace import Corpus, open_corpus


@dataclass(frozen=True)
class Site:
    """One simulated site: client `client` of `num_clients`."""

    client: int

    @classmethod
    def from_context(cls, context: Context) -> Site:
        """Read the number Flower's simulation gave this node."""
        return cls(client=int(str(context.node_config["partition-id"])))

    def examples(self, settings: Settings) -> tuple[Corpus, np.ndarray]:
        """The run's texts and this site's indices into their training part, (n_k,) int64."""
        corpus = open_corpus(settings)
        parts = partition(
            settings.partition, corpus.train.labels, settings.num_clients, settings.seed, corpus.site_sizes
        )
        return corpus, parts[self.client]
