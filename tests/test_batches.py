"""Cutting steps by length changes the time, not the result; grouping changes the batches."""

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
    """Texts of these lengths; text i is made of token i."""
    ids = np.repeat(np.arange(len(lengths)), lengths).astype(np.int32)
    return TokenisedTexts(
        ids,
        np.concatenate([[0], np.cumsum(lengths)]),
        np.zeros(len(lengths), np.int64),
        0,
    )


def steps_of(texts: TokenisedTexts, settings: Settings) -> list[list[list[int]]]:
    """For each step, for each micro-batch, the texts in it."""
    steps = training_steps(
        texts, np.arange(len(texts)), settings.train, np.random.default_rng(1), CPU
    )
    return [[batch.input_ids[:, 0].tolist() for batch in step] for step in steps]


def test_a_cut_is_made_where_it_saves_more_than_a_pass_costs() -> None:
    cut = MICRO_BATCHES["by_length"]
    # Cutting off the three short ones saves 3 * 90 tokens, and a pass costs 128.
    parts = cut(np.array([100, 10, 10, 100, 10]), "cpu")
    assert [part.tolist() for part in parts] == [[1, 2, 4], [0, 3]]
    # One short text saves 90: less than a pass.
    assert [part.tolist() for part in cut(np.array([100, 10]), "cpu")] == [[1, 0]]
    # On an accelerator a pass costs more.
    assert len(cut(np.array([100, 10, 10, 100, 10]), "cuda")) == 1


def test_micro_batches_keep_the_papers_batches(make_settings: Make) -> None:
    texts = texts_of([1, 500, 2, 1, 500, 500, 1, 2, 500, 3])
    plain = make_settings("train.batch_size=5", "train.max_length=500")
    cut = make_settings(
        "train.batch_size=5", "train.max_length=500", "train.micro_batches=by_length"
    )
    before, after = steps_of(texts, plain), steps_of(texts, cut)
    assert max(len(step) for step in before) == 1
    assert max(len(step) for step in after) > 1
    assert [sorted(chain(*step)) for step in before] == [
        sorted(chain(*step)) for step in after
    ]


def trained(settings: Settings) -> tuple[torch.Tensor, float, int]:
    """The weights after one client's round over all texts, its loss, and the optimiser's steps."""
    corpus = open_corpus(settings)
    model_state = open_model(settings, corpus.label_names, fresh=True)
    place = Place(settings.seed, 1, 0, CPU, settings.precision)
    indices = np.arange(len(corpus.train))
    steps: list[object] = []
    hook = register_optimizer_step_post_hook(lambda *_: steps.append(None))
    loss = train_epochs(
        model_state.text_model.model,
        LABEL,
        corpus.train,
        indices,
        settings.train,
        place,
    )
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
    """Without dropout, after two epochs: weights differ by 2e-6 of about 0.5, the loss by 1e-6."""
    monkeypatch.setattr(
        "wardround.common.data.batches._PASS_TOKENS", {"cpu": 1}
    )  # cut as much as can be
    common = [
        f"model.name={still_model}",
        "train.batch_size=8",
        f"train.max_grad_norm={clip}",
    ]
    whole, loss, steps = trained(make_settings(*common, f"train.padding={padding}"))
    cut, cut_loss, cut_steps = trained(
        make_settings(
            *common, f"train.padding={padding}", "train.micro_batches=by_length"
        )
    )
    start = open_model(
        make_settings(*common), ("health", "money", "sport"), fresh=True
    ).flat
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
def test_grouping_puts_like_lengths_together(make_settings: Make, shuffle: str) -> None:
    texts = texts_of([9, 1, 8, 2, 7, 3, 6, 4, 5])
    settings = make_settings(
        "train.batch_size=3",
        "train.group_by_length=true",
        "train.padding=longest",
        f"train.shuffle={shuffle}",
    )
    steps = steps_of(
        texts, replace(settings, train=replace(settings.train, local_epochs=1))
    )
    assert sorted(sorted(step[0]) for step in steps) == [
        [0, 2, 4],
        [1, 3, 5],
        [6, 7, 8],
    ]


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
    ("more", "said"),
    [
        (
            ["train.micro_batches=by_length", "train.attention_mask=false"],
            r"train\.micro_batches=by_length",
        ),
        (["train.group_by_length=true"], r"train\.padding=longest"),
    ],
)
def test_what_cannot_be_cut_or_saved_is_refused(
    make_settings: Make, more: list[str], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
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
