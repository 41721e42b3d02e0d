"""What crosses the wire, and under which names. Beside arrays.py, the only shared file that knows Flower.

server -> client   tensors           the global tensors, one flat fp32 array in pieces (shared.00000 …)
                   task              round, layout (digest of names and shapes), settings (JSON), client (its
                                     number in this run)
client -> server   tensors           the trained tensors, same layout
                   update            round, layout
                   metrics           num_examples, num_steps, loss, seconds
                   counts            loss_sum, confusion: the received model on the site's held-out texts
                                     (only where evaluation.where is `sites`)
                   refusal           reason: why a client could not do what was asked (instead of the above)
hello              card              client (its number in a simulation, else -1), num_examples
evaluate           counts            as above, and nothing else
notice             notice            text: why the server refused an update; answered with nothing
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, isqrt
from typing import TYPE_CHECKING

import numpy as np
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict

from common.arrays import from_record, to_record
from common.learning import Counts
from common.settings import Settings

if TYPE_CHECKING:
    from torch import Tensor

HELLO, TRAIN, EVALUATE, NOTICE = "query", "train", "evaluate", "query.notice"


@dataclass(frozen=True)
class Task:
    """What the server asks of a client in one round."""

    round: int
    layout: str
    settings: Settings
    tensors: Tensor  # (P,) fp32, read only: every client of the round is given the same one
    client: int = -1
    """Number of the client this is for."""


@dataclass(frozen=True)
class Update:
    """What a client returns from one round."""

    round: int
    layout: str
    tensors: Tensor  # (P,) fp32, the trained tensors; valid until the next reply is pulled
    num_examples: int
    num_steps: int
    loss: float
    seconds: float
    test: Counts | None
    """The received model on the client's held-out texts, where sites evaluate."""


@dataclass(frozen=True)
class Card:
    """How a client introduces itself."""

    client: int
    """Its number in a simulation; -1 for a real site, which the server knows by its key."""
    num_examples: int


class Refused(Exception):
    """An answer is not what was asked for. The text says why."""


class Declined(Refused):
    """There is no answer: the client could not give one, and knows why, or its node is gone."""


def pack_tasks(task: Task, clients: Sequence[int]) -> list[RecordDict]:
    """One content for each client number; all of them share one record of tensors."""
    arrays = to_record(task.tensors)
    config = {"round": task.round, "layout": task.layout, "settings": task.settings.to_json()}
    return [
        RecordDict({"tensors": arrays, "task": ConfigRecord(config | {"client": client})})  # type: ignore[arg-type]
        for client in clients
    ]


def unpack_task(message: Message) -> Task:
    """Inverse of `pack_task`."""
    config = message.content.config_records["task"]
    return Task(
        round=int(str(config["round"])),
        layout=str(config["layout"]),
        settings=Settings.from_json(str(config["settings"])),
        client=int(str(config["client"])),
        tensors=from_record(message.content.array_records["tensors"]),
    )


def pack_update(update: Update, reply_to: Message) -> Message:
    """A client's answer to a task."""
    content = RecordDict(
        {
            "tensors": to_record(update.tensors),
            "update": ConfigRecord({"round": update.round, "layout": update.layout}),
            "metrics": MetricRecord(
                {
                    "num_examples": update.num_examples,
                    "num_steps": update.num_steps,
                    "loss": update.loss,
                    "seconds": update.seconds,
                }
            ),
        }
    )
    if update.test is not None:
        content["counts"] = _counts_record(update.test)
    return Message(content, reply_to=reply_to)


def unpack_update(message: Message) -> Update:
    """Inverse of `pack_update`.

    Raises:
        Refused: the client could not do it, or the answer does not have the form of an update.
    """
    content = _content(message)
    try:
        config, metrics = content.config_records["update"], content.metric_records["metrics"]
        return Update(
            round=int(str(config["round"])),
            layout=str(config["layout"]),
            tensors=from_record(content.array_records["tensors"]),
            num_examples=int(str(metrics["num_examples"])),
            num_steps=int(str(metrics["num_steps"])),
            loss=float(str(metrics["loss"])),
            seconds=float(str(metrics["seconds"])),
            test=_counts(content) if "counts" in content.metric_records else None,
        )
    except (KeyError, ValueError, TypeError, OverflowError) as error:
        raise Refused(f"its answer is no update ({type(error).__name__}: {error})") from None


