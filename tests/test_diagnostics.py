"""Statistics of updates and predictions, on numbers that can be checked by hand."""

from __future__ import annotations

from dataclasses import replace
from math import log, sqrt
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.contract import check, nulls
from tests.support.pages import Page
from tests.support.runs import history
from tests.support.tampering import CONTINUE, tampering, with_value
from tests.support.tiny import Make
from wardround.common.model.flat import Layout
from wardround.common.tasks.label import LABEL, entropy, label_sums
from wardround.common.wire.messages import Update
from wardround.server.app import conduct
from wardround.server.deployment.status import read_status
from wardround.server.engines.local_grid import LocalGrid
from wardround.server.engines.simulate import simulate
from wardround.server.report.render import write_report
from wardround.server.rounds.clients import GridClients
from wardround.server.rounds.intake import OpenUpdate
from wardround.server.rounds.loop import TrainedRound
from wardround.server.rounds.mean import RoundMean, WeightedMean
from wardround.server.rounds.members import Member
from wardround.server.rounds.updates import (
    Head,
    cosines_to_others,
    describe_updates,
    norm_ratio,
)
from wardround.server.run_folder import RunFolder


def mean_of(*deltas: tuple[list[float], int]) -> RoundMean:
    """Return the mean of these pairs of delta and weight."""
    mean = WeightedMean(torch.zeros(len(deltas[0][0])))
    for delta, weight in deltas:
        mean.add(torch.tensor(delta), weight)
    return mean.finish()


def test_two_opposite_updates_cancel() -> None:
    outcome = mean_of(([1.0, 2.0], 1), ([-1.0, -2.0], 1))
    assert norm_ratio(outcome) == 0.0
    assert cosines_to_others(outcome) == pytest.approx([-1.0, -1.0])
    # The mean is zero, so that there is no angle to it.
    assert outcome.cosines_to_mean == (0.0, 0.0)


def test_two_equal_updates_point_the_same_way() -> None:
    outcome = mean_of(([1.0, 2.0], 1), ([1.0, 2.0], 3))
    assert norm_ratio(outcome) == pytest.approx(1.0)
    assert cosines_to_others(outcome) == pytest.approx([1.0, 1.0])


def test_updates_at_right_angles_have_a_norm_ratio_of_1_over_sqrt_k() -> None:
    outcome = mean_of(([5.0, 0.0, 0.0], 2), ([0.0, 5.0, 0.0], 2), ([0.0, 0.0, 5.0], 2))
    assert norm_ratio(outcome) == pytest.approx(1 / sqrt(3))
    assert cosines_to_others(outcome) == pytest.approx([0.0, 0.0, 0.0], abs=1e-6)
    assert outcome.cosines_to_mean == pytest.approx([1 / sqrt(3)] * 3)


def test_the_cosine_of_two_updates() -> None:
    # (3, 4) and (3, -4) have norms of 5, and a mean (3, 0): the ratio is 3/5.
    # Their cosine is (9 - 16) / 25.
    outcome = mean_of(([3.0, 4.0], 2), ([3.0, -4.0], 2))
    assert norm_ratio(outcome) == pytest.approx(0.6)
    assert cosines_to_others(outcome) == pytest.approx([-0.28, -0.28])


def test_the_ratio_weighs_norms_as_the_mean_weighs_updates() -> None:
    # The mean is (4*3 - 8*1) / 4 = 1, the mean of the norms (4*3 + 8*1) / 4 = 5.
    outcome = mean_of(([4.0], 3), ([-8.0], 1))
    assert norm_ratio(outcome) == pytest.approx(0.2)
    # The other update points the other way.
    assert cosines_to_others(outcome) == pytest.approx([-1.0, -1.0])


def test_one_client_has_no_others() -> None:
    outcome = mean_of(([3.0, 4.0], 7))
    assert norm_ratio(outcome) == pytest.approx(1.0)
    assert cosines_to_others(outcome) == [None]


def test_updates_of_zero_have_ratio_and_cosines_of_0() -> None:
    outcome = mean_of(([0.0, 0.0], 1), ([0.0, 0.0], 1))
    assert norm_ratio(outcome) == 0.0
    assert cosines_to_others(outcome) == [0.0, 0.0]


def test_head_and_body_share_the_norm() -> None:
    # The body moves by (3, 4), which is 5, and the head by 12: 13 in all.
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
    found = describe_updates(outcome, 12.0, 5.0, head.length(trained))
    assert found.mean_update_norm == pytest.approx(13.0)
    assert found.norm_ratio == pytest.approx(1.0)
    assert found.head_norm == pytest.approx(12.0)
    assert found.body_norm == pytest.approx(5.0)
    assert found.head_length == 13.0  # it was 1 at the start
    assert Head.of(layout, ()).update_norm(trained, start) == 0.0


