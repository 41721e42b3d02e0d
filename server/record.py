"""The typed record of a round: a line of `history.jsonl`, and what a checkpoint holds beside its tensors."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache
from math import inf, isfinite
from typing import Annotated, Any

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

Count = Annotated[int, Field(ge=0)]
Natural = Annotated[int, Field(ge=1)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Cosine = Annotated[float, Field(ge=-1, le=1)]
Line = str | bytes
"""A line of `history.jsonl`, as text or UTF-8."""


class Record(BaseModel):
    """A part of a line. Keys without a default are always written, the others only where they are set.

    None, written as null: not known, as in round 0 or in what an older version wrote.
    """

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _of_any_version(cls, line: Any, info: ValidationInfo) -> Any:
        """For `RoundRecord.read`: None for what an older version did not write and for numbers that are none;
        what a later version wrote besides is passed over."""
        if not info.context or not isinstance(line, dict):
            return line
        absent = _absent(cls)
        return absent | {
            key: None if isinstance(value, float) and not isfinite(value) else value
            for key, value in line.items()
            if key in cls.model_fields
            and (value is not None or absent.get(key) is None)
        }

    @model_serializer(mode="wrap")
    def _without_what_is_not_set(
        self, write: SerializerFunctionWrapHandler
    ) -> dict[str, Any]:
        fields = type(self).model_fields
        return {
            key: value
            for key, value in write(self).items()
            if fields[key].is_required() or value not in (None, [])
        }


@cache
def _absent(kind: type[Record]) -> dict[str, Any]:
    """What stands for the keys that a line lacks: an empty part where a part is required, else None."""
    required = {
        key: field.annotation
        for key, field in kind.model_fields.items()
        if field.is_required()
    }
    return {
        key: {} if isinstance(part, type) and issubclass(part, Record) else None
        for key, part in required.items()
    }


class TestRecord(Record):
    """What the round's model makes of the test texts, or of all texts that the sites hold out."""

    loss: NotNegative | None
    accuracy: Share | None
    macro_f1: Share | None
    num_examples: Natural | None


class TrainRecord(Record):
    """Mean training loss over all examples of the clients in the mean; null and 0 in round 0."""

    loss: NotNegative | None
    num_examples: Count | None


class ClientRecord(Record):
    """A client whose update is in the mean."""

    client: Count
    num_examples: Natural | None
    loss: NotNegative | None
    seconds: NotNegative | None
    num_bytes: Natural | None
    """Of the tensors, as they travelled."""
    num_steps: Natural | None
    """Optimiser steps in this round."""
    total_steps: Natural | None
    """Optimiser steps in the whole run so far."""
    head_norm: NotNegative | None
    """L2 norm of the update over the head that pre-training did not bring."""
    norm_received: NotNegative | None = None
    """L2 norm of the update as it came, where that was clipped."""
    site: str | None = None
    """Its name, where the client is a site."""
    update_norm: NotNegative | None
    """L2 norm of trained - global over all shared tensors."""
    cosine_to_mean: Cosine | None
    cosine_to_others: Cosine | None
    """To the weighted mean of the others; null where there are none."""
    share: Share | None = None
    """Of the mean, where shares are bounded (`strategy.max_share`), or control variates need it."""
    uncorrected: bool | None = None
    """True where it lacked the control variate that was to correct its steps."""

    @property
    def name(self) -> str:
        """How a reader knows it: a site's name, or the client's number."""
        return self.site or str(self.client)


class LeftOutRecord(Record):
    """A client whose update of the round is not in the mean."""

    client: Count
    reason: str
    site: str | None = None


class SiteRecord(Record):
    """What one site counted on its held-out texts (`evaluation.where=sites`)."""

    site: str
    num_examples: Natural
    correct: Count
    accuracy: Share
    loss: NotNegative


class Diagnostics(Record):
    """What the updates tell together (null in round 0), and what the model predicts."""

    mean_update_norm: NotNegative | None
    norm_ratio: Share | None
    head_norm: NotNegative | None
    body_norm: NotNegative | None
    head_length: NotNegative | None = None
    """L2 norm of the new head's weights after the round; None in histories from before it was told."""
    predicted_shares: list[Share] | None
    """Share of the test predictions in each class."""
    prediction_entropy: NotNegative | None
    """In nats."""
    largest_class_share: Share | None
    """Of the true labels: the accuracy of always naming the most frequent class."""


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
    """One whole round. Round 0 is the initial model, for which nobody has trained."""

    round: Count
    test: TestRecord | None
    """None only in a checkpoint, until the sites have measured the model, which they do in the next round."""
    validation: TestRecord | None = None
    """What it makes of the texts that choose the best model, where some do."""
    train: TrainRecord
    clients: Annotated[
        list[ClientRecord], BeforeValidator(lambda clients: clients or [])
    ]
    """In the order in which they were folded."""
    diagnostics: Diagnostics
    seconds: Seconds
    bytes: Traffic
    model_sha256: str | None
    """Of the global tensors after the round."""
    left_out: list[LeftOutRecord] = []
    sites: list[SiteRecord] = []

    @classmethod
    def read(cls, line: Line) -> RoundRecord:
        """A line of `history.jsonl`, whichever version wrote it.

        Raises:
            ValueError: it is no such line (pydantic's ValidationError is one).
        """
        return cls.model_validate(json.loads(line), context={"of_any_version": True})

    @property
    def accuracy(self) -> float | None:
        """On the test texts; None where they are not measured, or no number came out."""
        return self.test.accuracy if self.test else None

    def line(self) -> str:
        """As it stands in `history.jsonl`, with its newline."""
        return json.dumps(self.model_dump(), allow_nan=False) + "\n"


def best_of(records: Iterable[RoundRecord]) -> RoundRecord | None:
    """The round whose model is right most often on the validation part, of several the one with the smallest
    loss there, of equals the first; None where there is none."""
    return max(
        (record for record in records if record.validation), key=_quality, default=None
    )


def _quality(record: RoundRecord) -> tuple[float, float]:
    accuracy, loss = (
        (record.validation.accuracy, record.validation.loss)
        if record.validation
        else (0, None)
    )
    return accuracy or 0.0, -(inf if loss is None else loss)
