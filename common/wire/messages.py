"""What crosses the wire, and under which names. Beside arrays.py, the only shared file that knows Flower.

server -> client   tensors           the global tensors, as flat arrays in pieces (<array>.00000 …)
                   task              round, layout (digest of names and shapes), client (its number in this
                                     run), form (of the tensors), version (SHA-256 of the global tensors),
                                     base (the version they are written against; "" for none), mean_steps
                                     (of the clients' last round; 0 for no control variates); settings (JSON)
                                     only where no plan was approved: simulations, stock SuperNodes
client -> server   tensors           the trained tensors, written against the global ones
                   update            round, layout, form, holds (the version this client keeps; "" for none)
                   metrics           num_examples, num_steps, loss, seconds, withheld (1 where counts stay),
                                     uncorrected (1 where a control variate was asked for, and there is none)
                   counts            loss_sum, confusion: the received model on the site's held-out texts
                                     (only where evaluation.where is `sites`); validation_loss_sum,
                                     validation_confusion: the same of those that choose the best model
                                     (only where evaluation.validation_fraction is above 0)
                   refusal           code: why a client did not do what was asked, one of REFUSALS; key:
                                     the setting that is meant, or nothing (instead of the above)
                   lacks             base: a version this client does not hold (instead of the above)
hello              card              client (its number in a simulation, else -1), num_examples, num_held_out
evaluate           counts            as above, and nothing else
notice             notice            text: why the server refused an update; answered with nothing

Contents are packed and unpacked here; whoever answers a message puts the content into a reply.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import inf, isfinite, isqrt
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict

from wardround.common.errors import DIVERGED
from wardround.common.settings import Settings, known_keys
from wardround.common.tasks.sums import Sums
from wardround.common.wire.arrays import Payload, from_record, to_record
from wardround.common.words import LONGEST_TEXT, printable, quoted

HELLO, TRAIN, EVALUATE, NOTICE = "query", "train", "evaluate", "query.notice"
KINDS = (HELLO, TRAIN, EVALUATE, NOTICE)
"""Every message type there is."""
LATE_SECONDS = 600.0
"""How long past the end of a round its answers can still be fetched; nobody begins to work on it then."""
KEPT_SECONDS = 1800.0
"""How long a client that is left alone keeps the tensors of the last round."""
_Fields = dict[str, Callable[[str], Any]]


PENDING, LOST = "plan_pending", "lost"
_COUNTS_NOT = "the question does not count"
REFUSALS = {
    "late": "the message came after the round was over",
    "unknown_kind": "this site does not know messages of this type",
    LOST: "its answer began to leave, and cannot be sent again",
    "failed": "it could not do what was asked; see the client's own log",
    "bad_input": "its texts, its model or the settings are not as they must be; see the client's own log",
    "diverged": f"{DIVERGED}: its loss is no number any more. Lower train.learning_rate",
    "hangs": "its worker process gave no answer in time; see the site's own log",
    "killed": "its worker process was killed, as when memory runs out; see the site's own log",
    "ended": "its worker process ended; see the site's own log",
    **{
        reason: f"{_COUNTS_NOT}: {reason}"
        for reason in (
            "unsigned",
            "forged",
            "misdirected",
            "replayed",
            "expired",
            "damaged",
            "unasked",
        )
    },
    PENDING: "its people have not yet decided on the plan (wardround-site approve)",
    "plan_unknown": "it was not told of the plan",
    "plan_rejected": "its people have rejected the plan",
    "plan_revoked": "its people have revoked their approval of the plan",
    "plan_over": "the plan's time is over, or has not begun",
    "not_in_plan": "it does not stand in the plan under its key",
    "unknown_peer": "it does not know another site of the plan under its key (wardround-site peers)",
    "other_version": "its version of wardround does not work with the server's (wardround-site check)",
    "too_many_plans": "too many plans wait there for a decision",
    "policy": "its policy does not allow it",
    "beyond_plan": "more was asked than the plan allows",
    "out_of_order": "the round lies before one that it has answered",
    "data_changed": "its texts have changed since the plan was approved",
    "data_too_close": "its texts differ by a few from texts it answered for (its policy.min_changed_texts)",
    "too_few_texts": "it has fewer texts than its policy asks for",
    "too_few_tokens": "its texts have fewer words than its policy asks for, for a model of this width",
    "few_speak": "almost all of its update would come from a few texts (its policy.min_speaking_texts)",
    "over_budget": "it has answered as often as its policy allows in all (its policy.max_total_answers)",
    "answered_otherwise": "it has answered this round for another model, and answers each round once",
    "answer_lost": "its answer to this round left and is not there any more; it does not train it again",
    "another_start": "the first model is not the one it computes from its own files",
    "too_far": "the model lies further from the last one than its policy allows",
    "counts_withheld": "its counts stay there: one of them is small (its policy.min_count)",
    "another_model": "its model's file is not one of those its policy lists",
}
"""Why a client does not do what was asked: the codes that cross, and what the server says to each."""


@dataclass(frozen=True)
class Task:
    """What the server asks of a client in one round."""

    round: int
    layout: str
    payload: Payload
    """The global tensors, read only: every client of the round is given the same arrays."""
    settings: Settings | None = None
    """None where the client has a plan that it approved."""
    version: str = ""
    """SHA-256 of the global tensors."""
    base: str = ""
    """The version that `payload` is written against; empty where it is whole."""
    client: int = -1
    """Number of the client this is for."""
    mean_steps: float = 0.0
    """Optimiser steps of the clients in the last round, in its mean; 0 where no control variates are used, or
    they start anew."""


@dataclass(frozen=True)
class Update:
    """What a client returns from one round."""

    round: int
    layout: str
    payload: Payload
    """The trained tensors, written against the global ones; valid until the next reply is pulled."""
    num_examples: int
    num_steps: int
    loss: float
    seconds: float
    test: Sums | None
    """The received model on the client's held-out texts, where sites evaluate."""
    holds: str = ""
    """The version that the next task may be written against; empty where nothing is kept."""
    withheld: int = 0
    """1 where the client's policy keeps its counts, else 0."""
    uncorrected: int = 0
    """1 where its steps were to be corrected by a control variate, and it has none; else 0."""


