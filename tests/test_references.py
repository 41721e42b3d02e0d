"""Whole runs against independent loops that use neither Flower nor Wardround's training code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.support.runs import history
from tests.support.tiny import Make
from wardround.common.data.dataset import read_texts
from wardround.common.data.partitions import partition
from wardround.common.model.state import open_model
from wardround.common.runtime import numpy_stream, stream_seed
from wardround.common.settings.tree import Settings
from wardround.common.tasks.label import LABEL
from wardround.server.engines.simulate import simulate


def reference_model(settings: Settings) -> Any:
    """Load the pre-trained encoder with transformers, and copy the run's initial head into it."""
    model = AutoModelForSequenceClassification.from_pretrained(
        settings.model.name, num_labels=3
    )
    opened = open_model(settings, ("health", "money", "sport"), fresh=True)
    initial = opened.text_model.model.state_dict()
    head = {
        name: tensor
        for name, tensor in initial.items()
        if name.startswith("classifier")
    }
    assert len(head) == 2
    model.load_state_dict(head, strict=False)
    return model


def encode(settings: Settings) -> tuple[Tensor, Tensor, Tensor]:
    """Return ids, mask and labels of all training texts, padded to max_length by the tokenizer."""
    train = read_texts(LABEL, settings.data, settings.seed).train
    tokenizer = AutoTokenizer.from_pretrained(settings.model.name)
    inputs = tokenizer(
        list(train.texts),
        truncation=True,
        padding="max_length",
        max_length=settings.train.max_length,
        return_tensors="pt",
    )
    return (
        inputs["input_ids"],
        inputs["attention_mask"],
        torch.from_numpy(train.targets),
    )


def train_plainly(
    model: Any,
    settings: Settings,
    data: tuple[Tensor, Tensor, Tensor],
    order: np.ndarray,
) -> None:
    """Train one epoch with SGD over the examples in `order`."""
    optimizer = torch.optim.SGD(model.parameters(), lr=settings.train.learning_rate)
    model.train()
    size = settings.train.batch_size
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        ids, mask, labels = (column[rows] for column in data)
        optimizer.zero_grad()
        logits = model(input_ids=ids, attention_mask=mask).logits
        cross_entropy(logits, labels).backward()
        optimizer.step()


def final_tensors(settings: Settings) -> dict[str, Tensor]:
    """Return the weights of a run's model."""
    return load_file(Path(settings.run_dir) / "model" / "model.safetensors")


def test_one_client_equals_a_plain_loop_bit_for_bit(make_settings: Make) -> None:
    settings = make_settings("num_clients=1", "num_rounds=3", "train.batch_size=5")
    simulate(settings)
    model = reference_model(settings)
    data = encode(settings)
    (indices,) = partition(settings.partition, data[2].numpy(), 1, settings.seed)
    torch.set_num_threads(1)
    for number in (1, 2, 3):
        torch.manual_seed(stream_seed(settings.seed, "dropout", round=number))
        shuffle = numpy_stream(settings.seed, "shuffle", round=number)
        for _ in range(settings.train.local_epochs):
            train_plainly(model, settings, data, shuffle.permutation(indices))
    expected, found = model.state_dict(), final_tensors(settings)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name


@pytest.mark.parametrize("weighting", ["examples", "uniform"])
def test_four_clients_equal_a_hand_written_average(
    make_settings: Make, still_model: Path, weighting: str
) -> None:
    settings = make_settings(
        f"model.name={still_model}",
        "num_clients=4",
        "num_rounds=2",
        "train.shuffle=false",
        "data.train_examples=46",
        f"strategy.weighting={weighting}",
    )
    simulate(settings)
    model, data = reference_model(settings), encode(settings)
    parts = partition(settings.partition, data[2].numpy(), 4, settings.seed)
    assert sorted(len(part) for part in parts) == [11, 11, 12, 12]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for _ in range(2):
        weights = [len(part) if weighting == "examples" else 1 for part in parts]
        total = {
            name: torch.zeros(tensor.shape, dtype=torch.float64)
            for name, tensor in state.items()
        }
        for part, weight in zip(parts, weights, strict=True):
            model.load_state_dict(state)
            for _ in range(settings.train.local_epochs):
                train_plainly(model, settings, data, part)
            for name, tensor in model.state_dict().items():
                total[name] += weight * tensor.double()
        state = {
            name: (tensor / sum(weights)).float() for name, tensor in total.items()
        }
    for name, tensor in final_tensors(settings).items():
        assert torch.equal(tensor, state[name]), name


# AdamW at learning rate 0.02: found on the CPU with one thread, torch 2.13 and transformers 5.23.
GOLDEN_ACCURACY = [1 / 3, 1 / 3, 1 / 3, 1 / 3, 2 / 3]
GOLDEN_LOSS = [1.098652, 1.098846, 1.09746, 1.055977, 0.521779]
GOLDEN_TRAIN_LOSS = [1.099164, 1.086458, 1.06173, 0.830058]


def test_a_tiny_run_has_its_golden_numbers(make_settings: Make) -> None:
    """The numbers of one tiny run: any change of them must be explained."""
    settings = make_settings(
        "num_rounds=4", "train.optimizer=adamw", "train.learning_rate=0.02"
    )
    simulate(settings)
    lines = history(Path(settings.run_dir))
    accuracies = [line["test"]["accuracy"] for line in lines]
    losses = [line["test"]["loss"] for line in lines]
    train_losses = [line["train"]["loss"] for line in lines[1:]]
    assert accuracies == pytest.approx(GOLDEN_ACCURACY)
    assert losses == pytest.approx(GOLDEN_LOSS, abs=1e-3)
    assert train_losses == pytest.approx(GOLDEN_TRAIN_LOSS, abs=1e-3)
