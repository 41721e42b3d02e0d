"""Train and evaluate a classifier. Plain PyTorch: no Flower, no files."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from wardround.common.data.batches import evaluation_batches, training_steps
from wardround.common.data.tokens import Batch, TokenisedTexts
from wardround.common.errors import DIVERGED, LossNotFinite
from wardround.common.model.blend import blend_parameters
from wardround.common.model.influence import RoundSteps, Speaking
from wardround.common.runtime import numpy_stream, precision_context, torch_stream
from wardround.common.settings.train import TrainSettings
from wardround.common.settings.tree import Settings
from wardround.common.tasks.sums import Sums

if TYPE_CHECKING:
    from torch import Tensor, nn

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adamw": torch.optim.AdamW,
}


@dataclass(frozen=True)
class Place:
    """Which random streams and which arithmetic one client uses in one round."""

    seed: int
    round: int
    client: int
    device: torch.device
    precision: str


def train_epochs(
    model: nn.Module,
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
        new_head: names of the parameters that pre-training did not bring.
        frozen: names of those that are never trained.
        correction: by name, on the model's device, what every step takes away from a parameter besides: of
            SCAFFOLD's control variates (`client/variates.py`).
        speaking: is told how every text was answered in the step that it stands in.

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
    num_seen = num_steps = 0
    model.train()
    streams = {"round": place.round, "client": place.client}
    order = numpy_stream(place.seed, "shuffle", **streams)
    with torch_stream(place.seed, "dropout", **streams, device=place.device):
        for batches in training_steps(texts, indices, settings, order, place.device):
            for group in optimizer.param_groups:
                group["lr"] = steps.rate(group["peak"], num_steps)
            loss = _add_gradients(model, batches, place, num_steps, speaking)
            for parameter, start in anchored:
                if parameter.grad is not None:
                    parameter.grad.add_(
                        parameter.detach() - start, alpha=settings.proximal_mu
                    )
            if settings.max_grad_norm is not None:
                torch.nn.utils.clip_grad_norm_(
                    model.parameters(), settings.max_grad_norm
                )
            optimizer.step()
            optimizer.zero_grad()
            if correction is not None:
                _take_away(model, correction)
            # Weight by examples: the last batch may be short and must not count double.
            size = sum(map(len, batches))
            loss_sum += loss * size
            num_seen += size
            num_steps += 1
    mean: float = loss_sum.item() / num_seen
    if not np.isfinite(mean):
        raise LossNotFinite(
            f"the training loss is {mean} after {num_steps} steps: {DIVERGED}; lower train.learning_rate "
            f"(now {settings.learning_rate})"
        )
    return mean


def _parameter_groups(
    model: nn.Module,
    settings: TrainSettings,
    round: int,
    new_head: frozenset[str],
    frozen: Collection[str],
) -> list[dict[str, Any]]:
    """What is trained in this round, each with the peak of its learning rate.

    In the first `head_warmup_rounds` that is the new head alone; the encoder then needs no gradients.
    """
    is_warmup = round <= settings.head_warmup_rounds
    head: list[nn.Parameter] = []
    body: list[nn.Parameter] = []
    blends: list[nn.Parameter] = []
    blended = blend_parameters(model)
    for name, parameter in model.named_parameters():
        if name in frozen:
            continue
        (head if name in new_head else blends if name in blended else body).append(
            parameter
        )
        parameter.requires_grad_(name in new_head or not is_warmup)
    peak = (
        settings.learning_rate
        if settings.head_learning_rate is None
        else settings.head_learning_rate
    )
    groups: list[dict[str, Any]] = [{"params": head, "peak": peak}]
    if is_warmup:
        return groups
    groups.append({"params": body, "peak": settings.learning_rate})
    return (
        [*groups, {"params": blends, "peak": settings.learning_rate, "weight_decay": 0}]
        if blends
        else groups
    )


def _recompute(model: Any, is_on: bool) -> None:
    """Whether a backward pass computes activations again instead of keeping them: the same numbers.

    Raises:
        ValueError: the architecture cannot.
    """
    if is_on == getattr(model, "is_activation_checkpointing", False):
        return
    if not is_on:
        model.activation_checkpointing_disable()
        return
    if not model.supports_gradient_checkpointing:
        raise ValueError(
            f"train.gradient_checkpointing is true, which {type(model).__name__} cannot do. Set it to false."
        )
    model.activation_checkpointing_enable(
        activation_checkpointing_kwargs={"use_reentrant": False}
    )


def _anchored(groups: Sequence[dict[str, Any]]) -> list[tuple[nn.Parameter, Tensor]]:
    """What is trained, each beside a copy of where the round starts.

    FedProx (Li et al. 2020, arXiv:1812.06127, equation 2) adds mu/2 ||w - w_t||^2 to the loss, and so
    mu (w - w_t) to the gradient. The loss that is told is without it.
    """
    return [
        (parameter, parameter.detach().clone())
        for group in groups
        for parameter in group["params"]
    ]


def _add_gradients(
    model: nn.Module,
    batches: Sequence[Batch],
    place: Place,
    step: int,
    speaking: Speaking | None,
) -> Tensor:
    """Gradients of the mean loss over one step's micro-batches; returns it, detached, still on the device."""
    size = sum(map(len, batches))
    mean = torch.zeros((), device=place.device)
    for batch in batches:
        with precision_context(place.precision, place.device):
            logits = forward(model, batch)  # (b, C)
        if speaking is not None:
            speaking.note(step, batch.rows.to(place.device), logits, batch.labels, size)
        # A micro-batch counts by its share of the step, so that the gradients add up to that of the mean.
        loss = cross_entropy(logits.float(), batch.labels) * (len(batch) / size)
        loss.backward()
        mean += loss.detach()
    return mean


@torch.no_grad()
def _take_away(model: nn.Module, correction: Mapping[str, Tensor]) -> None:
    for name, parameter in model.named_parameters():
        if name in correction:  # what adapters freeze does not travel, and needs none
            parameter.sub_(correction[name])


def forward(model: nn.Module, batch: Batch) -> Tensor:
    """Logits, (B, C)."""
    inputs: dict[str, Any] = {"input_ids": batch.input_ids}
    if batch.attention_mask is not None:
        inputs["attention_mask"] = batch.attention_mask
    logits: Tensor = model(**inputs).logits
    return logits


@torch.no_grad()
def evaluate(
    model: nn.Module,
    texts: TokenisedTexts,
    indices: np.ndarray,
    settings: Settings,
    device: torch.device,
) -> Sums:
    """Run `model` over the chosen texts, in this order, without training it."""
    model.eval()
    losses: list[Tensor] = []
    accuracies: list[Tensor] = []
    confusion: Tensor | int = 0
    for batch in evaluation_batches(
        texts, indices, settings.train, settings.evaluation.batch_size, device
    ):
        with precision_context(settings.precision, device):
            logits = forward(model, batch).float()  # (B, C)
        predicted = logits.argmax(dim=1)
        losses.append(cross_entropy(logits, batch.labels, reduction="sum"))
        num_classes = logits.shape[1]
        cells = torch.bincount(
            batch.labels * num_classes + predicted, minlength=num_classes**2
        )
        confusion = confusion + cells.view(num_classes, num_classes)
        accuracies.append((predicted == batch.labels).float().mean())
    assert isinstance(confusion, torch.Tensor), "nothing to evaluate"
    # Read once, at the end: reading a number makes an accelerator finish its work first.
    loss_sum = reduce(add, torch.stack(losses).tolist(), 0.0)
    return Sums(
        loss_sum, confusion.cpu().numpy(), tuple(torch.stack(accuracies).tolist())
    )
