"""The paper's five claims cut into parts that one sweep can confirm or refute."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from server.report.result_table import display_name, joined
from studies import claim_rules as rules
from studies.claim_rules import Finding, Key, Part
from studies.evidence import PAPER_CLIENTS, PAPER_DATA, PAPER_MODELS, Evidence

LARGE_CLIENTS = (8, 16, 32)
"""K "when the number of clients is high" (section 4.3): past the 4 of section 4.1."""
STEEP_FROM = {"imdb": 4, "yelp_full": 8, "ag_news": 8}
"""K at which DistilBERT's drop may end: past 4, but IMDB where the paper sees it struggle at 4 already."""


def _pairs(models: Sequence[str]) -> list[tuple[str, str]]:
    return [(model, data) for model in models for data in PAPER_DATA]


def _keys(model: str, data: str, counts: Sequence[int] = PAPER_CLIENTS) -> tuple[Key, ...]:
    return tuple((model, data, num_clients) for num_clients in counts)


def _name(model: str, data: str) -> str:
    return f"{display_name(model)} on {display_name(data)}"


def _rounded(shares: dict[int, float]) -> dict[str, float]:
    return {str(num_clients): round(share, 4) for num_clients, share in shares.items()}


def _decline_part(
    evidence: Evidence,
    model: str,
    data: str,
    name: str,
    counts: Sequence[int],
    rule: Callable[[dict[int, float], bool], tuple[Finding, str]],
) -> Part:
    """Judge retained accuracy by K; open while K = 1 is missing or learned nothing."""
    needs, shares = _keys(model, data, counts), evidence.shares(model, data)
    chosen = {num_clients: share for num_clients, share in shares.items() if num_clients in counts}
    numbers: dict[str, object] = {"retained_by_k": _rounded(chosen)}
    if len(chosen) < 2:
        return Part(name, "open", numbers, needs, evidence.why_no_decline(model, data))
    finding, note = rule(chosen, len(chosen) == len(counts))
    return Part(name, finding, numbers, needs, note=note)


def gradual_parts(evidence: Evidence) -> list[Part]:
    """Claim 1: for BERT and ALBERT on each data set, `declines_gradually`."""

    def rule(shares: dict[int, float], complete: bool) -> tuple[Finding, str]:
        at, drop = rules.largest_drop(shares)
        end = max(shares)
        note = f"largest drop per doubling {drop:.2f} (at K = {at}), {shares[end]:.2f} left at K = {end}"
        return rules.declines_gradually(shares, complete), note

    return [
        _decline_part(evidence, model, data, _name(model, data), PAPER_CLIENTS, rule)
        for model, data in _pairs(("bert", "albert"))
    ]


def collapse_parts(evidence: Evidence) -> list[Part]:
    """Claim 2: DistilBERT `drops_steeply` everywhere, `is_near_chance` and `struggles` where named."""
    parts = []
    for data in PAPER_DATA:

        def steep(shares: dict[int, float], complete: bool, data: str = data) -> tuple[Finding, str]:
            at, drop = rules.largest_drop(shares, STEEP_FROM[data])
            note = f"largest drop per doubling {drop:.2f} (at K = {at})"
            return rules.drops_steeply(shares, STEEP_FROM[data], complete), note

        name = f"steep drop, {_name('distilbert', data)}"
        parts.append(_decline_part(evidence, "distilbert", data, name, PAPER_CLIENTS, steep))
    for data in ("imdb", "yelp_full"):
        name = f"near chance with K = 32, {_name('distilbert', data)}"
        parts.append(_decline_part(evidence, "distilbert", data, name, (1, 32), _near_chance_at_end))
    for data, num_clients in (("imdb", 4), ("yelp_full", 16), ("ag_news", 16)):
        parts.append(_struggle_part(evidence, data, num_clients))
    return parts


def _near_chance_at_end(shares: dict[int, float], complete: bool) -> tuple[Finding, str]:
    share = shares[max(shares)]
    return rules.is_near_chance(share), f"{share:.2f} of the accuracy above chance is left"


def _struggle_part(evidence: Evidence, data: str, num_clients: int) -> Part:
    needs = _keys("distilbert", data, (1, num_clients))
    name = f"struggles with K = {num_clients}, {_name('distilbert', data)}"
    baseline, accuracy = (evidence.accuracies.get(key) for key in needs)
    if baseline is None or accuracy is None or not evidence.shares("distilbert", data):
        return Part(name, "open", {}, needs, evidence.why_no_decline("distilbert", data))
    share = accuracy / baseline
    numbers: dict[str, object] = {"accuracy": accuracy, "baseline": baseline, "share": round(share, 4)}
    note = f"{accuracy:.3f}, {share:.0%} of K = 1"
    return Part(name, rules.struggles(accuracy, baseline), numbers, needs, note=note)


