"""The typed record of a round: a line of `history.jsonl`, and a part of each checkpoint."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import cache
from math import inf, isfinite
from typing import Annotated, Any, ClassVar, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    model_serializer,
    model_validator,
)

from wardround.common.tasks.table import check_ranges
from wardround.common.tasks.task import Task, merit

Count = Annotated[int, Field(ge=0)]
Natural = Annotated[int, Field(ge=1)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Cosine = Annotated[float, Field(ge=-1, le=1)]
Metric = int | float | None
Line = str | bytes
"""A line of `history.jsonl`, as text or UTF-8."""


class Record(BaseModel):
    """A part of a line.

    Keys without a default are always written, the others only if they are set. None,
    written as null, means unknown: in round 0, in lines of older versions, and for
    statistics of single updates that the server does not receive.
    """

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _from_any_version(cls, line: Any, info: ValidationInfo) -> Any:
        """Complete a line for `RoundRecord.read`.

        Keys that an older version did not write, and numbers that are not finite, become
        None; keys of a later version are dropped.
        """
        if not info.context or not isinstance(line, dict):
            return line
        defaults = _defaults(cls)
        completed = dict(defaults)
        for key, value in line.items():
            is_missing = value is None and defaults.get(key) is not None
            if is_missing or not cls._knows(key, value):
                continue
            is_finite = not isinstance(value, float) or isfinite(value)
            completed[key] = value if is_finite else None
        return completed

    @classmethod
    def _knows(cls, key: str, value: Any) -> bool:
        return key in cls.model_fields

    @model_serializer(mode="wrap")
    def _without_unset(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = type(self).model_fields
        return {
            key: value
            for key, value in self._in_order(write(self)).items()
            if key not in fields or fields[key].is_required() or value not in (None, [])
        }

    def _in_order(self, written: dict[str, Any]) -> dict[str, Any]:
        return written


@cache
def _defaults(kind: type[Record]) -> dict[str, Any]:
    """Return values for the required keys: an empty part if the key is a part, else None."""
    values: dict[str, Any] = {}
    for key, field in kind.model_fields.items():
        if field.is_required():
            part = field.annotation
            is_part = isinstance(part, type) and issubclass(part, Record)
            values[key] = {} if is_part else None
    return values


class TaskRecord(Record):
    """A part with facts of the task, under names that the task gives."""

    model_config = ConfigDict(extra="allow")

    @classmethod
    def _knows(cls, key: str, value: Any) -> bool:
        return key in cls.model_fields or isinstance(value, int | float | list | None)

    _facts_before: ClassVar[str | None] = None
    """The field before which the facts of the task are written; None writes them last."""

    @model_validator(mode="after")
    def _in_range(self) -> Self:
        """Refuse facts outside of the range that their task gives."""
        check_ranges(self.__pydantic_extra__ or {})
        return self

    def _in_order(self, written: dict[str, Any]) -> dict[str, Any]:
        last = self._facts_before
        if last is None:
            return written
        return {
            key: written[key]
            for key in (*(key for key in written if key != last), last)
        }

    @property
    def facts(self) -> dict[str, Any]:
        """Every fact by its name, those of the task too."""
        return dict(self)


class TestRecord(TaskRecord):
    """Quality of the round's model on the test texts, or on all held-out texts of the sites.

    The further keys are the metrics of the task.
    """

    __pydantic_extra__: dict[str, Metric]

    _facts_before = "num_examples"

    loss: NotNegative | None
    num_examples: Natural | None

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """The metrics of the task by name; None for one that is not a number."""
        return self.__pydantic_extra__

    def score(self, task: Task) -> float | None:
        """Return the metric that chooses the best model; None if it is not a number."""
        return self.metrics.get(task.score)


class TrainRecord(Record):
    """Mean training loss over all examples of the clients in the mean; null in round 0."""

    loss: NotNegative | None
    num_examples: Count | None


class ClientRecord(Record):
    """A client whose update is in the mean."""

    client: Count
    num_examples: Natural | None
    loss: NotNegative | None
    seconds: NotNegative | None
    num_bytes: Natural | None
    """Bytes of the tensors, as they travelled."""
    num_steps: Natural | None
    """Optimiser steps in this round."""
    total_steps: Natural | None
    """Optimiser steps in the whole run so far."""
    head_norm: NotNegative | None
    """L2 norm of the update over the newly added layers."""
    norm_received: NotNegative | None = None
    """L2 norm of the update as it came, if it was clipped."""
    site: str | None = None
    """Its name, if the client is a site."""
    update_norm: NotNegative | None
    """L2 norm of trained - global over all shared tensors."""
    cosine_to_mean: Cosine | None
    """Cosine of the update to the mean update."""
    cosine_to_others: Cosine | None
    """Cosine of the update to the weighted mean of the others; null if it is the only one."""
    share: Share | None = None
    """Its share of the mean, if shares are bounded (`strategy.max_share`) or control variates
    need it."""
    uncorrected: bool | None = None
    """True if it lacked the control variate that corrects its steps."""

    @property
    def name(self) -> str:
        """The name for readers: the site's name, or the client's number."""
        return self.site or str(self.client)


class LeftOutRecord(Record):
    """A client whose update of the round is not in the mean."""

    client: Count
    reason: str
    site: str | None = None


class SiteTestRecord(TaskRecord):
    """One site's sums on its held-out texts (`evaluation.where=sites`).

    The further keys are facts of the task (`Task.describe_site`).
    """

    __pydantic_extra__: dict[str, Metric]

    _facts_before = "loss"

    site: str
    num_examples: Natural
    loss: NotNegative


class Diagnostics(TaskRecord):
    """Statistics of the updates together (null in round 0), and of the model's predictions.

    The further keys are facts of the task about the predictions (`Task.describe`).
    """

    __pydantic_extra__: dict[str, Metric | list[float]]

    mean_update_norm: NotNegative | None
    norm_ratio: Share | None
    head_norm: NotNegative | None
    body_norm: NotNegative | None
    head_length: NotNegative | None = None
    """L2 norm of the newly added layers after the round; missing in older histories."""


class Seconds(Record):
    """Wall-clock seconds."""

    train: NotNegative | None
    aggregate: NotNegative | None
    evaluate: NotNegative | None
    total: NotNegative | None


class Traffic(Record):
    """Bytes of all tensors, as they travelled."""

    down: Count | None
    up: Count | None


class RoundRecord(Record):
    """One whole round. Round 0 is the initial model, before any training."""

    round: Count
    test: TestRecord | None
    """None only in a checkpoint, until the sites have measured the model in the next round."""
    validation: TestRecord | None = None
    """Quality on the validation texts, which choose the best model; None if there are none."""
    train: TrainRecord
    clients: Annotated[
        list[ClientRecord], BeforeValidator(lambda clients: clients or [])
    ]
    """In the order of folding."""
    diagnostics: Diagnostics
    seconds: Seconds
    bytes: Traffic
    model_sha256: str | None
    """SHA-256 of the global tensors after the round."""
    left_out: list[LeftOutRecord] = []
    sites: list[SiteTestRecord] = []

    @classmethod
    def read(cls, line: Line) -> RoundRecord:
        """Read a line of `history.jsonl`, from any version.

        Raises:
            ValueError: it is not such a line (pydantic's ValidationError is one).
        """
        return cls.model_validate(json.loads(line), context={"of_any_version": True})

    def score(self, task: Task) -> float | None:
        """Return the score on the test texts; None if it was not measured or is not a number."""
        return self.test.score(task) if self.test else None

    def line(self) -> str:
        """Return the line for `history.jsonl`, with its newline."""
        return json.dumps(self.model_dump(), allow_nan=False) + "\n"


def best_of(records: Iterable[RoundRecord], task: Task) -> RoundRecord | None:
    """Return the round with the best model on the validation texts; None if there is none.

    It has the best score; of several, the smallest loss; of equals, it is the first.
    """
    best: RoundRecord | None = None
    best_quality = (-inf, -inf)
    for record in records:
        if record.validation is None:
            continue
        loss = record.validation.loss
        score = record.validation.score(task)
        quality = (
            -inf if score is None else merit(task, score),
            -inf if loss is None else -loss,
        )
        if best is None or quality > best_quality:
            best = record
            best_quality = quality
    return best


def score_text(record: RoundRecord, task: Task) -> str:
    """Return the score of a measured round in words: `accuracy 0.9310`."""
    return f"{task.metric_words[task.score]} {record.score(task):.4f}"
