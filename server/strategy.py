"""The round loop: send the global tensors out, let every client train, average, look, repeat."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from flwr.serverapp import Grid

from common.messages import TRAIN, Refused, Task, Update, pack_task, unpack_update
from common.settings import Settings
from common.sharing import Layout, model_sha256
from server.averaging import Agreement, WeightedMean
from server.evaluation import Evaluation
from server.exchange import Member, RunFailed, ask
from server.observers import Observer

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Taken:
    """An update that went into the mean, without its tensors."""

    client: int
    num_examples: int
    loss: float
    seconds: float


class FederatedAveraging:
    """FedAvg over a Flower grid. It does not know where the clients run."""

    def __init__(
        self,
        settings: Settings,
        layout: Layout,
        evaluation: Evaluation,
        observers: Sequence[Observer],
    ) -> None:
        self.settings = settings
        self.layout = layout
        self.evaluation = evaluation
        self.observers = observers

    def run(
        self, grid: Grid, members: Sequence[Member], tensors: Tensor, last_round: int | None
    ) -> tuple[Tensor, str]:
        """Run the rounds after `last_round`; None means nothing has been measured yet.

        Args:
            tensors: (P,) fp32 on the CPU, the global tensors after `last_round`, or the initial ones.

        Returns:
            The last global tensors, and why the run ended, in words.

        Raises:
            RunFailed: a client failed or stayed away and `strategy.on_missing` is `fail`, or too few
                updates came to close a round.
        """
        if last_round is None:
            last_round = 0
            reason = self._show(self._measure(0, tensors, {}), tensors)
        else:
            reasons = [observer.resumed(last_round) for observer in self.observers]
            reason = next(filter(None, reasons), None)
        for number in range(last_round + 1, self.settings.num_rounds + 1):
            if reason is not None:
                break
            tensors, record = self._round(grid, members, number, tensors)
            reason = self._show(record, tensors)
        return tensors, reason or f"all {self.settings.num_rounds} rounds are done"

    def _round(
        self, grid: Grid, members: Sequence[Member], number: int, tensors: Tensor
    ) -> tuple[Tensor, dict[str, Any]]:
        started = time.perf_counter()
        mean = WeightedMean(tensors)
        taken: list[Taken] = []
        aggregate_seconds = 0.0
        content = pack_task(Task(number, self.layout.digest, self.settings, tensors))
        timeout = self.settings.strategy.round_timeout_seconds
        replies = ask(grid, [member.node_id for member in members], content, TRAIN, str(number), timeout)
        for member, reply in zip(members, replies, strict=True):
            folding = time.perf_counter()
            if reply.message is None:
                self._missing(number, member, f"no update within {timeout:g} s")
                continue
            try:
                update = unpack_update(reply.message)
                check_update(update, number, self.layout, member)
            except Refused as refusal:
                self._missing(number, member, str(refusal))
                continue
            weighs = self.settings.strategy.weighting == "examples"
            mean.add(update.tensors, update.num_examples if weighs else 1)
            taken.append(Taken(member.client, update.num_examples, update.loss, update.seconds))
            aggregate_seconds += time.perf_counter() - folding
            for observer in self.observers:
                observer.after_update(number, len(taken), len(members))
        self._check_quorum(number, len(taken))
        folding = time.perf_counter()
        outcome = mean.finish()
        aggregate_seconds += time.perf_counter() - folding
        train_seconds = time.perf_counter() - started - aggregate_seconds
        record = self._measure(
            number, outcome.tensors, {"train": train_seconds, "aggregate": aggregate_seconds}
        )
        self._describe_clients(record, taken, outcome.agreements, len(members))
        return outcome.tensors, record

    def _missing(self, number: int, member: Member, why: str) -> None:
        text = f"round {number}: client {member.client}: {why}"
        if self.settings.strategy.on_missing == "fail":
            raise RunFailed(text)
        for observer in self.observers:
            observer.warn(f"{text}; the round goes on without it")

    def _check_quorum(self, number: int, num_taken: int) -> None:
        if num_taken < self.settings.strategy.min_sites:
            raise RunFailed(
                f"round {number}: {num_taken} updates came, but strategy.min_sites asks for "
                f"{self.settings.strategy.min_sites}. Start the missing clients and run the same command "
                "again: it goes on from the last whole round."
            )

    def _measure(self, number: int, tensors: Tensor, seconds: dict[str, float]) -> dict[str, Any]:
        """A history line with what the server knows by itself."""
        started = time.perf_counter()
        measured = self.evaluation.measure(tensors)
        seconds = {"train": 0.0, "aggregate": 0.0} | seconds
        seconds["evaluate"] = time.perf_counter() - started
        return {
            "round": number,
            "test": measured,
            "train": {"loss": None, "num_examples": 0},
            "clients": [],
            "seconds": seconds | {"total": sum(seconds.values())},
            "bytes": {"down": 0, "up": 0},
            "model_sha256": model_sha256(self.layout, tensors),
        }

    def _describe_clients(
        self, record: dict[str, Any], taken: list[Taken], agreements: tuple[Agreement, ...], num_sent: int
    ) -> None:
        num_examples = sum(update.num_examples for update in taken)
        loss = sum(update.loss * update.num_examples for update in taken) / num_examples
        record["train"] = {"loss": loss, "num_examples": num_examples}
        record["clients"] = [
            asdict(update) | asdict(agreement) for update, agreement in zip(taken, agreements, strict=True)
        ]
        size = self.layout.num_bytes()
        record["bytes"] = {"down": size * num_sent, "up": size * len(taken)}

    def _show(self, record: dict[str, Any], tensors: Tensor) -> str | None:
        """Tell the observers; the first reason to stop that one of them gives, or None."""
        reasons = [observer.after_round(record, tensors) for observer in self.observers]
        return next(filter(None, reasons), None)


def check_update(update: Update, number: int, layout: Layout, member: Member) -> None:
    """Refuse what must not go into the mean.

    Raises:
        Refused: the update is from another round, of another model, not finite, or claims an example
            count other than the one the client introduced itself with.
    """
    if update.round != number:
        raise Refused(f"its update belongs to round {update.round}")
    if update.layout != layout.digest or tuple(update.tensors.shape) != (layout.size,):
        raise Refused("its update has other tensor names or shapes than the global model")
    if update.tensors.dtype != torch.float32:
        raise Refused(f"its update holds {update.tensors.dtype}, not float32")
    if update.num_examples != member.num_examples:
        raise Refused(
            f"its update claims {update.num_examples} examples, but it joined with {member.num_examples}"
        )
    if not bool(torch.isfinite(update.tensors.sum())) and not bool(torch.isfinite(update.tensors).all()):
        raise Refused("its update holds values that are not finite")
