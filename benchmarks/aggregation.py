"""The mean of K replies of the size of BERT-base: Wardround's running mean, stock FedAvg's list.

    python -m benchmarks.aggregation --clients 2,8,32

Each row runs in its own process. A second table has the other work of Wardround in a round
(diagnostics, hash, checkpoint, history), as a share of a round of 50 steps.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.aggregate import fold_in, stock_average
from benchmarks.inputs import SIZES, write_model
from benchmarks.isolated import isolated
from benchmarks.plots import Curve, draw
from benchmarks.report import Report, Samples, Table, carry_out, numbers, parser, say
from benchmarks.round_costs import measure_costs

STOCK = "stock FedAvg"
VARIANTS: dict[str, Callable[[Path, int], float]] = {
    "Wardround": fold_in,
    STOCK: stock_average,
}
NUM_STEPS = 50

NOTES = [
    "seconds: from replies in memory, as bytes off the wire, to new global tensors. Wardround's"
    " seconds include its checks and diagnostics.",
    "memory: peak PSS of the process. Stock holds all replies, because its strategy gets them "
    "all; Wardround holds one.",
    f"shares: of {NUM_STEPS} training steps (batch 32, 128 tokens, fp32), measured on this "
    "machine in this run.",
]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    return carry_out(read_options(arguments), measure, _plot)


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options; `--quick` makes them small."""
    options_of = parser(__doc__ or "")
    options_of.add_argument("--model", choices=SIZES, default="base")
    options_of.add_argument(
        "--clients", type=numbers, default=(2, 8, 32), metavar="K[,K…]"
    )
    options_of.add_argument(
        "--cost-clients",
        type=int,
        default=8,
        help="K of the second table; 0: leave it out",
    )
    options = options_of.parse_args(arguments)
    if options.quick:
        options.model, options.clients, options.repeats, options.cost_clients = (
            "micro",
            (2,),
            1,
            2,
        )
    return options


def measure(options: argparse.Namespace, folder: Path) -> Report:
    """Measure all rows in turns, then the costs."""
    samples = Samples()
    model = write_model(folder / "model", options.model)
    for num_clients in options.clients:
        for repeat in range(options.repeats):
            for name, run in VARIANTS.items():
                say(f"{name}, K = {num_clients}, run {repeat + 1} of {options.repeats}")
                seconds, peak = isolated(run, model, num_clients)
                samples.add(f"{name}, {num_clients}", seconds=seconds, bytes=peak)
    table = Table(
        [
            "model",
            "K",
            "aggregation",
            "seconds",
            "of stock",
            "peak memory (GiB)",
            "of stock ",
        ]
    )
    for num_clients in options.clients:
        for name in VARIANTS:
            row, base = f"{name}, {num_clients}", f"{STOCK}, {num_clients}"
            peak_bytes = samples.median(row, "bytes")
            memory = None if peak_bytes is None else peak_bytes / 2**30
            ratios = [samples.ratio(row, base, key) for key in ("seconds", "bytes")]
            seconds_now = samples.median(row, "seconds")
            table.rows.append(
                [
                    options.model,
                    num_clients,
                    name,
                    seconds_now,
                    ratios[0],
                    memory,
                    ratios[1],
                ]
            )
    report = Report("aggregation", table, samples, NOTES)
    if options.cost_clients:
        report.more["What a round costs beside training"] = _costs(
            options, model, folder, samples
        )
    return report


def _costs(
    options: argparse.Namespace, model: Path, folder: Path, samples: Samples
) -> Table:
    say(f"costs of a round, K = {options.cost_clients}")
    costs, _ = isolated(
        measure_costs, model, folder / "run", options.cost_clients, options.repeats
    )
    step = costs.pop("step")
    samples.add("step", seconds=step)
    columns = [
        "model",
        "K",
        "what",
        "seconds a round",
        f"share of {NUM_STEPS} steps (%)",
    ]
    table = Table(columns)
    total = 0.0
    for name, seconds in costs.items():
        samples.add(name, seconds=seconds)
        total += seconds
        table.rows.append(
            [
                options.model,
                options.cost_clients,
                name,
                seconds,
                100 * seconds / (NUM_STEPS * step),
            ]
        )
    table.rows.append(
        [
            options.model,
            options.cost_clients,
            "all of them",
            total,
            100 * total / (NUM_STEPS * step),
        ]
    )
    table.rows.append([options.model, "", "one training step", step, 100 / NUM_STEPS])
    return table


def _plot(report: Report, options: argparse.Namespace) -> None:
    curves = {
        quantity: [
            Curve(
                name,
                [
                    (k, (report.samples.median(f"{name}, {k}", key) or 0) / unit)
                    for k in options.clients
                ],
            )
            for name in VARIANTS
        ]
        for quantity, key, unit in (
            ("seconds", "seconds", 1),
            ("peak memory (GiB)", "bytes", 2**30),
        )
    }
    draw(options.plot, curves, "clients K")


if __name__ == "__main__":
    sys.exit(main())
