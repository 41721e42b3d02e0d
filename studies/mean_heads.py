"""The mean of K drawn heads before the first training step: `python -m studies.mean_heads`.

For the encoder's own head and for DistilBERT's, K heads are drawn as K sites draw them
(`train.head_init=per_site`), and the encoder gets their mean. Texts of the study pass through it
once, without dropout, and the gradients of their mean loss are measured. All numbers are ratios to
K = 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import sqrt
from statistics import geometric_mean
from typing import Annotated, Any, Literal

import torch
import typer
from torch.nn.functional import cross_entropy

from wardround.common.data.dataset import read_texts
from wardround.common.data.texts import TextData, TextsAndTargets
from wardround.common.model.build import TextModel, build_model
from wardround.common.model.heads import draw_head
from wardround.common.runtime import prepare
from wardround.common.settings.tree import Settings
from wardround.common.tasks.label import LABEL
from wardround.server.compose import compose

HeadName = Literal["own", "distilbert"]
HEADS: dict[HeadName, str] = {
    "own": "pooler and tanh, pre-trained",
    "distilbert": "pre_classifier and ReLU, drawn",
}
NUM_TEXTS = 160
COLUMNS = (
    "length of the head",
    "spread of the logits",
    "gradient of the classifier",
    "of the layer below",
    "of the encoder",
)


def mean_head(classifier: TextModel, seed: int, num_clients: int) -> None:
    """Set the head to the mean of the heads that `num_clients` sites draw, in place."""
    parameters = dict(classifier.model.named_parameters())
    sums = {name: torch.zeros_like(parameters[name]) for name in classifier.new_head}
    for client in range(num_clients):
        draw_head(classifier.model, classifier.new_head, seed, client=client + 1)
        for name, total in sums.items():
            total += parameters[name].detach()
    for name, total in sums.items():
        parameters[name].data.copy_(total / num_clients)


def measure(
    classifier: TextModel, data: TextData[TextsAndTargets], max_length: int
) -> list[float]:
    """Return the numbers of COLUMNS: the norm of the new head's matrices, the standard deviation
    of the logits over the texts (mean over the classes), and three norms of gradients."""
    model: Any = classifier.model.eval()
    model.zero_grad()
    texts = data.train.texts[:NUM_TEXTS]
    inputs = classifier.tokenizer(
        texts,
        truncation=True,
        max_length=max_length,
        padding=True,
        return_tensors="pt",
        return_token_type_ids=False,
    )
    logits = model(**inputs).logits  # (n, C)
    cross_entropy(logits, torch.from_numpy(data.train.targets[:NUM_TEXTS])).backward()
    below = ("pre_classifier.", "pooler.")
    groups: dict[str, list[float]] = {"classifier": [], "below": [], "encoder": []}
    for name, parameter in model.named_parameters():
        group = "below" if any(part in name for part in below) else "encoder"
        group = "classifier" if name.startswith("classifier.") else group
        groups[group].append(
            0.0 if parameter.grad is None else parameter.grad.norm().item()
        )
    length = _norm(
        [model.get_parameter(name).norm().item() for name in classifier.new_head]
    )
    return [
        length,
        float(logits.detach().std(dim=0).mean()),
        *map(_norm, groups.values()),
    ]


def _norm(norms: Sequence[float]) -> float:
    return sqrt(sum(norm**2 for norm in norms))


def table(settings: Settings, counts: Sequence[int], seeds: Sequence[int]) -> str:
    """Return a Markdown table: a line for each head and K, geometric means over the seeds."""
    prepare(settings)
    found: dict[tuple[HeadName, int], list[list[float]]] = {}
    for seed in seeds:
        data = read_texts(LABEL, settings.data, seed)
        for head in HEADS:
            model = replace(settings.model, head=head)
            classifier = build_model(LABEL, model, data.label_names, seed)
            for num_clients in (1, *counts):
                mean_head(classifier, seed, num_clients)
                found.setdefault((head, num_clients), []).append(
                    measure(classifier, data, settings.train.max_length)
                )
    lines = [f"| head | K | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 2) + "|"]
    for (head, num_clients), values in found.items():
        ratios = []
        for mine, one in zip(values, found[head, 1], strict=True):
            ratios.append([a / b for a, b in zip(mine, one, strict=True)])
        means = [
            f"{geometric_mean(column):.2f}" for column in zip(*ratios, strict=True)
        ]
        lines.append(f"| {HEADS[head]} | {num_clients} | {' | '.join(means)} |")
    return "\n".join(lines)


def main(
    clients: Annotated[str, typer.Option(help="K to average over")] = "2,8,16",
    seeds: Annotated[str, typer.Option(help="seeds of the study's runs")] = "0,1,2",
    override: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE, as for a run")
    ] = None,
) -> None:
    """Print the table."""
    settings = compose(
        ["experiment=collapse", "precision=fp32", *(override or [])]
    ).settings
    typer.echo(
        table(
            settings,
            [int(k) for k in clients.split(",")],
            [int(seed) for seed in seeds.split(",")],
        )
    )


if __name__ == "__main__":
    typer.run(main)
