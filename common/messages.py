"""What crosses the wire, and under which names. The only shared file that knows Flower.

server -> client   tensors/shared    the global tensors as one flat fp32 array
                   task              round, layout (digest of names and shapes), settings (JSON)
client -> server   tensors/shared    the trained tensors, same layout
                   update            round, layout
                   metrics           num_examples, num_steps, loss, seconds
                   refusal           reason: why a client could not do what was asked (instead of the above)
hello              card              client (its number), num_examples
"""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from flwr.app import Array as FlowerArray
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common.constant import SType

from common.settings import Settings

if TYPE_CHECKING:
    from torch import Tensor

HELLO, TRAIN = "query", "train"


@dataclass(frozen=True)
class Task:
    """What the server asks of a client in one round."""

    round: int
    layout: str
    settings: Settings
    tensors: Tensor  # (P,) fp32, read only: every client of the round is given the same one


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


@dataclass(frozen=True)
class Card:
    """How a client introduces itself."""

    client: int
    num_examples: int


class Refused(Exception):
    """A client answered, but not with what was asked for. The text is the client's reason."""


class Array(FlowerArray):
    """A Flower array that is serialised only when it meets a wire.

    Flower's own class serialises at birth; inside one process that would copy every model twice a client.
    The name must stay `Array`: Flower writes it into the header of the serialised object.
    """

    tensor: Tensor

    def __init__(self, tensor: Tensor) -> None:
        self.__dict__.update(
            dtype=str(tensor.dtype).removeprefix("torch."),
            shape=tuple(tensor.shape),
            stype=SType.NUMPY,
            tensor=tensor,
        )

    @property
    def data(self) -> bytes:  # type: ignore[override]
        """The array in NumPy's file format."""
        buffer = BytesIO()
        np.save(buffer, self.tensor.numpy(), allow_pickle=False)
        return buffer.getvalue()

    def __reduce__(self) -> tuple[Any, ...]:
        return Array, (self.tensor,)


def _tensor(record: RecordDict) -> Tensor:
    array = record.array_records["tensors"]["shared"]
    return array.tensor if isinstance(array, Array) else torch.from_numpy(array.numpy())


def _arrays(tensor: Tensor) -> ArrayRecord:
    record = ArrayRecord()
    record["shared"] = Array(tensor.detach().cpu())
    return record


def pack_task(task: Task) -> RecordDict:
    """One content for all clients of a round."""
    config = ConfigRecord({"round": task.round, "layout": task.layout, "settings": task.settings.to_json()})
    return RecordDict({"tensors": _arrays(task.tensors), "task": config})


def unpack_task(message: Message) -> Task:
    """Inverse of `pack_task`."""
    config = message.content.config_records["task"]
    return Task(
        round=int(str(config["round"])),
        layout=str(config["layout"]),
        settings=Settings.from_json(str(config["settings"])),
        tensors=_tensor(message.content),
    )


def pack_update(update: Update, reply_to: Message) -> Message:
    """A client's answer to a task."""
    content = RecordDict(
        {
            "tensors": _arrays(update.tensors),
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
            tensors=_tensor(content),
            num_examples=int(str(metrics["num_examples"])),
            num_steps=int(str(metrics["num_steps"])),
            loss=float(str(metrics["loss"])),
            seconds=float(str(metrics["seconds"])),
        )
    except (KeyError, ValueError, TypeError) as error:
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
    except (KeyError, ValueError) as error:
        raise Refused(f"its answer is no card ({type(error).__name__}: {error})") from None


def pack_refusal(reason: str, reply_to: Message) -> Message:
    """A client's answer when it cannot do what was asked. The reason must name no path, text or label."""
    return Message(RecordDict({"refusal": ConfigRecord({"reason": reason})}), reply_to=reply_to)


def _content(message: Message) -> RecordDict:
    if message.has_error():
        raise Refused(f"Flower reports error {message.error.code}: {message.error.reason}")
    refusal = message.content.config_records.get("refusal")
    if refusal is not None:
        raise Refused(str(refusal["reason"]))
    return message.content
