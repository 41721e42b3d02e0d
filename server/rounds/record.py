"""What is written down of a round: its history line, built from what the server and the clients measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from math import isfinite
from operator import add
from typing import TYPE_CHECKING, Any

import numpy as np

from common.errors import DIVERGED
from common.model.counts import Counts
from common.wire.arrays import Payload
from common.wire.messages import Update
from server.diagnostics.updates import (
    Head,
    cosines_to_others,
    describe_predictions,
    describe_updates,
    nothing_measured,
)
from server.rounds.clients import RunFailed
from server.rounds.fedavg import RoundMean

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Standing:
    """Where a run stands: the global tensors after a whole round, and that round's history line."""

    tensors: Tensor  # (P,) fp32 on the CPU
    record: dict[str, Any]
    """Its `test` is None until the model has been measured, which sites do a round later."""
    total_steps: Mapping[int, int]
    """Optimiser steps of each client in the whole run so far; who took part in no round is not in it."""
    is_shown: bool = False
    """Whether the observers have seen the record."""
    step: Payload | None = None
    """The tensors, written against those of `step_base`; None where nobody holds them."""
    step_base: str = ""
    """A version: SHA-256 of the tensors before the last round."""
    norms: tuple[float, ...] = ()
    """Of every update that earlier rounds took, where the run goes on."""

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
    num_steps: int
    """Optimiser steps in this round."""
    total_steps: int
    """Optimiser steps in the whole run so far."""
    head_norm: float
    """L2 norm of the update over the new head."""
    norm_received: float | None
    """L2 norm of the update as it came, where that was clipped."""
    site: str | None = None
    """Its name, where the client is a site."""

    @classmethod
    def of(
        cls,
        update: Update,
        trained: Tensor,
        client: int,
        standing: Standing,
        head: Head,
        norm_received: float | None = None,
        site: str | None = None,
    ) -> Taken:
        """What is kept of a client's update, `trained`, (P,) fp32, to the tensors of `standing`."""
        return cls(
            client=client,
            num_examples=update.num_examples,
            loss=update.loss,
            seconds=update.seconds,
            num_bytes=update.payload.num_bytes,
            num_steps=update.num_steps,
            total_steps=standing.total_steps.get(client, 0) + update.num_steps,
            head_norm=head.update_norm(trained, standing.tensors),
            norm_received=norm_received,
            site=site,
        )


@dataclass(frozen=True)
class LeftOut:
    """A client whose update of the round is not in the mean."""

    client: int
    reason: str
    site: str | None = None
    """Its name, where the client is a site."""


def new_record(
    number: int,
    version: str,
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """The history line of a round in which no client took part yet, and whose model is not measured.

    Args: version: SHA-256 of the round's tensors.
    """
    spent = {"train": 0.0, "aggregate": 0.0, "evaluate": 0.0} | dict(seconds)
    return {
        "round": number,
        "test": None,
        "train": {"loss": None, "num_examples": 0},
        "clients": [],
        "diagnostics": nothing_measured(),
        "seconds": spent | {"total": sum(spent.values())},
        "bytes": {"down": 0, "up": 0},
        "model_sha256": version,
    }


def add_clients(
    record: dict[str, Any],
    taken: Sequence[Taken],
    outcome: RoundMean,
    head_norm: float,
    left_out: Sequence[LeftOut],
    bytes_down: int,
    *,
    has_shares: bool = False,
) -> None:
    """Put the clients of the round into its line; the training loss is the mean over all their examples.

    The line has an entry `left_out` only where somebody was.

    Args:
        taken, outcome: the updates in the order they were folded in, and their mean.
        head_norm: L2 norm of the mean update over the new head.
        bytes_down: bytes of all tensors that were sent out, as they travelled.
        has_shares: tell each client's share of the mean, as where shares are bounded.
    """
    num_examples = sum(update.num_examples for update in taken)
    loss = sum(update.loss * update.num_examples for update in taken) / num_examples
    record["train"] = {"loss": loss, "num_examples": num_examples}
    told = zip(taken, outcome.agreements, cosines_to_others(outcome), strict=True)
    record["clients"] = [
        _told(update) | asdict(agreement) | {"cosine_to_others": cosine} for update, agreement, cosine in told
    ]
    if has_shares:
        for client, weight in zip(record["clients"], outcome.weights, strict=True):
            client["share"] = weight / sum(outcome.weights)
    record["diagnostics"] |= describe_updates(outcome, head_norm)
    record["bytes"] = {"down": bytes_down, "up": sum(update.num_bytes for update in taken)}
    if left_out:
        record["left_out"] = [_told(client) for client in left_out]


def _told(client: Taken | LeftOut) -> dict[str, Any]:
    """A client as the history tells of it: a norm that was clipped, or a site's name, only where one is."""
    return {key: value for key, value in asdict(client).items() if value is not None}


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
            f"round {round}: {where} is {value}: {DIVERGED}. Lower train.learning_rate; the last good "
            "checkpoint is kept."
        )


def add_site_counts(record: dict[str, Any], counts: Mapping[str, Counts]) -> None:
    """Put what the sites counted on their held-out texts into the line: the exact sum, and each site."""
    total = reduce(add, counts.values())
    add_test(record, total, total.accuracy)
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


def add_test(record: dict[str, Any], counts: Counts, accuracy: float) -> None:
    """Put what the model makes of the test texts into the line: its `test`, and its predictions."""
    record["test"] = {
        "loss": counts.loss,
        "accuracy": accuracy,
        "macro_f1": counts.macro_f1,
        "num_examples": counts.num_examples,
    }
    record["diagnostics"] |= describe_predictions(counts)


def steps_so_far(lines: Iterable[Mapping[str, Any]]) -> dict[int, int]:
    """Optimiser steps of each client after these history lines, oldest first."""
    return {client["client"]: client["total_steps"] for line in lines for client in line["clients"]}
