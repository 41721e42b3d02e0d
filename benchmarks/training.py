"""Local training, in texts a second: Wardround and the Trainer of Hugging Face, same model.

    python -m benchmarks.training --models tiny,base --precision fp32,bf16

Texts have a median of 50 tokens and are cut at 128; batches of 32, plain SGD. All rows train on
the same.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.flops import peak_flops
from benchmarks.inputs import SIZES, ragged_lengths, write_model
from benchmarks.isolated import isolated
from benchmarks.plots import draw_bars
from benchmarks.report import Report, Samples, Table, carry_out, names, parser, say
from benchmarks.trainers import (
    LONGEST,
    Job,
    NotInstalled,
    Speed,
    hugging_face,
    wardround,
)

TRAINER = "Hugging Face Trainer"
MEDIAN_TOKENS = 50
Train = Callable[[Job], Speed]

# A row each: what trains, and with which of Wardround's settings.
VARIANTS: dict[str, tuple[Train, tuple[str, ...]]] = {
    "Wardround, protocol=paper (padded to 128)": (wardround, ()),
    "Wardround, train.padding=longest": (wardround, ("train.padding=longest",)),
    "Wardround, train.micro_batches=by_length": (
        wardround,
        ("train.micro_batches=by_length",),
    ),
    "Wardround, train.group_by_length=true": (
        wardround,
        ("train.group_by_length=true", "train.padding=longest"),
    ),
    "Wardround, train.group_by_length=true, train.micro_batches=by_length": (
        wardround,
        ("train.group_by_length=true", "train.micro_batches=by_length"),
    ),
    TRAINER: (hugging_face, ()),
}
# Texts trained on in a measurement: some seconds on two cores.
NUM_TEXTS = {"micro": 96, "tiny": 2048, "minilm": 512, "base": 96}

NOTES = [
    "texts a second: one epoch after a warm-up of one batch in the same process; every run is a"
    " fresh process.",
    "The Trainer pads each batch to its longest text, as its default collator does. Neither "
    "side clips, logs or saves.",
    "micro_batches=by_length keeps the paper's batches and pads less. group_by_length puts "
    "texts of similar length into one batch, so the batches are others.",
    "TFLOP/s count the tokens of the texts without their padding (6 per weight of the encoder "
    "and token, 12 per layer, width and squared length). The peak is a large matrix product in "
    "the same precision.",
]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    return carry_out(read_options(arguments), measure, plot)


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options; `--quick` makes them small."""
    options_of = parser(__doc__ or "")
    options_of.add_argument(
        "--models", type=names, default=("tiny", "base"), metavar="NAME[,NAME…]"
    )
    options_of.add_argument(
        "--precision", type=names, default=("fp32", "bf16"), metavar="fp32[,bf16]"
    )
    options_of.add_argument("--device", default="cpu", help="cpu, cuda …")
    options_of.add_argument("--threads", type=int, default=torch.get_num_threads())
    options_of.add_argument(
        "--texts", type=int, help="how many to train on; by model if left out"
    )
    options_of.add_argument(
        "--only", action="append", metavar="WORDS", help="rows whose name holds them"
    )
    options = options_of.parse_args(arguments)
    options.variants = [
        name
        for name in VARIANTS
        if any(words in name for words in options.only or [""])
    ]
    if options.quick:
        options.models, options.precision, options.repeats = ("micro",), ("fp32",), 1
    return options


def measure(options: argparse.Namespace, folder: Path) -> Report:
    """Measure all rows in turns."""
    samples, notes = Samples(), list(NOTES)
    for model in options.models:
        written = write_model(folder / model, model)
        lengths = ragged_lengths(
            options.texts or NUM_TEXTS[model], MEDIAN_TOKENS, LONGEST
        )
        for precision in options.precision:
            for repeat in range(options.repeats):
                for name in options.variants:
                    train, overrides = VARIANTS[name]
                    say(
                        f"{model}, {precision}, {name}, run {repeat + 1} of {options.repeats}"
                    )
                    job = Job(
                        written,
                        precision,
                        options.device,
                        options.threads,
                        lengths,
                        overrides,
                    )
                    try:
                        speed, peak = isolated(train, job)
                    except NotInstalled as missing:
                        notes.append(str(missing)) if str(
                            missing
                        ) not in notes else None
                        continue
                    row = f"{name}, {model}, {precision}"
                    samples.add(
                        row,
                        speed=speed.texts_a_second,
                        bytes=peak,
                        gpu_bytes=speed.gpu_bytes,
                    )
                    say(f"  {speed.texts_a_second:.1f} texts a second")
    return Report("training", _table(samples, options), samples, notes)


def _table(samples: Samples, options: argparse.Namespace) -> Table:
    columns = [
        "model",
        "precision",
        "what trains",
        "texts/s",
        "of the Trainer",
        "TFLOP/s",
        "of the peak",
    ]
    table = Table([*columns, "peak memory (GiB)", "on the GPU (GiB)"])
    for precision in options.precision:
        peak = peak_flops(
            precision, options.device, options.threads, is_quick=options.quick
        )
        for model in options.models:
            lengths = ragged_lengths(
                options.texts or NUM_TEXTS[model], MEDIAN_TOKENS, LONGEST
            )
            work = SIZES[model].training_flops(lengths) / len(lengths)
            for name in options.variants:
                row, base = (
                    f"{name}, {model}, {precision}",
                    f"{TRAINER}, {model}, {precision}",
                )
                speed = samples.median(row, "speed")
                held, on_gpu = (
                    samples.median(row, key) for key in ("bytes", "gpu_bytes")
                )
                done = None if speed is None else speed * work
                table.rows.append(
                    [
                        *(
                            model,
                            precision,
                            name,
                            speed,
                            samples.ratio(row, base, "speed"),
                        ),
                        *(
                            None if done is None else done / 1e12,
                            None if done is None else done / peak,
                        ),
                        *(
                            None if not size else size / 2**30
                            for size in (held, on_gpu)
                        ),
                    ]
                )
    return table


def plot(report: Report, options: argparse.Namespace) -> None:
    """Draw texts a second, with a panel for each model and precision."""
    panels = {
        f"{model}, {precision}: texts a second": {
            name: report.samples.median(f"{name}, {model}, {precision}", "speed") or 0.0
            for name in options.variants
        }
        for model in options.models
        for precision in options.precision
    }
    draw_bars(options.plot, panels)


if __name__ == "__main__":
    sys.exit(main())
