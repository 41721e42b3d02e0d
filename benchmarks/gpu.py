"""A GPU and this machine's CPU: do both compute the same run, and how fast is each?

    python -m benchmarks.gpu

First the same simulated run (MiniLM without dropout on BBC news, the extra `demo`) on the CPU
and, in several ways, on the GPU; then, with `benchmarks.training`, texts a second in fp32 and
bf16, also of the Trainer of Hugging Face. `--device cpu` runs everything on the CPU, as a
trial.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import copytree

import torch

from benchmarks import training
from benchmarks.report import Report, Samples, Table, carry_out, names, parser, say
from wardround.common.pretrained import locate
from wardround.common.tasks.label import LABEL
from wardround.server.compose import compose
from wardround.server.record import RoundRecord
from wardround.server.run_folder import RunFolder

_REFERENCE = "cpu, fp32"


@dataclass(frozen=True)
class Way:
    """One way to compute the run."""

    name: str
    on_gpu: bool
    overrides: tuple[str, ...] = ()


WAYS = (
    Way(_REFERENCE, on_gpu=False),
    Way("gpu, fp32", on_gpu=True),
    Way("gpu, fp32, once more", on_gpu=True),
    Way("gpu, fp32, 4 workers", on_gpu=True, overrides=("engine.workers=4",)),
    Way("gpu, bf16", on_gpu=True, overrides=("precision=bf16",)),
)
# Of the training benchmark's rows: the paper's, the fastest, and the one beside which they stand.
_TRAINED = [
    name
    for name in training.VARIANTS
    if "paper" in name or "true, " in name or name == training.TRAINER
]
NOTES = [
    "s/round: training, averaging and measuring, the mean of the rounds after the first.",
    f"most apart: the largest difference of test accuracy to '{_REFERENCE}' over all rounds.",
    f"model apart: L2 distance of the last global model to that of '{_REFERENCE}', divided by "
    "the distance between the first and the last model of that run. Dropout is off, because a "
    "CPU and a GPU draw other numbers for it.",
]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    return carry_out(read_options(arguments), measure, training.plot)


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options; `--quick` makes them small."""
    options_of = parser(__doc__ or "")
    options_of.add_argument(
        "--models", type=names, default=("base",), metavar="NAME[,NAME…]"
    )
    options_of.add_argument(
        "--precision", type=names, default=("fp32", "bf16"), metavar="fp32[,bf16]"
    )
    options_of.add_argument("--device", default="cuda", help="the GPU")
    options_of.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="of the CPU"
    )
    options_of.add_argument(
        "--texts",
        type=int,
        default=4096,
        help="how many to train on for texts a second",
    )
    options_of.add_argument("--clients", type=int, default=4)
    options_of.add_argument("--rounds", type=int, default=5)
    options_of.add_argument("--train-examples", type=int, default=640)
    options_of.add_argument("--test-examples", type=int, default=400)
    options = options_of.parse_args(arguments)
    options.variants = list(_TRAINED)
    if options.quick:
        options.models, options.precision, options.repeats, options.texts = (
            ("micro",),
            ("fp32",),
            1,
            48,
        )
        options.clients, options.rounds, options.variants = 2, 2, options.variants[:1]
        options.train_examples, options.test_examples = 32, 20
    return options


def measure(options: argparse.Namespace, folder: Path) -> Report:
    """Measure the runs one after the other, then the training."""
    model = _without_dropout(folder / "model")
    runs = {way.name: _run(way, model, options, folder) for way in WAYS}
    start = _run(
        Way("start", on_gpu=False, overrides=("num_rounds=0",)), model, options, folder
    )
    report = training.measure(options, folder)
    report.name = "gpu"
    report.more["The same run, computed in other ways"] = _compare(
        runs, start, report.samples
    )
    report.notes += NOTES
    if options.device != "cpu":
        card = torch.cuda.get_device_properties(torch.device(options.device))
        report.notes.append(
            f"GPU: {card.name}, {card.total_memory / 2**30:.0f} GiB, {_cuda()}."
        )
    return report