def target_parts(evidence: Evidence) -> list[Part]:
    """Claim 3: BERT and ALBERT `mostly_reached` for K = 2 … 32, DistilBERT misses at two named cells."""
    parts = [_mostly_part(evidence, model) for model in ("bert", "albert")]
    for data, num_clients in (("yelp_full", 16), ("imdb", 4)):
        needs = _keys("distilbert", data, (1, num_clients))
        name = f"target missed with K = {num_clients}, {_name('distilbert', data)}"
        reached = evidence.reached.get(needs[1])
        if reached is None or not evidence.shares("distilbert", data):
            parts.append(Part(name, "open", {}, needs, evidence.why_no_decline("distilbert", data)))
        else:
            note = "target reached" if reached else "target not reached within the second threshold"
            parts.append(Part(name, "fails" if reached else "holds", {"reached": reached}, needs, note=note))
    return parts


def _mostly_part(evidence: Evidence, model: str) -> Part:
    needs = tuple(key for data in PAPER_DATA for key in _keys(model, data))
    cells = [key for key in needs if key[2] > 1]
    settled = [evidence.reached[k] for k in cells if k in evidence.reached and evidence.shares(model, k[1])]
    num_reached, num_missed = sum(settled), len(settled) - sum(settled)
    finding = rules.mostly_reached(num_reached, num_missed, len(cells))
    numbers: dict[str, object] = {"reached": num_reached, "missed": num_missed, "cells": len(cells)}
    dull = [why for data in PAPER_DATA if (why := evidence.why_no_decline(model, data))]
    note = f"{num_reached} of {len(cells)} cells reached the target, {num_missed} did not"
    return Part(
        f"{display_name(model)} mostly reaches the target", finding, numbers, needs, "; ".join(dull), note
    )


def plateau_parts(evidence: Evidence) -> list[Part]:
    """Claim 4: with some large K, DistilBERT `waits_then_moves` on AG News and `never_moves` on IMDB."""
    return [
        _plateau_part(evidence, "ag_news", "waits at chance, then moves", rules.waits_then_moves),
        _plateau_part(evidence, "imdb", "stays at chance", rules.never_moves),
    ]


def _plateau_part(
    evidence: Evidence, data: str, name: str, rule: Callable[[Sequence[float], float, int], bool]
) -> Part:
    needs = _keys("distilbert", data, LARGE_CLIENTS)
    name = f"{name}, {_name('distilbert', data)}"
    curves = {key[2]: evidence.curves[key] for key in needs if key in evidence.curves}
    chance, budget = evidence.chances.get(data), evidence.budgets.get(data)
    if not curves or chance is None or budget is None:
        return Part(name, "open", {}, needs)
    waited = {k: [rules.rounds_at_chance(curve, chance) for curve in seeds] for k, seeds in curves.items()}
    seen = [k for k, seeds in curves.items() if any(rule(curve, chance, budget) for curve in seeds)]
    numbers: dict[str, object] = {"rounds_at_chance_by_k": waited, "seen_with_k": seen}
    note = f"seen with K = {joined(seen)}" if seen else f"not seen with K = {joined(curves)}"
    # One curve is enough to see it; only all of them together can show that it is not there.
    finding: Finding = "holds" if seen else "fails" if len(curves) == len(needs) else "open"
    return Part(name, finding, numbers, needs, note=note)


def steepest_parts(evidence: Evidence) -> list[Part]:
    """Claim 5: for each model, IMDB's `mean_loss` `is_steepest`."""
    parts = []
    for model in PAPER_MODELS:
        needs = tuple(key for data in PAPER_DATA for key in _keys(model, data))
        shares = {data: evidence.shares(model, data) for data in PAPER_DATA}
        losses = {data: rules.mean_loss(s) for data, s in shares.items() if len(s) == len(PAPER_CLIENTS)}
        numbers: dict[str, object] = {"mean_loss": {data: round(loss, 4) for data, loss in losses.items()}}
        if len(losses) < len(PAPER_DATA):
            dull = [why for data in PAPER_DATA if (why := evidence.why_no_decline(model, data))]
            parts.append(Part(display_name(model), "open", numbers, needs, "; ".join(dull)))
            continue
        others = [loss for data, loss in losses.items() if data != "imdb"]
        note = "mean loss over K > 1: " + ", ".join(f"{display_name(d)} {v:.2f}" for d, v in losses.items())
        finding = rules.is_steepest(losses["imdb"], others)
        parts.append(Part(display_name(model), finding, numbers, needs, note=note))
    return parts
