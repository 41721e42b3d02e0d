"""The costs of a plan at this site: bytes, and seconds measured on its own texts.

Nothing is sent, and nothing of the measured steps is kept.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from wardround.client.answers import Answers
from wardround.client.decisions import sizes_of
from wardround.client.kit.words.plan import Costs, Here
from wardround.client.loading import check_model_file, train_once
from wardround.client.plans import Known
from wardround.client.policy.limits import Limits, Refusal
from wardround.client.policy.verdict import refusals_of
from wardround.client.site import Examples, RealSite
from wardround.client.site_file import SiteFile
from wardround.client.sizes import Sizes, size_refusals
from wardround.client.versions import Versions
from wardround.common.errors import SiteRefusal
from wardround.common.model.state import ModelState, open_model
from wardround.common.settings.tree import Settings
from wardround.common.words import printable_day

_STEP_TEXTS = 8
_READING = 1 / 3
"""Time to read a text, as a share of the time to train on it: one pass of three."""
_BYTES = {"exact": 4, "bf16": 2, "fp16": 2, "int8": 1}
"""Most bytes for each number of an update, by `transforms.name`."""
_DOWN_BYTES = 4
"""Most bytes for each number of the server's model."""


def measure_here(site: SiteFile, known: Known, limits: Limits) -> Here:
    """Measure sizes and costs of a plan at this site.

    A plan that the policy refuses is not measured, because its numbers can be of any size.

    Raises:
        OSError: the site's state cannot be read.
    """
    here = Here(num_answers=Answers(site.state).num_answers())
    if any(refusals_of(known.plan, known.settings, limits)):
        return replace(here, why_not="the policy refuses the plan, so it was not tried")
    try:
        sizes = sizes_of(site, known.settings)
        refused = tuple(size_refusals(known.settings, sizes, site.policy))
        state_refusals = tuple(_state_refusals(site, known, here.num_answers))
        here = replace(here, sizes=sizes, refusals=(*refused, *state_refusals))
        if refused:
            return replace(here, why_not="this site's texts do not fit the plan")
        sizes, costs = _measure(site, known.settings)
        refused = tuple(size_refusals(known.settings, sizes, site.policy))
        return replace(
            here, sizes=sizes, costs=costs, refusals=(*refused, *here.refusals)
        )
    except SiteRefusal as error:
        refusal = (error.code, error.key, str(error))
        return replace(here, refusals=(*here.refusals, refusal), why_not=str(error))
    except (ValueError, OSError, RuntimeError, MemoryError, ArithmeticError) as error:
        return replace(here, why_not=f"{error}" or type(error).__name__)


def _state_refusals(
    site: SiteFile, known: Known, num_answers: int
) -> Iterator[Refusal]:
    """Yield the reasons for a refusal: days, budget, texts close to answered ones."""
    if time.time() > known.plan.not_after:
        words = f"it was valid until {printable_day(known.plan.not_after)}"
        yield "plan_over", "", words
    most = site.policy.max_total_answers
    if num_answers >= most:
        words = f"{num_answers} rounds are answered; policy.max_total_answers is {most}"
        yield "over_budget", "", words
    versions = Versions(site)
    try:
        versions.check_distance(versions.read(), Answers(site.state).answered())
    except SiteRefusal as error:
        yield error.code, error.key, str(error)


def _measure(site: SiteFile, planned: Settings) -> tuple[Sizes, Costs]:
    """Return sizes and costs.

    Raises ValueError or SiteRefusal if texts or model are not those of the plan.
    """
    real = RealSite(site)
    settings = real.localise(planned)
    model = settings.model
    if model.source == "hub" and not Path(model.name).is_dir():
        raise ValueError(
            "the model is not on this machine, and it is not downloaded for a measurement. "
            "See: wardround-site check --model NAME"
        )
    check_model_file(model, site)
    examples = real.examples(settings)
    state = open_model(settings, examples.corpus.label_names, fresh=True)
    sizes = examples.sizes(state.hidden_size)
    texts: float = settings.train.local_epochs * sizes.num_texts
    if settings.evaluation.where == "sites":
        texts += _READING * sizes.num_held_out
    width = _BYTES[settings.transforms.name] + _DOWN_BYTES
    seconds = texts * _seconds_per_text(state, settings, examples)
    return sizes, Costs(width * state.layout.size, seconds)


def _seconds_per_text(
    state: ModelState, settings: Settings, examples: Examples
) -> float:
    """Run two small training steps, and return the second one's seconds per text."""
    shuffled = np.random.default_rng(0).permutation(examples.train)
    some = replace(examples, train=shuffled[:_STEP_TEXTS])
    step = replace(settings.train, local_epochs=1, batch_size=_STEP_TEXTS)
    one_step = replace(settings, train=step)
    seconds = 0.0
    for _ in range(2):
        started = time.perf_counter()
        train_once(state, one_step, some, round=1, client=0)
        seconds = time.perf_counter() - started
    return seconds / len(some.train)