def _cuda() -> str:
    return f"CUDA {torch.version.cuda}"


def _without_dropout(folder: Path) -> Path:
    """Return a folder with MiniLM without dropout, and its tokenizer."""
    settings = compose(["model=minilm"]).settings.model
    copytree(locate(settings), folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def _run(way: Way, model: Path, options: argparse.Namespace, folder: Path) -> RunFolder:
    say(way.name)
    path = folder / way.name.replace(", ", "-").replace(" ", "-")
    words = [
        *(f"device={options.device if way.on_gpu else 'cpu'}", f"run_dir={path}"),
        *(
            "model=hf",
            f"model.name={model}",
            "data=bbc_news",
            f"num_clients={options.clients}",
            f"num_rounds={options.rounds}",
        ),
        *(
            f"data.train_examples={options.train_examples}",
            f"data.test_examples={options.test_examples}",
        ),
        *("train.local_epochs=1", "train.learning_rate=0.05", "train.max_length=64"),
        f"threads={options.threads}",
    ]
    quiet = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [
        sys.executable,
        "-m",
        "wardround.server.cli",
        "simulate",
        *words,
        *way.overrides,
    ]
    subprocess.run(command, check=True, env=quiet, stdout=sys.stderr)
    run = RunFolder(path)
    say(f"  {_seconds_a_round(run.history()):.2f} s a round")
    return run


def _compare(runs: dict[str, RunFolder], start: RunFolder, samples: Samples) -> Table:
    columns = [
        "how",
        "s/round",
        "times as fast",
        "last accuracy",
        "most apart (points)",
        "model apart",
    ]
    table = Table([*columns, "same bits as"])
    histories = {name: run.history() for name, run in runs.items()}
    for name, history in histories.items():
        seconds = _seconds_a_round(history)
        samples.add(
            name,
            seconds_a_round=seconds,
            **{f"accuracy_{at.round}": _accuracy(at) for at in history},
        )
        apart = max(
            abs(_accuracy(ours) - _accuracy(theirs))
            for ours, theirs in zip(history, histories[_REFERENCE], strict=True)
        )
        same = [
            other
            for other in histories
            if other != name and _hashes(histories[other]) == _hashes(history)
        ]
        table.rows.append(
            [
                *(
                    name,
                    seconds,
                    _seconds_a_round(histories[_REFERENCE]) / seconds,
                    _accuracy(history[-1]),
                ),
                *(
                    100 * apart,
                    _distance(runs[name], runs[_REFERENCE], start),
                    ", ".join(same) or None,
                ),
            ]
        )
    return table


def _accuracy(record: RoundRecord) -> float:
    score = record.score(LABEL)
    assert score is not None, "the server measures every round"
    return score


def _hashes(history: Sequence[RoundRecord]) -> list[str | None]:
    return [record.model_sha256 for record in history]


def _seconds_a_round(history: Sequence[RoundRecord]) -> float:
    """Return the seconds of training, averaging and measuring, without the first round."""
    later = history[2:] or history[1:] or history
    return sum(
        sum(filter(None, record.seconds.model_dump().values())) for record in later
    ) / len(later)


def _distance(ours: RunFolder, theirs: RunFolder, start: RunFolder) -> float:
    """Return |ours - theirs| / |theirs - start|, of the global models."""
    a, b, origin = (_tensors(run) for run in (ours, theirs, start))
    return float((a - b).norm() / (b - origin).norm())


def _tensors(run: RunFolder) -> torch.Tensor:
    checkpoint = run.load_checkpoint()
    assert checkpoint is not None, f"{run.path} has no checkpoint"
    return torch.cat(
        [tensor.flatten().double() for _, tensor in sorted(checkpoint.tensors.items())]
    )


if __name__ == "__main__":
    sys.exit(main())