def pack_hello(settings: Settings) -> RecordDict:
    """Asks a client who it is."""
    return RecordDict({"task": ConfigRecord({"settings": settings.to_json()})})


def unpack_hello(message: Message) -> Settings:
    """Inverse of `pack_hello`."""
    return Settings.from_json(str(message.content.config_records["task"]["settings"]))


def pack_card(card: Card, reply_to: Message) -> Message:
    """A client's answer to hello."""
    record = ConfigRecord({"client": card.client, "num_examples": card.num_examples})
    return Message(RecordDict({"card": record}), reply_to=reply_to)


def unpack_card(message: Message) -> Card:
    """Inverse of `pack_card`. Raises Refused as `unpack_update` does."""
    try:
        card = _content(message).config_records["card"]
        return Card(client=int(str(card["client"])), num_examples=int(str(card["num_examples"])))
    except (KeyError, ValueError, TypeError) as error:
        raise Refused(f"its answer is no card ({type(error).__name__}: {error})") from None


def pack_counts(counts: Counts, reply_to: Message) -> Message:
    """A client's answer to evaluate."""
    return Message(RecordDict({"counts": _counts_record(counts)}), reply_to=reply_to)


def unpack_counts(message: Message) -> Counts:
    """Inverse of `pack_counts`. Raises Refused as `unpack_update` does."""
    try:
        return _counts(_content(message))
    except (KeyError, ValueError, TypeError, OverflowError) as error:
        raise Refused(f"its answer holds no counts ({type(error).__name__}: {error})") from None


def _counts_record(counts: Counts) -> MetricRecord:
    return MetricRecord({"loss_sum": counts.loss_sum, "confusion": counts.confusion.flatten().tolist()})


def _counts(content: RecordDict) -> Counts:
    """Raises KeyError or ValueError where they are not a square of counts and a finite sum."""
    record = content.metric_records["counts"]
    confusion, loss_sum = np.array(record["confusion"], dtype=np.int64), float(str(record["loss_sum"]))
    side = isqrt(len(confusion))
    if side * side != len(confusion) or confusion.min(initial=0) < 0 or not isfinite(loss_sum):
        raise ValueError("held-out counts are not a square of whole numbers")
    return Counts(loss_sum, confusion.reshape(side, side), ())


def take_tensors(content: RecordDict) -> tuple[RecordDict, Tensor | None]:
    """A content without its tensors, and the tensors if it has any: for memory that is shared anyway."""
    arrays = content.array_records
    rest = RecordDict({name: record for name, record in content.items() if name not in arrays})
    return rest, from_record(arrays["tensors"]) if arrays else None


def put_tensors(content: RecordDict, tensors: Tensor) -> None:
    """Inverse of `take_tensors`, in place."""
    content["tensors"] = to_record(tensors)


def pack_refusal(reason: str, reply_to: Message) -> Message:
    """A client's answer when it cannot do what was asked. The reason must name no path, text or label."""
    return Message(RecordDict({"refusal": ConfigRecord({"reason": reason})}), reply_to=reply_to)


def pack_notice(text: str) -> RecordDict:
    """Tells a client something it cannot see from its side."""
    return RecordDict({"notice": ConfigRecord({"text": text})})


def unpack_notice(message: Message) -> str:
    """Inverse of `pack_notice`."""
    return str(message.content.config_records["notice"]["text"])


def pack_receipt(reply_to: Message) -> Message:
    """A client's answer to a notice."""
    return Message(RecordDict(), reply_to=reply_to)


def _content(message: Message) -> RecordDict:
    """Raises Declined where the message carries no answer."""
    if message.has_error():
        raise Declined(f"Flower reports error {message.error.code}: {message.error.reason}")
    refusal = message.content.config_records.get("refusal")
    if refusal is not None:
        raise Declined(str(refusal["reason"]))
    return message.content
