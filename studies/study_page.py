"""What the report of a sweep with arms says, as blocks for `document.py`."""

from __future__ import annotations

from collections.abc import Sequence

from server.report.document import Block, Heading, Paragraph, Table
from server.report.figure_style import Drawing
from server.report.pages import (
    headline,
    incomplete_blocks,
    picture,
    rerun_blocks,
    settings_blocks,
)
from server.report.result_table import display_name, table_rows
from server.report.results import Cell, Sweep
from studies.study_curves import STANDARD_ERRORS, Curve, curve_of
from studies.study_verdicts import CLOCK_SHARE, FEWEST_SHARED, MARGIN, Answer

_CAPTIONS = {
    "study_c": "Rows are the arms with the best and the worst mean accuracy. If K only slows the clock, the "
    "lines on the right fall together.",
    "study_d": "The thick grey line is the same run without a remedy.",
}
_SWITCH_CAPTION = (
    "Each dot is one run, the lines are means; the two sides differ in this switch alone. The dashed line is "
    "the share of the largest label."
)
_RULES = (
    "A run has left chance in the first round whose accuracy exceeds the largest label's share by more than "
    f"{STANDARD_ERRORS:g} binomial standard errors. Curves are compared by their mean accuracy over the "
    f"rounds both have; {MARGIN:g} is the least difference that counts. Two K are compared by steps where "
    f"they have {FEWEST_SHARED} step counts in common; “mostly” means that the gap by steps is at most "
    f"{CLOCK_SHARE:g} of the gap by rounds. The thresholds are ours. study.json holds every number."
)


def study_blocks(sweep: Sweep, answers: Sequence[Answer], drawings: Sequence[Drawing]) -> list[Block]:
    """The whole page: verdicts, then each question with its figure, then every run."""
    lines = [[answer.id, answer.question, answer.verdict] for answer in answers]
    blocks: list[Block] = [
        *(Paragraph(text, lead=True) for text in headline(sweep, table_rows(sweep))[:1]),
        Table("What the study asks, and what these runs say", ["", "Question", "Verdict"], lines),
        Paragraph(_seeds(sweep)),
    ]
    for answer, drawing in zip(answers, drawings, strict=True):
        caption = _CAPTIONS.get(drawing.name, _SWITCH_CAPTION)
        blocks += [
            Heading(f"{answer.id}. {answer.question}"),
            Paragraph(f"{answer.verdict[:1].upper()}{answer.verdict[1:]}. {answer.explanation}"),
            picture(drawing, caption),
        ]
    blocks += [Heading("Results"), _result_table(sweep), Heading("Rules", level=3), Paragraph(_RULES)]
    blocks += incomplete_blocks(sweep)
    runs = [cell.run for cell in sweep.cells if cell.run]
    return [*blocks, *settings_blocks(runs, "All cells share these settings"), *rerun_blocks(sweep.name)]


def _seeds(sweep: Sweep) -> str:
    if len(sweep.seeds) == 1:
        return "One seed: a difference that rests on few pairs of runs may be luck."
    return f"{len(sweep.seeds)} seeds; pairs share their seed."


def _result_table(sweep: Sweep) -> Table:
    rows = [
        _result_row(cell, curve_of(sweep, cell))
        for cell in sorted(sweep.cells, key=lambda cell: (sweep.arms.index(cell.arm), cell.num_clients))
    ]
    header = ["Arm", "Model", "K", "Seed", "Leaves chance", "Mean accuracy", "Accuracy at budget", "Status"]
    return Table(
        "Every run: first round above chance, accuracy over its rounds and at the budget", header, rows
    )


def _result_row(cell: Cell, curve: Curve | None) -> list[str]:
    accuracy = "–" if cell.accuracy is None else f"{cell.accuracy:.3f}"
    left, mean = "–", "–"
    if curve is not None:
        left = str(curve.left_chance() or f"not within {curve.num_rounds}")
        mean = f"{curve.mean_accuracy(curve.num_rounds):.3f}"
    names = [cell.arm, display_name(cell.model), str(cell.num_clients), str(cell.seed)]
    return [*names, left, mean, accuracy, cell.status]
