"""Train and evaluate a model. Plain PyTorch: no Flower, no files."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from wardround.common.data.batches import evaluation_batches, training_steps
from wardround.common.data.tokens import Batch, TokenisedTexts
from wardround.common.errors import DIVERGED, LossNotFinite
from wardround.common.model.blend import blend_parameters
from wardround.common.model.influence import RoundSteps
from wardround.common.model.padding import sees_padding
from wardround.common.model.speaking import Speaking
from wardround.common.runtime import numpy_stream, precision_context, torch_stream
from wardround.common.settings.train import TrainSettings
from wardround.common.settings.tree import Settings
from wardround.common.tasks.sums import Sums
from wardround.common.tasks.task import BatchSums, Task

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adamw": torch.optim.AdamW,
}


@dataclass(frozen=True)
class Place:
    """The random streams and the arithmetic of one client in one round."""

    seed: int
    round: int
    client: int
    device: torch.device
    precision: str

    def streams(self) -> dict[str, int]:
        """Return the names of the round's random streams."""
        return {"round": self.round, "client": self.client}


def train_epochs(
    model: nn.Module,
    task: Task,
    texts: TokenisedTexts,
    indices: np.ndarray,
    settings: TrainSettings,
    place: Place,
    new_head: Sequence[str] = (),
    frozen: Collection[str] = (),
    correction: Mapping[str, Tensor] | None = None,
    speaking: Speaking | None = None,
) -> float:
    """Train `model` in place for `settings.local_epochs` passes over `texts[indices]`.

    Args:
        task: gives the loss.
        new_head: names of the parameters that pre-training did not bring.
        frozen: names of the parameters that are never trained.
        correction: tensors by parameter name, on the model's device. Every step subtracts them
            as well (SCAFFOLD's control variates, `client/variates.py`).
        speaking: records each text's residual in each step.

    Returns:
        Mean loss over all examples seen in all epochs.

    Raises:
        ValueError: `drop_last` leaves no whole batch.
        LossNotFinite: the loss of an epoch is NaN or infinite.
    """
    steps = RoundSteps(settings, len(indices), place.round)
    groups = _parameter_groups(
        model, settings, place.round, frozenset(new_head), frozen
    )
    _recompute(model, settings.gradient_checkpointing)
    anchored = _anchored(groups) if settings.proximal_mu else []
    optimizer = OPTIMIZERS[settings.optimizer](
        groups,
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
    )
    if speaking is not None:
        speaking.open(len(texts), place.device)
    loss_sum = torch.zeros((), dtype=torch.float64, device=place.device)
    num_seen = 0
    num_steps = 0
    model.train()
    order = numpy_stream(place.seed, "shuffle", **place.streams())
    with torch_stream(place.seed, "dropout", **place.streams(), device=place.device):
        for batches in training_steps(
            texts,
            indices,
            settings,
            order,
            place.device,
            one_width=sees_padding(model),
        ):
            for group in optimizer.param_groups:
                peak = group["peak"]
                group["lr"] = steps.rate(peak, num_steps)
            loss = _add_gradients(model, task, batches, place, num_steps, speaking)
            for parameter, start in anchored:
                if parameter.grad is not None:
                    moved = parameter.detach() - start
                    parameter.grad.add_(moved, alpha=settings.proximal_mu)
            if settings.max_grad_norm is not None:
                torch.nn.utils.clip_grad_norm_(
                    model.parameters(), settings.max_grad_norm
                )
            optimizer.step()
            optimizer.zero_grad()
            if correction is not None:
                _subtract(model, correction)
            # Weight by examples: the last batch may be short and must not count double.
            size = sum(map(len, batches))
            loss_sum += loss * size
            num_seen += size
            num_steps += 1
    mean: float = loss_sum.item() / num_seen
    if not np.isfinite(mean):
        raise LossNotFinite(
            f"the training loss is {mean} after {num_steps} steps: {DIVERGED}; lower "
            f"train.learning_rate (now {settings.learning_rate})"
        )
    return mean


def _parameter_groups(
    model: nn.Module,
    settings: TrainSettings,
    round: int,
    new_head: frozenset[str],
    frozen: Collection[str],
) -> list[dict[str, Any]]:
    """Return the parameters to train in this round, in groups with the peak of their learning rate.

    In the first `head_warmup_rounds` only the new head is trained; then the encoder needs no
    gradients.
    """
    is_warmup = round <= settings.head_warmup_rounds
    head: list[nn.Parameter] = []
    body: list[nn.Parameter] = []
    blends: list[nn.Parameter] = []
    blended = blend_parameters(model)
    for name, parameter in model.named_parameters():
        if name in frozen:
            continue
        parameter.requires_grad_(name in new_head or not is_warmup)
        if name in new_head:
            head.append(parameter)
        elif name in blended:
            blends.append(parameter)
        else:
            body.append(parameter)
    rate = settings.learning_rate
    head_rate = settings.head_learning_rate
    if head_rate is None:
        head_rate = rate
    groups: list[dict[str, Any]] = [{"params": head, "peak": head_rate}]
    if is_warmup:
        return groups
    groups.append({"params": body, "peak": rate})
    if blends:
        groups.append({"params": blends, "peak": rate, "weight_decay": 0})
    return groups


