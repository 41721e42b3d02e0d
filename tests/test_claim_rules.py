"""The rules behind the verdicts on the paper's claims, on numbers checkable by hand."""

from __future__ import annotations

import pytest

from studies import claim_rules as rules
from studies.claim_rules import Part
from studies.evidence import describe_missing


def test_retained_is_measured_above_chance() -> None:
    # K = 1 learned 0.9 - 0.5 = 0.4 above chance, 0.1 of it is left
    assert rules.retained(0.6, baseline=0.9, chance=0.5) == pytest.approx(0.25)


def test_largest_drop_is_per_doubling() -> None:
    # 4 -> 16 are two doublings that lose 0.6 together: 0.3 each
    at, drop = rules.largest_drop({1: 1.0, 4: 0.9, 16: 0.3})
    assert at == 16
    assert drop == pytest.approx(0.3)
    at, drop = rules.largest_drop({1: 1.0, 2: 0.5, 4: 0.4}, ends_from=4)
    assert at == 4
    assert drop == pytest.approx(0.1)
    assert rules.largest_drop({1: 1.0}) == (0, 0.0)


def test_gradual_decline() -> None:
    gradual = {1: 1.0, 2: 0.8, 4: 0.6}
    assert rules.declines_gradually(gradual, complete=True) == "holds"
    assert rules.declines_gradually(gradual, complete=False) == "open"
    assert rules.declines_gradually({1: 1.0, 2: 0.7}, complete=False) == "fails"
    assert rules.declines_gradually({1: 1.0, 2: 1.1}, complete=True) == "fails"


def test_mostly_needs_three_of_four() -> None:
    assert rules.mostly_reached(12, 3, 15) == "holds"  # 12 / 15 = 0.80
    assert rules.mostly_reached(11, 4, 15) == "fails"  # 11 / 15 = 0.73
    assert rules.mostly_reached(12, 2, 15) == "open"
    assert rules.mostly_reached(0, 4, 15) == "fails"  # the 11 left cannot make it 12


def test_rounds_at_chance() -> None:
    assert rules.rounds_at_chance([0.25, 0.26, 0.29, 0.4, 0.25], chance=0.25) == 2
    assert rules.rounds_at_chance([0.25, 0.26, 0.2], chance=0.25) == 2
    assert rules.rounds_at_chance([0.9, 0.9], chance=0.25) == 0
    assert rules.rounds_at_chance([], chance=0.25) == 0


def test_plateaus_against_the_budget() -> None:
    waits = [0.5] * 3 + [0.8]  # rounds 1 and 2 at chance, budget 10: 0.2 * 10 = 2 is long
    assert rules.waits_then_moves(waits, 0.5, budget=10)
    assert not rules.waits_then_moves(waits, 0.5, budget=11)
    assert not rules.waits_then_moves([0.5] * 4, 0.5, budget=3)  # never moves
    assert rules.never_moves([0.5] * 4, 0.5, budget=3)
    assert not rules.never_moves([0.5] * 4, 0.5, budget=4)  # budget not reached


def test_steepness_is_mean_loss_past_one_client() -> None:
    assert rules.mean_loss({1: 1.0, 2: 0.8, 4: 0.4}) == pytest.approx(0.4)  # (0.2 + 0.6) / 2
    assert rules.is_steepest(0.4, [0.3, 0.38]) == "holds"
    assert rules.is_steepest(0.4, [0.3, 0.395]) == "fails"


@pytest.mark.parametrize(
    ("findings", "verdict"),
    [
        (("holds", "holds"), "supported"),
        (("holds", "open"), "not_tested"),
        (("open", "fails"), "contradicted"),
        (("holds", "fails"), "contradicted"),
        ((), "not_tested"),
    ],
)
def test_combining_parts(findings: tuple[rules.Finding, ...], verdict: str) -> None:
    assert rules.combine([Part("p", finding, {}) for finding in findings]) == verdict


def test_missing_cells_in_words() -> None:
    needed = [("bert", "imdb", 1), ("bert", "imdb", 2), ("albert", "imdb", 2)]
    assert describe_missing(needed, needed) == ""
    assert describe_missing(needed, needed[:2]) == "ALBERT on IMDB with K = 2"
    assert describe_missing(needed[1:], []) == "BERT and ALBERT on IMDB with K = 2 (none of them is here)"
