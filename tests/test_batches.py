"""Cutting steps by length changes the time, not the result. Grouping changes the batches."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from tests.support.runs import history
from tests.support.tiny import Make
from wardround.common.data.batches import MICRO_BATCHES, training_steps
from wardround.common.data.corpus import open_corpus
from wardround.common.data.tokens import TokenisedTexts
from wardround.common.model.state import open_model
from wardround.common.model.train import Place, train_epochs
from wardround.common.runtime import resolve_attention
from wardround.common.settings.tree import Settings
from wardround.common.tasks.label import LABEL
from wardround.server.engines.simulate import simulate

CPU = torch.device("cpu")


def texts_of(lengths: list[int]) -> TokenisedTexts:
    """Return texts of these lengths. Every token of text i is i."""
    ids = np.repeat(np.arange(len(lengths)), lengths).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    labels = np.zeros(len(lengths), np.int64)
    return TokenisedTexts(ids, offsets, labels, 0)


def steps_of(texts: TokenisedTexts, settings: Settings) -> list[list[list[int]]]:
    """Return the texts in each micro-batch of each step."""
    order = np.random.default_rng(1)
    steps = training_steps(texts, np.arange(len(texts)), settings.train, order, CPU)
    return [[batch.input_ids[:, 0].tolist() for batch in step] for step in steps]


def test_a_step_is_cut_if_that_saves_more_than_a_pass_costs() -> None:
    cut = MICRO_BATCHES["by_length"]
    # Without the three short texts a batch saves 3 * 90 tokens, and a pass costs 128.
    parts = cut(np.array([100, 10, 10, 100, 10]), "cpu")
    assert [part.tolist() for part in parts] == [[1, 2, 4], [0, 3]]
    # One short text saves 90 tokens, less than a pass costs.
    assert [part.tolist() for part in cut(np.array([100, 10]), "cpu")] == [[1, 0]]
    # On an accelerator a pass costs more.
    assert len(cut(np.array([100, 10, 10, 100, 10]), "cuda")) == 1


def test_micro_batches_keep_the_papers_batches(make_settings: Make) -> None:
    texts = texts_of([1, 500, 2, 1, 500, 500, 1, 2, 500, 3])
    words = ("train.batch_size=5", "train.max_length=500")
    plain = steps_of(texts, make_settings(*words))
    cut = steps_of(texts, make_settings(*words, "train.micro_batches=by_length"))
    assert max(len(step) for step in plain) == 1
    assert max(len(step) for step in cut) > 1
    assert [sorted(chain(*step)) for step in plain] == [
        sorted(chain(*step)) for step in cut
    ]


def trained(settings: Settings) -> tuple[torch.Tensor, float, int]:
    """Train one client for a round. Return its weights, its loss and its number of steps."""
    corpus = open_corpus(settings)
    model_state = open_model(settings, corpus.label_names, fresh=True)
    place = Place(settings.seed, 1, 0, CPU, settings.precision)
    indices = np.arange(len(corpus.train))
    steps: list[object] = []
    hook = register_optimizer_step_post_hook(lambda *_: steps.append(None))
    model = model_state.text_model.model
    loss = train_epochs(model, LABEL, corpus.train, indices, settings.train, place)
    hook.remove()
    return model_state.flat.clone(), loss, len(steps)


@pytest.mark.parametrize("padding", ["max_length", "longest"])
@pytest.mark.parametrize("clip", ["null", "0.1"])
def test_micro_batches_equal_the_whole_batch(
    make_settings: Make,
    still_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    padding: str,
    clip: str,
) -> None:
    """There is no dropout. After two epochs weights of about 0.5 differ by at most 2e-6."""
    # If a pass costs next to nothing, steps are cut as often as possible.
    monkeypatch.setattr("wardround.common.data.batches._PASS_TOKENS", {"cpu": 1})
    common = [
        f"model.name={still_model}",
        "train.batch_size=8",
        f"train.max_grad_norm={clip}",
        f"train.padding={padding}",
    ]
    whole, loss, steps = trained(make_settings(*common))
    cut, cut_loss, cut_steps = trained(
        make_settings(*common, "train.micro_batches=by_length")
    )
    labels = ("health", "money", "sport")
    start = open_model(make_settings(*common), labels, fresh=True).flat
    assert (whole - start).abs().max() > 1e-2
    assert not torch.equal(whole, cut)
    assert torch.allclose(whole, cut, rtol=0, atol=2e-6)
    assert cut_loss == pytest.approx(loss, abs=1e-6)
    assert cut_steps == steps == 12


def test_a_run_with_micro_batches_repeats_itself(
    make_settings: Make, tmp_path: Path
) -> None:
    hashes = []
    for name in ("first", "second"):
        simulate(
            make_settings("train.micro_batches=by_length", f"run_dir={tmp_path / name}")
        )
        hashes.append([line["model_sha256"] for line in history(tmp_path / name)])
    assert hashes[0] == hashes[1]


@pytest.mark.parametrize("shuffle", ["true", "false"])
def test_grouping_puts_similar_lengths_together(
    make_settings: Make, shuffle: str
) -> None:
    texts = texts_of([9, 1, 8, 2, 7, 3, 6, 4, 5])
    settings = make_settings(
        "train.batch_size=3",
        "train.group_by_length=true",
        "train.padding=longest",
        f"train.shuffle={shuffle}",
    )
    once = replace(settings, train=replace(settings.train, local_epochs=1))
    groups = sorted(sorted(step[0]) for step in steps_of(texts, once))
    assert groups == [[0, 2, 4], [1, 3, 5], [6, 7, 8]]


def test_grouping_with_drop_last_leaves_out_a_random_text(make_settings: Make) -> None:
    texts = texts_of([9, 1, 8, 2, 7])
    settings = make_settings(
        "train.batch_size=2",
        "train.group_by_length=true",
        "train.padding=longest",
        "train.drop_last=true",
    )
    left_out = set()
    for seed in range(20):
        order = np.random.default_rng(seed)
        steps = training_steps(texts, np.arange(5), settings.train, order, CPU)
        seen = [batch.input_ids[:, 0].tolist() for (batch,) in steps]
        assert len(seen) == 4
        left_out |= set(range(5)) - set(chain(*seen[:2]))
    assert left_out == set(range(5))


@pytest.mark.parametrize(
    ("more", "pattern"),
    [
        (
            ["train.micro_batches=by_length", "train.attention_mask=false"],
            r"^train\.micro_batches=by_length .*train\.attention_mask=false",
        ),
        (
            ["train.group_by_length=true"],
            r"^train\.group_by_length=true .*Set train\.padding=longest",
        ),
    ],
)
def test_micro_batches_without_a_mask_and_groups_that_save_nothing_are_refused(
    make_settings: Make, more: list[str], pattern: str
) -> None:
    with pytest.raises(ValueError, match=pattern):
        make_settings(*more)


@pytest.mark.parametrize(
    ("more", "device", "chosen"),
    [
        ([], "cpu", None),
        ([], "cuda", None),
        (["precision=bf16"], "cpu", "eager"),
        (["precision=bf16"], "cuda", None),
        (["precision=bf16", "attention=sdpa"], "cpu", "sdpa"),
    ],
)
def test_attention_follows_device_and_precision(
    make_settings: Make, more: list[str], device: str, chosen: str | None
) -> None:
    assert resolve_attention(make_settings(*more), torch.device(device)) == chosen


def test_the_model_is_built_with_the_attention_asked_for(make_settings: Make) -> None:
    for more, built in (([], "sdpa"), (["attention=eager"], "eager")):
        settings = make_settings(*more)
        config: Any = open_model(settings, ("a", "b")).text_model.model.config
        assert config._attn_implementation == built
