"""Where a simulated round of Wardround goes: timers around the calls it is made of, in percent.

    python -m benchmarks.phases --model base --clients 8 --threads 2

Nobody trains, so that what remains is what the framework itself costs.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.contenders.job import Job
from benchmarks.contenders.wardround import leave_out_training, overrides
from benchmarks.inputs import SIZES, write_model
from benchmarks.plots import draw_bars
from benchmarks.report import Report, Samples, Table, carry_out, parser
from benchmarks.simulated import Texts
from common.model.state import ModelState
from server.compose import compose
from server.engines.simulate import simulate
from server.rounds import loop
from server.rounds.fedavg import WeightedMean

# Phase -> the call it is; none of them calls another.
PHASES: dict[str, tuple[Any, str]] = {
    "fold the updates in: fp64 sum, norm, sketch": (WeightedMean, "add"),
    "the mean": (WeightedMean, "finish"),
    "check the updates": (loop, "open_tensors"),
    "load the model": (ModelState, "load"),
    "measure the model, its SHA-256 beside that": (loop.FederatedAveraging, "_new_state"),
}
REST = "messages, the head's norms, the rest"
_TEXTS, _LENGTH = 64, 16


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
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
    """One run in this process; the first two rounds, in which memory is fresh, do not count."""
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
    leave_out_training()
    spent = dict.fromkeys(PHASES, 0.0)
    for phase, (owner, name) in PHASES.items():
        _time(owner, name, phase, spent)
    rounds: list[dict[str, float]] = []
    _close_rounds(spent, rounds)
    simulate(compose(overrides(job)).settings)
    samples = Samples()
    for found in rounds[2:] or rounds[-1:]:
        for phase, seconds in found.items():
            samples.add(phase, seconds=seconds)
    medians = {phase: median(found["seconds"]) for phase, found in samples.values.items()}
    total = sum(medians.values())
    table = Table(["phase", "seconds a round", "share (%)"])
    table.rows += [[phase, seconds, 100 * seconds / total] for phase, seconds in medians.items()]
    table.rows.append(["all", total, 100.0])
    return Report("phases", table, samples, ["medians over the rounds from the third on."])


def _time(owner: Any, name: str, phase: str, spent: dict[str, float]) -> None:
    """Count the seconds of every call; of calls inside other calls, only the outer."""
    call: Callable[..., Any] = getattr(owner, name)
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

    setattr(owner, name, timed)


def _close_rounds(spent: dict[str, float], rounds: list[dict[str, float]]) -> None:
    """After every round, note what each phase took in it, and what is left of its time."""
    train, average, started = loop.FederatedAveraging._train, loop.FederatedAveraging._average, 0.0

    def timed_train(*args: Any) -> Any:
        nonlocal started
        for phase in PHASES:
            spent[phase] = 0.0
        started = time.perf_counter()
        return train(*args)

    def timed_average(*args: Any) -> Any:
        outcome = average(*args)
        found = {phase: spent[phase] for phase in PHASES}
        rounds.append(found | {REST: time.perf_counter() - started - sum(found.values())})
        return outcome

    setattr(loop.FederatedAveraging, "_train", timed_train)  # noqa: B010 - for mypy
    setattr(loop.FederatedAveraging, "_average", timed_average)  # noqa: B010 - as above


def _plot(report: Report, options: argparse.Namespace) -> None:
    seconds = {phase: report.samples.median(phase, "seconds") or 0.0 for phase in (*PHASES, REST)}
    draw_bars(options.plot, {"seconds a round": seconds})


if __name__ == "__main__":
    sys.exit(main())
