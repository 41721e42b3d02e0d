"""What is written down of a round: its history line, built from what the server and the clients measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from math import isfinite
from operator import add
from typing import TYPE_CHECKING, Any

import numpy as np

from common.arrays import Payload
from common.counts import Counts
from common.messages import Update
from common.sharing import Layout, model_sha256
from server.averaging import Agreement
from server.exchange import RunFailed
from server.roster import Member

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Standing:
    """Where a run stands: the global tensors after a whole round, and that round's history line."""

    tensors: Tensor  # (P,) fp32 on the CPU
    record: dict[str, Any]
    """Its `test` is None until the model has been measured, which sites do a round later."""
    is_shown: bool = False
    """Whether the observers have seen the record."""
    step: Payload | None = None
    """The tensors, written against those of `step_base`; None where nobody holds them."""
    step_base: str = ""
    """A version: SHA-256 of the tensors before the last round."""

    @property
    def version(self) -> str:
        """SHA-256 of the tensors."""
        return str(self.record["model_sha256"])

    @property
    def round(self) -> int:
        """The last whole round; 0 is the initial model."""
        return int(self.record["round"])


@dataclass(frozen=True)
class Taken:
    """An update that went into the mean, without its tensors."""

    client: int
    num_examples: int
    loss: float
    seconds: float
    num_bytes: int
    """Of the tensors, as they travelled."""

    @classmethod
    def of(cls, member: Member, update: Update) -> Taken:
        """What is kept of an update once it was folded in."""
        return cls(member.client, update.num_examples, update.loss, update.seconds, update.payload.num_bytes)


@dataclass(frozen=True)
class LeftOut:
    """A client whose update of the round is not in the mean."""

    client: int
    reason: str


def new_record(
    number: int,
    layout: Layout,
    tensors: Tensor,
    test: dict[str, Any] | None,
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """The history line of a round in which no client took part yet."""
    spent = {"train": 0.0, "aggregate": 0.0, "evaluate": 0.0} | dict(seconds)
    return {
        "round": number,
        "test": test,
        "train": {"loss": None, "num_examples": 0},
        "clients": [],
        "seconds": spent | {"total": sum(spent.values())},
        "bytes": {"down": 0, "up": 0},
        "model_sha256": model_sha256(layout, tensors),
    }


def add_clients(
    record: dict[str, Any],
    taken: Sequence[Taken],
    agreements: Sequence[Agreement],
    left_out: Sequence[LeftOut],
    bytes_down: int,
) -> None:
    """Put the clients of the round into its line; the training loss is the mean over all their examples.

    The line has an entry `left_out` only where somebody was.

    Args:
        bytes_down: bytes of all tensors that were sent out, as they travelled.
    """
    num_examples = sum(update.num_examples for update in taken)
    loss = sum(update.loss * update.num_examples for update in taken) / num_examples
    record["train"] = {"loss": loss, "num_examples": num_examples}
    record["clients"] = [
        asdict(update) | asdict(agreement) for update, agreement in zip(taken, agreements, strict=True)
    ]
    record["bytes"] = {"down": bytes_down, "up": sum(update.num_bytes for update in taken)}
    if left_out:
        record["left_out"] = [asdict(client) for client in left_out]


def check_finite(value: Any, round: int, where: str = "") -> None:
    """Refuse a history line with a number that is none.

    Raises:
        RunFailed: names the round and the entry.
    """
    if isinstance(value, dict):
        for key, entry in value.items():
            check_finite(entry, round, f"{where} {key}".strip())
    elif isinstance(value, list):
        for entry in value:
            check_finite(entry, round, where)
    elif isinstance(value, float) and not isfinite(value):
        raise RunFailed(
            f"round {round}: {where} is {value}: training diverged. Lower train.learning_rate; the last good "
            "checkpoint is kept."
        )


def add_site_counts(record: dict[str, Any], counts: Mapping[str, Counts]) -> None:
    """Put what the sites counted on their held-out texts into the line: the exact sum, and each site."""
    total = reduce(add, counts.values())
    record["test"] = describe_counts(total, total.accuracy)
    record["sites"] = [
        {
            "site": name,
            "num_examples": site.num_examples,
            "correct": int(np.trace(site.confusion)),
            "accuracy": site.accuracy,
            "loss": site.loss,
        }
        for name, site in sorted(counts.items())
    ]


def describe_counts(counts: Counts, accuracy: float) -> dict[str, Any]:
    """The `test` entry of a history line."""
    return {
        "loss": counts.loss,
        "accuracy": accuracy,
        "macro_f1": counts.macro_f1,
        "num_examples": counts.num_examples,
    }