@dataclass(frozen=True)
class Card:
    """How a client introduces itself."""

    client: int
    """Its number in a simulation; -1 for a real site, which the server knows by its key."""
    num_examples: int
    """To train on."""
    num_held_out: int
    """To count on, where sites evaluate."""


class Refused(Exception):
    """An answer is not what was asked for. The text says why; a client may have written it."""

    def __init__(self, text: str) -> None:
        """Args: text: made printable and short, for it goes to terminals, logs and files."""
        super().__init__(printable(text))


class Declined(Refused):
    """There is no answer: the client could not give one, and knows why, or its node is gone."""

    def __init__(self, text: str, code: str = "") -> None:
        """Args: code: a key of `REFUSALS` where the client gave one."""
        super().__init__(text)
        self.code = code


class LacksBase(Exception):
    """A client does not hold the version that a task is written against. The text is that version."""


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
_COUNTED = ("loss_sum", "confusion")
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
    """Turn whatever a client's content makes of reading it into Refused."""
    try:
        yield
    except Exception as error:
        words = quoted(str(error), LONGEST_TEXT)
        raise Refused(f"its answer {what} ({type(error).__name__}: {words})") from None


def pack_tasks(task: Task, clients: Sequence[int]) -> list[RecordDict]:
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


def unpack_task(content: RecordDict) -> Task:
    """Inverse of `pack_tasks`."""
    config = content.config_records["task"]
    fields = _read(config, _TASK | {"client": int})
    return Task(settings=_settings(config), payload=_payload(content, config), **fields)


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


def unpack_update(content: RecordDict, most_bytes: float = inf) -> Update:
    """Inverse of `pack_update`.

    Args:
        most_bytes: of its arrays; more are refused before room is made for them.

    Raises:
        Refused: the answer does not have the form of an update.
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
            test=_counts(content) if "counts" in content.metric_records else None,
        )


def pack_hello(settings: Settings | None) -> RecordDict:
    """Asks a client who it is. Args: settings: None where it has a plan that it approved."""
    return RecordDict({"task": ConfigRecord(_settings_field(settings))})


def unpack_hello(content: RecordDict) -> Settings | None:
    """Inverse of `pack_hello`."""
    return _settings(content.config_records["task"])


def pack_card(card: Card) -> RecordDict:
    """A client's answer to hello."""
    return RecordDict({"card": ConfigRecord(_written(card, _CARD))})


def unpack_card(content: RecordDict) -> Card:
    """Inverse of `pack_card`. Raises Refused as `unpack_update` does."""
    with _refused_unless("is no card"):
        return Card(**_read(content.config_records["card"], _CARD))


def pack_counts(counts: Sums) -> RecordDict:
    """A client's answer to evaluate."""
    return RecordDict({"counts": _counts_record(counts)})


def unpack_counts(content: RecordDict) -> Sums:
    """Inverse of `pack_counts`. Raises Refused as `unpack_update` does."""
    with _refused_unless("holds no counts"):
        return _counts(content)


