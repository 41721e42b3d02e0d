"""The steps between training and sending: an ordered table. Settings and plan choose its rows.

Each step takes the update and returns it, changed or not. A step that needs the tensors as they
were trained stands before one that changes them; `encode` steps are last, and exactly one of them
applies.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import isfinite

import numpy as np

from wardround.client.global_model import measure
from wardround.client.site import RealSite, Site
from wardround.client.variates import Variates
from wardround.common.errors import SiteRefusal
from wardround.common.model.flat import Layout, distance, tensor_of
from wardround.common.model.influence import RoundSteps
from wardround.common.model.speaking import Speaking
from wardround.common.settings.tree import Settings
from wardround.common.tasks.sums import Sums
from wardround.common.tasks.task import Task
from wardround.common.wire.arrays import Payload
from wardround.common.wire.forms import EXACT, encode, whole

LOSS_DIGITS = 2
"""Decimal places of the losses that leave a site: all digits would be a fingerprint of the texts.
Simulated clients round their held-out losses as well, so that both give the same numbers."""


@dataclass(frozen=True)
class LocalRound:
    """The facts of one client's round that a step may use."""

    number: int
    """The round, from 1."""
    run: Settings
    """The run's settings, the same at all clients."""
    site: Site
    layout: Layout
    task: Task
    received: np.ndarray  # (P,) fp32, the global tensors
    steps: RoundSteps
    variates: Variates | None = None
    """The control variates of this round, if the run has any."""
    speaking: Speaking | None = None
    """The weight of each text in the update; measured only under a plan."""


@dataclass(frozen=True)
class TrainedUpdate:
    """An update on its way from training to sending."""

    tensors: np.ndarray  # (P,) fp32, as trained
    loss: float
    """Mean training loss."""
    test: Sums | None = None
    """Sums of the received model on the site's held-out texts, if sites evaluate."""
    is_withheld: bool = False
    """True if the sums stay at the site."""
    payload: Payload | None = None
    """The tensors as they are sent; None before they are encoded."""
    norm: float | None = None
    """L2 norm of trained minus received tensors, for the site's ledger; None if it is not
    finite, or the site keeps no ledger."""


@dataclass(frozen=True)
class UpdateStep:
    """One row of the table."""

    name: str
    applies: Callable[[Settings, Site], bool]
    """True if a round with the run's settings has this step at this site."""
    apply: Callable[[TrainedUpdate, LocalRound], TrainedUpdate]


def prepare(update: TrainedUpdate, local: LocalRound) -> TrainedUpdate:
    """Apply all steps of a round, in the order of the table.

    Raises:
        SiteRefusal: the site's policy does not let this update leave.
        ArithmeticError: a trained tensor is not finite, and a lossy form would hide that.
        OSError: state that the site must keep cannot be written.
    """
    for step in steps_for(local.run, local.site):
        update = step.apply(update, local)
    return update


def steps_for(run: Settings, site: Site) -> list[UpdateStep]:
    """Return the steps of a round at a site, in order."""
    return [step for step in STEPS if step.applies(run, site)]


def _has_variates(run: Settings, site: Site) -> bool:
    return run.train.control_variates


def _has_plan(run: Settings, site: Site) -> bool:
    return site.order is not None


def _keeps_state(run: Settings, site: Site) -> bool:
    return site.kept is not None


def _is_shared(run: Settings, site: Site) -> bool:
    return run.transforms.name == EXACT and run.engine.is_simulated


def _has_feedback(run: Settings, site: Site) -> bool:
    is_lossy = run.transforms.name != EXACT
    return is_lossy and run.transforms.error_feedback and _can_carry(run, site)


def _can_carry(run: Settings, site: Site) -> bool:
    return site.carried("residuals", run) is not None


def _is_encoded_alone(run: Settings, site: Site) -> bool:
    return not _is_shared(run, site) and not _has_feedback(run, site)


def _keep_variates(update: TrainedUpdate, local: LocalRound) -> TrainedUpdate:
    """Keep the client's control variate for its next round."""
    assert local.variates is not None, "opened before training"
    local.variates.keep(
        local.number, local.run, local.site, local.received, update.tensors
    )
    return update


