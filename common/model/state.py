"""The model that one process keeps between messages, in one flat buffer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import sqrt

import numpy as np
import torch
from torch import Tensor

from wardround.common.model.adapters import add_adapters
from wardround.common.model.build import TextModel, build_model
from wardround.common.model.flat import Layout, flatten_model, move_model
from wardround.common.model.frozen import freeze_embeddings
from wardround.common.model.heads import shrink_head
from wardround.common.model.padding import check_width
from wardround.common.runtime import prepare, resolve_attention
from wardround.common.settings.tree import Settings
from wardround.common.tasks.table import task_of


@dataclass(frozen=True)
class ModelState:
    """The resident model. Its `flat` buffer is overwritten by every use: load it before."""

    text_model: TextModel
    layout: Layout
    flat: Tensor  # (layout.size,) fp32 on `device`; the model's parameters are views of it
    device: torch.device

    def numbers(self) -> np.ndarray:
        """Return the weights, (layout.size,) fp32. On the CPU they are the buffer itself."""
        numbers: np.ndarray = self.flat.detach().cpu().numpy()
        return numbers

    @property
    def hidden_size(self) -> int | None:
        """Width of the model's layers; None if its configuration does not name it."""
        config = self.text_model.model.config.get_text_config()
        return getattr(config, "hidden_size", None)

    def load(self, tensors: Tensor) -> None:
        """Make `tensors`, (layout.size,) fp32 on any device, the model's weights."""
        self.flat.copy_(tensors)


_kept: tuple[tuple[object, ...], ModelState] | None = None


def open_model(
    settings: Settings, label_names: tuple[str, ...], *, fresh: bool = False
) -> ModelState:
    """Return the resident model of this process; build it if there is none, or if `fresh` is true.

    A fresh model has its initial weights; a resident model has the weights that were trained last.

    Raises:
        ValueError: the model or the device does not exist.
    """
    global _kept
    device = prepare(settings)
    attention = resolve_attention(settings, device)
    is_shrunk = settings.train.head_init == "shared_shrunk"
    head_scale = 1 / sqrt(settings.num_taking_part) if is_shrunk else 1.0
    frozen = settings.train.frozen
    parts = (settings.model, settings.adapters, frozen, label_names, settings.seed)
    train = settings.train
    width = (train.max_length, train.attention_mask)
    key = (*parts, head_scale, device, attention, width)
    if fresh or _kept is None or _kept[0] != key:
        _kept = None  # free the old model before the new one is built
        text_model = build_model(
            task_of(settings), settings.model, label_names, settings.seed, attention
        )
        check_width(
            text_model.model,
            text_model.tokenizer,
            train.max_length,
            train.attention_mask,
        )
        if is_shrunk:
            shrink_head(text_model.model, text_model.new_head, head_scale)
        if frozen == "embeddings":
            text_model = freeze_embeddings(text_model)
        if settings.adapters.name != "none":
            text_model = add_adapters(text_model, settings.adapters, settings.seed)
        layout, flat = flatten_model(text_model.model, device, text_model.frozen)
        _kept = (key, ModelState(text_model, layout, flat, device))
    _require_new_head(settings, _kept[1].text_model)
    return _kept[1]


def _require_new_head(settings: Settings, text_model: TextModel) -> None:
    train = settings.train
    if not text_model.new_head and (
        train.head_learning_rate is not None or train.head_warmup_rounds
    ):
        raise ValueError(
            f"train.head_learning_rate is {train.head_learning_rate} and train.head_warmup_rounds "
            f"is {train.head_warmup_rounds}, but '{settings.model.name}' brings its whole head, so "
            "that none of it is new. Set them to null and 0, or name a model without a trained "
            "head."
        )


def move_into(flat: Tensor) -> None:
    """Move the resident model into `flat`, (layout.size,) fp32 on its device; weights are lost."""
    global _kept
    assert _kept is not None, "no model is resident"
    key, state = _kept
    if state.flat is not flat:
        move_model(state.text_model.model, state.layout, flat)
        _kept = (key, replace(state, flat=flat))
