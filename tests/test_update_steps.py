"""The steps between training and sending: their order, and the settings that choose them."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import numpy as np
import pytest

from tests.support.tiny import Make
from wardround.client.site import Kept, Order, RealSite, SimulatedSite, Site
from wardround.client.site_file import SiteFile
from wardround.client.update_steps import (
    STEPS,
    LocalRound,
    TrainedUpdate,
    UpdateStep,
    prepare,
    steps_for,
)
from wardround.common.model.influence import RoundSteps
from wardround.common.model.state import open_model
from wardround.common.settings.tree import Settings
from wardround.common.wire.forms import decode

VARIATES = ("train.control_variates=true", "train.optimizer=sgd")
FEEDBACK = ("transforms.name=int8", "transforms.error_feedback=true")


def names(settings: Settings, site: Site) -> list[str]:
    return [step.name for step in steps_for(settings, site)]


def planned_site(settings: Settings) -> RealSite:
    """A site under a plan. The rows are chosen without its file."""
    order = Order("", settings, client=0, round=1, age=0, data="")
    return RealSite(cast(SiteFile, None), Kept(), order)


def test_the_table_has_this_order() -> None:
    assert [step.name for step in STEPS] == [
        "keep_variates",
        "measure_norm",
        "check_speaking",
        "keep_yardstick",
        "round_loss",
        "withhold_counts",
        "share",
        "encode_with_feedback",
        "encode",
    ]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ((), ["share"]),
        (VARIATES, ["keep_variates", "share"]),
        (("transforms.name=bf16", "transforms.error_feedback=false"), ["encode"]),
        (FEEDBACK, ["encode_with_feedback"]),
    ],
)
def test_settings_choose_the_steps_of_a_simulation(
    make_settings: Make, overrides: tuple[str, ...], expected: list[str]
) -> None:
    assert names(make_settings(*overrides), SimulatedSite(0)) == expected


def test_a_plan_adds_the_steps_of_its_policy(make_settings: Make) -> None:
    simulated = make_settings(*FEEDBACK, "data.label_names=[a,b]")
    deployed = replace(simulated, engine=replace(simulated.engine, name="deployment"))
    assert names(deployed, planned_site(deployed)) == [
        "measure_norm",
        "check_speaking",
        "keep_yardstick",
        "round_loss",
        "withhold_counts",
        "encode_with_feedback",
    ]
    # A process that ends after the message carries nothing to the next round.
    alone = RealSite(cast(SiteFile, None))
    assert names(deployed, alone) == ["encode"]


def test_steps_run_in_the_order_of_the_table(
    make_settings: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings()
    state = open_model(settings, ("a", "b"))
    layout = state.layout
    received = np.zeros(layout.size, dtype=np.float32)
    local = LocalRound(
        number=1,
        run=settings,
        site=SimulatedSite(0),
        layout=layout,
        task=state.text_model.task,
        received=received,
        steps=RoundSteps(settings.train, 8, 1),
    )

    def add_one(update: TrainedUpdate, local: LocalRound) -> TrainedUpdate:
        return replace(update, tensors=update.tensors + 1)

    def double(update: TrainedUpdate, local: LocalRound) -> TrainedUpdate:
        return replace(update, tensors=2 * update.tensors)

    def always(run: Settings, site: Site) -> bool:
        return True

    changes = (UpdateStep("add", always, add_one), UpdateStep("double", always, double))
    monkeypatch.setattr("wardround.client.update_steps.STEPS", (*changes, *STEPS))
    trained = np.ones(layout.size, dtype=np.float32)
    sent = prepare(TrainedUpdate(trained, loss=0.5), local)
    # (1 + 1) * 2 = 4: the steps change the tensors that are sent.
    assert sent.payload is not None
    np.testing.assert_array_equal(decode(sent.payload, received), 4 * trained)
