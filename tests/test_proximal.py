"""FedProx: the pull of the round's global model on a client's weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.runs import hashes
from tests.support.tiny import Make
from wardround.common.data.corpus import open_corpus
from wardround.common.model.state import open_model
from wardround.common.model.train import Place, train_epochs
from wardround.common.tasks.label import LABEL
from wardround.server.engines.simulate import simulate


def trained(settings_of: Make, num_steps: int, mu: float, *more: str) -> torch.Tensor:
    """Return the weights after this many SGD steps on the same batch, (P,) fp32."""
    settings = settings_of(
        f"train.proximal_mu={mu}",
        f"train.local_epochs={num_steps}",
        "train.learning_rate=0.5",
        "train.batch_size=1000",
        "train.optimizer=sgd",
        *more,
    )
    corpus = open_corpus(settings)
    state = open_model(settings, corpus.label_names, fresh=True)
    place = Place(settings.seed, 1, 0, torch.device("cpu"), settings.precision)
    texts = corpus.train
    train_epochs(
        state.text_model.model,
        LABEL,
        texts,
        np.arange(len(texts)),
        settings.train,
        place,
        state.text_model.new_head,
    )
    return state.flat.clone()


def test_the_pull_is_mu_times_the_distance(make_settings: Make) -> None:
    start = open_start(make_settings)
    first, second = (trained(make_settings, num_steps, 0.0) for num_steps in (1, 2))
    # At the start the distance is 0, and so is the pull.
    assert torch.equal(trained(make_settings, 1, 0.25), first)
    # Then w2 = w1 - 1/2 (g + 1/4 (w1 - w0)): one eighth of the distance is undone.
    pulled = trained(make_settings, 2, 0.25)
    torch.testing.assert_close(pulled, second - (first - start) / 8, rtol=0, atol=1e-6)
    assert not torch.allclose(pulled, second, atol=1e-4)


def open_start(settings_of: Make) -> torch.Tensor:
    """Return the weights before any step."""
    settings = settings_of()
    labels = open_corpus(settings).label_names
    return open_model(settings, labels, fresh=True).flat.clone()


def test_frozen_weights_are_not_pulled(make_settings: Make) -> None:
    warmup = "train.head_warmup_rounds=1"
    start = open_start(make_settings)
    pulled = trained(make_settings, 2, 0.25, warmup)
    plain = trained(make_settings, 2, 0.0, warmup)
    moved = plain != start
    assert moved.any()
    assert torch.equal(pulled != start, moved)


def test_a_run_with_a_pull_has_other_numbers(
    make_settings: Make, tmp_path: Path
) -> None:
    for mu in (0, 0.5):
        simulate(
            make_settings(
                f"train.proximal_mu={mu}",
                f"run_dir={tmp_path / str(mu)}",
                "num_rounds=1",
            )
        )
    plain, pulled = (hashes(tmp_path / name) for name in ("0", "0.5"))
    assert plain[0] == pulled[0]
    assert plain[1] != pulled[1]


def test_a_negative_mu_is_refused(make_settings: Make) -> None:
    with pytest.raises(ValueError, match=r"train\.proximal_mu is -1"):
        make_settings("train.proximal_mu=-1")
