"""Train a pooler for an encoder that has no trained pooler.

    python -m studies.pooler --out outputs/poolers

The encoder is frozen. Its pooler learns next-sentence prediction (Devlin et al. 2019,
arXiv:1810.04805, section 3.1), without labels, on articles that no run of the study trains or tests
on. It writes two model folders. `trained` has the trained pooler. `shuffled` has the same
numbers in another order: a pooler of the same shape and norms that has learned nothing. If
pre-training gave a trained pooler, as for BERT, use `--shuffle-only`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch.nn import functional

from wardround.common.data.dataset import read_texts
from wardround.common.files import write_atomically
from wardround.common.pretrained import load_encoder, load_tokenizer, quietly
from wardround.common.runtime import numpy_stream, prepare
from wardround.common.settings.tree import Settings
from wardround.common.tasks.label import LABEL
from wardround.server.compose import compose

EXPERIMENT = "experiment=collapse"
MAX_TOKENS = 64
BATCH = 64
EPOCHS = 20
LEARNING_RATE = 1e-3
HELD_OUT = 0.1
"""Share of the pairs that is kept for the test."""
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
Pair = tuple[str, str]


def spare_articles(overrides: Sequence[str], seeds: Sequence[int]) -> list[str]:
    """Return the whole texts of the study's data set that no run with these seeds trains or
    tests on."""
    used: set[str] = set()
    articles: dict[str, None] = {}
    for seed in seeds:
        whole = (*overrides, f"seed={seed}", "data.max_words=null")
        drawn, everything = (
            read_texts(LABEL, compose([*whole, *more]).settings.data, seed)
            for more in ((), ("data.train_examples=null", "data.test_examples=null"))
        )
        used |= {*drawn.train.texts, *drawn.test.texts}
        articles |= dict.fromkeys((*everything.train.texts, *everything.test.texts))
    return sorted(text for text in articles if text not in used)


def pairs_of(articles: Sequence[str], seed: int) -> tuple[list[Pair], np.ndarray]:
    """Return pairs of neighbouring sentences (label 1), and as many pairs whose second sentence
    is from another article (label 0).

    Returns:
        Pairs, and their labels, (n,) int64.
    """
    stream = numpy_stream(seed, "pooler.pairs")
    sentences = [_SENTENCE_END.split(" ".join(text.split())) for text in articles]
    pairs: list[Pair] = []
    labels: list[int] = []
    for number, own in enumerate(sentences):
        for first, second in pairwise(own):
            step = 1 + int(stream.integers(len(sentences) - 1))
            other = sentences[(number + step) % len(sentences)]
            pairs.append((first, second))
            pairs.append((first, other[int(stream.integers(len(other)))]))
            labels += [1, 0]
    return pairs, np.array(labels, dtype=np.int64)


@torch.no_grad()
def first_states(encoder: Any, tokenizer: Any, pairs: Sequence[Pair]) -> torch.Tensor:
    """Return the encoder's last state of each pair's first token, (n, H) fp32."""
    found = []
    for start in range(0, len(pairs), BATCH):
        firsts, seconds = zip(*pairs[start : start + BATCH], strict=True)
        inputs = tokenizer(
            list(firsts),
            list(seconds),
            truncation=True,
            max_length=MAX_TOKENS,
            padding=True,
            return_tensors="pt",
        )
        found.append(encoder(**inputs).last_hidden_state[:, 0])
    return torch.cat(found)


def train_pooler(
    pooler: Any, states: torch.Tensor, labels: torch.Tensor, seed: int
) -> tuple[float, float]:
    """Train the pooler in place with AdamW and a temporary classifier.

    Args:
        states: (n, H) fp32, its inputs without the sequence dimension.
        labels: (n,) int64, 0 or 1.

    Returns:
        Accuracy on the held-out last tenth, before (only the classifier is trained) and after.
    """

    def pool(inputs: torch.Tensor) -> torch.Tensor:
        return pooler(inputs[:, None])  # type: ignore[no-any-return]

    before = _fit(pool, (), states, labels, seed)
    after = _fit(pool, pooler.parameters(), states, labels, seed)
    return before, after


def _fit(
    pool: Any, parameters: Any, states: torch.Tensor, labels: torch.Tensor, seed: int
) -> float:
    torch.manual_seed(seed)
    classifier = torch.nn.Linear(states.shape[1], 2)
    optimizer = torch.optim.AdamW(
        [*parameters, *classifier.parameters()], LEARNING_RATE
    )
    num_train = int(len(states) * (1 - HELD_OUT))
    for _ in range(EPOCHS):
        for batch in torch.randperm(num_train).split(BATCH):
            optimizer.zero_grad()
            logits = classifier(pool(states[batch]))
            functional.cross_entropy(logits, labels[batch]).backward()
            optimizer.step()
    with torch.no_grad():
        predicted = classifier(pool(states[num_train:])).argmax(dim=1)
    return float((predicted == labels[num_train:]).float().mean())


@torch.no_grad()
def shuffle(pooler: Any, seed: int) -> None:
    """Permute the numbers of each tensor, in place."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in pooler.parameters():
        order = torch.randperm(parameter.numel(), generator=generator)
        parameter.copy_(parameter.flatten()[order].view_as(parameter))


