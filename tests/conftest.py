"""Tiny models and texts: real architectures and file formats, random weights, no network."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

# A program that a shell runs in the background ignores Ctrl-C, and so do the programs it starts.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# A test may neither ask a hub nor wait for one.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest

from tests.support.door import CommandResult, changed, tiny, wardround
from tests.support.tiny import Make, write_model, write_texts
from wardround.common.settings.tree import Settings
from wardround.server.compose import compose


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the longest files first: real processes, then slow ones; workers then end together."""
    weights: dict[Path, int] = {}
    for item in items:
        marks = {mark.name for mark in item.iter_markers()}
        weights[item.path] = (
            weights.get(item.path, 0) + 5 * ("e2e" in marks) + ("slow" in marks)
        )
    items.sort(key=lambda item: -weights[item.path])


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep token ids in a folder of this test session."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of 2 layers x 16."""
    return write_model(tmp_path_factory.mktemp("models") / "tiny", "bert")


@pytest.fixture(scope="session")
def still_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same BERT without dropout."""
    return write_model(tmp_path_factory.mktemp("models") / "still", "bert", dropout=0.0)


@pytest.fixture(scope="session")
def tiny_texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 labelled texts of 3 topics."""
    return write_texts(tmp_path_factory.mktemp("texts") / "texts.csv", 48, seed=0)


@pytest.fixture(scope="session")
def tiny_test_texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 other texts of the same topics."""
    return write_texts(tmp_path_factory.mktemp("texts") / "test.csv", 30, seed=1)


@pytest.fixture
def overrides(
    tiny_model: Path, tiny_texts: Path, tiny_test_texts: Path, tmp_path: Path
) -> list[str]:
    """A run of seconds: three rounds of the tiny model on the tiny texts."""
    one_round = tiny(tiny_model, tiny_texts, tiny_test_texts, tmp_path / "run")
    more = ("num_clients=3", "num_rounds=3", "seed=7", "train.batch_size=4")
    # Without this word, a client trains for the protocol's two epochs.
    one_epoch = "train.local_epochs=1"
    return [text for text in changed(one_round, *more) if text != one_epoch]


@pytest.fixture(scope="session")
def learned_run(
    tiny_model: Path,
    tiny_texts: Path,
    tiny_test_texts: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[list[str], CommandResult]:
    """Overrides and output of a run whose model has learned the three topics.

    Tests must not change its folder.
    """
    # AdamW learns them in three rounds, so the model gives different labels.
    learning = [
        "num_rounds=3",
        "train.optimizer=adamw",
        "train.learning_rate=0.005",
        "train.local_epochs=8",
    ]
    run_dir = tmp_path_factory.mktemp("learned") / "run"
    overrides = changed(
        tiny(tiny_model, tiny_texts, tiny_test_texts, run_dir), *learning
    )
    said = wardround("simulate", *overrides)
    assert said.code == 0, said.err
    return overrides, said


@pytest.fixture
def make_settings(overrides: list[str]) -> Make:
    """Settings of the tiny run, with more overrides on top."""

    def make(*more: str) -> Settings:
        return compose(changed(overrides, *more)).settings

    return make
