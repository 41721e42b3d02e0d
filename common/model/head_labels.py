"""The classifier that a checkpoint brings: its output layer, in the run's order of labels."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def put_in_order(model: PreTrainedModel, order: Sequence[int]) -> None:
    """Put the outputs of the classifier into this order, in place. Args: order: of `order_of`."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name in output_layer(model):
            parameter = parameters[name]
            parameter.copy_(parameter[list(order)].clone())


def output_layer(model: PreTrainedModel) -> list[str]:
    """Return the names of the parameters with one row for each label, (C, ...).

    They are those whose shape is another if the model has one label more.
    """
    config = copy.deepcopy(model.config)
    config.num_labels = len(config.id2label or ()) + 1
    with torch.device("meta"):
        wider = dict(type(model)(config).named_parameters())
    return [
        name
        for name, parameter in model.named_parameters()
        if name in wider and wider[name].shape != parameter.shape
    ]
