"""The report door: a sweep folder or a run folder in, pictures and pages out, from files alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from common.files import write_atomically
from server.report.document import Block, to_html, to_markdown
from server.report.result_files import read_run, read_sweep
from server.report.results import Sweep
from studies.claims import judge

if TYPE_CHECKING:
    from server.report.figure_style import Drawing

RUN_FILES = ("settings.json", "history.jsonl", "status.json")


def write_report(folder: Path) -> Path:
    """Write `<folder>/report/` anew and return the path of its `index.html`.

    The same input files give the same bytes. Every file is replaced in one step.

    Raises:
        ValueError: `folder` is neither a sweep nor a run, or its `sweep.csv` is damaged.
    """
    folder = folder.resolve()
    if (folder / "sweep.csv").is_file():
        sweep = read_sweep(folder)
        files = _study_files(sweep) if sweep.arms else _sweep_files(sweep)
    elif any((folder / name).is_file() for name in RUN_FILES):
        files = _run_files(folder)
    else:
        what = "holds neither" if folder.is_dir() else "is not a folder with"
        raise ValueError(
            f"{folder} {what} a sweep (sweep.csv) or a run ({', '.join(RUN_FILES)}). Give the folder that "
            "`wardround sweep` or `wardround simulate` printed when it started, for example: "
            "wardround report outputs/demo"
        )
    target = folder / "report"
    target.mkdir(exist_ok=True)
    for name, content in files.items():
        _write(target / name, content)
    return target / "index.html"


def _sweep_files(sweep: Sweep) -> dict[str, bytes]:
    # Matplotlib takes half a second to import; the other commands that pass here need not wait for it.
    from server.report.curves import draw_curves
    from server.report.figures import draw_accuracy, draw_rounds
    from server.report.pages import sweep_blocks, sweep_title

    claims = judge(sweep)
    drawings = [draw_accuracy(sweep), draw_rounds(sweep), draw_curves(sweep)]
    title, blocks = sweep_title(sweep), sweep_blocks(sweep, claims, drawings)
    claims_file = {"claims.json": _json([asdict(claim) for claim in claims])}
    return _pictures(drawings) | claims_file | _pages(title, blocks)


def _study_files(sweep: Sweep) -> dict[str, bytes]:
    from server.report.pages import sweep_title
    from studies.study import SWITCHES, Study
    from studies.study_figures import draw_clock, draw_remedies, draw_switch
    from studies.study_page import study_blocks
    from studies.study_verdicts import judge_study

    study = Study.of(sweep)
    answers = judge_study(study)
    switches = [draw_switch(switch, study.switched[switch.id]) for switch in SWITCHES]
    drawings = [*switches, draw_clock(study), draw_remedies(study.remedies)]
    title, blocks = sweep_title(sweep), study_blocks(sweep, answers, drawings)
    answers_file = {"study.json": _json([asdict(answer) for answer in answers])}
    return _pictures(drawings) | answers_file | _pages(title, blocks)


def _run_files(folder: Path) -> dict[str, bytes]:
    from server.report.curves import draw_run
    from server.report.diagnostic_figures import draw_diagnostics
    from server.report.run_page import run_blocks, run_title

    run = read_run(folder)
    drawings = [draw_run(run), *draw_diagnostics(run)]
    title, blocks = run_title(folder.name), run_blocks(folder.name, run, drawings)
    return _pictures(drawings) | _pages(title, blocks)


def _pictures(drawings: Sequence[Drawing]) -> dict[str, bytes]:
    files = {f"{drawing.name}.png": drawing.png for drawing in drawings}
    return files | {f"{drawing.name}.svg": drawing.svg for drawing in drawings}


def _pages(title: str, blocks: Sequence[Block]) -> dict[str, bytes]:
    return {
        "summary.md": to_markdown(title, blocks).encode(),
        "index.html": to_html(title, blocks).encode(),
    }


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _write(path: Path, content: bytes) -> None:
    def fill(part: Path) -> None:
        part.write_bytes(content)

    write_atomically(path, fill)
