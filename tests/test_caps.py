"""Caps on the influence of one client."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.runs import history
from tests.support.tiny import Make
from wardround.client.app import app
from wardround.common.errors import BadAnswer
from wardround.common.tasks.label import LABEL, label_sums
from wardround.common.wire.messages import Introduction
from wardround.server.engines.local_grid import LocalGrid
from wardround.server.engines.simulate import simulate
from wardround.server.rounds.bounds import NormBound
from wardround.server.rounds.checks import check_counts
from wardround.server.rounds.clients import GridClients
from wardround.server.rounds.cohort import Cohort
from wardround.server.rounds.members import Member, capped, weights_of

WEIGHTS = {0: 60.0, 1: 30.0, 2: 10.0}


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (0.6, {0: 60.0, 1: 30.0, 2: 10.0}),  # 60 of 100 is not more than 0.6
        (0.5, {0: 40.0, 1: 30.0, 2: 10.0}),  # 40 of 80
        (0.4, {0: 20.0, 1: 20.0, 2: 10.0}),  # c = 0.4 (2 c + 10), so 20 of 50
        (1 / 3, {0: 10.0, 1: 10.0, 2: 10.0}),  # equal weights are the only solution
    ],
)
def test_the_largest_weights_are_lowered_to_one_value(
    share: float, expected: dict[int, float]
) -> None:
    found = capped(WEIGHTS, share)
    assert found == pytest.approx(expected)
    assert max(found.values()) / sum(found.values()) <= share + 1e-9


def test_texts_beyond_the_registered_number_add_no_weight(
    make_settings: Make,
) -> None:
    members = [Member(0, "a", 10, 500, most_examples=100), Member(1, "b", 11, 300)]
    clipped = make_settings("strategy.on_excess=clip").strategy
    assert weights_of(members, clipped) == {0: 100, 1: 300}
    uniform = make_settings("strategy.weighting=uniform").strategy
    assert weights_of(members, uniform) == {0: 1, 1: 1}


def test_an_update_beyond_its_norm_is_refused_or_shrunk(make_settings: Make) -> None:
    received, trained = torch.zeros(2), torch.tensor([3.0, 4.0])  # a norm of 5
    refusing = NormBound(make_settings("strategy.max_update_norm=4").strategy)
    with pytest.raises(BadAnswer, match=r"norm of 5; .* 4"):
        refusing.apply(trained, received)
    words = ("strategy.max_update_norm=2.5", "strategy.on_excess=clip")
    clipping = NormBound(make_settings(*words).strategy)
    shrunk, norm = clipping.apply(trained, received)
    assert (shrunk.tolist(), norm) == ([1.5, 2.0], 5.0)
    wide = NormBound(make_settings("strategy.max_update_norm=5").strategy)
    assert wide.apply(trained, received)[1] is None


def test_the_bound_follows_the_median_of_earlier_rounds(make_settings: Make) -> None:
    words = ("strategy.max_update_norm=100", "strategy.max_norm_ratio=2")
    bound = NormBound(make_settings(*words).strategy)
    assert bound.largest == 100  # no rounds before round 1
    bound.close_round([1.0, 3.0, 50.0])
    assert bound.largest == 6.0


def test_impossible_bounds_are_refused(make_settings: Make) -> None:
    for word, expected in (
        ("strategy.max_share=0.2", r"strategy\.max_share is 0\.2.* 1/3"),
        ("strategy.max_share=0", r"strategy\.max_share is 0;.* null"),
        ("strategy.max_norm_ratio=2", r"_ratio is 2.*Set strategy\.max_update_norm"),
        ("strategy.wait_seconds=inf", r"strategy\.wait_seconds is inf;"),
    ):
        with pytest.raises(ValueError, match=expected):
            make_settings(word)


def test_a_site_with_more_texts_than_it_registered_is_refused_or_weighs_less(
    make_settings: Make,
) -> None:
    grid = LocalGrid(app, 1)
    labels = "data.label_names=[health,money,sport]"
    facts = ("engine=deployment", "evaluation.where=sites", "num_clients=1", labels)
    refusing = Cohort(GridClients(grid), make_settings(*facts), {"a": 100})
    with pytest.raises(BadAnswer, match=r"reports 101 examples.* 100$"):
        refusing._add(1, "a", Introduction(-1, 101, 5))
    clipping = Cohort(
        GridClients(grid), make_settings(*facts, "strategy.on_excess=clip"), {"a": 100}
    )
    clipping._add(1, "a", Introduction(-1, 101, 5))
    assert clipping._members[1].weight == 100


@pytest.mark.parametrize("on_excess", ["refuse", "clip"])
def test_more_held_out_texts_than_a_site_registered_are_refused(
    make_settings: Make, on_excess: str
) -> None:
    """`clip` refuses them too: counts cannot be reduced, because their texts are unknown."""
    facts = ("engine=deployment", "evaluation.where=sites", "num_clients=1")
    labels = "data.label_names=[health,money,sport]"
    settings = make_settings(*facts, labels, f"strategy.on_excess={on_excess}")
    cohort = Cohort(GridClients(LocalGrid(app, 1)), settings, {"a": 100})
    with pytest.raises(BadAnswer, match=r"reports 1099511627776 held-out.* 100$"):
        cohort._add(1, "a", Introduction(-1, 50, 2**40))
    cohort._add(1, "a", Introduction(-1, 50, 100))
    (member,) = cohort._members.values()
    too_many = label_sums(0.0, np.diag([101, 0, 0]))
    with pytest.raises(BadAnswer, match=r"cover 101 held-out.* 100$"):
        check_counts(too_many, LABEL, 3, 1, member)
    check_counts(label_sums(0.0, np.diag([100, 0, 0])), LABEL, 3, 1, member)
    in_two = replace(too_many, validation=label_sums(0.0, np.diag([0, 1, 0])))
    with pytest.raises(BadAnswer, match=r"cover 102 held-out.* 100$"):
        check_counts(in_two, LABEL, 3, 2, member)


def test_without_a_bound_any_number_of_held_out_texts_is_accepted(
    make_settings: Make,
) -> None:
    facts = ("engine=deployment", "evaluation.where=sites", "num_clients=1")
    labels = "data.label_names=[health,money,sport]"
    cohort = Cohort(
        GridClients(LocalGrid(app, 1)), make_settings(*facts, labels), {"a": None}
    )
    cohort._add(1, "a", Introduction(-1, 50, 10**6))
    assert cohort._members[1].num_held_out == 10**6


def test_history_holds_shares_and_clipped_norms(make_settings: Make) -> None:
    settings = make_settings(
        "strategy.max_share=0.34",
        "strategy.max_update_norm=1e-3",
        "strategy.on_excess=clip",
        "num_rounds=1",
    )
    simulate(settings)
    clients = history(Path(settings.run_dir))[1]["clients"]
    assert len(clients) == 3
    for client in clients:
        assert client["share"] == pytest.approx(0.33, abs=0.005)
        assert client["norm_received"] > 1e-3
        assert client["update_norm"] == pytest.approx(1e-3, rel=1e-3)
