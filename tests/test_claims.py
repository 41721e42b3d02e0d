"""The verdicts on the paper's claims, and the rules behind them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from tests.support.report_folders import compose_settings
from wardround.common.settings.tree import Settings
from wardround.server.report import claim_rules, claims
from wardround.server.report.claim_rules import (
    PAPER_CLIENTS,
    PAPER_DATA,
    Key,
)
from wardround.server.report.claims import (
    Claim,
    describe_missing,
    judge,
)
from wardround.server.report.run import RunData
from wardround.server.report.sweep import SweepData

NUM_LABELS = {"imdb": 2, "yelp_full": 5, "ag_news": 4}
TOP = {"imdb": 0.9, "yelp_full": 0.6, "ag_news": 0.9}
# Share of the accuracy above chance that is left at K = 1, 2, 4, 8, 16, 32, by the paper.
COLLAPSE = {
    "imdb": (1, 1, 0, 0, 0, 0),
    "yelp_full": (1, 1, 1, 0.6, 0, 0),
    "ag_news": (1, 1, 1, 0.8, 0.5, 0.2),
}


@cache
def settings_for(data: str) -> Settings:
    return compose_settings("model=bert", f"data={data}")


def as_the_paper_says() -> dict[Key, float]:
    """Return accuracies of all cells as in the paper.

    BERT and ALBERT lose 3 % per doubling on IMDB and 1 % elsewhere; DistilBERT collapses.
    """
    shares: dict[Key, float] = {}
    for data in PAPER_DATA:
        for step, num_clients in enumerate(PAPER_CLIENTS):
            loss = 0.03 if data == "imdb" else 0.01
            for model in ("bert", "albert"):
                shares[model, data, num_clients] = 1 - step * loss
            shares["distilbert", data, num_clients] = COLLAPSE[data][step]
    return {
        key: 1 / NUM_LABELS[key[1]] + share * above_chance(key[1])
        for key, share in shares.items()
    }


def above_chance(data: str) -> float:
    return TOP[data] - 1 / NUM_LABELS[data]


def a_cell(
    key: Key, accuracy: float, baseline: float, settings: Settings
) -> dict[str, Any]:
    """Return a finished cell. Without its target it runs to the second threshold."""
    model, data, num_clients = key
    reached = accuracy >= 0.9 * baseline
    last = settings.data.second_threshold_rounds
    if reached:
        last = settings.data.budget_rounds
    # DistilBERT stays at chance for 40 rounds before it moves, the others for 2.
    wait = 40 if model == "distilbert" and num_clients > 4 else 2
    chance = 1 / NUM_LABELS[data]
    curve = [chance if number <= wait else accuracy for number in range(last + 1)]
    rounds: Any = tuple(SimpleNamespace(score=value, accuracy=value) for value in curve)
    labels = tuple("abcde"[: NUM_LABELS[data]])
    return {
        "model": model,
        "data": data,
        "num_clients": num_clients,
        "seed": 0,
        "run": RunData(settings, "finished", None, rounds, label_names=labels),
        "status": "finished",
        "accuracy": accuracy,
        "outcome": "reached" if reached else "not reached",
    }


def a_sweep(
    changes: Mapping[Key, float] | None = None,
    without: Iterable[Key] = (),
    train: Any = None,
) -> SweepData:
    """Return all 54 cells as in the paper, with changed accuracies and without some cells."""
    accuracies = as_the_paper_says() | dict(changes or {})
    cells = []
    for key in accuracies.keys() - set(without):
        settings = settings_for(key[1])
        settings = replace(settings, train=replace(settings.train, **(train or {})))
        baseline = accuracies[key[0], key[1], 1]
        cells.append(a_cell(key, accuracies[key], baseline, settings))
    return SweepData("paper", pd.DataFrame(cells))


def claim(number: int, sweep: SweepData) -> Claim:
    found = judge(sweep)[number - 1]
    assert found.id == number
    return found


def verdicts(sweep: SweepData) -> list[str]:
    return [found.verdict for found in judge(sweep)]


def test_the_numbers_of_the_paper_support_its_claims() -> None:
    found = judge(a_sweep())
    assert [item.verdict for item in found] == ["supported"] * 5
    thresholds = {"sharp_drop": 0.25, "rise_tolerance": 0.02, "learned_margin": 0.05}
    assert found[0].numbers["thresholds"] == thresholds
    parts = found[0].numbers["parts"]
    assert len(parts) == 6
    # BERT on IMDB keeps 1 - 5 * 0.03 = 0.85 at K = 32
    assert parts[0]["retained_by_k"]["32"] == pytest.approx(0.85)


@pytest.mark.parametrize(
    ("number", "changes", "failing"),
    [
        (1, {("bert", "ag_news", 32): 0.6}, "BERT on AG News"),
        (
            2,
            {("distilbert", "yelp_full", 32): 0.5},
            "near chance with K = 32, DistilBERT on Yelp-Full",
        ),
        (
            2,
            {("distilbert", "imdb", 4): 0.88},
            "struggles with K = 4, DistilBERT on IMDB",
        ),
        (
            3,
            {("distilbert", "imdb", 4): 0.88},
            "target missed with K = 4, DistilBERT on IMDB",
        ),
        (
            3,
            {("albert", "imdb", k): 0.6 for k in (2, 4, 8, 16)},
            "ALBERT mostly reaches the target",
        ),
        (
            4,
            {("distilbert", "imdb", k): 0.7 for k in (8, 16, 32)},
            "stays at chance, DistilBERT on IMDB",
        ),
        (5, {("albert", "ag_news", k): 0.7 for k in (2, 4, 8, 16, 32)}, "ALBERT"),
    ],
)
def test_one_part_that_fails_contradicts_a_claim(
    number: int, changes: dict[Key, float], failing: str
) -> None:
    found = claim(number, a_sweep(changes))
    assert found.verdict == "contradicted"
    parts = found.numbers["parts"]
    first = next(part["part"] for part in parts if part["finding"] == "fails")
    assert first == failing
    assert failing in found.explanation


@pytest.mark.parametrize(
    ("number", "missing", "named"),
    [
        (1, ("albert", "imdb", 32), "ALBERT on IMDB with K = 32"),
        (2, ("distilbert", "imdb", 4), "DistilBERT on IMDB with K = 4"),
        (3, ("bert", "ag_news", 8), "BERT on AG News with K = 8"),
        (5, ("distilbert", "yelp_full", 2), "DistilBERT on Yelp-Full with K = 2"),
    ],
)
def test_one_missing_cell_leaves_a_claim_untested(
    number: int, missing: Key, named: str
) -> None:
    found = claim(number, a_sweep(without=[missing]))
    assert found.verdict == "not_tested"
    assert named in found.explanation


def test_one_plateau_is_enough_and_no_plateau_needs_all_curves() -> None:
    gone = [("distilbert", "ag_news", k) for k in (8, 16)]
    assert claim(4, a_sweep(without=gone)).verdict == "supported"
    gone.append(("distilbert", "ag_news", 32))
    assert claim(4, a_sweep(without=gone)).verdict == "not_tested"
    moved = {("distilbert", "imdb", k): 0.7 for k in (8, 16, 32)}
    without = [("distilbert", "imdb", 8)]
    assert claim(4, a_sweep(moved, without)).verdict == "not_tested"


def test_a_sharp_drop_contradicts_before_all_cells_are_there() -> None:
    changes = {("bert", "imdb", 2): 0.6}  # keeps 0.25 of what K = 1 learned
    without = [("bert", "imdb", 32)]
    assert claim(1, a_sweep(changes, without)).verdict == "contradicted"


def test_the_demo_tests_no_claim_and_names_the_missing_runs() -> None:
    cell = a_cell(("bert", "imdb", 1), 0.9, 0.9, settings_for("imdb"))
    cell |= {"model": "minilm", "data": "bbc_news"}
    for found in judge(SweepData("demo", pd.DataFrame([cell]))):
        assert found.verdict == "not_tested"
        assert "missing" in found.explanation
        assert "IMDB" in found.explanation


def test_an_empty_sweep_tests_no_claim() -> None:
    assert set(verdicts(SweepData("empty", a_sweep().cells.head(0)))) == {"not_tested"}


def test_settings_other_than_the_papers_give_numbers_and_no_verdict() -> None:
    found = judge(a_sweep(train={"learning_rate": 0.05}))
    assert {item.verdict for item in found} == {"not_tested"}
    assert "train.learning_rate 0.05 (paper: 2e-05)" in found[0].explanation
    assert "6 of 6 parts hold" in found[0].explanation


def test_switches_of_the_authors_code_count_as_the_paper() -> None:
    switches = {
        "shuffle": False,
        "drop_last": True,
        "attention_mask": False,
        "head_init": "per_site",
    }
    assert set(verdicts(a_sweep(train=switches))) == {"supported"}


def test_a_baseline_at_chance_cannot_decline() -> None:
    found = judge(a_sweep({("bert", "imdb", k): 0.52 for k in PAPER_CLIENTS}))
    for number in (1, 3, 5):
        assert found[number - 1].verdict == "not_tested"
        explanation = found[number - 1].explanation
        assert "BERT on IMDB with K = 1" in explanation
        assert "(0.520 against chance 0.500)" in explanation


def test_a_cell_with_an_unfinished_seed_is_left_out() -> None:
    cells = a_sweep().cells
    half = cells.query("model == 'bert' and data == 'imdb' and num_clients == 1")
    half = half.assign(seed=1, status="running", outcome="not yet", accuracy=None)
    half = half.astype({"accuracy": float})
    both = pd.concat([cells, half], ignore_index=True)
    found = judge(SweepData("seeds", both))
    assert [item.verdict for item in found[:2]] == ["not_tested", "supported"]
    assert found[0].numbers["num_seeds"] == 2


def test_the_retained_share_is_measured_above_chance() -> None:
    # K = 1 learned 0.9 - 0.5 = 0.4 above chance, 0.1 of it is left
    table = claim_rules.gather(a_sweep({("bert", "imdb", 2): 0.6}))
    assert table["share"]["bert", "imdb", 2] == pytest.approx(0.25)


def test_the_largest_drop_is_per_doubling() -> None:
    largest_drop = claim_rules.largest_drop
    # 4 -> 16 are two doublings that lose 0.6 together: 0.3 each
    assert largest_drop({1: 1.0, 4: 0.9, 16: 0.3}) == pytest.approx((16, 0.3))
    late = largest_drop({1: 1.0, 2: 0.5, 4: 0.4}, ends_from=4)
    assert late == pytest.approx((4, 0.1))
    assert largest_drop({1: 1.0}) == (0, 0.0)


@pytest.mark.parametrize(
    ("shares", "is_whole", "finding"),
    [
        ({1: 1.0, 2: 0.8, 4: 0.6}, True, "holds"),
        ({1: 1.0, 2: 0.8, 4: 0.6}, False, "open"),
        ({1: 1.0, 2: 0.7}, False, "fails"),
        ({1: 1.0, 2: 1.1}, True, "fails"),
    ],
)
def test_a_gradual_decline_has_no_sharp_drop_and_no_rise(
    shares: dict[int, float], is_whole: bool, finding: str
) -> None:
    assert claim_rules.declines_gradually(shares, is_whole)[0] == finding


@pytest.mark.parametrize(
    ("reached", "missed", "finding"),
    [
        (12, 3, "holds"),  # 12 / 15 = 0.80
        (11, 4, "fails"),  # 11 / 15 = 0.73
        (12, 2, "open"),
        (0, 4, "fails"),  # the 11 left cannot make it 12
    ],
)
def test_mostly_needs_three_of_four(reached: int, missed: int, finding: str) -> None:
    index = pd.MultiIndex.from_product(
        [["bert"], PAPER_DATA, PAPER_CLIENTS[1:]], names=list(claim_rules.AXES)
    )
    outcomes = [1.0] * reached + [0.0] * missed + [None] * (15 - reached - missed)
    cells = pd.DataFrame({"reached": outcomes, "learned": True}, index)
    assert claim_rules.mostly_reached(cells)[0] == finding


def test_rounds_at_chance_end_with_the_first_round_above() -> None:
    assert claim_rules.rounds_at_chance([0.25, 0.26, 0.29, 0.4, 0.25], chance=0.25) == 2
    assert claim_rules.rounds_at_chance([0.25, 0.26, 0.2], chance=0.25) == 2
    assert claim_rules.rounds_at_chance([0.9, 0.9], chance=0.25) == 0
    assert claim_rules.rounds_at_chance([], chance=0.25) == 0


def test_a_plateau_is_measured_against_the_budget() -> None:
    waits = [0.5] * 3 + [0.8]
    # Rounds 1 and 2 are at chance. With a budget of 10 rounds, 0.2 * 10 = 2 is long.
    assert claim_rules.waits_then_moves(waits, 0.5, budget=10)
    assert not claim_rules.waits_then_moves(waits, 0.5, budget=11)
    assert not claim_rules.waits_then_moves([0.5] * 4, 0.5, budget=3)  # never moves
    assert claim_rules.never_moves([0.5] * 4, 0.5, budget=3)
    assert not claim_rules.never_moves([0.5] * 4, 0.5, budget=4)  # budget not reached


@pytest.mark.parametrize(("yelp", "finding"), [(0.38, "holds"), (0.395, "fails")])
def test_steepness_is_the_mean_loss_with_more_than_one_client(
    yelp: float, finding: str
) -> None:
    index = pd.MultiIndex.from_product(
        [["bert"], PAPER_DATA, (1, 2, 4)], names=list(claim_rules.AXES)
    )
    shares = [1.0, 0.8, 0.4, 1.0, 1 - yelp, 1 - yelp, 1.0, 0.7, 0.7]
    found = claim_rules.steepest_on_imdb(pd.DataFrame({"share": shares}, index))
    assert found[0] == finding
    # The loss on IMDB is (0.2 + 0.6) / 2 = 0.4.
    losses = {"imdb": 0.4, "yelp_full": yelp, "ag_news": 0.3}
    assert found[1]["mean_loss"] == losses


@pytest.mark.parametrize(
    ("findings", "verdict"),
    [
        (["holds", "holds"], "supported"),
        (["holds", "open"], "not_tested"),
        (["open", "fails"], "contradicted"),
        (["holds", "fails"], "contradicted"),
        ([], "not_tested"),
    ],
)
def test_the_findings_of_parts_make_the_verdict(
    findings: list[claim_rules.Finding], verdict: str
) -> None:
    assert claims.combine(findings) == verdict


def test_missing_cells_are_named() -> None:
    needed = [("bert", "imdb", 1), ("bert", "imdb", 2), ("albert", "imdb", 2)]
    assert describe_missing(needed, needed) == ""
    assert describe_missing(needed, needed[:2]) == "ALBERT on IMDB with K = 2"
    both = describe_missing(needed[1:], [])
    assert both.startswith("BERT and ALBERT on IMDB with K = 2 (")
