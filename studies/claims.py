"""A verdict for each of the paper's five claims, with the numbers and thresholds behind it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from server.report.results import Sweep
from studies import claim_parts
from studies import claim_rules as rules
from studies.claim_rules import Key, Part, Verdict
from studies.evidence import Evidence, describe_missing, gather


@dataclass(frozen=True)
class Claim:
    """One claim with its verdict; the fields are the keys of `claims.json`."""

    id: int
    claim: str
    verdict: Verdict
    numbers: dict[str, object]
    explanation: str


@dataclass(frozen=True)
class _Criterion:
    """How one claim is judged."""

    claim: str
    find_parts: Callable[[Evidence], list[Part]]
    have: Callable[[Evidence], set[Key]]
    """Cells that count as there for this claim."""
    thresholds: tuple[str, ...]
    """Names in `claim_rules` that decide it."""


def _compared(evidence: Evidence) -> set[Key]:
    return set(evidence.accuracies)


def _settled(evidence: Evidence) -> set[Key]:
    return set(evidence.reached) | {key for key in evidence.accuracies if key[2] == 1}


def _finished(evidence: Evidence) -> set[Key]:
    return set(evidence.curves)


CLAIMS = (
    _Criterion(
        "BERT and ALBERT decline gradually with K, no sharp drop up to 32.",
        claim_parts.gradual_parts,
        _compared,
        ("SHARP_DROP", "RISE_TOLERANCE", "LEARNED_MARGIN"),
    ),
    _Criterion(
        "DistilBERT drops steeply past 4 clients: near chance on IMDB and Yelp-F; struggles at 16 on "
        "Yelp-F and AG News, at 4 on IMDB.",
        claim_parts.collapse_parts,
        _compared,
        ("SHARP_DROP", "NEAR_CHANCE", "STRUGGLING_SHARE", "LEARNED_MARGIN"),
    ),
    _Criterion(
        "BERT and ALBERT mostly reach 90 % of the baseline within the second threshold until K = 32; "
        "DistilBERT fails at 16 (Yelp-F) and at 4 (IMDB).",
        claim_parts.target_parts,
        _settled,
        ("MOSTLY", "LEARNED_MARGIN"),
    ),
    _Criterion(
        "Curves can sit on a plateau, sometimes at chance, for many rounds before they move (DistilBERT on "
        "AG News) or for the whole run (IMDB).",
        claim_parts.plateau_parts,
        _finished,
        ("AT_CHANCE_MARGIN", "LONG_PLATEAU"),
    ),
    _Criterion(
        "The decline is steepest for IMDB.",
        claim_parts.steepest_parts,
        _compared,
        ("STEEPER_MARGIN", "LEARNED_MARGIN"),
    ),
)


def judge(sweep: Sweep) -> list[Claim]:
    """A verdict for each claim, in the order of the paper.

    Runs that leave the paper's protocol are measured all the same, but confirm and refute nothing.
    """
    evidence = gather(sweep)
    return [_judge(number, row, evidence) for number, row in enumerate(CLAIMS, start=1)]


def _judge(number: int, row: _Criterion, evidence: Evidence) -> Claim:
    parts = row.find_parts(evidence)
    verdict: Verdict = "not_tested" if evidence.differences else rules.combine(parts)
    have = row.have(evidence)
    open_parts = [part for part in parts if part.finding == "open"]
    missing = describe_missing((key for part in open_parts for key in part.needs), have)
    reasons = list(dict.fromkeys(part.why_open for part in open_parts if part.why_open))
    numbers: dict[str, object] = {
        "thresholds": {name.lower(): getattr(rules, name) for name in row.thresholds},
        "num_seeds": evidence.num_seeds,
        "parts": [_part_entry(part, have) for part in parts],
        "differences_from_paper": list(evidence.differences),
    }
    return Claim(number, row.claim, verdict, numbers, _explain(parts, missing, reasons, evidence.differences))


def _part_entry(part: Part, have: set[Key]) -> dict[str, object]:
    entry: dict[str, object] = {"part": part.name, "finding": part.finding, **part.numbers}
    if part.note:
        entry["note"] = part.note
    if part.finding == "open":
        missing = describe_missing(part.needs, have)
        entry["missing"] = "; ".join(text for text in (part.why_open, missing) if text)
    return entry


def _explain(parts: list[Part], missing: str, reasons: list[str], differences: tuple[str, ...]) -> str:
    sentences = []
    failing = [f"{part.name} ({part.note})" for part in parts if part.finding == "fails"]
    num_holding = sum(part.finding == "holds" for part in parts)
    if differences and (failing or num_holding):
        sentences.append(
            f"No verdict, because the runs leave the paper's protocol: {'; '.join(differences)}. Under their "
            "own settings:"
        )
    if failing:
        sentences.append(f"Does not hold: {'; '.join(failing)}.")
    if failing or num_holding:
        sentences.append(f"{num_holding} of {len(parts)} parts hold.")
    if missing:
        sentences.append(f"Finished runs that are missing: {missing}.")
    if reasons:
        sentences.append(f"Cannot be measured: {'; '.join(reasons)}.")
    return " ".join(sentences)
