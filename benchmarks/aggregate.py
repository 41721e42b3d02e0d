"""The two ways to average K replies, each timed from bytes to new global tensors."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.constant import SType

from wardround.common.model.flat import Layout, flatten_model
from wardround.common.pretrained import read_model
from wardround.common.tasks.label import LABEL
from wardround.common.wire.arrays import to_record
from wardround.common.wire.codec import unpack_update
from wardround.server.rounds.checks import check_update, open_tensors
from wardround.server.rounds.mean import WeightedMean
from wardround.server.rounds.members import Member

_NUM_EXAMPLES = 100


def fold_in(model: Path, num_clients: int) -> float:
    """Return Wardround's seconds. Replies come one by one, as its round loop pulls them."""
    layout, flat = global_tensors(model)
    started = time.perf_counter()
    mean, scratch = WeightedMean(flat), np.empty(0, dtype=np.float32)
    seconds = time.perf_counter() - started
    for client, reply in enumerate(replies(layout, flat, num_clients)):
        started = time.perf_counter()
        update = unpack_update(reply, LABEL)
        member = Member(client, f"site-{client}", client, _NUM_EXAMPLES)
        check_update(update, 1, layout, member)
        mean.add(open_tensors(update, flat, scratch), update.num_examples)
        seconds += time.perf_counter() - started
    started = time.perf_counter()
    mean.finish()
    return seconds + time.perf_counter() - started


def stock_average(model: Path, num_clients: int) -> float:
    """Return the seconds of stock FedAvg, which gets a list of replies."""
    from flwr.serverapp.strategy import FedAvg

    network = build(model)
    strategy = FedAvg()
    held = [
        FakeReply(
            RecordDict(
                {
                    "arrays": ArrayRecord(network.state_dict()),
                    "metrics": MetricRecord(
                        {"train_loss": 0.0, "num-examples": _NUM_EXAMPLES}
                    ),
                }
            )
        )
        for _ in range(num_clients)
    ]
    started = time.perf_counter()
    strategy.aggregate_train(1, held)  # type: ignore[arg-type]
    return time.perf_counter() - started


class FakeReply:
    """The parts of a Flower message that both sides read: a real one needs a run."""

    def __init__(self, content: RecordDict) -> None:
        self.content = content

    def has_content(self) -> bool:
        """Return True: the reply has content."""
        return True

    def has_error(self) -> bool:
        """Return False: the reply has no error."""
        return False


def build(model: Path) -> Any:
    """Return the classifier in that folder."""
    built, _ = read_model(model, LABEL.model_class(), num_labels=2)
    return built


def global_tensors(model: Path) -> tuple[Layout, torch.Tensor]:
    """Return the shared tensors of the model in that folder: layout and (P,) fp32."""
    return flatten_model(build(model), torch.device("cpu"))


def replies(
    layout: Layout, flat: torch.Tensor, num_clients: int
) -> Iterator[RecordDict]:
    """Return the content of Wardround's replies, as pulled from a grid. Each has its own bytes."""
    for _ in range(num_clients):
        record = ArrayRecord()
        for key, piece in to_record({"shared": flat.numpy()}).items():
            record[key] = Array(piece.dtype, piece.shape, SType.NUMPY, piece.data)
        config = {"round": 1, "layout": layout.digest, "form": "whole", "holds": ""}
        metrics = {
            "num_examples": _NUM_EXAMPLES,
            "num_steps": 1,
            "loss": 0.5,
            "seconds": 1.0,
            "withheld": 0,
            "uncorrected": 0,
        }
        yield RecordDict(
            {
                "tensors": record,
                "update": ConfigRecord(config),  # type: ignore[arg-type]
                "metrics": MetricRecord(metrics),  # type: ignore[arg-type]
            }
        )
        del record
