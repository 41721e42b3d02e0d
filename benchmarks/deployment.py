"""Rounds across real sites: seconds, bytes and memory of Wardround and of stock Flower.

    python -m benchmarks.deployment --model base --sites 2 --rounds 4 --repeats 2

The two run in turns (A B A B …), each run with a server and sites of its own, with TLS and node
keys.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.deployed import Bed, Measured
from benchmarks.inputs import SIZES, write_model
from benchmarks.plots import draw_bars
from benchmarks.report import Report, Samples, Table, carry_out, numbers, parser, say

STOCK = "stock Flower"
Run = Callable[[Bed, int], Measured]

# A row each; the first is the one that ratios are told for.
VARIANTS: dict[str, Run] = {
    "Wardround": lambda bed, num_rounds: bed.wardround(num_rounds),
    STOCK: lambda bed, num_rounds: bed.stock(num_rounds),
    "Wardround, transforms=bf16": lambda bed, num_rounds: bed.wardround(
        num_rounds, "transforms=bf16"
    ),
}

NOTES = [
    "seconds a round: rounds 2 to n, from the end of round 1 to the end of round n; median over"
    " repeats.",
    "Wardround has no setting that turns training off. So its sites take one step on two texts "
    "of 8 tokens and count on another text, inside the training message. Stock takes no step, "
    "and its evaluation computes nothing. This difference is to Wardround's disadvantage.",
    "Instead of training, stock adds a small number to each tensor: Flower does not send again "
    "what the receiver has already, and trained tensors would be new.",
    "One small step moves weights so little that the exact difference takes one byte a weight; "
    "bf16 always takes two. After more training the exact difference takes more than one byte, "
    "too.",
    "bytes a round: all bytes that passed a relay in front of the SuperLink's fleet port, with "
    "TLS, all sites together.",
    "server memory: peak PSS of SuperLink, superexec and server app together. Site memory: peak"
    " PSS of the processes of the site with the most. Both are from the first run of each row.",
]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    return carry_out(read_options(arguments), measure, _plot)


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options; `--quick` makes them small."""
    options_of = parser(__doc__ or "")
    options_of.add_argument("--model", choices=SIZES, default="base")
    options_of.add_argument("--sites", type=numbers, default=(2,), metavar="N[,N…]")
    options_of.add_argument(
        "--rounds", type=int, default=4, help="rounds of each run, at least 2"
    )
    options_of.add_argument(
        "--only", choices=VARIANTS, action="append", help="measure these rows alone"
    )
    options = options_of.parse_args(arguments)
    if options.quick:
        options.model, options.rounds, options.repeats = "micro", 2, 1
    return options


def measure(options: argparse.Namespace, folder: Path) -> Report:
    """Make all runs, for every number of sites."""
    samples = Samples()
    model = write_model(folder / "model", options.model)
    chosen = {
        name: run
        for name, run in VARIANTS.items()
        if not options.only or name in options.only
    }
    for num_sites in options.sites:
        for repeat in range(options.repeats):
            for number, (name, run) in enumerate(chosen.items()):
                say(f"{name}, {num_sites} sites, run {repeat + 1} of {options.repeats}")
                root = folder / f"sites-{num_sites}" / f"run-{repeat}-{number}"
                with Bed(root, model, num_sites, is_stock=name == STOCK) as bed:
                    _keep(
                        samples, f"{name}, {num_sites} sites", run(bed, options.rounds)
                    )
    return Report("deployment", _table(samples, chosen, options), samples, NOTES)


def _keep(samples: Samples, row: str, measured: Measured) -> None:
    samples.add(
        row,
        round_seconds=measured.round_seconds,
        start_seconds=measured.start_seconds,
        up_bytes=measured.up_bytes,
        down_bytes=measured.down_bytes,
        server_bytes=measured.server_bytes,
        site_bytes=measured.site_bytes,
    )
    say(
        f"  {measured.round_seconds:.1f} s a round, server {measured.server_bytes / 2**30:.2f} GiB"
    )


def _table(
    samples: Samples, chosen: dict[str, Run], options: argparse.Namespace
) -> Table:
    columns = [
        "model",
        "sites",
        "app",
        "s/round",
        "of stock",
        "to round 1 (s)",
        "up (MiB)",
        "down (MiB)",
    ]
    table = Table([*columns, "server (GiB)", "site (GiB)"])
    for num_sites in options.sites:
        for name in chosen:
            row, base = f"{name}, {num_sites} sites", f"{STOCK}, {num_sites} sites"
            memory = [samples.first(row, key) for key in ("server_bytes", "site_bytes")]
            wire = [samples.median(row, key) for key in ("up_bytes", "down_bytes")]
            table.rows.append(
                [
                    *(
                        options.model,
                        num_sites,
                        name,
                        samples.median(row, "round_seconds"),
                    ),
                    *(
                        samples.ratio(row, base, "round_seconds"),
                        samples.median(row, "start_seconds"),
                    ),
                    *(None if value is None else value / 2**20 for value in wire),
                    *(None if value is None else value / 2**30 for value in memory),
                ]
            )
    return table


# Panels of the picture, and the columns of the table that are added up in each.
_PANELS = {
    "seconds a round": ("s/round",),
    "server memory (GiB)": ("server (GiB)",),
    "wire, up and down (MiB a round)": ("up (MiB)", "down (MiB)"),
}


def _plot(report: Report, options: argparse.Namespace) -> None:
    rows = report.table.records()
    panels = {
        f"{num_sites} sites: {title}": {
            str(row["app"]): sum(float(row[column] or 0) for column in columns)
            for row in rows
            if row["sites"] == num_sites
        }
        for num_sites in options.sites
        for title, columns in _PANELS.items()
    }
    draw_bars(options.plot, panels)


if __name__ == "__main__":
    sys.exit(main())