def _recompute(model: Any, is_on: bool) -> None:
    """Set whether the backward pass recomputes activations instead of keeping them.

    The numbers are the same.

    Raises:
        ValueError: the architecture does not support it.
    """
    if is_on == getattr(model, "is_activation_checkpointing", False):
        return
    if not is_on:
        model.activation_checkpointing_disable()
        return
    if not model.supports_gradient_checkpointing:
        raise ValueError(
            f"train.gradient_checkpointing is true, but {type(model).__name__} does not support "
            "it. Set it to false."
        )
    model.activation_checkpointing_enable(
        activation_checkpointing_kwargs={"use_reentrant": False}
    )


def _anchored(groups: Sequence[dict[str, Any]]) -> list[tuple[nn.Parameter, Tensor]]:
    """Return each trained parameter with a copy of its value at the start of the round.

    FedProx (Li et al. 2020, arXiv:1812.06127, equation 2) adds mu/2 ||w - w_t||^2 to the loss,
    and so mu (w - w_t) to the gradient. The reported loss is without it.
    """
    anchored = []
    for group in groups:
        for parameter in group["params"]:
            start = parameter.detach().clone()
            anchored.append((parameter, start))
    return anchored


def _add_gradients(
    model: nn.Module,
    task: Task,
    batches: Sequence[Batch],
    place: Place,
    step: int,
    speaking: Speaking | None,
) -> Tensor:
    """Add the gradients of the mean loss over one step's micro-batches.

    Returns:
        The mean loss, (), detached, still on the device.
    """
    size = sum(map(len, batches))
    mean = torch.zeros((), device=place.device)
    for batch in batches:
        with precision_context(place.precision, place.device):
            logits = forward(model, batch)  # (b, C)
        if speaking is not None:
            residuals = task.residuals(logits.detach().float(), batch.targets)
            rows = batch.rows.to(place.device)
            speaking.note(step, rows, residuals, size)
        # A micro-batch counts by its share of the step, so that the gradients add up to that of
        # the mean.
        share = len(batch) / size
        loss = task.loss(logits.float(), batch.targets) * share
        loss.backward()
        mean += loss.detach()
    return mean


@torch.no_grad()
def _subtract(model: nn.Module, correction: Mapping[str, Tensor]) -> None:
    for name, parameter in model.named_parameters():
        if name in correction:  # frozen parameters have no correction
            parameter.sub_(correction[name])


def forward(model: nn.Module, batch: Batch) -> Tensor:
    """Return the logits, (B, ...)."""
    inputs: dict[str, Any] = {"input_ids": batch.input_ids}
    if batch.attention_mask is not None:
        inputs["attention_mask"] = batch.attention_mask
    logits: Tensor = model(**inputs).logits
    return logits


@torch.no_grad()
def evaluate(
    model: nn.Module,
    task: Task,
    texts: TokenisedTexts,
    indices: np.ndarray,
    settings: Settings,
    device: torch.device,
) -> Sums:
    """Run `model` over the chosen texts, in this order, without training it."""
    model.eval()
    measured: list[BatchSums] = []
    arrays: dict[str, Tensor] = {}
    batches = evaluation_batches(
        texts,
        indices,
        settings.train,
        settings.evaluation.batch_size,
        device,
        one_width=sees_padding(model),
    )
    for batch in batches:
        with precision_context(settings.precision, device):
            logits = forward(model, batch).float()
        found = task.measure(logits, batch.targets)
        measured.append(found)
        for name, array in found.arrays.items():
            before = arrays.get(name)
            arrays[name] = array if before is None else before + array
    assert measured, "nothing to evaluate"
    # Read once, at the end: reading a number makes an accelerator finish its work first.
    losses = torch.stack([found.loss_sum for found in measured])
    scores = torch.stack([found.score for found in measured])
    loss_sum = reduce(add, losses.tolist(), 0.0)
    counted = {name: array.cpu().numpy() for name, array in arrays.items()}
    return task.sums(loss_sum, counted, tuple(scores.tolist()))
