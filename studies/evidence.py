"""What a sweep has to say about the paper's claims: only whole groups of seeds count."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean

from common.settings import Settings
from server.report.result_table import display_name, joined
from server.report.results import DEFAULT_TARGET_FRACTION, Cell, Sweep
from studies.claim_rules import Key, has_learned, retained

PAPER_MODELS = ("bert", "albert", "distilbert")
PAPER_DATA = ("imdb", "yelp_full", "ag_news")
PAPER_CLIENTS = (1, 2, 4, 8, 16, 32)
PAPER_ROUNDS = {"imdb": (100, 200), "yelp_full": (50, 100), "ag_news": (100, 200)}

# What the paper's text and its authors' code agree on (section 3.4). The switches in which the two differ
# (head, mask, shuffling, last batch, weighting, columns) are free: both are "the paper".
PAPER_TRAIN: dict[str, object] = {
    "local_epochs": 2,
    "batch_size": 32,
    "learning_rate": 2e-5,
    "max_length": 128,
    "optimizer": "sgd",
    "weight_decay": 0.0,
    "schedule": "constant",
    "max_grad_norm": None,
}


@dataclass(frozen=True)
class Evidence:
    """Numbers by (model, data, K); a key is there only when all its seeds are."""

    accuracies: dict[Key, float]
    """Test accuracy at the budget, mean over seeds."""
    reached: dict[Key, bool]
    """Whether more than half of the seeds reached the target; only where all have settled."""
    curves: dict[Key, tuple[tuple[float, ...], ...]]
    """Test accuracy by round, one curve a seed, of finished runs."""
    chances: dict[str, float]
    """1 / number of labels by data set."""
    budgets: dict[str, int]
    """Rounds of the budget by data set."""
    num_seeds: int
    differences: tuple[str, ...]
    """Where the runs leave the paper's protocol; with any of these no verdict is possible."""

    def shares(self, model: str, data: str) -> dict[int, float]:
        """Retained accuracy by K; empty while K = 1 is unknown or has learned nothing."""
        baseline, chance = self.accuracies.get((model, data, 1)), self.chances.get(data)
        if baseline is None or chance is None or not has_learned(baseline, chance):
            return {}
        return {
            num_clients: retained(accuracy, baseline, chance)
            for (a_model, a_data, num_clients), accuracy in sorted(self.accuracies.items())
            if (a_model, a_data) == (model, data) and num_clients in PAPER_CLIENTS
        }

    def why_no_decline(self, model: str, data: str) -> str:
        """Words for a K = 1 run that learned nothing; empty where that is not the trouble."""
        baseline, chance = self.accuracies.get((model, data, 1)), self.chances.get(data)
        if baseline is None or chance is None or has_learned(baseline, chance):
            return ""
        name = f"{display_name(model)} on {display_name(data)}"
        return f"{name} with K = 1 did not learn ({baseline:.3f} against chance {chance:.3f})"


def gather(sweep: Sweep) -> Evidence:
    """Read the sweep's numbers into Evidence."""
    groups: dict[Key, tuple[Cell, ...]] = {}
    for cell in sweep.cells:
        key = (cell.model, cell.data, cell.num_clients)
        groups[key] = (*groups.get(key, ()), cell)
    accuracies, reached, curves = {}, {}, {}
    for key, cells in groups.items():
        known = [cell.accuracy for cell in cells if cell.accuracy is not None]
        if len(known) == len(cells):
            accuracies[key] = fmean(known)
        if all(cell.outcome in ("reached", "not reached") for cell in cells):
            reached[key] = sum(cell.outcome == "reached" for cell in cells) > len(cells) / 2
        # A curve that a collapse cut off cannot show whether the plateau would have ended.
        if all(cell.status == "finished" and cell.outcome != "collapsed" and _curve(cell) for cell in cells):
            curves[key] = tuple(_curve(cell) for cell in cells)
    chances = {data: sweep.chance(data) for data in sweep.data_sets}
    budgets = {data: sweep.budget(data) for data in sweep.data_sets}
    return Evidence(
        accuracies=accuracies,
        reached=reached,
        curves=curves,
        chances={data: chance for data, chance in chances.items() if chance is not None},
        budgets={data: budget for data, budget in budgets.items() if budget is not None},
        num_seeds=len(sweep.seeds),
        differences=_differences(sweep),
    )


def describe_missing(needed: Iterable[Key], have: Iterable[Key]) -> str:
    """The cells that are needed and not there, in words; empty when none is missing."""
    wanted, there = list(dict.fromkeys(needed)), set(have)
    missing = [key for key in wanted if key not in there]
    counts: dict[tuple[str, str], list[int]] = {}
    for model, data, num_clients in missing:
        counts.setdefault((model, data), []).append(num_clients)
    # Data sets that miss the same K are named together, then models that miss the same there.
    data_sets: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for (model, data), several in counts.items():
        data_sets.setdefault((model, tuple(sorted(several))), []).append(display_name(data))
    models: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for (model, ks), names in data_sets.items():
        models.setdefault((joined(names), ks), []).append(display_name(model))
    text = "; ".join(
        f"{joined(names)} on {where} with K = {joined(ks)}" for (where, ks), names in models.items()
    )
    return f"{text} (none of them is here)" if missing and len(missing) == len(wanted) else text


def _curve(cell: Cell) -> tuple[float, ...]:
    rounds = cell.run.rounds if cell.run else ()
    curve = tuple(entry.accuracy for entry in rounds if entry.accuracy is not None)
    return curve if len(curve) == len(rounds) else ()


def _differences(sweep: Sweep) -> tuple[str, ...]:
    found: dict[str, None] = {}
    if sweep.target_fraction != DEFAULT_TARGET_FRACTION:
        found[f"target {sweep.target_fraction:g} of the baseline (paper: {DEFAULT_TARGET_FRACTION:g})"] = None
    for cell in sweep.cells:
        if cell.model not in PAPER_MODELS or cell.data not in PAPER_DATA or cell.status == "pending":
            continue
        if cell.run is None or cell.run.settings is None:
            found["some cells have no readable settings.json"] = None
        else:
            found |= dict.fromkeys(_run_differences(cell.run.settings))
    return tuple(found)


def _run_differences(settings: Settings) -> list[str]:
    data, name = settings.data, settings.data.name
    pairs: list[tuple[str, object, object]] = [
        (f"train.{key}", getattr(settings.train, key), value) for key, value in PAPER_TRAIN.items()
    ]
    pairs += [
        ("partition", settings.partition.name, "iid"),
        ("data.train_examples", data.train_examples, None),
        ("data.test_examples", data.test_examples, None),
        (f"{name} data.budget_rounds", data.budget_rounds, PAPER_ROUNDS[name][0]),
        (f"{name} data.second_threshold_rounds", data.second_threshold_rounds, PAPER_ROUNDS[name][1]),
    ]
    return [
        f"{key} {_plain(ours)} (paper: {_plain(theirs)})" for key, ours, theirs in pairs if ours != theirs
    ]


def _plain(value: object) -> str:
    return "all" if value is None else str(value)
