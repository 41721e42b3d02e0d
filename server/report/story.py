"""What happened in a run, in plain words: learning, at chance, in a single class, diverged."""

from __future__ import annotations

from collections.abc import Iterable
from math import log

from common.errors import DIVERGED
from server.diagnostics.collapse import CONDITIONS, Collapse, Look, Spell, find_spells, label_name, stretch
from server.report.result_table import joined
from server.report.results import Run


def tell_story(run: Run) -> str:
    """A paragraph: how the run stands, then the collapses that are over; empty before the first round."""
    trained = [look for look in run.looks if look.round > 0]
    texts = []
    if run.state == "failed" and DIVERGED in (run.reason or ""):
        texts.append(
            f"Diverged in round {run.last_round + 1}: a number was not finite any more, and the run ended. "
            "A lower train.learning_rate is the usual remedy."
        )
    elif run.last_round > 0 and (not trained or run.settings is None):
        return "Nothing is told of a collapse: the history holds no predictions, or the settings are missing."
    elif trained and (not run.collapses or not run.collapses[-1].is_up):
        texts.append(_without_flag(run.looks, trained))
    for collapse in reversed(run.collapses):
        texts.append(_about(collapse, run))
    return " ".join(texts)


def _without_flag(looks: list[Look], trained: list[Look]) -> str:
    last, plateaus = trained[-1], find_spells(trained, "at chance")
    chance = (
        f"chance is up to {last.chance_limit:.3f} here: the largest class's share of the test set, "
        f"{last.largest_class_share:.3f}, and two standard errors"
    )
    if CONDITIONS["at chance"](last) is not None:
        return f"At chance so far: test accuracy is {last.accuracy:.3f} ({chance})."
    since = plateaus[-1].last + 1 if plateaus else trained[0].round
    return (
        f"Learning: test accuracy went from {looks[0].accuracy:.3f} in round {looks[0].round} to "
        f"{last.accuracy:.3f} in round {last.round}. It has been above chance since round {since} ({chance})."
    )


def _about(collapse: Collapse, run: Run) -> str:
    """What held, one sentence a condition, those that still do first; then when it was flagged."""
    kinds = dict.fromkeys(spell.kind for spell in collapse.spells)
    groups = [[spell for spell in collapse.spells if spell.kind == kind] for kind in kinds]
    groups.sort(key=lambda spells: spells[-1].last < collapse.last)
    texts = []
    for spells in groups:
        told = joined(f"{_when(spell, collapse)} {_DETAILS[spell.kind](spell, run)}" for spell in spells)
        texts.append(f"{_OPENINGS[spells[0].kind]} {told}.")
    over = "" if collapse.is_up else f"; it was over in round {collapse.last + 1}"
    return " ".join([*texts, f"This was flagged as a collapse in round {collapse.round}{over}."])


def _when(spell: Spell, collapse: Collapse) -> str:
    is_up = collapse.is_up and spell.last == collapse.last
    return f"since round {spell.first}" if is_up else stretch(spell.first, spell.last)


def _looks(spell: Spell, run: Run) -> list[Look]:
    return [look for look in run.looks if spell.first <= look.round <= spell.last]


def _range(values: Iterable[float], pattern: str) -> str:
    known = sorted(values)
    low, high = format(known[0], pattern), format(known[-1], pattern)
    return low if low == high else f"{low} to {high}"


def _accuracies(spell: Spell, run: Run) -> str:
    looks = _looks(spell, run)
    accuracies = _range((look.accuracy for look in looks), ".3f")
    largest = looks[0].largest_class_share
    return f"(test accuracy {accuracies}, always answering the largest class {largest:.3f})"


def _answers(spell: Spell, run: Run) -> str:
    shares = _range((look.shares[spell.label] for look in _looks(spell, run)), ".0%")
    return f"(“{label_name(run.label_names, spell.label)}”, {shares} of the test predictions)"


def _losses(spell: Spell, run: Run) -> str:
    looks = _looks(spell, run)
    even = log(len(looks[0].shares))
    return f"(test loss {_range((look.loss for look in looks), '.4g')}, an even guess {even:.3g})"


_OPENINGS = {"diverged": "Diverged", "single class": "Single class", "at chance": "Plateau at chance"}
_DETAILS = {"diverged": _losses, "single class": _answers, "at chance": _accuracies}
