"""The costs of Wardround's other work in a round, apart from training and summing."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.aggregate import build, global_tensors
from wardround.common.model.flat import model_sha256
from wardround.common.tasks.label import LABEL, label_sums
from wardround.server.diagnostics.collapse import collapses_in
from wardround.server.record import ClientRecord, RoundRecord
from wardround.server.rounds.mean import BLOCK, RoundMean, WeightedMean
from wardround.server.rounds.updates import Head, cosines_to_others, describe_updates
from wardround.server.run_folder import Checkpoint, RunFolder

_BATCH, _TOKENS = 32, 128
# The collapse is looked for in all rounds so far.
_ROUNDS = 100


def measure_costs(
    model: Path, run_dir: Path, num_clients: int, num_repeats: int
) -> dict[str, float]:
    """Return the seconds of each kind of work; `step` is the time of a client's training step."""
    layout, flat = global_tensors(model)
    trained = flat + 1e-4
    run_dir.mkdir()
    folder = RunFolder(run_dir)
    counts = label_sums(50.0, np.array([[25, 25], [25, 25]]), (0.5,))
    head = Head.of(
        layout, [name for name in layout.names if name.startswith("classifier")]
    )
    outcome: RoundMean | None = None

    def with_norms() -> None:
        nonlocal outcome
        mean = WeightedMean(flat)
        for _ in range(num_clients):
            mean.add(trained, 100)
        outcome = mean.finish()

    alone = _seconds(lambda: _sum_alone(flat, trained, num_clients), num_repeats)
    both = _seconds(with_norms, num_repeats)
    assert outcome is not None
    mean = outcome
    record = RoundRecord.read(
        json.dumps({"round": 1, "model_sha256": model_sha256(layout, flat)})
    )

    def diagnose() -> None:
        told: dict[str, Any] = {
            "num_examples": 100,
            "loss": 0.5,
            "seconds": 1.0,
            "num_bytes": 1,
        }
        told |= dict.fromkeys(
            ("num_steps", "total_steps", "update_norm", "cosine_to_mean")
        )
        record.clients = [
            ClientRecord(
                client=client,
                head_norm=head.update_norm(trained, flat),
                cosine_to_others=cosine,
                **told,
            )
            for client, cosine in enumerate(cosines_to_others(mean))
        ]
        norms = (
            head.update_norm(mean.tensors, flat),
            head.body_norm(mean.tensors, flat),
        )
        updates = describe_updates(mean, *norms, head.length(mean.tensors))
        record.diagnostics = updates.model_copy(update=LABEL.describe(counts))
        collapses_in([record] * _ROUNDS, LABEL, 5)

    seconds_to_diagnose = _seconds(diagnose, num_repeats)
    checkpoint = Checkpoint(record, layout.views(flat))
    return {
        "norms and cosines": max(0.0, both - alone),
        "head, agreement, predictions, collapse": seconds_to_diagnose,
        "SHA-256 of the model": _seconds(
            lambda: model_sha256(layout, flat), num_repeats
        ),
        "checkpoint, on the disk": _seconds(
            lambda: folder.save_checkpoint(checkpoint), num_repeats
        ),
        "history line, on the disk": _seconds(
            lambda: folder.append_history(record), num_repeats
        ),
        "step": _step_seconds(model, num_repeats),
    }


def _sum_alone(
    flat: torch.Tensor, trained: torch.Tensor, num_clients: int
) -> torch.Tensor:
    """Compute the weighted mean without diagnostics, in the same blocks."""
    total = torch.zeros(len(flat), dtype=torch.float64)
    mean = torch.empty_like(flat)
    blocks = [slice(start, start + BLOCK) for start in range(0, len(flat), BLOCK)]
    for _ in range(num_clients):
        for block in blocks:
            total[block].add_(trained[block], alpha=100)
    for block in blocks:
        mean[block] = total[block].div_(100 * num_clients)
    return mean


def _step_seconds(model: Path, num_repeats: int) -> float:
    network = build(model).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-5)
    input_ids = torch.randint(5, 1000, (_BATCH, _TOKENS))
    labels = torch.zeros(_BATCH, dtype=torch.int64)

    def step() -> None:
        network(input_ids=input_ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return _seconds(step, num_repeats)


def _seconds(work: Callable[[], object], num_repeats: int) -> float:
    """Return the median of `num_repeats`. One more before them does not count."""
    work()
    measured = []
    for _ in range(num_repeats):
        started = time.perf_counter()
        work()
        measured.append(time.perf_counter() - started)
    return median(measured)
