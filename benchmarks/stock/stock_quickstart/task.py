"""Build the classifier and train it, plainly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, logging

logging.set_verbosity_error()


def get_model(folder: str) -> torch.nn.Module:
    """The encoder in `folder` with a new head of two labels."""
    model: torch.nn.Module = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=2
    )
    return model


def load_data(
    file: str, partition: int, num_partitions: int
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """This client's token ids (n, T) and labels (n,); None where no file is given."""
    if not file:
        return None
    content: dict[str, Any] = json.loads(Path(file).read_text(encoding="utf-8"))
    input_ids = torch.tensor(content["input_ids"])[partition::num_partitions]
    return input_ids, torch.tensor(content["labels"])[partition::num_partitions]


@torch.no_grad()
def perturb(model: torch.nn.Module) -> None:
    """Stand in for training: Flower would not send tensors again that are the same as before."""
    for parameter in model.parameters():
        parameter.add_(1e-6 * torch.randn(()))


def train_epoch(
    model: torch.nn.Module,
    data: tuple[torch.Tensor, torch.Tensor],
    learning_rate: float,
    batch_size: int,
) -> float:
    """One epoch of SGD; the last batch's loss."""
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate)
    model.train()
    loss = torch.zeros(())
    for input_ids, labels in zip(
        data[0].split(batch_size), data[1].split(batch_size), strict=True
    ):
        loss = model(input_ids=input_ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return loss.item()
