"""Messages as Flower's records: pack and unpack.

server -> client   tensors   the global tensors, as flat arrays in pieces (<array>.00000 ...)
                   task      round, layout (digest of names and shapes), client (its number in this run), form
                             (of the tensors), version (SHA-256 of the global tensors), base (the version that
                             they build on; "" for none), mean_steps (of the clients' last round; 0 without
                             control variates), settings (JSON; only without an approved plan: in simulations
                             and on stock SuperNodes)
client -> server   tensors   the trained tensors, relative to the global ones
                   update    round, layout, form, holds (the version that this client keeps; "" for none)
                   metrics   num_examples, num_steps, loss, seconds, withheld (1 if the counts stay at the
                             site), uncorrected (1 if the client lacks its control variate)
                   counts    loss_sum, confusion: the received model on the site's held-out texts, only if
                             evaluation.where is `sites`; validation_loss_sum, validation_confusion: the same
                             on the texts that choose the best model, only if
                             evaluation.validation_fraction is above 0
                   refusal   code: a key of REFUSALS; key: the setting in question, or "" (instead of all above)
                   lacks     base: a version that this client does not hold (instead of all above)
hello              card      client (its number in a simulation, else -1), num_examples, num_held_out
evaluate           counts    as above, and nothing else
notice             notice    text: why the server refused an update; the answer is empty

The caller puts a packed content into a reply.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from math import inf, isfinite
from typing import Any

from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict

from wardround.common.errors import BadAnswer, NoAnswer
from wardround.common.settings.tree import Settings
from wardround.common.tasks.sums import Sums
from wardround.common.tasks.table import TASKS
from wardround.common.tasks.task import Task
from wardround.common.wire.arrays import Payload, from_record, to_record
from wardround.common.wire.messages import Introduction, TrainRequest, Update
from wardround.common.wire.refusals import REFUSALS, refusal_text
from wardround.common.words import LONGEST_TEXT, quoted

_Fields = dict[str, Callable[[str], Any]]
"""Names of a record's fields, each with the function that reads its text."""

# What the records hold beside the tensors, and what is made of it.
_TASK: _Fields = {
    "round": int,
    "layout": str,
    "version": str,
    "base": str,
    "mean_steps": float,
}
_UPDATE: _Fields = {"round": int, "layout": str, "holds": str}
_METRICS: _Fields = {
    "num_examples": int,
    "num_steps": int,
    "loss": float,
    "seconds": float,
    "withheld": int,
    "uncorrected": int,
}
_CARD: _Fields = {"client": int, "num_examples": int, "num_held_out": int}
_COUNTED_PARTS = (
    "",
    "validation_",
)  # as in `Sums.parts`; they stand before the names in the record
_LOSS_SUM = "loss_sum"
_COUNTED = (_LOSS_SUM, *(name for task in TASKS.values() for name in task.sum_names))
FIELDS: Mapping[str, frozenset[str]] = {
    "task": frozenset({*_TASK, "form", "client", "settings"}),
    "update": frozenset({*_UPDATE, "form"}),
    "metrics": frozenset(_METRICS),
    "counts": frozenset(
        f"{prefix}{name}" for prefix in _COUNTED_PARTS for name in _COUNTED
    ),
    "card": frozenset(_CARD),
    "refusal": frozenset({"code", "key"}),
    "lacks": frozenset({"base"}),
    "notice": frozenset({"text"}),
    "tensors": frozenset({"shared", "widths", "steps", "others", "values", "scales"}),
}
"""Every record there is, with the names of its fields; of `tensors`, the names of the arrays."""


def _written(source: object, fields: _Fields) -> dict[str, Any]:
    return {name: getattr(source, name) for name in fields}


def _read(record: Mapping[str, Any], fields: _Fields) -> dict[str, Any]:
    return {name: kind(str(record[name])) for name, kind in fields.items()}


@contextmanager
def _refused_unless(what: str) -> Iterator[None]:
    """Turn whatever a client's content makes of reading it into BadAnswer."""
    try:
        yield
    except Exception as error:
        words = quoted(str(error), LONGEST_TEXT)
        raise BadAnswer(
            f"its answer {what} ({type(error).__name__}: {words})"
        ) from None


def pack_requests(task: TrainRequest, clients: Sequence[int]) -> list[RecordDict]:
    """One content for each client number; all of them share one record of tensors."""
    arrays = to_record(task.payload.arrays)
    config = (
        _written(task, _TASK)
        | {"form": task.payload.form}
        | _settings_field(task.settings)
    )
    return [
        RecordDict(
            {"tensors": arrays, "task": ConfigRecord(config | {"client": client})}
        )
        for client in clients
    ]


def unpack_request(content: RecordDict) -> TrainRequest:
    """Inverse of `pack_requests`."""
    config = content.config_records["task"]
    fields = _read(config, _TASK | {"client": int})
    return TrainRequest(
        settings=_settings(config), payload=_payload(content, config), **fields
    )


def _settings_field(settings: Settings | None) -> dict[str, Any]:
    return {} if settings is None else {"settings": settings.to_json()}


def _settings(config: ConfigRecord) -> Settings | None:
    return Settings.from_json(str(config["settings"])) if "settings" in config else None