def _counts_record(counts: Sums) -> MetricRecord:
    record = MetricRecord()
    for prefix, part in zip(_COUNTED_PARTS, counts.parts, strict=False):
        record[f"{prefix}loss_sum"] = part.loss_sum
        record[f"{prefix}confusion"] = part.confusion.flatten().tolist()
    return record


def _counts(content: RecordDict) -> Sums:
    """Raises KeyError or ValueError where they are not a square of counts and a finite sum."""
    record = content.metric_records["counts"]
    reported, validation = _COUNTED_PARTS
    counts = _counted_part(record, reported)
    is_split = f"{validation}confusion" in record
    return (
        replace(counts, validation=_counted_part(record, validation))
        if is_split
        else counts
    )


def _counted_part(record: MetricRecord, prefix: str) -> Sums:
    confusion = np.array(record[f"{prefix}confusion"], dtype=np.int64)
    loss_sum = float(str(record[f"{prefix}loss_sum"]))
    side = isqrt(len(confusion))
    if (
        side * side != len(confusion)
        or confusion.min(initial=0) < 0
        or not isfinite(loss_sum)
    ):
        raise ValueError("held-out counts are not a square of whole numbers")
    return Sums(loss_sum, confusion.reshape(side, side), ())


def take_arrays(content: RecordDict) -> tuple[RecordDict, dict[str, np.ndarray]]:
    """A content without its arrays, and the arrays if it has any: for memory that is shared anyway."""
    arrays = content.array_records
    rest = RecordDict(
        {name: record for name, record in content.items() if name not in arrays}
    )
    return rest, from_record(arrays["tensors"]) if arrays else {}


def put_arrays(content: RecordDict, arrays: dict[str, np.ndarray]) -> None:
    """Inverse of `take_arrays`, in place."""
    if arrays:
        content["tensors"] = to_record(arrays)


def write_content(words: dict[str, Any], content: RecordDict) -> bytes:
    """A content without arrays and bytes, and a few words, for another process of this machine."""
    records = {
        "config": {
            name: dict(record) for name, record in content.config_records.items()
        },
        "metric": {
            name: dict(record) for name, record in content.metric_records.items()
        },
    }
    return json.dumps({"words": words, **records}).encode()


def read_content(written: bytes) -> tuple[dict[str, Any], RecordDict]:
    """Inverse of `write_content`."""
    read = json.loads(written)
    content = RecordDict(
        {name: ConfigRecord(record) for name, record in read["config"].items()}
    )
    for name, record in read["metric"].items():
        content[name] = MetricRecord(record)
    return read["words"], content


def pack_refusal(code: str, key: str = "") -> RecordDict:
    """A client's answer when it does not do what was asked.

    Args:
        code: a key of `REFUSALS`.
        key: of the setting that is meant, one of `known_keys()`; empty for none.
    """
    assert code in REFUSALS, code
    return RecordDict({"refusal": ConfigRecord({"code": code, "key": key})})


def pack_lack(base: str) -> RecordDict:
    """A client's answer to a task that is written against a version which it does not hold."""
    return RecordDict({"lacks": ConfigRecord({"base": base})})


def is_lack(content: RecordDict) -> bool:
    """Whether the client asks for the tensors as a whole."""
    return "lacks" in content.config_records


def pack_notice(text: str) -> RecordDict:
    """Tells a client something it cannot see from its side."""
    return RecordDict({"notice": ConfigRecord({"text": text})})


def unpack_notice(content: RecordDict) -> str:
    """Inverse of `pack_notice`."""
    return str(content.config_records["notice"]["text"])


def seconds_left_of(message: Message) -> float:
    """Until the round of a message is over, by this machine's clock; then nobody waits for an answer."""
    metadata = message.metadata
    return float(metadata.created_at + metadata.ttl - LATE_SECONDS - time.time())


def content_of(message: Message) -> RecordDict:
    """What a message of Flower's carries. Raises Declined where that is no answer."""
    if message.has_error():
        raise Declined(
            f"Flower reports error {message.error.code}: {quoted(str(message.error.reason))}"
        )
    return check_not_declined(message.content)


def check_not_declined(content: RecordDict) -> RecordDict:
    """The content, unless it says that there is no answer. Raises Declined."""
    refusal = content.config_records.get("refusal")
    if refusal is not None:
        code, key = (str(refusal.get(name, "")) for name in ("code", "key"))
        if code not in REFUSALS:
            raise Declined("it refuses, without a reason that is known here")
        raise Declined(
            REFUSALS[code] + (f" ({key})" if key in known_keys() else ""), code
        )
    return content
