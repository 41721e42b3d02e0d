"""What the report of a sweep says, as blocks for `document.py`."""

from __future__ import annotations

from collections.abc import Sequence

from server.report.document import Block, Bullets, Command, Heading, Paragraph, Picture, Table
from server.report.figure_style import Drawing
from server.report.result_table import Row, display_name, joined, shared_settings, table_rows
from server.report.results import Cell, Run, Sweep
from studies.claims import Claim

VERDICT_WORDS = {"supported": "✓ supported", "contradicted": "✗ contradicted", "not_tested": "? not tested"}
FINDING_WORDS = {"holds": "✓ holds", "fails": "✗ does not hold", "open": "? not tested"}
EXPECTED_TO_DIFFER = (
    "arm",
    "model.",
    "data.",
    "num_clients",
    "num_rounds",
    "seed",
    "evaluation.target_accuracy",
)


def sweep_title(sweep: Sweep) -> str:
    """Title of the page."""
    return f"Wardround sweep: {sweep.name}"


def sweep_blocks(sweep: Sweep, claims: Sequence[Claim], drawings: Sequence[Drawing]) -> list[Block]:
    """The whole page, most important first."""
    rows = table_rows(sweep)
    blocks: list[Block] = [Paragraph(text, lead=True) for text in headline(sweep, rows)]
    if any(cell.run and cell.run.rounds for cell in sweep.cells):
        captions = _captions(sweep)
        blocks.append(Heading("Figures"))
        blocks += [picture(drawing, captions[drawing.name]) for drawing in drawings]
    if rows:
        blocks += [Heading("Results"), _result_table(sweep, rows)]
    blocks += _collapses(sweep)
    blocks += incomplete_blocks(sweep)
    blocks += _claim_blocks(claims)
    blocks += settings_blocks(
        [cell.run for cell in sweep.cells if cell.run], "All cells share these settings"
    )
    return [*blocks, *rerun_blocks(sweep.name)]


def picture(drawing: Drawing, caption: str) -> Picture:
    """A drawing as a block."""
    text = f"{drawing.title}. {caption}"
    return Picture(drawing.name, drawing.alt, text, drawing.svg, drawing.width)


def headline(sweep: Sweep, rows: Sequence[Row]) -> list[str]:
    """What ran, and what was best and worst: one paragraph each."""
    if not rows:
        return ["sweep.csv lists no cell yet: nothing has been run."]
    counts: dict[str, int] = {}
    for cell in sweep.cells:
        counts[cell.status] = counts.get(cell.status, 0) + 1
    states = joined(f"{count} {status}" for status, count in counts.items())
    budgets = [
        f"{sweep.budget(data)} rounds on {display_name(data)}"
        for data in sweep.data_sets
        if sweep.budget(data)
    ]
    seeds = f"seed{'s' if len(sweep.seeds) > 1 else ''} {joined(sweep.seeds)}"
    ran = (
        f"{joined(map(display_name, sweep.models))} fine-tuned on "
        f"{joined(map(display_name, sweep.data_sets))} with K = {joined(sweep.client_counts)} clients and "
        f"{seeds}. {len(sweep.cells)} cells: {states}."
    )
    if budgets:
        ran += f" Accuracies are compared at the budget: {joined(budgets)}."
    return [ran, *_best_and_worst(sweep, rows)]


def _best_and_worst(sweep: Sweep, rows: Sequence[Row]) -> list[str]:
    known = sorted(((row.accuracy.mean, row) for row in rows if row.accuracy), key=lambda pair: pair[0])
    if not any(cell.run and cell.run.last_round > 0 for cell in sweep.cells) and not known:
        return ["No round has finished yet, so there is nothing to compare."]
    if not known:
        return ["No cell has reached its budget yet; the curves show how far the rounds have come."]
    (low, worst), (high, best) = known[0], known[-1]
    chance = sweep.chance(worst.data)
    against = f" (chance is {chance:.3g})" if chance else ""
    texts = [f"Best: {best.name}, accuracy {high:.3f}."]
    if len(known) > 1:
        texts.append(f"Worst: {worst.name}, accuracy {low:.3f}{against}.")
    shares = [(row.share.mean, row) for row in rows if row.share and row.num_clients > 1]
    if shares:
        share, row = min(shares, key=lambda pair: pair[0])
        texts.append(f"Furthest below its own K = 1 baseline: {row.name}, {share:.0%} of it.")
    return [" ".join(texts)]


def _result_table(sweep: Sweep, rows: Sequence[Row]) -> Table:
    target = f"{sweep.target_fraction:.0%} of baseline"
    caption = (
        f"Test accuracy at the budget, its share of the K = 1 baseline, and rounds to the target: {target}."
    )
    if len(sweep.seeds) > 1:
        caption += " Mean over seeds, lowest and highest in brackets."
    header = ["Model", "Data", "K", "Accuracy", "Share of baseline", "Rounds to target", "Status"]
    return Table(caption, header, [_result_row(row) for row in rows])


def _result_row(row: Row) -> list[str]:
    accuracy = row.accuracy.text(".3f") if row.accuracy else "–"
    share = row.share.text(".1%") if row.share else "–"
    names = [display_name(row.model), display_name(row.data), str(row.num_clients)]
    return [*names, accuracy, share, row.rounds_text, row.status]


