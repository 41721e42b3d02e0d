"""Messages as Flower's records: pack and unpack.

server -> client
    tensors   the global tensors, as flat arrays in pieces (<array>.00000 ...)
    task      round, layout (digest of names and shapes), client (its number in this run), form
              (of the tensors), version (SHA-256 of the global tensors), base (the version that
              they build on; "" for none), mean_steps (of the clients' last round; 0 without
              control variates), settings (JSON; only without an approved plan: in simulations
              and on stock SuperNodes)
client -> server
    tensors   the trained tensors, relative to the global ones
    update    round, layout, form, holds (the version that this client keeps; "" for none)
    metrics   num_examples, num_steps, loss, seconds, withheld (1 if the counts stay at the
              site), uncorrected (1 if the client lacks its control variate)
    counts    loss_sum, confusion: the received model on the site's held-out texts, only if
              evaluation.where is `sites`; validation_loss_sum, validation_confusion: the same
              on the texts that choose the best model, only if
              evaluation.validation_fraction is above 0
    refusal   code: a key of REFUSALS; key: the setting in question, or ""; replaces the others
    lacks     base: a version that this client does not hold; replaces the others
hello
    card      client (its number in a simulation, else -1), num_examples, num_held_out
evaluate
    counts    as above, and nothing else
notice
    notice    text: why the server refused an update; the answer is empty

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

_REQUEST: _Fields = {
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
_INTRODUCTION: _Fields = {"client": int, "num_examples": int, "num_held_out": int}
_PREFIXES = ("", "validation_")
"""Prefixes of the fields of each part of `Sums.parts`."""
_LOSS_SUM = "loss_sum"
_COUNTED = (_LOSS_SUM, *(name for task in TASKS.values() for name in task.sum_names))
FIELDS: Mapping[str, frozenset[str]] = {
    "task": frozenset({*_REQUEST, "form", "client", "settings"}),
    "update": frozenset({*_UPDATE, "form"}),
    "metrics": frozenset(_METRICS),
    "counts": frozenset(prefix + name for prefix in _PREFIXES for name in _COUNTED),
    "card": frozenset(_INTRODUCTION),
    "refusal": frozenset({"code", "key"}),
    "lacks": frozenset({"base"}),
    "notice": frozenset({"text"}),
    "tensors": frozenset({"shared", "widths", "steps", "others", "values", "scales"}),
}
"""The names of all records and of their fields; for `tensors`, the names of the arrays."""


def _written(source: object, fields: _Fields) -> dict[str, Any]:
    return {name: getattr(source, name) for name in fields}


def _read(record: Mapping[str, Any], fields: _Fields) -> dict[str, Any]:
    return {name: read(str(record[name])) for name, read in fields.items()}


@contextmanager
def _bad_answer_if_unreadable(problem: str) -> Iterator[None]:
    """Turn every error that a client's content causes into BadAnswer."""
    try:
        yield
    except Exception as error:
        words = quoted(str(error), LONGEST_TEXT)
        kind = type(error).__name__
        raise BadAnswer(f"its answer {problem} ({kind}: {words})") from None


def pack_requests(request: TrainRequest, clients: Sequence[int]) -> list[RecordDict]:
    """Return a content for each client number. All contents share one record of tensors."""
    tensors = to_record(request.payload.arrays)
    config = _written(request, _REQUEST)
    config["form"] = request.payload.form
    config |= _settings_field(request.settings)
    return [
        RecordDict(
            {"tensors": tensors, "task": ConfigRecord(config | {"client": client})}
        )
        for client in clients
    ]


def unpack_request(content: RecordDict) -> TrainRequest:
    """Inverse of `pack_requests`."""
    config = content.config_records["task"]
    return TrainRequest(
        **_read(config, _REQUEST | {"client": int}),
        settings=_settings(config),
        payload=_payload(content, config),
    )


def _settings_field(settings: Settings | None) -> dict[str, Any]:
    return {} if settings is None else {"settings": settings.to_json()}


def _settings(config: ConfigRecord) -> Settings | None:
    if "settings" not in config:
        return None
    return Settings.from_json(str(config["settings"]))


