"""What a study of arms asks, and which runs of a sweep answer it: those that differ in one switch alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from server.report.results import Sweep
from studies.study_curves import Curve, Pair, curves_of, mean_curve, pairs_of

NEUTRAL: Mapping[str, object] = {
    "train.head_learning_rate": None,
    "train.head_warmup_rounds": 0,
    "strategy.server_momentum": 0.0,
    "strategy.server_learning_rate": 1.0,
}
"""Remedies, each at the value that is none."""
SHARED_HEAD: Mapping[str, object] = {"train.head_init": "shared"}


@dataclass(frozen=True)
class Switch:
    """A question about one setting: what `other` does to runs that have `base`."""

    id: str
    question: str
    key: str
    base: object
    other: object
    names: tuple[str, str]
    """For the legend: `base`, then `other`."""


SWITCHES = (
    Switch(
        "a",
        "Is it the head? Does DistilBERT's head stay longer at chance on the same encoder?",
        "model.head",
        "own",
        "distilbert",
        ("the encoder's own head", "DistilBERT's head"),
    ),
    Switch(
        "b",
        "Is it heads that every site draws (the authors' code) against one shared head (the paper's text)?",
        "train.head_init",
        "shared",
        "per_site",
        ("one shared head", "a head per site"),
    ),
    Switch(
        "mask",
        "Is it padding that is attended to (the authors' code)?",
        "train.attention_mask",
        True,
        False,
        ("padding hidden", "padding attended to"),
    ),
)


@dataclass(frozen=True)
class Remedy:
    """What one remedy did, at each K it was tried."""

    name: str
    pairs: tuple[Pair, ...]


@dataclass(frozen=True)
class Study:
    """A sweep's curves, sorted by question."""

    curves: tuple[Curve, ...]
    switched: dict[str, list[Pair]]
    """By the switch's id."""
    remedies: tuple[Remedy, ...]

    @classmethod
    def of(cls, sweep: Sweep) -> Study:
        """Read a sweep."""
        curves = tuple(curves_of(sweep))
        plain = [curve for curve in curves if not _treatment(curve)]
        switched = {
            switch.id: pairs_of(plain, {switch.key: switch.other}, {switch.key: switch.base})
            for switch in SWITCHES
        }
        return cls(curves, switched, tuple(_remedies(curves)))

    def arms(self) -> dict[str, dict[int, Curve]]:
        """Of each arm without a remedy its mean curve by K, where it has more than one K."""
        groups: dict[str, dict[int, list[Curve]]] = {}
        for curve in self.curves:
            if not _treatment(curve):
                groups.setdefault(curve.name, {}).setdefault(curve.num_clients, []).append(curve)
        return {
            arm: {k: mean_curve(seeds) for k, seeds in sorted(counts.items())}
            for arm, counts in groups.items()
            if len(counts) > 1
        }


def _treatment(curve: Curve) -> dict[str, object]:
    """The remedies a run was given."""
    return {key: curve.flat[key] for key, none in NEUTRAL.items() if curve.flat[key] != none}


def _remedies(curves: Sequence[Curve]) -> list[Remedy]:
    """Every remedy beside the same run without it; where heads were per site, one shared head is one too."""
    found: dict[str, list[Pair]] = {}
    untreated: list[Curve] = []
    for curve in curves:
        given = _treatment(curve)
        for base in curves if given else ():
            if curve.is_like(base, NEUTRAL):
                name = ", ".join(f"{key}={value}" for key, value in given.items())
                found.setdefault(name, []).append(Pair(base, curve))
                untreated += [base] if base not in untreated else []
    shared = [
        Pair(base, curve)
        for base in untreated
        for curve in curves
        if base.flat["train.head_init"] == "per_site" and base.is_like(curve, SHARED_HEAD)
    ]
    if shared:
        found = {"train.head_init=shared": shared} | found
    return [Remedy(name, tuple(pairs)) for name, pairs in found.items()]
