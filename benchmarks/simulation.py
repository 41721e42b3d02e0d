"""Simulated rounds on one machine: Wardround, a plain loop, Flower, pfl-research and NVFLARE.

    python -m benchmarks.simulation --models tiny,base --clients 1,2,8,32

`tiny`: 2,048 texts of 128 tokens dealt to K clients, one epoch a round. `base`: BERT-base without
training steps, so that only the costs of the framework remain. Every run is a fresh process;
contenders take turns.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.contenders.job import Job
from benchmarks.inputs import write_model
from benchmarks.plots import Curve, draw
from benchmarks.report import (
    Report,
    Samples,
    Table,
    carry_out,
    names,
    numbers,
    parser,
    say,
)
from benchmarks.simulated import Contender, Missing, Outcome, Texts, run

CONTENDERS = (
    Contender("plain loop, 1 process x 1 thread", "plain"),
    Contender("plain loop, 1 process x 2 threads", "plain", threads=2),
    Contender("plain loop, 2 processes x 1 thread", "plain", processes=2),
    Contender("Wardround inprocess, 1 thread", "wardround"),
    Contender("Wardround inprocess, 2 threads", "wardround", threads=2),
    Contender(
        "Wardround inprocess, 2 workers x 1 thread",
        "wardround",
        overrides=("engine.workers=2",),
    ),
    Contender(
        "Wardround ray",
        "wardround",
        overrides=("engine=ray",),
        needs="ray",
        package="flwr[simulation]",
    ),
    Contender("stock Flower on Ray", "stock", needs="ray", package="flwr[simulation]"),
    Contender("pfl-research", "pfl_research", needs="pfl", package="pfl"),
    Contender(
        "NVFLARE simulator", "nvflare_simulator", needs="nvflare", package="nvflare"
    ),
)
NUM_TEXTS = {"micro": (64, 16), "tiny": (2048, 128)}
_FEW_TEXTS = (64, 16)

NOTES = [
    "seconds a round: rounds 2 to n; first: round 1 alone; start: from the command to the begin"
    " of round 1; medians over repeats. In its start, the plain loop imports torch and "
    "transformers, builds the model and reads token ids.",
    "ratio: to the best plain loop of the same model and K, of medians.",
    "memory: peak PSS of all processes of a run together.",
    "base has no training steps: a function that returns at once replaces Wardround's "
    "train_epochs. Under engine=ray this is not possible, so that row takes one step per client"
    " on texts of 16 tokens. The rest of Wardround's round is the same: evaluation of the "
    "global model on 2 texts, diagnostics, SHA-256, checkpoint on disk.",
]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    return carry_out(read_options(arguments), measure, _plot)


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options; `--quick` makes them small."""
    options_of = parser(__doc__ or "")
    options_of.add_argument(
        "--models", type=names, default=("tiny", "base"), metavar="NAME[,NAME…]"
    )
    options_of.add_argument(
        "--clients", type=numbers, default=(1, 2, 8, 32), metavar="K[,K…]"
    )
    options_of.add_argument(
        "--rounds", type=int, default=4, help="rounds of each run, at least 2"
    )
    options_of.add_argument("--device", default="cpu", help="cpu, cuda …")
    options_of.add_argument(
        "--only",
        action="append",
        metavar="WORDS",
        help="contenders whose name holds them",
    )
    options = options_of.parse_args(arguments)
    if options.quick:
        options.models, options.clients, options.rounds, options.repeats = (
            ("micro",),
            (2,),
            2,
            1,
        )
    wanted = options.only or [one.name for one in CONTENDERS]
    options.contenders = [
        one for one in CONTENDERS if any(words in one.name for words in wanted)
    ]
    return options