def test_predictions_are_columns_and_true_labels_are_rows() -> None:
    # 4 + 4 examples have the true labels; 6 predictions are the first class, 2 the second.
    found = LABEL.describe(label_sums(1.0, np.array([[3, 1], [3, 1]])))
    assert found["predicted_shares"] == [0.75, 0.25]
    # -3/4 ln 3/4 - 1/4 ln 1/4
    expected = 2 * log(2) - 0.75 * log(3)
    assert found["prediction_entropy"] == pytest.approx(expected)
    assert found["largest_class_share"] == 0.5
    uneven = LABEL.describe(label_sums(1.0, np.array([[1, 0], [5, 0]])))
    assert uneven["largest_class_share"] == 5 / 6


def test_entropy_is_0_for_one_class_and_ln_of_their_number_for_all() -> None:
    assert entropy([1.0, 0.0, 0.0]) == 0.0
    assert entropy([0.25] * 4) == pytest.approx(log(4))


def test_the_statistics_of_a_history_line_agree_with_each_other(
    make_settings: Make, tmp_path: Path
) -> None:
    simulate(make_settings())
    first, *rounds = history(tmp_path / "run")
    assert first["diagnostics"]["mean_update_norm"] is None
    assert first["diagnostics"]["head_length"] > 0
    assert sum(first["diagnostics"]["predicted_shares"]) == pytest.approx(1)
    # 30 texts of 3 topics
    largest_class_share = first["diagnostics"]["largest_class_share"]
    assert largest_class_share == pytest.approx(10 / 30)
    for line in rounds:
        mean = line["diagnostics"]
        clients = line["clients"]
        mean_norm = mean["mean_update_norm"]
        mean_of_norms = sum(client["update_norm"] for client in clients) / 3
        assert mean["norm_ratio"] == pytest.approx(mean_norm / mean_of_norms)
        squares = mean["head_norm"] ** 2 + mean["body_norm"] ** 2
        assert squares == pytest.approx(mean_norm**2)
        assert 0 < mean["head_norm"] < mean_norm
        for client in clients:
            assert 0 < client["head_norm"] < client["update_norm"]


def test_a_server_that_receives_sums_only_records_nulls(
    make_settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without single updates their statistics are unknown: they are null and never 0."""
    finish = WeightedMean.finish
    add = TrainedRound.add

    def sum_only(self: WeightedMean) -> RoundMean:
        return replace(finish(self), client_norms=None, cosines_to_mean=None)

    def add_without_norm(
        self: TrainedRound, member: Member, update: OpenUpdate, head_norm: float | None
    ) -> None:
        add(self, member, update, None)

    monkeypatch.setattr(WeightedMean, "finish", sum_only)
    monkeypatch.setattr(TrainedRound, "add", add_without_norm)
    # The second bound is relative to norms of earlier rounds, which are unknown here.
    bounds = ("strategy.max_update_norm=100", "strategy.max_norm_ratio=2")
    for num_rounds in (2, 3):  # the third round after a resume
        simulate(make_settings(*bounds, f"num_rounds={num_rounds}"))
    lines = history(tmp_path / "run")
    assert [len(line["clients"]) for line in lines] == [0, 3, 3, 3]
    for line in lines[1:]:
        check(line, "round_record")
        assert nulls(line) == {
            "clients.update_norm",
            "clients.head_norm",
            "clients.cosine_to_mean",
            "clients.cosine_to_others",
            "diagnostics.norm_ratio",
        }
        assert line["diagnostics"]["mean_update_norm"] > 0
    folder = RunFolder(tmp_path / "run")
    assert "round 3" in read_status(folder, None).to_text()
    assert "Update norm" in Page(write_report(folder.path)).text


def test_steps_of_an_absent_client_continue_after_a_resume(
    make_settings: Make, tmp_path: Path
) -> None:
    def away_in_round_2(update: Update) -> Update:
        if update.round == 2:
            return with_value(update, float("nan"))
        return replace(update, num_steps=5)

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
    # 16 texts in batches of 4, twice a round, are 8 steps; client 1 reports 5.
    assert steps == [
        {},
        {0: (8, 8), 1: (5, 5), 2: (8, 8)},
        {0: (8, 16), 2: (8, 16)},
        {0: (8, 24), 1: (5, 10), 2: (8, 24)},
        {0: (8, 32), 1: (5, 15), 2: (8, 32)},
    ]


def test_predictions_follow_from_the_counts_of_sites(
    make_settings: Make, tmp_path: Path
) -> None:
    simulate(make_settings("evaluation.where=sites"))
    lines = history(tmp_path / "run")
    assert [line["round"] for line in lines] == [0, 1, 2, 3]
    for line in lines:
        assert sum(line["diagnostics"]["predicted_shares"]) == pytest.approx(1)
        # The held-out texts of all sites are even: a third of each class.
        largest_class_share = line["diagnostics"]["largest_class_share"]
        assert largest_class_share == pytest.approx(1 / 3, abs=0.1)