def _captions(sweep: Sweep) -> dict[str, str]:
    seeds = " Markers are means over seeds, whiskers and bands run from lowest to highest." * (
        len(sweep.seeds) > 1
    )
    return {
        "figure1_accuracy": f"Higher is better; the dashed line is a classifier that guesses evenly.{seeds}",
        "figure2_rounds_to_target": "Lower is better. A cross marks a cell without a bar and says why: the "
        "target was not reached by the second threshold (dotted), is not reached yet, the run failed or was "
        "ended for a collapse, or the K = 1 baseline is missing.",
        "figure3_curves": "The dashed line is chance, the thin vertical line the budget; a cell below its "
        f"target goes on past it.{seeds}",
    }


def _collapses(sweep: Sweep) -> list[Block]:
    items = [
        f"{_cell_name(sweep, cell)}: {collapse.words(cell.run.label_names)}."
        for cell in sweep.cells
        if cell.run
        for collapse in cell.run.collapses
    ]
    return [Heading("Collapse"), Bullets(items)] if items else []


def incomplete_blocks(sweep: Sweep) -> list[Block]:
    """Which cells are not done, and why; nothing where all are."""
    items = []
    waiting = [_cell_name(sweep, cell) for cell in sweep.cells if cell.status == "pending"]
    for cell in sweep.cells:
        run = cell.run
        if cell.status not in ("pending", "finished"):
            items.append(f"{_cell_name(sweep, cell)}: {cell.status}, {_how_far(run)}{_reason(cell)}")
        elif cell.status == "finished" and cell.accuracy is None:
            ended = f"finished without an accuracy at the budget, {_how_far(run)}"
            items.append(f"{_cell_name(sweep, cell)}: {ended}{_reason(cell)}")
        for problem in run.problems if run else ():
            items.append(f"{_cell_name(sweep, cell)}: {problem}.")
    if waiting:
        items.append(f"Not started ({len(waiting)}): {'; '.join(waiting)}.")
    if not items:
        return []
    note = "The sweep's own command goes on where it stopped; finished cells are skipped."
    return [Heading("Incomplete or failed"), Bullets(items), Paragraph(note)]


def _cell_name(sweep: Sweep, cell: Cell) -> str:
    name = Row(cell.model, cell.data, cell.num_clients, (cell,)).name
    name += f", arm {cell.arm}" if cell.arm else ""
    return f"{name}, seed {cell.seed}" if len(sweep.seeds) > 1 else name


def _how_far(run: Run | None) -> str:
    if run is None:
        return "no run folder"
    return f"{run.last_round} rounds done" if run.last_round else "no whole round done"


def _reason(cell: Cell) -> str:
    if cell.run and cell.run.reason:
        return f": {' '.join(cell.run.reason.split()).rstrip('.')}."
    return "; no reason is recorded." if cell.status == "failed" else "."


def _claim_blocks(claims: Sequence[Claim]) -> list[Block]:
    blocks: list[Block] = [
        Heading("The paper's claims"),
        Paragraph(
            "Five claims of Hilmkil et al., Scaling Federated Learning for Fine-tuning of Large Language "
            "Models. A claim is supported only when all its parts are tested and hold, and contradicted as "
            "soon as one does not. The thresholds behind “sharp”, “near chance” and “mostly” are ours; "
            "claims.json holds them with every number."
        ),
    ]
    for claim in claims:
        blocks.append(Heading(f"Claim {claim.id}: {VERDICT_WORDS[claim.verdict]}", level=3))
        blocks += [Paragraph(f"“{claim.claim}”"), Paragraph(claim.explanation)]
        parts = claim.numbers["parts"]
        assert isinstance(parts, list)
        if any(part["finding"] != "open" for part in parts):
            lines = [
                [p["part"], FINDING_WORDS[p["finding"]], p.get("note") or p.get("missing", "")] for p in parts
            ]
            blocks.append(
                Table(f"Claim {claim.id} part by part", ["Part", "Finding", "Numbers"], lines, folded=True)
            )
    return blocks


def settings_blocks(runs: Sequence[Run], caption: str) -> list[Block]:
    """Settings that the runs share; keys that differ beyond the sweep's axes are named."""
    shared, different = shared_settings(runs)
    shared.pop("run_dir", None)
    if not shared:
        return []
    rows = [[key, _value(value)] for key, value in shared.items()]
    blocks: list[Block] = [Heading("Settings"), Table(caption, ["Setting", "Value"], rows, folded=True)]
    odd = [key for key in different if not key.startswith((*EXPECTED_TO_DIFFER, "run_dir"))]
    if odd:
        blocks.append(Paragraph(f"Besides model, data, K and seed, the cells differ in {joined(odd)}."))
    return blocks


def rerun_blocks(name: str) -> list[Block]:
    """How to draw the report again."""
    text = "From the folder that holds this one, redraw the report from its files alone:"
    return [Heading("Redraw"), Paragraph(text), Command(f"wardround report {name}")]


def _value(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return "none" if value is None else str(value)