@torch.no_grad()
def size_of(pooler: Any) -> tuple[float, float]:
    """Return the Frobenius norm of the pooler's matrix and its largest singular value.

    If the two are equal, the matrix has rank one.
    """
    values = torch.linalg.svdvals(pooler.dense.weight)
    return float(values.norm()), float(values[0])


def make(
    settings: Settings, articles: Sequence[str], out: Path
) -> tuple[int, float, float]:
    """Write `out/trained` and `out/shuffled`; return the number of pairs and `train_pooler`'s
    accuracies.

    Raises:
        ValueError: the model has no pooler.
    """
    encoder, tokenizer = _open_encoder(settings)
    pairs, labels = pairs_of(articles, settings.seed)
    # Neighbours in the list are from one article, so the last tenth has its own articles.
    states = first_states(encoder, tokenizer, pairs)
    before, after = train_pooler(
        encoder.pooler, states, torch.from_numpy(labels), settings.seed
    )
    _save(out / "trained", encoder, tokenizer)
    make_shuffled(settings, out / "trained", out)
    return len(pairs), before, after


def make_shuffled(settings: Settings, model: Path | None, out: Path) -> None:
    """Write `out/shuffled` from the model in a folder, or from the model of the settings.

    Raises:
        ValueError: the model has no pooler.
    """
    source = settings.model
    if model is not None:
        source = replace(settings.model, source="hub", name=str(model))
    encoder, tokenizer = _open_encoder(replace(settings, model=source))
    shuffle(encoder.pooler, settings.seed)
    _save(out / "shuffled", encoder, tokenizer)


def _open_encoder(settings: Settings) -> tuple[Any, Any]:
    prepare(settings)
    tokenizer = load_tokenizer(settings.model)
    encoder = load_encoder(settings.model).eval()
    if getattr(encoder, "pooler", None) is None:
        raise ValueError(f"model.name is '{settings.model.name}', which has no pooler.")
    return encoder, tokenizer


def _save(folder: Path, encoder: Any, tokenizer: Any) -> None:
    def fill(place: Path) -> None:
        with quietly():
            encoder.save_pretrained(place)
            tokenizer.save_pretrained(place)

    folder.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(folder, fill)


def main(
    out: Annotated[Path, typer.Option(help="folder for the two model folders")] = Path(
        "outputs/poolers"
    ),
    seeds: Annotated[str, typer.Option(help="seeds of the study's runs")] = "0,1,2",
    override: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE, as for a run")
    ] = None,
    shuffle_only: Annotated[
        bool, typer.Option(help="train nothing: the pooler is already trained")
    ] = False,
) -> None:
    """Train a pooler on articles that the study does not use."""
    overrides = [EXPERIMENT, *(override or [])]
    if shuffle_only:
        make_shuffled(compose(overrides).settings, None, out)
        typer.echo(f"{out}/shuffled")
        return
    articles = spare_articles(overrides, [int(seed) for seed in seeds.split(",")])
    num_pairs, before, after = make(compose(overrides).settings, articles, out)
    typer.echo(
        f"{out}/trained and {out}/shuffled: {len(articles)} articles, {num_pairs} pairs. Accuracy "
        f"on held-out articles (is it the next sentence?): {before:.3f} with the "
        f"pooler as it was, {after:.3f} now."
    )
    start = compose(overrides).settings
    made = {
        name: replace(start.model, source="hub", name=str(out / name))
        for name in ("trained", "shuffled")
    }
    for name, model in {"as it was": start.model, **made}.items():
        norm, largest = size_of(_open_encoder(replace(start, model=model))[0].pooler)
        typer.echo(
            f"norm of the pooler, {name}: {norm:.2f}; largest singular value: {largest:.2f}"
        )


if __name__ == "__main__":
    typer.run(main)
