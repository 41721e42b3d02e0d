"""What updates and predictions tell of a round, on numbers checkable by hand."""

from __future__ import annotations

from dataclasses import replace
from math import log, sqrt
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.runs import history
from tests.support.tampering import CONTINUE, tampering, with_value
from tests.support.tiny import Make
from wardround.common.model.flat import Layout
from wardround.common.tasks.sums import Sums
from wardround.common.wire.messages import Update
from wardround.server.app import conduct
from wardround.server.diagnostics.predictions import describe_predictions, entropy
from wardround.server.engines.local_grid import LocalGrid
from wardround.server.engines.simulate import simulate
from wardround.server.rounds.clients import GridClients
from wardround.server.rounds.mean import RoundMean, WeightedMean
from wardround.server.rounds.updates import (
    Head,
    cosines_to_others,
    describe_updates,
    norm_ratio,
)


def mean_of(*deltas: tuple[list[float], int]) -> RoundMean:
    """The round whose updates are these (delta, weight) pairs."""
    mean = WeightedMean(torch.zeros(len(deltas[0][0])))
    for delta, weight in deltas:
        mean.add(torch.tensor(delta), weight)
    return mean.finish()


def test_two_opposite_updates() -> None:
    outcome = mean_of(([1.0, 2.0], 1), ([-1.0, -2.0], 1))
    assert norm_ratio(outcome) == 0.0
    assert cosines_to_others(outcome) == pytest.approx([-1.0, -1.0])
    # The mean is zero, so there is no angle to it.
    assert [agreement.cosine_to_mean for agreement in outcome.agreements] == [0.0, 0.0]


def test_two_equal_updates() -> None:
    outcome = mean_of(([1.0, 2.0], 1), ([1.0, 2.0], 3))
    assert norm_ratio(outcome) == pytest.approx(1.0)
    assert cosines_to_others(outcome) == pytest.approx([1.0, 1.0])


def test_updates_across_each_other_are_as_independent_noise() -> None:
    outcome = mean_of(([5.0, 0.0, 0.0], 2), ([0.0, 5.0, 0.0], 2), ([0.0, 0.0, 5.0], 2))
    assert norm_ratio(outcome) == pytest.approx(1 / sqrt(3))
    assert cosines_to_others(outcome) == pytest.approx([0.0, 0.0, 0.0], abs=1e-6)
    assert [
        agreement.cosine_to_mean for agreement in outcome.agreements
    ] == pytest.approx([1 / sqrt(3)] * 3)


def test_angles_between_two_updates() -> None:
    # (3, 4) and (3, -4): mean (3, 0), norms 5, ratio 3/5; their cosine is (9 - 16) / 25.
    outcome = mean_of(([3.0, 4.0], 2), ([3.0, -4.0], 2))
    assert norm_ratio(outcome) == pytest.approx(0.6)
    assert cosines_to_others(outcome) == pytest.approx([-0.28, -0.28])


def test_the_ratio_weighs_norms_as_the_mean_weighs_updates() -> None:
    # Mean (4*3 - 8*1) / 4 = 1; mean of norms (4*3 + 8*1) / 4 = 5.
    outcome = mean_of(([4.0], 3), ([-8.0], 1))
    assert norm_ratio(outcome) == pytest.approx(0.2)
    # Each of the two has the other alone to look at, which goes the other way.
    assert cosines_to_others(outcome) == pytest.approx([-1.0, -1.0])


def test_one_client_has_no_others() -> None:
    outcome = mean_of(([3.0, 4.0], 7))
    assert norm_ratio(outcome) == pytest.approx(1.0)
    assert cosines_to_others(outcome) == [None]


def test_nothing_moved() -> None:
    outcome = mean_of(([0.0, 0.0], 1), ([0.0, 0.0], 1))
    assert norm_ratio(outcome) == 0.0
    assert cosines_to_others(outcome) == [0.0, 0.0]


