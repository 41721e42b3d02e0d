"""The report door: a sweep folder or a run folder in, pictures and pages out, from files alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pandas as pd

from common.files import write_atomically
from server.report import render
from server.report.document import Block, to_html, to_markdown
from server.report.render import Findings
from server.report.result_files import read_sweep
from server.report.results import Sweep
from studies.claims import judge

if TYPE_CHECKING:
    from server.report.figure_style import Drawing


def write_report(folder: Path) -> Path:
    """Write `<folder>/report/` anew and return the path of its `index.html`.

    The same input files give the same bytes. Every file is replaced in one step.

    Raises:
        ValueError: `folder` is neither a sweep nor a run, or its `sweep.csv` is damaged.
    """
    folder = folder.resolve()
    sweep = read_sweep(folder) if (folder / "sweep.csv").is_file() else None
    if sweep is None or not sweep.arms:
        return render.write_report(folder, lambda _: _claims(folder))
    files = _study_files(sweep)
    target = folder / "report"
    target.mkdir(exist_ok=True)
    for name, content in files.items():
        _write(target / name, content)
    return target / "index.html"


def _claims(folder: Path) -> Findings:
    """Until studies/ hands its findings over itself."""
    claims = judge(read_sweep(folder))
    words = {"holds": "✓ holds", "fails": "✗ does not hold", "open": "? not tested"}
    parts = {
        claim.id: pd.DataFrame(
            [
                (p["part"], words[p["finding"]], p.get("note") or p.get("missing", ""))
                for p in cast(Any, claim.numbers["parts"])
            ],
            columns=["Part", "Finding", "Numbers"],
        )
        for claim in claims
    }
    template = Path(__file__).parents[2] / "studies/templates/claims.j2"
    return Findings(template, "claims.json", claims, facts={"parts": parts})


def _study_files(sweep: Sweep) -> dict[str, bytes]:
    from studies.study import SWITCHES, Study
    from studies.study_figures import draw_clock, draw_remedies, draw_switch
    from studies.study_page import study_blocks
    from studies.study_verdicts import judge_study

    study = Study.of(sweep)
    answers = judge_study(study)
    switches = [draw_switch(switch, study.switched[switch.id]) for switch in SWITCHES]
    drawings = [*switches, draw_clock(study), draw_remedies(study.remedies)]
    title, blocks = f"Wardround sweep: {sweep.name}", study_blocks(sweep, answers, drawings)
    answers_file = {"study.json": _json([asdict(answer) for answer in answers])}
    return _pictures(drawings) | answers_file | _pages(title, blocks)


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
