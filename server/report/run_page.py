"""What the report of a single run says, as blocks for `document.py`."""

from __future__ import annotations

from collections.abc import Sequence

from server.diagnostics.updates import entropy
from server.report.document import Block, Heading, Paragraph, Table
from server.report.figure_style import Drawing
from server.report.pages import picture, rerun_blocks, settings_blocks
from server.report.result_table import display_name
from server.report.results import Round, Run
from server.report.story import tell_story

NONE = "–"
PHASES = ("train", "aggregate", "evaluate", "total")
CAPTIONS = {
    "curve": "The dashed line is a classifier that guesses evenly. Rounds on grey: a flagged collapse.",
    "updates": (
        "Faint lines are single clients, strong ones the mean update, or the mean over clients. Agreement is "
        "1 where all updates point the same way, and 1/√K where K of them are as independent noise. A cosine "
        "to the mean holds the client's own share; one to the mean of the others does not, and is 0 for "
        "noise. The head is what pre-training did not bring."
    ),
    "predictions": "A collapse into one class is one colour from top to bottom, and an entropy of 0.",
}
"""By the drawing's name."""


def run_title(name: str) -> str:
    """Title of the page."""
    return f"Wardround run: {name}"


def run_blocks(name: str, run: Run, drawings: Sequence[Drawing]) -> list[Block]:
    """The whole page, most important first."""
    story = tell_story(run)
    blocks: list[Block] = [Paragraph(text, lead=True) for text in (story, *_headline(run)) if text]
    blocks += [Paragraph(f"Note: {problem}.") for problem in run.problems]
    if run.rounds:
        blocks += [picture(drawing, CAPTIONS[drawing.name]) for drawing in drawings]
        blocks.append(_rounds_table(run))
        blocks += _clients(run)
        blocks += _totals(run)
    blocks += settings_blocks([run], "Settings of this run")
    return [*blocks, *rerun_blocks(name)]


def _headline(run: Run) -> list[str]:
    what = "This run"
    if run.settings:
        chosen = run.settings
        what = (
            f"{display_name(chosen.model.label)} fine-tuned on {display_name(chosen.data.name)} with "
            f"K = {chosen.num_clients} client{'s' if chosen.num_clients > 1 else ''}, seed {chosen.seed}, "
            f"protocol {chosen.protocol.name}"
        )
    planned = f" of {run.settings.num_rounds}" if run.settings else ""
    state = f"State: {run.state or 'not recorded'}, {run.last_round}{planned} rounds done."
    if run.reason:
        state += f" Reason: {' '.join(run.reason.split()).rstrip('.')}."
    texts = [f"{what}. {state}"]
    measured = [(entry.accuracy, entry) for entry in run.rounds if entry.accuracy is not None]
    if run.last_round == 0:
        texts.append("No round has finished yet.")
    if measured:
        accuracy, last = measured[-1]
        best, where = max(measured, key=lambda pair: pair[0])
        chance = f", chance {run.chance:.3g}" if run.chance else ""
        texts.append(
            f"Test accuracy {accuracy:.3f} after round {last.number} (best {best:.3f} in round {where.number}"
            f"{chance}), macro F1 {_number(last.macro_f1, '.3f')}, "
            f"test loss {_number(last.test_loss, '.4f')}."
        )
    return texts


def _rounds_table(run: Run) -> Table:
    header = [
        "Round",
        "Accuracy",
        "Macro F1",
        "Test loss",
        "Training loss",
        "Agreement",
        "Entropy",
        "Seconds",
    ]
    rows = [
        [
            str(entry.number),
            _number(entry.accuracy, ".4f"),
            _number(entry.macro_f1, ".4f"),
            _number(entry.test_loss, ".4f"),
            _number(entry.train_loss, ".4f"),
            _number(entry.updates.norm_ratio if entry.updates else None, ".3f"),
            _number(entropy(entry.look.shares) if entry.look else None, ".3f"),
            _number(entry.seconds.get("total"), ".1f"),
        ]
        for entry in run.rounds
    ]
    return Table("Every round in numbers", header, rows, folded=True)


def _clients(run: Run) -> list[Block]:
    last: Round | None = next((entry for entry in reversed(run.rounds) if entry.clients), None)
    if last is None:
        return []
    header = [
        "Client",
        "Examples",
        "Training loss",
        "Update norm",
        "of the head",
        "Cosine to mean",
        "to the others",
        "Steps so far",
        "Seconds",
    ]
    rows = [
        [
            client.name,
            _number(client.num_examples, "d"),
            _number(client.loss, ".4f"),
            _number(client.update_norm, ".4g"),
            _number(client.head_norm, ".4g"),
            _number(client.cosine_to_mean, ".3f"),
            _number(client.cosine_to_others, ".3f"),
            _number(client.total_steps, "d"),
            _number(client.seconds, ".1f"),
        ]
        for client in last.clients
    ]
    caption = (
        f"What each client sent in round {last.number}. A cosine near 1 points the way of the mean update, "
        "near 0 across it, below 0 against it."
    )
    return [Heading("Clients in the last round"), Table(caption, header, rows)]


def _totals(run: Run) -> list[Block]:
    rows = [
        [
            f"Seconds: {phase}",
            f"{sum(entry.seconds[phase] for entry in run.rounds if phase in entry.seconds):.1f}",
        ]
        for phase in PHASES
        if any(phase in entry.seconds for entry in run.rounds)
    ]
    rows.append(["Sent to the clients", _bytes(sum(entry.bytes_down for entry in run.rounds))])
    rows.append(["Sent by the clients", _bytes(sum(entry.bytes_up for entry in run.rounds))])
    return [Heading("Time and traffic"), Table("Totals over all rounds.", ["What", "Total"], rows)]


def _number(value: float | None, pattern: str) -> str:
    return NONE if value is None else format(value, pattern)


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.4g} {unit}"
        count /= 1000
    return f"{count:.4g} TB"