def pack_update(update: Update) -> RecordDict:
    """Pack a client's answer to a request to train."""
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
    arrays = from_record(content.array_records["tensors"], most_bytes)
    return Payload(str(config["form"]), arrays)


def unpack_update(content: RecordDict, task: Task, most_bytes: float = inf) -> Update:
    """Inverse of `pack_update`.

    Args:
        task: reads the sums.
        most_bytes: the largest size of all arrays together. A larger answer is refused before
            memory is reserved.

    Raises:
        BadAnswer: the answer does not have the form of an update.
    """
    with _bad_answer_if_unreadable("is no update"):
        config = content.config_records["update"]
        metrics = content.metric_records["metrics"]
        return Update(
            **_read(config, _UPDATE),
            **_read(metrics, _METRICS),
            payload=_payload(content, config, most_bytes),
            test=_counts(content, task) if "counts" in content.metric_records else None,
        )


def pack_hello(settings: Settings | None) -> RecordDict:
    """Pack the request for an introduction, without settings if the client has a plan."""
    return RecordDict({"task": ConfigRecord(_settings_field(settings))})


def unpack_hello(content: RecordDict) -> Settings | None:
    """Inverse of `pack_hello`."""
    return _settings(content.config_records["task"])


def pack_introduction(introduction: Introduction) -> RecordDict:
    """Pack a client's answer to hello."""
    return RecordDict({"card": ConfigRecord(_written(introduction, _INTRODUCTION))})


def unpack_introduction(content: RecordDict) -> Introduction:
    """Inverse of `pack_introduction`. Raises BadAnswer as `unpack_update` does."""
    with _bad_answer_if_unreadable("is no card"):
        return Introduction(**_read(content.config_records["card"], _INTRODUCTION))


def pack_counts(counts: Sums) -> RecordDict:
    """Pack a client's answer to evaluate."""
    return RecordDict({"counts": _counts_record(counts)})


def unpack_counts(content: RecordDict, task: Task) -> Sums:
    """Inverse of `pack_counts`. Raises BadAnswer as `unpack_update` does."""
    with _bad_answer_if_unreadable("holds no counts"):
        return _counts(content, task)


def _counts_record(counts: Sums) -> MetricRecord:
    record = MetricRecord()
    for prefix, part in zip(_PREFIXES, counts.parts, strict=False):
        record[f"{prefix}{_LOSS_SUM}"] = part.loss_sum
        for name, array in part.arrays.items():
            record[f"{prefix}{name}"] = array.flatten().tolist()
    return record


def _counts(content: RecordDict, task: Task) -> Sums:
    """Return the sums of a record. Raises KeyError or ValueError if it holds other content."""
    record = content.metric_records["counts"]
    test_prefix, validation_prefix = _PREFIXES
    counts = _counted_part(record, task, test_prefix)
    if f"{validation_prefix}{_LOSS_SUM}" not in record:
        return counts
    return replace(counts, validation=_counted_part(record, task, validation_prefix))


def _counted_part(record: MetricRecord, task: Task, prefix: str) -> Sums:
    loss_sum = float(str(record[f"{prefix}{_LOSS_SUM}"]))
    if not isfinite(loss_sum):
        raise ValueError("the summed loss of held-out texts is not finite")
    arrays = {name: record[f"{prefix}{name}"] for name in task.sum_names}
    return task.read_sums(loss_sum, arrays)


def pack_refusal(code: str, key: str = "") -> RecordDict:
    """Pack a client's refusal.

    Args:
        code: a key of `REFUSALS`.
        key: the setting in question, one of `known_keys()`; empty for none.
    """
    assert code in REFUSALS, code
    return RecordDict({"refusal": ConfigRecord({"code": code, "key": key})})


def pack_missing_base(version: str) -> RecordDict:
    """Pack a client's answer if it does not hold the version that a request builds on."""
    return RecordDict({"lacks": ConfigRecord({"base": version})})


def is_missing_base(content: RecordDict) -> bool:
    """Return whether the client asks for the whole tensors."""
    return "lacks" in content.config_records


def pack_notice(text: str) -> RecordDict:
    """Pack a notice: the server tells a client why it refused an update."""
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
        raise NoAnswer("it refuses, and its reason is not known here")
    raise NoAnswer(refusal_text(code, key), code)
