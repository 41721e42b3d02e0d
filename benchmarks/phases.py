"""The parts of a simulated round of Wardround, in percent of its time.

    python -m benchmarks.phases --model base --clients 8 --threads 2

No client trains, so that only the costs of the framework itself remain.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

from benchmarks.contenders.job import Job
from benchmarks.contenders.wardround import leave_out_training, overrides
from benchmarks.inputs import SIZES, write_model
from benchmarks.plots import draw_bars
from benchmarks.report import Report, Samples, Table, carry_out, parser
from benchmarks.simulated import Texts
from wardround.client import round as local_round
from wardround.common.model.state import ModelState
from wardround.server.compose import compose
from wardround.server.engines import pool
from wardround.server.engines.simulate import simulate
from wardround.server.rounds import intake, loop
from wardround.server.rounds.callbacks import Callbacks
from wardround.server.rounds.mean import WeightedMean

# Phase -> the call it is; none of them calls another.
PHASES: dict[str, tuple[Any, str]] = {
    "fold the updates in: fp64 sum, norm, sketch": (WeightedMean, "add"),
    "the mean": (WeightedMean, "finish"),
    "check the updates": (intake, "open_tensors"),
    "load the model": (ModelState, "load"),
    "measure the model, its SHA-256 beside that": (
        loop.FederatedAveraging,
        "_close_round",
    ),
    "callbacks, after each update": (Callbacks, "after_update"),
}
REST = "messages, the head's norms, the rest"
_TEXTS, _LENGTH = 64, 16


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    options_of = parser(__doc__ or "")
    options_of.add_argument("--model", choices=SIZES, default="base")
    options_of.add_argument("--clients", type=int, default=8)
    options_of.add_argument("--threads", type=int, default=2)
    options_of.add_argument("--rounds", type=int, default=6)
    options = options_of.parse_args(arguments)
    if options.quick:
        options.model, options.clients, options.rounds = "micro", 2, 3
    return carry_out(options, measure, _plot)


def measure(options: argparse.Namespace, folder: Path) -> Report:
    """Measure a run in this process. The first two rounds do not count: their memory is fresh."""
    texts = Texts.write(folder, _TEXTS, _LENGTH)
    job = Job(
        model=str(write_model(folder / "model", options.model)),
        num_clients=options.clients,
        num_rounds=options.rounds,
        max_length=_LENGTH,
        texts=str(texts.train),
        test_texts=str(texts.test),
        token_ids=str(texts.token_ids),
        has_steps=False,
        device="cpu",
        folder=str(folder),
        threads=options.threads,
    )
    spent = dict.fromkeys(PHASES, 0.0)
    rounds: list[dict[str, float]] = []
    with ExitStack() as open_patches:
        patched = open_patches.enter_context
        patched(patch.dict(local_round.__dict__))
        patched(patch.dict(pool.__dict__))
        leave_out_training()
        for phase, (owner, name) in PHASES.items():
            patched(
                patch.object(owner, name, _timed(getattr(owner, name), phase, spent))
            )
        for name, call in _marking_rounds(spent, rounds).items():
            patched(patch.object(loop.FederatedAveraging, name, call))
        simulate(compose(overrides(job)).settings)
    samples = Samples()
    for found in rounds[2:] or rounds[-1:]:
        for phase, seconds in found.items():
            samples.add(phase, seconds=seconds)
    medians = {
        phase: median(found["seconds"]) for phase, found in samples.values.items()
    }
    total = sum(medians.values())
    table = Table(["phase", "seconds a round", "share (%)"])
    table.rows += [
        [phase, seconds, 100 * seconds / total] for phase, seconds in medians.items()
    ]
    table.rows.append(["all", total, 100.0])
    return Report(
        "phases", table, samples, ["medians over the rounds from the third on."]
    )


def _timed(
    call: Callable[..., Any], phase: str, spent: dict[str, float]
) -> Callable[..., Any]:
    """Count the seconds of every call, without calls inside counted calls."""
    spent.setdefault("", 0.0)  # whether one of them runs

    def timed(*args: Any, **words: Any) -> Any:
        outer, spent[""] = spent[""], 1.0
        started = time.perf_counter()
        try:
            return call(*args, **words)
        finally:
            spent[""] = outer
            if outer == 0.0:
                spent[phase] += time.perf_counter() - started

    return timed


def _marking_rounds(
    spent: dict[str, float], rounds: list[dict[str, float]]
) -> dict[str, Callable[..., Any]]:
    """After every round, note the seconds of each phase, and the rest of the round."""
    train, average, started = (
        loop.FederatedAveraging._train,
        loop.FederatedAveraging._average,
        0.0,
    )

    def timed_train(*args: Any) -> Any:
        nonlocal started
        for phase in PHASES:
            spent[phase] = 0.0
        started = time.perf_counter()
        return train(*args)

    def timed_average(*args: Any) -> Any:
        outcome = average(*args)
        found = {phase: spent[phase] for phase in PHASES}
        rounds.append(
            found | {REST: time.perf_counter() - started - sum(found.values())}
        )
        return outcome

    return {"_train": timed_train, "_average": timed_average}


def _plot(report: Report, options: argparse.Namespace) -> None:
    seconds = {
        phase: report.samples.median(phase, "seconds") or 0.0
        for phase in (*PHASES, REST)
    }
    draw_bars(options.plot, {"seconds a round": seconds})


if __name__ == "__main__":
    sys.exit(main())
