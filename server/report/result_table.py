"""The result table: one row for each model × data × K, its seeds drawn together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from server.report.results import Cell, Run, Sweep

DISPLAY_NAMES = {
    "bert": "BERT",
    "albert": "ALBERT",
    "distilbert": "DistilBERT",
    "minilm": "MiniLM",
    "imdb": "IMDB",
    "yelp_full": "Yelp-Full",
    "ag_news": "AG News",
    "bbc_news": "BBC News",
    "spooky_author": "Spooky Author",
}


@dataclass(frozen=True)
class Spread:
    """Mean over seeds, with the lowest and the highest."""

    mean: float
    low: float
    high: float
    count: int

    def text(self, pattern: str) -> str:
        """The mean, followed by `(low–high)` where there is more than one seed."""
        if self.count == 1:
            return format(self.mean, pattern)
        return f"{self.mean:{pattern}} ({self.low:{pattern}}–{self.high:{pattern}})"


@dataclass(frozen=True)
class Row:
    """One model × data × K over all its seeds."""

    model: str
    data: str
    num_clients: int
    cells: tuple[Cell, ...]

    @property
    def name(self) -> str:
        """For a sentence: `BERT on AG News with K = 8`."""
        return f"{display_name(self.model)} on {display_name(self.data)} with K = {self.num_clients}"

    @property
    def accuracy(self) -> Spread | None:
        """Test accuracy at the budget, over the seeds that got there."""
        return spread(cell.accuracy for cell in self.cells)

    @property
    def share(self) -> Spread | None:
        """Accuracy at the budget over the K = 1 accuracy of the same seed."""
        return spread(
            cell.accuracy / cell.baseline if cell.accuracy is not None and cell.baseline else None
            for cell in self.cells
        )

    @property
    def rounds(self) -> Spread | None:
        """Rounds to the target, over the seeds that reached it."""
        return spread(cell.rounds_to_target for cell in self.cells)

    @property
    def outcomes(self) -> str:
        """`reached`, `not reached`, `not yet` …; counts where the seeds differ."""
        return _counted([cell.outcome for cell in self.cells])

    @property
    def status(self) -> str:
        """`finished`, `failed` …; counts where the seeds differ."""
        return _counted([cell.status for cell in self.cells])

    @property
    def rounds_text(self) -> str:
        """Rounds to the target in words, with what became of the seeds that are not there."""
        if self.rounds is None:
            return self.outcomes
        several = self.rounds.count < len(self.cells)
        return self.rounds.text(".4g") + (f"; {self.outcomes}" if several else "")


def table_rows(sweep: Sweep) -> tuple[Row, ...]:
    """Rows in the order of models and data sets in the sweep, K ascending."""
    groups = (
        Row(model, data, num_clients, sweep.group(model, data, num_clients))
        for model in sweep.models
        for data in sweep.data_sets
        for num_clients in sweep.client_counts
    )
    return tuple(row for row in groups if row.cells)


def spread(values: Iterable[float | None]) -> Spread | None:
    """Mean, lowest and highest of the values that are there; None where none is."""
    known = [value for value in values if value is not None]
    return Spread(sum(known) / len(known), min(known), max(known), len(known)) if known else None


def display_name(label: str) -> str:
    """How a model or data set is written for readers."""
    return DISPLAY_NAMES.get(label, label)


def joined(items: Iterable[object]) -> str:
    """`a, b and c`."""
    texts = [str(item) for item in items]
    return " and ".join([", ".join(texts[:-1]), texts[-1]] if len(texts) > 1 else texts)


def shared_settings(runs: Iterable[Run]) -> tuple[dict[str, object], list[str]]:
    """Settings that all runs share as `key: value`, and the keys in which they differ."""
    flat = [run.settings.flat() for run in runs if run.settings]
    keys = sorted({key for values in flat for key in values})
    shared = {key: flat[0][key] for key in keys if all(values.get(key) == flat[0][key] for values in flat)}
    return shared, [key for key in keys if key not in shared]


def _counted(words: list[str]) -> str:
    counts = Counter(words)
    return words[0] if len(counts) == 1 else ", ".join(f"{count} {word}" for word, count in counts.items())