def pack_update(update: Update) -> RecordDict:
    """A client's answer to a task."""
    config = _written(update, _UPDATE) | {"form": update.payload.form}
    content = RecordDict(
        {"tensors": to_record(update.payload.arrays), "update": ConfigRecord(config)}
    )
    content["metrics"] = MetricRecord(_written(update, _METRICS))
    if update.test is not None:
        content["counts"] = _counts_record(update.test)
    return content


def _payload(
    content: RecordDict, config: ConfigRecord, most_bytes: float = inf
) -> Payload:
    return Payload(
        str(config["form"]), from_record(content.array_records["tensors"], most_bytes)
    )


def unpack_update(content: RecordDict, task: Task, most_bytes: float = inf) -> Update:
    """Inverse of `pack_update`.

    Args:
        task: reads the counts.
        most_bytes: of its arrays; more are refused before room is made for them.

    Raises:
        BadAnswer: the answer does not have the form of an update.
    """
    with _refused_unless("is no update"):
        config, metrics = (
            content.config_records["update"],
            content.metric_records["metrics"],
        )
        return Update(
            **_read(config, _UPDATE),
            **_read(metrics, _METRICS),
            payload=_payload(content, config, most_bytes),
            test=_counts(content, task) if "counts" in content.metric_records else None,
        )


def pack_hello(settings: Settings | None) -> RecordDict:
    """Asks a client who it is. Args: settings: None where it has a plan that it approved."""
    return RecordDict({"task": ConfigRecord(_settings_field(settings))})


def unpack_hello(content: RecordDict) -> Settings | None:
    """Inverse of `pack_hello`."""
    return _settings(content.config_records["task"])


def pack_introduction(card: Introduction) -> RecordDict:
    """A client's answer to hello."""
    return RecordDict({"card": ConfigRecord(_written(card, _CARD))})


def unpack_introduction(content: RecordDict) -> Introduction:
    """Inverse of `pack_introduction`. Raises BadAnswer as `unpack_update` does."""
    with _refused_unless("is no card"):
        return Introduction(**_read(content.config_records["card"], _CARD))


def pack_counts(counts: Sums) -> RecordDict:
    """A client's answer to evaluate."""
    return RecordDict({"counts": _counts_record(counts)})


def unpack_counts(content: RecordDict, task: Task) -> Sums:
    """Inverse of `pack_counts`. Raises BadAnswer as `unpack_update` does."""
    with _refused_unless("holds no counts"):
        return _counts(content, task)


def _counts_record(counts: Sums) -> MetricRecord:
    record = MetricRecord()
    for prefix, part in zip(_COUNTED_PARTS, counts.parts, strict=False):
        record[f"{prefix}{_LOSS_SUM}"] = part.loss_sum
        for name, array in part.arrays.items():
            record[f"{prefix}{name}"] = array.flatten().tolist()
    return record


def _counts(content: RecordDict, task: Task) -> Sums:
    """Return the sums of a record. Raises KeyError or ValueError if it holds other content."""
    record = content.metric_records["counts"]
    reported, validation = _COUNTED_PARTS
    counts = _counted_part(record, task, reported)
    if f"{validation}{_LOSS_SUM}" not in record:
        return counts
    return replace(counts, validation=_counted_part(record, task, validation))


def _counted_part(record: MetricRecord, task: Task, prefix: str) -> Sums:
    loss_sum = float(str(record[f"{prefix}{_LOSS_SUM}"]))
    if not isfinite(loss_sum):
        raise ValueError("the summed loss of held-out texts is not finite")
    arrays = {name: record[f"{prefix}{name}"] for name in task.sum_names}
    return task.read_sums(loss_sum, arrays)


def pack_refusal(code: str, key: str = "") -> RecordDict:
    """A client's answer when it does not do what was asked.

    Args:
        code: a key of `REFUSALS`.
        key: of the setting that is meant, one of `known_keys()`; empty for none.
    """
    assert code in REFUSALS, code
    return RecordDict({"refusal": ConfigRecord({"code": code, "key": key})})


def pack_missing_base(base: str) -> RecordDict:
    """A client's answer to a task that is written against a version which it does not hold."""
    return RecordDict({"lacks": ConfigRecord({"base": base})})


def is_missing_base(content: RecordDict) -> bool:
    """Whether the client asks for the tensors as a whole."""
    return "lacks" in content.config_records


def pack_notice(text: str) -> RecordDict:
    """Tells a client something it cannot see from its side."""
    return RecordDict({"notice": ConfigRecord({"text": text})})


def unpack_notice(content: RecordDict) -> str:
    """Inverse of `pack_notice`."""
    return str(content.config_records["notice"]["text"])


def content_of(message: Message) -> RecordDict:
    """Return the content of a Flower message. Raises NoAnswer for an error or a refusal."""
    if message.has_error():
        reason = quoted(str(message.error.reason))
        raise NoAnswer(f"Flower reports error {message.error.code}: {reason}")
    return check_answered(message.content)


def check_answered(content: RecordDict) -> RecordDict:
    """Return the content, unless it is a refusal. Raises NoAnswer."""
    refusal = content.config_records.get("refusal")
    if refusal is None:
        return content
    code = str(refusal.get("code", ""))
    key = str(refusal.get("key", ""))
    if code not in REFUSALS:
        raise NoAnswer("it refuses, without a reason that is known here")
    raise NoAnswer(refusal_text(code, key), code)