def measure(options: argparse.Namespace, folder: Path) -> Report:
    """Make all runs: for every model and K, the contenders in turns."""
    samples, missing = Samples(), dict[str, None]()
    for model in options.models:
        bench = Bench(folder / model, model, options)
        for num_clients in options.clients:
            for repeat in range(options.repeats):
                for contender in options.contenders:
                    row = f"{contender.name}, {model}, {num_clients}"
                    say(f"{row}, run {repeat + 1} of {options.repeats}")
                    try:
                        _keep(
                            samples,
                            row,
                            run(contender, bench.job(contender, num_clients)),
                        )
                    except Missing as why:
                        say(f"  {why}")
                        missing[str(why)] = None
    return Report("simulation", _table(samples, options), samples, [*NOTES, *missing])


class Bench:
    """One model and its texts, from which every contender gets the same job."""

    def __init__(self, home: Path, model: str, options: argparse.Namespace) -> None:
        self._home, self._options = home, options
        self._has_steps = model in NUM_TEXTS
        self._model = write_model(home / "model", model)
        num_texts, self._length = NUM_TEXTS.get(model, _FEW_TEXTS)
        self._texts = Texts.write(home, num_texts, self._length)

    def job(self, contender: Contender, num_clients: int) -> Job:
        """Return the job, in a new folder."""
        return Job(
            model=str(self._model),
            num_clients=num_clients,
            num_rounds=self._options.rounds,
            max_length=self._length,
            texts=str(self._texts.train),
            test_texts=str(self._texts.test),
            token_ids=str(self._texts.token_ids),
            has_steps=self._has_steps,
            device=self._options.device,
            folder=tempfile.mkdtemp(dir=self._home),
            threads=contender.threads,
            processes=contender.processes,
            overrides=contender.overrides,
        )


def _keep(samples: Samples, row: str, measured: Outcome) -> None:
    samples.add(
        row,
        start=measured.start_seconds,
        first=measured.first_seconds,
        seconds=measured.round_seconds,
        bytes=measured.peak_bytes,
    )
    say(
        f"  {measured.round_seconds:.2f} s a round, {measured.peak_bytes / 2**30:.2f} GiB"
    )


def _table(samples: Samples, options: argparse.Namespace) -> Table:
    columns = ["model", "K", "who", "s/round", "of best plain loop", "first round (s)"]
    table = Table(
        [*columns, "start (s)", "start, of plain loop", "memory (GiB)", "of plain loop"]
    )
    for model in options.models:
        for num_clients in options.clients:
            where = f"{model}, {num_clients}"
            plain = [one.name for one in options.contenders if one.module == "plain"]
            best, least, soonest = (
                _lowest(samples, [f"{name}, {where}" for name in plain], key)
                for key in ("seconds", "bytes", "start")
            )
            for contender in options.contenders:
                row = f"{contender.name}, {where}"
                seconds, held, start = (
                    samples.median(row, key) for key in ("seconds", "bytes", "start")
                )
                table.rows.append(
                    [
                        *(
                            model,
                            num_clients,
                            contender.name,
                            seconds,
                            _ratio(seconds, best),
                        ),
                        *(samples.median(row, "first"), start, _ratio(start, soonest)),
                        *(None if held is None else held / 2**30, _ratio(held, least)),
                    ]
                )
    return table


def _lowest(samples: Samples, rows: Sequence[str], name: str) -> float | None:
    return min(
        (value for row in rows if (value := samples.median(row, name)) is not None),
        default=None,
    )


def _ratio(value: float | None, base: float | None) -> float | None:
    return None if value is None or not base else value / base


def _plot(report: Report, options: argparse.Namespace) -> None:
    panels = {
        f"{model}: {quantity}": [
            Curve(
                one.name,
                [
                    (
                        k,
                        (report.samples.median(f"{one.name}, {model}, {k}", key) or 0)
                        / unit,
                    )
                    for k in options.clients
                ],
            )
            for one in options.contenders
        ]
        for model in options.models
        for quantity, key, unit in (
            ("seconds a round", "seconds", 1),
            ("memory (GiB)", "bytes", 2**30),
        )
    }
    draw(options.plot, panels, "clients K")


if __name__ == "__main__":
    sys.exit(main())
