"""A model of a round's costs, from results of other benchmarks; the costs of the paper's sweep.

    python -m benchmarks.scaling --simulation simulation.json --deployment base.json minilm.json

The files were written by `--json`. Of each kind, the point with the most clients is held out and
predicted.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.inputs import SIZES
from benchmarks.report import Report, Samples, Table, command, parser

OURS = {"simulation": "Wardround inprocess, 1 thread", "deployment": "Wardround"}
# The part of the cost that does not depend on the size of the model: its unit, and how often a
# round of K clients has it. The sites of the benchmark share a machine.
FIXED: dict[str, tuple[str, Callable[[int], int]]] = {
    "simulation": ("a round", lambda clients: 1),
    "deployment": ("a site", lambda clients: clients),
}
# fp32 numbers that travel, of the sizes in benchmarks/inputs.py as classifiers of two labels.
NUM_WEIGHTS = {
    "micro": 29_442,
    "tiny": 4_386_178,
    "minilm": 22_713_986,
    "base": 109_483_778,
}
_PAPER_MODELS = {"bert": (12, 768), "albert": (12, 768), "distilbert": (6, 768)}
_PAPER_DATA = {
    "imdb": (25_000, 25_000, 100),
    "yelp_full": (650_000, 50_000, 50),
    "ag_news": (120_000, 7_600, 100),
}
_PAPER_CLIENTS, _PAPER_EPOCHS, _PAPER_LENGTH = 6, 2, 128


@dataclass(frozen=True)
class Point:
    """One measured round."""

    name: str
    num_clients: int
    mebibytes: float
    """Of the model in fp32."""
    seconds: float

    def features(self, kind: str) -> tuple[float, float]:
        """The variables of the fit: 1, and the MiB of all clients' models."""
        return FIXED[kind][1](self.num_clients), self.num_clients * self.mebibytes


def read(file: Path) -> list[Point]:
    """Return Wardround's points in a benchmark's JSON; of a simulation, those without training."""
    content = json.loads(file.read_text(encoding="utf-8"))
    kind, points = content["benchmark"], []
    for row in content["table"]:
        who, clients = (
            (row["who"], row["K"])
            if kind == "simulation"
            else (row["app"], row["sites"])
        )
        if (
            who == OURS[kind]
            and row["s/round"] is not None
            and (kind, row["model"]) != ("simulation", "tiny")
        ):
            size = NUM_WEIGHTS[row["model"]] * 4 / 2**20
            points.append(
                Point(f"{row['model']}, K = {clients}", clients, size, row["s/round"])
            )
    return points


def fit(kind: str, points: Sequence[Point]) -> np.ndarray:
    """Fit by least squares: fixed seconds, and seconds for each client and MiB of its model."""
    features = np.array([point.features(kind) for point in points])
    found: np.ndarray = np.linalg.lstsq(
        features, np.array([point.seconds for point in points])
    )[0]
    return found


def model_table(kind: str, points: Sequence[Point], samples: Samples) -> Table:
    """Return a table: the fit, and each point with its predicted value."""
    held_out = max(points, key=lambda point: (point.num_clients, point.mebibytes))
    used = [point for point in points if point is not held_out]
    coefficients = fit(kind, used)
    samples.add(
        kind, fixed_seconds=coefficients[0], seconds_per_client_and_mib=coefficients[1]
    )
    table = Table(["point", "", "measured (s)", "by the model (s)", "model / measured"])
    for point in points:
        predicted = float(np.dot(point.features(kind), coefficients))
        use = "held out" if point is held_out else "fitted"
        table.rows.append(
            [point.name, use, point.seconds, predicted, predicted / point.seconds]
        )
    return table


def paper_table(teraflops: float, dollars: float) -> Table:
    """Return a table of the paper's 54 cells to their budgets, batches padded to 128 tokens.

    6 operations for each weight of the layers and token, 2 without training (Kaplan et al. 2020,
    arXiv:2001.08361, section 2.1), and those of the attention. Layers that share weights, as in
    ALBERT, need as many operations as others.
    """
    table = Table(
        [
            "model",
            "data",
            "cells",
            "tokens (10⁹)",
            "operations (10¹⁸)",
            "1 GPU (h)",
            "8 GPUs (h)",
            "cost",
        ]
    )
    total = np.zeros(5)
    for model, (layers, width) in _PAPER_MODELS.items():
        for data, (train, test, rounds) in _PAPER_DATA.items():
            trained = _PAPER_CLIENTS * rounds * _PAPER_EPOCHS * train * _PAPER_LENGTH
            seen = _PAPER_CLIENTS * rounds * test * _PAPER_LENGTH
            per_token = layers * width * (24.0 * width + 4.0 * _PAPER_LENGTH)
            operations = per_token * (3 * trained + seen)
            hours = operations / (teraflops * 1e12) / 3600
            cells = [
                (trained + seen) / 1e9,
                operations / 1e18,
                hours,
                hours / 8,
                hours * dollars,
            ]
            total += cells
            table.rows.append([model, data, _PAPER_CLIENTS, *cells])
    table.rows.append(["all", "", 54, *total.tolist()])
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    options = read_options(arguments)
    samples, more = Samples(), {}
    for kind in OURS:
        files = getattr(options, kind)
        if files:
            points = [point for file in files for point in read(file)]
            more[f"{kind.capitalize()}, {', '.join(file.name for file in files)}"] = (
                model_table(kind, points, samples)
            )
    fits = Table(["", "fixed (s)", "for", "per client and GiB (s)"])
    for kind in more and samples.values:
        found = [
            samples.first(kind, key)
            for key in ("fixed_seconds", "seconds_per_client_and_mib")
        ]
        fits.rows.append(
            [
                kind,
                found[0],
                FIXED[kind][0],
                None if found[1] is None else found[1] * 1024,
            ]
        )
    title = (
        f"The paper's 54 cells at {options.teraflops:g} TFLOP/s and "
        f"{options.dollars:g} $ an hour (assumed)"
    )
    more[title] = paper_table(options.teraflops, options.dollars)
    Report("scaling", fits, samples, [f"fitted by {command('scaling')}"], more).write(
        options
    )
    return 0


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    options_of = parser(__doc__ or "")
    for kind in OURS:
        options_of.add_argument(
            f"--{kind}",
            type=Path,
            nargs="+",
            default=(),
            metavar="FILE",
            help=f"JSON of benchmarks.{kind}",
        )
    options_of.add_argument(
        "--teraflops", type=float, default=250.0, help="sustained by one GPU"
    )
    options_of.add_argument(
        "--dollars", type=float, default=3.5, help="an hour of one GPU"
    )
    return options_of.parse_args(arguments)


assert NUM_WEIGHTS.keys() == SIZES.keys()

if __name__ == "__main__":
    sys.exit(main())
