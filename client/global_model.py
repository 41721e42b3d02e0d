"""Check that the global model of a request can be the result of the rounds before.

The first model must equal the one that this site computes from its own files. Each later one must
be within a bound of the one before, tensor by tensor (`client/bounds.py`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from wardround.client.bounds import RoundOfPlan, step_norms, tensors_too_far
from wardround.client.held import Held, HeldModel
from wardround.client.yardstick import Yardstick
from wardround.common.errors import SiteRefusal
from wardround.common.model.flat import Layout, tensor_of


def check_global_model(
    received: np.ndarray,
    age: int,
    layout: Layout,
    held: Held,
    plan: RoundOfPlan,
    start: Callable[[], Tensor],
    rehearse: Callable[[], Yardstick],
) -> None:
    """Raise SiteRefusal if the global tensors cannot be the result of the ones before.

    Args:
        received: (P,) fp32.
        age: number of rounds that made them, by the signed request.
        start: computes the first model from this site's own files, (P,) fp32.
        rehearse: trains from that start, sends nothing, and measures the distance.

    Raises:
        SiteRefusal: `another_start` or `too_far`.
    """
    policy = plan.policy
    if age == 0:
        if policy.same_start and not torch.equal(start().cpu(), tensor_of(received)):
            raise SiteRefusal("another_start")
        return
    before = held.model()
    if policy.max_step_ratio is None or (before is None and not policy.same_start):
        return
    if before is None:
        before = HeldModel("", 0, start().cpu().numpy())
    yardstick = held.yardstick() or rehearse()
    allowed = plan.allowed(layout, yardstick, range(before.age + 1, age + 1))
    found = list(
        tensors_too_far(layout, tensor_of(received), tensor_of(before.tensors), allowed)
    )
    if found:
        name, times = max(found, key=lambda item: item[1])
        raise SiteRefusal(
            "too_far",
            words=(
                f"{len(found)} of {len(layout.names)} tensors moved too far "
                f"since round {before.age}; {name} moved {times:.3g} times as far as this site "
                f"allows (policy.max_step_ratio)"
            ),
        )


def measure(
    layout: Layout,
    trained: np.ndarray,
    received: np.ndarray,
    rates: float,
    before: Yardstick | None,
) -> Yardstick:
    """Return this site's yardstick after one more training.

    Args:
        trained, received: (P,) fp32. rates: sum over the steps of the round.
    """
    norms = step_norms(layout, tensor_of(trained), tensor_of(received))
    return Yardstick.of(norms, rates, before)
