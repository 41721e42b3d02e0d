"""Measuring each round's model: here, on a central test set, or by the sites on texts that they hold out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import reduce
from operator import add
from typing import TYPE_CHECKING

import numpy as np

from wardround.common.data.batches import by_length
from wardround.common.data.partitions import split_held_out
from wardround.common.data.tokens import TokenisedTexts
from wardround.common.errors import BadAnswer, RunFailed
from wardround.common.model.state import ModelState
from wardround.common.model.train import evaluate
from wardround.common.settings.tree import Settings
from wardround.common.tasks.sums import Sums
from wardround.common.wire.messages import Update
from wardround.server.diagnostics.predictions import describe_predictions
from wardround.server.record import RoundRecord, SiteRecord, TestRecord
from wardround.server.rounds.checks import check_counts, check_finite
from wardround.server.rounds.members import Member

if TYPE_CHECKING:
    from torch import Tensor


class Evaluation:
    """Fills the `test` of each round's record.

    Sites measure the model that they are sent to train on, so their counts come with the updates of the next
    round; until then the record waits.
    """

    def __init__(
        self, settings: Settings, model_state: ModelState, test: TokenisedTexts | None
    ) -> None:
        """Args: test: the central test set; None where the sites measure."""
        self.settings, self.model_state, self.test = settings, model_state, test
        self.num_labels = model_state.text_model.num_labels
        fraction = settings.evaluation.validation_fraction
        self.num_parts = 2 if fraction else 1
        """Of what is counted: that which is reported, and that which chooses the best model."""
        self._parts: tuple[
            np.ndarray, ...
        ] = ()  # of the central test set, (n,) int64 each, in that order
        if test is not None:
            seed = (
                settings.seed
                if settings.data.split_seed is None
                else settings.data.split_seed
            )
            validation, reported = split_held_out(
                test.labels, np.arange(len(test)), fraction, seed
            )
            self._parts = (reported, validation)[: self.num_parts]
        self.waiting: RoundRecord | None = None
        """For the counts of the sites."""

    def measure(self, tensors: Tensor) -> tuple[Sums, float] | None:
        """Sums and accuracy of the model with these weights, (P,) fp32; None where the sites measure."""
        if self.test is None:
            return None
        self.model_state.load(tensors)
        reported, *validation = self._parts
        if self.settings.evaluation.mode == "parts":
            counts, accuracy = self._over_parts(self.test, reported)
        else:
            counts = self.count(self.test, by_length(self.test, reported))
            accuracy = counts.accuracy
        for part in validation:
            counts = replace(
                counts, validation=self.count(self.test, by_length(self.test, part))
            )
        return counts, accuracy

    def _over_parts(
        self, test: TokenisedTexts, chosen: np.ndarray
    ) -> tuple[Sums, float]:
        """The authors' code: cut the test set into K parts, and average batch accuracies in each."""
        parts = np.array_split(chosen, min(self.settings.num_clients, len(chosen)))
        counts = [self.count(test, part) for part in parts]
        return reduce(add, counts), float(
            np.mean([np.mean(part.batch_accuracies) for part in counts])
        )

    def check(self, update: Update, member: Member) -> None:
        """Refuse an update whose counts are not as asked. Raises BadAnswer as `check_counts` does."""
        if update.test is not None:
            check_counts(update.test, self.num_labels, self.num_parts, member)
        elif self.test is None and not update.withheld:
            raise BadAnswer("its update holds no counts of held-out examples")

    def enter(self, record: RoundRecord, measured: tuple[Sums, float] | None) -> None:
        """Put what `measure` gave into the record, or have it wait. Raises RunFailed as `hear` does."""
        if measured is None:
            self.waiting = record
        else:
            _add_test(record, *measured)

    def hear(self, counts: Mapping[str, Sums]) -> RoundRecord | None:
        """The record that waited, with the exact sum of what the sites counted, and what each did.

        Args:
            counts: of each site, by its name.

        Raises:
            RunFailed: there are none, or the loss is no number.
        """
        record, self.waiting = self.waiting, None
        if record is None:
            return None
        if not counts:
            no_counts = (
                "no site sent counts of its held-out texts; set evaluation.where=server"
            )
            raise RunFailed(f"round {record.round}: {no_counts}")
        total = reduce(add, counts.values())
        _add_test(record, total, total.accuracy)
        record.sites = [
            SiteRecord(
                site=name,
                num_examples=site.num_examples,
                correct=int(np.trace(site.confusion)),
                accuracy=site.accuracy,
                loss=site.loss,
            )
            for name, site in sorted(counts.items())
        ]
        return record

    def count(self, test: TokenisedTexts, indices: np.ndarray) -> Sums:
        """Evaluate the chosen test examples in this order."""
        model, device = self.model_state.text_model.model, self.model_state.device
        return evaluate(model, test, indices, self.settings, device)


def _add_test(record: RoundRecord, counts: Sums, accuracy: float) -> None:
    record.test = _measured(record.round, "test loss", counts, accuracy)
    record.diagnostics = record.diagnostics.model_copy(
        update=describe_predictions(counts)
    )
    if counts.validation is not None:
        validation = counts.validation
        record.validation = _measured(
            record.round, "validation loss", validation, validation.accuracy
        )


def _measured(round: int, what: str, counts: Sums, accuracy: float) -> TestRecord:
    check_finite(round, what, counts.loss)
    return TestRecord(
        loss=counts.loss,
        accuracy=accuracy,
        macro_f1=counts.macro_f1,
        num_examples=counts.num_examples,
    )