def _measure_norm(update: TrainedUpdate, local: LocalRound) -> TrainedUpdate:
    """Measure the norm of the update, for the site's ledger."""
    norm = distance(tensor_of(update.tensors), tensor_of(local.received))
    return replace(update, norm=norm if isfinite(norm) else None)


def _check_speaking(update: TrainedUpdate, local: LocalRound) -> TrainedUpdate:
    """Raise SiteRefusal if almost all of the update comes from a few texts."""
    assert local.speaking is not None, "measured under every plan"
    least = _planned_site(local).file.policy.min_speaking_texts
    found = local.speaking.num_speaking()
    if found < least:
        words = (
            f"the update comes from {found:.1f} texts; "
            f"policy.min_speaking_texts is {least:g}"
        )
        raise SiteRefusal("few_speak", words=words)
    return update


def _keep_yardstick(update: TrainedUpdate, local: LocalRound) -> TrainedUpdate:
    """Keep how far this site moved each tensor, which bounds the next global model."""
    rates = float(local.steps.rates(local.steps.settings.learning_rate).sum())
    held = _planned_site(local).held
    held.keep_yardstick(
        measure(local.layout, update.tensors, local.received, rates, held.yardstick())
    )
    held.wait()
    return update


def _round_loss(update: TrainedUpdate, local: LocalRound) -> TrainedUpdate:
    """Round the training loss."""
    return replace(update, loss=round(update.loss, LOSS_DIGITS))


def _withhold_counts(update: TrainedUpdate, local: LocalRound) -> TrainedUpdate:
    """Take the counts out if the policy keeps them at the site."""
    site = _planned_site(local)
    if update.test is None or not are_withheld(update.test, local.task, site):
        return update
    return replace(update, test=None, is_withheld=True)


def _share(update: TrainedUpdate, local: LocalRound) -> TrainedUpdate:
    """Pass the tensors by reference: inside one machine a lossless form saves nothing."""
    return replace(update, payload=whole(update.tensors))


def _encode_with_feedback(update: TrainedUpdate, local: LocalRound) -> TrainedUpdate:
    """Write the tensors in a lossy form; the loss is added to the next round's update."""
    residuals = local.site.carried("residuals", local.run)
    assert residuals is not None, "the row applies only then"
    run = local.run.to_json()
    residual = residuals.take(run, local.number, len(update.tensors))
    if residual is None:
        residual = np.zeros(len(update.tensors), dtype=np.float32)
    form = local.run.transforms.name
    payload = encode(form, update.tensors, local.received, residual)
    residuals.put(run, local.number, residual)
    return replace(update, payload=payload)


def _encode(update: TrainedUpdate, local: LocalRound) -> TrainedUpdate:
    """Write the tensors in the form that the settings name, relative to the received ones."""
    form = local.run.transforms.name
    return replace(update, payload=encode(form, update.tensors, local.received))


STEPS = (
    UpdateStep("keep_variates", _has_variates, _keep_variates),
    UpdateStep("measure_norm", _keeps_state, _measure_norm),
    UpdateStep("check_speaking", _has_plan, _check_speaking),
    UpdateStep("keep_yardstick", _has_plan, _keep_yardstick),
    UpdateStep("round_loss", _has_plan, _round_loss),
    UpdateStep("withhold_counts", _has_plan, _withhold_counts),
    UpdateStep("share", _is_shared, _share),
    UpdateStep("encode_with_feedback", _has_feedback, _encode_with_feedback),
    UpdateStep("encode", _is_encoded_alone, _encode),
)
"""All steps, in order."""


def are_withheld(counts: Sums, task: Task, site: RealSite) -> bool:
    """Return whether the counts stay at the site: a small one may reveal a single text."""
    smallest = site.file.policy.min_count
    return any(task.has_small_cell(part, smallest) for part in counts.parts)


def _planned_site(local: LocalRound) -> RealSite:
    assert isinstance(local.site, RealSite), "only real sites execute plans"
    return local.site
