"""Measures each round's model: on a central test set, or at the sites on their held-out texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import reduce
from operator import add

import numpy as np
from torch import Tensor

from wardround.common.data.batches import by_length
from wardround.common.data.partitions import split_held_out
from wardround.common.data.tokens import TokenisedTexts
from wardround.common.errors import BadAnswer, RunFailed
from wardround.common.model.state import ModelState
from wardround.common.model.train import evaluate
from wardround.common.settings.tree import Settings
from wardround.common.tasks.sums import Sums
from wardround.common.wire.messages import Update
from wardround.server.record import RoundRecord, SiteTestRecord, TestRecord
from wardround.server.rounds.checks import check_counts, check_finite
from wardround.server.rounds.members import Member


class Evaluation:
    """Fills the `test` of each round's record.

    Sites measure the model that they receive for training, so their counts come with the
    updates of the next round. Until then the record waits.
    """

    def __init__(
        self, settings: Settings, model_state: ModelState, test: TokenisedTexts | None
    ) -> None:
        """Args: test: the central test set; None if the sites measure."""
        self.settings = settings
        self.model_state = model_state
        self.test = test
        self.task = model_state.text_model.task
        self.num_outputs = model_state.text_model.num_outputs
        fraction = settings.evaluation.validation_fraction
        self.num_parts = 2 if fraction else 1
        """Number of parts that are counted: the reported part, and the part that
        chooses the best model."""
        self._parts: tuple[np.ndarray, ...] = ()
        """Indices into the central test set, (n,) int64 each, in that order."""
        if test is not None:
            split_seed = settings.data.split_seed
            validation, reported = split_held_out(
                self.task.strata(test.targets),
                np.arange(len(test)),
                fraction,
                settings.seed if split_seed is None else split_seed,
            )
            self._parts = (reported, validation)[: self.num_parts]
        self.waiting: RoundRecord | None = None
        """The record that waits for the counts of the sites."""

    def measure(self, tensors: Tensor) -> tuple[Sums, float] | None:
        """Return sums and score of the model with these weights, (P,) fp32.

        None if the sites measure.
        """
        if self.test is None:
            return None
        self.model_state.load(tensors)
        reported, *validation = self._parts
        if self.settings.evaluation.mode == "parts":
            sums, score = self._over_parts(self.test, reported)
        else:
            sums = self.count(self.test, by_length(self.test, reported))
            score = self._score(sums)
        for part in validation:
            found = self.count(self.test, by_length(self.test, part))
            sums = replace(sums, validation=found)
        return sums, score

    def _over_parts(
        self, test: TokenisedTexts, chosen: np.ndarray
    ) -> tuple[Sums, float]:
        """Measure like the authors' code: K parts of the test set, the mean batch score of each."""
        parts = np.array_split(chosen, min(self.settings.num_clients, len(chosen)))
        sums = [self.count(test, part) for part in parts]
        scores = [np.mean(part.batch_scores) for part in sums]
        return reduce(add, sums), float(np.mean(scores))

    def count(self, test: TokenisedTexts, indices: np.ndarray) -> Sums:
        """Evaluate the test examples with these indices, in this order."""
        model = self.model_state.text_model.model
        device = self.model_state.device
        return evaluate(model, self.task, test, indices, self.settings, device)

    def check(self, update: Update, member: Member) -> None:
        """Raise BadAnswer, as `check_counts` does, if an update lacks the counts asked for."""
        if update.test is not None:
            self.check_sums(update.test, member)
        elif self.test is None and not update.withheld:
            raise BadAnswer("its update holds no counts of held-out examples")

    def check_sums(self, sums: Sums, member: Member) -> None:
        """Refuse sums of another form than asked for. Raises BadAnswer as `check_counts` does."""
        check_counts(sums, self.task, self.num_outputs, self.num_parts, member)

    def complete(
        self, record: RoundRecord, measured: tuple[Sums, float] | None
    ) -> None:
        """Put the result of `measure` into the record. Without a result the record waits.

        Raises:
            RunFailed: the loss is not finite.
        """
        if measured is None:
            self.waiting = record
        else:
            self._add_test(record, *measured)

    def complete_waiting(self, counts: Mapping[str, Sums]) -> RoundRecord | None:
        """Return the record that waited, with the exact sum of the sites' counts.

        Args:
            counts: the counts of each site, by its name.

        Returns:
            The record; None if no record waits.

        Raises:
            RunFailed: there are no counts, or the loss is not finite.
        """
        record = self.waiting
        self.waiting = None
        if record is None:
            return None
        if not counts:
            raise RunFailed(
                f"round {record.round}: no site sent counts of its held-out texts; set "
                "evaluation.where=server"
            )
        total = reduce(add, counts.values())
        self._add_test(record, total, self._score(total))
        record.sites = [
            SiteTestRecord.model_validate(
                {"site": name, "num_examples": site.num_examples, "loss": site.loss}
                | self.task.describe_site(site)
            )
            for name, site in sorted(counts.items())
        ]
        return record

    def _score(self, sums: Sums) -> float:
        return self.task.metrics(sums)[self.task.score]

    def _add_test(self, record: RoundRecord, sums: Sums, score: float) -> None:
        record.test = self._test_record(record.round, "test loss", sums, score)
        predictions = self.task.describe(sums)
        record.diagnostics = record.diagnostics.model_copy(update=predictions)
        validation = sums.validation
        if validation is not None:
            record.validation = self._test_record(
                record.round, "validation loss", validation, self._score(validation)
            )

    def _test_record(
        self, round: int, name: str, sums: Sums, score: float
    ) -> TestRecord:
        check_finite(round, name, sums.loss)
        metrics = self.task.metrics(sums) | {self.task.score: score}
        return TestRecord.model_validate(
            {"loss": sums.loss, "num_examples": sums.num_examples} | metrics
        )
