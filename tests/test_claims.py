"""The verdicts on the paper's claims: each claim in each verdict."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import cache

import pytest

from common.settings import Settings
from server.report.results import Cell, Round, Run, Sweep
from studies.claim_rules import Key
from studies.claims import Claim, judge
from studies.evidence import PAPER_CLIENTS, PAPER_DATA
from tests.support.report_folders import compose_settings

NUM_LABELS = {"imdb": 2, "yelp_full": 5, "ag_news": 4}
TOP = {"imdb": 0.9, "yelp_full": 0.6, "ag_news": 0.9}
# Share of the accuracy above chance that is left at K = 1, 2, 4, 8, 16, 32, as the paper tells it.
COLLAPSE = {
    "imdb": (1, 1, 0, 0, 0, 0),
    "yelp_full": (1, 1, 1, 0.6, 0, 0),
    "ag_news": (1, 1, 1, 0.8, 0.5, 0.2),
}


@cache
def settings_for(data: str) -> Settings:
    return compose_settings("model=bert", f"data={data}")


def accuracy_of(share: float, data: str) -> float:
    chance = 1 / NUM_LABELS[data]
    return chance + share * (TOP[data] - chance)


def as_the_paper_says() -> dict[Key, float]:
    """BERT and ALBERT lose 3 % per doubling on IMDB and 1 % elsewhere; DistilBERT collapses."""
    shares: dict[Key, float] = {}
    for data in PAPER_DATA:
        for step, num_clients in enumerate(PAPER_CLIENTS):
            for model in ("bert", "albert"):
                shares[model, data, num_clients] = 1 - step * (0.03 if data == "imdb" else 0.01)
            shares["distilbert", data, num_clients] = COLLAPSE[data][step]
    return {key: accuracy_of(share, key[1]) for key, share in shares.items()}


def a_round(number: int, accuracy: float) -> Round:
    return Round(number, accuracy, None, None, None, (), {}, 0, 0)


def a_cell(key: Key, accuracy: float, baseline: float | None, settings: Settings, seed: int = 0) -> Cell:
    """A finished cell: to its budget if it reached its target, to the second threshold if not."""
    model, data, num_clients = key
    reached = baseline is not None and accuracy >= 0.9 * baseline
    last = settings.data.budget_rounds if reached else settings.data.second_threshold_rounds
    chance = 1 / NUM_LABELS[data]
    # DistilBERT waits at chance for 40 rounds before it moves, the others for 2.
    wait = 40 if model == "distilbert" and num_clients > 4 else 2
    rounds = tuple(a_round(r, chance if r <= wait else accuracy) for r in range(last + 1))
    run = Run(settings, NUM_LABELS[data], "finished", None, rounds, ())
    return Cell(model, data, num_clients, seed, "finished", accuracy, baseline, 10 if reached else None, run)


def a_sweep(
    changes: dict[Key, float] | None = None,
    without: Iterable[Key] = (),
    train: dict[str, object] | None = None,
) -> Sweep:
    """All 54 cells as the paper tells it, with some accuracies changed and some cells left out."""
    accuracies = as_the_paper_says() | (changes or {})
    cells = []
    for key, accuracy in accuracies.items():
        if key not in set(without):
            base = settings_for(key[1])
            settings = replace(base, train=replace(base.train, **(train or {})))  # type: ignore[arg-type]
            cells.append(a_cell(key, accuracy, accuracies[key[0], key[1], 1], settings))
    return Sweep("paper", tuple(cells))


def claim(number: int, sweep: Sweep) -> Claim:
    found = judge(sweep)[number - 1]
    assert found.id == number
    return found


def test_the_paper_supports_itself() -> None:
    found = judge(a_sweep())
    assert [item.verdict for item in found] == ["supported"] * 5
    assert found[0].numbers["thresholds"] == {
        "sharp_drop": 0.25,
        "rise_tolerance": 0.02,
        "learned_margin": 0.05,
    }
    parts = found[0].numbers["parts"]
    assert isinstance(parts, list)
    assert len(parts) == 6
    # BERT on IMDB keeps 1 - 5 * 0.03 = 0.85 at K = 32
    assert parts[0]["retained_by_k"]["32"] == pytest.approx(0.85)


@pytest.mark.parametrize(
    ("number", "changes", "culprit"),
    [
        (1, {("bert", "ag_news", 32): 0.6}, "BERT on AG News"),
        (2, {("distilbert", "yelp_full", 32): 0.5}, "near chance with K = 32, DistilBERT on Yelp-Full"),
        (2, {("distilbert", "imdb", 4): 0.88}, "struggles with K = 4, DistilBERT on IMDB"),
        (3, {("distilbert", "imdb", 4): 0.88}, "target missed with K = 4, DistilBERT on IMDB"),
        (3, {("albert", "imdb", k): 0.6 for k in (2, 4, 8, 16)}, "ALBERT mostly reaches the target"),
        (4, {("distilbert", "imdb", k): 0.7 for k in (8, 16, 32)}, "stays at chance, DistilBERT on IMDB"),
        (5, {("albert", "ag_news", k): 0.7 for k in (2, 4, 8, 16, 32)}, "ALBERT"),
    ],
)
def test_one_part_that_fails_contradicts(number: int, changes: dict[Key, float], culprit: str) -> None:
    found = claim(number, a_sweep(changes))
    assert found.verdict == "contradicted"
    assert found.explanation.startswith(f"Does not hold: {culprit} (")


@pytest.mark.parametrize(
    ("number", "missing", "named"),
    [
        (1, ("albert", "imdb", 32), "ALBERT on IMDB with K = 32"),
        (2, ("distilbert", "imdb", 4), "DistilBERT on IMDB with K = 4"),
        (3, ("bert", "ag_news", 8), "BERT on AG News with K = 8"),
        (5, ("distilbert", "yelp_full", 2), "DistilBERT on Yelp-Full with K = 2"),
    ],
)
def test_one_missing_cell_leaves_a_claim_untested(number: int, missing: Key, named: str) -> None:
    found = claim(number, a_sweep(without=[missing]))
    assert found.verdict == "not_tested"
    assert named in found.explanation


def test_a_plateau_seen_once_is_enough_but_its_absence_needs_all_curves() -> None:
    gone = [("distilbert", "ag_news", k) for k in (8, 16)]
    assert claim(4, a_sweep(without=gone)).verdict == "supported"
    assert claim(4, a_sweep(without=[*gone, ("distilbert", "ag_news", 32)])).verdict == "not_tested"
    moved = {("distilbert", "imdb", k): 0.7 for k in (8, 16, 32)}
    assert claim(4, a_sweep(moved, without=[("distilbert", "imdb", 8)])).verdict == "not_tested"


def test_a_sharp_drop_contradicts_before_all_cells_are_there() -> None:
    changes = {("bert", "imdb", 2): 0.6}  # keeps 0.25 of what K = 1 learned
    assert claim(1, a_sweep(changes, without=[("bert", "imdb", 32)])).verdict == "contradicted"


def test_the_demo_tests_nothing_and_says_what_is_missing() -> None:
    cell = a_cell(("bert", "imdb", 1), 0.9, 0.9, settings_for("imdb"))
    found = judge(Sweep("demo", (replace(cell, model="minilm", data="bbc_news"),)))
    assert [item.verdict for item in found] == ["not_tested"] * 5
    for item in found:
        assert item.explanation.startswith("Finished runs that are missing: ")
        assert "none of them is here" in item.explanation


def test_an_empty_sweep_tests_nothing() -> None:
    assert {item.verdict for item in judge(Sweep("empty", ()))} == {"not_tested"}


def test_other_settings_than_the_papers_give_numbers_but_no_verdict() -> None:
    found = judge(a_sweep(train={"learning_rate": 0.05}))
    assert {item.verdict for item in found} == {"not_tested"}
    assert "train.learning_rate 0.05 (paper: 2e-05)" in found[0].explanation
    assert "6 of 6 parts hold" in found[0].explanation


def test_switches_of_the_authors_code_count_as_the_paper() -> None:
    switches = {"shuffle": False, "drop_last": True, "attention_mask": False, "head_init": "per_site"}
    assert {item.verdict for item in judge(a_sweep(train=switches))} == {"supported"}


def test_a_baseline_that_learned_nothing_cannot_decline() -> None:
    dull: dict[Key, float] = {("bert", "imdb", k): 0.52 for k in PAPER_CLIENTS}
    for number in (1, 3, 5):
        found = claim(number, a_sweep(dull))
        assert found.verdict == "not_tested"
        assert "BERT on IMDB with K = 1 did not learn (0.520 against chance 0.500)" in found.explanation


def test_a_seed_that_is_not_done_leaves_its_cell_out() -> None:
    whole = a_sweep()
    half = replace(whole.cells[0], seed=1, status="running", accuracy=None, rounds_to_target=None)
    found = judge(Sweep("seeds", (*whole.cells, half)))
    assert found[0].verdict == "not_tested"
    assert found[1].verdict == "supported"
    assert found[0].numbers["num_seeds"] == 2