def test_head_and_body_share_the_norm() -> None:
    # The body moves by (3, 4), the head by 12: 5, 12 and 13 in all.
    layout = Layout.of({"body": (2,), "head.bias": (1,)})
    head = Head.of(layout, ("head.bias", "not.shared"))
    start, trained = torch.ones(layout.size), torch.ones(layout.size)
    trained[:2] += torch.tensor([3.0, 4.0])
    trained[layout.offsets[1]] += 12.0
    mean = WeightedMean(start)
    mean.add(trained, 1)
    outcome = mean.finish()
    assert head.update_norm(trained, start) == 12.0
    assert head.body_norm(trained, start) == 5.0
    told = describe_updates(outcome, 12.0, 5.0, head.length(trained))
    assert (told.mean_update_norm, told.norm_ratio) == pytest.approx((13.0, 1.0))
    assert (told.head_norm, told.body_norm) == pytest.approx((12.0, 5.0))
    assert told.head_length == 13.0  # it began at 1
    assert Head.of(layout, ()).update_norm(trained, start) == 0.0


def test_predictions_are_the_columns_and_the_truth_the_rows() -> None:
    # 4 + 4 true examples; 6 predictions of the first class, 2 of the second.
    told = describe_predictions(Sums(1.0, np.array([[3, 1], [3, 1]]), ()))
    assert told["predicted_shares"] == [0.75, 0.25]
    assert told["prediction_entropy"] == pytest.approx(
        2 * log(2) - 0.75 * log(3)
    )  # = -3/4 ln 3/4 - 1/4 ln 1/4
    assert told["largest_class_share"] == 0.5
    assert (
        describe_predictions(Sums(1.0, np.array([[1, 0], [5, 0]]), ()))[
            "largest_class_share"
        ]
        == 5 / 6
    )


def test_entropy_runs_from_one_class_to_an_even_guess() -> None:
    assert entropy([1.0, 0.0, 0.0]) == 0.0
    assert entropy([0.25] * 4) == pytest.approx(log(4))


def test_a_history_line_agrees_with_itself(make_settings: Make, tmp_path: Path) -> None:
    simulate(make_settings())
    first, *rounds = history(tmp_path / "run")
    assert first["diagnostics"]["mean_update_norm"] is None
    assert first["diagnostics"]["head_length"] > 0
    assert sum(first["diagnostics"]["predicted_shares"]) == pytest.approx(1)
    assert first["diagnostics"]["largest_class_share"] == pytest.approx(
        10 / 30
    )  # 30 texts of 3 topics
    for line in rounds:
        told, clients = line["diagnostics"], line["clients"]
        norms = [client["update_norm"] for client in clients]
        assert told["norm_ratio"] == pytest.approx(
            told["mean_update_norm"] / (sum(norms) / 3)
        )
        assert told["head_norm"] ** 2 + told["body_norm"] ** 2 == pytest.approx(
            told["mean_update_norm"] ** 2
        )
        assert 0 < told["head_norm"] < told["mean_update_norm"]
        assert all(
            0 < client["head_norm"] < client["update_norm"] for client in clients
        )


def test_steps_of_a_client_that_was_away_go_on_after_a_resume(
    make_settings: Make, tmp_path: Path
) -> None:
    def away_in_round_2(update: Update) -> Update:
        return (
            with_value(update, float("nan"))
            if update.round == 2
            else replace(update, num_steps=5)
        )

    for num_rounds in (2, 4):
        settings = make_settings(f"num_rounds={num_rounds}", CONTINUE)
        conduct(GridClients(LocalGrid(tampering(away_in_round_2), 3)), settings)
    steps = [
        {
            client["client"]: (client["num_steps"], client["total_steps"])
            for client in line["clients"]
        }
        for line in history(tmp_path / "run")
    ]
    # 16 texts in batches of 4, twice a round, are 8 steps; client 1 says 5.
    assert steps == [
        {},
        {0: (8, 8), 1: (5, 5), 2: (8, 8)},
        {0: (8, 16), 2: (8, 16)},
        {0: (8, 24), 1: (5, 10), 2: (8, 24)},
        {0: (8, 32), 1: (5, 15), 2: (8, 32)},
    ]


def test_sites_tell_predictions_with_their_counts(
    make_settings: Make, tmp_path: Path
) -> None:
    simulate(make_settings("evaluation.where=sites"))
    lines = history(tmp_path / "run")
    assert [line["round"] for line in lines] == [0, 1, 2, 3]
    for line in lines:
        assert sum(line["diagnostics"]["predicted_shares"]) == pytest.approx(1)
        # What all sites hold out is even: a third each, so nobody can be right more often by one answer.
        assert line["diagnostics"]["largest_class_share"] == pytest.approx(
            1 / 3, abs=0.1
        )
